"""Consumers of Django Channels.

Under uvicorn, wsfast's protocols put their connection into the ASGI scope. Under another server, for example daphne,
messages go through an `AsgiQueue`. No private name of Channels is used.
"""

from __future__ import annotations

import contextlib
from typing import Any

from .asgi import AsgiConnection
from .asgi_queue import AsgiMessage, AsgiQueue, Receive, Send
from .foreign import Ended

__all__ = ["ConsumerConnection"]


class ConsumerConnection(AsgiConnection):
    """The connection of a consumer of which only ASGI's functions are known."""

    library = "Django Channels"

    def __init__(self, scope: Any, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._functions = send, receive
        self._accepted = False
        super().__init__(None)

    @property
    def origin(self) -> Any:
        """See `Foreign`. It is the connection itself."""
        return self

    @property
    def id(self) -> str:
        """A name for log records."""
        return f"ASGI connection {self._scope.get('client')}"

    def _install(self, origin: Any) -> AsgiQueue:
        return self._queue(*self._functions)

    def _is_open(self) -> bool:
        return self._accepted

    async def send(self, message: AsgiMessage) -> None:
        """Send a message of the consumer. It is discarded if the connection has ended, as daphne does.

        An exception here would keep Channels from calling the consumer's `disconnect()`.
        """
        if not self.transport.is_closing():
            with contextlib.suppress(ConnectionError):
                await super().send(message)
                self._accepted = self._accepted or message["type"] == "websocket.accept"

    async def receive(self) -> Any:
        """Receive a message for the consumer."""
        return await self.transport.receive()

    def end(self) -> None:
        """Free everything: the consumer has ended."""
        self.transport.end(1006, "", Ended.CLOSED_HERE)
