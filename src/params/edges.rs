//! Which matrices lead to which, kept as the sets that reach them.
//!
//! In a chain of residual blocks every matrix leads to all later ones: a list of pairs grows with the square of the
//! depth, and only drawings want it. Knows matrices by their numbers alone. Look at [`Edges`].

use super::WeightId;
use serde::{Serialize, Serializer};
use std::collections::HashSet;

/// A set of matrices: a place in the list of its [`Edges`], or nothing for the empty one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Set(Option<usize>);

impl Set {
    pub fn is_empty(self) -> bool {
        self.0.is_none()
    }
}

/// How a set came to be; unions are of earlier ones.
#[derive(Clone, Copy, Debug)]
enum Made {
    One(WeightId),
    Union(usize, usize),
}

/// From matrix to matrix, along the data, without another matrix between.
#[derive(Clone, Debug, Default)]
pub struct Edges {
    sets: Vec<Made>,
    /// Every matrix with what leads to it; once for each use.
    into: Vec<(usize, WeightId)>,
}

/// Who is reached from the matrices of a set.
#[derive(Clone, Copy)]
enum Reached {
    Nobody,
    Only(WeightId),
    Several,
}

impl Reached {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nobody, some) | (some, Self::Nobody) => some,
            (Self::Only(a), Self::Only(b)) if a == b => self,
            _ => Self::Several,
        }
    }
}

impl Edges {
    fn make(&mut self, made: Made) -> Set {
        self.sets.push(made);
        Set(Some(self.sets.len() - 1))
    }
    pub fn one(&mut self, matrix: WeightId) -> Set {
        self.make(Made::One(matrix))
    }
    pub fn union(&mut self, a: Set, b: Set) -> Set {
        match (a.0, b.0) {
            (Some(a), Some(b)) if a != b => self.make(Made::Union(a, b)),
            (Some(_), _) => a,
            (None, _) => b,
        }
    }
    /// Everything in `from` leads to the matrix `to`; a matrix never leads to itself.
    pub fn lead(&mut self, from: Set, to: WeightId) {
        self.into.extend(from.0.map(|set| (set, to)));
    }

    /// The matrices that lead to another one.
    pub fn starts(&self) -> HashSet<WeightId> {
        let mut reached = vec![Reached::Nobody; self.sets.len()];
        for &(set, to) in &self.into {
            reached[set] = reached[set].and(Reached::Only(to));
        }
        let mut starts = HashSet::new();
        // Unions before what they are of.
        for (i, &made) in self.sets.iter().enumerate().rev() {
            match (made, reached[i]) {
                (Made::Union(a, b), here) => {
                    reached[a] = reached[a].and(here);
                    reached[b] = reached[b].and(here);
                }
                (_, Reached::Nobody) => (),
                (Made::One(from), Reached::Only(to)) if from == to => (),
                (Made::One(from), _) => drop(starts.insert(from)),
            }
        }
        starts
    }

    /// What is kept, in entries.
    #[cfg(test)]
    pub fn size(&self) -> usize {
        self.sets.len() + self.into.len()
    }

    /// All pairs, in order: as many as the square of the number of matrices.
    pub fn list(&self) -> Vec<(WeightId, WeightId)> {
        let mut pairs = vec![];
        // By set, the last place in `into` from which it was looked at.
        let mut seen = vec![usize::MAX; self.sets.len()];
        for (turn, &(set, to)) in self.into.iter().enumerate() {
            let mut open = vec![set];
            while let Some(set) = open.pop() {
                if std::mem::replace(&mut seen[set], turn) == turn {
                    continue;
                }
                match self.sets[set] {
                    Made::One(from) if from == to => (),
                    Made::One(from) => pairs.push((from, to)),
                    Made::Union(a, b) => open.extend([a, b]),
                }
            }
        }
        pairs.sort_unstable();
        pairs.dedup();
        pairs
    }
}

impl Serialize for Edges {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.list())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_share_what_they_are_of_and_pairs_are_listed_once() {
        let [a, b, c, d] = [0, 1, 2, 3].map(WeightId);
        let mut edges = Edges::default();
        let (one, two) = (edges.one(a), edges.one(b));
        let both = edges.union(one, two);
        assert_eq!(edges.union(both, Set::default()), both);
        let all = edges.union(both, one);
        edges.lead(both, c);
        edges.lead(all, c);
        edges.lead(Set::default(), d);
        assert_eq!(edges.list(), [(a, c), (b, c)]);
        assert_eq!(edges.starts(), HashSet::from([a, b]));
    }

    #[test]
    fn a_matrix_that_only_reaches_itself_leads_nowhere() {
        let [a, b] = [0, 1].map(WeightId);
        let mut edges = Edges::default();
        let one = edges.one(a);
        edges.lead(one, a);
        assert!(edges.list().is_empty() && edges.starts().is_empty());
        edges.lead(one, b);
        assert_eq!((edges.list(), edges.starts()), (vec![(a, b)], HashSet::from([a])));
    }
}
