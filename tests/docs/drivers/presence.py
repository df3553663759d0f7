"""docs/how-to/presence.md: each worker of uvicorn knows who is connected to any, and one of them says so."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import wsfast
from helpers.blocks import commands_of, dial, play, receive, runs, serving
from helpers.pages import Block
from helpers.peers import TIMEOUT, until
from helpers.ports import free_port
from helpers.processes import running

PAGE = "docs/how-to/presence.md"


@runs(PAGE, "fastapi")
async def fastapi(block: Block, directory: Path) -> None:
    """Whichever worker is asked, it names the users of all, and forgets who leaves."""
    (command,) = (command for command in commands_of(block.page) if command.startswith("uvicorn"))
    (directory / "chat.py").write_text(block.code)
    port = free_port()
    arguments = [*command.split()[1:], "--port", f"{port}", "--no-access-log"]
    with tempfile.TemporaryDirectory() as runtime:  # the directory of the test has a path too long for sockets
        environment = {**os.environ, "XDG_RUNTIME_DIR": runtime}
        async with running(sys.executable, "-m", "uvicorn", *arguments, cwd=directory, env=environment):
            clients = [await dial(port, f"lobby/{user}") for user in ("ann", "bob", "cid", "dan")]
            await _until(port, {"ann", "bob", "cid", "dan"})
            await clients.pop().close()
            await _until(port, {"ann", "bob", "cid"})
            for client in clients:
                await client.close()


async def _until(port: int, users: set[str]) -> None:
    """Ask again and again, by new connections, until many answers in succession name some users."""
    right = 0
    async with asyncio.timeout(2 * TIMEOUT):
        while right < 12:
            answer = await asyncio.to_thread(_ask, f"http://127.0.0.1:{port}/who/lobby")
            right = right + 1 if (set(answer["users"]), answer["connections"]) == (users, len(users)) else 0
            await asyncio.sleep(0.02)


def _ask(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        return json.load(response)


@runs(PAGE, "callbacks")
async def callbacks(block: Block, directory: Path) -> None:
    """The process that leads publishes the list of users whenever it changes."""
    with tempfile.TemporaryDirectory() as runtime, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", runtime)
        await _announced(play(block, wsfast=wsfast))


async def _announced(names: dict[str, Any]) -> None:
    hub, relay, presence = names["hub"], names["relay"], names["presence"]
    presence._interval, presence._grace = 0.05, 0

    async def handler(connection: Any) -> None:
        user = connection.request.path[1:]
        with hub.register(connection, user), hub.subscribe(connection, "lobby"):
            await connection.wait_closed()

    async with relay:
        await until(lambda: presence.leads)
        async with serving(handler, "ann") as [ann]:
            assert await receive(ann) == ["ann"]
            async with serving(handler, "bob") as [bob]:
                assert await receive(ann) == ["ann, bob"]
                await bob.close()
            assert await receive(ann) == ["ann"]
