"""Clients of Engine.IO servers: where python-engineio, which python-socketio is built on, keeps their connections.

| private or moving name       | what                                                   | versions    |
|------------------------------|--------------------------------------------------------|-------------|
| `server._async["websocket"]` | class of the framework's WebSockets, or None           | 4.9 to 4.15 |
| `WebSocket(handler, server)` | `handler.__self__` is the `AsyncSocket`                | 4.9 to 4.15 |
| `ws(environ)`                | handles one WebSocket, by `await handler(ws)`          | 4.9 to 4.15 |
| `ws.send(data)`              | sends a message; only the `AsyncSocket` calls it       | 4.9 to 4.15 |
| `ws.close()`                 | closes it; only the `AsyncSocket` calls it             | 4.9 to 4.15 |
| `ws._sock`                   | aiohttp's WebSocketResponse, prepared before `handler` | 4.9 to 4.15 |
| `environ["asgi.scope"]`      | ASGI's scope                                           | 4.9 to 4.15 |
| `AsyncSocket.queue`          | an asyncio.Queue without a bound                       | 4.9 to 4.15 |
| `AsyncSocket.poll()`         | a task that `handler` starts calls it in a loop, each  | 4.9 to 4.15 |
|                              | time after all that it returned before was sent        |             |
| `upgraded`, `closed`, `sid`  | its state                                              | 4.9 to 4.15 |
| `last_ping`                  | when a ping was sent; None once it was answered        | 4.9 to 4.15 |
| `check_ping_timeout()`       | closes it if that was too long ago                     | 4.9 to 4.15 |
| `server.sockets`, `logger`,  | maps `sid` to `AsyncSocket`; and what `send_packet()`  | 4.9 to 4.15 |
| `ping_timeout`               | of the server does with them                           |             |
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from engineio.async_socket import AsyncSocket
from engineio.exceptions import SocketIsClosedError
from engineio.packet import MESSAGE, Packet

from . import adapt
from .foreign import EXTENSION, abort_later

if TYPE_CHECKING:  # python-engineio has no types

    class _AsyncSocket:
        upgraded: bool
        queue: Any

        async def send(self, pkt: Any) -> None: ...
        async def poll(self) -> Any: ...

else:
    _AsyncSocket = AsyncSocket

__all__ = ["Link", "close_timed_out", "enqueue", "hook", "sort_out"]


class Link(Protocol):
    """The subscriptions of a client with a WebSocket."""

    ready: bool
    """Whether a message may be published for the client now. False while packets that must leave first wait in the
    queue of its socket, or were taken from there and not sent yet."""

    def send(self, data: str | bytes) -> None:
        """Publish a message for this client alone.

        Raises:
            OSError: If the connection has ended.
        """

    def end(self) -> None:
        """End the subscriptions."""


L = TypeVar("L", bound=Link)

_handled: ContextVar[Link | None] = ContextVar("wsfast_handled", default=None)
"""The link of the WebSocket that this task, or the one that has started it, handles."""


class LinkedSocket(_AsyncSocket):
    """The socket of a client with a WebSocket that wsfast can send to."""

    wsfast_link: Link

    async def send(self, pkt: Any) -> None:
        """Append a packet to the queue."""
        self.wsfast_link.ready = False
        await super().send(pkt)

    async def poll(self) -> Any:
        """Wait for packets to send. Of several WebSockets that ask for the upgrade, another one may have got it."""
        link = self.wsfast_link
        if _handled.get() is link:
            link.ready = self.queue.empty()
        return await super().poll()


def enqueue(socket: Any, data: str | bytes) -> None:
    """Append a message to the queue of a socket."""
    if isinstance(socket, LinkedSocket):
        socket.wsfast_link.ready = False
    # A packet keeps its encoding, which is not the same for polling and for WebSockets. So no two sockets share one.
    with contextlib.suppress(RuntimeError):  # its event loop is closed
        socket.queue.put_nowait(Packet(MESSAGE, data))


def sort_out(server: Any, links: Mapping[str, L], sids: Iterable[str]) -> tuple[list[L], list[Any], list[Any]]:
    """Sort clients by how a message reaches them.

    Args:
        server: The server of Engine.IO.
        links: The links, by the identifiers of their clients.
        sids: Identifiers of clients.

    Returns:
        The links to publish to; the sockets to whose queues to append; and those of both kinds that have timed out.
    """
    sockets, deadline = server.sockets, time.time() - server.ping_timeout
    ready, others, late = [], [], []
    for sid in sids:
        socket = sockets.get(sid)
        if socket is None or socket.closed:
            server.logger.warning("Cannot send to sid %s", sid)
            continue
        last = socket.last_ping
        if last is not None and last < deadline:
            late.append(socket)
        link = links.get(sid)
        if link is not None and link.ready:
            ready.append(link)
        else:
            others.append(socket)
    return ready, others, late


async def close_timed_out(socket: Any) -> None:
    """Close a socket whose client has not answered a ping in time."""
    with contextlib.suppress(SocketIsClosedError):
        await socket.check_ping_timeout()


def hook(server: Any, link: Callable[[str, Any], Link]) -> None:
    """Have a server of Engine.IO link the clients that connect by WebSocket from now on, or upgrade to one.

    Args:
        server: The server.
        link: Function of the identifier of a client and of its connection. It subscribes the connection, and raises
            TypeError or RuntimeError if that is impossible.
    """
    base: Any = server._async["websocket"]
    if base is None:
        return

    class WebSocket(base):  # type: ignore[misc]
        """A WebSocket of the framework."""

        def __init__(self, handler: Any, *arguments: Any) -> None:
            super().__init__(self._wsfast_handle, *arguments)
            self._wsfast_handler = handler
            self._wsfast_link: Link | None = None
            self._wsfast_environ: Any = None
            self._wsfast_connection: Any = None

        async def __call__(self, environ: Any) -> Any:
            self._wsfast_environ = environ
            return await super().__call__(environ)

        async def _wsfast_handle(self, ws: Any) -> None:
            socket: Any = self._wsfast_handler.__self__
            kind: type = type(socket)
            connection = _connection_of(self, self._wsfast_environ)
            if connection is None or kind is not AsyncSocket:
                await self._wsfast_handler(ws)
                return
            try:
                subscribed = link(socket.sid, connection)
            except (TypeError, RuntimeError):  # not supported, or closed already
                await self._wsfast_handler(ws)
                return
            self._wsfast_connection = connection
            self._wsfast_link = socket.wsfast_link = subscribed
            socket.__class__ = LinkedSocket
            _handled.set(subscribed)
            try:
                await self._wsfast_handler(ws)
            finally:
                _handled.set(None)  # aiohttp handles several requests in one task
                subscribed.ready = False
                subscribed.end()
                socket.__class__ = AsyncSocket
                del socket.wsfast_link

        async def send(self, message: Any) -> None:
            if self._wsfast_link is None:
                await super().send(message)
            else:
                self._wsfast_link.send(message)

        async def close(self) -> None:
            connection = self._wsfast_connection
            if connection is not None:  # a client that reads nothing would be waited for
                abort_later(connection.transport, connection.loop, connection.close_timeout)
            await super().close()

    server._async = {**server._async, "websocket": WebSocket}  # servers share the dict itself


def _connection_of(ws: Any, environ: Any) -> Any:
    """Return the connection of a WebSocket; None if it cannot be reached."""
    scope = environ.get("asgi.scope")
    if scope is not None:
        return (scope.get("extensions") or {}).get(EXTENSION)
    return adapt(ws._sock) if "aiohttp.request" in environ else None
