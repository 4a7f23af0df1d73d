#!/usr/bin/env bash
# Runs the program on the inputs of the action (INPUT_…), writes its outputs and a summary, and fails where nothing was gained
# unless told otherwise. In other CI systems: set the variables and run it.
set -euo pipefail

report=${RUNNER_TEMP:-$(mktemp -d)}/onnx-merge-report
mkdir -p "$report"
output=${INPUT_OUTPUT:-out.onnx}

arguments=(tune)
if [ -n "${INPUT_SOURCE:-}" ]; then
    arguments=("$INPUT_SOURCE")
fi
arguments+=("$INPUT_TARGET" -o "$output")
for name in data val test; do
    variable=INPUT_${name^^}
    if [ -n "${!variable:-}" ]; then
        arguments+=("--$name" "${!variable}")
    fi
done
while IFS= read -r line; do
    # Words of a line are split, nothing is expanded.
    read -ra words <<<"$line"
    arguments+=("${words[@]}")
done <<<"${INPUT_OPTIONS:-}"
arguments+=(--min-gain "${INPUT_MIN_GAIN:-0}" --report "$report/report.html" --log "$report/run.jsonl" --json)

status=0
onnx-merge "${arguments[@]}" >"$report/report.json" || status=$?
case $status in
0 | 4 | 6) ;;
*)
    rm -f "$report/report.json"
    exit "$status"
    ;;
esac

python3 - "$report" "$output" <<'PYTHON' >"$report/outputs"
import json, sys

folder, output = sys.argv[1:]
with open(f"{folder}/report.json", encoding="utf-8") as file:
    report = json.load(file)
percent = report["metric"]["name"] == "accuracy"
show = lambda value: "–" if value is None else f"{100 * value:.2f} %" if percent else f"{value:.5g}"
gains, unit = report["gains"], 100 if percent else 1
lines = [f"### {report['method']}: {report['outcome']}", "", "| | before | after | gain ± standard error over rows |", "|---|---|---|---|"]
for part in ("val", "test"):
    gain = gains[part]
    spread = "" if not gain or gain["stderr"] is None else f" ± {unit * gain['stderr']:.3g}"
    sure = "–" if not gain else f"{unit * gain['mean']:+.4g}{spread}"
    lines.append(f"| {part} | {show(report['untouched'][part])} | {show(report['shipped'][part])} | {sure} |")
with open(f"{folder}/summary.md", "w", encoding="utf-8") as file:
    file.write("\n".join(lines) + "\n")
gain = gains["test"] or gains["val"]
print(f"outcome={report['outcome']}")
print(f"gain={gain['mean'] if gain else ''}")
print(f"report={folder}")
PYTHON
cat "$report/outputs" >>"${GITHUB_OUTPUT:-/dev/stdout}"
cat "$report/summary.md" >>"${GITHUB_STEP_SUMMARY:-/dev/stdout}"
rm "$report/outputs"

if [ "$status" = 4 ] && [ "${INPUT_FAIL_WITHOUT_GAIN:-true}" = true ]; then
    echo "nothing was better than the untouched target: $output is a copy of it" >&2
    exit 4
fi
