"""Two processes and a broker: how many messages in a second go from one hub to the other, and how long one takes.

Compared is the recipe that the documentation of websockets gives, in each library's own way: to await each publish, and
to iterate over what is received. This module is the publishing process; it starts itself as the other one.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import wsfast
from wsfast.cli.machine import UnfitError

from .brokers import broker
from .cases import Case
from .measure import tell

__all__ = ["WAYS", "compare", "main"]

WAYS = {"redis": ("relay", "recipe"), "nats": ("relay", "recipe")}
"""Brokers, and what is compared for each."""

TOPICS = 100

WAITING = 5000
"""Messages that wait for the broker before the publisher waits for it."""

PACED = 500
"""Messages, and messages in a second, of which it is measured how long they take."""

PATIENCE = 30.0
"""Seconds within which the other process must have got everything."""

Publish = Callable[[str, str], Coroutine[Any, Any, None]]


def _topic(number: int) -> str:
    return f"bench.{number % TOPICS}"


# ---- To publish


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


# ---- To receive


async def _receive(kind: str, way: str, url: str, got: Callable[[Any], None], ready: Callable[[], None]) -> None:
    """Receive messages for ever; call `got` with each."""
    topics = [_topic(number) for number in range(TOPICS)]
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


async def _be_the_other(kind: str, way: str, url: str) -> None:
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
        command = [sys.executable, "-m", "wsfast.cli.bench.relays", "receive", kind, way, url, case.loop]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdin is not None
            assert other.stdout is not None
            try:
                if processors is not None:
                    os.sched_setaffinity(other.pid, {processors[1]})
                if await asyncio.to_thread(other.stdout.readline) != "ready\n":
                    raise UnfitError("the other process does not begin")

                async def ask(expected: int) -> dict[str, Any]:
                    assert other.stdin is not None
                    assert other.stdout is not None
                    print(expected, file=other.stdin, flush=True)
                    answer: dict[str, Any] = json.loads(await asyncio.to_thread(other.stdout.readline) or "{}")
                    if answer.get("got") != expected:
                        raise UnfitError(f"of {expected} messages, {answer.get('got')} have arrived")
                    return answer

                async with _publisher(kind, way, url) as publish:
                    padding = " ".ljust(case.size - 20, "x")
                    start, cpu, count = time.monotonic(), time.process_time(), 0
                    while time.monotonic() < start + seconds:
                        await publish(_topic(count), f"{time.monotonic():.9f}{padding}")
                        count += 1
                    fast = await ask(count)
                    cpu = time.process_time() - cpu
                    begin = time.monotonic()
                    for number in range(PACED):
                        await asyncio.sleep(begin + number / PACED - time.monotonic())
                        await publish(_topic(number), f"{time.monotonic():.9f}{padding}")
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


def main() -> None:
    """Be one of the two processes."""
    if sys.argv[1] == "receive":
        kind, way, url, loop = sys.argv[2:]
        factory: Callable[[], asyncio.AbstractEventLoop] | None = None
        if loop == "uvloop":
            import uvloop

            factory = uvloop.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_be_the_other(kind, way, url))
        return
    task = json.loads(sys.argv[1])
    case = Case.from_json(task["case"])
    tell(case, lambda: compare(case, task["broker"], task["way"], task["seconds"], task["processors"]))


if __name__ == "__main__":
    main()
