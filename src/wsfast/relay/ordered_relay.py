"""A relay that recovers: connects a hub to a broker that orders and keeps the messages of topics."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Collection, Coroutine, Hashable, Mapping
from functools import partial
from typing import Any

from wsfast._encoding.message import PreparedMessage
from wsfast.hub import Command, Kind, Position
from wsfast.hub.filters import Tags
from wsfast.policies import DropNewest, DropOldest

from .commands import address_of
from .inbound import Gap
from .ordered import OrderedInbound
from .ordered_outbound import OrderedOutbound
from .relay import Relay
from .retrieval import OrderedBroker, Retrieval
from .wire import Keyring

__all__ = ["OrderedRelay"]


class OrderedRelay(Relay):
    """A relay whose broker gives each topic its order and keeps its last messages. See `Relay`."""

    ordered = True
    _broker: OrderedBroker
    _outbound: OrderedOutbound
    _inbound: OrderedInbound

    def _make_outbound(self, slow: DropOldest | DropNewest, keyring: Keyring | None) -> OrderedOutbound:
        on_connected = partial(self._on_connected, "publish")
        return OrderedOutbound(
            secrets.randbits(64), self._broker, slow, self._timeout, on_connected, keyring, self._presence
        )

    def _make_inbound(self, on_gap: Callable[[Gap], object] | None, keyring: Keyring | None) -> OrderedInbound:
        outbound = self._outbound
        arguments = repr(self), on_gap, outbound.announce, self._broker.channel, keyring, self._presence
        inbound = OrderedInbound(outbound.publisher, self.hub, *arguments, last_own=outbound.last)
        on_connected = partial(self._on_connected, "fetch")
        self._retrieval = Retrieval(self._broker, self._timeout, inbound, on_connected)
        return inbound

    def _names(self) -> tuple[str, ...]:
        return (*super()._names(), "fetch")

    def _runs(self) -> list[Coroutine[Any, Any, None]]:
        return [*super()._runs(), self._retrieval.run()]

    def _resynchronize(self) -> None:
        super()._resynchronize()
        self._inbound.fetch_all()

    async def _finish(self) -> None:
        """Send the messages that wait and deliver them here as well, if that is done within the timeout."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout if self._connections["publish"] else 0):
                while True:
                    await self._outbound.finish()
                    await self._inbound.catch_up()
                    if not self._outbound.queued:
                        break
        self._detach()

    async def _end(self) -> None:
        self._inbound.stop()
        await super()._end()

    # ---- For the hub

    def forward(
        self,
        kind: Kind,
        names: tuple[Any, ...],
        message: PreparedMessage,
        key: Hashable,
        excluded: tuple[Any, ...],
        members: Collection[Any],
        tags: Tags,
    ) -> None:
        """See `wsfast.hub.Relay`."""
        super().forward(kind, names, message, key, excluded, members, tags)
        if members:
            self._inbound.exclude(names, members)

    def command(self, command: Command) -> asyncio.Future[None] | None:
        """See `wsfast.hub.Relay`."""
        when = self._outbound.command(command)
        kind, name = address_of(command)
        interests = self.hub.routes(name) if kind == "topic" else [(kind, name)]
        if not self._connected.is_set() or not self._subscriptions.has_any(interests):
            return None  # it does not come back, or not soon
        return self._inbound.returning(when)

    def is_loaded(self, topic: str, since: Position | None) -> bool:
        """See `wsfast.hub.Relay`."""
        return self._inbound.is_loaded(topic, since)

    async def load(self, topics: Mapping[str, Position | None]) -> None:
        """See `wsfast.hub.Relay`."""
        if topics:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await self._inbound.load(topics)
