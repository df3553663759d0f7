"""Two processes and a broker: how many messages in a second go from one hub to the other, and how long one takes.

Compared is the recipe that the documentation of websockets gives, in each library's own way: to await each publish, and
to iterate over what is received. This is the publishing process; `receiver` is the other one.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import wsfast
from wsfast_bench.brokers import broker
from wsfast_bench.cases import Case
from wsfast_bench.machine import UnfitError, installed
from wsfast_bench.receiver import TOPICS, topic_of

from .scenario import Chart, Option, Play, Row, Scenario, Settings

__all__ = ["SCENARIO", "WAYS", "compare"]

WAYS = {"redis": ("relay", "recipe"), "nats": ("relay", "recipe"), "local": ("relay",)}
"""Brokers, each with its methods."""

WAITING = 5000
"""Messages that wait for the broker before the publisher waits for it."""

PACED = 500
"""Number of messages whose time is measured, and their rate per second."""

Publish = Callable[[str, str], Coroutine[Any, Any, None]]


@asynccontextmanager
async def _publisher(kind: str, way: str, url: str) -> AsyncIterator[Publish]:
    """Give a function that publishes a message."""
    if way == "relay":
        hub = wsfast.Hub()
        async with getattr(wsfast.relay, kind)(hub, url) as relay:
            count = 0

            async def publish(topic: str, message: str) -> None:
                nonlocal count
                hub.publish(topic, message)
                count += 1
                if count % 100 == 0:
                    await asyncio.sleep(0)
                    while relay.stats().queued > WAITING:
                        await asyncio.sleep(0.001)

            yield publish
    elif kind == "redis":
        import redis.asyncio

        async with redis.asyncio.Redis.from_url(url) as redis_client:

            async def publish_by_redis(topic: str, message: str) -> None:
                await redis_client.publish(topic, message)

            yield publish_by_redis
    else:
        import nats

        nats_client = await nats.connect(url)

        async def publish_by_nats(topic: str, message: str) -> None:
            await nats_client.publish(topic, message.encode())

        yield publish_by_nats
        await nats_client.close()


async def compare(
    case: Case, kind: str, way: str, seconds: float, processors: tuple[int, int] | None
) -> dict[str, Any]:
    """Publish as fast as possible for some seconds, then at a pace.

    Raises:
        UnfitError: If there is no broker, or messages are missing.
    """
    if processors is not None:
        os.sched_setaffinity(0, {processors[0]})
    with broker(kind) as url:
        command = [sys.executable, "-m", "wsfast_bench.receiver", kind, way, url, case.loop]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdin is not None
            assert other.stdout is not None
            try:
                if processors is not None:
                    os.sched_setaffinity(other.pid, {processors[1]})
                if await asyncio.to_thread(other.stdout.readline) != "ready\n":
                    raise UnfitError("the receiving process does not start")

                async def ask(expected: int) -> dict[str, Any]:
                    assert other.stdin is not None
                    assert other.stdout is not None
                    print(expected, file=other.stdin, flush=True)
                    answer: dict[str, Any] = json.loads(await asyncio.to_thread(other.stdout.readline) or "{}")
                    if answer.get("got") != expected:
                        raise UnfitError(f"only {answer.get('got')} of {expected} messages have arrived")
                    return answer

                async with _publisher(kind, way, url) as publish:
                    padding = " ".ljust(case.size - 20, "x")
                    start, cpu, count = time.monotonic(), time.process_time(), 0
                    while time.monotonic() < start + seconds:
                        await publish(topic_of(count), f"{time.monotonic():.9f}{padding}")
                        count += 1
                    fast = await ask(count)
                    cpu = time.process_time() - cpu
                    begin = time.monotonic()
                    for number in range(PACED):
                        await asyncio.sleep(begin + number / PACED - time.monotonic())
                        await publish(topic_of(number), f"{time.monotonic():.9f}{padding}")
                    paced = await ask(PACED)
                other.stdin.close()
            except BaseException:
                other.kill()
                raise
    return {
        "broker": kind,
        "way": way,
        "messages": count,
        "rate": count / (fast["at"] - start),
        "publisher": cpu / count * 1e6,
        "receiver": fast["cpu"] / count * 1e6,
        "p50": paced["p50"],
        "p99": paced["p99"],
    }


class Relay(Scenario):
    """As fast as possible, then at a pace."""

    name = "relay"
    help = "from one process to another, through brokers and Unix sockets: messages per second, and the time of one"
    seconds = Option("seconds", "how long", 5, quick=1)
    options = (seconds,)
    keys = ("broker", "way")
    numbers = MappingProxyType(
        {
            "rate": "messages/s",
            "publisher": "publisher us",
            "receiver": "receiver us",
            "p50": "p50 s",
            "p99": "p99 s",
        }
    )
    theirs = frozenset({"recipe"})
    chart = Chart("Messages per second", "rate", "{broker}, {way}")
    legend = (
        "local: Unix sockets, without a broker. recipe: await publish() for one message after the other, and the\n"
        "iterator of the library. us: processor time of that process per message. p50, p99: from publishing to\n"
        "receiving, at 500 messages/s. With only two processors, the broker has none of its own."
    )

    def plan(self, settings: Settings) -> Iterator[Play]:
        """Play each way with each broker."""
        for module in ("redis", "nats"):
            if not installed(module):
                raise UnfitError("scenario relay needs redis and nats-py; pip install wsfast[bench]")
        seconds = settings.number(self.seconds)
        for kind, ways in WAYS.items():
            for way in ways:
                yield Play(
                    f"{TOPICS} topics, 100 B, as fast as possible for {seconds} s: {kind}, {way}",
                    {
                        "case": settings.case(0, 100, "text"),
                        "broker": kind,
                        "way": way,
                        "seconds": seconds,
                        "processors": settings.processors,
                    },
                )

    async def run(self, case: Case, task: dict[str, Any]) -> Row:
        """Publish by one way through one broker."""
        return await compare(case, task["broker"], task["way"], task["seconds"], task["processors"])

    def tabulate(self, rows: Sequence[Row]) -> list[list[str]]:
        """Return a row for each broker and way."""
        table = [["broker", "method", "messages", "messages/s", "publisher us", "receiver us", "p50 ms", "p99 ms"]]
        table += [
            [
                row["broker"],
                row["way"],
                str(row["messages"]),
                f"{row['rate']:.0f}",
                f"{row['publisher']:.1f}",
                f"{row['receiver']:.1f}",
                f"{row['p50'] * 1e3:.2f}",
                f"{row['p99'] * 1e3:.2f}",
            ]
            for row in rows
        ]
        return table


SCENARIO = Relay()
