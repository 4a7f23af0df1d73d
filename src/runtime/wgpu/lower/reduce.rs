//! Reductions over any axes; see [`over`].

use super::{
    Elem, GROUP, Lowering, Node, Operand, Outcome, Row, View, WIDE, Walk, axis_of, kernel, lies_in_vectors,
};
use crate::runtime::wgpu::plan::{Fold, Kind, Op};

pub const TABLE: &[Row] = &[
    ("ReduceL1", reduce),
    ("ReduceL2", reduce),
    ("ReduceLogSum", reduce),
    ("ReduceLogSumExp", reduce),
    ("ReduceMax", reduce),
    ("ReduceMean", reduce),
    ("ReduceMin", reduce),
    ("ReduceProd", reduce),
    ("ReduceSum", reduce),
    ("ReduceSumSquare", reduce),
];

/// Rows that are a workgroup each where a GPU should be busy, and elements of a row that takes no longer than starting a
/// kernel.
const MANY_ROWS: usize = 128;
const SHORT_ROW: usize = 2048;
/// Rows shorter than this are reduced by one invocation each.
const SHORT: usize = 32;
/// Invocations that keep a GPU busy; reductions with fewer are split where they are long.
const BUSY: usize = 131_072;
/// Elements for each invocation of a split reduction at least.
const PART: usize = 32;
/// Invocations of a workgroup that reduces columns, how many of them lie side by side at least where rows are long enough (so that
/// memory is read in runs of 256 bytes), and elements that each reads at once.
const COLUMN_GROUP: usize = 256;
const MIN_ACROSS: usize = 16;
const COLUMN_LOADS: usize = 8;
/// Invocations of a workgroup that reduces a row, and of one that reduces one of few long rows.
const GROUPS: [usize; 2] = [64, 256];

fn kind(op: &str) -> Option<Kind> {
    let sum = Kind { map: "v", combine: "a + b", finish: "v", start: 0.0, start_i32: 0 };
    Some(match op {
        "ReduceSum" => sum,
        "ReduceMean" => Kind { finish: "v / len", ..sum },
        "ReduceL1" => Kind { map: "abs(v)", ..sum },
        "ReduceL2" => Kind { map: "v * v", finish: "sqrt(v)", ..sum },
        "ReduceLogSum" => Kind { finish: "log(v)", ..sum },
        "ReduceSumSquare" => Kind { map: "v * v", ..sum },
        "ReduceProd" => Kind { combine: "a * b", start: 1.0, start_i32: 1, ..sum },
        "ReduceMax" => Kind { combine: "max(a, b)", start: f32::NEG_INFINITY, start_i32: i32::MIN, ..sum },
        "ReduceMin" => Kind { combine: "min(a, b)", start: f32::INFINITY, start_i32: i32::MAX, ..sum },
        _ => return None,
    })
}

fn reduce(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    let mut axes = match l.known_ints(node, 1)? {
        Some(axes) => axes,
        None => node.ints("axes").unwrap_or(&[]).to_vec(),
    };
    if axes.is_empty() {
        if node.int_or("noop_with_empty_axes", 0) != 0 {
            return l.set(node, 0, x);
        }
        axes = (0..x.view.rank() as i64).collect();
    }
    let axes = axes.iter().map(|&a| axis_of(a, x.view.rank())).collect::<Outcome<Vec<_>>>()?;
    let y = match node.op.as_str() {
        "ReduceLogSumExp" => log_sum_exp(l, &x, &axes)?,
        op => over(l, op, &x, &axes)?,
    };
    let shape = l.out_shape(node, 0)?;
    let y = l.reshape(&y, &shape)?;
    l.set(node, 0, y)
}

/// With the largest element taken out first, so that nothing overflows.
fn log_sum_exp(l: &mut Lowering, x: &Operand, axes: &[usize]) -> Outcome<Operand> {
    let largest = over(l, "ReduceMax", x, axes)?;
    let shifted = l.map_f32("exp({0} - {1})", &[x, &largest])?;
    let sum = over(l, "ReduceSum", &shifted, axes)?;
    l.map_f32("ln({0}) + {1}", &[&sum, &largest])
}

/// Reduces `x` over `axes`, which stay as dimensions of size 1.
pub fn over(l: &mut Lowering, op: &str, x: &Operand, axes: &[usize]) -> Outcome<Operand> {
    if x.elem == Elem::I32 && matches!(op, "ReduceL2" | "ReduceLogSum") {
        return Err("is supported for float32 only".into());
    }
    by_kind(l, kind(op).ok_or("has no kernel")?, x, axes)
}

/// The same of any kind.
pub fn by_kind(l: &mut Lowering, kind: Kind, x: &Operand, axes: &[usize]) -> Outcome<Operand> {
    let start = match x.elem {
        Elem::F32 => kind.start.to_bits() as i32,
        Elem::I32 => kind.start_i32,
        Elem::Bool => return Err("booleans can't be reduced".into()),
    };
    let reduction = Reduction::new(&x.view, axes);
    let out_shape: Vec<usize> =
        (0..x.view.rank()).map(|i| if axes.contains(&i) { 1 } else { x.view.shape[i] }).collect();
    if x.elem == Elem::F32 && reduction.is_of_rows(&x.view, axes) {
        let y = l.fresh(x.elem, &out_shape)?;
        l.plan.ops.push(Op::Fold(Fold { kind, input: x.clone(), rows: reduction.n, out: y.storage }));
        return Ok(y);
    }
    let texts = [x.elem.wgsl(), kind.map, kind.combine];
    let parts = reduction.parts();
    if parts == 1 {
        let y = l.fresh(x.elem, &out_shape)?;
        reduction.emit(l, texts, kind.finish, [start, 1, reduction.len as i32], x, &y);
        return Ok(y);
    }
    // Parts are combined in order, so the result is the same every time.
    let partial = l.fresh(x.elem, &[&[parts], &out_shape[..]].concat())?;
    reduction.emit(l, texts, "v", [start, parts as i32, 0], x, &partial);
    let texts = [x.elem.wgsl(), "v", kind.combine];
    let y = l.fresh(x.elem, &out_shape)?;
    let total = [start, 1, reduction.len as i32];
    Reduction::new(&partial.view, &[0]).emit(l, texts, kind.finish, total, &partial, &y);
    Ok(y)
}

/// Whether a reduction of float32 values becomes part of a kernel of rows.
pub fn goes_by_rows(view: &View, axes: &[usize]) -> bool {
    Reduction::new(view, axes).is_of_rows(view, axes)
}

/// How outputs are shared out to invocations.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// One each.
    Each,
    /// One to a workgroup of this many.
    Group(usize),
    /// Neighbours in memory belong to different outputs: `width` of them to an invocation, `across` times as many to a
    /// workgroup, with `down` invocations to each.
    Columns { width: usize, across: usize, down: usize },
}

/// How the elements of a view are read: `n` outputs, of `len` elements each.
struct Reduction {
    n: usize,
    len: usize,
    offset: i32,
    kept: Walk,
    reduced: Walk,
}

impl Reduction {
    fn new(view: &View, axes: &[usize]) -> Self {
        let part = |hit: bool| {
            let dims = (0..view.rank()).filter(move |i| axes.contains(i) == hit);
            let (sizes, steps): (Vec<usize>, Vec<i32>) =
                dims.map(|i| (view.shape[i], view.strides[i])).unzip();
            (sizes.iter().product::<usize>(), Walk::new(&sizes, &[&steps]))
        };
        let ((n, kept), (len, reduced)) = (part(false), part(true));
        Reduction { n, len, offset: view.offset, kept, reduced }
    }
    /// Whether rows lie dense along the last axes, and keep a GPU busy with a workgroup each: then neighbours fuse.
    fn is_of_rows(&self, view: &View, axes: &[usize]) -> bool {
        let longer = |&i: &usize| view.shape[i] != 1;
        let last = (0..view.rank()).filter(longer).rev().take_while(|i| axes.contains(i)).count();
        let dense = self.reduced.rank() == 1 && self.reduced.strides[0] == [1];
        dense
            && self.n > 0
            && last == axes.iter().copied().filter(longer).count()
            && (self.n >= MANY_ROWS || self.len <= SHORT_ROW)
    }
    fn form(&self) -> Form {
        let dense = |walk: &Walk| walk.strides[0].last() == Some(&1);
        if dense(&self.kept) && !dense(&self.reduced) {
            let aligned = lies_in_vectors(&self.kept.strides[0], self.offset)
                && self.kept.dims.last().is_some_and(|&d| d % WIDE as i32 == 0)
                && self.reduced.strides[0].iter().all(|s| s % WIDE as i32 == 0);
            let width = if aligned { WIDE } else { 1 };
            let columns = (self.n / width).next_power_of_two();
            let down =
                previous_power_of_two(self.len / COLUMN_LOADS).min(COLUMN_GROUP / columns.min(MIN_ACROSS));
            let across = columns.min(COLUMN_GROUP / down);
            return Form::Columns { width, across, down };
        }
        match () {
            _ if self.len < SHORT => Form::Each,
            _ => Form::Group(GROUPS[usize::from(self.len >= 4 * GROUPS[1] && self.n * GROUPS[0] < BUSY)]),
        }
    }
    fn parts(&self) -> usize {
        let (invocations, sharing, least) = match self.form() {
            Form::Each => (self.n, 1, PART),
            Form::Group(lanes) => (self.n * lanes, lanes, PART),
            Form::Columns { width, across, down } => {
                ((self.n / width).next_multiple_of(across) * down, down, COLUMN_LOADS)
            }
        };
        (BUSY / invocations.max(1)).min(self.len / (sharing * least)).max(1)
    }
    /// Adds the dispatch. `numbers`: the start value's bits, the parts, and what `finish` calls len.
    fn emit(
        &self,
        l: &mut Lowering,
        [scalar, map, combine]: [&str; 3],
        finish: &str,
        numbers: [i32; 3],
        x: &Operand,
        y: &Operand,
    ) {
        let [start, parts, total] = numbers;
        let (n, len) = (self.n as i32, self.len as i32);
        let mut params = vec![n, len, self.offset, start, self.kept.rank(), self.reduced.rank()];
        params.extend([(len + parts - 1) / parts, parts, total]);
        for walk in [&self.kept, &self.reduced] {
            params.extend(walk.dims.iter().chain(&walk.strides[0]));
        }
        let outputs = self.n * parts as usize;
        let mut values = vec![("scalar", scalar.to_owned()), ("type", scalar.to_owned())];
        values
            .extend([("map", map), ("combine", combine), ("finish", finish)].map(|(k, v)| (k, v.to_owned())));
        let (kernel, groups) = match self.form() {
            Form::Each => (kernel::REDUCE_EACH, outputs.div_ceil(GROUP)),
            Form::Group(lanes) => {
                values.push(("size", lanes.to_string()));
                (kernel::REDUCE_GROUP, outputs)
            }
            Form::Columns { width, across, down } => {
                values[1].1 = x.elem.vector(width);
                let numbers =
                    [("width", width), ("across", across), ("down", down), ("unrolled", COLUMN_LOADS)];
                values.extend(numbers.map(|(name, number)| (name, number.to_string())));
                let row = match self.reduced.rank() {
                    1 => "j * param(sizes + 1)",
                    _ => "address(j, param(5), sizes, sizes + param(5))",
                };
                values.push(("row", row.to_owned()));
                (kernel::REDUCE_COLUMNS, (self.n / width).div_ceil(across) * parts as usize)
            }
        };
        let values: Vec<(&str, &str)> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
        l.call(kernel, &values, params, &[x], &[y], groups);
    }
}

fn previous_power_of_two(n: usize) -> usize {
    if n == 0 { 1 } else { 1 << n.ilog2() }
}
