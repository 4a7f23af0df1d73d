//! An LSTM, GRU or RNN at work: what its gates are sums of.

use super::pieces::{Pieces, Row};
use super::{ParamGraph, WeightId};
use crate::onnx::{Builder, DType, Fact, Facts, Graph, Node, RecurrentOp, ValueId};

/// A recurrent layer. In every step each of its gates takes the sum of `W x + b_W` and `R h + b_R`, h the states before the
/// step, and applies something nonlinear (ONNX operators LSTM, GRU, RNN). Rows of W and R are directions · gates · hidden.
#[derive(Clone, Debug)]
pub struct Cell {
    /// W.
    pub inputs: WeightId,
    /// R.
    pub recurrence: WeightId,
    /// b_W and b_R, one behind the other in each direction, where there are any: where each of their elements is stored.
    pub biases: Vec<Row>,
    pub op: RecurrentOp,
    /// x, W and R as the node takes them.
    operands: [ValueId; 3],
    node: Node,
    pub rows: usize,
    pub steps: usize,
    /// Elements of x.
    pub features: usize,
    pub hidden: usize,
    pub directions: usize,
    pub gates: usize,
}

/// What a cell's gates sum up, and what it does so from; each rows × features × steps.
struct Sums {
    /// W x + b_W, features as the rows of W.
    inputs: ValueId,
    /// R h + b_R, features as the rows of R.
    recurrence: ValueId,
    /// h, and where the reset gate of a GRU comes before R also r ⊙ h: directions · hidden features.
    states: Vec<ValueId>,
}

impl Cell {
    /// All cells of a model for `rows` rows. Left out are those that are more than that: padded sequences, peepholes, coupled
    /// gates.
    pub fn all(graph: &Graph, facts: &Facts, params: &ParamGraph, rows: usize) -> Vec<Self> {
        let pieces = Pieces::new(graph, facts);
        graph.nodes.iter().filter_map(|node| Self::of(node, &pieces, facts, params, rows)).collect()
    }

    fn of(node: &Node, pieces: &Pieces<'_>, facts: &Facts, params: &ParamGraph, rows: usize) -> Option<Self> {
        let op = RecurrentOp::of(node)?;
        let gates = op.gates();
        let operands = [node.input(0)?.clone(), node.input(1)?.clone(), node.input(2)?.clone()];
        let shape = |i: usize| facts.get(&operands[i]).map(|fact| &fact.shape[..]);
        let (&[a, b, features], &[directions, outputs, hidden]) = (shape(0)?, shape(2)?) else { return None };
        let (steps, batch) = if batch_first(node) { (b, a) } else { (a, b) };
        let plain = node.input(4).is_none() && node.input(7).is_none() && node.int_or("input_forget", 0) == 0;
        if !plain || outputs != gates * hidden || batch != rows || steps == 0 {
            return None;
        }
        let weight = |i: usize, width: usize| {
            let id = params.find(pieces.root(&operands[i], width)?.as_str())?;
            (params.weight(id).nodes.len() == 1 && params.weight(id).view.is_some()).then_some(id)
        };
        let biases = node.input(3).map_or(Some(vec![]), |biases| pieces.rows(biases, 1))?;
        let cell = Self {
            inputs: weight(1, features)?,
            recurrence: weight(2, hidden)?,
            biases,
            op,
            operands,
            node: node.clone(),
            rows,
            steps,
            features,
            hidden,
            directions,
            gates,
        };
        let resets = !cell.resets_before() || cell.activations()[0] == "sigmoid";
        resets.then_some(cell)
    }

    /// Functions of the gates, of each direction.
    fn activations(&self) -> Vec<String> {
        let names = self.op.activations(&self.node, self.directions);
        names.iter().map(|name| name.to_ascii_lowercase()).collect()
    }

    /// Whether the gates of both mean the same.
    pub fn is_like(&self, other: &Self) -> bool {
        let direction = |cell: &Self| cell.node.str("direction") == Some("reverse");
        let same = |name: &str| self.node.attrs.get(name) == other.node.attrs.get(name);
        self.op == other.op
            && (self.directions, self.steps) == (other.directions, other.steps)
            && direction(self) == direction(other)
            && self.resets_before() == other.resets_before()
            && self.activations() == other.activations()
            && same("activation_alpha")
            && same("activation_beta")
    }

    /// Whether it is a GRU that multiplies the states with the reset gate before R, not R's product.
    pub fn resets_before(&self) -> bool {
        self.op == RecurrentOp::Gru && self.node.int_or("linear_before_reset", 0) == 0
    }

    /// Rows of W and R together.
    pub fn sums(&self) -> usize {
        self.directions * self.gates * self.hidden
    }
    /// How many features [`Cell::emit`] shows.
    pub fn shown(&self) -> usize {
        2 * self.sums() + (1 + usize::from(self.resets_before())) * self.directions * self.hidden
    }

    /// Emits float32 rows × features × steps: W x + b_W, R h + b_R, h, and where [`Cell::resets_before`] r ⊙ h.
    pub fn emit(&self, b: &mut Builder) -> ValueId {
        let Sums { inputs, recurrence, states } = self.emit_sums(b);
        let parts: Vec<&ValueId> = [&inputs, &recurrence].into_iter().chain(&states).collect();
        let parts: Vec<ValueId> = parts.into_iter().map(|part| self.features_first(b, part)).collect();
        b.concat(&parts.iter().collect::<Vec<_>>(), 1)
    }

    /// x, in every direction alike: directions × rows × steps × features.
    pub fn emit_inputs(&self, b: &mut Builder) -> ValueId {
        let x = b.cast(&self.operands[0], DType::F32);
        let x = if batch_first(&self.node) { x } else { b.transpose(&x, &[1, 0, 2]) };
        let x = b.reshape(&x, &[1, self.rows, self.steps, self.features]);
        b.expand(&x, &[self.directions, self.rows, self.steps, self.features])
    }

    /// Directions × rows × steps × features as rows × features of all directions × steps.
    fn features_first(&self, b: &mut Builder, x: &ValueId) -> ValueId {
        let features = b.shape(x)[3];
        let turned = b.transpose(x, &[1, 0, 3, 2]);
        b.reshape(&turned, &[self.rows, self.directions * features, self.steps])
    }

    fn emit_sums(&self, b: &mut Builder) -> Sums {
        let x = self.emit_inputs(b);
        let before = self.emit_states(b);
        let (inputs, mut recurrence) = (self.product(b, &x, 1), self.product(b, &before, 2));
        let mut states = vec![before];
        if self.resets_before() {
            let reset = [self.gate(b, &inputs, 1), self.gate(b, &recurrence, 1)];
            let reset = b.add(&reset[0], &reset[1]);
            let reset = b.op("Sigmoid", &[&reset]);
            states.push(b.mul(&reset, &states[0]));
            let hidden = self.product(b, &states[1], 2);
            let (first, last) = ([0, 1].map(|g| self.gate(b, &recurrence, g)), self.gate(b, &hidden, 2));
            recurrence = b.concat(&[&first[0], &first[1], &last], 3);
        }
        Sums { inputs, recurrence, states }
    }

    /// The part of a gate.
    fn gate(&self, b: &mut Builder, sums: &ValueId, gate: usize) -> ValueId {
        let at = (gate * self.hidden) as i64;
        b.slice(sums, &[at], &[at + self.hidden as i64], &[3])
    }

    /// The product with W (node's input 1) or R (2), and its bias.
    fn product(&self, b: &mut Builder, x: &ValueId, side: usize) -> ValueId {
        let Cell { directions, hidden, gates, .. } = *self;
        let width = b.shape(x)[3];
        let weight = b.cast(&self.operands[side], DType::F32);
        let weight = b.transpose(&weight, &[0, 2, 1]);
        let flat = b.reshape(x, &[directions, self.rows * self.steps, width]);
        let mut product = b.matmul(&flat, &weight);
        if let Some(biases) = self.node.input(3) {
            let biases = b.cast(biases, DType::F32);
            let from = ((side - 1) * gates * hidden) as i64;
            let bias = b.slice(&biases, &[from], &[from + (gates * hidden) as i64], &[1]);
            let bias = b.reshape(&bias, &[directions, 1, gates * hidden]);
            product = b.add(&product, &bias);
        }
        b.reshape(&product, &[directions, self.rows, self.steps, gates * hidden])
    }

    /// h before each step: directions × rows × steps × hidden.
    fn emit_states(&self, b: &mut Builder) -> ValueId {
        let Cell { rows, steps, hidden, directions, .. } = *self;
        let first = batch_first(&self.node);
        let all = self.all_states(b);
        let all = b.cast(&all, DType::F32);
        let all = b.transpose(&all, if first { &[2, 0, 1, 3] } else { &[1, 2, 0, 3] });
        let initial = match self.node.input(5) {
            Some(initial) if first => b.transpose(&initial.clone(), &[1, 0, 2]),
            Some(initial) => initial.clone(),
            None => {
                let zero = b.constant(crate::onnx::Tensor::f32(&[1, 1, 1], &[0.0]));
                b.expand(&zero, &[directions, rows, hidden])
            }
        };
        let initial = b.cast(&initial, DType::F32);
        let initial = b.reshape(&initial, &[directions, rows, 1, hidden]);
        let mut each = vec![];
        for d in 0..directions {
            let part = |b: &mut Builder, x: &ValueId| b.slice(x, &[d as i64], &[d as i64 + 1], &[0]);
            let (states, initial) = (part(b, &all), part(b, &initial));
            let backwards = d == 1 || self.node.str("direction") == Some("reverse");
            let (from, to) = if backwards { (1, steps) } else { (0, steps - 1) };
            let others = b.slice(&states, &[from as i64], &[to as i64], &[2]);
            let parts = if backwards { [&others, &initial] } else { [&initial, &others] };
            let parts = if steps == 1 { &[&initial][..] } else { &parts[..] };
            each.push(b.concat(parts, 2));
        }
        b.concat(&each.iter().collect::<Vec<_>>(), 0)
    }

    /// Y, which the model may have had no use for.
    fn all_states(&self, b: &mut Builder) -> ValueId {
        if let Some(all) = self.node.output(0) {
            return all.clone();
        }
        let all = b.fresh("states");
        let mut node = self.node.clone();
        node.outputs = vec![Some(all.clone())];
        b.push(node);
        let Cell { rows, steps, directions, hidden, .. } = *self;
        let shape = if batch_first(&self.node) {
            [rows, steps, directions, hidden]
        } else {
            [steps, directions, rows, hidden]
        };
        b.set_fact(&all, Fact::new(b.dtype(&self.operands[2]), &shape));
        all
    }
}

fn batch_first(node: &Node) -> bool {
    node.int_or("layout", 0) == 1
}
