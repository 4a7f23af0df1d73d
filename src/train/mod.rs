//! Joins models, adapter and data: step programs, losses, the loop, control arms and the gate.
//!
//! [`merge`] is the main job. It opens a `session` (what all arms share), lets arms compete in a `contest`,
//! and ships the best if it passes the gate. Knows nothing of the terminal: it tells an [`Observer`].

mod accumulate;
mod align;
mod arms;
mod batch_norm;
mod batches;
mod budget;
mod checkpoint;
pub mod clip;
mod config;
mod contest;
mod data_free;
mod datasets;
mod dropout;
mod events;
mod evidence;
mod examples;
mod fingerprint;
pub mod fit;
mod fitted;
mod folds;
pub mod foreseen;
mod gate;
pub mod grad;
mod guide;
pub mod head;
pub mod loss;
mod loudness;
mod merge;
pub mod metric;
pub mod model_step;
mod moving;
pub mod network;
mod objective;
mod output;
mod ranks;
mod results;
pub mod runs;
mod schedule;
mod session;
mod shelf;
mod source;
#[cfg(all(test, feature = "tract"))]
mod tests;
mod trials;
mod worth;

pub use checkpoint::is_beside as has_checkpoint;
pub use config::{
    AdapterConfig, ExecutorChoice, Method, Optimizer, Preset, Schedule, Start, Task, TrainConfig,
};
pub use data_free::invent;
pub use datasets::DataSets;
pub use events::{Event, Observer, Silent, StepTaken};
pub use merge::{MergeRequest, merge};
pub use ranks::{Launch, Ranks};
