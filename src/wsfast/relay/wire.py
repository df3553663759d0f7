"""The format of the broker's messages: one message of the broker for each message of a hub.

| bytes  | contents                                                                                         |
|--------|--------------------------------------------------------------------------------------------------|
| 0      | 0xF5, a byte that cannot occur in UTF-8                                                          |
| 1      | version of this format: 1                                                                        |
| 2      | kind: 0 message, 1 position, 2 request for positions, 3 goodbye, 4 command                       |
| 3      | flags: 1 Text frame, 2 do not compress, 4 signed                                                 |
| 4-11   | publisher, a random number                                                                       |
| 12-19  | epoch: when the publisher began to number messages of the address, in nanoseconds since 1970;    |
|        | for a command, when it was sent                                                                  |
| 20-27  | number of the message within its address and epoch, from 1; for a position, of the last message  |
| 28-31  | length of the head in bytes                                                                      |
| 32-    | head, a JSON object: topic or user, key, excluded users, all topics, command; then the payload   |
| last   | if signed: the first 16 bytes of the HMAC-SHA-256 of everything before them                      |
"""

from __future__ import annotations

import hmac
import json
import struct
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from wsfast._encoding.message import PreparedMessage
from wsfast.hub import Kind
from wsfast.hub.topics import check_topic

from .commands import Parts, check_parts

__all__ = [
    "COMMAND",
    "GOODBYE",
    "MESSAGE",
    "POSITION",
    "PUBLISHER",
    "REQUEST",
    "Address",
    "Envelope",
    "Keyring",
    "RejectedError",
    "check_key",
    "check_user",
    "pack",
    "unpack",
]

MESSAGE, POSITION, REQUEST, GOODBYE, COMMAND = range(5)

_MAGIC, _VERSION = 0xF5, 1
_TEXT, _PLAIN, _SIGNED = 1, 2, 4
_FLAGS = 3
"""Index of the byte with the flags."""
_LARGEST_INT = 1 << 256
_DEEPEST = 32
"""Maximum nesting of tuples in a key."""
_LARGEST_HEAD = 1 << 20
"""Bytes. Python objects take many times the memory of the JSON that they are made from."""
_SHORTEST_SECRET = 16
_SIGNATURE = 16
_HEAD = struct.Struct(">BBBBQQQI")

PUBLISHER = slice(4, 12)
"""Position of the publisher in a message."""

Address = tuple[Kind, Any]
"""A topic or a user. Messages of each are numbered."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """The contents of one message of the broker."""

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
    """Users who do not get it."""
    publication: tuple[int, tuple[str, ...]] | None = None
    """For a message published to several topics at once: the number of that publication, and the topics."""
    command: Parts | None = None
    """For a command."""

    def message(self) -> PreparedMessage:
        """Return the message.

        Raises:
            UnicodeDecodeError: If it is text, and not valid UTF-8.
        """
        if self.text:
            return PreparedMessage(self.payload.decode(), compress=None if self.compressible else False)
        return PreparedMessage(self.payload, compress=None if self.compressible else False)


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


def pack(envelope: Envelope, keyring: Keyring | None = None) -> bytes:
    """Return the bytes of an envelope, signed if there are secrets.

    Raises:
        ValueError: If topics, users and the key take more than 1 MiB.
    """
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
    if envelope.command is not None:
        head["c"] = envelope.command
    encoded = json.dumps(head, separators=(",", ":")).encode()
    if len(encoded) > _LARGEST_HEAD:
        raise ValueError(f"topics, users and key take {len(encoded)} bytes of JSON, more than {_LARGEST_HEAD}")
    flags = _TEXT * envelope.text | _PLAIN * (not envelope.compressible) | _SIGNED * (keyring is not None)
    fixed = _HEAD.pack(
        _MAGIC, _VERSION, envelope.kind, flags, envelope.publisher, envelope.epoch, envelope.number, len(encoded)
    )
    data = b"".join((fixed, encoded, envelope.payload))
    return data if keyring is None else keyring.sign(data)


def unpack(data: bytes, keyring: Keyring | None = None) -> Envelope:
    """Return the envelope in some bytes. The signature is verified before anything but the fixed part is read.

    The cost is linear in the number of bytes, whatever they contain.

    Raises:
        RejectedError: If they are not signed as they must be.
        ValueError: If no relay of this version can have sent them.
    """
    try:
        if _HEAD.unpack_from(data)[:2] != (_MAGIC, _VERSION):
            raise ValueError("it was not sent by a relay of this version")
        data = _authenticated(data, keyring)
        _, _, kind, flags, publisher, epoch, number, size = _HEAD.unpack_from(data)
        if kind > COMMAND:
            raise ValueError("it was not sent by a relay of this version")
        end = _HEAD.size + size
        if len(data) < end:
            raise ValueError("it is cut off")
        if size > _LARGEST_HEAD:
            raise ValueError("its head is too long")
        head = json.loads(data[_HEAD.size : end])
        if not isinstance(head, dict):
            raise ValueError("its head is not a JSON object")
        address: Address | None = None
        if kind in (MESSAGE, POSITION, COMMAND):  # the others concern all addresses, so they have none
            if "t" in head:
                address = "topic", check_topic(head["t"])
            elif "u" in head:
                check_user(head["u"])
                address = "user", head["u"]
            else:
                raise ValueError("it has neither a topic nor a user")
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
            _key(head.get("k")),
            tuple(_key(user) for user in head.get("x", ())),
            None if publication is None else (int(publication[0]), tuple(map(check_topic, publication[1]))),
            check_parts(head.get("c")) if kind == COMMAND else None,
        )
    except (struct.error, TypeError, LookupError, OverflowError, RecursionError) as exc:
        raise ValueError(str(exc)) from exc


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
