"""Whatever is sent in whatever way and order: each client decompresses exactly the messages that were sent to it.

The profile is small. To run about 100,000 steps with each core, and have them counted:

    WSFAST_TEST_MACHINE_STEPS=100000 pytest -s --timeout 0 -o faulthandler_timeout=0 \
        tests/model/test_deflate_machine.py -k machine
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

import wsfast
from helpers.inflate import Spec, Wire, connect, message_of, tick
from helpers.stage import upstream
from wsfast._encoding.deflate import LazyEncoder, Parameters, Window
from wsfast._encoding.shared import Shared

T = TypeVar("T")

STEPS = int(os.environ.get("WSFAST_TEST_MACHINE_STEPS", "1200"))
STEPS_PER_RUN, AVERAGE = 50, 40
MOST_WIRES = 14
FEW = 1 << 17
"""Bytes of all that is known of windows, so that now and then some of it is forgotten."""

KINDS = (
    ["tick"] * 4
    + ["echo"] * 4
    + ["similar", "binary", "small", "tiny", "empty", "noise", "window", "large", "huge", "noise, huge"]
)
SETTINGS: list[dict[str, int]] = [
    {"memLevel": 5},
    {"memLevel": 8},
    {},
    {"level": 1, "memLevel": 5},
    {"level": 0},
    {"level": 9, "memLevel": 9, "strategy": 1},
    {"strategy": 2},
    {"strategy": 3, "memLevel": 1},
    {"strategy": 4},
]

KIND = st.sampled_from(KINDS)
SPEC = st.builds(
    Spec,
    kind=st.sampled_from(["stock", "stock", "factory", "factory", "plain", "preset"]),
    bits=st.sampled_from([9, 9, 9, 10, 12, 12, 15]) | st.integers(9, 15),
    takeover=st.sampled_from([True, True, True, False]),
    settings=st.sampled_from(SETTINGS[:1] * 6 + SETTINGS).map(lambda settings: tuple(sorted(settings.items()))),
    client=st.sampled_from([False, False, False, True]),
    small=st.sampled_from([False, False, True]),
    debug=st.sampled_from([False] * 9 + [True]),
)
WHICH = st.integers(0, MOST_WIRES - 1)
CHOSEN = st.none() | st.none() | st.lists(WHICH, max_size=2 * MOST_WIRES)
"""None for all."""
HOW = st.sampled_from(["broadcast"] * 8 + ["upstream"])
CONTAINER: st.SearchStrategy[Callable[[list[Any]], Iterable[Any]]] = st.sampled_from([list, list, tuple, iter])


class Machine(RuleBasedStateMachine):
    """Connections of all kinds, and their clients."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=asyncio.SelectorEventLoop, debug=False)
        self.wires: list[Wire] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.prepared: list[wsfast.PreparedMessage] = []
        self.number = 0
        self.log = bytearray()

    # ---- How it is done

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine, and compare what has arrived thereafter."""
        type(self).steps += 1

        async def main() -> T:
            result = await coroutine
            await asyncio.sleep(0)
            for wire in self.wires:
                await wire.settle()
            return result

        return self.runner.run(main())

    async def start(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine up to where it waits for something."""
        self.tasks.append(asyncio.get_running_loop().create_task(coroutine))
        await asyncio.sleep(0)

    def choose(self, chosen: list[int] | None) -> list[Wire]:
        if chosen is None:
            return list(self.wires)
        return [self.wires[which % len(self.wires)] for which in chosen]

    def one(self, which: int) -> Wire:
        return self.wires[which % len(self.wires)]

    def next_message(self, kind: str) -> str | bytes:
        self.number += 1
        message = message_of(kind, self.number, self.log)
        self.log += message.encode() if isinstance(message, str) else message
        del self.log[:-50_000]
        return message

    def broadcast(
        self,
        how: str,
        wires: list[Wire],
        message: Any,
        container: Callable[[list[Any]], Iterable[Any]] = list,
        **options: Any,
    ) -> None:
        """Send a message to some connections, and have their clients expect it."""
        prepared = message if isinstance(message, wsfast.PreparedMessage) else wsfast.PreparedMessage(message)
        for wire in wires:
            if wire.accepts:
                wire.expect(prepared.opcode, prepared.data)
        connections = container([wire.connection for wire in wires])
        if how == "upstream":
            upstream(connections, prepared.data.decode() if prepared.text else prepared.data)
            return
        assert sum(wsfast.broadcast(connections, message, **options)) == len(wires)

    def teardown(self) -> None:
        async def end() -> None:
            for wire in self.wires:
                wire.reading = True
                if wire.fragments is not None:
                    wire.fragments.put_nowait(None)
            for _ in range(5):
                await asyncio.sleep(0)
            for wire in self.wires:
                await wire.settle()

        async def clear() -> None:
            for wire in self.wires:
                wire.close()
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
            for wire in self.wires:
                await wire.connection.connection_lost_waiter

        try:
            self.runner.run(end())
        finally:
            self.runner.run(clear())
            self.runner.close()

    # ---- Coming and going

    @initialize(specs=st.lists(SPEC, min_size=1, max_size=2), copies=st.integers(1, 4))
    def open(self, specs: list[Spec], copies: int) -> None:
        self.run(self.add(specs * copies))

    @rule(spec=SPEC, copies=st.sampled_from([1, 1, 2, 3]))
    def join(self, spec: Spec, copies: int) -> None:
        self.run(self.add([spec] * copies))

    @rule(which=WHICH)
    def join_alike(self, which: int) -> None:
        self.run(self.add([self.one(which).spec._replace(small=False)]))

    async def add(self, specs: list[Spec]) -> None:
        for spec in specs:
            wire = await connect(spec)
            if len(self.wires) < MOST_WIRES:
                self.wires.append(wire)
            else:  # the oldest one leaves
                old = self.wires[self.number % MOST_WIRES]
                self.wires[self.number % MOST_WIRES] = wire
                old.close()
                await old.connection.connection_lost_waiter
            self.number += 1

    @rule(which=WHICH, how=st.sampled_from(["abort", "close", "eof", "reset", "gone"]))
    def leave(self, which: int, how: str) -> None:
        self.run(self.end(self.one(which), how))

    async def end(self, wire: Wire, how: str) -> None:
        match how:
            case _ if wire.ended or wire.connection.connection_lost_waiter.done():
                pass
            case "abort":
                wire.lossy = True
                wire.connection.transport.abort()
            case "close":
                wire.lossy = True
                wire.connection.transport.close()
            case "eof":
                if not wire.fragmenting and not wire.connection.transport.is_closing():
                    wire.shut = True
                    wire.connection.transport.write_eof()
            case "reset":
                wire.lossy = wire.ended = True
                wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                wire.sock.close()
            case "gone":  # its connection does not know yet when it is sent to
                wire.lossy = wire.ended = True
                wire.sock.close()
                self.broadcast("broadcast", self.wires, self.next_message("tick"))

    @rule(which=WHICH, seconds=st.booleans())
    def stall(self, which: int, seconds: bool) -> None:
        """Let a client read no more, or again."""
        wire = self.one(which)
        wire.reading = not wire.reading
        if seconds:
            self.run(asyncio.sleep(0))

    # ---- For one connection

    @rule(which=WHICH, kind=KIND, times=st.sampled_from([1, 1, 2, 10]))
    def send(self, which: int, kind: str, times: int) -> None:
        async def send() -> None:
            wire = self.one(which)
            for _ in range(times):
                if wire.accepts and not wire.connection.transport.is_closing():
                    message = wsfast.PreparedMessage(self.next_message(kind))
                    wire.expect(message.opcode, message.data)
                    await self.start(wire.connection.send(message.data, text=message.text))

        self.run(send())

    @rule(which=WHICH, kinds=st.lists(KIND, min_size=1, max_size=4))
    def send_in_pieces(self, which: int, kinds: list[str]) -> None:
        async def send() -> None:
            wire = self.one(which)
            if wire.accepts and not wire.connection.transport.is_closing() and not wire.connection.paused:
                pieces = [wsfast.PreparedMessage(self.next_message(kind)).data for kind in kinds]
                wire.expect(2, b"".join(pieces))
                await self.start(wire.connection.send(pieces))

        self.run(send())

    @rule(which=WHICH, kind=KIND)
    def begin(self, which: int, kind: str) -> None:
        async def begin() -> None:
            wire = self.one(which)
            if wire.accepts and not wire.connection.transport.is_closing():
                pieces = wire.fragments = asyncio.Queue()
                whole = bytearray()
                wire.expect(2, whole)
                self.add_piece(wire, kind)

                async def fragments() -> AsyncIterator[bytes]:
                    while (piece := await pieces.get()) is not None:
                        whole.extend(piece)
                        yield piece

                await self.start(wire.connection.send(fragments()))
                assert wire.fragmenting

        self.run(begin())

    def add_piece(self, wire: Wire, kind: str) -> None:
        assert wire.fragments is not None
        wire.fragments.put_nowait(wsfast.PreparedMessage(self.next_message(kind)).data)

    @precondition(lambda self: any(wire.fragmenting for wire in self.wires))
    @rule(which=WHICH, kind=KIND | st.none())
    def go_on(self, which: int, kind: str | None) -> None:
        async def go_on() -> None:
            fragmenting = [wire for wire in self.wires if wire.fragmenting and wire.fragments is not None]
            if fragmenting:
                wire = fragmenting[which % len(fragmenting)]
                assert wire.fragments is not None
                if kind is None:
                    wire.fragments.put_nowait(None)
                    wire.fragments = None
                else:
                    self.add_piece(wire, kind)
            for _ in range(3):
                await asyncio.sleep(0)

        self.run(go_on())

    @rule(which=WHICH)
    def ping(self, which: int) -> None:
        async def ping() -> None:
            wire = self.one(which)
            if wire.connection.protocol.state.name == "OPEN" and not wire.shut:
                self.number += 1
                wire.pings.append(b"%d" % self.number)
                await self.start(wire.connection.ping(b"%d" % self.number))

        self.run(ping())

    # ---- For many

    @rule(how=HOW, chosen=CHOSEN, kind=KIND, container=CONTAINER, compress=st.sampled_from([None] * 5 + [False]))
    def broadcast_once(self, how: str, chosen: list[int] | None, kind: str, container: Any, compress: Any) -> None:
        async def broadcast() -> None:
            self.broadcast(how, self.choose(chosen), self.next_message(kind), container, compress=compress)

        self.run(broadcast())

    @rule(how=HOW, chosen=CHOSEN, kind=KIND, times=st.integers(2, 30))
    def broadcast_often(self, how: str, chosen: list[int] | None, kind: str, times: int) -> None:
        async def broadcast() -> None:
            wires = self.choose(chosen)
            for _ in range(times if "huge" not in kind else 2):
                self.broadcast(how, wires, self.next_message(kind))

        self.run(broadcast())

    @rule(how=HOW, chosen=CHOSEN)
    def fill_windows(self, how: str, chosen: list[int] | None) -> None:
        async def fill() -> None:
            self.broadcast(how, self.choose(chosen), tick(self.number, 40_000))
            self.number += 1
            self.broadcast(how, self.choose(chosen), self.next_message("tick"))

        self.run(fill())

    @rule(kind=KIND, compress=st.sampled_from([None, None, False]), text=st.booleans())
    def prepare(self, kind: str, compress: Any, text: bool) -> None:
        data = wsfast.PreparedMessage(self.next_message(kind))
        self.prepared = self.prepared[-3:]
        text = text and kind not in ("echo", "noise", "noise, huge", "tiny")
        self.prepared.append(wsfast.PreparedMessage(data.data, text=text, compress=compress))

    @precondition(lambda self: self.prepared)
    @rule(index=st.integers(0, 3), ways=st.lists(st.tuples(HOW, CHOSEN), min_size=1, max_size=4))
    def broadcast_prepared(self, index: int, ways: list[tuple[str, list[int] | None]]) -> None:
        async def broadcast() -> None:
            message = self.prepared[index % len(self.prepared)]
            for how, chosen in ways:
                self.broadcast(how, self.choose(chosen), message)

        self.run(broadcast())

    @rule(which=WHICH, kind=KIND, outer=HOW, inner=HOW)
    def broadcast_in_the_middle(self, which: int, kind: str, outer: str, inner: str) -> None:
        """Broadcast from what yields the connections of another broadcast."""

        async def broadcast() -> None:
            message = wsfast.PreparedMessage(self.next_message(kind))
            other = self.next_message(kind)
            middle = which % len(self.wires)

            def connections() -> Iterable[Any]:
                for i, wire in enumerate(self.wires):
                    if i == middle:
                        self.broadcast(inner, self.wires, other)
                    if wire.accepts:
                        wire.expect(message.opcode, message.data)
                    yield wire.connection

            if outer == "upstream":
                upstream(connections(), message.data.decode() if message.text else message.data)
            else:
                wsfast.broadcast(connections(), message)

        self.run(broadcast())


PROFILE = settings(
    max_examples=max(STEPS // AVERAGE, 1),
    stateful_step_count=STEPS_PER_RUN,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_machine(core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broadcasts, private messages, fragments and upstream's broadcasts never disturb each other."""
    monkeypatch.setattr(sys.modules["wsfast._encoding.deflate"], "MOST_KEPT", FEW)
    Machine.steps = 0
    run_state_machine_as_test(Machine, settings=PROFILE)
    print(f"\n{Machine.steps} steps")


# ---- That the machine would find faults


def everybody_shares(shared: Any, window: Window) -> Any:
    """Take each window for the one that was asked about first."""
    first = next(iter(shared._chosen.values()), None)
    return first or choose(shared, window)


def counted_out(lazy: Any) -> Any:
    """Make an encoder of the connection's own, and go on to believe that the window holds what it held."""
    lazy.encoder = lazy.encoder or lazy.parameters.encoder(lazy.state.tail)
    return lazy.encoder


choose, same, encoder = Shared._choose, Shared._same, Parameters.encoder


@pytest.mark.parametrize(
    ("owner", "name", "fault"),
    [
        (Window, "tail", property(lambda _: tick(0).encode() * 9)),
        (Parameters, "encoder", lambda parameters, window=b"": encoder(parameters, window and tick(0).encode() * 9)),
        (Shared, "_choose", everybody_shares),
        (Shared, "_same", lambda shared, after, _: same(shared, next(iter(shared._windows), after), 1)),
        (LazyEncoder, "_own", counted_out),
    ],
    ids=[
        "windows not held",
        "primed with others' messages",
        "everybody shares",
        "windows not compared",
        "own messages not noted",
    ],
)
def test_client_finds_faults(core: Any, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, fault: Any) -> None:
    """What the machine relies on finds each of these faults, and nothing without them."""

    async def main() -> None:
        wires = [await connect(Spec(bits=10)) for _ in range(3)]
        try:
            for number in range(80):
                message = tick(number % 7)
                # First all get the same, then some are sent something for themselves, or are left out, or are alone.
                if number > 20 and number % 4 == 3:
                    wires[0].expect(1, message.encode())
                    await wires[0].connection.send(message)
                chosen = wires[number % 3 :] if number > 40 else wires
                for wire in chosen:
                    wire.expect(1, message.encode())
                wsfast.broadcast([wire.connection for wire in chosen], message)
                for wire in wires:
                    await wire.settle()
        finally:
            for wire in wires:
                wire.close()
            for wire in wires:
                await wire.connection.connection_lost_waiter

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())
        monkeypatch.setattr(owner, name, fault)
        with pytest.raises(AssertionError):
            runner.run(main())
