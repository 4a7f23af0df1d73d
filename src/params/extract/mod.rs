//! Extraction of a parameter graph: one walk over the nodes, in order, that follows channels ([`labels`]) and notes
//! every weight with the channels on its two sides; [`collect`] makes interfaces of them in the end.
//!
//! The walk expects a *prepared* graph (operators in their forms of opset 18 and later, constants as initializers).
//! It refuses nothing: an operator it doesn't know ends the channel spaces before it and begins new ones after it.
//! Look at [`Walk`] first. What an operator does to channels stands in [`layers`], [`pointwise`] and [`shapes`].

mod collect;
mod control;
mod labels;
mod layers;
mod pointwise;
mod recurrent;
mod shapes;
#[cfg(test)]
mod tests;

use super::edges::{Edges, Set};
use super::{MatrixView, ParamGraph, Role, WeightId};
use crate::error::Result;
use crate::onnx::{DType, Facts, Graph, Model, Node, Tensor, ValueId, node_reads, outer_reads};
use labels::{Atom, Atoms, Labels};
use std::collections::{HashMap, HashSet};

impl ParamGraph {
    /// The parameter graph of a prepared model, all of whose values have facts. Spectra are left empty: see
    /// [`ParamGraph::compute_spectra`].
    pub fn extract(model: &Model, facts: &Facts) -> Result<Self> {
        Self::of_graph(&model.graph, facts)
    }
    /// The same for a bare graph.
    pub fn of_graph(graph: &Graph, facts: &Facts) -> Result<Self> {
        let mut walk = Walk::new(graph, facts);
        for node in &graph.nodes {
            walk.visit(node);
        }
        Ok(collect::finish(walk))
    }
    /// Fills in the singular values of every matrix, from the weights of the graph it was extracted from.
    pub fn compute_spectra(&mut self, graph: &Graph) {
        for weight in &mut self.weights {
            if let (Some(view), Some(tensor)) = (&weight.view, graph.initializers.get(&weight.name)) {
                weight.spectrum = super::spectrum::singular_values(&view.matrix_of(tensor));
            }
        }
    }
}

/// An axis longer than this is no channel axis.
const MOST_CHANNELS: usize = 1 << 24;

/// What the walk knows of a value that depends on the model's inputs.
#[derive(Clone, Default)]
struct State {
    labels: Option<Labels>,
    /// The number of matrices on the longest way here.
    level: usize,
    /// The matrices whose results reach this value without another matrix between.
    sources: Set,
}

/// A value computed from initializers alone.
#[derive(Clone)]
struct Stored {
    /// The initializers it is made of.
    roots: Vec<ValueId>,
    /// How it is laid out, where it is one initializer, reshaped to `split` and transposed by `perm`.
    form: Option<Form>,
    /// Whether it came through a dequantisation.
    quantised: bool,
}

#[derive(Clone)]
struct Form {
    split: Vec<usize>,
    perm: Vec<usize>,
}

impl Form {
    fn shape(&self) -> Vec<usize> {
        self.perm.iter().map(|&p| self.split[p]).collect()
    }
}

/// A weight while the walk goes on: its sides are lists of channels, one for each feature.
struct Draft {
    name: ValueId,
    role: Role,
    view: Option<MatrixView>,
    nodes: Vec<String>,
    depth: usize,
    input: Vec<Atom>,
    output: Vec<Atom>,
}

struct Walk<'a> {
    graph: &'a Graph,
    facts: &'a Facts,
    atoms: Atoms,
    values: HashMap<ValueId, State>,
    stored: HashMap<ValueId, Stored>,
    drafts: Vec<Draft>,
    by_name: HashMap<ValueId, usize>,
    edges: Edges,
    /// Channels of model inputs.
    input_atoms: Vec<Atom>,
    /// Spatial sizes that were flattened into features, each with one of the channels concerned.
    grids: Vec<(Atom, Vec<usize>)>,
    /// Results of matrix products and convolutions that no bias has been added to yet.
    bare: HashSet<ValueId>,
    /// Results of multiplications with a scale that no shift has been added to yet.
    scaled: HashSet<ValueId>,
}

impl<'a> Walk<'a> {
    fn new(graph: &'a Graph, facts: &'a Facts) -> Self {
        let mut walk = Walk {
            graph,
            facts,
            atoms: Atoms::default(),
            values: HashMap::new(),
            stored: HashMap::new(),
            drafts: vec![],
            by_name: HashMap::new(),
            edges: Edges::default(),
            input_atoms: vec![],
            grids: vec![],
            bare: HashSet::new(),
            scaled: HashSet::new(),
        };
        for (id, tensor) in &graph.initializers {
            let shape = tensor.shape().to_vec();
            let form = Some(Form { perm: (0..shape.len()).collect(), split: shape });
            walk.stored.insert(id.clone(), Stored { roots: vec![id.clone()], form, quantised: false });
        }
        let inputs: Vec<ValueId> = graph.required_inputs().map(|i| i.id.clone()).collect();
        for id in inputs {
            let labels = walk.image_channels(&id);
            walk.values.insert(id, State { labels, ..State::default() });
        }
        walk
    }

    /// Images are recognised by an axis of at most four channels, so that models which flatten them at once
    /// have the same input interface as models which convolve them.
    fn image_channels(&mut self, input: &ValueId) -> Option<Labels> {
        let shape = self.shape(input)?.to_vec();
        let axis = match shape.as_slice() {
            [_, c, h, w] if *c <= 4 && *h > 4 && *w > 4 => 1,
            [_, h, w, c] if *c <= 4 && *h > 4 && *w > 4 => 3,
            _ => return None,
        };
        let atoms = self.atoms.fresh(shape[axis]);
        self.input_atoms.extend(&atoms);
        Some(Labels::on_axis(4, axis, atoms))
    }

    fn visit(&mut self, node: &Node) {
        let stored_only = node.inputs.iter().flatten().all(|i| self.stored.contains_key(i))
            && node.subgraphs().all(|g| outer_reads(g).iter().all(|i| self.stored.contains_key(i)));
        if stored_only && !node.inputs.is_empty() {
            return shapes::stored(self, node);
        }
        // Most operators make one output that depends on all inputs: rules only say what differs.
        let before = self.merged(node_reads(node).iter());
        for output in node.outputs.iter().flatten() {
            self.values.insert(output.clone(), before.clone());
        }
        let known = layers::visit(self, node)
            || recurrent::visit(self, node)
            || pointwise::visit(self, node)
            || shapes::visit(self, node)
            || control::visit(self, node);
        if !known {
            self.note_unknown(node);
        }
        self.check(node);
    }

    /// Labels that contradict the probed shape are worth nothing.
    fn check(&mut self, node: &Node) {
        for output in node.outputs.iter().flatten() {
            let fits = match (self.values.get(output).and_then(|s| s.labels.as_ref()), self.facts.get(output))
            {
                (Some(labels), Some(fact)) => labels.fits(&fact.shape),
                (Some(_), None) => false,
                (None, _) => true,
            };
            if let (false, Some(state)) = (fits, self.values.get_mut(output)) {
                state.labels = None;
            }
        }
    }

    /// Level and sources of something that depends on all these values; no labels.
    fn merged<'v>(&mut self, values: impl Iterator<Item = &'v ValueId>) -> State {
        let mut merged = State::default();
        for state in values.filter_map(|v| self.values.get(v)) {
            merged.level = merged.level.max(state.level);
            merged.sources = self.edges.union(merged.sources, state.sources);
        }
        merged
    }

    fn shape(&self, value: &ValueId) -> Option<&'a [usize]> {
        self.facts.get(value).map(|f| f.shape.as_slice())
    }
    fn labels(&self, value: Option<&ValueId>) -> Option<Labels> {
        self.values.get(value?)?.labels.clone()
    }
    fn set(&mut self, value: Option<&ValueId>, labels: Option<Labels>) {
        if let Some(state) = value.and_then(|v| self.values.get_mut(v)) {
            state.labels = labels;
        }
    }
    /// Whether the value is computed from initializers alone.
    fn is_stored(&self, value: Option<&ValueId>) -> bool {
        value.is_some_and(|v| self.stored.contains_key(v))
    }
    /// The constant a value is, where it is an initializer as it stands.
    fn constant(&self, value: Option<&ValueId>) -> Option<&'a Tensor> {
        self.graph.initializers.get(value?)
    }
    fn ints(&self, value: Option<&ValueId>) -> Option<Vec<i64>> {
        self.constant(value).filter(|t| t.dtype().is_int()).map(|t| t.to_i64().into_owned())
    }
    /// The constants of an attribute or, in newer forms, of an input.
    fn ints_of(&self, node: &Node, attr: &str, input: usize) -> Option<Vec<i64>> {
        node.ints(attr).map(<[i64]>::to_vec).or_else(|| self.ints(node.input(input)))
    }

    /// The channels along an axis of a value; made up (and remembered) where nothing is known of them.
    fn channels(&mut self, value: Option<&ValueId>, axis: usize) -> Vec<Atom> {
        let Some((value, shape)) = value.and_then(|v| Some((v, self.shape(v)?))) else {
            return vec![];
        };
        let Some(&size) = shape.get(axis).filter(|&&size| size <= MOST_CHANNELS) else {
            return vec![];
        };
        let rank = shape.len();
        let labels = self.labels(Some(value)).filter(|l| l.fits(shape));
        let known = labels.as_ref().and_then(|labels| labels.along(axis, size, &mut self.atoms));
        if let (Some(known), Some(labels)) = (&known, labels) {
            // What else the labels varied over has become one channel: its sizes are the grid of these features.
            let grid: Vec<usize> =
                labels.axes().into_iter().filter(|&i| i != axis).map(|i| labels.shape[i]).collect();
            if let (Some(&atom), false) = (known.first(), grid.is_empty()) {
                self.grids.push((atom, grid));
            }
            return known.clone();
        }
        let fresh = self.atoms.fresh(size);
        let state = self.values.get(value);
        if state.is_some_and(|s| s.sources.is_empty()) {
            self.input_atoms.extend(&fresh);
        }
        if state.is_some_and(|s| s.labels.is_none()) {
            self.set(Some(value), Some(Labels::on_axis(rank, axis, fresh.clone())));
        }
        fresh
    }
    /// Labels an output by its channels along one axis.
    fn set_channels(&mut self, value: Option<&ValueId>, axis: usize, atoms: Vec<Atom>) {
        if let Some(shape) = value.and_then(|v| self.shape(v))
            && shape.get(axis) == Some(&atoms.len())
        {
            self.set(value, Some(Labels::on_axis(shape.len(), axis, atoms)));
        }
    }

    /// The draft of a weight, made on its first use; on another use the node is noted.
    fn draft(&mut self, name: &ValueId, role: Role, node: &Node, depth: usize) -> usize {
        let label = node.label();
        if let Some(&found) = self.by_name.get(name) {
            let draft = &mut self.drafts[found];
            if !draft.nodes.contains(&label) {
                draft.nodes.push(label);
            }
            if draft.role == Role::Other && draft.view.is_none() {
                draft.role = role;
            }
            return found;
        }
        let made = Draft {
            name: name.clone(),
            role,
            view: None,
            nodes: vec![label],
            depth,
            input: vec![],
            output: vec![],
        };
        self.drafts.push(made);
        self.by_name.insert(name.clone(), self.drafts.len() - 1);
        self.drafts.len() - 1
    }

    /// Notes a matrix between two lists of channels; everything that makes its node's outputs comes from it now.
    fn matrix(
        &mut self,
        node: &Node,
        weight: &ValueId,
        role: Role,
        view: Option<MatrixView>,
        sides: (Vec<Atom>, Vec<Atom>),
    ) {
        let Some(stored) = self.stored.get(weight).cloned() else {
            return;
        };
        let before = self.merged(node_reads(node).iter());
        let (input, output) = sides;
        let roots: Vec<ValueId> = stored.roots.iter().filter(|r| self.is_readable(r)).cloned().collect();
        let known = stored.form.is_some() || view.is_some();
        let mut made = vec![];
        for name in &roots {
            let plain = known && self.is_real(name) && !stored.quantised;
            let id = self.draft(name, if plain { role } else { Role::Other }, node, before.level);
            if known {
                self.fill(id, view.clone().filter(|_| plain), input.clone(), output.clone());
            }
            made.push(id);
        }
        for &id in &made {
            self.edges.lead(before.sources, WeightId(id));
        }
        let mut sources = Set::default();
        for &id in &made {
            let one = self.edges.one(WeightId(id));
            sources = self.edges.union(sources, one);
        }
        if sources.is_empty() {
            sources = before.sources;
        }
        for output in node.outputs.iter().flatten() {
            if let Some(state) = self.values.get_mut(output) {
                let joined = state.level == before.level + 1;
                let others = if joined { state.sources } else { Set::default() };
                state.level = before.level + 1;
                state.sources = self.edges.union(sources, others);
            }
        }
    }

    /// Sets the sides of a matrix, or, on another use, makes the channels of all its uses the same.
    fn fill(&mut self, id: usize, view: Option<MatrixView>, input: Vec<Atom>, output: Vec<Atom>) {
        let draft = &self.drafts[id];
        let elements = self.graph.initializers.get(&draft.name).map_or(0, Tensor::len);
        let view = view.filter(|v| {
            let covers = |shape: &[usize]| crate::onnx::element_count(shape) == Some(elements);
            covers(&v.split) && covers(&v.matrix_shape()) && v.split.len() == v.perm.len()
        });
        if draft.input.is_empty() && draft.output.is_empty() {
            let draft = &mut self.drafts[id];
            (draft.view, draft.input, draft.output) = (view, input, output);
            return;
        }
        let (old_in, old_out) = (draft.input.clone(), draft.output.clone());
        if draft.view == view && (old_in.len(), old_out.len()) == (input.len(), output.len()) {
            self.atoms.unite_all(&old_in, &input);
            self.atoms.unite_all(&old_out, &output);
        } else if (old_in.len(), old_out.len()) == (output.len(), input.len()) {
            // The same matrix the other way round, as in an output layer tied to an embedding.
            self.atoms.unite_all(&old_in, &output);
            self.atoms.unite_all(&old_out, &input);
        }
    }

    /// Notes a vector that is applied to the given channels (as many as it has elements, or else none).
    fn vector(&mut self, node: &Node, weight: Option<&ValueId>, role: Role, channels: &[Atom], depth: usize) {
        let Some(stored) = weight.and_then(|w| self.stored.get(w)).cloned() else {
            return;
        };
        let single = stored.roots.len() == 1 && stored.form.is_some();
        let roots: Vec<ValueId> = stored.roots.iter().filter(|r| self.is_real(r)).cloned().collect();
        for name in &roots {
            let plain = single && !stored.quantised;
            let id = self.draft(name, if plain { role } else { Role::Other }, node, depth);
            let elements = self.graph.initializers.get(name).map_or(0, Tensor::len);
            if plain && elements == channels.len() && self.drafts[id].input.is_empty() {
                let old = std::mem::replace(&mut self.drafts[id].output, channels.to_vec());
                self.atoms.unite_all(&old, channels);
            }
        }
    }

    fn is_real(&self, name: &ValueId) -> bool {
        self.graph.initializers.get(name).is_some_and(|t| t.dtype().is_float() && !t.is_empty())
    }
    /// Something with numbers in it: weights, quantised or not; neither bounds nor axes of what cuts them up.
    fn is_readable(&self, name: &ValueId) -> bool {
        let whole = |t: &Tensor| matches!(t.dtype(), DType::I64 | DType::I32 | DType::Bool);
        self.graph.initializers.get(name).is_some_and(|t| !t.is_empty() && !whole(t))
    }

    /// An operator without a rule: what numbers it has are weights of a kind of their own.
    fn note_unknown(&mut self, node: &Node) {
        let level = self.merged(node_reads(node).iter()).level;
        for value in node_reads(node) {
            let roots = self.stored.get(&value).map(|s| s.roots.clone()).unwrap_or_default();
            for root in roots {
                if self.is_real(&root) && self.graph.initializers.get(&root).is_some_and(|t| t.len() > 1) {
                    self.draft(&root, Role::Other, node, level.saturating_sub(1));
                }
            }
        }
    }
}
