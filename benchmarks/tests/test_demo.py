"""The demonstration: its commands, its clients, its page in a real browser, its view in a terminal, its summary."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

import wsfast
from helpers.chromium import REQUIRED, Page, find_chromium, open_page
from helpers.peers import TIMEOUT, until
from wsfast.cli import main
from wsfast_bench.demo import commands, crowd, server, show, terminal
from wsfast_bench.demo import options as command_line
from wsfast_bench.demo.commands import METHODS, POLICIES, CommandError, Settings, parse
from wsfast_bench.demo.figures import INTERVAL
from wsfast_bench.demo.server import Demo, PortError, Stage
from wsfast_bench.demo.ticks import LARGEST, SMALLEST, SYMBOLS, Follower, Market

LOOPS = ["asyncio", *(["uvloop"] if importlib.util.find_spec("uvloop") else [])]

SCREENSHOT = os.environ.get("WSFAST_DEMO_SCREENSHOT")
"""A file, as docs/images/demo.png, to which the test in a browser writes what the page looks like."""


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have our own clients go to this machine directly."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(autouse=True)
def many_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have samples follow on each other, for which most tests wait."""
    monkeypatch.setattr(server, "INTERVAL", 0.05)


@contextlib.asynccontextmanager
async def staged(clients: int, settings: Settings | None = None, **options: Any) -> AsyncIterator[Stage]:
    """Run a stage with that many clients; in the end, those that read must have got everything."""
    stage = Stage(settings or Settings(rate=500), **options)
    async with stage.open():
        stage.show.do("add", clients)
        await stage.show.gather()
        sending = asyncio.create_task(stage.show.run())
        try:
            yield stage
            # A client that is catching up at the end may have got everything, though it is not yet counted so.
            await until(lambda: stage.show.count("waking") == 0)
            assert not sending.done()
        finally:
            sending.cancel()
            await asyncio.wait((sending,))
        report = await stage.show.finish()
        assert report["exact"] == stage.show.count("reading")
        assert (report["behind"], report["faults"], stage.crowd.lost) == (0, 0, 0)


def staging(main: Callable[[], Any]) -> None:
    """Run a coroutine function."""
    asyncio.run(asyncio.wait_for(main(), 3 * TIMEOUT))


class Control:
    """What a page sees: samples and errors; and what it does."""

    def __init__(self, stage: Stage, connection: ClientConnection) -> None:
        self.stage = stage
        self.messages: list[dict[str, Any]] = []
        self._connection = connection
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._connection:
            self.messages.append(json.loads(message))

    async def do(self, what: str, **arguments: Any) -> None:
        await self._connection.send(json.dumps({"do": what, **arguments}))

    async def send(self, message: str | bytes) -> None:
        await self._connection.send(message)

    def newest(self, kind: str) -> dict[str, Any]:
        """Return the newest message of a kind, or nothing."""
        return next((message for message in reversed(self.messages) if message["type"] == kind), {})

    async def sample(self, **values: Any) -> dict[str, Any]:
        """Wait for a sample with these values."""
        await until(lambda: values.items() <= self.newest("sample").items(), f"a sample with {values}")
        return self.newest("sample")

    async def sample_where(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait for a sample of which something is true."""
        await until(lambda: self.newest("sample") and condition(self.newest("sample")), "a sample")
        return self.newest("sample")

    async def error(self) -> str:
        """Wait for an error, and take it away."""
        await until(lambda: self.newest("error"), "an error")
        error = self.newest("error")
        self.messages.remove(error)
        return str(error["text"])


@contextlib.asynccontextmanager
async def controlled(stage: Stage) -> AsyncIterator[Control]:
    """Connect to the control socket of a stage."""
    uri = f"ws://127.0.0.1:{stage.port}/control"
    async with connect(uri, origin=stage.url.rstrip("/"), compression=None) as connection:  # type: ignore[arg-type]
        control = Control(stage, connection)
        try:
            yield control
        finally:
            control._reading.cancel()
            await asyncio.wait((control._reading,))


# ---- Ticks


@pytest.mark.parametrize("size", [SMALLEST, 256, LARGEST])
def test_ticks(size: int) -> None:
    """Ticks are JSON of the size that is wanted, and numbered from 1 on."""
    market = Market()
    ticks = [market.tick(size) for _ in range(300)]
    assert {len(tick.message) for tick in ticks} == {size}
    values = [json.loads(tick.message) for tick in ticks]
    assert [tick["seq"] for tick in values] == [tick.seq for tick in ticks] == list(range(1, 301))
    assert {tick["symbol"] for tick in values} <= set(SYMBOLS)
    assert set(values[0]) == {"symbol", "price", "size", "seq", "pad"}


def follow(follower: Follower, *seqs: int, symbol: str = "XAU") -> None:
    for seq in seqs:
        follower.follow(json.dumps({"symbol": symbol, "seq": seq}))


@pytest.mark.parametrize(
    ("seqs", "faults"),
    [([5, 6, 7], 0), ([5, 7], 1), ([6, 7], 1), ([5, 6, 6, 7], 1), ([5, 7, 6], 2), ([3, 4, 5, 6], 0), ([], 0)],
)
def test_follower(seqs: list[int], faults: int) -> None:
    """From where it must miss nothing, a client notices what it missed, got twice, or got out of order."""
    follower = Follower()
    follower.expect(5)
    follow(follower, *seqs)
    assert follower.faults == faults
    assert follower.received == len(seqs)


def test_follower_that_may_miss_ticks() -> None:
    """A client that was stalled may miss ticks, but none may come after a newer one of its symbol, nor twice."""
    follower = Follower()
    follow(follower, 3, 7, 9)
    follow(follower, 8, symbol="XAG")
    assert (follower.faults, follower.last) == (0, 9)
    follow(follower, 9, 5)
    assert follower.faults == 2


# ---- Commands


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("stall", "must be JSON"),
        ("[" * 100_000, "must be JSON"),
        (b"\xff", "must be JSON"),
        ("[]", 'must be an object with "do"'),
        ('{"do": 1}', 'must be an object with "do"'),
        ('{"do": "shutdown"}', "unknown command 'shutdown'; known are add,"),
        ('{"do": "run", "count": 1}', "unknown command 'run'"),
        ('{"do": "stall"}', 'stall takes "count", and nothing else'),
        ('{"do": "stall", "count": 1, "self": 2}', 'stall takes "count", and nothing else'),
    ],
)
def test_parse_refuses(message: str | bytes, error: str) -> None:
    """What is no command is refused, with the reason."""
    with pytest.raises(CommandError, match=re.escape(error)):
        parse(message)


WRONG = [
    ("add", "count", 0, "count must be a positive number of clients, not 0"),
    ("add", "count", True, "not True"),
    ("add", "count", 1.5, "not 1.5"),
    ("add", "count", 98, "there can be 100 clients, and 3 are there"),
    ("remove", "count", -1, "not -1"),
    ("stall", "count", "all", "not 'all'"),
    ("wake", "count", None, "not None"),
    ("wake", "count", 1, "no client is stalled"),
    ("method", "name", "publish", "unknown method 'publish'; known are turns, websockets, wsfast, channel"),
    ("policy", "name", "Policy", "unknown policy 'Policy'; known are Disconnect,"),
    ("policy", "name", ["Conflate"], "unknown policy ['Conflate']"),
    ("rate", "value", 0, "rate must be a number of ticks per second up to 1000, not 0"),
    ("rate", "value", 1e9, "not 1000000000.0"),
    ("rate", "value", True, "not True"),
    ("rate", "value", float("nan"), "not nan"),
    ("size", "value", 1, "size must be a number of bytes from 96 to 16384, not 1"),
    ("size", "value", 1 << 20, "not 1048576"),
    ("size", "value", 100.0, "not 100.0"),
]


def test_wrong_commands_are_refused_and_hurt_nothing() -> None:
    """A command that cannot be done is answered with an error, and nothing changes."""

    async def main() -> None:
        async with staged(3, limit=100) as stage, controlled(stage) as control:
            before = stage.show.state()
            for what, argument, value, error in WRONG:
                await control.do(what, **{argument: value})
                assert error in await control.error()
            for message in ("nonsense", b"\x00\xff", "{}"):
                await control.send(message)
                assert "a command must be" in await control.error()
            assert stage.show.state() == before
            seq = stage.show.market.seq
            await until(lambda: stage.show.market.seq > seq + 10, "more ticks")

    staging(main)


def test_commands() -> None:
    """Each command has its effect, which samples tell."""

    async def main() -> None:
        async with staged(5) as stage, controlled(stage) as control:
            await control.sample(clients=5, reading=5, stalled=0)
            await control.do("add", count=4)
            await control.sample(clients=9, reading=9, connecting=0)
            await control.do("remove", count=2)
            await control.sample(clients=7, reading=7)
            await control.do("stall", count=3)
            await control.sample(reading=4, stalled=3)
            await control.do("stall", count=100)
            await control.sample(reading=0, stalled=7)
            await control.do("stall", count=1)
            assert await control.error() == "no client reads"
            await control.do("wake", count=2)
            await control.sample(reading=2, stalled=5, waking=0)
            await control.do("wake", count=100)
            await control.sample(clients=7, reading=7, stalled=0, waking=0)
            await control.do("size", value=1000)
            await control.do("rate", value=20.5)
            await control.do("policy", name="DropNewest")
            await control.do("method", name="channel")
            await control.sample(size=1000, rate=20.5, policy="DropNewest", method="channel")
            assert len(stage.show.market.tick(stage.show.settings.size).message) == 1000
            stage.show.market.seq -= 1
            await control.do("remove", count=100)
            await control.sample(clients=0, reading=0)
            await control.do("remove", count=1)
            assert await control.error() == "no client is there"
            seq = stage.show.market.seq
            await until(lambda: stage.show.market.seq > seq + 1, "ticks for nobody")
            await control.do("add", count=3)
            await control.sample(clients=3, reading=3)

    staging(main)


@pytest.mark.parametrize("loop", LOOPS)
def test_methods_can_be_switched(loop: str) -> None:
    """Whatever the method, and however often it changes, clients that read get every tick, and calls are measured."""

    async def main() -> None:
        async with staged(10, loop=loop, phase=0.05) as stage, controlled(stage) as control:
            for method in (*METHODS, "turns", *METHODS[::-1], "turns"):
                for calls in stage.show.calls.values():
                    calls.clear()
                await control.do("method", name=method)
                await control.sample(method=method)
                awaited = METHODS if method == "turns" else (method,)
                await until(
                    lambda awaited=awaited: all(stage.show.calls[name].all for name in awaited),  # type: ignore[misc]
                    f"calls of {method}",
                )
                if method != "turns":
                    assert stage.show.channel.stats().subscribers == (10 if method == "channel" else 0)
                sample = await control.sample_where(
                    lambda sample, awaited=awaited: all(sample["medians"][name] for name in awaited)  # type: ignore[misc]
                )
                assert all(sample["medians"][name] > 0 for name in awaited)
            received = control.newest("sample")["received"]
            await control.sample_where(lambda sample: sample["received"] > received and sample["deliveries"] > 0)

    staging(main)


# ---- Stalled clients


@pytest.mark.parametrize("policy", list(POLICIES))
def test_stalled_clients(policy: str) -> None:
    """Clients that read nothing lose what the policy says, others nothing; they catch up when they read again."""
    lost = {"Disconnect": "disconnected", "Conflate": "conflated"}.get(policy, "dropped")

    async def main() -> None:
        settings = Settings("channel", policy, rate=1000, size=2048)
        async with staged(8, settings) as stage, controlled(stage) as control:
            await control.do("stall", count=3)
            sample = await control.sample_where(
                lambda sample: sample[lost] >= 3 and (policy == "Disconnect" or sample["waiting"]["behind"] > 0)
            )
            readers = [member for member in stage.show.members.values() if member.state == "reading"]
            assert len(readers) == 5
            for member in readers:
                assert member.subscription is not None
                assert (member.subscription.dropped, member.subscription.conflated) == (0, 0)
            if policy == "Disconnect":
                await control.sample(clients=5, reading=5, stalled=0, disconnected=3)
                return
            assert sample["disconnected"] == 0
            if policy == "Conflate":
                # What waits is one tick of each symbol for each of them, and what was refused halfway.
                assert sample["waiting"]["messages"] <= 3 * len(SYMBOLS)
                assert sample["dropped"] == 0
            else:
                assert sample["waiting"]["messages"] <= 3 * commands.QUEUE
                assert sample["conflated"] == 0
            assert sample["waiting"]["bytes"] > 0
            await control.do("wake", count=3)
            await control.sample(clients=8, reading=8, stalled=0, waking=0)
            # From here on they are like the others.
            seq = stage.show.market.seq
            await until(lambda: stage.crowd.everywhere > seq + 20, "ticks everywhere")

    staging(main)


@pytest.mark.parametrize("method", ["websockets", "wsfast"])
def test_broadcast_piles_up(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """broadcast() keeps everything for clients that read nothing, until the demonstration closes them."""
    monkeypatch.setattr(show, "PILE", 1 << 20)

    async def main() -> None:
        async with staged(8, Settings(method, rate=1000, size=8192)) as stage, controlled(stage) as control:
            await control.do("stall", count=3)
            await control.sample(clients=5, reading=5, stalled=0, shed=3, disconnected=0)
            assert "waited for 3 stalled clients" in control.newest("notice")["text"]
            assert stage.notices == [control.newest("notice")["text"]]

    staging(main)


@pytest.mark.parametrize("method", ["websockets", "turns"])
def test_clients_of_broadcast_catch_up(method: str) -> None:
    """Clients for which broadcast() has kept everything, or a channel something, become like the others again."""

    async def main() -> None:
        settings = Settings(method, rate=1000, size=2048)
        async with staged(6, settings, phase=0.05) as stage, controlled(stage) as control:
            for _ in range(2):
                await control.do("stall", count=2)
                await until(lambda: any(m.state == "stalled" and m.waiting for m in stage.show.members.values()))
                await control.do("wake", count=2)
                await control.sample_where(lambda sample: sample["reading"] == 6 and sample["waking"] == 0)

    staging(main)


def test_policy_can_be_changed() -> None:
    """A new policy is that of a new channel, to which all who were subscribed are, and which counts from nothing."""

    async def main() -> None:
        settings = Settings("channel", "DropOldest", rate=1000, size=2048)
        async with staged(6, settings) as stage, controlled(stage) as control:
            await control.do("stall", count=2)
            await control.sample_where(lambda sample: sample["dropped"] > 0)
            await control.do("policy", name="Conflate")
            await control.sample_where(lambda sample: sample["conflated"] > 0 and sample["policy"] == "Conflate")
            assert stage.show.channel.stats().subscribers == 6
            await control.do("policy", name="Disconnect")
            await control.sample(clients=4, reading=4, disconnected=2, policy="Disconnect")

    staging(main)


def test_stalling_all_the_time() -> None:
    """Stalling, waking, coming, leaving and switching in any order makes no client that reads miss anything."""

    async def main() -> None:
        settings = Settings("turns", "DropOldest", rate=1000, size=2048)
        async with staged(12, settings, phase=0.03, limit=40) as stage, controlled(stage) as control:
            for turn in range(60):
                steps: list[tuple[str, dict[str, Any]]] = [
                    ("stall", {"count": 3}),
                    ("add", {"count": 2}),
                    ("policy", {"name": list(POLICIES)[turn // 6 % 3 + 1]}),
                    ("wake", {"count": 2}),
                    ("method", {"name": (*METHODS, "turns")[turn // 6 % 4]}),
                    ("remove", {"count": 2}),
                ]
                what, argument = steps[turn % 6]
                await control.do(what, **argument)
                seq = stage.show.market.seq
                await until(lambda seq=seq: stage.show.market.seq >= seq + 5, "ticks")  # type: ignore[misc]
            await control.do("wake", count=100)
            await control.sample_where(lambda sample: sample["reading"] == sample["clients"] > 0)
            assert control.newest("error").get("text") in (None, "no client is stalled", "no client reads")

    staging(main)


# ---- The server


async def ask(stage: Stage, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Ask for something over HTTP."""

    def get() -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", stage.port, timeout=TIMEOUT)
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read()

    return await asyncio.to_thread(get)


def test_page_is_served() -> None:
    """The files of the page are served to this machine, may load nothing from elsewhere, and nothing else is served."""

    async def main() -> None:
        async with Stage(Settings()).open() as stage:
            for path, kind in (("/", "text/html"), ("/style.css", "text/css"), ("/page.js", "text/javascript")):
                status, headers, body = await ask(stage, path)
                assert status == 200
                assert headers["Content-Type"].startswith(kind)
                assert "default-src 'none'" in headers["Content-Security-Policy"]
                assert b"http" not in body.replace(f"ws://{stage.port}".encode(), b"")
            for path in (
                "/server.py",
                "/../server.py",
                "/ticks/1",
                "/ticks/",
                "/ticks/0",
                "/ticks/x",
                "/ticks/" + "9" * 5000,
            ):
                assert (await ask(stage, path))[0] == 404, path
            assert (await ask(stage, "/", Host=f"localhost:{stage.port}"))[0] == 200

    staging(main)


def test_pages_from_elsewhere_are_refused() -> None:
    """Whoever comes by another name than this machine's, or with another origin, gets neither page nor control."""

    async def main() -> None:
        async with Stage(Settings()).open() as stage:
            own = f"127.0.0.1:{stage.port}"
            for host in ("example.com", f"example.com:{stage.port}", "127.0.0.1", f"{own}.example.com"):
                assert (await ask(stage, "/", Host=host))[0] == 403, host
            for origin in (
                "http://example.com",
                "null",
                "http://127.0.0.1",
                f"https://{own}",
                f"http://{own}.com",
                None,
            ):
                with pytest.raises(InvalidStatus) as raised:
                    await connect(f"ws://{own}/control", origin=origin)  # type: ignore[arg-type]
                assert raised.value.response.status_code == 403, origin
            stage.show._expected.add(7)
            with pytest.raises(InvalidStatus) as raised:
                await connect(f"ws://{own}/ticks/7", origin="http://example.com")  # type: ignore[arg-type]
            assert raised.value.response.status_code == 403
            stage.show._expected.clear()

    staging(main)


def test_ports() -> None:
    """A port that is in use is an error that says what to do; the usual one is used only if it is free."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            taken = other.getsockname()[1]
            with pytest.raises(PortError, match=f"the port {taken} is in use; take another --port, or 0"):
                async with Stage(Settings(), port=taken).open():
                    pass
        with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as other:
            patch.setattr(server, "PORT", other.getsockname()[1])
            async with Stage(Settings(), port=None).open() as stage:
                assert stage.port not in (0, server.PORT)

    staging(main)


def test_clients_that_cannot_connect() -> None:
    """Clients that cannot connect are an error at first, and a notice later."""

    async def main() -> None:
        stage = Stage(Settings())
        async with stage.open():
            stage.show.do("add", 2)
            stage.show._expected.discard(2)  # so that it is not let in
            await until(lambda: stage.crowd.failures, "a failure")
            with pytest.raises(crowd.LostError, match="a client could not connect: InvalidStatus"):
                await stage.show.gather()
        stage = Stage(Settings())
        async with stage.open():
            stage.show._expected.add(5)
            stage.crowd.failures.append("OSError: no more")
            stage.show._fail(5)
            assert stage.notices == ["a client could not connect: OSError: no more"]
            assert stage.show.connecting == 0

    staging(main)


# ---- From the command line


@pytest.mark.parametrize("loop", ["auto", *LOOPS])
def test_demo(loop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All methods take turns, all clients get all ticks, and a summary compares."""
    assert main(["demo", "--clients", "20", "--seconds", "1", "--rate", "20", "--loop", loop, "--port", "0"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"^The page is at http://127\.0\.0\.1:\d+/$", output, re.MULTILINE)
    assert "20 clients have connected" in output
    for label in ("websockets.broadcast", "wsfast.broadcast", "wsfast.Channel"):
        assert f"\n{label} " in output
    assert "times faster" in output
    assert output.splitlines()[-1].startswith("All 20 clients received all ")
    assert "\x1b" not in output


def test_demo_with_stalled_clients(capsys: pytest.CaptureFixture[str]) -> None:
    """What is chosen on the command line is so from the beginning."""
    argv = ["demo", "--clients", "8", "--stalled", "2", "--seconds", "2", "--rate", "1000", "--size", "4096"]
    assert main([*argv, "--method", "channel", "--policy", "DropOldest", "--port", "0", "--no-browser"]) == 0
    output = capsys.readouterr().out
    assert "2 stalled; by DropOldest, " in output
    assert "\nwebsockets.broadcast" not in output
    assert (
        output.splitlines()[-1]
        == "All 6 clients that read received every one of their ticks exactly once and in order."
    )


def careless(careful: Callable[..., Any]) -> Callable[..., Any]:
    """Return a broadcast that leaves one client out once."""

    def broadcast(connections: list[Any], message: str) -> None:
        careful(connections[json.loads(message)["seq"] == 7 :], message)

    return broadcast


def test_demo_that_skips_a_client(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A broadcast that leaves a client out is noticed."""
    monkeypatch.setattr(wsfast, "broadcast", careless(wsfast.broadcast))
    monkeypatch.setattr(crowd, "PATIENCE", 1.0)
    demo = Demo(
        clients=3, seconds=TIMEOUT, settings=Settings("wsfast", rate=50), loop="asyncio", processors=None, port=0
    )
    assert demo.run() == 1
    assert "the clients have not come to an end with a tick" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"behind": 2}, "of 20 clients that read: 2 did not get the last tick"),
        ({"faults": 3}, "of 20 clients that read: 3 ticks were missed, or came twice or out of order"),
        ({"lost": 1}, "of 20 clients that read: 1 connections were lost"),
    ],
)
def test_summary_tells_what_was_lost(wrong: dict[str, int], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Clients that have not got every tick are an error."""

    async def main() -> None:
        stage = Stage(Settings())
        stage.crowd.lost = wrong.get("lost", 0)
        right = {"exact": 20, "behind": 0, "faults": 0, "received": 0}
        assert terminal.summarize(stage.show, {**right, **wrong}) == 1

    staging(main)
    assert text in capsys.readouterr().err


def test_demo_whose_clients_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the process of the clients, the demonstration ends at once."""
    original = show.Show.gather

    async def gather(self: show.Show) -> None:
        await original(self)
        assert self.crowd._process is not None
        self.crowd._process.kill()

    monkeypatch.setattr(show.Show, "gather", gather)
    assert main(["demo", "--clients", "3", "--port", "0"]) == 1
    assert "wsfast demo: error: the process of the clients has ended" in capsys.readouterr().err


def test_demo_at_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    """A port that is in use is an error without a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["demo", "--clients", "1", "--port", str(port)]) == 1
    assert f"wsfast demo: error: the port {port} is in use; take another --port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["--seconds", "0"], "must be positive"),
        (["--seconds", "nan"], "must be positive"),
        (["--rate", "-1"], "must be positive"),
        (["--rate", "1e6"], "rate must be a number of ticks per second up to 1000"),
        (["--size", "5"], "size must be a number of bytes from 96 to 16384, not 5"),
    ],
)
def test_demo_wrong_arguments(argv: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be is an error."""
    assert main(["demo", *argv]) == 1
    assert error in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [["--port", "65536"], ["--port", "x"], ["--browser", "--no-browser"], ["--policy", "x"]]
)
def test_demo_unknown_arguments(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What is no option is an error with status 2."""
    with pytest.raises(SystemExit) as raised:
        main(["demo", *argv])
    assert raised.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_names_of_options() -> None:
    """The command line knows the same methods and policies as the server, without importing it."""
    assert (commands.TURNS, *METHODS) == command_line.METHODS
    assert tuple(POLICIES) == command_line.POLICIES


def test_demo_without_uvloop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Uvloop is used if it is there; to ask for it when it is not is an error."""
    monkeypatch.setattr(command_line, "installed", lambda module: False)
    assert main(["demo", "--loop", "uvloop"]) == 1
    assert "uvloop is not installed; pip install wsfast[uvloop]" in capsys.readouterr().err
    assert main(["demo", "--clients", "2", "--seconds", "0.3", "--port", "0"]) == 0
    assert "(asyncio)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "on_terminal", "display", "browse", "seconds"),
    [
        ([], False, True, False, 10.0),
        ([], True, True, True, None),
        ([], True, False, False, None),
        (["--no-browser"], True, True, False, None),
        (["--browser"], False, False, True, 10.0),
        (["--seconds", "3"], True, True, True, 3.0),
    ],
)
def test_when_a_browser_is_opened(
    argv: list[str],
    on_terminal: bool,
    display: bool,
    browse: bool,
    seconds: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A browser is opened on a terminal with a display, or if asked for; where there is no terminal, it ends."""
    begun: list[Demo] = []

    def begin(self: Demo) -> int:
        begun.append(self)
        return 0

    monkeypatch.setattr(Demo, "run", begin)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: on_terminal)
    monkeypatch.setattr(command_line, "has_display", lambda: display)
    assert main(["demo", *argv]) == 0
    assert (begun[0].browse, begun[0].seconds) == (browse, seconds)


def test_browser_is_given_the_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What is opened is the page."""
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    assert main(["demo", "--clients", "2", "--seconds", "0.3", "--port", "0", "--browser"]) == 0
    assert f"The page is at {opened[0]}\n" in capsys.readouterr().out


def test_has_display(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal alone is none."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not command_line.has_display()
    monkeypatch.setenv("DISPLAY", ":0")
    assert command_line.has_display()


# ---- In a terminal

SAMPLE: dict[str, Any] = {
    "seq": 120,
    "ticks": 10.0,
    "size": 256,
    "clients": 1000,
    "reading": 990,
    "stalled": 7,
    "waking": 3,
    "connecting": 0,
    "method": "turns",
    "policy": "Conflate",
    "medians": {"websockets": 6.0, "wsfast": 3.0, "channel": None},
    "deliveries": 9900,
    "waiting": {"messages": 70, "bytes": 18000, "seconds": 1.25, "behind": 80},
    "memory": 64 << 20,
    "dropped": 0,
    "conflated": 1234,
    "disconnected": 0,
}


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is no terminal, every second sample is a line, and notices are."""
    view = terminal.Terminal()
    for _ in range(4):
        view.show_arrivals(SAMPLE)
        view.show_sample(SAMPLE, ["something has happened"])
    view.end()
    line = (
        "tick 120   websockets 6.00 ms (1.00)   wsfast 3.00 ms (2.00)   9900 deliveries/s   64.0 MiB   "
        "10 stalled, 17.6 KiB waiting   conflated 1234\n"
    )
    assert capsys.readouterr().out == f"something has happened\n{line}{line}"


def test_table_in_place(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal, a table is drawn over the one before, cut off where the terminal ends."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "30")
    view = terminal.Terminal()
    view.show_arrivals({**SAMPLE, "connecting": 500, "clients": 0})
    assert capsys.readouterr().out == "500 of 500 clients are connecting"
    view.show_sample(SAMPLE, [])
    lines = capsys.readouterr().out.removeprefix("\r\x1b[J").splitlines()
    assert len(lines) == len(list(terminal.table(SAMPLE)))
    assert max(map(len, lines)) <= 59
    assert any(line.split()[:4] == ["wsfast", "3.00", "ms", "2.00"] for line in lines)
    view.show_sample({**SAMPLE, "memory": None}, [])
    output = capsys.readouterr().out
    assert output.startswith(f"\r\x1b[{len(lines) - 1}A\x1b[J")
    assert "unknown" in output
    view.end()
    view.end()
    assert capsys.readouterr().out == "\n"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudoterminals")
def test_on_a_real_terminal() -> None:
    """On a terminal it goes on, with a table in place, until Ctrl-C, which ends it with a summary."""
    import pty

    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "wsfast", "demo", "--clients", "10", "--no-browser", "--port", "0"]
    environment = {**os.environ, "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=environment)
    os.close(theirs)
    output = b""
    deadline = time.monotonic() + TIMEOUT
    interrupted = False
    try:
        while time.monotonic() < deadline:
            try:
                output += os.read(ours, 65536)
            except OSError:  # Linux says so when the other end is closed
                break
            if not interrupted and all(name in output for name in (b"Ctrl-C ends it", b"  wsfast ", b"  channel ")):
                process.send_signal(signal.SIGINT)
                interrupted = True
        assert process.wait(TIMEOUT) == 0, output
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        assert process.stderr is not None
        errors = process.stderr.read()
        process.stderr.close()
    assert errors == b""
    assert b"\x1b[J" in output
    assert b"times faster" in output
    assert b"All 10 clients received all " in output


# ---- In a browser

CHROMIUM = find_chromium()

NUMBER = "(name => Number(document.querySelector(`[data-figure=${name}]`).textContent.replaceAll(',', '')))"


async def figure(page: Page, name: str) -> float:
    """Return a number that the page shows."""
    return float(await page.evaluate(f"{NUMBER}('{name}')"))


async def grows(page: Page, name: str) -> None:
    """Wait until a number that the page shows has grown."""
    await page.until(f"{NUMBER}('{name}') > {await figure(page, name)}")


async def until_figure(page: Page, name: str, value: int) -> None:
    """Wait until the page shows a number."""
    await page.until(f"{NUMBER}('{name}') === {value}")


LAST_TICK = "Math.max(...[...document.querySelectorAll('#ticker tbody td:last-child')].map(cell => parseInt(cell.textContent.replaceAll(',', ''))))"  # noqa: E501


@pytest.mark.skipif(CHROMIUM is None and not REQUIRED, reason="there is no Chromium here; see WSFAST_REQUIRE_CHROMIUM")
def test_page_in_a_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page connects, its numbers move, its controls work by mouse and keyboard, and it comes back after a loss.

    Clients that are stalled lose what the policy says, and take nothing from the others.
    """
    assert CHROMIUM is not None, "WSFAST_REQUIRE_CHROMIUM is set, and there is none; apt-get install chromium"
    chromium = CHROMIUM
    monkeypatch.setattr(server, "INTERVAL", INTERVAL)

    async def main() -> None:
        async with open_page(chromium) as page:
            async with staged(200, Settings(rate=20, size=1024), loop=LOOPS[-1], phase=0.5) as stage:
                await page.go(stage.url)
                await watch(page, stage)
                await stall(page, stage)
                port = stage.port
            await page.until("document.getElementById('status').dataset.state === 'lost'")
            assert await page.evaluate("[...document.querySelectorAll('button')].every(button => button.disabled)")
            async with staged(5, Settings(rate=20), port=port):
                await page.until("document.getElementById('status').dataset.state === 'connected'")
                await until_figure(page, "clients", 5)
                assert await page.evaluate("![...document.querySelectorAll('button')].some(button => button.disabled)")
            own = (f"http://127.0.0.1:{port}/", f"ws://127.0.0.1:{port}/")
            assert [url for url in page.requests if not url.startswith((*own, "data:"))] == []
            # That it could not connect while there was no server.
            assert [text for text in page.complaints if "ERR_CONNECTION_REFUSED" not in text] == []

    async def watch(page: Page, stage: Stage) -> None:
        await page.until("document.getElementById('status').textContent === 'Connected'")
        await until_figure(page, "reading", 200)
        for name in ("median-websockets", "median-wsfast", "median-channel"):
            await page.until(f"document.querySelector('[data-figure={name}]').textContent.endsWith(' ms')")
        await page.until("document.querySelector('[data-figure=ratio-wsfast]').textContent.endsWith('\\u00d7')")
        await page.until(f"{NUMBER}('deliveries') > 0")
        await page.until("parseFloat(document.querySelector('[data-figure=memory]').textContent) > 0")
        seq = await page.evaluate(LAST_TICK)
        await page.until(f"{LAST_TICK} > {seq}")
        await page.until(f"document.querySelectorAll('#ticker tbody tr').length === {len(SYMBOLS)}")
        # Something is drawn, and told to those who do not see it.
        assert await page.evaluate(
            "[...document.querySelectorAll('canvas')].every(canvas => canvas.getContext('2d')"
            ".getImageData(0, 0, canvas.width, canvas.height).data.some(value => value))"
        )
        await page.until("/websockets [0-9.]+/.test(document.getElementById('calls').getAttribute('aria-label'))")
        await page.until("/^Memory of the server: .* MiB$/.test(document.getElementById('memory').ariaLabel)")
        # With the keyboard alone: the first button, then the group of methods, of which the arrow chooses another.
        await page.evaluate("document.activeElement.blur()")
        await page.press("Tab", 9)
        assert await page.evaluate("document.activeElement.textContent") == "Add 100"
        await page.press(" ", 32, " ")
        await until_figure(page, "reading", 300)
        await page.click("button[data-do=remove]")
        await until_figure(page, "reading", 200)
        await page.evaluate("document.querySelector('input[name=method]:checked').focus()")
        await page.press("ArrowRight", 39)
        await until(lambda: stage.show.settings.method == "websockets", "the method")
        unlabelled = await page.evaluate(
            "[...document.querySelectorAll('input, select')].filter(element => !element.labels.length).length"
            " + [...document.querySelectorAll('button')].filter(button => !button.textContent.trim()).length"
        )
        assert unlabelled == 0
        # On a phone nothing is wider than the screen; the colours of dark mode are others.
        light = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        await page.resize(390, 844, dark=True)
        assert await page.evaluate("document.documentElement.scrollWidth <= 390")
        assert await page.evaluate("getComputedStyle(document.body).backgroundColor") != light
        await page.resize(1280, 800)
        assert await page.evaluate("document.documentElement.scrollWidth <= 1280")
        assert await page.evaluate("document.documentElement.scrollHeight <= 800")

    async def stall(page: Page, stage: Stage) -> None:
        # Under broadcast, it piles up.
        await page.click("[data-do=stall][data-count='10']")
        await until_figure(page, "stalled", 10)
        await page.until("/ticks behind/.test(document.querySelector('[data-figure=lag]').textContent)")
        await page.until("parseFloat(document.querySelector('[data-figure=waiting]').textContent) > 0")
        # Through the channel, the policy says what becomes of it, and those who read get everything.
        await page.click("input[value=channel]")
        readers = [member for member in stage.show.members.values() if member.state == "reading"]
        assert len(readers) == 190
        begin = stage.show.market.seq
        for policy, counted in (("Conflate", "conflated"), ("DropOldest", "dropped"), ("DropNewest", "dropped")):
            await page.click(f"input[value={policy}]")
            await until(lambda policy=policy: stage.show.settings.policy == policy, policy)  # type: ignore[misc]
            await grows(page, counted)
            await grows(page, counted)
            assert await figure(page, "disconnected") == 0
        await page.click("[data-do=wake]")
        await until_figure(page, "reading", 200)
        await page.click("[data-do=stall][data-count='10']")
        await until_figure(page, "stalled", 10)
        await page.evaluate(
            "(select => { select.value = '50'; select.dispatchEvent(new Event('change', {bubbles: true})); })"
            "(document.querySelector('select[name=rate]'))"
        )
        await until(lambda: stage.show.settings.rate == 50, "the rate")
        await page.click("input[value=Conflate]")
        await grows(page, "conflated")
        if SCREENSHOT:
            await page.click("input[value=turns]")
            await asyncio.sleep(30)  # so that there is something to see
            await page.click("input[value=channel]")
            await asyncio.sleep(8)
            await page.evaluate("document.activeElement.blur()")
            await page.screenshot(Path(SCREENSHOT))
        await page.click("input[value=Disconnect]")
        await until_figure(page, "disconnected", 10)
        await until_figure(page, "clients", 190)
        # As many deliveries as there were ticks, to each of those who have been reading all the time.
        end = stage.show.market.seq
        await until(lambda: stage.crowd.everywhere >= end, "the last tick")
        assert end > begin
        assert sum(member.state == "reading" for member in readers) >= 180

    staging(main)
