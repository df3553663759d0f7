"""Which users are in which topics in any process, and when they have come and left."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeAlias

from wsfast.hub.topics import PatternTree, is_pattern

__all__ = ["Key", "Population"]

Key: TypeAlias = tuple[Any, str | None]
"""A user, and a topic or a pattern that the user is subscribed to; None: any, or none at all."""


class _Place:
    """The users and connections that are subscribed to a topic or a pattern by its name."""

    __slots__ = ("connections", "users")

    def __init__(self) -> None:
        self.users: dict[Any, int] = {}  # the number of processes; 0 for a user who has left and may come back
        self.connections: int = 0

    @property
    def empty(self) -> bool:
        return not self.users and not self.connections


class Population:
    """Counts users and connections over all processes. A user who comes back within the grace has not left.

    Args:
        grace: Seconds.
        on_join: Called with a user and a topic, a pattern or None when the first process has the user there.
        on_leave: Called with the same when the last process had the user there, and the grace is over.
    """

    def __init__(
        self,
        grace: float,
        on_join: Callable[[Any, str | None], object],
        on_leave: Callable[[Any, str | None], object],
    ) -> None:
        self._grace = grace
        self._on_join = on_join
        self._on_leave = on_leave
        self._places: dict[str | None, _Place] = {}
        self._patterns: PatternTree[_Place] = PatternTree()
        self._leaving: OrderedDict[Key, float] = OrderedDict()  # the time when the grace is over

    # ---- Changes

    def change(self, key: Key, before: int, value: int, now: float) -> None:
        """Note that a process has a user in a topic or not, or for None its number of connections there."""
        if key[0] is None:
            assert key[1] is not None
            self._recount(key[1], value - before)
        elif value:
            self._join(key)
        else:
            self._leave(key, now)

    def _join(self, key: Key) -> None:
        """Count one more process that has a user in a topic."""
        user, name = key
        users = self._place(name).users
        count = users.get(user)
        users[user] = (count or 0) + 1
        if count is None:
            self._on_join(user, name)
        elif not count:
            del self._leaving[key]

    def _leave(self, key: Key, now: float) -> None:
        """Count one process less."""
        user, name = key
        users = self._places[name].users
        users[user] -= 1
        if users[user]:
            return
        if self._grace:
            self._leaving[key] = now + self._grace
        else:
            self._left(key)

    def _recount(self, name: str, difference: int) -> None:
        """Change the number of connections that are subscribed to a topic or a pattern."""
        place = self._place(name)
        place.connections += difference
        self._discard_if_empty(name, place)

    def expire(self, now: float) -> None:
        """Have those leave whose grace is over."""
        while self._leaving:
            key, end = next(iter(self._leaving.items()))
            if end > now:
                break
            del self._leaving[key]
            self._left(key)

    @property
    def deadline(self) -> float | None:
        """When the next grace is over."""
        return next(iter(self._leaving.values()), None)

    def _left(self, key: Key) -> None:
        user, name = key
        place = self._places[name]
        del place.users[user]
        self._discard_if_empty(name, place)
        self._on_leave(user, name)

    def _place(self, name: str | None) -> _Place:
        place = self._places.get(name)
        if place is None:
            place = self._places[name] = _Place()
            if name is not None and is_pattern(name):
                self._patterns.put(name, place)
        return place

    def _discard_if_empty(self, name: str | None, place: _Place) -> None:
        if place.empty:
            del self._places[name]
            if name is not None and is_pattern(name):
                self._patterns.remove(name)

    # ---- Queries

    def _matching(self, name: str | None) -> list[_Place]:
        """Return the places whose connections get the messages of a topic, or that of a pattern."""
        place = self._places.get(name)
        found = [] if place is None else [place]
        return found if name is None or is_pattern(name) else found + self._patterns.matching(name)

    def users(self, name: str | None) -> list[Any]:
        """Return the users who get the messages of a topic, or are subscribed to a pattern; None: all users."""
        return list(dict.fromkeys(user for place in self._matching(name) for user in place.users))

    def has(self, user: Any, name: str | None) -> bool:
        """Whether a user is among `users()`."""
        return any(user in place.users for place in self._matching(name))

    def count(self, name: str) -> int:
        """Return the number of connections that get the messages of a topic, or are subscribed to a pattern.

        A connection counts once for the name and for each pattern by which it is subscribed.
        """
        return sum(place.connections for place in self._matching(name))
