"""The format of the broker's messages: one for each message of a hub.

| octets | what                                                                                            |
|--------|-------------------------------------------------------------------------------------------------|
| 0      | 0xF5, which begins no other encoding of text                                                    |
| 1      | version of this format: 1                                                                       |
| 2      | kind: 0 message, 1 position, 2 request for positions, 3 goodbye                                 |
| 3      | flags: 1 Text frame, 2 not to be compressed                                                     |
| 4-11   | publisher, a random number                                                                      |
| 12-19  | epoch: which it is of the times that the publisher has begun to number messages of an address   |
| 20-27  | number of the message among those of its address and epoch, from 1; of a position, the last one |
| 28-31  | octets of the head                                                                              |
| 32-    | head, a JSON object: topic or user, key, excluded users, all topics; behind it the payload      |
"""

from __future__ import annotations

import json
import struct
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from wsfast._encoding.message import PreparedMessage
from wsfast.hub import Kind
from wsfast.hub.topics import check_topic

__all__ = [
    "GOODBYE",
    "MESSAGE",
    "POSITION",
    "PUBLISHER",
    "REQUEST",
    "Address",
    "Envelope",
    "check_key",
    "check_user",
    "pack",
    "unpack",
]

MESSAGE, POSITION, REQUEST, GOODBYE = range(4)

_MAGIC, _VERSION = 0xF5, 1
_TEXT, _PLAIN = 1, 2
_LARGEST_INT = 1 << 256
_HEAD = struct.Struct(">BBBBQQQI")

PUBLISHER = slice(4, 12)
"""Where the publisher is."""

Address = tuple[Kind, Any]
"""A topic, or a user: messages of each are numbered."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """The contents of one message of the broker's."""

    kind: int
    publisher: int
    epoch: int = 0
    number: int = 0
    address: Address | None = None
    payload: bytes = b""
    text: bool = False
    compressible: bool = True
    key: Hashable = None
    excluded: tuple[Any, ...] = ()
    """Users who are not to get it."""
    publication: tuple[int, tuple[str, ...]] | None = None
    """If it was published to several topics at once: the number of that publication, and the topics."""

    def message(self) -> PreparedMessage:
        """Return the message.

        Raises:
            UnicodeDecodeError: If it is text, and not UTF-8.
        """
        if self.text:
            return PreparedMessage(self.payload.decode(), compress=None if self.compressible else False)
        return PreparedMessage(self.payload, compress=None if self.compressible else False)


def check_key(key: Any) -> None:
    """Check that a key can be carried.

    Raises:
        TypeError: If it is neither None, a str, an int, a float, a bool nor a tuple of such.
        ValueError: If it is an int of more than 256 bits.
    """
    if isinstance(key, tuple):
        for part in key:
            check_key(part)
    elif key is not None and type(key) not in (str, int, float, bool):
        raise TypeError(f"with a relay, a key must be a str, a number or a tuple of these, not {type(key).__name__}")
    elif type(key) is int:
        _check_int(key)


def check_user(user: Any) -> None:
    """Check that a user can be told to other processes.

    Raises:
        TypeError: If it is neither a str nor an int.
        ValueError: If it is a str with a lone surrogate, which has no encoding as UTF-8, or an int of more than 256
            bits.
    """
    if type(user) is str:
        user.encode()
    elif type(user) is int:
        _check_int(user)
    else:
        raise TypeError(f"with a relay, a user must be a str or an int, not {type(user).__name__}")


def _check_int(value: int) -> None:
    if not -_LARGEST_INT < value < _LARGEST_INT:
        raise ValueError("with a relay, an int must not have more than 256 bits")


def pack(envelope: Envelope) -> bytes:
    """Return the octets of an envelope."""
    head: dict[str, Any] = {}
    if envelope.address is not None:
        kind, name = envelope.address
        head["u" if kind == "user" else "t"] = name
    if envelope.key is not None:
        head["k"] = envelope.key
    if envelope.excluded:
        head["x"] = envelope.excluded
    if envelope.publication is not None:
        head["m"] = envelope.publication
    encoded = json.dumps(head, separators=(",", ":")).encode()
    flags = _TEXT * envelope.text | _PLAIN * (not envelope.compressible)
    fixed = _HEAD.pack(
        _MAGIC, _VERSION, envelope.kind, flags, envelope.publisher, envelope.epoch, envelope.number, len(encoded)
    )
    return b"".join((fixed, encoded, envelope.payload))


def unpack(data: bytes) -> Envelope:
    """Return what some octets say.

    Raises:
        ValueError: If no relay of this version has sent them.
    """
    try:
        magic, version, kind, flags, publisher, epoch, number, size = _HEAD.unpack_from(data)
        if magic != _MAGIC or version != _VERSION or kind > GOODBYE:
            raise ValueError("it was not sent by a relay of this version")
        end = _HEAD.size + size
        if len(data) < end:
            raise ValueError("its end is missing")
        head = json.loads(data[_HEAD.size : end])
        if not isinstance(head, dict):
            raise ValueError("its head is no object")
        address: Address | None = None
        if "t" in head:
            address = "topic", check_topic(head["t"])
        elif "u" in head:
            check_user(head["u"])
            address = "user", head["u"]
        elif kind in (MESSAGE, POSITION):
            raise ValueError("it has no address")
        publication = head.get("m")
        return Envelope(
            kind,
            publisher,
            epoch,
            number,
            address,
            data[end:],
            bool(flags & _TEXT),
            not flags & _PLAIN,
            _hashable(head.get("k")),
            tuple(_hashable(user) for user in head.get("x", ())),
            None if publication is None else (int(publication[0]), tuple(map(check_topic, publication[1]))),
        )
    except (struct.error, TypeError, LookupError, OverflowError, RecursionError) as exc:
        raise ValueError(str(exc)) from exc


def _hashable(value: Any) -> Any:
    """Return a value of JSON, with tuples for lists."""
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    hash(value)
    return value
