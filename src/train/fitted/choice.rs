//! Which channels of a source a target with fewer of them takes over: those from which the others follow best.

use crate::onnx::Tensor;
use std::ops::Range;

/// Picks `count` of as many columns as `gram` = AᵀA has rows, greedily: each time the one that explains most of what the
/// columns picked before leave unexplained, in least squares. In ascending order; where there aren't so many live ones, the first
/// picked ones again. `None` where none lives.
fn leading(mut gram: Vec<Vec<f64>>, count: usize) -> Option<Vec<usize>> {
    let dead = 1e-9 * gram.iter().enumerate().map(|(i, row)| row[i]).fold(0.0, f64::max);
    let mut picked: Vec<usize> = vec![];
    while picked.len() < count {
        let explained = |c: usize| gram.iter().map(|row| row[c] * row[c]).sum::<f64>() / gram[c][c];
        let live = (0..gram.len()).filter(|c| !picked.contains(c) && gram[*c][*c] > dead);
        let Some(best) = live.max_by(|&a, &b| explained(a).total_cmp(&explained(b))) else { break };
        let (column, power): (Vec<f64>, f64) = (gram.iter().map(|row| row[best]).collect(), gram[best][best]);
        for (row, a) in gram.iter_mut().zip(&column) {
            row.iter_mut().zip(&column).for_each(|(v, b)| *v -= a * b / power);
        }
        picked.push(best);
    }
    let mut all: Vec<usize> =
        (!picked.is_empty()).then(|| picked.iter().copied().cycle().take(count).collect())?;
    all.sort();
    Some(all)
}

/// [`leading`] channels of activations, rows × channels × positions: as many of each of `blocks` of them, which don't mix.
pub fn choose(seen: &Tensor, count: usize, blocks: usize) -> Option<Vec<usize>> {
    let channels = *seen.shape().get(1)?;
    if count >= channels || !count.is_multiple_of(blocks) || !channels.is_multiple_of(blocks) {
        return None;
    }
    let size = channels / blocks;
    let block = |i: usize| leading(gram(seen, i * size..(i + 1) * size)?, count / blocks);
    let shifted = |i: usize| Some(block(i)?.into_iter().map(move |c| i * size + c));
    Some((0..blocks).map(shifted).collect::<Option<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Products of some channels' activations.
fn gram(seen: &Tensor, among: Range<usize>) -> Option<Vec<Vec<f64>>> {
    let &[_, channels, positions] = seen.shape() else { return None };
    let (values, size) = (seen.to_f32(), among.len());
    let mut gram = vec![vec![0.0; size]; size];
    for row in values.chunks(channels * positions) {
        let channel = |c: usize| &row[(among.start + c) * positions..][..positions];
        for i in 0..size {
            for j in 0..=i {
                let product: f32 = channel(i).iter().zip(channel(j)).map(|(a, b)| a * b).sum();
                gram[i][j] += product as f64;
            }
        }
    }
    for i in 0..size {
        for j in 0..i {
            gram[j][i] = gram[i][j];
        }
    }
    Some(gram)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gram(columns: &[[f64; 4]]) -> Vec<Vec<f64>> {
        let product = |a: &[f64; 4], b: &[f64; 4]| a.iter().zip(b).map(|(a, b)| a * b).sum();
        columns.iter().map(|a| columns.iter().map(|b| product(a, b)).collect()).collect()
    }

    #[test]
    fn doubles_and_dead_columns_are_left_out() {
        let columns = [[0.0; 4], [3.0, 0.0, 0.0, 0.0], [2.9, 0.1, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]];
        assert_eq!(leading(gram(&columns), 2), Some(vec![1, 3]));
        assert_eq!(leading(gram(&columns), 4), Some(vec![1, 1, 2, 3]));
        assert_eq!(leading(gram(&columns[..1]), 1), None);
    }

    #[test]
    fn blocks_keep_their_own() {
        let seen = Tensor::f32(&[2, 4, 1], &[3.0, 0.1, 0.0, 2.0, 0.0, 0.1, 0.0, 2.0]);
        assert_eq!(choose(&seen, 2, 2), Some(vec![0, 3]));
        assert_eq!(choose(&seen, 2, 1), Some(vec![0, 3]));
        assert_eq!(choose(&seen, 3, 2), None);
    }
}
