"""Subscriptions of connections, and their counts, which add up: published = sent + dropped + conflated + queued."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

from ._arguments import Local
from ._backlog import Entry, Queue
from ._core import core
from .connections.foreign import Ended
from .connections.shape import origin_of

__all__ = ["ChannelStats", "HubStats", "Lag", "Subscription", "SubscriptionStats", "TopicStats"]


class Lag(NamedTuple):
    """The messages that wait for a subscriber."""

    messages: int
    """Messages published, but taken neither by the kernel nor by the transport."""
    bytes: int
    """Size of their payloads in bytes."""
    seconds: float
    """Seconds since the oldest of them was published."""


@dataclass(frozen=True, slots=True)
class SubscriptionStats:
    """Counts of the messages for one subscriber: published = sent + dropped + conflated + queued."""

    published: int
    """Messages published for this subscriber."""
    sent: int
    """Messages that the kernel or the transport has taken."""
    dropped: int
    """Messages dropped by the policy, or because the connection was closed."""
    conflated: int
    """Messages replaced by newer ones with the same key."""
    queued: int
    """Messages waiting, those of this tick included."""


@dataclass(frozen=True, slots=True)
class ChannelStats:
    """Counts of a channel's messages over all of its subscribers, including those that have left.

    A message to 100 subscribers counts once in `messages`, and 100 times in `published`.
    """

    messages: int
    """Messages published, each counted once."""
    bytes: int
    """Size of their payloads in bytes."""
    subscribers: int
    """Connections subscribed now."""
    published: int
    """Messages counted once per subscriber that they were for: published = sent + dropped + conflated + queued."""
    sent: int
    """Messages taken by the kernel or the transport, counted once per subscriber."""
    dropped: int
    """Messages dropped by the policy, or because a connection was closed, counted once per subscriber."""
    conflated: int
    """Messages replaced by newer ones with the same key, counted once per subscriber."""
    queued: int
    """Messages waiting, those of this tick included, counted once per subscriber."""
    lagging: int
    """Subscribers with messages waiting."""
    disconnected: int
    """Connections closed by the policy because they did not keep up."""


@dataclass(frozen=True, slots=True)
class HubStats(ChannelStats):
    """Counts of a hub's messages over all of its connections, including those that have left."""

    topics: int
    """Topics subscribed to by name."""
    patterns: int
    """Patterns with a subscriber."""
    users: int
    """Users with a connection."""


@dataclass(frozen=True, slots=True)
class TopicStats:
    """Counts of the messages published to a topic since it got its first subscriber by name."""

    messages: int
    """Messages published to the topic."""
    bytes: int
    """Size of their payloads in bytes."""
    subscribers: int
    """Connections that get the topic's messages now, including those subscribed by a pattern."""


class Subscription(Local):
    """One connection's subscription to a channel. It ends when the connection is closed, or with `unsubscribe()`.

    It is a context manager. If several `with` blocks hold a subscription of the same connection to the same channel, it
    ends with the last of them. If the connection was already subscribed without `with`, it stays subscribed.
    """

    __slots__ = (
        "_asked",
        "_entered",
        "_final",
        "_held",
        "_peer",
        "_since",
        "_until",
        "_waiter",
        "_why",
        "conflated",
        "dropped",
        "publisher",
    )

    dropped: int
    """Messages dropped by the policy, or because the connection was closed."""
    conflated: int
    """Messages replaced by newer ones with the same key."""

    def __init__(self, publisher: Any, peer: core.Peer, since: int) -> None:
        self.publisher: Any = publisher
        self.dropped = self.conflated = 0
        self._peer: core.Peer | None = peer
        self._since = since  # messages of the channel that were not for it
        self._until: int | None = None  # messages of the channel when it was left
        self._final: SubscriptionStats | None = None
        self._entered = 0  # number of `with` blocks around it
        self._asked = 1  # calls that returned it and have not entered a `with` block
        self._held = False  # whether there were such calls when a `with` block was last entered
        self._why: Ended | None = None
        self._waiter: asyncio.Future[None] | None = None  # made when a task waits
        peer.subscriptions = (*peer.subscriptions, self)

    def again(self) -> Subscription:
        """Return the subscription to another caller that has asked for it."""
        self._asked += 1
        return self

    def __enter__(self) -> Subscription:
        self._asked = max(0, self._asked - 1)
        self._held = self._asked > 0
        self._entered += 1
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered -= 1
        if self._entered <= 0 and not self._held:
            self.unsubscribe()

    def __repr__(self) -> str:
        return f"<Subscription to {self.publisher!r}{'' if self.active else ', ended'}>"

    @property
    def channel(self) -> Any:
        """The channel."""
        return self.publisher

    @property
    def active(self) -> bool:
        """Whether the subscription has not ended yet."""
        return self._peer is not None

    async def ended(self) -> Ended:
        """Wait until the subscription has ended, and return the reason.

        Any number of tasks may wait. If it has ended already, the call returns at once.

        Raises:
            RuntimeError: If it is called outside the channel's event loop.
        """
        while self._why is None:
            await self.changed()
        return self._why

    @property
    def why(self) -> Ended | None:
        """Why the subscription has ended; None while it is active."""
        return self._why

    async def changed(self) -> None:
        """Wait until the subscription, or a part of it, has ended."""
        loop = asyncio.get_running_loop()
        if loop is not self.publisher.loop:
            raise RuntimeError(
                "ended() must be awaited in the event loop of the connection; from another thread, use "
                "asyncio.run_coroutine_threadsafe()"
            )
        if self._waiter is None or self._waiter.done():
            self._waiter = loop.create_future()
        await asyncio.shield(self._waiter)

    def wake(self) -> None:
        """Wake the tasks that wait, so that they check again once the call in progress is over."""
        waiter = self._waiter
        if waiter is not None:
            if not waiter.done() and not waiter.get_loop().is_closed():
                waiter.set_result(None)
            self._waiter = None

    @property
    def connection(self) -> Any:
        """The connection; None once the subscription has ended."""
        return None if self._peer is None else origin_of(self._peer.connection)

    @property
    def queued(self) -> int:
        """Messages waiting, those of this tick not included."""
        queue = self._queue
        return 0 if queue is None else queue.messages

    @property
    def bytes(self) -> int:
        """Size of the payloads of the waiting messages in bytes."""
        queue = self._queue
        return 0 if queue is None else queue.bytes

    @property
    def lag(self) -> Lag:
        """The messages that wait, those of this tick included."""
        queue, arriving = self._queue, self._arriving()
        times = [entry.time for entry in arriving]
        messages, size = len(arriving), sum(entry.message.size for entry in arriving)
        if queue is not None and queue.oldest is not None:
            times.append(queue.oldest.entry.time)
            messages += queue.messages
            size += queue.bytes
        return Lag(messages, size, time.monotonic() - min(times) if times else 0.0)

    def stats(self) -> SubscriptionStats:
        """Return the counts of the subscriber's messages so far. They are final once the subscription has ended."""
        if self._final is not None:
            return self._final
        with core.collector_paused:  # finalizers may publish
            published, queued = self._published(), self.queued + len(self._arriving())
        sent = published - self.dropped - self.conflated - queued
        return SubscriptionStats(published, sent, self.dropped, self.conflated, queued)

    def unsubscribe(self) -> None:
        """End the subscription, even inside a `with` block. Calling it again does nothing.

        Messages published in this tick are sent now; messages in the queue are dropped.

        Raises:
            RuntimeError: If it is called in another thread than that of the channel's event loop.
        """
        if self._peer is None:
            return
        peer, dispatcher = self._peer, self._peer.dispatcher
        calls = dispatcher.calls
        if calls.forked:  # the connections belong to the parent process
            return
        calls.check_thread()
        if calls.busy:
            calls.after(self.unsubscribe)
        else:
            self.stop_publishing()
            dispatcher.flush_for(peer)
            self.end_alone()

    def stop_publishing(self) -> None:
        """Publish no more messages to this subscriber."""
        peer = self._peer
        if peer is not None and self._until is None:
            until = self.publisher.messages
            try:
                self.publisher.exclude(peer.slot)
                self._until = until
            except BaseException:  # an interrupt: do again what the first try did not complete
                self.publisher.exclude(peer.slot)
                self._until = until
                raise

    def _published(self) -> int:
        return (self.publisher.messages if self._until is None else self._until) - self._since

    @property
    def _queue(self) -> Queue | None:
        backlog = None if self._peer is None else self._peer.backlog
        return None if backlog is None else backlog.queues.get(self)

    def _arriving(self) -> list[Entry]:
        """Return the subscriber's messages that no policy has processed yet."""
        peer = self._peer
        if peer is None:
            return []
        entries = [] if peer.backlog is None else peer.backlog.arrived()
        return [
            entry for entry in entries + peer.dispatcher.table.pending(peer.slot) if entry.publisher is self.publisher
        ]

    # ---- For the dispatcher and policies

    def end(self, why: Ended = Ended.UNSUBSCRIBED) -> None:
        """End the subscription. Messages that have not been sent are dropped."""
        peer = self._peer
        if peer is None:
            return
        with core.collector_paused:  # finalizers may publish, and subscribe
            stats, queue = self.stats(), self._queue
            sending = peer.backlog is not None and peer.backlog.sending is self.publisher
            dropped = stats.dropped + stats.queued - sending
            final = SubscriptionStats(stats.published, stats.sent + sending, dropped, stats.conflated, 0)
            others = tuple(other for other in peer.subscriptions if other is not self)
            # From here on, nothing is called until the subscription has ended.
            self._final = final
            self.dropped = dropped
            self._peer = None
            self._why = why
            peer.subscriptions = others
        try:
            self._leave(peer, queue)
        except BaseException:  # the slot will be given to another connection
            self._leave(peer, queue)
            raise

    def end_alone(self) -> None:
        """End the subscription while the connection may have others: messages that count as dropped are not sent."""
        peer = self._peer
        try:
            self.end()
        finally:
            if peer is not None and peer.slot >= 0:
                peer.dispatcher.move_pending(peer)

    def _leave(self, peer: core.Peer, queue: Queue | None) -> None:
        """Remove the subscription from the publisher and the dispatcher. Running it twice changes nothing."""
        self.wake()
        if peer.slot >= 0:
            self.publisher.remove(self, peer)
        if not peer.subscriptions:
            if peer.dispatcher is not None:
                peer.dispatcher.release(peer)
        elif queue is not None:
            while queue.oldest is not None:
                queue.remove(queue.oldest)
            queue.backlog.queues.pop(self, None)

    def exclude(self, count: int = 1) -> None:
        """Note that `count` messages of the channel were not for this subscriber."""
        self._since += count

    def replay(self, entries: tuple[Entry, ...]) -> None:
        """Send messages that were published before the subscription began."""
        assert self._peer is not None
        slot, dispatcher, since = self._peer.slot, self._peer.dispatcher, self._since
        numbers = dispatcher.enter_again(entries)
        before, after = len(dispatcher.table.pending(slot)), since - len(numbers)
        try:
            dispatcher.table.extend(slot, numbers)
            self._since = after
        except BaseException:
            self._since = since - len(dispatcher.table.pending(slot)) + before
            raise

    def report_drops(self, count: int) -> None:
        """Report that messages were dropped."""
        self.report("drops messages")
        self.publisher.report(self.publisher.on_drop, self, count)

    def trim_soon(self, queue: Queue) -> None:
        """Have the policy continue with messages beyond its bounds, after other connections have been served."""
        if self._peer is not None:
            self._peer.dispatcher.slow.trim_soon(queue)

    def report(self, what: str) -> None:
        """Log a warning about what the policy does, once per episode."""
        peer = self._peer
        if peer is not None and peer.dispatcher.slow.begin_episode(peer, self):
            peer.dispatcher.log(
                logging.WARNING, "%s does not keep up with %r, which %s", peer.connection.id, self.publisher, what
            )

    def disconnect(self, code: int, reason: str) -> None:
        """Close the connection, which does not keep up."""
        peer = self._peer
        if peer is None:
            return
        self.report("disconnects it")
        self.publisher.disconnected += 1
        self.publisher.report(self.publisher.on_disconnect, self)
        peer.dispatcher.disconnect(peer, code, reason)

    def recover(self) -> None:
        """Report that the connection has kept up for a while."""
        if self._peer is not None:
            self.publisher.report(self.publisher.on_recover, self)
