"""The server's end of the process in which its clients are."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from .machine import UnfitError

__all__ = ["Clients"]


class Clients:
    """Clients that read what they are sent, discard it and answer pings, in a process of their own.

    Their counts are in memory that both processes share, so looking at them costs neither process anything.

    Args:
        processor: Processor to which they are bound; None for any.
    """

    module = "wsfast_bench.peer"
    """The module that runs in that process."""

    def __init__(self, processor: int | None) -> None:
        self.processor = processor

    def __enter__(self) -> Self:
        with tempfile.TemporaryFile() as file:
            file.truncate(mmap.PAGESIZE)
            self._shared = mmap.mmap(file.fileno(), mmap.PAGESIZE)
            arguments = [str(file.fileno()), "" if self.processor is None else str(self.processor)]
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(file.fileno(),),
                text=True,
            )
        self._count = memoryview(self._shared).cast("Q")
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # Wherever it is, and though it be stopped. Should this process die instead, the other ends with its input.
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._count.release()
        self._shared.close()

    @property
    def octets(self) -> int:
        """How many bytes of frames that carry data the clients have read since they began to drain."""
        return self._count[0]

    @property
    def messages(self) -> int:
        """How many messages these were; the bytes of each are in `octets` before it is counted here."""
        return self._count[1]

    async def connect(self, port: int, count: int, *, deflate: bool, tls: bool = False) -> None:
        """Connect so many clients to a server at 127.0.0.1; then their opening handshakes are done.

        Args:
            port: Port of the server.
            count: How many.
            deflate: Whether they negotiate permessage-deflate with the server.
            tls: Whether they connect over TLS.

        Raises:
            UnfitError: If they could not.
        """
        await self.ask(f"connect {port} {count}" + (" deflate" if deflate else "") + (" tls" if tls else ""))

    async def drain(self, *, awake: bool, records: bool = False) -> None:
        """Begin to read. Then there is nothing but the end that could be asked of the clients.

        Args:
            awake: Whether they look for data all the time, if the kernel can do that, instead of sleeping until there
                is some. Then no method has to wake them up.
            records: Whether to count TLS records rather than messages; then nothing is decrypted, and no ping answered.
        """
        await self.ask("drain" + (" awake" if awake else "") + (" records" if records else ""))

    def stop(self) -> None:
        """Suspend the process; what it is sent piles up in its sockets."""
        self._process.send_signal(signal.SIGSTOP)
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def go_on(self) -> None:
        """Resume the process."""
        self._process.send_signal(signal.SIGCONT)

    def wakeups(self) -> int | None:
        """Return how often the process has waited for something and was woken up again; None if that is not known."""
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:
            return None
        name, _, count = status.rpartition("\nvoluntary_ctxt_switches:")
        return int(count.split()[0]) if name else None

    async def ask(self, request: str) -> None:
        """Have the process do something; then it is done.

        Raises:
            UnfitError: If it could not.
        """
        answer = await self.answer(request)
        if answer != "ok":
            raise UnfitError(f"clients cannot {request.split()[0]}: {answer or 'their process has ended'}")

    async def answer(self, request: str) -> str:
        """Return the line by which the process answers a request; empty if it has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return ""
        return (await asyncio.to_thread(self._process.stdout.readline)).strip()
