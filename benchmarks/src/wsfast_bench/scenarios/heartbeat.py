"""A channel publishes to many clients: how late is what else the event loop has to do?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any

import wsfast
from wsfast_bench.cases import Case
from wsfast_bench.machine import bind_server, usable_processors
from wsfast_bench.measure import Bench, prepared
from wsfast_bench.report import percentile
from wsfast_bench.ticks import bursts

from .scenario import Chart, Play, Row, Scenario, Settings

__all__ = ["SCENARIO", "beat"]

BEAT = 0.001
"""Seconds between two beats."""

TICK = 0.05
"""Seconds between two messages that are published."""

WAYS = ((1, False), (2, False), (2, True), (4, True), (8, True))
"""Numbers of threads that send, and whether the event loop goes on meanwhile."""


async def beat(bench: Bench, channel: wsfast.Channel, messages: Iterator[Any], ticks: int) -> dict[str, Any]:
    """Publish so many messages beside a heartbeat; return how late that was, and what was delivered."""
    loop = asyncio.get_running_loop()
    late: list[int] = []

    async def heart() -> None:
        while True:
            due = time.perf_counter_ns() + int(BEAT * 1e9)
            await asyncio.sleep(BEAT)
            late.append(time.perf_counter_ns() - due)

    task = asyncio.ensure_future(heart())
    await asyncio.sleep(TICK)
    late.clear()
    cpu, begin = time.process_time(), loop.time()
    for _ in range(ticks):
        for message in next(messages).messages:
            channel.publish(message)
            bench.expected += bench.case.clients
        await asyncio.sleep(TICK)
    while bench.clients.messages < bench.expected:
        await asyncio.sleep(BEAT)
    took, cpu = loop.time() - begin, time.process_time() - cpu
    task.cancel()
    return {
        "p50": percentile(late, 50) / 1e6,
        "p99": percentile(late, 99) / 1e6,
        "most": max(late) / 1e6,
        "delivered": ticks * bench.case.clients / took,
        "cpu": cpu / ticks / bench.case.clients * 1e6,
    }


class Heartbeat(Scenario):
    """One process, in which all ways take turns."""

    name = "heartbeat"
    help = "4000 clients, 256 B every 50 ms by a Channel: delay of a heartbeat of 1 ms in the same event loop"
    keys = ("threads", "beside")
    numbers = MappingProxyType({"p99": "p99 ms", "delivered": "delivered/s"})
    chart = Chart("Delay of a heartbeat, 99th percentile, ms", "p99", "{threads} threads, beside: {beside}")
    legend = (
        "p50, p99, most: delay of the heartbeat. beside: whether the event loop goes on while threads send.\n"
        "us/client: processor time of the server per client and message, including that of the heartbeat."
    )

    def plan(self, settings: Settings) -> Iterator[Play]:
        """Play all in one process."""
        clients = settings.clients(4000)
        rounds = settings.rounds()["rounds"]
        case = settings.case(clients, 256, "text") | {"methods": ("channel",), "sleep": True}
        yield Play(f"{clients} clients, 256 B: in turns", {"case": case, "rounds": rounds, "processors": None})

    async def run(self, case: Case, task: dict[str, Any]) -> list[Row]:
        """Measure all ways."""
        most = max(2, len(usable_processors()))
        ways = [(threads, beside) for threads, beside in WAYS if threads <= most]
        found: dict[tuple[int, bool], list[dict[str, Any]]] = {way: [] for way in ways}
        async with prepared(case, bind_server(None, 1), None) as (bench, turns):
            channel = wsfast.Channel()
            for connection in turns["channel"].room.served:
                channel.subscribe(connection)
            messages = iter(bursts(case, "turns"))
            for _ in range(max(1, task["rounds"] // 8)):
                for threads, beside in ways:
                    wsfast.set_threads(threads, detach=beside)
                    found[threads, beside].append(await beat(bench, channel, messages, 20))
        return [
            {"threads": threads, "beside": beside}
            | {key: sorted(one[key] for one in rows)[len(rows) // 2] for key in rows[0]}
            for (threads, beside), rows in found.items()
        ]

    def tabulate(self, rows: Sequence[Row]) -> list[list[str]]:
        """Return a row for each way."""
        table = [["threads", "beside", "p50 ms", "p99 ms", "most ms", "delivered/s", "us/client"]]
        for row in rows:
            times = [f"{row[key]:.2f}" for key in ("p50", "p99", "most")]
            beside = "yes" if row["beside"] else "no"
            table.append([str(row["threads"]), beside, *times, f"{row['delivered']:,.0f}", f"{row['cpu']:.2f}"])
        return table


SCENARIO = Heartbeat()
