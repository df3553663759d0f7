"""Event streams: responses of HTTP through which clients get messages as server-sent events.

An `EventStream` writes chunks to the transport of its connection. Where that cannot be reached, or where something on
the way may change the body of a response, a `QueuedEventStream` has a bounded queue and a task that empties it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar

from websockets.protocol import CLOSED, OPEN, State

from wsfast._encoding.chunks import ChunkEncoder
from wsfast._encoding.message import PreparedMessage, self_contained

from . import ConnectionLayout, is_buffering
from .asgi_queue import HIGH_WATER, MAX_BUFFERED
from .foreign import Closer, Ended, Foreign, abort_later, layout_of

__all__ = ["BodyQueue", "EventStream", "QueuedEventStream", "WriteBody"]

WriteBody = Callable[[bytes], Awaitable[object]]

_ENCODER = ChunkEncoder()


def _encoder(_: object) -> ChunkEncoder:
    return _ENCODER


def _watch(stream: object, peer: object) -> None:
    """Do nothing: a stream knows its peer."""


class EventStream(Foreign):
    """The response through which one client gets events, as a connection for `broadcast()`, channels and hubs.

    Args:
        transport: The transport of its connection, or an object with the same methods.
        client: The client's address, for log records.
    """

    library = "event stream"
    reports_loss = True

    def __init__(self, transport: Any, client: object) -> None:
        self.transport: Any = transport
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.finished: asyncio.Future[None] = self.loop.create_future()
        """Done when nothing more will be published through it: the response can be ended."""
        self.recovered: bool | None = None
        """Whether a client that came back to a hub got everything it had missed; None for a new client."""
        self._client = client
        self._open = True
        self._why = Ended.LOST

    @property
    def state(self) -> State:
        """OPEN until the client is gone, or the response must end."""
        return OPEN if self._open else CLOSED

    @property
    def id(self) -> str:
        """A name for log records."""
        return f"{self.library} {self._client}"

    @property
    def lost(self) -> bool:
        """Whether the client is gone, or was given up."""
        return not self._open and self._why is Ended.LOST

    @property
    def idle(self) -> bool:
        """Whether a keepalive comment would be the next data on the wire."""
        waits = self._wsfast_peer is not None and self._wsfast_peer.backlog is not None
        return self._open and not waits and not self.transport.is_closing() and not is_buffering(self.transport)

    @classmethod
    def layout(cls) -> ConnectionLayout | None:
        """See `Foreign`."""
        return layout_of(cls, state="_open", open_state=True, encoder=_encoder, watch=_watch)

    def send_message(self, message: PreparedMessage) -> None:
        """Send a message."""
        self.transport.write(self_contained(message).chunk.frame)

    def closers(self) -> Sequence[Closer]:
        """See `Foreign`."""
        return ((self, "finish", lambda: True),)

    def why_lost(self) -> Ended:
        """See `Foreign`."""
        return self._why

    def finish(self) -> None:
        """End the response, after all messages that were published for it before, and its connection."""
        if self._open:
            self._end(Ended.CLOSED_HERE)
            abort_later(self.transport, self.loop)

    def lose(self) -> None:
        """Report that the client is gone."""
        self._end(Ended.LOST)

    def _end(self, why: Ended) -> None:
        if self._open:
            self._open = False
            self._why = why
            if self._wsfast_peer is not None:
                self._wsfast_peer.invalidate()
        super().lose()
        if not self.finished.done():
            self.finished.set_result(None)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """End the response. Event streams have neither codes nor reasons."""
        self.finish()

    def can_end_now(self) -> bool:
        """Whether the end of the response can be written without waiting for the client."""
        return False

    async def flush(self) -> bool:
        """Wait until the end of the response can be written; return whether the client is still there."""
        return not self.lost

    def release(self) -> None:
        """Forget the response, which has ended."""


class BodyQueue:
    """The queue of one response, with the methods of a transport.

    Args:
        write_body: Function that writes a part of the body, and waits as long as the client does not read.
        on_end: Called when nothing can be written any more.
    """

    def __init__(self, write_body: WriteBody, on_end: Callable[[], None]) -> None:
        self._write_body = write_body
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._parts: list[bytes] = []
        self._size = 0  # of these, and of what is being written
        self._writer: asyncio.Task[None] | None = None
        self._closing = False

    def write(self, data: bytes) -> None:
        """Append a part of the body.

        Raises:
            ConnectionError: If the client is gone, or is given up now because too much waits.
        """
        if self._size and self._size + len(data) > MAX_BUFFERED:
            self.abort()
        if self._closing:
            raise ConnectionError("the client is gone")
        self._parts.append(data)
        self._size += len(data)
        if self._writer is None:
            self._writer = self._loop.create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._parts:
                body = b"".join(self._parts)
                self._parts.clear()
                await self._write_body(body)
                self._size -= len(body)
        except Exception:  # any error of the server's: it cannot write to this client any more
            self.abort()
        finally:
            self._writer = None

    async def flush(self) -> None:
        """Wait until everything is written."""
        writer = self._writer
        if writer is not None:
            await asyncio.wait((writer,))

    def get_write_buffer_size(self) -> int:
        """Return the bytes in the queue, or 0 while there is room for more."""
        return self._size if self._size >= HIGH_WATER else 0

    def is_closing(self) -> bool:
        """Whether nothing can be written any more."""
        return self._closing

    def abort(self) -> None:
        """Give up the client."""
        if self._closing:
            return
        self._closing = True
        self._parts.clear()
        if self._writer is not None:
            self._writer.cancel()
        self._on_end()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the default: nothing is known."""
        return default


class QueuedEventStream(EventStream):
    """An event stream whose messages go through a queue, to a function that writes parts of a body.

    Args:
        write_body: See `BodyQueue`.
        client: The client's address, for log records.
    """

    queues: ClassVar[bool] = True

    def __init__(self, write_body: WriteBody, client: object) -> None:
        super().__init__(BodyQueue(write_body, self.lose), client)

    @classmethod
    def layout(cls) -> ConnectionLayout | None:
        """See `Foreign`."""
        return None

    def send_message(self, message: PreparedMessage) -> None:
        """Append a message to the queue."""
        self.transport.write(self_contained(message).event)

    async def flush(self) -> bool:
        """See `EventStream`. The queue is aborted if this takes too long."""
        await self.transport.flush()
        return not self.lost and not self.transport.is_closing()

    def release(self) -> None:
        """See `EventStream`."""
        self.transport.abort()
