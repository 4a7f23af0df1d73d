//! Gradients of graphs joined at random, of operators with attributes that fit or not.
//!
//! What runs must either be differentiated or be refused; what is differentiated must agree with central differences.

use crate::differences::{Manner, Miss, Subject, compare};
use crate::target;
use bolero::TypeGenerator;
use onnx_merge::Result;
use onnx_merge::autodiff::{backward, facts::probe, prepare::upgrade};
use onnx_merge::onnx::{Attr, Builder, DType, Fact, Model, Node, Tensor, ValueId};
use onnx_merge::runtime::{Executor, TractExecutor, Value};
use std::collections::HashMap;

/// A graph: inputs by their shapes, then operators on what is there.
#[derive(Debug, TypeGenerator)]
pub struct Program {
    inputs: Vec<[u8; 4]>,
    ranks: [u8; 3],
    steps: Vec<Step>,
}

#[derive(Clone, Debug, TypeGenerator)]
struct Step {
    op: u8,
    /// Values, counted from the newest.
    values: [u8; 3],
    numbers: [i8; 6],
    /// Which optional attributes are there.
    present: u8,
}

/// An operator: its inputs (`v` a value, `c` a constant of reals, `i` a vector of integers, `k` one no longer than any
/// axis, `s` one real, `?` left out
/// at times) and attributes (`i` an integer, `b` a yes or no, `l` a list, `f` a real, `e` one above zero, or words to choose from).
type Operator = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const OPERATORS: [Operator; 76] = [
    ("Tanh", "v", &[]),
    ("Exp", "v", &[]),
    ("Sqrt", "v", &[]),
    ("Log", "v", &[]),
    ("Abs", "v", &[]),
    ("Floor", "v", &[]),
    ("Erf", "v", &[]),
    ("Gelu", "v", &[("approximate", "none tanh")]),
    ("LeakyRelu", "v", &[("alpha", "f")]),
    ("Celu", "v", &[("alpha", "e")]),
    ("Clip", "v?s?s", &[]),
    ("PRelu", "vc", &[]),
    ("Add", "vv", &[]),
    ("Mul", "vc", &[]),
    ("Sub", "vv", &[]),
    ("Div", "vv", &[]),
    ("Pow", "vv", &[]),
    ("Mod", "vv", &[("fmod", "b")]),
    ("Max", "vvv", &[]),
    ("Mean", "vv", &[]),
    ("MatMul", "vc", &[]),
    ("MatMul", "vv", &[]),
    ("Gemm", "vcc", &[("transA", "b"), ("transB", "b"), ("alpha", "f"), ("beta", "f")]),
    ("Transpose", "v", &[("perm", "l")]),
    ("Reshape", "vi", &[("allowzero", "b")]),
    ("Flatten", "v", &[("axis", "i")]),
    ("Expand", "vi", &[]),
    ("Tile", "vi", &[]),
    ("Squeeze", "v?i", &[]),
    ("Unsqueeze", "vi", &[]),
    ("Concat", "vv", &[("axis", "i")]),
    ("Split", "v?i", &[("axis", "i"), ("num_outputs", "i")]),
    ("Slice", "vii?i?i", &[]),
    ("Gather", "vi", &[("axis", "i")]),
    ("GatherElements", "vi", &[("axis", "i")]),
    ("GatherND", "vi", &[("batch_dims", "i")]),
    ("ScatterElements", "viv", &[("axis", "i"), ("reduction", "none add mul max")]),
    ("ScatterND", "viv", &[("reduction", "none add mul max")]),
    ("ReduceSum", "v?i", &[("keepdims", "b"), ("noop_with_empty_axes", "b")]),
    ("ReduceMean", "v?i", &[("keepdims", "b")]),
    ("ReduceMax", "v?i", &[("keepdims", "b")]),
    ("ReduceProd", "v?i", &[("keepdims", "b")]),
    ("ReduceL2", "v?i", &[("keepdims", "b")]),
    ("ReduceLogSumExp", "v?i", &[("keepdims", "b")]),
    ("ArgMax", "v", &[("axis", "i"), ("keepdims", "b")]),
    ("TopK", "vk", &[("axis", "i"), ("largest", "b"), ("sorted", "b")]),
    ("CumSum", "vi", &[("exclusive", "b"), ("reverse", "b")]),
    ("Trilu", "v?i", &[("upper", "b")]),
    ("Softmax", "v", &[("axis", "i")]),
    ("LogSoftmax", "v", &[("axis", "i")]),
    ("Hardmax", "v", &[("axis", "i")]),
    ("Where", "bvv", &[]),
    ("Cast", "v", &[("to", "i")]),
    ("Pad", "vi?s?i", &[("mode", "constant reflect edge wrap")]),
    (
        "Conv",
        "vc?c",
        &[
            ("strides", "l"),
            ("pads", "l"),
            ("dilations", "l"),
            ("group", "i"),
            ("auto_pad", "NOTSET SAME_UPPER VALID"),
        ],
    ),
    (
        "ConvTranspose",
        "vc?c",
        &[("strides", "l"), ("pads", "l"), ("group", "i"), ("output_padding", "l"), ("dilations", "l")],
    ),
    (
        "MaxPool",
        "v",
        &[("kernel_shape", "l"), ("strides", "l"), ("pads", "l"), ("ceil_mode", "b"), ("dilations", "l")],
    ),
    (
        "AveragePool",
        "v",
        &[
            ("kernel_shape", "l"),
            ("strides", "l"),
            ("pads", "l"),
            ("ceil_mode", "b"),
            ("count_include_pad", "b"),
        ],
    ),
    ("LpPool", "v", &[("kernel_shape", "l"), ("strides", "l"), ("p", "i")]),
    ("GlobalAveragePool", "v", &[]),
    ("GlobalMaxPool", "v", &[]),
    ("BatchNormalization", "vcccc", &[("epsilon", "e"), ("training_mode", "b")]),
    ("InstanceNormalization", "vcc", &[("epsilon", "e")]),
    ("LayerNormalization", "vc?c", &[("axis", "i"), ("epsilon", "e")]),
    ("GroupNormalization", "vcc", &[("num_groups", "i"), ("epsilon", "e")]),
    ("RMSNormalization", "vc", &[("axis", "i")]),
    ("LRN", "v", &[("size", "i"), ("alpha", "f")]),
    ("LpNormalization", "v", &[("axis", "i"), ("p", "i")]),
    ("DepthToSpace", "v", &[("blocksize", "i"), ("mode", "DCR CRD")]),
    ("SpaceToDepth", "v", &[("blocksize", "i")]),
    (
        "Resize",
        "v??si",
        &[
            ("mode", "nearest linear cubic"),
            ("coordinate_transformation_mode", "half_pixel asymmetric align_corners"),
        ],
    ),
    ("Einsum", "vv", &[("equation", "ij,jk->ik i,i-> ab,ab->ba ...i,...i->... ij,ij->ii ii,ii->i")]),
    (
        "LSTM",
        "vccc",
        &[("hidden_size", "i"), ("direction", "forward reverse bidirectional"), ("layout", "b")],
    ),
    ("GRU", "vccc", &[("hidden_size", "i"), ("linear_before_reset", "b")]),
    ("Attention", "vvv", &[("q_num_heads", "i"), ("kv_num_heads", "i"), ("is_causal", "b")]),
    ("OneHot", "ivv", &[("axis", "i")]),
];

/// What the executor computes in float32 whatever comes in: too coarse for differences. (tract sees a norm of its own in whatever divides by
/// the root of a mean of squares.)
const COARSE: [&str; 5] =
    ["LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization", "Attention"];

/// The largest value that is followed.
const MOST_ELEMENTS: usize = 2000;

impl Step {
    fn number(&self, i: usize) -> i64 {
        i64::from(self.numbers[i % self.numbers.len()] % 5)
    }

    fn list(&self, length: usize, shift: usize) -> Vec<i64> {
        (0..length).map(|i| self.number(i + shift)).collect()
    }

    fn attribute(&self, kind: &str, at: usize, rank: usize) -> Attr {
        let number = self.number(at);
        match kind {
            "i" => Attr::Int(number),
            "b" => Attr::Int(number & 1),
            "e" => Attr::Float(0.1 * (1 + number.abs()) as f32),
            "f" => Attr::Float(number as f32 / 3.0),
            "l" => {
                let length = [rank, rank.saturating_sub(2), 2 * rank.saturating_sub(2), 1]
                    [self.numbers[5] as usize % 4];
                Attr::Ints(self.list(length, at))
            }
            words => {
                let words: Vec<&str> = words.split(' ').collect();
                Attr::Str(words[number.unsigned_abs() as usize % words.len()].into())
            }
        }
    }

    /// A constant of a shape that has to do with the value's.
    fn constant(&self, b: &mut Builder, of: &[usize], at: usize) -> ValueId {
        let last = of.last().copied().unwrap_or(1);
        let channels = of.get(1).copied().unwrap_or(1);
        let spatial = of.len().saturating_sub(2);
        let small = self.number(at).unsigned_abs() as usize + 1;
        let shape = match self.numbers[at % 6].unsigned_abs() / 5 % 7 {
            0 => vec![last],
            1 => vec![channels],
            2 => vec![last, small],
            3 => [vec![small, channels], vec![small.min(2); spatial]].concat(),
            4 => vec![small; of.len().max(1)],
            5 => vec![1, 4 * small, last],
            _ => vec![],
        };
        let count: usize = shape.iter().product();
        let values: Vec<f64> = (0..count).map(|i| 0.3 + (i * 7 % 5) as f64 / 4.0 - at as f64 / 8.0).collect();
        b.constant(Tensor::f64(&shape, &values))
    }

    /// Adds the operator; nothing where its inputs make no sense at all.
    fn push(&self, b: &mut Builder, values: &[ValueId]) -> Option<Vec<ValueId>> {
        let (op, operands, attributes) = OPERATORS[usize::from(self.op) % OPERATORS.len()];
        let value =
            |i: usize| values[values.len() - 1 - usize::from(self.values[i % 3]) % values.len()].clone();
        let shape = b.shape(&value(0));
        let (mut inputs, mut optional): (Vec<Option<ValueId>>, bool) = (vec![], false);
        for (i, kind) in operands.chars().enumerate() {
            let at = inputs.len();
            let made = match kind {
                '?' if optional => Some(None),
                '?' => {
                    optional = true;
                    continue;
                }
                _ if optional && self.present >> (at % 8) & 1 == 0 => Some(None),
                'v' => Some(Some(value(at))),
                'c' => Some(Some(self.constant(b, &shape, at))),
                'i' => {
                    let length =
                        [1, shape.len(), 2 * shape.len(), 2][self.numbers[4].unsigned_abs() as usize % 4];
                    let numbers = self.list(length, at);
                    Some(Some(b.ints(&numbers)))
                }
                'k' => {
                    let shortest = shape.iter().copied().min().unwrap_or(0).max(1) as u64;
                    Some(Some(b.ints(&[(self.number(at).unsigned_abs() % shortest) as i64 + 1])))
                }
                's' => Some(Some(b.constant(Tensor::scalar(DType::F64, self.number(i) as f64)))),
                _ => {
                    let x = value(at);
                    let zero = b.scalar_like(&x, 0.0);
                    Some(Some(b.op("Greater", &[&x, &zero])))
                }
            };
            optional = false;
            inputs.extend(made);
        }
        while inputs.last().is_some_and(Option::is_none) {
            inputs.pop();
        }
        let outputs = match op {
            "TopK" => 2,
            "Split" => 1 + self.present as usize % 3,
            _ => 1,
        };
        let names: Vec<ValueId> = (0..outputs).map(|_| b.fresh(op)).collect();
        let mut node = Node::new(op, &[], &names.iter().collect::<Vec<_>>());
        node.inputs = inputs;
        for (i, (name, kind)) in attributes.iter().enumerate() {
            if self.present >> (7 - i) & 1 == 1 {
                node.attrs.insert((*name).into(), self.attribute(kind, i, shape.len()));
            }
        }
        let before = b.graph().nodes.len();
        b.push(node);
        let sound = |fact: &Fact| fact.rank() < 7 && fact.len() <= MOST_ELEMENTS;
        if names.iter().any(|id| b.facts().get(id).is_some_and(|fact| !sound(fact))) {
            b.graph_mut().nodes.truncate(before);
            return None;
        }
        Some(names)
    }
}

target!(gradients, 150, gradients_are_right_or_refused);

fn gradients_are_right_or_refused(program: &Program) {
    let executor = TractExecutor::new(1).expect("an executor");
    let mut b = Builder::new("fuzz");
    let mut point = HashMap::new();
    for (i, sizes) in program.inputs.iter().take(3).chain([&[2, 3, 4, 4]]).enumerate() {
        let rank = usize::from(program.ranks[i % 3] % 5);
        let shape: Vec<usize> = sizes[..rank].iter().map(|d| usize::from(d % 5)).collect();
        let count: usize = shape.iter().product();
        let values: Vec<f64> = (0..count).map(|k| ((k * 37 + i * 11) % 29) as f64 / 10.0 - 1.37).collect();
        let id = b.input(&format!("x{i}"), Fact::new(DType::F64, &shape));
        point.insert(id, Tensor::f64(&shape, &values));
    }
    let varied: Vec<ValueId> = b.graph().inputs.iter().map(|i| i.id.clone()).collect();
    let mut values = varied.clone();
    for step in program.steps.iter().take(8) {
        let mut grown = Builder::on(b.graph().clone(), b.facts().clone());
        let Some(made) = step.push(&mut grown, &values) else { continue };
        let Some(b_next) = kept(&executor, grown, &made, &point) else { continue };
        b = b_next;
        values.extend(made.into_iter().filter(|id| b.fact(id).dtype == DType::F64));
    }
    let made: Vec<ValueId> = values[varied.len()..].to_vec();
    if made.is_empty() {
        return;
    }
    let (graph, facts) = b.finish();
    let mut extended = Builder::on(graph.clone(), facts.clone());
    let seeds: Vec<(ValueId, ValueId)> =
        made.iter().map(|id| (id.clone(), extended.zeros_like(id))).collect();
    // An error is an answer; so is what comes out, which central differences judge.
    let _ = backward(&mut extended, &seeds, &varied);
    let mut b = Builder::on(graph, facts);
    for id in &made {
        b.output_as(&format!("{id}.out"), id);
    }
    let model = Model::new(b.finish().0, 18);
    if !model.graph.nodes.iter().any(|node| COARSE.contains(&node.op.as_str())) {
        judge(&executor, &model, point, varied);
    }
}

/// The graph with a new node, where the executor takes it; with facts as they are.
fn kept(
    executor: &TractExecutor,
    b: Builder,
    made: &[ValueId],
    point: &HashMap<ValueId, Tensor>,
) -> Option<Builder> {
    let guessed: Vec<Option<Fact>> = made.iter().map(|id| b.facts().get(id).cloned()).collect();
    let (mut graph, mut facts) = b.finish();
    graph.outputs = vec![];
    let last = Model::new(graph.clone(), 18);
    let mut asked = last.clone();
    asked.graph.outputs = made
        .iter()
        .map(|id| onnx_merge::onnx::ValueInfo { id: id.clone(), dtype: None, shape: None })
        .collect();
    let upgraded = upgrade(&asked).ok()?;
    let seen = probe(executor, &upgraded, point).ok()?.facts;
    for (id, guess) in made.iter().zip(guessed) {
        let fact = seen.get(id)?;
        if fact.len() > MOST_ELEMENTS || fact.rank() > 6 {
            return None;
        }
        let node = asked.graph.nodes.last();
        assert!(guess.as_ref().is_none_or(|g| g == fact), "{node:?}: {fact:?} was run, {guess:?} inferred");
        facts.insert(id.clone(), fact.clone());
    }
    Some(Builder::on(graph, facts))
}

fn judge(executor: &TractExecutor, model: &Model, point: HashMap<ValueId, Tensor>, varied: Vec<ValueId>) {
    // Executors differ on what becomes of NaN.
    if !finite(executor, model, &point).unwrap_or(false) {
        return;
    }
    let subject = Subject { model, point, varied };
    let manner = Manner::of(DType::F64);
    let mut said = None;
    // Another direction where a kink was hit.
    for direction in 1..5 {
        match compare(executor, &subject, manner, direction) {
            Ok(outcome) if outcome.error <= manner.tolerance => return,
            Ok(outcome) => said = Some(format!("{:.6e} for {:.6e}", outcome.analytic, outcome.numeric)),
            Err(Miss::NotFinite) => {}
            Err(_) => return,
        }
    }
    if let Some(said) = said {
        let shapes = subject.point.iter().map(|(id, t)| format!("{id}{:?}", t.shape()));
        let constants = model.graph.initializers.iter().map(|(id, t)| format!("{id} = {t:?}"));
        let nodes = model.graph.nodes.iter().map(|n| format!("{} {:?} {:?}", n.op, n.inputs, n.attrs));
        panic!(
            "the gradient is {said}:\n{}",
            shapes.chain(constants).chain(nodes).collect::<Vec<_>>().join("\n")
        );
    }
}

/// Whether every value is.
fn finite(executor: &TractExecutor, model: &Model, point: &HashMap<ValueId, Tensor>) -> Result<bool> {
    let feeds = model.graph.inputs.iter().filter_map(|i| point.get(&i.id).cloned().map(Value::host));
    let mut program = executor.compile(model, &HashMap::new())?;
    let values = program.run(&feeds.collect::<Vec<_>>())?;
    let values = values.iter().map(Value::to_host).collect::<Result<Vec<_>>>()?;
    Ok(values.iter().all(|value| value.first_non_finite().is_none()))
}
