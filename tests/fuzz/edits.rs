//! Files near sound ones: seeds, and edits of their bytes.

use bolero::TypeGenerator;
use onnx_merge::onnx::{self, Builder, DType, Fact, Model, Tensor};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// One change of a file's bytes.
#[derive(Clone, Debug, TypeGenerator)]
pub enum Edit {
    Set {
        at: u32,
        byte: u8,
    },
    Flip {
        at: u32,
        bit: u8,
    },
    Add {
        at: u32,
        by: i8,
    },
    Insert {
        at: u32,
        bytes: [u8; 4],
    },
    Remove {
        at: u32,
        count: u8,
    },
    Move {
        from: u32,
        to: u32,
        count: u8,
    },
    /// A varint over what stands there: lengths, sizes, numbers of types.
    Number {
        at: u32,
        value: u64,
    },
    End {
        at: u32,
    },
}

/// A sound file, and the places in it where edits do most: not the middle of weights.
pub struct Seed {
    bytes: Vec<u8>,
    places: Vec<usize>,
}

impl Seed {
    pub fn new(bytes: Vec<u8>) -> Self {
        let places = (0..bytes.len()).collect();
        Self { bytes, places }
    }

    fn model(bytes: Vec<u8>) -> Self {
        let path = scratch("seed.onnx");
        std::fs::write(&path, &bytes).expect("a file");
        let file = onnx::read(&path).unwrap_or_else(|e| panic!("{e}"));
        let places = file.frame().into_iter().flatten().collect();
        Self { bytes, places }
    }

    pub fn edited(&self, edits: &[Edit]) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        for edit in edits {
            self.edit(&mut bytes, edit);
        }
        bytes
    }

    fn edit(&self, bytes: &mut Vec<u8>, edit: &Edit) {
        let end = bytes.len();
        let place = |at: u32| self.places[at as usize % self.places.len()].min(end);
        let reach = |at: usize, count: u8| at..(at + usize::from(count)).min(end);
        match *edit {
            Edit::Set { at, byte } => bytes[place(at)..].iter_mut().take(1).for_each(|b| *b = byte),
            Edit::Flip { at, bit } => {
                bytes[place(at)..].iter_mut().take(1).for_each(|b| *b ^= 1 << (bit % 8))
            }
            Edit::Add { at, by } => {
                bytes[place(at)..].iter_mut().take(1).for_each(|b| *b = b.wrapping_add_signed(by))
            }
            Edit::Insert { at, bytes: new } => drop(bytes.splice(place(at)..place(at), new)),
            Edit::Remove { at, count } => drop(bytes.drain(reach(place(at), count))),
            Edit::Move { from, to, count } => {
                let part = bytes[reach(place(from), count)].to_vec();
                bytes.splice(place(to)..place(to), part);
            }
            Edit::Number { at, value } => {
                let written = varint(value);
                bytes.splice(reach(place(at), written.len() as u8), written);
            }
            Edit::End { at } => bytes.truncate(place(at)),
        }
    }
}

pub fn varint(mut value: u64) -> Vec<u8> {
    let mut out = vec![];
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A field of bytes.
pub fn field(number: u64, contents: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), varint(contents.len() as u64), contents.to_vec()].concat()
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// A path in a folder of this process.
pub fn scratch(name: &str) -> PathBuf {
    static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a folder"));
    let thread = format!("{:?}", std::thread::current().id()).replace(['(', ')'], "");
    let folder = FOLDER.path().join(thread);
    std::fs::create_dir_all(&folder).expect("a folder");
    folder.join(name)
}

/// The models to start from.
pub static MODELS: LazyLock<Vec<Seed>> = LazyLock::new(|| {
    let fixtures = ["digits_mlp", "digits_small_cnn", "digits_transformer", "digits_transformer_dynamo"];
    let read = |name: &&str| std::fs::read(fixture(&format!("{name}.onnx"))).expect("a fixture");
    let small = onnx::to_bytes(&small_model()).expect("a model");
    let mut seeds: Vec<Seed> = fixtures.iter().map(read).map(Seed::model).collect();
    seeds.extend([small].into_iter().chain(typed_models()).map(Seed::model));
    seeds
});

/// A layer and nothing else: where edits hit often.
pub fn small_model() -> Model {
    let mut b = Builder::new("small");
    let x = b.input("x", Fact::new(DType::F32, &[1, 2]));
    let w = b.initializer("w", Tensor::f32(&[2, 2], &[1.0, 2.0, 3.0, 4.0]));
    let h = b.matmul(&x, &w);
    let y = b.op("Relu", &[&h]);
    b.output(&y);
    Model::new(b.finish().0, 18)
}

/// Models of one weight each, in the encodings that exporters rarely use.
fn typed_models() -> Vec<Vec<u8>> {
    let floats: Vec<u8> = [1.0f32, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let doubles: Vec<u8> = [1.0f64, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let halves = [varint(0x3c00), varint(0xc000)].concat();
    let loose = floats.chunks(4).flat_map(|v| [&[4 << 3 | 5], v].concat()).collect();
    [
        (DType::F32, field(4, &floats)),
        (DType::F32, loose),
        (DType::F32, [field(4, &floats[..4]), field(4, &floats[4..])].concat()),
        (DType::F16, field(5, &halves)),
        (DType::F64, field(10, &doubles)),
        (DType::I64, field(7, &[1, 2])),
        (DType::U32, field(11, &[1, 2])),
    ]
    .map(|(dtype, payload)| model_around(&tensor(dtype, 2, &payload)))
    .to_vec()
}

/// A `TensorProto` named `w`.
pub fn tensor(dtype: DType, length: u64, payload: &[u8]) -> Vec<u8> {
    let head = [vec![0x08], varint(length), vec![0x10], varint(dtype.to_onnx() as u64), field(8, b"w")];
    [head.concat(), payload.to_vec()].concat()
}

/// A `ModelProto` that hands out one initializer.
pub fn model_around(tensor: &[u8]) -> Vec<u8> {
    let node = [field(1, b"w"), field(2, b"y"), field(4, b"Identity")].concat();
    let graph = [field(1, &node), field(5, tensor), field(12, &field(1, b"y"))].concat();
    [vec![0x08, 8], field(7, &graph), field(8, &[0x10, 13])].concat()
}
