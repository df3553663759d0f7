"""Connections of wsproto, which handles frames but no transports.

| private or moving name in wsproto 1.2 and 1.3 | what                                          |
|-----------------------------------------------|-----------------------------------------------|
| `WSConnection.connection`                     | a `Connection` once the handshake is complete |
| `Connection._proto`                           | its `FrameProtocol`                           |
| `FrameProtocol.extensions`                    | list                                          |
| `FrameProtocol._outbound_opcode`              | None, except between fragments of a message   |
| `PerMessageDeflate._compressor`               | a `zlib.compressobj`, created when needed     |
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import wsproto
import wsproto.connection
from websockets.protocol import CLOSED, CLOSING, CONNECTING, OPEN, State
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection
from wsproto.extensions import PerMessageDeflate

from wsfast._encoding.deflate import Encoder, LazyEncoder, Parameters

from . import name_of
from .foreign import Closer, Ended, Foreign, abort_later
from .sink import Sink, SinkTransport, closers_of_sink

__all__ = ["attach", "closers_of", "encoder_of", "is_fragmented", "state_of", "why_lost"]

_STATES = {
    ConnectionState.CONNECTING: CONNECTING,
    ConnectionState.REJECTING: CONNECTING,
    ConnectionState.OPEN: OPEN,
    ConnectionState.LOCAL_CLOSING: CLOSING,
    ConnectionState.REMOTE_CLOSING: CLOSING,
    ConnectionState.CLOSED: CLOSED,
}
_ZLIB_ENCODER = type(zlib.compressobj())


def state_of(connection: Any) -> State:
    """Return the state of a connection as a `State` of websockets."""
    return _STATES[connection.state]


def is_fragmented(connection: Any) -> bool:
    """Whether a message has been sent in part."""
    return _inner(connection)._proto._outbound_opcode is not None


def encoder_of(connection: Any) -> Encoder | Literal[False] | None:
    """Return the encoder of a connection: see `ConnectionLayout.encoder`."""
    inner = _inner(connection)
    extensions = inner._proto.extensions
    if not extensions:
        return None
    if len(extensions) > 1 or type(extensions[0]) is not PerMessageDeflate:
        return False
    extension: Any = extensions[0]
    bits = int(extension.client_max_window_bits if inner.client else extension.server_max_window_bits)
    if bits < 9:
        return None  # zlib has no window that small; sending uncompressed is always allowed
    parameters = Parameters.of(bits, {})
    assert parameters is not None  # these are the defaults of zlib
    if extension.client_no_context_takeover if inner.client else extension.server_no_context_takeover:
        return parameters.per_message
    if extension._compressor is None or type(extension._compressor) is _ZLIB_ENCODER:
        extension._compressor = LazyEncoder(parameters, extension._compressor)
    return extension._compressor if type(extension._compressor) is LazyEncoder else False


def closers_of(connection: Any) -> Sequence[Closer]:
    """See `Foreign`."""
    return ((_inner(connection), "send", lambda event: isinstance(event, CloseConnection)),)


def why_lost(connection: Any) -> Ended:
    """Return why a connection was lost. wsproto does not report whether the received close frame was an answer."""
    if connection.state in (ConnectionState.REMOTE_CLOSING, ConnectionState.CLOSED):
        return Ended.CLOSED_BY_PEER
    return Ended.CLOSED_HERE if connection.state is ConnectionState.LOCAL_CLOSING else Ended.LOST


def _inner(connection: Any) -> Any:
    """Return the Connection inside a WSConnection; a Connection is returned as it is."""
    return connection if isinstance(connection, wsproto.connection.Connection) else connection.connection


class _Attached(Foreign):
    """A connection of wsproto with its transport."""

    library = "wsproto"

    def __init__(self, transport: Any, connection: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.transport: Any = transport
        self.connection = connection
        self.loop: asyncio.AbstractEventLoop = loop
        self._closed = False  # by us

    @property
    def state(self) -> State:
        """The state of the connection."""
        return state_of(self.connection)

    @property
    def send_in_progress(self) -> Any:
        """True between the fragments of a message."""
        return is_fragmented(self.connection) or None

    def encoder(self) -> Encoder | Literal[False] | None:
        """See `Foreign`."""
        return encoder_of(self.connection)

    def closers(self) -> Sequence[Closer]:
        """See `Foreign`."""
        closers = closers_of(self.connection)
        return (*closers, *closers_of_sink(self.transport)) if isinstance(self.transport, SinkTransport) else closers

    def why_lost(self) -> Ended:
        """See `Foreign`."""
        return Ended.CLOSED_HERE if self._closed else why_lost(self.connection)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame. The code that reads must handle the answer; without one, the connection is aborted."""
        self._closed = self.state is OPEN
        if isinstance(self.transport, SinkTransport):
            self.transport.sink_close(code, reason)
            return
        abort_later(self.transport, self.loop)
        if self.state is OPEN:
            self.transport.write(self.connection.send(CloseConnection(code=code, reason=reason)))


class _AttachedClient(_Attached):
    masked = True


def attach(transport: asyncio.Transport | Sink, connection: Any) -> _Attached:
    """See `wsfast.attach()`."""
    if not isinstance(connection, (wsproto.WSConnection, wsproto.connection.Connection)):
        raise TypeError(f"connection must be a wsproto.WSConnection, not {name_of(type(connection))}")
    if _inner(connection) is None:
        raise RuntimeError("the handshake of the connection is not complete; call attach() after it")
    loop = asyncio.get_running_loop()
    kind = _AttachedClient if _inner(connection).client else _Attached
    if hasattr(transport, "get_write_buffer_size"):
        return kind(transport, connection, loop)
    sink = SinkTransport(transport, loop)
    attached = kind(sink, connection, loop)
    sink.on_lost = attached.lose
    return attached
