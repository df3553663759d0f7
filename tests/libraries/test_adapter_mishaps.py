"""What once went wrong with connections of other libraries, and must not again."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import json
import logging
import random
import socket
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import aiohttp.web
import fastapi
import pytest
import quart
from websockets.exceptions import ConcurrencyError, ConnectionClosedError

import wsfast
from helpers.fixtures import Run
from helpers.libraries import LIBRARIES, WEBSOCKETS_PROTOCOL, dial, fastapi_app, listen, serve_app, under_uvicorn
from helpers.peers import TIMEOUT, until
from libraries.test_sync import crowd, wait_for
from wsfast.connections import adapt, foreign, sync

Act = Callable[[Any], Awaitable[None]]


@pytest.fixture
def play(run: Run, core: Any) -> Callable[..., None]:
    """Run a scenario with a function that connects a client with a server of a library."""

    async def main(name: str, act: Act, *, compress: bool, small: bool) -> None:
        async with LIBRARIES[name].open(compress=compress, small=small) as connect:
            await act(connect)

    def play(name: str, act: Act, *, compress: bool = False, small: bool = False) -> None:
        run(lambda: main(name, act, compress=compress, small=small))

    return play


async def receive(client: Any, count: int) -> list[str | bytes]:
    async with asyncio.timeout(TIMEOUT):
        return [await client.recv() for _ in range(count)]


def in_thread(call: Callable[[], Any]) -> Callable[[], Awaitable[Any]]:
    """Make a function that calls another one in a thread of its own, and returns what it returns or raises."""

    def caught() -> Any:
        try:
            return call()
        except Exception as exc:
            return exc

    return lambda: asyncio.to_thread(caught)


# ---- aiohttp


@pytest.mark.parametrize("takeover", [True, False], ids=["takeover", "no-takeover"])
@pytest.mark.parametrize("name", ["aiohttp", "aiohttp-client"])
def test_aiohttp_messages_with_an_encoder_of_their_own(play: Any, name: str, takeover: bool) -> None:
    """What is sent with `compress=` has an encoder of its own; all other messages are still decoded exactly."""

    async def act(connect: Any) -> None:
        connection, client = await connect()
        connection._writer.notakeover = not takeover
        channel = wsfast.Channel(slow=wsfast.Disconnect(max_messages=None, max_bytes=None))
        channel.subscribe(connection)
        chance = random.Random(0)
        words = [chance.randbytes(8).hex() for _ in range(300)]
        expected = []
        for number in range(300):
            count = 3000 if number % 50 == 0 else 12  # large ones are compressed in another thread
            message = json.dumps([number, [chance.choice(words) for _ in range(count)]])
            way = chance.randrange(4)
            if way == 0:
                await connection.send_str(message, compress=12)
            elif way == 1:
                await connection.send_str(message)
            elif way == 2:
                wsfast.broadcast([connection], message)
            else:
                channel.publish(message)
                channel.flush()
            expected.append(message)
        got = await receive(client, len(expected))
        assert sorted(got) == sorted(expected)  # what waits may be overtaken by what is sent otherwise

    play(name, act, compress=True)


def watch_compression(client: Any) -> list[bool]:
    """Return a list to which is added, for each message of a client of websockets, whether it is compressed."""
    compressed: list[bool] = []
    extension = client.protocol.extensions[0]
    decode = extension.decode

    def watched(frame: Any, **options: Any) -> Any:
        if frame.opcode in (1, 2):
            compressed.append(frame.rsv1)
        return decode(frame, **options)

    extension.decode = watched
    return compressed


class Inherited(aiohttp.web.WebSocketResponse):
    """A subclass that has more than aiohttp's, and changes nothing."""

    user = "somebody"


class Overridden(aiohttp.web.WebSocketResponse):
    """A subclass that sends otherwise."""

    async def send_str(self, data: str, compress: int | None = None) -> None:
        await super().send_str(data.upper(), compress)


class InheritedClient(aiohttp.ClientWebSocketResponse):
    """The same, on the other side."""


class OverriddenClient(aiohttp.ClientWebSocketResponse):
    """The same, on the other side."""

    async def send_bytes(self, data: bytes, compress: int | None = None) -> None:
        raise AssertionError("it is not called")


@pytest.mark.parametrize("kind", [Inherited, Overridden, InheritedClient, OverriddenClient])
def test_aiohttp_subclasses(play: Any, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    """Subclasses are sent to as aiohttp's own are, unless they send otherwise."""
    name = "aiohttp-client" if issubclass(kind, aiohttp.ClientWebSocketResponse) else "aiohttp"
    if name == "aiohttp":
        monkeypatch.setattr(aiohttp.web, "WebSocketResponse", kind)
    else:
        monkeypatch.setattr(aiohttp, "ClientSession", functools.partial(aiohttp.ClientSession, ws_response_class=kind))

    async def act(connect: Any) -> None:
        connection, client = await connect()
        assert type(connection) is kind
        compressed = watch_compression(client)
        assert wsfast.broadcast([connection], "abc" * 1000) == (1, 0, 0, 0)
        channel = wsfast.Channel()
        channel.subscribe(connection)
        channel.publish("def" * 1000)
        channel.flush()
        assert await receive(client, 2) == ["abc" * 1000, "def" * 1000]
        assert compressed == [kind in (Inherited, InheritedClient)] * 2
        await adapt(connection).close(4000)
        assert wsfast.broadcast([connection], "x") == (0, 0, 1, 0)

    play(name, act, compress=True)


def test_lost_transports_are_not_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transport that was closed while it had something to write, and is lost since, is left alone."""
    monkeypatch.setattr(foreign, "CLOSE_TIMEOUT", 0.0)
    monkeypatch.setattr(foreign, "CLOSING_INTERVAL", 0.0)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        problems: list[Any] = []
        loop.set_exception_handler(lambda _, context: problems.append(context))
        made: asyncio.Queue[Any] = asyncio.Queue()
        lost = asyncio.Event()

        class Served(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                made.put_nowait(transport)

            def connection_lost(self, exc: Exception | None) -> None:
                assert exc is None
                lost.set()

        server = await loop.create_server(Served, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        transport = await made.get()
        transport.write(bytes(8_000_000))
        assert transport.get_write_buffer_size() > 0
        transport.close()
        assert len(await reader.read()) == 8_000_000
        await lost.wait()
        await until(lambda: transport.get_extra_info("socket").fileno() < 0)
        foreign.abort_later(transport, loop)
        await until(lambda: not foreign._ClosingWatch.of(loop)._transports)
        foreign.abort(transport)
        for _ in range(5):
            await asyncio.sleep(0)
        assert problems == []
        writer.close()
        server.close()

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


# ---- Sinks, and connections that cannot be asked


class Sink:
    """A sink which breaks when it is told to."""

    def __init__(self) -> None:
        self.breaks = ""
        self.full = False
        self.written = 0
        self.closed: list[int] = []

    def write(self, data: bytes) -> None:
        if self.breaks == "write":
            raise KeyError("the stream is gone")
        self.written += 1

    def writable(self) -> bool:
        if self.breaks == "writable":
            raise KeyError("the stream is gone")
        return not self.full

    def close(self, code: int, reason: str) -> None:
        self.closed.append(code)
        if self.breaks == "close":
            raise KeyError("the stream is gone")


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged about a sink that is gone."""
    return [record.getMessage() for record in caplog.records if "the stream is gone" in record.getMessage()]


@pytest.mark.parametrize("by", ["broadcast", "channel"])
@pytest.mark.parametrize("breaks", ["write", "writable"])
def test_broken_sinks_hurt_nobody(run: Run, core: Any, caplog: pytest.LogCaptureFixture, breaks: str, by: str) -> None:
    """A sink that raises is closed, which is logged once; all others get the message."""

    async def main() -> None:
        sinks = [Sink() for _ in range(6)]
        sinks[2].breaks = breaks
        connections = [wsfast.attach(sink) for sink in sinks]
        channel = wsfast.Channel()
        subscriptions = [channel.subscribe(connection) for connection in connections]
        for _ in range(2):
            if by == "channel":
                channel.publish("one")
                channel.publish("two")
                channel.flush()
            else:
                wsfast.broadcast(connections, "one")
                wsfast.broadcast(connections, "two")
        taken = int(by == "broadcast" and breaks == "writable")  # which asks afterwards
        assert [sink.written for sink in sinks] == [4, 4, taken, 4, 4, 4]
        assert [sink.closed for sink in sinks] == [[], [], [1006], [], [], []]
        await until(lambda: not subscriptions[2].active)
        assert len(complaints(caplog)) == 1
        if by == "channel":
            assert subscriptions[2].stats().sent == 0
            assert subscriptions[3].stats().sent == 4
            stats = channel.stats()
            assert stats.published == stats.sent + stats.dropped

    with caplog.at_level(logging.WARNING):
        run(main)


def test_lagging_sinks_break_once(run: Run, core: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A sink that raises while something waits for it is closed, and is not asked again and again."""

    async def main() -> None:
        problems: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        sink = Sink()
        sink.full = True
        channel = wsfast.Channel()
        subscription = channel.subscribe(wsfast.attach(sink))
        channel.publish("x")
        channel.flush()
        assert subscription.queued == 1
        sink.breaks = "writable"
        await until(lambda: problems or not subscription.active)
        assert problems == []
        assert sink.closed == [1006]
        assert channel.stats().dropped == 1
        assert len(complaints(caplog)) == 1

    with caplog.at_level(logging.WARNING):
        run(main)


def test_sinks_that_cannot_be_closed(run: Run, core: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What `close()` of a sink raises is logged; the subscription ends."""

    async def main() -> None:
        problems: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        sink = Sink()
        sink.full, sink.breaks = True, "close"
        channel = wsfast.Channel(slow=wsfast.Disconnect(max_messages=1, code=4000))
        subscription = channel.subscribe(wsfast.attach(sink))
        channel.publish("x")
        channel.publish("y")
        channel.flush()
        await until(lambda: complaints(caplog))
        assert not subscription.active
        assert sink.closed == [4000]
        gc.collect()  # a task that nobody has asked about its exception would complain now
        assert problems == []

    with caplog.at_level(logging.WARNING):
        run(main)


class Puzzling:
    """A transport that does not tell whether it has room, nor anything else, once it is told so."""

    def __init__(self, transport: Any, *, dumb: list[str]) -> None:
        self._transport = transport
        self._dumb = dumb

    def __getattr__(self, name: str) -> Any:
        if name in self._dumb:
            raise KeyError(f"{name}: the stream is gone")
        return getattr(self._transport, name)


@pytest.mark.parametrize("question", ["get_write_buffer_size", "is_closing"])
def test_connections_that_cannot_be_asked(play: Any, caplog: pytest.LogCaptureFixture, question: str) -> None:
    """A connection that raises when it is asked something loses its subscriptions; all others get the message."""

    async def act(connect: Any) -> None:
        pairs = [await connect() for _ in range(4)]
        dumb: list[str] = []
        pairs[1][0].transport = Puzzling(pairs[1][0].transport, dumb=dumb)
        channel = wsfast.Channel()
        subscriptions = [channel.subscribe(connection) for connection, _ in pairs]
        channel.publish("one")
        channel.flush()
        dumb.append(question)
        channel.publish("two")
        channel.flush()
        dumb.clear()
        channel.publish("three")
        channel.flush()
        for _, client in (pairs[0], pairs[2], pairs[3]):
            assert await receive(client, 3) == ["one", "two", "three"]
        assert await receive(pairs[1][1], 1) == ["one"]
        assert [subscription.active for subscription in subscriptions] == [True, False, True, True]
        stats = channel.stats()
        assert (stats.published, stats.sent, stats.dropped) == (11, 10, 1)
        await until(lambda: complaints(caplog))
        assert len(complaints(caplog)) == 1

    with caplog.at_level(logging.WARNING):
        play("websockets", act)


# ---- websockets.sync


def test_nobody_waits_for_others_over_tls(tls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many clients do not read over TLS, all others get what they are sent, by the same call or another."""
    go_on = threading.Event()
    send = sync._send_by_own_methods
    with crowd("tls", tls) as people:
        (stalled, _), (free, client) = people.connect(), people.connect()

        def send_or_stall(connection: Any, message: Any) -> None:
            if connection is stalled:
                assert go_on.wait(TIMEOUT)
            else:
                send(connection, message)

        monkeypatch.setattr(sync, "_send_by_own_methods", send_or_stall)
        try:
            assert sum(wsfast.broadcast([*[stalled] * 40, free], "one")[:2]) == 41
            assert client.recv(timeout=TIMEOUT) == "one"
            assert sum(wsfast.broadcast([free], "two")[:2]) == 1
            assert client.recv(timeout=TIMEOUT) == "two"
            assert stalled.protocol_mutex.locked()
        finally:
            go_on.set()
        wait_for(lambda: all(one.name != "wsfast" for one in threading.enumerate()))  # none of its threads stays


@pytest.mark.parametrize("where", ["in the middle of sending", "behind it"])
def test_interrupted_frames_are_not_followed_by_others(tls: Any, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """If an exception out of nowhere cuts a frame off, the connection is closed, and its lock is free."""
    send = sync._send
    data: list[bytes] = []

    def send_half(sock: socket.socket, frame: Any) -> Any:
        data.append(bytes(frame))
        result = send(sock, frame[: len(frame) // 2])
        if where == "in the middle of sending":
            raise KeyboardInterrupt
        return result

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with crowd("plain", tls) as people:
        connection, client = people.connect()
        monkeypatch.setattr(sync, "_send", send_half)
        if where == "behind it":
            monkeypatch.setattr(sync, "_Backlog", interrupt)
        with pytest.raises(KeyboardInterrupt):
            wsfast.broadcast([connection], "x" * 100)
        monkeypatch.undo()
        assert len(data) == 1
        with pytest.raises(ConnectionClosedError):
            client.recv(timeout=TIMEOUT)
        wait_for(lambda: connection.protocol.state.name == "CLOSED")
        assert wsfast.broadcast([connection], "y") == (0, 0, 1, 0)


# ---- picows


@pytest.mark.parametrize("loop", ["with a loop", "without"])
def test_picows_in_another_thread(play: Any, loop: str) -> None:
    """A WSTransport knows its event loop before anything is sent to it: other threads are told, and spoil nothing."""

    async def act(connect: Any) -> None:
        connection, client = await connect()

        async def main() -> Any:
            return wsfast.broadcast([connection], "x")

        call = in_thread(lambda: asyncio.run(main()) if loop == "with a loop" else wsfast.broadcast([connection], "x"))
        assert isinstance(await call(), RuntimeError)
        assert wsfast.broadcast([connection], "y") == (1, 0, 0, 0)
        assert wsfast.Channel().subscribe(connection).active
        assert await receive(client, 1) == ["y"]

    play("picows", act)


@contextlib.asynccontextmanager
async def picows_websockets(compression: str | None) -> AsyncIterator[tuple[Any, Any]]:
    """Give a connection of picows.websockets and its client."""
    serve = pytest.importorskip("picows.websockets", reason="picows before 2 has no websockets").serve
    arrived: asyncio.Queue[Any] = asyncio.Queue()

    async def handler(connection: Any) -> None:
        await arrived.put(connection)
        await connection.wait_closed()

    server = await serve(handler, "127.0.0.1", 0, compression=compression)
    client = await dial(server.sockets[0].getsockname(), compress=compression is not None, small=False)
    yield await arrived.get(), client
    client.transport.abort()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("loop", ["with a loop", "without"])
def test_picows_websockets_in_another_thread(run: Run, core: Any, loop: str) -> None:
    """Another thread is told that it must not broadcast, before anything is compressed: what comes next is right."""

    async def main() -> None:
        async with picows_websockets("deflate") as (connection, client):

            async def other() -> Any:
                return wsfast.broadcast([connection], "some text " * 20)

            call = in_thread(
                lambda: asyncio.run(other()) if loop == "with a loop" else wsfast.broadcast([connection], "text " * 20)
            )
            raised = await call()
            assert isinstance(raised, RuntimeError)
            assert "in the thread of the event loop that runs the connection" in str(raised)
            messages = [f"some text {number} " * 20 for number in range(3)]
            for message in messages:
                assert wsfast.broadcast([connection], message) == (1, 0, 0, 0)
            assert await receive(client, 3) == messages

    run(main)


def test_picows_websockets_cannot_leave_compression_out(run: Run, core: Any, caplog: pytest.LogCaptureFixture) -> None:
    """`compress=False` fails where compression was negotiated, and is no matter where it was not."""

    async def main() -> None:
        async with picows_websockets("deflate") as (connection, client):
            with caplog.at_level(logging.WARNING):
                assert wsfast.broadcast([connection], "secret " * 100, compress=False) == (0, 0, 0, 1)
            assert "TypeError: cannot send with compress=False: picows.websockets compresses all" in caplog.text
            with pytest.raises(ExceptionGroup) as caught:
                wsfast.broadcast([connection], "secret " * 100, True, compress=False)
            assert isinstance(caught.value.exceptions[0].__cause__, TypeError)
            wsfast.broadcast([connection], "no secret " * 100)
            assert await receive(client, 1) == ["no secret " * 100]
        async with picows_websockets(None) as (connection, client):
            assert wsfast.broadcast([connection], "secret " * 100, compress=False) == (1, 0, 0, 0)
            assert await receive(client, 1) == ["secret " * 100]

    run(main)


def test_picows_websockets_fragments(run: Run, core: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A connection on which a fragmented message is being sent is skipped, and told of as all others are."""

    async def main() -> None:
        async with picows_websockets(None) as (connection, client):
            begun, go_on = asyncio.Event(), asyncio.Event()

            async def fragments() -> AsyncIterator[str]:
                yield "one "
                begun.set()
                await go_on.wait()
                yield "message"

            sending = asyncio.create_task(connection.send(fragments()))
            await begun.wait()
            with caplog.at_level(logging.WARNING):
                assert wsfast.broadcast([connection], "x") == (0, 0, 1, 0)
            assert "skipped broadcast: sending a fragmented message" in caplog.text
            with pytest.raises(ExceptionGroup) as caught:
                wsfast.broadcast([connection], "x", raise_exceptions=True)
            assert type(caught.value.exceptions[0]) is ConcurrencyError
            go_on.set()
            await sending
            assert await receive(client, 1) == ["one message"]

    run(main)


def test_picows_websockets_failures(run: Run, core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What picows could not write is told of without the groups that picows puts around it."""
    failure = OSError("no")

    def broadcast(connections: Any, message: Any, raise_exceptions: bool = False) -> None:
        exc = RuntimeError("failed to write message")
        exc.__cause__ = failure
        raise ExceptionGroup("skipped broadcast", [exc])

    async def main() -> None:
        async with picows_websockets(None) as (connection, _):
            monkeypatch.setattr("picows.websockets.broadcast", broadcast)
            with pytest.raises(ExceptionGroup) as caught:
                wsfast.broadcast([connection], "x", raise_exceptions=True)
            assert caught.value.exceptions[0].__cause__ is failure

    run(main)


# ---- uvicorn


@pytest.mark.parametrize("waits", [True, False], ids=["waiting", "later"])
@pytest.mark.parametrize("name", ["fastapi", "fastapi-wsproto"])
def test_applications_are_told_of_policies(play: Any, name: str, waits: bool) -> None:
    """Sending on a connection that a policy has closed raises WebSocketDisconnect, be it before or after."""

    async def act(connect: Any) -> None:
        websocket, client = await connect()
        client.transport.pause_reading()
        channel = wsfast.Channel(slow=wsfast.Disconnect(max_messages=5))
        subscription = channel.subscribe(websocket)
        while not subscription.queued:
            channel.publish(bytes(3000))
            channel.flush()
        sending = asyncio.ensure_future(websocket.send_text("own")) if waits else None
        await asyncio.sleep(0)
        while subscription.active:
            channel.publish(bytes(3000))
            channel.flush()
        for _ in range(2):
            with pytest.raises(fastapi.WebSocketDisconnect):
                async with asyncio.timeout(TIMEOUT):
                    await (sending or _closed_and_sent(websocket))
            sending = None

    play(name, act, small=True)


async def _closed_and_sent(websocket: Any) -> None:
    """Send when a connection is closed."""
    await until(lambda: adapt(websocket).close_sent)
    websocket.application_state = fastapi.websockets.WebSocketState.CONNECTED  # who knows nothing of it
    await websocket.send_text("own")


@pytest.mark.parametrize("name", ["fastapi", "fastapi-wsproto"])
def test_connections_that_tell_are_not_looked_at(
    play: Any, core: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A connection that tells when it is lost stays ready to be written to while nothing happens."""
    monkeypatch.setattr(foreign, "CLOSING_INTERVAL", 0.0)

    async def act(connect: Any) -> None:
        websocket, client = await connect()
        channel = wsfast.Channel()
        subscription = channel.subscribe(websocket)
        for _ in range(2):
            channel.publish("x")
            channel.flush()
        assert await receive(client, 2) == ["x", "x"]
        peer = adapt(websocket)._wsfast_peer
        assert peer.ready  # the twin leaves it to transports to write
        for _ in range(20):
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
        assert peer.ready
        client.transport.abort()
        await until(lambda: not subscription.active)

    play(name, act)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="before Python 3.12, tasks are never eager")
@pytest.mark.parametrize("name", ["fastapi", "fastapi-wsproto"])
def test_eager_tasks(name: str) -> None:
    """Applications that run before `create_task()` has returned find the connection, too."""
    protocol = WEBSOCKETS_PROTOCOL if name == "fastapi" else "wsfast.uvicorn:WSProtocol"

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
        found: list[Any] = []

        def make_app(arrived: asyncio.Queue[Any]) -> Any:
            app = fastapi_app(arrived)

            async def outer(scope: Any, receive: Any, send: Any) -> None:
                found.append(scope.get("extensions", {}).get("wsfast"))
                await app(scope, receive, send)

            return outer

        async with under_uvicorn(make_app, protocol)(compress=False, small=False) as connect:
            websocket, client = await connect()
            assert found == [adapt(websocket)]
            assert wsfast.broadcast([websocket], "x") == (1, 0, 0, 0)
            assert await receive(client, 1) == ["x"]

    asyncio.run(main())


def test_quart_proxy(run: Run, core: Any) -> None:
    """`quart.websocket` stands for the connection of the handler that is running."""
    app = quart.Quart(__name__)
    channel = wsfast.Channel()
    hub = wsfast.Hub()

    @app.websocket("/ws")
    async def endpoint() -> None:
        await quart.websocket.accept()
        subscription = channel.subscribe(quart.websocket)
        assert subscription is channel.subscribe(quart.websocket)
        assert subscription.connection is quart.websocket._get_current_object()  # type: ignore[attr-defined]
        while True:
            await quart.websocket.receive()
            assert wsfast.broadcast([quart.websocket], "broadcast") == (1, 0, 0, 0)
            channel.publish("for the others", exclude=[quart.websocket])
            channel.publish("for all")
            hub.subscribe(quart.websocket, "topic")
            hub.publish("topic", "hub")
            hub.unsubscribe(quart.websocket, "topic")
            hub.publish("topic", "nobody")

    async def main() -> None:
        listener = listen(small=False)
        async with serve_app(app, WEBSOCKETS_PROTOCOL, listener, compress=False):
            pairs = [await dial(listener.getsockname(), compress=False, small=False) for _ in range(2)]
            await until(lambda: len(channel) == 2)
            for speaker, other in (pairs, pairs[::-1]):
                await speaker.send("go")
                assert await receive(speaker, 3) == ["broadcast", "for all", "hub"]
                assert await receive(other, 2) == ["for the others", "for all"]
            for client in pairs:
                client.transport.abort()
            with pytest.raises(RuntimeError):
                wsfast.broadcast([quart.websocket], "outside of a handler")

    run(main)


# ---- Event loops


@pytest.mark.parametrize("name", ["aiohttp", "wsproto", "picows", "fastapi", "sink"])
def test_event_loops_are_not_kept(play: Any, name: str) -> None:
    """Nothing of an event loop stays when it is closed, though connections were subscribed."""
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def act(connect: Any) -> None:
        connection, _ = await connect()
        wsfast.Channel().subscribe(connection)
        loops.append(weakref.ref(asyncio.get_running_loop()))

    play(name, act)
    for _ in range(3):
        gc.collect()
    assert loops[0]() is None
