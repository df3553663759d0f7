"""The process of a server some of whose clients never read, while it publishes at full speed."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from websockets.asyncio.server import broadcast as websockets_broadcast
from websockets.protocol import OPEN

import wsfast

from ._library import Policy
from .cases import Case
from .measure import tell
from .numbered import KEYS, Numbered
from .reading import Reading
from .report import percentile
from .servers import SERVE, keep

__all__ = ["LIMIT", "POLICIES", "WAYS", "main", "publish_to_stalled"]

POLICIES: dict[str, Callable[[], Policy]] = {
    "Disconnect": wsfast.Disconnect,
    "DropNewest": wsfast.DropNewest,
    "DropOldest": wsfast.DropOldest,
    "Conflate": wsfast.Conflate,
}
"""Policies, with their default bounds: 1 MiB of what waits for a subscriber."""

WAYS = (*POLICIES, "websockets")
"""What is compared: a channel with each policy, on connections of `wsfast.serve()`; `websockets.broadcast()`."""

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
        processors: One for this process, one for that of the clients; None if they are not to be bound.

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


def main() -> None:
    """Do what is told in the first argument; tell the command line by a line of JSON."""
    task = json.loads(sys.argv[1])
    case = Case.from_json(task["case"])
    logging.getLogger("wsfast").setLevel(logging.ERROR)  # that clients do not keep up is what was asked for
    tell(
        case,
        lambda: publish_to_stalled(case, task["way"], task["stalled"], task["messages"], task["processors"]),
    )


if __name__ == "__main__":
    main()
