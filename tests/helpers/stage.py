"""Where scenarios of broadcast() are played: real servers, real sockets, and a record of all that can be observed."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import re
import shutil
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import websockets.asyncio.client
import websockets.asyncio.server
import websockets.version
from websockets.asyncio.server import ServerConnection

import wsfast
from helpers.peers import TIMEOUT, BasePeer, Frame, Peer, StreamPeer, accept_upgrade, inflate, parse_frames, until
from wsfast.connections.shape import peer_of
from wsfast.connections.websockets import SEND_IN_PROGRESS, Reporting

__all__ = ["Outcome", "Scenario", "Stage", "describe", "drop", "fragmented_send", "play", "upstream", "version"]

Kind: TypeAlias = Literal["plain", "deflate", "tls", "tls-deflate", "unix", "unix-deflate", "client"]

TCP_CLOSE = b"\x07"  # tcpi_state of a connection that is no more

version = tuple(int(part) for part in websockets.version.version.split(".")[:2])


def upstream(
    connections: Iterable[Any],
    message: Any,
    raise_exceptions: bool = False,
    *,
    text: bool | None = None,
) -> None:
    """Call upstream's broadcast(), whose arguments moved over the years."""
    options: dict[str, Any] = {"raise_exceptions": raise_exceptions}
    if version >= (16, 1):
        options["text"] = text
    elif text is True and not isinstance(message, str):
        message = bytes(message).decode()
    elif text is False and isinstance(message, str):
        message = message.encode()
    websockets.asyncio.server.broadcast(connections, message, **options)


def family(kind: Kind) -> socket.AddressFamily:
    """Return the family of sockets of a kind of connections."""
    return socket.AF_UNIX if kind.startswith("unix") else socket.AF_INET


def drop(connection: Any, peer: Peer) -> None:
    """Have a peer reset a connection; return when the kernel knows, but the event loop cannot."""
    peer.reset()
    sock = connection.transport.get_extra_info("socket")
    if sys.platform == "linux" and sock.family == socket.AF_INET:
        deadline = time.monotonic() + TIMEOUT
        while sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != TCP_CLOSE:
            assert time.monotonic() < deadline, "the reset has not arrived"
            time.sleep(0.0001)


def describe(exc: BaseException) -> Any:
    """Return all of an exception that must agree."""

    def line(exc: BaseException | None) -> Any:
        return None if exc is None else (type(exc).__name__, re.sub(r"0x[0-9a-f]+", "0x", str(exc)))

    if isinstance(exc, BaseExceptionGroup):
        return (*line(exc), [(line(one), line(one.__cause__)) for one in exc.exceptions])
    return line(exc), line(exc.__cause__)


@dataclass
class Outcome:
    """What a scenario came to: all that must not depend on whose broadcast() it was."""

    streams: list[bytes | tuple[list[Frame], bytes]] = field(default_factory=list)
    """What each peer received; from clients, unmasked; if it was compressed, what it was before."""
    records: list[tuple[str, int, str]] = field(default_factory=list)
    """Name of the logger, level and text of each log record."""
    exceptions: list[Any] = field(default_factory=list)
    """What calls of broadcast() raised."""
    notes: list[Any] = field(default_factory=list)
    """What the scenario itself had to say."""
    keys: list[bytes] = field(default_factory=list, compare=False)
    """Mask keys of the frames of clients."""
    deliveries: list[wsfast.Delivery | None] = field(default_factory=list, compare=False)
    """What calls of broadcast() returned."""


class Recorder(logging.Handler):
    """Keeps what is logged, and calls back if asked to."""

    def __init__(self, records: list[tuple[str, int, str]]) -> None:
        super().__init__()
        self.records = records
        self.on_record: Callable[[logging.LogRecord], None] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append((record.name, record.levelno, re.sub(r"0x[0-9a-f]+", "0x", record.getMessage())))
        if self.on_record is not None:
            self.on_record(record)


class Counted:
    """An iterable of unknown type that counts what was taken from it."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items
        self.taken = 0

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            self.taken += 1
            yield item


class Stage:
    """Connections with their peers, and one of the two broadcast() to try on them."""

    def __init__(
        self,
        broadcast: Callable[..., wsfast.Delivery | None],
        tls: tuple[ssl.SSLContext, ssl.SSLContext],
        *,
        server_connection: type[ServerConnection] | None = None,
    ) -> None:
        self.outcome = Outcome()
        self.connections: list[Any] = []
        self.peers: list[BasePeer] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.recorder = Recorder([])
        self._broadcast = broadcast
        self._server_connection = server_connection
        self._server_tls, self._client_tls = tls
        self._servers: dict[Any, tuple[Any, Any]] = {}
        self._arrived: asyncio.Queue[Any] = asyncio.Queue()
        self._exits = contextlib.ExitStack()

    # ---- Acting

    def broadcast(
        self, connections: Iterable[Any], message: Any, raise_exceptions: bool = False, **options: Any
    ) -> wsfast.Delivery | None:
        """Call the one at hand and record what comes of it."""
        counted = None
        given = 0
        if isinstance(connections, Sized):
            given = len(connections)
        else:
            connections = counted = Counted(connections)
        try:
            delivery = self._broadcast(connections, message, raise_exceptions, **options)
        except Exception as exc:
            self.outcome.exceptions.append(describe(exc))
            return None
        if counted is not None:
            given = counted.taken
        if delivery is not None:
            assert sum(delivery) == given, (delivery, given)
        self.outcome.deliveries.append(delivery)
        return delivery

    def note(self, *what: Any) -> None:
        """Add something that must agree."""
        self.outcome.notes.append(what)

    async def start(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine in a task up to the first point where it waits for something."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.append(task)
        await asyncio.sleep(0)
        return task

    async def connect(self, kind: Kind = "plain", *, known: bool = True, **options: Any) -> tuple[Any, Any]:
        """Open one connection; return it, and its peer.

        If it is `known`, one that tells what happens to it is not looked at when it is first sent to.
        """
        connection, peer = await (self._dial(**options) if kind == "client" else self._accept(kind, **options))
        self.connections.append(connection)
        self.peers.append(peer)
        if known and isinstance(connection, Reporting):
            peer_of(connection).check(connection)
        # Whether records of the handshake are in order is not of interest here, and they tell the time.
        self.recorder.records.clear()
        return connection, peer

    async def connect_many(self, count: int, kind: Kind = "plain", **options: Any) -> list[Any]:
        """Open several connections of a kind."""
        return [(await self.connect(kind, **options))[0] for _ in range(count)]

    def own(self, sock: socket.socket) -> socket.socket:
        """Close a socket in the end."""
        return self._exits.enter_context(sock)

    # ---- Setting up

    async def _accept(
        self,
        kind: Kind,
        *,
        sndbuf: int | None = None,
        rcvbuf: int | None = None,
        peer_socket: socket.socket | None = None,
        offer: str = "permessage-deflate; client_max_window_bits",
        **options: Any,
    ) -> tuple[Any, BasePeer]:
        server_options = (kind, sndbuf, *sorted(options.items()))
        if server_options not in self._servers:
            self._servers[server_options] = await self._serve(kind, sndbuf, options)
        address = self._servers[server_options][1]
        sock = peer_socket or socket.socket(family(kind))
        peer: BasePeer = Peer(sock)
        if rcvbuf is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        await asyncio.get_running_loop().sock_connect(sock, address)
        if kind.startswith("tls"):
            peer = StreamPeer(
                *await asyncio.open_connection(sock=sock, ssl=self._client_tls, server_hostname="localhost")
            )
        compressed = kind.endswith("deflate")
        head = await peer.upgrade(offer if compressed else None)
        assert (b"permessage-deflate" in head) == compressed
        async with asyncio.timeout(TIMEOUT):
            return await self._arrived.get(), peer

    async def _serve(self, kind: Kind, sndbuf: int | None, options: dict[str, Any]) -> tuple[Any, Any]:
        sock = socket.socket(family(kind))
        if sndbuf is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)  # accepted sockets inherit it
        if sock.family == socket.AF_UNIX:
            directory = tempfile.mkdtemp()
            self._exits.callback(shutil.rmtree, directory)
            sock.bind(str(Path(directory) / "socket"))
        else:
            sock.bind(("127.0.0.1", 0))
        settings: dict[str, Any] = {
            "compression": "deflate" if kind.endswith("deflate") else None,
            "ssl": self._server_tls if kind.startswith("tls") else None,
            "ping_interval": None,
            "create_connection": self._server_connection,
        }
        server = await websockets.asyncio.server.serve(self._handle, sock=sock, **(settings | options))
        return server, sock.getsockname()

    async def _handle(self, connection: Any) -> None:
        await self._arrived.put(connection)
        await connection.wait_closed()

    async def _dial(
        self, *, sndbuf: int | None = None, rcvbuf: int | None = None, **options: Any
    ) -> tuple[Any, BasePeer]:
        if "proxy" in inspect.signature(websockets.asyncio.client.connect).parameters:
            options["proxy"] = None
        loop = asyncio.get_running_loop()
        with socket.socket() as listener:
            if rcvbuf is not None:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            listener.setblocking(False)
            sock = socket.socket()
            if sndbuf is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
            sock.setblocking(False)
            await loop.sock_connect(sock, listener.getsockname())

            async def respond() -> Peer:
                peer = Peer((await loop.sock_accept(listener))[0])
                await peer.send(accept_upgrade(await peer.read_head()))
                return peer

            async def connect() -> Any:
                settings: dict[str, Any] = {"compression": None, "ping_interval": None, "sock": sock}
                return await websockets.asyncio.client.connect("ws://localhost/", **(settings | options))

            async with asyncio.timeout(TIMEOUT):
                peer, connection = await asyncio.gather(respond(), connect())
                return connection, peer

    # ---- Clearing up

    async def finish(self) -> None:
        """Let every stream come to its end, and record it."""
        self.outcome.records = list(self.recorder.records)
        self.recorder.on_record = None
        readers = [asyncio.ensure_future(peer.read_to_end()) for peer in self.peers]
        for task in self.tasks:
            if not task.done() and task.get_coro().__name__ != "close":  # type: ignore[union-attr]
                await asyncio.wait([task], timeout=TIMEOUT)
        for connection in self.connections:
            if not connection.connection_lost_waiter.done():
                connection.transport.close()
        async with asyncio.timeout(TIMEOUT):
            await asyncio.gather(*readers)
            await asyncio.gather(*self.tasks, return_exceptions=True)
        for connection, peer in zip(self.connections, self.peers, strict=True):
            stream = bytes(peer.received)
            if connection.protocol.extensions:
                # How messages are compressed is not to be the same. Nor is what is left of one that was cut off.
                frames, tail = parse_frames(stream)
                bits = connection.protocol.extensions[0].local_max_window_bits
                self.outcome.streams.append((inflate(frames, bits), b"..." if tail else b""))
            elif isinstance(connection, websockets.asyncio.client.ClientConnection):
                frames, tail = parse_frames(stream)
                self.outcome.keys += [frame.key for frame in frames]
                self.outcome.streams.append(([frame._replace(key=b"") for frame in frames], tail))
            else:
                self.outcome.streams.append(stream)

    async def clear(self) -> None:
        """Close everything, whatever happened."""
        for connection in self.connections:
            if not connection.connection_lost_waiter.done():
                connection.transport.abort()
        for peer in self.peers:
            peer.close()
            if isinstance(peer, StreamPeer):
                with contextlib.suppress(OSError):
                    await peer.writer.wait_closed()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for connection in self.connections:
            await until(connection.connection_lost_waiter.done, "the connection to be lost")
        for server, _ in self._servers.values():
            server.close()
            async with asyncio.timeout(TIMEOUT):
                await server.wait_closed()
        self._exits.close()


Scenario: TypeAlias = Callable[[Stage], Awaitable[None]]


async def play(
    scenario: Scenario,
    broadcast: Callable[..., wsfast.Delivery | None],
    tls: tuple[ssl.SSLContext, ssl.SSLContext],
    *,
    level: int = logging.INFO,
    server_connection: type[ServerConnection] | None = None,
) -> Outcome:
    """Run a scenario with one broadcast() and one type of the server's connections, and return what came of it."""
    stage = Stage(broadcast, tls, server_connection=server_connection)
    loggers = [logging.getLogger("websockets"), logging.getLogger("asyncio")]
    levels = [logger.level for logger in loggers]
    loggers[0].setLevel(level)
    for logger in loggers:
        logger.addHandler(stage.recorder)
    try:
        await scenario(stage)
        await stage.finish()
    finally:
        await stage.clear()
        for logger, old_level in zip(loggers, levels, strict=True):
            logger.removeHandler(stage.recorder)
            logger.setLevel(old_level)
    return stage.outcome


class fragmented_send:  # noqa: N801
    """A fragmented message that is being sent: its first fragment is out, the rest waits for `finish()`."""

    def __init__(self, stage: Stage, connection: Any) -> None:
        self.stage, self.connection = stage, connection
        self.gate = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> fragmented_send:
        self.task = await self.stage.start(self.connection.send(self.fragments()))
        await until(lambda: getattr(self.connection, SEND_IN_PROGRESS) is not None, "the first fragment")
        return self

    async def fragments(self) -> Any:
        yield "first, "
        await self.gate
        yield "last"

    async def finish(self) -> None:
        """Send the rest."""
        if not self.gate.done():
            self.gate.set_result(None)
        await asyncio.wait([self.task], timeout=TIMEOUT)

    async def __aexit__(self, *_: object) -> None:
        await self.finish()
