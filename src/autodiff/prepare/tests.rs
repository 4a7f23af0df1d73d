use super::*;
#[test]
fn dump() {
    let Some(out) = std::env::var_os("IO_DUMP") else { return };
    let shared = std::env::var_os("ONNX_MERGE_SHARED").unwrap();
    for dir in ["models", "models/zoo"] {
        for e in std::fs::read_dir(std::path::Path::new(&shared).join(dir)).unwrap() {
            let p = e.unwrap().path();
            if p.extension().is_none_or(|e| e != "onnx") { continue }
            let f = crate::onnx::read(&p).unwrap();
            let up = match upgrade(&f.model) { Ok(u) => u, Err(e) => { println!("REFUSED {}: {e}", p.display()); continue } };
            crate::onnx::save(&up, std::path::Path::new(&out).join(p.file_name().unwrap())).unwrap();
        }
    }
}
