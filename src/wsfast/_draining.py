"""What waits for connections that do not keep up: it leaves when they have room, and policies bound it.

What waits is in backlogs at any moment. Whoever is interrupted leaves a backlog that nobody watches; that is looked at
again soon, with all others for which something waits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from ._backlog import Backlog, Entry, Item, Queue, Subscriber, unlink
from ._core import core
from ._delivery import GONE, OWN, Outcome, offer, offer_by_own_methods
from ._encoding.message import join
from ._writable import Writable
from .connections import is_buffering
from .connections.foreign import Ended
from .connections.shape import is_open, is_sending

__all__ = ["BATCH", "Draining"]

logger = logging.getLogger("wsfast")

BATCH = 65536
"""Bytes of payload that are put together for a connection that is drained."""

BATCHES = 4
"""How many of these it is sent before others have their turn."""

AGE_INTERVAL = 0.1
"""Seconds between two looks at how long messages have waited."""

TRIMMING = 0.002
"""Seconds in one iteration of the event loop for what was dropped, or forgotten, in large numbers."""

SLICE = 1024
"""Items that are taken apart at once."""

EPISODE_GAP = 1.0
"""Seconds for which a connection must keep up before it counts as recovered."""


class Episode:
    """A time during which policies have had to do something about a connection."""

    __slots__ = ("last", "subscriptions")

    def __init__(self) -> None:
        self.last = 0.0
        self.subscriptions: set[Subscriber] = set()


class SlowConsumers:
    """Looks from time to time at those for whom something waits, though nothing may be published any more.

    Args:
        loop: The event loop.
        log: Function that logs, with a level, a message and its arguments.
        tend: Function that has what waits for a peer be drained, in case that an interrupt has prevented that.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, log: Callable[..., None], tend: Callable[[core.Peer], None]
    ) -> None:
        self._loop = loop
        self._log = log
        self._tend = tend
        self._peers: set[core.Peer] = set()
        self._episodes: dict[core.Peer, Episode] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._excesses: dict[Queue, None] = {}  # queues that are beyond their bounds
        self._forgotten: list[Item] = []  # the first items of what is to be taken apart
        self._trimming: asyncio.Handle | None = None

    def watch(self, peer: core.Peer) -> None:
        """Look at a peer as long as something waits for it."""
        self._peers.add(peer)
        self.check()

    def check(self) -> None:
        """Have the timer run if there is something to look at: a signal handler may have interrupted the last look."""
        if (self._peers or self._episodes or self._excesses or self._forgotten) and (
            self._timer is None or self._loop.time() - self._timer.when() > AGE_INTERVAL
        ):
            if self._timer is not None and self._timer.when() <= self._loop.time():
                self._timer.cancel()  # it may be late, rather than lost
            self._timer = self._loop.call_later(AGE_INTERVAL, self._look)

    def trim_soon(self, queue: Queue) -> None:
        """Have a policy go on with a queue that is far beyond its bounds."""
        self._excesses[queue] = None
        self._trim_soon()

    def dismantle(self, item: Item | None) -> None:
        """Take what is forgotten apart, which may be much."""
        item = unlink(item, SLICE)
        if item is not None:
            self._forgotten.append(item)
            self._trim_soon()

    def _trim_soon(self) -> None:
        if self._trimming is None:
            self._trimming = self._loop.call_soon(self._trim)

    def _trim(self) -> None:
        """Do what others would have to wait for, a bit of it at a time."""
        self._trimming = None
        try:
            now = time.monotonic()
            while (self._excesses or self._forgotten) and time.monotonic() < now + TRIMMING:
                if self._excesses:
                    queue = next(iter(self._excesses))
                    del self._excesses[queue]
                    if queue.subscription.active:
                        queue.subscription.publisher.slow.expire(queue, now)
                        queue.backlog.wake()
                if self._forgotten:
                    rest = unlink(self._forgotten.pop(), SLICE)
                    if rest is not None:
                        self._forgotten.append(rest)
        finally:
            if self._excesses or self._forgotten:
                self._trim_soon()

    def forget(self, peer: core.Peer) -> None:
        """Do not look at a peer any more."""
        self._peers.discard(peer)
        self._episodes.pop(peer, None)

    def begin_episode(self, peer: core.Peer, subscription: Subscriber) -> bool:
        """Note that a policy has done something; return whether an episode begins with that."""
        episode = self._episodes.get(peer)
        begins = episode is None
        if episode is None:
            episode = self._episodes[peer] = Episode()
        episode.last = time.monotonic()
        episode.subscriptions.add(subscription)
        return begins

    def _look_at(self, peer: core.Peer, now: float) -> None:
        try:
            if not peer.backlog.watched:
                self._tend(peer)
            for queue in list(() if peer.backlog is None else peer.backlog.queues.values()):
                if queue.subscription.active:
                    queue.subscription.publisher.slow.expire(queue, now)
            if peer.backlog is not None:
                peer.backlog.wake()
        except Exception as exc:  # the others are looked at all the same
            self._loop.call_exception_handler({"message": "a policy has failed", "exception": exc})

    def _look(self) -> None:
        self._timer = None
        try:
            if self._trimming is not None:  # in case that it was interrupted before it began
                self._trimming.cancel()
                self._trimming = self._loop.call_soon(self._trim)
            now = time.monotonic()
            for peer in tuple(self._peers):
                if peer.backlog is None:
                    self._peers.discard(peer)
                else:
                    self._look_at(peer, now)
            for peer, episode in tuple(self._episodes.items()):
                if peer.backlog is not None:
                    episode.last = now
                elif now - episode.last > EPISODE_GAP:
                    del self._episodes[peer]
                    self._log(logging.INFO, "%s has recovered", peer.connection.id)
                    for subscription in episode.subscriptions:
                        subscription.recover()
        finally:
            self.check()


class Turn:
    """Those who wait until what waits for a connection has left, in the order in which they came."""

    __slots__ = ("lock", "waiting")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting = 0


class Draining:
    """The backlogs of the connections of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.table = core.TickTable()
        self.slow = SlowConsumers(loop, self.log, self._tend)
        self._writable = Writable(loop)
        self._turns: dict[core.Peer, Turn] = {}

    def end(self, peer: core.Peer, why: Ended | None = None) -> None:
        """End all subscriptions of a connection."""
        raise NotImplementedError

    def fail(self, peer: core.Peer, exc: Exception) -> None:
        """End all subscriptions of a connection that cannot even be asked whether it has room."""
        self.log(logging.WARNING, "could not ask %s whether it has room: %r", peer.connection.id, exc)
        self.end(peer, Ended.LOST)

    def log(self, level: int, message: str, *arguments: object) -> None:
        """Log soon: what handlers do must not get in between."""
        self.loop.call_soon(logger.log, level, message, *arguments)

    def _backlog_of(self, peer: core.Peer) -> Backlog:
        """Return what waits for a connection, which is looked at from now on, in case that this is interrupted."""
        if peer.backlog is None:
            self.slow.watch(peer)
            self.table.set_aside(peer.slot, True)  # first: nothing may be sent past what waits
            peer.backlog = Backlog(peer)
        backlog: Backlog = peer.backlog
        return backlog

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
        if backlog is None and peer not in self._turns:
            return
        future = None
        if backlog is not None:
            self._admit(peer, backlog)  # what an interruption has left
            if backlog.last is not None:
                future = backlog.waiters.setdefault(backlog.last.number, self.loop.create_future())
        turn = self._turns.setdefault(peer, Turn())
        turn.waiting += 1
        try:
            async with turn.lock:  # who comes while the one before is about to go on stays behind it
                if future is not None:
                    await asyncio.shield(future)
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                self._turns.pop(peer, None)

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
            if backlog.fd < 0 and not backlog.overflows and self._is_full(peer):  # looked at again and again
                self._tend(peer)
                return
            turn = 0
            while self._drain(peer, backlog, BATCH, insist=turn == 0) and (turn < BATCHES - 1 or backlog.overflows):
                turn += 1
            self._tend(peer)
        except BaseException:
            self.loop.call_soon(self._tend, peer)
            raise

    def _is_full(self, peer: core.Peer) -> bool:
        """Whether a connection has no room, which costs less to ask than to put together what waits."""
        try:
            return is_sending(peer.connection) or is_buffering(peer.connection.transport)
        except Exception:
            return False  # to send will raise it again, and tell

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
