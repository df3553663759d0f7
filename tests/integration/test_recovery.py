"""Clients that lose their connection and come back: positions, what is sent again, and what that costs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets.asyncio.client
import websockets.asyncio.server

import wsfast
from helpers.brokers import KINDS, Broker, relay_of, started, why_not
from helpers.fixtures import Run
from helpers.inflate import Spec
from helpers.interrupts import Interrupt
from helpers.peers import TIMEOUT, parse_frames, until
from helpers.sinks import Client
from model.test_channel_machine import connect
from wsfast import History, Position, _dispatcher
from wsfast._encoding import message
from wsfast.hub import retained
from wsfast.relay import lingering

# ---- Arguments


def test_positions_as_text() -> None:
    """A position is written as its epoch and offset; nothing else is read as one."""
    position = Position("0123456789abcdef", 5)
    assert str(position) == "0123456789abcdef-5"
    assert Position.parse(str(position)) == position == ("0123456789abcdef", 5)
    for text in (
        *("", "5", "0123456789abcdef", "0123456789abcdef-", "0123456789abcdef--5", "0123456789abcdef-05"),
        *("0123456789ABCDEF-5", "0123456789abcde-5", " 0123456789abcdef-5", "0123456789abcdef-5\n"),
        *("0123456789abcdef-\u0665", "0123456789abcdef-" + "9" * 20),
    ):
        with pytest.raises(ValueError, match="epoch-offset"):
            Position.parse(text)
    with pytest.raises(TypeError):
        Position.parse(None)  # type: ignore[arg-type]


def test_arguments() -> None:
    """What makes no sense is told when it is given."""
    assert History(5) == History(5, bytes=16 << 20, seconds=300.0)
    for options, error in (
        ({"messages": -1}, ValueError),
        ({"messages": 1.5}, TypeError),
        ({"messages": 1, "bytes": 0}, ValueError),
        ({"messages": 1, "bytes": "1"}, TypeError),
        ({"messages": 1, "seconds": 0}, ValueError),
        ({"messages": 1, "seconds": float("inf")}, ValueError),
    ):
        with pytest.raises(error):
            History(**options)
    for history in ("1", None, [1]):
        with pytest.raises(TypeError, match="history"):
            wsfast.Hub(history=history)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="envelope must be a bool"):
        wsfast.Hub(envelope=1)  # type: ignore[arg-type]


def test_errors(run: Run) -> None:
    """Wrong positions are told before anything is changed."""

    async def main() -> None:
        hub = wsfast.Hub(history=5)
        client = Client()
        wrong: list[tuple[Any, type[Exception], str]] = [
            ({"a": ("", 1, 2)}, TypeError, "a position must be"),
            ({"a": "x-1"}, TypeError, "a position must be"),
            ({"a": None}, TypeError, "a position must be"),
            ({"a": (5, 1)}, TypeError, "a position must be"),
            ({"a": ("x", -1)}, ValueError, "offset must not be negative"),
            ({"a": ("x", 1.0)}, TypeError, "offset must be an integer"),
            ({"b": ("x", 1)}, ValueError, "not one of the topics"),
            ({"a.*": ("x", 1)}, ValueError, "is a pattern"),
            ({"": ("x", 1)}, ValueError, "must have 1 to"),
            (("x", 1), TypeError, "since must map"),
            ("x-1", TypeError, "since must map"),
        ]
        for since, error, match in wrong:
            with pytest.raises(error, match=match):
                hub.subscribe(client.connection, "a", "a.*", since=since)
        assert hub.topics() == []
        with pytest.raises(ValueError, match="is a pattern"):
            hub.position("a.*")
        for hub in wsfast.Hub(), wsfast.Hub(last_values=2):
            with pytest.raises(RuntimeError, match=r"Hub\(history=100\)"):
                hub.position("a")
            subscription = hub.subscribe(client.connection, "a", since={"a": ("x", 0)})
            assert (subscription.recovered, subscription.positions) == (False, {})

    run(main)


# ---- What is sent again


def test_recovery(run: Run, core: Any) -> None:
    """A client gets what it missed, once, and the stream; or it is told that it does not, and is as a new one."""

    async def main() -> None:
        hub = wsfast.Hub(history=3)
        assert hub.channel("a").position() == hub.position("a") == (hub.position("a").epoch, 0)
        begin = hub.position("a")
        hub.publish("a", "1")
        first = Client()
        assert hub.subscribe(first.connection, "a", "b").positions == {t: hub.position(t) for t in ("a", "b")}
        seen = hub.position("a")
        hub.publish(["a", "b"], "2")
        hub.publish("b", "3")
        back = Client()
        subscription = hub.subscribe(back.connection, "a", "b", since={"a": seen, "b": (hub.position("b").epoch, 0)})
        hub.publish("a", "4")
        subscription.send("control")
        hub.publish("b", "5")
        hub.flush()
        assert back.received == ["2", "3", "4", "control", "5"]
        assert subscription.recovered
        assert subscription.recovered_topics == {"a", "b"}
        assert subscription.stats().published == 5
        hub.publish_many([("a", "6"), ("a", "7")])
        for since in (begin, ("x", 1), (begin.epoch, 6)):
            client = Client()
            subscription = hub.channel("a").subscribe(client.connection, since=since)
            hub.flush()
            assert client.received == ["4", "6", "7"]
            assert (subscription.recovered, subscription.recovered_topics) == (False, frozenset())
            assert subscription.positions == {"a": (begin.epoch, 5)}

    run(main)


def test_sends_to_one(run: Run, core: Any) -> None:
    """Messages for one connection come in order with the others, without an envelope, and never once it has left."""

    async def main() -> None:
        hub = wsfast.Hub(envelope=True)
        client, other = Client(), Client()
        subscription = hub.subscribe(client.connection, "a")
        hub.subscribe(other.connection, "a")
        hub.publish("a", 'say "hi"\n')
        subscription.send("alone")
        hub.publish("a", b"\xff")
        hub.flush()
        assert client.received == ['["a",1,"say \\"hi\\"\\n"]', "alone", b'\x00\x07["a",2]\xff']
        assert other.received == ['["a",1,"say \\"hi\\"\\n"]', b'\x00\x07["a",2]\xff']
        with pytest.raises(TypeError, match=r"pass json.dumps"):
            subscription.send({})  # type: ignore[arg-type]
        subscription.unsubscribe()
        subscription.send("late")
        hub.flush()
        assert len(client.received) == 3
        stats = hub.stats()
        assert (stats.messages, stats.published, stats.sent) == (2, 5, 5)

    run(main)


def test_excluded_users(run: Run) -> None:
    """A message that is not for a user is not sent to it later; one that was not for a connection is."""

    async def main() -> None:
        hub = wsfast.Hub(history=10)
        ann = Client()
        hub.register(ann.connection, "ann")
        since = hub.subscribe(ann.connection, "a").positions
        hub.publish("a", "1", exclude_users=["ann"])
        hub.publish("a", "2", exclude=[ann.connection])
        hub.publish("a", "3")
        hub.flush()
        assert ann.received == ["3"]
        for user, expected in (("ann", ["2", "3"]), ("bob", ["1", "2", "3"])):
            client = Client()
            hub.register(client.connection, user)
            assert hub.subscribe(client.connection, "a", since=since).recovered
            hub.flush()
            assert client.received == expected

    run(main)


def test_bounds(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each bound of the history holds for each topic, and the newest message is kept whatever its size."""

    async def main() -> None:
        for history in History(3), History(100, bytes=30), History(100, bytes=None, seconds=60.0):
            hub = wsfast.Hub(history=history)
            since = {topic: hub.position(topic) for topic in ("a", "b")}
            for _ in range(3):
                hub.publish("a", "x" * 10)
            assert hub.subscribe(Client().connection, "a", since={"a": since["a"]}).recovered
            hub.publish("a", "x" * 10)
            if history.seconds == 60.0:
                topic = hub._retained.topics["a"]
                topic.history[0][1].entry.time -= 61.0
            assert not hub.subscribe(Client().connection, "a", since={"a": since["a"]}).recovered
            assert len(hub._retained.topics["a"].history) == 3
            hub.publish("b", "x" * 1000)
            assert hub.subscribe(Client().connection, "b", since={"b": since["b"]}).recovered

    run(main)


def test_idle_topics_are_forgotten(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million topics take no more memory than those of the last seconds; those with a subscriber keep their epoch."""

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(retained, "time", clock)
    monkeypatch.setattr("wsfast._backlog.time", clock)

    async def main() -> None:
        hub = wsfast.Hub(history=History(5, seconds=10.0))
        kept = hub.subscribe(Client().connection, "kept").positions["kept"]
        once = hub.position("once")
        most = 0
        for number in range(20_000):
            clock.now += 0.01
            hub.publish(f"t.{number}", "x")
            most = max(most, len(hub._retained.topics))
        assert most <= 1003
        assert hub.position("kept") == kept
        assert hub.position("once").epoch != once.epoch
        clock.now += 100
        for _ in range(1 + most // retained.EXPIRED):
            hub.publish("t", "x")
        assert hub._retained.topics.keys() == {"kept", "t"}

    run(main)


# ---- Interrupts

MOST = 2000  # moments; every scenario has less


def test_interrupts_of_publishing(run: Run, core: Any) -> None:
    """A message that is interrupted has its offset, its place in the history and its receivers, or none of these."""

    async def main(moment: int) -> bool:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        hub = wsfast.Hub(history=History(3, bytes=60), envelope=True, last_values=1)
        client = Client()
        hub.subscribe(client.connection, "a")
        for number in range(3):
            hub.publish("a", f"{number}", key="k")
        since = hub.position("a")
        hub.flush()
        interrupt = Interrupt(moment)
        with interrupt:
            hub.publish("a", "x", key="k")
        hub.publish("a", "y")
        await asyncio.sleep(0)
        hub.flush()
        messages = [json.loads(message) for message in client.received]
        assert messages in (
            [["a", 1, "0"], ["a", 2, "1"], ["a", 3, "2"], ["a", 4, "x"], ["a", 5, "y"]],
            [["a", 1, "0"], ["a", 2, "1"], ["a", 3, "2"], ["a", 4, "y"]],
        )
        assert hub.position("a") == (since.epoch, len(messages)) == hub.position("a")
        topic = hub._retained.topics["a"]
        assert topic.bytes == sum(one.entry.message.size for _, one in topic.history) <= 60
        assert topic.gone == len(messages) - 3
        back = Client()
        assert hub.subscribe(back.connection, "a", since={"a": since}).recovered
        hub.flush()
        assert [json.loads(message) for message in back.received] == messages[3:]
        stats = hub.stats()
        assert (stats.messages, stats.sent) == (len(messages), 2 * len(messages) - 3)
        return interrupt.left > 0

    for moment in range(1, MOST):
        if run(lambda moment=moment: main(moment)):  # type: ignore[misc]
            return
    pytest.fail("it has no end")


def test_interrupts_of_coming_back(run: Run, core: Any) -> None:
    """Who is interrupted while coming back is subscribed with everything that was missed, or is not subscribed."""

    async def main(moment: int) -> bool:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        hub = wsfast.Hub(history=10)
        since = {topic: hub.position(topic) for topic in ("a", "b")}
        hub.publish("a", "1")
        hub.publish(["a", "b"], "2")
        hub.publish("b", "3")
        client = Client()
        interrupt = Interrupt(moment)
        with interrupt:
            hub.subscribe(client.connection, "a", "b", since=since)
        await asyncio.sleep(0)
        hub.publish("a", "4")
        hub.flush()
        assert hub.count("a") == hub.count("b")
        if hub.count("a"):
            assert client.received == ["1", "2", "3", "4"]
        else:
            assert client.received in ([], ["1"], ["1", "2"], ["1", "2", "3"])
        stats = hub.stats()
        assert stats.published == stats.sent == len(client.received)
        return interrupt.left > 0

    for moment in range(1, MOST):
        if run(lambda moment=moment: main(moment)):  # type: ignore[misc]
            return
    pytest.fail("it has no end")


# ---- Over sockets


@contextlib.asynccontextmanager
async def dialled(port: int, compression: str | None) -> AsyncIterator[Any]:
    client = await websockets.asyncio.client.connect(
        f"ws://127.0.0.1:{port}", compression=compression, ping_interval=None, max_queue=None
    )
    try:
        yield client
    finally:
        client.transport.abort()


@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("serve", [wsfast.serve, websockets.asyncio.server.serve], ids=["served", "stock"])
def test_client_that_comes_back_20_times(run: Run, core: Any, serve: Any, compression: str | None) -> None:
    """While messages are published, a client is cut off 20 times in the middle; it gets each of them exactly once."""

    async def main() -> None:
        chance = random.Random(17)
        hub = wsfast.Hub(history=History(2000, bytes=None, seconds=None), envelope=True)
        topics = ["a", "b", "c.d"]
        log: dict[str, list[str]] = {topic: [] for topic in topics}
        got: dict[str, list[str]] = {topic: [] for topic in topics}
        positions: dict[str, Any] = {}
        ended = False

        async def handler(connection: Any) -> None:
            since = json.loads(await connection.recv()) or None
            with contextlib.suppress(RuntimeError):  # it is gone already
                subscription = hub.subscribe(connection, *topics, since=since)
                subscription.send(json.dumps({"recovered": subscription.recovered, "at": subscription.positions}))
            await connection.wait_closed()

        async def publish() -> None:
            for number in range(1500):
                topic = chance.choice(topics)
                log[topic].append(f"{number} " + "x" * chance.choice([0, 50, 5000]))
                hub.publish(topic, log[topic][-1])
                if number % 5 == 0:
                    await asyncio.sleep(0.001)
            nonlocal ended
            ended = True

        async def read(client: Any, count: int | None) -> None:
            while count is None or count > 0:
                message = json.loads(await client.recv())
                if isinstance(message, dict):
                    assert message["recovered"] == bool(positions)
                    positions.update(message["at"])
                else:
                    topic, offset, payload = message
                    epoch, _ = positions.get(topic, ["", 0])
                    got[topic].append(payload)
                    assert offset == len(got[topic])
                    positions[topic] = [epoch, offset]
                count = None if count is None else count - 1
                if count is None and ended and got == log:
                    return

        async with serve(
            handler, "127.0.0.1", 0, compression=compression, ping_interval=None, close_timeout=1
        ) as server:
            port = server.sockets[0].getsockname()[1]
            publishing: Any = None
            for turn in range(21):
                async with dialled(port, compression) as client, asyncio.timeout(TIMEOUT):
                    await client.send(json.dumps(positions))
                    if publishing is None:
                        await read(client, 1)
                        publishing = asyncio.create_task(publish())
                    await read(client, None if turn == 20 else chance.randrange(2, 60))
                await asyncio.sleep(0.002 * chance.randrange(3))
            await publishing
            assert got == log
            await until(lambda: len(hub) == 0, "the connections to be gone")

    run(main)


HERD, AT_ONCE = 2000, 100


def test_thundering_herd(run: Run, core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thousand clients come back, a hundred in each iteration: frames are made once for all of them.

    So is the sequence of those that they have missed, and of the answer behind it, although every other client has
    another position. Memory grows by what the connections themselves take.
    """
    joined: list[int] = []

    def join(parts: Any) -> Any:
        joined.append(len(parts))
        return message.join(parts)

    async def main() -> None:
        hub = wsfast.Hub(history=200, envelope=True)
        herd = HERD if core.sends_directly else HERD // 2
        epoch = hub.position("a").epoch
        for number in range(50):
            hub.publish("a", f"{number} " + "x" * 100)
        wires = [await connect("evented", Spec(kind="plain", bits=15, client=False, small=False)) for _ in range(herd)]
        hub.flush()
        tracemalloc.start()
        try:
            for number, wire in enumerate(wires):
                subscription = hub.subscribe(wire.connection, "a", since={"a": (epoch, number % 2 * 10)})
                assert subscription.recovered
                subscription.send(f"at {subscription.positions['a']}")
                if number % AT_ONCE == AT_ONCE - 1:
                    hub.publish("a", f"since {number}")
                    hub.flush()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        times = herd // AT_ONCE
        if core.sends_directly:
            expected = [start + number for number in range(1, times + 1) for start in (51, 41)]
            assert sorted(count for count in joined if count > 1) == sorted(expected)
        assert peak < 4000 * herd
        hub.flush()
        for number, wire in enumerate(wires):
            frames, rest = parse_frames(wire.sock.recv(1 << 20))
            assert rest == b""
            texts = [frame.payload.decode() for frame in frames]
            before = 50 + number // AT_ONCE
            assert [text for text in texts if not text.startswith("[")] == [f"at {epoch}-{before}"]
            assert texts.index(f"at {epoch}-{before}") == before - number % 2 * 10
            offsets = [json.loads(text)[1] for text in texts if text.startswith("[")]
            assert offsets == list(range(1 + number % 2 * 10, 50 + times + 1)), number
            wire.close()
        await until(lambda: len(hub) == 0, "the connections to be gone")

    monkeypatch.setattr(_dispatcher, "join", join)
    run(main)


def test_herd_with_different_answers(run: Run, core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that each get another answer need copies of what they have missed, but not all at the same time."""
    monkeypatch.setattr(_dispatcher, "SLICE", 20)
    monkeypatch.setattr(_dispatcher, "SEQUENCES", 20)
    herd, size = 400, 40_000

    async def main() -> None:
        hub = wsfast.Hub(history=10, envelope=True)
        epoch = hub.position("a").epoch
        hub.publish("a", "x" * size)
        wires = [await connect("evented", Spec(kind="plain", bits=15, client=False, small=False)) for _ in range(herd)]
        for number, wire in enumerate(wires):
            hub.subscribe(wire.connection, "a", since={"a": (epoch, 0)}).send(f"you are {number}")
        tracemalloc.start()
        try:
            while hub.stats().queued:
                await asyncio.sleep(0)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < herd * size / 4
        for number, wire in enumerate(wires):
            (message, answer), rest = parse_frames(wire.sock.recv(1 << 20))
            assert (len(message.payload) > size, answer.payload, rest) == (True, b"you are %d" % number, b"")
            wire.close()
        await until(lambda: len(hub) == 0, "the connections to be gone")

    run(main)


def calls_per_client(history: int, missed: int) -> float:
    """Return how many functions of Python run for each of a hundred clients that come back in one iteration."""
    calls = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    async def main() -> None:
        nonlocal calls
        hub = wsfast.Hub(history=history, envelope=True)
        epoch = hub.position("a").epoch
        for number in range(history):
            hub.publish("a", str(number))
        wires = [await connect("evented", Spec(kind="plain", bits=15, client=False, small=False)) for _ in range(101)]
        gc.collect()
        gc.disable()  # what it calls does not belong to the clients
        sys.setprofile(count)
        try:
            for wire in wires:
                subscription = hub.subscribe(wire.connection, "a", since={"a": (epoch, history - missed)})
                subscription.send(f"at {subscription.positions['a']}")
                if wire is wires[0]:
                    calls = 0  # what happens once for all
        finally:
            sys.setprofile(None)
            gc.enable()
        hub.flush()
        for wire in wires:
            assert len(parse_frames(wire.sock.recv(1 << 20))[0]) == missed + 1
            wire.close()
        await until(lambda: len(hub) == 0, "the connections to be gone")

    asyncio.run(main())
    return calls / 100


def test_cost_of_coming_back(core: Any) -> None:
    """What a client costs that comes back grows neither with the history nor with the number of messages it has missed.

    What is written in C goes through the latter, and the twin does so in Python.
    """
    few = calls_per_client(100, 5)
    assert calls_per_client(5000, 5) == few
    if core.sends_directly:
        assert calls_per_client(5000, 500) == few


# ---- With a relay


@pytest.fixture(scope="module", params=KINDS)
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker."""
    reason = why_not(request.param)
    if reason is not None:
        pytest.skip(reason)
    with started(request.param, tmp_path_factory.mktemp(request.param)) as broker:
        yield broker


@contextlib.asynccontextmanager
async def two_hubs(
    broker: Broker, prefix: Path, slow: Any = None, **options: Any
) -> AsyncIterator[tuple[Any, Any, Any]]:
    """Run two hubs as of two processes; return also the relay of the second one."""
    hubs = [wsfast.Hub(history=100, **options) for _ in range(2)]
    more: dict[str, Any] = {} if slow is None else {"slow": slow}
    relays = [relay_of(broker.kind, hub, broker.url, prefix=prefix.name, timeout=TIMEOUT, **more) for hub in hubs]
    async with relays[0], relays[1]:
        yield hubs[0], hubs[1], relays[1]


async def relayed(hub: Any, relay: Any, count: int) -> None:
    await until(lambda: relay.stats().received == count, "messages of the other process")
    hub.flush()


def test_messages_of_other_processes(run: Run, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a relay delivers is recovered as long as it follows the topic in this process, and not after that."""

    async def main() -> None:
        async with two_hubs(broker, tmp_path) as (other, hub, relay):
            stays, goes = Client(), Client()
            subscriptions = [hub.subscribe(client.connection, "a", "b") for client in (stays, goes)]
            await relay.subscribed(TIMEOUT)
            other.publish("a", "1")
            await relayed(hub, relay, 1)
            since = {topic: hub.position(topic) for topic in ("a", "b")}
            goes.connection.transport.abort()
            other.publish(["a", "b"], "2")
            other.publish("b", "3")
            await relayed(hub, relay, 4)
            assert stays.received == ["1", "2", "3"]
            back = Client()
            subscription = hub.subscribe(back.connection, "a", "b", since=since)
            hub.flush()
            assert subscription.recovered
            assert back.received == ["2", "3"]
            assert not other.subscribe(Client().connection, "a", since={"a": since["a"]}).recovered
            for one in (*subscriptions, subscription):
                one.unsubscribe()
            other.publish("a", "4")
            await relayed(hub, relay, 5)
            last = Client()
            subscription = hub.subscribe(last.connection, "a", "b", since=subscription.positions)
            hub.flush()
            assert subscription.recovered
            assert last.received == ["4"]
            monkeypatch.setattr(lingering, "MOST", 0)
            subscription.unsubscribe()
            subscription = hub.subscribe(Client().connection, "a", "b", since=subscription.positions)
            assert subscription.recovered_topics == frozenset()
            position = hub.position()
            hub.unsubscribe(subscription.connection)
            assert not hub.subscribe(Client().connection, "a", "b", since=position).recovered

    run(main)


def test_gaps_end_the_numbering(run: Run, broker: Broker, tmp_path: Path) -> None:
    """When messages of a topic are missing, as the relay reports, positions from before them are not valid any more."""

    async def main() -> None:
        async with two_hubs(broker, tmp_path, wsfast.DropOldest(max_messages=1), envelope=True) as (other, hub, relay):
            client = Client()
            hub.subscribe(client.connection, "a", "b")
            await relay.subscribed(TIMEOUT)
            for topic in ("b", "a"):
                other.publish(topic, "1")
                await relayed(hub, relay, 1 + (topic == "a"))
            since = {topic: hub.position(topic) for topic in ("a", "b")}
            total = hub.position()
            other.publish_many([("a", "2"), ("a", "3")])  # the relay has room for the last one
            await relayed(hub, relay, 3)
            other.publish("b", "2")
            await relayed(hub, relay, 4)
            assert (relay.stats().gaps, relay.stats().lost) == (1, 1)
            assert client.received == ['["b",1,"1"]', '["a",1,"1"]', '["a",1,"3"]', '["b",2,"2"]']
            back = Client()
            subscription = hub.subscribe(back.connection, "a", "b", since=since)
            assert subscription.recovered_topics == {"b"}
            assert not hub.subscribe(Client().connection, "a", since=total).recovered
            assert hub.subscribe(Client().connection, "b", since=total).recovered

    run(main)


def test_positions_are_of_one_process() -> None:
    """Hubs that were forked before they were used have different epochs: a position of one means nothing to another."""
    result = subprocess.run(
        [sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert result.returncode == 0, result.stderr


FORKING = """
import asyncio, os
import wsfast

hub = wsfast.Hub(history=10)
reader, writer = os.pipe()
child = os.fork()

async def main():
    hub.publish("news", "x")
    return hub.position(), hub.position("news")

positions = asyncio.run(main())
if not child:
    os.write(writer, " ".join(map(str, positions)).encode())
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
others = [wsfast.Position.parse(text) for text in os.read(reader, 1000).decode().split()]
for position, other in zip(positions, others, strict=True):
    assert position.offset == other.offset == 1
    assert position.epoch != other.epoch
"""
