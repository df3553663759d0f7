"""Messages of other processes: each is delivered once, and what is missing is counted and reported."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wsfast._encoding.message import PreparedMessage
from wsfast.hub import Hub, Kind
from wsfast.hub.topics import matches

from .broker import Interest
from .outbound import ADDRESSES
from .wire import GOODBYE, MESSAGE, PUBLISHER, REQUEST, Address, Envelope, unpack

__all__ = ["Gap", "Inbound"]

logger: logging.Logger = logging.getLogger("wsfast")

PUBLISHERS = 1024
"""Publishers of one address whose position is known."""

PUBLICATIONS = 4096
"""Messages to several topics of which it is known by which they have been delivered."""

PAST_PATTERNS = 256
"""Patterns that have ended of which it is known when."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages of another process that will never arrive here."""

    publisher: str
    """The process, as `Relay.id` of its relay."""
    kind: Kind
    """`"topic"` or `"user"`."""
    name: Any
    """The topic, or the user."""
    messages: int
    """How many are missing."""


class _Seen:
    """The last messages of one address."""

    __slots__ = ("clock", "positions")

    def __init__(self) -> None:
        self.positions: OrderedDict[int, tuple[int, int]] = OrderedDict()  # epoch and number, of each publisher
        self.clock = 0  # when the last one came


class Inbound:
    """Delivers messages of other processes to a hub.

    A position counts only as long as the hub has had somebody for the address without interruption: what comes after
    that follows upon nothing. Many addresses may match a pattern, so when it ends, that is only noted; it is looked at
    when the next message of an address comes. Time is counted in interests that begin and end.

    Args:
        publisher: The number of the relay itself, whose messages come back.
        hub: The hub.
        name: The repr of the relay, for log records.
        on_gap: Called with a `Gap`.
        on_request: Called when another process asks for positions.
    """

    def __init__(
        self,
        publisher: int,
        hub: Hub,
        name: str,
        on_gap: Callable[[Gap], object] | None,
        on_request: Callable[[], None],
    ) -> None:
        self.received: int = 0
        self.duplicates: int = 0
        self.malformed: int = 0
        self.gaps: int = 0
        self.lost: int = 0
        self.on_gap = on_gap
        self._own = publisher.to_bytes(8)
        self._hub = hub
        self._name = name
        self._on_request = on_request
        self._seen: OrderedDict[Address, _Seen] = OrderedDict()
        self._delivered: OrderedDict[tuple[int, int], set[str]] = OrderedDict()
        self._clock = 0
        self._interests: dict[Interest, int] = {}  # when each began
        self._past_patterns: deque[tuple[str, int, int]] = deque(maxlen=PAST_PATTERNS)  # when each began and ended
        self._last_end = 0  # of a pattern

    # ---- Interests

    def begin(self, interest: Interest) -> None:
        """The hub has somebody for a topic, a pattern or a user."""
        self._clock += 1
        self._interests[interest] = self._clock

    def end(self, interest: Interest) -> None:
        """It has nobody any more."""
        kind, name = interest
        self._clock += 1
        began = self._interests.pop(interest, self._clock)
        if kind == "pattern":
            self._past_patterns.append((name, began, self._clock))
            self._last_end = self._clock
            return
        seen = self._seen.get(interest)
        if seen is not None:
            routes = self._routes(interest)  # the patterns that match the topic
            if routes and self._is_continuous(name, seen, min(began, self._began(routes))):
                seen.clock = self._clock
            else:
                del self._seen[interest]

    def _routes(self, address: Address) -> list[Interest]:
        """Return for which interests the messages of an address are delivered."""
        kind, name = address
        if kind == "user":
            return [address] if self._hub.has_user(name) else []
        return self._hub.routes(name)

    def _began(self, interests: list[Interest]) -> int:
        """Return when the first one of some interests began."""
        return min(self._interests.get(interest, self._clock) for interest in interests)

    def _is_continuous(self, topic: str, seen: _Seen, began: int) -> bool:
        """Whether the hub has had somebody for a topic ever since its last message.

        Args:
            topic: The topic.
            seen: Its last messages.
            began: When the first of those began that it has, or had until now.
        """
        for pattern, first, last in reversed(self._past_patterns):
            if began <= seen.clock or last < began:
                break
            if matches(pattern, topic):
                began = min(began, first)
        return began <= seen.clock

    # ---- Messages

    def receive(self, data: bytes) -> None:
        """Deal with a message of the broker's."""
        if data[PUBLISHER] == self._own:
            return
        try:
            envelope = unpack(data)
            message = envelope.message() if envelope.kind == MESSAGE else None
        except ValueError as exc:
            self.malformed += 1
            if self.malformed == 1:
                logger.warning("%s has received a message that it does not know: %s", self._name, exc)
            return
        if envelope.kind == REQUEST:
            self._on_request()
        elif envelope.kind == GOODBYE:
            for seen in list(self._seen.values()):
                seen.positions.pop(envelope.publisher, None)
        elif envelope.address is not None:
            routes = self._routes(envelope.address)
            if routes:
                self._receive(envelope, envelope.address, message, self._last_seen(envelope.address, routes))

    def _last_seen(self, address: Address, routes: list[Interest]) -> _Seen:
        """Return the last messages of an address; none if it is not certain that there were no others."""
        seen = self._seen.get(address)
        if seen is None:
            seen = self._seen[address] = _Seen()
            if len(self._seen) > len(self._interests) + ADDRESSES:  # those of patterns have no end
                self._seen.popitem(last=False)
        else:
            self._seen.move_to_end(address)
            if seen.clock < self._last_end and not self._is_continuous(address[1], seen, self._began(routes)):
                seen.positions.clear()
        seen.clock = self._clock
        return seen

    def _receive(self, envelope: Envelope, address: Address, message: PreparedMessage | None, seen: _Seen) -> None:
        """Deliver a message unless it was received already; report what is missing before it."""
        last = seen.positions.get(envelope.publisher)
        position = envelope.epoch, envelope.number
        if last is not None and position <= last:
            self.duplicates += message is not None
            return
        if message is not None:
            self._deliver(envelope, address, message)
            self.received += 1
        seen.positions[envelope.publisher] = position  # not before: else what could not be delivered would not count
        seen.positions.move_to_end(envelope.publisher)
        if len(seen.positions) > PUBLISHERS:
            seen.positions.popitem(last=False)
        if last is not None and last[0] == envelope.epoch:
            missing = envelope.number - last[1] - (message is not None)
            if missing:
                self._report(Gap(f"{envelope.publisher:016x}", *address, missing))

    def _report(self, gap: Gap) -> None:
        self.gaps += 1
        self.lost += gap.messages
        if self.on_gap is not None:
            asyncio.get_running_loop().call_soon(self.on_gap, gap)

    def _deliver(self, envelope: Envelope, address: Address, message: PreparedMessage) -> None:
        kind, name = address
        if kind == "user":
            self._hub.deliver_to_user(name, message, envelope.key)
            return
        if envelope.publication is None:
            self._hub.deliver(name, message, envelope.key, exclude_users=envelope.excluded)
            return
        number, topics = envelope.publication
        delivered = self._delivered.setdefault((envelope.publisher, number), set())
        self._hub.deliver(name, message, envelope.key, exclude_users=envelope.excluded, exclude_topics=tuple(delivered))
        delivered.add(name)
        if delivered.issuperset(topics):
            del self._delivered[envelope.publisher, number]
        elif len(self._delivered) > PUBLICATIONS:
            self._delivered.popitem(last=False)
