"""Fast Channels for Litestar: a plugin that sends each event to many WebSockets by one broadcast.

    channels = wsfast.litestar.ChannelsPlugin(MemoryChannelsBackend(), channels=["news"], create_ws_route_handlers=True)

It replaces `litestar.channels.ChannelsPlugin`. A subscriber that runs in the background with a method of a WebSocket,
`socket.send_text` or `socket.send_bytes`, then needs neither its queue nor a task: its connection is in a hub, to which
the plugin publishes the events of its backend. All other subscribers work as before.

| private name               | meaning                                 | versions     |
|----------------------------|-----------------------------------------|--------------|
| `Subscriber._queue`        | the `asyncio.Queue` of events that wait | 2.12 to 2.25 |
| `ChannelsPlugin._channels` | dict of sets of subscribers             | 2.12 to 2.25 |
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, Literal

from ._arguments import needs
from ._litestar import FanOut, Member, Mode, Tap
from .hub import Hub
from .policies import DropNewest, DropOldest, Policy

with needs("litestar>=2.12", "litestar"):
    import litestar.channels
    from litestar.channels import ChannelsBackend
    from litestar.connection import WebSocket

__all__ = ["ChannelsPlugin", "Subscriber"]

METHODS: dict[str, Mode] = {"send_text": "text", "send_data": "text", "send_bytes": "bytes"}
"""Methods of a WebSocket that only send their argument, with the kind of message that they send."""


def _target(on_event: Any) -> tuple[Any, Mode] | None:
    """Return the WebSocket that a callback sends to, and how; None if the callback may do something else."""
    socket = getattr(on_event, "__self__", None)
    mode = METHODS.get(getattr(on_event, "__name__", ""))
    if mode is None or not isinstance(socket, WebSocket):
        return None
    kind: Any = type(socket)
    if any(getattr(kind, name) is not getattr(WebSocket, name) for name in METHODS):
        return None  # the methods are not Litestar's
    return (socket, mode) if on_event == getattr(socket, on_event.__name__) else None


class Subscriber(litestar.channels.Subscriber):
    """A subscriber of `ChannelsPlugin`.

    Its methods are those of `litestar.channels.Subscriber`. While it runs in the background with a method of a
    WebSocket, the events that wait for it are those that wait for the WebSocket's connection in the plugin's hub.
    """

    def __init__(self, plugin: Any, max_backlog: int | None = None, backlog_strategy: Any = "backoff") -> None:
        super().__init__(plugin, max_backlog=max_backlog, backlog_strategy=backlog_strategy)
        self._fan_out: FanOut = plugin.fan_out
        self._limit = max_backlog
        self._subscribed: set[str] = set()
        self._member: Member | None = None

    async def put(self, item: bytes | None) -> None:
        """Send an event to this subscriber alone; wait while its queue is full. None ends its events."""
        if self._member is None:
            await super().put(item)
            self._move()  # it may have been started meanwhile
            return
        if item is not None and self._limit and self._member.waiting >= self._limit:
            await self._member.sent()
        self.put_nowait(item)

    def put_nowait(self, item: bytes | None) -> bool:
        """Send an event to this subscriber alone, unless its queue is full. None ends its events."""
        member = self._member
        if member is None:
            return super().put_nowait(item)
        if item is None:
            member.leave()
        elif item is not self._fan_out.event:  # else it has been sent by the hub
            member.send(item)
        return True

    @property
    def qsize(self) -> int:
        """Number of events that wait."""
        return super().qsize + (0 if self._member is None else self._member.waiting)

    @contextlib.asynccontextmanager
    async def run_in_background(
        self, on_event: Callable[[bytes], Any], join: bool = True
    ) -> AsyncGenerator[None, None]:
        """Send events with a callback from now on.

        With a method of a WebSocket, they are sent by broadcasts. With any other callback, a task calls it.
        """
        if self._member is not None:
            raise RuntimeError("Subscriber is already running")  # as Litestar does
        target = _target(on_event)
        kind = type(self)
        if kind.put is not Subscriber.put or kind.put_nowait is not Subscriber.put_nowait:
            target = None  # these methods must get each event
        if target is None or self.is_running or not self._start(*target):
            async with super().run_in_background(on_event, join):
                yield
            return
        try:
            yield
        except BaseException:
            await self.stop()
            raise
        await self.stop(join)

    def _start(self, socket: Any, mode: Mode) -> bool:
        """Put the connection of a WebSocket into the hub, if that is possible."""
        try:
            self._member = Member(self._fan_out, socket, mode, self._subscribed)
        except (RuntimeError, TypeError):  # Litestar's own way then works, or reports the error
            return False
        self._move()
        return True

    def _move(self) -> None:
        """Send the events of the queue, if it runs with a WebSocket."""
        while self._member is not None and not self._queue.empty():
            item = self._queue.get_nowait()
            self._queue.task_done()
            if item is None:
                self._member.leave()
            else:
                self._member.send(item)

    @property
    def is_running(self) -> bool:
        """Whether events are sent in the background."""
        return self._member is not None or super().is_running

    async def stop(self, join: bool = False) -> None:
        """Stop sending. With `join`, first wait until everything has been sent, or the connection is closed."""
        member = self._member
        if member is None:
            await super().stop(join)
            return
        try:
            member.leave()
            if join:
                await member.sent()
        finally:
            if self._member is member:
                self._member = None
            member.end()

    def subscribed(self, channels: Iterable[str]) -> None:
        """Note the channels that it is subscribed to."""
        self._subscribed.update(channels)

    def unsubscribed(self, channels: Iterable[str] | None) -> None:
        """Get no more events of some channels, or of any."""
        channels = set(self._subscribed) if channels is None else channels
        self._subscribed.difference_update(channels)
        if self._member is not None:
            self._member.leave(channels)


class ChannelsPlugin(litestar.channels.ChannelsPlugin):
    """A plugin for channels that sends events to many WebSockets by one broadcast.

    Args:
        backend: The backend, as for `litestar.channels.ChannelsPlugin`.
        slow: Policy for WebSockets whose clients do not keep up. None means `Disconnect()` without
            `subscriber_max_backlog`. With it, None means `DropNewest` for the strategy "backoff", and `DropOldest` for
            "dropleft", with that number of messages.
        subscriber_max_backlog: Maximum number of events that wait for a subscriber.
        subscriber_backlog_strategy: "backoff" to drop new events beyond that number, or "dropleft" to drop old ones.
        subscriber_class: Class of subscribers. If it is not a subclass of `Subscriber`, its subscribers work as before.
        options: Other arguments of `litestar.channels.ChannelsPlugin`.

    Raises:
        TypeError: If `slow` is not a policy.
    """

    def __init__(
        self,
        backend: ChannelsBackend,
        *,
        slow: Policy | None = None,
        subscriber_max_backlog: int | None = None,
        subscriber_backlog_strategy: Literal["backoff", "dropleft"] = "backoff",
        subscriber_class: type[litestar.channels.Subscriber] = Subscriber,
        **options: Any,
    ) -> None:
        if slow is None and subscriber_max_backlog:
            policy = DropOldest if subscriber_backlog_strategy == "dropleft" else DropNewest
            slow = policy(max_messages=subscriber_max_backlog, max_bytes=None)
        self.fan_out: FanOut = FanOut(slow)
        tap: Any = Tap(backend, self.fan_out, lambda channel: len(self._channels.get(channel, ())))
        super().__init__(
            tap,
            subscriber_max_backlog=subscriber_max_backlog,
            subscriber_backlog_strategy=subscriber_backlog_strategy,
            subscriber_class=subscriber_class,
            **options,
        )

    @property
    def hub(self) -> Hub:
        """The hub with the connections of subscribers, for its counts and for metrics."""
        return self.fan_out.hub

    async def subscribe(
        self, channels: str | Iterable[str], history: int | None = None
    ) -> litestar.channels.Subscriber:
        """Create a subscriber: see `litestar.channels.ChannelsPlugin`."""
        names = [channels] if isinstance(channels, str) else list(channels)
        subscriber = await super().subscribe(names, history)
        if isinstance(subscriber, Subscriber):
            subscriber.subscribed(names)
        return subscriber

    async def unsubscribe(
        self, subscriber: litestar.channels.Subscriber, channels: str | Iterable[str] | None = None
    ) -> None:
        """Unsubscribe a subscriber: see `litestar.channels.ChannelsPlugin`."""
        names = [channels] if isinstance(channels, str) else None if channels is None else list(channels)
        if isinstance(subscriber, Subscriber):
            subscriber.unsubscribed(names)
        await super().unsubscribe(subscriber, names)
