"""Tables, the file of `--json`, and a chart. `page` writes the report, `comparison` the differences of two runs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shlex
import statistics
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .cases import WAYS, Case, Result, Samples, Verdict, Weight
from .machine import UnfitError, shares_core
from .methods import METHODS, floor_of

if TYPE_CHECKING:
    from .runs import Run

__all__ = [
    "Summary",
    "collect",
    "deliver",
    "describe_machine",
    "describe_verdict",
    "draw_chart",
    "explain",
    "find_files",
    "judge",
    "judged",
    "of_processors",
    "percentile",
    "print_case",
    "print_machine",
    "print_memory",
    "print_table",
    "ratio",
    "read_summaries",
    "steady",
    "summarize",
    "tabulate",
    "tabulate_memory",
    "tabulate_overview",
    "warn",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of one method in a table."""

    call: float
    """Microseconds per client and message: median over the calls."""
    lower: float
    """The lower quartile of this, or with ticks of the processor time."""
    upper: float
    """The same for the upper quartile."""
    p50: float
    """Milliseconds of a call."""
    p99: float
    """The same for the 99th percentile."""
    cpu: float
    """Processor time of a call, in microseconds per client and message: median."""
    drained: float
    """Milliseconds from the call until the last byte has arrived: median."""
    wakeups: float | None
    """How often the process of the clients was woken up in a call: mean."""
    faster: float | None
    """How many times as fast as websockets, or with ticks, how many times less of the processor it takes."""
    efficiency: float | None
    """Time of the floor of the same sockets, or of the other one, divided by that of this method; in the same way."""
    wire: float | None
    """Bytes that one client is sent for a message: mean; with compression only."""
    steady: float | None
    """The same when no other method takes turns."""
    compressed: float | None
    """These divided by the payload."""
    picows: float | None = None
    """How many times as fast as picows, in the same way as `faster`."""


def percentile(values: Sequence[int], percent: float) -> int:
    """Return the smallest of `values` that is not below `percent` per cent of them (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]


def ratio(over: Samples, under: Samples, figure: Literal["call", "cpu"] = "call") -> float:
    """Return how many times as long `over` takes as `under`: the median of the ratios within each round.

    Both were measured within one round under the same conditions, which may differ from round to round.
    """
    pairs: Iterable[tuple[list[int], list[int]]] = zip(getattr(over, figure), getattr(under, figure), strict=True)
    return statistics.median(statistics.median(first) / statistics.median(second) for first, second in pairs)


def steady(run: Sequence[int]) -> float:
    """Return the mean of a run without its first quarter, in which other methods' messages are still remembered."""
    return statistics.mean(run[len(run) // 4 :])


def summarize(result: Result) -> dict[str, Summary]:
    """Return the numbers of each method."""
    burst, calls = result.case.burst, result.case.rounds * result.case.calls
    messages = result.case.clients * burst
    websockets, picows, figure = result.methods.get("websockets"), result.methods.get("picows"), result.case.figure
    summaries = {}
    for name, samples in result.methods.items():
        floor = result.methods.get(floor_of(name)) or result.methods.get("floor")
        call = list(chain.from_iterable(samples.call))
        judged = list(chain.from_iterable(getattr(samples, figure)))
        run = steady(samples.run) / burst if samples.run else None
        summaries[name] = Summary(
            call=statistics.median(call) / messages / 1e3,
            lower=percentile(judged, 25) / messages / 1e3,
            upper=percentile(judged, 75) / messages / 1e3,
            p50=percentile(call, 50) / 1e6,
            p99=percentile(call, 99) / 1e6,
            cpu=statistics.median(chain.from_iterable(samples.cpu)) / messages / 1e3,
            drained=statistics.median(chain.from_iterable(samples.drained)) / 1e6,
            wakeups=sum(samples.wakeups) / calls if samples.wakeups else None,
            faster=ratio(websockets, samples, figure) if websockets is not None else None,
            efficiency=ratio(floor, samples, figure) if floor is not None else None,
            wire=statistics.mean(chain.from_iterable(samples.octets)) / burst if samples.octets else None,
            steady=run,
            compressed=None if run is None else run / result.case.size,
            picows=ratio(picows, samples, figure) if picows is not None else None,
        )
    return summaries


def read_summaries(entry: Mapping[str, Any]) -> dict[str, Summary]:
    """Return the summaries of one case, as they stand in a file."""
    return {name: Summary(**method["summary"]) for name, method in entry["methods"].items()}


# ---- On the terminal


def print_machine(machine: Mapping[str, Any], versions: Mapping[str, str], processors: tuple[int, int] | None) -> None:
    """Print the machine and the versions."""
    for line in describe_machine(machine, versions, processors):
        print(line)


def describe_machine(
    machine: Mapping[str, Any], versions: Mapping[str, str], processors: tuple[int, int] | None
) -> list[str]:
    """Describe the machine and the versions in a few lines."""
    lines = [
        f"{machine['processor']}, {machine['processors']} processors, {machine['system']} {machine['architecture']}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    if processors is None:
        lines.append("WARNING: there are no two processors for server and clients: they slow each other down")
    else:
        lines.append(f"server on processor {processors[0]}, clients on processor {processors[1]}")
        if shares_core(*processors):
            lines.append("WARNING: these two are threads of one core: server and clients slow each other down")
    return lines


def print_case(result: Result) -> None:
    """Print the table of one case, with warnings and explanations."""
    print(f"\n{result.case}; {result.case.rounds} rounds of {result.case.calls} calls")
    for line in judge(result.case, result.verdict):
        print(line)
    print_table(tabulate(result.case, summarize(result)))
    for line in (*warn(result), *explain(result.case, result.methods)):
        print(line)


def tabulate(case: Case, summaries: Mapping[str, Summary], *, full: bool = False) -> list[list[str]]:
    """Return the table of one case: rows, the first of which are the heads.

    Args:
        case: The case.
        summaries: The results of each method.
        full: Whether to add quartiles and the ratio to picows, and to sort methods by what they are judged by.
    """
    if case.tick:
        heads = ["method", "CPU us", "us/client", "p50 ms", "p99 ms", "wakeups", "x websockets", "efficiency"]
    else:
        heads = ["method", "us/client", "p50 ms", "p99 ms", "CPU us", "drained ms"]
        heads += ["wakeups", "x websockets", "efficiency"]
    if full:
        heads[2:2] = ["quartiles"]
        heads.insert(heads.index("efficiency"), "x picows")
        summaries = dict(sorted(summaries.items(), key=lambda item: judged(case, item[1])))
    if case.compression != "none":
        heads += ["wire B", "steady B", "ratio"]
    rows = [heads]
    for name, summary in summaries.items():
        cells = {
            "method": name,
            "us/client": f"{summary.call:.2f}",
            "quartiles": f"{summary.lower:.2f} to {summary.upper:.2f}",
            "p50 ms": f"{summary.p50:.2f}",
            "p99 ms": f"{summary.p99:.2f}",
            "CPU us": f"{summary.cpu:.2f}",
            "drained ms": f"{summary.drained:.2f}",
            "wakeups": _optional(summary.wakeups, ".0f"),
            "x websockets": _optional(summary.faster, ".2f"),
            "x picows": _optional(summary.picows, ".2f"),
            "efficiency": _optional(summary.efficiency, ".2f"),
            "wire B": _optional(summary.wire, ".1f"),
            "steady B": _optional(summary.steady, ".1f"),
            "ratio": _optional(summary.compressed, ".2f"),
        }
        rows.append([cells[head] for head in heads])
    return rows


def judged(case: Case, summary: Summary) -> float:
    """Return the number by which a method is judged: us per client and message, of a call or of processor time."""
    return summary.cpu if case.tick else summary.call


def tabulate_overview(cases: Sequence[Case], summaries: Sequence[Mapping[str, Summary]]) -> list[list[str]]:
    """Return the number by which methods are judged: a column for each case, and so for each number of threads.

    In brackets is how many times as fast as websockets a method is; efficiencies have rows of their own.
    """
    names = [name for name in METHODS if any(name in found for found in summaries)]
    rows = [["us/client", *map(str, cases)]]
    for name in names:
        cells = []
        for case, found in zip(cases, summaries, strict=True):
            one = found.get(name)
            times = "" if one is None or one.faster is None or name == "websockets" else f" ({one.faster:.2f})"
            cells.append("-" if one is None else f"{judged(case, one):.2f}{times}")
        rows.append([name, *cells])
    for name in names:
        if METHODS[name].group == "ours":
            told = [found[name].efficiency if name in found else None for found in summaries]
            if any(efficiency is not None for efficiency in told):
                rows.append([f"efficiency of {name}", *(_optional(efficiency, ".2f") for efficiency in told)])
    return rows


EXPLAINED = """\
us/client: time of a call per client and message, median. CPU us: processor time of the server in that time.
drained: time from the call until the last byte has arrived. wakeups: of the process of the clients, per call.
x websockets, x picows: times as fast as that. efficiency: time of the floor divided by the time of the method.
Both are medians of the ratios in each round."""

EXPLAINED_TICK = """\
CPU us: processor time of the server, all its threads, from one call to the next, per client and message, median.
us/client: time of the call. wakeups: of the process of the clients, per call. x websockets, x picows, efficiency:
CPU us of websockets, of picows, of the floor, divided by that of the method; medians of the ratios in each round."""


def explain(case: Case, methods: Collection[str]) -> list[str]:
    """Explain the heads of the table of a case."""
    lines = [EXPLAINED_TICK if case.tick else EXPLAINED]
    if case.apart:
        lines.append("Each method has connections of its own.")
    if case.threads > 1:
        lines.append(f"Methods of wsfast send with {case.threads} threads, all others and the floors with one.")
    if "floor-served" in methods:
        told = ", ".join(name for name in methods if floor_of(name) == "floor-served")
        which = "the same server" if case.apart else "the same sockets"
        lines.append(f"efficiency of {told}: compared with floor-served, which has {which}.")
    if "node" in methods:
        lines.append("node: Node measures its own times; it reads its messages from a pipe before.")
    if case.compression != "none":
        lines.append(
            "wire B: bytes sent to one client per message, mean of the measured calls. steady B: the same in a run of\n"
            "one method, after the messages of others are forgotten. ratio: steady B divided by the payload.\n"
            "Connections of picows have a window of 15 bits and memLevel 8, all others 12 bits and memLevel 5."
        )
    return lines


def print_memory(case: Case, weights: Mapping[str, Weight]) -> None:
    """Print the table of the memory that connections take."""
    print(f"\nmemory: {case}")
    print_table(tabulate_memory(weights))
    print(MEMORY)
    for way in weights:
        print(f"{way}: {WAYS[way].help}")


MEMORY = """\
KiB/client, clients MiB: growth of the resident memory of the server, from right before the clients connect until
after a few broadcasts, per client and in all. process MiB: resident memory after that. The memory of the kernel is
not included. Longer messages use more of the memory of an encoder."""
"""Explanation of the heads of the table of memory."""


def tabulate_memory(weights: Mapping[str, Weight]) -> list[list[str]]:
    """Return the table of the memory that connections take."""
    rows = [["server", "KiB/client", "clients MiB", "process MiB"]]
    for way, weight in weights.items():
        grown = weight.after - weight.before
        rows.append([way, f"{weight.each / 2**10:.1f}", f"{grown / 2**20:.1f}", f"{weight.after / 2**20:.1f}"])
    return rows


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows, the first of which are the heads."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print(row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)))


def judge(case: Case, verdict: Verdict) -> list[str]:
    """Return a line about the bottleneck. With ticks there is none, because the clients have enough time."""
    return [] if case.tick else [describe_verdict(verdict)]


def describe_verdict(verdict: Verdict) -> str:
    """Say in one line whether the server or the clients are the bottleneck."""
    megabytes = verdict.size / 1e6
    line = (
        f"clients drain at {verdict.drained * megabytes:.0f} MB/s ({verdict.drained:,.0f} messages/s), "
        f"{verdict.sender} sends at {verdict.sent * megabytes:.0f} MB/s ({verdict.sent:,.0f}); together they finish "
        f"{verdict.behind / 1e6:.2f} ms after the call: "
    )
    if verdict.server:
        return line + "the server is the bottleneck"
    return f"WARNING: {line}the clients may be the bottleneck; then drained is their time"


def warn(result: Result) -> list[str]:
    """Return warnings about what was measured."""
    notes = []
    for name, samples in result.methods.items():
        if samples.short:
            sends = result.case.clients * result.case.rounds * result.case.calls
            notes.append(
                f"WARNING: the kernel did not take all of {samples.short} of {sends} sends of {name}, so it did "
                "less work than the others"
            )
    # A call that awaits nothing never gives its processor up; what is missing is what somebody else had.
    waiting = [samples for name, samples in result.methods.items() if not METHODS[name].awaits]
    wall = 0 if result.case.tick else sum(chain.from_iterable(chain.from_iterable(samples.call for samples in waiting)))
    cpu = sum(chain.from_iterable(chain.from_iterable(samples.cpu for samples in waiting)))
    if wall and cpu < 0.95 * wall:
        notes.append(
            f"WARNING: the server had its processor for only {cpu / wall:.0%} of the time: something else runs there"
        )
    if result.case.rounds * result.case.calls < 100:
        notes.append("With fewer than 100 calls, p99 is the slowest call.")
    return notes


def _optional(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


# ---- In files


def find_files(arguments: argparse.Namespace, kind: str) -> Run | None:
    """Check the files of the options before hours have been spent; return the run to compare with.

    Args:
        arguments: The options `json`, `chart`, `report`, `compare`.
        kind: The kind of measurement: `cases` or `scenarios`.

    Raises:
        UnfitError: If one could not be written, or cannot be compared with.
    """
    for path in (arguments.json, arguments.chart, arguments.report):
        if path is not None and not path.absolute().parent.is_dir():
            raise UnfitError(f"there is no directory {path.absolute().parent}")
        if path is not None and path.is_dir():
            raise UnfitError(f"{path} is a directory")
    if arguments.compare is None:
        return None
    from .runs import load

    return load(arguments.compare, kind)


def deliver(arguments: argparse.Namespace, content: dict[str, Any], before: Run | None) -> None:
    """Write and print what the options ask for.

    Args:
        arguments: The options `json`, `report`, `compare`; and `argv`, the command line.
        content: All that was measured, as it is written.
        before: The earlier run to compare with.
    """
    command, when = shlex.join(["wsfast", *arguments.argv]), time.strftime("%Y-%m-%d %H:%M %z")
    if arguments.json is not None:
        made = {"command": command, "when": when, **content}
        arguments.json.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    comparison = None
    if before is not None:
        from .comparison import compare, print_comparison
        from .runs import parse

        comparison = compare(before, parse(content))
        print_comparison(comparison)
    if arguments.report is not None:
        from .page import render

        page = render(content, comparison, command=command, when=when)
        arguments.report.write_text(page, encoding="utf-8")


def of_processors(processors: tuple[int, int] | None) -> dict[str, int] | None:
    """Return the processors of server and clients, as they stand in a file."""
    return None if processors is None else {"server": processors[0], "clients": processors[1]}


def collect(
    machine: Mapping[str, Any],
    versions: Mapping[str, str],
    processors: tuple[int, int] | None,
    results: Sequence[Result],
    weights: Mapping[Case, Mapping[str, Weight]],
) -> dict[str, Any]:
    """Return everything that was measured: for each method a summary, and all samples, times in nanoseconds."""
    return {
        "machine": dict(machine),
        "versions": dict(versions),
        "processors": of_processors(processors),
        "cases": [
            {
                "case": dataclasses.asdict(result.case),
                "verdict": {**dataclasses.asdict(result.verdict), "server_is_the_bottleneck": result.verdict.server},
                "warnings": warn(result),
                "methods": {
                    name: {"summary": dataclasses.asdict(summary), "samples": dataclasses.asdict(result.methods[name])}
                    for name, summary in summarize(result).items()
                },
            }
            for result in results
        ],
        "memory": [
            {
                "case": dataclasses.asdict(case),
                "servers": {
                    way: {**dataclasses.asdict(weight), "bytes_per_client": weight.each}
                    for way, weight in servers.items()
                },
            }
            for case, servers in weights.items()
        ],
    }


def draw_chart(path: Path, results: Sequence[Result]) -> None:
    """Draw the call times: for each case, a bar for each method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [0.28 * len(result.methods) + 0.9 for result in results]
    figure = Figure(figsize=(8, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    plots = figure.subplots(len(results), 1, squeeze=False, height_ratios=heights)[:, 0]
    for plot, result in zip(plots, results, strict=True):
        _draw_case(plot, result.case, summarize(result))
    figure.savefig(path, dpi=150)


def _draw_case(plot: Any, case: Case, summaries: Mapping[str, Summary]) -> None:
    names = [name for name in METHODS if name in summaries]
    colors = {"floor": "0.75", "ours": "tab:green", "theirs": "tab:blue"}
    bars = plot.barh(
        names, [judged(case, summaries[name]) for name in names], color=[colors[METHODS[name].group] for name in names]
    )
    plot.bar_label(bars, fmt="%.1f", padding=3)
    plot.invert_yaxis()
    plot.margins(x=0.12)
    plot.spines[["top", "right"]].set_visible(False)
    plot.set_title(str(case), fontsize=10, loc="left")
    what = "processor time of the server" if case.tick else "call"
    plot.set_xlabel(f"{what}, us per client and message (median)", fontsize=8)
