//! Dividing rows into training, validation and test.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Shuffles the rows `0…rows` and cuts them into one part a fraction; the first part takes what rounding
/// leaves over. Every part with a fraction above zero gets at least one row where there are enough.
/// The same seed gives the same parts on every machine.
pub fn split(rows: usize, fractions: &[f64], seed: u64) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..rows).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let total: f64 = fractions.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    let mut parts: Vec<Vec<usize>> = vec![];
    for fraction in fractions.iter().skip(1) {
        let share = (rows as f64 * fraction / total).floor() as usize;
        let least = (*fraction > 0.0 && order.len() > 1) as usize;
        let count = share.max(least).min(order.len());
        parts.push(order.split_off(order.len() - count));
    }
    parts.insert(0, order);
    // In file order within a part: neighbouring rows are read together from memory-mapped files.
    for part in &mut parts {
        part.sort_unstable();
    }
    parts.truncate(fractions.len());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_disjoint_and_complete() {
        let parts = split(101, &[0.8, 0.1, 0.1], 7);
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [81, 10, 10]);
        let mut all: Vec<usize> = parts.concat();
        all.sort_unstable();
        assert_eq!(all, (0..101).collect::<Vec<_>>());
        assert_eq!(parts, split(101, &[0.8, 0.1, 0.1], 7));
        assert_ne!(parts, split(101, &[0.8, 0.1, 0.1], 8));
    }

    #[test]
    fn few_rows_still_give_every_part_one() {
        assert_eq!(split(3, &[0.8, 0.1, 0.1], 0).iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1]);
        assert_eq!(split(5, &[1.0, 0.0], 0)[0].len(), 5);
    }
}
