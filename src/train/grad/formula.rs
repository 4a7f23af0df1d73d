//! What a constant of a graph is as a function of the sizes that the graph was built for.
//!
//! Knows tensors and how to emit the arithmetic, nothing of gradients. Look at [`Formula`].

use crate::onnx::{Attr, Builder, DType, Tensor, ValueId};
use std::collections::HashMap;

/// Σ coefficient · product of sizes, element by element: for each product, its coefficients.
type Polynomial = Vec<(Vec<usize>, Vec<i64>)>;

/// A constant for any sizes.
pub enum Formula {
    /// Integers of a shape that doesn't change.
    Integers { dtype: DType, shape: Vec<usize>, values: Polynomial },
    /// One value everywhere, in a shape that depends on the sizes.
    Uniform { scalar: Tensor, shape: Polynomial, rank: usize },
    /// Real numbers that are proportional to sizes, or, where true, to their reciprocals.
    Scaled { coefficients: Tensor, by: Vec<(usize, bool)> },
}

/// A constant as it is for some sizes, and how it differs where one of them does.
pub struct Seen<'a> {
    pub sizes: &'a [usize],
    pub tensor: &'a Tensor,
    /// For each size, the constant where that size is another, and that size.
    pub others: &'a [(usize, &'a Tensor)],
}

impl Formula {
    /// The formula that gives what was seen.
    ///
    /// # Errors
    /// Why there is none.
    pub fn of(seen: &Seen<'_>) -> Result<Self, String> {
        let Seen { tensor, others, .. } = seen;
        if others.iter().any(|(_, o)| o.dtype() != tensor.dtype()) {
            return Err("has another type at other sizes".into());
        }
        if others.iter().any(|(_, o)| o.shape() != tensor.shape()) {
            return Self::uniform(seen);
        }
        match tensor.dtype() {
            dtype @ (DType::I64 | DType::I32) => {
                let others: Vec<Vec<i64>> = others.iter().map(|(_, t)| t.to_i64().into_owned()).collect();
                let values = polynomial(seen, &tensor.to_i64(), &others)?;
                Ok(Self::Integers { dtype, shape: tensor.shape().to_vec(), values })
            }
            dtype if dtype.is_float() => Self::scaled(seen),
            _ => Err("is no number".into()),
        }
    }

    fn uniform(seen: &Seen<'_>) -> Result<Self, String> {
        let Seen { tensor, others, .. } = seen;
        let (dtype, rank) = (tensor.dtype(), tensor.rank());
        let first = first_element(tensor)?;
        if !is_uniform(tensor, first, rank) || !others.iter().all(|(_, t)| is_uniform(t, first, rank)) {
            return Err("has another shape at other sizes".into());
        }
        let other_dims: Vec<Vec<i64>> = others.iter().map(|(_, t)| dims(t)).collect();
        let shape = polynomial(seen, &dims(tensor), &other_dims)?;
        let scalar = Tensor::new(dtype, &[], first.to_vec()).map_err(|e| e.to_string())?;
        Ok(Self::Uniform { scalar, shape, rank })
    }

    fn scaled(seen: &Seen<'_>) -> Result<Self, String> {
        let values = seen.tensor.to_f64();
        let mut coefficients = values.clone();
        let mut by: Vec<(usize, bool)> = vec![];
        for (i, (size, other)) in seen.others.iter().enumerate() {
            let (from, to) = (seen.sizes[i] as f64, *size as f64);
            let other = other.to_f64();
            let grows = |ratio: f64| values.iter().zip(&other).all(|(v, o)| close(v * ratio, *o));
            if grows(1.0) {
                continue;
            }
            let divides = match (grows(to / from), grows(from / to)) {
                (true, _) => false,
                (_, true) => true,
                _ => return Err("is no simple function of the sizes".into()),
            };
            coefficients.iter_mut().for_each(|c| *c *= if divides { from } else { 1.0 / from });
            by.push((i, divides));
        }
        let coefficients = Tensor::from_f64(seen.tensor.dtype(), seen.tensor.shape(), &coefficients);
        Ok(Self::Scaled { coefficients, by })
    }

    /// Whether the constant is `tensor` for these sizes.
    pub fn gives(&self, sizes: &[usize], tensor: &Tensor) -> bool {
        match self {
            Self::Integers { dtype, shape, values } => {
                *dtype == tensor.dtype()
                    && shape == tensor.shape()
                    && evaluate(values, sizes, tensor.len()) == *tensor.to_i64()
            }
            Self::Uniform { scalar, shape, rank } => {
                scalar.dtype() == tensor.dtype()
                    && is_uniform(tensor, scalar.bytes(), *rank)
                    && evaluate(shape, sizes, *rank) == dims(tensor)
            }
            Self::Scaled { coefficients, by } => {
                let power =
                    |&(i, divides): &(usize, bool)| (sizes[i] as f64).powi(if divides { -1 } else { 1 });
                let ratio: f64 = by.iter().map(power).product();
                let (ours, theirs) = (coefficients.to_f64(), tensor.to_f64());
                coefficients.dtype() == tensor.dtype()
                    && coefficients.shape() == tensor.shape()
                    && ours.iter().zip(&theirs).all(|(c, v)| close(c * ratio, *v))
            }
        }
    }

    /// Emits what computes the constant.
    pub fn emit(&self, b: &mut Builder, sizes: &mut Sizes) -> ValueId {
        match self {
            Self::Integers { dtype, shape, values } => {
                let value = sizes.sum(b, values, shape);
                match dtype {
                    DType::I64 => value,
                    dtype => b.op_with("Cast", &[&value], &[("to", Attr::Int(dtype.to_onnx().into()))]),
                }
            }
            Self::Uniform { scalar, shape, rank } => {
                let shape = sizes.sum(b, shape, &[*rank]);
                let scalar = b.constant(scalar.clone());
                b.op("Expand", &[&scalar, &shape])
            }
            Self::Scaled { coefficients, by } => {
                let to = Attr::Int(coefficients.dtype().to_onnx().into());
                let mut value = b.constant(coefficients.clone());
                for &(i, divides) in by {
                    let size = b.op_with("Cast", &[&sizes.each[i]], &[("to", to.clone())]);
                    value = b.op(if divides { "Div" } else { "Mul" }, &[&value, &size]);
                }
                value
            }
        }
    }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * b.abs()
}

fn dims(tensor: &Tensor) -> Vec<i64> {
    tensor.shape().iter().map(|&d| d as i64).collect()
}

fn first_element(tensor: &Tensor) -> Result<&[u8], String> {
    let width = tensor.dtype().size().ok_or("is no number")?;
    Ok(tensor.bytes().get(..width).ok_or("is empty")?)
}

/// Whether a tensor holds nothing but `element`.
fn is_uniform(tensor: &Tensor, element: &[u8], rank: usize) -> bool {
    tensor.rank() == rank
        && !element.is_empty()
        && tensor.bytes().chunks_exact(element.len()).all(|v| v == element)
}

/// Each element as a polynomial of the sizes: a multiple of a product of those it depends on, or else a sum of
/// multiples.
fn polynomial(seen: &Seen<'_>, base: &[i64], others: &[Vec<i64>]) -> Result<Polynomial, String> {
    let count = others.len();
    let mut terms: Polynomial = vec![];
    let mut add = |powers: Vec<usize>, element: usize, coefficient: i64| {
        let at = terms.iter().position(|t| t.0 == powers).unwrap_or_else(|| {
            terms.push((powers, vec![0; base.len()]));
            terms.len() - 1
        });
        terms[at].1[element] += coefficient;
    };
    for (e, &value) in base.iter().enumerate() {
        let on: Vec<usize> = (0..count).filter(|&i| others[i][e] != value).collect();
        let (from, to) = (|i: usize| seen.sizes[i] as i128, |i: usize| seen.others[i].0 as i128);
        let product: i128 = on.iter().map(|&i| from(i)).product();
        let proportional =
            on.iter().all(|&i| i128::from(others[i][e]) * from(i) == i128::from(value) * to(i));
        if proportional && i128::from(value) % product == 0 {
            let mut powers = vec![0; count];
            on.iter().for_each(|&i| powers[i] = 1);
            add(powers, e, (i128::from(value) / product) as i64);
            continue;
        }
        let mut rest = i128::from(value);
        for &i in &on {
            let (rise, run) = (i128::from(others[i][e]) - i128::from(value), to(i) - from(i));
            if rise % run != 0 {
                return Err("is no simple function of the sizes".into());
            }
            let mut powers = vec![0; count];
            powers[i] = 1;
            let slope = i64::try_from(rise / run).map_err(|_| "is too large".to_owned())?;
            add(powers, e, slope);
            rest -= i128::from(slope) * from(i);
        }
        add(vec![0; count], e, i64::try_from(rest).map_err(|_| "is too large".to_owned())?);
    }
    Ok(terms)
}

/// A polynomial's `count` elements for these sizes.
fn evaluate(polynomial: &Polynomial, sizes: &[usize], count: usize) -> Vec<i64> {
    let mut values = vec![0i64; count];
    for (powers, coefficients) in polynomial {
        let product: i64 =
            sizes.iter().zip(powers).filter(|(_, p)| **p > 0).map(|(&s, _)| s as i64).product();
        values.iter_mut().zip(coefficients).for_each(|(v, c)| *v += c * product);
    }
    values
}

/// The sizes as values of a graph, and products of them.
pub struct Sizes {
    each: Vec<ValueId>,
    /// Int64 scalars, by how often each size occurs.
    products: HashMap<Vec<usize>, ValueId>,
}

impl Sizes {
    pub fn new(each: Vec<ValueId>) -> Self {
        Self { each, products: HashMap::new() }
    }

    fn sum(&mut self, b: &mut Builder, polynomial: &Polynomial, shape: &[usize]) -> ValueId {
        let mut total: Option<ValueId> = None;
        for (powers, coefficients) in polynomial.iter().filter(|(_, c)| c.iter().any(|&c| c != 0)) {
            let constant = b.constant(Tensor::i64(shape, coefficients));
            let term = match powers.iter().all(|&p| p == 0) {
                true => constant,
                false => {
                    let product = self.product(b, powers);
                    b.mul(&constant, &product)
                }
            };
            total = Some(match total {
                Some(so_far) => b.add(&so_far, &term),
                None => term,
            });
        }
        total.unwrap_or_else(|| b.constant(Tensor::zeros(DType::I64, shape)))
    }

    fn product(&mut self, b: &mut Builder, powers: &[usize]) -> ValueId {
        if let Some(made) = self.products.get(powers) {
            return made.clone();
        }
        let mut product: Option<ValueId> = None;
        for (size, _) in self.each.iter().zip(powers).filter(|(_, p)| **p > 0) {
            product = Some(match product {
                Some(so_far) => b.mul(&so_far, size),
                None => size.clone(),
            });
        }
        let product = product.unwrap_or_else(|| b.constant(Tensor::i64(&[], &[1])));
        self.products.insert(powers.to_vec(), product.clone());
        product
    }
}
