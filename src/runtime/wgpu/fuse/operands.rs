//! How a kernel's text names its tensors, and reads them by vectors where it can.

use super::Group;
use crate::runtime::wgpu::plan::{Elem, StorageId};
use crate::runtime::wgpu::view::WIDE;

/// How an invocation's neighbouring elements of an operand lie.
#[derive(Clone, Copy, PartialEq)]
pub enum Lie {
    /// As one vector.
    Vector,
    /// All are one.
    Same,
    /// As elements a stride apart.
    Elements,
}

/// What a group reads: its loads, and the buffers that these are in.
pub struct Operands<'a> {
    group: &'a Group<'a>,
    /// Elements next to each other that an invocation has to do with.
    width: usize,
    /// By load.
    pub lies: Vec<Lie>,
    /// In the order of their bindings.
    pub storages: Vec<StorageId>,
}

impl<'a> Operands<'a> {
    pub fn new(group: &'a Group<'a>, width: usize, lies: Vec<Lie>) -> Self {
        Operands { group, width, lies, storages: group.sources() }
    }
    /// The name of a load's buffer.
    pub fn buffer(&self, load: usize) -> String {
        let storage = self.group.loads[load].storage;
        format!("x{}", self.storages.iter().position(|&s| s == storage).unwrap_or(0))
    }
    /// A buffer is read by vectors where everybody reads it so.
    pub fn by_vectors(&self, storage: StorageId) -> bool {
        let mut lies = self.group.loads.iter().zip(&self.lies).filter(|(load, _)| load.storage == storage);
        self.width == WIDE && lies.all(|(_, &lie)| lie == Lie::Vector)
    }
    /// The buffers' element types.
    pub fn types(&self) -> Vec<String> {
        let one = |&storage: &StorageId| {
            let elem = self.group.loads.iter().find(|l| l.storage == storage).map_or(Elem::F32, |l| l.elem);
            elem.vector(if self.by_vectors(storage) { WIDE } else { 1 })
        };
        self.storages.iter().map(one).collect()
    }
}

/// The declarations of a kernel's tensors, from their types: first those it reads, then those it writes.
pub fn bindings(reads: &[String], writes: &[String]) -> String {
    let read = reads.iter().enumerate().map(|(k, ty)| ("read", format!("x{k}"), ty));
    let write = writes.iter().enumerate().map(|(k, ty)| ("read_write", format!("y{k}"), ty));
    let line = |(at, (access, name, ty)): (usize, (&str, String, &String))| {
        format!("@group(0) @binding({}) var<storage, {access}> {name}: array<{ty}>;\n", at + 1)
    };
    read.chain(write).enumerate().map(line).collect()
}
