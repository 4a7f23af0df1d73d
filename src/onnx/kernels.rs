//! Operators that ONNX doesn't have and an executor of ours does. They are in graphs made for that executor alone
//! ([`super::Forms`]), never in files.

/// The domain of what ONNX Runtime is given.
pub const DOMAIN: &str = "onnx_merge.cpu";
/// The cotangent of `MaxPool`'s input over two axes, from x, y and y's cotangent.
pub const MAX_POOL_GRADIENT: &str = "MaxPoolGradient";
/// The gradient of the weights of a `Conv` of one group over two axes, from x and y's cotangent.
pub const CONV_WEIGHT_GRADIENT: &str = "ConvWeightGradient";
/// Sums of rows by their places, from places and rows; the attribute `size` says how many there are.
pub const ROW_SUMS: &str = "RowSums";
