"""docs/how-to/tornado.md: its chat runs as it is copied."""

from __future__ import annotations

from pathlib import Path

from helpers.blocks import copy, dialled, program, receive, runs
from helpers.pages import Block
from helpers.ports import free_port

PAGE = "docs/how-to/tornado.md"


@runs(PAGE, "chat")
async def chat(_: Block, directory: Path) -> None:
    """All clients get what one of them says."""
    port = free_port()
    copy(PAGE, directory, port)
    async with program(directory, "python chat.py"), dialled(port, "chat", "chat") as clients:
        for number, client in enumerate(clients):
            await client.send(f"{number} is here")
            while await receive(client) != [f"{number} is here"]:
                pass
        await clients[0].send("hello")
        for client in clients:
            while await receive(client) != ["hello"]:
                pass
