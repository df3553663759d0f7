"""Whatever is published, in whatever order: each client receives exactly what a list says, and the numbers reconcile.

The profile is small. To run about 100,000 steps with each core:

    WSFAST_TEST_MACHINE_STEPS=100000 pytest -s --timeout 0 -o faulthandler_timeout=0 \
        tests/model/test_channel_machine.py
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import ServerConnection
from websockets.client import ClientProtocol
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

import wsfast
from helpers.inflate import LOGGERS, Inflater, Server, Spec, extension_of
from helpers.peers import TIMEOUT, parse_frames
from wsfast._dispatcher import Dispatcher
from wsfast._encoding.deflate import Window
from wsfast._subscription import Subscription, SubscriptionStats
from wsfast.connections.websockets import SEND_IN_PROGRESS
from wsfast.policies import Policy

T = TypeVar("T")

STEPS = int(os.environ.get("WSFAST_TEST_MACHINE_STEPS", "1200"))
STEPS_PER_RUN = 50
MOST_WIRES = 8

POLICIES: list[Policy] = [
    wsfast.DropNewest(max_messages=3),
    wsfast.DropNewest(max_messages=None, max_bytes=5000),
    wsfast.DropOldest(max_messages=4),
    wsfast.DropOldest(max_messages=20, max_bytes=9000),
    wsfast.Conflate(max_messages=None, max_bytes=None),
    wsfast.Conflate(max_messages=4, max_bytes=None),
    wsfast.Disconnect(max_messages=3, max_bytes=None),
    wsfast.Disconnect(max_messages=6, max_bytes=9000),
]
WHICH = st.integers(0, MOST_WIRES - 1)
CHANNEL = st.integers(0, 3)
SIZE = st.sampled_from([0, 0, 20, 100, 100, 700, 700, 3000, 3000, 20_000])
KEY = st.sampled_from([None, "a", "a", "b", "c"])
KIND = st.sampled_from(
    [
        ("evented", "plain"),
        ("evented", "plain"),
        ("evented", "stock"),
        ("evented", "factory"),
        ("stock", "plain"),
        ("stock", "stock"),
        ("stock", "factory"),
        ("client", "plain"),
        ("client", "stock"),
    ]
)


@dataclass(eq=False)
class Message:
    """What was published, or sent by a connection for itself."""

    number: int
    topic: Topic | None
    key: Hashable
    prepared: wsfast.PreparedMessage


ORDER = itertools.count()


@dataclass(eq=False)
class Topic:
    """A channel, and what is known of it."""

    channel: wsfast.Channel
    history: deque[Message]
    subscribers: list[Subscriber] = field(default_factory=list)
    reported: int = 0
    """Messages that callbacks were told to be dropped."""
    dropped: int = 0
    """Messages that the policy was to drop."""
    recovered: int = 0
    disconnected: int = 0


@dataclass(eq=False)
class Subscriber:
    """What a subscription must have come to."""

    topic: Topic
    subscription: wsfast.Subscription
    published: int = 0
    sent: int = 0
    dropped: int = 0
    conflated: int = 0


class Reader(Inflater):
    """Understands close frames, too."""

    closed = b""

    def feed(self, data: bytes) -> None:
        """Take bytes of the stream."""
        data, self.tail = self.tail + data, b""
        frames, tail = parse_frames(data)
        if frames and frames[-1].first == 0x88:
            self.closed = frames[-1].payload
            assert not tail, "something follows the close frame"
            data = data[: -len(self.closed) - len(frames[-1].key) - 2]
        super().feed(data)


class Wire:
    """One connection, its client, and what it must receive."""

    def __init__(self, kind: str, spec: Spec, connection: Any, sock: socket.socket) -> None:
        self.kind = kind
        self.connection = connection
        self.sock = sock
        bits = None if spec.kind == "plain" else spec.bits
        self.reader = Reader(bits, masked=spec.client)
        self.subscribers: dict[Topic, Subscriber] = {}
        self.past: list[Subscriber] = []
        """Subscriptions that have ended."""
        self.pending: list[Message] = []
        self.queue: list[Message] = []
        self.held: dict[int, int] = {}
        """For each number of a message, when it has begun to wait."""
        self.expected: deque[Message] = deque()
        self.private: deque[Message] = deque()
        self.newest_private = -1
        """Number of the last of them that arrived."""
        self.fragments: asyncio.Queue[Any] | None = None
        self.closing = False
        self.ended = False
        self.received = 0
        self.late: set[int] = set()
        """Numbers of messages that it got, or gets, from a history: some time after they were published."""

    @property
    def lagging(self) -> bool:
        peer = getattr(self.connection, "_wsfast_peer", None)
        return peer is not None and peer.backlog is not None

    def sent(self) -> int:
        """Return how many messages have left, as the subscriptions tell."""
        return sum(one.subscription.stats().sent for one in (*self.subscribers.values(), *self.past))

    def waiting(self, topic: Topic) -> list[Message]:
        return [message for message in self.queue if message.topic is topic]

    def observe(self) -> None:
        """Note what has left since it was looked at last."""
        taken = self.sent() - sum(one.sent for one in (*self.subscribers.values(), *self.past))
        assert 0 <= taken <= len(self.queue)
        for message in self.queue[:taken]:
            self.leave(message)
        del self.queue[:taken]

    def leave(self, message: Message) -> None:
        assert message.topic is not None
        self.subscribers[message.topic].sent += 1
        self.expected.append(message)

    def flushed(self, lagging: bool) -> None:
        """Note what became of what was published in this tick."""
        pending, self.pending = self.pending, []
        taken = self.sent() - sum(one.sent for one in (*self.subscribers.values(), *self.past))
        assert taken == 0 if lagging else 0 <= taken <= len(pending)
        for message in pending[:taken]:
            self.leave(message)
        for index, message in enumerate(pending[taken:], taken):
            assert message.topic is not None
            if not self.hold(self.subscribers[message.topic], message):
                self.disconnect(pending[index:])
                return

    def hold(self, subscriber: Subscriber, message: Message) -> bool:
        """Do what the policy is to do; tell whether the connection is not to be closed."""
        topic = subscriber.topic
        policy = topic.channel.slow
        if isinstance(policy, wsfast.Conflate) and message.key is not None:
            for index, other in enumerate(self.queue):
                if other.topic is topic and other.key == message.key:
                    self.queue[index] = message
                    self.held[message.number] = next(ORDER)
                    subscriber.conflated += 1
                    return True
        while waiting := self.waiting(topic):
            size = sum(one.prepared.size for one in waiting) + message.prepared.size
            if (policy.max_messages is None or len(waiting) < policy.max_messages) and (
                policy.max_bytes is None or size <= policy.max_bytes
            ):
                break
            if isinstance(policy, wsfast.Disconnect):
                topic.disconnected += 1
                return False
            subscriber.dropped += 1
            topic.dropped += 1
            if isinstance(policy, wsfast.DropNewest):
                return True
            by_age = isinstance(policy, wsfast.Conflate)  # those of the same key have taken the places of others
            self.queue.remove(min(waiting, key=lambda one: self.held[one.number]) if by_age else waiting[0])
        self.queue.append(message)
        self.held[message.number] = next(ORDER)
        return True

    def disconnect(self, rest: list[Message]) -> None:
        self.closing = True
        for message in (*self.queue, *rest):
            assert message.topic is not None
            self.subscribers[message.topic].dropped += 1
        self.queue.clear()
        for subscriber in self.subscribers.values():
            assert not subscriber.subscription.active
        self.past += self.subscribers.values()
        self.subscribers.clear()

    def unsubscribed(self, topic: Topic) -> None:
        """Note that a subscription has ended."""
        self.observe()
        subscriber = self.subscribers.pop(topic)
        subscriber.dropped += len(self.waiting(topic))
        self.queue = [message for message in self.queue if message.topic is not topic]
        self.past.append(subscriber)

    def check(self) -> None:
        """Compare the numbers."""
        for topic, one in self.subscribers.items():
            messages = self.waiting(topic) + [message for message in self.pending if message.topic is topic]
            stats = SubscriptionStats(one.published, one.sent, one.dropped, one.conflated, len(messages))
            assert one.subscription.stats() == stats
            assert one.subscription.active
            waiting = one.subscription.lag
            assert waiting[:2] == (len(messages), sum(message.prepared.size for message in messages))
            assert waiting.seconds > 0 if messages else waiting.seconds == 0
        for one in self.past:
            assert one.subscription.stats() == SubscriptionStats(one.published, one.sent, one.dropped, one.conflated, 0)
            assert not one.subscription.active

    def read(self, size: int) -> None:
        """Read as much as there is, but not more than that many bytes."""
        if self.ended:
            return
        try:
            data = self.sock.recv(size)
        except BlockingIOError:
            return
        assert data or self.closing, "the connection has ended"
        self.reader.feed(data)
        received = self.reader.messages
        while received:
            opcode, payload = received.popleft()
            number = int(payload.split(b":", 2)[1])
            if payload.startswith(b"private:"):
                message = self.private.popleft()
                self.newest_private = number
            else:
                assert self.expected, f"unexpected {payload!r:.50}"
                message = self.expected.popleft()
                self.received += 1
                if self.kind == "evented" and number not in self.late:
                    assert number > self.newest_private, "was overtaken"
            assert (opcode, payload) == (message.prepared.opcode, message.prepared.data)
        if self.reader.closed or not data:
            # websockets: 1011 if a fragmented message is being sent
            assert int.from_bytes(self.reader.closed[:2], "big") in (1011, 1013)
            self.sock.close()
            self.ended = True

    def close(self) -> None:
        self.sock.close()
        self.connection.transport.abort()


async def connect(kind: str, spec: Spec) -> Wire:
    """Open a connection over a pair of sockets."""
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
        if spec.small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    protocol: Any
    connection: Any
    if kind == "client":
        protocol = ClientProtocol(parse_uri("ws://localhost/"), state=State.OPEN, logger=LOGGERS[False])
        connection = ClientConnection(protocol, ping_interval=None)
    else:
        protocol = ServerProtocol(state=State.OPEN, logger=LOGGERS[False])
        cls: Any = wsfast.ServerConnection if kind == "evented" else ServerConnection
        connection = cls(protocol, Server(), ping_interval=None)
    extension = extension_of(spec)
    if extension is not None:
        protocol.extensions = [extension]
    await asyncio.get_running_loop().create_connection(lambda: connection, sock=ours)
    return Wire(kind, spec, connection, theirs)


class Machine(RuleBasedStateMachine):
    """Connections of all kinds, and channels of all policies."""

    seen: set[str] = set()  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=asyncio.SelectorEventLoop, debug=False)
        self.wires: list[Wire] = []
        self.gone: list[Wire] = []
        self.topics: list[Topic] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.number = 0
        self.dispatcher: Any = None

    # ---- How it is done

    def run(self, act: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine function, and compare the numbers thereafter."""

        async def main() -> T:
            result = await act()
            self.check()
            return result

        return self.runner.run(main())

    def check(self) -> None:
        for wire in self.wires:
            wire.observe()
            wire.check()

    def now(self, act: Callable[[], object]) -> None:
        """Do something in the event loop, which goes on thereafter no further than it must."""

        async def main() -> None:
            act()

        self.run(main)

    def one(self, which: int) -> Wire:
        return self.wires[which % len(self.wires)]

    def topic(self, which: int) -> Topic:
        return self.topics[which % len(self.topics)]

    def message(self, prefix: str, size: int, topic: Topic | None = None, key: Hashable = None) -> Message:
        self.number += 1
        text = f"{prefix}:{self.number}:" + f'{{"key": "{key}", "price": {self.number * 7919 % 10007}}} ' * (size // 30)
        data = text if self.number % 2 else text.encode()
        return Message(self.number, topic, key, wsfast.PreparedMessage(data))

    def spy(self, dispatcher: Any) -> None:
        """Note what becomes of what was published whenever it is sent."""
        original = dispatcher.flush

        def flush(budget: float | None = None) -> None:
            if dispatcher._flushing:
                original(budget)
                return
            before = []
            for wire in self.wires:
                wire.observe()
                before.append((wire, wire.lagging))
            original(budget)
            for wire, lagging in before:
                wire.flushed(lagging)

        dispatcher.flush = flush

    async def start(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(coroutine))
        await asyncio.sleep(0)

    @initialize(
        kinds=st.lists(KIND, min_size=1, max_size=4),
        policies=st.lists(st.tuples(st.sampled_from(POLICIES), st.integers(0, 4)), min_size=1, max_size=4),
    )
    def open(self, kinds: list[tuple[str, str]], policies: list[tuple[Policy, int]]) -> None:
        async def main() -> None:
            for policy, history in policies:
                self.add_topic(policy, history)
            for kind, extension in kinds:
                await self.add(kind, extension, True)
                for topic in self.topics:
                    self.subscribe_to(topic, self.wires[-1])

        self.run(main)

    def add_topic(self, policy: Policy, history: int) -> None:
        topic: Topic

        def on_drop(subscription: wsfast.Subscription, count: int) -> None:
            topic.reported += count

        channel = wsfast.Channel(slow=policy, history=history, on_drop=on_drop)
        topic = Topic(channel, deque(maxlen=history))
        channel.flush()  # makes it belong to this event loop
        if not self.topics:
            self.dispatcher = channel._bind()
            self.spy(self.dispatcher)
        self.topics.append(topic)

    async def add(self, kind: str, extension: str, small: bool) -> None:
        bits = (9, 12, 15)[(self.number + len(self.wires)) % 3]
        spec = Spec(kind=extension, bits=bits, client=kind == "client", small=small)
        wire = await connect(kind, spec)
        if len(self.wires) < MOST_WIRES:
            self.wires.append(wire)
            return
        index = self.number % MOST_WIRES
        old, self.wires[index] = self.wires[index], wire
        self.topics[0].channel.flush()
        self.gone.append(old)
        old.flushed(False)
        old.close()
        await old.connection.connection_lost_waiter
        await asyncio.sleep(0)
        for subscriber in (*old.subscribers.values(), *old.past):
            stats = subscriber.subscription.stats()
            assert (stats.published, stats.queued) == (subscriber.published, 0)
            assert stats.published == stats.sent + stats.dropped + stats.conflated
            assert not subscriber.subscription.active

    # ---- Coming and going

    @rule(kind=KIND, small=st.sampled_from([True, True, False]), topics=st.sets(CHANNEL))
    def join(self, kind: tuple[str, str], small: bool, topics: set[int]) -> None:
        async def main() -> None:
            self.topics[0].channel.flush()
            await self.add(*kind, small)
            for topic in topics:
                self.subscribe_to(self.topic(topic), self.wires[self.number % MOST_WIRES % len(self.wires)])

        self.run(main)

    @rule(which=WHICH, topic=CHANNEL)
    def subscribe(self, which: int, topic: int) -> None:
        self.now(lambda: self.subscribe_to(self.topic(topic), self.one(which)))

    def subscribe_to(self, topic: Topic, wire: Wire) -> None:
        if wire.closing:
            return
        subscription = topic.channel.subscribe(wire.connection)
        if topic in wire.subscribers:
            assert wire.subscribers[topic].subscription is subscription
            return
        wire.subscribers[topic] = subscriber = Subscriber(topic, subscription, published=len(topic.history))
        topic.subscribers.append(subscriber)
        wire.pending += topic.history
        wire.late.update(message.number for message in topic.history)
        assert subscription.connection is wire.connection

    @rule(which=WHICH, topic=CHANNEL)
    def unsubscribe(self, which: int, topic: int) -> None:
        def act() -> None:
            wire, left = self.one(which), self.topic(topic)
            subscriber = wire.subscribers.get(left)
            if subscriber is None:
                return
            subscriber.subscription.unsubscribe()
            if left in wire.subscribers:  # it may have been disconnected
                wire.unsubscribed(left)

        self.now(act)

    # ---- Publishing

    @rule(topic=CHANNEL, size=SIZE, key=KEY, excluded=st.sets(WHICH, max_size=2), times=st.sampled_from([1, 1, 3, 8]))
    def publish(self, topic: int, size: int, key: Hashable, excluded: set[int], times: int) -> None:
        def act() -> None:
            for _ in range(times):
                self.publish_in(self.topic(topic), size, key, {self.one(which) for which in excluded})

        self.now(act)

    def publish_in(self, topic: Topic, size: int, key: Hashable, excluded: set[Wire]) -> None:
        message = self.message("published", size, topic, key)
        topic.history.append(message)
        for wire in self.wires:
            if topic in wire.subscribers and wire not in excluded:
                wire.subscribers[topic].published += 1
                wire.pending.append(message)
        topic.channel.publish(message.prepared, key=key, exclude=[wire.connection for wire in excluded])

    @rule(topic=CHANNEL, size=SIZE, keys=st.lists(KEY, min_size=1, max_size=12))
    def publish_many(self, topic: int, size: int, keys: list[Hashable]) -> None:
        def act() -> None:
            for key in keys:
                self.publish_in(self.topic(topic), size, key, set())
                self.topic(topic).channel.flush()

        self.now(act)

    @rule(topic=CHANNEL)
    def flush(self, topic: int) -> None:
        self.now(self.topic(topic).channel.flush)

    @rule(turns=st.integers(1, 4))
    def turn(self, turns: int) -> None:
        async def main() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.run(main)

    # ---- For one connection

    @rule(which=WHICH, size=SIZE)
    def send(self, which: int, size: int) -> None:
        async def main() -> None:
            wire = self.one(which)
            if not wire.closing:
                message = self.message("private", size)
                wire.private.append(message)
                await self.start(wire.connection.send(message.prepared.data, text=message.prepared.text))

        if self.one(which).fragments is None:
            self.run(main)

    @rule(which=WHICH, size=SIZE)
    def begin(self, which: int, size: int) -> None:
        """Begin a fragmented message."""

        async def main() -> None:
            wire = self.one(which)
            message = self.message("private", size)
            data = message.prepared.data
            fragments: asyncio.Queue[None] = asyncio.Queue()
            wire.fragments = fragments
            wire.private.append(Message(message.number, None, None, wsfast.PreparedMessage(data * 2)))

            async def parts() -> AsyncIterator[bytes]:
                yield data
                await fragments.get()
                yield data

            await self.start(wire.connection.send(parts()))

        wire = self.one(which)
        if wire.fragments is None and not wire.closing and getattr(wire.connection, SEND_IN_PROGRESS) is None:
            self.run(main)

    @rule(which=WHICH)
    def end(self, which: int) -> None:
        """End a fragmented message."""
        self.now(lambda: self.end_fragments(self.one(which)))

    def end_fragments(self, wire: Wire) -> None:
        if wire.fragments is not None:
            wire.fragments.put_nowait(None)
            wire.fragments = None

    @rule(which=WHICH, size=st.sampled_from([1, 100, 3000, 50_000]), times=st.integers(1, 3))
    def read(self, which: int, size: int, times: int) -> None:
        async def main() -> None:
            for _ in range(times):
                self.check()
                self.one(which).read(size)
                await asyncio.sleep(0)

        self.run(main)

    # ---- The end

    def teardown(self) -> None:
        async def drain() -> None:
            for wire in self.wires:
                self.end_fragments(wire)
            deadline = asyncio.get_running_loop().time() + TIMEOUT
            while any(
                not wire.ended and (wire.closing or wire.pending or wire.queue or wire.expected or wire.private)
                for wire in self.wires
            ):
                assert asyncio.get_running_loop().time() < deadline, "messages are missing"
                await asyncio.sleep(0)
                self.check()
                for wire in self.wires:
                    wire.read(1 << 20)
            await asyncio.sleep(0)
            self.check()
            self.compare()

        async def clear() -> None:
            if self.dispatcher is not None:
                del self.dispatcher.flush
            for wire in (*self.wires, *self.gone):
                wire.close()
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
            for wire in (*self.wires, *self.gone):
                await wire.connection.connection_lost_waiter
            await asyncio.sleep(0)
            assert not any(len(topic.channel) for topic in self.topics)

        try:
            if self.topics:
                self.runner.run(drain())
        finally:
            self.runner.run(clear())
            self.runner.close()

    def compare(self) -> None:
        """Compare the numbers of channels, and what has arrived."""
        for wire in self.wires:
            assert not wire.expected or wire.closing
            if not wire.closing:
                assert wire.received == wire.sent()
        for topic in self.topics:
            stats = topic.channel.stats()
            assert stats.published == stats.sent + stats.dropped + stats.conflated + stats.queued
            each = [subscriber.subscription.stats() for subscriber in topic.subscribers]
            assert stats.published == sum(one.published for one in each)
            assert stats.sent == sum(one.sent for one in each)
            assert stats.dropped == sum(one.dropped for one in each)
            assert stats.conflated == sum(one.conflated for one in each)
            assert (stats.queued, stats.lagging) == (0, 0)
            assert stats.disconnected == topic.disconnected
            assert topic.reported == topic.dropped
            for name in ("sent", "dropped", "conflated", "disconnected"):
                if getattr(stats, name):
                    self.seen.add(name)


def test_machine(core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each client receives exactly what it must, whatever is done; and all kinds of things were done."""
    monkeypatch.setattr(Machine, "seen", set())
    profile = settings(
        max_examples=max(1, STEPS // STEPS_PER_RUN),
        stateful_step_count=STEPS_PER_RUN,
        deadline=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )
    for _ in range(50):  # chance may leave something out, but not again and again
        run_state_machine_as_test(Machine, settings=profile)
        if Machine.seen == {"sent", "dropped", "conflated", "disconnected"}:
            break
    else:
        pytest.fail(f"in all runs, messages were only {Machine.seen}")


# ---- That the machine would find faults


async def nothing(*_: object) -> None:
    """Stand in for what waits."""


def ignore(*_: object) -> None:
    """Stand in for what takes note of something."""


@pytest.mark.parametrize(
    ("owner", "name", "fault"),
    [
        (Dispatcher, "drained", nothing),
        (Window, "tail", property(lambda _: b"private:private:" * 9)),
        (wsfast.Channel, "_slots_of", lambda *_: set()),
        (Subscription, "report_drops", ignore),
    ],
    ids=["private messages overtake", "windows not held", "nobody excluded", "drops not told"],
)
def test_machine_finds_faults(core: Any, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, fault: Any) -> None:
    """The machine finds each of these faults, and nothing without them."""

    def play() -> None:
        machine = Machine()
        try:
            machine.open([("evented", "plain"), ("evented", "stock")], [(wsfast.DropOldest(max_messages=5), 3)])
            for _ in range(12):
                machine.publish(0, 3000, None, {1}, 2)
                machine.publish(0, 3000, None, set(), 3)
                machine.flush(0)
                machine.send(0, 20)
                machine.send(1, 20)
                machine.publish(0, 100, None, set(), 1)
                machine.turn(2)
                machine.read(0, 3000, 3)
                machine.read(1, 100, 1)
        finally:
            machine.teardown()

    play()
    monkeypatch.setattr(owner, name, fault)
    with pytest.raises((AssertionError, ValueError, zlib.error)):  # what cannot be decoded, neither
        play()
