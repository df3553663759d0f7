"""Sinks: connections that belong to no library, written to by code of the user."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from websockets.protocol import CLOSED, OPEN, State

from wsfast._arguments import check_callback

from . import name_of
from .foreign import Closer, Ended, Foreign

__all__ = ["Sink", "SinkConnection", "SinkTransport", "closers_of_sink"]

logger: logging.Logger = logging.getLogger("wsfast")


@runtime_checkable
class Sink(Protocol):
    """The destination of one connection's frames, if it is not an asyncio transport. Pass it to `wsfast.attach()`.

    The methods are called in the event loop's thread and must not block. If `write()` or `writable()` raises an
    exception, it is logged once and the connection is closed with code 1006. Other connections are not affected, and no
    method of this sink is called any more. An exception of `close()` is logged.
    """

    def write(self, data: bytes, /) -> object:
        """Accept whole frames (RFC 6455, section 5.2), and send them after all earlier ones.

        `broadcast()` calls this method whether the sink is writable or not. Channels call it only when the sink is
        writable, or right before the connection's `close()` calls that of the sink. With
        `broadcast(raise_exceptions=True)`, an exception is raised by `broadcast()` instead of logged.
        """

    def writable(self) -> bool:
        """Return whether there is room. If not, messages of channels wait, as far as the policy allows."""

    def close(self, code: int, reason: str, /) -> object:
        """Close the connection with a close frame (section 5.5.1), or without one if the code is 1006.

        This method is called once, and no other method is called after it. It must make sure that the connection ends,
        even if its peer does not read.
        """


class SinkTransport:
    """A sink with the methods of a transport."""

    on_lost: Callable[[], object] | None = None
    """Called when the sink is closed, by any code."""

    def __init__(self, sink: Any, loop: asyncio.AbstractEventLoop) -> None:
        if isinstance(sink, type):
            raise TypeError(f"{name_of(sink)} is a class: wsfast.attach() takes an instance of it")
        if isinstance(sink, asyncio.BaseTransport):
            raise TypeError("connection is missing: use wsfast.attach(transport, wsproto_connection) for a transport")
        for name in ("write", "writable", "close"):
            method = getattr(sink, name, None)
            if not callable(method):
                raise TypeError(
                    f"{name_of(type(sink))} is neither an asyncio transport nor a wsfast.Sink: it has no {name}()"
                )
            check_callback(f"{name}() of {name_of(type(sink))}", method)
        self._sink = sink
        self._loop = loop
        self._closed = False
        self.failed: bool = False
        """Whether it was closed without a close frame."""

    def write(self, data: Any) -> None:
        """Write frames; if that fails, close."""
        if self._closed:
            return
        try:
            self._sink.write(bytes(data))
        except Exception:
            self.abort()
            raise

    def get_write_buffer_size(self) -> int:
        """Return 0 if there is room; close if the sink cannot say so."""
        try:
            return 0 if self._closed or self._sink.writable() else 1
        except Exception as exc:
            self._log("writable() of %s failed, so its connection is closed: %r", exc)
            self.abort()
            return 0

    def is_closing(self) -> bool:
        """Whether it was closed here."""
        return self._closed

    def abort(self) -> None:
        """Close without a close frame."""
        self.sink_close(1006, "")

    def sink_close(self, code: int, reason: str) -> None:
        """Close with a close frame."""
        if self._closed:
            return
        self._closed = True
        self.failed = code == 1006
        try:
            self._sink.close(code, reason)
        except Exception as exc:
            self._log("could not close %s: %r", exc)
        finally:
            if self.on_lost is not None:
                self.on_lost()

    def _log(self, message: str, exc: Exception) -> None:
        """Log in the next iteration of the event loop, as channels do: log handlers must not run in between."""
        self._loop.call_soon(logger.warning, message, name_of(type(self._sink)), exc)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the default: nothing is known."""
        return default


def closers_of_sink(transport: SinkTransport) -> Sequence[Closer]:
    """See `Foreign`. A sink that is aborted accepts nothing more."""
    return ((transport, "sink_close", lambda code, reason: code != 1006),)


class SinkConnection(Foreign):
    """A sink as a server-side connection: frames are not masked, and messages are not compressed."""

    library = "sink"
    reports_loss = True

    def __init__(self, sink: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.transport: Any = SinkTransport(sink, loop)
        self.transport.on_lost = self.lose
        self.loop: asyncio.AbstractEventLoop = loop

    def why_lost(self) -> Ended:
        """See `Foreign`."""
        return Ended.LOST if self.transport.failed else Ended.CLOSED_HERE

    @property
    def state(self) -> State:
        """OPEN until it was closed here."""
        return CLOSED if self.transport.is_closing() else OPEN

    def closers(self) -> Sequence[Closer]:
        """See `Foreign`."""
        return closers_of_sink(self.transport)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the sink."""
        self.transport.sink_close(code, reason)
