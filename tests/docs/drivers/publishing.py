"""docs/how-to/publish-from-anywhere.md: messages of programs without a hub reach the clients of its server."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from helpers.blocks import background, dialled, play, receive, runs
from helpers.brokers import measured_broker
from helpers.pages import Block, blocks_of
from helpers.peers import TIMEOUT, until
from helpers.ports import free_port

PAGE = "docs/how-to/publish-from-anywhere.md"


@contextlib.asynccontextmanager
async def serving(block: Block) -> AsyncIterator[tuple[Any, Block]]:
    """Run the server of the page; give a client, and the block with the address of the broker."""
    with measured_broker("redis") as url:
        (server,) = (one for one in blocks_of(PAGE) if one.name == "server")
        server, block = (
            dataclasses.replace(one, code=one.code.replace("redis://localhost", url)) for one in (server, block)
        )
        port = free_port()
        names = play(server, at=port)
        async with background(names["main"]()), dialled(port, "") as (client,):
            await until(lambda: names["hub"].count("news") == 1)
            await names["hub"]._registry.relay.subscribed(TIMEOUT)
            yield client, block


@runs(PAGE, "server")
async def server(block: Block, _: Path) -> None:
    """The server subscribes its clients."""
    async with serving(block):
        pass


@runs(PAGE, "blocking")
async def blocking(block: Block, _: Path) -> None:
    """Everything arrives in the order of the calls."""
    async with serving(block) as (client, changed):
        names = await asyncio.to_thread(play, changed)
        assert [(await receive(client))[0] for _ in range(5)] == [
            "lunch is ready",
            "it rains",
            "one",
            "two",
            "your report is done",
        ]
        await asyncio.to_thread(names["publisher"].close)


@runs(PAGE, "django")
async def view(block: Block, _: Path) -> None:
    """The view announces, and says why if it cannot."""
    import django
    from django.conf import settings

    if not settings.configured:
        settings.configure()
        django.setup()
    async with serving(block) as (client, changed):
        names = await asyncio.to_thread(play, changed)
        response = await asyncio.to_thread(names["announce"], None)
        assert (response.status_code, response.content) == (200, b"announced")
        assert await receive(client) == ["lunch is ready"]
    response = await asyncio.to_thread(names["announce"], None)
    assert response.status_code == 503
    assert b"has not confirmed the message within 1 s: ConnectionError" in response.content
    await asyncio.to_thread(names["publisher"].close)


@runs(PAGE, "async")
async def coroutines(block: Block, _: Path) -> None:
    """Coroutines publish the same."""
    async with serving(block) as (client, changed):
        await asyncio.to_thread(play, changed)
        assert sorted([(await receive(client))[0] for _ in range(2)]) == ["hello", "lunch is ready"]
