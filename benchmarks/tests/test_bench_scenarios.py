"""Scenarios about octets, large frames and TLS: with tiny numbers, which are exact where they are counted."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import zlib
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from wsfast.cli import UnfitError, main
from wsfast_bench._library import extension_present
from wsfast_bench.cases import Case, Samples
from wsfast_bench.clients import Clients
from wsfast_bench.measure import prepared
from wsfast_bench.methods import present
from wsfast_bench.scenarios import large, wire
from wsfast_bench.ticks import MEM_LEVEL, WINDOW_BITS, ticks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="scenarios are played on Linux only")


def case(clients: int, size: int, *methods: str, **options: Any) -> Case:
    """Return a case of one round and two calls."""
    return Case(clients, size, "asyncio", "text", methods, 1, 2, "list", **options)


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
    ways = [way for way in wire.WAYS if present(way)]
    found = asyncio.run(
        wire.measure_wire(case(12, wire.SIZE, compression="deflate"), variant, 25, ways, None),
    )
    rows = {row["way"]: row for row in found}
    assert list(rows) == ways
    octets, private = upstream_octets(variant, 12, 25)
    assert rows["websockets"]["octets"] == pytest.approx(octets)
    assert rows["websockets"]["private"] == (None if private is None else pytest.approx(private))
    assert rows["websockets"]["share"] == rows["websockets"]["faster"] == 1
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
    ways = [way for way in wire.WAYS if present(way)]
    lines = [line.split()[:2] for line in output.splitlines()]
    shown = [words for words in lines if words and words[0] in wire.VARIANTS and words[1] in ways]
    assert [[row["variant"], row["way"]] for row in content["rows"]] == shown
    assert shown == [[variant, way] for variant in wire.VARIANTS for way in ways]


# ---- Large frames


@extension
@pytest.mark.parametrize("size", [64, 20_000])
def test_large(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way sends what all others do; with and without files in memory is compared with the same connections."""
    wanted: list[bool] = []

    def send_files(files: bool) -> bool:
        wanted.append(files)
        return True

    monkeypatch.setattr("wsfast_bench.scenarios.large.send_files", send_files)
    ways = [name for name in large.METHODS_USED if present(name)]
    found = asyncio.run(large.measure_large(case(3, size, *ways), None))
    rows = {row["way"]: row for row in found}
    assert list(rows) == ["floor", "floor-file", "wsfast-send", *ways[1:]]
    assert {row["size"] for row in found} == {size}
    assert {way for way, row in rows.items() if row["gain"] is not None} == {"wsfast", "floor-file"}
    assert rows["floor"]["efficiency"] == rows["websockets"]["faster"] == 1
    assert all(row["sends"] == 6 and row["short"] in (0, None) for row in found)
    # Once for each way in two rounds, and as it is by default before and after that.
    assert wanted.count(False) == 2
    assert wanted[0] is wanted[-1] is True


@extension
def test_large_with_a_core_that_has_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to compare wsfast with, and the table says so."""
    monkeypatch.setattr("wsfast_bench.scenarios.large.send_files", lambda _: False)
    found = asyncio.run(large.measure_large(case(2, 100, "floor", "wsfast"), None))
    assert [row["way"] for row in found] == ["floor", "floor-file", "wsfast"]
    assert large.SCENARIO.warn(found)[-1].startswith("This core sends all frames by send()")


@extension
@pytest.mark.parametrize("way", ["floor", "floor-file", "wsfast"])
def test_sends_that_were_cut_are_told(way: str) -> None:
    """More than the sockets hold is counted as short, and arrives all the same."""

    async def run() -> Samples:
        samples = Samples()
        async with prepared(case(2, 16 << 20, "floor", "wsfast"), False, None) as (bench, turns):
            await bench.take_turn(large.compared(turns)[way], samples)
        return samples

    assert asyncio.run(run()).short > 0


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
