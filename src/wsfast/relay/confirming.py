"""Publishing where the caller waits for the broker: each call ends when its messages are confirmed, or with an error.

Calls that wait at the same time travel in one batch. A batch that is not confirmed is sent again with the same numbers
as long as a caller waits for it, so receivers recognize a repetition. When nobody waits any more, it is unknown whether
the broker has the messages. Then their topics and users begin a new epoch: whichever number a receiver has seen last,
it neither misses one nor takes a new message for a repetition.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from wsfast._encoding.message import PreparedMessage
from wsfast.hub import Kind
from wsfast.hub.filters import NO_TAGS, Tags

from .broker import Broker, Sending, close
from .wire import GOODBYE, MESSAGE, Address, Envelope, Keyring, encode_item, head_of, join, pack

__all__ = ["Confirming", "Publication", "PublishError"]

BATCH = 512
"""Messages per batch, unless it is a single call."""

BATCH_BYTES = 1 << 20
"""Bytes of payload per batch, unless it is a single call."""

WAITING = 100_000
"""Messages that may wait for the broker, unless they are of a single call."""

WAITING_BYTES = 64 << 20

ADDRESSES = 65536
"""Topics and users whose last number is kept."""

FIRST_DELAY, LAST_DELAY = 0.05, 0.5
"""Seconds between two attempts, after the second failure and after many failures."""

GOODBYE_TIMEOUT = 1.0
"""Maximum number of seconds for saying goodbye."""


class PublishError(Exception):
    """The broker has not confirmed a message within the timeout, or it has refused the message.

    The exception that is the reason, if there is one, is its `__cause__`.
    """

    uncertain: bool = False
    """Whether the message may have been published nevertheless: it was sent, and the answer did not come."""


class Publication(NamedTuple):
    """One message, to a user or to one or several topics."""

    kind: Kind
    names: tuple[Any, ...]
    message: PreparedMessage
    key: Hashable = None
    excluded: tuple[Any, ...] = ()
    tags: Tags = NO_TAGS


class _Position:
    """The number of the last message of one address."""

    __slots__ = ("epoch", "number")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.number = 0


class _Numbering:
    """Numbers messages, and packs them for the broker."""

    def __init__(self, keyring: Keyring | None) -> None:
        self.publisher = secrets.randbits(64)
        self._keyring = keyring
        self._positions: OrderedDict[Address, _Position] = OrderedDict()
        self._epoch = 0

    def pack(self, messages: Sequence[Publication]) -> list[tuple[Address, bytes]]:
        """Return messages as the broker gets them. If one of them is too large, no number is used up.

        Raises:
            ValueError: If topics, users and the key of a message take more than 1 MiB.
        """
        packed: list[tuple[Address, bytes]] = []
        used: list[_Position] = []
        try:
            for message in messages:
                publication = (secrets.randbits(63), message.names) if len(message.names) > 1 else None
                item = encode_item(message.message, message.key, message.excluded, publication, tags=message.tags)
                for name in message.names:
                    address: Address = message.kind, name
                    head = head_of(address)
                    position = self._position_of(address)
                    number = position.number + 1
                    data = join(MESSAGE, self.publisher, position.epoch, number, head, (item,), self._keyring)
                    packed.append((address, data))
                    position.number += 1
                    used.append(position)
        except ValueError:
            for position in used:
                position.number -= 1
            raise
        return packed

    def goodbye(self) -> bytes:
        """Return the message that says that no other one will come."""
        return pack(Envelope(GOODBYE, self.publisher), self._keyring)

    def begin_again(self, address: Address) -> None:
        """Begin a new epoch: it is unknown which messages of an address have been published."""
        self._positions.pop(address, None)

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


class _Call:
    """One call, whose caller waits for the future."""

    __slots__ = ("bytes", "deadline", "future", "items", "messages", "refused")

    def __init__(self, items: Sequence[Publication], deadline: float) -> None:
        self.items = items
        self.deadline = deadline
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.messages = sum(len(item.names) for item in items)
        self.bytes = sum(len(item.message.data) * len(item.names) for item in items)
        self.refused: Exception | None = None


class Confirming:
    """Publishes messages in one event loop, and tells each caller what came of them.

    Args:
        broker: The broker.
        timeout: Seconds that a call takes at most.
        keyring: The secrets that messages are signed with; None if they are not signed.
    """

    def __init__(self, broker: Broker, timeout: float, keyring: Keyring | None = None) -> None:
        self._broker = broker
        self._timeout = timeout
        self._numbering = _Numbering(keyring)
        self._queue: OrderedDict[_Call, None] = OrderedDict()  # those that are in no batch yet
        self._calls: set[_Call] = set()  # all whose caller waits
        self._messages = self._bytes = 0  # of all calls
        self._changed = asyncio.Event()
        self._sending: Sending | None = None
        self._error: Exception | None = None  # why the last attempt has failed
        self._delay = 0.0  # seconds before the next attempt to connect
        self._task: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    # ---- Calls

    async def publish(self, items: Sequence[Publication]) -> None:
        """Publish messages, and wait until the broker has confirmed them.

        Raises:
            PublishError: See there.
            ValueError: If topics, users and the key of a message take more than 1 MiB.
        """
        call = _Call(items, asyncio.get_running_loop().time() + self._timeout)
        if not call.messages:
            return
        if self._calls and (self._messages + call.messages > WAITING or self._bytes + call.bytes > WAITING_BYTES):
            raise PublishError(
                f"{self._messages} messages with {self._bytes} bytes wait for the broker at {self._broker.name} "
                "already; publish fewer at a time"
            ) from self._error
        self._calls.add(call)
        self._queue[call] = None
        self._messages += call.messages
        self._bytes += call.bytes
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout_at(call.deadline):
                await call.future
        except TimeoutError:
            raise self._late(call) from self._error
        finally:
            self._queue.pop(call, None)
            self._calls.discard(call)
            self._messages -= call.messages
            self._bytes -= call.bytes

    def _late(self, call: _Call) -> PublishError:
        """Return the error of a call whose time is over."""
        reason = "the broker does not answer" if self._error is None else _described(self._error)
        error = PublishError(
            f"the broker at {self._broker.name} has not confirmed the message within {self._timeout:g} s: {reason}"
        )
        error.uncertain = call not in self._queue  # it is in a batch, which is sent as long as another call of it waits
        return error

    async def close(self) -> None:
        """Wait for the calls that wait, say goodbye to the receivers, and disconnect."""
        while waiting := [call.future for call in self._calls if not call.future.done()]:
            await asyncio.wait(waiting)
        if self._sending is not None:
            with contextlib.suppress(Exception):  # receivers forget a publisher without a goodbye later
                async with asyncio.timeout(min(self._timeout, GOODBYE_TIMEOUT)):
                    await self._sending.publish([(None, self._numbering.goodbye())])
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*self._closing)

    # ---- To the broker

    async def _run(self) -> None:
        """Publish batches, forever."""
        try:
            while True:
                while not self._queue:
                    self._changed.clear()
                    await self._changed.wait()
                if self._sending is None and not await self._connect():
                    continue
                batch, packets = self._next_batch()
                if batch:
                    await self._publish(batch, packets)
        finally:
            self._disconnect()
            await asyncio.gather(*self._closing)

    def _next_batch(self) -> tuple[list[_Call], list[tuple[Address, bytes]]]:
        """Return the next calls, and their messages. Only now these get numbers, which are sent in this order."""
        batch: list[_Call] = []
        packets: list[tuple[Address, bytes]] = []
        messages = size = 0
        while self._queue:
            call = next(iter(self._queue))
            messages += call.messages
            size += call.bytes
            if batch and (messages > BATCH or size > BATCH_BYTES):
                break
            del self._queue[call]
            if call.future.done():
                continue
            try:
                packets += self._numbering.pack(call.items)
            except ValueError as exc:
                call.future.set_exception(exc)
            else:
                batch.append(call)
        return batch, packets

    async def _connect(self) -> bool:
        """Connect before a batch is formed, so that calls whose time ends meanwhile are surely not sent."""
        try:
            async with asyncio.timeout(self._timeout / 2):
                self._sending = await self._broker.open_sending()
        except Exception as exc:
            self._error = exc
            await asyncio.sleep(self._delay)
            self._delay = min(max(FIRST_DELAY, 2 * self._delay), LAST_DELAY)
            return False
        self._delay = 0.0
        return True

    async def _publish(self, batch: Sequence[_Call], packets: Sequence[tuple[Address, bytes]]) -> None:
        """Publish a batch. If that fails, try again as long as a caller waits."""
        deadline = max(call.deadline for call in batch)
        delay = 0.0
        confirmed = 0
        while confirmed < len(packets):
            try:
                refused = await self._attempt(packets[confirmed : confirmed + BATCH], deadline)
            except Exception as exc:
                self._error = exc
                self._disconnect()
                await asyncio.sleep(min(delay, max(0.0, deadline - asyncio.get_running_loop().time())))
                delay = min(max(FIRST_DELAY, 2 * delay), LAST_DELAY)
                if all(call.future.done() for call in batch):
                    for address, _ in packets[confirmed:]:
                        self._numbering.begin_again(address)
                    return
                continue
            self._refuse(batch, packets, {confirmed + index: reason for index, reason in refused.items()})
            confirmed += BATCH
            delay = 0.0
        self._error = None
        for call in batch:
            if call.future.done():
                continue
            if call.refused is None:
                call.future.set_result(None)
            else:
                text = f"the broker at {self._broker.name} has refused the message: {_described(call.refused)}"
                error = PublishError(text)
                error.__cause__ = call.refused
                error.uncertain = isinstance(call.refused, TimeoutError)
                call.future.set_exception(error)

    async def _attempt(self, packets: Sequence[tuple[Address, bytes]], deadline: float) -> dict[int, Exception]:
        """Publish messages, and return those refused. Half of the time is left for a second attempt."""
        half = asyncio.get_running_loop().time() + self._timeout / 2
        async with asyncio.timeout_at(min(half, deadline)):
            if self._sending is None:
                self._sending = await self._broker.open_sending()
            return await self._sending.publish(packets)

    def _refuse(
        self, batch: Sequence[_Call], packets: Sequence[tuple[Address, bytes]], refused: dict[int, Exception]
    ) -> None:
        """Note the messages that the broker has refused, given by their indexes."""
        if not refused:
            return
        owners = [call for call in batch for _ in range(call.messages)]
        for index, reason in refused.items():
            owners[index].refused = reason
            self._numbering.begin_again(packets[index][0])  # otherwise receivers would miss its number

    def _disconnect(self) -> None:
        """Close the connection, which may be broken, without waiting for that."""
        if self._sending is not None:
            task = asyncio.create_task(close(self._sending))
            self._sending = None
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


def _described(error: Exception) -> str:
    """Return an exception's type and text; not the repr, which has no text in some releases of redis-py."""
    if isinstance(error, TimeoutError) and not str(error):
        return "the broker does not answer"
    return f"{type(error).__name__}: {error}".removesuffix(": ")
