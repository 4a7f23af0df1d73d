//! The readers of data: `.npy`, `.npz`, tables.

use crate::edits::{Edit, Seed, fixture, scratch};
use crate::target;
use bolero::TypeGenerator;
use onnx_merge::data::{DataOptions, Labels, open};
use std::io::Write;

/// An array as its header has it.
#[derive(Clone, Debug, TypeGenerator)]
pub struct Array {
    kind: u8,
    columns_first: bool,
    shape: Vec<Size>,
    /// As many bytes as the shape asks for, as far as that is few.
    honest: bool,
    length: u8,
    edits: Vec<Edit>,
}

#[derive(Clone, Debug, TypeGenerator)]
enum Size {
    Small(u8),
    Any(u64),
}

const KINDS: [&str; 14] =
    ["<f4", "<f8", ">f4", "<f2", "<i8", ">i2", "|i1", "|u1", "|b1", "<u4", "|O", "<c8", "<U3", "<M8[ns]"];

impl Array {
    fn bytes(&self) -> Vec<u8> {
        let kind = KINDS[usize::from(self.kind) % KINDS.len()];
        let sizes: Vec<u64> = self.shape.iter().take(4).map(Size::value).collect();
        let shape: String = sizes.iter().map(|d| format!("{d}, ")).collect();
        let order = if self.columns_first { "True" } else { "False" };
        let text = format!("{{'descr': '{kind}', 'fortran_order': {order}, 'shape': ({shape}), }}\n");
        let width = kind.chars().rev().find_map(|c| c.to_digit(10)).unwrap_or(1);
        let asked = sizes.iter().try_fold(u64::from(width), |n, &d| n.checked_mul(d));
        let length = asked.filter(|&n| self.honest && n < 4096).unwrap_or(self.length.into());
        let head = [b"\x93NUMPY\x01\x00", &(text.len() as u16).to_le_bytes()[..], text.as_bytes()].concat();
        let values = (0..length).map(|i| i as u8 % 3);
        Seed::new(head.into_iter().chain(values).collect()).edited(few(&self.edits))
    }
}

impl Size {
    fn value(&self) -> u64 {
        match *self {
            Size::Small(v) => u64::from(v % 6),
            Size::Any(v) => v,
        }
    }
}

fn few(edits: &[Edit]) -> &[Edit] {
    edits.get(..3).unwrap_or(edits)
}

#[derive(Debug, TypeGenerator)]
pub enum Data {
    Npy(Array),
    Pair(Array, Array),
    Npz { arrays: Vec<(u8, bool, Array)>, edits: Vec<Edit> },
    Fixture { edits: Vec<Edit> },
    Table { tabs: bool, cells: Vec<Vec<Cell>>, edits: Vec<Edit> },
}

#[derive(Clone, Debug, TypeGenerator)]
pub enum Cell {
    Number(i8),
    Real(f32),
    Name(u8),
    Quoted(char),
    Any(char),
}

impl Cell {
    fn text(&self) -> String {
        match self {
            Cell::Number(v) => v.to_string(),
            Cell::Real(v) => v.to_string(),
            Cell::Name(v) => ["y", "label", "a", "", " ", "nan", "-inf", "1e999"][usize::from(*v) % 8].into(),
            Cell::Quoted(c) => format!("\"{c}\""),
            Cell::Any(c) => c.to_string(),
        }
    }
}

fn archive(arrays: &[(u8, bool, Array)]) -> Vec<u8> {
    use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};
    let mut archive = ZipWriter::new(std::io::Cursor::new(vec![]));
    for (name, deflated, array) in arrays.iter().take(3) {
        let name = ["x.npy", "y.npy", "arr_0.npy", "arr_1.npy", "../z.npy", "other"][usize::from(*name) % 6];
        let method = if *deflated { CompressionMethod::Deflated } else { CompressionMethod::Stored };
        let options = SimpleFileOptions::default().compression_method(method);
        // A name twice is refused; the archive goes on without.
        if archive.start_file(name, options).is_ok() {
            archive.write_all(&array.bytes()).expect("an entry");
        }
    }
    archive.finish().expect("an archive").into_inner()
}

fn table(tabs: bool, rows: &[Vec<Cell>]) -> Vec<u8> {
    let separator = if tabs { "\t" } else { "," };
    let row = |cells: &Vec<Cell>| cells.iter().take(4).map(Cell::text).collect::<Vec<_>>().join(separator);
    rows.iter().take(6).map(row).collect::<Vec<_>>().join("\n").into_bytes()
}

target!(data, 400, open_data);

fn open_data(data: &Data) {
    let (name, bytes) = match data {
        Data::Npy(array) => ("x.npy", array.bytes()),
        Data::Pair(x, y) => {
            std::fs::write(scratch("y.npy"), y.bytes()).expect("a file");
            std::fs::write(scratch("x.npy"), x.bytes()).expect("a file");
            return check(&format!("{},{}", scratch("x.npy").display(), scratch("y.npy").display()));
        }
        Data::Npz { arrays, edits } => ("data.npz", Seed::new(archive(arrays)).edited(few(edits))),
        Data::Fixture { edits } => {
            let val = std::fs::read(fixture("digits_val.npz")).expect("a fixture");
            ("data.npz", Seed::new(val).edited(few(edits)))
        }
        Data::Table { tabs, cells, edits } => {
            let name = if *tabs { "data.tsv" } else { "data.csv" };
            let text = table(*tabs, cells);
            (name, if text.is_empty() { text } else { Seed::new(text).edited(few(edits)) })
        }
    };
    let path = scratch(name);
    std::fs::write(&path, bytes).expect("a file");
    check(&path.display().to_string());
}

/// What opens is as long as it says.
fn check(path: &str) {
    let Ok(set) = open(path.as_ref(), &DataOptions::default()) else { return };
    assert!(set.rows() > 0);
    for column in &set.inputs {
        assert_eq!(column.values.to_f64().len(), column.values.len());
        assert_eq!(column.values.shape()[0], set.rows());
    }
    assert!(set.labels.as_ref().is_none_or(|labels: &Labels| labels.rows() == set.rows()));
}
