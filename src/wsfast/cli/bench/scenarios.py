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
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from wsfast.cli.machine import UnfitError, describe, installed, reserve_descriptors, two_processors, versions

from .cases import Case

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
    from .report import print_machine
    from .session import Progress, ask

    if sys.platform != "linux":
        raise UnfitError("scenarios are played on Linux only: they look at the memory, and watch by epoll")
    for option in ("chart", "memory"):
        if getattr(arguments, option) is not None:
            raise UnfitError(f"--{option} is not for scenarios")
    path: Path | None = arguments.json
    if path is not None and not path.absolute().parent.is_dir():
        raise UnfitError(f"there is no directory {path.absolute().parent}")
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
            print(f"\n{name}: {plan[0].title.partition(': ')[0]}, {loop}")
            _PRINTERS[name](rows)
            played.append({"scenario": name, "loop": loop, "tasks": [part.task for part in plan], "rows": rows})
    if path is not None:
        content = {
            "machine": describe(),
            "versions": versions(),
            "processors": None if processors is None else {"server": processors[0], "clients": processors[1]},
            "scenarios": played,
        }
        path.write_text(json.dumps(content, indent=1) + "\n")
    return 0


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


# ---- Tables


def _print_stalled(rows: Sequence[Row]) -> None:
    from .report import print_table
    from .stalled import LIMIT

    table = [["method", "stalled", "messages", "messages/s", "p50 ms", "p99 ms", "p99 ratio", "grown MiB"]]
    table[0] += ["disconnected", "dropped", "conflated", "in order"]
    alone = {row["way"]: row for row in rows if not row["stalled"]}
    for row in rows:
        clients: Mapping[str, int] = row["clients"]
        table.append(
            [
                row["way"],
                str(row["stalled"]),
                str(row["messages"]),
                f"{row['rate']:.0f}",
                f"{row['p50']:.2f}",
                f"{row['p99']:.2f}",
                f"{row['p99'] / alone[row['way']]['p99']:.2f}" if row["stalled"] else "-",
                f"{row['grown'] / 2**20:.1f}",
                str(row["disconnected"]),
                str(row["dropped"]),
                str(row["conflated"]),
                f"{clients['complete']}/{clients['live']}",
            ]
        )
    print_table(table)
    for row in rows:
        if row["messages"] < row["asked"]:
            print(
                f"{row['way']} with {row['stalled']} stalled: ended after {row['messages']} of {row['asked']} "
                f"messages, when the memory had grown by {LIMIT >> 20} MiB"
            )
        if row["clients"]["complete"] < row["clients"]["live"]:
            told = row["clients"]
            print(
                f"WARNING: {row['way']} with {row['stalled']} stalled: of {told['live']} clients that read, "
                f"{told['wrong']} got other bytes than they should, {told['short']} too few; "
                f"{told['closed']} were closed"
            )
    print(
        "p50, p99: of a publish() and flush(), or a broadcast(). p99 ratio: to that without the stalled clients,\n"
        "which are not connected then. grown: resident memory, from right before the first message to its highest.\n"
        "dropped, conflated: of all clients. in order: of the clients that read, those that got every message in\n"
        "order; every byte is compared. A client that is behind for a moment is conflated, too."
    )


def _print_conflate(rows: Sequence[Row]) -> None:
    from .report import print_table

    table = [["method", "published", "s", "read", "age s", "oldest s", "read fast", "newest of keys", "disordered"]]
    table += [
        [
            row["way"],
            str(row["published"]),
            f"{row['seconds']:.1f}",
            str(row["read"]),
            "-" if row["age"] is None else f"{row['age']:.2f}",
            "-" if row["oldest"] is None else f"{row['oldest']:.2f}",
            str(row["more"]),
            f"{row['newest']}/{row['keys']}",
            str(row["disordered"]),
        ]
        for row in rows
    ]
    print_table(table)
    print(
        "age, oldest: seconds from publishing to reading, of the last 10 messages read slowly: median, most.\n"
        "read fast: messages that were read after that. newest of keys: keys with whose newest value the client ends."
    )


def _print_topics(rows: Sequence[Row]) -> None:
    from .report import print_table

    reference = next((row["cpu"] for row in rows if row["way"] == "websockets"), None)
    table = [["method", "ticks/s", "messages", "CPU us/message", "CPU ms/tick", "x websockets"]]
    table += [
        [
            row["way"],
            f"{row['rate']:.1f}",
            str(row["deliveries"]),
            f"{row['cpu']:.3f}",
            f"{row['busy']:.1f}",
            "-" if reference is None else f"{reference / row['cpu']:.2f}",
        ]
        for row in rows
    ]
    print_table(table)
    print(
        "messages: delivered, all of them have arrived. CPU: of the server in its ticks, until all is written or\n"
        "waits. ticks/s: fewer than 20 if a tick takes longer."
    )


def _print_frameworks(rows: Sequence[Row]) -> None:
    from .report import print_table

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
    print_table(table)
    print(
        "loop: `for connection in connections: await connection.send_text(message)`, on a stock server; wsfast on one\n"
        "with its protocol class (FastAPI) or a stock one (aiohttp); floor: a bare loop of send() in C over the same\n"
        "sockets. us/client: of a call, median; in turns."
    )


def _print_relay(rows: Sequence[Row]) -> None:
    from .report import print_table

    table = [["broker", "method", "messages", "messages/s", "publisher us", "receiver us", "p50 ms", "p99 ms"]]
    table += [
        [
            row["broker"],
            row["way"],
            str(row["messages"]),
            f"{row['rate']:.0f}",
            f"{row['publisher']:.1f}",
            f"{row['receiver']:.1f}",
            f"{row['p50'] * 1e3:.2f}",
            f"{row['p99'] * 1e3:.2f}",
        ]
        for row in rows
    ]
    print_table(table)
    print(
        "recipe: await publish(), one message after the other, and whatever the library iterates with. us: CPU per\n"
        "message of that process. p50, p99: from publishing to receiving, 500 messages/s. The broker has no processor\n"
        "of its own here, if there are only two."
    )


def _print_memory_subscriptions(rows: Sequence[Row]) -> None:
    from .report import print_table

    table = [["connections", "channels", "subscriptions", "measured", "subscribed B", "B/subscription"]]
    table += [
        [
            str(row["connections"]),
            str(row["channels"]),
            str(row["subscriptions"]),
            row["how"],
            f"{row['subscribed']:.0f}",
            f"{row['each']:.0f}",
        ]
        for row in rows
    ]
    print_table(table)
    print(
        "subscribed: right after subscribe(); B/subscription: after a message in each channel, too. resident: pages\n"
        "of the process, which may have had room for some; traced: by tracemalloc, what Python's allocators gave out."
    )


_PRINTERS: dict[str, Callable[[Sequence[Row]], None]] = {
    "stalled": _print_stalled,
    "conflate": _print_conflate,
    "topics": _print_topics,
    "frameworks": _print_frameworks,
    "relay": _print_relay,
    "memory-subscriptions": _print_memory_subscriptions,
}
