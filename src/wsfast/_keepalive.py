"""Comments that keep proxies from closing the connections of event streams on which nothing is sent."""

from __future__ import annotations

import asyncio
from typing import ClassVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from ._broadcast import broadcast
from ._encoding.events import KEEPALIVE
from .connections.events import EventStream

__all__ = ["Keepalive"]


class Keepalive:
    """Sends comments to all streams of an event loop that ask for them at the same interval. Its timer keeps it."""

    _all: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[float, Keepalive]]] = (
        WeakKeyDictionary()
    )

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop, interval: float) -> Keepalive:
        """Return the instance of an event loop and an interval."""
        return cls._all.setdefault(loop, WeakValueDictionary()).setdefault(interval, cls(interval))

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._streams: set[EventStream] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, stream: EventStream) -> None:
        """Send comments to a stream."""
        self._streams.add(stream)
        if self._timer is None:
            self._timer = stream.loop.call_later(self._interval, self._send, stream.loop)

    def discard(self, stream: EventStream) -> None:
        """Send no more comments to a stream."""
        self._streams.discard(stream)
        if not self._streams and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(self._interval, self._send, loop)
        broadcast([stream for stream in self._streams if stream.idle], KEEPALIVE)
