//! A server whose model file is replaced while it answers.

use crate::transcript::{Sandbox, python};
use std::process::Command;

/// Serves `model.onnx`, opens it again whenever another file stands there, and is asked without a pause while the
/// program writes three models to that path.
const SCRIPT: &str = r#"
import http.client, http.server, json, os, subprocess, threading
import numpy as np, onnxruntime as ort

PATH = "model.onnx"
options = ort.SessionOptions()
options.intra_op_num_threads = 1

class Served:
    """The model that stands at PATH, opened anew when it has been replaced."""
    def __init__(self):
        self.lock, self.seen, self.session, self.opened = threading.Lock(), None, None, 0
    def current(self):
        stat = os.stat(PATH)
        with self.lock:
            if self.seen != (stat.st_ino, stat.st_mtime_ns):
                self.session = ort.InferenceSession(PATH, options, providers=["CPUExecutionProvider"])
                self.seen, self.opened = (stat.st_ino, stat.st_mtime_ns), self.opened + 1
            return self.session

served = Served()

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        rows = np.frombuffer(self.rfile.read(int(self.headers["Content-Length"])), np.float32).reshape(shape)
        session = served.current()
        answer = session.run(None, {session.get_inputs()[0].name: rows})[0]
        body = answer.tobytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass

x = np.load("digits_test.npz")["x"].astype(np.float32)
shape = (-1,) + tuple(d for d in ort.InferenceSession(PATH, options).get_inputs()[0].shape[1:])
rows = x[:8].reshape(shape)

def ask(connection):
    connection.request("POST", "/", rows.tobytes())
    response = connection.getresponse()
    body = response.read()
    assert response.status == 200, (response.status, body[:200])
    return np.frombuffer(body, np.float32).reshape(len(rows), -1)

def known(path):
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: rows})[0]

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
answers, failures, stop = [], [], threading.Event()

def hammer():
    connection = http.client.HTTPConnection(*server.server_address)
    while not stop.is_set():
        try:
            answers.append(ask(connection))
        except Exception as error:
            failures.append(repr(error))
            connection = http.client.HTTPConnection(*server.server_address)

models = [known(PATH)]
# Daemons: what goes wrong below ends the script.
threads = [threading.Thread(target=hammer, daemon=True) for _ in range(4)]
[thread.start() for thread in threads]
for seed in range(3):
    subprocess.run([os.environ["PROGRAM"], "digits_cnn.onnx", "digits_mlp.onnx", "-o", PATH, "--data", "digits_train100.npz",
                    "--val", "digits_val.npz", "--executor", "tract", "--steps", "20", "--seed", str(seed),
                    "--method", "lpka", "--start", "fitted", "--significance", "1"],
                   check=True, stdout=subprocess.DEVNULL)
    models.append(known(PATH))
    ask(http.client.HTTPConnection(*server.server_address))
stop.set()
[thread.join() for thread in threads]
last = ask(http.client.HTTPConnection(*server.server_address))
server.shutdown()

assert not failures, (len(failures), failures[:3])
assert np.array_equal(last, models[-1]) and not np.array_equal(last, models[0])
# Each answer is that of one of the models, whole: never of a file half written.
strange = [a for a in answers if not any(np.array_equal(a, model) for model in models)]
assert not strange, (len(strange), len(answers))
assert served.opened >= 4, served.opened
print(json.dumps({"answers": len(answers), "opened": served.opened}))
"#;

#[test]
fn a_served_model_is_replaced_without_a_failed_request() {
    let Some(python) = python() else { return };
    let sandbox = Sandbox::digits();
    std::fs::copy(sandbox.path("digits_mlp.onnx"), sandbox.path("model.onnx")).unwrap();
    std::fs::write(sandbox.path("script.py"), SCRIPT).unwrap();
    let output = Command::new(python)
        .arg("script.py")
        .current_dir(sandbox.path("."))
        .env("PROGRAM", env!("CARGO_BIN_EXE_onnx-merge"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    println!("{}", String::from_utf8_lossy(&output.stdout));
}
