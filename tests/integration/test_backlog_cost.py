"""What a publish costs does not grow with what waits for clients that do not read: counted in Python's steps, exact."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

import wsfast
from helpers.peers import until
from wsfast import policies
from wsfast.policies import Policy

CLIENTS = 5
BOUND = 131_072
"""Bytes that may wait for each client."""

FULL = BOUND // 8
"""Messages of eight octets in that."""


class Stalled:
    """A connection that takes nothing."""

    asked = 0

    def write(self, frame: bytes) -> None:
        raise AssertionError("there is no room")

    def writable(self) -> bool:
        self.asked += 1
        return False

    def close(self, code: int, reason: str) -> None: ...


class Stage:
    """A publisher with stalled subscribers."""

    def __init__(self, make: Any, slow: Policy, *, keyed: bool = False) -> None:
        self.publisher = make(slow=slow)
        self.keyed = keyed
        self.sinks = [Stalled() for _ in range(CLIENTS)]
        topics = ("a",) if make is wsfast.Hub else ()
        self.subscriptions = [self.publisher.subscribe(wsfast.attach(sink), *topics) for sink in self.sinks]
        self.number = 0

    def publish(self, message: bytes | None = None) -> None:
        """Publish a message of eight octets, or another one."""
        self.number += 1
        data = b"%08d" % self.number if message is None else message
        topic = ("a",) if isinstance(self.publisher, wsfast.Hub) else ()
        self.publisher.publish(*topic, data, key=self.number if self.keyed else None)

    def flush(self) -> None:
        """Send it, as far as there is room."""
        self.publisher.flush()

    def fill(self) -> None:
        """Publish as much as may wait."""
        for _ in range(FULL // 256):
            for _ in range(256):
                self.publish()
            self.flush()

    def end(self) -> None:
        """End all subscriptions."""
        for subscription in self.subscriptions:
            subscription.unsubscribe()


def steps_of(act: Callable[[], object]) -> int:
    """Return how many lines of wsfast run, and how many functions it calls."""
    steps = 0

    def trace(frame: FrameType, _event: str, _argument: Any) -> Any:
        nonlocal steps
        if "/wsfast/" not in frame.f_code.co_filename:
            return None
        steps += 1
        return trace

    before = sys.gettrace()  # that of the coverage
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return steps


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that do not keep up are not logged."""
    monkeypatch.setattr("wsfast._draining.logger.disabled", True)


@pytest.mark.usefixtures("quiet", "core")
@pytest.mark.parametrize("make", [wsfast.Channel, wsfast.Hub])
@pytest.mark.parametrize("keyed", [False, True], ids=["", "keyed"])
@pytest.mark.parametrize("policy", [wsfast.Disconnect, wsfast.DropNewest, wsfast.DropOldest, wsfast.Conflate])
def test_full_queues_cost_at_most_twice(make: Any, policy: type[Policy], keyed: bool) -> None:
    """To publish, or to look at counts, with full queues costs at most twice what it does with empty ones."""

    def costs(stage: Stage) -> dict[str, int]:
        one = stage.subscriptions[0]

        def publish() -> None:
            stage.publish()
            stage.flush()

        acts = {"publish": publish, "stats": stage.publisher.stats, "one's stats": one.stats, "lag": lambda: one.lag}
        for act in acts.values():
            act()
        return {name: steps_of(act) for name, act in acts.items()}

    async def main() -> None:
        bound = 2 * BOUND if policy is wsfast.Disconnect else BOUND
        stage = Stage(make, policy(max_bytes=bound, max_age=1000.0), keyed=keyed)
        empty = costs(stage)
        stage.fill()
        assert all(subscription.queued >= FULL - 2 for subscription in stage.subscriptions)
        full = costs(stage)
        assert {name: steps for name, steps in full.items() if steps > 2 * empty[name]} == {}
        stage.end()

    asyncio.run(main())


@pytest.mark.usefixtures("quiet", "core")
@pytest.mark.parametrize("policy", [wsfast.DropOldest, wsfast.Conflate])
def test_large_message_makes_room_bit_by_bit(policy: type[Policy]) -> None:
    """One large message does not hold up everybody while thousands of small ones are dropped; in the end they are."""

    async def main() -> None:
        stage = Stage(wsfast.Channel, policy(max_bytes=BOUND))
        stage.fill()
        stage.publish(bytes(BOUND))
        steps = steps_of(stage.flush)
        assert steps < CLIENTS * policies.MOST_DROPS * 100
        await until(lambda: all(subscription.queued == 1 for subscription in stage.subscriptions))
        stats = stage.publisher.stats()
        assert (stats.queued, stats.dropped) == (CLIENTS, CLIENTS * FULL)
        stage.end()

    asyncio.run(main())


@pytest.mark.usefixtures("quiet", "core")
def test_dropping_goes_on_after_an_interrupt() -> None:
    """What is left to be dropped is not forgotten if a signal handler raises before the next slice begins."""

    async def main() -> None:
        stage = Stage(wsfast.Channel, wsfast.DropOldest(max_bytes=BOUND))
        stage.fill()
        stage.publish(bytes(BOUND))
        stage.flush()
        stage.publisher._dispatcher.slow._trimming.cancel()
        await until(lambda: all(subscription.queued == 1 for subscription in stage.subscriptions))
        stage.end()

    asyncio.run(main())


@pytest.mark.usefixtures("quiet", "core")
def test_far_too_much_is_dropped_at_once() -> None:
    """However fast large messages come, no more than twice the bound waits, and the two newest."""

    async def main() -> None:
        stage = Stage(wsfast.Channel, wsfast.DropOldest(max_bytes=BOUND))
        stage.fill()
        for _ in range(5):
            stage.publish(bytes(BOUND // 2))
            stage.flush()
            assert all(subscription.bytes <= 3 * BOUND for subscription in stage.subscriptions)
        await until(lambda: all(subscription.bytes <= BOUND for subscription in stage.subscriptions))
        stage.end()

    asyncio.run(main())


@pytest.mark.usefixtures("quiet", "core")
def test_stalled_clients_cost_little_while_nothing_is_published() -> None:
    """A client without a socket, which must be asked whether it has room, costs the same whatever waits for it."""

    async def main() -> None:
        stage = Stage(wsfast.Channel, wsfast.DropOldest(max_bytes=BOUND))
        stage.fill()
        asked = stage.sinks[0].asked
        steps = 0
        dispatcher = stage.publisher._dispatcher
        drain = dispatcher.drain

        def counted(peer: Any) -> None:
            nonlocal steps
            steps = max(steps, steps_of(lambda: drain(peer)))

        dispatcher.drain = counted
        await until(lambda: stage.sinks[0].asked > asked + 3)
        del dispatcher.drain
        assert 0 < steps < 200
        stage.end()

    asyncio.run(main())


@pytest.mark.usefixtures("quiet", "core")
def test_many_that_expire_do_not_stop_the_loop() -> None:
    """When much has waited for too long at the same time, it is dropped bit by bit."""

    async def main() -> None:
        stage = Stage(wsfast.Channel, wsfast.DropOldest(max_bytes=BOUND, max_age=0.3))
        stage.fill()
        loop = asyncio.get_running_loop()
        longest = 0
        begin = time.monotonic()
        while any(subscription.queued for subscription in stage.subscriptions):
            assert time.monotonic() < begin + 60
            before = stage.publisher.stats().dropped
            await asyncio.sleep(0)
            longest = max(longest, stage.publisher.stats().dropped - before)
        assert longest < FULL
        assert loop.is_running()
        stage.end()

    asyncio.run(main())


@pytest.mark.usefixtures("quiet", "core")
def test_messages_of_one_tick_cost_the_same_each() -> None:
    """A connection that takes messages one by one costs no more for each if there are many of them."""

    class Sink(Stalled):
        got = 0

        def write(self, frame: bytes) -> None:
            self.got += 1

        def writable(self) -> bool:
            return True

    async def main() -> None:
        each = []
        for count in (100, 1000):
            channel, sink = wsfast.Channel(), Sink()
            channel.subscribe(wsfast.attach(sink))
            for _ in range(count):
                channel.publish("message")
            each.append(steps_of(channel.flush) / count)
            assert sink.got == count
        assert each[1] < 1.5 * each[0]

    asyncio.run(main())


@pytest.mark.usefixtures("quiet", "core")
def test_timers_do_not_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that was held up has as many timers afterwards as before."""
    for name in ("_draining.AGE_INTERVAL", "_writable.LATE", "connections.foreign.CLOSING_INTERVAL"):
        monkeypatch.setattr(f"wsfast.{name}", 0.02)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        stage = Stage(wsfast.Channel, wsfast.DropOldest(max_messages=3))
        looked = 0

        def count(original: Callable[..., None]) -> Callable[..., None]:
            def look(*arguments: Any) -> None:
                nonlocal looked
                looked += 1
                original(*arguments)

            return look

        slow = stage.publisher._dispatcher.slow
        slow._look = count(slow._look)
        for _ in range(10):
            stage.publish()
            stage.flush()
            await asyncio.sleep(0)
            time.sleep(0.06)
            stage.publish()
            stage.flush()
        looked = 0
        begin = loop.time()
        await asyncio.sleep(0.4)
        assert looked <= (loop.time() - begin) / 0.02 + 2
        stage.end()

    asyncio.run(main())


@pytest.mark.usefixtures("core")
def test_ticks_do_not_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that cannot keep up sends in one callback an iteration, so that others have their turn."""
    monkeypatch.setattr("wsfast._dispatcher.LATE", 0.005)
    monkeypatch.setattr("wsfast._dispatcher.BUDGET", -1.0)
    monkeypatch.setattr("wsfast._dispatcher.SLICE", 1)

    async def main() -> None:
        channel = wsfast.Channel(slow=wsfast.DropOldest(max_messages=3))
        for _ in range(200):
            channel.subscribe(wsfast.attach(Stalled()))
        channel.flush()
        dispatcher: Any = channel._dispatcher
        on_tick, ticks, most = dispatcher._on_tick, 0, 0

        def counted() -> None:
            nonlocal ticks
            ticks += 1
            on_tick()

        dispatcher._on_tick = counted
        for _ in range(20):
            channel.publish("message")
            ticks = 0
            await asyncio.sleep(0)
            most = max(most, ticks)
            time.sleep(0.01)
        channel.flush()
        assert most <= 2

    asyncio.run(main())
