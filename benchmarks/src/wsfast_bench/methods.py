"""The methods that are compared: each makes one call that sends the message to all clients.

A call sends one message, or those of a burst. The last five are the patterns of the websockets documentation
(topics/broadcast) that precede `broadcast()` there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import broadcast as websockets_broadcast
from websockets.exceptions import ConnectionClosed

import wsfast

from ._library import core_in_use, extension_present, pure_core
from .machine import UnfitError, installed
from .native import send_file_many, send_many
from .node import NodeServer
from .ticks import Burst

__all__ = ["METHODS", "UNBOUNDED", "Call", "Method", "Room", "floor_of"]


@dataclass(slots=True)
class Room:
    """The messages that methods send, and the connections that get them."""

    connections: Collection[ServerConnection]
    """Connections of websockets."""
    descriptors: array[int]
    """Descriptors of the same connections, in the same order."""
    strangers: Collection[Any]
    """Connections of picows.websockets; as many, in a collection of the same type."""
    forgetful: Collection[ServerConnection]
    """Connections of websockets that compress each message by itself; as many, in a collection of the same type."""
    stock: Sequence[ServerConnection] = ()
    """Connections of websockets, in the order in which they were accepted."""
    served: Sequence[ServerConnection] = ()
    """Connections of `wsfast.serve()`, as many, in that order too."""
    served_descriptors: array[int] = field(default_factory=lambda: array("i"))
    """Descriptors of the connections of `wsfast.serve()`."""
    transports: Sequence[Any] = ()
    """Transports of picows, as many, in that order."""
    node: NodeServer | None = None
    """The server in Node."""
    messages: tuple[str | bytes, ...] = ()
    """Messages that one call sends."""
    frames: bytes = b""
    """The same as frames, joined."""
    short: int = 0
    """How many sends the kernel has not taken completely, of those that tell: the floor's, for one."""
    owed: list[tuple[int, bytes]] = field(default_factory=list)
    """The rests of these sends, with their descriptors."""

    def take(self, burst: Burst) -> None:
        """Have this sent by the next call."""
        self.messages, self.frames = burst

    def offer(self, descriptors: array[int]) -> None:
        """Do what a floor does; what the kernel does not take is owed."""
        self._owe(descriptors, send_many(descriptors, self.frames))

    def offer_file(self, descriptors: array[int]) -> None:
        """Do the same by `sendfile()` of a file in memory, which is new for each call. Linux only."""
        file = os.memfd_create("floor")
        try:
            os.write(file, self.frames)
            cut = send_file_many(descriptors, file, len(self.frames))
        finally:
            os.close(file)
        self._owe(descriptors, cut)

    def _owe(self, descriptors: array[int], cut: list[tuple[int, int]]) -> None:
        frames = self.frames
        for index, taken in cut:
            self.short += 1
            self.owed.append((descriptors[index], frames[taken:]))

    def pay(self) -> None:
        """Send what is owed, as far as there is room: a stream must go on with the rest of a frame.

        Raises:
            UnfitError: If a client has gone.
        """
        owed, self.owed = self.owed, []
        for fd, data in owed:
            try:
                data = data[os.write(fd, data) :]
            except BlockingIOError:
                pass
            except OSError as exc:
                raise UnfitError(f"a client has gone: {exc}") from None
            if data:
                self.owed.append((fd, data))

    @property
    def message(self) -> str | bytes:
        """The message of a method that sends one message in a call."""
        (message,) = self.messages
        return message


UNBOUNDED = wsfast.Disconnect(max_bytes=None)
"""All messages of a call must arrive."""

Call: TypeAlias = Callable[[], None] | Callable[[], Coroutine[Any, Any, tuple[int, int] | None]]
"""Sends the message to all clients. A coroutine function is done when all of its sends are.

Where another process sends, it returns the nanoseconds of the call and of the processor there, which has slept."""


@dataclass(frozen=True, slots=True)
class Method:
    """A compared method: a way to send a message to all clients."""

    name: str
    help: str
    call: Callable[[Room], AbstractAsyncContextManager[Call]]
    """Makes its call for a room of clients; what it needs before the first and after the last surrounds a `yield`."""
    server: str = "stock"
    """Name of the server whose connections it sends to."""
    floor: str = "floor"
    """The method over the same sockets against which its efficiency is told."""
    feature: str | None = None
    """A requirement: a module, the extension, or Node."""
    compressed: bool = False
    """Whether it means nothing without compression."""
    awaits: bool = False
    """Whether its call is a coroutine. It sends one message after the other, as ever, and so is left out of bursts."""
    apart: bool = False
    """Whether it is measured, unless asked otherwise, where each method has connections of its own, which are many."""
    group: Literal["ours", "theirs", "floor"] = "ours"

    @property
    def present(self) -> bool:
        """Whether what it needs is there: the extension, or a module."""
        return extension_present() if self.feature == "extension" else self.feature is None or installed(self.feature)


METHODS: dict[str, Method] = {}
"""Methods by their names, in the order in which they are shown."""

_Open: TypeAlias = Callable[[Room], AbstractAsyncContextManager[Call]]


def method(name: str, what: str, **attributes: Any) -> Callable[[_Open], _Open]:
    """Make a method of a function, with these attributes."""

    def register(call: _Open) -> _Open:
        METHODS[name] = Method(name, what, call, **attributes)
        return call

    return register


def floor_of(name: str) -> str:
    """Return the floor of a method; it may be one that only an earlier release had."""
    return METHODS[name].floor if name in METHODS else "floor"


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


# ---- One function for each method


@method("floor", "a bare loop of send() in C over the same sockets", feature="extension", apart=True, group="floor")
@asynccontextmanager
async def floor(room: Room) -> AsyncIterator[Call]:
    """Measure against the least that there can be: system calls alone."""
    descriptors = room.descriptors
    yield lambda: room.offer(descriptors)


@method(
    "floor-served",
    "the same loop over connections of wsfast.serve()",
    server="served",
    floor="floor-served",
    feature="extension",
    apart=True,
    group="floor",
)
@asynccontextmanager
async def floor_of_served(room: Room) -> AsyncIterator[Call]:
    """Do the same over the sockets of `wsfast.serve()`: how many sockets a server has matters to the kernel."""
    descriptors = room.served_descriptors
    yield lambda: room.offer(descriptors)


@method("wsfast", "wsfast.broadcast()", feature="extension", apart=True)
@asynccontextmanager
async def by_wsfast(room: Room) -> AsyncIterator[Call]:
    """Call `wsfast.broadcast()`, which has the extension."""

    def call() -> None:
        for message in room.messages:
            wsfast.broadcast(room.connections, message)

    yield call


@method(
    "wsfast-served",
    "wsfast.broadcast(), on connections of wsfast.serve()",
    server="served",
    floor="floor-served",
    feature="extension",
    apart=True,
)
@asynccontextmanager
async def by_wsfast_served(room: Room) -> AsyncIterator[Call]:
    """Call `wsfast.broadcast()` with connections that tell what happens to them."""
    connections = list(room.served)

    def call() -> None:
        for message in room.messages:
            wsfast.broadcast(connections, message)

    yield call


@method(
    "channel",
    "publish() and flush() of a wsfast.Channel, on connections of wsfast.serve()",
    server="served",
    floor="floor-served",
    feature="extension",
    apart=True,
)
@asynccontextmanager
async def by_channel(room: Room) -> AsyncIterator[Call]:
    """Publish in a channel and flush it, on connections that tell it what happens to them."""
    yield _publisher(room, wsfast.Channel(slow=UNBOUNDED), room.served)


@method("channel-stock", "publish() and flush() of a wsfast.Channel, on stock connections", feature="extension")
@asynccontextmanager
async def by_channel_stock(room: Room) -> AsyncIterator[Call]:
    """Publish in a channel and flush it, on connections that must be asked.

    They are those of other methods, too, so their sockets are left as they are.
    """
    yield _publisher(room, wsfast.Channel(slow=UNBOUNDED, notsent_lowat=None), room.stock)


@method(
    "hub",
    "publish() and flush() of a wsfast.Hub, on connections of wsfast.serve()",
    server="served",
    floor="floor-served",
    feature="extension",
    apart=True,
)
@asynccontextmanager
async def by_hub(room: Room) -> AsyncIterator[Call]:
    """Publish to a topic of a hub and flush it, on connections that tell it what happens to them."""
    hub = wsfast.Hub(slow=UNBOUNDED)
    for connection in room.served:
        hub.subscribe(connection, "bench")

    def call() -> None:
        for message in room.messages:
            hub.publish("bench", message)
        hub.flush()

    yield call


def _publisher(room: Room, channel: wsfast.Channel, connections: Sequence[ServerConnection]) -> Call:
    for connection in connections:
        channel.subscribe(connection)

    def call() -> None:
        for message in room.messages:
            channel.publish(message)
        channel.flush()

    return call


@method("wsfast-pure", "wsfast.broadcast() with the core in plain Python")
@asynccontextmanager
async def by_wsfast_pure(room: Room) -> AsyncIterator[Call]:
    """Call `wsfast.broadcast()` with the twin for its core, which costs two assignments more than without."""

    def call() -> None:
        with core_in_use(pure_core):
            for message in room.messages:
                wsfast.broadcast(room.connections, message)

    yield call


@method("websockets", "websockets.broadcast()", apart=True, group="theirs")
@asynccontextmanager
async def by_websockets(room: Room) -> AsyncIterator[Call]:
    """Call `websockets.broadcast()`."""

    def call() -> None:
        for message in room.messages:
            websockets_broadcast(room.connections, message)

    yield call


@method(
    "no-takeover",
    "websockets.broadcast(), each message compressed by itself, on connections of its own (only with compression)",
    server="no-takeover",
    compressed=True,
    group="theirs",
)
@asynccontextmanager
async def without_takeover(room: Room) -> AsyncIterator[Call]:
    """Call `websockets.broadcast()` on connections whose encoders forget each message, as many a server's do."""

    def call() -> None:
        for message in room.messages:
            websockets_broadcast(room.forgetful, message)

    yield call


@method(
    "picows",
    "broadcast() of picows.websockets, on connections of its own",
    server="picows",
    feature="picows",
    apart=True,
    group="theirs",
)
@asynccontextmanager
async def by_picows(room: Room) -> AsyncIterator[Call]:
    """Call the `broadcast()` of picows.websockets."""
    from picows.websockets import broadcast as picows_broadcast

    def call() -> None:
        for message in room.messages:
            picows_broadcast(room.strangers, message)

    yield call


@method(
    "node",
    "ws in Node, one frame for all clients, in a process of its own (only with --node)",
    server="node",
    feature="node",
    awaits=True,
    apart=True,
    group="theirs",
)
@asynccontextmanager
async def by_node(room: Room) -> AsyncIterator[Call]:
    """Have the server in Node make one frame and write it to all of its sockets."""
    assert room.node is not None
    node = room.node

    async def call() -> tuple[int, int]:
        return await node.send(room.messages)

    yield call


@method("await", "await connection.send() in a loop", awaits=True, group="theirs")
@asynccontextmanager
async def await_each(room: Room) -> AsyncIterator[Call]:
    """Await each send before the next: the naive way."""

    async def call() -> None:
        for connection in list(room.connections):
            with contextlib.suppress(ConnectionClosed):
                await connection.send(room.message)

    yield call


@method("tasks", "a task per client and message", awaits=True, group="theirs")
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


@method("wait", "asyncio.wait() for a task per client and message", awaits=True, group="theirs")
@asynccontextmanager
async def wait_for_all(room: Room) -> AsyncIterator[Call]:
    """Wait for a task for each send."""

    async def send(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await connection.send(room.message)

    async def call() -> None:
        await asyncio.wait([asyncio.create_task(send(connection)) for connection in room.connections])

    yield call


@method("queues", "a queue and a task per client", awaits=True, group="theirs")
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


@method("pubsub", "a publish-subscribe stream and a task per client", awaits=True, group="theirs")
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
