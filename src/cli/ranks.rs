//! Commands under `mpirun`: which processes talk, and how all of them end.

use super::terminal::print_error;
use crate::error::{Error, Result};
use crate::train::{Launch, Ranks};

/// Whether this process talks before the processes know each other.
pub fn talks() -> bool {
    Launch::find().is_none_or(|launch| launch.index == 0)
}

/// Runs a command, in several processes where they were started and it `shares` its work out; the exit code is that of the
/// first one.
///
/// An error that all of them run into is the first one's to tell. One that they don't is told by whoever has it, with its
/// rank, and ends all: the others wait for what will never come.
pub fn run(shares: bool, command: impl FnOnce(&Ranks) -> Result<u8>) -> u8 {
    let ranks = match if shares { Ranks::join() } else { one() } {
        Ok(ranks) => ranks,
        Err(error) => return told(error, talks()),
    };
    match command(&ranks) {
        Ok(code) if ranks.is_first() => code,
        Ok(_) => 0,
        Err(error) if ranks.all_fail() => match ranks.is_first() {
            true => told(error, true),
            false => 0,
        },
        Err(error) => {
            let error = error.context(format!("rank {} of {}", ranks.index(), ranks.size()));
            ranks.abort(told(error, true))
        }
    }
}

/// A process alone.
fn one() -> Result<Ranks> {
    match Launch::find().is_some_and(|launch| launch.size > 1) {
        true => {
            Err(Error::usage("only training is shared out over processes: start this command without mpirun"))
        }
        false => Ok(Ranks::default()),
    }
}

fn told(error: Error, talks: bool) -> u8 {
    if talks {
        print_error(&error);
    }
    error.exit_code()
}
