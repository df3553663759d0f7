"""The dispatcher: sends everything that is published in an event loop in one tick.

Messages that channels and hubs publish in one iteration of the loop are recorded in the dispatcher's tick table and
sent together. Each connection gets all of its messages in one system call and in the order of publishing. Their frames
are joined once for all connections that get the same messages. Messages that a connection does not take wait in its
backlog.

Every message still to be sent is in the table or in a backlog at any moment, and never only in a local variable. So if
anything on the way raises an exception, a signal handler included, the next flush continues from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from typing import Any, ClassVar
from weakref import WeakKeyDictionary, ref

from ._backlog import Backlog, Entry, Source
from ._core import core
from ._delivery import Outcome, deliver, detach, report_lost, settle
from ._draining import BATCH, Draining
from ._encoding.message import PreparedMessage, join
from ._encoding.shared import closed, encodings_of
from ._reentrancy import Calls
from ._writable import LATE, Notification
from .connections.foreign import Ended, Foreign
from .connections.shape import (
    Lost,
    check_subscriber,
    close,
    hook_closers,
    peer_of,
    unhook_closers,
    when_lost,
    why_lost,
)
from .connections.websockets import Reporting

__all__ = ["Dispatcher"]

logger = logging.getLogger("wsfast")

SLICE = 500
"""Connections to send to before the clock is read again."""

SEQUENCES = 100
"""Joined messages that are kept from one slice of a tick to the next: with different answers, each connection that
comes back has its own, with a copy of all that it has missed."""

BUDGET = 0.02
"""Seconds after which an automatic flush returns to the event loop and continues later."""


class Dispatcher(Draining):
    """Sends the messages published in one event loop."""

    _all: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, ref[Dispatcher]]] = WeakKeyDictionary()

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> Dispatcher:
        """Return the dispatcher of an event loop."""
        reference = cls._all.get(loop)
        dispatcher = None if reference is None else reference()
        if dispatcher is None:
            dispatcher = cls(loop)
            cls._all[loop] = ref(dispatcher)
        return dispatcher

    _has_detached: ClassVar[bool] = False
    """Whether threads have ever sent for any dispatcher while its event loop went on."""

    _under_way: ClassVar[set[Dispatcher]] = set()
    """Dispatchers for which threads are sending. Until they are done, no connection may be freed: its descriptor would
    close.
    """

    @classmethod
    def finish(cls, loop: asyncio.AbstractEventLoop | None) -> None:
        """Flush an event loop for which threads are sending, so that something else can be sent after it."""
        if cls._has_detached and loop is not None and (reference := cls._all.get(loop)) is not None:
            dispatcher = reference()
            if dispatcher is not None and dispatcher._detached is not None:
                dispatcher.flush()

    @classmethod
    def calls_in(cls, loop: asyncio.AbstractEventLoop | None) -> Calls | None:
        """Return the calls of an event loop, if it has a dispatcher and no such call is in progress."""
        reference = None if loop is None or not cls._all else cls._all.get(loop)
        dispatcher = None if reference is None else reference()
        return None if dispatcher is None or dispatcher.calls.busy else dispatcher.calls

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.calls = Calls(loop)
        self._tasks: set[asyncio.Task[None]] = set()
        self._handle: asyncio.Handle | None = None
        self._scheduled = 0.0  # when the handle was scheduled
        self._sequences: dict[int, core.Encodings] = {}  # by node that is being sent
        self._turn = 0
        self._again: dict[Entry, int] = {}  # numbers of entries that are sent again in this tick
        # Entries of messages to one connection alone in this tick, each with the slots that get it.
        self._alone: dict[tuple[int, PreparedMessage], tuple[Entry, set[int]]] = {}
        self._flushing = False
        self._detached: Outcome | None = None  # outcome of the batch that threads are sending
        self._done: Notification | None = None  # tells that the threads are done

    # ---- Connections

    def admit(self, connection: Any) -> core.Peer:
        """Return the peer of a connection that subscribes, with a slot.

        Raises:
            TypeError: If the connection is of an unsupported kind.
            RuntimeError: If it belongs to another event loop, or is not open.
        """
        check_subscriber(connection, self.loop)
        peer = peer_of(connection)
        if peer.slot < 0:
            peer.connection, peer.dispatcher = connection, self
            try:
                self.table.add(peer)
                if not isinstance(connection, Reporting):
                    when_lost(connection).add_done_callback(Lost(peer))
                hook_closers(peer, connection)
                if isinstance(connection, Foreign):
                    connection.subscribed()
            except BaseException:
                self.release(peer)
                raise
        return peer

    def release(self, peer: core.Peer) -> None:
        """Free the slot of a peer without subscriptions."""
        connection, backlog = peer.connection, peer.backlog
        try:
            self._forget_peer(peer, connection, backlog)
        except BaseException:  # the connection may be lost, and its descriptor reused
            self._forget_peer(peer, connection, backlog)
            raise

    def _forget_peer(self, peer: core.Peer, connection: Any, backlog: Backlog | None) -> None:
        self.slow.forget(peer)
        if peer.slot >= 0:
            self.table.remove(peer)
        peer.backlog = peer.connection = peer.dispatcher = None
        if backlog is not None:
            self.slow.unlink_soon(backlog.clear())
            self._forget(backlog)
        if connection is not None:
            unhook_closers(connection)
        if connection is not None and not isinstance(connection, Reporting):
            when_lost(connection).remove_done_callback(Lost(peer))

    def end(self, peer: core.Peer, why: Ended | None = None) -> None:
        """End all subscriptions of a connection. The reason is that it is lost, unless `why` says otherwise."""
        if why is None and peer.subscriptions:
            why = why_lost(peer.connection)
        for subscription in tuple(peer.subscriptions):
            subscription.end(why)

    def disconnect(self, peer: core.Peer, code: int, reason: str) -> None:
        """End all subscriptions of a connection, and close it."""
        connection = peer.connection
        self.end(peer, Ended.SLOW_CONSUMER)
        task = self.loop.create_task(close(connection, code, reason))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def enter(self, entry: Entry) -> int:
        """Return the number of an entry in the tick table. Entries in the table are sent at the end of this tick."""
        self._schedule()
        return self.table.enter(entry)

    def enter_again(self, entries: tuple[Entry, ...]) -> tuple[int, ...]:
        """Return the numbers of entries that were sent before: the same for all who get them again in this tick."""
        with contextlib.suppress(KeyError):
            return tuple(map(self._again.__getitem__, entries))
        for entry in entries:
            if entry not in self._again:
                self._again[entry] = self.enter(entry)
        return tuple(map(self._again.__getitem__, entries))

    def entry_for(self, peer: core.Peer, publisher: Source, message: PreparedMessage) -> Entry:
        """Return the entry of a message to one connection alone.

        Connections that are sent equal messages in one tick, such as those that come back at once to the same position,
        share an entry, and so the frames of all that they get. A connection gets no entry twice.
        """
        key = id(publisher), message
        entry, slots = self._alone.get(key) or (None, set())
        if entry is None or peer.slot in slots:
            entry, slots = Entry(publisher, message, encodings_of(message, 1), None), set()
            self._alone[key] = entry, slots
        slots.add(peer.slot)
        return entry

    def _schedule(self) -> None:
        # A handle that is late may have been interrupted before it began.
        if self._handle is None or self.loop.time() - self._scheduled > LATE:
            self._scheduled = self.loop.time()
            self._handle = self.loop.call_soon(self._on_tick)

    def _on_tick(self) -> None:
        handle, self._handle = self._handle, None
        try:
            if handle is not None:
                handle.cancel()  # if this handle was late and not lost, there is a second one; keep only one
            self.flush(BUDGET)
        except BaseException:
            self._schedule()
            raise

    def flush(self, budget: float | None = None) -> None:
        """Send everything published so far.

        Args:
            budget: Seconds after which to continue in the next iteration of the event loop; None to send everything
                now.
        """
        table = self.table
        idle = not (table.published or table.sending or self._detached)
        if self._flushing or self.calls.forked or idle:
            self.slow.check()
            self._writable.check()
            return
        if self.calls.busy:
            self.calls.after(self.flush)
            return
        deadline = math.inf if budget is None else time.monotonic() + budget
        try:
            self._flushing = True
            if not self._may_go_on(budget):
                return
            for _ in range(table.published + table.sending):
                if not table.sending:
                    turn, self._turn, self._again, self._alone = self._turn, self._turn + 1, {}, {}
                    table.begin(turn)
                    if budget is not None and core.detaches(table.left):
                        self._detach()
                while table.left > table.detached:
                    self._send_some(len(table.peers) if budget is None else SLICE)
                    if len(self._sequences) > SEQUENCES:
                        self._sequences = {}
                    if time.monotonic() > deadline and (table.left or table.published):
                        return
                if table.detached:
                    return
                self._finish()
            if self._handle is not None and not table.published:
                self._handle.cancel()
                self._handle = None
        finally:
            self._flushing = False
            self._end_flush()

    def _end_flush(self) -> None:
        """Schedule the rest, and make the calls that have waited."""
        table = self.table
        if (table.published or table.sending) and self._detached is None:  # out of time, or an exception
            self._schedule()
        if self.calls.waiting:
            self.calls.run()

    def _detach(self) -> None:
        """Let threads send to the peers that are known to be ready, if possible, while the event loop goes on."""
        table = self.table
        try:
            done = self._done = self._done or Notification()
        except OSError:  # for example, out of descriptors
            return
        for other in tuple(self._under_way):
            if other.loop.is_closed():
                other._abandon()
        outcome = Outcome()
        try:
            self._under_way.add(self)
            self._detached, Dispatcher._has_detached = outcome, True
            table.settle = self._settle_early
            self.calls.busy = True
            detach(outcome, lambda batch: batch.collect(table, table.left, self._sequence_of, True), done)
        finally:
            self.calls.busy = False
            if not table.detached:
                self._detached = table.settle = None
                self._under_way.discard(self)
        self._may_go_on(BUDGET)

    def _abandon(self) -> None:
        """Wait for threads that send, and forget the rest: the event loop is closed."""
        if self._detached is not None and not self._detached.batch.done:
            self._detached.batch.send()
        self._detached = self.table.settle = None
        self._under_way.discard(self)

    def _may_go_on(self, budget: float | None) -> bool:
        """Whether threads have finished sending; without a budget, wait until they have."""
        if self._detached is None:
            return True
        if budget is not None and self._done is not None and not self._detached.batch.is_sent:
            self._writable.once_readable(self._done.reader, self, self._go_on)
            return False
        self._settle()
        return True

    def _go_on(self) -> None:
        try:
            if self._done is not None:
                self._done.clear()
            self.flush(BUDGET)
        except BaseException:
            self._schedule()
            raise

    def _settle_early(self) -> None:
        """Record what threads have sent and write the ends of frames, before something else touches a connection."""
        if self.loop.is_running() and asyncio._get_running_loop() is not self.loop:
            return  # another thread has accessed a connection, and must not write to any
        self._schedule()  # processes the rest, in case that no notification arrives
        if self._detached is not None:
            settle(self._detached)

    def _settle(self) -> None:
        """Record what threads have sent, and process what was not taken."""
        outcome = self._detached
        if outcome is None:
            return
        try:
            settle(outcome)
        finally:
            if not self.table.detached:  # otherwise settle() was interrupted before it began
                self._detached = self.table.settle = None
                self._under_way.discard(self)
        self._process_leftovers(outcome)

    def flush_for(self, peer: core.Peer) -> None:
        """Send everything published so far, if some of it is for this peer."""
        if peer.slot < 0:
            return
        self.table.wait(peer.slot)
        if not self.table.is_pending(peer.slot):
            return
        if not self._flushing:
            self.flush()
        elif peer.backlog is None or not peer.backlog.draining:  # inside a flush that has not reached this peer
            self.table.take(peer.slot, self._backlog_of(peer).inbox, published=True)
            self.drain(peer)

    def flush_last(self, peer: core.Peer) -> None:
        """Send everything published so far to a peer before its close frame, which does not wait.

        Data that the kernel does not take is given to the transport, unless more than BATCH bytes were waiting before.
        """
        lags = peer.backlog is not None and peer.backlog.bytes > BATCH
        self.flush_for(peer)
        backlog = peer.backlog
        if backlog is None or lags:
            return
        try:
            backlog.overflows = True
            self.drain(peer)
            self.drain(peer)  # again, for what follows a frame that the kernel took in part
        finally:
            backlog.overflows = False

    def _finish(self) -> None:
        self._sequences = {}
        for entry in self.table.finish():
            entry.encodings = closed(entry.encodings)

    def _sequence_of(self, node: int) -> core.Encodings:
        sequence = self._sequences.get(node)
        if sequence is None:
            sequence = join([entry.encodings for entry in self.table.sequence(node)])
            self._sequences[node] = sequence
        return sequence

    def _send_some(self, count: int) -> None:
        """Send to some of the peers that something was published for.

        None of the user's code runs before all frames are complete; connections with methods of their own come last.
        """
        table = self.table
        outcome = Outcome()
        try:
            self.calls.busy = True  # a change by a signal handler would be missed now
            deliver(outcome, lambda batch: batch.collect(table, count, self._sequence_of))
        finally:
            self.calls.busy = False
        self._process_leftovers(outcome)

    def _process_leftovers(self, outcome: Outcome) -> None:
        """Process what was not taken."""
        batch = outcome.batch
        for exc in outcome.failures.values():
            self.log(logging.WARNING, "could not write to a connection: %r", exc)
        report_lost(batch, lambda _, peer: peer.connection)
        for _, peer in batch.refused:
            self._move_to_backlog(peer, direct=peer.masked)
        for slot in batch.closed:
            self._drop_all(self.table.peers[slot])
        for _, peer in batch.waiting:
            self._move_to_backlog(peer, direct=True)
        for _, peer in batch.own:
            self._move_to_backlog(peer, direct=True)

    def move_pending(self, peer: core.Peer) -> None:
        """Move a connection's pending messages to its backlog, so that messages no longer for it can be left out."""
        if self.table.is_pending(peer.slot):
            self.table.take(peer.slot, self._backlog_of(peer).inbox, published=True)
        self._update_backlog(peer)

    def _move_to_backlog(self, peer: core.Peer, *, direct: bool) -> None:
        """Move a connection's messages of this tick to its backlog, except for those that it takes now.

        Args:
            peer: Its peer.
            direct: Whether to offer the messages to the connection first.
        """
        if peer.slot < 0 or not self.table.node(peer.slot):
            return
        message = None
        if peer.backlog is not None:
            direct = False
        elif direct and not peer.masked:
            message = self._sequence_of(self.table.node(peer.slot))  # shared by all peers that get the same messages
        backlog = self._backlog_of(peer)
        self.table.take(peer.slot, backlog.inbox)
        while direct and self._drain(peer, backlog, math.inf, message):
            pass
        self._admit(peer, backlog)
        self._update_backlog(peer)

    def _drop_all(self, peer: core.Peer) -> None:
        """Drop a connection's messages of this tick, because it is no longer open."""
        if peer is None:
            return
        backlog = self._backlog_of(peer)
        self.table.take(peer.slot, backlog.inbox)
        backlog.taken(len(backlog.arrived()), dropped=True) if backlog.first is None else self._admit(peer, backlog)
        self._update_backlog(peer)
