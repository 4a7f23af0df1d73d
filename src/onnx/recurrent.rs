//! What the operators LSTM, GRU and RNN have in common, as their specification says.

use super::{Attr, Node};

/// The kind of a recurrent layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecurrentOp {
    /// Gates in the order input, output, forget, cell (ONNX's `iofc`).
    Lstm,
    /// Gates in the order update, reset, hidden (`zrh`).
    Gru,
    Rnn,
}

impl RecurrentOp {
    /// `None` for other nodes.
    pub fn of(node: &Node) -> Option<Self> {
        match node.op.as_str() {
            "LSTM" => Some(Self::Lstm),
            "GRU" => Some(Self::Gru),
            "RNN" => Some(Self::Rnn),
            _ => None,
        }
    }
    pub fn gates(self) -> usize {
        match self {
            Self::Lstm => 4,
            Self::Gru => 3,
            Self::Rnn => 1,
        }
    }
    /// The names of a node's activations, all of a direction together, where it names none those of the specification.
    pub fn activations(self, node: &Node, directions: usize) -> Vec<String> {
        let usual: &[&str] = match self {
            Self::Lstm => &["Sigmoid", "Tanh", "Tanh"],
            Self::Gru => &["Sigmoid", "Tanh"],
            Self::Rnn => &["Tanh"],
        };
        let named = match node.attrs.get("activations") {
            Some(Attr::Strs(names)) => &names[..],
            _ => &[],
        };
        let name = |k: usize| named.get(k).cloned().unwrap_or_else(|| usual[k % usual.len()].to_owned());
        (0..directions * usual.len()).map(name).collect()
    }
}
