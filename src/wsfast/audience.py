"""Audiences: `broadcast()` with context takeover that is shared by all who receive the same messages."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Literal

from ._broadcast import Delivery, fan_out
from ._encoding.message import Message, prepare
from ._encoding.shared import Publication, SharedEncoders, encodings_for

__all__ = ["Audience"]


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
        self._encoders = SharedEncoders()
        self._thread: int | None = None

    def broadcast(
        self,
        connections: Iterable[object],
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
        encodings = encodings_for(self._encoders, prepared)
        try:
            return fan_out(connections, prepared, encodings, raise_exceptions)
        finally:
            if isinstance(encodings, Publication):
                encodings.end()
                if len(self._encoders):
                    self._thread = threading.get_ident()
