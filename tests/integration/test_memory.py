"""What a broadcast costs in memory: one frame, however many connections; and nothing that stays."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import mmap
import os
import socket
import subprocess
import sys
import tempfile
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from websockets.asyncio.server import serve

import wsfast
from helpers.fixtures import Run
from helpers.libraries import WEBSOCKETS_PROTOCOL, WSPROTO_PROTOCOL, fastapi_app, listen, serve_app
from helpers.peers import TIMEOUT, Peer, inflate, parse_frames, until
from wsfast._core import _pure

SIZE = 65536
COUNT = 1000


READER = """
import mmap, os, selectors, sys

stop, counter, *fds = map(int, sys.argv[1:])
octets = memoryview(mmap.mmap(counter, 8)).cast("Q")
buffer = bytearray(1 << 18)
selector = selectors.DefaultSelector()
for fd in (stop, *fds):
    selector.register(fd, selectors.EVENT_READ)
while True:
    for key, _ in selector.select():
        if key.fd == stop:
            os._exit(0)
        try:
            size = os.readv(key.fd, [buffer])
        except ConnectionError:
            size = 0
        octets[0] += size
        if size == 0:
            selector.unregister(key.fd)
"""


@contextlib.contextmanager
def reading(peers: list[Peer]) -> Iterator[memoryview]:
    """Read what arrives at the peers in another process, whose memory does not count; yield the number of octets."""
    stop, stopping = os.pipe()
    with tempfile.TemporaryFile() as file:
        file.truncate(8)
        octets = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")
        fds = [stop, file.fileno(), *(peer.sock.fileno() for peer in peers)]
        process = subprocess.Popen([sys.executable, "-c", READER, *map(str, fds)], pass_fds=fds)
    try:
        yield octets
    finally:
        os.close(stopping)
        assert process.wait() == 0
        os.close(stop)


@contextlib.asynccontextmanager
async def reading_clients(count: int) -> AsyncIterator[tuple[list[Any], memoryview]]:
    """Connect clients that read as fast as they can."""
    connections: list[Any] = []
    peers: list[Peer] = []

    async def handler(connection: Any) -> None:
        connections.append(connection)
        await connection.wait_closed()

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * SIZE)  # room for a message, also if nobody reads yet
    listener.bind(("127.0.0.1", 0))
    address = listener.getsockname()
    async with serve(handler, sock=listener, compression=None, ping_interval=None, close_timeout=1):
        try:
            for _ in range(count):
                sock = socket.socket()
                peers.append(Peer(sock))
                await asyncio.get_running_loop().sock_connect(sock, address)
                await peers[-1].upgrade()
            await until(lambda: len(connections) == count)
            with reading(peers) as octets:
                yield connections, octets
        finally:
            for connection in connections:
                connection.transport.abort()
            for peer in peers:
                peer.close()


@pytest.mark.parametrize("kind", ["str", "prepared"])
def test_broadcast_allocates_one_frame(core: Any, run: Run, kind: str) -> None:
    """Broadcast of 64 KiB to 1000 reading clients allocates less than 1 MiB."""
    # The twin leaves all to the transports, which copy what they cannot send.
    count = 100 if core is _pure else COUNT

    async def main() -> None:
        async with reading_clients(count) as (connections, octets):
            message: Any = "x" * SIZE
            if kind == "prepared":
                message = wsfast.PreparedMessage(message)
            wsfast.broadcast(connections, "warm up")
            await until(lambda: octets[0] == count * 9, "the clients to have read")
            gc.collect()
            tracemalloc.start()
            try:
                before, _ = tracemalloc.get_traced_memory()
                tracemalloc.reset_peak()
                delivery = wsfast.broadcast(connections, message)
                after, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert delivery.skipped == delivery.failed == 0
            if core is not _pure:
                assert delivery.sent == count
                assert peak - before < 1 << 20
                assert after - before < 2 * SIZE
            await until(lambda: octets[0] == count * (SIZE + 10 + 9), "the clients to have read")

    run(main)


def test_broadcast_keeps_nothing(core: Any, run: Run) -> None:
    """Broadcast leaves reference counts, the number of objects and the amount of memory as they were."""

    async def main() -> None:
        async with reading_clients(20) as (connections, octets):
            message = wsfast.PreparedMessage(b"x" * 1000)
            sent = 0

            async def broadcast(times: int) -> None:
                nonlocal sent
                for _ in range(times):
                    wsfast.broadcast(connections, message)
                    wsfast.broadcast(iter(connections[:2]), message)
                    sent += 22 * 1004
                    if connections[0].transport.get_write_buffer_size():
                        await asyncio.sleep(0)
                await until(lambda: octets[0] == sent, "the clients to have read")

            def counts() -> list[int]:
                gc.collect()
                objects = [message, message.frame, message.data, connections, *connections]
                objects += [connection.transport for connection in connections]
                objects += [connection.protocol for connection in connections]
                return [sys.getrefcount(one) for one in objects]

            await broadcast(10)
            before, objects_before = counts(), len(gc.get_objects())
            tracemalloc.start()
            try:
                await broadcast(10)
                gc.collect()
                growth = []
                for _ in range(3):  # what is kept for ever is kept each time, what is made once is not
                    memory_before, _ = tracemalloc.get_traced_memory()
                    await broadcast(500)
                    after, objects_after = counts(), len(gc.get_objects())
                    growth.append(tracemalloc.get_traced_memory()[0] - memory_before)
            finally:
                tracemalloc.stop()
            assert after == before
            assert abs(objects_after - objects_before) < 50
            assert min(growth) < 20_000

    run(main)


@pytest.mark.parametrize("protocol", [WEBSOCKETS_PROTOCOL, WSPROTO_PROTOCOL])
def test_uvicorn_makes_no_encoders(run: Run, monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
    """Connections that are only broadcast to own no encoder, which is half of what deflate takes; others make one."""
    made: list[object] = []
    compressobj = zlib.compressobj

    def count(*arguments: Any, **options: Any) -> Any:
        made.append(options)
        return compressobj(*arguments, **options)

    async def main() -> None:
        arrived: asyncio.Queue[Any] = asyncio.Queue()
        with contextlib.closing(listen(small=False)) as listener, contextlib.ExitStack() as exits:
            async with serve_app(fastapi_app(arrived), protocol, listener, compress=True):

                async def connect() -> tuple[Any, Peer]:
                    peer = exits.enter_context(contextlib.closing(Peer(socket.socket())))
                    await asyncio.get_running_loop().sock_connect(peer.sock, listener.getsockname())
                    head = await peer.upgrade("permessage-deflate; client_max_window_bits", target="/ws")
                    assert b"permessage-deflate" in head
                    return await arrived.get(), peer

                pairs = [await connect()]
                wsfast.broadcast([websocket for websocket, _ in pairs], "warm up " * 20)
                monkeypatch.setattr(zlib, "compressobj", count)
                pairs += [await connect() for _ in range(5)]
                assert not made
                # For the one that knows more, each time; by itself; and for the others, whose encoder is kept.
                for number, encoders in enumerate((2, 4, 5)):
                    wsfast.broadcast([websocket for websocket, _ in pairs], f"message {number} " * 20)
                    assert len(made) == encoders
                await pairs[1][0].send_text("private " * 20)
                assert len(made) == 6
                for index, (_, peer) in enumerate(pairs):
                    count_of_messages = 3 + (index < 2)
                    async with asyncio.timeout(TIMEOUT):
                        while len(parse_frames(bytes(peer.received))[0]) < count_of_messages:
                            await peer.read_some()
                    texts = [frame.payload.decode() for frame in inflate(parse_frames(bytes(peer.received))[0], 15)]
                    assert texts[-1] == ("private " * 20 if index == 1 else "message 2 " * 20)
                monkeypatch.undo()

    run(main)


def test_failed_broadcasts_keep_nothing(core: Any, run: Run) -> None:
    """Broadcast that raises, or has failures to report, leaves reference counts as they were."""

    async def main() -> None:
        async with reading_clients(3) as (connections, _):
            message = wsfast.PreparedMessage("x")
            connections[1].transport.write_eof()
            mixed = [connections[0], connections[1], 5.5]

            def broadcast() -> None:
                with contextlib.suppress(ExceptionGroup):
                    wsfast.broadcast(connections, message, raise_exceptions=True)
                with contextlib.suppress(TypeError):
                    wsfast.broadcast(mixed, message, raise_exceptions=True)

            def counts() -> list[int]:
                gc.collect()
                return [sys.getrefcount(one) for one in (message, message.frame, mixed, mixed[2], *connections)]

            for _ in range(5):
                broadcast()
            await asyncio.sleep(0)
            before = counts()
            for _ in range(100):
                broadcast()
            await asyncio.sleep(0)
            assert counts() == before

    run(main)


def test_connections_are_collected(core: Any, run: Run) -> None:
    """Broadcast keeps no connection alive once it is closed and forgotten."""
    import weakref

    async def main() -> list[weakref.ref[Any]]:
        async with reading_clients(5) as (connections, _):
            wsfast.broadcast(connections, "hello")
            references = [weakref.ref(connection) for connection in connections]
            for connection in connections:
                connection.transport.abort()
            for connection in connections:
                await until(connection.connection_lost_waiter.done)
            del connection
            connections.clear()
        return references

    references = run(main)
    gc.collect()
    assert [reference() for reference in references] == [None] * 5
