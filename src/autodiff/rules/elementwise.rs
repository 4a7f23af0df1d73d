//! Functions of one value, element by element.

use super::Row;

pub const TABLE: &[Row] = &[];
