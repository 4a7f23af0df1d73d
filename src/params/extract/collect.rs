//! From the channels on the sides of weights to interfaces: channels that the same sides share are one interface.

use super::labels::Atom;
use super::{Draft, Walk};
use crate::params::{
    Interface, InterfaceId, InterfaceKind, InterfaceUse, ParamGraph, Role, Weight, WeightId,
};
use std::collections::{BTreeMap, HashMap, HashSet};

/// A side in more pieces than this isn't worth describing.
const MOST_PARTS: usize = 64;

/// Where each channel of the model ended up.
struct Places {
    /// By root atom: interface and channel.
    of: HashMap<Atom, (usize, usize)>,
    channels: Vec<usize>,
    grids: Vec<Vec<Vec<usize>>>,
}

pub fn finish(mut walk: Walk) -> ParamGraph {
    let mut drafts = std::mem::take(&mut walk.drafts);
    for draft in &mut drafts {
        draft.input.iter_mut().chain(&mut draft.output).for_each(|a| *a = walk.atoms.root(*a));
    }
    let places = place(&mut walk, &drafts);
    let mut interfaces = interfaces(&mut walk, &drafts, &places);
    let number = renumber(&mut interfaces);
    let deepest = drafts.iter().filter(|d| d.role.is_matrix()).map(|d| d.depth).max().unwrap_or(0).max(1);
    let weights = drafts
        .into_iter()
        .map(|d| {
            let tensor = walk.graph.initializers.get(&d.name);
            Weight {
                role: d.role,
                shape: tensor.map(|t| t.shape().to_vec()).unwrap_or_default(),
                dtype: tensor.map_or(crate::onnx::DType::F32, |t| t.dtype()),
                site: tensor.and_then(|t| t.site),
                depth: d.depth,
                relative_depth: (d.depth as f32 / deepest as f32).min(1.0),
                spectrum: vec![],
                input: uses(&d.input, &places, &number),
                output: uses(&d.output, &places, &number),
                view: d.view,
                nodes: d.nodes,
                name: d.name,
            }
        })
        .collect();
    ParamGraph { weights, interfaces, edges: walk.edges }
}

/// Groups channels by the sides they occur on, and numbers them in the order of the first side they occur on:
/// outputs of matrices before inputs, shallow ones first.
fn place(walk: &mut Walk, drafts: &[Draft]) -> Places {
    let mut sides: Vec<(u8, usize, &[Atom])> = vec![];
    for draft in drafts {
        let matrix = draft.role.is_matrix() || !draft.input.is_empty();
        sides.push((if matrix { 0 } else { 2 }, draft.depth, &draft.output));
        sides.push((1, draft.depth, &draft.input));
    }
    sides.retain(|s| !s.2.is_empty());
    sides.sort_by_key(|s| (s.0, s.1));
    let mut signature: HashMap<Atom, Vec<usize>> = HashMap::new();
    for (i, (_, _, side)) in sides.iter().enumerate() {
        for atom in *side {
            let seen = signature.entry(*atom).or_default();
            if seen.last() != Some(&i) {
                seen.push(i);
            }
        }
    }
    let mut places = Places { of: HashMap::new(), channels: vec![], grids: vec![] };
    let mut by_signature: HashMap<&[usize], usize> = HashMap::new();
    for (_, _, side) in &sides {
        for atom in *side {
            let Some(shared) = signature.get(atom).filter(|_| !places.of.contains_key(atom)) else {
                continue;
            };
            let interface = *by_signature.entry(shared).or_insert_with(|| {
                places.channels.push(0);
                places.channels.len() - 1
            });
            places.of.insert(*atom, (interface, places.channels[interface]));
            places.channels[interface] += 1;
        }
    }
    places.grids = vec![vec![]; places.channels.len()];
    for (atom, grid) in std::mem::take(&mut walk.grids) {
        if let Some(&(interface, _)) = places.of.get(&walk.atoms.root(atom)) {
            places.grids[interface].push(grid);
        }
    }
    places
}

fn interfaces(walk: &mut Walk, drafts: &[Draft], places: &Places) -> Vec<Interface> {
    let empty = Interface {
        kind: InterfaceKind::Hidden,
        channels: 0,
        producers: vec![],
        consumers: vec![],
        vectors: vec![],
        depth: 0,
    };
    let mut found: Vec<Interface> =
        places.channels.iter().map(|&channels| Interface { channels, ..empty.clone() }).collect();
    let touched = |side: &[Atom]| -> HashSet<usize> {
        side.iter().filter_map(|a| places.of.get(a)).map(|p| p.0).collect()
    };
    for (i, draft) in drafts.iter().enumerate() {
        let matrix = draft.role.is_matrix() || !draft.input.is_empty();
        for interface in touched(&draft.output) {
            let list = &mut found[interface];
            if matrix { &mut list.producers } else { &mut list.vectors }.push(WeightId(i));
        }
        touched(&draft.input).into_iter().for_each(|interface| found[interface].consumers.push(WeightId(i)));
    }
    let mut at = |atoms: Vec<Atom>| -> HashSet<usize> {
        atoms.into_iter().filter_map(|a| places.of.get(&walk.atoms.root(a))).map(|p| p.0).collect()
    };
    let from_inputs = at(walk.input_atoms.clone());
    let outputs = walk.graph.outputs.iter().filter_map(|o| walk.values.get(&o.id)?.labels.as_ref());
    let to_outputs = at(outputs.flat_map(|l| l.atoms.clone()).collect());
    let leads_on = walk.edges.starts();
    for (i, interface) in found.iter_mut().enumerate() {
        let ends = !interface.producers.iter().any(|w| leads_on.contains(w));
        let proper = |ids: &[WeightId]| ids.iter().any(|w| drafts[w.0].role != Role::DepthwiseConv);
        let (made, read) = (proper(&interface.producers), proper(&interface.consumers));
        let (first, last) = (from_inputs.contains(&i), to_outputs.contains(&i));
        interface.kind = match (first, last, read) {
            (_, _, false) if made && (last || ends) => InterfaceKind::Output,
            (true, true, _) if made => InterfaceKind::Output,
            (true, _, _) => InterfaceKind::Input,
            _ => InterfaceKind::Hidden,
        };
        let shallowest = interface
            .producers
            .iter()
            .filter(|w| drafts[w.0].role != Role::DepthwiseConv)
            .map(|w| drafts[w.0].depth)
            .min();
        interface.depth = match interface.kind {
            InterfaceKind::Input => 0,
            _ => shallowest.map_or(0, |d| d + 1),
        };
        if shallowest.is_none() && interface.kind != InterfaceKind::Input {
            // Begun by an unknown operator: as deep as its first reader.
            interface.depth = interface.consumers.iter().map(|w| drafts[w.0].depth).min().unwrap_or(0);
        }
    }
    found
}

/// Sorts interfaces by depth; gives the new number of each.
fn renumber(interfaces: &mut Vec<Interface>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..interfaces.len()).collect();
    order.sort_by_key(|&i| {
        let first = interfaces[i].producers.iter().chain(&interfaces[i].consumers).min();
        (interfaces[i].depth, first.copied())
    });
    let mut number = vec![0; interfaces.len()];
    for (new, &old) in order.iter().enumerate() {
        number[old] = new;
    }
    *interfaces = order.iter().map(|&i| interfaces[i].clone()).collect();
    number
}

/// Describes a side by runs of channels; empty where that takes too many.
fn uses(side: &[Atom], places: &Places, number: &[usize]) -> Vec<InterfaceUse> {
    let mut features: BTreeMap<usize, BTreeMap<usize, Vec<usize>>> = BTreeMap::new();
    for (feature, atom) in side.iter().enumerate() {
        let Some(&(interface, channel)) = places.of.get(atom) else {
            return vec![];
        };
        features.entry(interface).or_default().entry(channel).or_default().push(feature);
    }
    let mut found: Vec<InterfaceUse> = vec![];
    for (interface, channels) in features {
        let mut open: Option<InterfaceUse> = None;
        for (channel, at) in channels {
            let step = at.get(1).map_or(1, |&second| second - at[0]);
            if at.windows(2).any(|pair| pair[1] - pair[0] != step) {
                return vec![];
            }
            let fits = open.as_ref().is_some_and(|run| {
                let next = run.start + run.channels;
                let stride = at[0].checked_sub(run.offset + (run.channels - 1) * run.channel_stride);
                let same = run.channels == 1 || stride == Some(run.channel_stride);
                channel == next
                    && at.len() == run.positions
                    && step == run.position_stride
                    && same
                    && stride.is_some()
            });
            match open.as_mut().filter(|_| fits) {
                Some(run) => {
                    if run.channels == 1 {
                        run.channel_stride = at[0] - run.offset;
                    }
                    run.channels += 1;
                }
                None => {
                    found.extend(open.take());
                    let grid = grid(at.len(), &places.grids[interface]);
                    open = Some(InterfaceUse {
                        interface: InterfaceId(number[interface]),
                        start: channel,
                        channels: 1,
                        positions: at.len(),
                        grid,
                        offset: at[0],
                        channel_stride: at.len(),
                        position_stride: step,
                    });
                }
            }
        }
        found.extend(open);
    }
    found.sort_by_key(|run| run.offset);
    if found.len() > MOST_PARTS { vec![] } else { found }
}

fn grid(positions: usize, known: &[Vec<usize>]) -> Vec<usize> {
    match positions {
        1 => vec![],
        _ => known
            .iter()
            .find(|g| g.iter().product::<usize>() == positions)
            .cloned()
            .unwrap_or_else(|| vec![positions]),
    }
}
