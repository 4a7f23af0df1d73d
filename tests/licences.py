"""Licences of what the program is made of: `python tests/licences.py`, in a clone.

Refuses dependencies that the project can't be shipped under. Reads what Cargo knows of all packages in the lock file, for every platform:
each SPDX expression must be fulfilled by licences of the list in deny.toml; packages without an expression are refused.

    python tests/licences.py --texts THIRD-PARTY-LICENSES.txt

also writes the licence texts of the packages that are linked into the program, as they must go with it wherever it is shipped: each text
once, under the packages that it is for. A package that came without one stands there with its authors and its SPDX expression.
"""
import argparse
import os
import json
import re
import subprocess
import sys


def allowed():
    """The licences that deny.toml names."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "deny.toml")
    with open(path, encoding="utf-8") as file:
        names = re.search(r"^allow = \[(.*?)\]", file.read(), re.DOTALL | re.MULTILINE).group(1)
    return set(re.findall(r'"([^"]+)"', names))


ALLOWED = allowed()


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



def metadata(*features):
    command = ["cargo", "metadata", "--format-version", "1", "--locked", *features]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def linked(known):
    """Packages that get into the program, on one platform or another: neither tests nor build scripts need them alone."""
    nodes = {node["id"]: node for node in known["resolve"]["nodes"]}
    root = known["resolve"]["root"]
    found, ahead = set(), [root]
    while ahead:
        for dependency in nodes[ahead.pop()]["deps"]:
            normal = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            if normal and dependency["pkg"] not in found:
                found.add(dependency["pkg"])
                ahead.append(dependency["pkg"])
    return sorted((p for p in known["packages"] if p["id"] in found), key=lambda p: (p["name"], p["version"]))


def texts_of(package):
    """The licence files in a package's folder."""
    folder = os.path.dirname(package["manifest_path"])
    begins = ("licen", "copying", "notice", "unlicense", "copyright")
    names = {name for name in os.listdir(folder) if name.lower().startswith(begins)}
    names |= {package["license_file"]} if package["license_file"] else set()
    paths = [os.path.join(folder, name) for name in sorted(names)]
    for path in filter(os.path.isfile, paths):
        with open(path, encoding="utf-8", errors="replace") as file:
            yield "\n".join(line.rstrip() for line in file.read().strip().splitlines())


def write_texts(packages, out):
    texts, without = {}, []
    for package in packages:
        own = list(texts_of(package))
        if not own:
            without.append(package)
        for text in own:
            texts.setdefault(text, []).append(package)
    rule = "=" * 100
    with open(out, "w", encoding="utf-8") as file:
        file.write(f"The program contains {len(packages)} packages under the licences below.\n")
        for text, of in texts.items():
            names = ", ".join(f"{p['name']} {p['version']} ({p['license']})" for p in of)
            file.write(f"\n{rule}\n{names}\n{rule}\n\n{text}\n")
        file.write(f"\n{rule}\nPackages without a text of their own\n{rule}\n\n")
        for p in without:
            authors = ", ".join(p["authors"]) or "its authors"
            file.write(f"{p['name']} {p['version']}: {p['license']}, by {authors}; {p['repository'] or p['homepage']}\n")
    print(f"{len(texts)} texts of {len(packages) - len(without)} linked packages, {len(without)} without one, in {out}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", metavar="FILE", help="where to write the licence texts of what is linked")
    options = parser.parse_args()
    packages = metadata("--all-features")["packages"]
    refused = [p for p in packages if not (p["license"] and fulfilled(p["license"]))]
    for package in refused:
        print(f"{package['name']} {package['version']}: {package['license']}", file=sys.stderr)
    print(f"{len(packages)} packages, {len(refused)} of them under no allowed licence")
    if refused:
        sys.exit(1)
    if options.texts:
        write_texts(linked(metadata()), options.texts)


main()
