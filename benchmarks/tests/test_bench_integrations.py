"""Scenario `integrations`: servers of other libraries, with a few clients."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from wsfast.cli import UnfitError, main
from wsfast_bench import integrations as servers
from wsfast_bench.cases import Case
from wsfast_bench.follower import MARK
from wsfast_bench.integrations import INTEGRATIONS, Integration, Served
from wsfast_bench.machine import installed
from wsfast_bench.scenarios import integrations

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="scenarios are played on Linux only")

CASE = Case(3, 64, "asyncio", "text", (), 2, 2, "list")
HERE = [name for name, one in INTEGRATIONS.items() if all(map(installed, one.needed))]


def test_message() -> None:
    """It has the size that is told, one mark, and is JSON."""
    for size in (64, 256):
        text = integrations.text_of(size)
        assert (len(text), text.count(MARK)) == (size, 1)
        json.loads(text)


@pytest.mark.parametrize("name", HERE)
def test_library(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each client gets each message once, by both ways and from the floor; anything else would be an error."""
    monkeypatch.setattr(integrations, "INTEGRATIONS", {name: INTEGRATIONS[name]})
    path = tmp_path / "integrations.json"
    argv = ["bench", "--scenario", "integrations", "--clients", "3", "--rounds", "1", "--json", str(path)]
    assert main(argv) == 0
    (content,) = json.loads(path.read_text())["scenarios"]
    assert [row["way"] for row in content["rows"]] == ["own", "wsfast", "floor"]
    assert {row["integration"] for row in content["rows"]} == {name}
    assert min(row["cpu"] for row in content["rows"]) > 0


def _library(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Add a library that sends each message so many times."""

    @asynccontextmanager
    async def serve(case: Case, ours: bool) -> AsyncIterator[Served]:
        async with servers._sanic(case, ours) as served:

            async def publish(message: str) -> None:
                for _ in range(times):
                    await served.publish(message)

            yield Served(served.port, publish, served.clients)

    monkeypatch.setitem(INTEGRATIONS, "odd", Integration(serve, "own", "wsfast", ("sanic",)))
    monkeypatch.setattr(integrations, "PATIENCE", 0.2)


@pytest.mark.skipif("Sanic" not in HERE, reason="Sanic is not installed")
@pytest.mark.parametrize(("times", "complaint"), [(0, "3 of 3 messages have not arrived"), (2, "messages too many")])
def test_library_that_sends_too_few_or_too_many(monkeypatch: pytest.MonkeyPatch, times: int, complaint: str) -> None:
    """That is no result."""
    _library(monkeypatch, times)
    with pytest.raises(UnfitError, match=complaint):
        asyncio.run(integrations.compare(CASE, "odd", None))


def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """There is a notice for each library that is not installed, and an error if none is."""
    absent = Integration(servers._sanic, "own", "wsfast", ("no_such_module.sse",))
    monkeypatch.setattr(integrations, "INTEGRATIONS", {"No": absent})
    assert main(["bench", "--scenario", "integrations"]) == 1
    captured = capsys.readouterr()
    assert "Skipping No: no_such_module.sse is not installed\n" in captured.out
    assert "needs at least one of the libraries" in captured.err


def test_floor_finds_its_sockets() -> None:
    """They are the server's side of all connections to a port, and no other descriptors."""

    async def work() -> None:
        import websockets.asyncio.server

        async def stay(connection: Any) -> None:
            await connection.wait_closed()

        async with websockets.asyncio.server.serve(stay, "127.0.0.1", 0) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            assert list(integrations.sockets_of(port)) == []
            async with connect(f"ws://127.0.0.1:{port}", proxy=None):
                (connection,) = server.connections
                expected = connection.transport.get_extra_info("socket").fileno()
                assert list(integrations.sockets_of(port)) == [expected]

    asyncio.run(work())
