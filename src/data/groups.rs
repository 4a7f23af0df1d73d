//! Rows that belong together: of one patient, speaker, scene. What was learnt from some of them is known of the others, so that
//! they are on one side only of every cut.

use super::Labels;
use crate::error::{Error, Result};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Which group each row is of.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Groups {
    /// In order of appearance.
    names: Vec<String>,
    of_row: Vec<usize>,
}

impl Groups {
    /// By their names, one a row.
    pub fn new(of_rows: impl IntoIterator<Item = String>) -> Self {
        let (mut groups, mut known) = (Self::default(), HashMap::new());
        for name in of_rows {
            let next = known.len();
            groups.of_row.push(*known.entry(name.clone()).or_insert(next));
            if known.len() > next {
                groups.names.push(name);
            }
        }
        groups
    }

    /// By numbers or words read as labels are, which have `words` as their classes' names.
    ///
    /// # Errors
    /// Anything but one whole number, or word, a row.
    pub fn from_labels(path: &Path, name: &str, labels: &Labels, words: &[String]) -> Result<Self> {
        let Labels::Classes(classes) = labels else {
            return Err(Error::data(path, format!("'{name}' holds no groups of rows"))
                .hint("--groups names an array or column of one whole number, or one word, a row"));
        };
        let word = |class: &i64| usize::try_from(*class).ok().and_then(|class| words.get(class));
        Ok(Self::new(classes.iter().map(|class| word(class).cloned().unwrap_or_else(|| class.to_string()))))
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.of_row.len()
    }

    /// A number for each of these rows that is the same within a group.
    pub fn of(&self, rows: &[usize]) -> Vec<usize> {
        rows.iter().map(|&row| self.of_row[row]).collect()
    }

    /// Each group's name and rows.
    pub fn each(&self) -> impl Iterator<Item = (&str, Vec<usize>)> {
        let mut rows = vec![vec![]; self.names.len()];
        self.of_row.iter().enumerate().for_each(|(row, &group)| rows[group].push(row));
        self.names.iter().map(String::as_str).zip(rows)
    }

    /// How many groups these rows are of.
    pub fn count(&self, rows: &[usize]) -> usize {
        self.of(rows).into_iter().collect::<HashSet<_>>().len()
    }

    /// How many of this one's groups are among another's.
    pub fn shared_with(&self, other: &Self) -> usize {
        let others: HashSet<&String> = other.names.iter().collect();
        self.names.iter().filter(|name| others.contains(name)).count()
    }

    /// Cuts off groups at random until they come closest to `share` of all rows, one at least; `None` where nothing would be left.
    pub fn split(&self, share: f64, seed: u64) -> Option<[Vec<usize>; 2]> {
        let sizes = sizes(&self.of_row);
        let mut order: Vec<usize> = (0..sizes.len()).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        order.pop()?;
        let (wanted, mut off, mut cut) = (share * self.rows() as f64, 0, HashSet::new());
        for group in order {
            let nearer = (off + sizes[group]) as f64 - wanted < wanted - off as f64;
            if cut.is_empty() || nearer {
                cut.insert(group);
                off += sizes[group];
            }
        }
        let (second, first): (Vec<usize>, Vec<usize>) =
            (0..self.rows()).partition(|&row| cut.contains(&self.of_row[row]));
        (!first.is_empty() && !second.is_empty()).then_some([first, second])
    }

    /// Deals rows (numbers within `rows`) out to `count` folds of whole groups: the largest first, each to the smallest fold.
    pub fn folds(&self, rows: &[usize], count: usize) -> Vec<Vec<usize>> {
        let of = self.of(rows);
        let sizes = sizes(&of);
        let mut order: Vec<usize> = (0..sizes.len()).filter(|&group| sizes[group] > 0).collect();
        order.sort_by_key(|&group| std::cmp::Reverse(sizes[group]));
        let (mut filled, mut fold_of) = (vec![0; count], vec![0; sizes.len()]);
        for group in order {
            let smallest = (0..count).min_by_key(|&fold| filled[fold]).unwrap_or(0);
            filled[smallest] += sizes[group];
            fold_of[group] = smallest;
        }
        let mut folds = vec![vec![]; count];
        of.iter().enumerate().for_each(|(i, &group)| folds[fold_of[group]].push(i));
        folds
    }
}

/// Rows a group.
fn sizes(of: &[usize]) -> Vec<usize> {
    let mut sizes = vec![0; of.iter().max().map_or(0, |last| last + 1)];
    of.iter().for_each(|&group| sizes[group] += 1);
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::Tensor;

    fn groups(of_rows: &[&str]) -> Groups {
        Groups::new(of_rows.iter().map(|name| (*name).to_owned()))
    }

    /// Ten groups of 1 to 10 rows, their rows scattered.
    fn uneven() -> Groups {
        let mut rows: Vec<usize> = (0..10).flat_map(|group| vec![group; group + 1]).collect();
        rows.shuffle(&mut ChaCha8Rng::seed_from_u64(1));
        Groups::new(rows.iter().map(usize::to_string))
    }

    #[test]
    fn a_cut_goes_around_groups_and_comes_close_to_its_share() {
        let groups = uneven();
        for seed in 0..20 {
            let [train, val] = groups.split(0.2, seed).unwrap();
            let [ours, theirs] =
                [&train, &val].map(|rows| groups.of(rows).into_iter().collect::<HashSet<_>>());
            assert!(ours.is_disjoint(&theirs) && ours.len() + theirs.len() == 10);
            assert_eq!(train.len() + val.len(), groups.rows());
            assert!((6..=15).contains(&val.len()), "{}", val.len());
            assert_eq!(groups.split(0.2, seed).unwrap(), [train, val]);
        }
        assert_ne!(groups.split(0.2, 0), groups.split(0.2, 1));
    }

    #[test]
    fn a_cut_leaves_something_on_either_side() {
        let [train, val] = groups(&["a", "b", "b", "b", "b", "b"]).split(0.2, 0).unwrap();
        assert!(!train.is_empty() && !val.is_empty());
        assert_eq!(groups(&["a", "a", "a"]).split(0.2, 0), None);
    }

    #[test]
    fn folds_hold_whole_groups_and_about_as_many_rows() {
        let groups = uneven();
        let rows: Vec<usize> = (0..groups.rows()).filter(|row| row % 7 != 0).collect();
        let folds = groups.folds(&rows, 4);
        let mut all = folds.concat();
        all.sort_unstable();
        assert_eq!(all, (0..rows.len()).collect::<Vec<_>>());
        let of: Vec<HashSet<usize>> = folds
            .iter()
            .map(|fold| groups.of(&fold.iter().map(|&i| rows[i]).collect::<Vec<_>>()).into_iter().collect())
            .collect();
        assert!(of.iter().enumerate().all(|(i, a)| of[..i].iter().all(|b| a.is_disjoint(b))), "{of:?}");
        assert!(folds.iter().all(|fold| (rows.len() / 4 - 3..=rows.len() / 4 + 4).contains(&fold.len())));
    }

    #[test]
    fn groups_have_names_across_files() {
        let (ours, theirs) = (groups(&["b", "a", "b", "c"]), groups(&["c", "d", "c", "a"]));
        assert_eq!((ours.of(&[0, 1, 2]), ours.count(&[0, 2, 3])), (vec![0, 1, 0], 2));
        assert_eq!((ours.shared_with(&theirs), theirs.shared_with(&groups(&["x"]))), (2, 0));
    }

    #[test]
    fn anything_but_one_word_or_whole_number_a_row_is_refused() {
        let path = Path::new("d.npz");
        let numbers = Labels::Classes(vec![7, -1, 7]);
        assert_eq!(Groups::from_labels(path, "who", &numbers, &[]).unwrap(), groups(&["7", "-1", "7"]));
        let words = ["ann".to_owned(), "bob".to_owned()];
        let named = Labels::Classes(vec![1, 0]);
        assert_eq!(Groups::from_labels(path, "who", &named, &words).unwrap(), groups(&["bob", "ann"]));
        let real = Labels::Vectors(Tensor::f32(&[2, 1], &[0.5, 1.0]));
        let error = Groups::from_labels(path, "who", &real, &[]).unwrap_err().to_string();
        assert!(error.contains("'who' holds no groups"), "{error}");
    }
}
