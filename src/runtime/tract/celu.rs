//! Keeps tract from forgetting a factor: of `Celu` it computes max(0, x) + min(0, exp(x/α) − 1), without the α before
//! the parenthesis (tract 0.23). α · Elu(x/α) is the same function, and right. Look at [`mended`].

use crate::onnx::{Graph, Model, Node, Tensor, ValueId};
use std::borrow::Cow;

/// `model` without `Celu` nodes of another α than 1.
pub fn mended(model: Cow<'_, Model>) -> Cow<'_, Model> {
    if !needs(&model.graph) {
        return model;
    }
    let mut model = model.into_owned();
    mend(&mut model.graph);
    Cow::Owned(model)
}

fn wrong(node: &Node) -> bool {
    node.is("Celu") && node.float_or("alpha", 1.0) != 1.0
}

fn needs(graph: &Graph) -> bool {
    graph.nodes.iter().any(|node| wrong(node) || node.subgraphs().any(needs))
}

fn mend(graph: &mut Graph) {
    let mut nodes = vec![];
    for mut node in std::mem::take(&mut graph.nodes) {
        node.subgraphs_mut().for_each(mend);
        match (wrong(&node), node.input(0), node.output(0)) {
            (true, Some(x), Some(y)) => {
                let [alpha, scaled, tail] =
                    ["alpha", "scaled", "elu"].map(|w| ValueId::new(format!("{y}/{w}")));
                let value = Tensor::f32(&[], &[node.float_or("alpha", 1.0)]);
                graph.initializers.insert(alpha.clone(), value);
                // α is a float32 by the specification, whatever x is.
                let like = ValueId::new(format!("{y}/alpha_like"));
                nodes.push(Node::new("CastLike", &[&alpha, x], &[&like]));
                nodes.push(Node::new("Div", &[x, &like], &[&scaled]));
                nodes.push(Node::new("Elu", &[&scaled], &[&tail]));
                nodes.push(Node::new("Mul", &[&tail, &like], &[y]));
            }
            _ => nodes.push(node),
        }
    }
    graph.nodes = nodes;
}

#[cfg(test)]
mod tests {
    use crate::onnx::{Attr, Builder, DType, Fact, Model, Tensor, WORKING_OPSET};
    use crate::runtime::{Executor, TractExecutor, Value};

    #[test]
    fn celu_keeps_its_factor() {
        for dtype in [DType::F32, DType::F64] {
            let mut b = Builder::new("celu");
            let x = b.input("x", Fact::new(dtype, &[3]));
            let y = b.op_with("Celu", &[&x], &[("alpha", Attr::Float(0.5))]);
            b.set_fact(&y, Fact::new(dtype, &[3]));
            b.output(&y);
            let (graph, facts) = b.finish();
            let mut program =
                TractExecutor::new(1).unwrap().compile(&Model::new(graph, WORKING_OPSET), &facts).unwrap();
            let x = Tensor::from_f64(dtype, &[3], &[-1.0, 0.0, 2.0]);
            let y = program.run(&[Value::host(x)]).unwrap()[0].to_host().unwrap().to_f64();
            let expected = [0.5 * ((-2.0f64).exp() - 1.0), 0.0, 2.0];
            assert!(y.iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-6), "{dtype}: {y:?}");
        }
    }
}
