"""`serve()`: servers whose connections report every change of state, so that sending needs no check of each one."""

from __future__ import annotations

import logging
import socket
import ssl as system_ssl
from collections.abc import Awaitable, Callable, Generator, Sequence
from re import Pattern
from types import TracebackType
from typing import Any, Protocol, TypedDict, Unpack

import websockets.asyncio.server
from websockets.asyncio.server import Server as _Server
from websockets.extensions.base import ServerExtensionFactory
from websockets.http11 import Request, Response
from websockets.typing import Origin, Subprotocol

from ._shutdown import Closing, Drained, ShutdownPlan
from .connections.websockets import ReportingConnection

__all__ = ["ServeOptions", "Server", "ServerConnection", "Serving", "serve"]


class ServerConnection(ReportingConnection):
    """A connection of websockets that reports its changes of state to `broadcast()` and channels.

    Use it like the `ServerConnection` of websockets. Two things differ. `send()` first waits until the messages that
    channels published for this connection have left. And `broadcast()` and channels send to it without checking first
    whether it can be written to. So code that uses its transport or protocol must read `connection.transport` or
    `connection.protocol` each time, and must not keep a reference.
    """


class Server(_Server):
    """A server of `serve()`: that of websockets, and `drain()`."""

    _wsfast_closing: Closing | None = None

    def is_serving(self) -> bool:
        """Whether the server accepts connections. Handshakes are answered with HTTP status 503 if not."""
        return self._wsfast_closing is None and super().is_serving()

    async def drain(self, seconds: float, code: int = 1012, reason: str = "", jitter: bool = True) -> Drained:
        """Close all connections of this server like `Hub.drain()`, whether they are subscribed to anything or not.

        From now on, handshakes are answered with HTTP status 503. `process_request` is still called, so it can answer
        health checks. Call `close()` afterwards, or leave the `async with` block.

        Args:
            seconds: Seconds after which the call returns at the latest.
            code: Status code of the close frames.
            reason: Reason in the close frames, at most 123 bytes.
            jitter: See `Hub.drain()`.

        Returns:
            The numbers of connections that were closed and aborted.

        Raises:
            TypeError, ValueError: See `Hub.drain()`.
        """
        plan = ShutdownPlan(seconds, code, reason, jitter)
        plan.check()
        if self._wsfast_closing is None or self._wsfast_closing.done:
            self._wsfast_closing = Closing(lambda: self.connections, plan)
        return await self._wsfast_closing.wait()


class ServeOptions(TypedDict, total=False):
    """Options of `serve()`: those of `websockets.serve()` and of `loop.create_server()`, with the same defaults."""

    origins: Sequence[Origin | Pattern[str] | None] | None
    extensions: Sequence[ServerExtensionFactory] | None
    subprotocols: Sequence[Subprotocol] | None
    select_subprotocol: Callable[[ServerConnection, Sequence[Subprotocol]], Subprotocol | None] | None
    compression: str | None
    process_request: Callable[[ServerConnection, Request], Awaitable[Response | None] | Response | None] | None
    process_response: (
        Callable[[ServerConnection, Request, Response], Awaitable[Response | None] | Response | None] | None
    )
    server_header: str | None
    open_timeout: float | None
    ping_interval: float | None
    ping_timeout: float | None
    close_timeout: float | None
    max_size: int | tuple[int | None, int | None] | None
    max_queue: int | tuple[int | None, int | None] | None
    write_limit: int | tuple[int, int | None]
    logger: logging.Logger | logging.LoggerAdapter[Any] | None
    create_connection: type[ServerConnection] | None
    ssl: system_ssl.SSLContext | None
    sock: socket.socket | None
    family: int
    flags: int
    backlog: int
    reuse_address: bool | None
    reuse_port: bool | None
    ssl_handshake_timeout: float | None
    ssl_shutdown_timeout: float | None
    start_serving: bool


class Serving(Protocol):
    """A server that has not started yet. Await it, or enter it with `async with`, to start it.

    Leaving the `async with` block closes the server.
    """

    def __await__(self) -> Generator[Any, None, Server]:
        """Start the server."""

    async def __aenter__(self) -> Server:
        """Start the server."""

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the server."""


def serve(
    handler: Callable[[ServerConnection], Awaitable[None]],
    host: str | Sequence[str] | None = None,
    port: int | None = None,
    **options: Unpack[ServeOptions],
) -> Serving:
    """Start a WebSocket server as `websockets.serve()` does, with connections of type `wsfast.ServerConnection`.

    `broadcast()`, channels and hubs send to these connections faster than to those of `websockets.serve()`, because
    they report every change of state and need not be checked before each message.

    Args:
        handler: Coroutine function that handles one connection.
        host: Network interfaces that the server listens on.
        port: TCP port that the server listens on.
        options: See `ServeOptions`.

    Returns:
        An object to await, or to enter with `async with`, to start the server.

    Raises:
        TypeError: If `handler` is not callable, or `create_connection` is given and is not a subclass of
            `wsfast.ServerConnection`.
    """
    if not callable(handler):
        raise TypeError(f"handler must be a coroutine function, not {handler!r}")
    create_connection = options.get("create_connection") or ServerConnection
    if not (isinstance(create_connection, type) and issubclass(create_connection, ServerConnection)):
        raise TypeError(f"create_connection must be a subclass of wsfast.ServerConnection, not {create_connection!r}")
    passed: dict[str, Any] = {**options, "create_connection": create_connection}
    serving: Any = websockets.asyncio.server.serve  # untyped: its signature differs between releases
    result = serving(handler, host, port, **passed)
    # websockets creates the server itself. Until 16, it is an attribute of what serve() returns; then, it is that.
    (result if isinstance(result, _Server) else result.server).__class__ = Server
    return result  # type: ignore[no-any-return]
