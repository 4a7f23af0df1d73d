//! Finds every tensor's payload in a model file, and makes a skeleton of the file without them.
//!
//! Knows the part of ONNX's protobuf schema that leads to tensors, and nothing of graphs' meaning. The skeleton
//! is an ordinary `ModelProto` whose tensors hold, in `raw_data`, the index of their [`Cut`].

use super::wire::{Coding, Field, Fields, Malformed, put_bytes};
use std::ops::Range;

/// Graphs within graphs, and types of types, deeper than this are refused.
const MAX_DEPTH: usize = 24;

/// A message that encloses a payload: where its length and its contents stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enclosing {
    pub length: Range<usize>,
    pub body: Range<usize>,
}

/// The payload fields of one `TensorProto`, in file order.
#[derive(Clone, Debug, Default)]
pub struct Cut {
    /// Messages around the payload, the tensor itself last.
    pub enclosing: Vec<Enclosing>,
    /// Fields 4 to 7 and 9 to 11: `float_data`, `int32_data`, `string_data`, `int64_data`, `raw_data`,
    /// `double_data`, `uint64_data`.
    pub fields: Vec<Field>,
}

#[derive(Clone, Copy, PartialEq)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Function,
    Tensor,
    // What holds no payload is walked through because the parser behind this would follow groups (an old kind of field that ONNX
    // never uses) of any depth within it, until its stack ends (RUSTSEC-2024-0437).
    WholeTensor,
    SparseTensor,
    ValueInfo,
    Annotation,
    Type,
    ArrayType,
    ListType,
    MapType,
    Shape,
    /// One of numbers and strings only.
    Plain,
}

enum Treatment {
    Copy,
    Drop,
    Payload,
    Enter(Message),
}

/// What to do with field `number` of a message; numbers as in the official `onnx.proto`.
fn treatment(message: Message, number: u32) -> Treatment {
    use Treatment::*;
    match (message, number) {
        (Message::Model, 7) => Enter(Message::Graph),
        (Message::Model, 25) => Enter(Message::Function),
        // training_info and value_info: never used here.
        (Message::Model, 20) | (Message::Graph, 13) => Drop,
        (Message::Graph, 1) | (Message::Function, 7) => Enter(Message::Node),
        (Message::Graph, 5) => Enter(Message::Tensor),
        (Message::Node, 5) | (Message::Function, 11) => Enter(Message::Attribute),
        (Message::Attribute, 5) => Enter(Message::Tensor),
        (Message::Attribute, 6 | 11) => Enter(Message::Graph),
        (Message::Tensor, 4..=7 | 9..=11) => Payload,
        (Message::Attribute, 10) | (Message::SparseTensor, 1 | 2) => Enter(Message::WholeTensor),
        (Message::Graph, 15) | (Message::Attribute, 22 | 23) => Enter(Message::SparseTensor),
        (Message::Graph, 11 | 12) | (Message::Function, 12) => Enter(Message::ValueInfo),
        (Message::Graph, 14) => Enter(Message::Annotation),
        (Message::ValueInfo, 2) | (Message::Attribute, 14 | 15) => Enter(Message::Type),
        (Message::Type, 1 | 8) => Enter(Message::ArrayType),
        (Message::Type, 4 | 9) => Enter(Message::ListType),
        (Message::Type, 5) => Enter(Message::MapType),
        (Message::ListType, 1) | (Message::MapType, 2) => Enter(Message::Type),
        (Message::ArrayType, 2) => Enter(Message::Shape),
        (Message::Model, 8 | 14)
        | (Message::Graph, 16)
        | (Message::Node, 9)
        | (Message::Function, 9 | 14)
        | (Message::Tensor | Message::WholeTensor, 3 | 13 | 16)
        | (Message::ValueInfo, 4)
        | (Message::Annotation, 2)
        | (Message::Shape, 1) => Enter(Message::Plain),
        _ => Copy,
    }
}

/// The skeleton of a model file, and the payloads cut out of it.
pub fn skeleton(bytes: &[u8]) -> Result<(Vec<u8>, Vec<Cut>), Malformed> {
    let mut scan = Scan { bytes, cuts: vec![], enclosing: vec![], depth: 0 };
    let skeleton = scan.message(Message::Model, 0..bytes.len())?;
    Ok((skeleton, scan.cuts))
}

/// Refuses bytes that are no sound `TensorProto`: before a parser that believes them.
pub fn check_tensor(bytes: &[u8]) -> Result<(), Malformed> {
    Scan { bytes, cuts: vec![], enclosing: vec![], depth: 0 }.message(Message::Tensor, 0..bytes.len())?;
    Ok(())
}

struct Scan<'a> {
    bytes: &'a [u8],
    cuts: Vec<Cut>,
    enclosing: Vec<Enclosing>,
    depth: usize,
}

impl Scan<'_> {
    fn message(&mut self, message: Message, range: Range<usize>) -> Result<Vec<u8>, Malformed> {
        let mut out = vec![];
        let mut payload = vec![];
        let deeper = usize::from(matches!(message, Message::Graph | Message::Type));
        self.depth += deeper;
        if self.depth > MAX_DEPTH {
            return Err(Malformed { at: range.start, what: "graphs or types are nested too deeply" });
        }
        for field in Fields::new(self.bytes, range) {
            let field = field?;
            match treatment(message, field.number) {
                Treatment::Enter(inner) if field.coding == Coding::Bytes => {
                    self.enclosing.push(Enclosing { length: field.length.clone(), body: field.body.clone() });
                    let contents = self.message(inner, field.body)?;
                    self.enclosing.pop();
                    put_bytes(&mut out, field.number, &contents);
                }
                Treatment::Payload => payload.push(field),
                Treatment::Drop => {}
                // A message field that isn't coded as one falls through to the parser, which refuses it.
                _ => out.extend_from_slice(self.bytes.get(field.whole).unwrap_or_default()),
            }
        }
        self.depth -= deeper;
        if message == Message::Tensor {
            let index = self.cuts.len() as u32;
            self.cuts.push(Cut { enclosing: self.enclosing.clone(), fields: payload });
            put_bytes(&mut out, 9, &index.to_le_bytes());
        }
        Ok(out)
    }
}
