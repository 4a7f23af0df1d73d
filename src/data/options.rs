//! How raw numbers become what a model expects: scale, mean, standard deviation, image size.

use super::IGNORED;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How a data set is read. Values become `(value · scale − mean) / std`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DataOptions {
    pub scale: Option<f64>,
    /// One number, or one a channel (or feature).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mean: Vec<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub std: Vec<f64>,
    /// Images are resized to this height and width.
    pub size: Option<[usize; 2]>,
    /// Name of the label array or column.
    pub label: Option<String>,
    /// Name of the array or column that says which rows belong together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<String>,
    /// The label of what is left out of losses and metrics, where it isn't [`IGNORED`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore_label: Option<i64>,
    /// Axis of the answers that the classes lie on, counted with the batch's (from the end if negative), where positions of a row
    /// have labels of their own and shapes don't tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_axis: Option<i64>,
}

impl DataOptions {
    /// Whether values are to be changed at all.
    pub fn transforms(&self) -> bool {
        self.scale.is_some() || !self.mean.is_empty() || !self.std.is_empty()
    }
    /// The label of what is left out.
    pub fn ignored(&self) -> i64 {
        self.ignore_label.unwrap_or(IGNORED)
    }
}

/// A number, or a fraction such as `1/255`.
pub fn parse_number(text: &str) -> Result<f64> {
    let plain = |t: &str| t.trim().parse::<f64>().ok().filter(|v| v.is_finite());
    let value = match text.split_once('/') {
        Some((a, b)) => plain(a).zip(plain(b)).map(|(a, b)| a / b).filter(|v| v.is_finite()),
        None => plain(text),
    };
    value.ok_or_else(|| Error::usage(format!("'{text}' is not a number (such as 0.5 or 1/255)")))
}

/// Numbers separated by commas.
pub fn parse_numbers(text: &str) -> Result<Vec<f64>> {
    text.split(',').map(parse_number).collect()
}

/// `28`, or `HEIGHTxWIDTH`.
pub fn parse_size(text: &str) -> Result<[usize; 2]> {
    let (height, width) = text.split_once('x').unwrap_or((text, text));
    let side = |t: &str| t.trim().parse::<usize>().ok().filter(|v| (1..=16384).contains(v));
    match (side(height), side(width)) {
        (Some(height), Some(width)) => Ok([height, width]),
        _ => Err(Error::usage(format!("'{text}' is not an image size (such as 28 or 240x320)"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_may_be_fractions() {
        assert_eq!(parse_number("1/255").unwrap(), 1.0 / 255.0);
        assert_eq!(parse_numbers("0.5, 1/4").unwrap(), [0.5, 0.25]);
        for bad in ["", "1/0", "nan", "x", "1/2/3", "inf"] {
            assert!(parse_number(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_one_side_or_two() {
        assert_eq!(parse_size("28").unwrap(), [28, 28]);
        assert_eq!(parse_size("240x320").unwrap(), [240, 320]);
        assert!(parse_size("0").is_err() && parse_size("3x").is_err());
    }
}
