"""Write the tables of docs/explanation/measurements.md from what `wsfast bench --json` has written.

    python scripts/measurements.py RUN.json...
    python scripts/measurements.py --readme RUN.json

The tables between the two markers are replaced by those of the given runs, in the given order; with `--readme`, the
table of README.md by the cases of one run, a column for each. Needs wsfast-bench.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wsfast_bench.cases import Case, Weight
from wsfast_bench.report import Summary, describe_machine, tabulate, tabulate_memory, tabulate_overview
from wsfast_bench.scenarios import SCENARIOS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "explanation" / "measurements.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- begin: written by scripts/measurements.py -->\n", "<!-- end -->"


ROWS = {
    "websockets": "`websockets.broadcast`",
    "picows": "`picows.websockets` `broadcast`",
    "wsfast": "**`wsfast.broadcast`**",
    "wsfast-served": "**`wsfast.broadcast`, connections of `wsfast.serve`**",
    "channel": "**`wsfast.Channel`**",
    "floor": "*bare loop in C*",
    "efficiency of wsfast": "efficiency of `wsfast.broadcast`",
    "efficiency of wsfast-served": "efficiency with `wsfast.serve`",
    "efficiency of channel": "efficiency of `wsfast.Channel`",
}
"""Rows of the README's table, in their order, each with its name there."""


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, of which the first are the heads, as a table in Markdown."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(cell or '-' for cell in line)} |\n" for line in lines)


def summaries_of(entry: dict[str, Any]) -> dict[str, Summary]:
    """Return what a file tells of the methods of one case."""
    return {name: Summary(**method["summary"]) for name, method in entry["methods"].items()}


def overview(run: dict[str, Any]) -> str:
    """Return the table of the README: all cases of a run, a column for each."""
    cases = [Case.from_json(entry["case"]) for entry in run["cases"]]
    _, *rows = tabulate_overview(cases, [summaries_of(entry) for entry in run["cases"]])
    heads = [
        f"{case.clients} clients, {case.loop}, {case.threads} thread{'s' if case.threads > 1 else ''}" for case in cases
    ]
    cells = {row[0]: row[1:] for row in rows}
    return table([["", *heads], *([told, *cells[name]] for name, told in ROWS.items() if name in cells)])


def tables(run: dict[str, Any]) -> Iterator[str]:
    """Yield the parts of the page that tell of one run."""
    bound = run["processors"]
    processors = None if bound is None else (bound["server"], bound["clients"])
    yield "; ".join(describe_machine(run["machine"], run["versions"], processors)) + ".\n"
    for entry in run.get("cases", ()):
        case = Case.from_json(entry["case"])
        summaries = summaries_of(entry)
        warnings = "".join(f"- {line}\n" for line in entry["warnings"])
        yield f"**{case}**; {case.rounds} rounds of {case.calls} calls\n\n{table(tabulate(case, summaries))}"
        if warnings:
            yield warnings
    for entry in run.get("memory", ()):
        sizes = ("clients", "before", "after")
        weights = {way: Weight(*(weight[size] for size in sizes)) for way, weight in entry["servers"].items()}
        yield f"**Memory: {Case.from_json(entry['case'])}**\n\n{table(tabulate_memory(weights))}"
    for entry in run.get("scenarios", ()):
        told = SCENARIOS[entry["scenario"]].tell(entry["rows"])
        title = f"{entry['scenario']}: {entry['title']}" if "title" in entry else entry["scenario"]
        yield f"**{title}, {entry['loop']}**\n\n{table(told.table)}"
        yield from ("".join(f"- {line}\n" for line in told.warnings),) if told.warnings else ()


def write(page: str, content: str) -> str:
    """Return a page with this in the place of the tables that it has.

    Raises:
        ValueError: If it has not both markers.
    """
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError("the page has no place for tables")
    return before + BEGIN + "\n" + content + "\n" + END + after


def sections(runs: Sequence[dict[str, Any]]) -> str:
    """Return all tables of some runs, each run under a head."""
    return "\n".join(f"### Run {number}\n\n" + "\n".join(tables(run)) for number, run in enumerate(runs, 1))


def main() -> None:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.json", help="what `wsfast bench --json` has written")
    parser.add_argument(
        "--readme", action="store_true", help="write the table of README.md, of the cases of the first run"
    )
    arguments = parser.parse_args()
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.runs]
    page, content = (README, overview(runs[0])) if arguments.readme else (PAGE, sections(runs))
    page.write_text(write(page.read_text(encoding="utf-8"), content), encoding="utf-8")


if __name__ == "__main__":
    main()
