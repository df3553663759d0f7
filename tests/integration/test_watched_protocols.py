"""broadcast() asks nothing of stock protocols that are known to be free; whatever happens to one, it is asked again."""

from __future__ import annotations

import asyncio
import os
import types
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import ServerConnection
from websockets.client import ClientProtocol
from websockets.server import ServerProtocol

import wsfast
from helpers.fixtures import Agree, Ours
from helpers.peers import Peer
from helpers.stage import Stage, fragmented_send, upstream

KINDS = ["plain", "deflate", "client"]
METHODS = "send_frame", "send_eof", "receive_eof"

TICK = '{"key": "value", "other": [1, 2, 3]}'
LONG = TICK * 20  # what is compressed


class Kept:
    """What a handler has kept of its connection before anything was broadcast to it."""

    def __init__(self, stage: Stage, connection: Any, peer: Peer) -> None:
        self.stage = stage
        self.connection = connection
        self.peer = peer
        self.protocol = connection.protocol
        self.transport = connection.transport
        self.send_frame = connection.protocol.send_frame


async def sends(kept: Kept) -> None:
    await kept.connection.send(LONG + "own")


async def sends_later(kept: Kept) -> None:
    kept.protocol.send_text((LONG + "own").encode())


async def pings(kept: Kept) -> None:
    await kept.connection.ping(b"ping")


async def sends_a_frame(kept: Kept) -> None:
    kept.protocol.send_ping(b"ping")
    kept.connection.send_data()


async def begins_a_message(kept: Kept) -> None:
    kept.protocol.send_text(b"first, ", fin=False)


async def begins_to_send_a_message(kept: Kept) -> None:
    kept.protocol.send_text(b"first, ", fin=False)
    kept.connection.send_data()


async def has_sent_fragments(kept: Kept) -> None:
    await kept.connection.send([LONG, LONG])


async def is_cancelled_in_a_message(kept: Kept) -> None:
    async with fragmented_send(kept.stage, kept.connection) as message:
        message.task.cancel()
        await asyncio.wait([message.task])


async def begins_to_close(kept: Kept) -> None:
    await kept.stage.start(kept.connection.close())


async def sends_a_close_frame(kept: Kept) -> None:
    kept.protocol.send_close(1000)


async def fails(kept: Kept) -> None:
    kept.protocol.fail(1011)


async def fails_without_a_frame(kept: Kept) -> None:
    kept.protocol.fail(1006)


async def ends_its_stream(kept: Kept) -> None:
    kept.protocol.send_eof()


async def writes(kept: Kept) -> None:
    masked = kept.protocol.side.name == "CLIENT"
    kept.transport.write(b"\x8a\x80" + os.urandom(4) if masked else b"\x8a\x04pong")


async def writes_half_a_frame(kept: Kept) -> None:
    size = 1_000_000  # more than the kernel takes
    kept.transport.write(bytes([0x82, 127]) + size.to_bytes(8, "big") + bytes(size))


async def shuts_down(kept: Kept) -> None:
    kept.transport.write_eof()


async def closes_its_transport(kept: Kept) -> None:
    kept.transport.close()


async def aborts(kept: Kept) -> None:
    kept.transport.abort()


async def is_broadcast_to_by_websockets(kept: Kept) -> None:
    upstream([kept.connection], LONG)


async def has_a_method_wrapped(kept: Kept) -> None:
    original = kept.protocol.send_frame
    kept.protocol.send_frame = lambda frame: original(frame)
    kept.protocol.send_text(b"wrapped")


async def receives_the_end(kept: Kept) -> None:
    kept.protocol.receive_eof()


async def receives_nonsense(kept: Kept) -> None:
    kept.protocol.receive_data(b"\xff\xff")


async def receives_a_close_frame(kept: Kept) -> None:
    masked = kept.protocol.side.name == "SERVER"
    kept.protocol.receive_data(b"\x88\x82" + bytes(4) + b"\x03\xe8" if masked else b"\x88\x02\x03\xe8")


async def receives_a_ping(kept: Kept) -> None:
    masked = kept.protocol.side.name == "SERVER"
    kept.protocol.receive_data(b"\x89\x81" + bytes(4) + b"p" if masked else b"\x89\x01p")


Event = Callable[[Kept], Awaitable[None]]

EVENTS: list[Event] = [
    sends,
    sends_later,
    pings,
    sends_a_frame,
    begins_a_message,
    begins_to_send_a_message,
    has_sent_fragments,
    is_cancelled_in_a_message,
    begins_to_close,
    sends_a_close_frame,
    fails,
    fails_without_a_frame,
    ends_its_stream,
    writes,
    shuts_down,
    closes_its_transport,
    aborts,
    is_broadcast_to_by_websockets,
    has_a_method_wrapped,
    receives_the_end,
    receives_nonsense,
    receives_a_close_frame,
    receives_a_ping,
]

# After that one, clients of upstream fail to close.
CASES = [(event, kind) for event in EVENTS for kind in KINDS if (event, kind) != (ends_its_stream, "client")]


def scenario_of(event: Event, kind: Any, **options: Any) -> Callable[[Stage], Awaitable[None]]:
    """Return a scenario in which something happens to one of two connections between broadcasts."""

    async def scenario(stage: Stage) -> None:
        if kind != "client":
            options["create_connection"] = ServerConnection  # served connections need not notice what was kept
        connections = []
        for _ in range(2):
            connection, peer = await stage.connect(kind, **options)
            connections.append(connection)
            if len(connections) == 1:
                assert isinstance(peer, Peer)
                kept = Kept(stage, connection, peer)
        for _ in range(2):
            stage.broadcast(connections, LONG)
        await event(kept)
        for i in range(3):
            stage.broadcast(connections, f"{i} {LONG}")
        await asyncio.sleep(0)
        for i in range(3):
            stage.broadcast(connections, f"{i} {LONG}")

    return scenario


@pytest.mark.parametrize(("event", "kind"), CASES, ids=[f"{event.__name__}-{kind}" for event, kind in CASES])
def test_broadcast_notices_what_happens_to_a_connection(agree: Agree, event: Event, kind: Any) -> None:
    """Between two broadcasts anything may happen to a connection, also by what was kept of it before the first."""
    agree(scenario_of(event, kind))


def test_broadcast_notices_what_waits_in_a_transport_that_was_kept(agree: Agree) -> None:
    """A frame does not overtake what a handler has written to a transport that it took before the first broadcast."""
    agree(scenario_of(writes_half_a_frame, "plain", sndbuf=4096, rcvbuf=4096))


# ---- What is known of a connection, and what is left on it


@pytest.mark.parametrize("kind", KINDS)
def test_a_protocol_is_free_until_something_happens_to_it(ours: Ours, kind: Any) -> None:
    """A protocol is free after a broadcast, and until it is told to send anything."""

    async def scenario(stage: Stage) -> None:
        for end in METHODS[1 + (kind == "client") :]:  # clients of upstream's fail to close after the first one
            connection, _ = await stage.connect(kind)
            stage.broadcast([connection], TICK)
            peer = connection._wsfast_peer
            happenings: list[Callable[[], Any]] = [
                lambda protocol=connection.protocol: protocol.send_text(b"own"),  # type: ignore[misc]
                lambda protocol=connection.protocol: protocol.send_ping(b"ping"),  # type: ignore[misc]
                getattr(connection.protocol, end),
            ]
            for happens in happenings:
                peer.check(connection)
                assert peer.protocol_free
                happens()
                assert not peer.protocol_free
                peer.check(connection)
                assert not peer.protocol_free
                connection.protocol.data_to_send()
            connection.transport.abort()

    ours(scenario)


def test_a_protocol_is_not_free_in_the_middle_of_sending(ours: Ours) -> None:
    """What a finalizer broadcasts while a frame is made has nobody believe that nothing happens to the protocol."""

    async def scenario(stage: Stage) -> None:
        connection, _ = await stage.connect()
        stage.broadcast([connection], TICK)
        frame: Any = types.SimpleNamespace(opcode=1)

        def serialize(**_: Any) -> bytes:
            stage.broadcast([connection], TICK)
            return b"\x81\x01x"

        frame.serialize = serialize
        connection.protocol.send_frame(frame)
        assert connection.protocol.writes
        assert not connection._wsfast_peer.protocol_free
        stage.broadcast([connection], TICK)

    ours(scenario)


def test_types_stay_as_they_are(ours: Ours) -> None:
    """Connections and protocols are of the same types as before they were broadcast to."""

    async def scenario(stage: Stage) -> None:
        server, _ = await stage.connect()
        client, _ = await stage.connect("client")
        stage.broadcast([server, client], TICK)
        assert (type(server), type(client)) == (ServerConnection, ClientConnection)
        assert (type(server.protocol), type(client.protocol)) == (ServerProtocol, ClientProtocol)

    ours(scenario)


def test_a_protocol_is_not_watched_where_it_must_be_asked_anyway(core: Any, loop_kind: str, ours: Ours) -> None:
    """Nothing is put on protocols whose transport must encrypt, of served connections, or with a replaced method."""
    encrypts = core.sends_directly and loop_kind == "asyncio"

    async def scenario(stage: Stage) -> None:
        secure, _ = await stage.connect("tls")
        served, _ = await stage.connect(create_connection=wsfast.ServerConnection)
        replaced, _ = await stage.connect()
        original = replaced.protocol.receive_eof
        replaced.protocol.receive_eof = lambda: original()
        for _ in range(2):
            stage.broadcast([secure, served, replaced], TICK)
        for connection in secure, served, replaced:
            watched = encrypts and connection is secure
            assert connection._wsfast_peer.protocol_free is watched
            assert ({"send_frame", "send_eof"} <= set(vars(connection._wsfast_peer.protocol))) is watched

    ours(scenario)


def test_a_subscription_leaves_the_protocol_watched(ours: Ours) -> None:
    """What stands for `send_frame` while a connection is subscribed comes and goes; that a protocol tells stays."""

    async def scenario(stage: Stage) -> None:
        connection, _ = await stage.connect()
        stage.broadcast([connection], TICK)
        watched = {name: vars(connection.protocol)[name] for name in METHODS}
        channel = wsfast.Channel()
        for _ in range(2):
            subscription = channel.subscribe(connection)
            channel.publish(TICK)
            channel.flush()
            connection._wsfast_peer.check(connection)
            assert connection._wsfast_peer.protocol_free
            await connection.send(TICK)
            assert not connection._wsfast_peer.protocol_free
            subscription.unsubscribe()
            assert {name: vars(connection.protocol)[name] for name in METHODS} == watched

    ours(scenario)


def test_a_second_peer_has_the_connection_send_by_its_own_methods(ours: Ours) -> None:
    """Where two peers are made for one connection, the protocol tells the first one; the second relies on nothing."""

    async def scenario(stage: Stage) -> None:
        connection, _ = await stage.connect()
        stage.broadcast([connection], TICK)
        first = connection._wsfast_peer
        connection._wsfast_peer = None
        assert stage.broadcast([connection], TICK) == (1, 0, 0, 0)
        second = connection._wsfast_peer
        first.check(connection)
        assert (first.protocol_free, second.protocol_free, second.direct) == (True, False, False)
        await connection.send(TICK)
        assert not first.protocol_free

    ours(scenario)


def test_a_protocol_that_was_watched_outlives_its_peer(ours: Ours) -> None:
    """What stands for its methods goes on to work."""

    async def scenario(stage: Stage) -> None:
        connection, _ = await stage.connect()
        stage.broadcast([connection], TICK)
        connection._wsfast_peer = None
        await connection.send(TICK)
        stage.broadcast([connection], TICK)

    ours(scenario)
