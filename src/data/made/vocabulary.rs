//! Words that become others: few sentences hold few of the words that a model knows.

use crate::onnx::Tensor;
use rand::{Rng, RngExt};
use std::collections::{HashMap, HashSet};

/// Share of the words that become any other.
const REPLACED: f64 = 0.3;

/// The words of an input, by number.
pub struct Vocabulary {
    size: usize,
    /// What fills sentences up, begins and ends them: what stands in the same place in more than half of the rows.
    frame: HashSet<i64>,
}

impl Vocabulary {
    /// That of some rows × places, whose numbers are below `size`.
    pub fn of(sentences: &Tensor, rows: &[usize], size: usize) -> Self {
        let words = sentences.to_i64();
        let length = sentences.shape()[1..].iter().product::<usize>();
        let mut frame = HashSet::new();
        for place in 0..length {
            let mut counts: HashMap<i64, usize> = HashMap::new();
            rows.iter().for_each(|row| *counts.entry(words[row * length + place]).or_default() += 1);
            frame.extend(counts.iter().filter(|(_, count)| 2 * **count > rows.len()).map(|(word, _)| *word));
        }
        Self { size, frame }
    }

    /// The same with some words replaced, each by any of the vocabulary.
    pub fn replace(&self, sentences: &Tensor, random: &mut impl Rng) -> Tensor {
        let mut words = sentences.to_i64().into_owned();
        for word in &mut words {
            let other = random.random_range(0..self.size.max(1)) as i64;
            let replaced = random.random::<f64>() < REPLACED;
            if replaced && !self.frame.contains(word) && !self.frame.contains(&other) {
                *word = other;
            }
        }
        Tensor::i64(sentences.shape(), &words).cast(sentences.dtype())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::DType;
    use rand::SeedableRng;

    #[test]
    fn words_are_replaced_and_what_frames_them_is_not() {
        // Begin, some words, end, and filling up.
        let rows = [[1, 7, 8, 9, 2, 0], [1, 9, 8, 2, 0, 0], [1, 5, 2, 0, 0, 0], [1, 4, 6, 2, 0, 0]];
        let sentences = Tensor::i64(&[4, 6], rows.as_flattened()).cast(DType::I32);
        let vocabulary = Vocabulary::of(&sentences, &[0, 1, 2, 3], 1000);
        assert!([0, 1].iter().all(|word| vocabulary.frame.contains(word)) && vocabulary.frame.len() <= 4);
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let (mut kept, mut seen) = (0, HashSet::new());
        for _ in 0..200 {
            let made = vocabulary.replace(&sentences, &mut random);
            assert_eq!(made.dtype(), DType::I32);
            for (new, old) in made.to_i64().iter().zip(rows.as_flattened()) {
                assert!((0..1000).contains(new) && (new == old || !vocabulary.frame.contains(old)));
                kept += usize::from(*old == 7 && new == old);
                seen.insert(*new);
            }
        }
        assert!((100..180).contains(&kept), "{kept} of 200, where 140 are to be expected");
        assert!(seen.len() > 200);
    }
}
