//! What is tried, what is remembered, and what isn't.

use super::*;
use crate::onnx::{Builder, DType, Fact, Facts, Model, WORKING_OPSET};
use crate::runtime::wgpu::gpu::GpuOptions;
use crate::runtime::wgpu::{fuse, layout::arrange, lower};

/// Two products of one size and one of another.
fn products() -> (Model, Facts) {
    let mut b = Builder::new("products");
    let mut input = |name: &str, shape: [usize; 2]| b.input(name, Fact::new(DType::F32, &shape));
    let [x, y, u, v] =
        [("x", [96, 64]), ("y", [64, 100]), ("u", [96, 64]), ("v", [64, 100])].map(|(n, s)| input(n, s));
    let z = input("z", [100, 80]);
    let (first, second) = (b.matmul(&x, &y), b.matmul(&u, &v));
    let third = b.matmul(&first, &z);
    [&first, &second, &third].into_iter().for_each(|output| b.output(output));
    let (graph, facts) = b.finish();
    (Model::new(graph, WORKING_OPSET), facts)
}

fn prepared(gpu: &Gpu) -> (Plan, Vec<Batch>) {
    let (model, facts) = products();
    let mut plan = lower::lower(&model, &facts, gpu.target()).unwrap();
    plan.prune();
    let calls = fuse::fuse(&plan, gpu.max_buffers);
    let (batches, _) = arrange(&plan, &calls, gpu.max_buffers, gpu.max_bytes());
    assert_eq!(batches.iter().map(|batch| batch.calls.len()).collect::<Vec<_>>(), [1; 3]);
    (plan, batches)
}

fn sources(batches: &[Batch]) -> Vec<&str> {
    batches.iter().flat_map(|batch| &batch.calls).map(|call| call.source.as_str()).collect()
}

const AMPLE: Duration = Duration::from_secs(600);

fn gpu() -> Option<Arc<Gpu>> {
    Gpu::open(GpuOptions { allow_software: true, ..GpuOptions::default() })
        .inspect_err(|e| println!("skipped: {e}"))
        .ok()
}

fn entries(search: &Search, file: &Path) -> usize {
    read(file).get(&search.device).map_or(0, Tiles::len)
}

#[test]
fn equal_calls_are_tried_once_and_remembered_in_a_file() {
    let Some(gpu) = gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (folder, file) = (folder.path().join("new"), folder.path().join("new/tiles.json"));
    let (plan, mut batches) = prepared(&gpu);
    let search = Search::new(&gpu.report, Some(&folder), 1, AMPLE);
    search.choose(&gpu, &plan, &mut batches);
    assert_eq!(entries(&search, &file), 2);
    for call in batches.iter().flat_map(|batch| &batch.calls) {
        let forms = &call.tiling.as_ref().unwrap().forms;
        assert!(forms.iter().any(|form| (form.source(), form.groups) == (call.source.clone(), call.groups)));
    }
    // Once the file says so, the last of each call's forms is taken, and nothing is tried any more.
    let (_, mut batches) = prepared(&gpu);
    let last = |call: &Call| call.tiling.as_ref().unwrap().forms.last().unwrap().clone();
    let tiles = batches.iter().map(|batch| (key(&batch.calls[0]), last(&batch.calls[0]).tile)).collect();
    search.write(&file, &tiles).unwrap();
    let kernels = gpu.pipeline_count();
    Search::new(&gpu.report, Some(&folder), 1, Duration::ZERO).choose(&gpu, &plan, &mut batches);
    for call in batches.iter().flat_map(|batch| &batch.calls) {
        assert_eq!((&call.source, call.groups), (&last(call).source(), last(call).groups));
    }
    assert_eq!(gpu.pipeline_count(), kernels);
}

#[test]
fn small_calls_those_that_go_together_and_those_out_of_time_keep_their_tiles() {
    let Some(gpu) = gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (plan, usual) = prepared(&gpu);
    let largest = 96 * 64 * 100;
    let file = folder.path().join("tiles.json");
    for (large, limit) in [(1, Duration::ZERO), (100 * largest, AMPLE)] {
        let (_, mut batches) = prepared(&gpu);
        Search::new(&gpu.report, Some(folder.path()), large, limit).choose(&gpu, &plan, &mut batches);
        assert_eq!(sources(&batches), sources(&usual));
    }
    let calls = usual.iter().flat_map(|batch| batch.calls.clone()).collect();
    let mut together = [Batch { calls }];
    Search::new(&gpu.report, Some(folder.path()), 1, AMPLE).choose(&gpu, &plan, &mut together);
    assert_eq!(sources(&together), sources(&usual));
    assert!(!file.exists());
}

#[test]
fn files_of_others_are_replaced_and_folders_that_cannot_be_are_no_error() {
    let Some(gpu) = gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tiles.json");
    let (plan, usual) = prepared(&gpu);
    let another = Devices::from([("another device".to_owned(), Tiles::from([("00".to_owned(), [2, 2])]))]);
    let kept = serde_json::to_vec(&another).unwrap();
    for (content, others) in [(&b"{\"a\": [[["[..], 0), (b"\xff\0", 0), (b"[1, 2]", 0), (b"", 0), (&kept, 1)]
    {
        std::fs::write(&file, content).unwrap();
        let search = Search::new(&gpu.report, Some(folder.path()), 1, AMPLE);
        let (_, mut batches) = prepared(&gpu);
        search.choose(&gpu, &plan, &mut batches);
        assert_eq!((read(&file).len(), entries(&search, &file)), (others + 1, 2), "{content:?}");
    }
    // Tiles that no kernel has.
    let search = Search::new(&gpu.report, Some(folder.path()), 1, AMPLE);
    let wrong = usual.iter().map(|batch| (key(&batch.calls[0]), [7, 0])).collect();
    search.write(&file, &wrong).unwrap();
    let (_, mut batches) = prepared(&gpu);
    Search::new(&gpu.report, Some(folder.path()), 1, AMPLE).choose(&gpu, &plan, &mut batches);
    assert_eq!(sources(&batches), sources(&usual));

    let search = Search::new(&gpu.report, Some(&file), 1, AMPLE);
    search.choose(&gpu, &plan, &mut batches);
    assert_eq!(search.known.lock().unwrap().tiles.len(), 2);
}
