//! The real program, in temporary folders, on the repository's fixtures.

#[cfg(unix)]
mod action;
mod balanced;
mod book;
mod browser;
mod commands;
mod folds;
mod grad;
mod groups;
mod inspect;
mod kill;
mod labels;
mod merge;
mod misfits;
mod mpi;
mod pictures;
mod positions;
#[cfg(target_os = "linux")]
mod private;
mod python;
mod recompute;
mod refusals;
mod resume;
mod server;
mod tables;
mod train_bn;
mod train_dropout;
mod transcript;
mod transfer;
