"""The cases that are measured, and their samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["WAYS", "Case", "Result", "Samples", "Verdict", "Way", "Weight"]


@dataclass(frozen=True, slots=True)
class Way:
    """A server whose memory is measured."""

    help: str
    server: str
    method: str
    """The method that sends to its connections."""


WAYS = {
    "websockets": Way("websockets.broadcast() on stock connections", "stock", "websockets"),
    "wsfast": Way("wsfast.broadcast() on stock connections", "stock", "wsfast"),
    "wsfast-factory": Way(
        "wsfast.broadcast() with extensions=[wsfast.ServerPerMessageDeflateFactory()] (only with compression)",
        "wsfast-factory",
        "wsfast",
    ),
    "picows": Way("broadcast() of picows.websockets", "picows", "picows"),
}
"""Servers whose memory is measured, in the order in which they are shown."""


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
    """Measured calls in each turn of a method; one before them is not measured, unless caches are cold."""
    collection: str
    """`list` or `set`."""
    sleep: bool = False
    """Whether the process of the clients sleeps when there is nothing to read."""
    compression: str = "none"
    """`none` or `deflate`."""
    burst: int = 1
    """Messages that are sent in one call."""
    keepalive: bool = False
    """Whether servers send pings, which the clients answer."""
    cold: bool = False
    """Whether the server walks through more memory than the caches hold before each call."""
    tick: int = 0
    """Milliseconds that the server sleeps after each call; 0 not to sleep, but to wait for the clients only."""
    threads: int = 1
    """Threads that wsfast sends with."""
    tls: bool = False
    """Whether the servers and clients talk over TLS. Then there must be no compression, and no pings."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Case:
        """Make it of what `dataclasses.asdict()` and JSON have made of another."""
        return cls(**{**data, "methods": tuple(data["methods"])})

    @property
    def apart(self) -> bool:
        """Whether each method has connections of its own: shared ones would be in the caches still, for the second."""
        return self.cold or self.tick > 0

    @property
    def figure(self) -> Literal["call", "cpu"]:
        """Which samples methods are judged by."""
        return "cpu" if self.tick else "call"

    @property
    def steps(self) -> int:
        """How often the measurement tells that it has got on."""
        return self.rounds + (len(self.methods) if self.compression == "deflate" else 0)

    def __str__(self) -> str:
        kept = "" if self.collection == "list" else f", in a {self.collection}"
        sleepy = ", clients that sleep" if self.sleep else ""
        how = ("" if self.compression == "none" else f", {self.compression}") + (", TLS" if self.tls else "")
        many = "" if self.burst == 1 else f", bursts of {self.burst}"
        state = ", cold caches" if self.cold else ""
        state += f", a tick every {self.tick} ms" if self.tick else ""
        state += f", {self.threads} threads" if self.threads > 1 else ""
        state += "" if self.keepalive else ", no keepalive"
        return f"{self.clients} clients, {self.size} B {self.type}{how}{many}, {self.loop}{kept}{sleepy}{state}"


@dataclass(slots=True)
class Samples:
    """The samples of one method: nanoseconds for each round and each call in it."""

    call: list[list[int]] = field(default_factory=list)
    """From the call until it returns; of a coroutine, until all its sends are done."""
    cpu: list[list[int]] = field(default_factory=list)
    """Processor time of the server meanwhile, of all its threads; with ticks, until the next one."""
    drained: list[list[int]] = field(default_factory=list)
    """From the call until the last byte is at its client; with ticks, it is not looked at before the next one."""
    wakeups: list[int] = field(default_factory=list)
    """For each round, how often the process of the clients fell asleep in all of its calls; empty if not known."""
    short: int = 0
    """Sends of the floor that the kernel did not take completely."""
    octets: list[list[int]] = field(default_factory=list)
    """For each round and each call in it, bytes that one client was sent; with compression only."""
    run: list[int] = field(default_factory=list)
    """The same for each call of a run in which no other method takes turns; with compression only."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The bottleneck: the server or its clients."""

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
    """The result of one case."""

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
    """The memory that connections take in the process of a server."""

    clients: int
    before: int
    """Resident bytes right before the clients connect."""
    after: int
    """Resident bytes when all of them are connected and have been sent a few messages."""

    @property
    def each(self) -> float:
        """Bytes for each connection."""
        return (self.after - self.before) / self.clients
