//! How the elements of a smaller tensor are spread over those of a larger one.

/// Some of the larger tensor's axes are the smaller one's own; along the others it is repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    /// From the outermost to the innermost; no two neighbours alike, none of one element.
    axes: Vec<Axis>,
    len: usize,
    over: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Axis {
    size: usize,
    own: bool,
}

impl Spread {
    /// Of axes of these sizes, outermost first, of which the tensor has those marked as its own. `None` where a size is 0 or there are
    /// too many elements to count.
    pub fn new(axes: impl IntoIterator<Item = (usize, bool)>) -> Option<Self> {
        let mut spread = Self { axes: vec![], len: 1, over: 1 };
        for (size, own) in axes.into_iter().filter(|&(size, _)| size != 1) {
            spread.over = spread.over.checked_mul(size).filter(|&over| over > 0)?;
            spread.len *= if own { size } else { 1 };
            match spread.axes.last_mut() {
                Some(last) if last.own == own => last.size *= size,
                _ => spread.axes.push(Axis { size, own }),
            }
        }
        Some(spread)
    }

    /// Elements of the smaller tensor.
    pub fn len(&self) -> usize {
        self.len
    }
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Elements of the larger tensor.
    pub fn over(&self) -> usize {
        self.over
    }
    /// Whether there is one element for all.
    pub fn is_one(&self) -> bool {
        self.len == 1
    }
    /// Whether each element has its own.
    pub fn is_whole(&self) -> bool {
        self.len == self.over
    }

    /// Which of the smaller tensor's elements the larger one's element `i` is.
    fn source(&self, mut i: usize) -> usize {
        let (mut source, mut stride) = (0, 1);
        for axis in self.axes.iter().rev() {
            if axis.own {
                source += i % axis.size * stride;
                stride *= axis.size;
            }
            i /= axis.size;
        }
        source
    }

    /// Writes the larger tensor's elements from `start` on, row by row: a row is the innermost axis, or where the tensor is repeated
    /// along that, the innermost two.
    #[inline(always)]
    pub(crate) fn fill<T: Copy>(
        &self,
        from: &[T],
        start: usize,
        mut to: &mut [f32],
        convert: impl Fn(T) -> f32,
    ) {
        let (repeat, row) = match self.axes[..] {
            [.., Axis { size: row, own: true }, Axis { size: repeat, own: false }] => (repeat, row),
            [.., Axis { size: row, own: true }] => (1, row),
            _ => (1, 1),
        };
        let mut at = start;
        while !to.is_empty() {
            let (begun, within) = (at % (repeat * row) / repeat, at % repeat);
            let values = &from[self.source(at)..][..row - begun];
            // Up to the next whole repetition, then as many as there are.
            let head = if within == 0 { 0 } else { (repeat - within).min(to.len()) };
            let (part, rest) = to.split_at_mut(head);
            part.fill(convert(values[0]));
            let values = &values[usize::from(within != 0)..];
            let whole = values.len().min(rest.len() / repeat);
            let (part, rest) = rest.split_at_mut(whole * repeat);
            match repeat {
                1 => part.iter_mut().zip(values).for_each(|(to, &from)| *to = convert(from)),
                2 => each::<2, T>(values, part, &convert),
                _ => part.chunks_exact_mut(repeat).zip(values).for_each(|(to, &from)| to.fill(convert(from))),
            }
            // What a block cuts off.
            let tail = if whole < values.len() { rest.len().min(repeat - 1) } else { 0 };
            let (part, rest) = rest.split_at_mut(tail);
            if let (Some(&value), true) = (values.get(whole), tail > 0) {
                part.fill(convert(value));
            }
            at += head + whole * repeat + tail;
            to = rest;
        }
    }
}

/// Every value `N` times.
#[inline(always)]
fn each<const N: usize, T: Copy>(values: &[T], to: &mut [f32], convert: impl Fn(T) -> f32) {
    for (to, &value) in to.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *to = [convert(value); N];
    }
}
