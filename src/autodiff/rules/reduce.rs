//! Reductions along axes, running sums, and selections by size.

use super::Row;

pub const TABLE: &[Row] = &[];
