//! Kernel texts: the WGSL files under `shaders/`, specialised by filling their `{{placeholders}}`.
//!
//! Knows no operators. Every file is prefixed by `common.wgsl`; see [`Kernel::expand`]. Where parameters come from is added
//! last, as a kernel is dispatched for one call ([`alone`]) or for many at once ([`super::together`]).

use super::template::fill;

const COMMON: &str = include_str!("../../../shaders/common.wgsl");
const ALONE: &str = include_str!("../../../shaders/alone.wgsl");

/// A kernel file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kernel {
    pub name: &'static str,
    /// What it shares with other kernels, besides `common.wgsl`.
    shared: &'static str,
    text: &'static str,
}

macro_rules! kernels {
    ($($constant:ident = $name:literal $(with $shared:literal)*),* $(,)?) => {
        $(pub const $constant: Kernel = Kernel {
            name: $name,
            shared: concat!($(include_str!(concat!("../../../shaders/", $shared, ".wgsl"))),*),
            text: include_str!(concat!("../../../shaders/", $name, ".wgsl")),
        };)*
        #[cfg(test)]
        pub const ALL: &[Kernel] = &[$($constant),*];
    };
}

kernels! {
    ARGBEST = "argbest",
    CONCAT = "concat",
    CONV_DEEP = "conv_deep" with "total" with "window",
    CONV_DEPTHWISE = "conv_depthwise",
    CONV_DEPTHWISE_WEIGHT = "conv_depthwise_weight",
    CONV_DIRECT = "conv_direct" with "window",
    CONV_TILED = "conv_tiled" with "window",
    COPY = "copy",
    COPY_TURNED = "copy_turned",
    ELEMENTWISE = "elementwise" with "functions",
    GATHER = "gather",
    INTERPOLATE = "interpolate",
    MATMUL_COOP = "matmul_coop",
    MATMUL_SMALL = "matmul_small",
    MATMUL_TILED = "matmul_tiled",
    POOL_MAX = "pool_max",
    POOL_SUM = "pool_sum",
    REDUCE_COLUMNS = "reduce_columns" with "reduce",
    REDUCE_EACH = "reduce_each" with "reduce" with "reduce_walk",
    REDUCE_GROUP = "reduce_group" with "reduce" with "reduce_walk",
    ROWS = "rows" with "functions",
    SCAN = "scan",
    SCATTER = "scatter",
    SCATTER_APPLY = "scatter_apply",
    SCATTER_LINK = "scatter_link",
    SCATTER_ORDER = "scatter_order",
    TOPK = "topk",
}

/// Words that a uniform block is padded to at least, so that most dispatches of a kernel share one pipeline.
const MIN_BLOCK: usize = 32;

/// The size of the uniform block that holds `params` parameter words.
pub fn block_words(params: usize) -> usize {
    params.max(MIN_BLOCK).next_power_of_two()
}

/// The name of the file that an expanded kernel text came from.
pub fn kernel_name(source: &str) -> &str {
    source.lines().next().unwrap_or_default().trim_start_matches("// ")
}

impl Kernel {
    /// The kernel's text but for its parameters: loops written out, placeholders replaced, the language's extensions that it
    /// asks for first, as they must be.
    pub fn expand(self, values: &[(&str, &str)]) -> String {
        let enables = |line: &&str| line.starts_with("enable ");
        let (first, rest): (Vec<&str>, Vec<&str>) = self.text.split_inclusive('\n').partition(enables);
        let text = [&first.concat(), COMMON, self.shared, &rest.concat()].concat();
        format!("// {}\n{}", self.name, fill(&text, values))
    }
}

#[cfg(test)]
impl Kernel {
    /// What it asks of a device beyond plain WGSL.
    pub fn capabilities(self) -> wgpu::naga::valid::Capabilities {
        use wgpu::naga::valid::Capabilities as C;
        match self {
            MATMUL_COOP => C::SHADER_FLOAT16 | C::COOPERATIVE_MATRIX | C::SUBGROUP,
            _ => C::empty(),
        }
    }
}

/// One reduction of a kernel of rows.
pub const FOLD: &str = include_str!("../../../shaders/fold.wgsl");

/// An expanded text for dispatches of one call with so many parameter words, which stand in a uniform block.
pub fn alone(text: &str, params: usize) -> String {
    text.to_owned() + &ALONE.replace("{{words}}", &(block_words(params) / 4).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::wgpu::together::together;
    use wgpu::naga;

    /// Values for every placeholder of every kernel.
    const SAMPLE: &[(&str, &str)] = &[
        ("rows", "3"),
        ("columns", "2"),
        ("tall", "2"),
        ("wide", "3"),
        ("step", "1"),
        ("apart", "1"),
        ("reach", "5"),
        ("type", "f32"),
        ("scalar", "f32"),
        ("across", "16"),
        ("down", "4"),
        ("unrolled", "4"),
        ("row", "j * param(sizes + 1)"),
        ("side", "32"),
        ("lines", "8"),
        ("moves", "4"),
        ("size", "64"),
        ("centre", "1"),
        ("map", "v * v"),
        ("combine", "a + b"),
        ("quads_r", "2"),
        ("quads_c", "1"),
        ("along_taps", "1"),
        ("along_columns", "0"),
        ("loads_w", "1"),
        ("loads_x", "1"),
        ("check", "1"),
        ("y", "f32"),
        ("quads_m", "2"),
        ("quads_n", "1"),
        ("loads_a", "1"),
        ("loads_b", "1"),
        ("c", "f32"),
        ("vectors", "0"),
        ("scalars", "4"),
        ("whole", "0"),
        ("load_a", "1"),
        ("load_b", "2"),
        ("better", "v > best"),
        ("finish", "0.0"),
        (
            "bindings",
            "@group(0) @binding(1) var<storage, read> x0: array<f32>;
             @group(0) @binding(2) var<storage, read_write> y0: array<f32>;",
        ),
        (
            "chain",
            "struct Results { v0: f32 }
             fn chain(a0: f32) -> Results {
                 return Results(sigmoid(power(erf(softplus(tanh_safe(a0))), f32(power_i32(2, 3)))));
             }",
        ),
        ("width", "1"),
        ("members", "1"),
        ("lanes", "64"),
        ("folds", ""),
        ("stores", "y0[first] = chain(x0[first]).v0;"),
        ("binding", "@group(0) @binding(3) var<storage, read_write> index: array<i32>;"),
        ("store", "index[i] = plane * size + place;"),
        ("parts", "if (j < param(9)) { v = x0[j]; }"),
        ("subs", "4"),
        ("blocks_m", "4"),
        ("blocks_n", "1"),
        ("depth", "32"),
        ("slices", "2"),
        ("buffers", "2"),
        ("along_a", "1"),
        ("along_b", "0"),
        ("vectors_a", "1"),
        ("vectors_b", "0"),
        ("read_a", "coopLoadT"),
        ("read_b", "coopLoadT"),
        ("direct", "0"),
        ("edges", "1"),
    ];

    /// A device with less is refused before any kernel is compiled.
    #[test]
    fn no_kernel_shares_more_memory_than_is_asked_of_a_device() {
        let mut most = 0;
        for (kernel, [rows, columns]) in [MATMUL_TILED, CONV_TILED]
            .into_iter()
            .flat_map(|kernel| [["1", "1"], ["1", "2"], ["2", "1"], ["2", "2"]].map(|size| (kernel, size)))
        {
            let own = [("quads_m", rows), ("quads_n", columns), ("quads_r", rows), ("quads_c", columns)];
            let text = alone(&kernel.expand(&[&own, SAMPLE].concat()), 10);
            let module = naga::front::wgsl::parse_str(&text).unwrap();
            let variables = module.global_variables.iter().map(|(_, variable)| variable);
            let shared = variables.filter(|v| v.space == naga::AddressSpace::WorkGroup);
            let bytes: u32 = shared.map(|v| module.types[v.ty].inner.size(module.to_ctx())).sum();
            assert!(bytes <= crate::runtime::wgpu::gpu::WORKGROUP_MEMORY, "{} {own:?}: {bytes}", kernel.name);
            most = most.max(bytes);
        }
        assert!(most > 16 << 10, "{most} bytes at most: less could be asked for");
    }

    #[test]
    fn every_kernel_file_is_valid_wgsl() {
        for kernel in ALL {
            let own: &[(&str, &str)] = match kernel.name {
                "scatter" | "scatter_apply" => &[("combine", "v + u")],
                "copy" => &[("type", "u32"), ("scalars", "1")],
                "elementwise" => &[("loads", "")],
                "rows" => {
                    &[("passes", ""), ("body", "if (live && turn < vectors) { y0[i] = x0[i] / length; }")]
                }
                "topk" => &[("better", "u > v")],
                "concat" => &[(
                    "bindings",
                    "@group(0) @binding(1) var<storage, read> x0: array<u32>;
                     @group(0) @binding(2) var<storage, read_write> y: array<u32>;",
                )],
                _ => &[],
            };
            // What comes first holds.
            let text = kernel.expand(&[own, SAMPLE].concat());
            let both = together(&text).map(|t| t.text);
            let alone_only = ["scatter_link", "matmul_coop"].contains(&kernel.name);
            assert_eq!(both.is_none(), alone_only, "{}: for many calls", kernel.name);
            for text in both.into_iter().chain([alone(&text, 10)]) {
                assert!(!text.contains("{{"), "{}: placeholder without a sample value", kernel.name);
                let module = naga::front::wgsl::parse_str(&text)
                    .unwrap_or_else(|e| panic!("{}: {}", kernel.name, e.emit_to_string(&text)));
                let mut validator =
                    naga::valid::Validator::new(naga::valid::ValidationFlags::all(), kernel.capabilities());
                if let Err(e) = validator.validate(&module) {
                    panic!("{}: {}", kernel.name, e.emit_to_string(&text));
                }
            }
        }
    }
}
