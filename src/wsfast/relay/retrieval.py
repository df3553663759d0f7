"""Asking a broker for the messages of topics that it keeps."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Protocol

from .broker import Backoff, Broker, Fetching, Request, close
from .ordered import OrderedInbound

__all__ = ["OrderedBroker", "Retrieval"]

TOPICS = 16
"""Topics that the broker is asked for at once."""


class OrderedBroker(Broker, Protocol):
    """How to connect to a broker that orders and keeps the messages of topics."""

    async def open_fetching(self) -> Fetching:
        """Connect for asking for messages that are kept."""


class Retrieval:
    """Asks the broker for messages that it keeps.

    Args:
        broker: The broker.
        timeout: Seconds without an answer after which the connection counts as lost.
        inbound: Gets the answers.
        on_connected: Called with True after connecting, and with False and the reason when there is no connection.
    """

    def __init__(
        self, broker: OrderedBroker, timeout: float, inbound: OrderedInbound, on_connected: Callable[..., None]
    ) -> None:
        self._broker = broker
        self._timeout = timeout
        self._inbound = inbound
        self._on_connected = on_connected
        self._due: dict[str, None] = {}
        self._changed = asyncio.Event()
        self._most = TOPICS  # fewer after a timeout: the answer may have been too large for it
        inbound.on_due = self._add

    def _add(self, topic: str) -> None:
        self._due[topic] = None
        self._changed.set()

    async def run(self) -> None:
        """Ask for what is due, forever, and reconnect when the connection is lost."""
        backoff = Backoff()
        while True:
            fetching: Fetching | None = None
            try:
                async with asyncio.timeout(self._timeout):
                    fetching = await self._broker.open_fetching()
                self._on_connected(True)
                while True:
                    while not self._due:
                        self._changed.clear()
                        await self._changed.wait()
                    await self._fetch(fetching)
                    backoff.reset()
            except Exception as exc:
                self._on_connected(False, exc)
            finally:
                if fetching is not None:
                    await close(fetching)
            await backoff.wait()

    async def _fetch(self, fetching: Fetching) -> None:
        """Ask for some topics."""
        some = list(itertools.islice(self._due, self._most))
        for topic in some:
            del self._due[topic]
        orders = {topic: seen.order for topic in some if (seen := self._inbound.followed(topic)) is not None}
        asked = {topic: order.request() for topic, order in orders.items()}
        try:
            async with asyncio.timeout(self._timeout):
                answers = await fetching.fetch(
                    [Request(topic, since, sure) for topic, (_, since, sure) in asked.items()]
                )
        except BaseException:
            self._due.update(dict.fromkeys(asked))
            self._most = max(1, self._most // 2)
            raise
        self._most = min(2 * self._most, TOPICS)
        for (topic, (serial, *_)), kept in zip(asked.items(), answers, strict=True):
            if (seen := self._inbound.followed(topic)) is None or seen.order is not orders[topic]:
                continue
            try:
                self._inbound.stored(topic, serial, kept)
            except BaseException:
                self._due.update(dict.fromkeys(asked))
                raise
