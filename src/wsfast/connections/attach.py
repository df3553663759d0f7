"""Connections that no library holds together: a sans-I/O connection and its transport, or a way to write."""

from __future__ import annotations

import asyncio

from . import name_of
from .foreign import Foreign
from .sink import Sink, SinkConnection

__all__ = ["Sink", "attach"]


def attach(transport: asyncio.Transport | Sink, connection: object = None) -> Foreign:
    """Return what stands for a connection in `broadcast()` and `Channel.subscribe()`.

    - `attach(sink)`: a connection of your own, server side, that can write frames, say whether it has room, and close:
      see `Sink`. Messages are not compressed.
    - `attach(transport, connection)`: a connection of wsproto, either side, after its handshake, and the asyncio
      transport that its bytes are written to. What it returns from `send()` must be written before anything is
      broadcast or flushed, and before the event loop goes on: what is compressed later must not go out before it.
      Messages are compressed, once for all, if it has negotiated permessage-deflate.
    - `attach(sink, connection)`: the same, its bytes going elsewhere, as into the DATA frames of a stream of HTTP/2
      (RFC 8441). `close()` of the sink is to send the close frame.

    Args:
        transport: An asyncio transport or a `Sink`.
        connection: A `wsproto.WSConnection` or `wsproto.connection.Connection`; None for a sink alone.

    Raises:
        TypeError: If an argument is none of these.
        RuntimeError: If no event loop is running, or the handshake is not complete.
    """
    if connection is None:
        return SinkConnection(transport, asyncio.get_running_loop())
    if not type(connection).__module__.startswith("wsproto"):
        raise TypeError(f"connection must be one of wsproto, not {name_of(type(connection))}")
    from .wsproto import attach

    return attach(transport, connection)
