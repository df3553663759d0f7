"""The messages of a soak, each of which says what it is, so that whoever gets it can tell whether it is right.

One of at least `HEAD` bytes begins with a head in hexadecimal digits: a checksum of all that follows, the source, how
its messages are ordered, the number that the source has given it, its key and the length of its payload. A shorter one
has no number: its first byte says the feed, and the rest follows from that. An empty one says nothing.
"""

from __future__ import annotations

import enum
import struct
from binascii import crc32, hexlify, unhexlify
from typing import NamedTuple

__all__ = [
    "FEED",
    "GENERATION",
    "HEAD",
    "Head",
    "Order",
    "WrongError",
    "encode",
    "encode_short",
    "parse",
    "parse_short",
]

HEAD = 32
FEED = 256
"""Sources of one feed; so much is a feed's number times its first source."""

GENERATION = 10_000
"""What is added to the number of a client that comes back."""

_HEAD = struct.Struct(">IHBIHBH")
_TEXT = 0x10
_unpack = _HEAD.unpack


class WrongError(Exception):
    """A message is not what was sent."""


class Order(enum.IntEnum):
    """What holds for the numbers of the messages that one connection gets from a source."""

    STRICT = 0
    """Each is one more than that before."""
    GAPS = 1
    """Each is greater than that before."""
    KEYS = 2
    """Each is greater than that of the message before with the same key."""


class Head(NamedTuple):
    """What a message says of itself."""

    source: int
    order: int
    number: int
    key: int


def encode(source: int, order: Order, number: int, key: int, payload: bytes, *, text: bool) -> bytes:
    """Return a message; with `text`, the payload must be UTF-8."""
    length = len(payload)
    head = _HEAD.pack(0, source, order | (_TEXT if text else 0), number, key, length >> 16, length & 0xFFFF)
    rest = hexlify(head[4:]) + payload
    return b"%08x" % crc32(rest) + rest


def parse(data: bytes | memoryview, *, text: bool) -> Head:
    """Return what a message says of itself.

    Raises:
        WrongError: If it is not what was sent.
    """
    try:
        checksum, source, order, number, key, high, low = _unpack(unhexlify(data[:HEAD]))
    except ValueError:
        raise WrongError(f"no head: {bytes(data[:HEAD])!r}") from None
    if crc32(data[8:]) != checksum or len(data) != HEAD + (high << 16 | low):
        raise WrongError(f"wrong checksum or length {len(data)}: {bytes(data[:HEAD])!r}")
    if bool(order & _TEXT) is not text:
        raise WrongError(f"wrong opcode: {bytes(data[:HEAD])!r}")
    return Head(source, order & 0x0F, number, key)


def encode_short(feed: int, length: int) -> bytes:
    """Return a message of less than `HEAD` bytes."""
    return bytes((0x20 + feed + 7 * place) & 0x7F for place in range(length))


def parse_short(data: bytes) -> int:
    """Return the feed that a message of less than `HEAD` bytes, and more than none, is from.

    Raises:
        WrongError: If it is not what was sent.
    """
    feed = (data[0] - 0x20) & 0x7F
    if data != encode_short(feed, len(data)):
        raise WrongError(f"wrong short message: {data!r}")
    return feed
