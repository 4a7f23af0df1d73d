//! Control flow: gradients through branches and loops against central differences, with the conditions that real
//! exports have: captured weights, early exits, both directions, loops in branches and branches in loops.

use crate::differences::{Manner, Miss, Subject, compare};
use crate::gradients::judges;
use onnx_merge::autodiff::facts::{example_inputs, probe};
use onnx_merge::autodiff::ops::ops;
use onnx_merge::autodiff::prepare::{specialise, upgrade};
use onnx_merge::onnx::{Attr, DType, Dim, Fact, Graph, Model, Node, Tensor, ValueId, ValueInfo};
use onnx_merge::runtime::Executor;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeSet, HashMap};

fn id(name: &str) -> ValueId {
    ValueId::new(name)
}

fn info(name: &str, dtype: DType, shape: &[usize]) -> ValueInfo {
    ValueInfo::new(id(name), &Fact::new(dtype, shape))
}

/// `outputs = op(inputs)`, all in words: `"y = Mul x w"`.
fn node(text: &str) -> Node {
    let (outputs, call) = text.split_once(" = ").unwrap();
    let mut words = call.split(' ');
    let op = words.next().unwrap();
    let name = |word: &str| (word != "_").then(|| id(word));
    Node {
        op: op.into(),
        inputs: words.map(name).collect(),
        outputs: outputs.split(' ').map(name).collect(),
        ..Node::default()
    }
}

/// A body: inputs with their types, nodes, outputs of float64 and of the shape given (`!` before a name: a boolean).
fn body(inputs: &[(&str, DType, &[usize])], nodes: Vec<Node>, outputs: &[(&str, &[usize])]) -> Attr {
    let outputs = outputs.iter().map(|(name, shape)| match name.strip_prefix('!') {
        Some(name) => info(name, DType::Bool, shape),
        None => info(name, DType::F64, shape),
    });
    Attr::Graph(Box::new(Graph {
        name: "body".into(),
        inputs: inputs.iter().map(|(name, dtype, shape)| info(name, *dtype, shape)).collect(),
        outputs: outputs.collect(),
        nodes,
        ..Graph::default()
    }))
}

/// A model in float64 with real inputs of the given shapes and an output `y`, beside constants.
fn model(inputs: &[(&str, &[usize])], constants: &[(&str, Tensor)], nodes: Vec<Node>, y: &[usize]) -> Model {
    let graph = Graph {
        name: "control".into(),
        inputs: inputs.iter().map(|(name, shape)| info(name, DType::F64, shape)).collect(),
        outputs: vec![info("y", DType::F64, y)],
        nodes,
        initializers: constants.iter().map(|(name, tensor)| (id(name), tensor.clone())).collect(),
    };
    Model::new(graph, 18)
}

/// Central differences agree with the gradient of every input under every executor that is said to run it, and `reached`
/// inputs have one.
fn check(model: &Model, reached: usize) {
    check_but(model, reached, None);
}

/// The same but for an executor that can't run this form of it.
fn check_but(model: &Model, reached: usize, unable: Option<&str>) {
    onnx_merge::runtime::silence_telemetry();
    let model = upgrade(model).unwrap();
    let kinds = control_nodes(&model.graph);
    for (executor, _) in judges().into_iter().filter(|(_, dtype)| *dtype == DType::F64) {
        if Some(executor.name()) == unable {
            let point = example_inputs(&model.graph, 1, 1).unwrap();
            assert!(probe(&*executor, &model, &point).is_err(), "{} can", executor.name());
            continue;
        }
        let listed = ops(&[(executor.name(), &|model| executor.misses(model).is_empty())]);
        let runs = |kind: &String| listed.iter().any(|o| o.op == *kind && o.backward == [executor.name()]);
        if kinds.iter().all(runs) {
            check_under(&*executor, &model, reached);
        } else {
            println!("{}: not said to run the gradients of all of {kinds:?}", executor.name());
        }
    }
}

/// The kinds of control flow in a graph and the graphs inside it.
fn control_nodes(graph: &Graph) -> BTreeSet<String> {
    let mut kinds = BTreeSet::new();
    for node in graph.nodes.iter().filter(|node| node.subgraphs().next().is_some()) {
        kinds.insert(node.op.clone());
        node.subgraphs().for_each(|inner| kinds.extend(control_nodes(inner)));
    }
    kinds
}

fn check_under(executor: &dyn Executor, model: &Model, reached: usize) {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
    let inputs: Vec<ValueInfo> = model.graph.required_inputs().cloned().collect();
    let point: HashMap<ValueId, Tensor> = inputs
        .iter()
        .filter_map(|i| Some((i.id.clone(), i.fact()?)))
        .map(|(id, fact)| {
            let values: Vec<f64> = (0..fact.len()).map(|_| rng.random_range(0.2..1.0)).collect();
            (id, Tensor::from_f64(fact.dtype, &fact.shape, &values))
        })
        .collect();
    let varied: Vec<ValueId> = inputs.iter().map(|i| i.id.clone()).collect();
    let unrolled = {
        let probed = probe(executor, model, &point).unwrap();
        specialise(model, &probed).unwrap()
    };
    for (form, model) in [("as it is", model), ("specialised", &unrolled)] {
        let form = format!("{form}, {}", executor.name());
        let subject = Subject { model, point: point.clone(), varied: varied.clone() };
        match compare(executor, &subject, Manner { jitter: 0.0, ..Manner::of(DType::F64) }, 5) {
            Ok(outcome) => {
                let what = format!("{form}: {} for {}", outcome.analytic, outcome.numeric);
                assert!(outcome.error <= 1e-6, "{what}");
                assert!(outcome.numeric.abs() > 1e-3, "{what}: nothing to see");
                assert_eq!(outcome.reached, reached, "{what}");
            }
            Err(Miss::Forward(e) | Miss::Gradient(e) | Miss::Backward(e)) => panic!("{form}: {e}"),
            Err(_) => panic!("{form}: nothing to compare"),
        }
    }
}

/// `y = if Σx > threshold { sin(x·w) } else { v − x }`, where both branches use the same name inside.
fn branches(threshold: f64) -> Model {
    let then = body(&[], vec![node("h = Mul x w"), node("out = Sin h")], &[("out", &[3])]);
    let other = body(&[], vec![node("h = Sub v x"), node("out = Exp h")], &[("out", &[3])]);
    let nodes = vec![
        node("total = ReduceSum x axes").with("keepdims", 0i64),
        node("condition = Greater total threshold"),
        node("y = If condition").with("then_branch", then).with("else_branch", other),
    ];
    let constants = [("axes", Tensor::i64(&[1], &[0])), ("threshold", Tensor::f64(&[], &[threshold]))];
    model(&[("x", &[3]), ("w", &[3]), ("v", &[3])], &constants, nodes, &[3])
}

#[test]
fn a_branch_taken_at_run_time_passes_its_own_gradient() {
    check(&branches(0.0), 3);
    check(&branches(100.0), 3);
}

#[test]
fn a_branch_of_another_shape_is_never_taken_and_does_no_harm() {
    let then = body(&[], vec![node("out = Mul x w")], &[("out", &[3])]);
    let other = body(&[], vec![node("out = Concat x w").with("axis", 0i64)], &[("out", &[6])]);
    let nodes = vec![
        node("total = ReduceSum x axes").with("keepdims", 0i64),
        node("condition = Greater total zero"),
        node("h = If condition").with("then_branch", then).with("else_branch", other),
        node("y = Mul h h"),
    ];
    let constants = [("axes", Tensor::i64(&[1], &[0])), ("zero", Tensor::f64(&[], &[0.0]))];
    check_but(&model(&[("x", &[3]), ("w", &[3])], &constants, nodes, &[3]), 2, Some("tract"));
}

/// `h ← tanh(h·w + t)`, collecting h², at most `trips` times and as long as Σh < `limit`.
fn recurrence(trips: Option<i64>, limit: f64) -> Model {
    let inner = body(
        &[("t", DType::I64, &[]), ("going", DType::Bool, &[]), ("h", DType::F64, &[2, 2])],
        vec![
            node("time = Cast t").with("to", 11i64),
            node("product = MatMul h w"),
            node("shifted = Add product time"),
            node("next = Tanh shifted"),
            node("square = Mul next next"),
            node("total = ReduceSum next all").with("keepdims", 0i64),
            node("again = Less total limit"),
        ],
        &[("!again", &[]), ("next", &[2, 2]), ("square", &[2, 2])],
    );
    let trip = if trips.is_some() { "trips" } else { "_" };
    let nodes = vec![
        node(&format!("last squares = Loop {trip} _ h0")).with("body", inner),
        node("joined = ReduceSum squares first").with("keepdims", 0i64),
        node("y = Add joined last"),
    ];
    let constants = [
        ("trips", Tensor::i64(&[], &[trips.unwrap_or(0)])),
        ("limit", Tensor::f64(&[], &[limit])),
        ("all", Tensor::i64(&[2], &[0, 1])),
        ("first", Tensor::i64(&[1], &[0])),
    ];
    model(&[("h0", &[2, 2]), ("w", &[2, 2])], &constants, nodes, &[2, 2])
}

#[test]
fn loops_run_backwards_over_their_states() {
    check(&recurrence(Some(4), 100.0), 2);
}

#[test]
fn a_loop_that_ends_early_has_the_gradient_of_what_it_ran() {
    check(&recurrence(Some(50), 3.0), 2);
    check(&recurrence(None, 3.0), 2);
}

#[test]
fn a_loop_that_may_not_run_has_the_gradient_of_what_it_starts_with() {
    for trips in [0, 3] {
        let mut model = recurrence(Some(trips), 100.0);
        let limit = model.graph.initializers.shift_remove(&id("trips")).unwrap().cast(DType::F64);
        model.graph.initializers.insert(id("number"), limit);
        model.graph.initializers.insert(id("zero"), Tensor::f64(&[], &[0.0]));
        // Known at run time only.
        let counted = vec![
            node("sum = ReduceSum h0 all").with("keepdims", 0i64),
            node("nothing = Mul sum zero"),
            node("real = Add nothing number"),
            node("trips = Cast real").with("to", 7i64),
        ];
        model.graph.nodes.splice(0..0, counted);
        check(&model, 2);
    }
}

#[test]
fn scans_go_both_ways_along_any_axis() {
    check(&scan(1), 4);
    // tract wants the slices' shapes declared where an axis counts from the end.
    check_but(&scan(-1), 4, Some("tract"));
}

/// A scan over two sequences, along other axes, in both directions; the last output is stacked along `axis`.
fn scan(axis: i64) -> Model {
    let inner = body(
        &[("s", DType::F64, &[3]), ("a", DType::F64, &[3]), ("b", DType::F64, &[3])],
        vec![
            node("p = Mul s a"),
            node("q = Mul b w"),
            node("next = Add p q"),
            node("seen = Sin next"),
            node("other = Mul a b"),
        ],
        &[("next", &[3]), ("seen", &[3]), ("other", &[3])],
    );
    let scan = node("last seens others = Scan s0 xa xb")
        .with("body", inner)
        .with("num_scan_inputs", 2i64)
        .with("scan_input_axes", vec![0i64, 1])
        .with("scan_input_directions", vec![0i64, 1])
        .with("scan_output_axes", vec![1i64, axis])
        .with("scan_output_directions", vec![1i64, 0]);
    let nodes = vec![
        scan,
        node("flat = Transpose seens"),
        node("g = Mul flat xa"),
        node("turned = Transpose others"),
        node("both = Add g turned"),
        node("y = Add both last"),
    ];
    model(&[("s0", &[3]), ("xa", &[4, 3]), ("xb", &[3, 4]), ("w", &[3])], &[], nodes, &[4, 3])
}

#[test]
fn branches_in_loops_in_branches() {
    let even = body(&[], vec![node("out = Mul h w")], &[("out", &[2])]);
    let odd = body(&[], vec![node("out = Sin h")], &[("out", &[2])]);
    let inner = body(
        &[("t", DType::I64, &[]), ("going", DType::Bool, &[]), ("h", DType::F64, &[2])],
        vec![
            node("parity = Mod t two"),
            node("is_even = Equal parity zero"),
            node("next = If is_even").with("then_branch", even).with("else_branch", odd),
            node("on = Identity going"),
        ],
        &[("!on", &[]), ("next", &[2])],
    );
    let then = body(&[], vec![node("out = Loop five _ x").with("body", inner)], &[("out", &[2])]);
    let other = body(&[], vec![node("out = Neg x")], &[("out", &[2])]);
    let nodes = vec![
        node("total = ReduceSum x axes").with("keepdims", 0i64),
        node("condition = Greater total nothing"),
        node("y = If condition").with("then_branch", then).with("else_branch", other),
    ];
    let constants = [
        ("axes", Tensor::i64(&[1], &[0])),
        ("nothing", Tensor::f64(&[], &[0.0])),
        ("two", Tensor::i64(&[], &[2])),
        ("zero", Tensor::i64(&[], &[0])),
        ("five", Tensor::i64(&[], &[5])),
    ];
    check(&model(&[("x", &[2]), ("w", &[2])], &constants, nodes, &[2]), 2);
}

#[test]
fn a_state_that_grows_is_refused_as_a_loop_and_fine_unrolled() {
    let Some((executor, _)) = judges().into_iter().find(|(executor, _)| executor.name() == "ort") else {
        return;
    };
    let inner = body(
        &[("t", DType::I64, &[]), ("going", DType::Bool, &[]), ("h", DType::F64, &[2])],
        vec![node("next = Concat h w").with("axis", 0i64), node("on = Identity going")],
        &[("!on", &[]), ("next", &[4])],
    );
    let mut grown = model(
        &[("x", &[2]), ("w", &[2])],
        &[("trips", Tensor::i64(&[], &[3]))],
        vec![node("h = Loop trips _ x").with("body", inner), node("y = Mul h h")],
        &[8],
    );
    // The sizes differ from iteration to iteration, so none is declared.
    for inner in grown.graph.nodes.iter_mut().flat_map(Node::subgraphs_mut) {
        inner.inputs[2].shape = Some(vec![Dim::Unknown]);
        inner.outputs[1].shape = Some(vec![Dim::Unknown]);
    }
    let point = example_inputs(&grown.graph, 2, 1).unwrap();
    let varied: Vec<ValueId> = vec![id("x"), id("w")];
    let probed = probe(&*executor, &grown, &point).unwrap();
    let unrolled = specialise(&grown, &probed).unwrap();
    assert!(unrolled.graph.nodes.iter().all(|n| !n.is("Loop")));
    let compared = |model: &Model| {
        let subject = Subject { model, point: point.clone(), varied: varied.clone() };
        compare(&*executor, &subject, Manner::of(DType::F64), 5)
    };
    match compared(&grown) {
        Err(Miss::Gradient(e)) => assert!(e.to_string().contains("changes its shape"), "{e}"),
        _ => panic!("not refused"),
    }
    match compared(&unrolled) {
        Ok(outcome) => assert!(outcome.error <= 1e-6, "{} for {}", outcome.analytic, outcome.numeric),
        Err(_) => panic!("not compared"),
    }
}

#[test]
fn weights_inside_branches_come_out_with_their_names() {
    let mut model = branches(0.0);
    let branch = model.graph.nodes.last_mut().unwrap();
    for (i, branch) in branch.subgraphs_mut().enumerate() {
        branch.initializers.insert(id("inner"), Tensor::f64(&[3], &[i as f64; 3]));
        let last = branch.nodes.last_mut().unwrap();
        let before = last.inputs[0].replace(id("moved")).unwrap();
        branch.nodes.insert(1, Node::new("Add", &[&before, &id("inner")], &[&id("moved")]));
    }
    let upgraded = upgrade(&model).unwrap();
    let names: Vec<&str> = upgraded.graph.initializers.keys().map(ValueId::as_str).collect();
    assert!(names.contains(&"inner") && names.contains(&"y/inner"), "{names:?}");
    assert!(upgraded.graph.nodes.iter().flat_map(Node::subgraphs).all(|g| g.initializers.is_empty()));
    check(&model, 3);
}

#[test]
fn weights_inside_branches_are_written_back_where_they_were() {
    use onnx_merge::onnx::{read, save, surgery};
    let mut model = branches(0.0);
    let branch = model.graph.nodes.last_mut().unwrap();
    for (i, graph) in branch.subgraphs_mut().enumerate() {
        graph.initializers.insert(id("inner"), Tensor::f64(&[3], &[i as f64 + 0.5; 3]));
        let last = graph.nodes.last_mut().unwrap();
        let before = last.inputs[0].replace(id("moved")).unwrap();
        graph.nodes.insert(1, Node::new("Add", &[&before, &id("inner")], &[&id("moved")]));
    }
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old.onnx"), folder.path().join("new.onnx"));
    save(&model, &old).unwrap();
    let file = read(&old).unwrap();
    let weights = upgrade(&file.model).unwrap().graph.initializers;
    let changed = Tensor::f64(&[3], &[7.0, 8.0, 9.0]);
    let site = weights[&id("y/inner")].site.unwrap();
    surgery::write(&file, &[(site, changed.clone())], &new).unwrap();
    let again = read(&new).unwrap();
    let found = upgrade(&again.model).unwrap().graph.initializers;
    assert_eq!(found[&id("y/inner")].to_f64(), changed.to_f64());
    assert_eq!(found[&id("inner")].to_f64(), weights[&id("inner")].to_f64());
    // Nothing else has changed: 24 bytes at most.
    let (a, b) = (file.bytes(), again.bytes());
    let differing = a.iter().zip(b).filter(|(a, b)| a != b).count();
    assert!(a.len() == b.len() && differing > 0 && differing <= 24, "{differing} bytes differ");
}
