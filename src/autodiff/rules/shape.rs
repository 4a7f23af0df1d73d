//! Rearrangements: what only moves, copies or drops elements.

use super::Row;

pub const TABLE: &[Row] = &[];
