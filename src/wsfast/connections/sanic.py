"""Connections of Sanic: a `Websocket`, which never compresses messages.

| private or moving name                                       | what                                | versions       |
|--------------------------------------------------------------|-------------------------------------|----------------|
| `ws_proto`                                                   | sans-I/O protocol of websockets     | 25.3 to 25.12  |
| `io_proto.transport`                                         | of asyncio or uvloop                | 25.3 to 25.12  |
| `loop`, `close_timeout`                                      | event loop; seconds for closing     | 25.3 to 25.12  |
| `connection_lost_waiter`                                     | a future                            | 25.3 to 25.12  |

Sanic writes whole frames only, and closes the protocol before it waits for room for the close frame. So a frame that is
written directly can neither tear another one nor follow a close frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from websockets.protocol import State
from websockets.server import ServerProtocol

from wsfast._encoding.message import PreparedMessage

from . import ConnectionLayout
from .foreign import Closer, Ended, Foreign, layout_of, watch_closing, why_closed
from .websockets import closers_of_protocol, encoder_of_extensions

__all__ = ["adapt"]


class _Connection(Foreign):
    """A `Websocket` of Sanic."""

    library = "Sanic"

    def __init__(self, origin: Any) -> None:
        self._origin = origin
        self.protocol: Any = origin.ws_proto
        self.transport: Any = origin.io_proto.transport
        self.loop: asyncio.AbstractEventLoop = origin.loop
        self.logger: Any = origin.ws_proto.logger
        self.close_timeout: float | None = origin.close_timeout

    @classmethod
    def layout(cls) -> ConnectionLayout | None:
        """See `Foreign`."""
        return layout_of(
            cls,
            protocol="protocol",
            protocol_type=ServerProtocol,
            state="_state",
            debug="debug",
            extensions="extensions",
            expect_continuation="expect_continuation_frame",
            writes="writes",
            encoder=encoder_of_extensions,
        )

    @property
    def origin(self) -> Any:
        """The `Websocket`."""
        return self._origin

    @property
    def state(self) -> State:
        """The state of the connection."""
        state: State = self.protocol.state
        return state

    def send_message(self, message: PreparedMessage) -> None:
        """Send a message."""
        if message.text:
            self.protocol.send_text(message.data)
        else:
            self.protocol.send_binary(message.data)
        self.transport.write(b"".join(self.protocol.data_to_send()))

    def lose(self) -> None:
        """Do nothing: Sanic reports the loss itself."""

    @property
    def connection_lost_waiter(self) -> Any:
        """A future that is done when the connection is lost."""
        waiter = self._origin.connection_lost_waiter
        if not waiter.done():
            watch_closing(self)  # its close() waits for room in the transport, without a limit
        return waiter

    def closers(self) -> Sequence[Closer]:
        """See `Foreign`."""
        return closers_of_protocol(self.protocol)

    def why_lost(self) -> Ended:
        """See `Foreign`."""
        return why_closed(self.protocol)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection."""
        self._origin.end_connection(code, reason)


def adapt(origin: Any) -> _Connection:
    """Return the object that represents a `Websocket` of Sanic.

    Raises:
        RuntimeError: If it has no connection.
    """
    connection: _Connection | None = getattr(origin, "_wsfast_adapted", None)
    if connection is None:
        if origin.io_proto is None or origin.io_proto.transport is None:
            raise RuntimeError("the Websocket of Sanic has no connection")
        connection = origin._wsfast_adapted = _Connection(origin)
    return connection
