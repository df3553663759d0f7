"""Whether an installed wsfast works at all: a server, clients with and without compression, every step of the API.

For wheels, on every platform: it needs nothing but what wsfast itself needs. Its argument is the module that must be
the core, `wsfast._core` or `wsfast._core._pure`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect

import wsfast
from wsfast._core import core

LONG = "price " * 1000


async def main() -> None:
    connections: list[Any] = []

    async def keep(connection: Any) -> None:
        connections.append(connection)
        await connection.wait_closed()

    async with wsfast.serve(keep, "127.0.0.1", 0, ping_interval=None) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with (
            connect(url, ping_interval=None) as deflating,
            connect(url, ping_interval=None, compression=None) as plain,
        ):
            while len(connections) < 2:
                await asyncio.sleep(0)
            delivery = wsfast.broadcast(connections, "hello")
            assert delivery.sent + delivery.buffered == 2, delivery
            wsfast.broadcast(connections, b"\x00\x01")
            wsfast.broadcast(connections, wsfast.PreparedMessage(LONG))
            wsfast.broadcast([deflating, plain], "from a client")
            channel = wsfast.Channel("prices", slow=wsfast.Conflate(), history=2)
            for connection in connections:
                channel.subscribe(connection)
            channel.publish("of a channel", key="x")
            hub = wsfast.Hub()
            for connection in connections:
                hub.subscribe(connection, "topic")
            await asyncio.sleep(0)
            hub.publish("topic", "of a hub")
            for client in (deflating, plain):
                received = [await client.recv() for _ in range(5)]
                assert received == ["hello", b"\x00\x01", LONG, "of a channel", "of a hub"], received
            for connection in connections:
                assert await connection.recv() == "from a client"


if __name__ == "__main__":
    assert core.__name__ == sys.argv[1], core
    assert (Path(wsfast.__file__).parent / "py.typed").is_file()
    asyncio.run(asyncio.wait_for(main(), 60))
    print(f"{core.__name__} works: Python {sys.version.split()[0]}, {sys.platform}, {wsfast.__file__}")
