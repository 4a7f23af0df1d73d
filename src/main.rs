fn main() -> std::process::ExitCode {
    onnx_merge::runtime::silence_telemetry();
    onnx_merge::cli::run()
}
