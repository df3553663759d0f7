"""Applications for the servers that test_asgi.py starts: a room, which each of the frameworks has as an endpoint.

A client tells the application what to do: `play N` publishes to all, with messages for one alone in between; `shout N`
broadcasts; `stall` publishes large messages until the policy gives up who does not read; `dismiss` closes the
connections of all others; `count` answers with how many are there, and with the type that the first is sent to by.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from typing import Any

import fastapi
import litestar
import quart
import starlette.applications
import starlette.routing

import wsfast
from wsfast.connections import adapt, foreign

foreign.CLOSE_TIMEOUT = float(os.environ.get("WSFAST_TEST_CLOSE_TIMEOUT", "10"))

if os.environ.get("WSFAST_TEST_INSTALL"):
    import wsfast.uvicorn

    wsfast.uvicorn.install()

LARGE = random.Random(1).randbytes(100_000)


def text_of(number: int) -> str:
    """Return a message for all."""
    return f"{number:06d} " + random.Random(number).randbytes(random.Random(number).choice([0, 10, 100, 1500])).hex()


def own_text(number: int, index: int) -> str:
    """Return a message for one alone."""
    return f"{number:06d} for {index}"


def expected(kind: str, count: int, index: int, clients: int) -> list[str]:
    """Return what a client receives of `play` or `shout`."""
    result = []
    for number in range(count):
        result.append(text_of(number))
        if kind == "play" and number % 3 == 0 and number % clients == index:
            result.append(own_text(number, index))
    return [*result, f"end of {kind}"]


class Room:
    """The connections, in the order in which they came."""

    def __init__(self) -> None:
        self.members: dict[int, tuple[Any, Any]] = {}
        self.channel = wsfast.Channel("room", slow=wsfast.Disconnect(max_messages=50, max_bytes=None))

    async def do(self, command: str, send: Any) -> None:
        """Do what a client asks for; `send` is its own."""
        kind, _, argument = command.partition(" ")
        members = list(self.members.values())
        if kind == "play":
            for number in range(int(argument)):
                self.channel.publish(text_of(number))
                if number % 3 == 0:
                    index = number % len(members)
                    await members[index][1](own_text(number, index))
                elif number % 5 == 0:
                    await asyncio.sleep(0)
                while number % 20 == 19 and self.channel.stats().queued:  # no client is to lag behind here
                    await asyncio.sleep(0.001)
            self.channel.publish("end of play")
        elif kind == "shout":
            websockets = [websocket for websocket, _ in members]
            for number in range(int(argument)):
                delivery = wsfast.broadcast(websockets, text_of(number))
                assert sum(delivery) == delivery.sent + delivery.buffered == len(websockets), delivery
                await asyncio.sleep(0)
            wsfast.broadcast(websockets, "end of shout")
        elif kind == "dismiss":
            for websocket, own in members:
                if own is not send:
                    closing = websocket.close(1000)
                    if closing is not None:  # as in Tornado
                        await closing
        elif kind == "stall":
            others = [self.channel.subscribe(websocket) for websocket, own in members if own is not send]
            while any(other.active for other in others):
                self.channel.publish(LARGE)
                await send("next")  # which waits until the client of this one has room
            await send(f"stalled: {[(await other.ended()).name for other in others]}")
        else:
            await send(f"{len(self.members)} {type(adapt(members[0][0])).__name__}")

    async def enter(self, websocket: Any, send: Any, receive: Any) -> None:
        """Serve a connection to its end."""
        index = max(self.members, default=-1) + 1
        self.members[index] = websocket, send
        try:
            with self.channel.subscribe(websocket):
                await send(f"welcome {index}")
                while True:
                    await self.do(await receive(), send)
        finally:
            del self.members[index]


rooms: dict[str, Room] = {}


def room(kind: str) -> Room:
    """Return the room of a framework."""
    return rooms.setdefault(kind, Room())


app = fastapi.FastAPI()


@app.websocket("/ws")
async def with_fastapi(websocket: fastapi.WebSocket) -> None:
    await websocket.accept()
    with contextlib.suppress(fastapi.WebSocketDisconnect, ConnectionError):
        await room("fastapi").enter(websocket, websocket.send_text, websocket.receive_text)


@app.websocket("/leave")
async def leave(websocket: fastapi.WebSocket) -> None:
    """Publish, and close at once."""
    await websocket.accept()
    with room("leave").channel.subscribe(websocket):
        for number in range(20):
            room("leave").channel.publish(f"last words {number}")
        await websocket.close(4321)


async def with_starlette(websocket: Any) -> None:
    await websocket.accept()
    with contextlib.suppress(starlette.websockets.WebSocketDisconnect):
        await room("starlette").enter(websocket, websocket.send_text, websocket.receive_text)


starlette_app = starlette.applications.Starlette(routes=[starlette.routing.WebSocketRoute("/ws", with_starlette)])


@litestar.websocket("/ws")
async def with_litestar(socket: litestar.WebSocket[Any, Any, Any]) -> None:
    await socket.accept()
    with contextlib.suppress(litestar.exceptions.WebSocketDisconnect):
        await room("litestar").enter(socket, socket.send_text, socket.receive_text)


with_litestar.fn.__annotations__["socket"] = litestar.WebSocket
litestar_app = litestar.Litestar([with_litestar], logging_config=None)

quart_app = quart.Quart(__name__)


@quart_app.websocket("/ws")
async def with_quart() -> None:
    await quart.websocket.accept()
    own: Any = quart.websocket._get_current_object()  # type: ignore[attr-defined]
    await room("quart").enter(own, own.send, own.receive)
