"""An application of Litestar with its Channels, for the servers that test_litestar_channels.py starts.

A client of `/ws` tells the application what to do, as in asgi_app.py. Clients of `/auto/CHANNEL` have a handler that
the plugin has made, and those of `/events` get the channel `room` as a stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import litestar
from litestar.channels.backends.memory import MemoryChannelsBackend
from litestar.exceptions import WebSocketDisconnect
from litestar.response import Stream

import wsfast.litestar
from frameworks.asgi_app import own_text, text_of
from wsfast.connections import adapt

LARGE = random.Random(1).randbytes(50_000).hex()

channels = wsfast.litestar.ChannelsPlugin(
    MemoryChannelsBackend(history=20),
    channels=["room"],
    arbitrary_channels_allowed=True,
    create_ws_route_handlers=True,
    ws_handler_send_history=5,
    ws_handler_base_path="/auto",
    slow=wsfast.Disconnect(max_messages=50, max_bytes=None),
)

members: dict[int, Any] = {}


async def published(*messages: str) -> None:
    """Publish messages, and wait until the plugin has got them from its backend."""
    count = channels.hub.stats().messages + len(messages)
    for message in messages:
        channels.publish(message, "room")
    while channels.hub.stats().messages < count:
        await asyncio.sleep(0)


async def do(command: str, socket: Any) -> None:
    """Do what a client asks for; the socket is its own."""
    kind, _, argument = command.partition(" ")
    others = [other for other in members.values() if other is not socket]
    if kind in ("play", "shout"):
        for number in range(int(argument)):
            await published(text_of(number))
            if kind == "play" and number % 3 == 0:
                index = number % len(members)
                await [*members.values()][index].send_text(own_text(number, index))
            while number % 20 == 19 and channels.hub.stats().queued:  # no client is to lag behind here
                await asyncio.sleep(0.001)
        await published(f"end of {kind}")
    elif kind == "burst":
        await published(*map(text_of, range(int(argument))), "end of burst")
    elif kind == "dismiss":
        for other in others:
            await other.close()
    elif kind == "stall":
        watched = [channels.hub.subscribe(other, "watched") for other in others]
        while any(one.active for one in watched):
            await published(LARGE)
            await socket.send_text("next")  # which waits until the client of this one has room
        await socket.send_text(f"stalled: {[(await one.ended()).name for one in watched]}")
    else:
        await socket.send_text(f"{len(members)} {type(adapt(next(iter(members.values())))).__name__}")


async def endpoint(socket: Any) -> None:
    """Serve a connection to its end."""
    await socket.accept()
    index = max(members, default=-1) + 1
    members[index] = socket
    try:
        async with channels.start_subscription("room") as subscriber, subscriber.run_in_background(socket.send_text):
            assert subscriber._task is None, "it needs no task"
            await socket.send_text(f"welcome {index}")
            with contextlib.suppress(WebSocketDisconnect, ConnectionError):
                while True:
                    await do(await socket.receive_text(), socket)
    finally:
        del members[index]


async def stream() -> Any:
    """Respond with the events of a channel."""

    async def lines() -> AsyncIterator[bytes]:
        async with channels.start_subscription("room") as subscriber:
            yield b"welcome\n"
            async for event in subscriber.iter_events():
                yield event + b"\n"

    return Stream(lines())


endpoint.__annotations__["socket"] = litestar.WebSocket
stream.__annotations__["return"] = Stream

app = litestar.Litestar(
    [litestar.websocket("/ws")(endpoint), litestar.get("/events")(stream)], plugins=[channels], logging_config=None
)
