//! The book in `docs/` and README.md: its links lead somewhere, its options exist and all are in it, its messages are the
//! program's, and its marked examples print what it says.
//!
//! An example is marked by `<!-- run -->` before it, or by `<!-- run: other figures -->` where other machines give other
//! figures. In its output `…` stands for anything, alone on a line for any number
//! of lines; `$ echo $?` shows the exit status.

use crate::transcript::Sandbox;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const COMMANDS: [&str; 9] =
    ["tune", "eval", "inspect", "diff", "grad", "pack", "ops", "doctor", "completions"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// README.md and every page of `docs/`, by path.
fn pages() -> BTreeMap<PathBuf, String> {
    let docs = std::fs::read_dir(root().join("docs")).unwrap().map(|e| e.unwrap().path());
    let pages = docs.filter(|p| p.extension().is_some_and(|e| e == "md"));
    pages.chain([root().join("README.md")]).map(|p| (p.clone(), read(&p))).collect()
}

/// The lines of a page, each with whether it stands in a block of code (fenced, or indented after an empty line).
fn lines(page: &str) -> Vec<(bool, &str)> {
    let (mut fenced, mut indented, mut empty) = (false, false, true);
    let mut all = vec![];
    for line in page.lines() {
        let fence = line.trim_start().starts_with("```");
        indented = line.starts_with("    ") && (indented || empty);
        all.push((fence || fenced || indented, line));
        fenced ^= fence;
        empty = line.trim().is_empty();
    }
    all
}

/// The page without code: blocks are left out, `spans` become spaces.
fn prose(page: &str) -> String {
    let text: Vec<&str> = lines(page).into_iter().filter(|l| !l.0).map(|l| l.1).collect();
    text.join("\n").split('`').enumerate().map(|(i, part)| if i % 2 == 0 { part } else { " " }).collect()
}

/// All code of a page: spans, and lines of blocks, those that end in a backslash joined with the next.
fn code(page: &str) -> Vec<String> {
    let (blocks, text): (Vec<_>, Vec<_>) = lines(page).into_iter().partition(|l| l.0);
    let text: Vec<&str> = text.into_iter().map(|l| l.1).collect();
    let text = text.join("\n");
    let spans = text.split('`').skip(1).step_by(2).map(|s| s.replace('\n', " "));
    let blocks: Vec<&str> = blocks.into_iter().map(|l| l.1).collect();
    spans.chain(blocks.join("\n").replace("\\\n", " ").lines().map(str::to_owned)).collect()
}

/// What GitHub calls a heading in links.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>().to_lowercase()
}

fn anchors(page: &str) -> BTreeSet<String> {
    let headings = lines(page).into_iter().filter(|(code, line)| !code && line.starts_with('#'));
    headings.map(|(_, line)| anchor(line.trim_start_matches('#').trim())).collect()
}

/// The targets of `[text](target)` that are no addresses.
fn links(page: &str) -> Vec<String> {
    let text = prose(page);
    let targets = text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned()));
    targets.filter(|t| !t.contains("://")).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = vec![];
    for (path, page) in pages() {
        for link in links(&page) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let there = target.exists() && (anchor.is_empty() || anchors(&read(&target)).contains(anchor));
            if !there {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_page_is_in_the_table_of_contents() {
    let contents = links(&read(&root().join("docs/README.md")));
    for path in pages().into_keys().filter(|p| p.parent().is_some_and(|d| d.ends_with("docs"))) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(name == "README.md" || contents.contains(&name), "{name} isn't in docs/README.md");
    }
}

/// Files of the repository that are named in code are there, but for what fuzzing writes.
#[test]
fn every_file_that_is_named_is_there() {
    let mut missing = vec![];
    for (path, page) in pages() {
        for code in code(&page) {
            let words = code.split_whitespace();
            let files = words.filter(|w| {
                ["src/", "tests/", "docs/", "benches/", "fixtures/", "shaders/", "python/"]
                    .iter()
                    .any(|folder| w.starts_with(folder))
                    && !w.contains("/__fuzz__/")
                    && !w.contains(['*', '$', '…', '{', '<', '?', '['])
            });
            let plain = files.map(|w| w.trim_end_matches([',', ';', '.', ':', ')', '"']));
            missing.extend(
                plain
                    .filter(|w| !root().join(w.split_once(',').map_or(*w, |s| s.0)).exists())
                    .map(|w| format!("{}: {w}", path.display())),
            );
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// The options in a text: `--name`.
fn options(text: &str) -> BTreeSet<String> {
    let starts = text.match_indices("--").filter(|(i, _)| {
        let before = text[..*i].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '-')
    });
    let names = starts.map(|(i, _)| {
        let name =
            text[i + 2..].chars().take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-');
        format!("--{}", name.collect::<String>())
    });
    names.filter(|n| n.len() > 3).collect()
}

/// The options of the program itself (under `""`) and of its commands, as their help shows them.
fn help() -> BTreeMap<&'static str, BTreeSet<String>> {
    let sandbox = Sandbox::new();
    let options_of = |command: &'static str| {
        let words: Vec<String> =
            [command, "--help"].iter().filter(|w| !w.is_empty()).map(|w| w.to_string()).collect();
        let output = sandbox.program(&words).output().expect("the program starts");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let shown = text.lines().map(str::trim).filter(|l| l.starts_with('-'));
        (command, shown.flat_map(|l| options(l.split("  ").next().unwrap_or(l))).collect())
    };
    [""].into_iter().chain(COMMANDS).map(options_of).collect()
}

/// The part of a command line that this program reads, after its name.
fn ours(code: &str) -> Option<&str> {
    let name = "onnx-merge ";
    let cargo = "cargo run --release -- ";
    if let Some((_, rest)) = code.split_once(cargo) {
        return Some(rest);
    }
    let at =
        code.match_indices(name).map(|(i, _)| i).find(|&i| !code[..i].ends_with(['/', '-', 't', 'n']))?;
    Some(&code[at + name.len()..])
}

#[test]
fn the_book_knows_the_options_and_only_those() {
    let help = help();
    let all: BTreeSet<&String> = help.values().flatten().collect();
    let (mut wrong, mut mentioned) = (vec![], BTreeSet::new());
    for (path, page) in pages() {
        for code in code(&page) {
            let typed = ours(&code);
            let command = typed.and_then(|t| t.split_whitespace().next()).unwrap_or("");
            let known: BTreeSet<&String> = match help.get(command) {
                Some(own) if typed.is_some() => own.iter().collect(),
                _ if typed.is_some() => help[""].iter().collect(),
                _ => all.clone(),
            };
            let Some(text) = typed.or_else(|| code.starts_with("--").then_some(code.as_str())) else {
                continue;
            };
            // What follows in a pipe or a redirection belongs to others.
            let text = text.split(" | ").next().unwrap_or(text);
            for option in options(text) {
                if !known.contains(&option) {
                    wrong.push(format!("{}: {option} in `{code}`", path.display()));
                }
                mentioned.insert(option);
            }
        }
        for option in options(&prose(&page)) {
            if !all.contains(&option) {
                wrong.push(format!("{}: {option}", path.display()));
            }
        }
    }
    let silent: Vec<_> = all
        .into_iter()
        .filter(|o| !mentioned.contains(*o) && !matches!(o.as_str(), "--help" | "--version"))
        .collect();
    assert!(wrong.is_empty() && silent.is_empty(), "unknown: {wrong:#?}\nnot in the book: {silent:?}");
}

/// Every source file's text, strings that go over several lines joined.
fn sources(folder: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
        if entry.is_dir() {
            text += &sources(&entry);
        } else if entry.extension().is_some_and(|e| e == "rs") {
            text += &read(&entry);
        }
    }
    let mut joined = String::new();
    for (i, part) in text.split("\\\n").enumerate() {
        joined += if i == 0 { part } else { part.trim_start() };
    }
    joined
}

/// docs/troubleshooting.md shows messages as **`text`**, with `…` for what differs from case to case.
#[test]
fn every_message_of_the_book_is_the_programs() {
    let source = sources(&root().join("src"));
    let page = read(&root().join("docs/troubleshooting.md"));
    let messages: Vec<&str> =
        page.split("**`").skip(1).filter_map(|m| Some(m.split_once("`**")?.0)).collect();
    let parts =
        messages.iter().flat_map(|m| m.split('…')).map(|p| p.trim_matches([' ', '\'', ',', ':', '(', ')']));
    let wrong: Vec<&str> = parts.filter(|part| part.len() > 3 && !source.contains(part)).collect();
    let found = messages.len();
    assert!(found > 40 && wrong.is_empty(), "{found} messages, not in the source: {wrong:#?}");
}

/// The line with anything in place of spaces and of numbers with a decimal point.
fn without_figures(line: &str) -> String {
    let is_figure = |word: &&str| {
        word.contains('.') && word.trim_start_matches(['+', '-']).starts_with(|c: char| c.is_ascii_digit())
    };
    let words: Vec<&str> = line.split_whitespace().filter(|w| !is_figure(w)).collect();
    words.join("[..]")
}

/// Marked examples of a page, as transcripts.
fn examples(page: &str) -> Vec<String> {
    let blocks = page.split("<!-- run").skip(1).filter_map(|b| b.split_once(" -->\n```console\n"));
    let example = |(mark, block): (&str, &str)| {
        let block = block.split_once("```").expect("the block ends").0.replace("\\\n", " ");
        let (mut lines, mut status): (Vec<String>, _) = (vec![], false);
        for line in block.lines().map(str::trim).filter(|l| !l.is_empty()) {
            match line {
                "$ echo $?" => status = true,
                code if status => {
                    lines.push(format!("[exit {code}]"));
                    status = false;
                }
                "…" => lines.push("...".into()),
                command if command.starts_with("$ ") => lines.push(command.into()),
                line if mark.is_empty() => lines.push(line.replace('…', "[..]")),
                line => lines.push(without_figures(&line.replace('…', "[..]"))),
            }
        }
        lines.join("\n")
    };
    blocks.map(example).collect()
}

#[test]
fn marked_examples_print_what_the_book_says() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("fixtures")).unwrap();
    for file in std::fs::read_dir(root().join("fixtures")).unwrap().map(|e| e.unwrap().path()) {
        std::fs::copy(&file, sandbox.path("fixtures").join(file.file_name().unwrap())).unwrap();
    }
    let mut count = 0;
    for page in pages().into_values() {
        for example in examples(&page) {
            sandbox.transcript(&example);
            count += 1;
        }
    }
    assert!(count > 0, "no example is marked");
}
