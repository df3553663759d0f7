"""Processes that are told what to do by lines of JSON, and answer each with one."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any

from helpers.peers import TIMEOUT

__all__ = ["Told"]


class Told:
    """Such a process, as seen from the first."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def answer(self) -> Any:
        """Return its next line."""
        assert self._process.stdout is not None
        async with asyncio.timeout(TIMEOUT):
            line = await self._process.stdout.readline()
        assert line, "the other process has ended"
        return json.loads(line)

    async def ask(self, question: Any) -> Any:
        """Give it a line; return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        return await self.answer()

    async def end(self) -> None:
        """Have it end as it should."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(TIMEOUT):
            assert await self._process.wait() == 0

    async def kill(self) -> None:
        """Kill it, without a chance to say goodbye."""
        self._process.kill()
        await self._process.wait()

    def freeze(self) -> None:
        """Have it do nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Have it go on."""
        self._process.send_signal(signal.SIGCONT)
