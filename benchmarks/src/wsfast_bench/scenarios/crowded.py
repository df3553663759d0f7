"""Every processor is busy with something else: what do threads that send bring then, and what do they cost?"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any

from wsfast_bench.cases import Case
from wsfast_bench.machine import usable_processors
from wsfast_bench.methods import METHODS

from .cores import measure_threads
from .scenario import Chart, Play, Row, Scenario, Settings

__all__ = ["BUSY", "SCENARIO", "WAYS", "crowd"]

WAYS = ("wsfast", "wsfast-served", "channel")

MOST = 64
"""Threads that `wsfast.set_threads()` allows."""

TICK = 5
"""Milliseconds between two calls, in which the server sleeps: the scheduler would punish one that is busy as well."""

BUSY = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
parent = os.getppid()
print(flush=True)
while os.getppid() == parent:
    for _ in range(1000000):
        pass
"""
"""Keeps a processor busy; ends with the process that started it."""


async def crowd(case: Case, threads: Sequence[int | None]) -> list[dict[str, Any]]:
    """Measure calls while every processor is busy; nobody is bound to one but those that keep them busy.

    Raises:
        UnfitError: If clients cannot connect, or do not read what they are sent.
    """
    with ExitStack() as stack:
        for processor in usable_processors():
            busy = subprocess.Popen([sys.executable, "-c", BUSY, str(processor)], stdout=subprocess.PIPE)
            stack.callback(_end, busy)
            assert busy.stdout is not None
            busy.stdout.readline()
        return await measure_threads(case, threads, None)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


class Crowded(Scenario):
    """One process, in which all numbers of threads take turns, beside one that is busy on each processor."""

    name = "crowded"
    help = "1000 clients, 64 B, every processor busy: one thread, the default, and one thread for each processor"
    keys = ("way", "threads", "default")
    numbers = MappingProxyType({"p50": "p50 ms", "p99": "p99 ms"})
    chart = Chart("99th percentile of a call, ms", "p99", "{way}, {threads}")
    legend = (
        "p50, p99: time of a call. p99 ratio: to p99 with one thread. The server sleeps for 5 ms after each call.\n"
        "Server and clients are not bound to processors."
    )

    def plan(self, settings: Settings) -> Iterator[Play]:
        """Play all in one process."""
        clients = settings.clients()
        threads = [1, None, min(len(usable_processors()), MOST)]
        ways = [name for name in WAYS if METHODS[name].present]
        case = settings.case(len(WAYS) * clients, 64, "text") | settings.rounds()
        case |= {"clients": clients, "methods": ways, "sleep": True, "tick": TICK}
        yield Play(
            f"{clients} clients, 64 B, {len(usable_processors())} busy processors: in turns",
            {"case": case, "threads": threads, "processors": None},
        )

    async def run(self, case: Case, task: dict[str, Any]) -> list[Row]:
        """Measure all numbers of threads."""
        return [*await crowd(case, task["threads"])]

    def tabulate(self, rows: Sequence[Row]) -> list[list[str]]:
        """Return a row for each method and number of threads."""
        table = [["method", "threads", "p50 ms", "p99 ms", "p99 ratio"]]
        alone: dict[str, float] = {}
        for row in rows:
            single = alone.setdefault(row["way"], row["p99"])
            told = f"{row['threads']} (default)" if row["default"] else str(row["threads"])
            table.append([row["way"], told, f"{row['p50']:.2f}", f"{row['p99']:.2f}", f"{row['p99'] / single:.2f}"])
        return table


SCENARIO = Crowded()
