"""docs/how-to/moving.md: what clients see before and after is the same."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from websockets.asyncio.client import ClientConnection

from helpers.blocks import background, dialled, play, receive, runs, serving_app
from helpers.brokers import measured_broker
from helpers.pages import Block
from helpers.peers import TIMEOUT
from helpers.ports import free_port

PAGE = "docs/how-to/moving.md"
PROTOCOL = "wsfast.uvicorn:WebSocketsProtocol"

Clients: TypeAlias = Callable[..., AbstractAsyncContextManager[list[ClientConnection]]]


@runs(PAGE, "websockets-before")
@runs(PAGE, "websockets-after")
async def websockets_broadcast(block: Block, _: Path) -> None:
    """What one client says goes to all, by either function."""
    port = free_port()
    names = play(block, at=port)
    async with background(names["main"]()), dialled(port, "", "") as (ann, bob):
        await ann.send("hello")
        assert await receive(ann, bob) == ["hello"] * 2


async def chats(port: int) -> list[list[str | bytes]]:
    """Have three clients chat, of which one leaves; return what each of the others was sent."""
    async with dialled(port, "ws/1", "ws/2") as (ann, bob):
        async with dialled(port, "ws/3") as (carl,):
            await carl.send("hi")
            assert await receive(carl, carl) == ["You wrote: hi", "Client #3 says: hi"]
        said = [await receive(ann, ann), await receive(bob, bob)]
        await ann.send("bye")
        return [said[0] + await receive(ann, ann), said[1] + await receive(bob)]


@runs(PAGE, "manager-before")
@runs(PAGE, "manager-after")
async def manager(block: Block, _: Path) -> None:
    """Clients see the same with either."""
    async with serving_app(play(block)["app"]) as port:
        others = ["Client #3 says: hi", "Client #3 left the chat"]
        assert await chats(port) == [
            [*others, "You wrote: bye", "Client #1 says: bye"],
            [*others, "Client #1 says: bye"],
        ]


@runs(PAGE, "broadcaster-before")
@runs(PAGE, "channels-before")
async def of_libraries_that_are_not_here(block: Block, _: Path) -> None:
    """Only parsed here. It was run by hand: broadcaster 0.3.1, channels 4.3, channels_redis 4.3, redis-py 5.0."""
    modules = {node.module for node in ast.walk(ast.parse(block.code)) if isinstance(node, ast.ImportFrom)}
    assert modules & {"broadcaster", "channels.generic.websocket"}


@contextlib.asynccontextmanager
async def at_broker(block: Block) -> AsyncIterator[Block]:
    """Start Redis, and have a block connect to that."""
    with measured_broker("redis") as url:
        yield dataclasses.replace(block, code=block.code.replace("redis://localhost", url))


async def is_relayed(one: Any, other: Any, path: str) -> None:
    """Make sure that messages reach the clients of another process; two applications stand for these."""
    async with (
        serving_app(one, ws=PROTOCOL) as here,
        serving_app(other, ws=PROTOCOL) as there,
        dialled(here, path) as (ann,),
        dialled(there, path) as (bob,),
    ):

        async def say() -> None:  # until the other process has subscribed at the broker
            while True:
                await ann.send("hello")
                await asyncio.sleep(0.05)

        async with background(say()), asyncio.timeout(TIMEOUT):
            assert await receive(ann, bob) == ["hello"] * 2


@runs(PAGE, "broadcaster-after")
async def broadcaster(block: Block, _: Path) -> None:
    """Messages reach the clients of all processes."""
    async with at_broker(block) as changed:
        await is_relayed(play(changed)["app"], play(changed)["app"], "ws")


SITE = """
async def application(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"site"})
"""


@runs(PAGE, "channels-after")
async def channels(block: Block, directory: Path) -> None:
    """Messages reach the clients of all processes, views may publish, and all other requests go to the site."""
    (directory / "mysite").mkdir()
    (directory / "mysite/asgi.py").write_text(SITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(directory)
        async with at_broker(block) as changed:
            one, other = play(changed), play(changed)
            await is_relayed(one["application"], other["application"], "ws/chat")
            third = play(changed)
            async with serving_app(third["application"], ws=PROTOCOL) as port:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /admin HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert (await reader.read()).endswith(b"site")
                writer.close()
                await asyncio.to_thread(third["hub"].publish_threadsafe, "chat", "before anybody has come")
                async with dialled(port, "ws/chat") as (ann,):
                    await ann.send("hello")
                    assert await receive(ann) == ["hello"]
                    await asyncio.to_thread(third["hub"].publish_threadsafe, "chat", "of a view")
                    assert await receive(ann) == ["of a view"]
