//! Control flow.

use super::Row;

pub const TABLE: &[Row] = &[];
