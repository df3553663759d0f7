"""The servers of a soak: one of each library, whose clients are in another process."""

from __future__ import annotations

import asyncio
import contextlib
import urllib.parse
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp.web
import picows
import websockets.asyncio.server
import websockets.legacy.server
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory

import wsfast
from helpers import libraries
from helpers.peers import accept_upgrade

__all__ = ["COMPRESSIONS", "LIBRARIES", "Arrivals", "open_server"]

Arrived = Callable[[int, Any, Any], None]
"""Called with the number of a client, its connection, and a coroutine function that sends a text by itself."""

COMPRESSIONS: dict[str, dict[str, Any]] = {
    "off": {"compression": None},
    "default": {"compression": "deflate"},
    "no takeover": {
        "extensions": [ServerPerMessageDeflateFactory(server_no_context_takeover=True, client_no_context_takeover=True)]
    },
    "lazy": {"extensions": [wsfast.ServerPerMessageDeflateFactory()]},
    "small window": {"extensions": [wsfast.ServerPerMessageDeflateFactory(server_max_window_bits=9)]},
}
"""Options of the servers of websockets; all others either compress or not."""


def number_in(target: str) -> int:
    """Return the number of a client, which is the query of what it asks for."""
    return int(urllib.parse.urlsplit(target).query)


class Arrivals:
    """Takes the connections that the applications of tests/helpers/libraries.py put into a queue."""

    def __init__(self, arrived: Arrived, send: Any, number_of: Callable[[Any], int]) -> None:
        self._arrived, self._send, self._number_of = arrived, send, number_of

    def put_nowait(self, connection: Any) -> None:
        self._arrived(self._number_of(connection), connection, self._send)

    async def put(self, connection: Any) -> None:
        self.put_nowait(connection)


def _of_scope(connection: Any) -> int:
    return int(connection.scope["query_string"])


@contextlib.asynccontextmanager
async def _of_websockets(serve: Any, arrived: Arrived, listener: Any, compression: str) -> AsyncIterator[None]:
    async def handler(connection: Any, *_: Any) -> None:
        target = connection.path if serve is websockets.legacy.server.serve else connection.request.path
        arrived(number_in(target), connection, libraries.send)
        with contextlib.suppress(websockets.exceptions.ConnectionClosed):
            async for _ in connection:
                pass

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        server = await serve(
            handler, sock=listener, ping_interval=0.7, ping_timeout=20, close_timeout=2, **COMPRESSIONS[compression]
        )
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()


def _under_uvicorn(make_app: Any, protocol: str, send: Any = libraries.send_text) -> Any:
    @contextlib.asynccontextmanager
    async def serve(arrived: Arrived, listener: Any, compression: str) -> AsyncIterator[None]:
        app = make_app(Arrivals(arrived, send, _of_scope))
        async with libraries.serve_app(app, protocol, listener, compress=compression != "off"):
            yield

    return serve


@contextlib.asynccontextmanager
async def _of_aiohttp(arrived: Arrived, listener: Any, compression: str) -> AsyncIterator[None]:
    responses: set[aiohttp.web.WebSocketResponse] = set()

    async def handler(request: aiohttp.web.Request) -> aiohttp.web.WebSocketResponse:
        response = aiohttp.web.WebSocketResponse(compress=compression != "off", timeout=2)
        await response.prepare(request)
        responses.add(response)
        try:
            arrived(int(request.query_string), response, libraries.send_str)
            async for _ in response:
                pass
        finally:
            responses.discard(response)
        return response

    app = aiohttp.web.Application()
    app.router.add_get("/ws", handler)
    runner = aiohttp.web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await aiohttp.web.SockSite(runner, listener).start()
    try:
        yield
    finally:
        await asyncio.gather(*(response.close(code=1001) for response in responses), return_exceptions=True)
        await runner.cleanup()


@contextlib.asynccontextmanager
async def _of_wsproto(arrived: Arrived, listener: Any, compression: str) -> AsyncIterator[None]:
    made: list[libraries.Wsproto] = []

    def make() -> libraries.Wsproto:
        arrivals: Any = Arrivals(arrived, libraries.send_by_wsproto, lambda one: number_in(one.by_itself.target))
        made.append(libraries.Wsproto(arrivals, compress=compression != "off"))
        return made[-1]

    server = await asyncio.get_running_loop().create_server(make, sock=listener)
    try:
        yield
    finally:
        server.close()
        for protocol in made:
            protocol.transport.close()


class _Listener(libraries.Listener):
    """Tells which client it is."""

    def __init__(self, arrived: Arrived, target: str) -> None:
        super().__init__(Arrivals(arrived, libraries.send_by_picows, lambda _: number_in(target)))  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def _of_picows(arrived: Arrived, listener: Any, compression: str) -> AsyncIterator[None]:
    transports: list[Any] = []

    def also_arrived(number: int, transport: Any, send: Any) -> None:
        transports.append(transport)
        arrived(number, transport, send)

    def make(request: picows.WSUpgradeRequest) -> _Listener:
        return _Listener(also_arrived, request.path.decode())

    server = await picows.ws_create_server(make, sock=listener)
    try:
        yield
    finally:
        server.close()
        for transport in transports:
            if not transport.is_disconnected:
                transport.send_close(1001)
                transport.disconnect()


@contextlib.asynccontextmanager
async def _of_sinks(arrived: Arrived, listener: Any, compression: str) -> AsyncIterator[None]:
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        connection = None
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(accept_upgrade(head))
            connection = wsfast.attach(libraries.Writer(writer))
            arrived(number_in(head.split(b" ", 2)[1].decode()), connection, libraries.send_by_sink)
            while await reader.read(65536):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writers.discard(writer)
            writer.transport.abort()
            if connection is not None:  # nobody else knows that it is lost
                await connection.close(1006)

    server = await asyncio.start_server(serve, sock=listener)
    try:
        yield
    finally:
        server.close()
        for writer in writers:
            writer.write(b"\x88\x02\x03\xe9")
            writer.close()


def _websockets(serve: Any) -> Any:
    return lambda arrived, listener, compression: _of_websockets(serve, arrived, listener, compression)


LIBRARIES: dict[str, Any] = {
    "wsfast.serve": _websockets(wsfast.serve),
    "websockets": _websockets(websockets.asyncio.server.serve),
    "legacy": _websockets(websockets.legacy.server.serve),
    "fastapi": _under_uvicorn(libraries.fastapi_app, libraries.WEBSOCKETS_PROTOCOL),
    "starlette-wsproto": _under_uvicorn(libraries.starlette_app, libraries.WSPROTO_PROTOCOL),
    "aiohttp": _of_aiohttp,
    "wsproto": _of_wsproto,
    "picows": _of_picows,
    "sink": _of_sinks,
}


@contextlib.asynccontextmanager
async def open_server(library: str, compression: str, arrived: Arrived, *, small: bool) -> AsyncIterator[int]:
    """Run a server; give its port.

    Args:
        library: One of `LIBRARIES`.
        compression: One of `COMPRESSIONS`.
        arrived: Called with each connection.
        small: Whether connections have small send buffers.
    """
    with contextlib.closing(libraries.listen(small=small)) as listener:
        async with LIBRARIES[library](arrived, listener, compression):
            yield listener.getsockname()[1]
