"""Subscriptions of connections, and counts, which reconcile: published = sent + dropped + conflated + queued."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
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
    """What waits for a subscriber."""

    messages: int
    """Messages that were published and not taken by the kernel, nor by the transport."""
    bytes: int
    """Bytes of their payloads."""
    seconds: float
    """Seconds since the oldest of them was published."""


@dataclass(frozen=True, slots=True)
class SubscriptionStats:
    """What became of the messages for one subscriber: published = sent + dropped + conflated + queued."""

    published: int
    """Messages that were for it."""
    sent: int
    """Messages that the kernel, or the transport, has taken."""
    dropped: int
    """Messages dropped by the policy, or since the connection was closed."""
    conflated: int
    """Messages that were replaced by newer ones of the same key."""
    queued: int
    """Messages that wait for it, those of this tick included."""


@dataclass(frozen=True, slots=True)
class ChannelStats:
    """What became of the messages of a channel, over all of its subscribers, those that have left included."""

    messages: int
    """Messages that were published, each counted once."""
    bytes: int
    """Bytes of their payloads."""
    subscribers: int
    """Connections that are subscribed now."""
    published: int
    """Messages times the subscribers that they were for: published = sent + dropped + conflated + queued."""
    sent: int
    dropped: int
    conflated: int
    queued: int
    lagging: int
    """Subscribers for which something waits."""
    disconnected: int
    """Connections that were closed since they did not keep up."""


@dataclass(frozen=True, slots=True)
class HubStats(ChannelStats):
    """What became of the messages of a hub, over all connections, those that have left included."""

    topics: int
    """Topics that have a subscriber by their names."""
    patterns: int
    """Patterns that have a subscriber."""
    users: int
    """Users who are connected."""


@dataclass(frozen=True, slots=True)
class TopicStats:
    """What was published to a topic since it has had a subscriber by its name."""

    messages: int
    bytes: int
    """Bytes of their payloads."""
    subscribers: int
    """Connections that get its messages now, those by patterns included."""


class Subscription(Local):
    """One connection's subscription to a channel. It ends when either is closed, or with `unsubscribe()`.

    It is a context manager. If there are several `with` for one connection and channel, it ends with the last of them;
    if it was there before, without `with`, it goes on.
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
    """Messages dropped by the policy, or since the connection was closed."""
    conflated: int
    """Messages that were replaced by newer ones of the same key."""

    def __init__(self, publisher: Any, peer: core.Peer, since: int) -> None:
        self.publisher: Any = publisher
        self.dropped = self.conflated = 0
        self._peer: core.Peer | None = peer
        self._since = since  # messages that were not for it
        self._until: int | None = None  # messages of the channel until it was left
        self._final: SubscriptionStats | None = None
        self._entered = 0  # how many `with` are around it
        self._asked = 1  # calls that have asked for it and not entered a `with`
        self._held = False  # whether some had, when a `with` was last entered
        self._why: Ended | None = None
        self._waiter: asyncio.Future[None] | None = None  # made when somebody waits
        peer.subscriptions = (*peer.subscriptions, self)

    def again(self) -> Subscription:
        """Return it to one more who has asked for it."""
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
        """Whether it has not ended."""
        return self._peer is not None

    async def ended(self) -> Ended:
        """Wait until it has ended, and return why. Any number of tasks may wait, also when it has ended already.

        Raises:
            RuntimeError: In another event loop than the channel's.
        """
        while self._why is None:
            await self.changed()
        return self._why

    @property
    def why(self) -> Ended | None:
        """Why it has ended; None if it has not."""
        return self._why

    async def changed(self) -> None:
        """Wait until it, or something of it, has ended."""
        loop = asyncio.get_running_loop()
        if loop is not self.publisher.loop:
            raise RuntimeError("ended() must be awaited in the event loop of the connection")
        if self._waiter is None or self._waiter.done():
            self._waiter = loop.create_future()
        await asyncio.shield(self._waiter)

    def wake(self) -> None:
        """Have those who wait look again, once the call in progress is over."""
        waiter = self._waiter
        if waiter is not None:
            if not waiter.done() and not waiter.get_loop().is_closed():
                waiter.set_result(None)
            self._waiter = None

    @property
    def connection(self) -> Any:
        """The connection; None once it has ended."""
        return None if self._peer is None else origin_of(self._peer.connection)

    @property
    def queued(self) -> int:
        """Messages that wait for it, but for those of this tick."""
        queue = self._queue
        return 0 if queue is None else queue.messages

    @property
    def bytes(self) -> int:
        """Bytes of their payloads."""
        queue = self._queue
        return 0 if queue is None else queue.bytes

    @property
    def lag(self) -> Lag:
        """What waits for it, messages of this tick included."""
        queue, arriving = self._queue, self._arriving()
        times = [entry.time for entry in arriving]
        messages, size = len(arriving), sum(entry.message.size for entry in arriving)
        if queue is not None and queue.oldest is not None:
            times.append(queue.oldest.entry.time)
            messages += queue.messages
            size += queue.bytes
        return Lag(messages, size, time.monotonic() - min(times) if times else 0.0)

    def stats(self) -> SubscriptionStats:
        """Return what became of the messages for it so far; once it has ended, until then."""
        if self._final is not None:
            return self._final
        with core.collector_paused:  # finalizers may publish
            published, queued = self._published(), self.queued + len(self._arriving())
        sent = published - self.dropped - self.conflated - queued
        return SubscriptionStats(published, sent, self.dropped, self.conflated, queued)

    def unsubscribe(self) -> None:
        """End it, whatever `with` is around it. A second time does nothing.

        What was published in this tick is sent now; what waits is dropped.

        Raises:
            RuntimeError: In another thread than that of the channel's event loop.
        """
        if self._peer is None:
            return
        peer, dispatcher = self._peer, self._peer.dispatcher
        calls = dispatcher.calls
        if calls.forked:  # its connections are the parent's
            return
        calls.check_thread()
        if calls.busy:
            calls.after(self.unsubscribe)
        else:
            self.part()
            dispatcher.flush_for(peer)
            self.end_alone()

    def part(self) -> None:
        """Have it get no more messages."""
        peer = self._peer
        if peer is not None and self._until is None:
            until = self.publisher.messages
            try:
                self.publisher.exclude(peer.slot)
                self._until = until
            except BaseException:  # a second time does what the first one has not
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
        """Return the messages for it that no policy has looked at yet."""
        peer = self._peer
        if peer is None:
            return []
        entries = [] if peer.backlog is None else peer.backlog.arrived()
        return [
            entry for entry in entries + peer.dispatcher.table.pending(peer.slot) if entry.publisher is self.publisher
        ]

    # ---- For the dispatcher and policies

    def end(self, why: Ended = Ended.UNSUBSCRIBED) -> None:
        """End it. What has not been sent is dropped."""
        peer = self._peer
        if peer is None:
            return
        with core.collector_paused:  # finalizers may publish, and subscribe
            stats, queue = self.stats(), self._queue
            sending = peer.backlog is not None and peer.backlog.sending is self.publisher
            dropped = stats.dropped + stats.queued - sending
            final = SubscriptionStats(stats.published, stats.sent + sending, dropped, stats.conflated, 0)
            others = tuple(other for other in peer.subscriptions if other is not self)
            # From here on, nothing is called until it has ended.
            self._final = final
            self.dropped = dropped
            self._peer = None
            self._why = why
            peer.subscriptions = others
        try:
            self._leave(peer, queue)
        except BaseException:  # its slot is going to be another one's
            self._leave(peer, queue)
            raise

    def end_alone(self) -> None:
        """End it, though the connection may have others: nothing that counts as dropped is sent."""
        peer = self._peer
        try:
            self.end()
        finally:
            if peer is not None and peer.slot >= 0:
                peer.dispatcher.hold_back(peer)

    def _leave(self, peer: core.Peer, queue: Queue | None) -> None:
        """Forget what the publisher and the dispatcher have of it. A second time does what the first one has not."""
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
        """Note that messages of the channel were not for it."""
        self._since += count

    def replay(self, entries: Iterable[Entry]) -> None:
        """Send messages that were published before it began."""
        assert self._peer is not None
        slot, dispatcher, since = self._peer.slot, self._peer.dispatcher, self._since
        numbers = [dispatcher.enter(entry) for entry in entries]
        before, after = len(dispatcher.table.pending(slot)), since - len(numbers)
        try:
            for number in numbers:
                dispatcher.table.append(slot, number)
            self._since = after
        except BaseException:
            self._since = since - len(dispatcher.table.pending(slot)) + before
            raise

    def report_drops(self, count: int) -> None:
        """Tell that messages were dropped."""
        self.report("drops messages")
        self.publisher.report(self.publisher.on_drop, self, count)

    def trim_soon(self, queue: Queue) -> None:
        """Have the policy go on with what is beyond its bounds, when others have had their turn."""
        if self._peer is not None:
            self._peer.dispatcher.slow.trim_soon(queue)

    def report(self, what: str) -> None:
        """Warn that the policy has done something, once for each episode."""
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
        """Tell that the connection has kept up for a while."""
        if self._peer is not None:
            self.publisher.report(self.publisher.on_recover, self)
