//! Short loops written out: a `Loop` or `Scan` whose number of iterations is the same in every run becomes that many
//! copies of its body, so that executors without loops run it, and gradients go through plain nodes.

use super::names::{own_names, rename, rename_own};
use crate::onnx::{Attr, Facts, Graph, Names, Node, Tensor, ValueId};
use std::collections::HashMap;

/// Loops that would become more nodes than this stay loops.
const MOST_NODES: usize = 4096;

/// Unrolls what can be unrolled at the top level of an upgraded graph.
pub fn unroll(graph: &mut Graph, facts: &Facts) {
    if !graph.nodes.iter().any(|n| n.is("Loop") || n.is("Scan")) {
        return;
    }
    let mut names = Names::of(graph);
    for node in std::mem::take(&mut graph.nodes) {
        let Some((body, count)) = countable(graph, facts, &node) else {
            graph.nodes.push(node);
            continue;
        };
        let mut unrolling = Unrolling { graph: &mut *graph, names: &mut names, node: &node, body, count };
        match node.is("Loop") {
            true => unrolling.unroll_loop(),
            false => unrolling.unroll_scan(),
        }
    }
}

/// The body and the number of iterations, where that is always the same, and small.
fn countable<'a>(graph: &Graph, facts: &Facts, node: &'a Node) -> Option<(&'a Graph, usize)> {
    let body = node.graph("body")?;
    let count = if node.is("Loop") {
        let number = |id: &ValueId| graph.initializers.get(id).and_then(|t| t.to_f64().first().copied());
        let goes_on = |id: &ValueId| number(id).is_some_and(|v| v != 0.0);
        if !node.input(1).is_none_or(goes_on) {
            return None;
        }
        let again = origin(body, &body.outputs.first()?.id);
        if again != body.inputs.get(1)?.id && !goes_on(&again) {
            return None;
        }
        node.input(0).and_then(number).filter(|n| *n >= 1.0)? as usize
    } else if node.is("Scan") {
        let scanned = usize::try_from(node.int("num_scan_inputs")?).ok()?;
        let first = node.inputs.len().checked_sub(scanned)?;
        let shape = &facts.get(node.input(first)?)?.shape;
        *shape.get(axes(node, "scan_input_axes", 0, shape.len())?)?
    } else {
        return None;
    };
    let size = count.checked_mul(body.nodes.len().max(1))?;
    (count > 0 && size <= MOST_NODES && body.initializers.is_empty()).then_some((body, count))
}

/// Element `i` of a list of axes, counted from the front.
fn axes(node: &Node, name: &str, i: usize, rank: usize) -> Option<usize> {
    let axis = node.ints(name).and_then(|axes| axes.get(i)).copied().unwrap_or(0);
    crate::onnx::infer::normalise_axis(axis, rank)
}

/// The value that `id` is a copy of.
fn origin(body: &Graph, id: &ValueId) -> ValueId {
    let mut id = id.clone();
    for node in body.nodes.iter().rev().filter(|n| n.is("Identity")) {
        if let (true, Some(input)) = (node.output(0) == Some(&id), node.input(0)) {
            id = input.clone();
        }
    }
    id
}

struct Unrolling<'a> {
    graph: &'a mut Graph,
    names: &'a mut Names,
    node: &'a Node,
    body: &'a Graph,
    count: usize,
}

impl Unrolling<'_> {
    fn unroll_loop(&mut self) {
        let carried = self.node.inputs.len().saturating_sub(2);
        let mut states: Vec<Option<ValueId>> = self.node.inputs.iter().skip(2).cloned().collect();
        let mut slices = vec![vec![]; self.body.outputs.len().saturating_sub(1 + carried)];
        for t in 0..self.count {
            let rank = self.body.inputs.first().and_then(|i| i.shape.as_ref()).map_or(0, Vec::len);
            let number = self.constant("iteration", Tensor::i64(&vec![1; rank], &[t as i64]));
            let going = self.constant("going", Tensor::bool(&[], &[true]));
            let given = [vec![Some(number), Some(going)], states].concat();
            let made = self.iteration(t, &given);
            states = made.iter().skip(1).take(carried).cloned().map(Some).collect();
            for (slices, made) in slices.iter_mut().zip(&made[(1 + carried).min(made.len())..]) {
                slices.push(made.clone());
            }
        }
        self.finish(
            &states.into_iter().flatten().collect::<Vec<_>>(),
            slices.into_iter().map(|s| (s, 0)).collect(),
        );
    }

    fn unroll_scan(&mut self) {
        let scanned = self.node.int_or("num_scan_inputs", 1).max(0) as usize;
        let carried = self.node.inputs.len().saturating_sub(scanned);
        let backwards =
            |name: &str, i: usize| self.node.ints(name).and_then(|d| d.get(i)).is_some_and(|&d| d != 0);
        let directions: Vec<bool> = (0..scanned).map(|i| backwards("scan_input_directions", i)).collect();
        let made = self.body.outputs.len().saturating_sub(carried);
        let orders: Vec<bool> = (0..made).map(|i| backwards("scan_output_directions", i)).collect();
        let mut states: Vec<Option<ValueId>> = self.node.inputs.iter().take(carried).cloned().collect();
        let mut slices: Vec<Vec<ValueId>> = vec![vec![]; made];
        for t in 0..self.count {
            let mut given = states.clone();
            for (i, backwards) in directions.iter().enumerate() {
                let at = if *backwards { self.count - 1 - t } else { t };
                let axis = self.node.ints("scan_input_axes").and_then(|a| a.get(i)).copied().unwrap_or(0);
                let index = self.constant("index", Tensor::i64(&[], &[at as i64]));
                let slice = self.fresh("slice");
                if let Some(x) = self.node.input(carried + i) {
                    let gather = Node::new("Gather", &[x, &index], &[&slice]).with("axis", axis);
                    self.graph.nodes.push(gather);
                }
                given.push(Some(slice));
            }
            let made = self.iteration(t, &given);
            states = made.iter().take(carried).cloned().map(Some).collect();
            for (slices, made) in slices.iter_mut().zip(&made[carried.min(made.len())..]) {
                slices.push(made.clone());
            }
        }
        for (slices, backwards) in slices.iter_mut().zip(orders) {
            if backwards {
                slices.reverse();
            }
        }
        let axis = |i: usize| self.node.ints("scan_output_axes").and_then(|a| a.get(i)).copied().unwrap_or(0);
        let slices = slices.into_iter().enumerate().map(|(i, s)| (s, axis(i))).collect();
        self.finish(&states.into_iter().flatten().collect::<Vec<_>>(), slices);
    }

    /// Emits the body with its inputs given; the values of its outputs.
    fn iteration(&mut self, t: usize, given: &[Option<ValueId>]) -> Vec<ValueId> {
        let mut names: HashMap<ValueId, ValueId> = HashMap::new();
        for (input, value) in self.body.inputs.iter().zip(given) {
            names.extend(value.clone().map(|value| (input.id.clone(), value)));
        }
        for node in &self.body.nodes {
            for id in node.outputs.iter().flatten() {
                names.insert(id.clone(), self.fresh(&format!("{t}/{id}")));
            }
        }
        let mut nodes = self.body.nodes.clone();
        rename(&mut nodes, &names);
        for node in &mut nodes {
            if !node.name.is_empty() {
                node.name = format!("{}/{t}/{}", self.node.label(), node.name);
            }
            self.refresh(node, t);
        }
        self.graph.nodes.extend(nodes);
        self.body.outputs.iter().map(|o| names.get(&o.id).unwrap_or(&o.id).clone()).collect()
    }

    /// New names for what is made inside the graphs of a node.
    fn refresh(&mut self, node: &mut Node, t: usize) {
        for graph in node.subgraphs_mut() {
            let own: Vec<ValueId> = own_names(graph).cloned().collect();
            let names = own.into_iter().map(|id| (id.clone(), self.fresh(&format!("{t}/{id}")))).collect();
            rename_own(graph, &names);
            graph.nodes.iter_mut().for_each(|inner| self.refresh(inner, t));
        }
    }

    /// Names the last states, and joins what was made along the way.
    fn finish(&mut self, states: &[ValueId], slices: Vec<(Vec<ValueId>, i64)>) {
        for (state, output) in states.iter().zip(&self.node.outputs) {
            if let Some(output) = output {
                self.graph.nodes.push(Node::new("Identity", &[state], &[output]));
            }
        }
        for ((parts, axis), output) in slices.into_iter().zip(self.node.outputs.iter().skip(states.len())) {
            let Some(output) = output else { continue };
            let at = self.constant("axis", Tensor::i64(&[1], &[axis]));
            let parts: Vec<ValueId> = parts
                .iter()
                .map(|part| {
                    let row = self.fresh("row");
                    self.graph.nodes.push(Node::new("Unsqueeze", &[part, &at], &[&row]));
                    row
                })
                .collect();
            let parts: Vec<&ValueId> = parts.iter().collect();
            self.graph.nodes.push(Node::new("Concat", &parts, &[output]).with("axis", Attr::Int(axis)));
        }
    }

    fn fresh(&mut self, hint: &str) -> ValueId {
        self.names.fresh(&format!("{}/{hint}", self.node.label()))
    }
    fn constant(&mut self, what: &str, tensor: Tensor) -> ValueId {
        let id = self.fresh(what);
        self.graph.initializers.insert(id.clone(), tensor);
        id
    }
}
