"""The tables of docs/how-to/support.md: what tests/libraries/test_support.py has found, release by release.

`python tests/helpers/support.py FILE` writes them, from what `pytest tests/libraries/test_support.py --support FILE`
has appended, and `python tests/helpers/support.py FILE INTEGRATION PACKAGE` after all tests of an integration passed.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TypeAlias

__all__ = ["COLUMNS", "PAGE", "Finding", "Passed", "look_up", "note", "render", "write"]

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "support.md"
BEGIN = "<!-- begin: written by tests/helpers/support.py -->"
END = "<!-- end -->"

COLUMNS = [(False, False), (False, True), (True, False), (True, True)]
"""Of each column of answers, whether it is that of TLS, and that of compressed messages."""

HEAD = """\
| library | versions | loop | TCP | TCP, deflate | TLS | TLS, deflate |
|---|---|---|---|---|---|---|
"""
INTEGRATIONS_HEAD = """\
| integration | package | releases tested |
|---|---|---|
"""
NONE = "-"

Key: TypeAlias = tuple[str, str, str, bool, bool]
"""Library, release, loop, TLS, compressed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """How messages went to connections of one release of a library."""

    library: str
    version: str
    python: str
    loop: str
    tls: bool
    compressed: bool
    path: str
    """"fast", "ordinary" or "unsupported"."""


@dataclass(frozen=True, slots=True)
class Passed:
    """All tests of an integration have passed with one release of a package."""

    integration: str
    """What it is called on the page."""
    package: str
    version: str
    python: str


def look_up(library: str, version: str, loop: str, *, tls: bool, compressed: bool) -> str | None:
    """Return what the page tells about a release, one in between being taken as the one before; None if nothing."""
    answer = None
    for line in _block().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 + len(COLUMNS) and cells[0] == library and loop in cells[2].split(", "):
            first = cells[1].split(" to ")[0]
            if _number(first) <= _number(version):
                answer = cells[3 + COLUMNS.index((tls, compressed))]
    return None if answer == NONE else answer


def render(findings: Iterable[Finding], passed: Iterable[Passed] = ()) -> str:
    """Return the tables, and below the first one what it was made with."""
    # What was found last counts.
    found = {(one.library, one.version, one.loop, one.tls, one.compressed): one for one in findings}
    lines = []
    libraries = list(dict.fromkeys(key[0] for key in found))
    for library in libraries:
        loops_of: dict[tuple[tuple[str, ...], ...], list[str]] = {}  # of the same cells
        for loop in sorted({one.loop for one in found.values() if one.library == library}):
            loops_of.setdefault(tuple(_rows(found, library, loop)), []).append(loop)
        lines += [
            "| " + " | ".join([library, span, ", ".join(loops), *answers]) + " |\n"
            for rows, loops in loops_of.items()
            for span, *answers in rows
        ]
    tried_of: dict[str, list[str]] = {}
    for library in libraries:
        tried_of.setdefault(", ".join(_versions(found, library)), []).append(library)
    tried = [f"- {', '.join(same)}: {versions}\n" for versions, same in tried_of.items()]
    pythons = ", ".join(sorted({one.python for one in found.values()}, key=_number))
    return f"{HEAD}{''.join(lines)}\nReleases tested with Python {pythons}:\n\n{''.join(tried)}{_integrations(passed)}"


def _integrations(passed: Iterable[Passed]) -> str:
    versions: dict[tuple[str, str], set[str]] = {}
    for one in passed:
        versions.setdefault((one.integration, one.package), set()).add(one.version)
    if not versions:
        return ""
    lines = [
        f"| {integration} | {package} | {', '.join(sorted(releases, key=_number))} |\n"
        for (integration, package), releases in versions.items()
    ]
    return f"\nAll tests of these integrations passed with these releases:\n\n{INTEGRATIONS_HEAD}{''.join(lines)}"


def _rows(found: dict[Key, Finding], library: str, loop: str) -> list[tuple[str, ...]]:
    """Return the cells of each range of releases that give the same answers, but for the library and the loop."""

    def answers(version: str) -> list[str]:
        keys = [(library, version, loop, tls, compressed) for tls, compressed in COLUMNS]
        return [found[key].path if key in found else NONE for key in keys]

    rows = []
    for cells, same in groupby(_versions(found, library), answers):
        first, *rest = same
        rows.append((f"{first} to {rest[-1]}" if rest else first, *cells))
    return rows


def _versions(found: Iterable[Key], library: str) -> list[str]:
    return sorted({key[1] for key in found if key[0] == library}, key=_number)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _block() -> str:
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0]


def note(path: str, integration: str, package: str) -> None:
    """Append that all tests of an integration have passed with the release of a package that is installed."""
    one = Passed(integration, package, importlib.metadata.version(package), platform.python_version())
    with Path(path).open("a") as lines:
        lines.write(json.dumps(asdict(one)) + "\n")


def write(path: str) -> None:
    """Write the tables that these findings make."""
    found = [json.loads(line) for line in Path(path).read_text().splitlines()]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = render(
        [Finding(**one) for one in found if "library" in one], [Passed(**one) for one in found if "integration" in one]
    )
    PAGE.write_text(f"{before}{BEGIN}\n{tables}{END}{after}")


if __name__ == "__main__":
    (note if len(sys.argv) > 2 else write)(*sys.argv[1:])
