"""Shared takeover: who shares the compression of a message, and that nobody is sent what refers to the unknown."""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode

import wsfast
from helpers.inflate import Spec, Wire, connect, tick
from wsfast._encoding.deflate import LazyEncoder, Parameters, compress_by


async def end(wires: list[Wire]) -> None:
    for wire in wires:
        wire.close()
    for wire in wires:
        await wire.connection.connection_lost_waiter


def play(main: Callable[[], Any]) -> Any:
    """Run a coroutine function in a fresh event loop."""
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop, debug=False) as runner:
        return runner.run(main())


async def publish(wires: list[Wire], message: str | bytes) -> wsfast.Delivery:
    """Broadcast a message, and have the clients receive it."""
    prepared = wsfast.PreparedMessage(message)
    for wire in wires:
        wire.expect(prepared.opcode, prepared.data)
    delivery = wsfast.broadcast([wire.connection for wire in wires], message)
    await settle(wires)
    return delivery


def take(wire: Wire, message: str) -> None:
    """Read what a client was sent of a broadcast that was interrupted: the message or nothing."""
    wire.expect(1, message.encode())
    wire.read()
    wire.expected.clear()


async def settle(wires: list[Wire]) -> None:
    await asyncio.sleep(0)
    for wire in wires:
        await wire.settle()


Scene = Callable[[list[Wire]], Any]


def stage(scene: Scene, *specs: Spec) -> None:
    """Play a scene with some connections."""

    async def main() -> None:
        wires = [await connect(spec) for spec in specs]
        try:
            await scene(wires)
        finally:
            await end(wires)

    play(main)


def shared(wires: list[Wire]) -> bool:
    """Whether all were sent the same frame last, and it is smaller than if compressed by itself."""
    (frame,) = {wire.inflater.last for wire in wires}
    return len(frame) < 100


# ---- Who shares


@pytest.mark.parametrize("bits", [9, 12, 15])
def test_ratio_is_that_of_takeover(core: Any, bits: int) -> None:
    """Messages are hardly larger than those of connections that compress for themselves."""

    async def scene(wires: list[Wire]) -> None:
        upstream = PerMessageDeflate(False, False, 15, bits, {"memLevel": 5})
        ours = theirs = 0
        for number in range(1000):
            message = tick(number)
            await publish(wires, message)
            ours += len(wires[0].inflater.last)
            theirs += len(upstream.encode(Frame(Opcode.TEXT, message.encode())).data) + 2
            assert wires[0].inflater.last == wires[1].inflater.last
        assert ours < 1.05 * theirs

    stage(scene, Spec(bits=bits), Spec(kind="factory", bits=bits))


def test_newcomers_share_at_once_and_join_after_a_window(core: Any) -> None:
    """Newcomers share what they hold from the second message on, and once that is a window, they hold what all hold."""

    async def scene(wires: list[Wire]) -> None:
        for number in range(20):
            await publish(wires, tick(number))
        newcomers = [await connect(Spec()) for _ in range(2)]
        wires += newcomers
        await settle(wires)
        for number in range(20, 40):
            await publish(wires, tick(number, 256))
            assert shared(newcomers) is (number > 20)
            assert (wires[0].encoder.state is wires[-1].encoder.state) == (number - 19 >= 4096 // 256)
        assert shared(wires)

    stage(scene, *[Spec()] * 3)


def test_the_first_messages_are_shared_at_once(core: Any) -> None:
    """Connections that are there from the beginning share from the first message on."""

    async def scene(wires: list[Wire]) -> None:
        for number in range(10):
            await publish(wires, tick(number))
            assert len({wire.inflater.last for wire in wires}) == 1
            (window,) = {wire.encoder.state for wire in wires}
            assert window.count == 3
        assert shared(wires)

    stage(scene, *[Spec()] * 3)


def test_at_most_three_compressions(core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each message is compressed at most three times for each set of parameters, and no connection makes an encoder."""
    sizes: list[int] = []

    def compress(encoder: Any, data: bytes) -> bytes:
        sizes.append(len(data))
        return compress_by(encoder, data)

    monkeypatch.setattr(sys.modules["wsfast._encoding.shared"], "compress_by", compress)
    monkeypatch.setattr(sys.modules["wsfast._encoding.deflate"], "compress_by", compress)

    async def scene(wires: list[Wire]) -> None:
        chance = random.Random(1)
        seen = set()
        for number in range(150):
            sizes.clear()
            await publish(chance.sample(wires, chance.randint(1, len(wires))) if number > 50 else wires, tick(number))
            assert len(sizes) <= 5  # two for each set of parameters, and what was compressed by itself fits both
            seen.add(len(sizes))
            if number % 25 == 24:
                wires += [await connect(spec) for spec in (Spec(), Spec(), Spec(kind="factory", bits=11))]
        assert {2, 5} <= seen
        await publish(wires, tick(150))
        assert all(wire.encoder.encoder is None for wire in wires)

    stage(scene, *[Spec()] * 3, *[Spec(bits=11)] * 3, Spec(client=True), Spec(bits=11, kind="factory"))


def test_private_message_takes_out(core: Any) -> None:
    """A connection that sends something for itself shares no more until its window is full again."""

    async def scene(wires: list[Wire]) -> None:
        one, others = wires[0], wires[1:]
        for number in range(30):
            await publish(wires, tick(number, 256))
        assert shared(wires)
        one.expect(1, tick(30).encode())
        await one.connection.send(tick(30))
        await settle(wires)
        assert len(one.inflater.last) < 100  # its encoder was primed
        assert one.encoder.encoder is not None
        for number in range(31, 60):
            await publish(wires, tick(number, 256))
            assert len({wire.inflater.last for wire in others}) == 1
            assert (one.encoder.state is others[0].encoder.state) == (number - 30 >= 16)
            assert one.encoder.encoder is None
        assert shared(wires)

    stage(scene, *[Spec()] * 3)


@pytest.mark.parametrize("how", ["left out", "twice", "sent to alone"])
def test_what_takes_out(core: Any, how: str) -> None:
    """A connection that misses a message, or gets one twice or alone, holds something else until its window is full."""

    async def scene(wires: list[Wire]) -> None:
        one, others = wires[0], wires[1:]
        for number in range(30):
            await publish(wires, tick(number, 256))
        match how:
            case "left out":
                await publish(others, tick(30, 256))
            case "twice":
                await publish([*wires, one], tick(30, 256))
            case "sent to alone":
                await publish([one], tick(30, 256))
        await settle(wires)
        # If it was given twice, the second one is the first of those that it has in common with the others.
        already = how == "twice"
        for number in range(31, 60):
            await publish(wires, tick(number, 256))
            assert len({wire.inflater.last for wire in others}) == 1
            assert shared([one]), "both have had enough in common with themselves"
            assert (one.encoder.state is others[0].encoder.state) == (number - 30 >= 16 - already)
        assert shared(wires)

    stage(scene, *[Spec()] * 3)


@pytest.mark.parametrize("message", ["x" * 15, "", random.Random(1).randbytes(1000)], ids=["tiny", "empty", "noise"])
def test_what_is_not_compressed_takes_nobody_out(core: Any, message: str | bytes) -> None:
    """What is sent as it is, for being small or not shrinking, changes nothing for what follows."""

    async def scene(wires: list[Wire]) -> None:
        for number in range(30):
            await publish(wires, tick(number))
        windows = [wire.encoder.state for wire in wires]
        plain = wsfast.PreparedMessage(message)
        await publish(wires, message)
        assert {wire.inflater.last for wire in wires} == {plain.frame}
        assert [wire.encoder.state for wire in wires] == windows
        await publish(wires, tick(31))
        assert shared(wires)

    stage(scene, *[Spec()] * 3)


def test_uncompressed_on_request_takes_nobody_out(core: Any) -> None:
    """compress=False sends a message as it is, which changes nothing for what follows."""

    async def scene(wires: list[Wire]) -> None:
        for number in range(5):
            await publish(wires, tick(number))
        for wire in wires:
            wire.expect(1, tick(5).encode())
        wsfast.broadcast([wire.connection for wire in wires], tick(5), compress=False)
        await settle(wires)
        assert {wire.inflater.last for wire in wires} == {wsfast.PreparedMessage(tick(5)).frame}
        await publish(wires, tick(6))
        assert shared(wires)

    stage(scene, *[Spec()] * 3)


def test_what_does_not_shrink_is_compressed_at_first(core: Any) -> None:
    """What is the first that a connection sends is compressed even if it does not shrink, unless it is large."""

    async def scene(wires: list[Wire]) -> None:
        noise = random.Random(1).randbytes(300)
        large, other = random.Random(2).randbytes(2049), random.Random(3).randbytes(300)
        await publish(wires, large)
        assert wires[0].inflater.last == wsfast.PreparedMessage(large).frame
        await publish(wires, noise)
        assert len(noise) < len(wires[0].inflater.last) < len(noise) + 16
        await publish(wires, other)
        assert wires[0].inflater.last == wsfast.PreparedMessage(other).frame
        await publish(wires, noise)
        assert shared(wires)

    stage(scene, Spec(kind="factory"), Spec(kind="factory"))
    stage(scene, Spec(), Spec())


def test_others_get_what_they_can_read(core: Any) -> None:
    """Connections without takeover, without compression or with unknown settings get what they can read."""

    async def scene(wires: list[Wire]) -> None:
        for number in range(30):
            delivery = await publish(wires, tick(number))
            assert delivery.skipped == delivery.failed == 0
        assert shared(wires[:2])
        assert 100 < len(wires[2].inflater.last) < 260 < len(wires[3].inflater.last)

    specs = Spec(takeover=False), Spec(kind="plain"), Spec(kind="preset"), Spec(client=True), Spec(debug=True)
    stage(scene, *[Spec()] * 2, *specs)


def test_groups_share_apart(core: Any) -> None:
    """Rooms that get messages of their own share in each of them; one for all tells nobody what others hold."""

    async def scene(wires: list[Wire]) -> None:
        rooms = wires[:3], wires[3:6], wires[6:]
        for number in range(30):
            for i, room in enumerate(rooms):
                await publish(room, tick(100 * i + number))
                assert number == 0 or shared(room)
        await publish(wires, tick(1000))
        assert [shared(room) for room in rooms].count(True) == 2  # at most two compressions refer to earlier messages
        for number in range(30, 40):
            for i, room in enumerate(rooms):
                await publish(room, tick(100 * i + number))
                assert shared(room)

    stage(scene, *[Spec()] * 9)


def test_one_gets_messages_alone_and_all_get_theirs(core: Any) -> None:
    """Messages for single connections do not have the many get theirs compressed by itself."""

    async def scene(wires: list[Wire]) -> None:
        chance, few = random.Random(1), wires[:3]
        for number in range(30):
            await publish(wires, tick(number))
        for number in range(60):
            alone = few[number % 3]
            await publish([alone], tick(1000 + number))
            chance.shuffle(wires)
            await publish(wires, tick(30 + number))
            sizes = sorted(len(wire.inflater.last) for wire in wires)
            assert sizes[len(wires) // 2] < 100

    stage(scene, *[Spec()] * 12)


def test_what_is_known_is_bounded(core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each connection holds something else, only so much of that is remembered, and none is sent wrong bytes."""
    deflate = sys.modules["wsfast._encoding.deflate"]
    monkeypatch.setattr(deflate, "MOST_KEPT", 20 * 512)
    parameters = Parameters.of(9, {"memLevel": 5})
    assert parameters is not None
    parameters._new.clear()

    async def scene(wires: list[Wire]) -> None:
        for number in range(300):
            await publish([wires[number % len(wires)]], tick(number, 100))
        windows = [wire.encoder.state for wire in wires]
        assert 17 <= sum(bool(window.tail) for window in windows) <= 21
        assert sum(window.known[1] is not None for window in windows) <= deflate.MOST_ENCODERS
        for number in range(300, 310):
            await publish(wires, tick(number, 100))
        assert shared(wires)

    stage(scene, *[Spec(bits=9)] * 40)


def test_skips_fragmented_messages(core: Any) -> None:
    """A connection that is sending a fragmented message is skipped, and shares no more thereafter."""

    async def scene(wires: list[Wire]) -> None:
        gate = asyncio.get_running_loop().create_future()

        async def fragments() -> Any:
            yield tick(50)
            await gate
            yield tick(51)

        for number in range(5):
            await publish(wires, tick(number))
        task = asyncio.get_running_loop().create_task(wires[0].connection.send(fragments()))
        await asyncio.sleep(0)
        wires[1].expect(1, tick(5).encode())
        delivery = wsfast.broadcast([wire.connection for wire in wires], tick(5))
        assert delivery.skipped == 1
        wires[0].expect(1, (tick(50) + tick(51)).encode())
        gate.set_result(None)
        await task
        for number in range(6, 40):
            await publish(wires, tick(number))
        assert shared(wires)

    stage(scene, *[Spec()] * 2)


@pytest.mark.parametrize("bits", [9, 10, 12])
def test_nobody_is_referred_to_what_is_beyond_its_window(core: Any, bits: int) -> None:
    """Those that share get nothing that refers to more than they hold, even if all of it comes again."""

    async def scene(wires: list[Wire]) -> None:
        chance = random.Random(bits)
        past = b""
        for number in range(150):
            start = max(len(past) - chance.randint(30, 2 << bits), 0)
            message = past[start:][: chance.randint(30, 250)] + chance.randbytes(chance.randint(17, 40))
            past += message
            wire = wires[number % 3]
            if number % 7 == 6:
                wire.expect(2, past[-(1 << bits) :])
                await wire.connection.send(past[-(1 << bits) :])
            await publish(wires if number % 11 else [wire, *wires, wire], message)
            await settle(wires)

    stage(scene, *[Spec(bits=bits)] * 4)


def test_a_window_is_held_exactly() -> None:
    """What an encoder is primed with after a shared frame is what the receiver holds, byte by byte."""
    primed: list[bytes] = []

    async def scene(wires: list[Wire]) -> None:
        parameters = Parameters.of(9, {"memLevel": 5})
        assert parameters is not None
        for number in range(8):
            lazy = wires[number % 2].encoder
            await publish(wires, tick(number, 100))
            if number == 4:
                primed.append(lazy_window(wires[0].encoder))
        assert isinstance(lazy, LazyEncoder)
        primed.append(lazy_window(lazy))
        await publish(wires[:1], tick(8, 100))
        primed.append(lazy_window(wires[1].encoder))
        await settle(wires)

    def lazy_window(lazy: LazyEncoder) -> bytes:
        window: bytes = lazy.state.tail
        return window

    stage(scene, *[Spec(kind="factory", bits=9)] * 2)
    sent = "".join(tick(number, 100) for number in range(9)).encode()
    assert primed == [sent[:500], sent[800 - 512 : 800], sent[800 - 512 : 800]]


# ---- Exceptions out of nowhere


class Interruption:
    """Raises an exception when a function of ours is about to be called or has returned from one of C's.

    There, a signal handler may raise; and where memory is allocated, its lack.
    """

    def __init__(self, exception: type[BaseException], event: str, number: int) -> None:
        self.exception, self.event, self.left = exception, event, number

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        files = "_broadcast.py", "shared.py", "deflate.py", "message.py"
        if event == self.event and Path(frame.f_code.co_filename).name in files:
            self.left -= 1
            if self.left == 0:
                raise self.exception(f"{frame.f_code.co_name}, line {frame.f_lineno}")

    @property
    def came(self) -> bool:
        return self.left <= 0


ORDERS: dict[str, Callable[[list[Wire]], list[Wire]]] = {
    "newcomer last": lambda wires: wires,
    "newcomer first": lambda wires: wires[::-1],
    "without one that shares": lambda wires: wires[1:],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
@pytest.mark.parametrize("event", ["call", "c_return"])
@pytest.mark.parametrize("exception", [MemoryError, TimeoutError, KeyboardInterrupt])
def test_interrupted_anywhere(
    core: Any, exception: type[BaseException], event: str, order: Callable[[list[Wire]], list[Wire]]
) -> None:
    """Wherever an exception comes out of nowhere, clients get the message or do not, and all that follow."""

    async def main(number: int) -> bool:
        wires = [await connect(Spec()) for _ in range(2)]
        try:
            for _ in range(2):
                await publish(wires, tick(len(wires)))
                await publish(wires, tick(len(wires) + 1))
                wires.append(await connect(Spec()))
            await settle(wires)
            chosen = order(wires)
            interruption = Interruption(exception, event, number)
            sys.setprofile(interruption)
            try:
                wsfast.broadcast([wire.connection for wire in chosen], tick(9))
            except exception:
                pass
            finally:
                sys.setprofile(None)
            await asyncio.sleep(0)
            for wire in chosen:
                take(wire, tick(9))
            for i in range(10, 14):
                await publish(wires, tick(i))
            for wire in wires:
                wire.expect(1, tick(14).encode())
                await wire.connection.send(tick(14))
            await settle(wires)
        finally:
            await end(wires)
        return interruption.came

    for number in itertools.count(1):
        if not play(lambda number=number: main(number)):  # type: ignore[misc]
            break
    assert number > 20
