"""The interface of a broker, and how a relay subscribes and reconnects to it."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from wsfast._arguments import check_str
from wsfast.hub import Kind, Position

from .wire import Address

__all__ = [
    "Backoff",
    "Broker",
    "BrokerSubscriptions",
    "Channel",
    "Fetching",
    "Interest",
    "Kept",
    "Receive",
    "Receiving",
    "Request",
    "Sending",
    "close",
    "public_name",
    "stop",
    "while_running",
]

FIRST_BACKOFF, LAST_BACKOFF = 0.05, 5.0
"""Seconds before reconnecting, after the first failure and after many failures."""

Interest = tuple[Kind, Any]
"""A topic, a pattern or a user that has a subscriber or a connection in this process."""


Channel = bytes | str
"""The broker's name for the place where messages of one topic or user are published."""

Receive = Callable[[bytes, Channel], None]


class Request(NamedTuple):
    """Asks for messages that the broker keeps."""

    topic: str
    since: Position | None
    """After which message. None, or a position of another epoch: from the start."""
    sure: bool
    """Whether the broker has given this position: if it does not know it any more, it must begin a new epoch."""


class Kept(NamedTuple):
    """A part of what the broker keeps of a topic."""

    epoch: str
    offset: int
    """Offset of the topic's last message."""
    packets: Sequence[tuple[int, float, bytes]]
    """The offset of the last message of each packet, its age in seconds, and the packet."""
    more: bool
    """Whether there are more packets."""


class Closable(Protocol):
    """A connection to a broker."""

    async def close(self) -> None:
        """Close the connection, whether it works or not."""


class Sending(Protocol):
    """A connection to a broker for publishing."""

    largest: int
    """Bytes of the largest packet that the broker takes, as far as that is known; a larger one is refused."""

    async def publish(self, packets: Sequence[tuple[Address | None, bytes]]) -> dict[int, Exception]:
        """Publish in this order, and wait for the answers; return the reasons of refused packets by index."""

    async def close(self) -> None:
        """Close the connection, whether it works or not."""


class Receiving(Protocol):
    """A connection to a broker for subscribing."""

    async def subscribe(self, interests: Sequence[Interest | None]) -> None:
        """Subscribe, and wait for the broker's confirmation. None stands for the channel of all relays."""

    async def unsubscribe(self, interests: Sequence[Interest]) -> None:
        """Unsubscribe."""

    async def run(self) -> None:
        """Receive until the connection is lost or nothing is heard for too long; then return or raise."""

    async def close(self) -> None:
        """Close the connection, whether it works or not."""


class Fetching(Protocol):
    """A connection to a broker that keeps messages, for asking for them."""

    async def fetch(self, requests: Sequence[Request]) -> Sequence[Kept]:
        """Return, for each request, a part of what the broker keeps of a topic."""

    async def close(self) -> None:
        """Close the connection, whether it works or not."""


class Broker(Protocol):
    """How to connect to a broker."""

    name: str
    """Name for log records, without a password."""

    echoes: bool
    """Whether a process that subscribes to a channel gets what it publishes there itself."""

    async def open_sending(self) -> Sending:
        """Connect for publishing."""

    async def open_receiving(self, receive: Receive, on_missed: Callable[[], None]) -> Receiving:
        """Connect for subscribing; call `receive` with each message and the channel that it came by.

        Call `on_missed` when messages may be missing though this connection was not lost.
        """

    def channel(self, interest: Interest | None) -> Channel:
        """Return the channel of a topic or a user, or the broker's pattern for a pattern; None: that of all relays."""


def public_name(url: object, example: str, *schemes: str) -> str:
    """Return a URL without user, password and query, for log records.

    Raises:
        TypeError: If it is not a string.
        ValueError: If it has another scheme or none, or if characters in the password make its end ambiguous.
    """
    check_str("url", url)
    assert isinstance(url, str)
    if not url.startswith(tuple(f"{scheme}://" for scheme in schemes)):
        *some, last = [f"{scheme}://" for scheme in schemes]
        raise ValueError(f"url must begin with {', '.join(some)} or {last}, as in {example}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its message may contain the password
        parts, port = None, -1
    if parts is None or port == -1 or ("@" not in parts.netloc and "@" in url and parts.scheme != "unix"):
        raise ValueError(
            "url is not valid: percent-encode characters such as / ? # @ in the password, and give the port as a "
            f"number, as in {example}"
        )
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


class Backoff:
    """The time between attempts to connect, which grows with each attempt."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start again with the shortest time: an attempt has succeeded."""
        self._seconds = FIRST_BACKOFF

    async def wait(self) -> None:
        """Wait until the next attempt."""
        await asyncio.sleep(self._seconds * random.uniform(0.5, 1.0))
        self._seconds = min(2 * self._seconds, LAST_BACKOFF)


async def stop(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks until they have ended: some client libraries of brokers swallow a cancellation."""
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=2)
    await asyncio.gather(*tasks, return_exceptions=True)


async def while_running(running: asyncio.Task[None], request: Coroutine[Any, Any, None]) -> None:
    """Wait for the answer to a request, which may come after many messages; raise if the connection is lost."""
    task = asyncio.ensure_future(request)
    try:
        await asyncio.wait((task, running), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ConnectionResetError("the broker has closed the connection")
        await task
    finally:
        await stop(task)


async def close(connection: Closable, seconds: float = 1.0) -> None:
    """Close a connection that may be broken, even if this is cancelled meanwhile: half closed, it would stay open.

    Args:
        connection: The connection.
        seconds: Half of the time that this may take.
    """
    closing = asyncio.create_task(connection.close())
    try:
        await asyncio.wait((closing,), timeout=seconds)
    finally:
        if not closing.done():
            await asyncio.wait((closing,), timeout=seconds)
            closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)


CHUNK = 500
"""Number of topics in one subscribe command."""


class BrokerSubscriptions:
    """Keeps the subscriptions at the broker in step with a hub, and receives messages.

    Args:
        broker: The broker.
        timeout: Seconds without an answer after which the connection counts as lost.
        receive: Called with each message and its channel.
        on_connected: Called with True after connecting, and with False and the reason when there is no connection.
        on_reconnected: Called after reconnecting, when messages may be missing.
        on_subscribed: Called with each interest that the broker has confirmed, again after reconnecting.
    """

    def __init__(
        self,
        broker: Broker,
        timeout: float,
        receive: Receive,
        on_connected: Callable[..., None],
        on_reconnected: Callable[[], None],
        on_subscribed: Callable[[Sequence[Interest | None]], None],
    ) -> None:
        self.reconnects: int = 0
        self._broker = broker
        self._timeout = timeout
        self._receive = receive
        self._on_connected = on_connected
        self._on_reconnected = on_reconnected
        self._on_subscribed = on_subscribed
        self._interests: dict[Interest | None, None] = {None: None}  # None is the channel of all relays
        self._outdated: dict[Interest | None, None] = {}  # interests that may have changed
        self._subscribed: set[Interest | None] = set()
        self._changed = asyncio.Event()
        self._updated = asyncio.Event()

    def __len__(self) -> int:
        """Number of topics, patterns and users subscribed to."""
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

    def has_any(self, interests: Iterable[Interest]) -> bool:
        """Whether the broker has confirmed the subscription to one of some interests."""
        return not self._subscribed.isdisjoint(interests)

    @property
    def up_to_date(self) -> bool:
        """Whether the broker has confirmed all subscriptions."""
        return self._interests.keys() == self._subscribed

    async def confirmed(self) -> None:
        """Wait until the broker has confirmed all subscriptions."""
        while not self.up_to_date:
            self._updated.clear()
            await self._updated.wait()

    async def run(self) -> None:
        """Keep the subscriptions at the broker up to date, forever, and reconnect when the connection is lost."""
        backoff = Backoff()
        again = False
        while True:
            receiving: Receiving | None = None
            running: asyncio.Task[None] | None = None
            try:
                async with asyncio.timeout(self._timeout):
                    receiving = await self._broker.open_receiving(self._receive, self._on_reconnected)
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
        """Update the subscriptions until the connection is lost, and then raise."""
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
            # Interests that have ended and begun again meanwhile are reported as well.
            self._on_subscribed([one for one in some if one in self._interests and one in self._subscribed])
            if old:
                await while_running(running, receiving.unsubscribe(old))
                self._subscribed.difference_update(old)
        self._updated.set()
