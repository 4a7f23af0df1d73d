//! The reader of models, and surgery on what it reads.

use crate::edits::{Edit, MODELS, scratch};
use crate::target;
use bolero::TypeGenerator;
use onnx_merge::onnx::{self, ModelFile, SiteId, Tensor, surgery};

#[derive(Debug, TypeGenerator)]
pub struct Damaged {
    seed: u8,
    edits: Vec<Edit>,
}

impl Damaged {
    /// The model, if it is still one.
    fn read(&self) -> Option<ModelFile> {
        let path = scratch("model.onnx");
        let seed = &MODELS[usize::from(self.seed) % MODELS.len()];
        let edits = self.edits.get(..8).unwrap_or(&self.edits);
        std::fs::write(&path, seed.edited(edits)).expect("a file");
        onnx::read(&path).ok()
    }
}

target!(model_reader, 400, read_and_write_again);

/// What is read can be written as a model of this program, and read again.
fn read_and_write_again(damaged: &Damaged) {
    let Some(file) = damaged.read() else { return };
    let _ = file.check_finite();
    let _ = file.frame();
    let Ok(bytes) = onnx::to_bytes(&file.model) else { return };
    let path = scratch("again.onnx");
    std::fs::write(&path, bytes).expect("a file");
    if let Err(e) = onnx::read(&path) {
        panic!("a model that was read isn't once written again: {e}");
    }
}

#[derive(Debug, TypeGenerator)]
pub struct Operation {
    file: Damaged,
    /// Which tensors change, and to what.
    changes: Vec<(u8, i8)>,
}

target!(surgery, 200, change_payloads_and_nothing_else);

fn change_payloads_and_nothing_else(operation: &Operation) {
    let Some(file) = operation.file.read() else { return };
    if file.sites.is_empty() {
        return;
    }
    let mut changes: Vec<(SiteId, Tensor)> = vec![];
    for &(which, value) in operation.changes.iter().take(4) {
        let id = SiteId((usize::from(which) % file.sites.len()) as u32);
        let shape = &file.sites[id.0 as usize].shape;
        let Some(count) = onnx::element_count(shape).filter(|&n| n < 1 << 20) else { continue };
        changes.retain(|(other, _)| *other != id);
        changes.push((id, Tensor::f64(shape, &vec![f64::from(value) / 4.0; count])));
    }
    let out = scratch("out.onnx");
    let Ok(written) = surgery::write(&file, &changes, &out) else { return };
    let again = onnx::read(&out).unwrap_or_else(|e| panic!("the changed file can't be read: {e}"));
    assert_eq!(written.bytes, again.bytes().len() as u64);
    let frame = |f: &ModelFile| f.frame().into_iter().map(|r| f.bytes()[r].to_vec()).collect::<Vec<_>>();
    assert!(frame(&file).concat() == frame(&again).concat(), "something besides payloads changed");
    let mut sound: Vec<(SiteId, Tensor)> = vec![];
    values(&again, &mut sound);
    for (id, value) in &changes {
        let dtype = file.sites[id.0 as usize].dtype;
        let there = sound.iter().find(|(other, _)| other == id).map(|(_, tensor)| tensor);
        assert!(there.is_none_or(|t| *t == value.cast(dtype)), "{} didn't take its value", id.0);
    }
}

/// The initializers by site.
fn values(file: &ModelFile, found: &mut Vec<(SiteId, Tensor)>) {
    found.extend(file.model.graph.initializers.values().filter_map(|t| Some((t.site?, t.clone()))));
}
