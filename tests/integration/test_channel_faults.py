"""What channels do when things go wrong: over real sockets, with everything that arrives decoded."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import socket
import ssl
import struct
import sys
import threading
import time
import tracemalloc
import types
import warnings
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

import wsfast
from helpers import processes
from helpers.cores import CORES, load_core, use_core
from helpers.fixtures import Run
from helpers.peers import TIMEOUT, BasePeer, Peer, decode, inflate, parse_frames, until
from helpers.stage import Stage, drop
from wsfast._backlog import Backlog, Queue
from wsfast._delivery import Outcome
from wsfast._dispatcher import Dispatcher
from wsfast._encoding.message import Joined
from wsfast._subscription import Subscription
from wsfast.channel import Channel
from wsfast.policies import Conflate, Disconnect, DropNewest, DropOldest, Policy

Contexts: TypeAlias = tuple[ssl.SSLContext, ssl.SSLContext]

SMALL = 4096  # bytes of a socket buffer that a large message overflows
LIVE = 3
STALLED = 2

KINDS = ["evented", "stock", "evented-deflate", "stock-deflate", "tls", "client", "override", "debug"]


class Overriding(wsfast.ServerConnection):
    """A connection that sends in its own way."""

    def send_data(self) -> None:
        """Send outgoing data."""
        super().send_data()


class Nowhere(BaseException):
    """An exception that comes from nowhere, as that of a signal handler."""


@pytest.fixture(params=CORES)
def both(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One of the two cores, in use by all modules that send."""
    module = load_core(request.param)
    use_core(module, monkeypatch)
    return module


Play: TypeAlias = Callable[[Callable[[Stage], Awaitable[None]]], list[tuple[str, int, str]]]


@pytest.fixture
def act(run: Run, tls: Contexts) -> Play:
    """Run a scenario on a stage; return what was logged. Nothing must be logged as an error, but what it clears."""

    def act(scenario: Callable[[Stage], Awaitable[None]]) -> list[tuple[str, int, str]]:
        async def main() -> list[tuple[str, int, str]]:
            async with open_stage(tls) as stage:
                await scenario(stage)
                return list(stage.recorder.records)

        records: list[tuple[str, int, str]] = run(main)
        gc.collect()
        assert [record for record in records if record[1] >= logging.ERROR] == []
        return records

    return act


@contextlib.asynccontextmanager
async def open_stage(tls: Contexts) -> AsyncIterator[Stage]:
    stage = Stage(wsfast.broadcast, tls)
    loggers = [logging.getLogger(name) for name in ("websockets", "asyncio", "wsfast")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(stage.recorder)
    try:
        yield stage
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(stage.recorder)
            logger.setLevel(level)
        await stage.clear()


async def connect(stage: Stage, kind: str, **options: Any) -> tuple[Any, Any]:
    """Open a connection of one of the KINDS, and return it with its peer."""
    records = list(stage.recorder.records)
    if kind.startswith("evented"):
        options["create_connection"] = wsfast.ServerConnection
    elif kind == "override":
        options["create_connection"] = Overriding
    elif kind == "debug":
        options["create_connection"] = wsfast.ServerConnection
        logger = logging.getLogger("wsfast.tests.debug")
        logger.propagate = False
        logger.setLevel(logging.DEBUG)
        options["logger"] = logger
    if kind == "client":
        pair = await stage.connect("client", **options)
    elif kind == "tls":
        if "rcvbuf" in options:
            options["rcvbuf"] = 1 << 16  # with less, records crawl; with the kernel's choice, it may grow to megabytes
        pair = await stage.connect("tls", create_connection=wsfast.ServerConnection, **options)
    else:
        pair = await stage.connect("deflate" if kind.endswith("deflate") else "plain", **options)
    assert pair[0].protocol.debug is (kind == "debug")
    stage.recorder.records[:0] = records
    return pair


def payload(number: int, size: int) -> bytes:
    """Return a message that is recognized, and compresses to about half."""
    return b"%08d" % number + random.Random(number).randbytes(size // 2).hex().encode()


def received(connection: Any, peer: BasePeer) -> tuple[list[bytes], bytes]:
    """Return the messages that a peer has received, and what is left of a frame that was cut off."""
    stream = bytes(peer.received)
    frames, tail = parse_frames(stream)
    whole = stream[: len(stream) - len(tail)]
    if connection.protocol.extensions:
        frames = inflate(frames, connection.protocol.extensions[0].local_max_window_bits)
        messages = [frame.payload for frame in frames if frame.first == 0x82]
        assert {frame.first for frame in frames} <= {0x82, 0x88}
    else:
        decoded = decode(whole, masked=is_client(connection))
        messages = [bytes(data) for data in decoded.data if isinstance(data, bytes)]
        assert len(messages) == len(decoded.data)
    return messages, tail


def is_client(connection: Any) -> bool:
    return type(connection).__name__ == "ClientConnection"


def reconcile(*channels: Channel) -> None:
    """Check that all messages of channels are accounted for."""
    for channel in channels:
        stats = channel.stats()
        assert stats.published == stats.sent + stats.dropped + stats.conflated + stats.queued, stats
        assert min(stats.published, stats.sent, stats.dropped, stats.conflated, stats.queued) >= 0, stats
        assert stats.subscribers == len(channel)


def reconcile_each(*subscriptions: Subscription) -> None:
    """Check that all messages for subscriptions are accounted for."""
    for subscription in subscriptions:
        stats = subscription.stats()
        assert stats.published == stats.sent + stats.dropped + stats.conflated + stats.queued, stats
        assert min(stats.published, stats.sent, stats.dropped, stats.conflated, stats.queued) >= 0, stats


@contextlib.asynccontextmanager
async def reading(*peers: BasePeer) -> AsyncIterator[None]:
    """Have peers read all the time."""

    async def read(peer: BasePeer) -> None:
        while not peer.ended:
            await peer.read_some()

    tasks = [asyncio.create_task(read(peer)) for peer in peers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def idle(*subscriptions: Subscription) -> bool:
    """Tell whether nothing waits for any of them."""
    return all(subscription.lag.messages == 0 for subscription in subscriptions)


async def overflow(channel: Channel, subscription: Subscription, size: int = 5000, start: int = 0) -> int:
    """Publish until a subscriber that does not read lags; return the number of the next message."""
    while idle(subscription):
        channel.publish(payload(start, size))
        channel.flush()
        start += 1
        assert start < 2000
    return start


# ---- Readers that are slow, or do not read at all


POLICIES: dict[str, Policy] = {
    "disconnect": Disconnect(max_messages=20),
    "newest": DropNewest(max_messages=20),
    "oldest": DropOldest(max_messages=20),
    "conflate": Conflate(max_messages=20),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", KINDS)
def test_stalled_readers_delay_nobody(act: Play, kind: str, policy: str) -> None:
    """Live clients get every message in order, and those that never read what the policy leaves them."""
    count, size, keys = 160, 24576 if kind == "tls" else 8192, 9

    async def scenario(stage: Stage) -> None:
        channel = Channel("ticks", slow=POLICIES[policy])
        live = [await connect(stage, kind) for _ in range(LIVE)]
        stalled = [await connect(stage, kind, sndbuf=SMALL, rcvbuf=SMALL) for _ in range(STALLED)]
        subscriptions = [channel.subscribe(connection) for connection, _ in live + stalled]
        lively, lagging = subscriptions[:LIVE], subscriptions[LIVE:]
        messages = [payload(i, size) for i in range(count)]
        async with reading(*(peer for _, peer in live)):
            for start in range(0, count, 8):
                for i in range(start, start + 8):
                    channel.publish(messages[i], key=i % keys)
                await until(lambda: idle(*lively), "the live clients")
                reconcile(channel)
                reconcile_each(*subscriptions)
            await until(lambda: all(len(received(*pair)[0]) == count for pair in live), "the last messages")
        for pair in live:
            assert received(*pair) == (messages, b"")
        for subscription in lively:
            assert subscription.stats() == (type(subscription.stats()))(count, count, 0, 0, 0)
        stats = channel.stats()
        if policy == "disconnect":
            assert len(channel) == LIVE
            assert stats.disconnected == STALLED
            assert not any(subscription.active for subscription in lagging)
        else:
            if kind != "tls":  # whose peers buffer so much that what a policy leaves may fit
                assert stats.lagging == STALLED
            assert all(subscription.queued <= 20 for subscription in lagging)
            assert stats.dropped + stats.conflated > 0
            assert stats.disconnected == 0
            async with reading(*(peer for _, peer in stalled)):
                await until(lambda: idle(*lagging), "the stalled clients to catch up")
                for subscription, pair in zip(lagging, stalled, strict=True):
                    sent = subscription.stats().sent
                    await until(lambda pair=pair, sent=sent: len(received(*pair)[0]) == sent)  # type: ignore[misc]
        reconcile(channel)
        reconcile_each(*subscriptions)
        for subscription, pair in zip(lagging, stalled, strict=True):
            got, tail = received(*pair)
            numbers = [messages.index(message) for message in got]
            if policy == "disconnect":
                assert numbers == list(range(len(got)))
                continue
            assert tail == b""
            assert len(got) == subscription.stats().sent < count
            if policy == "newest":
                assert subscription.stats().dropped == count - len(got)
                assert numbers == sorted(set(numbers))
                assert numbers[:20] == list(range(20))
            elif policy == "oldest":
                assert numbers == sorted(set(numbers))
                assert numbers[-20:] == list(range(count - 20, count))
            else:
                assert len(set(numbers)) == len(numbers)
                assert set(range(count - keys, count)) <= set(numbers)
                assert subscription.stats().conflated == count - len(got)

    records = act(scenario)
    warned = [text for name, level, text in records if name == "wsfast" and level == logging.WARNING]
    assert len(warned) == STALLED


@pytest.mark.parametrize("kind", ["evented", "stock", "evented-deflate"])
def test_readers_of_a_byte_at_a_time(act: Play, both: Any, kind: str) -> None:
    """Clients that read a byte in a millisecond get whole messages, in order, and hold nobody up."""

    async def scenario(stage: Stage) -> None:
        channel = Channel(slow=DropOldest(max_messages=5))
        slow = await connect(stage, kind, sndbuf=SMALL, rcvbuf=SMALL)
        live = await connect(stage, kind)
        subscription, lively = channel.subscribe(slow[0]), channel.subscribe(live[0])
        messages = [payload(i, 500) for i in range(400)]
        async with reading(live[1]):
            for start in range(0, 400, 4):
                for message in messages[start : start + 4]:
                    channel.publish(message)
                slow[1].read_now(1)
                await asyncio.sleep(0.001)
                await until(lambda: idle(lively), "the live client")
            assert len(slow[1].received) <= 100
            await until(lambda: len(received(*live)[0]) == 400)
        assert received(*live) == (messages, b"")
        assert subscription.stats().dropped > 0
        async with reading(slow[1]):
            await until(lambda: len(received(*slow)[0]) == subscription.stats().sent and idle(subscription))
        got, tail = received(*slow)
        assert tail == b""
        assert got == sorted(got)
        assert got[-5:] == messages[-5:]
        assert set(got) <= set(messages)
        reconcile(channel)

    act(scenario)


# ---- Connections that end


@pytest.mark.parametrize("kind", ["evented", "stock", "evented-deflate", "tls", "client"])
def test_reset_in_the_middle_of_a_frame(act: Play, both: Any, kind: str) -> None:
    """A client that resets its connection in the middle of a frame harms nobody else."""

    async def scenario(stage: Stage) -> None:
        channel = Channel(slow=DropOldest(max_messages=5))
        live = await connect(stage, kind)
        lost = [await connect(stage, kind, sndbuf=SMALL, rcvbuf=SMALL) for _ in range(3)]
        subscriptions = [channel.subscribe(connection) for connection, _ in (live, *lost)]
        messages = [payload(i, 200_000) for i in range(20)]
        async with reading(live[1]):
            for i, message in enumerate(messages):
                channel.publish(message)
                await until(lambda: idle(subscriptions[0]))
                if i == 9:
                    await lost[0][1].read(1000)
                    for _, peer in lost:
                        (peer.reset if isinstance(peer, Peer) else peer.close)()
                    await until(lambda: len(channel) == 1, "the connections to be lost")
            await until(lambda: len(received(*live)[0]) == 20)
        assert received(*live) == (messages, b"")
        for pair in lost:
            got, _ = received(*pair)
            assert got == messages[: len(got)]
        assert not any(subscription.active for subscription in subscriptions[1:])
        assert all(subscription.stats().queued == 0 for subscription in subscriptions)
        reconcile(channel)
        reconcile_each(*subscriptions)

    act(scenario)


@pytest.mark.parametrize("kind", ["evented", "stock"])
def test_reset_that_only_writing_tells(act: Play, kind: str) -> None:
    """A connection whose transport is not reading is found to be lost when it is published to."""

    async def scenario(stage: Stage) -> None:
        channel = Channel(slow=DropOldest(max_messages=5))
        connection, peer = await connect(stage, kind)
        subscription = channel.subscribe(connection)
        await peer.send(b"\x81\x81\0\0\0\0x" * 200)
        await until(lambda: not connection.transport.is_reading(), "the transport to be paused")
        drop(connection, peer)
        channel.publish(b"first")
        channel.flush()
        channel.publish(b"second")
        await until(lambda: not subscription.active, "the connection to be lost")
        reconcile(channel)

    act(scenario)


@pytest.mark.parametrize("how", ["client", "server", "abort"])
@pytest.mark.parametrize("kind", ["evented", "stock", "evented-deflate", "tls", "client"])
def test_close_during_catch_up(act: Play, kind: str, how: str) -> None:
    """What waits when a connection is closed is dropped, and nothing follows the close frame."""

    async def scenario(stage: Stage) -> None:
        channel, other = Channel(slow=DropOldest(max_messages=50)), Channel(slow=DropNewest(max_messages=50))
        connection, peer = await connect(stage, kind, sndbuf=SMALL, rcvbuf=SMALL)
        subscription, second = channel.subscribe(connection), other.subscribe(connection)
        sent = await overflow(channel, subscription, 50_000)
        for i in range(sent, sent + 30):
            (other if i % 2 else channel).publish(payload(i, 50_000))
        channel.flush()
        await peer.read(120_000)
        assert not idle(subscription, second)
        if how == "client":
            mask = b"" if kind == "client" else b"\0\0\0\0"
            await peer.send(bytes([0x88, 2 | (0x80 if mask else 0)]) + mask + struct.pack("!H", 1000))
        elif how == "server":
            await stage.start(connection.close(1001, "away"))
        else:
            connection.transport.abort()
        async with reading(peer):
            if how == "server":
                await until(lambda: b"away" in bytes(peer.received[-20:]) or kind == "client")
                mask = b"" if kind == "client" else b"\0\0\0\0"
                if kind == "client":
                    await until(lambda: decode_close(connection, peer) == 1001)
                with contextlib.suppress(OSError):
                    await peer.send(bytes([0x88, 2 | (0x80 if mask else 0)]) + mask + struct.pack("!H", 1001))
                    if kind == "client":
                        peer.sock.shutdown(socket.SHUT_WR)
            elif how == "client" and kind == "client":
                await until(lambda: decode_close(connection, peer) == 1000)
                peer.sock.shutdown(socket.SHUT_WR)
            for i in range(3):
                channel.publish(payload(sent + 30 + i, 100))
                await asyncio.sleep(0)
            await until(lambda: peer.ended, "the end of the stream")
            peer.close()
            await until(lambda: not subscription.active and not second.active, "the connection to be lost")
        got, tail = received(connection, peer)
        assert got == [payload(i, 50_000) for i in range(len(got))]
        if how in ("client", "server"):
            assert tail == b""
        for one in subscription, second:
            assert one.stats().queued == 0
        assert subscription.stats().dropped + second.stats().dropped > 0
        assert subscription.stats().sent + second.stats().sent >= len(got)
        reconcile_each(subscription, second)
        reconcile(channel, other)

    act(scenario)


def decode_close(connection: Any, peer: BasePeer) -> int | None:
    frames, _ = parse_frames(bytes(peer.received))
    if frames and frames[-1].first == 0x88:
        return int.from_bytes(frames[-1].payload[:2], "big")
    return None


@pytest.mark.parametrize("kind", ["evented", "stock"])
def test_descriptors_that_are_used_again(act: Play, both: Any, kind: str) -> None:
    """A connection with the descriptor of one that was lost while it lagged gets its own messages alone."""

    async def scenario(stage: Stage) -> None:
        channel, other = Channel(slow=DropOldest(max_messages=5)), Channel(slow=DropOldest(max_messages=500))
        descriptors = []
        gc.collect()  # lest a descriptor of an earlier test's become free in the middle of this one
        socks = [stage.own(socket.socket()) for _ in range(4)]
        for turn, sock in enumerate(socks):
            connection, peer = await connect(stage, kind, sndbuf=SMALL, rcvbuf=SMALL, peer_socket=sock)
            descriptors.append(connection.transport.get_extra_info("socket").fileno())
            subscription = (channel if turn % 2 == 0 else other).subscribe(connection)
            if turn % 2 == 0:
                await overflow(channel, subscription, 50_000, 1000)
                channel.publish(payload(1999, 50_000))  # in the tick in which it is lost
                connection.transport.abort()
                await until(lambda: len(channel) == 0, "the connection to be lost")
                assert subscription.stats().queued == 0
                continue
            count = await overflow(other, subscription, 50_000)
            channel.publish(b"for nobody")
            async with reading(peer):
                await until(lambda: idle(subscription), "the client to catch up")  # noqa: B023
                await until(lambda: len(received(connection, peer)[0]) == count)  # noqa: B023
            assert received(connection, peer) == ([payload(i, 50_000) for i in range(count)], b"")
            connection.transport.abort()
            await until(lambda: len(other) == 0, "the connection to be lost")
        assert len(set(descriptors)) == 1, "no descriptor was used again"
        reconcile(channel, other)

    act(scenario)


@pytest.mark.parametrize("kind", ["evented", "stock", "evented-deflate"])
def test_joins_and_leaves_while_publishing(act: Play, both: Any, kind: str) -> None:
    """Each connection gets exactly what is published between its subscribing and its unsubscribing."""

    async def scenario(stage: Stage) -> None:
        channel = Channel(slow=DropOldest(max_messages=10_000, max_bytes=None))
        pairs = [await connect(stage, kind) for _ in range(20)]
        expected: list[list[bytes]] = [[] for _ in pairs]
        active: dict[int, Subscription] = {}
        ended: list[Subscription] = []
        rng = random.Random(4)
        changes = number = 0
        async with reading(*(peer for _, peer in pairs)):
            while changes < 5000:
                for _ in range(rng.randrange(1, 8)):
                    index = rng.randrange(len(pairs))
                    if index in active:
                        await until(lambda index=index: active[index].queued == 0)  # type: ignore[misc]
                        ended.append(active[index])
                        active.pop(index).unsubscribe()
                    else:
                        active[index] = channel.subscribe(pairs[index][0])
                    changes += 1
                for _ in range(rng.randrange(3)):
                    message = payload(number, 60)
                    number += 1
                    channel.publish(message)
                    for index in active:
                        expected[index].append(message)
                if rng.random() < 0.5:
                    await asyncio.sleep(0)
            await until(lambda: idle(*active.values()))
            for pair, messages in zip(pairs, expected, strict=True):
                await until(lambda pair=pair, m=messages: len(received(*pair)[0]) >= len(m))  # type: ignore[misc]
        assert [received(*pair) for pair in pairs] == [(messages, b"") for messages in expected]
        stats = channel.stats()
        assert stats.sent == stats.published == sum(map(len, expected)) > 0
        reconcile(channel)
        reconcile_each(*ended, *active.values())

    act(scenario)


# ---- The end of loops


@pytest.mark.parametrize("policy", ["disconnect", "oldest"])
@pytest.mark.parametrize("kind", ["evented", "stock", "client"])
def test_shutdown_with_full_queues(run: Run, tls: Contexts, caplog: Any, kind: str, policy: str) -> None:
    """A loop ends while messages wait, without an exception and without a warning."""
    slow = POLICIES[policy]

    async def main() -> None:
        async with open_stage(tls) as stage:
            channel = Channel("ended", slow=slow)
            connections = [(await connect(stage, kind, sndbuf=SMALL, rcvbuf=SMALL))[0] for _ in range(3)]
            subscriptions = [channel.subscribe(connection) for connection in connections]
            count = await overflow(channel, subscriptions[0], 50_000)
            for i in range(100 if policy == "disconnect" else 15):
                channel.publish(payload(count + i, 50_000))
            channel.flush()
            assert len(channel) == (0 if policy == "disconnect" else 3)
            channel.publish(b"never sent")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(main)
        gc.collect()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR or record.name == "asyncio"] == []


SHUTDOWN = """
import asyncio, gc, logging, socket, sys
import uvloop, wsfast
sys.path.insert(0, sys.argv[1])
from helpers.peers import Peer, until
logging.basicConfig(level=logging.WARNING, format="%(name)s %(levelname)s %(message)s")

async def main():
    async def handler(ws):
        arrived.set_result(ws)
        await ws.wait_closed()
    arrived = asyncio.get_running_loop().create_future()
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    listener.bind(("127.0.0.1", 0))
    server = await wsfast.serve(handler, sock=listener, close_timeout=0.1, compression=None)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await asyncio.get_running_loop().sock_connect(sock, listener.getsockname())
    peer = Peer(sock)
    await peer.upgrade()
    connection = await arrived
    channel = wsfast.Channel(slow=getattr(wsfast, sys.argv[3])(max_messages=50))
    subscription = channel.subscribe(connection)
    for i in range(45 if sys.argv[3] == "DropOldest" else 100):
        channel.publish(bytes(50_000))
    channel.flush()
    assert subscription.active is (sys.argv[3] == "DropOldest")
    channel.publish(b"never sent")
    kept.append((sock, server, channel, connection))
    sock.close()  # websockets itself waits for ever for a full transport of which the handler was cancelled

kept = []
factory = uvloop.new_event_loop if sys.argv[2] == "uvloop" else asyncio.SelectorEventLoop
with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(main())
kept.clear()
gc.collect()
print("done")
"""


@pytest.mark.parametrize("policy", ["Disconnect", "DropOldest"])
def test_shutdown_in_the_middle(loop_kind: str, policy: str) -> None:
    """A loop that ends with everything open tells of no task that was destroyed, and of no exception."""
    command = [sys.executable, "-c", SHUTDOWN, str(Path(__file__).parents[1]), loop_kind, policy]
    result = processes.run(*command)
    assert result.stdout == "done\n", result
    assert "Traceback" not in result.stderr
    assert "destroyed" not in result.stderr
    assert "asyncio" not in result.stderr


def test_channel_in_another_run(run: Run, tls: Contexts) -> None:
    """A channel says clearly that its event loop is another one, which is open."""
    channel = Channel()
    done = threading.Event()

    async def first() -> None:
        channel.publish(b"x")
        while not done.is_set():
            await asyncio.sleep(0.001)

    async def second() -> None:
        async with open_stage(tls) as stage:
            connection, _ = await connect(stage, "evented")
            for use in (
                lambda: channel.publish(b"x"),
                channel.flush,
                channel.stream,
                lambda: channel.subscribe(connection),
            ):
                with pytest.raises(RuntimeError, match="same event loop"):
                    use()
            assert len(channel) == 0

    thread = threading.Thread(target=run, args=(first,))
    thread.start()
    try:
        while channel.loop is None:
            time.sleep(0.001)
        run(second)
    finally:
        done.set()
        thread.join()
    with pytest.raises(RuntimeError, match="closed"):
        channel.publish_threadsafe(b"x")


def test_channel_moves_to_another_run(run: Run, tls: Contexts) -> None:
    """A channel without subscriptions, whose event loop is closed, works in another one; its counts stay."""
    channel, hub = Channel(history=1), wsfast.Hub(history=1)
    left: list[Any] = []

    async def main() -> None:
        async with open_stage(tls) as stage:
            connection, peer = await connect(stage, "evented")
            with channel.subscribe(connection), hub.subscribe(connection, "a"), hub.register(connection, "ann"):
                channel.publish(b"x")
                hub.publish("a", b"y")
                hub.send("ann", b"z")
                channel.flush()
                while len(decode(bytes(peer.received)).data) < 3 + 2 * bool(left):
                    await peer.read_some()
            left.append(channel.stats().published)

    run(main)
    run(main)
    assert left == [1, 3]  # the history counts as well
    assert (len(channel), len(hub)) == (0, 0)


def test_channel_stays_with_its_subscriptions(run: Run, tls: Contexts) -> None:
    """A channel with a subscription that nobody ended does not move."""
    channel = Channel()

    async def first() -> None:
        async with open_stage(tls) as stage:
            connection, _ = await connect(stage, "evented")
            channel.subscribe(connection)
            channel._dispatcher.end = lambda *_: None  # type: ignore[union-attr, method-assign]

    async def second() -> None:
        with pytest.raises(RuntimeError, match="same event loop"):
            channel.publish(b"x")

    run(first)
    run(second)


def test_two_loops_in_two_threads(run: Run, tls: Contexts) -> None:
    """Channels of two event loops do not get in each other's way."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(2)
    shared = wsfast.PreparedMessage(b"shared" * 100)

    async def main(seed: int) -> None:
        stage = Stage(wsfast.broadcast, tls)
        try:
            channel = Channel(slow=DropOldest(max_messages=1000, max_bytes=None))
            pairs = [await connect(stage, kind) for kind in ("evented", "stock", "evented-deflate")]
            slow = await connect(stage, "evented", sndbuf=SMALL, rcvbuf=SMALL)
            subscriptions = [channel.subscribe(connection) for connection, _ in (*pairs, slow)]
            barrier.wait(TIMEOUT)
            expected = []
            async with reading(*(peer for _, peer in pairs)):
                for i in range(300):
                    message = payload(seed + i, 1000)
                    channel.publish(message)
                    channel.publish(shared)
                    expected += [message, shared.data]
                    if i % 3 == 0:
                        await asyncio.sleep(0)
                await until(lambda: idle(*subscriptions[:3]))
                async with reading(slow[1]):
                    for pair in (*pairs, slow):
                        await until(lambda pair=pair: len(received(*pair)[0]) == 600)  # type: ignore[misc]
            for pair in (*pairs, slow):
                assert received(*pair) == (expected, b"")
            reconcile(channel)
        finally:
            await stage.clear()

    def work(seed: int) -> None:
        try:
            run(lambda: main(seed))
        except BaseException as exc:
            failures.append(exc)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 100_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


DESCRIPTORS = """
import asyncio, logging, os, resource, socket, sys, traceback
import uvloop, wsfast, websockets
sys.path.insert(0, sys.argv[1])
from helpers.peers import Peer, decode, until
logging.basicConfig(level=logging.ERROR, stream=sys.stdout, format="%(name)s %(levelname)s %(message)s")

async def main():
    loop = asyncio.get_running_loop()
    queue = asyncio.Queue()
    async def handler(ws):
        await queue.put(ws)
        await ws.wait_closed()
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    listener.bind(("127.0.0.1", 0))
    serve = wsfast.serve if sys.argv[3] == "evented" else websockets.serve
    server = await serve(handler, sock=listener, compression=None)
    channel = wsfast.Channel(slow=wsfast.DropOldest(max_messages=1000, max_bytes=None))
    peers, connections = [], []
    for _ in range(4):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await loop.sock_connect(sock, listener.getsockname())
        peers.append(Peer(sock))
        await peers[-1].upgrade()
        connections.append(await queue.get())
        channel.subscribe(connections[-1])
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))
    fillers = []
    try:
        while True:
            fillers.append(os.dup(0))
    except OSError:
        pass
    messages = [b"%04d" % i * 2500 for i in range(60)]
    async def read(peer):
        while not peer.ended:
            await peer.read_some()
    tasks = [asyncio.create_task(read(peer)) for peer in peers[:2]]
    for message in messages:
        channel.publish(message)
        await asyncio.sleep(0)
    whole = lambda peer: len(peer.received) == 60 * 10_004
    await until(lambda: all(map(whole, peers[:2])), "live clients")
    tasks += [asyncio.create_task(read(peer)) for peer in peers[2:]]
    await until(lambda: all(map(whole, peers)), "clients that catch up")
    for peer in peers:
        assert decode(bytes(peer.received)).data == messages
    stats = channel.stats()
    assert stats.sent == stats.published == 240, stats
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for filler in fillers:
        os.close(filler)
    for peer, task in zip(peers, tasks):
        task.cancel()
        peer.close()
    server.close()
    await server.wait_closed()

factory = uvloop.new_event_loop if sys.argv[2] == "uvloop" else asyncio.SelectorEventLoop
with asyncio.Runner(loop_factory=factory) as runner:
    try:
        runner.run(main())
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        os._exit(1)
print("done")
"""


@pytest.mark.parametrize("kind", ["evented", "stock"])
def test_out_of_descriptors(loop_kind: str, kind: str) -> None:
    """Without a descriptor to watch others with, everybody gets everything nevertheless."""
    command = [sys.executable, "-c", DESCRIPTORS, str(Path(__file__).parents[1]), loop_kind, kind]
    result = processes.run(*command)
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stdout + result.stderr[-3000:]


# ---- Exceptions out of nowhere


MOMENTS: dict[str, Any] = {
    "sent": None,
    "write": (Outcome, "write"),
    "take": (Dispatcher, "_move_to_backlog"),
    "admit": (Dispatcher, "_admit"),
    "append": (Queue, "append"),
    "taken": (Backlog, "taken"),
    "tend": (Dispatcher, "_update_backlog"),
    "watch": (Dispatcher, "_watch"),
    "join": (Joined, "_join"),
}
"""Methods that raise when they are first called; for "sent", the batch does when all was sent."""


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("kind", ["evented", "stock", "evented-deflate"])
def test_exceptions_in_the_middle_of_a_flush(
    act: Play, both: Any, kind: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an exception out of nowhere, no half frame is followed by anything else, and later flushes work."""
    raised: list[str] = []

    def nowhere() -> None:
        if not raised:
            raised.append(moment)
            raise Nowhere

    class Batch(both.Batch):  # type: ignore[misc]
        def send(self) -> None:
            super().send()
            nowhere()

    def before(original: Callable[..., Any]) -> Callable[..., Any]:
        def replacement(*args: Any, **options: Any) -> Any:
            nowhere()
            return original(*args, **options)

        return replacement

    async def scenario(stage: Stage) -> None:
        channel = Channel(slow=DropOldest(max_messages=2))
        live = await connect(stage, kind)
        slow = [await connect(stage, kind, sndbuf=SMALL, rcvbuf=SMALL) for _ in range(4)]
        lively = channel.subscribe(live[0])
        subscriptions = [channel.subscribe(connection) for connection, _ in slow]
        valid = {payload(i, 30_000) for i in range(12)}
        with monkeypatch.context() as patch:
            if moment == "sent":
                module: Any = sys.modules["wsfast._delivery"]
                patch.setattr(module, "core", types.SimpleNamespace(**{**vars(both), "Batch": Batch}))
            else:
                owner, name = MOMENTS[moment]
                patch.setattr(owner, name, before(getattr(owner, name)))
            for start in 0, 2, 4:
                for _, peer in slow:
                    peer.read_now()  # so that the kernel has room before the transport takes note of it
                for i in range(start, start + 2):
                    channel.publish(payload(i, 30_000))
                with contextlib.suppress(Nowhere):
                    channel.flush()
        # The extension has nobody drained here.
        assert raised or (moment == "taken" and both.sends_directly)
        assert gc.isenabled()
        for i in range(6, 12):
            for _, peer in slow:
                peer.read_now()
            channel.publish(payload(i, 30_000))
            channel.flush()
        async with reading(live[1], *(peer for _, peer in slow)):
            open_now = [one for one in subscriptions if not one.connection or not one.connection.transport.is_closing()]
            await until(lambda: all(idle(one) or not one.active for one in open_now), "the slow clients to catch up")
            await until(lambda: idle(lively) or not lively.active)
            channel.publish(b"last")
            for subscription, (connection, peer) in zip((lively, *subscriptions), (live, *slow), strict=True):
                await until(
                    lambda peer=peer, s=subscription: (
                        peer.ended
                        or (  # type: ignore[misc]
                            s.active and bytes(peer.received[-4:]) == b"last"
                        )
                    ),
                    "the last message",
                )
                got, tail = received(connection, peer)
                assert set(got) <= {*valid, b"last"}, "half a frame was followed by something else"
                assert [one for one in got if one != b"last"] == sorted(one for one in got if one != b"last")
                assert tail == b"" or peer.ended

    act(scenario)


@pytest.mark.parametrize("kind", ["evented", "stock"])
def test_an_exception_while_one_catches_up_stops_nobody_else(
    run: Run, tls: Contexts, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When catching up fails for one connection, all of them catch up nevertheless."""
    module: Any = sys.modules["wsfast._draining"]
    failed: list[object] = []

    async def main() -> None:
        async with open_stage(tls) as stage:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
            channel = Channel(slow=DropOldest(max_messages=1000, max_bytes=None))
            pairs = [await connect(stage, kind, sndbuf=SMALL, rcvbuf=SMALL) for _ in range(4)]
            subscriptions = [channel.subscribe(connection) for connection, _ in pairs]
            for i in range(20):
                channel.publish(payload(i, 20_000))
            channel.flush()
            assert not any(idle(subscription) for subscription in subscriptions)
            original = module.offer

            def offer(*args: Any, **options: Any) -> Any:
                if not failed:
                    raise ValueError("out of nowhere")
                return original(*args, **options)

            monkeypatch.setattr(module, "offer", offer)
            async with reading(*(peer for _, peer in pairs)):
                await until(lambda: failed, "the exception")
                await until(lambda: idle(*subscriptions), "all to catch up")
                for pair in pairs:
                    await until(lambda pair=pair: len(received(*pair)[0]) == 20)  # type: ignore[misc]
            for pair in pairs:
                assert received(*pair) == ([payload(i, 20_000) for i in range(20)], b"")
            reconcile(channel)

    run(main)
    assert len(failed) == 1


# ---- What users do in callbacks and log handlers


@pytest.mark.parametrize("what", ["raise", "publish", "unsubscribe", "close"])
@pytest.mark.parametrize("kind", ["evented", "stock"])
def test_callbacks(run: Run, tls: Contexts, kind: str, what: str) -> None:
    """Callbacks may raise, publish, flush, unsubscribe and close."""
    calls: list[str] = []
    contexts: list[Any] = []

    async def main() -> None:
        async with open_stage(tls) as stage:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))
            extra = 0

            def callback(name: str) -> Callable[..., None]:
                def call(subscription: Subscription, *_: int) -> None:
                    nonlocal extra
                    calls.append(name)
                    if what == "raise":
                        raise ValueError(name)
                    if what == "publish" and extra < 20:
                        extra += 1
                        channel.publish(b"extra %04d" % extra)
                        channel.flush()
                    elif what == "unsubscribe":
                        subscription.unsubscribe()
                    elif what == "close" and subscription.connection is not None:
                        subscription.connection.transport.abort()

                return call

            channel = Channel(slow=DropOldest(max_messages=5), on_drop=callback("drop"), on_recover=callback("recover"))
            strict = Channel(slow=Disconnect(max_messages=5), on_disconnect=callback("disconnect"))
            live = await connect(stage, kind)
            slow = [await connect(stage, kind, sndbuf=SMALL, rcvbuf=SMALL) for _ in range(3)]
            lively = channel.subscribe(live[0])
            subscriptions = [channel.subscribe(connection) for connection, _ in slow[:2]]
            doomed = strict.subscribe(slow[2][0])
            async with reading(live[1]):
                for i in range(40):
                    channel.publish(payload(i, 10_000))
                    strict.publish(payload(i, 10_000))
                    await until(lambda: idle(lively))
                async with reading(*(peer for _, peer in slow)):
                    await until(lambda: not doomed.active)
                    await until(lambda: all(idle(one) or not one.active for one in subscriptions))
                    await until(lambda: "recover" in calls or what in ("unsubscribe", "close"))
                    await until(lambda: len(received(*live)[0]) == 40 + extra)
                    for pair, one in zip(slow, subscriptions, strict=False):
                        if one.active:
                            await until(
                                lambda pair=pair, one=one: len(received(*pair)[0]) == one.stats().sent  # type: ignore[misc]
                            )
            got, tail = received(*live)
            assert tail == b""
            assert [one for one in got if not one.startswith(b"extra")] == [payload(i, 10_000) for i in range(40)]
            assert [one for one in got if one.startswith(b"extra")] == [b"extra %04d" % (i + 1) for i in range(extra)]
            for pair in slow:
                got, _ = received(*pair)
                numbers = [int(one[:8]) for one in got if not one.startswith(b"extra")]
                assert numbers == sorted(set(numbers))
                assert all(one == payload(int(one[:8]), 10_000) for one in got if not one.startswith(b"extra"))
            reconcile(channel, strict)
            reconcile_each(lively, doomed, *subscriptions)
            assert (extra > 0) is (what == "publish")
            if what in ("unsubscribe", "close"):
                assert not any(one.active for one in subscriptions)

    run(main)
    assert {"drop", "disconnect"} <= set(calls)
    assert [str(context.get("exception")) for context in contexts] == (calls if what == "raise" else [])


@pytest.mark.parametrize("what", ["publish", "unsubscribe", "replace"])
@pytest.mark.parametrize("kind", ["evented", "stock"])
def test_log_handlers(act: Play, both: Any, kind: str, what: str) -> None:
    """Log handlers may do the same."""

    async def scenario(stage: Stage) -> None:
        channel, other = Channel(slow=DropOldest(max_messages=2)), Channel(slow=DropOldest(max_messages=2))
        live = await connect(stage, kind, sndbuf=1 << 18)  # enough for all that is published until it reads
        fresh = await connect(stage, kind)
        slow = [await connect(stage, kind, sndbuf=SMALL, rcvbuf=SMALL) for _ in range(3)]
        subscriptions = [channel.subscribe(connection) for connection, _ in slow]
        others = [other.subscribe(connection) for connection, _ in slow]
        lively = channel.subscribe(live[0])
        extra = 0
        ended: list[Subscription] = []

        def on_record(record: logging.LogRecord) -> None:
            nonlocal extra
            if record.name != "wsfast" or record.levelno != logging.WARNING:
                return
            extra += 1
            if what == "publish":
                channel.publish(b"extra %04d" % extra)
                channel.flush()
            else:
                for one in subscriptions:
                    one.unsubscribe()
                    ended.append(one)
                if what == "replace":
                    lively.unsubscribe()
                    channel.subscribe(fresh[0])

        stage.recorder.on_record = on_record
        for start in 0, 5:
            for i in range(start, start + 5):
                channel.publish(payload(i, 8_000))
            channel.flush()
            assert extra == 0 or start, "a log handler was called in the middle of a flush"
            await asyncio.sleep(0)
        stage.recorder.on_record = None
        assert extra > 0
        before = [one.stats() for one in ended]
        channel.publish(b"last")
        channel.flush()
        other.publish(b"other")
        async with reading(live[1], fresh[1], *(peer for _, peer in slow)):
            for pair in slow:
                await until(lambda pair=pair: b"other" in received(*pair)[0])  # type: ignore[misc]
            winner = fresh if what == "replace" else live
            await until(lambda: received(*winner)[0][-1:] == [b"last"], "the live client")
        for pair in slow:
            got, tail = received(*pair)
            assert tail == b""
            assert set(got) <= {*(payload(i, 8_000) for i in range(10)), b"last", b"other"} | {
                b"extra %04d" % (i + 1) for i in range(extra)
            }
            if what in ("unsubscribe", "replace"):
                assert b"last" not in got
        if what == "publish":
            texts = {b"extra %04d" % (i + 1) for i in range(extra)}
            got, tail = received(*live)
            assert tail == b""
            assert [one for one in got if one not in texts] == [*(payload(i, 8_000) for i in range(10)), b"last"]
            assert [one for one in got if one in texts] == sorted(texts)
        if what == "replace":
            assert received(*fresh)[0][-1] == b"last"
            assert not set(received(*fresh)[0]) & {payload(i, 8_000) for i in range(5)}, (
                "a newcomer got what was published before"
            )
        assert [one.stats() for one in ended] == before
        for one, pair in zip(subscriptions, slow, strict=True):
            if what in ("unsubscribe", "replace"):
                assert one.stats().sent == len(received(*pair)[0]) - 1, (one.stats(), len(received(*pair)[0]))
        reconcile(channel, other)
        reconcile_each(*subscriptions, *others)

    act(scenario)


# ---- Memory


def test_messages_are_held_once(act: Play) -> None:
    """What waits is held once, however many wait for it, and only as long as somebody does."""
    size, count, clients = 20_000, 100, 30

    async def scenario(stage: Stage) -> None:
        channel = Channel(slow=DropNewest(max_messages=count, max_bytes=None))
        pairs = [await connect(stage, "evented", sndbuf=SMALL, rcvbuf=SMALL) for _ in range(clients)]
        subscriptions = [channel.subscribe(connection) for connection, _ in pairs]
        channel.publish(bytes(100_000))
        channel.flush()
        channel.publish(bytes(1))
        channel.flush()
        assert not any(idle(one) for one in subscriptions)
        tracemalloc.start()
        try:
            start = tracemalloc.get_traced_memory()[0]
            for _ in range(count):
                channel.publish(os.urandom(size))
                channel.flush()
            assert all(one.queued == count for one in subscriptions)
            grown = tracemalloc.get_traced_memory()[0] - start
            assert size * count <= grown < 2 * size * count + clients * count * 200
            for connection, _ in pairs:
                connection.transport.abort()
            await until(lambda: len(channel) == 0)
            await until(
                lambda: tracemalloc.get_traced_memory()[0] - start < size * count / 4, "memory to be given back"
            )
        finally:
            tracemalloc.stop()
        reconcile(channel)

    act(scenario)


@pytest.mark.parametrize("lags", [False, True])
@pytest.mark.parametrize("kind", ["evented", "stock", "client"])
def test_nothing_keeps_what_has_ended(act: Play, both: Any, kind: str, lags: bool) -> None:
    """Connections and peers are freed after the connection is closed, also if messages waited."""

    async def scenario(stage: Stage) -> None:
        channel = Channel(slow=DropOldest(max_messages=5))
        references: list[weakref.ref[Any]] = []
        logger = logging.getLogger("wsfast.tests.silent")
        logger.setLevel(logging.WARNING)  # pytest keeps records, and those of the handshake their connection

        async def use() -> None:
            options = {} if kind == "client" else {"logger": logger}
            connection, _ = await connect(stage, kind, sndbuf=SMALL, rcvbuf=SMALL, **options)
            subscription = channel.subscribe(connection)
            references.append(weakref.ref(connection))
            channel.publish(b"x")
            if lags:
                await overflow(channel, subscription, 50_000)
            connection.transport.abort()
            await until(lambda: not subscription.active)
            stage.connections.clear()

        await use()
        await use()

        def gone() -> bool:
            gc.collect()
            kind = both.Peer
            peers = [one for one in gc.get_objects() if type(one) is kind and one.loop is loop]
            return not peers and all(reference() is None for reference in references)

        loop = asyncio.get_running_loop()
        await until(gone, "connections and peers to be freed")
        assert len(channel) == 0
        reconcile(channel)

    act(scenario)


# ---- Together with broadcast()


@pytest.mark.parametrize("interrupted", [False, True])
def test_broadcast_and_channel_on_one_connection(
    act: Play, both: Any, interrupted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a channel publishes never gets between the halves of a frame that broadcast() has sent."""

    class Batch(both.Batch):  # type: ignore[misc]
        def send(self) -> None:
            super().send()
            raise Nowhere

    async def scenario(stage: Stage) -> None:
        channel = Channel(slow=DropOldest(max_messages=1000))
        connection, peer = await connect(stage, "evented", sndbuf=SMALL, rcvbuf=SMALL)
        channel.subscribe(connection)
        messages = [payload(i, 30_000) for i in range(40)]
        for i, message in enumerate(messages):
            if i % 2:
                channel.publish(message)
                channel.flush()
            elif interrupted and i == 20:
                with monkeypatch.context() as patch:
                    patched = types.SimpleNamespace(**{**vars(both), "Batch": Batch})
                    patch.setattr(sys.modules["wsfast._delivery"], "core", patched)
                    with pytest.raises(Nowhere):
                        wsfast.broadcast([connection], message)
            else:
                wsfast.broadcast([connection], message)
            peer.read_now()  # so that the kernel has room before the transport takes note of it
        if not interrupted:
            async with reading(peer):
                await until(lambda: len(received(connection, peer)[0]) == len(messages), "all messages")
        frames, _ = parse_frames(bytes(peer.received))
        assert {frame.payload for frame in frames} <= set(messages)
        assert all(frame.first == 0x82 for frame in frames)

    act(scenario)
