//! Which tiles are the fastest on this device: tried once for every large call, and remembered on disk.
//!
//! Whatever is chosen, results are the same bit by bit ([`super::plan::Tiling`]). Knows no operators. Look at [`Search`].

use super::batch::Batch;
use super::gpu::{AdapterReport, Gpu};
use super::kernel::alone;
use super::plan::{Call, Origin, Plan, Storage, StorageId, Tiling};
use super::program::Program;
use crate::error::{Error, Result};
use crate::onnx::atomic;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Multiply-adds of a call from which on it is worth trying.
const LARGE: usize = 100_000_000;
/// What trying may take while one program is made. Calls that aren't reached keep their usual tiles.
const LIMIT: Duration = Duration::from_secs(2);
/// Runs that are timed, after one that isn't; the shortest counts.
const RUNS: usize = 3;
/// What other tiles may take at most, as a share of what the usual ones take: less of a gain may be chance.
const SHARE: f64 = 0.97;
/// What takes so many times what the fastest takes isn't run again.
const HOPELESS: f64 = 1.25;

/// Height and width of a tile, by call ([`key`]).
type Tiles = BTreeMap<String, [usize; 2]>;
/// What a file holds: tiles by device ([`device`]).
type Devices = BTreeMap<String, Tiles>;

/// Chooses tiles for a device.
pub struct Search {
    device: String,
    file: Option<PathBuf>,
    large: usize,
    limit: Duration,
    /// Held while something is tried, since what runs beside it would count.
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    tiles: Tiles,
    /// Calls that took too long to try.
    given_up: HashSet<String>,
}

impl Search {
    /// `None` where none is wanted: on software drivers, unless `ONNX_MERGE_TILES` says `search`, and where it says
    /// `default`. What is found is kept in `folder`.
    ///
    /// # Errors
    /// When the variable says something else.
    pub fn open(report: &AdapterReport, folder: Option<&Path>) -> Result<Option<Self>> {
        const VARIABLE: &str = "ONNX_MERGE_TILES";
        let wanted = match std::env::var(VARIABLE).as_deref() {
            Err(_) | Ok("") => report.kind != "software",
            Ok("search") => true,
            Ok("default") => false,
            Ok(other) => {
                let what = format!("{VARIABLE} is '{other}'");
                return Err(Error::executor("wgpu", what).hint("it may be 'default' or 'search'"));
            }
        };
        Ok(wanted.then(|| Self::new(report, folder, LARGE, LIMIT)))
    }
    fn new(report: &AdapterReport, folder: Option<&Path>, large: usize, limit: Duration) -> Self {
        let (device, file) = (device(report), folder.map(|folder| folder.join("tiles.json")));
        let tiles = file.as_deref().map(read).and_then(|mut devices| devices.remove(&device));
        let known = Known { tiles: tiles.unwrap_or_default(), given_up: HashSet::new() };
        Self { device, file, large, limit, known: Mutex::new(known) }
    }
    /// Has large calls that go alone computed by the fastest tiles.
    pub fn choose(&self, gpu: &Arc<Gpu>, plan: &Plan, batches: &mut [Batch]) {
        let mut kinds: HashMap<String, Kind<'_>> = HashMap::new();
        for batch in batches {
            if let [call] = batch.calls.as_mut_slice()
                && let Some(tiling) = call.tiling.clone()
                && tiling.work >= self.large
                && tiling.forms.len() > 1
            {
                let kind = kinds.entry(key(call)).or_insert_with(|| Kind { tiling, calls: vec![] });
                kind.calls.push(call);
            }
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.learn(gpu, plan, &kinds, &mut known);
        for (key, kind) in kinds {
            let tile = known.tiles.get(&key);
            let form = kind.tiling.forms.iter().find(|form| Some(&form.tile) == tile);
            if let Some(form) = form {
                kind.calls.into_iter().for_each(|call| call.take(form));
            }
        }
    }
    /// Tries what isn't known yet, the most work first.
    fn learn(&self, gpu: &Arc<Gpu>, plan: &Plan, kinds: &HashMap<String, Kind<'_>>, known: &mut Known) {
        let is_new = |key: &&String| !known.tiles.contains_key(*key) && !known.given_up.contains(*key);
        let mut new: Vec<&String> = kinds.keys().filter(is_new).collect();
        new.sort_unstable_by_key(|&key| (std::cmp::Reverse(kinds[key].work()), key));
        let until = Instant::now() + self.limit;
        let mut found = false;
        for key in new {
            let Kind { tiling, calls } = &kinds[key];
            let Some(call) = calls.first().filter(|_| Instant::now() < until) else { break };
            match fastest(gpu, plan, call, tiling, until) {
                Some(tile) => {
                    known.tiles.insert(key.clone(), tile);
                    found = true;
                }
                None => {
                    known.given_up.insert(key.clone());
                }
            }
        }
        if let (true, Some(file)) = (found, &self.file) {
            // A file that can't be written is found out again.
            let _ = self.write(file, &known.tiles);
        }
    }
    /// Adds to what the file holds by now.
    fn write(&self, file: &Path, tiles: &Tiles) -> Result<()> {
        let mut devices = read(file);
        devices.entry(self.device.clone()).or_default().extend(tiles.clone());
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        }
        let text = serde_json::to_vec_pretty(&devices).map_err(|e| Error::executor("wgpu", e))?;
        atomic::write(file, &text)
    }
}

/// Calls that are equal but for their tensors.
struct Kind<'a> {
    tiling: Arc<Tiling>,
    calls: Vec<&'a mut Call>,
}

impl Kind<'_> {
    fn work(&self) -> usize {
        self.tiling.work.saturating_mul(self.calls.len())
    }
}

/// The name of a device, its driver and this program's version.
fn device(report: &AdapterReport) -> String {
    let AdapterReport { name, backend, driver, .. } = report;
    format!("{name}, {backend}, {driver}, onnx-merge {}", env!("CARGO_PKG_VERSION"))
}

/// The same for calls of the same kernel and parameters, now and later.
fn key(call: &Call) -> String {
    let digest = Sha256::new()
        .chain_update(call.source.as_bytes())
        .chain_update([0])
        .chain_update(bytemuck::cast_slice::<i32, u8>(&call.params))
        .finalize();
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// What a file holds: nothing where it isn't ours.
fn read(file: &Path) -> Devices {
    std::fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// The size of tiles that takes the least time, the usual one where others gain little; `None` where that can't be found
/// out in time, or for lack of memory.
fn fastest(gpu: &Arc<Gpu>, plan: &Plan, call: &Call, tiling: &Tiling, until: Instant) -> Option<[usize; 2]> {
    let (own, calls) = trial(plan, call, tiling);
    compile(gpu, &calls);
    let program = Program::new(gpu, &own, calls, None).ok()?;
    let run = program.begin(&[]).ok()?;
    let mut best = vec![f64::INFINITY; tiling.forms.len()];
    // By turns, since clocks rise and fall; the first one warms up.
    'turns: for turn in 0..=RUNS {
        let lowest = best.iter().copied().fold(f64::INFINITY, f64::min);
        for (step, best) in program.steps.chunks(1).zip(&mut best) {
            if *best > HOPELESS * lowest {
                continue;
            }
            match turn {
                _ if Instant::now() < until => {}
                0 | 1 => return None,
                _ => break 'turns,
            }
            let seconds = program.seconds(step, &run).ok()?.into_iter().sum();
            if turn > 0 {
                *best = f64::min(*best, seconds);
            }
        }
    }
    let (form, seconds) = tiling.forms.iter().zip(&best).min_by(|a, b| a.1.total_cmp(b.1))?;
    let is_gain = *seconds > 0.0 && *seconds < SHARE * best[0];
    Some(if is_gain { form.tile } else { tiling.forms[0].tile })
}

/// Compiles kernels side by side.
fn compile(gpu: &Gpu, calls: &[Call]) {
    std::thread::scope(|scope| {
        for call in calls {
            // Who asks for the pipeline next meets the same error.
            scope.spawn(|| gpu.pipeline(&alone(&call.source, call.params.len())).map(drop));
        }
    });
}

/// A plan with the call's tensors alone, and the call by each of its forms. Of constants the contents are the same, since they
/// may be indices; the rest is undefined.
fn trial(plan: &Plan, call: &Call, tiling: &Tiling) -> (Plan, Vec<Call>) {
    let mut own = Plan::default();
    let mut moved: HashMap<StorageId, StorageId> = HashMap::new();
    let mut all = |ids: &[StorageId]| -> Vec<StorageId> {
        let one = |&id: &StorageId| {
            *moved.entry(id).or_insert_with(|| {
                let Storage { origin, len } = &plan.storages[id];
                let origin = match origin {
                    Origin::Constant(words) => Origin::Constant(words.clone()),
                    Origin::Input(_) | Origin::Computed => Origin::Computed,
                };
                own.storages.push(Storage { origin, len: *len });
                own.storages.len() - 1
            })
        };
        ids.iter().map(one).collect()
    };
    let (reads, writes) = (all(&call.reads), all(&call.writes));
    let call = Call { reads, writes, tiling: None, ..call.clone() };
    let by = |form| {
        let mut call = call.clone();
        call.take(form);
        call
    };
    let calls = tiling.forms.iter().map(by).collect();
    (own, calls)
}

#[cfg(test)]
mod tests;
