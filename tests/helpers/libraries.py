"""Servers of several libraries, each with clients of another one, for the tests of adapters."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import inspect
import itertools
import socket
import ssl
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import aiohttp
import aiohttp.web
import fastapi
import litestar
import picows
import quart
import starlette.applications
import starlette.routing
import starlette.websockets
import uvicorn
import websockets.asyncio.client
import websockets.asyncio.server
import wsproto
import wsproto.events
from uvicorn.importer import import_from_string
from wsproto.extensions import PerMessageDeflate

import wsfast
from helpers.peers import TIMEOUT
from wsfast.connections import foreign

SMALL = 4096
"""Bytes of the socket buffers of connections that are to be slow."""

WEBSOCKETS_PROTOCOL = "wsfast.uvicorn:WebSocketsProtocol"
WSPROTO_PROTOCOL = "wsfast.uvicorn:WSProtocol"

UVICORN = tuple(int(part) for part in uvicorn.__version__.split(".")[:2])


async def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Connect:
    """Connects a client when it is called; returns the server's connection and the client."""

    dial: Callable[[], Awaitable[tuple[Any, Any]]]
    shutdown: Callable[[], Awaitable[None]] = nothing
    """Shut down the server as the library does."""

    async def __call__(self) -> tuple[Any, Any]:
        return await self.dial()


Tls: TypeAlias = tuple[ssl.SSLContext, ssl.SSLContext] | None
"""Contexts of the server and of its clients; None to do without TLS."""


@dataclass(frozen=True)
class Library:
    """How to run a server of a library, and what its connections can do."""

    open: Callable[..., contextlib.AbstractAsyncContextManager[Connect]]
    """Open a server, given whether to compress, to have small buffers, TLS, and the seconds between keepalives; give
    what connects a client."""
    send: Callable[[Any, str], Awaitable[None]]
    """Send a text by the library's own means."""
    compresses: bool = True
    """Whether it can compress."""
    ordered: bool = False
    """Whether what it sends by itself never overtakes what was published before."""
    keepalive: bool = True
    """Whether it looks whether clients are there."""
    shutdown: bool = True
    """Whether its servers close their connections when they are shut down."""


def listen(*, small: bool) -> socket.socket:
    """Return a listening socket; what it accepts has a small send buffer if that is to be."""
    sock = socket.socket()
    if small:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    sock.bind(("127.0.0.1", 0))
    sock.listen(64)
    sock.setblocking(False)
    return sock


async def dial(address: Any, *, compress: bool, small: bool, tls: Tls = None, path: str = "/ws") -> Any:
    """Connect a client of websockets."""
    sock = socket.socket()
    if small:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, address)
    options: dict[str, Any] = {"compression": "deflate" if compress else None, "ping_interval": None, "max_size": None}
    if "proxy" in inspect.signature(websockets.asyncio.client.connect).parameters:
        options["proxy"] = None
    if tls is not None:
        options.update(ssl=tls[1], server_hostname="localhost")
    scheme = "ws" if tls is None else "wss"
    return await websockets.asyncio.client.connect(f"{scheme}://localhost{path}", sock=sock, **options)


@contextlib.asynccontextmanager
async def clients(
    arrived: asyncio.Queue[Any],
    address: Any,
    *,
    compress: bool,
    small: bool = False,
    tls: Tls = None,
    negotiates: bool = True,
) -> AsyncIterator[Connect]:
    """Give a function that connects a client of websockets, and returns the server's connection and it."""
    opened: list[Any] = []

    async def connect() -> tuple[Any, Any]:
        client = await dial(address, compress=compress, small=small, tls=tls)
        assert bool(client.protocol.extensions) is (compress and negotiates)
        opened.append(client)
        async with asyncio.timeout(TIMEOUT):
            return await arrived.get(), client

    try:
        yield Connect(connect)
    finally:
        for client in opened:
            client.transport.abort()
        for client in opened:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await client.wait_closed()


# ---- ASGI


def fastapi_app(arrived: asyncio.Queue[Any]) -> Any:
    app = fastapi.FastAPI()
    inner = fastapi.FastAPI()

    @inner.websocket("/ws")
    async def endpoint(websocket: fastapi.WebSocket) -> None:
        await websocket.accept()
        await arrived.put(websocket)
        with contextlib.suppress(fastapi.WebSocketDisconnect):
            while True:
                await websocket.receive_text()

    @app.middleware("http")
    async def middleware(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    app.mount("/", inner)
    return app


def starlette_app(arrived: asyncio.Queue[Any]) -> Any:
    async def endpoint(websocket: starlette.websockets.WebSocket) -> None:
        await websocket.accept()
        await arrived.put(websocket)
        with contextlib.suppress(starlette.websockets.WebSocketDisconnect):
            while True:
                await websocket.receive_text()

    return starlette.applications.Starlette(routes=[starlette.routing.WebSocketRoute("/ws", endpoint)])


def litestar_app(arrived: asyncio.Queue[Any]) -> Any:
    @litestar.websocket("/ws")
    async def endpoint(socket: Any) -> None:
        await socket.accept()
        await arrived.put(socket)
        with contextlib.suppress(litestar.exceptions.WebSocketDisconnect):
            while True:
                await socket.receive_text()

    endpoint.fn.__annotations__["socket"] = litestar.WebSocket
    return litestar.Litestar([endpoint], logging_config=None)


def quart_app(arrived: asyncio.Queue[Any]) -> Any:
    app = quart.Quart(__name__)

    @app.websocket("/ws")
    async def endpoint() -> None:
        await quart.websocket.accept()
        await arrived.put(quart.websocket._get_current_object())  # type: ignore[attr-defined]
        while True:
            await quart.websocket.receive()

    return app


class Impatient:
    """asyncio for uvicorn's server: it looks every 0.1 s whether it is to go on, three times in each of many tests."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    async def sleep(delay: float) -> None:
        await asyncio.sleep(min(delay, 0.002))


uvicorn.server.asyncio = Impatient()  # type: ignore[attr-defined, assignment]


@contextlib.asynccontextmanager
async def serve_app(
    app: Any,
    protocol: str,
    listener: socket.socket,
    *,
    compress: bool,
    tls: Tls = None,
    keepalive: float | None = None,
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Run uvicorn in this event loop; give what shuts it down."""
    named = UVICORN >= (0, 36) or ":" not in protocol
    config = uvicorn.Config(
        app,
        ws=protocol if named else import_from_string(protocol),
        lifespan="off",
        log_level="critical",
        ws_per_message_deflate=compress,
        ws_ping_interval=keepalive,
        ws_ping_timeout=keepalive,
        timeout_graceful_shutdown=1 if keepalive is None else None,
    )
    config.load()
    config.ssl = None if tls is None else tls[0]
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(TIMEOUT):
            while not server.started:
                await asyncio.sleep(0.001)

        async def shut_down() -> None:
            server.should_exit = True
            async with asyncio.timeout(TIMEOUT):
                await asyncio.shield(task)

        yield shut_down
    finally:
        server.should_exit = server.force_exit = True
        await asyncio.wait([task], timeout=TIMEOUT)


def under_uvicorn(make_app: Callable[[asyncio.Queue[Any]], Any], protocol: str = WEBSOCKETS_PROTOCOL) -> Any:
    @contextlib.asynccontextmanager
    async def open_server(
        *, compress: bool, small: bool, tls: Tls = None, keepalive: float | None = None
    ) -> AsyncIterator[Connect]:
        arrived: asyncio.Queue[Any] = asyncio.Queue()
        with contextlib.closing(listen(small=small)) as listener:
            address = listener.getsockname()
            async with (
                serve_app(
                    make_app(arrived), protocol, listener, compress=compress, tls=tls, keepalive=keepalive
                ) as shut_down,
                clients(arrived, address, compress=compress, small=small, tls=tls) as connect,
            ):
                yield Connect(connect.dial, shut_down)

    return open_server


# ---- aiohttp


@contextlib.asynccontextmanager
async def open_aiohttp(
    *, compress: bool, small: bool, tls: Tls = None, keepalive: float | None = None
) -> AsyncIterator[Connect]:
    arrived: asyncio.Queue[Any] = asyncio.Queue()

    async def handler(request: aiohttp.web.Request) -> aiohttp.web.WebSocketResponse:
        response = aiohttp.web.WebSocketResponse(compress=compress, heartbeat=keepalive)
        await response.prepare(request)
        await arrived.put(response)
        async for _ in response:
            pass
        return response

    app = aiohttp.web.Application()
    app.router.add_get("/ws", handler)
    runner = aiohttp.web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    listener = listen(small=small)
    await aiohttp.web.SockSite(runner, listener, ssl_context=None if tls is None else tls[0]).start()
    try:
        async with clients(arrived, listener.getsockname(), compress=compress, small=small, tls=tls) as connect:
            yield Connect(connect.dial, runner.cleanup)
    finally:
        await runner.cleanup()


async def dial_by_aiohttp(
    session: aiohttp.ClientSession, address: Any, *, compress: bool, tls: Tls, keepalive: float | None = None
) -> Any:
    """Connect a client of aiohttp."""
    url = "{}://{}:{}/ws".format("http" if tls is None else "https", *address)
    options: dict[str, Any] = {"heartbeat": keepalive} if tls is None else {"heartbeat": keepalive, "ssl": tls[1]}
    client = await session.ws_connect(url, compress=12 if compress else 0, max_msg_size=0, **options)
    assert bool(client.compress) is compress
    return client


@contextlib.asynccontextmanager
async def open_aiohttp_client(
    *, compress: bool, small: bool, tls: Tls = None, keepalive: float | None = None
) -> AsyncIterator[Connect]:
    """Clients of aiohttp, which broadcast to a server of websockets."""
    arrived: asyncio.Queue[Any] = asyncio.Queue()

    async def handler(connection: Any) -> None:
        await arrived.put(connection)
        await connection.wait_closed()

    listener = listen(small=False)
    if small:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    server = await websockets.asyncio.server.serve(
        handler,
        sock=listener,
        ssl=None if tls is None else tls[0],
        compression="deflate" if compress else None,
        ping_interval=None,
        max_size=None,
    )
    opened: list[Any] = []
    async with aiohttp.ClientSession() as session:

        async def connect() -> tuple[Any, Any]:
            connection = await dial_by_aiohttp(
                session, listener.getsockname(), compress=compress, tls=tls, keepalive=keepalive
            )
            opened.append(connection)
            if small:
                connection.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
            async with asyncio.timeout(TIMEOUT):
                return connection, await arrived.get()

        try:
            yield Connect(connect)
        finally:
            server.close()
            for accepted in list(server.connections):
                accepted.transport.abort()
            for connection in opened:
                await connection.close()


class AiohttpClient:
    """A client of aiohttp that is asked for messages as one of websockets."""

    def __init__(self, websocket: Any) -> None:
        self.get_extra_info = websocket.get_extra_info
        self._websocket = websocket

    async def recv(self) -> str | bytes:
        message = await self._websocket.receive()
        assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY)
        data: str | bytes = message.data
        return data


@contextlib.asynccontextmanager
async def aiohttp_clients(
    arrived: asyncio.Queue[Any], address: Any, *, compress: bool, small: bool = False, tls: Tls = None
) -> AsyncIterator[Connect]:
    """Give a function that connects a client of aiohttp, and returns the server's connection and it."""
    assert not small
    opened: list[Any] = []
    async with aiohttp.ClientSession() as session:

        async def connect() -> tuple[Any, Any]:
            opened.append(await dial_by_aiohttp(session, address, compress=compress, tls=tls))
            async with asyncio.timeout(TIMEOUT):
                return await arrived.get(), AiohttpClient(opened[-1])

        try:
            yield Connect(connect)
        finally:
            for client in opened:
                await client.close()


# ---- wsproto


class Wsproto(asyncio.Protocol):
    """A server made of wsproto by the book."""

    def __init__(self, arrived: asyncio.Queue[Any], *, compress: bool) -> None:
        self.arrived = arrived
        self.extensions = [PerMessageDeflate()] if compress else []
        self.connection = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        self.transport: Any = None
        self.attached: Any = None
        self.target = ""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.connection.receive_data(data)
        for event in self.connection.events():
            if isinstance(event, wsproto.events.Request):
                self.target = event.target
                self.send(wsproto.events.AcceptConnection(extensions=self.extensions))  # type: ignore[arg-type]
                self.attached = wsfast.attach(self.transport, self.connection)
                self.attached.by_itself = self
                self.arrived.put_nowait(self.attached)
            elif isinstance(event, wsproto.events.Ping):
                self.send(event.response())
            elif isinstance(event, wsproto.events.CloseConnection):
                if self.connection.state is wsproto.connection.ConnectionState.REMOTE_CLOSING:
                    self.send(event.response())
                self.transport.close()

    def send(self, event: Any) -> None:
        self.transport.write(self.connection.send(event))


@contextlib.asynccontextmanager
async def open_wsproto(
    *, compress: bool, small: bool, tls: Tls = None, keepalive: float | None = None
) -> AsyncIterator[Connect]:
    arrived: asyncio.Queue[Any] = asyncio.Queue()
    listener = listen(small=small)
    server = await asyncio.get_running_loop().create_server(
        lambda: Wsproto(arrived, compress=compress), sock=listener, ssl=None if tls is None else tls[0]
    )
    try:
        async with clients(arrived, listener.getsockname(), compress=compress, small=small, tls=tls) as connect:
            yield connect
    finally:
        server.close()


async def send_by_wsproto(connection: Any, text: str) -> None:
    connection.by_itself.send(wsproto.events.TextMessage(data=text))


# ---- picows


class Listener(picows.WSListener):
    """Tells what arrives."""

    def __init__(self, arrived: asyncio.Queue[Any]) -> None:
        super().__init__()
        self.arrived = arrived

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self.arrived.put_nowait(transport)

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type == picows.WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()


@contextlib.asynccontextmanager
async def open_picows(
    *, compress: bool, small: bool, tls: Tls = None, keepalive: float | None = None
) -> AsyncIterator[Connect]:
    arrived: asyncio.Queue[Any] = asyncio.Queue()
    listener = listen(small=small)
    options: dict[str, Any] = {}
    if keepalive is not None:
        options = {"auto_ping_idle_timeout": keepalive, "auto_ping_reply_timeout": keepalive, "enable_auto_ping": True}
    server = await picows.ws_create_server(
        lambda request: Listener(arrived), sock=listener, ssl=None if tls is None else tls[0], **options
    )
    try:
        async with clients(
            arrived, listener.getsockname(), compress=compress, small=small, tls=tls, negotiates=False
        ) as connect:
            yield connect
    finally:
        server.close()


async def send_by_picows(connection: Any, text: str) -> None:
    connection.send(picows.WSMsgType.TEXT, text.encode())


# ---- websockets


def of_websockets(serve: Callable[..., Any], clients: Callable[..., Any] = clients) -> Any:
    @contextlib.asynccontextmanager
    async def open_server(
        *, compress: bool, small: bool, tls: Tls = None, keepalive: float | None = None
    ) -> AsyncIterator[Connect]:
        arrived: asyncio.Queue[Any] = asyncio.Queue()

        async def handler(connection: Any, *_: Any) -> None:
            await arrived.put(connection)
            await connection.wait_closed()

        listener = listen(small=small)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            server = await serve(
                handler,
                sock=listener,
                ssl=None if tls is None else tls[0],
                compression="deflate" if compress else None,
                ping_interval=keepalive,
                ping_timeout=keepalive,
            )

        async def shut_down() -> None:
            server.close()
            await server.wait_closed()

        try:
            async with clients(arrived, listener.getsockname(), compress=compress, small=small, tls=tls) as connect:
                yield Connect(connect.dial, shut_down)
        finally:
            server.close()

    return open_server


def serve_legacy(*args: Any, **options: Any) -> Any:
    import websockets.legacy.server

    return websockets.legacy.server.serve(*args, **options)


# ---- Sanic

_names = itertools.count()


@contextlib.asynccontextmanager
async def open_sanic(
    *, compress: bool, small: bool, tls: Tls = None, keepalive: float | None = None
) -> AsyncIterator[Connect]:
    import sanic
    from sanic.server.protocols.websocket_protocol import WebSocketProtocol

    arrived: asyncio.Queue[Any] = asyncio.Queue()
    app: Any = sanic.Sanic(f"test_{next(_names)}", configure_logging=False)
    app.config.update(
        WEBSOCKET_PING_INTERVAL=keepalive, WEBSOCKET_PING_TIMEOUT=keepalive, ACCESS_LOG=False, MOTD=False, TOUCHUP=False
    )

    async def handler(request: Any, websocket: Any) -> None:
        await arrived.put(websocket)
        while True:
            await websocket.recv()

    app.add_websocket_route(handler, "/ws")
    listener = listen(small=small)
    server: Any = await app.create_server(
        sock=listener,
        protocol=WebSocketProtocol,
        return_asyncio_server=True,
        ssl=None if tls is None else tls[0],
    )
    await server.startup()
    try:
        async with clients(
            arrived, listener.getsockname(), compress=compress, small=small, tls=tls, negotiates=False
        ) as connect:
            yield connect
    finally:
        server.close()
        await server.wait_closed()


# ---- Hypercorn


def under_hypercorn(make_app: Callable[[asyncio.Queue[Any]], Any]) -> Any:
    @contextlib.asynccontextmanager
    async def open_server(
        *, compress: bool, small: bool, tls: Tls = None, keepalive: float | None = None
    ) -> AsyncIterator[Connect]:
        import hypercorn.asyncio

        import wsfast.hypercorn

        wsfast.hypercorn.install()
        arrived: asyncio.Queue[Any] = asyncio.Queue()
        listener = listen(small=small)
        address = listener.getsockname()
        config: Any = hypercorn.Config()
        config.bind = [f"fd://{listener.detach()}"]
        config.errorlog = config.accesslog = None
        config.graceful_timeout = 0.1
        config.websocket_ping_interval = keepalive
        if tls is not None:
            config.certfile = config.keyfile = "given"
            config.create_ssl_context = lambda: tls[0]
        ended = asyncio.Event()
        task = asyncio.create_task(hypercorn.asyncio.serve(make_app(arrived), config, shutdown_trigger=ended.wait))

        async def shut_down() -> None:
            ended.set()
            async with asyncio.timeout(TIMEOUT):
                await asyncio.shield(task)

        try:
            async with clients(arrived, address, compress=compress, small=small, tls=tls) as connect:
                yield Connect(connect.dial, shut_down)
        finally:
            await shut_down()

    return open_server


# ---- Tornado


@contextlib.asynccontextmanager
async def open_tornado(
    *, compress: bool, small: bool, tls: Tls = None, keepalive: float | None = None
) -> AsyncIterator[Connect]:
    import tornado.httpserver
    import tornado.web
    import tornado.websocket

    arrived: asyncio.Queue[Any] = asyncio.Queue()

    class Handler(tornado.websocket.WebSocketHandler):
        def get_compression_options(self) -> dict[str, Any] | None:
            return {} if compress else None

        def open(self) -> None:
            arrived.put_nowait(self)

        def on_message(self, message: str | bytes) -> None:
            pass

    app = tornado.web.Application(
        [("/ws", Handler)],
        websocket_ping_interval=keepalive,
        websocket_ping_timeout=keepalive,
        log_function=lambda _: None,
    )
    server = tornado.httpserver.HTTPServer(app, ssl_options=None if tls is None else tls[0])
    listener = listen(small=small)
    server.add_sockets([listener])
    try:
        async with clients(arrived, listener.getsockname(), compress=compress, small=small, tls=tls) as connect:
            yield connect
    finally:
        server.stop()
        await server.close_all_connections()


async def send_by_tornado(connection: Any, text: str) -> None:
    await connection.write_message(text)


# ---- A sink


class Writer:
    """A connection of nobody's: a stream of asyncio, and frames made by hand."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    def writable(self) -> bool:
        return self.writer.transport.get_write_buffer_size() == 0

    def close(self, code: int, reason: str) -> None:
        if code != 1006:
            payload = code.to_bytes(2, "big") + reason.encode()
            self.writer.write(bytes([0x88, len(payload)]) + payload)
        self.writer.close()
        foreign.abort_later(self.writer.transport, asyncio.get_running_loop())


@contextlib.asynccontextmanager
async def open_sink(
    *, compress: bool, small: bool, tls: Tls = None, keepalive: float | None = None
) -> AsyncIterator[Connect]:
    arrived: asyncio.Queue[Any] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from helpers.peers import accept_upgrade

        writer.write(accept_upgrade(await reader.readuntil(b"\r\n\r\n")))
        sink = Writer(writer)
        await arrived.put(wsfast.attach(sink))
        with contextlib.suppress(OSError):
            while await reader.read(65536):
                pass
        writer.transport.abort()

    listener = listen(small=small)
    server = await asyncio.start_server(serve, sock=listener, ssl=None if tls is None else tls[0])
    try:
        async with clients(
            arrived, listener.getsockname(), compress=compress, small=small, tls=tls, negotiates=False
        ) as connect:
            yield connect
    finally:
        server.close()


async def send_by_sink(connection: Any, text: str) -> None:
    connection.transport.write(wsfast.PreparedMessage(text).frame)


async def send_text(connection: Any, text: str) -> None:
    await connection.send_text(text)


async def send_data(connection: Any, text: str) -> None:
    await connection.send_data(text)


async def send_str(connection: Any, text: str) -> None:
    await connection.send_str(text)


async def send(connection: Any, text: str) -> None:
    await connection.send(text)


LIBRARIES: dict[str, Library] = {
    "websockets": Library(of_websockets(websockets.asyncio.server.serve), send),
    "wsfast.serve": Library(of_websockets(wsfast.serve), send, ordered=True),
    "websockets.legacy": Library(of_websockets(serve_legacy), send),
    "fastapi": Library(under_uvicorn(fastapi_app, WEBSOCKETS_PROTOCOL), send_text, ordered=True),
    "fastapi-wsproto": Library(under_uvicorn(fastapi_app, WSPROTO_PROTOCOL), send_text, ordered=True),
    "litestar": Library(under_uvicorn(litestar_app, WEBSOCKETS_PROTOCOL), send_text, ordered=True),
    "quart": Library(under_uvicorn(quart_app, WEBSOCKETS_PROTOCOL), send, ordered=True),
    "aiohttp": Library(open_aiohttp, send_str),
    "aiohttp-client": Library(open_aiohttp_client, send_str, shutdown=False),
    "wsproto": Library(open_wsproto, send_by_wsproto, keepalive=False, shutdown=False),
    "picows": Library(open_picows, send_by_picows, compresses=False, shutdown=False),
    "sink": Library(open_sink, send_by_sink, compresses=False, keepalive=False, shutdown=False),
}
# The group `frameworks` is not installed in scripts/matrix.
if importlib.util.find_spec("sanic") is not None:
    LIBRARIES["sanic"] = Library(open_sanic, send, compresses=False, shutdown=False)
if importlib.util.find_spec("hypercorn") is not None:
    # Since Python 3.12.1, wait_closed() of a server of asyncio waits for the connections. Hypercorn calls it before it
    # cancels their handlers, so it does not end while a client that does not read is connected, with wsfast or without.
    LIBRARIES["hypercorn"] = Library(
        under_hypercorn(fastapi_app), send_text, ordered=True, keepalive=False, shutdown=sys.version_info < (3, 12)
    )
if importlib.util.find_spec("tornado") is not None:
    LIBRARIES["tornado"] = Library(open_tornado, send_by_tornado, shutdown=False)
