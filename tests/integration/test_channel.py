"""Channels over real sockets: who gets what, when, and in which order; what is done about those who do not keep up."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import random
import select
import socket
import ssl
import struct
import sys
import threading
import types
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

import wsfast
from helpers.fixtures import Run
from helpers.inflate import Spec, Wire, connect
from helpers.peers import TIMEOUT, Peer, decode, inflate, parse_frames, until
from helpers.stage import Stage, fragmented_send
from wsfast._encoding.message import Encoding, Joined
from wsfast._subscription import ChannelStats, Subscription, SubscriptionStats
from wsfast.policies import Policy

Tls = tuple[ssl.SSLContext, ssl.SSLContext]

KINDS = ["evented", "evented-deflate", "stock", "stock-deflate"]
each_kind = pytest.mark.parametrize("kind", KINDS)


class Scene:
    """A stage, and what its peers have received."""

    def __init__(self, tls: Tls) -> None:
        self.stage = Stage(wsfast.broadcast, tls)

    async def connect(self, kind: str = "evented", **options: Any) -> tuple[Any, Peer]:
        name, _, deflate = kind.partition("-")
        if name == "evented":
            options["create_connection"] = wsfast.ServerConnection
        connection, peer = await self.stage.connect("deflate" if deflate else "plain", **options)
        return connection, peer

    async def data(self, connection: Any, peer: Peer, count: int) -> list[str | bytes]:
        """Wait until a peer has received so many messages, and return them."""
        async with asyncio.timeout(TIMEOUT):
            while len(messages := data_of(connection, peer)) < count:
                await peer.read_some()
                assert not peer.ended, messages
        return messages


def data_of(connection: Any, peer: Peer) -> list[str | bytes]:
    """Return the messages that a peer has received."""
    if not connection.protocol.extensions:
        return decode(bytes(peer.received)).data
    frames, _ = parse_frames(bytes(peer.received))
    messages: list[str | bytes] = []
    parts: list[bytes] = []
    for frame in inflate(frames, connection.protocol.extensions[0].local_max_window_bits):
        if frame.first & 0x0F:
            text = frame.first & 0x0F == 1
        parts.append(frame.payload)
        if frame.first & 0x80:
            messages.append(b"".join(parts).decode() if text else b"".join(parts))
            parts.clear()
    return messages


@contextlib.asynccontextmanager
async def scene_of(tls: Tls) -> AsyncIterator[Scene]:
    scene = Scene(tls)
    try:
        yield scene
    finally:
        await scene.stage.clear()


Act = Callable[[Scene], Any]


@pytest.fixture
def play(core: Any, run: Run, tls: Tls) -> Callable[[Act], None]:
    """Run a scene with each core in each kind of event loop."""

    def play(act: Act) -> None:
        async def main() -> None:
            async with scene_of(tls) as scene:
                await act(scene)

        run(main)

    return play


Play = Callable[[Act], None]


def reconciled(subscription: Subscription) -> SubscriptionStats:
    """Return the numbers of a subscription, which must reconcile."""
    stats = subscription.stats()
    assert stats.published == stats.sent + stats.dropped + stats.conflated + stats.queued
    return stats


# ---- Subscribing


@each_kind
def test_subscribe(play: Play, kind: str) -> None:
    """A subscriber gets what is published until it ends, each message once though it is subscribed twice."""

    async def act(scene: Scene) -> None:
        channel = wsfast.Channel("news")
        connection, peer = await scene.connect(kind)
        channel.publish("too early")
        with channel.subscribe(connection) as subscription:
            assert channel.subscribe(connection) is subscription
            assert (len(channel), subscription.active, subscription.connection) == (1, True, connection)
            assert subscription.channel is channel
            assert channel.loop is asyncio.get_running_loop()
            channel.publish("text" * 30)
            channel.publish(b"binary" * 30)
            channel.publish(bytearray(b"array"))
            channel.publish(memoryview(b"view"))
            channel.publish(wsfast.PreparedMessage(b"prepared", text=True))
        channel.publish("too late")
        assert (len(channel), subscription.active, subscription.connection) == (0, False, None)
        subscription.unsubscribe()
        with channel.subscribe(connection):
            channel.publish("again")
        expected = ["text" * 30, b"binary" * 30, b"array", b"view", "prepared", "again"]
        assert await scene.data(connection, peer, 6) == expected
        assert subscription.stats() == SubscriptionStats(5, 5, 0, 0, 0)
        assert channel.stats() == ChannelStats(8, 339, 0, 6, 6, 0, 0, 0, 0, 0)

    play(act)


@each_kind
def test_ends_by_itself(play: Play, kind: str) -> None:
    """A subscription ends with its connection."""

    async def act(scene: Scene) -> None:
        channel = wsfast.Channel()
        connection, peer = await scene.connect(kind)
        subscription = channel.subscribe(connection)
        peer.reset()
        await until(lambda: not subscription.active, "the end of the subscription")
        assert len(channel) == 0
        channel.publish("to nobody")
        channel.flush()
        assert reconciled(subscription).published == 0
        with pytest.raises(RuntimeError, match=r"^the connection is not open$"):
            channel.subscribe(connection)

    play(act)


def test_subscribe_errors(play: Play) -> None:
    """What is no connection cannot be subscribed."""

    async def act(scene: Scene) -> None:
        for other in (object(), None, "text"):
            with pytest.raises(TypeError):
                wsfast.Channel().subscribe(other)
        connection, _ = await scene.connect()
        await scene.stage.start(connection.close())
        with pytest.raises(RuntimeError, match=r"^the connection is not open$"):
            wsfast.Channel().subscribe(connection)

    play(act)


def test_other_loops(play: Play) -> None:
    """A channel is used in one event loop only; and no connection of another one is subscribed."""
    unused = wsfast.Channel()
    with pytest.raises(RuntimeError, match=r"^a Channel must be used in a running event loop; "):
        unused.publish("")
    with pytest.raises(RuntimeError, match=r"^the Channel has no event loop yet"):
        unused.publish_threadsafe("")

    async def act(scene: Scene) -> None:
        channel = wsfast.Channel()
        connection, _ = await scene.connect()
        channel.flush()

        def elsewhere() -> None:
            async def main() -> None:
                other = wsfast.Channel()
                with pytest.raises(RuntimeError, match=r"^the connection belongs to another event loop"):
                    other.subscribe(connection)
                for call in (channel.flush, channel.stream, lambda: channel.publish("")):
                    with pytest.raises(RuntimeError, match=r"same event loop"):
                        call()

            asyncio.run(main())
            with pytest.raises(RuntimeError, match=r"use publish_threadsafe\(\)$"):
                channel.publish("")

        await asyncio.to_thread(elsewhere)
        assert channel.stats().messages == 0

    play(act)


def test_subscribed_in_another_loop(play: Play) -> None:
    """Nor is one that is subscribed in the other event loop already; and it excludes nobody here."""

    async def act(scene: Scene) -> None:
        connection, _ = await scene.connect()
        wsfast.Channel().subscribe(connection)

        def elsewhere() -> None:
            async def main() -> None:
                wire = await connect(Spec("plain"))
                try:
                    other = wsfast.Channel()
                    subscription = other.subscribe(wire.connection)
                    other.publish("for all but a stranger", exclude=[connection])
                    assert subscription.stats().published == 1
                    with pytest.raises(RuntimeError, match=r"^the connection belongs to another event loop"):
                        other.subscribe(connection)
                finally:
                    wire.close()
                    await wire.connection.connection_lost_waiter

            asyncio.run(main())

        await asyncio.to_thread(elsewhere)

    play(act)


def test_closing_and_subscribed(play: Play) -> None:
    """A connection that is subscribed to one channel and closing cannot be subscribed to another one."""

    async def act(scene: Scene) -> None:
        connection, _ = await scene.connect()
        wsfast.Channel().subscribe(connection)
        await scene.stage.start(connection.close())
        with pytest.raises(RuntimeError, match=r"^the connection is not open$"):
            wsfast.Channel().subscribe(connection)

    play(act)


def test_bad_arguments() -> None:
    """What makes no sense is told when it is given."""
    with pytest.raises(
        TypeError, match=r"^slow must be Disconnect\(\), DropNewest\(\), DropOldest\(\) or Conflate\(\)"
    ):
        wsfast.Channel(slow=Policy())
    with pytest.raises(TypeError, match=r"not 'drop'"):
        wsfast.Channel(slow="drop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^history must not be negative, but is -1$"):
        wsfast.Channel(history=-1)
    with pytest.raises(ValueError, match=r"^notsent_lowat must be positive or None, not 0$"):
        wsfast.Channel(notsent_lowat=0)
    for name in ("max_messages", "max_bytes", "max_age"):
        with pytest.raises(ValueError, match=rf"^{name} must be positive or None, not 0$"):
            wsfast.DropOldest(**{name: 0})
    with pytest.raises(ValueError, match=r"^code must be a close code that may be sent \(.*\), not 1005$"):
        wsfast.Disconnect(code=1005)
    with pytest.raises(ValueError, match=r"^reason must not be longer than 123 bytes in UTF-8, but has 124$"):
        wsfast.Disconnect(reason="x" * 124)
    assert wsfast.Disconnect(reason="x" * 123, code=4999).code == 4999


# ---- Publishing


def test_publish_errors(play: Play) -> None:
    """What cannot be published changes nothing."""

    async def act(scene: Scene) -> None:
        channel = wsfast.Channel(history=1)
        subscription = channel.subscribe((await scene.connect())[0])
        for arguments in ({"message": 1}, {"message": "text", "key": []}):
            with pytest.raises(TypeError):
                channel.publish(**arguments)
            with pytest.raises(TypeError):
                channel.publish_threadsafe(**arguments)
        with pytest.raises(UnicodeEncodeError):
            channel.publish("\ud800")
        with pytest.raises(ValueError, match=r"^max_messages must be positive, not 0$"):
            channel.stream(max_messages=0)
        assert channel.stats() == ChannelStats(0, 0, 1, 0, 0, 0, 0, 0, 0, 0)
        assert reconciled(subscription) == SubscriptionStats(0, 0, 0, 0, 0)

    play(act)


@each_kind
def test_leaves_at_the_end_of_the_iteration(play: Play, kind: str) -> None:
    """Nothing leaves before the iteration of the event loop ends, or flush()."""

    async def act(scene: Scene) -> None:
        channel = wsfast.Channel()
        connection, peer = await scene.connect(kind)
        subscription = channel.subscribe(connection)
        channel.publish("one")
        channel.publish("three")
        assert reconciled(subscription) == SubscriptionStats(2, 0, 0, 0, 2)
        assert subscription.lag[:2] == (2, 8)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert reconciled(subscription) == SubscriptionStats(2, 2, 0, 0, 0)
        assert subscription.lag == (0, 0, 0.0)
        channel.publish("now")
        channel.flush()
        assert reconciled(subscription) == SubscriptionStats(3, 3, 0, 0, 0)
        assert await scene.data(connection, peer, 3) == ["one", "three", "now"]

    play(act)


@each_kind
def test_exclude(play: Play, kind: str) -> None:
    """Excluded connections do not get a message; those that are not subscribed do not matter."""

    async def act(scene: Scene) -> None:
        channel = wsfast.Channel()
        pairs = [await scene.connect(kind) for _ in range(3)]
        stranger, _ = await scene.connect(kind)
        subscriptions = [channel.subscribe(connection) for connection, _ in pairs]
        for number, (connection, _) in enumerate(pairs):
            channel.publish(f"{number}", exclude=[connection, stranger, connection])
        channel.publish("all", exclude=iter([stranger]))
        for (connection, peer), expected in zip(pairs, (["1", "2"], ["0", "2"], ["0", "1"]), strict=True):
            assert await scene.data(connection, peer, 3) == [*expected, "all"]
        assert [reconciled(one) for one in subscriptions] == [SubscriptionStats(3, 3, 0, 0, 0)] * 3
        assert channel.stats() == ChannelStats(4, 6, 3, 9, 9, 0, 0, 0, 0, 0)

    play(act)


def test_publish_threadsafe(play: Play) -> None:
    """Threads publish in the channel's event loop, in their order."""

    async def act(scene: Scene) -> None:
        channel = wsfast.Channel()
        connection, peer = await scene.connect()
        other, other_peer = await scene.connect()
        channel.subscribe(connection)
        channel.subscribe(other)

        def publish() -> None:
            for number in range(100):
                channel.publish_threadsafe(f"{number}", key="k", exclude=[other])
            channel.publish_threadsafe("last")

        thread = threading.Thread(target=publish)
        thread.start()
        assert await scene.data(connection, peer, 101) == [*(f"{number}" for number in range(100)), "last"]
        assert await scene.data(other, other_peer, 1) == ["last"]
        thread.join()

    play(act)


@each_kind
def test_order_across_channels(play: Play, kind: str) -> None:
    """What several channels have for a connection arrives in the order in which it was published."""

    async def act(scene: Scene) -> None:
        channels = [wsfast.Channel(f"{number}") for number in range(5)]
        pairs = [await scene.connect(kind) for _ in range(4)]
        chosen = [{0, 1, 2, 3, 4}, {0, 2, 4}, {1}, {3, 4}]
        for (connection, _), numbers in zip(pairs, chosen, strict=True):
            for number in numbers:
                channels[number].subscribe(connection)
        messages = [(number * 7 % 5, f"{number} " * (number % 40)) for number in range(100)]
        for index, (number, message) in enumerate(messages):
            channels[number].publish(message)
            if index % 17 == 16:
                channels[0].flush()
        for (connection, peer), numbers in zip(pairs, chosen, strict=True):
            expected = [message for number, message in messages if number in numbers]
            assert await scene.data(connection, peer, len(expected)) == expected

    play(act)


def segments(connection: Any) -> int:
    """Return how many segments with data a connection has sent: without Nagle's algorithm, one for each small send."""
    sock = connection.transport.get_extra_info("socket")
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
    (again,) = struct.unpack_from("=I", info, 100)  # tcpi_total_retrans: what a busy kernel was too slow to acknowledge
    (sent,) = struct.unpack_from("=I", info, 156)  # tcpi_data_segs_out
    return int(sent - again)


@each_kind
def test_one_system_call(play: Play, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What several channels publish in a tick leaves in one system call, put together once for all who get the same."""
    made: list[int] = []
    original = Joined._join

    def join(self: Joined, encodings: list[Encoding]) -> Encoding:
        if tuple(encodings) not in self._joined:
            made.append(len(encodings))
        return original(self, encodings)

    async def act(scene: Scene) -> None:
        channels = [wsfast.Channel(), wsfast.Channel()]
        pairs = [await scene.connect(kind) for _ in range(10)]
        for index, (connection, _) in enumerate(pairs):
            channels[0].subscribe(connection)
            if index % 2:
                channels[1].subscribe(connection)
        monkeypatch.setattr(Joined, "_join", join)
        for _ in range(3):
            before = [segments(connection) for connection, _ in pairs] if sys.platform == "linux" else []
            made.clear()
            for number in range(8):
                channels[number % 2].publish(f"{number}")
            channels[0].flush()
            assert sorted(made) == [4, 8]
            if sys.platform == "linux":
                assert [segments(connection) for connection, _ in pairs] == [count + 1 for count in before]
        for index, (connection, peer) in enumerate(pairs):
            expected = [f"{number}" for number in range(8) if index % 2 or number % 2 == 0] * 3
            assert await scene.data(connection, peer, len(expected)) == expected

    play(act)


@each_kind
def test_slices(play: Play, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush that takes too long goes on in the next iteration; what is published meanwhile comes behind it."""
    monkeypatch.setattr("wsfast._dispatcher.SLICE", 1)
    monkeypatch.setattr("wsfast._dispatcher.BUDGET", -1.0)

    async def act(scene: Scene) -> None:
        channel = wsfast.Channel(history=2)
        pairs = [await scene.connect(kind) for _ in range(6)]
        subscriptions = [channel.subscribe(connection) for connection, _ in pairs[:5]]
        channel.publish("1")
        assert channel.stats().queued == 5
        await until(lambda: 0 < channel.stats().queued < 5, "the first slice")
        channel.publish("2")
        assert 0 < channel.stats().sent < 5
        subscriptions.append(channel.subscribe(pairs[5][0]))
        channel.publish("3")
        await asyncio.sleep(0)
        assert channel.stats().queued > 0
        subscriptions[2].unsubscribe()
        assert channel.stats().queued == 0
        channel.publish("4", exclude=[pairs[0][0]])
        first = [["1", "2", "3"], ["1", "2", "3", "4"], ["1", "2", "3"], *[["1", "2", "3", "4"]] * 3]
        for (connection, peer), expected in zip(pairs, first, strict=True):
            assert await scene.data(connection, peer, len(expected)) == expected
        assert sorted(reconciled(one).sent for one in subscriptions) == [3, 3, 4, 4, 4, 4]

    play(act)


# ---- History


@each_kind
def test_history(play: Play, kind: str) -> None:
    """A newcomer gets the last messages first, without gap or duplicate, also in the tick in which they were sent."""

    async def act(scene: Scene) -> None:
        channel = wsfast.Channel(history=3)
        pairs = [await scene.connect(kind) for _ in range(6)]
        subscriptions = []
        text = "{} message that is long enough to be compressed, with what was sent before it"
        for number in range(10):
            if number < 6:
                subscriptions.append(channel.subscribe(pairs[number][0]))
            channel.publish(text.format(number))
            if number == 3:
                channel.flush()
            if number == 4:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        for index, (connection, peer) in enumerate(pairs):
            expected = [text.format(number) for number in range(max(0, index - 3), 10)]
            assert await scene.data(connection, peer, len(expected)) == expected
            assert reconciled(subscriptions[index]) == SubscriptionStats(len(expected), len(expected), 0, 0, 0)
        subscriptions[0].unsubscribe()
        channel.subscribe(pairs[0][0])
        channel.publish("end")
        expected = [text.format(number) for number in (*range(10), 7, 8, 9)]
        assert await scene.data(*pairs[0], 14) == [*expected, "end"]

    play(act)


# ---- As a stream


def test_streams(play: Play) -> None:
    """Whoever iterates gets what is published since, the newest ones if it does not keep up."""

    async def act(scene: Scene) -> None:
        channel = wsfast.Channel()
        channel.publish("before")
        received: list[str | bytes] = []

        async def iterate() -> None:
            async for message in channel:
                received.append(message)
                if isinstance(message, bytes) and message == b"end":
                    break

        task = await scene.stage.start(iterate())
        few = channel.stream(max_messages=2)
        for message in ("one", b"two", wsfast.PreparedMessage("three"), b"end", "after"):
            channel.publish(message)
        await task
        assert received == ["one", b"two", "three", b"end"]
        assert few.dropped == 3
        assert await anext(few) == b"end"
        with few:
            waiting = await scene.stage.start(collect(few))
            await asyncio.sleep(0)
            channel.publish("last")
        channel.publish("closed")
        await waiting
        assert waiting.result() == ["after", "last"]
        assert few.dropped == 3

    play(act)


async def collect(stream: AsyncIterator[str | bytes]) -> list[str | bytes]:
    return [message async for message in stream]


# ---- Private messages


def small(**options: Any) -> dict[str, Any]:
    return {"sndbuf": 4096, "rcvbuf": 4096, **options}


@pytest.mark.parametrize("kind", ["evented", "evented-deflate"])
def test_private_messages_do_not_overtake(play: Play, kind: str) -> None:
    """On connections of wsfast.serve(), a private message waits for what was published, also behind a slow client."""

    async def act(scene: Scene) -> None:
        channel = wsfast.Channel(slow=wsfast.DropNewest(max_bytes=None))
        connection, peer = await scene.connect(kind, **small())
        subscription = channel.subscribe(connection)
        channel.publish("1")
        await connection.send("2")
        async with fragmented_send(scene.stage, connection) as fragmented:
            channel.publish("4")
            task = await scene.stage.start(connection.send("5"))
            await until(lambda: subscription.queued == 1, "what must wait")
            channel.publish("6")
            channel.flush()
            assert not task.done()
            await fragmented.finish()
        await task
        fill: list[str] = []
        while subscription.queued < 3:  # with much more than may find room by itself, also compressed
            fill.append(random.Random(len(fill)).randbytes(10_000).hex())
            channel.publish(fill[-1])
            channel.flush()
        number = len(fill)
        task = await scene.stage.start(connection.send("7"))
        assert not task.done()
        data = await scene.data(connection, peer, number + 7)
        assert data[:2] == ["1", "2"]
        assert sorted(data[2:6]) == ["4", "5", "6", "first, last"]
        assert data.index("4") < data.index("5")
        assert data.index("4") < data.index("6")
        assert data[6:] == [*fill, "7"]
        assert reconciled(subscription) == SubscriptionStats(number + 3, number + 3, 0, 0, 0)

    play(act)


@pytest.mark.parametrize("kind", ["evented", "evented-deflate"])
def test_private_messages_are_not_starved(play: Play, kind: str) -> None:
    """A private message waits for what was published before it only, though something is always waiting."""

    async def act(scene: Scene) -> None:
        channel = wsfast.Channel(slow=wsfast.DropNewest(max_bytes=None))
        connection, peer = await scene.connect(kind, **small())
        subscription = channel.subscribe(connection)
        number = 0

        def fill() -> None:
            nonlocal number
            while subscription.queued < 6:
                channel.publish(f"{number} " + random.Random(number).randbytes(10_000).hex())
                channel.flush()
                number += 1

        fill()
        before = number
        tasks = [await scene.stage.start(connection.send(f"own {one}")) for one in range(2)]
        given_up = await scene.stage.start(connection.send("given up"))
        given_up.cancel()
        assert not any(task.done() for task in tasks)
        async with asyncio.timeout(TIMEOUT):
            while not all(task.done() for task in tasks):
                fill()
                assert subscription.queued
                await peer.read_some()
        assert subscription.queued
        data = await scene.data(connection, peer, number + 2 - reconciled(subscription).dropped)
        numbers = [int(str(one).split()[0]) for one in data if not str(one).startswith("own")]
        own = [place for place, one in enumerate(data) if str(one).startswith("own")]
        assert [data[place] for place in own] == ["own 0", "own 1"]
        assert numbers == sorted(numbers)
        assert max(numbers[: own[0]]) >= before - 1
        assert own[1] < len(data) - 1

    play(act)


# ---- Slow consumers


class Slow:
    """A subscriber whose kernel takes nothing any more."""

    def __init__(self, channel: wsfast.Channel, wire: Wire) -> None:
        self.channel, self.wire = channel, wire
        self.subscription = channel.subscribe(wire.connection)
        self.taken = 0
        while not self.subscription.queued:
            self.publish(f"fill {self.taken:04}" + "." * 1000, key="fill")
            self.taken += 1

    def publish(self, message: str, key: str | None = None) -> None:
        self.channel.publish(message, key=key)
        self.channel.flush()

    async def read(self) -> list[str]:
        """Read all that there is, and return what came after the first message that had to wait."""
        received: list[str] = []
        deadline = asyncio.get_running_loop().time() + TIMEOUT
        while not received or self.subscription.lag.messages or self.wire.buffered:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0)
            with contextlib.suppress(BlockingIOError):
                self.wire.inflater.feed(self.wire.sock.recv(1 << 20))
            received += [payload.decode() for _, payload in self.wire.inflater.messages]
            self.wire.inflater.messages.clear()
        with contextlib.suppress(BlockingIOError):
            self.wire.inflater.feed(self.wire.sock.recv(1 << 20))
        received += [payload.decode() for _, payload in self.wire.inflater.messages]
        assert len(received) == self.subscription.stats().sent
        return received


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have connections count as recovered as soon as that is looked at."""
    monkeypatch.setattr("wsfast._draining.EPISODE_GAP", 0.0)


class Clock:
    """The time by which messages get old."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Have time pass for messages that wait only when a test says so."""
    clock = Clock()
    for module in "_backlog", "_dispatcher", "_draining", "policies", "_subscription":
        monkeypatch.setattr(f"wsfast.{module}.time", types.SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture
def slowly(core: Any, run: Run) -> Callable[[Callable[[], wsfast.Channel], Any], None]:
    """Run a scene with a slow subscriber."""

    def slowly(make: Callable[[], wsfast.Channel], act: Callable[[Slow], Any]) -> None:
        async def main() -> None:
            wire = await connect(Spec("plain", small=True))
            try:
                await act(Slow(make(), wire))
            finally:
                wire.close()
                await wire.connection.connection_lost_waiter
                await asyncio.sleep(0)

        run(main)

    return slowly


Slowly = Callable[[Callable[[], wsfast.Channel], Callable[[Slow], Any]], None]
FILL = 1009  # bytes of the message that waits already


@pytest.mark.parametrize(
    ("policy", "kept", "dropped"),
    [
        (wsfast.DropNewest(max_messages=3), [0, 1], 3),
        (wsfast.DropOldest(max_messages=3), [2, 3, 4], 3),
        (wsfast.Conflate(max_messages=3), [2, 3, 4], 3),
        (wsfast.DropNewest(max_bytes=FILL + 20), [0, 1], 3),
        (wsfast.DropNewest(max_bytes=FILL + 19), [0], 4),
        (wsfast.DropOldest(max_bytes=FILL + 20), [0, 1, 2, 3, 4], 1),
        (wsfast.DropOldest(max_bytes=FILL + 50), [0, 1, 2, 3, 4], 0),
        (wsfast.DropNewest(max_bytes=1), [], 5),
        (wsfast.DropOldest(max_bytes=1), [4], 5),
        (wsfast.DropNewest(max_messages=1), [], 5),
        (wsfast.DropOldest(max_messages=1), [4], 5),
        (wsfast.DropOldest(max_messages=5, max_bytes=30), [2, 3, 4], 3),
        (wsfast.DropNewest(max_bytes=None), [0, 1, 2, 3, 4], 0),
    ],
)
def test_bounds(
    slowly: Slowly, policy: Policy, kept: list[int], dropped: int, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits is within the bounds exactly, and one message may always wait."""
    reports: list[Any] = []
    recovered: list[Any] = []

    def make() -> wsfast.Channel:
        return wsfast.Channel(
            "prices",
            slow=policy,
            on_drop=lambda *report: reports.append(report),
            on_recover=recovered.append,
        )

    async def act(slow: Slow) -> None:
        for number in range(5):
            slow.publish(f"message {number} ")
        subscription = slow.subscription
        stats = reconciled(subscription)
        waits_fill = isinstance(policy, wsfast.DropNewest) or dropped == 0
        assert stats == SubscriptionStats(slow.taken + 5, slow.taken - 1, dropped, 0, len(kept) + waits_fill)
        assert subscription.bytes == 10 * len(kept) + FILL * waits_fill
        assert subscription.lag[:2] == (subscription.queued, subscription.bytes)
        received = await slow.read()
        assert received[slow.taken - 1 + waits_fill :] == [f"message {number} " for number in kept]
        await until(lambda: subscription.lag == (0, 0, 0.0), "the end of the queue")
        await until(lambda: len(recovered) == bool(dropped), "the recovery")
        assert reports == [(subscription, 1)] * dropped
        assert recovered == [subscription] * bool(dropped)
        assert reconciled(subscription).queued == 0

    with caplog.at_level(logging.INFO, "wsfast"):
        slowly(make, act)
    records = [(record.levelname, record.getMessage().split(" ", 1)[1]) for record in caplog.records]
    assert records == (
        [("WARNING", "does not keep up with <Channel 'prices'>, which drops messages"), ("INFO", "has recovered")]
        if dropped
        else []
    )


def test_disconnect(slowly: Slowly) -> None:
    """Beyond the bounds, the connection is closed, as if it had never been subscribed thereafter."""
    reports: list[Any] = []

    async def act(slow: Slow) -> None:
        channel, subscription = slow.channel, slow.subscription
        slow.publish("second")
        assert (subscription.active, subscription.queued) == (True, 2)
        slow.publish("third")
        assert (subscription.active, len(channel)) == (False, 0)
        assert reconciled(subscription) == SubscriptionStats(slow.taken + 2, slow.taken - 1, 3, 0, 0)
        slow.publish("fourth")
        stats = channel.stats()
        assert (stats.disconnected, stats.dropped, stats.subscribers, stats.queued) == (1, 3, 0, 0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert reports == [subscription]
        wire = slow.wire
        stream = b""
        while not (frames := parse_frames(stream)[0]) or frames[-1].first != 0x88:
            await asyncio.sleep(0)
            with contextlib.suppress(BlockingIOError):
                stream += wire.sock.recv(1 << 20)
        assert len(frames) == slow.taken
        assert frames[-1].payload == (4000).to_bytes(2, "big") + b"too slow"
        wire.sock.close()
        await wire.connection.connection_lost_waiter
        with pytest.raises(ConnectionClosed):
            await wire.connection.send("more")

    policy = wsfast.Disconnect(max_messages=2, code=4000, reason="too slow")
    slowly(lambda: wsfast.Channel("prices", slow=policy, on_disconnect=reports.append), act)


@pytest.mark.parametrize("policy", [wsfast.Disconnect(max_messages=1), wsfast.DropNewest(max_messages=1)])
def test_who_leaves_has_not_recovered(slowly: Slowly, policy: Policy, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing tells of a recovery of those that were disconnected, or are not subscribed any more."""

    async def act(slow: Slow) -> None:
        slow.publish("too many")
        slow.subscription.unsubscribe()

    with caplog.at_level(logging.INFO, "wsfast"):
        slowly(lambda: wsfast.Channel(slow=policy), act)
    (message,) = [record.getMessage().split(" ", 1)[1] for record in caplog.records]
    assert message.startswith("does not keep up with <Channel>, which d")


def test_conflate(slowly: Slowly, caplog: pytest.LogCaptureFixture) -> None:
    """The newest of each key takes the place of the one that waits; messages without one all stay."""

    async def act(slow: Slow) -> None:
        for message, key in (("a 1", "a"), ("b 1", "b"), ("none 1", None), ("a 2", "a"), ("none 2", None)):
            slow.publish(message, key)
        slow.publish("a 3.", "a")
        subscription = slow.subscription
        assert reconciled(subscription) == SubscriptionStats(slow.taken + 6, slow.taken - 1, 0, 2, 5)
        assert subscription.bytes == FILL + 4 + 3 + 6 + 6
        received = await slow.read()
        assert received[slow.taken :] == ["a 3.", "b 1", "none 1", "none 2"]
        slow.publish("a 4", "a")
        slow.publish("a 5", "a")
        assert reconciled(subscription) == SubscriptionStats(slow.taken + 8, slow.taken + 6, 0, 2, 0)
        await until(lambda: len(caplog.records) == 2, "the recovery")

    with caplog.at_level(logging.INFO, "wsfast"):
        slowly(lambda: wsfast.Channel(slow=wsfast.Conflate()), act)
    messages = [record.getMessage().split(" ", 1)[1] for record in caplog.records]
    assert messages == ["does not keep up with <Channel>, which conflates", "has recovered"]


def test_conflate_keeps_the_bounds(slowly: Slowly) -> None:
    """A message that takes the place of a smaller one does not lift the bound."""

    async def act(slow: Slow) -> None:
        for key in ("a", "b"):
            slow.publish("small", key)
        for key in ("a", "b"):
            slow.publish("x" * 1500, key)
        assert slow.subscription.bytes <= 2000
        assert reconciled(slow.subscription).queued == 1

    slowly(lambda: wsfast.Channel(slow=wsfast.Conflate(max_bytes=2000)), act)


def test_conflate_knows_the_oldest(slowly: Slowly, clock: Clock) -> None:
    """What was replaced is new; the oldest that waits may be behind it."""

    async def act(slow: Slow) -> None:
        subscription = slow.subscription
        slow.publish("old", "old")
        clock.now += 0.5
        slow.publish("new", "fill")
        assert subscription.lag.seconds == 0.5

    slowly(lambda: wsfast.Channel(slow=wsfast.Conflate()), act)


def test_who_has_lost_nothing_does_not_recover(slowly: Slowly) -> None:
    """on_recover tells of subscriptions that have lost messages, not of all of their connection."""
    recovered: list[Subscription] = []

    async def act(slow: Slow) -> None:
        other = wsfast.Channel(on_recover=recovered.append)
        other.subscribe(slow.wire.connection)
        slow.publish("lost")
        await slow.read()
        await until(lambda: slow.subscription in recovered, "the recovery")
        assert recovered == [slow.subscription]

    slowly(lambda: wsfast.Channel(slow=wsfast.DropNewest(max_messages=1), on_recover=recovered.append), act)


@pytest.mark.parametrize("policy", [wsfast.DropOldest(max_age=0.05), wsfast.Disconnect(max_age=0.05)])
def test_max_age(slowly: Slowly, clock: Clock, policy: Policy) -> None:
    """What has waited for too long is dropped, or its connection closed, though nothing is published any more."""

    async def act(slow: Slow) -> None:
        slow.publish("second")
        subscription = slow.subscription
        assert subscription.queued == 2
        clock.now += 0.06
        await until(lambda: subscription.queued == 0, "messages that are too old to be dropped")
        assert subscription.active is isinstance(policy, wsfast.DropOldest)
        assert reconciled(subscription) == SubscriptionStats(slow.taken + 1, slow.taken - 1, 2, 0, 0)

    slowly(lambda: wsfast.Channel(slow=policy), act)


def test_max_age_of_newest(slowly: Slowly, clock: Clock) -> None:
    """DropNewest keeps what is old and takes nothing new beside it."""

    async def act(slow: Slow) -> None:
        clock.now += 0.06
        slow.publish("new")
        assert reconciled(slow.subscription) == SubscriptionStats(slow.taken + 1, slow.taken - 1, 1, 0, 1)
        assert (await slow.read())[-1].startswith("fill")

    slowly(lambda: wsfast.Channel(slow=wsfast.DropNewest(max_age=0.05)), act)


def test_descriptor_is_used_again(core: Any, run: Run) -> None:
    """After a slow stock connection was lost, the next one with its descriptor may be slow, too."""

    async def main() -> None:
        channel = wsfast.Channel(slow=wsfast.DropNewest(max_messages=2))
        for _ in range(3):
            wire = await connect(Spec("plain", small=True))
            try:
                slow = Slow(channel, wire)
            finally:
                wire.close()
                await wire.connection.connection_lost_waiter
            await until(lambda slow=slow: not slow.subscription.active, "the end")  # type: ignore[misc]

    run(main)


def test_out_of_descriptors(core: Any, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a descriptor to watch sockets with, slow ones are looked at from time to time."""

    def epoll() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main() -> None:
        wire = await connect(Spec("plain", small=True))
        try:
            with monkeypatch.context() as patch:
                patch.setattr(select, "epoll", epoll)
                slow = Slow(wsfast.Channel(slow=wsfast.DropNewest()), wire)
            slow.publish("end")
            assert (await slow.read())[-1] == "end"
        finally:
            wire.close()
            await wire.connection.connection_lost_waiter

    run(main)


def test_unsubscribing_drops_what_waits(slowly: Slowly) -> None:
    """What waits is dropped, what was published in this tick, too; other channels of the connection go on."""

    async def act(slow: Slow) -> None:
        other = wsfast.Channel()
        others = other.subscribe(slow.wire.connection)
        other.publish("from the other")
        slow.channel.publish("second")
        slow.subscription.unsubscribe()
        assert reconciled(slow.subscription) == SubscriptionStats(slow.taken + 1, slow.taken - 1, 2, 0, 0)
        assert reconciled(others) == SubscriptionStats(1, 0, 0, 0, 1)
        stats = slow.channel.stats()
        assert stats.published == stats.sent + stats.dropped == slow.taken + 1
        slow.subscription = others
        slow.taken = 0
        received: list[bytes] = []
        deadline = asyncio.get_running_loop().time() + TIMEOUT
        while not received or received[-1] != b"from the other":
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0)
            with contextlib.suppress(BlockingIOError):
                slow.wire.inflater.feed(slow.wire.sock.recv(1 << 20))
            received += [payload for _, payload in slow.wire.inflater.messages]
            slow.wire.inflater.messages.clear()
        assert b"second" not in received
        assert reconciled(others) == SubscriptionStats(1, 1, 0, 0, 0)

    slowly(lambda: wsfast.Channel(slow=wsfast.DropNewest()), act)
