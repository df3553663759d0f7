"""Write the tables of docs/explanation/measurements.md from what `wsfast bench --json` has written.

    python scripts/measurements.py RUN.json...

The tables between the two markers are replaced by those of the given runs, in the given order. Needs wsfast-bench.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wsfast_bench.cases import Case, Weight
from wsfast_bench.report import Summary, describe_machine, tabulate, tabulate_memory
from wsfast_bench.scenarios import SCENARIOS

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "measurements.md"
BEGIN, END = "<!-- begin: written by scripts/measurements.py -->\n", "<!-- end -->"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, of which the first are the heads, as a table in Markdown."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(cell or '-' for cell in line)} |\n" for line in lines)


def tables(run: dict[str, Any]) -> Iterator[str]:
    """Yield the parts of the page that tell of one run."""
    bound = run["processors"]
    processors = None if bound is None else (bound["server"], bound["clients"])
    yield "; ".join(describe_machine(run["machine"], run["versions"], processors)) + ".\n"
    for entry in run.get("cases", ()):
        case = Case.from_json(entry["case"])
        summaries = {name: Summary(**method["summary"]) for name, method in entry["methods"].items()}
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


def write(page: str, runs: Sequence[dict[str, Any]]) -> str:
    """Return a page with the tables of some runs in the place of those that it has.

    Raises:
        ValueError: If it has not both markers.
    """
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError("the page has no place for tables")
    parts = [f"### Run {number}\n\n" + "\n".join(tables(run)) for number, run in enumerate(runs, 1)]
    return before + BEGIN + "\n" + "\n".join(parts) + "\n" + END + after


def main() -> None:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.json", help="what `wsfast bench --json` has written")
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in parser.parse_args().runs]
    PAGE.write_text(write(PAGE.read_text(encoding="utf-8"), runs), encoding="utf-8")


if __name__ == "__main__":
    main()
