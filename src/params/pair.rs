//! Matching two parameter graphs: which channel space of the target takes knowledge from which of the source.

use super::{InterfaceId, WeightId};
use serde::Serialize;

/// What a target can take from a source. Every matrix of the target is in `weights`, in the target's order.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Pairing {
    /// (target, source); each target interface at most once, in the target's order of depth.
    pub interfaces: Vec<(InterfaceId, InterfaceId)>,
    pub weights: Vec<WeightPair>,
}

/// Where one matrix of the target takes knowledge from.
#[derive(Clone, Debug, Serialize)]
pub struct WeightPair {
    pub target: WeightId,
    /// The source matrix between the interfaces that are paired with this matrix's input and output: an interface
    /// map can carry it as it is. `None` where an interface is unpaired or no such matrix exists.
    pub source: Option<WeightId>,
    /// Source matrices for token transfer, best first: same role and nearest in relative depth, or those of `--map`.
    pub candidates: Vec<WeightId>,
}

impl Pairing {
    /// The source interface paired with a target interface.
    pub fn source_of(&self, target: InterfaceId) -> Option<InterfaceId> {
        self.interfaces.iter().find(|(t, _)| *t == target).map(|(_, s)| *s)
    }
}
