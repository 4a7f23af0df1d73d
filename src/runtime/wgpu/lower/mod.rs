//! From ONNX nodes to kernels: one table from operator to lowering, one file an operator family.
//!
//! A lowering gets a node whose shapes are all known and adds operations to the plan; most shape operators
//! add none, they only make another view. To add an operator, write its lowering in the file of its family
//! and add a line to that file's `TABLE`. Knows no device. Look at [`Lowering`].

mod conv;
mod coop;
mod depthwise;
mod einsum;
mod elementwise;
mod index;
mod linear;
mod normal;
mod pad;
mod pool;
mod reduce;
mod resize;
mod scatter;
mod shape;
mod sums;
mod tiles;
mod window;

use super::kernel::{self, Kernel};
use super::plan::{Call, Elem, Map, Op, Operand, Origin, Plan, Storage, StorageId, Tiling, words};
use super::view::{View, WIDE, Walk, lies_in_vectors};
use crate::error::Error;
use crate::onnx::infer::{self, normalise_axis};
use crate::onnx::{Fact, Facts, Model, Node, Tensor, ValueId, WORKING_OPSET, node_reads};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The error says what of a node isn't supported.
pub type Outcome<T = ()> = Result<T, String>;
/// Adds a node's operations to the plan.
pub type Lower = fn(&mut Lowering, &Node) -> Outcome;
/// A line of an operator family's table.
pub type Row = (&'static str, Lower);

/// Invocations in a workgroup of the kernels that go element by element.
pub const GROUP: usize = 64;

/// The lowering of a node's operator.
pub fn rule(node: &Node) -> Option<Lower> {
    let families = [
        conv::TABLE,
        einsum::TABLE,
        elementwise::TABLE,
        index::TABLE,
        linear::TABLE,
        normal::TABLE,
        pad::TABLE,
        pool::TABLE,
        reduce::TABLE,
        resize::TABLE,
        scatter::TABLE,
        shape::TABLE,
    ];
    let known = |op: &str| families.into_iter().flatten().find(|row| row.0 == op).map(|row| row.1);
    if node.domain.is_empty() { known(&node.op) } else { None }
}

/// What kernels are chosen by.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Bytes of a storage at most.
    pub max_bytes: u64,
    /// Where large products go to matrix units, rounded to float16.
    pub matrix_units: Option<MatrixUnits>,
}

#[derive(Clone, Copy, Debug)]
pub struct MatrixUnits {
    /// Bytes that a workgroup shares at most.
    pub memory: u32,
    /// Multiplications from which products are large.
    pub from: usize,
    /// Multiplications that they have at least for each element that is read or written.
    pub each: usize,
}

/// Lowers a whole graph.
///
/// # Errors
/// [`Error::Executor`] naming the node whose operator, element type or size isn't supported.
pub fn lower(model: &Model, facts: &Facts, target: Target) -> crate::Result<Plan> {
    let graph = &model.graph;
    let mut lowering = Lowering::new(model, facts, target);
    let fail = |what: String| Error::executor("wgpu", what);
    if !is_modern(model) {
        let (is, least) = (model.opset(), WORKING_OPSET);
        return Err(fail(format!(
            "the graph is of opset {is}; kernels know the operators of {least} and later"
        )));
    }
    for input in graph.required_inputs() {
        lowering.input(&input.id, input.fact()).map_err(|e| fail(format!("input '{}': {e}", input.id)))?;
    }
    for node in &graph.nodes {
        lowering
            .node(node)
            .map_err(|e| fail(format!("node '{}' ({}): {e}", node.label(), node.qualified_op())))?;
    }
    for output in &graph.outputs {
        lowering.output(&output.id).map_err(|e| fail(format!("output '{}': {e}", output.id)))?;
    }
    Ok(lowering.plan)
}

/// Whether operators have the forms of [`WORKING_OPSET`].
fn is_modern(model: &Model) -> bool {
    model.opset() >= WORKING_OPSET
}

/// Which nodes of a graph can run here.
pub struct Survey {
    /// By node: why it can't; `None` where it can.
    pub refusals: Vec<Option<String>>,
    /// What is known of values, completed.
    pub facts: Facts,
    /// Whether nothing can: the shape of an input, or of what some node makes, can't be told before running, or the
    /// graph isn't prepared (see `autodiff::prepare`).
    pub unprepared: bool,
}

/// Lowers what can be lowered, as if the rest came from outside.
pub fn survey(model: &Model, facts: &Facts, target: Target) -> Survey {
    let mut lowering = Lowering::new(model, facts, target);
    // Older operators mean something else by the same name.
    let mut unknown = !is_modern(model);
    for input in model.graph.required_inputs() {
        // One that isn't of our types is simply not here.
        let taken = lowering.input(&input.id, input.fact());
        if let (Err(_), Some(fact)) = (taken, input.fact()) {
            lowering.facts.entry(input.id.clone()).or_insert(fact);
        }
        unknown |= !lowering.facts.contains_key(&input.id);
    }
    let mut refusals = vec![];
    for node in &model.graph.nodes {
        let refusal = lowering.node(node).err();
        for output in node.outputs.iter().flatten() {
            unknown |= !lowering.facts.contains_key(output);
            if refusal.is_some() {
                lowering.constants.remove(output);
                // Fails where the type isn't ours; then those who read it can't run here either.
                let _ = lowering.input(output, None);
            }
        }
        refusals.push(refusal);
    }
    refuse_large_crossings(model, &lowering.facts, target.max_bytes, &mut refusals);
    Survey { refusals, facts: lowering.facts, unprepared: unknown }
}

/// A view may be larger than any storage, but not where it has to become one: between a node that runs here and one
/// that doesn't.
fn refuse_large_crossings(model: &Model, facts: &Facts, max_bytes: u64, refusals: &mut [Option<String>]) {
    let large = |id: &ValueId| facts.get(id).is_some_and(|f| (f.len() as u64).saturating_mul(4) > max_bytes);
    let nodes = &model.graph.nodes;
    let mut made_elsewhere = HashSet::new();
    let mut read_elsewhere: HashSet<ValueId> = model.graph.outputs.iter().map(|o| o.id.clone()).collect();
    loop {
        for (node, _) in nodes.iter().zip(refusals.iter()).filter(|(_, r)| r.is_some()) {
            made_elsewhere.extend(node.outputs.iter().flatten().cloned());
            read_elsewhere.extend(node_reads(node));
        }
        let mut changed = false;
        for (node, refusal) in nodes.iter().zip(refusals.iter_mut()).filter(|(_, r)| r.is_none()) {
            let out = node.outputs.iter().flatten().any(|id| large(id) && read_elsewhere.contains(id));
            let into = node_reads(node).iter().any(|id| large(id) && made_elsewhere.contains(id));
            if out || into {
                *refusal = Some("a tensor too large to bind at once would cross".into());
                changed = true;
            }
        }
        if !changed {
            return;
        }
    }
}

/// A graph on its way to a plan.
pub struct Lowering {
    pub plan: Plan,
    values: HashMap<ValueId, Operand>,
    /// Values known before running; they get a storage only when a kernel reads them.
    constants: HashMap<ValueId, Tensor>,
    scalars: HashMap<(Elem, u32), StorageId>,
    /// Tables of whole numbers that kernels read, by contents.
    tables: HashMap<Vec<i32>, StorageId>,
    /// What views are multiplied by before they are rounded to float16 ([`coop::scale`]).
    scales: HashMap<(StorageId, View), Operand>,
    facts: Facts,
    target: Target,
}

/// The graph's side: values by name.
impl Lowering {
    fn new(model: &Model, facts: &Facts, target: Target) -> Self {
        let constants = model.graph.initializers.iter();
        Lowering {
            plan: Plan::default(),
            values: HashMap::new(),
            constants: constants.map(|(id, t)| (id.clone(), t.clone())).collect(),
            scalars: HashMap::new(),
            tables: HashMap::new(),
            scales: HashMap::new(),
            facts: facts.clone(),
            target,
        }
    }
    fn node(&mut self, node: &Node) -> Outcome {
        let lower = rule(node).ok_or("has no kernel")?;
        self.infer(node)?;
        lower(self, node)
    }
    fn input(&mut self, id: &ValueId, declared: Option<Fact>) -> Outcome {
        let fact = self.facts.get(id).cloned().or(declared).ok_or("its shape isn't known before running")?;
        let elem = Elem::of(fact.dtype)?;
        let storage = self.storage(Origin::Input(self.plan.inputs.len()), fact.len())?;
        let view = View::contiguous(&fact.shape);
        self.values.insert(id.clone(), Operand { storage, view, elem });
        self.facts.insert(id.clone(), fact.clone());
        self.plan.inputs.push(fact);
        Ok(())
    }
    /// Declares a graph output: the whole of a storage of its own, row-major.
    fn output(&mut self, id: &ValueId) -> Outcome {
        let operand = self.value(id)?;
        let fact = self.fact(id)?;
        let whole = self.contiguous(&operand)?;
        self.plan.outputs.push((whole.storage, fact));
        Ok(())
    }
    /// Completes the facts of a node's outputs.
    fn infer(&mut self, node: &Node) -> Outcome {
        if node.outputs.iter().flatten().all(|o| self.facts.contains_key(o)) {
            return Ok(());
        }
        for input in node.inputs.iter().flatten() {
            let fact = self.fact(input)?;
            self.facts.insert(input.clone(), fact);
        }
        let operand =
            |id: &ValueId| Some(infer::Operand { fact: self.facts.get(id)?, value: self.constants.get(id) });
        let operands: Vec<_> = node.inputs.iter().map(|i| i.as_ref().and_then(operand)).collect();
        let unknown = "the shape of its output isn't known before running";
        let found = match node.is("Constant") {
            true => shape::constant_tensor(node).map(|t| vec![Fact::of(&t)]),
            false => infer::infer(node, &operands),
        };
        for (output, fact) in node.outputs.iter().zip(found.ok_or(unknown)?) {
            self.facts.extend(output.clone().map(|o| (o, fact)));
        }
        Ok(())
    }
    fn fact(&self, id: &ValueId) -> Outcome<Fact> {
        let constant = || self.constants.get(id).map(Fact::of);
        self.facts
            .get(id)
            .cloned()
            .or_else(constant)
            .ok_or_else(|| format!("the shape of '{id}' isn't known"))
    }
    fn value(&mut self, id: &ValueId) -> Outcome<Operand> {
        if let Some(operand) = self.values.get(id) {
            return Ok(operand.clone());
        }
        let tensor = self.constants.get(id).cloned().ok_or_else(|| format!("'{id}' isn't on the GPU"))?;
        let operand = self.constant(&tensor)?;
        self.values.insert(id.clone(), operand.clone());
        Ok(operand)
    }
    /// Input `i` of a node, which must be there.
    pub fn arg(&mut self, node: &Node, i: usize) -> Outcome<Operand> {
        self.optional(node, i)?.ok_or_else(|| format!("input {i} is missing"))
    }
    pub fn optional(&mut self, node: &Node, i: usize) -> Outcome<Option<Operand>> {
        node.input(i).map(|id| self.value(id)).transpose()
    }
    /// Input `i` as integers known before running; `None` where it is left out.
    pub fn known_ints(&self, node: &Node, i: usize) -> Outcome<Option<Vec<i64>>> {
        let Some(id) = node.input(i) else { return Ok(None) };
        match self.constants.get(id) {
            Some(tensor) => Ok(Some(tensor.to_i64().into_owned())),
            None => Err(format!("input {i} ('{id}') must be a constant")),
        }
    }
    /// Input `i` as numbers known before running.
    pub fn known_floats(&self, node: &Node, i: usize) -> Option<Vec<f64>> {
        Some(self.constants.get(node.input(i)?)?.to_f64())
    }
    /// The shape of output `i`.
    pub fn out_shape(&self, node: &Node, i: usize) -> Outcome<Vec<usize>> {
        let id = node.output(i).ok_or_else(|| format!("output {i} is missing"))?;
        Ok(self.fact(id)?.shape)
    }
    /// Says what output `i` of a node is; nothing happens where nobody wants it.
    pub fn set(&mut self, node: &Node, i: usize, operand: Operand) -> Outcome {
        let Some(id) = node.output(i) else { return Ok(()) };
        let fact = self.fact(id)?;
        if fact.shape != operand.view.shape || Elem::of(fact.dtype)? != operand.elem {
            let (shape, elem) = (&operand.view.shape, operand.elem);
            return Err(format!("output '{id}' should be {fact:?}, but is {elem:?} {shape:?}"));
        }
        self.values.insert(id.clone(), operand);
        Ok(())
    }
    /// Says that output `i` is known before running.
    pub fn set_constant(&mut self, node: &Node, i: usize, tensor: Tensor) {
        self.constants.extend(node.output(i).cloned().map(|id| (id, tensor)));
    }
}

/// The plan's side: operations on operands.
impl Lowering {
    fn storage(&mut self, origin: Origin, len: usize) -> Outcome<StorageId> {
        let bytes = (len as u64).saturating_mul(4);
        if bytes > self.target.max_bytes || len > i32::MAX as usize {
            return Err(format!(
                "a tensor of {} MiB is larger than the {} MiB that this GPU can bind at once",
                bytes >> 20,
                self.target.max_bytes >> 20
            ));
        }
        self.plan.storages.push(Storage { origin, len });
        Ok(self.plan.storages.len() - 1)
    }
    fn constant(&mut self, tensor: &Tensor) -> Outcome<Operand> {
        let elem = Elem::of(tensor.dtype())?;
        let storage = match words(tensor)?.as_slice() {
            &[word] => self.scalar_storage(elem, word)?,
            words => self.storage(Origin::Constant(words.to_vec()), words.len())?,
        };
        Ok(Operand { storage, view: View::contiguous(tensor.shape()), elem })
    }
    fn scalar_storage(&mut self, elem: Elem, word: u32) -> Outcome<StorageId> {
        if let Some(&storage) = self.scalars.get(&(elem, word)) {
            return Ok(storage);
        }
        let storage = self.storage(Origin::Constant(vec![word]), 1)?;
        self.scalars.insert((elem, word), storage);
        Ok(storage)
    }
    /// A number, as an operand without dimensions.
    pub fn scalar(&mut self, value: f32) -> Outcome<Operand> {
        let storage = self.scalar_storage(Elem::F32, value.to_bits())?;
        Ok(Operand { storage, view: View::contiguous(&[]), elem: Elem::F32 })
    }
    /// A size, as an operand without dimensions.
    pub fn scalar_i32(&mut self, value: usize) -> Outcome<Operand> {
        let storage = self.scalar_storage(Elem::I32, value as u32)?;
        Ok(Operand { storage, view: View::contiguous(&[]), elem: Elem::I32 })
    }
    /// A table that a kernel reads; equal ones are one storage.
    pub fn table(&mut self, values: Vec<i32>) -> Outcome<Operand> {
        let len = values.len();
        let storage = match self.tables.get(&values) {
            Some(&storage) => storage,
            None => {
                let words = values.iter().map(|&v| v as u32).collect();
                let storage = self.storage(Origin::Constant(words), len)?;
                self.tables.insert(values, storage);
                storage
            }
        };
        Ok(Operand { storage, view: View::contiguous(&[len]), elem: Elem::I32 })
    }
    /// 0, 1, 2… along `axis` of a tensor of `rank` dimensions, the others of size 1.
    pub fn counter(&mut self, rank: usize, axis: usize, count: usize) -> Outcome<Operand> {
        let table = self.table((0..count as i32).collect())?;
        let mut shape = vec![1; rank];
        shape[axis] = count;
        self.reshape(&table, &shape)
    }
    fn fresh(&mut self, elem: Elem, shape: &[usize]) -> Outcome<Operand> {
        let len = crate::onnx::element_count(shape).unwrap_or(usize::MAX);
        let storage = self.storage(Origin::Computed, len)?;
        Ok(Operand { storage, view: View::contiguous(shape), elem })
    }
    /// Repeats dimensions of size 1 up to `shape`.
    pub fn broadcast(&self, operand: &Operand, shape: &[usize]) -> Outcome<Operand> {
        match infer::broadcast(&operand.view.shape, shape).is_some_and(|wide| wide == shape) {
            true => Ok(Operand { view: operand.view.broadcast(shape), ..operand.clone() }),
            false => Err(format!("shape {:?} doesn't broadcast to {shape:?}", operand.view.shape)),
        }
    }
    /// `expr` applied elementwise to operands that broadcast to each other.
    pub fn map(&mut self, expr: &'static str, inputs: &[&Operand], elem: Elem) -> Outcome<Operand> {
        let mut shape = vec![];
        for input in inputs {
            shape = infer::broadcast(&shape, &input.view.shape).ok_or("inputs don't broadcast")?;
        }
        let widen = |o: &&Operand| Operand { view: o.view.broadcast(&shape), ..(*o).clone() };
        let inputs = inputs.iter().map(widen).collect();
        let out = self.fresh(elem, &shape)?;
        self.plan.ops.push(Op::Map(Map { expr, inputs, out: out.storage, elem, shape }));
        Ok(out)
    }
    /// `expr` of float32 operands.
    pub fn map_f32(&mut self, expr: &'static str, inputs: &[&Operand]) -> Outcome<Operand> {
        self.map(expr, inputs, Elem::F32)
    }
    /// Adds a dispatch; nothing where there is nothing to compute.
    pub fn call(
        &mut self,
        kernel: Kernel,
        values: &[(&str, &str)],
        params: Vec<i32>,
        reads: &[&Operand],
        writes: &[&Operand],
        groups: usize,
    ) {
        if groups > 0 {
            self.plan.ops.push(Op::Call(Call {
                source: kernel.expand(values),
                params,
                reads: reads.iter().map(|o| o.storage).collect(),
                writes: writes.iter().map(|o| o.storage).collect(),
                groups,
                tiling: None,
            }));
        }
    }
    /// [`Lowering::call`] of a kernel by tiles.
    pub fn call_tiled(&mut self, tiling: Tiling, params: Vec<i32>, reads: &[&Operand], writes: &[&Operand]) {
        if let Some(own) = tiling.forms.first().filter(|form| form.groups > 0) {
            self.plan.ops.push(Op::Call(Call {
                source: own.source(),
                params,
                reads: reads.iter().map(|o| o.storage).collect(),
                writes: writes.iter().map(|o| o.storage).collect(),
                groups: own.groups,
                tiling: Some(Arc::new(tiling)),
            }));
        }
    }
    /// Copies `from` into the part of `to`'s storage that its view describes.
    pub fn copy(&mut self, from: &Operand, to: &Operand) {
        let walk = Walk::new(&from.view.shape, &[&from.view.strides, &to.view.strides]);
        if let Some(axes) = turned(&walk) {
            return self.copy_turned(from, to, &walk, axes);
        }
        let n = from.view.len();
        let mut params = vec![n as i32, walk.rank(), from.view.offset, to.view.offset];
        params.extend(walk.dims.iter().chain(walk.strides.iter().flatten()));
        let width = if walk.dims.last().is_some_and(|&d| d % WIDE as i32 == 0) { WIDE } else { 1 };
        let offsets = [from.view.offset, to.view.offset];
        let vectors = width == WIDE
            && walk.strides.iter().zip(offsets).all(|(strides, offset)| lies_in_vectors(strides, offset));
        let values = [
            ("width", width.to_string()),
            ("type", if vectors { "vec4<u32>" } else { "u32" }.to_owned()),
            ("vectors", usize::from(vectors).to_string()),
            ("scalars", if vectors { 0 } else { width }.to_string()),
        ];
        let values = values.each_ref().map(|(name, value)| (*name, value.as_str()));
        self.call(kernel::COPY, &values, params, &[from], &[to], (n / width).div_ceil(GROUP));
    }
    /// [`Lowering::copy`] of a walk that is dense along `axes[0]` in one operand, along `axes[1]` in the other.
    fn copy_turned(&mut self, from: &Operand, to: &Operand, walk: &Walk, [row, column]: [usize; 2]) {
        let rest: Vec<usize> = (0..walk.dims.len()).filter(|&i| i != row && i != column).collect();
        let of = |values: &[i32]| rest.iter().map(|&i| values[i]).collect::<Vec<i32>>();
        let batches: i32 = of(&walk.dims).iter().product();
        let (rows, columns) = (walk.dims[row], walk.dims[column]);
        let mut params = vec![rows, columns, from.view.offset, to.view.offset];
        params.extend([walk.strides[0][column], walk.strides[1][row], batches, rest.len() as i32]);
        params.extend([of(&walk.dims), of(&walk.strides[0]), of(&walk.strides[1])].concat());
        let squares = (rows as usize).div_ceil(SQUARE) * (columns as usize).div_ceil(SQUARE);
        let lines = TURNING / SQUARE;
        let values = [("side", SQUARE), ("lines", lines), ("moves", SQUARE / lines)];
        let values = values.map(|(name, value)| (name, value.to_string()));
        let values = values.each_ref().map(|(name, value)| (*name, value.as_str()));
        self.call(kernel::COPY_TURNED, &values, params, &[from], &[to], batches as usize * squares);
    }
    /// The same values as the whole of a storage, row-major.
    pub fn contiguous(&mut self, operand: &Operand) -> Outcome<Operand> {
        let whole = self.plan.storages[operand.storage].len == operand.view.len();
        if whole && operand.view.is_contiguous() {
            return Ok(operand.clone());
        }
        let row_major = View::contiguous(&operand.view.shape);
        let walk = Walk::new(&operand.view.shape, &[&operand.view.strides, &row_major.strides]);
        if turned(&walk).is_none() {
            return self.map(COPY, &[operand], operand.elem);
        }
        let to = self.fresh(operand.elem, &operand.view.shape)?;
        self.copy(operand, &to);
        Ok(to)
    }
    /// What `operand` is a row-major copy of, where it is one.
    pub fn copied_from(&self, operand: &Operand) -> Option<Operand> {
        let made = self.plan.ops.iter().rev().find_map(|op| match op {
            Op::Map(map) if map.out == operand.storage => Some(map),
            _ => None,
        })?;
        let whole =
            operand.view.is_contiguous() && operand.view.len() == made.shape.iter().product::<usize>();
        (made.expr == COPY && whole).then(|| made.inputs.first().cloned()).flatten()
    }
    /// The same values in another shape; copies only where strides can't express it.
    pub fn reshape(&mut self, operand: &Operand, shape: &[usize]) -> Outcome<Operand> {
        if crate::onnx::element_count(shape) != Some(operand.view.len()) {
            return Err(format!("elements of shape {:?} can't fill the shape {shape:?}", operand.view.shape));
        }
        let view = match operand.view.reshaped(shape) {
            Some(view) => view,
            None => {
                let copy = self.contiguous(operand)?;
                return Ok(Operand { view: View::contiguous(shape), ..copy });
            }
        };
        Ok(Operand { view, ..operand.clone() })
    }
}

/// An elementwise operation that changes nothing.
const COPY: &str = "{0}";

/// Rows and columns that a workgroup of `copy_turned.wgsl` moves.
const SQUARE: usize = 32;
/// Its invocations.
const TURNING: usize = 256;

/// The axes along which the first and the second operand are dense, where they are different ones and both long.
fn turned(walk: &Walk) -> Option<[usize; 2]> {
    let long = |axis: &usize| walk.dims[*axis] as usize >= SQUARE / 2;
    let dense = |strides: &[i32]| strides.iter().position(|&s| s == 1).filter(long);
    match (dense(&walk.strides[0])?, dense(&walk.strides[1])?) {
        (row, column) if row != column => Some([row, column]),
        _ => None,
    }
}

/// Axis attribute or input, counted from the front.
fn axis_of(axis: i64, rank: usize) -> Outcome<usize> {
    normalise_axis(axis, rank).ok_or_else(|| format!("axis {axis} is outside the {rank} dimensions"))
}

/// The element type as this module's kernels need it.
fn expect_f32(operand: &Operand) -> Outcome {
    match operand.elem {
        Elem::F32 => Ok(()),
        other => Err(format!("float32 is needed, not {other:?}")),
    }
}
