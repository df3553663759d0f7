"""The process of a server with two clients that read far less than they are sent: one conflates, one is not bounded."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import statistics
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

from websockets.asyncio.server import broadcast as websockets_broadcast

import wsfast

from .cases import Case
from .measure import tell
from .numbered import KEYS, Numbered
from .reading import Reading
from .servers import SERVE, keep

__all__ = ["READ", "UPDATES", "main", "publish_to_slow"]

UPDATES = 1000
"""Messages that are published in a second."""

READ = 10
"""Messages that a client reads in a second."""

RECEIVE_BUFFER = 8192
"""SO_RCVBUF of a client."""

LAST = 10
"""Messages at the end of which the age is told."""


async def publish_to_slow(case: Case, seconds: float, processors: tuple[int, int] | None) -> list[dict[str, Any]]:
    """Publish for some seconds to both clients, then have them read all.

    Args:
        case: The size of a message.
        seconds: How long.
        processors: One for this process, one for that of the clients; None if they are not to be bound.

    Raises:
        UnfitError: If clients cannot connect.
    """
    if processors is not None:
        os.sched_setaffinity(0, {processors[0]})
    numbered = Numbered(case.size)
    async with AsyncExitStack() as stack:
        served: list[Any] = []
        stock: list[Any] = []
        ports = [
            await stack.enter_async_context(SERVE["served"](case, served)),
            await stack.enter_async_context(SERVE["stock"](case, stock)),
        ]
        readers = stack.enter_context(Reading(None if processors is None else processors[1]))
        for port, accepted in zip(ports, (served, stock), strict=True):
            await readers.ask(f"connect {port} 1 {RECEIVE_BUFFER}")
            await keep(accepted, 1)
        channel = wsfast.Channel("conflate", slow=wsfast.Conflate())
        channel.subscribe(served[0])
        await readers.ask(f"trickle {case.size} {READ}")
        start = time.monotonic()
        for number in range(round(seconds * UPDATES)):
            await asyncio.sleep(max(start + number / UPDATES - time.monotonic(), 0))
            payload = numbered.payload(number, time.monotonic())
            channel.publish(payload, key=number % KEYS)
            websockets_broadcast(stock, payload)
        took = time.monotonic() - start
        channel.flush()
        told = await readers.ask(f"hurry {round(seconds * UPDATES)}")
        rows = []
        for way, answer in zip(("Conflate", "websockets"), told, strict=True):
            last = answer["slow"][-LAST:]
            rows.append(
                {
                    "way": way,
                    "seconds": took,
                    "published": round(seconds * UPDATES),
                    "read": len(answer["slow"]),
                    "age": statistics.median(last) if last else None,
                    "oldest": max(last) if last else None,
                    "more": answer["read"] - len(answer["slow"]),
                    "newest": answer["newest"],
                    "keys": answer["keys"],
                    "disordered": answer["disordered"],
                    "ages": answer["slow"],
                }
            )
        return rows


def main() -> None:
    """Do what is told in the first argument; tell the command line by a line of JSON."""
    task = json.loads(sys.argv[1])
    case = Case.from_json(task["case"])
    logging.getLogger("wsfast").setLevel(logging.ERROR)  # that clients do not keep up is what was asked for
    tell(case, lambda: publish_to_slow(case, task["seconds"], task["processors"]))


if __name__ == "__main__":
    main()
