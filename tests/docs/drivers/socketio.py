"""docs/how-to/socketio.md: its chat runs as it is copied."""

from __future__ import annotations

from pathlib import Path

import wsfast
import wsfast.socketio
from helpers.blocks import copy, dialled, play, program, receive, runs
from helpers.pages import Block
from helpers.ports import free_port

PAGE = "docs/how-to/socketio.md"
PATH = "socket.io/?EIO=4&transport=websocket"


@runs(PAGE, "chat")
async def chat(_: Block, directory: Path) -> None:
    """All clients but one get what that one says."""
    port = free_port()
    copy(PAGE, directory, port)
    async with program(directory, "python chat.py"), dialled(port, PATH, PATH, PATH) as clients:
        for client in clients:
            (opened,) = await receive(client)
            assert str(opened).startswith("0{")
            await client.send("40")
            (connected,) = await receive(client)
            assert str(connected).startswith('40{"sid":')
        for text, speaker in (("hello", clients[0]), ("bye", clients[1])):
            await speaker.send(f'42["say","{text}"]')
            others = [client for client in clients if client is not speaker]
            assert await receive(*others) == [f'42["said","{text}"]'] * 2


@runs(PAGE, "redis")
async def redis(block: Block, _: Path) -> None:
    """The manager takes a policy."""
    assert play(block)["manager"].slow == wsfast.DropOldest()


@runs(PAGE, "mixin")
async def mixin(block: Block, _: Path) -> None:
    """The class has the methods of both managers, in the right order."""
    manager = play(block)["Manager"]
    names = [base.__module__ for base in manager.__mro__[1:5]]
    assert names[0] == "socketio.async_aiopika_manager"
    assert names.index("socketio.async_pubsub_manager") < names.index("wsfast.socketio")
    assert manager.slow == wsfast.DropOldest()
