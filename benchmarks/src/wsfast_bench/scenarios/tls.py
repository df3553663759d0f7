"""TLS: a broadcast to connections that all encrypt it for themselves."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import random
import ssl
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import chain
from types import MappingProxyType
from typing import Any

from websockets.asyncio.client import connect

import wsfast
from wsfast_bench.cases import Case, Samples
from wsfast_bench.certificate import client_context, server_context
from wsfast_bench.machine import UnfitError, bind_server, installed
from wsfast_bench.measure import make_room, prepared
from wsfast_bench.methods import METHODS, Call, Method, Room
from wsfast_bench.report import percentile
from wsfast_bench.servers import PATIENCE, SERVE, keep
from wsfast_bench.ticks import Burst, bursts, ticks

from .scenario import Chart, Play, Row, Scenario, Settings

__all__ = ["SCENARIO", "WAYS", "Encryption", "check", "measure_tls"]

SIZE = 256

READERS = 3
"""Clients that decrypt, of each server, before anything is measured."""

CHECKED = 20
"""Messages that they must get by each method."""


@asynccontextmanager
async def _by_picows(room: Room) -> AsyncIterator[Call]:
    """Do what a user of picows does: send to one transport after the other."""
    from picows import WSMsgType

    def call() -> None:
        message = room.message
        payload = message.encode() if isinstance(message, str) else message
        for transport in room.transports:
            transport.send(WSMsgType.TEXT, payload)

    yield call


@asynccontextmanager
async def _by_wsfast(room: Room) -> AsyncIterator[Call]:
    """Call `wsfast.broadcast()` with the same transports."""
    transports = list(room.transports)
    yield lambda: (wsfast.broadcast(transports, room.message), None)[1]


_PICOWS: dict[str, Any] = {"server": "picows-transports", "feature": "picows"}

WAYS = {name: METHODS[name] for name in ("floor", "wsfast", "wsfast-served", "channel", "websockets", "await")} | {
    "wsfast-picows": Method("wsfast-picows", "wsfast.broadcast() on transports of picows", _by_wsfast, **_PICOWS),
    "picows-loop": Method("picows-loop", "send() to each of the same", _by_picows, **_PICOWS, group="theirs"),
}
"""Methods that are compared; the floor sends records as large that nobody could decrypt."""


class Encryption:
    """As many ends of TLS connections in memory as there are clients, which encrypt a frame each and send nothing."""

    def __init__(self, count: int, frame: bytes) -> None:
        self._frame = frame
        self.ends = [_end() for _ in range(count)]
        """Each with what it has encrypted."""

    def call(self) -> None:
        """Encrypt the frame for all."""
        frame = self._frame
        for end, outgoing in self.ends:
            end.write(frame)
            outgoing.read()

    def take_turn(self, calls: int, samples: Samples) -> None:
        """Make one call that is not measured, and those that are."""
        gc.collect()
        self.call()
        times = []
        for _ in range(calls):
            start = time.perf_counter_ns()
            self.call()
            times.append(time.perf_counter_ns() - start)
        samples.call.append(times)


def _end() -> tuple[ssl.SSLObject, ssl.MemoryBIO]:
    """Return the server's end of a connection, and what it has encrypted; the client's end is forgotten."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context().wrap_bio(there, back, server_side=True)
    client = client_context().wrap_bio(back, there)
    for end in (client, server, client, server):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    back.read()
    return server, back


async def check(case: Case) -> int:
    """Have a few clients of each server decrypt what each method sends; return how many messages they have got.

    Raises:
        UnfitError: If one got something else, or nothing.
    """
    case = dataclasses.replace(case, clients=READERS)
    count = 0
    async with AsyncExitStack() as stack:
        names = [name for name in case.methods if WAYS[name].group != "floor"]
        crowds: dict[str, list[Any]] = {WAYS[name].server: [] for name in names}
        readers = {}
        for server, accepted in crowds.items():
            port = await stack.enter_async_context(SERVE[server](case, accepted))
            opened = [
                connect(f"wss://127.0.0.1:{port}", ssl=client_context(), compression=None, max_queue=None, proxy=None)
                for _ in range(READERS)
            ]
            readers[server] = [await stack.enter_async_context(one) for one in opened]
            await keep(accepted, READERS)
        room = make_room(case, crowds)
        for name in names:
            call = await stack.enter_async_context(WAYS[name].call(room))
            for _, message in zip(range(CHECKED), ticks(case.size, name), strict=False):
                room.take(Burst((message,), b""))
                sending = call()
                if sending is not None:
                    await sending
                for reader in readers[WAYS[name].server]:
                    got: str | bytes | None = None
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(PATIENCE):
                            got = await reader.recv()
                    if got != message:
                        raise UnfitError(f"{name} has sent {message!r}, and a client has got {got!r}")
                    count += 1
    return count


async def measure_tls(case: Case, processors: tuple[int, int] | None) -> list[dict[str, Any]]:
    """Measure calls of all methods over TLS, in rounds and in shuffled order, with one thread.

    Args:
        case: The case to measure.
        processors: One for this process, one for that of the clients; None to bind neither.

    Raises:
        UnfitError: If clients cannot connect, or do not read what they are sent; or if they get something else.
    """
    awake = bind_server(processors)
    exact = await check(case)
    encryption = Encryption(case.clients, next(bursts(dataclasses.replace(case, tls=False), "encrypt")).frames)
    async with prepared(case, awake, processors, WAYS) as (bench, turns):
        samples = {name: Samples() for name in (*turns, "encrypt")}
        for warm in (True, *[False] * case.rounds):
            order = list(samples)
            random.shuffle(order)
            for name in order:
                taken = Samples() if warm else samples[name]
                if name == "encrypt":
                    encryption.take_turn(case.calls, taken)
                else:
                    await bench.take_turn(turns[name], taken)
    rounds = {name: [statistics.median(calls) for calls in taken.call] for name, taken in samples.items()}
    if "floor" in rounds:
        rounds["least"] = [sum(pair) for pair in zip(rounds["floor"], rounds["encrypt"], strict=True)]
    return [_row(case, name, taken, rounds) | {"exact": exact} for name, taken in samples.items()]


def _row(case: Case, name: str, samples: Samples, rounds: dict[str, list[float]]) -> dict[str, Any]:
    calls, drained = list(chain.from_iterable(samples.call)), list(chain.from_iterable(samples.drained))

    def times(other: str) -> float | None:
        if other not in rounds:
            return None
        return statistics.median(first / second for first, second in zip(rounds[other], rounds[name], strict=True))

    return {
        "way": name,
        "call": statistics.median(calls) / case.clients / 1e3,
        "p50": percentile(calls, 50) / 1e6,
        "p99": percentile(calls, 99) / 1e6,
        "drained": statistics.median(drained) / 1e6 if drained else None,
        "faster": times("websockets"),
        "picows": times("picows-loop"),
        "efficiency": None if name in ("floor", "encrypt") else times("least"),
        "short": samples.short,
    }


class Tls(Scenario):
    """One process, in which all methods take turns."""

    name = "tls"
    help = "500 clients over TLS, 256 B, one thread"
    numbers = MappingProxyType({"call": "us/client", "p99": "p99 ms"})
    theirs = frozenset({"websockets", "await", "picows-loop"})
    chart = Chart("Time of a call, us per client (median)", "call", "{way}")
    legend = (
        "wsfast-picows: wsfast.broadcast() on transports of picows. picows-loop: send() on each of these transports.\n"
        "floor: a bare loop of send() in C over the sockets of stock connections, with records of the same size.\n"
        "encrypt: as many ssl.SSLObject encrypt the message in a loop in Python and send nothing; C needs less time.\n"
        "us/client: time of a call, median. drained: time from the call until everything has arrived, median. x\n"
        "websockets, x picows, efficiency: time of websockets, of picows-loop, of floor and encrypt together,\n"
        "divided by the time of the method in each round; median. The measured clients count records and decrypt\n"
        "nothing."
    )

    def plan(self, settings: Settings) -> Iterator[Play]:
        """Play all in one process."""
        if not installed("cryptography"):
            raise UnfitError("scenario tls needs cryptography, to make a certificate; pip install wsfast[bench]")
        clients = settings.clients(500)
        ways = [name for name, way in WAYS.items() if way.present]
        servers = {WAYS[name].server for name in ways}
        case = settings.case(len(servers) * clients, SIZE, "text", keepalive=False) | settings.rounds()
        case |= {"clients": clients, "methods": ways, "tls": True}
        title = f"{clients} clients over TLS, {SIZE} B, one thread: in turns"
        yield Play(title, {"case": case, "processors": settings.processors})

    async def run(self, case: Case, task: dict[str, Any]) -> list[Row]:
        """Measure all methods."""
        return [*await measure_tls(case, task["processors"])]

    def tabulate(self, rows: Sequence[Row]) -> list[list[str]]:
        """Return a row for each method."""
        table = [["method", "us/client", "p50 ms", "p99 ms", "drained ms", "x websockets", "x picows", "efficiency"]]
        for row in rows:
            told = ("drained", "faster", "picows", "efficiency")
            cells = ["-" if row[key] is None else f"{row[key]:.2f}" for key in told]
            table.append([row["way"], f"{row['call']:.2f}", f"{row['p50']:.2f}", f"{row['p99']:.2f}", *cells])
        return table

    def warn(self, rows: Sequence[Row]) -> list[str]:
        """Tell of sends that were cut, and what was checked."""
        cut = [row for row in rows if row["short"]]
        return [
            *(f"WARNING: the kernel did not take all of {row['short']} sends of {row['way']}" for row in cut),
            f"Before that, {rows[0]['exact']} messages were decrypted and compared: all were correct.",
        ]

    def group(self, row: Row) -> str:
        """Return whose a method is."""
        return "floor" if row["way"] == "encrypt" else super().group(row)


SCENARIO = Tls()
