"""The common interface to connections of other libraries.

The module of a library defines a subclass of `Foreign`, whose instances represent its connections, and a
`ConnectionLayout`, which says where they keep the state that must be known before a frame is written to the descriptor.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Self, TypeAlias
from weakref import WeakKeyDictionary, ref

from websockets.protocol import CLOSED, OPEN, State

from wsfast._core import core
from wsfast._encoding.deflate import Encoder
from wsfast._encoding.message import PreparedMessage

from . import ConnectionLayout, adapt, is_buffering

__all__ = [
    "EXTENSION",
    "Closer",
    "Ended",
    "Foreign",
    "abort",
    "abort_later",
    "adapt_proxy",
    "hand_over",
    "layout_of",
    "set_takeover",
    "watch_closing",
    "why_closed",
]

CLOSING_INTERVAL = 1.0
"""Seconds between two checks of connections that are closing."""

CLOSE_TIMEOUT = 10.0
"""Seconds that a client has to read a close frame and to answer it. A connection still open after that is aborted."""


Closer: TypeAlias = tuple[Any, str, Callable[..., bool]]
"""A method that sends close frames: its owner, its name, and a function of its arguments that returns whether a call
with these arguments sends one."""


class Ended(enum.Enum):
    """Why a subscription or a registration ended. If there are several reasons, the first one counts."""

    UNSUBSCRIBED = "unsubscribed"
    """`unsubscribe()` or `unregister()` was called, or the `with` block ended."""
    CLOSED_BY_PEER = "closed by peer"
    """The client sent a close frame."""
    CLOSED_HERE = "closed here"
    """The server or the application closed the connection."""
    SLOW_CONSUMER = "slow consumer"
    """A policy closed the connection because it did not keep up."""
    KEEPALIVE = "keepalive timeout"
    """The client did not answer a ping in time."""
    LOST = "connection lost"
    """The connection was lost without a close frame, or its library does not report the reason."""


def why_closed(protocol: Any) -> Ended:
    """Return why a connection was lost, for a protocol that keeps its close frames as websockets does."""
    sent, received = protocol.close_sent, protocol.close_rcvd
    if sent is not None and (sent.code, sent.reason) == (1011, "keepalive ping timeout"):
        return Ended.KEEPALIVE
    if received is not None and protocol.close_rcvd_then_sent is not False:
        return Ended.CLOSED_BY_PEER
    return Ended.LOST if sent is None else Ended.CLOSED_HERE


class Foreign:
    """A connection of another library."""

    library: ClassVar[str] = ""
    masked: ClassVar[bool] = False
    bounded: ClassVar[bool] = True
    """Whether it reports if it has room for more, which channels need to know."""
    reports_loss: ClassVar[bool] = False
    """Whether `lose()` is called when the connection is lost. If not, wsfast checks the connection periodically."""
    close_timeout: float | None = None
    """Seconds that the library itself allows for closing; None if it has no such timeout."""
    queues: ClassVar[bool] = False
    """Whether all messages wait in a queue, so that no call can report that the kernel has taken one."""
    logger: Any = logging.getLogger("wsfast")

    _wsfast_peer: Any = None
    _lost: asyncio.Future[None] | None = None

    transport: Any
    """The asyncio transport, or an object with the same methods."""
    loop: asyncio.AbstractEventLoop
    send_in_progress: Any = None
    """None, unless something that must not be interrupted is being sent."""

    @property
    def origin(self) -> Any:
        """The connection as the user knows it."""
        return self

    @property
    def itself(self) -> Any:
        """The object that has the state, if no other object has it: see `layout_of()`."""
        return self

    @property
    def state(self) -> State:
        """OPEN while messages may be sent."""
        raise NotImplementedError

    @property
    def id(self) -> str:
        """A name for log records."""
        peer = self.transport.get_extra_info("peername") if self.transport is not None else None
        return f"{self.library} connection {peer}"

    @classmethod
    def layout(cls) -> ConnectionLayout | None:
        """Return the layout of connections of this type; None to send only with `send_message()`."""
        return layout_of(cls)

    def encoder(self) -> Encoder | Literal[False] | None:
        """Return the encoder that compresses messages; None if they need not or cannot be compressed."""
        return None

    def send_message(self, message: PreparedMessage) -> None:
        """Send a message through the library's own methods, or as a frame that is not compressed."""
        key = os.urandom(4) if self.masked else None
        self.transport.write(core.encode_frame(0x80 | message.opcode, message.data, key))

    def keep_reason(self, exc: BaseException) -> None:
        """Store the reason why the connection was lost, if the library has a place for it."""

    def why_lost(self) -> Ended:
        """Return why the connection was lost, as far as that is known."""
        return Ended.LOST

    @property
    def connection_lost_waiter(self) -> asyncio.Future[None]:
        """A future that is done when the connection is lost; up to a second late if the library does not report it."""
        if self._lost is None:
            self._lost = self.loop.create_future()
            if not self.reports_loss:
                watch_closing(self)
        return self._lost

    def has_left(self, transport: Any) -> bool:
        """Whether the connection is gone, and nothing of it waits to be written."""
        if self.reports_loss:
            return self._lost is not None and self._lost.done()
        return bool(transport.is_closing()) and not is_buffering(transport)

    def lose(self) -> None:
        """Report that the connection is lost."""
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    def subscribed(self) -> None:
        """Begin whatever notices that the connection is lost, since its first subscription was made."""

    def closers(self) -> Sequence[Closer]:
        """Return the methods that send close frames, as far as they can be replaced on an object of the library."""
        return ()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection."""
        raise NotImplementedError

    def __deepcopy__(self, memo: object) -> Self:
        """Return the connection itself: middleware may copy an ASGI scope that it is in."""
        return self


def socket_of(transport: Any) -> Any:
    """Return the socket of a transport; None if it has none, or no longer knows it."""
    try:
        return transport.get_extra_info("socket")
    except AttributeError:  # asyncio's over TLS, once it is closed
        return None


def abort(transport: Any) -> None:
    """Abort a transport, unless it has closed its socket: another connection may have the descriptor now."""
    sock = socket_of(transport)
    if sock is None or sock.fileno() >= 0:
        transport.abort()


def watch_closing(connection: Any) -> None:
    """Check a connection periodically: call `lose()` when it is lost, and abort it if closing takes too long."""
    if not connection.loop.is_closed():
        _ClosingWatch.of(connection.loop).add_connection(connection)


def abort_later(transport: Any, loop: asyncio.AbstractEventLoop, close_timeout: float | None = None) -> float:
    """Abort a transport if it is not lost after CLOSE_TIMEOUT, or after the connection's own timeout if that is longer.

    Returns:
        Seconds after which this has happened. It happens whatever becomes of the tasks that close the connection.
    """
    seconds = max(CLOSE_TIMEOUT, close_timeout or 0)
    _ClosingWatch.of(loop).add_transport(transport, loop, loop.time() + seconds)
    return seconds + 2 * CLOSING_INTERVAL


class _ClosingWatch:
    """Checks closing connections periodically.

    It finds connections that were lost without reporting it, and aborts those whose closing takes too long, for example
    because the client never reads the close frame. It forgets connections that are lost. Its timer keeps it alive.
    """

    _all: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, ref[_ClosingWatch]]] = WeakKeyDictionary()

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> _ClosingWatch:
        """Return the instance of an event loop."""
        reference = cls._all.get(loop)
        ends = None if reference is None else reference()
        if ends is None:
            ends = cls()
            cls._all[loop] = ref(ends)
        return ends

    def __init__(self) -> None:
        # Not weak: a library may drop a connection while its transport, which the event loop keeps, is still open.
        self._connections: set[Any] = set()
        self._transports: dict[int, tuple[Any, Any, float]] = {}  # with sockets, and when to abort them
        self._timer: asyncio.TimerHandle | None = None

    def add_connection(self, connection: Any) -> None:
        """Check a connection until it is lost."""
        self._connections.add(connection)
        self._schedule(connection.loop)

    def add_transport(self, transport: Any, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        """Abort a transport at `deadline`, unless it is lost by then. An earlier call for the same transport wins."""
        # A TLS transport that is lost no longer knows its socket.
        sock = socket_of(transport)
        self._transports.setdefault(id(transport), (transport, sock, deadline))
        self._schedule(loop)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        # A signal handler may have interrupted the last check before it began.
        if self._timer is None or loop.time() - self._timer.when() > CLOSING_INTERVAL:
            if self._timer is not None and self._timer.when() <= loop.time():
                self._timer.cancel()  # it may be late, not lost
            self._timer = loop.call_later(CLOSING_INTERVAL, self._check_all, loop)

    def _check_all(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        try:
            for connection in list(self._connections):
                self._try(loop, self._check, connection)
            for key, (transport, sock, deadline) in list(self._transports.items()):
                lost = sock is not None and sock.fileno() < 0
                if lost or loop.time() >= deadline:
                    del self._transports[key]
                    self._try(loop, abort, transport)
        finally:
            if self._connections or self._transports:
                self._schedule(loop)

    def _check(self, connection: Any) -> None:
        lost = True  # nobody can send to a connection whose state cannot be read
        try:
            state, closing = connection.state, connection.transport.is_closing()
            lost = state is CLOSED or closing
            if state is not OPEN or closing:
                abort_later(connection.transport, connection.loop, connection.close_timeout)
        finally:
            if lost:
                self._connections.discard(connection)
                if isinstance(connection, Foreign):
                    connection.lose()

    def _try(self, loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: Any) -> None:
        try:
            function(*arguments)
        except Exception as exc:  # continue with the others
            loop.call_exception_handler({"message": f"{function!r} has failed", "exception": exc})


# ---- Servers that shut down

_takeover: Callable[[Any], None] | None = None


def set_takeover(takeover: Callable[[Any], None] | None) -> None:
    """Set a function that closes the connections of a server that shuts down; None for the server's own way."""
    global _takeover
    _takeover = takeover


def hand_over(connection: Any) -> bool:
    """Let the function of `set_takeover()` close a connection, whose server shuts down; return whether there is one."""
    if _takeover is None:
        return False
    _takeover(connection)
    return True


def layout_of(kind: type, **changes: Any) -> ConnectionLayout:
    """Return the layout of a subclass of `Foreign` that keeps all of the state itself, except for `changes`."""
    values: dict[str, Any] = {
        "protocol": "itself",
        "protocol_type": kind,
        "transport": "transport",
        "loop": "loop",
        "send_in_progress": "send_in_progress",
        "state": "state",
        "open_state": OPEN,
        "debug": None,
        "extensions": None,
        "encoder": _encoder,
        "expect_continuation": None,
        "writes": None,
        "methods": {},
        "protocol_methods": {},
        "masked": kind.masked,  # type: ignore[attr-defined]
    }
    return ConnectionLayout(**(values | changes))


def _encoder(connection: Foreign) -> Encoder | Literal[False] | None:
    return connection.encoder()


# ---- WebSockets of ASGI frameworks

EXTENSION = "wsfast"
"""Name of the ASGI extension, in the scope, that holds the server's connection."""


def adapt_proxy(proxy: Any) -> Any:
    """Return the connection that a proxy refers to now.

    Raises:
        RuntimeError: If it refers to nothing, for example outside of a request.
    """
    return adapt(proxy._get_current_object())
