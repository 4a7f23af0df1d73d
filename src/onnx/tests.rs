//! Reading, writing and surgery, on small models made here and on real ones where `ONNX_MERGE_SHARED` names them.

use super::wire::{put_bytes, put_varint};
use super::*;
use crate::error::Error;
use std::path::{Path, PathBuf};

/// The real models of a folder; none, and a line saying so, where there are none.
fn real_models(folder: &str) -> Vec<PathBuf> {
    let Some(shared) = std::env::var_os("ONNX_MERGE_SHARED") else {
        println!("skipped: ONNX_MERGE_SHARED is not set");
        return vec![];
    };
    let entries = std::fs::read_dir(Path::new(&shared).join("models").join(folder)).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "onnx" || e == "ort"));
    files.sort();
    files
}

fn in_folder(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn refused(bytes: &[u8]) -> String {
    let (_folder, path) = in_folder(bytes);
    match read(&path) {
        Ok(_) => panic!("was read"),
        Err(e) => e.to_string(),
    }
}

/// A layer with a float32 initializer, and an `If` whose branch holds a weight in a `Constant`.
fn small_model() -> Model {
    let mut b = Builder::new("small");
    let x = b.input("x", Fact::new(DType::F32, &[1, 2]));
    let w = b.initializer("w", Tensor::f32(&[2, 2], &[1.0, 2.0, 3.0, 4.0]));
    let h = b.matmul(&x, &w);
    let condition = b.initializer("c", Tensor::bool(&[], &[true]));
    let branch = |v: f32| {
        let (k, y) = (ValueId::new(format!("k{v}")), ValueId::new(format!("y{v}")));
        let constant = Node::new("Constant", &[], &[&k]).with("value", Tensor::f32(&[2], &[v, v]));
        let nodes = vec![constant, Node::new("Add", &[&h, &k], &[&y])];
        let outputs = vec![ValueInfo::new(y, &Fact::new(DType::F32, &[1, 2]))];
        Attr::Graph(Box::new(Graph { name: "branch".into(), nodes, outputs, ..Graph::default() }))
    };
    let (then, other) = (branch(1.0), branch(2.0));
    let y = ValueId::new("y");
    b.push(Node::new("If", &[&condition], &[&y]).with("then_branch", then).with("else_branch", other));
    b.set_fact(&y, Fact::new(DType::F32, &[1, 2]));
    b.output(&y);
    Model::new(b.finish().0, 18)
}

/// A `ModelProto` of one initializer given as its `TensorProto` bytes, followed by an unknown field.
fn model_around(tensor: &[u8]) -> Vec<u8> {
    let mut node = vec![];
    put_bytes(&mut node, 1, b"w");
    put_bytes(&mut node, 2, b"y");
    put_bytes(&mut node, 4, b"Identity");
    let mut output = vec![];
    put_bytes(&mut output, 1, b"y");
    let mut graph = vec![];
    put_bytes(&mut graph, 1, &node);
    put_bytes(&mut graph, 5, tensor);
    put_bytes(&mut graph, 12, &output);
    put_bytes(&mut graph, 77, b"unknown to everyone");
    let mut opset = vec![];
    opset.extend([0x10, 13]);
    let mut model = vec![0x08, 8];
    put_bytes(&mut model, 7, &graph);
    put_bytes(&mut model, 8, &opset);
    put_bytes(&mut model, 99, b"unknown too");
    model
}

/// A `TensorProto` named `w` of one dimension; `rest` adds the payload.
fn tensor_proto(dtype: DType, length: u64, rest: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut tensor = vec![0x08];
    put_varint(&mut tensor, length);
    tensor.push(0x10);
    put_varint(&mut tensor, dtype.to_onnx() as u64);
    put_bytes(&mut tensor, 8, b"w");
    rest(&mut tensor);
    tensor
}

fn sites(file: &ModelFile) -> Vec<(SiteId, Tensor)> {
    fn walk(graph: &Graph, found: &mut Vec<(SiteId, Tensor)>) {
        let constants = graph.nodes.iter().flat_map(|n| n.attrs.values()).filter_map(|a| match a {
            Attr::Tensor(t) => Some(t),
            _ => None,
        });
        let tensors = graph.initializers.values().chain(constants);
        found.extend(tensors.filter_map(|t| Some((t.site?, t.clone()))));
        graph.nodes.iter().flat_map(|n| n.subgraphs()).for_each(|g| walk(g, found));
    }
    let mut found = vec![];
    walk(&file.model.graph, &mut found);
    found
}

/// Changes every real-valued tensor of a model, and checks that the new values are there, that the old values
/// give the old bytes again, and that in between only payloads differ.
fn operate(path: &Path) -> usize {
    let file = read(path).unwrap_or_else(|e| panic!("{e}"));
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.onnx");
    let old: Vec<_> =
        sites(&file).into_iter().filter(|(_, t)| t.dtype().is_float() && !t.is_empty()).collect();
    let new: Vec<_> = old
        .iter()
        .map(|(id, t)| {
            let values: Vec<f64> =
                t.to_f64().iter().map(|v| if v.is_finite() { v * 0.75 + 0.25 } else { 0.0 }).collect();
            (*id, Tensor::from_f64(t.dtype(), t.shape(), &values))
        })
        .collect();
    surgery::write(&file, &new, &out).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let changed = read(&out).unwrap();
    assert_eq!(sites(&changed).iter().filter(|(id, t)| new.contains(&(*id, t.clone()))).count(), new.len());
    let mut expected = file.bytes().to_vec();
    let mut same_length = true;
    for (id, tensor) in &new {
        match &file.site(*id).unwrap().encoding {
            Encoding::InPlace(range) => expected[range.clone()].copy_from_slice(tensor.bytes()),
            Encoding::Typed(_) => same_length = false,
            _ => {}
        }
    }
    if same_length {
        assert!(expected == changed.bytes(), "{}: other bytes differ", path.display());
    }
    // Way back, from the changed file: everything but the payloads must still be as it was.
    let finite: Vec<_> = old.into_iter().filter(|(_, t)| t.first_non_finite().is_none()).collect();
    if finite.len() == new.len() {
        let back = folder.path().join("back.onnx");
        surgery::write(&changed, &finite, &back).unwrap();
        assert!(std::fs::read(&back).unwrap() == file.bytes(), "{}: not the old bytes", path.display());
    }
    new.len()
}

#[test]
fn surgery_changes_payloads_and_nothing_else() {
    let (_folder, path) = in_folder(&to_bytes(&small_model()).unwrap());
    assert_eq!(operate(&path), 3);
    let paths = [real_models("."), real_models("zoo")].concat();
    let changed: usize = paths.iter().map(|path| operate(path)).sum();
    println!("{} real models, {changed} tensors changed", paths.len());
}

#[test]
fn surgery_rebuilds_every_encoding() {
    let half = |v: f32| u64::from(half::f16::from_f32(v).to_bits());
    let values = [0.0f32, 1.0, -2.5, 1e-5];
    let cases: Vec<(&str, DType, Vec<u8>)> = vec![
        (
            "packed float_data",
            DType::F32,
            tensor_proto(DType::F32, 4, |t| put_bytes(t, 4, bytemuck::cast_slice(&values))),
        ),
        (
            "unpacked float_data",
            DType::F32,
            tensor_proto(DType::F32, 4, |t| {
                for v in values {
                    put_varint(t, 4 << 3 | 5);
                    t.extend(v.to_le_bytes());
                }
            }),
        ),
        (
            "float_data in two pieces",
            DType::F32,
            tensor_proto(DType::F32, 4, |t| {
                put_bytes(t, 4, bytemuck::cast_slice(&values[..1]));
                put_bytes(t, 4, bytemuck::cast_slice(&values[1..]));
            }),
        ),
        (
            "float16 in packed int32_data",
            DType::F16,
            tensor_proto(DType::F16, 4, |t| {
                let mut packed = vec![];
                values.iter().for_each(|&v| put_varint(&mut packed, half(v)));
                put_bytes(t, 5, &packed);
            }),
        ),
        (
            "float16 in unpacked int32_data",
            DType::F16,
            tensor_proto(DType::F16, 4, |t| {
                for v in values {
                    put_varint(t, 5 << 3);
                    put_varint(t, half(v));
                }
            }),
        ),
        (
            "double_data",
            DType::F64,
            tensor_proto(DType::F64, 4, |t| put_bytes(t, 10, bytemuck::cast_slice(&values.map(f64::from)))),
        ),
        (
            "raw_data",
            DType::F32,
            tensor_proto(DType::F32, 4, |t| put_bytes(t, 9, bytemuck::cast_slice(&values))),
        ),
    ];
    for (what, dtype, tensor) in cases {
        let (folder, path) = in_folder(&model_around(&tensor));
        let file = read(&path).unwrap_or_else(|e| panic!("{what}: {e}"));
        let (site, old) = sites(&file).remove(0);
        assert_eq!(old, Tensor::f32(&[4], &values).cast(dtype), "{what}");
        // Longer and shorter in varints, so that lengths change.
        let new = Tensor::f32(&[4], &[-7.25, 0.0, 0.5, 0.0]);
        let out = folder.path().join("out.onnx");
        let written = surgery::write(&file, &[(site, new.clone())], &out).unwrap();
        let changed = read(&out).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(sites(&changed)[0].1, new.cast(dtype), "{what}");
        assert_eq!(written.bytes, changed.bytes().len() as u64);
        assert!(changed.bytes().ends_with(b"unknown too"), "{what}");
        if what != "float_data in two pieces" {
            let back = folder.path().join("back.onnx");
            surgery::write(&changed, &[(SiteId(0), old)], &back).unwrap();
            assert_eq!(std::fs::read(&back).unwrap(), file.bytes(), "{what}");
        }
    }
}

#[test]
fn surgery_refuses_what_would_harm() {
    let (folder, path) = in_folder(&to_bytes(&small_model()).unwrap());
    let file = read(&path).unwrap();
    let (site, old) = sites(&file).remove(0);
    let out = folder.path().join("out.onnx");
    let link = folder.path().join("link.onnx");
    std::fs::hard_link(&path, &link).unwrap();
    assert!(surgery::write(&file, &[], &path).is_err());
    assert!(surgery::write(&file, &[], &link).is_err());
    assert!(surgery::write(&file, &[], &folder.path().join("none/out.onnx")).is_err());
    assert!(surgery::write(&file, &[(site, Tensor::zeros(DType::F32, &[4]))], &out).is_err());
    assert!(
        surgery::write(&file, &[(site, Tensor::from_f64(DType::F32, old.shape(), &[f64::NAN; 4]))], &out)
            .is_err()
    );
    assert!(!out.exists());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

/// A tensor of 2 float32 in `side.bin`, or elsewhere.
fn external(entries: &[(&str, &str)]) -> Vec<u8> {
    model_around(&tensor_proto(DType::F32, 2, |t| {
        for (key, value) in entries {
            let mut entry = vec![];
            put_bytes(&mut entry, 1, key.as_bytes());
            put_bytes(&mut entry, 2, value.as_bytes());
            put_bytes(t, 13, &entry);
        }
        t.extend([14 << 3, 1]);
    }))
}

#[test]
fn external_data_is_patched_in_a_copy() {
    let (folder, path) = in_folder(&external(&[("location", "side.bin"), ("offset", "4"), ("length", "8")]));
    std::fs::write(folder.path().join("side.bin"), bytemuck::cast_slice(&[9.0f32, 1.0, 2.0, 8.0])).unwrap();
    let file = read(&path).unwrap();
    let (site, old) = sites(&file).remove(0);
    assert_eq!(old, Tensor::f32(&[2], &[1.0, 2.0]));
    let change = [(site, Tensor::f32(&[2], &[5.0, 6.0]))];
    let beside = surgery::write(&file, &change, &folder.path().join("out.onnx")).unwrap_err();
    assert!(beside.to_string().contains("would be overwritten"), "{beside}");
    let elsewhere = tempfile::tempdir().unwrap();
    let written = surgery::write(&file, &change, &elsewhere.path().join("out.onnx")).unwrap();
    assert_eq!(std::fs::read(&written.path).unwrap(), file.bytes());
    let side = std::fs::read(elsewhere.path().join("side.bin")).unwrap();
    assert_eq!(side, bytemuck::cast_slice::<f32, u8>(&[9.0, 5.0, 6.0, 8.0]));
}

#[test]
fn old_files_stay_where_the_new_ones_are_refused() {
    let (folder, path) = in_folder(&external(&[("location", "side.bin")]));
    std::fs::write(folder.path().join("side.bin"), bytemuck::cast_slice(&[1.0f32, 2.0])).unwrap();
    let file = read(&path).unwrap();
    let site = sites(&file).remove(0).0;
    let change = [(site, Tensor::f32(&[2], &[5.0, 6.0]))];
    let elsewhere = tempfile::tempdir().unwrap();
    let [out, side] = ["out.onnx", "side.bin"].map(|name| elsewhere.path().join(name));
    let old = || {
        std::fs::write(&out, "old").unwrap();
        std::fs::write(&side, "old").unwrap();
    };
    old();
    let refused = surgery::write_if(&file, &change, &out, |new| {
        let found = sites(&read(new)?).remove(0).1;
        assert_eq!(found, change[0].1, "what is checked is complete");
        Err(Error::usage("refused"))
    });
    assert_eq!(refused.unwrap_err().to_string(), "refused");
    // The model's own place can't be taken any more when all is checked.
    let blocked = surgery::write_if(&file, &change, &out, |_| {
        std::fs::remove_file(&out).unwrap();
        std::fs::create_dir_all(out.join("full")).unwrap();
        Ok(())
    });
    assert!(matches!(blocked, Err(Error::Io { .. })));
    assert_eq!(std::fs::read(&side).unwrap(), b"old");
    std::fs::remove_dir_all(&out).unwrap();
    old();
    surgery::write(&file, &change, &out).unwrap();
    assert_eq!(sites(&read(&out).unwrap()).remove(0).1, change[0].1);
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 2);
    // Beside the model itself, where nothing of the side file changes, that stays the one it is.
    let beside = surgery::write(&file, &[], &folder.path().join("beside.onnx")).unwrap();
    assert!(beside.side_files.is_empty());
}

#[test]
fn hostile_external_data_is_refused() {
    let cases: [(&[(&str, &str)], &str); 9] = [
        (&[("location", "../side.bin")], "outside the model's folder"),
        (&[("location", "/etc/hostname")], "outside the model's folder"),
        (&[("location", "link.bin")], "outside the model's folder"),
        (&[("location", "missing.bin")], "isn't there"),
        (&[("location", "folder")], "isn't a regular file"),
        (&[("offset", "0")], "names no file"),
        (&[("location", "side.bin"), ("offset", "12")], "after the end"),
        (&[("location", "side.bin"), ("offset", "18446744073709551615")], "after the end"),
        (&[("location", "side.bin"), ("length", "4")], "takes 8 bytes"),
    ];
    for (entries, expected) in cases {
        let (folder, path) = in_folder(&external(entries));
        std::fs::write(folder.path().join("side.bin"), [0; 16]).unwrap();
        std::fs::create_dir(folder.path().join("folder")).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join("link.bin")).unwrap();
        let error = read(&path).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains(expected), "{entries:?}: {error}");
        assert!(error.contains("'w'"), "{error}");
    }
}

#[test]
fn what_is_no_model_is_refused_with_its_name() {
    let raw = |length: u64, bytes: &[u8]| {
        model_around(&tensor_proto(DType::F32, length, |t| put_bytes(t, 9, bytes)))
    };
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".to_vec(), "Git LFS pointer"),
        (b"\x18\0\0\0ORTM\0\0\0\0".to_vec(), "ORT format"),
        (b"PK\x03\x04abcdefgh".to_vec(), "zip archive"),
        (b"<html><body>404</body></html>".to_vec(), "text file"),
        (vec![0xff; 100], "not an ONNX model"),
        (vec![0x08, 8], "no graph"),
        (raw(3, &[0; 8]), "takes 12 bytes, but 8 are there"),
        (raw(2, &[]), "holds no data"),
        (raw(1 << 62, &[0; 8]), "larger than any memory"),
        (raw(u64::MAX, &[0; 8]), "negative dimension"),
        (
            model_around(&tensor_proto(DType::Str, 1, |t| put_bytes(t, 9, &[0x18, 0xd7, 0x05]))),
            "strings as raw bytes",
        ),
    ];
    for (bytes, expected) in cases {
        let error = refused(&bytes);
        assert!(error.contains(expected) && error.contains("model.onnx"), "{error}");
    }
    assert!(read("no/such/file.onnx").is_err());
    assert!(read(std::env::temp_dir()).is_err_and(|e| e.to_string().contains("folder")));
}

#[test]
fn ill_formed_graphs_are_refused() {
    let (a, b, x) = (ValueId::new("a"), ValueId::new("b"), ValueId::new("x"));
    let graph = |nodes: Vec<Node>| {
        let info = |id: &ValueId| ValueInfo::new(id.clone(), &Fact::new(DType::F32, &[1]));
        Graph { name: "g".into(), inputs: vec![info(&x)], outputs: vec![info(&b)], nodes, ..Graph::default() }
    };
    let bytes = |nodes: Vec<Node>, opset: i64| to_bytes(&Model::new(graph(nodes), opset)).unwrap();
    let cycle = vec![Node::new("Add", &[&x, &b], &[&a]), Node::new("Relu", &[&a], &[&b])];
    assert!(refused(&bytes(cycle, 18)).contains("cycle"));
    let twice = vec![Node::new("Relu", &[&x], &[&b]), Node::new("Abs", &[&x], &[&b])];
    assert!(refused(&bytes(twice, 18)).contains("defined twice"));
    assert!(refused(&bytes(vec![Node::new("Relu", &[&a], &[&b])], 18)).contains("nothing makes"));
    assert!(refused(&bytes(vec![Node::new("Relu", &[&x], &[&b])], 6)).contains("operator set 6"));
    let unsorted = vec![Node::new("Relu", &[&a], &[&b]), Node::new("Abs", &[&x], &[&a])];
    let (_folder, path) = in_folder(&bytes(unsorted, 18));
    assert_eq!(read(&path).unwrap().model.graph.nodes[0].op, "Abs");
}

#[test]
fn nested_graphs_end_somewhere() {
    let mut graph = Graph { name: "innermost".into(), ..Graph::default() };
    for depth in 0..200 {
        let output = ValueId::new(format!("o{depth}"));
        let node = Node::new("Loop", &[], &[&output]).with("body", Attr::Graph(Box::new(graph)));
        graph = Graph { name: "g".into(), nodes: vec![node], ..Graph::default() };
    }
    assert!(refused(&to_bytes(&Model::new(graph, 18)).unwrap()).contains("nested too deeply"));
    // A list of lists of lists.
    let mut kind = vec![];
    for number in [1, 4].repeat(200).into_iter().chain([2, 11, 7]) {
        let inner = std::mem::take(&mut kind);
        put_bytes(&mut kind, number, &inner);
    }
    assert!(refused(&kind).contains("nested too deeply"));
}

/// RUSTSEC-2024-0437: the parser would go down with each of these groups, and never come back.
#[test]
fn groups_are_refused_wherever_they_stand() {
    let start_of_group = 1000 << 3 | 3;
    let mut groups = vec![];
    (0..300_000).for_each(|_| put_varint(&mut groups, start_of_group));
    let value_info = [7, 11];
    let of_types: [&[u32]; 8] =
        [&[], &[2], &[2, 1], &[2, 1, 2], &[2, 1, 2, 1], &[2, 4, 1, 9, 1], &[2, 5, 2], &[2, 8, 2]];
    let types = of_types.map(|more| [&value_info[..], more].concat());
    let others: [&[u32]; 14] = [
        &[],
        &[8],
        &[14],
        &[25, 9],
        &[25, 12, 2],
        &[7],
        &[7, 5, 13],
        &[7, 12, 4],
        &[7, 14, 2],
        &[7, 15, 1],
        &[7, 1, 9],
        &[7, 1, 5, 10, 13],
        &[7, 1, 5, 14],
        &[7, 1, 5, 23, 2],
    ];
    for place in types.into_iter().chain(others.map(<[u32]>::to_vec)) {
        let wrapped = |inner: Vec<u8>, number: &u32| {
            let mut outer = vec![];
            put_bytes(&mut outer, *number, &inner);
            outer
        };
        let bytes = place.iter().rev().fold(groups.clone(), wrapped);
        let error = refused(&bytes);
        assert!(error.contains("unknown kind of field"), "{place:?}: {error}");
    }
    assert!(check_tensor(&groups).is_err());
}

#[test]
fn infinite_weights_are_named() {
    let (_folder, path) = in_folder(&model_around(&tensor_proto(DType::F32, 2, |t| {
        put_bytes(t, 9, bytemuck::cast_slice(&[1.0, f32::NAN]))
    })));
    let error = read(&path).unwrap().check_finite().unwrap_err().to_string();
    assert!(error.contains("'w'") && error.contains("element 1"), "{error}");
    let mask =
        tensor_proto(DType::F32, 2, |t| put_bytes(t, 9, bytemuck::cast_slice(&[0.0, f32::NEG_INFINITY])));
    let (_folder, path) = in_folder(&model_around(&mask));
    assert!(read(&path).unwrap().check_finite().is_ok(), "a mask is no weight");
}

/// A model of a few hundred bytes, and real ones of moderate size.
fn victims() -> Vec<Vec<u8>> {
    let mut all = vec![to_bytes(&small_model()).unwrap()];
    let paths = [real_models("."), real_models("zoo")].concat();
    all.extend(paths.iter().map(|p| std::fs::read(p).unwrap()).filter(|b| b.len() < 40_000));
    all
}

#[test]
fn truncation_never_panics() {
    for bytes in victims() {
        for i in 0..60 {
            let (_folder, path) = in_folder(&bytes[..bytes.len() * i / 60]);
            let _ = read(&path).map(|file| to_bytes(&file.model));
        }
    }
}

#[test]
fn flipped_bytes_never_panic() {
    let mut seed = 1u64;
    for bytes in victims() {
        for _ in 0..60 {
            let mut bytes = bytes.clone();
            for _ in 0..3 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let at = (seed >> 33) as usize % bytes.len();
                bytes[at] ^= 1 << (seed >> 20 & 7);
            }
            let (_folder, path) = in_folder(&bytes);
            let _ = read(&path).map(|file| to_bytes(&file.model));
        }
    }
}

#[test]
fn real_models_survive_a_round_trip() {
    for path in [real_models("."), real_models("zoo")].concat() {
        let file = read(&path).unwrap_or_else(|e| panic!("{e}"));
        let bytes = to_bytes(&file.model).unwrap();
        let (_folder, copy) = in_folder(&bytes);
        let again = read(&copy).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(to_bytes(&again.model).unwrap() == bytes, "{} came back changed", path.display());
        assert_eq!(sites(&again).len(), sites(&file).len());
    }
}

#[test]
fn unusable_real_models_are_refused_with_a_reason() {
    let expected = [
        ("example-models__three_layer_bn_pytorch.onnx", "operator set 6"),
        ("models__model.onnx", "operator set 1"),
        ("onnx_to_tensorflow__lstm.onnx", "operator set 6"),
        ("vespa__mnist_softmax_a86019.onnx", "operator set 4"),
        ("onnx-mlir__mnist_5e3d1d.onnx", "isn't there"),
        ("rten__mnist.onnx", "isn't there"),
        ("vespa__add_with_external_data.onnx", "isn't there"),
        ("onnx-mlir__mnist_padded_static_noconsts_2d_bias.onnx", "takes 2 bytes, but 4 are there"),
        ("onnxjs__mnist.ort", "ORT format"),
        ("onnxruntime__mnist.basic.ort", "ORT format"),
    ];
    for path in real_models("refused") {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        match (expected.iter().find(|(file, _)| *file == name), read(&path)) {
            (Some((_, why)), Err(e)) => assert!(e.to_string().contains(why), "{name}: {e}"),
            (None, Ok(_)) => {}
            (Some(_), Ok(_)) => panic!("{name} was read"),
            (None, Err(e)) => panic!("{name}: {e}"),
        }
    }
}
