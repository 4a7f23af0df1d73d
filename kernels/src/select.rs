//! One of two values, element by element.

/// What is chosen from.
#[derive(Clone, Copy)]
pub enum Operand<'a> {
    /// The same for all elements.
    One(f32),
    Each(&'a [f32]),
}

/// `output[i] = condition[i] ? x[i] : y[i]`, as far as the shortest of them goes; any byte but 0 is true.
pub fn select(condition: &[u8], x: Operand<'_>, y: Operand<'_>, output: &mut [f32]) {
    use std::iter::repeat;
    match (x, y) {
        (Operand::One(x), Operand::One(y)) => choose(condition, repeat(x), repeat(y), output),
        (Operand::One(x), Operand::Each(y)) => choose(condition, repeat(x), y.iter().copied(), output),
        (Operand::Each(x), Operand::One(y)) => choose(condition, x.iter().copied(), repeat(y), output),
        (Operand::Each(x), Operand::Each(y)) => {
            choose(condition, x.iter().copied(), y.iter().copied(), output);
        }
    }
}

fn choose(condition: &[u8], x: impl Iterator<Item = f32>, y: impl Iterator<Item = f32>, output: &mut [f32]) {
    for (((output, &condition), x), y) in output.iter_mut().zip(condition).zip(x).zip(y) {
        // Both are at hand, so that nothing is to be jumped over.
        *output = if condition == 0 { y } else { x };
    }
}
