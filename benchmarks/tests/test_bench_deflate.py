"""What `wsfast bench` does with compressed connections, and with memory. Unlike times, bytes can be told exactly."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import statistics
import subprocess
import sys
import zlib
from array import array
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from wsfast.cli import UnfitError, main
from wsfast_bench import methods, native
from wsfast_bench._library import extension_present
from wsfast_bench.bench import combine
from wsfast_bench.cases import WAYS, Case, Weight
from wsfast_bench.clients import Clients
from wsfast_bench.measure import RUN, measure
from wsfast_bench.memory import measure_memory, resident
from wsfast_bench.methods import METHODS
from wsfast_bench.report import print_memory, steady
from wsfast_bench.servers import SERVE, admit
from wsfast_bench.ticks import deflated, parcels, ticks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks are for Linux")

LOOPS = ["asyncio", *(["uvloop"] if importlib.util.find_spec("uvloop") else [])]

ABSENT = {
    *((name for name, method in METHODS.items() if method.feature == "extension") if not extension_present() else ()),
    *(() if importlib.util.find_spec("picows") else ("picows",)),
}

PRESENT = [name for name, method in METHODS.items() if name not in ABSENT and method.feature != "node"]


def case(size: int = 256, *methods: str, kind: str = "text", compression: str = "deflate") -> Case:
    """Return a case of 3 clients."""
    return Case(3, size, "asyncio", kind, methods, 1, 2, "list", compression=compression)


def run(main: Callable[[], Coroutine[Any, Any, None]], loop: str) -> None:
    """Run a coroutine function in an event loop of that kind."""
    factory = importlib.import_module("uvloop").new_event_loop if loop == "uvloop" else asyncio.SelectorEventLoop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(main(), 60))


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


# ---- What the clients count


@asynccontextmanager
async def accepted_from(case: Case, server: str) -> AsyncIterator[tuple[list[Any], Clients]]:
    """Yield a server's connections, and their clients, which drain."""
    accepted: list[Any] = []
    async with SERVE[server](case, accepted) as port:
        with Clients(None) as clients:
            await admit(clients, case, port, accepted)
            await clients.drain(awake=False)
            yield accepted, clients


async def read(clients: Clients, messages: int) -> None:
    """Wait until the clients have read so many messages."""
    while clients.messages < messages:
        await asyncio.sleep(0)
    assert clients.messages == messages


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("server", ["stock", "served", "no-takeover", *(["picows"] if "picows" in PRESENT else [])])
def test_clients_count_messages(server: str, loop: str) -> None:
    """They count messages and their bytes, however long those have become; pings are answered and not counted."""

    async def watch() -> None:
        async with accepted_from(case(), server) as (accepted, clients):
            await accepted[1].send("x" * 100_000)
            await accepted[2].send(b"")
            await read(clients, 2)
            octets = clients.octets
            assert 2 < octets < 100_000
            await asyncio.wait_for(await accepted[0].ping(b"are you there?"), 60)
            await accepted[0].send("x")
            await read(clients, 3)
            assert 0 < clients.octets - octets < 14

    run(watch, loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_clients_that_are_stopped(loop: str) -> None:
    """What waits in the transport while they are stopped is counted when it has arrived."""

    async def watch() -> None:
        async with accepted_from(case(compression="none"), "stock") as (accepted, clients):
            clients.stop()
            sending = asyncio.create_task(accepted[0].send(bytes(16 << 20)))
            await asyncio.sleep(0)
            assert (clients.octets, clients.messages) == (0, 0)
            clients.go_on()
            await sending
            await read(clients, 1)
            assert clients.octets == (16 << 20) + 10

    run(watch, loop)


@pytest.mark.parametrize("compression", ["none", "deflate"])
def test_clients_of_two_servers_may_have_one_port(compression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel gives clients of different servers the same port now and then; all messages are counted once."""
    code = (
        "import socket, sys, wsfast_bench.peer as peer\n"
        "first, ports = [], {}  # those of the first server's clients, and of each server's\n"
        "class Socket(socket.socket):\n"
        "    def connect(self, address):\n"
        "        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
        "        taken = ports.setdefault(address[1], [])\n"
        "        self.bind(('127.0.0.1', first[len(taken)] if len(first) > len(taken) else 0))\n"
        "        taken.append(self.getsockname()[1])\n"
        "        if len(ports) == 1: first.append(taken[-1])\n"
        "        super().connect(address)\n"
        "peer.socket.socket = Socket\n"
        "peer.main()\n"
    )
    popen = subprocess.Popen

    def start(argv: list[str], **options: Any) -> Any:
        assert argv[1:3] == ["-m", "wsfast_bench.peer"]
        return popen([argv[0], "-c", code, *argv[3:]], **options)

    monkeypatch.setattr("wsfast_bench.clients.subprocess.Popen", start)
    monkeypatch.setattr("wsfast_bench.measure.RUN", 2)
    methods = ("wsfast-pure", "websockets", "picows" if "picows" in PRESENT else "no-takeover")
    measured = case(256, *methods, compression=compression)
    samples = asyncio.run(measure(measured, None, lambda: None)).methods
    assert all(0 < octets <= 262 for name in methods for octets in samples[name].run)


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
    for name in ("wsfast", "wsfast-pure", "channel", "channel-stock", "hub"):
        if name in runs:
            assert steady(runs[name]) == pytest.approx(steady(shared), rel=0.02), name


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
    """Where it is not known how much memory there is, that is told."""
    monkeypatch.setattr("wsfast_bench.bench.sys.platform", "darwin")
    assert main(["bench", "--memory", "only"]) == 1
    assert "--memory works on Linux only" in capsys.readouterr().err


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
    """What the kernel did not take of the floor's frames is counted, and sent afterwards: the stream must go on."""
    send_many = native.send_many
    monkeypatch.setattr("wsfast_bench.measure.RUN", 2)

    def offer(fds: array[int], data: bytes) -> list[tuple[int, int]]:
        cut = send_many(fds[1:2], data[:5])
        assert not cut
        return [(0, 0), (1, 5), *((index + 2, taken) for index, taken in send_many(fds[2:], data))]

    monkeypatch.setattr(methods, "send_many", offer)
    steps: list[int] = []
    short = case(256, "floor", compression=compression)
    floor = asyncio.run(measure(short, None, lambda: steps.append(1))).methods["floor"]
    assert floor.short == 4
    assert len(steps) == short.steps


def test_combine() -> None:
    """Compression varies fastest; the methods of a case are those that mean something in it."""
    cases = combine(
        clients=(1,),
        sizes=(64,),
        loops=("asyncio",),
        types=("text",),
        methods=("no-takeover", "floor"),
        rounds=7,
        calls=1,
        collection="list",
        sleep=False,
        compressions=("none", "deflate"),
    )
    assert [(one.compression, one.methods, one.steps) for one in cases] == [
        ("none", ("floor",), 7),
        ("deflate", ("floor", "no-takeover"), 9),
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
    weight = asyncio.run(measure_memory(case(), "websockets", None))
    assert weight.clients == 3
    assert 0 < weight.before <= resident() * 2


def test_print_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """A table has KiB for each client, and MiB for all."""
    print_memory(case(), {"websockets": Weight(1024, 10 << 20, 42 << 20)})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["server", "KiB/client", "clients", "MiB", "process", "MiB"] in lines
    assert ["websockets", "32.0", "32.0", "42.0"] in lines
