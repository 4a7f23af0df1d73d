//! Softmax and its kin.

use super::Row;

pub const TABLE: &[Row] = &[];
