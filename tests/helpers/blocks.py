"""Running the blocks of code of a page as its readers do: drivers, servers, clients, programs and browsers."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
import re
import shlex
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import uvicorn
import websockets.asyncio.server
from websockets.asyncio.client import ClientConnection, connect

import wsfast
from helpers.chromium import REQUIRED, Page, find_chromium, open_page
from helpers.pages import ROOT, Block, blocks_of
from helpers.peers import TIMEOUT, until
from helpers.ports import free_port
from helpers.processes import running

__all__ = [
    "DRIVERS",
    "PORT",
    "Driver",
    "address_in",
    "background",
    "browser",
    "check_chat",
    "commands_of",
    "copy",
    "crowd",
    "dial",
    "dialled",
    "play",
    "play_on",
    "program",
    "read_until",
    "receive",
    "runs",
    "serving",
    "serving_app",
]

PORT = 8765
"""The port of all blocks; each test takes another one."""

Driver: TypeAlias = Callable[[Block, Path], Awaitable[None]]

DRIVERS: dict[tuple[str, str], Driver] = {}
"""What runs a block, and finds out whether it does what the page says: by page, and the name ahead of the block."""


def runs(page: str, name: str) -> Callable[[Driver], Driver]:
    """Have a function be what runs a block."""

    def register(driver: Driver) -> Driver:
        assert (page, name) not in DRIVERS
        DRIVERS[page, name] = driver
        return driver

    return register


def play(block: Block, *, at: int = PORT, until_line: str | None = None, **names: Any) -> dict[str, Any]:
    """Execute a block, or its statements ahead of a line; return its names. `_` is the value of the last expression."""
    return play_on(block, {"__name__": "page", **names}, at=at, until_line=until_line)


def play_on(
    block: Block,
    names: dict[str, Any],
    *,
    at: int = PORT,
    from_line: str | None = None,
    until_line: str | None = None,
) -> dict[str, Any]:
    """Execute a block, or a part of it, among names that there are already."""
    code = "\n" * (block.line - 1) + block.code.replace(str(PORT), str(at))  # so that tracebacks tell the line
    lines = code.splitlines()
    statements = ast.parse(code, str(ROOT / block.page)).body
    starts = [lines[statement.lineno - 1] for statement in statements]
    first = 0 if from_line is None else next(n for n, line in enumerate(starts) if line.startswith(from_line))
    last = None if until_line is None else next(n for n, line in enumerate(starts) if line.startswith(until_line))
    for statement in statements[first:last]:
        if isinstance(statement, ast.Expr):
            names["_"] = eval(compile(ast.Expression(statement.value), str(ROOT / block.page), "eval"), names)
        else:
            exec(compile(ast.Module([statement], []), str(ROOT / block.page), "exec"), names)
    return names


async def dial(port: int, path: str = "") -> ClientConnection:
    """Connect to a server that is about to begin."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            try:
                return await connect(f"ws://127.0.0.1:{port}/{path}", max_queue=None, ping_interval=None)
            except OSError:
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def dialled(port: int, *paths: str) -> AsyncIterator[list[ClientConnection]]:
    """Connect several clients, and close them in the end."""
    clients = [await dial(port, path) for path in paths]
    try:
        yield clients
    finally:
        for client in clients:
            await client.close()


@contextlib.asynccontextmanager
async def background(coroutine: Any) -> AsyncIterator[None]:
    """Run a coroutine that does not end; what it raises is raised here."""
    task = asyncio.ensure_future(coroutine)
    try:
        yield
        assert not task.done() or task.exception() is None
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def receive(*clients: ClientConnection) -> list[str | bytes]:
    """Return the next message of each of some clients."""
    async with asyncio.timeout(TIMEOUT):
        return [await client.recv() for client in clients]


@contextlib.asynccontextmanager
async def crowd(count: int) -> AsyncIterator[tuple[list[Any], list[ClientConnection]]]:
    """Have stock connections of a server, and their clients in the same order."""
    connections: dict[str, Any] = {}

    async def handler(connection: Any) -> None:
        connections[connection.request.path] = connection
        await connection.wait_closed()

    async with websockets.asyncio.server.serve(handler, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with dialled(port, *map(str, range(count))) as clients:
            await until(lambda: len(connections) == count, "all to be connected")
            yield [connections[f"/{number}"] for number in range(count)], clients


@contextlib.asynccontextmanager
async def serving(handler: Any, *paths: str) -> AsyncIterator[list[ClientConnection]]:
    """Serve a handler of a block by wsfast, and have clients."""
    async with (
        wsfast.serve(handler, "127.0.0.1", 0) as server,
        dialled(server.sockets[0].getsockname()[1], *paths) as clients,
    ):
        yield clients


@contextlib.asynccontextmanager
async def program(directory: Path, command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a command in a directory, as a reader would, until this is left."""
    name, *arguments = shlex.split(command)
    assert name == "python"
    async with running(
        sys.executable,
        *arguments,
        cwd=directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        yield process
        assert process.returncode is None, await process.communicate()


async def read_until(process: asyncio.subprocess.Process, pattern: str) -> re.Match[str]:
    """Read what a program prints until a line matches."""
    assert process.stdout is not None
    async with asyncio.timeout(TIMEOUT):
        while not (match := re.search(pattern, line := (await process.stdout.readline()).decode())):
            assert line, "it has ended"
    return match


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Page]:
    """Have a page in a real browser; without one, the test is skipped, or fails where it is required."""
    chromium = find_chromium()
    if chromium is None:
        (pytest.fail if REQUIRED else pytest.skip)("there is no Chromium")
    async with open_page(chromium) as page:
        yield page


def copy(page: str, directory: Path, port: int) -> None:
    """Do with a page as a reader does: save each block for which it gives the name of a file."""
    for block in blocks_of(page):
        if block.file is not None and block.language in ("python", "html"):
            (directory / block.file).write_text(block.code.replace(str(PORT), str(port)))


def commands_of(page: str) -> list[str]:
    """Return what a page has its readers type."""
    return [
        line.removeprefix("$ ").partition("  #")[0].strip()
        for block in blocks_of(page)
        if block.language == "console"
        for line in block.code.splitlines()
        if line.startswith("$ ")
    ]


def address_in(page: Path) -> str:
    """Return where a page in HTML connects to."""
    match = re.search(r"new WebSocket\(\"(ws:[^\"]+)\"\)", page.read_text())
    assert match is not None
    return match[1]


@contextlib.asynccontextmanager
async def serving_app(app: Any, **options: Any) -> AsyncIterator[int]:
    """Run an ASGI application by uvicorn; yield its port."""
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, **options))
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await until(lambda: server.started or task.done(), "uvicorn")
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await task


async def check_chat(page: str, directory: Path) -> None:
    """Run the chat of a page, which is its only program: all clients get what one of them says."""
    port = free_port()
    copy(page, directory, port)
    async with program(directory, "python chat.py"), dialled(port, "chat", "chat") as clients:
        for number, client in enumerate(clients):
            await client.send(f"{number} is here")
            while await receive(client) != [f"{number} is here"]:
                pass
        await clients[0].send("hello")
        for client in clients:
            while await receive(client) != ["hello"]:
                pass
