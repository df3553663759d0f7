"""Context takeover that is shared by all connections that receive the same messages (RFC 7692, section 7.1.1)."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, Literal

from .broadcast import Delivery, fan_out
from .deflate import Encoder, LazyEncoder, Parameters, compress_by
from .message import RSV1, Encoding, Message, PreparedMessage, prepare

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
        self._streams: dict[Parameters, SharedStream] = {}
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
        if self._thread is None:
            self._thread = threading.get_ident()
        elif self._thread != threading.get_ident():
            raise RuntimeError("an Audience must always be used from the same thread; use loop.call_soon_threadsafe()")
        if not prepared.compress or prepared.size < SMALLEST_SHARED:
            return fan_out(connections, prepared, prepared, raise_exceptions)
        publication = Publication(self._streams, prepared)
        try:
            return fan_out(connections, prepared, publication, raise_exceptions)
        finally:
            publication.end()


class SharedStream:
    """The messages that an audience has compressed, with one set of parameters, one after the other.

    Positions count bytes of messages since the beginning. The invariant that keeps the bytes right: what the encoder
    makes next may refer to the last bytes of the stream, as many as the window holds, but to none ahead of `start`. It
    may therefore be sent to whoever holds these, and nothing after them, at the end of the own window.

    Args:
        parameters: How the connections compress.
    """

    __slots__ = ("_encoder", "_tail", "parameters", "start", "stop")

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.start = self.stop = 0
        self._encoder: Any = None
        self._tail = b""

    @property
    def oldest(self) -> int:
        """Position of the oldest byte that the next message may refer to."""
        return max(self.start, self.stop - self.parameters.window)

    def between(self, start: int, stop: int) -> bytes:
        """Return the messages from one position to another, or as much of their end as a window holds."""
        first = self.stop - len(self._tail)
        return self._tail[max(start - first, 0) : max(stop - first, 0)]

    def append(self, data: bytes) -> bytes | None:
        """Compress a message; None if it does not shrink, and then it is not part of the stream.

        While the window is not full yet, it always is: the first messages shrink little, but later ones will.
        """
        if self._encoder is None:
            encoder = self.parameters.encoder(self.between(self.start, self.stop))
        else:
            encoder = self._encoder.copy()
        compressed = compress_by(encoder, data)
        if len(compressed) >= len(data) and self.stop - self.start >= self.parameters.window:
            return None
        tail = (self._tail + data)[-self.parameters.window :]
        stop = self.stop + len(data)
        # All or nothing: no call between these, where a signal handler could raise an exception.
        self._encoder, self._tail, self.stop = encoder, tail, stop
        return compressed

    def start_over(self, start: int) -> None:
        """Refer to nothing ahead of a position any more."""
        self.start = start
        self._encoder = None


class Publication:
    """A message on its way to an audience: which connection gets it in which encoding."""

    def __init__(self, streams: dict[Parameters, SharedStream], message: PreparedMessage) -> None:
        self.plain = message.plain
        self._message = message
        self._streams = streams
        self._shares: dict[Parameters, Share] = {}

    def encoding_for(self, encoder: Encoder) -> Encoding:
        """Return what is to be sent to a connection with permessage-deflate, and have its encoder take note of it."""
        if not isinstance(encoder, LazyEncoder):
            return self._message.encoding_for(encoder)
        share = self._shares.get(encoder.parameters)
        if share is None:
            share = self._shares[encoder.parameters] = self._begin(encoder.parameters)
        if share.shared is None:
            return self.plain
        since = share.start
        if encoder.stream is share.stream and encoder.encoder is None and encoder.position == share.start:
            since = encoder.since
        if since <= share.oldest:
            share.used = True
            encoding = share.shared
        else:
            share.followed = True
            encoding = self._message.compressed(encoder.parameters)
        encoder.follow(share.stream, since, share.stop)  # last, when nothing can fail any more
        return encoding

    def _begin(self, parameters: Parameters) -> Share:
        stream = self._streams.get(parameters)
        if stream is None:
            stream = self._streams[parameters] = SharedStream(parameters)
        return Share(stream, self._message)

    def end(self) -> None:
        """Take leave of messages that nobody can refer to any more."""
        for share in self._shares.values():
            if share.followed and not share.used and share.stream.stop == share.stop:
                share.stream.start_over(share.start)


class Share:
    """What is known of a message for all connections with the same parameters."""

    __slots__ = ("followed", "oldest", "shared", "start", "stop", "stream", "used")

    def __init__(self, stream: SharedStream, message: PreparedMessage) -> None:
        self.stream = stream
        self.start = stream.stop
        self.oldest = stream.oldest
        compressed = stream.append(message.data)
        self.stop = stream.stop
        self.shared = None if compressed is None else Encoding(message.plain.first | RSV1, compressed)
        self.used = False  # by connections that share it
        self.followed = False  # by connections that do not share it yet
