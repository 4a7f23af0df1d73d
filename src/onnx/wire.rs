//! The protobuf wire format, just enough to find where things are: tags, lengths, varints, byte ranges.
//!
//! Knows no schema. Treats its input as hostile: all arithmetic is checked, nothing is allocated, and nothing
//! is believed about a length before it has been compared with what is there. Look at [`Fields`] first.

use std::ops::Range;

/// What is wrong with the bytes, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    pub at: usize,
    pub what: &'static str,
}

/// How a field is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Varint(u64),
    Fixed64,
    Bytes,
    Fixed32,
}

/// One field of a message; all positions count from the beginning of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub number: u32,
    pub coding: Coding,
    /// The whole field, tag included.
    pub whole: Range<usize>,
    /// Where the length stands (empty unless the coding is [`Coding::Bytes`]).
    pub length: Range<usize>,
    /// The contents.
    pub body: Range<usize>,
}

/// Iterates over the fields of the message that lies in a range of `bytes`.
pub struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Fields<'a> {
    pub fn new(bytes: &'a [u8], message: Range<usize>) -> Self {
        let end = message.end.min(bytes.len());
        Self { bytes, at: message.start.min(end), end }
    }

    fn field(&mut self) -> Result<Field, Malformed> {
        let start = self.at;
        let (key, at) = varint(self.bytes, start..self.end)?;
        let number = u32::try_from(key >> 3).ok().filter(|&n| n > 0 && n < 1 << 29);
        let number = number.ok_or(Malformed { at: start, what: "impossible field number" })?;
        let (coding, length, body) = match key & 7 {
            0 => {
                let (value, end) = varint(self.bytes, at..self.end)?;
                (Coding::Varint(value), at..at, at..end)
            }
            1 => (Coding::Fixed64, at..at, at..self.end_of(at, 8)?),
            2 => {
                let (length, body) = varint(self.bytes, at..self.end)?;
                (Coding::Bytes, at..body, body..self.end_of(body, length)?)
            }
            5 => (Coding::Fixed32, at..at, at..self.end_of(at, 4)?),
            _ => return Err(Malformed { at: start, what: "unknown kind of field" }),
        };
        self.at = body.end;
        Ok(Field { number, coding, whole: start..body.end, length, body })
    }

    fn end_of(&self, at: usize, count: u64) -> Result<usize, Malformed> {
        let end = usize::try_from(count).ok().and_then(|n| at.checked_add(n));
        end.filter(|&end| end <= self.end)
            .ok_or(Malformed { at, what: "a field ends after the end of its message" })
    }
}

impl Iterator for Fields<'_> {
    type Item = Result<Field, Malformed>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.at = self.end;
        }
        Some(field)
    }
}

/// The varint at the beginning of `range`, and where it ends.
pub fn varint(bytes: &[u8], range: Range<usize>) -> Result<(u64, usize), Malformed> {
    let mut value = 0u64;
    for (i, at) in range.clone().take(10).enumerate() {
        let byte = *bytes.get(at).ok_or(Malformed { at, what: "the data ends inside a number" })?;
        value |= u64::from(byte & 0x7f).wrapping_shl(7 * i as u32);
        if byte < 0x80 {
            return Ok((value, at + 1));
        }
    }
    let what =
        if range.len() < 10 { "the data ends inside a number" } else { "a number of more than ten bytes" };
    Err(Malformed { at: range.start, what })
}

/// Appends `value` as a varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends the tag and length of a field of `length` bytes, whose contents are to follow.
pub fn put_header(out: &mut Vec<u8>, number: u32, length: usize) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, length as u64);
}

/// Appends a field of bytes.
pub fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_header(out, number, bytes.len());
    out.extend_from_slice(bytes);
}

/// Length of `value` as a varint.
pub fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip() {
        for value in [0, 1, 127, 128, 300, u32::MAX as u64, u64::MAX] {
            let mut bytes = vec![];
            put_varint(&mut bytes, value);
            assert_eq!(bytes.len(), varint_len(value));
            assert_eq!(varint(&bytes, 0..bytes.len()), Ok((value, bytes.len())));
        }
    }

    #[test]
    fn lengths_beyond_the_end_are_refused() {
        for bytes in
            [&b"\x0a\x05abc"[..], b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x09abc", b"\x80"]
        {
            assert!(Fields::new(bytes, 0..bytes.len()).any(|f| f.is_err()), "{bytes:?}");
        }
    }
}
