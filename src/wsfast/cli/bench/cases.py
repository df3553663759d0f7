"""What is measured: methods, loops, cases, and the samples that come out."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from wsfast._core import _pure, core

__all__ = [
    "COMPRESSED",
    "FEATURES",
    "FLOORS",
    "LOOPS",
    "METHODS",
    "PATTERNS",
    "SERVERS",
    "WAYS",
    "Case",
    "Result",
    "Samples",
    "Verdict",
    "Weight",
    "combine",
    "extension_present",
]

METHODS = {
    "floor": "a bare loop of send() in C over the same sockets",
    "floor-served": "the same loop over connections of wsfast.serve()",
    "wsfast": "wsfast.broadcast()",
    "wsfast-served": "wsfast.broadcast(), on connections of wsfast.serve()",
    "channel": "publish() and flush() of a wsfast.Channel, on connections of wsfast.serve()",
    "channel-stock": "publish() and flush() of a wsfast.Channel, on stock connections",
    "audience": "broadcast() of a wsfast.Audience (with compression only)",
    "wsfast-pure": "wsfast.broadcast() by its twin in plain Python",
    "websockets": "websockets.broadcast()",
    "no-takeover": "websockets.broadcast(), each message compressed by itself, on connections of its own "
    "(with compression only)",
    "picows": "broadcast() of picows.websockets, on connections of its own",
    "await": "await connection.send() in a loop",
    "tasks": "a task per client and message",
    "wait": "asyncio.wait() for a task per client and message",
    "queues": "a queue and a task per client",
    "pubsub": "a publish-subscribe stream and a task per client",
}
"""Methods, in the order in which they are shown, each with what it is."""

COMPRESSED = frozenset({"audience", "no-takeover"})
"""Methods that mean nothing without compression."""

PATTERNS = frozenset({"await", "tasks", "wait", "queues", "pubsub"})
"""Methods that are left out of bursts: they send one message after the other, as ever."""

SERVERS = {
    "picows": "picows",
    "no-takeover": "no-takeover",
    "floor-served": "served",
    "wsfast-served": "served",
    "channel": "served",
}
"""Methods that have another server than most, and its name; the others share one, `stock`."""

FLOORS = {"floor-served": "floor-served", "wsfast-served": "floor-served", "channel": "floor-served"}
"""Methods whose efficiency is told against another floor, that of their own sockets, if it is measured."""

LOOPS = ("asyncio", "uvloop")

FEATURES = {
    "floor": "extension",
    "floor-served": "extension",
    "wsfast": "extension",
    "wsfast-served": "extension",
    "channel": "extension",
    "channel-stock": "extension",
    "audience": "extension",
    "picows": "picows",
    "uvloop": "uvloop",
    "deflate": "linux",
}
"""What must be there for a method, a loop or a compression: a module, the extension, or Linux."""

WAYS = {
    "websockets": "websockets.broadcast() on stock connections",
    "wsfast": "wsfast.broadcast() on stock connections",
    "wsfast-factory": "wsfast.broadcast() with extensions=[wsfast.ServerPerMessageDeflateFactory()] "
    "(with compression only)",
    "picows": "broadcast() of picows.websockets",
}
"""Servers of which the memory is measured, in the order in which they are shown, each with what it is."""


def extension_present() -> bool:
    """Tell whether the core in use is the extension."""
    return core is not _pure


@dataclass(frozen=True, slots=True)
class Case:
    """One setting under which all methods are measured, in a process of its own."""

    clients: int
    """Connections to each server."""
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
    compression: str = "none"
    """`none` or `deflate`."""
    burst: int = 1
    """Messages that are sent in one call."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Case:
        """Make it of what `dataclasses.asdict()` and JSON have made of another."""
        return cls(**{**data, "methods": tuple(data["methods"])})

    @property
    def steps(self) -> int:
        """How often the measurement tells that it has got on."""
        return self.rounds + (len(self.methods) if self.compression == "deflate" else 0)

    def __str__(self) -> str:
        kept = "" if self.collection == "list" else f", in a {self.collection}"
        sleepy = ", clients that sleep" if self.sleep else ""
        how = "" if self.compression == "none" else f", {self.compression}"
        many = "" if self.burst == 1 else f", bursts of {self.burst}"
        return f"{self.clients} clients, {self.size} B {self.type}{how}{many}, {self.loop}{kept}{sleepy}"


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
    compressions: tuple[str, ...],
    burst: int = 1,
) -> list[Case]:
    """Return one case for each combination, with those of the methods that mean something in it."""
    return [
        Case(
            count,
            size,
            loop,
            kind,
            tuple(
                name
                for name in METHODS
                if name in methods
                and (how != "none" or name not in COMPRESSED)
                and (burst == 1 or name not in PATTERNS)
            ),
            rounds,
            calls,
            collection,
            sleep,
            how,
            burst,
        )
        for loop, count, size, kind, how in itertools.product(loops, clients, sizes, types, compressions)
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
    octets: list[list[int]] = field(default_factory=list)
    """For each round and each call in it, bytes that one client was sent; with compression only."""
    run: list[int] = field(default_factory=list)
    """The same for each call of a run in which no other method takes turns; with compression only."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who is the bottleneck, the server or its clients."""

    sender: str
    """The method that sent."""
    clients: int
    """Messages that are sent in a call: as many as there are clients, times those of a burst."""
    drained: float
    """Messages per second that the clients read, one from each connection, while the server does nothing."""
    size: int
    """Size of a frame in bytes; with compression, the mean."""
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


@dataclass(frozen=True, slots=True)
class Weight:
    """What connections take of the memory of a server's process."""

    clients: int
    before: int
    """Resident bytes right before the clients connect."""
    after: int
    """Resident bytes when all of them are connected and have been sent a few messages."""

    @property
    def each(self) -> float:
        """Bytes for each connection."""
        return (self.after - self.before) / self.clients
