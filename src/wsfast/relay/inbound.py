"""Messages of other processes: each is delivered once, and what is missing is counted and reported."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wsfast._encoding.message import PreparedMessage
from wsfast.hub import Hub, Kind
from wsfast.hub.topics import matches

from .broker import Channel, Interest
from .outbound import ADDRESSES, BATCH
from .wire import GOODBYE, MESSAGE, PUBLISHER, REQUEST, Address, Envelope, Keyring, RejectedError, unpack

__all__ = ["Gap", "Inbound"]

logger: logging.Logger = logging.getLogger("wsfast")

PUBLISHERS = 1024
"""Publishers of one address whose position is known."""

POSITIONS = 1 << 18
"""Positions of publishers and addresses in all; beyond, those of the addresses that were heard of least recently go."""

PUBLICATIONS = 4096
"""Messages to several topics of which it is known by which they have been delivered."""

DELIVERED = 65536
"""Topics by which they have been."""

PAST_PATTERNS = 256
"""Patterns that have ended of which it is known when."""


RUNS = 4
"""Runs of one publisher and address that are known, without a secret."""

RESENT = 8 * BATCH
"""How far behind the last message of a run another one may be, and be one that is sent again.

A publisher sends again the batch that the broker has not confirmed. The other batches are for what a broker that was
away takes from an old connection and from a new one at the same time.
"""

Position = tuple[int, int]
"""Epoch and number of a message."""


def follow(
    last: Sequence[Position], position: Position, before: int, ordered: bool
) -> tuple[list[Position], int] | None:
    """Return the last messages of a publisher after another one, and how many are missing before it.

    Without signatures, anybody at the broker may send any position in the name of any publisher. So a position says
    nothing of messages that are far away from it: it begins a *run* of its own, and the runs that there are go on. A
    message that follows upon a run exactly belongs to it, whatever the others say. A forged message can therefore hide
    only messages of its own epoch and the next `RESENT` numbers.

    With signatures, a position is the publisher's, so everything before it counts as received, also what is replayed.

    Args:
        last: The last message of each run, the latest first.
        position: The position of the other one.
        before: The number of the message that it follows upon; its own if it only tells a position.
        ordered: Whether positions are signed.

    Returns:
        None if it was received already.
    """
    epoch, number = position
    if ordered:
        if last and position <= last[0]:
            return None
        return [position], before - last[0][1] if last and last[0][0] == epoch else 0
    numbers = [run[1] for run in last if run[0] == epoch]
    if before not in numbers:
        if any(number <= end < number + RESENT for end in numbers):
            return None
        near = max((end for end in numbers if number - RESENT <= end < before), default=None)
        if near is None:  # so many are missing, or it is somebody else's
            missing = before - numbers[0] if numbers and numbers[0] < before else 0
            return [position, *last[: RUNS - 1]], missing
    else:
        near = before
    return [position, *(run for run in last if run != (epoch, near))], before - near


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
        self.positions: OrderedDict[int, list[Position]] = OrderedDict()  # of each publisher, the end of each run
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
        channel: Returns the channel of an address; of None, that of all relays.
        keyring: What messages must be signed with, if they must be.
    """

    def __init__(
        self,
        publisher: int,
        hub: Hub,
        name: str,
        on_gap: Callable[[Gap], object] | None,
        on_request: Callable[[], None],
        channel: Callable[[Address | None], Channel],
        keyring: Keyring | None = None,
    ) -> None:
        self.received: int = 0
        self.duplicates: int = 0
        self.malformed: int = 0
        self.rejected: int = 0
        self.gaps: int = 0
        self.lost: int = 0
        self.on_gap = on_gap
        self._own = publisher.to_bytes(8)
        self._hub = hub
        self._name = name
        self._on_request = on_request
        self._channel = channel
        self._keyring = keyring
        self._seen: OrderedDict[Address, _Seen] = OrderedDict()
        self._addresses: dict[int, set[Address]] = {}  # of each publisher, those with a position
        self._positions = 0  # in all
        self._delivered: OrderedDict[tuple[int, int], set[str]] = OrderedDict()
        self._delivered_names = 0
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
                self._forget(interest)
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

    def receive(self, data: bytes, channel: Channel) -> None:
        """Deal with a message of the broker's, and the channel that it came by."""
        if data[PUBLISHER] == self._own:
            return
        try:
            envelope = unpack(data, self._keyring)
            message = envelope.message() if envelope.kind == MESSAGE else None
            if channel != self._channel(envelope.address):  # the broker may permit a publisher some channels only
                raise RejectedError("it came by another channel than that of its topic or user")
        except RejectedError as exc:
            self.rejected += 1
            if self.rejected == 1:
                logger.warning("%s has rejected a message: %s", self._name, exc)
            return
        except ValueError as exc:
            self.malformed += 1
            if self.malformed == 1:
                logger.warning("%s has received a message that it does not know: %s", self._name, exc)
            return
        if envelope.kind == REQUEST:
            self._on_request()
        elif envelope.kind == GOODBYE:
            for address in list(self._addresses.get(envelope.publisher, ())):
                self._forget(address, envelope.publisher)
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
                self._forget_oldest()
        else:
            self._seen.move_to_end(address)
            if seen.clock < self._last_end and not self._is_continuous(address[1], seen, self._began(routes)):
                self._forget(address)
        seen.clock = self._clock
        return seen

    def _receive(self, envelope: Envelope, address: Address, message: PreparedMessage | None, seen: _Seen) -> None:
        """Deliver a message unless it was received already; report what is missing before it."""
        publisher = envelope.publisher
        position = envelope.epoch, envelope.number
        before = envelope.number - (message is not None)
        following = follow(seen.positions.get(publisher, ()), position, before, self._keyring is not None)
        if following is None:
            self.duplicates += message is not None
            return
        if message is not None:
            self._deliver(envelope, address, message)
            self.received += 1
        positions, missing = following
        # Noted not before: else what could not be delivered would not count.
        self._note(address, seen, publisher, positions)
        if missing:
            self._report(Gap(f"{publisher:016x}", *address, missing))

    def _note(self, address: Address, seen: _Seen, publisher: int, positions: list[Position]) -> None:
        """Note the last messages of a publisher and address."""
        known = publisher in seen.positions
        self._addresses.setdefault(publisher, set()).add(address)
        seen.positions[publisher] = positions
        if known:
            seen.positions.move_to_end(publisher)
            return
        self._positions += 1
        if len(seen.positions) > PUBLISHERS:
            self._forget(address, next(iter(seen.positions)))
        while self._positions > POSITIONS:
            self._forget_oldest()

    def _forget(self, address: Address, *publishers: int) -> None:
        """Forget the positions of some publishers of an address; without any, of all."""
        positions = self._seen[address].positions if address in self._seen else {}
        for publisher in publishers or list(positions):
            self._positions -= positions.pop(publisher, None) is not None
            if addresses := self._addresses.get(publisher):
                addresses.discard(address)
                if not addresses:
                    del self._addresses[publisher]

    def _forget_oldest(self) -> None:
        """Forget the address that was heard of least recently."""
        address = next(iter(self._seen))
        self._forget(address)
        del self._seen[address]

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
        self._delivered_names += name not in delivered
        delivered.add(name)
        if delivered.issuperset(topics):
            self._delivered_names -= len(self._delivered.pop((envelope.publisher, number)))
        while len(self._delivered) > PUBLICATIONS or self._delivered_names > DELIVERED:
            self._delivered_names -= len(self._delivered.popitem(last=False)[1])
