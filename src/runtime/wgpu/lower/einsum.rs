//! `Einsum` as permuted views, sums and matrix products.

use super::{Lowering, Node, Operand, Outcome, Row, View, expect_f32, linear, reduce};

pub const TABLE: &[Row] = &[("Einsum", einsum)];

/// A tensor whose dimensions carry labels, each label once.
#[derive(Clone)]
struct Labelled {
    labels: Vec<char>,
    value: Operand,
}

impl Labelled {
    /// A label that comes twice means a diagonal: one dimension with the sum of the strides.
    fn new(term: &str, value: Operand) -> Outcome<Self> {
        if term.chars().count() != value.view.rank() {
            return Err(format!("term '{term}' for {} dimensions", value.view.rank()));
        }
        let mut labels: Vec<char> = vec![];
        let mut view = View { shape: vec![], strides: vec![], offset: value.view.offset };
        for (i, label) in term.chars().enumerate() {
            match labels.iter().position(|&l| l == label) {
                Some(at) => view.strides[at] += value.view.strides[i],
                None => {
                    labels.push(label);
                    view.shape.push(value.view.shape[i]);
                    view.strides.push(value.view.strides[i]);
                }
            }
        }
        Ok(Self { labels, value: Operand { view, ..value } })
    }
    fn size(&self, label: char) -> usize {
        self.labels.iter().position(|&l| l == label).map_or(1, |i| self.value.view.shape[i])
    }
    /// The dimensions in the given order, which holds all labels.
    fn ordered(&self, order: &[char]) -> Operand {
        let perm: Vec<usize> = order.iter().filter_map(|o| self.labels.iter().position(|l| l == o)).collect();
        Operand { view: self.value.view.permuted(&perm), ..self.value.clone() }
    }
    /// Sums over every label that isn't kept.
    fn summed(self, l: &mut Lowering, keep: impl Fn(char) -> bool) -> Outcome<Self> {
        let axes: Vec<usize> = (0..self.labels.len()).filter(|&i| !keep(self.labels[i])).collect();
        if axes.is_empty() {
            return Ok(self);
        }
        let labels: Vec<char> = self.labels.iter().copied().filter(|&c| keep(c)).collect();
        let sum = reduce::over(l, "ReduceSum", &self.value, &axes)?;
        let shape: Vec<usize> = labels.iter().map(|&c| self.size(c)).collect();
        Ok(Self { labels, value: l.reshape(&sum, &shape)? })
    }
}

fn einsum(l: &mut Lowering, node: &Node) -> Outcome {
    let equation = node.str("equation").ok_or("the equation is missing")?.replace(' ', "");
    let (terms, out) = equation.split_once("->").ok_or("equations need an '->' on the GPU")?;
    if equation.contains('.') {
        return Err("'...' is not supported on the GPU".into());
    }
    let terms: Vec<&str> = terms.split(',').collect();
    let mut total: Option<Labelled> = None;
    for (i, term) in terms.iter().enumerate() {
        let value = l.arg(node, i)?;
        expect_f32(&value)?;
        let later = |c: char| out.contains(c) || terms[i + 1..].iter().any(|t| t.contains(c));
        let next = Labelled::new(term, value)?;
        total = Some(match total {
            None => next.summed(l, later)?,
            Some(sum) => {
                let next = next.summed(l, |c| later(c) || sum.labels.contains(&c))?;
                contract(l, &sum, &next, later)?
            }
        });
    }
    let total = total.ok_or("there are no terms")?;
    let order: Vec<char> = out.chars().collect();
    let y = total.ordered(&order);
    l.set(node, 0, y)
}

/// The product of two tensors, summed over the labels they share that aren't kept.
fn contract(l: &mut Lowering, a: &Labelled, b: &Labelled, keep: impl Fn(char) -> bool) -> Outcome<Labelled> {
    let shared = |c: &char| b.labels.contains(c);
    let batch: Vec<char> = a.labels.iter().copied().filter(|c| shared(c) && keep(*c)).collect();
    let inner: Vec<char> = a.labels.iter().copied().filter(|c| shared(c) && !keep(*c)).collect();
    let rows: Vec<char> = a.labels.iter().copied().filter(|c| !shared(c)).collect();
    let cols: Vec<char> = b.labels.iter().copied().filter(|c| !a.labels.contains(c)).collect();
    if batch.iter().chain(&inner).any(|&c| a.size(c) != b.size(c)) {
        return Err("terms give one label two sizes".into());
    }
    let sizes =
        |labels: &[char], of: &Labelled| -> Vec<usize> { labels.iter().map(|&c| of.size(c)).collect() };
    let whole = |labels: &[char], of: &Labelled| -> usize { sizes(labels, of).iter().product() };
    let (m, k, n) = (whole(&rows, a), whole(&inner, a), whole(&cols, b));
    let batches = sizes(&batch, a);
    let left = a.ordered(&[&batch[..], &rows, &inner].concat());
    let left = l.reshape(&left, &[&batches[..], &[m, k]].concat())?;
    let right = b.ordered(&[&batch[..], &inner, &cols].concat());
    let right = l.reshape(&right, &[&batches[..], &[k, n]].concat())?;
    let product = linear::product(l, &left, &right)?;
    let shape = [batches, sizes(&rows, a), sizes(&cols, b)].concat();
    Ok(Labelled { labels: [batch, rows, cols].concat(), value: l.reshape(&product, &shape)? })
}
