"""The demo in a terminal: a table that is refreshed in place, or plain lines where there is no terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from typing import Any

from .story import LANES, describe_bytes, describe_seconds

__all__ = ["Terminal", "table", "tell_line"]

EVERY = 8
"""Samples for each plain line: two seconds."""


class Terminal:
    """Shows samples on standard output."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._shown = 0
        self._count = 0

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self._rub_out()
        print(line, flush=True)

    def show_progress(self, line: str) -> None:
        """Show a line in place, on a terminal."""
        if self._live:
            self._rub_out()
            print(line, end="", flush=True)
            self._shown = 1

    def show(self, sample: dict[str, Any], left: int) -> None:
        """Show a sample, and how many seconds this part goes on."""
        self._count += 1
        if self._live:
            size = shutil.get_terminal_size()
            lines = [line[: size.columns - 1] for line in table(sample, left)][: size.lines - 1]
            self._rub_out()
            print("\n".join(lines), end="", flush=True)
            self._shown = len(lines)
        elif self._count % EVERY == 0:
            print(tell_line(sample), flush=True)

    def end(self) -> None:
        """Leave what is shown where it is."""
        if self._shown:
            print("\n", flush=True)
        self._shown = 0

    def _rub_out(self) -> None:
        if self._shown:
            up = self._shown - 1
            print(f"\r\x1b[{up}A\x1b[J" if up else "\r\x1b[J", end="")
        self._shown = 0


def table(sample: dict[str, Any], left: int) -> Iterator[str]:
    """Return the lines of a table with the numbers of a sample."""
    yield f"{sample['clients']} clients in each lane, {sample['rate']} messages of {sample['size']:,} bytes per second"
    if sample["stalled"] is None:
        yield f"All clients read. In {left} s, one of each lane drives into a tunnel."
    else:
        yield f"One client of each lane has been in a tunnel for {sample['stalled']:.0f} s. It reads nothing."
    yield f"{'':<24}{'per second':>12}{'lag':>12}{'memory':>12}{'CPU':>7}"
    for lane, name in LANES.items():
        numbers = sample["lanes"][lane]
        yield (
            f"{name:<24}{numbers['delivered']:>12,}{describe_seconds(numbers['lag']):>12}"
            f"{describe_bytes(numbers['memory']):>12}{numbers['cpu']:>7.0%}"
        )
        text, value, _ = numbers["says"]
        yield f"  {text.format(value)}"


def tell_line(sample: dict[str, Any]) -> str:
    """Return a line with the numbers of a sample."""
    parts = ["all clients read" if sample["stalled"] is None else f"{sample['stalled']:.0f} s in the tunnel"]
    for lane, name in LANES.items():
        numbers = sample["lanes"][lane]
        lag, memory = describe_seconds(numbers["lag"]), describe_bytes(numbers["memory"])
        parts.append(f"{name}: {numbers['delivered']:,}/s, {lag}, {memory}")
    return "   ".join(parts)
