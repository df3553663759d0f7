"""docs/how-to/capacity.md: its formulas give what it says, from figures that are measured."""

from __future__ import annotations

import re
from pathlib import Path

from helpers.blocks import play, runs
from helpers.pages import ROOT, Block, blocks_of, prose_of

PAGE = "docs/how-to/capacity.md"
MEASURED = "docs/explanation/measurements.md"


@runs(PAGE, "formulas")
async def formulas(block: Block, _: Path) -> None:
    """The block prints what the page says, its figures are those of the table, and these are among the measurements."""
    printed: list[str] = []
    names = play(block, print=printed.append)
    (output,) = (other.code for other in blocks_of(PAGE) if other.language == "text")
    assert printed == output.splitlines()
    table = re.findall(r"^\|.*\| ([\d.]+) ?(us|MiB|KB|) \| \[", prose_of(PAGE), re.MULTILINE)
    assert len(table) == 6
    measured = (ROOT / MEASURED).read_text()
    for figure, _unit in table:
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.]*\d)", measured), figure
    figures = [float(figure) for figure, _unit in table]
    assert [names["send"] * 1e6, names["octets"]] == [figures[0], figures[4]]
    assert names["memory"] == figures[2] * 2**20 / 1000
    assert 0.5 / (10 * names["send"]) // 100 == 55
