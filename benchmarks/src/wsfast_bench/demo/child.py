"""A process of the demo, as the command sees it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["PATIENCE", "Child", "LostError"]

PATIENCE = 5.0
"""Seconds that a process has to end."""


class LostError(Exception):
    """A process of the demo has failed; the text says which and why."""


class Child:
    """A process that gets commands and gives reports, both as lines of JSON.

    It ends when its standard input does, hence also when this process is killed. It leads a process group of its own:
    Ctrl-C reaches this process alone, which then ends the others.

    Args:
        name: Its name in errors.
        module: The module that it runs.
        task: Its argument.
        on_report: Called with each report.
    """

    def __init__(
        self, name: str, module: str, task: dict[str, Any], on_report: Callable[[dict[str, Any]], object]
    ) -> None:
        self.name = name
        self._command: tuple[str, ...] = (sys.executable, "-m", f"{__package__}.{module}", json.dumps(task))
        self._on_report = on_report
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Its process ID."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "no_proxy": "127.0.0.1"},
        )

    def tell(self, **command: Any) -> None:
        """Give it a command."""
        assert self._process is not None
        assert self._process.stdin is not None
        if not self._process.stdin.is_closing():
            self._process.stdin.write(json.dumps(command).encode() + b"\n")

    async def listen(self) -> None:
        """Take its reports.

        Raises:
            LostError: When it has ended.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self._on_report(json.loads(line))
        raise LostError(f"the process of {self.name} has ended")

    async def end(self) -> None:
        """End it, by force if need be."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), PATIENCE)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
