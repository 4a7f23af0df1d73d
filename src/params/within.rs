//! Pairing a model with itself, for self-transfer: what a layer can learn from the deeper ones of its own model.
//!
//! Each hidden channel space takes from the next deeper one that is like it. Pairing it with itself would move nothing.

use super::pair::{Pairing, weights};
use super::{Interface, InterfaceId, InterfaceKind, ParamGraph, Role};

impl Pairing {
    /// Pairs the hidden interfaces of a model with deeper ones of the same model; inputs and outputs stay themselves.
    ///
    /// The next deeper interface of the same make (as many channels, written by the same kind of layer) comes first: the
    /// same place in the next block. A residual stream that has no such peer stays itself, so that the layers beside it
    /// can pair with those of later blocks. Elsewhere the next deeper interface serves, whatever its size.
    pub fn within(graph: &ParamGraph) -> Self {
        let all = (0..graph.interfaces.len()).map(InterfaceId);
        let pairs = all.filter_map(|id| Some((id, deeper(graph, id)?))).collect();
        let mut pairing = Pairing { interfaces: pairs, ..Pairing::default() };
        pairing.weights = weights(graph, graph, &pairing, &[]);
        for pair in &mut pairing.weights {
            let target = pair.target;
            pair.source = pair.source.filter(|source| *source != target);
            let later = |id: &super::WeightId| graph.weight(*id).depth > graph.weight(target).depth;
            pair.candidates.retain(later);
        }
        pairing
    }
}

fn deeper(graph: &ParamGraph, id: InterfaceId) -> Option<InterfaceId> {
    let here = graph.interface(id);
    if here.kind != InterfaceKind::Hidden {
        return Some(id);
    }
    let role = |interface: &Interface| -> Option<Role> {
        interface.producers.first().map(|&producer| graph.weight(producer).role)
    };
    let hidden = |other: &InterfaceId| {
        let there = graph.interface(*other);
        there.kind == InterfaceKind::Hidden && there.depth > here.depth
    };
    let later: Vec<InterfaceId> = (0..graph.interfaces.len()).map(InterfaceId).filter(hidden).collect();
    let alike = |other: &&InterfaceId| {
        let there = graph.interface(**other);
        let streams = here.producers.len() > 1 && there.producers.len() > 1;
        role(there) == role(here) && there.channels == here.channels && (here.producers.len() == 1 || streams)
    };
    let stream = (here.producers.len() > 1).then_some(&id);
    let same_role = || later.iter().find(|other| role(graph.interface(**other)) == role(here));
    later.iter().find(alike).or(stream).or_else(same_role).or(later.first()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{Builder, DType, Fact, Tensor, ValueId};

    fn linear(b: &mut Builder, x: &ValueId, name: &str, out: usize) -> ValueId {
        let inn = b.shape(x)[1];
        let w = b.initializer(name, Tensor::zeros(DType::F32, &[inn, out]));
        let y = b.matmul(x, &w);
        b.op("Relu", &[&y])
    }

    fn structured(graph: &ParamGraph) -> Vec<String> {
        let name = |id| graph.weight(id).name.to_string();
        let pairs = Pairing::within(graph).weights;
        pairs.iter().filter_map(|p| Some(format!("{}<{}", name(p.target), name(p.source?)))).collect()
    }

    #[test]
    fn blocks_of_a_residual_network_learn_from_the_next_one() {
        let mut b = Builder::new("test");
        let x = b.input("x", Fact::new(DType::F32, &[2, 4]));
        let mut stream = linear(&mut b, &x, "in", 8);
        for block in 1..=3 {
            let up = linear(&mut b, &stream, &format!("up{block}"), 16);
            let down = linear(&mut b, &up, &format!("down{block}"), 8);
            stream = b.add(&stream, &down);
        }
        let y = linear(&mut b, &stream, "out", 3);
        b.output(&y);
        let (graph, facts) = b.finish();
        let graph = ParamGraph::of_graph(&graph, &facts).unwrap();
        assert_eq!(structured(&graph), ["up1<up2", "down1<down2", "up2<up3", "down2<down3"]);
    }

    #[test]
    fn layers_of_a_chain_look_at_deeper_ones() {
        let mut b = Builder::new("test");
        let mut x = b.input("x", Fact::new(DType::F32, &[2, 4]));
        for (name, width) in [("a", 8), ("b", 6), ("c", 5), ("d", 3)] {
            x = linear(&mut b, &x, name, width);
        }
        b.output(&x);
        let (graph, facts) = b.finish();
        let graph = ParamGraph::of_graph(&graph, &facts).unwrap();
        assert_eq!(structured(&graph), ["b<c"]);
    }
}
