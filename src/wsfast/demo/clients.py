"""The process in which the clients of the demonstration are: stock clients of websockets that decode every tick.

It tells the server, by lines of JSON on standard output: `connected`, how many clients are; `everywhere`, the number of
a tick that all clients have got; at the end `seen`, for each number of ticks how many clients got so many of them, and
`disordered`, how many clients got a tick twice, or not in its turn.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError

from .ticks import Follower

__all__ = ["main"]

AT_ONCE = 50
"""Opening handshakes under way; less than the backlog of a server of asyncio, 100."""


class Crowd:
    """All clients."""

    def __init__(self, port: int, size: int) -> None:
        self.uri = f"ws://127.0.0.1:{port}"
        self.size = size
        self.followers = [Follower() for _ in range(size)]
        self.connected = 0
        self.arrivals: Counter[int] = Counter()
        """Clients that have got a tick, by its number, until all have."""

    async def run(self) -> None:
        """Connect all clients, and follow the ticks until the server closes the connections."""
        doors = asyncio.Semaphore(AT_ONCE)
        connections = await asyncio.gather(*(self.connect(doors) for _ in range(self.size)))
        await asyncio.gather(*map(self.follow, connections, self.followers))
        seen = Counter(follower.seen for follower in self.followers)
        disordered = sum(not follower.in_order for follower in self.followers)
        tell({"seen": sorted(seen.items()), "disordered": disordered})

    async def connect(self, doors: asyncio.Semaphore) -> ClientConnection:
        """Connect one client."""
        async with doors:
            connection = await connect(self.uri, compression=None, ping_interval=None)
        self.connected += 1
        if self.connected % 50 == 0 or self.connected == self.size:
            tell({"connected": self.connected})
        return connection

    async def follow(self, connection: ClientConnection, follower: Follower) -> None:
        """Follow the ticks with one client."""
        try:
            async for message in connection:
                seq = follower.follow(message)
                self.arrivals[seq] += 1
                if self.arrivals[seq] == self.size:
                    del self.arrivals[seq]
                    tell({"everywhere": seq})
        except ConnectionClosedError:
            pass  # what this client has missed is told by its count


def tell(what: dict[str, Any]) -> None:
    """Tell the server."""
    print(json.dumps(what), flush=True)


async def until_end_of_input() -> None:
    """Return when standard input ends, as it does with the process of the server."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()


async def run(port: int, size: int) -> None:
    """Run the clients, but not longer than the server."""
    crowd = asyncio.create_task(Crowd(port, size).run())
    end = asyncio.create_task(until_end_of_input())
    await asyncio.wait((crowd, end), return_when=asyncio.FIRST_COMPLETED)
    if crowd.done():
        await crowd
    else:
        os._exit(1)  # nobody is there any more to whom closing a thousand connections in order would mean anything


def main() -> None:
    """Take port, number of clients, loop and processor from the arguments."""
    os.environ["no_proxy"] = "127.0.0.1"  # websockets 14 knows no proxies, nor that it could be told to take none
    port, size, loop, processor = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    if processor:
        os.sched_setaffinity(0, {int(processor)})
    loop_factory = None
    if loop == "uvloop":
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run(port, size))


if __name__ == "__main__":
    main()
