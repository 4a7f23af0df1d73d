use crate::chain::{self, Arg, Elements, Op, Step};
use crate::{Axis, Chain, Planes, Pool, Room, Spread, Vectors};

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

pub fn noise(count: usize, seed: u32) -> Vec<f32> {
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
fn rows_are_summed_where_they_belong() {
    let rows = noise(5 * 3, 1);
    let row = |i: usize| &rows[3 * i..3 * i + 3];
    let mut sums = [f32::NAN; 6];
    // Places 2 and 3 of five; the others are somebody else's.
    crate::add_rows(&[3, 0, 2, 3, 4], &rows, 3, 2, &mut sums);
    let both: Vec<f32> = row(0).iter().zip(row(3)).map(|(a, b)| a + b).collect();
    assert_eq!((&sums[..3], &sums[3..]), (row(2), &both[..]));
    crate::add_rows(&[0], &[], 0, 0, &mut []);
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
        Vectors::all().for_each(|vectors| agree(vectors, down, along, &mut room));
        seen += 1;
    }
    assert!(seen > 1_000, "{seen} geometries");
}

fn agree(vectors: Vectors, down: Axis, along: Axis, room: &mut Room) {
    let by = |mut planes: Planes| {
        planes.vectors = vectors;
        planes
    };
    let planes = by(Planes::new(down, along));
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
    if let Some(turned) = Planes::turned(down, along).map(by) {
        let reversed: Vec<f32> = w.iter().rev().copied().collect();
        let mut x = vec![f32::NAN; x.len()];
        turned.convolve(&y, &reversed, 0.5, &mut x, room);
        assert_close("turned", &x, &expected[2], (&down, &along));
    }
    for (i, what) in ["convolve", "correlate", "scatter"].into_iter().enumerate() {
        assert_close(what, &found[i], &expected[i], (&down, &along));
    }
}

/// One element of a step, by the definition.
fn element(op: Op, args: &[f32]) -> f32 {
    let truth = |holds: bool| if holds { 1.0 } else { 0.0 };
    let (a, b, c) = (args[0], args.get(1).copied().unwrap_or(0.0), args.get(2).copied().unwrap_or(0.0));
    match op {
        Op::Add => a + b,
        Op::Sub => a - b,
        Op::Mul => a * b,
        Op::Div => a / b,
        Op::Max if a.is_nan() || b.is_nan() => f32::NAN,
        Op::Min if a.is_nan() || b.is_nan() => f32::NAN,
        Op::Max => a.max(b),
        Op::Min => a.min(b),
        Op::Greater => truth(a > b),
        Op::GreaterOrEqual => truth(a >= b),
        Op::Less => truth(a < b),
        Op::LessOrEqual => truth(a <= b),
        Op::Equal => truth(a == b),
        Op::And => truth(a != 0.0 && b != 0.0),
        Op::Or => truth(a != 0.0 || b != 0.0),
        Op::Not => truth(a == 0.0),
        Op::Neg => -a,
        Op::Abs => a.abs(),
        Op::Sign if a == 0.0 => 0.0,
        Op::Sign => a.signum(),
        Op::Sqrt => a.sqrt(),
        Op::Reciprocal => 1.0 / a,
        Op::Relu if a.is_nan() => a,
        Op::Relu => a.max(0.0),
        Op::Copy => a,
        Op::Where => [c, b][usize::from(a != 0.0)],
    }
}

const OPS: [Op; 22] = [
    Op::Add,
    Op::Sub,
    Op::Mul,
    Op::Div,
    Op::Max,
    Op::Min,
    Op::Greater,
    Op::GreaterOrEqual,
    Op::Less,
    Op::LessOrEqual,
    Op::Equal,
    Op::And,
    Op::Or,
    Op::Not,
    Op::Neg,
    Op::Abs,
    Op::Sign,
    Op::Sqrt,
    Op::Reciprocal,
    Op::Relu,
    Op::Copy,
    Op::Where,
];

/// By the definition: the place of element `i` of a tensor of `sizes` in one that has some of its axes.
fn source(sizes: &[usize], own: &[bool], mut i: usize) -> usize {
    let mut places = vec![];
    for &size in sizes.iter().rev() {
        places.push(i % size);
        i /= size;
    }
    let axes = sizes.iter().zip(own).zip(places.into_iter().rev()).filter(|((_, own), _)| **own);
    axes.fold(0, |at, ((size, _), place)| at * size + place)
}

/// Every operation in turn, on values chosen by `seed` among inputs of every spread, constants and earlier steps.
fn random_chain(seed: u32) -> Vec<Step> {
    let mut choices = noise(400, seed).into_iter().map(|v| ((v + 1.0) * 500.0) as usize);
    let mut next = |below: usize| choices.next().unwrap_or(0) % below;
    let step = |(i, op): (usize, Op)| {
        let args = (0..op.arity()).map(|_| match next(3) {
            0 if i > 0 => Arg::Step(next(i)),
            1 => Arg::Constant(next(7) as f32 - 3.0),
            _ => Arg::Input(next(8)),
        });
        Step { op, args: args.collect() }
    };
    OPS.into_iter().chain(OPS).enumerate().map(step).collect()
}

#[test]
fn chains_agree_with_the_definition() {
    // Longer than several blocks, and not a multiple of any.
    const SIZES: [usize; 4] = [3, 11, 35, 2];
    const LEN: usize = 3 * 11 * 35 * 2;
    let own = [
        [true, true, true, true],
        [false, false, false, false],
        [true, false, true, false],
        [false, true, false, false],
        [true, false, false, true],
        [true, true, true, true],
        [false, true, true, true],
        [true, true, true, false],
    ];
    let spreads = own.map(|own| Spread::new(SIZES.into_iter().zip(own)).expect("few elements"));
    let floats: Vec<Vec<f32>> = spreads.iter().zip(1..).map(|(s, seed)| noise(s.len(), seed)).collect();
    let mask: Vec<u8> = floats[5].iter().map(|&v| u8::from(v > 0.2) * 3).collect();
    let (outputs, mut room) = ([43, 2, 30, 21], chain::Room::default());
    for (vectors, seed) in Vectors::all().flat_map(|vectors| (0..40).map(move |seed| (vectors, seed))) {
        let steps = random_chain(seed);
        let mut chain = Chain::new(LEN, spreads.to_vec(), &steps, &outputs).expect("a sound chain");
        chain.vectors = vectors;
        let mut inputs: Vec<Elements> = floats.iter().map(|f| Elements::Floats(f)).collect();
        inputs[5] = Elements::Bytes(&mask);
        let mut found = vec![vec![7.0f32; LEN]; outputs.len()];
        // In two parts, of which the second begins anywhere.
        for (from, to) in [(0, 900), (900, LEN)] {
            let mut parts: Vec<&mut [f32]> = found.iter_mut().map(|f| &mut f[from..to]).collect();
            chain.run(&inputs, &mut parts, from, &mut room);
        }
        for i in 0..LEN {
            let mut values = vec![];
            for step in &steps {
                let args = step.args.iter().map(|arg| match *arg {
                    Arg::Constant(value) => value,
                    Arg::Step(made) => values[made],
                    Arg::Input(5) => f32::from(u8::from(mask[i] != 0)),
                    Arg::Input(input) => floats[input][source(&SIZES, &own[input], i)],
                });
                values.push(element(step.op, &args.collect::<Vec<_>>()));
            }
            for (found, &step) in found.iter().zip(&outputs) {
                let (found, expected) = (found[i], values[step]);
                let same = found == expected || (found.is_nan() && expected.is_nan());
                assert!(
                    same,
                    "{vectors:?}, chain {seed}, step {step}, element {i}: {found} instead of {expected}"
                );
            }
        }
    }
}

#[test]
fn unsound_chains_are_refused() {
    let make = |len: usize, op: Op, args: &[Arg], output: usize| {
        let spread = Spread::new([(8, true)]).expect("few elements");
        Chain::new(len, vec![spread], &[Step { op, args: args.to_vec() }], &[output])
    };
    assert!(make(8, Op::Neg, &[Arg::Input(0)], 0).is_some());
    assert!(make(4, Op::Neg, &[Arg::Input(0)], 0).is_none());
    assert!(make(8, Op::Add, &[Arg::Input(0)], 0).is_none());
    assert!(make(8, Op::Neg, &[Arg::Input(1)], 0).is_none());
    assert!(make(8, Op::Neg, &[Arg::Step(0)], 0).is_none());
    assert!(make(8, Op::Neg, &[Arg::Input(0)], 1).is_none());
    assert!(Spread::new([(3, true), (0, false)]).is_none());
    assert!(Spread::new([(usize::MAX, true), (2, false)]).is_none());
}

/// By the definition: maxima and cotangents of windows, with `x` of few different values so that many are equal.
fn pooled(down: Axis, along: Axis, shared: bool) {
    let mut pool = Pool::new(down, along, shared);
    let x: Vec<f32> = noise(pool.dense(), 1).iter().map(|v| (v * 3.0).round()).collect();
    let dy = noise(pool.coarse(), 2);
    let mut windows = vec![vec![]; pool.coarse()];
    pairs(&down, &along, |o, _, i| windows[o].push(i));
    let maximum = |window: &Vec<usize>| window.iter().map(|&i| x[i]).fold(f32::NEG_INFINITY, f32::max);
    let y: Vec<f32> = windows.iter().map(maximum).collect();
    let mut expected = vec![0.0; x.len()];
    for ((window, &maximum), &cotangent) in windows.iter().zip(&y).zip(&dy) {
        let winners: Vec<usize> = window.iter().copied().filter(|&i| x[i] == maximum).collect();
        let count = if shared { winners.len() } else { 1 };
        winners.iter().take(count).for_each(|&i| expected[i] += f64::from(cotangent) / count as f64);
    }
    for vectors in Vectors::all() {
        pool.vectors = vectors;
        // Twice the same plane.
        let mut found = vec![f32::NAN; 2 * x.len()];
        pool.gradient(&x.repeat(2), &y.repeat(2), &dy.repeat(2), &mut found);
        for found in found.chunks_exact(x.len()) {
            assert_close("max-pooling", found, &expected, (&down, &along));
        }
    }
}

#[test]
fn gradients_of_max_pooling_agree_with_the_definition() {
    let axis = |dense, kernel, stride, dilation, begin, coarse| Axis {
        dense,
        coarse,
        kernel,
        stride,
        dilation,
        begin,
    };
    for shared in [false, true] {
        pooled(axis(8, 2, 2, 1, 0, 4), axis(12, 2, 2, 1, 0, 6), shared);
        // A row and a column that no window sees.
        pooled(axis(9, 2, 2, 1, 0, 4), axis(11, 2, 2, 1, 0, 5), shared);
        // The last windows see half as much.
        pooled(axis(9, 2, 2, 1, 0, 5), axis(11, 2, 2, 1, 0, 6), shared);
        pooled(axis(14, 3, 2, 1, 1, 7), axis(15, 3, 2, 1, 1, 8), shared);
        pooled(axis(10, 3, 1, 2, 2, 10), axis(7, 2, 1, 3, 0, 4), shared);
        pooled(axis(1, 1, 1, 1, 0, 1), axis(33, 5, 3, 1, 2, 11), shared);
    }
}
