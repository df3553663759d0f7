"""The process in which the server is, and in which all methods are measured for one case.

What could bias the comparison, and what is done about it:

- The state of the machine changes: all methods take turns in every round, in shuffled order.
- A method finds the caches as the one before left them: the first call of a turn is not measured, so that each finds
  them as it leaves them itself, as on a server that has only this method.
- Bytes of the last call are still on their way: nothing begins before the clients have read all of them.
- The garbage collector runs in one method's time for another's garbage: all that lasts is frozen, and the rest
  collected before each turn. It stays enabled, since what a method allocates is a part of its cost.
- Sending to a process that sleeps wakes it up, and slow methods do that more often: the clients never sleep.
- A server that does something else between two calls finds nothing of them in its caches. With `cold`, it walks through
  more memory than they hold before each call; with `tick`, it sleeps, and so do the clients. Then each method, and each
  floor, has connections of its own: of shared ones, the caches would still hold some for the next method.
- With compression, a message costs what its history makes of it: no message is sent twice, and what a method sends when
  no other takes turns is measured once more without the clock.
- Someone else works on this processor, the command line with its progress bar for one: it is waited for.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import inspect
import json
import random
import statistics
import sys
import time
from array import array
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import islice
from typing import Any, NamedTuple

from websockets.asyncio.server import ServerConnection

import wsfast

from .cases import Case, Result, Samples, Verdict
from .clients import Clients
from .machine import UnfitError, bind_server, cache_size, usable_processors
from .methods import METHODS, Call, Method, Room
from .servers import PATIENCE, SERVE, admit
from .ticks import Burst, bursts

__all__ = ["Bench", "Turn", "main", "make_room", "measure", "prepared", "run_and_report"]

TRIALS = 9
"""Fan-outs by which the clients are tried."""

IDLE = 2
"""Seconds after which the kernel takes a connection for idle."""

RUN = 200
"""Messages that each method sends while no other takes turns, to find out how small it makes them."""


async def measure(case: Case, processors: tuple[int, int] | None, after_step: Callable[[], None]) -> Result:
    """Start server and clients, measure all methods of a case, and end them.

    Args:
        case: The case to measure.
        processors: One for this process, one for that of the clients; None to bind neither.
        after_step: Called after each round and, with compression, each method's run.

    Raises:
        UnfitError: If clients cannot connect, or do not read what they are sent.
    """
    async with prepared(case, bind_server(processors, case.threads), processors) as (bench, turns):
        return await bench.run(turns, after_step)


@asynccontextmanager
async def prepared(
    case: Case, awake: bool, processors: tuple[int, int] | None, methods: Mapping[str, Method] = METHODS
) -> AsyncIterator[tuple[Bench, dict[str, Turn]]]:
    """Start servers and clients of a case; yield what measures it, and its methods, ready to be called.

    Args:
        case: The case to measure.
        awake: Whether the clients have a processor for themselves, so that they need not sleep.
        processors: Its second one is that of the clients; None to bind neither.
        methods: Those of the case, and more.

    Raises:
        UnfitError: If clients cannot connect.
    """
    groups = [(name,) for name in case.methods] if case.apart else [case.methods]
    async with AsyncExitStack() as stack:
        crowds: list[dict[str, list[Any]]] = [{methods[name].server: [] for name in group} for group in groups]
        # All servers before the clients, so that these go first in the end: a server would wait for them to close.
        ports = [
            {name: await stack.enter_async_context(SERVE[name](case, accepted)) for name, accepted in crowd.items()}
            for crowd in crowds
        ]
        clients = stack.enter_context(Clients(None if processors is None else processors[1]))
        turns: dict[str, Turn] = {}
        for group, crowd, port in zip(groups, crowds, ports, strict=True):
            for name, accepted in crowd.items():
                await admit(clients, case, port[name], accepted)
            room = make_room(case, crowd)
            for name in group:
                turns[name] = Turn(await stack.enter_async_context(methods[name].call(room)), room)
        wsfast.set_threads(case.threads)
        stack.callback(wsfast.set_threads, None)
        await clients.drain(awake=awake and not case.sleep, records=case.tls)
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        yield Bench(case, clients), turns


def make_room(case: Case, crowds: dict[str, list[Any]]) -> Room:
    """Return what the methods need: all have collections of the same kind."""
    kind: Callable[[list[Any]], Collection[Any]] = {"list": list, "set": set}[case.collection]
    stock, served = crowds.get("stock", []), crowds.get("served", [])
    connections: Collection[ServerConnection] = kind(stock)
    return Room(
        connections=connections,
        descriptors=_descriptors(connections),
        strangers=kind(crowds.get("picows", [])),
        forgetful=kind(crowds.get("no-takeover", [])),
        stock=stock,
        served=served,
        served_descriptors=_descriptors(served),
        transports=crowds.get("picows-transports", ()),
        node=next(iter(crowds.get("node", ())), None),
    )


def _descriptors(connections: Collection[ServerConnection]) -> array[int]:
    return array("i", [connection.transport.get_extra_info("socket").fileno() for connection in connections])


class Turn(NamedTuple):
    """A method that is ready to be called."""

    call: Call
    room: Room


class Sample(NamedTuple):
    """The sample of one call: nanoseconds, and bytes sent to one client."""

    call: int
    cpu: int
    drained: int
    octets: int


class Bench:
    """The measurement of one case: calls, and waiting until all that they sent has arrived.

    The clients count messages: nobody else knows how many bytes that is, once an encoder has been at work.
    """

    def __init__(self, case: Case, clients: Clients) -> None:
        self.case = case
        self.clients = clients
        self.bursts = bursts(case, "turns")
        # Not zeros, which would all be one page of the kernel's.
        self.memory = [b"\1" * cache_size(usable_processors()[0]) for _ in range(2)] if case.cold else None
        self.expected = 0
        """Messages that the clients will have read."""

    async def run(self, turns: dict[str, Turn], after_step: Callable[[], None]) -> Result:
        """Measure calls of all methods, given by their names, in rounds; then what each sends when it is alone."""
        samples = {name: Samples() for name in turns}
        for turn in turns.values():
            await self.take_turn(turn, Samples())
        sender = next(name for name in ("floor", "websockets", *turns) if name in turns)
        verdict = await self.try_clients(sender, turns[sender])
        if self.case.apart:
            # Receivers that have been idle for a while acknowledge at once what comes next, which costs 2 us for each.
            # All must have been idle, including those that were tried.
            await asyncio.sleep(IDLE)
        order = list(turns)
        for _ in range(self.case.rounds):
            random.shuffle(order)
            for name in order:
                await self.take_turn(turns[name], samples[name])
            after_step()
        for name, turn in turns.items():
            if self.case.compression != "none":
                # All methods send the same messages here. Those of the method before have left the window when the
                # first of them that count come.
                for burst in islice(bursts(self.case, "run"), RUN):
                    samples[name].run.append((await self.sample(turn, burst, at_once=True)).octets)
                after_step()
        return Result(self.case, samples, verdict)

    async def take_turn(self, turn: Turn, samples: Samples) -> None:
        """Make one call that is not measured, unless caches are cold anyway, and those that are."""
        gc.collect()
        if not self.case.cold:
            await self.sample(turn, next(self.bursts))
        short = turn.room.short
        wakeups = self.clients.wakeups()
        taken = [await self.sample(turn, burst) for burst in islice(self.bursts, self.case.calls)]
        samples.call.append([sample.call for sample in taken])
        samples.cpu.append([sample.cpu for sample in taken])
        samples.drained.append([sample.drained for sample in taken])
        if self.case.compression != "none":
            samples.octets.append([sample.octets for sample in taken])
        samples.short += turn.room.short - short
        if wakeups is not None:
            samples.wakeups.append((self.clients.wakeups() or wakeups) - wakeups)

    async def sample(self, turn: Turn, burst: Burst, *, at_once: bool = False) -> Sample:
        """Make one call of a method, and wait until all has arrived.

        Args:
            turn: The method.
            burst: The messages to send.
            at_once: Whether neither to cool caches down before the call nor to sleep after it.
        """
        turn.room.take(burst)
        before = self.clients.octets
        call = turn.call
        waits = inspect.iscoroutinefunction(call)
        told: tuple[int, int] | None = None
        if self.memory is not None and not at_once:
            assert self.memory[0] == self.memory[1]  # has to read both
        cpu = time.process_time_ns()
        start = time.perf_counter_ns()
        result = call()
        if waits:
            assert result is not None
            told = await result
        took = time.perf_counter_ns() - start
        if self.case.tick and not at_once and told is None:
            await asyncio.sleep(self.case.tick / 1000)
        cpu = time.process_time_ns() - cpu
        if told is not None:
            took, cpu = told
        arrival = await self.arrive(turn, 0.001 if self.case.tick and not at_once else 0)
        return Sample(took, cpu, arrival - start, (self.clients.octets - before) // self.case.clients)

    async def arrive(self, turn: Turn, pause: float = 0) -> int:
        """Wait until the clients have read all messages of a call; return when that was seen.

        Args:
            turn: The method that was called.
            pause: Seconds to sleep between two looks.

        Raises:
            UnfitError: If they read nothing for long, or more than was sent; or if a client has gone.
        """
        # The event loop runs meanwhile: it may have to send what the kernel has not taken at once. To sleep rather
        # than to spin would put the processor to rest, and each method to the trouble of waking it up.
        clients = self.clients
        self.expected += self.case.clients * self.case.burst
        seen, since = clients.octets, time.perf_counter_ns()
        while (messages := clients.messages) < self.expected:
            if turn.room.owed:
                turn.room.pay()
            now, octets = time.perf_counter_ns(), clients.octets
            if octets != seen:
                seen, since = octets, now
            elif now - since > PATIENCE * 10**9:
                raise UnfitError(
                    f"clients have read {messages} of {self.expected} messages, and nothing for {PATIENCE} seconds"
                )
            await asyncio.sleep(pause)
        arrival = time.perf_counter_ns()
        if messages > self.expected:
            more = messages - self.expected
            raise UnfitError(f"clients have read {messages} messages, {more} more than they should have been sent")
        return arrival

    async def try_clients(self, sender: str, turn: Turn) -> Verdict:
        """Find out how fast the clients read, and whether they keep up with the server."""
        drained = []
        for burst in islice(self.bursts, TRIALS):
            turn.room.take(burst)
            self.clients.stop()
            result = turn.call()
            sending = None if result is None else asyncio.create_task(result)
            if sending is not None:
                # It may wait for clients that have been stopped, if the sockets do not hold all of the message.
                await asyncio.wait((sending,), timeout=1)
            start = time.perf_counter_ns()
            self.clients.go_on()
            if sending is not None:
                await sending
            arrival = await self.arrive(turn)
            drained.append(arrival - start)
        together = [await self.sample(turn, burst, at_once=True) for burst in islice(self.bursts, TRIALS)]
        messages = self.case.clients * self.case.burst
        return Verdict(
            sender=sender,
            clients=messages,
            drained=messages * 1e9 / statistics.median(drained),
            size=round(statistics.mean(sample.octets for sample in together) / self.case.burst),
            behind=int(statistics.median(sample.drained - sample.call for sample in together)),
            call=int(statistics.median(sample.call for sample in together)),
        )


def main() -> None:
    """Measure the case in the first argument, and report to the command line by lines of JSON.

    After each step, and before the next, the command line answers with a line; until then it may draw its progress
    bar.
    """
    task = json.loads(sys.argv[1])
    case = Case.from_json(task["case"])

    def after_step() -> None:
        print(json.dumps({"step": 1}), flush=True)
        if not sys.stdin.readline():
            raise KeyboardInterrupt  # the command line is gone

    async def work() -> dict[str, Any]:
        result = await measure(case, task["processors"], after_step)
        return {"methods": result.methods, "verdict": result.verdict}

    run_and_report(case, work)


def run_and_report(case: Case, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Do some work in the event loop of a case, and report the result to the command line."""
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if case.loop == "uvloop":
        import uvloop

        loop_factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            result = runner.run(work())
    except UnfitError as exc:
        print(json.dumps({"error": str(exc)}), flush=True)
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        print(json.dumps({"result": result}, default=dataclasses.asdict), flush=True)


if __name__ == "__main__":
    main()
