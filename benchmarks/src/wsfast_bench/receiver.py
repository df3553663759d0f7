"""The receiving process of scenario `relay`: `python -m wsfast_bench.receiver BROKER WAY URL LOOP`."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import wsfast

__all__ = ["TOPICS", "main", "topic_of"]

TOPICS = 100

PATIENCE = 30.0
"""Seconds within which everything must have come."""


def topic_of(number: int) -> str:
    """Return the topic of a message."""
    return f"bench.{number % TOPICS}"


async def _receive(kind: str, way: str, url: str, got: Callable[[Any], None], ready: Callable[[], None]) -> None:
    """Receive messages without end; call `got` with each."""
    topics = [topic_of(number) for number in range(TOPICS)]
    if way == "relay":
        hub = wsfast.Hub()

        async def iterate(topic: str) -> None:
            async for message in hub.stream(topic, max_messages=1 << 20):
                got(message)

        async with asyncio.TaskGroup() as group:
            for topic in topics:
                group.create_task(iterate(topic))
            await asyncio.sleep(0)
            async with getattr(wsfast.relay, kind)(hub, url) as relay:
                await relay.subscribed(PATIENCE)
                ready()
                await asyncio.Event().wait()
    elif kind == "redis":
        import redis.asyncio

        async with redis.asyncio.Redis.from_url(url) as client, client.pubsub() as pubsub:
            await pubsub.subscribe(*topics)
            for _ in topics:
                await pubsub.get_message(timeout=PATIENCE)
            ready()
            async for message in pubsub.listen():
                got(message["data"].decode())
    else:
        import nats

        async def on_message(message: Any) -> None:
            got(message.data.decode())

        nats_client = await nats.connect(url)
        for topic in topics:
            await nats_client.subscribe(topic, cb=on_message)
        await nats_client.flush()
        ready()
        await asyncio.Event().wait()


async def _answer(kind: str, way: str, url: str) -> None:
    """Receive; answer each line of input, which is a number of messages, when so many have come."""
    delays: list[float] = []
    changed = asyncio.Event()

    def got(message: Any) -> None:
        delays.append(time.monotonic() - float(message.partition(" ")[0]))
        changed.set()

    def ready() -> None:
        print("ready", flush=True)

    receiving = asyncio.create_task(_receive(kind, way, url, got, ready))
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    cpu = time.process_time()
    while line := await reader.readline():
        expected = int(line)
        before = None
        while len(delays) < expected and len(delays) != before:
            before = len(delays)
            try:
                async with asyncio.timeout(PATIENCE):
                    while len(delays) < expected:
                        changed.clear()
                        await changed.wait()
            except TimeoutError:
                pass
        answer = {"got": len(delays), "at": time.monotonic(), "cpu": time.process_time() - cpu}
        if delays:
            delays.sort()
            answer |= {"p50": statistics.median(delays), "p99": delays[len(delays) * 99 // 100]}
        print(json.dumps(answer), flush=True)
        delays.clear()
        cpu = time.process_time()
    receiving.cancel()
    await asyncio.gather(receiving, return_exceptions=True)


def main() -> None:
    """Receive, and tell by lines of JSON."""
    kind, way, url, loop = sys.argv[1:]
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_answer(kind, way, url))


if __name__ == "__main__":
    main()
