//! Gradients of the runs of a step, added up.
//!
//! Knows executors, nothing of models. Look at [`Accumulator`].

use crate::error::Result;
use crate::onnx::{Builder, DType, Fact, Facts, Model, Tensor, WORKING_OPSET};
use crate::runtime::{Compiled, Executor, Value};

/// Averages gradients over the runs of a step, on the executor.
pub struct Accumulator {
    groups: Vec<Group>,
}

/// Gradients that one program adds up.
struct Group {
    count: usize,
    /// `gradient` of each and the scalar `share` in; `share·gradient` out.
    first: Box<dyn Compiled>,
    /// `sum` and `gradient` of each and `share` in; `sum + share·gradient` out.
    next: Box<dyn Compiled>,
}

/// Bytes of gradients that are added up at once: each group's old sums are let go of before the next one's are made.
const GROUP_BYTES: usize = 4 << 20;

/// `facts` in runs of at most `most` by their `size` together; one that is larger is a run of its own.
pub fn bundles(facts: &[Fact], size: impl Fn(&Fact) -> usize, most: usize) -> Vec<&[Fact]> {
    let (mut found, mut rest) = (vec![], facts);
    while !rest.is_empty() {
        let mut total = 0;
        let fits = |fact: &&Fact| {
            total += size(fact);
            total <= most
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (own, after) = rest.split_at(count);
        found.push(own);
        rest = after;
    }
    found
}

impl Accumulator {
    pub fn new(executor: &dyn Executor, facts: &[Fact]) -> Result<Self> {
        let mut groups = vec![];
        for own in bundles(facts, Fact::bytes, GROUP_BYTES) {
            let program = |adds| -> Result<Box<dyn Compiled>> {
                let (model, known) = weighted(own, adds);
                executor.compile(&model, &known)
            };
            groups.push(Group { count: own.len(), first: program(false)?, next: program(true)? });
        }
        Ok(Self { groups })
    }

    /// `sums + share·gradients`, or `share·gradients` where there are no sums yet.
    pub fn add(&mut self, sums: Option<Vec<Value>>, gradients: Vec<Value>, share: f64) -> Result<Vec<Value>> {
        let share = Value::host(Tensor::scalar(DType::F32, share));
        let mut sums = sums.map(Vec::into_iter);
        let mut gradients = gradients.into_iter();
        let mut totals = vec![];
        for Group { count, first, next } in &mut self.groups {
            let some = gradients.by_ref().take(*count);
            let (program, mut inputs) = match &mut sums {
                Some(sums) => {
                    (next, sums.by_ref().take(*count).zip(some).flat_map(|(s, g)| [s, g]).collect())
                }
                None => (first, some.collect::<Vec<_>>()),
            };
            inputs.push(share.clone());
            totals.extend(program.run(&inputs)?);
        }
        Ok(totals)
    }
}

/// The graph that multiplies gradients with `share`, and `adds` them to sums.
fn weighted(facts: &[Fact], adds: bool) -> (Model, Facts) {
    let mut b = Builder::new("accumulate");
    let mut pairs = vec![];
    for (i, fact) in facts.iter().enumerate() {
        let sum = adds.then(|| b.input(&format!("sum{i}"), fact.clone()));
        pairs.push((sum, b.input(&format!("gradient{i}"), fact.clone())));
    }
    let share = b.input("share", Fact::new(DType::F32, &[]));
    for (i, (sum, gradient)) in pairs.iter().enumerate() {
        let share = b.cast(&share, b.dtype(gradient));
        let part = b.mul(gradient, &share);
        let total = sum.as_ref().map_or_else(|| part.clone(), |sum| b.add(sum, &part));
        b.output_as(&format!("total{i}"), &total);
    }
    let (graph, facts) = b.finish();
    (Model::new(graph, WORKING_OPSET), facts)
}

#[cfg(all(test, feature = "tract"))]
mod tests {
    use super::*;
    use crate::runtime::TractExecutor;

    /// Groups of several gradients and of one that is too large for any; with sums and without.
    #[test]
    fn gradients_are_averaged_group_by_group() -> Result<()> {
        let executor = TractExecutor::new(1)?;
        let shapes: [&[usize]; 6] = [&[512, 64], &[512], &[1536, 512], &[1536], &[], &[512, 512]];
        let facts: Vec<Fact> = shapes.iter().map(|shape| Fact::new(DType::F32, shape)).collect();
        let filled = |value: f32| -> Vec<Value> {
            let of = |f: &Fact| Value::host(Tensor::f32(&f.shape, &vec![value; f.len()]));
            facts.iter().map(of).collect()
        };
        let mut accumulator = Accumulator::new(&executor, &facts)?;
        assert!(accumulator.groups.len() > 1);
        let first = accumulator.add(None, filled(3.0), 0.5)?;
        for (total, fact) in accumulator.add(Some(first), filled(1.0), 0.5)?.iter().zip(&facts) {
            assert_eq!(total.fact(), *fact);
            assert!(total.to_host()?.to_f32().iter().all(|v| *v == 2.0));
        }
        Ok(())
    }
}
