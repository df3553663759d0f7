"""WebSockets under Hypercorn: the stream of each one puts its connection into the ASGI scope.

`install()` replaces Hypercorn's class of streams for HTTP/1.1. Streams of HTTP/2 share a connection, so they keep the
queue that `wsfast.connections.asgi` gives them.

| private or moving name                                    | what                                     | versions     |
|-----------------------------------------------------------|------------------------------------------|--------------|
| `hypercorn.protocol.h11.WSStream`                         | called for each upgraded connection      | 0.16 to 0.18 |
| `WSStream.send`: `H11Protocol.stream_send`                | all that a stream sends goes through it  | 0.16 to 0.18 |
| `H11Protocol.send`: `TCPServer.protocol_send`             | writes and drains, holding a lock        | 0.16 to 0.18 |
| `TCPServer.writer`, `.loop`                               | a `StreamWriter`, the event loop         | 0.16 to 0.18 |
| `WSStream.app`, `.app_put`, `.app_send()`, `.handle()`    | the application, and both ways to it     | 0.16 to 0.18 |
| `WSStream.state`, `.closed`, `.connection`                | its state; wsproto's once it is accepted | 0.16 to 0.18 |
| `WSStream._send_wsproto_event()`                          | sends frames, those of closing included  | 0.16 to 0.18 |
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Literal

import hypercorn.protocol.h11
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.protocol.events import Data, StreamClosed
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
from websockets.protocol import CLOSED, CLOSING, CONNECTING, OPEN, State
from wsproto.events import CloseConnection

from wsfast._encoding.deflate import Encoder
from wsfast._encoding.message import PreparedMessage

from . import ConnectionLayout
from .foreign import EXTENSION, Closer, Ended, Foreign, abort_later, layout_of
from .websockets import Ordered
from .wsproto import closers_of, encoder_of, state_of, why_lost

__all__ = ["HypercornConnection", "install"]


class HypercornConnection(Ordered, Foreign):
    """A WebSocket of Hypercorn over HTTP/1.1.

    While Hypercorn sends, or messages that it has compressed wait for that, frames are not written directly. Frames
    that must be sent then follow those messages, and are not compressed, since the next message of Hypercorn may be
    compressed before they are written.
    """

    library = "Hypercorn"

    websocket: Any = None
    """The framework's WebSocket through which the connection was first sent to."""

    def __init__(self, stream: Any, server: TCPServer) -> None:
        self.stream: Any = stream
        self.transport: Any = server.writer.transport
        self.loop: asyncio.AbstractEventLoop = server.loop
        self.closed_here: bool = False
        """Whether this side began to close."""
        self.refuses: bool = False
        """Whether wsfast has closed it, so the application can send no more."""

    @classmethod
    def layout(cls) -> ConnectionLayout | None:
        """See `Foreign`."""
        return layout_of(
            cls,
            protocol="stream",
            protocol_type=_Stream,
            state="is_open",
            open_state=True,
            gate="stream",
            send_in_progress="sending",
        )

    @property
    def origin(self) -> Any:
        """The framework's WebSocket."""
        return self.websocket

    @property
    def state(self) -> State:
        """The state of the connection."""
        stream = self.stream
        if stream.closed:
            return CLOSED
        if stream.state is not ASGIWebsocketState.CONNECTED or not hasattr(stream, "connection"):  # as accept() failed
            return CLOSING if self.closed_here else CONNECTING
        return state_of(stream.connection)

    def encoder(self) -> Encoder | Literal[False] | None:
        """See `Foreign`."""
        return encoder_of(self.stream.connection)

    def closers(self) -> Sequence[Closer]:
        """See `Foreign`."""
        return closers_of(self.stream.connection)

    def send_message(self, message: PreparedMessage) -> None:
        """Send a message after those that Hypercorn is sending."""
        self.stream.write_after(message.frame)

    def why_lost(self) -> Ended:
        """See `Foreign`."""
        return Ended.CLOSED_HERE if self.closed_here else why_lost(self.stream.connection)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection, whether its client reads or not, and let the application receive a disconnect."""
        if self.state is not OPEN:
            return
        self.refuses = True
        self.stream.tell(code, reason)
        await self.stream._send_wsproto_event(CloseConnection(code=code, reason=reason))


class _Stream(WSStream):
    """Hypercorn's stream of a WebSocket, with support for wsfast."""

    def __init__(self, server: TCPServer, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.sending: int | None = None
        """How many calls of Hypercorn's `send()` are in progress; None for none."""
        self.is_open: bool = False
        """Whether messages may be sent."""
        self._disconnect: Any = None  # the message that tells the application that wsfast has closed the connection
        self._told = False  # whether it has received it
        self._calls: list[list[bytes]] = []  # for each of these calls, in order: the frames to write after it
        self._compresses = False  # whether Hypercorn compresses messages
        self._application = self.app
        self._send = self.send
        self.app: Any = self._run
        self.send: Any = self._counted
        self._connection = HypercornConnection(self, server)

    async def _run(self, scope: Any, *arguments: Any) -> None:
        """Run the application."""
        scope["extensions"][EXTENSION] = self._connection
        await self._application(scope, *arguments)

    async def _counted(self, event: Any) -> None:
        """Send, and note the state. Hypercorn calls this right after each change of it, except for a loss."""
        self.is_open = self.state is ASGIWebsocketState.CONNECTED and state_of(self.connection) is OPEN
        self._compresses |= self.is_open and self._connection.encoder() is not None
        after: list[bytes] = []
        waits = bool(self._calls)
        self._calls.append(after)
        self.sending = len(self._calls)
        sent = self._send_then_write(event, after)
        if waits and self._compresses:
            # The next compressed message refers to this one, so this must leave even if its task is cancelled.
            await asyncio.shield(self._connection.loop.create_task(sent))
        else:
            await sent

    async def _send_then_write(self, event: Any, after: list[bytes]) -> None:
        """Send, and then write the frames that must follow."""
        calls = self._calls
        try:
            await self._send(event)
        finally:
            index = next(index for index, other in enumerate(calls) if other is after)
            del calls[index]
            self.sending = len(calls) or None
            if index:  # cancelled before its turn
                calls[index - 1] += after
            elif after and not self._connection.transport.is_closing():
                self._connection.transport.write(b"".join(after))

    def write_after(self, frame: bytes) -> None:
        """Write a frame after the latest of the calls of Hypercorn's `send()`. Its lock lets them through in order."""
        if self._calls:
            self._calls[-1].append(frame)
        else:
            self._connection.transport.write(frame)

    async def app_send(self, message: Any) -> None:
        """Send a message of the application, after all messages that were published for this connection before.

        Args:
            message: The message; None if the application has ended.

        Raises:
            ConnectionError: If the connection was closed by wsfast, for example by the policy of a channel. Frameworks
                turn this into the exception that they raise when the client has closed the connection.
        """
        sends = message is not None and message["type"] == "websocket.send"
        await self._connection._wsfast_flush(wait=sends)
        if sends and self._connection.refuses:
            raise ConnectionError("the connection was closed")
        if message is None and self._connection.refuses and self.sending and not self.closed:
            await self.send(Data(self.stream_id, b""))  # Hypercorn closes now; the close frame may wait for its lock
        await super().app_send(message)

    async def _send_wsproto_event(self, event: Any) -> None:
        """Send a frame. Hypercorn waits until a close frame is written; this has a limit now."""
        if isinstance(event, CloseConnection):
            self._connection.closed_here |= state_of(self.connection) is OPEN
            self._abort_later()
        await super()._send_wsproto_event(event)

    async def handle(self, event: Any) -> None:
        """Handle an event. When the connection is lost, its subscriptions end."""
        if not isinstance(event, StreamClosed) or self.closed:
            await super().handle(event)
            return
        self.is_open = False
        self._abort_later()
        self._connection.lose()
        if self._disconnect is None:
            await super().handle(event)
            return
        self.closed = True
        if not self._told:
            self._told = True
            await self.app_put(self._disconnect)  # type: ignore[misc]

    def _abort_later(self) -> None:
        abort_later(self._connection.transport, self._connection.loop)

    def tell(self, code: int, reason: str) -> None:
        """Let the application receive a disconnect: now if its queue has room, else when the connection is lost."""
        self._disconnect = {"type": "websocket.disconnect", "code": code, "reason": reason}
        queue: asyncio.Queue[Any] = self.app_put.__self__  # type: ignore[union-attr]
        with contextlib.suppress(asyncio.QueueFull):
            queue.put_nowait(self._disconnect)
            self._told = True


def _stream(*arguments: Any) -> WSStream:
    """Return a stream: wsfast's own if asyncio runs it. The arguments are those of `WSStream`."""
    send = arguments[7]
    server = getattr(getattr(getattr(send, "__self__", None), "send", None), "__self__", None)
    return _Stream(server, *arguments) if isinstance(server, TCPServer) else WSStream(*arguments)


def install() -> None:
    """See `wsfast.hypercorn.install()`."""
    module: Any = hypercorn.protocol.h11
    if module.WSStream is WSStream:
        module.WSStream = _stream
