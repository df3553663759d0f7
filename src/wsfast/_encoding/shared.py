"""Context takeover that is shared by all connections that receive the same messages (RFC 7692, section 7.1.1)."""

from __future__ import annotations

from typing import Any

from .deflate import Parameters, Stream, Window, compress_by
from .message import RSV1, Encoding, PreparedMessage, encodings_of

__all__ = ["SMALLEST_SHARED", "Publication", "SharedEncoders", "encodings_for"]

SMALLEST_SHARED = 16
"""Bytes of the smallest payload that is compressed with the context of earlier ones."""


class SharedEncoders:
    """The encoders of those who get the same messages: one for each set of parameters, made when it is needed."""

    __slots__ = ("_encoders",)

    def __init__(self) -> None:
        self._encoders: dict[Parameters, SharedEncoder] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._encoders)

    def of(self, parameters: Parameters) -> SharedEncoder:
        """Return the encoder of all connections with these parameters."""
        encoder = self._encoders.get(parameters)
        if encoder is None:
            encoder = self._encoders.setdefault(parameters, SharedEncoder(parameters))
        return encoder


class SharedEncoder:
    """The encoder of all connections that get the same messages and have the same parameters.

    The invariant that keeps the bytes right: what it makes next may refer to the last bytes of its stream, as many as
    the window holds, but to none ahead of `start`. It may therefore be sent to whoever holds these, and nothing after
    them, at the end of the own window.

    Args:
        parameters: How the connections compress.
    """

    __slots__ = ("_encoder", "parameters", "start", "stream")

    def __init__(self, parameters: Parameters) -> None:
        self.parameters: Parameters = parameters
        self.stream: Stream = Stream(parameters.window)
        self.start: int = 0
        self._encoder: Any = None

    @property
    def oldest(self) -> int:
        """Position of the oldest byte that the next message may refer to."""
        return max(self.start, self.stream.stop - self.parameters.window)

    def compress(self, data: bytes) -> bytes | None:
        """Compress a message; None if it does not shrink, and then it is not part of the stream.

        While the window is not full yet, it always is: the first messages shrink little, but later ones will.
        """
        start = self.stream.stop
        if self._encoder is None:
            encoder = self.parameters.encoder(self.stream.between(self.start, start))
        else:
            encoder = self._encoder.copy()
        compressed = compress_by(encoder, data)
        if len(compressed) >= len(data) and start - self.start >= self.parameters.window:
            return None
        end = self.stream.after(data)
        # All or nothing: if a signal handler raises an exception in between, the encoder is made anew.
        self._encoder = None
        self.stream.move_to(end)
        self._encoder = encoder
        return compressed

    def start_over(self, start: int) -> None:
        """Refer to nothing ahead of a position any more."""
        self._encoder = None
        self.start = start


class Publication:
    """A message on its way to those who share encoders: who gets it in which encoding.

    A window shares the frame if it holds all that the shared encoder may refer to. Others get the message compressed by
    itself, until their windows have been filled with what the shared encoder has compressed.
    """

    def __init__(self, encoders: SharedEncoders, message: PreparedMessage) -> None:
        self._encoders = encoders
        self._data = message.data
        self._alone = encodings_of(message)
        self._shares: dict[Parameters, Share] = {}
        self._chosen: dict[Window, tuple[Encoding, Window]] = {}
        self.plain: Encoding = self._alone.plain

    def choose(self, window: Window) -> tuple[Encoding, Window]:
        """See `Encodings` in the core."""
        chosen = self._chosen.get(window)
        if chosen is None:
            chosen = self._chosen[window] = self._choose(window)
        return chosen

    def after(self, window: Window, count: int) -> Window:
        """See `Encodings` in the core."""
        return self.choose(window)[1] if count else window

    def _choose(self, window: Window) -> tuple[Encoding, Window]:
        parameters = window.parameters
        if window is parameters.per_message.state:
            return self._alone.choose(window)
        share = self._shares.get(parameters)
        if share is None:
            share = self._begin(parameters)
        if share.encoding is None:
            return self.plain, window
        since = share.start
        if window.stream is share.stream and window.position == share.start:
            since = window.since
        if since <= share.oldest:
            share.used = True
            return share.encoding, share.after(share.oldest)
        share.followed = True
        return self._alone.compressed(parameters), share.after(since)

    def _begin(self, parameters: Parameters) -> Share:
        encoder = self._encoders.of(parameters)
        share = self._shares[parameters] = Share(parameters, encoder.stream, encoder.oldest)
        compressed = encoder.compress(self._data)
        share.stop = encoder.stream.stop
        share.encoding = None if compressed is None else Encoding(RSV1 | self.plain.first, compressed)
        return share

    @property
    def shared(self) -> bool | None:
        """Whether anybody could share the frame; None if nobody has asked."""
        return any(share.used for share in self._shares.values()) if self._shares else None

    def end(self) -> None:
        """Have nothing refer to messages any more that nobody holds."""
        for parameters, share in self._shares.items():
            if share.followed and not share.used and share.stream.stop == share.stop:
                self._encoders.of(parameters).start_over(share.start)


class Share:
    """What all connections with the same parameters have in common of a message.

    Args:
        parameters: Theirs.
        stream: All messages that the shared encoder has compressed.
        oldest: Position of the oldest byte that the frame may refer to.
    """

    __slots__ = ("_windows", "encoding", "followed", "oldest", "parameters", "start", "stop", "stream", "used")

    def __init__(self, parameters: Parameters, stream: Stream, oldest: int) -> None:
        self.parameters = parameters
        self.stream = stream
        self.oldest = oldest
        self.start = self.stop = stream.stop
        self.encoding: Encoding | None = None
        self.used = False  # by connections that share the frame
        self.followed = False  # by connections that do not share it yet
        self._windows: dict[int, Window] = {}

    def after(self, since: int) -> Window:
        """Return what windows hold after the message that held the stream since a position."""
        window = self._windows.get(since)
        if window is None:
            window = self._windows[since] = Window(self.parameters, self.stream, since, self.stop)
        return window


def encodings_for(encoders: SharedEncoders, message: PreparedMessage) -> Any:
    """Return the encodings of a message for those who share encoders."""
    if message.compress is False or message.size < SMALLEST_SHARED:
        return encodings_of(message)
    return Publication(encoders, message)
