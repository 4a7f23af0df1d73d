//! Where examples come from: files of many formats, checked against the model, cut into batches.
