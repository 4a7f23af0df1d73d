//! What is trained, and the formula that makes merged weights of it.
//!
//! A [`Plan`] lists the trained tensors ([`Parameters`]) and, for each target weight, how W′ is computed from them.
//! [`Plan::emit`] writes that formula into a graph, for any values of the parameters.

use super::lens::Attended;
use super::update::run_once;
use super::{Side, Transfer, tensor_of};
use crate::error::Result;
use crate::onnx::{Builder, DType, Fact, Tensor, ValueId, node_reads};
use crate::runtime::{Executor, Value};
use crate::train::TrainConfig;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{HashMap, HashSet};

/// A trained tensor: an index into [`Parameters`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct ParamId(pub usize);

/// A trained tensor.
#[derive(Clone)]
pub(super) struct Parameter {
    pub name: String,
    /// Float32.
    pub initial: Tensor,
    /// Decoupled weight decay.
    pub decay: f64,
    /// Stays as it is.
    pub frozen: bool,
}

/// All trained tensors, and the generator their first values come from.
pub(super) struct Parameters {
    pub list: Vec<Parameter>,
    random: ChaCha8Rng,
}

impl Parameters {
    pub fn new(seed: u64) -> Self {
        Self { list: vec![], random: ChaCha8Rng::seed_from_u64(seed ^ 0x6c70_6b61_7468_6574) }
    }
    /// A new parameter. What several sources add under the same name is told apart by a number.
    pub fn add(&mut self, name: impl Into<String>, initial: Tensor, decay: f64) -> ParamId {
        let name = name.into();
        let taken = |name: &str| self.list.iter().any(|p| p.name == name);
        let free =
            (1..).map(|i| if i == 1 { name.clone() } else { format!("{name}@{i}") }).find(|n| !taken(n));
        self.list.push(Parameter { name: free.unwrap_or(name), initial, decay, frozen: false });
        ParamId(self.list.len() - 1)
    }
    /// Keeps a parameter from being trained.
    pub fn freeze(&mut self, id: ParamId) {
        self.list[id.0].frozen = true;
    }
    pub fn zeros(&mut self, name: impl Into<String>, shape: &[usize]) -> ParamId {
        self.add(name, Tensor::zeros(DType::F32, shape), 0.0)
    }
    pub fn filled(&mut self, name: impl Into<String>, shape: &[usize], value: f32) -> ParamId {
        let count = shape.iter().product();
        self.add(name, Tensor::f32(shape, &vec![value; count]), 0.0)
    }
    /// Normally distributed around zero.
    pub fn normal(&mut self, name: impl Into<String>, shape: &[usize], std: f64) -> ParamId {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| (std * normal(&mut self.random)) as f32).collect();
        self.add(name, Tensor::f32(shape, &values), 0.0)
    }
    /// Uniform in ± 1/√`fan_in`, as PyTorch starts linear layers.
    pub fn uniform(&mut self, name: impl Into<String>, shape: &[usize], fan_in: usize) -> ParamId {
        let (count, bound) = (shape.iter().product(), 1.0 / (fan_in.max(1) as f64).sqrt());
        let values: Vec<f32> =
            (0..count).map(|_| (bound * (2.0 * self.random.random::<f64>() - 1.0)) as f32).collect();
        self.add(name, Tensor::f32(shape, &values), 0.0)
    }
    /// Replaces a share of a parameter's first value: takes away as much of `own`, the target's, and adds as much of `other`.
    pub fn replace(&mut self, id: ParamId, share: f64, own: &Tensor, other: &[f32]) {
        let initial = &mut self.list[id.0].initial;
        let moved = |((value, own), other): ((&f32, &f32), &f32)| {
            (*value as f64 + share * (*other as f64 - *own as f64)) as f32
        };
        let (values, own) = (initial.to_f32(), own.to_f32());
        let values: Vec<f32> = values.iter().zip(own.iter()).zip(other).map(moved).collect();
        *initial = Tensor::f32(initial.shape(), &values);
    }
    /// Multiplies a parameter's first value.
    fn scale(&mut self, id: ParamId, by: f32) {
        let initial = &mut self.list[id.0].initial;
        *initial = Tensor::f32(initial.shape(), &initial.to_f32().iter().map(|v| by * v).collect::<Vec<_>>());
    }
    /// Runs what `emit` makes outputs of, once, on the first values.
    pub fn evaluate(
        &self,
        executor: &dyn Executor,
        emit: impl FnOnce(&mut Builder, &[ValueId]),
    ) -> Result<Vec<Tensor>> {
        let mut b = Builder::new("first values");
        let values: Vec<ValueId> = self.list.iter().map(|p| b.input(&p.name, Fact::of(&p.initial))).collect();
        emit(&mut b, &values);
        let (mut graph, facts) = b.finish();
        let read: HashSet<ValueId> = graph.nodes.iter().flat_map(node_reads).collect();
        graph.inputs.retain(|i| read.contains(&i.id));
        let feeds = self.list.iter().zip(&values).filter(|(_, id)| read.contains(*id));
        let feeds: Vec<Value> = feeds.map(|(p, _)| Value::host(p.initial.clone())).collect();
        run_once(executor, graph, facts, &feeds)
    }
    /// Number of trained numbers.
    pub fn count(&self) -> usize {
        self.list.iter().map(|p| p.initial.len()).sum()
    }
}

/// The s between 0 and 1 for which s · `carried` comes closest to what is `wanted`.
fn share(carried: &[f32], wanted: &[f32]) -> f32 {
    let dot =
        |other: &[f32]| carried.iter().zip(other).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let share = dot(wanted) / dot(carried);
    if share.is_finite() { share.clamp(0.0, 1.0) as f32 } else { 1.0 }
}

/// A standard normal number (Box and Muller).
pub(super) fn normal(random: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (1.0 - random.random::<f64>(), random.random());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// The target's own values of a weight, W.
pub(super) struct Base {
    pub weight: ValueId,
    pub parameter: ParamId,
    /// As the model has it; W itself is kept in float32.
    pub dtype: DType,
    pub shape: Vec<usize>,
}

/// Where random numbers for dropout come from while a formula is emitted.
pub(super) enum Noise<'a> {
    /// Nothing is dropped.
    Off,
    /// Inputs of the graph, taken in the order of emission; missing ones are declared.
    Inputs { taken: usize, inputs: &'a mut Vec<(ValueId, Fact)> },
}

impl Noise<'_> {
    /// `x` with a share `p` of its elements set to zero and the others scaled up to make up for it.
    pub fn dropout(&mut self, b: &mut Builder, x: &ValueId, p: f64) -> ValueId {
        let Noise::Inputs { taken, inputs } = self else { return x.clone() };
        if p <= 0.0 {
            return x.clone();
        }
        if *taken == inputs.len() {
            let fact = Fact::new(DType::F32, &b.shape(x));
            let input = b.input(&format!("noise/{taken}"), fact.clone());
            inputs.push((input, fact));
        }
        let noise = inputs[*taken].0.clone();
        *taken += 1;
        let limit = b.scalar_like(&noise, p);
        let kept = b.op("GreaterOrEqual", &[&noise, &limit]);
        let kept = b.cast(&kept, DType::F32);
        let mask = b.mul_scalar(&kept, 1.0 / (1.0 - p));
        b.mul(x, &mask)
    }
}

/// What is trained and how W′ comes of it.
pub(super) struct Plan {
    pub parameters: Parameters,
    pub bases: Vec<Base>,
    pub transfers: Vec<Transfer>,
    /// Added to W for some of the weights.
    pub layers: Vec<Box<dyn Layer>>,
    /// Maps between channel spaces that the model step wants beside the weights, in the order in which layers emit them.
    pub maps: Vec<Linked>,
    /// Numbers in `parameters` that are the target's own.
    pub own: usize,
}

/// A value that the update step leaves to the model step, and takes the gradient of.
#[derive(Clone)]
pub(super) struct Linked {
    pub name: ValueId,
    pub fact: Fact,
}

/// What a layer gives to the model step.
#[derive(Default)]
pub(super) struct Emitted {
    /// What is added to weights: (index into [`Plan::bases`], value in the weight's shape).
    pub additions: Vec<(usize, ValueId)>,
    /// Those of [`Plan::maps`] that the layer declared, in that order.
    pub maps: Vec<ValueId>,
}

/// A piece of the adapter: what it adds to the target's own values of one or more weights.
pub(super) trait Layer {
    fn emit(&self, b: &mut Builder, values: &[ValueId], noise: &mut Noise<'_>) -> Emitted;
    /// Emits what this piece attends to, without dropout.
    fn attended(&self, _: &mut Builder, _: &[ValueId], _: &[Base]) -> Vec<Attended> {
        vec![]
    }
    /// The gates at the weights it adds to, by their index into [`Plan::bases`].
    fn gates(&self) -> Vec<(usize, ParamId)> {
        vec![]
    }
    /// Whether anything is dropped in training.
    fn drops(&self) -> bool {
        false
    }
}

impl Plan {
    /// Every trainable weight trained directly: fine-tuning, and what the adapters build on.
    pub fn direct(target: &Side<'_>, trainable: &[ValueId], config: &TrainConfig, seed: u64) -> Result<Self> {
        let mut parameters = Parameters::new(seed);
        let mut bases = vec![];
        for weight in trainable {
            let tensor = tensor_of(target, weight)?;
            let decay = if tensor.rank() > 1 { config.weight_decay } else { 0.0 };
            let parameter = parameters.add(weight.as_str(), tensor.cast(DType::F32), decay);
            bases.push(Base {
                weight: weight.clone(),
                parameter,
                dtype: tensor.dtype(),
                shape: tensor.shape().to_vec(),
            });
        }
        let own = parameters.count();
        Ok(Self { parameters, bases, transfers: vec![], layers: vec![], maps: vec![], own })
    }

    /// All that the model step reads: the bases' W′, then the maps.
    pub fn linked(&self) -> Vec<Linked> {
        let of = |base: &Base| Linked { name: base.weight.clone(), fact: Fact::new(base.dtype, &base.shape) };
        self.bases.iter().map(of).chain(self.maps.iter().cloned()).collect()
    }

    /// Emits the values of [`Plan::linked`], in float32, from the parameters' `values`.
    pub fn emit(&self, b: &mut Builder, values: &[ValueId], noise: &mut Noise<'_>) -> Vec<ValueId> {
        let mut merged: Vec<ValueId> =
            self.bases.iter().map(|base| values[base.parameter.0].clone()).collect();
        let mut maps = vec![];
        for layer in &self.layers {
            let emitted = layer.emit(b, values, noise);
            for (base, addition) in emitted.additions {
                // A matrix view may split axes that the weight has as one.
                let addition = b.reshape(&addition, &self.bases[base].shape);
                merged[base] = b.add(&merged[base], &addition);
            }
            maps.extend(emitted.maps);
        }
        debug_assert_eq!(maps.len(), self.maps.len());
        merged.extend(maps);
        merged
    }
    /// Moves W so that the first W′ is what is wanted, for those weights that something is wanted of.
    ///
    /// Of what the maps carry, T, as much stays as what is wanted has of it: gates are multiplied by the s from 0 to 1 for which ‖W′ − s T‖
    /// is least. W would only take the rest away again, and every move of a map would shake a layer that has no use for it.
    pub fn begin_at(&mut self, wanted: &HashMap<ValueId, Tensor>, executor: &dyn Executor) -> Result<()> {
        let at: Vec<usize> =
            (0..self.bases.len()).filter(|&i| wanted.contains_key(&self.bases[i].weight)).collect();
        if at.is_empty() {
            return Ok(());
        }
        let first = self.parameters.evaluate(executor, |b, values| {
            let merged = self.emit(b, values, &mut Noise::Off);
            at.iter().for_each(|&i| _ = b.output_as(&format!("first/{i}"), &merged[i]));
        })?;
        for (&i, first) in at.iter().zip(&first) {
            let Base { weight, parameter, .. } = &self.bases[i];
            let wanted = wanted[weight].to_f32();
            let own = self.parameters.list[parameter.0].initial.to_f32().into_owned();
            let carried: Vec<f32> = first.to_f32().iter().zip(&own).map(|(first, own)| first - own).collect();
            let share = share(&carried, &wanted);
            for gate in self.layers.iter().flat_map(|layer| layer.gates()).filter(|(base, _)| *base == i) {
                self.parameters.scale(gate.1, share);
            }
            let own: Vec<f32> = wanted.iter().zip(&carried).map(|(w, t)| w - share * t).collect();
            let initial = &mut self.parameters.list[parameter.0].initial;
            *initial = Tensor::f32(initial.shape(), &own);
        }
        Ok(())
    }
    pub fn drops(&self) -> bool {
        self.layers.iter().any(|l| l.drops())
    }
    pub fn base_of(&self, weight: &ValueId) -> Option<usize> {
        self.bases.iter().position(|base| base.weight == *weight)
    }
}
