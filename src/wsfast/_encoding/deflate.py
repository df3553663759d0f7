"""Which connections can share a compressed frame (RFC 7692, permessage-deflate).

A receiver decompresses with a window: the last bytes of all compressed messages that it has received. A frame from an
encoder that knows none of these messages refers only to itself. So every receiver whose window is large enough can
decode it, whatever its window holds. But the sender's own encoder for that connection does not know about the frame,
and its next output would be decoded wrongly. So this module has one rule: code that sends a shared frame on a
connection notifies the `LazyEncoder` of that connection. The `LazyEncoder` replaces the connection's own encoder and
drops the old one when it is notified.
"""

from __future__ import annotations

import contextlib
import random
import zlib
from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias
from weakref import ref

from wsfast._core import core

__all__ = ["Encoder", "LazyEncoder", "Parameters", "PerMessageEncoder", "Window", "compress_by"]

SYNC_FLUSH_END = b"\x00\x00\xff\xff"
"""End of each compressed message, which is left out of its last frame (RFC 7692, section 7.2.1)."""

LOOKAHEAD = 262
"""Bytes at the far end of its window that zlib does not use: it never refers that far back."""

MOST_KEPT = 1 << 22
"""Most bytes of window contents to keep, for each set of parameters."""

MOST_PRIMED = 4096
"""Most bytes to prime an encoder with: priming with 32 KiB would cost 30 to 50 us."""

MOST_ENCODERS = 16
"""Most encoders to keep for each set of parameters."""

KNOWN_SETTINGS = frozenset({"level", "method", "memLevel", "strategy"})
"""Arguments of `zlib.compressobj` that do not affect the decoder. A preset dictionary would."""


class Parameters:
    """How a connection compresses its messages. There is one object for each combination: compare them by identity."""

    __slots__ = ("_encoders", "_new", "_old", "own", "per_message", "settings", "unknown", "window", "window_bits")

    _crowded: ClassVar[set[Parameters]] = set()
    _all: ClassVar[dict[tuple[int, tuple[tuple[str, int], ...]], Parameters]] = {}

    window_bits: int
    """Base-2 logarithm of the size of the window: 9 to 15 (RFC 7692, section 7.1.2)."""
    window: int
    """Bytes of the window."""
    settings: tuple[tuple[str, int], ...]
    """Arguments of `zlib.compressobj`, sorted by name."""
    per_message: PerMessageEncoder
    """Represents the encoders of all connections that compress each message on its own."""
    unknown: Window
    """The window of a receiver about which nothing is known."""
    own: Window
    """The window of a receiver whose contents only the connection's own encoder knows."""
    _new: deque[ref[Window]]
    _old: deque[ref[Window]]
    _encoders: deque[ref[Window]]

    @classmethod
    def of(cls, window_bits: int, settings: Mapping[str, Any]) -> Parameters | None:
        """Return the parameters of a connection, or None if zlib does not accept them or they may affect the decoder.

        Raises:
            ValueError: If zlib has no such window. It must have 9 to 15 bits.
        """
        if not 9 <= window_bits <= 15:
            raise ValueError(f"window_bits must be between 9 and 15, not {window_bits}")
        if not settings.keys() <= KNOWN_SETTINGS or not all(isinstance(value, int) for value in settings.values()):
            return None
        key = window_bits, tuple(sorted(settings.items()))
        if key not in cls._all:
            try:
                zlib.compressobj(wbits=-window_bits, **settings)
            except (ValueError, OverflowError):  # zlib does not know such settings
                return None
        return cls._of(*key)

    @classmethod
    def _of(cls, window_bits: int, settings: tuple[tuple[str, int], ...]) -> Parameters:
        try:
            return cls._all[window_bits, settings]
        except KeyError:
            self = cls()
            self.window_bits = window_bits
            self.window = 1 << window_bits
            self.settings = settings
            self.per_message = PerMessageEncoder(self)
            self.unknown = Window(self)
            self.own = Window(self)
            self._new = deque()
            self._old = deque()
            self._encoders = deque()
            return cls._all.setdefault((window_bits, settings), self)

    def __repr__(self) -> str:
        settings = "".join(f", {name}={value}" for name, value in self.settings)
        return f"<Parameters window_bits={self.window_bits}{settings}>"

    def fit(self, size: int) -> Parameters:
        """Return the parameters with the smallest window that makes no difference to a message of `size` bytes.

        So connections whose windows are larger than the message needs share one encoding of it.
        """
        bits = self.window_bits
        while bits > 9 and size + LOOKAHEAD <= 1 << (bits - 1):
            bits -= 1
        return self._of(bits, self.settings)

    def encoder(self, window: bytes = b"") -> zlib._Compress:
        """Return a new encoder for receivers whose windows end with `window`."""
        settings: dict[str, Any] = dict(self.settings)
        if window:
            settings["zdict"] = window[-min(self.window, MOST_PRIMED) :]
        return zlib.compressobj(wbits=-self.window_bits, **settings)

    def compress(self, data: bytes) -> bytes:
        """Return a message compressed on its own, as the payload of a frame."""
        return compress_by(self.encoder(), data)

    def keep(self, window: Window) -> None:
        """Keep the contents of a new window, as long as there is room. Several threads may call this at once."""
        self._new.append(ref(window))
        if len(self._new) > self._most // 4:
            self._crowded.add(self)

    @classmethod
    def make_room(cls) -> None:
        """Forget the contents of windows if there are too many of them. Call this only between broadcasts.

        The newest windows may be a quarter of all. When one is pushed out of these, it is forgotten if no receiver has
        it, and otherwise joins the old ones. If there are too many old ones, a random one is forgotten. It is not the
        oldest, because that would always be the one needed next if rooms get messages in turn. The cost is proportional
        to the number of windows created since the last call.
        """
        while cls._crowded:
            with contextlib.suppress(KeyError, IndexError):  # another thread took the last one
                cls._crowded.pop()._make_room()

    def _make_room(self) -> None:
        while len(self._new) > self._most // 4:
            reference = self._new.popleft()
            known = reference()
            if known is not None and known.count > 0:
                self._old.append(reference)
            elif known is not None:
                known.forget()
            full = len(self._old) > self._most - self._most // 4
            if full:
                self._old.rotate(random.randrange(len(self._old)))
            for _ in range(min(2, len(self._old))):
                reference = self._old.popleft()
                known = reference()
                if known is None:
                    continue
                if full:
                    known.forget()
                    break
                self._old.append(reference)

    @property
    def _most(self) -> int:
        return MOST_KEPT // self.window

    def keep_encoder(self, window: Window) -> None:
        """Keep the encoder of a window, and drop the oldest one if there are more than MOST_ENCODERS."""
        encoders = self._encoders
        encoders.append(ref(window))
        if len(encoders) > MOST_ENCODERS:
            oldest = encoders.popleft()()
            if oldest is not None:
                oldest.known = oldest.tail, None


def compress_by(encoder: zlib._Compress, data: bytes) -> bytes:
    """Compress a whole message, which must not be empty, as the payload of a frame (RFC 7692, section 7.2.1)."""
    compressed = encoder.compress(data) + encoder.flush(zlib.Z_SYNC_FLUSH)
    if not compressed.endswith(SYNC_FLUSH_END):
        raise AssertionError("zlib did not flush")
    return compressed[: -len(SYNC_FLUSH_END)]


class Window(core.WindowBase):
    """The known end of a receiver's window. All receivers whose windows end alike share one object.

    The contents never change, except that they can be forgotten. To remember less than the window holds, even nothing,
    is always correct. To remember anything else never is.

    Args:
        parameters: How messages are compressed for the receiver.
        tail: The bytes that the window ends with: no more than it holds.
        encoder: An encoder that refers only to `tail`. It is copied for each use. None to create one when needed.
    """

    __slots__ = ("__weakref__", "known", "parameters")

    def __init__(self, parameters: Parameters, tail: bytes = b"", encoder: Any = None) -> None:
        self.parameters: Parameters = parameters
        self.known: tuple[bytes, Any] = tail, encoder
        """The tail and the encoder. Read both at once, because another thread may forget them in between."""
        self.count: int = 0
        self.expected: int = 0

    @property
    def tail(self) -> bytes:
        """The bytes that the window ends with; empty if they were forgotten."""
        return self.known[0]

    def forget(self) -> None:
        """Forget the contents."""
        self.known = b"", None


class LazyEncoder(core.EncoderBase):
    """The encoder of one connection, created only when the connection sends a message of its own.

    It replaces a `zlib.compressobj`. Until the encoder is created, only `state`, the `Window` of the receiver, is kept.
    The new encoder is primed with the contents of that window, so that it can refer to them.

    Args:
        parameters: How the connection compresses.
        encoder: The encoder that the connection had before; None if it has compressed nothing yet.
    """

    __slots__ = ()

    def __init__(self, parameters: Parameters, encoder: zlib._Compress | None = None) -> None:
        self.encoder: Any = encoder
        self.state: Any = parameters.unknown if encoder is None else parameters.own
        self.peer: Any = None

    @property
    def parameters(self) -> Parameters:
        """How the connection compresses."""
        parameters: Parameters = self.state.parameters
        return parameters

    def move_to(self, window: Window) -> None:
        """Note the receiver's new window, and drop the connection's own encoder, which no longer fits."""
        if window is not self.state:
            self.state.move_to(window, 1)
            self.state = window
            self.encoder = None

    def forget(self) -> None:
        """Note that the receiver's window is unknown: it may differ from what was noted."""
        self.move_to(self.state.parameters.unknown)
        self.encoder = None

    def _own(self) -> Any:
        peer = None if self.peer is None else self.peer()
        if peer is not None:
            peer.invalidate()  # it may still be ready, if the caller kept a reference to its protocol
        if self.encoder is None:
            encoder = self.state.parameters.encoder(self.state.tail)
            self.move_to(self.state.parameters.own)
            self.encoder = encoder
        return self.encoder

    def compress(self, data: Any, /) -> bytes:
        """Compress a part of a message of the connection's own."""
        compressed: bytes = self._own().compress(data)
        return compressed

    def flush(self, mode: int = zlib.Z_FINISH, /) -> bytes:
        """Return the rest of the message from the encoder."""
        rest: bytes = self._own().flush(mode)
        return rest


class PerMessageEncoder(core.EncoderBase):
    """Represents the encoders of all connections without context takeover, which know no earlier messages."""

    __slots__ = ()

    def __init__(self, parameters: Parameters) -> None:
        self.encoder: Any = None
        self.peer: Any = None
        self.state: Any = Window(parameters)  # never changes

    def move_to(self, window: Window) -> None:
        """Do nothing: there is no state."""

    def forget(self) -> None:
        """Do nothing."""


Encoder: TypeAlias = LazyEncoder | PerMessageEncoder
