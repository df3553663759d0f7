"""The format of the broker's messages, or *packets*. A packet has one or several messages of one topic or user.

| bytes  | contents                                                                                            |
|--------|-----------------------------------------------------------------------------------------------------|
| 0      | 0xF5, a byte that cannot occur in UTF-8                                                             |
| 1      | version of this format: 2                                                                           |
| 2      | kind: 0 messages, 1 position, 2 request for positions, 3 goodbye, 4 notice of presence              |
| 3      | flags: 4 signed                                                                                     |
| 4-11   | publisher, a random number                                                                          |
| 12-19  | epoch: when the publisher began to number messages of the address, in nanoseconds since 1970        |
| 20-27  | number of the first message within its address and epoch, from 1; for a position, of the last one   |
| 28-31  | length of the head in bytes                                                                         |
| 32-    | head, a JSON object with the topic or the user; then up to 512 messages, with consecutive numbers   |
|        | (of a notice: how many there were, how many had changes; then the notice, see `notices`)            |
| last   | if signed: the first 16 bytes of the HMAC-SHA-256 of everything before them                         |

Each message consists of:

| bytes  | contents                                                                                            |
|--------|-----------------------------------------------------------------------------------------------------|
| 0-3    | length of the payload in bytes                                                                      |
| 4      | flags: 1 Text frame, 2 do not compress, 8 details                                                   |
| 5-     | with details: their length in 4 bytes, and a JSON object: key, excluded users, all topics, command, |
|        | tags                                                                                                |
| then   | payload                                                                                             |
"""

from __future__ import annotations

import hmac
import json
import struct
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from wsfast._encoding.message import PreparedMessage
from wsfast.hub import Kind
from wsfast.hub.filters import NO_TAGS, Tags, check_tags
from wsfast.hub.topics import check_topic

from .commands import Parts, check_parts

__all__ = [
    "GOODBYE",
    "KIND",
    "MESSAGE",
    "MOST_ITEMS",
    "NOTICE",
    "OVERHEAD",
    "POSITION",
    "PUBLISHER",
    "REQUEST",
    "Address",
    "Envelope",
    "Item",
    "Keyring",
    "RejectedError",
    "check_key",
    "check_user",
    "encode_item",
    "head_of",
    "join",
    "pack",
    "unpack",
]

MESSAGE, POSITION, REQUEST, GOODBYE, NOTICE = range(5)

MOST_ITEMS = 512
"""Messages per packet. Python objects take many times the memory of the bytes that they are made from."""

_MAGIC, _VERSION = 0xF5, 2
_TEXT, _PLAIN, _SIGNED, _DETAILS = 1, 2, 4, 8
_FLAGS = 3
"""Index of the byte with the flags."""
_LARGEST_INT = 1 << 256
_DEEPEST = 32
"""Maximum nesting of tuples in a key."""
_LARGEST_HEAD = 1 << 20
"""Bytes of the head, and of the details of all messages of a packet.

Python objects take many times the memory of their JSON.
"""
_HEADS = 16384
"""Heads whose addresses are cached."""
_LONGEST_CACHED_HEAD = 256
"""Bytes."""
_NO_ADDRESS = b"{}"
_LARGEST_NUMBER = (1 << 64) - 1
_LARGEST_PAYLOAD = (1 << 32) - 1
_SHORTEST_SECRET = 16
_SIGNATURE = 16
_HEAD = struct.Struct(">BBBBQQQI")
_ITEM = struct.Struct(">IB")
_LENGTH = struct.Struct(">I")

OVERHEAD = _HEAD.size + _SIGNATURE
"""Bytes of a packet besides the head and the messages."""

KIND, PUBLISHER = 2, slice(4, 12)
"""Positions of the kind and the publisher in a packet."""

Address = tuple[Kind, Any]
"""A topic or a user. Messages of each are numbered."""


class Item(NamedTuple):
    """One message of a packet."""

    payload: bytes
    text: bool = False
    compressible: bool = True
    key: Hashable = None
    excluded: tuple[Any, ...] = ()
    """Users who do not get it."""
    publication: tuple[int, tuple[str, ...]] | None = None
    """For a message published to several topics at once: the number of that publication, and the topics."""
    command: Parts | None = None
    """For a command: all but its address and its message."""
    tags: Tags = NO_TAGS

    def message(self) -> PreparedMessage:
        """Return the message."""
        return PreparedMessage(self.payload, text=self.text, compress=None if self.compressible else False)


@dataclass(frozen=True, slots=True)
class Envelope:
    """The contents of one packet."""

    kind: int
    publisher: int
    epoch: int = 0
    number: int = 0
    """Number of the first message; for a position, of the last one."""
    address: Address | None = None
    items: tuple[Item, ...] = ()
    notice: bytes = b""


class RejectedError(ValueError):
    """A message's signature is missing or wrong, or it is signed and there is no secret to verify it."""


class Keyring:
    """The secrets that sign and verify messages.

    Args:
        secret: The secret. With several, the first signs, and signatures of all of them are accepted.
        prefix: Beginning of the names of the broker's channels. A message is not accepted under another prefix.

    Raises:
        TypeError: If a secret is not bytes.
        ValueError: If there is no secret, or one has fewer than 16 bytes.
    """

    def __init__(self, secret: bytes | Sequence[bytes], prefix: str) -> None:
        secrets = [secret] if isinstance(secret, (bytes, str)) else list(secret)
        if not secrets:
            raise ValueError("secret must not be empty: give bytes, or a sequence of at least one bytes object")
        for one in secrets:
            if not isinstance(one, bytes):
                raise TypeError(f"secret must be bytes or a sequence of bytes objects, not {type(one).__name__}")
            if len(one) < _SHORTEST_SECRET:
                raise ValueError(
                    f"secret must have at least {_SHORTEST_SECRET} bytes, not {len(one)}; create one with "
                    "secrets.token_bytes(32)"
                )
        keys = [hmac.digest(one, b"wsfast relay " + prefix.encode(), "sha256") for one in secrets]
        self._keyed = [hmac.new(key, digestmod="sha256") for key in keys]

    def sign(self, data: bytes) -> bytes:
        """Return bytes followed by their signature."""
        return data + self._signature(self._keyed[0], data)

    def verify(self, data: bytes) -> bytes:
        """Return bytes without the signature that follows them.

        Raises:
            RejectedError: If none of the secrets gives this signature.
        """
        signed, signature = data[:-_SIGNATURE], data[-_SIGNATURE:]
        for keyed in self._keyed:
            if hmac.compare_digest(self._signature(keyed, signed), signature):
                return signed
        raise RejectedError("it is signed with another secret, or was changed on its way")

    @staticmethod
    def _signature(keyed: hmac.HMAC, data: bytes) -> bytes:
        mac = keyed.copy()
        mac.update(data)
        return mac.digest()[:_SIGNATURE]


def check_key(key: Any) -> None:
    """Check that a relay can carry a key.

    Raises:
        TypeError: If it is neither None, a str, an int, a float, a bool nor a tuple of these.
        ValueError: If it is an int of more than 256 bits, or tuples are nested more than 32 deep.
    """
    _check_key(key, 0)


def _check_key(key: Any, depth: int) -> None:
    if isinstance(key, tuple):
        if depth >= _DEEPEST:
            raise ValueError(f"with a relay, tuples in key must not be nested more than {_DEEPEST} deep")
        for part in key:
            _check_key(part, depth + 1)
    elif key is not None and type(key) not in (str, int, float, bool):
        raise TypeError(f"with a relay, key must be a str, a number or a tuple of these, not {type(key).__name__}")
    elif type(key) is int:
        _check_int(key)


def check_user(user: Any) -> None:
    """Check that a relay can carry a user.

    Raises:
        TypeError: If it is neither a str nor an int.
        ValueError: If it is a str with a lone surrogate, which UTF-8 cannot encode, or an int of more than 256 bits.
    """
    if type(user) is str:
        user.encode()
    elif type(user) is int:
        _check_int(user)
    else:
        raise TypeError(f"with a relay, user must be a str or an int, not {type(user).__name__}")


def _check_int(value: int) -> None:
    if not -_LARGEST_INT < value < _LARGEST_INT:
        raise ValueError("with a relay, an int in key or user must not have more than 256 bits")


def head_of(address: Address | None) -> bytes:
    """Return the head of packets of an address; None for those that concern all addresses.

    Raises:
        ValueError: If it takes more than 1 MiB.
    """
    if address is None:
        return _NO_ADDRESS
    kind, name = address
    return _json({"u" if kind == "user" else "t": name})


def _json(value: dict[str, Any]) -> bytes:
    encoded = json.dumps(value, separators=(",", ":")).encode()
    if len(encoded) > _LARGEST_HEAD:
        raise ValueError(f"topics, users and key take {len(encoded)} bytes of JSON, more than {_LARGEST_HEAD}")
    return encoded


def encode_item(
    message: PreparedMessage,
    key: Hashable = None,
    excluded: tuple[Any, ...] = (),
    publication: tuple[int, tuple[str, ...]] | None = None,
    command: Parts | None = None,
    tags: Tags = NO_TAGS,
) -> bytes:
    """Return the bytes of one message in a packet.

    Raises:
        ValueError: If topics, users and the key take more than 1 MiB, or the payload takes 4 GiB.
    """
    data = message.data
    flags = _TEXT * message.text | _PLAIN * (message.compress is False)
    if len(data) > _LARGEST_PAYLOAD:
        raise ValueError(f"the payload has {len(data)} bytes, 4 GiB or more")
    if key is None and not excluded and publication is None and command is None and not tags:
        return _ITEM.pack(len(data), flags) + data
    details: dict[str, Any] = {}
    if key is not None:
        details["k"] = key
    if excluded:
        details["x"] = excluded
    if publication is not None:
        details["m"] = publication
    if command is not None:
        details["c"] = command
    if tags:
        details["t"] = sorted(tags)
    encoded = _json(details)
    return b"".join((_ITEM.pack(len(data), flags | _DETAILS), _LENGTH.pack(len(encoded)), encoded, data))


def join(
    kind: int, publisher: int, epoch: int, number: int, head: bytes, items: Sequence[bytes], keyring: Keyring | None
) -> bytes:
    """Return a packet of items that `encode_item()` has returned, signed if there are secrets."""
    flags = 0 if keyring is None else _SIGNED
    data = b"".join((_HEAD.pack(_MAGIC, _VERSION, kind, flags, publisher, epoch, number, len(head)), head, *items))
    return data if keyring is None else keyring.sign(data)


def pack(envelope: Envelope, keyring: Keyring | None = None) -> bytes:
    """Return the bytes of an envelope, signed if there are secrets.

    Raises:
        ValueError: If topics, users and the key take more than 1 MiB.
    """
    items = [
        encode_item(item.message(), item.key, item.excluded, item.publication, item.command, item.tags)
        for item in envelope.items
    ]
    head = head_of(envelope.address)
    return join(envelope.kind, envelope.publisher, envelope.epoch, envelope.number, head, items, keyring)


def unpack(data: bytes, keyring: Keyring | None = None, heads: dict[bytes, Address] | None = None) -> Envelope:
    """Return the envelope in some bytes. The signature is verified before anything but the fixed part is read.

    The cost is linear in the number of bytes, whatever they contain.

    Args:
        data: The bytes.
        keyring: The secrets; None if packets are not signed.
        heads: A cache of short heads and their addresses, which is bounded here.

    Raises:
        RejectedError: If they are not signed as they must be.
        ValueError: If no relay of this version can have sent them, or a text is not valid UTF-8.
    """
    try:
        if _HEAD.unpack_from(data)[:2] != (_MAGIC, _VERSION):
            raise ValueError("it was not sent by a relay of this version")
        data = _authenticated(data, keyring)
        _, _, kind, _, publisher, epoch, number, size = _HEAD.unpack_from(data)
        if kind > NOTICE:
            raise ValueError("it was not sent by a relay of this version")
        end = _HEAD.size + size
        if len(data) < end:
            raise ValueError("it is cut off")
        if size > _LARGEST_HEAD:
            raise ValueError("its head is too long")
        head = data[_HEAD.size : end]
        if kind not in (MESSAGE, NOTICE) and len(data) != end:
            raise ValueError("it is too long")
        if kind >= REQUEST:
            if head != _NO_ADDRESS:
                raise ValueError("it has an address, but concerns all")
            return Envelope(kind, publisher, epoch, number, notice=data[end:])
        address = _address(head, {} if heads is None else heads)
        if kind == POSITION:
            return Envelope(kind, publisher, epoch, number, address)
        items = _items(data, end)
        if number + len(items) - 1 > _LARGEST_NUMBER:
            raise ValueError("its numbers are too large")
        return Envelope(kind, publisher, epoch, number, address, items)
    except (struct.error, TypeError, LookupError, OverflowError, RecursionError) as exc:
        raise ValueError(str(exc)) from exc


def _address(head: bytes, heads: dict[bytes, Address]) -> Address:
    """Return the address in a head."""
    known = heads.get(head)
    if known is not None:
        return known
    contents = json.loads(head)
    if not isinstance(contents, dict):
        raise ValueError("its head is not a JSON object")
    address: Address
    if "t" in contents:
        address = "topic", check_topic(contents["t"])
    elif "u" in contents:
        check_user(contents["u"])
        address = "user", contents["u"]
    else:
        raise ValueError("it has neither a topic nor a user")
    if len(head) <= _LONGEST_CACHED_HEAD:
        if len(heads) >= _HEADS:
            heads.clear()
        heads[head] = address
    return address


def _items(data: bytes, start: int) -> tuple[Item, ...]:
    """Return the messages in a packet, which begin at an index."""
    items: list[Item] = []
    room = _LARGEST_HEAD
    while start < len(data):
        size, flags = _ITEM.unpack_from(data, start)
        start += _ITEM.size
        details: tuple[Any, ...] = ()
        if flags & _DETAILS:
            (length,) = _LENGTH.unpack_from(data, start)
            start += _LENGTH.size
            room -= length
            if room < 0:
                raise ValueError("the details of its messages are too long")
            details = _details(json.loads(data[start : start + length]))
            start += length
        payload = data[start : start + size]
        if len(payload) != size:
            raise ValueError("it is cut off")
        start += size
        if flags & _TEXT and not payload.isascii():
            payload.decode()
        if len(items) == MOST_ITEMS:
            raise ValueError("it has too many messages")
        items.append(Item(payload, bool(flags & _TEXT), not flags & _PLAIN, *details))
    if not items:
        raise ValueError("it has no message")
    return tuple(items)


def _details(details: Any) -> tuple[Hashable, tuple[Any, ...], tuple[int, tuple[str, ...]] | None, Parts | None, Tags]:
    """Return the key, the excluded users, the publication, the command and the tags of a message."""
    if not isinstance(details, dict):
        raise ValueError("the details of a message are not a JSON object")
    publication = details.get("m")
    return (
        _key(details.get("k")),
        tuple(_key(user) for user in details.get("x", ())),
        None if publication is None else (int(publication[0]), tuple(map(check_topic, publication[1]))),
        check_parts(details["c"]) if "c" in details else None,
        check_tags(details["t"]) if "t" in details else NO_TAGS,
    )


def _authenticated(data: bytes, keyring: Keyring | None) -> bytes:
    """Return bytes without their signature, if they are signed as they must be."""
    signed = data[_FLAGS] & _SIGNED
    if keyring is None:
        if signed:
            raise RejectedError("it is signed, and this relay has no secret: give secret to all relays or to none")
        return data
    if not signed:
        raise RejectedError("it is not signed, and this relay has a secret: give secret to all relays or to none")
    return keyring.verify(data)


def _key(value: Any) -> Any:
    """Convert a JSON value to a key or a user: lists become tuples."""
    key = _hashable(value)
    check_key(key)
    return key


def _hashable(value: Any) -> Any:
    """Convert a JSON value: lists become tuples."""
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    hash(value)
    return value
