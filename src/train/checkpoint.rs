//! What a run leaves on disk so that `--resume` can go on where it stopped.
//!
//! A folder beside the output: `run.json` says which arms stand where; each arm's tensors are the initializers
//! of a small ONNX file. `run.json` is replaced last and atomically, so a kill leaves the previous state whole.

use super::arms::Arm;
use super::fingerprint::Fingerprint;
use super::ranks::Ranks;
use crate::error::{Error, Result};
use crate::onnx::{self, Graph, Model, Tensor, ValueId, WORKING_OPSET};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Where an arm's training stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArmState {
    pub arm: Arm,
    pub seed: u64,
    pub lr: f64,
    /// Validation after the trial that chose it.
    pub trial: Option<f64>,
    pub step: usize,
    /// The best validation so far and the step it was seen at.
    pub best: Option<(f64, usize)>,
    /// As in [`super::contest::Best`].
    #[serde(default)]
    pub best_schedule: Option<(usize, f64)>,
    pub validations: Vec<(usize, f64)>,
    pub curve: Vec<(usize, f64)>,
    /// File in the checkpoint's folder that holds the tensors.
    pub file: String,
}

/// All of a run's progress.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RunState {
    /// A checkpoint of another run is refused.
    pub fingerprint: Fingerprint,
    /// Steps an arm, where time is limited: as many as it had room for when the run began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    pub arms: Vec<ArmState>,
    /// Held-out folds that were measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folds: Option<FoldsState>,
}

/// How far the winner's training without single folds of the training rows has come.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct FoldsState {
    pub arm: Arm,
    pub seed: u64,
    /// Files in the checkpoint's folder that hold what was measured, fold by fold.
    pub files: Vec<String>,
}

/// The folder. Only the first rank reads and writes it, and tells the others what it read.
pub struct Checkpoint {
    folder: PathBuf,
    ranks: Ranks,
}

/// Whether there is a checkpoint that a run with this output could go on from.
pub fn is_beside(output: &Path) -> bool {
    Checkpoint::beside(output, &Ranks::default()).exists()
}

const RUN: &str = "run.json";
const BEST: &str = "best:";

impl Checkpoint {
    /// The checkpoint that belongs to an output file: `out.onnx.checkpoint/`.
    pub fn beside(output: &Path, ranks: &Ranks) -> Self {
        let mut name = output.as_os_str().to_owned();
        name.push(".checkpoint");
        Self { folder: PathBuf::from(name), ranks: ranks.clone() }
    }
    /// The folder that the output and this checkpoint lie in.
    pub fn place(&self) -> &Path {
        match self.folder.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        }
    }
    pub fn exists(&self) -> bool {
        self.ranks.decide(self.folder.join(RUN).is_file())
    }

    /// The run's progress, which must belong to a run with this fingerprint.
    pub fn load(&self, fingerprint: &Fingerprint) -> Result<RunState> {
        let path = self.folder.join(RUN);
        let text = self.ranks.first_bytes(|| std::fs::read(&path).map_err(|e| Error::io(&path, e)))?;
        let state: RunState = serde_json::from_slice(&text)
            .map_err(|e| Error::data(&path, format!("is no checkpoint of this program: {e}")))?;
        match fingerprint.differences(&state.fingerprint)[..] {
            [] => Ok(state),
            ref different => {
                let what = format!("is of another run: this one differs in {}", different.join(", "));
                Err(Error::data(&path, what).hint(
                    "repeat the interrupted run's command with the files as they were, or leave out --resume to begin anew",
                ))
            }
        }
    }
    pub fn save_run(&self, state: &RunState) -> Result<()> {
        if !self.ranks.is_first() {
            return Ok(());
        }
        let text = serde_json::to_vec_pretty(state).map_err(|e| Error::data(&self.folder, e.to_string()))?;
        onnx::atomic::write(&self.folder.join(RUN), &text)
    }

    /// Saves an arm's tensors: the state to go on from, and the best weights so far.
    pub fn save_arm(
        &self,
        file: &str,
        state: &[(ValueId, Tensor)],
        best: &[(ValueId, Tensor)],
    ) -> Result<()> {
        if !self.ranks.is_first() {
            return Ok(());
        }
        std::fs::create_dir_all(&self.folder).map_err(|e| Error::io(&self.folder, e))?;
        let mut graph = Graph { name: "checkpoint".into(), ..Graph::default() };
        graph.initializers.extend(state.iter().cloned());
        graph
            .initializers
            .extend(best.iter().map(|(id, t)| (ValueId::new(format!("{BEST}{id}")), t.clone())));
        onnx::save_any_size(&Model::new(graph, WORKING_OPSET), self.folder.join(file))
    }
    /// The state and the best weights of an arm.
    #[allow(clippy::type_complexity)]
    pub fn load_arm(&self, file: &str) -> Result<(Vec<(ValueId, Tensor)>, Vec<(ValueId, Tensor)>)> {
        let read = || Ok(onnx::read(self.folder.join(file))?.model.graph.initializers.into_iter().collect());
        let (best, state): (Vec<_>, Vec<_>) =
            self.ranks.first_tensors(read)?.into_iter().partition(|(id, _)| id.as_str().starts_with(BEST));
        let best = best.into_iter().map(|(id, t)| (ValueId::new(&id.as_str()[BEST.len()..]), t)).collect();
        Ok((state, best))
    }

    /// Removes the folder once the run is complete. Nothing is lost when that fails.
    pub fn remove(&self) {
        if self.ranks.is_first() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}
