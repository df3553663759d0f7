"""Topics whose last subscriber has left, and that are followed for a while: so clients that come back are recovered."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

__all__ = ["SECONDS", "Lingering"]

SECONDS = 300.0
"""Seconds for which a topic is followed, if the messages of the history have no maximum age."""

MOST = 1024
"""Topics that are followed. The one that was left first is ended first."""


class Lingering:
    """Topics without a subscriber that are still followed. Each has an end, by one timer for all.

    Args:
        seconds: For how long.
        end: Called with a topic that is not followed any more.
    """

    def __init__(self, seconds: float, end: Callable[[str], object]) -> None:
        self._seconds = seconds
        self._end = end
        self.topics: OrderedDict[str, float] = OrderedDict()
        """When each ends."""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, topic: str, loop: asyncio.AbstractEventLoop) -> None:
        """Follow a topic for a while, now that its last subscriber has left."""
        self.topics[topic] = loop.time() + self._seconds
        if len(self.topics) > MOST:
            self._pop()
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._expire, loop)

    def take(self, topic: str) -> bool:
        """Forget a topic that has a subscriber again; return whether it was followed."""
        return self.topics.pop(topic, None) is not None

    def stop(self) -> None:
        """Forget all topics."""
        self.topics.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _pop(self) -> None:
        topic, _ = self.topics.popitem(last=False)
        self._end(topic)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        try:
            while self.topics and next(iter(self.topics.values())) <= loop.time():
                self._pop()
        finally:
            if self.topics:
                self._timer = loop.call_at(next(iter(self.topics.values())), self._expire, loop)
