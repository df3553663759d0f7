"""Adapters: where each library keeps the state of its connections and transports that a fan-out reads.

This package is the only place that knows private names of other libraries. It looks them up once for each type and
passes them on as data, in a `ConnectionLayout` or a `TransportLayout`. The core reads the attributes with these names
and contains no such name itself.
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
from dataclasses import dataclass, replace
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
    """Cache the results of a function of a type, without keeping the types alive."""
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
    """Where one type of connections keeps the state that must be known before writing a frame to its descriptor.

    Reading any of these attributes runs no user code and does not invalidate a peer.
    """

    protocol: str
    """Attribute of the connection: the sans-I/O protocol. Never changes."""
    protocol_type: type
    """The exact type that the protocol must have, because wsfast knows how this type sends."""
    transport: str
    """Attribute of the connection: its transport. Does not change while the connection is open."""
    loop: str
    """Attribute of the connection: the event loop that runs it. Never changes."""
    send_in_progress: str
    """Attribute of the connection, or of its `gate`. Equals `idle`, unless something is being sent that must not be
    interrupted."""
    state: str
    """Attribute of the protocol: the state of the connection."""
    open_state: object
    """The value of `state` while messages may be sent."""
    debug: str | None
    """Attribute of the protocol: False, unless frames are logged. Does not change while the connection is open. None
    if the library has no such attribute; the same holds for the fields below."""
    extensions: str | None
    """Attribute of the protocol: the argument for `encoder`. Does not change while the connection is open. None to pass
    the connection to `encoder`."""
    encoder: Callable[[Any], Encoder | Literal[False] | None]
    """Function of the extensions, or of the connection. Returns the encoder that compresses messages, None if nothing
    compresses them, or False if it is unknown what the extensions do to a message or that depends on the connection.
    It replaces an encoder of another type by a `LazyEncoder`."""
    expect_continuation: str | None
    """Attribute of the protocol: False, unless the next data frame must be a continuation."""
    writes: str | None
    """Attribute of the protocol: list of data that must be written before anything else."""
    methods: Mapping[str, object]
    """Methods of the connection that send, as functions. If one was replaced on the connection itself, the replacement
    must be called. wsfast checks this when it first sends to the connection."""
    protocol_methods: Mapping[str, object]
    """The same for the protocol."""
    masked: bool
    """Whether frames must be masked: True on the client side (RFC 6455, section 5.3)."""
    gate: str | None = None
    """Attribute of the connection: the object that has `send_in_progress`. Never changes. None if the connection has
    it itself."""
    idle: object = None
    """The value of `send_in_progress` while nothing is being sent."""
    reports: bool = False
    """Whether the connection reports changes: it invalidates its peer whenever any of these values may have changed."""
    watch: Callable[[Any, ref[Any]], None] | None = None
    """Function of the protocol and of a reference to the peer. It makes the protocol invalidate the peer whenever
    `state`, `send_in_progress`, `expect_continuation` or `writes` may have changed. None if that is impossible or
    useless."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportLayout:
    """Where one type of transports keeps the state that gather must know before writing to the descriptor."""

    direct: bool
    """Whether the socket carries exactly the bytes that are written. If not, only the transport may write."""
    descriptor: str | None
    """Attribute that holds the descriptor; None to use `get_extra_info("socket")`."""
    closing: str | None
    """Attribute that is true while the transport is closing; None to call `is_closing()`."""
    clear: tuple[str, ...]
    """Attributes that must be None."""
    methods: Mapping[str, object]
    """Methods that write, as functions. If one was replaced on the transport itself, the replacement must be called."""
    try_write: bool
    """Whether `write(b"")` must be called, because nothing else shows that the transport was shut down for writing."""
    is_closing: Callable[[Any], bool] | None = None
    """Function of the transport that returns whether it is closing; None to use the transport's own method."""
    buffer: str | None = None
    """Attribute that is empty unless data waits to be written; None to call `get_write_buffer_size()`."""
    encrypted: EncryptedLayout | None = None
    """How to encrypt a frame and write the result to the descriptor beneath; None if only `write()` may do this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptedLayout:
    """How one type of transports encrypts. Reading any of these attributes runs no Python code.

    Encrypted data goes into a queue. The next send on this connection, by any code, sends the queue's contents first.
    """

    protocol: str
    """Attribute of the transport: the object that encrypts for it, which is the protocol of the transport beneath."""
    protocol_type: type
    """The exact type of that protocol."""
    methods: Mapping[str, object]
    """Methods of the protocol that write, as functions. If one was replaced on the protocol itself, the replacement
    must be called."""
    writer: tuple[tuple[str, type], ...]
    """Path of attributes from the protocol to the object whose `write()` encrypts, with the exact type of each."""
    outgoing: tuple[str, type]
    """Attribute of the protocol: the queue, which has `pending` and `read()`; and the exact type of the queue."""
    transport: str
    """Attribute of the protocol: the transport beneath, or None once that is lost."""
    state: str
    """Attribute of the protocol: equals `open_state` while messages may be encrypted."""
    open_state: object
    clear: tuple[str, ...]
    """Attributes of the protocol that must be empty or False."""
    flush: str
    """Method of the protocol: sends the contents of the queue."""
    errors: type[Exception]
    """The exception that `write()` raises if it encrypted nothing."""


ADAPTERS = {
    ("aiohttp.client_ws", "ClientWebSocketResponse"): "aiohttp",
    ("aiohttp.web_ws", "WebSocketResponse"): "aiohttp",
    ("litestar.connection.websocket", "WebSocket"): "asgi",
    ("picows.picows", "WSTransport"): "picows",
    ("picows.websockets.asyncio.connection", "ConnectionBase"): "picows:adapt_websockets",
    ("quart.wrappers.websocket", "Websocket"): "asgi",
    ("sanic.server.websockets.impl", "WebsocketImplProtocol"): "sanic",
    ("starlette.websockets", "WebSocket"): "asgi",
    ("tornado.websocket", "WebSocketHandler"): "tornado",
    ("websockets.legacy.protocol", "WebSocketCommonProtocol"): "legacy",
    ("werkzeug.local", "LocalProxy"): "foreign:adapt_proxy",
}
"""Maps the module and name of each class of foreign connections to the module here that adapts them, followed by the
function in it if that is not `adapt`."""


@cache_by_type
def adapter_of(kind: type) -> Callable[[Any], Any] | None:
    """Return the function that adapts connections of this type; None if they need none, or if there is none."""
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
    """Return an object that a fan-out can send to: the connection itself, or a `Foreign` that represents it.

    Raises:
        TypeError: If its library is supported, but not the way in which it is used here.
        RuntimeError: If the connection has not been opened yet.
    """
    adapter = adapter_of(type(connection))
    return connection if adapter is None else adapter(connection)


def name_of(kind: type) -> str:
    """Return the name of a type for use in messages."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def unsupported(connection: Any, what: str = "broadcast to") -> TypeError:
    """Return an error that says that `connection` is not supported, and which connections are."""
    if type(connection).__module__.startswith("websockets.trio"):
        return TypeError(f"cannot {what} connections of websockets.trio; use await wsfast.trio.broadcast()")
    return TypeError(
        f"cannot {what} {name_of(type(connection))}; supported are connections of websockets, aiohttp, picows, Sanic "
        "and Tornado, WebSockets of FastAPI, Starlette, Litestar and Quart, and objects that wsfast.attach() returns"
    )


# asyncio. There is no need to check whether the transport was shut down for writing: send() then fails with EPIPE, the
# frame goes to write(), and write() raises the right error. `_empty_waiter` is set while loop.sendfile() owns the
# socket. `_buffer` is a bytearray; since Python 3.12, it is a deque, and get_write_buffer_size() sums up all its items.
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

# aiofastnet, which picows uses instead of asyncio's transports.
AIOFASTNET = TransportLayout(direct=True, descriptor=None, closing=None, clear=(), methods={}, try_write=True)


def _is_closing_tls(transport: Any) -> bool:
    """Whether a TLS transport of asyncio, or the transport beneath, is closing. Python 3.11 reports only the first."""
    if transport.is_closing():
        return True
    beneath = transport._ssl_protocol._transport
    return beneath is None or bool(beneath.is_closing())


# asyncio's protocol encrypts into a MemoryBIO (`_outgoing`) and empties it at the end of each operation, unless the
# transport beneath asked it to pause. `_write_backlog` holds data that is not encrypted yet. Only write() resets
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
    encrypted=ENCRYPTED if sys.version_info < (3, 15) else None,  # later versions have not been reviewed
)
UVLOOP_TLS = TransportLayout(direct=False, descriptor=None, closing=None, clear=(), methods={}, try_write=False)

AIOFASTNET_TLS = TransportLayout(direct=False, descriptor=None, closing=None, clear=(), methods={}, try_write=False)

# Tornado: streams behind `connections.tornado`.
TORNADO = TransportLayout(
    direct=True, descriptor="fd", closing="closing", clear=(), methods={}, try_write=False, buffer="buffer"
)
TORNADO_TLS = replace(TORNADO, direct=False)

KNOWN = {
    ("aiofastnet.ssl_transport", "SSLTransport_Socket"): AIOFASTNET_TLS,
    ("aiofastnet.ssl_transport", "SSLTransport_Transport"): AIOFASTNET_TLS,
    ("aiofastnet.selector_transport", "SelectorSocketTransport"): AIOFASTNET,
    ("asyncio.selector_events", "_SelectorSocketTransport"): ASYNCIO,
    ("asyncio.sslproto", "_SSLProtocolTransport"): TLS,
    ("uvloop.loop", "TCPTransport"): UVLOOP,
    ("uvloop.loop", "UnixTransport"): UVLOOP,
    ("uvloop.loop", "_SSLProtocolTransport"): UVLOOP_TLS,
    ("wsfast.connections.tornado", "EncryptedStreamTransport"): TORNADO_TLS,
    ("wsfast.connections.tornado", "StreamTransport"): TORNADO,
}


@cache_by_type
def transport_layout(kind: type) -> TransportLayout | None:
    """Return the layout of transports of exactly this type, or None if the type is unknown."""
    name = (kind.__module__, kind.__qualname__)
    layout = KNOWN.get(name)
    # Any class can have this name: it must also be the class that the module has under this name.
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
    """Whether data waits in the write buffer of a transport."""
    layout = transport_layout(type(transport))
    name = None if layout is None else layout.buffer
    return bool(transport.get_write_buffer_size() if name is None else getattr(transport, name))


def discards(transport: Any) -> bool:
    """Whether a transport discards everything written to it from now on. asyncio then logs a warning for each write."""
    layout = transport_layout(type(transport))
    if layout is None or not is_closing(transport):
        return False
    if layout.direct and is_buffering(transport):
        return False  # it accepts more data until its buffer is written
    return all(getattr(getattr(transport, name), "__func__", None) is method for name, method in layout.methods.items())
