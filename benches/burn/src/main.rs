//! The operators of `benches/wgpu`, by burn on its wgpu backend: reads the cases as JSON, prints seconds as JSON.
//!
//! Run by the bench when ONNX_MERGE_BURN names this program; never by onnx-merge itself. Seconds are per run, from the first
//! dispatch to the last by the device's own clock; null where burn fails. On stderr, for each case: that, the wall time per
//! run of many in a row, and how long the case took with all that burn compiled and tuned for it beforehand. Everything is
//! float32.

mod cases;

use burn::tensor::{Device, DeviceKind, ProfileOptions};
use cases::{Case, Operator, Step};
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// How long a case is repeated by each clock, about.
const LONG_ENOUGH: Duration = Duration::from_millis(150);
const WARM_UP: usize = 5;

struct Seconds {
    device: f64,
    wall: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let cases: Vec<serde_json::Value> = serde_json::from_reader(std::io::stdin().lock())?;
    let device = Device::wgpu(DeviceKind::DefaultDevice);
    let seconds: Vec<Option<f64>> = cases.iter().map(|case| attempt(case, &device)).collect();
    println!("{}", serde_json::to_string(&seconds)?);
    Ok(())
}

/// burn panics on what it can't do; the cases after that one still count. What isn't written for burn is no case here.
fn attempt(case: &serde_json::Value, device: &Device) -> Option<f64> {
    let case: Case = match serde_json::from_value(case.clone()) {
        Ok(case) => case,
        Err(error) => {
            eprintln!("{case}: not measured: {error}");
            return None;
        }
    };
    let begun = Instant::now();
    let measured = catch_unwind(AssertUnwindSafe(|| measure(&case, device)))
        .unwrap_or_else(|_| Err("burn panicked".into()));
    let took = begun.elapsed().as_secs_f64();
    match measured {
        Ok(s) => {
            let (by_device, wall) = (s.device * 1e3, s.wall * 1e3);
            eprintln!("{case:?}: device {by_device:.3} ms, wall {wall:.3} ms; {took:.1} s in all");
            Some(s.device)
        }
        Err(error) => {
            eprintln!("{case:?}: {error}; {took:.1} s in all");
            None
        }
    }
}

fn measure(case: &Case, device: &Device) -> Result<Seconds, Box<dyn Error>> {
    let operator = case.on(device);
    // The first run tunes; those after it show that nothing is left to tune.
    for _ in 0..WARM_UP {
        wall(&operator, 1, device)?;
    }
    let once = wall(&operator, 1, device)?;
    let runs = ((LONG_ENOUGH.as_secs_f64() / once) as usize).clamp(3, 500);
    Ok(Seconds { device: by_device(&operator, runs, device)?, wall: wall(&operator, runs, device)? })
}

/// Seconds a run, of many in a row that are waited for at the end.
fn wall(operator: &Operator, runs: usize, device: &Device) -> Result<f64, Box<dyn Error>> {
    let (mut left, mut total) = (runs, Duration::ZERO);
    while left > 0 {
        let steps: Vec<Step> = (0..left.min(operator.at_once)).map(|_| operator.prepare()).collect();
        left -= steps.len();
        device.sync()?;
        let begun = Instant::now();
        for step in steps {
            let result = step();
            // burn would fuse runs that it sees together and read their common inputs once, and needn't compute what
            // nobody holds any more.
            device.flush()?;
            drop(result);
        }
        device.sync()?;
        total += begun.elapsed();
    }
    Ok(total.as_secs_f64() / runs as f64)
}

/// Seconds a run, from its first dispatch to its last by the device's clock.
fn by_device(operator: &Operator, runs: usize, device: &Device) -> Result<f64, Box<dyn Error>> {
    let mut total = 0.0;
    for _ in 0..runs {
        let step = operator.prepare();
        device.sync()?;
        let (result, duration) = device.profile_with(ProfileOptions::default().flush(), step)?;
        let ticks = pollster::block_on(duration.resolve()).ok_or("nothing ran on the device")?;
        total += ticks.duration().as_secs_f64();
        drop(result);
    }
    Ok(total / runs as f64)
}
