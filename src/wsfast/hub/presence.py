"""Presence: which users are connected, and in which topics they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from .groups import Group

__all__ = ["PresenceCallback", "User"]

PresenceCallback: TypeAlias = Callable[[Any, str | None], object]


class User(Group):
    """The connections of a user, and how many of them are subscribed to each topic or pattern."""

    __slots__ = ("_subscribed",)

    def __init__(self, name: Any) -> None:
        super().__init__("user", name)
        self._subscribed: dict[Group, int] = {}

    def enter(self, group: Group) -> bool:
        """Count one more connection in a group; return whether it is the first one."""
        count = self._subscribed.get(group, 0)
        self._subscribed[group] = count + 1
        return not count

    def leave(self, group: Group) -> bool:
        """Count one less; return whether it was the last one."""
        count = self._subscribed.get(group, 0)
        if count > 1:
            self._subscribed[group] = count - 1
        else:
            self._subscribed.pop(group, None)
        return count == 1

    def recount(self, group: Group, count: int) -> bool | None:
        """Set how many connections are in a group; return whether any is, or None if that is so as before."""
        before = self._subscribed.pop(group, 0)
        if count:
            self._subscribed[group] = count
        return None if bool(count) == bool(before) else bool(count)
