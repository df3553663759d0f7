"""Relays that recover, through real brokers: the same order everywhere, and clients that come back to any process."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import redis.asyncio
from redis.exceptions import NoScriptError
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

import wsfast
from helpers import recovery_process
from helpers.brokers import KINDS, Broker, Redis, proxy_to
from helpers.kept import kept_by, placing_of
from helpers.peers import TIMEOUT, until
from helpers.ports import free_port
from helpers.recovering import End, ends, here, keeping, take
from helpers.recovery_process import TOPICS
from helpers.sinks import Client
from wsfast import Position, relay
from wsfast.relay import Gap, broker, ordered, outbound, redis_streams, wire

SECRET = b"0123456789abcdef"


def go(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine function in an event loop of asyncio's."""
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop, debug=False) as runner:
        return runner.run(asyncio.wait_for(main(), 3 * TIMEOUT))


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Have connections that were not closed be warned about in the test that has left them."""
    yield
    gc.collect()


@pytest.fixture(scope="module", params=KINDS)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A server for all tests that leave it alone."""
    with keeping(request.param, tmp_path_factory.mktemp(request.param)) as broker:
        yield broker


@pytest.fixture(params=KINDS)
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    """A server that the test may kill."""
    with keeping(request.param, tmp_path) as broker:
        yield broker


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Redis]:
    """A Redis that the test may change."""
    with keeping("redis", tmp_path) as broker:
        assert isinstance(broker, Redis)
        yield broker


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """What no other test's channels and keys begin with."""
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name)[:60] + str(random.random())[2:8]


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have relays look for the server often."""
    monkeypatch.setattr(broker, "LAST_BACKOFF", 0.1)
    monkeypatch.setattr(outbound, "POSITION_INTERVAL", 0.1)


class Closing(Client):
    """A client that notes with which code it is closed, and how many messages it has got by then."""

    def __init__(self) -> None:
        super().__init__()
        self.codes: tuple[int, ...] = ()
        self.got = 0

    def close(self, code: int, reason: str) -> None:
        self.codes = (*self.codes, code)
        self.got = len(self.received)


# ---- Arguments


def test_arguments() -> None:
    """What makes no sense is told."""
    with pytest.raises(ValueError, match=r"recover=True needs a hub with history: Hub\(history=100\)"):
        relay.redis(wsfast.Hub(), recover=True)
    with pytest.raises(TypeError, match="recover must be a bool"):
        relay.redis(wsfast.Hub(history=5), recover=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"hub must be a wsfast\.Hub"):
        relay.redis(None, recover=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prefix"):
        relay.redis(wsfast.Hub(history=5), prefix="*", recover=True)


def test_without_a_relay() -> None:
    """recover() does what subscribe() does where nothing can be fetched; errors are the same."""

    async def main() -> None:
        hub, client = wsfast.Hub(history=5), Client()
        hub.publish("a", "1")
        position = hub.position("a")
        hub.publish("a", "2")
        subscription = await hub.recover(client.connection, "a", "b.*", since={"a": position})
        hub.flush()
        assert subscription.recovered
        assert client.received == ["2"]
        with pytest.raises(TypeError, match="at least one topic"):
            await hub.recover(client.connection)
        with pytest.raises(ValueError, match="not one of the topics"):
            await hub.recover(client.connection, "a", since={"c": position})

    go(main)


# ---- Order


@pytest.mark.parametrize("secret", [None, SECRET])
def test_same_order_everywhere(shared: Broker, prefix: str, secret: bytes | None) -> None:
    """All processes deliver the messages of concurrent publishers in one order, and number them alike."""
    rounds = 400

    async def main() -> None:
        async with ends(shared.url, prefix, 3, secret=secret) as three:
            streams = [end.stream("t") for end in three]
            for end in three:
                await end.loaded("t")
            for number in range(rounds):
                for index, end in enumerate(three):
                    end.hub.publish("t", f"{index}|{number}")
                if number % 20 == 0:
                    await asyncio.sleep(0.001)
            first, *others = [await take(stream, 3 * rounds) for stream in streams]
            assert others == [first, first]
            for index in range(3):
                own = [text for text in first if str(text).startswith(f"{index}|")]
                assert own == [f"{index}|{number}" for number in range(rounds)]
            assert len({end.hub.position("t") for end in three}) == 1
            assert three[0].hub.position("t").offset == 3 * rounds
            assert not any(end.gaps for end in three)
            assert three[0].relay.stats().received == 2 * rounds

    go(main)


def test_disconnect(shared: Broker, prefix: str) -> None:
    """Connections of users and topics are closed in other processes too; commands take no place among messages."""

    async def main() -> None:
        async with ends(shared.url, prefix) as (a, b):
            ann, bob, eve = Closing(), Closing(), Closing()
            b.hub.register(ann.connection, "ann")
            for client in (ann, bob):
                b.hub.subscribe(client.connection, "t")
            b.hub.subscribe(eve.connection, "other")
            await b.relay.subscribed(TIMEOUT)
            await b.loaded("t", "other")
            a.hub.publish("t", "1")
            await until(lambda: len(bob.received) == 1)
            assert await a.hub.disconnect(user="ann", code=4001) == 0
            await until(lambda: ann.codes == (4001,))
            assert await a.hub.disconnect(topic="t", code=4002, message="bye") == 0
            await until(lambda: bob.codes == (4002,))
            assert bob.received == ["1", "bye"]
            stream = b.stream("t")
            await b.loaded("t")
            a.hub.publish("t", "2")
            assert await take(stream, 1) == ["2"]
            assert b.hub.position("t").offset == 2
            assert not eve.codes
            stats = b.relay.stats()
            assert (stats.rejected, stats.malformed, stats.lost) == (0, 0, 0)

    go(main)


@pytest.mark.parametrize("about", [{"topic": "t"}, {"user": "ann"}, {"user": "ann", "topic": "t"}], ids=str)
@pytest.mark.parametrize("pattern", [False, True])
def test_disconnect_after_messages(shared: Broker, prefix: str, about: dict[str, str], pattern: bool) -> None:
    """Who is disconnected first gets all that the same process published before, here and in other processes."""

    async def main() -> None:
        async with ends(shared.url, prefix) as (a, b):
            clients = [Closing(), Closing()]
            for end, client in zip((a, b), clients, strict=True):
                end.hub.register(client.connection, "ann")
                end.hub.subscribe(client.connection, ">" if pattern else "t")
            stream = b.stream("t")
            for end in (a, b):
                await end.relay.subscribed(TIMEOUT)
                await end.loaded("t")
            a.hub.send("ann", "0")
            for number in range(1, 700):
                a.hub.publish("t", f"{number}")
            begin = time.monotonic()
            assert await a.hub.disconnect(**about, code=4001, message="bye", seconds=TIMEOUT) == 1
            assert time.monotonic() - begin < TIMEOUT / 2
            a.hub.publish("t", "after")
            await until(lambda: clients[1].codes)
            for client in clients:
                assert client.codes == (4001,)
                assert client.got == 701
                assert client.received[700] == "bye"
            assert (await take(stream, 700 + ("user" not in about)))[-1] == "after"  # streams get "bye" too
            inbound: Any = a.relay._inbound
            await until(lambda: not inbound._returning)

    go(main)


def test_disconnect_after_messages_that_are_fetched(shared: Broker, prefix: str) -> None:
    """A command waits for messages that were published before and must be fetched; it is the same in each process."""

    async def main() -> None:
        async with proxy_to(shared) as proxy, ends(shared.url, prefix, 1) as (a,), ends(proxy.url, prefix, 1) as (b,):
            client = Closing()
            await b.recover(client, "t")
            await b.relay.subscribed(TIMEOUT)
            b.hub.publish("t", "0")
            await until(lambda: client.received == ["0"])
            reconnects = b.relay.stats().reconnects
            proxy.freeze("publishing")  # what it asks for, too
            proxy.cut("subscribing")
            await until(lambda: b.relay.stats().reconnects > reconnects)
            for number in range(1, 10):
                a.hub.publish("t", f"{number}")
            await a.hub.disconnect(topic="t", code=4001)
            await until(lambda: b.waiting[0] > 1)
            assert not client.codes
            proxy.cut("publishing")
            await until(lambda: client.codes)
            assert client.got == 10
            assert b.waiting == (0, 0)

    go(main)


def test_disconnect_while_the_broker_is_away(own: Broker, prefix: str) -> None:
    """Nobody waits for messages that cannot come back, longer than half of the time."""

    async def main() -> None:
        async with ends(own.url, prefix, 1, timeout=1.0) as (a,):
            clients = [Closing() for _ in range(3)]
            for client in clients:
                a.hub.register(client.connection, id(client))
            await a.relay.subscribed(TIMEOUT)
            own.freeze()
            assert await a.hub.disconnect(user=id(clients[0]), code=4001, seconds=0.2) == 1
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await a.hub.disconnect(user=id(clients[1]), code=4001)
            inbound: Any = a.relay._inbound
            await until(lambda: not inbound._returning)
            own.thaw()
            own.kill()
            await until(lambda: not a.relay.connected)
            begin = time.monotonic()
            assert await a.hub.disconnect(user=id(clients[2]), code=4001, seconds=TIMEOUT) == 1
            assert time.monotonic() - begin < TIMEOUT / 2
            assert [client.codes for client in clients] == [(4001,), (), (4001,)]

    go(main)


def test_disconnect_when_the_relay_ends(shared: Broker, prefix: str) -> None:
    """Nobody waits any more for messages that cannot come back since the relay has ended."""

    async def main() -> None:
        async with proxy_to(shared) as proxy:
            async with ends(proxy.url, prefix, 1, timeout=0.5) as (a,):
                client = Closing()
                await a.recover(client, "t")
                await a.relay.subscribed(TIMEOUT)
                proxy.freeze()
                disconnecting = asyncio.create_task(a.hub.disconnect(topic="t", code=4001, seconds=100.0))
                await asyncio.sleep(0)
            assert await asyncio.wait_for(disconnecting, TIMEOUT) == 1
            assert client.codes == (4001,)

    go(main)


def test_many_commands_travel_together(shared: Broker, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands wait for the messages before them, but not for each other."""
    calls: list[int] = []
    placing = placing_of(shared)
    place = placing.place

    async def counting(self: Any, packets: Any) -> Any:
        calls.append(len(packets))
        return await place(self, packets)

    monkeypatch.setattr(placing, "place", counting)

    async def main() -> None:
        async with ends(shared.url, prefix, 1) as (a,):
            await a.relay.connected(TIMEOUT)
            calls.clear()
            a.hub.publish("t", "1")
            await asyncio.gather(*(a.hub.disconnect(user=f"user {number}") for number in range(50)))
            await until(lambda: not a.relay.stats().queued)
            assert [count for count in calls if count] == [1, 50]

    go(main)


def test_presence_while_a_command_returns(shared: Broker, prefix: str) -> None:
    """A process hears its own notices also while a command of it is on its way."""

    async def main() -> None:
        async with ends(shared.url, prefix, 1, presence=True) as (a,):
            inbound, presence = cast(Any, a.relay)._inbound, cast(Any, a.relay)._presence
            await until(lambda: presence._echoed)
            returning = inbound.returning(1)
            presence._echoed = False
            a.hub.register(Client().connection, "ann")
            await until(lambda: presence._echoed)
            returning.cancel()

    go(main)


def pending_futures() -> int:
    """Return how many futures nobody has given a result."""
    gc.collect()
    return sum(type(one) is asyncio.Future and not one.done() for one in gc.get_objects())


def test_recovering_while_the_broker_is_away(own: Broker, prefix: str) -> None:
    """Clients that come back meanwhile leave nothing behind when they have waited in vain."""

    async def main() -> None:
        async with ends(own.url, prefix, 1, timeout=1.0) as (a,):
            stream = a.stream("t")
            own.kill()
            await until(lambda: not a.relay.connected)
            before = pending_futures()
            for _ in range(100):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.001):
                        await a.recover(Client(), "t")
            assert pending_futures() < before + 50
            stream.close()

    go(main)


def test_command_comes_twice(shared: Broker, prefix: str) -> None:
    """A command whose confirmation was lost comes again, and is not carried out for clients that have come back."""

    async def main() -> None:
        async with ends(shared.url, prefix, number=1) as (a,):
            inbound = a.relay._inbound
            for when, active in ((0, False), (0, True), (-1, True), (1, False)):
                parts = (started_at + when, None, 4001, "", False)
                envelope = wire.Envelope(wire.MESSAGE, 99, 0, 1, ("topic", "t"), (wire.Item(b"", command=parts),))
                subscription = a.hub.subscribe(Client().connection, "t")
                inbound.receive(wire.pack(envelope), a.relay._broker.channel(("topic", "t")))
                for _ in range(3):
                    await asyncio.sleep(0)
                if not active:
                    await subscription.ended()
                assert subscription.active == active
                subscription.unsubscribe()
            assert a.relay.stats().duplicates == 2

    started_at = time.time_ns()
    go(main)


def test_state_of_the_server_refuses_nothing(own_redis: Redis, prefix: str) -> None:
    """While Redis takes no writes, messages wait; it is no refusal."""

    async def main() -> None:
        client: Any
        async with ends(own_redis.url, prefix, number=1) as (a,), redis.asyncio.Redis.from_url(own_redis.url) as client:
            stream = a.stream("t")
            await a.loaded("t")
            await client.execute_command("REPLICAOF", "127.0.0.1", "1")
            a.hub.publish("t", "while it is a replica")
            await until(lambda: a.relay.stats().reconnects > 0)
            await client.execute_command("REPLICAOF", "NO", "ONE")
            assert await take(stream, 1) == ["while it is a replica"]
            assert a.relay.stats().dropped == 0

    go(main)


def test_publisher(shared: Broker, prefix: str) -> None:
    """A program without a hub publishes to a topic that the broker keeps, and to users, if it is given the history."""

    async def main() -> None:
        async with ends(shared.url, prefix, history=5) as (a, b):
            ann = Client()
            b.hub.register(ann.connection, "ann")
            b.hub.subscribe(ann.connection, "t")
            await b.loaded("t")
            async with relay.async_publisher(shared.url, prefix=prefix, history=5) as publisher:
                for number in range(10):
                    await publisher.publish("t", f"{number}")
                await publisher.send("ann", "private")
                a.hub.publish("t", "last")
            numbers = [f"{number}" for number in range(10)]
            await until(lambda: len(ann.received) == 12)
            assert sorted(ann.received) == sorted([*numbers, "private", "last"])
            assert [text for text in ann.received if text != "private"] == [*numbers, "last"]
            back, late = Client(), Client()
            epoch, offset = b.hub.position("t")
            assert offset == 11
            for client, since in ((back, 6), (late, 5)):
                subscription = await a.recover(client, "t", t=Position(epoch, since))
                assert subscription.recovered == (since == 6)
            await until(lambda: back.received == [*numbers[6:], "last"])
            async with relay.async_publisher(shared.url, prefix=prefix) as publisher:
                await publisher.publish("t", "without a place")
            await until(lambda: b.relay.stats().rejected == 1)

    go(main)
    with pytest.raises(ValueError, match="history must have messages"):
        relay.publisher(shared.url, history=0)


def test_subscribers_that_come_and_go(shared: Broker, prefix: str) -> None:
    """A topic is heard by who comes after the last subscriber has left, and by a pattern after one that left at once.

    Both happen before the broker has confirmed anything.
    """

    async def main() -> None:
        async with ends(shared.url, prefix) as (a, b):
            pattern = b.stream("p.*")
            first = b.stream("t")
            await b.relay.subscribed(TIMEOUT)
            await b.loaded("t")
            for _ in range(3):
                first.close()
                first = b.stream("t")
                b.stream("p.a").close()
                await asyncio.sleep(0)
            await b.relay.subscribed(TIMEOUT)
            await b.loaded("t")
            for number in range(3):
                a.hub.publish("t", f"{number}")
                a.hub.publish("p.a", f"{number}")
            assert await take(first, 3) == ["0", "1", "2"]
            assert await take(pattern, 3) == ["0", "1", "2"]

    go(main)


def test_what_comes_back(shared: Broker, prefix: str) -> None:
    """A message that comes back has all that it was published with; who is excluded does not get it."""

    async def main() -> None:
        async with ends(shared.url, prefix, 2) as (one, two):
            here, other, there = Client(), Client(), Client()
            await one.recover(here, "a", "b")
            await one.recover(other, "a")
            await two.recover(there, "a", "b")
            one.hub.register(other.connection, "ann")
            two.hub.register(there.connection, "bob")
            await two.relay.subscribed(TIMEOUT)
            one.hub.publish("a", "1", exclude=[here.connection])
            one.hub.publish(["a", "b"], "2")
            one.hub.publish("a", "3", exclude_users=["ann", "bob"])
            one.hub.publish("b", "4", exclude=[here.connection], exclude_users=["bob"])
            one.hub.send("bob", "5")
            one.hub.publish_many([("a", "6"), ("a", "7", "key")])
            await until(lambda: "7" in here.received and "7" in there.received and "7" in other.received)
            assert here.received == ["2", "3", "6", "7"]
            assert other.received == ["1", "2", "6", "7"]
            assert sorted(there.received) == ["1", "2", "5", "6", "7"]
            # Who comes later gets each message once as well, also of several topics.
            late = Client()
            await one.recover(late, "a", "b")
            one.hub.flush()
            assert sorted(late.received) == ["1", "2", "3", "4", "6", "7"]

    go(main)


def test_own_message_after_subscribing(shared: Broker, prefix: str) -> None:
    """Who subscribes gets what the same process publishes next, though the broker knows nothing of it yet."""

    async def main() -> None:
        async with ends(shared.url, prefix, 2) as (one, two):
            for number in range(20):
                topic = f"t{number}"
                two.hub.publish(topic, "before")
                one.hub.publish(topic, "earlier")
                stream = one.stream(topic)
                one.hub.publish(topic, "first")
                one.hub.publish(topic, "second")
                messages = await take(stream, 2)
                while messages[-1] != "second":
                    messages += await take(stream, 1)
                assert messages[-2:] == ["first", "second"]
                assert set(messages[:-2]) <= {"before", "earlier"}  # which the broker may get after the subscription

    go(main)


def test_other_message_after_subscribing(shared: Broker, prefix: str) -> None:
    """What another process publishes once the broker has confirmed a subscription is delivered."""

    async def main() -> None:
        async with ends(shared.url, prefix, 2) as (one, two):
            for number in range(30):
                topic = f"t{number}"
                two.hub.publish(topic, "before")
                stream = one.stream(topic)
                await one.relay.subscribed(TIMEOUT)
                two.hub.publish(topic, "first")
                two.hub.publish(topic, "second")
                messages = await take(stream, 2)
                while messages[-1] != "second":
                    messages += await take(stream, 1)
                assert messages in (["first", "second"], ["before", "first", "second"])

    go(main)


# ---- Coming back


def test_back_to_another_process(shared: Broker, prefix: str) -> None:
    """A client that comes back to a process that knows nothing of the topic gets what it missed, and the stream."""

    async def main() -> None:
        async with ends(shared.url, prefix, 2) as (one, publisher):
            client = Client()
            await one.recover(client, "t", "u")
            for number in range(10):
                publisher.hub.publish("t", str(number))
            await until(lambda: len(client.received) == 10)
            positions = {topic: one.hub.position(topic) for topic in "tu"}
        async with End(shared.url, prefix) as publisher:
            for number in range(10, 3000):
                publisher.hub.publish("t", str(number))
            publisher.hub.publish("u", "u")
        async with ends(shared.url, prefix, 2) as (other, publisher):
            back, new = Client(), Client()
            subscription = await other.recover(back, "t", "u", **positions)
            assert subscription.recovered
            assert subscription.positions["t"] == (positions["t"].epoch, 3000)
            publisher.hub.publish("t", "3000")
            await until(lambda: "3000" in back.received)
            assert sorted(back.received, key=lambda text: (text == "u", text)) == [
                *sorted(str(number) for number in range(10, 3001)),
                "u",
            ]
            assert [text for text in back.received if text != "u"] == [str(number) for number in range(10, 3001)]
            assert not other.gaps
            # A new client gets the history, as much as there is.
            await other.recover(new, "t")
            other.hub.flush()
            assert new.received == [str(number) for number in range(3001)]

    go(main)


def test_tags(shared: Broker, prefix: str) -> None:
    """The broker keeps the tags of messages: a client that comes back to another process gets what it asks for."""

    async def main() -> None:
        async with ends(shared.url, prefix, 2) as (one, two):
            clients = [Client(), Client()]
            for end, client in zip((one, two), clients, strict=True):
                await end.hub.recover(client.connection, "t", tags={"x"})
            for number in range(6):
                one.hub.publish("t", str(number), tags={"x"} if number % 2 else {"y"})
            one.hub.publish("t", "6", tags={"x"}, exclude=[clients[0].connection])
            one.hub.publish("t", "7")
            await until(lambda: all(client.received[-1:] == ["7"] for client in clients))
            assert [client.received for client in clients] == [["1", "3", "5", "7"], ["1", "3", "5", "6", "7"]]
            epoch, offset = one.hub.position("t")
            assert offset == 8
        async with End(shared.url, prefix) as other:
            for tags, expected in (({"x"}, ["3", "5", "6", "7"]), ({"y"}, ["2", "4", "7"]), (None, list("234567"))):
                back = Client()
                subscription = await other.hub.recover(back.connection, "t", since={"t": (epoch, 2)}, tags=tags)
                assert subscription.recovered
                assert subscription.positions["t"] == (epoch, 8)
                other.hub.flush()
                assert back.received == expected

    go(main)


def test_ahead_of_the_process(shared: Broker, prefix: str) -> None:
    """A client that has seen more than the process to which it comes back misses nothing and gets nothing twice."""

    async def main() -> None:
        async with proxy_to(shared) as proxy, End(shared.url, prefix) as fast, End(proxy.url, prefix) as slow:
            stream, late = fast.stream("t"), slow.stream("t")
            await fast.loaded("t")
            await slow.loaded("t")
            proxy.freeze("subscribing")
            fast.hub.publish("t", "1")
            fast.hub.publish("t", "2")
            await take(stream, 2)
            position = fast.hub.position("t")
            assert slow.hub.position("t").offset == 0
            client = Client()
            subscription = await slow.recover(client, "t", t=position)
            slow.hub.flush()
            assert subscription.recovered
            assert subscription.positions == {"t": position}
            assert client.received == []
            assert await take(late, 2) == ["1", "2"]
            proxy.cut("subscribing")
            fast.hub.publish("t", "3")
            await until(lambda: client.received)
            assert await take(late, 1) == client.received == ["3"]

    go(main)


@pytest.mark.parametrize("bound", ["messages", "bytes", "seconds"])
def test_beyond_the_bounds(shared: Broker, prefix: str, bound: str) -> None:
    """What the stream does not reach back to is not recovered, not even a part; the broker keeps what is asked for."""
    history = {
        "messages": wsfast.History(20),
        "bytes": wsfast.History(10_000, bytes=60_000),
        "seconds": wsfast.History(10_000, seconds=0.6),
    }[bound]

    async def main() -> None:
        async with ends(shared.url, prefix, 2, history=history) as (one, publisher):
            client = Client()
            await one.recover(client, "t")
            publisher.hub.publish("t", "0")
            await until(lambda: client.received == ["0"])
            position = one.hub.position("t")
        async with End(shared.url, prefix, history=history) as publisher:
            for number in range(1, 200):
                publisher.hub.publish("t", f"{number}" + 1000 * " ")
                await until(lambda: not publisher.relay.stats().queued)
            if bound == "seconds":
                await asyncio.sleep(0.7)
                publisher.hub.publish("t", "last")
        async with End(shared.url, prefix, history=history) as other:
            back = Client()
            subscription = await other.recover(back, "t", t=position)
            other.hub.flush()
            assert not subscription.recovered
            assert subscription.positions["t"].epoch == position.epoch
            some = {"messages": 20, "bytes": 59, "seconds": 1}[bound]
            assert len(back.received) == some
            assert other.gaps == []
            # From within the bounds, it is recovered.
            last = other.hub.position("t")
            again = Client()
            near = Position(last.epoch, last.offset - some)
            assert (await other.recover(again, "t", t=near)).recovered
            other.hub.flush()
            assert again.received == back.received
        kept = len(kept_by(shared, prefix).packets("t"))
        limits = {"messages": 20, "bytes": 70 + 64, "seconds": 2 + 64}
        assert kept <= (limits[bound] if shared.kind == "redis" or bound == "messages" else 201)

    go(main)


def test_broker_has_lost_its_data(own: Broker, prefix: str) -> None:
    """After a restart without data, the topic has a new epoch: nobody is said to be recovered, and it goes on."""

    async def main() -> None:
        async with ends(own.url, prefix, 2) as (one, publisher):
            client = Client()
            await one.recover(client, "t")
            for number in range(5):
                publisher.hub.publish("t", str(number))
            await until(lambda: len(client.received) == 5)
            position = one.hub.position("t")
            own.kill()
            publisher.hub.publish("t", "5")
            own.start()
            await until(lambda: client.received[5:] == ["5"])
            assert one.hub.position("t").epoch != position.epoch
            assert one.hub.position("t").offset == 1
            await until(lambda: one.gaps)
            assert [gap.messages for gap in one.gaps] == [0]  # nobody knows how many
            back = Client()
            subscription = await one.recover(back, "t", t=position)
            one.hub.flush()
            assert not subscription.recovered
            assert back.received == ["5"]
            await until(lambda: publisher.relay.connected)

    go(main)


def test_broker_is_away(own: Broker, prefix: str) -> None:
    """While the broker is away, recover() takes no longer than the timeout, and says what is recovered."""

    async def main() -> None:
        async with End(own.url, prefix, timeout=0.3) as end:
            client = Client()
            await end.recover(client, "t")
            end.hub.publish("t", "1")
            await until(lambda: client.received == ["1"])
            position = end.hub.position("t")
            end.hub.publish("t", "2")
            await until(lambda: client.received == ["1", "2"])
            own.kill()
            await until(lambda: not end.relay.connected)
            known, unknown = Client(), Client()
            assert (await end.recover(known, "t", t=position)).recovered
            begin = asyncio.get_running_loop().time()
            subscription = await end.recover(unknown, "t", "u", t=position, u=position)
            assert asyncio.get_running_loop().time() - begin < TIMEOUT / 2
            assert subscription.recovered_topics == {"t"}
            end.hub.publish("t", "3")
            end.hub.flush()
            assert known.received == unknown.received == ["2"]  # without the broker, nothing of topics is delivered

    go(main)


# ---- Faults


@pytest.mark.parametrize("secret", [None, SECRET])
def test_cuts(shared: Broker, prefix: str, secret: bytes | None) -> None:
    """However often connections are cut, each process delivers every message once, in the one order, without a gap."""
    number, random_ = 1500, random.Random(5)

    async def main() -> None:
        async with proxy_to(shared) as first, proxy_to(shared) as second, contextlib.AsyncExitStack() as stack:
            three = [
                await stack.enter_async_context(End(url, prefix, secret=secret))
                for url in (first.url, second.url, shared.url)
            ]
            streams = [end.stream("t") for end in three]
            for end in three:
                await end.loaded("t")
            for index in range(number):
                for end in three:
                    end.hub.publish("t", f"{three.index(end)}|{index}")
                if index % 10 == 0:
                    await asyncio.sleep(0.002)
                if index % 150 == 149:
                    random_.choice((first, second)).cut(random_.choice(("publishing", "subscribing", None)))
            got = [await take(stream, 3 * number) for stream in streams]
            assert got[0] == got[1] == got[2]
            assert sorted(got[0]) == sorted(f"{one}|{index}" for one in range(3) for index in range(number))
            assert not any(end.gaps for end in three)
            assert sum(end.relay.stats().reconnects for end in three) > 3
            assert not any(map(here, streams))
            assert all(end.relay.stats().rejected == end.relay.stats().malformed == 0 for end in three)

    go(main)


def test_lost_confirmations(shared: Broker, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the broker has placed and not confirmed is sent again, together with others, and not placed again."""
    placing, calls = placing_of(shared), 0
    real = placing.place

    async def place(self: Any, packets: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < 20 and calls % 2:
            await real(self, packets[: len(packets) // 2 + 1])
            raise ConnectionResetError("the confirmation is lost")
        return await real(self, packets)

    async def main() -> None:
        async with ends(shared.url, prefix, 2) as (one, two):
            streams = {topic: two.stream(topic) for topic in "abc"}
            await two.loaded(*"abc")
            monkeypatch.setattr(placing, "place", place)
            for number in range(600):
                for topic in "abc":
                    one.hub.publish(topic, str(number))
                if number % 60 == 0:
                    await asyncio.sleep(0.01)
            for stream in streams.values():
                assert await take(stream, 600) == [str(number) for number in range(600)]
            await until(lambda: one.relay.stats().queued == 0)
            monkeypatch.setattr(placing, "place", real)
            assert {kept_by(shared, prefix).position(topic).offset for topic in "abc"} == {600}
            assert calls > 3
            assert not two.gaps

    go(main)


def test_placed_in_part(own_redis: Redis, prefix: str) -> None:
    """A packet of which Redis has placed a part only is refused as a whole, and one that is older is ignored."""

    async def main() -> None:
        streams = redis_streams.RedisStreams(own_redis.url, prefix, TIMEOUT, None, wsfast.History(100))
        sending: Any = await streams.open_sending()

        def packet(epoch: int, number: int) -> bytes:
            return b"head" + (7).to_bytes(8) + epoch.to_bytes(8) + number.to_bytes(8)

        address = "topic", "t"
        try:
            assert await sending.place([(address, packet(5, 1), 10)]) == {}
            with pytest.raises(ConnectionError, match="placed in part"):
                await sending.place([(address, packet(5, 6), 10)])
            for epoch, number, count, offset in (
                (5, 1, 10, "10"),
                (5, 3, 2, "10"),
                (4, 100, 1, "10"),
                (5, 11, 2, "12"),
                (6, 1, 1, "13"),
                (5, 13, 1, "13"),
            ):
                assert await sending.place([(address, packet(epoch, number), count)]) == {}
                assert own_redis.ask("HGET", f"{prefix}.m.t", "o") == offset
            own_redis.ask("SCRIPT", "FLUSH")
            with pytest.raises(NoScriptError):
                await sending.place([(address, packet(7, 1), 1)])
        finally:
            await sending.close()

    go(main)


def test_trimmed_while_away(shared: Broker, prefix: str) -> None:
    """A process that was cut off for longer than the stream reaches back tells how many messages are missing."""

    async def main() -> None:
        async with ends(shared.url, prefix, 1, history=10) as (publisher,), proxy_to(shared) as proxy:  # noqa: SIM117
            async with End(proxy.url, prefix, history=10) as end:
                client, stream = Client(), end.stream("t")
                await end.recover(client, "t")
                publisher.hub.publish("t", "0")
                await take(stream, 1)
                position = end.hub.position("t")
                proxy.refuse = True
                proxy.cut()
                for number in range(1, 100):
                    publisher.hub.publish("t", str(number))
                    await until(lambda: not publisher.relay.stats().queued)
                proxy.refuse = False
                assert await take(stream, 10) == [str(number) for number in range(90, 100)]
                await until(lambda: end.gaps)
                assert end.gaps == [Gap("", "topic", "t", 89)]
                assert end.relay.stats().lost == 89
                back = Client()
                assert not (await end.recover(back, "t", t=position)).recovered
                assert end.hub.position("t").offset == 100
                near = Position(position.epoch, 95)
                assert (await end.recover(Client(), "t", t=near)).recovered

    go(main)


def test_dropped_by_the_publisher(shared: Broker, prefix: str) -> None:
    """Messages that the queue of the publisher had no room for are told in the other processes, with their number."""

    async def main() -> None:
        async with ends(shared.url, prefix, 2, slow=wsfast.DropOldest(max_messages=5)) as (one, two):
            stream = two.stream("t")
            await two.loaded("t")
            one.hub.publish("t", "first")
            await take(stream, 1)
            for number in range(20):
                one.hub.publish("t", str(number))
            assert await take(stream, 5) == ["15", "16", "17", "18", "19"]
            await until(lambda: two.gaps)
            assert two.gaps == [Gap(one.relay.id, "topic", "t", 15)]

    go(main)


def test_forged_places(shared: Broker, prefix: str) -> None:
    """Packets with places that the broker has not given cost a question each, and hide nothing."""

    async def main() -> None:
        async with End(shared.url, prefix, secret=SECRET) as one:
            stream = one.stream("t")
            await one.loaded("t")
            one.hub.publish("t", "1")
            assert await take(stream, 1) == ["1"]
            keeper = kept_by(shared, prefix)
            (packet,) = keeper.packets("t")
            epoch = one.hub.position("t").epoch
            for place in (f"{epoch}{2:016}", f"{epoch}{10**15:016}", f"{'f' * 16}{1:016}", f"{'f' * 16}{2:016}"):
                keeper.publish("t", b"\xf6" + place.encode() + packet)
                one.hub.publish("t", place)
                assert await take(stream, 1) == [place]
            await until(lambda: one.relay.stats().rejected == 4)
            keeper.publish("t", b"\xf6" + packet)
            keeper.publish("t", packet[:4] + b"12345678" + packet[12:])
            await until(lambda: one.relay.stats().rejected + one.relay.stats().malformed == 6)
            assert one.gaps == []
            assert one.hub.position("t") == (epoch, 5)
            assert one.waiting == (0, 0)

    go(main)


def test_subscribing_while_the_history_arrives(shared: Broker, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who subscribes while the history arrives in parts gets all of it or nothing."""
    kept_by(shared, prefix).limit_parts(monkeypatch, 100)

    async def main() -> None:
        async with End(shared.url, prefix) as publisher:
            for number in range(200):
                publisher.hub.publish("t", f"{number:3}" + 100 * " ")
                await until(lambda: not publisher.relay.stats().queued)
            epoch = kept_by(shared, prefix).position("t").epoch
            async with End(shared.url, prefix) as end:
                stream = end.stream("t")
                clients: list[tuple[Client, wsfast.HubSubscription]] = []
                while not clients or not clients[-1][1].recovered:
                    client = Client()
                    since = Position(epoch, 10)
                    clients.append((client, end.hub.subscribe(client.connection, "t", since={"t": since})))
                    await asyncio.sleep(0)
                assert len(clients) > 10
                publisher.hub.publish("t", "last")
                assert await take(stream, 1) == ["last"]
                end.hub.flush()
                for client, subscription in clients[:-1]:
                    assert not subscription.recovered
                    assert client.received == ["last"]
                assert len(clients[-1][0].received) == 191

    go(main)


def test_little_room_to_wait(shared: Broker, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets for which there is no room while others are fetched are fetched as well."""
    monkeypatch.setattr(ordered, "WAITING", 3)
    kept_by(shared, prefix).limit_parts(monkeypatch, 2000)

    async def main() -> None:
        async with proxy_to(shared) as proxy, End(shared.url, prefix) as publisher, End(proxy.url, prefix) as end:
            stream = end.stream("t")
            await end.loaded("t")
            for number in range(1000):
                publisher.hub.publish("t", str(number))
                if number % 5 == 0:
                    await asyncio.sleep(0.0005)
                if number in (100, 500):
                    proxy.cut()
            assert await take(stream, 1000) == [str(number) for number in range(1000)]
            assert end.gaps == []
            assert end.waiting == (0, 0)

    go(main)


def test_patterns(shared: Broker, prefix: str) -> None:
    """A subscriber by a pattern gets each message once, also after a cut; who comes by the name gets the history."""

    async def main() -> None:
        async with proxy_to(shared) as proxy, End(shared.url, prefix) as publisher:
            for number in range(5):
                publisher.hub.publish("a.1", f"early {number}")
            await until(lambda: not publisher.relay.stats().queued)
            async with End(proxy.url, prefix) as end:
                stream = end.stream("a.*")
                await end.relay.subscribed(TIMEOUT)
                for number in range(300):
                    publisher.hub.publish("a.1", str(number))
                    publisher.hub.publish("a.2", str(number))
                    await asyncio.sleep(0.001)
                    if number == 100:
                        proxy.cut()
                    if number == 200:
                        late = Client()
                        await end.recover(late, "a.1")
                messages = await take(stream, 600)
                assert Counter(messages) == Counter(2 * [str(number) for number in range(300)])
                assert here(stream) == 0
                await until(lambda: len(late.received) == 305)
                assert late.received == [
                    *(f"early {number}" for number in range(5)),
                    *(str(number) for number in range(300)),
                ]
                assert end.gaps == []

    go(main)


def test_name_after_pattern(shared: Broker, prefix: str) -> None:
    """Who subscribes by the name after a pattern has ended gets nothing that was published while nobody listened."""

    async def main() -> None:
        async with ends(shared.url, prefix, 2) as (one, publisher):
            with one.stream("a.*") as stream:
                await one.relay.subscribed(TIMEOUT)
                publisher.hub.publish("a.1", "1")
                assert await take(stream, 1) == ["1"]
            await one.relay.subscribed(TIMEOUT)
            publisher.hub.publish("a.1", "2")
            await until(lambda: not publisher.relay.stats().queued)
            stream = one.stream("a.1")
            await one.loaded("a.1")
            publisher.hub.publish("a.1", "3")
            assert await take(stream, 1) == ["3"]
            assert one.hub.position("a.1").offset == 3
            # And the other way round: while the name has a subscriber, a pattern that comes and goes changes nothing.
            with one.stream("a.*") as other:
                await one.relay.subscribed(TIMEOUT)
                publisher.hub.publish("a.1", "4")
                assert await take(other, 1) == await take(stream, 1) == ["4"]
            publisher.hub.publish("a.1", "5")
            assert await take(stream, 1) == ["5"]
            stream.close()
            assert one.gaps == []

    go(main)


# ---- The end of a relay


def test_leaving(shared: Broker, prefix: str) -> None:
    """What was published last is delivered in this process too; afterwards, positions are those of the hub again."""

    async def main() -> None:
        hub, client = wsfast.Hub(history=10), Client()
        async with End(shared.url, prefix, hub=hub) as end:
            await end.recover(client, "t")
            for number in range(3000):
                hub.publish("t", str(number))
        assert client.received == [str(number) for number in range(3000)]
        position = hub.position("t")
        hub.publish("t", "alone")
        hub.flush()
        assert client.received[-1] == "alone"
        async with End(shared.url, prefix, history=10) as other:
            assert not (await other.recover(Client(), "t", t=position)).recovered
            assert other.hub.position("t").offset == 3000

    go(main)


# ---- Processes


class Follower:
    """A client over a network that comes back whenever it loses its connection, and checks all that it gets."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.positions: dict[str, tuple[str, int]] = {}
        self.next = dict.fromkeys(TOPICS, 0)
        self.offsets: dict[str, int] = {}
        self.answers: list[bool] = []
        self.last = 10**9
        """Messages to each topic."""

    @property
    def done(self) -> bool:
        return min(self.next.values()) >= self.last

    async def run(self) -> None:
        while not self.done:
            with contextlib.suppress(OSError, ConnectionClosed, InvalidHandshake):
                async with connect(f"ws://127.0.0.1:{self.port}", compression=None, open_timeout=5) as connection:
                    await connection.send(json.dumps(self.positions))
                    async for message in connection:
                        self.take(json.loads(message))
                        if self.done:
                            return
            await asyncio.sleep(0.01)

    def take(self, message: Any) -> None:
        if isinstance(message, dict):
            self.answers.append(message["recovered"])
            for topic, (epoch, offset) in message["positions"].items():
                if topic in self.positions:
                    assert (epoch, offset) == self.positions[topic]  # it got all before
                self.positions[topic] = epoch, offset
            return
        topic, offset, payload = message
        assert int(payload) == self.next[topic]
        self.next[topic] += 1
        epoch, before = self.positions[topic]
        assert offset == before + 1
        self.positions[topic] = epoch, offset


@pytest.mark.timeout(180)
def test_server_is_killed(shared: Broker, prefix: str) -> None:
    """A server is killed ten times while another process publishes: its client gets every message exactly once."""

    async def main() -> None:
        port = free_port()
        follower = Follower(port)
        task = asyncio.create_task(follower.run())
        async with recovery_process.process(shared.url, prefix, port):
            await until(lambda: task.done() or follower.answers)
        async with recovery_process.process(shared.url, prefix) as publisher:
            for number in range(10):
                async with recovery_process.process(shared.url, prefix, port):
                    await until(lambda number=number: task.done() or len(follower.answers) > number + 1)  # type: ignore[misc]
                    await asyncio.sleep(0.02 * (number % 3))
            publisher.stdin.close()
            messages = int(await publisher.stdout.readline())
        async with recovery_process.process(shared.url, prefix, port):
            follower.last = messages
            await asyncio.wait_for(task, TIMEOUT)
        assert follower.next == dict.fromkeys(TOPICS, messages)
        assert follower.answers == [False, *(len(follower.answers) - 1) * [True]]
        assert len(follower.answers) >= 11

    go(main)
