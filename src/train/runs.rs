//! How the rows of a step are cut into runs: side by side where the executor works on several at once, and no larger than
//! makes rows faster, since what a run holds of its forward pass is most of what training takes in memory.
//!
//! All runs of a step have the same number of rows, so that the mean of their gradients is the step's gradient.

use super::network::{Network, Purpose};
use crate::data::Dataset;
use crate::error::Result;
use crate::runtime::Executor;
use std::path::Path;

/// Fewest rows of a run that are worth it beside another.
const LEAST_ROWS: usize = 8;
/// A run gives gradients as large as the weights, which are added up: its forward values should be some times as large.
const FORWARD_PER_WEIGHT: usize = 8;
/// A run of less than this part of the rows that were wanted isn't worth it.
const CRUMB: usize = 4;
/// Numbers in one run's input above which fewer rows tell how large the forward values are.
const SMALL_INPUT: usize = 16 << 10;

/// Reads a target for steps over `batch` rows, with as many rows a run as are worth it.
pub fn open_target(
    path: &Path,
    batch: usize,
    purpose: Purpose<'_>,
    executor: &dyn Executor,
) -> Result<Network> {
    let lanes = executor.lanes().get();
    let side_by_side = rows_of_a_run(batch, lanes, batch);
    let Some(enough) = executor.enough() else {
        return Network::open(path, side_by_side, purpose, executor);
    };
    // Every value is held once while a model is made ready: a large batch is tried with a small one first.
    let few = side_by_side.min(LEAST_ROWS);
    let size =
        |data: &Dataset| data.inputs.iter().map(|c| c.row_shape().iter().product::<usize>()).sum::<usize>();
    let first = if purpose.data.is_some_and(|data| side_by_side * size(data) <= SMALL_INPUT) {
        side_by_side
    } else {
        few
    };
    let network = Network::open(path, first, purpose, executor)?;
    let most = enough.max(FORWARD_PER_WEIGHT * network.weight_bytes()) / network.row_bytes().max(1);
    let rows = rows_of_a_run(batch, lanes, most);
    match network.single_rows_because().is_some() || rows == network.batch {
        true => Ok(network),
        false => network.for_rows(rows, purpose, executor),
    }
}

/// Rows of each run of a step over `batch` rows: equal parts, of at most `most` rows where that is possible, as many at a
/// time as the executor has `lanes`.
pub fn rows_of_a_run(batch: usize, lanes: usize, most: usize) -> usize {
    let divides = |runs: &usize| batch.is_multiple_of(*runs);
    let side_by_side =
        (2..=lanes).rev().find(|runs| divides(runs) && batch / runs >= LEAST_ROWS).unwrap_or(1);
    let most = most.max(1);
    let small = |runs: &usize| divides(runs) && batch / runs <= most;
    let runs = (side_by_side..=batch).step_by(side_by_side).find(small);
    // A batch with few divisors isn't cut into crumbs.
    batch / runs.filter(|runs| CRUMB * (batch / runs) >= most).unwrap_or(side_by_side)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_equal_parts_and_not_too_small() {
        let cases = [(32, 1, 32), (32, 2, 16), (32, 16, 8), (64, 3, 32), (10, 4, 10), (1, 8, 1)];
        for (batch, lanes, rows) in cases {
            assert_eq!(rows_of_a_run(batch, lanes, batch), rows, "{batch} rows, {lanes} lanes");
        }
    }

    #[test]
    fn runs_stay_below_what_is_enough() {
        let cases = [
            (32, 1, 12, 8),
            (32, 2, 12, 8),
            (1024, 2, 100, 64),
            (30, 2, 9, 5),
            (97, 4, 50, 97),
            (97, 4, 2, 1),
            (32, 2, 0, 1),
        ];
        for (batch, lanes, most, rows) in cases {
            assert_eq!(
                rows_of_a_run(batch, lanes, most),
                rows,
                "{batch} rows, {lanes} lanes, at most {most}"
            );
        }
    }
}
