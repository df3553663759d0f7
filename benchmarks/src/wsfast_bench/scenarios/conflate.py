"""Clients that read far less than they are sent: one conflates, one is not bounded. How old is what they read?"""

from __future__ import annotations

import asyncio
import logging
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from types import MappingProxyType
from typing import Any

from websockets.asyncio.server import broadcast as websockets_broadcast

import wsfast
from wsfast_bench.cases import Case
from wsfast_bench.numbered import KEYS, Numbered
from wsfast_bench.reading import Reading
from wsfast_bench.servers import SERVE, keep

from .scenario import Chart, Option, Play, Row, Scenario, Settings

__all__ = ["READ", "SCENARIO", "UPDATES", "publish_to_slow"]

UPDATES = 1000
"""Messages that are published in a second."""

READ = 10
"""Messages that a client reads in a second."""

RECEIVE_BUFFER = 8192
"""SO_RCVBUF of a client."""

LAST = 10
"""Number of last messages whose age is shown."""


async def publish_to_slow(case: Case, seconds: float, processors: tuple[int, int] | None) -> list[dict[str, Any]]:
    """Publish for some seconds to both clients, then have them read all.

    Args:
        case: The size of a message.
        seconds: How long.
        processors: One for this process, one for that of the clients; None to bind neither.

    Raises:
        UnfitError: If clients cannot connect.
    """
    if processors is not None:
        os.sched_setaffinity(0, {processors[0]})
    numbered = Numbered(case.size)
    async with AsyncExitStack() as stack:
        served: list[Any] = []
        stock: list[Any] = []
        ports = [
            await stack.enter_async_context(SERVE["served"](case, served)),
            await stack.enter_async_context(SERVE["stock"](case, stock)),
        ]
        readers = stack.enter_context(Reading(None if processors is None else processors[1]))
        for port, accepted in zip(ports, (served, stock), strict=True):
            await readers.ask(f"connect {port} 1 {RECEIVE_BUFFER}")
            await keep(accepted, 1)
        channel = wsfast.Channel("conflate", slow=wsfast.Conflate())
        channel.subscribe(served[0])
        await readers.ask(f"trickle {case.size} {READ}")
        start = time.monotonic()
        for number in range(round(seconds * UPDATES)):
            await asyncio.sleep(max(start + number / UPDATES - time.monotonic(), 0))
            payload = numbered.payload(number, time.monotonic())
            channel.publish(payload, key=number % KEYS)
            websockets_broadcast(stock, payload)
        took = time.monotonic() - start
        channel.flush()
        told = await readers.ask(f"hurry {round(seconds * UPDATES)}")
        rows = []
        for way, answer in zip(("Conflate", "websockets"), told, strict=True):
            last = answer["slow"][-LAST:]
            rows.append(
                {
                    "way": way,
                    "seconds": took,
                    "published": round(seconds * UPDATES),
                    "read": len(answer["slow"]),
                    "age": statistics.median(last) if last else None,
                    "oldest": max(last) if last else None,
                    "more": answer["read"] - len(answer["slow"]),
                    "newest": answer["newest"],
                    "keys": answer["keys"],
                    "disordered": answer["disordered"],
                    "ages": answer["slow"],
                }
            )
        return rows


class Conflation(Scenario):
    """A client of a channel that conflates, beside one of `websockets.broadcast()`."""

    name = "conflate"
    help = "a client that reads 10 of 1,000 updates a second; the age of what it reads"
    seconds = Option("seconds", "how long", 60, quick=10)
    options = (seconds,)
    numbers = MappingProxyType({"age": "age s", "oldest": "oldest s"})
    chart = Chart("Age of the last messages that were read slowly, s (median)", "age", "{way}")
    legend = (
        "age, oldest: seconds from publishing to reading, of the last 10 messages that were read slowly: median,\n"
        "most. read fast: messages read after that. newest of keys: keys whose newest value the client has at the\n"
        "end."
    )

    def plan(self, settings: Settings) -> Iterator[Play]:
        """Play both at once."""
        seconds = settings.number(self.seconds)
        yield Play(
            f"{READ} of {UPDATES} updates/s of 1 KiB over {KEYS} keys are read for {seconds} s, "
            f"SO_RCVBUF {RECEIVE_BUFFER} B",
            {"case": settings.case(1, 1024, keepalive=False), "seconds": seconds, "processors": settings.processors},
        )

    async def run(self, case: Case, task: dict[str, Any]) -> list[Row]:
        """Publish to both."""
        logging.getLogger("wsfast").setLevel(logging.ERROR)  # that clients do not keep up is what was asked for
        return [*await publish_to_slow(case, task["seconds"], task["processors"])]

    def tabulate(self, rows: Sequence[Row]) -> list[list[str]]:
        """Return a row for each of both."""
        table = [["method", "published", "s", "read", "age s", "oldest s", "read fast", "newest of keys", "disordered"]]
        table += [
            [
                row["way"],
                str(row["published"]),
                f"{row['seconds']:.1f}",
                str(row["read"]),
                "-" if row["age"] is None else f"{row['age']:.2f}",
                "-" if row["oldest"] is None else f"{row['oldest']:.2f}",
                str(row["more"]),
                f"{row['newest']}/{row['keys']}",
                str(row["disordered"]),
            ]
            for row in rows
        ]
        return table


SCENARIO = Conflation()
