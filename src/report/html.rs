//! The report as one HTML page: inline style and SVG, no scripts, nothing fetched; light and dark, wide and narrow.

use super::plot::{Line, curves, heat};
use super::{Arm, Curve, Gains, KEPT, Outcome, Report, Scores};
use std::fmt::Write;

/// The whole page.
pub fn page(report: &Report) -> String {
    let mut body = String::new();
    header(&mut body, report);
    at_a_glance(&mut body, report);
    before_and_after(&mut body, report);
    arms(&mut body, report);
    training(&mut body, report);
    changes(&mut body, report);
    attention(&mut body, report);
    about(&mut body, report);
    document(&name(&report.target), "", &format!("<main>\n{body}</main>"))
}

/// A page in this program's style, and in `style` besides.
pub fn document(title: &str, style: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>onnx-merge: {}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n",
        escape(title)
    )
}

/// Colours, twice; layout, once.
const STYLE: &str = "
:root{--bg:#fff;--fg:#1c2430;--soft:#5c6675;--line:#dfe3e8;--card:#f6f7f9;--a:#8a94a3;--b:#1769aa;--good:#1a7f4b;--warn:#9a6700;\
--c0:#1769aa;--c1:#c2571a;--c2:#1a7f4b;--c3:#8250df;--c4:#a4324f;--c5:#5c6675;--heat:23,105,170}
@media(prefers-color-scheme:dark){:root{--bg:#12161c;--fg:#e4e8ee;--soft:#98a2b0;--line:#2c333d;--card:#1a2028;--a:#6b7685;\
--b:#5aa9e6;--good:#4cc38a;--warn:#e0b252;--c0:#5aa9e6;--c1:#f0965a;--c2:#4cc38a;--c3:#b392f0;--c4:#f07a95;--c5:#98a2b0;--heat:90,169,230}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.5rem;margin:0 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:2.5rem 0 .75rem}
p{margin:.4rem 0}.soft{color:var(--soft);font-size:.9rem}
.verdict{font-size:1.15rem;font-weight:600}.good{color:var(--good)}.warn{color:var(--warn)}
.glance{display:grid;grid-template-columns:1fr 1fr;gap:.7rem;margin:1rem 0}
.glance section{background:var(--card);border-radius:8px;padding:.6rem .9rem}.glance h3{margin:0;font-size:.85rem;font-weight:500;color:var(--soft)}
.glance p{margin:.1rem 0 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{color:var(--soft);font-weight:500;font-size:.9rem}
.bars{display:grid;grid-template-columns:auto 1fr auto;gap:.3rem .8rem;align-items:center;margin:.5rem 0 1rem}
.bar{height:1.1rem;background:var(--card);border-radius:3px}.bar i{display:block;height:100%;border-radius:3px;background:var(--a)}
.bar i.new{background:var(--b)}
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font:12px system-ui,sans-serif}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;font-size:.9rem;margin:.3rem 0}
.legend b{display:inline-block;width:1.4em;height:.25em;margin-right:.4em;vertical-align:middle;border-radius:2px}
code{font-size:.85em;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;margin:0}dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.bars>span{white-space:nowrap}
@media(max-width:36rem){main{padding-top:1rem}h1{font-size:1.25rem}.glance{grid-template-columns:1fr;gap:.5rem}\
.bars{grid-template-columns:1fr auto;grid-auto-flow:dense;gap:.15rem .8rem}.bars .bar{grid-column:1/-1;height:.7rem;margin-bottom:.4rem}\
.bars>span{white-space:normal}.bars .soft{font-size:.8rem}\
dl{grid-template-columns:1fr}dd{margin-bottom:.5rem}}
";

/// Text that can stand in HTML.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '&' => safe += "&amp;",
            '"' => safe += "&quot;",
            '\'' => safe += "&#39;",
            _ => safe.push(c),
        }
    }
    safe
}

/// The name of a file, without its folder.
pub fn name(path: &std::path::Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn header(body: &mut String, report: &Report) {
    let source = report.source.as_deref().map(|s| format!("{} → ", escape(&name(s)))).unwrap_or_default();
    let (class, verdict) = match report.outcome {
        Outcome::Gain => ("good", &*format!("The output {}.", report.praise())),
        Outcome::Unverified => (
            "warn",
            "Unverified: without data, the output was taught by the source on made-up inputs. Whether it is better is \
             not known.",
        ),
        Outcome::NoGain => ("warn", KEPT),
        Outcome::Interrupted => ("warn", "Interrupted: this is the best found so far."),
    };
    let _ = write!(
        body,
        "<h1>{source}{}</h1>\n<p class=\"verdict {class}\">{verdict}</p>\n",
        escape(&name(&report.target))
    );
}

/// What one wants to know first: by how much, how sure, what the source was good for, what is different in the file.
fn at_a_glance(body: &mut String, report: &Report) {
    let measured = [
        (report.gains.test, report.untouched.test.zip(report.shipped.test), "test"),
        (report.gains.val, report.untouched.val.zip(report.shipped.val), "validation"),
    ];
    let mut cards = vec![];
    if let Some((gain, scores, part)) = measured.into_iter().find_map(|(g, s, part)| Some((g?, s?, part))) {
        let metric = &report.metric;
        let [from, to] = [scores.0, scores.1].map(|score| metric.show(score).replace(' ', "&nbsp;"));
        let gained = metric.show_gain(&gain, part);
        cards.push(("By how much", format!("<b>{gained}</b>: {from} → {to}")));
        cards.push(("How sure", escape(&gain.certainty())));
    }
    if report.source.is_some() && !cards.is_empty() {
        let untold =
            "Not measured: <code>--ablate</code> trains the same without the source's knowledge.".to_owned();
        cards.push((
            "What the source added",
            report.worth_sentence().map_or(untold, |sentence| escape(&sentence)),
        ));
    }
    if report.output.is_some() {
        let changed = match report.changed.len() {
            0 => "Nothing: it is a copy of the target, byte by byte.".to_owned(),
            1 => "The values of <b>1</b> tensor; everything else is as it was, byte by byte.".to_owned(),
            n => format!("The values of <b>{n}</b> tensors; everything else is as it was, byte by byte."),
        };
        cards.push(("What changed in the file", changed));
    }
    if cards.is_empty() {
        return;
    }
    body.push_str("<div class=\"glance\">\n");
    for (question, answer) in cards {
        let _ = writeln!(body, "<section><h3>{question}</h3><p>{answer}</p></section>");
    }
    body.push_str("</div>\n");
}

fn before_and_after(body: &mut String, report: &Report) {
    let Scores { train, val, test } = report.untouched;
    let (now, gains) = (report.shipped, report.gains);
    let rows = [
        ("test", (test, now.test), report.rows.test, gains.test),
        ("validation", (val, now.val), report.rows.val, gains.val),
        ("training", (train, now.train), report.rows.train, None),
    ];
    let highest =
        rows.iter().flat_map(|r| [r.1.0, r.1.1]).flatten().filter(|v| v.is_finite()).fold(0.0, f64::max);
    let full = if report.metric.is_share() { 1.0 } else { highest.max(f64::MIN_POSITIVE) };
    let _ = writeln!(body, "<h2>Before and after</h2>");
    let _ =
        writeln!(body, "<p class=\"soft\">{}</p>\n<div class=\"bars\">", escape(&describe_metric(report)));
    for (part, scores, count, gain) in rows {
        let (Some(before), Some(after)) = scores else { continue };
        for (label, value, class) in
            [(format!("{part}, target"), before, ""), (format!("{part}, output"), after, "new")]
        {
            let width = (value / full * 100.0).clamp(0.0, 100.0);
            let gain = match (class, gain) {
                ("", _) => format!("{count} rows"),
                (_, Some(gain)) => report.metric.show_worth(&gain),
                _ => report.metric.show_difference(report.metric.gain(before, after)),
            };
            let _ = writeln!(
                body,
                "<span>{label}</span><span class=\"bar\"><i class=\"{class}\" style=\"width:{width:.2}%\"></i></span>\
                 <span>{} <span class=\"soft\">{gain}</span></span>",
                report.metric.show(value)
            );
        }
    }
    body.push_str("</div>\n");
    if gains != Gains::default() {
        body.push_str("<p class=\"soft\">Gains are positive where the output is better; ± is the standard error over rows.</p>\n");
    }
}

fn describe_metric(report: &Report) -> String {
    match report.metric.better {
        super::Better::Higher => format!("{}; higher is better", report.metric.name),
        super::Better::Lower => format!("{}; lower is better", report.metric.name),
    }
}

fn arms(body: &mut String, report: &Report) {
    if report.arms.is_empty() {
        return;
    }
    body.push_str("<h2>What was tried</h2>\n<div class=\"scroll\"><table>\n<tr><th>arm</th><th>source</th><th>seeds</th><th>learning rate</th><th>validation</th><th>test</th></tr>\n");
    for Arm { name, source, val, test, lr } in &report.arms {
        let mut rates = lr.clone();
        rates.sort_by(f64::total_cmp);
        rates.dedup();
        let rates: Vec<String> = rates.iter().map(f64::to_string).collect();
        let source = format!("{source:?}").to_lowercase();
        let _ = writeln!(
            body,
            "<tr><td>{}</td><td>{source}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(name),
            val.len(),
            rates.join(", "),
            spread(report, val),
            spread(report, test)
        );
    }
    body.push_str("</table></div>\n<p class=\"soft\">± is the standard error over seeds.</p>\n");
}

fn spread(report: &Report, values: &[f64]) -> String {
    report.metric.show_spread(values)
}

fn training(body: &mut String, report: &Report) {
    let lines = |pick: fn(&Curve) -> &Vec<(usize, f64)>| -> Vec<Line> {
        report
            .curves
            .iter()
            .filter(|c| pick(c).len() > 1)
            .map(|c| Line {
                name: format!("{}, seed {}", c.arm, c.seed),
                points: pick(c).iter().map(|&(step, v)| (step as f64, v)).collect(),
            })
            .collect()
    };
    let (loss, val) = (lines(|c| &c.loss), lines(|c| &c.val));
    if !val.is_empty() {
        let _ = write!(body, "<h2>Validation while training</h2>\n{}", curves(&val, &report.metric.name));
    }
    if !loss.is_empty() {
        let _ = write!(body, "<h2>Loss while training</h2>\n{}", curves(&loss, "loss"));
    }
}

fn changes(body: &mut String, report: &Report) {
    let highest =
        report.changed.iter().map(|c| c.relative_change).filter(|v| v.is_finite()).fold(0.0, f64::max);
    if highest <= 0.0 {
        return;
    }
    body.push_str("<h2>How far each tensor moved</h2>\n<p class=\"soft\">‖after − before‖ / ‖before‖</p>\n<div class=\"bars\">\n");
    for change in &report.changed {
        let width = (change.relative_change / highest * 100.0).clamp(0.0, 100.0);
        let _ = writeln!(
            body,
            "<code title=\"{}\">{}</code><span class=\"bar\"><i class=\"new\" style=\"width:{width:.2}%\"></i></span><span>{:.3}</span>",
            escape(&change.role),
            escape(&change.initializer),
            change.relative_change
        );
    }
    body.push_str("</div>\n");
}

fn attention(body: &mut String, report: &Report) {
    let maps: Vec<_> = report.attention.iter().filter(|a| a.values.len() == a.rows * a.columns).collect();
    if maps.is_empty() {
        return;
    }
    body.push_str("<h2>What the target attends to</h2>\n");
    if let Some(arm) = maps.iter().map(|a| &a.arm).find(|arm| !arm.is_empty()) {
        let _ = writeln!(
            body,
            "<p class=\"soft\">In the arm <em>{}</em>, at the end of its training. Rows belong to the target, columns to \
             the source; the darker, the more is taken.</p>",
            escape(arm)
        );
    }
    for map in maps {
        let _ = writeln!(
            body,
            "<p><code>{}</code> (rows) attends to <code>{}</code> (columns)</p>\n{}",
            escape(&map.target),
            escape(&map.source),
            heat(map)
        );
    }
}

fn about(body: &mut String, report: &Report) {
    body.push_str("<h2>About this run</h2>\n<dl>\n");
    let mut line = |term: &str, text: String| {
        if !text.is_empty() {
            let _ = writeln!(body, "<dt>{term}</dt><dd>{}</dd>", escape(&text));
        }
    };
    let preset = report.preset.as_ref().map(|p| format!(", preset {p}")).unwrap_or_default();
    line("method", format!("{}{preset}", report.method));
    let used = |e: &super::ExecutorUsed| format!("{} – {}", e.name, e.device);
    line("model on", used(&report.executors.model));
    line("adapter on", report.executors.adapter.as_ref().map(used).unwrap_or_default());
    let s = report.seconds;
    line(
        "time",
        format!("read {:.2} s, plan {:.2} s, train {:.2} s, write {:.2} s", s.read, s.plan, s.train, s.write),
    );
    if let Some(output) = &report.output {
        line("output", name(&output.path));
        line("SHA-256", output.sha256.clone());
    }
    body.push_str("</dl>\n");
    for note in &report.notes {
        let _ = writeln!(body, "<p class=\"soft\">{}</p>", escape(note));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn the_page_stands_alone_and_is_well_formed() {
        let page = page(&sample());
        for outside in ["http://", "https://", "<script", "src=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        let open = |tag: &str| page.matches(&format!("<{tag}")).count();
        let close = |tag: &str| page.matches(&format!("</{tag}>")).count();
        for tag in ["div", "table", "tr", "svg", "dl", "main", "code", "h2"] {
            assert_eq!(open(tag), close(tag), "{tag}");
        }
    }

    #[test]
    fn names_from_models_are_escaped() {
        let mut report = sample();
        report.changed[0].initializer = "<b>&\"w\"".into();
        let page = page(&report);
        assert!(page.contains("&lt;b&gt;&amp;&quot;w&quot;") && !page.contains("<b>&"));
    }
}
