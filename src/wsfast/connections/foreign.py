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
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary, WeakSet, ref

from websockets.protocol import CLOSED, OPEN, State

from wsfast._core import core
from wsfast._encoding.deflate import Encoder
from wsfast._encoding.message import PreparedMessage

from . import ConnectionLayout, adapt, name_of

__all__ = [
    "EXTENSION",
    "Ended",
    "Foreign",
    "abort_later",
    "adapt_asgi",
    "adapt_proxy",
    "is_lost",
    "layout_of",
    "why_closed",
]

CLOSING_INTERVAL = 1.0
"""Seconds between two looks at whether connections that do not tell have been lost."""

CLOSE_TIMEOUT = 10.0
"""Seconds that a client that does not read has to take a close frame, and to answer it."""


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
                _Losses.of(self.loop).add(self)
        return self._lost

    def lose(self) -> None:
        """Say that the connection is lost."""
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection."""
        raise NotImplementedError


def is_lost(transport: Any) -> bool:
    """Whether a transport has closed its socket, after which `abort()` may hit whoever has the descriptor now."""
    sock = transport.get_extra_info("socket")
    return sock is not None and sock.fileno() < 0


def abort_later(transport: Any, loop: asyncio.AbstractEventLoop) -> asyncio.TimerHandle:
    """Abort a transport after CLOSE_TIMEOUT, unless it is lost by then. Nothing is kept alive for that."""
    return loop.call_later(CLOSE_TIMEOUT, _abort, ref(transport))


def _abort(reference: ref[Any]) -> None:
    transport = reference()
    if transport is not None and not is_lost(transport):
        transport.abort()


class _Losses:
    """Looks from time to time which connections have been lost that do not tell. Its timer keeps it alive."""

    _all: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, ref[_Losses]]] = WeakKeyDictionary()

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> _Losses:
        """Return that of an event loop."""
        reference = cls._all.get(loop)
        losses = None if reference is None else reference()
        if losses is None:
            losses = cls()
            cls._all[loop] = ref(losses)
        return losses

    def __init__(self) -> None:
        self._connections: WeakSet[Foreign] = WeakSet()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: Foreign) -> None:
        """Look at a connection until it is lost."""
        self._connections.add(connection)
        # A signal handler may have interrupted the last look before it began.
        if self._timer is None or connection.loop.time() - self._timer.when() > CLOSING_INTERVAL:
            self._timer = connection.loop.call_later(CLOSING_INTERVAL, self._look, connection.loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            for connection in list(self._connections):
                if connection.state is CLOSED or connection.transport.is_closing():
                    self._connections.discard(connection)
                    connection.lose()
        finally:
            self._timer = loop.call_later(CLOSING_INTERVAL, self._look, loop) if self._connections else None


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
