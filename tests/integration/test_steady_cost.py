"""What a fan-out costs in Python per client, whatever has happened to the clients before: counted, hence exact."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import uvicorn
import websockets.asyncio.server
from websockets.asyncio.client import connect

import wsfast
from helpers.fanout import broadcast_to, channel_of, hub_of
from helpers.peers import until
from wsfast._core import core

CLIENTS = 100
PER_CLIENT = 0.5
"""Python calls that a client may cost."""

ONCE = 100
"""Python calls that a fan-out may cost, however many clients there are."""


class Served:
    """A server, its connections, and how each sends a message of its own."""

    def __init__(self, port: int, connections: list[Any], sends: list[Callable[[str], Awaitable[Any]]]) -> None:
        self.port = port
        self.connections = connections
        self.sends = sends


@contextlib.asynccontextmanager
async def serve_websockets(serve: Callable[..., Any], compression: str | None) -> AsyncIterator[Served]:
    connections: list[Any] = []
    sends: list[Callable[[str], Awaitable[Any]]] = []

    async def handler(connection: Any) -> None:
        connections.append(connection)
        sends.append(connection.send)
        async for _ in connection:
            pass

    async with serve(handler, "127.0.0.1", 0, compression=compression, ping_interval=None) as server:
        yield Served(server.sockets[0].getsockname()[1], connections, sends)


@contextlib.asynccontextmanager
async def serve_uvicorn(ws: str, compression: str | None) -> AsyncIterator[Served]:
    connections: list[Any] = []
    sends: list[Callable[[str], Awaitable[Any]]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            return

        async def send_text(text: str) -> None:
            await send({"type": "websocket.send", "text": text})

        await receive()
        await send({"type": "websocket.accept"})
        connections.append(scope["extensions"]["wsfast"])
        sends.append(send_text)
        while (await receive())["type"] != "websocket.disconnect":
            pass

    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        log_level="error",
        lifespan="off",
        ws=ws,
        ws_per_message_deflate=compression is not None,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    try:
        yield Served(server.servers[0].sockets[0].getsockname()[1], connections, sends)
    finally:
        server.should_exit = True
        await task


SERVERS: dict[str, Callable[[str | None], contextlib.AbstractAsyncContextManager[Served]]] = {
    "websockets": partial(serve_websockets, websockets.asyncio.server.serve),
    "wsfast.serve": partial(serve_websockets, wsfast.serve),
    "uvicorn": partial(serve_uvicorn, "wsfast.uvicorn:WebSocketsProtocol"),
    "uvicorn-wsproto": partial(serve_uvicorn, "wsfast.uvicorn:WSProtocol"),
}


METHODS: dict[str, Callable[[list[Any]], Callable[[str], Any]]] = {
    "Channel": channel_of,
    "Hub": hub_of,
    "broadcast": broadcast_to,
}


def calls_of(function: Callable[[str], Any], message: str) -> int:
    """Return how many functions, of Python and of C, are called meanwhile."""
    calls = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        function(message)
    finally:
        sys.setprofile(None)
    return calls


async def until_heard(sockets: list[Any]) -> None:
    """Wait until both ends have read all that was sent: a connection that something arrives at later is asked.

    What is sent over the loopback device is there when nothing of it is unacknowledged; an event loop that has read
    it has handled it in the same iteration, and a handler or a writer that this has woken up goes on in the next ones.
    """

    def octets(sock: Any, request: int) -> int:
        count = array.array("i", [0])
        fcntl.ioctl(sock.fileno(), request, count)
        return count[0]

    await until(lambda: not any(octets(sock, termios.TIOCOUTQ) for sock in sockets))
    await until(lambda: not any(octets(sock, termios.FIONREAD) for sock in sockets))
    for _ in range(10):
        await asyncio.sleep(0)


async def heard_pong(clients: list[Any], _served: Served) -> None:
    for client in clients:
        await client.pong()  # one that nobody has asked for, as keepalive of browsers' proxies


async def answered_ping(clients: list[Any], _served: Served) -> None:
    await asyncio.gather(*[await client.ping() for client in clients])


async def heard_message(clients: list[Any], _served: Served) -> None:
    for client in clients:
        await client.send("hello")


async def sent_privately(_clients: list[Any], served: Served) -> None:
    for send in served.sends:
        await send("private")


EVENTS = [heard_pong, answered_ping, heard_message, sent_privately]


@pytest.mark.parametrize("compression", [None, "deflate"], ids=["plain", "deflate"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("server", SERVERS)
def test_steady_cost(server: str, method: str, compression: str | None) -> None:
    """A client that was heard of, or sent something that the kernel took whole, costs no Python call afterwards."""
    if not core.sends_directly:
        pytest.skip("the twin always asks")

    async def main() -> None:
        async with SERVERS[server](compression) as served, contextlib.AsyncExitStack() as stack:
            url = f"ws://127.0.0.1:{served.port}"
            clients = [
                await stack.enter_async_context(
                    connect(url, compression=compression, ping_interval=None, max_queue=None)
                )
                for _ in range(CLIENTS)
            ]
            readers = [asyncio.create_task(client.wait_closed()) for client in clients]
            await until(lambda: len(served.connections) == CLIENTS)
            # Asked for now: whoever looks at a connection's transport makes it one that must be asked.
            sockets = [end.transport.get_extra_info("socket") for end in (*served.connections, *clients)]
            publish = METHODS[method](served.connections)
            # Long enough to be compressed; and until windows are full, a newcomer's is not yet that of the others.
            for number in range(60):
                publish(f"the first time, each is asked {number}" * 3)
            costs = {"quiet": calls_of(publish, "quiet" * 20)}
            for event in EVENTS:
                await event(clients, served)
                await until_heard(sockets)
                publish("a client that was heard of may be asked once" * 2)
                await until_heard(sockets)
                costs[event.__name__] = calls_of(publish, "nobody is asked" * 5)
            assert {name: calls for name, calls in costs.items() if calls > PER_CLIENT * CLIENTS + ONCE} == {}
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    asyncio.run(main())


@pytest.mark.parametrize("subscribers", ["alike", "all different"])
def test_filtered_cost(subscribers: str) -> None:
    """Subscribers whose filters do not let a message through cost no Python call."""
    if not core.sends_directly:
        pytest.skip("the twin looks at each")

    async def main() -> dict[str, int]:
        async with SERVERS["wsfast.serve"](None) as served, contextlib.AsyncExitStack() as stack:
            url = f"ws://127.0.0.1:{served.port}"
            for _ in range(CLIENTS):
                client = await stack.enter_async_context(connect(url, compression=None, ping_interval=None))
                stack.callback(asyncio.create_task(client.wait_closed()).cancel)
            await until(lambda: len(served.connections) == CLIENTS)
            hub = wsfast.Hub()
            for number, connection in enumerate(served.connections):
                tags = {"alike"} if subscribers == "alike" else {f"t{number % 60}", f"t{number * 7 % 60}"}
                hub.subscribe(connection, "a", tags=tags if number else {"one"})
                if number in (0, 1):
                    hub.subscribe(connection, "b", tags={"one"} if number else None)
                    hub.subscribe(connection, "c")

            def cost(topic: str, **options: Any) -> int:
                def publish(message: str) -> None:
                    hub.publish(topic, message, **options)
                    hub.flush()

                for _ in range(3):
                    publish("warm")
                return calls_of(publish, "counted")

            return {
                "one of all": cost("a", tags={"one"}),
                "nobody": cost("a", tags={"nobody asks for it"}),
                "one of two": cost("b", tags={"two"}),
                "no filter": cost("c"),
            }

    costs = asyncio.run(main())
    assert costs["one of all"] <= costs["one of two"]
    assert costs["nobody"] <= costs["one of two"]
    assert costs["one of two"] - costs["no filter"] < 30, costs


@pytest.mark.parametrize("compression", [None, "deflate"], ids=["plain", "deflate"])
@pytest.mark.parametrize("server", [server for server in SERVERS if server != "websockets"])  # which does not tell
def test_broadcast_reads_no_attribute(server: str, compression: str | None) -> None:
    """Connections that are ready are sent to without being looked at: they need not even tell which peer is theirs."""
    if not core.sends_directly:
        pytest.skip("the twin always asks")

    async def main() -> None:
        async with SERVERS[server](compression) as served, contextlib.AsyncExitStack() as stack:
            url = f"ws://127.0.0.1:{served.port}"
            clients = [
                await stack.enter_async_context(connect(url, compression=compression, ping_interval=None))
                for _ in range(10)
            ]
            while len(served.connections) < len(clients):
                await asyncio.sleep(0.01)
            connections = set(served.connections)
            assert wsfast.broadcast(connections, "first " * 30).sent == len(clients)
            peers = [connection._wsfast_peer for connection in connections]
            for connection in connections:
                connection._wsfast_peer = None
            assert wsfast.broadcast(connections, "second " * 30).sent == len(clients)
            assert [connection._wsfast_peer for connection in connections] == [None] * len(clients)
            for connection, peer in zip(connections, peers, strict=True):
                connection._wsfast_peer = peer
            assert [[await client.recv(), await client.recv()] for client in clients] == [
                ["first " * 30, "second " * 30]
            ] * len(clients)

    asyncio.run(main())
