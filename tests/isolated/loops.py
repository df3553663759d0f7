"""Event loops in several threads at once, each with its own connections: every message in its place, whoever disturbs.

    python loops.py [--loops 4] [--clients 8] [--rounds 200]

Each loop serves clients by wsfast.serve() and by websockets, with permessage-deflate and without, and sends to them in
every way: broadcasts to a list, and to a set that another thread changes; a channel; a hub; connections send for
themselves. All loops send some messages that were prepared once. Connections are closed, and others take their places.
Another thread looks at the connections, which invalidates their peers, tries to send to them, and collects garbage.
Each client must have got exactly what it was sent, in that order.

It needs websockets alone, so it runs where the suite does not: `scripts/newer-python 3.13t` runs it without a GIL. The
suite runs it with small numbers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import gc
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

import wsfast
from wsfast._core import core

SHARED = [wsfast.PreparedMessage(f"to all {number} " + "x" * size) for number, size in enumerate((3, 300, 30_000))]


class Client:
    """A connection, seen from both ends: what it was sent, and what it has got."""

    def __init__(self, connection: Any, client: Any) -> None:
        self.connection = connection
        self.client = client
        self.sent: list[str] = []
        self.got: list[str] = []
        self.reader: asyncio.Task[None] = asyncio.create_task(self.read())

    async def read(self) -> None:
        """Note what comes, up to the end of the connection."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                self.got.append(await self.client.recv())


class World:
    """What one event loop has: its connections, a channel and a hub."""

    def __init__(self, name: str, rounds: int) -> None:
        self.name = name
        self.rounds = rounds
        self.random = random.Random(name)
        self.clients: list[Client] = []
        self.connections: set[Any] = set()  # all of them, and some of the past that another thread puts there
        self.past: list[Any] = []  # connections that are closed
        self.count = 0
        self.checked = 0

    def message(self, kind: str) -> str:
        """Return a message that was not sent before."""
        self.count += 1
        size = self.random.choice((0, 10, 100, 1000, 20_000))
        return f"{self.name} {self.count} {kind} " + "".join(self.random.choices("abcdef", k=10)) * (size // 10)

    def note(self, message: str, clients: list[Client]) -> None:
        """Note that clients are sent a message."""
        for one in clients:
            one.sent.append(message)

    async def open(self, number: int) -> Client:
        """Open a connection: to one of the four servers."""
        accepted: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.accept = accepted.set_result
        client = await connect(f"ws://127.0.0.1:{self.ports[number % len(self.ports)]}", max_queue=None)
        connection = await accepted
        one = Client(connection, client)
        self.clients.append(one)
        self.connections.add(connection)
        self.channel.subscribe(connection)
        self.hub.subscribe(connection, "news")
        return one

    async def close(self, one: Client) -> None:
        """Close a connection; it must have got all."""
        self.clients.remove(one)
        self.connections.discard(one.connection)
        await (one.connection if self.random.random() < 0.5 else one.client).close()
        await one.reader
        self.check(one)
        self.checked += len(one.got)
        self.past = [*self.past[-50:], one.connection]

    def check(self, one: Client) -> None:
        """Check that a client has got what it was sent, and nothing else."""
        for place, (got, sent) in enumerate(zip(one.got, one.sent, strict=False)):
            assert got == sent, f"{self.name}: message {place} is {got[:60]!r}, not {sent[:60]!r}"
        assert len(one.got) == len(one.sent), f"{self.name}: {len(one.got)} messages of {len(one.sent)}"

    async def all_got_all(self) -> None:
        """Wait until all clients have got what they were sent."""
        while any(len(one.got) < len(one.sent) for one in self.clients):
            assert not any(one.reader.done() for one in self.clients), f"{self.name}: a connection was lost"
            await asyncio.sleep(0.001)
        for one in self.clients:
            self.check(one)

    async def play_round(self, number: int) -> None:
        """Send by all ways, in an order by chance, and change who is there."""
        ways = [self.to_list, self.to_set, self.to_channel, self.to_hub, self.by_itself]
        self.random.shuffle(ways)
        for way in ways:
            await way()
            if self.random.random() < 0.3:
                await asyncio.sleep(0)
        if number % 4 == 0:
            await self.all_got_all()
            await self.close(self.random.choice(self.clients))
            await self.open(number // 4)

    async def to_list(self) -> None:
        several: list[str | wsfast.PreparedMessage] = [self.message("list"), *SHARED]
        message = self.random.choice(several)
        await self.flush()
        self.note(message if isinstance(message, str) else message.data.decode(), self.clients)
        wsfast.broadcast([one.connection for one in self.clients], message)

    async def to_set(self) -> None:
        message = self.message("set")
        await self.flush()
        self.note(message, self.clients)
        wsfast.broadcast(self.connections, message)

    async def to_channel(self) -> None:
        message = self.message("channel")
        self.note(message, self.clients)
        self.channel.publish(message)

    async def to_hub(self) -> None:
        message = self.random.choice(SHARED)
        self.note(message.data.decode(), self.clients)
        self.hub.publish("news", message)

    async def by_itself(self) -> None:
        await self.flush()
        for one in self.random.sample(self.clients, 2):
            message = self.message("own")
            self.note(message, [one])
            await one.connection.send(message)

    async def flush(self) -> None:
        """Have leave what was published: what follows would overtake it otherwise, and what waits for room."""
        self.channel.flush()
        self.hub.flush()
        while self.channel.stats().queued or self.hub.stats().queued:
            await asyncio.sleep(0.001)

    async def handle(self, connection: Any) -> None:
        self.accept(connection)
        await connection.wait_closed()

    async def play(self, clients: int) -> None:
        """Play all rounds."""
        slow = wsfast.DropOldest(max_messages=100_000, max_bytes=None, max_age=None)
        self.channel = wsfast.Channel(slow=slow)
        self.hub = wsfast.Hub(slow=slow)
        async with contextlib.AsyncExitStack() as stack:
            self.ports = []
            for kind in (wsfast.serve, serve):
                for compression in ("deflate", None):
                    server = await stack.enter_async_context(kind(self.handle, "127.0.0.1", 0, compression=compression))
                    self.ports.append(server.sockets[0].getsockname()[1])
            for number in range(clients):
                await self.open(number)
            for number in range(self.rounds):
                await self.play_round(number)
            await self.all_got_all()
            while self.clients:
                await self.close(self.clients[0])

    # ---- What another thread does meanwhile

    def look(self) -> None:
        """Look at connections, which invalidates their peers, and try to send to them, which only their thread may."""
        connections = list(self.connections)
        for connection in connections:
            assert connection.transport is not None
            assert connection.protocol.state is not None
        with contextlib.suppress(RuntimeError):
            wsfast.broadcast(connections, "from elsewhere")

    def change(self) -> None:
        """Have the set grow and shrink, by connections that are closed."""
        past = self.past
        self.connections.update(past)
        self.connections.difference_update(past)


def disturb(worlds: list[World], ended: threading.Event) -> None:
    """Look at the connections of all event loops, change the sets that they send to, and collect garbage."""
    number = 0
    while not ended.wait(0.0005):
        world = worlds[number % len(worlds)]
        number += 1
        world.look()
        world.change()
        if number % 50 == 0:
            gc.collect()


def main() -> None:
    """Have all event loops play, and tell what was seen."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--loops", type=int, default=4)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--timeout", type=float, default=300.0)
    options = parser.parse_args()
    faulthandler.dump_traceback_later(options.timeout, exit=True)
    worlds = [World(f"loop-{number}", options.rounds) for number in range(options.loops)]
    ended = threading.Event()
    with ThreadPoolExecutor(options.loops + 1) as pool:
        disturbance = pool.submit(disturb, worlds, ended)
        try:
            # Whoever has failed is told of at the end: the others go on meanwhile.
            plays = [pool.submit(asyncio.run, world.play(options.clients)) for world in worlds]
            for play in plays:
                play.result()
        finally:
            ended.set()
        disturbance.result()
    gil = "on" if getattr(sys, "_is_gil_enabled", lambda: True)() else "off"
    messages = sum(world.checked for world in worlds)
    print(f"GIL {gil}, {core.__name__}: {options.loops} loops, {messages} messages, each in its place")


if __name__ == "__main__":
    main()
