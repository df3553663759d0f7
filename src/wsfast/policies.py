"""What is done about a subscriber that does not keep up: bounds, and which messages wait within them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ._arguments import check_integer, check_seconds, check_str
from ._backlog import Entry, Queue

__all__ = ["Conflate", "Disconnect", "DropNewest", "DropOldest", "Policy"]


MOST_DROPS = 64
"""Messages that a policy drops at once, lest one large message take the time of thousands that wait for each client."""


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
        """Drop what has waited for too long, or is beyond the other bounds; the rest of it soon, if it is much."""
        self._make_room(queue, now)

    def _is_full(self, queue: Queue, now: float, messages: int, size: int) -> bool:
        """Whether there is no room for so much more; one message may always wait."""
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
        """Whether twice as much waits as may, the newest message not included."""
        newest = 0 if queue.newest is None else queue.newest.entry.message.size
        return (self.max_messages is not None and queue.messages > 2 * self.max_messages + 1) or (
            self.max_bytes is not None and queue.bytes - newest > 2 * self.max_bytes
        )

    def _make_room(self, queue: Queue, now: float, messages: int = 0, size: int = 0) -> None:
        """Drop the oldest messages until there is room, but no more than MOST_DROPS now unless it is far too much."""
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
        """Have a message wait; the oldest ones make room."""
        self._make_room(queue, now, 1, entry.message.size)
        queue.append(entry, now, keyed=keyed)


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
        if self._is_full(queue, now, 1, entry.message.size):
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
        if self._is_full(queue, now, 1, entry.message.size):
            queue.refuse()
            queue.subscription.report_drops(1)
        else:
            queue.append(entry, now)

    def expire(self, queue: Queue, now: float) -> None:
        """Do nothing: what waits is what is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DropOldest(Policy):
    """Drop the oldest messages that wait, as many as the bounds need."""

    def admit(self, queue: Queue, entry: Entry) -> None:
        """Have the message wait, and drop older ones as needed."""
        self._append(queue, entry, time.monotonic())


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
        self._make_room(queue, now)
