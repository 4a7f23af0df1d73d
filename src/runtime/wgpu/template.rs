//! Kernel texts as templates: parts that are named, loops that are written out, placeholders that are filled.
//!
//! Look at [`fill`].

/// A text with its parts and loops written out and its placeholders, `{{NAME}}`, replaced.
pub fn fill(text: &str, values: &[(&str, &str)]) -> String {
    let mut text = written_out(text, values);
    for (name, value) in values {
        text = text.replace(&format!("{{{{{name}}}}}"), value);
    }
    text
}

/// Replaces every `{{NAME}}` by what stands between `{{part NAME}}` and `{{end NAME}}`: what a loop does and is done once
/// before it, too.
fn with_parts(text: &str) -> String {
    const PART: &str = "{{part ";
    let mut text = text.to_owned();
    while let Some(begin) = text.find(PART) {
        let Some((name, rest)) = text[begin + PART.len()..].split_once("}}\n") else { break };
        let Some((body, rest)) = rest.split_once(&format!("{{{{end {name}}}}}\n")) else { break };
        text = [&text[..begin], &rest.replace(&format!("{{{{{name}}}}}"), body.trim())].concat();
    }
    text
}

/// Repeats what stands between `{{for NAME in 0..COUNT}}` and `{{end}}`, `{{NAME}}` replaced by 0, 1, …; COUNT is a number or
/// the name of a value. Registers need it: drivers don't unroll every loop, and what isn't unrolled can't index them.
fn written_out(text: &str, values: &[(&str, &str)]) -> String {
    const FOR: &str = "{{for ";
    const END: &str = "{{end}}";
    let mut text = with_parts(text);
    // The first end closes the last loop that was opened before it.
    while let Some(end) = text.find(END) {
        let Some(begin) = text[..end].rfind(FOR) else { break };
        let Some((head, body)) = text[begin + FOR.len()..end].split_once("}}") else { break };
        let (name, count) = head.split_once(" in 0..").unwrap_or((head, "0"));
        let count = values.iter().find(|(known, _)| *known == count).map_or(count, |(_, value)| value);
        let body = body.strip_prefix('\n').unwrap_or(body);
        let turn = |i: usize| body.replace(&format!("{{{{{name}}}}}"), &i.to_string());
        let all: String = (0..count.parse().unwrap_or(0)).map(turn).collect();
        let rest = &text[end + END.len()..];
        text = [&text[..begin], &all, rest.strip_prefix('\n').unwrap_or(rest)].concat();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stand_wherever_they_are_named() {
        let text = "{{part load}}\n{{for i in 0..2}}a{{i}} {{end}}\n{{end load}}\n{{load}}if b { {{load}}}";
        assert_eq!(written_out(text, &[]), "a0 a1 if b { a0 a1 }");
    }

    #[test]
    fn loops_are_written_out_from_the_inside() {
        let text = "{{for i in 0..n}}\n{{for j in 0..2}}s{{i}}{{j}} {{end}}\n{{end}}\n{{for k in 0..none}}never{{end}}.";
        assert_eq!(written_out(text, &[("n", "2"), ("none", "0")]), "s00 s01 s10 s11 .");
    }
}
