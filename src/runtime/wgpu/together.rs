//! The form of a kernel's text for dispatches of many calls at once, made from the one for a single call.
//!
//! Look at [`together`].

const TOGETHER: &str = include_str!("../../../shaders/together.wgsl");

/// An expanded text for dispatches of many calls at once, whose tensors lie in common buffers.
pub struct Together {
    pub text: String,
    /// For each tensor, in the order of bindings, the words of its elements: 1, or more where they are vectors.
    pub widths: Vec<usize>,
}

/// How kernels begin that can be dispatched for many calls at once.
const BEGIN: &str =
    "fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,";
/// The same there: which call and which of its workgroups this is, stands in a table.
const BEGIN_TOGETHER: &str =
    "fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,";

/// See `together.wgsl`. All tensors can be written, since several may be one buffer to the device. `None` where the kernel
/// doesn't begin like most, has atomics, or is for matrix units: what these do together must not depend on what is read.
pub fn together(text: &str) -> Option<Together> {
    let (before, main) = text.split_once(BEGIN)?;
    let (arguments, body) = main.split_once('{')?;
    if text.contains("atomic<") || text.contains("coop_mat") {
        return None;
    }
    let (mut starts, mut places, mut widths) = (String::new(), String::new(), vec![]);
    let mut text = format!(
        "{before}{BEGIN_TOGETHER}{arguments}{{\n    let group = vec3<u32>(begin(workgroups.x * workgroup.y + workgroup.x), 0u, 0u);\n    \
         let groups = vec3<u32>(1u, 1u, 1u);{body}"
    );
    for (i, (name, width)) in bindings(before).into_iter().enumerate() {
        starts += &format!("var<private> {name}_start: i32;\n");
        places += &format!("    {name}_start = calls[block + {i}];\n");
        widths.push(width);
        text = moved(&text, &name);
    }
    let head = TOGETHER.replace("{{starts}}", starts.trim_end()).replace("{{places}}", places.trim_end());
    let head = head.replace("{{tensors}}", &widths.len().to_string());
    Some(Together { text: text.replace("var<storage, read>", "var<storage, read_write>") + &head, widths })
}

/// The tensors of a kernel in the order of their bindings, and the words of their elements.
fn bindings(text: &str) -> Vec<(String, usize)> {
    let declared = text.lines().filter_map(|line| {
        let (_, rest) = line.trim().strip_prefix("@group(0) @binding(")?.split_once("> ")?;
        let (name, ty) = rest.split_once(": ")?;
        let width = ty.strip_prefix("array<vec").and_then(|rest| rest.chars().next()?.to_digit(10));
        Some((name.to_owned(), width.unwrap_or(1) as usize))
    });
    declared.collect()
}

/// Puts `NAME_start` before every index of the array `name`.
fn moved(text: &str, name: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    let opening = format!("{name}[");
    while let Some(at) = rest.find(&opening) {
        let inside = at + opening.len();
        let part_of_another = rest[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.');
        result += &rest[..inside];
        rest = &rest[inside..];
        if !part_of_another {
            let end = closing(rest);
            result += &format!("{name}_start + i32({})", moved(&rest[..end], name));
            rest = &rest[end..];
        }
    }
    result + rest
}

/// Where the bracket closes that was opened before `text`.
fn closing(text: &str) -> usize {
    let mut depth = 0;
    let place = text.find(|c| {
        match c {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => {}
        }
        depth < 0
    });
    place.unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_of_many_calls_are_found_from_their_starts() {
        let text = "y[i] = x[u32(x[k]) + 1] + xx[i] + s.x[2] * x4[i / 4][i % 4];";
        assert_eq!(
            moved(&moved(text, "x"), "y"),
            "y[y_start + i32(i)] = x[x_start + i32(u32(x[x_start + i32(k)]) + 1)] + xx[i] + s.x[2] * x4[i / 4][i % 4];"
        );
    }
}
