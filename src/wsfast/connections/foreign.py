"""Connections of other libraries: the one shape in which the rest of wsfast knows them.

A library's module has a subclass of `Foreign`, whose objects stand for its connections, and a `ConnectionLayout`, which
says where these keep what must be known before a frame is written to the descriptor.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeAlias
from weakref import WeakKeyDictionary, ref

from websockets.protocol import CLOSED, OPEN, State

from wsfast._core import core
from wsfast._encoding.deflate import Encoder
from wsfast._encoding.message import PreparedMessage

from . import ConnectionLayout, adapt, name_of

__all__ = [
    "EXTENSION",
    "Closer",
    "Ended",
    "Foreign",
    "abort",
    "abort_later",
    "adapt_asgi",
    "adapt_proxy",
    "layout_of",
    "look_after",
    "why_closed",
]

CLOSING_INTERVAL = 1.0
"""Seconds between two looks at connections that are to end."""

CLOSE_TIMEOUT = 10.0
"""Seconds that a client has to take a close frame, and to answer it. A connection that is not lost then is aborted."""


Closer: TypeAlias = tuple[Any, str, Callable[..., bool]]
"""A method that sends close frames: its owner, its name, and a function of its arguments that tells whether it does."""


class Ended(enum.Enum):
    """Why a subscription, or a registration, has ended: the first thing that has ended it."""

    UNSUBSCRIBED = "unsubscribed"
    """By `unsubscribe()` or `unregister()`, or at the end of `with`."""
    CLOSED_BY_PEER = "closed by peer"
    """The client has sent a close frame."""
    CLOSED_HERE = "closed here"
    """The server, or the application, has closed the connection."""
    SLOW_CONSUMER = "slow consumer"
    """A policy has closed the connection, since it did not keep up."""
    KEEPALIVE = "keepalive timeout"
    """The client has not answered a ping in time."""
    LOST = "connection lost"
    """The connection was lost without a close frame; or its library does not tell."""


def why_closed(protocol: Any) -> Ended:
    """Return why a connection is lost whose close frames are kept as websockets keeps them."""
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
    """Whether it tells if there is room for more, which channels must know."""
    tells_loss: ClassVar[bool] = False
    """Whether `lose()` is called when the connection is lost; if not, it is looked at from time to time."""
    close_timeout: float | None = None
    """Seconds that the library itself allows for closing; None if it has no such thing."""
    logger: Any = logging.getLogger("wsfast")

    _wsfast_peer: Any = None
    _lost: asyncio.Future[None] | None = None

    transport: Any
    """The asyncio transport, or what stands in for one."""
    loop: asyncio.AbstractEventLoop
    send_in_progress: Any = None
    """None, unless something that must not be interrupted is being sent."""

    @property
    def origin(self) -> Any:
        """What the user knows as the connection."""
        return self

    @property
    def itself(self) -> Any:
        """What knows the state, if no other object does: see `layout_of()`."""
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
        """Return where connections of this type keep what must be known; None to send by `send_message()` alone."""
        return layout_of(cls)

    def encoder(self) -> Encoder | Literal[False] | None:
        """Return what compresses messages; None if they need not, or cannot, be compressed."""
        return None

    def send_message(self, message: PreparedMessage) -> None:
        """Send a message by the library's own means, or by a frame that is not compressed."""
        key = os.urandom(4) if self.masked else None
        self.transport.write(core.encode_frame(0x80 | message.opcode, message.data, key))

    def keep_reason(self, exc: BaseException) -> None:
        """Keep the reason why the connection was lost, if there is a place for it."""

    def why_lost(self) -> Ended:
        """Return why the connection is lost, as far as that is known."""
        return Ended.LOST

    @property
    def connection_lost_waiter(self) -> asyncio.Future[None]:
        """A future that is done when the connection is lost. Unless the library tells, it is a second late."""
        if self._lost is None:
            self._lost = self.loop.create_future()
            if not self.tells_loss:
                look_after(self)
        return self._lost

    def lose(self) -> None:
        """Say that the connection is lost."""
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    def closers(self) -> Sequence[Closer]:
        """Return the methods that send close frames, as far as the library lets them be replaced on an object."""
        return ()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection."""
        raise NotImplementedError


def socket_of(transport: Any) -> Any:
    """Return the socket of a transport; None if it has none, or does not know it any more."""
    try:
        return transport.get_extra_info("socket")
    except AttributeError:  # asyncio's over TLS, once it is closed
        return None


def abort(transport: Any) -> None:
    """Abort a transport, unless it has closed its socket: somebody else may have the descriptor now."""
    sock = socket_of(transport)
    if sock is None or sock.fileno() >= 0:
        transport.abort()


def look_after(connection: Any) -> None:
    """Have a connection that does not tell be `lose()`d when it is lost, and aborted if closing takes too long."""
    if not connection.loop.is_closed():
        _Ends.of(connection.loop).add_connection(connection)


def abort_later(transport: Any, loop: asyncio.AbstractEventLoop, close_timeout: float | None = None) -> float:
    """Abort a transport that is not lost after CLOSE_TIMEOUT, or the connection's own timeout if that is longer.

    Returns:
        Seconds after which that has happened. It does, whatever becomes of the tasks that close the connection.
    """
    seconds = max(CLOSE_TIMEOUT, close_timeout or 0)
    _Ends.of(loop).add_transport(transport, loop, loop.time() + seconds)
    return seconds + 2 * CLOSING_INTERVAL


class _Ends:
    """Looks from time to time after connections that are to end.

    It finds out which connections have been lost that do not tell, and aborts those whose closing takes too long, as
    for a client that never takes the close frame. What is lost is forgotten. Its timer keeps it alive.
    """

    _all: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, ref[_Ends]]] = WeakKeyDictionary()

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> _Ends:
        """Return that of an event loop."""
        reference = cls._all.get(loop)
        ends = None if reference is None else reference()
        if ends is None:
            ends = cls()
            cls._all[loop] = ref(ends)
        return ends

    def __init__(self) -> None:
        # Not weakly: a library may forget a connection before its transport, which the event loop keeps, has closed.
        self._connections: set[Any] = set()
        self._transports: dict[int, tuple[Any, Any, float]] = {}  # with sockets, and when to abort them
        self._timer: asyncio.TimerHandle | None = None

    def add_connection(self, connection: Any) -> None:
        """Look at a connection until it is lost."""
        self._connections.add(connection)
        self._schedule(connection.loop)

    def add_transport(self, transport: Any, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        """Abort a transport at a time, unless it is lost by then; what was said before holds."""
        # A transport over TLS that is lost does not know its socket any more.
        sock = socket_of(transport)
        self._transports.setdefault(id(transport), (transport, sock, deadline))
        self._schedule(loop)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        # A signal handler may have interrupted the last look before it began.
        if self._timer is None or loop.time() - self._timer.when() > CLOSING_INTERVAL:
            if self._timer is not None and self._timer.when() <= loop.time():
                self._timer.cancel()  # it may be late, rather than lost
            self._timer = loop.call_later(CLOSING_INTERVAL, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        try:
            for connection in list(self._connections):
                self._try(loop, self._look_after, connection)
            for key, (transport, sock, deadline) in list(self._transports.items()):
                lost = sock is not None and sock.fileno() < 0
                if lost or loop.time() >= deadline:
                    del self._transports[key]
                    self._try(loop, abort, transport)
        finally:
            if self._connections or self._transports:
                self._schedule(loop)

    def _look_after(self, connection: Any) -> None:
        lost = True  # if it cannot be asked, nobody can send to it
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
        except Exception as exc:  # the others are looked after all the same
            loop.call_exception_handler({"message": f"{function!r} has failed", "exception": exc})


def layout_of(kind: type, **changes: Any) -> ConnectionLayout:
    """Return the layout of a subclass of `Foreign`, which keeps all that must be known itself but for `changes`."""
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
"""Under this name, the ASGI scope's extensions hold the connection of the server."""


def adapt_asgi(websocket: Any) -> Any:
    """Return the connection of a WebSocket of Starlette, FastAPI, Litestar or Quart, which does not know it itself."""
    connection = (websocket.scope.get("extensions") or {}).get(EXTENSION)
    if connection is None:
        raise TypeError(
            f"cannot reach the connection of {name_of(type(websocket))}: run its server as "
            'uvicorn.run(app, ws="wsfast.uvicorn:WebSocketsProtocol"), '
            "or uvicorn --ws wsfast.uvicorn:WebSocketsProtocol"
        )
    if connection.websocket is None:
        connection.websocket = websocket
    with contextlib.suppress(AttributeError):  # that of Litestar has no room for it, and is asked each time
        websocket._wsfast_adapted = connection
    return connection


def adapt_proxy(proxy: Any) -> Any:
    """Return what stands for the connection for which a proxy stands now.

    Raises:
        RuntimeError: If it stands for nothing, as outside of a request.
    """
    return adapt(proxy._get_current_object())
