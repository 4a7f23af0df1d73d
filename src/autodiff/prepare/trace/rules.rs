//! Where an operator's rows go: its batch axis from its inputs', and the node as it is for other rows.

use super::{Rule, Tracer};
use crate::onnx::infer::normalise_axis;
use crate::onnx::{Attr, Node};
use std::collections::HashSet;

impl Tracer<'_> {
    /// The batch axis of the output of an operator that broadcasts all its inputs.
    pub(super) fn broadcast(&self, node: &Node) -> Result<usize, String> {
        let rank = self.shape(node.output(0))?.len();
        let mut found: Option<(usize, usize)> = None;
        for i in 0..node.inputs.len() {
            let Some(axis) = self.axis(node, i) else { continue };
            let shape = self.input_shape(node, i)?;
            let here = (shape.len() - axis, shape[axis]);
            if found.is_some_and(|f| f != here) {
                return Err("its inputs carry the rows on different axes".into());
            }
            found = Some(here);
        }
        let (from_end, _) = found.ok_or("no rows")?;
        for i in 0..node.inputs.len() {
            if node.input(i).is_none() || self.axis(node, i).is_some() {
                continue;
            }
            let shape = self.input_shape(node, i)?;
            let aligned = shape.len().checked_sub(from_end).and_then(|at| shape.get(at)).copied();
            if aligned.is_some_and(|d| d != 1) {
                return Err("a constant stretches along the rows".into());
            }
        }
        rank.checked_sub(from_end).ok_or_else(|| "no rows".into())
    }

    pub(super) fn matmul(&mut self, node: &Node) -> Rule {
        let (a, b) = (self.input_shape(node, 0)?, self.input_shape(node, 1)?);
        let rank = self.shape(node.output(0))?.len();
        let contraction = || Err("sums over the rows".to_owned());
        let stretches = |shape: &[usize], from_end: usize| {
            from_end > 2 && shape.len().checked_sub(from_end).is_some_and(|at| shape[at] != 1)
        };
        let axis = match (self.axis(node, 0), self.axis(node, 1)) {
            (Some(k), None) if k + 1 == a.len() => return contraction(),
            (Some(k), None) if b.len() == 1 => k,
            (Some(k), None) if stretches(&b, a.len() - k) => {
                return Err("a constant stretches along the rows".into());
            }
            (Some(k), None) => rank - (a.len() - k),
            (None, Some(k)) if b.len() == 1 || k + 2 == b.len() => return contraction(),
            (None, Some(k)) if stretches(&a, b.len() - k) => {
                return Err("a constant stretches along the rows".into());
            }
            (None, Some(k)) if a.len() == 1 && k + 1 != b.len() => rank + 1 - (b.len() - k),
            (None, Some(k)) => rank - (b.len() - k),
            (Some(k), Some(l)) if a.len() - k == b.len() - l && a.len() - k > 2 && a[k] == b[l] => {
                rank - (a.len() - k)
            }
            _ => return Err("multiplies rows with each other".into()),
        };
        self.keep(node);
        Ok(vec![axis])
    }

    pub(super) fn gemm(&mut self, node: &Node) -> Rule {
        let axis = self
            .axis(node, 0)
            .filter(|_| self.axis(node, 1).is_none())
            .ok_or("a parameter depends on the data")?;
        if axis != usize::from(node.int_or("transA", 0) != 0) {
            return Err("sums over the rows".into());
        }
        if node.input(2).is_some() {
            let shape = self.input_shape(node, 2)?;
            match self.axis(node, 2) {
                Some(0) if shape.len() == 2 => {}
                None if shape.len() < 2 || shape[0] == 1 => {}
                _ => return Err("a constant stretches along the rows".into()),
            }
        }
        self.keep(node);
        Ok(vec![0])
    }

    pub(super) fn transpose(&mut self, node: &Node) -> Rule {
        let axis = self.only(node)?;
        let rank = self.input_shape(node, 0)?.len();
        let to = match node.ints("perm") {
            Some(perm) => {
                perm.iter().position(|&p| p == axis as i64).ok_or("has an impossible permutation")?
            }
            None => rank - 1 - axis,
        };
        self.keep(node);
        Ok(vec![to])
    }

    /// Reshaping keeps the order of elements, so that the batch lands where as many elements stand before it.
    pub(super) fn reshape(&mut self, node: &Node) -> Rule {
        let axis = self.only(node)?;
        let (from, to) = (self.input_shape(node, 0)?, self.shape(node.output(0))?);
        let before: usize = from[..axis].iter().product();
        let mut product = 1;
        let landed = to.iter().position(|&d| {
            let here = product == before && d % self.from == 0;
            product *= d;
            here
        });
        let landed = landed.ok_or("rows are torn apart")?;
        let dims = self.lifted(&to, landed);
        let mut plain = Node { op: "Reshape".into(), attrs: Default::default(), ..node.clone() };
        if to.contains(&0) {
            plain.attrs.insert("allowzero".into(), Attr::Int(1));
        }
        plain.inputs.truncate(1);
        plain.inputs.push(None);
        self.keep_with(&plain, 1, "rows", &dims);
        Ok(vec![landed])
    }

    pub(super) fn squeeze(&mut self, node: &Node) -> Rule {
        let axis = self.only(node)?;
        let (from, to) = (self.input_shape(node, 0)?, self.shape(node.output(0))?);
        let wide = from.len().max(to.len());
        let axes: Vec<i64> = match node.input(1) {
            Some(_) => self.ints(node, 1)?,
            None => (0..from.len()).filter(|&i| from[i] == 1).map(|i| i as i64).collect(),
        };
        let axes: Option<Vec<usize>> = axes.iter().map(|&a| normalise_axis(a, wide)).collect();
        let axes = axes.ok_or("has impossible axes")?;
        let to_axis = match node.op == "Unsqueeze" {
            true => (0..wide).filter(|i| !axes.contains(i)).nth(axis),
            false if axes.contains(&axis) => None,
            false => Some(axis - axes.iter().filter(|&&a| a < axis).count()),
        };
        match (to_axis, node.input(1)) {
            (Some(to_axis), Some(_)) => {
                self.keep(node);
                Ok(vec![to_axis])
            }
            _ => self.reshape(node),
        }
    }

    pub(super) fn expand(&mut self, node: &Node) -> Rule {
        let axis = self.only(node)?;
        let (from, to) = (self.input_shape(node, 0)?, self.shape(node.output(0))?);
        let landed = axis + to.len() - from.len();
        if to[landed] != from[axis] {
            return Err("stretches along the rows".into());
        }
        let dims = self.lifted(&to, landed);
        self.keep_with(node, 1, "rows", &dims);
        Ok(vec![landed])
    }

    pub(super) fn concat(&mut self, node: &Node) -> Rule {
        let rank = self.shape(node.output(0))?.len();
        let along = normalise_axis(node.int_or("axis", 0), rank).ok_or("has an impossible axis")?;
        let axis = (0..node.inputs.len()).find_map(|i| self.axis(node, i)).ok_or("no rows")?;
        if along == axis {
            return Err("appends to the rows".into());
        }
        let all: Vec<usize> = (0..node.inputs.len()).collect();
        self.keep_widened(node, &all, axis)?;
        Ok(vec![axis])
    }

    pub(super) fn slice(&mut self, node: &Node) -> Rule {
        let axis = self.only(node)?;
        let shape = self.input_shape(node, 0)?;
        let (starts, mut ends) = (self.ints(node, 1)?, self.ints(node, 2)?);
        let axes =
            if node.input(3).is_some() { self.ints(node, 3)? } else { (0..starts.len() as i64).collect() };
        let steps = if node.input(4).is_some() { self.ints(node, 4)? } else { vec![1; starts.len()] };
        let at = axes.iter().position(|&a| normalise_axis(a, shape.len()) == Some(axis));
        match at {
            None => self.keep(node),
            Some(i) if starts[i] == 0 && steps[i] == 1 && ends[i] >= shape[axis] as i64 => {
                ends[i] = i64::MAX;
                self.keep_with(node, 2, "ends", &ends);
            }
            Some(_) => return Err("cuts rows out".into()),
        }
        Ok(vec![axis])
    }

    /// Operators that work along one axis, which may not be the batch's.
    pub(super) fn along(&mut self, node: &Node, along: i64) -> Rule {
        let axis = self.only(node)?;
        let rank = self.input_shape(node, 0)?.len();
        if normalise_axis(along, rank) == Some(axis) {
            return Err("works across the rows".into());
        }
        self.keep(node);
        Ok(vec![axis])
    }

    pub(super) fn gather(&mut self, node: &Node) -> Rule {
        let (data, index) = (self.input_shape(node, 0)?, self.input_shape(node, 1)?);
        let along = normalise_axis(node.int_or("axis", 0), data.len()).ok_or("has an impossible axis")?;
        let axis = match (self.axis(node, 0), self.axis(node, 1)) {
            (Some(k), None) if k == along && data[k] == 1 && index.iter().product::<usize>() == 1 => {
                return self.reshape(&Node { inputs: vec![node.inputs[0].clone()], ..node.clone() });
            }
            (Some(k), None) if k == along => return Err("picks rows".into()),
            (Some(k), None) if k < along => k,
            (Some(k), None) => k - 1 + index.len(),
            (None, Some(k)) => along + k,
            _ => return Err("picks from the rows by data".into()),
        };
        self.keep(node);
        Ok(vec![axis])
    }

    pub(super) fn elements(&mut self, node: &Node) -> Rule {
        let rank = self.input_shape(node, 0)?.len();
        let along = normalise_axis(node.int_or("axis", 0), rank);
        let axis = (0..node.inputs.len()).find_map(|i| self.axis(node, i)).ok_or("no rows")?;
        if along == Some(axis) {
            return Err("works across the rows".into());
        }
        self.keep_widened(node, &[0, 1, 2], axis)?;
        Ok(vec![axis])
    }

    pub(super) fn gather_nd(&mut self, node: &Node) -> Rule {
        match (self.axis(node, 0), self.axis(node, 1)) {
            (None, Some(k)) if k + 1 < self.input_shape(node, 1)?.len() => {
                self.keep(node);
                Ok(vec![k])
            }
            (Some(k), Some(l)) if k == l && (k as i64) < node.int_or("batch_dims", 0) => {
                self.keep(node);
                Ok(vec![k])
            }
            _ => Err("picks from the rows by data".into()),
        }
    }

    pub(super) fn layer_norm(&mut self, node: &Node) -> Rule {
        let rank = self.input_shape(node, 0)?.len();
        let first = normalise_axis(node.int_or("axis", -1), rank).ok_or("has an impossible axis")?;
        let axis = match node.op.as_str() {
            "SkipLayerNormalization" => {
                self.keep_widened(node, &[0, 1], 0)?;
                return Ok(vec![0]);
            }
            _ => self.only(node)?,
        };
        if axis >= first {
            return Err("normalises across the rows".into());
        }
        self.keep(node);
        Ok(vec![axis])
    }

    pub(super) fn mean_variance(&mut self, node: &Node) -> Rule {
        let axis = self.only(node)?;
        let rank = self.input_shape(node, 0)?.len();
        let axes = node.ints("axes").unwrap_or(&[0, 2, 3]);
        if axes.iter().any(|&a| normalise_axis(a, rank) == Some(axis)) {
            return Err("normalises across the rows".into());
        }
        self.keep(node);
        Ok(vec![axis])
    }

    pub(super) fn reduce(&mut self, node: &Node, axes: Option<Vec<i64>>) -> Rule {
        let axis = self.only(node)?;
        let rank = self.input_shape(node, 0)?.len();
        let axes = match axes {
            Some(axes) => axes,
            None if node.input(1).is_some() => self.ints(node, 1)?,
            None => vec![],
        };
        if axes.is_empty() && node.int_or("noop_with_empty_axes", 0) != 0 {
            self.keep(node);
            return Ok(vec![axis]);
        }
        let axes: Vec<usize> = match axes.is_empty() {
            true => (0..rank).collect(),
            false => axes.iter().filter_map(|&a| normalise_axis(a, rank)).collect(),
        };
        if axes.contains(&axis) {
            return Err("reduces over the rows".into());
        }
        let keepdims = node.int_or("keepdims", 1) != 0;
        self.keep(node);
        Ok(vec![if keepdims { axis } else { axis - axes.iter().filter(|&&a| a < axis).count() }])
    }

    pub(super) fn pad(&mut self, node: &Node) -> Rule {
        let axis = self.only(node)?;
        let rank = self.input_shape(node, 0)?.len();
        let pads = self.ints(node, 1)?;
        let axes = if node.input(3).is_some() { self.ints(node, 3)? } else { (0..rank as i64).collect() };
        let at = axes.iter().position(|&a| normalise_axis(a, rank) == Some(axis));
        let padded =
            at.is_some_and(|i| [i, i + axes.len()].iter().any(|&i| pads.get(i).is_some_and(|&p| p != 0)));
        if padded {
            return Err("pads the rows".into());
        }
        self.keep(node);
        Ok(vec![axis])
    }

    pub(super) fn tile(&mut self, node: &Node) -> Rule {
        let axis = self.only(node)?;
        if self.ints(node, 1)?.get(axis) != Some(&1) {
            return Err("repeats the rows".into());
        }
        self.keep(node);
        Ok(vec![axis])
    }

    pub(super) fn resize(&mut self, node: &Node) -> Rule {
        let axis = self.only(node)?;
        let to = self.shape(node.output(0))?;
        if self.input_shape(node, 0)?.get(axis) != to.get(axis) {
            return Err("resizes the rows".into());
        }
        match (node.input(3), node.ints("axes")) {
            (Some(_), None) => {
                let dims = self.lifted(&to, axis);
                self.keep_with(node, 3, "rows", &dims);
            }
            _ => self.keep(node),
        }
        Ok(vec![axis])
    }

    /// LSTM, GRU, RNN: initial states and lengths get as many rows as the sequence.
    pub(super) fn recurrent(&mut self, node: &Node) -> Rule {
        let batch_first = node.int_or("layout", 0) != 0;
        let axis = usize::from(!batch_first);
        if (1..4).any(|i| self.axis(node, i).is_some()) || self.axis(node, 7).is_some() {
            return Err("a parameter depends on the data".into());
        }
        let mut node = node.clone();
        for (i, at) in [(0, axis), (4, 0), (5, axis), (6, axis)] {
            let Some(id) = node.input(i).cloned() else { continue };
            match self.axis(&node, i) {
                Some(found) if found == at => {}
                None => node.inputs[i] = Some(self.widen(&id, at)?),
                Some(_) => return Err("the rows are on the axis of time".into()),
            }
        }
        self.out.nodes.push(node);
        Ok(if batch_first { vec![0, 0, 0] } else { vec![2, 1, 1] })
    }

    pub(super) fn one_hot(&mut self, node: &Node) -> Rule {
        let axis = self.only(node)?;
        let rank = self.shape(node.output(0))?.len();
        let new = normalise_axis(node.int_or("axis", -1), rank).ok_or("has an impossible axis")?;
        self.keep(node);
        Ok(vec![if axis < new { axis } else { axis + 1 }])
    }

    pub(super) fn einsum(&mut self, node: &Node) -> Rule {
        let equation: String = node.str("equation").unwrap_or_default().split_whitespace().collect();
        let (left, right) = equation.split_once("->").ok_or("has no explicit output")?;
        if equation.contains('.') {
            return Err("has an ellipsis".into());
        }
        let terms: Vec<Vec<char>> = left.split(',').map(|t| t.chars().collect()).collect();
        let labels: HashSet<char> =
            (0..node.inputs.len()).filter_map(|i| terms.get(i)?.get(self.axis(node, i)?).copied()).collect();
        let label = labels
            .iter()
            .next()
            .copied()
            .filter(|_| labels.len() == 1)
            .ok_or("its inputs carry different rows")?;
        if (0..node.inputs.len())
            .any(|i| self.axis(node, i).is_none() && terms.get(i).is_some_and(|t| t.contains(&label)))
        {
            return Err("a constant stretches along the rows".into());
        }
        let axis = right.chars().position(|c| c == label).ok_or("sums over the rows")?;
        self.keep(node);
        Ok(vec![axis])
    }
}
