//! Resampling.

use super::Row;

pub const TABLE: &[Row] = &[];
