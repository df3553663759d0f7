"""Context takeover shared by all connections whose receivers have the same window (RFC 7692, section 7.1.1)."""

from __future__ import annotations

from typing import Any

from .chunks import CHUNKED
from .deflate import Parameters, Window, compress_by
from .message import RSV1, SMALLEST_COMPRESSED, Encoding, PreparedMessage, self_contained

__all__ = ["MOST_SHARED", "Shared", "closed", "encodings_of"]

MOST_SHARED = 2
"""Most compressions of a message that refer to earlier messages, for each set of parameters. One compression that does
not refer to any comes on top."""

LARGE = 4
"""A group of receivers is large from a quarter of all receivers on. Of the compressions that refer to earlier messages,
one may be for a smaller group."""

WINDOWS = 4
"""A message that fills this many windows is always compressed on its own: references to earlier messages would save
next to nothing."""


class Shared:
    """The encodings of a message: for each receiver, with references to earlier messages or on its own.

    Everything depends on the receiver's window. Receivers with the same window get the same frame, which refers to that
    window, and have the same window afterwards. A message is compressed only a few times, so some receivers get it
    compressed on its own. From then on, these have the same window as well.

    Args:
        message: The message.
        receivers: Number of receivers. None if it is unknown; then every group with the same window counts as large.
    """

    __slots__ = ("_by_itself", "_chosen", "_closed", "_data", "_receivers", "_shared", "_windows", "plain")

    def __init__(self, message: PreparedMessage, receivers: int | None) -> None:
        self._by_itself = self_contained(message)
        self._data = message.data
        self._receivers = receivers or 0
        self._chosen: dict[Window, tuple[Encoding, Window]] = {}
        # Windows that got a compression of their own, and whether their group was large at that time.
        self._shared: dict[Parameters, list[tuple[Window, bool]]] = {}
        self._windows: list[Window] = []  # windows of the receivers afterwards
        self._closed = False
        self.plain: Encoding = self._by_itself.plain

    def choose(self, window: Any) -> tuple[Encoding, Any]:
        """See `Encodings` in the core."""
        chosen = self._chosen.get(window)
        if chosen is not None:
            return chosen
        if self._closed or window is CHUNKED:
            return self._by_itself.choose(window)
        return self._chosen.setdefault(window, self._choose(window))

    def after(self, window: Window, count: int) -> Window:
        """See `Encodings` in the core."""
        return self.choose(window)[1] if count else window

    def close(self) -> Shared:
        """Return a smaller copy to keep for connections that lag, once the message was sent: it compresses no more."""
        kept = Shared.__new__(Shared)
        kept._by_itself, kept._data, kept.plain = self._by_itself, self._data, self.plain
        kept._receivers, kept._shared, kept._windows, kept._closed = 0, {}, [], True
        windows = [window for shared in self._shared.values() for window, _ in shared if window in self._chosen]
        kept._chosen = {window: self._chosen[window] for window in windows}
        return kept

    def _choose(self, window: Window) -> tuple[Encoding, Window]:
        parameters = window.parameters
        tail, encoder = window.known
        if not tail or not self._may_share(window):
            if not tail and window not in (parameters.own, parameters.per_message.state):
                window = parameters.unknown  # the contents of this window may have been forgotten
            encoding, after = self._by_itself.choose(window)
            return (encoding, window) if after is window else (encoding, self._same(after, self._receivers))
        encoder = parameters.encoder(tail) if encoder is None else encoder.copy()
        compressed = compress_by(encoder, self._data)
        self._shared[parameters].append((window, self._are_many(window)))
        if len(compressed) >= len(self._data):
            return self.plain, window
        several = window.count > 1
        after = Window(parameters, (tail + self._data)[-parameters.window :], encoder if several else None)
        same = self._same(after, min(window.count or window.expected, self._receivers))
        if same is after:
            parameters.keep(after)
            if several:
                parameters.keep_encoder(after)
        return Encoding(RSV1 | self.plain.first, compressed), same

    def _may_share(self, window: Window) -> bool:
        """Whether receivers with this window get one more compression of their own."""
        parameters = window.parameters
        shared = self._shared.setdefault(parameters, [])
        if len(self._data) >= WINDOWS * parameters.window or len(shared) >= MOST_SHARED:
            return False
        return all(many for _, many in shared) or self._are_many(window)

    def _are_many(self, window: Window) -> bool:
        return LARGE * (window.count or window.expected) >= self._receivers

    def _same(self, after: Window, expected: int) -> Window:
        """Return the one object for all windows equal to `after`; note how many receivers are expected to have it."""
        tail = after.tail
        for window in self._windows:
            # A forgotten window equals no other: the frame that was chosen for it refers to what it held.
            if tail and window.parameters is after.parameters and window.tail == tail:
                return window
        if not after.count:
            after.expected = max(after.expected, expected)
        self._windows.append(after)
        return after


def closed(encodings: Any) -> Any:
    """Return the encodings to keep for connections that lag, once the message was sent to all others."""
    return encodings.close() if isinstance(encodings, Shared) else encodings


def encodings_of(message: PreparedMessage, receivers: int | None) -> Any:
    """Return the encodings of a message for `receivers` receivers; None if their number is unknown.

    With 0 receivers, any that come later get the message compressed on its own.
    """
    if message.compress is False or message.size < SMALLEST_COMPRESSED or receivers == 0:
        return self_contained(message)
    Parameters.make_room()
    return Shared(message, receivers)
