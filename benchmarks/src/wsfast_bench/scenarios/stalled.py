"""Clients that never read, while the server publishes at full speed."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from types import MappingProxyType
from typing import Any

from websockets.asyncio.server import broadcast as websockets_broadcast
from websockets.protocol import OPEN

import wsfast
from wsfast_bench._library import Policy
from wsfast_bench.cases import Case
from wsfast_bench.machine import UnfitError
from wsfast_bench.numbered import KEYS, Numbered
from wsfast_bench.reading import Reading
from wsfast_bench.report import percentile
from wsfast_bench.servers import SERVE, keep

from .scenario import Chart, Option, Play, Row, Scenario, Settings

__all__ = ["LIMIT", "POLICIES", "SCENARIO", "WAYS", "publish_to_stalled"]

POLICIES: dict[str, Callable[[], Policy]] = {
    "Disconnect": wsfast.Disconnect,
    "DropNewest": wsfast.DropNewest,
    "DropOldest": wsfast.DropOldest,
    "Conflate": wsfast.Conflate,
}
"""Policies, with their default bounds: 1 MiB of what waits for a subscriber."""

WAYS = (*POLICIES, "websockets")
"""Compared methods: a channel with each policy, on connections of `wsfast.serve()`; `websockets.broadcast()`."""

LIMIT = 2 << 30
"""Bytes by which the process may grow: then no more is published."""

_LOOK = 32
"""Messages between two looks at the memory."""


async def publish_to_stalled(
    case: Case, way: str, stalled: int, messages: int, processors: tuple[int, int] | None
) -> dict[str, Any]:
    """Publish messages as fast as the event loop goes round.

    Args:
        case: Clients, those that never read included, and the size of a message.
        way: One of `WAYS`.
        stalled: How many never read.
        messages: How many are published.
        processors: One for this process, one for that of the clients; None to bind neither.

    Raises:
        UnfitError: If clients cannot connect.
    """
    if processors is not None:
        os.sched_setaffinity(0, {processors[0]})
    numbered = Numbered(case.size)
    async with AsyncExitStack() as stack:
        accepted: list[Any] = []
        server = "stock" if way == "websockets" else "served"
        port = await stack.enter_async_context(SERVE[server](case, accepted))
        readers = stack.enter_context(Reading(None if processors is None else processors[1]))
        await readers.ask(f"connect {port} {case.clients} 0")
        await keep(accepted, case.clients)
        channel = None if way == "websockets" else wsfast.Channel(way, slow=POLICIES[way]())
        if channel is not None:
            for connection in accepted:
                channel.subscribe(connection)
        await readers.ask(f"check {case.size} {stalled}")
        gc.collect()
        gc.freeze()
        memory = os.open("/proc/self/statm", os.O_RDONLY)
        stack.callback(os.close, memory)
        before = peak = _resident(memory)
        times: list[int] = []
        start = time.perf_counter_ns()
        for number in range(messages):
            payload = numbered.payload(number)
            began = time.perf_counter_ns()
            if channel is not None:
                channel.publish(payload, key=number % KEYS)
                channel.flush()
            else:
                websockets_broadcast(accepted, payload)
            times.append(time.perf_counter_ns() - began)
            if number % _LOOK == 0:
                peak = max(peak, _resident(memory))
                if peak - before > LIMIT:
                    break
            await asyncio.sleep(0)
        seconds = (time.perf_counter_ns() - start) / 1e9
        peak = max(peak, _resident(memory))
        clients = await readers.ask(f"end {len(times)}")
        peak = max(peak, _resident(memory))
        stats = None if channel is None else channel.stats()
        closed = sum(connection.protocol.state is not OPEN for connection in accepted)
        gc.unfreeze()
        return {
            "way": way,
            "stalled": stalled,
            "messages": len(times),
            "asked": messages,
            "rate": len(times) / seconds,
            "p50": percentile(times, 50) / 1e6,
            "p99": percentile(times, 99) / 1e6,
            "grown": peak - before,
            "disconnected": closed if stats is None else stats.disconnected,
            "dropped": 0 if stats is None else stats.dropped,
            "conflated": 0 if stats is None else stats.conflated,
            "clients": clients,
        }


def _resident(memory: int) -> int:
    return int(os.pread(memory, 100, 0).split()[1]) * resource.getpagesize()


class Stalled(Scenario):
    """All bytes of all clients that do read are compared. For the run without the others, they are not connected."""

    name = "stalled"
    help = "1000 clients, 50 of which never read; 20,000 messages of 1 KiB at full speed, with each policy"
    messages = Option("messages", "messages", 20_000, quick=1000)
    options = (messages,)
    numbers = MappingProxyType({"rate": "messages/s", "p50": "p50 ms", "p99": "p99 ms", "grown": "grown B"})
    chart = Chart("99th percentile of a call, ms", "p99", "{way}, {stalled} stalled")
    legend = (
        "p50, p99: time of a publish() and flush(), or of a broadcast(). p99 ratio: to p99 without the stalled\n"
        "clients, which are not connected then. grown: growth of the resident memory, from right before the first\n"
        "message to its highest. dropped, conflated: messages of all clients. in order: clients that got every\n"
        "message in order, of those that read; every byte is compared. A client that lags for a moment is conflated,\n"
        "too."
    )

    def plan(self, settings: Settings) -> Iterator[Play]:
        """Play each way without stalled clients, and with them."""
        clients = settings.clients()
        if clients < 2:
            raise UnfitError("scenario stalled needs at least 2 clients: one that reads and one that does not")
        stalled = max(clients // 20, 1)
        messages = settings.number(self.messages)
        for way in WAYS:
            for asleep in (0, stalled):
                yield Play(
                    f"{clients} clients, {stalled} of which never read, {messages} messages of 1 KiB: {way}, {asleep}",
                    {
                        "case": settings.case(clients - stalled + asleep, 1024, keepalive=False),
                        "way": way,
                        "stalled": asleep,
                        "messages": messages,
                        "processors": settings.processors,
                    },
                )

    async def run(self, case: Case, task: dict[str, Any]) -> Row:
        """Publish by one way."""
        logging.getLogger("wsfast").setLevel(logging.ERROR)  # that clients do not keep up is what was asked for
        return await publish_to_stalled(case, task["way"], task["stalled"], task["messages"], task["processors"])

    def tabulate(self, rows: Sequence[Row]) -> list[list[str]]:
        """Return a row for each way, with and without stalled clients."""
        table = [["method", "stalled", "messages", "messages/s", "p50 ms", "p99 ms", "p99 ratio", "grown MiB"]]
        table[0] += ["disconnected", "dropped", "conflated", "in order"]
        alone = {row["way"]: row for row in rows if not row["stalled"]}
        for row in rows:
            clients: Mapping[str, int] = row["clients"]
            table.append(
                [
                    row["way"],
                    str(row["stalled"]),
                    str(row["messages"]),
                    f"{row['rate']:.0f}",
                    f"{row['p50']:.2f}",
                    f"{row['p99']:.2f}",
                    f"{row['p99'] / alone[row['way']]['p99']:.2f}" if row["stalled"] else "-",
                    f"{row['grown'] / 2**20:.1f}",
                    str(row["disconnected"]),
                    str(row["dropped"]),
                    str(row["conflated"]),
                    f"{clients['complete']}/{clients['live']}",
                ]
            )
        return table

    def warn(self, rows: Sequence[Row]) -> list[str]:
        """Tell of runs that were ended, and of clients that did not get everything."""
        warnings = []
        for row in rows:
            if row["messages"] < row["asked"]:
                warnings.append(
                    f"{row['way']} with {row['stalled']} stalled: ended after {row['messages']} of {row['asked']} "
                    f"messages, when the memory had grown by {LIMIT >> 20} MiB"
                )
            if row["clients"]["complete"] < row["clients"]["live"]:
                told = row["clients"]
                warnings.append(
                    f"WARNING: {row['way']} with {row['stalled']} stalled: of {told['live']} clients that read, "
                    f"{told['wrong']} got other bytes than they should, {told['short']} too few; "
                    f"{told['closed']} were closed"
                )
        return warnings

    def label(self, row: Row) -> str:
        """Return what tells a row from the others."""
        return f"{row['way']}, {row['stalled']} stalled"


SCENARIO = Stalled()
