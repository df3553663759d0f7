"""Processes that come, go and lose messages: each learns who is connected to any of them. The judge is a list.

The time is made up: it passes when nothing else is to be done. The profile is small. To run about 20,000 steps:

    WSFAST_TEST_MACHINE_STEPS=20000 pytest -s --timeout 0 -o faulthandler_timeout=0 \
        tests/model/test_presence_machine.py
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import selectors
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

import wsfast
from model.test_hub_machine import matching
from wsfast.relay import Presence, Relay, announcing, notices
from wsfast.relay.presence import BATCH_SECONDS
from wsfast.relay.wire import PUBLISHER, Keyring

STEPS = int(os.environ.get("WSFAST_TEST_MACHINE_STEPS", "600"))
STEPS_PER_RUN = 30
INTERVAL, MISSES, GRACE = 0.5, 3, 1.0
MOST = 4
SETTLED = 0.5
"""Seconds after which the others know of a change, if nothing is lost."""

HEALED = 8.0
"""Seconds after which all processes are connected to the broker again."""

NAMES = ["a", "b", "a.x", "a.*", ">"]
USERS = ["ann", "bob", 7]
WHICH = st.integers(0, MOST - 1)
FILTERS = st.lists(st.sampled_from(NAMES), max_size=3, unique=True)
USER = st.sampled_from([None, *USERS])
SECRET = Keyring(b"0123456789abcdef", "machine")


class Selector(selectors.SelectSelector):
    """Has the time pass instead of waiting."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if not events and timeout != 0:
            assert timeout is not None, "everything waits, and nothing will happen"
            self.now += timeout
        return events


class Loop(asyncio.SelectorEventLoop):
    """An event loop with a time of its own."""

    def __init__(self) -> None:
        self.selector = Selector()
        super().__init__(self.selector)
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self.selector.now


class Line:
    """A connection of a user."""

    def __init__(self, node: Node, user: Any, filters: Sequence[str]) -> None:
        self.node = node
        self.user = user
        self.filters = set(filters)
        self.since = node.bus.loop.time()
        self.sure = node.bus.is_healed()
        self.connection = wsfast.attach(self)
        if user is not None:
            node.hub.register(self.connection, user)
        if filters:
            node.hub.subscribe(self.connection, *filters)

    def write(self, data: bytes) -> None: ...

    def writable(self) -> bool:
        return True

    def close(self, code: int, reason: str) -> None: ...

    def places(self) -> set[tuple[Any, str | None]]:
        """Return where the user is."""
        return set() if self.user is None else {(self.user, name) for name in (None, *self.filters)}


class Bus:
    """A broker, and the connections to it."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.up = True
        self.went_up = 0.0
        self.lines: list[Line] = []
        self.nodes: list[Node] = []
        self.packets: list[tuple[bytes, set[Node]]] = []
        """The last ones that were published, and who has got them for certain."""
        self.gone: dict[tuple[Any, str | None], float] = {}
        """When the last connection of a user was closed there."""

    def is_healed(self) -> bool:
        return self.up and self.loop.time() > self.went_up + HEALED

    def remove(self, line: Line) -> None:
        self.lines.remove(line)
        if line.since < self.loop.time() - SETTLED:  # else others may not have been told that it was there
            self.gone.update(dict.fromkeys(line.places(), self.loop.time()))

    def publish(self, sender: Node, packets: Sequence[tuple[Any, bytes]]) -> None:
        for address, data in packets:
            certain = {node for node in self.nodes if node.sure} if self.is_healed() else set()
            self.packets = [*self.packets[-300:], (data, certain)]
            for node in self.nodes:
                if address is not None or node.receive is None or node.silent:
                    continue
                if node.losses and node is not sender:
                    node.losses -= 1
                    continue
                self.loop.call_soon(node.take, data)


class Connection:
    """A connection to the broker, for publishing or subscribing."""

    largest = 1 << 12

    def __init__(self, node: Node) -> None:
        self.node = node
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        node.connections.add(self)

    async def publish(self, packets: Sequence[tuple[Any, bytes]]) -> dict[int, Exception]:
        if self.node.silent:
            await self.lost
        if self.lost.done():
            raise ConnectionResetError
        self.node.bus.publish(self.node, packets)
        await asyncio.sleep(0.001)
        return {}

    async def subscribe(self, interests: Sequence[Any]) -> None: ...

    async def unsubscribe(self, interests: Sequence[Any]) -> None: ...

    async def run(self) -> None:
        await self.lost

    async def close(self) -> None:
        self.node.connections.discard(self)


class Node:
    """A process: a hub, a relay, and what its callbacks have told. It is also how its relay sees the broker."""

    name = "bus"
    echoes = True

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.receive: Callable[[bytes, str], None] | None = None
        self.connections: set[Connection] = set()
        self.losses = 0
        self.silent = False
        self.sure_after = 0.0
        """When it knows everything again, though it has missed something."""
        self.hub = wsfast.Hub()
        self.told: set[tuple[Any, str | None]] = set()
        self.wrong: list[str] = []
        self.presence = Presence(
            interval=INTERVAL, misses=MISSES, grace=GRACE, on_join=self.on_join, on_leave=self.on_leave
        )
        self.relay = Relay(
            self.hub,
            self,
            slow=wsfast.DropOldest(max_messages=10),
            on_gap=None,
            timeout=2.0,
            keyring=SECRET,
            presence=self.presence,
        )

    @property
    def sure(self) -> bool:
        """Whether it knows everything, and all others know of it."""
        return self.bus.loop.time() > self.sure_after

    def channel(self, interest: Any) -> str:
        return "all"

    async def open_sending(self) -> Any:
        if not self.bus.up:
            raise ConnectionRefusedError
        return Connection(self)

    async def open_receiving(self, receive: Any, on_missed: Any) -> Any:
        connection = await self.open_sending()
        self.receive = receive
        return connection

    def take(self, data: bytes) -> None:
        if self.receive is not None:
            self.receive(data, "all")

    def cut(self) -> None:
        """Have the broker close the connections."""
        self.receive = None
        for connection in self.connections:
            if not connection.lost.done():
                connection.lost.set_result(None)

    def known(self) -> Any:
        """Return what it knows."""
        presence = self.presence
        state = presence.processes, presence.complete, sorted(presence.users(), key=str)
        return state, [(presence.count(name), sorted(presence.users(name), key=str)) for name in NAMES]

    # ---- What it is told

    def on_join(self, user: Any, name: str | None) -> None:
        if (user, name) in self.told:
            self.wrong.append(f"{user} has joined {name} twice")
        self.told.add((user, name))

    def on_leave(self, user: Any, name: str | None) -> None:
        key = user, name
        if key not in self.told:
            self.wrong.append(f"{user} has left {name} without having joined")
        self.told.discard(key)
        now = self.bus.loop.time()
        gone = self.bus.gone.get(key, 0.0)
        healed = gone > self.bus.went_up + HEALED and self.bus.up and all(node.sure for node in self.bus.nodes)
        if now < gone + GRACE - 0.1 and healed:
            self.wrong.append(f"{user} has left {name} too early")
        before = now - SETTLED
        for line in self.bus.lines:
            if key in line.places() and line.since < before and line.sure and line.node.sure and self.sure:
                self.wrong.append(f"{user} has left {name}, but is there")


class Machine(RuleBasedStateMachine):
    """Processes, the connections of their users, and a broker."""

    seen: Counter[str] = Counter()  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.bus = Bus(self.loop)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.loop.run_until_complete(coroutine)

    def pause(self, seconds: float = 0.0) -> None:
        self.run(asyncio.sleep(seconds))
        for node in self.bus.nodes:
            assert not node.wrong

    def node(self, which: int) -> Node:
        return self.bus.nodes[which % len(self.bus.nodes)]

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        random.seed(seed)
        self.start()
        self.start()

    # ---- Processes

    @rule()
    def start(self) -> None:
        if len(self.bus.nodes) < MOST:
            node = Node(self.bus)
            self.bus.nodes.append(node)
            self.run(node.relay.__aenter__())

    def _remove(self, which: int, error: type[BaseException] | None) -> None:
        if len(self.bus.nodes) > 1:
            node = self.node(which)
            self.run(node.relay.__aexit__(error, None, None))
            node.cut()
            self.bus.nodes.remove(node)
            for line in [line for line in self.bus.lines if line.node is node]:
                self.bus.remove(line)

    @rule(which=WHICH)
    def end(self, which: int) -> None:
        self._remove(which, None)

    @rule(which=WHICH)
    def die(self, which: int) -> None:
        self._remove(which, KeyboardInterrupt)  # without a goodbye

    # ---- Connections

    @rule(which=WHICH, user=USER, filters=FILTERS)
    def connect(self, which: int, user: Any, filters: list[str]) -> None:
        if user is not None or filters:
            self.bus.lines.append(self._on_loop(lambda: Line(self.node(which), user, filters)))

    def _on_loop(self, call: Callable[[], Any]) -> Any:
        async def main() -> Any:
            return call()

        return self.loop.run_until_complete(main())

    def _line(self, which: int) -> Line | None:
        return self.bus.lines[which % len(self.bus.lines)] if self.bus.lines else None

    @rule(which=st.integers(0, 9))
    def disconnect(self, which: int) -> None:
        if line := self._line(which):
            self.bus.remove(line)

            def leave() -> None:
                line.node.hub.unsubscribe(line.connection)
                if line.user is not None:
                    line.node.hub.register(line.connection, line.user).unregister()

            self._on_loop(leave)

    @rule(which=st.integers(0, 9), to=WHICH, after=st.sampled_from([0.0, 0.1, GRACE / 2]))
    def move(self, which: int, to: int, after: float) -> None:
        """Have a connection be made anew, to any process."""
        if line := self._line(which):
            self.disconnect(self.bus.lines.index(line))
            self.pause(after)
            self.connect(to, line.user, sorted(line.filters))
            self.seen["moved"] += 1

    @rule(which=st.integers(0, 9), name=st.sampled_from(NAMES))
    def change(self, which: int, name: str) -> None:
        """Have a connection subscribe to a name, or unsubscribe."""
        if (line := self._line(which)) and line.filters | {name} != {name}:
            line.filters ^= {name}
            line.since = self.loop.time()
            change = line.node.hub.subscribe if name in line.filters else line.node.hub.unsubscribe
            self._on_loop(lambda: change(line.connection, name))

    # ---- The broker

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0, 30.0]))
    def restart(self, seconds: float) -> None:
        """Have the broker be away."""
        for line in self.bus.lines:
            line.sure &= line.since < self.loop.time() - SETTLED
        self.bus.up = False
        for node in self.bus.nodes:
            node.cut()
        self.pause(seconds)
        self.bus.up = True
        self.bus.went_up = self.loop.time()
        self.seen["restarted"] += 1

    @rule(which=WHICH, line=st.integers(0, 9), name=st.sampled_from(NAMES), count=st.integers(1, 3))
    def lose(self, which: int, line: int, name: str, count: int) -> None:
        """Have a process miss what is published when a connection changes."""
        node = self.node(which)
        node.losses = count
        node.sure_after = math.inf
        self.change(line, name)
        self.pause(SETTLED)
        node.losses = 0
        node.sure_after = self.loop.time() + HEALED

    @rule(seconds=st.sampled_from([1.0, 10.0]))
    def suspend(self, seconds: float) -> None:
        """Have no process run, so that nothing becomes known meanwhile."""
        if not self.bus.is_healed():
            self.bus.went_up += seconds
        for node in self.bus.nodes:
            if not node.sure:
                node.sure_after += seconds
        for line in self.bus.lines:
            if line.since >= self.loop.time() - SETTLED:
                line.since += seconds
        self.loop.selector.now += seconds

    @rule(which=WHICH, seconds=st.sampled_from([0.5, 3.0, 10.0]))
    def silence(self, which: int, seconds: float) -> None:
        """Have nothing reach a process, nor leave it, without a word to either."""
        node = self.node(which)
        node.sure_after, node.silent = math.inf, True
        self.pause(seconds)
        node.silent = False
        node.cut()
        node.sure_after = self.loop.time() + HEALED

    @rule(which=st.integers(0, 300), dead=st.booleans(), other=st.booleans())
    def repeat(self, which: int, dead: bool, other: bool) -> None:
        """Have an old packet come again, maybe one of a process that has ended, or a part of one."""
        self.pause(SETTLED)
        alive = {bytes.fromhex(node.relay.id) for node in self.bus.nodes}
        packets = [(data, certain) for data, certain in self.bus.packets if dead == (data[PUBLISHER] not in alive)]
        if not packets:
            return
        data, certain = packets[which % len(packets)]
        self.seen["repeated"] += dead
        for node in self.bus.nodes:
            before = node.known()
            self._on_loop(lambda node=node: node.take(data[:-1] if other else data))  # type: ignore[misc]
            assert node.known() == before or (node not in certain and not other)

    @rule(seconds=st.sampled_from([0.0, BATCH_SECONDS, 0.2, INTERVAL]))
    def wait(self, seconds: float) -> None:
        self.pause(seconds)

    # ---- The judge

    @rule()
    def judge(self) -> None:
        """After some time, each process knows everything, and one of them leads."""
        for node in self.bus.nodes:
            node.losses = 0
        self.pause(HEALED + (2 * MISSES + 12) * INTERVAL + GRACE)
        wanted = set().union(*(line.places() for line in self.bus.lines))
        for node in self.bus.nodes:
            presence = node.presence
            assert (presence.processes, presence.complete) == (len(self.bus.nodes), True)
            assert node.told == wanted
            assert set(presence.users()) == {user for user, name in wanted if name is None}
            for topic in ("a", "b", "a.x", "c"):
                users = {user for user, name in wanted if name is not None and matching(name, topic)}
                assert sorted(presence.users(topic), key=str) == sorted(users, key=str)
                assert {user for user in USERS if presence.has(user, topic)} == users
                count = sum(matching(name, topic) for line in self.bus.lines for name in line.filters)
                assert presence.count(topic) == count
            for pattern in ("a.*", ">"):
                assert set(presence.users(pattern)) == {user for user, name in wanted if name == pattern}
                assert presence.count(pattern) == sum(pattern in line.filters for line in self.bus.lines)
        assert sum(node.presence.leads for node in self.bus.nodes) == 1
        self.seen["judged"] += 1
        self.seen["users"] += bool(wanted)
        self.seen["processes"] += len(self.bus.nodes) > 2

    def teardown(self) -> None:
        try:
            if self.bus.nodes:
                self.judge()
        finally:
            for node in self.bus.nodes:
                self.run(node.relay.__aexit__(None, None, None))
            self.loop.close()


PROFILE = settings(
    max_examples=max(1, STEPS // STEPS_PER_RUN),
    stateful_step_count=STEPS_PER_RUN,
    deadline=None,
    derandomize=False,
    suppress_health_check=list(HealthCheck),
)


def test_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens, each process learns who is there, and is told each join and leave once."""
    monkeypatch.setattr(Machine, "seen", Counter())
    monkeypatch.setattr(notices, "MOST_CHANGES", 2)  # everything has several parts
    monkeypatch.setattr(announcing, "MOST_NOTICES", 2)
    for _ in range(50):  # chance may leave something out, but not again and again
        run_state_machine_as_test(Machine, settings=PROFILE)
        if all(Machine.seen[what] for what in ("moved", "restarted", "judged", "users", "repeated", "processes")):
            break
    else:
        pytest.fail(f"in all runs, there was only {Machine.seen}")
