"""Relays through real brokers, which are killed, restarted and frozen: who gets what, in which order, what is missing.

Most tests have two hubs with a relay each, in one event loop; what must be shown of processes has two of those.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import random
import ssl
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

import wsfast
from helpers.brokers import KINDS, Broker, encrypted, proxy_to, relay_of, started, tls_options, why_not
from helpers.fixtures import Run
from helpers.peers import TIMEOUT, until
from helpers.ports import free_port
from helpers.relay_process import Process
from wsfast._publisher import Stream
from wsfast.hub.topics import matches
from wsfast.relay import Gap, Relay, broker, outbound, wire
from wsfast.relay.wire import GOODBYE, MESSAGE, POSITION, REQUEST, Envelope, Item, pack, unpack

Main = Callable[[], Coroutine[Any, Any, Any]]

MANY = 10**6


def go(main: Main) -> Any:
    """Run a coroutine function in an event loop of asyncio's."""
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop, debug=False) as runner:
        return runner.run(asyncio.wait_for(main(), 3 * TIMEOUT))


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Have connections that were not closed be warned about in the test that has left them."""
    yield
    gc.collect()


# ---- Brokers


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Name of a kind of brokers."""
    reason = why_not(request.param)
    if reason is not None:
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture(scope="module")
def server(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A server for all tests that leave it alone."""
    with started(kind, tmp_path_factory.mktemp(kind)) as broker:
        yield broker


@pytest.fixture(scope="module", params=[*KINDS, "local"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A server, or a directory of sockets, for all tests that need nothing but relays."""
    reason = why_not(request.param)
    if reason is not None:
        pytest.skip(reason)
    with started(request.param, tmp_path_factory.mktemp(request.param)) as broker:
        yield broker


@pytest.fixture
def own(kind: str, tmp_path: Path) -> Iterator[Broker]:
    """A broker that the test may kill."""
    with started(kind, tmp_path) as broker:
        yield broker


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """What no other test's channels begin with."""
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name)[:60] + str(random.random())[2:8]


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have relays look for the broker often, and ask for what is missing often."""
    monkeypatch.setattr(broker, "LAST_BACKOFF", 0.2)
    monkeypatch.setattr(outbound, "POSITION_INTERVAL", 0.1)


class End:
    """A hub with a relay, and what is missing there."""

    def __init__(self, broker: Broker, prefix: str, *, url: str | None = None, hub: Any = None, **options: Any) -> None:
        self.hub: wsfast.Hub = wsfast.Hub() if hub is None else hub
        self.gaps: Counter[Any] = Counter()
        self.publishers: set[str] = set()
        options.setdefault("timeout", TIMEOUT)
        self.relay: Relay = relay_of(
            broker.kind, self.hub, url or broker.url, prefix=prefix, on_gap=self.on_gap, **options
        )

    def on_gap(self, gap: Gap) -> None:
        self.gaps[gap.kind, gap.name] += gap.messages
        self.publishers.add(gap.publisher)

    async def __aenter__(self) -> End:
        await self.relay.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self.relay.__aexit__(*exc)

    def __getattr__(self, name: str) -> Any:
        """Return one of the numbers of the relay's stats."""
        return getattr(self.relay.stats(), name)

    def stream(self, topic: str) -> Stream:
        return self.hub.stream(topic, max_messages=MANY)

    async def subscribed(self) -> None:
        await self.relay.subscribed(TIMEOUT)

    async def sent(self) -> None:
        """Wait until the broker has confirmed all."""
        await until(lambda: self.queued == 0, "the queue of the relay to be empty")


@contextlib.asynccontextmanager
async def ends(broker: Broker, prefix: str, number: int = 2, **options: Any) -> AsyncIterator[list[End]]:
    """Run several hubs with relays."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(End(broker, prefix, **options)) for _ in range(number)]


async def take(stream: Stream, count: int) -> list[str | bytes]:
    """Wait for so many messages."""
    async with asyncio.timeout(TIMEOUT):
        return [await anext(stream) for _ in range(count)]


def here(stream: Stream) -> list[str | bytes]:
    """Return the messages that are there now."""
    return [message.data.decode() if message.text else message.data for message in stream._messages]


async def last_of(stream: Stream, last: str) -> list[str | bytes]:
    """Wait for a message, and return all those before it."""
    messages: list[str | bytes] = []
    async with asyncio.timeout(TIMEOUT):
        async for message in stream:
            if message == last:
                break
            messages.append(message)
    return messages


async def check_counts(*some: End) -> None:
    """Check that numbers agree with each other, once every gap that is counted was reported."""
    for end in some:
        await until(lambda end=end: end.gaps.total() == end.lost)  # type: ignore[misc]
        stats = end.relay.stats()
        assert stats.published == stats.sent + stats.dropped + stats.queued, stats
        assert stats.malformed == 0


# ---- What must be shown


TOPICS, ROUNDS = 100, 1000


@pytest.mark.timeout(300)
def test_two_processes(run: Run, loop_kind: str, shared: Broker, prefix: str) -> None:
    """A hundred thousand messages over a hundred topics reach every client of another process, exact and in order."""
    if loop_kind == "asyncio":
        pytest.skip("it takes its time, and would show nothing else")
    topics = [f"t.{number % 4}.{number}" for number in range(TOPICS)]

    async def main() -> None:
        async with End(shared, prefix) as first, Process.run(shared.kind, shared.url, prefix=prefix) as second:
            for number in range(4):
                await second.tell("subscribe", client=f"{number}", topics=topics[number::4])
            await second.tell("subscribe", client="pattern", topics=["t.2.>"])
            local = {topic: first.stream(topic) for topic in topics[::10]}
            began = time.perf_counter()
            for start in range(ROUNDS):
                for topic in topics:
                    first.hub.publish(topic, f"{topic}|first|{start}")
                while first.queued > 5000:
                    await asyncio.sleep(0.001)
            for topic, stream in local.items():  # at once
                assert here(stream) == [f"{topic}|first|{number}" for number in range(ROUNDS)]
            await first.sent()
            sent = time.perf_counter() - began
            report = await second.until(
                "report", lambda clients: sum(sum(c["counts"].values()) for c in clients.values()) >= 125 * ROUNDS
            )
            print(f"\n{shared.kind}: sent {TOPICS * ROUNDS / sent:.0f}/s", end=", ")
            print(f"received {TOPICS * ROUNDS / (time.perf_counter() - began):.0f}/s")
            for client, wanted in [
                *((f"{number}", topics[number::4]) for number in range(4)),
                ("pattern", topics[2::4]),
            ]:
                assert report[client]["counts"] == dict.fromkeys(wanted, ROUNDS)
                assert report[client]["last"] == {topic: {"first": ROUNDS - 1} for topic in wanted}
                assert not report[client]["wrong"]
                assert not report[client]["others"]
            stats = await second.tell("stats")
            assert (stats["received"], stats["lost"], stats["malformed"]) == (TOPICS * ROUNDS, 0, 0)
            await check_counts(first)
            assert first.relay.stats().sent == TOPICS * ROUNDS

    run(main, 4 * TIMEOUT)


def test_broker_killed_between_processes(own: Broker, prefix: str) -> None:
    """The broker is killed and restarted: nobody is blocked, all that is missing is counted, and delivery resumes."""
    topics = [f"t.{number}" for number in range(20)]

    async def main() -> None:
        async with End(own, prefix, timeout=5) as first, Process.run(own.kind, own.url, prefix=prefix) as second:
            await second.tell("subscribe", client="all", topics=topics)
            local = {topic: first.stream(topic) for topic in topics}
            for number in range(300):
                if number == 1:  # what is missing is known of topics that something has come of
                    await second.until("stats", lambda stats: stats["received"] == len(topics))
                if number == 100:
                    own.kill()  # with some messages under way
                    await until(lambda: not first.connected)
                if number == 200:
                    own.start()
                for topic in topics:
                    first.hub.publish(topic, f"{topic}|first|{number}")
                    assert here(local[topic])[-1] == f"{topic}|first|{number}"
                if number % 10 == 0:
                    await asyncio.sleep(0)
            await first.sent()
            assert first.dropped == 0
            stats = await second.until("stats", lambda stats: stats["received"] + stats["lost"] == 300 * len(topics))
            gaps = await second.until("gaps", lambda gaps: sum(gaps.values()) == stats["lost"])
            report = await second.until("report", lambda r: sum(r["all"]["counts"].values()) == stats["received"])
            for topic in topics:
                assert report["all"]["counts"].get(topic, 0) + gaps.get(topic, 0) == 300
            assert not report["all"]["wrong"]
            # And the other way round, from when on nothing is lost.
            back = first.stream("back")
            await first.subscribed()
            await second.tell("publish", topics=[*topics, "back"], start=300, end=310)
            assert await take(back, 10) == [f"back|second|{number}" for number in range(300, 310)]
            for topic in topics:
                first.hub.publish(topic, f"{topic}|first|300")
            assert (await second.until("stats", lambda s: s["received"] == stats["received"] + 20))["lost"] == stats[
                "lost"
            ]
            await check_counts(first)

    go(main)


@pytest.mark.usefixtures("quickly")
def test_broker_killed(run: Run, own: Broker, prefix: str) -> None:
    """What is missing is reported though nothing is published any more after the broker is back."""

    async def main() -> None:
        async with (
            ends(own, prefix, timeout=5) as (a, b),
            proxy_to(own) as proxy,
            End(own, prefix, url=proxy.url, timeout=5) as c,
        ):
            streams = [c.stream("one"), c.stream("two"), b.stream("one"), a.stream("one")]
            await c.subscribed()
            await b.subscribed()
            a.hub.publish("one", "0")
            a.hub.publish("two", "0")
            for stream in streams:
                await take(stream, 1)
            proxy.refuse = True
            own.kill()
            await until(lambda: not (a.connected or b.connected or c.connected))
            for number in range(1, 8):
                a.hub.publish("one", f"{number}")
                a.hub.publish(["one", "two"], f"{number}+")
            assert len(here(streams[3])) == 14
            own.start()
            await a.sent()
            await until(lambda: a.connected and b.connected)
            await until(lambda: b.lost + b.received == 15)
            assert c.lost == 0
            proxy.refuse = False  # that one is late, and all has been sent
            await until(lambda: c.lost == 21)
            await until(lambda: c.gaps.total() == 21)
            assert c.gaps == {("topic", "one"): 14, ("topic", "two"): 7}
            assert c.publishers == {a.relay.id}
            a.hub.publish("one", "8")
            assert await take(streams[0], 1) == ["8"]
            assert (c.received, c.lost, c.gaps["topic", "one"]) == (3, 21, 14)
            assert min(end.reconnects for end in (a, b, c)) >= 1
            await check_counts(a, b, c)

    run(main)


@pytest.mark.usefixtures("quickly")
def test_subscriber_cut(server: Broker, prefix: str) -> None:
    """Only the connection is lost by which a process subscribes: it counts what it has missed meanwhile."""

    async def main() -> None:
        async with ends(server, prefix, 1) as (a,), proxy_to(server) as proxy, End(server, prefix, url=proxy.url) as b:
            local, stream = a.stream("t"), b.stream("t")
            back = a.stream("back")
            await b.subscribed()
            await a.subscribed()
            await until(lambda: proxy.sides() == ["publishing", "subscribing"])
            for number in range(10):
                a.hub.publish("t", f"{number}")
            await take(stream, 10)
            proxy.refuse = True
            proxy.cut("subscribing")
            await until(lambda: not b.connected)
            for number in range(10, 17):
                a.hub.publish("t", f"{number}")
            assert len(here(local)) == 17
            await a.sent()
            b.hub.publish("back", "still")
            assert await take(back, 1) == ["still"]
            proxy.refuse = False
            await until(lambda: b.lost == 7)
            for number in range(17, 20):
                a.hub.publish("t", f"{number}")
            assert await take(stream, 3) == ["17", "18", "19"]
            assert (b.received, b.lost, b.reconnects, a.reconnects) == (13, 7, 1, 0)
            await until(lambda: b.gaps.total() == 7)
            await check_counts(a, b)

    go(main)


@pytest.mark.usefixtures("quickly")
def test_publisher_cut(server: Broker, prefix: str) -> None:
    """Only the connection is lost by which a process publishes: its messages wait, and none is lost."""

    async def main() -> None:
        async with ends(server, prefix, 1) as (b,), proxy_to(server) as proxy, End(server, prefix, url=proxy.url) as a:
            local, stream = a.stream("t"), b.stream("t")
            back = a.stream("back")
            await b.subscribed()
            await a.subscribed()
            await until(lambda: proxy.sides() == ["publishing", "subscribing"])
            for number in range(10):
                a.hub.publish("t", f"{number}")
            await take(stream, 10)
            proxy.refuse = True
            proxy.cut("publishing")
            await until(lambda: proxy.sides() == ["subscribing"])
            for number in range(10, 17):
                a.hub.publish("t", f"{number}")
            assert len(here(local)) == 17
            await until(lambda: not a.connected)
            assert a.queued == 7
            b.hub.publish("back", "still")
            assert await take(back, 1) == ["still"]
            proxy.refuse = False
            assert await take(stream, 7) == [f"{number}" for number in range(10, 17)]
            await a.sent()
            assert (b.received, b.lost, a.reconnects) == (17, 0, 1)
            await check_counts(a, b)

    go(main)


@pytest.mark.usefixtures("quickly")
def test_network_cut_without_a_word(server: Broker, prefix: str) -> None:
    """Nothing passes any more, and nobody is told: the timeout tells."""

    async def main() -> None:
        async with (
            ends(server, prefix, 1) as (a,),
            proxy_to(server) as proxy,
            End(server, prefix, url=proxy.url, timeout=1) as b,
        ):
            stream, back = b.stream("t"), a.stream("back")
            await b.subscribed()
            await a.subscribed()
            a.hub.publish("t", "0")
            await take(stream, 1)
            proxy.freeze()
            a.hub.publish("t", "1")
            b.hub.publish("back", "1")
            assert await take(back, 1) == ["1"]  # by a new connection
            await until(lambda: b.lost == 1)
            a.hub.publish("t", "2")
            assert await take(stream, 1) == ["2"]
            assert (b.received, b.lost, b.queued) == (2, 1, 0)
            assert b.reconnects >= 2
            await until(lambda: b.gaps.total() == 1)
            await check_counts(a, b)

    go(main)


@pytest.mark.usefixtures("quickly")
def test_connection_cut_in_the_middle(server: Broker, prefix: str) -> None:
    """A message that has arrived in part is missing, or arrives once; what came before it is there."""

    async def main() -> None:
        async with ends(server, prefix, 1) as (a,), proxy_to(server) as proxy, End(server, prefix, url=proxy.url) as b:
            stream = b.stream("t")
            await b.subscribed()
            a.hub.publish("t", "-1")
            await until(lambda: b.received == 1)
            for cut_after in (1, 100, 2500, 30_000):
                published, received, lost = a.published, b.received, b.lost
                reconnects = b.reconnects
                proxy.cut_after = cut_after
                for number in range(20):
                    a.hub.publish("t", f"{published + number}".zfill(2000))
                await until(lambda before=reconnects: b.reconnects == before + 1)  # type: ignore[misc]
                await until(lambda: b.received + b.lost == a.published)
                assert (b.received - received) + (b.lost - lost) == 20
                assert b.lost > lost
            got = [int(message) for message in await take(stream, b.received)]
            assert got == sorted(set(got))
            await check_counts(a, b)

    go(main)


def test_slow_network(server: Broker, prefix: str) -> None:
    """Messages that come in crumbs, with pauses beyond the timeout in each, are whole."""

    async def main() -> None:
        async with (
            ends(server, prefix, 1) as (a,),
            proxy_to(server) as proxy,
            End(server, prefix, url=proxy.url, timeout=1) as b,
        ):
            stream = b.stream("t")
            await b.subscribed()
            # A message takes more than a second, and less than the two in which something must come; with NATS, less
            # than the one in which a ping must be answered.
            proxy.piece, proxy.pause = 100, 0.1 if server.kind == "redis" else 0.03
            for number in range(2):
                a.hub.publish("t", f"{number}" * 1000)
            await a.sent()
            assert await take(stream, 2) == ["0" * 1000, "1" * 1000]
            assert (b.reconnects, b.lost, b.malformed) == (0, 0, 0)

    go(main)


@pytest.mark.usefixtures("quickly")
def test_slow_sending(server: Broker, prefix: str) -> None:
    """A batch that takes longer than the timeout is sent in smaller ones."""

    async def main() -> None:
        async with (
            ends(server, prefix, 1) as (b,),
            proxy_to(server) as proxy,
            End(server, prefix, url=proxy.url, timeout=1) as a,
        ):
            stream = b.stream("t")
            await b.subscribed()
            proxy.piece, proxy.pause = 1000, 0.01  # at most 100 KB/s
            messages = [f"{number:1000}" for number in range(300)]
            for message in messages:
                a.hub.publish("t", message)
            await a.sent()
            assert await take(stream, 300) == messages
            assert a.reconnects > 0
            assert (a.relay.stats().sent, b.lost) == (300, 0)

    go(main)


@pytest.mark.usefixtures("quickly")
def test_broker_frozen(own: Broker, prefix: str) -> None:
    """Nobody is blocked by a broker that takes everything and does nothing; when it goes on, all arrives once."""

    async def main() -> None:
        async with ends(own, prefix, timeout=1) as (a, b):
            stream, local = b.stream("t"), a.stream("t")
            await b.subscribed()
            a.hub.publish("t", "0")
            assert await take(stream, 1) == ["0"]
            own.freeze()
            try:
                for number in range(1, 3001):
                    a.hub.publish("t", f"{number}")
                assert len(here(local)) == 3001
                await until(lambda: not a.connected and not b.connected)
                await check_counts(a)
            finally:
                own.thaw()
            await until(lambda: a.connected and b.connected)
            await a.sent()
            await until(lambda: b.received + b.lost == 3001)
            await until(lambda: b.gaps.total() == b.lost)
            a.hub.publish("t", "3001")
            messages = await last_of(stream, "3001")
            assert len(messages) == b.received - 2
            numbers = [int(message) for message in messages]
            assert numbers == sorted(set(numbers))
            await check_counts(a, b)

    go(main)


def slow_consumers(kind: str) -> Any:
    """Return how a broker is told not to wait for those who do not read."""
    if kind == "redis":
        return ["--client-output-buffer-limit", "pubsub", "1mb", "512kb", "1"]
    return 'max_pending: 1MB\nwrite_deadline: "1s"\n'


def test_slow_consumer(kind: str, tmp_path: Path, prefix: str) -> None:
    """A process that stands still is disconnected by the broker; it comes back, and knows how much it has missed."""

    async def main(broker: Broker) -> None:
        async with End(broker, prefix) as first, Process.run(kind, broker.url, prefix=prefix) as second:
            await second.tell("subscribe", client="one", topics=["t"])
            first.hub.publish("t", "t|first|0")
            await second.until("stats", lambda stats: stats["received"] == 1)
            connections = broker.connections()
            second.freeze()
            count = 1
            try:
                while broker.connections() == connections:  # the kernel takes a few megabytes
                    for _ in range(10):
                        first.hub.publish("t", f"t|first|{count}".ljust(10)[:10] + " " * 100_000)
                        count += 1
                    await first.sent()
            finally:
                second.thaw()
            await second.until("stats", lambda stats: stats["received"] + stats["lost"] == count)
            stats = await second.until("stats", lambda stats: stats["connected"])
            assert stats["lost"] > 0
            assert stats["reconnects"] >= 1
            await second.until("gaps", lambda gaps: gaps == {"t": stats["lost"]})
            first.hub.publish("t", f"t|first|{count}")
            await second.until("stats", lambda now: now["received"] == stats["received"] + 1)
            report = await second.until("report", lambda r: r["one"]["last"].get("t") == {"first": count})
            assert report["one"]["counts"] == {"t": stats["received"] + 1}
            assert not report["one"]["wrong"]
            await check_counts(first)

    with started(kind, tmp_path, slow_consumers(kind)) as broker:
        go(lambda: main(broker))


def test_process_starts_while_broker_is_away(kind: str, tmp_path: Path, prefix: str) -> None:
    """A client gets the messages of its own process without a broker, and those of others once there is one."""

    async def main() -> None:
        url = f"{kind}://127.0.0.1:{free_port()}"
        with started(kind, tmp_path) as broker:
            broker.kill()
            url = broker.url
            async with Process.run(kind, url, prefix=prefix, timeout=1) as second:
                await second.tell("subscribe", client="one", topics=["t", "u"], settle=False)
                await second.tell("publish", topics=["t", "u"], start=0, end=50)
                await second.until("report", lambda report: report["one"]["counts"] == {"t": 50, "u": 50})
                stats = await second.tell("stats")
                assert (stats["connected"], stats["queued"], stats["sent"]) == (False, 100, 0)
                broker.start()
                await second.until("stats", lambda stats: stats["connected"])
                async with End(broker, prefix) as first:
                    first.hub.publish("u", "u|first|0")
                    await second.until("report", lambda r: r["one"]["last"]["u"] == {"second": 49, "first": 0})
                stats = await second.until("stats", lambda stats: stats["queued"] == 0)
                assert (stats["sent"], stats["dropped"], stats["lost"]) == (100, 0, 0)

    go(main)


def test_cut_off_at_first(run: Run, kind: str, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """A relay without its broker is there after the timeout, with a warning; its hub is one like any other."""

    async def main() -> None:
        hub = wsfast.Hub(name="alone")
        url = f"{kind}://127.0.0.1:{free_port()}"
        async with relay_of(kind, hub, url, prefix=prefix, timeout=0.3) as relay:
            stream = hub.stream("t")
            hub.publish("t", "local")
            assert here(stream) == ["local"]
            stats = relay.stats()
            assert (stats.published, stats.queued, stats.connected, stats.subscriptions) == (1, 1, False, 0)
            with pytest.raises(TimeoutError):
                await relay.connected(0.01)
            with pytest.raises(TimeoutError):
                await relay.subscribed(0.01)
            began = time.monotonic()
        assert time.monotonic() - began < TIMEOUT / 2
        hub.publish("t", "later")
        assert here(stream) == ["local", "later"]
        assert relay.stats().published == 1

    with caplog.at_level(logging.WARNING, "wsfast"):
        run(main)
    (record,) = caplog.records
    assert "is not connected" in record.getMessage()
    assert "<Hub 'alone'>" in record.getMessage()


# ---- What is carried


def test_both_ways(run: Run, shared: Broker, prefix: str) -> None:
    """Messages reach the other hub, as they are; a hub gets its own once."""

    async def main() -> None:
        async with ends(shared, prefix) as (a, b):
            streams = a.stream("t"), b.stream("t")
            await a.subscribed()
            await b.subscribed()
            messages: list[Any] = ["text", b"\x00\xff", "", b"", "\u20ac \U0001f600", "x" * 70_000, b"y" * 70_000]
            for message in messages:
                a.hub.publish("t", message)
            a.hub.publish("t", wsfast.PreparedMessage(b"as text", text=True, compress=False))
            a.hub.publish("t", bytearray(b"last"))
            wanted = [*messages, "as text", b"last"]
            for stream in streams:
                assert await take(stream, 9) == wanted
            b.hub.publish("t", "back")
            for stream in streams:
                assert await take(stream, 1) == ["back"]
            a.hub.publish("t", "end")
            for stream in streams:
                assert await take(stream, 1) == ["end"]
                assert here(stream) == []
            assert (a.received, b.received, a.duplicates, b.duplicates) == (1, 10, 0, 0)
            assert a.relay.id != b.relay.id
            await a.sent()
            await check_counts(a, b)

    run(main)


def test_prepared_messages_stay_what_they_are(shared: Broker, prefix: str) -> None:
    """Whether a message may be compressed is carried, too."""

    async def main() -> None:
        async with ends(shared, prefix) as (a, b):
            stream = b.stream("t")
            await b.subscribed()
            messages = [
                wsfast.PreparedMessage(b"binary"),
                wsfast.PreparedMessage("secret", compress=False),
                wsfast.PreparedMessage("in binary", text=False),
            ]
            for message in messages:
                a.hub.publish("t", message)
            await until(lambda: len(stream._messages) == 3)
            assert list(stream._messages) == messages

    go(main)


def test_several_publishers(shared: Broker, prefix: str) -> None:
    """What each process has published to a topic arrives in that order."""

    async def main() -> None:
        async with ends(shared, prefix, 4) as some:
            streams = [end.stream("t") for end in some]
            for end in some:
                await end.subscribed()
            for number in range(200):
                for name, end in enumerate(some):
                    end.hub.publish("t", f"{name} {number}")
                if number % 50 == 0:
                    await asyncio.sleep(0)
            for stream in streams:
                messages = await take(stream, 800)
                for name in range(4):
                    mine = [str(message) for message in messages if str(message).startswith(f"{name} ")]
                    assert mine == [f"{name} {number}" for number in range(200)]
            for end in some:
                await end.sent()
            await check_counts(*some)

    go(main)


class Clients:
    """A server of a hub's, and real clients of it."""

    def __init__(self, hub: wsfast.Hub, stack: contextlib.AsyncExitStack) -> None:
        self.hub = hub
        self._stack = stack
        self._arrived: asyncio.Queue[Any] = asyncio.Queue()
        self._port = 0

    async def open(self) -> Clients:
        async def handle(connection: Any) -> None:
            self._arrived.put_nowait(connection)
            await connection.wait_closed()

        server = await self._stack.enter_async_context(wsfast.serve(handle, "127.0.0.1", 0, compression=None))
        self._port = next(iter(server.sockets)).getsockname()[1]
        return self

    async def connect(self, *topics: str, user: Any = None) -> tuple[Any, Any]:
        """Return a connection of the hub's, which is subscribed, and the client at its other end."""
        from websockets.asyncio.client import connect

        client = await self._stack.enter_async_context(connect(f"ws://127.0.0.1:{self._port}", compression=None))
        connection = await self._arrived.get()
        if topics:
            self.hub.subscribe(connection, *topics)
        if user is not None:
            self.hub.register(connection, user)
        return connection, client


async def read(client: Any, count: int) -> list[str | bytes]:
    async with asyncio.timeout(TIMEOUT):
        return [await client.recv() for _ in range(count)]


def test_exclusion(run: Run, shared: Broker, prefix: str) -> None:
    """A connection that is excluded is one of this process; users are excluded wherever they are."""

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack, ends(shared, prefix) as (a, b):
            here_, there = [await Clients(end.hub, stack).open() for end in (a, b)]
            connection, author = await here_.connect("t", user="ann")
            _, ann = await there.connect("t", user="ann")
            _, bob = await there.connect("t", user=7)
            _, one = await there.connect("t", user="7")
            await b.subscribed()
            a.hub.publish("t", "first", exclude=[connection])
            a.hub.publish("t", "second", exclude_users=["ann"])
            a.hub.publish("t", "third", exclude_users=iter([7]))
            a.hub.publish("t", "last")
            assert await read(author, 2) == ["third", "last"]
            assert await read(ann, 3) == ["first", "third", "last"]
            assert await read(bob, 3) == ["first", "second", "last"]
            assert await read(one, 4) == ["first", "second", "third", "last"]

    run(main)


def test_tags(run: Run, shared: Broker, prefix: str) -> None:
    """Tags travel with messages: in each process, a connection gets what it asks for, once for several topics."""

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack, ends(shared, prefix) as some:
            clients = []
            for end in some:
                connection, client = await (await Clients(end.hub, stack).open()).connect("t", "u")
                end.hub.subscribe(connection, "t", "t.*", tags={"eu", "\U0001f600"})
                clients.append(client)
                await end.subscribed()
            a, b = (end.hub for end in some)
            a.publish("t", "1", tags={"eu"})
            a.publish("t", "2", tags={"us"})
            a.publish(["t", "u"], "3", tags={"us"})
            a.publish(["t", "u", "t.x"], "4", tags={"\U0001f600", "us"})
            a.publish(["t", "t.x"], "5", tags={"us"})
            a.channel("t").publish("6", key="k", tags=["eu"], exclude_users=["ann"])
            a.publish("t", "7")
            received = [await read(client, 5) for client in clients]
            assert received[0] == ["1", "3", "4", "6", "7"]
            assert [text for text in received[1] if text != "3"] == [
                "1",
                "4",
                "6",
                "7",
            ]  # "3" comes by "u", another way
            assert "3" in received[1]
            b.publish("t", "8", tags={"us"})
            b.publish("t", "9", tags={"eu"})
            assert [await read(client, 1) for client in clients] == [["9"], ["9"]]
            stats = [end.hub.stats() for end in some]
            assert [(one.published, one.sent) for one in stats] == [(6, 6)] * 2
            await check_counts(*some)

    run(main)


USERS: list[str | int] = [
    "ann", "", ".", "..", "a.b", " ", "a b", "*", ">", "?", "[a]", "a*", "\\", "\x00", "\r\n", "7", "-7", "\u20ac",
    "u" * 3000, "\U0001f600" * 50,
    7, -7, 0, 2**255,
]  # fmt: skip


def test_users(run: Run, shared: Broker, prefix: str) -> None:
    """What is sent to a user reaches all of the user's connections in all processes, and nobody else."""

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack, ends(shared, prefix) as (a, b):
            there = await Clients(b.hub, stack).open()
            clients = {repr(user): (await there.connect(user=user))[1] for user in USERS}
            _, other = await there.connect(user="ann")
            await b.subscribed()
            for user in USERS:
                assert a.hub.send(user, f"to {user!r}") == 0
            for user in USERS:
                a.hub.send(user, b"end")
            for name, client in [*clients.items(), ("'ann'", other)]:
                assert await read(client, 2) == [f"to {name}", b"end"]
            assert b.received == 2 * len(USERS)
            await a.sent()
            await check_counts(a, b)

    run(main)


@pytest.mark.parametrize("secret", [None, b"s" * 16], ids=["plain", "signed"])
def test_disconnect(run: Run, shared: Broker, prefix: str, secret: bytes | None) -> None:
    """A user, or the subscribers of a topic, are disconnected in all processes, after all messages until then."""

    async def rest(client: Any) -> tuple[list[str | bytes], int | None, str | None]:
        messages: list[str | bytes] = []
        async with asyncio.timeout(TIMEOUT):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    messages.append(await client.recv())
        return messages, client.close_code, client.close_reason

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack, ends(shared, prefix, secret=secret) as (a, b):
            here_, there = [await Clients(end.hub, stack).open() for end in (a, b)]
            _, ann = await here_.connect("t", user="ann")
            _, ann_there = await there.connect("t", user="ann")
            _, ann_elsewhere = await there.connect("other", user="ann")
            _, bob = await there.connect("t", user=7)
            _, watcher = await there.connect("*")
            await b.subscribed()
            a.hub.publish("t", "first")
            assert await a.hub.disconnect(user="ann", topic="t", code=4001, reason="kicked", message="bye") == 1
            assert await rest(ann) == (["first", "bye"], 4001, "kicked")
            messages, *close = await rest(ann_there)  # the topic and the user have channels of their own
            assert (set(messages) - {"first"}, close) == ({"bye"}, [4001, "kicked"])
            assert await a.hub.disconnect(user="ann") == 0
            assert await rest(ann_elsewhere) == ([], 1000, "")
            for number in range(10):
                a.hub.publish("t", str(number))
            assert await a.hub.disconnect(topic="t", message=b"closed") == 0
            expected = ["first", *map(str, range(10)), b"closed"], 1000, ""
            assert await rest(bob) == expected
            assert await rest(watcher) == expected
            _, bob = await there.connect("t", user=7)
            await b.subscribed()
            a.hub.publish("t", "again")
            assert await read(bob, 1) == ["again"]
            with pytest.raises(TypeError, match="user must be a str or an int"):
                await a.hub.disconnect(user=1.5)
            await a.sent()
            await check_counts(a, b)
            assert (b.rejected, b.malformed, b.lost) == (0, 0, 0)

    run(main)


ODD = [
    "a?", "ab", "a[b]", "a[^b]", "[a-z]", "a\\", "a\\\\", "a-b", "a^", "^", "-", "[", "]", "\\", "?", "??",
    "\u20ac", "\u00e9", "\U0001f600", "$SYS", "_INBOX", "#", "&", "'", '"', "{}", "%s",
    "/", ":", "|", "~", "a" * 1024, "x" * 70, "\u20ac" * 1024, "\U0001f600" * 1024,
]  # fmt: skip


def test_odd_names(shared: Broker, prefix: str) -> None:
    """Topics may have any characters, which stand for themselves."""
    names = [f"{odd}.{rest}"[:1024] for odd in ODD for rest in ("x", "y")] + ODD
    names = list(dict.fromkeys(name.rstrip(".") for name in names))

    async def main() -> None:
        async with ends(shared, prefix) as (a, b):
            streams = {name: b.stream(name) for name in names}
            await b.subscribed()
            for name in names:
                a.hub.publish(name, f"to {name}")
            for name in names:
                a.hub.publish(name, b"end")
            for name, stream in streams.items():
                assert await take(stream, 2) == [f"to {name}", b"end"]
            await a.sent()
            assert (b.received, b.duplicates) == (2 * len(names), 0)
            await check_counts(a, b)

    go(main)


PATTERNS = [
    "*", ">", "a.*", "a.>", "*.a", "*.*", "a.*.c", "*.b.>", "a?.*", "[ab].*", "\\.*", "a-c.>", "[^a].>",
    "\u20ac.*", "*.\U0001f600", "a.*.*.*", f"{'x' * 70}.*",
]  # fmt: skip
NAMES = [
    "a", "b", "aa", "a.b", "b.a", "a.b.c", "a.b.b.c", "a.x.c", "aa.b", "a?.b", "ab.c", "b.b", "[ab].c", "\\.c", "c.\\",
    "a-c.d", "b.d", "[^a].d", "^.d",
    "\u20ac.a", "\u20ac.a.b", "q.\U0001f600", "q.\u00e9", "a.b.c.d", "a.b.c.d.e", f"{'x' * 70}.y", f"{'x' * 71}.y",
]  # fmt: skip


def test_patterns(run: Run, shared: Broker, prefix: str) -> None:
    """A pattern gets the topics that match it, though a pattern of Redis's may match more."""

    async def main() -> None:
        for pattern in PATTERNS:
            async with ends(shared, f"{prefix}-{PATTERNS.index(pattern)}") as (a, b):
                stream, end = b.stream(pattern), b.stream("the.end.of.it.all")
                await b.subscribed()
                a.hub.publish_many((name, name) for name in NAMES)
                a.hub.publish("the.end.of.it.all", "end")
                await take(end, 1)
                wanted = [name for name in NAMES if matches(pattern, name)]
                assert wanted, pattern
                if matches(pattern, "the.end.of.it.all"):
                    wanted.append("end")
                await until(lambda: len(here(stream)) >= len(wanted))  # noqa: B023
                assert sorted(here(stream), key=str) == sorted(wanted)
                assert b.received == len(wanted) + (not matches(pattern, "the.end.of.it.all"))
                await check_counts(b)

    run(main)


def test_topic_and_patterns_at_once(shared: Broker, prefix: str) -> None:
    """Who is subscribed to a topic and to patterns that it matches gets each message once, whatever comes or goes."""

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack, ends(shared, prefix) as (a, b):
            there = await Clients(b.hub, stack).open()
            connection, client = await there.connect("a.b", "a.*", "a.>", ">")
            streams = [b.stream(name) for name in ("a.b", "a.*", "a.>", ">")]
            await b.subscribed()
            rounds = 50
            for number in range(rounds):
                a.hub.publish("a.b", f"{number}")
                if number % 10 == 5:
                    b.hub.unsubscribe(connection, "a.*")
                    streams.pop(1).close()
                elif number % 10 == 0:
                    b.hub.subscribe(connection, "a.*")
                    streams.insert(1, b.stream("a.*"))
                await asyncio.sleep(0)
            assert await read(client, rounds) == [f"{number}" for number in range(rounds)]
            for stream in (streams[0], streams[-1]):
                assert await take(stream, rounds) == [f"{number}" for number in range(rounds)]
            assert (b.received, b.lost) == (rounds, 0)

    go(main)


def test_several_topics_as_one(run: Run, shared: Broker, prefix: str) -> None:
    """What is published to several topics reaches a connection once, and in order, by whichever of them."""

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack, ends(shared, prefix) as (a, b):
            there = await Clients(b.hub, stack).open()
            _, both = await there.connect("x.a", "x.b")
            _, first = await there.connect("x.a")
            _, second = await there.connect("x.b", user="second")
            _, pattern = await there.connect("x.*")
            _, mixed = await there.connect(">", "x.b")
            await b.subscribed()
            for number in range(20):
                a.hub.publish(["x.a", "x.b", "y"], f"{number}", exclude_users=["second"] * (number % 2))
                a.hub.publish(["x.b", "x.a"], f"{number}+")
            every = [text for number in range(20) for text in (f"{number}", f"{number}+")]
            for client in (both, first, pattern, mixed):
                assert await read(client, 40) == every
            assert await read(second, 30) == [text for text in every if text.endswith("+") or int(text) % 2 == 0]
            for topic in ("x.a", "x.b"):
                a.hub.publish(topic, "end")
            assert await read(first, 1) == ["end"]
            for client in (both, pattern, mixed):
                assert await read(client, 2) == ["end", "end"]
            await a.sent()
            assert a.published == 102
            await check_counts(a, b)

    run(main)


def test_publish_many(shared: Broker, prefix: str) -> None:
    """All that is published together arrives; or nothing, if there is an error in it."""

    async def main() -> None:
        async with ends(shared, prefix) as (a, b):
            streams = {name: b.stream(name) for name in ("a", "b")}
            local = a.stream("a")
            await b.subscribed()
            a.hub.publish_many([("a", "1"), ("b", b"2"), (["a", "b"], "3"), ("a", "4", "key")])
            assert await take(streams["a"], 3) == ["1", "3", "4"]
            assert await take(streams["b"], 2) == [b"2", "3"]
            for wrong in (("a", "x", object()), ("a", "x", frozenset())):
                with pytest.raises(TypeError, match="with a relay, key must be"):
                    a.hub.publish_many([("a", "5"), wrong])
            assert here(local) == ["1", "3", "4"]
            assert a.published == 5

    go(main)


def test_keys(shared: Broker, prefix: str) -> None:
    """Keys do over there what they do here: conflate, and keep last values."""
    keys: list[Any] = ["k", "", "\ud800", 1, -1, 2**200, 1.5, ("a", 1), ("a", ("b", 2.5)), (), False, ("a", None)]

    async def main() -> None:
        hub = wsfast.Hub(last_values=100, slow=wsfast.Conflate(max_messages=1000))
        async with End(shared, prefix) as a, End(shared, prefix, hub=hub) as b:
            stream = b.stream("t")
            await b.subscribed()
            for number in range(3):
                for index, key in enumerate(keys):
                    a.hub.publish("t", f"{index} {number}", key=key)
            a.hub.publish("t", "without")
            await last_of(stream, "without")
            wanted = {key: f"{index} 2" for index, key in enumerate(keys)}
            assert b.hub.last("t") == wanted
            assert [type(key) for key in b.hub.last("t")] == [type(key) for key in wanted]

    go(main)


def test_conflation(shared: Broker, prefix: str) -> None:
    """A client over there that reads late gets the newest of each key."""

    async def main() -> None:
        hub = wsfast.Hub(slow=wsfast.Conflate(max_bytes=None))
        async with contextlib.AsyncExitStack() as stack:
            a = await stack.enter_async_context(End(shared, prefix))
            b = await stack.enter_async_context(End(shared, prefix, hub=hub))
            there = await Clients(b.hub, stack).open()
            connection, client = await there.connect("t")
            member = b.hub.subscribe(connection, "t")
            await b.subscribed()
            client.transport.pause_reading()
            number = 0
            while not member.conflated:
                a.hub.publish("t", f"{number} ".ljust(100_000), key=("k", 1))
                number += 1
                await a.sent()
                await until(lambda: b.received == number)  # noqa: B023
            client.transport.resume_reading()
            a.hub.publish("t", "end")
            got: list[int] = []
            while (message := (await read(client, 1))[0]) != "end":
                got.append(int(str(message)))
            assert got == sorted(set(got))
            assert got[-1] == number - 1
            assert len(got) == number - member.conflated

    go(main)


# ---- At the broker


def test_only_what_is_wanted(run: Run, server: Broker, prefix: str) -> None:
    """The broker is asked for what somebody here gets, and for nothing when all have left."""
    redis = server.kind == "redis"

    async def main() -> None:
        before = server.patterns()

        def at_broker() -> tuple[set[str], int]:
            return server.channels(prefix), server.patterns() - before

        async with contextlib.AsyncExitStack() as stack, ends(server, prefix, 1) as (a,):
            here_ = await Clients(a.hub, stack).open()
            assert at_broker() == ({"all"}, 0)
            a.hub.publish("nobody", "x")
            first, _ = await here_.connect("t.a", "t.b", "p.*", user="ann")
            _, client = await here_.connect("t.a")
            stream = a.stream("s")
            await a.subscribed()
            ann = "u.ann" if redis else f"u.={b'ann'.hex()}"
            patterns = set() if redis else {"t.p.*"}
            assert at_broker() == ({"all", "t.t.a", "t.t.b", "t.s", ann} | patterns, 1)
            assert a.subscriptions == 5
            a.hub.unsubscribe(first, "t.a", "t.b", "p.*")
            stream.close()
            await a.subscribed()
            await until(lambda: at_broker() == ({"all", "t.t.a", ann}, 0))
            await client.close()
            await first.close()
            await until(lambda: not a.hub.stats().topics and not a.hub.stats().users)
            await a.subscribed()
            await until(lambda: at_broker() == ({"all"}, 0))
            assert a.subscriptions == 0
        await until(lambda: at_broker() == (set(), 0))

    run(main)


def test_what_was_there_before(shared: Broker, prefix: str) -> None:
    """A relay takes over what the hub has already."""

    async def main() -> None:
        hub = wsfast.Hub()
        streams = [hub.stream("t"), hub.stream("p.*")]
        async with contextlib.AsyncExitStack() as stack:
            _, client = await (await Clients(hub, stack).open()).connect(user=5)
            async with End(shared, prefix, hub=hub) as b, End(shared, prefix) as a:
                await b.subscribed()
                assert b.subscriptions == 3
                a.hub.publish_many([("t", "t"), ("p.q", "p")])
                a.hub.send(5, "user")
                assert await take(streams[0], 1) == ["t"]
                assert await take(streams[1], 1) == ["p"]
                assert await read(client, 1) == ["user"]

    go(main)


def test_thousands_of_topics(server: Broker, prefix: str) -> None:
    """Thousands of topics come and go, also when they change their minds meanwhile."""
    count = 5000

    async def main() -> None:
        async with ends(server, prefix) as (a, b):
            streams = [b.stream(f"t.{number}") for number in range(count)]
            await asyncio.sleep(0)
            for stream in streams[::2]:
                stream.close()
            for number in range(0, count, 4):
                streams[number] = b.stream(f"t.{number}")
            await b.subscribed()
            wanted = {f"t.t.{number}" for number in range(count) if number % 2 or number % 4 == 0}
            assert server.channels(prefix) == {"all"} | wanted
            a.hub.publish_many((f"t.{number}", f"{number}") for number in range(count))
            for number in range(1, count, 2):
                assert await take(streams[number], 1) == [f"{number}"]
            assert b.subscriptions == len(wanted)
            for stream in streams:
                stream.close()
            await b.subscribed()
            await until(lambda: server.channels(prefix) == {"all"})

    go(main)


def test_subscribing_again(shared: Broker, prefix: str) -> None:
    """What was published while nobody here wanted it is not missing."""

    async def main() -> None:
        async with ends(shared, prefix) as (a, b):
            for number in range(3):
                with b.stream("t") as stream:
                    await b.subscribed()
                    a.hub.publish("t", f"{number}")
                    assert await take(stream, 1) == [f"{number}"]
                await b.subscribed()
                a.hub.publish("t", "to nobody")
                await a.sent()
            assert (b.received, b.lost) == (3, 0)

    go(main)


# ---- What waits for the broker


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("policy", [wsfast.DropOldest, wsfast.DropNewest])
@pytest.mark.parametrize("bound", ["max_messages", "max_bytes"])
def test_queue_is_bounded(server: Broker, prefix: str, policy: Any, bound: str) -> None:
    """While the broker is away, the queue holds what its policy says; the rest is missing over there, and counted."""

    async def main() -> None:
        slow = policy(max_messages=50, max_bytes=None) if bound == "max_messages" else policy(max_bytes=10_000)
        async with (
            ends(server, prefix, 1) as (b,),
            proxy_to(server) as proxy,
            End(server, prefix, url=proxy.url, slow=slow) as a,
        ):
            local, stream = a.stream("t"), b.stream("t")
            await b.subscribed()
            a.hub.publish("t", "before")
            await take(stream, 1)
            proxy.refuse = True
            proxy.cut()
            await until(lambda: not a.connected)
            for number in range(500):
                a.hub.publish("t", f"{number}".zfill(500))
                await check_counts(a)
            assert len(here(local)) == 501
            waiting = a.queued
            assert waiting == 50 if bound == "max_messages" else 10 < waiting <= 20
            assert (a.published, a.relay.stats().sent, a.dropped) == (501, 1, 500 - waiting)
            proxy.refuse = False
            kept = range(500 - waiting, 500) if policy is wsfast.DropOldest else range(waiting)
            assert await take(stream, waiting) == [f"{number}".zfill(500) for number in kept]
            await until(lambda: b.lost == 500 - waiting)  # with the newest, by a position
            await until(lambda: b.gaps.total() == b.lost)
            a.hub.publish("t", "after")
            assert await take(stream, 1) == ["after"]
            await a.sent()
            assert b.received + b.lost == a.published
            await check_counts(a, b)

    go(main)


@pytest.mark.usefixtures("quickly")
def test_queue_has_an_age(server: Broker, prefix: str) -> None:
    """Messages that have waited for too long are not sent any more; that is told, though nothing follows."""

    async def main() -> None:
        async with (
            ends(server, prefix, 1) as (b,),
            proxy_to(server) as proxy,
            End(server, prefix, url=proxy.url) as a,
        ):
            patient = a.relay._outbound._slow
            stream = b.stream("t")
            await b.subscribed()
            a.hub.publish("t", "before")
            await take(stream, 1)
            proxy.refuse = True
            proxy.cut()
            await until(lambda: not a.connected)
            a.relay._outbound._slow = wsfast.DropOldest(max_age=0.2)
            count = outbound.BATCH + 600
            for number in range(count):
                a.hub.publish("t", f"{number}")
            began = time.monotonic()
            await until(lambda: time.monotonic() > began + 0.3)
            proxy.refuse = False
            await until(lambda: b.lost + b.received == count + 1)
            assert b.lost == a.dropped >= count - outbound.BATCH  # a batch may have been under way
            a.relay._outbound._slow = patient  # how old one gets with a broker depends on the machine
            a.hub.publish("t", "after")
            await last_of(stream, "after")
            await a.sent()
            await check_counts(a, b)

    go(main)


def test_busy_publisher_answers(shared: Broker, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that are told on request do not run ahead of messages that wait, which would count as lost then."""
    monkeypatch.setattr(outbound, "POSITION_INTERVAL", 0.001)

    async def main() -> None:
        async with ends(shared, prefix) as (a, b):
            stream = b.stream("t")
            await b.subscribed()
            for number in range(2000):
                a.hub.publish("t", f"{number}")
                if number % 5 == 0:
                    a.relay._outbound._request_due = a.relay._outbound._positions_due = True
                await asyncio.sleep(0)
            assert await take(stream, 2000) == [f"{number}" for number in range(2000)]
            assert (b.lost, b.duplicates) == (0, 0)

    go(main)


def test_requests_are_answered(run: Run, server: Broker, prefix: str) -> None:
    """Whoever asks twice in a short time gets a second answer, too, though nothing else is sent."""

    async def main() -> None:
        async with ends(server, prefix) as (a, b):
            with b.stream("t") as stream:
                await b.subscribed()
                a.hub.publish("t", "0")
                await take(stream, 1)
                seen = b.relay._inbound._seen["topic", "t"].positions
                for _ in range(3):
                    seen.clear()
                    await raw_publish(server, f"{prefix}.all", [pack(Envelope(REQUEST, 1))])
                    await until(lambda: seen, "a position")
                assert (b.received, b.lost, b.duplicates) == (1, 0, 0)

    run(main)


# ---- What cannot be carried


def test_too_large(kind: str, tmp_path: Path, prefix: str) -> None:
    """A message that NATS does not take is dropped, and known to be missing; others go on. Redis takes it."""

    async def main(broker: Broker) -> None:
        async with ends(broker, prefix) as (a, b):
            stream = b.stream("t")
            await b.subscribed()
            for message in ("0", "x" * 40_000, "1", "y" * 40_000, "2"):
                a.hub.publish("t", message)
            await until(lambda: b.received + b.lost == 5)
            await a.sent()
            await check_counts(a)
            assert a.dropped == (2 if kind == "nats" else 0)
            a.hub.publish("t", "z" * 40_000)  # the last one
            await until(lambda: b.received + b.lost == 6)
            assert (b.lost, a.dropped) == ((3, 3) if kind == "nats" else (0, 0))
            small = [message for message in here(stream) if len(message) == 1]
            assert small == ["0", "1", "2"]
            assert (a.reconnects, b.reconnects) == (0, 0)
            await check_counts(a, b)

    with started(kind, tmp_path, "max_payload: 32KB\n" if kind == "nats" else ()) as broker:
        go(lambda: main(broker))


def test_may_not_publish(kind: str, tmp_path: Path, prefix: str) -> None:
    """What Redis does not permit is dropped, and others go on."""
    if kind == "nats":
        pytest.skip("NATS tells nobody which message it was")

    async def main(broker: Broker) -> None:
        url = broker.url.replace("//", "//app:secret@")
        async with End(broker, prefix, url=url) as a, End(broker, prefix) as b:
            stream = b.stream("good")
            await b.subscribed()
            a.hub.publish_many([("good", "0"), ("bad", "1"), ("good", "2")])
            assert await take(stream, 2) == ["0", "2"]
            await a.sent()
            assert (a.dropped, a.relay.stats().sent, a.reconnects) == (1, 2, 0)
            assert "secret" not in repr(a.relay)

    acl = f"app on >secret +@all ~* resetchannels &{prefix}.t.good &{prefix}.all"
    with started(kind, tmp_path, ["--user", *acl.split()]) as broker:
        go(lambda: main(broker))


VALID = pack(Envelope(MESSAGE, 1, 1, 1, ("topic", "t"), (Item(b"payload", text=True),)))


def with_head(head: str, kind: int = MESSAGE, rest: bytes = wire._ITEM.pack(7, 1) + b"payload") -> bytes:
    """Return what has a head of one's own."""
    data = head.encode()
    return wire._HEAD.pack(0xF5, 2, kind, 0, 1, 1, 1, len(data)) + data + rest


def with_details(details: str) -> bytes:
    """Return a message that has details of one's own."""
    data = details.encode()
    return with_head('{"t":"t"}', rest=wire._ITEM.pack(7, 8) + wire._LENGTH.pack(len(data)) + data + b"payload")


MALFORMED = [
    b"",
    b"x",
    b"hello world, this is no message of any relay at all",
    VALID[:20],
    VALID[:33],
    b"\xf4" + VALID[1:],
    b"\xf5\x01" + VALID[2:],
    b"\xf5\x02\x04" + VALID[3:],
    VALID + b"\xff",
    VALID[:-1],
    VALID[:-1] + b"\xff",  # text
    with_head('{"t":"t"}', rest=b""),
    with_head('{"t":"t"}', rest=wire._ITEM.pack(0, 0) * (wire.MOST_ITEMS + 1)),
    with_head('{"t":"t"}', rest=wire._ITEM.pack(0, 8) + wire._LENGTH.pack(1 << 31)),
    with_head('{"t":"t"}', POSITION),
    wire._HEAD.pack(0xF5, 2, MESSAGE, 0, 1, 1, 2**64 - 1, 9) + b'{"t":"t"}' + wire._ITEM.pack(0, 0) * 2,
    with_head(""),
    with_head("{"),
    *(with_head(head, kind) for head in ("[]", "5", "null", '"text"') for kind in range(4)),
    with_head("{}"),
    *(with_head("{}", kind, b"") for kind in (MESSAGE, POSITION)),
    *(with_head('{"t":"t"}', kind, b"") for kind in (REQUEST, GOODBYE)),
    *(with_head("{}", kind) for kind in (REQUEST, GOODBYE)),
    *(with_details(details) for details in ("", "{", "[]", "5", "null", '"text"')),
    with_head('{"t":5}'),
    with_head('{"t":null}'),
    with_head('{"t":["t"]}'),
    with_head('{"t":"a..b"}'),
    with_head('{"t":"a.*"}'),
    with_head('{"t":">"}'),
    with_head('{"u":1.5}'),
    with_head('{"u":true}'),
    with_head('{"u":["a"]}'),
    with_head('{"u":"\\ud800"}'),
    with_details('{"k":{}}'),
    with_details('{"k":[[{}]]}'),
    with_details('{"x":5}'),
    with_details('{"x":[{}]}'),
    with_details('{"m":5}'),
    with_details('{"m":[1]}'),
    with_details('{"m":["a",["t"]]}'),
    with_details('{"m":[Infinity,["t"]]}'),
    with_details('{"m":[NaN,["t"]]}'),
    with_details('{"m":[1,5]}'),
    with_details('{"m":[1,[">"]]}'),
    *(with_details(f'{{"t":{tags}}}') for tags in ("5", "null", '"eu"', "[]", "[5]", "[[]]", '[""]', '["\\n"]')),
    with_details('{"t":["' + '","'.join(map(str, range(65))) + '"]}'),
    with_details('{"t":["' + "x" * 257 + '"]}'),
    with_details('{"k":' + "[" * 100_000 + "]" * 100_000 + "}"),
    with_head('{"u":1' + "0" * 5000 + "}"),
]


async def raw_publish(broker: Broker, channel: str, messages: Iterable[bytes]) -> None:
    """Publish what no relay has made."""
    if broker.kind == "redis":
        import redis.asyncio

        async with redis.asyncio.Redis(port=broker.port) as client:
            for message in messages:
                await client.publish(channel, message)
    else:
        import nats

        connection = await nats.connect(broker.url)
        for message in messages:
            await connection.publish(channel, message)
        await connection.flush()
        await connection.close()


def test_malformed(server: Broker, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """What no relay has sent is counted, and logged once; nothing else comes of it."""

    async def main() -> None:
        async with ends(server, prefix) as (a, b):
            streams = [b.stream("t"), b.stream(">"), b.stream("a.*")]
            await b.subscribed()
            await raw_publish(server, f"{prefix}.all", MALFORMED)
            await until(lambda: b.malformed == len(MALFORMED))
            await raw_publish(server, f"{prefix}.all", [pack(Envelope(GOODBYE, 99)), pack(Envelope(REQUEST, 99))])
            a.hub.publish("t", "end")
            for stream in streams[:2]:
                assert await take(stream, 1) == ["end"]
            assert [here(stream) for stream in streams] == [[], [], []]
            assert (b.received, b.lost, b.reconnects, b.malformed) == (1, 0, 0, len(MALFORMED))

    with caplog.at_level(logging.WARNING):
        go(main)
    assert [record.getMessage() for record in caplog.records if "ignored a malformed message" in record.getMessage()]
    assert len(caplog.records) == 2  # one of each relay


keys = st.recursive(
    st.none() | st.text() | st.integers(-(2**200), 2**200) | st.booleans() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)
names = st.text(
    st.characters(categories=["L", "N", "P", "S"], exclude_characters="*>."), min_size=1, max_size=20
).filter(str.isprintable)
users = st.text(st.characters(exclude_categories=["Cs"])) | st.integers(-(2**200), 2**200)
numbers = st.integers(0, 2**64 - 1)
payloads = st.tuples(st.binary(), st.just(False)) | st.tuples(st.text().map(str.encode), st.just(True))
publications = st.tuples(st.integers(0, 2**63), st.lists(names, min_size=2, max_size=3).map(tuple))
items = st.tuples(payloads, st.booleans(), keys, st.lists(users, max_size=3).map(tuple), st.none() | publications).map(
    lambda parts: Item(*parts[0], *parts[1:])
)
items = st.builds(lambda item, tags: item._replace(tags=tags), items, st.frozensets(names, max_size=3))
some_addresses = st.tuples(st.just("topic"), names) | st.tuples(st.just("user"), users)
envelopes = st.builds(
    Envelope,
    st.just(MESSAGE),
    numbers,
    numbers,
    st.integers(0, 2**64 - 5),
    some_addresses,
    st.lists(items, min_size=1, max_size=5).map(tuple),
) | st.builds(Envelope, st.just(POSITION), numbers, numbers, numbers, some_addresses)


@given(envelopes)
def test_round_trip(envelope: Envelope) -> None:
    """What is packed comes out again, and what is cut off does not."""
    for item in envelope.items:
        for user in item.excluded:
            wire.check_user(user)
        wire.check_key(item.key)
    data = pack(envelope)
    heads: dict[bytes, wire.Address] = {}
    assert unpack(data) == unpack(data, None, heads) == unpack(data, None, heads) == envelope
    with pytest.raises(ValueError, match=r"."):
        unpack(data[:-1])


@given(envelopes, st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=3))
@example(Envelope(MESSAGE, 1, 1, 1, ("topic", "t"), (Item(b"payload"),) * 2), [(41 + 3, 1)])
def test_mutation(envelope: Envelope, changes: list[tuple[int, int]]) -> None:
    """Octets that were changed on the way mean nothing, or something that can be sent as well."""
    data = bytearray(pack(envelope))
    for index, value in changes:
        data[index % len(data)] = value
    try:
        found = unpack(bytes(data))
    except ValueError:
        return
    assert unpack(pack(found)) == found
    assert sum(len(item.payload) for item in found.items) <= len(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["t", "u", "k", "x", "m", "c", "z"]), inner),
)


@given(st.binary() | json_values, st.integers(0, 5), st.integers(0, 255))
def test_fuzz(head: Any, kind: int, flags: int) -> None:
    """Nothing but ValueError comes of any octets, and only what can be delivered of any head."""
    import json

    data = head if isinstance(head, bytes) else json.dumps(head).encode()
    item = wire._ITEM.pack(1, flags) + wire._LENGTH.pack(len(data)) + data + b"\xff"
    topic = b'{"t":"t"}'
    for octets in (
        data,
        wire._HEAD.pack(0xF5, 2, kind, flags, 1, 2, 3, len(data)) + data + item,
        wire._HEAD.pack(0xF5, 2, kind, 0, 1, 2, 3, len(topic)) + topic + item,
    ):
        with contextlib.suppress(ValueError):
            envelope = unpack(octets)
            hash(envelope)
            for message in envelope.items:
                message.message()


# ---- Errors


def test_wrong_arguments(kind: str) -> None:
    """What is wrong with a relay is said when it is made."""
    relay = functools.partial(relay_of, kind, wsfast.Hub())
    good = f"{kind}://localhost"
    with pytest.raises(ValueError, match="url must begin with"):
        relay("http://localhost")
    with pytest.raises(ValueError, match="url must begin with"):
        relay("localhost")
    for slow in (wsfast.Disconnect(), wsfast.Conflate(), None, "drop"):
        with pytest.raises(TypeError, match="slow must be"):
            relay(good, slow=slow)
    for timeout in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="timeout must be positive"):
            relay(good, timeout=timeout)
    for prefix in ("", "a b", "a.*", ".", "a..b", "\n"):
        with pytest.raises(ValueError, match=r"^prefix "):
            relay(good, prefix=prefix)
    with pytest.raises(TypeError):
        relay(good, prefix=5)
    if kind == "nats":
        with pytest.raises(ValueError, match="url must not be empty"):
            wsfast.relay.nats(wsfast.Hub(), [])
        with pytest.raises(ValueError, match="url must begin with"):
            wsfast.relay.nats(wsfast.Hub(), [good, "redis://localhost"])
        with pytest.raises(ValueError, match="prefix must not have more"):
            relay(good, prefix="x" * 101)


def test_no_password_is_shown(kind: str) -> None:
    """What a relay is called has no password."""
    shown = repr(relay_of(kind, wsfast.Hub(name="h"), f"{kind}://user:secret@localhost:1234"))
    assert "secret" not in shown
    assert "localhost:1234" in shown


@pytest.mark.parametrize("module", ["redis", "nats"])
def test_without_the_extra(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the client library there is an ImportError, which names what is missing."""
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"wsfast.relay.{module}_broker", raising=False)
    with pytest.raises(ImportError, match=module):
        relay_of(module, wsfast.Hub(), f"{module}://localhost")


WRONG_USERS: list[tuple[Any, type[Exception]]] = [
    (1.5, TypeError),
    (True, TypeError),
    (("a",), TypeError),
    (b"a", TypeError),
    ("\ud800", ValueError),
    (10**5000, ValueError),
]
WRONG_KEYS: list[tuple[Any, type[Exception]]] = [
    (b"k", TypeError),
    (frozenset(), TypeError),
    (("a", b"b"), TypeError),
    (10**5000, ValueError),
]


def test_what_cannot_be_carried(shared: Broker, prefix: str) -> None:
    """A key or a user that cannot be carried is an error before anybody gets anything."""

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack, ends(shared, prefix) as (a, b):
            here_ = await Clients(a.hub, stack).open()
            connection, client = await here_.connect("t", user="ann")
            local, there = a.stream("t"), b.stream("t")
            await b.subscribed()
            for key, error in WRONG_KEYS:
                with pytest.raises(error):
                    a.hub.publish("t", "x", key=key)
                with pytest.raises(error):
                    a.hub.send("ann", "x", key=key)
                with pytest.raises(error):
                    a.hub.publish_many([("t", "x"), ("t", "x", key)])
            for user, error in WRONG_USERS:
                with pytest.raises(error):
                    a.hub.publish("t", "x", exclude_users=["ann", user])
                with pytest.raises(error):
                    a.hub.send(user, "x")
                other, _ = await here_.connect()
                with pytest.raises(error):
                    a.hub.register(other, user)
            assert here(local) == []
            assert a.published == 0
            assert a.hub.stats().messages == 0
            a.hub.publish("t", "end")
            assert await read(client, 1) == ["end"]
            assert await take(there, 1) == ["end"]
            del connection

    go(main)


@pytest.mark.parametrize(("user", "error"), [(1.5, TypeError), ("\ud800", ValueError)])
def test_users_that_were_there_before(shared: Broker, prefix: str, user: Any, error: type[Exception]) -> None:
    """A relay does not begin with a user that it cannot tell to others; the hub is left as it was."""

    async def main() -> None:
        hub = wsfast.Hub()
        async with contextlib.AsyncExitStack() as stack:
            connection, client = await (await Clients(hub, stack).open()).connect(user=user)
            with pytest.raises(error):
                await End(shared, prefix, hub=hub).__aenter__()
            hub.send(user, "x", key=object())
            assert await read(client, 1) == ["x"]
            hub.unsubscribe(connection)
            await client.close()
            await until(lambda: not hub.users())
            async with End(shared, prefix, hub=hub):
                pass

    go(main)


def test_second_relay(shared: Broker, prefix: str) -> None:
    """A hub has one relay; when it has left, there may be another one, but not the same."""

    async def main() -> None:
        async with ends(shared, prefix) as (a, b):
            with pytest.raises(RuntimeError, match="has a relay already"):
                await End(shared, prefix, hub=b.hub).__aenter__()
            with pytest.raises(RuntimeError, match="cannot be reused"):
                await b.relay.__aenter__()
            stream = b.stream("t")
            await b.subscribed()
            a.hub.publish("t", "1")
            assert await take(stream, 1) == ["1"]
        for end in (a, b):
            with pytest.raises(RuntimeError, match="cannot be reused"):
                await end.relay.__aenter__()
            assert not end.connected
            assert end.subscriptions == 0
        async with ends(shared, prefix, 1) as (a,), End(shared, prefix, hub=b.hub) as again:
            await again.subscribed()
            a.hub.publish("t", "2")
            assert await take(stream, 1) == ["2"]
            assert again.received == 1

    go(main)


def test_hub_of_another_loop(shared: Broker, prefix: str) -> None:
    """A relay is of the event loop of its hub."""
    hub = wsfast.Hub()

    async def use() -> None:
        hub.publish("t", "x")

    async def main() -> None:
        with pytest.raises(RuntimeError, match="loop"):
            await End(shared, prefix, hub=hub).__aenter__()
        assert len(asyncio.all_tasks()) <= 2

    with asyncio.Runner() as first:
        first.run(use())
        go_in_thread(main)


def go_in_thread(main: Main) -> None:
    """Run a coroutine function in an event loop of another thread."""
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(go, main).result()


# ---- Leaving


def test_leaving(run: Run, server: Broker, prefix: str) -> None:
    """What waits is sent before a relay ends; then nothing of it is left."""

    async def main() -> None:
        connections = server.connections()
        tasks = len(asyncio.all_tasks())
        async with ends(server, prefix, 1) as (b,):
            stream = b.stream("t")
            await b.subscribed()
            own = b.relay._inbound._seen
            async with End(server, prefix) as a:
                a.stream("x")
                for number in range(3000):
                    a.hub.publish("t", f"{number}")
            assert (a.queued, a.relay.stats().sent, a.connected) == (0, 3000, False)
            assert await take(stream, 3000) == [f"{number}" for number in range(3000)]
            await until(lambda: not any(seen.positions for seen in own.values()))  # it has said goodbye
            a.hub.publish("t", "alone")
            await check_counts(a, b)
        await until(lambda: server.connections() == connections)
        await until(lambda: server.channels(prefix) == set())
        await until(lambda: len(asyncio.all_tasks()) == tasks)

    run(main)


@pytest.mark.usefixtures("quickly")
def test_leaving_tells_what_is_missing(shared: Broker, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who drops messages and ends tells others how many."""
    monkeypatch.setattr(outbound, "POSITION_INTERVAL", 1000.0)

    async def main() -> None:
        async with ends(shared, prefix, 1) as (b,):
            stream = b.stream("t")
            await b.subscribed()
            async with End(shared, prefix, slow=wsfast.DropNewest(max_messages=10)) as a:
                a.relay._outbound._positions_sent = time.monotonic()
                for number in range(100):
                    a.hub.publish("t", f"{number}")
            await until(lambda: b.received + b.lost == 100)
            assert b.lost == a.dropped == 90
            assert len(here(stream)) == 10

    go(main)


def test_leaving_with_an_error(shared: Broker, prefix: str) -> None:
    """What was raised inside comes out, and nothing is waited for."""

    async def main() -> None:
        tasks = len(asyncio.all_tasks())
        end = End(shared, prefix)
        with pytest.raises(ZeroDivisionError):
            async with end:
                _ = 1 / 0
        assert not end.connected
        await until(lambda: len(asyncio.all_tasks()) == tasks)
        async with End(shared, prefix, hub=end.hub):
            pass

    go(main)


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_leaving_without_the_broker(run: Run, own: Broker, prefix: str, how: str) -> None:
    """A broker that is away keeps nobody from leaving."""

    async def main() -> None:
        tasks = len(asyncio.all_tasks())
        async with ends(own, prefix, timeout=1) as (a, b):
            stream = a.stream("t")
            await a.subscribed()
            if how == "killed":
                own.kill()
                await until(lambda: not a.connected and not b.connected)
            else:
                own.freeze()
            a.hub.publish("t", "x")
            assert here(stream) == ["x"]
            began = time.monotonic()
        assert time.monotonic() - began < TIMEOUT / 2
        assert (a.published, a.queued) == (1, 1)
        await check_counts(a, b)
        await until(lambda: len(asyncio.all_tasks()) == tasks)

    run(main)


@pytest.mark.usefixtures("quickly")
def test_cancellation(run: Run, own: Broker, prefix: str) -> None:
    """Whoever waits in `async with`, at the beginning, inside or at the end, can be cancelled."""

    async def main() -> None:
        tasks = len(asyncio.all_tasks())
        hub = wsfast.Hub()
        inside = asyncio.Event()

        async def use(publish: int = 0) -> None:
            async with End(own, prefix, hub=hub) as end:
                await end.subscribed()
                inside.set()
                if publish:
                    own.freeze()
                    for _ in range(publish):
                        hub.publish("t", "x")
                    return
                await asyncio.sleep(TIMEOUT)

        own.freeze()
        begins = asyncio.create_task(use())
        await until(lambda: hub._registry.relay is not None)
        begins.cancel()
        await asyncio.wait([begins])
        assert begins.cancelled()
        own.thaw()
        stays = asyncio.create_task(use())
        await inside.wait()
        stays.cancel()
        await asyncio.wait([stays])
        assert stays.cancelled()
        inside.clear()
        ends_ = asyncio.create_task(use(5))
        await inside.wait()
        await until(lambda: hub._registry.relay is None)
        ends_.cancel()
        await asyncio.wait([ends_])
        assert ends_.cancelled()
        own.thaw()
        assert hub._registry.relay is None
        await until(lambda: len(asyncio.all_tasks()) == tasks)
        await until(lambda: own.connections() == 0)

    run(main)


def test_new_relay_while_old_one_leaves(own: Broker, prefix: str) -> None:
    """A hub may have its next relay while the one before still waits for the broker."""

    async def main() -> None:
        async with End(own, prefix) as other:
            stream = other.stream("t")
            await other.subscribed()
            old = End(own, prefix, timeout=1)
            await old.__aenter__()
            own.freeze()
            old.hub.publish("t", "old")
            leaving = asyncio.create_task(old.__aexit__(None, None, None))
            await until(lambda: old.hub._registry.relay is None)
            new = asyncio.create_task(End(own, prefix, hub=old.hub).__aenter__())
            await until(lambda: old.hub._registry.relay is not None)
            await leaving
            own.thaw()
            end = await new
            end.hub.publish("t", "new")
            await last_of(stream, "new")
            await end.__aexit__(None, None, None)

    go(main)


def test_poisoned_callback(shared: Broker, prefix: str) -> None:
    """An error in on_gap is the event loop's to report; messages arrive."""
    seen: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
        async with ends(shared, prefix) as (a, b):
            b.relay._inbound.on_gap = lambda _: 1 / 0
            stream = b.stream("t")
            await b.subscribed()
            a.hub.publish("t", "0")
            await take(stream, 1)
            a.relay._outbound._positions["topic", "t"].number += 5
            a.hub.publish("t", "1")
            assert await take(stream, 1) == ["1"]
            await until(lambda: seen)
            assert b.lost == 5

    go(main)


# ---- Passwords, TLS, secrets

AUTHORIZED = {
    "redis": ["--user", "app", "on", ">open-sesame", "+@all", "~*", "&*"],
    "nats": 'authorization { user: app, password: "open-sesame" }\n',
}

Tls = tuple[ssl.SSLContext, ssl.SSLContext]


async def arrives(*some: End) -> None:
    """Check that what the first one publishes arrives at the last one."""
    with some[-1].stream("t") as stream:
        await some[-1].subscribed()
        some[0].hub.publish("t", "hello")
        assert await take(stream, 1) == ["hello"]


async def refused(broker: Broker, prefix: str, caplog: pytest.LogCaptureFixture, **options: Any) -> str:
    """Check that a relay does not connect; return the only thing that it logs."""
    caplog.clear()
    end = End(broker, prefix, **options)
    texts: list[str] = []

    def logged() -> bool:
        texts[:] = [record.getMessage() for record in caplog.records if record.name == "wsfast"]
        return bool(texts)

    entering = asyncio.create_task(end.relay.__aenter__())
    await until(logged, "a warning")
    assert not end.connected
    entering.cancel()
    await asyncio.gather(entering, return_exceptions=True)
    assert len(texts) == 1
    return texts[0]


def test_password(kind: str, tmp_path: Path, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """With the password, messages arrive; with another one, or none, it is said why not; no password is logged."""

    async def main(broker: Broker) -> None:
        right, wrong = (broker.url.replace("//", f"//app:{word}@") for word in ("open-sesame", "barley"))
        async with ends(broker, prefix, url=right) as some:
            await arrives(*some)
        reason = await refused(broker, prefix, caplog, url=wrong)
        assert ("WRONGPASS" if kind == "redis" else "Authorization") in reason or "invalid username" in reason, reason
        if kind == "nats":
            assert "Authorization" in await refused(broker, prefix, caplog)

    with caplog.at_level(logging.DEBUG), started(kind, tmp_path, AUTHORIZED[kind]) as broker:
        go(lambda: main(broker))
    assert "sesame" not in caplog.text
    assert "barley" not in caplog.text


def test_tls(
    run: Run,
    kind: str,
    tmp_path: Path,
    prefix: str,
    certificate: Path,
    tls: Tls,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Messages arrive over TLS; a certificate that is not trusted, or for another name, is refused."""

    async def main(broker: Broker) -> None:
        async with encrypted(broker, tls[0]) as url:
            async with ends(broker, prefix, url=url, ssl=tls[1]) as some:
                await arrives(*some)
            assert "CERTIFICATE_VERIFY_FAILED" in await refused(broker, prefix, caplog, url=url)
            other = url.replace("localhost", "127.1")  # the same address
            assert "CERTIFICATE_VERIFY_FAILED" in await refused(broker, prefix, caplog, url=other, ssl=tls[1])
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))  # the system trusts it
            async with ends(broker, prefix, url=url) as some:
                await arrives(*some)
            assert "CERTIFICATE_VERIFY_FAILED" in await refused(broker, prefix, caplog, url=other)
            monkeypatch.delenv("SSL_CERT_FILE")
            if kind == "redis":  # or, by the URL alone
                async with ends(broker, prefix, url=f"{url}?ssl_ca_certs={certificate}") as some:
                    await arrives(*some)

    with started(kind, tmp_path, tls_options(kind, certificate)) as broker:
        run(lambda: main(broker))


def test_password_is_not_sent_in_the_clear(prefix: str) -> None:
    """To who answers to tls:// without TLS, as a server or somebody in between may, no password is told."""
    pytest.importorskip("nats")

    async def main() -> None:
        heard = bytearray()
        closed = asyncio.Event()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b'INFO {"server_id":"x","version":"2.10.0","max_payload":1048576,"auth_required":true}\r\n')
            heard.extend(await reader.read())
            writer.close()
            closed.set()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        async with server:
            url = f"tls://app:open-sesame@127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with wsfast.relay.nats(wsfast.Hub(), url, prefix=prefix, timeout=1.0) as relay:
                async with asyncio.timeout(TIMEOUT):
                    await closed.wait()
                assert not relay.stats().connected
        assert not heard

    go(main)


@pytest.mark.parametrize("scheme", ["", "s"])
def test_ssl_needs_a_scheme(kind: str, scheme: str, tls: Tls) -> None:
    """With ssl=, a URL that says otherwise is refused, rather than that it is not encrypted."""
    relay = functools.partial(relay_of, kind, wsfast.Hub(), ssl=tls[1])
    if scheme:
        assert relay({"redis": "rediss", "nats": "tls"}[kind] + "://localhost")
    else:
        with pytest.raises(ValueError, match="with ssl, url must begin with"):
            relay(f"{kind}://localhost")


def test_secret(run: Run, server: Broker, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """Those with the same secret hear each other, also while it is exchanged. Others are ignored."""
    old, new = b"open-sesame-open", b"barley-barley-bar"
    secrets: list[Any] = [old, [old, new], [new, old], new]

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            some = [await stack.enter_async_context(End(server, prefix, secret=secret)) for secret in secrets]
            none = await stack.enter_async_context(End(server, prefix))
            streams = [end.stream("t") for end in (*some, none)]
            for end in (*some, none):
                await end.subscribed()
            for number, end in enumerate((*some, none)):
                end.hub.publish("t", f"{number}")
                await end.sent()
            forged = Envelope(MESSAGE, 1, 2**60, 1, ("topic", "t"), (Item(b"forged", text=True),))
            raw = [pack(forged), MALFORMED[2]]
            await raw_publish(server, f"{prefix}.t.t", raw)
            true, false = ["0", "1", "2", "3"], ["4", "forged"]
            expected = [(true[:2], 4), (true, 2), (true, 2), (true[2:], 4), (false, 4)]
            for end, stream, (heard, rejected) in zip((*some, none), streams, expected, strict=True):
                await until(functools.partial(lambda end: end.malformed == 1, end))  # the last one
                assert (here(stream), end.rejected) == (heard, rejected)

    with caplog.at_level(logging.DEBUG):
        run(main)
    assert "sesame" not in caplog.text
    assert "barley" not in caplog.text
