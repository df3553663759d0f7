"""What is subscribed to at the broker: what the hub needs, and nothing else."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from .broker import Backoff, Broker, Interest, Receiving, close, stop, while_running

__all__ = ["BrokerSubscriptions"]

CHUNK = 500
"""Topics that are subscribed to at once."""


class BrokerSubscriptions:
    """Subscribes at the broker to the interests of a hub, and receives.

    Args:
        broker: The broker.
        timeout: Seconds without an answer after which the connection counts as lost.
        receive: Called with each message.
        on_connected: Called with True after connecting, and with False and the reason when there is no connection.
        on_reconnected: Called after connecting again, when messages may be missing.
    """

    def __init__(
        self,
        broker: Broker,
        timeout: float,
        receive: Callable[[bytes], None],
        on_connected: Callable[..., None],
        on_reconnected: Callable[[], None],
    ) -> None:
        self.reconnects: int = 0
        self._broker = broker
        self._timeout = timeout
        self._receive = receive
        self._on_connected = on_connected
        self._on_reconnected = on_reconnected
        self._interests: dict[Interest | None, None] = {None: None}  # None is what all relays are told
        self._outdated: dict[Interest | None, None] = {}  # those that may have changed
        self._subscribed: set[Interest | None] = set()
        self._changed = asyncio.Event()
        self._updated = asyncio.Event()

    def __len__(self) -> int:
        """How many interests are subscribed to."""
        return len(self._subscribed - {None})

    def add(self, interest: Interest) -> None:
        """Subscribe soon."""
        self._interests[interest] = self._outdated[interest] = None
        self._changed.set()

    def remove(self, interest: Interest) -> None:
        """Unsubscribe soon."""
        self._interests.pop(interest, None)
        self._outdated[interest] = None
        self._changed.set()

    async def confirmed(self) -> None:
        """Wait until the broker has confirmed all."""
        while self._interests.keys() != self._subscribed:
            self._updated.clear()
            await self._updated.wait()

    async def run(self) -> None:
        """Keep the subscriptions at the broker up to date, for ever, whether the broker is there or not."""
        backoff = Backoff()
        again = False
        while True:
            receiving: Receiving | None = None
            running: asyncio.Task[None] | None = None
            try:
                async with asyncio.timeout(self._timeout):
                    receiving = await self._broker.open_receiving(self._receive)
                running = asyncio.create_task(receiving.run())
                self._outdated = dict(self._interests)
                await self._update(receiving, running)
                self.reconnects += again
                self._on_connected(True)
                backoff.reset()
                if again:
                    self._on_reconnected()
                again = True
                await self._keep_updated(receiving, running)
            except Exception as exc:
                again = True
                self._on_connected(False, exc)
            finally:
                self._subscribed.clear()
                if running is not None:
                    await stop(running)
                if receiving is not None:
                    await close(receiving)
            await backoff.wait()

    async def _keep_updated(self, receiving: Receiving, running: asyncio.Task[None]) -> None:
        """Follow the interests until the connection is lost, and raise then."""
        while not running.done():
            self._changed.clear()
            changed = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait([running, changed], return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
            await self._update(receiving, running)
        await running
        raise ConnectionResetError("the broker has closed the connection")

    async def _update(self, receiving: Receiving, running: asyncio.Task[None]) -> None:
        """Subscribe to new interests, and unsubscribe from those that have ended."""
        while self._outdated and not running.done():
            some = list(itertools.islice(self._outdated, CHUNK))
            for interest in some:
                del self._outdated[interest]
            new = [one for one in some if one in self._interests and one not in self._subscribed]
            old = [one for one in some if one and one not in self._interests and one in self._subscribed]
            if new:
                await while_running(running, receiving.subscribe(new))
                self._subscribed.update(new)
            if old:
                await while_running(running, receiving.unsubscribe(old))
                self._subscribed.difference_update(old)
        self._updated.set()
