"""Scenarios in which clients come back: with few of them, all checks, and no time that is asserted."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from helpers.brokers import why_not
from wsfast.cli import UnfitError, main
from wsfast_bench import returning
from wsfast_bench.cases import Case
from wsfast_bench.feed import Feed
from wsfast_bench.returning import Client, FaultError, Run, parse
from wsfast_bench.scenarios import herd, rolling

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="scenarios are played on Linux only")

CASE = Case(3, 100, "asyncio", "text", (), 1, 1, "list")


def frame(content: Any) -> bytes:
    """Return the frame that a server sends."""
    return Frame(Opcode.TEXT, json.dumps(content).encode()).serialize(mask=False)


def message(offset: int, size: int = 10) -> bytes:
    """Return the frame of a message with its envelope."""
    return frame(["news", offset, f"{offset} ".ljust(size, "x")])


# ---- The clients


@pytest.mark.parametrize("size", [10, 200, 70_000])
def test_parse(size: int) -> None:
    """Messages whose offsets follow on each other are one run; what is not complete is left over."""
    answer: dict[str, Any] = {"subscribed": {}}
    ping = Frame(Opcode.PING, b"x").serialize(mask=False)
    data = message(4, size) + message(5, size) + frame(answer) + message(6, size) + ping + message(8, size)
    for cut in (0, 1, 3, size):
        parsed = parse(data + message(9, size)[:cut])
        assert parsed.events == (Run(4, 5), answer, Run(6, 6), (Opcode.PING, b"x"), Run(8, 8))
        assert parsed.rest == message(9, size)[:cut]


@contextlib.contextmanager
def connected() -> Iterator[tuple[Client, socket.socket]]:
    """Return a client, and the other end of its connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        client = Client(1)
        client.sock = ours
        yield client, theirs


def told(offset: int, *, recovered: bool, epoch: str = "e") -> bytes:
    """Return the frame of an answer."""
    return frame({"subscribed": {"news": {"epoch": epoch, "offset": offset, "recovered": recovered}}})


WRONG = {
    "missed": message(5),
    "twice": message(3),
    "none recovered": told(3, recovered=False),
    "another epoch": told(3, recovered=True, epoch="f"),
    "another position": told(4, recovered=True),
    "an error": frame({"error": "no"}),
    "another text": frame(["news", 4, "5 x"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_client_complains(wrong: str) -> None:
    """A client whose server sends anything but what follows on its position says so."""
    with connected() as (client, server):
        assert client.feed(b"HTTP/1.1 101 OK\r\n\r\n" + message(2) + message(3) + told(3, recovered=False))
        assert client.live
        assert (client.offset, client.messages) == (3, 2)
        assert client.feed(Frame(Opcode.PING, b"x").serialize(mask=False))
        with pytest.raises(FaultError):
            client.feed(WRONG[wrong])
        assert not client.feed(Frame(Opcode.CLOSE, b"\x03\xf4").serialize(mask=False))
        sent = server.recv(1 << 16)
    assert [sent[0], sent[-15], sent[-8]] == [0x80 | Opcode.TEXT, 0x80 | Opcode.PONG, 0x80 | Opcode.CLOSE]


def test_client_that_is_refused() -> None:
    """A handshake that is refused ends the connection, in whatever pieces it comes."""
    client = Client(1)
    assert client.feed(b"HTTP/1.1 503 Service")
    assert not client.feed(b" Unavailable\r\n\r\n")
    assert not client.live


# ---- A herd


def test_herd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Some hundred clients are cut off and come back, and have every message once."""
    path = tmp_path / "herd.json"
    argv = ["bench", "--scenario", "herd", "--clients", "300", "--messages", "20", "--loops", "asyncio"]
    assert main([*argv, "--json", str(path)]) == 0
    (content,) = json.loads(path.read_text())["scenarios"]
    new, back = content["rows"]
    assert (new["way"], new["missed"], back["way"], back["missed"]) == ("new", 0, "back", 20)
    assert back["messages"] >= 300 * 20
    assert min(new["cpu"], back["cpu"], new["seconds"], back["seconds"]) > 0
    assert back["peak"] >= back["steady"] > 0
    output = capsys.readouterr().out
    assert "herd: 300 clients come back within 1 s, 20 messages of 100 B missed, asyncio\n" in output


def test_fault_of_a_herd(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message with a number that its offset is not is no result."""

    def publish(feed: Any) -> None:
        feed.number += 1
        feed.hub.publish(returning.TOPIC, f"{feed.number + (feed.number > 5)} x")

    monkeypatch.setattr(Feed, "publish", publish)
    with pytest.raises(UnfitError, match="'7 x' has the offset 6"):
        asyncio.run(herd.come_back(CASE, 10, None))


# ---- A rolling restart


@pytest.mark.parametrize(
    ("times", "most"),
    [([5.0], 1), ([0.0, 0.5, 1.0, 1.4], 3), ([3.0, 0.0, 1.0, 2.0], 1), ([0.0, 0.9, 0.9, 1.8, 1.85], 4)],
)
def test_most_in_a_second(times: list[float], most: int) -> None:
    """Any second counts, not only those that begin at a whole number."""
    assert rolling.most_in_a_second(times) == most


@pytest.mark.skipif(why_not("redis") is not None, reason=str(why_not("redis")))
def test_rolling_restart() -> None:
    """A hundred clients of two workers that are drained and restarted come back and have every message once."""
    row = asyncio.run(rolling.restart(dataclasses.replace(CASE, clients=100), 2, 0.6, rate=20.0))
    assert row["reconnects"] == sum(row["histogram"]) >= 100
    assert 0 < row["most"] <= row["reconnects"]
    assert row["messages"] >= 100 * 20
    text = "\n".join(rolling.SCENARIO.warn([row | {"share": 0.11}]))
    assert text.startswith("came back in seconds  0 to  9:")
    assert "WARNING: more than 10% of the clients" in text
    assert "WARNING" not in "\n".join(rolling.SCENARIO.warn([row | {"share": 0.1}]))


def test_worker_that_does_not_start() -> None:
    """Its end is an error."""

    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            async with rolling._worker("http://nowhere", sock, 1.0, "asyncio"):
                pass

    with pytest.raises(UnfitError, match="a worker does not start"):
        asyncio.run(run())


def test_rolling_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """There is one row."""
    row = {"way": "rolling", "workers": 4, "seconds": 9.0, "reconnects": 7, "most": 2, "share": 0.05, "refused": 0}

    def ask(_module: str, _part: object, task: Any, _progress: object, *names: str) -> dict[str, Any]:
        assert (names, task["seconds"]) == (("rolling",), 3)
        return row | {"histogram": [3] * 12, "last": 5}

    monkeypatch.setattr("wsfast_bench.play.ask", ask)
    argv = ["bench", "--scenario", "rolling", "--clients", "40", "--seconds", "3", "--loops", "asyncio"]
    assert main(argv) == 0
    output = capsys.readouterr().out
    assert "rolling: 40 clients, 4 workers, each drained within 3 s, asyncio\n" in output
    assert "came back in seconds 10 to 19:    3    3\n" in output


def test_rolling_needs_redis(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the client library, the error says what to install."""
    monkeypatch.setattr("wsfast_bench.scenarios.rolling.installed", lambda _: False)
    assert main(["bench", "--scenario", "rolling"]) == 1
    assert "scenario rolling needs redis" in capsys.readouterr().err
