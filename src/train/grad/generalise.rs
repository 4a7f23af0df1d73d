//! From graphs built for fixed sizes to one graph for any: what differs between them is a function of the sizes.
//!
//! Gradient rules rely on static shapes, so that a graph is built several times, for sizes that differ in one
//! dimension at a time. Where the results have the same nodes, the constants that differ are replaced by what
//! computes them from the shapes of the inputs. Whether that is right for other sizes is not proved here, but by
//! running the result at sizes it wasn't made from. Look at [`generalise`].

use crate::onnx::{Attr, Builder, DType, Dim, Facts, Graph, Node, Tensor, ValueId};
use std::collections::HashMap;

/// A dimension that stays open: its name, and an input's axis that shows its size.
#[derive(Clone, Debug, PartialEq)]
pub struct Open {
    pub name: String,
    pub input: ValueId,
    pub axis: usize,
}

/// A graph built for some sizes of the open dimensions.
pub struct Sample {
    pub sizes: Vec<usize>,
    pub graph: Graph,
}

/// The graph that `base` and `others` are instances of. `others[i]` differs from `base` in the size of `open[i]` only.
///
/// # Errors
/// Why they are no instances of one graph, as far as can be seen.
pub fn generalise(open: &[Open], base: &Sample, others: &[Sample]) -> Result<Graph, String> {
    let mut work = Work { open, base, others, made: HashMap::new(), products: HashMap::new(), sizes: vec![] };
    let mut maps: Vec<HashMap<ValueId, ValueId>> = vec![HashMap::new(); others.len()];
    for (map, other) in maps.iter_mut().zip(others) {
        map.extend(other.graph.inputs.iter().map(|i| (i.id.clone(), i.id.clone())));
        if other.graph.nodes.len() != base.graph.nodes.len() {
            return Err("the number of operations depends on the sizes".into());
        }
    }
    let shell = Graph { nodes: vec![], outputs: vec![], ..base.graph.clone() };
    let mut b = Builder::on(shell, Facts::new());
    reserve(&mut b, &base.graph);
    work.measure(&mut b);
    for (i, node) in base.graph.nodes.iter().enumerate() {
        let twins: Vec<&Node> = others.iter().map(|o| &o.graph.nodes[i]).collect();
        let differs = |t: &&Node| {
            t.op != node.op
                || t.domain != node.domain
                || t.attrs != node.attrs
                || t.inputs.len() != node.inputs.len()
                || t.outputs.len() != node.outputs.len()
        };
        if twins.iter().any(differs) {
            return Err(format!("'{}' ({}) depends on the sizes", node.label(), node.op));
        }
        let mut node = node.clone();
        for k in 0..node.inputs.len() {
            let ids: Option<Vec<ValueId>> = twins.iter().map(|t| t.inputs[k].clone()).collect();
            node.inputs[k] = match (&node.inputs[k], ids) {
                (Some(id), Some(ids)) => Some(work.value(&mut b, id, &ids, &maps).map_err(|why| {
                    format!("'{}' ({}) reads a constant that {why}", node.label(), node.op)
                })?),
                (None, None) => None,
                (None, Some(ids)) if ids.is_empty() => None,
                _ => return Err(format!("'{}' ({}) depends on the sizes", node.label(), node.op)),
            };
        }
        for (map, twin) in maps.iter_mut().zip(&twins) {
            map.extend(
                twin.outputs.iter().zip(&node.outputs).filter_map(|(t, o)| Some((t.clone()?, o.clone()?))),
            );
        }
        b.graph_mut().nodes.push(node);
    }
    let (mut graph, _) = b.finish();
    graph.outputs = base.graph.outputs.clone();
    for (other, map) in others.iter().zip(&maps) {
        let same = other.graph.outputs.iter().map(|o| map.get(&o.id)).eq(base
            .graph
            .outputs
            .iter()
            .map(|o| Some(&o.id)));
        if !same {
            return Err("the outputs depend on the sizes".into());
        }
    }
    open_shapes(&mut graph, open, base, others);
    graph.prune();
    Ok(graph)
}

/// Names that are taken by nodes that are still to come.
fn reserve(b: &mut Builder, graph: &Graph) {
    let names: Vec<ValueId> = graph.nodes.iter().flat_map(|n| n.outputs.iter().flatten().cloned()).collect();
    b.reserve(names);
}

/// Declares the dimensions of inputs and outputs that differ between the samples as open.
fn open_shapes(graph: &mut Graph, open: &[Open], base: &Sample, others: &[Sample]) {
    for (i, info) in graph.inputs.iter_mut().enumerate() {
        for (k, dim) in info.shape.iter_mut().flatten().enumerate() {
            let at = |g: &Graph| g.inputs.get(i).and_then(|x| x.shape.as_ref()?.get(k).cloned());
            let own = at(&base.graph);
            let differing: Vec<usize> = (0..others.len()).filter(|&j| at(&others[j].graph) != own).collect();
            *dim = match differing.as_slice() {
                [] => continue,
                [one] if own == Some(Dim::Known(base.sizes[*one])) => Dim::Named(open[*one].name.clone()),
                _ => Dim::Unknown,
            };
        }
    }
    for (i, info) in graph.outputs.iter_mut().enumerate() {
        if others.iter().any(|o| o.graph.outputs.get(i).map(|x| &x.shape) != Some(&info.shape)) {
            info.shape = None;
        }
    }
}

struct Work<'a> {
    open: &'a [Open],
    base: &'a Sample,
    others: &'a [Sample],
    /// What stands for a constant of the base and its twins.
    made: HashMap<(ValueId, Vec<ValueId>), ValueId>,
    /// Products of sizes, as int64 scalars, by how often each size occurs.
    products: HashMap<Vec<usize>, ValueId>,
    sizes: Vec<ValueId>,
}

/// Σ coefficient · product of sizes, element by element: for each product, its coefficients.
type Polynomial = Vec<(Vec<usize>, Vec<i64>)>;

impl Work<'_> {
    /// Emits the sizes of the open dimensions.
    fn measure(&mut self, b: &mut Builder) {
        b.set_scope("sizes");
        for open in self.open {
            let shape = b.op("Shape", &[&open.input]);
            let axis = b.constant(Tensor::i64(&[], &[open.axis as i64]));
            let size = b.op_with("Gather", &[&shape, &axis], &[("axis", Attr::Int(0))]);
            self.sizes.push(size);
        }
    }

    /// The value that stands for `id` of the base and `twins` of the others.
    fn value(
        &mut self,
        b: &mut Builder,
        id: &ValueId,
        twins: &[ValueId],
        maps: &[HashMap<ValueId, ValueId>],
    ) -> Result<ValueId, String> {
        let Some(tensor) = self.base.graph.initializers.get(id) else {
            let same = twins.iter().zip(maps).all(|(t, map)| map.get(t) == Some(id));
            return if same { Ok(id.clone()) } else { Err("is another value at other sizes".into()) };
        };
        let constants: Option<Vec<&Tensor>> =
            twins.iter().zip(self.others).map(|(t, o)| o.graph.initializers.get(t)).collect();
        let constants = constants.ok_or("is computed at other sizes")?;
        if constants.iter().all(|c| *c == tensor) {
            return Ok(id.clone());
        }
        let key = (id.clone(), twins.to_vec());
        if let Some(made) = self.made.get(&key) {
            return Ok(made.clone());
        }
        let made = self.constant(b, tensor, &constants)?;
        self.made.insert(key, made.clone());
        Ok(made)
    }

    fn constant(&mut self, b: &mut Builder, base: &Tensor, others: &[&Tensor]) -> Result<ValueId, String> {
        if others.iter().any(|o| o.dtype() != base.dtype()) {
            return Err("has another type at other sizes".into());
        }
        if others.iter().any(|o| o.shape() != base.shape()) {
            return self.uniform(b, base, others);
        }
        match base.dtype() {
            DType::I64 | DType::I32 => {
                let others: Vec<Vec<i64>> = others.iter().map(|t| t.to_i64().into_owned()).collect();
                let polynomial = self.polynomial(&base.to_i64(), &others)?;
                let value = self.emit(b, &polynomial, base.shape());
                Ok(match base.dtype() {
                    DType::I64 => value,
                    dtype => b.op_with("Cast", &[&value], &[("to", Attr::Int(dtype.to_onnx().into()))]),
                })
            }
            dtype if dtype.is_float() => self.scaled(b, base, others),
            _ => Err("is no number".into()),
        }
    }

    /// A tensor of one value everywhere, whose shape depends on the sizes.
    fn uniform(&mut self, b: &mut Builder, base: &Tensor, others: &[&Tensor]) -> Result<ValueId, String> {
        let width = base.dtype().size().ok_or("is no number")?;
        let first = base.bytes().get(..width).ok_or("is empty")?;
        let same = |t: &Tensor| t.rank() == base.rank() && t.bytes().chunks_exact(width).all(|v| v == first);
        if !same(base) || !others.iter().all(|t| same(t)) {
            return Err("has another shape at other sizes".into());
        }
        let dims = |t: &Tensor| t.shape().iter().map(|&d| d as i64).collect::<Vec<_>>();
        let other_dims: Vec<Vec<i64>> = others.iter().map(|t| dims(t)).collect();
        let polynomial = self.polynomial(&dims(base), &other_dims)?;
        let shape = self.emit(b, &polynomial, &[base.rank()]);
        let scalar = Tensor::new(base.dtype(), &[], first.to_vec()).map_err(|e| e.to_string())?;
        let scalar = b.constant(scalar);
        Ok(b.op("Expand", &[&scalar, &shape]))
    }

    /// Each element as a polynomial of the sizes: a multiple of a product of those it depends on, or else a sum of
    /// multiples.
    fn polynomial(&self, base: &[i64], others: &[Vec<i64>]) -> Result<Polynomial, String> {
        let count = self.open.len();
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
            let (from, to) =
                (|i: usize| self.base.sizes[i] as i128, |i: usize| self.others[i].sizes[i] as i128);
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

    fn emit(&mut self, b: &mut Builder, polynomial: &Polynomial, shape: &[usize]) -> ValueId {
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
        for (size, _) in self.sizes.iter().zip(powers).filter(|(_, p)| **p > 0) {
            product = Some(match product {
                Some(so_far) => b.mul(&so_far, size),
                None => size.clone(),
            });
        }
        let product = product.unwrap_or_else(|| b.constant(Tensor::i64(&[], &[1])));
        self.products.insert(powers.to_vec(), product.clone());
        product
    }

    /// Real numbers that are proportional to sizes, or to their reciprocals.
    fn scaled(&mut self, b: &mut Builder, base: &Tensor, others: &[&Tensor]) -> Result<ValueId, String> {
        let values = base.to_f64();
        let mut coefficients = values.clone();
        let mut by: Vec<(usize, bool)> = vec![];
        for (i, other) in others.iter().enumerate() {
            let (from, to) = (self.base.sizes[i] as f64, self.others[i].sizes[i] as f64);
            let grows = |ratio: f64| {
                let close = |(v, o): (&f64, f64)| (v * ratio - o).abs() <= 1e-6 * o.abs();
                values.iter().zip(other.to_f64()).all(close)
            };
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
        let to = base.dtype();
        let mut value = b.constant(Tensor::from_f64(to, base.shape(), &coefficients));
        for (i, divides) in by {
            let size = b.op_with("Cast", &[&self.sizes[i]], &[("to", Attr::Int(to.to_onnx().into()))]);
            value = b.op(if divides { "Div" } else { "Mul" }, &[&value, &size]);
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::Fact;

    /// Mean of the squares of an `[n, t, 4]` input, flattened by a reshape to known sizes, and its last column.
    fn instance(n: usize, t: usize) -> Sample {
        let mut b = Builder::new("instance");
        let x = b.input("x", Fact::new(DType::F32, &[n, t, 4]));
        let flat = b.reshape(&x, &[n * t, 4]);
        let square = b.mul(&flat, &flat);
        let total = b.sum_all(&square);
        let mean = b.mul_scalar(&total, 1.0 / (n * t) as f64);
        b.output_as("mean", &mean);
        let last = b.slice(&x, &[t as i64 - 1], &[t as i64], &[1]);
        b.output_as("last", &last);
        Sample { sizes: vec![n, t], graph: b.finish().0 }
    }

    fn open(name: &str, axis: usize) -> Open {
        Open { name: name.into(), input: "x".into(), axis }
    }

    #[test]
    fn what_differs_between_instances_is_computed_from_the_sizes() {
        let open = [open("N", 0), open("T", 1)];
        let graph = generalise(&open, &instance(3, 13), &[instance(5, 13), instance(3, 17)]).unwrap();
        let dims = graph.inputs[0].shape.clone().unwrap();
        assert_eq!(dims, [Dim::Named("N".into()), Dim::Named("T".into()), Dim::Known(4)]);
        let fixed: Vec<i64> = graph
            .initializers
            .values()
            .filter(|t| t.dtype() == DType::I64)
            .flat_map(|t| t.to_i64().into_owned())
            .collect();
        assert!(!fixed.contains(&13) && !fixed.contains(&39), "{fixed:?}");
    }

    #[test]
    fn instances_of_different_graphs_are_refused() {
        let other = |n: usize| {
            let mut sample = instance(n, 13);
            sample.graph.nodes[0] = sample.graph.nodes[0].clone().with("allowzero", n as i64);
            sample
        };
        let open = [open("N", 0)];
        let strip = |mut s: Sample| {
            s.sizes.truncate(1);
            s
        };
        let why = generalise(&open, &strip(other(3)), &[strip(other(5))]).unwrap_err();
        assert!(why.contains("Reshape"), "{why}");
    }
}
