"""Fast `emit()` for python-socketio: client managers that send an event to many clients by one broadcast.

    sio = socketio.AsyncServer(client_manager=wsfast.socketio.AsyncManager(), async_mode="asgi")

An event for several clients is encoded once, as one frame, which is sent to all clients that have a WebSocket. Clients
that poll are served by python-engineio as before.

| private or moving name                     | what                                                     | versions     |
|--------------------------------------------|----------------------------------------------------------|--------------|
| `server.eio`, `server.packet_class`        | the server of Engine.IO; class of packets                | 5.11 to 5.18 |
| `packet.encode()`                          | a str, or a list: the str and its binary attachments     | 5.11 to 5.18 |
| `manager.rooms[namespace][None]`           | maps the clients of a namespace to those of Engine.IO    | 5.11 to 5.18 |
| `manager._generate_ack_id(sid, callback)`  | number of the answer that a callback is called with      | 5.11 to 5.18 |
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from ._arguments import needs
from ._encoding.message import PreparedMessage
from ._socketio import Clients
from ._subscription import ChannelStats
from .policies import Policy

with needs("python-socketio>=5.11", "socketio", "engineio"):
    import socketio
    from engineio.packet import MESSAGE
    from socketio.packet import EVENT

    from .connections.engineio import close_timed_out, enqueue, hook, sort_out

if TYPE_CHECKING:  # python-socketio has no types

    class _AsyncManager:
        rooms: Any

        def __init__(self, *arguments: Any, **options: Any) -> None: ...
        def set_server(self, server: Any) -> None: ...
        def _generate_ack_id(self, sid: str, callback: Any) -> Any: ...
        def get_participants(self, namespace: str, room: Any) -> Any: ...
        async def emit(self, *arguments: Any, **options: Any) -> None: ...

    class _AsyncRedisManager(_AsyncManager): ...

else:
    _AsyncManager, _AsyncRedisManager = socketio.AsyncManager, socketio.AsyncRedisManager

__all__ = ["AsyncManager", "AsyncRedisManager"]


class AsyncManager(_AsyncManager):
    """A client manager for one process.

    To use it with a message queue, name it as the last base class of a subclass of that queue's manager:

        class Manager(socketio.AsyncAioPikaManager, wsfast.socketio.AsyncManager):
            slow = wsfast.DropOldest()

    Args:
        slow: Policy for clients that do not keep up. None for the class attribute `slow`, where None means
            `Disconnect()`. Policies that drop messages do not apply to events with binary data. No policy applies to
            an event with binary data that exceeds its bounds by itself, to events for a single client or with a
            callback, acknowledgements and all other packets of Socket.IO. If more than 16 MiB of these wait for a
            client, its connection is closed.

    Raises:
        TypeError: If `slow` is not a policy.
    """

    slow: Policy | None = None
    server: Any

    def __init__(self, *, slow: Policy | None = None) -> None:
        super().__init__()
        self._set_slow(self.slow if slow is None else slow)

    def _set_slow(self, slow: Policy | None) -> None:
        self._clients = Clients(slow)
        self.slow = self._clients.events.slow

    def set_server(self, server: Any) -> None:
        """Note the server, whose WebSockets are subscribed from now on."""
        super().set_server(server)
        hook(server.eio, self._clients.link)

    def stats(self) -> ChannelStats:
        """Return the counts of the events that the policy applies to. Clients that poll are not counted."""
        return self._clients.events.stats()

    async def emit(
        self,
        event: str,
        data: Any,
        namespace: str | None = None,
        room: Any = None,
        skip_sid: Any = None,
        callback: Any = None,
        to: Any = None,
        **kwargs: Any,
    ) -> None:
        """Emit an event to a single client, a room, or all clients in the namespace."""
        room = to or room
        namespace = namespace or "/"
        if namespace not in self.rooms:
            return
        skipped = skip_sid if isinstance(skip_sid, list) else [skip_sid]
        data = [event, *(data if isinstance(data, tuple) else () if data is None else (data,))]
        packet = functools.partial(self.server.packet_class, EVENT, namespace=namespace, data=data)
        participants = [pair for pair in self.get_participants(namespace, room) if pair[0] not in skipped]
        tasks: list[asyncio.Task[Any]] = []
        if callback:  # each client gets a packet of its own
            for sid, eio_sid in participants:
                tasks += self._send([eio_sid], packet(id=self._generate_ack_id(sid, callback)), True, None)
        else:
            if isinstance(room, (list, tuple)):
                room = room[0] if len(room) == 1 else tuple(room)
            alone = isinstance(room, str) and room in self.rooms.get(namespace, {}).get(None, ())
            tasks = self._send([eio_sid for _, eio_sid in participants], packet(), alone, (namespace, event, room))
        if tasks:
            await asyncio.wait(tasks)
        elif participants:
            await asyncio.sleep(0)  # a loop that only emits must let the event loop send

    def _send(self, participants: list[str], packet: Any, alone: bool, key: Hashable) -> list[asyncio.Task[Any]]:
        """Send a packet, and return tasks that close clients which have timed out.

        Nothing is awaited before the packet has its place among the packets for each client.
        """
        encoded = packet.encode()
        parts = encoded if isinstance(encoded, list) else [encoded]
        clients = self._clients
        clients.forget_closed_loop()
        direct, sockets, late = sort_out(self.server.eio, clients, participants)
        tasks = [asyncio.create_task(close_timed_out(socket)) for socket in late]
        for socket in sockets:
            for part in parts:
                enqueue(socket, part)
        if direct:
            messages = [PreparedMessage(f"{MESSAGE}{part}" if isinstance(part, str) else part) for part in parts]
            if alone or clients.is_beyond_policy(messages):
                clients.private.publish([client.private for client in direct], messages, None)
            else:
                clients.events.publish([client.event for client in direct], messages, key)
        return tasks


class AsyncRedisManager(_AsyncRedisManager, AsyncManager):
    """A client manager for several processes, connected by Redis or Valkey.

    Args:
        arguments: See `socketio.AsyncRedisManager`.
        slow: See `AsyncManager`.
        options: See `socketio.AsyncRedisManager`.

    Raises:
        TypeError: If `slow` is not a policy.
    """

    def __init__(self, *arguments: Any, slow: Policy | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if slow is not None:
            self._set_slow(slow)
