//! Control flow: the gradient of an `If` is an `If` on the same condition, that of a `Loop` or `Scan` is a `Scan` over
//! the states it went through, backwards.
//!
//! A body's gradient is emitted like any other nodes (a copy of the body, then its backward pass), and then cut out of
//! the graph again to become a body itself, see [`super::scan`]; constants stay outside. So bodies compute their forward part a
//! second time. Facts of values inside come from a probe (`autodiff::facts`).

use super::scan::{Scan, Slices, cut};
use super::{Context, Cotangents, Row, rule};
use crate::autodiff::backward_through;
use crate::autodiff::prepare::own_names;
use crate::error::{Result, ResultExt};
use crate::onnx::{Attr, Builder, Fact, Graph, Node, Tensor, ValueId, ValueInfo, outer_reads};
use std::collections::HashMap;

pub const TABLE: &[Row] = &[rule("If", branch), rule("Loop", looped), rule("Scan", looped)];

/// Old names to new ones.
type Names = HashMap<ValueId, ValueId>;

/// Emits a copy of a body's nodes under new names, which are added to `names`; gives the nodes.
fn copy(b: &mut Builder, body: &Graph, names: &mut Names) -> Vec<Node> {
    let start = b.graph().nodes.len();
    for node in &body.nodes {
        let node = renamed(b, node, names);
        let known: Vec<Option<Fact>> =
            node.outputs.iter().map(|o| o.as_ref().and_then(|o| b.facts().get(o).cloned())).collect();
        b.push(node.clone());
        // What a probe has seen goes before what can be inferred.
        for (output, fact) in node.outputs.iter().zip(known) {
            if let (Some(output), Some(fact)) = (output, fact) {
                b.set_fact(output, fact);
            }
        }
    }
    b.graph().nodes[start..].to_vec()
}

/// A node with what it and its subgraphs make named anew.
fn renamed(b: &mut Builder, node: &Node, names: &mut Names) -> Node {
    let mut node = node.clone();
    for input in node.inputs.iter_mut().flatten() {
        if let Some(new) = names.get(input) {
            *input = new.clone();
        }
    }
    for graph in node.subgraphs_mut() {
        let own: Vec<ValueId> = own_names(graph).cloned().collect();
        own.iter().for_each(|id| drop(rename(b, id, names)));
        for info in graph.inputs.iter_mut() {
            info.id = names[&info.id].clone();
        }
        let inner = std::mem::take(&mut graph.nodes);
        graph.nodes = inner.iter().map(|node| renamed(b, node, names)).collect();
        for info in graph.outputs.iter_mut() {
            info.id = names.get(&info.id).unwrap_or(&info.id).clone();
        }
    }
    for output in node.outputs.iter_mut().flatten() {
        *output = names.get(output).cloned().unwrap_or_else(|| rename(b, output, names));
    }
    if !node.name.is_empty() {
        node.name = node.outputs.iter().flatten().next().map_or(String::new(), ToString::to_string);
    }
    node
}

/// A new name for a value of a body, with its fact.
fn rename(b: &mut Builder, id: &ValueId, names: &mut Names) -> ValueId {
    let new = b.fresh(id.as_str());
    if let Some(fact) = b.facts().get(id).cloned() {
        b.set_fact(&new, fact);
    }
    names.insert(id.clone(), new.clone());
    new
}

/// Values around a node that its bodies read and whose cotangents are wanted.
fn wanted_inside(c: &Context<'_>) -> Vec<ValueId> {
    let mut wanted: Vec<ValueId> = vec![];
    for id in c.node.subgraphs().flat_map(outer_reads) {
        let real = c.b.facts().get(&id).is_some_and(|f| f.dtype.is_float());
        if real && c.active.contains(&id) && !wanted.contains(&id) {
            wanted.push(id);
        }
    }
    wanted
}

/// `d = if condition { cotangents through one branch } else { through the other }`, zeros where a branch doesn't use
/// the value. A branch whose outputs aren't of the shapes that this `If` gives can't be the one that is taken.
fn branch(c: &mut Context<'_>) -> Cotangents {
    let wanted = wanted_inside(c);
    if wanted.is_empty() {
        return Ok(vec![]);
    }
    let condition = c.input(0)?;
    let mut attrs: Vec<(&str, Attr)> = vec![];
    for name in ["then_branch", "else_branch"] {
        let Some(body) = c.node.graph(name) else { return Err(c.refuse(format!("has no {name}"))) };
        let gradient = branch_gradient(c, name, body, &wanted)?;
        attrs.push((name, Attr::Graph(Box::new(gradient))));
    }
    let made = c.b.op_full("", "If", &[Some(&condition)], &attrs, wanted.len());
    for (value, cotangent) in wanted.into_iter().zip(made) {
        let fact = c.b.fact(&value).clone();
        c.b.set_fact(&cotangent, fact);
        c.captured.push((value, cotangent));
    }
    Ok(vec![])
}

fn branch_gradient(c: &mut Context<'_>, name: &str, body: &Graph, wanted: &[ValueId]) -> Result<Graph> {
    let start = c.b.graph().nodes.len();
    let pairs: Vec<(&ValueInfo, ValueId)> =
        body.outputs.iter().zip(c.cotangents).filter_map(|(o, g)| Some((o, g.clone()?))).collect();
    let fits = pairs.iter().all(|(o, g)| c.b.facts().get(&o.id).is_some_and(|f| f == c.b.fact(g)));
    let mut found = HashMap::new();
    if fits {
        let mut names = Names::new();
        let emitted = copy(c.b, body, &mut names);
        let seeds: Vec<(ValueId, ValueId)> =
            pairs.into_iter().map(|(o, g)| (names.get(&o.id).unwrap_or(&o.id).clone(), g)).collect();
        found = backward_through(c.b, &emitted, &seeds, wanted)
            .context(|| format!("inside the {name} of node '{}'", c.node.label()))?;
    }
    let outputs: Vec<ValueId> = wanted.iter().map(|id| settled(c.b, id, found.get(id))).collect();
    Ok(cut(c.b, start, &format!("{name}/gradient"), &[], &outputs))
}

/// The cotangent of `value`, or zeros, as the output of a node of its own: a body must make what it gives.
fn settled(b: &mut Builder, value: &ValueId, cotangent: Option<&ValueId>) -> ValueId {
    let cotangent = match cotangent {
        Some(cotangent) => cotangent.clone(),
        None => b.zeros_like(value),
    };
    b.op("Identity", &[&cotangent])
}

/// How the `i`th of the inputs or outputs that a `Scan` takes apart is sliced.
fn slices_of(node: &Node, what: &str, i: usize) -> Slices {
    let number =
        |name: &str| node.ints(&format!("scan_{what}_{name}")).and_then(|v| v.get(i)).copied().unwrap_or(0);
    Slices { axis: number("axes"), backwards: number("directions") != 0 }
}

/// How a `Loop` or `Scan` is wired.
struct Wiring<'a> {
    body: &'a Graph,
    /// Inputs of the node and of the body before the carried states: 2 for a `Loop`, its limit and condition.
    before: usize,
    /// Outputs of the body before the states: 1 for a `Loop`, its condition.
    condition: usize,
    states: usize,
    /// Inputs that are fed in slices; none for a `Loop`.
    fed: Vec<Slices>,
    /// Outputs that are collected from slices.
    collected: Vec<Slices>,
}

impl<'a> Wiring<'a> {
    fn of(c: &Context<'a>) -> Result<Self> {
        let node = c.node;
        let body = node.graph("body").ok_or_else(|| c.refuse("has no body"))?;
        let (before, condition, scanned) = match node.is("Loop") {
            true => (2, 1, 0),
            false => (0, 0, usize::try_from(node.int_or("num_scan_inputs", 0)).unwrap_or(0)),
        };
        let states = node.inputs.len().checked_sub(before + scanned);
        let collected = states.and_then(|states| body.outputs.len().checked_sub(condition + states));
        let (Some(states), Some(collected)) = (states, collected) else {
            return Err(c.refuse("doesn't fit its body"));
        };
        if body.inputs.len() != before + states + scanned || node.outputs.len() > states + collected {
            return Err(c.refuse("doesn't fit its body"));
        }
        let slices = |what: &str, n: usize| (0..n).map(|i| slices_of(node, what, i)).collect();
        let (fed, collected) = (slices("input", scanned), slices("output", collected));
        Ok(Wiring { body, before, condition, states, fed, collected })
    }
    fn state_in(&self, i: usize) -> &'a ValueId {
        &self.body.inputs[self.before + i].id
    }
    fn state_out(&self, i: usize) -> &'a ValueId {
        &self.body.outputs[self.condition + i].id
    }
    fn slice_in(&self, i: usize) -> &'a ValueId {
        &self.body.inputs[self.before + self.states + i].id
    }
    fn slice_out(&self, i: usize) -> &'a ValueId {
        &self.body.outputs[self.condition + self.states + i].id
    }
}

/// The backward pass: a `Scan` from the last iteration to the first. It carries the cotangents of the states and the
/// sums of those of captured values; it is fed the states before each iteration, which the node is made to put out,
/// and the slices of inputs and of outputs' cotangents.
fn looped(c: &mut Context<'_>) -> Cotangents {
    let wiring = Wiring::of(c)?;
    let captured = wanted_inside(c);
    let real = |c: &Context<'_>, id: &ValueId| c.b.facts().get(id).is_some_and(|f| f.dtype.is_float());
    let states: Vec<usize> = (0..wiring.states).filter(|&i| real(c, wiring.state_in(i))).collect();
    for &i in &states {
        let fact = |id: &ValueId| c.b.facts().get(id).cloned();
        if fact(wiring.state_in(i)) != fact(wiring.state_out(i)) {
            let what = format!("its state '{}' changes its shape", wiring.state_in(i));
            return Err(c.refuse(format!("has no gradient: {what} from iteration to iteration")));
        }
    }
    let fed: Vec<usize> = (0..wiring.fed.len())
        .filter(|&i| c.wants(wiring.before + wiring.states + i) && real(c, wiring.slice_in(i)))
        .collect();
    let history = remember(c, &wiring)?;
    let mut scan = Scan::default();
    for &i in &states {
        let cotangent = match c.cotangents.get(i).cloned().flatten() {
            Some(cotangent) => cotangent,
            None => {
                let initial = c.input(wiring.before + i)?;
                c.b.zeros_like(&initial)
            }
        };
        scan.carry(c.b, cotangent);
    }
    for value in &captured {
        let zeros = c.b.zeros_like(value);
        scan.carry(c.b, zeros);
    }
    let mut names = Names::new();
    for (id, stacked) in &history {
        let slice = scan.feed(c.b, stacked, Slices { axis: 0, backwards: true });
        names.insert(id.clone(), slice);
    }
    for (i, slices) in wiring.fed.iter().enumerate() {
        let whole = c.input(wiring.before + wiring.states + i)?;
        let slice = scan.feed(c.b, &whole, Slices { backwards: !slices.backwards, ..*slices });
        names.insert(wiring.slice_in(i).clone(), slice);
    }
    let mut collected = vec![];
    for (i, slices) in wiring.collected.iter().enumerate() {
        if let Some(whole) = c.cotangents.get(wiring.states + i).cloned().flatten() {
            let slice = scan.feed(c.b, &whole, Slices { backwards: !slices.backwards, ..*slices });
            collected.push((wiring.slice_out(i), slice));
        }
    }
    if wiring.before == 2 {
        let going = c.b.constant(Tensor::bool(&[], &[true]));
        names.insert(wiring.body.inputs[1].id.clone(), going);
    }
    // The body.
    let start = c.b.graph().nodes.len();
    let emitted = copy(c.b, wiring.body, &mut names);
    let name = |id: &ValueId| names.get(id).unwrap_or(id).clone();
    let mut seeds: Vec<(ValueId, ValueId)> = vec![];
    seeds.extend(states.iter().zip(&scan.carried).map(|(&i, g)| (name(wiring.state_out(i)), g.clone())));
    seeds.extend(collected.into_iter().map(|(id, slice)| (name(id), slice)));
    let mut wrt: Vec<ValueId> = states.iter().map(|&i| name(wiring.state_in(i))).collect();
    wrt.extend(captured.iter().cloned());
    wrt.extend(fed.iter().map(|&i| name(wiring.slice_in(i))));
    let found = backward_through(c.b, &emitted, &seeds, &wrt)
        .context(|| format!("inside the body of node '{}' ({})", c.node.label(), c.node.op))?;
    let mut outputs: Vec<ValueId> = vec![];
    for (k, value) in wrt.iter().enumerate() {
        let summed = (states.len()..states.len() + captured.len()).contains(&k);
        let cotangent = match (summed, found.get(value)) {
            (true, Some(part)) => Some(c.b.add(&scan.carried[k], part)),
            (true, None) => Some(scan.carried[k].clone()),
            (false, found) => found.cloned(),
        };
        outputs.push(settled(c.b, value, cotangent.as_ref()));
    }
    let body = cut(c.b, start, "body/gradient", &scan.body_inputs(), &outputs);
    let results = fed.iter().map(|&i| {
        let slices = wiring.fed[i];
        Slices { backwards: !slices.backwards, ..slices }
    });
    let results: Vec<Slices> = results.collect();
    let made = match may_not_run(c) {
        Some(runs) => unless_idle(c, &runs, scan, body)?,
        None => scan.finish(c.b, c.node, body, &results)?,
    };
    // Back to the node's inputs.
    let mut cotangents = vec![None; c.node.inputs.len()];
    for (&i, made) in states.iter().zip(&made) {
        cotangents[wiring.before + i] = Some(made.clone());
    }
    for (value, made) in captured.into_iter().zip(&made[states.len()..]) {
        c.captured.push((value, made.clone()));
    }
    for (&i, made) in fed.iter().zip(&made[made.len() - fed.len()..]) {
        cotangents[wiring.before + wiring.states + i] = Some(made.clone());
    }
    Ok(cotangents)
}

/// Whether a `Loop` runs at all, where that is known at run time only: its limit is above 0 and its first condition holds.
fn may_not_run(c: &mut Context<'_>) -> Option<ValueId> {
    if !c.node.is("Loop") {
        return None;
    }
    let settled = |id: &ValueId| c.b.constant_value(id).is_some_and(|v| v.to_f64().iter().all(|&v| v > 0.0));
    let open = |i: usize| c.node.input(i).filter(|id| !settled(id)).cloned();
    let (limit, condition) = (open(0), open(1));
    let within = limit.map(|limit| {
        let none = c.b.constant(Tensor::i64(&[], &[0]));
        c.b.op("Greater", &[&limit, &none])
    });
    match (within, condition) {
        (Some(within), Some(condition)) => Some(c.b.op("And", &[&within, &condition])),
        (within, condition) => within.or(condition),
    }
}

/// The backward pass of a loop that may not run: cotangents of its states are then those of what they started as. Runtimes
/// refuse a `Scan` over nothing.
fn unless_idle(c: &mut Context<'_>, runs: &ValueId, scan: Scan, body: Graph) -> Result<Vec<ValueId>> {
    let initial = scan.initial().to_vec();
    let start = c.b.graph().nodes.len();
    let made = scan.finish(c.b, c.node, body, &[])?;
    let branch = |b: &mut Builder, name: &str, values: &[ValueId]| {
        let outputs: Vec<ValueId> = values.iter().map(|value| b.op("Identity", &[value])).collect();
        Attr::Graph(Box::new(cut(b, start, name, &[], &outputs)))
    };
    let then = branch(c.b, "gradient", &made);
    let other = branch(c.b, "idle", &initial);
    let made =
        c.b.op_full("", "If", &[Some(runs)], &[("then_branch", then), ("else_branch", other)], initial.len());
    for (made, initial) in made.iter().zip(&initial) {
        let fact = c.b.fact(initial).clone();
        c.b.set_fact(made, fact);
    }
    Ok(made)
}

/// Makes the node put out what its body was given in each iteration: the number of the iteration and the states.
fn remember(c: &mut Context<'_>, wiring: &Wiring<'_>) -> Result<Vec<(ValueId, ValueId)>> {
    let mut kept: Vec<&ValueId> = vec![];
    if wiring.before == 2 {
        kept.push(&wiring.body.inputs[0].id);
    }
    kept.extend((0..wiring.states).map(|i| wiring.state_in(i)));
    let count = iterations(c, wiring);
    let mut history = vec![];
    let mut body = wiring.body.clone();
    let mut outputs = vec![];
    for id in kept {
        let Some(fact) = c.b.facts().get(id).cloned() else {
            return Err(c.refuse(format!("has no gradient here: type and shape of '{id}' are not known")));
        };
        let (inner, outer) = (c.b.fresh(&format!("{id}/kept")), c.b.fresh(&format!("{id}/history")));
        body.nodes.push(Node::new("Identity", &[id], &[&inner]));
        body.outputs.push(ValueInfo::new(inner.clone(), &fact));
        c.b.set_fact(&inner, fact.clone());
        c.b.set_fact(&outer, Fact::new(fact.dtype, &[&[count], &fact.shape[..]].concat()));
        outputs.push(outer.clone());
        history.push((id.clone(), outer));
    }
    let given = wiring.states + wiring.collected.len();
    let all = &mut c.b.graph_mut().nodes;
    let node = all.iter_mut().find(|n| n.outputs == c.node.outputs);
    let Some(node) = node else { return Err(c.refuse("isn't part of the graph")) };
    node.outputs.resize(given, None);
    node.outputs.extend(outputs.into_iter().map(Some));
    node.attrs.insert("body".into(), Attr::Graph(Box::new(body)));
    for (name, default) in [("scan_output_axes", 0), ("scan_output_directions", 0)] {
        if let Some(Attr::Ints(list)) = node.attrs.get_mut(name) {
            list.resize(list.len() + history.len(), default);
        }
    }
    Ok(history)
}

/// How often the body runs, as the probe has seen it; 1 where nothing tells (nothing depends on it then).
fn iterations(c: &Context<'_>, wiring: &Wiring<'_>) -> usize {
    let size = |id: Option<&ValueId>, slices: &Slices| {
        let shape = &c.b.facts().get(id?)?.shape;
        shape.get(crate::onnx::infer::normalise_axis(slices.axis, shape.len())?).copied()
    };
    let fed = wiring.fed.first().and_then(|s| size(c.node.input(wiring.states), s));
    let mut collected = wiring.collected.iter().enumerate();
    let counted = collected.find_map(|(i, s)| size(c.node.output(wiring.states + i), s));
    fed.or(counted).unwrap_or(1)
}
