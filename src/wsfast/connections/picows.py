"""Connections of picows: a `WSTransport`, server or client side, which never compresses messages itself.

| moving name                   | what                                    | versions  |
|-------------------------------|-----------------------------------------|-----------|
| `underlying_transport`        | of asyncio, or of aiofastnet from 2 on  | 1.0 to 2  |
| `is_close_frame_sent`         | nothing may follow a close frame        | 1.15 to 2 |
| `close_handshake`             | the close frames, and which came first  | 1.19 to 2 |
| `is_disconnected`             | whether the connection was lost         | 1.20 to 2 |

A WSTransport does not expose its event loop. It does not record that it is in the middle of sending a fragmented
message, either. So the user must not send anything else to it between `send(..., fin=False)` and the last fragment: the
client would treat that as a violation of the protocol (RFC 6455, section 5.4).
"""

from __future__ import annotations

import asyncio
import gc
from typing import Any
from weakref import WeakKeyDictionary, ref

from picows import WSTransport
from websockets.exceptions import ConcurrencyError
from websockets.protocol import CLOSED, CLOSING, OPEN, State

from wsfast._encoding.message import PreparedMessage

from .foreign import Ended, Foreign

__all__ = ["adapt", "adapt_websockets", "loop_of"]


class _Connection(Foreign):
    """A WSTransport. This object does not keep it alive; asyncio's transport does, as long as it is open."""

    library = "picows"

    def __init__(self, transport: WSTransport) -> None:
        self._origin = ref(transport)
        self.transport: Any = transport.underlying_transport
        self.loop: asyncio.AbstractEventLoop = loop_of(transport)

    @property
    def origin(self) -> Any:
        """The WSTransport; None if it is gone."""
        return self._origin()

    @property
    def state(self) -> State:
        """The state of the connection."""
        transport = self._origin()
        if transport is None or getattr(transport, "is_disconnected", self.transport.is_closing()):
            return CLOSED
        return CLOSING if transport.is_close_frame_sent else OPEN

    def why_lost(self) -> Ended:
        """See `Foreign`."""
        handshake = getattr(self._origin(), "close_handshake", None)
        if handshake is None:
            return Ended.LOST
        reason = None if handshake.sent is None else handshake.sent.reason
        if isinstance(reason, str) and reason.startswith("peer has not replied to ping"):
            return Ended.KEEPALIVE
        return Ended.CLOSED_BY_PEER if handshake.recv_then_sent else Ended.CLOSED_HERE

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame and disconnect."""
        transport = self._origin()
        if transport is not None:
            transport.send_close(code, reason.encode())  # type: ignore[arg-type]
            transport.disconnect()


class _ClientConnection(_Connection):
    masked = True


def loop_of(hidden: Any) -> asyncio.AbstractEventLoop:
    """Return the event loop of an object of picows, kept in a field that only the garbage collector can see."""
    for value in gc.get_referents(hidden):
        if isinstance(value, asyncio.AbstractEventLoop):
            return value
    return asyncio.get_running_loop()


_connections: WeakKeyDictionary[WSTransport, _Connection] = WeakKeyDictionary()


def adapt(transport: WSTransport) -> _Connection:
    """Return the object that represents a WSTransport.

    Raises:
        TypeError: If this release of picows does not report whether a close frame, which nothing may follow, was sent.
    """
    connection = _connections.get(transport)
    if connection is None:
        if not hasattr(transport, "is_close_frame_sent"):
            raise TypeError("cannot send to a WSTransport of this release of picows; upgrade to picows 1.15 or later")
        kind = _ClientConnection if transport.is_client_side else _Connection
        connection = _connections[transport] = kind(transport)
    return connection


class _HiddenTransport:
    """Stands in for the transport, which picows.websockets does not expose."""

    def __init__(self, connection: _WebSocketsConnection) -> None:
        self._connection = connection

    def is_closing(self) -> bool:
        """Whether no more messages may be sent."""
        return self._connection.state is not OPEN

    def get_write_buffer_size(self) -> int:
        """Return 0: the size is unknown."""
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the default: nothing is known."""
        return default


class _WebSocketsConnection(Foreign):
    """A connection of picows.websockets."""

    library = "picows.websockets"
    bounded = False

    def __init__(self, origin: Any) -> None:
        self._origin = origin
        self.transport: Any = _HiddenTransport(self)
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
            raise TypeError("cannot send with compress=False: picows.websockets compresses all messages it sends here")
        self._send(message.data.decode() if message.text else message.data)

    def _send(self, message: str | bytes) -> None:
        """Send a message, or raise the exception that picows raised for it."""
        import picows.websockets  # imported here because older releases do not have it

        try:
            picows.websockets.broadcast([self._origin], message, raise_exceptions=True)
        except ExceptionGroup as group:
            exc = group.exceptions[0]
            if isinstance(exc, picows.websockets.ConcurrencyError):
                raise ConcurrencyError("sending a fragmented message") from None
            raise exc.__cause__ or exc from None


def adapt_websockets(origin: Any) -> _WebSocketsConnection:
    """Return an object that represents a connection of picows.websockets."""
    return _WebSocketsConnection(origin)
