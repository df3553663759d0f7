"""Messages from other processes: delivers each once; counts and reports those that are missing."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from wsfast.hub import Hub, Kind
from wsfast.hub.topics import matches

from .broker import Channel, Interest
from .commands import carry_out
from .outbound import ADDRESSES, BATCH
from .presence import Presence
from .wire import GOODBYE, KIND, NOTICE, PUBLISHER, REQUEST, Address, Envelope, Item, Keyring, RejectedError, unpack

__all__ = ["Gap", "Inbound", "Seen"]

logger: logging.Logger = logging.getLogger("wsfast")

PUBLISHERS = 1024
"""Publishers per address whose position is kept."""

POSITIONS = 1 << 18
"""Positions in total. Beyond that, the address that was heard from least recently is forgotten first."""

PUBLICATIONS = 4096
"""Messages to several topics for which the topics delivered so far are kept."""

DELIVERED = 65536
"""Such topics, in total."""

PAST_PATTERNS = 256
"""Ended patterns whose beginning and end are kept."""


RUNS = 4
"""Runs kept per publisher and address, without a secret."""

RESENT = 2 * BATCH
"""How far a message may be behind the last message of a run and still count as sent again.

A publisher sends the batch again that the broker has not confirmed. The other batches allow for a broker that, after an
outage, takes messages from an old connection and from a new one at the same time.
"""

Position = tuple[int, int]
"""Epoch and number of a message."""


def follow(
    last: Sequence[Position], position: Position, before: int, ordered: bool
) -> tuple[list[Position], int] | None:
    """Return a publisher's last messages after another one has arrived, and how many are missing before it.

    Without signatures, anyone at the broker can send any position in the name of any publisher. So a position says
    nothing about messages that are far away from it: it begins a *run* of its own, and the existing runs go on. A
    message that directly follows a run belongs to it, whatever the other runs say. A forged message can therefore hide
    only messages of its own epoch and of the next `RESENT` numbers.

    With signatures, a position really comes from the publisher. Everything before it counts as received, so a message
    that is replayed is not delivered again.

    Args:
        last: The last message of each run, the latest first.
        position: The position of the message that has arrived.
        before: The number of the message that it follows; its own number if it only announces a position.
        ordered: Whether positions are signed.

    Returns:
        The last message of each run, and the number of missing messages; None if the message was received already.
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
        if near is None:  # many messages are missing, or the message is forged
            missing = before - numbers[0] if numbers and numbers[0] < before else 0
            return [position, *last[: RUNS - 1]], missing
    else:
        near = before
    return [position, *(run for run in last if run != (epoch, near))], before - near


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages of another process that will never arrive in this one."""

    publisher: str
    """The `Relay.id` of the relay that published them; `""` if a broker that keeps messages has not kept these."""
    kind: Kind
    """`"topic"` or `"user"`."""
    name: Any
    """The topic or the user."""
    messages: int
    """Number of missing messages; 0 if it is not known, because a broker that keeps messages has lost them."""


class Seen:
    """The last messages of one address."""

    __slots__ = ("address", "clock", "positions")

    def __init__(self, address: Address) -> None:
        self.address: Address = address  # the only copy that is kept: a name may be long, and each publisher sends it
        self.positions: OrderedDict[int, list[Position]] = OrderedDict()  # by publisher: the end of each run
        self.clock: int = 0  # when the last message came


class Inbound:
    """Delivers messages from other processes to a hub.

    A position is valid only while the hub has a subscriber or a connection for the address without interruption, or the
    relay follows the topic nevertheless. After an interruption, the next message follows nothing. Many addresses may
    match a pattern. So the end of a pattern is only recorded, and it is taken into account when the next message of an
    address arrives. The clock counts interests that begin and end.

    Args:
        publisher: The number of this relay, whose own messages come back.
        hub: The hub.
        name: The repr of the relay, for log records.
        on_gap: Called with a `Gap`.
        on_request: Called when another process asks for positions.
        channel: Returns the channel of an address; for None, the channel of all relays.
        keyring: The secrets that messages must be signed with; None if they are not signed.
        presence: Takes the notices of other processes; None if nobody does.
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
        presence: Presence | None = None,
    ) -> None:
        self.received: int = 0
        self.duplicates: int = 0
        self.malformed: int = 0
        self.rejected: int = 0
        self.gaps: int = 0
        self.lost: int = 0
        self.on_gap = on_gap
        self.publisher: int = publisher
        self.lingering: Collection[str] = ()
        """Topics without a subscriber of their own whose messages are delivered nevertheless."""
        self._hub = hub
        self._name = name
        self._on_request = on_request
        self._channel = channel
        self._keyring = keyring
        self._presence = presence
        self._heads: dict[bytes, Address] = {}
        self._seen: OrderedDict[Address, Seen] = OrderedDict()
        self._addresses: dict[int, set[Address]] = {}  # by publisher: the addresses with a position
        self._positions = 0  # in all
        self._delivered: OrderedDict[tuple[int, int], set[str]] = OrderedDict()
        self._delivered_names = 0
        self._clock = 0
        self._interests: dict[Interest, int] = {}  # when each began
        self._past_patterns: deque[tuple[str, int, int]] = deque(maxlen=PAST_PATTERNS)  # when each began and ended
        self._last_end = 0  # when a pattern last ended

    # ---- Interests

    def begin(self, interest: Interest) -> None:
        """Record that a topic, a pattern or a user has a subscriber or a connection in the hub."""
        self._clock += 1
        self._interests[interest] = self._clock

    def end(self, interest: Interest) -> None:
        """Record that it has none any more."""
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

    def on_subscribed(self, interests: Sequence[Interest | None]) -> None:
        """Note that the broker has confirmed subscriptions."""

    def _routes(self, address: Address) -> list[Interest]:
        """Return for which interests the messages of an address are delivered."""
        kind, name = address
        if kind == "user":
            return [address] if self._hub.has_user(name) else []
        routes = self._hub.routes(name)
        return [*routes, address] if name in self.lingering else routes

    def _began(self, interests: list[Interest]) -> int:
        """Return when the first one of some interests began."""
        return min(self._interests.get(interest, self._clock) for interest in interests)

    def _is_continuous(self, topic: str, seen: Seen, began: int) -> bool:
        """Whether the hub has had a subscriber to a topic ever since the topic's last message.

        Args:
            topic: The topic.
            seen: Its last messages.
            began: When the oldest of its current interests began, or of those that have just ended.
        """
        for pattern, first, last in reversed(self._past_patterns):
            if began <= seen.clock or last < began:
                break
            if matches(pattern, topic):
                began = min(began, first)
        return began <= seen.clock

    # ---- Messages

    def reject(self, reason: object) -> None:
        """Count a packet that is ignored, and log the first one."""
        self.rejected += 1
        if self.rejected == 1:
            logger.warning(
                "%s has rejected a message of another process: %s; stats().rejected counts further ones",
                self._name,
                reason,
            )

    def receive(self, data: bytes, channel: Channel) -> None:
        """Process a message from the broker, given the channel that it came by."""
        if data[PUBLISHER] == self.publisher.to_bytes(8):
            if self._presence is not None and data[KIND] == NOTICE:
                self._presence.echo()
            return
        envelope = self._unpack(data, channel)
        if envelope is None:
            return
        if envelope.kind == REQUEST:
            self._on_request()
        elif envelope.kind == GOODBYE:
            for address in list(self._addresses.get(envelope.publisher, ())):
                self._forget(address, envelope.publisher)
            if self._presence is not None:
                self._presence.goodbye(envelope.publisher)
        elif envelope.kind == NOTICE:
            self._take_notice(envelope)
        elif envelope.address is not None:
            routes = self._routes(envelope.address)
            if routes:
                self._receive(envelope, self._last_seen(envelope.address, routes))

    def _unpack(self, data: bytes, channel: Channel) -> Envelope | None:
        """Return the contents of a packet that came by a channel; count it and return None if it is not valid."""
        try:
            envelope = unpack(data, self._keyring, self._heads)
            if channel != self._channel(envelope.address):  # the broker may limit a publisher to some channels
                raise RejectedError("it came by the channel of another topic or user")
            return envelope
        except RejectedError as exc:
            self.reject(exc)
        except ValueError as exc:
            self._ignore(exc)
        return None

    def _ignore(self, reason: object) -> None:
        """Count a malformed packet, and log the first one."""
        self.malformed += 1
        if self.malformed == 1:
            logger.warning(
                "%s has ignored a malformed message: %s; stats().malformed counts further ones", self._name, reason
            )

    def _take_notice(self, envelope: Envelope) -> None:
        """Take a notice of presence, if it is wanted."""
        if self._presence is not None:
            try:
                self._presence.receive(envelope.publisher, envelope.epoch, envelope.number, envelope.notice)
            except (ValueError, TypeError, RecursionError) as exc:
                self._ignore(exc)

    def _new_seen(self, address: Address) -> Seen:
        return Seen(address)

    def _last_seen(self, address: Address, routes: list[Interest]) -> Seen:
        """Return the last messages of an address; none if others may have been missed."""
        seen = self._seen.get(address)
        if seen is None:
            seen = self._seen[address] = self._new_seen(address)
            if len(self._seen) > len(self._interests) + ADDRESSES:  # patterns may match any number of addresses
                self._forget_oldest()
        else:
            self._seen.move_to_end(address)
            if seen.clock < self._last_end and not self._is_continuous(address[1], seen, self._began(routes)):
                self._forget(address)
        seen.clock = self._clock
        return seen

    def _receive(self, envelope: Envelope, seen: Seen) -> None:
        """Deliver messages unless they were received already, and report those missing before them."""
        publisher, epoch, number = envelope.publisher, envelope.epoch, envelope.number
        if not envelope.items:
            self._receive_one(publisher, (epoch, number), None, seen)
        elif seen.positions.get(publisher) == [(epoch, number - 1)]:
            self._receive_following(publisher, (epoch, number), envelope.items, seen)
        else:
            for index, item in enumerate(envelope.items):
                self._receive_one(publisher, (epoch, number + index), item, seen)
                if self._seen.get(seen.address) is not seen:  # the last interest ended meanwhile
                    break

    def _receive_following(self, publisher: int, position: Position, items: Sequence[Item], seen: Seen) -> None:
        """Do the same as `_receive_one()` for messages that directly follow the last one received."""
        epoch, number = position
        try:
            for item in items:
                self._deliver(publisher, seen.address, item)
                self.received += 1
                number += 1
                if self._seen.get(seen.address) is not seen:
                    break
        finally:
            if number != position[1]:
                self._note(seen, publisher, [(epoch, number - 1)])

    def _receive_one(self, publisher: int, position: Position, item: Item | None, seen: Seen) -> None:
        """Deliver a message unless it was received already, and report those missing before it."""
        before = position[1] - (item is not None)
        following = follow(seen.positions.get(publisher, ()), position, before, self._keyring is not None)
        if following is None:
            self.duplicates += item is not None
            return
        positions, missing = following
        if missing and seen.address[0] == "topic":
            # First: positions must not count this message as following the last one.
            self._hub.restart(seen.address[1])
        if item is not None:
            self._deliver(publisher, seen.address, item)
            self.received += 1
        # Recorded only now: otherwise a message that could not be delivered would not be counted as missing.
        self._note(seen, publisher, positions)
        if missing:
            self._report(Gap(f"{publisher:016x}", *seen.address, missing))

    def _count(self, messages: int, *, duplicates: int = 0) -> None:
        """Count messages that were received, and those that were received again."""
        self.received += messages
        self.duplicates += duplicates

    def _note(self, seen: Seen, publisher: int, positions: list[Position]) -> None:
        """Record the last messages of a publisher and address."""
        address = seen.address
        if self._seen.get(address) is not seen:  # the last interest ended while the message was delivered
            return
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
        """Forget the address that was heard from least recently."""
        address = next(iter(self._seen))
        self._forget(address)
        del self._seen[address]

    def _report(self, gap: Gap) -> None:
        self.gaps += 1
        self.lost += gap.messages
        if self.on_gap is not None:
            asyncio.get_running_loop().call_soon(self.on_gap, gap)

    def _deliver(self, publisher: int, address: Address, item: Item, **options: Any) -> None:
        """Deliver a message; options are those of `Hub.deliver()`."""
        kind, name = address
        message = item.message()
        if item.command is not None:
            carry_out(self._hub, address, item.command, message)
            return
        if kind == "user":
            self._hub.deliver_to_user(name, message, item.key)
            return
        if item.publication is None:
            self._hub.deliver(name, message, item.key, exclude_users=item.excluded, tags=item.tags, **options)
            return
        number, topics = item.publication
        options.update(exclude_users=item.excluded, publication=(publisher, number), topics=topics, tags=item.tags)
        if "age" in options:  # it is only retained
            self._hub.deliver(name, message, item.key, **options)
            return
        delivered = self._delivered.setdefault((publisher, number), set())
        # Only topics that this message names: who makes up messages can have any number of others count as delivered.
        others = tuple(topic for topic in topics if topic in delivered)
        self._hub.deliver(name, message, item.key, delivered=others, **options)
        self._delivered_names += name not in delivered
        delivered.add(name)
        if delivered.issuperset(topics):
            self._delivered_names -= len(self._delivered.pop((publisher, number)))
        while len(self._delivered) > PUBLICATIONS or self._delivered_names > DELIVERED:
            self._delivered_names -= len(self._delivered.popitem(last=False)[1])
