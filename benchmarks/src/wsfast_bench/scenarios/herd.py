"""A thundering herd: all clients are cut off at once and come back within a second, each to its position."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import wsfast
import wsfast.session
from wsfast_bench.cases import Case
from wsfast_bench.feed import BACKLOG, Feed
from wsfast_bench.machine import UnfitError
from wsfast_bench.memory import resident
from wsfast_bench.report import percentile
from wsfast_bench.returning import Returning

from .scenario import Chart, Option, Play, Row, Scenario, Settings

__all__ = ["SCENARIO", "come_back"]

WITHIN = 1.0
"""Seconds within which all clients connect, each after a random time."""

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
"""The kernel's numbers for this process, and the file by which its peak of memory begins anew (proc(5))."""


def _peak(*, again: bool) -> int:
    """Return the peak of this process's memory in bytes, as the kernel knows it; with `again`, it begins anew."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    if again:
        try:
            CLEAR.write_text("5")
        except OSError as exc:
            raise UnfitError(f"the peak of this process's memory cannot be measured: {exc}") from None
    return int(line.split()[1]) * 1024


async def _measured(clients: Returning, *command: Any) -> dict[str, Any]:
    """Have the clients connect by a command; return what that costs this process, the server."""
    _peak(again=True)
    cpu, begin = time.process_time(), time.monotonic()
    told = await clients.do(*command)
    return {
        "seconds": max(told["times"]) - begin,
        "p50": percentile(told["took"], 50),
        "p99": percentile(told["took"], 99),
        "refused": told["refused"],
        "cpu": time.process_time() - cpu,
        "peak": _peak(again=False),
    }


async def come_back(case: Case, messages: int, processors: tuple[int, int] | None) -> list[dict[str, Any]]:
    """Connect all clients, cut them off, publish so many messages, and have all come back.

    Args:
        case: How many clients, and how large a message.
        messages: How many messages each client misses.
        processors: One for the server, one for the clients; None to bind neither.

    Raises:
        UnfitError: If a client misses a message, gets one twice, or is not recovered.
    """
    if processors is not None:
        os.sched_setaffinity(0, {processors[0]})
    hub = wsfast.Hub(history=2 * messages + 1000, envelope=True)
    feed = Feed(hub, case.size)

    async def handler(connection: Any) -> None:
        await wsfast.session.Session(hub, connection).run()

    serving = wsfast.serve(handler, "127.0.0.1", 0, compression=None, backlog=BACKLOG, open_timeout=60)
    async with serving as server:
        port = next(iter(server.sockets)).getsockname()[1]
        with Returning(None if processors is None else processors[1]) as clients:
            async with feed.running():
                new = await _measured(clients, "open", port, case.clients, WITHIN)
                await clients.do("reach", feed.number + 1)
                steady = resident()
                await clients.do("cut")
                for _ in range(messages):
                    feed.publish()
                back = await _measured(clients, "back", WITHIN)
            told = await clients.do("reach", feed.number)
            if told["live"] != case.clients:
                raise UnfitError(f"{case.clients - told['live']} of {case.clients} clients have left again")
    both = {"clients": case.clients, "steady": steady, "messages": told["messages"]}
    return [
        {"way": way, "missed": missed, **found, **both, "grown": found["peak"] / steady}
        for way, missed, found in (("new", 0, new), ("back", messages, back))
    ]


class Herd(Scenario):
    """One process with a server, and one with all clients."""

    name = "herd"
    help = "10,000 clients are cut off at once, and come back to their positions within a second"
    messages = Option("messages", "messages that each client misses", 100, quick=20)
    options = (messages,)
    numbers = MappingProxyType({"seconds": "all after s", "cpu": "server CPU s", "grown": "memory grown"})
    chart = Chart("Seconds until all clients are there", "seconds", "{way}")
    legend = (
        "new: clients connect for the first time. back: all come back after a cut, and get what they missed.\n"
        "all after: since the first one may connect. p50, p99: from connecting to being subscribed, or recovered.\n"
        "steady, peak: memory of the server while all are connected, and its peak while they come back.\n"
        "Every client checks that it gets every message exactly once."
    )

    def plan(self, settings: Settings) -> Iterator[Play]:
        """Play with all clients."""
        clients = settings.clients(10_000)
        messages = settings.number(self.messages)
        yield Play(
            f"{clients} clients come back within {WITHIN:.0f} s, {messages} messages of 100 B missed: all",
            {
                "case": settings.case(clients, 100, "text"),
                "messages": messages,
                "processors": settings.processors,
            },
        )

    async def run(self, case: Case, task: dict[str, Any]) -> list[Row]:
        """Cut off all clients, and have them come back."""
        return [*await come_back(case, task["messages"], task["processors"])]

    def tabulate(self, rows: Sequence[Row]) -> list[list[str]]:
        """Return a row for new clients, and one for those that come back."""
        heads = ["", "missed", "all after s", "p50 s", "p99 s", "server CPU s", "steady MiB", "peak MiB", "peak/steady"]
        return [
            heads,
            *(
                [
                    row["way"],
                    str(row["missed"]),
                    f"{row['seconds']:.2f}",
                    f"{row['p50']:.2f}",
                    f"{row['p99']:.2f}",
                    f"{row['cpu']:.2f}",
                    f"{row['steady'] / 2**20:.1f}",
                    f"{row['peak'] / 2**20:.1f}",
                    f"{row['grown']:.2f}",
                ]
                for row in rows
            ),
        ]


SCENARIO = Herd()
