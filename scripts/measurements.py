"""Write the figures of README.md and docs/ from the runs in docs/measurements.

    python scripts/measurements.py            # write them
    python scripts/measurements.py --check    # only say which pages are out of date
    python scripts/measurements.py --report report.html    # one report page of all runs

`python scripts/measure.py` makes the runs. Two kinds of marks say what belongs where on a page. A table stands between

    <!-- begin: NAME, written by scripts/measurements.py -->
    <!-- end -->

where NAME is one of `TABLES`. A figure in a sentence stands right before a comment that says what it is

    1.90<!-- figure: RUN KEY=VALUE... VALUE -->

RUN is a file of docs/measurements without its suffix. KEY=VALUE... choose one row of the run, for example
`method=wsfast clients=1000 loop=asyncio`. VALUE is a number of that row, for example `faster`; `min(faster)` and
`max(faster)` look at several rows. It may be divided by a unit, `grown/MiB`, and end with a format, `call:.1f`;
`rate:2s` is two significant digits. Needs wsfast-bench.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from wsfast_bench.page import render
from wsfast_bench.report import describe_machine
from wsfast_bench.scenarios import SCENARIOS

ROOT = Path(__file__).parents[1]
MEASUREMENTS = ROOT / "docs" / "measurements"
README = ROOT / "README.md"

TABLE = re.compile(
    r"(<!-- begin: (?:([\w-]+), )?written by scripts/measurements\.py -->\n)(.*?)(<!-- end -->)", re.DOTALL
)
FIGURE = re.compile(r"((?:\d[\d.,]*%?)?)(<!-- figure:\s+([^>]*?)\s+-->)")
VALUE = re.compile(r"(?:(min|max)\((\w+)\)|(\w+))(?:/(\w+))?(?::(\S+))?")
UNITS = {"KiB": 2**10, "MiB": 2**20, "thousand": 1e3, "ms": 1e-3}

NAMES = {
    "websockets": "`websockets.broadcast()`",
    "picows": "`broadcast()` of `picows.websockets`",
    "wsfast": "**`wsfast.broadcast()`**",
    "wsfast-served": "**`wsfast.broadcast()` with `wsfast.serve()`**",
    "channel": "**`wsfast.Channel`**",
    "channel-stock": "**`wsfast.Channel`, stock connections**",
    "hub": "**`wsfast.Hub`**",
    "hub-stock": "**`wsfast.Hub`, stock connections**",
    "wsfast-pure": "`wsfast.broadcast()` in plain Python",
    "node": "`ws` in Node, one frame for all",
    "floor": "*bare loop of `send()` in C*",
    "await": "`await connection.send()` in a loop",
    "tasks": "a task for each message",
    "wait": "`asyncio.wait()` for these tasks",
    "queues": "a queue and a task for each client",
    "pubsub": "a publish-subscribe stream and a task for each client",
    "no-takeover": "`websockets.broadcast()`, no context takeover",
}
"""What methods are called on the pages."""

Row: TypeAlias = Mapping[str, Any]
Column: TypeAlias = tuple[str, Callable[[Row], str]]


# ---- The runs


@functools.cache
def load(run: str) -> dict[str, Any]:
    """Return what docs/measurements has of one run.

    Raises:
        ValueError: If there is no such file.
    """
    path = MEASUREMENTS / f"{run}.json"
    if not path.exists():
        raise ValueError(f"there is no {path.relative_to(ROOT)}; python scripts/measure.py {run}")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def flatten(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a run: one for each method of each case, each server of `--memory`, each row of a scenario."""
    rows: list[dict[str, Any]] = []
    for entry in content.get("cases", ()):
        for name, method in entry["methods"].items():
            rows.append(entry["case"] | method["summary"] | {"method": name})
    for entry in content.get("memory", ()):
        for name, weight in entry["servers"].items():
            grown = weight["after"] - weight["before"]
            rows.append(entry["case"] | weight | {"method": name, "grown": grown})
    for entry in content.get("scenarios", ()):
        rows += ({"loop": entry["loop"], "method": row.get("way"), **row} for row in entry["rows"])
    return rows


def rows_of(run: str, **wanted: object) -> list[dict[str, Any]]:
    """Return the rows of a run that have these values."""
    return [row for row in flatten(load(run)) if all(str(row.get(key)) == str(value) for key, value in wanted.items())]


def cell(run: str, tell: Callable[[Row], str], **wanted: object) -> str:
    """Return what is told of the only row with these values, or a dash if there is none.

    Raises:
        ValueError: If there are several.
    """
    rows = rows_of(run, **wanted)
    if len(rows) > 1:
        raise ValueError(f"{run} has {len(rows)} rows with {wanted}")
    return tell(rows[0]) if rows else "-"


# ---- Figures in sentences


def figure(text: str) -> str:
    """Return the figure that a mark asks for.

    Raises:
        ValueError: If the runs do not have it, or the mark cannot be understood.
    """
    run, *parts = text.split()
    found = VALUE.fullmatch(parts.pop()) if parts else None
    if found is None or not all("=" in part for part in parts):
        raise ValueError(f"cannot understand the figure {text!r}")
    several, *names, unit, form = found.groups()
    name = next(filter(None, names))
    rows = rows_of(run, **dict(part.split("=", 1) for part in parts))
    values = [row[name] for row in rows if row.get(name) is not None]
    if not values or (several is None and len(values) > 1):
        raise ValueError(f"the figure {text!r} is in {len(values)} rows of {run}")
    value = (max if several == "max" else min)(values) / UNITS.get(unit, 1)
    if unit is not None and unit not in UNITS:
        raise ValueError(f"unknown unit in the figure {text!r}")
    return significant(value, int(form[:-1])) if form and form.endswith("s") else format(value, form or ".2f")


def significant(value: float, digits: int) -> str:
    """Return a number with that many significant digits."""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if rounded == int(rounded) else f"{rounded:g}"


# ---- Tables


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the first of which are the heads, as a table in Markdown."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def table(rows: Iterable[Row], *columns: Column) -> str:
    """Return a table with these columns."""
    return markdown([[head for head, _ in columns], *([tell(row) for _, tell in columns] for row in rows)])


def method(row: Row) -> str:
    """Return what the method of a row is called."""
    return NAMES.get(row["method"], f"`{row['method']}`")


def number(key: str, form: str = ".2f", unit: float = 1) -> Callable[[Row], str]:
    """Return what tells a number of a row."""
    return lambda row: "-" if row.get(key) is None else format(row[key] if unit == 1 else row[key] / unit, form)


def with_ratio(key: str, form: str = ".2f", ratio: str = "faster") -> Callable[[Row], str]:
    """Return what tells a number of a row, and in brackets its ratio to websockets, except for websockets itself."""

    def tell(row: Row) -> str:
        told = "" if row.get(ratio) is None or row["method"] == "websockets" else f" ({row[ratio]:.2f})"
        return number(key, form)(row) + told

    return tell


TABLES: dict[str, Callable[[Path], str]] = {}
"""Tables by their names in marks; each is told on which page it stands."""


def named(name: str, *runs: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Make a function the one that writes a table. Below it, all pages except README say how it was measured."""

    def register(function: Callable[[], str]) -> Callable[[], str]:
        TABLES[name] = lambda page: function() + ("" if page == README else sources(runs, page))
        return function

    return register


def sources(runs: Iterable[str], page: Path) -> str:
    """Return how runs were made, with links from a page to their files."""
    lines = []
    for run in runs:
        content = load(run)
        link = os.path.relpath(MEASUREMENTS / f"{run}.json", page.parent)
        note = f", {content['note']}" if "note" in content else ""
        made = f"wsfast {content['versions']['wsfast']}, {content['when'][:10]}{note}"
        lines.append(f"[{run}.json]({link}): `{content['command']}` ({made})")
    return "\n" + "<br>\n".join(lines) + "\n" if lines else ""


def cases_of(run: str) -> list[Mapping[str, Any]]:
    """Return the cases of a run, in its order."""
    return [entry["case"] for entry in load(run)["cases"]]


SHOWN = ("websockets", "picows", "wsfast", "wsfast-served", "channel")


@named("broadcast", "broadcast")
def broadcast() -> str:
    """Return the time of a broadcast: a row for each method, a column for each case, and the efficiencies."""
    cases = [{key: case[key] for key in ("clients", "loop")} for case in cases_of("broadcast")]
    rows = [["us per client", *(f"{case['clients']} clients, {case['loop']}" for case in cases)]]
    for name in (*SHOWN, "floor"):
        told = with_ratio("call")
        rows.append([NAMES[name], *(cell("broadcast", told, method=name, **case) for case in cases)])
    for name in ("wsfast", "wsfast-served", "channel"):
        told = number("efficiency")
        efficiencies = (cell("broadcast", told, method=name, **case) for case in cases)
        rows.append([f"efficiency: {NAMES[name].replace('*', '')}", *efficiencies])
    return markdown(rows)


@named("octets", "wire", "memory")
def octets() -> str:
    """Return time, size on the wire, and memory with compression."""
    case = load("wire")["scenarios"][0]["tasks"][0]["case"]
    weighed = {"websockets": "websockets", "picows": "picows", "wsfast": "wsfast-factory"}
    clients = cases_of_memory()["clients"]
    heads = ["", "us per client", "bytes, to all", "to random halves", "to all, private messages between"]
    rows = [[*heads, f"MiB for {clients} clients"]]
    for name in ("websockets", "picows", "wsfast", "channel"):
        cells = [cell("wire", with_ratio("call"), variant="all", method=name)]
        told = with_ratio("octets", ".0f", "share")
        cells += (cell("wire", told, variant=variant, method=name) for variant in ("all", "halves", "private"))
        cells.append(cell("memory", number("grown", ".0f", 2**20), method=weighed.get(name)))
        rows.append([NAMES[name], *cells])
    return (
        f"JSON ticks of {case['size']} bytes, {case['clients']} clients, asyncio, one thread. Bytes are per client and "
        "message, frame headers included.\nIn brackets: times as fast as websockets, times as many bytes as websockets."
        "\n\n" + markdown(rows)
    )


def cases_of_memory() -> Mapping[str, Any]:
    """Return the case in which the memory of servers was measured."""
    case: Mapping[str, Any] = load("memory")["memory"][0]["case"]
    return case


OVERVIEW = ("websockets", "picows", "wsfast", "channel")
"""Methods in the table of README."""


@named("overview")
def overview() -> str:
    """Return one table for README: one core, several cores, compression, slow clients; a column for each method."""

    def cells(run: str, tell: Callable[[Row], str], **wanted: object) -> list[str]:
        return [cell(run, tell, method=name, **wanted) for name in OVERVIEW]

    def head(told: str) -> list[str]:
        return [f"**{told}**", *([""] * len(OVERVIEW))]

    one = {"clients": 1000, "loop": "asyncio"}
    threads = max(row["threads"] for row in rows_of("cores"))
    several = [
        cell("cores", number("call"), method=name, threads=threads if name in ("wsfast", "channel") else 1)
        for name in OVERVIEW
    ]
    weights = [
        cell("memory", number("grown", ".0f", 2**20), method="wsfast-factory" if name == "wsfast" else name)
        for name in OVERVIEW
    ]
    size = load("wire")["scenarios"][0]["tasks"][0]["case"]["size"]
    bytes_sent = with_ratio("octets", ".0f", "share")
    stalled = [row for row in rows_of("stalled") if row["stalled"]]
    ours = [row["grown"] / 2**20 for row in stalled if row["method"] != "websockets"]
    theirs = next(row["grown"] / 2**20 for row in stalled if row["method"] == "websockets")
    grown = {"websockets": f"{theirs:.0f}", "channel": f"{min(ours):.0f} to {max(ours):.0f}"}
    asleep, messages = stalled[0]["stalled"], stalled[0]["asked"]
    return markdown(
        [
            ["", *(NAMES[name] for name in OVERVIEW)],
            head("time of a call, us per client"),
            ["1000 clients, one thread", *cells("broadcast", with_ratio("call"), **one)],
            ["4000 clients, one thread", *cells("broadcast", with_ratio("call"), **(one | {"clients": 4000}))],
            [f"1000 clients, {threads} threads, on the same cores as the clients", *several],
            ["1000 clients, compressed", *cells("wire", with_ratio("call"), variant="all")],
            head("efficiency"),
            ["1000 clients, one thread", *cells("broadcast", number("efficiency"), **one)],
            head(f"bytes sent per client for a compressed message of {size} bytes"),
            ["all clients get the same messages", *cells("wire", bytes_sent, variant="all")],
            ["each message goes to a random half", *cells("wire", bytes_sent, variant="halves")],
            head("memory of the server, MiB"),
            ["1000 clients, with compression", *weights],
            [
                f"{asleep} clients stop reading: growth after {messages:,} messages of 1 KiB",
                *(grown.get(name, "-") for name in OVERVIEW),
            ],
        ]
    )


@named("machine")
def machine() -> str:
    """Return on what was measured: machines and versions of all runs, each once."""
    lines: dict[str, list[str]] = {}
    for path in sorted(MEASUREMENTS.glob("*.json")):
        content = load(path.stem)
        versions = {name: version for name, version in content["versions"].items() if name not in ("node", "ws")}
        lines.setdefault("; ".join(describe_machine(content["machine"], versions, None)[:2]), []).append(path.stem)
    if len(lines) == 1:
        return f"{next(iter(lines))}.\n"
    return "".join(f"- {line}: {', '.join(runs)}.\n" for line, runs in lines.items())


@named("memory", "memory")
def memory() -> str:
    """Return the memory of servers."""
    told = {
        "websockets": "websockets",
        "wsfast": "`wsfast.broadcast()`, stock connections",
        "wsfast-factory": "the same with `wsfast.ServerPerMessageDeflateFactory`",
        "picows": "picows",
    }
    return table(
        rows_of("memory"),
        ("server", lambda row: told[row["method"]]),
        ("KiB per client", number("bytes_per_client", ".1f", 2**10)),
        ("MiB for all clients", number("grown", ".1f", 2**20)),
    )


@named("patterns", "patterns")
def patterns() -> str:
    """Return the time of the patterns of the websockets documentation."""
    return table(
        sorted((row for row in rows_of("patterns") if row["method"] in NAMES), key=lambda row: float(row["call"])),
        ("", method),
        ("us per client", number("call")),
        ("times as fast as websockets", number("faster")),
        ("all have arrived after, ms", number("drained", ".1f")),
    )


@named("burst", "burst")
def burst() -> str:
    """Return the time of several messages in one tick."""
    return table(
        sorted((row for row in rows_of("burst") if row["method"] in NAMES), key=lambda row: float(row["call"])),
        ("", method),
        ("us per client and message", number("call")),
        ("times as fast as websockets", number("faster")),
        ("efficiency", number("efficiency")),
    )


@named("cold", "cold-1000", "cold-1000-deflate", "cold-4000-stock", "cold-4000-served")
def cold() -> str:
    """Return efficiencies with cold caches."""
    runs = {"1000 clients": ["cold-1000"], "4000 clients": ["cold-4000-stock", "cold-4000-served"]}
    runs["1000 clients, compressed"] = ["cold-1000-deflate"]
    rows = [["efficiency", *runs]]
    for name in ("channel", "hub", "wsfast-served", "wsfast", "picows", "websockets"):
        found = [[row for run in several for row in rows_of(run, method=name)] for several in runs.values()]
        rows.append([NAMES[name], *(number("efficiency")(some[0]) if some else "-" for some in found)])
    return markdown(rows)


@named("tick", "tick")
def tick() -> str:
    """Return the processor time of a server that ticks."""
    return table(
        sorted((row for row in rows_of("tick") if row["method"] in NAMES), key=lambda row: -float(row["faster"])),
        ("", method),
        ("processor time, us per client", number("cpu")),
        ("times as little as websockets", number("faster")),
        ("efficiency", number("efficiency")),
    )


@named("cores", "cores")
def cores() -> str:
    """Return calls with one thread and with several."""
    return table(
        (row for row in rows_of("cores") if row["method"] in NAMES),
        ("", method),
        ("threads", number("threads", "d")),
        ("us per client", number("call")),
        ("times as fast as websockets", number("faster")),
        ("efficiency", number("efficiency")),
    )


@named("crowded", "crowded")
def crowded() -> str:
    """Return calls on a machine whose processors are all busy."""
    rows = {(row["method"], row["threads"], row["default"]): row for row in rows_of("crowded")}
    return table(
        (row for key, row in rows.items() if not key[2] or (*key[:2], False) not in rows),
        ("", method),
        ("threads", number("threads", "d")),
        ("median, ms", number("p50", ".1f")),
        ("99th percentile, ms", number("p99", ".1f")),
    )


@named("heartbeat", "heartbeat")
def heartbeat() -> str:
    """Return how late a heartbeat is."""
    return table(
        rows_of("heartbeat"),
        ("event loop", lambda row: str(row["loop"])),
        ("threads", number("threads", "d")),
        ("event loop goes on meanwhile", lambda row: "yes" if row["beside"] else "no"),
        ("late by: median, ms", number("p50")),
        ("99th percentile, ms", number("p99")),
        ("longest, ms", number("most", ".1f")),
        ("delivered per second", number("delivered", ",.0f")),
    )


@named("stalled", "stalled")
def stalled() -> str:
    """Return what clients that never read do."""
    rows = rows_of("stalled")
    alone = {row["method"]: row for row in rows if not row["stalled"]}
    return table(
        (row for row in rows if row["stalled"]),
        ("", lambda row: NAMES.get(row["method"], f"**`Channel`, `{row['method']}`**")),
        ("memory grows by, MiB", number("grown", ".1f", 2**20)),
        ("99th percentile of a call, ms", number("p99")),
        ("without stalled clients, ms", lambda row: f"{alone[row['method']]['p99']:.2f}"),
        ("clients disconnected", number("disconnected", "d")),
        ("others that got every message", lambda row: f"{row['clients']['complete']} of {row['clients']['live']}"),
    )


@named("conflate", "conflate")
def conflate() -> str:
    """Return how old the values are that a lagging client reads."""
    return table(
        rows_of("conflate"),
        ("", lambda row: NAMES.get(row["method"], f"**`Channel`, `{row['method']}`**")),
        ("age of values when read: median, s", number("age", ".1f")),
        ("oldest, s", number("oldest", ".1f")),
        ("keys with the newest value at the end", lambda row: f"{row['newest']} of {row['keys']}"),
    )


@named("large", "large")
def large() -> str:
    """Return the time of large frames."""
    sizes = dict.fromkeys(row["size"] for row in rows_of("large"))
    rows = [["us per client", *(f"{size} B" if size < 1024 else f"{size // 1024} KiB" for size in sizes)]]
    told = NAMES | {"wsfast-send": "`wsfast.broadcast()`, without `sendfile()`", "floor-file": "*`sendfile()` in C*"}
    rows += (
        [told[name], *(cell("large", with_ratio("call"), method=name, size=size) for size in sizes)]
        for name in ("websockets", "picows", "wsfast", "wsfast-send", "floor", "floor-file")
    )
    return markdown(rows)


@named("tls", "tls")
def tls() -> str:
    """Return the time of a broadcast over TLS."""
    told = NAMES | {
        "wsfast-picows": "**`wsfast.broadcast()`, picows' transports**",
        "picows-loop": "`send()` of picows in a loop",
    }
    rows = [["us per client", "asyncio", "uvloop"]]
    for name in ("websockets", "await", "picows-loop", "wsfast", "wsfast-served", "channel", "wsfast-picows"):
        loops = ("asyncio", "uvloop")
        rows.append([told[name], *(cell("tls", with_ratio("call"), method=name, loop=loop) for loop in loops)])
    return markdown(rows)


@named("topics", "topics")
def topics() -> str:
    """Return the cost of many topics."""
    rows = rows_of("topics")
    reference = next(row["cpu"] for row in rows if row["method"] == "websockets")
    return table(
        sorted(rows, key=lambda row: float(row["cpu"])),
        ("", method),
        ("processor time, us per message", number("cpu", ".2f")),
        ("times as little as websockets", lambda row: f"{reference / row['cpu']:.2f}"),
    )


@named("subscriptions", "subscriptions")
def subscriptions() -> str:
    """Return the memory of an idle subscription."""
    return table(
        rows_of("subscriptions"),
        ("connections", number("connections", "d")),
        ("channels", number("channels", "d")),
        ("measured", lambda row: {"traced": "by tracemalloc", "resident": "resident memory"}[row["how"]]),
        ("bytes per subscription", number("each", ".0f")),
    )


@named("frameworks", "frameworks")
def frameworks() -> str:
    """Return the time of the loops of frameworks."""
    told = {"loop": "loop of `await`", "wsfast": "**`wsfast.broadcast()`**", "floor": "*bare loop of `send()` in C*"}
    rows = rows_of("frameworks")
    loops = {(row["framework"], row["compression"]): row["call"] for row in rows if row["method"] == "loop"}
    return table(
        rows,
        ("framework", lambda row: {"fastapi": "FastAPI, uvicorn"}.get(row["framework"], str(row["framework"]))),
        ("compression", lambda row: {"none": "no", "deflate": "yes"}[row["compression"]]),
        ("", lambda row: told.get(row["method"], str(row["method"]))),
        ("us per client", number("call")),
        ("times as fast as the loop", lambda row: f"{loops[row['framework'], row['compression']] / row['call']:.1f}"),
        (
            "five more clients never read",
            lambda row: (
                "-"
                if "stopped" not in row
                else f"no call longer than {row['longest'] * 1e3:.0f} ms"
                if row["stopped"] is None
                else f"stops for good at message {row['stopped'] + 1}"
            ),
        ),
    )


@named("integrations", "integrations")
def integrations() -> str:
    """Return what other libraries' own ways to send to many cost."""
    rows = rows_of("integrations")
    own = {row["integration"]: row["cpu"] for row in rows if row["method"] == "own"}
    told = {"own": "{}", "wsfast": "**`{}`**", "floor": "*bare loop of `{}` in C*"}
    return table(
        rows,
        ("library", lambda row: str(row["integration"])),
        ("", lambda row: told[row["method"]].format(row["told"])),
        ("processor time, us per client", number("cpu")),
        ("times as fast as its own way", lambda row: f"{own[row['integration']] / row['cpu']:.1f}"),
    )


BROKERS = {"redis": "Redis", "nats": "NATS", "local": "none: Unix sockets"}


@named("relay", "relay")
def relay() -> str:
    """Return what relays deliver."""
    return table(
        rows_of("relay"),
        (
            "broker",
            lambda row: {"redis": "Redis", "nats": "NATS", "local": "none: `wsfast.relay.local()`"}[row["broker"]],
        ),
        ("", lambda row: {"relay": "**`wsfast.relay`**", "recipe": "`await publish()` in a loop"}[row["method"]]),
        ("messages per second", lambda row: significant(row["rate"], 2)),
        ("publisher, us per message", number("publisher", ".0f")),
        ("receiver, us per message", number("receiver", ".0f")),
        ("on the way: median, ms", number("p50", ".2f", 1e-3)),
        ("99th percentile, ms", number("p99", ".2f", 1e-3)),
    )


@named("herd", "herd")
def herd() -> str:
    """Return what clients cost that all come back at once."""
    return table(
        rows_of("herd"),
        ("event loop", lambda row: str(row["loop"])),
        ("", lambda row: f"{row['clients']:,} {row['method']}"),
        ("messages missed by each", number("missed", "d")),
        ("all are there after, s", number("seconds", ".1f")),
        ("processor time of the server, s", number("cpu", ".1f")),
        ("memory before, MiB", lambda row: "-" if row["method"] == "new" else f"{row['steady'] / 2**20:.0f}"),
        ("peak, MiB", lambda row: "-" if row["method"] == "new" else f"{row['peak'] / 2**20:.0f}"),
    )


@named("rolling", "rolling")
def rolling() -> str:
    """Return how clients come back in a rolling restart."""
    return table(
        rows_of("rolling"),
        ("clients", number("clients", ",d")),
        ("workers", number("workers", "d")),
        ("window of each drain, s", number("window", "d")),
        ("all restarted after, s", number("seconds", ".0f")),
        ("times that a client came back", number("reconnects", ",d")),
        ("most in any second", lambda row: f"{row['most']} ({row['share']:.1%} of the clients)"),
        ("messages to each client", number("last", ",d")),
    )


# ---- Pages


def rewrite(text: str, page: Path) -> str:
    """Return a page with the tables and figures of the runs.

    Raises:
        ValueError: If a mark asks for something that the runs do not have.
    """

    def write_table(match: re.Match[str]) -> str:
        name = match[2] or "broadcast"
        if name not in TABLES:
            raise ValueError(f"{page.name}: unknown table {name!r}; known are {', '.join(TABLES)}")
        return f"{match[1]}\n{TABLES[name](page)}\n{match[4]}"

    text = TABLE.sub(write_table, text)
    return FIGURE.sub(lambda match: figure(match[3]) + match[2], text)


def pages() -> list[Path]:
    """Return the pages that may have marks."""
    return [README, *sorted((ROOT / "docs").rglob("*.md"))]


def merged() -> dict[str, Any]:
    """Return all runs as if they were one."""
    runs = [load(path.stem) for path in sorted(MEASUREMENTS.glob("*.json"))]
    first = load("broadcast")
    parts = {kind: [entry for run in runs for entry in run.get(kind, ())] for kind in ("cases", "memory", "scenarios")}
    assert set(SCENARIOS) >= {entry["scenario"] for entry in parts["scenarios"]}
    return {key: first[key] for key in ("machine", "versions", "processors")} | parts


def main() -> None:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report page of all runs instead")
    arguments = parser.parse_args()
    if arguments.report is not None:
        when = load("broadcast")["when"]
        arguments.report.write_text(render(merged(), None, command="wsfast bench", when=when), encoding="utf-8")
        return
    changed = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        written = rewrite(text, page)
        if written != text:
            changed.append(str(page.relative_to(ROOT)))
            if not arguments.check:
                page.write_text(written, encoding="utf-8")
    print("\n".join(changed) or "nothing has changed")
    if arguments.check and changed:
        sys.exit(1)


if __name__ == "__main__":
    main()
