"""Exceptions out of nowhere while connections are written to: nothing is sent twice or refers to the unknown."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import wsfast
from helpers.inflate import Spec, Wire, connect, tick
from helpers.peers import TIMEOUT
from wsfast._backlog import Backlog, Queue


class Nowhere(BaseException):
    """What a signal handler raises."""


class Interruption:
    """Raises an exception at the nth call of a function of some modules."""

    def __init__(self, number: int, *modules: str) -> None:
        self.left, self.modules = number, modules

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and Path(frame.f_code.co_filename).name in self.modules:
            self.left -= 1
            if self.left == 0:
                raise Nowhere(f"{frame.f_code.co_name}, line {frame.f_lineno}")


def play(main: Callable[[Wire], Awaitable[Any]], spec: Spec) -> Any:
    """Run a coroutine function of a connection."""

    async def connected() -> Any:
        wire = await connect(spec)
        try:
            return await asyncio.wait_for(main(wire), TIMEOUT)
        finally:
            sys.setprofile(None)
            wire.close()
            await wire.connection.connection_lost_waiter

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop, debug=False) as runner:
        return runner.run(connected())


@pytest.mark.parametrize("busy", [False, True])
def test_an_interrupted_broadcast_leaves_encoders_right(core: Any, busy: bool) -> None:
    """Where a message may be out and not be noted, nothing that refers to it follows on that connection."""

    async def main(wire: Wire, number: int) -> bool:
        connection = wire.connection
        for i in range(2):
            wire.expect(1, tick(i, 400).encode())
            wsfast.broadcast([connection], tick(i, 400))
        if busy:
            wire.expect(1, b"x" * 50_000)
            wsfast.broadcast([connection], "x" * 50_000, compress=False)
        interruption = Interruption(number, "_delivery.py", "deflate.py", "message.py")
        sys.setprofile(interruption)
        try:
            wsfast.broadcast([connection], tick(2, 300))
        except Nowhere:
            pass
        finally:
            sys.setprofile(None)
        if not connection.transport.is_closing():
            await asyncio.sleep(0)
            await received_or_not(wire, tick(2, 300))
            wire.expect(1, tick(1, 400).encode())
            await connection.send(tick(1, 400))  # which refers to what the window ends with
            await wire.settle()
        return interruption.left <= 0

    for number in itertools.count(1):
        if not play(lambda wire, number=number: main(wire, number), Spec(small=busy)):  # type: ignore[misc]
            break
    assert number > 4


async def received_or_not(wire: Wire, message: str) -> None:
    """Read all that is underway, among it a message that may not have been sent."""
    wire.expect(1, message.encode())
    while True:
        wire.read()
        if not wire.buffered:
            break
        await asyncio.sleep(0)
    wire.read()
    wire.expected.clear()


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize(("owner", "name"), [(Queue, "remove"), (Backlog, "taken")])
def test_an_interrupted_drain_sends_nothing_twice(
    core: Any, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, nth: int
) -> None:
    """When an exception comes while messages that were sent are forgotten, each is sent once, in order."""
    calls = 0
    original = getattr(owner, name)

    def interrupted(self: Any, first: Any, *args: Any, **options: Any) -> None:
        nonlocal calls
        calls += bool(first)  # where nothing was taken, nothing is to be forgotten
        if calls == nth and first:
            calls += 1
            raise Nowhere
        original(self, first, *args, **options)

    async def main(wire: Wire) -> None:
        reported: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
        channel = wsfast.Channel(slow=wsfast.Disconnect(max_bytes=None))
        subscription = channel.subscribe(wire.connection)
        published = 0

        def publish(count: int, size: int) -> None:
            nonlocal published
            for _ in range(count):
                message = f"{published:05d}".ljust(size)
                wire.expect(1, message.encode())
                channel.publish(message)
                published += 1
            channel.flush()

        while subscription.queued < 5:
            publish(5, 3000)
        publish(10, 40)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupted)
            for _ in range(1000):
                wire.read()
                if not subscription.queued:
                    break
                await asyncio.sleep(0.001)
        await wire.settle()
        publish(1, 40)
        await wire.settle()
        assert not wire.expected
        assert [type(exc) for exc in reported] in ([Nowhere], [])

    play(main, Spec("plain", small=True))
