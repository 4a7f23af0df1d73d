//! How much memory the values inside a step may take, as users write it. Look at [`Budget`].

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What recomputation is to bring a step's values down to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Budget {
    /// As little as possible.
    Least,
    /// So many bytes, with as little recomputation as possible.
    Bytes(u64),
}

/// How [`Budget::Least`] is written.
const LEAST: &str = "least";

const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

impl FromStr for Budget {
    type Err = Error;

    /// A number of bytes with a unit, such as `512MB` or `1.5 GiB`, or `least`.
    fn from_str(text: &str) -> Result<Self> {
        if text == LEAST {
            return Ok(Self::Least);
        }
        let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = &text[number.len()..];
        let unit =
            UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, bytes)| *bytes as f64);
        let bytes = number.trim().parse::<f64>().ok().zip(unit).map(|(number, unit)| number * unit);
        match bytes.filter(|&bytes| (1.0..u64::MAX as f64).contains(&bytes)) {
            Some(bytes) => Ok(Self::Bytes(bytes as u64)),
            None => Err(Error::usage(format!("'{text}' is no size (such as 512MB or 2GiB)"))),
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Least => f.write_str(LEAST),
            // The largest unit that leaves a whole number, so that it can be read back.
            Self::Bytes(bytes) => {
                let whole = UNITS.iter().filter(|(_, unit)| bytes % unit == 0);
                let (name, unit) = whole.max_by_key(|(_, unit)| *unit).unwrap_or(&("B", 1));
                write!(f, "{}{name}", bytes / unit)
            }
        }
    }
}

impl TryFrom<String> for Budget {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Budget> for String {
    fn from(budget: Budget) -> Self {
        budget.to_string()
    }
}

/// Bytes for people to read: `1.2 GB`.
pub fn readable(bytes: u64) -> String {
    let large = UNITS.iter().filter(|(name, unit)| !name.contains('i') && *unit <= bytes);
    match large.max_by_key(|(_, unit)| *unit) {
        Some((name, unit)) if *unit > 1 => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        _ => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        let bytes = |text: &str| text.parse::<Budget>().ok();
        assert_eq!(bytes("512MB"), Some(Budget::Bytes(512_000_000)));
        assert_eq!(bytes("2GiB"), Some(Budget::Bytes(2 << 30)));
        assert_eq!(bytes("1.5 kib"), Some(Budget::Bytes(1536)));
        assert_eq!(bytes("least"), Some(Budget::Least));
        for budget in [Budget::Least, Budget::Bytes(1536), Budget::Bytes(3 << 30), Budget::Bytes(12_345)] {
            assert_eq!(bytes(&budget.to_string()), Some(budget), "{budget}");
        }
        assert_eq!([readable(1_234_000_000), readable(12), readable(2_500)], ["1.2 GB", "12 B", "2.5 KB"]);
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "MB", "5", "0MB", "-1GB", "model.onnx", "1e400GB", "nanMB", "5 apples"] {
            let error = text.parse::<Budget>().unwrap_err().to_string();
            assert!(error.contains("is no size"), "{text}: {error}");
        }
    }
}
