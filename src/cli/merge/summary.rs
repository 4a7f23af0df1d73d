//! What a run ends with on a terminal.

use crate::cli::terminal::{Paint, table};
use crate::report::{ExecutorUsed, KEPT, Outcome, Report, Worth};
use std::path::Path;

/// The final table, and what to think of it.
pub fn summary(report: &Report, paint: Paint) -> String {
    let show = |v: Option<f64>| v.map_or("–".into(), |v| report.metric.show(v));
    let mut rows = vec![[report.metric.caption(), "validation", "test"].map(String::from).to_vec()];
    rows.push(vec!["untouched target".into(), show(report.untouched.val), show(report.untouched.test)]);
    let name = format!("shipped ({})", report.method);
    rows.push(vec![paint.bold(&name), show(report.shipped.val), show(report.shipped.test)]);
    if report.gains.val.is_some() {
        let gain =
            |worth: Option<Worth>| worth.map_or("–".into(), |worth| report.metric.show_worth(&worth));
        rows.push(vec!["gain (± over rows)".into(), gain(report.gains.val), gain(report.gains.test)]);
    }
    if let Some(folds) = &report.folds {
        let name = format!("gain with {} of {} folds", folds.measured, folds.of);
        rows.push(vec![name, report.metric.show_worth(&folds.gain)]);
    }
    let mut text = format!("\n{}", table(&rows));
    if report.arms.len() > 1 {
        let mut rows = vec![["arm", "validation", "test"].map(String::from).to_vec()];
        for arm in &report.arms {
            rows.push(vec![
                arm.name.clone(),
                report.metric.show_spread(&arm.val),
                report.metric.show_spread(&arm.test),
            ]);
        }
        text += &format!("\n{}", table(&rows));
    }
    if let Some(sentence) = report.worth_sentence() {
        text += &format!("\n{sentence}\n");
    }
    text += &format!("\n{}\n", verdict(report, paint));
    text
}

fn verdict(report: &Report, paint: Paint) -> String {
    let path = report.output.as_ref().map(|o| o.path.display().to_string()).unwrap_or_default();
    let seconds = report.seconds.read + report.seconds.plan + report.seconds.train + report.seconds.write;
    let on = format!("model on {}", describe(&report.executors.model));
    match report.outcome {
        Outcome::Gain => {
            let done = paint.green(&format!("{path} {}.", report.praise()));
            format!("{done} {} of its tensors changed; {seconds:.1} s, {on}.", report.changed.len())
        }
        Outcome::Unverified => {
            let done = paint.yellow(&format!("{path} is unverified."));
            format!(
                "{done} There were no data: the source taught on made-up inputs, and the figures above are about those. \
                 Whether {path} is better than its target is not known until `onnx-merge eval` measures both on real \
                 data. {} of its tensors changed; {seconds:.1} s, {on}.",
                report.changed.len()
            )
        }
        Outcome::NoGain => {
            format!("{} {seconds:.1} s, {on}.", paint.yellow(KEPT))
        }
        Outcome::Interrupted => {
            let on = match crate::train::has_checkpoint(Path::new(&path)) {
                true => "go on with --resume",
                false => "it was too early for anything to go on from",
            };
            format!("{} {path} holds the best so far; {on}.", paint.yellow("Interrupted."))
        }
    }
}

fn describe(used: &ExecutorUsed) -> String {
    format!("{}, {}", used.name, used.device)
}
