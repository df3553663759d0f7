"""Signal handlers that raise exceptions wherever CPython runs them: after calls, and at the beginning of functions."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Callable
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

import wsfast
from helpers.fixtures import Run
from helpers.interrupts import Interrupt
from helpers.libraries import LIBRARIES
from helpers.peers import until
from wsfast import _dispatcher, _writable
from wsfast.policies import Disconnect

MOST = 2000  # moments; every scenario has less


class Sink:
    """A connection that writes to a list."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.room = True

    def write(self, frame: bytes) -> None:
        while frame:
            self.got.append(bytes(frame[2 : 2 + frame[1]]))
            frame = frame[2 + frame[1] :]

    def writable(self) -> bool:
        return self.room

    def close(self, code: int, reason: str) -> None: ...


class Stage:
    """Four subscribers, of whom the second has no room, and a message that leaves with the next tick."""

    def __init__(self, publisher: Any, topics: tuple[str, ...]) -> None:
        self.publisher = publisher
        self.topics = topics
        self.sinks = [Sink() for _ in range(4)]
        self.connections = [wsfast.attach(sink) for sink in self.sinks]
        self.late = Sink()
        self.newcomer = wsfast.attach(self.late)
        self.subscriptions = [self.subscribe(connection) for connection in self.connections]
        self.sinks[1].room = False
        self.published: list[bytes] = []
        self.publish(3)
        publisher.flush()
        self.publish(1)

    def subscribe(self, connection: Any) -> Any:
        return self.publisher.subscribe(connection, *self.topics)

    def publish(self, count: int) -> None:
        for _ in range(count):
            self.published.append(b"%03d" % len(self.published))
            self.publisher.publish(*([list(self.topics)] if self.topics else []), self.published[-1])

    def reconcile(self) -> None:
        stats = self.publisher.stats()
        everybody = (*self.sinks, self.late)
        assert stats.published == stats.sent + stats.dropped + stats.conflated + stats.queued
        assert stats.queued == 0
        assert stats.sent == sum(len(sink.got) for sink in everybody)


async def flush(stage: Stage) -> None:
    stage.publisher.flush()


async def tick(_: Stage) -> None:
    await asyncio.sleep(0)


async def catch_up(stage: Stage) -> None:
    stage.sinks[1].room = True
    await asyncio.sleep(0.012)


async def subscribe(stage: Stage) -> None:
    stage.subscriptions.append(stage.subscribe(stage.newcomer))


async def unsubscribe(stage: Stage) -> None:
    stage.subscriptions[1].unsubscribe()


@pytest.mark.parametrize("make", [wsfast.Channel, wsfast.Hub])
@pytest.mark.parametrize("act", [flush, tick, catch_up, subscribe, unsubscribe])
def test_interrupts(
    run: Run, act: Callable[[Stage], Any], make: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it is interrupted, everybody gets everything once and in order, or is closed; counts are right."""
    caplog.set_level(logging.CRITICAL + 1, "wsfast")
    for module in _dispatcher, _writable:
        monkeypatch.setattr(module, "LATE", -1.0)  # as if it were late at once

    async def main(moment: int) -> bool:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        stage = Stage(make(slow=Disconnect(max_messages=1000), history=2), ("a", "b") if make is wsfast.Hub else ())
        interrupt = Interrupt(moment)
        with interrupt:
            await act(stage)
        stage.sinks[1].room = True
        await asyncio.sleep(0)
        assert gc.isenabled()
        stage.publish(1)
        await until(lambda: not stage.publisher.stats().queued)
        for number, (connection, sink) in enumerate(zip(stage.connections, stage.sinks, strict=True)):
            assert sink.got == sorted(set(sink.got))
            if not connection.transport.is_closing() and not (act is unsubscribe and number == 1):
                assert sink.got == stage.published
        if act is unsubscribe and not stage.subscriptions[1].active:
            assert stage.published[-1] not in stage.sinks[1].got
        stage.reconcile()
        return interrupt.left > 0

    for moment in range(1, MOST):
        if run(lambda moment=moment: main(moment)):  # type: ignore[misc]
            return
    pytest.fail("it has no end")


@pytest.mark.parametrize("name", ["websockets", "wsfast.serve"])
def test_what_waits_is_not_overtaken(name: str, run: Run, core: Any, caplog: pytest.LogCaptureFixture) -> None:
    """If it is interrupted when a connection begins to lag, what is published later leaves later, or it is closed."""
    caplog.set_level(logging.CRITICAL + 1, "wsfast")
    first = "x" * 100_000  # more than the kernel takes

    async def main(moment: int) -> bool:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        async with LIBRARIES[name].open(compress=False, small=True) as connect:
            connection, client = await connect()
            channel = wsfast.Channel()
            subscription = channel.subscribe(connection)
            client.transport.pause_reading()
            channel.publish(first)
            channel.flush()
            channel.publish("second")
            interrupt = Interrupt(moment)
            with interrupt:
                channel.flush()
            client.transport.resume_reading()
            await until(lambda: not subscription.active or not connection.transport.get_write_buffer_size())
            channel.publish("third")
            channel.flush()
            got: list[Any] = []
            with contextlib.suppress(ConnectionClosed):
                while len(got) < 3:
                    got.append(await client.recv())
            assert got == [first, "second", "third"][: len(got)]
            assert len(got) == 3 or not subscription.active
        return interrupt.left > 0

    for moment in range(1, MOST):
        if run(lambda moment=moment: main(moment)):  # type: ignore[misc]
            return
    pytest.fail("it has no end")
