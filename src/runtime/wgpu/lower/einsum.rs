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

/// The labels of all terms and of the output, each dimension that `...` stands for with a label of its own.
fn equation(node: &Node, ranks: &[usize]) -> Outcome<(Vec<String>, String)> {
    let text = node.str("equation").ok_or("the equation is missing")?.replace(' ', "");
    let (left, right) = match text.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (text.as_str(), None),
    };
    let terms: Vec<&str> = left.split(',').collect();
    if terms.len() != ranks.len() {
        return Err(format!("{} terms for {} inputs", terms.len(), ranks.len()));
    }
    let hidden = |term: &str, rank: usize| (rank + 3).saturating_sub(term.chars().count());
    let dotted = || terms.iter().zip(ranks).filter(|(t, _)| t.contains("..."));
    let most = dotted().map(|(t, &rank)| hidden(t, rank)).max().unwrap_or(0);
    if dotted().any(|(t, &rank)| hidden(t, rank) != most) || most > 10 {
        return Err("'...' must stand for as many dimensions in every term".into());
    }
    let spelled: String = ('0'..='9').take(most).collect();
    let out = match right {
        Some(right) => right.to_owned(),
        // Without an arrow: the labels that come once, in alphabetical order.
        None => {
            let mut once: Vec<char> =
                left.chars().filter(|c| c.is_alphabetic() && left.matches(*c).count() == 1).collect();
            once.sort_unstable();
            let dots = if left.contains("...") { "..." } else { "" };
            format!("{dots}{}", once.into_iter().collect::<String>())
        }
    };
    let spell = |term: &str| term.replace("...", &spelled);
    Ok((terms.iter().map(|t| spell(t)).collect(), spell(&out)))
}

fn einsum(l: &mut Lowering, node: &Node) -> Outcome {
    let mut values = vec![];
    for i in 0..node.inputs.len() {
        values.push(l.arg(node, i)?);
        expect_f32(&values[i])?;
    }
    let ranks: Vec<usize> = values.iter().map(|v| v.view.rank()).collect();
    let (terms, out) = equation(node, &ranks)?;
    let mut total: Option<Labelled> = None;
    for (i, (term, value)) in terms.iter().zip(values).enumerate() {
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
    if order.len() != total.labels.len() {
        return Err("the output has labels that no term has".into());
    }
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
