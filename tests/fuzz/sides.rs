//! External data: no name leads out of the model's folder.

use crate::edits::{field, model_around, scratch, tensor};
use crate::target;
use bolero::TypeGenerator;
use onnx_merge::onnx::{self, DType};
use std::path::{Path, PathBuf};

/// A part of a side file's name.
#[derive(Clone, Debug, TypeGenerator)]
enum Part {
    Side,
    Folder,
    Up,
    Here,
    Nothing,
    /// A link to a file outside.
    LinkOut,
    /// A link to the folder outside.
    LinkToFolder,
    /// A link from the inner folder to the one around it.
    LinkUp,
    Secret,
    Home,
    Any(char),
}

impl Part {
    fn text(&self, home: &Path) -> String {
        match self {
            Part::Side => "side.bin".into(),
            Part::Folder => "inner".into(),
            Part::Up => "..".into(),
            Part::Here => ".".into(),
            Part::Nothing => String::new(),
            Part::LinkOut => "out.bin".into(),
            Part::LinkToFolder => "outside".into(),
            Part::LinkUp => "up".into(),
            Part::Secret => "secret.bin".into(),
            Part::Home => home.display().to_string(),
            Part::Any(c) => c.to_string(),
        }
    }
}

#[derive(Debug, TypeGenerator)]
pub struct External {
    parts: Vec<Part>,
    backslashes: bool,
    offset: Option<u64>,
    length: Option<u64>,
    small: bool,
    count: u8,
}

const SECRET: u8 = 0xA5;

/// A folder with a side file, an inner folder, and links that lead out; beside it, what must not be read.
fn home() -> PathBuf {
    let home = scratch("home");
    if home.exists() {
        return home;
    }
    let outside = scratch("outside");
    for folder in [&home.join("inner"), &outside] {
        std::fs::create_dir_all(folder).expect("a folder");
    }
    for file in ["side.bin", "inner/side.bin"] {
        std::fs::write(home.join(file), [1; 64]).expect("a file");
    }
    std::fs::write(outside.join("secret.bin"), [SECRET; 64]).expect("a file");
    #[cfg(unix)]
    for (to, link) in [
        (outside.join("secret.bin"), "out.bin"),
        (outside.clone(), "outside"),
        (PathBuf::from(".."), "inner/up"),
        (PathBuf::from("../.."), "up"),
    ] {
        std::os::unix::fs::symlink(to, home.join(link)).expect("a link");
    }
    home
}

target!(external_data, 400, stays_in_its_folder);

fn stays_in_its_folder(external: &External) {
    let home = home();
    let parts: Vec<String> = external.parts.iter().take(6).map(|part| part.text(&home)).collect();
    let location = parts.join(if external.backslashes { "\\" } else { "/" });
    let number = |v: u64| (if external.small { v % 80 } else { v }).to_string();
    let entries = [
        ("location", Some(location)),
        ("offset", external.offset.map(number)),
        ("length", external.length.map(number)),
    ];
    let mut payload = vec![14 << 3, 1];
    for (key, value) in entries {
        let Some(value) = value else { continue };
        payload.extend(field(13, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat()));
    }
    let path = home.join("model.onnx");
    std::fs::write(&path, model_around(&tensor(DType::U8, external.count.into(), &payload))).expect("a file");
    let Ok(file) = onnx::read(&path) else { return };
    let inside = home.canonicalize().expect("a folder");
    for side in file.side_files() {
        let real = side.canonicalize().expect("a file");
        assert!(real.starts_with(&inside), "{} was read", real.display());
    }
    let read = file.model.graph.initializers.values().flat_map(|t| t.bytes().to_vec());
    assert!(!read.into_iter().any(|byte| byte == SECRET), "the secret was read");
}
