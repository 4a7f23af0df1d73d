use onnx_merge::*;
use onnx_merge::train::*;
use std::path::{Path, PathBuf};
struct Print;
impl Observer for Print { fn event(&mut self, e: &Event<'_>) { match e { Event::Step{..} => {}, _ => eprintln!("{e:?}") } } }
fn main() {
    runtime::silence_telemetry();
    let a: Vec<String> = std::env::args().collect();
    let open = |p: &str| data::open(Path::new(p), &data::DataOptions::default()).unwrap();
    let mut config = TrainConfig::default();
    config.method = match a[4].as_str() { "kd" => Method::Kd, "lpka" => Method::Lpka, "auto" => Method::Auto, "lpkakd" => Method::LpkaKd, _ => Method::Finetune };
    if a.len() > 5 { config.ablate = true; config.seeds = a[5].parse().unwrap(); }
    let choice = match a[3].as_str() { "ort" => ExecutorChoice::Ort, _ => ExecutorChoice::Tract };
    let e = runtime::open(choice, &Default::default()).unwrap();
    let f = |n: &str| PathBuf::from(format!("fixtures/{n}"));
    let r = train::merge(MergeRequest { source: Some(f(&a[1])), target: f(&a[2]), output: PathBuf::from("/tmp/out.onnx"),
        data: DataSets { train: open("fixtures/digits_train100.npz"), val: Some(open("fixtures/digits_val.npz")), test: Some(open("fixtures/digits_test.npz")) }, source_data: None, config, resume: false,
        model_executor: e.clone(), adapter_executor: e }, &mut Print);
    match r { Ok(r) => println!("{}", serde_json::to_string(&serde_json::json!({"untouched": r.untouched, "shipped": r.shipped, "arms": r.arms, "seconds": r.seconds, "worth": r.source_worth})).unwrap()), Err(e) => println!("ERR {e} {:?}", e.hints()) }
}
