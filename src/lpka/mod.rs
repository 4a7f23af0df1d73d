//! The low-rank parametric knowledge adapter, and the optimiser, as ONNX graphs.
