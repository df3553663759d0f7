"""The command line's side of the scenarios: what channels are for, each played in fresh processes.

- `stalled`: clients that never read, while the server publishes at full speed. All bytes of all clients that do read
  are compared with what was published. For the run without them, they are not connected.
- `conflate`: clients that read far less than they are sent; how old is what they read?
- `topics`: many channels, of which each client has subscribed to some.
- `frameworks`: FastAPI and aiohttp; the loop over all clients that their documentations have, and wsfast.
- `relay`: two processes, a broker, and the recipe of the documentation of websockets.
- `memory-subscriptions`: what a subscription takes of memory while hardly anything happens.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from .cases import Case
from .machine import UnfitError, describe, installed, reserve_descriptors, two_processors, versions

__all__ = ["SCENARIOS", "play"]

SCENARIOS = {
    "stalled": "1000 clients of which 50 never read, 20,000 messages of 1 KiB at full speed, with each policy",
    "conflate": "a client that reads 10 of 1,000 updates a second; the age of what it reads",
    "topics": "1000 topics, 1000 clients in 50 of them each, 20 ticks a second",
    "frameworks": "500 WebSockets of FastAPI under uvicorn, and of aiohttp: a loop of await, and wsfast.broadcast()",
    "relay": "from one process to another, by Redis and by NATS: messages a second, and how long one takes",
    "memory-subscriptions": "bytes of an idle subscription over 10,000 of them",
}
"""Scenarios, each with what it is."""

Row: TypeAlias = dict[str, Any]
Processors: TypeAlias = tuple[int, int] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Play:
    """One process of a scenario."""

    title: str
    module: str
    """Name of the module that is run."""
    task: dict[str, Any]

    def __str__(self) -> str:
        return self.title


def play(arguments: argparse.Namespace, loops: tuple[str, ...]) -> int:
    """Play the scenarios that the options ask for, and print a table for each."""
    from .report import deliver, find_files, of_processors, print_machine
    from .session import Progress, ask

    if sys.platform != "linux":
        raise UnfitError("scenarios are played on Linux only: they look at the memory, and watch by epoll")
    for option in ("chart", "memory"):
        if getattr(arguments, option) is not None:
            raise UnfitError(f"--{option} is not for scenarios")
    before = find_files(arguments, "scenarios")
    processors = two_processors()
    plans = [
        (name, loop, list(_PLANS[name](arguments, loop, processors))) for loop in loops for name in arguments.scenario
    ]
    print_machine(describe(), versions(), processors)
    played = []
    with Progress(sum(len(plan) for _, _, plan in plans), arguments.progress) as progress:
        for name, loop, plan in plans:
            rows: list[Row] = []
            for part in plan:
                progress.show(part)
                answer = ask(part.module, part, part.task, progress)
                rows += answer if isinstance(answer, list) else [answer]
                progress.advance()
            progress.clear()
            title = plan[0].title.partition(": ")[0]
            print(f"\n{name}: {title}, {loop}")
            _print_rows(name, rows)
            played.append(
                {"scenario": name, "loop": loop, "title": title, "tasks": [part.task for part in plan], "rows": rows}
            )
    content = {
        "machine": describe(),
        "versions": versions(),
        "processors": of_processors(processors),
        "scenarios": played,
    }
    deliver(arguments, content, before)
    return 0


def _print_rows(name: str, rows: Sequence[Row]) -> None:
    from .report import print_table
    from .tables import tell

    told = tell(name, rows)
    print_table(told.table)
    for line in (*told.warnings, told.legend):
        print(line)


# ---- What is to be done


def _case(clients: int, size: int, loop: str, kind: str = "binary") -> dict[str, Any]:
    reserve_descriptors(clients + 64, f"{clients} clients")
    return dataclasses.asdict(Case(clients, size, loop, kind, (), 1, 1, "list"))


def _clients(arguments: argparse.Namespace) -> int:
    """Return how many clients there are."""
    if arguments.clients is None:
        return 200 if arguments.quick else 1000
    if len(arguments.clients) > 1:
        raise UnfitError("a scenario is played with one number of clients")
    count: int = arguments.clients[0]
    return count


def _stalled(arguments: argparse.Namespace, loop: str, processors: Processors) -> Iterator[Play]:
    from .stalled import WAYS

    clients = _clients(arguments)
    if clients < 2:
        raise UnfitError("of the clients of scenario stalled, one at least never reads, and another one does")
    stalled = max(clients // 20, 1)
    messages = arguments.messages or (1000 if arguments.quick else 20_000)
    for way in WAYS:
        for asleep in (0, stalled):
            yield Play(
                f"{clients} clients, of which {stalled} never read, {messages} messages of 1 KiB: {way}, {asleep}",
                "stalled",
                {
                    "case": _case(clients - stalled + asleep, 1024, loop),
                    "way": way,
                    "stalled": asleep,
                    "messages": messages,
                    "processors": processors,
                },
            )


def _conflate(arguments: argparse.Namespace, loop: str, processors: Processors) -> Iterator[Play]:
    from .conflation import READ, RECEIVE_BUFFER, UPDATES
    from .numbered import KEYS

    seconds = arguments.seconds or (10 if arguments.quick else 60)
    yield Play(
        f"{READ} of {UPDATES} updates/s of 1 KiB over {KEYS} keys are read for {seconds} s, "
        f"SO_RCVBUF {RECEIVE_BUFFER} B",
        "conflation",
        {"case": _case(1, 1024, loop), "seconds": seconds, "processors": processors},
    )


def _topics(arguments: argparse.Namespace, loop: str, processors: Processors) -> Iterator[Play]:
    from .topics import FOLLOWED, RATE, WAYS

    clients = _clients(arguments)
    topics = arguments.topics or 1000
    seconds = arguments.seconds or (2 if arguments.quick else 10)
    for way in WAYS:
        yield Play(
            f"{topics} topics, {clients} clients in {min(FOLLOWED, topics)} each, {RATE} ticks/s for {seconds} s, "
            f"64 B: {way}",
            "topics",
            {
                "case": _case(clients, 64, loop, "text"),
                "way": way,
                "topics": topics,
                "seconds": seconds,
                "processors": processors,
            },
        )


def _memory_subscriptions(arguments: argparse.Namespace, loop: str, processors: Processors) -> Iterator[Play]:
    from .subscriptions import HOWS

    clients = _clients(arguments)
    for connections, channels in ((clients, 10), (10 * clients, 1)):
        try:
            case = _case(connections, 64, loop, "text")
        except UnfitError as exc:
            if channels > 1:
                raise
            print(f"Skipping {connections} connections in one channel: {exc}")
            return
        for how in HOWS:
            yield Play(
                f"{10 * clients} subscriptions: {connections} connections, {how}",
                "subscriptions",
                {"case": case, "channels": channels, "how": how, "processors": processors},
            )


def _frameworks(arguments: argparse.Namespace, loop: str, processors: Processors) -> Iterator[Play]:
    from .frameworks import FRAMEWORKS, STALLED

    clients = 500 if arguments.clients is None and not arguments.quick else _clients(arguments)
    for framework, (_, _, needed) in FRAMEWORKS.items():
        missing = [name for name in needed if not installed(name)]
        if missing:
            raise UnfitError(f"scenario frameworks needs {', '.join(missing)}; pip install wsfast[bench]")
        for compression in ("none", "deflate"):
            yield Play(
                f"{clients} clients, 256 B; then {STALLED} more that never read, 16 KiB: {framework}, {compression}",
                "frameworks",
                {
                    "case": {**_case(2 * clients + 2 * STALLED, 256, loop, "text"), "clients": clients}
                    | {"compression": compression},
                    "framework": framework,
                    "processors": processors,
                },
            )


def _relay(arguments: argparse.Namespace, loop: str, processors: Processors) -> Iterator[Play]:
    from .relays import TOPICS, WAYS

    for module in ("redis", "nats"):
        if not installed(module):
            raise UnfitError("scenario relay needs redis and nats-py; pip install wsfast[bench]")
    seconds = arguments.seconds or (1 if arguments.quick else 5)
    for broker, ways in WAYS.items():
        for way in ways:
            yield Play(
                f"{TOPICS} topics, 100 B, as fast as possible for {seconds} s: {broker}, {way}",
                "relays",
                {
                    "case": _case(0, 100, loop, "text"),
                    "broker": broker,
                    "way": way,
                    "seconds": seconds,
                    "processors": processors,
                },
            )


_PLANS: dict[str, Callable[[argparse.Namespace, str, Processors], Iterator[Play]]] = {
    "stalled": _stalled,
    "conflate": _conflate,
    "topics": _topics,
    "frameworks": _frameworks,
    "relay": _relay,
    "memory-subscriptions": _memory_subscriptions,
}
