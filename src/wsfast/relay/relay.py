"""Relays: a hub, a broker, and what becomes of messages when the broker is slow, or away.

What is published in the hub is numbered for each topic and user, waits in a bounded queue and is sent in batches. What
the broker has not confirmed is sent again; who has it already sees that by its number. Of what is missing, the next
message tells how much it is, or a *mark*, which publishers send when a connection was lost, if there is no next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from wsfast.hub import Hub, Kind
from wsfast.message import PreparedMessage
from wsfast.policies import DropNewest, DropOldest

from .wire import FAREWELL, MARK, MESSAGE, PUBLISHER, REQUEST, Address, Parcel, check_key, check_user, pack, unpack

__all__ = ["Broker", "Gap", "Receiving", "Relay", "RelayStats", "Sending", "Want"]

logger = logging.getLogger("wsfast")

BATCH = 512
"""Messages that are sent before it is waited until the broker has confirmed them."""

BATCH_BYTES = 1 << 20
"""Bytes of them, or one message."""

CHUNK = 500
"""Topics that are subscribed to at once."""

ADDRESSES = 65536
"""Topics and users of which a relay knows the number of the last message that it has sent, or received by patterns."""

PUBLISHERS = 1024
"""Publishers of one topic whose last number is known."""

TOGETHER = 4096
"""Messages to several topics of which it is known where they have been delivered."""

FIRST_BACKOFF, LAST_BACKOFF = 0.05, 5.0
"""Seconds to wait before connecting again, after the first and after many failures."""

MARK_INTERVAL = 1.0
"""Seconds between two times that marks are sent."""

Want = tuple[Kind, Any]
"""A topic, a pattern or a user that has somebody here."""


@dataclass(frozen=True, slots=True)
class Gap:
    """That messages of another process will never arrive here."""

    publisher: str
    """The process, as `Relay.id` of its relay."""
    kind: Kind
    """`"topic"` or `"user"`."""
    name: Any
    """The topic, or the user."""
    messages: int
    """How many are missing."""


@dataclass(frozen=True, slots=True)
class RelayStats:
    """What became of messages for other processes and from them: published = sent + dropped + queued."""

    published: int
    """Messages for other processes, one for each topic of those that were published to several."""
    sent: int
    """Messages that the broker has confirmed."""
    dropped: int
    """Messages that were dropped since too many waited, or that were too large for the broker."""
    queued: int
    """Messages that wait, or are under way to the broker."""
    received: int
    """Messages from other processes."""
    duplicates: int
    """Messages that were received once more, and not delivered again."""
    malformed: int
    """Messages that no relay of this version has sent; they were ignored."""
    gaps: int
    """How often something was missing."""
    lost: int
    """Messages from other processes that are missing."""
    reconnects: int
    """How often the broker was connected to again, to publish or to subscribe."""
    subscriptions: int
    """Topics, patterns and users that are subscribed to at the broker."""
    connected: bool
    """Whether it is connected to the broker, both to publish and to subscribe."""


class Sending(Protocol):
    """A connection to a broker that publishes."""

    async def publish(self, parcels: Sequence[tuple[Address | None, bytes]]) -> int:
        """Publish in this order, and wait until the broker has confirmed it; return how many it refuses."""

    async def close(self) -> None:
        """Close it, whether it works or not."""


class Receiving(Protocol):
    """A connection to a broker that subscribes."""

    async def subscribe(self, wants: Sequence[Want | None]) -> None:
        """Subscribe; None is what all relays are told. Wait until the broker has confirmed it."""

    async def unsubscribe(self, wants: Sequence[Want]) -> None:
        """Do not be subscribed any more."""

    async def run(self) -> None:
        """Receive until the connection is lost, or nothing is heard for too long; return, or raise, then."""

    async def close(self) -> None:
        """Close it, whether it works or not."""


class Broker(Protocol):
    """How to connect to a broker."""

    name: str
    """What it is called in log records; no password is in it."""

    async def open_sending(self) -> Sending:
        """Connect to publish."""

    async def open_receiving(self, receive: Callable[[bytes], None]) -> Receiving:
        """Connect to subscribe; call `receive` with each message."""


class _Numbers:
    """The numbers of the messages of one address."""

    __slots__ = ("epoch", "number")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.number = 0


class Relay:
    """Brings what is published in a hub to those of other processes, and what is published there to this one.

    An asynchronous context manager: it runs until it is left. See `wsfast.relay.redis()` and `wsfast.relay.nats()`.
    """

    def __init__(
        self,
        hub: Hub,
        broker: Broker,
        *,
        slow: DropOldest | DropNewest,
        on_gap: Callable[[Gap], object] | None,
        timeout: float,
    ) -> None:
        if not isinstance(slow, (DropOldest, DropNewest)):
            raise TypeError(f"slow must be DropOldest() or DropNewest(), not {slow!r}")
        if not timeout > 0:
            raise ValueError(f"timeout must be positive, not {timeout}")
        self._hub = hub
        self._broker = broker
        self._slow = slow
        self._on_gap = on_gap
        self._timeout = timeout
        self._id = secrets.randbits(64)
        self._own = self._id.to_bytes(8)
        # To be sent.
        self._queue: deque[tuple[Address | None, bytes, float]] = deque()
        self._queue_bytes = 0
        self._under_way = 0
        self._numbers: OrderedDict[Address, _Numbers] = OrderedDict()
        self._epochs = self._publications = 0
        self._marks_due = self._request_due = self._farewell_due = False
        self._marked = 0.0
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        # Received.
        self._seen: OrderedDict[Address, OrderedDict[int, tuple[int, int]]] = OrderedDict()
        self._delivered: OrderedDict[tuple[int, int], set[str]] = OrderedDict()
        # At the broker.
        self._wanted: dict[Want | None, None] = {None: None}
        self._unsettled: dict[Want | None, None] = {}
        self._subscribed: set[Want | None] = set()
        self._changed = asyncio.Event()
        self._settled = asyncio.Event()
        self._sending = self._receiving = self._attached = False
        self._connected = asyncio.Event()
        self._warned = False
        self._tasks: list[asyncio.Task[None]] = []
        self._counts = dict.fromkeys(
            ("published", "sent", "dropped", "received", "duplicates", "malformed", "gaps", "lost", "reconnects"), 0
        )

    def __repr__(self) -> str:
        return f"<Relay of {self._hub!r} by {self._broker.name}>"

    @property
    def id(self) -> str:
        """What other processes know this one as."""
        return f"{self._id:016x}"

    async def __aenter__(self) -> Relay:
        """Begin. If the broker is not there within the timeout, a warning is logged, and it is looked for meanwhile.

        Raises:
            RuntimeError: If the hub has a relay, or belongs to another event loop, or this was used before.
            TypeError, ValueError: If one of the users of the hub is neither a str nor an int.
        """
        if self._tasks:
            raise RuntimeError("a Relay is for one time")
        present = self._hub.attach(self)
        self._attached = True
        try:
            for kind, name in present:
                if kind == "user":
                    check_user(name)
                self.subscribe(kind, name)
            self._tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._subscribe())]
            with contextlib.suppress(TimeoutError):
                await self.connected(self._timeout)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End. What waits is sent, if the broker takes it within the timeout."""
        try:
            self._detach()
            if exc_type is None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._timeout if self._sending else 0):
                        await self._drain()
        finally:
            await self._end()

    async def _drain(self) -> None:
        """Wait until all is sent, also what is missing, and that nothing more will come."""
        self._farewell_due = True
        self._filled.set()
        while self._farewell_due:
            self._emptied.clear()
            await self._emptied.wait()

    def _detach(self) -> None:
        if self._attached:  # else the hub may have another relay
            self._attached = False
            self._hub.attach(None)

    async def _end(self) -> None:
        self._detach()
        await _stop(*self._tasks)
        self._sending = self._receiving = False
        self._connected.clear()

    # ---- For users

    async def connected(self, timeout: float | None = None) -> None:
        """Wait until it is connected to the broker.

        Raises:
            TimeoutError: If that takes longer than so many seconds.
        """
        async with asyncio.timeout(timeout):
            await self._connected.wait()

    async def settled(self, timeout: float | None = None) -> None:
        """Wait until the broker has confirmed all subscriptions that the hub needs.

        Raises:
            TimeoutError: If that takes longer than so many seconds.
        """
        async with asyncio.timeout(timeout):
            while self._wanted.keys() != self._subscribed:
                self._settled.clear()
                await self._settled.wait()

    def stats(self) -> RelayStats:
        """Return what became of messages so far."""
        return RelayStats(
            queued=len(self._queue) + self._under_way,
            subscriptions=len(self._subscribed - {None}),
            connected=self._connected.is_set(),
            **self._counts,
        )

    # ---- For the hub

    def subscribe(self, kind: Kind, name: Any) -> None:
        """See `wsfast.hub.Relay`."""
        self._wanted[kind, name] = self._unsettled[kind, name] = None
        self._changed.set()

    def unsubscribe(self, kind: Kind, name: Any) -> None:
        """See `wsfast.hub.Relay`. What comes when it is wanted again follows upon nothing."""
        self._wanted.pop((kind, name), None)
        self._unsettled[kind, name] = None
        self._changed.set()
        if kind == "pattern":
            for address in [address for address in self._seen if not self._is_wanted(address)]:
                del self._seen[address]
        elif not self._is_wanted((kind, name)):
            self._seen.pop((kind, name), None)

    def check(self, kind: Kind, names: tuple[Any, ...], key: Hashable, excluded: tuple[Any, ...]) -> None:
        """See `wsfast.hub.Relay`."""
        check_key(key)
        for user in (*excluded, *(names if kind == "user" else ())):
            check_user(user)

    def forward(
        self, kind: Kind, names: tuple[Any, ...], message: PreparedMessage, key: Hashable, excluded: tuple[Any, ...]
    ) -> None:
        """See `wsfast.hub.Relay`."""
        together = None
        if len(names) > 1:
            self._publications += 1
            together = self._publications, names
        for name in names:
            address = kind, name
            numbers = self._numbers.get(address)
            if numbers is None:
                if len(self._numbers) >= ADDRESSES:
                    self._numbers.popitem(last=False)
                self._epochs += 1
                numbers = self._numbers[address] = _Numbers(self._epochs)
            else:
                self._numbers.move_to_end(address)
            numbers.number += 1
            self._counts["published"] += 1
            parcel = Parcel(
                MESSAGE,
                self._id,
                numbers.epoch,
                numbers.number,
                address,
                message.data,
                message.text,
                message.compress is not False,
                key,
                excluded,
                together,
            )
            self._offer(address, pack(parcel))

    def _offer(self, address: Address, data: bytes) -> None:
        """Have a message wait, as far as the policy allows."""
        while self._queue and self._is_full(len(data)):
            self._counts["dropped"] += 1
            self._marks_due = True
            if isinstance(self._slow, DropNewest):
                return
            self._queue_bytes -= len(self._queue.popleft()[1])
        self._enqueue(address, data)

    def _is_full(self, size: int) -> bool:
        slow = self._slow
        return (slow.max_messages is not None and len(self._queue) >= slow.max_messages) or (
            slow.max_bytes is not None and self._queue_bytes + size > slow.max_bytes
        )

    def _enqueue(self, address: Address | None, data: bytes) -> None:
        self._queue.append((address, data, time.monotonic()))
        self._queue_bytes += len(data)
        self._filled.set()

    # ---- To the broker

    async def _send(self) -> None:
        """Publish what waits, again and again, whether the broker is there or not."""
        backoff = FIRST_BACKOFF
        batch: list[tuple[Address | None, bytes, float]] = []
        again = False
        while True:
            sending: Sending | None = None
            try:
                async with asyncio.timeout(self._timeout):
                    sending = await self._broker.open_sending()
                self._counts["reconnects"] += again
                self._note(sending=True)
                backoff = FIRST_BACKOFF
                if again:
                    self._marks_due = True
                again = True
                while True:
                    batch = batch or await self._take()
                    if batch:
                        async with asyncio.timeout(self._timeout):
                            refused = await sending.publish([(address, data) for address, data, _ in batch])
                        count = sum(address is not None for address, _, _ in batch)
                        self._counts["sent"] += count - refused
                        self._counts["dropped"] += refused
                        self._marks_due |= refused > 0
                        self._under_way = 0
                        batch = []
                    if not self._queue:
                        await self._mark(sending)
            except Exception as exc:
                again = True
                self._note(sending=False, why=exc)
                for item in reversed(batch[(len(batch) + 1) // 2 :]):  # it may be the size that has taken too long
                    self._queue.appendleft(item)
                    self._queue_bytes += len(item[1])
                del batch[(len(batch) + 1) // 2 :]
                self._under_way = len(batch)
            finally:
                if sending is not None:
                    await _close(sending)
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
            backoff = min(2 * backoff, LAST_BACKOFF)

    async def _take(self) -> list[tuple[Address | None, bytes, float]]:
        """Wait for messages, or until marks are due; take some that are to be sent together."""
        batch: list[tuple[Address | None, bytes, float]] = []
        size = 0
        while not batch:
            self._filled.clear()
            if not self._queue:
                delay = self._mark_delay() if self._marks_due else None
                if self._request_due or self._farewell_due or (delay is not None and delay <= 0):
                    break
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._filled.wait()
            limit = None if self._slow.max_age is None else time.monotonic() - self._slow.max_age
            while self._queue and len(batch) < BATCH and (not batch or size + len(self._queue[0][1]) <= BATCH_BYTES):
                item = self._queue.popleft()
                self._queue_bytes -= len(item[1])
                if limit is not None and item[2] < limit and item[0] is not None:
                    self._counts["dropped"] += 1
                    self._marks_due = True
                    continue
                batch.append(item)
                size += len(item[1])
        self._under_way = len(batch)
        return batch

    async def _mark(self, sending: Sending) -> None:
        """Tell others the numbers of the last messages, if some may be missing; ask for theirs, if that is due.

        And take leave of them, if that is due.
        """
        if self._request_due:
            async with asyncio.timeout(self._timeout):
                await sending.publish([(None, pack(Parcel(REQUEST, self._id)))])
            self._request_due = False
        if self._queue:  # what waits has numbers already
            return
        if self._marks_due and (self._farewell_due or self._mark_delay() <= 0):
            await self._send_marks(sending)
        if self._farewell_due:  # and there is no hub that anything could come from
            async with asyncio.timeout(self._timeout):
                await sending.publish([(None, pack(Parcel(FAREWELL, self._id)))])
            self._farewell_due = False
            self._emptied.set()

    async def _send_marks(self, sending: Sending) -> None:
        self._marked = time.monotonic()
        self._marks_due = False
        marks = [
            (address, pack(Parcel(MARK, self._id, numbers.epoch, numbers.number, address)))
            for address, numbers in self._numbers.items()
        ]
        for start in range(0, len(marks), BATCH):
            async with asyncio.timeout(self._timeout):
                await sending.publish(marks[start : start + BATCH])

    def _mark_delay(self) -> float:
        """Return after how many seconds marks may be sent again."""
        return self._marked + MARK_INTERVAL - time.monotonic()

    def _note(self, *, sending: bool | None = None, receiving: bool | None = None, why: object = None) -> None:
        """Take note of whether it is connected; log when that changes, or when it is not so at the beginning."""
        before = self._connected.is_set()
        self._sending = self._sending if sending is None else sending
        self._receiving = self._receiving if receiving is None else receiving
        if self._sending and self._receiving:
            self._connected.set()
            self._warned = False
            if not before:
                logger.info("%r is connected", self)
            return
        self._connected.clear()
        if why is not None and not self._warned:
            self._warned = True
            logger.warning("%r is not connected: %r", self, why)

    # ---- From the broker

    async def _subscribe(self) -> None:
        """Keep the subscriptions at the broker as the hub needs them, whether the broker is there or not."""
        backoff = FIRST_BACKOFF
        again = False
        while True:
            receiving: Receiving | None = None
            running: asyncio.Task[None] | None = None
            try:
                async with asyncio.timeout(self._timeout):
                    receiving = await self._broker.open_receiving(self._receive)
                running = asyncio.create_task(receiving.run())
                self._unsettled = dict(self._wanted)
                await self._settle(receiving, running)
                self._counts["reconnects"] += again
                self._note(receiving=True)
                backoff = FIRST_BACKOFF
                if again:  # something may be missing, and nothing follow upon it; and requests of others', too
                    self._request_due = self._marks_due = True
                    self._filled.set()
                again = True
                while not running.done():
                    self._changed.clear()
                    changed = asyncio.create_task(self._changed.wait())
                    try:
                        await asyncio.wait([running, changed], return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        changed.cancel()
                    await self._settle(receiving, running)
                await running
                raise ConnectionResetError("the broker has closed the connection")
            except Exception as exc:
                again = True
                self._note(receiving=False, why=exc)
            finally:
                self._subscribed.clear()
                if running is not None:
                    await _stop(running)
                if receiving is not None:
                    await _close(receiving)
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
            backoff = min(2 * backoff, LAST_BACKOFF)

    async def _settle(self, receiving: Receiving, running: asyncio.Task[None]) -> None:
        """Subscribe to what is wanted and is not subscribed to yet; the other way round, too."""
        while self._unsettled and not running.done():
            some = list(itertools.islice(self._unsettled, CHUNK))
            for want in some:
                del self._unsettled[want]
            wanted = [want for want in some if want in self._wanted and want not in self._subscribed]
            unwanted = [want for want in some if want and want not in self._wanted and want in self._subscribed]
            if wanted:
                await _while(running, receiving.subscribe(wanted))
                self._subscribed.update(wanted)
            if unwanted:
                await _while(running, receiving.unsubscribe(unwanted))
                self._subscribed.difference_update(unwanted)
        self._settled.set()

    def _receive(self, data: bytes) -> None:
        """Deal with what the broker has sent."""
        if data[PUBLISHER] == self._own:
            return
        try:
            parcel = unpack(data)
            message = parcel.message() if parcel.kind == MESSAGE else None
        except ValueError as exc:
            self._counts["malformed"] += 1
            if self._counts["malformed"] == 1:
                logger.warning("%r has received what it does not know: %s", self, exc)
            return
        if parcel.kind == REQUEST:
            self._marks_due = True
            self._filled.set()
        elif parcel.kind == FAREWELL:
            for publishers in self._seen.values():
                publishers.pop(parcel.publisher, None)
        elif parcel.address is not None and self._is_wanted(parcel.address) and self._is_new(parcel, parcel.address):
            self._counts["received"] += message is not None
            if message is not None:
                self._deliver(parcel, parcel.address, message)

    def _is_wanted(self, address: Address) -> bool:
        """Whether somebody here gets the messages of an address."""
        kind, name = address
        return self._hub.has_user(name) if kind == "user" else bool(self._hub.routes(name))

    def _is_new(self, parcel: Parcel, address: Address) -> bool:
        """Whether a message has not been received yet; take note of it, and report what is missing before it."""
        publishers = self._seen.get(address)
        if publishers is None:
            publishers = self._seen[address] = OrderedDict()
            if len(self._seen) > len(self._wanted) + ADDRESSES:  # those of patterns have no end
                self._seen.popitem(last=False)
        else:
            self._seen.move_to_end(address)
        last = publishers.get(parcel.publisher)
        now = parcel.epoch, parcel.number
        if last is not None and now <= last:
            self._counts["duplicates"] += parcel.kind == MESSAGE
            return False
        publishers[parcel.publisher] = now
        publishers.move_to_end(parcel.publisher)
        if len(publishers) > PUBLISHERS:
            publishers.popitem(last=False)
        if last is not None and last[0] == parcel.epoch:
            missing = parcel.number - last[1] - (parcel.kind == MESSAGE)
            if missing:
                self._counts["gaps"] += 1
                self._counts["lost"] += missing
                if self._on_gap is not None:
                    gap = Gap(f"{parcel.publisher:016x}", *address, missing)
                    asyncio.get_running_loop().call_soon(self._on_gap, gap)
        return True

    def _deliver(self, parcel: Parcel, address: Address, message: PreparedMessage) -> None:
        kind, name = address
        if kind == "user":
            self._hub.deliver_to_user(name, message, parcel.key)
            return
        elsewhere: list[str] = []
        if parcel.together is not None:
            publication, topics = parcel.together
            delivered = self._delivered.setdefault((parcel.publisher, publication), set())
            elsewhere = list(delivered)
            delivered.add(name)
            if delivered.issuperset(topics):
                del self._delivered[parcel.publisher, publication]
            elif len(self._delivered) > TOGETHER:
                self._delivered.popitem(last=False)
        self._hub.deliver(name, message, parcel.key, exclude_users=parcel.excluded, exclude_topics=elsewhere)


async def _stop(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks, until they have ended: clients of brokers have swallowed it."""
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=2)
    await asyncio.gather(*tasks, return_exceptions=True)


async def _while(running: asyncio.Task[None], asking: Coroutine[Any, Any, None]) -> None:
    """Ask a broker something while the connection to it is there; the answer may come behind many messages."""
    task = asyncio.ensure_future(asking)
    try:
        await asyncio.wait((task, running), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ConnectionResetError("the broker has closed the connection")
        await task
    finally:
        await _stop(task)


async def _close(connection: Sending | Receiving) -> None:
    """Close a connection that may be broken, also if this is cancelled meanwhile: half closed, it would stay open."""
    closing = asyncio.create_task(connection.close())
    try:
        await asyncio.wait((closing,), timeout=1)
    finally:
        if not closing.done():
            await asyncio.wait((closing,), timeout=1)
            closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
