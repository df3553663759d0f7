"""Whatever a hub is asked for: each client receives exactly what lists say, and the numbers reconcile.

The profile is small. To run about 100,000 steps with each core:

    WSFAST_TEST_MACHINE_STEPS=100000 pytest -s --timeout 0 -o faulthandler_timeout=0 \
        tests/model/test_hub_machine.py
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import deque
from collections.abc import Callable, Coroutine, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

import wsfast
from helpers.inflate import Spec
from helpers.peers import TIMEOUT
from model.test_channel_machine import KIND, POLICIES, connect
from wsfast._subscription import SubscriptionStats
from wsfast.hub.filters import ALL, Filtering, Filters
from wsfast.hub.registry import User
from wsfast.hub.retained import Missed, RetainedMessages
from wsfast.hub.subscriptions import Member
from wsfast.hub.topics import PatternTree
from wsfast.policies import Policy

T = TypeVar("T")

STEPS = int(os.environ.get("WSFAST_TEST_MACHINE_STEPS", "1000"))
STEPS_PER_RUN = 50
MOST_WIRES = 6

Tags = frozenset[str] | None


def frozen(tags: set[str] | None) -> Tags:
    return None if tags is None else frozenset(tags)


WHICH = st.integers(0, MOST_WIRES - 1)
HUB = st.integers(0, 1)
TOPIC = st.sampled_from(["a", "b", "a.x", "a.y", "b.x"])
TOPICS = st.one_of(TOPIC, TOPIC, st.lists(TOPIC, min_size=1, max_size=4).map(tuple))
FILTERS = st.lists(TOPIC | st.sampled_from(["a.*", "*.x", "*", ">", "a.>", "*.*"]), min_size=1, max_size=3)
WANTED = st.sampled_from([None, None, {"x"}, {"y"}, {"x", "z"}]).map(frozen)
TAGS = st.sampled_from([None, None, {"x"}, {"y"}, {"z"}, {"x", "y"}, {"nobody asks for it"}]).map(frozen)
USER = st.sampled_from(["ann", "bob", 7])
SIZE = st.sampled_from([0, 0, 20, 100, 100, 700, 3000, 3000, 20_000])
KEY = st.sampled_from([None, "a", "a", "b", "c"])
ORDER = itertools.count()


def matching(name: str, topic: str) -> bool:
    """Whether a topic has a name, or matches a pattern."""
    wanted, tokens = name.split("."), topic.split(".")
    while wanted and tokens and wanted[0] in ("*", tokens[0]):
        del wanted[0], tokens[0]
    return not wanted and not tokens if wanted != [">"] else bool(tokens)


@dataclass(eq=False)
class Message:
    """What was published to topics, or sent to a user."""

    number: int
    model: Model
    topics: tuple[str, ...]
    about: Hashable
    """For which newer ones replace it; None if none do."""
    prepared: wsfast.PreparedMessage
    users: frozenset[Any] = frozenset()
    """Who does not get it."""
    had: set[Subscriber] = field(default_factory=set)
    """Who got it as newcomers."""
    tags: Tags = None
    refused: set[tuple[Subscriber, str]] = field(default_factory=set)
    """Who did not want it by a name when it was published."""

    def suits(self, wanted: Tags) -> bool:
        """Whether who wants some tags, or everything, wants it."""
        return not wanted or not self.tags or bool(wanted & self.tags)


@dataclass(eq=False)
class Delivery:
    """A message for one connection."""

    message: Message
    subscriber: Subscriber
    held: int = -1
    """When it began to wait."""


@dataclass(eq=False)
class Model:
    """A hub, and what is known of it."""

    hub: wsfast.Hub
    history: int
    last_values: int
    count: int = 0
    present: set[tuple[Any, str | None]] = field(default_factory=set)
    """Of users, where callbacks say that they are."""
    remembered: dict[str, deque[Message]] = field(default_factory=dict)
    values: dict[str, dict[Hashable, Message]] = field(default_factory=dict)
    subscribers: list[Subscriber] = field(default_factory=list)
    """All that there ever were."""
    streams: list[tuple[Any, str, list[Message]]] = field(default_factory=list)
    reported: int = 0
    dropped: int = 0
    disconnected: int = 0

    def remember(self, message: Message, key: Hashable) -> None:
        """Keep a message for newcomers."""
        for topic in message.topics:
            self.remembered.setdefault(topic, deque(maxlen=self.history)).append(message)
            values = self.values.setdefault(topic, {})
            if key is not None:
                values.pop(key, None)
                values[key] = message
                while len(values) > self.last_values:
                    del values[next(iter(values))]


@dataclass(eq=False)
class Subscriber:
    """What a connection has in a hub, and what that must have come to."""

    model: Model
    wire: Line
    member: Any
    filters: dict[str, int] = field(default_factory=dict)
    """How many messages the hub had when each was joined."""
    tags: dict[str, Tags] = field(default_factory=dict)
    """What is wanted by each."""
    user: Any = None
    published: int = 0
    sent: int = 0
    dropped: int = 0
    conflated: int = 0

    def gets(self, topics: Iterable[str]) -> bool:
        return any(matching(name, topic) for name in self.filters for topic in topics)

    def wants(self, message: Message) -> bool:
        """Whether it gets a message, which is published now."""
        names = [name for name in self.filters if any(matching(name, topic) for topic in message.topics)]
        message.refused |= {(self, name) for name in names if not message.suits(self.tags[name])}
        return any(message.suits(self.tags[name]) for name in names)

    def join(self, name: str, tags: Tags) -> set[Message]:
        """Join a topic or a pattern; return what is to be repeated."""
        model = self.model
        repeated: set[Message] = set()
        for topic in model.remembered:
            if matching(name, topic) and not self.gets([topic]):
                for message in {*model.remembered[topic], *model.values[topic].values()}:
                    had = len(message.topics) > 1 and any(
                        (joined < message.number and (self, other) not in message.refused) or self in message.had
                        for other, joined in self.filters.items()
                        if any(matching(other, one) for one in message.topics)
                    )
                    if not had and self.user not in message.users and message.suits(tags):
                        repeated.add(message)
        for message in repeated:
            message.had.add(self)
        self.filters[name] = model.count
        self.tags[name] = tags
        return repeated


class Line:
    """One connection, and what its client must receive."""

    def __init__(self, kind: str, wire: Any) -> None:
        self.kind = kind
        self.connection, self.sock, self.reader = wire.connection, wire.sock, wire.reader
        self.subscribers: dict[Model, Subscriber] = {}
        self.past: list[Subscriber] = []
        self.pending: list[Delivery] = []
        self.queue: list[Delivery] = []
        self.expected: deque[Message] = deque()
        self.closing = False
        self.ended = False
        self.received = 0

    @property
    def lagging(self) -> bool:
        peer = getattr(self.connection, "_wsfast_peer", None)
        return peer is not None and peer.backlog is not None

    def sent(self) -> int:
        """Return how many messages have left, as the hubs tell."""
        return sum(one.member.stats().sent for one in (*self.subscribers.values(), *self.past))

    def taken(self) -> int:
        """Return how many have left since it was looked at last."""
        return self.sent() - sum(one.sent for one in (*self.subscribers.values(), *self.past))

    def waiting(self, subscriber: Subscriber) -> list[Delivery]:
        return [delivery for delivery in self.queue if delivery.subscriber is subscriber]

    def publish(self, subscriber: Subscriber, messages: Iterable[Message]) -> None:
        """Note that messages are for it."""
        for message in messages:
            subscriber.published += 1
            self.pending.append(Delivery(message, subscriber))

    def observe(self) -> None:
        """Note what has left since it was looked at last."""
        taken = self.taken()
        assert 0 <= taken <= len(self.queue)
        for delivery in self.queue[:taken]:
            self.leave(delivery)
        del self.queue[:taken]

    def leave(self, delivery: Delivery) -> None:
        delivery.subscriber.sent += 1
        self.expected.append(delivery.message)

    def flushed(self, lagging: bool) -> None:
        """Note what became of what was published in this tick."""
        pending, self.pending = self.pending, []
        taken = self.taken()
        assert taken == 0 if lagging else 0 <= taken <= len(pending)
        for delivery in pending[:taken]:
            self.leave(delivery)
        for index, delivery in enumerate(pending[taken:], taken):
            if not self.hold(delivery):
                self.disconnect(pending[index:])
                return

    def hold(self, delivery: Delivery) -> bool:
        """Do what the policy is to do; tell whether the connection is not to be closed."""
        subscriber, message = delivery.subscriber, delivery.message
        model = subscriber.model
        policy = model.hub.slow
        delivery.held = next(ORDER)
        if isinstance(policy, wsfast.Conflate) and message.about is not None:
            for index, other in enumerate(self.queue):
                if other.subscriber is subscriber and other.message.about == message.about:
                    self.queue[index] = delivery
                    subscriber.conflated += 1
                    return True
        while waiting := self.waiting(subscriber):
            size = sum(one.message.prepared.size for one in waiting) + message.prepared.size
            if (policy.max_messages is None or len(waiting) < policy.max_messages) and (
                policy.max_bytes is None or size <= policy.max_bytes
            ):
                break
            if isinstance(policy, wsfast.Disconnect):
                model.disconnected += 1
                return False
            subscriber.dropped += 1
            model.dropped += 1
            if isinstance(policy, wsfast.DropNewest):
                return True
            self.queue.remove(min(waiting, key=lambda one: one.held))
        self.queue.append(delivery)
        return True

    def disconnect(self, rest: list[Delivery]) -> None:
        """Note that the connection was closed."""
        self.closing = True
        for delivery in (*self.queue, *rest):
            delivery.subscriber.dropped += 1
        self.queue.clear()
        for subscriber in list(self.subscribers.values()):
            self.left(subscriber)

    def left(self, subscriber: Subscriber) -> None:
        """Note that it has nothing in a hub any more."""
        del self.subscribers[subscriber.model]
        subscriber.filters.clear()
        subscriber.user = None
        self.past.append(subscriber)

    def leave_if_idle(self, subscriber: Subscriber) -> None:
        """Note what there is to be noted once it has left something."""
        if not subscriber.filters and subscriber.user is None and subscriber.model in self.subscribers:
            self.observe()
            subscriber.dropped += len(self.waiting(subscriber))
            self.queue = [delivery for delivery in self.queue if delivery.subscriber is not subscriber]
            self.left(subscriber)

    def check(self) -> None:
        """Compare the numbers."""
        for one in self.subscribers.values():
            waits = [delivery for delivery in (*self.queue, *self.pending) if delivery.subscriber is one]
            stats = SubscriptionStats(one.published, one.sent, one.dropped, one.conflated, len(waits))
            assert one.member.stats() == stats
            assert one.member.active
            assert one.member.lag[:2] == (len(waits), sum(delivery.message.prepared.size for delivery in waits))
            assert set(one.model.hub.topics(self.connection)) == set(one.filters)
        for one in self.past:
            assert one.member.stats() == SubscriptionStats(one.published, one.sent, one.dropped, one.conflated, 0)
            assert not one.member.active

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
        messages = self.reader.messages
        while messages:
            opcode, payload = messages.popleft()
            assert self.expected, f"unexpected {payload!r:.50}"
            prepared = self.expected.popleft().prepared
            assert (opcode, payload) == (prepared.opcode, prepared.data)
            self.received += 1
        if self.reader.closed or not data:
            assert int.from_bytes(self.reader.closed[:2], "big") == 1013
            self.sock.close()
            self.ended = True

    def close(self) -> None:
        self.sock.close()
        self.connection.transport.abort()


class Machine(RuleBasedStateMachine):
    """Connections of all kinds, and hubs of all policies."""

    seen: set[str] = set()  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=asyncio.SelectorEventLoop, debug=False)
        self.wires: list[Line] = []
        self.gone: list[Line] = []
        self.models: list[Model] = []
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
        for model in self.models:
            those = [wire.subscribers[model] for wire in self.wires if model in wire.subscribers]
            assert len(model.hub) == len(those)
            assert set(model.hub.users()) == {one.user for one in those if one.user is not None}
            streamed = {name for _, name, _ in model.streams}
            assert set(model.hub.topics()) == {name for one in those for name in one.filters} | streamed
            for topic in ("a", "b.x"):
                connections = {one.wire.connection for one in those if one.gets([topic])}
                assert set(model.hub.subscribers(topic)) == connections
                assert model.hub.count(topic) == len(connections)
                assert set(model.hub.users(topic)) == {
                    one.user for one in those if one.user is not None and one.gets([topic])
                }

    def now(self, act: Callable[[], object]) -> None:
        """Do something in the event loop, which goes on thereafter no further than it must."""

        async def main() -> None:
            act()

        self.run(main)

    def one(self, which: int) -> Line:
        return self.wires[which % len(self.wires)]

    def model(self, which: int) -> Model:
        return self.models[which % len(self.models)]

    def message(self, model: Model, topics: tuple[str, ...], size: int, about: Hashable) -> Message:
        self.number += 1
        text = f"{self.number}:" + f'{{"topics": "{topics}", "price": {self.number * 7919 % 10007}}} ' * (size // 40)
        model.count += 1
        data = text if self.number % 2 else text.encode()
        return Message(model.count, model, topics, about, wsfast.PreparedMessage(data))

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

    @initialize(
        kinds=st.lists(KIND, min_size=1, max_size=4),
        options=st.lists(
            st.tuples(st.sampled_from(POLICIES), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=2
        ),
        filters=st.lists(FILTERS, min_size=1, max_size=3),
    )
    def open(
        self, kinds: list[tuple[str, str]], options: list[tuple[Policy, int, int]], filters: list[list[str]]
    ) -> None:
        async def main() -> None:
            for each in options:
                self.add_hub(*each)
            for number, kind in enumerate(kinds):
                await self.add(*kind, True)
                for model in self.models:
                    self.subscribe_to(model, self.wires[-1], filters[number % len(filters)], None)

        self.run(main)

    def add_hub(self, policy: Policy, history: int, last_values: int) -> None:
        model: Model

        def on_drop(subscription: wsfast.HubSubscription, count: int) -> None:
            assert isinstance(subscription, wsfast.HubSubscription)
            assert subscription.connection is not None
            model.reported += count

        def on_join(user: Any, topic: str | None) -> None:
            assert (user, topic) not in model.present
            model.present.add((user, topic))

        def on_leave(user: Any, topic: str | None) -> None:
            model.present.remove((user, topic))

        hub = wsfast.Hub(
            slow=policy,
            history=history,
            last_values=last_values,
            on_drop=on_drop,
            on_join=on_join,
            on_leave=on_leave,
        )
        model = Model(hub, history, last_values)
        hub.flush()  # makes it belong to this event loop
        if not self.models:
            self.dispatcher = hub._bind()
            self.spy(self.dispatcher)
        self.models.append(model)

    async def add(self, kind: str, extension: str, small: bool) -> None:
        bits = (9, 12, 15)[(self.number + len(self.wires)) % 3]
        wire = await connect(kind, Spec(kind=extension, bits=bits, client=kind == "client", small=small))
        line = Line(kind, wire)
        if len(self.wires) < MOST_WIRES:
            self.wires.append(line)
            return
        await self.lose_one(self.number % MOST_WIRES)
        self.wires.append(line)

    async def lose_one(self, index: int) -> None:
        """Lose a connection."""
        self.models[0].hub.flush()
        old = self.wires.pop(index)
        self.gone.append(old)
        old.observe()
        subscribers = (*old.subscribers.values(), *old.past)
        for one in old.subscribers.values():  # what waits may still leave
            one.filters.clear()
        old.close()
        await old.connection.connection_lost_waiter
        await asyncio.sleep(0)
        for one in subscribers:
            stats = one.member.stats()
            assert (stats.published, stats.queued) == (one.published, 0)
            assert stats.published == stats.sent + stats.dropped + stats.conflated
            assert not one.member.active

    # ---- Coming and going

    @rule(kind=KIND, small=st.sampled_from([True, True, False]), hubs=st.sets(HUB), filters=FILTERS, tags=WANTED)
    def join(self, kind: tuple[str, str], small: bool, hubs: set[int], filters: list[str], tags: Tags) -> None:
        async def main() -> None:
            self.models[0].hub.flush()
            await self.add(*kind, small)
            for hub in hubs:
                self.subscribe_to(self.model(hub), self.wires[-1], filters, tags)

        self.run(main)

    @rule(which=WHICH)
    def lose(self, which: int) -> None:
        if len(self.wires) > 1:
            self.run(lambda: self.lose_one(which % len(self.wires)))

    def admit(self, model: Model, wire: Line) -> Subscriber:
        """Return what a connection has in a hub, where it has just been admitted."""
        subscriber = wire.subscribers.get(model)
        if subscriber is None:
            member = model.hub._member_of(wire.connection)
            subscriber = wire.subscribers[model] = Subscriber(model, wire, member)
            model.subscribers.append(subscriber)
        return subscriber

    @rule(which=WHICH, hub=HUB, filters=FILTERS, tags=WANTED)
    def subscribe(self, which: int, hub: int, filters: list[str], tags: Tags = None) -> None:
        self.now(lambda: self.subscribe_to(self.model(hub), self.one(which), filters, tags))

    def subscribe_to(self, model: Model, wire: Line, filters: list[str], tags: Tags) -> None:
        if wire.closing:
            return
        subscription = model.hub.subscribe(wire.connection, *filters, tags=tags)
        subscriber = self.admit(model, wire)
        repeated: set[Message] = set()
        for name in filters:
            if name not in subscriber.filters:
                repeated |= subscriber.join(name, tags)
            subscriber.tags[name] = tags
        wire.publish(subscriber, sorted(repeated, key=lambda message: message.number))
        assert subscription.active
        assert subscription.connection is wire.connection
        assert subscription.topics == tuple(filters)

    @rule(which=WHICH, hub=HUB, filters=st.just([]) | FILTERS)
    def unsubscribe(self, which: int, hub: int, filters: list[str]) -> None:
        def act() -> None:
            wire, model = self.one(which), self.model(hub)
            subscriber = wire.subscribers.get(model)
            if subscriber is not None:
                for name in filters or list(subscriber.filters):
                    subscriber.filters.pop(name, None)
            model.hub.unsubscribe(wire.connection, *filters)
            if subscriber is not None:
                wire.leave_if_idle(subscriber)

        self.now(act)

    @rule(which=WHICH, hub=HUB, user=USER)
    def register(self, which: int, hub: int, user: Any) -> None:
        def act() -> None:
            wire, model = self.one(which), self.model(hub)
            if wire.closing:
                return
            subscriber = wire.subscribers.get(model)
            if subscriber is not None and subscriber.user not in (None, user):
                with pytest.raises(RuntimeError, match="is registered for user"):
                    model.hub.register(wire.connection, user)
                return
            registration = model.hub.register(wire.connection, user)
            assert (registration.user, registration.connection) == (user, wire.connection)
            self.admit(model, wire).user = user

        self.now(act)

    @rule(which=WHICH, hub=HUB)
    def unregister(self, which: int, hub: int) -> None:
        def act() -> None:
            wire, model = self.one(which), self.model(hub)
            subscriber = wire.subscribers.get(model)
            if subscriber is None or subscriber.user is None:
                return
            registration = model.hub.register(wire.connection, subscriber.user)
            subscriber.user = None
            registration.unregister()
            wire.leave_if_idle(subscriber)

        self.now(act)

    # ---- Publishing

    @rule(
        hub=HUB,
        topics=TOPICS,
        size=SIZE,
        key=KEY,
        excluded=st.sets(WHICH, max_size=2),
        users=st.sets(USER, max_size=1),
        times=st.sampled_from([1, 1, 3, 8]),
        tags=TAGS,
    )
    def publish(
        self,
        hub: int,
        topics: str | tuple[str, ...],
        size: int,
        key: Hashable,
        excluded: set[int],
        users: set[Any],
        times: int,
        tags: Tags = None,
    ) -> None:
        def act() -> None:
            wires = {self.one(which) for which in excluded}
            model = self.model(hub)
            for _ in range(times):
                message = self.note(model, topics, size, key, wires, users, tags)
                options: dict[str, Any] = {"exclude": [wire.connection for wire in wires], "exclude_users": users}
                model.hub.publish(topics, message.prepared, key=key, tags=tags, **options)

        self.now(act)

    def note(
        self,
        model: Model,
        topics: str | tuple[str, ...],
        size: int,
        key: Hashable,
        excluded: Iterable[Line] = (),
        users: Iterable[Any] = (),
        tags: Tags = None,
    ) -> Message:
        """Note that a message is published."""
        names = (topics,) if isinstance(topics, str) else tuple(dict.fromkeys(topics))
        message = self.message(model, names, size, None if key is None else (names, key))
        message.users, message.tags = frozenset(users), tags
        for wire in self.wires:
            subscriber = wire.subscribers.get(model)
            if subscriber is None:
                continue
            wants = subscriber.wants(message)
            if wire not in excluded and subscriber.user not in users and wants:
                wire.publish(subscriber, [message])
        for _, name, messages in model.streams:
            if any(matching(name, topic) for topic in names):
                messages.append(message)
        model.remember(message, key)
        return message

    @rule(
        hub=HUB,
        items=st.lists(st.tuples(TOPICS, SIZE, KEY), max_size=8),
        bad=st.sampled_from([None, None, None, ("a.*", ""), ("a", 1), ("a", "", [])]),
    )
    def publish_many(self, hub: int, items: list[Any], bad: Any) -> None:
        def act() -> None:
            model = self.model(hub)
            if bad is not None:
                with pytest.raises((TypeError, ValueError)):
                    model.hub.publish_many([*((topics, "never seen", key) for topics, _, key in items), bad])
                return
            model.hub.publish_many(
                [(topics, self.note(model, topics, size, key).prepared, key) for topics, size, key in items]
            )

        self.now(act)

    @rule(hub=HUB, user=USER, size=SIZE, key=KEY, times=st.sampled_from([1, 1, 5]))
    def send(self, hub: int, user: Any, size: int, key: Hashable, times: int) -> None:
        def act() -> None:
            model = self.model(hub)
            for _ in range(times):
                message = self.message(model, (), size, None if key is None else ("user", user, key))
                count = 0
                for wire in self.wires:
                    subscriber = wire.subscribers.get(model)
                    if subscriber is not None and subscriber.user == user:
                        wire.publish(subscriber, [message])
                        count += 1
                assert model.hub.send(user, message.prepared, key=key) == count

        self.now(act)

    @rule(hub=HUB, name=TOPIC | st.sampled_from(["a.*", ">"]))
    def stream(self, hub: int, name: str) -> None:
        def act() -> None:
            model = self.model(hub)
            if len(model.streams) < 3:
                model.streams.append((model.hub.stream(name), name, []))

        self.now(act)

    @rule(hub=HUB)
    def end_stream(self, hub: int) -> None:
        async def main() -> None:
            model = self.model(hub)
            if model.streams:
                stream, _, messages = model.streams.pop(0)
                stream.close()
                streamed = [message async for message in stream]
                prepared = [message.prepared for message in messages]
                assert streamed == [one.data.decode() if one.text else one.data for one in prepared]

        self.run(main)

    @rule(hub=HUB, topic=TOPIC, key=KEY)
    def forget(self, hub: int, topic: str, key: Hashable) -> None:
        def act() -> None:
            model = self.model(hub)
            last = {
                one: message.prepared.data.decode() if message.prepared.text else message.prepared.data
                for one, message in model.values.get(topic, {}).items()
            }
            assert model.hub.last(topic) == last
            assert list(model.hub.last(topic)) == list(last)
            model.hub.forget(topic, key=key)
            if key is None:
                model.remembered.pop(topic, None)
                model.values.pop(topic, None)
            elif topic in model.values:
                model.values[topic].pop(key, None)

        self.now(act)

    @rule(hub=HUB)
    def flush(self, hub: int) -> None:
        self.now(self.model(hub).hub.flush)

    @rule(turns=st.integers(1, 4))
    def turn(self, turns: int) -> None:
        async def main() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.run(main)

    @rule(which=WHICH, size=st.sampled_from([1, 100, 3000, 50_000]), times=st.integers(1, 3))
    def read(self, which: int, size: int, times: int) -> None:
        async def main() -> None:
            for _ in range(times):
                self.check()
                self.one(which).read(size)
                await asyncio.sleep(0)

        self.run(main)

    @rule()
    def presence(self) -> None:
        """Compare who is where, once callbacks had time to tell."""

        async def main() -> None:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for model in self.models:
                assert model.present == {
                    (one.user, name)
                    for wire in self.wires
                    if (one := wire.subscribers.get(model)) is not None and one.user is not None
                    for name in (None, *one.filters)
                }

        self.run(main)

    # ---- The end

    def teardown(self) -> None:
        async def drain() -> None:
            deadline = asyncio.get_running_loop().time() + TIMEOUT
            while any(
                not wire.ended and (wire.closing or wire.pending or wire.queue or wire.expected) for wire in self.wires
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
            for wire in (*self.wires, *self.gone):
                await wire.connection.connection_lost_waiter
            await asyncio.sleep(0)
            await asyncio.sleep(0)

        def empty(model: Model) -> None:
            hub = model.hub
            assert (hub._subscriptions, hub._registry.topics, hub._registry.users) == ({}, {}, {})
            assert hub._registry.pattern_count == 0
            assert hub._registry.patterns._root.children == {}
            assert model.present == set()
            for topic in list(model.remembered):
                hub.forget(topic)
            assert [topic for topic in hub._retained.topics.values() if topic.history or topic.values] == []

        try:
            if self.models:
                self.runner.run(drain())
                self.presence()
                for hub in 0, 0, 0, 1, 1, 1:
                    self.end_stream(hub)
        finally:
            self.runner.run(clear())
            self.runner.close()
        for model in self.models:
            empty(model)

    def compare(self) -> None:
        """Compare the numbers of hubs, and what has arrived."""
        for wire in self.wires:
            assert not wire.expected or wire.closing
            if not wire.closing:
                assert wire.received == wire.sent()
        for model in self.models:
            stats = model.hub.stats()
            assert stats.published == stats.sent + stats.dropped + stats.conflated + stats.queued
            each = [subscriber.member.stats() for subscriber in model.subscribers]
            assert stats.messages == model.count
            assert stats.published == sum(one.published for one in each)
            assert stats.sent == sum(one.sent for one in each)
            assert stats.dropped == sum(one.dropped for one in each)
            assert stats.conflated == sum(one.conflated for one in each)
            assert (stats.queued, stats.lagging) == (0, 0)
            assert stats.disconnected == model.disconnected
            assert model.reported == model.dropped
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


def ignore(*_: object, **__: object) -> None:
    """Stand in for what takes note of something."""


def never(*_: object, **__: object) -> bool:
    """Stand in for what says whether something is the case."""
    return False


def always(*_: object, **__: object) -> bool:
    """Stand in for what says whether something is the case."""
    return True


def nothing(*_: object) -> list[Any]:
    """Stand in for what finds something."""
    return []


@pytest.mark.parametrize(
    ("owner", "name", "fault"),
    [
        (Member, "join", lambda self, group, joining, _=None: self.groups.setdefault(group, joining)),
        (Member, "leave", lambda self, group: self.groups.pop(group)),
        (Missed, "_has_got", never),
        (RetainedMessages, "replay", nothing),
        (User, "enter", always),
        (PatternTree, "matching", nothing),
        (Filters, "mask_of", lambda self, tags: ALL),
        (Filtering, "lets", always),
        (Filtering, "let", always),
    ],
    ids=[
        *("overlaps counted", "left counted", "repeated", "nothing repeated", "told twice", "patterns not seen"),
        *("nothing filtered", "left out counted", "not repeated"),
    ],
)
def test_machine_finds_faults(core: Any, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, fault: Any) -> None:
    """The machine finds each of these faults, and nothing without them."""

    def play() -> None:
        machine = Machine()
        try:
            kinds = [("evented", "plain"), ("stock", "stock")]
            machine.open(kinds, [(wsfast.DropOldest(max_messages=5), 3, 2)], [["a", "*"], ["b.x"]])
            for number in range(3):
                machine.register(0, 0, "ann")
                machine.register(1, 0, "ann")
                machine.publish(0, ("a", "b"), 100, "a", {1}, set(), 2)
                machine.publish(0, "b.x", 3000, None, set(), set(), 3)
                machine.subscribe(1, 0, ["*"], frozenset({"x"}))
                machine.publish(0, ("a.x", "b"), 100, None, {1}, set(), 1, frozenset({"y"}))
                machine.publish(0, ("a.x", "b"), 100, None, set(), set(), 1, frozenset({"y"}))
                machine.publish_many(0, [("a", 20, "b"), (("b.x", "a.y"), 20, None)], None)
                machine.flush(0)
                machine.subscribe(1, 0, ["a", "a.*"])
                machine.subscribe(1, 0, ["b", "a.y"])
                machine.send(0, "ann", 100, None, 2)
                machine.turn(2)
                machine.unsubscribe(number, 0, ["a"])
                machine.presence()
                machine.read(0, 3000, 3)
                machine.publish(0, ("b", "a.x"), 100, None, set(), set(), 1, frozenset({"y"}))
                machine.subscribe(1, 0, ["*"])
                machine.subscribe(1, 0, ["a.x"])
                machine.unsubscribe(1, 0, [])
                machine.unregister(1, 0)
                machine.presence()
                machine.subscribe(1, 0, ["b.x"])
        finally:
            machine.teardown()

    play()
    monkeypatch.setattr(owner, name, fault)
    with pytest.raises((AssertionError, KeyError)):
        play()
