//! `--tensorboard DIR`: losses and validations as event files, one folder an arm and seed.
//!
//! An event file is a sequence of TFRecords (length, its checksum, payload, its checksum; CRC-32C, masked), each an
//! `Event` message of TensorFlow's `event.proto`: the first holds the version of the format, the others a
//! summary with one named number each.

use crate::error::{Error, Result};
use crate::train::{Event, StepTaken};
use crc::{CRC_32_ISCSI, Crc};
use protobuf::CodedOutputStream;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const CHECKSUM: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// A folder of event files that is being written.
pub struct Board {
    folder: PathBuf,
    file: Option<BufWriter<File>>,
    /// How many files were begun: part of their names, since an arm may go on within the same second.
    files: usize,
    failed: Option<Error>,
}

impl Board {
    pub fn open(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        Ok(Self { folder: folder.to_owned(), file: None, files: 0, failed: None })
    }

    pub fn event(&mut self, event: &Event<'_>) {
        let done = match *event {
            Event::ArmStart { arm, seed, .. } => self.begin(arm, seed),
            Event::Validation { step, metric, .. } => self.number("validation", step, metric),
            Event::ArmEnd { .. } | Event::Fold { .. } => self.end(),
            _ => Ok(()),
        };
        self.keep(done);
    }

    pub fn step(&mut self, taken: &StepTaken) {
        let done = self
            .number("loss", taken.step, taken.loss)
            .and_then(|()| self.number("learning rate", taken.step, taken.learning_rate));
        self.keep(done);
    }

    /// Says what couldn't be written.
    pub fn finish(mut self) -> Result<()> {
        let done = self.end();
        self.keep(done);
        self.failed.map_or(Ok(()), Err)
    }

    fn keep(&mut self, done: std::io::Result<()>) {
        if let (Err(error), None) = (done, &self.failed) {
            self.failed =
                Some(Error::io(&self.folder, error).hint("the model is written; its curves are not"));
            self.file = None;
        }
    }

    fn begin(&mut self, arm: &str, seed: u64) -> std::io::Result<()> {
        let folder = self.folder.join(format!("{}, seed {seed}", arm.replace(['/', '\\'], "-")));
        std::fs::create_dir_all(&folder)?;
        let name = format!("events.out.tfevents.{:010}.onnx-merge.{:04}", wall_time() as u64, self.files);
        self.files += 1;
        self.file = Some(BufWriter::new(File::create(folder.join(name))?));
        self.record(0, |message| message.write_string(3, "brain.Event:2"))
    }

    fn end(&mut self) -> std::io::Result<()> {
        self.file.take().map_or(Ok(()), |mut file| file.flush())
    }

    /// `Event { summary: Summary { value: [Value { tag, simple_value }] } }`.
    fn number(&mut self, tag: &str, step: usize, value: f64) -> std::io::Result<()> {
        let own = message(|m| {
            m.write_string(1, tag)?;
            m.write_float(2, value as f32)
        })?;
        let summary = message(|m| m.write_bytes(1, &own))?;
        self.record(step, |m| m.write_bytes(5, &summary))?;
        match (tag, &mut self.file) {
            ("validation", Some(file)) => file.flush(),
            _ => Ok(()),
        }
    }

    /// One `Event`: its wall time, its step, and what `fill` adds.
    fn record(
        &mut self,
        step: usize,
        fill: impl FnOnce(&mut CodedOutputStream<'_>) -> protobuf::Result<()>,
    ) -> std::io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let payload = message(|m| {
            m.write_double(1, wall_time())?;
            m.write_int64(2, step as i64)?;
            fill(m)
        })?;
        let length = (payload.len() as u64).to_le_bytes();
        file.write_all(&length)?;
        file.write_all(&masked_checksum(&length))?;
        file.write_all(&payload)?;
        file.write_all(&masked_checksum(&payload))
    }
}

fn message(
    fill: impl FnOnce(&mut CodedOutputStream<'_>) -> protobuf::Result<()>,
) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![];
    let mut stream = CodedOutputStream::vec(&mut bytes);
    let filled = fill(&mut stream).and_then(|()| stream.flush());
    drop(stream);
    filled.map_err(std::io::Error::other)?;
    Ok(bytes)
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// TFRecord's checksum: a CRC of data that holds its own CRCs would be weak, so they are rotated and shifted.
fn masked_checksum(bytes: &[u8]) -> [u8; 4] {
    let crc = CHECKSUM.checksum(bytes);
    crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against TensorFlow's own: the header of a record of 24 bytes.
    #[test]
    fn checksums_are_masked_as_in_tfrecords() {
        assert_eq!(masked_checksum(&24u64.to_le_bytes()), [0xa3, 0x7f, 0x4b, 0x22]);
    }

    #[test]
    fn records_are_framed_and_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut board = Board::open(folder.path()).unwrap();
        board.event(&Event::ArmStart { arm: "lpka, gate 1", seed: 3, steps: 2 });
        board.step(&StepTaken { step: 1, loss: 0.5, learning_rate: 0.1, seconds: 0.0 });
        board.event(&Event::ArmEnd { arm: "lpka, gate 1", seed: 3, metric: 0.5 });
        board.finish().unwrap();
        let run = folder.path().join("lpka, gate 1, seed 3");
        let file = std::fs::read_dir(run).unwrap().next().unwrap().unwrap().path();
        let bytes = std::fs::read(file).unwrap();
        let (mut rest, mut records) = (&bytes[..], 0);
        while let Some((length, after)) = rest.split_first_chunk::<8>() {
            let size = u64::from_le_bytes(*length) as usize;
            assert_eq!(after[..4], masked_checksum(length));
            assert_eq!(after[4 + size..8 + size], masked_checksum(&after[4..4 + size]));
            (rest, records) = (&after[8 + size..], records + 1);
        }
        assert_eq!((rest.len(), records), (0, 3));
    }
}
