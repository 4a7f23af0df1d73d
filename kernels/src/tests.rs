use crate::{Axis, Operand, Planes, Room, select};

/// Places (output, tap, element) of one axis.
fn places(axis: &Axis) -> Vec<(usize, usize, usize)> {
    let all = (0..axis.coarse).flat_map(|o| (0..axis.kernel).map(move |k| (o, k)));
    all.filter_map(|(o, k)| {
        let at = (o * axis.stride + k * axis.dilation).checked_sub(axis.begin)?;
        (at < axis.dense).then_some((o, k, at))
    })
    .collect()
}

/// By the definition, in float64: `each(output, tap, element)` for all that belong together.
fn pairs(down: &Axis, along: &Axis, mut each: impl FnMut(usize, usize, usize)) {
    for &(oy, ky, iy) in &places(down) {
        for &(ox, kx, ix) in &places(along) {
            each(oy * along.coarse + ox, ky * along.kernel + kx, iy * along.dense + ix);
        }
    }
}

fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn assert_close(what: &str, found: &[f32], expected: &[f64], planes: (&Axis, &Axis)) {
    let largest = expected.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    for (i, (&f, &e)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(f) - e).abs() < 1e-5 * largest, "{what}, {planes:?}: {f} instead of {e} at {i}");
    }
}

#[test]
fn planes_agree_with_the_definition() {
    let mut room = Room::default();
    let mut seen = 0;
    let mut axes = vec![];
    for (dense, kernel) in [1usize, 4, 7, 17, 40].into_iter().flat_map(|d| [1, 2, 3, 5].map(|k| (d, k))) {
        for (stride, dilation) in [1, 2, 3].into_iter().flat_map(|s| [1, 2, 3].map(|d| (s, d))) {
            for (begin, end) in [0, 1, 2].into_iter().flat_map(|b| [0, 1].map(|e| (b, e))) {
                let reach = (kernel - 1) * dilation + 1;
                let Some(rest) = (dense + begin + end).checked_sub(reach) else { continue };
                axes.push(Axis { dense, coarse: rest / stride + 1, kernel, stride, dilation, begin });
            }
        }
    }
    // A few geometries for the other axis.
    let others = [
        Axis { dense: 5, coarse: 5, kernel: 3, stride: 1, dilation: 1, begin: 1 },
        Axis { dense: 6, coarse: 3, kernel: 2, stride: 2, dilation: 1, begin: 0 },
    ];
    let pairs = axes.iter().flat_map(|&axis| others.iter().flat_map(move |&o| [(o, axis), (axis, o)]));
    for (down, along) in pairs {
        agree(down, along, &mut room);
        seen += 1;
    }
    assert!(seen > 1_000, "{seen} geometries");
}

fn agree(down: Axis, along: Axis, room: &mut Room) {
    let planes = Planes::new(down, along);
    let (x, y, w) = (noise(planes.dense(), 1), noise(planes.coarse(), 2), noise(planes.kernel(), 3));
    let mut expected = [vec![0.25; y.len()], vec![0.0; w.len()], vec![0.5; x.len()]];
    pairs(&down, &along, |o, k, i| {
        expected[0][o] += f64::from(w[k]) * f64::from(x[i]);
        expected[1][k] += f64::from(y[o]) * f64::from(x[i]);
        expected[2][i] += f64::from(w[k]) * f64::from(y[o]);
    });
    let mut found = [vec![f32::NAN; y.len()], vec![0.0; w.len()], vec![f32::NAN; x.len()]];
    planes.convolve(&x, &w, 0.25, &mut found[0], room);
    planes.correlate(&x, &y, &mut found[1], room);
    planes.scatter(&y, &w, 0.5, &mut found[2], room);
    for (i, what) in ["convolve", "correlate", "scatter"].into_iter().enumerate() {
        assert_close(what, &found[i], &expected[i], (&down, &along));
    }
}

#[test]
fn every_byte_but_zero_is_true() {
    let (condition, x, y) = ([0, 1, 2, 255], [1.0, 2.0, 3.0, 4.0], [f32::NAN, -2.0, f32::INFINITY, -4.0]);
    let mut output = [0.0; 4];
    select(&condition, Operand::Each(&x), Operand::One(7.0), &mut output);
    assert_eq!(output, [7.0, 2.0, 3.0, 4.0]);
    select(&condition, Operand::One(7.0), Operand::Each(&y), &mut output);
    assert!(output[0].is_nan() && output[1..] == [7.0; 3]);
    select(&condition, Operand::Each(&x), Operand::Each(&y), &mut output);
    assert!(output[0].is_nan() && output[1..] == [2.0, 3.0, 4.0]);
    select(&condition, Operand::One(1.0), Operand::One(0.0), &mut output);
    assert_eq!(output, [0.0, 1.0, 1.0, 1.0]);
}
