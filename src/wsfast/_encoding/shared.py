"""Context takeover that is shared by all connections that hold the same (RFC 7692, section 7.1.1)."""

from __future__ import annotations

from typing import Any

from .deflate import Parameters, Window, compress_by
from .message import RSV1, SMALLEST_COMPRESSED, Encoding, PreparedMessage, self_contained

__all__ = ["MOST_SHARED", "Shared", "encodings_of"]

MOST_SHARED = 2
"""Compressions of a message that refer to earlier ones, for each set of parameters. One by itself comes to these."""

MOST_CHOSEN = 64
"""Windows for which is kept what they get; others get the message by itself."""

LARGE, SMALL = 4, 64
"""Parts of the receivers: more than 1/4 hold the same, and are compressed for; so are, once, more than 1/64."""


class Shared:
    """The encodings of a message: who gets it compressed with reference to earlier ones, and who by itself.

    All that there is to know is what a window holds. Those who hold the same get the same frame, which refers to that,
    and hold the same afterwards. As there are few compressions of a message, some get it by itself; these hold the
    same as well from then on.

    Args:
        message: The message.
        receivers: How many there are, as far as that is known.
    """

    __slots__ = ("_by_itself", "_chosen", "_data", "_receivers", "_shared", "_windows", "plain")

    def __init__(self, message: PreparedMessage, receivers: int) -> None:
        self._by_itself = self_contained(message)
        self._data = message.data
        self._receivers = receivers
        self._chosen: dict[Window, tuple[Encoding, Window]] = {}
        self._shared: dict[Parameters, list[bool]] = {}  # whether each compression was for a large part of them
        self._windows: list[Window] = []  # those of the receivers, afterwards
        self.plain: Encoding = self._by_itself.plain

    def choose(self, window: Window) -> tuple[Encoding, Window]:
        """See `Encodings` in the core."""
        chosen = self._chosen.get(window)
        if chosen is None:
            if len(self._chosen) >= MOST_CHOSEN:
                return self._by_itself.choose(window)
            chosen = self._chosen.setdefault(window, self._choose(window))
        return chosen

    def after(self, window: Window, count: int) -> Window:
        """See `Encodings` in the core."""
        return self.choose(window)[1] if count else window

    def _choose(self, window: Window) -> tuple[Encoding, Window]:
        parameters = window.parameters
        if not window.tail or not self._may_share(window):
            encoding, after = self._by_itself.choose(window)
            if after is window:
                return encoding, window
            return encoding, self._same(parameters, after.tail) or self._add(after, self._receivers)
        encoder = window.encoder_for()
        compressed = compress_by(encoder, self._data)
        if len(compressed) >= len(self._data):
            return self.plain, window
        encoding = Encoding(RSV1 | self.plain.first, compressed)
        end = window.end_after(self._data)
        same = self._same(parameters, end)
        if same is not None:
            return encoding, same
        after = self._add(Window(parameters, end, encoder), abs(window.count))
        parameters.keep(after)
        parameters.keep_encoder(after)
        return encoding, after

    def _may_share(self, window: Window) -> bool:
        """Whether one more compression is for those who hold this; then it is counted."""
        shared = self._shared.setdefault(window.parameters, [])
        count = abs(window.count)
        large = LARGE * count >= self._receivers
        small = SMALL * count >= self._receivers and False not in shared
        if len(shared) >= MOST_SHARED or not (large or small):
            return False
        shared.append(large)
        return True

    def _same(self, parameters: Parameters, tail: bytes) -> Window | None:
        """Return the window of other receivers who hold the same afterwards."""
        for window in self._windows:
            if window.parameters is parameters and window.tail == tail:
                return window
        return None

    def _add(self, window: Window, expected: int) -> Window:
        if window.count == 0:
            window.count = -expected
        self._windows.append(window)
        return window


def encodings_of(message: PreparedMessage, receivers: int) -> Any:
    """Return the encodings of a message for some receivers; to have chosen one obliges to nothing."""
    if message.compress is False or message.size < SMALLEST_COMPRESSED:
        return self_contained(message)
    Parameters.make_room()
    return Shared(message, receivers)
