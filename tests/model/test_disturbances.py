"""Interrupts, finalizers and callbacks in the middle of whatever is called: everybody gets all once, and counts agree.

The profile is small. To run about 100,000 scripts with each core:

    WSFAST_TEST_SCRIPTS=100000 pytest -s --timeout 0 -o faulthandler_timeout=0 tests/model/test_disturbances.py
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection
from websockets.protocol import State
from websockets.server import ServerProtocol

import wsfast
from helpers.inflate import LOGGERS, Server
from helpers.interrupts import Interrupt, Nowhere
from helpers.peers import TIMEOUT, parse_frames
from wsfast import _dispatcher, _writable
from wsfast._subscription import Subscription
from wsfast.connections.shape import peer_of

SCRIPTS = int(os.environ.get("WSFAST_TEST_SCRIPTS", "150"))

CLIENTS, PUBLISHERS = 5, 3
NAMES = ["a", "b", "a.x"]
FILTERS = [("a",), ("b", "a.x"), ("a.*", "a.x"), (">",)]


@dataclass(frozen=True)
class Act:
    """Something that is called: what it is, and of which publisher and client."""

    name: str
    publisher: int
    client: int
    choice: int


@dataclass(frozen=True)
class Step:
    """An act, and what gets in the middle of it."""

    act: Act
    disturbance: str
    moment: int
    other: Act


ACTS = st.builds(
    Act,
    name=st.sampled_from(
        ["publish"] * 6
        + ["subscribe"] * 3
        + ["unsubscribe", "flush", "flush", "stats", "turn", "turn", "stall", "read", "kick"]
    ),
    publisher=st.integers(0, PUBLISHERS - 1),
    client=st.integers(0, CLIENTS - 1),
    choice=st.integers(0, 7),
)
STEPS = st.builds(
    Step,
    act=ACTS,
    disturbance=st.sampled_from(["nothing", "interrupt", "interrupt", "garbage", "write", "drop", "key", "raise"]),
    moment=st.integers(1, 60),
    other=ACTS.filter(lambda act: act.name not in ("turn", "read")),
)


class Garbage:
    """A cycle with a finalizer."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act
        self.itself = self

    def __del__(self) -> None:
        self.act()


class Key:
    """A conflation key whose comparison calls back, or raises."""

    def __init__(self, name: int, stage: Stage) -> None:
        self.name = name
        self.stage = stage

    def __hash__(self) -> int:
        return self.name

    def __eq__(self, other: object) -> bool:
        self.stage.on("key")
        return isinstance(other, Key) and self.name == other.name


class Client:
    """A connection and what its client has received: publisher and number of each message."""

    def __init__(self) -> None:
        self.received: list[tuple[int, int]] = []
        self.data = b""
        self.connection: Any = None
        self.room = True

    def feed(self, data: bytes) -> None:
        frames, self.data = parse_frames(self.data + data)
        for frame in frames:
            if frame.first != 0x88:
                publisher, number, _ = frame.payload.split(b":")
                self.received.append((int(publisher), int(number)))

    def read(self) -> bool:
        """Read what there is; return whether there was something."""
        return False


class SinkClient(Client):
    """A client behind a sink."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        self.connection = wsfast.attach(self)

    def write(self, data: bytes) -> None:
        self.feed(data)
        self.stage.on("write")

    def writable(self) -> bool:
        return self.room

    def close(self, code: int, reason: str) -> None: ...


class SocketClient(Client):
    """A client behind a socket with small buffers."""

    @classmethod
    async def open(cls, kind: type[ServerConnection]) -> SocketClient:
        client = cls()
        ours, client.sock = socket.socketpair()
        for sock in (ours, client.sock):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        protocol = ServerProtocol(state=State.OPEN, logger=LOGGERS[False])
        client.connection = kind(protocol, Server(), ping_interval=None)  # type: ignore[arg-type]
        await asyncio.get_running_loop().create_connection(lambda: client.connection, sock=ours)
        return client

    sock: socket.socket

    def read(self) -> bool:
        try:
            data = self.sock.recv(1 << 20)
        except (BlockingIOError, ConnectionError):
            return False
        self.feed(data)
        return bool(data)


@dataclass
class Stage:
    """Publishers and clients, and what is to happen in callbacks."""

    publishers: list[Any] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)
    witnesses: list[SinkClient] = field(default_factory=list)
    """Of each publisher, a client that gets everything."""
    callbacks: dict[str, Callable[[], object]] = field(default_factory=dict)
    number: int = 0
    errors: list[Any] = field(default_factory=list)
    payload: int = 0
    made: list[tuple[Any, Any, Any]] = field(default_factory=list)
    """All subscriptions, each with its publisher and its peer."""

    def on(self, event: str) -> None:
        callback = self.callbacks.pop(event, None)
        if callback is not None:
            callback()

    async def open(self, payload: int) -> None:
        self.payload = payload
        asyncio.get_running_loop().set_exception_handler(self.on_error)
        for number in range(PUBLISHERS):
            slow = [
                wsfast.Disconnect(max_messages=100_000, max_bytes=None),
                wsfast.Conflate(max_messages=4),
                wsfast.DropOldest(max_messages=3),
            ][number]
            make = wsfast.Hub if number == 0 or (number == 1 and payload % 2) else wsfast.Channel
            options: dict[str, Any] = {"slow": slow, "history": number, "on_drop": lambda *_: self.on("drop")}
            publisher = make(**options)
            self.publishers.append(publisher)
            self.witnesses.append(SinkClient(self))
            self.subscribe_to(publisher, self.witnesses[-1], ">")
        self.clients = [
            SinkClient(self),
            SinkClient(self),
            await SocketClient.open(wsfast.ServerConnection),
            await SocketClient.open(wsfast.ServerConnection),
            await SocketClient.open(ServerConnection),
        ]

    def on_error(self, _: object, context: dict[str, Any]) -> None:
        exc = context.get("exception")
        if not isinstance(exc, (Nowhere, ZeroDivisionError, RuntimeError)):
            self.errors.append(context)

    def subscribe_to(self, publisher: Any, client: Client, *names: str) -> None:
        if isinstance(publisher, wsfast.Hub):
            publisher.subscribe(client.connection, *names)
        else:
            publisher.subscribe(client.connection)

    def subscriptions(self, publisher: Any, client: Client) -> list[Any]:
        """Return all subscriptions that a client has had, also those that nobody was told of."""
        return [one for whose, peer, one in self.made if whose is publisher and peer is peer_of(client.connection)]

    # ---- Acts

    def call(self, act: Act) -> None:
        """Do what can be done in the middle of something else."""
        publisher, client = self.publishers[act.publisher], self.clients[act.client]
        is_hub = isinstance(publisher, wsfast.Hub)
        match act.name:
            case "publish":
                self.number += 1
                message = b"%d:%d:" % (act.publisher, self.number) + b"." * self.payload
                key = Key(act.choice % 3, self) if act.choice < 6 else None
                if is_hub:
                    names = [NAMES[act.choice % 3], NAMES[act.choice // 2 % 3]] if act.choice % 2 else NAMES[0]
                    publisher.publish(names, message, key=key)
                else:
                    publisher.publish(message, key=key)
            case "subscribe":
                with contextlib.suppress(RuntimeError):  # it may be closed
                    self.subscribe_to(publisher, client, *FILTERS[act.choice % len(FILTERS)])
            case "unsubscribe":
                for subscription in self.subscriptions(publisher, client):
                    if is_hub:
                        publisher.unsubscribe(client.connection, *NAMES[: act.choice % 4])
                    else:
                        subscription.unsubscribe()
            case "flush":
                publisher.flush()
            case "stats":
                check(publisher.stats())
            case "stall":
                client.room = not client.room
            case "kick":
                if act.choice < 2:
                    client.connection.transport.abort()

    async def perform(self, act: Act) -> None:
        if act.name == "turn":
            await asyncio.sleep(0)
        elif act.name == "read":
            self.clients[act.client].read()
        else:
            self.call(act)

    async def do(self, step: Step) -> None:
        other = lambda: self.call(step.other)  # noqa: E731
        match step.disturbance:
            case "interrupt":
                with Interrupt(step.moment):
                    await self.perform(step.act)
                return
            case "garbage":
                before = gc.get_threshold()
                gc.collect(1)  # so that the same allocations lead to a collection each time
                gc.set_threshold(step.moment)
                Garbage(other)
                try:
                    await self.perform(step.act)
                finally:
                    gc.set_threshold(*before)
                return
            case "raise":
                self.callbacks["key"] = lambda: 1 / 0
            case "nothing":
                pass
            case event:
                self.callbacks[event] = other
        try:
            await self.perform(step.act)
        except ZeroDivisionError:
            pass
        finally:
            self.callbacks.clear()

    # ---- The end

    async def drain(self) -> None:
        """Have everybody get everything."""
        gc.collect()
        for client in self.clients:
            client.room = True
        async with asyncio.timeout(TIMEOUT):
            quiet = 0
            while quiet < 3:
                await asyncio.sleep(0)
                for publisher in self.publishers:
                    publisher.flush()
                reading = sum(client.read() for client in self.clients)
                waiting = any(publisher.stats().queued for publisher in self.publishers)
                quiet = 0 if reading or waiting else quiet + 1
                if waiting and not reading:
                    await asyncio.sleep(0.001)
        for publisher in self.publishers:
            check(publisher.stats())

    async def close(self) -> None:
        """Close all connections."""
        gc.collect()
        for client in self.clients:
            client.connection.transport.abort()
            if isinstance(client, SocketClient):
                client.sock.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def compare(self) -> None:
        """Compare what was received with what the witnesses saw, and with what the numbers say."""
        assert not self.errors
        for number, (publisher, witness) in enumerate(zip(self.publishers, self.witnesses, strict=True)):
            sequence = [one for _, one in witness.received]
            assert len(sequence) == len(set(sequence)), "a message was sent twice"
            place = {one: index for index, one in enumerate(sequence)}
            total = 0
            for client in [witness, *self.clients]:
                received = [one for whose, one in client.received if whose == number]
                each = [one.stats() for one in self.subscriptions(publisher, client)]
                for stats in each:
                    check(stats)
                sent = sum(stats.sent for stats in each)
                total += sent
                cut = client.connection.transport.is_closing()  # what is on its way may get lost
                assert len(received) <= sent if cut else len(received) == sent
                for stats in each:
                    segment, received = received[: stats.sent], received[stats.sent :]
                    assert len(segment) == len(set(segment)), "a message was sent twice"
                    # The witness may have lost messages as well. Those of different keys may change places.
                    places = [place[message] for message in segment if message in place]
                    assert isinstance(publisher.slow, wsfast.Conflate) or places == sorted(places)
            assert publisher.stats().sent == total


def check(stats: Any) -> None:
    assert min(stats.sent, stats.dropped, stats.conflated, stats.queued) >= 0, stats
    assert stats.published == stats.sent + stats.dropped + stats.conflated + stats.queued, stats


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What was interrupted before it was noted counts as late at once."""
    for module in _dispatcher, _writable:
        monkeypatch.setattr(module, "LATE", -1.0)
    logging.getLogger("wsfast").setLevel(logging.CRITICAL + 1)
    yield
    logging.getLogger("wsfast").setLevel(logging.NOTSET)


def play(payload: int, steps: list[Step]) -> None:
    async def main() -> None:
        try:
            await stage.open(payload)
            for step in steps:
                await stage.do(step)
            await stage.drain()
            stage.compare()
        finally:
            await stage.close()

    stage = Stage()
    original = Subscription.__init__

    def init(subscription: Any, publisher: Any, peer: Any, since: int) -> None:
        original(subscription, publisher, peer, since)
        stage.made.append((publisher, peer, subscription))

    with (
        pytest.MonkeyPatch.context() as patch,
        asyncio.Runner(loop_factory=asyncio.SelectorEventLoop, debug=False) as runner,
    ):
        patch.setattr(Subscription, "__init__", init)
        runner.run(main())


@pytest.mark.usefixtures("patient")
def test_disturbances(core: Any) -> None:
    """Whatever gets in between, everybody gets each message once, in order, or none of it; and the counts say so."""

    @settings(max_examples=SCRIPTS, deadline=None, suppress_health_check=list(HealthCheck))
    @given(payload=st.sampled_from([10, 11, 600, 3001]), steps=st.lists(STEPS, min_size=5, max_size=40))
    def scripts(payload: int, steps: list[Step]) -> None:
        play(payload, steps)

    scripts()
