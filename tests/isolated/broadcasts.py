"""Broadcast N times to a few connections of every kind, in one process; for valgrind and for counting objects.

Not a test by itself: `leaks.sh` runs it twice, and what valgrind calls lost must not grow with N.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from typing import Any

from websockets.asyncio.client import connect, unix_connect
from websockets.asyncio.server import ServerConnection, serve, unix_serve

import wsfast


async def main(broadcasts: int, path: str) -> None:
    connections: list[Any] = []

    async def keep(connection: ServerConnection) -> None:
        connections.append(connection)
        async for _ in connection:
            pass

    async def read(connection: Any, messages: int) -> None:
        for _ in range(messages):
            await connection.recv()

    async with (
        serve(keep, "127.0.0.1", 0, compression=None, ping_interval=None) as server,
        serve(keep, "127.0.0.1", 0, ping_interval=None) as deflating,
        unix_serve(keep, path, compression=None, ping_interval=None),
    ):
        port, deflating_port = (s.sockets[0].getsockname()[1] for s in (server, deflating))
        async with (
            connect(f"ws://127.0.0.1:{port}", ping_interval=None) as plain,
            connect(f"ws://127.0.0.1:{deflating_port}", ping_interval=None) as deflated,
            unix_connect(path, ping_interval=None) as local,
        ):
            while len(connections) < 3:
                await asyncio.sleep(0)
            # A client that reads late makes partial writes.
            sock: socket.socket = connections[0].transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            times = {plain: 2, deflated: 1, local: 1}
            readers = [asyncio.create_task(read(client, n * broadcasts)) for client, n in times.items()]
            mixed = [*connections, plain, connections[0]]
            counts: list[int] = []
            for number in range(broadcasts):
                wsfast.broadcast(mixed, "x" * (number % 3000))
                if number % 50 == 49:
                    await asyncio.sleep(0.001)
                if number in (broadcasts // 2, broadcasts - 1):
                    gc.collect()
                    counts.append(sum(sys.getrefcount(c) for c in mixed))
            # A reference that a broadcast forgot to give back would show thousands of times. (The event loop's own
            # come and go.)
            assert counts[-1] - counts[0] < 20, counts
            await asyncio.gather(*readers)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
