//! The real program, in temporary folders, on the repository's fixtures.

mod commands;
mod grad;
mod inspect;
mod kill;
mod merge;
mod python;
mod refusals;
mod transcript;
mod transfer;
