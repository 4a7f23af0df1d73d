//! ONNX's own form of test data: folders `test_data_set_*` with `input_0.pb`, … and `output_0.pb`, each one
//! `TensorProto`. Every folder holds one row, or a batch of them.

use super::labels::Labels;
use super::options::DataOptions;
use super::{Column, Dataset, Form};
use crate::error::{Error, Result};
use crate::onnx::{DType, Tensor, check_tensor};
use onnx_protobuf::{Message, TensorProto};
use std::path::{Path, PathBuf};

/// Opens the folders as one data set. The first output is the label, the inputs are in the model's order.
pub fn open(path: &Path, folders: &[PathBuf], options: &DataOptions) -> Result<Dataset> {
    let mut inputs: Vec<Vec<(String, Tensor)>> = vec![];
    let mut outputs = vec![];
    for folder in folders {
        for i in 0.. {
            let file = folder.join(format!("input_{i}.pb"));
            if !file.is_file() {
                break;
            }
            if inputs.len() <= i {
                inputs.push(vec![]);
            }
            inputs[i].push(read(&file)?);
        }
        let output = folder.join("output_0.pb");
        if output.is_file() {
            outputs.push(read(&output)?.1);
        }
    }
    let mut columns = vec![];
    for (i, parts) in inputs.into_iter().enumerate() {
        let name = parts.first().map(|p| p.0.clone()).filter(|n| !n.is_empty());
        let parts: Vec<Tensor> = parts.into_iter().map(|p| p.1).collect();
        columns.push(Column { name: name.unwrap_or(format!("input_{i}")), values: concat(path, &parts)? });
    }
    let labels = match outputs.len() {
        0 => None,
        _ => Some(Labels::from_tensor(path, "output_0", &concat(path, &outputs)?)?),
    };
    Ok(Dataset {
        path: path.to_owned(),
        inputs: columns,
        labels,
        class_names: vec![],
        groups: None,
        options: options.clone(),
        form: Form::Positional,
    })
}

fn read(file: &Path) -> Result<(String, Tensor)> {
    let bytes = std::fs::read(file).map_err(|e| Error::io(file, e))?;
    let unreadable = |what: String| Error::data(file, format!("not a readable TensorProto ({what})"));
    check_tensor(&bytes).map_err(|e| unreadable(format!("{} at byte {}", e.what, e.at)))?;
    let proto = TensorProto::parse_from_bytes(&bytes).map_err(|e| unreadable(e.to_string()))?;
    let tensor = tensor(&proto).map_err(|what| Error::data(file, what))?;
    Ok((proto.name, tensor))
}

fn tensor(proto: &TensorProto) -> Result<Tensor, String> {
    let dtype = DType::from_onnx(proto.data_type);
    let shape: Option<Vec<usize>> = proto.dims.iter().map(|&d| usize::try_from(d).ok()).collect();
    let shape = shape.ok_or("it has a negative dimension")?;
    let bytes: Vec<u8> = if !proto.raw_data.is_empty() {
        proto.raw_data.to_vec()
    } else {
        match dtype {
            DType::F32 => proto.float_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::F64 => proto.double_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::I64 => proto.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::U32 => proto.uint64_data.iter().flat_map(|v| (*v as u32).to_le_bytes()).collect(),
            DType::U64 => proto.uint64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::Str | DType::Other(_) => {
                return Err(format!("elements of type {dtype} are not supported"));
            }
            _ => {
                let size = dtype.size().unwrap_or(4).min(4);
                proto.int32_data.iter().flat_map(|v| v.to_le_bytes()[..size].to_vec()).collect()
            }
        }
    };
    Tensor::new(dtype, &shape, bytes).map_err(|e| e.to_string())
}

/// One after the other, along the first dimension.
fn concat(path: &Path, parts: &[Tensor]) -> Result<Tensor> {
    let Some(first) = parts.first().filter(|p| p.rank() > 0) else {
        return Err(Error::data(path, "a tensor in it has no batch dimension"));
    };
    let (mut rows, mut bytes) = (0, vec![]);
    for part in parts {
        if part.dtype() != first.dtype() || part.shape().get(1..) != first.shape().get(1..) {
            return Err(Error::data(
                path,
                format!("its sets don't agree: {:?} in one, {:?} in another", first, part),
            ));
        }
        rows += part.shape()[0];
        bytes.extend_from_slice(part.bytes());
    }
    let shape: Vec<usize> = std::iter::once(rows).chain(first.shape()[1..].iter().copied()).collect();
    Tensor::new(first.dtype(), &shape, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_follow_each_other_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for set in 0..11 {
            let folder = dir.path().join(format!("test_data_set_{set}"));
            std::fs::create_dir(&folder).unwrap();
            let mut proto = TensorProto::new();
            (proto.dims, proto.data_type, proto.float_data) = (vec![1, 2], 1, vec![set as f32, 0.5]);
            std::fs::write(folder.join("input_0.pb"), proto.write_to_bytes().unwrap()).unwrap();
            (proto.dims, proto.float_data) = (vec![1, 1], vec![set as f32]);
            std::fs::write(folder.join("output_0.pb"), proto.write_to_bytes().unwrap()).unwrap();
        }
        let set = super::super::open(dir.path(), &DataOptions::default()).unwrap();
        assert_eq!(set.rows(), 11);
        assert_eq!(set.inputs[0].values.to_f64()[18..], [9.0, 0.5, 10.0, 0.5]);
        assert_eq!(set.labels.unwrap().width(), 1);
    }
}
