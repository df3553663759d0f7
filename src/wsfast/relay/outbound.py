"""Messages for other processes: numbered per topic and user, queued within bounds, published in batches.

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
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, NamedTuple

from wsfast._encoding.message import PreparedMessage
from wsfast.hub import Command, Kind
from wsfast.policies import DropNewest, DropOldest

from .broker import Backoff, Broker, Sending, close
from .commands import address_of, parts_of
from .wire import COMMAND, GOODBYE, MESSAGE, POSITION, REQUEST, Address, Envelope, Keyring, pack

__all__ = ["ADDRESSES", "Outbound"]

BATCH = 512
"""Messages per batch. The broker must confirm a batch before the next one is sent."""

BATCH_BYTES = 1 << 20
"""Bytes per batch, unless it is a single message."""

ADDRESSES = 65536
"""Topics and users whose position is kept."""

POSITION_INTERVAL = 1.0
"""Minimum number of seconds between two announcements of positions."""

POSITIONS = 4096
"""Positions up to which that interval holds; with more, it grows in proportion."""


class _Position:
    """The number of the last message of one address."""

    __slots__ = ("epoch", "number")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.number = 0


class _Queued(NamedTuple):
    address: Address
    data: bytes
    time: float


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
        self._queue: deque[_Queued] = deque()
        self._queue_bytes = 0
        self._batch: list[_Queued] = []
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
        for name in names:
            address = kind, name
            position = self._position_of(address)
            envelope = Envelope(
                MESSAGE,
                self._publisher,
                position.epoch,
                position.number + 1,
                address,
                message.data,
                message.text,
                message.compress is not False,
                key,
                excluded,
                publication,
            )
            try:
                data = pack(envelope, self._keyring)
            except ValueError:  # the message is too large
                data = None
            position.number += 1
            self._enqueue_packed(address, data)

    def command(self, command: Command) -> None:
        """Enqueue a command for other processes, after all messages before it, as far as the policy allows."""
        self._epoch = max(time.time_ns(), self._epoch + 1)
        message, address = command.message, address_of(command)
        envelope = Envelope(COMMAND, self._publisher, self._epoch, 0, address, command=parts_of(command))
        if message is not None:
            envelope = replace(
                envelope, payload=message.data, text=message.text, compressible=message.compress is not False
            )
        try:
            data = pack(envelope, self._keyring)
        except ValueError:  # the name is too long
            data = None
        self._enqueue_packed(address, data)

    def _enqueue_packed(self, address: Address, data: bytes | None) -> None:
        """Enqueue what was packed; count it as dropped if it could not be."""
        self.published += 1
        if data is None:
            self._drop()
            self._changed.set()
        else:
            self._enqueue(address, data)

    def _position_of(self, address: Address) -> _Position:
        position = self._positions.get(address)
        if position is None:
            if len(self._positions) >= ADDRESSES:
                self._positions.popitem(last=False)
            self._epoch = max(time.time_ns(), self._epoch + 1)
            position = self._positions[address] = _Position(self._epoch)
        else:
            self._positions.move_to_end(address)
        return position

    def _enqueue(self, address: Address, data: bytes) -> None:
        while self._queue and self._is_full(len(data)):
            self._drop()
            if isinstance(self._slow, DropNewest):
                return
            self._queue_bytes -= len(self._queue.popleft().data)
        self._queue.append(_Queued(address, data, time.monotonic()))
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
            async with asyncio.timeout(self._timeout):
                refused = await sending.publish([(address, data) for address, data, _ in self._batch])
            count, self._batch = len(self._batch), []
            self._most = min(self._most + self._most // 8 + 1, BATCH)
            self.sent += count - refused
            if refused:
                self._drop(refused)
        if not self._queue:
            await self._publish_control(sending)

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
                await sending.publish([(None, pack(Envelope(REQUEST, self._publisher), self._keyring))])
            self._request_due = False
        if self._queue:
            return
        if self._positions_due and (self._goodbye_due or self._positions_delay() <= 0):
            await self._publish_positions(sending)
        if self._goodbye_due and not self._queue:
            async with asyncio.timeout(self._timeout):
                await sending.publish([(None, pack(Envelope(GOODBYE, self._publisher), self._keyring))])
            self._goodbye_due = False
            self._finished.set()

    async def _publish_positions(self, sending: Sending) -> None:
        positions = []
        for address in list(self._positions):
            position = self._positions.get(address)
            if position is not None:
                envelope = Envelope(POSITION, self._publisher, position.epoch, position.number, address)
                positions.append((address, pack(envelope, self._keyring)))
        if self._queue:  # these messages have numbers that must not be announced before the messages are sent
            return
        self._positions_sent = time.monotonic()
        self._positions_due = False
        for start in range(0, len(positions), BATCH):
            async with asyncio.timeout(self._timeout):
                await sending.publish(positions[start : start + BATCH])

    def _positions_delay(self) -> float:
        """Return the seconds until positions may be sent again."""
        interval = POSITION_INTERVAL * max(1.0, len(self._positions) / POSITIONS)
        return self._positions_sent + interval - time.monotonic()
