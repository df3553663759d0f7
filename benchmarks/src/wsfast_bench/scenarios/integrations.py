"""The cost of sending to many clients of other libraries' servers: by the library's own way, and by wsfast."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import random
import socket
import statistics
import time
from array import array
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from types import MappingProxyType
from typing import Any

from websockets.frames import Opcode

from wsfast_bench.cases import Case
from wsfast_bench.follower import MARK, Followers
from wsfast_bench.integrations import INTEGRATIONS, SOCKETIO_EVENT
from wsfast_bench.machine import UnfitError, installed
from wsfast_bench.native import send_many
from wsfast_bench.servers import PATIENCE, keep
from wsfast_bench.ticks import frame

from .scenario import Chart, Play, Row, Scenario, Settings

__all__ = ["SCENARIO", "compare", "sockets_of", "text_of"]

PAUSE = 0.001
"""Seconds between two looks whether everything has arrived."""


def text_of(size: int) -> str:
    """Return a message of so many characters, with one mark in it."""
    return f'{{"t": "{MARK}'.ljust(size - 2, "x") + '"}'


def _wire(kind: str, text: str) -> bytes:
    """Return what the floor sends: bytes that clients of that kind take for one message."""
    if kind == "events":
        event = f"data: {text}\n\n".encode()
        return b"%x\r\n%b\r\n" % (len(event), event)
    if kind == "socketio":
        text = f"42{json.dumps([SOCKETIO_EVENT, text], separators=(',', ':'))}"
    return frame(Opcode.TEXT, text.encode())


def sockets_of(port: int) -> array[int]:
    """Return the descriptors of connections that this process has accepted at a port."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        # One that is no socket, or closed by now, or listens.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as sock:
            sock.getpeername()
            if sock.family == socket.AF_INET and sock.getsockname()[1] == port:
                found.append(int(name))
    return array("i", found)


async def compare(case: Case, name: str, processors: tuple[int, int] | None) -> list[dict[str, Any]]:
    """Measure the library's own way, wsfast's, and a bare loop of send() over the sockets of the latter.

    Raises:
        UnfitError: If clients cannot connect, or messages do not arrive.
    """
    if processors is not None:
        os.sched_setaffinity(0, {processors[0]})
    integration = INTEGRATIONS[name]
    text = text_of(case.size)
    calls: dict[str, Callable[[str], Awaitable[object]]] = {}
    # The clients go before the servers end, which would wait for them.
    async with AsyncExitStack() as stack:
        with Followers(None if processors is None else processors[1]) as clients:
            for way in ("own", "wsfast"):
                # The clients of the first one are connected before the second one begins, which may change the library.
                served = await stack.enter_async_context(integration.serve(case, way == "wsfast"))
                await clients.open(served.port, case.clients, integration.kind)
                await keep(served.clients, case.clients)
                calls[way] = served.publish
            descriptors, data = sockets_of(served.port), _wire(integration.kind, text)

            async def floor(_: str) -> None:
                if send_many(descriptors, data):
                    raise UnfitError("the clients do not read as fast as the floor sends")

            calls["floor"] = floor
            await clients.drain(awake=False)
            gc.collect()
            gc.freeze()
            stack.callback(gc.unfreeze)
            found: dict[str, list[int]] = {way: [] for way in calls}
            order = list(calls)
            for _ in range(case.rounds):
                random.shuffle(order)
                for way in order:
                    gc.collect()
                    await _sample(calls[way], text, case, clients)
                    found[way] += [await _sample(calls[way], text, case, clients) for _ in range(case.calls)]
    told = {"own": integration.own, "wsfast": integration.ours, "floor": "send()"}
    return [
        {"integration": name, "way": way, "told": told[way], "cpu": statistics.median(found[way]) / case.clients / 1e3}
        for way in calls
    ]


async def _sample(publish: Callable[[str], Awaitable[object]], text: str, case: Case, clients: Followers) -> int:
    """Send a message to all; return nanoseconds of processor time until all have it."""
    expected = clients.messages + case.clients
    deadline = time.monotonic() + PATIENCE
    cpu = time.process_time_ns()
    await publish(text)
    while clients.messages < expected:
        if time.monotonic() > deadline:
            raise UnfitError(f"{expected - clients.messages} of {case.clients} messages have not arrived")
        await asyncio.sleep(PAUSE)
    cpu = time.process_time_ns() - cpu
    if clients.messages > expected:
        raise UnfitError(f"clients have read {clients.messages - expected} messages too many")
    return cpu


class Integrations(Scenario):
    """A process for each library."""

    name = "integrations"
    help = "500 clients of other libraries' servers: the library's own way to send to all of them, and wsfast"
    keys = ("integration", "way")
    numbers = MappingProxyType({"cpu": "CPU us/client"})
    theirs = frozenset({"own"})
    chart = Chart("Processor time of the server, us per client and message (median)", "cpu", "{integration}: {told}")
    legend = (
        "CPU us/client: processor time of the server's process per client and message, from the call until all have\n"
        "the message; median. x own: that of the library's own way, divided by it. send(): a bare loop in C over\n"
        "the sockets of wsfast's server. There is no compression and no keepalive. All take turns."
    )

    def plan(self, settings: Settings) -> Iterator[Play]:
        """Play each library that is installed."""
        clients = settings.clients(500)
        played = False
        for name, integration in INTEGRATIONS.items():
            missing = [module for module in integration.needed if not installed(module)]
            if missing:
                print(f"Skipping {name}: {', '.join(missing)} is not installed")
                continue
            played = True
            case = settings.case(2 * clients, 64, "text", keepalive=False) | settings.rounds()
            yield Play(
                f"{clients} clients, 64 B: {name}",
                {"case": case | {"clients": clients}, "integration": name, "processors": settings.processors},
            )
        if not played:
            raise UnfitError("scenario integrations needs at least one of the libraries that it compares with")

    async def run(self, case: Case, task: dict[str, Any]) -> list[Row]:
        """Compare all ways over one library."""
        return [*await compare(case, task["integration"], task["processors"])]

    def tabulate(self, rows: Sequence[Row]) -> list[list[str]]:
        """Return a row for each library and way."""
        own = {row["integration"]: row["cpu"] for row in rows if row["way"] == "own"}
        table = [["library", "method", "CPU us/client", "x own"]]
        table += [
            [row["integration"], row["told"], f"{row['cpu']:.2f}", f"{own[row['integration']] / row['cpu']:.1f}"]
            for row in rows
        ]
        return table


SCENARIO = Integrations()
