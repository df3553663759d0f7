"""Connections of picows.websockets, whose transports are hidden: they are sent to by their own methods."""

from __future__ import annotations

import asyncio
from typing import Any

import picows.websockets
from websockets.exceptions import ConcurrencyError
from websockets.protocol import CLOSED, OPEN, State

from wsfast._encoding.message import PreparedMessage

from .foreign import Foreign
from .picows import loop_of

__all__ = ["adapt"]


class _Transport:
    """What can be known of the transport."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def is_closing(self) -> bool:
        """Whether no more messages may be sent."""
        return self._connection.state is not OPEN

    def get_write_buffer_size(self) -> int:
        """Return 0: nobody knows."""
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the default: nothing is known."""
        return default


class _Connection(Foreign):
    """A connection of picows.websockets."""

    library = "picows.websockets"
    bounded = False

    def __init__(self, origin: Any) -> None:
        self._origin = origin
        self.transport: Any = _Transport(self)
        self.loop: asyncio.AbstractEventLoop = loop_of(origin)

    @property
    def origin(self) -> Any:
        """The connection of picows."""
        return self._origin

    @property
    def state(self) -> State:
        """The state of the connection."""
        return OPEN if self._origin.state.name == "OPEN" else CLOSED

    def send_message(self, message: PreparedMessage) -> None:
        """Send a message, compressed if that was negotiated."""
        if message.compress is False and "Sec-WebSocket-Extensions" in self._origin.response.headers:
            raise TypeError("picows.websockets compresses all messages of this connection, also with compress=False")
        self._send(message.data.decode() if message.text else message.data)

    def _send(self, message: str | bytes) -> None:
        """Send a message, or raise what was raised for it."""
        try:
            picows.websockets.broadcast([self._origin], message, raise_exceptions=True)
        except ExceptionGroup as group:
            exc = group.exceptions[0]
            if isinstance(exc, picows.websockets.ConcurrencyError):
                raise ConcurrencyError("sending a fragmented message") from None
            raise exc.__cause__ or exc from None


def adapt(origin: Any) -> _Connection:
    """Return what stands for a connection of picows.websockets."""
    return _Connection(origin)
