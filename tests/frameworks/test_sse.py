"""Event streams: what clients get, octet by octet, from each kind of server, and every way in which a stream ends."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import random
import socket
import sys
import types
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import aiohttp.web
import fastapi
import httpx
import hypercorn.asyncio
import hypercorn.config
import pytest
import starlette.applications
import starlette.routing
import uvicorn
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

import wsfast
import wsfast._keepalive
import wsfast.sse
from helpers.chromium import REQUIRED, find_chromium, open_page
from helpers.fixtures import Run
from helpers.libraries import SMALL, WEBSOCKETS_PROTOCOL, dial, listen
from helpers.peers import TIMEOUT, Peer, until
from wsfast._encoding.events import KEEPALIVE
from wsfast.connections import events, foreign
from wsfast.sse import Event, EventSource

UNBOUNDED = wsfast.Disconnect(max_messages=None, max_bytes=None)

# ---- Servers


@dataclass
class Server:
    """A server in this event loop whose path /events is an event source."""

    address: Any
    shut_down: Callable[[], Awaitable[None]]


Make = Callable[[], EventSource]


class Plain(BaseHTTPMiddleware):
    """Middleware that passes on what it gets, by way of tasks and queues."""

    async def dispatch(self, request: Any, call_next: Any) -> Any:
        return await call_next(request)


def fastapi_app(make: Make, *middleware: Any) -> Any:
    app = fastapi.FastAPI(middleware=list(middleware))

    @app.get("/events")
    async def endpoint() -> EventSource:
        return make()

    @app.get("/")
    async def page() -> fastapi.Response:
        return fastapi.responses.HTMLResponse("<!doctype html><link rel=icon href=data:,><title>events</title>")

    @app.websocket("/ws")
    async def socket(websocket: fastapi.WebSocket) -> None:
        await websocket.accept()
        app.state.subscribe(websocket)
        with contextlib.suppress(fastapi.WebSocketDisconnect):
            while True:
                await websocket.receive_text()

    return app


def starlette_app(make: Make, *middleware: Any) -> Any:
    async def endpoint(request: Any) -> EventSource:
        return make()

    return starlette.applications.Starlette(
        routes=[starlette.routing.Route("/events", endpoint)], middleware=list(middleware)
    )


@contextlib.asynccontextmanager
async def under_uvicorn(app: Any, *, small: bool = False, tls: Any = None, **options: Any) -> AsyncIterator[Server]:
    config = uvicorn.Config(app, ws=WEBSOCKETS_PROTOCOL, lifespan="off", log_level="critical", **options)
    config.load()
    config.ssl = tls
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    with contextlib.closing(listen(small=small)) as listener:
        address = listener.getsockname()
        task = asyncio.create_task(server.serve(sockets=[listener]))

        async def shut_down() -> None:
            server.should_exit = True
            async with asyncio.timeout(TIMEOUT):
                await asyncio.shield(task)

        try:
            await until(lambda: server.started or task.done(), "uvicorn")
            yield Server(address, shut_down)
        finally:
            server.should_exit = server.force_exit = True
            async with asyncio.timeout(TIMEOUT):
                await task


@contextlib.asynccontextmanager
async def under_aiohttp(make: Make, *, small: bool = False, **_: Any) -> AsyncIterator[Server]:
    async def handler(request: aiohttp.web.Request) -> Any:
        return await make().respond(request)

    app = aiohttp.web.Application()
    app.router.add_get("/events", handler)
    runner = aiohttp.web.AppRunner(app, access_log=None, shutdown_timeout=TIMEOUT)
    await runner.setup()
    listener = listen(small=small)
    await aiohttp.web.SockSite(runner, listener).start()
    try:
        yield Server(listener.getsockname(), runner.cleanup)
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def under_hypercorn(make: Make, *, small: bool = False, **_: Any) -> AsyncIterator[Server]:
    config = hypercorn.config.Config()
    config.loglevel = "critical"
    leaving = asyncio.Event()
    with contextlib.closing(listen(small=small)) as listener:
        address = listener.getsockname()
        config.bind = [f"fd://{listener.dup().detach()}"]
        config.graceful_timeout = 0.1
        app = fastapi_app(make)
        task = asyncio.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=leaving.wait))

        async def shut_down() -> None:
            leaving.set()
            async with asyncio.timeout(TIMEOUT):
                await asyncio.shield(task)

        try:
            yield Server(address, shut_down)
        finally:
            await shut_down()


Open = Callable[..., contextlib.AbstractAsyncContextManager[Server]]

WAYS: dict[str, Open] = {
    "fastapi": lambda make, **options: under_uvicorn(fastapi_app(make), http="httptools", **options),
    "starlette-h11": lambda make, **options: under_uvicorn(starlette_app(make), http="h11", **options),
    "middleware": lambda make, **options: under_uvicorn(fastapi_app(make, Middleware(Plain)), **options),
    "aiohttp": under_aiohttp,
    "hypercorn": under_hypercorn,
}
DIRECT = ("fastapi", "starlette-h11", "aiohttp")
QUEUED = ("middleware", "hypercorn")

each_way = pytest.mark.parametrize("way", WAYS)
each_direct_way = pytest.mark.parametrize("way", DIRECT)


# ---- Clients

REQUEST = b"GET /events HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n"


async def connect(server: Server, *, small: bool = False, request: bytes = REQUEST) -> Peer:
    """Connect a client that reads when it is told to, and has read the head of the response."""
    sock = socket.socket()
    if small:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, server.address)
    peer = Peer(sock)
    await peer.send(request)
    head = await peer.read_head()
    assert head.startswith(b"HTTP/1.1 200 "), head
    assert b"\r\ncontent-type: text/event-stream; charset=utf-8\r\n" in head.lower() + b"\r\n"
    return peer


def chunks_of(stream: bytes) -> tuple[list[bytes], bool]:
    """Return the chunks of a body, and whether the last one, which ends it, is there. Anything else is an error."""
    chunks: list[bytes] = []
    while stream:
        line, found, rest = stream.partition(b"\r\n")
        size = int(line, 16) if found else 0
        if not found or len(rest) < size + 2:
            return chunks, False
        assert line == b"%x" % size
        assert rest[size : size + 2] == b"\r\n"
        if size == 0:
            assert rest[2:] == b""
            return chunks, True
        chunks.append(rest[:size])
        stream = rest[size + 2 :]
    return chunks, False


def events_of(peer: Peer) -> list[str]:
    """Return the data of the whole events that a client has read, comments left out."""
    body = b"".join(chunks_of(bytes(peer.received))[0]).decode()
    found = []
    for event in body.split("\n\n")[:-1]:
        data = [line.removeprefix("data:").removeprefix(" ") for line in event.split("\n") if line.startswith("data:")]
        found += ["\n".join(data)] if data else []
    return found


async def read_events(peer: Peer, count: int) -> list[str]:
    async with asyncio.timeout(TIMEOUT):
        while len(found := events_of(peer)) < count:
            assert not peer.ended, bytes(peer.received)[-1000:]
            await peer.read_some()
    return found


def text(number: int, size: int) -> str:
    return f"{number:06d} " + random.Random(number).randbytes(size // 2).hex()


@pytest.fixture
def play(run: Run, core: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a scenario with a server of one kind, a hub, and the streams in the order in which they were opened."""
    monkeypatch.setattr(foreign, "CLOSING_INTERVAL", 0.02)  # for aiohttp, which does not tell

    async def main(way: str, act: Any, hub: wsfast.Hub, options: dict[str, Any]) -> None:
        streams: list[Any] = []
        async with WAYS[way](lambda: EventSource(hub, "news", on_open=streams.append, **options), small=True) as server:
            before = asyncio.all_tasks()
            peers: list[Peer] = []

            async def join() -> Peer:
                peers.append(await connect(server, small=True))
                await until(lambda: len(streams) == len(peers), "the stream")
                return peers[-1]

            try:
                await act(join, hub, streams, server)
            finally:
                for peer in peers:
                    peer.close()
            await until(lambda: hub.stats().subscribers == 0, "the streams to end")
            if way != "hypercorn":  # which keeps tasks of its own
                await until(lambda: asyncio.all_tasks() <= before, "tasks to end")
            assert not wsfast._keepalive.Keepalive.of(asyncio.get_running_loop(), 15.0)._streams

    def play(way: str, act: Any, *, slow: Any = None, **options: Any) -> None:
        run(lambda: main(way, act, wsfast.Hub(slow=slow), options))

    return play


# ---- Coming back


def ids_of(peer: Peer) -> list[tuple[str, str | None]]:
    """Return the id and the data of each whole event that a client has read; no data if there is only an id."""
    found = []
    for event in b"".join(chunks_of(bytes(peer.received))[0]).decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in event.split("\n") if not line.startswith(":"))
        if "id" in fields:
            found.append((fields["id"], fields.get("data")))
    return found


@pytest.mark.parametrize("topics", [("news",), ("news", "prices.>")], ids=["topic", "topics"])
@each_way
def test_last_event_id(run: Run, core: Any, monkeypatch: pytest.MonkeyPatch, way: str, topics: tuple[str, ...]) -> None:
    """A client that comes back ten times with the last id gets each event once, whatever was published meanwhile."""
    monkeypatch.setattr(foreign, "CLOSING_INTERVAL", 0.02)

    async def main() -> None:
        hub = wsfast.Hub(slow=UNBOUNDED, history=1000)
        streams: list[Any] = []
        log: list[str] = []

        def publish(count: int) -> None:
            for _ in range(count):
                log.append(f"{len(log)}")
                hub.publish(["news", "prices.a", "prices.b"][len(log) % 3] if len(topics) > 1 else "news", log[-1])
            hub.publish("other", "not for it")
            hub.send("nobody", "not for it")

        async with WAYS[way](lambda: EventSource(hub, *topics, on_open=streams.append)) as server:
            last = ""
            got: list[str] = []
            for turn in range(11):
                head = REQUEST[:-2] + (b"Last-Event-ID: %s\r\n\r\n" % last.encode() if last else b"\r\n")
                peer = await connect(server, request=head)
                async with asyncio.timeout(TIMEOUT):
                    missing = len(log) - len(got)
                    while len(ids_of(peer)) < missing + 1:  # and the id alone
                        await peer.read_some()
                    assert streams[-1].recovered is (None if turn == 0 else True)
                    assert [data for _, data in ids_of(peer)] == [*log[len(got) :], None]
                    publish(turn)
                    while len(ids_of(peer)) < missing + 1 + turn // 2:  # the rest is lost on its way
                        await peer.read_some()
                events = ids_of(peer)[: missing + 1 + turn // 2]
                last = events[-1][0]
                got += [data for _, data in events if data is not None]
                peer.close()
                publish(turn)
            assert got == log[: len(got)]
            assert len(got) > 50
            for wrong in (b"7", b"0123456789abcdef-5", last[:17].encode() + b"9999", "\u00e9".encode(), b"\xe9"):
                peer = await connect(server, request=REQUEST[:-2] + b"Last-Event-ID: %b\r\n\r\n" % wrong)
                async with asyncio.timeout(TIMEOUT):
                    while len(ids_of(peer)) < len(log) + 1:
                        await peer.read_some()
                assert streams[-1].recovered is False
                peer.close()
            await until(lambda: len(hub) == 0, "the streams to end")

    run(main)


# ---- What is sent

SAMPLES: list[tuple[Any, bytes]] = [
    ("hello", b"data: hello\n\n"),
    ('{"price": 71.25}', b'data: {"price": 71.25}\n\n'),
    ("", b"data: \n\n"),
    (" two\nlines", b"data:  two\ndata: lines\n\n"),
    ("a\r\nb\rc\n", b"data: a\ndata: b\ndata: c\ndata: \n\n"),
    ("gr\u00fc\u00dfe \0", "data: gr\u00fc\u00dfe \0\n\n".encode()),
    (b'{"bytes": true}', b'data: {"bytes": true}\n\n'),
    (b"\xff\x00", b":\n\n"),
    (Event("x", event="tick", id="42", retry=5), b"event: tick\nid: 42\nretry: 5\ndata: x\n\n"),
    (Event("", id=""), b"id: \ndata: \n\n"),
    ("x" * 100_000, b"data: " + b"x" * 100_000 + b"\n\n"),
    ("y" * 20, b"data: " + b"y" * 20 + b"\n\n"),
]


def test_tags(run: Run) -> None:
    """A response with tags has the messages that have one of them, of the history and those missed as well."""

    async def main() -> None:
        hub = wsfast.Hub(slow=UNBOUNDED, history=10)
        for number in range(4):
            hub.publish("news", f"{number}", tags={"eu"} if number % 2 else {"us"})
        sources: Iterator[Any] = iter([hub.channel("news"), hub])

        def respond() -> EventSource:
            source = next(sources)
            return EventSource(source, *([] if source is not hub else ["news"]), tags={"eu"})

        async with WAYS["aiohttp"](respond) as server:
            last = ""
            for expected in (["1", "3", None, "5"], ["7", None, "9"]):
                head = REQUEST[:-2] + (b"Last-Event-ID: %s\r\n\r\n" % last.encode() if last else b"\r\n")
                peer = await connect(server, request=head)
                await until(lambda: len(hub) == 1)
                start = hub.messages
                for number in (start, start + 1):
                    hub.publish("news", f"{number}", tags={"eu"} if number % 2 else {"us"})
                async with asyncio.timeout(TIMEOUT):
                    while len(ids_of(peer)) < len(expected):
                        await peer.read_some()
                assert [data for _, data in ids_of(peer)] == expected
                last = ids_of(peer)[-1][0]
                peer.close()
                await until(lambda: len(hub) == 0)
                for number in (start + 2, start + 3):
                    hub.publish("news", f"{number}", tags={"eu"} if number % 2 else {"us"})

    run(main)


@each_way
def test_octets(play: Any, way: str) -> None:
    """Each message is one event; written directly, it is one chunk as the server itself would have made it."""

    async def act(join: Any, hub: wsfast.Hub, streams: Any, server: Any) -> None:
        peer = await join()
        for message, _ in SAMPLES:
            hub.publish("news", message)
            if len(message if isinstance(message, (str, bytes)) else message.data) % 2:
                hub.flush()
        bodies = [b"retry: 3000\n\n", *(event for _, event in SAMPLES)]
        await read_events(peer, len(SAMPLES) - 1)
        streams[0].finish()
        await peer.read_to_end()
        chunks, complete = chunks_of(bytes(peer.received))
        assert complete
        assert b"".join(chunks) == b"".join(bodies)
        if way in DIRECT:
            assert chunks == bodies
        assert type(streams[0]) is events.QueuedEventStream if way in QUEUED else streams[0].layout() is not None

    play(way, act, slow=UNBOUNDED, retry=3000)


@each_direct_way
def test_writes_are_direct(play: Any, core: Any, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """The core itself writes to sockets that have room."""
    batches: list[Any] = []

    class Batch(core.Batch):  # type: ignore[misc]
        def send(self) -> None:
            super().send()
            batches.append(self)

    values = {key: getattr(core, key) for key in dir(core) if not key.startswith("_")}
    monkeypatch.setattr(sys.modules["wsfast._delivery"], "core", types.SimpleNamespace(**{**values, "Batch": Batch}))

    async def act(join: Any, hub: wsfast.Hub, streams: Any, server: Any) -> None:
        peers = [await join() for _ in range(3)]
        for message in ("first", "second"):
            batches.clear()
            assert wsfast.broadcast(streams, message) == (3, 0, 0, 0)
        assert batches[-1].sent == (3 if core.sends_directly else 0)
        for peer in peers:
            assert await read_events(peer, 2) == ["first", "second"]

    play(way, act)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_together_with_websockets(run: Run, core: Any, http: str, compress: bool) -> None:
    """Clients of both kinds get the same messages of a hub, in the same order."""

    async def main() -> None:
        hub = wsfast.Hub(slow=UNBOUNDED, history=2)
        app = fastapi_app(lambda: EventSource(hub, "news"))
        app.state.subscribe = lambda websocket: hub.subscribe(websocket, "news")
        async with under_uvicorn(app, http=http, ws_per_message_deflate=compress) as server:
            hub.publish("news", "earlier 1")
            hub.publish("news", Event("earlier 2", id="2"))
            peers = [await connect(server) for _ in range(3)]
            clients = [await dial(server.address, compress=compress, small=False) for _ in range(3)]
            await until(lambda: len(hub) == 6, "the clients")
            messages = [text(number, random.Random(number).choice([10, 100, 3000])) for number in range(100)]
            for number, message in enumerate(messages):
                hub.publish("news", Event(message, id=str(number)) if number % 3 == 0 else message)
                if number % 4 == 0:
                    await asyncio.sleep(0)
            expected = ["earlier 1", "earlier 2", *messages]
            for client in clients:
                async with asyncio.timeout(TIMEOUT):
                    assert [await client.recv() for _ in expected] == expected
            for peer in peers:
                assert await read_events(peer, len(expected)) == expected
            stats = hub.stats()
            assert (stats.published, stats.sent, stats.queued) == (615, 615, 0)  # with an id for each stream
            for peer in peers:
                peer.close()
            for client in clients:
                await client.close()
            await until(lambda: len(hub) == 0, "the clients to be forgotten")

    run(main)


@each_way
def test_slow_readers_lose_nothing(play: Any, way: str) -> None:
    """Fast and slow readers get everything in order, with what is sent to one alone, and comments in between."""

    async def act(join: Any, hub: wsfast.Hub, streams: Any, server: Any) -> None:
        slow, fast = await join(), await join()
        messages = [text(number, 3000) for number in range(150)]
        reading = asyncio.create_task(read_events(fast, 151))
        for number, message in enumerate(messages):
            hub.publish("news", message)
            if number % 3 == 0:
                hub.flush()
            if number % 10 == 0:
                wsfast.broadcast([stream for stream in streams if stream.idle], KEEPALIVE)
            if number == 75:
                hub.flush()
                wsfast.broadcast([streams[1]], "private")
            if number % 20 == 0:
                await asyncio.sleep(0)
        got = await reading
        assert [one for one in got if one != "private"] == messages
        assert got.count("private") == 1
        assert await read_events(slow, 150) == messages
        await until(lambda: hub.stats().queued == 0)
        assert (hub.stats().published, hub.stats().sent) == (300, 300)

    play(way, act, slow=UNBOUNDED)


def test_over_tls(run: Run, core: Any, tls: Any) -> None:
    """The same over TLS, to a client of aiohttp."""

    async def main() -> None:
        hub = wsfast.Hub(slow=UNBOUNDED)
        app = fastapi_app(lambda: EventSource(hub, "news"))
        async with under_uvicorn(app, tls=tls[0]) as server, aiohttp.ClientSession() as session:
            url = f"https://localhost:{server.address[1]}/events"
            async with session.get(url, ssl=tls[1], timeout=aiohttp.ClientTimeout(TIMEOUT)) as response:
                await until(lambda: len(hub) == 1)
                messages = [text(number, 3000) for number in range(50)]
                for message in messages:
                    hub.publish("news", message)
                    hub.flush()
                lines = []
                async for line in response.content:
                    lines += [line.decode().removeprefix("data: ").strip()] if line.startswith(b"data") else []
                    if len(lines) == len(messages):
                        break
                assert lines == messages
            await until(lambda: len(hub) == 0)

    run(main)


def test_httpx(run: Run) -> None:
    """httpx, which reads the response by lines, gets everything until it ends."""

    async def main() -> None:
        hub = wsfast.Hub()
        streams: list[Any] = []
        app = starlette_app(lambda: EventSource(hub.channel("news"), on_open=streams.append))
        async with (
            under_uvicorn(app) as server,
            httpx.AsyncClient(trust_env=False, timeout=TIMEOUT) as client,
            client.stream("GET", "http://{}:{}/events".format(*server.address)) as response,
        ):
            await until(lambda: streams)
            for number in range(10):
                hub.publish("news", f"{number}\nand more")
            streams[0].finish()
            lines = [line async for line in response.aiter_lines()]
            expected = [(f"data: {number}", "data: and more", "") for number in range(10)]
            assert lines == [":", "", *(line for event in expected for line in event)]
            assert response.headers["cache-control"] == "no-cache"

    run(main)


MIDDLEWARE: dict[str, tuple[list[Middleware], bool]] = {
    "none": ([], True),
    "cors": ([Middleware(CORSMiddleware, allow_origins=["*"])], True),
    "gzip": ([Middleware(GZipMiddleware, minimum_size=1)], True),
    "base": ([Middleware(Plain)], False),
    "several": ([Middleware(GZipMiddleware), Middleware(CORSMiddleware, allow_origins=["*"])], True),
    "several with base": ([Middleware(CORSMiddleware, allow_origins=["*"]), Middleware(Plain)], False),
}


@pytest.mark.parametrize("name", MIDDLEWARE)
def test_middleware(run: Run, name: str) -> None:
    """Middleware that changes no body is passed by; any other sees each part of it."""
    middleware, direct = MIDDLEWARE[name]

    async def main() -> None:
        channel = wsfast.Channel()
        streams: list[Any] = []
        request = REQUEST.replace(b"\r\n\r\n", b"\r\nOrigin: https://example.org\r\n\r\n")
        async with under_uvicorn(
            fastapi_app(lambda: EventSource(channel, on_open=streams.append), *middleware)
        ) as server:
            peer = await connect(server, request=request)
            await until(lambda: streams)
            assert (streams[0].layout() is not None) is direct
            for number in range(5):
                channel.publish(str(number))
            assert await read_events(peer, 5) == list("01234")
            peer.close()
            await until(lambda: len(channel) == 0)

    run(main)


def test_middleware_that_changes_the_body(run: Run) -> None:
    """Pure ASGI middleware that is not known sees each part of the body."""

    class Shouting:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def shout(message: Any) -> None:
                if message["type"] == "http.response.body":
                    message["body"] = message["body"].upper()
                await send(message)

            await self.app(scope, receive, shout)

    async def main() -> None:
        channel = wsfast.Channel()
        async with under_uvicorn(starlette_app(lambda: EventSource(channel), Middleware(Shouting))) as server:
            peer = await connect(server)
            await until(lambda: len(channel) == 1)
            channel.publish("hello")
            channel.publish("you")
            await peer.read(len(b"3\r\n:\n\n\r\n") + len(b"DATA: HELLO\n\nDATA: YOU\n\n"))
            assert b"".join(chunks_of(bytes(peer.received))[0]) == b":\n\nDATA: HELLO\n\nDATA: YOU\n\n"
            peer.close()

    run(main)


@pytest.mark.parametrize("way", ["fastapi", "middleware", "aiohttp"])
def test_keepalive(play: Any, way: str) -> None:
    """Streams at which nothing is published get comments, by one timer for all."""

    async def act(join: Any, hub: wsfast.Hub, streams: Any, server: Any) -> None:
        peers = [await join() for _ in range(3)]
        assert len(wsfast._keepalive.Keepalive.of(asyncio.get_running_loop(), 0.01)._streams) == 3
        for peer in peers:
            async with asyncio.timeout(TIMEOUT):
                while b"".join(chunks_of(bytes(peer.received))[0]).count(b":\n\n") < 5:
                    await peer.read_some()
        hub.publish("news", "news")
        for peer in peers:
            assert await read_events(peer, 1) == ["news"]

    play(way, act, keepalive=0.01)


# ---- How it ends


@each_way
def test_clients_leave(play: Any, way: str) -> None:
    """The subscription of a client that leaves ends, and so does its response; others go on."""

    async def act(join: Any, hub: wsfast.Hub, streams: Any, server: Any) -> None:
        leaving, resetting, staying = await join(), await join(), await join()
        hub.publish("news", "first")
        for peer in (leaving, resetting, staying):
            assert await read_events(peer, 1) == ["first"]
        leaving.close()
        resetting.reset()
        await until(lambda: len(hub) == 1, "those that have left to be forgotten")
        hub.publish("news", "second")
        assert await read_events(staying, 2) == ["first", "second"]
        assert wsfast.broadcast(streams, "third").skipped == 2
        with pytest.raises(RuntimeError, match="not open"):
            hub.subscribe(streams[0], "more")

    play(way, act)


@each_way
def test_policy_ends_responses(play: Any, way: str) -> None:
    """A client that does not keep up has its response end as it should, once it reads again."""

    async def act(join: Any, hub: wsfast.Hub, streams: Any, server: Any) -> None:
        peer = await join()
        while len(hub):
            hub.publish("news", text(hub.messages, 3000))
            hub.flush()
            await asyncio.sleep(0)
        assert hub.stats().disconnected == 1
        await peer.read_to_end()
        assert chunks_of(bytes(peer.received))[1]
        got = events_of(peer)
        assert got == [text(number, 3000) for number in range(len(got))]

    play(way, act, slow=wsfast.Disconnect(max_messages=5))


@pytest.mark.parametrize("way", [*DIRECT, "middleware"])
def test_stalled_clients_are_gone(play: Any, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """A client that never reads again hurts nobody, and is given up after a while."""
    monkeypatch.setattr(foreign, "CLOSE_TIMEOUT", 0.05)

    async def act(join: Any, hub: wsfast.Hub, streams: Any, server: Any) -> None:
        await join()
        witness = await join()
        published = 0
        while len(hub) == 2:
            hub.publish("news", text(published, 3000))
            published += 1
            assert (await read_events(witness, published))[-1] == text(published - 1, 3000)
        assert hub.stats().disconnected == 1
        await until(lambda: streams[0].transport.is_closing(), "the connection to be aborted")
        hub.publish("news", "afterwards")
        got = await read_events(witness, published + 1)
        assert got == [*(text(number, 3000) for number in range(published)), "afterwards"]

    play(way, act, slow=wsfast.Disconnect(max_messages=5))


@each_direct_way
def test_shutdown(play: Any, way: str) -> None:
    """When the server is shut down, responses end as they should, after what was published, and it does not wait."""

    async def act(join: Any, hub: wsfast.Hub, streams: Any, server: Any) -> None:
        peers = [await join() for _ in range(3)]
        hub.publish("news", "first")
        ending = asyncio.create_task(server.shut_down())
        hub.publish("news", "last")
        for peer in peers:
            await peer.read_to_end()
            assert events_of(peer) == ["first", "last"]
            assert chunks_of(bytes(peer.received))[1]
        await ending
        assert len(hub) == 0

    play(way, act)


@each_way
def test_drain(play: Any, way: str) -> None:
    """A hub that is drained ends responses as they should end, after what was published, and refuses new ones."""

    async def act(join: Any, hub: wsfast.Hub, streams: Any, server: Any) -> None:
        peers = [await join() for _ in range(3)]
        hub.publish("news", "first")
        draining = asyncio.create_task(hub.drain(2.0, jitter=False))
        for peer in peers:
            await peer.read_to_end()
            found = events_of(peer)
            assert found == ["first", "next", "next"][: len(found)]
            assert chunks_of(bytes(peer.received))[1]
            hub.publish("news", "next")
        assert [len(events_of(peer)) for peer in peers] == [1, 2, 3]
        async with asyncio.timeout(TIMEOUT):
            assert await draining == (3, 0)

    play(way, act)


@each_way
def test_drain_with_a_stalled_client(play: Any, way: str) -> None:
    """A client that does not read is gone at the deadline."""

    async def act(join: Any, hub: wsfast.Hub, streams: Any, server: Any) -> None:
        await join()
        while not hub.stats().queued:
            hub.publish("news", text(0, 30_000))
            await asyncio.sleep(0)
        async with asyncio.timeout(TIMEOUT):
            assert await hub.drain(0.5) == (0, 1)
        assert len(hub) == 0

    play(way, act, slow=UNBOUNDED)


def test_shutdown_with_a_stalled_client(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not read does not keep the server from ending."""
    monkeypatch.setattr(foreign, "CLOSE_TIMEOUT", 0.05)

    async def act(join: Any, hub: wsfast.Hub, streams: Any, server: Any) -> None:
        await join()
        while not hub.stats().queued:
            hub.publish("news", text(0, 30_000))
            hub.flush()
        await server.shut_down()
        assert len(hub) == 0

    play("fastapi", act, slow=UNBOUNDED)


def test_cancellation(run: Run) -> None:
    """A response whose task is cancelled, as uvicorn does in the end, ends as it should after what was published."""

    async def main() -> None:
        channel = wsfast.Channel()
        tasks: list[Any] = []

        def make() -> EventSource:
            tasks.append(asyncio.current_task())
            return EventSource(channel)

        async with under_uvicorn(starlette_app(make)) as server:
            peer = await connect(server)
            await until(lambda: len(channel) == 1)
            channel.publish("last")
            tasks[0].cancel()
            await peer.read_to_end()
            assert chunks_of(bytes(peer.received)) == ([b":\n\n", b"data: last\n\n"], True)
            peer.close()
            await until(lambda: len(channel) == 0)

    run(main)


def test_errors_of_the_application(run: Run) -> None:
    """If on_open raises, the client sees that the response is not complete."""

    async def main() -> None:
        channel = wsfast.Channel()

        def fail(stream: Any) -> None:
            raise LookupError(stream)

        async with under_uvicorn(starlette_app(lambda: EventSource(channel, on_open=fail))) as server:
            peer = await connect(server)
            await peer.read_to_end()
            assert chunks_of(bytes(peer.received)) == ([b":\n\n"], False)
            peer.close()
            await until(lambda: len(channel) == 0)

    run(main)


@pytest.mark.parametrize("way", ["fastapi", "aiohttp"])
def test_head(run: Run, way: str) -> None:
    """A request for the head alone gets that, and is not subscribed."""

    async def main() -> None:
        channel = wsfast.Channel()
        called: list[str] = []
        opening: Any = WAYS["aiohttp"](lambda: EventSource(channel)) if way == "aiohttp" else None

        async def background() -> None:
            called.append("background")

        if opening is None:
            opening = under_uvicorn(starlette_app(lambda: EventSource(channel, background=background)))
        async with opening as server:
            peer = await connect(server, request=REQUEST.replace(b"GET", b"HEAD"))
            assert not peer.received
            peer.close()
        assert called == ([] if way == "aiohttp" else ["background"])
        assert not channel.stats().published

    run(main)


def test_too_much_waits_in_a_queue(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """broadcast() gives up a client for which too much waits in the queue."""
    monkeypatch.setattr(events, "MAX_BUFFERED", 1_000_000)

    async def act(join: Any, hub: wsfast.Hub, streams: Any, server: Any) -> None:
        await join()
        deliveries = [wsfast.broadcast(streams, "x" * 400_000) for _ in range(4)]
        assert deliveries[:2] == [(0, 1, 0, 0)] * 2 or deliveries[:2] == [(1, 0, 0, 0)] * 2
        assert deliveries[3].skipped == 1
        await until(lambda: len(hub) == 0)

    play("middleware", act)


# ---- Users, hubs, browsers


def test_users(run: Run) -> None:
    """A response can be registered as a user's, with topics or without."""

    async def main() -> None:
        hub = wsfast.Hub()
        async with under_uvicorn(fastapi_app(lambda: EventSource(hub, user="ann"))) as server:
            peer = await connect(server)
            await until(lambda: hub.users() == ["ann"])
            assert hub.send("ann", "for Ann") == 1
            assert await read_events(peer, 1) == ["for Ann"]
            peer.close()
            await until(lambda: hub.users() == [])

    run(main)


def test_test_client() -> None:
    """Starlette's TestClient gets the whole response once it has ended."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Starlette's, about the HTTP client that is installed
        from starlette.testclient import TestClient
    channel = wsfast.Channel()

    def on_open(stream: Any) -> None:
        channel.publish("hello")
        wsfast.broadcast([stream], "welcome")
        asyncio.get_running_loop().call_soon(stream.finish)

    with TestClient(fastapi_app(lambda: EventSource(channel, on_open=on_open))) as client:
        response = client.get("/events")
    assert response.text in (":\n\ndata: hello\n\ndata: welcome\n\n", ":\n\ndata: welcome\n\ndata: hello\n\n")


SCRIPT = """
window.got = []; window.opened = 0;
window.source = new EventSource("/events");
source.onopen = () => { opened += 1 };
source.onmessage = event => got.push(["message", event.data, event.lastEventId]);
source.addEventListener("tick", event => got.push(["tick", event.data, event.lastEventId]));
"""


def test_browser() -> None:
    """A browser's EventSource gets data, types and ids, and reconnects with the last id when the response ends."""
    chromium = find_chromium()
    if chromium is None:
        (pytest.fail if REQUIRED else pytest.skip)("there is no Chromium")

    async def main() -> None:
        hub = wsfast.Hub()
        streams: list[Any] = []
        ids: list[Any] = []
        app = fastapi.FastAPI()

        @app.get("/events")
        async def endpoint(request: fastapi.Request) -> EventSource:
            ids.append(request.headers.get("last-event-id"))
            return EventSource(hub, "news", retry=10, on_open=streams.append)

        app.mount("/", fastapi_app(lambda: EventSource(hub, "news")))
        async with under_uvicorn(app) as server, open_page(chromium) as page:
            await page.go("http://{}:{}/".format(*server.address))
            await page.evaluate(SCRIPT)
            await page.until("opened === 1")
            hub.publish("news", "one")
            hub.publish("news", Event("two\nlines", event="tick", id="7"))
            hub.publish("news", b"\xff")
            hub.publish("news", "gr\u00fc\u00dfe")
            expected = [["message", "one", ""], ["tick", "two\nlines", "7"], ["message", "gr\u00fc\u00dfe", "7"]]
            await page.until("got.length === 3")
            assert await page.evaluate("got") == expected
            await until(lambda: len(streams) == 1)
            streams[0].finish()
            await page.until("opened === 2")
            hub.publish("news", "again")
            await page.until("got.length === 4")
            assert await page.evaluate("got[3]") == ["message", "again", "7"]
            assert ids == [None, "7"]
            await page.evaluate("source.close()")
            await until(lambda: len(hub) == 0)
            assert page.complaints == []

    asyncio.run(main())


# ---- Values


def test_browser_that_comes_back() -> None:
    """A browser's EventSource that reconnects gets what it missed, even if it had got nothing before."""
    chromium = find_chromium()
    if chromium is None:
        (pytest.fail if REQUIRED else pytest.skip)("there is no Chromium")

    async def main() -> None:
        hub = wsfast.Hub(history=100)
        streams: list[Any] = []
        app = fastapi_app(lambda: EventSource(hub, "news", "prices.*", retry=50, on_open=streams.append))
        async with under_uvicorn(app) as server, open_page(chromium) as page:
            await page.go("http://{}:{}/".format(*server.address))
            await page.evaluate(SCRIPT)
            for turn in range(5):
                await page.until(f"opened === {turn + 1}")
                await until(lambda turn=turn: len(streams) == turn + 1)  # type: ignore[misc]
                if turn % 2:
                    hub.publish("news", f"{turn} seen")
                    await page.until(f"got.at(-1)[1] === '{turn} seen'")
                streams[-1].finish()
                hub.publish("news", f"{turn} first")
                hub.publish("prices.a", f"{turn} second")
            await page.until("got.at(-1)[1] === '4 second'")
            expected = [
                f"{turn} {what}"
                for turn in range(5)
                for what in ("seen", "first", "second")
                if what != "seen" or turn % 2
            ]
            assert [data for _, data, _ in await page.evaluate("got")] == expected
            assert [stream.recovered for stream in streams] == [None, True, True, True, True, True]
            await page.evaluate("source.close()")
            await until(lambda: len(hub) == 0)

    asyncio.run(main())


def test_events_are_messages() -> None:
    """Events are immutable messages, compare by value, and can be pickled."""
    event = Event('{"a": 1}', event="tick", id="5", retry=0)
    assert event.text
    assert event.data == b'{"a": 1}'
    assert event.frame == wsfast.PreparedMessage('{"a": 1}').frame
    same = Event(b'{"a": 1}', event="tick", id="5", retry=0)
    assert event == same
    assert hash(event) == hash(same)
    assert event == pickle.loads(pickle.dumps(event))
    others = [Event('{"a": 1}'), Event('{"a": 1}', id="5"), wsfast.PreparedMessage('{"a": 1}'), "x"]
    assert all(event != other and other != event for other in others)
    assert Event("x") == wsfast.PreparedMessage("x")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"event": "a\nb"}, ValueError, "event must not contain line breaks, but"),
        ({"id": "a\rb"}, ValueError, "id must not contain line breaks or null"),
        ({"id": "a\0b"}, ValueError, "null"),
        ({"id": 5}, TypeError, "id must be a str"),
        ({"retry": -1}, ValueError, "retry must not be negative"),
        ({"retry": "5"}, TypeError, "retry must be an integer"),
        ({"compress": True}, ValueError, "compress"),
        ({"data": b"\xff"}, ValueError, "utf-8"),
        ({"data": {}}, TypeError, "data must be str or bytes"),
    ],
)
def test_arguments_of_events(options: Any, error: Any, match: str) -> None:
    """What cannot be sent is an error where it is made."""
    with pytest.raises(error, match=match):
        Event(**{"data": "x"} | options)


def test_arguments_of_sources() -> None:
    """Mistakes are errors where the response is made."""
    hub, channel = wsfast.Hub(), wsfast.Channel()
    cases: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: EventSource("news"), TypeError, "source must be a Channel, a Hub or a HubChannel, not str"),  # type: ignore[arg-type]
        (lambda: EventSource(hub), TypeError, "needs a topic"),
        (lambda: EventSource(hub, "a..b"), ValueError, "a..b"),
        (lambda: EventSource(channel, "news"), TypeError, "topics and user need a Hub, not a Channel"),
        (lambda: EventSource(channel, user="ann"), TypeError, "need a Hub"),
        (lambda: EventSource(channel, tags={"eu"}), TypeError, "tags need a Hub or a HubChannel, not a Channel"),
        (lambda: EventSource(channel, retry=-1), ValueError, "retry"),
        (lambda: EventSource(channel, keepalive=0), ValueError, "keepalive"),
        (lambda: EventSource(channel, on_open=5), TypeError, "on_open"),  # type: ignore[arg-type]
    ]
    for call, error, match in cases:
        with pytest.raises(error, match=match):
            call()
    source = EventSource(hub.channel("news"), headers={"X-Custom": "1", "Cache-Control": "no-store"}, status_code=201)
    assert source.status_code == 201
    assert source.headers["x-custom"] == "1"
    assert source.headers["cache-control"] == "no-store"
    assert "content-length" not in source.headers
