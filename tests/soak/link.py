"""Lines of JSON between the processes of a soak."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from helpers.processes import running

__all__ = ["Lines", "Link"]

LIMIT = 1 << 28
TESTS = Path(__file__).parents[1]


class Link:
    """A process that is told what to do."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, name: str, module: str, *arguments: str, **options: Any) -> AsyncIterator[Link]:
        """Run a module as a process until this is left."""
        command = [sys.executable, "-X", "faulthandler", "-m", module, *arguments]
        pipe = asyncio.subprocess.PIPE
        async with running(*command, stdin=pipe, stdout=pipe, cwd=TESTS, limit=LIMIT, **options) as process:
            yield cls(name, process)

    async def ask(self, command: str, timeout: float = 60.0, **arguments: Any) -> Any:
        """Have the process do something; return what it says.

        Raises:
            RuntimeError: If it has ended, or says nothing in time.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps((command, arguments)).encode() + b"\n")
        try:
            async with asyncio.timeout(timeout):
                line = await self._process.stdout.readline()
        except TimeoutError:
            self._process.send_signal(signal.SIGABRT)  # faulthandler says where it is
            raise RuntimeError(f"{self.name} does not answer to {command}") from None
        if not line:
            raise RuntimeError(f"{self.name} has ended during {command}")
        return json.loads(line)


class Lines:
    """The other end of a link: the standard input and output, with an event loop or without one."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._out = os.dup(1)
        os.dup2(2, 1)  # what libraries print is no answer

    def _take(self) -> tuple[str, dict[str, Any]] | None:
        line, end, rest = self._buffer.partition(b"\n")
        if not end:
            return None
        self._buffer[:] = rest
        command, arguments = json.loads(line)
        return command, arguments

    def _read(self) -> None:
        data = os.read(0, 1 << 16)
        if not data:
            os._exit(0)  # whoever asks is gone
        self._buffer += data

    def wait(self) -> tuple[str, dict[str, Any]]:
        """Return what is to be done next; blocks."""
        os.set_blocking(0, True)
        while (line := self._take()) is None:
            self._read()
        return line

    async def next(self) -> tuple[str, dict[str, Any]]:
        """Return what is to be done next; the event loop goes on meanwhile."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        while (line := self._take()) is None:
            readable.clear()
            loop.add_reader(0, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(0)
            self._read()
        return line

    def answer(self, result: Any) -> None:
        """Say what has come of it."""
        rest = memoryview(json.dumps(result).encode() + b"\n")
        while rest:
            rest = rest[os.write(self._out, rest) :]
