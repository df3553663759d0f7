"""A relay between clients and servers that keeps the headers of all frames, so as to see what was compressed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, NamedTuple

__all__ = ["Header", "Tap", "Wire"]

CHUNK = 1 << 18
RSV1 = 0x40


class Header(NamedTuple):
    """What the header of a frame says."""

    opcode: int
    compressed: bool
    length: int


class Headers:
    """The headers of the frames in a stream, which comes in pieces."""

    def __init__(self) -> None:
        self.all: list[Header] = []
        self._begun = bytearray()
        self._skip = 0

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        position = 0
        while position < len(data):
            if self._skip:
                step = min(self._skip, len(data) - position)
                self._skip -= step
            else:
                step = min(self._missing(), len(data) - position)
                self._begun += data[position : position + step]
                if not self._missing():
                    self._end()
            position += step

    def _missing(self) -> int:
        if len(self._begun) < 2:
            return 2 - len(self._begun)
        size = {126: 4, 127: 10}.get(self._begun[1] & 0x7F, 2) + (4 if self._begun[1] & 0x80 else 0)
        return size - len(self._begun)

    def _end(self) -> None:
        first, second = self._begun[:2]
        extended = {126: 2, 127: 8}.get(second & 0x7F, 0)
        length = int.from_bytes(self._begun[2 : 2 + extended], "big") if extended else second & 0x7F
        self.all.append(Header(first & 0x0F, bool(first & RSV1), length))
        self._begun.clear()
        self._skip = length

    def of_messages(self) -> list[Header]:
        """Return those of the first frames of data messages, which alone may say that a message is compressed."""
        return [header for header in self.all if header.opcode in (1, 2)]


class Wire:
    """What went over one connection."""

    def __init__(self) -> None:
        self.response = b""
        self.to_client = Headers()
        self.to_server = Headers()


class Tap:
    """A server that relays each connection to the server that its path tells: `/server/anything`."""

    def __init__(self) -> None:
        self.wires: dict[str, Wire] = {}
        """By path."""
        self.ports: dict[str, int] = {}
        """Of the servers, by their names."""

    async def __aenter__(self) -> Tap:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0, limit=CHUNK)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        path = request.split(b" ", 2)[1].decode()
        wire = self.wires[path] = Wire()
        port = self.ports[path.split("/")[1]]
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port, limit=CHUNK)
        server_writer.write(request)
        wire.response = await server_reader.readuntil(b"\r\n\r\n")
        writer.write(wire.response)
        await asyncio.gather(
            self._pump(server_reader, writer, wire.to_client), self._pump(reader, server_writer, wire.to_server)
        )

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: Headers) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(CHUNK):
                headers.feed(data)
                writer.write(data)
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
