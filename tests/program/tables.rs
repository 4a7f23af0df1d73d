//! Rows of tables, and sources that only answer: trees.

use crate::merge::report;
use crate::transcript::Sandbox;
use onnx_merge::data::write_npz;
use onnx_merge::onnx::{Attr, Builder, DType, Fact, Model, Node, Tensor, WORKING_OPSET};

/// A number between −1 and 1.
fn number(i: usize, j: usize) -> f32 {
    ((i * 7907 + j * 104_729) % 1013) as f32 / 506.5 - 1.0
}

/// 1 where the first number is at most 0, else 2 or 4 by the second one.
fn value(row: &[f32]) -> f32 {
    match row {
        [first, ..] if *first <= 0.0 => 1.0,
        [_, second, ..] if *second <= 0.0 => 2.0,
        _ => 4.0,
    }
}

/// The same as a tree with two branches and three leaves.
fn tree() -> Model {
    let ints = |values: &[i64]| Attr::Ints(values.to_vec());
    let modes = ["BRANCH_LEQ", "LEAF", "BRANCH_LEQ", "LEAF", "LEAF"];
    let mut b = Builder::new("tree");
    let x = b.input("x", Fact::new(DType::F32, &[1, 3]));
    let y = b.fresh("y");
    let mut node = Node::new("TreeEnsembleRegressor", &[&x], &[&y])
        .with("n_targets", 1i64)
        .with("nodes_treeids", ints(&[0; 5]))
        .with("nodes_nodeids", ints(&[0, 1, 2, 3, 4]))
        .with("nodes_featureids", ints(&[0, 0, 1, 0, 0]))
        .with("nodes_values", Attr::Floats(vec![0.0; 5]))
        .with("nodes_modes", Attr::Strs(modes.map(String::from).to_vec()))
        .with("nodes_truenodeids", ints(&[1, 0, 3, 0, 0]))
        .with("nodes_falsenodeids", ints(&[2, 0, 4, 0, 0]))
        .with("target_treeids", ints(&[0; 3]))
        .with("target_nodeids", ints(&[1, 3, 4]))
        .with("target_ids", ints(&[0; 3]))
        .with("target_weights", Attr::Floats(vec![1.0, 2.0, 4.0]));
    node.domain = "ai.onnx.ml".into();
    b.push(node);
    b.set_fact(&y, Fact::new(DType::F32, &[1, 1]));
    b.output_as("answer", &y);
    let mut model = Model::new(b.finish().0, WORKING_OPSET);
    model.opsets.insert("ai.onnx.ml".into(), 3);
    model
}

fn network() -> Model {
    let mut b = Builder::new("network");
    let x = b.input("x", Fact::new(DType::F32, &[1, 3]));
    let weights = |shape: &[usize], seed| {
        Tensor::f32(shape, &(0..shape.iter().product()).map(|i| number(i, seed)).collect::<Vec<_>>())
    };
    let (first, second) =
        (b.initializer("first", weights(&[3, 16], 5)), b.initializer("second", weights(&[16, 1], 9)));
    let hidden = b.matmul(&x, &first);
    let hidden = b.op("Relu", &[&hidden]);
    b.set_fact(&hidden, Fact::new(DType::F32, &[1, 16]));
    let answer = b.matmul(&hidden, &second);
    b.output_as("answer", &answer);
    Model::new(b.finish().0, WORKING_OPSET)
}

#[test]
fn a_tree_teaches_a_network_on_rows_made_of_few() {
    // Only ONNX Runtime runs trees.
    let Ok(library) = std::env::var("ORT_DYLIB_PATH") else { return };
    let sandbox = Sandbox::new().model("tree.onnx", &tree()).model("network.onnx", &network());
    for (name, rows) in [("few", 0..8), ("val", 100..200), ("test", 200..500)] {
        let x: Vec<f32> = rows.clone().flat_map(|i| (0..3).map(move |j| number(i, j + i % 7))).collect();
        let y: Vec<f32> = x.chunks(3).map(value).collect();
        let arrays = [
            ("x".to_owned(), Tensor::f32(&[rows.len(), 3], &x)),
            ("y".to_owned(), Tensor::f32(&[rows.len(), 1], &y)),
        ];
        write_npz(&sandbox.path(&format!("{name}.npz")), &arrays).unwrap();
    }
    let run = format!(
        "tree.onnx network.onnx -o out.onnx --data few.npz --val val.npz --test test.npz --method kd --steps 200 \
         --executor ort --ort-lib {library}"
    );
    let (with, without) = (report(&sandbox, &run, 0), report(&sandbox, &format!("{run} --made-rows 0"), 0));
    let error = |score: &onnx_merge::report::Scores| score.test.expect("test data was given");
    let (made, few, untouched) = (error(&with.shipped), error(&without.shipped), error(&with.untouched));
    assert!(made < 0.95 * few && made < 0.2 * untouched, "{made}, {few} and {untouched}");
}
