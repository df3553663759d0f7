"""Notices to other processes about the users and connections of this one.

Others are told each change, and everything when they ask. Notices with changes, and the parts of everything, are
numbered together. Each notice also says how many of these there were before it, so that a process that misses one
learns that from the next notice, whatever it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .notices import ASK, FIRST, HELLO, LAST, MOST_ASKED, PART, Changes, notice
from .population import Key
from .wire import OVERHEAD

__all__ = ["Announcing", "Stamped"]

MOST_NOTICES = 16
"""Notices that are sent at once. Messages come between them and further ones."""

ROOM = 64
"""Bytes of a packet that changes do not get, besides its fixed part."""


class Stamped(NamedTuple):
    """A notice with its numbers."""

    serial: int
    """How many notices of this process there were, with this one. It is never repeated."""
    number: int
    """How many of these had changes or parts of everything."""
    data: bytes


class Announcing:
    """Makes the notices of a process.

    Args:
        start: When the process has started its relay, in nanoseconds since 1970.
    """

    def __init__(self, start: int) -> None:
        self.start: int = start
        self.own: dict[Key, int] = {}
        """The users who have connections here; and for None the number of connections."""
        self.asking: dict[int, None] = {}
        """Publishers who will be asked for everything."""
        self.alive_due: bool = False
        """Whether others should be told that this process is there."""
        self.hello_due: bool = False
        """Whether they should be asked to tell the same."""
        self._unsent: dict[Key, int] = {}  # what others were told before, where that is not true any more
        self._everything_due = False  # whether others should be told everything, from the first part on
        self._parts: Iterator[Key] | None = None  # of everything: what has not been sent yet
        self._next: Key | None = None  # the first of it
        self._serial = self._number = 0

    def change(self, key: Key, value: int) -> int:
        """Note a user who has connections here or none, or for None the number of connections; return the old value."""
        before = self.own.get(key, 0)
        if value != before:
            if value:
                self.own[key] = value
            else:
                del self.own[key]
            if self._unsent.setdefault(key, before) == value:
                del self._unsent[key]
        return before

    @property
    def changed(self) -> bool:
        """Whether there are changes that others were not told about."""
        return bool(self._unsent)

    @property
    def telling_everything(self) -> bool:
        """Whether others are being told everything."""
        return self._everything_due or self._parts is not None

    def tell_everything(self) -> None:
        """Tell others everything from now on."""
        self._everything_due = True
        self._parts = None

    def lost(self) -> None:
        """Note that the last notices may not have been sent. Others find that out, and ask for everything."""
        self.alive_due = True
        self._everything_due = False
        self._parts = None

    def take(self, largest: int) -> list[Stamped]:
        """Return the next notices.

        Args:
            largest: Bytes of the largest packet that the broker takes.
        """
        room = largest - OVERHEAD - ROOM
        notices: list[Stamped] = []
        while self.asking and len(notices) < MOST_NOTICES:
            publishers = list(self.asking)[:MOST_ASKED]
            for publisher in publishers:
                del self.asking[publisher]
            notices.append(self._notice(ASK, publishers))
        while self._unsent and len(notices) < MOST_NOTICES:
            notices.append(self._changes(room))
        while self.telling_everything and len(notices) < MOST_NOTICES:
            notices.append(self._part(room))
        if (self.alive_due or self.hello_due) and not notices:
            notices.append(self._notice(0, ()))
        if notices:
            self.alive_due = self.hello_due = False
        return notices

    def _notice(self, flags: int, contents: list[int] | list[list[object]] | tuple[()]) -> Stamped:
        self._serial += 1
        self._number += not flags & ASK and bool(flags or contents)
        if self.hello_due:
            flags |= HELLO
            self.hello_due = False
        return Stamped(self._serial, self._number, notice(flags, self.start, contents))

    def _changes(self, room: int) -> Stamped:
        some = Changes(room)
        told = []
        for key in self._unsent:
            if not some.add(key, self.own.get(key, 0)):
                break
            told.append(key)
        stamped = self._notice(0, some.contents())  # first: others notice if an interrupt takes what follows
        for key in told:
            del self._unsent[key]
        return stamped

    def _part(self, room: int) -> Stamped:
        """Return the next part of everything. All changes were told before, so it says nothing new."""
        flags = PART
        if self._parts is None:
            # Only now: what the first part does not find among the users must be told after it.
            self._parts = iter(list(self.own))
            self._next = next(self._parts, None)
            self._everything_due = False
            flags |= FIRST
        some = Changes(room)
        while self._next is not None:
            value = self.own.get(self._next, 0)
            if value and not some.add(self._next, value):
                break
            self._next = next(self._parts, None)
        else:
            self._parts = None
            flags |= LAST
        return self._notice(flags, some.contents())
