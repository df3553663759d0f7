"""Numbered messages of equal length: a reader can tell whether one is missing or out of order."""

from __future__ import annotations

import struct
from typing import NamedTuple

import wsfast

__all__ = ["KEYS", "Mark", "Numbered", "newest"]

KEYS = 20
"""Things that the messages are about, in turn."""

_MARK = struct.Struct("!Qd")


class Mark(NamedTuple):
    """The content of a message."""

    number: int
    """From 0 on."""
    published: float
    """When, by the monotonic clock, which all processes share; 0 where it does not matter."""

    @property
    def key(self) -> int:
        """The key of the message."""
        return self.number % KEYS


def newest(messages: int) -> dict[int, int]:
    """Return the number of the last of so many messages about each thing."""
    return {number % KEYS: number for number in range(messages)}


class Numbered:
    """Makes and reads binary messages.

    Args:
        size: Payload of each in bytes, at least 16.
    """

    def __init__(self, size: int) -> None:
        self._filler = bytes(size - _MARK.size)
        self._head = len(wsfast.PreparedMessage(bytes(size)).frame) - size
        self.length = self._head + size
        """Bytes of a frame."""

    def payload(self, number: int, published: float = 0.0) -> bytes:
        """Return a message."""
        return _MARK.pack(number, published) + self._filler

    def frames(self, start: int, stop: int) -> bytes:
        """Return the frames of messages without a time, one behind the other."""
        return b"".join(wsfast.PreparedMessage(self.payload(number)).frame for number in range(start, stop))

    def mark(self, frame: bytes) -> Mark:
        """Read a frame.

        Raises:
            ValueError: If it is none of these.
        """
        mark = Mark(*_MARK.unpack_from(frame, self._head))
        if frame != wsfast.PreparedMessage(self.payload(*mark)).frame:
            raise ValueError(f"{frame[:32]!r} does not begin a frame that was sent")
        return mark
