//! From any file's graph to the working graph that rules understand.
//!
//! [`upgrade`] inlines functions, hoists constants and brings old operators into the forms of opset 18;
//! [`widen`] computes half-precision models in float32; [`specialise`] folds what depends on no data, inlines decided
//! branches, unrolls short loops and takes sequences apart; [`lift`] makes the batch dimension free. Each keeps the values of the model's
//! outputs, and the sites of its weights. Nothing here knows about gradients.

mod check;
mod forms;
mod functions;
mod lift;
mod names;
mod sequences;
mod specialise;
mod statics;
mod trace;
mod unroll;
mod upgrade;
mod widen;

pub use lift::{Lifted, Lifting, OPEN_SIZES, batch_axes, lift};
pub(super) use names::own_names;
pub use names::{rename, rename_reads};
pub use specialise::{settle, specialise};
pub use statics::{has_varying_shapes, is_random, random_node};
pub use upgrade::{Kept, upgrade, upgrade_with_dropout};
pub use widen::widen;

#[cfg(test)]
mod tests;
