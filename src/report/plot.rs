//! Line plots and heat maps as inline SVG.

use super::Attention;
use super::html::escape;
use std::fmt::Write;

/// A curve with a name.
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 56.0;
const BOTTOM: f64 = 28.0;
/// Colours in the page's style: `--c0` …
const COLOURS: usize = 6;

/// A plot of curves over steps, with a legend.
pub fn curves(lines: &[Line], what: &str) -> String {
    let points = || lines.iter().flat_map(|l| &l.points).filter(|p| p.0.is_finite() && p.1.is_finite());
    let range = |pick: fn(&(f64, f64)) -> f64| {
        points().map(pick).fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)))
    };
    let ((x0, x1), (y0, y1)) = (range(|p| p.0), range(|p| p.1));
    if !(x1 > x0 && y0.is_finite()) {
        return String::new();
    }
    let margin = ((y1 - y0) * 0.05).max(1e-9);
    let (y0, y1) = (y0 - margin, y1 + margin);
    let x = |v: f64| LEFT + (v - x0) / (x1 - x0) * (WIDTH - LEFT - 20.0);
    let y = |v: f64| HEIGHT - BOTTOM - (v - y0) / (y1 - y0) * (HEIGHT - BOTTOM - 8.0);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{} over steps\">\n",
        escape(what)
    );
    for tick in ticks(y0, y1) {
        let at = y(tick);
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {at:.1}H{WIDTH}\" stroke=\"var(--line)\"/><text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            at + 4.0,
            number(tick)
        );
    }
    for tick in ticks(x0, x1) {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>",
            x(tick),
            HEIGHT - 8.0,
            number(tick)
        );
    }
    for (i, line) in lines.iter().enumerate() {
        let path: Vec<String> = line
            .points
            .iter()
            .filter(|p| p.1.is_finite())
            .map(|p| format!("{:.1} {:.1}", x(p.0), y(p.1)))
            .collect();
        if path.len() > 1 {
            let _ = writeln!(
                svg,
                "<path d=\"M{}\" fill=\"none\" stroke=\"var(--c{})\" stroke-width=\"1.8\"{}/>",
                path.join("L"),
                i % COLOURS,
                dash(i)
            );
        }
    }
    svg.push_str("</svg>\n<div class=\"legend\">");
    for (i, line) in lines.iter().enumerate() {
        let _ = write!(
            svg,
            "<span><b style=\"background:var(--c{})\"></b>{}</span>",
            i % COLOURS,
            escape(&line.name)
        );
    }
    svg + "</div>\n"
}

/// From the seventh line on the colours repeat, dashed.
fn dash(i: usize) -> &'static str {
    if i < COLOURS { "" } else { " stroke-dasharray=\"5 4\"" }
}

/// About five round numbers in a range.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].iter().map(|m| m * power).find(|s| *s >= rough).unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last.min(first + 20)).map(|i| i as f64 * step).collect()
}

fn number(value: f64) -> String {
    let text = format!("{value:.4}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// Larger matrices are averaged down to this many rows and columns.
const LARGEST: usize = 64;

/// A matrix as squares, the darker the larger.
pub fn heat(map: &Attention) -> String {
    let (rows, columns) = (map.rows.min(LARGEST), map.columns.min(LARGEST));
    if rows == 0 || columns == 0 {
        return String::new();
    }
    let cell = |r: usize, c: usize| {
        let span = |i: usize, n: usize, all: usize| (i * all / n)..((i + 1) * all / n).max(i * all / n + 1);
        let mut mean = 0.0;
        let (rows, columns) = (span(r, rows, map.rows), span(c, columns, map.columns));
        let count = (rows.len() * columns.len()) as f32;
        for row in rows {
            mean += map.values[row * map.columns..][columns.clone()].iter().sum::<f32>() / count;
        }
        mean
    };
    let values: Vec<f32> =
        (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))).map(|(r, c)| cell(r, c)).collect();
    let highest = values.iter().copied().filter(|v| v.is_finite()).fold(f32::MIN_POSITIVE, f32::max);
    let named = |names: &[String], count: usize| names.len() == count && count <= LARGEST;
    let label = if named(&map.row_names, map.rows) { 180.0 } else { 0.0 };
    let head = if named(&map.column_names, map.columns) { 110.0 } else { 0.0 };
    let size = ((WIDTH - label - head / 2.0) / columns as f64).min(22.0);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {:.1}\" role=\"img\" aria-label=\"attention\" shape-rendering=\"crispEdges\">\n",
        head + size * rows as f64 + 4.0
    );
    if head > 0.0 {
        for (column, name) in map.column_names.iter().enumerate() {
            let x = label + (column as f64 + 0.6) * size;
            let y = head - 6.0;
            let _ = writeln!(
                svg,
                "<text x=\"{x:.1}\" y=\"{y:.1}\" transform=\"rotate(-50 {x:.1} {y:.1})\">{}</text>",
                escape(name)
            );
        }
    }
    for row in 0..rows {
        if label > 0.0 {
            let _ = writeln!(
                svg,
                "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                label - 6.0,
                head + (row as f64 + 0.5) * size + 4.0,
                escape(&map.row_names[row])
            );
        }
        for column in 0..columns {
            let value = values[row * columns + column];
            let share = (value / highest).clamp(0.0, 1.0);
            if share < 0.01 {
                continue;
            }
            let _ = writeln!(
                svg,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{size:.1}\" height=\"{size:.1}\" fill=\"rgba(var(--heat),{share:.2})\"><title>{value:.3}</title></rect>",
                label + column as f64 * size,
                head + row as f64 * size
            );
        }
    }
    let _ = writeln!(
        svg,
        "<rect x=\"{label:.1}\" y=\"{head:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"none\" stroke=\"var(--line)\"/>",
        size * columns as f64,
        size * rows as f64
    );
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(0.0, 10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(number(0.25), "0.25");
        assert_eq!(number(400.0), "400");
    }

    #[test]
    fn large_maps_are_averaged_and_broken_curves_survive() {
        let map = Attention { rows: 200, columns: 3, values: vec![0.5; 600], ..Default::default() };
        assert_eq!(heat(&map).matches("<title>0.500").count(), 64 * 3);
        let broken = Line { name: "n".into(), points: vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 2.0)] };
        assert!(!curves(&[broken], "loss").contains("NaN"));
        assert_eq!(curves(&[], "loss"), "");
    }
}
