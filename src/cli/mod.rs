//! The command line: one file a subcommand, and what the terminal shows.
