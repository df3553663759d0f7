"""A lane: a server that sends the same message to all of its clients at every tick, in one of three ways.

Reads commands and writes reports, both as lines of JSON, and ends with its standard input. Commands have `do`: `rate`
with ticks per second as `value` (none are sent before it), `policy` with a `name`. The first report has the `port`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

from websockets.asyncio.server import ServerConnection, broadcast
from websockets.asyncio.server import serve as websockets_serve
from websockets.exceptions import ConnectionClosed

import wsfast
from wsfast import Channel, Conflate, Disconnect, DropNewest, DropOldest, Subscription
from wsfast_bench._library import NOTSENT_LOWAT, Policy

from .message import make

__all__ = ["KEPT", "PHONE", "POLICIES", "main", "resident", "run", "tell"]

PHONE = "/phone"
"""Path of the client that may stop reading."""

KEPT = 16
"""Messages that the Channel keeps for a client that does not read: less than a second of the default rate."""

POLICIES: dict[str, Policy] = {
    "Disconnect": Disconnect(max_messages=KEPT),
    "DropOldest": DropOldest(max_messages=KEPT),
    "DropNewest": DropNewest(max_messages=KEPT),
    "Conflate": Conflate(max_messages=KEPT),
}

KEYS = 8
"""Conflation keys of the messages."""

INTERVAL = 0.25
"""Seconds between two reports."""


class SendLoop:
    """Sends by `await send()` in a loop, as people write it."""

    serve: ClassVar[Callable[..., Any]] = staticmethod(websockets_serve)

    def __init__(self) -> None:
        self.connections: set[ServerConnection] = set()
        self.phone: ServerConnection | None = None
        self.gone = ""
        """Why the phone was disconnected: `keepalive`, `policy`, or empty."""

    async def attend(self, connection: ServerConnection) -> None:
        """Keep a connection until it ends."""
        assert connection.request is not None
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            # As a Channel does: the kernel must not take 4 MB for a client that reads nothing in some lanes only.
            sock = connection.transport.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_LOWAT)
        self.add(connection)
        if connection.request.path == PHONE:
            self.phone, self.gone = connection, ""
        try:
            await connection.wait_closed()
        finally:
            self.connections.discard(connection)
            if connection is self.phone:
                self.phone = None
                sent = connection.protocol.close_sent
                if sent is not None and sent.code == 1011:
                    self.gone = "keepalive"

    def add(self, connection: ServerConnection) -> None:
        """Send to one more connection."""
        self.connections.add(connection)

    async def send(self, message: str, key: int) -> None:
        """Send a message to all connections."""
        for connection in list(self.connections):
            with contextlib.suppress(ConnectionClosed):
                await connection.send(message)

    def counts(self) -> dict[str, int]:
        """Return bytes `kept` for the phone, its messages `dropped` and `conflated`, and those `left_out` for all."""
        kept = 0 if self.phone is None else self.phone.transport.get_write_buffer_size()
        return {"kept": kept, "dropped": 0, "conflated": 0, "left_out": 0}


class Broadcast(SendLoop):
    """Sends by `websockets.broadcast()`."""

    async def send(self, message: str, key: int) -> None:
        """Send a message to all connections."""
        broadcast(self.connections, message)


class ByChannel(SendLoop):
    """Publishes to a `wsfast.Channel` of connections of `wsfast.serve()`."""

    serve: ClassVar[Callable[..., Any]] = staticmethod(wsfast.serve)

    def __init__(self, policy: str) -> None:
        super().__init__()
        self._left_out = 0  # by channels before this one
        self.choose(policy)

    def choose(self, policy: str) -> None:
        """Use another policy, with a new channel, whose counts start at zero."""
        if self.connections:
            for subscription in list(self.subscriptions.values()):
                subscription.unsubscribe()
            self._left_out = self._all_left_out()
        self.channel = Channel("prices", slow=POLICIES[policy], on_disconnect=self.on_disconnect)
        self.subscriptions: dict[ServerConnection, Subscription] = {}
        for connection in self.connections:
            self.add(connection)

    def add(self, connection: ServerConnection) -> None:
        """Send to one more connection."""
        super().add(connection)
        with contextlib.suppress(RuntimeError):  # it is being closed
            self.subscriptions[connection] = self.channel.subscribe(connection)

    async def attend(self, connection: ServerConnection) -> None:
        """Keep a connection until it ends."""
        await super().attend(connection)
        self.subscriptions.pop(connection, None)

    def on_disconnect(self, subscription: Subscription) -> None:
        """Note that the policy has closed a connection."""
        if self.phone is not None and self.subscriptions.get(self.phone) is subscription:
            self.gone = "policy"

    async def send(self, message: str, key: int) -> None:
        """Send a message to all connections."""
        self.channel.publish(message, key=key)

    def counts(self) -> dict[str, int]:
        """Return bytes `kept` for the phone, its messages `dropped` and `conflated`, and those `left_out` for all."""
        counts = super().counts() | {"left_out": self._all_left_out()}
        subscription = None if self.phone is None else self.subscriptions.get(self.phone)
        if subscription is not None:
            counts["kept"] += subscription.bytes
            counts |= {"dropped": subscription.dropped, "conflated": subscription.conflated}
        return counts

    def _all_left_out(self) -> int:
        stats = self.channel.stats()
        return self._left_out + stats.dropped + stats.conflated


class Lane:
    """Sends ticks and reports.

    Args:
        sender: Sends a message to all clients.
        size: Bytes of a message.
        phase: Offset of its ticks, as a part of the time between two. Lanes that send at the same time would compete.
    """

    def __init__(self, sender: SendLoop, size: int, phase: float) -> None:
        self.sender = sender
        self.size = size
        self.phase = phase
        self.number = 0
        self.rate = 0.0
        self._tick = 0
        self._rated = asyncio.Event()

    def do(self, command: dict[str, Any]) -> None:
        """Obey a command."""
        if command["do"] == "rate":
            self.rate, self._tick = command["value"], 0
            self._rated.set()
        elif isinstance(self.sender, ByChannel):
            self.sender.choose(command["name"])

    async def send_ticks(self) -> None:
        """Send a message at each tick, and none for ticks that pass while the one before is being sent."""
        await self._rated.wait()
        while True:
            now = time.monotonic()
            self._tick = max(self._tick, math.floor(now * self.rate - self.phase)) + 1
            due = (self._tick + self.phase) / self.rate
            await asyncio.sleep(due - now)
            self.number += 1
            message = make(self.number, time.monotonic(), self.size)  # timers of event loops are late by up to 1 ms
            await self.sender.send(message, self.number % KEYS)

    async def report(self) -> None:
        """Report, again and again."""
        past: deque[tuple[float, float]] = deque(maxlen=round(1 / INTERVAL) + 1)
        while True:
            past.append((time.monotonic(), time.process_time()))
            elapsed, used = past[-1][0] - past[0][0], past[-1][1] - past[0][1]
            cpu = used / elapsed if elapsed else 0.0
            tell({**self.sender.counts(), "gone": self.sender.gone, "memory": resident(), "cpu": round(cpu, 3)})
            await asyncio.sleep(INTERVAL)


def resident() -> int | None:
    """Return how many bytes of this process are in memory; None where that is not known."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def tell(report: dict[str, Any]) -> None:
    """Write a report; end if nobody reads it any more."""
    try:
        os.write(sys.stdout.fileno(), json.dumps(report).encode() + b"\n")
    except BrokenPipeError:
        os._exit(0)


async def serve(task: dict[str, Any]) -> None:
    """Serve until standard input ends."""
    senders: dict[str, Callable[[], SendLoop]] = {
        "loop": SendLoop,
        "broadcast": Broadcast,
        "channel": lambda: ByChannel(task["policy"]),
    }
    sender = senders[task["lane"]]()
    lane = Lane(sender, task["size"], list(senders).index(task["lane"]) / len(senders))
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    # No request of a web page, which has an Origin, is accepted. All else is as it is by default.
    async with sender.serve(sender.attend, "127.0.0.1", 0, compression=None, origins=[None]) as server:
        tell({"port": next(iter(server.sockets)).getsockname()[1]})
        async with asyncio.TaskGroup() as group:
            group.create_task(lane.send_ticks())
            group.create_task(lane.report())
            while line := await reader.readline():
                lane.do(json.loads(line))
            os._exit(0)  # no client needs a closing handshake


def run(main: Callable[[dict[str, Any]], Any]) -> None:
    """Run the coroutine function of a process with its task, which is in the first argument."""
    task = json.loads(sys.argv[1])
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if task["loop"] == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    logging.getLogger("wsfast").addHandler(logging.NullHandler())  # slow clients are no news here
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main(task))


def main() -> None:
    """Run the process."""
    run(serve)


if __name__ == "__main__":
    main()
