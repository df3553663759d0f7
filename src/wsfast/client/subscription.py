"""Subscriptions: the messages of a topic for one iteration."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable

from .values import Message

__all__ = ["Queue", "Subscription"]


class Queue:
    """The messages that wait in a subscription. The client has this, so that a subscription can be freed."""

    __slots__ = ("active", "bound", "changed", "error", "messages", "room", "topic")

    def __init__(self, topic: str, bound: int) -> None:
        self.topic: str = topic
        self.bound: int = bound
        self.active: bool = True
        self.error: Exception | None = None
        self.messages: deque[Message] = deque()
        self.changed: asyncio.Event = asyncio.Event()
        self.room: asyncio.Event = asyncio.Event()

    async def put(self, message: Message) -> None:
        """Add a message, once there is room."""
        while self.active and len(self.messages) >= self.bound:
            self.room.clear()
            await self.room.wait()
        if self.active:
            self.messages.append(message)
            self.changed.set()

    def end(self, error: Exception | None = None) -> None:
        """Accept no more messages. After those that wait, the iteration raises the error, if there is one."""
        self.active = False
        self.error = error
        self.changed.set()
        self.room.set()


class Subscription:
    """One use of a topic: an asynchronous iterator of its messages.

    Ends by `unsubscribe()`, with the client, or when nothing refers to it any more, as after `break` in a loop over
    `client.subscribe(topic)`.

    At most `queue` messages wait in it. When it is full, the client reads nothing more from its connection, for none of
    its topics, until a message is taken. So nothing is dropped here, and the server's policy for slow clients decides.
    """

    def __init__(
        self,
        queue: Queue,
        leave: Callable[[Queue], None],
        abandon: Callable[[Queue, asyncio.AbstractEventLoop], None],
    ) -> None:
        self._queue = queue
        self._unsubscribe = leave
        weakref.finalize(self, abandon, queue, asyncio.get_running_loop()).atexit = False

    def __repr__(self) -> str:
        return f"<Subscription to {self.topic}{'' if self.active else ', ended'}>"

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        queue = self._queue
        while not queue.messages:
            if not queue.active:
                raise queue.error or StopAsyncIteration
            queue.changed.clear()
            await queue.changed.wait()
        message = queue.messages.popleft()
        queue.room.set()
        return message

    @property
    def topic(self) -> str:
        """The topic."""
        return self._queue.topic

    @property
    def active(self) -> bool:
        """Whether more messages may come."""
        return self._queue.active

    @property
    def queued(self) -> int:
        """Messages that wait."""
        return len(self._queue.messages)

    def unsubscribe(self) -> None:
        """End the subscription. The iteration ends after the messages that wait. Calling it again does nothing."""
        self._unsubscribe(self._queue)
