"""Publishing to the stream of NATS JetStream, where each packet follows the last one of its topic.

The server does not count messages. So each publisher places its packets itself, after the last one that it knows of,
and the server stores a packet only if that one is still the last of its topic. Otherwise, the publisher asks for the
last one and tries again. A packet whose confirmation was lost is looked for in the stream before it is placed again.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from nats.errors import MaxPayloadError

from .jetstream import LARGEST_OVERHEAD, WRONG_LAST, Connection, Record
from .nats_broker import flush, unless_lost
from .nats_turns import Turns
from .ordering import place_of
from .wire import Address

__all__ = ["TOPICS", "Delay", "Known", "Placing", "together"]

_Result = TypeVar("_Result")

TOPICS = 65536
"""Topics whose last packet is kept in mind."""

UNKNOWN = 64
"""Ranges of messages of a topic of which nobody can tell whether they were stored, that are kept in mind."""

FIRST_DELAY, LAST_DELAY = 0.001, 0.05
"""Seconds before another attempt, if other publishers were first."""

TOO_LARGE = 10054
"""Code of the server's error about a packet that it does not take."""


class _Own(NamedTuple):
    """The last message of a packet, by the numbers of its publisher."""

    publisher: bytes
    epoch: int
    number: int

    @classmethod
    def of(cls, packet: bytes, count: int) -> _Own:
        """Return the last of so many messages of a packet."""
        return cls(packet[4:12], int.from_bytes(packet[12:20]), int.from_bytes(packet[20:28]) + count - 1)

    def covers(self, other: _Own) -> bool:
        """Whether another one is not newer, and by the same publisher."""
        return self.publisher == other.publisher and self >= other


class _Topic:
    """The last record of a topic in the stream, as far as this process knows it."""

    __slots__ = ("_last", "_unknown", "current", "doubt", "epoch", "offset", "placed", "sequence")

    def __init__(self) -> None:
        self.epoch: str = ""
        self.offset: int = 0
        """Offset of the last message."""
        self.sequence: int = 0
        """Sequence of the last record; 0 if there is none."""
        self._last: tuple[int, str, int] | None = None  # sequence, epoch and offset of the record itself
        self.current: bool = False
        """Whether this was asked for, or has come, by the connection that there is."""
        self.placed: _Own | None = None
        """The last message of this process that is known to be stored."""
        self.doubt: _Own | None = None
        """The last one that was to follow the last record, and whose confirmation has not come."""
        # Ranges of messages of which nobody can tell any more whether they were stored: the last one before each that
        # was, and its last one. The latest are kept: packets are tried again together with those before them.
        self._unknown: tuple[tuple[_Own | None, _Own], ...] = ()

    def take(self, last: Record | None) -> None:
        """Continue after the last record. A new epoch begins if it is none, or not what the stream had before."""
        sequence = 0 if last is None else last.sequence
        if (
            last is None
            or not last.epoch
            or sequence < self.sequence
            or (last.epoch == self.epoch and last.last < self.offset)
        ):
            self.epoch, self.offset = secrets.token_hex(8), 0
        else:
            self.epoch, self.offset = last.epoch, last.last
        self.sequence = sequence
        self._last = None if last is None else (sequence, last.epoch, last.last)
        self.current = True

    def follow(self, sequence: int, own: _Own, messages: int) -> None:
        """Note that a packet was stored next."""
        self.offset += messages
        self.sequence, self.placed, self.doubt = sequence, own, None
        self._last = sequence, self.epoch, self.offset

    def is_at(self, last: Record | None) -> bool:
        """Whether this is still the last record."""
        return self._last == (None if last is None else (last.sequence, last.epoch, last.last))

    def try_next(self, last: _Own) -> None:
        """Note that messages up to one may be stored next."""
        self.doubt = (
            max(self.doubt, last) if self.doubt is not None and self.doubt.publisher == last.publisher else last
        )

    def give_up(self, doubt: _Own) -> None:
        """Note that nobody can tell any more whether messages up to one were stored."""
        self._unknown = (*self._unknown[1 - UNKNOWN :], (self.placed, doubt))

    def is_unknown(self, own: _Own) -> bool:
        """Whether nobody can tell any more whether a message was stored."""
        return any(last.covers(own) and (before is None or not before.covers(own)) for before, last in self._unknown)


class Delay:
    """The time between attempts."""

    def __init__(self) -> None:
        self._seconds = 0.0

    async def wait(self) -> None:
        """Wait: not before the second attempt, and then longer and longer."""
        await asyncio.sleep(self._seconds * random.random())
        self._seconds = min(max(FIRST_DELAY, 2 * self._seconds), LAST_DELAY)


class _Contest:
    """The attempts to publish one packet while others publish to its topic."""

    def __init__(self, turns: Turns, topic: str) -> None:
        self._turns = turns
        self._topic = topic
        self._delay = Delay()
        self._began = 0.0
        self._quiet = 0.0

    async def lost(self) -> None:
        """Wait before the next attempt: another publisher was first. Have the others pause if that happens again."""
        now = asyncio.get_running_loop().time()
        if self._began and now >= self._quiet:
            # In the first attempt, they may not have heard of it yet; the second one succeeds.
            seconds = 4 * (now - self._began)
            self._quiet = now + seconds
            await self._turns.ask(self._topic, seconds)
            self._delay = Delay()
        await self._delay.wait()
        self._began = asyncio.get_running_loop().time()


async def together(
    function: Callable[..., Coroutine[Any, Any, _Result]], calls: Iterable[tuple[Any, ...]]
) -> list[_Result]:
    """Call a coroutine function several times, side by side. If one call raises, none of the others goes on."""
    tasks = [asyncio.create_task(function(*arguments)) for arguments in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Known:
    """The last records of topics. Those of topics that were not published to for longest are forgotten."""

    def __init__(self) -> None:
        self._topics: OrderedDict[str, _Topic] = OrderedDict()

    def of(self, topic: str) -> _Topic:
        """Return the last record of a topic."""
        known = self._topics.get(topic)
        if known is None:
            while len(self._topics) >= TOPICS:
                self._topics.popitem(last=False)
            known = self._topics[topic] = _Topic()
        else:
            self._topics.move_to_end(topic)
        return known

    def ask_again(self) -> None:
        """Have the last records be asked for again: the server may have lost them, and numbered others like them."""
        for topic in self._topics.values():
            topic.current = False

    def clear(self) -> None:
        """Forget all: it is about another stream."""
        self._topics.clear()


class Placing:
    """A connection for publishing.

    Args:
        client: The client of the server.
        lost: Done when its connection is lost.
        connection: The same for requests to the stream.
        channel: Returns the subject of an address, for packets without a place.
        known: The last records of topics.
        turns: Has other publishers of a topic pause.
        timeout: Seconds without an answer after which the connection counts as lost.
        single: Whether `publish()` is given packets of one message, and places them. Otherwise, it places none.
    """

    def __init__(
        self,
        client: Any,
        lost: asyncio.Future[None],
        connection: Connection,
        channel: Callable[[Address | None], str],
        known: Known,
        turns: Turns,
        timeout: float,
        *,
        single: bool,
    ) -> None:
        self.largest: int = client.max_payload - LARGEST_OVERHEAD
        """Bytes of the largest packet that the server takes."""
        self._client = client
        self._lost = lost
        self._connection = connection
        self._channel = channel
        self._known = known
        self._turns = turns
        self._timeout = timeout
        self._count = int(single)

    async def publish(self, packets: Sequence[tuple[Address | None, bytes]]) -> dict[int, Exception]:
        """See `wsfast.relay.broker.Sending`."""
        return await self.place([(address, packet, self._count) for address, packet in packets])

    async def place(self, packets: Sequence[tuple[Address | None, bytes, int]]) -> dict[int, Exception]:
        """Publish packets: those of one address one after the other, those of different ones at the same time."""
        queues: dict[Address | None, list[tuple[int, bytes, int]]] = {}
        for index, (address, packet, count) in enumerate(packets):
            queues.setdefault(address, []).append((index, packet, count))
        refused: dict[int, Exception] = {}
        calls = [(address, queue, refused) for address, queue in queues.items()]
        await unless_lost(self._lost, self._publish_queues(calls))
        if any(address is None or address[0] != "topic" or not count for address, _, count in packets):
            await flush(self._client, self._lost, self._timeout)  # nothing else confirms these
        return refused

    async def _publish_queues(self, calls: Sequence[tuple[Any, ...]]) -> None:
        if any(address is not None and address[0] == "topic" for address, *_ in calls):
            await self._connection.verify()
        await together(self._publish_all, calls)

    async def _publish_all(
        self, address: Address | None, queue: Sequence[tuple[int, bytes, int]], refused: dict[int, Exception]
    ) -> None:
        """Publish the packets of an address, and add the reasons of those refused."""
        for index, packet, count in queue:
            if len(packet) > self.largest:
                refused[index] = MaxPayloadError()
            elif address is None or address[0] != "topic" or not count:
                await self._client.publish(self._channel(address), packet)
            else:
                reason = await self._place(address[1], self._known.of(address[1]), packet, count)
                if reason is not None:
                    refused[index] = reason

    async def _place(self, topic: str, known: _Topic, packet: bytes, count: int) -> Exception | None:
        """Publish a packet, unless the topic has it already; return why the server has refused it."""
        own, contest = _Own.of(packet, count), _Contest(self._turns, topic)
        await self._turns.pause(topic)
        while True:
            if known.doubt is not None:
                await self._resolve(topic, known, known.doubt)
            elif not known.current:
                known.take(await self._connection.last(topic))
            if known.is_unknown(own):
                return TimeoutError(
                    "the confirmation was lost, and it cannot be found out whether the packet was stored"
                )
            if known.placed is not None and known.placed.covers(_Own.of(packet, 1)):
                if not known.placed.covers(own):
                    raise ConnectionError("a packet was placed in part; its messages are sent one by one")
                return None
            doubt = known.doubt
            known.try_next(own)
            place = place_of(known.epoch, known.offset + 1)
            answer = await self._connection.add(topic, place, packet, count, known.sequence)
            error = answer.get("error")
            if error is None:
                known.follow(answer["seq"], own, count)
                return None
            known.doubt = doubt
            if error.get("err_code") == TOO_LARGE:
                return ConnectionError(f"the stream has refused the packet: {error.get('description')}")
            if error.get("err_code") not in WRONG_LAST:
                raise ConnectionError(f"the stream stores nothing: {error.get('description')}")
            await contest.lost()  # before asking: what is known must not be old when it is used
            if doubt is None:
                known.take(await self._connection.last(topic))

    async def _resolve(self, topic: str, known: _Topic, doubt: _Own) -> None:
        """Find out whether a packet was stored whose confirmation has not come.

        It was stored only if it is the next one after the last that was known. As long as nothing was stored after that
        one, it may still arrive; but only if no other one is stored before it.
        """
        last = await self._connection.last(topic)
        if known.is_at(last):
            return
        found = await self._connection.next(topic, known.sequence + 1)
        if found is not None and found.epoch:
            own = _Own.of(found.packet, found.messages)
            if own.publisher == doubt.publisher and found.messages:
                known.placed = own
            elif found.first != (known.offset + 1 if found.epoch == known.epoch else 1):
                known.give_up(doubt)  # it may have been stored, and deleted again
        known.take(last)
        known.doubt = None

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()
