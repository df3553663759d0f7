"""The documented loop of a framework over all its WebSockets, compared with `wsfast.broadcast()`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import statistics
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import MappingProxyType
from typing import Any, TypeAlias

from websockets.frames import Opcode

import wsfast
from wsfast_bench._library import descriptor_of, extension_present
from wsfast_bench.cases import Case
from wsfast_bench.clients import Clients
from wsfast_bench.integrations import serve_asgi
from wsfast_bench.machine import UnfitError, installed
from wsfast_bench.native import send_many
from wsfast_bench.peer import connect
from wsfast_bench.servers import KEEPALIVE, admit, keep
from wsfast_bench.ticks import deflated, frame, ticks

from .scenario import Chart, Play, Row, Scenario, Settings

__all__ = ["FRAMEWORKS", "SCENARIO", "STALLED", "compare"]

ROUNDS = 30
CALLS = 3
"""Calls in each round of a method, except for the first, which is not measured."""

STALLED = 5
"""Clients that never read."""

LARGE = 16384
"""Bytes of the messages for them."""

MESSAGES = 1000
"""How many these are, at most."""

LIMIT = 5.0
"""Seconds after which a call counts as one that never returns."""

QUIET = 0.003
"""Seconds without a byte after which nothing more is on its way."""

Call: TypeAlias = Callable[[Any, Any], Awaitable[object]]


@asynccontextmanager
async def _fastapi(case: Case, accepted: list[Any], *, ours: bool) -> AsyncIterator[int]:
    import fastapi

    app = fastapi.FastAPI()

    async def endpoint(websocket: Any) -> None:
        await websocket.accept()
        accepted.append(websocket)
        with contextlib.suppress(fastapi.WebSocketDisconnect):
            while True:
                await websocket.receive_text()

    endpoint.__annotations__["websocket"] = fastapi.WebSocket  # which FastAPI would look for in this module
    app.websocket("/")(endpoint)
    settings = {"ws_per_message_deflate": case.compression == "deflate"}
    async with serve_asgi(case, app, ours=ours, **settings) as port:
        yield port


async def _send_text(connections: list[Any], message: str) -> None:
    """Do as the ConnectionManager of FastAPI's documentation does."""
    for connection in connections:
        await connection.send_text(message)


@asynccontextmanager
async def _aiohttp(case: Case, accepted: list[Any], *, ours: bool) -> AsyncIterator[int]:
    import aiohttp.web

    async def handler(request: Any) -> Any:
        response = aiohttp.web.WebSocketResponse(
            compress=case.compression == "deflate", heartbeat=KEEPALIVE if case.keepalive else None
        )
        await response.prepare(request)
        accepted.append(response)
        async for _ in response:
            pass
        return response

    app = aiohttp.web.Application()
    app.router.add_get("/", handler)
    runner = aiohttp.web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0, backlog=2048)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def _send_str(connections: list[Any], message: str) -> None:
    for connection in connections:
        await connection.send_str(message)


async def _broadcast(connections: list[Any], message: str) -> None:
    wsfast.broadcast(connections, message)


async def _floor(descriptors: Any, frame: Any) -> None:
    if send_many(descriptors, frame):
        raise UnfitError("the clients do not read as fast as the floor sends")


def _frame(case: Case, message: str) -> bytes:
    payload = message.encode()
    if case.compression == "deflate":
        return frame(Opcode.TEXT, deflated(payload), compressed=True)
    return frame(Opcode.TEXT, payload)


FRAMEWORKS: dict[str, tuple[Any, Call, tuple[str, ...]]] = {
    "fastapi": (_fastapi, _send_text, ("fastapi", "uvicorn")),
    "aiohttp": (_aiohttp, _send_str, ("aiohttp",)),
}
"""How to serve, the loop that is compared, and the modules that are needed."""


async def compare(case: Case, framework: str, processors: tuple[int, int] | None) -> list[dict[str, Any]]:
    """Measure calls of both methods, each on a server of its own; then how each fares with clients that never read.

    If there is the extension, also its loop of send() over the sockets of the second: the floor.

    Raises:
        UnfitError: If clients cannot connect, or do not read what they are sent.
    """
    if processors is not None:
        os.sched_setaffinity(0, {processors[0]})
    serve, loop_over, _ = FRAMEWORKS[framework]
    calls: dict[str, Call] = {"loop": loop_over, "wsfast": _broadcast}
    async with AsyncExitStack() as stack:
        crowds: dict[str, list[Any]] = {name: [] for name in calls}
        clients = stack.enter_context(Clients(None if processors is None else processors[1]))
        ports = {}
        for name, accepted in crowds.items():
            ports[name] = await stack.enter_async_context(serve(case, accepted, ours=name == "wsfast"))
            await admit(clients, case, ports[name], accepted)
        await clients.drain(awake=processors is not None and not case.sleep)
        gc.collect()
        gc.freeze()
        messages = ticks(case.size, framework)
        rooms: dict[str, Any] = dict(crowds)
        if extension_present():
            rooms["floor"] = array("i", map(descriptor_of, crowds["wsfast"]))
            calls["floor"] = _floor
        times: dict[str, list[int]] = {name: [] for name in calls}
        order = list(calls)
        for _ in range(ROUNDS):
            random.shuffle(order)
            for name in order:
                gc.collect()
                for number in range(CALLS + 1):
                    message: Any = next(messages)
                    if name == "floor":
                        message = _frame(case, message)
                    start = time.perf_counter_ns()
                    await calls[name](rooms[name], message)
                    took = time.perf_counter_ns() - start
                    if number:
                        times[name].append(took)
                    await _settle(clients)
        rows = []
        for name, call in calls.items():
            row = {
                "framework": framework,
                "compression": case.compression,
                "way": name,
                "call": statistics.median(times[name]) / case.clients / 1e3,
            }
            if name == "floor":
                rows.append(row)
                continue
            deflate = case.compression == "deflate"
            sleepers = await asyncio.to_thread(connect, ports[name], STALLED, deflate=deflate, receive_buffer=4096)
            for sock in sleepers:
                stack.callback(sock.close)
            await keep(crowds[name], case.clients + STALLED)
            random.shuffle(crowds[name])
            rows.append(row | await _send_to_stalled(call, crowds[name], clients))
        gc.unfreeze()
        return rows


async def _send_to_stalled(call: Call, connections: list[Any], clients: Clients) -> dict[str, Any]:
    """Send large messages until a call does not return; tell after how many that was."""
    chance = random.Random("stalled")
    took: list[float] = []
    for number in range(MESSAGES):
        message = chance.randbytes(LARGE // 2).hex()
        start = time.perf_counter()
        try:
            async with asyncio.timeout(LIMIT):
                await call(connections, message)
        except TimeoutError:
            return {"stopped": number, "longest": max(took, default=0.0)}
        took.append(time.perf_counter() - start)
        await _settle(clients, 0.0)
    return {"stopped": None, "longest": max(took)}


async def _settle(clients: Clients, quiet: float = QUIET) -> None:
    """Wait until the clients have read all that is on its way."""
    before, since = clients.octets, time.monotonic()
    while time.monotonic() - since <= quiet:
        await asyncio.sleep(0)
        if clients.octets != before:
            before, since = clients.octets, time.monotonic()


class Frameworks(Scenario):
    """A server of each framework, with and without compression."""

    name = "frameworks"
    help = "500 WebSockets of FastAPI under uvicorn, and of aiohttp: a loop of await, and wsfast.broadcast()"
    keys = ("framework", "compression", "way")
    numbers = MappingProxyType({"call": "us/client"})
    theirs = frozenset({"loop"})
    chart = Chart("Time of a call, us per client (median)", "call", "{framework}, {compression}, {way}")
    legend = (
        "loop: `for connection in connections: await connection.send_text(message)`, on a stock server. wsfast: on a\n"
        "server with its protocol class (FastAPI), or a stock one (aiohttp). floor: a bare loop of send() in C over\n"
        "the same sockets. us/client: time of a call, median; all take turns."
    )

    def plan(self, settings: Settings) -> Iterator[Play]:
        """Play each framework, without compression and with it."""
        clients = settings.clients(500)
        for framework, (_, _, needed) in FRAMEWORKS.items():
            missing = [name for name in needed if not installed(name)]
            if missing:
                raise UnfitError(f"scenario frameworks needs {', '.join(missing)}; pip install wsfast[bench]")
            for compression in ("none", "deflate"):
                case = {**settings.case(2 * clients + 2 * STALLED, 256, "text"), "clients": clients}
                title = f"{clients} clients, 256 B; then {STALLED} more that never read, 16 KiB"
                yield Play(
                    f"{title}: {framework}, {compression}",
                    {
                        "case": {**case, "compression": compression},
                        "framework": framework,
                        "processors": settings.processors,
                    },
                )

    async def run(self, case: Case, task: dict[str, Any]) -> list[Row]:
        """Compare all ways over one framework."""
        return [*await compare(case, task["framework"], task["processors"])]

    def tabulate(self, rows: Sequence[Row]) -> list[list[str]]:
        """Return a row for each framework, compression and way."""
        loops = {(row["framework"], row["compression"]): row["call"] for row in rows if row["way"] == "loop"}
        table = [["framework", "compression", "method", "us/client", "x loop", "clients that never read"]]
        for row in rows:
            if "stopped" not in row:
                told = "-"
            elif row["stopped"] is None:
                told = f"no call took longer than {row['longest'] * 1e3:.0f} ms"
            else:
                told = f"message {row['stopped'] + 1} never left"
            table.append(
                [
                    row["framework"],
                    row["compression"],
                    row["way"],
                    f"{row['call']:.2f}",
                    f"{loops[row['framework'], row['compression']] / row['call']:.2f}",
                    told,
                ]
            )
        return table


SCENARIO = Frameworks()
