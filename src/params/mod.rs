//! The parameter graph: a model's weights as vertices, the dataflow between them as edges, and the *interfaces*
//! (channel spaces) in which the outputs of some layers are the inputs of others.
//!
//! Knows ONNX graphs and nothing of adapters, training or executors. Look at [`ParamGraph`] first;
//! [`ParamGraph::extract`] makes one, `pair` matches two, [`spectrum`] gives the low-rank factors of a weight.

mod cell;
mod draw;
mod edges;
mod extract;
mod layer;
mod matrix;
mod pair;
mod pieces;
mod reading;
pub mod spectrum;
mod within;

pub use cell::Cell;
pub use edges::Edges;
pub use layer::Layer;
pub use matrix::{Matrix, MatrixView};
pub use pair::{Pairing, WeightPair};
pub use reading::Reading;
pub use spectrum::{Factors, low_rank};

use crate::onnx::{DType, SiteId, ValueId};
use serde::Serialize;

/// A weight of a [`ParamGraph`]: an index into [`ParamGraph::weights`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize)]
pub struct WeightId(pub usize);

/// An interface of a [`ParamGraph`]: an index into [`ParamGraph::interfaces`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize)]
pub struct InterfaceId(pub usize);

/// What a weight does in its model.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Conv,
    /// One filter a channel: `group` equals the number of input channels.
    DepthwiseConv,
    ConvTranspose,
    /// `Gemm` or `MatMul` with a constant side.
    Linear,
    /// Rows picked by index.
    Embedding,
    /// Input or recurrence weights of LSTM, GRU, RNN.
    Recurrent,
    NormScale,
    NormShift,
    /// Moving mean or variance of a batch normalisation: not trained.
    RunningStat,
    Bias,
    /// Anything else made of numbers: positional tables, slopes, quantised weights, parameters of unknown operators.
    Other,
}

impl Role {
    /// Whether weights of this role are seen as matrices (and adapted), not as vectors.
    pub fn is_matrix(self) -> bool {
        use Role::*;
        matches!(self, Conv | DepthwiseConv | ConvTranspose | Linear | Embedding | Recurrent)
    }
    /// The name used in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Role::Conv => "conv",
            Role::DepthwiseConv => "depthwise_conv",
            Role::ConvTranspose => "conv_transpose",
            Role::Linear => "linear",
            Role::Embedding => "embedding",
            Role::Recurrent => "recurrent",
            Role::NormScale => "norm_scale",
            Role::NormShift => "norm_shift",
            Role::RunningStat => "running_stat",
            Role::Bias => "bias",
            Role::Other => "other",
        }
    }
}

/// One initializer that carries knowledge.
#[derive(Clone, Debug, Serialize)]
pub struct Weight {
    /// The initializer, in the graph that was given to [`ParamGraph::extract`].
    #[serde(serialize_with = "as_text")]
    pub name: ValueId,
    pub role: Role,
    pub shape: Vec<usize>,
    #[serde(serialize_with = "as_text")]
    pub dtype: DType,
    /// Where its bytes are in the file; `None` when it was computed or made in memory.
    #[serde(skip)]
    pub site: Option<SiteId>,
    /// How it is seen as a matrix; `None` for vectors, quantised weights and [`Role::Other`].
    pub view: Option<MatrixView>,
    /// The number of matrices on the longest way from the model's inputs to this weight.
    pub depth: usize,
    /// `depth` over the greatest depth of the model, from 0 to 1.
    pub relative_depth: f32,
    /// Labels of the nodes that use it; more than one where it is tied.
    pub nodes: Vec<String>,
    /// Singular values, greatest first; empty until [`ParamGraph::compute_spectra`], and cut off for large matrices.
    pub spectrum: Vec<f32>,
    /// The channel spaces its input features live in: together they cover `view.group · view.inn` features.
    /// Empty for vectors, and where the space isn't understood.
    pub input: Vec<InterfaceUse>,
    /// The channel spaces its output features live in: together they cover `view.out` features. For vectors,
    /// the channels they are applied to, as many as the vector has elements. Empty where not understood.
    pub output: Vec<InterfaceUse>,
}

impl Weight {
    /// The one interface that covers all input features, if there is just one.
    pub fn input_use(&self) -> Option<&InterfaceUse> {
        match self.input.as_slice() {
            [only] => Some(only),
            _ => None,
        }
    }
    /// The one interface that covers all output features, if there is just one.
    pub fn output_use(&self) -> Option<&InterfaceUse> {
        match self.output.as_slice() {
            [only] => Some(only),
            _ => None,
        }
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Whether gradient descent may change it: real numbers that are no running statistics.
    pub fn is_trainable(&self) -> bool {
        self.dtype.is_float() && self.role != Role::RunningStat
    }
}

/// How a run of features of a weight's side maps onto channels of an interface.
///
/// Channel `start + c` at position `p` is feature `offset + c · channel_stride + p · position_stride`, for `c` below
/// `channels` and `p` below `positions`. A convolution's side is `channel_stride` 1, one position. After an NCHW
/// flatten the features are channel-major (`position_stride` 1, `channel_stride` = positions); after an NHWC one
/// position-major. Inside a concatenation `offset` is where the part begins.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct InterfaceUse {
    pub interface: InterfaceId,
    /// First channel of the interface that is used.
    pub start: usize,
    /// Number of channels used.
    pub channels: usize,
    /// Number of features a channel has (1 unless spatial positions were flattened into features, or gates share it).
    pub positions: usize,
    /// The spatial sizes that `positions` came from, such as `[7, 7]`, where known; else `[positions]` (`[]` for one).
    pub grid: Vec<usize>,
    pub offset: usize,
    pub channel_stride: usize,
    pub position_stride: usize,
}

impl InterfaceUse {
    /// Number of features.
    pub fn len(&self) -> usize {
        self.channels * self.positions
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Features one after the other, all positions of a channel together (one position counts as this).
    pub fn is_channel_major(&self) -> bool {
        self.channel_stride == self.positions && (self.positions == 1 || self.position_stride == 1)
    }
    /// Features one after the other, all channels of a position together.
    pub fn is_position_major(&self) -> bool {
        self.channel_stride == 1 && (self.positions == 1 || self.position_stride == self.channels)
    }
    /// The feature of a channel, counted from the first that is used, at a position.
    pub fn feature(&self, channel: usize, position: usize) -> usize {
        self.offset + channel * self.channel_stride + position * self.position_stride
    }
    /// The feature of each channel and position, channel by channel.
    pub fn features(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.channels).flat_map(move |c| (0..self.positions).map(move |p| self.feature(c, p)))
    }
    /// The parts of a weight's side in the order of its features: several where projections are fused or inputs joined.
    pub fn in_order(side: &[InterfaceUse]) -> Vec<&InterfaceUse> {
        let mut parts: Vec<&InterfaceUse> = side.iter().collect();
        parts.sort_by_key(|part| part.offset);
        parts
    }
}

/// Where an interface stands in its model.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum InterfaceKind {
    /// The features of a model input.
    Input,
    Hidden,
    /// The features of a model output: classes, mostly.
    Output,
}

/// A channel space: what some matrices write, others read, and vectors live on.
#[derive(Clone, Debug, Serialize)]
pub struct Interface {
    pub kind: InterfaceKind,
    pub channels: usize,
    /// Matrices whose output features are in it.
    pub producers: Vec<WeightId>,
    /// Matrices whose input features are in it.
    pub consumers: Vec<WeightId>,
    /// Biases, normalisation scales and shifts, and other vectors that live on it.
    pub vectors: Vec<WeightId>,
    /// 0 for inputs, else one more than the least depth of its producers.
    pub depth: usize,
}

/// A model's weights and how they hang together.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ParamGraph {
    /// In the order in which the model uses them.
    pub weights: Vec<Weight>,
    /// In the order of their depth.
    pub interfaces: Vec<Interface>,
    pub edges: Edges,
}

impl ParamGraph {
    pub fn weight(&self, id: WeightId) -> &Weight {
        &self.weights[id.0]
    }
    pub fn interface(&self, id: InterfaceId) -> &Interface {
        &self.interfaces[id.0]
    }
    /// The weight of an initializer.
    pub fn find(&self, name: &str) -> Option<WeightId> {
        self.weights.iter().position(|w| w.name.as_str() == name).map(WeightId)
    }
    /// Weights with a matrix view, in the order in which the model uses them.
    pub fn matrices(&self) -> impl Iterator<Item = (WeightId, &Weight)> {
        self.weights.iter().enumerate().filter(|(_, w)| w.view.is_some()).map(|(i, w)| (WeightId(i), w))
    }
}

fn as_text<T: std::fmt::Display, S: serde::Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}
