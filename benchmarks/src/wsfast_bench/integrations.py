"""The servers of scenario `integrations`: each library's own way to send to many, and that of wsfast."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sized
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple, TypeAlias

import wsfast

from ._library import UVICORN_PROTOCOL
from .cases import Case
from .machine import UnfitError
from .servers import KEEPALIVE, PATIENCE

__all__ = ["INTEGRATIONS", "SOCKETIO_EVENT", "Integration", "Served", "serve_asgi"]

SOCKETIO_EVENT = "tick"

WAITING = 100
"""Messages that wait for a client, at most, where the recipe of a library is a queue for each client."""


_NUMBERS = itertools.count()


class Served(NamedTuple):
    """A server that runs."""

    port: int
    publish: Callable[[str], Awaitable[object]]
    """Sends a message to all clients; some of it may be done later."""
    clients: Sized
    """As many as there are clients."""


Serve: TypeAlias = Callable[[Case, bool], AbstractAsyncContextManager[Served]]


class Integration(NamedTuple):
    """A library that serves."""

    serve: Serve
    """Serves while in the context, by wsfast (True) or by the library's own way."""
    own: str
    """The name of that way in the table."""
    ours: str
    needed: tuple[str, ...]
    """Modules that must be installed."""
    kind: str = "websocket"
    """Kind of its clients: `websocket`, `socketio` or `events`."""


@asynccontextmanager
async def serve_asgi(case: Case, app: Any, *, ours: bool = False, **settings: Any) -> AsyncIterator[int]:
    """Serve an ASGI application by uvicorn while in the context; yield the port.

    Args:
        case: Whether there are pings.
        app: The application.
        ours: Whether uvicorn uses wsfast's protocol class.
        settings: More of uvicorn's settings.
    """
    import uvicorn

    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        ws=UVICORN_PROTOCOL if ours else "websockets-sansio",
        ws_ping_interval=KEEPALIVE if case.keepalive else None,
        log_level="critical",
        lifespan="off",
        backlog=2048,
        **{"ws_per_message_deflate": False, **settings},
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    task = asyncio.create_task(server.serve())
    try:
        while not server.started:
            if task.done():
                raise UnfitError("uvicorn does not start")
            await asyncio.sleep(0.001)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await asyncio.wait([task], timeout=PATIENCE)


# ---- Server-sent events


def _queue_of(queues: set[asyncio.Queue[str]]) -> AbstractAsyncContextManager[asyncio.Queue[str]]:
    @asynccontextmanager
    async def kept() -> AsyncIterator[asyncio.Queue[str]]:
        queue: asyncio.Queue[str] = asyncio.Queue(WAITING)
        queues.add(queue)
        try:
            yield queue
        finally:
            queues.discard(queue)

    return kept()


def _put_into(queues: set[asyncio.Queue[str]]) -> Callable[[str], Awaitable[object]]:
    async def publish(message: str) -> None:
        for queue in queues:
            queue.put_nowait(message)

    return publish


@asynccontextmanager
async def _fastapi_events(case: Case, ours: bool) -> AsyncIterator[Served]:
    import fastapi
    from fastapi.sse import EventSourceResponse, ServerSentEvent

    app = fastapi.FastAPI()
    clients: Sized
    if ours:
        hub = wsfast.Hub()

        async def respond() -> Any:
            return wsfast.sse.EventSource(hub, "all")

        app.get("/", response_model=None)(respond)
        publish, clients = _publish(hub), hub
    else:
        queues: set[asyncio.Queue[str]] = set()

        async def iterate() -> Any:
            async with _queue_of(queues) as queue:
                while True:
                    yield ServerSentEvent(raw_data=await queue.get())

        app.get("/", response_class=EventSourceResponse, response_model=None)(iterate)
        publish, clients = _put_into(queues), queues
    async with serve_asgi(case, app) as port:
        yield Served(port, publish, clients)


@asynccontextmanager
async def _starlette_events(case: Case, ours: bool) -> AsyncIterator[Served]:
    from starlette.applications import Starlette
    from starlette.responses import StreamingResponse
    from starlette.routing import Route

    queues: set[asyncio.Queue[str]] = set()
    hub = wsfast.Hub()

    async def iterate() -> AsyncIterator[str]:
        async with _queue_of(queues) as queue:
            while True:
                yield f"data: {await queue.get()}\n\n"

    async def respond(_: Any) -> Any:
        if ours:
            return wsfast.sse.EventSource(hub, "all")
        return StreamingResponse(iterate(), media_type="text/event-stream")

    async with serve_asgi(case, Starlette(routes=[Route("/", respond)])) as port:
        if ours:
            yield Served(port, _publish(hub), hub)
        else:
            yield Served(port, _put_into(queues), queues)


def _publish(hub: wsfast.Hub) -> Callable[[str], Awaitable[object]]:
    async def publish(message: str) -> None:
        hub.publish("all", message)

    return publish


# ---- Others


@asynccontextmanager
async def _django(case: Case, ours: bool) -> AsyncIterator[Served]:
    from django.conf import settings

    if not settings.configured:
        import django

        own = {"BACKEND": "channels.layers.InMemoryChannelLayer"}
        settings.configure(
            SECRET_KEY="-", CHANNEL_LAYERS={"own": own, "wsfast": {"BACKEND": "wsfast.django.ChannelLayer"}}
        )
        django.setup()
    from channels.generic.websocket import AsyncWebsocketConsumer
    from channels.layers import get_channel_layer

    consumers: set[Any] = set()

    class Consumer(AsyncWebsocketConsumer):  # type: ignore[misc]
        groups = ("all",)
        channel_layer_alias = "wsfast" if ours else "own"

        async def connect(self) -> None:
            await self.accept()
            consumers.add(self)

        async def room_message(self, event: dict[str, Any]) -> None:
            await self.send(text_data=event["text"])

    kind: Any = type("Consumer", (wsfast.django.BroadcastMixin, Consumer), {}) if ours else Consumer
    async with serve_asgi(case, kind.as_asgi(), ours=ours) as port:
        layer = get_channel_layer(Consumer.channel_layer_alias)

        async def publish(message: str) -> None:
            await layer.group_send("all", {"type": "wsfast.send" if ours else "room.message", "text": message})

        yield Served(port, publish, consumers)


@asynccontextmanager
async def _sanic(_: Case, ours: bool) -> AsyncIterator[Served]:
    import sanic

    app = sanic.Sanic(f"bench_{next(_NUMBERS)}", configure_logging=False)
    sockets: list[Any] = []

    async def endpoint(_: Any, websocket: Any) -> None:
        sockets.append(websocket)
        async for _message in websocket:
            pass

    app.add_websocket_route(endpoint, "/")
    app.config.update(WEBSOCKET_PING_INTERVAL=None, TOUCHUP=False)  # TouchUp does not work twice in a process
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    server: Any = await app.create_server(sock=listener, return_asyncio_server=True, access_log=False)
    await server.startup()
    try:
        yield Served(listener.getsockname()[1], _to_all(sockets, "send", ours), sockets)
    finally:
        server.close()
        await asyncio.wait_for(server.wait_closed(), PATIENCE)


@asynccontextmanager
async def _socketio(case: Case, ours: bool) -> AsyncIterator[Served]:
    import socketio

    manager = wsfast.socketio.AsyncManager() if ours else socketio.AsyncManager()
    # The clients answer no pings.
    server: Any = socketio.AsyncServer(client_manager=manager, async_mode="asgi", ping_interval=PATIENCE * 60)
    sids: set[str] = set()

    async def connect(sid: str, _: Any) -> None:
        sids.add(sid)

    server.on("connect", connect)
    async with serve_asgi(case, socketio.ASGIApp(server), ours=ours) as port:
        yield Served(port, functools.partial(server.emit, SOCKETIO_EVENT), sids)


@asynccontextmanager
async def _hypercorn(_: Case, ours: bool) -> AsyncIterator[Served]:
    import hypercorn.asyncio
    from starlette.applications import Starlette
    from starlette.routing import WebSocketRoute

    if ours:
        import wsfast.hypercorn

        wsfast.hypercorn.install()
    sockets: list[Any] = []

    async def endpoint(websocket: Any) -> None:
        await websocket.accept()
        sockets.append(websocket)
        while (await websocket.receive())["type"] != "websocket.disconnect":
            pass

    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    port = listener.getsockname()[1]
    config = hypercorn.Config()
    config.bind, config.errorlog = [f"fd://{listener.detach()}"], None
    leaving = asyncio.Event()
    app: Any = Starlette(routes=[WebSocketRoute("/", endpoint)])
    task = asyncio.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=leaving.wait))
    try:
        yield Served(port, _to_all(sockets, "send_text", ours), sockets)
    finally:
        leaving.set()
        await asyncio.wait([task], timeout=PATIENCE)


@asynccontextmanager
async def _litestar(case: Case, ours: bool) -> AsyncIterator[Served]:
    import litestar
    from litestar.channels import ChannelsPlugin
    from litestar.channels.backends.memory import MemoryChannelsBackend

    plugin: Any = (wsfast.litestar.ChannelsPlugin if ours else ChannelsPlugin)(
        MemoryChannelsBackend(), channels=["all"], subscriber_max_backlog=WAITING
    )
    sockets: list[Any] = []

    @litestar.websocket("/")
    async def endpoint(socket: litestar.WebSocket[Any, Any, Any]) -> None:
        await socket.accept()
        async with plugin.start_subscription("all") as subscriber, subscriber.run_in_background(socket.send_data):
            sockets.append(socket)
            while (await socket.receive())["type"] != "websocket.disconnect":
                pass

    endpoint.fn.__annotations__["socket"] = litestar.WebSocket  # which Litestar would look for in this module
    app = litestar.Litestar([endpoint], plugins=[plugin], logging_config=None)

    async def publish(message: str) -> None:
        plugin.publish(message, "all")

    async with app.lifespan(), serve_asgi(case, app, ours=ours) as port:
        yield Served(port, publish, sockets)


@asynccontextmanager
async def _tornado(_: Case, ours: bool) -> AsyncIterator[Served]:
    from tornado.httpserver import HTTPServer
    from tornado.web import Application
    from tornado.websocket import WebSocketHandler

    handlers: list[Any] = []

    class Handler(WebSocketHandler):
        def open(self, *_: Any, **__: Any) -> None:
            handlers.append(self)

    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    listener.setblocking(False)
    server = HTTPServer(Application([("/", Handler)]))
    server.add_socket(listener)

    async def publish(message: str) -> None:
        if ours:
            wsfast.broadcast(handlers, message)
            return
        for handler in handlers:
            handler.write_message(message)

    try:
        yield Served(listener.getsockname()[1], publish, handlers)
    finally:
        server.stop()
        await server.close_all_connections()


def _to_all(sockets: list[Any], send: str, ours: bool) -> Callable[[str], Awaitable[object]]:
    """Return what sends to all WebSockets, one after the other or by a broadcast."""

    async def publish(message: str) -> None:
        if ours:
            wsfast.broadcast(sockets, message)
            return
        for websocket in sockets:
            await getattr(websocket, send)(message)

    return publish


INTEGRATIONS = {
    "SSE, FastAPI": Integration(
        _fastapi_events,
        "EventSourceResponse, a queue per client",
        "wsfast.sse",
        ("fastapi.sse", "uvicorn"),
        kind="events",
    ),
    "SSE, Starlette": Integration(
        _starlette_events,
        "StreamingResponse, a queue per client",
        "wsfast.sse",
        ("starlette", "uvicorn"),
        kind="events",
    ),
    "Django Channels": Integration(
        _django, "group_send() in memory", "wsfast.django", ("django", "channels", "uvicorn")
    ),
    "Socket.IO": Integration(
        _socketio, "emit() of AsyncManager", "emit() of wsfast.socketio", ("socketio", "uvicorn"), kind="socketio"
    ),
    "Hypercorn": Integration(
        _hypercorn, "await websocket.send_text()", "wsfast.broadcast()", ("hypercorn", "starlette")
    ),
    "Tornado": Integration(_tornado, "handler.write_message()", "wsfast.broadcast()", ("tornado",)),
    "Litestar Channels": Integration(
        _litestar, "run_in_background(socket.send_data)", "wsfast.litestar", ("litestar", "uvicorn")
    ),
    "Sanic": Integration(_sanic, "await websocket.send()", "wsfast.broadcast()", ("sanic",)),
}
"""Libraries by what they are called in the table."""
