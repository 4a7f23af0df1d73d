//! Kernel texts: the WGSL files under `shaders/`, specialised by filling their `{{placeholders}}`.
//!
//! Knows no operators. Every file is prefixed by `common.wgsl`; see [`Kernel::expand`].

const COMMON: &str = include_str!("../../../shaders/common.wgsl");

/// A kernel file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kernel {
    pub name: &'static str,
    text: &'static str,
}

macro_rules! kernels {
    ($($constant:ident = $name:literal),* $(,)?) => {
        $(pub const $constant: Kernel =
            Kernel { name: $name, text: include_str!(concat!("../../../shaders/", $name, ".wgsl")) };)*
        #[cfg(test)]
        pub const ALL: &[Kernel] = &[$($constant),*];
    };
}

kernels! {
    ARGBEST = "argbest",
    COPY = "copy",
    ELEMENTWISE = "elementwise",
    GATHER = "gather",
    MATMUL_SMALL = "matmul_small",
    MATMUL_TILED = "matmul_tiled",
    REDUCE_GROUP = "reduce_group",
    REDUCE_ROWS = "reduce_rows",
    SCAN = "scan",
    SCATTER = "scatter",
    SOFTMAX = "softmax",
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
    /// The kernel's text for dispatches with `params` parameter words, its placeholders replaced.
    pub fn expand(self, params: usize, values: &[(&str, &str)]) -> String {
        let mut text = format!("// {}\n{COMMON}{}", self.name, self.text);
        let vectors = (block_words(params) / 4).to_string();
        for (name, value) in values.iter().chain(&[("words", vectors.as_str())]) {
            text = text.replace(&format!("{{{{{name}}}}}"), value);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wgpu::naga;

    /// Values for every placeholder of every kernel.
    const SAMPLE: &[(&str, &str)] = &[
        ("type", "f32"),
        ("map", "v * v"),
        ("better", "v > best"),
        ("finish", "0.0"),
        (
            "bindings",
            "@group(0) @binding(1) var<storage, read> x0: array<f32>;
             @group(0) @binding(2) var<storage, read_write> y0: array<f32>;",
        ),
        ("loads", "let a0 = x0[i];"),
        ("body", "let v0 = sigmoid(power(erf(softplus(tanh_safe(a0))), f32(power_i32(2, 3))));"),
        ("stores", "y0[i] = v0;"),
    ];

    #[test]
    fn every_kernel_file_is_valid_wgsl() {
        for kernel in ALL {
            let combine = if *kernel == SCATTER { "v + u" } else { "a + b" };
            let text = kernel.expand(10, &[SAMPLE, &[("combine", combine)]].concat());
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
