"""WebSockets of ASGI frameworks: Starlette, FastAPI, Litestar, Quart.

wsfast's protocols for uvicorn put their connection into the ASGI scope. Under any other server, all that ASGI offers is
`await send(message)`: messages then go through an `AsgiQueue`.

| private name                                                 | meaning                        | versions     |
|--------------------------------------------------------------|--------------------------------|--------------|
| Starlette: `_send`, `_receive`                               | ASGI's functions               | 0.40 to 1.10 |
| `application_state`, `client_state` (public)                 | whether the connection is open | 0.40 to 1.10 |
| Litestar: `send`, `receive`, `connection_state` (public)     | the same                       | 2.12 to 2.25 |
| Quart: `_send`, `_accept`, `_close`: `partial(method, send)` | ASGI's function in partials    | 0.20 to 0.22 |
| `_receive`                                                   | returns the client's messages  | 0.20 to 0.22 |
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import sys
from typing import Any

from websockets.protocol import CLOSED, CONNECTING, OPEN, State

from wsfast._encoding.message import PreparedMessage

from . import ConnectionLayout, name_of
from .asgi_queue import AsgiMessage, AsgiQueue, Receive, Send
from .foreign import EXTENSION, Ended, Foreign
from .websockets import Ordered

__all__ = ["AsgiConnection", "adapt"]

logger: logging.Logger = logging.getLogger("wsfast")

ADAPTED = "_wsfast_adapted"
"""Attribute of a framework's WebSocket, or else a key of its scope: the object that represents it."""


class AsgiConnection(Ordered, Foreign):
    """A WebSocket of an ASGI framework."""

    library = "ASGI"
    reports_loss = True
    queues = True

    def __init__(self, origin: Any) -> None:
        self._origin = origin
        self.loop: asyncio.AbstractEventLoop = _running_loop()
        self.transport: Any = self._install(origin)
        self._closing = False

    def _install(self, origin: Any) -> AsgiQueue:
        """Create the queue, and have the application's messages go through it."""
        raise NotImplementedError

    def _queue(self, send: Send, receive: Receive) -> AsgiQueue:
        return AsgiQueue(send, receive, self.loop, self._on_end)

    def _on_end(self) -> None:
        """End all subscriptions."""
        peer = self._wsfast_peer
        if peer is not None and peer.dispatcher is not None:
            peer.dispatcher.end(peer)
        self.lose()

    async def send(self, message: AsgiMessage) -> None:
        """Send a message of the application, after all messages that were published for this connection before.

        Raises:
            ConnectionError: If the connection has ended.
        """
        if message["type"] == "websocket.send":
            await self._wsfast_flush()
        elif message["type"] == "websocket.close":
            try:
                self._closing = True  # the framework regards it as closed already
                await self._wsfast_flush(wait=False)
            finally:
                self._closing = False
        await self.transport.send(message)

    @property
    def origin(self) -> Any:
        """The framework's WebSocket."""
        return self._origin

    @property
    def id(self) -> str:
        """A name for log records."""
        return f"ASGI connection {self._origin.scope.get('client')}"

    @property
    def state(self) -> State:
        """OPEN while messages may be sent."""
        if self.transport.is_closing():
            return CLOSED
        return OPEN if self._closing or self._is_open() else CONNECTING

    def _is_open(self) -> bool:
        """Whether the framework would send a message now."""
        raise NotImplementedError

    @classmethod
    def layout(cls) -> ConnectionLayout | None:
        """See `Foreign`. There is no transport to write frames to."""
        return None

    def send_message(self, message: PreparedMessage) -> None:
        """Append a message to the queue. The server compresses it as it does all messages."""
        self.transport.put(_message_of(message), len(message.data))

    def why_lost(self) -> Ended:
        """See `Foreign`."""
        why: Ended = self.transport.why
        return why

    def subscribed(self) -> None:
        """See `Foreign`."""
        self.transport.watch()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection."""
        await self.transport.send({"type": "websocket.close", "code": code, "reason": reason})


def _running_loop() -> asyncio.AbstractEventLoop:
    """Return the running event loop.

    Raises:
        TypeError: If trio runs instead.
        RuntimeError: If none is running.
    """
    with contextlib.suppress(RuntimeError):
        if (trio := sys.modules.get("trio")) is not None and trio.lowlevel.current_trio_token():
            raise TypeError(
                "cannot send to WebSockets of a server that runs trio; run it on asyncio, for example Hypercorn with "
                "--worker-class asyncio or uvloop"
            )
    return asyncio.get_running_loop()


class _Starlette(AsgiConnection):
    """That of Starlette and FastAPI."""

    def _install(self, origin: Any) -> AsgiQueue:
        queue = self._queue(origin._send, origin._receive)
        origin._send, origin._receive = self.send, queue.receive
        return queue

    def _is_open(self) -> bool:
        return bool(self._origin.application_state.name == self._origin.client_state.name == "CONNECTED")


class _Litestar(AsgiConnection):
    """That of Litestar. Its state does not say whether it was accepted."""

    def _install(self, origin: Any) -> AsgiQueue:
        queue = self._queue(origin.send, origin.receive)
        origin.send, origin.receive = self.send, queue.receive
        return queue

    def _is_open(self) -> bool:
        return self._origin.connection_state in ("connect", "receive")


class _Quart(AsgiConnection):
    """That of Quart. Quart accepts it when it is first used, and cancels its handler when it is closed."""

    def _install(self, origin: Any) -> AsgiQueue:
        queue = self._queue(origin._send.args[0], origin._receive)
        for name in ("_send", "_accept", "_close"):
            setattr(origin, name, functools.partial(getattr(origin, name).func, self.send))
        origin._receive = self._receive
        return queue

    async def _receive(self) -> Any:
        data = await self.transport.receive()
        if isinstance(data, dict):
            raise asyncio.CancelledError  # as Quart does
        return data

    def _is_open(self) -> bool:
        return True


def _message_of(message: PreparedMessage) -> AsgiMessage:
    """Return a message as ASGI has it. Each connection gets a dict of its own, since middleware may change it."""
    global _latest
    known, key, data = _latest
    if known is not message:
        if message.compress is False:
            _warn_once()
        key, data = ("text", bytes(message.data).decode()) if message.text else ("bytes", bytes(message.data))
        _latest = message, key, data
    return {"type": "websocket.send", key: data}


_latest: tuple[PreparedMessage | None, str, str | bytes] = None, "", ""
"""The latest message that was decoded, with the result."""


@functools.cache
def _warn_once() -> None:
    logger.warning(
        "compress=False has no effect on WebSockets that are sent to through ASGI: the server alone decides about "
        "compression"
    )


KINDS: dict[tuple[str, str], type[AsgiConnection]] = {
    ("litestar.connection.websocket", "WebSocket"): _Litestar,
    ("quart.wrappers.websocket", "Websocket"): _Quart,
    ("starlette.websockets", "WebSocket"): _Starlette,
}


@functools.cache
def _log_once(kind: str) -> None:
    logger.debug(
        "%s: the server offers no transport, so messages go through a queue and a task for each connection; under "
        "uvicorn, wsfast.uvicorn.install() makes this faster",
        kind,
    )


def adapt(websocket: Any) -> Any:
    """Return the server's connection behind a framework's WebSocket.

    If the server has put none into the scope, it is an `AsgiConnection`.
    """
    scope = websocket.scope
    connection = (scope.get("extensions") or {}).get(EXTENSION)
    if connection is not None:
        if connection.websocket is None:
            connection.websocket = websocket
    elif (connection := scope.get(ADAPTED)) is None:
        kind = next(
            KINDS[name] for base in type(websocket).__mro__ if (name := (base.__module__, base.__qualname__)) in KINDS
        )
        connection = scope[ADAPTED] = kind(websocket)
        _log_once(name_of(type(websocket)))
    with contextlib.suppress(AttributeError):  # Litestar's has no attribute for it, so the scope is read each time
        setattr(websocket, ADAPTED, connection)
    return connection
