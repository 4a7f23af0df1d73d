//! Fuses elementwise operations into as few kernels as their dependencies allow.
//!
//! Operations are placed one after the other. An elementwise one joins an earlier kernel of the same shape
//! when all it reads is there by then: what that kernel itself computes stays in registers, what others
//! computed before is read through strides. Kernels are written so that equal chains get equal texts, and so
//! share one pipeline. Knows no device. Look at [`fuse`].

use super::kernel::ELEMENTWISE;
use super::lower::GROUP;
use super::plan::{Call, Elem, Map, Op, Operand, Origin, Plan, StorageId};
use super::view::{View, Walk};
use std::collections::HashMap;
use std::fmt::Write;

/// Operations in one kernel at most: drivers compile long kernels slowly.
const MAX_OPERATIONS: usize = 40;
/// How far back a kernel to join is looked for.
const LOOK_BACK: usize = 64;

/// The plan's operations as kernel calls, in order. No kernel binds more than `max_buffers` tensors.
pub fn fuse(plan: &Plan, max_buffers: usize) -> Vec<Call> {
    let mut fuser = Fuser {
        plan,
        uses: plan.uses(),
        ready: vec![None; plan.storages.len()],
        placed: vec![],
        max_buffers,
    };
    for op in &plan.ops {
        fuser.place(op);
    }
    let Fuser { placed, uses, .. } = fuser;
    placed
        .into_iter()
        .map(|step| match step {
            Placed::Call(call) => call,
            Placed::Group(group) => group.into_call(plan, &uses),
        })
        .collect()
}

enum Placed {
    Call(Call),
    Group(Group),
}

struct Fuser<'a> {
    plan: &'a Plan,
    uses: Vec<usize>,
    /// Which placed step makes a storage complete.
    ready: Vec<Option<usize>>,
    placed: Vec<Placed>,
    max_buffers: usize,
}

impl Fuser<'_> {
    fn place(&mut self, op: &Op) {
        let map = match op {
            Op::Call(call) => {
                call.writes.iter().for_each(|&w| self.ready[w] = Some(self.placed.len()));
                return self.placed.push(Placed::Call(call.clone()));
            }
            Op::Map(map) if map.shape.contains(&0) => return,
            Op::Map(map) => map,
        };
        let at = self.host(map).unwrap_or_else(|| {
            self.placed.push(Placed::Group(Group::new(&map.shape)));
            self.placed.len() - 1
        });
        self.ready[map.out] = Some(at);
        if let Placed::Group(group) = &mut self.placed[at] {
            group.add(self.plan, map);
        }
    }
    /// The kernel that `map` can join: the first that can have it, among those it depends on or shares an
    /// operand with.
    fn host(&self, map: &Map) -> Option<usize> {
        let shape = squeezed(&map.shape);
        let earliest = map.inputs.iter().filter_map(|i| self.ready[i.storage]).max().unwrap_or(0);
        let from = earliest.max(self.placed.len().saturating_sub(LOOK_BACK));
        (from..self.placed.len()).find(|&at| match &self.placed[at] {
            Placed::Group(group) if group.shape == shape => {
                self.fits(group, at, map) && map.inputs.iter().any(|i| group.touches(i.storage))
            }
            _ => false,
        })
    }
    fn fits(&self, group: &Group, at: usize, map: &Map) -> bool {
        let there = |i: &Operand| match self.ready[i.storage] {
            Some(made) if made == at => group.local(i).is_some(),
            Some(made) => made < at,
            None => true,
        };
        let new =
            |i: &&Operand| group.local(i).is_none() && !group.reads(i.storage) && !is_number(self.plan, i);
        let added = map.inputs.iter().filter(new).count() + 1;
        let buffers = group.buffers() + group.pending(&self.uses) + added;
        group.operations < MAX_OPERATIONS && buffers <= self.max_buffers && map.inputs.iter().all(there)
    }
}

/// A kernel in the making.
struct Group {
    /// Without dimensions of size 1.
    shape: Vec<usize>,
    /// What is read from memory, in order of first use: storage, strides or `None` for row-major, element type.
    loads: Vec<Load>,
    /// Numbers known before running: the words.
    numbers: Vec<u32>,
    /// What is computed: storage, element type, how often the group itself reads it.
    made: Vec<(StorageId, Elem, usize)>,
    body: String,
    operations: usize,
    names: HashMap<StorageId, String>,
}

#[derive(PartialEq)]
struct Load {
    storage: StorageId,
    view: Option<View>,
    elem: Elem,
}

impl Group {
    fn new(shape: &[usize]) -> Self {
        Group {
            shape: squeezed(shape),
            loads: vec![],
            numbers: vec![],
            made: vec![],
            body: String::new(),
            operations: 0,
            names: HashMap::new(),
        }
    }
    /// The variable that already holds an operand computed here.
    fn local(&self, operand: &Operand) -> Option<&String> {
        let whole = operand.view.is_contiguous() && squeezed(&operand.view.shape) == self.shape;
        self.names.get(&operand.storage).filter(|_| whole)
    }
    fn reads(&self, storage: StorageId) -> bool {
        self.loads.iter().any(|load| load.storage == storage)
    }
    fn touches(&self, storage: StorageId) -> bool {
        self.reads(storage) || self.names.contains_key(&storage)
    }
    /// Buffers read.
    fn buffers(&self) -> usize {
        let mut storages: Vec<_> = self.loads.iter().map(|load| load.storage).collect();
        storages.sort_unstable();
        storages.dedup();
        storages.len()
    }
    /// Values computed here that others read (or may come to read).
    fn pending(&self, uses: &[usize]) -> usize {
        self.made.iter().filter(|(storage, _, inside)| uses[*storage] > *inside).count()
    }
    fn add(&mut self, plan: &Plan, map: &Map) {
        let mut expr = map.expr.to_owned();
        for (i, input) in map.inputs.iter().enumerate() {
            let name = self.operand(plan, input);
            expr = expr.replace(&format!("{{{i}}}"), &name);
        }
        let name = format!("v{}", self.made.len());
        let _ = writeln!(self.body, "    let {name}: {} = {expr};", map.elem.wgsl());
        self.names.insert(map.out, name);
        self.made.push((map.out, map.elem, 0));
        self.operations += 1;
    }
    /// The variable of an operand, loaded if it isn't yet.
    fn operand(&mut self, plan: &Plan, operand: &Operand) -> String {
        if let Some(name) = self.local(operand).cloned() {
            if let Some(made) = self.made.iter_mut().find(|made| made.0 == operand.storage) {
                made.2 += 1;
            }
            return name;
        }
        if let Some(word) = number(plan, operand) {
            let at = self.numbers.iter().position(|&w| w == word).unwrap_or_else(|| {
                self.numbers.push(word);
                self.numbers.len() - 1
            });
            return match operand.elem {
                Elem::F32 => format!("param_f32({})", at + 2),
                Elem::I32 => format!("param({})", at + 2),
                Elem::Bool => format!("u32(param({}))", at + 2),
            };
        }
        let keep: Vec<usize> = (0..operand.view.rank()).filter(|&i| operand.view.shape[i] != 1).collect();
        let plain = operand.view.is_contiguous();
        let view = (!plain).then(|| operand.view.permuted(&keep));
        let load = Load { storage: operand.storage, view, elem: operand.elem };
        let at = self.loads.iter().position(|l| *l == load).unwrap_or_else(|| {
            self.loads.push(load);
            self.loads.len() - 1
        });
        format!("a{at}")
    }
    /// The kernel's text, parameters and buffers.
    fn into_call(self, plan: &Plan, uses: &[usize]) -> Call {
        let n: usize = self.shape.iter().product();
        let strided: Vec<&View> = self.loads.iter().filter_map(|load| load.view.as_ref()).collect();
        let strides: Vec<&[i32]> = strided.iter().map(|view| view.strides.as_slice()).collect();
        let walk = Walk::new(&self.shape, &strides);
        let mut params = vec![n as i32, walk.rank()];
        params.extend(self.numbers.iter().map(|&word| word as i32));
        params.extend(&walk.dims);
        for (view, strides) in strided.iter().zip(&walk.strides) {
            params.push(view.offset);
            params.extend(strides);
        }
        let mut reads: Vec<StorageId> = vec![];
        let mut bindings = String::new();
        for load in &self.loads {
            if !reads.contains(&load.storage) {
                let _ = binding(&mut bindings, "read", "x", reads.len(), reads.len() + 1, load.elem);
                reads.push(load.storage);
            }
        }
        let (mut writes, mut stores) = (vec![], String::new());
        for (i, &(storage, elem, inside)) in self.made.iter().enumerate() {
            if uses[storage] > inside {
                let at = reads.len() + writes.len() + 1;
                let _ = binding(&mut bindings, "read_write", "y", writes.len(), at, elem);
                let _ = writeln!(stores, "    y{}[i] = v{i};", writes.len());
                writes.push(storage);
            }
        }
        let loads = self.load_text(&reads);
        let values = [("bindings", &bindings), ("loads", &loads), ("body", &self.body), ("stores", &stores)];
        let values = values.map(|(name, text)| (name, text.trim_end()));
        debug_assert!(plan.storages.len() == uses.len());
        Call {
            source: ELEMENTWISE.expand(params.len(), &values),
            params,
            reads,
            // A group whose results nobody reads computes nothing.
            groups: if writes.is_empty() { 0 } else { n.div_ceil(GROUP) },
            writes,
        }
    }
    /// Reads every operand into its variable; strided ones walk the dimensions together.
    fn load_text(&self, reads: &[StorageId]) -> String {
        let mut text = String::new();
        let buffer = |storage| reads.iter().position(|&r| r == storage).unwrap_or(0);
        let strided: Vec<usize> = (0..self.loads.len()).filter(|&i| self.loads[i].view.is_some()).collect();
        if !strided.is_empty() {
            let sizes = 2 + self.numbers.len();
            let _ = writeln!(text, "    let rank = param(1);\n    var rest = i;");
            for (k, i) in strided.iter().enumerate() {
                let _ = writeln!(text, "    let o{i} = {sizes} + rank + {k} * (rank + 1);");
                let _ = writeln!(text, "    var at{i} = param(o{i});");
            }
            let _ = writeln!(text, "    for (var d = rank - 1; d >= 0; d--) {{");
            let _ =
                writeln!(text, "        let size = param({sizes} + d);\n        let quotient = rest / size;");
            let _ = writeln!(text, "        let c = rest - quotient * size;\n        rest = quotient;");
            for i in &strided {
                let _ = writeln!(text, "        at{i} += c * param(o{i} + 1 + d);");
            }
            let _ = writeln!(text, "    }}");
        }
        for (i, load) in self.loads.iter().enumerate() {
            let at = if load.view.is_some() { format!("at{i}") } else { "i".into() };
            let _ = writeln!(text, "    let a{i} = x{}[{at}];", buffer(load.storage));
        }
        text
    }
}

fn binding(
    out: &mut String,
    access: &str,
    prefix: &str,
    k: usize,
    at: usize,
    elem: Elem,
) -> std::fmt::Result {
    let ty = elem.wgsl();
    writeln!(out, "@group(0) @binding({at}) var<storage, {access}> {prefix}{k}: array<{ty}>;")
}

fn squeezed(shape: &[usize]) -> Vec<usize> {
    shape.iter().copied().filter(|&d| d != 1).collect()
}

/// The word of an operand that is one number known before running.
fn number(plan: &Plan, operand: &Operand) -> Option<u32> {
    match &plan.storages[operand.storage].origin {
        Origin::Constant(words) if words.len() == 1 => words.first().copied(),
        _ => None,
    }
}

fn is_number(plan: &Plan, operand: &Operand) -> bool {
    number(plan, operand).is_some()
}
