//! What a run touches: no network, and no files but those it was given, its output's folder, and the system's own.

use crate::transcript::Sandbox;
use std::collections::HashMap;
use std::process::{Command, Stdio};

/// Where the system keeps what every program opens: libraries, devices, facts about the machine.
const SYSTEM: [&str; 7] = ["/lib", "/usr", "/etc/", "/proc/", "/sys/", "/dev/", "/run/"];

fn works(command: &[&str]) -> bool {
    let mut program = Command::new(command[0]);
    program.args(&command[1..]).stdout(Stdio::null()).stderr(Stdio::null());
    program.status().is_ok_and(|status| status.success())
}

/// The main job with every executor that is here, in a namespace without any network, watched by strace.
#[test]
fn nothing_but_the_given_files_is_touched() {
    if !works(&["strace", "-f", "true"]) || !works(&["unshare", "-r", "-n", "true"]) {
        return eprintln!("skipped: strace or unshare isn't here, or may not be used");
    }
    let runtime = std::env::var("ORT_DYLIB_PATH").unwrap_or_default();
    let executors: &[&str] = if runtime.is_empty() { &["tract"] } else { &["tract", "ort"] };
    for executor in executors {
        let sandbox = Sandbox::digits();
        let arguments = "digits_cnn.onnx digits_mlp.onnx -o out.onnx --data digits_train100.npz --val digits_val.npz \
                         --steps 12 --quiet --report out.html --log run.jsonl";
        let done = Command::new("unshare")
            .args([
                "-r",
                "-n",
                "strace",
                "-f",
                "-qq",
                "-y",
                "-e",
                "trace=network,openat,open,creat",
                "-o",
                "trace",
            ])
            .arg(env!("CARGO_BIN_EXE_onnx-merge"))
            .args(arguments.split_whitespace())
            .args(["--executor", executor])
            .current_dir(sandbox.path("."))
            .output()
            .expect("strace");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(matches!(done.status.code(), Some(0 | 4)), "{said}");
        assert!(sandbox.path("out.onnx").is_file());
        let trace = std::fs::read_to_string(sandbox.path("trace")).expect("strace wrote what it saw");
        let network: Vec<&str> =
            trace.lines().filter(|l| l.contains("socket(") || l.contains("connect(")).collect();
        assert!(network.is_empty(), "{executor}: {network:?}");
        let here = sandbox.path(".").canonicalize().expect("a folder");
        let here = here.to_string_lossy();
        // A call that succeeded ends with the file's real path: `openat(…) = 3</the/path>`.
        let lines = whole_calls(&trace);
        let opened: Vec<(&str, &str)> = lines
            .iter()
            .map(String::as_str)
            .filter_map(|line| Some((line, line.rsplit_once("<")?.1.strip_suffix('>')?)))
            .collect();
        assert!(opened.len() > 10, "{trace}");
        let beside_the_runtime =
            std::path::Path::new(&runtime).parent().map(|p| p.to_string_lossy().into_owned());
        for (line, path) in opened {
            let ours = path.starts_with(&*here);
            let library = beside_the_runtime
                .as_deref()
                .is_some_and(|folder| !folder.is_empty() && path.starts_with(folder));
            let system = SYSTEM.iter().any(|folder| path.starts_with(folder));
            assert!(ours || library || system, "{executor} opens {path}: {line}");
            let writes = ["O_WRONLY", "O_RDWR", "O_CREAT"].iter().any(|flag| line.contains(flag));
            assert!(
                !writes || ours || path.starts_with("/dev/") || path.starts_with("/proc/"),
                "{executor} writes {path}"
            );
        }
    }
}

/// A call a line: strace cuts one in two where another thread's comes between.
fn whole_calls(trace: &str) -> Vec<String> {
    let mut begun: HashMap<&str, &str> = HashMap::new();
    let mut calls = vec![];
    for line in trace.lines() {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        if let Some(start) = call.strip_suffix("<unfinished ...>") {
            begun.insert(thread, start);
        } else if let Some((_, end)) = call.split_once(" resumed>") {
            calls.push(format!("{}{end}", begun.remove(thread).unwrap_or_default()));
        } else {
            calls.push(call.to_owned());
        }
    }
    calls
}

#[test]
fn calls_that_strace_cuts_are_joined() {
    let trace = "7 openat(AT_FDCWD</a>, \"/a/b\", O_RDWR <unfinished ...>\n8 close(3</c>)\n7 <... openat resumed>, 0600) = 3</a/b>";
    assert_eq!(
        whole_calls(trace),
        ["close(3</c>)", "openat(AT_FDCWD</a>, \"/a/b\", O_RDWR , 0600) = 3</a/b>"]
    );
}
