//! Loops of onnx-merge that are worth a compiler's while, in a crate of their own: the rest is compiled for a short build.

pub mod chain;
mod planes;
mod pool;
pub mod processor;
pub mod product;
mod rows;
mod spread;
pub mod unfold;

pub use chain::Chain;
pub use planes::{Axis, Planes, Room};
pub use pool::Pool;
pub use processor::Vectors;
pub use rows::add_rows;
pub use spread::Spread;

#[cfg(test)]
mod tests;
