"""Hubs over real connections: topics, patterns and users, what newcomers get first, and what each message came to."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import gc
import inspect
import logging
import socket
import struct
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import websockets.asyncio.client
import websockets.asyncio.server

import wsfast
from helpers.cores import CORES
from helpers.fixtures import Run
from helpers.inflate import Spec, Wire, connect
from helpers.peers import TIMEOUT, parse_frames, until
from wsfast._encoding.message import Encoding, Joined
from wsfast._subscription import SubscriptionStats
from wsfast.hub import Command, HubStats, Kind, TopicStats
from wsfast.policies import Policy

KINDS = ["evented", "evented-deflate", "stock", "stock-deflate"]
each_kind = pytest.mark.parametrize("kind", KINDS)
END = "<end>"
LONG = ", a message that is long enough to be compressed, as those of most applications are"


class Client:
    """A connection of a server, and the client at its other end."""

    def __init__(self, connection: Any, client: Any) -> None:
        self.connection = connection
        self.client = client

    async def receive(self, count: int) -> list[str | bytes]:
        """Wait for so many messages."""
        async with asyncio.timeout(TIMEOUT):
            return [await self.client.recv() for _ in range(count)]

    async def all(self) -> list[str | bytes]:
        """Return all messages that were not received yet, once everything that was published has left."""
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await self.connection.send(END)
        received: list[str | bytes] = []
        async with asyncio.timeout(TIMEOUT):
            while isinstance(message := await self.client.recv(), bytes) or message != END:
                received.append(message)
        return received

    def drop(self) -> None:
        """Lose the connection."""
        self.client.transport.abort()


class Scene:
    """Servers and clients, and what callbacks were told."""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        self._stack = stack
        self._addresses: dict[str, Any] = {}
        self._arrived: asyncio.Queue[Any] = asyncio.Queue()
        self.events: list[Any] = []

    async def client(self, kind: str = "evented") -> Client:
        """Connect a client."""
        name, _, deflate = kind.partition("-")
        options: dict[str, Any] = {"compression": deflate or None, "ping_interval": None}
        if kind not in self._addresses:
            serve = wsfast.serve if name == "evented" else websockets.asyncio.server.serve
            listener = socket.socket()
            listener.bind(("127.0.0.1", 0))
            server = await serve(self._handle, sock=listener, close_timeout=1, **options)
            self._stack.push_async_callback(server.wait_closed)
            self._stack.callback(server.close)
            self._addresses[kind] = listener.getsockname()
        if "proxy" in inspect.signature(websockets.asyncio.client.connect).parameters:
            options["proxy"] = None
        host, port = self._addresses[kind]
        client = await websockets.asyncio.client.connect(f"ws://{host}:{port}", max_queue=None, **options)
        self._stack.callback(client.transport.abort)
        async with asyncio.timeout(TIMEOUT):
            connection = await self._arrived.get()
        self._stack.push_async_callback(connection.wait_closed)
        self._stack.callback(connection.transport.abort)
        return Client(connection, client)

    async def clients(self, count: int, kind: str = "evented") -> list[Client]:
        """Connect several clients."""
        return [await self.client(kind) for _ in range(count)]

    async def _handle(self, connection: Any) -> None:
        await self._arrived.put(connection)
        await connection.wait_closed()

    def hub(self, **options: Any) -> wsfast.Hub:
        """Make a hub that keeps what it has to tell."""

        def on(what: str) -> Callable[..., None]:
            return lambda *arguments: self.events.append((what, *arguments))

        return wsfast.Hub(on_join=on("join"), on_leave=on("leave"), **options)

    async def told(self) -> list[Any]:
        """Return what callbacks were told since, in the order in which it was."""
        for _ in range(3):
            await asyncio.sleep(0)
        events = self.events[:]
        self.events.clear()
        return events


Act = Callable[[Scene], Any]


@pytest.fixture
def play(core: Any, run: Run) -> Callable[[Act], None]:
    """Run a scene with each core in each kind of event loop."""

    def play(act: Act) -> None:
        async def main() -> None:
            async with contextlib.AsyncExitStack() as stack:
                await act(Scene(stack))

        run(main)

    return play


Play = Callable[[Act], None]


def assert_empty(hub: wsfast.Hub) -> None:
    """Nothing is left of topics, patterns, users and connections."""
    assert (hub._registry.topics, hub._registry.users, hub._subscriptions) == ({}, {}, {})
    assert hub._registry.patterns._root.children == {}
    assert hub._registry.pattern_count == 0
    assert not any(hub._registry.routes.values())
    assert (hub.topics(), hub.users(), len(hub)) == ([], [], 0)
    stats = hub.stats()
    assert (stats.topics, stats.patterns, stats.users, stats.subscribers, stats.queued) == (0, 0, 0, 0, 0)
    assert stats.published == stats.sent + stats.dropped + stats.conflated


def reconciled(hub: wsfast.Hub, *subscriptions: wsfast.HubSubscription) -> HubStats:
    """Return the numbers of a hub, which must reconcile, also with those of each connection that it ever had."""
    stats = hub.stats()
    each = [subscription.stats() for subscription in subscriptions]
    everything: list[HubStats | SubscriptionStats] = [stats, *each]
    for one in everything:
        assert one.published == one.sent + one.dropped + one.conflated + one.queued
    for name in ("published", "sent", "dropped", "conflated", "queued"):
        assert getattr(stats, name) == sum(getattr(one, name) for one in each)
    return stats


# ---- Arguments


def test_bad_arguments() -> None:
    """What makes no sense is told when it is given."""
    with pytest.raises(TypeError, match=r"^slow must be Disconnect\(\), .* not 'drop'$"):
        wsfast.Hub(slow="drop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^history must not be negative, but is -1$"):
        wsfast.Hub(history=-1)
    with pytest.raises(ValueError, match=r"^last_values must not be negative, but is -1$"):
        wsfast.Hub(last_values=-1)
    with pytest.raises(ValueError, match=r"^notsent_lowat must be positive or None, not 0$"):
        wsfast.Hub(notsent_lowat=0)
    assert repr(wsfast.Hub(name="news")) == "<Hub 'news'>"
    assert repr(wsfast.Hub()) == "<Hub>"


def test_subscribe_errors(play: Play) -> None:
    """What cannot be subscribed is told, and nothing has changed."""

    async def act(scene: Scene) -> None:
        hub = scene.hub()
        client = await scene.client()
        connection = client.connection
        with pytest.raises(TypeError, match=r"^subscribe\(\) needs at least one topic: "):
            hub.subscribe(connection)
        bad_ones: list[tuple[Any, type[Exception]]] = [
            (("a", 1), TypeError),
            ((["a", "b"],), TypeError),
            (("a", ""), ValueError),
            (("a", "b.*x"), ValueError),
        ]
        for names, error in bad_ones:
            with pytest.raises(error, match=r"topic must|must be a whole token"):
                hub.subscribe(connection, *names)
            with pytest.raises(error, match=r"topic must|must be a whole token"):
                hub.unsubscribe(connection, *names)
        for other in (object(), None, "text", client.client.transport):
            with pytest.raises(TypeError):
                hub.subscribe(other, "a")
            with pytest.raises(TypeError):
                hub.register(other, "ann")
            hub.unsubscribe(other, "a")
        assert_empty(hub)
        client.drop()
        await connection.wait_closed()
        for call in (lambda: hub.subscribe(connection, "a"), lambda: hub.register(connection, "ann")):
            with pytest.raises(RuntimeError, match=r"^the connection is not open$"):
                call()
        assert_empty(hub)
        assert await scene.told() == []

    play(act)


def test_publish_errors(play: Play) -> None:
    """What cannot be published changes nothing."""

    async def act(scene: Scene) -> None:
        hub = scene.hub(history=2, last_values=2)
        client = await scene.client()
        subscription = hub.subscribe(client.connection, "a", "b")
        hub.register(client.connection, "ann")
        bad_ones: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
            ("a", 1, {}, TypeError, r"message|data"),
            ("a", None, {}, TypeError, r"message|data"),
            (1, "", {}, TypeError, r"^topic must be a str or an iterable of str, not int$"),
            (b"a", "", {}, TypeError, r"^topic must be a str, not int$"),
            (["a", None], "", {}, TypeError, r"^topic must be a str, not NoneType$"),
            ([], "", {}, ValueError, r"^topic must not be empty: "),
            ("", "", {}, ValueError, r"^topic must have 1 to 1024 characters, not 0$"),
            (["a", "b..c"], "", {}, ValueError, r"empty token"),
            ("b.*", "", {}, ValueError, r"^topic 'b\.\*' is a pattern; "),
            (["a", ">"], "", {}, ValueError, r"^topic '>' is a pattern; "),
            ("a", "", {"key": []}, TypeError, r"unhashable"),
            ("a", "\ud800", {}, UnicodeEncodeError, r"surrogates"),
        ]
        for topic, message, options, error, match in bad_ones:
            with pytest.raises(error, match=match):
                hub.publish(topic, message, **options)
            with pytest.raises(error, match=match):
                hub.publish_threadsafe(topic, message, **options)
            with pytest.raises(error, match=match):
                hub.publish_many([("a", "first"), (topic, message, *options.values())])
        with pytest.raises(TypeError):
            hub.publish("a", "", exclude=client.connection)
        with pytest.raises(TypeError, match=r"unhashable"):
            hub.publish("a", "", exclude_users=[[]])  # type: ignore[list-item]
        for item in (("a",), ("a", "b", "c", "d"), ()):
            with pytest.raises(ValueError, match=r"^an item must be \(topic, message\) or \(topic, message, key\), "):
                hub.publish_many([("a", "first"), item])
        with pytest.raises(TypeError):
            hub.publish_many([("a", "first"), None])  # type: ignore[list-item]

        def failing() -> Iterator[tuple[str, str]]:
            yield "a", "first"
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            hub.publish_many(failing())
        bad: list[Any] = [("ann", 1, None), ([], "", None), ("ann", "", {})]
        for user, message, key in bad:
            with pytest.raises(TypeError):
                hub.send(user, message, key=key)
        assert hub.stats() == HubStats(0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1)
        assert subscription.stats() == SubscriptionStats(0, 0, 0, 0, 0)
        assert [topic for topic in hub._retained.topics.values() if topic.history or topic.values] == []
        assert await client.all() == []

    play(act)


def test_other_loops(play: Play) -> None:
    """A hub is used in one event loop only; and no connection of another one is subscribed."""
    unused = wsfast.Hub()
    assert unused.loop is None
    calls: list[Callable[[], object]] = [
        lambda: unused.publish("a", ""),
        lambda: unused.publish_many([]),
        lambda: unused.subscribe(None, "a"),
        lambda: unused.unsubscribe(None),
        lambda: unused.register(None, "ann"),
        lambda: unused.send("ann", ""),
        lambda: unused.stream("a"),
        lambda: unused.attach(None),
        unused.flush,
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=r"^a Hub must be used in a running event loop; "):
            call()
    with pytest.raises(
        RuntimeError, match=r"^the Hub has no event loop yet; subscribe or publish once in its event loop first$"
    ):
        unused.publish_threadsafe("a", "")
    with pytest.raises(RuntimeError, match=r"^the Hub has no event loop yet"):
        unused.channel("a").publish_threadsafe("")

    async def act(scene: Scene) -> None:
        hub = scene.hub()
        connection = (await scene.client()).connection
        hub.flush()
        assert hub.loop is hub.channel("a").loop is asyncio.get_running_loop()

        def elsewhere() -> None:
            async def main() -> None:
                other = wsfast.Hub()
                foreign: list[Callable[[], object]] = [
                    lambda: other.subscribe(connection, "a"),
                    lambda: other.register(connection, "ann"),
                ]
                for call in foreign:
                    with pytest.raises(RuntimeError, match=r"^the connection belongs to another event loop"):
                        call()
                assert_empty(other)
                wrong: list[Callable[[], object]] = [
                    hub.flush,
                    lambda: hub.publish("a", ""),
                    lambda: hub.publish_many([("a", "")]),
                    lambda: hub.send("ann", ""),
                    lambda: hub.stream("a"),
                    lambda: hub.subscribe(connection, "a"),
                    lambda: hub.unsubscribe(connection, "a"),
                    lambda: hub.register(connection, "ann"),
                    lambda: hub.channel("a").publish(""),
                ]
                for call in wrong:
                    with pytest.raises(RuntimeError, match=r"same event loop"):
                        call()

            asyncio.run(main())
            with pytest.raises(RuntimeError, match=r"use publish_threadsafe\(\)$"):
                hub.publish("a", "")

        await asyncio.to_thread(elsewhere)
        assert hub.stats().messages == 0
        assert_empty(hub)

    play(act)


# ---- Subscribing


@each_kind
def test_subscribe(play: Play, kind: str) -> None:
    """A connection gets what is published to its topics, until it is unsubscribed from them."""

    async def act(scene: Scene) -> None:
        hub = scene.hub()
        client, other = await scene.clients(2, kind)
        connection = client.connection
        hub.publish("a", "too early")
        subscription = hub.subscribe(connection, "a", "b", "a")
        assert (subscription.active, subscription.connection) == (True, connection)
        assert subscription.topics == ("a", "b", "a")
        again = hub.subscribe(connection, "b", "c")
        second = hub.subscribe(other.connection, "b")
        assert (len(hub), hub.topics(), hub.topics(connection)) == (2, ["a", "b", "c"], ["a", "b", "c"])
        assert (hub.topics(other.connection), hub.topics(object())) == (["b"], [])
        assert [hub.count(name) for name in "abcd"] == [1, 2, 1, 0]
        assert hub.subscribers("b") == [connection, other.connection]
        assert (hub.subscribers("a"), hub.subscribers("d")) == ([connection], [])
        hub.publish("a", "text" + LONG)
        hub.publish("b", b"binary" + LONG.encode())
        hub.publish("c", bytearray(b"array"))
        hub.publish("d", "to nobody")
        hub.publish("a", memoryview(b"view"))
        hub.publish("b", wsfast.PreparedMessage(b"prepared", text=True))
        hub.unsubscribe(connection, "b", "unheard", "a.*")
        hub.publish("b", "too late" + LONG)
        hub.publish("c", "c")
        assert (again.active, subscription.active) == (True, True)
        again.unsubscribe()
        assert (again.active, subscription.active) == (False, True)
        hub.publish("c", "too late")
        hub.publish("a", "last")
        subscription.unsubscribe()
        assert (subscription.active, subscription.connection, len(hub)) == (False, None, 1)
        hub.publish("a", "too late")
        hub.unsubscribe(connection)
        expected = ["text" + LONG, b"binary" + LONG.encode(), b"array", b"view", "prepared", "c", "last"]
        assert await client.all() == expected
        assert await other.all() == [b"binary" + LONG.encode(), "prepared", "too late" + LONG]
        assert subscription.stats() == again.stats() == SubscriptionStats(7, 7, 0, 0, 0)
        assert reconciled(hub, subscription, second).sent == 10
        hub.unsubscribe(other.connection)
        assert_empty(hub)

    play(act)


def test_subscription_is_a_context(play: Play) -> None:
    """Subscriptions and registrations end with their contexts, and only once."""

    async def act(scene: Scene) -> None:
        hub = scene.hub(name="news")
        client = await scene.client()
        connection = client.connection
        with hub.subscribe(connection, "a", "b.*") as subscription, hub.register(connection, "ann") as registration:
            assert repr(subscription) == "<HubSubscription to a, b.* of <Hub 'news'>>"
            assert repr(registration) == "<Registration of 'ann' in <Hub 'news'>>"
            assert registration.user == "ann"
            assert subscription.connection is registration.connection is connection
            hub.publish("b.x", "1")
            hub.send("ann", "2")
        assert repr(subscription) == "<HubSubscription to a, b.* of <Hub 'news'>, ended>"
        assert subscription.connection is registration.connection is None
        assert_empty(hub)
        hub.subscribe(connection, "c")
        subscription = hub.subscribe(connection, "a")
        subscription.unsubscribe()
        registration = hub.register(connection, "ann")
        registration.unregister()
        hub.subscribe(connection, "a")
        hub.register(connection, "ann")
        for _ in range(2):  # what has ended does not end what others have begun
            subscription.unsubscribe()
            registration.unregister()
        hub.publish("a", "3")
        assert hub.send("ann", "4") == 1
        assert await client.all() == ["1", "2", "3", "4"]

    play(act)


def test_names_are_kept_once(play: Play) -> None:
    """A handle refers to the strings of the hub, so that those of each caller can go."""

    async def act(scene: Scene) -> None:
        hub = scene.hub()
        one, two = await scene.clients(2)
        first = hub.subscribe(one.connection, "".join(["a", ".b"]))
        second = hub.subscribe(two.connection, "".join(["a", ".b"]))
        assert first.topics[0] is second.topics[0]

    play(act)


def test_members_of_enumerations(play: Play) -> None:
    """A name that is a member of an Enum is its value, wherever it is given."""

    class Topic(str, enum.Enum):  # noqa: UP042
        NEWS = "news"

    async def act(scene: Scene) -> None:
        hub = scene.hub()
        client = await scene.client()
        hub.subscribe(client.connection, Topic.NEWS)
        assert hub.topics() == ["news"]
        hub.publish(Topic.NEWS, "1")
        hub.publish("news", "2")
        hub.publish([Topic.NEWS, "other"], "3")
        hub.publish_many([(Topic.NEWS, "4")])
        hub.channel(Topic.NEWS).publish("5")
        assert await client.all() == ["1", "2", "3", "4", "5"]
        relay = Recorder()
        relay.wanted.update(hub.attach(relay))
        hub.publish(Topic.NEWS, "6")
        ((_, (name,), *_),) = relay.forwarded
        assert type(name) is str
        hub.attach(None)
        hub.unsubscribe(client.connection, "news")
        assert_empty(hub)

    play(act)


@each_kind
def test_connection_lost(play: Play, kind: str) -> None:
    """With its connection, all goes that it had."""

    async def act(scene: Scene) -> None:
        hub = scene.hub()
        client, other = await scene.clients(2, kind)
        subscription = hub.subscribe(client.connection, "a", "b.*", ">")
        registration = hub.register(client.connection, "ann")
        staying = hub.subscribe(other.connection, "a")
        hub.publish("b.c", "1")
        hub.send("ann", "2")
        assert await client.all() == ["1", "2"]
        client.drop()
        await until(lambda: subscription.connection is None, "the end of the subscription")
        assert (subscription.active, registration.connection, len(hub), hub.topics()) == (False, None, 1, ["a"])
        hub.publish(["a", "b.c"], "3")
        assert hub.send("ann", "4") == 0
        subscription.unsubscribe()
        registration.unregister()
        assert await other.all() == ["3"]
        assert subscription.stats() == SubscriptionStats(2, 2, 0, 0, 0)
        assert reconciled(hub, subscription, staying).published == 3
        staying.unsubscribe()
        assert_empty(hub)

    play(act)


# ---- Patterns, and several topics


@each_kind
def test_patterns(play: Play, kind: str) -> None:
    """A connection gets what its patterns match, each message once, however many of them do."""

    async def act(scene: Scene) -> None:
        hub = scene.hub()
        clients = await scene.clients(4, kind)
        filters = [("orders.*", "orders.eu", ">"), ("orders.>",), ("orders.eu",), ("*.eu", "orders.*")]
        subscriptions = [
            hub.subscribe(client.connection, *names) for client, names in zip(clients, filters, strict=True)
        ]
        topics = ["orders.eu", "orders.eu.42", "orders", "orders.us", "news.eu", "news"]
        for topic in (*topics, *topics):
            hub.publish(topic, topic + LONG)
        expected = [
            topics,
            ["orders.eu", "orders.eu.42", "orders.us"],
            ["orders.eu"],
            ["orders.eu", "orders.us", "news.eu"],
        ]
        for client, those in zip(clients, expected, strict=True):
            assert await client.all() == [topic + LONG for topic in (*those, *those)]
        assert hub.subscribers("orders.*") == [clients[0].connection, clients[3].connection]
        assert {*hub.subscribers("orders.us")} == {clients[number].connection for number in (0, 1, 3)}
        assert (hub.count("orders.eu"), hub.count("*.*"), hub.count("x")) == (4, 0, 1)
        stats = reconciled(hub, *subscriptions)
        assert (stats.published, stats.topics, stats.patterns) == (26, 1, 4)
        for subscription in subscriptions:
            subscription.unsubscribe()
        assert_empty(hub)

    play(act)


def test_routes_follow_patterns(play: Play) -> None:
    """Who gets the messages of a topic is known anew when a pattern or the topic has come or gone."""

    async def act(scene: Scene) -> None:
        hub = scene.hub()
        one, two = await scene.clients(2)
        hub.publish("a.b", "to nobody")
        hub.subscribe(one.connection, "a.*")
        hub.publish("a.b", "1")
        hub.subscribe(two.connection, "a.b")
        hub.publish("a.b", "2")
        hub.unsubscribe(one.connection)
        hub.publish("a.b", "3")
        hub.subscribe(one.connection, "a.>")
        hub.publish("a.b", "4")
        hub.unsubscribe(two.connection)
        hub.publish("a.b", "5")
        hub.subscribe(one.connection, "a.b")
        hub.publish("a.b", "6")
        hub.unsubscribe(one.connection, "a.>")
        hub.publish("a.b", "7")
        assert await one.all() == ["1", "2", "4", "5", "6", "7"]
        assert await two.all() == ["2", "3", "4"]
        hub.unsubscribe(one.connection)
        assert_empty(hub)

    play(act)


def test_routes_are_bounded(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many topics are published to, only so many are remembered."""
    monkeypatch.setattr("wsfast.hub.registry.ROUTES", 10)

    async def act(scene: Scene) -> None:
        hub = scene.hub()
        client = await scene.client()
        hub.subscribe(client.connection, "a.*", "a.7")
        for number in range(35):
            hub.publish(f"a.{number}", f"{number}")
            assert len(hub._registry.routes) <= 10
        hub.publish("a.7", "end")
        assert await client.all() == [*(f"{number}" for number in range(35)), "end"]

    play(act)


@each_kind
def test_publish_to_several(play: Play, kind: str) -> None:
    """What is published to several topics as one comes once to whoever gets any of them."""

    async def act(scene: Scene) -> None:
        hub = scene.hub()
        clients = await scene.clients(4, kind)
        filters = [("a",), ("a", "b", "c"), ("b", "*"), ("d",)]
        subscriptions = [
            hub.subscribe(client.connection, *names) for client, names in zip(clients, filters, strict=True)
        ]
        hub.publish(["a", "b"], "ab" + LONG)
        hub.publish(iter(("b", "c", "b")), "bc")
        hub.publish({"x", "y"}, "xy")
        hub.publish(("a",), "a")
        hub.publish(["a", "b", "c", "d"], "all" + LONG, exclude=[clients[1].connection])
        expected = [
            ["ab" + LONG, "a", "all" + LONG],
            ["ab" + LONG, "bc", "a"],
            ["ab" + LONG, "bc", "xy", "a", "all" + LONG],
            ["all" + LONG],
        ]
        for client, messages in zip(clients, expected, strict=True):
            assert await client.all() == messages
        stats = reconciled(hub, *subscriptions)
        assert (stats.messages, stats.published, stats.sent) == (5, 12, 12)
        assert [one.stats().published for one in subscriptions] == [3, 3, 5, 1]
        assert hub.channel("b").stats().messages == 3
        assert hub.channel("*").stats().messages == 5

    play(act)


@each_kind
def test_exclude(play: Play, kind: str) -> None:
    """Excluded connections and users do not get a message, by whatever they would; nor is it counted for them."""

    async def act(scene: Scene) -> None:
        hub = scene.hub()
        clients = await scene.clients(5, kind)
        stranger = await scene.client(kind)
        connections = [client.connection for client in clients]
        filters = [("a", "*"), ("a",), ("*",), ("b", "a", ">"), ("a", "b")]
        subscriptions = [
            hub.subscribe(connection, *names) for connection, names in zip(connections, filters, strict=True)
        ]
        for connection, user in zip(connections, ("ann", "ann", "bob"), strict=False):
            hub.register(connection, user)
        hub.publish("a", "1", exclude=[connections[0], stranger.connection, connections[0], object()])
        hub.publish("a", "2", exclude_users=["ann", "nobody"])
        hub.publish(("a", "b"), "3", exclude=iter([connections[3]]), exclude_users=iter(["bob", "ann"]))
        hub.publish("b", "4", exclude=connections, exclude_users=["ann"])
        hub.publish("a", "5", exclude=[connections[1]], exclude_users=["ann"])
        hub.publish("b", "6")
        expected = [["6"], ["1"], ["1", "2", "5", "6"], ["1", "2", "5", "6"], ["1", "2", "3", "5", "6"]]
        for client, subscription, messages in zip(clients, subscriptions, expected, strict=True):
            assert await client.all() == messages
            assert subscription.stats() == SubscriptionStats(len(messages), len(messages), 0, 0, 0)
        assert reconciled(hub, *subscriptions).published == 15

    play(act)


# ---- Together


def segments(connection: Any) -> int:
    """Return how many segments with data a connection has sent: without Nagle's algorithm, one for each small send."""
    sock = connection.transport.get_extra_info("socket")
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
    (again,) = struct.unpack_from("=I", info, 100)  # tcpi_total_retrans: what a busy kernel was too slow to acknowledge
    (sent,) = struct.unpack_from("=I", info, 156)  # tcpi_data_segs_out
    return int(sent - again)


@each_kind
def test_one_system_call(play: Play, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is published in a tick leaves in one system call, put together once for all who get the same."""
    made: list[int] = []
    original = Joined._join

    def join(self: Joined, encodings: list[Encoding]) -> Encoding:
        if tuple(encodings) not in self._joined:
            made.append(len(encodings))
        return original(self, encodings)

    async def act(scene: Scene) -> None:
        hub = scene.hub()
        clients = await scene.clients(10, kind)
        for index, client in enumerate(clients):
            hub.subscribe(client.connection, "a", *(["b", ">"] if index % 2 else []))
        hub.register(clients[0].connection, "ann")
        monkeypatch.setattr(Joined, "_join", join)
        for way in range(4):
            before = [segments(client.connection) for client in clients] if sys.platform == "linux" else []
            made.clear()
            items = [("ab"[number % 2], f"{number}") for number in range(8)]
            if way % 2:
                hub.publish_many(items)
            else:
                for item in items:
                    hub.publish(*item)
            hub.send("ann", "ann")
            if way < 2:
                hub.flush()
            else:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            assert sorted(made) == [4, 5, 8]
            if sys.platform == "linux":
                assert [segments(client.connection) for client in clients] == [count + 1 for count in before]
        for index, client in enumerate(clients):
            tick = [f"{number}" for number in range(8) if index % 2 or number % 2 == 0] + ["ann"] * (index == 0)
            assert await client.all() == tick * 4

    play(act)


def test_publish_many(play: Play) -> None:
    """Items are topics or several of them, messages and keys, in their order; the same one does not come twice."""

    async def act(scene: Scene) -> None:
        hub = scene.hub(last_values=2)
        client = await scene.client()
        subscription = hub.subscribe(client.connection, "a", "b")
        items: list[Any] = [("a", "1", "k"), (("a", "b"), b"2"), ["b", "3", None], ("c", "4", "k"), ("b", "5", "k")]
        hub.publish_many(iter(items))
        hub.publish_many([])
        assert subscription.stats() == SubscriptionStats(4, 0, 0, 0, 4)
        assert (subscription.queued, subscription.lag[:2]) == (0, (4, 4))
        assert await client.all() == ["1", b"2", "3", "5"]
        assert (hub.last("a"), hub.last("b"), hub.last("c")) == ({"k": "1"}, {"k": "5"}, {"k": "4"})

    play(act)


@each_kind
def test_order_with_a_channel(play: Play, kind: str) -> None:
    """What a channel and hubs have for a connection arrives in the order in which it was published."""

    async def act(scene: Scene) -> None:
        channel, hub, other = wsfast.Channel(), scene.hub(), scene.hub()
        clients = await scene.clients(3, kind)
        for number, client in enumerate(clients):
            channel.subscribe(client.connection)
            hub.subscribe(client.connection, *["a", "b", "*"][: number + 1])
            other.subscribe(client.connection, "b")
            other.register(client.connection, number)
        expected: list[list[str]] = [[], [], []]
        for number in range(60):
            message = f"{number}" + LONG * (number % 3)
            match number % 5:
                case 0:
                    channel.publish(message)
                    those = {0, 1, 2}
                case 1:
                    hub.publish("b", message)
                    those = {1, 2}
                case 2:
                    hub.publish(["a", "c"], message)
                    those = {0, 1, 2}
                case 3:
                    other.send(2, message)
                    those = {2}
                case _:
                    other.publish("b", message, exclude=[clients[1].connection])
                    those = {0, 2}
            for which in those:
                expected[which].append(message)
            if number % 17 == 16:
                hub.flush()
        for client, messages in zip(clients, expected, strict=True):
            assert await client.all() == messages
        for publisher in (channel, hub, other):
            stats = publisher.stats()
            assert stats.published == stats.sent

    play(act)


def test_publish_threadsafe(play: Play) -> None:
    """Threads publish in the hub's event loop, in their order."""

    async def act(scene: Scene) -> None:
        hub = scene.hub(last_values=1)
        one, two = await scene.clients(2)
        hub.subscribe(one.connection, "a", "b")
        hub.subscribe(two.connection, "a", "c")
        hub.register(two.connection, "bob")

        def publish() -> None:
            for number in range(100):
                hub.publish_threadsafe("a", f"{number}", key="k", exclude=[two.connection])
            hub.publish_threadsafe(iter(["b", "c"]), "last but one")
            hub.channel("a").publish_threadsafe("last", exclude=[])
            hub.publish_threadsafe("c", "not for bob", exclude_users=["bob"])
            hub.channel("a").publish_threadsafe("for one alone", exclude_users=iter(["bob"]))
            with pytest.raises(TypeError, match="exclude_users must be an iterable of users, not str"):
                hub.publish_threadsafe("a", "", exclude_users="bob")

        await asyncio.to_thread(publish)
        numbers = [f"{number}" for number in range(100)]
        assert await one.receive(103) == [*numbers, "last but one", "last", "for one alone"]
        hub.channel("a").publish("once more for one", exclude_users=["bob"])
        hub.publish("a", "end")
        assert await one.receive(2) == ["once more for one", "end"]
        assert await two.receive(3) == ["last but one", "last", "end"]
        assert hub.last("a") == {"k": "99"}

    play(act)


# ---- What newcomers get


@each_kind
def test_history(play: Play, kind: str) -> None:
    """A newcomer gets the last messages first, without gap or duplicate, also in the middle of a tick."""

    async def act(scene: Scene) -> None:
        hub = scene.hub(history=3)
        clients = await scene.clients(6, kind)
        subscriptions = []
        for number in range(10):
            if number < 6:
                subscriptions.append(hub.subscribe(clients[number].connection, "a" if number % 2 else "*"))
            hub.publish("a", f"{number}" + LONG)
            if number == 3:
                hub.flush()
            if number == 4:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        for index, client in enumerate(clients):
            expected = [f"{number}" + LONG for number in range(max(0, index - 3), 10)]
            assert await client.all() == expected
            assert subscriptions[index].stats() == SubscriptionStats(len(expected), len(expected), 0, 0, 0)
        reconciled(hub, *subscriptions)

    play(act)


@each_kind
def test_history_of_several_topics(play: Play, kind: str) -> None:
    """What several topics remember comes in the order in which it was published, and each message once."""

    async def act(scene: Scene) -> None:
        hub = scene.hub(history=2)
        for number in range(9):
            hub.publish(f"t.{number % 3}", f"{number}" + LONG)
        hub.publish(["t.0", "t.1", "u"], "as one" + LONG)
        hub.publish("u", "u")
        clients = await scene.clients(5, kind)
        filters: list[list[tuple[str, ...]]] = [
            [("t.*",)],
            [("t.2", "t.0", "t.1")],
            [("t.1",), ("t.*", "t.1"), (">",), ("u", "t.0")],
            [("t.0", "u")],
            [("v",), ("v", ">")],
        ]
        for client, calls in zip(clients, filters, strict=True):
            for names in calls:
                hub.subscribe(client.connection, *names)
        hub.publish("u", "new")
        expected = [
            ["5", "6", "7", "8", "as one"],
            ["5", "6", "7", "8", "as one"],
            ["7", "as one", "5", "6", "8", "u", "new"],
            ["6", "as one", "u", "new"],
            ["5", "6", "7", "8", "as one", "u", "new"],
        ]
        for client, messages in zip(clients, expected, strict=True):
            assert [str(message).removesuffix(LONG) for message in await client.all()] == messages
        assert hub.stats().published == hub.stats().sent == 28

    play(act)


def test_history_of_what_was_had_as_one(play: Play) -> None:
    """A message that a connection got by one of its topics is not repeated when it joins another one of them."""

    async def act(scene: Scene) -> None:
        hub = scene.hub(history=5, last_values=5)
        one, two, three = await scene.clients(3)
        hub.subscribe(one.connection, "a")
        hub.subscribe(two.connection, "*")
        hub.subscribe(three.connection, "x")
        hub.publish("b", "early", key="b")
        hub.publish(("a", "b"), "both", key="k")
        hub.publish("b", "late")
        for client in (one, two, three):
            hub.subscribe(client.connection, "b")
        assert await one.all() == ["both", "early", "late"]
        assert await two.all() == ["early", "both", "late"]
        assert await three.all() == ["early", "both", "late"]
        assert hub.stats().published == hub.stats().sent == 9
        for client in (one, two, three):  # who has left all of its topics is a newcomer
            hub.register(client.connection, "ann")
            hub.unsubscribe(client.connection)
            hub.subscribe(client.connection, "a")
            hub.subscribe(client.connection, "b")
            assert await client.all() == ["both", "early", "late"]

    play(act)


def test_history_again(play: Play) -> None:
    """Whoever comes again is a newcomer; whoever gets the messages already, by whatever, is none."""

    async def act(scene: Scene) -> None:
        hub = scene.hub(history=2)
        client = await scene.client()
        connection = client.connection
        for number in range(3):
            hub.publish("a", f"{number}")
        hub.subscribe(connection, "a")
        hub.subscribe(connection, "a", "*")
        hub.unsubscribe(connection, "a")
        hub.subscribe(connection, "a")
        assert await client.all() == ["1", "2"]
        hub.unsubscribe(connection)
        hub.subscribe(connection, "a")
        assert await client.all() == ["1", "2"]
        hub.subscribe(connection, "x")
        hub.publish("a", "3")
        hub.unsubscribe(connection, "a")
        hub.subscribe(connection, "a")  # in the same tick, behind what was published before
        hub.publish("a", "4")
        assert await client.all() == ["3", "2", "3", "4"]
        stats = hub.stats()
        assert stats.published == stats.sent == 8

    play(act)


@each_kind
def test_last_values(play: Play, kind: str) -> None:
    """A newcomer gets the last message of each key, oldest first, then the stream."""

    async def act(scene: Scene) -> None:
        hub = scene.hub(last_values=3)
        clients = await scene.clients(3, kind)
        first = hub.subscribe(clients[0].connection, "prices.eu")
        for key, price in (("a", 1), ("b", 1), ("a", 2), ("c", 1), (None, 9), ("a", 3)):
            hub.publish("prices.eu", f"{key} {price}" + LONG, key=key)
        hub.publish("prices.us", b"a 7", key="a")
        assert hub.last("prices.eu") == {key: f"{key} {price}" + LONG for key, price in (("b", 1), ("c", 1), ("a", 3))}
        assert list(hub.last("prices.eu")) == ["b", "c", "a"]
        assert (hub.last("prices.us"), hub.last("unheard")) == ({"a": b"a 7"}, {})
        second = hub.subscribe(clients[1].connection, "prices.*")
        hub.publish("prices.eu", "d 1", key="d")
        third = hub.subscribe(clients[2].connection, "prices.eu", "prices.us")
        hub.publish("prices.eu", "e", key="e")
        news = [f"{message}" + LONG for message in ("a 1", "b 1", "a 2", "c 1", "None 9", "a 3")]
        assert await clients[0].all() == [*news, "d 1", "e"]
        assert await clients[1].all() == [news[1], news[3], news[5], b"a 7", "d 1", "e"]
        assert await clients[2].all() == [news[3], news[5], b"a 7", "d 1", "e"]
        assert hub.stats().published == 8 + 6 + 5
        reconciled(hub, first, second, third)

    play(act)


def test_history_and_last_values(play: Play) -> None:
    """What is remembered twice comes once, in the order of publishing."""

    async def act(scene: Scene) -> None:
        hub = scene.hub(history=2, last_values=2)
        for message, key in (("a 1", "a"), ("b 1", "b"), ("a 2", "a"), ("x", None), ("b 2", "b"), ("y", None)):
            hub.publish("t", message, key=key)
        client = await scene.client()
        hub.subscribe(client.connection, "t")
        assert await client.all() == ["a 2", "b 2", "y"]

    play(act)


def test_forget(play: Play) -> None:
    """What was forgotten no newcomer gets."""

    async def act(scene: Scene) -> None:
        hub = scene.hub(last_values=3)
        client = await scene.client()
        for key in "abc":
            for topic in ("t", "u"):
                hub.publish(topic, topic + key, key=key)
        hub.forget("t", key="b")
        hub.forget("t", key="unheard")
        hub.forget("u")
        hub.forget("unheard", key="a")
        hub.forget("unheard")
        assert (hub.last("t"), hub.last("u")) == ({"a": "ta", "c": "tc"}, {})
        hub.subscribe(client.connection, "t", "u")
        assert await client.all() == ["ta", "tc"]
        for key in "ac":
            hub.forget("t", key=key)
        assert hub._retained.topics == {}
        for call in (hub.forget, hub.last):
            with pytest.raises(ValueError, match="is a pattern"):
                call("t.*")
            with pytest.raises(TypeError):
                call(1)  # type: ignore[arg-type]
        both = scene.hub(history=1, last_values=1)
        both.publish("t", "a", key="a")
        both.forget("t", key="a")
        assert both.last("t") == {}
        both.subscribe((other := await scene.client()).connection, "t")
        assert await other.all() == ["a"]

    play(act)


def test_compression_is_shared_by_all_who_get_the_same(play: Play) -> None:
    """Messages of several topics, and to users, refer to each other; and to nothing that a subscriber has not got."""

    async def act(scene: Scene) -> None:
        hub = scene.hub(history=4)
        clients = await scene.clients(3, "evented-deflate")
        for client in clients:
            hub.subscribe(client.connection, "a", "b")
        peers = [client.connection._wsfast_peer for client in clients]

        def windows() -> set[Any]:
            for peer in peers:
                peer.invalidate()
            return {peer.encoder.state for peer in peers}

        async def publish(topic: str, number: object) -> None:
            hub.publish(topic, f"{number}" + LONG)
            hub.flush()
            await until(lambda: not hub.stats().queued, "clients to have read")

        for number in range(20):
            await publish("ab"[number % 2], number)
            (window,) = windows()
            assert window.tail.endswith(f"{number}{LONG}".encode())
        hub.publish("c", "nobody" + LONG)
        assert windows() == {window}
        hub.register(clients[0].connection, "ann")
        hub.send("ann", "ann" + LONG)
        hub.flush()
        await until(lambda: not hub.stats().queued, "clients to have read")
        assert len(windows()) == 2
        for number in range(20, 40):
            await publish("ab"[number % 2], number)
        await publish("a", "1" + "0" * 40_000)
        assert len(windows()) == 1
        hub.publish("a", "short")
        hub.publish("a", wsfast.PreparedMessage(LONG, compress=False))
        for client in clients:
            received = await client.all()
            first = [f"{number}" + LONG for number in range(20)] + ["ann" + LONG] * (client is clients[0])
            assert received[:-2] == first + [f"{number}" + LONG for number in (*range(20, 40), "1" + "0" * 40_000)]
            assert received[-2:] == ["short", LONG]

    play(act)


# ---- Users


@each_kind
def test_users(play: Play, kind: str) -> None:
    """Whoever sends to a user sends to all connections that are registered for it."""

    async def act(scene: Scene) -> None:
        hub = scene.hub()
        clients = await scene.clients(3, kind)
        connections = [client.connection for client in clients]
        first = hub.register(connections[0], "ann")
        hub.register(connections[1], "ann")
        hub.register(connections[2], 7)
        again = hub.register(connections[0], "ann")
        assert (again.user, again.connection) == ("ann", connections[0])
        with pytest.raises(RuntimeError, match=r"^the connection is registered for user 'ann' already, "):
            hub.register(connections[0], "bob")
        with pytest.raises(TypeError, match=r"^user must not be None;"):
            hub.register(connections[0], None)
        with pytest.raises(TypeError, match=r"unhashable"):
            hub.register(connections[0], [])  # type: ignore[arg-type]
        assert (hub.users(), hub.connections("ann"), hub.connections("bob")) == (["ann", 7], connections[:2], [])
        assert (len(hub), hub.topics(), hub.topics(connections[0])) == (3, [], [])
        assert [hub.send(user, f"to {user}" + LONG) for user in ("ann", 7, "bob", "7")] == [2, 1, 0, 0]
        first.unregister()
        assert hub.connections("ann") == [connections[1]]
        assert hub.send("ann", b"second") == 1
        hub.register(connections[0], "bob")
        assert hub.send("bob", "third", key="k") == 1
        assert await clients[0].all() == ["to ann" + LONG, "third"]
        assert await clients[1].all() == ["to ann" + LONG, b"second"]
        assert await clients[2].all() == ["to 7" + LONG]
        stats = hub.stats()
        assert (stats.users, stats.subscribers, stats.messages, stats.published, stats.sent) == (3, 3, 6, 5, 5)
        for client in clients:
            client.drop()
        await until(lambda: not hub.users(), "the end of the registrations")
        assert_empty(hub)

    play(act)


def test_users_and_topics(play: Play) -> None:
    """Users and topics of the same name have nothing in common; a connection stays as long as it has either."""

    async def act(scene: Scene) -> None:
        hub = scene.hub()
        one, two = await scene.clients(2)
        registration = hub.register(one.connection, "a")
        subscription = hub.subscribe(one.connection, "b", "a.*")
        hub.subscribe(two.connection, "a", "b")
        hub.register(two.connection, "b")
        hub.send("a", "1")
        hub.publish("a", "2")
        hub.publish("b", "3")
        assert (hub.users("b"), hub.users("a"), hub.users("a.*"), hub.users("x")) == (["a", "b"], ["b"], ["a"], [])
        hub.unsubscribe(one.connection)
        assert (hub.topics(one.connection), subscription.active, len(hub)) == ([], False, 2)
        hub.send("a", "4")
        hub.publish("b", "5")
        hub.subscribe(one.connection, "b")
        registration.unregister()
        assert registration.connection is one.connection
        assert hub.send("a", "6") == 0
        hub.publish("b", "7")
        assert await one.all() == ["1", "3", "4", "7"]
        assert await two.all() == ["2", "3", "5", "7"]
        hub.unsubscribe(one.connection)
        assert (len(hub), registration.connection) == (1, None)
        hub.unsubscribe(two.connection)
        hub.register(two.connection, "b").unregister()
        assert_empty(hub)

    play(act)


def test_presence(play: Play) -> None:
    """A user joins with its first connection and leaves with its last, the hub and each topic; each is told once."""

    async def act(scene: Scene) -> None:
        hub = scene.hub()
        one, two, three, anonymous = (client.connection for client in await scene.clients(4))
        hub.subscribe(anonymous, "a", "b")
        hub.subscribe(one, "a", "b")
        assert await scene.told() == []
        registration = hub.register(one, "ann")
        assert scene.events == []  # not in the middle of anything
        assert await scene.told() == [("join", "ann", None), ("join", "ann", "a"), ("join", "ann", "b")]
        hub.register(one, "ann")
        hub.subscribe(one, "a", "c.*")
        assert await scene.told() == [("join", "ann", "c.*")]
        hub.register(two, "ann")
        hub.subscribe(two, "b", "d")
        hub.register(three, "bob")
        hub.subscribe(three, "b")
        assert await scene.told() == [("join", "ann", "d"), ("join", "bob", None), ("join", "bob", "b")]
        assert (hub.users(), hub.users("b"), hub.users("c.x")) == (["ann", "bob"], ["ann", "bob"], ["ann"])
        hub.unsubscribe(one, "b", "a", "nothing")
        assert await scene.told() == [("leave", "ann", "a")]
        hub.unsubscribe(two, "b")
        assert await scene.told() == [("leave", "ann", "b")]
        hub.subscribe(one, "d")
        registration.unregister()
        assert await scene.told() == [("leave", "ann", "c.*")]
        hub.register(one, "bob")
        assert await scene.told() == [("join", "bob", "c.*"), ("join", "bob", "d")]
        hub.unsubscribe(two)
        assert await scene.told() == [("leave", "ann", "d")]
        hub.register(two, "ann").unregister()
        assert await scene.told() == [("leave", "ann", None)]
        assert hub.users() == ["bob"]

    play(act)


@each_kind
def test_presence_of_lost_connections(play: Play, kind: str) -> None:
    """Whose last connection is lost leaves what it was in, first its topics, then the hub."""

    async def act(scene: Scene) -> None:
        hub = scene.hub()
        one, two = await scene.clients(2, kind)
        for client, topics in ((one, ("a", "b")), (two, ("b", ">"))):
            hub.register(client.connection, "ann")
            hub.subscribe(client.connection, *topics)
        await scene.told()
        one.drop()
        await until(lambda: len(hub) == 1, "the end of one")
        assert await scene.told() == [("leave", "ann", "a")]
        two.drop()
        await until(lambda: len(hub) == 0, "the end of the other")
        assert await scene.told() == [("leave", "ann", "b"), ("leave", "ann", ">"), ("leave", "ann", None)]
        assert_empty(hub)

    play(act)


# ---- A topic as a channel


@each_kind
def test_hub_channel(play: Play, kind: str) -> None:
    """A topic, or a pattern, has the methods of a channel."""

    async def act(scene: Scene) -> None:
        hub = scene.hub(name="news", last_values=2)
        one, two = await scene.clients(2, kind)
        topic, pattern = hub.channel("a.b"), hub.channel("a.*")
        assert (topic.hub, topic.name, repr(topic)) == (hub, "a.b", "<HubChannel 'a.b' of <Hub 'news'>>")
        assert topic == hub.channel("a.b") != pattern
        assert (topic == "a.b", hash(topic) == hash(hub.channel("a.b"))) == (False, True)
        assert len({topic, pattern, hub.channel("a.b"), scene.hub().channel("a.b")}) == 3
        assert (bool(topic), len(topic), topic.stats(), hub.topics()) == (True, 0, TopicStats(0, 0, 0), [])
        subscription = topic.subscribe(one.connection)
        assert isinstance(subscription, wsfast.HubSubscription)
        pattern.subscribe(two.connection)
        pattern.subscribe(one.connection)
        assert (len(topic), len(pattern), len(hub.channel("a.c"))) == (2, 2, 2)
        topic.publish("12345" + LONG, key="k", exclude=[two.connection])
        hub.channel("a.c").publish(b"c")
        topic.flush()
        assert hub.stats().queued == 0
        with pytest.raises(ValueError, match=r"^topic 'a\.\*' is a pattern; "):
            pattern.publish("")
        with pytest.raises(ValueError, match=r"^topic 'a\.\*' is a pattern; "):
            pattern.publish_threadsafe("")
        assert topic.stats() == TopicStats(1, 5 + len(LONG), 2)
        assert pattern.stats() == TopicStats(2, 6 + len(LONG), 2)
        assert hub.channel("a.c").stats() == TopicStats(0, 0, 2)
        pattern.unsubscribe(one.connection)
        topic.unsubscribe(two.connection)
        hub.channel("a.c").publish(b"second")
        assert await one.all() == ["12345" + LONG, b"c"]
        assert await two.all() == [b"c", b"second"]
        assert hub.last("a.b") == {"k": "12345" + LONG}
        for name, error in (("", ValueError), ("a..b", ValueError), (1, TypeError)):
            with pytest.raises(error):
                hub.channel(name)  # type: ignore[arg-type]
            for call in (hub.count, hub.subscribers, hub.stream):
                with pytest.raises(error):
                    call(name)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"empty token"):
            hub.users("a..b")

    play(act)


# ---- As a stream


async def collect(stream: AsyncIterator[str | bytes]) -> list[str | bytes]:
    return [message async for message in stream]


def test_streams(play: Play) -> None:
    """Whoever iterates over a topic or a pattern gets what is published since, the newest if it does not keep up."""

    async def act(scene: Scene) -> None:
        hub = scene.hub(history=3)
        client = await scene.client()
        hub.publish("a.b", "before")
        few, all_of_them, topic = hub.stream("a.b", max_messages=2), hub.stream(">"), hub.channel("a.b").stream()
        with pytest.raises(ValueError, match=r"^max_messages must be positive, not 0$"):
            hub.stream("a", max_messages=0)
        assert (hub.topics(), len(hub), hub.count("a.b")) == (["a.b", ">"], 0, 0)
        received: list[str | bytes] = []

        async def iterate() -> None:
            async for message in hub.channel("a.*"):
                received.append(message)
                if isinstance(message, bytes) and message == b"end":
                    break

        task = asyncio.create_task(iterate())
        await asyncio.sleep(0)
        hub.subscribe(client.connection, "a.b")
        for message in ("one", b"two", wsfast.PreparedMessage("three"), b"end"):
            hub.publish("a.b", message)
        hub.publish(["a.b", "a.c"], "as one")
        hub.publish("x", "x")
        hub.send("ann", "ann")
        await task
        assert received == ["one", b"two", "three", b"end"]
        with few, all_of_them, topic:
            pass
        messages = ["one", b"two", "three", b"end", "as one"]
        assert await collect(few) == messages[-2:]
        assert (few.dropped, topic.dropped) == (3, 0)
        assert await collect(all_of_them) == [*messages, "x"]
        assert await collect(topic) == messages
        assert await client.all() == ["before", *messages]
        assert hub.stats().published == 6
        del task
        gc.collect()
        await scene.told()
        assert hub.topics() == ["a.b"]
        hub.unsubscribe(client.connection)
        assert_empty(hub)

    play(act)


def test_streams_keep_topics_no_longer_than_they_last(play: Play) -> None:
    """With its last stream, a topic goes: when it is closed, or when nobody refers to it any more."""

    async def act(scene: Scene) -> None:
        hub = scene.hub()
        streams = [hub.stream(name) for name in ("a", "a", "b.*", "c", "d")]
        assert hub.topics() == ["a", "b.*", "c", "d"]
        streams[0].close()
        streams[2].close()
        assert hub.topics() == ["a", "c", "d"]
        streams[1].close()
        streams[1].close()
        assert hub.topics() == ["c", "d"]
        streams[3:] = [one := hub.stream("c")]
        gc.collect()
        await scene.told()
        assert hub.topics() == ["c"]
        hub.publish("c", "still there")
        thread = threading.Thread(target=streams.clear)
        thread.start()
        thread.join()
        assert await anext(one) == "still there"
        del one
        gc.collect()
        await until(lambda: not hub.topics(), "the end of the last stream")
        assert_empty(hub)
        again = hub.stream("a")
        del again
        gc.collect()
        hub.publish("a", "before that was noted")
        another = hub.stream("a")
        await scene.told()
        hub.publish("a", "after it")
        assert await anext(another) == "after it"

    play(act)


def test_streams_outlive_their_loop(core: Any) -> None:
    """A stream that goes when its event loop is closed is no error."""
    hub = wsfast.Hub()

    async def main() -> Any:
        return hub.stream("a")

    stream = asyncio.run(main())
    del stream
    gc.collect()


# ---- Connections of one's own


class OwnSink:
    """A connection that is no library's."""

    def __init__(self) -> None:
        self.frames = b""
        self.has_room = True
        self.closed: list[tuple[int, str]] = []

    def write(self, data: bytes) -> None:
        self.frames += data

    def writable(self) -> bool:
        return self.has_room

    def close(self, code: int, reason: str) -> None:
        self.closed.append((code, reason))


def test_attached_connections(play: Play) -> None:
    """A connection of one's own is known by what attach() returned for it, in all that a hub says."""

    async def act(scene: Scene) -> None:
        hub = scene.hub(slow=wsfast.DropOldest(max_messages=2), history=1)
        sink = OwnSink()
        connection = wsfast.attach(sink)
        hub.publish("a", "early")
        subscription = hub.subscribe(connection, "a", "b.*")
        registration = hub.register(connection, "ann")
        assert subscription.connection is registration.connection is connection
        assert hub.subscribers("b.x") == hub.connections("ann") == [connection]
        hub.publish("a", "1")
        hub.publish("a", "2", exclude=[connection])
        hub.flush()
        sink.has_room = False
        for number in range(3, 7):
            hub.publish(["a", "b.x"], f"{number}")
            hub.flush()
        hub.send("ann", "7")
        hub.flush()  # now, not after it was seen that there is room
        assert (subscription.queued, subscription.dropped) == (2, 3)
        sink.has_room = True
        await until(lambda: not subscription.lag.messages, "what waits to have left")
        assert [frame.payload for frame in parse_frames(sink.frames)[0]] == [b"early", b"1", b"6", b"7"]
        assert subscription.stats() == SubscriptionStats(7, 4, 3, 0, 0)
        assert hub.topics(connection) == ["a", "b.*"]
        hub.unsubscribe(connection)
        registration.unregister()
        reconciled(hub, subscription)
        assert_empty(hub)

    play(act)


# ---- Slow consumers


class Slow:
    """A connection whose kernel takes nothing any more."""

    def __init__(self, hub: wsfast.Hub, wire: Wire) -> None:
        self.hub, self.wire = hub, wire
        self.subscription = hub.subscribe(wire.connection, "a", "b", "c.*")
        self.taken = 0
        while not self.subscription.queued:
            self.publish("a", f"fill {self.taken:04}" + "." * 1000, key="fill")
            self.taken += 1

    def publish(self, topic: str | tuple[str, ...], message: str, key: str | None = None) -> None:
        self.hub.publish(topic, message, key=key)
        self.hub.flush()

    async def read(self) -> list[str]:
        """Read all that there is, and return what came after what had been taken before."""
        received: list[str] = []
        deadline = asyncio.get_running_loop().time() + TIMEOUT
        while self.subscription.lag.messages or self.wire.buffered or len(received) < self.subscription.stats().sent:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0)
            with contextlib.suppress(BlockingIOError):
                self.wire.inflater.feed(self.wire.sock.recv(1 << 20))
            received += [payload.decode() for _, payload in self.wire.inflater.messages]
            self.wire.inflater.messages.clear()
        assert len(received) == self.subscription.stats().sent
        return received[self.taken - 1 :]


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have connections count as recovered as soon as that is looked at."""
    monkeypatch.setattr("wsfast._draining.EPISODE_GAP", 0.0)


@pytest.fixture
def slowly(core: Any, run: Run) -> Callable[[Callable[[], wsfast.Hub], Any], None]:
    """Run a scene with a slow connection."""

    def slowly(make: Callable[[], wsfast.Hub], act: Callable[[Slow], Any]) -> None:
        async def main() -> None:
            wire = await connect(Spec("plain", small=True))
            try:
                await act(Slow(make(), wire))
            finally:
                wire.close()
                await wire.connection.connection_lost_waiter
                await asyncio.sleep(0)

        run(main)

    return slowly


Slowly = Callable[[Callable[[], wsfast.Hub], Callable[[Slow], Any]], None]


@pytest.mark.parametrize(
    ("policy", "kept", "dropped"),
    [
        (wsfast.DropNewest(max_messages=3), ["fill", "a 1", "b 1"], 4),
        (wsfast.DropOldest(max_messages=3), ["c 1", "as one", "b 2"], 4),
        (wsfast.DropOldest(max_messages=10), ["fill", "a 1", "b 1", "to ann", "c 1", "as one", "b 2"], 0),
        (wsfast.DropOldest(max_bytes=9), ["as one", "b 2"], 5),
        (wsfast.DropNewest(max_bytes=1009 + 3), ["fill", "a 1"], 5),
        (wsfast.Conflate(max_messages=3), ["c 1", "as one", "b 2"], 4),
    ],
)
def test_one_queue_for_all_topics(
    slowly: Slowly, policy: Policy, kept: list[str], dropped: int, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits for a connection is within the bounds, whatever the topics; callbacks tell whose it was."""
    events: list[Any] = []

    def on(what: str) -> Callable[..., None]:
        return lambda *arguments: events.append((what, *arguments))

    def make() -> wsfast.Hub:
        return wsfast.Hub(slow=policy, name="prices", on_drop=on("drop"), on_recover=on("recover"))

    async def act(slow: Slow) -> None:
        hub, connection, subscription = slow.hub, slow.wire.connection, slow.subscription
        hub.register(connection, "ann")
        slow.publish("a", "a 1")
        slow.publish("b", "b 1")
        hub.send("ann", "to ann")
        hub.flush()
        slow.publish("c.x", "c 1")
        slow.publish(("a", "b", "c.y"), "as one")
        slow.publish("b", "b 2")
        stats = subscription.stats()
        assert stats == SubscriptionStats(slow.taken + 6, slow.taken - 1, dropped, 0, len(kept))
        assert (subscription.dropped, subscription.conflated, subscription.queued) == (dropped, 0, len(kept))
        assert subscription.lag.messages == len(kept)
        assert subscription.lag.seconds > 0
        assert [message.split(" 0")[0] for message in await slow.read()] == kept
        await until(lambda: len(events) == dropped + bool(dropped), "the recovery")
        assert [event[0] for event in events] == ["drop"] * dropped + ["recover"] * bool(dropped)
        for event in events:
            assert isinstance(event[1], wsfast.HubSubscription)
            assert event[2:] == ((1,) if event[0] == "drop" else ())
            assert event[1].connection is connection
            assert event[1].topics == ("a", "b", "c.*")
            assert event[1].stats() == subscription.stats()
        assert reconciled(hub, subscription).queued == 0

    with caplog.at_level(logging.INFO, "wsfast"):
        slowly(make, act)
    records = [record.getMessage().split(" ", 1)[1] for record in caplog.records]
    assert records == ["does not keep up with <Hub 'prices'>, which drops messages", "has recovered"] * bool(dropped)


def test_disconnect(slowly: Slowly) -> None:
    """Beyond the bounds, the connection is closed, and has left all; the callback tells which one it was."""
    events: list[Any] = []

    async def act(slow: Slow) -> None:
        hub, connection, subscription = slow.hub, slow.wire.connection, slow.subscription
        hub.register(connection, "ann")
        slow.publish("b", "second")
        hub.publish("a", "third")
        hub.publish("b", "fourth")
        hub.flush()
        assert (subscription.active, subscription.connection, len(hub)) == (False, None, 0)
        assert subscription.stats() == SubscriptionStats(slow.taken + 3, slow.taken - 1, 4, 0, 0)
        assert_empty(hub)
        assert (hub.routes("a"), hub.routes("c.x")) == ([], [])
        assert (hub.stats().disconnected, hub.stats().dropped) == (1, 4)
        for _ in range(3):
            await asyncio.sleep(0)
        names = [event[0] for event in events]
        assert sorted(names) == ["disconnect", *["leave"] * 4]
        (reason,) = [event[1] for event in events if event[0] == "disconnect"]
        assert isinstance(reason, wsfast.HubSubscription)
        assert reason.connection is connection
        assert reason.topics == ("a", "b", "c.*")
        assert not reason.active
        assert [event[1:] for event in events if event[0] == "leave"] == [
            ("ann", "a"),
            ("ann", "b"),
            ("ann", "c.*"),
            ("ann", None),
        ]
        stream = b""
        deadline = asyncio.get_running_loop().time() + TIMEOUT
        while not (frames := parse_frames(stream)[0]) or frames[-1].first != 0x88:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0)
            with contextlib.suppress(BlockingIOError):
                stream += slow.wire.sock.recv(1 << 20)
        assert len(frames) == slow.taken
        assert frames[-1].payload == (4000).to_bytes(2, "big") + b"too slow"

    def make() -> wsfast.Hub:
        return wsfast.Hub(
            slow=wsfast.Disconnect(max_messages=2, code=4000, reason="too slow"),
            on_disconnect=lambda *arguments: events.append(("disconnect", *arguments)),
            on_leave=lambda *arguments: events.append(("leave", *arguments)),
        )

    slowly(make, act)


def test_conflate(slowly: Slowly) -> None:
    """The newest of each topic and key takes the place of the one that waits; users have keys of their own."""

    async def act(slow: Slow) -> None:
        hub, subscription = slow.hub, slow.subscription
        hub.register(slow.wire.connection, "a")
        for topic, message, key in (
            ("a", "a k 1", "k"),
            ("b", "b k 1", "k"),
            ("a", "a 1", None),
            ("c.x", "c.x k 1", "k"),
            ("c.y", "c.y k 1", "k"),
            ("a", "a l 1", "l"),
            ("a", "a k 2", "k"),
            ("c.y", "c.y k 2", "k"),
            ("a", "a 2", None),
        ):
            slow.publish(topic, message, key)
        for message in ("user k 1", "user k 2"):
            hub.send("a", message, key="k")
            hub.flush()
        for message in ("ab k 1", "ab k 2"):
            slow.publish(("a", "b"), message, "k")
        slow.publish("a", "a k 3", "k")
        assert subscription.stats() == SubscriptionStats(slow.taken + 14, slow.taken - 1, 0, 5, 10)
        assert subscription.conflated == hub.stats().conflated == 5
        received = await slow.read()
        assert received[1:] == ["a k 3", "b k 1", "a 1", "c.x k 1", "c.y k 2", "a l 1", "a 2", "user k 2", "ab k 2"]
        reconciled(hub, subscription)

    slowly(lambda: wsfast.Hub(slow=wsfast.Conflate()), act)


def test_history_behind_what_waits(slowly: Slowly) -> None:
    """Who does not keep up gets what is remembered behind what waits already, within the same bounds."""

    async def act(slow: Slow) -> None:
        hub, subscription = slow.hub, slow.subscription
        for number in range(5):
            hub.publish("new", f"{number}")
        hub.subscribe(slow.wire.connection, "new")
        slow.publish("new", "5")
        assert subscription.stats() == SubscriptionStats(slow.taken + 4, slow.taken - 1, 1, 0, 4)
        assert await slow.read() == ["2", "3", "4", "5"]

    slowly(lambda: wsfast.Hub(slow=wsfast.DropOldest(max_messages=4), history=3), act)


def test_leaving_with_what_waits(slowly: Slowly) -> None:
    """What waits is sent also of topics that were left, but dropped with the last thing that a connection has."""

    async def act(slow: Slow) -> None:
        hub, subscription = slow.hub, slow.subscription
        slow.publish("b", "b 1")
        slow.publish("a", "a 1")
        hub.publish("b", "b 2")
        hub.unsubscribe(slow.wire.connection, "b", "c.*")
        slow.publish("b", "too late")
        assert subscription.stats() == SubscriptionStats(slow.taken + 3, slow.taken - 1, 0, 0, 4)
        assert (await slow.read())[1:] == ["b 1", "a 1", "b 2"]
        while not subscription.queued:
            slow.publish("a", "." * 1000)
        count = subscription.stats().published
        hub.publish("a", "of this tick")
        hub.unsubscribe(slow.wire.connection)
        assert_empty(hub)
        assert subscription.stats() == SubscriptionStats(count + 1, count - 1, 2, 0, 0)
        reconciled(hub, subscription)

    slowly(lambda: wsfast.Hub(slow=wsfast.DropNewest()), act)


# ---- Counting


@each_kind
def test_stats_reconcile(play: Play, kind: str) -> None:
    """Each message is counted once for each connection that it is for, whatever comes and goes in between."""

    async def act(scene: Scene) -> None:
        hub = scene.hub(history=2, last_values=2)
        clients = await scene.clients(5, kind)
        connections = [client.connection for client in clients]
        filters = [("a", "b"), ("a.>", "a"), (">", "*", "b"), ("c",), ("a", "b", "c", "*")]
        everything = []
        for turn in range(6):
            subscriptions = [
                hub.subscribe(connection, *names) for connection, names in zip(connections, filters, strict=True)
            ]
            everything += subscriptions
            hub.register(connections[turn % 5], "ann")
            for number in range(10):
                hub.publish("abc"[number % 3], f"{number}", exclude=connections[: number % 4], key=f"{number % 4}")
                hub.publish(["a", "b"], f"{number}", exclude_users=["ann"] if number % 2 else [])
                hub.publish_many([("a.b", f"{number}"), (("c", "b"), f"{number}", "k")])
                hub.send("ann", f"{number}")
                if number == 5:
                    hub.unsubscribe(connections[turn % 3], "a", "b")
                    hub.subscribe(connections[4], "a.*", "d")
                if number % 4 == turn % 4:
                    hub.flush()
                stats = hub.stats()
                assert stats.published == stats.sent + stats.dropped + stats.conflated + stats.queued
            received = [len(await client.all()) for client in clients]
            assert [one.stats().sent for one in subscriptions] == received
            assert all(one.stats().published == one.stats().sent for one in subscriptions)
            for connection in connections:
                hub.unsubscribe(connection)
            hub.register(connections[turn % 5], "ann").unregister()
            assert [one.stats().sent for one in subscriptions] == received
            assert_empty(hub)
            filters = filters[1:] + filters[:1]
        stats = reconciled(hub, *everything)
        assert (stats.messages, stats.sent, stats.dropped) == (300, stats.published, 0)

    play(act)


# ---- Relays


class Recorder:
    """A relay that notes what it is told."""

    def __init__(self) -> None:
        self.ordered = False
        self.wanted: set[tuple[Kind, Any]] = set()
        self.forwarded: list[Any] = []

    def subscribe(self, kind: Kind, name: Any) -> None:
        assert (kind, name) not in self.wanted
        self.wanted.add((kind, name))

    def unsubscribe(self, kind: Kind, name: Any) -> None:
        self.wanted.remove((kind, name))

    def is_loaded(self, topic: str, since: Any) -> bool:
        raise NotImplementedError

    async def load(self, topics: Any) -> None:
        raise NotImplementedError

    def forward(self, kind: Kind, names: Any, message: Any, key: Any, excluded: Any, members: Any, tags: Any) -> None:
        self.forwarded.append((kind, names, message.data, key, excluded))

    def command(self, command: Command) -> None:
        self.forwarded.append(command)

    def follows(self, topic: str) -> bool:
        return False

    def check(self, kind: Kind, names: Any, key: Any, excluded: Any) -> None:
        if key == "bad" or "bad" in (*names, *excluded):
            raise TypeError(f"cannot carry {kind}")


def test_relays(play: Play) -> None:
    """A relay is told who is here and what is published; what it brings is delivered here alone."""

    async def act(scene: Scene) -> None:
        hub = scene.hub(last_values=2)
        one, two = await scene.clients(2)
        hub.subscribe(one.connection, "a", "b.*")
        hub.register(two.connection, "ann")
        relay = Recorder()
        relay.wanted.update(hub.attach(relay))
        assert relay.wanted == {("topic", "a"), ("pattern", "b.*"), ("user", "ann")}
        with pytest.raises(RuntimeError, match=r"^<Hub> has a relay already; "):
            hub.attach(Recorder())
        for call in (
            lambda: hub.publish("bad", ""),
            lambda: hub.publish("a", "", key="bad"),
            lambda: hub.publish("a", "", exclude_users=["bad"]),
            lambda: hub.publish_many([("a", ""), ("a", "", "bad")]),
            lambda: hub.send("bad", ""),
            lambda: hub.send("ann", "", key="bad"),
            lambda: hub.register(one.connection, "bad"),
        ):
            with pytest.raises(TypeError, match=r"^cannot carry"):
                call()
        assert (hub.stats().messages, relay.forwarded) == (0, [])
        subscription = hub.subscribe(two.connection, "a", "c")
        stream = hub.stream("d.>")
        hub.register(one.connection, "bob")
        assert relay.wanted >= {("topic", "c"), ("pattern", "d.>"), ("user", "bob")}
        hub.publish("a", "1", key="k", exclude=[one.connection], exclude_users=["bob"])
        hub.publish_many([(("a", "c"), b"2"), ("x", "3", 5)])
        hub.send("zoe", "4", key="z")
        assert relay.forwarded == [
            ("topic", ("a",), b"1", "k", ("bob",)),
            ("topic", ("a", "c"), b"2", None, ()),
            ("topic", ("x",), b"3", 5, ()),
            ("user", ("zoe",), b"4", "z", ()),
        ]
        assert [hub.routes(name) for name in ("a", "b.x", "d.x", "x", "b")] == [
            [("topic", "a")],
            [("pattern", "b.*")],
            [("pattern", "d.>")],
            [],
            [],
        ]
        assert [hub.has_user(user) for user in ("ann", "bob", "zoe")] == [True, True, False]
        hub.deliver("a", wsfast.PreparedMessage("5"), "key", delivered=["c", "unheard"])
        hub.deliver("a", wsfast.PreparedMessage("5b"), "b", exclude_users=["bob", "unheard"])
        hub.deliver("c", wsfast.PreparedMessage("5c"), "key")
        assert hub.deliver_to_user("ann", wsfast.PreparedMessage("6"), None) == 1
        assert hub.deliver_to_user("zoe", wsfast.PreparedMessage("7"), None) == 0
        assert len(relay.forwarded) == 4
        assert (hub.last("a"), hub.last("c")) == ({"key": "5", "b": "5b"}, {"key": "5c"})
        assert await one.all() == [b"2", "5"]
        assert await two.all() == ["1", b"2", "5b", "5c", "6"]
        subscription.unsubscribe()
        stream.close()
        assert relay.wanted == {("topic", "a"), ("pattern", "b.*"), ("user", "ann"), ("user", "bob")}
        one.drop()
        await until(lambda: len(hub) == 1, "the end of one")
        assert relay.wanted == {("user", "ann")}
        assert hub.attach(None) == [("user", "ann")]
        hub.publish("a", "8")
        assert len(relay.forwarded) == 4
        assert hub.attach(Recorder()) == [("user", "ann")]

    play(act)


# ---- Memory


@pytest.mark.skipif(CORES == ["py"], reason="lists of the twin's integers are larger")
@pytest.mark.parametrize(("count", "mine", "topics"), [(200, 50, 200), (100, 1000, 1000)])
def test_memory(run: Run, loop_kind: str, count: int, mine: int, topics: int) -> None:
    """A connection in a topic costs less than 100 bytes beyond its first topic, and nothing once it has left."""
    if loop_kind == "uvloop":
        pytest.skip("it is the same in all event loops")

    async def main() -> None:
        hub = wsfast.Hub()
        wires = [await connect(Spec("plain")) for _ in range(count)]
        try:
            handles = [hub.subscribe(wire.connection, "first") for wire in wires]
            for number in range(topics):  # which exist
                hub.subscribe(wires[0].connection, f"orders.eu.{number}")
            hub.publish("first", "what it costs to send at all")
            hub.flush()
            gc.collect()
            tracemalloc.start()
            try:
                before, _ = tracemalloc.get_traced_memory()
                for index, wire in enumerate(wires[1:], 1):
                    # As handlers do, with strings that nobody else has.
                    names = [f"orders.eu.{(index + number) % topics}" for number in range(mine)]
                    handles.append(hub.subscribe(wire.connection, *names))
                    hub.publish("orders.eu.0", "")
                    hub.flush()
                del names
                gc.collect()
                after, _ = tracemalloc.get_traced_memory()
                pairs = (count - 1) * mine
                assert after - before < 100 * pairs
                print(f"{count} connections in {mine} of {topics}: {(after - before) / pairs:.1f} bytes each")
                handles.clear()
                for wire in wires:
                    hub.unsubscribe(wire.connection)
                gc.collect()
                left, _ = tracemalloc.get_traced_memory()
                assert left - before < 10 * pairs
            finally:
                tracemalloc.stop()
        finally:
            for wire in wires:
                wire.close()
                await wire.connection.connection_lost_waiter
            await asyncio.sleep(0)
        assert_empty(hub)

    run(main)
