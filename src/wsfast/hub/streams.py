"""Streams of topics, which go with their last stream as they do with their last subscriber."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

from wsfast.stream import Stream

from .groups import Group

__all__ = ["HubStream"]


class _Owner(Protocol):
    @property
    def loop(self) -> asyncio.AbstractEventLoop | None: ...

    def discard_if_empty(self, group: Group) -> None:
        """Remove a group, unless somebody is in it."""


class HubStream(Stream):
    """The messages of a topic or a pattern of a hub, as they are published."""

    group: Group | None = None

    def __init__(self, hub: _Owner, max_messages: int) -> None:
        self._hub = hub
        super().__init__(max_messages)

    def close(self) -> None:
        """End it."""
        try:
            super().close()
        finally:
            if self.group is not None:
                self._hub.discard_if_empty(self.group)

    def __del__(self) -> None:  # in whatever thread
        if self.group is not None and not self.closed and (loop := self._hub.loop) is not None:
            with contextlib.suppress(RuntimeError):  # it may be closed
                loop.call_soon_threadsafe(self._hub.discard_if_empty, self.group)
