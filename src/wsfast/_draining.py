"""Draining: sends the messages that wait for slow connections as soon as they have room. Policies bound the queues.

Messages that wait are in backlogs at any moment. A call that is interrupted may leave a backlog that is not watched.
All connections with something waiting are checked regularly, so that such a backlog is found soon.
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
"""Bytes of payload that are joined for a connection that is drained."""

BATCHES = 4
"""Number of such batches that a connection gets before others have their turn."""

AGE_INTERVAL = 0.1
"""Seconds between two checks of how long messages have waited."""

TRIMMING = 0.002
"""Seconds per iteration of the event loop for removing large numbers of messages."""

SLICE = 1024
"""Items that are unlinked at once."""

EPISODE_GAP = 1.0
"""Seconds for which a connection must keep up to count as recovered."""


class Episode:
    """A time during which policies have acted on a connection."""

    __slots__ = ("last", "subscriptions")

    def __init__(self) -> None:
        self.last = 0.0
        self.subscriptions: set[Subscriber] = set()


class SlowConsumers:
    """Checks regularly the connections with something waiting, even when nothing is published any more.

    Args:
        loop: The event loop.
        log: Function that logs, given a level, a message and its arguments.
        update_backlog: Function that resumes the draining of a peer, in case that an interrupt has stopped it.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, log: Callable[..., None], update_backlog: Callable[[core.Peer], None]
    ) -> None:
        self._loop = loop
        self._log = log
        self._update_backlog = update_backlog
        self._peers: set[core.Peer] = set()
        self._episodes: dict[core.Peer, Episode] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._excesses: dict[Queue, None] = {}  # queues that are beyond their bounds
        self._forgotten: list[Item] = []  # first items of the lists to unlink
        self._trimming: asyncio.Handle | None = None

    def watch(self, peer: core.Peer) -> None:
        """Check a peer as long as something waits for it."""
        self._peers.add(peer)
        self.check()

    def check(self) -> None:
        """Run the timer if there is something to check. A signal handler may have interrupted the last check."""
        if (self._peers or self._episodes or self._excesses or self._forgotten) and (
            self._timer is None or self._loop.time() - self._timer.when() > AGE_INTERVAL
        ):
            if self._timer is not None and self._timer.when() <= self._loop.time():
                self._timer.cancel()  # the timer may be late, and not lost
            self._timer = self._loop.call_later(AGE_INTERVAL, self._look)

    def trim_soon(self, queue: Queue) -> None:
        """Have a policy continue with a queue that is far beyond its bounds."""
        self._excesses[queue] = None
        self._trim_soon()

    def unlink_soon(self, item: Item | None) -> None:
        """Unlink items that are no longer needed, which may be many."""
        item = unlink(item, SLICE)
        if item is not None:
            self._forgotten.append(item)
            self._trim_soon()

    def _trim_soon(self) -> None:
        if self._trimming is None:
            self._trimming = self._loop.call_soon(self._trim)

    def _trim(self) -> None:
        """Do some of the work that would make other connections wait if it were done at once."""
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
        """Stop checking a peer."""
        self._peers.discard(peer)
        self._episodes.pop(peer, None)

    def begin_episode(self, peer: core.Peer, subscription: Subscriber) -> bool:
        """Record that a policy has acted; return whether that begins an episode."""
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
                self._update_backlog(peer)
            for queue in list(() if peer.backlog is None else peer.backlog.queues.values()):
                if queue.subscription.active:
                    queue.subscription.publisher.slow.expire(queue, now)
            if peer.backlog is not None:
                peer.backlog.wake()
        except Exception as exc:  # continue with the other peers
            self._loop.call_exception_handler({"message": "exception in a slow-consumer policy", "exception": exc})

    def _look(self) -> None:
        self._timer = None
        try:
            if self._trimming is not None:  # the handle may have been interrupted before it began
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


class DrainWaiters:
    """The tasks that wait until a connection's waiting messages have been sent, in the order in which they came."""

    __slots__ = ("lock", "waiting")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting = 0


class Draining:
    """The backlogs of the connections of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.table = core.TickTable()
        self.slow = SlowConsumers(loop, self.log, self._update_backlog)
        self._writable = Writable(loop)
        self._drain_waiters: dict[core.Peer, DrainWaiters] = {}

    def end(self, peer: core.Peer, why: Ended | None = None) -> None:
        """End all subscriptions of a connection."""
        raise NotImplementedError

    def fail(self, peer: core.Peer, exc: Exception) -> None:
        """End all subscriptions of a connection that raises an exception when it is asked whether it has room."""
        self.log(
            logging.WARNING,
            "could not find out whether connection %s has room, and ended its subscriptions: %r",
            peer.connection.id,
            exc,
        )
        self.end(peer, Ended.LOST)

    def log(self, level: int, message: str, *arguments: object) -> None:
        """Log soon, so that logging handlers do not run in the middle of a change."""
        self.loop.call_soon(logger.log, level, message, *arguments)

    def _backlog_of(self, peer: core.Peer) -> Backlog:
        """Return the backlog of a connection; create it if needed, and check it regularly in case of an interrupt."""
        if peer.backlog is None:
            self.slow.watch(peer)
            self.table.set_aside(peer.slot, True)  # first, so that nothing overtakes the backlog
            peer.backlog = Backlog(peer)
        backlog: Backlog = peer.backlog
        return backlog

    def _admit(self, peer: core.Peer, backlog: Backlog) -> None:
        """Have the policies process what a connection has not taken."""
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
                except Exception as exc:  # for example, from comparing keys
                    if peer.backlog is backlog and backlog.admitted == admitted:
                        backlog.queue_of(subscription).append(entry, time.monotonic())
                    context = {
                        "message": f"exception in the slow-consumer policy of {entry.publisher!r}",
                        "exception": exc,
                    }
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

    def _update_backlog(self, peer: core.Peer) -> None:
        """Watch a connection as long as something waits for it, and clean up when nothing does."""
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
        """Drain when the socket has room, or after a short time if the socket cannot be watched."""
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
        self._update_backlog(peer)

    async def drained(self, peer: core.Peer) -> None:
        """Wait until everything that waits for a connection now has been sent, but not for later messages."""
        backlog = peer.backlog
        if backlog is None and peer not in self._drain_waiters:
            return
        future = None
        if backlog is not None:
            self._admit(peer, backlog)  # entries that an interrupt has left
            if backlog.last is not None:
                future = backlog.waiters.setdefault(backlog.last.number, self.loop.create_future())
        waiters = self._drain_waiters.setdefault(peer, DrainWaiters())
        waiters.waiting += 1
        try:
            async with waiters.lock:  # keeps the order: a task that comes now stays behind one about to continue
                if future is not None:
                    await asyncio.shield(future)
        finally:
            waiters.waiting -= 1
            if not waiters.waiting:
                self._drain_waiters.pop(peer, None)

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
            if backlog.fd < 0 and not backlog.overflows and self._is_full(peer):  # checked on a timer
                self._update_backlog(peer)
                return
            batches = 0
            while self._drain(peer, backlog, BATCH, insist=batches == 0) and (
                batches < BATCHES - 1 or backlog.overflows
            ):
                batches += 1
            self._update_backlog(peer)
        except BaseException:
            self.loop.call_soon(self._update_backlog, peer)
            raise

    def _is_full(self, peer: core.Peer) -> bool:
        """Whether a connection has no room. Asking is cheaper than joining the waiting messages."""
        try:
            return is_sending(peer.connection) or is_buffering(peer.connection.transport)
        except Exception:
            return False  # sending will raise it again, and report it

    def _drain(
        self,
        peer: core.Peer,
        backlog: Backlog,
        size: float,
        message: core.Encodings | None = None,
        *,
        insist: bool = False,
    ) -> bool:
        """Offer a connection the messages to send next; return whether it has taken all of them.

        Args:
            peer: Its peer.
            backlog: Its backlog.
            size: Maximum number of bytes of payload, if it is more than one message.
            message: All that waits, if it has been joined already.
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
                self.log(logging.WARNING, "could not write to connection %s: %r", peer.connection.id, failure)
            if peer.backlog is not backlog or backlog.head(0, single=True) != [entry]:
                return False  # the subscription was ended meanwhile
            if count == GONE:
                backlog.taken(len(entries) - index, dropped=True)
                return False
            if count == 0:
                return False
            backlog.taken(1, dropped=bool(failures))
            outcome.given = False
        return True
