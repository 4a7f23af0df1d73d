//! `merge.toml`: a run as a file, written beside the output, repeated with `--config`.

use crate::data::DataOptions;
use crate::error::{Error, Result};
use crate::train::TrainConfig;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Everything a run depends on. Relative paths are relative to the file's folder.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<PathBuf>,
    /// Sources beside the first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub more_sources: Vec<PathBuf>,
    /// The source at earlier times, the earliest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trajectory: Vec<PathBuf>,
    pub target: PathBuf,
    pub output: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<PathBuf>,
    pub data: DataConfig,
    pub train: TrainConfig,
}

/// The data of a run.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DataConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unlabelled: Option<PathBuf>,
    /// What the source is trained on beside the target, where that is other data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub joint: Option<PathBuf>,
    pub options: DataOptions,
    /// How the source wants the same data, where it differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_options: Option<DataOptions>,
}

impl Config {
    /// Reads a file; its relative paths become relative to the current folder.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).map_err(|e| Error::usage(format!("{}: {e}", path.display())))?;
        let mut config: Config =
            toml::from_str(&text).map_err(|e| Error::usage(format!("{}: {e}", path.display())))?;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        config.each_path(|p| *p = join(&folder, p));
        Ok(config)
    }

    /// Writes the file beside the output, with paths relative to that folder where they lie inside it, else
    /// absolute. Returns where it was written. The number of threads is written down too: sums are rounded by it.
    pub fn write_beside_output(&self) -> Result<PathBuf> {
        let folder = self.output.parent().unwrap_or(Path::new("")).to_owned();
        let mut config = self.clone();
        config.train.threads.get_or_insert_with(crate::runtime::all_threads);
        let base = absolute(&folder);
        config.each_path(|p| *p = relative(&base, p));
        let body =
            toml::to_string(&config).map_err(|e| Error::usage(format!("this run has no file form: {e}")))?;
        let name = self.output.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mark = format!("# Repeats the run that made {name}: onnx-merge --config FILE\n");
        let mut path = folder.join("merge.toml");
        // Another run's file, or one somebody wrote, is not overwritten.
        if std::fs::read_to_string(&path).is_ok_and(|text| !text.starts_with(&mark)) {
            path = folder.join(format!("{name}.merge.toml"));
        }
        crate::onnx::atomic::write(&path, (mark + &body).as_bytes())?;
        Ok(path)
    }

    /// All sources.
    pub fn sources(&self) -> impl Iterator<Item = &PathBuf> {
        self.source.iter().chain(&self.more_sources)
    }

    fn each_path(&mut self, mut f: impl FnMut(&mut PathBuf)) {
        f(&mut self.target);
        f(&mut self.output);
        let data = &mut self.data;
        let data = [&mut data.train, &mut data.val, &mut data.test, &mut data.unlabelled, &mut data.joint];
        for path in [&mut self.source, &mut self.report].into_iter().chain(data) {
            path.iter_mut().for_each(&mut f);
        }
        self.more_sources.iter_mut().chain(&mut self.trajectory).for_each(&mut f);
        self.train.ort_lib.iter_mut().for_each(f);
    }
}

/// `x.npy,y.npy` is two paths in one.
fn parts(path: &Path, f: impl Fn(&Path) -> PathBuf) -> PathBuf {
    match path.to_str().and_then(|p| p.split_once(',')).filter(|_| !path.exists()) {
        Some((x, y)) => format!("{},{}", f(Path::new(x)).display(), f(Path::new(y)).display()).into(),
        None => f(path),
    }
}

fn join(folder: &Path, path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { path.to_owned() } else { parts(path, |p| folder.join(p)) }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(if path.as_os_str().is_empty() { Path::new(".") } else { path })
        .unwrap_or_else(|_| path.to_owned())
}

fn relative(base: &Path, path: &Path) -> PathBuf {
    parts(path, |p| {
        let path = absolute(p);
        path.strip_prefix(base).map(Path::to_owned).unwrap_or(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_survives_being_written_and_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config {
            target: "/models/t.onnx".into(),
            output: dir.path().join("out.onnx"),
            ..Default::default()
        };
        config.data.train = Some(dir.path().join("d.npz"));
        config.data.options.scale = Some(1.0 / 255.0);
        config.train.map = vec!["a*=b*".into()];
        let here = Config::read(&config.write_beside_output().unwrap()).unwrap();
        assert_eq!(here.train.threads, Some(crate::runtime::all_threads()));
        config.train.threads = Some(3);
        let path = config.write_beside_output().unwrap();
        assert_eq!(path, dir.path().join("merge.toml"));
        assert_eq!(Config::read(&path).unwrap(), config);
        let other = Config { output: dir.path().join("two.onnx"), ..config.clone() };
        assert_eq!(other.write_beside_output().unwrap(), dir.path().join("two.onnx.merge.toml"));
        assert_eq!(config.write_beside_output().unwrap(), path);
    }

    #[test]
    fn unknown_keys_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("merge.toml");
        std::fs::write(&path, "[train]\nlearning-rate = 1\n").unwrap();
        let error = Config::read(&path).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("learning-rate"), "{error}");
    }
}
