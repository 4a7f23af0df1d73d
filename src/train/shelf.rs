//! Weights that are kept for later, in a file without a name: the system can drop their pages, which it can't do with
//! memory. Look at [`shelve`].

use crate::error::{Error, Result};
use crate::onnx::{Fact, Tensor};
use crate::runtime::Value;
use memmap2::Mmap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// Values of fewer bytes in all stay in memory.
const WORTH: usize = 64 << 20;
/// Smaller ones among the others do, too.
const LARGE: usize = 1 << 20;
/// Where values may begin, so that executors can read them where they are.
const ALIGNMENT: usize = 64;

/// The same values, which lie on the host, with the large ones in a file in `folder` that vanishes with them. Where none can be
/// written, they stay where they are.
pub fn shelve(values: Vec<Value>, folder: &Path) -> Vec<Value> {
    match values.iter().map(|value| value.fact().bytes()).sum::<usize>() {
        WORTH.. => write(&values, folder).unwrap_or(values),
        _ => values,
    }
}

fn write(values: &[Value], folder: &Path) -> Result<Vec<Value>> {
    let failed = |error| Error::io(folder, error);
    let mut file = tempfile::tempfile_in(folder).map_err(failed)?;
    let (mut places, mut end) = (vec![], 0);
    for value in values {
        let tensor = value.to_host()?;
        let bytes = tensor.bytes();
        let moves = bytes.len() >= LARGE && !tensor.is_mapped();
        places.push(moves.then_some(end));
        if moves {
            let padding = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
            file.write_all(bytes)
                .and_then(|()| file.write_all(&[0; ALIGNMENT][..padding]))
                .map_err(failed)?;
            end += bytes.len() + padding;
        }
    }
    if end == 0 {
        return Ok(values.to_vec());
    }
    // SAFETY: the file has no name by which somebody else could change it, and it isn't written to any more.
    let map = Arc::new(unsafe { Mmap::map(&file) }.map_err(failed)?);
    let shelved = values.iter().zip(places).map(|(value, place)| match place {
        Some(start) => {
            let Fact { dtype, shape } = value.fact();
            let range = start..start + value.fact().bytes();
            Ok(Value::host(Tensor::mapped(dtype, &shape, map.clone(), range)?))
        }
        None => Ok(value.clone()),
    });
    shelved.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::DType;

    fn values(large: usize) -> Vec<Value> {
        let numbers: Vec<f32> = (0..large).map(|i| i as f32).collect();
        let tensors =
            [Tensor::f32(&[1], &[3.0]), Tensor::f32(&[large], &numbers), Tensor::zeros(DType::U8, &[LARGE])];
        tensors.map(Value::host).to_vec()
    }

    fn mapped(values: &[Value]) -> Result<Vec<bool>> {
        values.iter().map(|value| Ok(value.to_host()?.is_mapped())).collect()
    }

    fn same(a: &[Value], b: &[Value]) -> Result<bool> {
        Ok(a.iter().zip(b).all(|(a, b)| a.to_host().ok() == b.to_host().ok()) && a.len() == b.len())
    }

    #[test]
    fn large_values_move_to_a_file_that_nobody_sees_and_are_the_same() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("", e))?;
        let all = values(1 + WORTH / 4);
        let shelved = shelve(all.clone(), folder.path());
        assert_eq!(mapped(&shelved)?, [false, true, true]);
        assert!(same(&all, &shelved)?);
        assert_eq!(std::fs::read_dir(folder.path()).map_or(1, Iterator::count), 0);
        // What lies in a file already isn't written again.
        let place = |values: &[Value]| Ok::<_, Error>(values[1].to_host()?.bytes().as_ptr());
        assert_eq!(place(&shelve(shelved.clone(), folder.path()))?, place(&shelved)?);
        Ok(())
    }

    #[test]
    fn small_ones_and_those_without_a_place_stay() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("", e))?;
        assert_eq!(mapped(&shelve(values(LARGE), folder.path()))?, [false; 3]);
        let all = values(1 + WORTH / 4);
        let kept = shelve(all.clone(), &folder.path().join("missing"));
        assert_eq!(mapped(&kept)?, [false; 3]);
        assert!(same(&all, &kept)?);
        Ok(())
    }
}
