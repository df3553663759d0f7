"""What stands in examples/ runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from peers import TIMEOUT
from wsfast.cli.bench.brokers import BROKERS, broker
from wsfast.cli.machine import UnfitError

EXAMPLES = Path(__file__).parent.parent / "examples"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def running(name: str, *arguments: str, ready: str, times: int = 1) -> AsyncIterator[Any]:
    """Run an example until it has said so many times that it is ready; end it by a signal, which it must obey."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / name),
        *arguments,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(TIMEOUT):
            for _ in range(times):
                while ready not in (line := (await process.stdout.readline()).decode()):
                    assert line, "it has ended"
        yield process
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(TIMEOUT):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("kind", BROKERS)
def test_workers(kind: str) -> None:
    """Everybody in a room gets what is said there, and one user what is for that one, whatever worker they are with."""

    async def main(url: str) -> None:
        port = free_port()
        async with (
            running("workers.py", url, "2", str(port), ready="is ready", times=2),
            contextlib.AsyncExitStack() as stack,
        ):
            clients = [
                await stack.enter_async_context(
                    connect(f"ws://127.0.0.1:{port}/rooms/lobby?user=user{number}", ping_interval=None)
                )
                for number in range(12)
            ]
            # A worker subscribes at the broker when the first client has come. Until all hear each other:
            heard: set[int] = set()
            async with asyncio.timeout(TIMEOUT):
                while len(heard) < 12 * 11:
                    for number, client in enumerate(clients):
                        await client.send(f"hello from {number}")
                    await asyncio.sleep(0.05)
                    for number, client in enumerate(clients):
                        with contextlib.suppress(TimeoutError):
                            while True:
                                async with asyncio.timeout(0.01):
                                    text = await client.recv()
                                heard.add(number * 12 + int(str(text).rpartition(" ")[2]))
                for number, client in enumerate(clients):
                    await client.send(f"@user{(number + 5) % 12}: only you")
                for number, client in enumerate(clients):
                    while "to you alone" not in (text := await client.recv()):
                        pass
                    assert text == f"user{(number - 5) % 12}, to you alone: only you"

    try:
        with broker(kind) as url:
            asyncio.run(main(url))
    except UnfitError as exc:
        pytest.skip(str(exc))
