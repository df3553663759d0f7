"""Connections of Tornado: a `WebSocketHandler`.

| private or moving name                              | what                                         | versions       |
|-----------------------------------------------------|----------------------------------------------|----------------|
| `WebSocketHandler.ws_connection`                    | its protocol; None before and after          | 6.3 to 6.6     |
| `WebSocketProtocol13.stream`                        | an `IOStream`, once the connection is open   | 6.3 to 6.6     |
| `server_terminated`, `client_terminated`            | whether a close frame was sent, was received | 6.3 to 6.6     |
| `_abort()`                                          | closes the stream, and ends timers           | 6.3 to 6.6     |
| `_write_frame()`, `write_message()`                 | send                                         | 6.3 to 6.6     |
| `close(reason="ping timed out")`                    | the client did not answer a ping             | 6.5, 6.6       |
| `_compressor`: `_PerMessageDeflateCompressor`       | None if nothing compresses messages          | 6.3 to 6.6     |
| its `_max_wbits`, `_compression_level`, `_mem_level`| arguments of `zlib.compressobj`              | 6.3 to 6.6     |
| its `_compressor`                                   | a `zlib.compressobj`; None: one per message  | 6.3 to 6.6     |
| `IOStream._closed`, `.socket`, `.error`             | the socket is None once it is closed         | 6.3 to 6.6     |
| `IOStream._write_buffer._buffers`                   | a deque of what waits; always the same one   | 6.3 to 6.6     |
| `IOStream._close_callback`                          | what `set_close_callback()` was given        | 6.3 to 6.6     |

Tornado writes whole frames only, compresses a message and writes it without giving up control in between, and notes
that it sent a close frame right after it has written that. `IOStream.write()` tries the socket at once. So an empty
buffer means that a frame may be written directly. Futures that `write()` returns never log an exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Literal

from tornado.ioloop import IOLoop
from tornado.iostream import IOStream
from tornado.websocket import WebSocketProtocol13, _PerMessageDeflateCompressor
from websockets.protocol import CLOSED, CLOSING, OPEN, State

from wsfast._encoding.deflate import Encoder, LazyEncoder, Parameters
from wsfast._encoding.message import PreparedMessage

from . import ConnectionLayout
from .foreign import Closer, Ended, Foreign, layout_of

__all__ = ["EncryptedStreamTransport", "StreamTransport", "adapt"]

_ZLIB_ENCODER = type(zlib.compressobj())
_DEFLATE_COMPRESSOR: Any = _PerMessageDeflateCompressor
_METHODS = {name: getattr(WebSocketProtocol13, name) for name in ("write_message", "_write_frame")}


class EncryptedStreamTransport:
    """A stream with the methods of a transport. Only the stream may write: it encrypts, or what it does is unknown."""

    closing: Any = property(attrgetter("_stream._closed"))
    """Whether the stream is closed. Reading it runs no Python code."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._stream = protocol.stream
        self._socket = protocol.stream.socket
        self.fd: int = self._socket.fileno()
        self.buffer: Any = protocol.stream._write_buffer._buffers
        """Empty unless data waits to be written."""

    def write(self, data: Any) -> None:
        """Write data after all that waits.

        Raises:
            StreamClosedError: If the stream is closed.
        """
        self._stream.write(data)
        if self.closing:
            self.buffer.clear()  # writing has failed; before 6.6, the stream forgets the buffer as it is

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait to be written."""
        return 0 if self.closing else len(self._stream._write_buffer)

    def is_closing(self) -> bool:
        """Whether the stream is closed."""
        return bool(self.closing)

    def abort(self) -> None:
        """Close the stream at once."""
        self._protocol._abort()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the socket, or the address of the client."""
        if name == "socket":
            return self._socket
        with contextlib.suppress(OSError):
            return self._socket.getpeername() if name == "peername" else default
        return default


class StreamTransport(EncryptedStreamTransport):
    """An `IOStream` over a plain socket, which may be written to directly while nothing waits."""


class _Connection(Foreign):
    """A `WebSocketHandler`."""

    library = "Tornado"

    def __init__(self, origin: Any) -> None:
        self._origin = origin
        self.protocol: Any = origin.ws_connection
        stream = self.protocol.stream
        self.loop: asyncio.AbstractEventLoop = stream.io_loop.asyncio_loop
        replaced = vars(stream).keys() & {"write", "write_to_fd", "_handle_write"}
        kind = StreamTransport if type(stream) is IOStream and not replaced else EncryptedStreamTransport
        self.transport: Any = kind(self.protocol)
        self._ended = Ended.LOST
        self._earlier_callback: Callable[[], object] | None = None

    @classmethod
    def layout(cls) -> ConnectionLayout | None:
        """See `Foreign`."""
        return layout_of(
            cls,
            protocol="protocol",
            protocol_type=WebSocketProtocol13,
            state="server_terminated",
            open_state=False,
            protocol_methods=_METHODS,
        )

    @property
    def origin(self) -> Any:
        """The `WebSocketHandler`."""
        return self._origin

    @property
    def state(self) -> State:
        """The state of the connection."""
        if self.transport.closing:
            return CLOSED
        return CLOSING if self.protocol.server_terminated or self.protocol.client_terminated else OPEN

    def encoder(self) -> Encoder | Literal[False] | None:
        """See `Foreign`."""
        compressor: Any = self.protocol._compressor
        if compressor is None:
            return None
        if type(compressor) is not _DEFLATE_COMPRESSOR:
            return False
        if compressor._max_wbits < 9:
            return None  # zlib has no window that small; sending uncompressed is always allowed
        settings = {"level": compressor._compression_level, "memLevel": compressor._mem_level}
        parameters = Parameters.of(compressor._max_wbits, settings)
        if parameters is None:
            return None
        if compressor._compressor is None:
            return parameters.per_message
        if type(compressor._compressor) is _ZLIB_ENCODER:
            compressor._compressor = LazyEncoder(parameters, compressor._compressor)
        return compressor._compressor if type(compressor._compressor) is LazyEncoder else False

    def send_message(self, message: PreparedMessage) -> None:
        """Send a message."""
        sent = self.protocol.write_message(bytes(message.data), binary=not message.text)
        if isinstance(sent, asyncio.Future):
            sent.add_done_callback(_retrieve_exception)

    def keep_reason(self, exc: BaseException) -> None:
        """See `Foreign`."""
        self.protocol.stream.error = exc

    def subscribed(self) -> None:
        """See `Foreign`. If other code replaces the callback, a loss is noticed within a second."""
        stream = self.protocol.stream
        if stream._close_callback != self._on_stream_closed:
            self._earlier_callback = stream._close_callback
            stream.set_close_callback(self._on_stream_closed)

    def _on_stream_closed(self) -> None:
        self.lose()
        if self._earlier_callback is not None:
            self._earlier_callback()

    def closers(self) -> Sequence[Closer]:
        """See `Foreign`."""
        return ((self.protocol, "close", self._sends_close_frame),)

    def _sends_close_frame(self, code: int | None = None, reason: str | None = None) -> bool:
        """Whether a call of `close()` sends a close frame, before which messages may be sent. Notes who closes."""
        protocol = self.protocol
        if protocol.server_terminated or self.transport.closing:
            return False
        if protocol.client_terminated:
            self._ended = Ended.CLOSED_BY_PEER
        else:
            self._ended = Ended.KEEPALIVE if reason == "ping timed out" else Ended.CLOSED_HERE
        return True

    def why_lost(self) -> Ended:
        """See `Foreign`."""
        return self._ended

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection. Tornado aborts it after 5 s if the client does not answer."""
        self.protocol.close(code, reason or None)


class _Closed(Foreign):
    """A `WebSocketHandler` that was closed before anything was sent to it."""

    library = "Tornado"
    transport: Any = None

    def __init__(self, origin: Any) -> None:
        self._origin = origin
        current: Any = IOLoop.current(instance=False)  # the connection no longer knows its own
        self.loop: Any = None if current is None else current.asyncio_loop

    @property
    def state(self) -> State:
        """The state of the connection."""
        return CLOSED

    @property
    def origin(self) -> Any:
        """The `WebSocketHandler`."""
        return self._origin

    @classmethod
    def layout(cls) -> ConnectionLayout | None:
        """See `Foreign`."""
        return None


def _retrieve_exception(sent: asyncio.Future[Any]) -> None:
    """Keep a future from logging its exception: the stream is closed, which is noticed anyway."""
    if not sent.cancelled():
        sent.exception()


def adapt(origin: Any) -> Foreign:
    """Return the object that represents a `WebSocketHandler`.

    Raises:
        RuntimeError: If it is not open yet.
    """
    connection: Foreign | None = getattr(origin, "_wsfast_adapted", None)
    if connection is None:
        protocol = origin.ws_connection
        if origin.get_status() != 101 or (protocol is not None and protocol.stream is None):
            raise RuntimeError("the WebSocketHandler is not open yet; use it from its open() on")
        closed = protocol is None or protocol.stream.closed()
        connection = origin._wsfast_adapted = _Closed(origin) if closed else _Connection(origin)
    return connection
