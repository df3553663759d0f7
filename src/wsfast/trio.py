"""`broadcast()` for connections of websockets.trio: `await wsfast.trio.broadcast(connections, message)`."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterable
from typing import Any, Literal

from websockets.exceptions import ConcurrencyError
from websockets.protocol import OPEN

from ._arguments import needs
from ._broadcast import Delivery, Reporter
from ._encoding.message import Message, encodings_of, frame_for, prepare
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
) -> Delivery:
    """Broadcast a message to several connections of websockets.trio.

    A drop-in for `websockets.trio.server.broadcast()`: it returns when all connections have taken the message, or have
    failed. The message is framed, and compressed, once. Connections that have room are sent to at once; only for what
    they do not take is a task made, so that nobody waits for anybody else.

    Args:
        connections: Connections of `websockets.trio`, server or client side.
        message: As in `wsfast.broadcast()`.
        raise_exceptions: Whether to raise failures at the end rather than to log each as a warning.
        text: True to send bytes, which must be UTF-8, in a Text frame; False to send a string in a Binary frame.
        compress: None to compress the message where the connection allows it; False not to.

    Returns:
        How many connections the message was sent to, skipped and not written to. None is ever buffered for.

    Raises:
        TypeError: If `message` has another type, or one of `connections` is none of websockets.trio.
        ExceptionGroup: With `raise_exceptions`, if the message could not be written to some of the connections.
    """
    prepared = prepare(message, text, compress)
    fan_out = _FanOut(prepared, raise_exceptions)
    connections = list(connections)
    for connection in connections:
        if not isinstance(connection, websockets.trio.connection.Connection):
            raise TypeError(f"cannot broadcast to {name_of(type(connection))}: it is no connection of websockets.trio")
    async with trio.open_nursery() as nursery:
        await fan_out.send(connections, nursery)
    if fan_out.exceptions:
        raise ExceptionGroup("skipped broadcast", fan_out.exceptions)
    return Delivery(fan_out.sent, 0, fan_out.skipped, fan_out.failed)


class _FanOut(Reporter):
    """One call of `broadcast()` on its way."""

    def __init__(self, message: Any, raise_exceptions: bool) -> None:
        super().__init__(raise_exceptions)
        self.message = message
        self.encodings = encodings_of(message)

    async def send(self, connections: list[Any], nursery: trio.Nursery) -> None:
        """Send to each connection what it takes at once, and start tasks for the rest."""
        held: set[Any] = set()
        # A lock can only be released by the task that has acquired it: this one, when it is told to.
        finished, wait_finished = trio.open_memory_channel[Any](len(connections))
        for connection in connections:
            if not self._is_fit(connection):
                continue
            try:
                connection.send_lock.acquire_nowait()
            except (trio.WouldBlock, RuntimeError):  # another task sends, or this one, to a connection given twice
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
            for connection in held:  # it was cancelled: a frame was cut off, and nothing may follow that
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
        """Send what goes out at once, with the lock held; return the rest, or None if that is all of it."""
        if sys.platform == "win32":  # no dup() of a socket's descriptor there, and no MSG_DONTWAIT
            return None
        protocol = connection.protocol
        encoder = encoder_of_extensions(protocol.extensions)
        if encoder is False or protocol.debug or protocol.writes or type(connection.stream) is not trio.SocketStream:
            return None
        frame, window = frame_for(encoder, self.encodings, masked=protocol.side.name == "CLIENT")
        sock = socket.socket(fileno=os.dup(connection.stream.socket.fileno()))
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
            await connection.stream.send_all(rest)
        except Exception as exc:
            self.report_failure(connection, exc)
        else:
            self.sent += 1
        finally:
            finished.send_nowait(connection)

    async def _send_in_turn(self, connection: Any) -> None:
        """Send the message by the connection's own methods."""
        if not self._is_fit(connection):
            return
        send = connection.protocol.send_text if self.message.text else connection.protocol.send_binary
        try:
            with contextlib.nullcontext() if self.message.compress is None else without_deflate(connection.protocol):
                send(self.message.data)
            await connection.send_data()
        except Exception as exc:
            self.report_failure(connection, exc)
        else:
            self.sent += 1
