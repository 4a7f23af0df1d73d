//! Augmentation: small shifts of images.

use crate::error::{Error, Result};
use crate::onnx::Tensor;
use rand::{Rng, RngExt};

/// What comes in at the edge an image is shifted away from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Fill {
    /// What left at the opposite edge, as `torch.roll` does.
    #[default]
    Roll,
    Zero,
}

/// A shift in pixels, downwards and to the right.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shift {
    pub down: isize,
    pub right: isize,
}

impl Shift {
    /// Each direction drawn evenly from `−max…max`.
    pub fn draw(max: usize, rng: &mut impl Rng) -> Self {
        let max = max.min(i32::MAX as usize) as i32;
        let mut side = || rng.random_range(-max..=max) as isize;
        Self { down: side(), right: side() }
    }
}

/// Shifts a batch of images, `N × C × H × W`: image `i` by `shifts[i % shifts.len()]`, so one shift moves the
/// whole batch.
pub fn shift_images(batch: &Tensor, shifts: &[Shift], fill: Fill) -> Result<Tensor> {
    let &[_, channels, height, width] = batch.shape() else {
        return Err(Error::tensor("", format!("shifting needs N × C × H × W, not {:?}", batch.shape())));
    };
    let size = batch.dtype().size().unwrap_or(0);
    let (row, plane) = (width * size, height * width * size);
    if shifts.is_empty() || plane == 0 {
        return Ok(batch.clone());
    }
    let source = batch.bytes();
    let mut moved = vec![0u8; source.len()];
    for (i, (from, to)) in source.chunks_exact(plane).zip(moved.chunks_exact_mut(plane)).enumerate() {
        let shift = shifts[i / channels.max(1) % shifts.len()];
        for (y, to) in to.chunks_exact_mut(row).enumerate() {
            let Some(y) = origin(y, shift.down, height, fill) else { continue };
            shift_row(&from[y * row..][..row], to, shift.right, size, fill);
        }
    }
    Tensor::new(batch.dtype(), batch.shape(), moved)
}

/// Where the pixel at `at` comes from; `None` for an edge filled with zeros.
fn origin(at: usize, shift: isize, length: usize, fill: Fill) -> Option<usize> {
    let from = at as isize - shift;
    match fill {
        Fill::Roll => Some(from.rem_euclid(length as isize) as usize),
        Fill::Zero => usize::try_from(from).ok().filter(|&f| f < length),
    }
}

fn shift_row(from: &[u8], to: &mut [u8], right: isize, size: usize, fill: Fill) {
    let width = (from.len() / size) as isize;
    let by = match fill {
        Fill::Roll => right.rem_euclid(width),
        Fill::Zero => right.clamp(-width, width),
    };
    let cut = by.unsigned_abs() * size;
    if by >= 0 {
        to[cut..].copy_from_slice(&from[..from.len() - cut]);
        if fill == Fill::Roll {
            to[..cut].copy_from_slice(&from[from.len() - cut..]);
        }
    } else {
        to[..from.len() - cut].copy_from_slice(&from[cut..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Tensor {
        Tensor::f32(&[1, 1, 2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    }
    fn shifted(down: isize, right: isize, fill: Fill) -> Vec<f32> {
        shift_images(&image(), &[Shift { down, right }], fill).unwrap().to_f32().into_owned()
    }

    #[test]
    fn roll_is_torch_roll() {
        // torch.roll(x, (1, 1), (2, 3)) and torch.roll(x, (0, -1), (2, 3))
        assert_eq!(shifted(1, 1, Fill::Roll), [6.0, 4.0, 5.0, 3.0, 1.0, 2.0]);
        assert_eq!(shifted(0, -1, Fill::Roll), [2.0, 3.0, 1.0, 5.0, 6.0, 4.0]);
    }

    #[test]
    fn zeros_come_in_at_the_edge() {
        assert_eq!(shifted(0, 2, Fill::Zero), [0.0, 0.0, 1.0, 0.0, 0.0, 4.0]);
        assert_eq!(shifted(-1, -1, Fill::Zero), [5.0, 6.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(shifted(9, -9, Fill::Zero), [0.0; 6]);
    }

    #[test]
    fn every_image_can_have_its_own_shift() {
        let two = Tensor::f32(&[2, 1, 1, 2], &[1.0, 2.0, 3.0, 4.0]);
        let shifts = [Shift::default(), Shift { down: 0, right: 1 }];
        let moved = shift_images(&two, &shifts, Fill::Roll).unwrap();
        assert_eq!(&*moved.to_f32(), [1.0, 2.0, 4.0, 3.0]);
    }
}
