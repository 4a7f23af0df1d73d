//! The executors against each other: the same graph must give the same numbers everywhere.
//!
//! ONNX Runtime takes part where its library is found (see `runtime::discover`); a line says so where it isn't.

#[cfg(all(feature = "wgpu", feature = "tract"))]
mod adapter;
#[cfg(all(feature = "wgpu", feature = "tract"))]
mod cache;
#[cfg(all(feature = "wgpu", feature = "tract"))]
mod chains;
mod executors;
#[cfg(all(feature = "wgpu", feature = "tract"))]
mod far;
#[cfg(all(feature = "wgpu", feature = "tract"))]
mod kernels;
#[cfg(all(feature = "wgpu", feature = "tract"))]
mod limits;
#[cfg(all(feature = "wgpu", feature = "tract"))]
mod lost;
#[cfg(all(feature = "wgpu", feature = "tract"))]
mod run;
#[cfg(all(feature = "wgpu", feature = "tract"))]
mod split;
#[cfg(all(feature = "wgpu", feature = "tract"))]
mod steps;
mod training;
#[cfg(all(feature = "wgpu", feature = "tract"))]
mod wgpu;
