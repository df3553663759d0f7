"""A rolling restart: workers that share a socket are drained and started again one after the other, beside a feed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from types import MappingProxyType
from typing import Any

import wsfast
from wsfast_bench.brokers import broker
from wsfast_bench.cases import Case
from wsfast_bench.feed import BACKLOG, Feed
from wsfast_bench.machine import UnfitError, installed
from wsfast_bench.returning import Returning

from .scenario import Chart, Option, Play, Row, Scenario, Settings

__all__ = ["SCENARIO", "most_in_a_second", "restart"]

WORKERS = 4

HISTORY = 1000

PATIENCE = 30.0
"""Seconds that a worker has to start, and to end after its window."""

BACK = 1.0
"""Seconds within which a client comes back that was disconnected, after a random time."""

SHARE = 0.1
"""Share of the clients that may come back in one second."""


def most_in_a_second(times: Sequence[float]) -> int:
    """Return the largest number of moments within any second."""
    most = start = 0
    ordered = sorted(times)
    for end, moment in enumerate(ordered):
        while ordered[start] <= moment - 1:
            start += 1
        most = max(most, end - start + 1)
    return most


@contextlib.asynccontextmanager
async def _worker(url: str, sock: socket.socket, seconds: float, loop: str) -> AsyncIterator[Any]:
    """Run a worker until it is ready; in the end, kill it if it still runs."""
    arguments = (url, str(sock.fileno()), str(seconds), loop, str(HISTORY))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "wsfast_bench.worker", *arguments),
        stdout=asyncio.subprocess.PIPE,
        pass_fds=(sock.fileno(),),
    )
    try:
        await _line(process, "ready")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _line(process: Any, expected: str | None = None) -> str:
    """Return the next line of a worker."""
    try:
        line: bytes = await asyncio.wait_for(process.stdout.readline(), PATIENCE)
    except TimeoutError:
        line = b""
    if not line or expected not in (None, line.decode().strip()):
        raise UnfitError("a worker does not start or end")
    return line.decode().strip()


async def restart(case: Case, workers: int, seconds: float, rate: float = 5.0) -> dict[str, Any]:
    """Restart all workers, one after the other.

    Args:
        case: How many clients, and how large a message.
        workers: How many workers.
        seconds: Window of each drain.
        rate: Messages per second.

    Raises:
        UnfitError: If a client misses a message, gets one twice, or is not recovered.
    """
    hub = wsfast.Hub(history=HISTORY, envelope=True)
    feed = Feed(hub, case.size, pause=1 / rate)
    with broker("redis") as url, socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as sock:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(wsfast.relay.redis(hub, url, recover=True))
            running = [contextlib.AsyncExitStack() for _ in range(workers)]
            for one in running:
                await stack.enter_async_context(one)
            processes = [await one.enter_async_context(_worker(url, sock, seconds, case.loop)) for one in running]
            clients = stack.enter_context(Returning(None))
            await stack.enter_async_context(feed.running())
            # One that accepts all that come at once would have most of them.
            await clients.do("open", sock.getsockname()[1], case.clients, min(seconds, workers))
            await clients.do("reach", feed.number + 1)
            begin = time.monotonic()
            await clients.do("wait", BACK)
            aborted = 0
            for number, process in enumerate(processes):
                process.send_signal(signal.SIGTERM)
                aborted += int((await _line(process)).split()[1])
                await running[number].aclose()
                await running[number].enter_async_context(_worker(url, sock, seconds, case.loop))
            took = time.monotonic() - begin
            last = feed.number + 1
            told = await clients.do("reach", last)
    times = told["times"]
    if told["live"] != case.clients or len(times) < case.clients:
        raise UnfitError(f"{told['live']} of {case.clients} clients are there, after {len(times)} times to come back")
    histogram = [0] * (int(max(times) - begin) + 1)
    for moment in times:
        histogram[int(moment - begin)] += 1
    most = most_in_a_second(times)
    return {
        "way": "rolling",
        "clients": case.clients,
        "workers": workers,
        "window": seconds,
        "seconds": took,
        "reconnects": len(times),
        "most": most,
        "share": most / case.clients,
        "refused": told["refused"],
        "aborted": aborted,
        "histogram": histogram,
        "messages": told["messages"],
        "last": last,
    }


class Rolling(Scenario):
    """Workers, clients, Redis, and a process with the feed that restarts the workers."""

    name = "rolling"
    help = "2,000 clients of four workers that are drained and restarted one after the other, with Redis"
    seconds = Option("seconds", "window of each drain in seconds", 15, quick=2)
    options = (seconds,)
    numbers = MappingProxyType({"share": "most in a second"})
    chart = Chart("Largest share of clients that come back in one second", "share", "{workers} workers")
    legend = (
        "reconnects: how often clients came back. most in a second: of these, in any second. refused: attempts to\n"
        "connect that failed. Every client checks that it gets every message exactly once, and is always recovered."
    )

    def plan(self, settings: Settings) -> Iterator[Play]:
        """Play once."""
        if not installed("redis"):
            raise UnfitError("scenario rolling needs redis; pip install wsfast[bench]")
        clients = settings.clients(2000)
        seconds = settings.number(self.seconds)
        yield Play(
            f"{clients} clients, {WORKERS} workers, each drained within {seconds} s: all",
            {"case": settings.case(clients, 100, "text"), "seconds": seconds},
        )

    async def run(self, case: Case, task: dict[str, Any]) -> Row:
        """Restart all workers."""
        return await restart(case, WORKERS, task["seconds"])

    def tabulate(self, rows: Sequence[Row]) -> list[list[str]]:
        """Return one row."""
        heads = ["workers", "restarted in s", "reconnects", "most in a second", "refused", "messages to each"]
        return [
            heads,
            *(
                [
                    str(row["workers"]),
                    f"{row['seconds']:.1f}",
                    str(row["reconnects"]),
                    f"{row['most']} ({row['share']:.1%})",
                    str(row["refused"]),
                    str(row["last"]),
                ]
                for row in rows
            ),
        ]

    def warn(self, rows: Sequence[Row]) -> list[str]:
        """Return the reconnects of each second, ten in a line; warn if there were too many."""
        lines = []
        for row in rows:
            counts = row["histogram"]
            lines += [
                f"came back in seconds {start:2d} to {start + 9:2d}:"
                + "".join(f"{n:5d}" for n in counts[start : start + 10])
                for start in range(0, len(counts), 10)
            ]
            if row["share"] > SHARE:
                lines.append(f"WARNING: more than {SHARE:.0%} of the clients came back in one second")
        return lines


SCENARIO = Rolling()
