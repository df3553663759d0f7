"""Chat rooms in several processes: workers that share a port, connected by Redis or NATS.

Install it with `pip install "wsfast[redis]"`, start a Redis server, and run
`python examples/workers.py redis://localhost 4`. Then connect WebSocket clients to
ws://127.0.0.1:8765/rooms/lobby?user=ann. The kernel distributes them among the workers.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

import wsfast

ADDRESS = "127.0.0.1", 8765


def relay_of(hub: wsfast.Hub, url: str) -> wsfast.relay.Relay:
    """Return the relay of one worker. It prints a line if messages were lost."""
    make = wsfast.relay.nats if url.startswith("nats") else wsfast.relay.redis
    return make(hub, url, on_gap=lambda gap: print(f"worker {os.getpid()}: {gap}", flush=True))


async def work(url: str, address: tuple[str, int]) -> None:
    """Run one worker until a signal ends it."""
    hub = wsfast.Hub(slow=wsfast.DropOldest(max_messages=1000))

    async def handler(connection: Any) -> None:
        target = urlsplit(connection.request.path)
        user = parse_qs(target.query).get("user", ["somebody"])[0]
        room = target.path.strip("/").replace("/", ".")
        with hub.register(connection, user), hub.subscribe(connection, room):
            async for text in connection:
                to, colon, rest = text.partition(": ")
                if to.startswith("@") and colon:
                    hub.send(to[1:], f"{user}, to you alone: {rest}")  # in any process
                else:
                    hub.publish(room, f"{user}: {text}", exclude=[connection])

    def check(connection: Any, request: Any) -> Any:
        if not request.path.startswith("/rooms/"):
            return connection.respond(HTTPStatus.NOT_FOUND, "there are only rooms here\n")
        return None

    ended = asyncio.Event()
    for number in signal.SIGINT, signal.SIGTERM:
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with relay_of(hub, url), wsfast.serve(handler, *address, reuse_port=True, process_request=check):
        print(f"worker {os.getpid()} is ready", flush=True)
        await ended.wait()


def run_worker(url: str, address: tuple[str, int]) -> None:
    """Run one worker in this process."""
    asyncio.run(work(url, address))


def main() -> None:
    """Run all workers until a signal ends them."""
    url = sys.argv[1] if len(sys.argv) > 1 else "redis://localhost"
    count = int(sys.argv[2]) if len(sys.argv) > 2 else os.cpu_count() or 1
    address = (ADDRESS[0], int(sys.argv[3])) if len(sys.argv) > 3 else ADDRESS
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=run_worker, args=(url, address)) for _ in range(count)]
    for worker in workers:
        worker.start()
    signal.signal(signal.SIGTERM, lambda *_: [worker.terminate() for worker in workers])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the workers get it too
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
