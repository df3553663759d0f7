"""Connections of picows.websockets, whose transports are hidden: they are sent to by their own methods."""

from __future__ import annotations

import asyncio
from typing import Any

import picows.websockets
from websockets.protocol import CLOSED, OPEN, State

from .adapted import Adapted

__all__ = ["adapt"]


class _Transport:
    """What can be known of the transport."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def is_closing(self) -> bool:
        """Whether no more messages may be sent."""
        return self._connection.state is not OPEN

    def get_write_buffer_size(self) -> int:
        """Return 0: nobody knows."""
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the default: nothing is known."""
        return default


class _Connection(Adapted):
    """A connection of picows.websockets."""

    library = "picows.websockets"
    bounded = False

    def __init__(self, origin: Any) -> None:
        self._origin = origin
        self.transport = _Transport(self)
        self.loop = asyncio.get_running_loop()

    @property
    def origin(self) -> Any:
        """The connection of picows."""
        return self._origin

    @property
    def state(self) -> State:
        """The state of the connection."""
        return OPEN if self._origin.state.name == "OPEN" else CLOSED

    def send_text(self, data: Any) -> None:
        """Send a Text frame, compressed if that was negotiated."""
        picows.websockets.broadcast([self._origin], bytes(data).decode(), raise_exceptions=True)

    def send_binary(self, data: Any) -> None:
        """Send a Binary frame."""
        picows.websockets.broadcast([self._origin], bytes(data), raise_exceptions=True)


def adapt(origin: Any) -> _Connection:
    """Return what stands for a connection of picows.websockets."""
    return _Connection(origin)
