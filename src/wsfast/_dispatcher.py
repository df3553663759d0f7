"""What leaves an event loop in one tick.

Whatever channels and hubs publish in one iteration of the loop is noted in the dispatcher's tick table and leaves
together: what all of them have for a connection goes out in one system call, in the order in which it was published,
and is put together once for all connections that get the same. What a connection does not take waits in its backlog.

All that must still be sent is in the table or in a backlog at any moment; nothing of it is in a local variable. So
whatever raises an exception on the way, signal handlers included, the next flush goes on from there.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import Any, ClassVar
from weakref import WeakKeyDictionary, ref

from ._backlog import Backlog, Entry, SlowConsumers
from ._core import core
from ._delivery import GONE, OWN, Outcome, deliver, offer, offer_by_own_methods, report_lost
from ._encoding.message import join
from ._reentrancy import Calls
from ._writable import LATE, Writable
from .connections.foreign import Ended
from .connections.shape import (
    Lost,
    check_subscriber,
    close,
    hook_closers,
    is_open,
    is_sending,
    peer_of,
    unhook_closers,
    when_lost,
    why_lost,
)
from .connections.websockets import Telling

__all__ = ["Dispatcher"]

logger = logging.getLogger("wsfast")

SLICE = 500
"""Connections that are sent to before the clock is looked at."""

BUDGET = 0.02
"""Seconds after which a flush that nobody asked for lets the event loop do something else."""

BATCH = 65536
"""Bytes of payload that are put together for a connection that is drained."""

BATCHES = 4
"""How many of these it is sent before others have their turn."""


class Dispatcher:
    """Sends what was published in one event loop."""

    _all: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, ref[Dispatcher]]] = WeakKeyDictionary()

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> Dispatcher:
        """Return that of an event loop."""
        reference = cls._all.get(loop)
        dispatcher = None if reference is None else reference()
        if dispatcher is None:
            dispatcher = cls(loop)
            cls._all[loop] = ref(dispatcher)
        return dispatcher

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.table = core.TickTable()
        self.slow = SlowConsumers(loop, self.log, self._tend)
        self.calls = Calls(loop)
        self._writable = Writable(loop)
        self._tasks: set[asyncio.Task[None]] = set()
        self._handle: asyncio.Handle | None = None
        self._scheduled = 0.0  # when that was
        self._sequences: dict[int, core.Encodings] = {}  # of each node that is being sent
        self._turn = 0
        self._flushing = False

    # ---- Connections

    def admit(self, connection: Any) -> core.Peer:
        """Return the peer of a connection that subscribes, with a slot.

        Raises:
            TypeError: If it is none that is supported.
            RuntimeError: If it belongs to another event loop, or is not open.
        """
        check_subscriber(connection, self.loop)
        peer = peer_of(connection)
        if peer.slot < 0:
            peer.connection, peer.dispatcher = connection, self
            try:
                self.table.add(peer)
                if not isinstance(connection, Telling):
                    when_lost(connection).add_done_callback(Lost(peer))
                hook_closers(peer, connection)
            except BaseException:
                self.release(peer)
                raise
        return peer

    def release(self, peer: core.Peer) -> None:
        """Take the slot of a peer back: it has no subscriptions any more."""
        connection, backlog = peer.connection, peer.backlog
        try:
            self._forget_peer(peer, connection, backlog)
        except BaseException:  # the connection may be lost, and the descriptor another one's
            self._forget_peer(peer, connection, backlog)
            raise

    def _forget_peer(self, peer: core.Peer, connection: Any, backlog: Backlog | None) -> None:
        self.slow.forget(peer)
        if peer.slot >= 0:
            self.table.remove(peer)
        peer.backlog = peer.connection = peer.dispatcher = None
        if backlog is not None:
            backlog.clear()
            self._forget(backlog)
        if connection is not None:
            unhook_closers(connection)
        if connection is not None and not isinstance(connection, Telling):
            when_lost(connection).remove_done_callback(Lost(peer))

    def end(self, peer: core.Peer, why: Ended | None = None) -> None:
        """End all subscriptions of a connection, which is lost unless `why` says otherwise."""
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

    def fail(self, peer: core.Peer, exc: Exception) -> None:
        """End all subscriptions of a connection that cannot even be asked whether it has room."""
        self.log(logging.WARNING, "could not ask %s whether it has room: %r", peer.connection.id, exc)
        self.end(peer, Ended.LOST)

    def log(self, level: int, message: str, *arguments: object) -> None:
        """Log soon: what handlers do must not get in between."""
        self.loop.call_soon(logger.log, level, message, *arguments)

    def enter(self, entry: Entry) -> int:
        """Return the number of an entry in the tick table, from which it is sent at the end of this tick."""
        self._schedule()
        return self.table.enter(entry)

    def _schedule(self) -> None:
        if (
            self._handle is None or self.loop.time() - self._scheduled > LATE
        ):  # it may have been interrupted before it began
            self._scheduled = self.loop.time()
            self._handle = self.loop.call_soon(self._on_tick)

    def _on_tick(self) -> None:
        try:
            self._handle = None
            self.flush(BUDGET)
        except BaseException:
            self._schedule()
            raise

    def flush(self, budget: float | None = None) -> None:
        """Send all that was published so far.

        Args:
            budget: Seconds after which to go on in the next iteration of the event loop; None to send all now.
        """
        table = self.table
        if self._flushing or self.calls.forked or not (table.published or table.sending):
            self.slow.check()
            self._writable.check()
            return
        if self.calls.busy:
            self.calls.after(self.flush)
            return
        deadline = math.inf if budget is None else time.monotonic() + budget
        try:
            self._flushing = True
            for _ in range(table.published + table.sending):
                if not table.sending:
                    table.begin(self._turn)
                    self._turn += 1
                while table.left:
                    self._send_some(len(table.peers) if budget is None else SLICE)
                    if time.monotonic() > deadline and (table.left or table.published):
                        return
                self._finish()
            if self._handle is not None and not table.published:
                self._handle.cancel()
                self._handle = None
        finally:
            self._flushing = False
            if table.published or table.sending:  # there was no time, or an exception
                self._schedule()

    def flush_for(self, peer: core.Peer) -> None:
        """Send what was published so far, if some of it is for this peer."""
        if peer.slot >= 0 and self.table.is_pending(peer.slot):
            self.flush()

    def flush_last(self, peer: core.Peer) -> None:
        """Send what was published so far for a peer whose close frame is to follow, and does not wait.

        The transport is given what the kernel does not take, unless more than BATCH bytes have waited before.
        """
        lags = peer.backlog is not None and peer.backlog.bytes > BATCH
        self.flush_for(peer)
        backlog = peer.backlog
        if backlog is None or lags:
            return
        try:
            backlog.overflows = True
            self.drain(peer)
            self.drain(peer)  # what is behind a frame that the kernel has cut
        finally:
            backlog.overflows = False

    def _finish(self) -> None:
        self._sequences = {}
        for entry in self.table.finish():
            entry.publisher.sent(entry)

    def _sequence_of(self, node: int) -> core.Encodings:
        sequence = self._sequences.get(node)
        if sequence is None:
            sequence = join([entry.encodings for entry in self.table.sequence(node)])
            self._sequences[node] = sequence
        return sequence

    def _send_some(self, count: int) -> None:
        """Send to some of those for whom something was published.

        No code of the user's runs before all frames are whole; connections with methods of their own come last.
        """
        table = self.table
        outcome = Outcome()
        batch = deliver(outcome, lambda batch: batch.collect(table, count, self._sequence_of))
        for exc in outcome.failures.values():
            self.log(logging.WARNING, "could not write: %r", exc)
        if batch.lost:
            report_lost(batch, lambda slot: table.peers[slot].connection)
        for _, peer in batch.refused:
            self._take(peer, direct=peer.masked)
        for slot in batch.closed:
            self._drop_all(table.peers[slot])
        for _, peer in batch.waiting:
            self._take(peer, direct=True)
        for _, peer in batch.own:
            self._take(peer, direct=True)

    def hold_back(self, peer: core.Peer) -> None:
        """Have what is to be sent to a connection wait, so that what is not for it any more is left out."""
        if self.table.is_pending(peer.slot):
            self.table.take(peer.slot, self._backlog_of(peer).inbox, published=True)
        self._tend(peer)

    def _take(self, peer: core.Peer, *, direct: bool) -> None:
        """Have a connection's messages of this tick wait, as far as it does not take them.

        Args:
            peer: Its peer.
            direct: Whether to offer them to it, rather than to have them wait at once.
        """
        if peer.slot < 0 or not self.table.node(peer.slot):
            return
        message = None
        if peer.backlog is not None:
            direct = False
        elif direct and not peer.masked:
            message = self._sequence_of(self.table.node(peer.slot))  # what all get who get the same
        backlog = self._backlog_of(peer)
        self.table.take(peer.slot, backlog.inbox)
        while direct and self._drain(peer, backlog, math.inf, message):
            pass
        self._admit(peer, backlog)
        self._tend(peer)

    def _backlog_of(self, peer: core.Peer) -> Backlog:
        """Return what waits for a connection, which is looked at from now on, in case that this is interrupted."""
        if peer.backlog is None:
            self.slow.watch(peer)
            peer.backlog = Backlog(peer)
        backlog: Backlog = peer.backlog
        return backlog

    def _drop_all(self, peer: core.Peer) -> None:
        """Drop a connection's messages of this tick: it is not open any more."""
        if peer is None:
            return
        backlog = self._backlog_of(peer)
        self.table.take(peer.slot, backlog.inbox)
        backlog.taken(len(backlog.arrived()), dropped=True) if backlog.first is None else self._admit(peer, backlog)
        self._tend(peer)

    def _admit(self, peer: core.Peer, backlog: Backlog) -> None:
        """Have the policies deal with what a connection has not taken."""
        if backlog.draining or backlog.admitting or backlog.admitted == len(backlog.inbox):
            return
        opened = self._is_open(peer)
        while peer.backlog is backlog and backlog.admitted < len(backlog.inbox):
            entry = backlog.inbox[backlog.admitted]
            subscription = entry.publisher.subscription_of(peer)
            if subscription is None:
                backlog.admitted += 1
            elif not opened:
                backlog.queue_of(subscription).refuse()
            else:
                admitted = backlog.admitted
                try:
                    backlog.admitting = True
                    entry.publisher.slow.admit(backlog.queue_of(subscription), entry)
                except Exception as exc:  # as what the comparison of keys raises
                    if peer.backlog is backlog and backlog.admitted == admitted:
                        backlog.queue_of(subscription).append(entry, time.monotonic())
                    context = {"message": f"the policy of {entry.publisher!r} has failed", "exception": exc}
                    self.loop.call_exception_handler(context)
                finally:
                    backlog.admitting = False
        if peer.backlog is backlog:
            backlog.empty_inbox()

    def _is_open(self, peer: core.Peer) -> bool:
        try:
            return peer.connection is not None and is_open(peer.connection)
        except Exception as exc:
            self.fail(peer, exc)
            return False

    def _tend(self, peer: core.Peer) -> None:
        """Have what waits for a connection be drained when there is room, as long as something does."""
        backlog = peer.backlog
        if backlog is None or peer.slot < 0:
            return
        if backlog.admitted < len(backlog.inbox):
            self._admit(peer, backlog)
        if backlog.empty:
            self.table.set_aside(peer.slot, peer.masked)
            self._forget(backlog)
            peer.backlog = None
            if peer.direct:
                peer.check(peer.connection)
            return
        backlog.wake()
        self.table.set_aside(peer.slot, True)
        self.slow.check()
        self._writable.check()
        if not backlog.watched and not backlog.draining:
            self._watch(peer, backlog, later=is_sending(peer.connection))

    def _watch(self, peer: core.Peer, backlog: Backlog, *, later: bool = False) -> None:
        """Drain when the socket has room, or a bit later if it cannot be told when."""
        if not later and peer.direct:
            backlog.fd = peer.transport.get_extra_info("socket").fileno()
        if not later and backlog.fd >= 0:
            self._writable.once_writable(backlog.fd, peer, lambda: self.drain(peer))
        else:
            self._writable.once_later(peer, lambda: self.drain(peer))
        backlog.watched = True

    def _forget(self, backlog: Backlog) -> None:
        self._writable.forget(backlog.fd, backlog.peer)
        backlog.wake()

    def _drop_waiting(self, peer: core.Peer, backlog: Backlog) -> None:
        """Drop what waits for a connection that takes nothing any more, though it may not be lost for a while."""
        while not backlog.draining and not backlog.empty:
            backlog.taken(1, dropped=True)
        self._tend(peer)

    async def drained(self, peer: core.Peer) -> None:
        """Wait until what waits for a connection now has left. What is published meanwhile does not count."""
        backlog = peer.backlog
        if backlog is None:
            return
        self._admit(peer, backlog)  # what an interruption has left
        if backlog.last is not None:
            future = backlog.waiters.setdefault(backlog.last.number, self.loop.create_future())
            await asyncio.shield(future)

    def drain(self, peer: core.Peer) -> None:
        """Send what waits for a connection, as much as it takes."""
        backlog = peer.backlog
        if backlog is None:
            return
        backlog.watched = False
        try:
            if not self._is_open(peer):
                self._drop_waiting(peer, backlog)
                return
            turn = 0
            while self._drain(peer, backlog, BATCH, insist=turn == 0) and (turn < BATCHES - 1 or backlog.overflows):
                turn += 1
            self._tend(peer)
        except BaseException:
            self.loop.call_soon(self._tend, peer)
            raise

    def _drain(
        self,
        peer: core.Peer,
        backlog: Backlog,
        size: float,
        message: core.Encodings | None = None,
        *,
        insist: bool = False,
    ) -> bool:
        """Offer a connection what is to be sent next; return whether it has taken all of that.

        Args:
            peer: Its peer.
            backlog: What waits for it.
            size: Bytes of payload of what it is offered, if that is more than one message.
            message: All that waits, if it has been put together already.
            insist: See `offer()`.
        """
        if backlog.draining:
            return False
        entries = backlog.head(size, single=peer.masked)
        if not entries:
            return False
        outcome = Outcome()
        try:
            backlog.draining = True
            if message is None:
                message = join([entry.encodings for entry in entries])
            count = offer(outcome, peer, message, len(entries), insist=insist, overflow=backlog.overflows)
            if peer.backlog is not backlog:
                return False
            if count == OWN:
                return self._drain_by_own_methods(outcome, peer, backlog, entries)
            backlog.taken(len(entries) if count == GONE else count, dropped=count == GONE)
            return count == len(entries)
        except BaseException:
            backlog.recover(outcome, entries)
            raise
        finally:
            backlog.draining, backlog.sending = False, None

    def _drain_by_own_methods(self, outcome: Outcome, peer: core.Peer, backlog: Backlog, entries: list[Entry]) -> bool:
        for index, entry in enumerate(entries):
            failures: list[Exception] = []
            backlog.sending = entry.publisher
            try:
                count = offer_by_own_methods(outcome, peer, entry.message, failures.append, overflow=backlog.overflows)
            except Exception as exc:
                backlog.sending = None
                self.fail(peer, exc)
                return False
            backlog.sending = None
            for failure in failures:
                self.log(logging.WARNING, "could not write to %s: %r", peer.connection.id, failure)
            if peer.backlog is not backlog or backlog.head(0, single=True) != [entry]:
                return False  # its subscription was ended meanwhile
            if count == GONE:
                backlog.taken(len(entries) - index, dropped=True)
                return False
            if count == 0:
                return False
            backlog.taken(1, dropped=bool(failures))
            outcome.given = False
        return True
