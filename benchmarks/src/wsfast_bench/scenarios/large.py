"""Large frames: what does it gain to send them by `sendfile()`, out of a file in memory, rather than by `send()`?"""

from __future__ import annotations

import contextlib
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any

import wsfast
from wsfast_bench._library import has_files, without_files
from wsfast_bench.cases import Case, Samples
from wsfast_bench.machine import bind_server
from wsfast_bench.measure import Turn, prepared
from wsfast_bench.methods import METHODS, Room
from wsfast_bench.report import percentile, ratio

from .scenario import Chart, Play, Row, Scenario, Settings

__all__ = ["BY_SEND", "METHODS_USED", "SCENARIO", "SIZES", "compared", "measure_large"]

SIZES = (64, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10)

METHODS_USED = ("floor", "wsfast", "websockets", "picows")

BY_SEND = {"wsfast": "wsfast-send", "floor-file": "floor"}
"""Ways that may use `sendfile()`, each with the same way by `send()`."""


async def measure_large(case: Case, processors: tuple[int, int] | None) -> list[dict[str, Any]]:
    """Measure calls of all ways with frames of one size, in rounds and in shuffled order, with one thread.

    Args:
        case: The case to measure.
        processors: One for this process, one for that of the clients; None to bind neither.

    Raises:
        UnfitError: If clients cannot connect, or do not read what they are sent.
    """
    async with prepared(case, bind_server(processors), processors) as (bench, turns):
        ways = compared(turns)
        samples = {way: Samples() for way in ways}
        for warm in (True, *[False] * case.rounds):
            order = list(ways)
            random.shuffle(order)
            for way in order:
                with without_files() if way == "wsfast-send" else contextlib.nullcontext():
                    await bench.take_turn(ways[way], Samples() if warm else samples[way])
    return [_row(case, way, samples) for way in ways]


def compared(turns: dict[str, Turn]) -> dict[str, Turn]:
    """Return what is compared: the methods, and of two of them the other way to send."""
    ways = dict(turns)
    if "floor" in turns:
        room = turns["floor"].room
        ways["floor-file"] = Turn(lambda: room.offer_file(room.descriptors), room)
    if "wsfast" in turns:
        ways["wsfast"] = Turn(_broadcaster(turns["wsfast"].room), turns["wsfast"].room)
        if has_files():
            ways["wsfast-send"] = ways["wsfast"]
    return {way: ways[way] for way in ("floor", "floor-file", "wsfast-send", "wsfast", *turns) if way in ways}


def _broadcaster(room: Room) -> Callable[[], None]:
    """Return what calls `wsfast.broadcast()` and counts what the kernel did not take at once."""

    def call() -> None:
        room.short += wsfast.broadcast(room.connections, room.message).buffered

    return call


def _row(case: Case, way: str, samples: dict[str, Samples]) -> dict[str, Any]:
    measured, floor, websockets = samples[way], samples.get("floor"), samples.get("websockets")
    other = samples.get(BY_SEND.get(way, ""))
    calls, drained = list(chain.from_iterable(measured.call)), chain.from_iterable(measured.drained)
    return {
        "size": case.size,
        "way": way,
        "call": statistics.median(calls) / case.clients / 1e3,
        "p50": percentile(calls, 50) / 1e6,
        "p99": percentile(calls, 99) / 1e6,
        "behind": statistics.median(end - call for end, call in zip(drained, calls, strict=True)) / 1e6,
        "gain": None if other is None else ratio(other, measured),
        "faster": None if websockets is None else ratio(websockets, measured),
        "efficiency": None if floor is None else ratio(floor, measured),
        "sends": len(calls) * case.clients,
        "short": measured.short if way in ("wsfast-send", *BY_SEND, *BY_SEND.values()) else None,
    }


class Large(Scenario):
    """A process for each size, in which all ways take turns."""

    name = "large"
    help = "500 clients, 64 B to 256 KiB or --sizes, one thread: wsfast with sendfile() and with send()"
    keys = ("size", "way")
    numbers = MappingProxyType({"call": "us/client", "gain": "x send"})
    theirs = frozenset({"websockets", "picows"})
    chart = Chart("Time of a call, us per client (median)", "call", "{size} B, {way}")
    legend = (
        "floor: a bare loop of send() in C. floor-file: the same with sendfile(), from a file in memory made in each\n"
        "call. wsfast-send: wsfast, but without sendfile(). us/client: time of a call, median. x send, x websockets,\n"
        "efficiency: time of the same with send(), of websockets, of floor, divided by the time of the method in\n"
        "each round; median. behind: time from the end of a call until everything has arrived, median. short: sends\n"
        "of which the kernel did not take everything at once; only known of floors and wsfast."
    )

    def plan(self, settings: Settings) -> Iterator[Play]:
        """Play each size."""
        clients = settings.clients(500)
        ways = [name for name in METHODS_USED if METHODS[name].present]
        for size in settings.arguments.sizes or SIZES:
            case = settings.case(2 * clients, size, "text") | settings.rounds() | {"clients": clients, "methods": ways}
            yield Play(
                f"{clients} clients, frames of several sizes, one thread: {size} B",
                {"case": case, "processors": settings.processors},
            )

    async def run(self, case: Case, task: dict[str, Any]) -> list[Row]:
        """Measure all ways with one size."""
        return [*await measure_large(case, task["processors"])]

    def tabulate(self, rows: Sequence[Row]) -> list[list[str]]:
        """Return a row for each size and way."""
        table = [["B", "method", "us/client", "p50 ms", "p99 ms", "behind ms"]]
        table[0] += ["x send", "x websockets", "efficiency", "short"]
        for row in rows:
            ratios = ["-" if row[key] is None else f"{row[key]:.2f}" for key in ("gain", "faster", "efficiency")]
            times = [f"{row['call']:.2f}", f"{row['p50']:.2f}", f"{row['p99']:.2f}", f"{row['behind']:.2f}"]
            short = "-" if row["short"] is None else str(row["short"])
            table.append([str(row["size"]), row["way"], *times, *ratios, short])
        return table

    def warn(self, rows: Sequence[Row]) -> list[str]:
        """Tell of sends that were cut, and of clients that did not keep up."""
        warnings = []
        for row in rows:
            where = f"{row['way']} with {row['size']} B"
            short, behind, call = row["short"], row["behind"], row["p50"]
            if short:
                warnings.append(f"WARNING: the kernel did not take all of {short} of {row['sends']} sends: {where}")
            if self.group(row) != "theirs" and behind > max(call / 4, 0.2):
                warnings.append(f"WARNING: clients end {behind:.2f} ms after a call of {call:.2f} ms: {where}")
        if any(row["way"] == "wsfast" for row in rows) and all(row["way"] != "wsfast-send" for row in rows):
            warnings.append("This core sends all frames by send(): there is no second way to compare with.")
        return warnings

    def group(self, row: Row) -> str:
        """Return whose a way is."""
        return METHODS[row["way"]].group if row["way"] in METHODS else "floor" if row["way"] == "floor-file" else "ours"


SCENARIO = Large()
