"""The contents of packets about presence, or *notices*.

| bytes | contents                                                                                                    |
|-------|-------------------------------------------------------------------------------------------------------------|
| 0     | flags: 1 first part, 2 last part of everything; 4 part of everything; 8 others should say that they are     |
|       | there; 16 asks others for everything                                                                        |
| 1-8   | when the process started its relay, in nanoseconds since 1970                                               |
| 9-    | nothing; or a JSON array of changes; or, of a notice that asks, a JSON array of the numbers of publishers   |

A change is an array of a topic, a pattern or null; the number of connections there, or null if it has not changed; the
users who are there now; and the users who have left.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

from wsfast.hub.topics import check_topic_or_pattern

from .population import Key
from .wire import check_user

__all__ = [
    "ASK",
    "FIRST",
    "HELLO",
    "LAST",
    "LONGEST_USER",
    "MOST_ASKED",
    "PART",
    "Changes",
    "asked",
    "changes",
    "notice",
    "opened",
]

FIRST, LAST, PART, HELLO, ASK = 1, 2, 4, 8, 16

MOST_CHANGES = 1024
"""Changes per notice."""

CHANGES_BYTES = 32 << 10
"""Bytes of changes per notice, about."""

LONGEST_USER = 4096
"""Bytes of JSON of the longest user that others are told about."""

MOST_ASKED = 256
"""Publishers that are asked by one notice."""

LARGEST = 64 << 10
"""Bytes of the largest notice that is accepted."""

MOST_CONNECTIONS = 1 << 32

_FIXED = struct.Struct(">BQ")


def notice(flags: int, start: int, contents: Sequence[Any] = ()) -> bytes:
    """Return the bytes of a notice."""
    return _FIXED.pack(flags, start) + (json.dumps(contents, separators=(",", ":")).encode() if contents else b"")


def opened(data: bytes) -> tuple[int, int, bytes]:
    """Return the flags of a notice, when its process has started, and the rest.

    Raises:
        ValueError: If it is too short.
    """
    if len(data) < _FIXED.size:
        raise ValueError("it is no notice of presence")
    return *_FIXED.unpack_from(data), data[_FIXED.size :]


class Changes:
    """Changes that fit into one notice."""

    def __init__(self, room: int) -> None:
        self._room = min(room, CHANGES_BYTES)
        self._left = MOST_CHANGES
        self._changes: dict[str | None, list[Any]] = {}

    def add(self, key: Key, value: int) -> bool:
        """Add a user of whom there are connections or none, or for None the number of connections.

        Return False if there is no room.
        """
        user, name = key
        change = self._changes.get(name)
        size = 24 + len(json.dumps(user)) + (0 if change else len(json.dumps(name)))
        if self._changes and (size > self._room or not self._left):
            return False
        self._room -= size
        self._left -= 1
        if change is None:
            change = self._changes[name] = [name, None, [], []]
        if user is None:
            change[1] = value
        else:
            change[2 if value else 3].append(user)
        return True

    def contents(self) -> list[Any]:
        """Return the changes as they are sent."""
        return list(self._changes.values())


def changes(data: bytes) -> list[tuple[Key, int]]:
    """Return the changes in the rest of a notice: see `Changes.add()`.

    Raises:
        ValueError, TypeError, RecursionError: If no relay of this version can have sent them.
    """
    found: list[tuple[Key, int]] = []
    for change in _array(data, MOST_CHANGES):
        name, connections, here, gone = _array(change, 4)
        if name is not None:
            check_topic_or_pattern(name)
        if connections is not None:
            if type(connections) is not int or not 0 <= connections < MOST_CONNECTIONS or name is None:
                raise ValueError("it has no valid number of connections")
            found.append(((None, name), connections))
        for value, users in ((0, gone), (1, here)):
            for user in _array(users, MOST_CHANGES - len(found)):
                check_user(user)
                found.append(((user, name), value))
    return found


def asked(data: bytes) -> list[Any]:
    """Return the publishers in the rest of a notice that asks.

    Raises:
        ValueError, RecursionError: If no relay of this version can have sent them.
    """
    return _array(data, MOST_ASKED)


def _array(value: Any, most: int) -> list[Any]:
    """Return an array, or that in some JSON, if it is not too long.

    Raises:
        ValueError: If it is none, or too long.
    """
    if isinstance(value, bytes):
        if len(value) > LARGEST:
            raise ValueError("a notice of presence is too long")
        value = json.loads(value) if value else []
    if not isinstance(value, list) or len(value) > most:
        raise ValueError("a notice of presence has no array, or one that is too long")
    return value
