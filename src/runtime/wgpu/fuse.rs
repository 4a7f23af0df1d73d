//! Fuses elementwise operations into as few kernels as their dependencies allow.
//!
//! Operations are placed one after the other. An elementwise one joins an earlier kernel of the same shape
//! when all it reads is there by then: what that kernel itself computes stays in registers, what others
//! computed before is read through strides. Kernels are written so that equal chains get equal texts, and so
//! share one pipeline. Knows no device. Look at [`fuse`].

use super::kernel::ELEMENTWISE;
use super::lower::GROUP;
use super::plan::{Call, Elem, Map, Op, Operand, Origin, Plan, StorageId};
use super::view::{View, WIDE, Walk, lies_in_vectors};
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
        for load in &self.loads {
            if !reads.contains(&load.storage) {
                reads.push(load.storage);
            }
        }
        let written = |&(storage, _, inside): &(StorageId, Elem, usize)| uses[storage] > inside;
        let writes: Vec<StorageId> = self.made.iter().filter(|m| written(m)).map(|m| m.0).collect();
        let width = match n.is_multiple_of(WIDE) && walk.dims.last().is_none_or(|&d| d % WIDE as i32 == 0) {
            true => WIDE,
            false => 1,
        };
        let text = Text { group: &self, reads: &reads, walk: &walk, width, written: &written };
        let (bindings, chain) = (text.bindings(), text.chain());
        let (loads, stores) = (text.loads(), text.stores());
        let values = [("bindings", &bindings), ("chain", &chain), ("loads", &loads), ("stores", &stores)];
        let values = values.map(|(name, text)| (name, text.trim_end()));
        let width_text = width.to_string();
        let values = [&values[..], &[("width", &width_text)]].concat();
        debug_assert!(plan.storages.len() == uses.len());
        Call {
            source: ELEMENTWISE.expand(&values),
            params,
            reads,
            // A group whose results nobody reads computes nothing.
            groups: if writes.is_empty() { 0 } else { (n / width).div_ceil(GROUP) },
            writes,
        }
    }
}

/// The changing parts of a group's kernel.
struct Text<'a> {
    group: &'a Group,
    reads: &'a [StorageId],
    walk: &'a Walk,
    /// Elements that an invocation computes, next to each other.
    width: usize,
    written: &'a dyn Fn(&(StorageId, Elem, usize)) -> bool,
}

/// How an invocation's neighbouring elements of an operand lie.
#[derive(Clone, Copy, PartialEq)]
enum Lie {
    /// As one vector.
    Vector,
    /// All are one.
    Same,
    /// As elements a stride apart.
    Elements,
}

impl Text<'_> {
    fn strided(&self) -> Vec<usize> {
        (0..self.group.loads.len()).filter(|&i| self.group.loads[i].view.is_some()).collect()
    }
    fn buffer(&self, storage: StorageId) -> usize {
        self.reads.iter().position(|&r| r == storage).unwrap_or(0)
    }
    fn lie(&self, i: usize) -> Lie {
        let Some(k) = self.strided().iter().position(|&s| s == i) else { return Lie::Vector };
        let offset = self.group.loads[i].view.as_ref().map_or(0, |view| view.offset);
        match self.walk.strides[k].split_last() {
            _ if lies_in_vectors(&self.walk.strides[k], offset) => Lie::Vector,
            Some((0, _)) | None => Lie::Same,
            _ => Lie::Elements,
        }
    }
    /// A buffer is read by vectors where everybody reads it so.
    fn by_vectors(&self, storage: StorageId) -> bool {
        let loads = (0..self.group.loads.len()).filter(|&i| self.group.loads[i].storage == storage);
        self.width == WIDE && loads.into_iter().all(|i| self.lie(i) == Lie::Vector)
    }
    fn vector(elem: Elem) -> String {
        format!("vec{WIDE}<{}>", elem.wgsl())
    }
    fn bindings(&self) -> String {
        let mut text = String::new();
        let mut binding = |access: &str, name: String, ty: String| {
            let at = text.lines().count() + 1;
            let _ = writeln!(text, "@group(0) @binding({at}) var<storage, {access}> {name}: array<{ty}>;");
        };
        for (k, &storage) in self.reads.iter().enumerate() {
            let elem = self.group.loads.iter().find(|l| l.storage == storage).map_or(Elem::F32, |l| l.elem);
            let ty = if self.by_vectors(storage) { Self::vector(elem) } else { elem.wgsl().to_owned() };
            binding("read", format!("x{k}"), ty);
        }
        for (k, made) in self.group.made.iter().filter(|m| (self.written)(m)).enumerate() {
            let ty = if self.width == WIDE { Self::vector(made.1) } else { made.1.wgsl().to_owned() };
            binding("read_write", format!("y{k}"), ty);
        }
        text
    }
    /// The chain for one element, as a function of its operands that returns what is written.
    fn chain(&self) -> String {
        let mut text = String::from("struct Results {\n");
        let made = || self.group.made.iter().enumerate().filter(|(_, m)| (self.written)(m));
        for (i, (_, elem, _)) in made() {
            let _ = writeln!(text, "    v{i}: {},", elem.wgsl());
        }
        let operands: Vec<String> = (self.group.loads.iter().enumerate())
            .map(|(i, load)| format!("a{i}: {}", load.elem.wgsl()))
            .collect();
        let results: Vec<String> = made().map(|(i, _)| format!("v{i}")).collect();
        let _ = writeln!(text, "}}\n\nfn chain({}) -> Results {{", operands.join(", "));
        text.push_str(&self.group.body);
        let _ = writeln!(text, "    return Results({});\n}}", results.join(", "));
        text
    }
    /// Reads the operands of every element into variables; strided ones walk the dimensions together.
    fn loads(&self) -> String {
        let mut text = String::new();
        let strided = self.strided();
        if !strided.is_empty() {
            let sizes = 2 + self.group.numbers.len();
            let _ = writeln!(text, "    let rank = param(1);\n    var rest = first;");
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
        for (i, load) in self.group.loads.iter().enumerate() {
            let x = format!("x{}", self.buffer(load.storage));
            let at = if load.view.is_some() { format!("at{i}") } else { "first".into() };
            if self.by_vectors(load.storage) {
                let _ = writeln!(text, "    let whole{i} = {x}[{at} / {WIDE}];");
            }
            let step = match self.lie(i) {
                Lie::Elements => format!("param(o{i} + rank)"),
                _ => "1".to_owned(),
            };
            for e in 0..self.width {
                let _ = match self.by_vectors(load.storage) {
                    true => writeln!(text, "    let a{i}_{e} = whole{i}[{e}];"),
                    false if e > 0 && self.lie(i) == Lie::Same => {
                        writeln!(text, "    let a{i}_{e} = a{i}_0;")
                    }
                    false if e > 0 => writeln!(text, "    let a{i}_{e} = {x}[{at} + {e} * {step}];"),
                    false => writeln!(text, "    let a{i}_{e} = {x}[{at}];"),
                };
            }
        }
        text
    }
    fn stores(&self) -> String {
        let mut text = String::new();
        for e in 0..self.width {
            let operands: Vec<String> = (0..self.group.loads.len()).map(|i| format!("a{i}_{e}")).collect();
            let _ = writeln!(text, "    let r{e} = chain({});", operands.join(", "));
        }
        let made = self.group.made.iter().enumerate().filter(|(_, m)| (self.written)(m));
        for (k, (i, (_, elem, _))) in made.enumerate() {
            let parts: Vec<String> = (0..self.width).map(|e| format!("r{e}.v{i}")).collect();
            let _ = match self.width {
                1 => writeln!(text, "    y{k}[first] = r0.v{i};"),
                _ => writeln!(
                    text,
                    "    y{k}[first / {WIDE}] = {}({});",
                    Self::vector(*elem),
                    parts.join(", ")
                ),
            };
        }
        text
    }
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
