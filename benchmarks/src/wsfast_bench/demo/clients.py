"""The process in which the clients of the demonstration are: stock clients of websockets that decode every tick.

It is told what to do by lines of JSON on standard input, each an object with `do`: `connect`, `expect`, `stall`,
`wake`, `remove`, `report`. By lines on standard output it tells: `ack`, the number of what it has done; `everywhere`,
the last tick that all clients that must miss nothing have got; `received`, how many ticks all clients have got, with
`time` and the `oldest` tick that one of the others has come to; `lost`, the number of a client whose connection has
ended though nobody asked for it; `failed`, why one could not connect; and `report`, what all have seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections import Counter
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from .ticks import Follower

__all__ = ["PATH", "main"]

PATH = "/ticks/"
"""Where a client connects to, with its number."""

AT_ONCE = 50
"""Opening handshakes under way; less than the backlog of a server of asyncio, 100."""

BUFFER = 16384
"""SO_RCVBUF: what the kernel takes for a client that reads nothing. So little that nobody has to wait for a lag."""

PAUSE = 0.1
"""Seconds between two messages about how much was received."""


class Client:
    """One client."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.follower = Follower()
        self.connection: ClientConnection | None = None
        self.awake = asyncio.Event()
        self.awake.set()
        self.leaving = False

    def stall(self) -> None:
        """Stop reading."""
        self.awake.clear()
        self.follower.excuse()
        if self.connection is not None:
            with contextlib.suppress(RuntimeError):  # of uvloop, if it is closed
                self.connection.transport.pause_reading()

    def wake(self) -> None:
        """Go on reading."""
        if self.connection is not None:
            with contextlib.suppress(RuntimeError):
                self.connection.transport.resume_reading()
        self.awake.set()


class Clients:
    """All clients."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.clients: dict[int, Client] = {}
        self.received = 0
        self.faults = 0
        """Of those that have left."""
        self.everywhere = 0
        self._at: Counter[int] = Counter()
        """How many clients that must miss nothing have come to each tick."""
        self._doors = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- What the server asks for

    def do(self, command: dict[str, Any]) -> None:
        """Do it, and tell when it is done."""
        what, numbers = command["do"], command.get("clients", ())
        if what == "connect":
            for number in numbers:
                self.clients[number] = client = Client(number)
                task = asyncio.create_task(self.run(client))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        elif what == "report":
            tell({"report": self.report(command["seq"])})
        else:
            for client in [self.clients[number] for number in numbers if number in self.clients]:
                getattr(self, what)(client, command)
            self._advance()
        tell({"ack": command["ack"]})

    def expect(self, client: Client, command: dict[str, Any]) -> None:
        """Have a client miss nothing from a tick on; nothing older than the one before can be on its way to it."""
        since = command["since"]
        self._forget(client)
        client.follower.expect(since)
        if not self._at:
            self.everywhere = since - 1
            tell({"everywhere": self.everywhere})
        self._at[since - 1] += 1

    def stall(self, client: Client, _: dict[str, Any]) -> None:
        """Have a client stop reading."""
        self._forget(client)
        client.stall()

    def wake(self, client: Client, _: dict[str, Any]) -> None:
        """Have a client go on reading."""
        client.wake()

    def remove(self, client: Client, _: dict[str, Any]) -> None:
        """Have a client leave."""
        self._forget(client)
        client.leaving = True
        if client.connection is not None:
            client.connection.transport.abort()
        client.awake.set()

    def report(self, seq: int) -> dict[str, int]:
        """Return how many must have got all ticks, how many have not come to the last, and how often one was wrong."""
        exact = [client.follower for client in self.clients.values() if client.follower.since is not None]
        return {
            "exact": len(exact),
            "behind": sum(follower.last < seq for follower in exact),
            "faults": self.faults + sum(client.follower.faults for client in self.clients.values()),
            "received": self.received,
        }

    # ---- What a client does

    async def run(self, client: Client) -> None:
        """Connect, and follow the ticks until the connection ends."""
        try:
            async with self._doors:
                connection = await self.connect(client)
            client.connection = connection
            if client.leaving:
                connection.transport.abort()
            if not client.awake.is_set():
                client.stall()
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await client.awake.wait()
                    message = await connection.recv()
                    self._follow(client, message)
            if not client.leaving and client.follower.since is not None:
                tell({"lost": client.number})
        except (OSError, InvalidHandshake, TimeoutError) as exc:
            tell({"failed": f"{type(exc).__name__}: {exc}", "client": client.number})
        finally:
            self._forget(client)
            self._advance()
            self.faults += client.follower.faults
            self.clients.pop(client.number, None)

    async def connect(self, client: Client) -> ClientConnection:
        """Connect a client."""
        sock = socket.socket()
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
            return await connect(
                f"ws://127.0.0.1:{self.port}{PATH}{client.number}",
                sock=sock,
                compression=None,
                ping_interval=None,
                open_timeout=None,
            )
        except BaseException:
            sock.close()
            raise

    def _follow(self, client: Client, message: str | bytes) -> None:
        before = client.follower.last
        client.follower.follow(message)
        self.received += 1
        if client.follower.since is not None:
            self._leave(before)
            self._at[client.follower.last] += 1
            self._advance()

    # ---- Where they are

    def _forget(self, client: Client) -> None:
        """Do not wait for a client any more."""
        if client.follower.since is not None:
            self._leave(client.follower.last)
            client.follower.excuse()

    def _leave(self, seq: int) -> None:
        self._at[seq] -= 1
        if not self._at[seq]:
            del self._at[seq]

    def _advance(self) -> None:
        """Tell to which tick all have come, if that has changed."""
        if self._at and self.everywhere not in self._at:
            self.everywhere = min(self._at)
            tell({"everywhere": self.everywhere})

    async def tell_received(self) -> None:
        """Tell how much was received, again and again."""
        while True:
            others = [client.follower.last for client in self.clients.values() if client.follower.since is None]
            oldest = min(others, default=None)
            tell({"received": self.received, "time": time.perf_counter(), "oldest": oldest})
            await asyncio.sleep(PAUSE)


def tell(what: dict[str, Any]) -> None:
    """Tell the server."""
    print(json.dumps(what), flush=True)


async def run(port: int) -> None:
    """Do what the server asks for until it ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    clients = Clients(port)
    telling = asyncio.create_task(clients.tell_received())
    with contextlib.suppress(BrokenPipeError):
        while line := await reader.readline():
            clients.do(json.loads(line))
    telling.cancel()
    os._exit(0)  # nobody is there any more to whom closing a thousand connections in order would mean anything


def main() -> None:
    """Take port, loop and processor from the arguments."""
    os.environ["no_proxy"] = "127.0.0.1"  # websockets 14 knows no proxies, nor that it could be told to take none
    port, loop, processor = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    if processor:
        os.sched_setaffinity(0, {int(processor)})
    loop_factory = None
    if loop == "uvloop":
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run(port))


if __name__ == "__main__":
    main()
