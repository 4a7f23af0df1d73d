//! NumPy's arrays of text: words of one length, filled up with zeros. Look at [`decode`].

use crate::onnx::{DType, Tensor};

/// The words of an array whose last dimension counts the characters of a word: code points (`<U…`) or bytes of UTF-8 (`|S…`).
///
/// # Errors
/// More than one word a row, or what is no text: the row is named.
pub fn decode(characters: &Tensor) -> Result<Vec<String>, String> {
    let (shape, longest) = match characters.shape() {
        [shape @ .., longest] if !shape.is_empty() => (shape, *longest),
        _ => return Err("it is a single word, not one a row".into()),
    };
    if shape[1..].iter().any(|&d| d != 1) {
        return Err(format!("its shape is {shape:?}: labels of words are one word a row"));
    }
    let word_bytes = longest * characters.dtype().size().unwrap_or(1);
    if word_bytes == 0 {
        return Err("all its words are empty".into());
    }
    let word = |(row, bytes): (usize, &[u8])| {
        let word = match characters.dtype() {
            DType::U8 => std::str::from_utf8(bytes).ok().map(str::to_owned),
            _ => bytes.chunks_exact(4).map(character).collect(),
        };
        let word: String = word.ok_or_else(|| format!("the word of row {row} isn't valid Unicode"))?;
        Ok(word.trim_end_matches('\0').to_owned())
    };
    characters.bytes().chunks_exact(word_bytes).enumerate().map(word).collect()
}

fn character(code: &[u8]) -> Option<char> {
    char::from_u32(u32::from_le_bytes(code.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(shape: &[usize], text: &[u8]) -> Tensor {
        Tensor::new(DType::U8, shape, text.to_vec()).unwrap()
    }

    #[test]
    fn words_end_where_only_zeros_follow() {
        assert_eq!(decode(&bytes(&[2, 3], b"antb\0\0")).unwrap(), ["ant", "b"]);
        assert!(
            decode(&bytes(&[2, 1, 2], "aöb".as_bytes())).unwrap_err().contains("row 0 isn't valid Unicode")
        );
        let codes: Vec<u8> = "öß\0\0".chars().flat_map(|c| (c as u32).to_le_bytes()).collect();
        assert_eq!(decode(&Tensor::new(DType::U32, &[2, 2], codes).unwrap()).unwrap(), ["öß", ""]);
    }

    #[test]
    fn what_is_not_one_word_a_row_is_refused() {
        assert!(decode(&bytes(&[1, 2, 1], b"ab")).unwrap_err().contains("shape is [1, 2]"));
        assert!(decode(&bytes(&[3], b"abc")).unwrap_err().contains("a single word"));
        assert!(decode(&bytes(&[1 << 40, 0], b"")).unwrap_err().contains("empty"));
        let surrogate = Tensor::new(DType::U32, &[1, 1], 0xd800u32.to_le_bytes().to_vec()).unwrap();
        assert!(decode(&surrogate).unwrap_err().contains("row 0"));
    }
}
