"""Several threads that send: how much faster is a call with a processor for each?"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any

import wsfast
from wsfast_bench.cases import Case, Samples
from wsfast_bench.machine import bind_server, fitting_threads
from wsfast_bench.measure import prepared
from wsfast_bench.methods import METHODS, floor_of
from wsfast_bench.report import percentile, ratio

from .scenario import Chart, Play, Row, Scenario, Settings

__all__ = ["SCENARIO", "THREADS", "WAYS", "measure_threads"]

THREADS = (1, 2, 4, 8)

WAYS = ("floor", "floor-served", "wsfast", "wsfast-served", "channel", "hub", "websockets")
"""Methods that are compared. Those of wsfast are measured with each number of threads, the others with one."""


async def measure_threads(
    case: Case, threads: Sequence[int | None], processors: tuple[int, int] | None
) -> list[dict[str, Any]]:
    """Measure calls of all methods with each number of threads, in rounds and in shuffled order.

    Args:
        case: The case to measure.
        threads: Numbers of threads; None is the default of wsfast.
        processors: One for this process, one for that of the clients; None to bind neither.

    Raises:
        UnfitError: If clients cannot connect, or do not read what they are sent.
    """
    awake = bind_server(processors, max(count or 1 for count in threads))
    async with prepared(case, awake, processors) as (bench, turns):
        samples = {
            (name, count): Samples()
            for name in turns
            for count in (threads if METHODS[name].group == "ours" else threads[:1])
        }
        used = {}
        for warm in (True, *[False] * case.rounds):
            order = list(samples)
            random.shuffle(order)
            for name, count in order:
                wsfast.set_threads(count)
                used[count] = wsfast.threads()
                await bench.take_turn(turns[name], Samples() if warm else samples[name, count])
    return [_row(case, samples, name, count, used[count]) for name, count in samples]


def _row(
    case: Case, samples: dict[tuple[str, int | None], Samples], name: str, count: int | None, used: int
) -> dict[str, Any]:
    measured, first = samples[name, count], next(iter(samples))[1]
    calls = list(chain.from_iterable(measured.call))
    floor, websockets = samples.get((floor_of(name), first)), samples.get(("websockets", first))
    return {
        "way": name,
        "threads": used if METHODS[name].group == "ours" else 1,
        "default": count is None,
        "call": statistics.median(calls) / case.clients / 1e3,
        "p50": percentile(calls, 50) / 1e6,
        "p99": percentile(calls, 99) / 1e6,
        "efficiency": None if floor is None else ratio(floor, measured),
        "faster": None if websockets is None else ratio(websockets, measured),
    }


class Cores(Scenario):
    """One process, in which all methods and all numbers of threads take turns."""

    name = "cores"
    help = "1000 clients, 64 B: 1, 2, 4 and 8 threads that send, or those of --threads"
    keys = ("way", "threads")
    numbers = MappingProxyType({"call": "us/client", "p99": "p99 ms", "efficiency": "efficiency"})
    chart = Chart("Time of a call, us per client (median)", "call", "{way}, {threads}")
    legend = (
        "us/client: time of a call, median. efficiency, x websockets: time of the floor, of websockets, each with\n"
        "one thread, divided by the time of the method in each round; median. The server has a processor for each\n"
        "thread."
    )

    def plan(self, settings: Settings) -> Iterator[Play]:
        """Play all in one process."""
        clients = settings.clients()
        threads = fitting_threads(settings.arguments.threads or THREADS)
        ways = [name for name in WAYS if METHODS[name].present]
        case = settings.case(2 * clients, 64, "text") | settings.rounds() | {"clients": clients, "methods": ways}
        yield Play(
            f"{clients} clients, 64 B, {', '.join(map(str, threads))} threads: in turns",
            {"case": case, "threads": threads, "processors": settings.processors},
        )

    async def run(self, case: Case, task: dict[str, Any]) -> list[Row]:
        """Measure all numbers of threads."""
        return [*await measure_threads(case, task["threads"], task["processors"])]

    def tabulate(self, rows: Sequence[Row]) -> list[list[str]]:
        """Return a row for each method and number of threads."""
        table = [["method", "threads", "us/client", "p50 ms", "p99 ms", "x websockets", "efficiency"]]
        for row in rows:
            ratios = ["-" if row[key] is None else f"{row[key]:.2f}" for key in ("faster", "efficiency")]
            table.append(
                [
                    row["way"],
                    str(row["threads"]),
                    f"{row['call']:.2f}",
                    f"{row['p50']:.2f}",
                    f"{row['p99']:.2f}",
                    *ratios,
                ]
            )
        return table

    def group(self, row: Row) -> str:
        """Return whose a method is."""
        return METHODS[row["way"]].group


SCENARIO = Cores()
