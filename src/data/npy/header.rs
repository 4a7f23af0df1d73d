//! The header of a `.npy` file: a Python dictionary of literals with three keys, as in
//! `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.
//!
//! NumPy's documentation of the format (`numpy.lib.format`) says what may stand there. Anything else is refused.

use crate::onnx::DType;
use std::io::Read;

/// No honest header comes near this many bytes.
const LONGEST: usize = 1 << 16;

/// What a header says, believed no further than that it can be read.
pub struct Header {
    pub element: Element,
    pub columns_first: bool,
    pub shape: Vec<u64>,
    /// Bytes before the values.
    pub length: usize,
}

/// What the values are.
#[derive(Debug, PartialEq)]
pub struct Element {
    /// Of a number, or of a character of a word.
    pub dtype: DType,
    pub big_endian: bool,
    /// Characters a word, where these are words.
    pub characters: Option<u64>,
}

impl Header {
    /// Reads a header, and stops where the values begin.
    pub fn read(reader: &mut impl Read) -> Result<Self, String> {
        let bytes = bytes(reader)?;
        let start = if bytes[6] == 1 { 10 } else { 12 };
        let text = std::str::from_utf8(&bytes[start..]).map_err(|e| unreadable(&e.to_string()))?;
        let (descr, columns_first, shape) = parse(text)?;
        Ok(Self { element: Element::parse(descr)?, columns_first, shape, length: bytes.len() })
    }
}

fn unreadable(what: &str) -> String {
    format!("not a readable array (its header: {what})")
}

/// The bytes of magic, version, length and dictionary, without believing the length.
fn bytes(reader: &mut impl Read) -> Result<Vec<u8>, String> {
    let cut_off = |_| "not a NumPy array: it is cut off within the header".to_owned();
    let mut header = vec![0; 10];
    reader.read_exact(&mut header).map_err(cut_off)?;
    if &header[..6] != b"\x93NUMPY" {
        return Err("not a NumPy array".into());
    }
    let length = match (header[6], header[7]) {
        (1, 0) => u16::from_le_bytes([header[8], header[9]]) as usize,
        (2 | 3, 0) => {
            header.resize(12, 0);
            reader.read_exact(&mut header[10..]).map_err(cut_off)?;
            u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize
        }
        (major, minor) => return Err(format!("version {major}.{minor} of NumPy's format is not known")),
    };
    if length > LONGEST {
        return Err(format!("its header claims {length} bytes"));
    }
    let start = header.len();
    header.resize(start + length, 0);
    reader.read_exact(&mut header[start..]).map_err(cut_off)?;
    Ok(header)
}

/// The values of `descr`, `fortran_order` and `shape`.
fn parse(text: &str) -> Result<(&str, bool, Vec<u64>), String> {
    let mut rest = Literals { rest: text };
    let (mut descr, mut columns_first, mut shape) = (None, None, None);
    rest.expect('{')?;
    while !rest.take('}') {
        let key = rest.string()?;
        rest.expect(':')?;
        match key {
            "descr" if rest.take('[') => return Err("arrays of records are not supported".into()),
            "descr" => descr = Some(rest.string()?),
            "fortran_order" => columns_first = Some(rest.boolean()?),
            "shape" => shape = Some(rest.sizes()?),
            _ => return Err(unreadable(&format!("unknown key '{key}'"))),
        }
        if !rest.take(',') {
            rest.expect('}')?;
            break;
        }
    }
    rest.end()?;
    let missing = |key: &str| unreadable(&format!("no '{key}'"));
    Ok((
        descr.ok_or_else(|| missing("descr"))?,
        columns_first.ok_or_else(|| missing("fortran_order"))?,
        shape.ok_or_else(|| missing("shape"))?,
    ))
}

/// What is still to be read of some Python literals.
struct Literals<'a> {
    rest: &'a str,
}

impl<'a> Literals<'a> {
    /// Passes by `mark`, if that comes next.
    fn take(&mut self, mark: char) -> bool {
        let after = self.rest.trim_start().strip_prefix(mark);
        self.rest = after.unwrap_or(self.rest);
        after.is_some()
    }

    fn expect(&mut self, mark: char) -> Result<(), String> {
        if self.take(mark) { Ok(()) } else { Err(self.unexpected(&format!("'{mark}'"))) }
    }

    fn end(&mut self) -> Result<(), String> {
        if self.rest.trim_start().is_empty() { Ok(()) } else { Err(self.unexpected("its end")) }
    }

    /// Neither a key nor a type has escapes.
    fn string(&mut self) -> Result<&'a str, String> {
        let quote = if self.take('"') { '"' } else { self.expect('\'').map(|()| '\'')? };
        let (text, rest) = self.rest.split_once(quote).ok_or_else(|| unreadable("a string has no end"))?;
        self.rest = rest;
        if text.contains('\\') { Err(unreadable("an escape in a string")) } else { Ok(text) }
    }

    fn boolean(&mut self) -> Result<bool, String> {
        match self.run(|c| c.is_ascii_alphabetic()) {
            "True" => Ok(true),
            "False" => Ok(false),
            _ => Err(self.unexpected("True or False")),
        }
    }

    /// A tuple of integers.
    fn sizes(&mut self) -> Result<Vec<u64>, String> {
        let mut sizes = vec![];
        self.expect('(')?;
        while !self.take(')') {
            let digits = self.run(|c| c.is_ascii_digit());
            if digits.is_empty() {
                return Err(self.unexpected("a size"));
            }
            sizes.push(digits.parse().map_err(|_| "its shape is too large")?);
            // Python 2 wrote long integers so.
            self.rest = self.rest.strip_prefix('L').unwrap_or(self.rest);
            // In Python `(3)` is no tuple.
            if !self.take(',') {
                self.expect(if sizes.len() == 1 { ',' } else { ')' })?;
                break;
            }
        }
        Ok(sizes)
    }

    /// As many characters as `fits` takes, after spaces.
    fn run(&mut self, fits: impl Fn(char) -> bool) -> &'a str {
        let text = self.rest.trim_start();
        let (run, rest) = text.split_at(text.find(|c| !fits(c)).unwrap_or(text.len()));
        self.rest = rest;
        run
    }

    fn unexpected(&self, wanted: &str) -> String {
        let there: String = self.rest.trim_start().chars().take(20).collect();
        unreadable(&format!("{wanted} expected before {there:?}"))
    }
}

impl Element {
    /// What NumPy calls an array interface's `typestr`: order of bytes, kind, and size, as in `<f4`.
    fn parse(descr: &str) -> Result<Self, String> {
        let (order, kind) = match descr.split_at_checked(1) {
            Some((order @ ("<" | ">" | "|"), kind)) => (order, kind),
            _ => return Err(unreadable(&format!("no order of bytes in type {descr:?}"))),
        };
        if kind.starts_with('O') {
            return Err(
                "arrays of Python objects (pickled) are not read, because reading them runs code; array.astype(str) makes words of \
                 objects, and rows of different lengths are padded to one"
                    .into()
            );
        }
        let refused =
            || format!("elements of type {descr} are not read, only real numbers and, as labels, words");
        let characters = match kind.split_at_checked(1) {
            Some(("S" | "a" | "U", length)) => Some(length.parse().map_err(|_| refused())?),
            _ => None,
        };
        let dtype = match (kind, characters) {
            ("b1", _) => DType::Bool,
            ("i1", _) => DType::I8,
            ("i2", _) => DType::I16,
            ("i4", _) => DType::I32,
            ("i8", _) => DType::I64,
            ("u1", _) => DType::U8,
            ("u2", _) => DType::U16,
            ("u4", _) => DType::U32,
            ("u8", _) => DType::U64,
            ("f2", _) => DType::F16,
            ("f4", _) => DType::F32,
            ("f8", _) => DType::F64,
            (_, Some(_)) if kind.starts_with('U') => DType::U32,
            (_, Some(_)) => DType::U8,
            _ => return Err(refused()),
        };
        if order == "|" && dtype.size() != Some(1) {
            return Err(unreadable(&format!("no order of bytes in type {descr:?}")));
        }
        Ok(Self { dtype, big_endian: order == ">", characters })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: [u8; 2], text: &str) -> Result<Header, String> {
        let length = (text.len() as u32).to_le_bytes();
        let length = &length[..if version[0] == 1 { 2 } else { 4 }];
        let bytes = [b"\x93NUMPY", &version[..], length, text.as_bytes(), &[0; 4]].concat();
        Header::read(&mut &bytes[..])
    }

    #[test]
    fn literals_are_read_as_python_writes_them() {
        for (text, shape) in [
            ("{'descr': '<f4', 'fortran_order': True, 'shape': (3, 4), }          \n", vec![3, 4]),
            ("{\"shape\":(3,),\"descr\":\"<f4\",\"fortran_order\":True}", vec![3]),
            ("{'descr': '<f4', 'fortran_order': True, 'shape': (3L, 4L), }", vec![3, 4]),
            (" { 'fortran_order' : True , 'shape' : ( ) , 'descr' : '<f4' } ", vec![]),
        ] {
            for version in [[1, 0], [2, 0], [3, 0]] {
                let header = header(version, text).unwrap();
                assert_eq!((header.shape, header.columns_first), (shape.clone(), true));
                assert_eq!(
                    header.element,
                    Element { dtype: DType::F32, big_endian: false, characters: None }
                );
                assert_eq!(header.length, if version[0] == 1 { 10 } else { 12 } + text.len());
            }
        }
    }

    #[test]
    fn words_have_a_length() {
        for (descr, dtype, big_endian, length) in
            [("|S3", DType::U8, false, 3), ("<U12", DType::U32, false, 12), (">U0", DType::U32, true, 0)]
        {
            let element = Element { dtype, big_endian, characters: Some(length) };
            assert_eq!(Element::parse(descr), Ok(element));
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let dictionary = |descr: &str, order: &str, shape: &str| {
            format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n")
        };
        for (text, why) in [
            (dictionary("[('a', '<f4'), ('b', '<i8')]", "False", "(3,)"), "arrays of records"),
            (dictionary("'<c8'", "False", "(3,)"), "elements of type <c8"),
            (dictionary("'<M8[ns]'", "False", "(3,)"), "elements of type <M8[ns]"),
            (dictionary("'<f16'", "False", "(3,)"), "elements of type <f16"),
            (dictionary("'<Ux'", "False", "(3,)"), "elements of type <Ux"),
            (dictionary("'|i4'", "False", "(3,)"), "no order of bytes in type \"|i4\""),
            (dictionary("'f4'", "False", "(3,)"), "no order of bytes in type \"f4\""),
            (dictionary("'ü4'", "False", "(3,)"), "no order of bytes"),
            (dictionary("''", "False", "(3,)"), "no order of bytes"),
            (dictionary("'<f\\x34'", "False", "(3,)"), "escape"),
            (dictionary("'<f4'", "0", "(3,)"), "True or False expected before \"0"),
            (dictionary("'<f4'", "False", "(3)"), "',' expected"),
            (dictionary("'<f4'", "False", "(-3,)"), "a size expected before \"-3"),
            (dictionary("'<f4'", "False", "(3 4)"), "',' expected"),
            (dictionary("'<f4'", "False", "(99999999999999999999,)"), "its shape is too large"),
            (dictionary("'<f4'", "False", "(3,), 'more': 1"), "unknown key 'more'"),
            (dictionary("'<f4'", "False", "(3,)") + "}", "its end expected"),
            ("{'descr': '<f4', 'shape': (3,)}".into(), "no 'fortran_order'"),
            ("{'descr".into(), "a string has no end"),
            ("".into(), "'{' expected"),
        ] {
            let message = header([1, 0], &text).err().unwrap_or_default();
            assert!(message.contains(why), "{text}: {message}");
        }
        let message = header([4, 0], "{}").err().unwrap();
        assert!(message.contains("version 4.0"), "{message}");
    }
}
