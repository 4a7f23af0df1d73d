//! `--profile`: where a run's time went, as a table for people and a file for chrome://tracing.

use super::terminal::{message, table};
use crate::error::Result;
use crate::runtime::Profile;
use std::path::Path;

/// Writes the trace to `path`, and prints the table by part to stderr.
pub fn write(profile: &Profile, path: &Path) -> Result<()> {
    crate::onnx::atomic::write(path, profile.trace().to_string().as_bytes())?;
    let mut rows = vec![["part", "on", "times", "total", "each", "moved"].map(String::from).to_vec()];
    let mut part = String::new();
    for line in profile.lines() {
        let name = if line.part == part { String::new() } else { line.part.clone() };
        part = line.part;
        let moved = match line.bytes {
            0 => String::new(),
            bytes => format!("{:.1} MB", bytes as f64 / 1e6),
        };
        let each = format!("{:.2} ms", 1e3 * line.seconds / line.count.max(1) as f64);
        let total = format!("{:.2} s", line.seconds);
        rows.push(vec![name, line.what, line.count.to_string(), total, each, moved]);
    }
    message(format!("\n{}\ntrace for chrome://tracing: {}", table(&rows), path.display()));
    Ok(())
}
