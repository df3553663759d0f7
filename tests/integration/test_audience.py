"""Audiences: who shares the compression of a message, and that nobody is sent what refers to the unknown."""

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


async def publish(audience: wsfast.Audience, wires: list[Wire], message: str | bytes) -> wsfast.Delivery:
    """Broadcast a message, and have the clients receive it."""
    prepared = wsfast.PreparedMessage(message)
    for wire in wires:
        wire.expect(prepared.opcode, prepared.data)
    delivery = audience.broadcast([wire.connection for wire in wires], message)
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


Scene = Callable[[wsfast.Audience, list[Wire]], Any]


def stage(scene: Scene, *specs: Spec) -> None:
    """Play a scene with an audience and some connections."""

    async def main() -> None:
        wires = [await connect(spec) for spec in specs]
        try:
            await scene(wsfast.Audience(), wires)
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
    """Messages of an audience are hardly larger than those of connections that compress for themselves."""

    async def scene(audience: wsfast.Audience, wires: list[Wire]) -> None:
        upstream = PerMessageDeflate(False, False, 15, bits, {"memLevel": 5})
        ours = theirs = 0
        for number in range(1000):
            message = tick(number)
            await publish(audience, wires, message)
            ours += len(wires[0].inflater.last)
            theirs += len(upstream.encode(Frame(Opcode.TEXT, message.encode())).data) + 2
            assert wires[0].inflater.last == wires[1].inflater.last
        assert ours < 1.05 * theirs

    stage(scene, Spec(bits=bits), Spec(kind="factory", bits=bits))


def test_newcomers_share_after_a_window(core: Any) -> None:
    """A newcomer gets what was compressed by itself until its window is full of messages of the audience."""

    async def scene(audience: wsfast.Audience, wires: list[Wire]) -> None:
        for number in range(20):
            await publish(audience, wires, tick(number))
        wires.append(await connect(Spec()))
        await settle(wires)
        for number in range(20, 40):
            await publish(audience, wires, tick(number, 256))
            shares = wires[0].inflater.last == wires[-1].inflater.last
            assert shares == (number - 20 >= 4096 // 256)
        assert shared(wires)

    stage(scene, *[Spec()] * 3)


def test_the_first_messages_are_shared_at_once(core: Any) -> None:
    """Connections that are there from the beginning share from the first message on."""

    async def scene(audience: wsfast.Audience, wires: list[Wire]) -> None:
        for number in range(10):
            await publish(audience, wires, tick(number))
            assert len({wire.inflater.last for wire in wires}) == 1
        assert shared(wires)

    stage(scene, *[Spec()] * 3)


def test_at_most_two_compressions(core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each message is compressed at most twice for each set of parameters, and no encoder is made for that."""
    sizes: list[int] = []

    def compress(encoder: Any, data: bytes) -> bytes:
        sizes.append(len(data))
        return compress_by(encoder, data)

    monkeypatch.setattr(sys.modules["wsfast._encoding.shared"], "compress_by", compress)
    monkeypatch.setattr(sys.modules["wsfast._encoding.deflate"], "compress_by", compress)

    async def scene(audience: wsfast.Audience, wires: list[Wire]) -> None:
        for number in range(99):
            sizes.clear()
            await publish(audience, wires, tick(number))
            newcomers = [len(wires) > 8 and number % 25 * 260 < window for window in (2048, 4096)]
            assert len(sizes) == 2 + any(newcomers)  # what was compressed by itself fits both windows
            if number % 25 == 24:
                wires += [await connect(spec) for spec in (Spec(), Spec(), Spec(kind="factory", bits=11))]
        assert all(wire.encoder.encoder is None for wire in wires)

    stage(scene, *[Spec()] * 3, *[Spec(bits=11)] * 3, Spec(client=True), Spec(bits=11, kind="factory"))


def test_private_message_takes_out(core: Any) -> None:
    """A connection that sends something for itself shares no more until its window is full again."""

    async def scene(audience: wsfast.Audience, wires: list[Wire]) -> None:
        one, others = wires[0], wires[1:]
        for number in range(30):
            await publish(audience, wires, tick(number, 256))
        assert shared(wires)
        one.expect(1, tick(30).encode())
        await one.connection.send(tick(30))
        await settle(wires)
        assert len(one.inflater.last) < 100  # its encoder was primed
        assert one.encoder.encoder is not None
        for number in range(31, 60):
            await publish(audience, wires, tick(number, 256))
            assert len({wire.inflater.last for wire in others}) == 1
            assert (one.inflater.last == others[0].inflater.last) == (number - 31 >= 16)
            assert one.encoder.encoder is None
        assert shared(wires)

    stage(scene, *[Spec()] * 3)


@pytest.mark.parametrize("how", ["left out", "twice", "broadcast", "other audience"])
def test_what_takes_out(core: Any, how: str) -> None:
    """A connection that misses a message, gets one twice or from elsewhere, shares no more until its window is full."""

    async def scene(audience: wsfast.Audience, wires: list[Wire]) -> None:
        one, others = wires[0], wires[1:]
        for number in range(30):
            await publish(audience, wires, tick(number, 256))
        match how:
            case "left out":
                await publish(audience, others, tick(30, 256))
            case "twice":
                await publish(audience, [*wires, one], tick(30, 256))
            case "broadcast":
                one.expect(1, tick(30, 256).encode())
                wsfast.broadcast([one.connection], tick(30, 256))
            case "other audience":
                await publish(wsfast.Audience(), [one], tick(30, 256))
        await settle(wires)
        # If it was given twice, the second one is the first of those that it has in common with the audience.
        already = how == "twice"
        for number in range(31, 60):
            await publish(audience, wires, tick(number, 256))
            assert len({wire.inflater.last for wire in others}) == 1
            assert (one.inflater.last == others[0].inflater.last) == (number - 31 >= 16 - already)
        assert shared(wires)

    stage(scene, *[Spec()] * 3)


@pytest.mark.parametrize("message", ["x" * 15, "", random.Random(1).randbytes(1000)], ids=["tiny", "empty", "noise"])
def test_what_is_not_compressed_takes_nobody_out(core: Any, message: str | bytes) -> None:
    """What is sent as it is, for being small or not shrinking, changes nothing for what follows."""

    async def scene(audience: wsfast.Audience, wires: list[Wire]) -> None:
        for number in range(30):
            await publish(audience, wires, tick(number))
        windows = [wire.encoder.state for wire in wires]
        plain = wsfast.PreparedMessage(message)
        await publish(audience, wires, message)
        assert {wire.inflater.last for wire in wires} == {plain.frame}
        assert [wire.encoder.state for wire in wires] == windows
        await publish(audience, wires, tick(31))
        assert shared(wires)

    stage(scene, *[Spec()] * 3)


def test_uncompressed_on_request_takes_nobody_out(core: Any) -> None:
    """compress=False sends a message as it is, which changes nothing for what follows."""

    async def scene(audience: wsfast.Audience, wires: list[Wire]) -> None:
        for number in range(5):
            await publish(audience, wires, tick(number))
        for wire in wires:
            wire.expect(1, tick(5).encode())
        audience.broadcast([wire.connection for wire in wires], tick(5), compress=False)
        await settle(wires)
        assert {wire.inflater.last for wire in wires} == {wsfast.PreparedMessage(tick(5)).frame}
        await publish(audience, wires, tick(6))
        assert shared(wires)

    stage(scene, *[Spec()] * 3)


def test_what_does_not_shrink_is_compressed_at_first(core: Any) -> None:
    """Before as much as a window holds was sent, messages are compressed even if they do not shrink."""

    async def scene(audience: wsfast.Audience, wires: list[Wire]) -> None:
        noise = random.Random(1).randbytes(300)
        await publish(audience, wires, noise)
        assert len(wires[0].inflater.last) > len(noise)
        await publish(audience, wires, noise)
        assert shared(wires)

    stage(scene, *[Spec()] * 2)


def test_others_get_what_they_can_read(core: Any) -> None:
    """Connections without takeover, without compression or with unknown settings get what they can read."""

    async def scene(audience: wsfast.Audience, wires: list[Wire]) -> None:
        for number in range(30):
            delivery = await publish(audience, wires, tick(number))
            assert delivery.skipped == delivery.failed == 0
        assert shared(wires[:2])
        assert 100 < len(wires[2].inflater.last) < 260 < len(wires[3].inflater.last)

    specs = Spec(takeover=False), Spec(kind="plain"), Spec(kind="preset"), Spec(client=True), Spec(debug=True)
    stage(scene, *[Spec()] * 2, *specs)


def test_starts_over_when_nobody_shares(core: Any) -> None:
    """When none of those that share is left, the others do not wait for a window to be filled."""

    async def scene(audience: wsfast.Audience, wires: list[Wire]) -> None:
        for number in range(30):
            await publish(audience, wires, tick(number))
        newcomers = [await connect(Spec()) for _ in range(2)]
        wires += newcomers
        await publish(audience, newcomers, tick(30))
        assert not shared(newcomers)
        await publish(audience, newcomers, tick(31))
        assert shared(newcomers)
        await publish(audience, wires, tick(32))
        assert shared(newcomers)
        assert not shared(wires[:3])

    stage(scene, *[Spec()] * 3)


def test_skips_fragmented_messages(core: Any) -> None:
    """A connection that is sending a fragmented message is skipped, and shares no more thereafter."""

    async def scene(audience: wsfast.Audience, wires: list[Wire]) -> None:
        gate = asyncio.get_running_loop().create_future()

        async def fragments() -> Any:
            yield tick(50)
            await gate
            yield tick(51)

        for number in range(5):
            await publish(audience, wires, tick(number))
        task = asyncio.get_running_loop().create_task(wires[0].connection.send(fragments()))
        await asyncio.sleep(0)
        wires[1].expect(1, tick(5).encode())
        delivery = audience.broadcast([wire.connection for wire in wires], tick(5))
        assert delivery.skipped == 1
        wires[0].expect(1, (tick(50) + tick(51)).encode())
        gate.set_result(None)
        await task
        for number in range(6, 40):
            await publish(audience, wires, tick(number))
        assert shared(wires)

    stage(scene, *[Spec()] * 2)


def test_belongs_to_a_thread(core: Any) -> None:
    """An audience that is used from another thread than the one that it has compressed in raises RuntimeError."""
    audience = wsfast.Audience()

    async def main() -> None:
        with pytest.raises(TypeError, match=r"^data must be str or bytes$"):
            audience.broadcast([], 5)  # type: ignore[arg-type]
        await asyncio.to_thread(audience.broadcast, [], tick(0))  # which compresses nothing
        wire = await connect(Spec())
        try:
            await publish(audience, [wire], tick(1))
            for message in tick(2), "x":
                with pytest.raises(RuntimeError, match="an Audience must always be used from the same thread"):
                    await asyncio.to_thread(audience.broadcast, [], message)
            await publish(audience, [wire], tick(3))
        finally:
            await end([wire])

    play(main)


@pytest.mark.parametrize("bits", [9, 10, 12])
def test_nobody_is_referred_to_what_is_beyond_its_window(core: Any, bits: int) -> None:
    """Those that share get nothing that refers to more than they hold, even if all of it comes again."""

    async def scene(audience: wsfast.Audience, wires: list[Wire]) -> None:
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
            await publish(audience, wires if number % 11 else [wire, *wires, wire], message)
            await settle(wires)

    stage(scene, *[Spec(bits=bits)] * 4)


def test_a_window_is_held_exactly() -> None:
    """What an encoder is primed with after a shared frame is what the receiver holds, byte by byte."""
    primed: list[bytes] = []

    async def scene(audience: wsfast.Audience, wires: list[Wire]) -> None:
        parameters = Parameters.of(9, {"memLevel": 5})
        assert parameters is not None
        for number in range(8):
            lazy = wires[number % 2].encoder
            await publish(audience, wires, tick(number, 100))
            if number == 4:
                primed.append(lazy_window(wires[0].encoder))
        assert isinstance(lazy, LazyEncoder)
        primed.append(lazy_window(lazy))
        await publish(audience, wires[:1], tick(8, 100))
        primed.append(lazy_window(wires[1].encoder))
        await settle(wires)

    def lazy_window(lazy: LazyEncoder) -> bytes:
        assert lazy.state.stream is not None
        window: bytes = lazy.state.end()
        return window

    stage(scene, *[Spec(kind="factory", bits=9)] * 2)
    sent = "".join(tick(number, 100) for number in range(9)).encode()
    assert primed == [sent[:500], sent[800 - 512 : 800], sent[900 - 512 : 800]]


# ---- Exceptions out of nowhere


class Interruption:
    """Raises an exception when a function of ours is about to be called or has returned from one of C's.

    There, a signal handler may raise; and where memory is allocated, its lack.
    """

    def __init__(self, exception: type[BaseException], event: str, number: int) -> None:
        self.exception, self.event, self.left = exception, event, number

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        if event == self.event and Path(frame.f_code.co_filename).name in ("audience.py", "deflate.py", "message.py"):
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
        audience = wsfast.Audience()
        wires = [await connect(Spec()) for _ in range(2)]
        try:
            for _ in range(2):
                await publish(audience, wires, tick(len(wires)))
                await publish(audience, wires, tick(len(wires) + 1))
                wires.append(await connect(Spec()))
            await settle(wires)
            chosen = order(wires)
            interruption = Interruption(exception, event, number)
            sys.setprofile(interruption)
            try:
                audience.broadcast([wire.connection for wire in chosen], tick(9))
            except exception:
                pass
            finally:
                sys.setprofile(None)
            await asyncio.sleep(0)
            for wire in chosen:
                take(wire, tick(9))
            for i in range(10, 14):
                await publish(audience, wires, tick(i))
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
