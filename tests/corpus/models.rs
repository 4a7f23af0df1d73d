//! Whole models made by others: the gradient of all their trainable weights at once, against central differences.

use crate::cases::Case;
use crate::differences::{Manner, Miss, Subject, compare};
use crate::gradients::judges;
use onnx_merge::onnx::{DType, Tensor, ValueId};
use onnx_merge::runtime::Executor;
use onnx_merge::train::network::{Network, Purpose};
use rand::{RngExt, SeedableRng};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a model has nothing to compare.
const LISTED: &[(&str, &str)] = &[
    ("lightgbm.onnx", "no trainable weights"),
    ("light_resnet50.onnx", "constant weights saturate float32, and no executor here runs it in float64"),
    ("upsample.onnx", "no trainable weights"),
];

/// Relative error that passes in float32, where the differences themselves lose as much.
const TOLERANCE_F32: f64 = 0.05;

#[test]
fn whole_models_agree_with_central_differences() {
    onnx_merge::runtime::silence_telemetry();
    let Some(shared) = std::env::var_os("ONNX_MERGE_SHARED") else {
        println!("skipped: ONNX_MERGE_SHARED names no folder with models");
        return;
    };
    let only = std::env::var("ONNX_MERGE_MODELS").unwrap_or_default();
    let judges = judges();
    let mut failures = vec![];
    for path in files(&Path::new(&shared).join("models")) {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if !name.contains(&only) {
            continue;
        }
        match (check(&path, &judges), LISTED.iter().find(|l| l.0 == name)) {
            (Ok(line), _) => println!("{name}: {line}"),
            (Err(why), Some((_, reason))) => println!("{name}: left out: {reason} ({why})"),
            (Err(why), None) => failures.push(format!("{name}: {why}")),
        }
    }
    failures.iter().for_each(|failure| println!("FAILED {failure}"));
    assert!(failures.is_empty(), "{} models fail", failures.len());
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries.filter(|p| p.extension().is_some_and(|e| e == "onnx")).collect();
    files.sort();
    files
}

/// One line of praise, or why not.
fn check(path: &Path, judges: &[(Arc<dyn Executor>, DType)]) -> Result<String, String> {
    let Some((first, _)) = judges.first() else { return Err("no executor".into()) };
    let network = Network::open(path, 2, Purpose::default(), &**first)
        .or_else(|_| Network::open(path, 1, Purpose::default(), &**first));
    let network = network.map_err(|e| e.to_string())?;
    let weights = network.trainable(&[]).map_err(|e| e.to_string())?;
    let names: Vec<ValueId> = weights.iter().map(|(id, _)| id.clone()).collect();
    let elements: usize = weights.iter().map(|(_, t)| t.len()).sum();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let mut inputs: HashMap<ValueId, Tensor> = weights.into_iter().collect();
    for (id, fact) in &network.inputs {
        let values: Vec<f64> = match fact.dtype.is_float() {
            true => (0..fact.len()).map(|_| rng.random_range(0.0..1.0)).collect(),
            false => (0..fact.len()).map(|_| f64::from(rng.random_range(0..2u8))).collect(),
        };
        inputs.insert(id.clone(), Tensor::from_f64(fact.dtype, &fact.shape, &values));
    }
    let mut said = vec![];
    for (executor, dtype) in judges {
        let mut case = Case { name: String::new(), model: network.model.clone(), inputs: inputs.clone() };
        case.convert(*dtype).map_err(|e| e.to_string())?;
        case.model.graph.outputs.iter_mut().for_each(|o| (o.dtype, o.shape) = (None, None));
        let subject = Subject { model: &case.model, point: case.inputs.clone(), varied: names.clone() };
        let manner = match dtype {
            DType::F64 => Manner { jitter: 0.0, ..Manner::of(*dtype) },
            _ => Manner { step: 1e-3, tolerance: TOLERANCE_F32, jitter: 0.0 },
        };
        match compare(&**executor, &subject, manner, 5) {
            Ok(outcome) => {
                let (reached, error) = (outcome.reached, outcome.error);
                let line = format!(
                    "{elements} numbers in {} weights, {reached} reached, error {error:.1e} ({} in {dtype})",
                    names.len(),
                    executor.name()
                );
                match error <= manner.tolerance {
                    true => return Ok(line),
                    false => said.push(format!("{line}: {} for {}", outcome.analytic, outcome.numeric)),
                }
            }
            Err(Miss::Gradient(e)) => return Err(format!("no gradient: {e}")),
            Err(Miss::Forward(e)) => said.push(format!("{} in {dtype} can't run it: {e}", executor.name())),
            Err(Miss::Backward(e)) => {
                said.push(format!("{} in {dtype} can't run its gradient: {e}", executor.name()))
            }
            Err(Miss::NothingReal) => return Err("nothing real to compare".into()),
            Err(Miss::NotFinite) => said.push("not finite".into()),
        }
    }
    Err(said.join("; "))
}
