"""Uniform access to connections of websockets and of other libraries."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from websockets.asyncio.connection import Connection
from websockets.protocol import OPEN

from wsfast._core import core
from wsfast._encoding.message import PreparedMessage

from . import is_closing as is_transport_closing
from . import name_of, transport_layout, unsupported
from .foreign import Closer, Ended, Foreign, abort, abort_later, watch_closing, why_closed
from .sink import Sink, SinkConnection, SinkTransport
from .websockets import (
    LOST,
    SEND_IN_PROGRESS,
    SET_EXCEPTION,
    closers_of_protocol,
    connection_layout,
    is_connection,
    send_by_protocol,
)

__all__ = [
    "PEER",
    "FlushFirst",
    "Lost",
    "NotOpenError",
    "attach",
    "bound_closing",
    "check_subscriber",
    "close",
    "closers_of",
    "has_left",
    "hook_closers",
    "is_closing",
    "is_open",
    "is_sending",
    "keep_reason",
    "origin_of",
    "peer_of",
    "send_message",
    "transport_of",
    "unhook_closers",
    "when_lost",
    "why_lost",
]

logger: logging.Logger = logging.getLogger("wsfast")

PEER = "_wsfast_peer"
"""Attribute of a connection: its `Peer`."""


def peer_of(connection: Any) -> core.Peer:
    """Return the peer of an open connection; create it at the first call."""
    peer: core.Peer | None = getattr(connection, PEER, None)
    if peer is None:
        peer = core.Peer(connection, connection_layout(type(connection)), transport_layout)
        known: core.Peer | None = getattr(connection, PEER, None)  # a finalizer may have created one meanwhile
        if known is not None:
            return known
        setattr(connection, PEER, peer)
    return peer


def transport_of(peer: core.Peer) -> Any:
    """Return the transport of a peer."""
    return peer.connection.transport if peer.transport is None else peer.transport


def is_open(connection: Any) -> bool:
    """Whether messages may be sent. In most libraries, the protocol does not know that its connection was lost."""
    if isinstance(connection, Foreign):
        return connection.state is OPEN and not is_closing(connection)
    return connection.protocol.state is OPEN


def is_closing(connection: Any) -> bool:
    """Whether the transport of a connection is closing and discards what is written to it."""
    return is_transport_closing(connection.transport)


def is_sending(connection: Any) -> bool:
    """Whether something is being sent that must not be interrupted."""
    if isinstance(connection, Foreign):
        return connection.send_in_progress is not None
    return getattr(connection, SEND_IN_PROGRESS) is not None


def send_message(connection: Any, message: PreparedMessage) -> None:
    """Send a message through the connection's own methods.

    Raises:
        ConcurrencyError: If a fragmented message is being sent.
    """
    if isinstance(connection, Foreign):
        connection.send_message(message)
    else:
        send_by_protocol(connection, message)


class NotOpenError(RuntimeError):
    """The connection is not open."""


def check_subscriber(connection: Any, loop: asyncio.AbstractEventLoop) -> None:
    """Check that a connection can be subscribed to a channel of an event loop.

    Raises:
        TypeError: If the connection is not supported.
        NotOpenError: If the connection is not open.
        RuntimeError: If the connection belongs to another event loop.
    """
    if not isinstance(connection, Foreign) and not (is_connection(connection) and hasattr(connection, LOST)):
        raise unsupported(connection, "subscribe")
    if isinstance(connection, Foreign) and not connection.bounded:
        raise TypeError(
            f"cannot subscribe connections of {connection.library}: they do not report whether they have room; "
            "use broadcast() for them"
        )
    if connection.loop is not loop:
        raise RuntimeError("the connection belongs to another event loop; use a channel or hub of that event loop")
    if not is_open(connection):
        raise NotOpenError("the connection is not open")


def when_lost(connection: Any) -> Any:
    """Return a future that is done when a subscribed connection is lost.

    From now on, the connection is aborted if closing it takes too long.
    """
    waiter = getattr(connection, LOST)
    if isinstance(connection, Connection) and connection.close_timeout is not None and not waiter.done():
        watch_closing(connection)  # its close() waits for room in the transport, without a limit
    return waiter


def origin_of(connection: Any) -> Any:
    """Return the connection as the user knows it."""
    return connection.origin if isinstance(connection, Foreign) else connection


async def close(connection: Any, code: int, reason: str) -> None:
    """Close a connection; abort it if that fails or takes too long. Nothing waits for this, and it always ends."""
    transport = connection.transport
    seconds = None  # a sink is closed when its close() returns
    if not isinstance(transport, SinkTransport):
        seconds = abort_later(transport, connection.loop, getattr(connection, "close_timeout", None))
    try:
        async with asyncio.timeout(seconds):
            await connection.close(code, reason)
    except BaseException as exc:
        abort(transport)
        if not isinstance(exc, Exception):
            raise
        logger.warning("could not close %s: %r", connection.id, exc)


def bound_closing(connection: Any, transport: Any) -> None:
    """Make sure that a connection which is being closed has an end, whatever becomes of the task that closes it."""
    if not isinstance(transport, SinkTransport):  # a sink is closed when its close() returns
        abort_later(transport, connection.loop, getattr(connection, "close_timeout", None))


def has_left(connection: Any, transport: Any) -> bool:
    """Whether a connection is gone, and nothing of it waits to be written."""
    try:
        if isinstance(connection, Foreign):
            return connection.has_left(transport)
        return bool(getattr(connection, LOST).done())
    except Exception:  # what has no state is not connected
        return True


def keep_reason(connection: Any, errno: int) -> None:
    """Store an error, which the kernel reports only once, as the reason why a connection was lost."""
    exc = OSError(errno, os.strerror(errno))
    if isinstance(connection, Foreign):
        connection.keep_reason(exc)
    else:
        getattr(connection, SET_EXCEPTION)(exc)


class FlushFirst:
    """Replaces a method that sends close frames: messages published for the connection leave before the close frame."""

    __slots__ = ("closes", "method", "peer")

    def __init__(self, peer: core.Peer, method: Callable[..., Any], closes: Callable[..., bool]) -> None:
        self.peer: core.Peer = peer
        self.method: Callable[..., Any] = method
        self.closes: Callable[..., bool] = closes

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the method."""
        dispatcher = self.peer.dispatcher
        if dispatcher is not None and self.closes(*arguments, **options):
            dispatcher.flush_last(self.peer)
            self.peer.invalidate()
        return self.method(*arguments, **options)


def hook_closers(peer: core.Peer, connection: Any) -> None:
    """Make messages published for a connection leave before its close frame, whatever code sends the close frame."""
    for owner, name, closes in closers_of(connection):
        method = getattr(owner, name)
        if type(method) is not FlushFirst:
            object.__setattr__(owner, name, FlushFirst(peer, method, closes))


def unhook_closers(connection: Any) -> None:
    """Undo `hook_closers()`, when nothing is published for the connection any more."""
    for owner, name, _ in closers_of(connection):
        method = getattr(owner, name)
        if type(method) is FlushFirst:
            object.__delattr__(owner, name)
            if getattr(owner, name) != method.method:  # it was replaced before
                object.__setattr__(owner, name, method.method)


def closers_of(connection: Any) -> Sequence[Closer]:
    """Return the methods of a connection that send close frames."""
    return connection.closers() if isinstance(connection, Foreign) else closers_of_protocol(connection.protocol)


def why_lost(connection: Any) -> Ended:
    """Return why a connection was lost, as far as that is known."""
    try:
        return connection.why_lost() if isinstance(connection, Foreign) else why_closed(connection.protocol)
    except Exception:  # a stand-in for a connection, or another release of a library, may not have this information
        return Ended.LOST


class Lost:
    """Ends all subscriptions of a peer when its connection is lost."""

    __slots__ = ("peer",)

    def __init__(self, peer: core.Peer) -> None:
        self.peer: core.Peer = peer

    def __call__(self, _: object) -> None:
        """End the subscriptions."""
        if self.peer.dispatcher is not None:
            self.peer.dispatcher.end(self.peer)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lost) and self.peer is other.peer

    def __hash__(self) -> int:
        return hash(id(self.peer))


def attach(transport: asyncio.Transport | Sink, connection: object = None) -> Foreign:
    """Return an object that represents a connection of your own in `broadcast()` and `Channel.subscribe()`.

    - `attach(sink)`: a server-side connection of your own that can write frames, report whether it has room, and close:
      see `Sink`. Messages are not compressed.
    - `attach(transport, connection)`: a connection of wsproto, server or client side, after its handshake, and the
      asyncio transport that its bytes are written to. The bytes that its `send()` returns must be written before
      anything is broadcast or flushed, and before control returns to the event loop, because data that is compressed
      later must not leave earlier. If the connection negotiated permessage-deflate, messages are compressed, once for
      all connections.
    - `attach(sink, connection)`: the same, but the bytes go to a sink, for example into the DATA frames of an HTTP/2
      stream (RFC 8441). `close()` of the sink must send the close frame.

    Args:
        transport: An asyncio transport or a `Sink`.
        connection: A `wsproto.WSConnection` or `wsproto.connection.Connection`; None for a sink alone.

    Returns:
        The object to pass to `broadcast()` and `subscribe()`.

    Raises:
        TypeError: If an argument has another type.
        RuntimeError: If no event loop is running, or the handshake is not complete.
    """
    if connection is None:
        return SinkConnection(transport, asyncio.get_running_loop())
    if not type(connection).__module__.startswith("wsproto"):
        raise TypeError(f"connection must be a connection of wsproto, not {name_of(type(connection))}")
    from .wsproto import attach

    return attach(transport, connection)
