//! Compiled kernels on disk: found by the next device, and a file that is damaged never trusted.

use crate::wgpu::noise;
use onnx_merge::onnx::{Builder, DType, Fact, Model, Tensor, WORKING_OPSET};
use onnx_merge::runtime::{Executor, GpuOptions, Value, WgpuExecutor};
use std::path::{Path, PathBuf};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Opens a device with `folder` as its cache, runs a product and a softmax, and closes it: bytes that were found, and what
/// came out. `None` where no driver is here that gives compiled kernels away.
fn run(folder: &Path) -> Result<Option<(usize, Tensor)>> {
    let mut b = Builder::new("softmax");
    let x = b.input("x", Fact::new(DType::F32, &[40, 40]));
    let product = b.op("MatMul", &[&x, &x]);
    let y = b.op("Softmax", &[&product]);
    b.output(&y);
    let (graph, facts) = b.finish();
    let options = GpuOptions { allow_software: true, cache: Some(folder), ..GpuOptions::default() };
    let Ok(gpu) = WgpuExecutor::open_with(options) else { return Ok(None) };
    let input = Value::host(noise(&[40, 40], 1));
    let model = Model::new(graph, WORKING_OPSET);
    let y = gpu.compile(&model, &facts)?.run(&[input])?.remove(0).to_host()?;
    Ok(gpu.found_bytes().map(|found| (found, y)))
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

#[test]
fn the_next_device_finds_the_kernels_and_trusts_no_damaged_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let cache = folder.path().join("cache");
    let Some((found, expected)) = run(&cache)? else {
        println!("skipped: no driver that gives compiled kernels away");
        return Ok(());
    };
    assert_eq!(found, 0);
    let [file] = &files(&cache)?[..] else { panic!("one file: {:?}", files(&cache)) };
    let written = std::fs::read(file)?;

    let (found, y) = run(&cache)?.expect("as before");
    assert!(found > 0 && found < written.len(), "{found}");
    assert_eq!(y, expected);

    let flipped = |at: usize| {
        let mut content = written.clone();
        content[at] ^= 1;
        content
    };
    let damaged =
        [vec![], written[..written.len() - 1].to_vec(), flipped(0), flipped(10), flipped(written.len() - 1)];
    for content in damaged {
        std::fs::write(file, &content)?;
        let (found, y) = run(&cache)?.expect("as before");
        assert_eq!(found, 0, "{} bytes", content.len());
        assert_eq!(y, expected);
        assert_eq!(files(&cache)?, std::slice::from_ref(file));
        assert!(run(&cache)?.expect("as before").0 > 0, "replaced");
    }
    Ok(())
}

#[test]
fn devices_that_close_at_once_leave_a_whole_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| run(folder.path()).expect("it runs"));
        }
    });
    if run(folder.path())?.is_none() {
        return Ok(());
    }
    assert_eq!(files(folder.path())?.len(), 1);
    assert!(run(folder.path())?.expect("as before").0 > 0);
    Ok(())
}

#[test]
fn a_folder_that_cannot_be_written_is_no_error() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("file");
    std::fs::write(&file, b"in the way")?;
    for _ in 0..2 {
        assert_eq!(run(&file.join("cache"))?.map_or(0, |(found, _)| found), 0);
    }
    assert_eq!(std::fs::read(&file)?, b"in the way");
    Ok(())
}
