"""Slow-consumer policies: how much may wait for a subscriber that does not keep up, and what happens beyond that."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ._arguments import check_close, check_integer, check_seconds
from ._backlog import Entry, Queue

__all__ = ["Conflate", "Disconnect", "DropNewest", "DropOldest", "Policy"]


MOST_DROPS = 64
"""Most messages that a policy drops at once. Otherwise, one large message could cost the dropping of thousands of small
messages for each client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Bounds on what may wait for one subscriber. None means no bound. Base class of the policies.

    Raises:
        TypeError: If a bound is not a number.
        ValueError: If a bound is not positive.
    """

    max_messages: int | None = None
    """Most messages that may wait."""
    max_bytes: int | None = 1 << 20
    """Most bytes that may wait: uncompressed payloads. Each message is stored once, however many subscribers wait for
    it."""
    max_age: float | None = None
    """Most seconds that the oldest message may have waited."""

    def __post_init__(self) -> None:
        check_integer("max_messages", self.max_messages, optional=True)
        check_integer("max_bytes", self.max_bytes, optional=True)
        check_seconds("max_age", self.max_age, optional=True)

    def admit(self, queue: Queue, entry: Entry) -> None:
        """Handle a message that the connection did not take: queue it or drop it, and make room as needed.

        Args:
            queue: The messages that wait for the subscription.
            entry: The message, which is the next one in the inbox.
        """
        raise TypeError(f"{type(self).__name__} has no admit(); use Disconnect, DropNewest, DropOldest or Conflate")

    def expire(self, queue: Queue, now: float) -> None:
        """Drop messages that waited for too long or are beyond the other bounds; if there are many, the rest soon."""
        self._make_room(queue, now)

    def _is_full(self, queue: Queue, now: float, messages: int, size: int) -> bool:
        """Whether adding `messages` messages of `size` bytes would exceed a bound. One message may always wait."""
        return queue.oldest is not None and (
            (self.max_age is not None and queue.oldest.time < now - self.max_age)
            or (
                queue.messages + messages > 1
                and (
                    (self.max_messages is not None and queue.messages + messages > self.max_messages)
                    or (self.max_bytes is not None and queue.bytes + size > self.max_bytes)
                )
            )
        )

    def _is_far_beyond(self, queue: Queue) -> bool:
        """Whether more than twice the bound waits, the newest message not included."""
        newest = 0 if queue.newest is None else queue.newest.entry.message.size
        return (self.max_messages is not None and queue.messages > 2 * self.max_messages + 1) or (
            self.max_bytes is not None and queue.bytes - newest > 2 * self.max_bytes
        )

    def _make_room(self, queue: Queue, now: float, messages: int = 0, size: int = 0) -> None:
        """Drop the oldest messages until there is room: at most MOST_DROPS now, unless far too much waits."""
        dropped = 0
        while self._is_full(queue, now, messages, size):
            if dropped >= MOST_DROPS and not self._is_far_beyond(queue):
                queue.subscription.trim_soon(queue)
                break
            assert queue.oldest is not None
            queue.drop(queue.oldest)
            dropped += 1
        if dropped:
            queue.subscription.report_drops(dropped)

    def _append(self, queue: Queue, entry: Entry, now: float, *, keyed: bool = False) -> None:
        """Queue a message; drop the oldest ones to make room."""
        self._make_room(queue, now, 1, entry.message.size)
        queue.append(entry, now, keyed=keyed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnect(Policy):
    """Close the connection of a subscriber that exceeds a bound, so that the client connects again and starts afresh.

    Raises:
        TypeError: If a bound or `code` is not a number, or `reason` is not a string.
        ValueError: If a bound is not positive, `code` may not be sent, or `reason` is too long (RFC 6455, section 7.4).
    """

    code: int = 1013
    """Status code of the close frame. The default means "try again later"."""
    reason: str = "slow consumer"
    """Reason in the close frame, at most 123 bytes."""

    def __post_init__(self) -> None:
        super(Disconnect, self).__post_init__()
        check_close(self.code, self.reason)

    def admit(self, queue: Queue, entry: Entry) -> None:
        """Queue the message, or close the connection."""
        now = time.monotonic()
        self.expire(queue, now)
        if not queue.subscription.active:
            return
        if self._is_full(queue, now, 1, entry.message.size):
            queue.subscription.disconnect(self.code, self.reason)
        else:
            queue.append(entry, now)

    def expire(self, queue: Queue, now: float) -> None:
        """Close the connection if a message has waited for too long."""
        if self.max_age is not None and queue.oldest is not None and queue.oldest.time < now - self.max_age:
            queue.subscription.disconnect(self.code, self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class DropNewest(Policy):
    """Drop new messages while the queue is full, and keep those that wait."""

    def admit(self, queue: Queue, entry: Entry) -> None:
        """Queue the message, or drop it."""
        now = time.monotonic()
        if self._is_full(queue, now, 1, entry.message.size):
            queue.refuse()
            queue.subscription.report_drops(1)
        else:
            queue.append(entry, now)

    def expire(self, queue: Queue, now: float) -> None:
        """Do nothing: this policy keeps the messages that wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DropOldest(Policy):
    """Drop the oldest messages that wait, as many as needed to keep within the bounds."""

    def admit(self, queue: Queue, entry: Entry) -> None:
        """Queue the message, and drop older ones as needed."""
        self._append(queue, entry, time.monotonic())


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflate(Policy):
    """Keep only the newest message of each key. Beyond the bounds, drop the messages that have waited longest.

    A new message takes the place of the message that it replaces in the queue, so that no key has to wait for another
    key that changes more often. Messages without a key are never replaced.
    """

    def admit(self, queue: Queue, entry: Entry) -> None:
        """Queue the message, in the place of an older one with the same key if there is one."""
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
        self._make_room(queue, now)
