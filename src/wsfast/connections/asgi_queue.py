"""The queue of a WebSocket that can only be sent to with ASGI's `await send(message)`.

`send()` waits as long as the client does not read. So each WebSocket has a bounded queue, and a task that empties it.
Messages of the application go through the same queue, which keeps their order.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeAlias

from . import foreign
from .foreign import Ended

__all__ = ["HIGH_WATER", "MAX_BUFFERED", "AsgiMessage", "AsgiQueue", "Receive", "Send"]

HIGH_WATER = 64 * 1024
"""Bytes in the queue from which on messages of channels and hubs wait in their own bounded queues instead."""

MAX_BUFFERED = 16 * 1024 * 1024
"""Bytes in the queue beyond which `broadcast()` gives up a client."""

AsgiMessage: TypeAlias = dict[str, Any]
Send: TypeAlias = Callable[[AsgiMessage], Awaitable[None]]
Receive: TypeAlias = Callable[[], Awaitable[Any]]


class _Waiting(NamedTuple):
    """A message in the queue."""

    message: AsgiMessage
    size: int
    sent: asyncio.Future[None] | None
    """The future that the application awaits; None for messages of wsfast."""


class AsgiQueue:
    """The queue of one WebSocket, with the methods of a transport.

    Args:
        send: The server's function.
        receive: The server's function, or one that the framework has in its place.
        loop: The event loop.
        on_end: Called when nothing can be sent any more.
    """

    def __init__(
        self, send: Send, receive: Receive, loop: asyncio.AbstractEventLoop, on_end: Callable[[], None]
    ) -> None:
        self._send = send
        self._receive = receive
        self._loop = loop
        self._on_end = on_end
        self._queue: deque[_Waiting] = deque()
        self._size = 0
        self._writer: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[Any] | None = None
        self._closer: asyncio.Task[None] | None = None
        self._end: asyncio.Future[AsgiMessage] = loop.create_future()
        self.why: Ended = Ended.LOST
        """Why it has ended."""

    def put(self, message: AsgiMessage, size: int) -> None:
        """Append a message of wsfast.

        Args:
            message: The message.
            size: Bytes that it counts for.

        Raises:
            ConnectionError: If the connection has ended, or ends now because too much waits.
        """
        if self._queue and self._size + size > MAX_BUFFERED:
            self._give_up(1013, "slow consumer", Ended.SLOW_CONSUMER)
        self._append(_Waiting(message, size, None))

    def _append(self, waiting: _Waiting) -> None:
        if self._end.done():
            raise ConnectionError("the connection has ended")
        self._queue.append(waiting)
        self._size += waiting.size
        if self._writer is None:
            self._writer = self._loop.create_task(self._write())

    async def _write(self) -> None:
        """Empty the queue."""
        try:
            while self._queue:
                message, size, sent = self._queue[0]
                if sent is None or not sent.done():  # the application may have cancelled the task that waits
                    await self._send(message)
                if not self._end.done():
                    self._queue.popleft()
                    self._size -= size
                if sent is not None and not sent.done():
                    sent.set_result(None)
        except Exception as exc:  # any error of the server's
            self.end(1006, "", Ended.LOST, exc)
        finally:
            self._writer = None

    async def send(self, message: AsgiMessage) -> None:
        """Send a message of the application, after all messages that were appended before.

        Raises:
            ConnectionError: If the connection has ended.
        """
        sent = self._loop.create_future()
        self._append(_Waiting(message, len(message.get("text") or message.get("bytes") or ""), sent))
        if message["type"] != "websocket.close":
            await sent
            return
        code, reason = message.get("code") or 1000, message.get("reason") or ""
        try:
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(foreign.CLOSE_TIMEOUT):
                    await sent
        except TimeoutError:
            self._give_up(code, reason, Ended.CLOSED_HERE)
        else:
            self.end(code, reason, Ended.CLOSED_HERE)

    async def written(self) -> None:
        """Wait until the server has taken everything in the queue, or the connection has ended."""
        if self._writer is not None:
            await asyncio.wait([self._writer])

    async def receive(self) -> Any:
        """Receive a message for the application; a disconnect as soon as nothing can be sent any more."""
        while not self._end.done():
            reader = self._read()
            await asyncio.wait((reader, self._end), return_when=asyncio.FIRST_COMPLETED)
            if reader is self._reader and reader.done() and not reader.cancelled():
                self._reader = None
                return reader.result()
        return self._end.result()

    def _read(self) -> asyncio.Task[Any]:
        if self._reader is None:
            self._reader = self._loop.create_task(self._receive_next())
        return self._reader

    async def _receive_next(self) -> Any:
        try:
            message = await self._receive()
        except Exception as exc:  # any error of the server's
            self.end(1006, "", Ended.LOST, exc)
            return self._end.result()
        if isinstance(message, dict) and message["type"] == "websocket.disconnect":
            code = message.get("code") or 1006
            self.end(code, message.get("reason") or "", Ended.LOST if code == 1006 else Ended.CLOSED_BY_PEER)
        return message

    def watch(self) -> None:
        """Receive one message ahead, so that the end of the connection is noticed while the application only sends."""
        if not self._end.done():
            self._read()

    def end(self, code: int, reason: str, why: Ended, exc: Exception | None = None) -> None:
        """Send nothing more, and have the application receive a disconnect.

        Args:
            code: The code of the disconnect.
            reason: The reason of the disconnect.
            why: Why it ends.
            exc: The exception for tasks of the application that wait to send; None for a ConnectionError.
        """
        if self._end.done():
            return
        self.why = why
        self._end.set_result({"type": "websocket.disconnect", "code": code, "reason": reason})
        for waiting in self._queue:
            if waiting.sent is not None and not waiting.sent.done():
                waiting.sent.set_exception(exc or ConnectionError("the connection has ended"))
        self._queue.clear()
        self._size = 0
        current = asyncio.current_task(self._loop) if self._loop.is_running() else None
        for task in (self._writer, self._reader):
            if task is not None and task is not current:
                task.cancel()
        self._on_end()

    def _give_up(self, code: int, reason: str, why: Ended) -> None:
        """End it though the client may still read, and have the server close the connection when it can.

        The application may never hear of the end: it may wait in the server's own function since before the first
        subscription.
        """
        if self._end.done():
            return
        closing = next((one.message for one in self._queue if one.message["type"] == "websocket.close"), None)
        writer = self._writer
        self.end(code, reason, why)
        self._closer = self._loop.create_task(
            self._close(writer, closing or {"type": "websocket.close", "code": 1013, "reason": reason})
        )

    async def _close(self, writer: asyncio.Task[None] | None, closing: AsgiMessage) -> None:
        """Close the connection behind what the server has taken already. This may take as long as the connection."""
        if writer is not None:
            await asyncio.wait([writer])
        with contextlib.suppress(Exception):  # the application may have ended, or the server knows the end already
            await self._send(closing)

    def write(self, data: Any) -> None:
        """Do nothing. Frames cannot be written; only an empty write, which asks for errors, comes here."""

    def get_write_buffer_size(self) -> int:
        """Return the bytes in the queue, or 0 while there is room for more."""
        return self._size if self._size >= HIGH_WATER else 0

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._end.done()

    def abort(self) -> None:
        """Give up the client. The application receives a disconnect, and the server closes the connection."""
        self._give_up(1006, "", self.why)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the default: nothing is known."""
        return default
