"""Many topics. Each client follows some of them."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from types import MappingProxyType
from typing import Any

from websockets.asyncio.server import broadcast as websockets_broadcast

import wsfast
from wsfast_bench.cases import Case
from wsfast_bench.clients import Clients
from wsfast_bench.machine import UnfitError
from wsfast_bench.servers import PATIENCE, SERVE, admit

from .scenario import Chart, Option, Play, Row, Scenario, Settings

__all__ = ["FOLLOWED", "RATE", "SCENARIO", "WAYS", "publish_topics"]

WAYS = {
    "hub": "served",
    "hub-stock": "stock",
    "channel": "served",
    "channel-stock": "stock",
    "wsfast": "stock",
    "websockets": "stock",
}
"""Compared methods, each with its server."""

FOLLOWED = 50
"""Topics that a client follows, if there are so many."""

RATE = 20
"""Ticks in a second; in each, a message is published in each topic."""


async def publish_topics(
    case: Case, way: str, topics: int, seconds: float, processors: tuple[int, int] | None
) -> dict[str, Any]:
    """Publish in all topics, tick by tick.

    Args:
        case: Clients, and the size of a message.
        way: One of `WAYS`.
        topics: How many there are.
        seconds: How long it takes if the server keeps up.
        processors: One for this process, one for that of the clients; None to bind neither.

    Raises:
        UnfitError: If clients cannot connect, or do not read what they are sent.
    """
    if processors is not None:
        os.sched_setaffinity(0, {processors[0]})
    async with AsyncExitStack() as stack:
        accepted: list[Any] = []
        port = await stack.enter_async_context(SERVE[WAYS[way]](case, accepted))
        clients = stack.enter_context(Clients(None if processors is None else processors[1]))
        await admit(clients, case, port, accepted)
        chance = random.Random("topics")
        followers: list[list[Any]] = [[] for _ in range(topics)]
        for connection in accepted:
            for topic in chance.sample(range(topics), min(FOLLOWED, topics)):
                followers[topic].append(connection)
        deliveries = sum(map(len, followers))
        call = _publisher(way, followers, [f"{topic:>8}".ljust(case.size)[: case.size] for topic in range(topics)])
        await clients.drain(awake=processors is not None and not case.sleep)
        gc.collect()
        gc.freeze()
        ticks = max(round(seconds * RATE), 1)
        cpu = 0
        start = time.monotonic()
        for tick in range(ticks):
            await asyncio.sleep(max(start + tick / RATE - time.monotonic(), 0))
            before = time.process_time_ns()
            call()
            await asyncio.sleep(0)
            cpu += time.process_time_ns() - before
        took = time.monotonic() - start
        expected = ticks * deliveries
        deadline = time.monotonic() + PATIENCE
        while clients.messages < expected and time.monotonic() < deadline:
            await asyncio.sleep(0.001)
        gc.unfreeze()
        if clients.messages != expected:
            raise UnfitError(f"clients have read {clients.messages} of {expected} messages")
        return {
            "way": way,
            "topics": topics,
            "ticks": ticks,
            "rate": ticks / max(took, ticks / RATE),
            "deliveries": ticks * deliveries,
            "cpu": cpu / (ticks * deliveries) / 1e3,
            "busy": cpu / 1e6 / ticks,
        }


def _publisher(way: str, followers: list[list[Any]], messages: list[str]) -> Callable[[], None]:
    if way in ("hub", "hub-stock"):
        hub = wsfast.Hub()
        for topic, connections in enumerate(followers):
            for connection in connections:
                hub.subscribe(connection, f"topics.{topic}")
        items = [(f"topics.{topic}", message) for topic, message in enumerate(messages)]

        def publish_many() -> None:
            hub.publish_many(items)
            hub.flush()

        return publish_many
    if way in ("channel", "channel-stock"):
        channels = [wsfast.Channel(str(topic)) for topic in range(len(followers))]
        for channel, connections in zip(channels, followers, strict=True):
            for connection in connections:
                channel.subscribe(connection)

        def publish() -> None:
            for channel, message in zip(channels, messages, strict=True):
                channel.publish(message)
            channels[0].flush()

        return publish

    broadcast: Callable[[Any, Any], object] = wsfast.broadcast if way == "wsfast" else websockets_broadcast

    def call() -> None:
        for connections, message in zip(followers, messages, strict=True):
            broadcast(connections, message)

    return call


class Topics(Scenario):
    """A message in each topic, in each tick."""

    name = "topics"
    help = "1000 topics, 1000 clients that follow 50 topics each, 20 ticks per second"
    topics = Option("topics", "how many", 1000, quick=1000)
    seconds = Option("seconds", "how long", 10, quick=2)
    options = (topics, seconds)
    numbers = MappingProxyType({"rate": "ticks/s", "cpu": "CPU us/message"})
    chart = Chart("Processor time of the server, us per message", "cpu", "{way}")
    legend = (
        "messages: delivered; all have arrived. CPU: processor time of the server in its ticks, until everything is\n"
        "written or queued. ticks/s: fewer than 20 if a tick takes longer."
    )

    def plan(self, settings: Settings) -> Iterator[Play]:
        """Play each way."""
        clients = settings.clients()
        topics, seconds = settings.number(self.topics), settings.number(self.seconds)
        for way in WAYS:
            yield Play(
                f"{topics} topics, {clients} clients in {min(FOLLOWED, topics)} each, {RATE} ticks/s for {seconds} s, "
                f"64 B: {way}",
                {
                    "case": settings.case(clients, 64, "text"),
                    "way": way,
                    "topics": topics,
                    "seconds": seconds,
                    "processors": settings.processors,
                },
            )

    async def run(self, case: Case, task: dict[str, Any]) -> Row:
        """Publish by one way."""
        return await publish_topics(case, task["way"], task["topics"], task["seconds"], task["processors"])

    def tabulate(self, rows: Sequence[Row]) -> list[list[str]]:
        """Return a row for each way."""
        reference = next((row["cpu"] for row in rows if row["way"] == "websockets"), None)
        table = [["method", "ticks/s", "messages", "CPU us/message", "CPU ms/tick", "x websockets"]]
        table += [
            [
                row["way"],
                f"{row['rate']:.1f}",
                str(row["deliveries"]),
                f"{row['cpu']:.3f}",
                f"{row['busy']:.1f}",
                "-" if reference is None else f"{reference / row['cpu']:.2f}",
            ]
            for row in rows
        ]
        return table


SCENARIO = Topics()
