//! Moves knowledge from one ONNX model into another, whatever their architectures, tasks or modalities.
//!
//! The way through, in the order of the modules: [`onnx`] reads files into graphs and writes changed weights
//! back byte-exactly; [`params`] sees a model's weights as a graph; [`autodiff`] differentiates graphs;
//! [`lpka`] builds the adapter; [`runtime`] executes graphs; [`data`] feeds them; [`train`] joins it all;
//! [`report`] tells what happened.

pub mod autodiff;
pub mod cli;
pub mod data;
pub mod error;
pub mod lpka;
mod memory;
pub mod onnx;
pub mod params;
mod patterns;
pub mod report;
pub mod runtime;
pub mod train;

pub use error::{Error, Result};
