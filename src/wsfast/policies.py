"""What is done about a subscriber that does not keep up."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Conflate", "Disconnect", "DropNewest", "DropOldest", "Policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Bounds of what waits for one subscriber of a channel; None for no bound.

    Raises:
        ValueError: If a bound is not positive.
    """

    max_messages: int | None = None
    """Messages."""
    max_bytes: int | None = 1 << 20
    """Bytes of their payloads, not compressed. They are held once, however many subscribers wait for them."""
    max_age: float | None = None
    """Seconds that the oldest has waited."""

    def __post_init__(self) -> None:
        for name in ("max_messages", "max_bytes", "max_age"):
            bound = getattr(self, name)
            if bound is not None and not bound > 0:
                raise ValueError(f"{name} must be positive or None, not {bound!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnect(Policy):
    """Close the connection of a subscriber beyond the bounds: it is better off connecting again.

    Raises:
        ValueError: If a bound is not positive, `code` may not be sent, or `reason` is too long (RFC 6455, section 7.4).
    """

    code: int = 1013
    """Status code of the close frame: "try again later"."""
    reason: str = "slow consumer"
    """Its reason, at most 123 bytes."""

    def __post_init__(self) -> None:
        super(Disconnect, self).__post_init__()
        if not (self.code in (1000, 1001, 1002, 1003, *range(1007, 1015)) or 3000 <= self.code < 5000):
            raise ValueError(f"close code {self.code} may not be sent")
        if len(self.reason.encode()) > 123:
            raise ValueError("reason of a close frame must not be longer than 123 bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class DropNewest(Policy):
    """Leave out new messages while what waits is at the bounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DropOldest(Policy):
    """Drop the oldest messages that wait, as many as the bounds need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflate(Policy):
    """Keep the newest message of each key; beyond the bounds, drop those that have waited for longest.

    A new message takes the place in the queue of the one that it replaces, so that no key has to wait for another that
    changes more often. Messages without a key are never replaced.
    """
