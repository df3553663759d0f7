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
from typing import Any, NamedTuple

from wsfast._encoding.message import PreparedMessage
from wsfast.hub import Kind
from wsfast.policies import DropNewest, DropOldest

from .broker import Backoff, Broker, Sending, close
from .wire import (
    GOODBYE,
    MESSAGE,
    MOST_ITEMS,
    POSITION,
    REQUEST,
    Address,
    Keyring,
    encode_item,
    head_of,
    join,
)

__all__ = ["ADDRESSES", "Outbound", "Packet", "Queued", "by_position"]

BATCH = 2048
"""Messages per batch. The broker must confirm a batch before the next one is sent."""

BATCH_BYTES = 1 << 20
"""Bytes per batch, unless it is a single message."""

PACKET_BYTES = 64 << 10
"""Bytes of messages per packet, unless it is a single message."""

ADDRESSES = 65536
"""Topics and users whose position is kept."""

POSITION_INTERVAL = 1.0
"""Minimum number of seconds between two announcements of positions."""

POSITIONS = 4096
"""Positions up to which that interval holds; with more, it grows in proportion."""


class _Position:
    """The number of the last message of one address."""

    __slots__ = ("address", "epoch", "head", "number", "tried")

    def __init__(self, address: Address, epoch: int) -> None:
        self.address = address
        self.epoch = epoch
        self.number = 0
        self.tried = 0  # number of the last message that was given to a broker that orders messages
        try:
            self.head = head_of(address)
        except ValueError:  # it is too long
            self.head = b""


class Queued(NamedTuple):
    """A message that waits."""

    position: _Position
    number: int
    data: bytes
    time: float


class Packet(NamedTuple):
    """Messages of one address that travel together."""

    address: Address
    data: bytes
    messages: Sequence[Queued]


class Outbound:
    """Publishes the messages of a hub.

    Args:
        publisher: The number of the relay.
        broker: The broker.
        slow: Policy for messages that wait for the broker.
        timeout: Seconds without an answer after which the connection counts as lost.
        on_connected: Called with True after connecting, and with False and the reason when there is no connection.
        keyring: The secrets that messages are signed with; None if they are not signed.
    """

    def __init__(
        self,
        publisher: int,
        broker: Broker,
        slow: DropOldest | DropNewest,
        timeout: float,
        on_connected: Callable[..., None],
        keyring: Keyring | None = None,
    ) -> None:
        self.published: int = 0
        self.sent: int = 0
        self.dropped: int = 0
        self.reconnects: int = 0
        self._publisher = publisher
        self._broker = broker
        self._slow = slow
        self._timeout = timeout
        self._on_connected = on_connected
        self._keyring = keyring
        self._queue: deque[Queued] = deque()
        self._queue_bytes = 0
        self._batch: list[Queued] = []
        self._most = BATCH  # maximum number of messages in the next batch
        self._positions: OrderedDict[Address, _Position] = OrderedDict()
        self._epoch = 0
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
        self, kind: Kind, names: tuple[Any, ...], message: PreparedMessage, key: Hashable, excluded: tuple[Any, ...]
    ) -> None:
        """Enqueue a message for other processes, as far as the policy allows."""
        publication = None
        if len(names) > 1:
            publication = secrets.randbits(63), names  # cannot be guessed before it is published
        data: bytes | None
        try:
            data = encode_item(message, key, excluded, publication)
        except ValueError:  # it is too large
            data = None
        for name in names:
            position = self._position_of((kind, name))
            position.number += 1
            self.published += 1
            if data is None or not position.head:
                self._drop()
                self._changed.set()
            else:
                self._enqueue(position, data)

    def _position_of(self, address: Address) -> _Position:
        position = self._positions.get(address)
        if position is None:
            if len(self._positions) >= ADDRESSES:
                self._positions.popitem(last=False)
            self._epoch = max(time.time_ns(), self._epoch + 1)
            position = self._positions[address] = _Position(address, self._epoch)
        else:
            self._positions.move_to_end(address)
        return position

    def _enqueue(self, position: _Position, data: bytes) -> None:
        while self._queue and self._is_full(len(data)):
            self._drop()
            if isinstance(self._slow, DropNewest):
                return
            self._queue_bytes -= len(self._queue.popleft().data)
        self._queue.append(Queued(position, position.number, data, time.monotonic()))
        self._queue_bytes += len(data)
        self._changed.set()

    def _is_full(self, size: int) -> bool:
        slow = self._slow
        return (slow.max_messages is not None and len(self._queue) >= slow.max_messages) or (
            slow.max_bytes is not None and self._queue_bytes + size > slow.max_bytes
        )

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
        if self._batch:
            refused = await self._publish_packets(sending, self._packets(self._batch))
            # A packet may exceed a limit of the broker that each of its messages keeps.
            several = [packet.messages for packet in refused if len(packet.messages) > 1]
            dropped = len(refused) - len(several)
            if several:
                single = [self._packet([message]) for messages in several for message in messages]
                dropped += len(await self._publish_packets(sending, single))
            count, self._batch = len(self._batch), []
            self._most = min(self._most + self._most // 8 + 1, BATCH)
            self.sent += count - dropped
            if dropped:
                self._drop(dropped)
        if not self._queue:
            await self._publish_control(sending)

    async def _publish_packets(self, sending: Sending, packets: Sequence[Packet]) -> list[Packet]:
        """Publish packets; return those that the broker has refused."""
        async with asyncio.timeout(self._timeout):
            refused = await sending.publish([(packet.address, packet.data) for packet in packets])
        return [packets[index] for index in refused]

    def _packets(self, batch: Sequence[Queued]) -> list[Packet]:
        """Return the packets of a batch: messages of one address follow each other there as they do in the batch."""
        packets: list[Packet] = []
        for messages in by_position(batch):
            start = size = 0
            for index, message in enumerate(messages):
                size += len(message.data)
                if index > start and (
                    index - start == MOST_ITEMS
                    or size > PACKET_BYTES
                    or message.number != messages[index - 1].number + 1  # those in between were dropped
                ):
                    packets.append(self._packet(messages[start:index]))
                    start, size = index, len(message.data)
            packets.append(self._packet(messages[start:]))
        return packets

    def _packet(self, messages: Sequence[Queued]) -> Packet:
        """Return the packet of messages of one address with consecutive numbers."""
        position, number, _, _ = messages[0]
        items = [message.data for message in messages]
        data = join(MESSAGE, self._publisher, position.epoch, number, position.head, items, self._keyring)
        return Packet(position.address, data, messages)

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

    def _announces(self, address: Address) -> bool:
        """Whether other relays must be told how many messages an address has."""
        return True

    def _control(self, kind: int, epoch: int = 0, number: int = 0, head: bytes | None = None) -> bytes:
        """Return a packet without messages."""
        return join(kind, self._publisher, epoch, number, head_of(None) if head is None else head, (), self._keyring)

    def _positions_delay(self) -> float:
        """Return the seconds until positions may be sent again."""
        interval = POSITION_INTERVAL * max(1.0, len(self._positions) / POSITIONS)
        return self._positions_sent + interval - time.monotonic()


def by_position(batch: Sequence[Queued]) -> Iterable[list[Queued]]:
    """Return the messages of each address, in their order."""
    messages: dict[_Position, list[Queued]] = {}
    for message in batch:
        messages.setdefault(message.position, []).append(message)
    return messages.values()
