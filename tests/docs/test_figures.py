"""Every performance figure in README and docs comes from a run in docs/measurements.

`scripts/measurements.py` writes them between marks. Any other number with a unit must be a constant that is listed
here, such as a limit, a default, or the size of an example. To add a measured figure to a page, use a mark; see the
script.
"""

from __future__ import annotations

import re
from fnmatch import fnmatch
from types import ModuleType

import pytest

from helpers.pages import PAGES, ROOT
from helpers.scripts import script

CONSTANTS = {
    "README.md": ("64 bytes", "260 bytes", "16 bytes"),
    "docs/explanation/architecture.md": ("20 ms", "64 KiB", "2 ms"),  # budgets and batches
    "docs/explanation/benchmarks.md": ("64 B", "256 B", "256 KiB", "260 bytes", "3 ms", "1.5 ms"),  # sizes; an example
    "docs/explanation/compression.md": (
        *("14 bytes", "260 bytes"),  # an example
        *("16 bytes", "4 KiB", "32 KiB", "268 KiB", "4 MiB"),  # limits; sizes of windows
    ),
    "docs/explanation/measurements.md": (
        *("20 ms", "50 ms", "500 messages per second"),  # how often is sent
        *("64 bytes", "100 bytes", "256 bytes", "1 KiB", "16 KiB", "64 KiB"),  # what is sent
    ),
    "docs/explanation/platforms.md": ("10 ms",),  # how often is looked
    "docs/explanation/rules.md": ("16 KiB", "32 KiB", "128 KiB"),  # limits; the size of an encoder
    "docs/explanation/security.md": ("150 bytes", "300 bytes", "32 KB", "300 MB", "1 MiB", "16 bytes", "32 KiB"),
    "docs/explanation/slow-consumers.md": ("16 KiB", "64 KiB", "40 MB"),  # limits; an example
    "docs/explanation/tests.md": ("ten times the", "ten times slower"),  # of tests
    "docs/how-to/broadcasting.md": ("16 bytes",),
    "docs/glossary.md": ("32 KiB",),
    "docs/how-to/capacity.md": (
        *("20 ms", "260 bytes", "100 ms", "256 MB", "15 KB"),  # how often is sent, and what; results of an example
        *("150 bytes", "1 MiB"),  # the size of what waits; a default
    ),
    "docs/how-to/deployment.md": ("ten times as",),
    "docs/how-to/moving.md": ("1 MiB",),
    "docs/how-to/connections.md": ("16 MiB", "64 KiB", "50 ms"),
    "docs/how-to/recovery.md": ("16 MiB",),
    "docs/how-to/slow-clients.md": ("1 MiB", "16 KiB"),
}
"""Numbers that nobody measures, by the pages that may have them."""

UNIT = r"us|µs|ns|ms|[KMGkmg]i?B|bytes?|octets?|B|per\s+cent|percent|times|(?:messages|msg)\s+(?:a|per)\s+second|msg/s"
WORD = r"two|three|four|five|six|seven|eight|nine|ten|twenty"
FIGURE = re.compile(
    rf"""(?<![\w.,/#-])
    (?:
        \d+(?:[.,]\d+)*(?:\s?(?:{UNIT})|\s?%|x)
      | (?:{WORD})\s+times\s+(?:as|faster|slower|less|more|the)
      | twice\s+as\s+(?:fast|slow|long)
      | (?:efficiency|faster)\s+(?:(?:of|by)\s+)?\d+(?:[.,]\d+)*
    )(?!\w)""",
    re.VERBOSE,
)
"""A number with a unit in which performance is told."""

MEASURED = [page for page in PAGES if page == "README.md" or page.startswith("docs/")]


@pytest.fixture(scope="module")
def measurements() -> ModuleType:
    """The script that writes figures."""
    return script("measurements")


def blank(text: str, *patterns: re.Pattern[str]) -> str:
    """Return a page without what matches; lines keep their numbers."""
    for pattern in patterns:
        text = pattern.sub(lambda match: re.sub(r"[^\n]", "~", match[0]), text)
    return text


def loose_figures(page: str, text: str, measurements: ModuleType) -> list[str]:
    """Return the figures of a page that stand outside of marks and are no constants, each with its line."""
    text = blank(text, measurements.TABLE, measurements.FIGURE, re.compile(r"<!--.*?-->", re.DOTALL))
    known = {figure for pattern, figures in CONSTANTS.items() if fnmatch(page, pattern) for figure in figures}
    return [
        f"{page}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}"
        for match in FIGURE.finditer(text)
        if " ".join(match[0].split()) not in known
    ]


def stale_figures(page: str, text: str, measurements: ModuleType) -> list[str]:
    """Return the lines of a page that the runs say otherwise."""
    path = ROOT / page
    written = measurements.rewrite(text, path)
    lines = zip(text.splitlines(), written.splitlines(), strict=False)
    differ = [f"{page}: {old!r} should be {new!r}" for old, new in lines if old != new]
    return differ or ([f"{page}: lines are missing"] if text != written else [])


@pytest.mark.parametrize("page", MEASURED)
def test_figures_come_from_runs(page: str, measurements: ModuleType) -> None:
    """A number on a page is what the runs say, or a constant."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert stale_figures(page, text, measurements) == [], "run: python scripts/measurements.py"
    assert loose_figures(page, text, measurements) == [], "write it by a mark, in words, or list the constant"


@pytest.mark.parametrize("page", ["README.md", "docs/explanation/measurements.md"])
def test_edited_figure_is_found(page: str, measurements: ModuleType) -> None:
    """A figure that somebody has changed by hand is told, in a table and in a sentence."""
    text = (ROOT / page).read_text(encoding="utf-8")
    tables = [match[0] for match in measurements.TABLE.finditer(text) if re.search(r"\| \d+\.\d\d", match[0])]
    assert tables
    for table in tables:
        edited = re.sub(r"\| (\d+)\.(\d\d)", lambda cell: f"| {int(cell[1]) + 1}.{cell[2]}", table, count=1)
        assert len(stale_figures(page, text.replace(table, edited), measurements)) == 1
    for mark in measurements.FIGURE.finditer(text):
        edited = text[: mark.start()] + "9" + text[mark.start() :]
        assert len(stale_figures(page, edited, measurements)) == 1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It takes 5.59 us per client.", "5.59 us"),
        ("It takes 30\nms.", "30\nms"),
        ("It sends 51.5 octets.", "51.5 octets"),
        ("It is 1.9 times as fast.", "1.9 times"),
        ("It is 2x faster.", "2x"),
        ("It is 12 % faster, or 12%.", "12 %"),
        ("It takes [two times as long](page.md).", "two times as"),
        ("It is twice as fast.", "twice as fast"),
        ("It has an efficiency of 0.97.", "efficiency of 0.97"),
        ("29,000 messages a second", "29,000 messages a second"),
        ("It needs 48 MiB (64 bytes each).", "48 MiB"),
        ("- 3.85 MB", "3.85 MB"),
    ],
)
def test_loose_figure_is_found(text: str, found: str, measurements: ModuleType) -> None:
    """A figure that somebody adds by hand is told with its line."""
    assert loose_figures("README.md", f"\n{text}", measurements)[0] == f"README.md:2: {found}"


@pytest.mark.parametrize("text", ["Python 3.11", "1000 clients", "at 10:30", "websockets 14 to 17", "64 bytes"])
def test_other_numbers_are_not_figures(text: str, measurements: ModuleType) -> None:
    """Versions, counts and constants are none."""
    assert loose_figures("README.md", text, measurements) == []
