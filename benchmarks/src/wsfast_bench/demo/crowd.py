"""The process of the clients, as the server sees it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["PATIENCE", "Crowd", "LostError"]

PATIENCE = 60.0
"""Seconds after which the clients are given up."""


class LostError(Exception):
    """The clients are not what they should be."""


class Crowd:
    """Tells the process of the clients what to do, and hears how they do.

    Args:
        loop: `asyncio` or `uvloop`.
        processor: The one to bind it to; None not to.
    """

    def __init__(self, loop: str, processor: int | None) -> None:
        self.everywhere = 0
        """The last tick that all clients that must miss nothing have got."""
        self.received = 0
        """How many ticks all clients have got."""
        self.received_at = 0.0
        """When that was so, by the clock of the clients."""
        self.oldest: int | None = None
        """The last tick that the slowest of the others has got."""
        self.lost = 0
        """Clients whose connections have ended though nobody asked for it, and nobody allowed it."""
        self.failures: list[str] = []
        """Why clients could not connect."""
        self.on_failure: Callable[[int], object] = lambda number: None
        """Called with the number of a client that could not connect."""
        self._arguments = (loop, "" if processor is None else str(processor))
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._number = 0
        self._acknowledged = 0
        self._report: dict[str, int] | None = None
        self._news = asyncio.Event()

    async def start(self, port: int) -> None:
        """Start the process; its clients connect to that port of this machine."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "wsfast_bench.demo.clients", str(port), *self._arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for this process, which then ends the other
        )
        self._listening = asyncio.create_task(self._listen())

    async def end(self) -> None:
        """End the process, and with it all clients."""
        if self._process is None or self._listening is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), PATIENCE)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await asyncio.wait((self._listening,))

    def tell(self, what: str, clients: Iterable[int] = (), **arguments: Any) -> int:
        """Tell it to do something; return the number by which `done` knows it."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._number += 1
        if not self._process.stdin.is_closing():
            command = {"do": what, "clients": list(clients), "ack": self._number, **arguments}
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
        return self._number

    async def done(self, number: int) -> None:
        """Wait until it has done that.

        Raises:
            LostError: If it has ended instead, or takes forever.
        """
        await self.until(lambda: self._acknowledged >= number)

    async def report(self, seq: int) -> dict[str, int]:
        """Return what all clients have seen, if that is the number of the last tick.

        Raises:
            LostError: If the process has ended.
        """
        await self.done(self.tell("report", seq=seq))
        assert self._report is not None
        return self._report

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so, which is looked at whenever the process has told something, or `stir` is called.

        Raises:
            LostError: If it has ended, or nothing changes for a long time.
        """
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    self.check()
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise LostError(f"the clients have not come to an end with a tick within {PATIENCE:.0f} s") from None

    def check(self) -> None:
        """Make sure that the process is there.

        Raises:
            LostError: If it has ended.
        """
        if self._listening is None or self._listening.done():
            raise LostError("the process of the clients has ended")

    def stir(self) -> None:
        """Have whoever waits look again."""
        self._news.set()

    async def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            news = json.loads(line)
            if "everywhere" in news:
                self.everywhere = news["everywhere"]
            elif "received" in news:
                self.received, self.received_at, self.oldest = news["received"], news["time"], news["oldest"]
            elif "ack" in news:
                self._acknowledged = news["ack"]
            elif "lost" in news:
                self.lost += 1
            elif "failed" in news:
                self.failures.append(news["failed"])
                self.on_failure(news["client"])
            elif "report" in news:
                self._report = news["report"]
            self._news.set()
        self._news.set()
