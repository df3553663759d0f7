"""Each scenario is played twice, with upstream's broadcast() and with ours, and must come to the same."""

from __future__ import annotations

import asyncio
import collections
import logging
import os
import random
import socket
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, ClassVar
from weakref import WeakSet

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

from helpers.fixtures import Agree
from helpers.peers import Frame, Messages, Peer, decode, gather_within, until
from helpers.stage import Stage, drop, fragmented_send

SMALL = 4096  # bytes of a socket buffer that a large message overflows
SIZES = [0, 1, 125, 126, 65535, 65536, 1 << 20]
KINDS = ["plain", "deflate", "tls", "tls-deflate", "unix", "client"]


def noise(number: int) -> str:
    """Return a message that compresses to no less than half."""
    return f"{number} " + random.Random(number).randbytes(600).hex()


def state_is(connection: Any, state: State) -> bool:
    return bool(connection.protocol.state is state)


def only(streams: list[Any]) -> list[Messages]:
    return [decode(stream) for stream in streams]


# ---- Messages


@pytest.mark.parametrize("size", SIZES)
def test_broadcast_sends_text_of_any_size(agree: Agree, size: int) -> None:
    """Broadcast sends a string as a Text frame, whatever the length class of its header."""

    async def scenario(stage: Stage) -> None:
        stage.broadcast(await stage.connect_many(2), "x" * size)

    assert only(agree(scenario).streams) == [Messages(["x" * size], [], [], None)] * 2


@pytest.mark.parametrize("size", SIZES)
def test_broadcast_sends_binary_of_any_size(agree: Agree, size: int) -> None:
    """Broadcast sends bytes as a Binary frame, whatever the length class of its header."""

    async def scenario(stage: Stage) -> None:
        stage.broadcast(await stage.connect_many(2), b"\x80" * size)

    assert only(agree(scenario).streams) == [Messages([b"\x80" * size], [], [], None)] * 2


@pytest.mark.parametrize("size", SIZES)
def test_broadcast_masks_messages_of_any_size(agree: Agree, size: int) -> None:
    """Broadcast masks what clients send, whatever the length class of its header."""

    async def scenario(stage: Stage) -> None:
        stage.broadcast(await stage.connect_many(2, "client"), "x" * size)

    outcome = agree(scenario)
    for stream in outcome.streams:
        assert stream == ([Frame(0x81, b"", b"x" * size)], b"")


@pytest.mark.parametrize("text", [None, True, False])
@pytest.mark.parametrize(
    "message", ["grüße", b"bytes", bytearray(b"bytearray"), memoryview(b"memoryview")], ids=lambda m: type(m).__name__
)
@pytest.mark.parametrize("kind", ["plain", "deflate", "client"])
def test_broadcast_chooses_the_opcode(agree: Agree, message: Any, text: bool | None, kind: Any) -> None:
    """Broadcast sends str as text and bytes-like objects as binary, unless text says otherwise."""

    async def scenario(stage: Stage) -> None:
        stage.broadcast([(await stage.connect(kind))[0]], message, text=text)

    agree(scenario)


@pytest.mark.parametrize("message", [None, 1, ["x"], {"x": 1}, object], ids=repr)
@pytest.mark.parametrize("count", [0, 1])
def test_broadcast_rejects_other_types(agree: Agree, message: Any, count: int) -> None:
    """Broadcast raises TypeError for a message of an unsupported type before it looks at the connections."""

    async def scenario(stage: Stage) -> None:
        stage.broadcast(await stage.connect_many(count), message)

    outcome = agree(scenario)
    assert outcome.exceptions == [(("TypeError", "data must be str or bytes"), None)]
    assert outcome.streams == [b""] * count


@pytest.mark.parametrize("count", [0, 1])
def test_broadcast_rejects_lone_surrogates(agree: Agree, count: int) -> None:
    """Broadcast raises UnicodeEncodeError for a string that has no encoding, and sends nothing."""

    async def scenario(stage: Stage) -> None:
        stage.broadcast(await stage.connect_many(count), "\ud800")

    outcome = agree(scenario)
    assert outcome.exceptions[0][0][0] == "UnicodeEncodeError"
    assert outcome.streams == [b""] * count


def test_broadcast_does_not_see_later_changes(agree: Agree) -> None:
    """Broadcast has copied what it could not send by the time it returns."""

    async def scenario(stage: Stage) -> None:
        connections = await stage.connect_many(2, sndbuf=SMALL)
        connections += await stage.connect_many(2, "client", sndbuf=SMALL)
        message = bytearray(b"a" * (1 << 20))
        stage.broadcast(connections, message)
        message[:] = b"b" * (1 << 20)

    outcome = agree(scenario)
    assert all(decode(stream).data == [b"a" * (1 << 20)] for stream in outcome.streams[:2])  # type: ignore[arg-type]


# ---- Iterables


@pytest.mark.parametrize(
    "container",
    [
        list,
        tuple,
        set,
        frozenset,
        WeakSet,
        collections.deque,
        iter,
        dict.fromkeys,
        lambda items: dict(enumerate(items)).values(),
        lambda items: dict.fromkeys(items).keys(),
    ],
    ids=["list", "tuple", "set", "frozenset", "WeakSet", "deque", "iterator", "dict", "dict_values", "dict_keys"],
)
def test_broadcast_takes_any_iterable(agree: Agree, container: Callable[[Any], Any]) -> None:
    """Broadcast sends to all connections in a container of any type."""

    async def scenario(stage: Stage) -> None:
        connections = await stage.connect_many(3)
        stage.broadcast(container(connections), "hello")

    assert only(agree(scenario).streams) == [Messages(["hello"], [], [], None)] * 3


@pytest.mark.parametrize("container", [list, tuple, set, iter], ids=["list", "tuple", "set", "iterator"])
def test_broadcast_takes_no_connections(agree: Agree, container: Callable[[Any], Any]) -> None:
    """Broadcast to nobody does nothing."""

    async def scenario(stage: Stage) -> None:
        stage.broadcast(container([]), "hello")

    assert agree(scenario).deliveries == [(0, 0, 0, 0)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("container", [list, iter], ids=["list", "iterator"])
def test_broadcast_sends_twice_to_duplicates(agree: Agree, kind: Any, container: Callable[[Any], Any]) -> None:
    """Broadcast sends the message to a connection as often as it is given."""

    async def scenario(stage: Stage) -> None:
        one, two = await stage.connect_many(2, kind)
        stage.broadcast(container([one, two, one, one]), "hello")

    agree(scenario)


@pytest.mark.parametrize("kind", ["plain", "unix", "client"])
def test_broadcast_finishes_a_frame_before_it_starts_a_duplicate(agree: Agree, kind: Any) -> None:
    """Broadcast to a connection given twice completes the first frame though the kernel took only its beginning."""

    async def scenario(stage: Stage) -> None:
        one, two = await stage.connect_many(2, kind, sndbuf=SMALL)
        stage.broadcast([one, two, one, two, two], b"0123456789abcdef" * (1 << 14))

    agree(scenario)


def test_broadcast_is_lazy(agree: Agree) -> None:
    """Broadcast sends to a connection before it asks a generator for the next one."""

    async def scenario(stage: Stage) -> None:
        one, two, three = await stage.connect_many(3)

        def connections() -> Iterator[Any]:
            yield one
            one.transport.write(b"\x89\x01a")  # ping
            yield two
            two.transport.write(b"\x89\x01b")
            two.protocol.send_close(1000)
            two.send_data()
            three.protocol.send_ping(b"c")  # waits in the protocol until something is sent
            yield three
            yield one
            yield two

        stage.broadcast(connections(), "hello")

    outcome = agree(scenario)
    assert outcome.streams[0] == b"\x81\x05hello\x89\x01a\x81\x05hello"
    assert outcome.streams[1] == b"\x81\x05hello\x89\x01b\x88\x02\x03\xe8"
    assert outcome.streams[2] == b"\x89\x01c\x81\x05hello"


def test_broadcast_sees_what_a_generator_closes(agree: Agree) -> None:
    """Broadcast skips a connection that a generator has closed just before it yields it."""

    async def scenario(stage: Stage) -> None:
        one, two = await stage.connect_many(2)

        def connections() -> Iterator[Any]:
            yield one
            two.protocol.send_close(1000)
            yield two

        stage.broadcast(connections(), "hello")

    assert agree(scenario).streams == [b"\x81\x05hello", b""]


def test_broadcast_passes_on_what_a_generator_raises(agree: Agree) -> None:
    """Broadcast lets an exception out of a generator, after it has sent to the connections ahead."""

    async def scenario(stage: Stage) -> None:
        one, two = await stage.connect_many(2)

        def connections() -> Iterator[Any]:
            yield one
            raise LookupError("no more")
            yield two

        stage.broadcast(connections(), "hello")

    outcome = agree(scenario)
    assert outcome.streams == [b"\x81\x05hello", b""]
    assert outcome.exceptions == [(("LookupError", "no more"), None)]


def test_broadcast_drops_failures_when_a_generator_raises(agree: Agree) -> None:
    """Broadcast lets out what a generator raises rather than the failures that it has collected."""

    async def scenario(stage: Stage) -> None:
        (one,) = await stage.connect_many(1)
        one.transport.write_eof()

        def connections() -> Iterator[Any]:
            yield one
            raise LookupError("no more")

        stage.broadcast(connections(), "hello", raise_exceptions=True)

    agree(scenario)


def test_broadcast_does_not_iterate_over_subclasses_at_once(agree: Agree) -> None:
    """Broadcast is lazy with subclasses of containers, whose iteration may run any code."""

    class Closing(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            for connection in super().__iter__():
                yield connection
                connection.protocol.send_close(1000)
                connection.send_data()

    async def scenario(stage: Stage) -> None:
        one, two = await stage.connect_many(2)
        stage.broadcast(Closing([one, two, one]), "hello")

    assert agree(scenario).streams == [b"\x81\x05hello\x88\x02\x03\xe8"] * 2


def test_broadcast_rejects_what_is_not_iterable(agree: Agree) -> None:
    """Broadcast raises TypeError when it is given one connection instead of several."""

    async def scenario(stage: Stage) -> None:
        try:
            stage._broadcast((await stage.connect())[0], "hello")
        except TypeError as exc:
            stage.note(str(exc))

    agree(scenario)


# ---- Full buffers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [65535, 1 << 20])
def test_broadcast_sends_the_rest_later(agree: Agree, kind: Any, size: int) -> None:
    """Broadcast leaves what the kernel does not take to the transport, in order."""

    async def scenario(stage: Stage) -> None:
        options = {} if kind == "tls" else {"sndbuf": SMALL}
        connections = await stage.connect_many(2, kind, **options)
        stage.broadcast(connections, b"0123456789abcdef" * (size // 16))
        stage.broadcast(connections, "then this")

    agree(scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_broadcast_keeps_order_while_a_peer_does_not_read(agree: Agree, kind: Any) -> None:
    """Broadcast after broadcast arrives whole and in order though the peer begins to read in the middle."""

    async def scenario(stage: Stage) -> None:
        options: dict[str, Any] = {} if kind == "tls" else {"sndbuf": SMALL, "rcvbuf": SMALL}
        connection, peer = await stage.connect(kind, **options)
        (reading, _) = await stage.connect(kind)
        for i in range(150):
            stage.broadcast([connection, reading], noise(i))
            if i % 10 == 0:
                await asyncio.sleep(0)
        if isinstance(peer, Peer):
            assert connection.transport.get_write_buffer_size() > 0
        await peer.read(1000)
        for i in range(150, 200):
            stage.broadcast([connection, reading], noise(i))
            await asyncio.sleep(0)

    outcome = agree(scenario)
    if kind == "plain":
        assert [m.data for m in only(outcome.streams)] == [[noise(i) for i in range(200)]] * 2


@pytest.mark.parametrize("kind", ["plain", "client"])
def test_broadcast_does_not_overtake_private_messages(agree: Agree, kind: Any) -> None:
    """broadcast, send(), ping() and pong() reach a slow peer in the order in which they were called."""

    async def scenario(stage: Stage) -> None:
        connection, peer = await stage.connect(kind, sndbuf=SMALL)
        for i in range(12):
            stage.broadcast([connection], f"{i}" * 9000)
            await stage.start(connection.ping(f"ping {i}".encode()))
            stage.broadcast([connection], b"x" * i * 1000)
            await stage.start(connection.send(f"private {i}" * i * 100))
            await stage.start(connection.pong(f"pong {i}".encode()))
            await peer.read(i * 500)

    outcome = agree(scenario)
    if kind == "plain":
        decoded = decode(outcome.streams[0])  # type: ignore[arg-type]
        assert len(decoded.data) == 36
        assert decoded.pings == [f"ping {i}".encode() for i in range(12)]
        assert decoded.pongs == [f"pong {i}".encode() for i in range(12)]


def test_broadcast_does_not_overtake_answers_to_pings(agree: Agree) -> None:
    """Broadcast leaves a pong in its place between two messages that the kernel took only in part."""

    async def scenario(stage: Stage) -> None:
        connection, peer = await stage.connect(sndbuf=SMALL)
        stage.broadcast([connection], b"a" * 100_000)
        await peer.send(b"\x89\x84\0\0\0\0ping\x81\x82\0\0\0\0hi")
        assert await connection.recv() == "hi"  # the ping ahead of it was answered, too
        stage.broadcast([connection], b"b" * 100_000)

    (decoded,) = only(agree(scenario).streams)
    assert decoded.data == [b"a" * 100_000, b"b" * 100_000]
    assert decoded.pongs == [b"ping"]


def test_broadcast_sends_what_waits_in_the_protocol_first(agree: Agree) -> None:
    """Broadcast sends what the protocol was told to send, but the connection has not written yet, ahead of it."""

    async def scenario(stage: Stage) -> None:
        one, two = await stage.connect_many(2)
        one.protocol.send_text(b"first")
        stage.broadcast([one, two], "second")

    assert agree(scenario).streams[0] == b"\x81\x05first\x81\x06second"


# ---- Connections that are on their way out


@pytest.mark.parametrize("raise_exceptions", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_broadcast_skips_closing_connection(agree: Agree, kind: Any, raise_exceptions: bool) -> None:
    """Broadcast ignores connections whose closing handshake this side has begun."""

    async def scenario(stage: Stage) -> None:
        one, two = await stage.connect_many(2, kind)
        await stage.start(one.close())
        assert one.protocol.state is State.CLOSING
        stage.broadcast([one, two], "hello", raise_exceptions)

    outcome = agree(scenario)
    assert outcome.deliveries[0] is not None
    assert outcome.deliveries[0].skipped == 1


def test_broadcast_skips_connection_that_the_peer_closes(agree: Agree) -> None:
    """Broadcast ignores connections whose closing handshake the other side has begun."""

    async def scenario(stage: Stage) -> None:
        one, peer = await stage.connect()
        (two,) = await stage.connect_many(1)
        await peer.send(b"\x88\x82\0\0\0\0\x03\xe8")
        await until(lambda: one.protocol.state is not State.OPEN, "the close frame")
        stage.broadcast([one, two], "hello")

    assert agree(scenario).streams == [b"\x88\x02\x03\xe8", b"\x81\x05hello"]


@pytest.mark.parametrize("raise_exceptions", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_broadcast_skips_closed_connection(agree: Agree, kind: Any, raise_exceptions: bool) -> None:
    """Broadcast ignores closed connections."""

    async def scenario(stage: Stage) -> None:
        one, two = await stage.connect_many(2, kind)
        one.transport.abort()
        await until(lambda: one.protocol.state is State.CLOSED, "the connection to be closed")
        stage.broadcast([one, two, one], "hello", raise_exceptions)

    outcome = agree(scenario)
    assert outcome.deliveries[0] is not None
    assert outcome.deliveries[0].skipped == 2


@pytest.mark.parametrize("raise_exceptions", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["abort", "close", "write_eof"])
def test_broadcast_meets_a_transport_that_has_just_ended(
    agree: Agree, kind: Any, ending: str, raise_exceptions: bool
) -> None:
    """Broadcast treats transports that were aborted, closed or shut down in this very iteration as upstream does."""

    async def scenario(stage: Stage) -> None:
        one, two, three = await stage.connect_many(3, kind)
        stage.broadcast([one, two, three], "before")
        if ending != "write_eof" or one.transport.can_write_eof():
            getattr(one.transport, ending)()
        stage.broadcast([two, one, three], "after", raise_exceptions)
        stage.broadcast([one, two], "once more", raise_exceptions)
        stage.broadcast(iter([one, two]), "lazily", raise_exceptions)

    outcome = agree(scenario)
    if ending == "write_eof" and kind == "plain":
        found = outcome.exceptions if raise_exceptions else outcome.records
        assert len(found) == 3


@pytest.mark.parametrize("ending", ["abort", "close", "write_eof"])
def test_broadcast_meets_an_ended_transport_with_a_full_buffer(agree: Agree, ending: str) -> None:
    """Broadcast adds nothing to a transport that was ended while it still had something to write."""

    async def scenario(stage: Stage) -> None:
        one, peer = await stage.connect(sndbuf=SMALL, rcvbuf=SMALL)
        (two,) = await stage.connect_many(1)
        stage.broadcast([one, two], b"x" * 50_000)
        getattr(one.transport, ending)()
        stage.broadcast([one, two], "after")
        stage.broadcast([one, two], "once more", raise_exceptions=True)
        if ending == "abort":  # how much of the first message gets through is the kernel's business
            peer.close()

    agree(scenario)


@pytest.mark.parametrize("kind", ["plain", "deflate", "unix", "client"])
@pytest.mark.parametrize("times", [1, 2, 8])
def test_broadcast_to_peer_that_has_reset_the_connection(agree: Agree, kind: Any, times: int) -> None:
    """Broadcast to a peer that has dropped the connection ends the connection as upstream's does, and no other."""

    async def scenario(stage: Stage) -> None:
        one, peer = await stage.connect(kind)
        (two,) = await stage.connect_many(1, kind)
        assert isinstance(peer, Peer)
        drop(one, peer)
        for _ in range(times):
            stage.broadcast([one, two], "hello")
        stage.broadcast([one, two], "hello", raise_exceptions=True)
        await until(lambda: one.protocol.state is State.CLOSED, "the connection to be lost")
        stage.broadcast([one, two], "hello")

    agree(scenario)


@pytest.mark.parametrize("kind", ["plain", "unix", "client"])
def test_broadcast_reports_the_reason_why_the_connection_was_lost(agree: Agree, kind: Any) -> None:
    """Broadcast leaves it to the transport to find out how the peer has dropped the connection."""

    async def scenario(stage: Stage) -> None:
        connection, peer = await stage.connect(kind)
        assert isinstance(peer, Peer)
        drop(connection, peer)
        stage.broadcast([connection], "hello")
        with pytest.raises(ConnectionClosed) as caught:
            await connection.recv()
        stage.note(type(caught.value.__cause__).__name__)

    agree(scenario)


def test_broadcast_to_peer_that_resets_with_a_full_buffer(agree: Agree) -> None:
    """Broadcast to a peer that drops the connection in the middle of a message does not disturb the others."""

    async def scenario(stage: Stage) -> None:
        one, peer = await stage.connect(sndbuf=SMALL, rcvbuf=SMALL)
        (two,) = await stage.connect_many(1)
        stage.broadcast([one, two], b"x" * 100_000)
        assert isinstance(peer, Peer)
        drop(one, peer)
        stage.broadcast([one, two], "hello")
        await until(lambda: one.protocol.state is State.CLOSED, "the connection to be lost")
        stage.broadcast([one, two], "hello")

    assert len(decode(agree(scenario).streams[1]).data) == 3  # type: ignore[arg-type]


def test_broadcast_to_peer_that_has_shut_down_writing(agree: Agree) -> None:
    """Broadcast to a peer that has ended its own stream meets a closed connection."""

    async def scenario(stage: Stage) -> None:
        one, peer = await stage.connect()
        (two,) = await stage.connect_many(1)
        assert isinstance(peer, Peer)
        peer.sock.shutdown(socket.SHUT_WR)
        stage.broadcast([one, two], "before")
        await until(lambda: one.protocol.state is State.CLOSED, "the connection to be lost")
        stage.broadcast([one, two], "after")

    agree(scenario)


# ---- Fragmented messages


@pytest.mark.parametrize("raise_exceptions", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_broadcast_skips_connection_sending_fragmented_text(agree: Agree, kind: Any, raise_exceptions: bool) -> None:
    """Broadcast skips connections on which a fragmented message is being sent, and says so."""

    async def scenario(stage: Stage) -> None:
        one, two = await stage.connect_many(2, kind)
        stage.broadcast([one, two], "before")
        async with fragmented_send(stage, one):
            stage.broadcast([one, two, one], "during", raise_exceptions)
        stage.broadcast([one, two], "after", raise_exceptions)

    outcome = agree(scenario)
    if not raise_exceptions:
        warning = (
            f"websockets.{'client' if kind == 'client' else 'server'}",
            logging.WARNING,
            "skipped broadcast: sending a fragmented message",
        )
        assert outcome.records == [warning] * 2
        assert outcome.deliveries[1] is not None
        assert outcome.deliveries[1].skipped == 2


@pytest.mark.parametrize("raise_exceptions", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_broadcast_after_a_cancelled_fragmented_message(agree: Agree, kind: Any, raise_exceptions: bool) -> None:
    """Broadcast reports a failure on connections where a fragmented message was given up."""

    async def scenario(stage: Stage) -> None:
        one, two = await stage.connect_many(2, kind)
        async with fragmented_send(stage, one) as message:
            message.task.cancel()
            await asyncio.wait([message.task])
            assert one.protocol.expect_continuation_frame
            stage.broadcast([one, two, one], "during", raise_exceptions)

    outcome = agree(scenario)
    if raise_exceptions:
        assert outcome.exceptions[0][1].startswith("skipped broadcast")
    else:
        assert len(outcome.records) == 2
        assert outcome.records[0][2].startswith("skipped broadcast: failed to write message: ")


# ---- Failures


def test_broadcast_raises_all_failures_in_order(agree: Agree) -> None:
    """Broadcast raises one ExceptionGroup with all failures in the order of the connections."""

    async def scenario(stage: Stage) -> None:
        a, b, c, d, e, f = await stage.connect_many(6)
        b.transport.write_eof()
        f.transport.write_eof()
        async with fragmented_send(stage, a), fragmented_send(stage, d), fragmented_send(stage, e) as cancelled:
            cancelled.task.cancel()
            await asyncio.wait([cancelled.task])
            for container in list, iter:
                stage.broadcast(container([a, b, c, d, e, f, b]), "hello", raise_exceptions=True)
                stage.broadcast(container([a, b, c, d, e, f, b]), "hello", raise_exceptions=False)

    outcome = agree(scenario)
    causes = [cause and cause[0] for _, cause in outcome.exceptions[0][2]]
    assert [cause is not None for cause in causes] == [False, True, False, True, True, True]
    assert len(outcome.records) == 12


@pytest.mark.parametrize("raise_exceptions", [False, True])
def test_broadcast_reports_what_a_protocol_raises(agree: Agree, raise_exceptions: bool) -> None:
    """Broadcast reports exceptions of the protocol and of send_data() as failures."""

    class Failing(ServerConnection):
        def send_data(self) -> None:
            if self.protocol.writes and self.protocol.writes[0].startswith(b"\x81"):
                self.protocol.data_to_send()
                raise ZeroDivisionError("on purpose")
            super().send_data()

    async def scenario(stage: Stage) -> None:
        one, _ = await stage.connect()
        two, _ = await stage.connect(create_connection=Failing)
        three, _ = await stage.connect()
        stage.broadcast([one, two, three], "hello", raise_exceptions)

    agree(scenario)


# ---- Debug logging


@pytest.mark.parametrize("kind", KINDS)
def test_broadcast_logs_frames(agree: Agree, kind: Any) -> None:
    """Broadcast logs each frame when debug logging is on."""

    async def scenario(stage: Stage) -> None:
        one, two = await stage.connect_many(2, kind)
        stage.broadcast([one, two, one], "hello")
        stage.broadcast([one, two], b"\xff" * 1000)
        one.transport.abort()
        stage.broadcast([one, two], "aborted")
        await stage.start(two.close())
        stage.broadcast([two], "closing")

    outcome = agree(scenario, level=logging.DEBUG)
    assert sum("> TEXT 'hello' [5 bytes]" in text for _, _, text in outcome.records) == 3


# ---- Compression


def test_broadcast_keeps_the_state_of_compression(agree: Agree) -> None:
    """Broadcast and send() on a compressed connection share its window, so that the peer can decompress both."""

    async def scenario(stage: Stage) -> None:
        one, two = await stage.connect_many(2, "deflate")
        for i in range(5):
            stage.broadcast([one, two], '{"key": "value", "other": [1, 2, 3]}')
            await one.send(f'{{"key": "value", "other": {i}}}')
            stage.broadcast([one], b'{"key": "value", "other": null}' * 100)

    agree(scenario)


# ---- Mixed sets


class Shouting(ServerConnection):
    """A subclass that takes part in sending."""

    calls: ClassVar[list[str]] = []

    def send_data(self) -> None:
        self.calls.append("send_data")
        super().send_data()


class StandIn:
    """What upstream's broadcast() needs of a connection, and no more."""

    def __init__(self, connection: Any, calls: list[str]) -> None:
        self.protocol = connection.protocol
        self.logger = connection.logger
        self.send_in_progress = self.fragmented_send_waiter = None
        self._connection, self._calls = connection, calls

    def send_data(self) -> None:
        self._calls.append("stand-in")
        self._connection.send_data()


class Wrapper:
    """Something around a connection that passes everything on."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def test_broadcast_takes_stand_ins(agree: Agree) -> None:
    """Broadcast sends to whatever has the parts of a connection that upstream's uses."""

    async def scenario(stage: Stage) -> None:
        calls: list[str] = []
        one, two = await stage.connect_many(2)
        stage.broadcast([StandIn(one, calls), two, StandIn(two, calls)], "hello")
        stage.note(calls)

    assert agree(scenario).streams == [b"\x81\x05hello", b"\x81\x05hello" * 2]


def test_broadcast_takes_wrappers(agree: Agree) -> None:
    """Broadcast sends to objects that pass on all attributes of a connection."""

    async def scenario(stage: Stage) -> None:
        one, two = await stage.connect_many(2)
        stage.broadcast([Wrapper(one), two, Wrapper(two)], "hello")
        one.transport.write_eof()
        stage.broadcast([Wrapper(one), one, two], "hello")

    agree(scenario)


def test_broadcast_calls_subclasses_in_order(agree: Agree) -> None:
    """Broadcast calls send_data() of subclasses that override it when it is their connection's turn."""

    async def scenario(stage: Stage) -> None:
        one, _ = await stage.connect()
        two, _ = await stage.connect(create_connection=Shouting)
        three, _ = await stage.connect()

        Shouting.calls.clear()
        stage.broadcast([one, two, three, two], "hello")
        stage.note(list(Shouting.calls))

    assert agree(scenario).notes == [(["send_data", "send_data"],)]


def test_broadcast_uses_a_protocol_of_another_type(agree: Agree) -> None:
    """Broadcast calls the methods of a protocol that is of a subclass."""

    async def scenario(stage: Stage) -> None:
        one, two = await stage.connect_many(2, known=False)

        class Upper(type(one.protocol)):  # type: ignore[misc]
            def send_text(self, data: bytes, fin: bool = True) -> None:
                super().send_text(bytes(data).upper(), fin)

        one.protocol.__class__ = Upper
        stage.broadcast([two, one, two], "hello")

    assert agree(scenario).streams == [b"\x81\x05HELLO", b"\x81\x05hello" * 2]


@pytest.mark.parametrize("name", ["send_data", "protocol.send_text", "protocol.send_frame", "protocol.data_to_send"])
def test_broadcast_calls_methods_replaced_on_the_instance(agree: Agree, name: str) -> None:
    """Broadcast calls methods that were replaced on one connection or its protocol before it is first sent to."""

    async def scenario(stage: Stage) -> None:
        (connection,) = await stage.connect_many(1, known=False)
        owner = connection.protocol if name.startswith("protocol.") else connection
        method = getattr(owner, name.split(".")[-1])
        calls: list[str] = []

        def replacement(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return method(*args, **kwargs)

        setattr(owner, name.split(".")[-1], replacement)
        stage.broadcast([connection], "hello")
        stage.note(calls)

    agree(scenario)


@pytest.mark.parametrize("container", [list, iter], ids=["list", "iterator"])
@pytest.mark.parametrize("raise_exceptions", [False, True])
@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG])
def test_broadcast_to_a_mixed_set(
    agree: Agree, container: Callable[[Any], Iterable[Any]], raise_exceptions: bool, level: int
) -> None:
    """Broadcast to connections of all kinds at once does for each what is right for it, in order."""

    async def scenario(stage: Stage) -> None:
        calls = Shouting.calls
        everything: list[Any] = []
        for round_ in range(2):
            for kind in KINDS:
                everything += await stage.connect_many(2, kind)  # type: ignore[arg-type]
            everything += await stage.connect_many(2, create_connection=Shouting)
            everything.append(StandIn((await stage.connect())[0], calls))
            everything.append(Wrapper((await stage.connect())[0]))
            closing, closed, ended = await stage.connect_many(3)
            everything += [closing, closed, ended]
            await stage.start(closing.close())
            closed.transport.abort()
            await until(partial(state_is, closed, State.CLOSED), "closing")
            ended.transport.write_eof()
            everything.append(everything[round_])
        stage.recorder.records.clear()
        calls.clear()
        fragmenting = stage.connections[-1]
        fragmenting, _ = await stage.connect()
        everything.insert(7, fragmenting)
        async with fragmented_send(stage, fragmenting):
            stage.broadcast(container(everything), "hello", raise_exceptions)
            stage.broadcast(container(everything[::-1]), b"goodbye" * 1000, raise_exceptions)
        stage.note(list(calls))

    agree(scenario, level=level)


# ---- Peculiar connections


def test_broadcast_from_a_subclass_that_overrides_nothing(agree: Agree) -> None:
    """Broadcast sends to subclasses that leave sending alone."""

    class Mine(ServerConnection):
        def greet(self) -> str:
            return "hello"

    async def scenario(stage: Stage) -> None:
        one, _ = await stage.connect(create_connection=Mine)
        stage.broadcast([one], one.greet())

    assert agree(scenario).streams == [b"\x81\x05hello"]


def test_broadcast_notices_paused_writing(agree: Agree) -> None:
    """Broadcast pauses writing on connections whose transport's buffer has reached its limit."""

    class Noting(ServerConnection):
        def pause_writing(self) -> None:
            self.events = [*getattr(self, "events", []), "paused"]
            super().pause_writing()

        def resume_writing(self) -> None:
            self.events = [*getattr(self, "events", []), "resumed"]
            super().resume_writing()

    async def scenario(stage: Stage) -> None:
        for kind in ServerConnection, Noting:
            connection, peer = await stage.connect(sndbuf=SMALL, rcvbuf=SMALL, create_connection=kind)
            stage.broadcast([connection], b"x" * 100_000)
            assert connection.paused
            await gather_within(peer.read(100_000), connection.send("done"))
            stage.note(connection.paused, getattr(connection, "events", None))

    agree(scenario)


def test_broadcast_sends_to_a_client_that_reconnected(agree: Agree) -> None:
    """Broadcast treats connections of ClientConnection and its subclasses as clients."""

    class Mine(ClientConnection):
        pass

    async def scenario(stage: Stage) -> None:
        one, _ = await stage.connect("client")
        two, _ = await stage.connect("client", create_connection=Mine)
        stage.broadcast([one, two], "hello")
        stage.broadcast([two, one], b"hello")

    outcome = agree(scenario)
    assert len(outcome.keys) == 4


# ---- Code that runs in the middle


@pytest.mark.parametrize("kind", ["plain", "unix", "client"])
@pytest.mark.parametrize("reentry", ["ping", "transport", "broadcast"])
def test_broadcast_never_splits_a_frame(agree: Agree, kind: Any, reentry: str) -> None:
    """Broadcast has handed over every frame that it began when a log handler writes to the same connections."""

    async def scenario(stage: Stage) -> None:
        one, two = await stage.connect_many(2, kind, sndbuf=SMALL)
        inside = False

        def on_record(record: logging.LogRecord) -> None:
            nonlocal inside
            if inside or record.levelno < logging.WARNING:
                return
            inside = True
            if reentry == "ping":
                one.protocol.send_ping(b"!")
                one.send_data()
            elif reentry == "transport":
                one.transport.write(b"\x89\x00" if kind != "client" else b"\x89\x80" + os.urandom(4))
            else:
                stage.broadcast([one], b"inner" * 50_000)
            inside = False

        async with fragmented_send(stage, two):
            stage.recorder.on_record = on_record
            # The log record is written after `one` has got its message: here, upstream does the same.
            stage.broadcast([one, two], b"outer" * 50_000)
            stage.broadcast([one, two], b"outer" * 50_000)
            stage.recorder.on_record = None

    agree(scenario)
