"""WebSockets of ASGI frameworks under servers of several makers, with clients of another one."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import fastapi
import pytest
import starlette.websockets
import uvicorn
from fastapi.testclient import TestClient
from uvicorn.protocols.http import h11_impl, httptools_impl
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

import wsfast
import wsfast.uvicorn
from helpers.asgi import COMMANDS, check_foreign, check_last_words, check_room, check_stalled, connect, serve
from helpers.pages import blocks_of
from helpers.peers import TIMEOUT, until
from wsfast.connections import asgi_queue

WORKER = "wsfast.gunicorn.UvicornWorker"
SERVERS = ["uvicorn", "hypercorn", "granian", "daphne"]


@pytest.mark.parametrize("name", SERVERS)
def test_every_server(name: str) -> None:
    """Everything arrives, in order with the application's own messages; a client that stalls is given up."""

    async def main() -> None:
        async with serve(COMMANDS[name], WSFAST_TEST_CLOSE_TIMEOUT="0.5") as port:
            assert await check_room(port) == "_Starlette"
            await check_foreign(port)
            if name != "daphne":  # whose send() never waits: it buffers without a limit, until its keepalive fails
                await check_stalled(port)

    asyncio.run(main())


@pytest.mark.parametrize(("app", "kind"), [("litestar_app", "_Litestar"), ("quart_app", "_Quart")])
def test_every_framework(app: str, kind: str) -> None:
    """The same for other frameworks, under a server that offers nothing."""

    async def main() -> None:
        async with serve(COMMANDS["uvicorn"], app, WSFAST_TEST_CLOSE_TIMEOUT="0.5") as port:
            assert await check_room(port) == kind
            await check_foreign(port)
            await check_stalled(port)

    asyncio.run(main())


@pytest.mark.parametrize("name", SERVERS)
def test_last_words(name: str) -> None:
    """Messages that were published before a close leave before the close frame."""

    async def main() -> None:
        async with serve(COMMANDS[name]) as port:
            await check_last_words(port)

    asyncio.run(main())


# ---- uvicorn without an option

INSTALLED: dict[str, tuple[list[str], str]] = {
    "uvicorn": (COMMANDS["uvicorn"], "WebSocketsProtocol"),
    "uvicorn-h11": (COMMANDS["uvicorn-h11"], "WebSocketsProtocol"),
    "uvicorn-wsproto": (COMMANDS["uvicorn-wsproto"], "WSProtocol"),
    "uvicorn-legacy": ([*COMMANDS["uvicorn"], "--ws", "websockets"], "WebSocketsProtocol"),
    "uvicorn-workers": ([*COMMANDS["uvicorn"], "--workers", "1"], "WebSocketsProtocol"),
    "gunicorn": (
        ["gunicorn", "--bind", "127.0.0.1:{port}", "-k", "uvicorn_worker.UvicornWorker"],
        "WebSocketsProtocol",
    ),
}


@pytest.mark.parametrize("name", INSTALLED)
def test_install(name: str) -> None:
    """After `install()`, uvicorn's WebSockets are sent to directly, whatever starts uvicorn."""

    async def main() -> None:
        command, kind = INSTALLED[name]
        async with serve(command, WSFAST_TEST_INSTALL="1", WSFAST_TEST_CLOSE_TIMEOUT="0.5") as port:
            assert await check_room(port) == kind
            await check_foreign(port)
            await check_stalled(port)

    asyncio.run(main())


def test_install_replaces_uvicorns_own_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class of the user's own stays, and so does none."""
    for protocol in (h11_impl.H11Protocol, httptools_impl.HttpToolsProtocol):
        monkeypatch.setattr(protocol, "ws_protocol_class", None, raising=False)  # which undoes it in the end

    class Own(WebSocketsSansIOProtocol):
        pass

    def installed(kind: Any) -> Any:
        config = uvicorn.Config(lambda: None, ws="none", log_config=None)
        config.load()
        config.ws_protocol_class = kind
        return h11_impl.H11Protocol(config, uvicorn.server.ServerState(), {}).ws_protocol_class

    async def main() -> None:
        wsfast.uvicorn.install()
        wsfast.uvicorn.install()
        assert installed(WebSocketsSansIOProtocol) is wsfast.uvicorn.WebSocketsProtocol
        assert installed(wsfast.uvicorn.WebSocketsProtocol) is wsfast.uvicorn.WebSocketsProtocol
        assert installed(Own) is Own
        assert installed(None) is None

    asyncio.run(main())


# ---- The chat of the documentation

CHATS = {
    "uvicorn": ["uvicorn", "--port", "{port}", "chat:app"],
    "uvicorn-reload": ["uvicorn", "--port", "{port}", "--reload", "chat:app"],
    "fastapi-run": ["fastapi", "run", "--host", "127.0.0.1", "--port", "{port}", "chat.py"],
    "gunicorn": ["gunicorn", "--workers", "2", "--bind", "127.0.0.1:{port}", "-k", WORKER, "chat:app"],
    "hypercorn": ["hypercorn", "--bind", "127.0.0.1:{port}", "chat:app"],
    "granian": ["granian", "--interface", "asgi", "--port", "{port}", "chat:app"],
}


@pytest.mark.parametrize("name", CHATS)
def test_chat(name: str, tmp_path: Path) -> None:
    """The chat of docs/how-to/connections.md runs under each server; with two workers, each has a chat of its own."""
    (block,) = (one for one in blocks_of("docs/how-to/connections.md") if one.name == "fastapi")
    (tmp_path / "chat.py").write_text(block.code)

    async def main() -> None:
        async with serve(CHATS[name], "", directory=tmp_path) as port, asyncio.timeout(TIMEOUT):
            clients = [await connect(port, path=f"/chat/{number}") for number in range(8)]
            for number, client in enumerate(clients):
                await client.send("hello")
                while await client.recv() != f"{number}: hello":
                    pass
            await clients[0].send("to all")
            while await clients[0].recv() != "0: to all":
                pass
            heard = []
            for number, client in enumerate(clients[1:], 1):
                await client.send("bye")
                heard.append(False)
                while (text := await client.recv()) != f"{number}: bye":
                    heard[-1] |= text == "0: to all"
            assert all(heard) or name == "gunicorn"
            for client in clients:
                await client.close()

    asyncio.run(main())


def test_chat_passes_its_own_tests() -> None:
    """By TestClient; each test may have an event loop of its own, also for a channel of the module."""
    app = fastapi.FastAPI()
    chat = wsfast.Channel("chat")

    @app.websocket("/chat/{name}")
    async def endpoint(websocket: fastapi.WebSocket, name: str) -> None:
        await websocket.accept()
        with chat.subscribe(websocket), contextlib.suppress(fastapi.WebSocketDisconnect):
            chat.publish(f"{name} joined")
            while True:
                chat.publish(f"{name}: {await websocket.receive_text()}")

    for published in (1, 2):
        with (
            TestClient(app) as client,
            client.websocket_connect("/chat/ann") as ann,
            client.websocket_connect("/chat/bob") as bob,
        ):
            assert [ann.receive_text(), ann.receive_text()] == ["ann joined", "bob joined"]
            assert bob.receive_text() == "bob joined"
            ann.send_text("hello")
            assert ann.receive_text() == bob.receive_text() == "ann: hello"
        assert chat.stats().messages == 3 * published
        assert len(chat) == 0


# ---- The queue


class Server:
    """ASGI's functions, as a server has them; it sends when it is let."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.going = asyncio.Event()
        self.going.set()
        self.error: Exception | None = None
        self.received: asyncio.Queue[Any] = asyncio.Queue()

    async def send(self, message: Any) -> None:
        await self.going.wait()
        if self.error is not None:
            raise self.error
        self.sent.append(message.get("text", message.get("code")))

    async def open(self) -> starlette.websockets.WebSocket:
        """Return a WebSocket that is open."""
        self.received.put_nowait({"type": "websocket.connect"})
        scope: dict[str, Any] = {"type": "websocket", "client": ("ann", 1)}
        websocket = starlette.websockets.WebSocket(scope, self.received.get, self.send)
        await websocket.accept()
        self.sent.clear()
        return websocket


def test_cancelled_before_it_is_sent() -> None:
    """A message of the application that was cancelled while it waited is not sent, and delays no others."""

    async def main() -> None:
        server = Server()
        websocket = await server.open()
        server.going.clear()
        wsfast.broadcast([websocket], "first")
        own = asyncio.create_task(websocket.send_text("own"))
        await asyncio.sleep(0)
        own.cancel()
        wsfast.broadcast([websocket], "second")
        server.going.set()
        await until(lambda: len(server.sent) == 2, "both messages")
        assert server.sent == ["first", "second"]
        await websocket.send_text("third")
        assert server.sent[2:] == ["third"]

    asyncio.run(main())


def test_broadcast_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """When too much waits, the connection ends, and the application hears of it."""
    monkeypatch.setattr(asgi_queue, "MAX_BUFFERED", 1000)

    async def main() -> None:
        server = Server()
        websocket = await server.open()
        server.going.clear()
        wsfast.broadcast([websocket], "first")
        receiving = asyncio.create_task(websocket.receive_text())
        own = asyncio.create_task(websocket.send_text("own"))
        await asyncio.sleep(0)
        assert wsfast.broadcast([websocket], "x" * 900).buffered == 1
        assert wsfast.broadcast([websocket], "x" * 900).failed == 1
        assert wsfast.broadcast([websocket], "x").skipped == 1
        with pytest.raises(starlette.websockets.WebSocketDisconnect) as raised:
            await receiving
        assert raised.value.code == 1013
        with pytest.raises((ConnectionError, starlette.websockets.WebSocketDisconnect)):
            await own
        with pytest.raises((ConnectionError, starlette.websockets.WebSocketDisconnect, RuntimeError)):
            await websocket.send_text("more")

    asyncio.run(main())


def test_server_that_fails() -> None:
    """An error of the server's `send()` ends the subscription, and reaches the application where it waits."""

    async def main() -> None:
        server = Server()
        websocket = await server.open()
        channel = wsfast.Channel()
        subscription = channel.subscribe(websocket)
        server.error = ValueError("it is broken")
        channel.publish("to nobody")
        assert await subscription.ended() is wsfast.Ended.LOST
        assert len(channel) == 0
        assert channel.stats().published == channel.stats().sent == 1

    asyncio.run(main())


def test_loss_is_noticed_while_the_application_only_sends() -> None:
    """A subscribed connection is read from; a message that comes meanwhile is not lost."""

    async def main() -> None:
        server = Server()
        websocket = await server.open()
        channel = wsfast.Channel()
        subscription = channel.subscribe(websocket)
        server.received.put_nowait({"type": "websocket.receive", "text": "hello"})
        await asyncio.sleep(0)
        assert await websocket.receive_text() == "hello"
        other = channel.subscribe(await Server().open())
        server.received.put_nowait({"type": "websocket.disconnect", "code": 1001})
        with pytest.raises(starlette.websockets.WebSocketDisconnect):
            await websocket.receive_text()
        assert await subscription.ended() is wsfast.Ended.CLOSED_BY_PEER
        assert other.active

        quiet = Server()
        quiet_subscription = channel.subscribe(await quiet.open())
        quiet.received.put_nowait({"type": "websocket.disconnect", "code": 1006})
        assert await quiet_subscription.ended() is wsfast.Ended.LOST

    asyncio.run(main())


def test_middleware_may_change_a_message() -> None:
    """Each connection has a message of its own."""

    async def main() -> None:
        servers = [Server(), Server()]
        original = servers[0].send

        async def send(message: Any) -> None:
            if "text" in message:
                message["text"] += " for one"
            await original(message)

        servers[0].send = send  # type: ignore[method-assign]
        sockets = [await server.open() for server in servers]
        wsfast.broadcast(sockets, "a message")
        await until(lambda: all(server.sent for server in servers), "the messages")
        assert [server.sent for server in servers] == [["a message for one"], ["a message"]]

    asyncio.run(main())
