"""Connections of picows: a `WSTransport`, server or client side, which never compresses by itself."""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakKeyDictionary, ref

from picows import WSTransport
from websockets.protocol import CLOSED, CLOSING, OPEN, State

from .adapted import Adapted

__all__ = ["adapt"]


class _Connection(Adapted):
    """A WSTransport. It is not kept alive: asyncio's transport does that as long as it is open."""

    library = "picows"

    def __init__(self, transport: WSTransport) -> None:
        self._origin = ref(transport)
        self.transport = transport.underlying_transport
        self.loop = asyncio.get_running_loop()

    @property
    def origin(self) -> Any:
        """The WSTransport; None if it is gone."""
        return self._origin()

    @property
    def state(self) -> State:
        """The state of the connection."""
        transport = self._origin()
        if transport is None or transport.is_disconnected:
            return CLOSED
        return CLOSING if transport.is_close_frame_sent else OPEN

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame and disconnect."""
        transport = self._origin()
        if transport is not None:
            transport.send_close(code, reason.encode())  # type: ignore[arg-type]
            transport.disconnect()


class _ClientConnection(_Connection):
    masked = True


_connections: WeakKeyDictionary[WSTransport, _Connection] = WeakKeyDictionary()


def adapt(transport: WSTransport) -> _Connection:
    """Return what stands for a WSTransport."""
    connection = _connections.get(transport)
    if connection is None:
        kind = _ClientConnection if transport.is_client_side else _Connection
        connection = _connections[transport] = kind(transport)
    return connection
