"""Connections of websockets.asyncio, versions 14 to 17.

| private or moving name       | what                                          | versions |
|------------------------------|-----------------------------------------------|----------|
| `fragmented_send_waiter`     | future, or None                               | 14, 15   |
| `send_in_progress`           | the same                                      | 16, 17   |
| `Protocol._state`            | what the property `state` returns             | 14 to 17 |
| `expect_continuation_frame`  | True between the fragments of a message       | 14 to 17 |
| `drain()`                    | waits while the transport's buffer is full    | 14 to 17 |
| `keepalive_task`             | the task that sends pings, if there is one    | 14 to 17 |
| `set_recv_exc`               | stores the reason why a connection was lost   | 14 to 16 |
| `set_connection_exc`         | the same                                      | 17       |
| `PerMessageDeflate.encoder`  | a `zlib.compressobj`; without context         | 14 to 17 |
|                              | takeover, only while compressing a message    |          |
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import zlib
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, Literal
from weakref import ref

import websockets.asyncio.connection
import websockets.client
import websockets.protocol
import websockets.server
import websockets.version
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import NegotiationError
from websockets.extensions import Extension, permessage_deflate
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Opcode
from websockets.protocol import OPEN
from websockets.typing import ExtensionParameter

from wsfast._arguments import check_integer
from wsfast._core import core
from wsfast._encoding.deflate import Encoder, LazyEncoder, Parameters
from wsfast._encoding.message import PreparedMessage

from . import ConnectionLayout, cache_by_type, discards
from .foreign import Closer, Foreign

__all__ = [
    "LOST",
    "SEND_IN_PROGRESS",
    "SET_EXCEPTION",
    "Reporting",
    "ReportingConnection",
    "ServerPerMessageDeflateFactory",
    "closers_of_protocol",
    "connection_layout",
    "encoder_of_extensions",
    "is_connection",
    "send_by_protocol",
    "watched",
    "without_deflate",
]


def watched(name: str) -> property:
    """Return a property of connections that invalidates their peer. wsfast itself reads the attribute behind it."""
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

    return property(get, put, doc="Reading or setting this invalidates the peer, since the caller may change anything.")


class Ordered:
    """A connection whose own messages do not overtake published ones: its methods that send call `_wsfast_flush()`."""

    _wsfast_peer: Any = None

    async def _wsfast_flush(self, *, wait: bool = True) -> None:
        """Send the messages that were published before; wait until they have left, unless a close frame follows."""
        peer = self._wsfast_peer
        if peer is not None and peer.dispatcher is not None:
            if not wait:
                peer.dispatcher.flush_last(peer)
                return
            peer.dispatcher.flush_for(peer)
            await peer.dispatcher.drained(peer)


class Reporting(Ordered):
    """An asyncio protocol that reports its changes of state; in the bases of a class, it precedes a library's protocol.

    A subclass also makes its sans-I/O protocol a `watched` property. Its methods that send call `_wsfast_flush()` first
    and `_wsfast_check()` last.
    """

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

    def _wsfast_check(self) -> None:
        """Check whether the connection may be written to directly, and note the result."""
        peer = self._wsfast_peer
        if peer is None or (not peer.direct and peer.backlog is None):
            return
        if peer.check(self) == core.Verdict.CLOSED and peer.backlog is not None:
            peer.dispatcher.drain(peer)  # wakes tasks that wait to send


_MAJOR = int(websockets.version.version.split(".")[0])

SEND_IN_PROGRESS = "send_in_progress" if _MAJOR >= 16 else "fragmented_send_waiter"
"""Attribute of a connection: None, unless a fragmented message is being sent."""

LOST = "connection_lost_waiter"
"""Attribute of a connection: a future that is done when the connection is lost."""

SET_EXCEPTION = "set_connection_exc" if hasattr(Connection, "set_connection_exc") else "set_recv_exc"
"""Method of a connection: stores an exception as the reason why the connection was lost, unless it has one already."""


def _original(method: Any, module: ModuleType) -> object:
    """Return a function if it is the library's own; if it was replaced, return an object that equals no method."""
    return method if getattr(method, "__globals__", None) is vars(module) else object()


# Everything that a protocol writes, close frames included, goes through the first two methods. In the third, a
# connection stops being open without a close frame.
_WATCHED = ("send_frame", "send_eof", "receive_eof")

# A connection is written to directly only if neither its class nor the connection itself replaces these methods: those
# that send, and those that the transport calls in the middle of sending.
_METHODS = {
    name: _original(getattr(Connection, name), websockets.asyncio.connection)
    for name in ("send_data", "pause_writing", SET_EXCEPTION)
}
_PROTOCOL_METHODS = {
    name: _original(getattr(websockets.protocol.Protocol, name), websockets.protocol)
    for name in ("send_text", "send_binary", *_WATCHED, "data_to_send")
}
_ENCODE = _original(PerMessageDeflate.encode, permessage_deflate)
_ZLIB_ENCODER = type(zlib.compressobj())


def encoder_of_extensions(extensions: Any) -> Encoder | Literal[False] | None:
    """Return the encoder of a connection with these extensions: see `ConnectionLayout.encoder`."""
    if type(extensions) is not list or len(extensions) > 1:
        return False
    if not extensions:
        return None
    if type(extensions[0]) is not PerMessageDeflate:
        return False
    extension: Any = extensions[0]
    if getattr(extension.encode, "__func__", None) is not _ENCODE:
        return False
    if extension.local_max_window_bits < 9:
        return None  # zlib has no window that small; sending uncompressed is always allowed
    parameters = Parameters.of(extension.local_max_window_bits, extension.compress_settings)
    if parameters is None:
        return False
    if extension.local_no_context_takeover:
        return parameters.per_message
    if type(extension.encoder) is _ZLIB_ENCODER:
        extension.encoder = LazyEncoder(parameters, extension.encoder)
    return extension.encoder if type(extension.encoder) is LazyEncoder else False


class Watched:
    """Replaces a method of a protocol: each call invalidates the peer."""

    __slots__ = ("method", "peer")

    def __init__(self, peer: ref[core.Peer], method: Callable[..., Any]) -> None:
        self.peer: ref[core.Peer] = peer
        self.method: Callable[..., Any] = method

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the method."""
        try:
            return self.method(*arguments, **options)
        finally:
            peer = self.peer()
            if peer is not None:
                peer.invalidate()


def _watch(protocol: Any, peer: ref[core.Peer]) -> None:
    """See `ConnectionLayout.watch`."""
    for name in _WATCHED:
        setattr(protocol, name, Watched(peer, getattr(protocol, name)))


def _layout(protocol_type: type, *, masked: bool, reports: bool = False) -> ConnectionLayout:
    return ConnectionLayout(
        protocol="_wsfast_protocol" if reports else "protocol",
        protocol_type=protocol_type,
        transport="_wsfast_transport" if reports else "transport",
        loop="loop",
        send_in_progress=SEND_IN_PROGRESS,
        state="_state",
        open_state=websockets.protocol.OPEN,
        debug="debug",
        extensions="extensions",
        encoder=encoder_of_extensions,
        expect_continuation="expect_continuation_frame",
        writes="writes",
        methods=dict(_METHODS),
        protocol_methods=_PROTOCOL_METHODS,
        masked=masked,
        reports=reports,
        watch=None if reports else _watch,
    )


class ReportingConnection(Reporting, ServerConnection):
    """A connection that reports its changes of state, and whose own messages do not overtake published ones."""

    protocol: Any = watched("protocol")

    _wsfast_protocol: Any

    async def send(self, message: Any, *args: Any, **options: Any) -> None:
        """Send a message, after all messages that were published for this connection before."""
        await self._wsfast_flush()
        await super().send(message, *args, **options)
        self._wsfast_check()

    async def drain(self) -> None:
        """Wait for room, except when closing or pinging: for a client that does not read, that would wait forever."""
        if self._wsfast_protocol.state is OPEN and asyncio.current_task() is not self.keepalive_task:
            await super().drain()


_REPORTING = _layout(websockets.server.ServerProtocol, masked=False, reports=True)
_SERVER = _layout(websockets.server.ServerProtocol, masked=False)
_CLIENT = _layout(websockets.client.ClientProtocol, masked=True)

# A subclass must not override the attributes that gather reads, either.
_READ = ("loop", "transport", "protocol", SEND_IN_PROGRESS, "__getattribute__", "__getattr__", "__setattr__")


@cache_by_type
def connection_layout(kind: type) -> ConnectionLayout | None:
    """Return the layout of connections of this type, or None if only their own methods may send to them."""
    if issubclass(kind, Foreign):
        layout: ConnectionLayout | None = kind.layout()
        return layout
    if not issubclass(kind, Connection):
        return None
    reports = issubclass(kind, ReportingConnection)
    original = ReportingConnection if reports else Connection
    if any(_static(kind, name) is not _static(original, name) for name in (*_METHODS, *_READ)):
        return None
    if reports:
        return _REPORTING
    if issubclass(kind, ServerConnection):
        return _SERVER
    if issubclass(kind, ClientConnection):
        return _CLIENT
    return None


def closers_of_protocol(protocol: Any) -> Sequence[Closer]:
    """See `Foreign`: the one method through which a sans-I/O protocol sends all close frames."""
    return ((protocol, "send_frame", _is_close_frame),) if hasattr(protocol, "send_frame") else ()


def _is_close_frame(frame: Any) -> bool:
    return frame.opcode is Opcode.CLOSE


def send_by_protocol(connection: Any, message: PreparedMessage) -> None:
    """Send a message the way upstream's `broadcast()` does."""
    protocol = connection.protocol
    with contextlib.nullcontext() if message.compress is None else without_deflate(protocol):
        if message.text:
            protocol.send_text(message.data)
        else:
            protocol.send_binary(message.data)
    if (
        isinstance(connection, Connection)
        and getattr(connection.send_data, "__func__", None) is _METHODS["send_data"]
        and discards(connection.transport)
    ):
        protocol.data_to_send()
        connection.transport.write(b"")  # raises the same exception as a real write, and logs nothing
    else:
        connection.send_data()


@contextlib.contextmanager
def without_deflate(protocol: Any) -> Iterator[None]:
    """Make a protocol send messages uncompressed, which is always allowed (RFC 7692, section 6)."""
    extensions = getattr(protocol, "extensions", [])  # a stand-in for a connection may have none
    if extensions:
        protocol.extensions = [extension for extension in extensions if extension.name != PerMessageDeflate.name]
    try:
        yield
    finally:
        if extensions:
            protocol.extensions = extensions


def is_connection(connection: Any) -> bool:
    """Whether upstream's `broadcast()` can send to it: it has the right type, or all of the attributes used."""
    if isinstance(connection, Connection):
        return True
    # Stand-ins and wrappers. Connections of websockets.sync and .trio have the first two but write in another way.
    return not type(connection).__module__.startswith("websockets.") and all(
        hasattr(connection, name) for name in ("protocol", SEND_IN_PROGRESS, "send_data", "logger")
    )


def _static(kind: type, name: str) -> object:
    return inspect.getattr_static(kind, name, None)


class ServerPerMessageDeflateFactory(permessage_deflate.ServerPerMessageDeflateFactory):
    """Negotiates permessage-deflate as the factory of websockets does, but creates no encoder until one is needed.

    Pass it to `websockets.serve(extensions=[wsfast.ServerPerMessageDeflateFactory()])`. A connection that only gets
    broadcasts then never owns an encoder, which saves 32 KiB per connection with the defaults. The encoder is created
    when the connection sends a message of its own with `send()`.

    Args:
        server_no_context_takeover: Whether the server compresses each message on its own, also those that connections
            send with `send()`.
        client_no_context_takeover: Whether clients must compress each message on its own.
        server_max_window_bits: Base-2 logarithm of the largest window of the server, 9 to 15. None for the largest
            that the client allows.
        client_max_window_bits: The same for clients, 8 to 15.
        compress_settings: Arguments for `zlib.compressobj`, except `wbits`. None for `{"memLevel": 5}`.
        require_client_max_window_bits: Whether to use no compression if a client cannot limit its window.

    The defaults are those of `websockets.serve(compression="deflate")`.

    Raises:
        ValueError: If a number is out of range, or `compress_settings` contains `wbits`.
        TypeError: If a number has another type, or `compress_settings` contains an argument that `zlib.compressobj`
            does not accept.
    """

    def __init__(
        self,
        server_no_context_takeover: bool = False,
        client_no_context_takeover: bool = False,
        server_max_window_bits: int | None = 12,
        client_max_window_bits: int | None = 12,
        compress_settings: dict[str, Any] | None = None,
        require_client_max_window_bits: bool = False,
    ) -> None:
        check_integer("server_max_window_bits", server_max_window_bits, optional=True)
        if client_max_window_bits is not True:  # upstream takes True for "any"
            check_integer("client_max_window_bits", client_max_window_bits, optional=True)
        if server_max_window_bits == 8:  # before websockets 17, which refuses it itself
            raise ValueError("server_max_window_bits must be between 9 and 15")
        super().__init__(
            server_no_context_takeover,
            client_no_context_takeover,
            server_max_window_bits,
            client_max_window_bits,
            {"memLevel": 5} if compress_settings is None else compress_settings,
            require_client_max_window_bits,
        )
        zlib.compressobj(wbits=-15, **(self.compress_settings or {}))  # raise now if the settings are wrong

    @classmethod
    def _like(cls, factory: Any) -> Any:
        """Return a lazy factory with the parameters of upstream's; anything else is returned as it is."""
        if type(factory) is not permessage_deflate.ServerPerMessageDeflateFactory:
            return factory
        lazy = cls.__new__(cls)
        vars(lazy).update(vars(factory))
        return lazy

    def process_request_params(
        self, params: Sequence[ExtensionParameter], accepted_extensions: Sequence[Extension]
    ) -> tuple[list[ExtensionParameter], PerMessageDeflate]:
        """Process request parameters; return those of the response, and the extension."""
        no_takeover = ("server_no_context_takeover", None)
        if self.server_no_context_takeover or no_takeover in params:
            return super().process_request_params(params, accepted_extensions)
        # Without context takeover, no encoder is created here. The response must not say so: it is removed below.
        frugal = copy.copy(self)
        frugal.server_no_context_takeover = True
        extension: Any
        response, extension = super(ServerPerMessageDeflateFactory, frugal).process_request_params(
            params, accepted_extensions
        )
        if extension.local_max_window_bits < 9:  # before websockets 17, which refuses it itself
            raise NegotiationError("unsupported server_max_window_bits = 8, use 9")
        parameters = Parameters.of(extension.local_max_window_bits, extension.compress_settings)
        if parameters is None:
            return super().process_request_params(params, accepted_extensions)
        response.remove(no_takeover)
        extension.local_no_context_takeover = False
        extension.encoder = LazyEncoder(parameters)
        return response, extension
