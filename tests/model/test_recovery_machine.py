"""Clients that come back: each gets exactly what it missed, or is told that it does not. The judge is a list per topic.

The profile is small. To run about 40,000 steps with each core:

    WSFAST_TEST_MACHINE_STEPS=40000 pytest -s --timeout 0 -o faulthandler_timeout=0 \
        tests/model/test_recovery_machine.py
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

import wsfast
import wsfast._backlog
from model.test_hub_machine import TAGS, WANTED, Tags, matching
from wsfast import History, Position
from wsfast.hub import retained
from wsfast.hub.retained import Missed, RetainedMessages, RetainedTopic

STEPS = int(os.environ.get("WSFAST_TEST_MACHINE_STEPS", "1000"))
STEPS_PER_RUN = 50
PEOPLE = 3

WHO = st.integers(0, PEOPLE - 1)
NAMES = ["a", "b", "a.x", "a.y"]
TOPIC = st.sampled_from(NAMES)
TOPICS = st.one_of(TOPIC, TOPIC, st.lists(TOPIC, min_size=1, max_size=3).map(tuple))
FILTERS = st.lists(TOPIC | TOPIC | st.sampled_from(["a.*", ">"]), min_size=1, max_size=3, unique=True)
USER = st.sampled_from(["ann", "bob"])


@dataclass(eq=False)
class Message:
    """What was published."""

    number: int
    topics: tuple[str, ...]
    data: str | bytes
    key: Hashable
    users: frozenset[Any]
    time: float
    size: int
    offsets: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By topic, which numbering of the topic, and the place in it."""
    had: set[Line] = field(default_factory=set)
    tags: Tags = None
    refused: set[tuple[Line, str]] = field(default_factory=set)
    """Who did not want it by a name when it was published."""
    excluded: set[Line] = field(default_factory=set)

    def suits(self, wanted: Tags) -> bool:
        """Whether who wants some tags, or everything, wants it."""
        return not wanted or not self.tags or bool(wanted & self.tags)


@dataclass(eq=False)
class Topic:
    """All messages of a topic, and where each of its numberings begins."""

    log: list[Message] = field(default_factory=list)
    numbering: int = 0
    offset: int = 0
    epoch: str | None = None
    """As the hub says; None if it was not asked since the numbering began."""
    cut: int = 0
    """How many of the messages were forgotten on request."""
    floor: int = 0
    """What comes after this one of the hub's messages can be known completely."""
    seen: float = 0.0
    values: dict[Hashable, Message] = field(default_factory=dict)


class Line:
    """One connection of a person, as a sink."""

    def __init__(self) -> None:
        self.stalled = False
        self.open = True
        self.data = b""
        self.expected: list[tuple[Message | None, str | bytes]] = []
        self.filters: dict[str, int] = {}
        self.tags: dict[str, Tags] = {}
        self.filtered = False
        self.user: Any = None
        self.starts: dict[str, tuple[int, int]] = {}
        """Positions at the moment of subscribing."""
        self.begins: dict[str, int] = {}
        """For topics that were recovered, the last of the hub's messages that it had before."""
        self.connection = wsfast.attach(self)

    def write(self, data: bytes) -> None:
        assert self.open
        self.data += data

    def writable(self) -> bool:
        return not self.stalled

    def close(self, code: int, reason: str) -> None:
        self.open = False

    def received(self) -> list[str | bytes]:
        """Return the payloads that have arrived."""
        messages: list[str | bytes] = []
        data = self.data
        while data:
            size, begin = data[1], 2
            if size == 126:
                size, begin = int.from_bytes(data[2:4]), 4
            payload = data[begin : begin + size]
            assert len(payload) == size < 65536
            messages.append(payload.decode() if data[0] & 15 == 1 else payload)
            data = data[begin + size :]
        return messages

    def gets(self, topic: str) -> bool:
        return any(matching(name, topic) for name in self.filters)

    def wants(self, message: Message) -> bool:
        """Whether it gets a message, which is published now."""
        names = [name for name in self.filters if any(matching(name, topic) for topic in message.topics)]
        message.refused |= {(self, name) for name in names if not message.suits(self.tags[name])}
        return any(message.suits(self.tags[name]) for name in names)

    def got(self, message: Message, topics: Iterable[str]) -> bool:
        """Whether it got a message, when it was published, by a name that matches one of some topics."""
        return any(
            joined < message.number and (self, name) not in message.refused
            for name, joined in self.filters.items()
            if any(matching(name, topic) for topic in topics)
        )


class Clock:
    """The time, as far as the hub can tell."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


CLOCK = Clock()


class Machine(RuleBasedStateMachine):
    """People who come and go, and one hub."""

    seen: set[str] = set()  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=asyncio.SelectorEventLoop, debug=False)
        self.topics: dict[str, Topic] = {}
        self.lines: list[Line | None] = [None] * PEOPLE
        self.positions: list[dict[str, tuple[int, int]]] = [{} for _ in range(PEOPLE)]
        """What each person knows of the past: by topic, the numbering and the place in it."""
        self.epochs: dict[tuple[str, int], str] = {}
        self.totals: list[int | None] = [None] * PEOPLE
        self.count = 0
        self.forgotten = 0
        self.tick = 0

    # ---- How it is done

    def now(self, act: Callable[[], object]) -> None:
        async def main() -> None:
            act()
            self.look()

        self.runner.run(main())

    def look(self) -> None:
        """Compare what has arrived, and note the topics that the hub has forgotten."""
        for line in self.lines:
            if line is not None:
                got, expected = line.received(), [data for _, data in line.expected]
                assert got == expected[: len(got)], (got, expected)
        for name, topic in list(self.topics.items()):
            known = self.hub._retained.topics.get(name)
            if known is None:
                assert not any(line is not None and name in line.filters for line in self.lines)
                assert (self.kept(topic), topic.values) == ([], {})
                assert self.idles(name) or topic.cut == len(topic.log)
                self.forget_topic(name)

    def idles(self, name: str) -> bool:
        return self.topics[name].seen + self.idle < CLOCK.now

    def forget_topic(self, name: str) -> None:
        topic = self.topics.pop(name)
        self.forgotten = max(self.forgotten, topic.floor, *(message.number for message in topic.log), 0)
        self.seen.add("forgotten")

    def topic(self, name: str) -> Topic:
        """Return a topic, which may begin now."""
        if name not in self.topics:
            self.tick += 1
            self.topics[name] = Topic(numbering=self.tick, floor=self.forgotten)
        self.topics[name].seen = CLOCK.now
        return self.topics[name]

    def kept(self, topic: Topic) -> list[Message]:
        """Return what the bounds of the history leave of a topic: the longest end of its list."""
        found: list[Message] = []
        size = 0
        for message in reversed(topic.log[topic.cut :]):
            size += message.size
            if len(found) == self.bounds.messages:
                break
            if found and self.bounds.bytes is not None and size > self.bounds.bytes:
                break
            if self.bounds.seconds is not None and message.time + self.bounds.seconds < CLOCK.now:
                break
            found.insert(0, message)
        return found

    def epoch(self, name: str) -> str:
        """Return the epoch of a topic, which must be the same until there is a reason."""
        topic = self.topic(name)
        position = self.hub.position(name)
        assert position.offset == topic.offset
        epoch = self.epochs.setdefault((name, topic.numbering), position.epoch)
        assert position.epoch == epoch
        assert len(set(self.epochs.values())) == len(self.epochs)
        return epoch

    @initialize(
        messages=st.sampled_from([0, 1, 3, 6, 20]),
        size=st.sampled_from([None, None, 30, 100]),
        seconds=st.sampled_from([None, 10.0, 10.0]),
        last_values=st.sampled_from([0, 0, 2]),
        envelope=st.booleans(),
    )
    def open(self, messages: int, size: int | None, seconds: float | None, last_values: int, envelope: bool) -> None:
        self.bounds = History(messages, bytes=size, seconds=seconds)
        self.idle = retained.IDLE if seconds is None else seconds
        self.last_values = last_values
        self.envelope = envelope

        async def main() -> None:
            self.hub = wsfast.Hub(
                slow=wsfast.Disconnect(max_messages=None, max_bytes=None),
                history=self.bounds,
                last_values=last_values,
                envelope=envelope,
            )
            self.hub.flush()

        self.runner.run(main())

    # ---- Publishing

    @rule(
        topics=TOPICS,
        size=st.sampled_from([0, 0, 10, 40, 200]),
        key=st.sampled_from([None, None, "k", "l", "m"]),
        excluded=st.sets(WHO, max_size=1),
        users=st.sets(USER, max_size=1),
        times=st.sampled_from([1, 1, 2, 5]),
        flush=st.booleans(),
        tags=TAGS,
    )
    def publish(
        self,
        topics: str | tuple[str, ...],
        size: int,
        key: Hashable,
        excluded: set[int],
        users: set[Any],
        times: int,
        flush: bool,
        tags: Tags = None,
    ) -> None:
        def act() -> None:
            names = (topics,) if isinstance(topics, str) else tuple(dict.fromkeys(topics))
            if self.envelope and any(name in self.topics and self.idles(name) for name in names):
                names = names[:1]  # publishing to one topic may forget the next one
            lines = [line for one in excluded if (line := self.lines[one]) is not None]
            for _ in range(times):
                self.tick += 1
                text = f"{self.tick}" + "x" * size
                data = text if self.tick % 2 else text.encode()
                if self.envelope:
                    for name in names:
                        self.note((name,), data, key, lines, users, tags)
                else:
                    self.note(names, data, key, lines, users, tags)
                connections = [line.connection for line in lines]
                self.hub.publish(names, data, key=key, exclude=connections, exclude_users=users, tags=tags)
            if flush:
                self.hub.flush()

        if self.numbered or key is None or not self.last_values:
            self.now(act)

    @property
    def numbered(self) -> bool:
        return self.envelope or self.bounds.messages > 0

    def note(
        self,
        names: tuple[str, ...],
        data: str | bytes,
        key: Hashable,
        excluded: list[Line],
        users: Iterable[Any],
        tags: Tags,
    ) -> None:
        """Note that a message is published."""
        self.count += 1
        message = Message(self.count, names, data, key, frozenset(users), CLOCK.now, len(data), tags=tags)
        message.excluded = set(excluded)
        if self.numbered:
            for name in names:
                topic = self.topic(name)
                topic.offset += 1
                topic.seen = CLOCK.now
                message.offsets[name] = topic.numbering, topic.offset
                if self.envelope:
                    message.data = envelope(data, name, topic.offset)
                    message.size = len(message.data.encode() if isinstance(message.data, str) else message.data)
                topic.log.append(message)
                if key is not None and self.last_values:
                    topic.values.pop(key, None)
                    topic.values[key] = message
                    if len(topic.values) > self.last_values:
                        del topic.values[next(iter(topic.values))]
        for line in self.lines:
            if line is None:
                continue
            wants = line.wants(message)
            if line not in excluded and (line.user is None or line.user not in users) and wants:
                line.expected.append((message, message.data))

    # ---- Coming and going

    @rule(who=WHO, user=st.none() | USER)
    def come(self, who: int, user: Any) -> None:
        """Connect; the rest is up to other rules."""

        def act() -> None:
            if self.lines[who] is None:
                line = self.lines[who] = Line()
                if user is not None:
                    self.hub.register(line.connection, user)
                    line.user = user

        self.now(act)

    @rule(
        who=WHO,
        filters=FILTERS,
        user=st.none() | USER,
        age=st.sampled_from([0, 0, 0, 1, 3]),
        odd=st.integers(0, 30),
        tags=WANTED,
    )
    def subscribe(self, who: int, filters: list[str], user: Any, age: int, odd: int, tags: Tags = None) -> None:
        """Subscribe from where the person was, as far as that is known; sometimes from before, or from nowhere."""

        def act() -> None:
            line = self.lines[who]
            if line is None:
                line = self.lines[who] = Line()
                if user is not None:
                    self.hub.register(line.connection, user)
                    line.user = user
            since: dict[str, Any] = {}
            known: dict[str, tuple[int, int]] = {}
            for name in filters:
                where = self.where(who, name)
                if where is not None and (name, where[0]) in self.epochs:
                    place = where[0], max(0, where[1] - age)
                    if odd == 1:
                        place = where[0], where[1] + 1000
                    known[name] = place
                    since[name] = Position(self.epochs[name, place[0]], place[1])
                    if odd == 2:
                        known[name] = -1, place[1]
                        since[name] = "0123456789abcdef", place[1]
            self.join(line, filters, since, known, tags)

        self.now(act)

    @rule(who=WHO, filters=FILTERS, odd=st.integers(0, 10), tags=WANTED)
    def subscribe_since_all(self, who: int, filters: list[str], odd: int, tags: Tags = None) -> None:
        """Come back by one position for everything, as event streams do."""

        def act() -> None:
            total = self.totals[who]
            if self.lines[who] is not None or total is None or not self.numbered:
                return
            line = self.lines[who] = Line()
            position = self.hub.position()
            assert position.offset == self.count
            since = Position(position.epoch, total if odd else self.count + 1)
            self.join(line, filters, since, {}, tags)

        self.now(act)

    def where(self, who: int, name: str) -> tuple[int, int] | None:
        """Return how far a person has received a topic."""
        line = self.lines[who]
        if line is None:
            return self.positions[who].get(name)
        place = line.starts.get(name)
        if place is not None:
            for message, _ in line.expected[: len(line.received())]:
                if message is not None and name in message.offsets:
                    place = max(place, message.offsets[name])
        return place

    def join(self, line: Line, filters: list[str], since: Any, known: dict[str, tuple[int, int]], tags: Tags) -> None:
        """Subscribe, and work out from the lists what must come of it."""
        subscription = self.hub.subscribe(line.connection, *filters, since=since or None, tags=tags)
        found: dict[int, Message] = {}
        recovered = set()
        for name in sorted(filters, key=lambda name: name not in since) if isinstance(since, dict) else filters:
            if isinstance(since, dict):
                missed = self.missed(name, known[name]) if name in since else None
            else:
                missed = self.missed_since(name, since.offset)
            if missed is not None and self.continues(line, missed, found, tags):
                recovered.add(name)
                self.seen.add("recovered")
                for other, messages in missed.items():
                    if not line.gets(other):
                        line.begins[other] = messages[0].number - 1 if messages else self.count
                        self.repeat(line, messages, found, tags)
                        if messages:
                            self.seen.add("recovered with messages")
                        if not all(message.suits(tags) for message in messages):
                            self.seen.add("recovered by tags")
                    else:
                        self.has_all(line, messages, found, tags)
            elif name not in line.filters:
                if since and (not isinstance(since, dict) or name in since):
                    self.seen.add("not recovered")
                for other, topic in list(self.topics.items()):
                    if matching(name, other) and not line.gets(other):
                        line.begins.pop(other, None)
                        self.repeat(line, [*topic.values.values(), *self.kept(topic)], found, tags)
            line.filters.setdefault(name, self.count)
            line.tags[name] = tags
            line.filtered |= tags is not None
        line.expected += [(found[number], found[number].data) for number in sorted(found)]
        assert subscription.recovered_topics == recovered
        assert subscription.recovered == (
            bool(since) and len(recovered) == len(filters if isinstance(since, Position) else since)
        )
        if self.numbered:
            names = [name for name in filters if name in NAMES]
            assert subscription.positions == {
                name: Position(self.epoch(name), self.topic(name).offset) for name in names
            }
            for name in names:
                line.starts[name] = self.topic(name).numbering, self.topic(name).offset
        else:
            assert subscription.positions == {}
        subscription.send(f"control {self.count}")
        line.expected.append((None, f"control {self.count}"))

    def missed(self, name: str, place: tuple[int, int]) -> dict[str, list[Message]] | None:
        """Return what comes after a place in a numbering; None if not all of it is known."""
        topic = self.topics.get(name)
        if topic is None or topic.numbering != place[0] or place[1] > topic.offset:
            return None
        messages = [one for one in topic.log if one.offsets[name][0] == place[0] and one.offsets[name][1] > place[1]]
        return {name: messages} if set(messages) <= set(self.kept(topic)) else None

    def missed_since(self, name: str, number: int) -> dict[str, list[Message]] | None:
        """Return what comes after one of the hub's messages; None if not all of it is known."""
        if number > self.count:
            return None
        found = {}
        for other, topic in self.topics.items():
            if matching(name, other):
                found[other] = [message for message in topic.log if message.number > number]
                if topic.floor > number or not set(found[other]) <= set(self.kept(topic)):
                    return None
        if self.forgotten > number and (name not in NAMES or not found):
            return None
        return found

    def continues(self, line: Line, missed: dict[str, list[Message]], found: dict[int, Message], tags: Tags) -> bool:
        """Whether a connection that gets some of these topics already got all that was missed, or is sent it now."""
        for topic, messages in missed.items():
            if not line.gets(topic):
                continue
            if line.begins.get(topic, 0) > (messages[0].number - 1 if messages else self.count):
                return False
            if line.filtered and not all(
                line.got(one, [topic]) or one.number in found or self.had(line, one)
                for one in messages
                if one.suits(tags) and (line.user is None or line.user not in one.users)
            ):
                self.seen.add("lacks")
                return False
        return True

    def has_all(self, line: Line, messages: list[Message], found: dict[int, Message], tags: Tags) -> None:
        """Check that nothing of what a connection has missed, as far as it asked for that, was kept from it."""
        if line.filtered:
            expected = {message for message, _ in line.expected} | set(found.values())
            for one in messages:
                assert one in expected or not one.suits(tags) or line in one.excluded or line.user in one.users

    def had(self, line: Line, message: Message) -> bool:
        """Whether a connection has got a message to several topics, by one that it still gets."""
        return len(message.topics) > 1 and (
            line.got(message, message.topics) or (line in message.had and any(map(line.gets, message.topics)))
        )

    def repeat(self, line: Line, messages: list[Message], found: dict[int, Message], tags: Tags) -> None:
        """Note that messages are sent again, as far as they were not."""
        for message in messages:
            if line.user is not None and line.user in message.users:
                continue
            if not self.had(line, message) and message.suits(tags):
                message.had.add(line)
                found[message.number] = message

    @rule(who=WHO, filters=FILTERS)
    def unsubscribe(self, who: int, filters: list[str]) -> None:
        def act() -> None:
            line = self.lines[who]
            if line is None or line.stalled:
                return
            known = {name: place for name in filters if (place := self.where(who, name)) is not None}
            self.hub.flush()
            self.hub.unsubscribe(line.connection, *filters)
            self.positions[who] |= known
            for name in filters:
                line.filters.pop(name, None)
                line.starts.pop(name, None)

        self.now(act)

    @rule(who=WHO)
    def stall(self, who: int) -> None:
        """Have a client read nothing any more."""
        line = self.lines[who]
        if line is not None:
            line.stalled = True

    @rule(who=WHO, flush=st.booleans())
    def go(self, who: int, flush: bool) -> None:
        """Lose a connection, and what was on its way."""

        def act() -> None:
            line = self.lines[who]
            if line is None:
                return
            if flush:
                self.hub.flush()
                self.look()
                assert line.stalled or len(line.received()) == len(line.expected)
            places = {name: place for name in NAMES if (place := self.where(who, name)) is not None}
            got = len(line.received())
            rest = [message.number for message, _ in line.expected[got:] if message is not None]
            self.positions[who] |= places
            # Up to what comes after everything that it did not get.
            self.totals[who] = min(rest) - 1 if rest else self.count
            line.connection.transport.abort()
            self.lines[who] = None

        self.now(act)

    @rule(
        who=WHO,
        user=st.none() | USER,
        topics=st.lists(TOPICS, max_size=6),
        filters=FILTERS,
        age=st.sampled_from([0, 0, 0, 1]),
        users=st.sets(USER, max_size=1),
        by=st.sampled_from(["topics", "topics", "total"]),
        tags=WANTED,
    )
    def be_absent(
        self,
        who: int,
        user: Any,
        topics: list[Any],
        filters: list[str],
        age: int,
        users: set[Any],
        by: str,
        tags: Tags = None,
    ) -> None:
        """Lose a connection, miss some messages, and come back for the same topics and others."""
        line = self.lines[who]
        names = [] if line is None else list(line.filters)
        self.go(who, True)
        for some in topics:
            self.publish(some, 0, None, set(), users, 1, False, frozenset("x" if len(some) > 1 else "y"))
        if by == "total":
            self.subscribe_since_all(who, list(dict.fromkeys(names + filters)), 1, tags)
        else:
            self.subscribe(who, list(dict.fromkeys(names + filters)), user, age, 0, tags)

    # ---- What happens to topics

    @rule(topic=TOPIC, key=st.sampled_from([None, None, "k"]))
    def forget(self, topic: str, key: Hashable) -> None:
        def act() -> None:
            self.hub.forget(topic, key=key)
            known = self.topics.get(topic)
            if known is not None and key is not None:
                known.values.pop(key, None)
            elif known is not None:
                known.values.clear()
                known.cut = len(known.log)

        self.now(act)

    @rule(topic=TOPIC)
    def interrupt(self, topic: str) -> None:
        """Report that messages of other processes are missing."""

        def act() -> None:
            self.hub.restart(topic)
            if not self.numbered:
                return
            known = self.topics.get(topic)
            if known is None:
                self.forgotten = max(self.forgotten, self.count + 1)
            else:
                self.tick += 1
                known.numbering, known.offset, known.floor = self.tick, 0, max(known.floor, self.count + 1)
                if self.envelope:  # those in the history have offsets of the numbering before
                    known.cut = len(known.log)

        self.now(act)

    @rule(seconds=st.sampled_from([1.0, 6.0, 11.0, 400.0]))
    def wait(self, seconds: float) -> None:
        CLOCK.now += seconds

    @rule()
    def flush(self) -> None:
        self.now(lambda: self.hub.flush())

    @rule(topic=TOPIC)
    def ask(self, topic: str) -> None:
        def act() -> None:
            if self.numbered:
                self.epoch(topic)
                self.topic(topic)
            else:
                with pytest.raises(RuntimeError, match="history"):
                    self.hub.position(topic)

        self.now(act)

    # ---- The end

    def teardown(self) -> None:
        async def main() -> None:
            self.hub.flush()
            for line in self.lines:
                if line is not None:
                    if not line.stalled:
                        assert line.received() == [data for _, data in line.expected]
                    line.connection.transport.abort()
            await asyncio.sleep(0)
            assert len(self.hub) == 0

        try:
            if hasattr(self, "hub"):
                self.runner.run(main())
        finally:
            self.runner.close()


def envelope(data: str | bytes, topic: str, offset: int) -> str | bytes:
    """Return a message in the envelope that the documentation describes."""
    if isinstance(data, str):
        return json.dumps([topic, offset, data], separators=(",", ":"))
    head = json.dumps([topic, offset], separators=(",", ":")).encode()
    return len(head).to_bytes(2) + head + data


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the hub ask our clock."""
    monkeypatch.setattr(CLOCK, "now", 1000.0)
    for module in retained, wsfast._backlog:
        monkeypatch.setattr(module, "time", CLOCK)


PROFILE = settings(
    max_examples=max(1, STEPS // STEPS_PER_RUN),
    stateful_step_count=STEPS_PER_RUN,
    deadline=None,
    derandomize=False,
    suppress_health_check=list(HealthCheck),
)
EVENTS = {"recovered", "recovered with messages", "not recovered", "forgotten", "recovered by tags", "lacks"}


def test_machine(core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens, clients get what the lists say; and all kinds of things happened."""
    monkeypatch.setattr(Machine, "seen", set())
    for _ in range(50):  # chance may leave something out, but not again and again
        run_state_machine_as_test(Machine, settings=PROFILE)
        if Machine.seen == EVENTS:
            break
    else:
        pytest.fail(f"in all runs, there was only {Machine.seen}")


# ---- That the machine would find faults


def ignore(*_: object, **__: object) -> None:
    """Stand in for what takes note of something."""


def never(*_: object) -> bool:
    """Stand in for what says whether something is the case."""
    return False


@pytest.mark.parametrize(
    ("owner", "name", "fault"),
    [
        (RetainedMessages, "restart", ignore),
        (RetainedMessages, "_trim", ignore),
        (RetainedTopic, "drop", lambda topic: topic.history.popleft()),
        (RetainedTopic, "last", lambda topic, count: [message for _, message in topic.history][:count]),
        (Missed, "gets", never),
        (Missed, "_has_got", never),
        (Missed, "lacks", never),
    ],
    ids=["gaps not told", "no bounds", "partial", "wrong messages", "history again", "repeated", "filters forgotten"],
)
def test_machine_finds_faults(core: Any, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, fault: Any) -> None:
    """The machine finds each of these faults, and nothing without them."""

    def play() -> None:
        machine = Machine()
        try:
            machine.open(messages=4, size=None, seconds=10.0, last_values=0, envelope=False)
            machine.subscribe(0, ["a", "b"], None, 0, 0)
            machine.publish("a", 0, None, set(), set(), 3, True)
            machine.be_absent(0, None, ["a", ("a", "b")], ["a.x"], 0, set(), "topics")
            machine.subscribe(0, [">"], None, 0, 0)
            machine.be_absent(0, None, ["a", "b"], ["a"], 0, set(), "total")
            machine.be_absent(0, None, ["a"] * 5, ["a"], 0, set(), "total")
            machine.be_absent(0, None, ["b"] * 5, ["b"], 0, set(), "topics")
            machine.subscribe(1, ["a"], None, 0, 0)
            machine.publish(("a", "b"), 0, None, set(), set(), 1, True)
            machine.subscribe(1, ["b"], None, 0, 0)
            machine.go(1, True)
            machine.interrupt("a")
            machine.subscribe(1, ["a"], None, 0, 0)
            machine.wait(11.0)
            machine.publish("a", 0, None, set(), set(), 1, True)
            machine.subscribe(2, ["a", "b"], None, 0, 0)
            machine.subscribe(2, [">"], None, 0, 0)
            machine.subscribe(2, ["a.y", ">"], None, 0, 0, frozenset({"x"}))
            machine.publish("a.y", 0, None, set(), set(), 1, True, frozenset({"y"}))
            machine.publish("a.y", 0, None, set(), set(), 1, True, frozenset({"x"}))
            machine.subscribe(2, ["a.y"], None, 3, 0)
        finally:
            machine.teardown()

    play()
    monkeypatch.setattr(owner, name, fault)
    with pytest.raises((AssertionError, KeyError, IndexError)):
        play()
