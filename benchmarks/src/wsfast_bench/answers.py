"""The questions that a report answers first: one sentence and one chart for each."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from .cases import Case
from .chart import Bar
from .methods import METHODS
from .report import Summary, read_summaries

__all__ = ["Answer", "answer"]

TITLES = {
    "wsfast": "wsfast.broadcast()",
    "wsfast-served": "wsfast.broadcast() with wsfast.serve()",
    "channel": "wsfast.Channel",
    "channel-stock": "wsfast.Channel, stock connections",
    "hub": "wsfast.Hub",
    "wsfast-pure": "wsfast.broadcast(), in plain Python",
    "websockets": "websockets.broadcast()",
    "picows": "broadcast() of picows.websockets",
    "node": "ws in Node, one frame for all clients",
    "floor": "bare loop of send() in C",
    "no-takeover": "websockets.broadcast(), without context takeover",
    "await": "await connection.send() in a loop",
    "tasks": "a task for each message",
    "wait": "asyncio.wait() for these tasks",
    "queues": "a queue and a task for each client",
    "pubsub": "a publish-subscribe stream and a task for each client",
}
"""Names of methods in sentences and charts."""

SUBJECTS = ("wsfast", "wsfast-served", "channel", "channel-stock", "hub", "wsfast-pure")
"""Methods of wsfast. An answer is about the first that was measured."""

Entry: TypeAlias = tuple[Case, Mapping[str, Summary]]


@dataclass(frozen=True, slots=True)
class Answer:
    """A question, the sentence that answers it, and a chart."""

    question: str
    sentence: str
    quantity: str
    """The quantity of the chart, with its unit."""
    bars: list[Bar]
    mark: float | None = None
    """Where the chart has a line across all bars."""


def answer(content: Mapping[str, Any]) -> list[Answer]:
    """Return the questions that a run answers.

    Args:
        content: The content of the file that `--json` writes.
    """
    entries = [(Case.from_json(entry["case"]), read_summaries(entry)) for entry in content.get("cases", ())]
    stalled = [row for entry in content.get("scenarios", ()) if entry["scenario"] == "stalled" for row in entry["rows"]]
    return [*_speeds(entries), *_kernel(entries), *_slow(stalled)]


# ---- How much faster?


def _speeds(entries: Sequence[Entry]) -> Iterator[Answer]:
    """Answer for calls without compression, with it, and for processor time with ticks."""
    for compressed in (False, True):
        for ticks in (False, True):
            some = [
                (case, summaries)
                for case, summaries in entries
                if (case.compression != "none") == compressed and bool(case.tick) == ticks
            ]
            yield from _speed(some, compressed=compressed, ticks=ticks)


def _speed(entries: Sequence[Entry], *, compressed: bool, ticks: bool) -> Iterator[Answer]:
    faster = _by_method(entries, "faster")
    subject = next((name for name in SUBJECTS if name in faster), None)
    if subject is None:
        return
    picows = _by_method(entries, "picows")

    def compare(ratios: Sequence[float], other: str) -> str:
        if ticks:
            return f"{_range([1 / ratio for ratio in ratios])} times the processor time of {other}"
        return f"{_range(ratios)} times as fast as {other}"

    verb = "takes" if ticks else "is"
    told = f"{TITLES[subject]} {verb} {compare(faster[subject], TITLES['websockets'])}"
    if subject in picows:
        told += f" and {compare(picows[subject], 'picows')}"
    if "channel" in faster and subject != "channel":
        told += f"; a Channel {verb} {compare(faster['channel'], TITLES['websockets'])}"
    question = "How much processor time does it save" if ticks else "How much faster is it"
    quantity = "Times as fast as websockets.broadcast()"
    if ticks:
        quantity = "Processor time of websockets.broadcast(), divided by that of the method"
    how = " with compression" if compressed else ""
    yield Answer(f"{question}{how}?", f"{told}.", quantity + _longer(entries), _bars(faster), 1)


# ---- How far from the kernel?


def _kernel(entries: Sequence[Entry]) -> Iterator[Answer]:
    """Answer for calls by one thread: several threads do what the kernel's share of one cannot tell."""
    entries = [(case, summaries) for case, summaries in entries if case.threads == 1]
    plain = [(case, summaries) for case, summaries in entries if case.compression == "none"]
    entries = plain or entries
    efficiencies = _by_method(entries, "efficiency")
    subject = next((name for name in SUBJECTS if name in efficiencies), None)
    if subject is None:
        return
    found = efficiencies[subject]
    share = _range([min(value, 1) * 100 for value in found], ".0f")
    sentence = f"A bare loop of send() in C takes {share} % of the time of {TITLES[subject]}"
    if min(found) < 1:
        sentence += (
            f": a library that makes one system call for each client can be at most {1 / min(found):.2f} times as fast"
        )
    bars = _bars({name: values for name, values in efficiencies.items() if METHODS[name].group != "floor"})
    quantity = "Efficiency: time of a bare loop of send() in C, divided by that of the method; 1 is the kernel alone"
    yield Answer("How far is it from the kernel?", f"{sentence}.", quantity + _longer(entries), bars, 1)


# ---- What does a slow client do?


def _slow(rows: Sequence[Mapping[str, Any]]) -> Iterator[Answer]:
    """Answer for clients that never read."""
    stalled = {row["way"]: row for row in rows if row["stalled"]}
    alone = {row["way"]: row for row in rows if not row["stalled"]}
    ours = [way for way in stalled if way != "websockets"]
    if not ours:
        return
    one = stalled[ours[0]]
    told = f"When {one['stalled']} of {one['stalled'] + one['clients']['live']} clients stop reading, "
    grown = {way: row["grown"] / 2**20 for way, row in stalled.items()}
    if "websockets" in grown:
        told += f"the memory of websockets.broadcast() grows by {grown['websockets']:.0f} MiB, and "
    told += f"that of a Channel grows by {_range([grown[way] for way in ours], '.0f')} MiB"
    told += ", depending on its policy" if len(ours) > 1 else ""
    short = [way for way in stalled if stalled[way]["clients"]["complete"] < stalled[way]["clients"]["live"]]
    told += f"; with {', '.join(short)}, other clients miss messages" if short else "; all others get every message"
    late = {way: stalled[way]["p99"] / alone[way]["p99"] for way in ours if way in alone}
    if late:
        told += f". The slowest calls of a Channel (99th percentile) take {_range(list(late.values()))} times as long"
        told += " as without them"
    bars = [
        Bar(TITLES.get(way, f"Channel, {way}"), value, "theirs" if way == "websockets" else "ours")
        for way, value in sorted(grown.items(), key=lambda item: item[1])
    ]
    yield Answer(
        "What does a slow client do to the others?",
        f"{told}.",
        "Growth of the server's memory, MiB. Shorter is better.",
        bars,
    )


# ---- All of them


def _by_method(entries: Iterable[Entry], figure: str) -> dict[str, list[float]]:
    """Return one number of each method that has a title, in each case that has it."""
    found: dict[str, list[float]] = {}
    for _, summaries in entries:
        for name, summary in summaries.items():
            value: float | None = getattr(summary, figure)
            if value is not None and name in TITLES:
                found.setdefault(name, []).append(value)
    return found


def _bars(found: Mapping[str, Sequence[float]]) -> list[Bar]:
    """Return a bar for each method, the longest first: the median over all cases, with the range."""
    bars = [
        Bar(
            TITLES[name],
            statistics.median(values),
            METHODS[name].group,
            (min(values), max(values)) if len(values) > 1 else None,
        )
        for name, values in found.items()
    ]
    return sorted(bars, key=lambda bar: -bar.value)


def _longer(entries: Sequence[Entry]) -> str:
    """Say how to read bars."""
    several = f" Median of {len(entries)} settings; thin lines show the range." if len(entries) > 1 else ""
    return f". Longer is better.{several}"


def _range(values: Sequence[float], form: str = "") -> str:
    """Return the least and the most, or one number where they look the same."""
    form = form or (".1f" if min(values) >= 1 else ".2f")
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"
