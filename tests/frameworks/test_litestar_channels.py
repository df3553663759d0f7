"""Channels of Litestar with `wsfast.litestar`, under servers of several makers and in Litestar's test client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import litestar.channels
import pytest
from litestar.channels.backends.memory import MemoryChannelsBackend
from litestar.exceptions import WebSocketDisconnect
from litestar.testing import TestClient

import wsfast
from frameworks.asgi_app import expected, text_of
from frameworks.litestar_app import LARGE
from helpers.asgi import COMMANDS, check_foreign, check_room, connect, serve
from helpers.peers import TIMEOUT
from wsfast._litestar import FanOut, Member
from wsfast.litestar import ChannelsPlugin, Subscriber

APP = "frameworks.litestar_app:app"
SERVERS: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "uvicorn": ([*COMMANDS["uvicorn"], APP], {"WSFAST_TEST_INSTALL": "1"}, "WebSocketsProtocol"),
    "uvicorn-queue": ([*COMMANDS["uvicorn"], APP], {}, "_Litestar"),
    "hypercorn": ([*COMMANDS["hypercorn"], APP], {}, "_Litestar"),
}


@contextlib.asynccontextmanager
async def served(name: str) -> AsyncIterator[int]:
    command, options, _ = SERVERS[name]
    async with serve(command, "", **options, WSFAST_TEST_CLOSE_TIMEOUT="0.5") as port:
        yield port


@pytest.mark.parametrize("name", SERVERS)
def test_servers(name: str) -> None:
    """Everything arrives, in order with own messages, at clients of several makers; then all subscribers leave."""

    async def main() -> None:
        async with served(name) as port:
            assert await check_room(port) == SERVERS[name][2]
            await check_foreign(port)

    asyncio.run(main())


@pytest.mark.parametrize("name", SERVERS)
def test_stalled(name: str) -> None:
    """The connection of a client that does not read is closed, while another client gets everything."""

    async def main() -> None:
        async with served(name) as port, asyncio.timeout(TIMEOUT):
            healthy = await connect(port)
            assert await healthy.recv() == "welcome 0"
            stalled = await connect(port, small=True)
            assert await stalled.recv() == "welcome 1"
            stalled.transport.pause_reading()
            try:
                await healthy.send("stall")
                numbers: dict[Any, int] = {"next": 0, LARGE: 0}
                while (message := await healthy.recv()) in numbers:
                    numbers[message] += 1
                assert message == "stalled: ['SLOW_CONSUMER']"
                assert numbers["next"] == numbers[LARGE] > 0
                count = ""
                while count != "1":
                    await healthy.send("count")
                    count = (await healthy.recv()).split()[0]
            finally:
                stalled.transport.abort()
                await healthy.close()

    asyncio.run(main())


def test_others() -> None:
    """Handlers that the plugin makes send history first; compressed, plain and streaming clients get the same."""

    async def main() -> None:
        async with (
            served("uvicorn") as port,
            asyncio.timeout(TIMEOUT),
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
            session.get("/events") as response,
        ):
            assert await response.content.readline() == b"welcome\n"
            client = await connect(port)
            assert await client.recv() == "welcome 0"
            plain = await connect(port, compress=False)
            assert await plain.recv() == "welcome 1"
            await client.send("burst 200")
            messages = [*map(text_of, range(200)), "end of burst"]
            for one in (client, plain):
                assert [await one.recv() for _ in messages] == messages
            assert [(await response.content.readline()).decode() for _ in messages] == [f"{one}\n" for one in messages]
            async with session.ws_connect("/auto/room") as automatic:
                assert [await automatic.receive_str() for _ in range(5)] == messages[-5:]
                await plain.send("shout 30")
                for one in (client, plain):
                    assert [await one.recv() for _ in range(31)] == expected("shout", 30, 0, 2)
                assert [await automatic.receive_str() for _ in range(31)] == expected("shout", 30, 0, 2)
            await client.close()
            await plain.close()

    asyncio.run(main())


# ---- In Litestar's test client

Body = Callable[[ChannelsPlugin, Any], Awaitable[None]]


def run(body: Body, *, accept: bool = True, **options: Any) -> list[str | bytes]:
    """Run a handler of a WebSocket; return the messages that it sends, up to `end`."""
    plugin = ChannelsPlugin(MemoryChannelsBackend(history=10), arbitrary_channels_allowed=True, **options)
    errors: list[BaseException] = []

    async def handler(socket: Any) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                if accept:
                    await socket.accept()
                await body(plugin, socket)
        except BaseException as exc:
            errors.append(exc)
            raise
        finally:
            if not errors:
                await socket.send_text("end")

    handler.__annotations__["socket"] = litestar.WebSocket
    app = litestar.Litestar([litestar.websocket("/")(handler)], plugins=[plugin], logging_config=None)
    messages: list[str | bytes] = []
    with TestClient(app) as client:
        with client.websocket_connect("/") as session, contextlib.suppress(WebSocketDisconnect):
            while "end" not in messages:
                event: Any = session.receive(timeout=TIMEOUT)
                messages.append(event.get("text") or event.get("bytes"))
        if errors:
            raise errors[0]
        assert not plugin.hub.topics()
        assert not plugin.hub.users()
        assert not plugin.fan_out.members
    return messages[:-1]


async def arrived(plugin: ChannelsPlugin, message: Any, *channels: str) -> None:
    """Publish a message, and wait until subscribers have it."""
    async with plugin.start_subscription(channels) as subscriber:
        plugin.publish(message, channels)
        events = subscriber.iter_events()
        for _ in channels:
            await anext(events)
        await events.aclose()


def test_order_of_start() -> None:
    """History and events that waited when the subscriber is started come first."""

    async def body(plugin: ChannelsPlugin, socket: Any) -> None:
        await plugin.wait_published("0", "news")
        await plugin.wait_published("1", "news")
        async with plugin.start_subscription("news", history=5) as subscriber:
            await arrived(plugin, {"number": 2}, "news")
            assert subscriber.qsize == 3
            async with subscriber.run_in_background(socket.send_text):
                assert subscriber.is_running
                await arrived(plugin, "3", "news")
                await plugin.put_subscriber_history(subscriber, "news", limit=1)
                assert subscriber.put_nowait(b"4")
            assert not subscriber.is_running
            assert subscriber.qsize == 0

    assert run(body) == ["0", "1", '{"number":2}', "3", "3", "4"]


NAMES = ["", ".", "a b", "*", ">", "a.>.b", "\u00fc/%2F", "x" * 2000, "x" * 1999 + "y", "\n"]


def test_names_and_bytes() -> None:
    """Channels may have any name, and events may be sent as bytes; an event in two channels is sent twice."""

    async def body(plugin: ChannelsPlugin, socket: Any) -> None:
        async with plugin.start_subscription(NAMES) as subscriber, subscriber.run_in_background(socket.send_bytes):
            for name in NAMES:
                await arrived(plugin, name or "empty", name)
            await arrived(plugin, b"\xff", ".", "*")

    assert run(body) == [*((name or "empty").encode() for name in NAMES), b"\xff", b"\xff"]


def test_unsubscribe() -> None:
    """Channels can be left one by one; the last one stops the subscriber."""

    async def body(plugin: ChannelsPlugin, socket: Any) -> None:
        async with (
            plugin.start_subscription(["a", "b", "c"]) as subscriber,
            subscriber.run_in_background(socket.send_text),
        ):
            for channels in ("a", ["b"], None):
                for name in ("a", "b", "c"):
                    await arrived(plugin, f"{name}{plugin.hub.stats().topics}", name)
                await plugin.unsubscribe(subscriber, channels)
            assert not subscriber.is_running
            await arrived(plugin, "unheard", "a", "b", "c")

    assert run(body) == ["a3", "b3", "c3", "b2", "c2", "c1"]


def test_stop_and_start() -> None:
    """A subscriber that is stopped keeps its events, and can be started again with any callback."""

    async def body(plugin: ChannelsPlugin, socket: Any) -> None:
        async def callback(event: bytes) -> None:
            await socket.send_text("called with " + event.decode())

        async with plugin.start_subscription("a") as subscriber:
            for number, on_event in enumerate((socket.send_text, callback, socket.send_bytes, socket.send_text)):
                await arrived(plugin, f"{number} before", "a")
                async with subscriber.run_in_background(on_event):
                    with pytest.raises(RuntimeError, match="already running"):
                        async with subscriber.run_in_background(socket.send_text):
                            pass
                    await arrived(plugin, f"{number} while", "a")

    assert run(body) == [
        *("0 before", "0 while", "called with 1 before", "called with 1 while"),
        *(b"2 before", b"2 while", "3 before", "3 while"),
    ]


def test_two_subscribers_of_one_socket() -> None:
    """A second subscriber sends to the same WebSocket as before, with a task of its own."""

    async def body(plugin: ChannelsPlugin, socket: Any) -> None:
        async with (
            plugin.start_subscription("a") as one,
            plugin.start_subscription("a") as other,
            one.run_in_background(socket.send_text),
            other.run_in_background(socket.send_text),
        ):
            assert one._task is None
            assert other._task is not None
            await arrived(plugin, "twice", "a")

    assert run(body) == ["twice", "twice"]


def test_not_accepted() -> None:
    """A WebSocket that was not accepted is accepted by its method, as before."""

    async def body(plugin: ChannelsPlugin, socket: Any) -> None:
        async with plugin.start_subscription("a") as subscriber, subscriber.run_in_background(socket.send_text):
            assert subscriber._task is not None
            await arrived(plugin, "accepted", "a")

    assert run(body, accept=False) == ["accepted"]


class Shouting(litestar.WebSocket):  # type: ignore[type-arg]
    """A WebSocket with a method of its own."""

    async def send_text(self, data: Any, encoding: str = "utf-8") -> None:
        await super().send_text(data.upper(), encoding)


def test_own_methods() -> None:
    """Methods that were overridden are called."""

    async def body(plugin: ChannelsPlugin, socket: Any) -> None:
        own: Any = Shouting(socket.scope, socket.receive, socket.send)
        own.connection_state = "connect"
        async with plugin.start_subscription("a") as subscriber, subscriber.run_in_background(own.send_text):
            await arrived(plugin, "hello", "a")

    assert run(body) == ["HELLO"]


def test_exception() -> None:
    """After an exception, nothing more is sent, and the hub is empty."""

    async def body(plugin: ChannelsPlugin, socket: Any) -> None:
        subscriber = await plugin.subscribe("a")
        with pytest.raises(ZeroDivisionError):
            async with subscriber.run_in_background(socket.send_text):
                raise ZeroDivisionError
        assert not subscriber.is_running
        await plugin.unsubscribe(subscriber)
        await arrived(plugin, "unheard", "a")

    assert run(body) == []


def test_not_text(caplog: pytest.LogCaptureFixture) -> None:
    """An event that is not UTF-8 cannot be sent as text; this is logged, and the others arrive."""

    async def body(plugin: ChannelsPlugin, socket: Any) -> None:
        async with plugin.start_subscription("a") as subscriber, subscriber.run_in_background(socket.send_text):
            await arrived(plugin, b"\xff", "a")
            await arrived(plugin, "text", "a")

    assert run(body) == ["text"]
    assert [record.message for record in caplog.records if record.name == "wsfast" and record.levelname == "ERROR"] == [
        "cannot send an event of a channel to WebSockets as text"
    ]


def test_own_subscriber_class() -> None:
    """Subscribers of another class work as before."""

    async def body(plugin: ChannelsPlugin, socket: Any) -> None:
        async with plugin.start_subscription("a") as subscriber, subscriber.run_in_background(socket.send_text):
            assert not isinstance(subscriber, Subscriber)
            await arrived(plugin, "hello", "a")

    assert run(body, subscriber_class=litestar.channels.Subscriber) == ["hello"]


def test_own_way_to_the_queue() -> None:
    """A subclass that overrides `put_nowait()` sees and changes each event."""

    class Louder(Subscriber):
        def put_nowait(self, item: bytes | None) -> bool:
            return super().put_nowait(item and item.upper())

    async def body(plugin: ChannelsPlugin, socket: Any) -> None:
        async with plugin.start_subscription("a") as subscriber, subscriber.run_in_background(socket.send_text):
            await arrived(plugin, "hello", "a")

    assert run(body, subscriber_class=Louder) == ["HELLO"]


@pytest.mark.parametrize(
    ("options", "policy"),
    [
        ({}, wsfast.Disconnect()),
        ({"subscriber_max_backlog": 7}, wsfast.DropNewest(max_messages=7, max_bytes=None)),
        (
            {"subscriber_max_backlog": 7, "subscriber_backlog_strategy": "dropleft"},
            wsfast.DropOldest(max_messages=7, max_bytes=None),
        ),
        ({"subscriber_max_backlog": 7, "slow": wsfast.Conflate()}, wsfast.Conflate()),
    ],
)
def test_policies(options: dict[str, Any], policy: wsfast.Policy) -> None:
    """The backlog of subscribers becomes a policy, unless one is given; other callbacks keep their queue."""

    async def body(plugin: ChannelsPlugin, socket: Any) -> None:
        assert plugin.hub.slow == policy
        async with plugin.start_subscription("a") as subscriber:
            for number in range(10):
                await arrived(plugin, str(number), "a")
            count = options.get("subscriber_max_backlog", 10)
            assert subscriber.qsize == count
            async with subscriber.run_in_background(socket.send_text):  # Litestar cannot unsubscribe a full one
                pass
            assert subscriber.qsize == 0
        oldest = 10 - count if "dropleft" in options.values() else 0
        await socket.send_text(" ".join(map(str, range(oldest, oldest + count))))

    *messages, last = run(body, **options)
    assert messages == str(last).split()


def test_policy_is_checked() -> None:
    """Other objects are no policies."""
    with pytest.raises(TypeError, match="slow"):
        ChannelsPlugin(MemoryChannelsBackend(), arbitrary_channels_allowed=True, slow="drop")  # type: ignore[arg-type]


def test_member_that_cannot_subscribe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it stays in the hub."""

    class Sink:
        def write(self, data: bytes) -> None:
            raise AssertionError("nothing is sent")

        def writable(self) -> bool:
            return True

        def close(self, code: int, reason: str) -> None:
            raise AssertionError("nothing is closed")

    def refuse(*_: Any) -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        fan_out = FanOut(None)
        monkeypatch.setattr(fan_out.hub, "subscribe", refuse)
        with pytest.raises(KeyboardInterrupt):
            Member(fan_out, wsfast.attach(Sink()), "text", ["news"])
        assert fan_out.hub.users() == []
        assert len(fan_out.hub) == 0
        assert not fan_out.members

    asyncio.run(main())
