"""What each library calls the things that a fan-out has to ask a connection and its transport.

This package is the only place that knows private names of other libraries. It resolves them once for each type and
hands them over as data, a `ConnectionLayout` or a `TransportLayout`; the core asks by these names and knows none.
"""

from __future__ import annotations

import _ssl
import asyncio.selector_events
import asyncio.sslproto
import functools
import importlib
import ssl
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary, ref

from wsfast._encoding.deflate import Encoder

__all__ = [
    "ConnectionLayout",
    "EncryptedLayout",
    "TransportLayout",
    "adapt",
    "adapter_of",
    "cache_by_type",
    "discards",
    "is_buffering",
    "is_closing",
    "is_sync",
    "name_of",
    "transport_layout",
    "unsupported",
]

T = TypeVar("T")


def cache_by_type(function: Callable[[type], T]) -> Callable[[type], T]:
    """Ask a function about each type only once, and do not keep types alive for that."""
    answers: WeakKeyDictionary[type, T] = WeakKeyDictionary()

    @functools.wraps(function)
    def answer(kind: type) -> T:
        try:
            return answers[kind]
        except KeyError:
            return answers.setdefault(kind, function(kind))

    return answer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConnectionLayout:
    """Where one type of connections keeps what must be known before a frame may be written to its descriptor.

    All of them are attributes whose reading runs no code of the user's, and has no peer be invalidated.
    """

    protocol: str
    """Attribute of the connection: the sans-I/O protocol. Never changes."""
    protocol_type: type
    """The exact type that the protocol must have: one whose way of sending is known."""
    transport: str
    """Attribute of the connection: its transport. Does not change while the connection is open."""
    loop: str
    """Attribute of the connection: the event loop that runs it. Never changes."""
    send_in_progress: str
    """Attribute of the connection, or of its `gate`: what `idle` is, unless something is being sent that must not be
    interrupted."""
    state: str
    """Attribute of the protocol: the state of the connection."""
    open_state: object
    """What `state` is while messages may be sent."""
    debug: str | None
    """Attribute of the protocol: False, unless frames are logged. Does not change while the connection is open. None
    if there is no such thing, as below."""
    extensions: str | None
    """Attribute of the protocol: what `encoder` is given, and does not change while the connection is open; None to
    give it the connection."""
    encoder: Callable[[Any], Encoder | Literal[False] | None]
    """Function of the extensions, or of the connection: what compresses messages; None if nothing does; False if what
    they do to a message is not known, or depends on the connection. A `LazyEncoder` is put in the place of an encoder
    that is not one."""
    expect_continuation: str | None
    """Attribute of the protocol: False, unless the next data frame must be a continuation."""
    writes: str | None
    """Attribute of the protocol: list of what is to be written before anything else."""
    methods: Mapping[str, object]
    """Methods of the connection that send, as functions. One that was replaced on the connection itself must be called;
    whether there is one is asked when the connection is first sent to."""
    protocol_methods: Mapping[str, object]
    """The same, for the protocol."""
    masked: bool
    """Whether frames must be masked: True on the client side (RFC 6455, section 5.3)."""
    gate: str | None = None
    """Attribute of the connection: what has `send_in_progress`, and never changes; None if the connection has it."""
    idle: object = None
    """What `send_in_progress` is while nothing is being sent."""
    tells: bool = False
    """Whether the connection invalidates its peer whenever any of this may have changed."""
    watch: Callable[[Any, ref[Any]], None] | None = None
    """Function of the protocol and of a reference to the peer: has the protocol invalidate the peer whenever `state`,
    `send_in_progress`, `expect_continuation` or `writes` may have changed. None if that is not possible, or no use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportLayout:
    """How one type of transports tells what gather must know before it may write to the descriptor."""

    direct: bool
    """Whether the socket carries exactly the bytes that are written. If not, only the transport may write."""
    descriptor: str | None
    """Attribute that holds the descriptor; None to ask `get_extra_info("socket")`."""
    closing: str | None
    """Attribute that tells whether it is closing; None to call `is_closing()`."""
    clear: tuple[str, ...]
    """Attributes that must be None."""
    methods: Mapping[str, object]
    """Methods that write, as functions; one that was replaced on the transport itself must be called."""
    try_write: bool
    """Whether `write(b"")` must be called, since only that tells that the transport was shut down for writing."""
    is_closing: Callable[[Any], bool] | None = None
    """Function of the transport that tells whether it is closing; None for its own method."""
    buffer: str | None = None
    """Attribute that is empty unless something waits to be written; None to call `get_write_buffer_size()`."""
    encrypted: EncryptedLayout | None = None
    """How to encrypt a frame for it and write that to the descriptor beneath; None if only its `write()` may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptedLayout:
    """How one type of transports encrypts, by attributes whose reading runs no code of Python's.

    What is encrypted is in a queue, which whoever sends next on this connection sends first.
    """

    protocol: str
    """Attribute of the transport: what encrypts for it, and is the protocol of the transport beneath."""
    protocol_type: type
    """The exact type of that."""
    methods: Mapping[str, object]
    """Its methods that write, as functions; one that was replaced on the protocol itself must be called."""
    writer: tuple[tuple[str, type], ...]
    """Attributes that lead from the protocol to what has `write()`, which encrypts, and the exact type of each."""
    outgoing: tuple[str, type]
    """Attribute of the protocol: the queue, which has `pending` and `read()`; its exact type."""
    transport: str
    """Attribute of the protocol: the transport beneath, or None when that is lost."""
    state: str
    """Attribute of the protocol: what `open_state` is while messages may be encrypted."""
    open_state: object
    clear: tuple[str, ...]
    """Attributes of the protocol that must be empty or False."""
    flush: str
    """Method of the protocol: sends what is in the queue."""
    errors: type[Exception]
    """What `write()` raises if it has encrypted nothing."""


ADAPTERS = {
    ("aiohttp.client_ws", "ClientWebSocketResponse"): "aiohttp",
    ("aiohttp.web_ws", "WebSocketResponse"): "aiohttp",
    ("litestar.connection.websocket", "WebSocket"): "foreign:adapt_asgi",
    ("picows.picows", "WSTransport"): "picows",
    ("picows.websockets.asyncio.connection", "ConnectionBase"): "picows:adapt_websockets",
    ("quart.wrappers.websocket", "Websocket"): "foreign:adapt_asgi",
    ("starlette.websockets", "WebSocket"): "foreign:adapt_asgi",
    ("websockets.legacy.protocol", "WebSocketCommonProtocol"): "legacy",
    ("werkzeug.local", "LocalProxy"): "foreign:adapt_proxy",
}
"""By the module and the name of each class of connections of other libraries, the module here that adapts them, and its
function if that is not `adapt`."""


@cache_by_type
def adapter_of(kind: type) -> Callable[[Any], Any] | None:
    """Return what makes connections of this type known to a fan-out; None if they are, or nothing can."""
    for base in kind.__mro__:
        name = ADAPTERS.get((base.__module__, base.__qualname__))
        if name is not None:
            module, _, function = name.partition(":")
            adapt: Callable[[Any], Any] = getattr(importlib.import_module(f"{__name__}.{module}"), function or "adapt")
            return adapt
    return None


@cache_by_type
def is_sync(kind: type) -> bool:
    """Whether connections of this type are those of websockets.sync, which belong to threads."""
    return any(
        (base.__module__, base.__qualname__) == ("websockets.sync.connection", "Connection") for base in kind.__mro__
    )


def adapt(connection: Any) -> Any:
    """Return a connection in the shape in which a fan-out knows it.

    Raises:
        TypeError: If it is of a library that is supported, but not as it is used here.
        RuntimeError: If it has not been opened yet.
    """
    adapter = adapter_of(type(connection))
    return connection if adapter is None else adapter(connection)


def name_of(kind: type) -> str:
    """Return the name of a type, as it stands in messages."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def unsupported(connection: Any, what: str = "broadcast to") -> TypeError:
    """Return the error that tells that `connection` is none, and what is supported."""
    if type(connection).__module__.startswith("websockets.trio"):
        return TypeError(f"cannot {what} connections of websockets.trio; use await wsfast.trio.broadcast()")
    return TypeError(
        f"cannot {what} {name_of(type(connection))}; supported are connections of websockets, WebSockets of "
        "Starlette, FastAPI, Litestar and Quart under uvicorn, of aiohttp and picows, and what wsfast.attach() returns"
    )


# asyncio. A transport that was shut down for writing needs no question: send() then fails with EPIPE, the frame goes
# to write(), and that raises the right error. `_empty_waiter` is set while loop.sendfile() owns the socket. `_buffer`
# is a bytearray, and since Python 3.12 a deque, of which get_write_buffer_size() adds up all that is in it.
ASYNCIO = TransportLayout(
    direct=True,
    descriptor="_sock_fd",
    closing="_closing",
    clear=("_empty_waiter",),
    methods={"write": getattr(asyncio.selector_events, "_SelectorSocketTransport").write},  # noqa: B009
    try_write=False,
    buffer="_buffer",
)

# uvloop. write_eof() does not reach the socket before the end of the loop's iteration; until then send() succeeds.
UVLOOP = TransportLayout(direct=True, descriptor=None, closing=None, clear=(), methods={}, try_write=True)

# aiofastnet, which picows puts in the place of asyncio's transports.
AIOFASTNET = TransportLayout(direct=True, descriptor=None, closing=None, clear=(), methods={}, try_write=True)


def _is_closing_tls(transport: Any) -> bool:
    """Whether a TLS transport of asyncio is closing, or the one beneath, which that of Python 3.11 does not tell."""
    if transport.is_closing():
        return True
    beneath = transport._ssl_protocol._transport
    return beneath is None or bool(beneath.is_closing())


# asyncio's protocol encrypts into a MemoryBIO (`_outgoing`) and empties that at the end of whatever it does, unless the
# transport beneath has had it pause. `_write_backlog` is what is not encrypted yet; only write() resets
# `_app_writing_paused`. The names are those of CPython 3.11 to 3.14.
ENCRYPTED = EncryptedLayout(
    protocol="_ssl_protocol",
    protocol_type=asyncio.sslproto.SSLProtocol,
    methods={
        name: getattr(asyncio.sslproto.SSLProtocol, name, None)
        for name in ("_write_appdata", "_do_write", "_process_outgoing")
    },
    writer=(("_sslobj", ssl.SSLObject), ("_sslobj", getattr(_ssl, "_SSLSocket"))),  # noqa: B009
    outgoing=("_outgoing", ssl.MemoryBIO),
    transport="_transport",
    state="_state",
    open_state=asyncio.sslproto.SSLProtocolState.WRAPPED,
    clear=("_write_backlog", "_ssl_writing_paused", "_app_writing_paused"),
    flush="_process_outgoing",
    errors=ssl.SSLError,
)
TLS = TransportLayout(
    direct=False,
    descriptor=None,
    closing=None,
    clear=(),
    methods={"write": getattr(asyncio.sslproto, "_SSLProtocolTransport").write},  # noqa: B009
    try_write=False,
    is_closing=_is_closing_tls,
    encrypted=ENCRYPTED if sys.version_info < (3, 15) else None,  # what later ones do has not been read
)
UVLOOP_TLS = TransportLayout(direct=False, descriptor=None, closing=None, clear=(), methods={}, try_write=False)

AIOFASTNET_TLS = TransportLayout(direct=False, descriptor=None, closing=None, clear=(), methods={}, try_write=False)

KNOWN = {
    ("aiofastnet.ssl_transport", "SSLTransport_Socket"): AIOFASTNET_TLS,
    ("aiofastnet.ssl_transport", "SSLTransport_Transport"): AIOFASTNET_TLS,
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


def is_closing(transport: Any) -> bool:
    """Whether a transport is closing."""
    layout = transport_layout(type(transport))
    ask = None if layout is None else layout.is_closing
    return bool(transport.is_closing() if ask is None else ask(transport))


def is_buffering(transport: Any) -> bool:
    """Whether something waits in the write buffer of a transport."""
    layout = transport_layout(type(transport))
    name = None if layout is None else layout.buffer
    return bool(transport.get_write_buffer_size() if name is None else getattr(transport, name))


def discards(transport: Any) -> bool:
    """Whether a transport throws away what it is given from now on. asyncio logs a warning for each write then."""
    layout = transport_layout(type(transport))
    if layout is None or not is_closing(transport):
        return False
    if layout.direct and is_buffering(transport):
        return False  # it still takes more, until that is written
    return all(getattr(getattr(transport, name), "__func__", None) is method for name, method in layout.methods.items())
