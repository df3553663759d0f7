"""Whatever is done in whatever order: each peer's stream is exactly the messages that were sent to it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.protocol import State

import wsfast
from helpers.fixtures import Run
from helpers.peers import Peer, decode, parse_frames, until
from helpers.stage import Stage, play
from wsfast.connections.websockets import SEND_IN_PROGRESS

COUNT = 4  # connections: one with buffers of the usual size, two with small ones, one client
WHICH = st.integers(0, COUNT - 1)
SIZE = st.sampled_from([0, 1, 125, 126, 5000, 30_000, 65_535, 65_536, 150_000])
STEP = st.one_of(
    st.tuples(st.just("broadcast"), st.lists(WHICH, max_size=6), SIZE, st.booleans()),
    st.tuples(st.just("broadcast"), st.just(list(range(COUNT))), SIZE, st.booleans()),
    st.tuples(st.just("send"), WHICH, SIZE),
    st.tuples(st.just("ping"), WHICH),
    st.tuples(st.just("read"), WHICH, st.integers(1, 200_000)),
    st.tuples(st.just("begin"), WHICH, SIZE),
    st.tuples(st.just("end"), WHICH),
    st.tuples(st.just("turn")),
    st.tuples(st.just("close"), WHICH),
    st.tuples(st.just("abort"), WHICH),
)


@dataclass
class Expected:
    """What the peer of one connection must receive."""

    data: list[str | bytes] = field(default_factory=list)
    pings: list[bytes] = field(default_factory=list)
    gate: asyncio.Future[None] | None = None
    lossy: bool = False


async def act(stage: Stage, steps: list[Any], expected: list[Expected]) -> None:
    connections = [(await stage.connect())[0]]
    connections += await stage.connect_many(2, sndbuf=4096, rcvbuf=4096, write_limit=10_000)
    connections += await stage.connect_many(1, "client", sndbuf=4096, rcvbuf=4096)
    expected.extend(Expected() for _ in connections)
    loop = asyncio.get_running_loop()

    def writable(which: int) -> bool:
        connection = connections[which]
        return connection.protocol.state is State.OPEN and not connection.transport.is_closing()

    async def fragments(message: str, gate: asyncio.Future[None]) -> AsyncIterator[str]:
        yield message
        await gate
        yield "end"

    for number, step in enumerate(steps):
        match step:
            case ("broadcast", chosen, size, lazy):
                message: str | bytes = f"{number}:" + "x" * size if number % 2 else f"{number}:".encode() + b"x" * size
                skipped = failed = 0
                for which in chosen:
                    connection = connections[which]
                    if connection.protocol.state is not State.OPEN or getattr(connection, SEND_IN_PROGRESS):
                        skipped += 1
                    elif not writable(which):
                        failed += 1
                    else:
                        expected[which].data.append(message)
                given_ = (connections[which] for which in chosen)
                delivery = wsfast.broadcast(given_ if lazy else list(given_), message)
                assert delivery.skipped == skipped
                assert delivery.sent + delivery.buffered + delivery.failed == len(chosen) - skipped
            case ("send", which, size):
                if writable(which) and not getattr(connections[which], SEND_IN_PROGRESS):
                    private = f"{number}:" + "y" * size
                    expected[which].data.append(private)
                    await stage.start(connections[which].send(private))
            case ("ping", which):
                if writable(which):
                    expected[which].pings.append(f"{number}".encode())
                    await stage.start(connections[which].ping(f"{number}"))
            case ("read", which, size):
                peer = stage.peers[which]
                assert isinstance(peer, Peer)
                if not peer.ended:
                    peer.read_now(size)
                await asyncio.sleep(0)
            case ("begin", which, size):
                if writable(which) and not getattr(connections[which], SEND_IN_PROGRESS):
                    gate = expected[which].gate = loop.create_future()
                    fragment = f"{number}:" + "z" * size
                    expected[which].data.append(fragment + "end")
                    await stage.start(connections[which].send(fragments(fragment, gate)))
                    await until(partial(getattr, connections[which], SEND_IN_PROGRESS), "the first fragment")
            case ("end", which):
                gate_ = expected[which].gate
                if gate_ is not None and not gate_.done():
                    gate_.set_result(None)
                    await asyncio.sleep(0)
            case ("turn",):
                await asyncio.sleep(0)
            case ("close", which):
                # A fragmented message that is cut off by a close frame is nothing to look at here.
                if not getattr(connections[which], SEND_IN_PROGRESS):
                    await stage.start(connections[which].close())
            case ("abort", which):
                expected[which].lossy = True
                if not connections[which].connection_lost_waiter.done():
                    connections[which].transport.abort()
    for one in expected:
        if one.gate is not None and not one.gate.done():
            one.gate.set_result(None)


@given(steps=st.lists(STEP, min_size=1, max_size=25))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_streams_are_the_messages_in_order(
    core: Any, run: Run, tls: tuple[ssl.SSLContext, ssl.SSLContext], steps: list[Any]
) -> None:
    """Broadcasts, private messages, pings and fragments arrive whole and in order, however slowly a peer reads."""
    expected: list[Expected] = []

    async def scenario(stage: Stage) -> None:
        await act(stage, steps, expected)

    outcome = run(lambda: play(scenario, wsfast.broadcast, tls))
    for one, stream in zip(expected, outcome.streams, strict=True):
        if isinstance(stream, bytes):
            if one.lossy:  # parse what came through whole
                _, tail = parse_frames(stream)
                decoded = decode(stream[: len(stream) - len(tail)])
            else:
                decoded = decode(stream)
            data, pings = decoded.data, decoded.pings
        else:
            data, pings, text = [], [], ""
            for first, _, payload in stream[0]:
                if first & 0x0F == 9:
                    pings.append(payload)
                elif first == 0x82:
                    data.append(payload)
                elif first & 0x0F < 2:
                    text += payload.decode()
                    if first & 0x80:
                        data.append(text)
                        text = ""
            assert one.lossy or stream[1] == b""
        if one.lossy:
            assert data == one.data[: len(data)]
            assert pings == one.pings[: len(pings)]
        else:
            assert data == one.data
            assert pings == one.pings
