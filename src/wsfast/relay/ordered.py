"""A relay through a broker that orders and keeps the messages of topics, so that clients may come back to any process.

A message to a topic goes to the broker first, and every process delivers it when it comes back from there, also the one
that has published it. Messages to users are treated as by any other relay.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakSet

from wsfast.hub import Hub, Position

from .broker import Channel, Interest, Kept
from .inbound import Gap, Inbound, Seen
from .ordered_outbound import UNPLACED
from .ordering import PLACE, PLACED, Order, Placed, Stored
from .wire import KIND, MESSAGE, PUBLISHER, Address, Envelope, Item

__all__ = ["OrderedInbound"]

WAITING, WAITING_BYTES = 16384, 64 << 20
"""Most packets that wait for what is missing before them, and their size."""

COMMANDS = 1024
"""Publishers and topics for which the time of the last command is kept."""

EXCLUDED = 16384
"""Own messages on their way through the broker whose excluded connections are kept."""


class Followed(Seen):
    """The last messages of one address; of a topic, also their order. It is the sink of that order."""

    __slots__ = ("_answered", "_inbound", "order", "own")

    def __init__(self, address: Address, inbound: OrderedInbound) -> None:
        super().__init__(address)
        self._inbound = inbound
        self.own: tuple[int, int] = inbound.last_own(address)
        """The last message that this process had published before the first subscriber came."""
        self.order: Order = Order(self, awaits=inbound.is_wanted(address))
        self._answered: asyncio.Future[None] | None = None

    def reset(self) -> None:
        """Begin anew: messages may have been missed that nobody wanted."""
        self.order.close()
        self.own = self._inbound.last_own(self.address)
        self.order = Order(self, awaits=self._inbound.is_wanted(self.address))
        self._wake()

    def answered(self) -> asyncio.Future[None]:
        """Return what is done once the broker has answered: the same for all who wait. Do not cancel it."""
        if self._answered is None:
            self._answered = asyncio.get_running_loop().create_future()
        return self._answered

    def _wake(self) -> None:
        answered, self._answered = self._answered, None
        if answered is not None:
            answered.set_result(None)

    # ---- The sink: see `Sink`

    def ask(self) -> None:
        self._inbound.on_due(self.address[1])

    def has_room(self, size: int) -> bool:
        inbound = self._inbound
        return inbound.waiting < WAITING and inbound.waiting_bytes + size <= WAITING_BYTES

    def waits(self, packets: int, size: int) -> None:
        self._inbound.waiting += packets
        self._inbound.waiting_bytes += size

    def deliver(self, placed: Placed, start: int) -> None:
        self._inbound.deliver_placed(self, placed, start)

    def starts(self, placed: Placed) -> int | None:
        return self._inbound.starts(self, placed.envelope)

    def retain(self, placed: Placed, stop: int, age: float) -> None:
        self._inbound.retain(self, placed, stop, age)

    def missing(self, count: int) -> None:
        self._inbound.report_missing(self.address, count)

    def reject(self, placed: Placed) -> None:
        self._inbound.reject("the broker has not placed it")

    def begin(self, position: Position) -> None:
        self._inbound.locate(self.address[1], position, clear=True)

    def end(self, position: Position) -> None:
        self._inbound.locate(self.address[1], position)
        self._wake()


class OrderedInbound(Inbound):
    """Delivers messages to a hub: those to topics in the order that the broker has given them.

    Args:
        publisher: See `Inbound`.
        hub: See `Inbound`.
        *arguments: See `Inbound`.
        last_own: Returns the epoch and the number of the last message that this process has published to an address.
    """

    def __init__(
        self, publisher: int, hub: Hub, *arguments: Any, last_own: Callable[[Address], tuple[int, int]]
    ) -> None:
        super().__init__(publisher, hub, *arguments)
        self.on_due: Callable[[str], None] = lambda topic: None
        self.waiting: int = 0
        self.waiting_bytes: int = 0
        self.last_own = last_own
        self._commands: OrderedDict[tuple[int, Address], int] = OrderedDict()  # time of the last one of a publisher
        self._excluded: OrderedDict[tuple[str, int, int], WeakSet[Any]] = OrderedDict()
        self._returning: dict[int, asyncio.Future[None]] = {}  # own commands on their way, by their times

    # ---- Interests

    def is_wanted(self, address: Address) -> bool:
        """Whether a topic has subscribers by its name: then its history is fetched."""
        return address in self._interests

    def begin(self, interest: Interest) -> None:
        """Record that a topic, a pattern or a user has a subscriber or a connection in the hub."""
        super().begin(interest)
        if interest[0] != "topic":
            return
        seen = self._seen.get(interest)
        if seen is None:
            seen = self._seen[interest] = self._new_seen(interest)
        else:  # there is, or was, a subscriber by a pattern
            others = [route for route in self._routes(interest) if route != interest]
            if not others or not self._is_continuous(interest[1], seen, self._began(others)):
                self._forget(interest)
        seen.clock = self._clock

    def end(self, interest: Interest) -> None:
        """Record that it has none any more."""
        super().end(interest)
        seen = self.followed(interest[1]) if interest[0] == "topic" else None
        if seen is not None and not seen.order.loaded:  # subscribers by a pattern wait for what was to be fetched
            seen.order.load()

    def on_subscribed(self, interests: Sequence[Interest | None]) -> None:
        """Fetch the history of topics, now that the broker has confirmed the subscriptions to them."""
        for interest in interests:
            if interest is not None and interest in self._interests:
                seen = self.followed(interest[1]) if interest[0] == "topic" else None
                if seen is not None and not seen.order.loaded:
                    seen.order.load()

    def fetch_all(self) -> None:
        """Fetch what was published while there was no connection."""
        for seen in list(self._seen.values()):
            if isinstance(seen, Followed) and seen.order.position is not None:
                seen.order.fetch()

    def followed(self, topic: str) -> Followed | None:
        """Return what is known of a topic that has a subscriber."""
        seen = self._seen.get(("topic", topic))
        return seen if isinstance(seen, Followed) else None

    def _new_seen(self, address: Address) -> Seen:
        return Followed(address, self) if address[0] == "topic" else Seen(address)

    def _forget(self, address: Address, *publishers: int) -> None:
        super()._forget(address, *publishers)
        seen = self._seen.get(address)
        if not publishers and isinstance(seen, Followed):
            seen.reset()

    def _forget_oldest(self) -> None:
        address = next(iter(self._seen))
        if address[0] == "topic" and self.is_wanted(address):  # its position must be kept
            super()._forget(address, *self._seen[address].positions)
            self._seen.move_to_end(address)
        else:
            super()._forget_oldest()

    # ---- Packets

    def receive(self, data: bytes, channel: Channel) -> None:
        """Process a message from the broker, given the channel that it came by."""
        if data[:1] != bytes([PLACED]):
            if self._returning and data[PUBLISHER] == self.publisher.to_bytes(8) and data[KIND] == MESSAGE:
                self._receive_own(data, channel)
            super().receive(data, channel)
            return
        place = PLACE.match(data)
        envelope = self._unpack(data[place.end() :] if place else data, channel)
        if envelope is None or place is None:
            return
        address = envelope.address
        if envelope.kind != MESSAGE or address is None or address[0] != "topic":
            self.reject("it has a place, and is no message to a topic")
            return
        routes = self._routes(address)
        if not routes:
            return
        seen = self._last_seen(address, routes)
        assert isinstance(seen, Followed)
        placed = Placed(place[1].decode(), int(place[2]), envelope, len(data))
        position = seen.order.position
        following = position is not None and (placed.epoch, placed.first) == (position.epoch, position.offset + 1)
        if following and self._keyring is not None and self._is_replayed(seen, envelope):
            self.reject("it was published before")
            return
        seen.order.receive(placed)

    def _is_replayed(self, seen: Seen, envelope: Envelope) -> bool:
        """Whether a packet is not newer than the last one of its publisher."""
        last = seen.positions.get(envelope.publisher)
        return last is not None and (envelope.epoch, envelope.number) <= last[0]

    def _receive(self, envelope: Envelope, seen: Seen) -> None:
        if isinstance(seen, Followed):
            if envelope.epoch == UNPLACED and all(item.command for item in envelope.items):
                for item in envelope.items:
                    self._in_order(seen, len(item.payload), partial(self._carry_out, envelope.publisher, seen, item))
            elif envelope.items:
                self.reject("it has no place: give recover=True to the relays of all processes, or to none")
            return
        super()._receive(envelope, seen)

    def _carry_out(self, publisher: int, seen: Seen, item: Item) -> None:
        """Carry out a command unless it was received already. It has no number, but later ones have a later time."""
        assert item.command is not None
        key = publisher, seen.address
        if item.command[0] <= self._commands.get(key, 0):
            self._count(0, duplicates=1)
            return
        self._deliver(publisher, seen.address, item)
        self._commands[key] = item.command[0]
        self._commands.move_to_end(key)
        if len(self._commands) > COMMANDS:
            self._commands.popitem(last=False)
        self._count(1)

    def _in_order(self, seen: Followed, size: int, call: Callable[[], object]) -> None:
        """Call after the messages of a topic that wait for the broker's answer, if so many bytes may wait as well."""
        if not (seen.order.fetching and seen.has_room(size)):
            call()
            return

        def answered(_: object) -> None:
            seen.waits(-1, -size)
            self._in_order(seen, size, call)

        seen.waits(1, size)
        seen.answered().add_done_callback(answered)

    def _receive_own(self, data: bytes, channel: Channel) -> None:
        """Note that a command of this process has come back, and so have all messages before it."""
        envelope = self._unpack(data, channel)
        for item in () if envelope is None else envelope.items:
            returning = None if item.command is None else self._returning.pop(item.command[0], None)
            if returning is None or envelope is None or envelope.address is None:
                continue
            seen = self._seen.get(envelope.address)
            if isinstance(seen, Followed):
                self._in_order(seen, 0, partial(_finish, returning))
            else:
                _finish(returning)

    def returning(self, when: int) -> asyncio.Future[None]:
        """Return what is done once a command of this process has come back, given its time. Cancel it at the end."""
        returning = self._returning[when] = asyncio.get_running_loop().create_future()
        returning.add_done_callback(lambda _: self._returning.pop(when, None))
        return returning

    def stop(self) -> None:
        """Have nobody wait any more for commands to come back."""
        for returning in list(self._returning.values()):
            _finish(returning)

    def stored(self, topic: str, serial: int, kept: Kept) -> None:
        """Take a part of what the broker keeps of a topic."""
        seen = self.followed(topic)
        if seen is None:
            return
        packets: list[tuple[Placed, float]] = []
        for last, age, data in kept.packets:
            envelope = self._unpack(data, self._channel(seen.address))
            if envelope is not None and envelope.items:
                packets.append((Placed(kept.epoch, last + 1 - len(envelope.items), envelope), age))
        resume = kept.packets[-1][0] if kept.packets else kept.offset
        seen.order.stored(serial, Stored(kept.epoch, kept.offset, packets, kept.more, resume))

    # ---- Messages

    def deliver_placed(self, seen: Followed, placed: Placed, start: int) -> None:
        """Deliver the messages of a packet from an index on."""
        envelope, topic = placed.envelope, seen.address[1]
        self._follow(seen, envelope, start)
        self.locate(topic, Position(placed.epoch, placed.first - 1 + start))
        own = envelope.publisher == self.publisher
        for index, item in enumerate(envelope.items[start:], start):
            options: dict[str, Any] = {}
            if own and self._excluded:
                excluded = self._excluded.pop((topic, envelope.epoch, envelope.number + index), None)
                if excluded:
                    options["exclude"] = list(excluded)
            self._count(not own)
            self._deliver(envelope.publisher, seen.address, item, **options)
            if self._seen.get(seen.address) is not seen:  # the last interest ended meanwhile
                break

    def _follow(self, seen: Followed, envelope: Envelope, start: int) -> None:
        """Report what the publisher of a packet has dropped before it: it has numbers, and the broker never got it."""
        publisher, epoch, number = envelope.publisher, envelope.epoch, envelope.number + start
        last = seen.positions.get(publisher)
        if last is not None and last[0][0] == epoch and number > last[0][1] + 1:
            self._report(Gap(f"{publisher:016x}", *seen.address, number - last[0][1] - 1))
        self._note(seen, publisher, [(epoch, envelope.number + len(envelope.items) - 1)])

    def starts(self, seen: Followed, envelope: Envelope) -> int | None:
        """Return which message of a packet is the first that this process published after its first subscriber came."""
        if envelope.publisher != self.publisher:
            return None
        epoch, number = seen.own
        if envelope.epoch != epoch:
            return 0 if envelope.epoch > epoch else None
        start = max(0, number + 1 - envelope.number)
        return start if start < len(envelope.items) else None

    def retain(self, seen: Followed, placed: Placed, stop: int, age: float) -> None:
        """Add the messages of a packet up to an index to the hub's history."""
        envelope = placed.envelope
        self._note(seen, envelope.publisher, [(envelope.epoch, envelope.number + stop - 1)])
        self.locate(seen.address[1], Position(placed.epoch, placed.first - 1))
        for item in envelope.items[:stop]:
            self._deliver(envelope.publisher, seen.address, item, age=age)

    def locate(self, topic: str, position: Position, *, clear: bool = False) -> None:
        """Number the hub's next messages of a topic from a position."""
        self._hub.locate(topic, position, clear=clear)

    def exclude(self, topics: tuple[str, ...], members: Collection[Any]) -> None:
        """Remember the members who do not get the message that was just published when it comes back."""
        excluded = WeakSet(members)
        for topic in topics:
            self._excluded[(topic, *self.last_own(("topic", topic)))] = excluded
        while len(self._excluded) > EXCLUDED:
            self._excluded.popitem(last=False)

    def report_missing(self, address: Address, count: int) -> None:
        """Report messages that the broker does not keep any more."""
        super()._forget(address)  # else they would be reported once more, by the numbers of their publishers
        self._report(Gap("", *address, count))

    # ---- For clients that come back

    def is_loaded(self, topic: str, since: Position | None) -> bool:
        """See `wsfast.hub.Relay`."""
        seen = self.followed(topic)
        if seen is None or not seen.order.loaded or (position := seen.order.position) is None:
            return False
        return since is None or (since.epoch == position.epoch and since.offset <= position.offset)

    async def load(self, topics: Mapping[str, Position | None]) -> None:
        """Fetch what the hub's history lacks, and wait until it is there."""
        answers = []
        for topic, since in topics.items():
            seen = self.followed(topic)
            if seen is not None and not self.is_loaded(topic, since):
                if seen.order.loaded:  # the client has seen more than this process, or another epoch
                    seen.order.fetch()
                answers.append(seen.answered())
        if answers:
            await asyncio.wait(answers)
            await self.load({topic: None for topic in topics if not self.is_loaded(topic, None)})

    async def catch_up(self) -> None:
        """Wait until the messages that this process has published have come back."""
        answers = []
        for seen in list(self._seen.values()):
            if isinstance(seen, Followed) and seen.order.position is not None:
                last = self.last_own(seen.address)
                if last != (0, 0) and seen.positions.get(self.publisher) != [last]:
                    seen.order.fetch()
                    answers.append(seen.answered())
        if answers:
            await asyncio.wait(answers)


def _finish(future: asyncio.Future[None]) -> None:
    """Set the result of a future, unless it was cancelled."""
    if not future.done():
        future.set_result(None)
