//! From any file's graph to the working graph that rules understand.
//!
//! [`upgrade`] inlines functions, hoists constants and brings old operators into the forms of opset 18;
//! [`specialise`] folds what depends on no data and inlines decided branches; [`lift`] makes the batch
//! dimension free. Each keeps the values of the model's outputs, and the sites of its weights. Nothing here
//! knows about gradients.

mod forms;
mod functions;
mod lift;
mod specialise;
mod statics;
mod trace;
mod upgrade;

pub use lift::{Lifted, Lifting, lift};
pub use specialise::{settle, specialise};
pub use upgrade::upgrade;

#[cfg(test)]
mod tests;
