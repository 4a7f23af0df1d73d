//! How the elements of a smaller tensor are spread over those of a larger one.

/// Some of the larger tensor's axes are the smaller one's own; along the others it is repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    /// From the outermost to the innermost; no two neighbours alike, none of one element.
    axes: Vec<Axis>,
    len: usize,
    over: usize,
}

/// Axes of a spread at most.
const MAX_AXES: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Axis {
    size: usize,
    own: bool,
}

impl Spread {
    /// Of axes of these sizes, outermost first, of which the tensor has those marked as its own. `None` where a size is 0, there are
    /// too many elements to count, or axes take turns too often.
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
        (spread.axes.len() <= MAX_AXES).then_some(spread)
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

    /// Whether the tensor is repeated between axes of its own.
    pub fn is_interleaved(&self) -> bool {
        self.axes.iter().filter(|axis| axis.own).count() > 1
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
        let (outer, row, repeat) = match self.axes[..] {
            [ref outer @ .., Axis { size: row, own: true }, Axis { size: repeat, own: false }] => {
                (outer, row, repeat)
            }
            [ref outer @ .., Axis { size: row, own: true }] => (outer, row, 1),
            _ => (&[][..], 1, self.over),
        };
        let mut rows = Rows::new(outer, row, start / (row * repeat));
        let mut within = start % (row * repeat);
        while !to.is_empty() {
            let values = &from[rows.source + within / repeat..rows.source + row];
            // Up to the next whole repetition, then as many as there are, then what the block cuts off.
            let begun = within % repeat;
            let head = if begun == 0 { 0 } else { (repeat - begun).min(to.len()) };
            let (part, rest) = to.split_at_mut(head);
            part.fill(convert(values[0]));
            let values = &values[usize::from(begun != 0)..];
            let whole = values.len().min(rest.len() / repeat);
            let (part, rest) = rest.split_at_mut(whole * repeat);
            match repeat {
                1 => part.iter_mut().zip(values).for_each(|(to, &from)| *to = convert(from)),
                2 => each::<2, T>(values, part, &convert),
                _ => part.chunks_exact_mut(repeat).zip(values).for_each(|(to, &from)| to.fill(convert(from))),
            }
            let tail = if whole < values.len() { rest.len().min(repeat - 1) } else { 0 };
            let (part, rest) = rest.split_at_mut(tail);
            if tail > 0 {
                part.fill(convert(values[whole]));
            }
            to = rest;
            within = 0;
            rows.next();
        }
    }
}

/// Where rows begin in the smaller tensor, one after the other.
struct Rows<'a> {
    axes: &'a [Axis],
    row: usize,
    /// Of the current row, along each axis.
    places: [usize; MAX_AXES],
    source: usize,
}

impl<'a> Rows<'a> {
    fn new(axes: &'a [Axis], row: usize, mut at: usize) -> Self {
        let mut rows = Self { axes, row, places: [0; MAX_AXES], source: 0 };
        let mut stride = row;
        for (axis, place) in axes.iter().zip(&mut rows.places).rev() {
            *place = at % axis.size;
            at /= axis.size;
            if axis.own {
                rows.source += *place * stride;
                stride *= axis.size;
            }
        }
        rows
    }

    #[inline(always)]
    fn next(&mut self) {
        let mut stride = self.row;
        for (axis, place) in self.axes.iter().zip(&mut self.places).rev() {
            *place += 1;
            let own = if axis.own { stride } else { 0 };
            self.source += own;
            if *place < axis.size {
                return;
            }
            *place = 0;
            self.source -= axis.size * own;
            stride *= if axis.own { axis.size } else { 1 };
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
