"""A relay: a hub, a broker, and what goes out and comes in."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

from wsfast._encoding.message import PreparedMessage
from wsfast.hub import Hub, Kind
from wsfast.policies import DropNewest, DropOldest

from .broker import Broker, BrokerSubscriptions, stop
from .inbound import Gap, Inbound
from .outbound import Outbound
from .wire import Keyring, check_key, check_user

__all__ = ["Relay", "RelayStats"]

logger: logging.Logger = logging.getLogger("wsfast")


@dataclass(frozen=True, slots=True)
class RelayStats:
    """What became of messages for other processes and from them: published = sent + dropped + queued."""

    published: int
    """Messages for other processes, one for each topic of those that were published to several."""
    sent: int
    """Messages that the broker has confirmed."""
    dropped: int
    """Messages that were dropped since too many waited, or that were too large for the broker."""
    queued: int
    """Messages that wait, or that the broker has not confirmed yet."""
    received: int
    """Messages from other processes."""
    duplicates: int
    """Messages that were received once more, and not delivered again."""
    malformed: int
    """Messages that no relay of this version has sent; they were ignored."""
    rejected: int
    """Messages that were ignored since they were not signed as they must be, or came by another channel than theirs."""
    gaps: int
    """How often something was missing."""
    lost: int
    """Messages from other processes that are missing."""
    reconnects: int
    """How often the broker was connected to again, to publish or to subscribe."""
    subscriptions: int
    """Topics, patterns and users that are subscribed to at the broker."""
    connected: bool
    """Whether it is connected to the broker, both to publish and to subscribe."""


class Relay:
    """Forwards what is published in a hub to those of other processes, and what is published there to this one.

    An asynchronous context manager: it runs until it is left. See `wsfast.relay.redis()` and `wsfast.relay.nats()`.
    """

    hub: Hub
    """The hub."""

    def __init__(
        self,
        hub: Hub,
        broker: Broker,
        *,
        slow: DropOldest | DropNewest,
        on_gap: Callable[[Gap], object] | None,
        timeout: float,
        keyring: Keyring | None = None,
    ) -> None:
        if not isinstance(slow, (DropOldest, DropNewest)):
            raise TypeError(f"slow must be DropOldest() or DropNewest(), not {slow!r}")
        if not timeout > 0:
            raise ValueError(f"timeout must be positive, not {timeout}")
        self.hub = hub
        self._broker = broker
        self._timeout = timeout
        self._id = secrets.randbits(64)
        self._outbound = Outbound(self._id, broker, slow, timeout, partial(self._on_connected, "publish"), keyring)
        self._inbound = Inbound(self._id, hub, repr(self), on_gap, self._outbound.announce, broker.channel, keyring)
        self._subscriptions = BrokerSubscriptions(
            broker,
            timeout,
            self._inbound.receive,
            partial(self._on_connected, "subscribe"),
            self._outbound.resynchronize,
        )
        self._connections = {"publish": False, "subscribe": False}
        self._connected = asyncio.Event()
        self._warned = False
        self._attached = False
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<Relay of {self.hub!r} by {self._broker.name}>"

    @property
    def id(self) -> str:
        """The name of this process in other ones, unique and random."""
        return f"{self._id:016x}"

    async def __aenter__(self) -> Relay:
        """Begin. If the broker is not there within the timeout, a warning is logged; it goes on trying to connect.

        Raises:
            RuntimeError: If the hub has a relay, or belongs to another event loop, or this was used before.
            TypeError, ValueError: If one of the users of the hub is neither a str nor an int.
        """
        if self._tasks:
            raise RuntimeError("a Relay cannot be reused; create a new one")
        present = self.hub.attach(self)
        self._attached = True
        try:
            for kind, name in present:
                if kind == "user":
                    check_user(name)
                self.subscribe(kind, name)
            self._tasks = [asyncio.create_task(self._outbound.run()), asyncio.create_task(self._subscriptions.run())]
            with contextlib.suppress(TimeoutError):
                await self.connected(self._timeout)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End. What waits is sent, if the broker takes it within the timeout."""
        try:
            self._detach()
            if exc_type is None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._timeout if self._connections["publish"] else 0):
                        await self._outbound.finish()
        finally:
            await self._end()

    def _detach(self) -> None:
        if self._attached:  # else the hub may have another relay
            self._attached = False
            self.hub.attach(None)

    async def _end(self) -> None:
        self._detach()
        await stop(*self._tasks)
        self._connections = dict.fromkeys(self._connections, False)
        self._connected.clear()

    def _on_connected(self, which: str, connected: bool, reason: BaseException | None = None) -> None:
        """Note a connection that was made or lost; log when that changes, or when there is none at the beginning."""
        before = self._connected.is_set()
        self._connections[which] = connected
        if all(self._connections.values()):
            self._connected.set()
            self._warned = False
            if not before:
                logger.info("%r is connected", self)
            return
        self._connected.clear()
        if not connected and not self._warned:
            self._warned = True
            # Not its repr, which of some redis-py has no text.
            logger.warning("%r is not connected: %s", self, f"{type(reason).__name__}: {reason}".removesuffix(": "))

    # ---- For users

    async def connected(self, timeout: float | None = None) -> None:
        """Wait until it is connected to the broker.

        Raises:
            TimeoutError: If that takes longer than so many seconds.
        """
        async with asyncio.timeout(timeout):
            await self._connected.wait()

    async def subscribed(self, timeout: float | None = None) -> None:
        """Wait until the broker has confirmed all subscriptions that the hub needs.

        Raises:
            TimeoutError: If that takes longer than so many seconds.
        """
        async with asyncio.timeout(timeout):
            await self._subscriptions.confirmed()

    def stats(self) -> RelayStats:
        """Return what became of messages so far."""
        outbound, inbound, subscriptions = self._outbound, self._inbound, self._subscriptions
        return RelayStats(
            published=outbound.published,
            sent=outbound.sent,
            dropped=outbound.dropped,
            queued=outbound.queued,
            received=inbound.received,
            duplicates=inbound.duplicates,
            malformed=inbound.malformed,
            rejected=inbound.rejected,
            gaps=inbound.gaps,
            lost=inbound.lost,
            reconnects=outbound.reconnects + subscriptions.reconnects,
            subscriptions=len(subscriptions),
            connected=self._connected.is_set(),
        )

    # ---- For the hub

    def subscribe(self, kind: Kind, name: Any) -> None:
        """See `wsfast.hub.Relay`."""
        self._inbound.begin((kind, name))
        self._subscriptions.add((kind, name))

    def unsubscribe(self, kind: Kind, name: Any) -> None:
        """See `wsfast.hub.Relay`."""
        self._inbound.end((kind, name))
        self._subscriptions.remove((kind, name))

    def check(self, kind: Kind, names: tuple[Any, ...], key: Hashable, excluded: tuple[Any, ...]) -> None:
        """See `wsfast.hub.Relay`."""
        check_key(key)
        for user in (*excluded, *(names if kind == "user" else ())):
            check_user(user)

    def forward(
        self, kind: Kind, names: tuple[Any, ...], message: PreparedMessage, key: Hashable, excluded: tuple[Any, ...]
    ) -> None:
        """See `wsfast.hub.Relay`."""
        self._outbound.forward(kind, names, message, key, excluded)
