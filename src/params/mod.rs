//! The parameter graph: a model's weights with their roles, spectra and interfaces (channel spaces), and the pairing of two such graphs.
