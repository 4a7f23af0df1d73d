#!/usr/bin/env bash
# Makes the program available to the steps after this one, unless it is there.
set -euo pipefail
if command -v onnx-merge >/dev/null; then
    exit
fi
here=$(cd "$(dirname "$0")/.." && pwd)
cargo install --locked --path "$here" --root "${RUNNER_TEMP:-/tmp}/onnx-merge"
echo "${RUNNER_TEMP:-/tmp}/onnx-merge/bin" >>"$GITHUB_PATH"
