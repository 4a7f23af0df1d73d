//! Elementwise operators that tract evaluates through ndarray's `Zip`, as loops over rows instead.
//!
//! `Zip` finds every element through small functions that cost more than the arithmetic unless they are all compiled in one
//! piece with the loop, which takes tract-core in one codegen unit and minutes of a cold build (docs/benchmarks.md). Steps
//! spend time in few such operators: comparisons and selections, as in the gradients of `Relu` and `MaxPool`, and arithmetic
//! between operands of which one is repeated. Look at [`replace`].

use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::logic::Iff;

/// The most operands that an operator here has.
const OPERANDS: usize = 3;

/// Puts loops over rows in the place of the operators that have one. To be called when nothing is left to optimise: nothing
/// else knows these operators.
pub fn replace(model: &mut TypedModel) -> TractResult<()> {
    for at in 0..model.nodes.len() {
        if let Some(rows) = rows_for(model, &model.nodes[at])? {
            model.nodes[at].op = Box::new(rows);
        }
    }
    Ok(())
}

/// The loop for a node of numbers of single precision whose shapes are known.
fn rows_for(model: &TypedModel, node: &TypedNode) -> TractResult<Option<Rows>> {
    let Some(kind) = kind_of(&*node.op) else { return Ok(None) };
    let facts = model.node_input_facts(node.id)?;
    let numbers = match kind {
        Kind::Select => &facts[1..],
        _ => &facts[..],
    };
    if numbers.iter().any(|fact| fact.datum_type != f32::datum_type()) {
        return Ok(None);
    }
    let shapes: Option<Vec<&[usize]>> = facts.iter().map(|fact| fact.shape.as_concrete()).collect();
    let Some(shapes) = shapes else { return Ok(None) };
    // tract has a loop of its own for these, and works in place.
    if matches!(kind, Kind::Calculate(_)) && shapes[0] == shapes[1] {
        return Ok(None);
    }
    Ok(Layout::new(&shapes).map(|layout| Rows { kind, layout }))
}

fn kind_of(op: &dyn TypedOp) -> Option<Kind> {
    if op.is::<Iff>() {
        return Some(Kind::Select);
    }
    let op = op.downcast_ref::<TypedBinOp>()?;
    Some(match op.0.name() {
        "Eq" => Kind::Compare(Compare::Equal),
        "NE" => Kind::Compare(Compare::NotEqual),
        "LT" => Kind::Compare(Compare::Less),
        "LTE" => Kind::Compare(Compare::LessOrEqual),
        "GT" => Kind::Compare(Compare::Greater),
        "GTE" => Kind::Compare(Compare::GreaterOrEqual),
        "Add" => Kind::Calculate(Calculate::Add),
        "Sub" => Kind::Calculate(Calculate::Subtract),
        "Mul" => Kind::Calculate(Calculate::Multiply),
        "Div" => Kind::Calculate(Calculate::Divide),
        _ => return None,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Compare(Compare),
    Calculate(Calculate),
    /// The second operand where the first is true, else the third.
    Select,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Calculate {
    Add,
    Subtract,
    Multiply,
    Divide,
}

/// An elementwise operator of known shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rows {
    kind: Kind,
    layout: Layout,
}

impl Rows {
    fn datum_type(&self) -> DatumType {
        match self.kind {
            Kind::Compare(_) => bool::datum_type(),
            Kind::Calculate(_) | Kind::Select => f32::datum_type(),
        }
    }
}

impl Op for Rows {
    fn name(&self) -> StaticName {
        format!("Rows.{:?}", self.kind).into()
    }
    op_as_typed_op!();
}

impl TypedOp for Rows {
    fn output_facts(&self, _inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(self.datum_type().fact(&self.layout.shape)))
    }
    as_op!();
}

impl EvalOp for Rows {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let operands: TVec<_> =
            inputs.iter().map(|input| input.try_as_plain_ram()).collect::<TractResult<_>>()?;
        let mut output = Tensor::zero_dt(self.datum_type(), &self.layout.shape)?;
        let mut to = output.try_as_plain_ram_mut()?;
        match (self.kind, &operands[..]) {
            (Kind::Compare(compare), [a, b]) => {
                self.layout.compare(compare, a.as_slice()?, b.as_slice()?, to.as_slice_mut()?);
            }
            (Kind::Calculate(calculate), [a, b]) => {
                self.layout.calculate(calculate, a.as_slice()?, b.as_slice()?, to.as_slice_mut()?);
            }
            (Kind::Select, [which, yes, no]) => {
                self.layout.select(which.as_slice()?, yes.as_slice()?, no.as_slice()?, to.as_slice_mut()?);
            }
            (kind, operands) => bail!("{kind:?} of {} operands", operands.len()),
        }
        Ok(tvec!(output.into_tvalue()))
    }
}

/// How operands that are repeated along some axes lie beside the output.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layout {
    /// The output's.
    shape: TVec<usize>,
    /// The axes around a row, the outermost first. Those along which all operands are one piece are one.
    outer: TVec<Axis>,
    row: Axis,
}

/// An axis, and how far each operand moves along it: not at all where it is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Axis {
    size: usize,
    steps: [usize; OPERANDS],
}

impl Layout {
    /// For operands of these shapes; `None` where they don't go together.
    fn new(operands: &[&[usize]]) -> Option<Self> {
        let rank = operands.iter().map(|shape| shape.len()).max()?;
        let size = |operand: &[usize], axis: usize| {
            (axis + operand.len()).checked_sub(rank).map_or(1, |axis| operand[axis])
        };
        let mut shape: TVec<usize> = tvec![1; rank];
        for (axis, total) in shape.iter_mut().enumerate() {
            for size in operands.iter().map(|o| size(o, axis)).filter(|&size| size != 1) {
                if *total != 1 && *total != size {
                    return None;
                }
                *total = size;
            }
        }
        let mut axes: TVec<Axis> = tvec![];
        let mut strides = [1; OPERANDS];
        for axis in (0..rank).rev() {
            let mut here = Axis { size: shape[axis], steps: [0; OPERANDS] };
            for ((operand, stride), step) in operands.iter().zip(&mut strides).zip(&mut here.steps) {
                let size = size(operand, axis);
                *step = if size == 1 { 0 } else { *stride };
                *stride *= size;
            }
            match axes.last_mut() {
                _ if here.size == 1 => {}
                Some(inner) if here.steps == inner.steps.map(|step| step * inner.size) => {
                    inner.size *= here.size;
                }
                _ => axes.push(here),
            }
        }
        axes.reverse();
        let row = axes.pop().unwrap_or(Axis { size: 1, steps: [0; OPERANDS] });
        Some(Self { shape, outer: axes, row })
    }

    /// Calls `row` with where each row starts: in the output, and in the operands.
    fn each_row(&self, mut row: impl FnMut(usize, [usize; OPERANDS])) {
        let rows: usize = self.outer.iter().map(|axis| axis.size).product();
        let mut at: TVec<usize> = tvec![0; self.outer.len()];
        let mut starts = [0; OPERANDS];
        for number in 0..rows {
            row(number * self.row.size, starts);
            for (axis, at) in self.outer.iter().zip(&mut at).rev() {
                *at += 1;
                starts.iter_mut().zip(axis.steps).for_each(|(start, step)| *start += step);
                if *at < axis.size {
                    break;
                }
                *at = 0;
                starts.iter_mut().zip(axis.steps).for_each(|(start, step)| *start -= step * axis.size);
            }
        }
    }

    fn compare(&self, compare: Compare, a: &[f32], b: &[f32], to: &mut [bool]) {
        match compare {
            Compare::Equal => self.pairs(a, b, to, |a, b| a == b),
            Compare::NotEqual => self.pairs(a, b, to, |a, b| a != b),
            Compare::Less => self.pairs(a, b, to, |a, b| a < b),
            Compare::LessOrEqual => self.pairs(a, b, to, |a, b| a <= b),
            Compare::Greater => self.pairs(a, b, to, |a, b| a > b),
            Compare::GreaterOrEqual => self.pairs(a, b, to, |a, b| a >= b),
        }
    }

    fn calculate(&self, calculate: Calculate, a: &[f32], b: &[f32], to: &mut [f32]) {
        match calculate {
            Calculate::Add => self.pairs(a, b, to, |a, b| a + b),
            Calculate::Subtract => self.pairs(a, b, to, |a, b| a - b),
            Calculate::Multiply => self.pairs(a, b, to, |a, b| a * b),
            Calculate::Divide => self.pairs(a, b, to, |a, b| a / b),
        }
    }

    /// `to` = `f` of `a` and `b`. Rows step by one or not at all: their axis is the innermost one of more than one element.
    fn pairs<T>(&self, a: &[f32], b: &[f32], to: &mut [T], f: impl Fn(f32, f32) -> T) {
        self.each_row(|start, [i, j, _]| {
            let to = &mut to[start..start + self.row.size];
            match self.row.steps {
                [0, 0, _] => to.iter_mut().for_each(|to| *to = f(a[i], b[j])),
                [0, _, _] => to.iter_mut().zip(&b[j..]).for_each(|(to, &b)| *to = f(a[i], b)),
                [_, 0, _] => to.iter_mut().zip(&a[i..]).for_each(|(to, &a)| *to = f(a, b[j])),
                _ => to.iter_mut().zip(&a[i..]).zip(&b[j..]).for_each(|((to, &a), &b)| *to = f(a, b)),
            }
        });
    }

    fn select(&self, which: &[bool], yes: &[f32], no: &[f32], to: &mut [f32]) {
        self.each_row(|start, [i, j, k]| {
            let to = &mut to[start..start + self.row.size];
            let picked = to.iter_mut().zip(&which[i..]);
            match self.row.steps {
                [1, 1, 0] => {
                    picked
                        .zip(&yes[j..])
                        .for_each(|((to, &which), &yes)| *to = if which { yes } else { no[k] });
                }
                [1, 0, 1] => {
                    picked
                        .zip(&no[k..])
                        .for_each(|((to, &which), &no)| *to = if which { yes[j] } else { no });
                }
                [by, yes_by, no_by] => {
                    for (n, to) in to.iter_mut().enumerate() {
                        *to = if which[i + n * by] { yes[j + n * yes_by] } else { no[k + n * no_by] };
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where an operand of `shape` has the element that goes with `index` of an output.
    fn place(shape: &[usize], index: &[usize]) -> usize {
        let index = &index[index.len() - shape.len()..];
        shape.iter().zip(index).fold(0, |at, (&size, &i)| at * size + if size == 1 { 0 } else { i })
    }

    fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
        let mut all = vec![vec![]];
        for &size in shape {
            all = all.iter().flat_map(|i| (0..size).map(move |n| [&i[..], &[n]].concat())).collect();
        }
        all
    }

    #[test]
    fn rows_reach_every_element_of_broadcast_operands() {
        let cases: [[&[usize]; 3]; 8] = [
            [&[2, 3, 4], &[2, 3, 4], &[2, 3, 4]],
            [&[2, 3, 4], &[], &[1]],
            [&[2, 3, 4], &[3, 1], &[4]],
            [&[5, 2, 4], &[5, 1, 4], &[1, 2, 1]],
            [&[1, 1, 4], &[2, 1, 1], &[1, 3, 1]],
            [&[2, 1, 3, 1], &[1, 2, 1, 2], &[2, 2, 3, 2]],
            [&[], &[], &[]],
            [&[0, 3], &[1, 3], &[3]],
        ];
        for shapes in cases {
            let layout = Layout::new(&shapes).unwrap();
            let count = |shape: &[usize]| shape.iter().product::<usize>();
            let numbers = |shape: &[usize], from: f32| -> Vec<f32> {
                (0..count(shape)).map(|n| from + (n * 7 % 5) as f32).collect()
            };
            let which: Vec<bool> = (0..count(shapes[0])).map(|n| n % 3 != 1).collect();
            let (a, b, c) = (numbers(shapes[0], 1.0), numbers(shapes[1], 0.0), numbers(shapes[2], 10.0));
            let mut selected = vec![0.0; count(&layout.shape)];
            layout.select(&which, &b, &c, &mut selected);
            let pair = Layout::new(&shapes[..2]).unwrap();
            let (mut sums, mut less) = (vec![0.0; count(&pair.shape)], vec![false; count(&pair.shape)]);
            pair.calculate(Calculate::Subtract, &a, &b, &mut sums);
            pair.compare(Compare::LessOrEqual, &a, &b, &mut less);
            for (n, index) in indices(&layout.shape).iter().enumerate() {
                let picks = which[place(shapes[0], index)];
                let expected = if picks { b[place(shapes[1], index)] } else { c[place(shapes[2], index)] };
                assert_eq!(selected[n], expected, "{shapes:?} at {index:?}");
            }
            for (n, index) in indices(&pair.shape).iter().enumerate() {
                let (a, b) = (a[place(shapes[0], index)], b[place(shapes[1], index)]);
                assert_eq!((sums[n], less[n]), (a - b, a <= b), "{shapes:?} at {index:?}");
            }
        }
    }

    #[test]
    fn axes_along_which_operands_are_one_piece_are_one() {
        let layout = Layout::new(&[&[64, 16, 8, 8], &[1, 16, 1, 1]]).unwrap();
        assert_eq!((layout.outer.len(), layout.row.size, layout.row.steps), (2, 64, [1, 0, 0]));
        let same = Layout::new(&[&[64, 16, 8, 8], &[64, 16, 8, 8], &[1, 1, 1, 1]]).unwrap();
        assert_eq!((same.outer.len(), same.row.size, same.row.steps), (0, 65_536, [1, 1, 0]));
    }

    #[test]
    fn shapes_that_dont_go_together_are_left_to_tract() {
        assert!(Layout::new(&[&[2, 3], &[2, 4]]).is_none());
    }
}
