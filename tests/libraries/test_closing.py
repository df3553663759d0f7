"""Connections of every library that are about to be closed, or were."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import aiohttp.web
import fastapi
import pytest
import websockets.asyncio.server
import wsproto.events
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.protocol import State

import wsfast
from helpers.fanout import broadcast_to, channel_of, hub_of
from helpers.fixtures import Run
from helpers.libraries import (
    LIBRARIES,
    WEBSOCKETS_PROTOCOL,
    WSPROTO_PROTOCOL,
    AiohttpClient,
    Connect,
    aiohttp_clients,
    dial,
    listen,
    of_websockets,
    serve_app,
    serve_legacy,
)
from helpers.peers import TIMEOUT, until
from wsfast.connections import adapt, foreign
from wsfast.connections.shape import FlushFirst, closers_of


@pytest.fixture(autouse=True)
def looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have connections that tell nobody of their end be looked at often."""
    monkeypatch.setattr(foreign, "CLOSING_INTERVAL", 0.02)


def reset(client: Any) -> None:
    """Drop the connection of a client with a TCP reset."""
    sock = client.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.transport.abort()


@pytest.mark.parametrize("secure", [False, True], ids=["tcp", "tls"])
@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG], ids=["fast", "own-methods"])
@pytest.mark.parametrize("name", sorted(set(LIBRARIES) - {"sink"}))  # the user of a sink writes to the transport
def test_closing_transports_are_not_written_to(
    run: Run,
    core: Any,
    tls: tuple[ssl.SSLContext, ssl.SSLContext],
    caplog: pytest.LogCaptureFixture,
    name: str,
    level: int,
    secure: bool,
) -> None:
    """Clients that have reset their connections cause no warnings of asyncio, whether the event loop runs or not."""

    async def main() -> None:
        async with LIBRARIES[name].open(compress=False, small=False, tls=tls if secure else None) as connect:
            pairs = [await connect() for _ in range(3)]
            connections = [connection for connection, _ in pairs]
            fan_outs = [make(connections) for make in (broadcast_to, channel_of, hub_of)]
            for fan_out in fan_outs:
                fan_out("all are there")
            for _, client in pairs:
                reset(client)
            await asyncio.sleep(0)  # abort() closes sockets in the next iteration
            for number in range(40):
                for fan_out in fan_outs:
                    fan_out(f"nobody is there {number}")
                if number >= 20:
                    await asyncio.sleep(0)

    caplog.set_level(level, "websockets")
    caplog.set_level(logging.INFO, "asyncio")
    run(main)
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


# ---- The last message arrives

UNBOUNDED = wsfast.Disconnect(max_messages=None, max_bytes=None)

CODE = 4321


async def read_all(client: Any) -> tuple[list[str | bytes], int | None]:
    """Return all messages that arrive, and the code of the close frame."""
    messages: list[str | bytes] = []
    async with asyncio.timeout(TIMEOUT):
        if isinstance(client, AiohttpClient):
            messages += [message.data async for message in client._websocket]
            return messages, client._websocket.close_code
        with contextlib.suppress(ConnectionClosed):
            while True:
                messages.append(await client.recv())
        return messages, client.close_code


@contextlib.asynccontextmanager
async def open_websockets_client(*, compress: bool, small: bool, tls: Any = None) -> AsyncIterator[Connect]:
    """Clients of websockets, which publish to a server of aiohttp."""
    arrived: asyncio.Queue[Any] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    async def handler(request: aiohttp.web.Request) -> aiohttp.web.WebSocketResponse:
        response = aiohttp.web.WebSocketResponse(compress=compress)
        await response.prepare(request)
        client, done = AiohttpClient(response), loop.create_future()
        client.done = done  # type: ignore[attr-defined]
        await arrived.put(client)
        await done
        return response

    app = aiohttp.web.Application()
    app.router.add_get("/ws", handler)
    runner = aiohttp.web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    listener = listen(small=False)
    await aiohttp.web.SockSite(runner, listener).start()
    opened: list[tuple[Any, Any]] = []

    async def connect() -> tuple[Any, Any]:
        connection = await dial(listener.getsockname(), compress=compress, small=False)
        if small:
            connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        opened.append((connection, await arrived.get()))
        return opened[-1]

    try:
        yield Connect(connect)
    finally:
        for connection, client in opened:
            connection.transport.abort()
            client.done.set_result(None)
        await runner.cleanup()


async def close_by_keyword(connection: Any) -> None:
    closing = connection.close(code=CODE)
    if closing is not None:  # Tornado's is no coroutine
        await closing


async def close_by_frame(connection: Any) -> None:
    connection.by_itself.send(wsproto.events.CloseConnection(code=CODE))


OPEN: dict[str, Callable[..., Any]] = {name: library.open for name, library in LIBRARIES.items()}
OPEN["websockets-client"] = open_websockets_client
del OPEN["picows"]  # whose methods cannot be replaced: see below

OF_ANOTHER = OPEN | {
    "websockets": of_websockets(websockets.asyncio.server.serve, aiohttp_clients),
    "wsfast.serve": of_websockets(wsfast.serve, aiohttp_clients),
    "websockets.legacy": of_websockets(serve_legacy, aiohttp_clients),
}
"""The same, with clients of another library wherever the burst needs none whose buffers can be made small."""

CASES = [
    (name, compress)
    for name in OPEN
    for compress in (False, True)
    if not compress or name not in LIBRARIES or LIBRARIES[name].compresses
]
each_case = pytest.mark.parametrize(
    ("name", "compress"), CASES, ids=[f"{name}{'-deflate' * compress}" for name, compress in CASES]
)


def by_channel(connection: Any, messages: list[str]) -> None:
    channel = wsfast.Channel(slow=UNBOUNDED)
    channel.subscribe(connection)
    for message in messages:
        channel.publish(message)


def by_hub(connection: Any, messages: list[str]) -> None:
    hub = wsfast.Hub(slow=UNBOUNDED)
    hub.subscribe(connection, "some.topic", "another")
    for message in messages:
        hub.publish("some.topic", message)
    hub.unsubscribe(connection, "some.topic")


def by_user(connection: Any, messages: list[str]) -> None:
    hub = wsfast.Hub(slow=UNBOUNDED)
    hub.register(connection, user="somebody")
    for message in messages:
        hub.send("somebody", message)


def by_subscription(connection: Any, messages: list[str]) -> None:
    with wsfast.Channel(slow=UNBOUNDED).subscribe(connection) as subscription:
        for message in messages:
            subscription.channel.publish(message)


ONE = ["you are kicked, " * 20]
BURST = [f"{number} " * 1000 for number in range(100)] + ["you are kicked"]


@pytest.mark.parametrize(
    ("publish", "messages"),
    [
        pytest.param(by_channel, ONE, id="channel"),
        pytest.param(by_hub, ONE, id="hub"),
        pytest.param(by_user, ONE, id="user"),
        pytest.param(by_subscription, ONE, id="subscription"),
        pytest.param(by_channel, BURST, id="burst"),
    ],
)
@each_case
def test_last_message_arrives_before_the_close_frame(
    run: Run, core: Any, name: str, compress: bool, publish: Any, messages: list[str]
) -> None:
    """What is published arrives, in order, though the connection is closed in the same tick, and so does the code."""

    async def main() -> None:
        small = messages is BURST
        async with (OPEN if small else OF_ANOTHER)[name](compress=compress, small=small) as connect:
            connection, client = await connect()
            wsfast.broadcast([connection], "first")
            reader = asyncio.create_task(read_all(client))
            publish(connection, messages)
            # Not in a task of its own, which would begin in the next tick.
            if name == "wsproto":
                await close_by_frame(connection)
            else:
                await close_by_keyword(connection)
            assert await reader == (["first", *messages], CODE)

    run(main)


LAGGING = ["websockets", "wsfast.serve", "websockets.legacy", "fastapi", "aiohttp", "wsproto"]


@pytest.mark.parametrize("size", [30_000, 300_000])
@pytest.mark.parametrize("name", LAGGING)
def test_close_frame_overtakes_only_what_waits_for_those_that_lag(run: Run, core: Any, name: str, size: int) -> None:
    """What has waited before the tick still arrives, unless it is more than 64 KiB: then it counts as dropped."""

    async def main() -> None:
        async with OPEN[name](compress=False, small=True) as connect:
            connection, client = await connect()
            channel = wsfast.Channel(slow=UNBOUNDED)
            subscription = channel.subscribe(connection)
            client.transport.pause_reading()
            while subscription.bytes < size:
                channel.publish("x" * 1000)
                channel.flush()
            channel.publish("last")
            closing = asyncio.create_task(close_adapted(connection))
            await until(lambda: adapt(connection).state is not State.OPEN)
            stats = channel.stats()
            client.transport.resume_reading()
            messages, code = await read_all(client)
            await closing
            assert code == CODE
            assert stats.queued == 0 or size > 65536
            await until(lambda: not subscription.active)
            stats = channel.stats()
            assert (stats.sent, stats.sent + stats.dropped) == (len(messages), stats.published)
            assert (stats.dropped == 0) is (size < 65536)
            assert (messages[-1] == "last") is (size < 65536)

    run(main)


def publish_last(connection: Any) -> None:
    """Publish as by_channel does; the subscription does not end by itself."""
    by_channel(connection, ["last"])


def fail_protocol(connection: Any) -> None:
    connection.protocol.fail(CODE)
    connection.send_data()


def close_protocol(connection: Any) -> None:
    connection.protocol.send_close(CODE)
    connection.send_data()


def send_close_frame(connection: Any) -> None:
    connection.protocol.send_frame(Frame(Opcode.CLOSE, CODE.to_bytes(2, "big")))
    connection.send_data()


def send_by_inner_connection(connection: Any) -> None:
    frame = connection.connection.connection.send(wsproto.events.CloseConnection(code=CODE))
    connection.transport.write(frame)


def fail_legacy(connection: Any) -> None:
    connection.fail_connection(CODE)


async def close_adapted(connection: Any) -> None:
    await adapt(connection).close(CODE, "")


async def flush_and_send_close(connection: Any) -> None:
    """Close a connection of picows by the rule of docs/how-to/connections.md."""
    wsfast.Channel().flush()
    connection.send_close(CODE)
    connection.disconnect()


@pytest.mark.parametrize(
    ("name", "close"),
    [
        *[(name, close) for name in ("websockets", "wsfast.serve") for close in (fail_protocol, close_protocol)],
        *[(name, send_close_frame) for name in ("websockets", "wsfast.serve", "websockets-client")],
        ("websockets.legacy", fail_legacy),
        ("wsproto", send_by_inner_connection),
        *[(name, close_adapted) for name in LIBRARIES if name != "picows"],
        ("picows", flush_and_send_close),
    ],
)
def test_last_message_arrives_however_the_connection_is_closed(run: Run, core: Any, name: str, close: Any) -> None:
    """The same, by other means than the public close()."""

    async def main() -> None:
        async with (OPEN | {"picows": LIBRARIES["picows"].open})[name](compress=False, small=False) as connect:
            connection, client = await connect()
            reader = asyncio.create_task(read_all(client))
            publish_last(connection)
            closing = close(connection)
            if closing is not None:
                await closing  # not in a task of its own, which would begin in the next tick
            assert await reader == (["last"], CODE)

    run(main)


class HandlerError(Exception):
    """What handlers raise."""


async def websockets_handler(connection: Any, *_: Any) -> None:
    end = await connection.recv()
    publish_last(connection)
    if end == "raise":
        raise HandlerError
    if end == "shutdown":
        getattr(connection, "server" if hasattr(connection, "server") else "ws_server").close()
        await connection.wait_closed()


@contextlib.asynccontextmanager
async def open_fastapi(protocol: str) -> AsyncIterator[Any]:
    app = fastapi.FastAPI()

    @app.websocket("/ws")
    async def endpoint(websocket: fastapi.WebSocket) -> None:
        await websocket.accept()
        end = await websocket.receive_text()
        publish_last(websocket)
        if end == "raise":
            raise HandlerError
        if end == "shutdown":
            adapt(websocket).shutdown()  # uvicorn's server calls it
            with contextlib.suppress(fastapi.WebSocketDisconnect):
                await websocket.receive_text()

    with contextlib.closing(listen(small=False)) as listener:
        async with serve_app(app, protocol, listener, compress=False):
            yield listener.getsockname()


@contextlib.asynccontextmanager
async def open_aiohttp() -> AsyncIterator[Any]:
    async def handler(request: aiohttp.web.Request) -> aiohttp.web.WebSocketResponse:
        response = aiohttp.web.WebSocketResponse()
        await response.prepare(request)
        end = await response.receive_str()
        publish_last(response)
        if end == "raise":
            raise HandlerError
        return response

    app = aiohttp.web.Application()
    app.router.add_get("/ws", handler)
    runner = aiohttp.web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    listener = listen(small=False)
    await aiohttp.web.SockSite(runner, listener).start()
    try:
        yield listener.getsockname()
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def open_websockets(serve: Callable[..., Any]) -> AsyncIterator[Any]:
    async with serve(websockets_handler, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()


HANDLERS: dict[str, Callable[[], contextlib.AbstractAsyncContextManager[Any]]] = {
    "websockets": lambda: open_websockets(websockets.asyncio.server.serve),
    "wsfast.serve": lambda: open_websockets(wsfast.serve),
    "websockets.legacy": lambda: open_websockets(serve_legacy),
    "fastapi": lambda: open_fastapi(WEBSOCKETS_PROTOCOL),
    "fastapi-wsproto": lambda: open_fastapi(WSPROTO_PROTOCOL),
    "aiohttp": open_aiohttp,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:websockets")
@pytest.mark.parametrize(
    ("name", "end"),
    [
        (name, end)
        for name in HANDLERS
        for end in ("return", "raise", "shutdown")
        if (name, end) != ("aiohttp", "shutdown")  # which is the application's business
    ],
)
def test_last_message_arrives_when_a_handler_ends(run: Run, core: Any, name: str, end: str) -> None:
    """What a handler publishes at its end arrives, whether it returns or raises, or the server shuts down."""

    async def main() -> None:
        async with HANDLERS[name]() as address:
            client = await dial(address, compress=False, small=False)
            await client.send(end)
            messages, _ = await read_all(client)
            assert messages == ["last"]

    run(main)


@pytest.mark.parametrize("name", OPEN)
def test_methods_are_replaced_only_while_subscribed(run: Run, core: Any, name: str) -> None:
    """Connections that are only broadcast to are left alone, and those that unsubscribe again, also from many."""

    def replaced(connection: Any) -> list[bool]:
        return [type(getattr(owner, name)) is FlushFirst for owner, name, _ in closers_of(adapt(connection))]

    async def main() -> None:
        async with OPEN[name](compress=False, small=False) as connect:
            connection, _ = await connect()
            wsfast.broadcast([connection], "message")
            count = len(replaced(connection))
            assert count > 0
            assert replaced(connection) == [False] * count
            for _ in range(2):
                subscriptions = [wsfast.Channel().subscribe(connection) for _ in range(3)]
                for subscription in subscriptions:
                    assert replaced(connection) == [True] * count
                    subscription.unsubscribe()
                assert replaced(connection) == [False] * count

    run(main)


@pytest.mark.parametrize("name", OPEN)
def test_methods_that_users_have_replaced_stay(run: Run, core: Any, name: str) -> None:
    """A method that was replaced on the object is called before and after as well as while it is subscribed."""

    async def main() -> None:
        async with OPEN[name](compress=False, small=False) as connect:
            connection, client = await connect()
            reader = asyncio.create_task(read_all(client))
            owner, attribute, _ = closers_of(adapt(connection))[0]
            original, calls = getattr(owner, attribute), []

            def replacement(*arguments: Any, **options: Any) -> Any:
                calls.append(arguments)
                return original(*arguments, **options)

            setattr(owner, attribute, replacement)
            wsfast.Channel().subscribe(connection).unsubscribe()
            assert getattr(owner, attribute) is replacement
            publish_last(connection)
            await close_adapted(connection)
            assert calls
            assert await reader == (["last"], CODE)

    run(main)


@pytest.mark.parametrize("name", sorted(set(OPEN) - {"aiohttp-client", "websockets-client"}))
def test_closed_connections_keep_no_method_replaced(run: Run, core: Any, name: str) -> None:
    """When a connection that was subscribed is lost, nothing refers to it in a circle on wsfast's account."""

    async def main() -> None:
        async with OPEN[name](compress=False, small=False) as connect:
            connection, client = await connect()
            subscription = wsfast.Channel().subscribe(connection)
            closers = closers_of(adapt(connection))
            reader = asyncio.create_task(read_all(client))
            await close_adapted(connection)
            await reader
            await until(lambda: not subscription.active)
            assert [
                type(getattr(owner, name)) for owner, name, _ in closers if type(getattr(owner, name)) is FlushFirst
            ] == []

    run(main)
