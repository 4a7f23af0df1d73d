//! Losses that are operators.

use super::Row;

pub const TABLE: &[Row] = &[];
