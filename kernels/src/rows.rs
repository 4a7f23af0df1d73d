//! Sums of rows by the places they belong to: the gradient of a lookup.

/// Makes `sums` those of `rows`, both of rows `width` long: row k goes to place `places[k]`, counted so that `sums` begins at `first`.
/// Rows of places that `sums` doesn't have are left out; one with several is their sum in the order of `rows`.
pub fn add_rows(places: &[i64], rows: &[f32], width: usize, first: i64, sums: &mut [f32]) {
    sums.fill(0.0);
    if width == 0 {
        return;
    }
    let here = first..first + (sums.len() / width) as i64;
    for (place, row) in places.iter().zip(rows.chunks_exact(width)) {
        if here.contains(place) {
            let start = (place - first) as usize * width;
            sums[start..start + width].iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
    }
}
