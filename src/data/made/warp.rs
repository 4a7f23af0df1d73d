//! Images turned, stretched, sheared and moved.

use crate::onnx::Tensor;
use rand::{Rng, RngExt};
use std::f64::consts::PI;

/// Most that an image is turned by, either way, in radians.
const TURN: f64 = 25.0 * PI / 180.0;
/// Most of the logarithm of a factor that each side is stretched by, and of how much a shear moves for each pixel down.
const STRETCH: f64 = 0.3;
/// Most that it is moved by, as a share of its size.
const MOVE: f64 = 0.2;

/// An affine map of an image's places.
#[derive(Clone, Copy, Default)]
pub struct Warp {
    turn: f64,
    /// Logarithms, down and to the right.
    stretch: [f64; 2],
    shear: f64,
    /// As shares of height and width.
    moved: [f64; 2],
}

impl Warp {
    /// Each drawn evenly.
    pub fn draw(random: &mut impl Rng) -> Self {
        let mut within = |most: f64| most * (2.0 * random.random::<f64>() - 1.0);
        Self {
            turn: within(TURN),
            stretch: [within(STRETCH), within(STRETCH)],
            shear: within(STRETCH),
            moved: [within(MOVE), within(MOVE)],
        }
    }

    /// Images of one height and width, whatever their number, with so many elements a pixel, interpolated bilinearly; beyond the edge lie the
    /// pixels of the edge.
    pub fn apply(&self, images: &Tensor, [height, width, elements]: [usize; 3]) -> Tensor {
        let old = images.to_f64();
        let corners: Vec<Corners> =
            (0..height * width).map(|at| self.corners([at / width, at % width], [height, width])).collect();
        let mut new: Vec<f64> = Vec::with_capacity(old.len());
        for plane in old.chunks(height * width * elements) {
            for corners in &corners {
                let mixed = |e: usize| {
                    corners.iter().map(|(at, share)| share * plane[at * elements + e]).sum::<f64>()
                };
                new.extend((0..elements).map(mixed));
            }
        }
        if !images.dtype().is_float() {
            new.iter_mut().for_each(|v| *v = v.round());
        }
        Tensor::from_f64(images.dtype(), images.shape(), &new)
    }

    /// What a new pixel is made of.
    fn corners(&self, place: [usize; 2], size: [usize; 2]) -> Corners {
        let off =
            |axis: usize| place[axis] as f64 - middle(size[axis]) - self.moved[axis] * size[axis] as f64;
        let (down, right) = (off(0), off(1));
        let (sin, cos) = self.turn.sin_cos();
        let from = [
            (cos * down + sin * right) * self.stretch[0].exp(),
            (cos * right - sin * down + self.shear * down) * self.stretch[1].exp(),
        ];
        let [(y, below), (x, beside)] = [0, 1].map(|axis| {
            let at = (from[axis] + middle(size[axis])).clamp(0.0, (size[axis] - 1) as f64);
            // The last pixel has none behind it.
            let first = (at as usize).min(size[axis].saturating_sub(2));
            (first, at - first as f64)
        });
        let at = |y: usize, x: usize| y.min(size[0] - 1) * size[1] + x.min(size[1] - 1);
        [
            (at(y, x), (1.0 - below) * (1.0 - beside)),
            (at(y, x + 1), (1.0 - below) * beside),
            (at(y + 1, x), below * (1.0 - beside)),
            (at(y + 1, x + 1), below * beside),
        ]
    }
}

/// Four pixels and their shares.
type Corners = [(usize, f64); 4];

fn middle(size: usize) -> f64 {
    (size - 1) as f64 / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::DType;
    use rand::SeedableRng;

    fn warped(warp: Warp, size: [usize; 2], image: &[f32]) -> Vec<f32> {
        warp.apply(&Tensor::f32(&[1, size[0], size[1]], image), [size[0], size[1], 1]).to_f32().into_owned()
    }

    /// What `torch.nn.functional.grid_sample(padding_mode="border", align_corners=True)` does with the same places.
    #[test]
    fn a_move_repeats_the_edge_and_a_quarter_turn_turns() {
        let image = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];
        let moved = Warp { moved: [0.0, 1.0 / 3.0], ..Warp::default() };
        assert_eq!(warped(moved, [3, 3], &image), [1.0, 1.0, 2.0, 4.0, 4.0, 5.0, 7.0, 7.0, 8.0]);
        let half = Warp { moved: [1.0 / 6.0, 0.0], ..Warp::default() };
        assert_eq!(warped(half, [3, 3], &image), [1.0, 2.0, 3.0, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5]);
        let turned = warped(Warp { turn: PI / 2.0, ..Warp::default() }, [3, 3], &image);
        let expected = [3.0, 6.0, 9.0, 2.0, 5.0, 8.0, 1.0, 4.0, 7.0];
        assert!(turned.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{turned:?}");
    }

    #[test]
    fn pixels_stay_between_the_darkest_and_the_brightest() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let image = Tensor::new(DType::U8, &[2, 5, 9], (0..90).map(|i| 10 + 3 * i % 200).collect()).unwrap();
        let (low, high) = (*image.bytes().iter().min().unwrap(), *image.bytes().iter().max().unwrap());
        for _ in 0..50 {
            let made = Warp::draw(&mut random).apply(&image, [5, 9, 1]);
            assert_eq!((made.dtype(), made.shape()), (DType::U8, image.shape()));
            assert!(made.bytes().iter().all(|v| (low..=high).contains(v)));
        }
        assert_eq!(Warp::default().apply(&image, [5, 9, 1]), image);
        assert_eq!(warped(Warp::default(), [1, 1], &[3.0]), [3.0]);
    }
}
