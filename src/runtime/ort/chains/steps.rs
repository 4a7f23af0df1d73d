//! Which nodes are operations of chains, and how they are written down.

use crate::onnx::{DType, Fact, Facts, Graph, Node, ValueId};
use onnx_merge_kernels::Spread;
use onnx_merge_kernels::chain::{Arg, Op, Step};

/// Operators of the standard's that are one operation. Those of any number of operands are done two at a time.
const TABLE: &[(&str, Op)] = &[
    ("Add", Op::Add),
    ("Sum", Op::Add),
    ("Sub", Op::Sub),
    ("Mul", Op::Mul),
    ("Div", Op::Div),
    ("Max", Op::Max),
    ("Min", Op::Min),
    ("Greater", Op::Greater),
    ("GreaterOrEqual", Op::GreaterOrEqual),
    ("Less", Op::Less),
    ("LessOrEqual", Op::LessOrEqual),
    ("Equal", Op::Equal),
    ("And", Op::And),
    ("Or", Op::Or),
    ("Not", Op::Not),
    ("Neg", Op::Neg),
    ("Abs", Op::Abs),
    ("Sign", Op::Sign),
    ("Sqrt", Op::Sqrt),
    ("Reciprocal", Op::Reciprocal),
    ("Relu", Op::Relu),
    ("Cast", Op::Copy),
    ("Clip", Op::Copy),
    ("Where", Op::Where),
];

fn operation(node: &Node) -> Option<Op> {
    let row = TABLE.iter().find(|(op, _)| node.is(op))?;
    Some(row.1)
}

/// What a node makes, if a chain can make it: numbers of single precision, or truths, of operands of these kinds that are spread
/// over the result.
pub fn result<'a>(node: &Node, facts: &'a Facts) -> Option<&'a Fact> {
    operation(node)?;
    let fits = |fact: &Fact| matches!(fact.dtype, DType::F32 | DType::Bool) && !fact.is_empty();
    let output = facts.get(node.output(0)?).filter(|fact| fits(fact) && node.outputs.len() == 1)?;
    let spreads = |id: &ValueId| {
        let input = facts.get(id).filter(|fact| fits(fact));
        input.is_some_and(|input| spread(&input.shape, &output.shape).is_some())
    };
    let clips_by_numbers =
        || node.inputs.iter().skip(1).flatten().all(|id| facts.get(id).is_some_and(|f| f.len() == 1));
    let sound = match node.op.as_str() {
        "Clip" => node.input(0).is_some() && clips_by_numbers(),
        // Of a number a truth would be made, which all but 0 is: not a copy.
        "Cast" => output.dtype == DType::F32,
        _ => node.inputs.iter().all(Option::is_some) && !node.inputs.is_empty(),
    };
    (sound && node.inputs.iter().flatten().all(spreads)).then_some(output)
}

/// How an operand of one shape is spread over a result of another.
pub fn spread(operand: &[usize], result: &[usize]) -> Option<Spread> {
    let missing = result.len().checked_sub(operand.len())?;
    let own = |axis: usize| axis.checked_sub(missing).map_or(1, |axis| operand[axis]);
    let sizes = || result.iter().enumerate();
    let fits = sizes().all(|(axis, &size)| own(axis) == size || own(axis) == 1);
    if fits { Spread::new(sizes().map(|(axis, &size)| (size, own(axis) == size))) } else { None }
}

/// A chain being written.
#[derive(Default)]
pub struct Written {
    pub steps: Vec<Step>,
}

impl Written {
    /// Writes a node whose operands are `args`; what it makes.
    pub fn node(&mut self, node: &Node, args: &[Option<Arg>]) -> Option<Arg> {
        let op = operation(node)?;
        let given: Vec<Arg> = args.iter().copied().flatten().collect();
        match (node.op.as_str(), &given[..]) {
            ("Clip", &[x, ..]) => {
                let bound = |i: usize| args.get(i).copied().flatten();
                let above = bound(1).map_or(x, |least| self.step(Op::Max, &[x, least]));
                Some(match bound(2) {
                    Some(most) => self.step(Op::Min, &[above, most]),
                    None => self.step(Op::Copy, &[above]),
                })
            }
            (_, &[one]) if op.arity() == 2 => Some(self.step(Op::Copy, &[one])),
            (_, &[first, ref rest @ ..]) if op.arity() == 2 => {
                Some(rest.iter().fold(first, |left, &right| self.step(op, &[left, right])))
            }
            _ => Some(self.step(op, &given)),
        }
    }

    fn step(&mut self, op: Op, args: &[Arg]) -> Arg {
        self.steps.push(Step { op, args: args.to_vec() });
        Arg::Step(self.steps.len() - 1)
    }
}

/// The number that a value is, where it is one and known before any run.
pub fn number(graph: &Graph, id: &ValueId) -> Option<f32> {
    let tensor = graph.initializers.get(id).filter(|t| t.len() == 1 && t.dtype() == DType::F32)?;
    tensor.to_f32().first().copied()
}
