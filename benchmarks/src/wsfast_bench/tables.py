"""What a scenario comes to: a table, what one is to be warned of, what the columns mean, and bars for a chart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["Bars", "Told", "draw", "tell"]

Row: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Told:
    """What is told of a scenario."""

    table: list[list[str]]
    """Rows of cells, of which the first are the heads."""
    warnings: list[str]
    legend: str
    """What the heads mean."""


@dataclass(frozen=True, slots=True)
class Bars:
    """What one chart shows of a scenario."""

    quantity: str
    """What the numbers are, with their unit."""
    bars: list[tuple[str, str, float]]
    """Of each bar, its label, the method, and the number."""


def tell(scenario: str, rows: Sequence[Row]) -> Told:
    """Return what is told of the rows of a scenario."""
    return _TELLERS[scenario](rows)


def draw(scenario: str, rows: Sequence[Row]) -> Bars:
    """Return what is drawn of them."""
    quantity, key, label = _CHARTS[scenario]
    bars = [
        (label.format_map(row), str(row.get("way", row.get("how"))), row[key]) for row in rows if row[key] is not None
    ]
    return Bars(quantity, bars)


def _tell_stalled(rows: Sequence[Row]) -> Told:
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
    warnings = []
    for row in rows:
        if row["messages"] < row["asked"]:
            warnings.append(
                f"{row['way']} with {row['stalled']} stalled: ended after {row['messages']} of {row['asked']} "
                f"messages, when the memory had grown by {LIMIT >> 20} MiB"
            )
        if row["clients"]["complete"] < row["clients"]["live"]:
            told = row["clients"]
            warnings.append(
                f"WARNING: {row['way']} with {row['stalled']} stalled: of {told['live']} clients that read, "
                f"{told['wrong']} got other bytes than they should, {told['short']} too few; "
                f"{told['closed']} were closed"
            )
    return Told(
        table,
        warnings,
        "p50, p99: of a publish() and flush(), or a broadcast(). p99 ratio: to that without the stalled clients,\n"
        "which are not connected then. grown: resident memory, from right before the first message to its highest.\n"
        "dropped, conflated: of all clients. in order: of the clients that read, those that got every message in\n"
        "order; every byte is compared. A client that is behind for a moment is conflated, too.",
    )


def _tell_conflate(rows: Sequence[Row]) -> Told:
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
    return Told(
        table,
        [],
        "age, oldest: seconds from publishing to reading, of the last 10 messages read slowly: median, most.\n"
        "read fast: messages that were read after that. newest of keys: keys with whose newest value the client ends.",
    )


def _tell_topics(rows: Sequence[Row]) -> Told:
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
    return Told(
        table,
        [],
        "messages: delivered, all of them have arrived. CPU: of the server in its ticks, until all is written or\n"
        "waits. ticks/s: fewer than 20 if a tick takes longer.",
    )


def _tell_frameworks(rows: Sequence[Row]) -> Told:
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
    return Told(
        table,
        [],
        "loop: `for connection in connections: await connection.send_text(message)`, on a stock server; wsfast on one\n"
        "with its protocol class (FastAPI) or a stock one (aiohttp); floor: a bare loop of send() in C over the same\n"
        "sockets. us/client: of a call, median; in turns.",
    )


def _tell_relay(rows: Sequence[Row]) -> Told:
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
    return Told(
        table,
        [],
        "recipe: await publish(), one message after the other, and whatever the library iterates with. us: CPU per\n"
        "message of that process. p50, p99: from publishing to receiving, 500 messages/s. The broker has no processor\n"
        "of its own here, if there are only two.",
    )


def _tell_memory_subscriptions(rows: Sequence[Row]) -> Told:
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
    return Told(
        table,
        [],
        "subscribed: right after subscribe(); B/subscription: after a message in each channel, too. resident: pages\n"
        "of the process, which may have had room for some; traced: by tracemalloc, what Python's allocators gave out.",
    )


_TELLERS: dict[str, Callable[[Sequence[Row]], Told]] = {
    "stalled": _tell_stalled,
    "conflate": _tell_conflate,
    "topics": _tell_topics,
    "frameworks": _tell_frameworks,
    "relay": _tell_relay,
    "memory-subscriptions": _tell_memory_subscriptions,
}

_CHARTS = {
    "stalled": ("99th percentile of a call, ms", "p99", "{way}, {stalled} stalled"),
    "conflate": ("age of the last messages that are read slowly, s (median)", "age", "{way}"),
    "topics": ("processor time of the server, us per message", "cpu", "{way}"),
    "frameworks": ("call, us per client (median)", "call", "{framework}, {compression}, {way}"),
    "relay": ("messages per second", "rate", "{broker}, {way}"),
    "memory-subscriptions": ("bytes per subscription", "each", "{connections} x {channels}, {how}"),
}
"""For each scenario: what is drawn, its name in a row, and the label of a bar."""
