"""docs/how-to/drain.md: its servers drain as they say when they get SIGTERM."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path
from typing import Any

import wsfast
from helpers.blocks import copy, dial, play, receive, runs
from helpers.pages import Block
from helpers.peers import TIMEOUT
from helpers.ports import free_port
from helpers.processes import running

PAGE = "docs/how-to/drain.md"
SECONDS = "(20, "
"""The beginning of the arguments of both servers; tests wait for less."""


def shorten(path: Path) -> None:
    text = path.read_text()
    assert text.count(SECONDS) == 1
    path.write_text(text.replace(SECONDS, "(1, "))


async def drains(command: list[str], directory: Path, port: int, path: str, name: str) -> bytes:
    """Run a server, send it SIGTERM, and check what its clients get; return what it prints."""
    copy(PAGE, directory, port)
    shorten(directory / name)
    async with (
        running(sys.executable, *command, cwd=directory, stdout=asyncio.subprocess.PIPE) as process,
        asyncio.timeout(TIMEOUT),
    ):
        clients: list[Any] = [await dial(port, path) for _ in range(4)]
        process.send_signal(signal.SIGTERM)
        for client in clients:
            await client.wait_closed()
            assert (client.close_code, client.close_reason) == (1012, "new release")
        output, _ = await process.communicate()
        assert process.returncode in (0, -signal.SIGTERM), process.returncode
        return bytes(output)


@runs(PAGE, "server")
async def server(_: Block, directory: Path) -> None:
    """All clients are closed with the code and the reason."""
    assert await drains(["server.py"], directory, free_port(), "", "server.py") == b"4 closed, 0 aborted\n"


@runs(PAGE, "app")
async def app(_: Block, directory: Path) -> None:
    """All clients of uvicorn are closed in this way."""
    port = free_port()
    await drains(["-m", "uvicorn", "--port", str(port), "app:app"], directory, port, "ws", "app.py")


@runs(PAGE, "refused")
async def refused(block: Block, _: Path) -> None:
    """A client that comes during a drain is closed with 1013."""
    prices = wsfast.Channel()
    names = play(block, prices=prices, wsfast=wsfast)
    port = free_port()
    async with wsfast.serve(names["handler"], "127.0.0.1", port), asyncio.timeout(TIMEOUT):
        early: Any = await dial(port)
        prices.publish("first")
        assert await receive(early) == ["first"]
        await prices.drain(1)
        late: Any = await dial(port)
        await late.wait_closed()
        assert (early.close_code, late.close_code, late.close_reason) == (1012, 1013, "restarting")


@runs(PAGE, "disconnect")
async def disconnect(block: Block, _: Path) -> None:
    """Each call closes the connections that it is about, after the message."""
    hub = wsfast.Hub()
    users = iter(["ann", "bob", "ann"])
    topics = iter(["room.7", "room.42", "room.42"])

    async def handler(connection: Any) -> None:
        hub.register(connection, next(users))
        hub.subscribe(connection, next(topics))
        await connection.wait_closed()

    first, second, third = block.code.strip().splitlines()
    port = free_port()
    async with wsfast.serve(handler, "127.0.0.1", port), asyncio.timeout(TIMEOUT):
        clients: list[Any] = [await dial(port) for _ in range(3)]
        for line, number, expected in (
            (third, 2, (4003, "kicked")),
            (second, 1, (1000, "")),
            (first, 0, (4001, "signed out")),
        ):
            source = f"async def call(hub):\n    return {line}\n"
            names: dict[str, Any] = {}
            exec(compile(source, PAGE, "exec"), names)
            assert await names["call"](hub) == 1
            client = clients[number]
            if "message=" in line:
                assert len(await receive(client)) == 1
            await client.wait_closed()
            assert (client.close_code, client.close_reason) == expected


@runs(PAGE, "kubernetes")
async def kubernetes(block: Block, _: Path) -> None:
    """A pod has time for its pause and its drain."""
    (grace,) = map(int, re.findall(r"terminationGracePeriodSeconds: (\d+)", block.code))
    (pause,) = map(int, re.findall(r'"sleep", "(\d+)"', block.code))
    assert grace > pause + 20
