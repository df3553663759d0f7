"""What channels do when code of the user's gets in between, and when there is more than a loop can send."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import select
import signal
import socket
import types
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import websockets.asyncio.client
import websockets.asyncio.server
import websockets.exceptions

import wsfast
from helpers.fixtures import Run
from helpers.peers import TIMEOUT, until
from wsfast import _dispatcher as outlets
from wsfast import _writable as watch
from wsfast._dispatcher import Dispatcher
from wsfast._encoding.shared import Shared
from wsfast._subscription import Subscription
from wsfast.channel import Channel

SMALL = 4096  # bytes of a socket buffer that a large message overflows
BIG = b"f" * 500_000


class Hooked(wsfast.ServerConnection):
    """A connection that sends in its own way, and calls back before or after it, once."""

    before: Callable[[], object] | None = None
    after: Callable[[], object] | None = None

    def send_data(self) -> None:
        """Send outgoing data."""
        hook, self.before = self.before, None
        if hook is not None:
            hook()
        super().send_data()
        if self.after is not None:
            self.after()


class Nowhere(BaseException):
    """An exception that comes from nowhere, as that of a signal handler."""


Pair = tuple[Any, websockets.asyncio.client.ClientConnection]
Act = Callable[[Callable[..., Awaitable[Pair]]], Awaitable[None]]


@pytest.fixture
def play(run: Run, core: Any) -> Callable[[Act], None]:
    """Run a scenario that is given a function that connects clients of websockets with a server."""

    async def main(act: Act) -> None:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Any] = asyncio.Queue()

        async def handler(connection: Any) -> None:
            await arrived.put(connection)
            await connection.wait_closed()

        async with contextlib.AsyncExitStack() as stack:

            async def connect(
                kind: type | None = wsfast.ServerConnection, *, small: bool = False, **options: Any
            ) -> Pair:
                settings = {"compression": None, "ping_interval": None, "create_connection": kind, **options}
                listener = new_socket(small)
                server = await stack.enter_async_context(
                    websockets.asyncio.server.serve(handler, sock=listener, **settings)
                )
                assert server is not None
                sock = new_socket(small, bind=False)
                await loop.sock_connect(sock, listener.getsockname())
                client = await websockets.asyncio.client.connect(
                    "ws://localhost/", sock=sock, ping_interval=None, max_size=None, **proxyless()
                )
                stack.callback(client.transport.abort)
                return await arrived.get(), client

            await act(connect)

    return lambda act: run(lambda: main(act))


def new_socket(small: bool, *, bind: bool = True) -> Any:
    sock = socket.socket()
    sock.setblocking(False)
    if small:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF if bind else socket.SO_RCVBUF, SMALL)
    if bind:
        sock.bind(("127.0.0.1", 0))
    return sock


def proxyless() -> dict[str, Any]:
    return {"proxy": None} if "proxy" in inspect.signature(websockets.asyncio.client.connect).parameters else {}


async def receive(client: Any, count: int) -> list[str | bytes]:
    async with asyncio.timeout(TIMEOUT):
        return [await client.recv() for _ in range(count)]


async def nothing_more(client: Any) -> None:
    """Check that a client has nothing to read but an answer to a ping."""
    async with asyncio.timeout(TIMEOUT):
        await (await client.ping())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await client.recv()


def numbers(subscription: Subscription) -> tuple[int, ...]:
    stats = subscription.stats()
    assert stats.published == stats.sent + stats.dropped + stats.conflated + stats.queued
    return stats.published, stats.sent, stats.dropped, stats.conflated, stats.queued


class Unclosable(wsfast.ServerConnection):
    """A connection whose close() fails, as that of websockets.legacy does while the application waits in send()."""

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Fail."""
        raise AssertionError(code, reason)


def test_a_close_that_fails_ends_in_an_abort(play: Any) -> None:
    """A client that does not keep up is gone though its connection cannot be closed."""

    async def act(connect: Any) -> None:
        connection, _ = await connect(Unclosable, small=True)
        channel = Channel(slow=wsfast.Disconnect(max_messages=1))
        subscription = channel.subscribe(connection)
        while subscription.active:
            channel.publish(BIG)
            await asyncio.sleep(0)
        async with asyncio.timeout(TIMEOUT):
            await connection.connection_lost_waiter

    play(act)


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_send_does_not_wait_for_a_client_that_closes_and_reads_nothing(play: Any, compression: str | None) -> None:
    """What waits for a connection that is closing is dropped, so that the connection's own send() raises."""

    async def act(connect: Any) -> None:
        connection, client = await connect(small=True, compression=compression, close_timeout=0.1)
        channel = Channel(slow=wsfast.DropOldest(max_bytes=None))
        subscription = channel.subscribe(connection)
        client.transport.pause_reading()
        for _ in range(20):
            channel.publish(os.urandom(50_000))
            channel.flush()
        assert subscription.queued
        task = asyncio.create_task(connection.send("own"))
        await asyncio.sleep(0)
        client.transport.write(b"\xff\x80....")  # an error, and then nothing
        async with asyncio.timeout(TIMEOUT):
            with pytest.raises(websockets.exceptions.ConnectionClosed):
                await task
        await until(lambda: not subscription.active)
        stats = channel.stats()
        assert stats.dropped
        assert (stats.queued, stats.published) == (0, stats.sent + stats.dropped)

    play(act)


# ---- Whoever asks for the transport or the protocol may do anything


@pytest.mark.parametrize("by", ["broadcast", "channel"])
@pytest.mark.parametrize("kind", [wsfast.ServerConnection, None], ids=["evented", "stock"])
def test_writes_to_the_transport_are_noticed(play: Any, kind: Any, by: str) -> None:
    """What is written to `connection.transport` is followed, never interrupted, by what is sent next."""

    async def act(connect: Any) -> None:
        connection, client = await connect(kind, small=True)
        channel = Channel(slow=wsfast.DropOldest())
        channel.subscribe(connection)

        def send(message: str) -> None:
            if by == "broadcast":
                wsfast.broadcast([connection], message)
            else:
                channel.publish(message)
                channel.flush()

        send("first")
        send("second")
        connection.transport.write(wsfast.PreparedMessage(BIG).frame)
        ticks = [f"tick {number} " * 50 for number in range(200)]
        for tick in ticks:
            send(tick)
            await asyncio.sleep(0)
        assert await receive(client, 203) == ["first", "second", BIG, *ticks]

    play(act)


@pytest.mark.parametrize("by", ["broadcast", "channel"])
@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("kind", [wsfast.ServerConnection, None], ids=["evented", "stock"])
def test_messages_that_the_protocol_has_not_written(play: Any, kind: Any, compression: str | None, by: str) -> None:
    """What was given to `connection.protocol`, and not been sent, is sent ahead of what comes next, and decodes."""

    async def act(connect: Any) -> None:
        connection, client = await connect(kind, compression=compression)
        channel = Channel()
        channel.subscribe(connection)
        first, private, between, last = (f"{word}, {word}, {word}, {word}, of the same message" for word in "abcd")
        wsfast.broadcast([connection], first)
        channel.publish(first)
        channel.flush()
        connection.protocol.send_text(private.encode())
        if by == "broadcast":
            wsfast.broadcast([connection], between)
        else:
            channel.publish(between)
            channel.flush()
        connection.send_data()
        await connection.send(last)
        assert await receive(client, 5) == [first, first, private, between, last]

    play(act)


def test_quiet_connections_are_written_to_without_a_question(play: Any, core: Any) -> None:
    """Neither a channel nor broadcast() asks a connection of wsfast.serve() for anything, until something happens."""
    if not core.sends_directly:
        pytest.skip("the twin always asks")

    async def act(connect: Any) -> None:
        connection, client = await connect()
        channel = Channel()
        channel.subscribe(connection)
        for _ in range(2):
            wsfast.broadcast([connection], "asks, if it must")
            channel.publish("asks, if it must")
            channel.flush()
        protocol = connection._wsfast_protocol
        connection._wsfast_protocol = connection._wsfast_transport = None  # so that to ask would be an AttributeError
        try:
            assert wsfast.broadcast([connection], "not asked") == (1, 0, 0, 0)
            channel.publish("not asked")
            channel.flush()
        finally:
            connection._wsfast_protocol, connection._wsfast_transport = protocol, connection._wsfast_route_transport
        assert (await receive(client, 6))[4:] == ["not asked"] * 2

    async def keep(connect: Any) -> None:
        async def connect_and_keep(*args: Any) -> Any:
            connection, client = await connect(*args)
            connection._wsfast_route_transport = connection.transport
            return connection, client

        await act(connect_and_keep)

    play(keep)


# ---- Methods of the user's


def test_failures_after_writing_are_not_repeated(play: Any) -> None:
    """A message whose sending raises an exception is dropped; those behind it are sent."""

    async def act(connect: Any) -> None:
        connection, client = await connect(Hooked)
        channel = Channel()
        subscription = channel.subscribe(connection)
        calls: list[int] = []

        def fail() -> None:
            calls.append(1)
            if len(calls) == 2:
                raise ValueError("metrics are not to be had")

        connection.after = fail
        for message in "abc":
            channel.publish(message)
        channel.flush()
        assert await receive(client, 3) == ["a", "b", "c"]
        await nothing_more(client)
        assert numbers(subscription) == (3, 2, 1, 0, 0)

    play(act)


def test_methods_may_publish_while_a_message_of_the_same_key_leaves(play: Any) -> None:
    """A message that takes the place of another while that is being sent is sent as well."""

    async def act(connect: Any) -> None:
        connection, client = await connect(Hooked, small=True)
        channel = Channel(slow=wsfast.Conflate())
        subscription = channel.subscribe(connection)
        channel.publish(BIG)
        channel.flush()
        channel.publish("old", key="k")
        channel.flush()
        assert subscription.queued == 1

        def publish() -> None:
            channel.publish("new", key="k")
            channel.flush()

        connection.before = publish
        assert await receive(client, 3) == [BIG, "old", "new"]
        await until(lambda: subscription.queued == 0)
        assert numbers(subscription) == (3, 3, 0, 0, 0)

    play(act)


def test_exceptions_from_nowhere_in_methods(play: Any) -> None:
    """If one is raised while a method sends, the connection is aborted; those behind it get the message."""

    async def act(connect: Any) -> None:
        pairs = [await connect(Hooked) for _ in range(3)]
        channel = Channel()
        subscriptions = [channel.subscribe(connection) for connection, _ in pairs]

        def fail() -> None:
            raise Nowhere

        pairs[0][0].before = fail
        channel.publish("m")
        with pytest.raises(Nowhere):
            channel.flush()
        assert [numbers(subscription) for subscription in subscriptions] == [(1, 0, 1, 0, 0), *[(1, 0, 0, 0, 1)] * 2]
        channel.publish("n")
        assert [await receive(client, 2) for _, client in pairs[1:]] == [["m", "n"]] * 2
        assert not subscriptions[0].active
        assert [numbers(subscription) for subscription in subscriptions[1:]] == [(2, 2, 0, 0, 0)] * 2

    play(act)


def test_methods_may_subscribe_anew(play: Any) -> None:
    """A subscription that begins while messages leave has nothing to do with them."""

    async def act(connect: Any) -> None:
        (first, _), (second, _) = await connect(Hooked), await connect(Hooked)
        channel, other = Channel("1"), Channel("2")
        old = [channel.subscribe(connection) for connection in (first, second)][1]
        for connection in (first, second):
            other.subscribe(connection)
        new: list[Subscription] = []

        def again() -> None:
            old.unsubscribe()
            new.append(channel.subscribe(second))

        first.before = again
        channel.publish("m")
        channel.flush()
        assert not old.active
        assert numbers(old)[0] == 1
        assert numbers(new[0]) == (0, 0, 0, 0, 0)

    play(act)


def test_compression_that_is_refused(play: Any) -> None:
    """A message that is not to be compressed is not, though the connection must be sent to by its own methods."""

    async def act(connect: Any) -> None:
        connection, client = await connect(Hooked, compression="deflate")
        channel = Channel()
        channel.subscribe(connection)
        compressed: list[bool] = []
        extension = client.protocol.extensions[0]
        decode = extension.decode

        def watch_decode(frame: Any, **options: Any) -> Any:
            compressed.append(frame.rsv1)
            return decode(frame, **options)

        extension.decode = watch_decode
        secret = "the secret of all secrets " * 10
        channel.publish(wsfast.PreparedMessage(secret, compress=False))
        channel.publish(secret)
        assert await receive(client, 2) == [secret, secret]
        assert compressed == [False, True]

    play(act)


def test_generators_may_unsubscribe(play: Any) -> None:
    """Who is to be excluded may leave while that is being found out."""

    async def act(connect: Any) -> None:
        (first, _), (second, client) = await connect(), await connect()
        channel = Channel()
        subscription = channel.subscribe(first)
        channel.subscribe(second)

        def leaving() -> Any:
            yield first
            subscription.unsubscribe()

        channel.publish("a", exclude=leaving())
        assert await receive(client, 1) == ["a"]
        assert channel.stats().published == 1

    play(act)


# ---- More than can be sent


@pytest.mark.parametrize("kind", [wsfast.ServerConnection, None], ids=["evented", "stock"])
def test_overload_is_bounded(play: Any, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If there is never time for a whole flush, what all have been sent is forgotten all the same, and all get all."""
    monkeypatch.setattr(outlets, "SLICE", 2)
    monkeypatch.setattr(outlets, "BUDGET", -1.0)

    async def act(connect: Any) -> None:
        pairs = [await connect(kind) for _ in range(7)]
        channel = Channel()
        for connection, _ in pairs:
            channel.subscribe(connection)
        dispatcher = channel._bind()
        most = 0
        messages = [f"message {number}" for number in range(300)]
        for message in messages:
            channel.publish(message)
            await asyncio.sleep(0)
            pending = [dispatcher.table.pending(connection._wsfast_peer.slot) for connection, _ in pairs]
            most = max(most, *map(len, pending))
            assert any(pending), "there was time for all"
        assert most <= 8
        for _, client in pairs:
            assert await receive(client, 300) == messages
        await until(lambda: not dispatcher.table.sending)
        assert channel.stats().sent == 300 * 7

    play(act)


# ---- Time


@pytest.mark.parametrize("slow", [wsfast.Disconnect(max_age=5), wsfast.DropOldest(max_age=5)], ids=["close", "drop"])
def test_history_is_not_old_to_those_who_join(play: Any, core: Any, slow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a message waits is counted from when it began to wait, not from when it was published."""
    now = 1000.0
    for name in ("_backlog", "_dispatcher", "_draining", "policies", "_subscription"):
        monkeypatch.setattr(f"wsfast.{name}.time", types.SimpleNamespace(monotonic=lambda: now))

    async def act(connect: Any) -> None:
        nonlocal now
        channel = Channel(slow=slow, history=50)
        messages = [b"%04d" % number + os.urandom(20000) for number in range(50)]
        for message in messages:
            channel.publish(message)
        now += 60.0
        connection, client = await connect(small=True)
        subscription = channel.subscribe(connection)
        channel.flush()
        assert subscription.queued > 10 or not core.sends_directly  # else the transport has taken it all
        assert await receive(client, 50) == messages
        assert subscription.active

    play(act)


def test_conflation_beyond_bounds_drops_what_is_oldest(play: Any) -> None:
    """Beyond the bounds, the message that waits for longest goes, not the one that stands first in the queue."""

    async def act(connect: Any) -> None:
        connection, client = await connect(small=True)
        channel = Channel(slow=wsfast.Conflate(max_messages=3))
        subscription = channel.subscribe(connection)
        channel.publish(BIG)
        channel.flush()
        for message in ("A1", "B1", "C1", "A2", "D1"):
            channel.publish(message, key=message[0])
            channel.flush()
        assert numbers(subscription) == (6, 1, 1, 1, 3)
        assert await receive(client, 4) == [BIG, "A2", "C1", "D1"]

    play(act)


class Taker:
    """A connection that takes everything, and does something else meanwhile, once."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.act: Callable[[], object] | None = None

    def write(self, frame: bytes) -> None:
        act, self.act = self.act, None
        if act is not None:
            act()
        self.got.append(frame[2:])

    def writable(self) -> bool:
        return True

    def close(self, code: int, reason: str) -> None: ...


def test_leaving_in_the_middle_of_a_flush(run: Run, core: Any) -> None:
    """Who leaves while others are sent to gets what was published before, as at any other time."""

    async def main() -> None:
        sinks = [Taker() for _ in range(3)]
        channel = Channel()
        subscriptions = [channel.subscribe(wsfast.attach(sink)) for sink in sinks]
        sinks[0].act = subscriptions[1].unsubscribe
        channel.publish(b"message")
        channel.flush()
        assert [sink.got for sink in sinks] == [[b"message"]] * 3
        assert numbers(subscriptions[1]) == (1, 1, 0, 0, 0)

    run(main)


@pytest.mark.parametrize("compression", [None, "deflate"], ids=["plain", "deflate"])
def test_a_signal_handler_ends_a_subscription_while_frames_are_chosen(
    play: Any, compression: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a handler does while others are looked at comes after the flush: nobody gets what was chosen before."""
    texts = [f"the message {number} that is alike, and alike, and alike" for number in range(6)]

    async def act(connect: Any) -> None:
        (one, first), (other, second) = [await connect(compression=compression) for _ in range(2)]
        left, right = Channel(), Channel()
        subscription = left.subscribe(one)
        right.subscribe(one)
        right.subscribe(other)
        for text in texts[:2]:
            right.publish(text)
            right.flush()
        nodes: list[int] = []
        sequence_of = Dispatcher._sequence_of

        def interrupted(dispatcher: Dispatcher, node: int) -> Any:
            nodes.append(node)
            if len(nodes) == 2:
                signal.raise_signal(signal.SIGUSR1)
            return sequence_of(dispatcher, node)

        before = signal.signal(signal.SIGUSR1, lambda *_: subscription.unsubscribe())
        try:
            with monkeypatch.context() as patch:
                patch.setattr(Dispatcher, "_sequence_of", interrupted)
                left.publish(texts[2])
                right.publish(texts[3])
                right.flush()
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert len(nodes) >= 2
        assert not left.stats().subscribers
        assert (left.stats().sent, left.stats().dropped) == (1, 0)
        for text in texts[4:]:
            right.publish(text)
            right.flush()
        assert await receive(first, 6) == texts
        assert await receive(second, 5) == [*texts[:2], *texts[3:]]

    play(act)


@pytest.mark.parametrize("kind", [wsfast.ServerConnection, None], ids=["served", "stock"])
def test_a_signal_handler_ends_a_subscription_while_a_broadcast_is_chosen(
    play: Any, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a handler sends in the middle of broadcast() comes after it: nobody gets what was chosen before."""
    texts = [f"the message {number} that is alike, and alike, and alike" for number in range(5)]

    async def act(connect: Any) -> None:
        pairs = [await connect(kind, compression="deflate") for _ in range(2)]
        connections = [connection for connection, _ in pairs]
        channel = Channel()
        subscription = channel.subscribe(connections[0])
        wsfast.broadcast(connections, texts[0])
        wsfast.broadcast(connections[1:], texts[1])  # so that it holds something else, and is asked about apart
        asked: list[Any] = []
        choose = Shared._choose

        def interrupted(shared: Shared, window: Any) -> Any:
            asked.append(window)
            if len(asked) == 2:
                signal.raise_signal(signal.SIGUSR1)
            return choose(shared, window)

        before = signal.signal(signal.SIGUSR1, lambda *_: subscription.unsubscribe())
        try:
            channel.publish(texts[2])
            with monkeypatch.context() as patch:
                patch.setattr(Shared, "_choose", interrupted)
                wsfast.broadcast(connections, texts[3])
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert len(asked) >= 2
        wsfast.broadcast(connections, texts[4])
        first, second = [await receive(client, 4) for _, client in pairs]
        assert first == [texts[0], texts[3], texts[2], texts[4]]
        assert second == [texts[0], texts[1], texts[3], texts[4]]

    play(act)


def test_a_message_of_its_own_follows_what_has_expired(play: Any) -> None:
    """Who waits to send goes on when what was ahead has been dropped, also if the client still does not read."""

    async def act(connect: Any) -> None:
        connection, client = await connect(small=True)
        client.transport.pause_reading()
        channel = Channel(slow=wsfast.DropOldest(max_age=0.2, max_bytes=None))
        subscription = channel.subscribe(connection)
        while subscription.queued < 3:
            channel.publish(BIG)
            channel.flush()
        task = asyncio.ensure_future(connection.send("own"))
        async with asyncio.timeout(TIMEOUT):
            while subscription.queued:
                await asyncio.sleep(0.01)
            await until(lambda: not connection._wsfast_peer.backlog or not connection._wsfast_peer.backlog.waiters)
        client.transport.resume_reading()
        async with asyncio.timeout(TIMEOUT):
            await task
            while await client.recv() != "own":
                pass

    play(act)


def test_conflation_keeps_no_rubbish(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of messages that are gone, nothing stays in the queue behind one that is refreshed all the time."""
    now = 1000.0
    for name in ("_backlog", "_dispatcher", "_draining", "policies", "_subscription"):
        monkeypatch.setattr(f"wsfast.{name}.time", types.SimpleNamespace(monotonic=lambda: now))

    async def act(connect: Any) -> None:
        nonlocal now
        connection, _ = await connect(small=True)
        channel = Channel(slow=wsfast.Conflate(max_age=5))
        subscription = channel.subscribe(connection)
        for message in (BIG, "hot"):
            channel.publish(message, key="hot")
            channel.flush()
        for turn in range(20):
            for number in range(100):
                channel.publish("cold", key=(turn, number))
            channel.publish("hot", key="hot")
            channel.flush()
            now += 3.0
            queue = connection._wsfast_peer.backlog.queues[subscription]
            for _ in range(4):  # it drops no more than 64 at once
                channel.slow.expire(queue, now)
            assert subscription.queued in (101, 201)
            assert len(queue.keys) <= 201

    play(act)


# ---- Descriptors


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="there is no epoll")
def test_watches_do_not_pile_up(play: Any) -> None:
    """The epoll of a dispatcher is closed when no channel needs it any more."""

    def epolls() -> int:
        count = 0
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                count += os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[eventpoll]"
        return count

    async def act(connect: Any) -> None:
        before = epolls()
        for _ in range(5):
            connection, client = await connect(small=True)
            channel = Channel()
            with channel.subscribe(connection) as subscription:
                for message in (BIG, "more"):
                    channel.publish(message)
                    channel.flush()
                assert subscription.queued == 1
                assert await receive(client, 2) == [BIG, "more"]
                await until(lambda one=subscription: one.queued == 0)  # type: ignore[misc]
            dispatcher = weakref.ref(channel._bind())
            client.transport.abort()
            del channel, subscription, connection
            await until(lambda one=dispatcher: gc.collect() < 0 or one() is None)  # type: ignore[misc]
        assert epolls() - before <= 1

    play(act)


class Kqueue:
    """What select.kqueue() is on BSD and macOS, as far as it is used here, made of poll()."""

    def __init__(self) -> None:
        self.poll = select.epoll()

    def fileno(self) -> int:
        return self.poll.fileno()

    def close(self) -> None:
        self.poll.close()

    def control(self, changes: list[Any] | None, count: int, timeout: float | None) -> list[Any]:
        for change in changes or ():
            assert (change.filter, change.flags) == ("write", {"add", "oneshot"})
            try:
                self.poll.modify(change.ident, select.EPOLLOUT | select.EPOLLONESHOT)
            except FileNotFoundError:
                self.poll.register(change.ident, select.EPOLLOUT | select.EPOLLONESHOT)
        return [Event(fd) for fd, _ in self.poll.poll(0, count)] if count else []


class Event:
    """What select.kevent() is there."""

    def __init__(self, ident: int, kind: object = None, flags: object = None) -> None:
        self.ident, self.filter, self.flags = ident, kind, flags


class FakeSelect:
    """The module select of a platform without epoll."""

    def __init__(self, *, kqueue: bool) -> None:
        if kqueue:
            self.kqueue, self.kevent = Kqueue, Event
            self.KQ_FILTER_WRITE, self.KQ_EV_ADD, self.KQ_EV_ONESHOT = "write", {"add"}, {"oneshot"}


@pytest.mark.parametrize("kqueue", [True, False], ids=["kqueue", "timer"])
@pytest.mark.skipif(not hasattr(select, "epoll"), reason="it is epoll that stands in for kqueue here")
def test_other_ways_to_watch(play: Any, monkeypatch: pytest.MonkeyPatch, kqueue: bool) -> None:
    """Where there is no epoll, those who lag catch up by kqueue, or as time goes by."""
    monkeypatch.setattr(watch, "select", FakeSelect(kqueue=kqueue))

    async def act(connect: Any) -> None:
        pairs = [await connect(small=True) for _ in range(3)]
        channel = Channel(slow=wsfast.DropOldest())
        subscriptions = [channel.subscribe(connection) for connection, _ in pairs]
        messages = [b"%04d" % number + os.urandom(3000) for number in range(200)]
        for message in messages:
            channel.publish(message)
            channel.flush()
        assert all(subscription.queued for subscription in subscriptions)
        subscriptions.pop().unsubscribe()
        for _, client in pairs[:2]:
            assert await receive(client, 200) == messages
        await until(lambda: not any(subscription.queued for subscription in subscriptions))

    play(act)
