//! Which vectors the processor has. Every kernel is written once and compiled for all of them.

use std::sync::OnceLock;

/// Vector instructions, from the narrowest on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Vectors {
    /// What all processors have that the program is compiled for.
    Plain,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512: F, DQ and VL.
    Avx512,
}

/// Names the widest vectors that kernels shall use, of those in [`NAMES`]: for tests and measurements.
pub const VARIABLE: &str = "ONNX_MERGE_VECTORS";
pub const NAMES: [(&str, Vectors); 3] =
    [("plain", Vectors::Plain), ("avx2", Vectors::Avx2), ("avx512", Vectors::Avx512)];

impl Vectors {
    /// What kernels use: the widest that there are and [`VARIABLE`] allows.
    pub fn here() -> Self {
        static HERE: OnceLock<Vectors> = OnceLock::new();
        *HERE.get_or_init(|| Self::widest().min(Self::limit().unwrap_or(Self::Avx512)))
    }

    /// The widest that [`VARIABLE`] allows.
    ///
    /// # Errors
    /// What it says, where that is no name.
    pub fn limit() -> Result<Self, String> {
        let named = std::env::var(VARIABLE).unwrap_or_default();
        let known = NAMES.iter().find(|(name, _)| *name == named).map(|&(_, vectors)| vectors);
        if named.is_empty() { Ok(Self::Avx512) } else { known.ok_or(named) }
    }

    /// All that this processor has.
    pub fn all() -> impl Iterator<Item = Self> {
        let all = NAMES.into_iter().map(|(_, vectors)| vectors);
        all.filter(|&vectors| vectors <= Self::widest())
    }

    #[cfg(target_arch = "x86_64")]
    fn widest() -> Self {
        use std::arch::is_x86_feature_detected as has;
        match has!("avx2") && has!("fma") {
            true if has!("avx512f") && has!("avx512dq") && has!("avx512vl") => Self::Avx512,
            true => Self::Avx2,
            false => Self::Plain,
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    fn widest() -> Self {
        Self::Plain
    }
}
