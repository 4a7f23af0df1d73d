//! Element types, numbered as in `TensorProto.DataType` of the ONNX specification.

use std::fmt;

/// An ONNX element type. Types that this build knows no name for survive as [`DType::Other`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DType {
    F32,
    U8,
    I8,
    U16,
    I16,
    I32,
    I64,
    Str,
    Bool,
    F16,
    F64,
    U32,
    U64,
    BF16,
    /// Anything else (complex, 8-bit floats, 4-bit integers, newer ones), by its ONNX number.
    Other(i32),
}

/// (type, ONNX number, bytes an element, name); the one table behind the conversions below.
const TABLE: [(DType, i32, usize, &str); 14] = [
    (DType::F32, 1, 4, "float32"),
    (DType::U8, 2, 1, "uint8"),
    (DType::I8, 3, 1, "int8"),
    (DType::U16, 4, 2, "uint16"),
    (DType::I16, 5, 2, "int16"),
    (DType::I32, 6, 4, "int32"),
    (DType::I64, 7, 8, "int64"),
    (DType::Str, 8, 0, "string"),
    (DType::Bool, 9, 1, "bool"),
    (DType::F16, 10, 2, "float16"),
    (DType::F64, 11, 8, "float64"),
    (DType::U32, 12, 4, "uint32"),
    (DType::U64, 13, 8, "uint64"),
    (DType::BF16, 16, 2, "bfloat16"),
];

impl DType {
    pub fn from_onnx(number: i32) -> Self {
        TABLE.iter().find(|row| row.1 == number).map_or(DType::Other(number), |row| row.0)
    }
    pub fn to_onnx(self) -> i32 {
        match self {
            DType::Other(number) => number,
            _ => TABLE.iter().find(|row| row.0 == self).map_or(0, |row| row.1),
        }
    }
    /// Bytes an element in `raw_data`; `None` for strings and for types this build doesn't know.
    pub fn size(self) -> Option<usize> {
        TABLE.iter().find(|row| row.0 == self).map(|row| row.2).filter(|&size| size > 0)
    }
    /// Real-valued types that weights can have.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F64 | DType::F16 | DType::BF16)
    }
    pub fn is_int(self) -> bool {
        use DType::*;
        matches!(self, U8 | I8 | U16 | I16 | I32 | I64 | U32 | U64)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DType::Other(number) => write!(f, "ONNX element type {number}"),
            _ => f.write_str(TABLE.iter().find(|row| row.0 == *self).map_or("?", |row| row.3)),
        }
    }
}
