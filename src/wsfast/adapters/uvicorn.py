"""Protocols for uvicorn, which put themselves into the ASGI scope so that a framework's WebSocket leads to them.

    uvicorn.run(app, ws="wsfast.adapters.uvicorn:WebSocketsProtocol")   # in place of ws="websockets-sansio" or "auto"
    uvicorn.run(app, ws="wsfast.adapters.uvicorn_wsproto:WSProtocol")   # in place of ws="wsproto"

They are those of uvicorn, and differ in that what an application sends by itself never overtakes what channels have
published before, and in that `broadcast()` and channels need not ask them whether they may be written to.

| private or moving name in uvicorn 0.54             | what                                         |
|----------------------------------------------------|----------------------------------------------|
| `conn`, `transport`, `loop`, `queue`, `logger`     | sans-I/O protocol, asyncio's, messages read  |
| `handshake_complete`, `close_sent`                 | what has been sent                           |
| `close_timer`, `close_timeout`, `read_paused`      | how long to wait for the peer's close frame  |
| `handle_connect()`, `send()`, `receive()`, `scope` | ASGI                                         |
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import OPEN, State
from websockets.server import ServerProtocol

from . import ConnectionLayout
from .adapted import Adapted, layout_of
from .asgi import EXTENSION
from .evented import Evented, watched
from .websockets import encoder_of_extensions

__all__ = ["UvicornConnection", "WebSocketsProtocol"]


class UvicornConnection(Evented, Adapted):
    """What both have in common; it stands before the protocol of uvicorn."""

    library = "uvicorn"

    websocket: Any = None
    """The framework's WebSocket by which the connection was first sent to."""

    _wsfast_conn: Any
    logger: Any
    queue: Any
    close_sent: bool
    close_timer: Any
    close_timeout: float
    read_paused: bool

    conn: Any = watched("conn")

    @property
    def origin(self) -> Any:
        """The framework's WebSocket."""
        return self.websocket

    def handle_connect(self, event: Any) -> None:
        """Receive the request."""
        super().handle_connect(event)  # type: ignore[misc]
        scope: Any = getattr(self, "scope", None)
        if scope is not None:
            scope["extensions"][EXTENSION] = self

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell channels, and take leave."""
        self.lose()
        super().connection_lost(exc)

    async def send(self, message: Any) -> None:
        """Send what the application sends, after all that was published for this connection before."""
        await self._wsfast_take_turn(wait=message["type"] == "websocket.send")
        await super().send(message)  # type: ignore[misc]
        self._wsfast_settle()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection, whether its client reads or not."""
        if self.state is not OPEN or self.transport.is_closing():
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self._send_close(code, reason)
        self.close_sent = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.abort)

    def _send_close(self, code: int, reason: str) -> None:
        raise NotImplementedError


class WebSocketsProtocol(UvicornConnection, WebSocketsSansIOProtocol):
    """uvicorn's WebSocketsSansIOProtocol, which wsfast can send to."""

    @property
    def protocol(self) -> Any:
        """The sans-I/O protocol."""
        return self.conn

    @property
    def state(self) -> State:
        """The state of the connection."""
        state: State = self._wsfast_conn.state
        return state

    @classmethod
    def layout(cls) -> ConnectionLayout | None:
        """See Adapted."""
        return layout_of(
            cls,
            protocol="conn",
            protocol_type=ServerProtocol,
            state="_state",
            debug="debug",
            extensions="extensions",
            expect_continuation="expect_continuation_frame",
            writes="writes",
            encoder=encoder_of_extensions,
            tells=True,
        )

    def send_data(self) -> None:
        """Write what was given to the protocol."""
        self.transport.write(b"".join(self.conn.data_to_send()))

    def _send_close(self, code: int, reason: str) -> None:
        self.conn.send_close(code, reason)
        self.send_data()
