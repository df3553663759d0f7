"""Scenarios about octets, large frames and TLS: with tiny numbers, which are exact where they are counted."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import importlib.util
import json
import random
import statistics
import sys
import zlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import websockets.asyncio.server
from websockets.frames import Opcode

from wsfast._core import core
from wsfast.cli import UnfitError, main
from wsfast_bench._library import extension_present
from wsfast_bench.cases import Case
from wsfast_bench.clients import Clients
from wsfast_bench.measure import prepared
from wsfast_bench.methods import METHODS, Call, Room
from wsfast_bench.scenarios import large, tls, wire
from wsfast_bench.ticks import MEM_LEVEL, WINDOW_BITS, deflated, frame, sealed, ticks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="scenarios are played on Linux only")


def case(clients: int, size: int, *methods: str, **options: Any) -> Case:
    """Return a case of one round and two calls."""
    return Case(clients, size, "asyncio", "text", methods, 1, 2, "list", **options)


LOOPS = ["asyncio", *(["uvloop"] if importlib.util.find_spec("uvloop") else [])]

extension = pytest.mark.skipif(not extension_present(), reason="the extension is absent")


# ---- Wire


def upstream_octets(variant: str, clients: int, messages: int) -> tuple[float, float | None]:
    """Return what websockets sends to one client for a tick and for a private message, found out with zlib alone."""
    encoders = [zlib.compressobj(wbits=-WINDOW_BITS, memLevel=MEM_LEVEL) for _ in range(clients)]

    def size(encoder: Any, message: str) -> int:
        payload = len(encoder.compress(message.encode()) + encoder.flush(zlib.Z_SYNC_FLUSH)) - 4
        return payload + (2 if payload < 126 else 4)

    private, chance = ticks(wire.PRIVATE_SIZE, "private"), random.Random("halves")
    octets, alone = [], []
    for tick in islice(ticks(wire.SIZE, "wire"), messages):
        half = sorted(chance.sample(range(clients), clients // 2)) if variant == "halves" else range(clients)
        octets.append(statistics.mean(size(encoders[index], tick) for index in half))
        if variant == "private":
            alone += [size(encoder, next(private)) for encoder in encoders[:: wire.EVERY]]
    return statistics.mean(octets), statistics.mean(alone) if alone else None


@pytest.mark.parametrize("variant", wire.VARIANTS)
def test_wire(variant: str) -> None:
    """What clients of websockets are sent is counted to the octet; the others are told against it."""
    ways = [way for way in wire.WAYS if METHODS[way].present]
    found = asyncio.run(
        wire.measure_wire(case(12, wire.SIZE, compression="deflate"), variant, 25, ways, None),
    )
    rows = {row["way"]: row for row in found}
    assert list(rows) == ways
    octets, private = upstream_octets(variant, 12, 25)
    assert rows["websockets"]["octets"] == pytest.approx(octets)
    assert rows["websockets"]["private"] == (None if private is None else pytest.approx(private))
    assert rows["websockets"]["share"] == rows["websockets"]["faster"] == 1
    alone = [len(frame(Opcode.TEXT, deflated(tick.encode()))) for tick in islice(ticks(wire.SIZE, "wire"), 25)]
    assert rows["no-takeover"]["octets"] == pytest.approx(statistics.mean(alone))
    for row in found:
        assert (row["variant"], row["messages"]) == (variant, 25)
        assert row["share"] == pytest.approx(row["octets"] / octets)
        assert row["compressed"] == pytest.approx(row["octets"] / wire.SIZE)
        assert 0 < row["steady"] < wire.SIZE
        assert min(row["call"], row["faster"]) > 0
        assert (row["private"] is None) == (variant != "private")


def test_wire_without_clients_that_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """More or fewer messages than were sent are an error, not a number."""
    clients = Clients(None)
    monkeypatch.setattr("wsfast_bench.scenarios.wire.PATIENCE", 0)
    for read in (1, 3):
        monkeypatch.setattr(clients, "_count", [100, read], raising=False)
        with pytest.raises(UnfitError, match=f"clients have read {read} of 2 messages"):
            asyncio.run(wire.arrive(clients, 2))


def test_wire_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is a row for each variant and method."""
    path = tmp_path / "wire.json"
    argv = ["bench", "--scenario", "wire", "--clients", "3", "--messages", "12", "--json", str(path)]
    assert main(argv) == 0
    output = capsys.readouterr().out
    assert "wire: 3 clients, 12 ticks of 260 B, default permessage-deflate, asyncio\n" in output
    (content,) = json.loads(path.read_text())["scenarios"]
    ways = [way for way in wire.WAYS if METHODS[way].present]
    lines = [line.split()[:2] for line in output.splitlines()]
    shown = [words for words in lines if words and words[0] in wire.VARIANTS and words[1] in ways]
    assert [[row["variant"], row["way"]] for row in content["rows"]] == shown
    assert shown == [[variant, way] for variant in wire.VARIANTS for way in ways]


# ---- Large frames


@extension
@pytest.mark.parametrize("size", [64, 20_000])
def test_large(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way sends what all others do; with and without files in memory is compared with the same connections."""
    chosen: list[tuple[int | None, int]] = [(4096, 8)]

    def set_files(size: int | None, receivers: int = 9) -> tuple[int | None, int]:
        chosen.append((size, receivers))
        return chosen[-2]

    monkeypatch.setattr(core, "set_files", set_files, raising=False)
    ways = [name for name in large.METHODS_USED if METHODS[name].present]
    found = asyncio.run(large.measure_large(case(3, size, *ways), None))
    rows = {row["way"]: row for row in found}
    assert list(rows) == ["floor", "floor-file", "wsfast-send", *ways[1:]]
    assert {row["size"] for row in found} == {size}
    assert {way for way, row in rows.items() if row["gain"] is not None} == {"wsfast", "floor-file"}
    assert rows["floor"]["efficiency"] == rows["websockets"]["faster"] == 1
    assert all(row["sends"] == 6 and row["short"] in (0, None) for row in found)
    # Off for a turn in each of two rounds, and then as it was.
    assert chosen == [(4096, 8), *[(None, 9), (4096, 8)] * 2]


@extension
def test_large_with_a_core_that_has_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to compare wsfast with, and the table says so."""
    monkeypatch.delattr(core, "set_files", raising=False)
    found = asyncio.run(large.measure_large(case(2, 100, "floor", "wsfast"), None))
    assert [row["way"] for row in found] == ["floor", "floor-file", "wsfast"]
    assert large.SCENARIO.warn(found)[-1].startswith("This core sends all frames by send()")


@extension
@pytest.mark.parametrize("way", ["floor", "floor-file", "wsfast"])
def test_sends_that_were_cut_are_told(way: str) -> None:
    """More than the sockets hold is counted as short, and arrives all the same."""

    async def run() -> int:
        async with prepared(case(2, 32 << 20, "floor", "wsfast"), False, None) as (bench, turns):
            turn = large.compared(turns)[way]
            turn.room.take(next(bench.bursts))
            bench.clients.stop()
            turn.call()
            bench.clients.go_on()
            await bench.arrive(turn)
            return turn.room.short

    assert asyncio.run(run()) == 2


def test_warnings_of_large_frames() -> None:
    """It is told which sends were short, and for whom clients did not keep up."""
    row = {"size": 64, "way": "floor", "p50": 2.0, "behind": 0.5, "short": 0, "sends": 10}
    assert large.SCENARIO.warn([row]) == []
    (short,) = large.SCENARIO.warn([row | {"short": 3}])
    assert short == "WARNING: the kernel did not take all of 3 of 10 sends: floor with 64 B"
    (behind,) = large.SCENARIO.warn([row | {"behind": 0.51}])
    assert behind == "WARNING: clients end 0.51 ms after a call of 2.00 ms: floor with 64 B"
    assert large.SCENARIO.warn([row | {"way": "picows", "behind": 9.0, "short": None}]) == []


@extension
def test_large_command(capsys: pytest.CaptureFixture[str]) -> None:
    """There is a process for each size."""
    argv = ["bench", "--scenario", "large", "--clients", "2", "--rounds", "1", "--calls", "1", "--sizes", "64,9000"]
    assert main(argv) == 0
    output = capsys.readouterr().out
    assert "large: 2 clients, frames of several sizes, one thread, asyncio\n" in output
    shown = [line.split()[:2] for line in output.splitlines()]
    for size in ("64", "9000"):
        assert all([size, way] in shown for way in ("floor", "floor-file", "wsfast", "websockets"))


# ---- TLS


def in_loop(loop: str, work: Coroutine[Any, Any, Any]) -> Any:
    """Return what comes of some work in a new event loop of a kind."""
    with asyncio.Runner(loop_factory=importlib.import_module(loop).new_event_loop) as runner:
        return runner.run(work)


@pytest.mark.parametrize("loop", LOOPS)
def test_tls(loop: str) -> None:
    """All methods send exact messages over TLS, and all that they send in a measurement arrives."""
    ways = [name for name, way in tls.WAYS.items() if way.present]
    found = in_loop(loop, tls.measure_tls(case(3, 256, *ways, tls=True), None))
    rows = {row["way"]: row for row in found}
    assert list(rows) == [*ways, "encrypt"]
    senders = [way for way in ways if way != "floor"]
    assert {row["exact"] for row in found} == {len(senders) * tls.CHECKED * tls.READERS}
    assert rows["websockets"]["faster"] == rows["picows-loop"]["picows"] == 1
    least = {way for way, row in rows.items() if row["efficiency"] is not None}
    assert least == (set(senders) if "floor" in ways else set())
    assert all(row["call"] > 0 and (row["drained"] is None) == (way == "encrypt") for way, row in rows.items())
    assert f"{rows['await']['exact']} messages were decrypted" in tls.SCENARIO.warn(found)[-1]
    groups = {"encrypt": "floor", "picows-loop": "theirs", "wsfast-picows": "ours"}
    assert {way: tls.SCENARIO.group(rows[way]) for way in groups} == groups


@pytest.mark.parametrize("size", [1, 125, 126, 4000])
def test_record_is_as_large_as_an_encrypted_frame(size: int) -> None:
    """The floor sends as many octets as a connection that encrypts."""
    octets = frame(Opcode.TEXT, b"x" * size)
    ((end, outgoing),) = tls.Encryption(1, octets).ends
    end.write(octets)
    encrypted = outgoing.read()
    assert len(sealed(octets)) == len(encrypted)
    assert sealed(octets)[:5] == encrypted[:5]


def test_clients_count_records() -> None:
    """What clients have read over TLS is as large as the records of the floor."""

    async def run() -> tuple[int, int]:
        told = case(2, 256, "websockets", tls=True)
        async with prepared(told, False, None) as (bench, turns):
            burst = next(bench.bursts)
            return len(burst.frames), (await bench.sample(turns["websockets"], burst)).octets

    record, read = asyncio.run(run())
    assert record == read


@pytest.mark.parametrize("wrong", ["other", "late", "none"])
def test_wrong_messages_are_seen(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that does not send what it should is an error, and no number."""
    before: list[str] = []

    @asynccontextmanager
    async def open_wrong(room: Room) -> AsyncIterator[Call]:
        def call() -> None:
            message = str(room.message)
            before.append(message)
            sent = {"other": message[:-1] + "?", "late": before[max(len(before) - 2, 0)], "none": None}[wrong]
            if sent is not None:
                websockets.asyncio.server.broadcast(room.connections, sent)

        yield call

    method = dataclasses.replace(tls.WAYS["websockets"], call=open_wrong)
    monkeypatch.setitem(tls.WAYS, "websockets", method)
    if wrong == "none":
        monkeypatch.setattr("wsfast_bench.scenarios.tls.PATIENCE", 0.05)
    with pytest.raises(UnfitError, match=r"websockets has sent '.*, and a client has got "):
        asyncio.run(tls.check(case(3, 256, "websockets", tls=True)))


def test_tls_needs_a_certificate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the package that makes it, the error says what to install."""
    monkeypatch.setattr("wsfast_bench.scenarios.tls.installed", lambda _: False)
    assert main(["bench", "--scenario", "tls"]) == 1
    assert "scenario tls needs cryptography" in capsys.readouterr().err


def test_tls_command(capsys: pytest.CaptureFixture[str]) -> None:
    """There is a row for each method."""
    argv = ["bench", "--scenario", "tls", "--clients", "2", "--rounds", "1", "--calls", "1"]
    assert main(argv) == 0
    output = capsys.readouterr().out
    assert "tls: 2 clients over TLS, 256 B, one thread, asyncio\n" in output
    shown = {line.split()[0] for line in output.splitlines() if line}
    assert {name for name, way in tls.WAYS.items() if way.present} <= shown
