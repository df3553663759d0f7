"""What leaves an event loop in one tick, and what waits for connections that do not keep up.

An `Outbox` belongs to an event loop, an `Outlet` to a connection. Whatever channels publish in one iteration of the
loop is noted in the outbox's roster and leaves together: what all channels have for a connection goes out in one system
call, in the order in which it was published, and is put together once for all connections that get the same.

When a kernel does not take everything, the rest of the frame that it cut goes to the transport at once, since pings and
close frames may follow; whole messages wait in the outlet, as references to what all share, until the socket has room.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno as errors
import gc
import itertools
import logging
import os
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary, ref

from websockets.protocol import OPEN

from ._impl import core
from ._reentrancy import Calls
from .adapters import unsupported
from .adapters.adapted import Adapted, is_open
from .adapters.evented import disturb
from .adapters.transports import transport_layout
from .adapters.websockets import (
    LOST,
    SEND_IN_PROGRESS,
    connection_layout,
    direct_descriptor,
    encoder_of,
    is_connection,
    keep_reason,
    without_deflate,
)
from .deflate import Encoder
from .message import Encoding, PreparedMessage

if TYPE_CHECKING:
    from .publisher import Publisher, Subscription

__all__ = ["Entry", "Item", "Lag", "Outbox", "Outlet"]

logger = logging.getLogger("wsfast")

SLICE = 500
"""Connections that are sent to before the clock is looked at."""

BUDGET = 0.02
"""Seconds after which a flush that nobody asked for lets the event loop do something else."""

GONE, ORDINARY = -1, -2
"""What `Outbox.offer` says of connections that take nothing any more, or must be sent to by their own methods."""

AGE_INTERVAL = 0.1
"""Seconds between two looks at how long messages have waited."""

EPISODE_GAP = 1.0
"""Seconds for which a connection must keep up before it counts as recovered."""

BATCH = 65536
"""Bytes of payload that are put together for a connection that catches up."""

BATCHES = 4
"""How many of these it is sent before others have their turn."""

HARMLESS = frozenset({0, errors.EAGAIN, errors.EINTR, errors.EPIPE, errors.ENOBUFS, errors.ENOMEM})
"""What a send may come to that the transport would be told again."""


class Entry:
    """A message that was published: held once, whoever waits for it."""

    __slots__ = ("encodings", "key", "message", "publisher", "time")

    def __init__(self, publisher: Publisher, message: PreparedMessage, encodings: Any, key: Any) -> None:
        self.publisher = publisher
        self.message = message
        self.encodings = encodings
        self.key = key
        self.time = time.monotonic()


class Joined:
    """The encodings of several messages, one behind the other: what the core asks for instead of a message's."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self._choices: dict[tuple[Encoding, ...], Encoding] = {}
        self._ends: dict[int, list[int]] = {}
        self._plain: Encoding | None = None

    @property
    def plain(self) -> Encoding:
        """All messages, not compressed."""
        if self._plain is None:
            self._plain = self._join(tuple(entry.encodings.plain for entry in self.entries))
        return self._plain

    def encoding_for(self, encoder: Encoder) -> Encoding:
        """Return what is to be sent to a connection with permessage-deflate, and have its encoder take note of it."""
        return self._join(tuple(entry.encodings.encoding_for(encoder) for entry in self.entries))

    def take_back(self, encoder: Encoder, taken: int = 0) -> None:
        """Take note that of the messages that were last chosen for a connection, only the first ones were sent."""
        for entry in reversed(self.entries[taken:]):
            entry.encodings.take_back(encoder)

    def ends(self, frame: bytes) -> list[int]:
        """Return where each message ends in a frame that was made here."""
        return self._ends[id(frame)]

    def _join(self, parts: tuple[Encoding, ...]) -> Encoding:
        encoding = self._choices.get(parts)
        if encoding is None:
            if len(parts) == 1:
                encoding = parts[0]
                sizes = [len(encoding.frame)]
            else:
                frames = [part.frame for part in parts]
                encoding = Encoding.of_frames(b"".join(frames))
                sizes = [len(frame) for frame in frames]
            self._choices[parts] = encoding
            self._ends[id(encoding.frame)] = list(itertools.accumulate(sizes))
        return encoding


class Item:
    """An entry that waits for one subscriber. Without an entry, nothing does any more."""

    __slots__ = ("entry", "subscription", "time")

    def __init__(self, entry: Entry, subscription: Subscription) -> None:
        self.entry: Entry | None = entry
        self.subscription = subscription
        self.time = time.monotonic()  # since when it waits


class Lag:
    """What waits for a connection that does not keep up, from the first message that it could not take to the last."""

    __slots__ = ("alive", "fd", "queue", "recovered")

    def __init__(self) -> None:
        self.queue: deque[Item] = deque()
        self.alive = 0
        self.fd = -1  # that is watched
        self.recovered: asyncio.Future[None] | None = None


class Episode:
    """A time during which policies have had to do something about a connection."""

    __slots__ = ("last", "subscriptions")

    def __init__(self) -> None:
        self.last = 0.0
        self.subscriptions: set[Subscription] = set()


class Outlet:
    """One connection that channels send to."""

    __slots__ = ("connection", "direct", "first", "lag", "masked", "outbox", "ready", "slot")

    def __init__(self, outbox: Outbox, connection: Any) -> None:
        self.outbox = outbox
        self.connection = connection
        self.first: Subscription | None = None  # of a linked list of all
        self.lag: Lag | None = None
        layout = connection_layout(type(connection))
        self.masked = layout is not None and layout.masked
        fd = direct_descriptor(connection)
        self.direct = fd >= 0  # whether it is ever ready
        self.ready = False
        if not self.evented:
            getattr(connection, LOST).add_done_callback(self._on_lost)
        self.slot = outbox.add(self, fd)

    @property
    def evented(self) -> bool:
        """Whether the connection tells what happens to it."""
        return hasattr(type(self.connection), "_wsfast_outlet")

    @property
    def open(self) -> bool:
        """Whether messages may be sent."""
        try:
            return is_open(self.connection)
        except Exception as exc:
            self.fail(exc)
            return False

    def subscriptions(self) -> Iterator[Subscription]:
        """Yield all subscriptions of the connection."""
        subscription = self.first
        while subscription is not None:
            following = subscription.next
            yield subscription
            subscription = following

    def _on_lost(self, _: object) -> None:
        self.close()

    def close(self) -> None:
        """End all subscriptions: the connection is lost."""
        if self.slot < 0:
            return
        self.direct = False
        self.unready()
        for subscription in list(self.subscriptions()):
            subscription.end()

    def fail(self, exc: Exception) -> None:
        """End all subscriptions: the connection cannot even be asked whether it has room."""
        self.outbox.log(logging.WARNING, "could not ask %s whether it has room: %r", self.connection.id, exc)
        self.close()

    def disconnect(self, code: int, reason: str) -> None:
        """End all subscriptions, and close the connection."""
        self.close()
        task = self.outbox.loop.create_task(self.connection.close(code, reason))
        self.outbox.tasks.add(task)
        task.add_done_callback(self.outbox.tasks.discard)

    def release(self) -> None:
        """Leave the outbox: nobody is subscribed any more."""
        self._end_lag()
        self.outbox.episodes.pop(self, None)
        self.outbox.unready.discard(self)
        self.outbox.remove(self)
        self.slot = -1
        if self.evented:
            self.connection._wsfast_outlet = None
        else:
            getattr(self.connection, LOST).remove_done_callback(self._on_lost)
            with contextlib.suppress(AttributeError):
                del self.connection._wsfast_outlet

    def refresh(self) -> None:
        """Find out whether the connection may be written to at any moment, until it says otherwise."""
        if not self.direct or self.slot < 0 or self.lag is not None:
            return
        connection = self.connection
        layout = connection_layout(type(connection))
        assert layout is not None
        # By the private names: whoever reads through the properties has the connection be asked anew, for ever.
        protocol, transport = getattr(connection, layout.protocol), getattr(connection, layout.transport)
        ready = (
            getattr(protocol, layout.state) is layout.open_state
            and getattr(connection, layout.send_in_progress) is layout.idle
            and (layout.expect_continuation is None or not getattr(protocol, layout.expect_continuation))
            and (layout.writes is None or not getattr(protocol, layout.writes))
            and not transport.is_closing()
            and transport.get_write_buffer_size() == 0
        )
        self.outbox.roster.set_ready(self.slot, ready)
        self.ready = ready
        if not ready:
            self.outbox.unready.add(self)

    def unready(self) -> None:
        """Have the connection be asked from now on."""
        if self.slot >= 0:
            self.ready = False
            self.outbox.roster.set_ready(self.slot, False)
            self.outbox.unready.add(self)

    def abort(self) -> None:
        """Drop the connection, on which half a frame would be followed by something else."""
        self.direct = False
        self.connection.transport.abort()

    def expect(self, entries: Sequence[Entry]) -> list[tuple[Subscription | None, Entry]]:
        """Count messages as under way; return for whom each is."""
        arriving = [(entry.publisher.subscription_of(self), entry) for entry in entries]
        for subscription, _ in arriving:
            if subscription is not None:
                subscription.arriving += 1
        return arriving

    def flush(self) -> None:
        """Send what was published in this tick."""
        if self.slot >= 0 and self.outbox.roster.is_pending(self.slot):
            self.outbox.flush()

    async def caught_up(self) -> None:
        """Wait until nothing waits for the connection any more."""
        while (lag := self.lag) is not None:
            if lag.recovered is None:
                lag.recovered = self.outbox.loop.create_future()
            await asyncio.shield(lag.recovered)

    # ---- Lagging

    def hold(self, arriving: Sequence[tuple[Subscription | None, Entry]]) -> None:
        """Have messages that are under way wait, as far as the policies of their channels allow."""
        for subscription, entry in arriving:
            if subscription is None or subscription.outlet is None:
                continue
            opened = self.open
            if subscription.outlet is None:
                continue
            subscription.arriving -= 1
            if not opened:
                subscription.dropped += 1
                continue
            if self.lag is None:
                self.lag = Lag()
                self.outbox.roster.set_aside(self.slot, True)
                self.outbox.watch_age(self)
                self.unready()
                self.watch()
            subscription.arriving += 1
            subscription.hold(self.lag, entry)
            if subscription.outlet is not None:
                subscription.arriving -= 1

    def watch(self, *, later: bool = False) -> None:
        """Look again when the socket has room, or a bit later if it cannot be told when."""
        lag = self.lag
        assert lag is not None
        plain = transport_layout(type(self.connection.transport))
        if not later and plain is not None and plain.direct:
            lag.fd = self.connection.transport.get_extra_info("socket").fileno()
        if not later and lag.fd >= 0:
            self.outbox.watch.once_writable(lag.fd, self, self.catch_up)
        else:
            self.outbox.watch.once_later(self, self.catch_up)

    def catch_up(self) -> None:
        """Send what waits, as much as the kernel takes."""
        lag = self.lag
        if lag is None or not self.open:
            return
        try:
            self._catch_up(lag)
        except BaseException:
            if self.lag is lag:
                self.watch(later=True)
            raise
        if self.lag is not lag:
            return  # it was closed meanwhile
        if lag.alive:
            blocked = getattr(self.connection, SEND_IN_PROGRESS) is not None
            self.watch(later=blocked)
        else:
            self._end_lag()
            self.refresh()

    def _catch_up(self, lag: Lag) -> None:
        """Send some of what waits."""
        for turn in range(BATCHES):
            items: list[Item] = []
            size = 0
            for item in lag.queue:
                if item.entry is not None:
                    if items and size + item.entry.message.size > BATCH:
                        break
                    items.append(item)
                    size += item.entry.message.size
                    if self.masked:
                        break
            if not items:
                return
            entries = [item.entry for item in items if item.entry is not None]
            failed: list[int] = []
            count = self.outbox.offer_one(self, entries, failed, insist=turn == 0)
            if self.lag is not lag:
                return
            for index in range(len(items) if count == GONE else count):
                item = items[index]
                if item.entry is None:
                    continue
                if item.entry is not entries[index]:  # a newer one has taken its place after it was sent
                    item.subscription.conflated -= 1
                    continue
                if count == GONE or index in failed:
                    item.subscription.dropped += 1
                self.discard(lag, item)
            while lag.queue and lag.queue[0].entry is None:
                lag.queue.popleft()
            if 0 <= count < len(items):
                return

    def discard(self, lag: Lag, item: Item) -> None:
        """Have an item not wait any more."""
        item.subscription.let_go(item)
        item.entry = None
        lag.alive -= 1
        if len(lag.queue) > 2 * lag.alive + 64:
            lag.queue = deque(item for item in lag.queue if item.entry is not None)

    def _end_lag(self) -> None:
        lag, self.lag = self.lag, None
        if lag is None:
            return
        self.outbox.roster.set_aside(self.slot, self.masked)
        self.outbox.watch.forget(lag.fd, self)
        if lag.recovered is not None and not lag.recovered.done():
            lag.recovered.set_result(None)
        for subscription in self.subscriptions():
            subscription.catch_up()


class Outbox:
    """What leaves one event loop."""

    _all: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, ref[Outbox]]] = WeakKeyDictionary()

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> Outbox:
        """Return that of an event loop."""
        reference = cls._all.get(loop)
        outbox = None if reference is None else reference()
        if outbox is None:
            from .watch import Watch

            outbox = cls()
            outbox.loop = loop
            outbox.watch = Watch(loop)
            outbox.calls = Calls(loop)
            cls._all[loop] = ref(outbox)
        return outbox

    loop: asyncio.AbstractEventLoop
    watch: Any
    calls: Calls

    def __init__(self) -> None:
        self.roster = core.Roster()
        self.outlets: list[Outlet | None] = []
        self.connections: list[Any] = []  # theirs
        self.unready: set[Outlet] = set()  # of those that may be ready
        self.entries: list[Entry] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self._handle: asyncio.Handle | None = None
        self._ages: asyncio.TimerHandle | None = None
        self._lagging: set[Outlet] = set()
        self.episodes: dict[Outlet, Episode] = {}
        self._turn = 0
        self._resumes = False  # whether there was no time for all that the last flush began with
        self._flushing = False

    def outlet_of(self, connection: Any) -> Outlet:
        """Return the outlet of a connection; a new one if nobody is subscribed yet.

        Raises:
            TypeError: If it is none that is supported.
            RuntimeError: If it belongs to another event loop.
        """
        outlet: Outlet | None = getattr(connection, "_wsfast_outlet", None)
        if not is_connection(connection) or not hasattr(connection, LOST):
            raise unsupported(connection, "subscribe")
        if isinstance(connection, Adapted) and not connection.bounded:
            raise TypeError(
                f"cannot subscribe connections of {connection.library}: they do not tell whether there is room; "
                "broadcast() can send to them"
            )
        if connection.loop is not self.loop:
            raise RuntimeError("the connection belongs to another event loop than the channel")
        if not is_open(connection):
            raise RuntimeError("the connection is not open")
        if outlet is None:
            outlet = Outlet(self, connection)
            connection._wsfast_outlet = outlet
        return outlet

    def add(self, outlet: Outlet, fd: int) -> int:
        """Give a slot to an outlet that may be written to by this descriptor, if it is not negative."""
        slot = self.roster.add(fd)
        if slot == len(self.outlets):
            self.outlets.append(outlet)
            self.connections.append(outlet.connection)
        else:
            self.outlets[slot] = outlet
            self.connections[slot] = outlet.connection
        self.roster.set_aside(slot, outlet.masked)  # a mask belongs to one frame, and these may get several
        return slot

    def remove(self, outlet: Outlet) -> None:
        """Take the slot of an outlet back."""
        self.outlets[outlet.slot] = self.connections[outlet.slot] = None
        self.roster.remove(outlet.slot)

    def enter(self, entry: Entry) -> int:
        """Return the number of an entry in this tick, at the end of which it is sent."""
        if self._handle is None:
            self._handle = self.loop.call_soon(self._on_tick)
        self.entries.append(entry)
        return len(self.entries) - 1

    def pending(self, outlet: Outlet) -> list[Entry]:
        """Return what is to be sent to an outlet at the end of this tick."""
        return self._sequence(self.roster.node(outlet.slot))

    def watch_age(self, outlet: Outlet) -> None:
        """See to it that what waits for a connection does not get too old, though nothing is published any more."""
        self._lagging.add(outlet)
        if self._ages is None:
            self._ages = self.loop.call_later(AGE_INTERVAL, self._on_age)

    def _on_age(self) -> None:
        self._ages = None
        for outlet in list(self._lagging):
            if outlet.lag is None:
                self._lagging.discard(outlet)
                continue
            for subscription in list(outlet.subscriptions()):
                if outlet.lag is not None:
                    subscription.expire(outlet.lag)
        now = time.monotonic()
        for outlet, episode in list(self.episodes.items()):
            if outlet.lag is not None:
                episode.last = now
            elif now - episode.last > EPISODE_GAP:
                del self.episodes[outlet]
                self.log(logging.INFO, "%s has recovered", outlet.connection.id)
                for subscription in episode.subscriptions:
                    subscription.recover()
        if self._lagging or self.episodes:
            self._ages = self.loop.call_later(AGE_INTERVAL, self._on_age)

    def act(self, outlet: Outlet, subscription: Subscription) -> bool:
        """Take note that a policy has to do something; return whether an episode begins with that."""
        episode = self.episodes.get(outlet)
        begins = episode is None
        if episode is None:
            episode = self.episodes[outlet] = Episode()
        episode.last = time.monotonic()
        episode.subscriptions.add(subscription)
        return begins

    def _on_tick(self) -> None:
        self._handle = None
        self.flush(BUDGET)

    def flush(self, budget: float | None = None) -> None:
        """Send all that was published.

        Args:
            budget: Seconds after which to go on in the next iteration of the event loop; None to send all now.
        """
        if self._flushing or not self.entries:
            return
        if self.calls.busy:
            self.calls.after(self.flush)
            return
        deadline = None if budget is None else time.monotonic() + budget
        try:
            self._flushing = True
            start = 0 if self._resumes else self._turn
            while self.roster.pending:
                self._send_some(SLICE if budget is not None else len(self.outlets), start)
                if deadline is not None and self.roster.pending and time.monotonic() > deadline:
                    self._resumes = True
                    self._forget(self.roster.compact())
                    return
            self._turn += 1
            self._resumes = False
            self.roster.reset()
            self._forget(len(self.entries))
            handle, self._handle = self._handle, None
            if handle is not None:
                handle.cancel()
        finally:
            self._flushing = False
            if self.roster.pending and self._handle is None:  # there was no time, or an exception
                self._handle = self.loop.call_soon(self._on_tick)

    def _forget(self, count: int) -> None:
        """Forget the first entries, which have been sent."""
        entries, self.entries = self.entries[:count], self.entries[count:]
        for entry in entries:
            entry.publisher.sent(entry)

    def _send_some(self, count: int, start: int) -> None:
        """Send to some of those for whom something was published, beginning somewhere among them.

        No code of the user's runs before all frames are whole and all messages have been counted: log records and
        callbacks wait for the next iteration, and connections with methods of their own come last.
        """
        joined: dict[int, Joined] = {}

        def frames(node: int) -> bytes:
            joined[node] = Joined(self._sequence(node))
            return joined[node].plain.frame

        leftovers: list[tuple[int, int, int]] = []
        asked: dict[int, list[Any]] = {}
        left: list[tuple[Outlet, Sequence[Entry]]] = []
        collects = gc.isenabled()
        try:
            gc.disable()
            self.roster.send(count, start, self.connections, frames, leftovers, asked)
            while leftovers:
                left.append(self._settle(*leftovers[-1], joined))
                leftovers.pop()
        except BaseException as exc:
            outlets = [self.outlets[slot] for slot, _, result in leftovers if result > 0]
            if isinstance(exc, MemoryError):  # nobody knows whose
                outlets = [outlet for outlet in self.outlets if outlet is not None and outlet.ready]
            for outlet in outlets:
                if outlet is not None:
                    outlet.abort()
            for slot, node, _ in leftovers:
                self._lose(self.outlets[slot], self._sequence(node))
            for outlet, entries in left:
                self._lose(outlet, entries)
            for node, connections in asked.items():
                for outlet in map(_outlet_of, connections):
                    if outlet is not None and not self.roster.is_pending(outlet.slot):  # else it was not its turn yet
                        self._lose(outlet, self._sequence(node))
            raise
        finally:
            if collects:
                gc.enable()
        todo = [(connections, self._sequence(node)) for node, connections in asked.items()]
        ordinary: list[tuple[Outlet, Sequence[Entry]]] = []
        try:
            while left:
                outlet, entries = left.pop()
                if outlet.masked and outlet.lag is None:
                    self._send_singly(outlet, entries, ordinary)
                elif entries:
                    outlet.hold(outlet.expect(entries))
            while todo:
                self.send(*todo.pop(), ordinary)
        except BaseException:
            for outlet, entries in (*left, *ordinary):
                self._lose(outlet, entries)
            for connections, entries in todo:
                for connection in connections:
                    self._lose(_outlet_of(connection), entries)
            raise
        unready, self.unready = self.unready, set()
        for outlet in unready:
            outlet.refresh()
        under_way = deque((outlet, outlet.expect(entries)) for outlet, entries in ordinary)
        try:
            while under_way:
                self._send_under_way(*under_way.popleft())
        except BaseException:
            for _, arriving in under_way:
                _drop(arriving)
            raise

    def _send_under_way(self, outlet: Outlet, arriving: list[tuple[Subscription | None, Entry]]) -> None:
        """Send messages that have been counted as under way by the connection's own methods."""
        failed: list[int] = []
        try:
            count = self._send_ordinarily(outlet, [entry for _, entry in arriving], failed)
        except BaseException:
            _drop(arriving)
            raise
        if count == GONE:
            _drop(arriving)
            return
        for index, (subscription, _) in enumerate(arriving[:count]):
            if subscription is not None and subscription.outlet is not None:
                subscription.arriving -= 1
                subscription.dropped += index in failed
        outlet.hold(arriving[count:])

    def _sequence(self, node: int) -> list[Entry]:
        return [self.entries[number] for number in self.roster.sequence(node)]

    def _settle(self, slot: int, node: int, result: int, joined: dict[int, Joined]) -> tuple[Outlet, Sequence[Entry]]:
        """Give the end of the frame that was cut to the transport; return the messages behind it."""
        outlet = self.outlets[slot]
        assert outlet is not None
        if result <= 0:
            outlet.unready()
            if -result not in HARMLESS:
                keep_reason(outlet.connection, -result)
            return outlet, self._sequence(node)
        entries = joined[node].entries
        frame = joined[node].plain.frame
        ends = joined[node].ends(frame)
        index = bisect_left(ends, result)
        if not self._write(outlet.connection, memoryview(frame)[result : ends[index]]):
            outlet.abort()
        outlet.unready()
        return outlet, entries[index + 1 :]

    def _lose(self, outlet: Outlet | None, entries: Sequence[Entry]) -> None:
        """Count messages that a connection never gets."""
        for entry in entries:
            subscription = None if outlet is None else entry.publisher.subscription_of(outlet)
            if subscription is not None:
                subscription.dropped += 1

    def send(
        self, connections: list[Any], entries: Sequence[Entry], ordinary: list[tuple[Outlet, Sequence[Entry]]]
    ) -> None:
        """Send messages to connections that must be asked whether they can take them.

        To `ordinary` are added those that must be sent to by their own methods.
        """
        taken = self.offer(connections, entries)
        if taken != [len(entries)] * len(connections):
            for connection, count in zip(connections, taken, strict=True):
                outlet = _outlet_of(connection)
                if outlet is None or count == len(entries):
                    continue
                if count == ORDINARY:
                    ordinary.append((outlet, entries))
                else:
                    self._leave(outlet, entries, count)

    def _send_singly(
        self, outlet: Outlet, entries: Sequence[Entry], ordinary: list[tuple[Outlet, Sequence[Entry]]]
    ) -> None:
        """Send messages to one connection, each in a system call of its own."""
        for index in range(len(entries)):
            count = self.offer([outlet.connection], entries[index : index + 1])[0]
            if count == ORDINARY:
                ordinary.append((outlet, entries[index:]))
            elif count != 1:
                self._leave(outlet, entries[index:], count)
            if count != 1:
                break

    def _leave(self, outlet: Outlet, entries: Sequence[Entry], count: int) -> None:
        if count >= 0:
            outlet.hold(outlet.expect(entries[count:]))
            return
        self._lose(outlet, entries)

    def offer_one(self, outlet: Outlet, entries: Sequence[Entry], failed: list[int], *, insist: bool) -> int:
        """Offer messages to one connection, by its own methods if it must be; see `_send_ordinarily`."""
        count = self.offer([outlet.connection], entries, insist=insist)[0]
        return self._send_ordinarily(outlet, entries, failed) if count == ORDINARY else count

    def offer(self, connections: list[Any], entries: Sequence[Entry], *, insist: bool = False) -> list[int]:
        """Offer messages to connections for which nothing waits; return how many of them each has taken.

        GONE stands for a connection that takes nothing any more, ORDINARY for one that must be sent to by its own
        methods.

        Args:
            connections: The connections.
            entries: The messages.
            insist: Whether to give them to the transport if the kernel takes nothing, although it was said to have
                room: then it is not for the lack of room, and the transport is to find out what else it is.
        """
        joined = Joined(entries)
        taken = [len(entries)] * len(connections)
        start = 0
        while start < len(connections):
            stop = self._sweep(connections, start, joined, taken, insist)
            if stop == start:
                taken[start] = ORDINARY
                stop += 1
            start = stop
        return taken

    def _sweep(self, connections: list[Any], start: int, joined: Joined, taken: list[int], insist: bool) -> int:
        """As `broadcast()` does; see there about what must not happen in between."""
        cut: Any = []
        ends: list[tuple[int, int]] = []
        collects = gc.isenabled()
        try:
            gc.disable()
            stop, _, skipped, waiting, ordinary, lost = core.fan_out(
                connections, start, joined, connection_layout, transport_layout, self.loop, cut
            )
            while cut:
                position, rest = cut[-1]
                frame = rest.obj
                outlet = _outlet_of(connections[position])
                sizes = [len(frame)] if outlet is not None and outlet.masked else joined.ends(frame)
                offset = len(frame) - len(rest)
                index = bisect_left(sizes, offset)
                if not self._write(connections[position], memoryview(frame)[offset : sizes[index]]):
                    connections[position].transport.abort()
                cut.pop()
                ends.append((position, index + 1))
            for position, encoder in waiting:
                taken[position] = self._give(connections[position], encoder, joined, insist)
        except BaseException:
            for connection in connections[start:]:
                disturb(connection)
                if (encoder := encoder_of(connection)) is not None:
                    encoder.forget()
            raise
        finally:
            try:
                for position, _ in cut:
                    connections[position].transport.abort()
            finally:
                if collects:
                    gc.enable()
        for position, errno in lost:
            keep_reason(connections[position], errno)
        for position, count in ends:
            taken[position] = count
            if count < len(joined.entries) and (encoder := encoder_of(connections[position])) is not None:
                joined.take_back(encoder, count)
        if skipped:
            for position in range(start, stop):
                if connections[position].protocol.state is not OPEN:
                    taken[position] = GONE
        for position in ordinary:
            taken[position] = ORDINARY
        return stop

    def _give(self, connection: Any, encoder: Encoder | None, joined: Joined, insist: bool) -> int:
        """Give messages to a transport that has nothing to write, and that only itself may write to."""
        layout = transport_layout(type(connection.transport))
        refused = layout is not None and layout.direct and core.sends_directly and not insist
        if refused or connection.transport.get_write_buffer_size():
            return 0
        encoding = joined.plain if encoder is None else joined.encoding_for(encoder)
        connection_kind = connection_layout(type(connection))
        assert connection_kind is not None
        frame = encoding.frame
        if connection_kind.masked:
            frame = core.encode_frame(encoding.first, encoding.payload, os.urandom(4))
        if self._write(connection, frame):
            return len(joined.entries)
        if encoder is not None:
            joined.take_back(encoder)
        return GONE

    def _send_ordinarily(self, outlet: Outlet, entries: Sequence[Entry], failed: list[int]) -> int:
        """Send messages by the connection's own methods; return as `offer` does how many of them are done with.

        To `failed` are added the indexes of those that could not be sent.
        """
        connection = outlet.connection
        try:
            if outlet.slot < 0 or not outlet.open or connection.transport.is_closing():
                return GONE
            busy = getattr(connection, SEND_IN_PROGRESS) is not None or connection.transport.get_write_buffer_size()
            if connection.transport.is_closing():  # a sink that could not tell
                return GONE
        except Exception as exc:
            outlet.fail(exc)
            return GONE
        if busy:
            return 0
        for index, entry in enumerate(entries):
            message = entry.message
            try:
                with contextlib.nullcontext() if message.compress is None else without_deflate(connection.protocol):
                    if message.text:
                        connection.protocol.send_text(message.data)
                    else:
                        connection.protocol.send_binary(message.data)
                connection.send_data()
            except Exception as exc:
                self.log(logging.WARNING, "could not write to %s: %r", connection.id, exc)
                failed.append(index)
                if connection.transport.is_closing():
                    failed.extend(range(index + 1, len(entries)))
                    break
        return len(entries)

    def _write(self, connection: Any, data: bytes | memoryview) -> bool:
        """Write to a transport; tell whether it has taken it."""
        try:
            connection.transport.write(data)
        except Exception as exc:
            self.log(logging.WARNING, "could not write to %s: %r", connection.id, exc)
            return False
        return True

    def log(self, level: int, message: str, *arguments: object) -> None:
        """Log soon: what handlers do must not get in between."""
        self.loop.call_soon(logger.log, level, message, *arguments)


def _drop(arriving: Sequence[tuple[Subscription | None, Entry]]) -> None:
    """Count messages that were under way as dropped."""
    for subscription, _ in arriving:
        if subscription is not None and subscription.outlet is not None:
            subscription.arriving -= 1
            subscription.dropped += 1


def _outlet_of(connection: Any) -> Outlet | None:
    """Return the outlet of a connection, unless nobody is subscribed any more."""
    outlet: Outlet | None = getattr(connection, "_wsfast_outlet", None)
    return outlet
