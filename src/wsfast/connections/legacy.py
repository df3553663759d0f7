"""Connections of websockets.legacy, which is deprecated but still in use."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Literal

from websockets.protocol import State

from wsfast._encoding.deflate import Encoder
from wsfast._encoding.message import PreparedMessage

from . import ConnectionLayout
from .foreign import Closer, Ended, Foreign, layout_of, watch_closing, why_closed
from .websockets import encoder_of_extensions, without_deflate

__all__ = ["adapt"]


class _Connection(Foreign):
    """A connection of websockets.legacy."""

    library = "websockets.legacy"

    def __init__(self, origin: Any) -> None:
        self._origin = origin
        self.transport: Any = origin.transport
        self.loop: asyncio.AbstractEventLoop = origin.loop
        self.logger: Any = origin.logger
        self.debug: Any = origin.debug
        self.close_timeout: float | None = origin.close_timeout

    @classmethod
    def layout(cls) -> ConnectionLayout | None:
        """See `Foreign`."""
        return layout_of(cls, debug="debug")

    @property
    def origin(self) -> Any:
        """The connection of the library."""
        return self._origin

    @property
    def state(self) -> State:
        """The state of the connection."""
        state: State = self._origin.state
        return state

    @property
    def id(self) -> str:
        """A name for log records."""
        return str(self._origin.id)

    @property
    def send_in_progress(self) -> Any:
        """A future while a fragmented message is being sent."""
        return self._origin._fragmented_message_waiter

    def encoder(self) -> Encoder | Literal[False] | None:
        """See `Foreign`."""
        return encoder_of_extensions(self._origin.extensions)

    def send_message(self, message: PreparedMessage) -> None:
        """Send a message."""
        with contextlib.nullcontext() if message.compress is None else without_deflate(self._origin):
            self._origin.write_frame_sync(True, message.opcode, message.data)

    def lose(self) -> None:
        """Do nothing: the library reports the loss itself, if late."""

    @property
    def connection_lost_waiter(self) -> Any:
        """A future that is done when the connection is lost."""
        waiter = self._origin.connection_lost_waiter
        if not waiter.done():
            watch_closing(self)  # its close() fails if the application is waiting in send() at that time
        return waiter

    def closers(self) -> Sequence[Closer]:
        """See `Foreign`."""
        return (
            (self._origin, "write_close_frame", lambda *_: True),
            (self._origin, "fail_connection", lambda code=1006, reason="": code != 1006),
        )

    def why_lost(self) -> Ended:
        """See `Foreign`."""
        return why_closed(self._origin)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection."""
        await self._origin.close(code, reason)


class _ClientConnection(_Connection):
    masked = True


def adapt(origin: Any) -> _Connection:
    """Return the object that represents a connection of websockets.legacy."""
    connection: _Connection | None = getattr(origin, "_wsfast_adapted", None)
    if connection is None:
        connection = origin._wsfast_adapted = (_ClientConnection if origin.is_client else _Connection)(origin)
    return connection
