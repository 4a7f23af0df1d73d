//! Loops of onnx-merge that are worth a compiler's while, in a crate of their own: the rest is compiled for a short build.

mod planes;
mod select;

pub use planes::{Axis, Planes, Room};
pub use select::{Operand, select};

#[cfg(test)]
mod tests;
