"""The processes of the demo, what they are told, and the samples that their reports make."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from typing import Any

from wsfast_bench.machine import versions

from .child import Child, LostError
from .lane import POLICIES
from .story import CODE, LANES, describe_bytes, say

__all__ = ["LONGEST", "MOST", "CommandError", "Settings", "Show"]

LONGEST = 60.0
"""Seconds after which a client comes out of the tunnel by itself."""

MOST = 256 << 20
"""Bytes by which a lane may grow before the client comes out of the tunnel by itself."""

FASTEST = 100
"""Ticks per second, at most."""

SAMPLES = 1200
"""Samples that are remembered: five minutes."""


class CommandError(Exception):
    """That cannot be done; the text says why."""


@dataclass(slots=True)
class Settings:
    """Settings of the demo.

    Attributes:
        clients: Clients in each lane.
        rate: Ticks per second.
        size: Bytes of a message.
        policy: The policy of the Channel for slow clients.
        loop: `asyncio` or `uvloop`, for the lanes.
    """

    clients: int = 333
    rate: int = 20
    size: int = 16384
    policy: str = "DropOldest"
    loop: str = "asyncio"


class Show:
    """Three lanes and their clients."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.connected = 0
        """Clients of all lanes that have connected."""
        self.stalled_at: float | None = None
        """When the phones drove into the tunnel; None if they are not in it."""
        self.samples: deque[dict[str, Any]] = deque(maxlen=SAMPLES)
        self.notice = ""
        """Why the demo let the client out of the tunnel; empty if it did not."""
        self.recovery = ""
        """The result of the last part, in which all clients of one more server come back; empty before."""
        self.auto = False
        """Whether the phones drive into the tunnel without a command of a page."""
        self.on_connected: Callable[[int], object] = lambda connected: None
        self.on_sample: Callable[[dict[str, Any]], object] = lambda sample: None
        self.lanes: dict[str, Child] = {}
        self.clients: Child | None = None
        self._ports: dict[str, int] = {}
        self._reports: dict[str, dict[str, Any]] = {lane: {} for lane in LANES}
        self._lost: dict[str, int] = {}  # messages of the phone that were lost before it drove into the tunnel
        self._missed = 0  # messages that clients of the Channel's lane had missed before that
        self._first: dict[str, int] = {}  # bytes of memory at first
        self._listening: list[asyncio.Task[None]] = []
        self._news = asyncio.Event()
        self._began = time.monotonic()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Show]:
        """Run all processes while in the context. They send nothing until all clients are there.

        Raises:
            LostError: If one fails.
        """
        settings = self.settings
        for lane, name in LANES.items():
            task = {"lane": lane, "size": settings.size, "policy": settings.policy, "loop": settings.loop}
            self.lanes[lane] = Child(name, "lane", task, lambda report, lane=lane: self._hear(lane, report))  # type: ignore[misc]
        async with contextlib.AsyncExitStack() as stack:

            async def start(child: Child) -> None:
                stack.push_async_callback(child.end)
                await child.start()
                self._listening.append(asyncio.create_task(child.listen()))

            try:
                for child in self.lanes.values():
                    await start(child)
                await self._until(lambda: len(self._ports) == len(LANES))
                task = {"ports": self._ports, "clients": settings.clients}
                self.clients = Child("the clients", "clients", task, self._hear_clients)
                await start(self.clients)
                await self._until(lambda: self.connected == settings.clients * len(LANES))
                self.do("rate", settings.rate)
                yield self
            finally:
                for listening in self._listening:
                    listening.cancel()
                await asyncio.gather(*self._listening, return_exceptions=True)

    async def watch(self) -> None:
        """Wait until a process fails.

        Raises:
            LostError: When it has.
        """
        await self._until(lambda: False)

    async def until_sample(self) -> dict[str, Any]:
        """Wait for the next sample.

        Raises:
            LostError: If a process fails.
        """
        last = self.samples[-1] if self.samples else None
        await self._until(lambda: bool(self.samples) and self.samples[-1] is not last)
        return self.samples[-1]

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            news = asyncio.create_task(self._news.wait())
            try:
                await asyncio.wait((news, *self._listening), return_when=asyncio.FIRST_COMPLETED)
            finally:
                news.cancel()
            for task in self._listening:
                if task.done():
                    task.result()

    # ---- Commands

    def do(self, name: str, value: object) -> None:
        """Obey a command of a page.

        Raises:
            CommandError: If it cannot be done.
        """
        if not self.samples and name != "rate":
            raise CommandError("the clients are still connecting")
        if name == "tunnel" and isinstance(value, bool):
            self.notice = ""
            self._drive(stalled=value)
        elif name == "policy" and isinstance(value, str) and value in POLICIES:
            self.settings.policy = value
            self._lost.clear()
            self.lanes["channel"].tell(do="policy", name=value)
        elif name == "rate" and isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= FASTEST:
            self.settings.rate = value
            for lane in self.lanes.values():
                lane.tell(do="rate", value=value)
        else:
            raise CommandError(f"this cannot be done: {name} {value!r}")

    def _drive(self, *, stalled: bool) -> None:
        """Have the phones drive into the tunnel or out of it."""
        assert self.clients is not None
        if stalled == (self.stalled_at is not None):
            return
        self.stalled_at = time.monotonic() if stalled else None
        self._lost = {name: self._reports["channel"].get(name, 0) for name in ("dropped", "conflated")}
        self._missed = self.samples[-1]["lanes"]["channel"]["missed"]
        self.clients.tell(do="stall" if stalled else "release")

    # ---- Reports

    def _hear(self, lane: str, report: dict[str, Any]) -> None:
        if "port" in report:
            self._ports[lane] = report["port"]
            self._news.set()
        else:
            self._reports[lane] = report

    def _hear_clients(self, report: dict[str, Any]) -> None:
        if "failed" in report:
            raise LostError(f"a client cannot connect: {report['failed']}")
        if "connected" in report:
            self.connected = report["connected"]
            self.on_connected(self.connected)
        elif all(self._reports.values()):
            sample = self._sample(report["lanes"])
            self.samples.append(sample)
            self.on_sample(sample)
            self._bound(sample)
        self._news.set()

    def _sample(self, seen: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Return the numbers of this moment, and a sentence about each lane."""
        stalled = self.stalled_at is not None
        expected = self.settings.rate * (self.settings.clients - 1)
        lanes: dict[str, dict[str, Any]] = {}
        for lane in LANES:
            numbers = {**self._reports[lane], **seen[lane]}
            for name in ("dropped", "conflated"):
                numbers[name] = max(0, numbers[name] - self._lost.get(name, 0)) if lane == "channel" else 0
            if numbers["memory"] is not None:
                numbers["grown"] = numbers["memory"] - self._first.setdefault(lane, numbers["memory"])
            numbers["missed_since"] = numbers["missed"] - self._missed if lane == "channel" else 0
            numbers |= {"name": LANES[lane], "code": CODE[lane]}
            numbers["says"] = say(lane, numbers, stalled=stalled, expected=expected)
            lanes[lane] = numbers
        now = time.monotonic()
        return {
            **asdict(self.settings),
            "time": round(now - self._began, 2),
            "stalled": None if self.stalled_at is None else round(now - self.stalled_at, 1),
            "notice": self.notice,
            "auto": self.auto,
            "recovery": self.recovery,
            "version": versions()["websockets"],
            "longest": f"{LONGEST:.0f} s",
            "most": f"{MOST >> 20} MiB",
            "lanes": lanes,
        }

    def _bound(self, sample: dict[str, Any]) -> None:
        """Have the clients leave the tunnel before this machine suffers."""
        grown = max(numbers.get("grown", 0) for numbers in sample["lanes"].values())
        if self.stalled_at is not None and (sample["stalled"] >= LONGEST or grown > MOST):
            self._drive(stalled=False)
            why = f"{LONGEST:.0f} s" if grown <= MOST else f"a server grew by {describe_bytes(grown)}"
            self.notice = f"The demo let the client out of the tunnel after {why}."
