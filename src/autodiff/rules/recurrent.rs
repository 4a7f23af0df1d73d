//! Recurrent cells.

use super::Row;

pub const TABLE: &[Row] = &[];
