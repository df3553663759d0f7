"""Connections that were opened without a handshake, and clients that decompress with the negotiated window only."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
import zlib
from collections import deque
from typing import Any, NamedTuple, TypeAlias

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import ServerConnection
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

import wsfast
from helpers.peers import parse_frames
from wsfast.connections.websockets import SEND_IN_PROGRESS

__all__ = ["Inflater", "Message", "Spec", "Wire", "connect", "extension_of", "message_of", "tick"]

Message: TypeAlias = tuple[int, bytes]
"""Opcode and payload."""

SLICE = 64  # bytes that are decompressed at a time: zlib checks distances against its window only in between
PRESET = b'{"symbol": "", "price": "", "size": ""}'


class Inflater:
    """Understands what a connection has sent, as RFC 6455 and RFC 7692 have it; made of zlib's decoder alone.

    Args:
        bits: Base-2 logarithm of the size of the window; None if no compression was negotiated.
        takeover: Whether the window is kept from one message to the next.
        preset: What the window is filled with at first.
        masked: Whether frames must be masked.
    """

    def __init__(self, bits: int | None, *, takeover: bool = True, preset: bytes = b"", masked: bool = False) -> None:
        self.bits, self.takeover, self.preset, self.masked = bits, takeover, preset, masked
        self.messages: deque[Message] = deque()
        self.pings: deque[bytes] = deque()
        self.tail = b""
        self.last = b""
        """What was fed last."""
        self._decoder: Any = self._new_decoder()
        self._opcode: int | None = None  # of the message that has begun
        self._compressed = False
        self._parts: list[bytes] = []

    def _new_decoder(self) -> Any:
        if self.bits is None:
            return None
        return zlib.decompressobj(wbits=-self.bits, zdict=self.preset)

    def feed(self, data: bytes) -> None:
        """Take bytes of the stream."""
        self.last = data
        frames, self.tail = parse_frames(self.tail + data)
        for first, key, payload in frames:
            assert bool(key) == self.masked
            assert not first & 0x30, "RSV2 or RSV3 is set"
            opcode, final, compressed = first & 0x0F, bool(first & 0x80), bool(first & 0x40)
            if opcode == 9:
                assert final
                assert not compressed
                self.pings.append(payload)
                continue
            if opcode == 0:
                assert self._opcode is not None, "a continuation of nothing"
                assert not compressed, "RSV1 is set in a continuation"
            else:
                assert opcode in (1, 2), opcode
                assert self._opcode is None, "a message in the middle of another"
                self._opcode, self._compressed = opcode, compressed
                if compressed and not self.takeover:
                    self._decoder = self._new_decoder()
            self._parts.append(self.inflate(payload, final=final) if self._compressed else payload)
            if final:
                assert self._opcode is not None
                self.messages.append((self._opcode, b"".join(self._parts)))
                self._opcode = None
                self._parts.clear()

    def inflate(self, data: bytes, *, final: bool = True) -> bytes:
        """Decompress the payload of a frame."""
        assert self._decoder is not None, "compressed, but that was not negotiated"
        rest = data + b"\x00\x00\xff\xff" if final else data
        parts = []
        try:
            while rest:
                parts.append(self._decoder.decompress(rest, SLICE))
                rest = self._decoder.unconsumed_tail
            while part := self._decoder.decompress(b"", SLICE):
                parts.append(part)
        except zlib.error as exc:
            raise AssertionError(f"cannot be decompressed: {exc}") from exc
        assert not self._decoder.eof, "the stream has ended"
        return b"".join(parts)


class Spec(NamedTuple):
    """What a connection is like."""

    kind: str = "stock"
    """With the extension that websockets makes ("stock") or our factory ("factory"), the former with a dictionary
    ("preset"), or with none ("plain")."""
    bits: int = 12
    takeover: bool = True
    settings: tuple[tuple[str, int], ...] = (("memLevel", 5),)
    client: bool = False
    """Whether it is the client's side of a connection, which sends masked frames."""
    small: bool = False
    """Whether its buffers are small."""
    debug: bool = False
    """Whether it logs its frames."""


def extension_of(spec: Spec) -> PerMessageDeflate | None:
    """Return a new extension of a connection."""
    settings: dict[str, Any] = dict(spec.settings)
    if spec.kind == "plain":
        return None
    if spec.kind == "factory":
        factory = wsfast.ServerPerMessageDeflateFactory(
            server_no_context_takeover=not spec.takeover, server_max_window_bits=spec.bits, compress_settings=settings
        )
        return factory.process_request_params([], [])[1]
    if spec.kind == "preset":
        settings["zdict"] = PRESET
    return PerMessageDeflate(False, not spec.takeover, 15, spec.bits, settings)


class Server:
    """Stands in for the server of a connection, under all names that it has had over the years."""

    def __init__(self) -> None:
        self.handler_tasks: set[object] = set()

    async def handler(self, connection: Any) -> None:
        """Do nothing."""

    def start_connection_handler(self, connection: Any) -> None:
        """Do nothing."""


def silent(name: str, level: int) -> logging.Logger:
    logger = logging.getLogger(name)
    logger.propagate = False
    logger.setLevel(level)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    return logger


LOGGERS = {False: silent("wsfast.tests.quiet", logging.CRITICAL), True: silent("wsfast.tests.debug", logging.DEBUG)}


class Wire:
    """One connection, the client at its other end, and what that must receive."""

    def __init__(self, spec: Spec, connection: Any, sock: socket.socket) -> None:
        self.spec = spec
        self.connection = connection
        self.sock = sock
        self.inflater = Inflater(
            None if spec.kind == "plain" else spec.bits,
            takeover=spec.takeover,
            preset=PRESET if spec.kind == "preset" else b"",
            masked=spec.client,
        )
        self.expected: deque[tuple[int, bytes | bytearray]] = deque()
        self.pings: deque[bytes] = deque()
        self.fragments: asyncio.Queue[Any] | None = None
        self.reading = True
        self.shut = False
        """Whether transports refuse to write."""
        self.lossy = False
        """Whether what is underway may be lost."""
        self.ended = False
        """Whether the client has seen the end of the stream, or will not look."""

    @property
    def encoder(self) -> Any:
        """What compresses its messages."""
        return self.connection.protocol.extensions[0].encoder

    @property
    def fragmenting(self) -> bool:
        """Whether a fragmented message is being sent."""
        return getattr(self.connection, SEND_IN_PROGRESS) is not None

    @property
    def accepts(self) -> bool:
        """Whether a broadcast is to reach it."""
        return self.connection.protocol.state is State.OPEN and not self.fragmenting and not self.shut

    @property
    def buffered(self) -> int:
        """Bytes that the transport has not written yet."""
        return int(self.connection.transport.get_write_buffer_size())

    def expect(self, opcode: int, payload: bytes | bytearray) -> None:
        """Have the client wait for one more message."""
        self.expected.append((opcode, payload))

    def read(self, size: int = 1 << 16) -> None:
        """Read all that is there, and compare it with what is expected."""
        try:
            while data := self.sock.recv(size):
                self.inflater.feed(data)
            self.ended = True
        except BlockingIOError:
            pass
        except OSError:
            self.ended = True
        self.compare()

    def compare(self) -> None:
        """Compare what has arrived with what is expected."""
        received = self.inflater
        while received.messages:
            assert self.expected, f"unexpected {received.messages[0]!r:.200}"
            expected = self.expected.popleft()
            assert received.messages.popleft() == expected, self.spec
        while received.pings:
            assert received.pings.popleft() == self.pings.popleft()

    async def settle(self) -> None:
        """Read until all has arrived that was sent, unless the client does not read."""
        if not self.reading or self.ended:
            return
        self.read()
        turns = 0
        while self.buffered and not self.ended:
            await asyncio.sleep(0)
            self.read()
            turns += 1
            assert turns < 100_000, "the transport does not get rid of what it has buffered"
        if not self.lossy:
            assert not self.pings
            assert len(self.expected) == self.fragmenting, "messages are missing"

    def close(self) -> None:
        """Close both ends."""
        self.ended = True
        self.sock.close()
        if not self.connection.connection_lost_waiter.done():
            self.connection.transport.abort()


async def connect(spec: Spec) -> Wire:
    """Open a connection over a pair of sockets."""
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
        if spec.small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    protocol: Any
    connection: Any
    if spec.client:
        protocol = ClientProtocol(parse_uri("ws://localhost/"), state=State.OPEN, logger=LOGGERS[spec.debug])
        connection = ClientConnection(protocol, ping_interval=None)
    else:
        protocol = ServerProtocol(state=State.OPEN, logger=LOGGERS[spec.debug])
        connection = ServerConnection(protocol, Server(), ping_interval=None)  # type: ignore[arg-type]
    extension = extension_of(spec)
    if extension is not None:
        protocol.extensions = [extension]
    await asyncio.get_running_loop().create_connection(lambda: connection, sock=ours)
    return Wire(spec, connection, theirs)


# ---- Messages


def tick(number: int, size: int = 260) -> str:
    """Return a message like those before it, and not the same."""
    chance = random.Random(number)
    text = "[" + ", ".join(
        json.dumps(
            {
                "symbol": chance.choice(["AAPL", "MSFT", "GOOG", "AMZN", "NVDA"]),
                "price": f"{chance.uniform(10, 999):.4f}",
                "size": chance.randrange(10_000),
                "sequence": number,
            }
        )
        for _ in range(size // 75 + 1)
    )
    return text[:size]


def message_of(kind: str, number: int, log: bytes | bytearray = b"") -> str | bytes:
    """Return a message of some kind, always the same for the same number; an echo is made of what was sent before."""
    chance = random.Random(number)
    match kind:
        case "echo":
            parts = []
            for _ in range(chance.randint(1, 8)):
                start = len(log) - chance.randint(0, chance.choice([300, 600, 1100, 5000, 40_000]))
                parts.append(log[max(start, 0) :][: chance.randint(5, 300)])
            return b"".join(parts)
        case "tick":
            return tick(number, chance.choice([200, 260, 300]))
        case "small":
            return tick(number, chance.randint(14, 66))
        case "tiny":
            return chance.randbytes(chance.randint(0, 17))
        case "empty":
            return ""
        case "similar":
            return tick(number % 3)
        case "binary":
            return tick(number).encode()
        case "noise":
            return chance.randbytes(chance.randint(20, 700))
        case "window":
            return tick(number, (1 << chance.randint(9, 13)) + chance.choice([-263, -262, -261, -1, 0, 1]))
        case "large":
            return tick(number, chance.randint(1000, 10_000))
        case "huge":
            return tick(number, chance.randint(30_000, 80_000))
        case "noise, huge":
            return chance.randbytes(chance.randint(30_000, 50_000))
    raise AssertionError(kind)
