"""The server of the demonstration: it broadcasts ticks by two functions in turn, and compares them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.protocol import OPEN

import wsfast

from .ticks import Market

__all__ = ["Demo"]

PHASE = 1.0
"""Seconds for which one function broadcasts before it is the other's turn; less if there is less time in all."""

PATIENCE = 60.0
"""Seconds after which the clients are given up."""

TRIALS = 3
"""Ticks by each function that show how fast the clients are, and are not counted."""


@dataclass(slots=True)
class Turns:
    """One of the two functions, and how long its calls took."""

    name: str
    broadcast: Callable[[Collection[ServerConnection], str], Any]
    calls: list[float] = field(default_factory=list)
    """Milliseconds."""

    @property
    def mean(self) -> float:
        """Mean of the calls in milliseconds."""
        return statistics.fmean(self.calls)

    @property
    def p99(self) -> float:
        """99th percentile of the calls in milliseconds; of less than a hundred, the slowest."""
        return sorted(self.calls)[-1 - len(self.calls) // 100]


class LostError(Exception):
    """The clients are not what they should be."""


@dataclass(slots=True)
class Demo:
    """A demonstration.

    Attributes:
        clients: How many clients connect.
        seconds: How long to broadcast.
        rate: Ticks per second, at most; fewer if the clients cannot follow.
        loop: `asyncio` or `uvloop`, for both processes.
        processors: One for the server, one for the clients; None not to bind them.
    """

    clients: int
    seconds: float
    rate: float
    loop: str
    processors: tuple[int, int] | None
    market: Market = field(default_factory=Market)
    connections: list[ServerConnection] = field(default_factory=list)
    everywhere: int = 0
    """The last tick that all clients have got."""
    published: dict[int, float] = field(default_factory=dict)
    """Time of each tick that not all clients have got yet."""
    delays: list[float] = field(default_factory=list)
    """Seconds from each tick's call until the last client had decoded it."""

    def run(self) -> int:
        """Run it; return 0 if all clients received all ticks in order, else 1."""
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
        if self.loop == "uvloop":
            import uvloop

            loop_factory = uvloop.new_event_loop
        affinity = None
        if self.processors is not None:
            affinity = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {self.processors[0]})
        try:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                return runner.run(self._run())
        except LostError as exc:
            print(f"\nwsfast demo: error: {exc}", file=sys.stderr)
            return 1
        finally:
            if affinity is not None:
                os.sched_setaffinity(0, affinity)

    async def _run(self) -> int:
        async with serve(
            self._stay, "127.0.0.1", 0, compression=None, ping_interval=None, open_timeout=PATIENCE
        ) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            async with contextlib.AsyncExitStack() as stack:
                process = await self._start_clients(port)
                stack.push_async_callback(_end, process)
                await self._connect(process)
                listening = asyncio.create_task(self._listen(process))
                stack.callback(listening.cancel)
                turns = (Turns("websockets.broadcast", broadcast), Turns("wsfast.broadcast", wsfast.broadcast))
                await self._publish_all(turns, listening)
                # The frames of the closing handshake come after the ticks: whoever has them has had all of those.
                server.close()
                try:
                    report = await asyncio.wait_for(listening, PATIENCE)
                except TimeoutError:
                    raise LostError("the clients do not come to an end") from None
        print_table(turns, self.clients)
        if self.delays:
            print(f"The last client had decoded a tick {statistics.median(self.delays) * 1e3:.1f} ms after the call.")
        return self._judge(report)

    # ---- Clients

    async def _stay(self, connection: ServerConnection) -> None:
        self.connections.append(connection)
        await connection.wait_closed()

    async def _start_clients(self, port: int) -> asyncio.subprocess.Process:
        processor = "" if self.processors is None else str(self.processors[1])
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "wsfast.demo.clients", str(port), str(self.clients), self.loop, processor),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for this process, which then ends the other
        )

    async def _connect(self, process: asyncio.subprocess.Process) -> None:
        """Wait until all clients have connected."""
        begin = time.perf_counter()
        while (await _hear(process)).get("connected") != self.clients:
            show(f"{len(self.connections)} of {self.clients} clients have connected", passing=True)
        while len(self.connections) < self.clients:
            await asyncio.sleep(0.01)
        show(f"{self.clients} clients have connected in {time.perf_counter() - begin:.1f} s ({self.loop})")

    async def _listen(self, process: asyncio.subprocess.Process) -> dict[str, Any]:
        """Take note of what the clients tell, until they end with a report."""
        while "seen" not in (news := await _hear(process)):
            self.everywhere = news["everywhere"]
            self.delays.append(time.perf_counter() - self.published.pop(self.everywhere))
        return news

    async def _until_everywhere(self) -> None:
        """Wait until all clients have got the last tick; those that miss one are for the report to tell."""
        deadline = time.perf_counter() + PATIENCE
        while self.everywhere < self.market.seq and time.perf_counter() < deadline:
            if any(connection.protocol.state is not OPEN for connection in self.connections):
                return
            await asyncio.sleep(0.002)

    def _judge(self, report: dict[str, Any]) -> int:
        last = self.market.seq
        complete = sum(count for seen, count in report["seen"] if seen == last)
        bad = self.clients - complete + report["disordered"]
        if bad == 0:
            print(f"All {self.clients} clients received all {last} ticks exactly once and in order.")
            return 0
        print(
            f"wsfast demo: error: of {self.clients} clients, {self.clients - complete} did not receive all {last} "
            f"ticks, and {report['disordered']} received them out of order",
            file=sys.stderr,
        )
        return 1

    # ---- Ticks

    async def _publish_all(self, turns: Collection[Turns], listening: asyncio.Task[dict[str, Any]]) -> None:
        """Publish all ticks, and wait until they have arrived, unless the clients end before.

        Raises:
            LostError: If they do.
        """

        async def publish() -> None:
            interval = await self._find_interval(turns)
            await self._broadcast(turns, interval)
            await self._until_everywhere()

        publishing = asyncio.create_task(publish())
        try:
            await asyncio.wait((publishing, listening), return_when=asyncio.FIRST_COMPLETED)
            if not publishing.done():
                raise LostError("the clients have ended too early")
            await publishing
        finally:
            publishing.cancel()

    def _publish(self, turn: Turns) -> float:
        """Broadcast the next tick; return how long the call took in milliseconds."""
        tick = self.market.tick()
        begin = time.perf_counter()
        turn.broadcast(self.connections, tick)
        end = time.perf_counter()
        self.published[self.market.seq] = begin
        return (end - begin) * 1e3

    async def _find_interval(self, turns: Collection[Turns]) -> float:
        """Try how long the clients take for a tick; return seconds between ticks that leave them time to rest."""
        slowest = 0.0
        for _ in range(TRIALS):
            for turn in turns:
                begin = time.perf_counter()
                self._publish(turn)
                await self._until_everywhere()
                slowest = max(slowest, time.perf_counter() - begin)
        self.delays.clear()
        interval = max(1 / self.rate, 1.5 * slowest)
        show(f"{1 / interval:.1f} ticks per second: the clients take {slowest * 1e3:.0f} ms to decode one")
        return interval

    async def _broadcast(self, turns: Collection[Turns], interval: float) -> None:
        """Broadcast ticks by the functions in turn until the time is over, and at least one by each."""
        begin = time.perf_counter()
        phase = min(PHASE, self.seconds / len(turns))
        ticks = max(round(phase / interval), 1)
        due = begin
        while due - begin < self.seconds or not all(turn.calls for turn in turns):
            for turn in turns:
                for _ in range(ticks):
                    due += interval
                    await asyncio.sleep(due - time.perf_counter())
                    turn.calls.append(self._publish(turn))
                    show(self._comparison(turns), passing=True)
            show(self._comparison(turns), passing=sys.stdout.isatty())
        show(self._comparison(turns) if sys.stdout.isatty() else "")

    def _comparison(self, turns: Collection[Turns]) -> str:
        """Return a line that compares the calls so far."""
        parts = [f"tick {self.market.seq}"]
        parts += [f"{turn.name} {turn.mean:.2f} ms" for turn in turns if turn.calls]
        first, second = turns
        if first.calls and second.calls:
            parts.append(f"{first.mean / second.mean:.2f} times faster")
        return "   ".join(parts)


async def _hear(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """Return the next thing that the process of the clients tells.

    Raises:
        LostError: If it has ended.
    """
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise LostError("the process of the clients has ended")
    news: dict[str, Any] = json.loads(line)
    return news


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the process of the clients, if it has not ended."""
    assert process.stdin is not None
    process.stdin.close()
    await process.wait()


def show(line: str, *, passing: bool = False) -> None:
    """Print a line; one that is passing is overwritten by the next, and not shown except on a terminal."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{line}", end="" if passing else "\n", flush=True)
    elif line and not passing:
        print(line, flush=True)


def print_table(turns: Collection[Turns], clients: int) -> None:
    """Print what the functions have in common and in what they differ."""
    slowest = max(turn.mean for turn in turns)
    print(f"{'function':<22}{'broadcasts':>11}{'mean ms':>10}{'p99 ms':>10}{'us/client':>11}{'times faster':>14}")
    for turn in turns:
        per_client = turn.mean * 1e3 / clients
        print(
            f"{turn.name:<22}{len(turn.calls):>11}{turn.mean:>10.2f}{turn.p99:>10.2f}{per_client:>11.2f}"
            f"{slowest / turn.mean:>14.2f}"
        )
