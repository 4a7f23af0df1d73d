//! The arms of a run: what is tried, and what is tried beside it to know why it helped (LPKA.md's control arms).

use super::{Method, Start, TrainConfig};
use serde::{Deserialize, Serialize};

/// Whose weights the adapter reads.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// No adapter at all.
    None,
    /// The source as given.
    Real,
    /// The source's values, permuted within each weight: same spectrum of values, no knowledge.
    Shuffled,
    /// A freshly initialised source.
    Untrained,
}

impl SourceKind {
    pub fn name(self) -> &'static str {
        match self {
            SourceKind::None => "none",
            SourceKind::Real => "real",
            SourceKind::Shuffled => "shuffled",
            SourceKind::Untrained => "untrained",
        }
    }
}

/// One way of training the target.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Arm {
    pub source: SourceKind,
    /// Whether the source also teaches by its answers (distillation).
    pub teacher: bool,
    /// The adapter's gate at the start, g₀.
    pub gate: f64,
    /// Whether the target's layers start from a least-squares fit to the source's.
    #[serde(default)]
    pub fitted: bool,
    /// Whether the source shows its activations only, and none of its weights are carried: feature distillation
    /// (arXiv 1412.6550), through the same maps as the adapter's.
    #[serde(default)]
    pub features: bool,
}

impl Arm {
    pub fn finetune() -> Self {
        Arm { source: SourceKind::None, teacher: false, gate: 0.0, fitted: false, features: false }
    }
    pub fn kd() -> Self {
        Arm { teacher: true, ..Self::finetune() }
    }
    pub fn lpka(gate: f64, teacher: bool) -> Self {
        Arm { source: SourceKind::Real, teacher, gate, ..Self::finetune() }
    }
    /// The adapter on a fitted start, its gate open.
    pub fn fitted(teacher: bool) -> Self {
        Arm { fitted: true, ..Self::lpka(1.0, teacher) }
    }
    /// Feature distillation, from the target as it is or from a fitted one.
    pub fn features(teacher: bool, fitted: bool) -> Self {
        Arm { features: true, fitted, ..Self::lpka(0.0, teacher) }
    }
    /// Whether activations are aligned with the source's. Behind a closed gate the target keeps its own features, and
    /// alignment with a shuffled source helps it more than with the real one (docs/transfer.md): not there.
    pub fn aligns(&self) -> bool {
        self.source != SourceKind::None && (self.features || self.gate > 0.0)
    }
    /// `finetune`, `kd`, `lpka`, `lpka+kd`, `features` or `features+kd`, whatever the source.
    pub fn method(&self) -> &'static str {
        match (self.source, self.teacher) {
            (SourceKind::None, false) => "finetune",
            (SourceKind::None, true) => "kd",
            (_, false) if self.features => "features",
            (_, true) if self.features => "features+kd",
            (_, false) => "lpka",
            (_, true) => "lpka+kd",
        }
    }
    /// For people, unambiguous within a run: `lpka+kd, gate 0.5, shuffled source`.
    pub fn label(&self) -> String {
        let mut label = self.method().to_owned();
        if self.source != SourceKind::None {
            label += &match (self.fitted, self.features) {
                (true, _) => ", fitted".to_owned(),
                (false, true) => String::new(),
                (false, false) => format!(", gate {}", self.gate),
            };
        }
        if matches!(self.source, SourceKind::Shuffled | SourceKind::Untrained) {
            label += &format!(", {} source", self.source.name());
        }
        label
    }
    fn with_source(&self, source: SourceKind) -> Self {
        Arm { source, ..self.clone() }
    }
}

/// What there is to work with.
#[derive(Clone, Copy, Debug)]
pub struct Means {
    /// A source whose weights pair with the target's.
    pub adapter: bool,
    /// A source that reads the target's data and answers in the target's terms.
    pub teacher: bool,
    /// A source that reads the target's data and has layers that correspond to the target's, where these are to be fitted.
    pub tutor: bool,
    /// A source that reads the target's data and has activations to hold the target's against.
    pub features: bool,
}

impl Means {
    /// Whether there is what an arm needs; `supervised` if there are labels.
    fn allow(self, arm: &Arm, supervised: bool) -> bool {
        let carries = match arm.source {
            SourceKind::None => true,
            _ if arm.features => self.features && (self.tutor || !arm.fitted),
            _ => self.adapter,
        };
        carries && if arm.teacher { self.teacher } else { supervised }
    }
}

/// The arms among which validation chooses. Empty when the method needs what isn't there.
pub fn candidates(config: &TrainConfig, means: Means, supervised: bool) -> Vec<Arm> {
    let gates = match config.adapter.gate {
        Some(gate) => vec![gate],
        // A slice of the source never won where a fit to it was there too (docs/transfer.md).
        None if config.adapter.preset == super::Preset::Structured && means.tutor => vec![0.0],
        None if config.adapter.preset == super::Preset::Structured => vec![1.0, 0.5, 0.0],
        None => vec![0.0],
    };
    let fits = config.start == Start::Fitted;
    let gates = if fits { vec![] } else { gates };
    let lpka = |teacher: bool| {
        let mapped = gates.iter().map(move |&g| Arm::lpka(g, teacher));
        means.tutor.then(|| Arm::fitted(teacher)).into_iter().chain(mapped).collect::<Vec<_>>()
    };
    let mut arms = match config.method {
        Method::Finetune => vec![Arm::finetune()],
        Method::Kd => vec![Arm::kd()],
        Method::Lpka => lpka(false),
        Method::LpkaKd => lpka(true),
        Method::Features => vec![Arm::features(false, fits)],
        Method::FeaturesKd => vec![Arm::features(true, fits)],
        Method::Auto => [lpka(true), lpka(false), vec![Arm::kd(), Arm::finetune()]].concat(),
    };
    arms.retain(|arm| means.allow(arm, supervised));
    arms
}

/// The control arms that belong beside `chosen`.
pub fn controls(chosen: &Arm, means: Means, supervised: bool) -> Vec<Arm> {
    let adapted = match chosen.source {
        SourceKind::None if means.tutor => Arm::fitted(chosen.teacher),
        SourceKind::None => Arm::lpka(1.0, chosen.teacher),
        _ => chosen.clone(),
    };
    let mut arms = vec![Arm::finetune(), Arm::kd()];
    for teacher in [false, true] {
        let arm = Arm { teacher, ..adapted.clone() };
        if teacher == adapted.teacher {
            let empty = [SourceKind::Shuffled, SourceKind::Untrained].map(|s| arm.with_source(s));
            arms.push(arm);
            arms.extend(empty);
        }
    }
    arms.retain(|arm| means.allow(arm, supervised) && arm != chosen);
    arms
}

/// Training sets below so many rows get more steps than two epochs.
const FEW: usize = 1000;

/// How many steps an arm gets: what the user said, or enough epochs for small data to settle.
pub fn steps_for(config: &TrainConfig, rows: usize) -> usize {
    let an_epoch = rows.div_ceil(config.batch.max(1)).max(1);
    match (config.steps, config.epochs) {
        (Some(steps), _) => steps.max(1),
        (None, Some(epochs)) => ((epochs * an_epoch as f64).ceil() as usize).max(1),
        (None, None) if rows < FEW => 400,
        (None, None) => (2 * an_epoch).clamp(240, 2000),
    }
}

/// Successive halving: the step at which each round ends, and how many arms go into it.
///
/// Arms whose learning rates were `tried` have been through a short training: those that it spoke for take all `steps`. Six arms cost as
/// much as four and a quarter full trainings, or five and a quarter where one more gets a chance. Others are judged on the way, and those that stay go on from where they are: six arms
/// cost as much as two and a half.
pub fn rounds(arms: usize, steps: usize, tried: bool) -> Vec<(usize, usize)> {
    let quarter = |n: usize| (steps * n / 4).max(1);
    match arms {
        0 => vec![],
        _ if tried => vec![(steps, arms.div_ceil(3).max(2).min(arms))],
        1 => vec![(steps, 1)],
        2 => vec![(quarter(2), 2), (steps, 1)],
        _ => vec![(quarter(1), arms), (quarter(2), arms.div_ceil(4)), (steps, 1)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_end_with_all_steps_for_few_arms() {
        for tried in [false, true] {
            assert_eq!(rounds(1, 400, tried), vec![(400, 1)]);
        }
        assert_eq!(rounds(6, 400, true), vec![(400, 2)]);
        let plan = rounds(8, 400, false);
        assert_eq!(plan.last().map(|r| r.0), Some(400));
        assert_eq!(plan.first(), Some(&(100, 8)));
        assert!(plan.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 > w[1].1));
        let cost: usize = plan
            .iter()
            .scan(0, |done, &(until, field)| {
                let c = (until - *done) * field;
                *done = until;
                Some(c)
            })
            .sum();
        assert!(cost <= 4 * 400, "{plan:?} costs {cost} steps");
    }

    #[test]
    fn a_method_that_needs_a_teacher_gives_no_arm_without_one() {
        let config = TrainConfig { method: Method::Kd, ..TrainConfig::default() };
        assert!(
            candidates(&config, Means { adapter: true, teacher: false, tutor: false, features: false }, true)
                .is_empty()
        );
    }

    #[test]
    fn controls_hold_both_empty_twins_of_the_chosen_arm() {
        let chosen = Arm::lpka(1.0, true);
        let all =
            controls(&chosen, Means { adapter: true, teacher: true, tutor: false, features: false }, true);
        for source in [SourceKind::Shuffled, SourceKind::Untrained] {
            assert!(all.contains(&Arm { source, ..chosen.clone() }));
        }
        assert!(all.contains(&Arm::finetune()) && all.contains(&Arm::kd()));
    }
}
