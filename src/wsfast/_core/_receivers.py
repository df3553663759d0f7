"""What the core is told of a message and of those who receive it, however it is compressed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

__all__ = ["EncoderBase", "Encoding", "Encodings", "WindowBase"]


class Encoding(Protocol):
    """One way in which a message can stand in a frame."""

    @property
    def first(self) -> int:
        """First octet of the frame."""

    @property
    def payload(self) -> bytes:
        """Payload as it stands in the frame, but for the mask."""

    @property
    def frame(self) -> bytes:
        """The whole unmasked frame; or several, one behind the other."""

    @property
    def ends(self) -> Sequence[int] | None:
        """Where each of several frames ends in `frame`; None if there is only one."""


class Encodings(Protocol):
    """A message, or several, in all the ways in which it can be sent."""

    @property
    def plain(self) -> Encoding:
        """For connections that do not compress."""

    def choose(self, window: Any) -> tuple[Encoding, Any]:
        """Return the encoding for a receiver with this window, and its window afterwards.

        What a window holds is any object, which is told from others by its identity. To ask has no effect on the
        connection: who sends the frame notes what the window holds then.
        """

    def after(self, window: Any, count: int) -> Any:
        """Return what the window holds after the first messages."""


class EncoderBase:
    """Compression state of one connection: the receiver's window, and the connection's own encoder if it has one.

    That encoder fits the window only as long as nothing else is sent: it is dropped when `state` changes.
    """

    __slots__ = ("encoder", "peer", "state")

    state: Any
    encoder: Any
    peer: Any
    """A weak reference to the peer if its connection tells, else None: while that is ready, `state` is stale."""


class WindowBase:
    """What windows of receivers hold, if it is to be known how many there are."""

    __slots__ = ("count", "expected")

    count: int
    """How many receivers have been noted to hold this, about: whoever is lost is not subtracted."""
    expected: int
    """How many are about to be noted; 0 once the first ones are."""

    def move_to(self, window: WindowBase, receivers: int) -> None:
        """Note that so many of those who held this hold something else now."""
        self.count = max(self.count - receivers, 0)
        window.count += receivers
        window.expected = 0
