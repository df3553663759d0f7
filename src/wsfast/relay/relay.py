"""A relay: a hub, a broker, and what goes out and comes in."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any
from weakref import ref

from wsfast._arguments import Local, check_callback, check_seconds
from wsfast._encoding.message import PreparedMessage
from wsfast.hub import Hub, Kind
from wsfast.policies import DropNewest, DropOldest

from .broker import Broker, BrokerSubscriptions, stop
from .inbound import Gap, Inbound
from .outbound import Outbound
from .wire import Keyring, check_key, check_user

__all__ = ["Relay", "RelayStats"]

logger: logging.Logger = logging.getLogger("wsfast")


HOW_TO_BEGIN = "write `async with wsfast.relay...(hub, url):` around what it is for"


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


class Condition:
    """What is so or not, and can be waited for: `if relay.connected: ...`, and `await relay.connected(timeout)`.

    Calling it raises a TimeoutError if that takes longer than so many seconds; with None, it waits for ever.
    """

    def __init__(self, holds: Callable[[], bool], wait: Callable[[], Awaitable[object]]) -> None:
        self._holds = holds
        self._wait = wait

    def __bool__(self) -> bool:
        return self._holds()

    def __repr__(self) -> str:
        return f"<Condition {bool(self)}>"

    async def __call__(self, timeout: float | None = None) -> None:
        """Wait until it is so."""
        check_seconds("timeout", timeout, optional=True)
        async with asyncio.timeout(timeout):
            await self._wait()


class _Unused:
    """Stands in a hub for a relay that was made and has not begun: what is published goes to no other process."""

    def __init__(self, relay: Relay) -> None:
        self._relay = ref(relay)
        self.warned: bool = False

    def subscribe(self, kind: Kind, name: Any) -> None:
        """See `wsfast.hub.Relay`."""

    unsubscribe = subscribe

    def check(self, kind: Kind, names: tuple[Any, ...], key: Hashable, excluded: tuple[Any, ...]) -> None:
        """See `wsfast.hub.Relay`."""

    def forward(
        self, kind: Kind, names: tuple[Any, ...], message: PreparedMessage, key: Hashable, excluded: tuple[Any, ...]
    ) -> None:
        """Warn, once, as long as the relay is there."""
        relay = self._relay()
        if relay is not None and not self.warned:
            self.warned = True
            logger.warning("%r has not begun, so nothing reaches other processes: %s", relay, HOW_TO_BEGIN)


class Relay(Local):
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
        if not isinstance(hub, Hub):
            raise TypeError(f"hub must be a wsfast.Hub, not {hub!r}")
        if not isinstance(slow, (DropOldest, DropNewest)):
            raise TypeError(f"slow must be DropOldest() or DropNewest(), not {slow!r}")
        check_seconds("timeout", timeout)
        check_callback("on_gap", on_gap)
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
        self._unused: _Unused | None = _Unused(self)
        hub.expect(self._unused)

    def __del__(self) -> None:
        unused: _Unused | None = getattr(self, "_unused", None)  # arguments may have been wrong
        if unused is not None and not unused.warned:
            logger.warning("%r is gone and has never begun: %s", self, HOW_TO_BEGIN)

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
        self._unused = None
        present = self.hub.attach(self)
        self._attached = True
        try:
            for kind, name in present:
                if kind == "user":
                    check_user(name)
                self.subscribe(kind, name)
            self._tasks = [asyncio.create_task(self._outbound.run()), asyncio.create_task(self._subscriptions.run())]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await self._connected.wait()
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

    @property
    def connected(self) -> Condition:
        """Whether it is connected to the broker; `await relay.connected(timeout)` waits until it is.

        Raises:
            RuntimeError: From `await`, before the relay has begun, or after its end.
            TimeoutError: From `await`, if that takes longer than so many seconds.
        """
        return Condition(self._connected.is_set, partial(self._while_running, self._connected.wait))

    @property
    def subscribed(self) -> Condition:
        """Whether the broker has confirmed all subscriptions that the hub needs; `await relay.subscribed()` waits.

        Raises:
            RuntimeError: From `await`, before the relay has begun, or after its end.
            TimeoutError: From `await`, if that takes longer than so many seconds.
        """
        subscriptions = self._subscriptions
        return Condition(lambda: subscriptions.up_to_date, partial(self._while_running, subscriptions.confirmed))

    async def _while_running(self, wait: Callable[[], Awaitable[object]]) -> None:
        if not self._attached:
            raise RuntimeError(f"{self!r} does not run: {HOW_TO_BEGIN}")
        await wait()

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
