//! The text of a kernel that goes row by row, with reductions.
//!
//! A value's *level* is how many reductions, each depending on the one before, it takes. Pass p over a row computes what
//! the reductions of level p + 1 need; the last one what is written. Where a row's operands fit into registers, they are
//! loaded once and every pass goes on from what earlier ones computed; else each pass loads and computes anew.

use super::super::kernel::{FOLD, ROWS};
use super::super::lower::GROUP;
use super::super::plan::{Call, Elem, Kind};
use super::super::template::fill;
use super::super::view::{View, WIDE, Walk, lies_in_vectors};
use super::operands::{Lie, Operands, bindings};
use super::{By, Group, Made, Per, Source, product, push_new};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Vectors of an operand that an invocation holds, where rows are long enough.
const CHUNKS: usize = 4;
/// The same of single elements.
const SINGLE_CHUNKS: usize = 8;
/// Invocations of a row at most.
const MAX_LANES: usize = 256;
/// Elements of one operand, and of all, that an invocation holds in registers at most.
const MAX_HELD: usize = 32;
const MAX_HELD_TOGETHER: usize = 128;
/// Values that an invocation combines in the first of two steps.
const DOWN: usize = 8;

/// Whether the elements of every row lie at even distances.
pub fn has_even_rows(view: &View, outer: usize) -> bool {
    along(view, outer).is_some()
}

/// The stride along a row.
fn along(view: &View, outer: usize) -> Option<i32> {
    let walk = Walk::new(&view.shape[outer..], &[&view.strides[outer..]]);
    match walk.strides[0].as_slice() {
        &[stride] => Some(stride),
        [] => Some(0),
        _ => None,
    }
}

/// The kernel's text, parameters and buffers. The group's first `outer` dimensions count the rows.
pub fn into_call(group: &Group, outer: usize, uses: &[usize]) -> Call {
    let (rows, len) = (product(&group.shape[..outer]), product(&group.shape[outer..]));
    let strides: Vec<&[i32]> = group.loads.iter().map(|load| &load.view.strides[..outer]).collect();
    let walk = Walk::new(&group.shape[..outer], &strides);
    let mut params = vec![rows as i32, len as i32, walk.rank()];
    params.extend(group.numbers.iter().map(|&word| word as i32));
    params.extend(&walk.dims);
    let steps: Vec<i32> = group.loads.iter().map(|load| along(&load.view, outer).unwrap_or(0)).collect();
    for ((load, strides), &step) in group.loads.iter().zip(&walk.strides).zip(&steps) {
        params.push(load.view.offset);
        params.extend(strides);
        params.push(step);
    }
    let written: Vec<usize> = group.written(uses).collect();
    let lies = (group.loads.iter().zip(&walk.strides).zip(&steps))
        .map(|((load, strides), &step)| match step {
            0 => Lie::Same,
            1 if lies_in_vectors(&[&strides[..], &[1]].concat(), load.view.offset) => Lie::Vector,
            _ => Lie::Elements,
        })
        .collect();
    let layout = Layout::new(len, steps.iter().filter(|&&step| step != 0).count());
    let text = Text {
        group,
        operands: Operands::new(group, layout.width, lies),
        rank: walk.rank() as usize,
        layout,
        levels: levels(group),
        written: &written,
    };
    let layout = &text.layout;
    let (size, members) = (layout.size(), layout.size() / layout.lanes);
    let (passes, body) = text.passes();
    let values = [
        ("bindings", text.bindings()),
        ("folds", text.folds()),
        ("passes", passes),
        ("body", body.trim_end().to_owned()),
        ("size", size.to_string()),
        ("members", members.to_string()),
        ("lanes", layout.lanes.to_string()),
        ("width", layout.width.to_string()),
    ];
    let values = values.each_ref().map(|(name, text)| (*name, text.as_str()));
    Call {
        source: ROWS.expand(&values),
        params,
        writes: written.iter().map(|&i| group.made[i].storage).collect(),
        groups: if written.is_empty() { 0 } else { rows.div_ceil(members) },
        reads: text.operands.storages,
        tiling: None,
    }
}

/// How a row is shared out: chunk k of lane t is the vector at t + k · lanes.
struct Layout {
    /// Elements of a vector.
    width: usize,
    lanes: usize,
    /// Of a lane; where rows aren't held in registers, at a time.
    chunks: usize,
    held: bool,
    /// Whether the last chunk is there for some lanes only; where rows aren't held, any may be.
    ragged: bool,
}

impl Layout {
    /// For rows of `len` elements, of which an invocation reads `operands` different ones.
    fn new(len: usize, operands: usize) -> Self {
        let (width, usual) = if len.is_multiple_of(WIDE) { (WIDE, CHUNKS) } else { (1, SINGLE_CHUNKS) };
        let vectors = len / width;
        let lanes = vectors.div_ceil(usual).next_power_of_two().min(MAX_LANES);
        let chunks = vectors.div_ceil(lanes);
        let held = chunks * width <= MAX_HELD && chunks * width * operands <= MAX_HELD_TOGETHER;
        Layout {
            width,
            lanes,
            chunks: if held { chunks } else { usual },
            held,
            ragged: !held || !vectors.is_multiple_of(lanes),
        }
    }
    /// Invocations of a workgroup.
    fn size(&self) -> usize {
        self.lanes.max(GROUP)
    }
    /// Whether some lanes have no chunk `k`.
    fn may_lack(&self, k: usize) -> bool {
        self.ragged && (!self.held || k + 1 == self.chunks)
    }
}

/// How many reductions, each depending on the one before, a group's values take.
fn levels(group: &Group) -> Vec<usize> {
    let mut levels: Vec<usize> = vec![];
    for made in &group.made {
        let read = made.reads.iter().map(|source| match source {
            Source::Load(_) => 0,
            Source::Made(i) => levels[*i],
        });
        let own = usize::from(matches!(made.by, By::Fold(_)));
        levels.push(read.max().unwrap_or(0) + own);
    }
    levels
}

/// The changing parts of a group's kernel. Names in it: load i is a{i}, the vector of its chunk k w{i}_{k}, element e of that
/// a{i}_{k}_{e}; value i is v{i}; what pass p returns for that element is q{p}_{k}_{e}.
struct Text<'a> {
    group: &'a Group<'a>,
    operands: Operands<'a>,
    /// Dimensions that count the rows.
    rank: usize,
    layout: Layout,
    levels: Vec<usize>,
    written: &'a [usize],
}

/// One pass over a row, as a function of what an element has: operands, and what rows and earlier passes have made.
struct Pass {
    /// The values it returns: those that are reduced next, later passes read, or are written.
    returns: Vec<usize>,
    /// The values it computes.
    computes: Vec<usize>,
    takes: Vec<Source>,
}

impl Text<'_> {
    fn made(&self, i: usize) -> &Made {
        &self.group.made[i]
    }
    /// The reductions of a level, each with what it reads.
    fn folds_of(&self, level: usize) -> impl Iterator<Item = (usize, Source)> {
        let of_level = move |i: &usize| self.levels[*i] == level;
        (0..self.group.made.len()).filter(of_level).filter_map(|i| match self.made(i).by {
            By::Fold(_) => Some((i, self.made(i).reads[0])),
            By::Map(_) => None,
        })
    }
    /// The values that are written for every element.
    fn results(&self) -> impl Iterator<Item = usize> {
        self.written.iter().copied().filter(|&i| self.made(i).per == Per::Element)
    }
    fn is_of_elements(&self, source: Source) -> bool {
        match source {
            Source::Load(i) => self.operands.lies[i] != Lie::Same,
            Source::Made(i) => self.made(i).per == Per::Element,
        }
    }
    fn elem(&self, source: Source) -> Elem {
        match source {
            Source::Load(i) => self.group.loads[i].elem,
            Source::Made(i) => self.made(i).elem,
        }
    }
    /// What each pass computes.
    fn plan(&self) -> Vec<Pass> {
        let last = self.levels.iter().copied().max().unwrap_or(0);
        // Which pass made what later ones can go on from.
        let mut known: BTreeMap<usize, usize> = BTreeMap::new();
        let mut passes: Vec<Pass> = vec![];
        for p in 0..=last {
            let mut wanted: Vec<Source> = match p == last {
                true => self.results().map(Source::Made).collect(),
                false => self.folds_of(p + 1).map(|(_, source)| source).collect(),
            };
            let mut pass = Pass { returns: vec![], computes: vec![], takes: vec![] };
            for source in &wanted {
                match source {
                    Source::Made(i) if !known.contains_key(i) => push_new(&mut pass.returns, *i),
                    _ => {}
                }
            }
            // A pass also takes what it only hands on to a reduction or a store; those find it by name.
            while let Some(source) = wanted.pop() {
                match source {
                    Source::Made(i) if self.is_of_elements(source) => match known.get(&i) {
                        Some(&earlier) => {
                            push_new(&mut passes[earlier].returns, i);
                            push_new(&mut pass.takes, source);
                        }
                        None if !pass.computes.contains(&i) => {
                            pass.computes.push(i);
                            wanted.extend(&self.made(i).reads);
                        }
                        None => {}
                    },
                    _ => push_new(&mut pass.takes, source),
                }
            }
            pass.computes.sort_unstable();
            if self.layout.held {
                known.extend(pass.computes.iter().map(|&i| (i, p)));
            }
            passes.push(pass);
        }
        passes
    }
    fn bindings(&self) -> String {
        let written = |&i: &usize| match self.made(i).per {
            Per::Element => self.made(i).elem.vector(self.layout.width),
            Per::Row => self.made(i).elem.wgsl().to_owned(),
        };
        bindings(&self.operands.types(), &self.written.iter().map(written).collect::<Vec<_>>())
    }
    fn folds(&self) -> String {
        let folds = self.group.made.iter().enumerate().filter_map(|(i, made)| match &made.by {
            By::Fold((kind, _)) => Some((i, kind)),
            By::Map(_) => None,
        });
        folds.map(|(i, kind)| self.fold(i, kind)).collect()
    }
    fn fold(&self, i: usize, kind: &Kind) -> String {
        let lanes = self.layout.lanes;
        let down = lanes.min(DOWN);
        let across = lanes / down;
        let numbers = [
            ("f", i),
            ("lanes", lanes),
            ("size", self.layout.size()),
            ("shared", usize::from(lanes > 1)),
            ("twice", usize::from(across > 1)),
            ("down", down),
            ("down_rest", down - 1),
            ("across", across),
            ("across_rest", across - 1),
        ];
        let numbers = numbers.map(|(name, number)| (name, number.to_string()));
        let texts = [("map", kind.map), ("combine", kind.combine), ("finish", kind.finish)];
        let values: Vec<(&str, &str)> =
            numbers.iter().map(|(name, number)| (*name, number.as_str())).chain(texts).collect();
        fill(FOLD, &values)
    }
    /// The functions of all passes, and the kernel's body that calls them.
    fn passes(&self) -> (String, String) {
        let passes = self.plan();
        let last = passes.len() - 1;
        let (mut functions, mut body) = (String::new(), self.row_starts());
        if self.layout.held {
            let used = |i: &usize| passes.iter().any(|pass| pass.takes.contains(&Source::Load(*i)));
            let used: Vec<usize> = (0..self.group.loads.len()).filter(used).collect();
            body += &self.chunk_places("turn");
            body += &self.chunks(&used);
        }
        body += &self.row_values(0);
        for (p, pass) in passes.iter().enumerate() {
            if !pass.returns.is_empty() {
                functions += &self.function(p, pass);
            }
            body += &match p == last {
                true if self.results().next().is_none() => String::new(),
                true => self.pass(&passes, p, |k| self.stores(&passes, p, k)),
                false => self.reduction(&passes, p),
            };
        }
        for (k, &i) in self.written.iter().enumerate().filter(|&(_, &i)| self.made(i).per == Per::Row) {
            let _ = writeln!(body, "    if (live && turn == 0) {{ y{k}[i] = v{i}; }}");
        }
        (functions, body)
    }
    /// Where the row lies in every operand, and the operands that there is one of.
    fn row_starts(&self) -> String {
        let rank = self.rank;
        let mut text = String::new();
        let sizes = self.group.numbers.len();
        for (i, lie) in self.operands.lies.iter().enumerate() {
            let at = sizes + rank + i * (rank + 2);
            let row = match rank {
                0 => String::new(),
                1 => format!(" + i * param(NUMBERS + {})", at + 1),
                _ => format!(" + address(i, {rank}, NUMBERS + {sizes}, NUMBERS + {})", at + 1),
            };
            let _ = writeln!(text, "    let start{i} = param(NUMBERS + {at}){row};");
            let x = self.operands.buffer(i);
            let _ = match lie {
                Lie::Same => writeln!(text, "    let a{i} = {x}[start{i}];"),
                Lie::Vector => Ok(()),
                Lie::Elements => writeln!(text, "    let step{i} = param(NUMBERS + {});", at + rank + 1),
            };
        }
        text
    }
    /// Where a lane's chunks stand in a row, the first at `first`.
    fn chunk_places(&self, first: &str) -> String {
        let mut text = String::new();
        for k in 0..self.layout.chunks {
            let place = format!("{first} + {}", k * self.layout.lanes);
            let _ = match self.layout.may_lack(k) {
                true => writeln!(
                    text,
                    "    let there{k} = {place} < vectors;\n    let j{k} = min({place}, vectors - 1);"
                ),
                false => writeln!(text, "    let j{k} = {place};"),
            };
        }
        text
    }
    /// Loads the chunks of operands.
    fn chunks(&self, loads: &[usize]) -> String {
        let mut text = String::new();
        let width = self.layout.width;
        for &i in loads.iter().filter(|&&i| self.operands.lies[i] != Lie::Same) {
            let x = self.operands.buffer(i);
            for k in 0..self.layout.chunks {
                if self.operands.by_vectors(self.group.loads[i].storage) {
                    let _ = writeln!(text, "    let w{i}_{k} = {x}[start{i} / {width} + j{k}];");
                    continue;
                }
                let step =
                    if self.operands.lies[i] == Lie::Elements { format!("step{i}") } else { "1".into() };
                for e in 0..width {
                    let at = format!("start{i} + (j{k} * {width} + {e}) * {step}");
                    let _ = writeln!(text, "    let a{i}_{k}_{e} = {x}[{at}];");
                }
            }
        }
        text
    }
    /// What there is one of for each row and depends on reductions of this level at most.
    fn row_values(&self, level: usize) -> String {
        let mut text = String::new();
        for (i, made) in self.group.made.iter().enumerate() {
            if let (By::Map(expr), Per::Row) = (&made.by, made.per)
                && self.levels[i] == level
            {
                let _ = writeln!(text, "    let v{i}: {} = {expr};", made.elem.wgsl());
            }
        }
        text
    }
    /// A pass as a function for one element.
    fn function(&self, p: usize, pass: &Pass) -> String {
        let mut text = format!("struct Pass{p} {{\n");
        for &i in &pass.returns {
            let _ = writeln!(text, "    v{i}: {},", self.made(i).elem.wgsl());
        }
        let takes =
            pass.takes.iter().map(|&source| format!("{}: {}", source.name(), self.elem(source).wgsl()));
        let takes: Vec<String> = takes.collect();
        let _ = writeln!(text, "}}\n\nfn pass{p}({}) -> Pass{p} {{", takes.join(", "));
        for &i in &pass.computes {
            if let By::Map(expr) = &self.made(i).by {
                let _ = writeln!(text, "    let v{i}: {} = {expr};", self.made(i).elem.wgsl());
            }
        }
        let returns: Vec<String> = pass.returns.iter().map(|i| format!("v{i}")).collect();
        let _ = writeln!(text, "    return Pass{p}({});\n}}\n", returns.join(", "));
        text
    }
    /// Pass `p` over the row: `then` for each chunk, after what the pass returns for its elements.
    fn pass(&self, passes: &[Pass], p: usize, then: impl Fn(usize) -> String) -> String {
        let (pass, mut text) = (&passes[p], String::new());
        if !self.layout.held {
            let load = |source: &Source| if let Source::Load(i) = source { Some(*i) } else { None };
            let loads: Vec<usize> = pass.takes.iter().filter_map(load).collect();
            let stride = self.layout.lanes * self.layout.chunks;
            let _ = writeln!(text, "    for (var at = turn; at < vectors; at += {stride}) {{");
            text += &self.chunk_places("at");
            text += &self.chunks(&loads);
        }
        for k in 0..self.layout.chunks {
            for e in (0..self.layout.width).filter(|_| !pass.returns.is_empty()) {
                let takes = pass.takes.iter().map(|&source| self.name(passes, p, source, k, e));
                let takes = takes.collect::<Vec<_>>().join(", ");
                let _ = writeln!(text, "    let q{p}_{k}_{e} = pass{p}({takes});");
            }
            text += &then(k);
        }
        if !self.layout.held {
            text += "    }\n";
        }
        text
    }
    /// A source's name in the body of pass `p`, for element `e` of chunk `k`.
    fn name(&self, passes: &[Pass], p: usize, source: Source, k: usize, e: usize) -> String {
        match source {
            Source::Load(i) if self.operands.lies[i] == Lie::Same => format!("a{i}"),
            Source::Load(i) if self.operands.by_vectors(self.group.loads[i].storage) => {
                format!("w{i}_{k}[{e}]")
            }
            Source::Load(i) => format!("a{i}_{k}_{e}"),
            Source::Made(i) if self.made(i).per == Per::Row => format!("v{i}"),
            Source::Made(i) => {
                let first = passes.iter().position(|pass| pass.computes.contains(&i));
                let home = if self.layout.held { first.unwrap_or(p) } else { p };
                format!("q{home}_{k}_{e}.v{i}")
            }
        }
    }
    /// The reductions of level `p + 1`, and what of each row comes from them.
    fn reduction(&self, passes: &[Pass], p: usize) -> String {
        let folds: Vec<(usize, Source)> = self.folds_of(p + 1).collect();
        let mut text = String::new();
        let start = |i: usize| match &self.made(i).by {
            By::Fold((_, start)) => start.as_str(),
            By::Map(_) => "",
        };
        for &(i, _) in &folds {
            let _ = writeln!(text, "    var s{i} = {};", start(i));
        }
        let combine = |k: usize| {
            let mut text = String::new();
            for (e, &(i, source)) in (0..self.layout.width).flat_map(|e| folds.iter().map(move |f| (e, f))) {
                let next = format!("combine{i}(s{i}, map{i}({}))", self.name(passes, p, source, k, e));
                let _ = match self.layout.may_lack(k) {
                    true => writeln!(text, "    s{i} = select(s{i}, {next}, there{k});"),
                    false => writeln!(text, "    s{i} = {next};"),
                };
            }
            text
        };
        text += &self.pass(passes, p, combine);
        for &(i, _) in &folds {
            let _ = writeln!(text, "    let v{i} = finish{i}(whole{i}(lane, s{i}), length);");
        }
        text + &self.row_values(p + 1)
    }
    /// What is written of chunk `k` in pass `p`.
    fn stores(&self, passes: &[Pass], p: usize, k: usize) -> String {
        let mut text = String::new();
        let width = self.layout.width;
        let live = if self.layout.may_lack(k) { format!("live && there{k}") } else { "live".into() };
        let _ = writeln!(text, "    if ({live}) {{");
        for (y, &i) in self.written.iter().enumerate().filter(|&(_, &i)| self.made(i).per == Per::Element) {
            let element = |e| self.name(passes, p, Source::Made(i), k, e);
            let elements: Vec<String> = (0..width).map(element).collect();
            let vector = self.made(i).elem.vector(width);
            let _ = writeln!(text, "        y{y}[i * vectors + j{k}] = {vector}({});", elements.join(", "));
        }
        text + "    }\n"
    }
}
