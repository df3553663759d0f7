"""What `wsfast bench` does with channels, in bursts and in scenarios: with tiny numbers that tell nothing."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import wsfast
from wsfast import Channel, Disconnect, ServerConnection
from wsfast.cli import UnfitError, main
from wsfast_bench._library import extension_present
from wsfast_bench.cases import Case, Result, Samples, Verdict
from wsfast_bench.clients import Clients
from wsfast_bench.machine import usable_processors
from wsfast_bench.methods import METHODS
from wsfast_bench.numbered import KEYS, Mark, Numbered, newest
from wsfast_bench.play import print_rows
from wsfast_bench.readers import Checker, Trickle
from wsfast_bench.reading import Reading
from wsfast_bench.report import summarize
from wsfast_bench.scenarios import SCENARIOS, cores, crowded, relay, stalled, topics
from wsfast_bench.scenarios.conflate import READ, UPDATES, publish_to_slow
from wsfast_bench.scenarios.memory_subscriptions import HOWS, weigh_subscriptions
from wsfast_bench.scenarios.scenario import Settings
from wsfast_bench.scenarios.stalled import publish_to_stalled
from wsfast_bench.scenarios.topics import publish_topics
from wsfast_bench.servers import SERVE, admit, keep
from wsfast_bench.ticks import bursts, parcels

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="scenarios are played on Linux only")

extension = pytest.mark.skipif(not extension_present(), reason="the extension is absent")

LOOPS = ["asyncio", *(["uvloop"] if importlib.util.find_spec("uvloop") else [])]


def case(clients: int, size: int = 64, *methods: str, **options: Any) -> Case:
    """Return a case of one round and two calls."""
    return Case(clients, size, "asyncio", "text", methods, 1, 2, "list", **options)


def rows(output: str) -> dict[str, list[str]]:
    """Return the rows of tables, by their first words."""
    return {words[0]: words[1:] for words in map(str.split, output.splitlines()) if words}


# ---- Methods


@extension
@pytest.mark.parametrize("collection", ["list", "set"])
def test_channel_methods(collection: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A channel on connections of wsfast.serve() is told against a floor over the same sockets."""
    path = tmp_path / "bench.json"
    argv = ["bench", "--clients", "4", "--rounds", "2", "--calls", "2", "--loops", "asyncio", "--json", str(path)]
    methods = ["floor", "floor-served", "channel", "channel-stock"]
    assert main([*argv, "--methods", ",".join(methods), "--collection", collection]) == 0
    output = capsys.readouterr().out
    assert "efficiency of floor-served, channel: compared with floor-served, which has the same sockets." in output
    (content,) = json.loads(path.read_text())["cases"]
    assert list(content["methods"]) == methods
    assert content["methods"]["floor-served"]["summary"]["efficiency"] == 1
    assert all(method["samples"]["short"] == 0 for method in content["methods"].values())


@extension
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("compression", ["none", "deflate"])
def test_bursts(loop: str, compression: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All messages of a burst arrive, by all methods but the patterns, which are left out."""
    argv = ["bench", "--clients", "3", "--rounds", "1", "--calls", "2", "--sizes", "200", "--loops", loop]
    assert main([*argv, "--burst", "5", "--compression", compression]) == 0
    output = capsys.readouterr().out
    assert "Skipping methods await, tasks, wait, queues, pubsub in bursts" in output
    shown = rows(output)
    assert shown.keys().isdisjoint(name for name, method in METHODS.items() if method.awaits)
    assert {"floor", "floor-served", "wsfast", "channel", "channel-stock", "wsfast-pure", "websockets"} <= set(shown)
    how = ", deflate" if compression == "deflate" else ""
    assert f"3 clients, 200 B text{how}, bursts of 5, {loop}; 1 rounds of 2 calls" in output


@pytest.mark.parametrize("compression", ["none", "deflate"])
def test_messages_of_bursts(compression: str) -> None:
    """A burst has the next messages, and their frames one behind the other."""
    source = parcels(case(1, compression=compression), "seed")
    taken = bursts(case(1, compression=compression, burst=3), "seed")
    for _ in range(3):
        expected = [next(source) for _ in range(3)]
        burst = next(taken)
        assert list(burst.messages) == [parcel.message for parcel in expected]
        assert burst.frames == b"".join(parcel.frame for parcel in expected)


def test_summary_of_bursts() -> None:
    """Times and bytes are per message; each method has its floor."""
    call = {"floor": 1_000_000, "floor-served": 2_000_000, "channel": 4_000_000, "channel-stock": 4_000_000}
    samples = {
        name: Samples([[time]], [[time]], [[time]], octets=[[400]], run=[400] * 4) for name, time in call.items()
    }
    verdict = Verdict(sender="floor", clients=40, drained=1e6, size=66, behind=0, call=1_000_000)
    summary = summarize(Result(case(10, 200, *samples, burst=4), samples, verdict))
    assert summary["floor"].call == 25
    assert summary["channel"].cpu == 100
    assert {name: one.efficiency for name, one in summary.items()} == {
        "floor": 1,
        "floor-served": 1,
        "channel": 0.5,
        "channel-stock": 0.25,
    }
    assert (summary["floor"].wire, summary["floor"].steady, summary["floor"].compressed) == (100, 100, 0.5)
    del samples["floor-served"]
    summary = summarize(Result(case(10, 200, *samples, burst=4), samples, verdict))
    assert summary["channel"].efficiency == 0.25


def test_served() -> None:
    """Connections of the server of channels are those of wsfast."""

    async def run() -> None:
        accepted: list[Any] = []
        async with SERVE["served"](case(2), accepted) as port:
            with Reading(None) as reading:
                await reading.ask(f"connect {port} 2 0")
                await keep(accepted, 2)
                assert all(isinstance(connection, ServerConnection) for connection in accepted)

    asyncio.run(run())


def test_what_waits_in_a_channel_is_counted() -> None:
    """What the channel keeps for clients that are stopped is counted when it has arrived."""

    async def run() -> None:
        accepted: list[Any] = []
        async with SERVE["served"](case(1), accepted) as port:
            with Clients(None) as clients:
                await admit(clients, case(1), port, accepted)
                channel = Channel(slow=Disconnect(max_bytes=None))
                subscription = channel.subscribe(accepted[0])
                await clients.drain(awake=False)
                clients.stop()
                sent = 0
                while not subscription.lag.messages:
                    channel.publish(bytes(1 << 20))
                    channel.flush()
                    sent += 1
                assert clients.messages == 0
                clients.go_on()
                while clients.messages < sent:
                    await asyncio.sleep(0.001)
                assert (subscription.lag.messages, clients.octets) == (0, sent * ((1 << 20) + 10))

    asyncio.run(asyncio.wait_for(run(), 60))


# ---- Numbered messages and their readers


@pytest.mark.parametrize("size", [16, 125, 126, 1024, 70000])
def test_numbered(size: int) -> None:
    """A frame tells what it was made of."""
    numbered = Numbered(size)
    frame = wsfast.PreparedMessage(numbered.payload(41, 2.5)).frame
    assert len(frame) == numbered.length
    assert numbered.mark(frame) == Mark(41, 2.5)
    assert numbered.mark(frame).key == 41 % KEYS
    alone = [wsfast.PreparedMessage(numbered.payload(number)).frame for number in (40, 41)]
    assert numbered.frames(40, 42) == b"".join(alone)
    with pytest.raises(ValueError, match="does not begin a frame"):
        numbered.mark(b"\x81" + frame[1:])


def test_newest() -> None:
    """It is the last of each key."""
    assert newest(3) == {0: 0, 1: 1, 2: 2}
    assert newest(KEYS + 1) == {0: KEYS, **{key: key for key in range(1, KEYS)}}


def test_checker() -> None:
    """It compares any part, also across the blocks that it makes."""
    checker = Checker(1024)
    stream = Numbered(1024).frames(0, 600)
    assert checker.length(600) == len(stream)
    for position in range(0, len(stream), 65536 - 7):
        part = stream[position : position + 65536]
        assert checker.agrees(position, part)
        assert not checker.agrees(position, part[:-1] + b"\x01")
        assert not checker.agrees(position + 1, part)


def test_trickle() -> None:
    """It reads one message at a time, and notices what is out of order."""
    numbered = Numbered(64)
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        trickle = Trickle(one, numbered)
        assert not trickle.read()
        frame = wsfast.PreparedMessage(numbered.payload(KEYS + 1)).frame
        other.sendall(frame[:5])
        assert trickle.read()
        assert trickle.ages == []
        other.sendall(frame[5:] + wsfast.PreparedMessage(numbered.payload(1)).frame)
        assert trickle.read()
        assert (len(trickle.ages), trickle.latest, trickle.disordered) == (1, {1: KEYS + 1}, 0)
        assert trickle.read()
        assert trickle.disordered == 1
        other.close()
        with pytest.raises(ConnectionError, match="closed"):
            trickle.read()


@pytest.mark.parametrize("fault", ["none", "gap", "order", "short", "closed"])
def test_readers_notice(fault: str) -> None:
    """Of three clients, one sleeps; what one of the others misses, gets out of order or too little is told."""

    async def run() -> dict[str, int]:
        numbered = Numbered(64)
        accepted: list[Any] = []
        async with SERVE["stock"](case(3), accepted) as port:
            with Reading(None) as reading:
                for count in (1, 2, 3):  # the first of which never reads
                    await reading.ask(f"connect {port} 1 0")
                    await keep(accepted, count)
                await reading.ask("check 64 1")
                for index, connection in enumerate(accepted):
                    numbers = list(range(10))
                    if index == 1:
                        if fault in ("gap", "short"):
                            del numbers[4 if fault == "gap" else 9]
                        if fault == "order":
                            numbers[4:6] = numbers[5:3:-1]
                    for number in numbers:
                        await connection.send(numbered.payload(number))
                    if index == 1 and fault == "closed":
                        connection.transport.close()
                # Only where something is missing, the end is silence.
                silence = 1.5 if fault in ("gap", "short") else 60
                told: dict[str, int] = await reading.ask(f"end 10 {silence}")
                return told

    told = asyncio.run(run())
    assert told["live"] == 2
    assert told["complete"] == (1 if fault in ("gap", "order", "short") else 2)
    assert told["wrong"] == (fault in ("gap", "order"))
    assert told["short"] == (fault in ("gap", "short"))


def test_readers_that_cannot() -> None:
    """What goes wrong in the process of the readers is told."""

    async def refused() -> None:
        with Reading(None) as reading:
            with socket.socket() as deaf:
                deaf.bind(("127.0.0.1", 0))  # and does not listen, nor can anybody else
                port = deaf.getsockname()[1]
                with pytest.raises(UnfitError, match="clients cannot connect: ConnectionRefusedError"):
                    await reading.ask(f"connect {port} 1 8192")
            reading._process.kill()
            reading._process.wait()
            with pytest.raises(UnfitError, match="clients cannot check: their process has ended"):
                await reading.ask("check 64 0")

    asyncio.run(refused())


# ---- Scenarios


@pytest.mark.parametrize("way", stalled.WAYS)
def test_stalled(way: str) -> None:
    """With few messages nobody is behind: all clients that read get all."""
    row = asyncio.run(publish_to_stalled(case(4, 1024), way, 1, 50, None))
    assert row["messages"] == row["asked"] == 50
    assert row["clients"] == {"live": 3, "complete": 3, "wrong": 0, "short": 0, "closed": 0}
    assert (row["disconnected"], row["dropped"], row["conflated"]) == (0, 0, 0)
    assert 0 < row["p50"] <= row["p99"]


def test_stalled_that_takes_too_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends before the memory does."""
    monkeypatch.setattr(stalled, "LIMIT", -1)
    row = asyncio.run(publish_to_stalled(case(2, 1024), "websockets", 1, 50, None))
    assert row["messages"] == 1
    assert row["clients"]["complete"] == 1


def test_stalled_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each way has a row without stalled clients and one with them, in the table and in the file."""
    path = tmp_path / "bench.json"
    argv = ["bench", "--scenario", "stalled", "--clients", "4", "--messages", "20", "--json", str(path)]
    assert main([*argv, "--progress"]) == 0
    output = capsys.readouterr().out
    assert "stalled: 4 clients, 1 of which never read, 20 messages of 1 KiB, asyncio\n" in output
    (content,) = json.loads(path.read_text())["scenarios"]
    assert content["scenario"] == "stalled"
    assert [(row["way"], row["stalled"]) for row in content["rows"]] == [
        (way, asleep) for way in stalled.WAYS for asleep in (0, 1)
    ]
    assert all(row["clients"]["live"] == row["clients"]["complete"] == 3 for row in content["rows"])
    assert output.count("3/3") == 10


def test_stalled_tells_what_was_missed(capsys: pytest.CaptureFixture[str]) -> None:
    """Clients that did not get everything, and a run that was ended, are told of."""
    row = {"way": "websockets", "stalled": 0, "messages": 9, "asked": 10, "rate": 1.0, "p50": 1.0, "p99": 1.0}
    row |= {"grown": 1 << 20, "disconnected": 0, "dropped": 0, "conflated": 0}
    told = {"live": 5, "complete": 2, "wrong": 1, "short": 2, "closed": 1}
    print_rows(stalled.SCENARIO, [{**row, "clients": told}])
    output = capsys.readouterr().out
    assert "websockets with 0 stalled: ended after 9 of 10 messages, when the memory had grown by 2048 MiB" in output
    assert "of 5 clients that read, 1 got other bytes than they should, 2 too few; 1 were closed" in output


def test_conflate() -> None:
    """Both clients end with the newest values, and read some before."""
    for seconds in (0.5, 5, 50):  # until the process of the clients has been given time to read meanwhile
        start = time.monotonic()
        conflated, reference = asyncio.run(publish_to_slow(case(1, 1024), seconds, None))
        took = time.monotonic() - start
        if conflated["read"] and reference["read"]:
            break
    published = round(seconds * UPDATES)
    for row in (conflated, reference):
        assert row["newest"] == row["keys"] == KEYS
        assert row["disordered"] == 0
        assert row["published"] == published
        assert 0 < row["read"] <= READ * took
        assert row["age"] <= row["oldest"]
    assert reference["read"] + reference["more"] == published
    assert conflated["read"] + conflated["more"] < published


def test_conflate_command(capsys: pytest.CaptureFixture[str]) -> None:
    """There is a row for the channel, and one for its reference."""
    assert main(["bench", "--scenario", "conflate", "--seconds", "1"]) == 0
    output = capsys.readouterr().out
    assert "conflate: 10 of 1000 updates/s of 1 KiB over 20 keys are read for 1 s, SO_RCVBUF 8192 B" in output
    assert {"Conflate", "websockets"} <= set(rows(output))


@pytest.mark.parametrize("way", topics.WAYS)
def test_topics(way: str) -> None:
    """Each client gets what its topics have."""
    row = asyncio.run(publish_topics(case(3), way, 60, 0.1, None))
    assert row["ticks"] == 2
    assert row["deliveries"] == 2 * 3 * 50
    assert row["cpu"] > 0


@pytest.mark.parametrize("loop", LOOPS)
def test_topics_command(loop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It has a row for each way."""
    argv = ["bench", "--scenario", "topics", "--clients", "3", "--topics", "5", "--seconds", "1", "--loops", loop]
    assert main(argv) == 0
    output = capsys.readouterr().out
    assert f"topics: 5 topics, 3 clients in 5 each, 20 ticks/s for 1 s, 64 B, {loop}\n" in output
    assert set(topics.WAYS) <= set(rows(output))


def test_topics_that_do_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that are not sent everything are an error."""
    monkeypatch.setattr(topics, "PATIENCE", 0.1)
    monkeypatch.setattr(topics, "_publisher", lambda *_: lambda: None)
    with pytest.raises(UnfitError, match=r"clients have read 0 of \d+ messages"):
        asyncio.run(publish_topics(case(2), "channel", 2, 0.1, None))


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods of wsfast are measured with each number of threads, the others with one, and the default at the end."""
    used: list[int | None] = []
    monkeypatch.setattr(wsfast, "set_threads", used.append)
    monkeypatch.setattr(wsfast, "threads", lambda: used[-1] or 3)
    methods = ("wsfast-pure", "websockets")
    found = asyncio.run(cores.measure_threads(case(2, 64, *methods), [1, None, 4], None))
    assert [(row["way"], row["threads"], row["default"]) for row in found] == [
        ("wsfast-pure", 1, False),
        ("wsfast-pure", 3, True),
        ("wsfast-pure", 4, False),
        ("websockets", 1, False),
    ]
    for row in found:
        assert row["efficiency"] is None
        assert row["faster"] > 0
        assert 0 < row["p50"] <= row["p99"]
    assert found[-1]["faster"] == 1
    # One for the case, twice each for warmth and for the round, and the default in the end.
    assert sorted(used, key=str) == [1] * 5 + [4] * 2 + [None] * 3


@extension
def test_cores_command(capsys: pytest.CaptureFixture[str]) -> None:
    """There is a row for each method and number of threads; those for which there are no processors are told."""
    argv = ["bench", "--scenario", "cores", "--clients", "2", "--rounds", "1", "--calls", "1", "--loops", "asyncio"]
    assert main([*argv, "--threads", "1,10000"]) == 0
    output = capsys.readouterr().out
    assert "Skipping 10000 threads: this process may use " in output
    assert "cores: 2 clients, 64 B, 1 threads, asyncio\n" in output
    found = rows(output)
    assert set(cores.WAYS) <= set(found)
    assert all(found[way][0] == "1" for way in cores.WAYS)
    assert found["floor"][-1] == found["websockets"][-2] == "1.00"


@extension
def test_heartbeat(capsys: pytest.CaptureFixture[str]) -> None:
    """All that is published arrives, with each number of threads."""
    argv = ["bench", "--scenario", "heartbeat", "--clients", "300", "--rounds", "1", "--loops", "asyncio"]
    assert main(argv) == 0
    output = capsys.readouterr().out
    assert "heartbeat: 300 clients, 256 B, asyncio\n" in output
    assert [line.split()[:2] for line in output.splitlines() if line[:2] in ("1 ", "2 ")][:3] == [
        ["1", "no"],
        ["2", "no"],
        ["2", "yes"],
    ]


@extension
def test_crowded(capsys: pytest.CaptureFixture[str]) -> None:
    """There are busy processes as long as it is measured, one for each processor."""
    argv = ["bench", "--scenario", "crowded", "--clients", "2", "--rounds", "1", "--calls", "1", "--loops", "asyncio"]
    assert main(argv) == 0
    output = capsys.readouterr().out
    count = len(usable_processors())
    assert f"crowded: 2 clients, 64 B, {count} busy processors, asyncio\n" in output
    for way in crowded.WAYS:
        told = [line.split() for line in output.splitlines() if line.startswith(f"{way} ")]
        assert [words[1] for words in told][::2] == ["1", str(count)]
        assert told[1][2] == "(default)"
        assert told[0][-1] == "1.00"


def test_busy_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are there while something is measured, bound to a processor each, and have ended afterwards."""
    seen: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*args: Any, **options: Any) -> Any:
        seen.append(popen(*args, **options))
        return seen[-1]

    async def measure(*_: object) -> list[Any]:
        assert [process.poll() for process in seen] == [None] * len(usable_processors())
        assert sorted(next(iter(os.sched_getaffinity(process.pid))) for process in seen) == usable_processors()
        return []

    monkeypatch.setattr("wsfast_bench.scenarios.crowded.subprocess.Popen", start)
    monkeypatch.setattr("wsfast_bench.scenarios.crowded.measure_threads", measure)
    assert asyncio.run(crowded.crowd(case(1), [1])) == []
    assert all(process.returncode is not None for process in seen)


@pytest.mark.parametrize(("kind", "way"), [(kind, way) for kind, ways in relay.WAYS.items() for way in ways])
def test_relay(kind: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every message reaches the other process."""
    monkeypatch.setattr(relay, "PACED", 20)
    try:
        row = asyncio.run(relay.compare(dataclasses.replace(case(0), size=100), kind, way, 0.1, None))
    except UnfitError as exc:
        if "install" not in str(exc):
            raise
        pytest.skip(str(exc))
    assert row["messages"] > 0
    assert 0 < row["p50"] <= row["p99"]


def test_relay_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It has a row for each broker and way."""
    asked = []

    def ask(module: str, part: object, task: Any, progress: object, *names: str) -> dict[str, Any]:
        asked.append((module, *names, task["broker"], task["way"]))
        numbers = {"rate": 5e4, "publisher": 9.0, "receiver": 8.0, "p50": 0.001, "p99": 0.002}
        return {"broker": task["broker"], "way": task["way"], "messages": 7, **numbers}

    monkeypatch.setattr("wsfast_bench.play.ask", ask)
    assert main(["bench", "--scenario", "relay", "--seconds", "1"]) == 0
    output = capsys.readouterr().out
    assert asked == [("scenarios", "relay", kind, way) for kind, ways in relay.WAYS.items() for way in ways]
    assert rows(output)["redis"] == ["recipe", "7", "50000", "9.0", "8.0", "1.00", "2.00"]


@pytest.mark.parametrize("how", HOWS)
def test_subscriptions(how: str) -> None:
    """A subscription takes some bytes."""
    row = asyncio.run(weigh_subscriptions(case(5), 4, how, None))
    assert (row["connections"], row["channels"], row["subscriptions"]) == (5, 4, 20)
    if how == "traced":
        assert 0 < row["subscribed"] < 5000


def test_subscriptions_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """There are few connections in many channels, and many in one, as far as descriptors go."""
    argv = ["bench", "--scenario", "memory-subscriptions", "--clients", "3"]
    assert main(argv) == 0
    lines = [line.split()[:4] for line in capsys.readouterr().out.splitlines()]
    for connections, channels in (("3", "10"), ("30", "1")):
        for how in HOWS:
            assert [connections, channels, "30", how] in lines

    def reserve(needed: int, what: str) -> None:
        if needed > 80:
            raise UnfitError(f"{what} are too many")

    monkeypatch.setattr("wsfast_bench.scenarios.scenario.reserve_descriptors", reserve)
    assert main(argv) == 0
    output = capsys.readouterr().out
    assert "Skipping 30 connections in one channel: 30 clients are too many" in output
    assert ["30", "1", "30", "traced"] not in [line.split()[:4] for line in output.splitlines()]
    assert main([*argv[:-1], "30"]) == 1
    assert "30 clients are too many" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--chart", "chart.png"], "--chart cannot be used with scenarios"),
        (["--memory"], "--memory cannot be used with scenarios"),
        (["--json", "nowhere/bench.json"], "there is no directory"),
        (["--clients", "2,3"], "played with one number of clients"),
        (["--clients", "1"], "needs at least 2 clients"),
    ],
)
def test_scenarios_that_cannot_be_played(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What does not go together is an error."""
    assert main(["bench", "--scenario", "stalled", *argv]) == 1
    assert message in capsys.readouterr().err


def test_scenarios_on_another_system(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """They need Linux."""
    monkeypatch.setattr("wsfast_bench.play.sys.platform", "darwin")
    assert main(["bench", "--scenario", "topics"]) == 1
    assert "on Linux only" in capsys.readouterr().err


def test_options_of_scenarios(capsys: pytest.CaptureFixture[str]) -> None:
    """Each scenario says what its options mean, those of the same name included."""
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    output = " ".join(capsys.readouterr().out.split())
    assert "--messages N scenario stalled: messages (20000)" in output
    assert "scenario conflate: how long (60); scenario topics: how long (10); scenario relay:" in output


def test_unknown_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown names are told, with those that are known."""
    with pytest.raises(SystemExit):
        main(["bench", "--scenario", "stall"])
    assert "unknown scenario 'stall'; known are stalled, conflate, topics" in capsys.readouterr().err


def test_quick_scenarios() -> None:
    """Without numbers, those of the issue are played, or smaller ones to see that it works."""
    options = argparse.Namespace(
        **dict.fromkeys(("clients", "messages", "seconds", "topics", "threads", "sizes", "rounds", "calls")),
        no_keepalive=False,
        quick=False,
    )
    plans = {name: list(one.plan(Settings(options, "asyncio", None))) for name, one in SCENARIOS.items()}
    assert plans["stalled"][1].task["case"]["clients"] == 1000
    assert plans["stalled"][1].task["messages"] == 20_000
    assert plans["stalled"][1].task["stalled"] == 50
    assert plans["conflate"][0].task["seconds"] == 60
    assert plans["topics"][0].task["topics"] == 1000
    assert (plans["cores"][0].task["case"]["clients"], plans["crowded"][0].task["case"]["rounds"]) == (1000, 40)
    assert [part.task["case"]["size"] for part in plans["large"]] == [64, 1024, 4096, 16384, 65536, 262144]
    assert [part.task["messages"] for part in plans["wire"]] == [1000, 1000, 1000]
    kept = {name: plan[0].task["case"]["keepalive"] for name, plan in plans.items()}
    # Those whose clients never read, or read too slowly, to answer, or cannot decrypt.
    assert [name for name, on in kept.items() if not on] == ["stalled", "conflate", "integrations", "tls"]
    options.no_keepalive = True
    assert not any(
        part.task["case"]["keepalive"] for one in SCENARIOS.values() for part in one.plan(Settings(options, "", None))
    )
    options.quick = True
    plans = {name: list(one.plan(Settings(options, "asyncio", None))) for name, one in SCENARIOS.items()}
    assert plans["stalled"][1].task["case"]["clients"] == 200
    assert plans["conflate"][0].task["seconds"] == 10
    for name, plan in plans.items():
        assert len({part.title.partition(": ")[0] for part in plan}) == 1, name  # which the table has for its title
