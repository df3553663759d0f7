"""What a finalizer or a signal handler does in the middle of a call of a hub happens before it or after it.

Garbage may be collected, and signals may arrive, wherever Python runs, so that each call is interrupted
everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import wsfast
from wsfast._reentrancy import Calls, consistent, exclusive

PACKAGE = Path(wsfast.__file__).parent
PLACES = tuple(str(PACKAGE / name) for name in ("hub", "stream.py", "_reentrancy.py"))


class Interruption:
    """Does something in the middle of a call: at one of the events in the hub's code, by its number.

    Args:
        number: Number of the event.
        action: What is done.
        signals: Whether events are where signals arrive: functions begin, or functions in C have returned. Else they
            are lines, since finalizers may run in each.
        places: What the paths of files begin with whose events count.
    """

    def __init__(
        self,
        number: int,
        action: Callable[[], object],
        *,
        signals: bool = False,
        places: tuple[str, ...] = PLACES,
    ) -> None:
        self.number = number
        self.places = places
        self.action = action
        self.signals = signals
        self.events = 0

    @property
    def done(self) -> bool:
        """Whether there were as many events."""
        return self.events > self.number

    def __enter__(self) -> Interruption:
        self.before = sys.gettrace(), sys.getprofile()
        if self.signals:
            sys.setprofile(self._profile)
        else:
            sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before[0])
        sys.setprofile(self.before[1])

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(self.places):
            return None
        if event == "line":
            self._count()
        return self._trace

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(self.places):
            self._count()

    def _count(self) -> None:
        self.events += 1
        if self.events == self.number + 1:
            self.action()


class Sink:
    """A connection of one's own that always has room."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.connection = wsfast.attach(self)

    def write(self, data: bytes) -> None:
        while data:  # several frames may come at once
            self.got.append(bytes(data[2 : 2 + data[1]]).decode())
            data = data[2 + data[1] :]

    def writable(self) -> bool:
        return True

    def close(self, code: int, reason: str) -> None:
        pass


class Scene:
    """A hub in which there is something of everything, and what it has reported."""

    def __init__(self) -> None:
        self.present: Counter[Any] = Counter()
        self.hub = wsfast.Hub(
            history=20,
            last_values=3,
            on_join=lambda *where: self.present.update([where]),
            on_leave=lambda *where: self.present.subtract([where]),
        )
        self.sinks = [Sink() for _ in range(5)]
        self.keeper, self.leaver, self.joiner, self.stranger, self.lost = self.sinks
        hub = self.hub
        hub.subscribe(self.keeper.connection, "a", "b", "c.*")
        self.subscription = hub.subscribe(self.leaver.connection, "a", "b")
        self.registration = hub.register(self.leaver.connection, "ann")
        hub.register(self.joiner.connection, "ann")
        hub.subscribe(self.lost.connection, "b", "d")
        self.channel = wsfast.Channel()
        self.other = self.channel.subscribe(self.lost.connection)
        self.stream = hub.stream("a")
        for number in range(2):
            hub.publish(["a", "b"], f"old {number}", key=number)
        hub.flush()

    async def check(self) -> None:
        """Check that all agree with each other, once all has left."""
        hub = self.hub
        for _ in range(3):
            await asyncio.sleep(0)
        newcomer = Sink()
        hub.subscribe(newcomer.connection, "a", "b", "c.x")
        hub.flush()
        self.sinks.append(newcomer)
        assert self.keeper.got == newcomer.got  # the same, in the same order
        for sink in self.sinks:
            assert len(sink.got) == len(set(sink.got))
            common = [message for message in newcomer.got if message in sink.got]
            assert common == [message for message in sink.got if message in common]
        stats, others = hub.stats(), self.channel.stats()
        assert stats.sent + others.sent == sum(len(sink.got) for sink in self.sinks)
        assert stats.published == stats.sent + stats.dropped
        assert not stats.dropped or self.lost.connection.transport.is_closing()  # what was for it in this tick
        self.check_members()
        await asyncio.sleep(0)
        users = {(user, None) for user in hub.users()}
        users |= {
            (member.user.name, name) for member in hub._subscriptions.values() if member.user for name in member.topics
        }
        assert {where for where, count in self.present.items() if count} == users
        assert set(self.present.values()) <= {0, 1}

    def check_members(self) -> None:
        """Check that groups and connections know of each other, and that nobody else is there."""
        registry, subscriptions = self.hub._registry, self.hub._subscriptions
        groups = [*registry.topics.values(), *registry.users.values()]
        for group in groups:
            assert not group.empty
            slots = group.members.slots
            assert len(slots) == len(set(slots))
            assert set(slots) == {slot for slot, member in subscriptions.items() if group in member.groups}
        for slot, member in subscriptions.items():
            assert member._peer is not None
            assert member._peer.slot == slot
            assert member.groups
            assert set(member.groups) <= set(groups)
            assert member.user is None or member.user in member.groups
        patterns = [group for group in registry.topics.values() if group.kind == "pattern"]
        assert registry.pattern_count == len(patterns)
        for topic, route in registry.routes.items():
            assert set(route) == {*registry.patterns.matching(topic), *filter(None, [registry.topics.get(topic)])}


def look(scene: Scene) -> None:
    """Look at everything."""
    hub = scene.hub
    stats, one = hub.stats(), scene.subscription.stats()
    assert stats.published == stats.sent + stats.dropped + stats.queued
    assert one.published == one.sent + one.dropped + one.queued
    assert scene.subscription.lag.messages >= 0
    assert None not in (*hub.subscribers("b"), *hub.connections("ann"), *hub.users("a"))
    assert hub.count("b") >= 1
    assert len(hub.last("a")) >= 2


CALLS: dict[str, Callable[[Any], object]] = {
    "publish": lambda scene: scene.hub.publish(["a", "b", "d"], "news", key=7, exclude=[scene.stranger.connection]),
    "publish many": lambda scene: scene.hub.publish_many([("a", "first"), ("c.x", "second"), (["b", "c.x"], "third")]),
    "send": lambda scene: scene.hub.send("ann", "for ann"),
    "subscribe": lambda scene: scene.hub.subscribe(scene.joiner.connection, "a", "b", "c.>"),
    "unsubscribe": lambda scene: scene.hub.unsubscribe(scene.lost.connection, "b"),
    "end": lambda scene: scene.subscription.unsubscribe(),
    "register": lambda scene: scene.hub.register(scene.lost.connection, "bob"),
    "unregister": lambda scene: scene.registration.unregister(),
    "stream": lambda scene: scene.hub.stream("e").close(),
    "look": look,
}
ACTIONS: dict[str, Callable[[Any], object]] = {
    "publish": lambda scene: scene.hub.publish("a", "meanwhile"),
    "publish to several": lambda scene: scene.hub.publish(["b", "a", "c.x"], "meanwhile", key=7),
    "publish to a channel": lambda scene: scene.channel.publish("of a channel"),
    "leave a channel": lambda scene: (scene.channel.publish("of a channel"), scene.other.unsubscribe()),
    "send": lambda scene: scene.hub.send("ann", "meanwhile for ann"),
    "subscribe": lambda scene: scene.hub.subscribe(scene.stranger.connection, "a", "b", "c.x"),
    "subscribe the same": lambda scene: scene.hub.subscribe(scene.joiner.connection, "b", "c.>").lag,
    "leave": lambda scene: (scene.subscription.unsubscribe(), scene.registration.unregister()),
    "lose": lambda scene: scene.lost.connection.transport.abort(),
    "register": lambda scene: scene.hub.register(scene.stranger.connection, "zoe"),
    "streams": lambda scene: (scene.stream.close(), scene.hub.stream("a"), scene.hub.stream("f").close()),
    "flush": lambda scene: scene.hub.flush(),
    "look": CALLS["look"],
    "come and go": lambda scene: scene.hub.subscribe(scene.stranger.connection, "a").unsubscribe(),
}


def each(
    action: Callable[[], object], *, signals: bool = False, start: int = 0, step: int = 1, **options: Any
) -> Iterator[Interruption]:
    """Yield an interruption at each event, or at some, until there are no more."""
    for number in itertools.count(start, step):
        interruption = Interruption(number, action, signals=signals, **options)
        yield interruption
        if not interruption.done:
            return


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("call", CALLS)
def test_calls_in_the_middle_of_others(core: Any, call: str, action: str) -> None:
    """Whatever is called in the middle of another call, everybody gets every message once and in the same order."""
    errors: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        scenes: list[Scene] = []
        places = (str(PACKAGE),) if call == "look" else PLACES
        start = (list(CALLS).index(call) + list(ACTIONS).index(action)) % 4  # all lines, but not with each action
        for interruption in each(lambda: ACTIONS[action](scenes[-1]), start=start, step=4, places=places):
            scenes.append(scene := Scene())
            with interruption, contextlib.suppress(*[RuntimeError] * (call == "register" and action == "lose")):
                CALLS[call](scene)
            await scene.check()

    asyncio.run(main())
    assert errors == []


class Interrupted(BaseException):
    """A signal handler has raised this."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # raised where a generator is closed
@pytest.mark.parametrize("call", ["subscribe", "register", "unsubscribe", "end", "unregister", "stream"])
def test_exceptions_in_the_middle(core: Any, call: str) -> None:
    """What a signal handler raises leaves nobody half subscribed, and the hub goes on."""

    def interrupt() -> None:
        raise Interrupted

    async def main() -> None:
        scene = Scene()
        for interruption in each(interrupt, signals=True):
            try:
                with interruption:
                    CALLS[call](scene)
            except Interrupted:
                await asyncio.sleep(0)
                scene.hub.publish("a", "and on")
                scene.hub.flush()
                assert "and on" in scene.keeper.got
                scene.hub.publish("e", "to nobody")  # with which the topic of a stream that is gone goes at last
                scene.check_members()
            scene = Scene()

    asyncio.run(main())


# ---- The calls themselves


class Owner:
    """Something that has calls."""

    def __init__(self) -> None:
        self._calls = Calls(asyncio.get_running_loop())
        self.events: list[Any] = []

    @exclusive
    def call(self, number: int) -> None:
        """Call others, and raise an exception if the number is 2."""
        self.events.append(number)
        if number < 3:
            self.call(number + 10)
        if number == 2:
            raise ValueError(number)

    @exclusive
    def call_several(self) -> None:
        """Call three times."""
        for number in (1, 2, 3):
            self.call(number)
        assert self.events == []

    @exclusive
    def interrupt(self, before: int) -> None:
        """Raise something, in time."""
        if before:
            self.interrupt(before - 1)
            self.call(5)
        else:
            raise Interrupted

    @consistent
    def look(self) -> list[Any]:
        """Look, while something is called."""
        self.call(4)
        return list(self.events)


def test_order_of_calls() -> None:
    """Calls that wait are made in order, after all others have ended; an error in one is reported, others are made."""

    async def main() -> None:
        owner = Owner()
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: owner.events.append(repr(context["exception"]))
        )
        owner.call_several()
        assert owner.events == [1, 2, "ValueError(2)", 3, 11, 12]
        del owner.events[:]
        with pytest.raises(ValueError, match="2"):
            owner.call(2)
        assert owner.events == [2, 12]
        assert owner.look() == [2, 12]
        assert owner.events == [2, 12, 4]
        assert await asyncio.to_thread(owner.look) == [2, 12, 4, 4]  # no other thread has to wait for anything

    asyncio.run(main())


def test_calls_after_an_interrupt() -> None:
    """What is raised in a call that has waited, and is no Exception, comes out; the others are made soon."""

    async def main() -> None:
        owner = Owner()
        with pytest.raises(Interrupted):
            owner.interrupt(1)
        assert owner.events == []
        await asyncio.sleep(0)
        assert owner.events == [5]
        with pytest.raises(Interrupted):
            owner.interrupt(0)
        owner.call(6)
        assert owner.events == [5, 6]

    asyncio.run(main())


# ---- What a user with many connections costs


@pytest.mark.parametrize("how", ["lost", "unsubscribed"])
def test_presence_of_many_connections(core: Any, how: str) -> None:
    """A connection of a user with many connections joins and leaves as fast as any other one."""

    def lines(count: int) -> int:
        hub = wsfast.Hub(on_join=print, on_leave=print)

        async def main() -> int:
            sinks = [Sink() for _ in range(count)]
            hub.report = lambda *_: None  # type: ignore[method-assign]
            with Interruption(sys.maxsize, list) as counted:
                for sink in sinks:
                    hub.register(sink.connection, "guest")
                    hub.subscribe(sink.connection, "a", "b")
                for sink in sinks:
                    if how == "lost":
                        sink.connection.transport.abort()
                    else:
                        hub.unsubscribe(sink.connection)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            assert len(hub) == (0 if how == "lost" else count)
            return counted.events

        return asyncio.run(main())

    few, many = lines(50), lines(200)
    assert many < 4.2 * few
