//! What the source's knowledge was worth, by the control arms.

use crate::report::{Arm, ArmSource, Metric, Rival, Worth};

/// The scores of an arm by which it is judged: on test data where there is some.
fn judged(arm: &Arm) -> &[f64] {
    if arm.test.is_empty() { &arm.val } else { &arm.test }
}

/// The arm with the real source whose controls were run.
fn controlled(arms: &[Arm]) -> Option<&Arm> {
    let twin = |arm: &Arm| format!("{}, shuffled source", arm.name);
    arms.iter().find(|a| a.source == ArmSource::Real && arms.iter().any(|t| t.name == twin(a)))
}

/// What the source's knowledge was worth: for each seed, the gain over the better of the two controls.
pub fn of_source(arms: &[Arm], metric: &Metric) -> Option<Worth> {
    let real = controlled(arms)?;
    let control = |what: &str| {
        let name = format!("{}, {what} source", real.name);
        arms.iter().find(|a| a.name == name).map(judged)
    };
    let (shuffled, untrained) = (control("shuffled")?, control("untrained")?);
    let differences: Vec<f64> = judged(real)
        .iter()
        .zip(shuffled.iter().zip(untrained))
        .map(|(r, (s, u))| metric.gain(*s, *r).min(metric.gain(*u, *r)))
        .collect();
    Worth::of(&differences)
}

/// What the same arm gained over distillation and over fine-tuning, seed by seed.
pub fn rivals(arms: &[Arm], metric: &Metric) -> Vec<Rival> {
    let Some(real) = controlled(arms) else { return vec![] };
    let over = |name: &str| {
        let rival = arms.iter().find(|a| a.name == name).map(judged)?;
        let differences: Vec<f64> =
            judged(real).iter().zip(rival).map(|(r, other)| metric.gain(*other, *r)).collect();
        Some(Rival { arm: name.to_owned(), gain: Worth::of(&differences)? })
    };
    ["kd", "finetune"].into_iter().filter_map(over).collect()
}
