"""What a broker must be able to do, and how connections to it are made again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from wsfast.hub import Kind

from .wire import Address

__all__ = ["Backoff", "Broker", "Interest", "Receiving", "Sending", "close", "stop", "while_running"]

FIRST_BACKOFF, LAST_BACKOFF = 0.05, 5.0
"""Seconds to wait before connecting again, after the first and after many failures."""

Interest = tuple[Kind, Any]
"""A topic, a pattern or a user that has somebody in this process."""


class Sending(Protocol):
    """A connection to a broker that publishes."""

    async def publish(self, messages: Sequence[tuple[Address | None, bytes]]) -> int:
        """Publish in this order, and wait until the broker has confirmed it; return how many it refuses."""

    async def close(self) -> None:
        """Close it, whether it works or not."""


class Receiving(Protocol):
    """A connection to a broker that subscribes."""

    async def subscribe(self, interests: Sequence[Interest | None]) -> None:
        """Subscribe; None is what all relays are told. Wait until the broker has confirmed it."""

    async def unsubscribe(self, interests: Sequence[Interest]) -> None:
        """Unsubscribe."""

    async def run(self) -> None:
        """Receive until the connection is lost, or nothing is heard for too long; return, or raise, then."""

    async def close(self) -> None:
        """Close it, whether it works or not."""


class Broker(Protocol):
    """How to connect to a broker."""

    name: str
    """Its name in log records, without a password."""

    async def open_sending(self) -> Sending:
        """Connect to publish."""

    async def open_receiving(self, receive: Callable[[bytes], None]) -> Receiving:
        """Connect to subscribe; call `receive` with each message."""


class Backoff:
    """The time between attempts to connect, which grows with each."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew: an attempt has succeeded."""
        self._seconds = FIRST_BACKOFF

    async def wait(self) -> None:
        """Wait until the next attempt."""
        await asyncio.sleep(self._seconds * random.uniform(0.5, 1.0))
        self._seconds = min(2 * self._seconds, LAST_BACKOFF)


async def stop(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks, until they have ended: clients of brokers have swallowed a cancellation."""
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=2)
    await asyncio.gather(*tasks, return_exceptions=True)


async def while_running(running: asyncio.Task[None], request: Coroutine[Any, Any, None]) -> None:
    """Wait for the answer to a request, which may come behind many messages, unless the connection is lost."""
    task = asyncio.ensure_future(request)
    try:
        await asyncio.wait((task, running), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ConnectionResetError("the broker has closed the connection")
        await task
    finally:
        await stop(task)


async def close(connection: Sending | Receiving) -> None:
    """Close a connection that may be broken, also if this is cancelled meanwhile: half closed, it would stay open."""
    closing = asyncio.create_task(connection.close())
    try:
        await asyncio.wait((closing,), timeout=1)
    finally:
        if not closing.done():
            await asyncio.wait((closing,), timeout=1)
            closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
