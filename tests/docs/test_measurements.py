"""The tables of the page of measurements are written from what the benchmarks write."""

from __future__ import annotations

import importlib.util
import json
from types import ModuleType
from typing import Any

import pytest

from helpers.pages import ROOT
from wsfast_bench.cases import Case, Result, Samples, Verdict, Weight
from wsfast_bench.report import collect

SCRIPT = ROOT / "scripts" / "measurements.py"


@pytest.fixture(scope="module")
def measurements() -> ModuleType:
    """The script."""
    spec = importlib.util.spec_from_file_location("measurements", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_of(microseconds: dict[str, int]) -> dict[str, Any]:
    """Return what `--json` writes of calls that took so long for each client."""
    case = Case(10, 64, "asyncio", "text", tuple(microseconds), 1, 1, "list")
    samples = {}
    for name, time in microseconds.items():
        calls = [[10_000 * time]]
        samples[name] = Samples(call=calls, cpu=calls, drained=calls)
    verdict = Verdict(sender="floor", clients=10, drained=1e6, size=66, behind=1000, call=1_000_000)
    machine = {"processor": "Z80", "processors": 2, "system": "CP/M 2", "architecture": "z80"}
    weights = {case: {"websockets": Weight(10, 1 << 20, 2 << 20)}}
    content = collect(machine, {"wsfast": "0.2.0"}, (1, 0), [Result(case, samples, verdict)], weights)
    loaded: dict[str, Any] = json.loads(json.dumps(content))
    return loaded


def test_page_has_a_place_for_tables(measurements: ModuleType) -> None:
    """The page has the markers between which the script writes."""
    for path in (measurements.PAGE, measurements.README):
        page = path.read_text()
        assert page.count(measurements.BEGIN) == page.count(measurements.END) == 1
    with pytest.raises(ValueError, match="no place"):
        measurements.write("# Measurements\n", "")


def test_tables_are_those_of_the_runs(measurements: ModuleType) -> None:
    """The runs replace what stood there, and nothing else."""
    page = f"before\n{measurements.BEGIN}old\n{measurements.END}\nafter\n"
    runs = [run_of({"floor": 2, "wsfast": 3, "websockets": 6}), run_of({"floor": 1})]
    written = measurements.write(page, measurements.sections(runs))
    assert written.startswith(f"before\n{measurements.BEGIN}\n### Run 1\n\nZ80, 2 processors, CP/M 2 z80;")
    assert written.endswith(f"\n{measurements.END}\nafter\n")
    assert "old" not in written
    assert written.count("| method | us/client |") == 2
    assert "| wsfast | 3.00 | 0.03 | 0.03 | 3.00 | 0.03 | - | 2.00 | 0.67 |\n" in written
    assert "| websockets | 102.4 | 1.0 | 2.0 |\n" in written
    assert measurements.write(written, measurements.sections(runs[1:])).count("| method |") == 1


def test_scenarios_have_tables(measurements: ModuleType) -> None:
    """A run of scenarios has the tables that the terminal shows."""
    row = {"connections": 5, "channels": 10, "subscriptions": 50, "how": "traced", "subscribed": 99.6, "each": 212.0}
    played = {"scenario": "memory-subscriptions", "loop": "asyncio", "title": "50 subscriptions", "rows": [row]}
    run = {**run_of({"floor": 1}), "cases": [], "memory": [], "scenarios": [played]}
    written = measurements.write(measurements.BEGIN + measurements.END, measurements.sections([run]))
    assert "**memory-subscriptions: 50 subscriptions, asyncio**" in written
    assert "| 5 | 10 | 50 | traced | 100 | 212 |\n" in written


def test_table_of_the_readme(measurements: ModuleType) -> None:
    """It has a column for each case of a run, also for several threads, and the rows that the README tells of."""
    run, several = (run_of({"floor": 2, "wsfast": own, "channel": 2, "websockets": 6, "await": 9}) for own in (4, 1))
    several["cases"][0]["case"] |= {"threads": 4, "clients": 1000}
    run["cases"] += several["cases"]
    assert measurements.overview(run).splitlines() == [
        "| - | 10 clients, asyncio, 1 thread | 1000 clients, asyncio, 4 threads |",
        "| --- | --- | --- |",
        "| `websockets.broadcast` | 6.00 | 6.00 |",
        "| **`wsfast.broadcast`** | 4.00 (1.50) | 1.00 (6.00) |",
        "| **`wsfast.Channel`** | 2.00 (3.00) | 2.00 (3.00) |",
        "| *bare loop in C* | 2.00 (3.00) | 2.00 (3.00) |",
        "| efficiency of `wsfast.broadcast` | 0.50 | 2.00 |",
        "| efficiency of `wsfast.Channel` | 1.00 | 1.00 |",
    ]
