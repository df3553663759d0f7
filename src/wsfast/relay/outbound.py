"""Messages for other processes: numbered per topic and user, queued within bounds, published in batches.

The messages of a batch that have the same topic or user travel together, in one packet or a few.

Messages that the broker has not confirmed are sent again. A receiver that has them already recognizes their numbers.
Other relays notice missing messages when the next message comes. When there is none, they are sent *positions*, the
number of the last message of each address: after a connection was lost, after messages were dropped, and on request.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from wsfast._encoding.message import PreparedMessage
from wsfast.hub import Command, Kind
from wsfast.hub.filters import NO_TAGS, Tags
from wsfast.policies import DropNewest, DropOldest

from .broker import Backoff, Broker, Sending, close
from .commands import Parts, address_of, parts_of
from .packing import NO_MESSAGE, Numbered, Packet, Queued, packets_of
from .presence import Presence
from .wire import GOODBYE, NOTICE, POSITION, REQUEST, Address, Keyring, encode_item, head_of, join

__all__ = ["ADDRESSES", "Outbound"]

BATCH = 2048
"""Messages per batch. The broker must confirm a batch before the next one is sent."""

BATCH_BYTES = 1 << 20
"""Bytes per batch, unless it is a single message."""

ADDRESSES = 65536
"""Topics and users whose position is kept."""

POSITION_INTERVAL = 1.0
"""Minimum number of seconds between two announcements of positions."""

POSITIONS = 4096
"""Positions up to which that interval holds; with more, it grows in proportion."""


class Outbound:
    """Publishes the messages of a hub.

    Args:
        publisher: The number of the relay.
        broker: The broker.
        slow: Policy for messages that wait for the broker.
        timeout: Seconds without an answer after which the connection counts as lost.
        on_connected: Called with True after connecting, and with False and the reason when there is no connection.
        keyring: The secrets that messages are signed with; None if they are not signed.
        presence: Its notices are sent before the messages that wait; None if there are none.
    """

    def __init__(
        self,
        publisher: int,
        broker: Broker,
        slow: DropOldest | DropNewest,
        timeout: float,
        on_connected: Callable[..., None],
        keyring: Keyring | None = None,
        presence: Presence | None = None,
    ) -> None:
        self.published: int = 0
        self.sent: int = 0
        self.dropped: int = 0
        self.reconnects: int = 0
        self.publisher: int = publisher
        self._broker = broker
        self._slow = slow
        self._timeout = timeout
        self._on_connected = on_connected
        self._keyring = keyring
        self._presence = presence
        self._queue: deque[Queued] = deque()
        self._queue_bytes = 0
        self._batch: list[Queued] = []
        self._most = BATCH  # maximum number of messages in the next batch
        self._positions: OrderedDict[Address, Numbered] = OrderedDict()
        self._epoch = 0
        self._commanded = 0  # time of the last command
        self._positions_due = self._request_due = self._goodbye_due = False
        self._positions_sent = 0.0  # time of the last announcement
        self._changed = asyncio.Event()
        self._finished = asyncio.Event()

    @property
    def queued(self) -> int:
        """Messages that the broker has not confirmed yet."""
        return len(self._queue) + len(self._batch)

    # ---- Queue

    def forward(
        self,
        kind: Kind,
        names: tuple[Any, ...],
        message: PreparedMessage,
        key: Hashable,
        excluded: tuple[Any, ...],
        tags: Tags = NO_TAGS,
    ) -> None:
        """Enqueue a message for other processes, as far as the policy allows."""
        # The number cannot be guessed before it is published.
        publication = (secrets.randbits(63), names) if len(names) > 1 else None
        data: bytes | None
        try:
            data = encode_item(message, key, excluded, publication, tags=tags)
        except ValueError:  # it is too large
            data = None
        for name in names:
            self._enter(self._position_of((kind, name)), data)
        self._changed.set()

    def command(self, command: Command) -> int:
        """Enqueue a command for other processes, after the messages before it, as far as the policy allows.

        Returns:
            The time that it carries, which no other command of this process has.
        """
        kind, name = address_of(command)
        parts = self._parts_of(command)
        self._enter(self._position_of((kind, name)), self._item_of(command, parts), last=True)
        self._changed.set()
        return parts[0]

    def _item_of(self, command: Command, parts: Parts) -> bytes | None:
        """Return the bytes of a command; None if they are too many."""
        try:
            return encode_item(command.message or NO_MESSAGE, command=parts)
        except ValueError:
            return None

    def _parts_of(self, command: Command) -> Parts:
        self._commanded = max(time.time_ns(), self._commanded + 1)
        return parts_of(command, self._commanded)

    def _enter(self, position: Numbered, data: bytes | None, *, last: bool = False) -> None:
        """Give the next number to an item; enqueue it unless it is None, because it is too large."""
        position.number += 1
        self.published += 1
        if data is None or not position.head:
            self._drop()
        else:
            self._enqueue(position, data, last)

    def _position_of(self, address: Address) -> Numbered:
        position = self._positions.get(address)
        if position is None:
            if len(self._positions) >= ADDRESSES:
                self._positions.popitem(last=False)
            self._epoch = max(time.time_ns(), self._epoch + 1)
            position = self._positions[address] = Numbered(address, self._epoch)
        else:
            self._positions.move_to_end(address)
        return position

    def _enqueue(self, position: Numbered, data: bytes, last: bool) -> None:
        queue, slow, size = self._queue, self._slow, len(data)
        most, most_bytes = slow.max_messages, slow.max_bytes
        while queue and (
            (most is not None and len(queue) >= most)
            or (most_bytes is not None and self._queue_bytes + size > most_bytes)
        ):
            self._drop()
            if isinstance(slow, DropNewest):
                return
            self._queue_bytes -= len(queue.popleft().data)
        queue.append(Queued(position, position.number, data, time.monotonic(), last))
        self._queue_bytes += size

    def _drop(self, count: int = 1) -> None:
        self.dropped += count
        self._positions_due = True

    def last(self, address: Address) -> tuple[int, int]:
        """Return the epoch and the number of the last message of an address; smaller ones if there was none."""
        position = self._positions.get(address)
        return (0, 0) if position is None else (position.epoch, position.number)

    # ---- Announcements to other relays

    def announce(self) -> None:
        """Announce the positions to other relays soon."""
        self._positions_due = True
        self._changed.set()

    def wake(self) -> None:
        """Send what is due."""
        self._changed.set()

    def resynchronize(self) -> None:
        """Announce the positions to other relays soon, and ask for theirs."""
        self._request_due = True
        self.announce()

    async def finish(self) -> None:
        """Wait until everything is sent: messages, positions, and the announcement that no more will come."""
        self._goodbye_due = True
        self._changed.set()
        while self._goodbye_due:
            self._finished.clear()
            await self._finished.wait()

    # ---- To the broker

    async def run(self) -> None:
        """Publish queued messages, forever, and reconnect when the connection is lost."""
        backoff = Backoff()
        again = False
        while True:
            sending: Sending | None = None
            try:
                async with asyncio.timeout(self._timeout):
                    sending = await self._broker.open_sending()
                self.reconnects += again
                self._positions_due |= again
                again = True
                self._on_connected(True)
                backoff.reset()
                while True:
                    await self._publish(sending)
            except Exception as exc:
                again = True
                self._on_connected(False, exc)
                if sending is not None:
                    self._shorten_batch()
            finally:
                if sending is not None:
                    await close(sending)
            await backoff.wait()

    async def _publish(self, sending: Sending) -> None:
        """Publish the next batch. When the queue is empty, publish what other relays must be told."""
        if not self._batch:
            await self._next_batch()
        if self._presence is not None and self._presence.due:
            await self._publish_notices(sending, self._presence)
        if self._batch:
            packets = self._packets(self._batch, sending.largest)
            async with asyncio.timeout(self._timeout):
                refused = await self._send(sending, packets)
            dropped = sum(packets[index].messages for index in refused)
            count, self._batch = len(self._batch), []
            self._most = min(self._most + self._most // 8 + 1, BATCH)
            self.sent += count - dropped
            if dropped:
                self._drop(dropped)
        if not self._queue:
            await self._publish_control(sending)

    async def _send(self, sending: Any, packets: Sequence[Packet]) -> dict[int, Exception]:
        """Give packets to the broker; return the reasons of those that it has refused, by index."""
        refused: dict[int, Exception] = await sending.publish([(packet.address, packet.data) for packet in packets])
        return refused

    def _packets(self, batch: Iterable[Queued], largest: int) -> list[Packet]:
        """Return the packets of a batch. See `packets_of()`."""
        return packets_of(batch, largest, self.publisher, self._keyring)

    def _shorten_batch(self) -> None:
        """Put half of the batch back, since its size may have caused the timeout. Later batches grow slowly."""
        half = (len(self._batch) + 1) // 2
        self._most = half or self._most
        for item in reversed(self._batch[half:]):
            self._queue.appendleft(item)
            self._queue_bytes += len(item.data)
        del self._batch[half:]

    async def _next_batch(self) -> None:
        """Wait until there is a batch, or something to announce."""
        while not self._batch:
            self._changed.clear()
            if not self._queue:
                delay = self._positions_delay() if self._positions_due else None
                if self._request_due or self._goodbye_due or (delay is not None and delay <= 0):
                    return
                if self._presence is not None and self._presence.due:
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._changed.wait()
            self._fill_batch()

    def _fill_batch(self) -> None:
        size = 0
        oldest = None if self._slow.max_age is None else time.monotonic() - self._slow.max_age
        while self._queue and len(self._batch) < self._most:
            if self._batch and size + len(self._queue[0].data) > BATCH_BYTES:
                return
            item = self._queue.popleft()
            self._queue_bytes -= len(item.data)
            if oldest is not None and item.time < oldest:
                self._drop()
            else:
                self._batch.append(item)
                size += len(item.data)

    async def _publish_control(self, sending: Sending) -> None:
        """Send what is due: a request for positions, the positions, a goodbye."""
        if self._request_due:
            async with asyncio.timeout(self._timeout):
                await sending.publish([(None, self._control(REQUEST))])
            self._request_due = False
        if self._queue:
            return
        if self._positions_due and (self._goodbye_due or self._positions_delay() <= 0):
            await self._publish_positions(sending)
        if self._goodbye_due and not self._queue:
            async with asyncio.timeout(self._timeout):
                await sending.publish([(None, self._control(GOODBYE))])
            self._goodbye_due = False
            self._finished.set()

    async def _publish_positions(self, sending: Sending) -> None:
        positions = []
        for address in list(self._positions):
            position = self._positions.get(address)
            if position is not None and position.head and self._announces(address):
                positions.append((address, self._control(POSITION, position.epoch, position.number, position.head)))
        if self._queue:  # these messages have numbers that must not be announced before the messages are sent
            return
        self._positions_sent = time.monotonic()
        self._positions_due = False
        for start in range(0, len(positions), BATCH):
            async with asyncio.timeout(self._timeout):
                await sending.publish(positions[start : start + BATCH])

    async def _publish_notices(self, sending: Sending, presence: Presence) -> None:
        refused: dict[int, Exception] = {}
        try:
            notices = [(None, self._notice(*stamped)) for stamped in presence.take(sending.largest)]
            if notices:
                async with asyncio.timeout(self._timeout):
                    refused = await sending.publish(notices)
        except BaseException:
            presence.lost()
            raise
        for reason in refused.values():
            presence.lost(reason)

    def _notice(self, serial: int, number: int, data: bytes) -> bytes:
        return join(NOTICE, self.publisher, serial, number, head_of(None), (data,), self._keyring)

    def _announces(self, address: Address) -> bool:
        """Whether other relays must be told how many messages an address has."""
        return True

    def _control(self, kind: int, epoch: int = 0, number: int = 0, head: bytes | None = None) -> bytes:
        """Return a packet without messages."""
        return join(kind, self.publisher, epoch, number, head_of(None) if head is None else head, (), self._keyring)

    def _positions_delay(self) -> float:
        """Return the seconds until positions may be sent again."""
        interval = POSITION_INTERVAL * max(1.0, len(self._positions) / POSITIONS)
        return self._positions_sent + interval - time.monotonic()
