//! Operators of ONNX Runtime's own domain, `com.microsoft`, which its optimiser and exporters put into models.
//!
//! All are fusions, so all are taken apart again (see [`super::compose`]).

use super::Row;

pub const TABLE: &[Row] = &[];
