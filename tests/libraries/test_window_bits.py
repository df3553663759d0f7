"""Clients that offer the smallest windows: with 8 bits, which zlib cannot compress for, and with 9."""

from __future__ import annotations

import asyncio
import random
import socket
import types
from typing import Any

import pytest

import wsfast
from helpers import libraries
from helpers.fixtures import Run
from helpers.libraries import LIBRARIES
from helpers.peers import TIMEOUT, Frame, Peer, inflate, parse_frames

OFFERS = [
    "server_max_window_bits=8",
    "client_max_window_bits=8",
    "server_max_window_bits=8; client_max_window_bits=8",
    "server_max_window_bits=8; server_no_context_takeover",
    "server_max_window_bits=9",
    "server_max_window_bits=9; server_no_context_takeover",
]
SERVERS = [name for name, library in LIBRARIES.items() if library.compresses and name != "aiohttp-client"]


class RawClient(Peer):
    """A client that says in its own words what it can decompress, in the shape of one of websockets."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.protocol = types.SimpleNamespace(extensions=[self])
        self.transport = types.SimpleNamespace(abort=self.close)
        self.window_bits = 0
        """Of the server; 0 if it does not compress."""

    async def wait_closed(self) -> None:
        pass

    async def shake_hands(self, parameters: str) -> None:
        """Offer compression, and note what the server makes of it."""
        head = (await self.upgrade(f"permessage-deflate; {parameters}", "/ws")).decode().lower()
        for line in head.splitlines():
            if line.startswith("sec-websocket-extensions:"):
                answer = {name.strip(): value for name, _, value in (one.partition("=") for one in line.split(";"))}
                self.window_bits = int(answer.get("server_max_window_bits") or 15)
                # The server may promise a smaller window, and no larger one than was asked for (section 7.1.2.1).
                asked = parameters.partition("server_max_window_bits=")[2][:1]
                assert self.window_bits <= int(asked or 15), line

    async def messages(self, count: int) -> list[bytes]:
        """Return the payloads of so many data frames, decompressed with a window of just the size that was agreed."""
        async with asyncio.timeout(TIMEOUT):
            while len(frames := data_frames(bytes(self.received))) < count:
                await self.read_some()
                assert not self.ended
        if not self.window_bits:
            assert not any(frame.first & 0x40 for frame in frames)
        return [frame.payload for frame in inflate(frames, self.window_bits or 15)]


def data_frames(stream: bytes) -> list[Frame]:
    return [frame for frame in parse_frames(stream)[0] if frame.first & 0x0F in (0, 1, 2)]


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("parameters", OFFERS)
def test_smallest_window(core: Any, run: Run, monkeypatch: pytest.MonkeyPatch, name: str, parameters: str) -> None:
    """Whatever the library agrees to, what is broadcast and published can be decompressed with a window of that size.

    A library may refuse to compress, as it does without wsfast.
    """
    rng = random.Random(8)
    words = [rng.randbytes(40).hex() for _ in range(12)]  # repeated from farther away than 256 bytes
    messages = [" ".join(rng.choice(words) for _ in range(30)) + f" {number}" for number in range(12)]

    async def dial(address: Any, **_: Any) -> RawClient:
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
        client = RawClient(sock)
        await client.shake_hands(parameters)
        return client

    if name == "tornado" and "server_max_window_bits=8" in parameters:
        pytest.skip("Tornado itself refuses the handshake with status 500")

    async def main() -> None:
        monkeypatch.setattr(libraries, "dial", dial)
        async with LIBRARIES[name].open(compress=True, small=False) as connect:
            connection, client = await connect()
            channel = wsfast.Channel()
            channel.subscribe(connection)
            for number, message in enumerate(messages):
                match number % 4:
                    case 0 | 1:
                        wsfast.broadcast([connection], message)
                    case 2:
                        channel.publish(message)
                        channel.flush()
                    case 3:
                        await LIBRARIES[name].send(connection, message)
            assert [payload.decode() for payload in await client.messages(len(messages))] == messages

    run(main)
