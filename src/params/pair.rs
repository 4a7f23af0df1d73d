//! Matching two parameter graphs: which channel space of the target takes knowledge from which of the source.
//!
//! Hidden interfaces are aligned in the order of their depth by dynamic programming: a match scores by how alike the
//! two are (relative depth, role, channels, place in the network), and more where a matrix of the target then lies
//! between the same interfaces as one of the source. Inputs and outputs pair where their channels are as many.
//! Look at [`Pairing::automatic`].

use super::{InterfaceId, InterfaceKind, ParamGraph, Role, Weight, WeightId};
use crate::error::{Error, Result};
use crate::patterns::Patterns;
use serde::Serialize;
use std::collections::HashMap;

/// What a target can take from a source. Every matrix of the target is in `weights`, in the target's order.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Pairing {
    /// (target, source); each target interface at most once, in the target's order of depth.
    pub interfaces: Vec<(InterfaceId, InterfaceId)>,
    pub weights: Vec<WeightPair>,
    /// The only matrices of the target that take knowledge, where not all may.
    #[serde(skip)]
    pub only: Option<Vec<WeightId>>,
}

/// Where one matrix of the target takes knowledge from.
#[derive(Clone, Debug, Serialize)]
pub struct WeightPair {
    pub target: WeightId,
    /// The source matrix between the interfaces that are paired with this matrix's input and output: interface maps
    /// can carry it as it is. `None` where an interface is unpaired or no such matrix exists.
    pub source: Option<WeightId>,
    /// Source matrices for token transfer, best first: same role and nearest in relative depth, or those of `--map`.
    pub candidates: Vec<WeightId>,
}

/// Of sources with more matrices than this, only the nearest [`NEAREST`] are candidates.
const SMALL: usize = 16;
const NEAREST: usize = 8;
/// How far back the alignment looks for a matrix that both models have between the same interfaces.
const WINDOW: usize = 12;

impl Pairing {
    /// Pairs a target with a source. `maps` are rules `target_glob=source_glob` on names of weights or of the nodes
    /// that use them; they come before everything else.
    ///
    /// # Errors
    /// [`Error::Usage`] for a rule that isn't of that form, or that matches no matrix on one of its sides.
    pub fn automatic(target: &ParamGraph, source: &ParamGraph, maps: &[String]) -> Result<Self> {
        let rules: Vec<Rule> =
            maps.iter().map(|text| Rule::new(text, target, source)).collect::<Result<_>>()?;
        let mut pairs: Vec<(InterfaceId, InterfaceId)> = ends(target, source);
        for (t, s) in rules.iter().flat_map(Rule::pairs) {
            let (t, s) = (target.weight(t), source.weight(s));
            for (t, s) in [(t.output_use(), s.output_use()), (t.input_use(), s.input_use())] {
                if let (Some(t), Some(s)) = (t, s) {
                    let hidden = [&target.interface(t.interface), &source.interface(s.interface)];
                    let free = !pairs.iter().any(|(known, _)| *known == t.interface);
                    if free && hidden.iter().all(|i| i.kind == InterfaceKind::Hidden) {
                        pairs.push((t.interface, s.interface));
                    }
                }
            }
        }
        pairs.extend(align(target, source, &pairs));
        pairs.sort();
        let mut pairing = Pairing { interfaces: pairs, ..Pairing::default() };
        pairing.weights = weights(target, source, &pairing, &rules);
        Ok(pairing)
    }
    /// Leaves all matrices of the target alone but these.
    pub fn restrict(&mut self, only: Vec<WeightId>) {
        self.weights.retain(|pair| only.contains(&pair.target));
        self.only = Some(only);
    }
    /// Whether a matrix of the target may take knowledge.
    pub fn allows(&self, target: WeightId) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(&target))
    }
    /// The source interface paired with a target interface.
    pub fn source_of(&self, target: InterfaceId) -> Option<InterfaceId> {
        self.interfaces.iter().find(|(t, _)| *t == target).map(|(_, s)| *s)
    }
}

/// Inputs with inputs, outputs with outputs, in order, where the channels are as many.
fn ends(target: &ParamGraph, source: &ParamGraph) -> Vec<(InterfaceId, InterfaceId)> {
    let mut pairs: Vec<(InterfaceId, InterfaceId)> = vec![];
    for kind in [InterfaceKind::Input, InterfaceKind::Output] {
        for t in of_kind(target, kind) {
            let fits = |s: &InterfaceId| source.interface(*s).channels == target.interface(t).channels;
            let free = |s: &InterfaceId| !pairs.iter().any(|(_, taken)| taken == s);
            if let Some(s) = of_kind(source, kind).into_iter().find(|s| fits(s) && free(s)) {
                pairs.push((t, s));
            }
        }
    }
    pairs
}

fn of_kind(graph: &ParamGraph, kind: InterfaceKind) -> Vec<InterfaceId> {
    (0..graph.interfaces.len()).map(InterfaceId).filter(|&i| graph.interface(i).kind == kind).collect()
}

/// One model as the alignment sees it.
struct Side<'a> {
    graph: &'a ParamGraph,
    /// The hidden interfaces that are still free, shallow ones first.
    free: Vec<InterfaceId>,
    /// Matrices by the interfaces they lie between.
    between: HashMap<(InterfaceId, InterfaceId), Vec<WeightId>>,
    deepest: f32,
}

impl<'a> Side<'a> {
    fn new(graph: &'a ParamGraph, taken: impl Fn(InterfaceId) -> bool) -> Self {
        let mut between: HashMap<_, Vec<WeightId>> = HashMap::new();
        for (id, weight) in graph.matrices() {
            for i in &weight.input {
                for o in &weight.output {
                    between.entry((i.interface, o.interface)).or_default().push(id);
                }
            }
        }
        let free = of_kind(graph, InterfaceKind::Hidden).into_iter().filter(|&i| !taken(i)).collect();
        let deepest = graph.interfaces.iter().map(|i| i.depth).max().unwrap_or(0).max(1) as f32;
        Side { graph, free, between, deepest }
    }
    fn between(&self, from: InterfaceId, to: InterfaceId) -> &[WeightId] {
        self.between.get(&(from, to)).map_or(&[], Vec::as_slice)
    }
    fn is_dense(&self, id: InterfaceId) -> bool {
        self.is_made_by(id, &[Role::Linear])
    }
    fn is_convolved(&self, id: InterfaceId) -> bool {
        self.is_made_by(id, &[Role::Conv, Role::DepthwiseConv, Role::ConvTranspose])
    }
    /// Whether layers make it, and nothing but such.
    fn is_made_by(&self, id: InterfaceId, roles: &[Role]) -> bool {
        let makers = &self.graph.interface(id).producers;
        !makers.is_empty() && makers.iter().all(|&w| roles.contains(&self.graph.weight(w).role))
    }
    fn traits(&self, id: InterfaceId) -> Traits {
        let interface = self.graph.interface(id);
        let roles = |ids: &[WeightId]| -> Vec<Role> {
            ids.iter().map(|w| self.graph.weight(*w).role).filter(|r| *r != Role::DepthwiseConv).collect()
        };
        let (made, read) = (roles(&interface.producers), roles(&interface.consumers));
        Traits {
            depth: interface.depth as f32 / self.deepest,
            role: made.first().copied(),
            stream: made.len() > 1,
            dead_end: read.is_empty(),
            depthwise: !self.between(id, id).is_empty(),
            channels: interface.channels.max(1) as f32,
        }
    }
}

/// What makes interfaces alike.
struct Traits {
    depth: f32,
    role: Option<Role>,
    /// Whether several layers write to it: a residual stream.
    stream: bool,
    /// Whether no matrix reads it, as with queries and keys.
    dead_end: bool,
    depthwise: bool,
    channels: f32,
}

impl Traits {
    /// How alike, 1 at most.
    fn likeness(&self, other: &Traits) -> f32 {
        let differ = |a: bool, b: bool, cost: f32| if a == b { 0.0 } else { cost };
        let role = match (self.role, other.role) {
            (a, b) if a == b => 0.0,
            (Some(Role::Conv | Role::ConvTranspose), Some(Role::Conv | Role::ConvTranspose)) => 0.1,
            _ => 0.4,
        };
        let ratio = (self.channels / other.channels).log2().abs().min(5.0);
        1.0 - (self.depth - other.depth).abs()
            - role
            - 0.05 * ratio
            - differ(self.stream, other.stream, 0.15)
            - differ(self.dead_end, other.dead_end, 0.5)
            - differ(self.depthwise, other.depthwise, 0.05)
    }
}

/// The order-preserving alignment of the interfaces that aren't in `fixed` yet.
fn align(
    target: &ParamGraph,
    source: &ParamGraph,
    fixed: &[(InterfaceId, InterfaceId)],
) -> Vec<(InterfaceId, InterfaceId)> {
    let t = Side::new(target, |i| fixed.iter().any(|p| p.0 == i));
    let s = Side::new(source, |i| fixed.iter().any(|p| p.1 == i));
    let (n, m) = (t.free.len(), s.free.len());
    let traits_t: Vec<Traits> = t.free.iter().map(|&i| t.traits(i)).collect();
    let traits_s: Vec<Traits> = s.free.iter().map(|&i| s.traits(i)).collect();
    // How much a match of (a → b) with (c → d) gains because both models have such a matrix there.
    let gain = |from: (InterfaceId, InterfaceId), to: (InterfaceId, InterfaceId)| -> f32 {
        let one_way = |a: InterfaceId, b: InterfaceId, c: InterfaceId, d: InterfaceId| {
            let matching = |w: &WeightId| {
                s.between(c, d).iter().any(|v| compatible(target.weight(*w), source.weight(*v)))
            };
            // What a convolution makes isn't what a dense layer makes because a dense layer reads either: depth decides.
            if t.is_dense(a) && s.is_convolved(c) || t.is_dense(b) && s.is_convolved(d) {
                return 0.0;
            }
            if t.between(a, b).iter().any(matching) { 0.5 } else { 0.0 }
        };
        one_way(from.0, to.0, from.1, to.1) + one_way(to.0, from.0, to.1, from.1)
    };
    // score[i][j]: of the best alignment that ends with the match of i and j; best: of any up to i and j.
    let mut score = vec![vec![f32::NEG_INFINITY; m]; n];
    let mut previous = vec![vec![None; m]; n];
    let mut best = vec![vec![(0.0f32, None); m + 1]; n + 1];
    for i in 0..n {
        for j in 0..m {
            let here = (t.free[i], s.free[j]);
            let alone =
                traits_t[i].likeness(&traits_s[j]) + fixed.iter().map(|&p| gain(p, here)).sum::<f32>();
            let (before, at) = best[i][j];
            let (mut most, mut from) = (before, at);
            for k in i.saturating_sub(WINDOW)..i {
                for l in j.saturating_sub(WINDOW)..j {
                    let with = score[k][l] + gain((t.free[k], s.free[l]), here);
                    if with > most {
                        (most, from) = (with, Some((k, l)));
                    }
                }
            }
            score[i][j] = most + alone;
            previous[i][j] = from;
            let mut reached = [best[i][j + 1], best[i + 1][j]]
                .into_iter()
                .fold((0.0, None), |a, b| if b.0 > a.0 { b } else { a });
            if alone > 0.0 && score[i][j] > reached.0 {
                reached = (score[i][j], Some((i, j)));
            } else if alone <= 0.0 {
                score[i][j] = f32::NEG_INFINITY;
            }
            best[i + 1][j + 1] = reached;
        }
    }
    let mut found = vec![];
    let mut at = best[n][m].1;
    while let Some((i, j)) = at {
        found.push((t.free[i], s.free[j]));
        at = previous[i][j];
    }
    found.reverse();
    found
}

/// Whether a source matrix can be carried to a target matrix by interface maps: the same kind of layer (a convolution
/// of one tap is a linear layer), with as many features a channel where neither positions nor taps explain them.
pub fn compatible(target: &Weight, source: &Weight) -> bool {
    let (Some(t), Some(s)) = (&target.view, &source.view) else {
        return false;
    };
    let one_tap = |w: &Weight| {
        w.view.as_ref().is_some_and(|v| v.tap_count() == 1) && w.input.iter().all(|u| u.positions == 1)
    };
    match (target.role, source.role) {
        (Role::Conv, Role::Conv)
        | (Role::ConvTranspose, Role::ConvTranspose)
        | (Role::DepthwiseConv, Role::DepthwiseConv) => {
            t.taps.len() == s.taps.len() && (t.group == 1) == (s.group == 1)
        }
        (Role::Recurrent, Role::Recurrent) => {
            let gates = |w: &Weight| w.output_use().map(|u| u.positions);
            gates(target) == gates(source) && t.group == s.group
        }
        (a, b) if a == b => t.group == s.group,
        (Role::Conv, Role::Linear) | (Role::Linear, Role::Conv) => {
            one_tap(target) && one_tap(source) && t.group == s.group
        }
        _ => false,
    }
}

pub(super) fn weights(
    target: &ParamGraph,
    source: &ParamGraph,
    pairing: &Pairing,
    rules: &[Rule],
) -> Vec<WeightPair> {
    let spaces = |w: &Weight| {
        let ids = |uses: &[super::InterfaceUse]| uses.iter().map(|u| u.interface).collect::<Vec<_>>();
        (ids(&w.input), ids(&w.output))
    };
    let mut by_spaces: HashMap<_, Vec<WeightId>> = HashMap::new();
    for (id, weight) in source.matrices() {
        by_spaces.entry(spaces(weight)).or_default().push(id);
    }
    // Where several matrices lie between the same interfaces, they go by order.
    let mut peers: HashMap<_, Vec<WeightId>> = HashMap::new();
    for (id, weight) in target.matrices() {
        peers.entry((spaces(weight), weight.role)).or_default().push(id);
    }
    let mapped = |ids: &[InterfaceId]| ids.iter().map(|&i| pairing.source_of(i)).collect::<Option<Vec<_>>>();
    let structured = |id: WeightId, weight: &Weight| {
        let here = spaces(weight);
        let there = (mapped(&here.0)?, mapped(&here.1)?);
        if there.0.is_empty() || there.1.is_empty() {
            return None;
        }
        let fit: Vec<WeightId> = by_spaces
            .get(&there)?
            .iter()
            .copied()
            .filter(|s| compatible(weight, source.weight(*s)))
            .collect();
        let peers = peers.get(&(here, weight.role))?;
        let at = peers.iter().position(|p| *p == id)?;
        fit.get(in_proportion(at, peers.len(), fit.len())).copied()
    };
    let all: Vec<(WeightId, &Weight)> = source.matrices().collect();
    target
        .matrices()
        .map(|(id, weight)| {
            let wished: Vec<WeightId> = rules.iter().flat_map(|rule| rule.sources_of(id)).collect();
            let mut found = structured(id, weight);
            if let Some(&first) = wished.first() {
                found = found.filter(|s| wished.contains(s)).or_else(|| {
                    let (here, there) = (spaces(weight), spaces(source.weight(first)));
                    let same = mapped(&here.0) == Some(there.0) && mapped(&here.1) == Some(there.1);
                    (same && compatible(weight, source.weight(first))).then_some(first)
                });
            }
            let candidates = if wished.is_empty() { nearest(weight, &all) } else { wished };
            WeightPair { target: id, source: found, candidates }
        })
        .collect()
}

/// Candidates for token transfer: the same role first, then the nearest in relative depth. Tables of entries are for
/// tables of entries only.
fn nearest(target: &Weight, all: &[(WeightId, &Weight)]) -> Vec<WeightId> {
    let is_table = |w: &Weight| w.role == Role::Embedding;
    let mut ranked: Vec<(bool, f32, WeightId)> = all
        .iter()
        .filter(|(_, s)| is_table(s) == is_table(target))
        .map(|(id, s)| (s.role != target.role, (s.relative_depth - target.relative_depth).abs(), *id))
        .collect();
    ranked.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
    ranked.truncate(if all.len() <= SMALL { SMALL } else { NEAREST });
    ranked.into_iter().map(|r| r.2).collect()
}

/// The index among `there` things that corresponds to `index` among `here` things.
fn in_proportion(index: usize, here: usize, there: usize) -> usize {
    match here {
        0 | 1 => 0,
        _ => (index * there.saturating_sub(1) + (here - 1) / 2) / (here - 1),
    }
}

/// One `--map`.
pub(super) struct Rule {
    targets: Vec<WeightId>,
    sources: Vec<WeightId>,
}

impl Rule {
    fn new(text: &str, target: &ParamGraph, source: &ParamGraph) -> Result<Self> {
        let form = || Error::usage(format!("--map '{text}' isn't of the form 'target_glob=source_glob'"));
        let (t, s) = text.split_once('=').ok_or_else(form)?;
        if t.is_empty() || s.is_empty() {
            return Err(form());
        }
        Ok(Rule {
            targets: matching(text, t, target, "target")?,
            sources: matching(text, s, source, "source")?,
        })
    }
    /// Target and source matrices, in proportion.
    fn pairs(&self) -> Vec<(WeightId, WeightId)> {
        let at = |i| in_proportion(i, self.targets.len(), self.sources.len());
        self.targets.iter().enumerate().map(|(i, &t)| (t, self.sources[at(i)])).collect()
    }
    /// Sources for a target: the one in proportion first.
    fn sources_of(&self, target: WeightId) -> Vec<WeightId> {
        let Some((_, first)) = self.pairs().into_iter().find(|(t, _)| *t == target) else {
            return vec![];
        };
        let others = self.sources.iter().copied().filter(|&s| s != first);
        std::iter::once(first).chain(others).collect()
    }
}

/// The matrices whose name, or a user's name, a glob matches.
fn matching(rule: &str, glob: &str, graph: &ParamGraph, side: &str) -> Result<Vec<WeightId>> {
    let pattern = Patterns::new(&[glob]).map_err(|e| e.context(format!("--map '{rule}'")))?;
    let hit = |w: &Weight| pattern.matches(w.name.as_str()) || w.nodes.iter().any(|n| pattern.matches(n));
    let found: Vec<WeightId> = graph.matrices().filter(|(_, w)| hit(w)).map(|(id, _)| id).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let what = format!("--map '{rule}': '{glob}' matches no weight matrix of the {side}");
    let mut names: Vec<&str> = graph.matrices().map(|(_, w)| w.name.as_str()).collect();
    names.sort_by_key(|name| distance(glob, name));
    names.truncate(5);
    let hint = match names.as_slice() {
        [] => format!("the {side} has no weight matrices at all"),
        names => format!(
            "its matrices are called {}{}",
            names.join(", "),
            if graph.matrices().count() > 5 { ", …" } else { "" }
        ),
    };
    Err(Error::usage(what).hint(hint))
}

/// Edits that lead from one name to another (Levenshtein), without regard to case.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.to_lowercase(), b.to_lowercase());
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.chars().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{Attr, Builder, DType, Fact, Tensor, ValueId};

    fn zeros(b: &mut Builder, name: &str, shape: &[usize]) -> ValueId {
        b.initializer(name, Tensor::zeros(DType::F32, shape))
    }

    /// Convolutions (with pooling by 2 after each), then linear layers.
    fn network(inputs: &[usize], convs: &[usize], linears: &[usize]) -> ParamGraph {
        let mut b = Builder::new("test");
        let mut x = b.input("x", Fact::new(DType::F32, inputs));
        for (i, &out) in convs.iter().enumerate() {
            let inn = b.shape(&x)[1];
            let w = zeros(&mut b, &format!("c{}", i + 1), &[out, inn, 3, 3]);
            x = b.op_with("Conv", &[&x, &w], &[("pads", Attr::Ints(vec![1; 4]))]);
            x = b.op("Relu", &[&x]);
            x = b.op_with(
                "MaxPool",
                &[&x],
                &[("kernel_shape", vec![2i64, 2].into()), ("strides", vec![2i64, 2].into())],
            );
        }
        x = b.op("Flatten", &[&x]);
        for (i, &out) in linears.iter().enumerate() {
            let inn = b.shape(&x)[1];
            let w = zeros(&mut b, &format!("f{}", i + 1), &[out, inn]);
            x = b.op_with("Gemm", &[&x, &w], &[("transB", Attr::Int(1))]);
            if i + 1 < linears.len() {
                x = b.op("Relu", &[&x]);
            }
        }
        b.output(&x);
        let (graph, facts) = b.finish();
        ParamGraph::of_graph(&graph, &facts).unwrap()
    }

    /// `target=source` of all structured pairs.
    fn structured(t: &ParamGraph, s: &ParamGraph, maps: &[&str]) -> Vec<String> {
        let maps: Vec<String> = maps.iter().map(|m| m.to_string()).collect();
        let pairing = Pairing::automatic(t, s, &maps).unwrap();
        let name = |g: &ParamGraph, id| g.weight(id).name.to_string();
        pairing
            .weights
            .iter()
            .filter_map(|p| Some(format!("{}={}", name(t, p.target), name(s, p.source?))))
            .collect()
    }

    #[test]
    fn the_networks_of_the_study_pair_as_there() {
        let source = network(&[2, 1, 28, 28], &[32, 64, 128], &[128, 10]);
        let target = network(&[2, 1, 28, 28], &[16, 32], &[64, 10]);
        assert_eq!(structured(&target, &source, &[]), ["c1=c1", "c2=c2", "f2=f2"]);
        assert_eq!(structured(&source, &target, &[]), ["c1=c1", "c2=c2", "f2=f2"]);
        assert_eq!(structured(&source, &source, &[]), ["c1=c1", "c2=c2", "c3=c3", "f1=f1", "f2=f2"]);
    }

    #[test]
    fn a_linear_source_serves_a_convolutional_target() {
        let source = network(&[2, 784], &[], &[256, 256, 256, 10]);
        let target = network(&[2, 1, 28, 28], &[32], &[10]);
        let pairing = Pairing::automatic(&target, &source, &[]).unwrap();
        assert_eq!(structured(&target, &source, &[]), ["f1=f4"]);
        assert_eq!(pairing.interfaces.len(), 2);
        assert!(pairing.weights.iter().all(|p| !p.candidates.is_empty()));
    }

    #[test]
    fn other_classes_and_other_inputs_stay_unpaired() {
        let source = network(&[2, 3, 32, 32], &[8, 8], &[16, 7]);
        let target = network(&[2, 1, 28, 28], &[8, 8], &[16, 10]);
        assert_eq!(structured(&target, &source, &[]), ["c2=c2", "f1=f1"]);
    }

    #[test]
    fn maps_come_first_and_must_match() {
        let source = network(&[2, 1, 28, 28], &[32, 64, 128], &[128, 10]);
        let target = network(&[2, 1, 28, 28], &[16, 32], &[64, 10]);
        assert_eq!(structured(&target, &source, &["c2=c3"]), ["c2=c3", "f1=f1", "f2=f2"]);
        let pairing = Pairing::automatic(&target, &source, &["c*=c[23]".into()]).unwrap();
        assert_eq!(pairing.weights[0].candidates, [source.find("c2").unwrap(), source.find("c3").unwrap()]);
        let error = Pairing::automatic(&target, &source, &["conv1=c1".into()]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.hints()[0].contains("c1"), "{:?}", error.hints());
        for bad in ["c1", "=c1", "c1=nothing", "[=c1"] {
            assert!(Pairing::automatic(&target, &source, &[bad.into()]).is_err(), "{bad}");
        }
    }
}
