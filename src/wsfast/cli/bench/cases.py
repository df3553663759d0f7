"""What is measured: methods, loops, cases, and the samples that come out."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from wsfast import _core_py
from wsfast._impl import core

__all__ = ["FEATURES", "LOOPS", "METHODS", "Case", "Result", "Samples", "Verdict", "combine", "extension_present"]

METHODS = {
    "floor": "a bare loop of send() in C over the same sockets",
    "wsfast": "wsfast.broadcast()",
    "wsfast-pure": "wsfast.broadcast() by its twin in plain Python",
    "websockets": "websockets.broadcast()",
    "picows": "broadcast() of picows.websockets, on connections of its own",
    "await": "await connection.send() in a loop",
    "tasks": "a task per client and message",
    "wait": "asyncio.wait() for a task per client and message",
    "queues": "a queue and a task per client",
    "pubsub": "a publish-subscribe stream and a task per client",
}
"""Methods, in the order in which they are shown, each with what it is."""

LOOPS = ("asyncio", "uvloop")

FEATURES = {"floor": "extension", "wsfast": "extension", "picows": "picows", "uvloop": "uvloop"}
"""What must be there for a method or a loop: a module, or the extension."""


def extension_present() -> bool:
    """Tell whether the core in use is the extension."""
    return core is not _core_py


@dataclass(frozen=True, slots=True)
class Case:
    """One setting under which all methods are measured, in a process of its own."""

    clients: int
    """Connections of websockets; also of picows, if that is among the methods."""
    size: int
    """Payload of a message in bytes."""
    loop: str
    type: str
    """`text` or `binary`."""
    methods: tuple[str, ...]
    rounds: int
    calls: int
    """Measured calls in each turn of a method; one before them is not measured."""
    collection: str
    """`list` or `set`."""
    sleep: bool = False
    """Whether the process of the clients sleeps when there is nothing to read."""

    def __str__(self) -> str:
        kept = "" if self.collection == "list" else f", in a {self.collection}"
        sleepy = ", clients that sleep" if self.sleep else ""
        return f"{self.clients} clients, {self.size} B {self.type}, {self.loop}{kept}{sleepy}"


def combine(
    *,
    clients: tuple[int, ...],
    sizes: tuple[int, ...],
    loops: tuple[str, ...],
    types: tuple[str, ...],
    methods: tuple[str, ...],
    rounds: int,
    calls: int,
    collection: str,
    sleep: bool,
) -> list[Case]:
    """Return one case for each combination."""
    ordered = tuple(name for name in METHODS if name in methods)
    return [
        Case(count, size, loop, kind, ordered, rounds, calls, collection, sleep)
        for loop, count, size, kind in itertools.product(loops, clients, sizes, types)
    ]


@dataclass(slots=True)
class Samples:
    """What was measured of one method: nanoseconds for each round and each call in it."""

    call: list[list[int]] = field(default_factory=list)
    """From the call until it returns; of a coroutine, until all its sends are done."""
    cpu: list[list[int]] = field(default_factory=list)
    """Processor time of the server meanwhile."""
    drained: list[list[int]] = field(default_factory=list)
    """From the call until the last byte is at its client."""
    wakeups: list[int] = field(default_factory=list)
    """For each round, how often the process of the clients fell asleep in all of its calls; empty if not known."""
    short: int = 0
    """Sends of the floor of which the kernel did not take everything."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who is the bottleneck, the server or its clients."""

    sender: str
    """The method that sent."""
    clients: int
    drained: float
    """Messages per second that the clients read, one from each connection, while the server does nothing."""
    size: int
    """Size of a frame in bytes."""
    behind: int
    """Nanoseconds from the end of a call until the last byte has arrived, with both at work: median."""
    call: int
    """Nanoseconds of such a call: median."""

    @property
    def sent(self) -> float:
        """Messages per second that the server sends meanwhile."""
        return self.clients * 1e9 / self.call

    @property
    def server(self) -> bool:
        """Whether the server is the bottleneck, as it must be: the clients end soon after it, at its highest speed."""
        # Some messages are always still on their way; 0.2 ms is what it may take to see that all have arrived.
        return self.behind <= max(self.call / 4, 200_000)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one case."""

    case: Case
    methods: dict[str, Samples]
    verdict: Verdict

    @classmethod
    def from_json(cls, case: Case, data: dict[str, Any]) -> Result:
        """Make it of what `dataclasses.asdict()` and JSON have made of another."""
        methods = {name: Samples(**samples) for name, samples in data["methods"].items()}
        return cls(case, methods, Verdict(**data["verdict"]))
