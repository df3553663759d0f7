"""Transports whose ways are known: plain ones, which may be bypassed, and those of TLS, which may not."""

from __future__ import annotations

import asyncio.selector_events
import asyncio.sslproto
import sys

from . import TransportLayout, cache_by_type

__all__ = ["transport_layout"]

# asyncio. A transport that was shut down for writing needs no question: send() then fails with EPIPE, the frame goes
# to write(), and that raises the right error. `_empty_waiter` is set while loop.sendfile() owns the socket.
ASYNCIO = TransportLayout(
    direct=True,
    descriptor="_sock_fd",
    closing="_closing",
    clear=("_empty_waiter",),
    methods={"write": getattr(asyncio.selector_events, "_SelectorSocketTransport").write},  # noqa: B009
    try_write=False,
)

# uvloop. write_eof() does not reach the socket before the end of the loop's iteration; until then send() succeeds.
UVLOOP = TransportLayout(direct=True, descriptor=None, closing=None, clear=(), methods={}, try_write=True)

# aiofastnet, which picows puts in the place of asyncio's transports.
AIOFASTNET = TransportLayout(direct=True, descriptor=None, closing=None, clear=(), methods={}, try_write=True)

TLS = TransportLayout(
    direct=False,
    descriptor=None,
    closing=None,
    clear=(),
    methods={"write": getattr(asyncio.sslproto, "_SSLProtocolTransport").write},  # noqa: B009
    try_write=False,
)
UVLOOP_TLS = TransportLayout(direct=False, descriptor=None, closing=None, clear=(), methods={}, try_write=False)

KNOWN = {
    ("aiofastnet.selector_transport", "SelectorSocketTransport"): AIOFASTNET,
    ("asyncio.selector_events", "_SelectorSocketTransport"): ASYNCIO,
    ("asyncio.sslproto", "_SSLProtocolTransport"): TLS,
    ("uvloop.loop", "TCPTransport"): UVLOOP,
    ("uvloop.loop", "UnixTransport"): UVLOOP,
    ("uvloop.loop", "_SSLProtocolTransport"): UVLOOP_TLS,
}


@cache_by_type
def transport_layout(kind: type) -> TransportLayout | None:
    """Return how to ask transports of exactly this type, or None if they may do anything."""
    name = (kind.__module__, kind.__qualname__)
    layout = KNOWN.get(name)
    # Anybody may call a class as they like: it must also be the one that stands under this name.
    if layout is None or getattr(sys.modules.get(name[0]), name[1], None) is not kind:
        return None
    if any(not hasattr(kind, method) for method in ("is_closing", "get_write_buffer_size", "write")):
        return None
    return layout
