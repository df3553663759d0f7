"""What channels and hubs have in common: subscriptions, each with a bounded queue, and counts that reconcile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from types import TracebackType
from typing import Any, NamedTuple

from .adapters import adapt
from .adapters.adapted import Adapted
from .audience import SMALLEST_SHARED, Audience, Publication
from .message import PreparedMessage, encodings_of
from .outlet import Entry, Item, Lag, Outbox, Outlet
from .policies import Conflate, Disconnect, DropNewest, Policy

__all__ = [
    "NOTSENT_LOWAT",
    "ChannelStats",
    "Publisher",
    "Subscription",
    "SubscriptionStats",
    "Waiting",
    "encodings_for",
]

NOTSENT_LOWAT = 16384
"""Bytes that the kernel keeps for a subscriber and has not sent yet: beyond, it takes no more."""


class Waiting(NamedTuple):
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
    """Messages that it never gets."""
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


class Subscription:
    """That a connection receives what is published in a channel, until it is closed or this is ended.

    It is a context manager, which ends it.
    """

    __slots__ = (
        "_items",
        "_keys",
        "_since",
        "_stats",
        "arriving",
        "bytes",
        "conflated",
        "dropped",
        "next",
        "outlet",
        "previous",
        "publisher",
        "queued",
    )

    dropped: int
    """Messages that it never gets."""
    conflated: int
    """Messages that were replaced by newer ones of the same key."""
    queued: int
    """Messages that wait for it, but for those of this tick."""
    bytes: int
    """Bytes of their payloads."""

    def __init__(self, publisher: Publisher, outlet: Outlet, since: int) -> None:
        self.publisher = publisher
        self.outlet: Outlet | None = outlet
        self.dropped = self.conflated = self.queued = self.bytes = 0
        self.arriving = 0  # messages that the connection has not taken, on their way to `hold`
        self._since = since  # and as many more as were not for it, or less as are of the history
        self._items: deque[Item] | None = None
        self._keys: dict[Hashable, Item] | None = None
        self._stats: SubscriptionStats | None = None
        self.previous: Subscription | None = None
        self.next: Subscription | None = outlet.first
        if self.next is not None:
            self.next.previous = self
        outlet.first = self

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
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
        return self.outlet is not None

    @property
    def connection(self) -> Any:
        """The connection; None once it has ended."""
        connection = None if self.outlet is None else self.outlet.connection
        return connection.origin if isinstance(connection, Adapted) else connection

    @property
    def lag(self) -> Waiting:
        """What waits for it, messages of this tick included."""
        pending = self._pending()
        times = [item.entry.time for item in self._items or () if item.entry is not None]
        times += [entry.time for entry in pending]
        size = self.bytes + sum(entry.message.size for entry in pending)
        return Waiting(self.queued + len(pending), size, time.monotonic() - min(times) if times else 0.0)

    def stats(self) -> SubscriptionStats:
        """Return what became of the messages for it so far; once it has ended, until then."""
        if self._stats is not None:
            return self._stats
        published = self._published()
        queued = self.queued + self.arriving * (self.outlet is not None) + len(self._pending())
        sent = published - self.dropped - self.conflated - queued
        return SubscriptionStats(published, sent, self.dropped, self.conflated, queued)

    def _published(self) -> int:
        return self.publisher.messages - self._since

    def unsubscribe(self) -> None:
        """End it. What was published in this tick is sent now; what waits is dropped. A second time does nothing."""
        outlet = self.outlet
        if outlet is None:
            return
        outlet.flush()
        self.end()

    def _pending(self) -> list[Entry]:
        if self.outlet is None:
            return []
        return [entry for entry in self.outlet.outbox.pending(self.outlet) if entry.publisher is self.publisher]

    # ---- For the outlet

    def end(self) -> None:
        """End it. What has not been sent is dropped."""
        outlet = self.outlet
        if outlet is None:
            return
        for item in list(self._items or ()):
            if item.entry is not None and outlet.lag is not None:
                outlet.discard(outlet.lag, item)
                self.dropped += 1
        self.dropped += self.arriving + len(self._pending())
        self.outlet = None
        self._stats = self.stats()
        self.publisher.remove(self, outlet)
        if self.previous is None:
            outlet.first = self.next
        else:
            self.previous.next = self.next
        if self.next is not None:
            self.next.previous = self.previous
        self.next = self.previous = None
        if outlet.first is None:
            outlet.release()

    def exclude(self, count: int = 1) -> None:
        """Take note that messages of the channel were not for it."""
        self._since += count

    def hold(self, lag: Lag, entry: Entry) -> None:
        """Have a message wait, as far as the policy allows."""
        policy = self.publisher.slow
        if isinstance(policy, Conflate) and entry.key is not None:
            if self._keys is None:
                self._keys = {}
            item = self._keys.get(entry.key)
            if item is not None and item.entry is not None:
                self.bytes += entry.message.size - item.entry.message.size
                item.entry = entry
                item.time = time.monotonic()
                self.conflated += 1
                self._act("conflates")
                while policy.max_bytes is not None and self.bytes > policy.max_bytes and self.queued > 1:
                    self._drop_oldest(lag)
                return
        if not isinstance(policy, Conflate):  # whose messages are not in the order of their age: time tells
            self.expire(lag)
        if self.outlet is None:
            return  # it has counted what was arriving
        while self._is_full(policy, entry):
            if isinstance(policy, Disconnect):
                self._disconnect(policy)
                return
            if isinstance(policy, DropNewest):
                self._drop()
                return
            self._drop_oldest(lag)
        item = Item(entry, self)
        if self._items is None:
            self._items = deque()
        self._items.append(item)
        if self._keys is not None and entry.key is not None:
            self._keys[entry.key] = item
        lag.queue.append(item)
        lag.alive += 1
        self.queued += 1
        self.bytes += entry.message.size

    def _is_full(self, policy: Policy, entry: Entry) -> bool:
        if not self.queued:
            return False  # one message may always wait
        return (
            (policy.max_messages is not None and self.queued >= policy.max_messages)
            or (policy.max_bytes is not None and self.bytes + entry.message.size > policy.max_bytes)
            or (policy.max_age is not None and self._oldest().time < time.monotonic() - policy.max_age)
        )

    def expire(self, lag: Lag) -> None:
        """Do what the policy says about messages that have waited for too long."""
        policy = self.publisher.slow
        if policy.max_age is None or isinstance(policy, DropNewest):
            return
        limit = time.monotonic() - policy.max_age
        if isinstance(policy, Conflate):
            for old in list(self._items or ()):
                if old.entry is not None and old.time < limit and self.outlet is not None:
                    self.outlet.discard(lag, old)
                    self._drop()
            return
        while self.queued and self._oldest().time < limit:
            if isinstance(policy, Disconnect):
                self._disconnect(policy)
                return
            self._drop_oldest(lag)

    def _oldest(self) -> Item:
        """Return what waits for longest, of which there must be something."""
        assert self._items is not None
        while self._items[0].entry is None:
            self._items.popleft()
        if self._keys is None:
            return self._items[0]
        return min((item for item in self._items if item.entry is not None), key=attrgetter("time"))

    def _drop_oldest(self, lag: Lag) -> None:
        assert self.outlet is not None
        self.outlet.discard(lag, self._oldest())
        self._drop()

    def let_go(self, item: Item) -> None:
        """Take note that an item does not wait any more."""
        entry = item.entry
        assert entry is not None
        self.queued -= 1
        self.bytes -= entry.message.size
        if self._keys is not None and self._keys.get(entry.key) is item:
            del self._keys[entry.key]
        assert self._items is not None
        if self._items[0] is item:
            self._items.popleft()
        elif len(self._items) > 2 * self.queued + 64:
            self._items = deque(other for other in self._items if other.entry is not None and other is not item)

    def _drop(self) -> None:
        self.dropped += 1
        self._act("drops messages")
        self.publisher.report(self.publisher.on_drop, self, 1)

    def _act(self, what: str) -> None:
        """Warn that the policy has to do something, once for each episode."""
        outlet = self.outlet
        assert outlet is not None
        if outlet.outbox.act(outlet, self):
            outlet.outbox.log(
                logging.WARNING, "%s does not keep up with %r, which %s", outlet.connection.id, self.publisher, what
            )

    def _disconnect(self, policy: Disconnect) -> None:
        outlet = self.outlet
        assert outlet is not None
        self._act("disconnects it")
        self.publisher.disconnected += 1
        self.publisher.report(self.publisher.on_disconnect, self)
        outlet.disconnect(policy.code, policy.reason)

    def catch_up(self) -> None:
        """Take note that nothing waits for the connection any more."""
        self._items = self._keys = None

    def recover(self) -> None:
        """Take note that the connection has kept up for a while."""
        if self.outlet is not None:
            self.publisher.report(self.publisher.on_recover, self)


class Publisher:
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
        if history < 0:
            raise ValueError(f"history must not be negative, but is {history}")
        if notsent_lowat is not None and notsent_lowat <= 0:
            raise ValueError(f"notsent_lowat must be positive or None, not {notsent_lowat}")
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
        self._outbox: Outbox | None = None
        self._left = [0, 0, 0, 0]  # published, sent, dropped, conflated of those that have left

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{f' {self.name!r}' if self.name else ''}>"

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that it belongs to; None if it has not been used yet."""
        return None if self._outbox is None else self._outbox.loop

    def __len__(self) -> int:
        """How many connections are subscribed."""
        return len(self._subscriptions)

    def _bind(self) -> Outbox:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if self._outbox is None:
            if loop is None:
                raise RuntimeError(f"a {type(self).__name__} must be used in a running event loop")
            self._outbox = Outbox.of(loop)
        elif loop is not self._outbox.loop:
            raise RuntimeError(
                f"a {type(self).__name__} must always be used in the same event loop; from other threads, use "
                "publish_threadsafe()"
            )
        return self._outbox

    def _loop_of_thread(self) -> asyncio.AbstractEventLoop:
        """Return the event loop that another thread may call."""
        if self._outbox is None:
            raise RuntimeError(f"the {type(self).__name__} has no event loop yet: subscribe or publish in it first")
        return self._outbox.loop

    def _prepare_socket(self, connection: Any) -> None:
        """Have the kernel not take megabytes for a client that reads nothing."""
        if self._notsent_lowat is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock = connection.transport.get_extra_info("socket")
            if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, self._notsent_lowat)

    def _slots_of(self, connections: Iterable[Any]) -> set[int]:
        """Return the slots of those of some connections that are subscribed."""
        slots: set[int] = set()
        for connection in list(connections):  # which may run code of the caller's
            outlet: Outlet | None = getattr(adapt(connection), "_wsfast_outlet", None)
            if outlet is not None and outlet.outbox is self._outbox and outlet.slot in self._subscriptions:
                slots.add(outlet.slot)
        return slots

    # ---- For subscriptions and outlets

    def subscription_of(self, outlet: Outlet) -> Subscription | None:
        """Return the subscription of a connection, if it has one."""
        return self._subscriptions.get(outlet.slot)

    def remove(self, subscription: Any, outlet: Outlet) -> None:
        """Take leave of a subscription that has ended."""
        del self._subscriptions[outlet.slot]
        stats = subscription.stats()
        for index, count in enumerate((stats.published, stats.sent, stats.dropped, stats.conflated)):
            self._left[index] += count

    def sent(self, entry: Entry) -> None:
        """Take note that a message has left, or waits."""
        if isinstance(entry.encodings, Publication):
            entry.encodings.end()

    def report(self, callback: Callable[..., object] | None, *arguments: Any) -> None:
        """Call back soon: not in the middle of sending."""
        if callback is not None and self._outbox is not None:
            self._outbox.loop.call_soon(callback, *arguments)

    # ---- For everybody

    def flush(self) -> None:
        """Send now what was published in this iteration of the event loop, by all of its channels and hubs."""
        self._bind().flush()

    def _counts(self) -> tuple[int, int, int, int, int, int, int, int, int, int]:
        """Return what became of the messages so far, in the order of `ChannelStats`."""
        published, sent, dropped, conflated = self._left
        queued = lagging = 0
        for subscription in list(self._subscriptions.values()):  # some may leave meanwhile
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


def encodings_for(audience: Audience, message: PreparedMessage) -> Any:
    """Return the encodings of a message for those who get the messages of an audience."""
    if message.compress is False or message.size < SMALLEST_SHARED:
        return encodings_of(message)
    return Publication(audience, message)
