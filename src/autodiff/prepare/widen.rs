//! Widening: a half-precision model computed in float32, its weights the same numbers.
//!
//! Gradients underflow in float16 and few CPU kernels know either half type, so that training looks at the
//! float32 model that the half-precision one approximates. Weights keep their places in the file, where they are
//! rounded to their own type when they are written back. Look at [`widen`].

use crate::onnx::{Attr, DType, Graph, Model, Names, Node, Tensor, ValueId};

/// The model with float32 in place of float16 and bfloat16. Inputs keep their declared types; outputs become
/// float32. A model without half-precision values is returned as it is.
pub fn widen(model: &Model) -> Model {
    let mut model = model.clone();
    if !is_half_graph(&model.graph) {
        return model;
    }
    let mut names = Names::of(&model.graph);
    let inputs: Vec<ValueId> = model
        .graph
        .required_inputs()
        .filter(|input| input.dtype.is_some_and(is_half))
        .map(|i| i.id.clone())
        .collect();
    widen_graph(&mut model.graph);
    for id in inputs.iter().rev() {
        let wide = names.fresh(&format!("{id}/float32"));
        super::names::rename_reads(&mut model.graph.nodes, id, &wide);
        let cast = Node::new("Cast", &[id], &[&wide]).with("to", i64::from(DType::F32.to_onnx()));
        model.graph.nodes.insert(0, cast);
    }
    model
}

fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

fn is_half_graph(graph: &Graph) -> bool {
    let half = i64::from(DType::F16.to_onnx());
    let brain = i64::from(DType::BF16.to_onnx());
    graph.initializers.values().any(|t| is_half(t.dtype()))
        || graph.inputs.iter().chain(&graph.outputs).any(|i| i.dtype.is_some_and(is_half))
        || graph.nodes.iter().any(|node| {
            let to = node.int("to").or_else(|| node.int("dtype"));
            to.is_some_and(|to| to == half || to == brain) || node.subgraphs().any(is_half_graph)
        })
}

fn wider(tensor: &Tensor) -> Tensor {
    tensor.cast(DType::F32).with_site(tensor.site)
}

/// Everything but the types of the graph's own inputs, which for a subgraph are widened, too.
fn widen_graph(graph: &mut Graph) {
    for tensor in graph.initializers.values_mut().filter(|t| is_half(t.dtype())) {
        *tensor = wider(tensor);
    }
    for output in graph.outputs.iter_mut().filter(|o| o.dtype.is_some_and(is_half)) {
        output.dtype = Some(DType::F32);
    }
    for node in &mut graph.nodes {
        for (name, attr) in &mut node.attrs {
            match attr {
                Attr::Tensor(tensor) if is_half(tensor.dtype()) => *tensor = wider(tensor),
                Attr::Int(number) if is_type_attribute(name) && is_half(DType::from_onnx(*number as i32)) => {
                    *number = i64::from(DType::F32.to_onnx());
                }
                _ => {}
            }
        }
        for inner in node.subgraphs_mut() {
            widen_graph(inner);
            for input in inner.inputs.iter_mut().filter(|i| i.dtype.is_some_and(is_half)) {
                input.dtype = Some(DType::F32);
            }
        }
    }
}

/// Attributes that hold the ONNX number of an element type.
fn is_type_attribute(name: &str) -> bool {
    matches!(name, "to" | "dtype" | "output_dtype" | "output_datatype")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{Builder, Fact};

    #[test]
    fn a_half_precision_model_is_computed_in_float32_from_the_same_numbers() {
        let mut b = Builder::new("half");
        let x = b.input("x", Fact::new(DType::F16, &[1, 2]));
        let w = b.initializer("w", Tensor::from_f64(DType::F16, &[2, 2], &[0.1, 0.2, 0.3, 0.4]));
        let y = b.matmul(&x, &w);
        let wide = b.cast(&y, DType::F32);
        let y = b.cast(&wide, DType::F16);
        b.output(&y);
        let model = Model::new(b.finish().0, 18);
        let wide = widen(&model);
        let graph = &wide.graph;
        assert_eq!(graph.inputs[0].dtype, Some(DType::F16));
        assert_eq!(graph.outputs[0].dtype, Some(DType::F32));
        let before = model.graph.initializers[&ValueId::new("w")].to_f64();
        assert_eq!(
            (graph.initializers[&ValueId::new("w")].dtype(), graph.initializers[&ValueId::new("w")].to_f64()),
            (DType::F32, before)
        );
        let casts: Vec<_> = graph.nodes.iter().filter(|n| n.is("Cast")).map(|n| n.int("to")).collect();
        assert_eq!(casts, [Some(1); 3]);
    }
}
