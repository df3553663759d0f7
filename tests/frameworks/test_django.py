"""The channel layer and the consumers of `wsfast.django`, under servers of several makers."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import BaseChannelLayer, InMemoryChannelLayer, channel_layers
from channels.testing import WebsocketCommunicator
from django.core.exceptions import ImproperlyConfigured
from websockets.exceptions import ConnectionClosed

from frameworks.django_app import LARGE, event_of, expected
from helpers import brokers, processes
from helpers.asgi import python_path, serve
from helpers.libraries import dial
from helpers.peers import TIMEOUT, until
from helpers.ports import free_port
from wsfast._django import LoopHub
from wsfast.django import BroadcastMixin, ChannelLayer

APP = "frameworks.django_app:app"
COMMANDS = {
    "uvicorn": ["uvicorn", "--port", "{port}", "--no-access-log", APP],
    "daphne": ["daphne", "--port", "{port}", "--verbosity", "0", APP],
    "hypercorn": ["hypercorn", "--bind", "127.0.0.1:{port}", APP],
}


def environment(name: str) -> dict[str, Any]:
    return {"WSFAST_TEST_INSTALL": "1"} if name == "uvicorn" else {}


async def connect(stack: contextlib.AsyncExitStack, port: int, path: str = "/ws", **options: Any) -> Any:
    client = await dial(("127.0.0.1", port), path=path, **({"compress": True, "small": False} | options))
    stack.callback(client.transport.abort)
    while await client.recv() != "welcome":  # another one may play meanwhile
        pass
    return client


async def until_end(client: Any) -> list[str]:
    messages: list[str] = []
    while not messages or messages[-1] != "end":
        messages.append(await client.recv())
    return messages


async def check_all(clients: list[Any], count: int, player: Any = None) -> None:
    """All get all messages."""
    for client, messages in zip(clients, await asyncio.gather(*map(until_end, clients)), strict=True):
        assert messages == expected(count, own=client is player)


async def until_alone(client: Any) -> None:
    """Wait until no other client is a member."""
    count = ""
    while count != "1":
        await client.send("count")
        count = await client.recv()


async def get(url: str) -> None:
    """Request a page."""
    async with asyncio.timeout(TIMEOUT):
        await asyncio.to_thread(lambda: urllib.request.urlopen(url).read())


@pytest.mark.parametrize("name", COMMANDS)
def test_servers(name: str) -> None:
    """Everything arrives from consumers, in order with their own messages, and from views; then connections end."""

    async def main() -> None:
        async with serve(COMMANDS[name], "", **environment(name)) as port, contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(TIMEOUT):
                clients = [await connect(stack, port, path, compress=path == "/ws") for path in ("/ws", "/sync", "/ws")]
                for player, count in ((clients[0], 100), (clients[1], 20), (clients[2], 100)):
                    await player.send(f"play {count}")
                    await check_all(clients, count, player)
                await asyncio.gather(get(f"http://127.0.0.1:{port}/view/30"), check_all(clients, 30))
                leaving = clients.pop()
                await leaving.send("close")
                for client in (leaving, *clients):
                    assert [await client.recv() for _ in range(20)] == [f"last words {one}" for one in range(20)]
                with pytest.raises(ConnectionClosed) as closed:
                    await leaving.recv()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 4321
                clients.pop().transport.abort()
                await until_alone(clients[0])

    asyncio.run(main())


@pytest.mark.parametrize("name", ["uvicorn", "hypercorn"])  # daphne buffers without a limit, until its keepalive fails
def test_stalled(name: str) -> None:
    """The connection of a client that does not read is closed, while another client gets everything."""

    async def main() -> None:
        async with serve(COMMANDS[name], "", **environment(name)) as port, contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(TIMEOUT):
                healthy = await connect(stack, port)
                stalled = await connect(stack, port, small=True)
                stalled.transport.pause_reading()
                await healthy.send("stall")
                numbers: dict[Any, int] = {"next": 0, LARGE: 0}
                while (message := await healthy.recv()) != "stalled":
                    numbers[message] += 1
                assert numbers["next"] == numbers[LARGE] > 0
                await until_alone(healthy)

    asyncio.run(main())


@pytest.mark.parametrize("kind", brokers.KINDS)
def test_relay(kind: str, tmp_path: Path) -> None:
    """Events reach consumers in other processes, also from a process without consumers that ends at once."""
    if (reason := brokers.why_not(kind)) is not None:
        pytest.skip(reason)

    async def main(url: str) -> None:
        settings: dict[str, Any] = {"WSFAST_TEST_RELAY": url}
        async with (
            contextlib.AsyncExitStack() as stack,
            serve(COMMANDS["uvicorn"], "", **environment("uvicorn"), **settings) as one,
            serve(COMMANDS["daphne"], "", **settings) as other,
            asyncio.timeout(TIMEOUT),
        ):
            clients = [await connect(stack, port) for port in (one, other, one)]
            await clients[0].send("play 50")
            await check_all(clients, 50, clients[0])
            command = sys.executable, "-W", "error", "-m", "frameworks.django_app", "20"
            path = os.environ | settings | {"PYTHONPATH": python_path()}
            await asyncio.gather(
                asyncio.to_thread(lambda: processes.run(*command, check=True, env=path)), check_all(clients, 20)
            )
            await asyncio.gather(get(f"http://127.0.0.1:{other}/view/20"), check_all(clients, 20))

    with brokers.started(kind, tmp_path) as broker:
        asyncio.run(main(broker.url))


# ---- In this process, with the communicator of Channels in the place of a server


@pytest.fixture
def layer() -> Any:
    """A layer that consumers use."""
    layer = ChannelLayer(layer={"BACKEND": "channels.layers.InMemoryChannelLayer", "CONFIG": {"capacity": 7}})
    old = channel_layers.set("default", layer)
    yield layer
    channel_layers.set("default", old)


class Member(BroadcastMixin, AsyncWebsocketConsumer):  # type: ignore[misc]
    """A consumer that does what a test has it do."""

    groups = ("room",)

    def __init__(self) -> None:
        super().__init__()
        self.may_accept = asyncio.Event()
        self.may_accept.set()
        self.left = asyncio.Event()
        self.connecting = asyncio.Event()

    async def connect(self) -> None:
        self.connecting.set()
        await self.may_accept.wait()
        await self.accept()

    async def receive(self, text_data: str = "", bytes_data: bytes | None = None) -> None:
        if text_data == "fail":
            raise ValueError("it fails")
        await self.send("received")

    async def room_say(self, event: Any) -> None:
        await self.send(f"said {event['what']}")

    async def disconnect(self, code: int) -> None:
        await self.send("ignored, since the client has left")
        self.left.set()


class Client(WebsocketCommunicator):  # type: ignore[misc]
    """A client of a consumer."""

    def __init__(self) -> None:
        self.consumer = Member()
        super().__init__(self.consumer, "/")

    async def recv(self) -> str | bytes:
        data: str | bytes = await self.receive_from(timeout=TIMEOUT)
        return data

    @classmethod
    async def open(cls) -> Client:
        client = cls()
        assert await client.connect(timeout=TIMEOUT) == (True, None)
        layer, channel = client.consumer.channel_layer, client.consumer.channel_name
        await until(lambda: not isinstance(layer, ChannelLayer) or layer._consumers[channel]._accepted, "the accept")
        return client

    async def leave(self) -> None:
        await self.disconnect(timeout=TIMEOUT)


def test_events(layer: Any) -> None:
    """Clients get text and bytes of the group, and of their channel alone; other events call the consumer."""

    async def main() -> None:
        one, other = await Client.open(), await Client.open()
        (connection, _) = layer.hubs[0].subscribers("members")
        assert connection.id.startswith("ASGI connection")
        await layer.group_send("room", event_of("text"))
        await layer.group_send("room", {"type": "wsfast.send", "bytes": b"bytes", "text": None})
        for client in (one, other):
            assert [await client.recv(), await client.recv()] == ["text", b"bytes"]
        await layer.group_send("room", {"type": "room.say", "what": "hello"})
        assert [await one.recv(), await other.recv()] == ["said hello"] * 2
        for event in (event_of("alone"), {"type": "wsfast.send", "bytes": b"alone"}):
            await layer.send(one.consumer.channel_name, event)
        assert [await one.recv(), await one.recv()] == ["alone", b"alone"]
        await one.leave()
        assert one.consumer.left.is_set()
        await until(lambda: len(layer.hubs[0]) == 1, "the end of the subscription")
        await layer.group_send("room", event_of("for one"))
        assert await other.recv() == "for one"
        await other.leave()
        await until(lambda: not layer.hubs[0].topics(), "the end of all topics")
        await layer.group_send("room", event_of("for nobody"))

    asyncio.run(main())


def test_events_before_accept(layer: Any) -> None:
    """A consumer that was added to a group before it accepts misses nothing, unless it leaves the group again."""

    async def main() -> None:
        client = Client()
        client.consumer.may_accept.clear()
        connected = asyncio.create_task(client.connect(timeout=TIMEOUT))
        await client.consumer.connecting.wait()
        await layer.group_add("room", client.consumer.channel_name)
        await layer.group_add("other", client.consumer.channel_name)
        await layer.group_send("other", event_of("of the group that it leaves"))
        await layer.group_discard("other", client.consumer.channel_name)
        await layer.group_send("room", event_of("first"))
        await layer.group_send("room", {"type": "wsfast.send", "bytes": b"second"})
        client.consumer.may_accept.set()
        await layer.group_send("room", event_of("third"))
        assert await connected == (True, None)
        await layer.group_send("room", event_of("fourth"))
        assert [await client.recv() for _ in range(4)] == ["first", b"second", "third", "fourth"]
        await client.leave()

        rejected = Client()
        rejected.consumer.may_accept.clear()
        connected = asyncio.create_task(rejected.connect(timeout=TIMEOUT))
        await rejected.consumer.connecting.wait()
        await layer.group_send("room", event_of("to nobody"))
        connected.cancel()
        await asyncio.wait([connected])
        rejected.future.cancel()
        await asyncio.wait([rejected.future])
        assert layer.hubs[0].topics() == []

    asyncio.run(main())


def test_groups_change(layer: Any) -> None:
    """Consumers join and leave groups at any time; joining twice changes nothing; all groups can be removed."""

    async def main() -> None:
        client = await Client.open()
        channel = client.consumer.channel_name
        for _ in range(2):
            await layer.group_add("other", channel)
        for text in ("one", "two"):
            await layer.group_send("other", event_of(text))
            await layer.group_discard("other", channel)
        await layer.group_discard("other", channel)
        await layer.group_add("other", "no.consumer")
        await layer.group_send("room", event_of("three"))
        assert [await client.recv(), await client.recv()] == ["one", "three"]
        await layer.flush()
        await layer.group_send("room", event_of("four"))
        await layer.group_add("room", channel)
        await layer.group_send("room", event_of("five"))
        assert await client.recv() == "five"
        await client.send_to("any")
        assert await client.recv() == "received"
        await client.leave()
        await layer.group_add("room", channel)
        assert layer.hubs[0].topics() == []
        await layer.close()
        assert layer.hubs == []

    asyncio.run(main())


def test_consumer_that_fails(layer: Any) -> None:
    """A consumer that raises an exception leaves nothing behind."""

    async def main() -> None:
        client = await Client.open()
        await client.send_to("fail")
        with pytest.raises(ValueError, match="it fails"):
            await client.wait(TIMEOUT)
        assert layer.hubs[0].topics() == []
        assert not layer._consumers

    asyncio.run(main())


def test_many_in_a_row(layer: Any) -> None:
    """A loop of group_send() lets messages leave."""

    async def main() -> None:
        client = await Client.open()
        for number in range(2000):
            await layer.group_send("room", event_of(str(number)))
        assert [await client.recv() for _ in range(2000)] == [str(number) for number in range(2000)]
        assert len(layer.hubs[0]) == 1
        await client.leave()

    asyncio.run(main())


def test_other_threads(layer: Any) -> None:
    """Groups are sent to, joined and left from event loops in other threads; closed event loops are forgotten."""

    async def main() -> None:
        client = await Client.open()

        async def elsewhere() -> None:
            await layer.group_add("other", client.consumer.channel_name)
            for number in range(100):
                await layer.group_send("other", event_of(str(number)))
            await layer.group_discard("other", client.consumer.channel_name)

        await asyncio.to_thread(asyncio.run, elsewhere())
        assert [await client.recv() for _ in range(100)] == [str(number) for number in range(100)]
        await layer.group_send("other", event_of("nobody"))
        await layer.group_send("room", event_of("all"))
        assert await client.recv() == "all"
        await client.leave()

    for _ in range(2):
        asyncio.run(main())
    asyncio.run(layer.group_send("room", event_of("nobody")))
    assert layer.hubs == []
    hubs: list[LoopHub] = []

    async def closes() -> None:
        hubs.append(LoopHub(None, None))

    asyncio.run(closes())  # after group_send() has looked which event loops there are
    asyncio.run(hubs[0].publish("room", "nobody"))


def test_several_loops(layer: Any) -> None:
    """Consumers of all event loops of a process get an event."""
    ready, done = threading.Barrier(2, timeout=TIMEOUT), threading.Barrier(2, timeout=TIMEOUT)

    async def main(first: bool) -> None:
        client = await Client.open()
        await asyncio.to_thread(ready.wait)
        if first:
            await layer.group_send("room", event_of("to all"))
        assert await client.recv() == "to all"
        await asyncio.to_thread(done.wait)
        await client.leave()

    async def both() -> None:
        await asyncio.gather(main(True), asyncio.to_thread(asyncio.run, main(False)))

    asyncio.run(both())


def test_loop_that_is_busy(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender in another thread does not wait forever for an event loop, and then nothing is sent."""
    monkeypatch.setattr("wsfast._django.TIMEOUT", 0.01)

    async def main() -> None:
        client = await Client.open()
        thread = threading.Thread(target=run_elsewhere)
        thread.start()
        thread.join()  # blocks this event loop
        for text in ("next", "last"):
            await layer.group_send("room", event_of(text))
            assert await client.recv() == text
        await client.leave()

    def run_elsewhere() -> None:
        with pytest.raises(TimeoutError):
            asyncio.run(layer.group_send("room", event_of("late")))
        refused.append(True)

    refused: list[bool] = []
    asyncio.run(main())
    assert refused == [True]


def test_another_layer() -> None:
    """With another channel layer, the consumer sends the events."""

    async def main() -> None:
        layer = InMemoryChannelLayer()
        old = channel_layers.set("default", layer)
        try:
            client = await Client.open()
            await layer.group_send("room", event_of("hello"))
            assert await client.recv() == "hello"
            await client.leave()
        finally:
            channel_layers.set("default", old)

    asyncio.run(main())


def test_other_scopes(layer: Any) -> None:
    """A consumer that is called for something else is left alone."""
    called: list[Any] = []

    class Base:
        async def __call__(self, *arguments: Any) -> None:
            called.append(arguments)

    class Plain(BroadcastMixin, Base):
        pass

    asyncio.run(Plain()({"type": "http"}, 1, 2))
    assert called == [({"type": "http"}, 1, 2)]


def test_fork(layer: Any) -> None:
    """A child process does not send to the consumers of its parent."""

    async def main() -> None:
        client = await Client.open()
        layer._process = -1
        assert layer.hubs == []
        await layer.group_send("room", event_of("nobody"))
        assert await client.receive_nothing(timeout=0)
        client.future.cancel()
        await asyncio.wait([client.future])

    asyncio.run(main())


def test_rest_of_the_layer(layer: Any) -> None:
    """Everything else is that of the other layer."""
    assert isinstance(layer.inner, InMemoryChannelLayer)
    assert layer.extensions == ["groups", "flush"]
    assert layer.capacity == layer.get_capacity("any") == 7
    with pytest.raises(AttributeError, match="nothing"):
        _ = layer.nothing
    with pytest.raises(AttributeError, match="inner"):
        _ = ChannelLayer.__new__(ChannelLayer).nothing

    async def main() -> None:
        channel = await layer.new_channel()
        await layer.send(channel, {"type": "test"})
        assert await layer.receive(channel) == {"type": "test"}
        await layer.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "message", [{}, {"text": b"bytes"}, {"bytes": "text"}, {"text": "both", "bytes": b"both"}, {"text": None}]
)
def test_wrong_events(layer: Any, message: dict[str, Any]) -> None:
    """An event has text or bytes."""
    with pytest.raises(TypeError, match=r"wsfast\.send"):
        asyncio.run(layer.group_send("room", {"type": "wsfast.send"} | message))
    with pytest.raises(TypeError, match="Group name"):
        asyncio.run(layer.group_send("a room", event_of("hello")))


@pytest.mark.parametrize(
    "config",
    [{"layer": "channels.layers.InMemoryChannelLayer"}, {"layer": {}}, {"relay": 1}, {"relay": {}}, {"slow": 1}],
)
def test_wrong_settings(config: dict[str, Any]) -> None:
    """Settings are checked at once."""
    with pytest.raises(ImproperlyConfigured, match=next(iter(config))):
        ChannelLayer(**config)


def test_too_old_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The import says which release is needed."""
    monkeypatch.delattr(BaseChannelLayer, "require_valid_group_name")
    monkeypatch.delitem(sys.modules, "wsfast.django")
    with pytest.raises(ModuleNotFoundError, match=r'too old; install it with: pip install "channels>=4.2"'):
        importlib.import_module("wsfast.django")


# ---- Relays in this process


@pytest.fixture
def broker(tmp_path: Path) -> Any:
    """A server of Redis."""
    if (reason := brokers.why_not("redis")) is not None:
        pytest.skip(reason)
    with brokers.started("redis", tmp_path) as broker:
        yield broker


def test_relay_in_one_process(broker: Any) -> None:
    """An event arrives once, from the event loop of the consumers, from other threads, and from another layer."""
    config = {"url": broker.url, "prefix": "test"}

    async def main() -> None:
        layer, publisher = ChannelLayer(relay=config), ChannelLayer(relay=config)
        old = channel_layers.set("default", layer)
        try:
            client = await Client.open()
            await layer.group_add("other", client.consumer.channel_name)
            await asyncio.to_thread(asyncio.run, layer.group_send("room", event_of("from a thread")))
            await layer.group_send("other", event_of("from the loop"))
            assert [await client.recv(), await client.recv()] == ["from a thread", "from the loop"]
            for text in ("from a publisher", "again"):
                await publisher.group_send("room", event_of(text))
                assert await client.recv() == text
            await client.leave()
        finally:
            channel_layers.set("default", old)
            await publisher.close()
            await layer.close()
        assert layer.hubs == []

    asyncio.run(main())


def test_relay_without_a_broker(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Sending ends where no broker answers; consumers of the same process get the event."""
    monkeypatch.setattr("wsfast._django.CONFIRM_TIMEOUT", 0.01)
    config = {"url": f"redis://127.0.0.1:{free_port()}", "timeout": 0.01}

    async def main() -> None:
        layer = ChannelLayer(relay=config)
        old = channel_layers.set("default", layer)
        try:
            await layer.group_send("room", event_of("to nobody"))
            client = await Client.open()
            await layer.group_send("room", event_of("to this process"))
            assert await client.recv() == "to this process"
            await client.leave()
        finally:
            channel_layers.set("default", old)
            await layer.close()

    asyncio.run(main())
    assert "is not connected to the broker" in caplog.text


def test_relay_that_cannot_be_created() -> None:
    """The error reaches those who send."""
    layer = ChannelLayer(relay={"url": "redis://localhost", "prefix": "not a topic"})
    with pytest.raises(ValueError, match="prefix"):
        asyncio.run(layer.group_send("room", event_of("hello")))
    asyncio.run(layer.close())
