//! Products of matrices.

use super::Row;

pub const TABLE: &[Row] = &[];
