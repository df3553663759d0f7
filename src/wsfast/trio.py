"""`broadcast()` for connections of websockets.trio: `await wsfast.trio.broadcast(connections, message)`."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal

from websockets.exceptions import ConcurrencyError
from websockets.protocol import OPEN

from ._arguments import needs
from ._broadcast import SEND_TIMEOUT, Delivery, Reporter, check_timeout
from ._encoding.message import Message, frame_for, prepare
from ._encoding.shared import encodings_of
from .connections import name_of
from .connections.websockets import encoder_of_extensions, without_deflate

with needs("trio", "trio"):
    import trio
with needs("websockets>=17", "websockets"):
    import websockets.trio.connection

__all__ = ["broadcast"]


async def broadcast(
    connections: Iterable[object],
    message: Message,
    *,
    raise_exceptions: bool = False,
    text: bool | None = None,
    compress: Literal[False] | None = None,
    timeout: float | None = SEND_TIMEOUT,
) -> Delivery:
    """Broadcast a message to several connections of websockets.trio.

    This function is a drop-in for `websockets.trio.server.broadcast()`: it returns when each connection has taken the
    message or failed. The message is framed and compressed once. Connections that have room get it at once. Only a
    connection that does not take all of it gets a task of its own, so that no connection waits for another.

    Args:
        connections: Connections of `websockets.trio`, server or client side.
        message: As in `wsfast.broadcast()`.
        raise_exceptions: Whether to raise failures at the end instead of logging each as a warning.
        text: True to send bytes, which must be UTF-8, in a Text frame; False to send a string in a Binary frame.
        compress: None to compress the message where the connection allows it; False to never compress it.
        timeout: Seconds that each connection has to take the message; all of them have the same deadline. None for no
            limit. A connection that is late is closed and counts as a failure.

    Returns:
        How many connections the message was sent to, skipped and not written to. `buffered` is always 0.

    Raises:
        TypeError: If `message` has another type, or one of `connections` is not a connection of websockets.trio.
        ValueError: If `timeout` is not positive.
        ExceptionGroup: With `raise_exceptions`, if the message could not be written to some of the connections.
    """
    prepared = prepare(message, text, compress)
    check_timeout(timeout)
    connections = list(connections)
    fan_out = _FanOut(encodings_of(prepared, len(connections)), prepared, raise_exceptions, timeout)
    for connection in connections:
        if not isinstance(connection, websockets.trio.connection.Connection):
            raise TypeError(
                f"cannot broadcast to {name_of(type(connection))}: wsfast.trio.broadcast() is for connections of "
                "websockets.trio only; use wsfast.broadcast() for others"
            )
    async with trio.open_nursery() as nursery:
        await fan_out.send(connections, nursery)
    if fan_out.exceptions:
        raise ExceptionGroup("skipped broadcast", fan_out.exceptions)
    return Delivery(fan_out.sent, 0, fan_out.skipped, fan_out.failed)


class _FanOut(Reporter):
    """One call of `broadcast()` in progress."""

    def __init__(self, encodings: Any, message: Any, raise_exceptions: bool, timeout: float | None) -> None:
        super().__init__(raise_exceptions)
        self.message = message
        self.timeout = timeout
        self.deadline = math.inf if timeout is None else trio.current_time() + timeout
        self.encodings = encodings

    async def send(self, connections: list[Any], nursery: trio.Nursery) -> None:
        """Send to each connection what it takes at once; start a task for each that does not take all of it."""
        held: set[Any] = set()
        # Only the task that acquired a lock can release it: this one does so when another task is finished.
        finished, wait_finished = trio.open_memory_channel[Any](len(connections))
        for connection in connections:
            if not self._is_fit(connection):
                continue
            try:
                connection.send_lock.acquire_nowait()
            except (trio.WouldBlock, RuntimeError):  # another task is sending; or the connection was given twice
                nursery.start_soon(self._send_in_turn, connection)
                continue
            rest: memoryview | None = None
            try:
                rest = self._begin(connection)
            except Exception as exc:
                connection.send_lock.release()
                self.report_failure(connection, exc)
                continue
            if rest is None:
                connection.send_lock.release()
                nursery.start_soon(self._send_in_turn, connection)
            elif rest:
                held.add(connection)
                nursery.start_soon(self._send_rest, connection, rest, finished)
            else:
                connection.send_lock.release()
                self.sent += 1
        try:
            while held:
                connection = await wait_finished.receive()
                held.remove(connection)
                connection.send_lock.release()
        finally:
            for connection in held:  # this call was cancelled: part of a frame is out, and nothing may follow it
                connection.stream.socket.close()
                connection.send_lock.release()

    def _is_fit(self, connection: Any) -> bool:
        if connection.protocol.state is not OPEN:
            self.skipped += 1
            return False
        if connection.send_in_progress is not None:
            self.report_fragmented(connection, ConcurrencyError("sending a fragmented message"))
            return False
        return True

    def _begin(self, connection: Any) -> memoryview | None:
        """Send what the kernel takes at once; return the rest of the frame, or None if sending directly is impossible.

        The connection's lock must be held.
        """
        if sys.platform == "win32":  # no dup() of a socket's descriptor there, and no MSG_DONTWAIT
            return None
        protocol = connection.protocol
        encoder = encoder_of_extensions(protocol.extensions)
        if encoder is False or protocol.debug or protocol.writes or type(connection.stream) is not trio.SocketStream:
            return None
        frame, window = frame_for(encoder, self.encodings, masked=protocol.side.name == "CLIENT")
        try:
            sock = socket.socket(fileno=os.dup(connection.stream.socket.fileno()))
        except OSError:  # for example, when there are no more descriptors
            return None
        try:
            taken = sock.send(frame, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            taken = 0
        finally:
            sock.close()
        if encoder is not None:
            encoder.move_to(window)
        return memoryview(frame)[taken:]

    async def _send_rest(self, connection: Any, rest: memoryview, finished: trio.MemorySendChannel[Any]) -> None:
        try:
            await self._in_time(connection, lambda: connection.stream.send_all(rest))
        finally:
            finished.send_nowait(connection)

    async def _in_time(self, connection: Any, send: Callable[[], Awaitable[object]]) -> None:
        """Send, and report the outcome. A connection that is late is closed, because half a frame may be out."""
        try:
            with trio.CancelScope(deadline=self.deadline) as scope:
                await send()
        except Exception as exc:
            self.report_failure(connection, exc)
            return
        if not scope.cancelled_caught:
            self.sent += 1
            return
        with trio.CancelScope(shield=True):  # closing forcefully waits for nothing
            await trio.aclose_forcefully(connection.stream)
        self.report_failure(connection, TimeoutError(f"the client has not taken the message within {self.timeout} s"))

    async def _send_in_turn(self, connection: Any) -> None:
        """Send the message by the connection's own methods."""
        if not self._is_fit(connection):
            return
        send = connection.protocol.send_text if self.message.text else connection.protocol.send_binary
        try:
            with contextlib.nullcontext() if self.message.compress is None else without_deflate(connection.protocol):
                send(self.message.data)
        except Exception as exc:
            self.report_failure(connection, exc)
        else:
            await self._in_time(connection, connection.send_data)
