"""docs/how-to/workers.md: what is sent to one worker of uvicorn reaches the clients of all."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from websockets.asyncio.client import ClientConnection

from helpers.blocks import commands_of, dial, runs
from helpers.pages import Block
from helpers.peers import TIMEOUT
from helpers.ports import free_port
from helpers.processes import running

PAGE = "docs/how-to/workers.md"

CLIENTS = 16


@runs(PAGE, "fastapi")
async def fastapi(block: Block, directory: Path) -> None:
    """Each of many clients, which the kernel gives to four workers, hears what each other one says, in order."""
    (command,) = (command for command in commands_of(block.page) if command.startswith("uvicorn"))
    (directory / "chat.py").write_text(block.code)
    port = free_port()
    arguments = [*command.split()[1:], "--port", f"{port}", "--no-access-log"]
    with tempfile.TemporaryDirectory() as runtime:  # the directory of the test has a path too long for sockets
        environment = {**os.environ, "XDG_RUNTIME_DIR": runtime}
        async with running(sys.executable, "-m", "uvicorn", *arguments, cwd=directory, env=environment):
            await _talk(port, Path(runtime))


async def _talk(port: int, runtime: Path) -> None:
    """Have the clients talk, once all workers are there."""
    async with asyncio.timeout(TIMEOUT):
        while len(list(runtime.glob("wsfast/wsfast-*.sock"))) < 4:
            await asyncio.sleep(0.01)
    clients: list[ClientConnection] = [await dial(port, "room") for _ in range(CLIENTS)]
    wanted = {f"{number}" for number in range(CLIENTS)}

    async def hears_all(client: ClientConnection) -> None:
        heard: set[str | bytes] = set()
        while not heard >= wanted:
            heard.add(await client.recv())

    async with asyncio.timeout(TIMEOUT):
        listening = asyncio.gather(*map(hears_all, clients))
        while not listening.done():  # until all workers have subscribed at all others
            for number, client in enumerate(clients):
                await client.send(f"{number}")
            await asyncio.wait([listening], timeout=0.1)
        await listening
    for client in clients:
        await client.close()
