"""A worker of scenario `rolling`: `python -m wsfast_bench.worker URL DESCRIPTOR SECONDS LOOP HISTORY`.

It accepts clients at a listening socket that all workers share, prints "ready", and drains after SIGTERM.
"""

from __future__ import annotations

import asyncio
import importlib
import signal
import socket
import sys
from typing import Any

import wsfast
import wsfast.session

__all__ = ["main"]


async def work(url: str, descriptor: int, seconds: float, history: int) -> None:
    """Serve until SIGTERM; then accept nobody, and close all connections within some seconds."""
    hub = wsfast.Hub(history=history, envelope=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)

    async def handler(connection: Any) -> None:
        await wsfast.session.Session(hub, connection).run()

    sock = socket.socket(fileno=descriptor)
    async with (
        wsfast.relay.redis(hub, url, recover=True),
        wsfast.serve(handler, sock=sock, compression=None) as server,
    ):
        print("ready", flush=True)
        await ended.wait()
        server.close(close_connections=False)  # the others go on accepting
        closed, aborted = await server.drain(seconds)
        print(f"{closed} {aborted}", flush=True)


def main() -> None:
    """Run the worker."""
    url, descriptor, seconds, loop, history = sys.argv[1:]
    with asyncio.Runner(loop_factory=importlib.import_module(loop).new_event_loop) as runner:
        runner.run(work(url, int(descriptor), float(seconds), int(history)))


if __name__ == "__main__":
    main()
