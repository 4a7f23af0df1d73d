//! Products of matrices by kernels of ours, with what surrounds them in steps: operands and results that are transposed, and a bias.
//! Which nodes they stand for: [`super::super::products`].

use super::{input, output, unfit};
use ::ort::operator::{BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput};
use ::ort::value::TensorElementType;
use onnx_merge_kernels::product::{Matrix, Operand, Place, Product, Shared};
use std::ops::Range;

/// The operator's name: [MatMul](https://onnx.ai/onnx/operators/onnx__MatMul.html) of two operands of two axes or more, plus a bias
/// of the result's last axis.
pub const PRODUCT: &str = "Product";
/// Its attributes, which of them there are: the permutations of A's axes and B's before the product, and of its result's after it.
pub const PERMUTATIONS: [&str; 3] = ["a", "b", "y"];

/// Multiplications that one thread does before it asks for others.
const ALONE: usize = 1 << 18;

pub struct Products {
    pub threads: usize,
}

impl Operator for Products {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        PRODUCT
    }
    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let operands = [TensorElementType::Float32; 2].map(OperatorInput::required);
        operands.into_iter().chain([OperatorInput::optional(TensorElementType::Float32)])
    }
    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }
    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ::ort::Result<Self::Kernel<'attr>> {
        let permutations = PERMUTATIONS.map(|name| context.get::<Vec<i64>>(name));
        let threads = self.threads;
        Ok(Box::new(move |context: &ComputeContext| compute(context, &permutations, threads)))
    }
}

/// A tensor's sizes and the steps between its elements, along the axes of a product.
struct Layout {
    sizes: Vec<usize>,
    steps: Vec<usize>,
}

impl Layout {
    fn new(shape: &[i64], permutation: Option<&[i64]>) -> Option<Self> {
        let sizes: Vec<usize> =
            shape.iter().map(|&d| usize::try_from(d).ok().filter(|&d| d > 0)).collect::<Option<_>>()?;
        let mut steps = vec![1; sizes.len()];
        for i in (1..sizes.len()).rev() {
            steps[i - 1] = steps[i] * sizes[i];
        }
        let Some(permutation) = permutation else { return Some(Self { sizes, steps }) };
        let order: Vec<usize> = permutation
            .iter()
            .map(|&i| usize::try_from(i).ok().filter(|&i| i < sizes.len()))
            .collect::<Option<_>>()?;
        let pick = |from: &[usize]| order.iter().map(|&i| from[i]).collect();
        (order.len() == sizes.len()).then(|| Self { sizes: pick(&sizes), steps: pick(&steps) })
    }
    /// The axes before the last two, and these.
    fn split(&self) -> Option<(Range<usize>, [usize; 2])> {
        let before = self.sizes.len().checked_sub(2)?;
        Some((0..before, [before, before + 1]))
    }
    /// Where each matrix of a batch of these sizes begins.
    fn starts(&self, batch: &[usize]) -> Option<Vec<usize>> {
        let (own, _) = self.split()?;
        let missing = batch.len().checked_sub(own.len())?;
        let mut starts = vec![0];
        for (i, &size) in batch.iter().enumerate() {
            let step = match i.checked_sub(missing) {
                Some(i) if self.sizes[i] == size => self.steps[i],
                Some(i) if self.sizes[i] != 1 => return None,
                _ => 0,
            };
            starts = starts.iter().flat_map(|&start| (0..size).map(move |at| start + at * step)).collect();
        }
        Some(starts)
    }
}

fn compute(
    context: &ComputeContext,
    permutations: &[Option<Vec<i64>>; 3],
    threads: usize,
) -> ::ort::Result<()> {
    let (a, b) = (input(context, 0)?, input(context, 1)?);
    let ((a_shape, a), (b_shape, b)) = (a.try_extract_tensor::<f32>()?, b.try_extract_tensor::<f32>()?);
    let [of_a, of_b, of_y] = permutations.each_ref().map(Option::as_deref);
    let layouts = Layout::new(a_shape, of_a).zip(Layout::new(b_shape, of_b));
    let (a_layout, b_layout) = layouts.ok_or_else(unfit)?;
    let plan = Plan::new(&a_layout, &b_layout, of_y).ok_or_else(unfit)?;
    let mut y = output(context, 0, &plan.shape)?;
    let (_, y) = y.try_extract_tensor_mut::<f32>()?;
    let [rows, depth, columns] = plan.sizes;
    let bias = context.input(2)?;
    if let Some(bias) = &bias {
        let (_, bias) = bias.try_extract_tensor::<f32>()?;
        if bias.len() != columns {
            return Err(unfit());
        }
        y.chunks_exact_mut(columns).for_each(|row| row.copy_from_slice(bias));
    }
    let y = Shared::new(y);
    let one = |matrix: usize, rows: Range<usize>, columns: Range<usize>| {
        let [a_start, b_start, y_start] = plan.starts[matrix];
        let [[a_line, a_depth], [b_depth, b_line]] = plan.steps;
        let product = Product {
            a: Operand::Matrix(Matrix { elements: &a[a_start..], line: a_line, depth: a_depth }),
            b: Operand::Matrix(Matrix { elements: &b[b_start..], line: b_line, depth: b_depth }),
            depth,
            place: Place { start: y_start, rows: plan.row, columns: None },
            adds: bias.is_some(),
        };
        // SAFETY: every task has rows or columns of its own, or a matrix of its own: rows lie between those of others, since
        // a permutation of the result's axes leaves each of its elements one place.
        unsafe { product.part(rows, columns, &y) };
    };
    let matrices = plan.starts.len();
    if threads == 1 || rows * columns * depth * matrices <= ALONE {
        (0..matrices).for_each(|matrix| one(matrix, 0..rows, 0..columns));
        return Ok(());
    }
    let cuts = Cuts::new([rows, columns], threads.div_ceil(matrices));
    context.par_for(matrices * cuts.count, 0, |task| {
        let (rows, columns) = cuts.part(task % cuts.count);
        one(task / cuts.count, rows, columns);
    })
}

/// Makes rows and columns of one product, on the threads of the session.
pub fn in_parts(
    context: &ComputeContext,
    product: &Product,
    [rows, columns]: [usize; 2],
    threads: usize,
    to: &Shared,
) -> ::ort::Result<()> {
    let few = rows * columns * product.depth <= ALONE;
    let cuts = Cuts::new([rows, columns], if few { 1 } else { threads });
    let make = |i: usize| {
        let (rows, columns) = cuts.part(i);
        // SAFETY: every part has rows or columns of its own, and so has nobody else elements of it.
        unsafe { product.part(rows, columns, to) };
    };
    match cuts.count {
        1 => make(0),
        count => return context.par_for(count, 0, make),
    }
    Ok(())
}

/// A product cut along its longer side.
struct Cuts {
    sides: [usize; 2],
    count: usize,
}

impl Cuts {
    fn new(sides: [usize; 2], count: usize) -> Self {
        Self { sides, count }
    }
    fn part(&self, i: usize) -> (Range<usize>, Range<usize>) {
        let [rows, columns] = self.sides;
        let cut = |whole: usize| {
            let size = whole.div_ceil(self.count).next_multiple_of(16);
            (i * size).min(whole)..((i + 1) * size).min(whole)
        };
        if rows > columns { (cut(rows), 0..columns) } else { (0..rows, cut(columns)) }
    }
}

/// What is to be multiplied.
struct Plan {
    shape: Vec<i64>,
    /// Rows, depth and columns.
    sizes: [usize; 3],
    /// Of each matrix in A, B and the result.
    starts: Vec<[usize; 3]>,
    /// Along A's last two axes and B's.
    steps: [[usize; 2]; 2],
    /// From one row of the result to the next.
    row: usize,
}

impl Plan {
    fn new(a: &Layout, b: &Layout, permutation: Option<&[i64]>) -> Option<Self> {
        let ((a_batch, a_axes), (b_batch, b_axes)) = (a.split()?, b.split()?);
        let (a_sizes, b_sizes) = (a_axes.map(|i| a.sizes[i]), b_axes.map(|i| b.sizes[i]));
        let [mut rows, depth, columns] = [a_sizes[0], a_sizes[1], b_sizes[1]];
        let steps = [a_axes.map(|i| a.steps[i]), b_axes.map(|i| b.steps[i])];
        let reads_in_order = steps.iter().all(|steps| steps.contains(&1));
        if depth != b_sizes[0] || !reads_in_order {
            return None;
        }
        let mut batch = broadcast(&a.sizes[a_batch], &b.sizes[b_batch.clone()])?;
        let mut shape: Vec<usize> = batch.iter().copied().chain([rows, columns]).collect();
        // Of one B for a whole batch there is one product.
        let dense = a
            .steps
            .iter()
            .zip(&a.sizes)
            .rev()
            .try_fold(1, |step, (&own, &size)| (own == step).then_some(step * size));
        if b.sizes[b_batch].iter().all(|&size| size == 1) && dense.is_some() && permutation.is_none() {
            rows *= batch.iter().product::<usize>();
            batch.clear();
            let a = [0];
            return Some(Self {
                shape: shape.iter().map(|&d| d as i64).collect(),
                sizes: [rows, depth, columns],
                starts: a.map(|a| [a, 0, 0]).to_vec(),
                steps,
                row: columns,
            });
        }
        let logical = shape.clone();
        let mut result = Layout::new(&logical.iter().map(|&d| d as i64).collect::<Vec<_>>(), None)?;
        if let Some(permutation) = permutation {
            let order: Vec<usize> =
                permutation.iter().map(|&i| usize::try_from(i).ok()).collect::<Option<_>>()?;
            let inverse = (0..order.len()).map(|i| order.iter().position(|&o| o == i).map(|i| i as i64));
            shape = order.iter().map(|&i| logical.get(i).copied()).collect::<Option<_>>()?;
            let permuted: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
            result = Layout::new(&permuted, Some(&inverse.collect::<Option<Vec<_>>>()?))?;
        }
        let (_, [row, column]) = result.split()?;
        if result.sizes != logical || result.steps[column] != 1 {
            return None;
        }
        let starts = a.starts(&batch)?.into_iter().zip(b.starts(&batch)?).zip(result.starts(&batch)?);
        Some(Self {
            shape: shape.iter().map(|&d| d as i64).collect(),
            sizes: [rows, depth, columns],
            starts: starts.map(|((a, b), y)| [a, b, y]).collect(),
            steps,
            row: result.steps[row],
        })
    }
}

/// The sizes that two batches have together.
fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let axes = a.len().max(b.len());
    let size = |of: &[usize], i: usize| (i + of.len()).checked_sub(axes).map_or(1, |i| of[i]);
    let both = |i: usize| match (size(a, i), size(b, i)) {
        (a, b) if a == b || b == 1 => Some(a),
        (1, b) => Some(b),
        _ => None,
    };
    (0..axes).map(both).collect()
}
