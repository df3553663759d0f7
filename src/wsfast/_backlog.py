"""The queues of slow connections, with their counts. Policies decide which messages are dropped.

All counts and links of one change are set by assignments with no call in between. So no signal handler or finalizer can
see a half-done change: CPython runs them only at calls and at the ends of loops.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable, Iterator
from typing import Any, Protocol

from ._core import core
from ._encoding.message import PreparedMessage

__all__ = ["Backlog", "Entry", "Item", "Queue", "Source", "Subscriber", "unlink"]


class Source(Protocol):
    """The publisher of an entry: a channel or a hub."""

    @property
    def slow(self) -> Any:
        """The policy."""

    def subscription_of(self, peer: core.Peer) -> Any:
        """Return the subscription of a connection; None if it has none."""


class Subscriber(Protocol):
    """The receiver of an entry: one connection's subscription."""

    dropped: int
    conflated: int
    publisher: Any

    @property
    def active(self) -> bool:
        """Whether the subscription has not ended yet."""

    def report_drops(self, count: int) -> None:
        """Report that messages were dropped."""

    def trim_soon(self, queue: Queue) -> None:
        """Have the policy continue with messages beyond its bounds, after other connections have been served."""

    def report(self, what: str) -> None:
        """Report what a policy has done."""

    def disconnect(self, code: int, reason: str) -> None:
        """Close the connection."""

    def recover(self) -> None:
        """Report that the connection has kept up for a while."""


class Entry:
    """A published message. There is one entry, however many connections it waits for."""

    __slots__ = ("encodings", "key", "message", "publisher", "time")

    def __init__(self, publisher: Source, message: PreparedMessage, encodings: Any, key: Any) -> None:
        self.publisher: Source = publisher
        self.message: PreparedMessage = message
        self.encodings: Any = encodings
        self.key: Any = key
        self.time: float = time.monotonic()


class Item:
    """An entry that waits in a queue. It is in two linked lists: all that waits for the connection, and the queue."""

    __slots__ = ("entry", "following", "newer", "number", "older", "preceding", "queue", "time")

    def __init__(self, entry: Entry, now: float) -> None:
        self.entry: Entry = entry
        self.time: float = now  # when it began to wait
        self.number: int = 0  # its place in the connection's sending order
        self.queue: Queue | None = None  # None while it does not wait
        self.preceding: Item | None = None
        self.following: Item | None = None
        self.older: Item | None = None
        self.newer: Item | None = None


class Queue:
    """The messages that wait for one subscription. The newest is at the end, even if it has replaced an older one."""

    __slots__ = ("backlog", "bytes", "keys", "messages", "newest", "oldest", "subscription")

    def __init__(self, backlog: Backlog, subscription: Subscriber) -> None:
        self.backlog: Backlog = backlog
        self.subscription: Subscriber = subscription
        self.messages: int = 0
        self.bytes: int = 0
        self.oldest: Item | None = None
        self.newest: Item | None = None
        self.keys: dict[Hashable, Item] = {}

    def find(self, key: Hashable) -> Item | None:
        """Return the item with a key. It may raise what the comparison of keys raises."""
        item = self.keys.get(key)
        return item if item is not None and item.queue is self else None

    def append(self, entry: Entry, now: float, *, keyed: bool = False) -> None:
        """Add the next entry of the inbox at the end.

        Args:
            entry: The entry.
            now: The time.
            keyed: Whether it can be found by its key.
        """
        item = Item(entry, now)
        if keyed:
            self.keys[entry.key] = item
        backlog, size = self.backlog, entry.message.size
        last, newest = backlog.last, self.newest
        # From here on, nothing is called.
        item.number = backlog.appended
        backlog.appended += 1
        item.queue = self
        item.preceding = last
        if last is None:
            backlog.first = item
        else:
            last.following = item
        backlog.last = item
        item.older = newest
        if newest is None:
            self.oldest = item
        else:
            newest.newer = item
        self.newest = item
        self.messages += 1
        self.bytes += size
        backlog.admitted += 1

    def replace(self, item: Item, entry: Entry, now: float) -> None:
        """Replace a waiting entry by the next entry of the inbox, which takes its place in the sending order."""
        replaced = item.entry  # kept until the end: its finalizers must not see a half-done change
        grows = entry.message.size - replaced.message.size
        older, newer = item.older, item.newer
        subscription, backlog = self.subscription, self.backlog
        # From here on, nothing is called.
        item.entry = entry
        item.time = now
        if newer is not None:
            newer.older = older
            if older is None:
                self.oldest = newer
            else:
                older.newer = newer
            last = self.newest
            assert last is not None
            item.older = last
            item.newer = None
            last.newer = item
            self.newest = item
        self.bytes += grows
        subscription.conflated += 1
        backlog.admitted += 1

    def refuse(self) -> None:
        """Drop the next entry of the inbox."""
        subscription, backlog = self.subscription, self.backlog
        subscription.dropped += 1
        backlog.admitted += 1

    def drop(self, item: Item) -> None:
        """Drop a waiting message."""
        self.remove(item, dropped=1)

    def remove(self, item: Item, dropped: int = 0) -> None:
        """Remove an item from the queue."""
        entry, subscription, backlog = item.entry, self.subscription, self.backlog
        size = entry.message.size
        preceding, following = item.preceding, item.following
        older, newer = item.older, item.newer
        # From here on, nothing is called.
        item.queue = item.preceding = item.following = item.older = item.newer = None
        if preceding is None:
            backlog.first = following
        else:
            preceding.following = following
        if following is None:
            backlog.last = preceding
        else:
            following.preceding = preceding
        if older is None:
            self.oldest = newer
        else:
            older.newer = newer
        if newer is None:
            self.newest = older
        else:
            newer.older = older
        self.messages -= 1
        self.bytes -= size
        subscription.dropped += dropped
        # Removing the key may compare keys, which may raise. That is harmless: find() ignores items that do not wait.
        if self.keys:
            try:
                if self.keys.get(entry.key) is item:
                    del self.keys[entry.key]
            except Exception:
                pass


class Backlog:
    """Everything that waits for one connection, in the order in which it will be sent."""

    __slots__ = (
        "admitted",
        "admitting",
        "appended",
        "draining",
        "fd",
        "first",
        "inbox",
        "last",
        "overflows",
        "peer",
        "queues",
        "sending",
        "waiters",
        "watched",
    )

    def __init__(self, peer: core.Peer) -> None:
        self.peer: core.Peer = peer
        self.inbox: list[Entry] = []
        """Entries that the connection has not taken, and that the policies will process."""
        self.admitted: int = 0
        """Number of these entries that have been processed."""
        self.admitting: bool = False
        """Whether a policy is processing the next one."""
        self.first: Item | None = None
        self.last: Item | None = None
        self.queues: dict[Any, Queue] = {}
        """By subscription."""
        self.fd: int = -1
        """Descriptor that is watched."""
        self.watched: bool = False
        self.draining: bool = False
        self.sending: Source | None = None
        """The publisher of the first message, while the connection's own methods send it."""
        self.overflows: bool = False
        """Whether a close frame follows, which does not wait: the transport then gets everything, even without room."""
        self.appended: int = 0
        """Number of items that have ever waited."""
        self.waiters: dict[int, asyncio.Future[None]] = {}
        """Futures by item number, in ascending order. Each is done when no item up to its number waits any more."""

    def queue_of(self, subscription: Subscriber) -> Queue:
        """Return the queue of a subscription."""
        queue = self.queues.get(subscription)
        if queue is None:
            queue = self.queues[subscription] = Queue(self, subscription)
        return queue

    def arrived(self) -> list[Entry]:
        """Return the entries of the inbox that have not been processed."""
        return self.inbox[self.admitted :]

    def _inbox(self) -> Iterator[Entry]:
        for index in range(self.admitted, len(self.inbox)):
            yield self.inbox[index]

    def empty_inbox(self) -> None:
        """Forget the entries that have been processed."""
        before, rest = self.inbox, self.inbox[self.admitted :]
        # From here on, nothing is called. No finalizer runs either, because `before` keeps all entries.
        self.inbox = rest
        self.admitted = 0
        del before

    @property
    def bytes(self) -> int:
        """Size of the payloads of all that waits in bytes, without the inbox."""
        return sum(queue.bytes for queue in self.queues.values())

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return self.first is None and self.admitted == len(self.inbox)

    def wake(self) -> None:
        """Set the futures whose items no longer wait."""
        while self.waiters:
            number = next(iter(self.waiters))
            if self.first is not None and self.first.number <= number:
                break
            future = self.waiters[number]
            if not future.done():
                future.set_result(None)
            del self.waiters[number]

    def head(self, size: float, *, single: bool) -> list[Entry]:
        """Return the entries to send next.

        Args:
            size: Maximum number of bytes of payload, if it is more than one message.
            single: Whether to return one message only.
        """
        entries: list[Entry] = []
        item = self.first
        for entry in self._inbox() if item is None else _entries_from(item):
            size -= entry.message.size
            if entries and (single or size < 0):
                break
            entries.append(entry)
        return entries

    def taken(self, count: int, *, dropped: bool = False) -> None:
        """Remove the first messages, because they were sent or cannot be sent."""
        for _ in range(count):
            item = self.first
            if item is not None and item.queue is not None:
                item.queue.remove(item, dropped)
                continue
            entry = self.inbox[self.admitted]
            subscription = entry.publisher.subscription_of(self.peer) if dropped else None
            # From here on, nothing is called.
            if subscription is not None:
                subscription.dropped += 1
            self.admitted += 1

    def recover(self, outcome: Any, entries: list[Entry]) -> None:
        """Record what was sent before an unexpected exception; abort the connection if that is unknown.

        Args:
            outcome: The `Outcome` of the delivery.
            entries: The entries that were being sent.
        """
        if outcome.doubtful is not None:
            outcome.abort()
        if self.peer.backlog is not self:
            return
        head = self.head(0, single=True)
        if not head or head[0] not in entries:
            return
        noted = entries.index(head[0])
        own = not outcome.batch.waiting and not outcome.batch.refused
        if outcome.doubtful is not None:
            self.taken(1 if own else len(entries) - noted, dropped=True)
        elif outcome.given and not outcome.counts:
            self.taken(1 if own else len(entries) - noted)
        elif outcome.batch.sent:
            self.taken(len(entries) - noted)
        elif outcome.counts:
            self.taken(max(0, outcome.counts[0] - noted))

    def clear(self) -> Item | None:
        """Forget everything, without counting; return the first item, for `unlink()`."""
        first = self.first
        self.first = self.last = None
        self.inbox = []
        self.admitted = 0
        self.queues = {}
        return first


def unlink(item: Item | None, count: int) -> Item | None:
    """Unlink up to `count` items that are no longer needed; return the first remaining one. The items form cycles."""
    while item is not None and count > 0:
        following = item.following
        item.queue = item.preceding = item.following = item.older = item.newer = None
        item = following
        count -= 1
    return item


def _entries_from(item: Item | None) -> Iterator[Entry]:
    while item is not None:
        yield item.entry
        item = item.following
