//! A GPU that is lost in the middle of a run: the run says so, and goes on from its last checkpoint on the CPU.

use onnx_merge::Result;
use onnx_merge::data::{self, DataOptions};
use onnx_merge::runtime::{Executor, ExecutorOptions, SplitExecutor, TractExecutor, WgpuExecutor};
use onnx_merge::train::{self, DataSets, Event, MergeRequest, Method, Observer, Silent, TrainConfig};
use std::path::Path;
use std::sync::Arc;

/// Writes down what matters here, and takes the GPU away at a validation.
struct Saboteur {
    gpu: Arc<WgpuExecutor>,
    at: usize,
    validated: Vec<usize>,
    warnings: Vec<String>,
}

impl Observer for Saboteur {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Validation { step, .. } => {
                self.validated.push(*step);
                if *step == self.at && self.warnings.is_empty() {
                    self.gpu.lose_device();
                }
            }
            Event::Warning(text) => self.warnings.push((*text).to_owned()),
            _ => {}
        }
    }
}

fn request(output: &Path, executor: Arc<dyn Executor>) -> Result<MergeRequest> {
    let fixture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
    let open = |name: &str| data::open(&fixture(name), &DataOptions::default());
    let config = TrainConfig { method: Method::Lpka, steps: Some(24), batch: 16, ..TrainConfig::default() };
    Ok(MergeRequest {
        sources: vec![fixture("digits_cnn.onnx")],
        target: fixture("digits_mlp.onnx"),
        output: output.to_owned(),
        data: DataSets {
            train: open("digits_train100.npz")?,
            val: Some(open("digits_val.npz")?),
            test: None,
            unlabelled: None,
            made_of: vec![],
        },
        invented: false,
        source_data: None,
        joint_data: None,
        trajectory: vec![],
        config,
        resume: false,
        model_executor: executor.clone(),
        adapter_executor: executor,
        movable: false,
        options: ExecutorOptions { threads: Some(1), ..ExecutorOptions::default() },
        ranks: train::Ranks::default(),
    })
}

#[test]
fn a_run_whose_gpu_is_lost_goes_on_from_its_checkpoint() -> Result<()> {
    let Ok(gpu) = WgpuExecutor::open(true).map(Arc::new) else { return Ok(()) };
    let folder = tempfile::tempdir().map_err(|e| onnx_merge::Error::io("a temporary folder", e))?;
    let cpu: Arc<dyn Executor> = Arc::new(TractExecutor::new(1)?);
    let whole = train::merge(request(&folder.path().join("whole.onnx"), cpu.clone())?, &mut Silent)?;

    let split = Arc::new(SplitExecutor::new(gpu.clone(), cpu, None));
    let mut saboteur = Saboteur { gpu, at: 14, validated: vec![], warnings: vec![] };
    let report = train::merge(request(&folder.path().join("out.onnx"), split)?, &mut saboteur)?;

    assert_eq!(saboteur.warnings.len(), 1, "{:?}", saboteur.warnings);
    assert!(saboteur.warnings[0].contains("the device was lost"), "{:?}", saboteur.warnings);
    let (before, after): (Vec<usize>, Vec<usize>) = {
        let cut = saboteur.validated.iter().position(|&step| step == saboteur.at).map_or(0, |i| i + 1);
        (saboteur.validated[..cut].to_vec(), saboteur.validated[cut..].to_vec())
    };
    assert!(
        before.len() > 1 && after.first().is_some_and(|&first| first > before[0]),
        "{before:?} {after:?}"
    );
    assert_ne!(report.executors.model.name, "wgpu");
    let score = |report: &onnx_merge::report::Report| report.shipped.val.unwrap_or(f64::NAN);
    assert!((score(&whole) - score(&report)).abs() <= 0.02, "{} {}", score(&whole), score(&report));
    Ok(())
}
