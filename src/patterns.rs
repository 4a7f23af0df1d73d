//! Patterns that users give for names, of weights and of files: `*` for anything, slashes and dots included, `?` for one
//! character, `[a-c]` for one of some. Look at [`Patterns`].

use crate::error::{Error, Result};
use glob::Pattern;

/// Any of some patterns.
pub struct Patterns(Vec<Pattern>);

impl Patterns {
    /// # Errors
    /// [`Error::Usage`] for what is no pattern.
    pub fn new(patterns: &[impl AsRef<str>]) -> Result<Self> {
        patterns.iter().map(|pattern| one(pattern.as_ref())).collect::<Result<_>>().map(Self)
    }

    pub fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(name))
    }
}

fn one(pattern: &str) -> Result<Pattern> {
    let mut stars = 0;
    // Several stars match what one does, but the library has a meaning of its own for them, in paths.
    let single = |c: &char| {
        stars = if *c == '*' { stars + 1 } else { 0 };
        stars < 2
    };
    let plain: String = pattern.chars().filter(single).collect();
    Pattern::new(&plain).map_err(|e| Error::usage(format!("'{pattern}' is no pattern: {}", e.msg)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_match_slashes_and_dots() {
        let matches = |pattern: &str, name: &str| Patterns::new(&[pattern]).unwrap().matches(name);
        assert!(
            matches("conv*", "conv1/kernel:0")
                && matches("*.bias", "a.b.bias")
                && matches("**bias", "x.bias")
        );
        assert!(matches("layer?.w", "layer1.w") && matches("layer[0-3].w", "layer3.w"));
        assert!(!matches("layer?.w", "layer10.w") && !matches("conv", "conv1"));
        assert!(!Patterns::new(&[""; 0]).unwrap().matches("w"));
        assert!(Patterns::new(&["a", "b*"]).unwrap().matches("bc"));
        let why = Patterns::new(&["layer[0"]).err().unwrap().to_string();
        assert!(why.contains("'layer[0' is no pattern"), "{why}");
    }
}
