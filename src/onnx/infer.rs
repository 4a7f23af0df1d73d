//! Element type and shape of what a node makes, for the operators this program emits itself.
//!
//! Foreign graphs are *probed* instead (run once, see `autodiff::facts`), which is exact for every operator.
//! Shapes follow the operator specifications of opset 18 and later.

use super::{DType, Fact, Facts, Graph, Node, Tensor};

/// What inference sees of one input.
pub struct Operand<'a> {
    pub fact: &'a Fact,
    /// The value itself, where it is a constant of the graph.
    pub value: Option<&'a Tensor>,
}

/// What follows for a whole graph from `known` facts of its inputs, without running it: facts of them, of the initializers,
/// and of what nodes make as far as [`infer`] knows it.
pub fn infer_graph(graph: &Graph, known: Facts) -> Facts {
    let mut facts = known;
    facts.extend(graph.initializers.iter().map(|(id, tensor)| (id.clone(), Fact::of(tensor))));
    for node in graph.nodes.iter().filter(|node| node.domain.is_empty()) {
        let operands: Option<Vec<Option<Operand<'_>>>> = node
            .inputs
            .iter()
            .map(|input| match input {
                None => Some(None),
                Some(id) => {
                    facts.get(id).map(|fact| Some(Operand { fact, value: graph.initializers.get(id) }))
                }
            })
            .collect();
        if let Some(made) = operands.and_then(|operands| infer(node, &operands)) {
            let named = node.outputs.iter().cloned().zip(made);
            facts.extend(named.filter_map(|(output, fact)| Some((output?, fact))).collect::<Vec<_>>());
        }
    }
    facts
}

/// Shapes that two operands broadcast to (ONNX "multidirectional broadcasting").
pub fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |i| s[i]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

/// `axis` counted from the front.
pub fn normalise_axis(axis: i64, rank: usize) -> Option<usize> {
    let axis = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(axis).ok().filter(|&a| a < rank)
}

/// The facts of a node's outputs (as many as it has), or `None` where this function doesn't know the operator
/// or the inputs don't fit it.
pub fn infer(node: &Node, inputs: &[Option<Operand<'_>>]) -> Option<Vec<Fact>> {
    let operand = |i: usize| inputs.get(i).and_then(|o| o.as_ref());
    let first = operand(0).map(|o| o.fact);
    let one = |fact: Fact| Some(vec![fact]);
    let same = |dtype: DType| one(Fact::new(dtype, &first?.shape));
    let ints = |i: usize| operand(i).and_then(|o| o.value).map(|t| t.to_i64().into_owned());
    match node.op.as_str() {
        "Abs" | "Acos" | "Acosh" | "Asin" | "Asinh" | "Atan" | "Atanh" | "Ceil" | "Clip" | "Cos" | "Cosh"
        | "CumSum" | "Dropout" | "Elu" | "Erf" | "Exp" | "Floor" | "Gelu" | "HardSigmoid" | "HardSwish"
        | "Identity" | "LeakyRelu" | "Log" | "LogSoftmax" | "Neg" | "Reciprocal" | "Relu" | "Round"
        | "Selu" | "Shrink" | "Sigmoid" | "Sign" | "Sin" | "Sinh" | "Softmax" | "Softplus" | "Softsign"
        | "Sqrt" | "Tan" | "Tanh" | "Trilu" | "ThresholdedRelu" | "ScatterElements" | "ScatterND"
        | "LpNormalization" | "LayerNormalization" | "Hardmax" | "BitwiseNot" | "ReverseSequence" => {
            same(first?.dtype)
        }
        "Not" | "IsNaN" | "IsInf" => same(DType::Bool),
        "Cast" => same(DType::from_onnx(node.int("to")? as i32)),
        "CastLike" => same(operand(1)?.fact.dtype),
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Mod" | "Max" | "Min" | "Sum" | "Mean" | "PRelu"
        | "BitShift" | "BitwiseAnd" | "BitwiseXor" => {
            let shape = inputs.iter().flatten().try_fold(vec![], |s, o| broadcast(&s, &o.fact.shape))?;
            one(Fact::new(first?.dtype, &shape))
        }
        "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" | "And" | "Or" | "Xor" => {
            one(Fact::new(DType::Bool, &broadcast(&first?.shape, &operand(1)?.fact.shape)?))
        }
        "Where" => {
            let shape = broadcast(&first?.shape, &operand(1)?.fact.shape)?;
            one(Fact::new(operand(1)?.fact.dtype, &broadcast(&shape, &operand(2)?.fact.shape)?))
        }
        "MatMul" => one(Fact::new(first?.dtype, &matmul(&first?.shape, &operand(1)?.fact.shape)?)),
        "Gemm" => {
            let side = |s: &[usize], t: &str, i: usize| {
                s.get(if node.int_or(t, 0) != 0 { 1 - i } else { i }).copied()
            };
            one(Fact::new(
                first?.dtype,
                &[side(&first?.shape, "transA", 0)?, side(&operand(1)?.fact.shape, "transB", 1)?],
            ))
        }
        "Transpose" => {
            let shape = &first?.shape;
            let perm = node.ints("perm").map_or_else(
                || (0..shape.len()).rev().collect(),
                |p| p.iter().map(|&i| i as usize).collect::<Vec<_>>(),
            );
            one(Fact::new(
                first?.dtype,
                &perm.iter().map(|&i| shape.get(i).copied()).collect::<Option<Vec<_>>>()?,
            ))
        }
        "Reshape" => one(Fact::new(
            first?.dtype,
            &reshape(&first?.shape, &ints(1)?, node.int_or("allowzero", 0) != 0)?,
        )),
        "Flatten" => {
            let shape = &first?.shape;
            let axis = node.int_or("axis", 1);
            let axis = if axis < 0 { axis + shape.len() as i64 } else { axis } as usize;
            one(Fact::new(
                first?.dtype,
                &[super::element_count(shape.get(..axis)?)?, super::element_count(shape.get(axis..)?)?],
            ))
        }
        "Expand" => one(Fact::new(first?.dtype, &broadcast(&first?.shape, &sizes(&ints(1)?)?)?)),
        "Tile" => {
            let times = sizes(&ints(1)?)?;
            let tiled = first?.shape.iter().zip(times).map(|(d, n)| d.checked_mul(n));
            one(Fact::new(first?.dtype, &tiled.collect::<Option<Vec<_>>>()?))
        }
        "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL1" | "ReduceL2"
        | "ReduceSumSquare" | "ReduceLogSum" | "ReduceLogSumExp" => {
            let axes = match operand(1) {
                Some(_) => ints(1)?,
                None => node.ints("axes").unwrap_or(&[]).to_vec(),
            };
            let noop = node.int_or("noop_with_empty_axes", 0) != 0;
            one(Fact::new(
                first?.dtype,
                &reduced(&first?.shape, &axes, node.int_or("keepdims", 1) != 0, noop)?,
            ))
        }
        "ArgMax" | "ArgMin" => {
            let shape =
                reduced(&first?.shape, &[node.int_or("axis", 0)], node.int_or("keepdims", 1) != 0, false)?;
            one(Fact::new(DType::I64, &shape))
        }
        "TopK" => {
            let mut shape = first?.shape.clone();
            let axis = normalise_axis(node.int_or("axis", -1), shape.len())?;
            shape[axis] = usize::try_from(*ints(1)?.first()?).ok()?;
            Some(vec![Fact::new(first?.dtype, &shape), Fact::new(DType::I64, &shape)])
        }
        "Squeeze" => {
            let shape = &first?.shape;
            let axes = match operand(1) {
                Some(_) => ints(1)?,
                None => (0..shape.len()).filter(|&i| shape[i] == 1).map(|i| i as i64).collect(),
            };
            let drop: Vec<usize> =
                axes.iter().map(|&a| normalise_axis(a, shape.len())).collect::<Option<_>>()?;
            let kept: Vec<usize> = (0..shape.len()).filter(|i| !drop.contains(i)).map(|i| shape[i]).collect();
            one(Fact::new(first?.dtype, &kept))
        }
        "Unsqueeze" => {
            let axes = ints(1)?;
            let rank = first?.rank() + axes.len();
            let new: Vec<usize> = axes.iter().map(|&a| normalise_axis(a, rank)).collect::<Option<_>>()?;
            let mut old = first?.shape.iter();
            let shape: Option<Vec<usize>> =
                (0..rank).map(|i| if new.contains(&i) { Some(1) } else { old.next().copied() }).collect();
            one(Fact::new(first?.dtype, &shape?))
        }
        "Concat" => {
            let mut shape = first?.shape.clone();
            let axis = normalise_axis(node.int("axis")?, shape.len())?;
            shape[axis] = inputs.iter().flatten().map(|o| o.fact.shape.get(axis).copied().unwrap_or(0)).sum();
            one(Fact::new(first?.dtype, &shape))
        }
        "Split" => {
            let shape = &first?.shape;
            let axis = normalise_axis(node.int_or("axis", 0), shape.len())?;
            let dtype = first?.dtype;
            let parts = match ints(1) {
                Some(parts) => sizes(&parts)?,
                None => {
                    let n = node.outputs.len().max(1);
                    let size = shape[axis].div_ceil(n);
                    (0..n).map(|i| size.min(shape[axis].saturating_sub(i * size))).collect::<Vec<_>>()
                }
            };
            let part = |&size: &usize| {
                let mut shape = shape.clone();
                shape[axis] = size;
                Fact { dtype, shape }
            };
            Some(parts.iter().map(part).collect())
        }
        "Slice" => {
            one(Fact::new(first?.dtype, &slice(&first?.shape, &ints(1)?, &ints(2)?, ints(3), ints(4))?))
        }
        "Gather" => {
            let (shape, index) = (&first?.shape, &operand(1)?.fact.shape);
            let axis = normalise_axis(node.int_or("axis", 0), shape.len())?;
            one(Fact::new(first?.dtype, &[&shape[..axis], index, &shape[axis + 1..]].concat()))
        }
        "GatherElements" => one(Fact::new(first?.dtype, &operand(1)?.fact.shape)),
        "GatherND" => {
            let (shape, index) = (&first?.shape, &operand(1)?.fact.shape);
            let batch = usize::try_from(node.int_or("batch_dims", 0)).ok()?;
            let (last, lead) = index.split_last()?;
            one(Fact::new(first?.dtype, &[lead, shape.get(batch.checked_add(*last)?..)?].concat()))
        }
        "OneHot" => {
            let mut shape = first?.shape.clone();
            let axis = normalise_axis(node.int_or("axis", -1), shape.len() + 1)?;
            shape.insert(axis, usize::try_from(*ints(1)?.first()?).ok()?);
            one(Fact::new(operand(2)?.fact.dtype, &shape))
        }
        "Shape" => one(Fact::new(DType::I64, &[first?.rank()])),
        "Size" => one(Fact::new(DType::I64, &[])),
        "ConstantOfShape" => {
            one(Fact::new(node.tensor("value").map_or(DType::F32, |t| t.dtype()), &sizes(&ints(0)?)?))
        }
        "Range" => {
            let at = |i: usize| operand(i)?.value?.to_f64().first().copied();
            let count = ((at(1)? - at(0)?) / at(2)?).ceil().max(0.0) as usize;
            one(Fact::new(first?.dtype, &[count]))
        }
        "Pad" => {
            let shape = &first?.shape;
            let pads = ints(1)?;
            let axes = ints(3).unwrap_or_else(|| (0..shape.len() as i64).collect());
            let mut padded: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
            for (i, &axis) in axes.iter().enumerate() {
                let size = &mut padded[normalise_axis(axis, shape.len())?];
                *size = size.checked_add(*pads.get(i)?)?.checked_add(*pads.get(i + axes.len())?)?;
            }
            one(Fact::new(
                first?.dtype,
                &padded.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>()?,
            ))
        }
        "Conv" => {
            let (x, w) = (&first?.shape, &operand(1)?.fact.shape);
            let window = Window::of(node, w.get(2..)?, x.len().checked_sub(2)?)?;
            let spatial: Vec<usize> =
                (0..x.len() - 2).map(|i| window.output(i, x[i + 2])).collect::<Option<_>>()?;
            one(Fact::new(first?.dtype, &[&[x[0], w[0]], &spatial[..]].concat()))
        }
        "ConvTranspose" => {
            let (x, w) = (&first?.shape, &operand(1)?.fact.shape);
            let n = x.len().checked_sub(2)?;
            let window = Window::of(node, w.get(2..)?, n)?;
            let extra = node.ints("output_padding").map_or(vec![0; n], |p| p.to_vec());
            let spatial: Vec<usize> =
                (0..n).map(|i| window.transposed(i, x[i + 2], *extra.get(i)?)).collect::<Option<_>>()?;
            let channels = w[1].checked_mul(usize::try_from(node.int_or("group", 1)).ok()?)?;
            one(Fact::new(first?.dtype, &[&[x[0], channels], &spatial[..]].concat()))
        }
        "MaxPool" | "AveragePool" => {
            let x = &first?.shape;
            let window = Window::of(node, &sizes(node.ints("kernel_shape")?)?, x.len().checked_sub(2)?)?;
            let spatial: Vec<usize> =
                (0..x.len() - 2).map(|i| window.output(i, x[i + 2])).collect::<Option<_>>()?;
            let y = Fact::new(first?.dtype, &[&x[..2], &spatial[..]].concat());
            Some(if node.outputs.len() > 1 {
                vec![y.clone(), Fact::new(DType::I64, &y.shape)]
            } else {
                vec![y]
            })
        }
        "Einsum" => {
            let equation = node.str("equation")?.replace(' ', "");
            let (terms, out) = equation.split_once("->").filter(|_| !equation.contains('.'))?;
            let mut size = std::collections::HashMap::new();
            for (term, operand) in terms.split(',').zip(inputs.iter().flatten()) {
                size.extend(term.chars().zip(operand.fact.shape.iter().copied()));
            }
            one(Fact::new(
                first?.dtype,
                &out.chars().map(|c| size.get(&c).copied()).collect::<Option<Vec<_>>>()?,
            ))
        }
        _ => None,
    }
}

/// No window is longer along an axis: sums and products of two such numbers fit 64 bits.
const LONGEST: usize = 1 << 31;

/// Sizes of axes; `None` where one is negative.
fn sizes(dims: &[i64]) -> Option<Vec<usize>> {
    dims.iter().map(|&d| usize::try_from(d).ok()).collect()
}

/// The sliding window of a convolution or pooling node, with every attribute filled in (`auto_pad` excepted,
/// which preparation turns into explicit pads).
pub struct Window {
    pub kernel: Vec<usize>,
    pub stride: Vec<usize>,
    pub dilation: Vec<usize>,
    /// Begins of all axes, then ends of all axes.
    pub pad: Vec<i64>,
    pub ceil: bool,
}

impl Window {
    /// `None` where attributes don't fit each other, or are of no sensible size.
    pub fn of(node: &Node, kernel: &[usize], spatial: usize) -> Option<Self> {
        let list = |name: &str| node.ints(name).map_or(Some(vec![1; spatial]), sizes);
        let window = Window {
            kernel: kernel.to_vec(),
            stride: list("strides")?,
            dilation: list("dilations")?,
            pad: node.ints("pads").map_or(vec![0; 2 * spatial], |p| p.to_vec()),
            ceil: node.int_or("ceil_mode", 0) != 0,
        };
        let lists = [&window.kernel, &window.stride, &window.dilation];
        let fits = lists.iter().all(|l| l.len() == spatial && l.iter().all(|n| (1..LONGEST).contains(n)));
        let padded =
            window.pad.len() == 2 * spatial && window.pad.iter().all(|p| p.unsigned_abs() < LONGEST as u64);
        (fits && padded).then_some(window)
    }
    /// The length along axis `i` of what a transposed convolution makes of `size`.
    fn transposed(&self, i: usize, size: usize, extra: i64) -> Option<usize> {
        let strides = i64::try_from(self.stride[i].checked_mul(size.checked_sub(1)?)?).ok()?;
        let reach = (self.kernel[i] as i64 - 1) * self.dilation[i] as i64 + 1;
        let pads = self.pad[i] + self.pad[i + self.kernel.len()];
        usize::try_from(strides.checked_add(reach)?.checked_add(extra)?.checked_sub(pads)?).ok()
    }
    /// The number of windows along axis `i` of an input of size `size`.
    pub fn output(&self, i: usize, size: usize) -> Option<usize> {
        let padded = i64::try_from(size).ok()?.checked_add(self.pad[i] + self.pad[i + self.kernel.len()])?;
        let room = padded - ((self.kernel[i] as i64 - 1) * self.dilation[i] as i64 + 1);
        let stride = self.stride[i] as i64;
        if room < 0 {
            return None;
        }
        let mut count = if self.ceil { (room + stride - 1) / stride } else { room / stride } + 1;
        // With ceil_mode, a window that would start in the padding after the input doesn't count.
        if self.ceil && (count - 1) * stride >= size as i64 + self.pad[i] {
            count -= 1;
        }
        usize::try_from(count).ok()
    }
}

fn matmul(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    match (a.len(), b.len()) {
        (0, _) | (_, 0) => None,
        (1, 1) => Some(vec![]),
        (1, n) => Some([&b[..n - 2], &b[n - 1..]].concat()),
        (m, 1) => Some(a[..m - 1].to_vec()),
        (m, n) => {
            let mut shape = broadcast(&a[..m - 2], &b[..n - 2])?;
            shape.extend([a[m - 2], b[n - 1]]);
            (a[m - 1] == b[n - 2]).then_some(shape)
        }
    }
}

/// The shape that `Reshape` makes of `from` when asked for `to` (with its 0 and -1).
pub fn reshape(from: &[usize], to: &[i64], allow_zero: bool) -> Option<Vec<usize>> {
    let total = super::element_count(from)?;
    let mut shape: Vec<usize> = vec![];
    let mut free = None;
    for (i, &d) in to.iter().enumerate() {
        shape.push(match d {
            0 if !allow_zero => *from.get(i)?,
            -1 => {
                free = Some(i);
                1
            }
            d => usize::try_from(d).ok()?,
        });
    }
    if let Some(i) = free {
        let rest = super::element_count(&shape)?;
        shape[i] = total.checked_div(rest).unwrap_or(0);
    }
    (super::element_count(&shape)? == total).then_some(shape)
}

fn reduced(shape: &[usize], axes: &[i64], keep: bool, noop_when_empty: bool) -> Option<Vec<usize>> {
    if axes.is_empty() && noop_when_empty {
        return Some(shape.to_vec());
    }
    let axes: Vec<usize> = axes.iter().map(|&a| normalise_axis(a, shape.len())).collect::<Option<_>>()?;
    let hit = |i: usize| axes.is_empty() || axes.contains(&i);
    let kept = shape.iter().enumerate();
    Some(match keep {
        true => kept.map(|(i, &d)| if hit(i) { 1 } else { d }).collect(),
        false => kept.filter(|&(i, _)| !hit(i)).map(|(_, &d)| d).collect(),
    })
}

fn slice(
    shape: &[usize],
    starts: &[i64],
    ends: &[i64],
    axes: Option<Vec<i64>>,
    steps: Option<Vec<i64>>,
) -> Option<Vec<usize>> {
    let mut out = shape.to_vec();
    let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
    for (k, &axis) in axes.iter().enumerate() {
        let axis = normalise_axis(axis, shape.len())?;
        let step = steps.as_ref().map_or(Some(1), |s| s.get(k).copied())?;
        let (start, end, step) = slice_range(shape[axis], *starts.get(k)?, *ends.get(k)?, step)?;
        let span = if step > 0 { end - start } else { start - end };
        out[axis] = (span.max(0) as u64).div_ceil(step.unsigned_abs()) as usize;
    }
    Some(out)
}

/// `(start, end, step)` of one axis of a `Slice` as the specification clamps them.
pub fn slice_range(size: usize, start: i64, end: i64, step: i64) -> Option<(i64, i64, i64)> {
    let n = size as i64;
    let wrap = |v: i64| if v < 0 { v.saturating_add(n) } else { v };
    match step {
        0 => None,
        _ if n == 0 => Some((0, 0, step)),
        1.. => Some((wrap(start).clamp(0, n), wrap(end).clamp(0, n), step)),
        _ => Some((wrap(start).clamp(0, n - 1), wrap(end).clamp(-1, n - 1), step)),
    }
}
