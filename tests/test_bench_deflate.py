"""What `wsfast bench` does with compressed connections, and with memory. Unlike times, bytes can be told exactly."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import json
import os
import socket
import statistics
import sys
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from helpers.fixtures import Run
from wsfast._core import _pure, core
from wsfast.cli import main
from wsfast.cli.bench.cases import FEATURES, METHODS, WAYS, Case, Weight, combine
from wsfast.cli.bench.clients import Clients
from wsfast.cli.bench.gauge import Gauge
from wsfast.cli.bench.measure import RUN, measure
from wsfast.cli.bench.memory import resident, weigh
from wsfast.cli.bench.report import print_memory, steady
from wsfast.cli.bench.servers import SERVE, admit
from wsfast.cli.bench.ticks import deflated, parcels, ticks
from wsfast.cli.machine import UnfitError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much was sent")

LOOPS = ["asyncio", *(["uvloop"] if importlib.util.find_spec("uvloop") else [])]

ABSENT = {
    *((name for name, feature in FEATURES.items() if feature == "extension") if core is _pure else ()),
    *(() if importlib.util.find_spec("picows") else ("picows",)),
}

PRESENT = [name for name in METHODS if name not in ABSENT]


def case(size: int = 256, *methods: str, kind: str = "text", compression: str = "deflate") -> Case:
    """Return a case of 3 clients."""
    return Case(3, size, "asyncio", kind, methods, 1, 2, "list", compression=compression)


# ---- Ticks


@pytest.mark.parametrize("size", [64, 65, 89, 90, 256, 1000, 70000])
def test_ticks_are_json(size: int) -> None:
    """A tick is JSON of exactly the size that was asked for; price, number and time change."""
    texts = list(islice(ticks(size, "seed"), 20))
    assert {len(text) for text in texts} == {size}
    values = [json.loads(text) for text in texts]
    assert [value["seq"] for value in values] == list(range(1_000_001, 1_000_021))
    for name in ("price", "time"):
        assert len({value[name] for value in values}) == 20
    assert all(text.isascii() for text in texts)
    if size >= 256:
        books = [value["book"] for value in values]
        assert all(books[i] != books[i + 1] for i in range(19))
        assert {tuple(level) for level in books[0]} & {tuple(level) for level in books[1]}


@pytest.mark.parametrize("size", [1, 63])
def test_ticks_that_are_cut_off(size: int) -> None:
    """Also a message that is too short to be a tick has its size."""
    assert {len(text) for text in islice(ticks(size, "seed"), 20)} == {size}


def test_ticks_are_the_same_for_the_same_seed() -> None:
    """What is measured can be measured again."""
    assert list(islice(ticks(256, "a"), 5)) == list(islice(ticks(256, "a"), 5))
    assert list(islice(ticks(256, "a"), 5)) != list(islice(ticks(256, "b"), 5))


@pytest.mark.parametrize(("kind", "first"), [("text", 0xC1), ("binary", 0xC2)])
def test_parcels_are_compressed(kind: str, first: int) -> None:
    """The frame of a parcel is its message, compressed by itself, and no message comes twice."""
    taken = list(islice(parcels(case(kind=kind), "seed"), 20))
    assert len({parcel.message for parcel in taken}) == 20
    for message, frame in taken:
        payload = message.encode() if isinstance(message, str) else message
        assert (frame[0], isinstance(message, str)) == (first, kind == "text")
        body = frame[4:] if frame[1] == 126 else frame[2:]
        assert zlib.decompressobj(-12).decompress(body + b"\x00\x00\xff\xff") == payload
        assert body == deflated(payload)


def test_parcels_without_compression() -> None:
    """Without compression, it is one message for ever."""
    first, second = islice(parcels(case(64, kind="binary", compression="none"), "seed"), 2)
    assert first is second
    assert first.frame == b"\x82\x40" + bytes(first.message)  # type: ignore[arg-type]


# ---- The gauge


@asynccontextmanager
async def accepted_from(case: Case, server: str) -> AsyncIterator[tuple[list[Any], Clients]]:
    """Yield a server's connections, and their clients, which drain."""
    accepted: list[Any] = []
    async with SERVE[server](case, accepted) as port:
        with Clients(None) as clients:
            await admit(clients, case, port, accepted)
            await clients.drain(awake=False)
            yield accepted, clients


@pytest.mark.parametrize("server", ["stock", "no-takeover", *(["picows"] if "picows" in PRESENT else [])])
def test_gauge(server: str, run: Run) -> None:
    """It tells how much was written to a connection, whether by the kernel's account or still by the transport's."""

    async def watch() -> None:
        async with accepted_from(case(), server) as (accepted, clients):
            with closing(Gauge(accepted[1])) as gauge:
                assert gauge.advance() == 0
                before = clients.octets
                await accepted[1].send("x" * 100_000)
                await accepted[1].send(b"y")
                told = gauge.advance()
                assert told > 0
                while clients.octets - before < told:
                    await asyncio.sleep(0)
                await accepted[0].send("x")
                assert gauge.advance() == 0

    run(watch)


def test_gauge_counts_what_waits_in_the_transport(run: Run) -> None:
    """What the socket has no room for is counted when it is written, and once."""

    async def watch() -> None:
        async with accepted_from(case(), "stock") as (accepted, clients):
            with closing(Gauge(accepted[0])) as gauge:
                clients.stop()
                size = 16 << 20
                accepted[0].transport.write(bytes(size))
                assert gauge.advance() == size
                clients.go_on()
                while clients.octets < size:
                    await asyncio.sleep(0)
                assert gauge.advance() == 0

    run(watch)


def test_gauge_of_a_stranger() -> None:
    """A connection that is not of this process is an error, and leaves no descriptor behind."""
    gc.collect()  # lest descriptors of earlier tests be closed meanwhile
    before = len(os.listdir("/proc/self/fd"))

    class Stranger:
        remote_address = ("127.0.0.1", 0)

    with pytest.raises(UnfitError, match="has no socket in this process"):
        Gauge(Stranger())
    assert len(os.listdir("/proc/self/fd")) == before


def test_gauge_on_an_old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that does not tell is an error."""

    async def run() -> None:
        async with accepted_from(case(), "stock") as (accepted, _):
            monkeypatch.setattr(socket.socket, "getsockopt", lambda *_: bytes(104))
            with pytest.raises(UnfitError, match=r"4\.1$"):
                Gauge(accepted[0])

    asyncio.run(run())


# ---- Cases


def rows(output: str) -> dict[str, dict[str, str]]:
    """Return the rows of the tables, by their methods, as columns by the last words of their heads."""
    heads: list[str] = []
    found = {}
    for line in output.splitlines():
        words = line.split()
        if words[:1] == ["method"]:
            heads = words[-4:] if words[-1] == "ratio" else words[-1:]
        elif words and words[0] in METHODS:
            found[words[0]] = dict(zip(["wire", "steady", "ratio"], words[-3:], strict=True)) if heads else {}
    return found


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", ["text", "binary"])
def test_bench_deflate(loop: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each method sends all that its encoders make of the messages; those that compress alike send as much."""
    path = tmp_path / "bench.json"
    argv = ["bench", "--clients", "5", "--rounds", "2", "--calls", "2", "--sizes", "256", "--types", kind]
    assert main([*argv, "--compression", "deflate", "--loops", loop, "--json", str(path)]) == 0
    output = capsys.readouterr().out
    assert f"5 clients, 256 B {kind}, deflate, {loop}; 2 rounds of 2 calls" in output
    (content,) = json.loads(path.read_text())["cases"]
    assert content["case"]["compression"] == "deflate"
    assert list(content["methods"]) == PRESENT
    runs = {name: method["samples"]["run"] for name, method in content["methods"].items()}
    for name, method in content["methods"].items():
        assert [len(calls) for calls in method["samples"]["octets"]] == [2, 2], name
        assert len(runs[name]) == RUN
        summary = method["summary"]
        assert summary["wire"] > 0
        assert summary["steady"] == statistics.mean(runs[name][RUN // 4 :])
        assert summary["compressed"] == summary["steady"] / 256
        shown = rows(output)[name]
        assert shown["steady"] == f"{summary['steady']:.1f}"
        assert shown["wire"] == f"{summary['wire']:.1f}"

    # RFC 7692, section 7.2.1, by zlib itself: each message alone, and with what the window holds.
    payloads = [tick.encode() for tick in islice(ticks(256, "run"), RUN)]
    alone: list[int] = []
    shared: list[int] = []
    encoder = zlib.compressobj(wbits=-12, memLevel=5)
    for payload in payloads:
        stranger = zlib.compressobj(wbits=-12, memLevel=5)
        for sizes, compressor in ((alone, stranger), (shared, encoder)):
            size = len(compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)) - 4
            sizes.append(size + (2 if size < 126 else 4))
    for name in ("floor", "floor-served", "no-takeover"):
        if name in runs:
            assert runs[name] == alone, name
    last = slice(RUN // 4, None)
    for name in ("websockets", "await", "tasks", "wait", "queues", "pubsub"):
        assert runs[name][last] == shared[last], name
    sharing = [(name, shared) for name in ("audience", "channel", "channel-stock")]
    for name, like in (("wsfast", alone), ("wsfast-pure", alone), *sharing):
        if name in runs:
            assert steady(runs[name]) == pytest.approx(steady(like), rel=0.02), name


def test_bench_both(capsys: pytest.CaptureFixture[str]) -> None:
    """Compression is a dimension of cases; what means nothing without it is left out there, and that is told."""
    argv = ["bench", "--clients", "2", "--rounds", "1", "--calls", "1", "--loops", "asyncio", "--sizes", "64,300"]
    assert main([*argv, "--compression", "none,deflate", "--methods", "websockets,no-takeover"]) == 0
    output = capsys.readouterr().out
    assert output.count("Skipping method no-takeover without compression") == 1
    titles = [line for line in output.splitlines() if line.startswith("2 clients, ")]
    assert titles == [
        f"2 clients, {size} B text{how}, asyncio; 1 rounds of 1 calls"
        for size in (64, 300)
        for how in ("", ", deflate")
    ]
    assert output.count("\nno-takeover ") == 2
    assert output.count("\nwebsockets ") == 4
    assert output.count(" ratio\n") == 2


def test_bench_nothing_left_without_compression(capsys: pytest.CaptureFixture[str]) -> None:
    """To ask only for what means nothing is an error."""
    assert main(["bench", "--methods", "no-takeover"]) == 1
    assert "no method is left to measure" in capsys.readouterr().err


def test_bench_on_another_system(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where it is not known how much was sent, or how much memory there is, that is told."""
    monkeypatch.setattr("wsfast.cli.bench.sys.platform", "darwin")
    assert main(["bench", "--compression", "deflate"]) == 1
    captured = capsys.readouterr()
    assert "Skipping compression deflate: only Linux tells how much was sent" in captured.out
    assert "no compression is left to measure" in captured.err
    assert main(["bench", "--memory", "only"]) == 1
    assert "known on Linux only" in capsys.readouterr().err


def test_unknown_compression(capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown names are told, with those that are known."""
    with pytest.raises(SystemExit):
        main(["bench", "--compression", "zstd"])
    assert "unknown compression 'zstd'; known are none, deflate" in capsys.readouterr().err


def test_descriptors_of_all_servers(capsys: pytest.CaptureFixture[str]) -> None:
    """Each server needs its own descriptors."""
    resource = pytest.importorskip("resource")
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] == resource.RLIM_INFINITY:
        pytest.skip("there is no limit")
    argv = ["bench", "--clients", "100000000", "--compression", "deflate", "--loops", "asyncio"]
    assert main([*argv, "--methods", "websockets,no-takeover"]) == 1
    assert "100000000 clients of each of 2 servers need 200000064 file descriptors" in capsys.readouterr().err


def test_clients_that_are_not_compressed_for() -> None:
    """A server that does not agree on permessage-deflate, or that does when it was not asked, is told of."""

    async def run(offered: bool) -> None:
        accepted: list[Any] = []
        served = case(compression="none" if offered else "deflate")
        async with SERVE["stock"](served, accepted) as port:
            with Clients(None) as clients:
                await clients.connect(port, 1, deflate=offered)

    with pytest.raises(UnfitError, match="the server does not compress"):
        asyncio.run(run(offered=True))
    asyncio.run(run(offered=False))  # who was not asked does not


@pytest.mark.parametrize("compression", ["none", "deflate"])
def test_floor_that_is_short(compression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the floor could not send altogether is counted, and not waited for."""
    send_many = core.send_many
    monkeypatch.setattr("wsfast.cli.bench.measure.RUN", 2)
    monkeypatch.setattr(core, "send_many", lambda fds, data: send_many(fds[1:], data))
    steps: list[int] = []
    short = case(256, "floor", compression=compression)
    floor = asyncio.run(measure(short, None, lambda: steps.append(1))).methods["floor"]
    assert floor.short == 2
    assert len(steps) == short.steps


def test_combine() -> None:
    """Compression varies fastest; the methods of a case are those that mean something in it."""
    cases = combine(
        clients=(1,),
        sizes=(64,),
        loops=("asyncio",),
        types=("text",),
        methods=("audience", "floor"),
        rounds=7,
        calls=1,
        collection="list",
        sleep=False,
        compressions=("none", "deflate"),
    )
    assert [(one.compression, one.methods, one.steps) for one in cases] == [
        ("none", ("floor",), 7),
        ("deflate", ("floor", "audience"), 9),
    ]


def test_steady() -> None:
    """The first quarter of a run does not count."""
    assert steady([100, 1, 2, 3]) == 2
    assert steady([5]) == 5


# ---- Memory


@pytest.mark.parametrize("compression", ["none", "deflate"])
def test_memory(compression: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a connection takes is in a table and in the file."""
    path = tmp_path / "bench.json"
    argv = ["bench", "--clients", "20", "--loops", "asyncio", "--compression", compression, "--json", str(path)]
    assert main([*argv, "--memory", "only"]) == 0
    output = capsys.readouterr().out
    deflate = ", deflate" if compression == "deflate" else ""
    assert f"\nmemory: 20 clients, 64 B text{deflate}, asyncio\n" in output
    content = json.loads(path.read_text())
    assert content["cases"] == []
    (weighed,) = content["memory"]
    expected = [
        way
        for way in WAYS
        if (way != "picows" or "picows" in PRESENT) and (way != "wsfast-factory" or compression == "deflate")
    ]
    assert list(weighed["servers"]) == expected
    for way, weight in weighed["servers"].items():
        assert f"\n{way} " in output
        assert weight["clients"] == 20
        assert weight["bytes_per_client"] == (weight["after"] - weight["before"]) / 20
    if compression == "deflate":
        # 20 encoders of 12 bits and memLevel 5 take about 32 KiB each.
        assert weighed["servers"]["websockets"]["bytes_per_client"] > 20_000


def test_memory_too(capsys: pytest.CaptureFixture[str]) -> None:
    """It can be measured beside the times."""
    argv = ["bench", "--clients", "3", "--rounds", "1", "--calls", "1", "--loops", "asyncio", "--progress"]
    assert main([*argv, "--methods", "websockets", "--memory"]) == 0
    output = capsys.readouterr().out
    assert output.index("3 clients, 64 B text, asyncio; 1 rounds") < output.index("memory: 3 clients")


def test_weigh_in_this_process() -> None:
    """It counts from before the clients connect."""
    weight = asyncio.run(weigh(case(), "websockets", None))
    assert weight.clients == 3
    assert 0 < weight.before <= resident() * 2


def test_print_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """A table has KiB for each client, and MiB for all."""
    print_memory(case(), {"websockets": Weight(1024, 10 << 20, 42 << 20)})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["server", "KiB/client", "clients", "MiB", "process", "MiB"] in lines
    assert ["websockets", "32.0", "32.0", "42.0"] in lines
