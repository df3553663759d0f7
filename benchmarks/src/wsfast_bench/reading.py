"""The server's end of a process whose clients look at what they read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from types import TracebackType
from typing import Any

from .machine import UnfitError

__all__ = ["Reading"]


class Reading:
    """Clients in a process of their own, which is `readers`.

    Args:
        processor: Processor to which they are bound; None for any.
    """

    def __init__(self, processor: int | None) -> None:
        self.processor = processor

    def __enter__(self) -> Reading:
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "wsfast_bench.readers",
                "" if self.processor is None else str(self.processor),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()

    async def ask(self, request: str) -> Any:
        """Have the clients do something; return what they tell of it, while the event loop runs.

        Raises:
            UnfitError: If they cannot.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        answer = await asyncio.to_thread(self._process.stdout.readline)
        if not answer:
            raise UnfitError(f"clients cannot {request.split()[0]}: their process has ended")
        told = json.loads(answer)
        if isinstance(told, dict) and "error" in told:
            raise UnfitError(f"clients cannot {request.split()[0]}: {told['error']}")
        return told
