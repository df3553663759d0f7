"""The process in which the server is, and in which all methods are measured for one case.

What could bias the comparison, and what is done about it:

- The state of the machine changes: all methods take turns in every round, in shuffled order.
- A method finds the caches as the one before left them: the first call of a turn is not measured, so that each finds
  them as it leaves them itself, as on a server that has only this method.
- Bytes of the last call are still on their way: nothing begins before the clients have read all of them.
- The garbage collector runs in one method's time for another's garbage: all that lasts is frozen, and the rest
  collected before each turn. It stays enabled, since what a method allocates is a part of its cost.
- Whoever sends to a process that sleeps has to wake it up, slow methods more often: the clients never sleep.
- Someone else works on this processor, the command line with its progress bar for one: it is waited for.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import inspect
import json
import os
import random
import statistics
import sys
import time
from array import array
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from websockets.asyncio.server import ServerConnection, serve

from wsfast._impl import core
from wsfast.cli.machine import UnfitError

from .cases import Case, Result, Samples, Verdict
from .clients import Clients
from .methods import CALLS, Call, Room

__all__ = ["main", "measure"]

PATIENCE = 60
"""Seconds without a byte after which the clients are given up."""

QUIET = 0.05
"""Seconds without a byte after which nothing more is on its way, where it is not known how much was sent."""

TRIALS = 9
"""Fan-outs by which the clients are tried."""


async def measure(case: Case, processors: tuple[int, int] | None, after_round: Callable[[], None]) -> Result:
    """Start server and clients, measure all methods of a case, and end them.

    Args:
        case: What to measure.
        processors: One for this process, one for that of the clients; None if they are not to be bound.
        after_round: Called after each round.

    Raises:
        UnfitError: If clients cannot connect, or do not read what they are sent.
    """
    if processors is not None:
        os.sched_setaffinity(0, {processors[0]})
    async with AsyncExitStack() as stack:
        accepted: list[ServerConnection] = []
        strangers: list[Any] = []
        ports = [(await stack.enter_async_context(websockets_server(accepted)), accepted)]
        if "picows" in case.methods:
            ports.append((await stack.enter_async_context(picows_server(strangers)), strangers))
        clients = stack.enter_context(Clients(None if processors is None else processors[1]))
        for port, connections in ports:
            await clients.connect(port, case.clients)
            deadline = time.monotonic() + PATIENCE
            while len(connections) < case.clients:  # the server may not have noticed yet that it has answered
                if time.monotonic() > deadline:
                    raise UnfitError(f"of {case.clients} clients, the server has kept {len(connections)} only")
                await asyncio.sleep(0)
        room = make_room(case, accepted, strangers)
        turns = {name: await stack.enter_async_context(CALLS[name](room)) for name in case.methods}
        bench = Bench(case, clients, room)
        # On one processor, clients that never sleep would only be in the way.
        await clients.drain(awake=processors is not None and not case.sleep)
        gc.collect()
        gc.freeze()
        try:
            return await bench.run(turns, after_round)
        finally:
            gc.unfreeze()


def make_room(case: Case, accepted: list[ServerConnection], strangers: list[Any]) -> Room:
    """Return what the methods need: all have the same message and collections of the same kind."""
    kind: Callable[[list[Any]], Collection[Any]] = {"list": list, "set": set}[case.collection]
    tick = '{"symbol":"BTC-USD","price":64250.0,"size":100,"seq":12345},'
    text = (tick * (case.size // len(tick) + 1))[: case.size]
    connections: Collection[ServerConnection] = kind(accepted)
    return Room(
        connections=connections,
        descriptors=array("i", [connection.transport.get_extra_info("socket").fileno() for connection in connections]),
        strangers=kind(strangers),
        message=text if case.type == "text" else text.encode(),
        frame=core.encode_frame(0x81 if case.type == "text" else 0x82, text.encode()),
    )


@asynccontextmanager
async def websockets_server(accepted: list[ServerConnection]) -> AsyncIterator[int]:
    """Serve by websockets; yield the port, and append each connection to a list as it is accepted."""

    async def stay(connection: ServerConnection) -> None:
        accepted.append(connection)
        await connection.wait_closed()

    # When the context is left, the clients have gone, and the connections with them.
    async with serve(stay, "127.0.0.1", 0, compression=None, ping_interval=None, open_timeout=60) as server:
        yield next(iter(server.sockets)).getsockname()[1]


@asynccontextmanager
async def picows_server(accepted: list[Any]) -> AsyncIterator[int]:
    """Do the same by picows.websockets."""
    from picows.websockets import serve as picows_serve

    async def stay(connection: Any) -> None:
        accepted.append(connection)
        await connection.wait_closed()

    async with picows_serve(stay, "127.0.0.1", 0, compression=None, ping_interval=None, open_timeout=60) as server:
        yield next(iter(server.sockets)).getsockname()[1]


class Bench:
    """The measurement of one case: calls, and waiting until all that they sent has arrived."""

    def __init__(self, case: Case, clients: Clients, room: Room) -> None:
        self.case = case
        self.clients = clients
        self.room = room
        self.expected = 0
        """Bytes that the clients will have read."""
        self.load = case.clients * len(room.frame)
        """Bytes of one fan-out."""

    async def run(self, turns: dict[str, Call], after_round: Callable[[], None]) -> Result:
        """Measure calls of all methods, given by their names, in rounds."""
        samples = {name: Samples() for name in turns}
        for call in turns.values():
            await self.turn(call, Samples())
        self.room.short = 0
        sender = next(name for name in ("floor", "websockets", *turns) if name in turns)
        verdict = await self.try_clients(sender, turns[sender])
        order = list(turns)
        for _ in range(self.case.rounds):
            random.shuffle(order)
            for name in order:
                await self.turn(turns[name], samples[name])
            after_round()
        return Result(self.case, samples, verdict)

    async def turn(self, call: Call, samples: Samples) -> None:
        """Make one call that is not measured, and those that are."""
        gc.collect()
        await self.sample(call)
        short = self.room.short
        wakeups = self.clients.wakeups()
        calls, cpus, drained = zip(*[await self.sample(call) for _ in range(self.case.calls)], strict=True)
        samples.call.append(list(calls))
        samples.cpu.append(list(cpus))
        samples.drained.append(list(drained))
        samples.short += self.room.short - short
        if wakeups is not None:
            samples.wakeups.append((self.clients.wakeups() or wakeups) - wakeups)

    async def sample(self, call: Call) -> tuple[int, int, int]:
        """Make a call, wait until all has arrived, and return nanoseconds: of the call, its processor time, both."""
        short = self.room.short
        self.expected += self.load
        waits = inspect.iscoroutinefunction(call)
        cpu = time.process_time_ns()
        start = time.perf_counter_ns()
        result = call()
        if waits:
            assert result is not None
            await result
        end = time.perf_counter_ns()
        cpu = time.process_time_ns() - cpu
        arrival = await self.arrive() if self.room.short == short else await self.settle()
        return end - start, cpu, arrival - start

    async def arrive(self) -> int:
        """Wait until the clients have read all that was sent; return when that was seen.

        Raises:
            UnfitError: If they read nothing for long, or more than was sent.
        """
        # The event loop runs meanwhile: it may have to send what the kernel has not taken at once. To sleep rather
        # than to spin would put the processor to rest, and each method to the trouble of waking it up.
        clients, expected = self.clients, self.expected
        seen, since = clients.octets, time.perf_counter_ns()
        while (octets := clients.octets) < expected:
            now = time.perf_counter_ns()
            if octets != seen:
                seen, since = octets, now
            elif now - since > PATIENCE * 10**9:
                raise UnfitError(f"clients have read {octets} of {expected} bytes, and nothing for {PATIENCE} seconds")
            await asyncio.sleep(0)
        arrival = time.perf_counter_ns()
        if octets > expected:
            raise UnfitError(
                f"clients have read {octets} bytes, {octets - expected} more than they should have been sent"
            )
        return arrival

    async def settle(self) -> int:
        """Wait until nothing more arrives, after the floor has sent nobody knows how much; return when that began."""
        seen, since = self.clients.octets, time.perf_counter_ns()
        while (now := time.perf_counter_ns()) - since < QUIET * 10**9:
            if (octets := self.clients.octets) != seen:
                seen, since = octets, now
            await asyncio.sleep(0)
        self.expected = seen
        return since

    async def try_clients(self, sender: str, call: Call) -> Verdict:
        """Find out how fast the clients read, and whether they keep up with the server."""
        drained = []
        for _ in range(TRIALS):
            self.clients.stop()
            short = self.room.short
            self.expected += self.load
            result = call()
            sending = None if result is None else asyncio.create_task(result)
            if sending is not None:
                # It may wait for clients that have been stopped, if the sockets do not hold all of the message.
                await asyncio.wait((sending,), timeout=1)
            start = time.perf_counter_ns()
            self.clients.go_on()
            if sending is not None:
                await sending
            arrival = await self.arrive() if self.room.short == short else await self.settle()
            drained.append(arrival - start)
        together = [await self.sample(call) for _ in range(TRIALS)]
        self.room.short = 0
        return Verdict(
            sender=sender,
            clients=self.case.clients,
            drained=self.case.clients * 1e9 / statistics.median(drained),
            size=len(self.room.frame),
            behind=int(statistics.median(arrival - end for end, _, arrival in together)),
            call=int(statistics.median(end for end, _, _ in together)),
        )


def main() -> None:
    """Measure the case in the first argument; tell the command line by lines of JSON.

    After each round, and before the next, the command line answers with a line; until then it may draw its progress
    bar.
    """
    task = json.loads(sys.argv[1])
    case = Case(**{**task["case"], "methods": tuple(task["case"]["methods"])})
    processors = None if task["processors"] is None else (task["processors"][0], task["processors"][1])
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if case.loop == "uvloop":
        import uvloop

        loop_factory = uvloop.new_event_loop

    def after_round() -> None:
        print(json.dumps({"round": 1}), flush=True)
        if not sys.stdin.readline():
            raise KeyboardInterrupt  # the command line is gone

    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            result = runner.run(measure(case, processors, after_round))
    except UnfitError as exc:
        print(json.dumps({"error": str(exc)}), flush=True)
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        answer = {"methods": result.methods, "verdict": result.verdict}
        print(json.dumps({"result": answer}, default=dataclasses.asdict), flush=True)


if __name__ == "__main__":
    main()
