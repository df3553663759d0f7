"""Event loops in several threads at once: tests/isolated/loops.py, with small numbers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from helpers import processes

LOOPS = Path(__file__).parents[1] / "isolated" / "loops.py"


@pytest.mark.parametrize("pure", ["0", "1"])
def test_loops_in_threads(pure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sends to its own connections, while others look at them; every message comes in its place."""
    monkeypatch.setenv("WSFAST_PURE", pure)
    result = processes.run(sys.executable, LOOPS, "--loops", "3", "--rounds", "25", "--timeout", "50")
    assert (result.returncode, result.stderr) == (0, ""), result.stderr[-4000:]
    assert result.stdout.endswith(": 3 loops, 2550 messages, each in its place\n")


def test_loops_with_threads_that_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one pool of threads for all: who does not get it sends alone."""
    monkeypatch.setenv("WSFAST_THREADS", "3")
    numbers = ["--loops", "2", "--clients", "260", "--rounds", "3", "--timeout", "50"]
    result = processes.run(sys.executable, LOOPS, *numbers)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr[-4000:]
    assert "each in its place" in result.stdout
