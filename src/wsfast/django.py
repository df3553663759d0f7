"""Fast `group_send` for Django Channels: a channel layer, and a mixin for WebSocket consumers.

    CHANNEL_LAYERS = {"default": {"BACKEND": "wsfast.django.ChannelLayer"}}

    class Chat(wsfast.django.BroadcastMixin, AsyncWebsocketConsumer):
        groups = ["room"]

    await channel_layer.group_send("room", {"type": "wsfast.send", "text": "hello"})

The layer handles events of this one type itself. It sends the text or bytes to the clients of the group's consumers,
without calling the consumers. All other events, and all other methods, go to another channel layer.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping
from typing import Any

from ._arguments import needs
from ._django import Consumer, LoopHub, PublisherThread, in_loop
from .hub import Hub
from .policies import Policy

with needs("channels>=4.2", "channels", "django", "asgiref"):
    from channels.layers import BaseChannelLayer
    from django.core.exceptions import ImproperlyConfigured
    from django.utils.module_loading import import_string

    if not hasattr(BaseChannelLayer, "require_valid_group_name"):
        raise ModuleNotFoundError(name="channels")

__all__ = ["EVENT", "BroadcastMixin", "ChannelLayer"]

EVENT = "wsfast.send"
"""The type of events that are sent to clients without calling their consumers."""


class ChannelLayer(BaseChannelLayer):  # type: ignore[misc]
    """A channel layer that sends events of the type `wsfast.send` to many clients by one broadcast.

    The arguments are the keys of `CONFIG` in the setting `CHANNEL_LAYERS`.

    Args:
        layer: The channel layer for everything else, as in `CHANNEL_LAYERS`: a dict with `BACKEND` and, optionally,
            `CONFIG`. None means `channels.layers.InMemoryChannelLayer`.
        relay: The URL of a broker that carries events of this type to other processes, for example
            `redis://localhost:6379` or `nats://localhost:4222`. Or a dict with the key `url` and other arguments of
            `wsfast.relay.redis()` or `wsfast.relay.nats()`. None means that they reach only this process.
        slow: Policy for clients that do not keep up. None means `Disconnect()`.

    Raises:
        ImproperlyConfigured: If an argument is not valid.
    """

    def __init__(
        self,
        layer: Mapping[str, Any] | None = None,
        relay: str | Mapping[str, Any] | None = None,
        slow: Policy | None = None,
    ) -> None:
        layer = {"BACKEND": "channels.layers.InMemoryChannelLayer"} if layer is None else layer
        if not isinstance(layer, Mapping) or "BACKEND" not in layer:
            raise ImproperlyConfigured(f"layer must be a dict with the key BACKEND, not {layer!r}")
        relay = {"url": relay} if isinstance(relay, str) else relay
        if relay is not None and (not isinstance(relay, Mapping) or "url" not in relay):
            raise ImproperlyConfigured(f"relay must be a URL or a dict with the key url, not {relay!r}")
        if slow is not None and not isinstance(slow, Policy):
            raise ImproperlyConfigured(f"slow must be a policy of wsfast, for example Disconnect(), not {slow!r}")
        self.inner: Any = import_string(layer["BACKEND"])(**layer.get("CONFIG", {}))
        """The channel layer for everything else."""
        super().__init__(self.inner.expiry, self.inner.capacity, self.inner.channel_capacity)
        self._relay = relay
        self._slow = slow
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        """Begin with no consumers, also after a fork."""
        self._process = os.getpid()
        self._hubs: dict[asyncio.AbstractEventLoop, LoopHub] = {}
        self._publisher: PublisherThread | None = None
        self._consumers: dict[str, Consumer] = {}

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the channel layer for everything else, for example its `extensions`."""
        if name == "inner":  # before __init__() has set it
            raise AttributeError(name)
        return getattr(self.inner, name)

    # ---- For consumers

    @property
    def hubs(self) -> list[Hub]:
        """The hubs with the connections of consumers: one for each event loop that has consumers."""
        return [one.hub for one in self._live()]

    def _live(self) -> list[LoopHub]:
        with self._lock:
            if self._process != os.getpid():
                self._forget()
            for loop in [loop for loop in self._hubs if loop.is_closed()]:
                del self._hubs[loop]
            return list(self._hubs.values())

    def enter(self, channel: str, consumer: Consumer) -> None:
        """Add a consumer, in its event loop."""
        loop = asyncio.get_running_loop()
        self._live()
        with self._lock:
            if loop not in self._hubs:
                self._hubs[loop] = LoopHub(self._slow, self._relay)
            consumer.hub = self._hubs[loop]
            self._consumers[channel] = consumer

    def leave(self, channel: str) -> None:
        """Remove a consumer."""
        self._consumers.pop(channel, None)

    # ---- Groups

    async def group_add(self, group: str, channel: str) -> None:
        """Add a channel to a group. Must be called in the process of the channel's consumer."""
        await self.inner.group_add(group, channel)
        consumer = self._consumers.get(channel)
        if consumer is not None:
            await in_loop(consumer.loop, consumer.join, group)

    async def group_discard(self, group: str, channel: str) -> None:
        """Remove a channel from a group. Must be called in the process of the channel's consumer."""
        await self.inner.group_discard(group, channel)
        consumer = self._consumers.get(channel)
        if consumer is not None:
            await in_loop(consumer.loop, consumer.leave, group)

    async def group_send(self, group: str, message: Any) -> None:
        """Send an event to a group.

        Raises:
            TypeError: If an event of the type `wsfast.send` has not exactly one of the keys `text`, with a str, and
                `bytes`, with bytes; or if the name of the group is not valid.
            TimeoutError: If an event loop in another thread does not accept the event in time.
        """
        if not isinstance(message, dict) or message.get("type") != EVENT:
            await self.inner.group_send(group, message)
            return
        self.require_valid_group_name(group)
        data = _data_of(message)
        hubs = self._live()
        if self._relay is not None:  # it brings the event to all hubs but one
            here = [one for one in hubs if one.loop is asyncio.get_running_loop()]
            hubs = (here or hubs)[:1]
            if not hubs:
                with self._lock:
                    self._publisher = self._publisher or PublisherThread(self._relay)
                await self._publisher.publish(group, data)
        for one in hubs:
            await one.publish(group, data)

    # ---- Everything else

    async def send(self, channel: str, message: Any) -> None:
        """Send an event to a channel."""
        await self.inner.send(channel, message)

    async def receive(self, channel: str) -> Any:
        """Receive an event from a channel."""
        return await self.inner.receive(channel)

    async def new_channel(self, *arguments: Any, **options: Any) -> str:
        """Return the name of a new channel."""
        name: str = await self.inner.new_channel(*arguments, **options)
        return name

    async def flush(self) -> None:
        """Remove all events and all groups."""
        await self.inner.flush()
        for consumer in list(self._consumers.values()):
            await in_loop(consumer.loop, consumer.leave, *consumer.groups)

    async def close(self) -> None:
        """Stop relays of this event loop and of senders without consumers, and close the other layer if it can be."""
        here = self._hubs.pop(asyncio.get_running_loop(), None)
        if here is not None:
            await here.close()
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            await asyncio.to_thread(publisher.close)
        if hasattr(self.inner, "close"):
            await self.inner.close()


def _data_of(message: Mapping[str, Any]) -> str | bytes:
    """Return the data of an event."""
    text, data = message.get("text"), message.get("bytes")
    if data is None and isinstance(text, str):
        return text
    if text is None and isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    raise TypeError(f"an event of the type {EVENT} must have either text, with a str, or bytes, with bytes")


class BroadcastMixin:
    """Has a WebSocket consumer get events of the type `wsfast.send` of its groups by broadcasts.

    It comes before the consumer's class: `class Chat(BroadcastMixin, AsyncWebsocketConsumer)`. It works with all
    WebSocket consumers of Channels. With another channel layer, the consumer sends each event by itself.
    """

    channel_layer: Any
    channel_name: str
    send: Any

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Run the consumer."""
        if scope["type"] != "websocket":
            await super().__call__(scope, receive, send)  # type: ignore[misc]
            return
        connection = Consumer(scope, receive, send)
        entered = False

        async def enter_and_receive() -> Any:
            nonlocal entered
            if not entered and isinstance(self.channel_layer, ChannelLayer):
                entered = True
                self.channel_layer.enter(self.channel_name, connection)
            return await connection.receive()

        async def send_and_accept(message: Any) -> None:
            await connection.send(message)
            if entered and message["type"] == "websocket.accept":
                await connection.accept()

        try:
            await super().__call__(scope, enter_and_receive, send_and_accept)  # type: ignore[misc]
        finally:
            if entered:
                self.channel_layer.leave(self.channel_name)
            connection.end()

    def wsfast_send(self, event: Mapping[str, Any]) -> Any:
        """Send an event that was sent to this consumer's channel alone, or through another channel layer."""
        data = _data_of(event)
        return self.send(text_data=data) if isinstance(data, str) else self.send(bytes_data=data)
