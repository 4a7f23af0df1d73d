"""Refuses dependencies whose licence the project can't be shipped under: `python tests/licences.py`, in a clone.

Reads what Cargo knows of all packages in the lock file, for every platform. Each SPDX expression must be fulfilled by
licences of the list below; packages without an expression are refused.
"""
import json
import re
import subprocess
import sys

ALLOWED = {
    "MIT", "MIT-0", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "0BSD",
    "MPL-2.0", "Unicode-3.0", "Unlicense", "CC0-1.0", "BSL-1.0",
}


def fulfilled(expression):
    """Whether an SPDX expression of OR, AND and parentheses can be fulfilled by allowed licences."""
    words = re.findall(r"\(|\)|[^\s()]+(?:\s+WITH\s+[^\s()]+)?", expression.replace("/", " OR "))

    def either():
        value = both()
        while words and words[0] == "OR":
            words.pop(0)
            value = both() or value
        return value

    def both():
        value = one()
        while words and words[0] == "AND":
            words.pop(0)
            value = one() and value
        return value

    def one():
        word = words.pop(0)
        if word == "(":
            value = either()
            words.pop(0)
            return value
        return re.sub(r"\s+", " ", word) in ALLOWED

    return either() and not words


assert fulfilled("(MIT OR GPL-3.0) AND ISC") and not fulfilled("MIT AND GPL-3.0") and not fulfilled("GPL-3.0")

command = ["cargo", "metadata", "--format-version", "1", "--locked"]
packages = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["packages"]
refused = [p for p in packages if not (p["license"] and fulfilled(p["license"]))]
for package in refused:
    print(f"{package['name']} {package['version']}: {package['license']}", file=sys.stderr)
print(f"{len(packages)} packages, {len(refused)} of them under no allowed licence")
sys.exit(bool(refused))
