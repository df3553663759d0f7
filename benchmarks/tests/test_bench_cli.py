"""`wsfast bench`, with few clients and for a moment. What they measure is nobody's business here."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import wsfast
import wsfast_bench
from helpers.interop.clients import install_ws
from wsfast.cli import main
from wsfast_bench import bench, machine
from wsfast_bench._library import core_in_use, extension_present
from wsfast_bench.cases import Case, Result, Samples, Verdict
from wsfast_bench.clients import Clients
from wsfast_bench.measure import prepared
from wsfast_bench.methods import METHODS
from wsfast_bench.report import describe_verdict, percentile, print_case, ratio, summarize
from wsfast_bench.servers import SERVE, admit, interval_of_pings

TINY = ["--clients", "5", "--rounds", "2", "--calls", "2"]

LOOPS = ["asyncio", *(["uvloop"] if importlib.util.find_spec("uvloop") else [])]

PRESENT = [
    name
    for name, method in METHODS.items()
    if not method.compressed
    and method.feature != "node"
    and (method.feature != "extension" or extension_present())
    and (method.feature != "picows" or importlib.util.find_spec("picows"))
]


def absent(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Make it seem that modules are not installed."""
    for name in ("wsfast_bench.bench", "wsfast_bench.session", "wsfast_bench.demo.options"):
        module = sys.modules.get(name) or __import__(name, fromlist=["_"])
        monkeypatch.setattr(module, "installed", lambda module: module not in modules)


def rows(output: str) -> dict[str, list[str]]:
    """Return the rows of tables, by their methods."""
    lines = (line.split() for line in output.splitlines())
    return {line[0]: line[1:] for line in lines if line and line[0] in METHODS}


def test_version() -> None:
    """Both distributions have one version, and the benchmarks ask for that of wsfast: they look into it."""
    assert wsfast_bench.__version__ == wsfast.__version__
    assert f"wsfast=={wsfast.__version__}" in (importlib.metadata.requires("wsfast-bench") or ())


@pytest.mark.parametrize("argv", [["bench", "--clients", "0"], ["bench", "--sizes", "64,x"], ["demo", "--port", "x"]])
def test_wrong_arguments(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong arguments are an error with status 2."""
    with pytest.raises(SystemExit) as raised:
        main(argv)
    assert raised.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--methods", "floor,flor", "unknown method 'flor'; known are floor, floor-served, wsfast,"),
        ("--loops", "trio", "unknown loop 'trio'; known are asyncio, uvloop"),
        ("--types", "json", "unknown type 'json'; known are text, binary"),
    ],
)
def test_unknown_names(option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown names are told, with those that are known."""
    with pytest.raises(SystemExit):
        main(["bench", option, value])
    assert message in capsys.readouterr().err


def test_closed_pipe() -> None:
    """Whoever reads the output may stop to do so, without a traceback."""
    read, write = os.pipe()
    os.close(read)
    argv = [sys.executable, "-m", "wsfast", "bench", *TINY, "--methods", "websockets", "--loops", "asyncio"]
    process = subprocess.run(
        argv, stdout=write, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    os.close(write)
    assert (process.returncode, process.stderr) == (1, "")


# ---- bench


@pytest.mark.parametrize("loop", LOOPS)
def test_bench_measures_all_methods(
    loop: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each method has a row in the table; samples are in the file."""
    path = tmp_path / "bench.json"
    assert main(["bench", *TINY, "--loops", loop, "--json", str(path)]) == 0
    output = capsys.readouterr().out
    assert list(rows(output)) == PRESENT
    assert f"5 clients, 64 B text, {loop}; 2 rounds of 2 calls" in output
    assert "clients drain at" in output
    content = json.loads(path.read_text())
    assert set(content) == {"command", "when", "machine", "versions", "processors", "cases", "memory"}
    assert content["command"].startswith("wsfast bench --clients 5 ")
    assert content["versions"]["wsfast"]
    (case,) = content["cases"]
    assert case["case"]["clients"] == 5
    assert case["verdict"]["drained"] > 0
    assert list(case["methods"]) == PRESENT
    for name, method in case["methods"].items():
        samples = method["samples"]
        for kind in ("call", "cpu", "drained"):
            assert [len(calls) for calls in samples[kind]] == [2, 2], name
        for call, drained in zip(chain(*samples["call"]), chain(*samples["drained"]), strict=True):
            assert 0 < call <= drained, name
        assert samples["short"] == 0
        assert method["summary"]["call"] > 0


def test_bench_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    """There is a table for each combination of clients, sizes, types and loops; and whatever the collection is."""
    argv = [
        "bench",
        "--clients",
        "2,3",
        "--sizes",
        "1,70000",
        "--types",
        "text,binary",
        "--rounds",
        "1",
        "--calls",
        "1",
    ]
    assert (
        main([*argv, "--methods", "websockets,wsfast-pure", "--loops", "asyncio", "--collection", "set", "--sleep"])
        == 0
    )
    output = capsys.readouterr().out
    for clients in (2, 3):
        for size in (1, 70000):
            for kind in ("text", "binary"):
                assert f"{clients} clients, {size} B {kind}, asyncio, in a set, clients that sleep; 1 round" in output
    assert list(rows(output)) == ["wsfast-pure", "websockets"]
    assert "With fewer than 100 calls, p99 is the slowest call." in output


@pytest.mark.skipif(not extension_present(), reason="the extension is absent")
def test_bench_floor_that_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    """A message that sockets may not hold, so that the floor is none, does not keep the others from being measured."""
    argv = ["bench", "--clients", "1", "--sizes", "32000000", "--rounds", "1", "--calls", "1", "--loops", "asyncio"]
    assert main([*argv, "--methods", "floor,wsfast"]) == 0
    # Whether the kernel takes it all depends on how fast the clients read meanwhile.
    assert set(rows(capsys.readouterr().out)) == {"floor", "wsfast"}


APART = ["floor", "floor-served", "wsfast", "wsfast-served", "channel", "hub", "websockets", "picows"]
"""What is measured by default where each method has connections of its own."""


@pytest.mark.parametrize(
    ("loop", "options"),
    [("asyncio", ["--cold"]), (LOOPS[-1], ["--tick", "2"]), ("asyncio", ["--cold", "--tick", "2"])],
    ids=str,
)
def test_bench_apart(loop: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each method has connections of its own; with cold caches every call counts, and there is one in a turn."""
    path = tmp_path / "bench.json"
    argv = ["bench", "--clients", "2", "--rounds", "1", "--sleep", "--loops", loop, "--json", str(path)]
    assert main([*argv, *options]) == 0
    output = capsys.readouterr().out
    expected = [name for name in APART if name in PRESENT]
    assert list(rows(output)) == expected
    assert "Each method has connections of its own." in output
    assert ("drained ms" in output) == ("bottleneck" in output) == ("--tick" not in options)
    (case,) = json.loads(path.read_text())["cases"]
    for name in expected:
        samples = case["methods"][name]["samples"]
        assert [len(taken) for taken in samples["call"]] == [1 if "--cold" in options else 3]
        if "--tick" in options:
            # uvloop's clock has milliseconds, so a timer may be early by one.
            assert all(drained > 1_000_000 for drained in chain(*samples["drained"])), name
            summary = case["methods"][name]["summary"]
            assert summary["lower"] <= summary["cpu"] <= summary["upper"]


def test_connections_of_their_own() -> None:
    """Servers that accept for one method do not for another one; without the options they are shared."""

    async def crowds(cold: bool) -> list[set[int]]:
        measured = Case(2, 64, "asyncio", "text", ("wsfast-pure", "websockets", "await"), 1, 1, "list", cold=cold)
        async with prepared(measured, False, None) as (bench, turns):
            assert (bench.memory is not None) == cold
            return [set(map(id, turn.room.connections)) for turn in turns.values()]

    apart = asyncio.run(crowds(True))
    assert [len(crowd) for crowd in apart] == [2, 2, 2]
    assert len(set().union(*apart)) == 6
    assert len(set().union(*asyncio.run(crowds(False)))) == 2


def test_cold_walks_through_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is as large as the last-level cache twice, and looked through before each call, outside of its times."""
    looks: list[int] = []

    class Memory(bytes):
        def __eq__(self, other: object) -> bool:
            looks.append(1)
            time.sleep(0.05)
            return True

        __hash__ = None  # type: ignore[assignment]

    async def run() -> Samples:
        measured = Case(2, 64, "asyncio", "text", ("websockets",), 2, 1, "list", cold=True)
        async with prepared(measured, False, None) as (bench, turns):
            assert bench.memory is not None
            assert [len(half) for half in bench.memory] == [machine.cache_size(machine.usable_processors()[0])] * 2
            bench.memory = [Memory(), Memory()]
            samples = Samples()
            for _ in range(3):
                await bench.take_turn(turns["websockets"], samples)
            return samples

    samples = asyncio.run(run())
    assert len(looks) == len(samples.call) == 3
    assert sum(chain(*samples.cpu)) > 0
    assert min(chain(*samples.drained)) < 50_000_000


def test_cache_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is that of the highest level; a guess where nothing is known of it."""
    monkeypatch.setattr(machine, "CACHES", tmp_path)
    assert machine.cache_size(3) == 64 << 20
    for index, (level, size) in enumerate([("1", "32K"), ("3", "36M"), ("2", "1024K"), ("x", "1G"), ("4", "")]):
        cache = tmp_path / "cpu3" / "cache" / f"index{index}"
        cache.mkdir(parents=True)
        (cache / "level").write_text(f"{level}\n")
        (cache / "size").write_text(f"{size}\n")
    assert machine.cache_size(3) == 36 << 20
    assert machine.cache_size(2) == 64 << 20


def test_keepalive(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers send pings unless told otherwise, and the clients' answers keep the connections open."""

    async def run(server: str, keepalive: bool) -> tuple[int, int]:
        accepted: list[Any] = []
        case = Case(2, 64, "asyncio", "text", (), 1, 1, "list", keepalive=keepalive)
        async with SERVE[server](case, accepted) as port:
            with Clients(None) as clients:
                await admit(clients, case, port, accepted)
                await clients.drain(awake=False)
                if server != "picows":
                    assert (accepted[0].ping_interval is not None) == keepalive
                    deadline = time.monotonic() + 60
                    while keepalive and not accepted[0].latency:
                        assert time.monotonic() < deadline
                        await asyncio.sleep(0.001)
                await accepted[0].send("x")
                while not clients.messages:
                    await asyncio.sleep(0.001)
                return clients.messages, clients.octets

    monkeypatch.setattr("wsfast_bench.servers.KEEPALIVE", 0.01)
    for server in ("stock", "served", *(["picows"] if "picows" in PRESENT else [])):
        for keepalive in (True, False):
            assert asyncio.run(run(server, keepalive)) == (1, 3)
    assert main(["bench", *TINY, "--methods", "websockets", "--loops", "asyncio", "--no-keepalive"]) == 0
    assert "5 clients, 64 B text, asyncio, no keepalive; 2 rounds" in capsys.readouterr().out


def test_interval_of_pings() -> None:
    """Connections of several methods get as many pings in a tick as those of one method alone would."""
    case = Case(2, 64, "asyncio", "text", ("floor", "wsfast", "websockets"), 1, 1, "list")
    assert interval_of_pings(case) is None
    assert interval_of_pings(dataclasses.replace(case, keepalive=True)) == 20
    assert interval_of_pings(dataclasses.replace(case, keepalive=True, tick=20)) == 60


def test_bench_threads(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a case for each number of threads for which there are processors; of the others it is told."""
    monkeypatch.setattr(machine, "usable_processors", lambda: [0, 1])
    plans: list[Case] = []
    monkeypatch.setattr("wsfast_bench.session.measure_case", lambda case, *_: plans.append(case))
    monkeypatch.setattr("wsfast_bench.report.print_case", lambda _: None)
    monkeypatch.setattr("wsfast_bench.report.collect", lambda *_: {})
    assert main(["bench", *TINY, "--methods", "websockets", "--loops", "asyncio", "--threads", "1,2,4"]) == 0
    assert "Skipping 4 threads: this process may use 2 processors" in capsys.readouterr().out
    assert [case.threads for case in plans] == [1, 2]
    assert str(plans[1]) == "5 clients, 64 B text, asyncio, 2 threads"
    assert main(["bench", *TINY, "--threads", "3"]) == 1
    assert "no number of threads is left to measure" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be bound here")
def test_bind_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server has as many processors as threads: other cores first, and that of its clients last of all."""
    bound: list[set[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, processors: bound.append(set(processors)))
    monkeypatch.setattr(machine, "usable_processors", lambda: [0, 1, 2, 3, 4])
    monkeypatch.setattr(machine, "shares_core", lambda first, second: first // 2 == second // 2)
    assert not machine.bind_server(None, 4)
    assert bound == []
    assert [machine.bind_server((2, 0), threads) for threads in (1, 2, 3, 4, 5)] == [True, True, True, True, False]
    assert bound == [{2}, {2, 1}, {2, 1, 4}, {2, 1, 4, 3}, {2, 1, 4, 3, 0}]


# ---- Node


def test_bench_without_node(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Where Node or its package is absent, the method is left out, with a line that says so."""
    argv = ["bench", *TINY, "--loops", "asyncio", "--methods", "websockets,node", "--node", str(tmp_path)]
    assert main(argv) == 0
    output = capsys.readouterr().out
    assert "Skipping method node: Node or its package ws is absent; see --node" in output
    assert list(rows(output)) == ["websockets"]


@pytest.mark.parametrize(
    "options", [[], ["--tick", "1"], ["--compression", "deflate", "--types", "text,binary"]], ids=str
)
def test_bench_node(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A server in Node is measured like the others: it tells its times, and its clients get each message."""
    directory = Path(__file__).parents[2] / "build" / "node"
    install_ws(directory)
    path = tmp_path / "bench.json"
    argv = ["bench", "--clients", "3", "--rounds", "1", "--calls", "2", "--loops", "asyncio", "--sleep"]
    assert main([*argv, "--methods", "node", "--json", str(path), "--node", str(directory), *options]) == 0
    content = json.loads(path.read_text())
    assert {"node", "ws"} <= set(content["versions"])
    for case in content["cases"]:
        samples = case["methods"]["node"]["samples"]
        assert [len(calls) for calls in samples["call"]] == [2]
        assert all(call > 0 for call in chain(*samples["call"]))
        assert all(0 < octets < 70 for octets in chain(*samples["octets"], samples["run"]))


def test_bench_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A chart is drawn in the format that its name tells."""
    pytest.importorskip("matplotlib")
    chart = tmp_path / "chart.svg"
    argv = ["bench", *TINY, "--methods", "websockets,wsfast-pure", "--loops", "asyncio", "--quick"]
    assert main([*argv, "--chart", str(chart)]) == 0
    assert "<svg" in chart.read_text()
    assert main([*argv, "--chart", str(chart.with_suffix(".png"))]) == 0
    assert chart.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_bench_progress(capsys: pytest.CaptureFixture[str]) -> None:
    """A progress bar counts rounds, on standard error."""
    pytest.importorskip("tqdm")
    assert main(["bench", *TINY, "--methods", "websockets", "--loops", "asyncio", "--progress"]) == 0
    captured = capsys.readouterr()
    assert "5 clients, 64 B text, asyncio" in captured.err
    assert "2/2" in captured.err
    assert "2/2" not in captured.out


def test_bench_without_extras(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not installed is skipped, with a notice that names the extra."""
    absent(monkeypatch, "picows", "uvloop", "tqdm", "matplotlib")
    chart = tmp_path / "chart.png"
    argv = ["bench", *TINY, "--methods", "picows,websockets", "--progress", "--chart", str(chart)]
    assert main(argv) == 0
    output = capsys.readouterr().out
    assert "Skipping method picows: picows is not installed; pip install wsfast[bench]" in output
    assert "Skipping loop uvloop: uvloop is not installed; pip install wsfast[bench]" in output
    assert "No progress bar: tqdm is not installed; pip install wsfast[bench]" in output
    assert "No chart: matplotlib is not installed; pip install wsfast[bench]" in output
    assert list(rows(output)) == ["websockets"]
    assert not chart.exists()


def test_bench_without_extension(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the extension there is no floor, nor anything that needs it; the twin is measured all the same."""
    monkeypatch.setenv("WSFAST_PURE", "1")
    monkeypatch.setattr(bench, "extension_present", lambda: False)
    assert main(["bench", *TINY, "--methods", "floor,wsfast,wsfast-pure,websockets", "--loops", "asyncio"]) == 0
    output = capsys.readouterr().out
    assert "Skipping method floor: the extension of wsfast is absent, or WSFAST_PURE is set" in output
    assert list(rows(output)) == ["wsfast-pure", "websockets"]


def test_bench_nothing_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """If nothing that was asked for can be measured, that is an error."""
    absent(monkeypatch, "picows")
    assert main(["bench", "--methods", "picows"]) == 1
    assert "wsfast bench: error: no method is left to measure" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--chart", "chart.doc", "cannot draw a chart as .doc; give .png, .svg, .pdf"),
        ("--json", "nowhere/bench.json", "there is no directory"),
    ],
)
def test_bench_files_are_checked_first(
    option: str, name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that could not be written is an error before hours have been spent."""
    assert main(["bench", option, str(tmp_path / name)]) == 1
    assert message in capsys.readouterr().err


def test_too_few_descriptors(capsys: pytest.CaptureFixture[str]) -> None:
    """More clients than descriptors are an error that says what to do."""
    resource = pytest.importorskip("resource")
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] == resource.RLIM_INFINITY:
        pytest.skip("there is no limit")
    for command in ("bench", "demo"):
        assert main([command, "--clients", "100000000"]) == 1
        error = capsys.readouterr().err
        assert f"wsfast {command}: error: 100000000 clients" in error
        assert "ulimit -Hn" in error


def test_limit_of_descriptors_is_raised() -> None:
    """The soft limit becomes the hard one."""
    code = (
        "import resource; from wsfast_bench.machine import reserve_descriptors; "
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard)); reserve_descriptors(100, ''); "
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard)"
    )
    if sys.platform != "linux":
        pytest.skip("elsewhere the hard limit may be none")
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "True"


def test_two_processors() -> None:
    """Server and clients get processors that this process may use, or none."""
    processors = machine.two_processors()
    if processors is not None:
        assert processors[0] != processors[1]
        assert set(processors) <= os.sched_getaffinity(0)


def test_core_in_use() -> None:
    """Either core can be had for a while, by broadcast() and by the messages that it makes."""
    users: list[Any] = [sys.modules["wsfast._delivery"], sys.modules["wsfast._encoding.message"]]
    before = [user.core for user in users]
    stranger = object()
    with core_in_use(stranger):
        assert [user.core for user in users] == [stranger, stranger]
    assert [user.core for user in users] == before


# ---- Statistics


def test_percentile() -> None:
    """A percentile is one of the values."""
    assert percentile(range(1, 101), 99) == 99
    assert percentile(range(1, 101), 50) == 50
    assert percentile([3, 1, 2], 99) == 3
    assert percentile([7], 50) == 7


def test_ratio_is_within_rounds() -> None:
    """A machine that becomes slower from round to round does not change a ratio."""
    slow = Samples(call=[[20, 20, 90], [40, 40, 40], [80, 70, 90]])
    fast = Samples(call=[[10, 10, 10], [20, 90, 20], [40, 40, 40]])
    assert ratio(slow, fast) == 2
    assert ratio(fast, slow) == 0.5


def result(methods: dict[str, Samples], verdict: Verdict) -> Result:
    """Return the result of one round of one call to 10 clients."""
    return Result(Case(10, 64, "asyncio", "text", tuple(methods), 1, 1, "list"), methods, verdict)


VERDICT = Verdict(sender="floor", clients=10, drained=1e6, size=66, behind=100_000, call=1_000_000)


def test_summary() -> None:
    """Times are for each client; efficiency is the floor's time by the method's."""
    samples = {
        "floor": Samples(call=[[1_000_000]], cpu=[[900_000]], drained=[[1_200_000]], wakeups=[3]),
        "websockets": Samples(call=[[4_000_000]], cpu=[[4_000_000]], drained=[[5_000_000]]),
    }
    summary = summarize(result(samples, VERDICT))
    assert summary["floor"].call == 100
    assert summary["floor"].p50 == summary["floor"].p99 == 1
    assert summary["floor"].cpu == 90
    assert summary["floor"].drained == 1.2
    assert summary["floor"].wakeups == 3
    assert (summary["floor"].efficiency, summary["floor"].faster) == (1, 4)
    assert summary["websockets"].wakeups is None
    assert (summary["websockets"].efficiency, summary["websockets"].faster) == (0.25, 1)
    del samples["floor"]
    assert summarize(result(samples, VERDICT))["websockets"].efficiency is None


def test_floor_that_is_short_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """A floor of which the kernel did not take everything is no floor, and that is told."""
    samples = {
        "floor": Samples(call=[[1_000_000]], cpu=[[1_000_000]], drained=[[1_200_000]], short=3),
        "wsfast": Samples(call=[[1_000_000]], cpu=[[1_000_000]], drained=[[1_200_000]]),
    }
    print_case(result(samples, VERDICT))
    output = capsys.readouterr().out
    assert (
        "WARNING: the kernel did not take all of 3 of 10 sends of floor, so it did less work than the others" in output
    )
    assert output.count("WARNING") == 1


def test_verdict() -> None:
    """Clients that end soon after the call are no bottleneck; others are warned of."""
    line = describe_verdict(VERDICT)
    assert line.startswith("clients drain at 66 MB/s")
    assert line.endswith("0.10 ms after the call: the server is the bottleneck")
    late = Verdict(sender="floor", clients=10, drained=1e3, size=66, behind=9_000_000, call=1_000_000)
    assert describe_verdict(late).startswith("WARNING: clients drain at 0 MB/s")
