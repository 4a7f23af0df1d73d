//! One or two parameter graphs as a page for a browser: drawn here, so that it is all there without a script; the script
//! moves the drawing, finds names and tells what is tapped.

use super::Inspected;
use super::layout::{HEIGHT, Layout, Place, ROW, WIDTH};
use super::text::{label, product, shortened, totals, view};
use crate::params::{InterfaceKind, Pairing, ParamGraph, Weight, WeightId};
use crate::report::{document, escape, name};
use std::fmt::Write;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// Between two graphs, and around them.
const MIDDLE: f64 = 220.0;
const MARGIN: f64 = 100.0;
/// Above a graph: its name.
const HEAD: f64 = 56.0;

/// A graph and where it stands.
struct Side<'a> {
    /// `s` for the source, `t` for the target: what ids begin with.
    mark: char,
    params: &'a ParamGraph,
    layout: Layout,
    left: f64,
}

impl Side<'_> {
    fn interface(&self, index: usize) -> Place {
        self.at(self.layout.interfaces[index])
    }
    fn weight(&self, id: WeightId) -> Option<Place> {
        self.layout.weights[id.0].map(|place| self.at(place))
    }
    fn at(&self, place: Place) -> Place {
        Place { x: place.x + self.left, y: place.y + HEAD }
    }
}

/// The whole page: the source, where there is one, on the left, as knowledge goes to the right.
pub fn page(target: &Inspected, pairing: Option<(&Inspected, &Pairing)>) -> String {
    let mut left = MARGIN;
    let mut side = |mark: char, params| {
        let layout = Layout::of(params);
        let side = Side { mark, params, left, layout };
        left += side.layout.width + MIDDLE;
        side
    };
    let source = pairing.map(|(source, _)| side('s', &source.params));
    let own = side('t', &target.params);
    let width = own.left + own.layout.width + MARGIN;
    let height = HEAD + own.layout.height.max(source.as_ref().map_or(0.0, |s| s.layout.height)) + MARGIN;
    let mut svg = format!(
        "<svg id=\"drawing\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"parameter graphs\"><g id=\"scene\">\n"
    );
    if let (Some(source), Some((_, pairing))) = (&source, pairing) {
        pairs(&mut svg, source, &own, pairing);
    }
    if let (Some(source), Some((inspected, _))) = (&source, pairing) {
        graph(&mut svg, source, inspected, None);
    }
    graph(&mut svg, &own, target, pairing.map(|(_, pairing)| pairing));
    svg += "</g></svg>\n";
    let body = format!(
        "{}<div id=\"canvas\">{svg}</div>\n<aside id=\"details\" hidden></aside>\n<script>{SCRIPT}</script>",
        bar(target, pairing)
    );
    document(&name(&target.path), STYLE, &body)
}

/// Above the drawing: what is seen, and the controls.
fn bar(target: &Inspected, pairing: Option<(&Inspected, &Pairing)>) -> String {
    let shown = |i: &Inspected| {
        let t = totals(&i.params);
        format!("<b>{}</b> {} weights, {} numbers", escape(&name(&i.path)), t.weights, grouped(t.parameters))
    };
    let mut text = String::from("<header><div class=\"what\">");
    if let Some((source, pairing)) = pairing {
        let by_maps = pairing.weights.iter().filter(|p| p.source.is_some()).count();
        let by_tokens =
            pairing.weights.iter().filter(|p| p.source.is_none() && !p.candidates.is_empty()).count();
        let _ = write!(
            text,
            "<p>{} → {}</p><p class=\"soft\">Of {} matrices of the target {by_maps} have a counterpart between paired channel \
             spaces <i class=\"key maps\"></i>, {by_tokens} take tokens of others <i class=\"key tokens\"></i>; {} of {} channel \
             spaces are paired <i class=\"key spaces\"></i>.</p>",
            shown(source),
            shown(target),
            pairing.weights.len(),
            pairing.interfaces.len(),
            target.params.interfaces.len(),
        );
    } else {
        let _ = write!(text, "<p>{}</p>", shown(target));
    }
    text + "</div><div class=\"controls\"><input id=\"search\" type=\"search\" placeholder=\"find a weight\" aria-label=\"find a weight\" \
            autocomplete=\"off\"><span id=\"found\" class=\"soft\"></span><button id=\"in\" aria-label=\"larger\">+</button>\
            <button id=\"out\" aria-label=\"smaller\">−</button><button id=\"all\">all</button></div></header>\n"
}

/// 25557032 as `25 557 032`.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let head = digits.len() % 3;
    let parts =
        std::iter::once(&digits[..head]).chain((head..digits.len()).step_by(3).map(|i| &digits[i..i + 3]));
    parts.filter(|p| !p.is_empty()).collect::<Vec<_>>().join("\u{202f}")
}

fn graph(svg: &mut String, side: &Side<'_>, inspected: &Inspected, pairing: Option<&Pairing>) {
    let _ = writeln!(
        svg,
        "<text class=\"head\" x=\"{:.0}\" y=\"28\" text-anchor=\"middle\">{}</text>",
        side.left + side.layout.width / 2.0,
        escape(&shortened(&name(&inspected.path)))
    );
    for (id, weight) in side.params.matrices() {
        let Some(place) = side.weight(id) else { continue };
        for (end, ends) in [(false, &weight.input), (true, &weight.output)] {
            for part in ends {
                let space = side.interface(part.interface.0);
                let ids = (format!("{}w{}", side.mark, id.0), format!("{}i{}", side.mark, part.interface.0));
                let path = if end { flow(place, space) } else { flow(space, place) };
                let _ = writeln!(
                    svg,
                    "<path class=\"flow\" data-a=\"{}\" data-b=\"{}\" d=\"{path}\"/>",
                    ids.0, ids.1
                );
            }
        }
    }
    for (i, interface) in side.params.interfaces.iter().enumerate() {
        let kind = match interface.kind {
            InterfaceKind::Hidden => "space",
            _ => "space end",
        };
        let vectors: Vec<&str> =
            interface.vectors.iter().map(|&v| side.params.weight(v).name.as_str()).collect();
        let title = label(side.params, i);
        let facts = format!(
            "channel space of {} channels, on which {} vectors live",
            interface.channels,
            vectors.len()
        );
        let plural = if interface.channels == 1 { "" } else { "s" };
        let lines = (title.clone(), format!("{} channel{plural}", interface.channels));
        let about = [vec![facts], vectors.iter().map(|v| (*v).to_owned()).collect()].concat();
        node(svg, &format!("{}i{i}", side.mark), kind, side.interface(i), &title, lines, &about);
    }
    for (id, weight) in side.params.matrices() {
        let Some(place) = side.weight(id) else { continue };
        let pair = pairing.and_then(|p| p.weights.iter().find(|w| w.target == id));
        let kind = match pair {
            Some(pair) if pair.source.is_none() && pair.candidates.is_empty() => "matrix alone",
            _ => "matrix",
        };
        let shape = format!("{} {}", weight.role.name(), product(&weight.shape));
        let lines = (shortened_to(weight.name.as_str()), shape);
        node(
            svg,
            &format!("{}w{}", side.mark, id.0),
            kind,
            place,
            weight.name.as_str(),
            lines,
            &about(weight),
        );
    }
}

fn about(weight: &Weight) -> Vec<String> {
    let matrix = weight.view.as_ref().map(|v| format!("as a matrix {}", view(v)));
    let mut lines = vec![
        format!("{} {} {}", weight.role.name(), weight.dtype, product(&weight.shape)),
        format!("depth {}", weight.depth),
    ];
    lines.extend(matrix);
    if weight.nodes.len() > 1 {
        lines.push(format!("used {} times", weight.nodes.len()));
    }
    lines
}

/// A name for a box.
fn shortened_to(name: &str) -> String {
    const LETTERS: usize = 24;
    let letters: Vec<char> = name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match letters.len() {
        n if n <= LETTERS => letters.into_iter().collect(),
        n => ['…'].iter().chain(&letters[n - (LETTERS - 1)..]).collect(),
    }
}

fn node(
    svg: &mut String,
    id: &str,
    kind: &str,
    at: Place,
    name: &str,
    lines: (String, String),
    about: &[String],
) {
    let round = if kind.starts_with("space") { HEIGHT / 2.0 } else { 5.0 };
    let _ = writeln!(
        svg,
        "<g class=\"node {kind}\" id=\"{id}\" tabindex=\"0\" data-name=\"{}\" data-about=\"{}\">\
         <rect x=\"{:.0}\" y=\"{:.0}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"{round}\"/>\
         <text x=\"{:.0}\" y=\"{:.0}\">{}</text><text class=\"sub\" x=\"{:.0}\" y=\"{:.0}\">{}</text></g>",
        escape(name),
        escape(&about.join("\n")),
        at.x,
        at.y,
        at.centre(),
        at.y + 16.0,
        escape(&lines.0),
        at.centre(),
        at.y + 30.0,
        escape(&lines.1)
    );
}

/// From the lower edge of one box to the upper of another. What skips rows goes around the left side, what goes back up
/// around the right.
fn flow(from: Place, to: Place) -> String {
    let (x0, y0, x1, y1) = (from.centre(), from.y + HEIGHT, to.centre(), to.y);
    let down = y1 - y0;
    if (0.0..3.0 * ROW).contains(&down) {
        let bend = down / 2.0;
        return format!("M{x0:.0} {y0:.0}C{x0:.0} {:.0} {x1:.0} {:.0} {x1:.0} {y1:.0}", y0 + bend, y1 - bend);
    }
    let reach = 40.0 + (down.abs() / 12.0).min(90.0);
    let (side, out) = match down > 0.0 {
        true => (0.0, from.x.min(to.x) - reach),
        false => (WIDTH, from.x.max(to.x) + WIDTH + reach),
    };
    let (x0, y0, x1, y1) = (from.x + side, from.y + HEIGHT / 2.0, to.x + side, to.y + HEIGHT / 2.0);
    format!("M{x0:.0} {y0:.0}C{out:.0} {y0:.0} {out:.0} {y1:.0} {x1:.0} {y1:.0}")
}

/// Lines from the source's parts to what they serve in the target.
fn pairs(svg: &mut String, source: &Side<'_>, target: &Side<'_>, pairing: &Pairing) {
    for &(t, s) in &pairing.interfaces {
        let ends = (source.interface(s.0), target.interface(t.0));
        pair(svg, "spaces", &format!("si{}", s.0), &format!("ti{}", t.0), ends);
    }
    for found in &pairing.weights {
        let kinds = [
            ("maps", found.source),
            ("tokens", found.candidates.first().copied().filter(|_| found.source.is_none())),
        ];
        for (kind, from) in kinds {
            let places = from.and_then(|id| source.weight(id)).zip(target.weight(found.target));
            if let (Some(from), Some(ends)) = (from, places) {
                pair(svg, kind, &format!("sw{}", from.0), &format!("tw{}", found.target.0), ends);
            }
        }
    }
}

fn pair(svg: &mut String, kind: &str, from: &str, to: &str, ends: (Place, Place)) {
    let (x0, y0) = (ends.0.x + WIDTH, ends.0.y + HEIGHT / 2.0);
    let (x1, y1) = (ends.1.x, ends.1.y + HEIGHT / 2.0);
    let middle = (x0 + x1) / 2.0;
    let _ = writeln!(
        svg,
        "<path class=\"pair {kind}\" data-a=\"{from}\" data-b=\"{to}\" d=\"M{x0:.0} {y0:.0}C{middle:.0} {y0:.0} {middle:.0} {y1:.0} {x1:.0} {y1:.0}\"/>"
    );
}
