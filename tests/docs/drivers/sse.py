"""docs/how-to/sse.md: browsers and other clients get prices, and what they missed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from helpers.blocks import browser, play, runs, serving_app
from helpers.pages import Block
from helpers.peers import TIMEOUT, until

PAGE = "docs/how-to/sse.md"


@runs(PAGE, "fastapi")
async def fastapi(block: Block, _: Path) -> None:
    """A browser shows the prices."""
    async with serving_app(play(block)["app"]) as port, browser() as page:
        await page.go(f"http://127.0.0.1:{port}/")
        await page.until("document.getElementById('price').textContent.includes('VOD')")


@contextlib.asynccontextmanager
async def reading(port: int, *, after: int | None = None) -> AsyncIterator[aiohttp.StreamReader]:
    """Open an event stream, and read its comment."""
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(TIMEOUT)) as session,
        session.get(f"http://127.0.0.1:{port}/news", headers=headers) as response,
    ):
        assert await response.content.readuntil(b"\n\n") == b":\n\n"
        yield response.content


@runs(PAGE, "resume")
async def resume(block: Block, _: Path) -> None:
    """A client gets new events, and one that comes back first gets those that it missed."""
    names = play(block)
    async with serving_app(names["app"]) as port:
        names["report"]("first")
        async with reading(port) as stream:
            await until(lambda: len(names["hub"]) == 1)
            names["report"]("second")
            for number, text in enumerate((b"first", b"second"), 1):
                event = b"event: news\nid: %d\ndata: %s\n\n" % (number, text)
                assert await stream.readuntil(b"\n\n") == event
        names["report"]("third")
        async with reading(port, after=2) as stream:
            await until(lambda: len(names["hub"]) == 1)
            names["report"]("fourth")
            for number, text in enumerate((b"third", b"fourth"), 3):
                event = b"event: news\nid: %d\ndata: %s\n\n" % (number, text)
                assert await stream.readuntil(b"\n\n") == event
