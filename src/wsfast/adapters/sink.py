"""Connections of no library: a user says how to write."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol, runtime_checkable

from websockets.protocol import CLOSED, OPEN, State

from . import name_of
from .adapted import Adapted

__all__ = ["Sink", "SinkConnection", "SinkTransport"]


@runtime_checkable
class Sink(Protocol):
    """Where the frames of one connection go, if that is no transport of asyncio: what `wsfast.attach()` takes.

    Its methods are called in the event loop's thread and must not block.
    """

    def write(self, data: bytes, /) -> object:
        """Take whole frames (RFC 6455, section 5.2), to be sent after all that was taken before.

        `broadcast()` calls it whether it is writable or not, channels only when it is. What it raises is logged, or
        raised by `broadcast(raise_exceptions=True)`.
        """

    def writable(self) -> bool:
        """Whether there is room: if not, messages of channels wait, as long as the policy lets them."""

    def close(self, code: int, reason: str, /) -> object:
        """Close the connection, with a close frame (section 5.5.1), or without one if the code is 1006."""


class SinkTransport:
    """A sink in the shape of a transport."""

    def __init__(self, sink: Any) -> None:
        for name in ("write", "writable", "close"):
            if not callable(getattr(sink, name, None)):
                raise TypeError(
                    f"{name_of(type(sink))} is neither an asyncio transport nor a wsfast.Sink: it has no {name}()"
                )
        self._sink = sink
        self._closed = False

    def write(self, data: Any) -> None:
        """Write frames."""
        self._sink.write(bytes(data))

    def get_write_buffer_size(self) -> int:
        """Return 0 if there is room."""
        return 0 if self._sink.writable() else 1

    def is_closing(self) -> bool:
        """Whether it was closed here."""
        return self._closed

    def abort(self) -> None:
        """Close without a close frame."""
        if not self._closed:
            self._closed = True
            self._sink.close(1006, "")

    async def sink_close(self, code: int, reason: str) -> None:
        """Close with a close frame."""
        if not self._closed:
            self._closed = True
            self._sink.close(code, reason)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the default: nothing is known."""
        return default


class SinkConnection(Adapted):
    """A sink as a connection, of a server: frames are not masked, and messages not compressed."""

    library = "sink"

    def __init__(self, sink: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.transport = SinkTransport(sink)
        self.loop = loop

    @property
    def state(self) -> State:
        """OPEN until it was closed here."""
        return CLOSED if self.transport.is_closing() else OPEN

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the sink."""
        await self.transport.sink_close(code, reason)
        self.lose()
