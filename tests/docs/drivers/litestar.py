"""docs/how-to/litestar.md: its chats run as they are copied."""

from __future__ import annotations

from pathlib import Path

from helpers.blocks import PORT, dialled, program, receive, runs
from helpers.pages import Block
from helpers.ports import free_port

PAGE = "docs/how-to/litestar.md"


async def run(block: Block, directory: Path) -> None:
    """All clients in a room get what one of them says; one that comes later gets it, too."""
    port = free_port()
    assert str(PORT) in block.code
    (directory / "chat.py").write_text(block.code.replace(str(PORT), str(port)))
    async with program(directory, "python chat.py"), dialled(port, "chat/one", "chat/one", "chat/two") as clients:
        for number, client in enumerate(clients[:2]):  # until both are subscribed
            await client.send(f"{number} is here")
            while await receive(client) != [f"{number} is here"]:
                pass
        await clients[0].send("hello")
        for client in clients[:2]:
            while await receive(client) != ["hello"]:
                pass
        await clients[2].send("alone")
        assert await receive(clients[2]) == ["alone"]
        async with dialled(port, "chat/one") as (late,):
            assert [(await receive(late))[0] for _ in range(3)] == ["0 is here", "1 is here", "hello"]


@runs(PAGE, "chat")
async def chat(block: Block, directory: Path) -> None:
    """The chat with Channels."""
    await run(block, directory)


@runs(PAGE, "plain")
async def plain(block: Block, directory: Path) -> None:
    """The chat with a hub."""
    await run(block, directory)
