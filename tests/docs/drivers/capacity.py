"""docs/how-to/capacity.md: its formulas give what it says, from round numbers near the measured ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.blocks import play, runs
from helpers.pages import Block, blocks_of, prose_of

PAGE = "docs/how-to/capacity.md"


@runs(PAGE, "formulas")
async def formulas(block: Block, _: Path) -> None:
    """The block prints what the page says, and begins with numbers near those of the table.

    test_figures compares the table with the runs.
    """
    printed: list[str] = []
    names = play(block, print=printed.append)
    (output,) = (other.code for other in blocks_of(PAGE) if other.language == "text")
    assert printed == output.splitlines()
    figures = [float(figure) for figure in re.findall(r"\| ([\d.]+)<!-- figure: ", prose_of(PAGE))]
    assert len(figures) == 5
    assert names["send"] * 1e6 == pytest.approx(figures[0], rel=0.5)
    assert names["memory"] * 1000 / 2**20 == pytest.approx(figures[2], rel=0.5)
    assert names["octets"] == pytest.approx(figures[4], rel=0.2)
    for ticks, clients in ((10, "5,000"), (1, "50,000")):
        assert f"{0.5 / (ticks * names['send']):,.0f}" == clients
        assert clients in prose_of(PAGE)
