"""An application of Django Channels for the servers that test_django.py starts. A client tells a consumer what to do.

`play N` sends N events to the group, with messages of the consumer's own in between; `stall` sends large ones until the
policy has closed the connection of a client that does not read; `count` answers with the number of members.

Run as a program, with a number, it is a management command: it sends so many events and ends.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from typing import Any

import django
from asgiref.sync import async_to_sync
from django.conf import settings

import wsfast
from wsfast.connections import foreign

GROUP = "..a-room_of.many."
LARGE = random.Random(1).randbytes(100_000)

foreign.CLOSE_TIMEOUT = 0.5

if os.environ.get("WSFAST_TEST_INSTALL"):
    import wsfast.uvicorn

    wsfast.uvicorn.install()

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="of a test",
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "wsfast.django.ChannelLayer",
            "CONFIG": {
                "slow": wsfast.Disconnect(max_messages=50, max_bytes=None),
                "relay": os.environ.get("WSFAST_TEST_RELAY"),
            },
        }
    },
)
django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer  # noqa: E402
from channels.layers import get_channel_layer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.http import HttpRequest, HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402

from wsfast.django import BroadcastMixin  # noqa: E402


def text_of(number: int) -> str:
    """Return a message for all."""
    return f"{number:06d} " + "x" * (number % 7 * 100)


def expected(count: int, *, own: bool = False) -> list[str]:
    """Return what a client receives of `play`: that of the consumer that plays also receives its own messages."""
    result = []
    for number in range(count):
        result += [text_of(number)]
        result += [f"own {number}"] if own and number % 3 == 0 else []
    return [*result, "end"]


def event_of(text: str) -> dict[str, str]:
    return {"type": "wsfast.send", "text": text}


def layer() -> Any:
    return get_channel_layer()


class Room(BroadcastMixin, AsyncWebsocketConsumer):  # type: ignore[misc]
    """The room."""

    groups = (GROUP,)

    async def connect(self) -> None:
        await self.accept()
        await self.send("welcome")

    async def receive(self, text_data: str = "", bytes_data: bytes | None = None) -> None:
        kind, _, argument = text_data.partition(" ")
        if kind == "play":
            await self.play(int(argument))
        elif kind == "stall":
            disconnected = layer().hubs[0].stats().disconnected
            while layer().hubs[0].stats().disconnected == disconnected:
                await layer().group_send(GROUP, {"type": "wsfast.send", "bytes": LARGE})
                await self.send("next")  # which waits until this client has room
            await self.send("stalled")
        elif kind == "close":
            for number in range(20):
                await layer().group_send(GROUP, event_of(f"last words {number}"))
            await self.close(4321)
        elif kind == "count":
            await self.send(str(len(layer().hubs[0])))

    async def play(self, count: int) -> None:
        """Send to all, and to this one."""
        for number in range(count):
            await layer().group_send(GROUP, event_of(text_of(number)))
            if number % 3 == 0:
                await self.send(f"own {number}")
            while number % 20 == 19 and layer().hubs[0].stats().queued:  # no client is to lag behind here
                await asyncio.sleep(0.001)
        await layer().group_send(GROUP, event_of("end"))


class SyncRoom(BroadcastMixin, WebsocketConsumer):  # type: ignore[misc]
    """A member of the room that runs in threads."""

    groups = (GROUP,)

    def connect(self) -> None:
        self.accept()
        self.send("welcome")

    def receive(self, text_data: str = "", bytes_data: bytes | None = None) -> None:
        count = int(text_data.removeprefix("play "))
        for number in range(count):
            async_to_sync(layer().group_send)(GROUP, event_of(text_of(number)))
            if number % 3 == 0:
                self.send(f"own {number}")
        async_to_sync(layer().group_send)(GROUP, event_of("end"))


def send_many(count: int) -> None:
    """Send as code does that runs in no event loop."""
    for number in range(count):
        async_to_sync(layer().group_send)(GROUP, event_of(text_of(number)))
    async_to_sync(layer().group_send)(GROUP, event_of("end"))


def view(_: HttpRequest, count: int) -> HttpResponse:
    send_many(count)
    return HttpResponse("sent")


urlpatterns = [path("view/<int:count>", view)]

http = get_asgi_application()
app = ProtocolTypeRouter(
    {
        "http": http,
        "websocket": URLRouter([path("ws", Room.as_asgi()), path("sync", SyncRoom.as_asgi())]),
    }
)

if __name__ == "__main__":
    send_many(int(sys.argv[1]))
