"""Servers whose connections need not be asked before they are sent to."""

from __future__ import annotations

import logging
import socket
import ssl as system_ssl
from collections.abc import Awaitable, Callable, Generator, Sequence
from re import Pattern
from types import TracebackType
from typing import Any, Protocol, TypedDict, Unpack

import websockets.asyncio.server
from websockets.asyncio.server import Server
from websockets.extensions.base import ServerExtensionFactory
from websockets.http11 import Request, Response
from websockets.typing import Origin, Subprotocol

from .connections.websockets import TellingConnection

__all__ = ["ServeOptions", "ServerConnection", "Serving", "serve"]


class ServerConnection(TellingConnection):
    """A connection of websockets that tells `broadcast()` and channels what happens to it.

    It is used like that of websockets. Two things differ: `send()` waits until what channels published for this
    connection before has left; and neither channels nor `broadcast()` need to ask it whether it can be written to.
    Code of yours that does something to the transport or the protocol must take it from `connection.transport` or
    `connection.protocol` each time.
    """


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
    """A server that is about to start: await it, or enter it as a context, to start it; the context closes it."""

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
    """Do as `websockets.serve()` does, with connections that are instances of `wsfast.ServerConnection`.

    Args:
        handler: Coroutine function that deals with one connection.
        host: Network interfaces that the server listens on.
        port: TCP port.
        options: See `ServeOptions`.

    Returns:
        What is awaited, or entered as a context, to start the server.

    Raises:
        TypeError: If `handler` cannot be called, or `create_connection` is given and is no subclass of
            `wsfast.ServerConnection`.
    """
    if not callable(handler):
        raise TypeError(f"handler must be a coroutine function, not {handler!r}")
    create_connection = options.get("create_connection") or ServerConnection
    if not (isinstance(create_connection, type) and issubclass(create_connection, ServerConnection)):
        raise TypeError(f"create_connection must be a subclass of wsfast.ServerConnection, not {create_connection!r}")
    passed: dict[str, Any] = {**options, "create_connection": create_connection}
    serving: Any = websockets.asyncio.server.serve  # whose signature is not the same in all releases
    return serving(handler, host, port, **passed)  # type: ignore[no-any-return]
