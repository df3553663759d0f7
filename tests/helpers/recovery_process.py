"""Processes of their own with a relay that recovers: a server to which clients come back, and one that publishes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from websockets.asyncio.server import ServerConnection

import wsfast
from helpers.processes import running, write_line

__all__ = ["TOPICS", "process"]

TOPICS = ["a", "b", "c", "d", "e"]


async def handle(hub: wsfast.Hub, connection: ServerConnection) -> None:
    since = {topic: wsfast.Position(*position) for topic, position in json.loads(await connection.recv()).items()}
    subscription = await hub.recover(connection, *TOPICS, since=since or None)
    positions = {"recovered": subscription.recovered, "positions": subscription.positions}
    subscription.send(json.dumps(positions))
    await connection.wait_closed()


async def serve(hub: wsfast.Hub, port: int) -> None:
    async with wsfast.serve(lambda connection: handle(hub, connection), "127.0.0.1", port, compression=None):
        write_line("ready")
        await asyncio.Event().wait()


async def publish(hub: wsfast.Hub) -> None:
    """Publish 200 messages per second until the standard input ends, and write how many to each topic."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    write_line("ready")
    number = 0
    while not lines.at_eof():
        for topic in TOPICS:
            hub.publish(topic, str(number))
            await asyncio.sleep(0.005)
        number += 1
    write_line(str(number))


async def main(url: str, prefix: str, port: int) -> None:
    hub = wsfast.Hub(history=2000, envelope=True)
    relay = wsfast.relay.nats if url.startswith("nats:") else wsfast.relay.redis
    async with relay(hub, url, prefix=prefix, recover=True):
        await (serve(hub, port) if port else publish(hub))


@contextlib.asynccontextmanager
async def process(url: str, prefix: str, port: int = 0) -> AsyncIterator[Any]:
    """Run a server at a port, or what publishes, until it is ready; it is killed at the end if it runs."""
    async with running(
        sys.executable,
        "-m",
        "helpers.recovery_process",
        *(url, prefix, str(port)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    ) as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        yield process


if __name__ == "__main__":
    url, prefix, port = sys.argv[1:]
    asyncio.run(main(url, prefix, int(port)))
