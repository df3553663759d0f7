"""The interface between the core and compression: encodings of a message, and windows of its receivers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

__all__ = ["EncoderBase", "Encoding", "Encodings", "WindowBase"]


class Encoding(Protocol):
    """One encoding of a message as a frame."""

    @property
    def first(self) -> int:
        """First octet of the frame."""

    @property
    def payload(self) -> bytes:
        """Payload of the frame, before masking."""

    @property
    def frame(self) -> bytes:
        """The whole unmasked frame; or several, one after the other."""

    @property
    def ends(self) -> Sequence[int] | None:
        """End offset of each of several frames in `frame`; None if there is only one."""


class Encodings(Protocol):
    """All encodings of a message, or of several messages."""

    @property
    def plain(self) -> Encoding:
        """The encoding for connections that do not compress."""

    def choose(self, window: Any) -> tuple[Encoding, Any]:
        """Return the encoding for a receiver with this window, and its window afterwards.

        A window can be any object; windows are compared by identity. This method does not change the connection. The
        code that sends the frame must note the new window.
        """

    def after(self, window: Any, count: int) -> Any:
        """Return the window after the first `count` messages."""


class EncoderBase:
    """Compression state of one connection: the receiver's window, and the connection's own encoder if it has one.

    The encoder fits the window only as long as nothing else is sent. It is dropped when `state` changes.
    """

    __slots__ = ("encoder", "peer", "state")

    state: Any
    encoder: Any
    peer: Any
    """A weak reference to the peer if its connection reports changes, else None. While the peer is ready, `state` is
    out of date."""


class WindowBase:
    """A window that counts the receivers that have it."""

    __slots__ = ("count", "expected")

    count: int
    """Approximate number of receivers with this window: lost connections are not subtracted."""
    expected: int
    """Number of receivers that are about to be counted; 0 once the first ones are."""

    def move_to(self, window: WindowBase, receivers: int) -> None:
        """Note that `receivers` of the receivers with this window now have another one."""
        self.count = max(self.count - receivers, 0)
        window.count += receivers
        window.expected = 0
