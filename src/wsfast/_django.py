"""The parts of `wsfast.django`: consumers' connections, and the hubs of event loops."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from websockets.protocol import OPEN

from . import relay as relays
from ._broadcast import broadcast
from ._publisher import Stream
from .connections.channels import ConsumerConnection
from .connections.foreign import EXTENSION
from .hub import Hub
from .policies import Policy
from .relay import Relay

__all__ = ["Consumer", "LoopHub", "PublisherThread", "in_loop"]

TIMEOUT = 10.0
"""Seconds that an event loop in another thread, or the broker for a subscription, may take to answer."""

CONFIRM_TIMEOUT = 2.5
"""Seconds that the broker may take to confirm a message of a process without consumers."""

BATCH = 64
"""Messages after which `publish()` lets the event loop send them."""

EARLY = 100
"""Messages of a group that wait for a consumer which has not accepted its connection yet. The oldest are dropped."""

MEMBERS = "members"
"""Topic of all connections, to which nothing is published. Without it, the queue of a connection that leaves its last
group would be dropped."""


async def in_loop(
    loop: asyncio.AbstractEventLoop, function: Callable[..., Coroutine[Any, Any, None]], *arguments: Any
) -> None:
    """Await a coroutine function in an event loop, which may run in another thread.

    Raises:
        RuntimeError: If the event loop is closed.
        TimeoutError: If it takes too long. The function is cancelled, or not called at all.
    """
    if loop is asyncio.get_running_loop():
        await function(*arguments)
        return
    expired = False

    async def unless_expired() -> None:
        if not expired:
            await function(*arguments)

    coroutine = unless_expired()
    try:
        result = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:
        coroutine.close()
        raise
    try:
        async with asyncio.timeout(TIMEOUT):
            await asyncio.wrap_future(result)
    finally:
        expired = True


def topic_of(group: str) -> str:
    """Return the topic of a group. The name of a group may have dots anywhere, unlike a topic, but no colons."""
    return "group:" + group.replace(".", ":")


class Consumer:
    """The connection of a consumer, with the groups of the consumer."""

    hub: LoopHub
    """The hub of the event loop, once the consumer has received something."""

    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.groups: dict[str, Stream | None] = {}
        """The groups, each with a stream of its messages until the connection is accepted."""
        self._connection: Any = (scope.get("extensions") or {}).get(EXTENSION)
        if self._connection is None:
            self._connection = ConsumerConnection(scope, receive, send)
            receive, send = self._connection.receive, self._connection.send
        self.receive = receive
        self.send = send
        self._accepted = False

    async def join(self, group: str) -> None:
        """Get the messages of a group from now on."""
        if group not in self.groups:
            hub = self.hub.hub
            self.groups[group] = None if self._accepted else hub.stream(topic_of(group), max_messages=EARLY)
            if self._accepted:
                self._subscribe(group)
        await self.hub.confirmed()

    async def leave(self, *groups: str) -> None:
        """Get no more messages of some groups."""
        for group in groups:
            stream = self.groups.pop(group, None)
            if stream is not None:
                stream.close()
            elif self._accepted:
                self.hub.hub.unsubscribe(self._connection, topic_of(group))

    def _subscribe(self, *groups: str) -> None:
        connection = self._connection
        if connection.state is OPEN and not connection.transport.is_closing():
            self.hub.hub.subscribe(connection, MEMBERS, *map(topic_of, groups))

    async def accept(self) -> None:
        """Send the messages that were published before the connection was accepted."""
        self._accepted = True
        self._subscribe(*self.groups)
        for group, stream in list(self.groups.items()):
            if stream is not None:
                self.groups[group] = None
                stream.close()
                async for message in stream:  # does not suspend, so nothing is published meanwhile
                    broadcast([self._connection], message)
        await self.hub.confirmed()

    def end(self) -> None:
        """Free everything: the consumer has ended. Its server closes the connection, which ends the subscriptions."""
        for stream in self.groups.values():
            if stream is not None:
                stream.close()
        if isinstance(self._connection, ConsumerConnection):
            self._connection.end()


class LoopHub:
    """The hub of one event loop, with its relay. It is created in that event loop."""

    def __init__(self, slow: Policy | None, relay: Mapping[str, Any] | None) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.hub: Hub = Hub(slow=slow, name="django")
        self.relay: Relay | None = None
        self._started = asyncio.Event()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        if relay is not None:
            options = dict(relay)
            url = options.pop("url")
            is_redis = isinstance(url, str) and url.startswith(("redis:", "rediss:", "unix:"))
            self.relay = (relays.redis if is_redis else relays.nats)(self.hub, url, **options)
            self._task = self.loop.create_task(self._run(self.relay))

    async def _run(self, relay: Relay) -> None:
        """Run the relay."""
        try:
            async with relay:
                self._started.set()
                await self._stop.wait()
        finally:
            self._started.set()

    async def publish(self, group: str, data: str | bytes) -> None:
        """Publish a message to a group, from any event loop. Ignored if that of the hub is closed."""
        if self.loop is not asyncio.get_running_loop():
            try:
                await in_loop(self.loop, self.publish, group, data)
            except RuntimeError:
                if not self.loop.is_closed():
                    raise
            return
        if self._task is not None:
            await self._started.wait()
        self.hub.publish(topic_of(group), data)
        if self.hub.messages % BATCH == 0:
            await asyncio.sleep(0)

    async def confirmed(self) -> None:
        """Wait until the broker has confirmed all subscriptions, unless it cannot be reached."""
        if self.relay is None or self._task is None:
            return
        await self._started.wait()
        if self.relay.connected:
            with contextlib.suppress(TimeoutError, RuntimeError):  # the relay may be stopped
                await self.relay.subscribed(TIMEOUT)

    async def publish_and_confirm(self, group: str, data: str | bytes) -> None:
        """Publish a message to a group, and wait until the broker has confirmed all messages, but not forever."""
        await self.publish(group, data)
        assert self.relay is not None
        deadline = self.loop.time() + CONFIRM_TIMEOUT
        while self.relay.stats().queued and self.loop.time() < deadline:
            await asyncio.sleep(0.001)

    async def close(self) -> None:
        """Stop the relay. Messages that wait are sent, if the broker takes them."""
        self._stop.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def run(self) -> None:
        """Run until `stop()` is called."""
        await self._stop.wait()
        await self.close()

    def stop(self) -> None:
        """Have `run()` return."""
        self._stop.set()


class PublisherThread:
    """A hub in a thread, for processes without consumers: management commands, Celery, WSGI servers."""

    def __init__(self, relay: Mapping[str, Any]) -> None:
        self._ready: concurrent.futures.Future[LoopHub] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, args=(relay,), name="wsfast.django", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _run(self, relay: Mapping[str, Any]) -> None:
        async def main() -> None:
            try:
                hub = LoopHub(None, relay)
            except BaseException as exc:
                self._ready.set_exception(exc)
            else:
                self._ready.set_result(hub)
                await hub.run()

        asyncio.run(main())

    async def publish(self, group: str, data: str | bytes) -> None:
        """Publish a message, and wait until the broker has confirmed it."""
        hub = await asyncio.wrap_future(self._ready)
        await in_loop(hub.loop, hub.publish_and_confirm, group, data)

    def close(self) -> None:
        """Stop the relay, and end the thread."""
        atexit.unregister(self.close)
        if self._ready.exception() is None:
            hub = self._ready.result()
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                hub.loop.call_soon_threadsafe(hub.stop)
        self._thread.join(TIMEOUT)
