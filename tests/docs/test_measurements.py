"""The figures of README and docs are written from runs of the benchmarks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers.pages import ROOT
from helpers.scripts import script
from wsfast_bench.cases import Case, Result, Samples, Verdict, Weight
from wsfast_bench.report import collect


def run_of(microseconds: dict[str, int], **settings: Any) -> dict[str, Any]:
    """Return what a run has of calls that took so long for each client."""
    case = Case(10, 64, "asyncio", "text", tuple(microseconds), 1, 1, "list", **settings)
    samples = {}
    for name, time in microseconds.items():
        calls = [[10_000 * time]]
        samples[name] = Samples(call=calls, cpu=calls, drained=calls)
    verdict = Verdict(sender="floor", clients=10, drained=1e6, size=66, behind=1000, call=1_000_000)
    machine = {"processor": "Z80", "processors": 2, "system": "CP/M 2", "architecture": "z80"}
    weights = {case: {"websockets": Weight(10, 1 << 20, 2 << 20)}}
    content = collect(machine, {"wsfast": "0.2.0"}, (1, 0), [Result(case, samples, verdict)], weights)
    loaded: dict[str, Any] = json.loads(json.dumps(content))
    return {"command": "wsfast bench --clients 10", "when": "2026-11-27 06:00 +0000"} | loaded


def played(scenario: str, *rows: dict[str, Any]) -> dict[str, Any]:
    """Return what a run has of a scenario."""
    entry = {"scenario": scenario, "loop": "asyncio", "title": "10 clients", "rows": list(rows)}
    entry["tasks"] = [{"case": {"clients": 10, "size": 260}}]
    return {**run_of({"floor": 1}), "cases": [], "memory": [], "scenarios": [entry]}


@pytest.fixture
def measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, in a repository that is nearly empty."""
    module = script("measurements")
    for name, path in {"ROOT": "", "MEASUREMENTS": "docs/measurements", "README": "README.md"}.items():
        monkeypatch.setattr(module, name, tmp_path / path)
    module.MEASUREMENTS.mkdir(parents=True)
    yield module
    module.load.cache_clear()


def keep(measurements: ModuleType, **runs: dict[str, Any]) -> None:
    """Put runs into the repository."""
    for name, run in runs.items():
        (measurements.MEASUREMENTS / f"{name.replace('_', '-')}.json").write_text(json.dumps(run))


# ---- Figures in sentences


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ("broadcast method=wsfast faster", "2.00"),
        ("broadcast method=wsfast clients=10 loop=asyncio call:.1f", "3.0"),
        ("broadcast max(faster):.1f", "3.0"),
        ("broadcast min(efficiency):.0%", "33%"),
        ("memory method=websockets grown/MiB:.0f", "1"),
        ("memory method=websockets after:2s", "2,100,000"),
        ("conflate method=Conflate age:2s", "0.25"),
    ],
)
def test_figure(asked: str, written: str, measurements: ModuleType) -> None:
    """A mark chooses a row, one of its numbers, a unit and a format."""
    run = run_of({"floor": 2, "wsfast": 3, "websockets": 6})
    keep(measurements, broadcast=run, memory={**run, "cases": []})
    keep(measurements, conflate=played("conflate", {"way": "Conflate", "age": 0.2549}))
    page = f"It is (7,000.5<!-- figure: {asked} -->) times\nas fast as 1.00.\n"
    new = measurements.rewrite(page, measurements.README)
    assert new == page.replace("7,000.5", written)
    assert measurements.rewrite(page.replace("7,000.5", ""), measurements.README) == new
    assert measurements.rewrite(new, measurements.README) == new


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("broadcast", "cannot understand"),
        ("broadcast method=wsfast call:", "cannot understand"),
        ("broadcast wsfast call", "cannot understand"),
        ("broadcast call", "is in 2 rows"),
        ("broadcast method=picows call", "is in 0 rows"),
        ("broadcast method=wsfast warp", "is in 0 rows"),
        ("broadcast method=wsfast call/furlong", "unknown unit"),
        ("nothing call", "there is no docs/measurements/nothing.json; python scripts/measure.py nothing"),
    ],
)
def test_figure_that_no_run_has(asked: str, message: str, measurements: ModuleType) -> None:
    """A figure that is not exactly one number of a run is an error."""
    keep(measurements, broadcast=run_of({"wsfast": 3, "websockets": 6}))
    with pytest.raises(ValueError, match=message):
        measurements.rewrite(f"1<!-- figure: {asked} -->", measurements.README)


# ---- Tables


def mark(name: str) -> str:
    """Return a place for a table."""
    return f"before\n<!-- begin: {name}, written by scripts/measurements.py -->\nold\n<!-- end -->\nafter\n"


def test_table(measurements: ModuleType) -> None:
    """A table stands between its marks. Below it is how it was measured, except in README."""
    run = run_of({"floor": 2, "wsfast": 4, "channel": 2, "websockets": 6, "await": 9})
    second = run_of({"floor": 2, "wsfast": 3, "websockets": 6})["cases"]
    second[0]["case"]["clients"] = 1000
    keep(measurements, broadcast=run | {"cases": run["cases"] + second, "memory": [], "note": "on a busy machine"})
    table = [
        "| us per client | 10 clients, asyncio | 1000 clients, asyncio |",
        "| --- | --- | --- |",
        "| `websockets.broadcast()` | 6.00 | 6.00 |",
        "| `broadcast()` of `picows.websockets` | - | - |",
        "| **`wsfast.broadcast()`** | 4.00 (1.50) | 3.00 (2.00) |",
        "| **`wsfast.broadcast()` with `wsfast.serve()`** | - | - |",
        "| **`wsfast.Channel`** | 2.00 (3.00) | - |",
        "| *bare loop of `send()` in C* | 2.00 (3.00) | 2.00 (3.00) |",
        "| efficiency: `wsfast.broadcast()` | 0.50 | 0.67 |",
        "| efficiency: `wsfast.broadcast()` with `wsfast.serve()` | - | - |",
        "| efficiency: `wsfast.Channel` | 1.00 | - |",
    ]
    for text in (mark("broadcast"), mark("broadcast").replace("broadcast, ", "")):
        begin = text.splitlines()[1]
        lines = ["before", begin, "", *table, "", "<!-- end -->", "after"]
        assert measurements.rewrite(text, measurements.README).splitlines() == lines
    page = measurements.ROOT / "docs" / "explanation" / "page.md"
    assert measurements.rewrite(mark("broadcast"), page).splitlines()[3 + len(table) :] == [
        "",
        "[broadcast.json](../measurements/broadcast.json): `wsfast bench --clients 10` (wsfast 0.2.0, 2026-11-27, on a "
        "busy machine)",
        "",
        "<!-- end -->",
        "after",
    ]
    with pytest.raises(ValueError, match="unknown table 'origami'"):
        measurements.rewrite(mark("origami"), page)


def test_table_of_bytes(measurements: ModuleType) -> None:
    """It has the bytes that each method sends in each variant, compared with those of websockets, and the memory."""
    sizes = {"websockets": 50.0, "wsfast": 54.6, "channel": 50.0}
    rows: list[dict[str, Any]] = [
        {"variant": variant, "way": way, "call": 20.0 / count, "faster": float(count), "octets": size}
        | {"share": size / 50}
        for variant in ("all", "halves", "private")
        for count, (way, size) in enumerate(sizes.items(), 1)
    ]
    keep(measurements, wire=played("wire", *rows), memory=run_of({}) | {"cases": []})
    written = measurements.rewrite(mark("octets"), measurements.README)
    assert "JSON ticks of 260 bytes, 10 clients, asyncio, one thread." in written
    assert [line for line in written.splitlines() if line.startswith("|")] == [
        "|  | us per client | bytes, to all | to random halves | to all, private messages between "
        "| MiB for 10 clients |",
        "| --- | --- | --- | --- | --- | --- |",
        "| `websockets.broadcast()` | 20.00 | 50 | 50 | 50 | 1 |",
        "| `broadcast()` of `picows.websockets` | - | - | - | - | - |",
        "| **`wsfast.broadcast()`** | 10.00 (2.00) | 55 (1.09) | 55 (1.09) | 55 (1.09) | - |",
        "| **`wsfast.Channel`** | 6.67 (3.00) | 50 (1.00) | 50 (1.00) | 50 (1.00) | - |",
    ]


def test_command_writes_in_place(
    measurements: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It rewrites all pages that have marks, and with --check only says which are out of date."""
    keep(measurements, broadcast=run_of({"wsfast": 3, "websockets": 6}))
    page = measurements.ROOT / "docs" / "how-to" / "page.md"
    page.parent.mkdir()
    old = "1.9<!-- figure: broadcast method=wsfast faster:.1f --> times\n"
    for path in (page, measurements.README):
        path.write_text(old)
    (page.parent / "other.md").write_text("no marks\n")
    monkeypatch.setattr("sys.argv", ["measurements.py", "--check"])
    with pytest.raises(SystemExit, match="1"):
        measurements.main()
    assert page.read_text() == old
    monkeypatch.setattr("sys.argv", ["measurements.py"])
    measurements.main()
    assert capsys.readouterr().out.splitlines() == ["README.md", "docs/how-to/page.md"] * 2
    assert page.read_text() == measurements.README.read_text() == old.replace("1.9", "2.0")
    measurements.main()
    assert capsys.readouterr().out == "nothing has changed\n"


def test_command_writes_a_report(measurements: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All runs together make one page, with the questions of each."""
    keep(
        measurements,
        broadcast=run_of({"wsfast": 3, "websockets": 6}),
        tick=run_of({"wsfast": 3, "websockets": 6}, tick=9),
    )
    monkeypatch.setattr("sys.argv", ["measurements.py", "--report", str(tmp_path / "report.html")])
    measurements.main()
    text = (tmp_path / "report.html").read_text()
    assert "How much faster is it?" in text
    assert "How much processor time does it save?" in text


# ---- The runs


def test_every_table_can_be_written() -> None:
    """The runs of the repository have all that the tables need; only pages other than README name their runs."""
    measurements = script("measurements")
    for name, write in measurements.TABLES.items():
        table = write(measurements.README)
        assert re.search(r"^\| .* \| [\d.,]+", table, re.MULTILINE) or name == "machine", name
        assert "../measurements/" not in table
        page = write(ROOT / "docs" / "explanation" / "page.md")
        assert ("](../measurements/" in page) == (name not in ("machine", "overview")), name


def test_runs_are_those_of_the_script() -> None:
    """Each file of docs/measurements is made by scripts/measure.py, which makes no other; no file has samples."""
    measure = script("measure")
    files = {path.stem: json.loads(path.read_text()) for path in measure.MEASUREMENTS.iterdir()}
    assert set(files) == set(measure.RUNS)
    for name, run in files.items():
        assert run["command"].startswith("wsfast bench ")
        assert run["when"].startswith("20")
        assert {"machine", "versions", "processors"} <= set(run)
        size = (measure.MEASUREMENTS / f"{name}.json").stat().st_size
        assert size < 40_000, f"{name}.json is too large to be kept"


def test_run_is_trimmed_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A command writes one file without samples; one that fails writes none, and the script goes on."""
    measure = script("measure")
    monkeypatch.setattr(measure, "MEASUREMENTS", tmp_path)
    monkeypatch.setattr(measure, "RUNS", {"broken": "--scenario origami", "good": "--clients 3"})
    commands: list[list[str]] = []

    def run(command: list[str], *, cwd: Path, check: bool) -> None:
        assert cwd == ROOT
        assert check
        commands.append(command)
        if "origami" in command:
            raise measure.subprocess.CalledProcessError(2, command)
        Path(command[command.index("--json") + 1]).write_text(json.dumps(run_of({"wsfast": 3})))

    monkeypatch.setattr(measure.subprocess, "run", run)
    monkeypatch.setattr("sys.argv", ["measure.py"])
    with pytest.raises(SystemExit, match="failed: broken"):
        measure.main()
    assert [path.name for path in tmp_path.iterdir()] == ["good.json"]
    kept = json.loads((tmp_path / "good.json").read_text())
    assert kept["command"] == "wsfast bench --clients 3"
    assert kept["cases"][0]["methods"]["wsfast"]["samples"] == {"short": 0}
    commands.clear()
    with pytest.raises(SystemExit, match="failed: broken"):
        measure.main()  # what is there is not measured again
    assert len(commands) == 1
    monkeypatch.setattr("sys.argv", ["measure.py", "good"])
    measure.main()
    assert "--clients" in commands[-1]
