"""A feed of numbered messages for clients that come back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import wsfast

from .returning import TOPIC

__all__ = ["BACKLOG", "Feed"]

BACKLOG = 8192
"""Connections that may wait for a server, if the kernel allows as many."""


class Feed:
    """Publishes numbered messages to a hub.

    Args:
        hub: The hub.
        size: Characters of a message.
        pause: Seconds between two messages that are published all the time.
    """

    def __init__(self, hub: wsfast.Hub, size: int, pause: float = 0.5) -> None:
        self.hub = hub
        self.number = 0
        self._size = size
        self._pause = pause

    def publish(self) -> None:
        """Publish a message whose text begins with its offset."""
        self.number += 1
        self.hub.publish(TOPIC, f"{self.number} ".ljust(self._size, "x"))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Publish all the time while in the context."""

        async def run() -> None:
            while True:
                self.publish()
                await asyncio.sleep(self._pause)

        task = asyncio.create_task(run())
        try:
            yield
        finally:
            task.cancel()
