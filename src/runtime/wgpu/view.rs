//! Strided views: how a tensor's elements lie in a buffer.
//!
//! Transposes, slices, broadcasts and most reshapes only change the view, so no kernel runs for them; every
//! kernel reads its operands through their strides. Pure arithmetic: knows no buffers. See [`View`].

/// The elements of a tensor of `shape`: element (i₀, i₁, …) lies at `offset + Σ iₖ·stridesₖ`, in elements.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct View {
    pub shape: Vec<usize>,
    pub strides: Vec<i32>,
    pub offset: i32,
}

impl View {
    /// The whole of a buffer in row-major order.
    pub fn contiguous(shape: &[usize]) -> Self {
        Self { shape: shape.to_vec(), strides: row_major(shape), offset: 0 }
    }
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    pub fn rank(&self) -> usize {
        self.shape.len()
    }
    /// Whether the elements lie in row-major order from the buffer's start.
    pub fn is_contiguous(&self) -> bool {
        let order = row_major(&self.shape);
        let same = |i: usize| self.shape[i] == 1 || self.strides[i] == order[i];
        self.offset == 0 && (0..self.rank()).all(same)
    }
    /// Repeats dimensions of size 1 (and absent leading ones) up to `shape`, which they must broadcast to.
    pub fn broadcast(&self, shape: &[usize]) -> Self {
        let lead = shape.len() - self.rank();
        let stride = |i: usize| match i.checked_sub(lead) {
            Some(j) if self.shape[j] != 1 => self.strides[j],
            _ => 0,
        };
        Self { shape: shape.to_vec(), strides: (0..shape.len()).map(stride).collect(), offset: self.offset }
    }
    pub fn permuted(&self, perm: &[usize]) -> Self {
        Self {
            shape: perm.iter().map(|&p| self.shape[p]).collect(),
            strides: perm.iter().map(|&p| self.strides[p]).collect(),
            offset: self.offset,
        }
    }
    /// `count` elements along `axis`, from `start` on, `step` apart.
    pub fn sliced(&self, axis: usize, start: i64, step: i64, count: usize) -> Self {
        let mut view = self.clone();
        if count > 0 {
            view.offset += (start * self.strides[axis] as i64) as i32;
        }
        view.strides[axis] = (step * self.strides[axis] as i64) as i32;
        view.shape[axis] = count;
        view
    }
    /// Another shape of as many elements, where strides can express it.
    pub fn reshaped(&self, shape: &[usize]) -> Option<Self> {
        if self.is_contiguous() || self.len() == 0 {
            return Some(Self { offset: self.offset, ..View::contiguous(shape) });
        }
        // Both shapes are cut into runs of equal products; each run of old dimensions must lie evenly.
        let old: Vec<(usize, i32)> =
            self.shape.iter().copied().zip(self.strides.iter().copied()).filter(|&(d, _)| d != 1).collect();
        let mut strides = vec![0; shape.len()];
        let (mut from, mut to) = (0, 0);
        while from < old.len() {
            let (first_from, first_to) = (from, to);
            let (mut left, mut right) = (old[from].0, 1);
            from += 1;
            while left != right {
                if right < left {
                    right *= shape.get(to)?;
                    to += 1;
                } else {
                    left *= old.get(from)?.0;
                    from += 1;
                }
            }
            if (first_from + 1..from).any(|i| old[i - 1].1 != old[i].1 * old[i].0 as i32) {
                return None;
            }
            let mut stride = old[from - 1].1;
            for i in (first_to..to).rev() {
                strides[i] = stride;
                stride *= shape[i] as i32;
            }
        }
        Some(Self { shape: shape.to_vec(), strides, offset: self.offset })
    }
}

/// Elements of a vector, which an invocation moves or computes at once.
pub const WIDE: usize = 4;

/// Whether elements that are walked with these strides can be read [`WIDE`] at a time: dense, and every vector aligned.
pub fn lies_in_vectors(strides: &[i32], offset: i32) -> bool {
    match strides.split_last() {
        Some((1, outer)) => outer.iter().chain([&offset]).all(|s| s % WIDE as i32 == 0),
        _ => false,
    }
}

/// Strides of a row-major tensor.
pub fn row_major(shape: &[usize]) -> Vec<i32> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i].max(1) as i32;
    }
    strides
}

/// How several operands are walked together: fewest dimensions, and each operand's strides along them.
#[derive(Clone, PartialEq, Debug)]
pub struct Walk {
    pub dims: Vec<i32>,
    /// By operand, then by dimension.
    pub strides: Vec<Vec<i32>>,
}

impl Walk {
    /// Merges neighbouring dimensions wherever all operands allow it.
    pub fn new(shape: &[usize], operands: &[&[i32]]) -> Self {
        let mut walk = Walk { dims: vec![], strides: vec![vec![]; operands.len()] };
        for (i, &size) in shape.iter().enumerate().filter(|&(_, &size)| size != 1) {
            let size = size as i32;
            let merges = !walk.dims.is_empty()
                && walk.strides.iter().zip(operands).all(|(have, new)| have.last() == Some(&(new[i] * size)));
            if merges {
                *walk.dims.last_mut().unwrap_or(&mut 1) *= size;
                walk.strides.iter_mut().zip(operands).for_each(|(have, new)| {
                    have.pop();
                    have.push(new[i]);
                });
            } else {
                walk.dims.push(size);
                walk.strides.iter_mut().zip(operands).for_each(|(have, new)| have.push(new[i]));
            }
        }
        walk
    }
    pub fn rank(&self) -> i32 {
        self.dims.len() as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposed_matrix_reshapes_only_along_uncut_runs() {
        let view = View::contiguous(&[4, 6]).permuted(&[1, 0]);
        assert_eq!(view.reshaped(&[24]), None);
        assert_eq!(view.reshaped(&[2, 3, 4]).map(|v| v.strides), Some(vec![3, 1, 6]));
        assert_eq!(view.reshaped(&[6, 1, 4]).map(|v| v.strides[0]), Some(1));
    }

    #[test]
    fn walks_merge_what_lies_together() {
        let whole = row_major(&[2, 3, 4]);
        let row = View::contiguous(&[4]).broadcast(&[2, 3, 4]).strides;
        assert_eq!(Walk::new(&[2, 3, 4], &[&whole]).dims, [24]);
        let walk = Walk::new(&[2, 3, 4], &[&whole, &row]);
        assert_eq!((walk.dims, walk.strides), (vec![6, 4], vec![vec![4, 1], vec![0, 1]]));
    }

    #[test]
    fn slices_run_backwards() {
        let view = View::contiguous(&[5]).sliced(0, 4, -2, 3);
        assert_eq!((view.offset, view.strides, view.shape), (4, vec![-2], vec![3]));
    }
}
