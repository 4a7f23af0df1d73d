//! The pages that the program writes, in a real browser.

use crate::merge::run;
use crate::transcript::Sandbox;
use std::collections::HashSet;
use std::path::Path;
use std::process::Command;

/// A browser without a window, if one is installed.
fn browser() -> Option<&'static str> {
    let starts = |name: &&str| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
    let found = ["chromium", "google-chrome", "chromium-browser"].into_iter().find(starts);
    if found.is_none() {
        eprintln!("skipped: no Chromium or Chrome is installed");
    }
    found
}

/// How a page is looked at: size of the window, and whether it is dark.
const LOOKS: [(&str, bool); 3] = [("1200,900", false), ("390,844", false), ("390,844", true)];

/// Opens a page of the sandbox; gives what it wrote to the console, and the number of colours on the first screen.
fn look(browser: &str, sandbox: &Sandbox, page: &str, (size, dark): (&str, bool)) -> (String, usize) {
    let picture = sandbox.path("picture.png");
    let _ = std::fs::remove_file(&picture);
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"])
        .args(["--enable-logging=stderr", "--virtual-time-budget=2000"])
        .arg(format!("--user-data-dir={}", sandbox.path("profile").display()))
        .arg(format!("--blink-settings=preferredColorScheme={}", u8::from(!dark)))
        .arg(format!("--window-size={size}"))
        .arg(format!("--screenshot={}", picture.display()))
        .arg(format!("file://{}", sandbox.path(page).display()))
        .env("HOME", sandbox.path("."))
        .output()
        .expect("the browser starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(picture.exists(), "{page}: no screenshot\n{said}");
    let console = said.lines().filter(|line| line.contains("CONSOLE")).collect::<Vec<_>>().join("\n");
    let pixels = image::open(&picture).expect("a picture").into_rgb8();
    let corner = pixels.get_pixel(1, 1).0;
    assert_eq!(corner[0] < 128, dark, "{page}: the background is {corner:?}");
    (console, pixels.pixels().map(|p| p.0).collect::<HashSet<_>>().len())
}

#[test]
fn pages_open_in_a_browser_without_complaints() {
    let Some(browser) = browser() else { return };
    let sandbox = Sandbox::digits()
        .fixtures(&["digits_small_cnn.onnx"])
        .file("broken.html", "<!doctype html><script>nothing.here()</script>");
    let data = "--data digits_train100.npz --val digits_val.npz --test digits_test.npz --executor tract";
    let merged = run(
        &sandbox,
        &format!("digits_cnn.onnx digits_small_cnn.onnx -o out.onnx {data} --steps 20 --report report.html"),
    );
    assert!(merged.status.success(), "{}", String::from_utf8_lossy(&merged.stderr));
    let drawn =
        run(&sandbox, "inspect digits_small_cnn.onnx digits_cnn.onnx --html inspect.html --executor tract");
    assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
    let (console, _) = look(browser, &sandbox, "broken.html", LOOKS[0]);
    assert!(console.contains("nothing"), "complaints aren't seen: {console}");
    for page in ["report.html", "inspect.html"] {
        for how in LOOKS {
            let (console, colours) = look(browser, &sandbox, page, how);
            assert!(console.is_empty(), "{page}: {console}");
            // Letters alone make dozens of shades.
            assert!(colours > 30, "{page} {how:?}: {colours} colours");
        }
    }
    let text = std::fs::read_to_string(sandbox.path("inspect.html")).expect("a page");
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!text.contains(outside), "inspect.html: {outside}");
    }
    assert!(Path::new(&sandbox.path("out.onnx")).exists());
}
