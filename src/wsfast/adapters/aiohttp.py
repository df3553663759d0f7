"""WebSockets of aiohttp: `web.WebSocketResponse` and `ClientWebSocketResponse`.

| private or moving name in aiohttp 3.14   | what                                                        |
|------------------------------------------|-------------------------------------------------------------|
| `ws._writer`                             | a `WebSocketWriter` once it is prepared                     |
| `ws._closed`, `ws._closing`              | whether a close frame was sent, or received                 |
| `writer.transport`, `writer.use_mask`    | asyncio's; True on the client side                          |
| `writer._closing`                        | whether a close frame was sent                              |
| `writer._send_lock`                      | held while a message is compressed, maybe in another thread |
| `asyncio.Lock._locked`                   | whether it is held                                          |
| `writer.compress`, `writer.notakeover`   | window bits or 0; whether each message stands by itself     |
| `writer._compressobj._compressor`        | a `zlib.compressobj` in a wrapper, made when needed         |
"""

from __future__ import annotations

import asyncio
import dataclasses
import zlib
from typing import Any, Literal

from aiohttp import ClientWebSocketResponse
from aiohttp.web import WebSocketResponse
from websockets.protocol import CLOSED, CLOSING, OPEN, State

from wsfast.deflate import Encoder, LazyEncoder, Parameters

from . import ConnectionLayout
from .adapted import Adapted, layout_of

__all__ = ["adapt"]

CLOSE_TIMEOUT = 10.0
"""Seconds that a client that does not read has to answer a close frame."""

_ZLIB_ENCODER = type(zlib.compressobj())


class _Connection(Adapted):
    """A WebSocket of aiohttp."""

    library = "aiohttp"

    def __init__(self, origin: Any) -> None:
        self._origin = origin
        self._writer = origin._writer
        self.transport = self._writer.transport
        self.loop = origin._loop

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

    @classmethod
    def layout(cls) -> ConnectionLayout | None:
        """See Adapted. `_closed` is set right before the close frame is sent; nothing may follow that."""
        kind = ClientWebSocketResponse if cls.masked else WebSocketResponse
        return layout_of(cls, protocol="_origin", protocol_type=kind, state="_closed", open_state=False)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection, whether its client reads or not."""
        self.loop.call_later(CLOSE_TIMEOUT, self.transport.abort)
        await self._origin.close(code=code, message=reason.encode())


class _Compressing(_Connection):
    """One that compresses its own messages, large ones in another thread."""

    def __init__(self, origin: Any) -> None:
        super().__init__(origin)
        self._lock = self._writer._send_lock

    @classmethod
    def layout(cls) -> ConnectionLayout | None:
        """See Adapted. While a message is compressed, the ordinary path sends frames that need no encoder."""
        layout = super().layout()
        return layout and dataclasses.replace(layout, gate="_lock", send_in_progress="_locked", idle=False)

    def encoder(self) -> Encoder | Literal[False] | None:
        """See Adapted."""
        writer = self._writer
        parameters = Parameters.of(writer.compress, {"level": zlib.Z_BEST_SPEED})
        if parameters is None:
            return None  # not to compress is always allowed
        if writer.notakeover:
            return parameters.per_message
        if writer._compressobj is None:
            writer._compressobj = writer._get_compressor(None)
            if type(writer._compressobj._compressor) is _ZLIB_ENCODER:
                writer._compressobj._compressor = LazyEncoder(parameters)
        elif type(writer._compressobj._compressor) is _ZLIB_ENCODER:
            writer._compressobj._compressor = LazyEncoder(parameters, writer._compressobj._compressor)
        encoder = writer._compressobj._compressor
        return encoder if type(encoder) is LazyEncoder else None


class _ClientConnection(_Connection):
    masked = True


class _CompressingClient(_Compressing):
    masked = True


KINDS: dict[tuple[bool, bool], type[_Connection]] = {
    (False, False): _Connection,
    (False, True): _Compressing,
    (True, False): _ClientConnection,
    (True, True): _CompressingClient,
}
"""For whether it masks, and whether it compresses, the class that stands for a WebSocket."""


def adapt(origin: Any) -> _Connection:
    """Return what stands for a WebSocket of aiohttp."""
    connection: _Connection | None = getattr(origin, "_wsfast_adapted", None)
    if connection is None:
        if origin._writer is None:
            raise RuntimeError("the WebSocketResponse is not open yet: await its prepare() first")
        compresses = bool(origin._writer.compress) and type(getattr(origin._writer, "_send_lock", None)) is asyncio.Lock
        kind = KINDS[bool(origin._writer.use_mask), compresses]
        connection = origin._wsfast_adapted = kind(origin)
    return connection
