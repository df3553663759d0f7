"""`wsfast bench`: its options, and the cases that they choose."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import node
from ._library import extension_present
from .cases import WAYS, Case, Weight
from .machine import UnfitError, describe, fitting_threads, installed, reserve_descriptors, two_processors, versions
from .methods import METHODS
from .options import choices, positive, positives
from .play import add_options, play
from .scenarios import SCENARIOS

__all__ = ["DESCRIPTION", "add_arguments", "combine", "run"]

DESCRIPTION = """Measure how long a broadcast takes. The server has real connections. Its clients run in another
process, on another processor, and only read. All methods take turns in one run, in rounds and in shuffled order.
Between two calls the server waits until every message has arrived. In brackets: the default."""

LOOPS = {"asyncio": None, "uvloop": "uvloop"}
COMPRESSIONS = ("none", "deflate")
"""Loops, each with the module that must be there for it; compressions."""

CHARTS = (".png", ".svg", ".pdf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    known = "; ".join(f"{method.name}: {method.help}" for method in METHODS.values())
    parser.add_argument("--clients", type=positives, metavar="N,...", help="number of clients (1000)")
    parser.add_argument(
        "--sizes", type=positives, metavar="N,...", help="bytes of a message (64; for scenario large, several sizes)"
    )
    parser.add_argument(
        "--loops",
        type=choices("loop", tuple(LOOPS)),
        metavar="LOOP,...",
        help="asyncio, uvloop (all that are installed)",
    )
    parser.add_argument(
        "--types", type=choices("type", ("text", "binary")), default=("text",), metavar="TYPE,...", help="text, binary"
    )
    parser.add_argument(
        "--compression",
        type=choices("compression", COMPRESSIONS),
        default=("none",),
        metavar="HOW,...",
        help="none, deflate; with deflate, all servers use their default permessage-deflate, and every message is "
        "different (none)",
    )
    parser.add_argument(
        "--methods",
        type=choices("method", tuple(METHODS)),
        metavar="METHOD,...",
        help=f"methods to compare (all). {known}",
    )
    parser.add_argument(
        "--rounds", type=positive, metavar="N", help="number of rounds; in each, every method has a turn (40)"
    )
    parser.add_argument(
        "--calls", type=positive, metavar="N", help="measured calls in a turn (3; with --cold always 1)"
    )
    parser.add_argument(
        "--cold",
        action="store_true",
        help="before each call, walk through more memory than the caches hold, like a server that does other work "
        "between two calls; each method has connections of its own, and fewer methods are measured unless --methods "
        "names them",
    )
    parser.add_argument(
        "--tick",
        type=positive,
        default=0,
        metavar="MS",
        help="sleep for this many milliseconds after each call, and let the clients sleep; each method has "
        "connections of its own; compares the processor time of the server, all its threads included, from one call to "
        "the next",
    )
    parser.add_argument(
        "--threads",
        type=positives,
        metavar="N,...",
        help="number of threads with which wsfast sends, on as many processors; the floor has one thread (1)",
    )
    parser.add_argument(
        "--node",
        type=Path,
        metavar="DIR",
        help="also measure method node; DIR has the package ws: npm install --prefix DIR ws",
    )
    parser.add_argument(
        "--no-keepalive",
        action="store_true",
        help="send no pings; by default all servers send each client a ping every 20 s, and clients answer",
    )
    parser.add_argument(
        "--burst",
        type=positive,
        default=1,
        metavar="N",
        help="messages in one call; times are per message; the floor sends them joined (1)",
    )
    parser.add_argument(
        "--collection",
        choices=("list", "set"),
        default="list",
        help="collection of the connections: a list, in the order of descriptors, or a set, in random order (list)",
    )
    parser.add_argument(
        "--sleep",
        action="store_true",
        help="let the clients sleep when there is nothing to read; waking them up costs time",
    )
    ways = "; ".join(f"{name}: {way.help}" for name, way in WAYS.items())
    parser.add_argument(
        "--memory",
        nargs="?",
        choices=("only", "too"),
        const="too",
        metavar="only",
        help=f"also measure the memory that a connection takes in the server; with 'only', nothing else. {ways}",
    )
    parser.add_argument(
        "--scenario",
        type=choices("scenario", tuple(SCENARIOS)),
        metavar="NAME,...",
        help="play these scenarios instead. "
        + "; ".join(f"{scenario.name}: {scenario.help}" for scenario in SCENARIOS.values()),
    )
    add_options(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples to this file")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="write a report: one HTML page that answers the main questions, with charts and tables",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="FILE",
        help="show the differences from an earlier run; FILE is what --json has written",
    )
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw a chart: .png, .svg or .pdf")
    parser.add_argument("--quick", action="store_true", help="200 clients and 8 rounds: see whether it works")
    parser.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, help="show a progress bar (if stderr is a terminal)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure all cases and print a table for each."""
    from .report import collect, deliver, draw_chart, find_files, print_case, print_machine, print_memory
    from .session import Progress, measure_case, measure_memory

    if arguments.node is not None:
        node.use(arguments.node)
    if arguments.scenario is not None:
        return play(arguments, _available("loop", arguments.loops or ("asyncio",), LOOPS))
    plan = _plan(arguments)
    weighed = _weighed(arguments)
    chart: Path | None = arguments.chart
    before = find_files(arguments, "cases")
    if chart is not None and chart.suffix not in CHARTS:
        raise UnfitError(f"cannot draw a chart as {chart.suffix or chart.name}; give {', '.join(CHARTS)}")
    if chart is not None and not installed("matplotlib"):
        print("No chart: matplotlib is not installed; pip install wsfast[bench]")
        chart = None
    processors = two_processors()
    there = versions()
    if any("node" in case.methods for case in plan):
        there |= node.find() or {}
    print_machine(describe(), there, processors)
    results = []
    with Progress(sum(case.steps for case in plan) + sum(map(len, weighed.values())), arguments.progress) as progress:
        for case in plan:
            result = measure_case(case, processors, progress)
            progress.clear()
            print_case(result)
            results.append(result)
        weights: dict[Case, dict[str, Weight]] = {}
        for case, ways in weighed.items():
            weights[case] = {}
            for way in ways:
                weights[case][way] = measure_memory(case, way, processors, progress)
                progress.advance()
            progress.clear()
            print_memory(case, weights[case])
    deliver(arguments, collect(describe(), there, processors, results, weights), before)
    if chart is not None and results:
        draw_chart(chart, results)
    return 0


def _plan(arguments: argparse.Namespace) -> list[Case]:
    """Return the cases that can be measured here; tell which cannot and why."""
    if arguments.memory == "only":
        return []
    apart = arguments.cold or arguments.tick > 0
    wanted = arguments.methods or [
        name
        for name, one in METHODS.items()
        if (one.apart or not apart) and (one.feature != "node" or arguments.node is not None)
    ]
    methods = _available("method", wanted, {name: one.feature for name, one in METHODS.items()})
    cases = _combine(arguments, methods)
    for name in methods:
        if arguments.methods and METHODS[name].compressed and any(name not in case.methods for case in cases):
            print(f"Skipping method {name} without compression: it would be the same as websockets")
    single = [name for name in methods if METHODS[name].awaits]
    if arguments.burst > 1 and single:
        print(f"Skipping methods {', '.join(single)} in bursts")
    plan = [case for case in cases if case.methods]
    if not plan:
        raise UnfitError("no method is left to measure")
    servers = max(len(case.methods if apart else {METHODS[name].server for name in case.methods}) for case in plan)
    most = max(case.clients for case in plan)
    reserve_descriptors(servers * most + 64, f"{most} clients" + (f" of each of {servers} servers" * (servers > 1)))
    return plan


def _weighed(arguments: argparse.Namespace) -> dict[Case, tuple[str, ...]]:
    """Return the cases in which memory is measured, each with its servers."""
    if arguments.memory is None:
        return {}
    if sys.platform != "linux":
        raise UnfitError("--memory works on Linux only")
    # Neither how many threads send nor what the caches hold makes connections larger.
    cases = dict.fromkeys(dataclasses.replace(case, cold=False, tick=0, threads=1) for case in _combine(arguments, ()))
    most = max(case.clients for case in cases)
    reserve_descriptors(most + 64, f"{most} clients")
    return {
        case: tuple(
            way
            for way in WAYS
            if (way != "picows" or installed("picows")) and (way != "wsfast-factory" or case.compression != "none")
        )
        for case in cases
    }


def _combine(arguments: argparse.Namespace, methods: tuple[str, ...]) -> list[Case]:
    """Return the cases that the options ask for."""
    return combine(
        clients=arguments.clients or ((200,) if arguments.quick else (1000,)),
        sizes=arguments.sizes or (64,),
        loops=_available("loop", arguments.loops or LOOPS, LOOPS),
        types=arguments.types,
        methods=methods,
        rounds=arguments.rounds or (8 if arguments.quick else 40),
        calls=1 if arguments.cold else arguments.calls or 3,
        collection=arguments.collection,
        sleep=arguments.sleep or arguments.tick > 0,
        compressions=arguments.compression,
        burst=arguments.burst,
        keepalive=not arguments.no_keepalive,
        cold=arguments.cold,
        tick=arguments.tick,
        threads=fitting_threads(arguments.threads or (1,)),
    )


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
    threads: tuple[int, ...] = (1,),
    **settings: Any,
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
                and (how != "none" or not METHODS[name].compressed)
                and (burst == 1 or not METHODS[name].awaits)
            ),
            rounds,
            calls,
            collection,
            sleep,
            how,
            burst,
            threads=lanes,
            **settings,
        )
        for loop, count, size, kind, how, lanes in itertools.product(
            loops, clients, sizes, types, compressions, threads
        )
    ]


def _available(what: str, names: Iterable[str], features: Mapping[str, str | None]) -> tuple[str, ...]:
    """Return those names whose feature is there; print a notice for each other one."""
    available = []
    for name in names:
        feature = features[name]
        if feature == "extension":
            if not extension_present():
                print(f"Skipping {what} {name}: the extension of wsfast is absent, or WSFAST_PURE is set")
                continue
        elif feature == "node":
            if node.find() is None:
                print(f"Skipping {what} {name}: Node or its package ws is absent; see --node")
                continue
        elif feature is not None and not installed(feature):
            print(f"Skipping {what} {name}: {feature} is not installed; pip install wsfast[bench]")
            continue
        available.append(name)
    if not available:
        raise UnfitError(f"no {what} is left to measure")
    return tuple(available)
