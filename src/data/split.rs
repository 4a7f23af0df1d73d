//! Dividing rows into training, validation and test.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

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

/// Deals the rows `0…classes.len()` out to `count` folds: of each class, one stretch of rows after the other, in file order. Rows of
/// one kind that lie side by side (the pictures of one scene, say) stay together, and every fold has its share of every class,
/// also where a file is sorted by class.
pub fn folds(classes: &[i64], count: usize) -> Vec<Vec<usize>> {
    let of_class = by_class(classes);
    let mut folds = vec![vec![]; count];
    for (class, rows) in of_class.values().enumerate() {
        // Classes of fewer rows than folds begin with different ones.
        let first = if rows.len() < count { class } else { 0 };
        for (i, row) in rows.iter().enumerate() {
            folds[(first + i * count / rows.len()) % count].push(*row);
        }
    }
    folds.iter_mut().for_each(|fold| fold.sort_unstable());
    folds
}

/// The rows `0…classes.len()` of each class, in file order.
pub fn by_class(classes: &[i64]) -> BTreeMap<i64, Vec<usize>> {
    let mut of_class: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    classes.iter().enumerate().for_each(|(row, class)| of_class.entry(*class).or_default().push(row));
    of_class
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

    #[test]
    fn folds_have_their_share_of_every_class_and_keep_neighbours_together() {
        let sorted = [[0; 10], [1; 10], [2; 10]].concat();
        let mixed: Vec<i64> = (0..30).map(|row| row % 3).collect();
        for classes in [sorted, mixed, vec![7; 30]] {
            let dealt = folds(&classes, 4);
            let mut all = dealt.concat();
            all.sort_unstable();
            assert_eq!(all, (0..30).collect::<Vec<_>>());
            for class in &classes {
                let counts =
                    dealt.iter().map(|fold| fold.iter().filter(|row| classes[**row] == *class).count());
                let (least, most) = (counts.clone().min(), counts.max());
                assert!(most <= least.map(|n| n + 1), "{dealt:?}");
            }
        }
        assert_eq!(folds(&[5; 6], 3), [[0, 1], [2, 3], [4, 5]]);
        // A row of each class: not all in the first fold.
        assert_eq!(folds(&[3, 1, 2, 0], 2), [[2, 3], [0, 1]]);
    }
}
