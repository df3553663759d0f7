"""`wsfast bench`: what a broadcast costs, by each method, in one run.

Three processes. That of the command line (`session`) starts, for each case, a server in a fresh process (`measure`)
and prints what it is told (`report`). The server has its clients in a process of its own (`clients` is the server's
end of it, `peer` is that process) that only reads. The methods that are compared are in `methods`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from wsfast.cli.machine import UnfitError, describe, installed, reserve_descriptors, two_processors, versions
from wsfast.cli.options import choices, positive, positives

from .cases import FEATURES, LOOPS, METHODS, Case, combine, extension_present

__all__ = ["DESCRIPTION", "HELP", "add_arguments", "run"]

HELP = "measure what a broadcast costs, against websockets, picows and a bare loop of send()"

DESCRIPTION = """Measure what a broadcast costs: a server with stock websockets connections, clients that only read in
another process on another processor, all methods in one run, in rounds and shuffled order. Between two calls the server
waits until every byte has arrived."""

CHARTS = (".png", ".svg", ".pdf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    known = "; ".join(f"{name}: {what}" for name, what in METHODS.items())
    parser.add_argument("--clients", type=positives, metavar="N,...", help="how many clients (1000)")
    parser.add_argument("--sizes", type=positives, default=(64,), metavar="N,...", help="bytes of a message (64)")
    parser.add_argument(
        "--loops", type=choices("loop", LOOPS), metavar="LOOP,...", help="asyncio, uvloop (those installed)"
    )
    parser.add_argument(
        "--types", type=choices("type", ("text", "binary")), default=("text",), metavar="TYPE,...", help="text, binary"
    )
    parser.add_argument(
        "--methods", type=choices("method", tuple(METHODS)), metavar="METHOD,...", help=f"all of these: {known}"
    )
    parser.add_argument("--rounds", type=positive, metavar="N", help="rounds, each with a turn of every method (40)")
    parser.add_argument("--calls", type=positive, default=3, metavar="N", help="measured calls in a turn (3)")
    parser.add_argument(
        "--collection",
        choices=("list", "set"),
        default="list",
        help="what keeps the connections: a list, in order of their descriptors; or a set, in random order (list)",
    )
    parser.add_argument(
        "--sleep",
        action="store_true",
        help="let the clients sleep when there is nothing to read; to wake them up costs",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to this file")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw a chart: .png, .svg or .pdf")
    parser.add_argument("--quick", action="store_true", help="200 clients and 8 rounds, to see that it works")
    parser.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, help="show a progress bar (if stderr is a terminal)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure all cases and print a table for each."""
    from .report import draw_chart, print_case, print_machine, write_json
    from .session import Progress, measure_case

    plan = _plan(arguments)
    chart: Path | None = arguments.chart
    for path in (arguments.json, chart):
        if path is not None and not path.absolute().parent.is_dir():
            raise UnfitError(f"there is no directory {path.absolute().parent}")
    if chart is not None and chart.suffix not in CHARTS:
        raise UnfitError(f"cannot draw a chart as {chart.suffix or chart.name}; give {', '.join(CHARTS)}")
    if chart is not None and not installed("matplotlib"):
        print("No chart: matplotlib is not installed; pip install wsfast[bench]")
        chart = None
    processors = two_processors()
    print_machine(describe(), versions(), processors)
    results = []
    with Progress(sum(case.rounds for case in plan), arguments.progress) as progress:
        for case in plan:
            result = measure_case(case, processors, progress)
            progress.clear()
            print_case(result)
            results.append(result)
    if arguments.json is not None:
        write_json(arguments.json, describe(), versions(), processors, results)
    if chart is not None:
        draw_chart(chart, results)
    return 0


def _plan(arguments: argparse.Namespace) -> list[Case]:
    """Return the cases that can be measured here; tell which cannot and why."""
    methods = _available("method", arguments.methods or tuple(METHODS))
    loops = _available("loop", arguments.loops or LOOPS)
    clients: tuple[int, ...] = arguments.clients or ((200,) if arguments.quick else (1000,))
    sets = 2 if "picows" in methods else 1
    most = max(clients)
    reserve_descriptors(
        sets * most + 64, f"{most} clients" + (" of websockets and as many of picows" if sets == 2 else "")
    )
    return combine(
        clients=clients,
        sizes=arguments.sizes,
        loops=loops,
        types=arguments.types,
        methods=methods,
        rounds=arguments.rounds or (8 if arguments.quick else 40),
        calls=arguments.calls,
        collection=arguments.collection,
        sleep=arguments.sleep,
    )


def _available(what: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return those names whose feature is there; print a notice for each other one."""
    available = []
    for name in names:
        feature = FEATURES.get(name)
        if feature == "extension":
            if not extension_present():
                print(f"Skipping {what} {name}: the extension of wsfast is absent or WSFAST_PURE is set")
                continue
        elif feature is not None and not installed(feature):
            print(f"Skipping {what} {name}: {feature} is not installed; pip install wsfast[bench]")
            continue
        available.append(name)
    if not available:
        raise UnfitError(f"no {what} is left to measure")
    return tuple(available)
