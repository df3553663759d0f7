"""The tables of the page of measurements are written from what the benchmarks write."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
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


def begins(measurements: ModuleType) -> list[str]:
    """Return what begins each table of the README."""
    return [measurements.BEGIN, measurements.BEGIN_OCTETS]


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
    for path, marks in ((measurements.PAGE, [measurements.BEGIN]), (measurements.README, begins(measurements))):
        page = path.read_text()
        assert [page.count(mark) for mark in marks] == [1] * len(marks)
        assert page.count(measurements.END) == len(marks)
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


def wire() -> dict[str, Any]:
    """Return what `--json` writes of scenario `wire`."""
    octets = {"websockets": 50.0, "wsfast": 54.6, "channel": 50.0}
    found: list[dict[str, Any]] = [
        {"variant": variant, "way": way, "call": 20.0 / number, "faster": float(number), "octets": size}
        | {"share": size / 50, "messages": 9, "steady": size, "private": None, "compressed": size / 260}
        for variant in ("all", "halves", "private")
        for number, (way, size) in enumerate(octets.items(), 1)
    ]
    tasks = [{"case": {"clients": 1000, "size": 260}}]
    entry = {"scenario": "wire", "loop": "asyncio", "title": "1000 clients", "tasks": tasks, "rows": found}
    loaded: dict[str, Any] = json.loads(json.dumps({"scenarios": [entry]}))
    return loaded


def test_table_of_octets(measurements: ModuleType) -> None:
    """It has the octets that each method sends, in each variant, told against those of websockets."""
    page = "".join(f"{begin}old\n{measurements.END}\n" for begin in begins(measurements))
    written = measurements.readme(page, [wire()])
    assert written.startswith(page.partition(measurements.BEGIN_OCTETS)[0])  # no run has cases
    assert "JSON ticks of 260 bytes, 1000 clients, asyncio, one thread." in written
    assert written.partition("octets.\n\n")[2].splitlines() == [
        "| - | us per client | octets, to all | to random halves | to all, private messages between |",
        "| --- | --- | --- | --- | --- |",
        "| `websockets.broadcast` | 20.00 | 50 | 50 | 50 |",
        "| **`wsfast.broadcast`** | 10.00 (2.00) | 55 (1.09) | 55 (1.09) | 55 (1.09) |",
        "| **`wsfast.Channel`** | 6.67 (3.00) | 50 (1.00) | 50 (1.00) | 50 (1.00) |",
        "",
        measurements.END,
    ]


def test_readme_is_made_of_several_runs(measurements: ModuleType) -> None:
    """Each table is made of the first run that tells of it; the memory is that of servers with compression."""
    page = "".join(f"{begin}old\n{measurements.END}\n" for begin in begins(measurements))
    weighed, plain = run_of({"floor": 1}), run_of({"floor": 1})
    for run in (weighed, plain):
        run["cases"] = []
    weighed["memory"][0]["case"] |= {"compression": "deflate", "clients": 1000}
    written = measurements.readme(page, [plain, wire(), run_of({"floor": 2}), weighed, run_of({"floor": 3})])
    assert "old" not in written
    assert "| *bare loop in C* | 2.00 |\n" in written
    assert " to all, private messages between | MiB for 1000 clients |\n" in written
    assert "| `websockets.broadcast` | 20.00 | 50 | 50 | 50 | 1 |\n" in written
    assert "| **`wsfast.broadcast`** | 10.00 (2.00) | 55 (1.09) | 55 (1.09) | 55 (1.09) | - |\n" in written
    with pytest.raises(ValueError, match="no run has cases, and none has the scenario wire"):
        measurements.readme(page, [plain, weighed])


def test_command_writes_the_readme(measurements: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line takes the files of all runs, and writes in place."""
    files = [tmp_path / name for name in ("readme.json", "wire.json")]
    for path, run in zip(files, (run_of({"floor": 2}), wire()), strict=True):
        path.write_text(json.dumps(run))
    page = tmp_path / "README.md"
    page.write_text(measurements.README.read_text())
    monkeypatch.setattr(measurements, "README", page)
    monkeypatch.setattr("sys.argv", ["measurements.py", "--readme", *map(str, files)])
    measurements.main()
    written = page.read_text()
    assert "| *bare loop in C* | 2.00 |\n" in written
    assert "| **`wsfast.broadcast`** | 10.00 (2.00) | 55 (1.09) |" in written
    for begin in begins(measurements):
        assert written.count(begin) == 1
