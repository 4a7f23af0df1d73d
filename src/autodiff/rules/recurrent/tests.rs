//! The loop against the steps written out, with every option: what the layers give and all their gradients.

use super::emit;
use crate::autodiff::{backward, lower::lower};
use crate::error::Result;
use crate::onnx::{Attr, Builder, DType, Fact, Model, Node, Tensor, ValueId, WORKING_OPSET};
use crate::runtime::{Executor, TractExecutor, Value};
use rand::{RngExt, SeedableRng};

const STEPS: usize = 5;
const BATCH: usize = 3;
const INPUTS: usize = 2;
const HIDDEN: usize = 4;

/// A layer of the given options, with inputs for all its parameters.
#[derive(Clone, Copy, Debug)]
struct Case {
    op: &'static str,
    direction: &'static str,
    /// Sequences of different lengths.
    lengths: bool,
    /// First states are given.
    states: bool,
    /// What only some layers have: peepholes, limits, coupled gates, other activations.
    odd: bool,
    linear_before_reset: bool,
    batch_first: bool,
}

impl Case {
    fn directions(&self) -> usize {
        if self.direction == "bidirectional" { 2 } else { 1 }
    }
    fn node(&self) -> Node {
        let names = ["x", "w", "r", "b", "lengths", "h", "c", "p"];
        let has = |i: usize| match i {
            4 => self.lengths,
            5 => self.states,
            6 => self.states && self.op == "LSTM",
            7 => self.odd && self.op == "LSTM",
            _ => true,
        };
        let (activations, outputs): (&[&str], &[&str]) = match self.op {
            "LSTM" => (&["HardSigmoid", "Softsign", "Tanh"], &["y", "yh", "yc"]),
            "GRU" => (&["HardSigmoid", "Softsign"], &["y", "yh"]),
            _ => (&["Softsign"], &["y", "yh"]),
        };
        let id = |name: &&str| ValueId::new(name);
        let outputs: Vec<ValueId> = outputs.iter().map(id).collect();
        let mut node = Node::new(self.op, &[], &outputs.iter().collect::<Vec<_>>())
            .with("hidden_size", HIDDEN as i64)
            .with("direction", self.direction);
        node.inputs = names.iter().enumerate().map(|(i, name)| has(i).then(|| ValueId::new(name))).collect();
        if self.odd {
            let names = activations.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>();
            let names = (0..self.directions()).flat_map(|_| names.clone()).collect();
            node.attrs.insert("activations".into(), Attr::Strs(names));
            node.attrs.insert("clip".into(), Attr::Float(0.6));
        }
        if self.op == "LSTM" && self.odd && !self.states {
            node.attrs.insert("input_forget".into(), Attr::Int(1));
        }
        if self.linear_before_reset {
            node.attrs.insert("linear_before_reset".into(), Attr::Int(1));
        }
        if self.batch_first {
            node.attrs.insert("layout".into(), Attr::Int(1));
        }
        node
    }
    fn gates(&self) -> usize {
        match self.op {
            "LSTM" => 4,
            "GRU" => 3,
            _ => 1,
        }
    }
    /// Time, batch and directions of a shape in the node's order.
    fn state_shape(&self) -> Vec<usize> {
        let d = self.directions();
        if self.batch_first { vec![BATCH, d, HIDDEN] } else { vec![d, BATCH, HIDDEN] }
    }
    fn shape(&self, name: &str) -> Vec<usize> {
        let (d, rows) = (self.directions(), self.gates() * HIDDEN);
        match (name, self.batch_first) {
            ("x", false) => vec![STEPS, BATCH, INPUTS],
            ("x", true) => vec![BATCH, STEPS, INPUTS],
            ("w", _) => vec![d, rows, INPUTS],
            ("r", _) => vec![d, rows, HIDDEN],
            ("b", _) => vec![d, 2 * rows],
            ("p", _) => vec![d, 3 * HIDDEN],
            ("y", false) => vec![STEPS, d, BATCH, HIDDEN],
            ("y", true) => vec![BATCH, STEPS, d, HIDDEN],
            _ => self.state_shape(),
        }
    }
}

/// What the layer gives, and the gradient of a random sum of all of it with respect to every parameter.
fn results(case: &Case, written_out: bool) -> Result<Vec<(String, Vec<f64>)>> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
    let mut random = |shape: &[usize]| {
        let count = shape.iter().product::<usize>();
        Tensor::f32(shape, &(0..count).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>())
    };
    let mut b = Builder::new("layer");
    let node = case.node();
    let (mut feeds, mut wrt) = (vec![], vec![]);
    for input in node.inputs.iter().flatten() {
        if input.as_str() == "lengths" {
            let lengths = Tensor::from_f64(DType::I32, &[BATCH], &[STEPS as f64, 2.0, 4.0]);
            b.input("lengths", Fact::of(&lengths));
            feeds.push(Value::host(lengths));
            continue;
        }
        let value = random(&case.shape(input.as_str()));
        wrt.push(b.input(input.as_str(), Fact::of(&value)));
        feeds.push(Value::host(value));
    }
    let outputs: Vec<ValueId> = node.outputs.iter().flatten().cloned().collect();
    let made = match written_out {
        true => emit(&mut b, &node, STEPS)?.into_iter().flatten().collect(),
        false => {
            b.push(node.clone());
            outputs.clone()
        }
    };
    let mut seeds = vec![];
    for (output, made) in outputs.iter().zip(made) {
        let fact = Fact::new(DType::F32, &case.shape(output.as_str()));
        b.set_fact(&made, fact.clone());
        let weights = b.initializer(&format!("seed.{output}"), random(&fact.shape));
        b.output_as(&format!("out.{output}"), &made);
        seeds.push((made, weights));
    }
    let found = backward(&mut b, &seeds, &wrt)?;
    for id in &wrt {
        b.output_as(&format!("{id}.grad"), &found[id]);
    }
    let (mut graph, facts) = b.finish();
    graph.prune();
    let (graph, facts) = lower(graph, facts)?;
    let loops = graph.nodes.iter().filter(|n| n.is("Scan")).count();
    assert_eq!(loops, if written_out { 0 } else { 2 * case.directions() }, "{case:?}");
    let names: Vec<String> = graph.outputs.iter().map(|o| o.id.to_string()).collect();
    let mut program = TractExecutor::new(1)?.compile(&Model::new(graph, WORKING_OPSET), &facts)?;
    let made = program.run(&feeds)?;
    names.into_iter().zip(made).map(|(name, value)| Ok((name, value.to_host()?.to_f64()))).collect()
}

fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for op in ["LSTM", "GRU", "RNN"] {
        for (direction, lengths, states) in
            [("forward", false, true), ("reverse", true, true), ("bidirectional", true, false)]
        {
            for (odd, linear_before_reset, batch_first) in
                [(false, false, false), (true, false, false), (false, true, true)]
            {
                let linear_before_reset = linear_before_reset && op == "GRU";
                cases.push(Case { op, direction, lengths, states, odd, linear_before_reset, batch_first });
            }
        }
    }
    cases
}

#[test]
fn the_loop_gives_what_the_steps_written_out_give() -> Result<()> {
    for case in cases() {
        let (expected, found) = (results(&case, true)?, results(&case, false)?);
        for ((name, expected), (_, found)) in expected.iter().zip(&found) {
            let size = expected.iter().fold(0.1, |size: f64, v| size.max(v.abs()));
            let worst = expected.iter().zip(found).map(|(e, f)| (e - f).abs() / size).fold(0.0, f64::max);
            assert!(expected.len() == found.len() && worst < 2e-5, "{name} of {case:?} is off by {worst:e}");
            assert!(expected.iter().any(|v| v.abs() > 1e-3), "{name} of {case:?} shows nothing");
        }
    }
    Ok(())
}

/// A cotangent that fades must not become a number that processors are slow with, and none that hasn't may be lost.
#[test]
fn cotangents_fade_to_zero_and_not_below_normal_numbers() -> Result<()> {
    let steps = 60;
    let mut b = Builder::new("fading");
    let x = b.input("x", Fact::new(DType::F32, &[steps, 1, 1]));
    let one = b.initializer("w", Tensor::f32(&[1, 1, 1], &[1.0]));
    let tenth = b.initializer("r", Tensor::f32(&[1, 1, 1], &[0.1]));
    let outputs = [ValueId::new("y"), ValueId::new("yh")];
    let mut node = Node::new("RNN", &[&x, &one, &tenth], &[&outputs[0], &outputs[1]]).with("hidden_size", 1);
    node.attrs.insert("activations".into(), Attr::Strs(vec!["Affine".into()]));
    b.push(node);
    b.set_fact(&outputs[0], Fact::new(DType::F32, &[steps, 1, 1, 1]));
    b.set_fact(&outputs[1], Fact::new(DType::F32, &[1, 1, 1]));
    let seed = b.initializer("seed", Tensor::f32(&[1, 1, 1], &[1.0]));
    let found = backward(&mut b, &[(outputs[1].clone(), seed)], std::slice::from_ref(&x))?;
    b.output_as("grad", &found[&x]);
    let (mut graph, facts) = b.finish();
    graph.prune();
    let (graph, facts) = lower(graph, facts)?;
    let mut program = TractExecutor::new(1)?.compile(&Model::new(graph, WORKING_OPSET), &facts)?;
    let gradient =
        program.run(&[Value::host(Tensor::zeros(DType::F32, &[steps, 1, 1]))])?[0].to_host()?.to_f64();
    // 0.1 to the power of how far a step is from the last.
    for (t, g) in gradient.iter().enumerate() {
        let expected = 0.1f64.powi((steps - 1 - t) as i32);
        match expected {
            e if e > 1e-29 => assert!((g - e).abs() < 1e-5 * e, "step {t}: {g:e} is not {e:e}"),
            e if e < 1e-31 => assert_eq!(*g, 0.0, "step {t}"),
            _ => {}
        }
    }
    Ok(())
}
