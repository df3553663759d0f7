"""The methods that are compared: each makes one call that sends the message to all clients.

A call sends one message, or those of a burst. The last five are the patterns of the websockets documentation
(topics/broadcast) that precede `broadcast()` there.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import broadcast as websockets_broadcast
from websockets.exceptions import ConnectionClosed

import wsfast
from wsfast._core import _pure, core

from .ticks import Burst

__all__ = ["CALLS", "Call", "Room", "core_in_use"]


@dataclass(slots=True)
class Room:
    """What the methods send, and to whom."""

    connections: Collection[ServerConnection]
    """Connections of websockets."""
    descriptors: array[int]
    """Those of the same connections in the same order."""
    strangers: Collection[Any]
    """Connections of picows; as many, in a collection of the same type."""
    forgetful: Collection[ServerConnection]
    """Connections of websockets that compress each message by itself; as many, in a collection of the same type."""
    stock: Sequence[ServerConnection] = ()
    """Those of websockets in the order in which they were accepted."""
    served: Sequence[ServerConnection] = ()
    """Connections of `wsfast.serve()`, as many, in that order too."""
    served_descriptors: array[int] = field(default_factory=lambda: array("i"))
    """Those of the latter."""
    messages: tuple[str | bytes, ...] = ()
    """What one call sends."""
    frames: bytes = b""
    """The same as frames, joined."""
    short: int = 0
    """How many sends of the floor the kernel has not taken completely."""

    def take(self, burst: Burst) -> None:
        """Have this sent by the next call."""
        self.messages, self.frames = burst

    @property
    def message(self) -> str | bytes:
        """What a method sends that sends one message in a call."""
        (message,) = self.messages
        return message


UNBOUNDED = wsfast.Disconnect(max_bytes=None)
"""All messages of a call are to arrive."""

Call: TypeAlias = Callable[[], None] | Callable[[], Coroutine[Any, Any, None]]
"""Sends the message to all clients. A coroutine function is done when all of its sends are."""


@contextmanager
def core_in_use(chosen: Any) -> Iterator[None]:
    """Have `wsfast.broadcast()` use that core, the extension or its twin, while in the context."""
    # The function wsfast.broadcast hides the module of that name.
    users: list[Any] = [sys.modules["wsfast._broadcast"], sys.modules["wsfast._encoding.message"]]
    before = [user.core for user in users]
    for user in users:
        user.core = chosen
    try:
        yield
    finally:
        for user, former in zip(users, before, strict=True):
            user.core = former


class Countdown:
    """Tells when the tasks that send for a method have all sent."""

    def __init__(self) -> None:
        self.left = 0
        self.done: asyncio.Future[None]

    def start(self, count: int) -> asyncio.Future[None]:
        """Return what is awaited until `sent()` has been called `count` times."""
        self.left = count
        self.done = asyncio.get_running_loop().create_future()
        return self.done

    def sent(self) -> None:
        """Count one."""
        self.left -= 1
        if self.left == 0 and not self.done.done():  # it may have been cancelled
            self.done.set_result(None)


# ---- One function for each method. What it needs before the first call and after the last one surrounds its `yield`.


@asynccontextmanager
async def floor(room: Room) -> AsyncIterator[Call]:
    """Measure against the least that there can be: system calls alone."""
    descriptors, count = room.descriptors, len(room.descriptors)

    def call() -> None:
        room.short += count - core.send_many(descriptors, room.frames)

    yield call


@asynccontextmanager
async def floor_of_served(room: Room) -> AsyncIterator[Call]:
    """Do the same over the sockets of `wsfast.serve()`: how many sockets a server has matters to the kernel."""
    descriptors, count = room.served_descriptors, len(room.served_descriptors)

    def call() -> None:
        room.short += count - core.send_many(descriptors, room.frames)

    yield call


@asynccontextmanager
async def by_wsfast(room: Room) -> AsyncIterator[Call]:
    """Call `wsfast.broadcast()`, which has the extension."""

    def call() -> None:
        for message in room.messages:
            wsfast.broadcast(room.connections, message)

    yield call


@asynccontextmanager
async def by_wsfast_served(room: Room) -> AsyncIterator[Call]:
    """Call `wsfast.broadcast()` with connections that tell what happens to them."""
    connections = list(room.served)

    def call() -> None:
        for message in room.messages:
            wsfast.broadcast(connections, message)

    yield call


@asynccontextmanager
async def by_audience(room: Room) -> AsyncIterator[Call]:
    """Call `wsfast.Audience.broadcast()`, which shares what the window holds between the connections."""
    audience = wsfast.Audience()

    def call() -> None:
        for message in room.messages:
            audience.broadcast(room.connections, message)

    yield call


@asynccontextmanager
async def by_channel(room: Room) -> AsyncIterator[Call]:
    """Publish in a channel and flush it, on connections that tell it what happens to them."""
    yield _publisher(room, wsfast.Channel(slow=UNBOUNDED), room.served)


@asynccontextmanager
async def by_channel_stock(room: Room) -> AsyncIterator[Call]:
    """Publish in a channel and flush it, on connections that must be asked.

    They are those of other methods, too, so their sockets are left as they are.
    """
    yield _publisher(room, wsfast.Channel(slow=UNBOUNDED, notsent_lowat=None), room.stock)


def _publisher(room: Room, channel: wsfast.Channel, connections: Sequence[ServerConnection]) -> Call:
    for connection in connections:
        channel.subscribe(connection)

    def call() -> None:
        for message in room.messages:
            channel.publish(message)
        channel.flush()

    return call


@asynccontextmanager
async def by_wsfast_pure(room: Room) -> AsyncIterator[Call]:
    """Call `wsfast.broadcast()` with the twin for its core, which costs two assignments more than without."""

    def call() -> None:
        with core_in_use(_pure):
            for message in room.messages:
                wsfast.broadcast(room.connections, message)

    yield call


@asynccontextmanager
async def by_websockets(room: Room) -> AsyncIterator[Call]:
    """Call `websockets.broadcast()`."""

    def call() -> None:
        for message in room.messages:
            websockets_broadcast(room.connections, message)

    yield call


@asynccontextmanager
async def without_takeover(room: Room) -> AsyncIterator[Call]:
    """Call `websockets.broadcast()` on connections whose encoders forget each message, as many a server's do."""

    def call() -> None:
        for message in room.messages:
            websockets_broadcast(room.forgetful, message)

    yield call


@asynccontextmanager
async def by_picows(room: Room) -> AsyncIterator[Call]:
    """Call the `broadcast()` of picows.websockets."""
    from picows.websockets import broadcast as picows_broadcast

    def call() -> None:
        for message in room.messages:
            picows_broadcast(room.strangers, message)

    yield call


@asynccontextmanager
async def await_each(room: Room) -> AsyncIterator[Call]:
    """Await each send before the next: the naive way."""

    async def call() -> None:
        for connection in list(room.connections):
            with contextlib.suppress(ConnectionClosed):
                await connection.send(room.message)

    yield call


@asynccontextmanager
async def task_each(room: Room) -> AsyncIterator[Call]:
    """Leave each send to a task of its own, so that slow clients delay nobody."""
    countdown = Countdown()

    async def send(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await connection.send(room.message)
        countdown.sent()

    async def call() -> None:
        done = countdown.start(len(room.connections))
        tasks = [asyncio.create_task(send(connection)) for connection in room.connections]
        await done
        del tasks  # until here, since the event loop itself keeps weak references alone

    yield call


@asynccontextmanager
async def wait_for_all(room: Room) -> AsyncIterator[Call]:
    """Wait for a task for each send."""

    async def send(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await connection.send(room.message)

    async def call() -> None:
        await asyncio.wait([asyncio.create_task(send(connection)) for connection in room.connections])

    yield call


@asynccontextmanager
async def queue_each(room: Room) -> AsyncIterator[Call]:
    """Put the message in a queue for each client, from which a task sends."""
    countdown = Countdown()

    async def relay(queue: asyncio.Queue[str | bytes], connection: ServerConnection) -> None:
        while True:
            message = await queue.get()
            await connection.send(message)
            countdown.sent()

    queues: list[asyncio.Queue[str | bytes]] = [asyncio.Queue() for _ in room.connections]
    relays = [relay(queue, connection) for queue, connection in zip(queues, room.connections, strict=True)]

    async def call() -> None:
        done = countdown.start(len(queues))
        for queue in queues:
            queue.put_nowait(room.message)
        await done

    async with _running(relays):
        yield call


class PubSub:
    """A stream of values to any number of subscribers: a linked list of futures."""

    def __init__(self) -> None:
        self.waiter: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def publish(self, value: str | bytes) -> None:
        """Pass a value to all that are subscribed."""
        waiter, self.waiter = self.waiter, asyncio.get_running_loop().create_future()
        waiter.set_result((value, self.waiter))

    async def subscribe(self) -> AsyncIterator[str | bytes]:
        """Iterate over the values from now on."""
        waiter = self.waiter
        while True:
            value, waiter = await waiter
            yield value

    __aiter__ = subscribe


@asynccontextmanager
async def publish_subscribe(room: Room) -> AsyncIterator[Call]:
    """Publish the message in a stream, from which a task for each client sends."""
    countdown = Countdown()
    stream = PubSub()

    async def relay(connection: ServerConnection) -> None:
        async for message in stream:
            await connection.send(message)
            countdown.sent()

    async def call() -> None:
        done = countdown.start(len(room.connections))
        stream.publish(room.message)
        await done

    async with _running([relay(connection) for connection in room.connections]):
        yield call


@asynccontextmanager
async def _running(coroutines: list[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run coroutines as tasks while in the context; they have begun to wait when it is entered."""
    tasks: list[asyncio.Task[None]] = [asyncio.create_task(coroutine) for coroutine in coroutines]
    await asyncio.sleep(0)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results: Awaitable[list[BaseException | None]] = asyncio.gather(*tasks, return_exceptions=True)
        await results


CALLS: dict[str, Callable[[Room], AbstractAsyncContextManager[Call]]] = {
    "floor": floor,
    "floor-served": floor_of_served,
    "wsfast": by_wsfast,
    "wsfast-served": by_wsfast_served,
    "channel": by_channel,
    "channel-stock": by_channel_stock,
    "audience": by_audience,
    "wsfast-pure": by_wsfast_pure,
    "websockets": by_websockets,
    "no-takeover": without_takeover,
    "picows": by_picows,
    "await": await_each,
    "tasks": task_each,
    "wait": wait_for_all,
    "queues": queue_each,
    "pubsub": publish_subscribe,
}
"""For each name of a method, what makes its call for a room of clients."""
