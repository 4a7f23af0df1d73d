//! Which channel every element of a value belongs to.
//!
//! A channel is an *atom*: a class of a union-find structure. Layers make atoms, residual sums unite them, and
//! everything else only moves them about. Labels know shapes, never operators.

/// A channel, up to the unions made so far.
pub type Atom = u32;

/// Arrays of labels with more elements than this aren't made: the value counts as unlabelled.
const MOST: usize = 1 << 22;

/// All atoms of a model.
#[derive(Default)]
pub struct Atoms {
    parent: Vec<Atom>,
}

impl Atoms {
    pub fn fresh(&mut self, count: usize) -> Vec<Atom> {
        let first = self.parent.len() as Atom;
        self.parent.extend(first..first + count as Atom);
        (first..first + count as Atom).collect()
    }
    pub fn root(&mut self, mut atom: Atom) -> Atom {
        while self.parent[atom as usize] != atom {
            let above = self.parent[atom as usize];
            self.parent[atom as usize] = self.parent[above as usize];
            atom = above;
        }
        atom
    }
    /// Makes two channels one; the older name stays.
    pub fn unite(&mut self, a: Atom, b: Atom) {
        let (a, b) = (self.root(a), self.root(b));
        let (low, high) = (a.min(b), a.max(b));
        self.parent[high as usize] = low;
    }
    pub fn unite_all(&mut self, a: &[Atom], b: &[Atom]) {
        a.iter().zip(b).for_each(|(&a, &b)| self.unite(a, b));
    }
}

/// The labels of a value: an array of the value's rank, of size 1 along every axis the labels don't vary over.
#[derive(Clone, Debug, PartialEq)]
pub struct Labels {
    pub shape: Vec<usize>,
    pub atoms: Vec<Atom>,
}

impl Labels {
    /// Labels that vary over one axis.
    pub fn on_axis(rank: usize, axis: usize, atoms: Vec<Atom>) -> Self {
        let mut shape = vec![1; rank];
        shape[axis] = atoms.len();
        Self { shape, atoms }
    }
    fn new(shape: Vec<usize>, atoms: Vec<Atom>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), atoms.len());
        Self { shape, atoms }
    }
    /// The axes the labels vary over.
    pub fn axes(&self) -> Vec<usize> {
        (0..self.shape.len()).filter(|&i| self.shape[i] > 1).collect()
    }
    /// Whether a value of this shape can have these labels.
    pub fn fits(&self, shape: &[usize]) -> bool {
        self.shape.len() == shape.len() && self.shape.iter().zip(shape).all(|(&l, &s)| l == 1 || l == s)
    }
    /// Labels of a value of higher rank that these broadcast to.
    fn ranked(&self, rank: usize) -> Option<Self> {
        let mut shape = vec![1; rank.checked_sub(self.shape.len())?];
        shape.extend(&self.shape);
        Some(Self::new(shape, self.atoms.clone()))
    }
    /// The labels of each element of a value of the given shape, after broadcasting.
    pub fn expand(&self, shape: &[usize]) -> Option<Vec<Atom>> {
        let me = self.ranked(shape.len())?;
        let count = crate::onnx::element_count(shape).filter(|&n| n <= MOST)?;
        if !me.fits(shape) {
            return None;
        }
        let mut found = me.atoms;
        // From the last axis to the first: repeat each block of what lies behind an unlabelled axis.
        let mut behind = 1;
        let mut sizes = me.shape;
        for axis in (0..shape.len()).rev() {
            if sizes[axis] == 1 && shape[axis] != 1 {
                found = found.chunks(behind).flat_map(|block| block.repeat(shape[axis])).collect();
                sizes[axis] = shape[axis];
            }
            behind *= sizes[axis];
        }
        debug_assert_eq!(found.len(), count);
        Some(found)
    }
    pub fn transpose(&self, perm: &[usize]) -> Option<Self> {
        if perm.len() != self.shape.len() || !is_permutation(perm) {
            return None;
        }
        let order = super::super::matrix::indices(&self.shape, perm);
        let shape = perm.iter().map(|&p| self.shape[p]).collect();
        Some(Self::new(shape, order.into_iter().map(|i| self.atoms[i]).collect()))
    }
    /// Labels after a reshape of the value from one shape to another; and the sizes of the unlabelled axes that were
    /// flattened together with labelled ones.
    pub fn reshape(&self, from: &[usize], to: &[usize]) -> Option<(Self, Vec<usize>)> {
        if !self.fits(from) {
            return None;
        }
        let (mut expanded, mut shape, mut grid) = (vec![], vec![], vec![]);
        for (f, t) in groups(from, to)? {
            let labelled = self.shape[f.clone()].iter().any(|&d| d > 1);
            let wide = |shape: &[usize]| shape.iter().filter(|&&d| d > 1).count();
            if wide(&to[t.clone()]) < wide(&from[f.clone()]) && (labelled || self.atoms.len() == 1) {
                grid.extend(f.clone().filter(|&i| self.shape[i] == 1 && from[i] > 1).map(|i| from[i]));
            }
            expanded.extend(f.map(|i| if labelled { from[i] } else { 1 }));
            shape.extend(t.map(|i| if labelled { to[i] } else { 1 }));
        }
        let atoms = self.expand(&expanded)?;
        Some((Self::new(shape, atoms).compressed(), grid))
    }
    /// Drops the axes along which the labels turn out not to vary.
    fn compressed(self) -> Self {
        let mut now = self;
        for axis in now.axes() {
            let parts = now.split(axis);
            if parts.iter().all(|part| *part == parts[0]) {
                let mut shape = now.shape.clone();
                shape[axis] = 1;
                now = Self::new(shape, parts.into_iter().next().unwrap_or_default());
            }
        }
        now
    }
    /// For each index along `axis`, the labels there, flattened.
    fn split(&self, axis: usize) -> Vec<Vec<Atom>> {
        let behind: usize = self.shape[axis + 1..].iter().product();
        let mut parts = vec![vec![]; self.shape[axis]];
        for (i, block) in self.atoms.chunks(behind.max(1)).enumerate() {
            parts[i % self.shape[axis]].extend_from_slice(block);
        }
        parts
    }
    /// The labels along one axis of the given size, all that differ along other axes united. `None` where the labels
    /// vary over other axes only: then this axis is no channel axis.
    pub fn along(&self, axis: usize, size: usize, atoms: &mut Atoms) -> Option<Vec<Atom>> {
        if self.shape[axis] == 1 && size != 1 {
            return (self.atoms.len() == 1).then(|| vec![self.atoms[0]; size]);
        }
        if size == 1 && self.atoms.len() > 1 {
            return None;
        }
        let parts = self.split(axis);
        for part in &parts {
            part.iter().for_each(|&a| atoms.unite(part[0], a));
        }
        Some(parts.iter().map(|part| part[0]).collect())
    }
    /// Picks indices along an axis of the labels.
    pub fn select(&self, axis: usize, indices: &[usize]) -> Option<Self> {
        if self.shape[axis] == 1 {
            return Some(self.clone());
        }
        let behind: usize = self.shape[axis + 1..].iter().product();
        let row = behind * self.shape[axis];
        let mut found = vec![];
        for block in self.atoms.chunks(row) {
            for &i in indices {
                found.extend_from_slice(block.get(i * behind..(i + 1) * behind)?);
            }
        }
        let mut shape = self.shape.clone();
        shape[axis] = indices.len();
        Some(Self::new(shape, found))
    }
    /// Joins labels along an axis; `sizes` are the values' sizes along it.
    pub fn concat(parts: &[(Self, usize)], axis: usize) -> Option<Self> {
        let rank = parts.first()?.0.shape.len();
        let mut common = vec![1; rank];
        for (part, size) in parts {
            for (i, common) in common.iter_mut().enumerate() {
                *common = (*common).max(if i == axis { *size } else { part.shape[i] });
            }
        }
        let before: usize = common[..axis].iter().product();
        let mut blocks = vec![vec![]; before];
        let mut total = 0;
        for (part, size) in parts {
            let mut shape = common.clone();
            shape[axis] = *size;
            total += size;
            let atoms = part.expand(&shape)?;
            let row = (atoms.len() / before.max(1)).max(1);
            blocks.iter_mut().zip(atoms.chunks(row)).for_each(|(block, more)| block.extend_from_slice(more));
        }
        common[axis] = total;
        Some(Self::new(common, blocks.concat()).compressed())
    }
    /// Labels of an elementwise operation: channels that meet become one. Where the labels of two operands vary over
    /// different axes nothing is united, and those of the first stay.
    pub fn meet(&self, other: &Self, atoms: &mut Atoms) -> Option<Self> {
        let rank = self.shape.len().max(other.shape.len());
        let (a, b) = (self.ranked(rank)?, other.ranked(rank)?);
        let (over_a, over_b) = (a.axes(), b.axes());
        if over_b.is_empty() && !over_a.is_empty() {
            return Some(a);
        }
        if over_a.is_empty() && !over_b.is_empty() {
            return Some(b);
        }
        let nested = over_a.iter().all(|i| over_b.contains(i)) || over_b.iter().all(|i| over_a.contains(i));
        let same_size = over_a.iter().all(|&i| !over_b.contains(&i) || a.shape[i] == b.shape[i]);
        if !nested || !same_size {
            return Some(a);
        }
        let shape: Vec<usize> = a.shape.iter().zip(&b.shape).map(|(&x, &y)| x.max(y)).collect();
        let (all_a, all_b) = (a.expand(&shape)?, b.expand(&shape)?);
        atoms.unite_all(&all_a, &all_b);
        Some(if a.atoms.len() >= b.atoms.len() { a } else { b })
    }
}

pub fn is_permutation(perm: &[usize]) -> bool {
    (0..perm.len()).all(|i| perm.contains(&i))
}

type Range = std::ops::Range<usize>;

/// The finest grouping of axes under which a reshape keeps each group's number of elements.
fn groups(from: &[usize], to: &[usize]) -> Option<Vec<(Range, Range)>> {
    if from.contains(&0) || from.iter().product::<usize>() != to.iter().product::<usize>() {
        return None;
    }
    let (mut i, mut j) = (0, 0);
    let mut found = vec![];
    while i < from.len() || j < to.len() {
        let (start_i, start_j) = (i, j);
        let (mut a, mut b) = (1, 1);
        if i < from.len() && j < to.len() {
            (a, b) = (from[i], to[j]);
            (i, j) = (i + 1, j + 1);
        }
        while a != b {
            if a < b {
                a *= *from.get(i)?;
                i += 1;
            } else {
                b *= *to.get(j)?;
                j += 1;
            }
        }
        // Axes of size 1 that only one side has go with the group before them.
        while i < from.len() && from[i] == 1 && to.get(j) != Some(&1) {
            i += 1;
        }
        while j < to.len() && to[j] == 1 && from.get(i) != Some(&1) {
            j += 1;
        }
        if (start_i, start_j) == (i, j) {
            return None;
        }
        found.push((start_i..i, start_j..j));
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channels(atoms: &mut Atoms, rank: usize, axis: usize, count: usize) -> Labels {
        Labels::on_axis(rank, axis, atoms.fresh(count))
    }

    #[test]
    fn flattening_repeats_channels_and_remembers_the_grid() {
        let mut atoms = Atoms::default();
        let x = channels(&mut atoms, 4, 1, 2);
        let (flat, grid) = x.reshape(&[5, 2, 3, 2], &[5, 12]).unwrap();
        assert_eq!((flat.shape.as_slice(), grid.as_slice()), ([1, 12].as_slice(), [3, 2].as_slice()));
        assert_eq!(flat.atoms, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
        let (back, _) = flat.reshape(&[5, 12], &[5, 2, 3, 2]).unwrap();
        assert_eq!(back, x);
    }

    #[test]
    fn a_channel_shuffle_permutes() {
        let mut atoms = Atoms::default();
        let x = channels(&mut atoms, 4, 1, 6);
        let (split, _) = x.reshape(&[2, 6, 4, 4], &[2, 2, 3, 4, 4]).unwrap();
        let (y, _) =
            split.transpose(&[0, 2, 1, 3, 4]).unwrap().reshape(&[2, 3, 2, 4, 4], &[2, 6, 4, 4]).unwrap();
        assert_eq!(
            (y.shape.as_slice(), y.atoms.as_slice()),
            ([1, 6, 1, 1].as_slice(), [0, 3, 1, 4, 2, 5].as_slice())
        );
    }

    #[test]
    fn merging_unlabelled_axes_expands_nothing() {
        let mut atoms = Atoms::default();
        let x = channels(&mut atoms, 3, 2, 4);
        let (y, _) = x.reshape(&[2, 7, 4], &[14, 4]).unwrap();
        assert_eq!(y.shape, [1, 4]);
        let (z, _) = y.reshape(&[14, 4], &[2, 7, 1, 4]).unwrap();
        assert_eq!(z.shape, [1, 1, 1, 4]);
    }

    #[test]
    fn sums_unite_channels_but_not_with_masks_or_other_axes() {
        let mut atoms = Atoms::default();
        let (a, b) = (channels(&mut atoms, 4, 1, 3), channels(&mut atoms, 4, 1, 3));
        a.meet(&b, &mut atoms).unwrap();
        assert_eq!(atoms.root(4), atoms.root(1));
        let mask = channels(&mut atoms, 4, 1, 1);
        assert_eq!(mask.meet(&a, &mut atoms).unwrap(), a);
        let rows = channels(&mut atoms, 4, 2, 3);
        assert_eq!(a.meet(&rows, &mut atoms).unwrap(), a);
        assert_ne!(atoms.root(0), atoms.root(1));
    }

    #[test]
    fn concatenation_keeps_order_along_any_axis() {
        let mut atoms = Atoms::default();
        let (a, b) = (channels(&mut atoms, 3, 1, 2), channels(&mut atoms, 3, 1, 3));
        let y = Labels::concat(&[(a.clone(), 2), (b, 3)], 1).unwrap();
        assert_eq!(
            (y.shape.as_slice(), y.atoms.as_slice()),
            ([1, 5, 1].as_slice(), [0, 1, 2, 3, 4].as_slice())
        );
        let along_time = Labels::concat(&[(a.clone(), 7), (a.clone(), 7)], 2).unwrap();
        assert_eq!(along_time, a);
    }
}
