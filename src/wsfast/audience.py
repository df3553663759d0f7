"""Context takeover that is shared by all connections that receive the same messages (RFC 7692, section 7.1.1)."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, Literal

from ._broadcast import Delivery, fan_out
from ._encoding.deflate import Encoder, LazyEncoder, Parameters, Stream, compress_by
from ._encoding.message import RSV1, Encoding, Message, PreparedMessage, encodings_of, prepare

__all__ = ["Audience"]

SMALLEST_SHARED = 16
"""Bytes of the smallest payload that is compressed with the context of earlier ones."""


class Audience:
    """Connections that receive the same messages, and share the compression of them.

    `wsfast.broadcast()` compresses each message by itself. An audience compresses with context takeover: a message
    refers to those before it, and the more they are alike, the smaller it gets. For that, connections must hold the
    same messages in the windows that they decompress with. Nobody has to say who does: each time, a connection shares
    the frame if it has received all messages of the audience, and nothing else that was compressed, as far back as its
    window reaches. All others, as a newcomer, or a connection that was sent something for itself or was left out, get
    a frame that was compressed by itself, until their windows are again filled with messages of the audience. There
    are thus at most two compressions for each message and each set of parameters (window bits and settings).

    Worth it where most messages go to most of the connections. An audience holds an encoder (32 KiB with the defaults
    of websockets) for each set of parameters, and must always be used from the same thread.
    """

    def __init__(self) -> None:
        self._encoders: dict[Parameters, SharedEncoder] = {}
        self._thread: int | None = None

    def broadcast(
        self,
        connections: Iterable[Any],
        message: Message,
        raise_exceptions: bool = False,
        *,
        text: bool | None = None,
        compress: Literal[False] | None = None,
    ) -> Delivery:
        """Broadcast a message to several WebSocket connections, as `wsfast.broadcast()` does.

        Arguments, result and exceptions are the same, but that messages from 16 bytes on are compressed. One that
        does not shrink is compressed nevertheless until as much as a window holds was sent.

        Raises:
            RuntimeError: If the audience has been used from another thread.
        """
        prepared = prepare(message, text, compress)
        if self._thread not in (None, threading.get_ident()):
            raise RuntimeError("an Audience must always be used from the same thread; use loop.call_soon_threadsafe()")
        if prepared.compress is False or prepared.size < SMALLEST_SHARED:
            return fan_out(connections, prepared, encodings_of(prepared), raise_exceptions)
        publication = Publication(self, prepared)
        try:
            return fan_out(connections, prepared, publication, raise_exceptions)
        finally:
            publication.end()

    def encoder(self, parameters: Parameters) -> SharedEncoder:
        """Return the encoder of all connections with these parameters."""
        self._thread = threading.get_ident()
        try:
            return self._encoders[parameters]
        except KeyError:
            return self._encoders.setdefault(parameters, SharedEncoder(parameters))


class SharedEncoder:
    """The encoder of an audience, with one set of parameters.

    The invariant that keeps the bytes right: what it makes next may refer to the last bytes of its stream, as many as
    the window holds, but to none ahead of `start`. It may therefore be sent to whoever holds these, and nothing after
    them, at the end of the own window.

    Args:
        parameters: How the connections compress.
    """

    __slots__ = ("_encoder", "parameters", "start", "stream")

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.stream = Stream(parameters.window)
        self.start = 0
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
    """A message on its way to an audience: which connection gets it in which encoding."""

    def __init__(self, audience: Audience, message: PreparedMessage) -> None:
        self._audience = audience
        self._data = message.data
        self._alone = encodings_of(message)
        self._shares: dict[Parameters, Share] = {}
        self.plain = self._alone.plain

    def encoding_for(self, encoder: Encoder) -> Encoding:
        """Return what is to be sent to a connection with permessage-deflate, and have its encoder take note of it."""
        if not isinstance(encoder, LazyEncoder):
            return self._alone.encoding_for(encoder)
        share = self._shares.get(encoder.parameters)
        if share is None:
            share = self._begin(encoder.parameters)
        if share.encoding is None:
            return self.plain
        since = share.start
        if encoder.stream is share.stream and encoder.encoder is None and encoder.position == share.start:
            since = encoder.since
        if since <= share.oldest:
            share.used = True
            encoding = share.encoding
        else:
            share.followed = True
            encoding = self._alone.compressed(encoder.parameters)
        encoder.follow(share.stream, since, share.stop)  # last, when nothing can fail any more
        return encoding

    def take_back(self, encoder: Encoder) -> None:
        """Take note that what was last chosen for a connection was not sent."""
        share = self._shares.get(encoder.parameters)
        if share is None or not isinstance(encoder, LazyEncoder):
            encoder.forget()
        elif share.encoding is not None:
            encoder.rewind(share.stream, share.start, share.stop)

    def _begin(self, parameters: Parameters) -> Share:
        encoder = self._audience.encoder(parameters)
        share = self._shares[parameters] = Share(encoder.stream, encoder.oldest)
        compressed = encoder.compress(self._data)
        share.stop = encoder.stream.stop
        share.encoding = None if compressed is None else Encoding(RSV1 | self.plain.first, compressed)
        return share

    def end(self) -> None:
        """Take leave of messages that nobody can refer to any more."""
        for parameters, share in self._shares.items():
            if share.followed and not share.used and share.stream.stop == share.stop:
                self._audience.encoder(parameters).start_over(share.start)


class Share:
    """What all connections with the same parameters have in common of a message.

    Args:
        stream: All messages that the shared encoder has compressed.
        oldest: Position of the oldest byte that the frame may refer to.
    """

    __slots__ = ("encoding", "followed", "oldest", "start", "stop", "stream", "used")

    def __init__(self, stream: Stream, oldest: int) -> None:
        self.stream = stream
        self.oldest = oldest
        self.start = self.stop = stream.stop
        self.encoding: Encoding | None = None
        self.used = False  # by connections that share the frame
        self.followed = False  # by connections that do not share it yet
