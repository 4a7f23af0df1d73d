//! The output of a run: written, and proved to be what was trained, before it takes its place.

use super::merge::MergeRequest;
use super::network::{Network, Purpose};
use super::session::{Session, Split};
use crate::error::{Error, Result, ResultExt};
use crate::onnx::{DType, SiteId, Tensor, ValueId, surgery};
use crate::report;
use std::path::Path;

/// Writes the output where it gives what training measured on validation, `expected`; returns its SHA-256. Without changes
/// it is the target, byte by byte.
///
/// # Errors
/// Where it can't be written or isn't what was trained: an older output is untouched then.
pub fn write(
    session: &mut Session,
    changed: &[(ValueId, Tensor)],
    request: &MergeRequest,
    expected: Option<f64>,
) -> Result<String> {
    let initializers = &session.target.model.graph.initializers;
    let mut changes: Vec<(SiteId, Tensor)> = vec![];
    for (id, tensor) in changed {
        if let Some(index) = tensor.first_non_finite() {
            return Err(Error::tensor(
                id.as_str(),
                format!("training left a NaN or infinity at element {index}"),
            ));
        }
        let original = initializers.get(id);
        let site = original
            .and_then(|t| t.site)
            .ok_or_else(|| Error::tensor(id.as_str(), "has no place in the file"))?;
        changes.push((site, tensor.clone()));
    }
    let target = session.target.file.clone();
    let check = |written: &Path| match expected {
        Some(expected) => verify(session, written, request, changed, expected)
            .context(|| "checking what was written".into()),
        None => Ok(()),
    };
    Ok(surgery::write_if(&target, &changes, &request.output, check)?.sha256)
}

/// Reads the output back and runs it: weights and metric must be what training had.
fn verify(
    session: &mut Session,
    written: &Path,
    request: &MergeRequest,
    changed: &[(ValueId, Tensor)],
    expected: f64,
) -> Result<()> {
    let output = &request.output;
    let purpose = Purpose::on(&request.data.train);
    let fresh = Network::open_source(written, session.target.batch, purpose, &*session.model_executor)?;
    for (id, tensor) in changed {
        let written = fresh.model.graph.initializers.get(id);
        let written = written.ok_or_else(|| Error::tensor(id.as_str(), "is not in the output"))?;
        // Half-precision weights are trained in float32 and rounded when they are written.
        let stored = written.site.and_then(|site| fresh.file.site(site)).map_or(written.dtype(), |s| s.dtype);
        if *written != tensor.cast(stored).cast(written.dtype()) {
            return Err(Error::tensor(id.as_str(), "was not written as trained"));
        }
    }
    let now: Vec<(ValueId, Tensor)> =
        fresh.model.graph.initializers.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    let weights = session
        .weights_from(&now)
        .ok_or_else(|| Error::model(output, "lacks weights that the target has"))?;
    let found = session.evaluate(&weights, Split::Val)?;
    let allowed = 0.002 + 0.01 * expected.abs();
    if (found - expected).abs() > allowed {
        let what = format!("gives {found:.5} on validation where training measured {expected:.5}");
        return Err(Error::model(output, what));
    }
    Ok(())
}

/// How far each weight has moved.
pub fn describe(session: &Session, changed: &[(ValueId, Tensor)]) -> Vec<report::Changed> {
    let weights = &session.target.params.weights;
    changed
        .iter()
        .map(|(id, after)| {
            let before = session.target.model.graph.initializers.get(id);
            let (norm, moved) = before.map_or((0.0, 0.0), |before| squares(before, after));
            report::Changed {
                initializer: id.to_string(),
                role: weights
                    .iter()
                    .find(|w| w.name == *id)
                    .map_or(String::new(), |w| format!("{:?}", w.role)),
                // Finite for what was zero: JSON knows no infinity.
                relative_change: moved.sqrt() / norm.max(f64::MIN_POSITIVE).sqrt(),
            }
        })
        .collect()
}

/// ‖before‖² and ‖after − before‖².
fn squares(before: &Tensor, after: &Tensor) -> (f64, f64) {
    let sums = |pairs: &mut dyn Iterator<Item = (f64, f64)>| {
        pairs.fold((0.0, 0.0), |(norm, moved), (b, a)| (norm + b * b, moved + (a - b) * (a - b)))
    };
    match (before.dtype(), after.dtype()) {
        // Weights are large: not to be held twice as doubles.
        (DType::F32, DType::F32) => {
            let (before, after) = (before.to_f32(), after.to_f32());
            sums(&mut before.iter().zip(after.iter()).map(|(&b, &a)| (f64::from(b), f64::from(a))))
        }
        _ => sums(&mut before.to_f64().into_iter().zip(after.to_f64())),
    }
}
