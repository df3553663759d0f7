"""NATS JetStream as a broker that orders and keeps the messages of topics, in one stream for all of them.

The server does not count messages. So each publisher places its packets itself, after the last one that it knows of,
and the server stores a packet only if that one is still the last of its topic. Otherwise, the publisher asks for the
last one and tries again. A packet whose confirmation was lost is looked for in the stream before it is placed again.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from ssl import SSLContext
from typing import Any, NamedTuple, TypeVar

from nats.errors import MaxPayloadError

from wsfast.hub import Position

from .broker import Channel, Fetching, Kept, Receive, Receiving, Request, Sending
from .jetstream import LARGEST_OVERHEAD, Connection, Record, Stream
from .nats_broker import NatsBroker, flush, unless_lost
from .ordering import PLACED, place_of
from .wire import Address

__all__ = ["NatsStreams"]

_Result = TypeVar("_Result")

TOPICS = 65536
"""Topics whose last packet is kept in mind."""

PART, PART_BYTES = 1024, 1 << 18
"""Packets per answer, and their bytes unless it is a single packet."""

CURSORS = 1024
"""Topics of which a part was fetched, and for which the place of the next part is kept in mind."""

FIRST_DELAY, LAST_DELAY = 0.001, 0.05
"""Seconds before another attempt, if other publishers were first."""

WRONG_LAST, TOO_LARGE = (10071, 10164), 10054
"""Codes of the server's errors about a packet."""


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
    """What is known of a topic in the stream."""

    __slots__ = ("doubt", "epoch", "offset", "placed", "sequence", "unknown")

    def __init__(self) -> None:
        self.epoch: str = ""
        self.offset: int = 0
        """Offset of the last message."""
        self.sequence: int = 0
        """Sequence of the last record; 0 if there is none."""
        self.placed: _Own | None = None
        """The last message of this process that is known to be stored."""
        self.doubt: _Own | None = None
        """The last one that was to follow the last record, and whose confirmation has not come."""
        self.unknown: _Own | None = None
        """The last one of which nobody can tell any more whether it was stored."""

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

    def try_next(self, last: _Own) -> None:
        """Note that messages up to one may be stored next."""
        self.doubt = (
            max(self.doubt, last) if self.doubt is not None and self.doubt.publisher == last.publisher else last
        )


class _Delay:
    """The time between attempts."""

    def __init__(self) -> None:
        self._seconds = 0.0

    async def wait(self) -> None:
        await asyncio.sleep(self._seconds * random.random())
        self._seconds = min(max(FIRST_DELAY, 2 * self._seconds), LAST_DELAY)


async def _together(coroutines: Sequence[Coroutine[Any, Any, _Result]]) -> list[_Result]:
    """Run coroutines at the same time. If one raises, none of the others goes on."""
    tasks = [asyncio.create_task(one) for one in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class NatsStreams(NatsBroker):
    """A NATS server with JetStream, or a cluster, that keeps the messages of topics.

    Args:
        url: See `wsfast.relay.nats()`.
        prefix: Beginning of the subjects.
        timeout: Seconds without an answer after which a connection counts as lost.
        ssl: Settings of the encryption; None for the system's defaults.
        stream: The settings of the stream.
        single: Whether `publish()` is given packets of one message, and places them. Otherwise, it places none.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        prefix: str,
        timeout: float,
        ssl: SSLContext | None,
        stream: Stream,
        *,
        single: bool = False,
    ) -> None:
        super().__init__(url, prefix, timeout, ssl)
        self.single: bool = single
        self._stream = stream
        self._created = ""
        self._topics: OrderedDict[str, _Topic] = OrderedDict()

    async def open_sending(self) -> Sending:
        """Connect for publishing."""
        client, lost, connection = await self._open()
        if connection.created != self._created:  # what is known is about another stream
            self._created = connection.created
            self._topics.clear()
        return _Placing(self, client, lost, connection, self._timeout)

    async def open_fetching(self) -> Fetching:
        """Connect for asking for messages that are kept."""
        client, lost, connection = await self._open()
        return _Fetching(client, lost, connection, self._stream.messages)

    async def open_receiving(self, receive: Receive, on_missed: Callable[[], None]) -> Receiving:
        """Connect for subscribing."""
        mark = len(place_of("0" * 16, 1))

        def receive_packet(data: bytes, channel: Channel) -> None:
            if len(data) != mark or data[0] != PLACED:
                receive(data, channel)

        return await super().open_receiving(receive_packet, on_missed)

    async def _open(self) -> tuple[Any, asyncio.Future[None], Connection]:
        lost = asyncio.get_running_loop().create_future()
        client = await self.connect(lost)
        connection = Connection(client, self._stream, self._timeout)
        try:
            await unless_lost(lost, connection.open())
        except BaseException:
            await client.close()
            raise
        return client, lost, connection

    def known(self, topic: str) -> _Topic:
        """Return what is known of a topic."""
        known = self._topics.get(topic)
        if known is None:
            while len(self._topics) >= TOPICS:
                self._topics.popitem(last=False)
            known = self._topics[topic] = _Topic()
        else:
            self._topics.move_to_end(topic)
        return known


class _Placing:
    def __init__(
        self, broker: NatsStreams, client: Any, lost: asyncio.Future[None], connection: Connection, timeout: float
    ) -> None:
        self._broker = broker
        self._client = client
        self._lost = lost
        self._connection = connection
        self._timeout = timeout
        self.largest: int = client.max_payload - LARGEST_OVERHEAD

    async def publish(self, packets: Sequence[tuple[Address | None, bytes]]) -> dict[int, Exception]:
        count = int(self._broker.single)
        return await self.place([(address, packet, count) for address, packet in packets])

    async def place(self, packets: Sequence[tuple[Address | None, bytes, int]]) -> dict[int, Exception]:
        """Publish packets: those of one address one after the other, those of different ones at the same time."""
        queues: dict[Address | None, list[tuple[int, bytes, int]]] = {}
        for index, (address, packet, count) in enumerate(packets):
            queues.setdefault(address, []).append((index, packet, count))
        refused: dict[int, Exception] = {}
        await unless_lost(self._lost, _together([self._publish_all(*one, refused) for one in queues.items()]))
        if any(address is None or address[0] != "topic" or not count for address, _, count in packets):
            await flush(self._client, self._lost, self._timeout)  # nothing else confirms these
        return refused

    async def _publish_all(
        self, address: Address | None, queue: Sequence[tuple[int, bytes, int]], refused: dict[int, Exception]
    ) -> None:
        """Publish the packets of an address, and add the reasons of those refused."""
        for index, packet, count in queue:
            if len(packet) > self.largest:
                refused[index] = MaxPayloadError()
            elif address is None or address[0] != "topic" or not count:
                await self._client.publish(self._broker.channel(address), packet)
            else:
                reason = await self._place(address[1], self._broker.known(address[1]), packet, count)
                if reason is not None:
                    refused[index] = reason

    async def _place(self, topic: str, known: _Topic, packet: bytes, count: int) -> Exception | None:
        """Publish a packet, unless the topic has it already; return why the server has refused it."""
        own, delay = _Own.of(packet, count), _Delay()
        while True:
            if not known.epoch:
                known.take(await self._connection.last(topic))
            if known.doubt is not None:
                await self._resolve(topic, known, known.doubt)
            if known.unknown is not None and known.unknown.covers(own):
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
                known.offset, known.sequence, known.placed, known.doubt = known.offset + count, answer["seq"], own, None
                return None
            known.doubt = doubt
            if error.get("err_code") == TOO_LARGE:
                return ConnectionError(f"the stream has refused the packet: {error.get('description')}")
            if error.get("err_code") not in WRONG_LAST:
                raise ConnectionError(f"the stream stores nothing: {error.get('description')}")
            if doubt is None:
                known.take(await self._connection.last(topic))
            await delay.wait()

    async def _resolve(self, topic: str, known: _Topic, doubt: _Own) -> None:
        """Find out whether a packet was stored whose confirmation has not come.

        It was stored only if it is the next one after the last that was known. As long as nothing was stored after that
        one, it may still arrive; but only if no other one is stored before it.
        """
        last = await self._connection.last(topic)
        if (0 if last is None else last.sequence) == known.sequence:
            return
        found = await self._connection.next(topic, known.sequence + 1)
        if found is not None and found.epoch:
            own = _Own.of(found.packet, found.messages)
            if own.publisher == doubt.publisher and found.messages:
                known.placed = own
            elif found.first != (known.offset + 1 if found.epoch == known.epoch else 1):
                known.unknown = doubt  # it may have been stored, and deleted again
        known.take(last)
        known.doubt = None

    async def close(self) -> None:
        await self._client.close()


class _Fetching:
    def __init__(self, client: Any, lost: asyncio.Future[None], connection: Connection, messages: int) -> None:
        self._client = client
        self._lost = lost
        self._connection = connection
        self._messages = messages
        self._cursors: OrderedDict[tuple[str, Position], int] = OrderedDict()

    async def fetch(self, requests: Sequence[Request]) -> Sequence[Kept]:
        return await unless_lost(self._lost, _together([self._fetch(request) for request in requests]))

    async def _fetch(self, request: Request) -> Kept:
        topic, since, sure = request
        delay = _Delay()
        while True:
            last = await self._connection.last(topic)
            if last is None or not last.epoch:
                kept = await self._begin_epoch(topic, last)
            else:
                if since is not None and since.epoch == last.epoch:
                    after = since.offset
                else:
                    after = max(0, last.last - self._messages)  # packets may keep many more
                if after > last.last and sure:
                    kept = await self._begin_epoch(topic, last)
                elif after >= last.last:
                    kept = Kept(last.epoch, last.last, (), False)
                else:
                    kept = await self._read(topic, last, after)
            if kept is not None:
                return kept
            await delay.wait()

    async def _begin_epoch(self, topic: str, last: Record | None) -> Kept | None:
        """Begin a new epoch after the last record; return None if that is not the last any more."""
        epoch = secrets.token_hex(8)
        answer = await self._connection.add(topic, place_of(epoch, 1), b"", 0, 0 if last is None else last.sequence)
        error = answer.get("error")
        if error is not None and error.get("err_code") not in WRONG_LAST:
            raise ConnectionError(f"the stream stores nothing: {error.get('description')}")
        return Kept(epoch, 0, (), False) if error is None else None

    async def _read(self, topic: str, last: Record, after: int) -> Kept | None:
        """Return a part of the messages after an offset in the last record's epoch; None if something has changed."""
        epoch, offset = last.epoch, last.last
        start = self._cursors.pop((topic, Position(epoch, after)), None)
        if start is None and (start := await self._find(topic, last, after)) is None:
            return None
        records, more = await self._connection.read(topic, start, PART, PART_BYTES)
        if not records or (not more and records[-1].sequence < last.sequence):
            return None  # the server that has answered lags behind
        now = time.time() + self._connection.ahead
        packets = []
        for record in records:
            if record.epoch != epoch:
                return None
            if record.messages:
                packets.append((record.last, max(0.0, now - record.stored), record.packet))
                offset = max(offset, record.last)
        if more:
            self._cursors[topic, Position(epoch, records[-1].last)] = records[-1].sequence + 1
            if len(self._cursors) > CURSORS:
                self._cursors.popitem(last=False)
        return Kept(epoch, offset, packets, bool(more))

    async def _find(self, topic: str, last: Record, after: int) -> int | None:
        """Return the sequence of the first record with messages after an offset in the last record's epoch.

        It is found by bisection, since the stream knows no offsets. None if the topic was deleted meanwhile.
        """
        low, high = 1, last.sequence
        probe = 1
        while low < high:
            record = await self._connection.next(topic, probe)
            if record is None:
                return None
            if record.epoch == last.epoch and record.last > after:
                high = probe
            else:
                low = record.sequence + 1
            probe = (low + high) // 2
        return high

    async def close(self) -> None:
        await self._client.close()
