//! Arithmetic between broadcast values, comparisons and choices.

use super::Row;

pub const TABLE: &[Row] = &[];
