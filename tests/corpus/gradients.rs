//! Every operator with a rule, in every form that ONNX's own operator cases show.

use crate::cases::{Case, folders, load};
use crate::differences::{Manner, Miss, Outcome, Subject, compare};
use onnx_merge::autodiff::ops::checks;
use onnx_merge::autodiff::rules::{self, Kind};
use onnx_merge::onnx::{DType, Graph, Node, ValueId};
use onnx_merge::runtime::{Executor, ExecutorChoice, ExecutorOptions, open};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Inputs that count as settings, not as arguments of a differentiable function.
const SETTINGS: &[(&str, &[usize])] = &[
    ("Dropout", &[1]),
    ("OneHot", &[0, 1]),
    ("QuantizeLinear", &[1, 2]),
    ("Range", &[0, 1, 2]),
    ("Resize", &[1, 2]),
    ("Upsample", &[1]),
];

/// Cases that aren't compared, by the beginning of their names, and why.
const LISTED: &[(&str, &str)] = &[
    ("test_dynamicquantizelinear", "rounding is passed straight through on purpose"),
    ("test_lstm_batchwise", "no executor runs it"),
    (
        "test_maxunpool_export_with_output_shape",
        "ONNX Runtime counts its indices otherwise than the specification",
    ),
    ("test_mod_float_edge_cases", "divides by zero"),
    ("test_quantizelinear", "rounding is passed straight through on purpose"),
    ("test_training_dropout", "draws random numbers"),
];

/// The judges, best first.
pub fn judges() -> Vec<(Arc<dyn Executor>, DType)> {
    let options = ExecutorOptions { threads: Some(1), ..ExecutorOptions::default() };
    let mut judges = vec![];
    let ort = open(ExecutorChoice::Ort, &options);
    let tract = open(ExecutorChoice::Tract, &options);
    if let Ok(ort) = &ort {
        judges.push((ort.clone(), DType::F64));
    }
    if let Ok(tract) = &tract {
        judges.push((tract.clone(), DType::F64));
    }
    judges.extend(ort.into_iter().chain(tract).map(|executor| (executor, DType::F32)));
    judges
}

#[derive(Default)]
struct Tally {
    passed: usize,
    by_judge: BTreeMap<String, (usize, f64)>,
    operators: BTreeSet<String>,
    not_real: usize,
    listed: BTreeMap<&'static str, usize>,
    failures: Vec<String>,
}

#[test]
fn rules_agree_with_central_differences_on_the_operator_corpus() {
    onnx_merge::runtime::silence_telemetry();
    let Some(folders) = folders() else {
        println!("skipped: ONNX_NODE_CORPUS names no folder (see tests/corpus/dump_node_tests.py)");
        return;
    };
    let judges = judges();
    let only = std::env::var("ONNX_NODE_CASES").unwrap_or_default();
    let mut tally = Tally::default();
    for folder in folders.iter().filter(|f| f.to_string_lossy().contains(&only)) {
        let name = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some((_, reason)) = LISTED.iter().find(|(start, _)| name.starts_with(start)) {
            *tally.listed.entry(reason).or_default() += 1;
            continue;
        }
        match load(folder) {
            Ok(Some(mut case)) => match case.prepare(&settings(&case)) {
                Ok(()) if has_rules(&case.model.graph) => check(&case, &judges, &mut tally),
                Ok(()) => tally.not_real += 1,
                Err(e) => tally.failures.push(format!("{}: {e}", case.name)),
            },
            _ => tally.not_real += 1,
        }
    }
    tally.print();
    if only.is_empty() && judges.first().is_some_and(|judge| judge.0.name() == "ort") {
        // `onnx-merge ops` says which operators are checked here.
        let covered = |op: &str| tally.operators.contains(op);
        let wrong: Vec<&str> = differentiable().filter(|op| said(op, "corpus") != covered(op)).collect();
        assert!(wrong.is_empty(), "the table of checks is wrong about {}", wrong.join(" "));
    }
    assert!(tally.failures.is_empty(), "{} cases fail", tally.failures.len());
    assert!(tally.passed > 0 || !only.is_empty(), "no case was compared");
}

/// Operators with a gradient, but for those that preparation has replaced.
pub fn differentiable() -> impl Iterator<Item = &'static str> {
    let gone = ["Swish", "SwiGLU"];
    rules::table()
        .filter(|row| !matches!(row.1, Kind::Stop))
        .map(|row| row.0)
        .filter(move |op| !gone.contains(op))
}

/// Whether the program says that `test` judges an operator's gradient.
pub fn said(op: &str, test: &str) -> bool {
    checks(op).contains(&test)
}

/// Whether every operator is in the table, and one has a gradient.
fn has_rules(graph: &Graph) -> bool {
    let kinds: Option<Vec<Kind>> = graph.nodes.iter().map(rules::kind).collect();
    kinds.is_some_and(|kinds| kinds.iter().any(|kind| !matches!(kind, Kind::Stop)))
}

fn check(case: &Case, judges: &[(Arc<dyn Executor>, DType)], tally: &mut Tally) {
    let varied = varied(case);
    if varied.is_empty() {
        tally.not_real += 1;
        return;
    }
    let mut reasons = vec![];
    for (executor, dtype) in judges {
        let judge = format!("{} in {dtype}", executor.name());
        match attempt(case, &varied, &**executor, *dtype) {
            Ok(outcome) if outcome.error <= Manner::of(*dtype).tolerance => {
                let entry = tally.by_judge.entry(judge).or_insert((0, 0.0));
                *entry = (entry.0 + 1, entry.1.max(outcome.error));
                tally.passed += 1;
                tally.operators.extend(case.model.graph.nodes.iter().map(|n| n.op.clone()));
                return;
            }
            Ok(outcome) => {
                let Outcome { error, analytic, numeric, reached } = outcome;
                reasons.push(format!(
                    "{judge}: error {error:.1e}: {analytic} for {numeric} ({reached} reached)"
                ));
            }
            Err(Miss::NothingReal) => {
                tally.not_real += 1;
                return;
            }
            Err(Miss::Gradient(e)) => {
                reasons.push(format!("no gradient: {e}"));
                break;
            }
            Err(Miss::Forward(e)) => reasons.push(format!("{judge} doesn't run it: {e}")),
            Err(Miss::Backward(e)) => reasons.push(format!("{judge} can't run its gradient: {e}")),
            Err(Miss::NotFinite) => reasons.push(format!("{judge}: not finite here")),
        }
    }
    if reasons.iter().all(|reason| reason.contains("doesn't run it")) {
        *tally.listed.entry("no executor runs it").or_default() += 1;
        println!("no executor runs {}: {}", case.name, reasons.join("; "));
        return;
    }
    tally.failures.push(format!("{}: {}", case.name, reasons.join("; ")));
}

/// The values that are settings of some node.
fn settings(case: &Case) -> BTreeSet<ValueId> {
    let of_node = |node: &Node| {
        let places = SETTINGS.iter().filter(|(op, _)| node.is(op)).flat_map(|(_, places)| *places);
        places.filter_map(|&i| node.input(i).cloned()).collect::<Vec<_>>()
    };
    case.model.graph.nodes.iter().flat_map(of_node).collect()
}

fn varied(case: &Case) -> Vec<ValueId> {
    let inputs = case.model.graph.required_inputs().map(|input| input.id.clone());
    inputs.filter(|id| case.inputs.get(id).is_some_and(|t| t.dtype().is_float() && !t.is_empty())).collect()
}

/// One judge's word; another direction and point where a kink may have been hit.
fn attempt(case: &Case, varied: &[ValueId], executor: &dyn Executor, dtype: DType) -> Result<Outcome, Miss> {
    let mut case = Case { name: String::new(), model: case.model.clone(), inputs: case.inputs.clone() };
    case.convert(dtype).map_err(Miss::Forward)?;
    let subject = Subject { model: &case.model, point: case.inputs.clone(), varied: varied.to_vec() };
    let manner = Manner::of(dtype);
    let mut outcome = compare(executor, &subject, manner, 1);
    for seed in 2..6 {
        let again = match &outcome {
            Err(Miss::NotFinite) => true,
            Ok(outcome) => outcome.error > manner.tolerance,
            Err(_) => false,
        };
        if !again {
            break;
        }
        outcome = compare(executor, &subject, manner, seed);
    }
    outcome
}

impl Tally {
    fn print(&self) {
        println!("{} cases agree, {} have nothing real to compare", self.passed, self.not_real);
        for (judge, (count, worst)) in &self.by_judge {
            println!("  {count} judged by {judge}, worst error {worst:.1e}");
        }
        for (reason, count) in &self.listed {
            println!("  {count} left out: {reason}");
        }
        let ruled: BTreeSet<&str> = differentiable().collect();
        let covered = ruled.iter().filter(|op| self.operators.contains(**op)).count();
        let missed: Vec<&str> = ruled.iter().filter(|op| !self.operators.contains(**op)).copied().collect();
        println!(
            "{covered} of {} operators with a rule covered; without a case: {}",
            ruled.len(),
            missed.join(" ")
        );
        for failure in &self.failures {
            println!("FAILED {failure}");
        }
    }
}
