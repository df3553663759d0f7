"""A relay: connects a hub to a broker, in both directions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Collection, Coroutine, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any
from weakref import ref

from wsfast._arguments import Local, check_callback, check_seconds
from wsfast._encoding.message import PreparedMessage
from wsfast.hub import Command, Hub, Kind, Position
from wsfast.hub.filters import Tags
from wsfast.policies import DropNewest, DropOldest

from .broker import Broker, BrokerSubscriptions, stop
from .inbound import Gap, Inbound
from .lingering import SECONDS, Lingering
from .outbound import Outbound
from .presence import Presence
from .wire import Keyring, check_key, check_user

__all__ = ["Relay", "RelayStats"]

logger: logging.Logger = logging.getLogger("wsfast")


HOW_TO_START = "start it with `async with wsfast.relay.redis(hub, url):` (or `nats`) around the code of your server"


@dataclass(frozen=True, slots=True)
class RelayStats:
    """Counts of the messages for other processes and from them: published = sent + dropped + queued."""

    published: int
    """Messages for other processes. A message to several topics counts once per topic."""
    sent: int
    """Messages that the broker has confirmed."""
    dropped: int
    """Messages dropped because too many waited, or because they were too large for the broker."""
    queued: int
    """Messages that wait, or that the broker has not confirmed yet."""
    received: int
    """Messages from other processes."""
    duplicates: int
    """Messages received again, and not delivered again."""
    malformed: int
    """Messages ignored because no relay of this version can have sent them."""
    rejected: int
    """Messages ignored because they were not signed correctly, or came by the channel of another topic or user."""
    gaps: int
    """How often messages were missing."""
    lost: int
    """Messages from other processes that are missing."""
    reconnects: int
    """How often the relay has reconnected to the broker, to publish or to subscribe."""
    subscriptions: int
    """Topics, patterns and users that the relay is subscribed to at the broker."""
    connected: bool
    """Whether the relay is connected to the broker, both to publish and to subscribe."""


class Condition:
    """A condition that can be tested and awaited: `if relay.connected: ...`, and `await relay.connected(timeout)`.

    The call takes a number of seconds, after which it raises TimeoutError. With None, it waits forever.
    """

    def __init__(self, holds: Callable[[], bool], wait: Callable[[], Awaitable[object]]) -> None:
        self._holds = holds
        self._wait = wait

    def __bool__(self) -> bool:
        return self._holds()

    def __repr__(self) -> str:
        return f"<Condition {bool(self)}>"

    async def __call__(self, timeout: float | None = None) -> None:
        """Wait until the condition is true."""
        check_seconds("timeout", timeout, optional=True)
        async with asyncio.timeout(timeout):
            await self._wait()


class _NotStarted:
    """Placeholder in a hub for a relay that was created and not started. It forwards nothing, and warns about that."""

    ordered = False

    def __init__(self, relay: Relay) -> None:
        self._relay = ref(relay)
        self.warned: bool = False

    def follows(self, topic: str) -> bool:
        """See `wsfast.hub.Relay`."""
        return False

    def subscribe(self, kind: Kind, name: Any) -> None:
        """See `wsfast.hub.Relay`."""

    unsubscribe = subscribe

    def check(self, kind: Kind, names: tuple[Any, ...], key: Hashable, excluded: tuple[Any, ...]) -> None:
        """See `wsfast.hub.Relay`."""

    def is_loaded(self, topic: str, since: Position | None) -> bool:
        """See `wsfast.hub.Relay`."""
        return True

    async def load(self, topics: Mapping[str, Position | None]) -> None:
        """See `wsfast.hub.Relay`."""

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
        self._warn()

    def command(self, command: Command) -> asyncio.Future[None] | None:
        """See `wsfast.hub.Relay`."""
        self._warn()
        return None

    def _warn(self) -> None:
        """Log a warning once, as long as the relay exists."""
        relay = self._relay()
        if relay is not None and not self.warned:
            self.warned = True
            logger.warning("%r was not started, so no message reaches other processes; %s", relay, HOW_TO_START)


class Relay(Local):
    """Forwards messages of a hub to the hubs of other processes, and their messages to this hub.

    It is an asynchronous context manager: it starts when `async with` is entered, and stops when it is left. Create it
    with `wsfast.relay.redis()`, `nats()` or `local()`.
    """

    hub: Hub
    """The hub."""

    ordered: bool = False
    """Whether the broker gives each topic its order and keeps its last messages: `recover=True`."""

    def __init__(
        self,
        hub: Hub,
        broker: Broker,
        *,
        slow: DropOldest | DropNewest,
        on_gap: Callable[[Gap], object] | None,
        timeout: float,
        keyring: Keyring | None = None,
        presence: Presence | bool = False,
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
        self._process = os.getpid()
        self._presence = Presence.of(presence)
        self._outbound = self._make_outbound(slow, keyring)
        self._inbound = self._make_inbound(on_gap, keyring)
        self._subscriptions = BrokerSubscriptions(
            broker,
            timeout,
            self._inbound.receive,
            partial(self._on_connected, "subscribe"),
            self._resynchronize,
            self._inbound.on_subscribed,
        )
        self._lingering = Lingering(hub.history.seconds or SECONDS, partial(self._unfollow, "topic"))
        self._inbound.lingering = self._lingering.topics
        self._connections = dict.fromkeys(self._names(), False)
        self._connected = asyncio.Event()
        self._warned = False
        self._attached = False
        self._tasks: list[asyncio.Task[None]] = []
        self._placeholder: _NotStarted | None = _NotStarted(self)
        hub.expect(self._placeholder)

    def _names(self) -> tuple[str, ...]:
        """Return the names of the connections to the broker."""
        return "publish", "subscribe"

    def _make_outbound(self, slow: DropOldest | DropNewest, keyring: Keyring | None) -> Outbound:
        on_connected = partial(self._on_connected, "publish")
        return Outbound(secrets.randbits(64), self._broker, slow, self._timeout, on_connected, keyring, self._presence)

    def _make_inbound(self, on_gap: Callable[[Gap], object] | None, keyring: Keyring | None) -> Inbound:
        channel = self._broker.channel
        arguments = repr(self), on_gap, self._outbound.announce, channel, keyring, self._presence
        return Inbound(self._outbound.publisher, self.hub, *arguments)

    def _resynchronize(self) -> None:
        """Find out what was missed while there was no connection for subscribing."""
        self._outbound.resynchronize()

    def __del__(self) -> None:
        placeholder: _NotStarted | None = getattr(self, "_placeholder", None)  # None if __init__ has raised
        if placeholder is not None and not placeholder.warned:
            logger.warning("%r was garbage collected without having been started; %s", self, HOW_TO_START)

    def __repr__(self) -> str:
        return f"<Relay of {self.hub!r} by {self._broker.name}>"

    @property
    def id(self) -> str:
        """Random unique name of this relay. Other processes see it as `Gap.publisher`.

        A relay that is created before `os.fork()` and started after it gets another one in each process.
        """
        return f"{self._outbound.publisher:016x}"

    async def __aenter__(self) -> Relay:
        """Start the relay.

        If the broker cannot be reached within the timeout, a warning is logged, and the relay goes on trying to
        connect.

        Raises:
            RuntimeError: If the hub has a relay already, the hub belongs to another event loop, or this relay was used
                before.
            TypeError, ValueError: If the hub has a user that is neither a str nor an int.
        """
        if self._tasks:
            raise RuntimeError("a Relay cannot be reused; create a new one")
        self._placeholder = None
        if self._process != os.getpid():  # other processes that were forked have this number as well
            self._process = os.getpid()
            self._outbound.publisher = self._inbound.publisher = secrets.randbits(64)
        present = self.hub.attach(self)
        self._attached = True
        try:
            for kind, name in present:
                if kind == "user":
                    check_user(name)
                self.subscribe(kind, name)
            if self._presence is not None:
                self._presence.start(
                    self.hub, self._outbound.publisher, self._outbound.wake, echoes=self._broker.echoes
                )
            self._tasks = [asyncio.create_task(run) for run in self._runs()]
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
        """Stop the relay. Waiting messages are sent, if the broker takes them within the timeout."""
        try:
            if self._presence is not None:
                self._presence.stop()
            if exc_type is None:
                await self._finish()
        finally:
            await self._end()

    async def _finish(self) -> None:
        """Send the messages that wait, if the broker takes them within the timeout."""
        self._detach()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout if self._connections["publish"] else 0):
                await self._outbound.finish()

    def _runs(self) -> list[Coroutine[Any, Any, None]]:
        """Return what runs as long as the relay does."""
        return [self._outbound.run(), self._subscriptions.run()]

    def _detach(self) -> None:
        if self._attached:  # otherwise the hub may have another relay
            self._attached = False
            self.hub.attach(None)

    async def _end(self) -> None:
        if self._presence is not None:
            self._presence.stop()
        self._detach()
        self._lingering.stop()
        await stop(*self._tasks)
        self._connections = dict.fromkeys(self._connections, False)
        self._connected.clear()

    def _on_connected(self, which: str, connected: bool, reason: BaseException | None = None) -> None:
        """Note that a connection was made or lost. Log when that changes, and when the first attempt fails."""
        before = self._connected.is_set()
        self._connections[which] = connected
        if all(self._connections.values()):
            self._connected.set()
            self._warned = False
            if not before:
                logger.info("%r is connected to the broker", self)
            return
        self._connected.clear()
        if not connected and not self._warned:
            self._warned = True
            # Not the repr: exceptions of some releases of redis-py have a repr without a text.
            logger.warning(
                "%r is not connected to the broker and keeps trying: %s",
                self,
                f"{type(reason).__name__}: {reason}".removesuffix(": "),
            )

    # ---- For users

    @property
    def connected(self) -> Condition:
        """Whether the relay is connected to the broker; `await relay.connected(timeout)` waits until it is.

        Raises:
            RuntimeError: From `await`, before the relay was started or after it was stopped.
            TimeoutError: From `await`, if that takes longer than `timeout` seconds.
        """
        return Condition(self._connected.is_set, partial(self._while_running, self._connected.wait))

    @property
    def subscribed(self) -> Condition:
        """Whether the broker has confirmed all subscriptions that the hub needs; `await relay.subscribed()` waits.

        Raises:
            RuntimeError: From `await`, before the relay was started or after it was stopped.
            TimeoutError: From `await`, if that takes longer than `timeout` seconds.
        """
        subscriptions = self._subscriptions
        return Condition(lambda: subscriptions.up_to_date, partial(self._while_running, subscriptions.confirmed))

    async def _while_running(self, wait: Callable[[], Awaitable[object]]) -> None:
        if not self._attached:
            raise RuntimeError(f"{self!r} is not running; {HOW_TO_START}")
        await wait()

    @property
    def presence(self) -> Presence:
        """The users and counts of all processes.

        Raises:
            RuntimeError: If the relay was created without `presence`.
        """
        if self._presence is None:
            raise RuntimeError(f"{self!r} was created without presence; give presence=True, in all processes")
        return self._presence

    def stats(self) -> RelayStats:
        """Return the counts of the relay's messages so far."""
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

    def follows(self, topic: str) -> bool:
        """See `wsfast.hub.Relay`."""
        return topic in self._lingering.topics

    def subscribe(self, kind: Kind, name: Any) -> None:
        """See `wsfast.hub.Relay`."""
        if kind != "topic" or not self._lingering.take(name):
            self._inbound.begin((kind, name))
            self._subscriptions.add((kind, name))

    def unsubscribe(self, kind: Kind, name: Any) -> None:
        """See `wsfast.hub.Relay`."""
        loop = self.hub.loop
        if kind == "topic" and self.hub.history.messages and not self.ordered and loop and not loop.is_closed():
            self._lingering.add(name, loop)  # a client that comes back is recovered
        else:
            self._unfollow(kind, name)

    def _unfollow(self, kind: Kind, name: Any) -> None:
        self._inbound.end((kind, name))
        self._subscriptions.remove((kind, name))

    def check(self, kind: Kind, names: tuple[Any, ...], key: Hashable, excluded: tuple[Any, ...]) -> None:
        """See `wsfast.hub.Relay`."""
        if key is not None:
            check_key(key)
        if excluded or kind == "user":
            for user in (*excluded, *(names if kind == "user" else ())):
                check_user(user)

    def is_loaded(self, topic: str, since: Position | None) -> bool:
        """See `wsfast.hub.Relay`."""
        return True

    async def load(self, topics: Mapping[str, Position | None]) -> None:
        """See `wsfast.hub.Relay`."""

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
        self._outbound.forward(kind, names, message, key, excluded, tags)

    def command(self, command: Command) -> asyncio.Future[None] | None:
        """See `wsfast.hub.Relay`."""
        self._outbound.command(command)
        return None
