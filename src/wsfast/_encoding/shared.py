"""Context takeover that is shared by all connections that hold the same (RFC 7692, section 7.1.1)."""

from __future__ import annotations

from typing import Any

from .deflate import Parameters, Window, compress_by
from .message import RSV1, SMALLEST_COMPRESSED, Encoding, PreparedMessage, self_contained

__all__ = ["MOST_SHARED", "Shared", "closed", "encodings_of"]

MOST_SHARED = 2
"""Compressions of a message that refer to earlier ones, for each set of parameters. One by itself comes to these."""

LARGE = 4
"""A quarter of the receivers are many. Of the compressions that refer to earlier messages, one may be for fewer."""

WINDOWS = 4
"""Windows that a message may fill: in a larger one, references to what is before it save nothing that counts."""


class Shared:
    """The encodings of a message: who gets it compressed with reference to earlier ones, and who by itself.

    All that there is to know is what a window holds. Those who hold the same get the same frame, which refers to that,
    and hold the same afterwards. As there are few compressions of a message, some get it by itself; these hold the
    same as well from then on.

    Args:
        message: The message.
        receivers: How many there are; None if that is not known, and then all who hold the same are many.
    """

    __slots__ = ("_by_itself", "_chosen", "_closed", "_data", "_receivers", "_shared", "_windows", "plain")

    def __init__(self, message: PreparedMessage, receivers: int | None) -> None:
        self._by_itself = self_contained(message)
        self._data = message.data
        self._receivers = receivers or 0
        self._chosen: dict[Window, tuple[Encoding, Window]] = {}
        # Those for whom there is a compression of their own, and whether they were many then.
        self._shared: dict[Parameters, list[tuple[Window, bool]]] = {}
        self._windows: list[Window] = []  # those of the receivers, afterwards
        self._closed = False
        self.plain: Encoding = self._by_itself.plain

    def choose(self, window: Window) -> tuple[Encoding, Window]:
        """See `Encodings` in the core."""
        chosen = self._chosen.get(window)
        if chosen is not None:
            return chosen
        if self._closed:
            return self._by_itself.choose(window)
        return self._chosen.setdefault(window, self._choose(window))

    def after(self, window: Window, count: int) -> Window:
        """See `Encodings` in the core."""
        return self.choose(window)[1] if count else window

    def close(self) -> Shared:
        """Return what is kept of this once the message was sent, for those who lag: few answers, and no new ones."""
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
                window = parameters.unknown  # it may be one that was forgotten
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
        """Whether one more compression is for those who hold this."""
        parameters = window.parameters
        shared = self._shared.setdefault(parameters, [])
        if len(self._data) >= WINDOWS * parameters.window or len(shared) >= MOST_SHARED:
            return False
        return all(many for _, many in shared) or self._are_many(window)

    def _are_many(self, window: Window) -> bool:
        return LARGE * (window.count or window.expected) >= self._receivers

    def _same(self, after: Window, expected: int) -> Window:
        """Return the window of all who hold the same afterwards, with the number that is expected to."""
        tail = after.tail
        for window in self._windows:
            # One that was forgotten is like no other: what was chosen for it refers to what it held.
            if tail and window.parameters is after.parameters and window.tail == tail:
                return window
        if not after.count:
            after.expected = max(after.expected, expected)
        self._windows.append(after)
        return after


def closed(encodings: Any) -> Any:
    """Return what is kept of the encodings of a message once it was sent to all who do not lag."""
    return encodings.close() if isinstance(encodings, Shared) else encodings


def encodings_of(message: PreparedMessage, receivers: int | None) -> Any:
    """Return the encodings of a message for so many receivers, or None if that is not known.

    If there are none yet, those who come later get it by itself.
    """
    if message.compress is False or message.size < SMALLEST_COMPRESSED or receivers == 0:
        return self_contained(message)
    Parameters.make_room()
    return Shared(message, receivers)
