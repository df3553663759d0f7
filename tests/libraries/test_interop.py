"""Clients that nobody here wrote receive, with compression, exactly what was sent to each of them, and in order.

With more messages, as scripts/matrix sends them with ALL=1:

    WSFAST_TEST_MESSAGES=10000 pytest --timeout 0 -o faulthandler_timeout=0 tests/libraries/test_interop.py
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import zlib
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import aiohttp.web
import pytest
import websockets.asyncio.server
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    PerMessageDeflate,
    ServerPerMessageDeflateFactory,
)

import wsfast
from helpers.fixtures import Run
from helpers.interop.clients import CLIENTS, LIBRARIES, Inbox, Library, Node, Offer, connect, fingerprint, install_ws
from helpers.interop.sender import How, Line, Sender
from helpers.interop.tap import Header, Tap
from helpers.peers import TIMEOUT, until

MESSAGES = int(os.environ.get("WSFAST_TEST_MESSAGES", "3000"))
"""For each client of a library."""

# How the servers compress: as serve() does by itself; so, but by our factory; with windows of 32 KiB; and each message
# by itself.
SERVERS: dict[str, dict[str, Any]] = {
    "default": {},
    "frugal": {"compression": None, "extensions": [wsfast.ServerPerMessageDeflateFactory()]},
    "wide": {
        "compression": None,
        "extensions": [ServerPerMessageDeflateFactory(server_max_window_bits=15, compress_settings={"memLevel": 8})],
    },
    "alone": {
        "compression": None,
        "extensions": [ServerPerMessageDeflateFactory(server_no_context_takeover=True)],
    },
}
WINDOW_BITS = {"default": 12, "frugal": 12, "wide": 15, "alone": 15}


@dataclass
class Seat:
    """A client, what it asks for, and of which server."""

    library: Library
    server: str = "default"
    offer: Offer = field(default_factory=Offer)
    inbox: Inbox = field(default_factory=Inbox)
    path: str = ""


@pytest.fixture(scope="session")
def modules() -> Path:
    """Where Node finds the package ws, which is installed once."""
    return install_ws(Path(__file__).parents[2] / "build" / "node")


class Room:
    """Servers, and clients in whatever number."""

    def __init__(self, modules: Path) -> None:
        self.node = Node(modules)
        self.arrived: asyncio.Queue[websockets.asyncio.server.ServerConnection] = asyncio.Queue()
        self.exits = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Room:
        self.tap = await self.exits.enter_async_context(Tap())
        for name, options in SERVERS.items():
            server = await self.exits.enter_async_context(
                websockets.asyncio.server.serve(
                    self.handle, "127.0.0.1", 0, ping_interval=None, close_timeout=TIMEOUT, **options
                )
            )
            self.tap.ports[name] = next(iter(server.sockets)).getsockname()[1]
        self.tasks = await self.exits.enter_async_context(asyncio.TaskGroup())
        self.exits.callback(self.node.close)
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self.exits.__aexit__(*exc)

    async def handle(self, connection: websockets.asyncio.server.ServerConnection) -> None:
        await self.arrived.put(connection)
        await connection.wait_closed()

    async def enter(self, seat: Seat) -> Line:
        """Let a client connect."""
        seat.path = f"/{seat.server}/{len(self.tap.wires)}"
        url = f"ws://127.0.0.1:{self.tap.port}{seat.path}"
        if seat.library == "node":
            if not self.node.inboxes:
                await self.node.start()
                self.tasks.create_task(self.node.run())
            self.node.receive(url, seat.offer, seat.inbox)
        else:
            self.tasks.create_task(CLIENTS[seat.library](url, seat.offer, seat.inbox))
        async with asyncio.timeout(TIMEOUT):
            connection = await self.arrived.get()
        (deflate,) = connection.protocol.extensions
        assert isinstance(deflate, PerMessageDeflate)
        assert deflate.local_max_window_bits == min(seat.offer.window_bits or 15, WINDOW_BITS[seat.server])
        assert deflate.local_no_context_takeover is (seat.offer.no_context_takeover or seat.server == "alone")
        # At a ping between fragments wsproto forgets that the message is compressed.
        return Line(seat.path, connection, survives_split=seat.library != "wsproto")


def first_wrong(line: Line, received: Sequence[Any]) -> tuple[int, How] | None:
    """Return which of the messages is the first that is not what was sent, and how that was sent."""
    for number, (one, sent) in enumerate(zip(received, line.sent, strict=False)):
        if one != (fingerprint(sent.message) if isinstance(one, tuple) else sent.message):
            return number, sent.how
    return None


@contextlib.contextmanager
def explain(lines: list[Line], inboxes: list[Inbox]) -> Iterator[None]:
    """Tell with an exception how far each peer had come."""
    try:
        yield
    except BaseException as exc:
        for line, inbox in zip(lines, inboxes, strict=False):
            number = len(inbox.received)
            then = line.sent[number].how if number < len(line.sent) else None
            wrong = first_wrong(line, inbox.received)
            exc.add_note(f"{line.name}: {number} received, the next of them was {then}; first wrong: {wrong}")
        raise


def check(line: Line, received: Sequence[Any], response: bytes, headers: list[Header]) -> None:
    """What a peer received is what it was sent, some of it compressed and some of it not."""
    assert b"permessage-deflate" in response
    assert first_wrong(line, received) is None
    assert len(received) == len(line.sent)

    pairs = list(zip(headers, line.sent, strict=True))
    uncompressed = [header.compressed for header, sent in pairs if sent.how == "uncompressed"]
    assert uncompressed
    assert not any(uncompressed)
    assert sum(header.compressed for header in headers) > len(headers) / 2

    deflate = line.connection.protocol.extensions[0]
    if not deflate.local_no_context_takeover and deflate.local_max_window_bits >= 12:
        # What all have in common makes messages smaller than they are by themselves.
        settled = [(header, sent) for header, sent in pairs if (sent.kind, sent.how) == ("tick", "settled")]
        alone = [len(zlib.compress(wsfast.PreparedMessage(sent.message).data, wbits=-15)) for _, sent in settled]
        assert mean(header.length for header, _ in settled) < 0.8 * mean(alone)


def play(run: Run, modules: Path, seats: list[Seat], *, count: int, late: int) -> None:
    """Send to all clients, the last `late` of which come later, and check what each received."""
    lines: list[Line] = []

    async def enter(room: Room, sender: Sender, seats: list[Seat]) -> None:
        for seat in seats:
            line = await room.enter(seat)
            lines.append(line)
            sender.lines.append(line)

    async def main() -> Tap:
        sender = Sender(seed=count)
        async with Room(modules) as room:
            await enter(room, sender, seats[:-late])
            await sender.lively(count)
            await sender.calm(count)
            await enter(room, sender, seats[-late:])
            await sender.play(count=count)
        assert sender.skipped, "no connection was in the middle of a message when another was broadcast"
        return room.tap

    with explain(lines, [seat.inbox for seat in seats]):
        tap = run(main, 600)
    for seat, line in zip(seats, lines, strict=True):
        assert seat.inbox.code == 1000
        assert len(line.sent) >= count
        wire = tap.wires[seat.path]
        check(line, seat.inbox.received, wire.response, wire.to_client.of_messages())


def seats_of(library: Library) -> list[Seat]:
    """Return clients of one library, some of them with the same settings, with every setting that it can ask for."""
    seats = [Seat(library, server) for server in SERVERS]
    seats.append(Seat(library, "wide", Offer(9)))
    if library != "aiohttp":
        seats.append(Seat(library, "default", Offer(no_context_takeover=True)))
    return [*seats, Seat(library, "wide")]


@pytest.mark.parametrize("library", LIBRARIES)
def test_library(run: Run, modules: Path, library: Library) -> None:
    """Clients of one library."""
    play(run, modules, seats_of(library), count=MESSAGES, late=1)


def test_mixed(core: Any, run: Run, modules: Path) -> None:
    """Clients of all libraries, with windows of every size."""
    bits = {"websockets": (9, 13), "aiohttp": (10, 14), "wsproto": (11, 15), "node": (12, 9)}
    seats = [Seat(library, "wide", Offer(one)) for library in LIBRARIES for one in bits[library]]
    seats += [Seat(library, server) for library in LIBRARIES for server in ("default", "frugal")]
    play(run, modules, seats, count=3000, late=3)


async def serve_by_websockets(inboxes: dict[str, Inbox], exits: contextlib.AsyncExitStack) -> int:
    """Start a server of websockets that receives; return its port."""

    async def handle(connection: websockets.asyncio.server.ServerConnection) -> None:
        assert connection.request is not None
        inbox = inboxes[connection.request.path]
        async for message in connection:
            inbox.received.append(message)
        inbox.code = connection.protocol.close_code

    server = await exits.enter_async_context(
        websockets.asyncio.server.serve(handle, "127.0.0.1", 0, max_size=None, ping_interval=None)
    )
    port: int = next(iter(server.sockets)).getsockname()[1]
    return port


async def serve_by_aiohttp(inboxes: dict[str, Inbox], exits: contextlib.AsyncExitStack) -> int:
    """Start a server of aiohttp that receives; return its port."""

    async def handle(request: aiohttp.web.Request) -> aiohttp.web.WebSocketResponse:
        inbox = inboxes[request.path]
        connection = aiohttp.web.WebSocketResponse(compress=True, max_msg_size=0)
        await connection.prepare(request)
        async for message in connection:
            assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), message
            inbox.received.append(message.data)
        inbox.code = connection.close_code
        return connection

    app = aiohttp.web.Application()
    app.router.add_get("/{path:.*}", handle)
    runner = aiohttp.web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    exits.push_async_callback(runner.cleanup)
    await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
    port: int = runner.addresses[0][1]
    return port


@pytest.mark.parametrize("serve", [serve_by_websockets, serve_by_aiohttp])
def test_to_servers(core: Any, run: Run, serve: Callable[..., Coroutine[Any, Any, int]]) -> None:
    """Clients of websockets, whose frames are masked, send to a server."""
    offers: list[dict[str, Any]] = [
        {"client_max_window_bits": True},
        {"client_max_window_bits": 9},
        {"client_max_window_bits": 12, "compress_settings": {"memLevel": 5}},
        {"client_max_window_bits": 12, "compress_settings": {"memLevel": 5}},
        {"client_no_context_takeover": True},
    ]
    inboxes = {f"/server/{number}": Inbox() for number in range(len(offers))}
    lines: list[Line] = []

    async def main() -> Tap:
        sender = Sender(seed=1000)
        async with contextlib.AsyncExitStack() as exits:
            tap = await exits.enter_async_context(Tap())
            tap.ports["server"] = await serve(inboxes, exits)
            for path, offer in zip(inboxes, offers, strict=True):
                connection = await connect(
                    f"ws://127.0.0.1:{tap.port}{path}", extensions=[ClientPerMessageDeflateFactory(**offer)]
                )
                exits.push_async_callback(connection.close)
                lines.append(Line(path, connection))
            sender.lines += lines
            await sender.play(count=1000)
            for inbox in inboxes.values():
                await until(lambda inbox=inbox: inbox.code is not None, "the server")  # type: ignore[misc]
        return tap

    with explain(lines, list(inboxes.values())):
        tap = run(main)
    for line in lines:
        inbox, wire = inboxes[line.name], tap.wires[line.name]
        assert inbox.code == 1000
        assert len(line.sent) >= 1000
        check(line, inbox.received, wire.response, wire.to_server.of_messages())
