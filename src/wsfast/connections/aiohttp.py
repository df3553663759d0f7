"""WebSockets of aiohttp: `web.WebSocketResponse` and `ClientWebSocketResponse`.

| private or moving name                 | what                                                        | versions     |
|----------------------------------------|-------------------------------------------------------------|--------------|
| `ws._writer`                           | a `WebSocketWriter` once it is prepared                     | 3.9 to 3.14  |
| `ws._closed`, `ws._closing`            | whether a close frame was sent, or received                 | 3.9 to 3.14  |
| `ws._timeout`                          | how long the peer has to close, or an object that has that  | 3.9 to 3.14  |
| `ws._close_code`, `ws._exception`      | the code received; why it failed (no pong, for example)     | 3.9 to 3.14  |
| `ws._waiting`                          | not None while a task receives                              | 3.9          |
| `ws._close_wait`                       | what `close()` waits for, instead of for the handler        | 3.10 to 3.14 |
| `writer.transport`, `writer.use_mask`  | asyncio's; True on the client side                          | 3.9 to 3.14  |
| `writer._closing`                      | whether a close frame was sent                              | 3.9 to 3.14  |
| `writer._send_lock`                    | held while a message is compressed, maybe in another thread | 3.13, 3.14   |
| `writer._compressobj._compress_lock`   | the same                                                    | 3.9 to 3.12  |
| `asyncio.Lock._locked`                 | whether it is held                                          |              |
| `writer.compress`, `writer.notakeover` | window bits or 0; whether there is no context takeover      | 3.9 to 3.14  |
| `writer._compressobj._compressor`      | a `zlib.compressobj` in a wrapper, made when needed         | 3.9 to 3.14  |
| `writer._get_compressor(None)`         | makes the wrapper                                           | 3.13, 3.14   |
| `writer._make_compress_obj(bits)`      | returns a new one                                           | 3.9 to 3.12  |
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import zlib
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from aiohttp import ClientWebSocketResponse
from aiohttp.http_websocket import WebSocketWriter
from aiohttp.web import WebSocketResponse
from websockets.protocol import CLOSED, CLOSING, OPEN, State

from wsfast._encoding.deflate import Encoder, LazyEncoder, Parameters

from . import ConnectionLayout, cache_by_type
from .foreign import Closer, Ended, Foreign, layout_of

__all__ = ["adapt"]

_ZLIB_ENCODER = type(zlib.compressobj())


class _Connection(Foreign):
    """A WebSocket of aiohttp."""

    library = "aiohttp"
    exact: ClassVar[bool] = True
    """Whether the WebSocket has aiohttp's own type, not a subclass of it."""

    def __init__(self, origin: Any) -> None:
        self._origin = origin
        self._writer = origin._writer
        self.transport: Any = self._writer.transport
        self.loop: asyncio.AbstractEventLoop = origin._loop

    @property
    def origin(self) -> Any:
        """The WebSocket of aiohttp."""
        return self._origin

    @property
    def state(self) -> State:
        """The state of the connection."""
        if self._origin._closed or self._writer._closing:
            return CLOSED if self.transport.is_closing() else CLOSING
        return CLOSING if self._origin._closing else OPEN

    @property
    def close_timeout(self) -> float | None:  # type: ignore[override]
        """See `Foreign`."""
        timeout = self._origin._timeout
        seconds: float | None = getattr(timeout, "ws_close", timeout)
        return seconds

    @classmethod
    def layout(cls) -> ConnectionLayout | None:
        """See `Foreign`. `_closed` is set right before the close frame is sent, and nothing may follow that frame."""
        if not cls.exact:
            return layout_of(cls)
        kind = ClientWebSocketResponse if cls.masked else WebSocketResponse
        return layout_of(cls, protocol="_origin", protocol_type=kind, state="_closed", open_state=False)

    def closers(self) -> Sequence[Closer]:
        """See `Foreign`. aiohttp also calls this method when a handler returns."""
        return ((self._origin, "close", lambda **_: True),)

    def why_lost(self) -> Ended:
        """See `Foreign`."""
        origin, exc = self._origin, self._origin._exception
        if isinstance(exc, TimeoutError) and not self._writer._closing:
            return Ended.KEEPALIVE
        if origin._closing and exc is None and getattr(origin, "_close_wait", None) is None:
            return Ended.LOST if origin._close_code in (None, 1006) else Ended.CLOSED_BY_PEER
        return Ended.CLOSED_HERE if self._writer._closing and not isinstance(exc, ConnectionError) else Ended.LOST

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection, whether its client reads or not."""
        if not self.masked and not hasattr(self._origin, "_close_wait") and self._origin._waiting is not None:
            # In 3.9, close() would first let the handler end, and that closes the connection with code 1000.
            if not self._origin._closed:
                self._origin._closed = True
                with contextlib.suppress(OSError):
                    await self._writer.close(code, reason.encode())
            return
        await self._origin.close(code=code, message=reason.encode())


class _Compressing(_Connection):
    """A WebSocket that compresses its own messages; large ones in another thread."""

    def __init__(self, origin: Any) -> None:
        super().__init__(origin)
        self._lock = _lock_of(self._writer)

    @classmethod
    def layout(cls) -> ConnectionLayout | None:
        """See `Foreign`. While a message is being compressed, `send_message()` sends frames that are not compressed."""
        layout = super().layout()
        return layout and dataclasses.replace(layout, gate="_lock", send_in_progress="_locked", idle=False)

    def encoder(self) -> Encoder | Literal[False] | None:
        """See `Foreign`."""
        writer = self._writer
        parameters = Parameters.of(writer.compress, {"level": zlib.Z_BEST_SPEED})
        if parameters is None:
            return None  # not to compress is always allowed
        if writer.notakeover:
            return parameters.per_message
        if type(writer) is WebSocketWriter:
            writer.__class__ = _Writer
        elif type(writer) is not _Writer:
            return None
        if writer._compressobj is None:
            writer._compressobj = writer._get_compressor(None)
            if type(writer._compressobj._compressor) is _ZLIB_ENCODER:
                writer._compressobj._compressor = LazyEncoder(parameters)
        elif type(writer._compressobj._compressor) is _ZLIB_ENCODER:
            writer._compressobj._compressor = LazyEncoder(parameters, writer._compressobj._compressor)
        encoder = writer._compressobj._compressor
        return encoder if type(encoder) is LazyEncoder else None


class _Writer(WebSocketWriter):
    """A writer that tells its encoder about messages sent with `compress=`; each of these has an encoder of its own."""

    def _get_compressor(self, compress: int | None) -> Any:
        return self._noted(super()._get_compressor(compress))

    def _make_compress_obj(self, compress: int) -> Any:
        return self._noted(super()._make_compress_obj(compress))  # type: ignore[misc]

    def _noted(self, wrapper: Any) -> Any:
        lasting: Any = self._compressobj
        if lasting is not None and wrapper is not lasting and type(lasting._compressor) is LazyEncoder:
            wrapper._compressor = _SingleEncoder(wrapper._compressor, lasting._compressor)
        return wrapper


class _SingleEncoder:
    """The encoder of a single message. The receiver's window ends with this message, unknown to the lasting encoder."""

    def __init__(self, encoder: Any, lasting: LazyEncoder) -> None:
        self._encoder = encoder
        self._lasting = lasting

    def compress(self, data: Any, /) -> bytes:
        """Compress the message, maybe in another thread."""
        compressed: bytes = self._encoder.compress(data)
        return compressed

    def flush(self, mode: int, /) -> bytes:
        """Return the rest of the message. aiohttp writes the message before anything else happens."""
        self._lasting.forget()
        rest: bytes = self._encoder.flush(mode)
        return rest


def _lock_of(writer: Any) -> asyncio.Lock | None:
    """Return the lock that is held from compressing a message until it is written; None if it is not known."""
    lock = getattr(writer, "_send_lock", None)
    if lock is None and hasattr(writer, "_make_compress_obj"):
        if writer._compressobj is None:
            writer._compressobj = writer._make_compress_obj(writer.compress)
        lock = getattr(writer._compressobj, "_compress_lock", None)
    return lock if type(lock) is asyncio.Lock else None


class _Ordinary(_Connection):
    """A WebSocket of a subclass that overrides methods that send; what they do is unknown."""

    @classmethod
    def layout(cls) -> ConnectionLayout | None:
        """See `Foreign`."""
        return None


KINDS: dict[tuple[type[_Connection], bool, bool], type[_Connection]] = {
    (base, masked, exact): type(base.__name__, (base,), {"masked": masked, "exact": exact})
    for base in (_Connection, _Compressing, _Ordinary)
    for masked in (False, True)
    for exact in (False, True)
}
"""The class that represents a WebSocket, by the base class, by whether it masks, and by whether it has aiohttp's own
type."""

# A subclass is written to directly only if it does not override these: methods that send, and attributes that gather
# reads.
_KEPT = ("send_frame", "send_str", "send_bytes", "_closed", "_writer", "__getattribute__", "__getattr__", "__setattr__")


@cache_by_type
def _is_overridden(kind: type) -> bool:
    """Whether a type of WebSockets overrides any of these."""
    original = ClientWebSocketResponse if issubclass(kind, ClientWebSocketResponse) else WebSocketResponse
    return any(
        inspect.getattr_static(kind, name, None) is not inspect.getattr_static(original, name, None) for name in _KEPT
    )


def adapt(origin: Any) -> _Connection:
    """Return the object that represents a WebSocket of aiohttp."""
    connection: _Connection | None = getattr(origin, "_wsfast_adapted", None)
    if connection is None:
        if origin._writer is None:
            raise RuntimeError("the WebSocketResponse is not open yet; await its prepare() first")
        base = _Connection
        if _is_overridden(type(origin)):
            base = _Ordinary
        elif origin._writer.compress and _lock_of(origin._writer) is not None:
            base = _Compressing
        exact = type(origin) in (WebSocketResponse, ClientWebSocketResponse)
        connection = origin._wsfast_adapted = KINDS[base, bool(origin._writer.use_mask), exact](origin)
    return connection
