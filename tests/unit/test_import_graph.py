"""Imports inside the package go one way: never from a lower layer to a higher one, and never in a circle.

Every import counts, wherever it stands: in a function, or under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "wsfast"

LAYERS = [
    ["_arguments", "_core"],
    ["_encoding"],
    ["connections"],
    ["_delivery", "_writable"],
    ["_backlog"],
    ["policies"],
    ["_draining", "_reentrancy"],
    ["_dispatcher", "_broadcast", "_subscription"],
    ["_publisher", "_keepalive"],
    ["channel"],
    ["hub"],
    ["relay"],
    ["_django", "_litestar", "_socketio"],
    ["_serve", "trio", "uvicorn", "gunicorn", "prometheus", "sse", "django", "socketio", "hypercorn", "litestar"],
    ["__init__"],
    ["doctor", "cli", "demo", "__main__"],
]
"""From the lowest to the highest. A package stands for its modules, unless these are named themselves."""

KNOWN: set[tuple[str, str]] = set()
"""Imports, of the second module by the first, that are still to be undone."""


def modules() -> dict[str, Path]:
    """Return the modules by their names below wsfast; that of a package is the package's."""
    found = {}
    for path in (*SOURCE.rglob("*.py"), *SOURCE.rglob("*.pyx")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports_of(path: Path) -> str:
    """Return a text in plain Python with all imports of a module. Of one in Cython, only these can be parsed."""
    text = path.read_text()
    if path.suffix == ".py":
        return text
    lines = re.findall(r"^ *((?:from|import) [^()\n]*(?:\([^)]*\))?)", text, re.MULTILINE)
    return "\n".join(line for line in lines if "cimport" not in line)


def absolute(node: ast.ImportFrom, package: list[str]) -> str | None:
    """Return the full name of the module in `from module import ...`, in a module of a package; None if foreign."""
    if node.level == 0:
        return node.module if (node.module or "").partition(".")[0] == "wsfast" else None
    parents = ["wsfast", *package]
    return ".".join(parents[: len(parents) - node.level + 1] + ([node.module] if node.module else []))


def imported(path: Path) -> Iterator[str]:
    """Yield the full names in a module's imports, those of the package's own modules and of what is in them."""
    package = list(path.relative_to(SOURCE).parent.parts)
    for node in ast.walk(ast.parse(imports_of(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "wsfast")
        elif isinstance(node, ast.ImportFrom) and (module := absolute(node, package)) is not None:
            yield from (f"{module}.{alias.name}" for alias in node.names)


def edges() -> set[tuple[str, str]]:
    """Return who imports whom."""
    found = modules()
    result = set()
    for name, path in found.items():
        for target in imported(path):
            inner = target.removeprefix("wsfast").removeprefix(".")
            while inner and inner not in found:  # the name of something in a module
                inner = inner.rpartition(".")[0]
            result.add((name, inner or "__init__"))
    return result - {(name, name) for name in found}


def rank(module: str) -> int:
    """Return the number of a module's layer."""
    name = module
    while name:
        for number, layer in enumerate(LAYERS):
            if name in layer:
                return number
        name = name.rpartition(".")[0]
    raise AssertionError(f"{module} is in no layer: add it to LAYERS")


@pytest.fixture(scope="module")
def graph() -> set[tuple[str, str]]:
    """All imports but the known ones."""
    return edges() - KNOWN


def test_no_import_goes_up(graph: set[tuple[str, str]]) -> None:
    """No module imports one of a higher layer."""
    up = sorted(f"{one} imports {other}" for one, other in graph if rank(other) > rank(one))
    assert not up


def test_no_import_is_part_of_a_circle(graph: set[tuple[str, str]]) -> None:
    """No module imports itself by way of others."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for one, other in sorted(graph):
        sorter.add(one, other)
    try:
        sorter.prepare()
    except CycleError as exc:
        pytest.fail(" is imported by ".join(exc.args[1]))


def test_known_imports_are_there() -> None:
    """What was undone is no longer in the list of exceptions."""
    assert KNOWN - edges() == set()


def test_all_imports_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports are found in functions, under TYPE_CHECKING, relative and absolute ones, of modules and of names."""
    monkeypatch.setattr(f"{__name__}.SOURCE", tmp_path)
    (tmp_path / "pack").mkdir()
    for name in ("__init__.py", "one.py", "two.pyx", "three.py", "four.py"):
        (tmp_path / name).touch()
    (tmp_path / "pack" / "__init__.py").write_text(
        "from __future__ import annotations\n"
        "import os, wsfast.one\n"
        "from os import path\n"
        "from .. import two\n"
        "from . import inner\n"
        "if TYPE_CHECKING:\n    from ..three import Name\n"
        "def function():\n    from wsfast.four import Name\n"
    )
    (tmp_path / "pack" / "inner.py").write_text("from . import name\nfrom wsfast import Name\n")
    (tmp_path / "core.pyx").write_text(
        "from .one cimport (\n    x,\n)\nfrom .two import (\n    y,\n    z,\n)\ncdef f():\n    import wsfast.one\n"
    )
    assert edges() == {
        *(("core", name) for name in ("one", "two")),
        *(("pack", name) for name in ("one", "two", "three", "four", "pack.inner")),
        ("pack.inner", "pack"),
        ("pack.inner", "__init__"),
    }
