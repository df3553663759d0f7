"""Connections of every library that is supported, with real clients of another one."""

from __future__ import annotations

import asyncio
import random
import sys
import types
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp.web
import pytest

import wsfast
from helpers import processes
from helpers.fixtures import Run
from helpers.libraries import LIBRARIES, WEBSOCKETS_PROTOCOL, dial, listen, serve_app
from helpers.peers import TIMEOUT, until
from wsfast.connections import foreign as adapted

CASES = [
    (name, compress)
    for name, library in LIBRARIES.items()
    for compress in (False, True)
    if library.compresses >= compress
]
each_case = pytest.mark.parametrize(
    ("name", "compress"), CASES, ids=[f"{name}{'-deflate' * compress}" for name, compress in CASES]
)
UNBOUNDED = wsfast.Disconnect(max_messages=None, max_bytes=None)

FAST = set(LIBRARIES) - {"sink"}
"""Libraries to whose sockets the core writes directly."""


def text(number: int, size: int) -> str:
    """Return a message that compresses to about half."""
    return f"{number:06d} " + random.Random(number).randbytes(size // 2).hex()


async def receive(client: Any, count: int) -> list[str | bytes]:
    async with asyncio.timeout(TIMEOUT):
        return [await client.recv() for _ in range(count)]


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


@each_case
def test_broadcast(play: Any, name: str, compress: bool) -> None:
    """Every message arrives exactly, in order with what the library itself sends and with pings."""
    library = LIBRARIES[name]

    async def act(connect: Any) -> None:
        pairs = [await connect() for _ in range(4)]
        connections = [connection for connection, _ in pairs]
        expected: list[list[str | bytes]] = [[] for _ in pairs]
        pings = []
        for number in range(60):
            message: str | bytes = text(number, random.Random(number).choice([0, 20, 200, 3000, 70_000]))
            if number % 5 == 0:
                message = message.encode()  # type: ignore[union-attr]
            chance = random.Random(number)
            chosen = [index for index in range(4) if number % 7 == 0 or chance.random() < 0.7]
            delivery = wsfast.broadcast([connections[index] for index in chosen], message)
            assert sum(delivery) == len(chosen)
            assert delivery.skipped == delivery.failed == 0
            for index in chosen:
                expected[index].append(message)
            if number % 3 == 0:
                private = f"for {number % 4} alone " * (2000 if number % 9 == 0 else 20)
                await library.send(connections[number % 4], private)
                expected[number % 4].append(private)
            if name != "sink" and name != "picows":
                pings.append(await pairs[number % 4][1].ping())
            if number % 4 == 0:
                await asyncio.sleep(0)
        for (_, client), messages in zip(pairs, expected, strict=True):
            assert await receive(client, len(messages)) == messages
        if name != "aiohttp-client":  # which answers only when somebody receives
            async with asyncio.timeout(TIMEOUT):
                await asyncio.gather(*pings)

    play(name, act, compress=compress)


@each_case
def test_broadcast_is_direct(play: Any, core: Any, monkeypatch: pytest.MonkeyPatch, name: str, compress: bool) -> None:
    """The core itself writes to sockets that have room, compressed where that was negotiated."""
    batches: list[Any] = []

    class Batch(core.Batch):  # type: ignore[misc]
        def send(self) -> None:
            super().send()
            batches.append(self)

    values = {key: getattr(core, key) for key in dir(core) if not key.startswith("_")}
    spy = types.SimpleNamespace(**{**values, "Batch": Batch})
    monkeypatch.setattr(sys.modules["wsfast._delivery"], "core", spy)

    async def act(connect: Any) -> None:
        pairs = [await connect() for _ in range(3)]
        message = "a message that can be compressed " * 30
        for _ in range(2):
            batches.clear()
            assert wsfast.broadcast([connection for connection, _ in pairs], message) == (3, 0, 0, 0)
        batch = batches[-1]
        if name not in FAST:
            assert (batch.sent, batch.waiting) == (0, [])
        elif core.sends_directly:
            assert (batch.sent, batch.waiting, batch.own) == (3, [], [])
        else:
            assert (batch.sent, len(batch.waiting), batch.own) == (0, 3, [])
        assert batch.closed == batch.cut == batch.refused == batch.lost == []
        assert batch.stop == 3
        for _, client in pairs:
            assert await receive(client, 2) == [message] * 2

    play(name, act, compress=compress)


@each_case
def test_channel(play: Any, name: str, compress: bool) -> None:
    """A channel's messages arrive in order; a client that does not read hurts nobody, and gets them all later."""
    library = LIBRARIES[name]

    async def act(connect: Any) -> None:
        pairs = [await connect() for _ in range(4)]
        stalled = pairs[0]
        channel = wsfast.Channel(slow=UNBOUNDED, history=3)
        for connection, _ in pairs[:3]:
            subscription = channel.subscribe(connection)
            assert subscription is channel.subscribe(connection)
            assert subscription.connection is connection
        messages = [text(number, 3000) for number in range(300)]
        for number, message in enumerate(messages):
            channel.publish(message, exclude=[pairs[1][0]] if number == 200 else [])
            if number % 3 == 0:
                channel.flush()
            if number == 100:
                channel.flush()
                private = asyncio.ensure_future(library.send(pairs[2][0], "private"))
                await asyncio.sleep(0)
            if number % 50 == 0:
                await asyncio.sleep(0)
        channel.subscribe(pairs[3][0])
        channel.flush()
        assert await receive(pairs[1][1], 299) == [*messages[:200], *messages[201:]]
        got = await receive(pairs[2][1], 301)
        assert [one for one in got if one != "private"] == messages
        await private
        if library.ordered:
            assert got.index("private") >= 101
        assert await receive(pairs[3][1], 3) == messages[-3:]
        assert channel.subscribe(stalled[0]).queued > 0
        assert await receive(stalled[1], 300) == messages
        await until(lambda: channel.stats().queued == 0)
        stats = channel.stats()
        assert (stats.published, stats.sent) == (902, 902)

    play(name, act, compress=compress, small=True)


@each_case
def test_policy_closes(play: Any, name: str, compress: bool) -> None:
    """A client that does not keep up is closed with the code of the policy, and the subscription ends."""

    async def act(connect: Any) -> None:
        connection, client = await connect()
        channel = wsfast.Channel(slow=wsfast.Disconnect(max_messages=5, code=4321, reason="slow"))
        subscription = channel.subscribe(connection)
        for number in range(2000):
            channel.publish(text(number, 3000))
            channel.flush()
            if not subscription.active:
                break
        assert not subscription.active
        assert channel.stats().disconnected == 1
        with pytest.raises(Exception, match="4321"):
            await receive(client, 3000)
        assert client.close_code == 4321

    play(name, act, compress=compress, small=True)


@each_case
def test_closing(play: Any, monkeypatch: pytest.MonkeyPatch, name: str, compress: bool) -> None:
    """A connection that is lost is skipped, and its subscription ends."""
    monkeypatch.setattr(adapted, "CLOSING_INTERVAL", 0.05)  # for connections that do not tell

    async def act(connect: Any) -> None:
        (connection, client), (other, witness) = await connect(), await connect()
        channel = wsfast.Channel()
        subscription = channel.subscribe(connection)
        channel.publish("first")
        channel.flush()
        assert await receive(client, 1) == ["first"]
        client.transport.abort()
        if name == "sink":  # nobody tells
            connection.transport.abort()
        if name == "aiohttp-client":
            await connection.receive()
        await until(lambda: not subscription.active)
        assert wsfast.broadcast([connection, other], "second") == (1, 0, 1, 0)
        assert await receive(witness, 1) == ["second"]
        with pytest.raises(RuntimeError, match="not open"):
            channel.subscribe(connection)

    play(name, act, compress=compress)


def test_mixed(run: Run, core: Any) -> None:
    """One call sends to connections of all libraries, each once, and one channel has all of them."""

    async def main() -> None:
        import contextlib

        async with contextlib.AsyncExitStack() as stack:
            pairs = []
            for name, compress in CASES:
                connect = await stack.enter_async_context(LIBRARIES[name].open(compress=compress, small=False))
                pairs += [await connect(), await connect()]
            random.Random(0).shuffle(pairs)
            connections = [connection for connection, _ in pairs]
            channel = wsfast.Channel()
            for connection in connections:
                channel.subscribe(connection)
            messages = [text(number, 300) for number in range(10)]
            for message in messages:
                assert wsfast.broadcast(connections, message) == (len(pairs), 0, 0, 0)
                assert wsfast.broadcast(iter(connections), message) == (len(pairs), 0, 0, 0)
                channel.publish(message)
                channel.flush()
            for _, client in pairs:
                assert await receive(client, 30) == [message for message in messages for _ in range(3)]

    run(main)


# ---- Errors


def test_websockets_that_are_not_prepared(run: Run) -> None:
    """A WebSocketResponse of aiohttp must be prepared first."""

    async def main() -> None:
        with pytest.raises(RuntimeError, match="prepare"):
            wsfast.broadcast([aiohttp.web.WebSocketResponse()], "x")

    run(main)


def test_those_ahead_are_sent_to(run: Run) -> None:
    """If one of the connections cannot be reached, those ahead of it have been sent the message."""

    async def main() -> None:
        async with LIBRARIES["aiohttp"].open(compress=False, small=False) as connect:
            (first, client), (last, other) = await connect(), await connect()
            with pytest.raises(RuntimeError, match="prepare"):
                wsfast.broadcast([first, aiohttp.web.WebSocketResponse(), last], "x")
            assert await receive(client, 1) == ["x"]
            wsfast.broadcast([last], "y")
            assert await receive(other, 1) == ["y"]

    run(main)


def test_attach_checks_its_arguments(run: Run) -> None:
    """What is no sink, and what is no connection of wsproto, is a TypeError; without a loop, a RuntimeError."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        wsfast.attach(object())  # type: ignore[arg-type]

    async def main() -> None:
        with pytest.raises(TypeError, match=r"object is neither an asyncio transport nor a wsfast.Sink"):
            wsfast.attach(object())  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="connection must be a connection of wsproto, not int"):
            wsfast.attach(object(), 5)  # type: ignore[arg-type]
        import wsproto

        connection = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        with pytest.raises(RuntimeError, match="the handshake of the connection is not complete"):
            wsfast.attach(object(), connection)  # type: ignore[arg-type]

    run(main)


def test_importing_wsfast_imports_no_other_library() -> None:
    """Adapters are imported when a connection of their library shows up."""
    script = (
        "import sys, wsfast; "
        "print([name for name in sys.modules if name.partition('.')[0] in "
        "{'uvicorn', 'starlette', 'fastapi', 'aiohttp', 'wsproto', 'h2', 'picows', 'litestar', 'quart', 'trio'} "
        "or name.startswith(('websockets.legacy', 'websockets.sync', 'websockets.trio'))])"
    )
    done = processes.run(sys.executable, "-c", script, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_picows_websockets(run: Run, compression: str | None) -> None:
    """Connections of picows.websockets can be broadcast to; channels cannot have them."""
    serve = pytest.importorskip("picows.websockets", reason="picows before 2 has no websockets").serve

    async def main() -> None:
        arrived: asyncio.Queue[Any] = asyncio.Queue()

        async def handler(connection: Any) -> None:
            await arrived.put(connection)
            await connection.wait_closed()

        server = await serve(handler, "127.0.0.1", 0, compression=compression)
        client = await dial(server.sockets[0].getsockname(), compress=compression is not None, small=False)
        connection = await arrived.get()
        for message in ("text " * 100, b"binary " * 100):
            assert wsfast.broadcast([connection], message) == (1, 0, 0, 0)
            assert await receive(client, 1) == [message]
        with pytest.raises(TypeError, match=r"cannot subscribe connections of picows\.websockets"):
            wsfast.Channel().subscribe(connection)
        await client.close()
        await until(lambda: connection.state.name != "OPEN")
        assert wsfast.broadcast([connection], "x") == (0, 0, 1, 0)
        server.close()
        await server.wait_closed()

    run(main)


@pytest.mark.parametrize("by", ["broadcast", "channel"])
def test_aiohttp_compresses_in_a_thread(play: Any, by: str) -> None:
    """While aiohttp compresses a message in another thread, others are not skipped, and do not spoil its encoder."""

    async def act(connect: Any) -> None:
        connection, client = await connect()
        channel = wsfast.Channel()
        channel.subscribe(connection)
        wsfast.broadcast([connection], "before, " * 100)
        writer = connection._writer
        lock = writer._send_lock if hasattr(writer, "_send_lock") else writer._compressobj._compress_lock
        for number in range(3):
            large = text(number, 2_000_000)
            private = asyncio.create_task(connection.send_str(large))
            await until(lock.locked)
            if by == "broadcast":
                assert sum(wsfast.broadcast([connection], "meanwhile, " * 100)[:2]) == 1
            else:
                channel.publish("meanwhile, " * 100)
                channel.flush()
            got = await receive(client, 2 + (number == 0))
            await private
            assert {"meanwhile, " * 100, large} <= set(got)
        await connection.send_str("after, " * 100)
        assert await receive(client, 1) == ["after, " * 100]

    play("aiohttp", act, compress=True)


# ---- The how-to


def test_chat(run: Run) -> None:
    """The chat of the how-to works, and a client that does not read hurts nobody in it."""
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "connections.md").read_text()
    block = next(part.partition("```")[0] for part in text.split("```python\n") if "FastAPI()" in part)
    namespace: dict[str, Any] = {"__name__": "chat"}
    exec(block, namespace)

    async def main() -> None:
        listener = listen(small=True)
        async with serve_app(namespace["app"], WEBSOCKETS_PROTOCOL, listener, compress=True):
            address = listener.getsockname()
            ann, bob, stalled = [
                await dial(address, compress=True, small=True, path=f"/chat/{name}") for name in ("ann", "bob", "cy")
            ]
            assert await receive(ann, 2) == ["bob joined", "cy joined"]
            assert await receive(bob, 2) == ["ann joined", "cy joined"]
            for number in range(300):
                said = f"{number} " + random.Random(number).randbytes(2000).hex()
                await ann.send(said)
                assert await receive(bob, 1) == await receive(ann, 1) == [f"ann: {said}"]
            with pytest.raises(Exception, match="1013"):
                await receive(stalled, 300)
            for client in (ann, bob, stalled):
                client.transport.abort()

    run(main)
