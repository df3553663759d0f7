"""The channel layer and the consumers of `wsfast.django`, under servers of several makers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import InMemoryChannelLayer, channel_layers
from channels.testing import WebsocketCommunicator
from django.core.exceptions import ImproperlyConfigured
from websockets.exceptions import ConnectionClosed

import wsfast
from frameworks.django_app import GROUP, Room, event_of, expected
from frameworks.test_asgi import TESTS, serve
from helpers import brokers, processes
from helpers.libraries import dial
from helpers.peers import TIMEOUT, until
from wsfast.django import BroadcastMixin, ChannelLayer

APP = "frameworks.django_app:app"
COMMANDS = {
    "uvicorn": ["uvicorn", "--port", "{port}", "--no-access-log", APP],
    "daphne": ["daphne", "--port", "{port}", "--verbosity", "0", APP],
    "hypercorn": ["hypercorn", "--bind", "127.0.0.1:{port}", APP],
}


def environment(name: str) -> dict[str, str]:
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
                count = ""
                while count != "1":
                    await clients[0].send("count")
                    count = await clients[0].recv()

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
                numbers = {"next": 0, bytes(100_000): 0}
                while (message := await healthy.recv()) != "stalled":
                    numbers[message] += 1
                assert numbers["next"] == numbers[bytes(100_000)] > 0
                count = ""
                while count != "1":
                    await healthy.send("count")
                    count = await healthy.recv()

    asyncio.run(main())


@pytest.mark.parametrize("kind", brokers.KINDS)
def test_relay(kind: str, tmp_path: Path) -> None:
    """Events reach consumers in other processes, also from a process without consumers that ends at once."""
    if (reason := brokers.why_not(kind)) is not None:
        pytest.skip(reason)

    async def main(url: str) -> None:
        settings = {"WSFAST_TEST_RELAY": url}
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
            path = os.environ | settings | {"PYTHONPATH": str(TESTS)}
            await asyncio.gather(
                asyncio.to_thread(lambda: processes.run(*command, check=True, env=path)), check_all(clients, 20)
            )
            await asyncio.gather(get(f"http://127.0.0.1:{other}/view/20"), check_all(clients, 20))

    with brokers.started(kind, tmp_path) as broker:
        asyncio.run(main(broker.url))
