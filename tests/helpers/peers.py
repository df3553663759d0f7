"""The other ends of connections: raw sockets that shake hands by hand and keep every byte that they read."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import socket
import ssl
import struct
import zlib
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import wsproto.connection
import wsproto.events

__all__ = [
    "TIMEOUT",
    "Frame",
    "Messages",
    "Peer",
    "StreamPeer",
    "accept_upgrade",
    "decode",
    "inflate",
    "parse_frames",
    "until",
]

TIMEOUT = 60.0  # seconds; nothing that passes takes nearly as long, on however busy a machine
CHUNK = 1 << 18
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


async def until(condition: Callable[[], object], what: str = "condition") -> None:
    """Let the event loop run until `condition` holds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + TIMEOUT
    pause = 0.0
    while not condition():
        assert loop.time() < deadline, f"timed out waiting for {what}"
        await asyncio.sleep(pause)
        pause = 0.001


class BasePeer:
    """What reads the bytes of one connection, and remembers them all."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.ended = False

    async def receive(self) -> bytes:
        """Wait for some bytes; none at the end of the stream."""
        raise NotImplementedError

    async def send(self, data: bytes) -> None:
        """Write bytes."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the socket."""
        raise NotImplementedError

    async def read(self, size: int) -> None:
        """Read until at least `size` bytes were received in total."""
        async with asyncio.timeout(TIMEOUT):
            while len(self.received) < size and not self.ended:
                await self.read_some()

    async def read_to_end(self) -> None:
        """Read until the stream ends, in good order or not."""
        async with asyncio.timeout(TIMEOUT):
            while not self.ended:
                await self.read_some()

    async def read_some(self) -> None:
        try:
            data = await self.receive()
        except (OSError, ssl.SSLError):
            data = b""
        self.received += data
        self.ended = not data

    async def upgrade(self, extensions: str | None = None, path: str = "/") -> bytes:
        """Shake hands as a client does, and return the response."""
        request = (
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        )
        if extensions is not None:
            request += f"Sec-WebSocket-Extensions: {extensions}\r\n"
        await self.send(request.encode() + b"\r\n")
        head = await self.read_head()
        assert head.startswith(b"HTTP/1.1 101 "), head
        return head

    async def read_head(self) -> bytes:
        """Read what ends with an empty line, and keep only what follows it."""
        async with asyncio.timeout(TIMEOUT):
            while b"\r\n\r\n" not in self.received:
                await self.read_some()
                assert not self.ended, bytes(self.received)
        head, _, tail = bytes(self.received).partition(b"\r\n\r\n")
        self.received[:] = tail
        return head


class Peer(BasePeer):
    """The other end of a connection over a plain socket, which it reads only when it is told to."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        sock.setblocking(False)
        self.sock = sock

    async def receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.sock, CHUNK)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    def read_now(self, size: int = CHUNK) -> None:
        """Read at most `size` bytes of those that are there."""
        with contextlib.suppress(BlockingIOError):
            self.received += self.sock.recv(size)

    def reset(self) -> None:
        """Drop the connection with a TCP reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self.ended = True
        self.sock.close()


class StreamPeer(BasePeer):
    """The other end of a connection over TLS."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__()
        self.reader, self.writer = reader, writer

    async def receive(self) -> bytes:
        return await self.reader.read(CHUNK)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def close(self) -> None:
        self.ended = True
        self.writer.transport.abort()


def accept_upgrade(request: bytes) -> bytes:
    """Return the response to the opening handshake of a client."""
    for line in request.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"sec-websocket-key":
            accept = base64.b64encode(hashlib.sha1(value.strip() + GUID).digest())
            return (
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )
    raise AssertionError(f"no handshake: {request!r}")


# ---- What the bytes mean


class Frame(NamedTuple):
    """A frame, parsed by hand as RFC 6455, section 5.2, has it."""

    first: int
    key: bytes
    payload: bytes


def parse_frames(stream: bytes) -> tuple[list[Frame], bytes]:
    """Parse all whole frames; return them, unmasked, and what is left of a frame that was cut off."""
    frames = []
    while len(stream) >= 2:
        first, second = stream[:2]
        length, offset = second & 0x7F, 2
        if length == 126:
            length, offset = int.from_bytes(stream[2:4], "big"), 4
        elif length == 127:
            length, offset = int.from_bytes(stream[2:10], "big"), 10
        key = b""
        if second & 0x80:
            key, offset = stream[offset : offset + 4], offset + 4
        payload = stream[offset : offset + length]
        if len(stream) < offset + length:
            break
        if key:
            wide = key * (length // 4 + 1)
            number = int.from_bytes(payload, "big") ^ int.from_bytes(wide[:length], "big")
            payload = number.to_bytes(length, "big")
        frames.append(Frame(first, key, payload))
        stream = stream[offset + length :]
    return frames, stream


def inflate(frames: list[Frame], window_bits: int) -> list[Frame]:
    """Decompress all frames of a stream as RFC 7692, section 7.2.2, has it."""
    decoder = zlib.decompressobj(wbits=-window_bits)
    plain = []
    compressed = False
    for frame in frames:
        first, payload = frame.first, frame.payload
        opcode = first & 0x0F
        if opcode in (1, 2):
            compressed = bool(first & 0x40)
        assert opcode in (1, 2) or not first & 0x40, frame
        if compressed and opcode < 8:
            payload = decoder.decompress(payload + (b"\x00\x00\xff\xff" if first & 0x80 else b""))
        plain.append(frame._replace(first=first & ~0x40, payload=payload))
    return plain


class Messages(NamedTuple):
    """What a stream of bytes says, as wsproto understands it."""

    data: list[str | bytes]
    """Messages, in the order of their ends."""
    pings: list[bytes]
    pongs: list[bytes]
    closed: int | None
    """Code of the close frame."""


def decode(stream: bytes, *, masked: bool = False) -> Messages:
    """Decode a stream of frames with wsproto, which raises if anything is wrong with it."""
    side = wsproto.connection.ConnectionType.SERVER if masked else wsproto.connection.ConnectionType.CLIENT
    connection = wsproto.connection.Connection(side)
    messages = Messages([], [], [], None)
    text: list[str] = []
    binary: list[bytes] = []
    connection.receive_data(bytes(stream))
    for event in connection.events():
        match event:
            case wsproto.events.TextMessage():
                text.append(event.data)
                if event.message_finished:
                    messages.data.append("".join(text))
                    text.clear()
            case wsproto.events.BytesMessage():
                binary.append(bytes(event.data))
                if event.message_finished:
                    messages.data.append(b"".join(binary))
                    binary.clear()
            case wsproto.events.Ping():
                messages.pings.append(bytes(event.payload))
            case wsproto.events.Pong():
                messages.pongs.append(bytes(event.payload))
            case wsproto.events.CloseConnection():
                messages = messages._replace(closed=event.code)
            case _:
                raise AssertionError(f"unexpected {event!r}")
    return messages


async def gather_within(*awaitables: Awaitable[object]) -> None:
    """Wait for all of them, but not forever."""
    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(*awaitables)
