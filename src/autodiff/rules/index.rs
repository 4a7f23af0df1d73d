//! Gathering and scattering by index.

use super::Row;

pub const TABLE: &[Row] = &[];
