"""What waits for a connection, and what policies do about it, against plain lists."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import linecache
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsfast import Conflate, Disconnect, DropNewest, DropOldest, PreparedMessage
from wsfast import _backlog as backlog_module
from wsfast import policies as policies_module
from wsfast._backlog import Backlog, Entry, Item, Queue
from wsfast.policies import Policy


class Clock:
    """The time, as tests will have it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    @contextlib.contextmanager
    def running(self) -> Iterator[Clock]:
        """Have what waits, and policies, look at this clock."""
        stand_in = types.SimpleNamespace(monotonic=self)
        with mock.patch.object(backlog_module, "time", stand_in), mock.patch.object(policies_module, "time", stand_in):
            yield self


@pytest.fixture
def clock() -> Iterator[Clock]:
    with Clock().running() as clock:
        yield clock


class Publisher:
    """One channel, and the one subscription to it."""

    def __init__(self, policy: Policy) -> None:
        self.slow = policy
        self.subscription: Subscription | None = Subscription(self)

    def subscription_of(self, peer: object) -> Subscription | None:
        return self.subscription


class Subscription:
    """Counts what policies do."""

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher
        self.dropped = self.conflated = 0
        self.active = True
        self.reports: list[str] = []
        self.closed: tuple[int, str] | None = None

    def report_drops(self, count: int) -> None:
        self.reports += ["drop"] * count

    def trim_soon(self, queue: Any) -> None:
        self.reports.append("trim soon")

    def report(self, what: str) -> None:
        self.reports.append(what)

    def disconnect(self, code: int, reason: str) -> None:
        self.closed = code, reason
        self.active = False


class Connection:
    """What waits for one connection, and what a plain list would hold."""

    def __init__(self, *policies: Policy) -> None:
        peer: Any = object()  # backlogs only hand it on
        self.backlog = Backlog(peer)
        self.publishers: list[Any] = [Publisher(policy) for policy in policies]
        self.subscriptions: list[Any] = [publisher.subscription for publisher in self.publishers]

    def entry(self, index: int, size: int = 1, key: Any = None) -> Entry:
        return Entry(self.publishers[index], PreparedMessage(b"x" * size), None, key)

    def arrive(self, index: int, size: int = 1, key: Any = None) -> Entry:
        """Have an entry be in the inbox."""
        entry = self.entry(index, size, key)
        self.backlog.inbox.append(entry)
        return entry

    def queue(self, index: int) -> Queue:
        return self.backlog.queue_of(self.subscriptions[index])

    def admit(self) -> None:
        """Have policies look at the inbox."""
        while len(self.backlog.arrived()):
            (entry, *_) = self.backlog.arrived()
            publisher: Any = entry.publisher
            publisher.slow.admit(self.backlog.queue_of(publisher.subscription), entry)

    def publish(self, index: int, size: int = 1, key: Any = None) -> Entry:
        entry = self.arrive(index, size, key)
        self.admit()
        return entry

    def waiting(self) -> list[Entry]:
        """Return what waits, in the order in which it is to be sent; all counts and links must agree."""
        items: list[Item] = []
        item = self.backlog.first
        assert item is None or item.preceding is None
        while item is not None:
            items.append(item)
            if item.following is None:
                assert self.backlog.last is item
            else:
                assert item.following.preceding is item
            item = item.following
        if not items:
            assert self.backlog.last is None
        queued = 0
        for queue in self.backlog.queues.values():
            chain = queue_items(queue)
            assert all(item.queue is queue for item in chain)
            assert {id(item) for item in chain} == {id(item) for item in items if item.queue is queue}
            assert queue.messages == len(chain)
            assert queue.bytes == sum(item.entry.message.size for item in chain)
            assert all(item in chain for item in queue.keys.values() if item.queue is not None)
            queued += len(chain)
        assert queued == len(items)
        assert self.backlog.empty is (not items and not self.backlog.arrived())
        return [item.entry for item in items]


def queue_items(queue: Queue) -> list[Item]:
    """Return the items of a queue, from the oldest to the newest."""
    items: list[Item] = []
    item = queue.oldest
    assert item is None or item.older is None
    while item is not None:
        items.append(item)
        if item.newer is None:
            assert queue.newest is item
        else:
            assert item.newer.older is item
        item = item.newer
    if not items:
        assert queue.newest is None
    return items


def times(queue: Queue) -> list[float]:
    return [item.time for item in queue_items(queue)]


# ---- Against plain lists


class Row:
    """An entry that waits, according to the model."""

    def __init__(self, index: int, entry: Entry, since: float) -> None:
        self.index, self.entry, self.since = index, entry, since


class Model:
    """What is to wait: in the order of what is sent, and of each subscription from the oldest to the newest."""

    def __init__(self, policies: list[Policy]) -> None:
        self.policies = policies
        self.rows: list[Row] = []
        self.queues: list[list[Row]] = [[] for _ in policies]
        self.dropped = [0 for _ in policies]
        self.conflated = [0 for _ in policies]
        self.closed = [False for _ in policies]

    def size(self, index: int) -> int:
        return sum(row.entry.message.size for row in self.queues[index])

    def is_too_old(self, index: int, now: float) -> bool:
        policy, queue = self.policies[index], self.queues[index]
        return policy.max_age is not None and bool(queue) and now - queue[0].since > policy.max_age

    def is_full(self, index: int, entry: Entry, now: float) -> bool:
        policy, queue = self.policies[index], self.queues[index]
        if not queue:
            return False
        if policy.max_messages is not None and len(queue) + 1 > policy.max_messages:
            return True
        if policy.max_bytes is not None and self.size(index) + entry.message.size > policy.max_bytes:
            return True
        return self.is_too_old(index, now)

    def remove(self, row: Row) -> None:
        self.rows.remove(row)
        self.queues[row.index].remove(row)

    def drop_oldest(self, index: int) -> None:
        self.remove(self.queues[index][0])
        self.dropped[index] += 1

    def append(self, index: int, entry: Entry, now: float) -> None:
        row = Row(index, entry, now)
        self.rows.append(row)
        self.queues[index].append(row)

    def admit(self, index: int, entry: Entry, now: float) -> None:
        policy = self.policies[index]
        if isinstance(policy, Disconnect):
            if self.is_full(index, entry, now):
                self.closed[index] = True
            else:
                self.append(index, entry, now)
            return
        if isinstance(policy, DropNewest):
            if self.is_full(index, entry, now):
                self.dropped[index] += 1
            else:
                self.append(index, entry, now)
            return
        if isinstance(policy, Conflate) and entry.key is not None:
            for row in self.queues[index]:
                if row.entry.key == entry.key:
                    row.entry, row.since = entry, now
                    self.queues[index].remove(row)
                    self.queues[index].append(row)
                    self.conflated[index] += 1
                    while self.is_too_old(index, now) or (
                        policy.max_bytes is not None
                        and self.size(index) > policy.max_bytes
                        and len(self.queues[index]) > 1
                    ):
                        self.drop_oldest(index)
                    return
        while self.is_full(index, entry, now):
            self.drop_oldest(index)
        self.append(index, entry, now)

    def expire(self, index: int, now: float) -> None:
        policy = self.policies[index]
        if isinstance(policy, Disconnect):
            self.closed[index] = self.closed[index] or self.is_too_old(index, now)
        elif not isinstance(policy, DropNewest):
            while self.is_too_old(index, now):
                self.drop_oldest(index)


BOUNDS: dict[str, Any] = {
    "max_messages": st.none() | st.integers(1, 4),
    "max_bytes": st.none() | st.integers(1, 20),
    "max_age": st.none() | st.integers(1, 4),
}
POLICIES = st.one_of(*(st.builds(kind, **BOUNDS) for kind in (Disconnect, DropNewest, DropOldest, Conflate)))
INDEX = st.integers(0, 1)
OPERATION = st.one_of(
    st.tuples(st.just("publish"), INDEX, st.integers(0, 8), st.sampled_from([None, "a", "b", "c"])),
    st.tuples(st.just("publish"), INDEX, st.integers(0, 8), st.sampled_from([None, "a", "b", "c"])),
    st.tuples(st.just("arrive"), INDEX, st.integers(0, 8), st.sampled_from([None, "a"])),
    st.tuples(st.just("taken"), st.integers(0, 6), st.booleans(), st.none()),
    st.tuples(st.just("drop"), st.integers(0, 9), st.none(), st.none()),
    st.tuples(st.just("remove"), st.integers(0, 9), st.none(), st.none()),
    st.tuples(st.just("expire"), INDEX, st.none(), st.none()),
    st.tuples(st.just("wait"), st.integers(1, 3), st.none(), st.none()),
    st.tuples(st.just("head"), st.integers(0, 30), st.booleans(), st.none()),
)


@settings(max_examples=600)
@given(policies=st.tuples(POLICIES, POLICIES), operations=st.lists(OPERATION, min_size=1, max_size=40))
def test_agrees_with_lists(policies: tuple[Policy, Policy], operations: list[tuple[str, Any, Any, Any]]) -> None:
    """For every policy and every bound, what waits, in which order, and all counts are what plain lists say."""
    with Clock().running() as clock:
        play(clock, policies, operations)


def play(clock: Clock, policies: tuple[Policy, ...], operations: list[tuple[str, Any, Any, Any]]) -> None:
    connection = Connection(*policies)
    backlog = connection.backlog
    model = Model(list(policies))
    arrived: list[tuple[int, Entry]] = []

    def admit() -> None:
        for index, entry in arrived:
            queue = connection.queue(index)
            policies[index].admit(queue, entry)
            model.admit(index, entry, clock.now)
            if model.closed[index]:
                return
        arrived.clear()

    for operation, first, second, third in operations:
        match operation:
            case "publish" | "arrive":
                arrived.append((first, connection.arrive(first, second, third)))
                if operation == "publish":
                    admit()
            case "taken":
                count = min(first, len(model.rows) + len(arrived))
                backlog.taken(count, dropped=second)
                for _ in range(count):
                    if model.rows:
                        index = model.rows[0].index
                        model.remove(model.rows[0])
                    else:
                        index, _ = arrived.pop(0)
                    model.dropped[index] += second
            case "drop" | "remove" if model.rows:
                row = model.rows[first % len(model.rows)]
                queue = connection.queue(row.index)
                (item,) = [item for item in queue_items(queue) if item.entry is row.entry]
                getattr(queue, operation)(item)
                model.remove(row)
                model.dropped[row.index] += operation == "drop"
            case "expire":
                policies[first].expire(connection.queue(first), clock.now)
                model.expire(first, clock.now)
            case "wait":
                clock.now += first
            case "head":
                expected: list[Entry] = []
                for entry in [row.entry for row in model.rows] or [entry for _, entry in arrived]:
                    total = sum(one.message.size for one in (*expected, entry))
                    if expected and (second or total > first):
                        break
                    expected.append(entry)
                assert backlog.head(first, single=second) == expected
        assert [subscription.closed is not None for subscription in connection.subscriptions] == model.closed
        if any(model.closed):
            break
        assert backlog.arrived() == [entry for _, entry in arrived]
        assert connection.waiting() == [row.entry for row in model.rows]
        for index, subscription in enumerate(connection.subscriptions):
            rows = model.queues[index]
            queue = connection.queue(index)
            assert [item.entry for item in queue_items(queue)] == [row.entry for row in rows]
            assert times(queue) == [row.since for row in rows]
            assert (subscription.dropped, subscription.conflated) == (model.dropped[index], model.conflated[index])
            assert within(policies[index], queue)
    backlog.clear()
    assert (backlog.first, backlog.last, backlog.queues, backlog.arrived()) == (None, None, {}, [])
    assert backlog.empty
    assert connection.waiting() == []


def within(policy: Policy, queue: Queue) -> bool:
    """Whether what waits is within the bounds; one message always may."""
    return queue.messages <= 1 or (
        queue.messages <= (policy.max_messages or queue.messages) and queue.bytes <= (policy.max_bytes or queue.bytes)
    )


# ---- Policies


@pytest.mark.parametrize("name", ["max_messages", "max_bytes", "max_age"])
@pytest.mark.parametrize("bound", [0, -1, float("nan")])
@pytest.mark.parametrize("kind", [Policy, Disconnect, DropNewest, DropOldest, Conflate])
def test_bounds_are_positive(kind: type[Policy], name: str, bound: float) -> None:
    """A bound that is not positive raises ValueError."""
    with pytest.raises(ValueError, match=f"^{name} must be positive or None, not {bound}$"):
        kind(**{name: bound})  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [999, 1004, 1005, 1006, 1015, 2999, 5000])
def test_close_codes_that_may_not_be_sent(code: int) -> None:
    """Disconnect with a code that RFC 6455 keeps from close frames raises ValueError."""
    with pytest.raises(ValueError, match=rf"^code must be a close code that may be sent \(.*\), not {code}$"):
        Disconnect(code=code)


def test_reasons_fit_in_a_close_frame() -> None:
    """Disconnect with a reason of more than 123 bytes raises ValueError."""
    assert Disconnect(reason="\xe9" * 61 + "x").reason == "\xe9" * 61 + "x"
    with pytest.raises(ValueError, match=r"^reason must not be longer than 123 bytes in UTF-8, but has 124$"):
        Disconnect(reason="\xe9" * 62)


def test_policy_itself_is_none(clock: Clock) -> None:
    """Policy has bounds, and does nothing about them."""
    connection = Connection(Policy())
    connection.arrive(0)
    with pytest.raises(TypeError, match=r"^Policy has no admit\(\); use Disconnect, .*Conflate$"):
        connection.admit()
    assert len(connection.backlog.arrived()) == 1


def test_what_is_reported(clock: Clock) -> None:
    """Each message that is dropped or replaced is reported."""
    for policy, reports in (
        (DropOldest(max_messages=1), ["drop"]),
        (DropNewest(max_messages=1), ["drop"]),
        (Conflate(max_messages=1), ["conflates"]),
        (Disconnect(max_messages=2), []),
    ):
        connection = Connection(policy)
        for _ in range(2):
            connection.publish(0, key="a")
        assert connection.subscriptions[0].reports == reports


def test_a_message_that_grows_makes_room(clock: Clock) -> None:
    """Where a message is replaced by a larger one, the oldest others make room for that."""
    connection = Connection(Conflate(max_bytes=10))
    for size, key in ((3, "a"), (3, "b"), (3, None)):
        connection.publish(0, size, key)
    larger = connection.publish(0, 7, "a")
    assert [entry.message.size for entry in connection.waiting()] == [7, 3]
    assert connection.waiting()[0] is larger
    largest = connection.publish(0, 12, "a")
    assert connection.waiting() == [largest]
    assert (connection.subscriptions[0].dropped, connection.subscriptions[0].conflated) == (2, 2)


def test_disconnect_tells_why(clock: Clock) -> None:
    """Disconnect closes with its code and reason; the message is not admitted, and nothing else waits or is lost."""
    for policy, wait in ((Disconnect(max_messages=1, code=4000, reason="slow"), 0), (Disconnect(max_age=1), 2)):
        connection = Connection(policy)
        waits = connection.publish(0)
        clock.now += wait
        refused = connection.arrive(0)
        policy.admit(connection.queue(0), refused)
        assert connection.subscriptions[0].closed == (policy.code, policy.reason)
        assert connection.waiting() == [waits]
        assert connection.backlog.arrived() == [refused]
        policy.admit(connection.queue(0), refused)


def test_what_is_taken_of_a_subscription_that_has_ended(clock: Clock) -> None:
    """A message that nobody is subscribed to any more is not counted as dropped."""
    connection = Connection(DropOldest())
    connection.arrive(0)
    connection.publishers[0].subscription = None
    connection.backlog.taken(1, dropped=True)
    assert connection.subscriptions[0].dropped == 0
    assert connection.backlog.empty


# ---- Keys


def test_waiters_are_woken_when_nothing_up_to_theirs_waits(clock: Clock) -> None:
    """Futures are done when no message up to their number waits, whether that was taken, replaced or dropped."""
    loop = asyncio.new_event_loop()
    connection = Connection(Conflate())
    backlog = connection.backlog
    for key in range(4):
        connection.publish(0, key=key)
    numbers = [item.number for item in queue_items(connection.queue(0))]
    assert numbers == sorted(set(numbers))
    futures = [backlog.waiters.setdefault(number, loop.create_future()) for number in numbers]

    def woken() -> list[bool]:
        backlog.wake()
        return [future.done() for future in futures]

    connection.publish(0, key=0)  # which has the place of the first one
    connection.publish(0, key=4)
    assert woken() == [False] * 4
    connection.queue(0).drop(queue_items(connection.queue(0))[2])  # the last one of those that are waited for
    assert woken() == [False] * 4
    futures[1].cancel()
    backlog.taken(2)
    assert woken() == [True, True, False, False]
    backlog.taken(1)
    assert woken() == [True] * 4
    assert len(connection.waiting()) == 1
    assert not backlog.waiters
    loop.close()


class Key:
    """A key that may refuse to be compared."""

    angry = False

    def __init__(self, name: str) -> None:
        self.name = name

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        if Key.angry:
            raise ZeroDivisionError
        return isinstance(other, Key) and self.name == other.name


@pytest.fixture
def angry(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Return a function that says whether keys refuse to be compared."""
    return lambda angry: monkeypatch.setattr(Key, "angry", angry)


def test_keys_that_cannot_be_compared(clock: Clock, angry: Callable[[bool], None]) -> None:
    """What the comparison of keys raises leaves all as it was."""
    connection = Connection(Conflate())
    one, two = connection.publish(0, key=Key("one")), connection.publish(0, key=Key("two"))
    angry(True)
    entry = connection.arrive(0, key=Key("two"))
    with pytest.raises(ZeroDivisionError):
        connection.admit()
    assert connection.waiting() == [one, two]
    assert connection.backlog.arrived() == [entry]
    with pytest.raises(ZeroDivisionError):
        connection.queue(0).append(entry, 0.0, keyed=True)
    assert connection.waiting() == [one, two]
    assert connection.backlog.arrived() == [entry]
    connection.queue(0).append(entry, 0.0)  # as the dispatcher does
    assert connection.waiting() == [one, two, entry]
    angry(False)
    newest = connection.publish(0, key=Key("two"))
    assert connection.waiting() == [one, newest, entry]


def test_what_does_not_wait_is_not_found(clock: Clock, angry: Callable[[bool], None]) -> None:
    """A message whose key could not be forgotten is not replaced once it does not wait any more."""
    connection = Connection(Conflate())
    entries = [connection.publish(0, key=Key(name)) for name in ("one", "two", "three")]
    queue = connection.queue(0)
    angry(True)
    queue.drop(queue_items(queue)[1])
    angry(False)
    assert connection.waiting() == [entries[0], entries[2]]
    assert len(queue.keys) == 3, "the key could be forgotten after all"
    assert queue.find(Key("two")) is None
    newer = connection.publish(0, key=Key("two"))
    assert connection.waiting() == [entries[0], entries[2], newer]
    newest = connection.publish(0, key=Key("two"))
    assert connection.waiting() == [entries[0], entries[2], newest]
    assert connection.subscriptions[0].conflated == 1


def test_keys_are_forgotten(clock: Clock) -> None:
    """The key of a message that does not wait any more is not kept."""
    connection = Connection(Conflate(), Conflate())
    for index in range(2):
        for key in range(10):
            connection.publish(index, key=key)
            connection.publish(index, key=key)
    connection.backlog.taken(20)
    assert connection.queue(0).keys == connection.queue(1).keys == {}
    assert connection.subscriptions[0].conflated == 10


# ---- Exceptions out of nowhere, and finalizers


class Nowhere(BaseException):
    """What a signal handler raises."""


class Interruption:
    """Raises an exception where CPython would run a signal handler: at the nth call, return or end of a loop.

    Only in what these modules do themselves.
    """

    FILES = frozenset({backlog_module.__file__, policies_module.__file__})

    def __init__(self, number: int) -> None:
        self.left = number

    def count(self, frame: FrameType) -> None:
        # A generator that is not exhausted ends without a call.
        if frame.f_code.co_filename in self.FILES and frame.f_code.co_name != "_entries_from":
            self.left -= 1
            if self.left == 0:
                raise Nowhere(f"{Path(frame.f_code.co_filename).name}, line {frame.f_lineno}")

    def profile(self, frame: FrameType, event: str, arg: object) -> None:
        self.count(frame)

    def trace(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename not in self.FILES:
            return None
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event == "line" and line.startswith(("for ", "while ")):
            self.count(frame)
        return self.trace

    def __call__(self, function: Callable[[], object]) -> bool:
        """Call a function; tell whether it was interrupted."""
        before = sys.gettrace(), sys.getprofile()
        try:
            sys.settrace(self.trace)
            sys.setprofile(self.profile)
            function()
        except Nowhere:
            return True
        finally:
            sys.setprofile(None)
            sys.settrace(None)
            sys.setprofile(before[1])
            sys.settrace(before[0])
        return False


def steps_of(connection: Connection) -> list[Callable[[], object]]:
    """Return what happens to a connection, one after the other."""
    backlog = connection.backlog

    def drop_newest() -> None:
        if item := connection.queue(0).newest:
            connection.queue(0).drop(item)

    def publish(index: int, number: int) -> Callable[[], object]:
        return lambda: connection.publish(index, 1 + number % 3, number % 3 or None)

    steps = [publish(index, number) for number in range(6) for index in range(2)]
    steps += [
        lambda: backlog.head(4, single=False),
        lambda: backlog.taken(2),
        drop_newest,
        lambda: connection.publish(0, 9, 2),
        lambda: connection.publishers[0].slow.expire(connection.queue(0), 1000.0),
        lambda: connection.publish(1, 9, 1),
        lambda: backlog.taken(1, dropped=True) if backlog.first else None,
    ]
    return steps


INTERRUPTED = [
    DropOldest(max_messages=2),
    DropOldest(max_bytes=4),
    DropOldest(max_age=1),
    DropNewest(max_messages=2),
    DropNewest(max_bytes=4),
    Conflate(max_bytes=4),
    Conflate(max_messages=2),
    Conflate(),
    Disconnect(max_messages=1000),
]


@pytest.mark.parametrize("policy", INTERRUPTED, ids=repr)
def test_interrupted_anywhere(clock: Clock, policy: Policy) -> None:
    """Wherever an exception comes out of nowhere, counts and links agree, and no message is lost or there twice."""
    for number in itertools.count(1):
        connection = Connection(policy, policy)
        interruption = Interruption(number)
        interrupted = False
        taken = 0
        for step in steps_of(connection):
            before = account(connection)
            came = interrupted or interruption(step)
            if interrupted:
                step()
            after = account(connection)
            missing = after - before
            assert 0 <= missing <= 2, "messages vanished"
            taken += missing
            if came and not interrupted:
                connection.admit()
                assert account(connection) == after
                interrupted = True
        assert taken <= 3
        if not interrupted:
            break
    assert number > 100


def account(connection: Connection) -> int:
    """Return how many of the messages that were dealt with neither wait nor were dropped or replaced."""
    waiting = connection.waiting()
    assert len({id(entry) for entry in waiting}) == len(waiting)
    assert not {id(entry) for entry in waiting} & {id(entry) for entry in connection.backlog.arrived()}
    counted: int = sum(subscription.dropped + subscription.conflated for subscription in connection.subscriptions)
    return connection.backlog.admitted - counted - len(waiting)


class Mortal:
    """A part of a message whose finalizer looks at what waits."""

    def __init__(self, connection: Connection, found: list[Any]) -> None:
        self.connection, self.found = connection, found

    def __del__(self) -> None:
        try:
            waiting = self.connection.waiting()
            account(self.connection)
            self.found.append([entry.message.size for entry in waiting])
        except AssertionError as exc:
            self.found.append(exc)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_finalizers_find_all_or_nothing(clock: Clock, place: int) -> None:
    """A finalizer of a message that is replaced, dropped or taken finds counts and links that agree."""
    found: list[Any] = []
    connection = Connection(Conflate())
    backlog, queue = connection.backlog, connection.queue(0)

    def publish(key: object, size: int) -> None:
        entry = connection.arrive(0, size, key)
        if key == "mortal":
            entry.encodings = Mortal(connection, found)
        del entry
        while backlog.arrived():
            queue.subscription.publisher.slow.admit(queue, backlog.inbox[backlog.admitted])
        backlog.inbox, backlog.admitted = [], 0

    sizes = [1, 2, 3]
    for index, size in enumerate(sizes):
        publish("mortal" if index == place else index, size)
    publish("mortal", 7)
    sizes[place] = 7
    assert found == [sizes]
    queue.drop(queue_items(queue)[-1])
    del sizes[place]
    assert found[1:] == [sizes]
    publish("mortal", 4)
    backlog.taken(3)
    assert found[2:] == [[]]
