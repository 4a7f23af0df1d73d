//! The program: arguments in, an exit code out. Everything else is in the library.

fn main() -> std::process::ExitCode {
    onnx_merge::runtime::silence_telemetry();
    onnx_merge::runtime::silence_drivers();
    onnx_merge::cli::run()
}
