//! What is told of a run: JSON and a self-contained HTML page.
