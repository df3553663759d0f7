"""Connections that tell what happens to them, so that they need not be asked each time before they are written to.

Whatever happens to a connection, its protocol or its transport has a part in it. So whoever asks for one of them, also
a method of the connection itself, has the connection's peer be invalidated: it is looked at before it is next written
to. Where the connection is whole again at the end, it is looked at right then.
"""

from __future__ import annotations

from typing import Any

from wsfast._core import core

__all__ = ["Telling", "watched"]


def watched(name: str) -> property:
    """Make a property of connections that invalidates their peer; wsfast itself reads the attribute behind it."""
    private = f"_wsfast_{name}"

    def get(connection: Any) -> Any:
        peer = connection._wsfast_peer
        if peer is not None:
            peer.invalidate()
        return getattr(connection, private)

    def put(connection: Any, value: Any) -> None:
        peer = connection._wsfast_peer
        if peer is not None:
            peer.invalidate()
        setattr(connection, private, value)

    return property(get, put, doc="Whoever asks for it may do anything with it.")


class Telling:
    """A protocol of asyncio that tells what happens to it; it stands before that of a library.

    A subclass has its sans-I/O protocol `watched`, too, begins what sends for itself with `_wsfast_flush()` and ends it
    with `_wsfast_check()`.
    """

    _wsfast_peer: Any = None

    transport: Any = watched("transport")

    def data_received(self, data: bytes) -> None:
        """Receive data."""
        super().data_received(data)  # type: ignore[misc]
        self._wsfast_check()

    def eof_received(self) -> None:
        """Invalidate the peer: the transport may close after this."""
        peer = self._wsfast_peer
        if peer is not None:
            peer.invalidate()
        super().eof_received()  # type: ignore[misc]

    def connection_lost(self, exc: Exception | None) -> None:
        """End all subscriptions, before the descriptor is closed."""
        peer = self._wsfast_peer
        try:
            if peer is not None:
                peer.invalidate()
                if peer.dispatcher is not None:
                    peer.dispatcher.end(peer)
        finally:
            super().connection_lost(exc)  # type: ignore[misc]

    async def _wsfast_flush(self, *, wait: bool = True) -> None:
        """Send what was published before; wait until it has left if it may not be overtaken."""
        peer = self._wsfast_peer
        if peer is not None and peer.dispatcher is not None:
            peer.dispatcher.flush_for(peer)
            if wait:
                await peer.dispatcher.drained(peer)

    def _wsfast_check(self) -> None:
        """Look whether the connection may be written to without a question."""
        peer = self._wsfast_peer
        if peer is None or (not peer.direct and peer.backlog is None):
            return
        if peer.check(self) == core.Verdict.CLOSED and peer.backlog is not None:
            peer.dispatcher.drain(peer)  # whoever waits to send is to hear of it
