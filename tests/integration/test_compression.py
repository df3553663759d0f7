"""What broadcast() does on connections with permessage-deflate, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import random
import sys
import types
import zlib
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory

import wsfast
from helpers.fixtures import Agree, Ours, Run
from helpers.peers import BasePeer, Frame, parse_frames, until
from helpers.stage import Stage, fragmented_send, play
from wsfast._delivery import Outcome
from wsfast._encoding.deflate import LazyEncoder
from wsfast._encoding.shared import Shared

SMALL = 4096  # bytes of a socket buffer that a large message overflows
TICK = '{"symbol":"BTC-USD","price":64250.17,"size":100,"sequence":%06d,"side":"buy","venue":"XNAS","bid":64250.1}'


def tick(number: int) -> str:
    return TICK % number


def noise(seed: int, size: int) -> str:
    """Return characters that compress to about half."""
    return random.Random(seed).randbytes(size // 2).hex()


def texts(stream: Any) -> list[str]:
    """Return the messages in the stream of a peer."""
    frames, tail = stream
    assert tail == b""
    return [frame.payload.decode() for frame in frames]


def encoder_of(connection: Any) -> Any:
    return connection.protocol.extensions[0].encoder


def raw(peer: Any) -> list[Frame]:
    """Return the frames that a peer has received, as they were."""
    return parse_frames(bytes(peer.received))[0]


def compressed(peer: Any) -> list[bool]:
    """Tell which of the frames that a peer has received are compressed."""
    return [bool(frame.first & 0x40) for frame in raw(peer)]


async def arrived(stage: Stage, *frames: int) -> None:
    """Read until each peer has received so many frames, the last number being that of all further ones."""
    for peer, count in itertools.zip_longest(stage.peers, frames, fillvalue=frames[-1]):
        assert isinstance(peer, BasePeer)
        while len(raw(peer)) < count:
            await peer.read_some()


# ---- Which frames are made, and for whom


def test_broadcast_compresses_once_for_all(ours: Ours, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broadcast makes one compressed frame for all that hold the same, and each encoder goes without memory."""
    made = []
    compressobj = zlib.compressobj

    def counting(*args: Any, **options: Any) -> Any:
        made.append(1)
        return compressobj(*args, **options)

    async def scenario(stage: Stage) -> None:
        connections = await stage.connect_many(3, "deflate")
        connections += await stage.connect_many(2, "tls-deflate")
        connections += await stage.connect_many(1, "deflate", offer="permessage-deflate; server_no_context_takeover")
        connections += await stage.connect_many(2, "deflate", offer="permessage-deflate; server_max_window_bits=11")
        stage.broadcast(connections, "first")  # for which their settings are tried
        with monkeypatch.context() as patch:
            patch.setattr(zlib, "compressobj", counting)
            for i in range(10):
                stage.broadcast(connections, tick(i))
        await arrived(stage, 11)
        assert all(compressed(peer) == [False, *[True] * 10] for peer in stage.peers)
        assert len({bytes(peer.received) for peer in stage.peers[:5]}) == 1
        for connection in connections[:5]:
            assert encoder_of(connection).encoder is None

    outcome = ours(scenario)
    # Each once by itself, for the one without takeover; and the second one with what refers to the first one.
    assert len(made) == 10 + 2
    assert [texts(stream) for stream in outcome.streams] == [["first", *(tick(i) for i in range(10))]] * 8


def test_broadcast_compresses_once_for_each_window(ours: Ours) -> None:
    """A message that is larger than a window is compressed for that window and for larger ones."""
    message = noise(1, 1500) * 3 + noise(2, 6000) * 3

    async def scenario(stage: Stage) -> None:
        for bits in 9, 9, 12, 12, 15:
            await stage.connect(
                "deflate",
                offer=f"permessage-deflate; server_max_window_bits={bits}",
                extensions=(ServerPerMessageDeflateFactory(),),
            )
        await stage.connect("deflate")
        await stage.connect("plain")
        for _ in range(2):
            stage.broadcast(stage.connections, message)
        await arrived(stage, 2)
        frames = [raw(peer)[0] for peer in stage.peers]
        assert frames[0] == frames[1]
        assert frames[2] == frames[3]
        assert frames[6] == Frame(0x81, b"", message.encode())
        sizes = [len(frame.payload) for frame in frames]
        assert sizes[0] > sizes[2] > sizes[4]

    assert [texts(stream) for stream in ours(scenario).streams[:6]] == [[message] * 2] * 6


@pytest.mark.parametrize("kind", ["deflate", "tls-deflate"])
@pytest.mark.parametrize(
    "message",
    ["", "x", "x" * 15, random.Random(1).randbytes(2049), b"\x00" * 15],
    ids=["empty", "tiny", "small", "dense", "zeros"],
)
def test_broadcast_does_not_compress_what_does_not_gain(ours: Ours, kind: Any, message: str | bytes) -> None:
    """Payloads that are tiny, or large and do not shrink, are sent as they are, which touches no encoder."""

    async def scenario(stage: Stage) -> None:
        connection, _ = await stage.connect(kind)
        await connection.send(tick(0))
        encoder = encoder_of(connection)
        stage.broadcast([connection], message)
        assert getattr(encoder_of(connection), "encoder", encoder) is not None
        await connection.send(tick(1))
        await arrived(stage, 3)
        frames = raw(stage.peers[0])
        assert compressed(stage.peers[0]) == [True, False, True]
        assert len(frames[2].payload) < len(frames[0].payload) / 4  # its window has survived

    frames: Any = ours(scenario).streams[0][0]
    payload = message.encode() if isinstance(message, str) else message
    assert [frame.payload for frame in frames] == [tick(0).encode(), payload, tick(1).encode()]


class Shouting(ServerConnection):
    """A subclass that takes part in sending, so that only its own methods may send."""

    def send_data(self) -> None:
        super().send_data()


@pytest.mark.parametrize("way", ["direct", "busy", "tls", "debug", "subclass", "prepared"])
def test_broadcast_never_compresses_against_the_users_will(ours: Ours, way: str) -> None:
    """compress=False holds on every path, and the connection's own messages are compressed as before."""

    async def scenario(stage: Stage) -> None:
        options: dict[str, Any] = {"create_connection": Shouting} if way == "subclass" else {}
        if way == "busy":
            options |= {"sndbuf": SMALL, "rcvbuf": SMALL}
        connection, peer = await stage.connect("tls-deflate" if way == "tls" else "deflate", **options)
        expected = [True, False, True]
        if way == "busy":
            stage.broadcast([connection], "x" * 1_000_000, compress=False)
            expected.insert(1, False)
        await stage.start(connection.send(tick(0)))
        if way == "busy":
            expected[:2] = [False, True]
            assert connection.transport.get_write_buffer_size() > 0
        broadcast = stage.broadcast
        if way == "prepared":
            stage.broadcast([connection], wsfast.PreparedMessage(tick(1), compress=False))
        else:
            broadcast([connection], tick(1), compress=False)
        await stage.start(connection.send(tick(2)))
        await arrived(stage, len(expected))
        assert compressed(peer) == expected

    level = logging.DEBUG if way == "debug" else logging.INFO
    stream = ours(scenario, level=level).streams[0]
    assert texts(stream)[-3:] == [tick(0), tick(1), tick(2)]


def test_broadcast_leaves_unknown_compression_to_the_connection(ours: Ours) -> None:
    """Settings that the receiver must know, and extensions that are not known, are the connection's own business."""
    dictionary = tick(0).encode()

    async def scenario(stage: Stage) -> None:
        factory = ServerPerMessageDeflateFactory(compress_settings={"zdict": dictionary})
        connection, peer = await stage.connect("deflate", extensions=(factory,))
        encoder = encoder_of(connection)
        for i in range(3):
            stage.broadcast([connection], tick(i))
        assert encoder_of(connection) is encoder
        await arrived(stage, 3)
        decoder = zlib.decompressobj(wbits=-15, zdict=dictionary)
        for i, frame in enumerate(raw(peer)):
            assert decoder.decompress(frame.payload + b"\x00\x00\xff\xff").decode() == tick(i)
        peer.received.clear()

    ours(scenario)


def test_broadcast_to_clients_masks_one_compressed_payload(core: Any, run: Run) -> None:
    """What clients broadcast is compressed once and masked for each."""

    async def main() -> None:
        received: list[list[str | bytes]] = []

        async def collect(connection: Any) -> None:
            received.append([message async for message in connection])

        async with serve(collect, "127.0.0.1", 0) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            clients = [await connect(f"ws://127.0.0.1:{port}") for _ in range(3)]
            for i in range(5):
                wsfast.broadcast(clients, tick(i))
                await clients[1].send(tick(100 + i))
            assert isinstance(encoder_of(clients[0]), LazyEncoder)
            assert [encoder_of(client).encoder is None for client in clients] == [True, False, True]
            for client in clients:
                await client.close()
            await until(lambda: len(received) == 3, "all messages")
        received.sort(key=len)
        assert received[0] == received[1] == [tick(i) for i in range(5)]
        assert received[2] == [tick(i + offset) for i in range(5) for offset in (0, 100)]

    run(main)


# ---- What the encoders of the connections know


def test_private_messages_are_primed_with_what_was_broadcast(ours: Ours) -> None:
    """A message that a connection sends for itself refers to the last broadcast, and is decoded."""

    async def scenario(stage: Stage) -> None:
        (one, two) = await stage.connect_many(2, "deflate")
        stage.broadcast([one, two], tick(0))
        await one.send(tick(1))
        await one.send(tick(2))
        stage.broadcast([one, two], tick(3))
        await two.send(tick(4))
        await arrived(stage, 4, 3)
        first, second, third, fourth = (len(frame.payload) for frame in raw(stage.peers[0]))
        assert max(second, third) < first / 4
        assert abs(fourth - first) <= 2
        assert len(raw(stage.peers[1])[2].payload) < first / 4

    outcome = ours(scenario)
    assert texts(outcome.streams[0]) == [tick(i) for i in (0, 1, 2, 3)]
    assert texts(outcome.streams[1]) == [tick(i) for i in (0, 3, 4)]


def test_fragmented_messages_keep_their_encoder(ours: Ours) -> None:
    """A broadcast that is skipped, since a fragmented message is being sent, leaves its encoder alone."""

    async def scenario(stage: Stage) -> None:
        one, two = await stage.connect_many(2, "deflate")
        stage.broadcast([one, two], tick(0))
        async with fragmented_send(stage, one):
            stage.broadcast([one, two], tick(1))
        stage.broadcast([one, two], tick(2))
        await one.send(tick(3))

    outcome = ours(scenario)
    frames: Any = outcome.streams[0][0]
    assert b"".join(frame.payload for frame in frames) == f"{tick(0)}first, last{tick(2)}{tick(3)}".encode()
    assert texts(outcome.streams[1]) == [tick(0), tick(1), tick(2)]


def test_frames_that_do_not_get_out_are_forgotten(core: Any, tls: Any) -> None:
    """After a transport has refused a frame, the connection's encoder does not refer to it."""

    async def scenario(stage: Stage) -> None:
        one, two = await stage.connect_many(2, "deflate")
        broadcast = wsfast.broadcast
        broadcast([one, two], tick(0))
        one.transport._empty_waiter = asyncio.get_running_loop().create_future()  # as during loop.sendfile()
        delivery = broadcast([one, two], tick(1))
        assert (delivery.sent, delivery.failed) == (1, 1)
        one.transport._empty_waiter = None
        for i in range(2, 5):
            await one.send(tick(i))
            broadcast([one, two], tick(i))

    outcome = asyncio.run(play(scenario, wsfast.broadcast, tls))
    assert texts(outcome.streams[0]) == [tick(i) for i in (0, 2, 2, 3, 3, 4, 4)]
    assert texts(outcome.streams[1]) == [tick(i) for i in (0, 1, 2, 3, 4)]


class Nowhere(BaseException):
    """Comes out of nowhere, as from a signal handler."""


@pytest.mark.parametrize("moment", ["encode", "after"])
def test_exceptions_out_of_nowhere_leave_encoders_right(
    ours: Ours, core: Any, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """When a broadcast is interrupted, no encoder refers to a message that its client may not have got."""

    def choose(*_: Any) -> Any:
        raise Nowhere

    class Batch(core.Batch):  # type: ignore[misc]
        def send(self) -> None:
            super().send()
            raise Nowhere

    async def scenario(stage: Stage) -> None:
        connections = await stage.connect_many(4, "deflate")
        stage.broadcast(connections, tick(0))
        with monkeypatch.context() as patch:
            if moment == "after":
                patched = types.SimpleNamespace(**{**vars(core), "Batch": Batch})
                patch.setattr(sys.modules["wsfast._delivery"], "core", patched)
            else:
                patch.setattr(Shared, "choose", choose)
            with pytest.raises(Nowhere):
                wsfast.broadcast(connections, tick(1))
        for connection in connections:
            await connection.send(tick(2))
        stage.broadcast(connections, tick(3))

    for stream in ours(scenario).streams:
        assert texts(stream) in ([tick(i) for i in (0, 2, 3)], [tick(i) for i in range(4)])


def test_slow_clients_get_every_message(ours: Ours) -> None:
    """Frames that wait in the kernel, in a transport, or are cut, are decoded like all others."""
    messages = [tick(i) + noise(i, 6000) for i in range(200)]

    async def scenario(stage: Stage) -> None:
        slow, fast = [
            (await stage.connect("deflate", sndbuf=SMALL, rcvbuf=rcvbuf, write_limit=1 << 20))[0]
            for rcvbuf in (SMALL, 1 << 20)
        ]
        buffered = 0
        for i, message in enumerate(messages):
            buffered += wsfast.broadcast([slow, fast], message).buffered
            if i % 50 == 7:
                await stage.start(slow.send(tick(0)))
            if i % 3 == 0:
                stage.peers[0].read_now(1000)  # type: ignore[attr-defined]
            await stage.peers[1].read_some()
        assert buffered > 50

    outcome = ours(scenario)
    expected = []
    for i, message in enumerate(messages):
        expected += [message, tick(0)] if i % 50 == 7 else [message]
    assert texts(outcome.streams[0]) == expected
    assert texts(outcome.streams[1]) == messages


# ---- Shared takeover


def test_takeover_is_shared(ours: Ours) -> None:
    """What is broadcast refers to earlier messages, and all that receive them get the same frame."""

    async def scenario(stage: Stage) -> None:
        connections = await stage.connect_many(3, "deflate") + await stage.connect_many(1, "tls-deflate")
        for i in range(20):
            assert sum(wsfast.broadcast(connections, tick(i))[:2]) == 4
        await arrived(stage, 20)
        assert len({bytes(peer.received) for peer in stage.peers}) == 1
        sizes = [len(frame.payload) for frame in raw(stage.peers[0])]
        assert max(sizes[1:]) < sizes[0] / 4

    assert [texts(stream) for stream in ours(scenario).streams] == [[tick(i) for i in range(20)]] * 4


def test_newcomers_and_strays_come_back_in(ours: Ours) -> None:
    """Newcomers, and connections that were sent something else, share again after a window full of messages."""
    window = 4096 // len(tick(0)) + 1
    common = [tick(i) for i in range(50)]
    rest = [tick(i) for i in range(51, 51 + window + 10)]
    expected = {
        "first": [*common, tick(50), *rest],
        "private": [*common, tick(99), tick(50), *rest],
        "left out": [*common, *rest],
        "twice": [*common, tick(50), tick(50), *rest],
        "other": [*common, tick(50), tick(99), *rest],
        "newcomer": rest,
    }

    async def scenario(stage: Stage) -> None:
        first, private, _, twice, other = await stage.connect_many(5, "deflate")
        for message in common:
            wsfast.broadcast(stage.connections, message)
        await private.send(tick(99))
        wsfast.broadcast([first, private, twice, twice, other], tick(50))
        wsfast.broadcast([other], tick(99))
        await stage.connect("deflate")
        for message in rest:
            wsfast.broadcast(stage.connections, message)
        await arrived(stage, *map(len, expected.values()))
        frames = [raw(peer)[-len(rest) :] for peer in stage.peers]
        assert len(frames[0][0].payload) < len(frames[1][0].payload) / 3
        assert all(other[0] == frames[1][0] for other in frames[1:])
        assert all(other[-9:] == frames[0][-9:] for other in frames)

    outcome = ours(scenario)
    assert [texts(stream) for stream in outcome.streams] == list(expected.values())


# ---- What others have to do with it


def test_one_connection_that_cannot_compress_hurts_no_other(agree: Agree) -> None:
    """Settings that zlib does not know fail where websockets fails, for that connection alone."""
    bad = ServerPerMessageDeflateFactory(server_no_context_takeover=True, compress_settings={"memLevel": 0})

    async def scenario(stage: Stage) -> None:
        connections = await stage.connect_many(2, "deflate")
        connections.insert(1, (await stage.connect("deflate", extensions=(bad,)))[0])
        for raise_exceptions in (False, True):
            stage.broadcast(connections, tick(0), raise_exceptions)

    outcome = agree(scenario)
    assert [texts(stream) for stream in outcome.streams] == [[tick(0)] * 2, [tick(0)] * 2, []]


def test_a_call_from_another_thread_leaves_encoders_alone(core: Any, tls: Any) -> None:
    """A broadcast in the wrong thread raises before it has touched anything."""

    async def scenario(stage: Stage) -> None:
        connection, _ = await stage.connect("deflate")
        encoder = encoder_of(connection)
        with pytest.raises(RuntimeError, match="thread of the event loop"):
            await asyncio.to_thread(wsfast.broadcast, [connection], tick(0))
        assert encoder_of(connection) is encoder

    asyncio.run(play(scenario, wsfast.broadcast, tls))


def test_an_interrupted_broadcast_spares_those_who_got_it(
    ours: Ours, core: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a signal arrives while leftovers are written, no connection is aborted that has got its whole frame."""
    original = Outcome.write_frame

    def write_frame(self: Outcome, place: int, *args: Any) -> None:
        if place == 3:
            raise Nowhere
        original(self, place, *args)

    async def scenario(stage: Stage) -> None:
        connections = await stage.connect_many(3, "deflate")
        stalled, _ = await stage.connect("unix-deflate", sndbuf=SMALL)  # TCP may find room later on, by itself
        fd = stalled.transport.get_extra_info("socket").fileno()
        with contextlib.suppress(BlockingIOError):  # what the kernel takes is not the stream's, but never read
            while True:
                os.write(fd, b"\x89\x00" * 100)
        monkeypatch.setattr(Outcome, "write_frame", write_frame)
        with pytest.raises(Nowhere):
            wsfast.broadcast([*connections, stalled], tick(0))
        monkeypatch.undo()
        assert not any(connection.transport.is_closing() for connection in connections)
        stalled.transport.abort()
        stage.connections.remove(stalled)
        stage.peers.pop().close()

    assert [texts(stream) for stream in ours(scenario).streams] == [[tick(0)]] * 3


class Partial:
    """What upstream's broadcast() needs of a connection, and no more."""

    def __init__(self, connection: Any) -> None:
        self.protocol = Sender(connection.protocol)
        self.logger = connection.logger
        self.send_in_progress = self.fragmented_send_waiter = None
        self.send_data = connection.send_data


class Sender:
    """What it needs of a protocol."""

    def __init__(self, protocol: Any) -> None:
        self.state = protocol.state
        self.send_text = protocol.send_text


def test_stand_ins_need_no_extensions(ours: Ours) -> None:
    """compress=False is accepted with stand-ins for connections that have no extensions."""

    async def scenario(stage: Stage) -> None:
        connection, _ = await stage.connect()
        delivery = stage.broadcast([Partial(connection)], "hello", compress=False)
        assert delivery is not None
        assert delivery.failed == 0

    assert ours(scenario).streams == [b"\x81\x05hello"]
