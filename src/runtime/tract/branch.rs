//! Keeps tract from taking a branch that may be taken for one that always is: where the first branch of an `If` gives a
//! constant, tract 0.23 gives it out as the value of the node, whatever the condition (`IfThenElse::output_facts`). What
//! that branch gives out is made to depend on the condition here. Look at [`mended`].

use crate::onnx::{Attr, Graph, Model, Node, ValueId};
use std::borrow::Cow;

/// `model` with nothing constant coming out of a branch.
pub fn mended(model: Cow<'_, Model>) -> Cow<'_, Model> {
    if !needs(&model.graph) {
        return model;
    }
    let mut model = model.into_owned();
    mend(&mut model.graph);
    Cow::Owned(model)
}

fn needs(graph: &Graph) -> bool {
    graph.nodes.iter().any(|node| node.is("If") || node.subgraphs().any(needs))
}

fn mend(graph: &mut Graph) {
    for node in &mut graph.nodes {
        node.subgraphs_mut().for_each(mend);
        let condition = node.input(0).cloned().filter(|_| node.is("If"));
        if let (Some(condition), Some(Attr::Graph(first))) = (condition, node.attrs.get_mut("then_branch")) {
            loosen(first, &condition);
        }
    }
}

/// Gives out `condition ? value : value` for each value that `branch` gives out.
fn loosen(branch: &mut Graph, condition: &ValueId) {
    let Some(first) = branch.outputs.first().map(|output| output.id.clone()) else { return };
    let taken = ValueId::new(format!("{first}/taken"));
    // A condition may have axes of one element, which a scalar must not get.
    branch.nodes.push(Node::new("Squeeze", &[condition], &[&taken]));
    for output in &mut branch.outputs {
        let loose = ValueId::new(format!("{}/loose", output.id));
        branch.nodes.push(Node::new("Where", &[&taken, &output.id, &output.id], &[&loose]));
        output.id = loose;
    }
}

#[cfg(test)]
mod tests {
    use crate::onnx::{
        Attr, Builder, DType, Fact, Graph, Model, Node, Tensor, ValueId, ValueInfo, WORKING_OPSET,
    };
    use crate::runtime::{Executor, TractExecutor, Value};

    #[test]
    fn a_constant_branch_is_not_always_taken() {
        let [zeros, x, out] = ["zeros", "x", "out"].map(ValueId::new);
        let body = |node: Node| {
            let mut graph = Graph { nodes: vec![node], ..Graph::default() };
            graph.outputs.push(ValueInfo::new(out.clone(), &Fact::new(DType::F32, &[2])));
            Attr::Graph(Box::new(graph))
        };
        for rank in [0, 1] {
            let mut b = Builder::new("branches");
            let condition = b.input("condition", Fact::new(DType::Bool, &vec![1; rank]));
            b.input("x", Fact::new(DType::F32, &[2]));
            b.initializer("zeros", Tensor::f32(&[2], &[0.0, 0.0]));
            let first = body(Node::new("Neg", &[&zeros], &[&out]));
            let other = body(Node::new("Neg", &[&x], &[&out]));
            let attrs = [("then_branch", first), ("else_branch", other)];
            let chosen = b.op_with("If", &[&condition], &attrs);
            b.set_fact(&chosen, Fact::new(DType::F32, &[2]));
            let y = b.op("Exp", &[&chosen]);
            b.output(&y);
            let (graph, facts) = b.finish();
            let executor = TractExecutor::new(1).unwrap();
            let mut program = executor.compile(&Model::new(graph, WORKING_OPSET), &facts).unwrap();
            for (taken, expected) in [(true, [1.0, 1.0]), (false, [(-1.0f64).exp(), (-2.0f64).exp()])] {
                let feeds = [Tensor::bool(&vec![1; rank], &[taken]), Tensor::f32(&[2], &[1.0, 2.0])];
                let y = program.run(&feeds.map(Value::host)).unwrap()[0].to_host().unwrap().to_f64();
                assert!(y.iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-6), "{taken}, {rank}: {y:?}");
            }
        }
    }
}
