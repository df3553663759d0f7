"""The process in which a server is whose memory is measured: its only one, so that nobody else's memory is in it.

The memory of the kernel for the sockets is not in it either.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
from contextlib import AsyncExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from .cases import WAYS, Case, Weight
from .clients import Clients
from .machine import bind_server
from .measure import Bench, Turn, make_room, run_and_report
from .methods import METHODS
from .servers import SERVE, admit
from .ticks import bursts

__all__ = ["MESSAGES", "main", "measure_memory"]

MESSAGES = 20
"""Broadcasts before the memory is measured: encoders that are made late have been made."""


async def measure_memory(case: Case, way: str, processors: tuple[int, int] | None) -> Weight:
    """Measure what connections take of this process's memory.

    Args:
        case: How many, and what they are sent.
        way: One of `WAYS`.
        processors: One for this process, one for that of the clients; None to bind neither.

    Raises:
        UnfitError: If clients cannot connect, or do not read what they are sent.
    """
    awake = bind_server(processors)
    server = WAYS[way].server
    async with AsyncExitStack() as stack:
        accepted: list[Any] = []
        port = await stack.enter_async_context(SERVE[server](case, accepted))
        clients = stack.enter_context(Clients(None if processors is None else processors[1]))
        before = resident()
        await admit(clients, case, port, accepted)
        # Those of the factory are connections of websockets, too.
        room = make_room(case, {"picows" if server == "picows" else "stock": accepted})
        call = await stack.enter_async_context(METHODS[WAYS[way].method].call(room))
        turn = Turn(call, room)
        await clients.drain(awake=awake and not case.sleep)
        bench = Bench(case, clients)
        for burst in islice(bursts(case, "run"), MESSAGES):
            await bench.sample(turn, burst)
        return Weight(case.clients, before, resident())


def resident() -> int:
    """Return how many bytes of this process are in memory, garbage not included."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    """Measure what is told in the first argument; run_and_report the command line by a line of JSON."""
    task = json.loads(sys.argv[1])
    case = Case.from_json(task["case"])
    run_and_report(case, lambda: measure_memory(case, task["way"], task["processors"]))


if __name__ == "__main__":
    main()
