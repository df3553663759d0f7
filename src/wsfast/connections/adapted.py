"""What connections of other libraries need so that a fan-out can deal with them as with those of websockets.

| attribute                  | what                                                                       |
|----------------------------|----------------------------------------------------------------------------|
| `transport`, `loop`        | the asyncio transport, or what stands in for one, and the event loop       |
| `protocol`                 | has `state`, `send_text()` and `send_binary()`; the connection itself here |
| `send_data()`              | writes what was given to `protocol`                                        |
| `send_in_progress`         | None, unless something that must not be interrupted is being sent          |
| `connection_lost_waiter`   | a future that is done when the connection is lost                          |
| `close(code, reason)`      | a coroutine                                                                |
| `id`, `logger`             | for log records                                                            |
| `_wsfast_route`, `_outlet` | what `broadcast()` and channels keep                                       |
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary, WeakSet, ref

from websockets.protocol import CLOSED, OPEN, State

from wsfast._core._pure import encode_frame
from wsfast._encoding.deflate import Encoder

from . import ConnectionLayout

__all__ = ["Adapted", "abort_later", "is_lost", "is_open", "layout_of"]

CLOSING_INTERVAL = 1.0
"""Seconds between two looks at whether connections that do not tell have been lost."""

CLOSE_TIMEOUT = 10.0
"""Seconds that a client that does not read has to take a close frame, and to answer it."""


class Adapted:
    """A connection of another library, in the shape in which a fan-out knows those of websockets."""

    library: ClassVar[str] = ""
    masked: ClassVar[bool] = False
    bounded: ClassVar[bool] = True
    """Whether it tells if there is room for more, which channels must know."""
    tells_loss: ClassVar[bool] = False
    """Whether `lose()` is called when the connection is lost; if not, it is looked at from time to time."""
    logger: Any = logging.getLogger("wsfast")

    _wsfast_route: Any
    transport: Any
    loop: asyncio.AbstractEventLoop

    send_in_progress: Any = None
    debug: Any = False
    expect_continuation_frame: ClassVar[bool] = False
    writes: ClassVar[list[bytes]] = []
    extensions: Any = ()

    _lost: asyncio.Future[None] | None = None

    @property
    def origin(self) -> Any:
        """What the user knows as the connection."""
        return self

    @property
    def protocol(self) -> Any:
        """What knows the state and makes frames: here, this object."""
        return self

    @property
    def fragmented_send_waiter(self) -> Any:
        """The name of `send_in_progress` in websockets 14 and 15."""
        return self.send_in_progress

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
        """Return where connections of this type keep what gather must know; None if it must not know anything."""
        return layout_of(cls)

    def encoder(self) -> Encoder | Literal[False] | None:
        """Return what compresses messages; None if they need not, or cannot, be compressed."""
        return None

    def send_text(self, data: Any) -> None:
        """Send a Text frame, which is not compressed."""
        self._write(0x81, data)

    def send_binary(self, data: Any) -> None:
        """Send a Binary frame, which is not compressed."""
        self._write(0x82, data)

    def _write(self, first: int, data: Any) -> None:
        self.transport.write(encode_frame(first, data, os.urandom(4) if self.masked else None))

    def send_data(self) -> None:
        """Do nothing: it is sent."""

    def set_connection_exc(self, exc: BaseException) -> None:
        """Do nothing: there is no place for it."""

    set_recv_exc = set_connection_exc

    @property
    def connection_lost_waiter(self) -> asyncio.Future[None]:
        """A future that is done when the connection is lost. Unless the library tells, it is a second late."""
        if self._lost is None:
            self._lost = self.loop.create_future()
            if not self.tells_loss:
                _Losses.of(self.loop).add(self)
        return self._lost

    def lose(self) -> None:
        """Take note that the connection is lost."""
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection."""
        raise NotImplementedError


def is_open(connection: Any) -> bool:
    """Whether messages may be sent on a connection; most libraries do not tell their protocols that it was lost."""
    if connection.protocol.state is not OPEN:
        return False
    return not (isinstance(connection, Adapted) and connection.transport.is_closing())


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
        self._connections: WeakSet[Adapted] = WeakSet()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: Adapted) -> None:
        """Look at a connection until it is lost."""
        self._connections.add(connection)
        if self._timer is None:
            self._timer = connection.loop.call_later(CLOSING_INTERVAL, self._look, connection.loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        for connection in list(self._connections):
            if connection.state is CLOSED or connection.transport.is_closing():
                self._connections.discard(connection)
                connection.lose()
        self._timer = loop.call_later(CLOSING_INTERVAL, self._look, loop) if self._connections else None


def layout_of(kind: type, **changes: Any) -> ConnectionLayout:
    """Return the layout of a subclass of `Adapted`."""
    values: dict[str, Any] = {
        "protocol": "protocol",
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


def _encoder(connection: Adapted) -> Encoder | Literal[False] | None:
    return connection.encoder()
