use super::*;
use crate::tests::noise;

/// Rows, columns and depths on both sides of every size that products are cut to.
const SIZES: [[usize; 3]; 14] = [
    [1, 1, 1],
    [1, 17, 3],
    [5, 16, 0],
    [3, 48, 257],
    [8, 49, 16],
    [9, 31, 15],
    [12, 32, 33],
    [13, 15, 64],
    [14, 64, 100],
    [15, 47, 31],
    [17, 95, 513],
    [65, 100, 256],
    [257, 50, 40],
    [30, 1000, 20],
];

fn assert_close(what: &str, found: &[f32], expected: impl Fn(usize) -> f64) {
    for (i, &found) in found.iter().enumerate() {
        let expected = expected(i);
        assert!((f64::from(found) - expected).abs() < 1e-4, "{what}: {found} instead of {expected} at {i}");
    }
}

/// A matrix with its lines or its depths next to each other, and room between them.
fn matrix(elements: &[f32], lines: usize, depths: usize, across: bool) -> Matrix<'_> {
    match across {
        true => Matrix { elements, line: 1, depth: lines + 3 },
        false => Matrix { elements, line: depths + 1, depth: 1 },
    }
}

/// All of a product by these vectors.
fn make(product: &Product<'_>, vectors: Vectors, [rows, columns]: [usize; 2], c: &mut [f32]) {
    // SAFETY: nobody else has the elements, and only vectors that the processor has are asked for.
    unsafe { product.part_by(vectors, 0..rows, 0..columns, &Shared::new(c)) };
}

#[test]
fn products_agree_with_the_definition() {
    Vectors::all().for_each(agree);
}

fn agree(vectors: Vectors) {
    for [rows, columns, depth] in SIZES {
        for (a_across, b_across, adds) in
            [(false, true, false), (true, true, true), (false, false, true), (true, false, false)]
        {
            let a = noise((rows + 3) * (depth + 1), 1);
            let b = noise((columns + 3) * (depth + 1), 2);
            let (a, b) = (matrix(&a, rows, depth, a_across), matrix(&b, columns, depth, b_across));
            let sum = |i: usize, j: usize| -> f64 {
                let element = |m: &Matrix<'_>, line: usize, k: usize| {
                    f64::from(m.elements[line * m.line + k * m.depth])
                };
                (0..depth).map(|k| element(&a, i, k) * element(&b, j, k)).sum()
            };
            let before = noise(rows * columns, 3);
            let start = |i: usize| if adds { f64::from(before[i]) } else { 0.0 };
            let (a, b) = (Operand::Matrix(a), Operand::Matrix(b));
            let place = Place { start: 0, rows: columns, columns: None };
            let product = Product { a, b, depth, place, adds };
            let what = format!("{vectors:?}, {rows}×{depth}·{depth}×{columns}, {a_across} {b_across}");
            let mut c = before.clone();
            make(&product, vectors, [rows, columns], &mut c);
            assert_close(&what, &c, |i| start(i) + sum(i / columns, i % columns));

            // The same bits, whatever part is made first.
            let (row, column) = (rows / 3, columns / 2);
            let mut in_parts = before.clone();
            let shared = Shared::new(&mut in_parts);
            for (rows, columns) in
                [(row..rows, column..columns), (0..row, 0..columns), (row..rows, 0..column)]
            {
                // SAFETY: one after the other.
                unsafe { product.part_by(vectors, rows, columns, &shared) };
            }
            assert_eq!(c, in_parts, "{what}, in parts");
        }
    }
}

#[test]
fn columns_go_where_they_belong() {
    let (rows, columns, depth) = (19, 130, 21);
    let (a, b) = (noise(rows * depth, 1), noise(columns * depth, 2));
    // Runs of 1 to 9, with gaps between them.
    let mut list = vec![];
    let mut at = 2;
    for run in (1..10).cycle() {
        list.extend(at..at + run);
        at += run + 1 + run % 2;
        if list.len() >= columns {
            break;
        }
    }
    list.truncate(columns);
    let width = at + 5;
    for (vectors, adds) in Vectors::all().flat_map(|vectors| [(vectors, false), (vectors, true)]) {
        let product = Product {
            a: Operand::Matrix(Matrix { elements: &a, line: depth, depth: 1 }),
            b: Operand::Matrix(Matrix { elements: &b, line: depth, depth: 1 }),
            depth,
            place: Place { start: 1, rows: width, columns: Some(&list) },
            adds,
        };
        let mut c = vec![0.5; 1 + rows * width];
        make(&product, vectors, [rows, columns], &mut c);
        assert_close(&format!("{vectors:?}, a list"), &c, |i| {
            let column = list.iter().position(|&j| i > 0 && j == (i - 1) % width);
            let Some(j) = column else { return 0.5 };
            let row = (i - 1) / width;
            let sum: f64 =
                (0..depth).map(|k| f64::from(a[row * depth + k]) * f64::from(b[j * depth + k])).sum();
            if adds { sum + 0.5 } else { sum }
        });
    }
}

#[test]
fn patches_are_sums_of_offsets() {
    let image = noise(4_000, 1);
    // Runs of every length up to 20, of 8, 4 and 2 side by side, and none.
    let runs = (1..21).chain([8, 8, 8, 8, 4, 4, 4, 4, 2, 2, 2, 2, 1, 1, 1, 1]).enumerate();
    let offsets: Vec<usize> = runs.flat_map(|(i, run)| (0..run).map(move |at| i * 41 + at)).collect();
    let taps: Vec<usize> = (0..37).map(|i| i * 53 + i % 3).collect();
    let (places, tap_offsets) = (Offsets::new(offsets.iter().copied()), Offsets::new(taps.iter().copied()));
    let rows = 7;
    for (vectors, places_are_lines) in Vectors::all().flat_map(|vectors| [(vectors, true), (vectors, false)])
    {
        let (lines, depth) =
            if places_are_lines { (offsets.len(), taps.len()) } else { (taps.len(), offsets.len()) };
        let a = noise(rows * depth, 2);
        let product = Product {
            a: Operand::Matrix(Matrix { elements: &a, line: depth, depth: 1 }),
            b: Operand::Patches(Patches {
                image: &image,
                places: &places,
                taps: &tap_offsets,
                places_are_lines,
            }),
            depth,
            place: Place { start: 0, rows: lines, columns: None },
            adds: false,
        };
        let mut c = vec![f32::NAN; rows * lines];
        make(&product, vectors, [rows, lines], &mut c);
        assert_close(&format!("{vectors:?}, patches"), &c, |i| {
            let (row, line) = (i / lines, i % lines);
            let element = |k: usize| {
                let (place, tap) = if places_are_lines { (line, k) } else { (k, line) };
                f64::from(image[offsets[place] + taps[tap]])
            };
            (0..depth).map(|k| f64::from(a[row * depth + k]) * element(k)).sum()
        });
    }
}

#[test]
#[should_panic(expected = "assertion failed")]
fn operands_that_are_too_small_are_refused() {
    let few = [0.0; 5];
    let operand = Operand::Matrix(Matrix { elements: &few, line: 3, depth: 1 });
    let place = Place { start: 0, rows: 2, columns: None };
    Product { a: operand, b: operand, depth: 3, place, adds: false }.whole(2, 2, &mut [0.0; 4]);
}
