"""Values of the client: its options, messages and events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from wsfast._arguments import check_seconds
from wsfast.hub.positions import Position

__all__ = ["Backoff", "Closed", "Event", "Gap", "Heartbeat", "Message", "Refused", "Subscribed", "reconnects"]

BUSY = (1012, 1013)
"""Close codes after which the server wants fewer attempts: service restart, try again later."""


class Message(NamedTuple):
    """A message of a topic."""

    topic: str
    offset: int
    """The number of the message in the topic, in the present epoch."""
    payload: str | bytes


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before connecting again: a random time below `min(cap, base * 2**attempts)` (full jitter).

    Args:
        base: Seconds.
        cap: Seconds.
        busy: The least bound in seconds after the close codes 1012 and 1013.
        stable: Seconds after which a connection counts as good, so that the back-off begins anew.

    Raises:
        TypeError: If one is not a number.
        ValueError: If one is not positive, or infinite.
    """

    base: float = 0.5
    cap: float = 30.0
    busy: float = 10.0
    stable: float = 5.0

    def __post_init__(self) -> None:
        for name in ("base", "cap", "busy", "stable"):
            check_seconds(name, getattr(self, name))

    def bound(self, attempts: int, code: int) -> float:
        """Return the bound of the time to wait in seconds, after some attempts and a close code."""
        bound = min(self.cap, self.base * 2.0 ** min(attempts, 64))
        return max(bound, self.busy) if code in BUSY else bound


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """How to notice that the other end is gone though the connection looks open.

    Args:
        interval: Seconds without a message after which a ping is sent.
        timeout: Seconds to wait for anything after a ping, and for a connection to open.

    Raises:
        TypeError: If one is not a number.
        ValueError: If one is not positive, or infinite.
    """

    interval: float = 20.0
    timeout: float = 10.0

    def __post_init__(self) -> None:
        check_seconds("interval", self.interval)
        check_seconds("timeout", self.timeout)


# ---- Events


class Subscribed(NamedTuple):
    """A topic is subscribed to.

    If `recovered` is true, all messages since the last connection follow. If it is false and `first` is false as well,
    messages may be missing: load the state again.
    """

    topic: str
    position: Position
    """The position after the messages that the server sends at first."""
    recovered: bool
    first: bool
    """Whether the topic was never subscribed to before."""


class Gap(NamedTuple):
    """The messages with the offsets `first` to `last` are missing."""

    topic: str
    first: int
    last: int


class Refused(NamedTuple):
    """The server has refused a request, or some topics of it."""

    error: str
    topics: tuple[str, ...]


class Closed(NamedTuple):
    """A connection has ended, or was not made.

    `wait` is the number of seconds until the next attempt, drawn below `bound`; None if there is none.
    """

    code: int
    reason: str
    wait: float | None
    bound: float


Event: TypeAlias = Subscribed | Gap | Refused | Closed


def reconnects(code: int) -> bool:
    """Whether a client connects again after a close code: not after 1008 and 4400 to 4499."""
    return code != 1008 and not 4400 <= code < 4500
