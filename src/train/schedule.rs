//! The learning rate at each step, and which rows each step sees: pure functions of seed and step, so that a
//! resumed run goes on exactly where it stopped.

use super::Schedule;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// The generator for one purpose at one point of a run. `stream` keeps purposes apart.
pub fn generator(seed: u64, stream: u64, index: u64) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    for (place, word) in key.chunks_exact_mut(8).zip([seed, stream, index, 0x6f6e_6e78]) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// Purposes of random numbers.
pub mod stream {
    pub const SHUFFLE: u64 = 1;
    pub const AUGMENT: u64 = 2;
    pub const NOISE: u64 = 3;
    pub const DROPOUT: u64 = 4;
}

/// The learning rate of step `step` (from 0) of `steps`: linear warm-up, then the schedule down to zero.
pub fn learning_rate(schedule: Schedule, peak: f64, warmup: usize, step: usize, steps: usize) -> f64 {
    let warmup = warmup.min(steps / 4);
    if step < warmup {
        return peak * (step + 1) as f64 / (warmup + 1) as f64;
    }
    let progress = (step - warmup) as f64 / (steps - warmup).max(1) as f64;
    match schedule {
        Schedule::Constant => peak,
        Schedule::Cosine => peak * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
    }
}

/// Cuts `rows` rows into batches: every epoch is a fresh permutation, batches run on across its end.
pub struct Sampler {
    rows: usize,
    /// The rows of each class, where these come equally often.
    classes: Vec<Vec<usize>>,
    batch: usize,
    seed: u64,
    epoch: Option<(u64, Vec<usize>)>,
}

impl Sampler {
    pub fn new(rows: usize, batch: usize, seed: u64) -> Self {
        Self { rows, classes: vec![], batch, seed, epoch: None }
    }
    /// Rows of every class equally often: in an epoch every row of the largest class once, those of the others as often as it takes.
    pub fn balanced(classes: Vec<Vec<usize>>, batch: usize, seed: u64) -> Self {
        let most = classes.iter().map(Vec::len).max().unwrap_or(0);
        Self { rows: most * classes.len(), classes, batch, seed, epoch: None }
    }
    /// The rows of step `step`; always `batch` many.
    pub fn rows_of(&mut self, step: usize) -> Vec<usize> {
        let first = step as u64 * self.batch as u64;
        (first..first + self.batch as u64).map(|i| self.row(i)).collect()
    }
    fn row(&mut self, index: u64) -> usize {
        let (epoch, place) = (index / self.rows as u64, (index % self.rows as u64) as usize);
        if self.epoch.as_ref().is_none_or(|(e, _)| *e != epoch) {
            let mut random = generator(self.seed, stream::SHUFFLE, epoch);
            let mut order: Vec<usize> = match self.classes.len() {
                0 => (0..self.rows).collect(),
                count => {
                    let each = self.rows / count;
                    let mut deal = |rows: &Vec<usize>| {
                        let mut rows = rows.clone();
                        rows.shuffle(&mut random);
                        rows.into_iter().cycle().take(each).collect::<Vec<usize>>()
                    };
                    self.classes.iter().flat_map(&mut deal).collect()
                }
            };
            order.shuffle(&mut random);
            self.epoch = Some((epoch, order));
        }
        self.epoch.as_ref().map_or(0, |(_, order)| order[place])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_comes_once_an_epoch() {
        let mut sampler = Sampler::new(10, 4, 7);
        let mut seen: Vec<usize> = (0..5).flat_map(|step| sampler.rows_of(step)).collect();
        seen[..10].sort();
        seen[10..].sort();
        assert_eq!(seen[..10], (0..10).collect::<Vec<_>>());
        assert_eq!(seen[10..], (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn classes_come_equally_often_where_they_are_to() {
        let classes = vec![(0..90).collect::<Vec<usize>>(), (90..97).collect(), vec![97]];
        let mut sampler = Sampler::balanced(classes.clone(), 27, 7);
        let seen: Vec<usize> = (0..10).flat_map(|step| sampler.rows_of(step)).collect();
        for rows in &classes {
            let counts: Vec<usize> =
                rows.iter().map(|row| seen.iter().filter(|s| *s == row).count()).collect();
            assert_eq!(counts.iter().sum::<usize>(), 90);
            assert!(counts.iter().max() <= counts.iter().min().map(|n| n + 1).as_ref(), "{counts:?}");
        }
        let second = sampler.rows_of(13);
        assert_eq!(Sampler::balanced(classes, 27, 7).rows_of(13), second, "whatever came before");
    }

    #[test]
    fn batches_depend_on_seed_and_step_alone() {
        let mut whole = Sampler::new(50, 8, 3);
        let all: Vec<_> = (0..20).map(|s| whole.rows_of(s)).collect();
        assert_eq!(Sampler::new(50, 8, 3).rows_of(13), all[13]);
        assert_ne!(Sampler::new(50, 8, 4).rows_of(13), all[13]);
    }

    #[test]
    fn the_rate_warms_up_and_falls_to_zero() {
        let rate = |step| learning_rate(Schedule::Cosine, 1.0, 10, step, 100);
        assert!(rate(0) < 0.1 && (rate(10) - 1.0).abs() < 1e-9 && rate(99) < 0.01);
    }
}
