//! Joins models, adapter and data: step programs, losses, the loop, control arms and the gate.

mod config;
mod events;

pub use config::{AdapterConfig, ExecutorChoice, Method, Optimizer, Preset, Schedule, Task, TrainConfig};
pub use events::{Event, Observer, Silent};
