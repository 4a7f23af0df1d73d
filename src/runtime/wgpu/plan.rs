//! What a graph becomes before it meets a device: storages, and the operations on them in order.
//!
//! Made by [`super::lower`], fused by [`super::fuse`], given memory by [`super::program`]. Look at [`Plan`].

use super::kernel::Kernel;
use super::view::View;
use crate::onnx::{DType, Fact, Tensor};
use std::sync::Arc;

/// An element type on the device; each takes one 32-bit word.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Elem {
    F32,
    /// Also int64: values beyond 32 bits are refused at upload.
    I32,
    /// 0 or 1.
    Bool,
}

impl Elem {
    pub fn of(dtype: DType) -> Result<Self, String> {
        match dtype {
            DType::F32 => Ok(Elem::F32),
            DType::I32 | DType::I64 => Ok(Elem::I32),
            DType::Bool => Ok(Elem::Bool),
            other => {
                Err(format!("{other} tensors are not supported on the GPU (float32, int32, int64, bool are)"))
            }
        }
    }
    /// Its name in WGSL.
    pub fn wgsl(self) -> &'static str {
        match self {
            Elem::F32 => "f32",
            Elem::I32 => "i32",
            Elem::Bool => "u32",
        }
    }
    /// In WGSL, the type of `width` of them next to each other.
    pub fn vector(self, width: usize) -> String {
        match width {
            1 => self.wgsl().to_owned(),
            width => format!("vec{width}<{}>", self.wgsl()),
        }
    }
}

/// A tensor's elements as 32-bit words, as kernels see them.
pub fn words(tensor: &Tensor) -> Result<Vec<u32>, String> {
    Ok(match tensor.dtype() {
        DType::F32 | DType::I32 => tensor.elements::<u32>().into_owned(),
        DType::Bool => tensor.bytes().iter().map(|&b| (b != 0) as u32).collect(),
        DType::I64 => {
            let narrow = |&v: &i64| i32::try_from(v).map(|v| v as u32);
            let values: Result<_, _> = tensor.to_i64().iter().map(narrow).collect();
            values.map_err(|_| {
                "an int64 value doesn't fit the 32 bits that integers have on the GPU".to_owned()
            })?
        }
        other => return Err(Elem::of(other).err().unwrap_or_default()),
    })
}

/// The tensor of type and shape `fact` whose words are given.
pub fn from_words(fact: &Fact, words: &[u32]) -> Option<Tensor> {
    let bytes = match fact.dtype {
        DType::F32 | DType::I32 => bytemuck::cast_slice(words).to_vec(),
        DType::Bool => words.iter().map(|&w| (w != 0) as u8).collect(),
        DType::I64 => words.iter().flat_map(|&w| (w as i32 as i64).to_le_bytes()).collect(),
        _ => return None,
    };
    Tensor::new(fact.dtype, &fact.shape, bytes).ok()
}

/// An index into [`Plan::storages`].
pub type StorageId = usize;

/// Where a storage's contents come from.
#[derive(Clone, PartialEq, Debug)]
pub enum Origin {
    /// The program's input of this position.
    Input(usize),
    Constant(Vec<u32>),
    Computed,
}

/// A run of elements in device memory.
#[derive(Clone, PartialEq, Debug)]
pub struct Storage {
    pub origin: Origin,
    pub len: usize,
}

/// A value: a view of a storage.
#[derive(Clone, PartialEq, Debug)]
pub struct Operand {
    pub storage: StorageId,
    pub view: View,
    pub elem: Elem,
}

/// An elementwise operation: `out[i] = expr(inputs[i] …)`, with inputs already broadcast to `shape`.
#[derive(Clone, PartialEq, Debug)]
pub struct Map {
    /// WGSL, with `{0}`, `{1}`… for the inputs.
    pub expr: &'static str,
    pub inputs: Vec<Operand>,
    pub out: StorageId,
    pub elem: Elem,
    pub shape: Vec<usize>,
}

/// How values become one: `finish(combine over all v of map(v))`. All are WGSL, `map` an expression of `v`, `combine` of `a` and
/// `b`, `finish` of `v` and `len`, which is how many values there were.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Kind {
    pub map: &'static str,
    pub combine: &'static str,
    pub finish: &'static str,
    /// What combining starts from.
    pub start: f32,
    pub start_i32: i32,
}

/// A reduction of float32 rows: `out[i] = kind of input[i, j] over all j`.
#[derive(Clone, PartialEq, Debug)]
pub struct Fold {
    pub kind: Kind,
    /// Its last dimensions are a row's.
    pub input: Operand,
    pub rows: usize,
    pub out: StorageId,
}

/// One dispatch of a kernel.
#[derive(Clone, PartialEq, Debug)]
pub struct Call {
    /// The expanded WGSL but for where parameters stand ([`super::kernel`]).
    pub source: String,
    pub params: Vec<i32>,
    pub reads: Vec<StorageId>,
    pub writes: Vec<StorageId>,
    /// Number of workgroups.
    pub groups: usize,
    /// Where it is computed by tiles: those that could.
    pub tiling: Option<Arc<Tiling>>,
}

/// Kernels by tiles of different sizes, for the same parameters and tensors. Whichever computes it, an element is summed in the
/// same order, so that results are the same bit by bit.
#[derive(Clone, PartialEq, Debug)]
pub struct Tiling {
    /// Multiplications with an addition each.
    pub work: usize,
    /// The first is the call's own.
    pub forms: Vec<Form>,
}

/// A kernel by tiles of one size.
#[derive(Clone, PartialEq, Debug)]
pub struct Form {
    /// Height and width of a tile, in those of the smallest.
    pub tile: [usize; 2],
    pub kernel: Kernel,
    /// What the kernel's placeholders are filled with.
    pub values: Vec<(&'static str, String)>,
    /// Number of workgroups.
    pub groups: usize,
}

impl Form {
    /// The kernel's expanded text, whose name says the tile.
    pub fn source(&self) -> String {
        let ([down, across], name) = (self.tile, self.kernel.name);
        let values: Vec<(&str, &str)> =
            self.values.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.kernel.expand(&values).replacen(name, &format!("{name} {down}×{across}"), 1)
    }
}

impl Call {
    /// Has it computed by another of its forms.
    pub fn take(&mut self, form: &Form) {
        (self.source, self.groups) = (form.source(), form.groups);
    }
    /// What it binds, in order.
    pub fn tensors(&self) -> impl Iterator<Item = StorageId> {
        self.reads.iter().chain(&self.writes).copied()
    }
}

#[derive(Clone, PartialEq, Debug)]
pub enum Op {
    Map(Map),
    Fold(Fold),
    Call(Call),
}

/// A lowered graph.
#[derive(Default, Debug)]
pub struct Plan {
    pub storages: Vec<Storage>,
    pub ops: Vec<Op>,
    pub inputs: Vec<Fact>,
    /// Each output is the whole of a storage.
    pub outputs: Vec<(StorageId, Fact)>,
}

impl Plan {
    /// Drops the operations whose results nobody reads.
    pub fn prune(&mut self) {
        let mut needed = vec![false; self.storages.len()];
        self.outputs.iter().for_each(|&(s, _)| needed[s] = true);
        let mut keep = vec![false; self.ops.len()];
        for (op, keep) in self.ops.iter().zip(&mut keep).rev() {
            *keep = match op {
                Op::Map(map) => needed[map.out],
                Op::Fold(fold) => needed[fold.out],
                Op::Call(call) => call.writes.iter().any(|&w| needed[w]),
            };
            if *keep {
                match op {
                    Op::Map(map) => map.inputs.iter().for_each(|i| needed[i.storage] = true),
                    Op::Fold(fold) => needed[fold.input.storage] = true,
                    // What it writes may hold what an earlier call wrote, too.
                    Op::Call(call) => call.reads.iter().chain(&call.writes).for_each(|&s| needed[s] = true),
                }
            }
        }
        let mut keep = keep.into_iter();
        self.ops.retain(|_| keep.next().unwrap_or(true));
    }
    /// How often each storage is read, outputs included.
    pub fn uses(&self) -> Vec<usize> {
        let mut uses = vec![0; self.storages.len()];
        for op in &self.ops {
            match op {
                Op::Map(map) => map.inputs.iter().for_each(|i| uses[i.storage] += 1),
                Op::Fold(fold) => uses[fold.input.storage] += 1,
                Op::Call(call) => call.reads.iter().for_each(|&r| uses[r] += 1),
            }
        }
        self.outputs.iter().for_each(|&(s, _)| uses[s] += 1);
        uses
    }
}
