//! Fuzzing: what strangers' files and graphs may do to the program, which is to be refused, never to panic, and never
//! to take more memory than the files are worth.
//!
//! Every target is a property of a value that `bolero` makes from bytes. `cargo test` tries crashes found before
//! (`__fuzz__/*/crashes`) and the same few hundred values each time; `cargo bolero test NAME` lets libFuzzer look for
//! more (docs/reliability.md). Look at [`target`].

#[path = "../corpus/differences.rs"]
#[allow(dead_code)]
mod differences;

mod claims;
mod data;
mod edits;
mod files;
mod found;
mod graphs;
mod memory;
mod models;
mod sides;

/// A fuzz target: `target!(name, values tried by cargo test, property)`.
macro_rules! target {
    ($name:ident, $values:expr, $property:path) => {
        #[test]
        fn $name() {
            #[cfg(not(fuzzing))]
            $crate::try_values($values, $property);
            bolero::check!().with_iterations(0).with_type().for_each($property);
        }
    };
}
pub(crate) use target;

/// How many values to try instead of the usual.
#[cfg(not(fuzzing))]
const COUNT: &str = "ONNX_MERGE_FUZZ_VALUES";

/// Bytes that a value is made of.
#[cfg(not(fuzzing))]
const VALUE_BYTES: usize = 512;

/// Tries `count` values, the same each time.
#[cfg(not(fuzzing))]
fn try_values<T: bolero::TypeGenerator + std::fmt::Debug>(count: u64, property: impl Fn(&T)) {
    use bolero::generator::bolero_generator::driver;
    use rand::{Rng, SeedableRng};
    let options = driver::Options::default();
    let count = std::env::var(COUNT).ok().and_then(|n| n.parse().ok()).unwrap_or(count);
    let mut failed = vec![];
    for seed in 0..count {
        let mut bytes = [0; VALUE_BYTES];
        rand_chacha::ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut bytes);
        let Some(value) = T::generate(&mut driver::bytes::Driver::new(bytes, &options)) else { continue };
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| property(&value))).is_err() {
            println!("value {seed} fails: {value:?}");
            failed.push(seed);
        }
    }
    assert!(failed.is_empty(), "values {failed:?} of {count} fail");
}
