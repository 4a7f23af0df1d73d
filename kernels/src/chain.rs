//! Chains of elementwise operations, done a block at a time: what one of them makes the next finds in the nearest cache,
//! so that memory is read and written once for all.

use crate::Vectors;
use crate::spread::Spread;
use std::mem::take;

/// Elements worked on at once: a handful of such blocks fit the first cache.
const BLOCK: usize = 512;

/// An operation on elements. Truth is 1, and all but 0 is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Add,
    Sub,
    Mul,
    Div,
    /// NaN where either is.
    Max,
    Min,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
    Equal,
    And,
    Or,
    Not,
    Neg,
    Abs,
    Sign,
    Sqrt,
    Reciprocal,
    Relu,
    Copy,
    /// The second where the first is true, else the third.
    Where,
}

impl Op {
    /// How many operands it takes.
    pub fn arity(self) -> usize {
        use Op::*;
        match self {
            Not | Neg | Abs | Sign | Sqrt | Reciprocal | Relu | Copy => 1,
            Where => 3,
            _ => 2,
        }
    }
}

/// What an operation takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    Input(usize),
    Constant(f32),
    /// What an earlier step has made.
    Step(usize),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub op: Op,
    /// As many as the operation takes.
    pub args: Vec<Arg>,
}

/// The elements of an input.
#[derive(Clone, Copy)]
pub enum Elements<'a> {
    Floats(&'a [f32]),
    /// Any byte but 0 is true.
    Bytes(&'a [u8]),
}

impl Elements<'_> {
    fn len(&self) -> usize {
        match self {
            Elements::Floats(values) => values.len(),
            Elements::Bytes(values) => values.len(),
        }
    }
}

/// Where a value of a block lies. Slots are first the results, then registers.
#[derive(Clone, Copy)]
enum Place {
    Input(usize),
    Constant(f32),
    Slot(usize),
}

#[derive(Clone, Copy)]
enum Operand<'a> {
    One(f32),
    Each(&'a [f32]),
}

/// Operations one after the other on all elements of equally many values.
pub struct Chain {
    /// Elements of each result.
    len: usize,
    inputs: Vec<Spread>,
    /// Operations, what they take, and the slots of what they make.
    steps: Vec<(Op, Vec<Place>, usize)>,
    outputs: usize,
    registers: usize,
    /// Those that the processor has.
    pub(crate) vectors: Vectors,
}

/// Room for the values of a block; kept from call to call.
#[derive(Default)]
pub struct Room {
    registers: Vec<Register>,
}

/// Aligned as cache lines are: a vector that lies across two of them takes twice the time.
#[derive(Clone)]
#[repr(align(64))]
struct Register([f32; BLOCK]);

impl Chain {
    /// Of `steps` on inputs spread over `len` elements; `outputs` are the steps whose values are results, each once. `None` where
    /// a step lacks operands, takes what isn't there yet, or an input isn't spread over as many.
    pub fn new(len: usize, inputs: Vec<Spread>, steps: &[Step], outputs: &[usize]) -> Option<Self> {
        let known = |i: usize, arg: &Arg| match *arg {
            Arg::Input(input) => input < inputs.len(),
            Arg::Constant(_) => true,
            Arg::Step(step) => step < i,
        };
        let complete = |(i, step): (usize, &Step)| {
            step.args.len() == step.op.arity() && step.args.iter().all(|arg| known(i, arg))
        };
        let sound =
            inputs.iter().all(|spread| spread.over() == len) && steps.iter().enumerate().all(complete);
        let once = outputs.iter().enumerate().all(|(k, o)| *o < steps.len() && !outputs[..k].contains(o));
        (sound && once).then(|| Self::placed(len, inputs, steps, outputs))
    }

    /// Gives every step a slot: an output's is its own, others share registers, free as soon as nobody needs them any more. The
    /// first registers belong to inputs that must be spread or converted.
    fn placed(len: usize, inputs: Vec<Spread>, steps: &[Step], outputs: &[usize]) -> Self {
        let mut last: Vec<usize> = (0..steps.len()).collect();
        for (i, step) in steps.iter().enumerate() {
            for arg in &step.args {
                if let Arg::Step(made) = *arg {
                    last[made] = i;
                }
            }
        }
        let mut slots: Vec<usize> = vec![];
        let mut free = vec![];
        let mut count = outputs.len() + inputs.len();
        let mut placed = vec![];
        for (i, step) in steps.iter().enumerate() {
            let slot = outputs.iter().position(|&o| o == i).or_else(|| free.pop()).unwrap_or_else(|| {
                count += 1;
                count - 1
            });
            let args = step.args.iter().map(|arg| match *arg {
                Arg::Input(input) => Place::Input(input),
                Arg::Constant(value) => Place::Constant(value),
                Arg::Step(made) => Place::Slot(slots[made]),
            });
            placed.push((step.op, args.collect(), slot));
            slots.push(slot);
            // Not before the step has its own: it must not write what it reads.
            free.extend(
                (0..=i).filter(|&made| last[made] == i && !outputs.contains(&made)).map(|made| slots[made]),
            );
        }
        let (outputs, vectors) = (outputs.len(), Vectors::here());
        Self { len, steps: placed, outputs, registers: count - outputs, inputs, vectors }
    }

    /// Elements of each result.
    pub fn len(&self) -> usize {
        self.len
    }
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// How many results there are.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Whether `inputs` are as many, and each as long, as the chain was made for.
    pub fn fits(&self, inputs: &[Elements<'_>]) -> bool {
        let pairs = || inputs.iter().zip(&self.inputs);
        inputs.len() == self.inputs.len() && pairs().all(|(given, spread)| given.len() == spread.len())
    }

    /// Writes the elements from `start` on of all results, as many as each of `outputs` holds.
    ///
    /// # Panics
    /// Where the inputs don't [fit](Chain::fits), and where there aren't as many outputs, of one length, within the results.
    pub fn run(&self, inputs: &[Elements<'_>], outputs: &mut [&mut [f32]], start: usize, room: &mut Room) {
        let count = outputs.first().map_or(0, |output| output.len());
        assert!(self.fits(inputs) && outputs.len() == self.outputs && start + count <= self.len);
        assert!(outputs.iter().all(|output| output.len() == count));
        let mut outputs: Vec<&mut [f32]> = outputs.iter_mut().map(|output| &mut **output).collect();
        room.registers.resize_with(room.registers.len().max(self.registers), || Register([0.0; BLOCK]));
        match self.vectors {
            // SAFETY: the processor has what the function is compiled for.
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512 => unsafe { blocks_wider(self, inputs, &mut outputs, start, room) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx2 => unsafe { blocks_wide(self, inputs, &mut outputs, start, room) },
            _ => blocks(self, inputs, &mut outputs, start, room),
        }
    }
}

/// [`blocks`] for processors that have more.
macro_rules! blocks_with {
    ($name:ident, $features:literal) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        fn $name<'a>(
            chain: &Chain,
            inputs: &[Elements<'_>],
            outputs: &mut [&'a mut [f32]],
            start: usize,
            room: &'a mut Room,
        ) {
            blocks(chain, inputs, outputs, start, room);
        }
    };
}
blocks_with!(blocks_wide, "avx2");
blocks_with!(blocks_wider, "avx512f,avx512vl");

#[inline(always)]
fn blocks<'a>(
    chain: &Chain,
    inputs: &[Elements<'_>],
    outputs: &mut [&'a mut [f32]],
    start: usize,
    room: &'a mut Room,
) {
    let end = start + outputs.first().map_or(0, |output| output.len());
    let parts = outputs.iter_mut().map(|_| Default::default());
    let mut slots: Vec<&mut [f32]> =
        parts.chain(room.registers.iter_mut().map(|register| register.0.as_mut_slice())).collect();
    for begin in (start..end).step_by(BLOCK) {
        let n = BLOCK.min(end - begin);
        for (slot, output) in slots.iter_mut().zip(outputs.iter_mut()) {
            let (part, rest) = take(output).split_at_mut(n);
            (*slot, *output) = (part, rest);
        }
        block(chain, inputs, &mut slots, begin, n);
    }
}

/// All steps for `n` elements from `start` on.
#[inline(always)]
fn block(chain: &Chain, inputs: &[Elements<'_>], slots: &mut [&mut [f32]], start: usize, n: usize) {
    let spreads = chain.inputs.iter().zip(&mut slots[chain.outputs..]);
    for (input, (spread, slot)) in inputs.iter().zip(spreads) {
        match *input {
            Elements::Floats(_) if spread.is_one() || spread.is_whole() => {}
            Elements::Floats(values) => spread.fill(values, start, &mut slot[..n], |v| v),
            Elements::Bytes(values) => {
                spread.fill(values, start, &mut slot[..n], |v| f32::from(u8::from(v != 0)));
            }
        }
    }
    for (op, args, slot) in &chain.steps {
        // What is written is taken out of the way, so that the rest can be read meanwhile.
        let to = take(&mut slots[*slot]);
        let operand = |i: usize| match args.get(i) {
            Some(&Place::Input(input)) => match inputs[input] {
                Elements::Floats(values) if chain.inputs[input].is_one() => Operand::One(values[0]),
                Elements::Floats(values) if chain.inputs[input].is_whole() => {
                    Operand::Each(&values[start..start + n])
                }
                _ => Operand::Each(&slots[chain.outputs + input][..n]),
            },
            Some(&Place::Slot(slot)) => Operand::Each(&slots[slot][..n]),
            Some(&Place::Constant(value)) => Operand::One(value),
            None => Operand::One(0.0),
        };
        apply(*op, [operand(0), operand(1), operand(2)], &mut to[..n]);
        slots[*slot] = to;
    }
}

#[inline(always)]
fn apply(op: Op, [a, b, c]: [Operand<'_>; 3], to: &mut [f32]) {
    let truth = |holds: bool| f32::from(u8::from(holds));
    match op {
        Op::Add => binary(a, b, to, |a, b| a + b),
        Op::Sub => binary(a, b, to, |a, b| a - b),
        Op::Mul => binary(a, b, to, |a, b| a * b),
        Op::Div => binary(a, b, to, |a, b| a / b),
        Op::Max => binary(a, b, to, |a, b| if a > b || a.is_nan() { a } else { b }),
        Op::Min => binary(a, b, to, |a, b| if a < b || a.is_nan() { a } else { b }),
        Op::Greater => binary(a, b, to, |a, b| truth(a > b)),
        Op::GreaterOrEqual => binary(a, b, to, |a, b| truth(a >= b)),
        Op::Less => binary(a, b, to, |a, b| truth(a < b)),
        Op::LessOrEqual => binary(a, b, to, |a, b| truth(a <= b)),
        Op::Equal => binary(a, b, to, |a, b| truth(a == b)),
        Op::And => binary(a, b, to, |a, b| truth(a != 0.0 && b != 0.0)),
        Op::Or => binary(a, b, to, |a, b| truth(a != 0.0 || b != 0.0)),
        Op::Not => unary(a, to, |a| truth(a == 0.0)),
        Op::Neg => unary(a, to, |a| -a),
        Op::Abs => unary(a, to, f32::abs),
        Op::Sign => unary(a, to, |a| if a.is_nan() { a } else { truth(a > 0.0) - truth(a < 0.0) }),
        Op::Sqrt => unary(a, to, f32::sqrt),
        Op::Reciprocal => unary(a, to, |a| 1.0 / a),
        Op::Relu => unary(a, to, |a| if a < 0.0 { 0.0 } else { a }),
        Op::Copy => unary(a, to, |a| a),
        Op::Where => choose(a, b, c, to),
    }
}

#[inline(always)]
fn unary(a: Operand<'_>, to: &mut [f32], f: impl Fn(f32) -> f32) {
    match a {
        Operand::One(a) => to.fill(f(a)),
        Operand::Each(a) => to.iter_mut().zip(a).for_each(|(to, &a)| *to = f(a)),
    }
}

#[inline(always)]
fn binary(a: Operand<'_>, b: Operand<'_>, to: &mut [f32], f: impl Fn(f32, f32) -> f32) {
    match (a, b) {
        (Operand::One(a), _) => unary(b, to, |b| f(a, b)),
        (_, Operand::One(b)) => unary(a, to, |a| f(a, b)),
        (Operand::Each(a), Operand::Each(b)) => {
            to.iter_mut().zip(a).zip(b).for_each(|((to, &a), &b)| *to = f(a, b));
        }
    }
}

/// Both values are at hand, so that nothing is to be jumped over.
#[inline(always)]
fn choose(condition: Operand<'_>, x: Operand<'_>, y: Operand<'_>, to: &mut [f32]) {
    match (condition, x, y) {
        (Operand::One(condition), x, y) => unary(if condition == 0.0 { y } else { x }, to, |v| v),
        (_, Operand::One(x), y) => binary(condition, y, to, |c, y| if c == 0.0 { y } else { x }),
        (_, x, Operand::One(y)) => binary(condition, x, to, |c, x| if c == 0.0 { y } else { x }),
        (Operand::Each(condition), Operand::Each(x), Operand::Each(y)) => {
            for (((to, &c), &x), &y) in to.iter_mut().zip(condition).zip(x).zip(y) {
                *to = if c == 0.0 { y } else { x };
            }
        }
    }
}
