"""The memory of a subscription, in channels that are nearly idle."""

from __future__ import annotations

import asyncio
import gc
import os
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from types import MappingProxyType
from typing import Any

import wsfast
from wsfast_bench.cases import Case
from wsfast_bench.clients import Clients
from wsfast_bench.machine import UnfitError
from wsfast_bench.memory import resident
from wsfast_bench.servers import SERVE, admit

from .scenario import Chart, Play, Row, Scenario, Settings

__all__ = ["HOWS", "SCENARIO", "weigh_subscriptions"]

HOWS = ("resident", "traced")
"""Kinds of memory: pages of the process that are in memory, or memory that Python's allocators have given out."""


async def weigh_subscriptions(
    case: Case, channels: int, how: str, processors: tuple[int, int] | None
) -> dict[str, Any]:
    """Subscribe all clients to all channels, and publish one message in each.

    Args:
        case: How many clients.
        channels: How many channels.
        how: One of `HOWS`.
        processors: One for this process, one for that of the clients; None to bind neither.

    Raises:
        UnfitError: If clients cannot connect.
    """
    if processors is not None:
        os.sched_setaffinity(0, {processors[0]})
    async with AsyncExitStack() as stack:
        accepted: list[Any] = []
        port = await stack.enter_async_context(SERVE["served"](case, accepted))
        clients = stack.enter_context(Clients(None if processors is None else processors[1]))
        await admit(clients, case, port, accepted)
        await clients.drain(awake=False)
        crowd = [wsfast.Channel(str(number)) for number in range(channels)]
        if how == "traced":
            tracemalloc.start()
            stack.callback(tracemalloc.stop)
        before = _weight(how)
        for connection in accepted:
            for channel in crowd:
                channel.subscribe(connection)
        subscribed = _weight(how) - before
        for channel in crowd:
            channel.publish("x" * case.size)
        crowd[0].flush()
        await asyncio.sleep(0)
        weight = _weight(how) - before
        count = case.clients * channels
        return {
            "connections": case.clients,
            "channels": channels,
            "subscriptions": count,
            "how": how,
            "subscribed": subscribed / count,
            "each": weight / count,
        }


def _weight(how: str) -> int:
    if how == "resident":
        return resident()
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


class MemorySubscriptions(Scenario):
    """As many subscriptions by few connections as by many."""

    name = "memory-subscriptions"
    help = "bytes per idle subscription, with 10,000 subscriptions"
    keys = ("connections", "channels", "how")
    numbers = MappingProxyType({"subscribed": "subscribed B", "each": "B/subscription"})
    chart = Chart("Bytes per subscription", "each", "{connections} x {channels}, {how}")
    legend = (
        "subscribed: right after subscribe(). B/subscription: after one message in each channel. resident: growth of\n"
        "the resident memory; it misses what fits into memory that was free before. traced: by tracemalloc, memory\n"
        "that Python's allocators gave out."
    )

    def plan(self, settings: Settings) -> Iterator[Play]:
        """Play ten channels, then one with ten times the connections, if there are descriptors for them."""
        clients = settings.clients()
        for connections, channels in ((clients, 10), (10 * clients, 1)):
            try:
                case = settings.case(connections, 64, "text")
            except UnfitError as exc:
                if channels > 1:
                    raise
                print(f"Skipping {connections} connections in one channel: {exc}")
                return
            for how in HOWS:
                yield Play(
                    f"{10 * clients} subscriptions: {connections} connections, {how}",
                    {"case": case, "channels": channels, "how": how, "processors": settings.processors},
                )

    async def run(self, case: Case, task: dict[str, Any]) -> Row:
        """Subscribe all connections to all channels."""
        return await weigh_subscriptions(case, task["channels"], task["how"], task["processors"])

    def tabulate(self, rows: Sequence[Row]) -> list[list[str]]:
        """Return a row for each number of connections, measured either way."""
        table = [["connections", "channels", "subscriptions", "measured", "subscribed B", "B/subscription"]]
        table += [
            [
                str(row["connections"]),
                str(row["channels"]),
                str(row["subscriptions"]),
                row["how"],
                f"{row['subscribed']:.0f}",
                f"{row['each']:.0f}",
            ]
            for row in rows
        ]
        return table


SCENARIO = MemorySubscriptions()
