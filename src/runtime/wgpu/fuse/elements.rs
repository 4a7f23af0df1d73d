//! The text of a kernel that goes element by element.

use super::super::kernel::ELEMENTWISE;
use super::super::lower::GROUP;
use super::super::plan::Call;
use super::super::view::{WIDE, Walk, lies_in_vectors};
use super::operands::{Lie, Operands, bindings};
use super::{By, Group};
use std::fmt::Write;

/// The kernel's text, parameters and buffers.
pub fn into_call(group: &Group, uses: &[usize]) -> Call {
    let n = group.len();
    let strided: Vec<usize> =
        (0..group.loads.len()).filter(|&i| !group.loads[i].view.is_contiguous()).collect();
    let views = || strided.iter().map(|&i| &group.loads[i].view);
    let strides: Vec<&[i32]> = views().map(|view| view.strides.as_slice()).collect();
    let walk = Walk::new(&group.shape, &strides);
    let mut params = vec![n as i32, walk.rank()];
    params.extend(group.numbers.iter().map(|&word| word as i32));
    params.extend(&walk.dims);
    for (view, strides) in views().zip(&walk.strides) {
        params.push(view.offset);
        params.extend(strides);
    }
    let written: Vec<usize> = group.written(uses).collect();
    let width = match n.is_multiple_of(WIDE) && walk.dims.last().is_none_or(|&d| d % WIDE as i32 == 0) {
        true => WIDE,
        false => 1,
    };
    let mut lies = vec![Lie::Vector; group.loads.len()];
    for (&i, strides) in strided.iter().zip(&walk.strides) {
        lies[i] = match strides.last() {
            _ if lies_in_vectors(strides, group.loads[i].view.offset) => Lie::Vector,
            Some(0) | None => Lie::Same,
            _ => Lie::Elements,
        };
    }
    let operands = Operands::new(group, width, lies);
    let text = Text { group, operands, strided, width, written: &written };
    let (bindings, chain) = (text.bindings(), text.chain());
    let (loads, stores) = (text.loads(), text.stores());
    let values = [("bindings", &bindings), ("chain", &chain), ("loads", &loads), ("stores", &stores)];
    let values = values.map(|(name, text)| (name, text.trim_end()));
    let width_text = width.to_string();
    let values = [&values[..], &[("width", &width_text)]].concat();
    Call {
        source: ELEMENTWISE.expand(&values),
        params,
        writes: written.iter().map(|&i| group.made[i].storage).collect(),
        // A group whose results nobody reads computes nothing.
        groups: if written.is_empty() { 0 } else { (n / width).div_ceil(GROUP) },
        reads: text.operands.storages,
        tiling: None,
    }
}

/// The changing parts of a group's kernel.
struct Text<'a> {
    group: &'a Group<'a>,
    operands: Operands<'a>,
    /// Which loads aren't read at an element's own place.
    strided: Vec<usize>,
    /// Elements that an invocation computes, next to each other.
    width: usize,
    written: &'a [usize],
}

impl Text<'_> {
    fn bindings(&self) -> String {
        let written = |&i: &usize| self.group.made[i].elem.vector(self.width);
        bindings(&self.operands.types(), &self.written.iter().map(written).collect::<Vec<_>>())
    }
    /// The chain for one element, as a function of its operands that returns what is written.
    fn chain(&self) -> String {
        let mut text = String::from("struct Results {\n");
        for &i in self.written {
            let _ = writeln!(text, "    v{i}: {},", self.group.made[i].elem.wgsl());
        }
        let operands: Vec<String> = (self.group.loads.iter().enumerate())
            .map(|(i, load)| format!("a{i}: {}", load.elem.wgsl()))
            .collect();
        let results: Vec<String> = self.written.iter().map(|i| format!("v{i}")).collect();
        let _ = writeln!(text, "}}\n\nfn chain({}) -> Results {{", operands.join(", "));
        for (i, made) in self.group.made.iter().enumerate() {
            if let By::Map(expr) = &made.by {
                let _ = writeln!(text, "    let v{i}: {} = {expr};", made.elem.wgsl());
            }
        }
        let _ = writeln!(text, "    return Results({});\n}}", results.join(", "));
        text
    }
    /// Reads the operands of every element into variables; strided ones walk the dimensions together.
    fn loads(&self) -> String {
        let mut text = String::new();
        if !self.strided.is_empty() {
            let sizes = format!("NUMBERS + {}", self.group.numbers.len());
            let _ = writeln!(text, "    let rank = param(1);\n    var rest = first;");
            for (k, i) in self.strided.iter().enumerate() {
                let _ = writeln!(text, "    let o{i} = {sizes} + rank + {k} * (rank + 1);");
                let _ = writeln!(text, "    var at{i} = param(o{i});");
            }
            let _ = writeln!(text, "    for (var d = rank - 1; d >= 0; d--) {{");
            let _ =
                writeln!(text, "        let size = param({sizes} + d);\n        let quotient = rest / size;");
            let _ = writeln!(text, "        let c = rest - quotient * size;\n        rest = quotient;");
            for i in &self.strided {
                let _ = writeln!(text, "        at{i} += c * param(o{i} + 1 + d);");
            }
            let _ = writeln!(text, "    }}");
        }
        for (i, load) in self.group.loads.iter().enumerate() {
            let x = self.operands.buffer(i);
            let at = if self.strided.contains(&i) { format!("at{i}") } else { "first".into() };
            if self.operands.by_vectors(load.storage) {
                let _ = writeln!(text, "    let whole{i} = {x}[{at} / {WIDE}];");
            }
            let step = match self.operands.lies[i] {
                Lie::Elements => format!("param(o{i} + rank)"),
                _ => "1".to_owned(),
            };
            for e in 0..self.width {
                let _ = match self.operands.by_vectors(load.storage) {
                    true => writeln!(text, "    let a{i}_{e} = whole{i}[{e}];"),
                    false if e > 0 && self.operands.lies[i] == Lie::Same => {
                        writeln!(text, "    let a{i}_{e} = a{i}_0;")
                    }
                    false if e > 0 => writeln!(text, "    let a{i}_{e} = {x}[{at} + {e} * {step}];"),
                    false => writeln!(text, "    let a{i}_{e} = {x}[{at}];"),
                };
            }
        }
        text
    }
    fn stores(&self) -> String {
        let mut text = String::new();
        for e in 0..self.width {
            let operands: Vec<String> = (0..self.group.loads.len()).map(|i| format!("a{i}_{e}")).collect();
            let _ = writeln!(text, "    let r{e} = chain({});", operands.join(", "));
        }
        for (k, &i) in self.written.iter().enumerate() {
            let parts: Vec<String> = (0..self.width).map(|e| format!("r{e}.v{i}")).collect();
            let vector = self.group.made[i].elem.vector(self.width);
            let _ = writeln!(text, "    y{k}[first / {}] = {vector}({});", self.width, parts.join(", "));
        }
        text
    }
}
