//! Facts of a foreign graph's values, found by running it once with every value as an output (a *probe*).
