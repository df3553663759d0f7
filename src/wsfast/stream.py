"""Streams: what is published, as an asynchronous iterator."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary

from ._arguments import Local, check_integer
from ._encoding.message import PreparedMessage

__all__ = ["STREAM_BOUND", "Stream", "Streams"]

STREAM_BOUND = 1024
"""Messages that wait in a stream."""


class Streams(WeakValueDictionary[int, "Stream"]):
    """The streams of a channel or a topic, which does not keep them alive."""

    def add(self, stream: Stream) -> None:
        """Have a stream get what is published from now on."""
        if not stream.closed:
            stream.streams = self
            self[id(stream)] = stream

    def put(self, message: PreparedMessage) -> None:
        """Add a message to each."""
        for reference in self.valuerefs():  # a copy: streams may come and go meanwhile
            stream = reference()
            if stream is not None:
                stream.put(message)


class Stream(Local, AsyncIterator[str | bytes]):
    """The messages of a channel, as they are published.

    It ends when it is closed, which ends the iteration after what waits, or when nobody refers to it any more.
    """

    def __init__(self, max_messages: int, loop: asyncio.AbstractEventLoop) -> None:
        check_integer("max_messages", max_messages)
        self.dropped: int = 0
        """Messages that were dropped since too many waited."""
        self.closed: bool = False
        """Whether it was closed."""
        self.streams: Streams | None = None
        self._messages: deque[PreparedMessage] = deque()
        self._max_messages = max_messages
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        self.closed = True
        if self.streams is not None:
            self.streams.pop(id(self), None)
        self._wake()

    def put(self, message: PreparedMessage) -> None:
        """Add a message."""
        if len(self._messages) == self._max_messages:
            self._messages.popleft()
            self.dropped += 1
        self._messages.append(message)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def __anext__(self) -> str | bytes:
        while not self._messages:
            if self.closed:
                raise StopAsyncIteration
            if asyncio.get_running_loop() is not self._loop:
                raise RuntimeError("a Stream must be iterated over in the event loop of its channel")
            if self._waiter is None or self._waiter.done():
                self._waiter = self._loop.create_future()
            await asyncio.shield(self._waiter)
        message = self._messages.popleft()
        return message.data.decode() if message.text else message.data
