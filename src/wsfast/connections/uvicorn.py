"""Protocols for uvicorn that put themselves into the ASGI scope, where wsfast finds them from a framework's WebSocket.

Users import them from `wsfast.uvicorn`.

| private or moving name                             | what                                        | versions     |
|----------------------------------------------------|---------------------------------------------|--------------|
| `conn`, `transport`, `loop`, `queue`, `logger`     | sans-I/O protocol, asyncio's, messages read | 0.35 to 0.54 |
| `handshake_complete`, `close_sent`                 | whether each was sent                       | 0.35 to 0.54 |
| `read_paused`                                      | whether reading is paused                   | 0.35 to 0.54 |
| `conn.available_extensions`                        | list of factories, may be empty             | 0.35 to 0.54 |
| `close_timer`, `close_timeout`                     | how long the peer has to close              | 0.52 to 0.54 |
| `disconnected`                                     | whether the connection was lost             | 0.52 to 0.54 |
| `run_asgi()`, `send()`, `receive()`, `scope`       | ASGI                                        | 0.35 to 0.54 |
| `writable`                                         | an event that `send()` waits for            | 0.35 to 0.54 |
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from uvicorn.protocols.utils import ClientDisconnected
from websockets.protocol import OPEN, State
from websockets.server import ServerProtocol

from wsfast._encoding.message import PreparedMessage

from . import ConnectionLayout
from .foreign import EXTENSION, Closer, Ended, Foreign, abort_later, hand_over, layout_of, why_closed
from .websockets import (
    Reporting,
    ServerPerMessageDeflateFactory,
    closers_of_protocol,
    encoder_of_extensions,
    watched,
    without_deflate,
)

try:
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
except ModuleNotFoundError:
    raise TypeError("wsfast.uvicorn needs uvicorn 0.35 or later") from None

__all__ = ["UvicornConnection", "WebSocketsProtocol"]


class UvicornConnection(Reporting, Foreign):
    """Base class of both protocols; in the bases of a class, it comes before the protocol of uvicorn."""

    library = "uvicorn"
    reports_loss = True
    close_timeout: float = 10.0

    websocket: Any = None
    """The framework's WebSocket through which the connection was first sent to."""

    _wsfast_conn: Any
    _wsfast_transport: Any
    app: Any
    scope: Any
    logger: Any
    queue: Any
    close_sent: bool
    handshake_complete: bool
    close_timer: Any
    disconnected: bool = False
    read_paused: bool
    writable: Any
    _wsfast_closed: bool = False

    conn: Any = watched("conn")

    @property
    def origin(self) -> Any:
        """The framework's WebSocket."""
        return self.websocket

    async def run_asgi(self) -> None:
        """Run the application."""
        self.scope["extensions"][EXTENSION] = self
        application = self.app

        async def app(*arguments: Any) -> Any:
            try:
                return await application(*arguments)
            finally:
                await self._wsfast_flush(wait=False)  # uvicorn closes the transport right after this

        try:
            self.app = app
            await super().run_asgi()  # type: ignore[misc]
        finally:
            self.app = application
        self._wsfast_end()

    def data_received(self, data: bytes) -> None:
        """Receive data, which may contain a close frame or an error."""
        super().data_received(data)
        self._wsfast_end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the loss to channels, and wake tasks that wait to send."""
        self.lose()
        super().connection_lost(exc)
        self.disconnected = True
        self.writable.set()  # before 0.52, uvicorn would let a task that waits to send wait forever

    def keepalive_timeout(self) -> None:
        """Close the connection because the client does not answer pings."""
        super().keepalive_timeout()  # type: ignore[misc]
        self._wsfast_end()

    def shutdown(self) -> None:
        """Close the connection because the server shuts down. uvicorn before 0.52 would send a second close frame."""
        if self.handshake_complete and self.state is OPEN and hand_over(self):
            return
        if self.close_sent and not hasattr(self, "close_timer"):
            self.transport.close()
        else:
            super().shutdown()  # type: ignore[misc]
        self._wsfast_end()

    def has_left(self, transport: Any) -> bool:
        """See `Foreign`."""
        return self.disconnected

    def _wsfast_end(self) -> None:
        """Abort the connection if it is closing and that takes too long: uvicorn waits until everything is written."""
        if self.close_sent or self._wsfast_transport.is_closing():
            abort_later(self._wsfast_transport, self.loop, self.close_timeout)

    async def send(self, message: Any) -> None:
        """Send a message of the application, after all messages that were published for this connection before.

        Raises:
            ClientDisconnected: If the connection was closed by this side, for example by the policy of a channel.
                Frameworks turn this into the exception that they raise when the client has closed the connection.
        """
        await self._wsfast_flush(wait=message["type"] == "websocket.send")
        await self.writable.wait()
        if self._wsfast_closed:
            raise ClientDisconnected
        await super().send(message)  # type: ignore[misc]
        self._wsfast_check()
        self._wsfast_end()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection, whether its client reads or not."""
        if self.state is not OPEN or self.transport.is_closing():
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self._send_close(code, reason)
        self.close_sent = self._wsfast_closed = True
        self.writable.set()  # wake tasks that wait to send
        self._wsfast_end()
        if not hasattr(self, "close_timer"):  # before 0.52, uvicorn does not wait for the peer's close frame
            self.transport.close()
            return
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.abort)

    def _send_close(self, code: int, reason: str) -> None:
        raise NotImplementedError


class WebSocketsProtocol(UvicornConnection, WebSocketsSansIOProtocol):
    """uvicorn's `WebSocketsSansIOProtocol`, with support for wsfast. It creates no encoder until one is needed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        conn = self._wsfast_conn
        if conn.available_extensions:
            conn.available_extensions = [
                ServerPerMessageDeflateFactory._like(factory) for factory in conn.available_extensions
            ]

    @property
    def state(self) -> State:
        """The state of the connection."""
        state: State = self._wsfast_conn.state
        return state

    @classmethod
    def layout(cls) -> ConnectionLayout | None:
        """See `Foreign`."""
        return layout_of(
            cls,
            protocol="_wsfast_conn",
            protocol_type=ServerProtocol,
            transport="_wsfast_transport",
            state="_state",
            debug="debug",
            extensions="extensions",
            expect_continuation="expect_continuation_frame",
            writes="writes",
            encoder=encoder_of_extensions,
            reports=True,
        )

    def closers(self) -> Sequence[Closer]:
        """See `Foreign`."""
        return closers_of_protocol(self._wsfast_conn)

    def why_lost(self) -> Ended:
        """See `Foreign`."""
        return why_closed(self._wsfast_conn)

    def send_message(self, message: PreparedMessage) -> None:
        """Send a message."""
        conn = self.conn
        with contextlib.nullcontext() if message.compress is None else without_deflate(conn):
            if message.text:
                conn.send_text(message.data)
            else:
                conn.send_binary(message.data)
        self.transport.write(b"".join(conn.data_to_send()))

    def _send_close(self, code: int, reason: str) -> None:
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
