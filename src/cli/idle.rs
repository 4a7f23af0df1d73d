//! Options that a run would never read: a mistake where they were typed, worth a note where they come from a configuration.

use super::config::Config;
use crate::error::{Error, Result};
use crate::train::{ExecutorChoice, Method, Preset, Start, Task};
use std::path::Path;

/// An option that nothing reads.
struct Idle {
    /// As it is typed, without dashes.
    option: &'static str,
    /// Where a configuration holds it, as a JSON pointer.
    place: &'static str,
    why: &'static str,
}

/// Notes on options of `config` that do nothing and that it had before anything was typed.
///
/// # Errors
/// An option that was typed, so that it isn't in `before`, and does nothing.
pub fn check(config: &Config, before: &Config) -> Result<Vec<String>> {
    let json = |config: &Config| {
        serde_json::to_value(config).map_err(|e| Error::usage(format!("this run has no JSON form: {e}")))
    };
    let (now, before, default) = (json(config)?, json(before)?, json(&Config::default())?);
    let mut notes = vec![];
    for Idle { option, place, why } in idle(config) {
        let value = now.pointer(place);
        if value == default.pointer(place) {
            continue;
        }
        if value != before.pointer(place) {
            return Err(unread(option, why));
        }
        notes.push(format!("--{option} does nothing: {why}"));
    }
    Ok(notes)
}

/// Refuses an option that does nothing.
pub fn unread(option: &str, why: &str) -> Error {
    Error::usage(format!("--{option} does nothing here: {why}")).hint("leave it out, or change what it needs")
}

/// All that could be set and would not be read.
fn idle(config: &Config) -> Vec<Idle> {
    let mut all = vec![];
    let mut add = |applies: bool, why: &'static str, options: &[(&'static str, &'static str)]| {
        let idle = options.iter().map(|&(option, place)| Idle { option, place, why });
        all.extend(idle.filter(|_| !applies));
    };
    let (train, data) = (&config.train, &config.data);
    let preset = train.adapter.preset;
    let (adapter, maps, distilled) = (train.adapts(), train.has_maps(), train.distils());
    let imitation = train.task == Task::MatchOutputs || data.train.is_none();
    let teacher = distilled || imitation;
    let tuning = config.source.is_none();

    add(
        maps && !tuning,
        "no arm of this method has an adapter",
        &[
            ("preset", "/train/adapter/preset"),
            ("map", "/train/map"),
            ("rank", "/train/adapter/rank"),
            ("width", "/train/adapter/width"),
            ("start", "/train/start"),
            ("align", "/train/align"),
            ("cycle", "/train/adapter/cycle"),
            ("trajectory", "/trajectory"),
            ("joint", "/train/joint"),
            ("src-data", "/data/joint"),
        ],
    );
    add(
        adapter && !tuning,
        "no arm of this method carries weights of the source",
        &[
            ("adapt", "/train/adapt"),
            ("gate", "/train/adapter/gate"),
            ("depth", "/train/adapter/depth"),
            ("heads", "/train/adapter/heads"),
            ("dropout", "/train/adapter/dropout"),
        ],
    );
    add(
        matches!(train.task, Task::Auto | Task::Classify) && data.train.is_some(),
        "no labels are read as classes",
        &[
            ("class-axis", "/data/options/class-axis"),
            ("ignore-label", "/data/options/ignore-label"),
            ("balanced", "/train/balanced"),
        ],
    );
    add(!tuning, "there is no source", &[("src-of", "/train/src-of")]);
    let gate = ("gate", "/train/adapter/gate");
    add(train.start != Start::Fitted, "what is fitted has its gate open", &[gate]);
    add(preset != Preset::Paper, "preset paper has no dropout", &[("dropout", "/train/adapter/dropout")]);
    add(
        preset == Preset::Structured,
        "only the structured preset aligns activations",
        &[("align", "/train/align")],
    );
    add(
        preset == Preset::Paper || train.joint || !config.trajectory.is_empty(),
        "neither preset paper nor a source that changes is asked for",
        &[("cycle", "/train/adapter/cycle")],
    );
    add(
        (maps || teacher) && !tuning,
        "fine-tuning reads no source",
        &[("src", "/more-sources"), ("src-scale, --src-mean or --src-std", "/data/source-options")],
    );
    add(
        !tuning && train.wants_unlabelled(),
        "nothing learns from rows without labels in this method",
        &[("unlabelled", "/data/unlabelled"), ("made-rows", "/train/made-rows")],
    );
    add(
        distilled && !imitation && !tuning,
        "nothing is distilled beside labels",
        &[("alpha", "/train/alpha")],
    );
    add(
        teacher && train.task != Task::Regress && !tuning,
        "nothing is distilled from a source's classes",
        &[("temperature", "/train/temperature")],
    );
    add(
        train.method == Method::Finetune && !train.ablate,
        "only fine-tuning trains deltas of low rank",
        &[("low-rank", "/train/low-rank")],
    );
    add(
        train.executor != ExecutorChoice::Tract || train.adapter_executor.is_some(),
        "ONNX Runtime isn't used",
        &[("ort-lib", "/train/ort-lib")],
    );
    add(
        data.train.is_some(),
        "there is no --data, and the source teaches on made-up inputs",
        &[
            ("test", "/data/test"),
            ("unlabelled", "/data/unlabelled"),
            ("made-rows", "/train/made-rows"),
            ("groups", "/data/options/groups"),
        ],
    );
    let paths = [&data.train, &data.val, &data.test, &data.unlabelled, &data.joint];
    let paths: Vec<&Path> = paths.into_iter().flatten().map(|path| path.as_path()).collect();
    let uses = crate::data::Uses::of(&paths);
    add(uses.size, crate::data::Uses::NO_SIZE, &[("size", "/data/options/size")]);
    add(uses.label, crate::data::Uses::NO_LABEL, &[("label", "/data/options/label")]);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_has_its_place_in_a_configuration() {
        let mut config = Config::default();
        let train = &mut config.train;
        (train.method, train.task) = (Method::Finetune, Task::Regress);
        train.executor = ExecutorChoice::Tract;
        let mut set = config.clone();
        let train = &mut set.train;
        train.adapter = crate::train::AdapterConfig {
            preset: Preset::Residual,
            rank: 1,
            width: 1,
            heads: 1,
            depth: 7,
            dropout: 0.7,
            gate: Some(0.7),
            cycle: Some(7),
        };
        (train.map, train.adapt, train.start) = (vec!["a=b".into()], vec!["a".into()], Start::Fitted);
        (train.align, train.alpha, train.temperature) = (0.1, 0.1, 0.1);
        (train.made_rows, train.ort_lib) = (Some(1), Some("lib".into()));
        set.trajectory = vec!["a".into()];
        set.more_sources = vec!["a".into()];
        (set.data.unlabelled, set.data.test) = (Some("a".into()), Some("a".into()));
        set.data.source_options = Some(Default::default());
        (set.data.options.size, set.data.options.label) = (Some([1, 1]), Some("a".into()));
        (set.data.options.class_axis, set.data.options.ignore_label) = (Some(1), Some(1));
        (set.data.options.groups, set.train.balanced) = (Some("a".into()), true);
        set.train.src_of = Some("a".into());
        let json = serde_json::to_value(&set).unwrap();
        for Idle { option, place, .. } in idle(&config) {
            // What can't be set together with the others.
            if !matches!(option, "joint" | "src-data") {
                assert!(json.pointer(place).is_some_and(|v| !v.is_null()), "{option}");
            }
        }
        assert_eq!(check(&config, &Config::default()).unwrap(), Vec::<String>::new());
        let error = check(&set, &config).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(check(&set, &set).unwrap().len() > 20);
    }
}
