//! Kernel texts: the WGSL files under `shaders/`, specialised by filling their `{{placeholders}}`.
//!
//! Knows no operators. Every file is prefixed by `common.wgsl`; see [`Kernel::expand`]. Where parameters come from is added
//! last, as a kernel is dispatched for one call ([`alone`]) or for many at once ([`together`]).

const COMMON: &str = include_str!("../../../shaders/common.wgsl");
const ALONE: &str = include_str!("../../../shaders/alone.wgsl");
const TOGETHER: &str = include_str!("../../../shaders/together.wgsl");

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
    CONV_DIRECT = "conv_direct" with "window",
    CONV_TILED = "conv_tiled" with "window",
    COPY = "copy",
    COPY_TURNED = "copy_turned",
    ELEMENTWISE = "elementwise",
    GATHER = "gather",
    INTERPOLATE = "interpolate",
    LAYER_NORM = "layer_norm" with "total",
    MATMUL_SMALL = "matmul_small",
    MATMUL_TILED = "matmul_tiled",
    POOL_MAX = "pool_max",
    POOL_SUM = "pool_sum",
    REDUCE_GROUP = "reduce_group" with "reduce",
    REDUCE_ROWS = "reduce_rows" with "reduce",
    SCAN = "scan",
    SCATTER = "scatter",
    SCATTER_APPLY = "scatter_apply",
    SCATTER_LINK = "scatter_link",
    SCATTER_ORDER = "scatter_order",
    SOFTMAX = "softmax" with "total",
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
    /// The kernel's text but for its parameters: loops written out, placeholders replaced.
    pub fn expand(self, values: &[(&str, &str)]) -> String {
        let mut text = format!("// {}\n{COMMON}{}{}", self.name, self.shared, written_out(self.text, values));
        for (name, value) in values {
            text = text.replace(&format!("{{{{{name}}}}}"), value);
        }
        text
    }
}

/// Replaces every `{{NAME}}` by what stands between `{{part NAME}}` and `{{end NAME}}`: what a loop does and is done once
/// before it, too.
fn with_parts(text: &str) -> String {
    const PART: &str = "{{part ";
    let mut text = text.to_owned();
    while let Some(begin) = text.find(PART) {
        let Some((name, rest)) = text[begin + PART.len()..].split_once("}}\n") else { break };
        let Some((body, rest)) = rest.split_once(&format!("{{{{end {name}}}}}\n")) else { break };
        text = [&text[..begin], &rest.replace(&format!("{{{{{name}}}}}"), body.trim())].concat();
    }
    text
}

/// An expanded text for dispatches of one call with so many parameter words, which stand in a uniform block.
pub fn alone(text: &str, params: usize) -> String {
    text.to_owned() + &ALONE.replace("{{words}}", &(block_words(params) / 4).to_string())
}

/// An expanded text for dispatches of many calls at once, whose tensors lie in common buffers.
pub struct Together {
    pub text: String,
    /// For each tensor, in the order of bindings, the words of its elements: 1, or more where they are vectors.
    pub widths: Vec<usize>,
}

/// How kernels begin that can be dispatched for many calls at once.
const BEGIN: &str =
    "fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,";
/// The same there: which call and which of its workgroups this is, stands in a table.
const BEGIN_TOGETHER: &str =
    "fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,";

/// See `together.wgsl`. All tensors can be written, since several may be one buffer to the device. `None` where the kernel
/// doesn't begin like most, or has atomics.
pub fn together(text: &str) -> Option<Together> {
    let (before, main) = text.split_once(BEGIN)?;
    let (arguments, body) = main.split_once('{')?;
    if text.contains("atomic<") {
        return None;
    }
    let (mut starts, mut places, mut widths) = (String::new(), String::new(), vec![]);
    let mut text = format!(
        "{before}{BEGIN_TOGETHER}{arguments}{{\n    let group = vec3<u32>(begin(workgroups.x * workgroup.y + workgroup.x), 0u, 0u);\n    \
         let groups = vec3<u32>(1u, 1u, 1u);{body}"
    );
    for (i, (name, width)) in bindings(before).into_iter().enumerate() {
        starts += &format!("var<private> {name}_start: i32;\n");
        places += &format!("    {name}_start = calls[block + {i}];\n");
        widths.push(width);
        text = moved(&text, &name);
    }
    let head = TOGETHER.replace("{{starts}}", starts.trim_end()).replace("{{places}}", places.trim_end());
    let head = head.replace("{{tensors}}", &widths.len().to_string());
    Some(Together { text: text.replace("var<storage, read>", "var<storage, read_write>") + &head, widths })
}

/// The tensors of a kernel in the order of their bindings, and the words of their elements.
fn bindings(text: &str) -> Vec<(String, usize)> {
    let declared = text.lines().filter_map(|line| {
        let (_, rest) = line.trim().strip_prefix("@group(0) @binding(")?.split_once("> ")?;
        let (name, ty) = rest.split_once(": ")?;
        let width = ty.strip_prefix("array<vec").and_then(|rest| rest.chars().next()?.to_digit(10));
        Some((name.to_owned(), width.unwrap_or(1) as usize))
    });
    declared.collect()
}

/// Puts `NAME_start` before every index of the array `name`.
fn moved(text: &str, name: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    let opening = format!("{name}[");
    while let Some(at) = rest.find(&opening) {
        let inside = at + opening.len();
        let part_of_another = rest[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.');
        result += &rest[..inside];
        rest = &rest[inside..];
        if !part_of_another {
            let end = closing(rest);
            result += &format!("{name}_start + i32({})", moved(&rest[..end], name));
            rest = &rest[end..];
        }
    }
    result + rest
}

/// Where the bracket closes that was opened before `text`.
fn closing(text: &str) -> usize {
    let mut depth = 0;
    let place = text.find(|c| {
        match c {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => {}
        }
        depth < 0
    });
    place.unwrap_or(text.len())
}

/// Repeats what stands between `{{for NAME in 0..COUNT}}` and `{{end}}`, `{{NAME}}` replaced by 0, 1, …; COUNT is a number or
/// the name of a value. Registers need it: drivers don't unroll every loop, and what isn't unrolled can't index them.
fn written_out(text: &str, values: &[(&str, &str)]) -> String {
    const FOR: &str = "{{for ";
    const END: &str = "{{end}}";
    let mut text = with_parts(text);
    // The first end closes the last loop that was opened before it.
    while let Some(end) = text.find(END) {
        let Some(begin) = text[..end].rfind(FOR) else { break };
        let Some((head, body)) = text[begin + FOR.len()..end].split_once("}}") else { break };
        let (name, count) = head.split_once(" in 0..").unwrap_or((head, "0"));
        let count = values.iter().find(|(known, _)| *known == count).map_or(count, |(_, value)| value);
        let body = body.strip_prefix('\n').unwrap_or(body);
        let turn = |i: usize| body.replace(&format!("{{{{{name}}}}}"), &i.to_string());
        let all: String = (0..count.parse().unwrap_or(0)).map(turn).collect();
        let rest = &text[end + END.len()..];
        text = [&text[..begin], &all, rest.strip_prefix('\n').unwrap_or(rest)].concat();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use wgpu::naga;

    /// Values for every placeholder of every kernel.
    const SAMPLE: &[(&str, &str)] = &[
        ("type", "f32"),
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
        ("stores", "y0[first] = chain(x0[first]).v0;"),
        ("binding", "@group(0) @binding(3) var<storage, read_write> index: array<i32>;"),
        ("store", "index[i] = plane * size + place;"),
        ("parts", "if (j < param(9)) { v = x0[j]; }"),
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
    fn parts_stand_wherever_they_are_named() {
        let text = "{{part load}}\n{{for i in 0..2}}a{{i}} {{end}}\n{{end load}}\n{{load}}if b { {{load}}}";
        assert_eq!(written_out(text, &[]), "a0 a1 if b { a0 a1 }");
    }

    #[test]
    fn loops_are_written_out_from_the_inside() {
        let text = "{{for i in 0..n}}\n{{for j in 0..2}}s{{i}}{{j}} {{end}}\n{{end}}\n{{for k in 0..none}}never{{end}}.";
        assert_eq!(written_out(text, &[("n", "2"), ("none", "0")]), "s00 s01 s10 s11 .");
    }

    #[test]
    fn tensors_of_many_calls_are_found_from_their_starts() {
        let text = "y[i] = x[u32(x[k]) + 1] + xx[i] + s.x[2] * x4[i / 4][i % 4];";
        assert_eq!(
            moved(&moved(text, "x"), "y"),
            "y[y_start + i32(i)] = x[x_start + i32(u32(x[x_start + i32(k)]) + 1)] + xx[i] + s.x[2] * x4[i / 4][i % 4];"
        );
    }

    #[test]
    fn every_kernel_file_is_valid_wgsl() {
        for kernel in ALL {
            let own: &[(&str, &str)] = match kernel.name {
                "scatter" | "scatter_apply" => &[("combine", "v + u")],
                "copy" => &[("type", "u32"), ("scalars", "1")],
                "elementwise" => &[("loads", "")],
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
            assert_eq!(both.is_none(), kernel.name == "scatter_link", "{}: for many calls", kernel.name);
            for text in both.into_iter().chain([alone(&text, 10)]) {
                assert!(!text.contains("{{"), "{}: placeholder without a sample value", kernel.name);
                let module = naga::front::wgsl::parse_str(&text)
                    .unwrap_or_else(|e| panic!("{}: {}", kernel.name, e.emit_to_string(&text)));
                let mut validator = naga::valid::Validator::new(
                    naga::valid::ValidationFlags::all(),
                    naga::valid::Capabilities::empty(),
                );
                if let Err(e) = validator.validate(&module) {
                    panic!("{}: {}", kernel.name, e.emit_to_string(&text));
                }
            }
        }
    }
}
