//! Products of matrices.

use super::{Context, Cotangents, Row, rule};
use crate::error::Result;
use crate::onnx::{Attr, Builder, DType, Tensor, ValueId};
use std::collections::BTreeMap;

pub const TABLE: &[Row] = &[rule("Einsum", einsum), rule("Gemm", gemm), rule("MatMul", matmul)];

/// Y = A B: dA = G Bᵀ, dB = Aᵀ G, summed over broadcast batch axes. A vector A is a row, a vector B a column.
fn matmul(c: &mut Context<'_>) -> Cotangents {
    let (a, b, g) = (c.input(0)?, c.input(1)?, c.cotangent()?);
    let (a_shape, b_shape, mut g_shape) = (c.b.shape(&a), c.b.shape(&b), c.b.shape(&g));
    let (a_matrix, b_matrix) = (as_row(&a_shape), as_column(&b_shape));
    if b_shape.len() == 1 {
        g_shape.push(1);
    }
    if a_shape.len() == 1 {
        g_shape.insert(g_shape.len() - 1, 1);
    }
    let g = c.b.reshape(&g, &g_shape);
    let da = c.if_wanted(0, |c| {
        let b = c.b.reshape(&b, &b_matrix);
        let bt = c.b.transpose_matrix(&b);
        let full = c.b.matmul(&g, &bt);
        let sum = c.b.sum_to(&full, &a_matrix);
        Ok(c.b.reshape(&sum, &a_shape))
    })?;
    let db = c.if_wanted(1, |c| {
        let a = c.b.reshape(&a, &a_matrix);
        // One matrix B shared by the whole batch: one product over all rows instead of a sum of products.
        let (a, g) = match b_matrix.len() == 2 && a_matrix.len() > 2 {
            true => (rows(c.b, &a), rows(c.b, &g)),
            false => (a, g),
        };
        let at = c.b.transpose_matrix(&a);
        let full = c.b.matmul(&at, &g);
        let sum = c.b.sum_to(&full, &b_matrix);
        Ok(c.b.reshape(&sum, &b_shape))
    })?;
    Ok(vec![da, db])
}

fn as_row(shape: &[usize]) -> Vec<usize> {
    if shape.len() == 1 { vec![1, shape[0]] } else { shape.to_vec() }
}
fn as_column(shape: &[usize]) -> Vec<usize> {
    if shape.len() == 1 { vec![shape[0], 1] } else { shape.to_vec() }
}

/// All rows of a batch of matrices, as one matrix.
fn rows(b: &mut Builder, x: &ValueId) -> ValueId {
    let shape = b.shape(x);
    let (width, lead) = shape.split_last().map_or((1, &[][..]), |(&w, lead)| (w, lead));
    b.reshape(x, &[lead.iter().product(), width])
}

/// Y = α A′ B′ + β C, where ′ transposes if asked: dA′ = α G B′ᵀ, dB′ = α A′ᵀ G, dC = β G summed over what was
/// broadcast.
fn gemm(c: &mut Context<'_>) -> Cotangents {
    let (a, b, g) = (c.input(0)?, c.input(1)?, c.cotangent()?);
    let (ta, tb) = (c.node.int_or("transA", 0) != 0, c.node.int_or("transB", 0) != 0);
    let alpha = c.node.float_or("alpha", 1.0);
    let beta = c.node.float_or("beta", 1.0) as f64;
    let product = |c: &mut Context<'_>, x: &ValueId, tx: bool, y: &ValueId, ty: bool| {
        let attrs = [("alpha", Attr::Float(alpha)), ("transA", Attr::from(tx)), ("transB", Attr::from(ty))];
        Ok(c.b.op_with("Gemm", &[x, y], &attrs))
    };
    let da = c.if_wanted(0, |c| match ta {
        true => product(c, &b, tb, &g, true),
        false => product(c, &g, false, &b, !tb),
    })?;
    let db = c.if_wanted(1, |c| match tb {
        true => product(c, &g, true, &a, ta),
        false => product(c, &a, !ta, &g, false),
    })?;
    let dc = c.if_wanted(2, |c| {
        let shape = c.shape(2)?;
        let sum = c.b.sum_to(&g, &shape);
        Ok(if beta == 1.0 { sum } else { c.b.mul_scalar(&sum, beta) })
    })?;
    Ok(vec![da, db, dc])
}

/// An einsum with its ellipses and implicit output written out.
struct Equation {
    /// The letters of each operand's axes. Numbers, not characters: ellipses need letters of their own.
    terms: Vec<Vec<u32>>,
    output: Vec<u32>,
    size: BTreeMap<u32, usize>,
}

impl Equation {
    fn parse(equation: &str, shapes: &[Vec<usize>]) -> Option<Self> {
        let equation = equation.replace(' ', "");
        let (left, right) = match equation.split_once("->") {
            Some((left, right)) => (left, Some(right)),
            None => (equation.as_str(), None),
        };
        let terms: Vec<&str> = left.split(',').collect();
        if terms.len() != shapes.len() {
            return None;
        }
        let named = |term: &str| term.replace("...", "").chars().count();
        let hidden = terms
            .iter()
            .zip(shapes)
            .map(|(t, s)| if t.contains("...") { s.len().checked_sub(named(t)) } else { Some(0) });
        let hidden: Vec<usize> = hidden.collect::<Option<_>>()?;
        let widest = hidden.iter().copied().max().unwrap_or(0);
        // The ellipsis stands for the last `count` of these.
        let write_out = |term: &str, count: usize| -> Vec<u32> {
            let ellipsis = (0..widest).skip(widest - count).map(|i| u32::from('\u{100}') + i as u32);
            match term.split_once("...") {
                Some((before, after)) => before
                    .chars()
                    .map(u32::from)
                    .chain(ellipsis)
                    .chain(after.chars().map(u32::from))
                    .collect(),
                None => term.chars().map(u32::from).collect(),
            }
        };
        let lists: Vec<Vec<u32>> =
            terms.iter().zip(&hidden).map(|(term, &count)| write_out(term, count)).collect();
        let output = match right {
            Some(right) => write_out(right, widest),
            None => implicit_output(&lists),
        };
        let mut size = BTreeMap::new();
        for (list, shape) in lists.iter().zip(shapes) {
            if list.len() != shape.len() {
                return None;
            }
            for (&letter, &d) in list.iter().zip(shape) {
                let known = size.entry(letter).or_insert(d);
                *known = if *known == 1 { d } else { *known };
            }
        }
        Some(Self { terms: lists, output, size })
    }
}

/// The ellipsis, then every letter that occurs once, in the alphabet's order.
fn implicit_output(terms: &[Vec<u32>]) -> Vec<u32> {
    let all: Vec<u32> = terms.concat();
    let once = |letter: &u32| all.iter().filter(|l| *l == letter).count() == 1;
    let is_hidden = |letter: &u32| *letter >= u32::from('\u{100}');
    let mut hidden: Vec<u32> = all.iter().copied().filter(is_hidden).collect();
    let mut letters: Vec<u32> = all.iter().copied().filter(|l| !is_hidden(l) && once(l)).collect();
    hidden.sort_unstable();
    hidden.dedup();
    letters.sort_unstable();
    [hidden, letters].concat()
}

/// For each operand the einsum of g with the other operands, onto the operand's letters. Letters that only this
/// operand has are broadcast; of a repeated letter (a diagonal) only the diagonal gets something.
fn einsum(c: &mut Context<'_>) -> Cotangents {
    let g = c.cotangent()?;
    let operands: Vec<ValueId> = (0..c.node.inputs.len()).map(|i| c.input(i)).collect::<Result<_>>()?;
    let shapes: Vec<Vec<usize>> = operands.iter().map(|v| c.b.shape(v)).collect();
    let equation = c.node.str("equation").unwrap_or_default();
    let Some(equation) = Equation::parse(equation, &shapes) else {
        return Err(c.refuse(format!("its equation '{equation}' doesn't fit its inputs")));
    };
    let mut cotangents = vec![];
    for i in 0..operands.len() {
        cotangents.push(c.if_wanted(i, |c| {
            let mut factors = vec![(g.clone(), equation.output.clone())];
            let others = (0..operands.len()).filter(|&k| k != i);
            factors.extend(others.map(|k| (operands[k].clone(), equation.terms[k].clone())));
            let letters = &equation.terms[i];
            let full = contract(c.b, &factors, letters, &equation.size);
            Ok(c.b.sum_to(&full, &shapes[i]))
        })?);
    }
    Ok(cotangents)
}

/// The einsum of `factors` onto `letters`, in the full sizes of all letters.
fn contract(
    b: &mut Builder,
    factors: &[(ValueId, Vec<u32>)],
    letters: &[u32],
    size: &BTreeMap<u32, usize>,
) -> ValueId {
    let mut distinct: Vec<u32> = vec![];
    for letter in letters {
        if !distinct.contains(letter) {
            distinct.push(*letter);
        }
    }
    // Scalars multiply at the end: executors differ in what they take an empty term for.
    let (scalars, factors): (Vec<_>, Vec<_>) = factors.iter().partition(|f| f.1.is_empty());
    let there = |letter: &u32| factors.iter().any(|f| f.1.contains(letter));
    let reached: Vec<u32> = distinct.iter().copied().filter(there).collect();
    let mut product = sum_of_products(b, &factors, &reached);
    for (scalar, _) in scalars {
        product = Some(match product {
            Some(product) => b.mul(&product, scalar),
            None => scalar.clone(),
        });
    }
    let product = product.unwrap_or_else(|| b.constant(Tensor::scalar(DType::F32, 1.0)));
    // Broadcasting along the letters that are only here, and of length-1 axes.
    let lifted: Vec<usize> = {
        let mut shape = b.shape(&product).into_iter();
        let dims = distinct.iter().map(|l| if reached.contains(l) { shape.next().unwrap_or(1) } else { 1 });
        dims.collect()
    };
    let full: Vec<usize> = distinct.iter().map(|l| size.get(l).copied().unwrap_or(1)).collect();
    let lifted = b.reshape(&product, &lifted);
    let result = b.expand(&lifted, &full);
    onto_diagonal(b, &result, &distinct, letters, size)
}

/// The einsum itself; `None` without factors.
fn sum_of_products(b: &mut Builder, factors: &[&(ValueId, Vec<u32>)], onto: &[u32]) -> Option<ValueId> {
    let [first, ..] = factors else { return None };
    if factors.len() == 1 && first.1 == onto {
        return Some(first.0.clone());
    }
    // Executors know Latin letters only, and not every one makes scalars: one letter is kept, then summed.
    let mut names: BTreeMap<u32, char> = BTreeMap::new();
    let mut alphabet = ('a'..='z').chain('A'..='Z');
    let mut spell = |letters: &[u32]| -> String {
        letters.iter().map(|&l| *names.entry(l).or_insert_with(|| alphabet.next().unwrap_or('?'))).collect()
    };
    let kept = if onto.is_empty() { &first.1[..1] } else { onto };
    let terms: Vec<String> = factors.iter().map(|f| spell(&f.1)).collect();
    let equation = format!("{}->{}", terms.join(","), spell(kept));
    let operands: Vec<&ValueId> = factors.iter().map(|f| &f.0).collect();
    let product = b.op_with("Einsum", &operands, &[("equation", equation.as_str().into())]);
    Some(if onto.is_empty() { b.sum(&product, &[0], false) } else { product })
}

/// From one axis a distinct letter to one axis a letter: the repeated ones off the diagonal are 0.
fn onto_diagonal(
    b: &mut Builder,
    x: &ValueId,
    distinct: &[u32],
    letters: &[u32],
    size: &BTreeMap<u32, usize>,
) -> ValueId {
    if distinct.len() == letters.len() {
        return x.clone();
    }
    let dims: Vec<usize> = letters.iter().map(|l| size.get(l).copied().unwrap_or(1)).collect();
    let first = |i: usize| letters.iter().position(|l| *l == letters[i]).unwrap_or(i);
    let lifted: Vec<usize> = (0..letters.len()).map(|i| if first(i) == i { dims[i] } else { 1 }).collect();
    let mut result = b.reshape(x, &lifted);
    for i in (0..letters.len()).filter(|&i| first(i) != i) {
        let n = dims[i];
        let mut shape = vec![1; letters.len()];
        (shape[first(i)], shape[i]) = (n, n);
        let identity: Vec<f64> = (0..n * n).map(|k| if k / n == k % n { 1.0 } else { 0.0 }).collect();
        let identity = b.constant(Tensor::from_f64(b.dtype(x), &shape, &identity));
        result = b.mul(&result, &identity);
    }
    result
}
