"""Filters: a subscriber that asks for tags gets the messages with one of them. Others cost and count nothing for it."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

import pytest

import wsfast
import wsfast.relay
import wsfast.sse
from helpers.fixtures import Run
from helpers.interrupts import Interrupt
from helpers.sinks import Client
from integration.test_hub import reconciled
from wsfast.hub.filters import LONGEST, MOST, PAST


def hub_of(**options: Any) -> wsfast.Hub:
    return wsfast.Hub(slow=wsfast.Disconnect(max_messages=None, max_bytes=None), **options)


def numbered(names: str) -> set[str]:
    """Return tags: "3-5" for t3, t4 and t5."""
    first, _, last = names.partition("-")
    return {f"t{number}" for number in range(int(first), int(last) + 1)}


class Stalled(Client):
    """A client that reads nothing."""

    def writable(self) -> bool:
        return False


# ---- Who gets what


def test_tags(run: Run, core: Any) -> None:
    """A message goes to those who ask for one of its tags, and to those who ask for none. Without tags, all get it."""

    async def main() -> None:
        hub = hub_of()
        eu, gold, both, every = (Client() for _ in range(4))
        subscriptions = [
            hub.subscribe(eu.connection, "orders", tags={"eu"}),
            hub.subscribe(gold.connection, "orders", tags=["gold", "gold"]),
            hub.subscribe(both.connection, "orders", tags=iter(("eu", "gold"))),
            hub.subscribe(every.connection, "orders"),
        ]
        hub.publish("orders", "1", tags={"eu"})
        hub.publish("orders", "2", tags={"gold", "us"})
        hub.publish("orders", "3", tags={"eu", "gold"})
        hub.publish("orders", "4", tags={"us"})
        hub.publish("orders", "5")
        hub.publish_many([("orders", "6")])
        hub.channel("orders").publish("7", tags=("us", "eu"))
        hub.flush()
        assert eu.received == ["1", "3", "5", "6", "7"]
        assert gold.received == ["2", "3", "5", "6"]
        assert both.received == ["1", "2", "3", "5", "6", "7"]
        assert every.received == ["1", "2", "3", "4", "5", "6", "7"]
        stats = reconciled(hub, *subscriptions)
        assert (stats.messages, stats.published, stats.sent) == (7, 22, 22)
        assert hub.channel("orders").stats().messages == 7
        assert hub.count("orders") == 4
        assert len(hub.subscribers("orders")) == 4

    run(main)


def test_replaced(run: Run, core: Any) -> None:
    """To subscribe again replaces the tags from the next message on; nothing is missing, repeated or replayed."""

    async def main() -> None:
        hub = hub_of(history=10)
        client = Client()
        first = hub.subscribe(client.connection, "a", tags={"x"})
        for number, tags in enumerate([{"y"}, {"x", "y"}, {"z"}, None, {"x"}]):
            hub.publish("a", f"x{number}", tags={"x"})
            hub.publish("a", f"y{number}", tags={"y"})
            assert hub.subscribe(client.connection, "a", tags=tags).active
        hub.publish("a", "end", tags={"y"})
        hub.flush()
        assert client.received == ["x0", "y1", "x2", "y2", "x4", "y4"]
        assert first.active
        stats = reconciled(hub, first)
        assert (stats.messages, stats.published) == (11, 6)
        hub.unsubscribe(client.connection)
        assert reconciled(hub, first).published == 6

    run(main)


def test_with_blocks(run: Run, core: Any) -> None:
    """The tags of the last call hold, also after its block, as long as another one holds the subscription."""

    async def main() -> None:
        hub = hub_of()
        client = Client()
        with hub.subscribe(client.connection, "a"):
            with hub.subscribe(client.connection, "a", tags={"x"}):
                hub.publish("a", "1", tags={"y"})
            hub.publish("a", "2", tags={"y"})
            hub.publish("a", "3", tags={"x"})
            hub.flush()
        assert client.received == ["3"]
        assert len(hub) == 0

    run(main)


def test_topics_and_patterns(run: Run, core: Any) -> None:
    """A connection gets a message once, if one of its topics and patterns lets it through."""

    async def main() -> None:
        hub = hub_of()
        client, other = Client(), Client()
        handles = [
            hub.subscribe(client.connection, "a.b", tags={"x"}),
            hub.subscribe(client.connection, "a.*", tags={"y"}),
            hub.subscribe(other.connection, "*.b", "c", tags={"z"}),
        ]
        hub.publish("a.b", "1", tags={"x"})
        hub.publish("a.b", "2", tags={"y"})
        hub.publish("a.b", "3", tags={"x", "y"})
        hub.publish("a.b", "4", tags={"z"})
        hub.publish(["a.b", "c"], "5", tags={"x", "z"})
        hub.publish(["a.c", "c"], "6", tags={"x"})
        hub.publish(["a.c", "c", "a.b"], "7")
        hub.flush()
        assert client.received == ["1", "2", "3", "5", "7"]
        assert other.received == ["4", "5", "7"]
        assert reconciled(hub, *handles[1:]).published == 8
        hub.unsubscribe(client.connection, "a.b")
        hub.publish("a.b", "8", tags={"x"})
        hub.publish("a.b", "9", tags={"y"})
        hub.flush()
        assert client.received == ["1", "2", "3", "5", "7", "9"]
        assert reconciled(hub, *handles[1:]).published == 9

    run(main)


def test_exclude(run: Run, core: Any) -> None:
    """What is excluded is counted once, whether or not a filter leaves it out as well."""

    async def main() -> None:
        hub = hub_of()
        one, two = Client(), Client()
        hub.register(one.connection, "ann")
        handles = [
            hub.subscribe(one.connection, "a", "a.*", ">", tags={"x"}),
            hub.subscribe(two.connection, "a", tags={"y"}),
        ]
        for tags in ({"x"}, {"y"}, {"x", "y"}, None):
            hub.publish("a", f"1{sorted(tags or ())}", tags=tags, exclude=[one.connection])
            hub.publish("a", f"2{sorted(tags or ())}", tags=tags, exclude_users=["ann"])
            hub.publish("a", f"3{sorted(tags or ())}", tags=tags, exclude=[two.connection])
        hub.send("ann", "private")
        hub.flush()
        assert one.received == ["3['x']", "3['x', 'y']", "3[]", "private"]
        assert two.received == ["1['y']", "2['y']", "1['x', 'y']", "2['x', 'y']", "1[]", "2[]"]
        assert reconciled(hub, *handles).published == 10

    run(main)


def test_conflate(run: Run, core: Any) -> None:
    """A message that waits is only replaced by one that the connection gets."""

    async def main() -> None:
        hub = wsfast.Hub(slow=wsfast.Conflate())
        client = Stalled()
        handle = hub.subscribe(client.connection, "a", tags={"x"})
        hub.publish("a", "first", key="k", tags={"x"})
        hub.flush()
        hub.publish("a", "not for it", key="k", tags={"y"})
        hub.flush()
        assert (handle.conflated, handle.queued) == (0, 1)
        hub.publish("a", "second", key="k", tags={"x"})
        hub.flush()
        assert (handle.conflated, handle.queued) == (1, 1)
        stats = reconciled(hub, handle)
        assert (stats.messages, stats.published, stats.conflated, stats.queued) == (3, 2, 1, 1)

    run(main)


def test_streams_get_everything(run: Run, core: Any) -> None:
    """Streams have no tags."""

    async def main() -> None:
        hub = hub_of()
        client = Client()
        hub.subscribe(client.connection, "a", tags={"x"})
        stream = hub.stream("a")
        hub.publish("a", "1", tags={"y"})
        hub.publish("a", "2", tags={"x"})
        stream.close()
        assert [message async for message in stream] == ["1", "2"]

    run(main)


def test_disconnect_with_a_message(run: Run, core: Any) -> None:
    """The last message before a close goes to all connections of the topic."""

    async def main() -> None:
        hub = hub_of()
        client = Client()
        hub.subscribe(client.connection, "a", tags={"x"})
        assert await hub.disconnect(topic="a", message="bye", seconds=2) == 1
        assert client.received == ["bye"]

    run(main)


# ---- History and positions


def test_history(run: Run, core: Any) -> None:
    """Newcomers get what they ask for of the history and the last values."""

    async def main() -> None:
        hub = hub_of(history=4, last_values=2)
        hub.publish("a", "old", key="k", tags={"x"})
        for number in range(4):
            hub.publish("a", str(number), tags={"x"} if number % 2 else {"y"})
        hub.publish("a", "last", key="l", tags={"y"})
        hub.publish("a", "everybody")
        for tags, expected in (
            ({"x"}, ["old", "3", "everybody"]),
            ({"y"}, ["2", "last", "everybody"]),
            ({"x", "y"}, ["old", "2", "3", "last", "everybody"]),
            (None, ["old", "2", "3", "last", "everybody"]),
        ):
            client = Client()
            hub.subscribe(client.connection, "a", tags=tags)
            hub.flush()
            assert client.received == expected

    run(main)


@pytest.mark.parametrize("envelope", [False, True])
def test_recovery(run: Run, core: Any, envelope: bool) -> None:
    """Who comes back gets what it asks for of what it missed; positions count all messages of the topic."""

    async def main() -> None:
        hub = hub_of(history=10, envelope=envelope)
        begin, total = hub.position("a"), hub.position()
        for number in range(6):
            hub.publish("a", str(number), tags={"x"} if number % 2 else {"y"})
        assert hub.position("a").offset == 6
        for since in ({"a": (begin.epoch, 2)}, wsfast.Position(total.epoch, 2)):
            client = Client()
            subscription = hub.subscribe(client.connection, "a", tags={"x"}, since=since)
            assert subscription.recovered
            assert subscription.positions == {"a": (begin.epoch, 6)}
            hub.flush()
            expected = ["3", "5"]
            assert client.received == ([f'["a",{n + 1},"{n}"]' for n in (3, 5)] if envelope else expected)
        awaited = await hub.recover(Client().connection, "a", tags={"x"}, since={"a": (begin.epoch, 2)})
        assert awaited.recovered
        assert not hub.subscribe(Client().connection, "a", tags={"x"}, since={"a": ("0" * 16, 2)}).recovered

    run(main)


def test_recovery_after_another_filter(run: Run, core: Any) -> None:
    """What the filter before has left out cannot be sent any more, so it is told as missing."""

    async def main() -> None:
        hub = hub_of(history=10)
        client = Client()
        hub.subscribe(client.connection, "a", tags={"x"})
        begin = hub.position("a")
        hub.publish("a", "1", tags={"x"})
        assert hub.subscribe(client.connection, "a", since={"a": begin}).recovered
        assert hub.subscribe(client.connection, "a", tags={"x"}).active
        hub.publish("a", "2", tags={"y"})
        assert hub.subscribe(client.connection, "a", tags={"x"}, since={"a": begin}).recovered
        assert not hub.subscribe(client.connection, "a", tags={"y"}, since={"a": begin}).recovered
        assert not hub.subscribe(client.connection, "a", since={"a": begin}).recovered
        assert hub.subscribe(client.connection, "a", since={"a": hub.position("a")}).recovered
        hub.flush()
        assert client.received == ["1"]

    run(main)


@pytest.mark.parametrize("names", [("a.b", "a.*"), ("a.*", "a.b"), ("a.b", ">", "a.*")])
def test_recovery_of_topics_and_patterns_that_overlap(run: Run, core: Any, names: tuple[str, ...]) -> None:
    """What a call sends again by one name counts for the others, so that nothing older is sent again."""

    async def main() -> None:
        hub = hub_of(history=10)
        hub.publish("a.b", "old", tags={"x"})
        hub.publish("a.c", "old", tags={"x"})
        position = hub.position()
        hub.publish("a.b", "1", tags={"x"})
        hub.publish(["a.b", "a.c"], "2", tags={"x", "y"})
        hub.publish("a.b", "not wanted", tags={"y"})
        hub.publish("a.b", "not for it", exclude_users=["ann"])
        hub.publish("a.c", "3", tags={"x"})
        client = Client()
        hub.register(client.connection, "ann")
        subscription = hub.subscribe(client.connection, *names, since=position, tags={"x"})
        hub.publish("a.b", "4", tags={"x"})
        hub.flush()
        assert client.received == ["1", "2", "3", "4"]
        assert subscription.recovered
        assert reconciled(hub, subscription).published == 4

    run(main)


def test_message_to_several_topics(run: Run, core: Any) -> None:
    """A message to several topics is replayed if the filter of the topic joined before has left it out."""

    async def main() -> None:
        hub = hub_of(history=10)
        client = Client()
        hub.subscribe(client.connection, "a", tags={"x"})
        for number in range(3 * PAST):  # more filters than are remembered
            hub.subscribe(client.connection, "a", tags={"x", f"t{number % 2}"})
        hub.publish(["a", "b"], "1", tags={"x"})
        hub.publish(["a", "b"], "2", tags={"y"})
        hub.subscribe(client.connection, "a", tags={"y"})
        hub.publish(["a", "b"], "3", tags={"x"})
        for number in range(3 * PAST):
            hub.subscribe(client.connection, "a", tags={"y", f"t{number % 2}"})
        hub.subscribe(client.connection, "b")
        hub.flush()
        # Of "1" it is not known any more that it was let through.
        assert client.received == ["1", "1", "2", "3"]

    run(main)


# ---- Bounds and errors


def test_bits_are_used_again(run: Run, core: Any) -> None:
    """A topic has 64 tags in use at the same time. Those that nobody asks for any more make room."""

    async def main() -> None:
        hub = hub_of()
        clients = [Client() for _ in range(4)]
        hub.subscribe(clients[0].connection, "a", tags=numbered("0-31"))
        hub.subscribe(clients[1].connection, "a", tags=numbered("16-63"))
        with pytest.raises(
            ValueError, match=r"^the subscribers of 'a' use 64 tags, .* no room for \['t64'\]: .*topics"
        ):
            hub.subscribe(clients[2].connection, "b", "a", tags={"t64"})
        assert len(hub) == 2
        assert hub.topics() == ["a"]
        hub.subscribe(clients[2].connection, "b", tags={"t64"})
        hub.subscribe(clients[2].connection, "a", tags=numbered("5-60"))
        with pytest.raises(ValueError, match="64 tags"):
            hub.subscribe(clients[0].connection, "a", tags={"t64"})  # the present filter counts until it is replaced
        hub.publish("a", "1", tags={"t0"})
        hub.publish("a", "2", tags={"t64"})
        hub.unsubscribe(clients[0].connection)
        hub.subscribe(clients[3].connection, "a", tags={"t64", "t16"})
        for number in range(300):  # messages need no bit
            hub.publish("a", "nobody", tags={f"other{number}"})
        hub.publish("a", "3", tags={"t64"})
        hub.publish("a", "4", tags={"t0"})
        hub.publish("a", "5", tags={"t16"})
        hub.flush()
        assert [client.received for client in clients] == [["1"], ["5"], ["5"], ["3", "5"]]
        for number in range(1000):
            hub.subscribe(clients[3].connection, "a", tags={f"more{number}"})
        filters = hub._registry.topics["a"].filters
        assert filters is not None
        assert len(filters._filters) == 3

    run(main)


def test_nothing_is_left(run: Run, core: Any) -> None:
    """Filters are gone with those who had them."""

    async def main() -> None:
        hub = hub_of()
        clients = [Client() for _ in range(20)]
        for number, client in enumerate(clients):
            hub.subscribe(client.connection, "a", "b.*", tags={f"t{number % 7}"})
        filters = hub._registry.topics["a"].filters
        assert filters is not None
        references = [weakref.ref(one) for one in filters._filters.values()]
        assert len(references) == 7
        for client in clients[:10]:
            client.connection.transport.abort()
        for client in clients[10:]:
            hub.unsubscribe(client.connection)
        await asyncio.sleep(0)
        assert (len(hub), hub.topics()) == (0, [])
        assert len(filters._filters) == 0
        assert not any(reference() for reference in references)

    run(main)


WRONG: list[tuple[Any, type[Exception], str]] = [
    ("eu", TypeError, r"^tags must be a set of str, as in tags=\{'eu'\}, not 'eu'$"),
    (b"eu", TypeError, "must be a set of str"),
    (5, TypeError, "must be a set of str"),
    ([5], TypeError, "^a tag must be a str, not int$"),
    ({"eu", None}, TypeError, "^a tag must be a str, not NoneType$"),
    ([["eu"]], TypeError, "unhashable"),
    (set(), ValueError, "^tags must not be empty: "),
    ([""], ValueError, "^a tag must have 1 to 256 printable characters, not ''$"),
    (["x" * (LONGEST + 1)], ValueError, "1 to 256"),
    (["a\nb"], ValueError, "printable"),
    (["\ud800"], ValueError, "printable"),
    ({str(number) for number in range(MOST + 1)}, ValueError, "^tags must have at most 64 tags, not 65$"),
]


@pytest.mark.parametrize(("tags", "error", "match"), WRONG)
def test_wrong_tags(run: Run, tags: Any, error: type[Exception], match: str) -> None:
    """What makes no sense is told, and nothing has changed."""

    async def main() -> None:
        hub = hub_of(history=5)
        client = Client()
        for call in (
            lambda: hub.publish("a", "x", tags=tags),
            lambda: hub.publish_threadsafe("a", "x", tags=tags),
            lambda: hub.channel("a").publish("x", tags=tags),
            lambda: hub.subscribe(client.connection, "a", tags=tags),
            lambda: hub.channel("a").subscribe(client.connection, tags=tags),
            lambda: wsfast.sse.EventSource(hub, "a", tags=tags),
            lambda: wsfast.relay.publisher("redis://127.0.0.1:1").publish("a", "x", tags=tags),
        ):
            hub.flush()
            with pytest.raises(error, match=match):
                call()
        with pytest.raises(error, match=match):
            await hub.recover(client.connection, "a", tags=tags)
        assert (hub.topics(), hub.messages, len(hub)) == ([], 0, 0)

    run(main)


def test_interrupts(run: Run, core: Any) -> None:
    """Filters are replaced completely or not at all, wherever a signal handler raises, and counts stay right."""

    async def attempt(moment: int) -> bool:
        hub = hub_of()
        client = Client()
        handle = hub.subscribe(client.connection, "a", "b.*", tags={"x"})
        hub.publish("a", "0", tags={"y"})
        interrupt = Interrupt(moment)
        with interrupt:
            hub.subscribe(client.connection, "b.*", "c", "a", tags={"y"})
        await asyncio.sleep(0)
        for tag in ("x", "y"):
            hub.publish("a", tag, tags={tag})
            hub.publish("b.b", tag, tags={tag})
        hub.flush()
        received = client.received
        assert received in ((["x", "x"], ["y", "y"]) if len(hub) else ([],))
        assert reconciled(hub, handle).published == len(received)
        client.connection.transport.abort()
        await asyncio.sleep(0)
        assert hub.topics() == []
        assert reconciled(hub, handle).published == len(received)
        return interrupt.left > 0

    async def main() -> None:
        moment = 1
        while not await attempt(moment):
            moment += 1
        assert moment > 20

    run(main)
