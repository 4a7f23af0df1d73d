//! Parameter graphs as drawings: DOT for Graphviz, Mermaid for documents. Interfaces are round, matrices square.

use super::{InterfaceKind, ParamGraph, Weight};
use std::collections::BTreeSet;
use std::fmt::Write;

impl ParamGraph {
    /// A Graphviz digraph.
    pub fn to_dot(&self) -> String {
        let mut text = String::from(
            "digraph parameters {\n  rankdir=TB;\n  node [fontname=\"sans-serif\", fontsize=10];\n",
        );
        let quoted = |label: &str| label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        for (i, interface) in self.interfaces.iter().enumerate() {
            let style = match interface.kind {
                InterfaceKind::Hidden => "",
                _ => ", style=bold",
            };
            let _ = writeln!(
                text,
                "  i{i} [shape=ellipse{style}, label=\"{}\"];",
                quoted(&self.interface_label(i))
            );
        }
        for (id, weight) in self.matrices() {
            let _ = writeln!(text, "  w{} [shape=box, label=\"{}\"];", id.0, quoted(&weight_label(weight)));
        }
        for (from, to) in self.arrows() {
            let _ = writeln!(text, "  {from} -> {to};");
        }
        text + "}\n"
    }

    /// A Mermaid flowchart.
    pub fn to_mermaid(&self) -> String {
        let mut text = String::from("flowchart TD\n");
        // Mermaid knows entities, but no escapes.
        let quoted = |label: &str| {
            label.replace('#', "#35;").replace('"', "#quot;").replace('<', "#lt;").replace('\n', "<br/>")
        };
        for i in 0..self.interfaces.len() {
            let _ = writeln!(text, "  i{i}([\"{}\"])", quoted(&self.interface_label(i)));
        }
        for (id, weight) in self.matrices() {
            let _ = writeln!(text, "  w{}[\"{}\"]", id.0, quoted(&weight_label(weight)));
        }
        for (from, to) in self.arrows() {
            let _ = writeln!(text, "  {from} --> {to}");
        }
        text
    }

    fn interface_label(&self, index: usize) -> String {
        let interface = &self.interfaces[index];
        let kind = match interface.kind {
            InterfaceKind::Input => "input",
            InterfaceKind::Hidden => "hidden",
            InterfaceKind::Output => "output",
        };
        format!("{kind} {index}\n{} channels", interface.channels)
    }

    /// Interface to matrix to interface; from matrix to matrix where no interface is known between them.
    fn arrows(&self) -> BTreeSet<(String, String)> {
        let mut arrows = BTreeSet::new();
        for (id, weight) in self.matrices() {
            arrows.extend(weight.input.iter().map(|u| (format!("i{}", u.interface.0), format!("w{}", id.0))));
            arrows
                .extend(weight.output.iter().map(|u| (format!("w{}", id.0), format!("i{}", u.interface.0))));
        }
        for (from, to) in self.edges.list() {
            let (a, b) = (self.weight(from), self.weight(to));
            let joined = a.output.iter().any(|o| b.input.iter().any(|i| i.interface == o.interface));
            if !joined && a.view.is_some() && b.view.is_some() {
                arrows.insert((format!("w{}", from.0), format!("w{}", to.0)));
            }
        }
        arrows
    }
}

fn weight_label(weight: &Weight) -> String {
    let shape: Vec<String> = weight.shape.iter().map(|d| d.to_string()).collect();
    format!("{}\n{} {}", weight.name, weight.role.name(), shape.join("×"))
}

#[cfg(test)]
mod tests {
    use crate::onnx::{Builder, DType, Fact, Tensor};
    use crate::params::ParamGraph;

    #[test]
    fn drawings_name_everything_and_escape_names() {
        let mut b = Builder::new("test");
        let x = b.input("x", Fact::new(DType::F32, &[1, 4]));
        let w = b.initializer("a\"b", Tensor::zeros(DType::F32, &[4, 3]));
        let y = b.matmul(&x, &w);
        b.output(&y);
        let (graph, facts) = b.finish();
        let g = ParamGraph::of_graph(&graph, &facts).unwrap();
        let dot = g.to_dot();
        assert!(
            dot.contains("label=\"a\\\"b\\nlinear 4×3\"")
                && dot.contains("i0 -> w0;")
                && dot.contains("w0 -> i1;"),
            "{dot}"
        );
        let mermaid = g.to_mermaid();
        assert!(
            mermaid.contains("w0[\"a#quot;b<br/>linear 4×3\"]") && mermaid.contains("w0 --> i1"),
            "{mermaid}"
        );
    }
}
