"""What processes tell each other about who is connected to them, and what they make of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsfast
from helpers.brokers import Nowhere
from helpers.interrupts import Interrupt
from helpers.presence_process import Member
from model.test_presence_machine import Loop
from wsfast.relay import Presence, Relay, announcing, notices, presence, processes
from wsfast.relay.announcing import Announcing, Stamped
from wsfast.relay.notices import ASK, FIRST, HELLO, LAST, PART, asked, changes, notice, opened
from wsfast.relay.population import Population
from wsfast.relay.processes import Processes

LARGEST = 1 << 20


class Told:
    """A population, what it has told, and the processes that it knows."""

    def __init__(self, *, grace: float = 0.0, misses: int = 2, max_entries: int = 1000) -> None:
        self.told: list[tuple[str, Any, str | None]] = []
        self.asked: list[int] = []
        self.population = Population(
            grace,
            lambda user, name: self.told.append(("join", user, name)),
            lambda user, name: self.told.append(("leave", user, name)),
        )
        self.processes = Processes(self.population, misses, max_entries, self.asked.append)
        self.now = 0.0

    def take(self, publisher: int, *stamped: Stamped) -> None:
        for one in stamped:
            self.processes.receive(publisher, *one, self.now)

    def users(self, name: str | None = None) -> set[Any]:
        return set(self.population.users(name))


def teller(*users: Any, name: str | None = None, start: int = 1) -> Announcing:
    """Return what a process with users tells."""
    found = Announcing(start)
    for user in users:
        found.change((user, name), 1)
    return found


def run_quickly(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine where time passes instead of waiting."""
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(coroutine)


# ---- Notices


NAME = st.none() | st.sampled_from(["a", "a.b", "a.*", "größe"])
USER = st.text(max_size=20) | st.integers(-(1 << 255), 1 << 255)


@given(st.dictionaries(st.tuples(USER, NAME), st.booleans(), max_size=50), st.sampled_from([100, 1000, 1 << 20]))
def test_changes_arrive(wanted: dict[Any, bool], room: int) -> None:
    """Users who have come or left arrive in as many notices as they need, each within its bound."""
    found: dict[Any, int] = {}
    left = list(wanted.items())
    while left:
        some = notices.Changes(room)
        while left and some.add(left[0][0], left[0][1]):
            del left[0]
        data = notice(0, 7, some.contents())
        assert len(data) <= room + 9 or len(changes(opened(data)[2])) == 1
        found.update(changes(opened(data)[2]))
    assert found == {key: int(value) for key, value in wanted.items()}


@pytest.mark.parametrize(
    "contents",
    [
        {},
        [1],
        [["a", 1, []]],
        [["", 1, [], []]],
        [["a", -1, [], []]],
        [["a", 1.0, [], []]],
        [["a", True, [], []]],
        [[None, 1, [], []]],
        [["a", None, ["x", None], []]],
        [["a", None, [1.5], []]],
        [["a", None, [[]], []]],
        [["a", None, [], "bc"]],
        [[7, None, [], []]],
        [["a", None, list(range(1025)), []]],
        [["a", 1, list(range(600)), list(range(600))]],
        [["a", None, [], []]] * 1025,
        [["a", None, ["x" * 70000], []]],
    ],
)
def test_malformed_changes(contents: Any) -> None:
    """Changes that no relay can have sent raise ValueError or TypeError, and nothing of them counts."""
    told = Told()
    with pytest.raises((ValueError, TypeError)):
        told.processes.receive(7, 1, 1, notice(0, 1)[:9] + json.dumps(contents).encode(), 0.0)
    assert (len(told.processes), told.users()) == (0, set())


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    """Any bytes are either taken or raise what the relay counts."""
    told = Told()
    for flags in (b"", b"\0" * 9, bytes([PART | FIRST]) + b"\0" * 8, bytes([ASK]) + b"\0" * 8):
        try:
            told.processes.receive(7, 1, 1, flags + data, 0.0)
        except (ValueError, TypeError, RecursionError):
            continue


def test_deeply_nested_notice_is_refused() -> None:
    """A notice that is nested too deeply for JSON raises what the relay counts."""
    with pytest.raises((ValueError, RecursionError)):
        changes(b"[" * 60_000)


# ---- Telling


def test_what_comes_and_goes_before_it_was_told_is_not_told() -> None:
    """A user who leaves before others were told of them is never mentioned, however many there are."""
    own = Announcing(1)
    for number in range(1000):
        own.change((number, None), 1)
        own.change((number, None), 0)
    assert (own.changed, own.take(LARGEST)) == (False, [])


def test_everything_is_told_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is told in bounded parts, between which changes are told; in the end others know the truth."""
    monkeypatch.setattr(notices, "MOST_CHANGES", 3)
    monkeypatch.setattr(announcing, "MOST_NOTICES", 1)
    own = teller(*range(10))
    while own.take(LARGEST):
        pass
    told = Told()
    own.alive_due = True
    told.take(7, *own.take(LARGEST))
    assert (told.asked, told.users()) == ([7], set())
    own.tell_everything()
    told.take(7, *own.take(LARGEST))
    assert told.users() == {0, 1, 2}
    own.change((1, None), 0)
    own.change((8, None), 0)
    own.change(("new", None), 1)
    flags = []
    while some := own.take(LARGEST):
        flags += [opened(one.data)[0] for one in some]
        told.take(7, *some)
    assert flags == [0, PART, PART | LAST]
    assert told.users() == {0, 2, 3, 4, 5, 6, 7, 9, "new"}
    assert told.processes.complete


def test_change_before_the_first_part() -> None:
    """What has come between the question and the first part is told with everything, and stays known."""
    own = teller("ann")
    own.take(LARGEST)
    told = Told()
    own.alive_due = True
    told.take(7, *own.take(LARGEST))
    own.tell_everything()
    own.change(("bob", None), 1)
    told.take(7, *own.take(LARGEST))
    assert (told.users(), told.processes.complete) == ({"ann", "bob"}, True)


def test_small_packets() -> None:
    """Where the broker takes small packets only, each has what fits."""
    own = teller(*(f"user {number}" for number in range(100)))
    packets = own.take(400)
    assert len(packets) > 5
    assert max(len(one.data) for one in packets) < 400
    told = Told()
    told.take(7, *packets)
    assert len(told.users()) == 100


# ---- Taking


def test_only_the_first_join_and_the_last_leave_are_told() -> None:
    """A user in several processes has joined once, and leaves with the last."""
    told = Told()
    first, second = teller("ann"), teller("ann")
    told.take(1, *first.take(LARGEST))
    told.take(2, *second.take(LARGEST))
    first.change(("ann", None), 0)
    told.take(1, *first.take(LARGEST))
    assert told.told == [("join", "ann", None)]
    told.processes.goodbye(2, 0.0)
    assert told.told[1:] == [("leave", "ann", None)]


def test_missed_notice_is_made_good() -> None:
    """A process that misses a notice asks, and then knows what it has missed; meanwhile nobody leaves."""
    told = Told()
    own = teller("ann", "bob")
    told.take(7, *own.take(LARGEST))
    own.change(("bob", None), 0)
    own.change(("cid", None), 1)
    own.take(LARGEST)  # is lost
    own.alive_due = True
    told.take(7, *own.take(LARGEST))
    assert (told.asked, told.processes.complete, told.users()) == ([7], False, {"ann", "bob"})
    own.tell_everything()
    told.take(7, *own.take(LARGEST))
    assert (told.processes.complete, told.users()) == (True, {"ann", "cid"})
    assert told.told == [("join", "ann", None), ("join", "bob", None), ("join", "cid", None), ("leave", "bob", None)]


def test_asks_again_as_long_as_nothing_comes() -> None:
    """A process that does not answer is asked again at each turn, but not while its parts arrive."""
    told = Told(misses=10)
    own = teller("ann")
    own.take(LARGEST)
    own.alive_due = True
    told.take(7, *own.take(LARGEST))
    own.alive_due = True
    told.take(7, *own.take(LARGEST))
    assert told.asked == [7]
    told.processes.turn(0.0)
    assert told.asked == [7, 7]
    told.take(7, Stamped(9, own.take(LARGEST)[0].number + 1 if own.alive_due else 2, notice(PART | FIRST, 1)))
    told.processes.turn(0.0)
    assert told.asked == [7, 7]
    told.processes.turn(0.0)
    assert told.asked == [7, 7, 7]


def test_old_notice_is_ignored() -> None:
    """A notice that comes again, or late, changes nothing."""
    told = Told()
    own = teller("ann")
    first = own.take(LARGEST)
    own.change(("ann", None), 0)
    second = own.take(LARGEST)
    told.take(7, *first, *second)
    before = list(told.told)
    told.take(7, *first, *second, *first)
    assert (told.told, told.users(), told.processes.complete, told.asked) == (before, set(), True, [])


@pytest.mark.parametrize("how", ["goodbye", "silence"])
def test_notice_of_a_process_that_has_left_is_ignored(how: str) -> None:
    """A notice from before a process has left does not bring it back; after silence, a newer one does."""
    told = Told(misses=1)
    own = teller("ann")
    packets = own.take(LARGEST)
    told.take(7, *packets)
    if how == "goodbye":
        told.processes.goodbye(7, 0.0)
    else:
        told.processes.turn(0.0)
        told.processes.turn(0.0)
    assert (len(told.processes), told.users()) == (0, set())
    told.take(7, *packets)
    assert (len(told.processes), told.users()) == (0, set())
    own.alive_due = True
    told.take(7, *own.take(LARGEST))
    assert len(told.processes) == (how == "silence")
    own.tell_everything()
    told.take(7, *own.take(LARGEST))
    assert told.users() == ({"ann"} if how == "silence" else set())


def test_silence_that_could_not_be_heard_is_excused() -> None:
    """Turns that are excused do not count, and the next ones do not either."""
    told = Told(misses=2)
    told.take(7, *teller("ann").take(LARGEST))
    told.processes.turn(0.0)
    told.processes.turn(0.0)
    told.processes.excuse(3)
    for _ in range(5):
        told.processes.turn(0.0)
    assert told.users() == {"ann"}
    told.processes.turn(0.0)
    assert told.users() == set()


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Further users and processes are ignored and counted, and those who have left make room."""
    monkeypatch.setattr(processes, "MOST", 2)
    monkeypatch.setattr(processes, "LEFT", 3)
    told = Told(max_entries=3)
    own = teller("a", "b", "c", "d")
    told.take(1, *own.take(LARGEST))
    assert (told.users(), told.processes.ignored) == ({"a", "b", "c"}, 1)
    own.change(("a", None), 0)
    own.change(("d", None), 0)
    own.change(("e", None), 1)
    told.take(1, *own.take(LARGEST))
    assert len(told.users()) == 3
    told.processes.goodbye(1, 0.0)
    assert (told.users(), told.processes._entries) == (set(), 0)
    for publisher in (2, 3, 4):
        told.take(publisher, *teller("x").take(LARGEST))
    assert (len(told.processes), told.processes.ignored) == (2, told.processes.ignored)
    for publisher in range(10, 20):
        told.processes.goodbye(publisher, 0.0)
    assert len(told.processes._left) == 3


def test_who_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notices ask for a bounded number of processes each, and the first says hello."""
    monkeypatch.setattr(announcing, "MOST_ASKED", 2)
    own = Announcing(1)
    own.hello_due = True
    own.asking = dict.fromkeys([5, 6, 7])
    contents = [opened(one.data) for one in own.take(LARGEST)]
    assert [(flags, asked(rest)) for flags, _, rest in contents] == [(ASK | HELLO, [5, 6]), (ASK, [7])]


# ---- Grace


def test_grace() -> None:
    """Who comes back within the grace has not left; who does not leaves when it is over, in order."""
    told = Told(grace=2.0)
    own = teller("ann", "bob", "cid", name="room")
    told.take(7, *own.take(LARGEST))
    own.change(("ann", "room"), 0)
    told.take(7, *own.take(LARGEST))
    told.now = 1.0
    told.processes.goodbye(7, told.now)
    told.take(8, *teller("bob", name="room").take(LARGEST))
    assert told.population.deadline == 2.0
    told.population.expire(1.9)
    assert told.users("room") == {"ann", "bob", "cid"}
    told.population.expire(2.0)
    assert (told.users("room"), told.population.deadline) == ({"bob", "cid"}, 3.0)
    told.population.expire(3.0)
    assert told.told[3:] == [("leave", "ann", "room"), ("leave", "cid", "room")]
    assert told.users("room") == {"bob"}
    assert told.population.deadline is None


# ---- Interrupts


def test_interrupts() -> None:
    """Wherever a signal handler raises, the process goes on to say that it is there, and to tell who comes and goes."""

    async def attempt(moment: int) -> bool:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        hub, one, told = wsfast.Hub(), Presence(interval=0.5, grace=0.5), Told()
        other = teller("bob")
        one.start(hub, 1, lambda: None, echoes=False)
        connections = {user: Member().connection for user in ("ann", "cid", "dan")}

        async def pause() -> None:
            """Have some time pass, in which each gets the notices of the other, and is asked for everything."""
            for _ in range(30):
                await asyncio.sleep(0.1)
                other.alive_due = True
                other.asking.update(dict.fromkeys(told.asked))
                told.asked.clear()
                notices = [*one.take(LARGEST)] if one.due else []
                told.take(1, *notices)
                for stamped in other.take(LARGEST):
                    one.receive(2, *stamped)

        hub.register(connections["ann"], "ann")
        await pause()
        hub.register(connections["cid"], "cid")
        interrupt = Interrupt(moment)
        with interrupt:
            await pause()
        one.lost()  # says the relay, if its call was interrupted
        hub.register(connections["dan"], "dan")
        hub.register(connections["ann"], "ann").unregister()
        before = told.processes._processes[1].serial
        await pause()
        await pause()
        assert told.users() - {"cid"} == {"dan"}
        assert set(one.users()) - {"cid"} == {"bob", "dan"}
        assert told.processes._processes[1].serial > before + 5
        one.stop()
        return interrupt.left > 0

    moment, step = 1, 1
    while not run_quickly(attempt(moment)):
        moment += step
        step += moment > 400
    assert moment > 100


def test_slow_event_loop() -> None:
    """Others are told of changes soon, each once, though all timers are late."""

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        hub, one, told = wsfast.Hub(), Presence(interval=100.0), Told()
        one.start(hub, 1, lambda: None, echoes=False)
        while one.due:
            told.take(1, *one.take(LARGEST))
        first = told.processes._processes[1].serial
        for number in range(20):
            hub.register(Member().connection, number)
            loop.selector.now += 0.3  # something blocks the event loop
            await asyncio.sleep(0)
            while one.due:
                told.take(1, *one.take(LARGEST))
        assert told.users() >= set(range(15))
        assert told.processes._processes[1].serial <= first + 20
        one.stop()

    run_quickly(main())


# ---- Arguments


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"interval": 0}, ValueError),
        ({"interval": "1"}, TypeError),
        ({"misses": 0}, ValueError),
        ({"grace": -1}, ValueError),
        ({"max_entries": 1.5}, TypeError),
        ({"on_join": 1}, TypeError),
        ({"on_leave": "x"}, TypeError),
    ],
)
def test_wrong_arguments(options: Any, error: type[Exception]) -> None:
    """A mistake raises an error where it is made."""
    with pytest.raises(error):
        Presence(**options)


def a_relay(**options: Any) -> Relay:
    slow = wsfast.DropOldest(max_messages=10)
    return Relay(wsfast.Hub(), Nowhere(), slow=slow, on_gap=None, timeout=1.0, **options)


def test_without_presence() -> None:
    """A relay without presence says how to get it."""
    hub_relay = a_relay()
    with pytest.raises(RuntimeError, match="presence=True"):
        hub_relay.presence  # noqa: B018
    with pytest.raises(TypeError, match="presence must be True"):
        a_relay(presence=1)


def test_presence_belongs_to_one_relay() -> None:
    """A Presence cannot be given to two relays, and knows nobody before its relay runs."""
    one = Presence()
    assert a_relay(presence=one).presence is one
    with pytest.raises(RuntimeError, match="one relay"):
        a_relay(presence=one)
    assert (one.users(), one.has("ann"), one.count("room"), one.processes) == ([], False, 0, 0)
    assert (one.leads, one.complete, one.ignored) == (False, False, 0)
    with pytest.raises(ValueError, match="topic"):
        one.users("")


def test_long_names() -> None:
    """Others are told about users whose names are not too long."""
    assert all(map(presence._is_short, ["ann", 1 << 255, "x" * 4000, "ß" * 600]))
    assert not any(map(presence._is_short, ["x" * 5000, "ß" * 4000]))
