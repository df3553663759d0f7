"""The process of a server whose connections subscribe to channels in which hardly anything happens."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import tracemalloc
from contextlib import AsyncExitStack
from typing import Any

import wsfast

from .cases import Case
from .clients import Clients
from .measure import tell
from .memory import resident
from .servers import SERVE, admit

__all__ = ["HOWS", "main", "weigh_subscriptions"]

HOWS = ("resident", "traced")
"""What is looked at: pages that the process has in memory, or what Python's allocators have given out."""


async def weigh_subscriptions(
    case: Case, channels: int, how: str, processors: tuple[int, int] | None
) -> dict[str, Any]:
    """Subscribe all clients to all channels, and publish one message in each.

    Args:
        case: How many clients.
        channels: How many channels.
        how: One of `HOWS`.
        processors: One for this process, one for that of the clients; None if they are not to be bound.

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


def main() -> None:
    """Do what is told in the first argument; tell the command line by a line of JSON."""
    task = json.loads(sys.argv[1])
    case = Case.from_json(task["case"])
    tell(case, lambda: weigh_subscriptions(case, task["channels"], task["how"], task["processors"]))


if __name__ == "__main__":
    main()
