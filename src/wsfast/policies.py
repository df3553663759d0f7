"""What is done about a subscriber that does not keep up: bounds, and which messages wait within them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ._arguments import check_integer, check_seconds, check_str
from ._backlog import Entry, Queue

__all__ = ["Conflate", "Disconnect", "DropNewest", "DropOldest", "Policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Bounds of what waits for one subscriber of a channel; None for no bound.

    Raises:
        TypeError: If a bound is no number.
        ValueError: If a bound is not positive.
    """

    max_messages: int | None = None
    """Messages."""
    max_bytes: int | None = 1 << 20
    """Bytes of their payloads, not compressed. They are held once, however many subscribers wait for them."""
    max_age: float | None = None
    """Seconds that the oldest has waited."""

    def __post_init__(self) -> None:
        check_integer("max_messages", self.max_messages, optional=True)
        check_integer("max_bytes", self.max_bytes, optional=True)
        check_seconds("max_age", self.max_age, optional=True)

    def admit(self, queue: Queue, entry: Entry) -> None:
        """Deal with a message that a connection has not taken: have it wait, or not, and make room as needed.

        Args:
            queue: What waits for the subscription.
            entry: The message, which is the next one in the inbox.
        """
        raise TypeError(f"{type(self).__name__} is no policy")

    def expire(self, queue: Queue, now: float) -> None:
        """Drop what has waited for too long."""
        if self.max_age is None:
            return
        while queue.oldest is not None and queue.oldest.time < now - self.max_age:
            self._drop_oldest(queue)

    def _is_full(self, queue: Queue, entry: Entry, now: float) -> bool:
        """Whether there is no room for a message; one may always wait."""
        return queue.oldest is not None and (
            (self.max_messages is not None and queue.messages >= self.max_messages)
            or (self.max_bytes is not None and queue.bytes + entry.message.size > self.max_bytes)
            or (self.max_age is not None and queue.oldest.time < now - self.max_age)
        )

    def _append(self, queue: Queue, entry: Entry, now: float, *, keyed: bool = False) -> None:
        """Have a message wait; the oldest ones make room."""
        while self._is_full(queue, entry, now):
            self._drop_oldest(queue)
        queue.append(entry, now, keyed=keyed)

    def _drop_oldest(self, queue: Queue) -> None:
        assert queue.oldest is not None
        queue.drop(queue.oldest)
        queue.subscription.report_drop()


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnect(Policy):
    """Close the connection of a subscriber beyond the bounds: it is better off connecting again.

    Raises:
        TypeError: If a bound or `code` is no number, or `reason` no string.
        ValueError: If a bound is not positive, `code` may not be sent, or `reason` is too long (RFC 6455, section 7.4).
    """

    code: int = 1013
    """Status code of the close frame: "try again later"."""
    reason: str = "slow consumer"
    """Its reason, at most 123 bytes."""

    def __post_init__(self) -> None:
        super(Disconnect, self).__post_init__()
        check_integer("code", self.code)
        check_str("reason", self.reason)
        if not (self.code in (1000, 1001, 1002, 1003, *range(1007, 1015)) or 3000 <= self.code < 5000):
            raise ValueError(f"close code {self.code} may not be sent")
        if len(self.reason.encode()) > 123:
            raise ValueError("reason of a close frame must not be longer than 123 bytes")

    def admit(self, queue: Queue, entry: Entry) -> None:
        """Have the message wait, or close the connection."""
        now = time.monotonic()
        self.expire(queue, now)
        if not queue.subscription.active:
            return
        if self._is_full(queue, entry, now):
            queue.subscription.disconnect(self.code, self.reason)
        else:
            queue.append(entry, now)

    def expire(self, queue: Queue, now: float) -> None:
        """Close the connection if something has waited for too long."""
        if self.max_age is not None and queue.oldest is not None and queue.oldest.time < now - self.max_age:
            queue.subscription.disconnect(self.code, self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class DropNewest(Policy):
    """Leave out new messages while what waits is at the bounds."""

    def admit(self, queue: Queue, entry: Entry) -> None:
        """Have the message wait, or drop it."""
        now = time.monotonic()
        if self._is_full(queue, entry, now):
            queue.refuse()
            queue.subscription.report_drop()
        else:
            queue.append(entry, now)

    def expire(self, queue: Queue, now: float) -> None:
        """Do nothing: what waits is what is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DropOldest(Policy):
    """Drop the oldest messages that wait, as many as the bounds need."""

    def admit(self, queue: Queue, entry: Entry) -> None:
        """Have the message wait, and drop older ones as needed."""
        now = time.monotonic()
        self.expire(queue, now)
        self._append(queue, entry, now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflate(Policy):
    """Keep the newest message of each key; beyond the bounds, drop those that have waited for longest.

    A new message takes the place in the queue of the one that it replaces, so that no key has to wait for another that
    changes more often. Messages without a key are never replaced.
    """

    def admit(self, queue: Queue, entry: Entry) -> None:
        """Have the message wait, in the place of an older one of the same key if there is one."""
        now = time.monotonic()
        if entry.key is None:
            self._append(queue, entry, now)
            return
        item = queue.find(entry.key)
        if item is None:
            self._append(queue, entry, now, keyed=True)
            return
        queue.replace(item, entry, now)
        queue.subscription.report("conflates")
        while self.max_bytes is not None and queue.bytes > self.max_bytes and queue.messages > 1:
            self._drop_oldest(queue)
