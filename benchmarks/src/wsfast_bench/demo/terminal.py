"""The demonstration without a browser: a table that is refreshed in place on a terminal, else plain lines."""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from .calls import Calls
from .show import Show

__all__ = ["Terminal", "describe_bytes", "print_table", "ratios", "summarize", "table", "tell_line"]

EVERY = 2
"""Samples for each plain line."""


class Terminal:
    """Shows samples on standard output."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._shown: list[str] = []
        self._told = 0
        self._count = 0

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self._rub_out()
        print(line, flush=True)

    def show_arrivals(self, sample: Mapping[str, Any]) -> None:
        """Show how many clients have come, on a terminal."""
        if self._live:
            there = sample["clients"] + sample["connecting"]
            self._show([f"{sample['connecting']} of {there} clients are connecting"] if there else [])

    def show_sample(self, sample: Mapping[str, Any], notices: Sequence[str]) -> None:
        """Show a sample, and notices that have not been shown yet."""
        for notice in notices[self._told :]:
            self.say(notice)
        self._told = len(notices)
        self._count += 1
        if self._live:
            self._show(list(table(sample)))
        elif self._count % EVERY == 0 and sample["seq"]:
            print(tell_line(sample), flush=True)

    def end(self) -> None:
        """Leave what is shown where it is."""
        if self._shown:
            print(flush=True)
        self._shown = []

    def _show(self, lines: list[str]) -> None:
        """Show lines in place of those that are shown."""
        size = shutil.get_terminal_size()
        self._rub_out()
        self._shown = [line[: size.columns - 1] for line in lines[: size.lines - 1]]
        print("\n".join(self._shown), end="", flush=True)

    def _rub_out(self) -> None:
        if self._shown:
            up = len(self._shown) - 1
            print(f"\r\x1b[{up}A\x1b[J" if up else "\r\x1b[J", end="")
        self._shown = []


def ratios(medians: Mapping[str, float | None]) -> dict[str, float]:
    """Return how many times as fast as the slowest each method is."""
    known = {name: median for name, median in medians.items() if median}
    return {name: max(known.values()) / median for name, median in known.items()} if known else {}


def table(sample: Mapping[str, Any]) -> Iterator[str]:
    """Return the lines of a small table that tells a sample."""
    waiting = sample["waiting"]
    yield (
        f"tick {sample['seq']}   {sample['ticks']:.0f} per second of {sample['size']} B   "
        f"{sample['clients']} clients   {sample['stalled'] + sample['waking']} stalled"
    )
    yield f"method {sample['method']}   policy {sample['policy']}"
    times = ratios(sample["medians"])
    for name, median in sample["medians"].items():
        if median is not None:
            yield f"  {name:<12}{median:>9.2f} ms{times.get(name, 1.0):>8.2f} times as fast as the slowest"
    yield f"  {'deliveries':<12}{sample['deliveries']:>9} per second"
    yield (
        f"  {'waiting':<12}{describe_bytes(waiting['bytes']):>12}   {waiting['messages']} messages, the oldest for "
        f"{waiting['seconds']:.1f} s; the slowest is {waiting['behind']} ticks behind"
    )
    yield f"  {'memory':<12}{describe_bytes(sample['memory']):>12}"
    yield (
        f"  {'dropped':<12}{sample['dropped']:>9}   conflated {sample['conflated']}   "
        f"disconnected {sample['disconnected']}"
    )


def tell_line(sample: Mapping[str, Any]) -> str:
    """Return a line that tells a sample."""
    parts = [f"tick {sample['seq']}"]
    times = ratios(sample["medians"])
    for name, median in sample["medians"].items():
        if median is not None:
            parts.append(f"{name} {median:.2f} ms" + (f" ({times[name]:.2f})" if len(times) > 1 else ""))
    parts.append(f"{sample['deliveries']} deliveries/s")
    parts.append(describe_bytes(sample["memory"]))
    if sample["stalled"] or sample["waking"] or sample["disconnected"]:
        parts.append(
            f"{sample['stalled'] + sample['waking']} stalled, {describe_bytes(sample['waiting']['bytes'])} waiting"
        )
        parts += [f"{what} {sample[what]}" for what in ("dropped", "conflated", "disconnected") if sample[what]]
    return "   ".join(parts)


def describe_bytes(size: int | None) -> str:
    """Return a size for people."""
    if size is None:
        return "unknown"
    if size < 1 << 20:
        return f"{size / 1024:.1f} KiB"
    return f"{size / (1 << 20):.1f} MiB"


def print_table(turns: Collection[Calls], clients: int) -> None:
    """Print what the methods have in common and in what they differ."""
    turns = [turn for turn in turns if turn.all]
    if not turns:
        return
    slowest = max(turn.mean for turn in turns)
    print(f"{'function':<22}{'broadcasts':>11}{'mean ms':>10}{'p99 ms':>10}{'us/client':>11}{'times faster':>14}")
    for turn in turns:
        print(
            f"{turn.label:<22}{len(turn.all):>11}{turn.mean:>10.2f}{turn.p99:>10.2f}{turn.mean * 1e3 / clients:>11.2f}"
            f"{slowest / turn.mean:>14.2f}"
        )


def summarize(show: Show, report: Mapping[str, int]) -> int:
    """Print what has become of everything; return 0 if no client missed what it must not miss, else 1."""
    print_table(show.calls.values(), show.state()["clients"])
    if show.delays:
        print(f"The last client had decoded a tick {statistics.median(show.delays) * 1e3:.1f} ms after the call.")
    counts = show.channel.stats()
    others = show.count("stalled", "waking")
    if others or counts.dropped or counts.conflated or counts.disconnected:
        print(
            f"{others} stalled; by {show.settings.policy}, {counts.dropped} messages were dropped, "
            f"{counts.conflated} conflated, and {counts.disconnected} clients disconnected."
        )
    return judge(show, report)


def judge(show: Show, report: Mapping[str, int]) -> int:
    """Tell whether all clients that read have got all that was for them; return the exit status."""
    last, exact = show.market.seq, report["exact"]
    wrong = {
        "did not get the last tick": report["behind"],
        "ticks were missed, or came twice or out of order": report["faults"],
        "connections were lost": show.crowd.lost,
    }
    if not any(wrong.values()):
        if show.all_along:
            print(f"All {exact} clients received all {last} ticks exactly once and in order.")
        else:
            print(f"All {exact} clients that read received every one of their ticks exactly once and in order.")
        return 0
    what = ", ".join(f"{count} {text}" for text, count in wrong.items() if count)
    print(f"wsfast demo: error: of {exact} clients that read: {what}", file=sys.stderr)
    return 1
