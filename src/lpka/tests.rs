//! The update program as a whole, on two small hand-made models: conv(1→6) conv(6→8) linear(8·4→5) from
//! conv(1→8, 5×5) conv(8→10) linear(10·9→5).

use super::optimizer::Flats;
use super::parameters::Noise;
use super::*;
use crate::onnx::{Builder, DType};
use crate::params::{
    Interface, InterfaceId, InterfaceKind, InterfaceUse, MatrixView, Role, Weight, WeightId, WeightPair,
};
use crate::runtime::{Runner, TractExecutor, Value};
use crate::train::{Optimizer, Preset};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

fn whole(interface: usize, channels: usize, grid: &[usize]) -> InterfaceUse {
    let positions = grid.iter().product();
    InterfaceUse {
        interface: InterfaceId(interface),
        start: 0,
        channels,
        positions,
        grid: grid.to_vec(),
        offset: 0,
        channel_stride: positions,
        position_stride: 1,
    }
}

/// Layers in a chain: (output channels, input channels, kernel, grid of flattened positions), each with a bias.
fn chain(layers: &[(usize, usize, &[usize], &[usize])]) -> ParamGraph {
    let mut graph = ParamGraph::default();
    let interface = |kind, channels, depth| Interface {
        kind,
        channels,
        producers: vec![],
        consumers: vec![],
        vectors: vec![],
        depth,
    };
    graph.interfaces.push(interface(InterfaceKind::Input, layers[0].1, 0));
    for (i, &(out, inn, taps, grid)) in layers.iter().enumerate() {
        let kind = if i + 1 == layers.len() { InterfaceKind::Output } else { InterfaceKind::Hidden };
        let features = inn * grid.iter().product::<usize>();
        let shape = [&[out, features], taps].concat();
        let mut weight = Weight {
            name: format!("w{i}").as_str().into(),
            role: if taps.is_empty() { Role::Linear } else { Role::Conv },
            shape: shape.clone(),
            dtype: DType::F32,
            site: None,
            view: Some(MatrixView {
                out,
                inn: features,
                taps: taps.to_vec(),
                group: 1,
                split: shape.clone(),
                perm: (0..shape.len()).collect(),
                order: vec![],
            }),
            depth: i,
            relative_depth: 0.0,
            nodes: vec![],
            spectrum: vec![],
            input: vec![whole(i, inn, grid)],
            output: vec![whole(i + 1, out, &[])],
        };
        graph.weights.push(weight.clone());
        weight.name = format!("b{i}").as_str().into();
        (weight.role, weight.shape, weight.view, weight.input) = (Role::Bias, vec![out], None, vec![]);
        graph.weights.push(weight);
        graph.interfaces[i].consumers.push(WeightId(2 * i));
        graph.interfaces.push(interface(kind, out, i + 1));
        graph.interfaces[i + 1].producers.push(WeightId(2 * i));
        graph.interfaces[i + 1].vectors.push(WeightId(2 * i + 1));
    }
    graph
}

fn target() -> ParamGraph {
    chain(&[(6, 1, &[3, 3], &[]), (8, 6, &[3, 3], &[]), (5, 8, &[], &[2, 2])])
}
fn source() -> ParamGraph {
    chain(&[(8, 1, &[5, 5], &[]), (10, 8, &[3, 3], &[]), (5, 10, &[], &[3, 3])])
}

fn random_side(graph: &ParamGraph, seed: u64) -> Side<'_> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut tensor = |w: &Weight| {
        Tensor::f32(&w.shape, &(0..w.len()).map(|_| random.random::<f32>() - 0.5).collect::<Vec<_>>())
    };
    Side { graph, weights: graph.weights.iter().map(|w| (w.name.clone(), tensor(w))).collect() }
}

fn pairing() -> Pairing {
    let pair = |i: usize| WeightPair {
        target: WeightId(2 * i),
        source: Some(WeightId(2 * i)),
        candidates: vec![WeightId(2 * i), WeightId(0)],
    };
    Pairing {
        interfaces: (0..4).map(|i| (InterfaceId(i), InterfaceId(i))).collect(),
        weights: (0..3).map(pair).collect(),
        ..Pairing::default()
    }
}

fn config(preset: Preset) -> TrainConfig {
    let mut config = TrainConfig { optimizer: Optimizer::Sgd, weight_decay: 0.0, ..TrainConfig::default() };
    config.adapter.preset = preset;
    config.adapter.dropout = 0.0;
    config
}

fn executor() -> Arc<TractExecutor> {
    Arc::new(TractExecutor::new(1).expect("tract is always there"))
}

fn names(graph: &ParamGraph) -> Vec<ValueId> {
    graph.weights.iter().map(|w| w.name.clone()).collect()
}

fn program(config: &TrainConfig, gate: f64, with_source: bool) -> Result<UpdateProgram> {
    let (t, s) = (target(), source());
    let (target, source) = (random_side(&t, 1), random_side(&s, 2));
    let pairing = pairing();
    let origins = if with_source { vec![Origin::new(source, &pairing)] } else { vec![] };
    build(&target, &origins, &names(&t), config, gate, &*executor(), 3)
}

/// Steps with fixed gradients at a constant rate; all W′ after each step.
fn steps(program: &UpdateProgram, count: usize, rate: f32) -> Result<Vec<Vec<Tensor>>> {
    let mut runner = Runner::new(executor(), &program.step_program())?;
    let mut random = ChaCha8Rng::seed_from_u64(9);
    let mut feeds = vec![(program.learning_rate.clone(), Value::host(Tensor::f32(&[], &[rate])))];
    for (_, input) in &program.gradients {
        let shape = program.facts[input].shape.clone();
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| random.random::<f32>() - 0.5).collect();
        feeds.push((input.clone(), Value::host(Tensor::f32(&shape, &values))));
    }
    let mut all = vec![];
    for _ in 0..count {
        for (input, fact) in &program.noise {
            let values: Vec<f32> = (0..fact.len()).map(|_| random.random()).collect();
            feeds.push((input.clone(), Value::host(Tensor::f32(&fact.shape, &values))));
        }
        let outputs = runner.step(&feeds)?;
        all.push(program.merged.iter().map(|(_, output)| outputs[output].to_host()).collect::<Result<_>>()?);
    }
    Ok(all)
}

fn distance(a: &Tensor, b: &Tensor) -> f32 {
    a.to_f32().iter().zip(b.to_f32().iter()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_closed_gate_leaves_the_target_as_it_is() -> Result<()> {
    let graph = target();
    let side = random_side(&graph, 1);
    for preset in [Preset::Structured, Preset::Residual, Preset::Paper] {
        let program = program(&config(preset), 0.0, true)?;
        for (name, tensor) in &program.initial {
            assert_eq!(*tensor, side.weights[name], "{name}");
        }
        assert!(program.adapter_parameters > 0);
    }
    Ok(())
}

#[test]
fn an_open_gate_starts_at_a_slice_of_the_source() -> Result<()> {
    let (t, s) = (target(), source());
    let (ours, theirs) = (random_side(&t, 1), random_side(&s, 2));
    let program = program(&config(Preset::Structured), 1.0, true)?;
    let means = |name: &str| program.transfers.iter().find(|x| x.target.as_str() == name).map(|x| x.by);
    assert_eq!(means("w1"), Some(Means::InterfaceMaps));
    assert_eq!(means("b1"), Some(Means::MappedStart));
    // The second convolution: rows 0, 1, 3, 4, 5, 6, 8, 9 and columns 0, 1, 3, 4, 6, 7 of the source's, of equal spread.
    let start = &program.initial.iter().find(|(n, _)| n.as_str() == "w1").expect("w1 is trained").1;
    let (start, slice) = (start.to_f32().into_owned(), theirs.weights[&"w1".into()].to_f32().into_owned());
    let (rows, cols) = (interface::selection(8, 10), interface::selection(6, 8));
    let mut picked = vec![];
    for r in rows {
        for &c in &cols {
            picked.extend_from_slice(&slice[(r * 8 + c) * 9..][..9]);
        }
    }
    let norm = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
    let cosine = start.iter().zip(&picked).map(|(a, b)| a * b).sum::<f32>() / norm(&start) / norm(&picked);
    assert!(cosine > 0.95, "{cosine}");
    let std = |v: &[f32]| crate::params::Matrix::new(1, v.len(), v.to_vec()).std();
    assert!((std(&start) / std(&ours.weights[&"w1".into()].to_f32()) - 1.0).abs() < 1e-3);
    Ok(())
}

#[test]
fn a_fitted_start_is_where_the_first_step_begins() -> Result<()> {
    let (t, s) = (target(), source());
    let (ours, theirs) = (random_side(&t, 1), random_side(&s, 2));
    let pairing = pairing();
    let fitted: HashMap<ValueId, Tensor> =
        random_side(&t, 5).weights.into_iter().filter(|(name, _)| !name.as_str().ends_with('2')).collect();
    let start = Start { gate: 1.0, fitted: fitted.clone() };
    let origins = [Origin::new(theirs, &pairing)];
    let config = config(Preset::Structured);
    let program = build(&ours, &origins, &names(&t), &config, start, &*executor(), 3)?;
    for (name, wanted) in &fitted {
        let first = &program.initial.iter().find(|(n, _)| n == name).expect("it is trained").1;
        assert!(distance(first, wanted) < 1e-5, "{name}");
    }
    assert!(program.transfers.iter().any(|t| t.target.as_str() == "w0"), "the adapter is still there");
    Ok(())
}

#[test]
fn weights_whose_view_splits_their_axes_keep_their_shape() -> Result<()> {
    let (mut t, s) = (target(), source());
    let view = t.weights[2].view.as_mut().expect("the second convolution");
    view.split.insert(0, 1);
    view.perm = (0..view.split.len()).collect();
    let (ours, theirs) = (random_side(&t, 1), random_side(&s, 2));
    let pairing = pairing();
    let origins = [Origin::new(theirs, &pairing)];
    let program = build(&ours, &origins, &names(&t), &config(Preset::Structured), 1.0, &*executor(), 3)?;
    let first = &program.initial.iter().find(|(n, _)| n.as_str() == "w1").expect("it is trained").1;
    assert_eq!(first.shape(), ours.weights[&"w1".into()].shape());
    steps(&program, 2, 0.1).map(drop)
}

#[test]
fn chosen_channels_are_what_an_open_gate_starts_from() -> Result<()> {
    let (t, s) = (target(), source());
    let (ours, theirs) = (random_side(&t, 1), random_side(&s, 2));
    let pairing = pairing();
    let choice = vec![7, 6, 5, 4, 3, 2];
    let mut origin = Origin::new(theirs.clone(), &pairing);
    origin.choices.insert((InterfaceId(1), InterfaceId(1)), choice.clone());
    let config = config(Preset::Structured);
    let program = build(&ours, &[origin], &names(&t), &config, 1.0, &*executor(), 3)?;
    let first = |name: &str| {
        program
            .initial
            .iter()
            .find(|(n, _)| n.as_str() == name)
            .expect("it is trained")
            .1
            .to_f32()
            .into_owned()
    };
    let bias = theirs.weights[&"b0".into()].to_f32().into_owned();
    assert_eq!(first("b0"), choice.iter().map(|&c| bias[c]).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn fine_tuning_is_the_optimiser_alone() -> Result<()> {
    let program = program(&config(Preset::Structured), 1.0, false)?;
    assert_eq!(program.adapter_parameters, 0);
    let after = steps(&program, 2, 0.1)?;
    let before: Vec<&Tensor> = program.initial.iter().map(|(_, t)| t).collect();
    // Constant gradient g, momentum 0.9: the second step is 1.9 times the first.
    let (first, second) = (distance(&after[0][0], before[0]), distance(&after[1][0], &after[0][0]));
    assert!(first > 0.0 && (second / first - 1.9).abs() < 1e-3, "{first} {second}");
    Ok(())
}

/// dL/dθ as the program computes it, against the slope of L = Σ C · W′(θ) along random directions.
#[test]
fn the_step_follows_the_gradient_of_the_merged_weights() -> Result<()> {
    for (preset, gate) in [(Preset::Structured, 0.7), (Preset::Residual, 0.5)] {
        let (t, s) = (target(), source());
        let (ours, theirs) = (random_side(&t, 1), random_side(&s, 2));
        let config = config(preset);
        let pairing = pairing();
        let plan = plan(
            &ours,
            &[Origin::new(theirs.clone(), &pairing)],
            &names(&t),
            &config,
            gate,
            &*executor(),
            3,
        )?;
        let flats = Flats::new(&plan.parameters);
        let theta = flats.initial(&plan.parameters);
        let program = update::assemble(&plan, &config, &*executor(), 3)?;
        let rate = 1e-2;
        let before: Vec<Vec<f32>> = theta.iter().map(|t| t.to_f32().into_owned()).collect();
        let mut runner = Runner::new(executor(), &program.step_program())?;
        let mut random = ChaCha8Rng::seed_from_u64(4);
        let mut feeds = vec![(program.learning_rate.clone(), Value::host(Tensor::f32(&[], &[rate])))];
        let mut cotangents = vec![];
        for (_, input) in &program.gradients {
            let shape = program.facts[input].shape.clone();
            let values: Vec<f32> =
                (0..shape.iter().product()).map(|_| random.random::<f32>() - 0.5).collect();
            feeds.push((input.clone(), Value::host(Tensor::f32(&shape, &values))));
            cotangents.push(values);
        }
        runner.step(&feeds)?;
        let mut gradient = vec![];
        for (i, old) in before.iter().enumerate() {
            let new = runner.state(&format!("flat{i}").as_str().into())?;
            gradient.push(
                old.iter().zip(new.to_f32().iter()).map(|(o, n)| ((o - n) / rate) as f64).collect::<Vec<_>>(),
            );
        }
        let loss = |theta: &[Vec<f32>]| -> Result<f64> {
            let mut b = Builder::new("loss");
            let inputs = flats.inputs(&mut b, "flat");
            let values = flats.views(&mut b, &inputs);
            for (i, merged) in plan.emit(&mut b, &values, &mut Noise::Off).iter().enumerate() {
                b.output_as(&format!("out{i}"), merged);
            }
            let (graph, facts) = b.finish();
            let feeds: Vec<Value> = theta.iter().map(|v| Value::host(Tensor::f32(&[v.len()], v))).collect();
            let merged = update::run_once(&*executor(), graph, facts, &feeds)?;
            let dot = |(m, c): (&Tensor, &Vec<f32>)| {
                m.to_f32().iter().zip(c).map(|(m, c)| *m as f64 * *c as f64).sum::<f64>()
            };
            Ok(merged.iter().zip(&cotangents).map(dot).sum())
        };
        for _ in 0..3 {
            let direction: Vec<Vec<f32>> =
                before.iter().map(|v| v.iter().map(|_| random.random::<f32>() - 0.5).collect()).collect();
            let moved = |by: f32| -> Vec<Vec<f32>> {
                let part =
                    |(v, d): (&Vec<f32>, &Vec<f32>)| v.iter().zip(d).map(|(v, d)| v + by * d).collect();
                before.iter().zip(&direction).map(part).collect()
            };
            let h = 2e-3;
            let slope = (loss(&moved(h))? - loss(&moved(-h))?) / (2.0 * h as f64);
            let along: f64 = gradient
                .iter()
                .zip(&direction)
                .flat_map(|(g, d)| g.iter().zip(d))
                .map(|(g, d)| g * *d as f64)
                .sum();
            assert!(
                (slope - along).abs() < 1e-2 * (1.0 + slope.abs()),
                "{preset:?}: {slope} against {along}"
            );
        }
    }
    Ok(())
}

/// What a step leaves to the next is what the next would compute itself.
#[test]
fn carrying_activations_changes_nothing() -> Result<()> {
    for (preset, dropout) in [(Preset::Structured, 0.0), (Preset::Residual, 0.0), (Preset::Residual, 0.2)] {
        let mut config = config(preset);
        config.optimizer = Optimizer::Adamw;
        config.adapter.dropout = dropout;
        config.clip = 1.0;
        let program = program(&config, 0.5, true)?;
        assert_eq!(program.noise.is_empty(), dropout == 0.0);
        assert!(program.state.iter().any(|s| s.input.as_str().starts_with("carried/")));
        let carried = steps(&program, 3, 1e-2)?;
        assert!(carried[2].iter().all(|t| t.first_non_finite().is_none()));
        if dropout > 0.0 {
            assert_ne!(program.clean, program.merged);
            continue;
        }
        let fresh = steps(&recomputing(&config)?, 3, 1e-2)?;
        for (a, b) in carried.iter().flatten().zip(fresh.iter().flatten()) {
            assert!(distance(a, b) < 1e-5, "{preset:?}: {}", distance(a, b));
        }
    }
    Ok(())
}

/// The same program, with the formula evaluated at the old parameters anew in each step.
fn recomputing(config: &TrainConfig) -> Result<UpdateProgram> {
    let (t, s) = (target(), source());
    let (ours, theirs) = (random_side(&t, 1), random_side(&s, 2));
    let pairing = pairing();
    let plan =
        plan(&ours, &[Origin::new(theirs.clone(), &pairing)], &names(&t), config, 0.5, &*executor(), 3)?;
    update::assemble_recomputing(&plan, config, &*executor(), 3)
}

#[test]
fn empty_twins_have_the_same_shapes_and_other_values() {
    let graph = source();
    let side = random_side(&graph, 2);
    let shuffled = shuffled(&side, 1);
    let untrained = untrained(&side, 1);
    for (name, tensor) in &side.weights {
        let (a, b) = (&shuffled.weights[name], &untrained.weights[name]);
        assert_eq!((a.shape(), b.shape()), (tensor.shape(), tensor.shape()));
        assert_ne!(a, tensor);
        let sorted = |t: &Tensor| {
            let mut values = t.to_f64();
            values.sort_by(f64::total_cmp);
            values
        };
        assert_eq!(sorted(a), sorted(tensor));
    }
}

/// In the paper's scheme θ moves at the end of each cycle, and the target at every step.
#[test]
fn replacements_happen_once_a_cycle() -> Result<()> {
    let mut config = config(Preset::Paper);
    config.optimizer = Optimizer::Adamw;
    config.adapter.cycle = Some(3);
    let program = program(&config, 0.3, true)?;
    let (t, at) = (target(), |program: &UpdateProgram, weight: &str| {
        program.initial.iter().find(|(name, _)| name.as_str() == weight).map(|(_, tensor)| tensor.clone())
    });
    assert_ne!(at(&program, "w1"), random_side(&t, 1).weights.get(&"w1".into()).cloned());
    let mut runner = Runner::new(executor(), &program.step_program())?;
    let mut feeds = vec![(program.learning_rate.clone(), Value::host(Tensor::f32(&[], &[1e-2])))];
    for (_, input) in &program.gradients {
        let shape = program.facts[input].shape.clone();
        feeds.push((input.clone(), Value::host(Tensor::f32(&shape, &vec![0.1; shape.iter().product()]))));
    }
    let mut theta = vec![runner.state(&"theta0".into())?];
    for _ in 0..6 {
        let before = runner.state(&"flat0".into())?;
        runner.step(&feeds)?;
        theta.push(runner.state(&"theta0".into())?);
        assert_ne!(runner.state(&"flat0".into())?, before);
        assert_eq!(runner.state(&"flat0".into())?.first_non_finite(), None);
    }
    let moved: Vec<bool> = theta.windows(2).map(|pair| pair[0] != pair[1]).collect();
    assert_eq!(moved, [false, false, true, false, false, true]);
    Ok(())
}
