"""docs/how-to/django.md: its chat runs as it is copied."""

from __future__ import annotations

import asyncio
import urllib.request
from pathlib import Path

from helpers.blocks import copy, dialled, play, program, receive, runs
from helpers.pages import Block
from helpers.ports import free_port

PAGE = "docs/how-to/django.md"


def get(url: str) -> bytes:
    """Request a page."""
    with urllib.request.urlopen(url) as response:
        content: bytes = response.read()
        return content


@runs(PAGE, "chat")
async def chat(_: Block, directory: Path) -> None:
    """All clients get what one of them says, and what a view announces."""
    port = free_port()
    copy(PAGE, directory, port)
    async with program(directory, "python chat.py"), dialled(port, "chat", "chat") as clients:
        await clients[0].send("hello")
        assert await receive(*clients) == ["hello", "hello"]
        assert await asyncio.to_thread(get, f"http://127.0.0.1:{port}/announce") == b"announced"
        assert await receive(*clients) == ["lunch is ready", "lunch is ready"]


@runs(PAGE, "settings")
async def settings(block: Block, _: Path) -> None:
    """The settings are those of a layer."""
    from wsfast.django import ChannelLayer

    default = play(block)["CHANNEL_LAYERS"]["default"]
    assert default["BACKEND"] == f"{ChannelLayer.__module__}.{ChannelLayer.__qualname__}"
    default["CONFIG"]["layer"] = {"BACKEND": "channels.layers.InMemoryChannelLayer"}  # channels_redis is not installed
    ChannelLayer(**default["CONFIG"])
