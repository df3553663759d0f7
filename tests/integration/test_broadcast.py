"""What broadcast() does beyond upstream's, or better; test_oracle.py has what must be the same."""

from __future__ import annotations

import array
import asyncio
import concurrent.futures
import gc
import logging
import socket
import sys
import threading
import types
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import websockets.asyncio.server
import websockets.protocol
import websockets.server
import websockets.sync.server
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import ServerConnection
from websockets.protocol import State

import wsfast
from helpers import processes
from helpers.fixtures import Ours, Run
from helpers.peers import Messages, Peer, decode, until
from helpers.stage import Stage, fragmented_send

SMALL = 4096

# ---- Delivery


def test_delivery_counts_what_the_kernel_took(ours: Ours, core: Any) -> None:
    """Delivery.sent counts connections whose kernel has the whole message when broadcast returns."""

    async def scenario(stage: Stage) -> None:
        connections = await stage.connect_many(3) + await stage.connect_many(2, "client")
        delivery = stage.broadcast(connections, "hello")
        if core.__name__ == "wsfast._core._core":  # the twin leaves writing to the transport, and uvloop's waits
            assert delivery == (5, 0, 0, 0)
            assert all(isinstance(peer, Peer) and peer.sock.recv(99, socket.MSG_PEEK) for peer in stage.peers)

    ours(scenario)


def test_delivery_counts_what_waits(ours: Ours) -> None:
    """Delivery.buffered counts connections whose transport keeps the message or its end."""

    async def scenario(stage: Stage) -> None:
        connections = await stage.connect_many(2, sndbuf=SMALL, rcvbuf=SMALL)
        assert stage.broadcast(connections, b"x" * 100_000) == (0, 2, 0, 0)
        assert stage.broadcast(connections, b"x") == (0, 2, 0, 0)
        assert stage.broadcast(connections * 2, b"x") == (0, 4, 0, 0)

    ours(scenario)


def test_delivery_counts_skipped_and_failed(ours: Ours) -> None:
    """Delivery.skipped counts connections that are closing or busy; failed counts those that could not be written."""

    async def scenario(stage: Stage) -> None:
        a, b, c, d, e = await stage.connect_many(5)
        await stage.start(b.close())
        async with fragmented_send(stage, c):
            d.transport.write_eof()
            e.transport.abort()
            delivery = stage.broadcast([a, b, c, d, e, e], "hello")
            assert delivery is not None
            assert delivery.sent + delivery.buffered == 1
            assert delivery[2:] == (2, 3)

    ours(scenario)


def test_delivery_is_a_named_tuple() -> None:
    """Delivery has its fields in the documented order."""
    assert wsfast.Delivery._fields == ("sent", "buffered", "skipped", "failed")


# ---- Prepared messages


@pytest.mark.parametrize("kind", ["plain", "deflate", "tls", "unix", "client"])
def test_broadcast_takes_prepared_messages(ours: Ours, kind: Any) -> None:
    """Broadcast sends a PreparedMessage any number of times, as what it was prepared for."""

    async def scenario(stage: Stage) -> None:
        connections = await stage.connect_many(2, kind)
        text = wsfast.PreparedMessage(b"text", text=True)
        binary = wsfast.PreparedMessage("binary", text=False)
        for _ in range(3):
            stage.broadcast(connections, text)
            stage.broadcast(iter(connections), binary)

    outcome = ours(scenario)
    if kind in ("plain", "tls", "unix"):
        assert [decode(stream).data for stream in outcome.streams] == [["text", b"binary"] * 3] * 2  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [True, False])
def test_broadcast_rejects_text_for_prepared_messages(ours: Ours, text: bool) -> None:
    """Broadcast raises TypeError if text is given for a message that has its opcode already, and sends nothing."""

    async def scenario(stage: Stage) -> None:
        stage.broadcast(await stage.connect_many(1), wsfast.PreparedMessage("hello"), text=text)

    outcome = ours(scenario)
    assert outcome.streams == [b""]
    assert outcome.exceptions == [
        (("TypeError", "text cannot be given with a PreparedMessage; give it to PreparedMessage() instead"), None)
    ]


def test_broadcast_frames_a_message_once(ours: Ours, core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broadcast makes the frame of a server once per message, however many connections and calls."""
    frames: list[bytes] = []
    encode_frame = core.encode_frame

    def counting(*args: Any) -> Any:
        frames.append(encode_frame(*args))
        return frames[-1]

    async def scenario(stage: Stage) -> None:
        connections = await stage.connect_many(3) + await stage.connect_many(2, sndbuf=SMALL)
        monkeypatch.setattr(core, "encode_frame", counting)
        message = wsfast.PreparedMessage(b"x" * 100_000)
        stage.broadcast(connections, message)
        stage.broadcast(connections * 2, message)
        monkeypatch.setattr(core, "encode_frame", encode_frame)

    ours(scenario)
    assert len(frames) == 1


# ---- Memoryviews, where upstream fails or puts a wrong length into the header

VIEWS = {
    "items of 4 bytes": memoryview(array.array("I", range(100))),
    "items of 8 bytes": memoryview(array.array("d", [1.5, 2.5])),
    "every second byte": memoryview(bytes(range(200)))[::2],
    "backwards": memoryview(bytes(range(200)))[::-1],
    "every second item": memoryview(array.array("H", range(300)))[::2],
    "two dimensions": memoryview(bytes(range(60))).cast("B", (6, 10)),
    "two dimensions of items": memoryview(bytes(range(96))).cast("I", (4, 6)),
    "no dimensions": memoryview(bytes(range(4))).cast("I", ()),
    "booleans": memoryview(bytes([0, 1] * 70)).cast("?"),
    "empty": memoryview(b""),
    "no items of 4 bytes": memoryview(array.array("I")),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
@pytest.mark.parametrize("kind", ["plain", "deflate", "client"])
def test_broadcast_sends_the_bytes_of_any_memoryview(ours: Ours, kind: Any, view: memoryview) -> None:
    """Broadcast sends memoryviews as their bytes in C order, whatever their shape, strides and item size."""

    async def scenario(stage: Stage) -> None:
        connections = await stage.connect_many(2, kind)
        stage.broadcast(connections, view)
        stage.broadcast(connections, "end")

    for stream in ours(scenario).streams:
        if kind == "plain":
            assert decode(stream).data == [view.tobytes(), "end"]  # type: ignore[arg-type]
        elif kind == "client":
            assert isinstance(stream, tuple)
            assert [frame.payload for frame in stream[0]] == [view.tobytes(), b"end"]


# ---- Wrong arguments


class Legacy:
    """What connections of websockets.legacy look like."""

    state = State.OPEN
    _fragmented_message_waiter = None
    logger = logging.getLogger("websockets.server")

    def write_frame_sync(self, *args: Any) -> None:
        raise AssertionError("must not be called")


@pytest.mark.parametrize("container", [list, iter], ids=["list", "iterator"])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: 5, "int"),
        (lambda: None, "NoneType"),
        (lambda: "ws", "str"),
        (object, "object"),
        (Legacy, f"{__name__}.Legacy"),
        (lambda: types.SimpleNamespace(protocol=None), "types.SimpleNamespace"),
    ],
    ids=["int", "None", "str", "object", "legacy", "namespace"],
)
def test_broadcast_rejects_other_connections(ours: Ours, container: Any, make: Any, name: str) -> None:
    """Broadcast raises TypeError for what is no connection, after those ahead of it and before those behind it."""

    async def scenario(stage: Stage) -> None:
        one, two, three = await stage.connect_many(3)
        stage.broadcast(container([one, two, make(), three]), "hello")

    outcome = ours(scenario)
    assert outcome.streams == [b"\x81\x05hello", b"\x81\x05hello", b""]
    [((kind, text), _)] = outcome.exceptions
    assert kind == "TypeError"
    assert text.startswith(f"cannot broadcast to {name}; supported are connections of websockets, ")


def test_broadcast_raises_type_error_for_other_connections(core: Any) -> None:
    """Broadcast to what is no connection raises a TypeError also where no event loop runs."""
    with pytest.raises(TypeError, match="cannot broadcast to float; supported are"):
        wsfast.broadcast([1.5], "hello")


def test_broadcast_checks_the_message_first(core: Any) -> None:
    """Broadcast complains about the message before it looks at the connections."""

    def connections() -> Iterator[Any]:
        raise AssertionError("asked for a connection")
        yield

    with pytest.raises(TypeError, match=r"^data must be str or bytes$"):
        wsfast.broadcast(connections(), 5)  # type: ignore[arg-type]


def test_broadcast_takes_raise_exceptions_by_position(core: Any) -> None:
    """Broadcast takes raise_exceptions by position, as upstream's did before 17, and text by name alone."""
    assert wsfast.broadcast([], "hello", True) == (0, 0, 0, 0)
    with pytest.raises(TypeError):
        wsfast.broadcast([], "hello", True, True)  # type: ignore[call-arg]


# ---- Threads and loops


@pytest.mark.parametrize("kind", ["plain", "deflate", "tls", "unix", "client"])
@pytest.mark.parametrize("container", [list, iter], ids=["list", "iterator"])
def test_broadcast_from_another_thread_raises(ours: Ours, kind: Any, container: Any) -> None:
    """Broadcast raises RuntimeError in another thread than that of the connection's running loop, and sends nothing."""

    async def scenario(stage: Stage) -> None:
        connections = await stage.connect_many(2, kind)
        for _ in range(2):
            await asyncio.to_thread(stage.broadcast, container(connections), "hello")
            stage.broadcast(connections, "from here")  # also when this thread has looked at them before

    outcome = ours(scenario)
    assert len(outcome.exceptions) == 2
    for (name, text), _ in outcome.exceptions:
        assert name == "RuntimeError"
        assert text.startswith("broadcast() must be called in the thread of the event loop that runs the connection")
    if kind == "plain":
        assert outcome.streams == [b"\x81\x09from here" * 2] * 2


def test_broadcast_from_another_loop_raises(ours: Ours, run: Run) -> None:
    """Broadcast raises RuntimeError in the loop of another thread."""

    async def scenario(stage: Stage) -> None:
        connections = await stage.connect_many(2)

        async def elsewhere() -> None:
            stage.broadcast(connections, "hello")

        await asyncio.to_thread(run, elsewhere)

    outcome = ours(scenario)
    assert outcome.streams == [b""] * 2
    assert outcome.exceptions[0][0][0] == "RuntimeError"


def test_broadcast_from_another_thread_skips_closed_connections(ours: Ours) -> None:
    """Broadcast ignores closed connections in any thread, since nothing is written to them."""

    async def scenario(stage: Stage) -> None:
        (connection,) = await stage.connect_many(1)
        connection.transport.abort()
        await until(lambda: connection.protocol.state is State.CLOSED)
        assert await asyncio.to_thread(stage.broadcast, [connection], "hello") == (0, 0, 1, 0)

    assert ours(scenario).exceptions == []


def test_broadcast_by_way_of_call_soon_threadsafe(ours: Ours) -> None:
    """Broadcast reaches connections from another thread as its error message says."""

    async def scenario(stage: Stage) -> None:
        (connection,) = await stage.connect_many(1)
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def elsewhere() -> None:
            loop.call_soon_threadsafe(stage.broadcast, [connection], "hello")
            loop.call_soon_threadsafe(done.set)

        await asyncio.to_thread(elsewhere)
        await done.wait()

    assert ours(scenario).streams == [b"\x81\x05hello"]


def test_broadcast_while_the_loop_is_stopped(core: Any, loop_kind: str, run: Run) -> None:
    """Broadcast works between two runs of the connection's loop."""
    import uvloop

    loop = uvloop.new_event_loop() if loop_kind == "uvloop" else asyncio.SelectorEventLoop()
    arrived: list[Any] = []

    async def handler(connection: Any) -> None:
        arrived.append(connection)
        await connection.wait_closed()

    async def start() -> tuple[Any, Peer]:
        server = await websockets.asyncio.server.serve(handler, "127.0.0.1", 0, compression=None, ping_interval=None)
        sock = socket.socket()
        sock.setblocking(False)
        await loop.sock_connect(sock, server.sockets[0].getsockname())
        peer = Peer(sock)
        await peer.upgrade()
        await until(lambda: arrived)
        return server, peer

    async def stop(server: Any, peer: Peer) -> None:
        await peer.read(21)
        peer.close()
        server.close()
        await server.wait_closed()

    try:
        server, peer = loop.run_until_complete(start())
        for message in "one", "two":
            assert sum(wsfast.broadcast(arrived, message)[:2]) == 1

        async def elsewhere() -> None:
            assert sum(wsfast.broadcast(arrived, "three")[:2]) == 1
            assert sum(wsfast.broadcast(iter(arrived), "four")[:2]) == 1

        run(elsewhere)  # another loop, in this thread, while that of the connection is stopped
        loop.run_until_complete(stop(server, peer))
        assert decode(bytes(peer.received)) == Messages(["one", "two", "three", "four"], [], [], None)
    finally:
        loop.close()


def test_broadcast_from_many_threads_sends_nothing(ours: Ours) -> None:
    """Broadcast in several threads at once never writes while the loop runs elsewhere."""

    async def scenario(stage: Stage) -> None:
        connections = await stage.connect_many(3)
        refused = []
        start = threading.Barrier(4)

        def elsewhere() -> None:
            start.wait()
            for _ in range(100):
                try:
                    wsfast.broadcast(connections, "from elsewhere")
                except RuntimeError:
                    refused.append(1)

        with concurrent.futures.ThreadPoolExecutor(3) as executor:
            futures = [executor.submit(elsewhere) for _ in range(3)]
            start.wait()
            for i in range(200):
                stage.broadcast(connections, f"{i}")
            await asyncio.gather(*map(asyncio.wrap_future, futures))
        assert len(refused) == 300

    for stream in ours(scenario).streams:
        assert decode(stream).data == [f"{i}" for i in range(200)]  # type: ignore[arg-type]


# ---- Descriptors


def descriptor(connection: Any) -> int:
    return int(connection.transport.get_extra_info("socket").fileno())


@pytest.mark.parametrize("ending", ["abort", "close", "reset", "handshake"])
def test_broadcast_never_reaches_the_next_owner_of_a_descriptor(ours: Ours, ending: str) -> None:
    """Broadcast to a connection that is gone writes nothing to the client that was given the same descriptor."""

    async def scenario(stage: Stage) -> None:
        gc.collect()  # lest a descriptor of an earlier test's become free in the middle of this one
        spare = stage.own(
            socket.socket()
        )  # made now, so that the next descriptor to be given is that of the lost connection
        old, peer = await stage.connect()
        assert isinstance(peer, Peer)
        stage.broadcast([old], "before")
        number = descriptor(old)
        await peer.read(8)
        if ending == "reset":
            peer.sock.shutdown(socket.SHUT_RDWR)
        elif ending == "handshake":
            await peer.send(b"\x88\x82\0\0\0\0\x03\xe8")
            await peer.read(12)
            peer.sock.shutdown(socket.SHUT_WR)
        else:
            getattr(old.transport, ending)()
        stage.broadcast([old], "while it ends")
        stage.broadcast(iter([old, old]), "while it ends")
        await until(old.connection_lost_waiter.done)
        await asyncio.sleep(0)
        stage.broadcast([old], "after")
        new, _ = await stage.connect(peer_socket=spare)
        assert descriptor(new) == number
        for container in list, iter:
            stage.broadcast(container([old, old]), "to the old one")
        stage.broadcast([old, new, old], "to the new one")

    streams = ours(scenario).streams
    assert decode(streams[1]).data == ["to the new one"]  # type: ignore[arg-type]


def test_broadcast_skips_connections_of_a_closed_loop(core: Any, run: Run) -> None:
    """Broadcast ignores connections whose loop is gone, even if their descriptors have new owners."""
    kept: list[Any] = []

    async def before() -> None:
        async def handler(connection: Any) -> None:
            kept.append(connection)
            await connection.wait_closed()

        async with websockets.asyncio.server.serve(handler, "127.0.0.1", 0, close_timeout=0) as server:
            sock = socket.socket()
            sock.setblocking(False)
            peer = Peer(sock)
            await asyncio.get_running_loop().sock_connect(sock, server.sockets[0].getsockname())
            await peer.upgrade()
            await until(lambda: kept)
            wsfast.broadcast(kept, "hello")
            peer.close()

    run(before)
    assert wsfast.broadcast(kept, "hello") == (0, 0, 1, 0)

    async def after() -> None:
        assert wsfast.broadcast(kept, "hello") == (0, 0, 1, 0)

    run(after)


# ---- Code that runs in the middle


def test_broadcast_inside_a_log_handler_keeps_frames_whole(ours: Ours) -> None:
    """Broadcast to all connections from within a warning of another broadcast to all splits no frame."""

    async def scenario(stage: Stage) -> None:
        slow = await stage.connect_many(3, sndbuf=SMALL) + await stage.connect_many(2, "client", sndbuf=SMALL)
        busy, ended, other = await stage.connect_many(3)
        ended.transport.write_eof()
        everything = [slow[0], busy, slow[1], ended, *slow[2:], other, slow[0]]
        depth = 0

        def on_record(record: logging.LogRecord) -> None:
            nonlocal depth
            if depth < 2:
                depth += 1
                stage.broadcast(everything, f"inner {depth}" * 20_000)
                for connection in slow:
                    connection.protocol.send_ping(b"!")
                    connection.send_data()
                depth -= 1

        async with fragmented_send(stage, busy):
            stage.recorder.on_record = on_record
            stage.broadcast(everything, "outer" * 20_000)
            stage.recorder.on_record = None

    for stream in ours(scenario).streams[:3]:
        decoded = decode(stream)  # type: ignore[arg-type]
        assert decoded.data.count("outer" * 20_000) in (1, 2)
        assert len(decoded.data) >= 6


def test_broadcast_inside_a_generator(ours: Ours) -> None:
    """Broadcast may be called by the generator that another broadcast iterates over."""

    async def scenario(stage: Stage) -> None:
        one, two = await stage.connect_many(2, sndbuf=SMALL)

        def connections() -> Iterator[Any]:
            yield one
            stage.broadcast([one, two], "inner" * 20_000)
            yield two

        stage.broadcast(connections(), "outer" * 20_000)

    one, two = ours(scenario).streams
    assert decode(one).data == ["outer" * 20_000, "inner" * 20_000]  # type: ignore[arg-type]
    assert decode(two).data == ["inner" * 20_000, "outer" * 20_000]  # type: ignore[arg-type]


def test_broadcast_inside_pause_writing(ours: Ours) -> None:
    """Broadcast from a callback of the transport splits no frame."""

    class Nosy(ServerConnection):
        def pause_writing(self) -> None:
            super().pause_writing()
            wsfast.broadcast(others, "inner" * 20_000)

    others: list[Any] = []

    async def scenario(stage: Stage) -> None:
        nosy, _ = await stage.connect(sndbuf=SMALL, create_connection=Nosy)
        others.extend(await stage.connect_many(2, sndbuf=SMALL))
        stage.broadcast([others[0], nosy, others[1], others[0]], "outer" * 20_000)

    streams = ours(scenario).streams
    for stream in streams:
        decoded = decode(stream)  # type: ignore[arg-type]
        assert set(decoded.data) <= {"outer" * 20_000, "inner" * 20_000}


def pings(connection: Any) -> Any:
    """Return the pings that wait for a pong; from 16.1 on, they go by another name."""
    return connection.pending_pings if hasattr(connection, "pending_pings") else connection.pong_waiters


def has_more(items: Any, count: int) -> bool:
    return len(items) > count


def test_broadcast_between_keepalive_pings(ours: Ours) -> None:
    """Broadcast leaves keepalive pings whole between frames that the kernel takes only in part."""

    async def scenario(stage: Stage) -> None:
        connection, peer = await stage.connect(sndbuf=SMALL, ping_interval=0.002, ping_timeout=None)
        for i in range(50):
            stage.broadcast([connection], f"{i}" * 10_000)
            if i % 10 == 9:
                while connection.paused:  # which pings wait for, too
                    await peer.read(len(peer.received) + 1)
                pinged = len(pings(connection))
                await until(partial(has_more, pings(connection), pinged), "a ping")
            await peer.read(i * 5000)
        await peer.read(10_000)

    (stream,) = ours(scenario).streams
    decoded = decode(stream)  # type: ignore[arg-type]
    assert decoded.data == [f"{i}" * 10_000 for i in range(50)]
    assert decoded.pings


# ---- Unknown parts


def test_broadcast_asks_unknown_transports_only_to_write(ours: Ours) -> None:
    """Broadcast gives the message to a transport of an unknown type, even if it has the name of a known one."""
    written: list[bytes] = []

    async def scenario(stage: Stage) -> None:
        one, two = await stage.connect_many(2)
        transport = one.transport

        class Tapped:
            def write(self, data: Any) -> None:
                written.append(bytes(data))
                transport.write(data)

            def __getattr__(self, name: str) -> Any:
                return getattr(transport, name)

        Tapped.__qualname__, Tapped.__module__ = type(transport).__qualname__, type(transport).__module__
        one.transport = Tapped()
        stage.broadcast([one, two, one], "hello")

    assert ours(scenario).streams == [b"\x81\x05hello" * 2, b"\x81\x05hello"]
    assert written == [b"\x81\x05hello"] * 2


def test_broadcast_takes_base_connections(core: Any, run: Run) -> None:
    """Broadcast sends to connections that are neither of a server nor of a client by their own methods."""

    async def main() -> None:
        left, right = socket.socketpair()
        peer = Peer(right)
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(websockets.protocol.Protocol(websockets.protocol.SERVER), ping_interval=None), sock=left
        )
        assert sum(wsfast.broadcast([connection, connection], "hello")[:2]) == 2
        await peer.read(14)
        assert peer.received == b"\x81\x05hello" * 2
        connection.transport.abort()
        await until(connection.connection_lost_waiter.done)
        peer.close()

    run(main)


def test_broadcast_skips_connection_during_opening_handshake(core: Any, run: Run) -> None:
    """Broadcast ignores connections whose opening handshake has not ended."""

    async def main() -> None:
        asked = asyncio.Event()
        answer = asyncio.Event()
        connections: list[Any] = []

        async def process_request(connection: Any, _: Any) -> None:
            connections.append(connection)
            asked.set()
            await answer.wait()

        async def handler(connection: Any) -> None:
            wsfast.broadcast(connections, "hello")
            await connection.wait_closed()

        async with websockets.asyncio.server.serve(
            handler, "127.0.0.1", 0, process_request=process_request, compression=None, close_timeout=1
        ) as server:
            sock = socket.socket()
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, server.sockets[0].getsockname())
            peer = Peer(sock)
            upgrade = asyncio.ensure_future(peer.upgrade())
            await asked.wait()
            assert wsfast.broadcast(connections, "too early") == (0, 0, 1, 0)
            answer.set()
            await upgrade
            await peer.read(7)
            assert peer.received == b"\x81\x05hello"
            peer.close()

    run(main)


# ---- Between the two halves of a frame


@pytest.mark.parametrize("moment", ["sent", "writing"])
def test_broadcast_aborts_connections_whose_frames_are_not_whole(
    ours: Ours, core: Any, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Broadcast, when an exception comes out of nowhere, aborts connections on which it would leave half a frame."""

    class Nowhere(BaseException):
        pass

    class Batch(core.Batch):  # type: ignore[misc]
        def send(self) -> None:
            super().send()
            raise Nowhere

    def write(*args: Any) -> Any:
        raise Nowhere

    async def scenario(stage: Stage) -> None:
        connections = await stage.connect_many(2, sndbuf=SMALL, rcvbuf=SMALL)
        module: Any = sys.modules["wsfast._delivery"]
        with monkeypatch.context() as patch:
            if moment == "sent":
                patch.setattr(module, "core", types.SimpleNamespace(**{**vars(core), "Batch": Batch}))
            else:
                patch.setattr(module.Outcome, "write", write)
            with pytest.raises(Nowhere):
                wsfast.broadcast(connections, b"x" * 100_000)
        assert gc.isenabled()
        cut = core.__name__ == "wsfast._core._core"  # the twin cuts none
        assert [connection.transport.is_closing() for connection in connections] == [cut, cut]

    ours(scenario)


def test_broadcast_collects_no_garbage_between_the_halves_of_a_frame(
    ours: Ours, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broadcast runs no finalizers while it writes, but leaves the garbage collector as it was."""
    enabled: list[bool] = []
    pause_writing = Connection.pause_writing

    def pause(connection: Connection) -> None:
        enabled.append(gc.isenabled())
        pause_writing(connection)

    async def scenario(stage: Stage) -> None:
        connections = await stage.connect_many(2, sndbuf=SMALL, rcvbuf=SMALL)
        stage.broadcast(connections, b"x")  # which finds out that pause_writing is the library's own
        monkeypatch.setattr(Connection, "pause_writing", pause)
        stage.broadcast(connections, b"x" * 100_000)
        assert enabled == [False, False]
        for collects in (False, True):
            (gc.enable if collects else gc.disable)()
            stage.broadcast(connections, b"x")
            assert gc.isenabled() is collects

    try:
        ours(scenario)
    finally:
        gc.enable()


# ---- Methods that somebody has replaced


def test_broadcast_calls_a_transport_method_replaced_on_the_instance(ours: Ours, loop_kind: str) -> None:
    """Broadcast calls the write() that was put on a transport before it was first written to."""
    written: list[bytes] = []

    async def scenario(stage: Stage) -> None:
        (connection,) = await stage.connect_many(1)
        write = connection.transport.write

        def replacement(data: bytes) -> None:
            written.append(bytes(data))
            write(data)

        if loop_kind == "uvloop":  # whose layout asks for no such method, since nobody can put one there
            with pytest.raises(AttributeError):
                connection.transport.write = replacement
        else:
            connection.transport.write = replacement
        stage.broadcast([connection], "hello")

    assert ours(scenario).streams == [b"\x81\x05hello"]
    assert written == ([] if loop_kind == "uvloop" else [b"\x81\x05hello"])


def test_broadcast_calls_methods_replaced_before_the_import() -> None:
    """Broadcast calls methods that a tracer has put on websockets' classes before wsfast was imported."""
    program = """
import asyncio
from websockets.asyncio.connection import Connection
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

calls = []
original = Connection.send_data
Connection.send_data = lambda self: (calls.append(self), original(self))[1]
import wsfast

async def main():
    async def handler(connection):
        calls.clear()
        wsfast.broadcast([connection], "hello")
        assert calls == [connection], calls
        await connection.wait_closed()
    async with serve(handler, "127.0.0.1", 0, compression=None) as server:
        async with connect(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
            assert await client.recv() == "hello"

asyncio.run(main())
"""
    processes.run(sys.executable, "-c", program, check=True)


@pytest.mark.parametrize("answer", [NotImplementedError, AttributeError])
def test_broadcast_goes_on_if_a_transport_does_not_tell_how_much_waits(ours: Ours, answer: type[Exception]) -> None:
    """Broadcast counts a message as sent if the transport has no get_write_buffer_size()."""

    class Wrapper:
        def __init__(self, transport: Any) -> None:
            self.transport = transport

        def __getattr__(self, name: str) -> Any:
            return getattr(self.transport, name)

        def get_write_buffer_size(self) -> int:
            raise answer

    async def scenario(stage: Stage) -> None:
        connections = await stage.connect_many(3)
        for connection in connections:
            connection.transport = Wrapper(connection.transport)
        assert stage.broadcast(connections, "hello") == (3, 0, 0, 0)

    assert ours(scenario).streams == [b"\x81\x05hello"] * 3
