//! Arguments that several subcommands share, and how their values are read.

use crate::data::{DataOptions, parse_number, parse_numbers, parse_size};
use crate::error::{Error, Result};
use crate::runtime::{self, ExecutorOptions, Precision};
use crate::train::{ExecutorChoice, TrainConfig};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde::de::{DeserializeOwned, IntoDeserializer};
use std::path::PathBuf;

/// Reads one of the names that `T` has in its serialised form.
pub fn choice<T: DeserializeOwned + Clone + Send + Sync + 'static>(
    names: &'static [&'static str],
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(names).try_map(|name: String| {
        T::deserialize(IntoDeserializer::<serde::de::value::Error>::into_deserializer(name.as_str()))
    })
}

/// A number of at least zero.
pub fn positive(text: &str) -> Result<f64, String> {
    let value = parse_number(text).map_err(|e| e.to_string())?;
    if value >= 0.0 { Ok(value) } else { Err(format!("{text} is below zero")) }
}

/// Seconds, or a number with `s`, `m` or `h` behind it.
pub fn duration(text: &str) -> Result<f64, String> {
    let units = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("min", 60.0), ("h", 3600.0)];
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &text[number.len()..];
    let factor = match unit {
        "" => Some(1.0),
        _ => units.iter().find(|u| u.0 == unit).map(|u| u.1),
    };
    let value = number.parse::<f64>().ok().filter(|v| *v > 0.0 && v.is_finite());
    value
        .zip(factor)
        .map(|(v, f)| v * f)
        .ok_or_else(|| format!("'{text}' is no time (such as 90s, 10m or 1h)"))
}

/// Where data lies.
#[derive(clap::Args, Default)]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// Training data: FILE.npz (x, y), X.npy,Y.npy, FILE.csv, a folder of images by class, or ONNX test_data_set_*
    /// [default: none; the source then teaches on made-up inputs, and no gain is verified]
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,
    /// Validation data, on which everything is chosen [default: a fifth of the training data]
    #[arg(long, value_name = "PATH")]
    pub val: Option<PathBuf>,
    /// Test data, measured once at the end
    #[arg(long, value_name = "PATH")]
    pub test: Option<PathBuf>,
    #[command(flatten)]
    pub options: OptionArgs,
}

/// How data is read.
#[derive(clap::Args, Default)]
#[command(next_help_heading = "Data")]
pub struct OptionArgs {
    /// Multiply the inputs by this, such as 1/255
    #[arg(long, value_name = "NUMBER", value_parser = parse_number, allow_hyphen_values = true)]
    pub scale: Option<f64>,
    /// Subtract this after scaling: a number, or one a channel
    #[arg(long, value_name = "NUMBERS", value_parser = |s: &str| parse_numbers(s).map(Numbers), allow_hyphen_values = true)]
    pub mean: Option<Numbers>,
    /// Divide by this after that: a number, or one a channel
    #[arg(long, value_name = "NUMBERS", value_parser = |s: &str| parse_numbers(s).map(Numbers))]
    pub std: Option<Numbers>,
    /// Resize images to SIDE or HEIGHTxWIDTH
    #[arg(long, value_name = "SIZE", value_parser = |s: &str| parse_size(s).map(Size))]
    pub size: Option<Size>,
    /// Name of the label array or column [default: y, label or target; in tables else the last]
    #[arg(long, value_name = "NAME")]
    pub label: Option<String>,
    /// Name of the array or column that says which rows belong together: of one patient, speaker, scene
    #[arg(long, value_name = "NAME")]
    pub groups: Option<String>,
    /// Label of what doesn't count: padding, pieces of words, unmarked pixels [default: -100]
    #[arg(long, value_name = "LABEL", allow_hyphen_values = true)]
    pub ignore_label: Option<i64>,
    /// Axis of the answer's classes, counted with the batch's (-1 for the last), where each position of a row has a label of its own
    /// and more than one axis would fit [default: by the shapes]
    #[arg(long, value_name = "AXIS", allow_hyphen_values = true)]
    pub class_axis: Option<i64>,
}

/// Numbers in one argument.
#[derive(Clone, Debug)]
pub struct Numbers(pub Vec<f64>);

/// Height and width in one argument.
#[derive(Clone, Copy, Debug)]
pub struct Size(pub [usize; 2]);

impl OptionArgs {
    /// Puts what was typed over what was configured.
    pub fn apply(&self, options: &mut DataOptions) {
        set_some(&mut options.scale, self.scale);
        set_some(&mut options.size, self.size.map(|s| s.0));
        set_some(&mut options.label, self.label.clone());
        set_some(&mut options.groups, self.groups.clone());
        set_some(&mut options.ignore_label, self.ignore_label);
        set_some(&mut options.class_axis, self.class_axis);
        set(&mut options.mean, self.mean.clone().map(|m| m.0));
        set(&mut options.std, self.std.clone().map(|s| s.0));
    }
}

/// Where models run.
#[derive(clap::Args, Default)]
#[command(next_help_heading = "Execution")]
pub struct ExecutorArgs {
    /// What runs the models
    #[arg(long, value_name = "NAME", value_parser = choice::<ExecutorChoice>(&["auto", "ort", "tract", "wgpu"]))]
    pub executor: Option<ExecutorChoice>,
    /// What a GPU with matrix units rounds the operands of large products to (sums and all else are f32) [default: f32]
    #[arg(long, value_name = "TYPE", value_parser = choice::<Precision>(&["f32", "f16"]))]
    pub precision: Option<Precision>,
    /// Accept a software GPU (slow; for tests)
    #[arg(long)]
    pub allow_software_gpu: bool,
    /// ONNX Runtime's shared library, or a folder with it
    #[arg(long, value_name = "FILE")]
    pub ort_lib: Option<PathBuf>,
    /// Processor threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
}

impl ExecutorArgs {
    pub fn apply(&self, config: &mut TrainConfig) {
        set(&mut config.executor, self.executor);
        set(&mut config.precision, self.precision);
        config.allow_software_gpu |= self.allow_software_gpu;
        set_some(&mut config.ort_lib, self.ort_lib.clone());
        set_some(&mut config.threads, self.threads.map(usize::from));
    }
}

/// Replaces a value where another was given.
pub fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

/// Replaces an optional value where another was given.
pub fn set_some<T>(place: &mut Option<T>, value: Option<T>) {
    if value.is_some() {
        *place = value;
    }
}

/// An option without which a command has nothing to do.
pub fn required<T>(value: &Option<T>, what: &str, hint: &str) -> Result<T>
where
    T: Clone,
{
    value.clone().ok_or_else(|| Error::usage(format!("{what} is missing")).hint(hint))
}

/// The part of the configuration that says where to run.
pub fn executor_options(config: &TrainConfig) -> ExecutorOptions {
    ExecutorOptions {
        threads: config.threads,
        ort_lib: config.ort_lib.clone(),
        allow_software_gpu: config.allow_software_gpu,
        precision: config.precision,
        kernel_cache: runtime::kernel_folder(),
        profile: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("10m"), Ok(600.0));
        assert_eq!(duration("1.5h"), Ok(5400.0));
        assert_eq!(duration("45"), Ok(45.0));
        for bad in ["", "m", "-3s", "10 parsecs", "0"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
