"""The servers whose connections are sent to, each in the same way: it keeps what it accepts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence, Sized
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

from websockets.asyncio.server import ServerConnection, serve
from websockets.extensions.base import ServerExtensionFactory
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory

import wsfast

from .cases import Case
from .certificate import server_context
from .clients import Clients
from .machine import UnfitError
from .node import KEEPALIVE
from .node import serve as node
from .ticks import MEM_LEVEL, WINDOW_BITS

__all__ = ["KEEPALIVE", "PATIENCE", "SERVE", "Server", "admit", "interval_of_pings", "keep"]

PATIENCE = 60
"""Seconds without a byte after which the clients are given up."""

Server: TypeAlias = Callable[[Case, list[Any]], AbstractAsyncContextManager[int]]
"""Serves while in the context; yields the port, and appends each connection to the list as it is accepted."""


async def admit(clients: Clients, case: Case, port: int, accepted: list[Any]) -> None:
    """Connect all clients of a case to a server, and wait until it has accepted them.

    Raises:
        UnfitError: If they cannot.
    """
    await clients.connect(port, case.clients, deflate=case.compression == "deflate", tls=case.tls)
    await keep(accepted, case.clients)


async def keep(accepted: Sized, count: int) -> None:
    """Wait until a server has accepted so many clients: it may not have noticed yet that it has answered.

    Raises:
        UnfitError: If it does not.
    """
    deadline = time.monotonic() + PATIENCE
    while len(accepted) < count:
        if time.monotonic() > deadline:
            raise UnfitError(f"only {len(accepted)} of {count} clients are connected to the server")
        await asyncio.sleep(0)


def interval_of_pings(case: Case) -> float | None:
    """Return the seconds between two pings to a client, None for no pings.

    Where each method has connections of its own, those of all methods together get as many as a server of one method
    would send: what they cost is in the processor time of a tick.
    """
    return KEEPALIVE * (len(case.methods) if case.apart else 1) if case.keepalive else None


@asynccontextmanager
async def stock(
    case: Case,
    accepted: list[Any],
    extensions: Sequence[ServerExtensionFactory] | None = None,
    by: Callable[..., Any] = serve,
) -> AsyncIterator[int]:
    """Serve by websockets, with its own compression or with another one."""

    async def stay(connection: ServerConnection) -> None:
        accepted.append(connection)
        await connection.wait_closed()

    compression = None if case.compression == "none" else case.compression
    # When the context is left, the clients have gone, and the connections with them.
    async with by(
        stay,
        "127.0.0.1",
        0,
        compression=compression,
        extensions=extensions,
        ping_interval=interval_of_pings(case),
        open_timeout=60,
        ssl=server_context() if case.tls else None,
    ) as server:
        yield next(iter(server.sockets)).getsockname()[1]


def without_takeover(case: Case, accepted: list[Any]) -> AbstractAsyncContextManager[int]:
    """Serve by websockets, each message compressed by itself with what a stock server gives to zlib."""
    factory = ServerPerMessageDeflateFactory(
        server_no_context_takeover=True,
        server_max_window_bits=WINDOW_BITS,
        client_max_window_bits=WINDOW_BITS,
        compress_settings={"memLevel": MEM_LEVEL},
    )
    return stock(case, accepted, [factory])


def by_factory(case: Case, accepted: list[Any]) -> AbstractAsyncContextManager[int]:
    """Serve by websockets, with connections that have no encoder before they need one."""
    return stock(case, accepted, [wsfast.ServerPerMessageDeflateFactory()])


@asynccontextmanager
async def picows(case: Case, accepted: list[Any]) -> AsyncIterator[int]:
    """Serve by picows.websockets, whose compression has a window of 15 bits and memLevel 8."""
    from picows.websockets import serve as picows_serve

    async def stay(connection: Any) -> None:
        accepted.append(connection)
        await connection.wait_closed()

    compression = None if case.compression == "none" else case.compression
    async with picows_serve(
        stay, "127.0.0.1", 0, compression=compression, ping_interval=interval_of_pings(case), open_timeout=60
    ) as server:
        yield next(iter(server.sockets)).getsockname()[1]


@asynccontextmanager
async def picows_transports(case: Case, accepted: list[Any]) -> AsyncIterator[int]:
    """Serve by picows itself; what it accepts are its transports, which neither compress nor send pings."""
    from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_create_server

    class Listener(WSListener):
        def on_ws_connected(self, transport: WSTransport) -> None:
            accepted.append(transport)

        def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
            if frame.msg_type == WSMsgType.CLOSE:
                transport.send_close(frame.get_close_code())
                transport.disconnect()

    context = server_context() if case.tls else None
    server = await ws_create_server(lambda _: Listener(), "127.0.0.1", 0, ssl=context)
    try:
        yield next(iter(server.sockets)).getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


def served(case: Case, accepted: list[Any]) -> AbstractAsyncContextManager[int]:
    """Serve by `wsfast.serve()`, with the options of `stock()`."""
    return stock(case, accepted, by=wsfast.serve)


SERVE: dict[str, Server] = {
    "stock": stock,
    "served": served,
    "no-takeover": without_takeover,
    "wsfast-factory": by_factory,
    "picows": picows,
    "picows-transports": picows_transports,
    "node": node,
}
"""Servers by their names."""
