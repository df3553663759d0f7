"""Octets on the wire with permessage-deflate: how small each method makes the same messages, and how long it takes."""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from itertools import chain, islice
from types import MappingProxyType
from typing import Any, TypeAlias

from websockets.asyncio.server import broadcast as websockets_broadcast

import wsfast
from wsfast_bench.cases import Case
from wsfast_bench.clients import Clients
from wsfast_bench.machine import UnfitError, bind_server
from wsfast_bench.methods import METHODS, UNBOUNDED
from wsfast_bench.servers import PATIENCE, SERVE, admit
from wsfast_bench.ticks import ticks

from .scenario import Chart, Option, Play, Row, Scenario, Settings

__all__ = ["SCENARIO", "VARIANTS", "WAYS", "measure_wire"]

WAYS = ("websockets", "wsfast", "channel", "no-takeover", "picows")
"""Methods that are compared, each on connections of its own."""

VARIANTS = {
    "all": "each tick goes to all clients",
    "halves": "each tick goes to a random half of the clients",
    "private": "each tick goes to all clients; after it, every tenth gets a message of its own by `connection.send()`",
}
"""Which clients get which messages."""

SIZE = 260
PRIVATE_SIZE = 64
"""Octets of a tick, and of a private message."""

EVERY = 10
"""One of so many clients gets private messages, always the same ones."""

BLOCK = 10
"""Messages in a turn of a method. The first one, which finds cold caches, counts on the wire but not in time."""

Send: TypeAlias = Callable[[list[Any], list[Any], str], object]
"""Sends a message to the first connections, but not to the second, which are all others."""


class Wire:
    """The connections of one method, and what was measured on them."""

    def __init__(self, way: str, connections: list[Any], clients: Clients) -> None:
        self.connections = connections
        self.octets: list[float] = []
        """For each tick, octets per client that got it, frame headers included."""
        self.private = 0
        """Octets of all private messages."""
        self.times: list[list[float]] = []
        """For each turn and each measured call in it, nanoseconds per client."""
        self._clients = clients
        self._send = sender(way, connections)

    async def take_turn(self, block: Sequence[tuple[str, list[int]]], private: Iterator[str] | None) -> None:
        """Send some ticks, each to the connections of its indices, and private messages if there are any."""
        times = []
        for message, indices in block:
            chosen = set(indices)
            to = [self.connections[index] for index in indices]
            rest = [one for index, one in enumerate(self.connections) if index not in chosen]
            before = self._clients.octets, self._clients.messages
            start = time.perf_counter_ns()
            self._send(to, rest, message)
            times.append((time.perf_counter_ns() - start) / len(to))
            await arrive(self._clients, before[1] + len(to))
            self.octets.append((self._clients.octets - before[0]) / len(to))
            if private is not None:
                before = self._clients.octets, self._clients.messages
                some = self.connections[::EVERY]
                for connection in some:
                    await connection.send(next(private))
                await arrive(self._clients, before[1] + len(some))
                self.private += self._clients.octets - before[0]
        self.times.append(times[1:] or times)


def sender(way: str, connections: list[Any]) -> Send:
    """Return what sends by a method."""
    if way == "channel":
        channel = wsfast.Channel("wire", slow=UNBOUNDED)
        for connection in connections:
            channel.subscribe(connection)

        def publish(to: list[Any], rest: list[Any], message: str) -> None:
            channel.publish(message, exclude=rest)
            channel.flush()

        return publish
    broadcast: Callable[[list[Any], str], object] = wsfast.broadcast if way == "wsfast" else websockets_broadcast
    if way == "picows":
        from picows.websockets import broadcast
    return lambda to, rest, message: broadcast(to, message)


async def arrive(clients: Clients, expected: int) -> None:
    """Wait until the clients have read so many messages.

    Raises:
        UnfitError: If they read nothing for long, or more.
    """
    seen, since = clients.octets, time.monotonic()
    while (messages := clients.messages) < expected:
        await asyncio.sleep(0)
        if clients.octets != seen:
            seen, since = clients.octets, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            break
    if messages != expected:
        raise UnfitError(f"clients have read {messages} of {expected} messages")


async def measure_wire(
    case: Case, variant: str, messages: int, ways: Sequence[str], processors: tuple[int, int] | None
) -> list[dict[str, Any]]:
    """Send the same messages by all methods, which take turns in shuffled order.

    Args:
        case: How many clients, and the size of a tick.
        variant: One of `VARIANTS`.
        messages: How many ticks each method sends.
        ways: Some of `WAYS`, `websockets` among them.
        processors: One for this process, one for that of the clients; None to bind neither.

    Raises:
        UnfitError: If clients cannot connect, or do not read what they are sent.
    """
    awake = bind_server(processors)
    async with AsyncExitStack() as stack:
        crowds: dict[str, list[Any]] = {way: [] for way in ways}
        ports = {
            way: await stack.enter_async_context(SERVE[METHODS[way].server](case, crowd))
            for way, crowd in crowds.items()
        }
        clients = stack.enter_context(Clients(None if processors is None else processors[1]))
        for way, crowd in crowds.items():
            await admit(clients, case, ports[way], crowd)
        wsfast.set_threads(1)
        stack.callback(wsfast.set_threads, None)
        await clients.drain(awake=awake and not case.sleep)
        wires = {way: Wire(way, crowd, clients) for way, crowd in crowds.items()}
        # The private messages are the same for all methods, and so are the halves.
        private = {way: ticks(PRIVATE_SIZE, "private") if variant == "private" else None for way in ways}
        source, chance = ticks(case.size, "wire"), random.Random("halves")
        everyone = list(range(case.clients))
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        for first in range(0, messages, BLOCK):
            block = [
                (tick, sorted(chance.sample(everyone, max(case.clients // 2, 1))) if variant == "halves" else everyone)
                for tick in islice(source, min(BLOCK, messages - first))
            ]
            order = list(ways)
            random.shuffle(order)
            for way in order:
                gc.collect()
                await wires[way].take_turn(block, private[way])
        return [_row(case, variant, way, wire, wires["websockets"]) for way, wire in wires.items()]


def _row(case: Case, variant: str, way: str, wire: Wire, websockets: Wire) -> dict[str, Any]:
    octets, theirs = statistics.mean(wire.octets), statistics.mean(websockets.octets)
    pairs = zip(websockets.times, wire.times, strict=True)
    return {
        "variant": variant,
        "way": way,
        "messages": len(wire.octets),
        "octets": octets,
        "steady": statistics.mean(wire.octets[-max(len(wire.octets) // 4, 1) :]),
        "private": wire.private / len(wire.octets) / len(wire.connections[::EVERY]) if wire.private else None,
        "share": octets / theirs,
        "compressed": octets / case.size,
        "call": statistics.median(chain.from_iterable(wire.times)) / 1e3,
        "faster": statistics.median(statistics.median(first) / statistics.median(second) for first, second in pairs),
    }


class OnTheWire(Scenario):
    """One process for each variant, in which all methods take turns."""

    name = "wire"
    help = "1000 clients with default permessage-deflate, 1000 ticks of 260 B: bytes on the wire, and time of a call"
    messages = Option("messages", "messages", 1000, quick=100)
    options = (messages,)
    keys = ("variant", "way")
    numbers = MappingProxyType({"octets": "wire B", "call": "us/client"})
    theirs = frozenset({"websockets", "no-takeover", "picows"})
    chart = Chart("Bytes on the wire per client and message (mean)", "octets", "{variant}, {way}")
    legend = (
        "wire B: bytes sent per client and message, frame headers included, mean of all messages from the first on.\n"
        "steady B: the same of the last quarter. x bytes: wire B divided by that of websockets. private B: bytes of\n"
        "the private messages. us/client: time of a call per client that it sends to, median. x websockets: time of\n"
        "websockets divided by the time of the method in each turn; median. One thread sends.\n"
        + "".join(f"{name}: {told}.\n" for name, told in VARIANTS.items())
        + "no-takeover: websockets, each message compressed by itself. Each method has connections of its own; those\n"
        "of picows have a window of 15 bits, all others 12 bits."
    )

    def plan(self, settings: Settings) -> Iterator[Play]:
        """Play each variant."""
        clients, messages = settings.clients(), settings.number(self.messages)
        ways = [way for way in WAYS if METHODS[way].present]
        case = settings.case(len(ways) * clients, SIZE, "text") | {"clients": clients, "compression": "deflate"}
        for variant in VARIANTS:
            task = {"case": case, "variant": variant, "messages": messages, "ways": ways}
            yield Play(
                f"{clients} clients, {messages} ticks of {SIZE} B, default permessage-deflate: {variant}",
                {**task, "processors": settings.processors},
            )

    async def run(self, case: Case, task: dict[str, Any]) -> list[Row]:
        """Measure all methods in one variant."""
        return [*await measure_wire(case, task["variant"], task["messages"], task["ways"], task["processors"])]

    def tabulate(self, rows: Sequence[Row]) -> list[list[str]]:
        """Return a row for each variant and method."""
        heads = ["to", "method", "wire B", "steady B", "x bytes", "private B", "us/client", "x websockets"]
        return [
            heads,
            *(
                [
                    row["variant"],
                    row["way"],
                    f"{row['octets']:.1f}",
                    f"{row['steady']:.1f}",
                    f"{row['share']:.2f}",
                    "-" if row["private"] is None else f"{row['private']:.1f}",
                    f"{row['call']:.2f}",
                    f"{row['faster']:.2f}",
                ]
                for row in rows
            ),
        ]


SCENARIO = OnTheWire()
