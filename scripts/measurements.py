"""Write the tables of docs/explanation/measurements.md from what `wsfast bench --json` has written.

    python scripts/measurements.py RUN.json...
    python scripts/measurements.py --readme RUN.json...

The tables between the two markers are replaced by those of the given runs, in the given order. With `--readme`, it is
the two tables of README.md: the first has a column for each case of the first run with cases; the second is made of the
first run of scenario `wire`, and of the memory with compression if a run tells of that. A table that no run tells of
stays as it is. Needs wsfast-bench.
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
BEGIN_OCTETS = "<!-- begin: octets, written by scripts/measurements.py -->\n"
"""What begins the second table of the README."""


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
"""Rows of the README's first table, in their order, each with its name there."""

ROWS_OCTETS = {name: ROWS[name] for name in ("websockets", "picows", "wsfast", "channel")}
"""Those of the second one."""

COLUMNS_OCTETS = {"all": "octets, to all", "halves": "to random halves", "private": "to all, private messages between"}
"""Its columns of octets, by the variants of scenario `wire`."""

WEIGHED = {"websockets": "websockets", "picows": "picows", "wsfast": "wsfast-factory"}
"""Whose memory is told in a row."""


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, of which the first are the heads, as a table in Markdown."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(cell or '-' for cell in line)} |\n" for line in lines)


def summaries_of(entry: dict[str, Any]) -> dict[str, Summary]:
    """Return what a file tells of the methods of one case."""
    return {name: Summary(**method["summary"]) for name, method in entry["methods"].items()}


def overview(run: dict[str, Any]) -> str:
    """Return the first table of the README: all cases of a run, a column for each."""
    cases = [Case.from_json(entry["case"]) for entry in run["cases"]]
    _, *rows = tabulate_overview(cases, [summaries_of(entry) for entry in run["cases"]])
    heads = [
        f"{case.clients} clients, {case.loop}, {case.threads} thread{'s' if case.threads > 1 else ''}" for case in cases
    ]
    cells = {row[0]: row[1:] for row in rows}
    return table([["", *heads], *([told, *cells[name]] for name, told in ROWS.items() if name in cells)])


def octets(wire: dict[str, Any], memory: dict[str, Any] | None) -> str:
    """Return the second table of the README, and what its numbers are.

    Args:
        wire: What a file tells of scenario `wire`.
        memory: What one tells of the memory of some servers, with compression; None to leave that column out.
    """
    found = {(row["variant"], row["way"]): row for row in wire["rows"]}
    case = wire["tasks"][0]["case"]
    heads = ["", "us per client", *COLUMNS_OCTETS.values()]
    if memory is not None:
        heads.append(f"MiB for {memory['case']['clients']} clients")
    rows = [heads]
    for way, told in ROWS_OCTETS.items():
        if ("all", way) not in found:
            continue
        first = found["all", way]
        # Nothing is told of how many times as fast as itself websockets is.
        bracket = "" if way == "websockets" else " ({:.2f})"
        cells = [told, f"{first['call']:.2f}" + bracket.format(first["faster"])]
        for variant in COLUMNS_OCTETS:
            row = found[variant, way]
            cells.append(f"{row['octets']:.0f}" + bracket.format(row["share"]))
        if memory is not None:
            weight = memory["servers"].get(WEIGHED.get(way))
            cells.append("" if weight is None else f"{(weight['after'] - weight['before']) / 2**20:.0f}")
        rows.append(cells)
    return (
        f"JSON ticks of {case['size']} bytes, {case['clients']} clients, {wire['loop']}, one thread. Octets are per "
        "client and message, frame headers included; in\nbrackets, how many times as fast as websockets, and how many "
        "times as many octets.\n\n" + table(rows)
    )


def readme(page: str, runs: Sequence[dict[str, Any]]) -> str:
    """Return the README with the tables that the runs tell of.

    Raises:
        ValueError: If they tell of none, or the page has no place for one.
    """
    cases = next((run for run in runs if run.get("cases")), None)
    scenarios = (entry for run in runs for entry in run.get("scenarios", ()))
    wire = next((entry for entry in scenarios if entry["scenario"] == "wire"), None)
    memories = (entry for run in runs for entry in run.get("memory", ()))
    memory = next((entry for entry in memories if entry["case"]["compression"] != "none"), None)
    if cases is None and wire is None:
        raise ValueError("no run has cases, and none has the scenario wire")
    if cases is not None:
        page = write(page, overview(cases))
    if wire is not None:
        page = write(page, octets(wire, memory), BEGIN_OCTETS)
    return page


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


def write(page: str, content: str, begin: str = BEGIN) -> str:
    """Return a page with this in the place of the tables that it has between two markers.

    Raises:
        ValueError: If it has not both markers.
    """
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError("the page has no place for tables")
    return before + begin + "\n" + content + "\n" + END + after


def sections(runs: Sequence[dict[str, Any]]) -> str:
    """Return all tables of some runs, each run under a head."""
    return "\n".join(f"### Run {number}\n\n" + "\n".join(tables(run)) for number, run in enumerate(runs, 1))


def main() -> None:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.json", help="what `wsfast bench --json` has written")
    parser.add_argument("--readme", action="store_true", help="write the two tables of README.md")
    arguments = parser.parse_args()
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.runs]
    path = README if arguments.readme else PAGE
    page = path.read_text(encoding="utf-8")
    path.write_text(readme(page, runs) if arguments.readme else write(page, sections(runs)), encoding="utf-8")


if __name__ == "__main__":
    main()
