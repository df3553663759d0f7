"""One connection between two processes of one machine: frames with a length and a kind, in both directions.

| bytes | contents                                                                                              |
|-------|-------------------------------------------------------------------------------------------------------|
| 0-3   | length of the contents in bytes                                                                       |
| 4     | kind: 1 hello, 2 interests, 3 confirmation, 4 packet of a relay                                       |
| 5-    | contents: JSON, or a packet                                                                           |
"""

from __future__ import annotations

import asyncio
import json
import logging
import struct
from collections.abc import Callable, Sequence
from typing import Any, cast

from .runtime_directory import check_peer

__all__ = ["CONFIRMATION", "HEADER", "HELLO", "INTERESTS", "LARGEST", "PACKET", "Link"]

logger: logging.Logger = logging.getLogger("wsfast")

HELLO, INTERESTS, CONFIRMATION, PACKET = range(1, 5)

HEADER = struct.Struct(">IB")

LARGEST = 512 << 20
"""Bytes of the contents of the largest frame."""

HIGH = 1 << 20
"""Bytes that may wait to be sent before the publisher waits."""

LIMIT = 16 << 20
"""Bytes that may wait to be sent before the link counts as lost, unless it is a single packet."""


class Link(asyncio.Protocol):
    """One end of a connection.

    Args:
        on_packet: Called with each packet.
        on_control: Called with the link, and kind and contents of each other frame.
        on_error: Called with an exception that `on_packet` has raised.
        on_change: Called when there is room again, and when the connection is closed.
        on_lost: Called with the link when the connection is lost, but not after `abort()` and `close()`.
    """

    def __init__(
        self,
        on_packet: Callable[[bytes], None],
        on_control: Callable[[Link, int, Any], None],
        on_error: Callable[[Exception], None],
        on_change: Callable[[], None],
        on_lost: Callable[[Link], None],
    ) -> None:
        self.peer: str = ""
        """Name of the other process's socket, once it is known."""
        self.ready: bool = False
        """Whether the other end has answered: whether its interests are known."""
        self.confirmed: int = 0
        """The number of the last of our interests that the other end has confirmed."""
        self.full_since: float | None = None
        """Time since when more than `HIGH` bytes have been waiting without interruption."""
        self.is_waited_for: bool = True
        """Whether the publisher waits for room: not if it has waited in vain."""
        self.lost: bool = False
        self._on_packet = on_packet
        self._on_control = on_control
        self._on_error = on_error
        self._on_change = on_change
        self._on_lost = on_lost
        self._rest = bytearray()  # the beginning of a frame
        self._needed = 0  # bytes of rest with which the frame is complete
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Check the other end."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        if self.lost:  # meanwhile
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(HIGH)
        try:
            check_peer(transport.get_extra_info("socket"))
        except OSError as exc:
            logger.warning("a process was refused at a socket of wsfast.relay.local(): %s", exc)
            self.abort()

    def data_received(self, data: bytes) -> None:
        """Process complete frames, and keep the rest."""
        rest = self._rest
        if rest:
            rest += data
            if len(rest) < self._needed:
                return
            data = bytes(rest)
            rest.clear()
        try:
            start = self._process(data)
        except (ValueError, TypeError, LookupError) as exc:
            logger.warning("a process at a socket of wsfast.relay.local() has sent what cannot be read: %s", exc)
            self._rest.clear()
            assert self._transport is not None
            self._transport.abort()
            return
        if start < len(data) and not self.lost:
            rest += data[start:] if start else data

    def _process(self, data: bytes) -> int:
        """Process the complete frames in some bytes; return the index of the rest."""
        start, end, head = 0, len(data), HEADER.size
        self._needed = head
        while end - start >= head:
            size, kind = HEADER.unpack_from(data, start)
            stop = start + head + size
            if size > LARGEST:
                raise ValueError(f"a frame of another process has {size} bytes, more than {LARGEST}")
            if stop > end:
                self._needed = head + size
                break
            contents = data[start + head : stop]
            start = stop
            if kind == PACKET:
                try:
                    self._on_packet(contents)
                except Exception as exc:  # what was not delivered counts as missing
                    self._on_error(exc)
            else:
                self._on_control(self, kind, json.loads(contents))
            if self.lost:
                break
        return start

    def pause_writing(self) -> None:
        """Note since when the link is full."""
        self.full_since = self._loop.time()

    def resume_writing(self) -> None:
        """Note that there is room."""
        self.full_since = None
        self.is_waited_for = True
        self._on_change()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell that the connection is lost, unless it was ended here."""
        self._transport = None
        if not self.lost:
            self.lost = True
            self._on_lost(self)
        self._on_change()

    # ---- For the broker

    def send(self, kind: int, contents: Any) -> None:
        """Send a frame other than a packet."""
        data = json.dumps(contents, separators=(",", ":")).encode()
        self.write((HEADER.pack(len(data), kind), data))

    def write(self, parts: Sequence[bytes]) -> bool:
        """Send bytes; return False if that exceeds the limit, and nothing was sent."""
        transport = self._transport
        if transport is None or self.lost:
            return True
        if self.full_since is not None:
            waiting = transport.get_write_buffer_size()
            if waiting and waiting + sum(map(len, parts)) > LIMIT:
                return False
        transport.write(parts[0] if len(parts) == 1 else b"".join(parts))
        return True

    @property
    def waiting(self) -> int:
        """Bytes that wait to be sent."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    @property
    def closed(self) -> bool:
        """Whether the connection is closed."""
        return self._transport is None

    def abort(self) -> None:
        """Close the connection at once. `on_lost` is not called."""
        self.lost = True
        self._rest.clear()
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close the connection when all is sent. `on_lost` is not called."""
        self.lost = True
        if self._transport is not None:
            self._transport.close()
