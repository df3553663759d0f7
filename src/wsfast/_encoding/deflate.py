"""Who may share a compressed frame (RFC 7692, permessage-deflate).

A receiver decompresses with a window: the last bytes of all compressed messages that it has received. A frame made by
an encoder that knows none of them refers to nothing but itself, so that every receiver whose window is large enough
decodes it, whatever it holds. The sender's own encoder for that connection, however, does not know of the frame, and
what it makes next would be decoded wrongly. Hence the rule of this module: whoever puts a shared frame on a connection
tells the `LazyEncoder` of that connection, which stands in the place of its encoder and lets go of the old one.
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
"""What ends a compressed message and is left out of its last frame (RFC 7692, section 7.2.1)."""

LOOKAHEAD = 262
"""Bytes of its window that zlib does not use: it refers to nothing that is farther back than the rest."""

MOST_KEPT = 1 << 22
"""Bytes of all that is known of windows, for each set of parameters."""

MOST_PRIMED = 4096
"""Bytes with which an encoder is primed: 32 KiB would cost 30 to 50 us."""

MOST_ENCODERS = 16
"""Encoders that are kept for each set of parameters."""

KNOWN_SETTINGS = frozenset({"level", "method", "memLevel", "strategy"})
"""Arguments of `zlib.compressobj` that every decoder can live with. A preset dictionary is not among them."""


class Parameters:
    """How a connection compresses what it sends. There is one object for each combination: compare them by identity."""

    __slots__ = ("_encoders", "_new", "_old", "own", "per_message", "settings", "unknown", "window", "window_bits")

    _crowded: ClassVar[set[Parameters]] = set()
    _all: ClassVar[dict[tuple[int, tuple[tuple[str, int], ...]], Parameters]] = {}

    window_bits: int
    """Base-2 logarithm of the size of the window: 9 to 15 (RFC 7692, section 7.1.2)."""
    window: int
    """Bytes of the window."""
    settings: tuple[tuple[str, int], ...]
    """Arguments of `zlib.compressobj`, sorted by their names."""
    per_message: PerMessageEncoder
    """Stands for the encoders of all connections that compress each message by itself."""
    unknown: Window
    """That of a receiver of which nothing is known."""
    own: Window
    """That of a receiver of which the connection's own encoder knows, and nobody else."""
    _new: deque[ref[Window]]
    _old: deque[ref[Window]]
    _encoders: deque[ref[Window]]

    @classmethod
    def of(cls, window_bits: int, settings: Mapping[str, Any]) -> Parameters | None:
        """Return those of a connection, or None if nobody can compress so, or its receiver may have to know how.

        Raises:
            ValueError: If zlib has no such window: it must have 9 to 15 bits.
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
        """Return those with the smallest window that makes no difference to a message of `size` bytes by itself.

        Connections with larger windows than the message needs thus share one encoding of it.
        """
        bits = self.window_bits
        while bits > 9 and size + LOOKAHEAD <= 1 << (bits - 1):
            bits -= 1
        return self._of(bits, self.settings)

    def encoder(self, window: bytes = b"") -> zlib._Compress:
        """Make an encoder whose receivers hold `window` at the end of theirs, if nothing else before it."""
        settings: dict[str, Any] = dict(self.settings)
        if window:
            settings["zdict"] = window[-min(self.window, MOST_PRIMED) :]
        return zlib.compressobj(wbits=-self.window_bits, **settings)

    def compress(self, data: bytes) -> bytes:
        """Compress a message by itself, as it stands in a frame."""
        return compress_by(self.encoder(), data)

    def keep(self, window: Window) -> None:
        """Keep what a new window holds, as long as there is room. Several threads may do this at the same time."""
        self._new.append(ref(window))
        if len(self._new) > self._most // 4:
            self._crowded.add(self)

    @classmethod
    def make_room(cls) -> None:
        """Forget windows, where they have become too many: not while what was chosen is on its way.

        The new ones are a quarter of all. What is pushed out of these is forgotten if nobody holds it; of the others,
        if they are too many, any: the oldest one would always be the one that is needed next, where rooms get messages
        in turn. Costs as much as windows have been made.
        """
        while cls._crowded:
            with contextlib.suppress(KeyError, IndexError):  # another thread has taken the last one
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
        """Keep the encoder of a window until as many others are kept as there may be."""
        encoders = self._encoders
        encoders.append(ref(window))
        if len(encoders) > MOST_ENCODERS:
            oldest = encoders.popleft()()
            if oldest is not None:
                oldest.known = oldest.tail, None


def compress_by(encoder: zlib._Compress, data: bytes) -> bytes:
    """Compress a whole message, which must not be empty, as it stands in a frame (RFC 7692, section 7.2.1)."""
    compressed = encoder.compress(data) + encoder.flush(zlib.Z_SYNC_FLUSH)
    if not compressed.endswith(SYNC_FLUSH_END):
        raise AssertionError("zlib did not flush")
    return compressed[: -len(SYNC_FLUSH_END)]


class Window(core.WindowBase):
    """What the window of a receiver ends with, as far as it is known; there is one for all who hold the same.

    It never changes, but for being forgotten. To remember less than there is, even nothing, is always right; to
    remember anything else never is.

    Args:
        parameters: How messages are compressed for it.
        tail: What it ends with: no more than it holds.
        encoder: One that refers to nothing but that; it is copied for each use. None to make one.
    """

    __slots__ = ("__weakref__", "known", "parameters")

    def __init__(self, parameters: Parameters, tail: bytes = b"", encoder: Any = None) -> None:
        self.parameters: Parameters = parameters
        self.known: tuple[bytes, Any] = tail, encoder
        """The tail and the encoder. Read both at once: another thread may have them forgotten."""
        self.count: int = 0
        self.expected: int = 0

    @property
    def tail(self) -> bytes:
        """What it ends with; nothing if that was forgotten."""
        return self.known[0]

    def forget(self) -> None:
        """Remember nothing any more."""
        self.known = b"", None


class LazyEncoder(core.EncoderBase):
    """The encoder of one connection, which is made when the connection sends something for itself.

    It stands in for a `zlib.compressobj`. Until then, only `state`, the `Window` of the receiver, is kept: that is what
    the new encoder is primed with, so that it may refer to it.

    Args:
        parameters: How the connection compresses.
        encoder: The encoder that the connection has had so far; None if it has compressed nothing yet.
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
        """Note that the receiver's window holds something else now; an encoder of its own does not fit any more."""
        if window is not self.state:
            self.state.move_to(window, 1)
            self.state = window
            self.encoder = None

    def forget(self) -> None:
        """Rely on nothing: the receiver may hold something else than was noted."""
        self.move_to(self.state.parameters.unknown)
        self.encoder = None

    def _own(self) -> Any:
        peer = None if self.peer is None else self.peer()
        if peer is not None:
            peer.invalidate()  # it has been sent to without being looked at, if somebody has kept its protocol
        if self.encoder is None:
            encoder = self.state.parameters.encoder(self.state.tail)
            self.move_to(self.state.parameters.own)
            self.encoder = encoder
        return self.encoder

    def compress(self, data: Any, /) -> bytes:
        """Compress a part of a message that the connection sends for itself."""
        compressed: bytes = self._own().compress(data)
        return compressed

    def flush(self, mode: int = zlib.Z_FINISH, /) -> bytes:
        """Return what is left of it in the encoder."""
        rest: bytes = self._own().flush(mode)
        return rest


class PerMessageEncoder(core.EncoderBase):
    """Stands for the encoders of all connections without context takeover, which know nothing of earlier messages."""

    __slots__ = ()

    def __init__(self, parameters: Parameters) -> None:
        self.encoder: Any = None
        self.peer: Any = None
        self.state: Any = Window(parameters)  # and so it stays

    def move_to(self, window: Window) -> None:
        """Do nothing: nothing is noted."""

    def forget(self) -> None:
        """Do nothing."""


Encoder: TypeAlias = LazyEncoder | PerMessageEncoder
