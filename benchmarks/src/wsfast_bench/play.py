"""The command line's side of scenarios."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from .machine import UnfitError, describe, two_processors, versions
from .options import positive
from .report import deliver, find_files, of_processors, print_machine, print_table
from .scenarios import SCENARIOS
from .scenarios.scenario import Row, Scenario, Settings
from .session import Progress, ask

__all__ = ["add_options", "play", "print_rows"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that scenarios have to a parser; those of the same name are one."""
    texts: dict[str, list[str]] = {}
    for scenario in SCENARIOS.values():
        for option in scenario.options:
            texts.setdefault(option.name, []).append(f"scenario {scenario.name}: {option.what} ({option.default})")
    for name, lines in texts.items():
        parser.add_argument(f"--{name}", type=positive, metavar="N", help="; ".join(lines))


def play(arguments: argparse.Namespace, loops: tuple[str, ...]) -> int:
    """Play the scenarios that the options ask for, and print a table for each."""
    if sys.platform != "linux":
        raise UnfitError("scenarios work on Linux only")
    for option in ("chart", "memory"):
        if getattr(arguments, option) is not None:
            raise UnfitError(f"--{option} cannot be used with scenarios")
    before = find_files(arguments, "scenarios")
    processors = two_processors()
    plans = [
        (SCENARIOS[name], loop, list(SCENARIOS[name].plan(Settings(arguments, loop, processors))))
        for loop in loops
        for name in arguments.scenario
    ]
    print_machine(describe(), versions(), processors)
    played: list[dict[str, Any]] = []
    with Progress(sum(len(plan) for _, _, plan in plans), arguments.progress) as progress:
        for scenario, loop, plan in plans:
            rows: list[Row] = []
            for part in plan:
                progress.show(part)
                answer = ask("scenarios", part, part.task, progress, scenario.name)
                rows += answer if isinstance(answer, list) else [answer]
                progress.advance()
            progress.clear()
            title = plan[0].title.partition(": ")[0]
            print(f"\n{scenario.name}: {title}, {loop}")
            print_rows(scenario, rows)
            tasks = [part.task for part in plan]
            played.append({"scenario": scenario.name, "loop": loop, "title": title, "tasks": tasks, "rows": rows})
    content = {
        "machine": describe(),
        "versions": versions(),
        "processors": of_processors(processors),
        "scenarios": played,
    }
    deliver(arguments, content, before)
    return 0


def print_rows(scenario: Scenario, rows: Sequence[Row]) -> None:
    """Print what is told of the rows of a scenario."""
    results = scenario.results(rows)
    print_table(results.table)
    for line in (*results.warnings, results.legend):
        print(line)
