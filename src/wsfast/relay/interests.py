"""Which other processes want the messages of a topic or a user."""

from __future__ import annotations

from typing import Generic, TypeVar

from wsfast.hub.topics import PatternTree

from .broker import Interest
from .wire import Address

__all__ = ["Interests"]

CACHED = 65536
"""Topics and users whose receivers are cached."""

T = TypeVar("T")


class Interests(Generic[T]):
    """The interests of several receivers."""

    def __init__(self) -> None:
        self._of: dict[T, dict[Interest, None]] = {}  # by receiver
        self._receivers: dict[Interest, dict[T, None]] = {}
        self._patterns: PatternTree[dict[T, None]] = PatternTree()
        self._cache: dict[Address | None, tuple[T, ...]] = {}

    def add(self, receiver: T, interest: Interest | None = None) -> None:
        """Add an interest of a receiver; without one, the receiver gets what concerns all."""
        own = self._of.get(receiver)
        if own is None:
            own = self._of[receiver] = {}
            self._cache.clear()
        if interest is None or interest in own:
            return
        own[interest] = None
        receivers = self._receivers.get(interest)
        if receivers is None:
            receivers = self._receivers[interest] = {}
            if interest[0] == "pattern":
                self._patterns.put(interest[1], receivers)
        receivers[receiver] = None
        self._forget(interest)

    def remove(self, receiver: T, interest: Interest) -> None:
        """Remove an interest of a receiver, if it has it."""
        own = self._of.get(receiver, {})
        if interest not in own:
            return
        del own[interest]
        receivers = self._receivers[interest]
        del receivers[receiver]
        if not receivers:
            del self._receivers[interest]
            if interest[0] == "pattern":
                self._patterns.remove(interest[1])
        self._forget(interest)

    def discard(self, receiver: T) -> None:
        """Remove a receiver, if it is there, with all its interests."""
        for interest in list(self._of.get(receiver, ())):
            self.remove(receiver, interest)
        if self._of.pop(receiver, None) is not None:
            self._cache.clear()

    def _forget(self, interest: Interest) -> None:
        if interest[0] == "pattern":
            self._cache.clear()
        else:
            self._cache.pop(interest, None)

    def receivers(self, address: Address | None) -> tuple[T, ...]:
        """Return who wants the messages of an address, each once; for None, all receivers."""
        found = self._cache.get(address)
        if found is None:
            found = tuple(self._of) if address is None else tuple(self._find(address))
            if len(self._cache) >= CACHED:
                self._cache.clear()
            self._cache[address] = found
        return found

    def _find(self, address: Address) -> dict[T, None]:
        found = dict(self._receivers.get(address, ()))
        if address[0] == "topic":
            for receivers in self._patterns.matching(address[1]):
                found |= receivers
        return found
