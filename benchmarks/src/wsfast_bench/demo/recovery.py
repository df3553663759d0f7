"""The last part of the demo: all clients of one more server are cut off at once, come back, and have lost nothing."""

from __future__ import annotations

import asyncio
import time
from typing import Any, NamedTuple

import wsfast
import wsfast.session
from wsfast_bench.feed import BACKLOG, Feed
from wsfast_bench.returning import Returning

__all__ = ["AWAY", "Recovery", "cut_off"]

AWAY = 1.0
"""Seconds that clients are away at least, and within which they come back then."""

PATIENCE = 20.0
"""Seconds for all of it."""

HISTORY = 10_000

SIZE = 100
"""Characters of a message."""


class Recovery(NamedTuple):
    """The numbers that were counted."""

    clients: int
    """Clients that were cut off, and recovered."""
    missed: int
    """Messages that were published before the first of them could come back."""
    seconds: float
    """Seconds from the cut until the last one was recovered."""
    messages: int
    """Messages that all clients together got since the cut. Each of them has checked that they are complete."""

    def sentences(self) -> tuple[str, str]:
        """Return the numbers in words."""
        return (
            f"{self.clients:,} clients of a wsfast.Hub missed {self.missed:,} messages each or more while they were "
            f"away; {self.seconds:.1f} s after the cut, all had recovered.",
            f"They got {self.messages:,} messages since the cut: none is missing, and none came twice.",
        )


async def cut_off(clients: int, rate: int, away: float = AWAY) -> Recovery:
    """Serve clients of a hub with history, cut all of them off, and have them come back.

    Args:
        clients: How many.
        rate: Messages per second.
        away: Seconds that they are away at least, and within which they come back then.

    Raises:
        FaultError: If a client misses a message or gets one twice.
        UnfitError: If they cannot connect.
        TimeoutError: If it takes too long.
    """
    hub = wsfast.Hub(history=HISTORY, envelope=True)
    feed = Feed(hub, SIZE, pause=1 / rate)

    async def handler(connection: Any) -> None:
        await wsfast.session.Session(hub, connection).run()

    serving = wsfast.serve(handler, "127.0.0.1", 0, compression=None, backlog=BACKLOG, origins=[None])
    with Returning(None) as returning:  # the clients go before the server ends, which would wait for them
        async with asyncio.timeout(PATIENCE), serving as server, feed.running():
            port = next(iter(server.sockets)).getsockname()[1]
            await returning.do("open", port, clients, away)
            before = (await returning.do("cut"))["messages"]
            cut, number = time.monotonic(), feed.number
            await asyncio.sleep(away)
            missed = feed.number - number
            told = await returning.do("back", away)
            seconds = max(told["times"]) - cut
            messages = (await returning.do("reach", feed.number + 1))["messages"]
            await returning.do("cut")
    return Recovery(clients, missed, seconds, messages - before)
