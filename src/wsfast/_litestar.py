"""The parts of `wsfast.litestar`: the hub behind a plugin, and connections in it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import urllib.parse
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, Literal

from ._encoding.message import PreparedMessage
from .connections import adapt
from .connections.asgi_queue import AsgiQueue
from .connections.websockets import Ordered
from .hub import Hub, HubSubscription
from .policies import Policy

__all__ = ["FanOut", "Member", "Mode", "Tap"]

logger: logging.Logger = logging.getLogger("wsfast")

Mode = Literal["text", "bytes"]
"""How events are sent."""

MODES: tuple[Mode, ...] = ("text", "bytes")

BATCH = 64
"""Events after which the event loop sends them."""


def _topic(channel: str, mode: Mode) -> str:
    """Return the topic of a channel. Unlike a topic, the name of a channel may have any characters and any length."""
    name = urllib.parse.quote(channel, safe="", errors="surrogatepass").replace(".", "%2E")
    if len(name) > 1000:
        name = hashlib.sha256(name.encode()).hexdigest() + "%"  # no other name ends like this
    return f"{mode}:{name}"


def _message(event: Any, mode: Mode) -> PreparedMessage | None:
    """Return an event as a message; None if it cannot be sent in this way."""
    try:
        if mode == "text" and not isinstance(event, str):
            str(event, "utf-8")
        return PreparedMessage(event, text=mode == "text")
    except (UnicodeError, TypeError):
        logger.exception("cannot send an event of a channel to WebSockets as %s", mode)
        return None


class FanOut:
    """The hub behind a plugin."""

    def __init__(self, slow: Policy | None) -> None:
        self.hub: Hub = Hub(slow=slow, name="litestar")
        self.members: Counter[tuple[str, Mode]] = Counter()
        """Numbers of members that get the events of a channel."""
        self.event: Any = None
        """The event that the plugin is giving to its subscribers, after it was published to the hub."""

    def publish(self, channel: str, event: Any) -> None:
        """Publish an event of a channel to the members."""
        for mode in MODES:
            if self.members[channel, mode] and (message := _message(event, mode)) is not None:
                self.hub.publish(_topic(channel, mode), message)


class Tap:
    """A wrapper of a backend. It publishes each event to the hub before the plugin gets the event.

    Args:
        backend: The backend.
        fan_out: The hub.
        count: Function that returns the number of a channel's subscribers. The plugin does not get an event if all of
            them are in the hub.
    """

    def __init__(self, backend: Any, fan_out: FanOut, count: Callable[[str], int]) -> None:
        self._backend = backend
        self._fan_out = fan_out
        self._count = count

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the backend."""
        if name == "_backend":  # before __init__() has set it
            raise AttributeError(name)
        return getattr(self._backend, name)

    async def stream_events(self) -> AsyncGenerator[tuple[str, Any], None]:
        """Yield the events of the channels."""
        number = 0
        async for channel, event in self._backend.stream_events():
            self._fan_out.publish(channel, event)
            if self._count(channel) > sum(self._fan_out.members[channel, mode] for mode in MODES):
                self._fan_out.event = event
                try:
                    yield channel, event
                finally:
                    self._fan_out.event = None
            number += 1
            if number % BATCH == 0:
                await asyncio.sleep(0)


class Member:
    """A WebSocket of one subscriber, in the hub."""

    def __init__(self, fan_out: FanOut, socket: Any, mode: Mode, channels: Iterable[str]) -> None:
        """Add the connection to the hub.

        Raises:
            RuntimeError: If it is not open, or is in the hub for another subscriber.
        """
        self._fan_out = fan_out
        self._socket = socket
        self._mode: Mode = mode
        self._channels = set(channels)
        self._registration = fan_out.hub.register(socket, self)
        self._subscription: HubSubscription | None = None
        if self._channels:
            topics = [_topic(channel, mode) for channel in self._channels]
            try:
                self._subscription = fan_out.hub.subscribe(socket, *topics)
            except BaseException:
                self._registration.unregister()
                raise
            for channel in self._channels:
                fan_out.members[channel, mode] += 1

    @property
    def waiting(self) -> int:
        """Number of messages that wait for the connection."""
        return 0 if self._subscription is None else self._subscription.lag.messages

    def leave(self, channels: Iterable[str] | None = None) -> None:
        """Get no more events of some channels, or of any."""
        left = self._channels.intersection(self._channels if channels is None else channels)
        self._channels -= left
        members = self._fan_out.members
        for channel in left:
            members[channel, self._mode] -= 1
            if not members[channel, self._mode]:
                del members[channel, self._mode]
        if left and self._subscription is not None and self._subscription.active:
            self._fan_out.hub.unsubscribe(self._socket, *(_topic(channel, self._mode) for channel in left))

    def send(self, event: Any) -> None:
        """Send an event to this connection alone."""
        message = _message(event, self._mode)
        if message is not None:
            self._fan_out.hub.send(self, message)

    async def sent(self) -> None:
        """Wait until everything has been sent, or the connection is closed."""
        connection: Any = adapt(self._socket)
        transport = connection.transport
        if isinstance(connection, Ordered):
            with contextlib.suppress(ConnectionError):
                await connection._wsfast_flush()
        if isinstance(transport, AsgiQueue):
            await transport.written()

    def end(self) -> None:
        """Leave the hub."""
        self.leave()
        self._registration.unregister()
