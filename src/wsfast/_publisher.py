"""What channels and hubs have in common: publishers, subscriptions to them, and counts that reconcile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from ._arguments import Local, check_callback, check_integer, check_str
from ._backlog import Entry, Queue
from ._core import core
from ._dispatcher import Dispatcher
from ._encoding.shared import Publication
from ._reentrancy import Calls
from .connections import adapt
from .connections.foreign import Ended
from .connections.shape import PEER, origin_of
from .policies import Disconnect, Policy
from .stats import Lag, SubscriptionStats

__all__ = ["NOTSENT_LOWAT", "Publisher", "Subscription"]

NOTSENT_LOWAT = 16384
"""Bytes that the kernel keeps for a subscriber and has not sent yet: beyond, it takes no more."""


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

    def __init__(self, publisher: Publisher, peer: core.Peer, since: int) -> None:
        self.publisher: Publisher = publisher
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

    def report_drop(self) -> None:
        """Tell that a message was dropped."""
        self.report("drops messages")
        self.publisher.report(self.publisher.on_drop, self, 1)

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


class Publisher(Local):
    """Publishes messages to connections that are subscribed: what a `Channel` and a `Hub` have in common."""

    def __init__(
        self,
        name: str,
        *,
        slow: Policy | None,
        history: int,
        notsent_lowat: int | None,
        on_drop: Callable[..., object] | None,
        on_disconnect: Callable[..., object] | None,
        on_recover: Callable[..., object] | None,
    ) -> None:
        if slow is None:
            slow = Disconnect()
        if not isinstance(slow, Policy) or type(slow) is Policy:
            raise TypeError(f"slow must be Disconnect(), DropNewest(), DropOldest() or Conflate(), not {slow!r}")
        check_str("name", name)
        check_integer("history", history, least=0)
        check_integer("notsent_lowat", notsent_lowat, most=(1 << 31) - 1, optional=True)
        check_callback("on_drop", on_drop)
        check_callback("on_disconnect", on_disconnect)
        check_callback("on_recover", on_recover)
        self.name = name
        self.slow = slow
        self.messages = 0
        self.bytes = 0
        self.disconnected = 0
        self.on_drop = on_drop
        self.on_disconnect = on_disconnect
        self.on_recover = on_recover
        self._notsent_lowat = notsent_lowat
        self._subscriptions: dict[int, Any] = {}  # of each slot
        self._dispatcher: Dispatcher | None = None
        self._left = 0, 0, 0, 0  # published, sent, dropped, conflated of those that have left

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{f' {self.name!r}' if self.name else ''}>"

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that it belongs to; None if it has not been used yet."""
        return None if self._dispatcher is None else self._dispatcher.loop

    def __len__(self) -> int:
        """How many connections are subscribed."""
        return len(self._subscriptions)

    @property
    def _calls(self) -> Calls | None:
        """The calls of its event loop, if it has one yet."""
        return None if self._dispatcher is None else self._dispatcher.calls

    def _bind(self) -> Dispatcher:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if self._dispatcher is None:
            if loop is None:
                raise RuntimeError(f"a {type(self).__name__} must be used in a running event loop")
            self._dispatcher = Dispatcher.of(loop)
        elif loop is not self._dispatcher.loop or self._dispatcher.calls.forked:
            self._check_process(self._dispatcher)
            raise RuntimeError(
                f"a {type(self).__name__} must always be used in the same event loop; from other threads, use "
                "publish_threadsafe()"
            )
        return self._dispatcher

    def _check_process(self, dispatcher: Dispatcher) -> None:
        if dispatcher.calls.forked:
            raise RuntimeError(
                f"the {type(self).__name__} was used before os.fork(), and its connections are the parent's: "
                f"{self._instead}"
            )

    def _loop_of_thread(self) -> asyncio.AbstractEventLoop:
        """Return the event loop that another thread may call."""
        if self._dispatcher is None:
            raise RuntimeError(f"the {type(self).__name__} has no event loop yet: subscribe or publish in it first")
        self._check_process(self._dispatcher)
        return self._dispatcher.loop

    def _prepare_socket(self, connection: Any) -> None:
        """Have the kernel not take megabytes for a client that reads nothing."""
        if self._notsent_lowat is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock = connection.transport.get_extra_info("socket")
            if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, self._notsent_lowat)

    def _admit(self, connection: Any) -> Any:
        """Return the subscription of a connection: a new one if it has none."""
        dispatcher = self._bind()
        connection = adapt(connection)
        with core.collector_paused:  # finalizers may subscribe it as well
            peer = dispatcher.admit(connection)
            try:
                subscription = self._subscriptions.get(peer.slot)
                if subscription is not None:
                    subscription.again()
                else:
                    subscription = self._subscriptions[peer.slot] = self._new_subscription(peer)
                    self._begin(subscription, peer)
                    self._prepare_socket(connection)
                    peer.check(connection)
            except BaseException:
                self._withdraw(peer)
                raise
        return subscription

    def _new_subscription(self, peer: core.Peer) -> Any:
        raise NotImplementedError

    def _begin(self, subscription: Any, peer: core.Peer) -> None:
        """Have a new subscription get what is published."""

    def _withdraw(self, peer: core.Peer) -> None:
        """End the subscription of a connection, though it may have come into being in part only."""
        dispatcher = self._bind()
        dispatcher.flush_for(peer)  # it may have got history, which cannot be taken back
        for subscription in peer.subscriptions:
            if subscription.publisher is self:
                subscription.end_alone()
        if not peer.subscriptions:
            dispatcher.release(peer)

    def exclude(self, slot: int) -> None:
        """Have no more messages be published to a slot."""
        raise NotImplementedError

    def _slots_of(self, connections: Iterable[object]) -> set[int]:
        """Return the slots of those of some connections that are subscribed."""
        slots: set[int] = set()
        for connection in list(connections):  # which may run code of the caller's
            peer: core.Peer | None = getattr(adapt(connection), PEER, None)
            if peer is not None and peer.dispatcher is self._dispatcher and peer.slot in self._subscriptions:
                slots.add(peer.slot)
        return slots

    # ---- For subscriptions and the dispatcher

    def subscription_of(self, peer: core.Peer) -> Any:
        """Return the subscription of a connection; None if it has none."""
        return self._subscriptions.get(peer.slot)

    def remove(self, subscription: Any, peer: core.Peer) -> None:
        """Forget a subscription that has ended, but for its counts."""
        if peer.slot not in self._subscriptions or self._subscriptions[peer.slot] is not subscription:
            return
        stats = subscription.stats()
        published, sent, dropped, conflated = self._left
        left = (
            published + stats.published,
            sent + stats.sent,
            dropped + stats.dropped,
            conflated + stats.conflated,
        )
        slot, subscriptions = peer.slot, self._subscriptions
        # From here on, nothing is called.
        if slot in subscriptions:
            del subscriptions[slot]
            self._left = left

    def sent(self, entry: Entry) -> None:
        """Note that a message has left, or waits."""
        if isinstance(entry.encodings, Publication):
            entry.encodings.end()

    def report(self, callback: Callable[..., object] | None, *arguments: Any) -> None:
        """Call back soon: not in the middle of sending."""
        if callback is not None and self._dispatcher is not None:
            self._dispatcher.loop.call_soon(callback, *arguments)

    # ---- For everybody

    def flush(self) -> None:
        """Send now what was published in this iteration of the event loop, by all of its channels and hubs."""
        self._bind().flush()

    def _counts(self) -> tuple[int, int, int, int, int, int, int, int, int, int]:
        """Return what became of the messages so far, in the order of `ChannelStats`."""
        with core.collector_paused:  # finalizers may unsubscribe
            published, sent, dropped, conflated = self._left
            queued = lagging = 0
            for subscription in tuple(self._subscriptions.values()):
                stats = subscription.stats()
                published += stats.published
                sent += stats.sent
                dropped += stats.dropped
                conflated += stats.conflated
                queued += stats.queued
                lagging += subscription.queued > 0
            return (
                self.messages,
                self.bytes,
                len(self._subscriptions),
                published,
                sent,
                dropped,
                conflated,
                queued,
                lagging,
                self.disconnected,
            )
