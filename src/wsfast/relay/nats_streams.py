"""NATS JetStream as a broker that orders and keeps the messages of topics, in one stream for all of them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from ssl import SSLContext
from typing import Any

from wsfast.hub import Position

from .broker import Fetching, Kept, Receive, Request, Sending, close
from .jetstream import COUNT, NUMBER, SEQUENCE, WRONG_LAST, Connection, Record, Stream
from .nats_broker import NatsBroker, unless_lost
from .nats_placing import TOPICS, Delay, Known, Placing, together
from .nats_turns import Turns
from .ordering import PLACE, PLACED, place_of

__all__ = ["NatsStreams"]

PART, PART_BYTES = 1024, 1 << 18
"""Packets per answer, and their bytes unless it is a single packet."""

CURSORS = 1024
"""Topics of which a part was fetched, and for which the place of the next part is kept in mind."""


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
        self._single = single
        self._stream = stream
        self._created = ""
        # Place, number of messages and sequence of the last packet of each topic, by its subject; not verified.
        self._heard: OrderedDict[str, tuple[bytes, str, str]] = OrderedDict()
        self._known = Known()

    async def open_sending(self) -> Sending:
        """Connect for publishing."""
        client, lost, connection = await self._open()
        if connection.created != self._created:  # what is known is about another stream
            self._created = connection.created
            self._known.clear()
        else:
            self._known.ask_again()
        turns = Turns(client, f"{self._prefix}.turns")
        try:
            await turns.begin()
        except BaseException:
            await close(client)
            raise
        return Placing(client, lost, connection, self.channel, self._known, turns, self._timeout, single=self._single)

    async def open_fetching(self) -> Fetching:
        """Connect for asking for messages that are kept."""
        client, lost, connection = await self._open()
        return _Fetching(self, client, lost, connection, self._stream.messages)

    def receiver(self, receive: Receive) -> Callable[[Any], None]:
        """Return what is called with each message of the client's, and calls `receive` unless it is a mark."""
        mark = len(place_of("0" * 16, 1))
        placed = bytes([PLACED])
        heard = self._heard

        def receive_packet(message: Any) -> None:
            data, subject, headers = message.data, message.subject, message.headers
            if headers is not None and data[:1] == placed:
                if len(data) == mark:
                    return
                heard[subject] = data[:mark], headers.get(COUNT, ""), headers.get(SEQUENCE, "")
                heard.move_to_end(subject)
                if len(heard) > TOPICS:
                    heard.popitem(last=False)
            receive(data, subject)

        return receive_packet

    async def _open(self) -> tuple[Any, asyncio.Future[None], Connection]:
        lost = asyncio.get_running_loop().create_future()
        client = await self.connect(lost)
        connection = Connection(client, self._stream, self._timeout)
        try:
            await unless_lost(lost, connection.open())
        except BaseException:
            await close(client)
            raise
        return client, lost, connection

    def heard_last(self, topic: str) -> tuple[Position, int] | None:
        """Return the position after the last packet that was received, and its sequence; these may be forged."""
        place, *numbers = self._heard.get(self.channel(("topic", topic)), (b"", "", ""))
        found = PLACE.fullmatch(place)
        if found is None or not all(map(NUMBER.fullmatch, numbers)):
            return None
        count, sequence = map(int, numbers)
        return Position(found[1].decode(), int(found[2]) + count - 1), sequence


class _Fetching:
    def __init__(
        self, broker: NatsStreams, client: Any, lost: asyncio.Future[None], connection: Connection, messages: int
    ) -> None:
        self._broker = broker
        self._client = client
        self._lost = lost
        self._connection = connection
        self._messages = messages
        self._cursors: OrderedDict[tuple[str, Position], int] = OrderedDict()

    async def fetch(self, requests: Sequence[Request]) -> Sequence[Kept]:
        return await unless_lost(self._lost, together(self._fetch, zip(requests)))

    async def _fetch(self, request: Request) -> Kept:
        topic, since, sure = request
        delay = Delay()
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
        start = self._guess(topic, Position(epoch, after))
        records, more = await self._connection.read(topic, start, PART, PART_BYTES) if start else ([], 0)
        if not records or records[0].epoch != epoch or records[0].first != after + 1:
            if (start := await self._find(topic, last, after)) is None:
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

    def _guess(self, topic: str, position: Position) -> int | None:
        """Return the sequence from which on to look for what follows a position, if it is likely to be known."""
        if (start := self._cursors.pop((topic, position), None)) is not None:
            return start
        heard = self._broker.heard_last(topic)
        return heard[1] + 1 if heard is not None and heard[0] == position else None

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
