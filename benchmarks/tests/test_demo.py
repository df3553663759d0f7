"""The demo: its clients, its processes, its page over HTTP, what it says, and its command line."""

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
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode

from helpers.peers import TIMEOUT, Peer, until
from helpers.processes import started
from wsfast.cli import UnfitError, main
from wsfast_bench.demo import child, clients, message, recovery, server, show, story, terminal
from wsfast_bench.demo import options as command_line
from wsfast_bench.demo.lane import KEPT, KEYS, PHONE, POLICIES, SendLoop
from wsfast_bench.demo.server import Demo, PortError, serve_page
from wsfast_bench.demo.show import CommandError, Settings, Show
from wsfast_bench.demo.story import LANES, judge, say, summarize
from wsfast_bench.returning import FaultError

LOOPS = ["asyncio", *(["uvloop"] if importlib.util.find_spec("uvloop") else [])]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have our own clients go to this machine directly."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def running(main: Callable[[], Any]) -> None:
    """Run a coroutine function."""
    asyncio.run(asyncio.wait_for(main(), 3 * TIMEOUT))


@contextlib.asynccontextmanager
async def shown(loop: str = "asyncio", **settings: Any) -> AsyncIterator[Show]:
    """Run a small show; in the end, the clients that read must have got everything, and no process is left."""
    show = Show(Settings(**{"clients": 5, "loop": loop, **settings}))
    async with show.open():
        yield show
    assert {
        child._process.returncode for child in (*show.lanes.values(), show.clients) if child and child._process
    } == {0}
    assert judge(show.samples[-1]) == 0


async def sample_where(show: Show, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Wait for a sample of which something is true."""
    async with asyncio.timeout(TIMEOUT):
        while not condition(sample := await show.until_sample()):
            pass
    return sample


def delivers(lane: str) -> Callable[[dict[str, Any]], bool]:
    """Return a condition: the clients of a lane get messages."""
    return lambda sample: sample["lanes"][lane]["delivered"] > 0


# ---- Messages and clients


@pytest.mark.parametrize("size", [message.SMALLEST, 16384, message.LARGEST])
def test_message(size: int) -> None:
    """A message is JSON of the wanted size, and its head is enough to know number and time."""
    text = message.make(1234567890, 9876543.25, size)
    assert len(text) == size
    assert {"number": 1234567890, "time": 9876543.25}.items() <= json.loads(text).items()
    assert message.parse(text[: message.HEAD].encode()) == (1234567890, 9876543.25)


@contextlib.contextmanager
def reader() -> Iterator[tuple[clients.Client, clients.Counts, socket.socket]]:
    """Return a client with its counts, and the other end of its socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.settimeout(TIMEOUT)
        counts = clients.Counts()
        yield clients.Client(ours, counts), counts, theirs


def frame(number: int, size: int = 200) -> bytes:
    """Return the frame of a message."""
    return Frame(Opcode.TEXT, message.make(number, 0.0, size).encode()).serialize(mask=False)


@pytest.mark.parametrize("step", [1, 7, 130, 1000, 1 << 20])
def test_client_reads_any_pieces(step: int) -> None:
    """However the bytes of frames arrive, a client counts each message once and answers pings."""
    ping = Frame(Opcode.PING, b"p" * 125).serialize(mask=False)
    stream = (
        frame(1) + ping + frame(2, 130) + frame(3, 65536) + Frame(Opcode.PING, b"").serialize(mask=False) + frame(4)
    )
    with reader() as (client, counts, theirs):
        for at in range(0, len(stream), step):
            assert client.feed(memoryview(stream[at : at + step]))
        assert (len(counts.ages[-1]), counts.missed, counts.disordered) == (4, 0, 0)
        assert client.number == 4
        pongs = theirs.recv(4096)
        assert pongs[:2] == bytes((0x80 | Opcode.PONG, 0x80 | 125))
        assert len(pongs) == 6 + 125 + 6


@pytest.mark.parametrize(
    ("numbers", "missed", "disordered"),
    [([5, 6, 7], 0, 0), ([5, 8], 2, 0), ([5, 5], 0, 1), ([5, 7, 6], 1, 1), ([], 0, 0)],
)
def test_client_notices_what_it_misses(numbers: list[int], missed: int, disordered: int) -> None:
    """A client counts gaps, and messages that come twice or too late."""
    with reader() as (client, counts, _):
        for number in numbers:
            client.feed(memoryview(frame(number)))
        assert (counts.missed, counts.disordered) == (missed, disordered)


def test_client_whose_connection_ends() -> None:
    """A client ends with a close frame, and with its socket; it waits when nothing is there."""
    with reader() as (client, _, theirs):
        assert client.read()
        theirs.sendall(frame(1))
        assert client.read()
        assert client.number == 1
        theirs.close()
        assert not client.read()
        assert not client.feed(memoryview(Frame(Opcode.CLOSE, b"").serialize(mask=False)))


def test_lag() -> None:
    """The lag is the median age of the messages of a second; without any, the age of the last one."""
    counts = clients.Counts()
    assert counts.report(100.0)["lag"] is None
    counts.newest = 99.0
    for ages in ([0.1, 0.2], [0.9], [], []):
        counts.ages[-1].extend(ages)
        report = counts.report(100.0)
    assert (report["delivered"], report["lag"]) == (3, 0.2)
    for _ in range(clients.WINDOW):
        report = counts.report(101.5)
    assert (report["delivered"], report["lag"]) == (0, 2.5)


# ---- The lanes


@pytest.mark.parametrize("loop", LOOPS)
def test_story(loop: str) -> None:
    """One client stops reading: the loop stops, websockets keeps all for it, the Channel drops; then all goes on."""

    async def main() -> None:
        async with shown(loop) as show:
            for lane in LANES:
                sample = await sample_where(show, delivers(lane))
                assert sample["lanes"][lane]["lag"] > 0
                assert sample["lanes"][lane]["memory"] > 1 << 20
            await sample_where(show, lambda sample: all(delivers(lane)(sample) for lane in LANES))
            show.do("tunnel", True)
            show.do("tunnel", True)
            sample = await sample_where(show, lambda sample: not delivers("loop")(sample))
            assert sample["lanes"]["loop"]["says"].text == "The loop waits for one client: nobody gets anything."
            sample = await sample_where(show, lambda sample: sample["lanes"]["loop"]["lag"] > 2)
            sample = await sample_where(show, lambda sample: sample["lanes"]["channel"]["dropped"] > 20)
            lanes = sample["lanes"]
            assert lanes["broadcast"]["kept"] > lanes["channel"]["kept"] > 0
            assert lanes["channel"]["kept"] < 2 * 16 * 16384
            assert "The others notice nothing." in lanes["channel"]["says"].text
            kept = lanes["broadcast"]["kept"]
            sample = await sample_where(show, lambda sample: sample["lanes"]["broadcast"]["kept"] > kept + (1 << 18))
            assert delivers("broadcast")(sample)
            assert delivers("channel")(sample)
            show.do("tunnel", False)
            sample = await sample_where(show, lambda sample: delivers("loop")(sample) and sample["stalled"] is None)
            await sample_where(show, lambda sample: sample["lanes"]["broadcast"]["kept"] == 0)

    running(main)


def test_policies() -> None:
    """Each policy does to the stalled client what it says; one that was disconnected comes back after the tunnel."""

    async def main() -> None:
        async with shown(rate=20) as show:
            await sample_where(show, delivers("channel"))
            for policy, what in (("Conflate", "conflated"), ("DropNewest", "dropped"), ("Disconnect", "gone")):
                show.do("policy", policy)
                show.do("tunnel", True)
                sample = await sample_where(show, lambda sample, what=what: sample["lanes"]["channel"][what])  # type: ignore[misc]
                assert sample["policy"] == policy
                assert delivers("channel")(sample)
                show.do("tunnel", False)
                await sample_where(
                    show,
                    lambda sample: not sample["lanes"]["channel"]["gone"] and not sample["lanes"]["channel"]["kept"],
                )

    running(main)


def test_rate() -> None:
    """All lanes send as many messages per second as is chosen."""

    async def main() -> None:
        async with shown(rate=5) as show:
            await sample_where(
                show, lambda sample: all(numbers["delivered"] >= 20 for numbers in sample["lanes"].values())
            )
            show.do("rate", 40)
            await sample_where(
                show, lambda sample: all(numbers["delivered"] > 40 for numbers in sample["lanes"].values())
            )

    running(main)


@pytest.mark.parametrize(("name", "value"), [("LONGEST", 0.5), ("MOST", -1 << 40)])
def test_bounds_of_the_tunnel(name: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client comes out by itself after a while, or when a server has grown by too much; the page says so."""
    monkeypatch.setattr(show, name, value)

    async def main() -> None:
        async with shown() as show:
            await show.until_sample()
            show.do("tunnel", True)
            sample = await sample_where(show, lambda sample: sample["notice"])
            assert sample["stalled"] is None
            assert sample["notice"].startswith("The demo let the client out of the tunnel after ")
            show.do("tunnel", False)
            await sample_where(show, lambda sample: not sample["notice"])

    running(main)


def test_tunnel_without_a_click(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the comparison, clients drive into the tunnel and out of it by themselves, until somebody uses the page."""
    monkeypatch.setattr(server, "HEALTHY", 0.3)
    monkeypatch.setattr(server, "STALLED", 0.3)

    async def main() -> None:
        async with shown() as show:
            show.auto = True
            repeating = asyncio.create_task(Demo()._repeat(show))
            for _ in range(2):
                await sample_where(show, lambda sample: sample["stalled"] is not None)
                await sample_where(show, lambda sample: sample["stalled"] is None)
            show.auto = False
            repeating.cancel()
            await asyncio.wait((repeating,))
            await show.until_sample()

    running(main)


def test_keepalive_is_told_apart() -> None:
    """When the keepalive of websockets closes the stalled client, the lane knows."""

    async def main() -> None:
        lane = SendLoop()
        options: dict[str, Any] = {
            "ping_interval": 0.05,
            "ping_timeout": 0.05,
            "close_timeout": 0.05,
            "compression": None,
        }
        async with serve(lane.attend, "127.0.0.1", 0, **options) as served:
            port = next(iter(served.sockets)).getsockname()[1]
            sock = socket.create_connection(("127.0.0.1", port))
            peer = Peer(sock)
            await peer.upgrade(target=PHONE)
            await until(lambda: lane.gone, "the keepalive")
            assert (lane.gone, lane.phone, lane.connections) == ("keepalive", None, set())
            peer.close()

    running(main)


@pytest.mark.parametrize("lost", [*LANES, "clients"])
def test_process_that_ends(lost: str) -> None:
    """Without one of its processes, the demo ends at once, and says which."""

    async def main() -> None:
        show = Show(Settings(clients=2))
        async with show.open():
            one = show.clients if lost == "clients" else show.lanes[lost]
            assert one is not None
            os.kill(one.pid, signal.SIGKILL)
            await show.watch()

    with pytest.raises(child.LostError, match=f"the process of {re.escape(LANES.get(lost, 'the clients'))} has ended"):
        running(main)


def test_clients_that_cannot_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that cannot connect are an error with the reason."""

    async def main() -> None:
        show = Show(Settings(clients=2))
        with socket.create_server(("127.0.0.1", 0)) as other:
            taken = other.getsockname()[1]
        monkeypatch.setattr(show, "_ports", dict.fromkeys(LANES, taken))
        monkeypatch.setattr(show, "_hear", lambda lane, report: None)
        with pytest.raises(child.LostError, match="a client cannot connect: ConnectionRefusedError"):
            async with show.open():
                pass

    running(main)


def test_process_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that does not end with its input is killed."""
    monkeypatch.setattr(child, "PATIENCE", 0.05)

    async def main() -> None:
        stubborn = child.Child("a lane", "lane", {}, print)
        await stubborn.end()
        stubborn._command = (sys.executable, "-c", "import time; time.sleep(1000)", "")
        await stubborn.start()
        await stubborn.end()
        stubborn.tell(do="rate", value=1)
        assert stubborn._process is not None
        assert stubborn._process.returncode == -signal.SIGKILL

    running(main)


# ---- Commands and the page


@pytest.mark.parametrize(
    "text", ["stall", "[" * 100_000, b"\xff", "[]", "{}", '{"do": 1, "value": 1}', '{"do": "tunnel"}']
)
def test_parse_refuses(text: str | bytes) -> None:
    """A message of a page that is no command is refused."""
    with pytest.raises(CommandError, match="a command must be"):
        server.parse(text)


WRONG = [
    ("tunnel", 1),
    ("tunnel", None),
    ("policy", "Policy"),
    ("policy", ["Conflate"]),
    ("rate", 0),
    ("rate", 101),
    ("rate", True),
    ("rate", 20.5),
    ("watch", True),
]


def test_commands_of_a_page() -> None:
    """A page gets the samples of the last time and all new ones. Its commands are obeyed, or refused and harmless."""

    async def main() -> None:
        async with shown() as show, serve_page(show) as url:
            show.auto = True
            await show.until_sample()
            async with connect(f"{url.replace('http', 'ws')}control", origin=url.rstrip("/"), compression=None) as page:  # type: ignore[arg-type]

                async def answer(key: str) -> Any:
                    async with asyncio.timeout(TIMEOUT):
                        while key not in (said := json.loads(await page.recv())):
                            pass
                    return said[key]

                for name, value in WRONG:
                    await page.send(json.dumps({"do": name, "value": value}))
                    assert await answer("error") == f"this cannot be done: {name} {value!r}"
                await page.send("nonsense")
                assert await answer("error") == "a command must be JSON"
                assert show.auto
                assert await answer("stalled") is None
                await page.send(json.dumps({"do": "tunnel", "value": True}))
                async with asyncio.timeout(TIMEOUT):
                    while await answer("stalled") is None:
                        pass
                assert not show.auto

    running(main)


def test_commands_before_the_clients_are_there() -> None:
    """Until there is a sample, there is nothing to command."""
    with pytest.raises(CommandError, match="the clients are still connecting"):
        Show(Settings()).do("tunnel", True)


async def ask(url: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Ask for something over HTTP."""

    def get() -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(url.split("/")[2], timeout=TIMEOUT)
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read()

    return await asyncio.to_thread(get)


def test_page_is_served() -> None:
    """The files of the page are served to this machine and load nothing from elsewhere; nothing else is served."""

    async def main() -> None:
        async with serve_page(Show(Settings())) as url:
            for path, kind in (("/", "text/html"), ("/style.css", "text/css"), ("/page.js", "text/javascript")):
                status, headers, body = await ask(url, path)
                assert status == 200
                assert headers["Content-Type"].startswith(kind)
                assert "default-src 'none'" in headers["Content-Security-Policy"]
                assert b"http" not in body
            for path in ("/server.py", "/../server.py", "/page", "/phone"):
                assert (await ask(url, path))[0] == 404, path
            assert (await ask(url, "/", Host=url.split("/")[2].replace("127.0.0.1", "localhost")))[0] == 200

    running(main)


def test_pages_from_elsewhere_are_refused() -> None:
    """A request for another host name, or from a page of another site, gets neither page nor control."""

    async def main() -> None:
        async with serve_page(Show(Settings())) as url:
            own = url.split("/")[2]
            for host in ("example.com", f"example.com{own[9:]}", "127.0.0.1", f"{own}.example.com"):
                assert (await ask(url, "/", Host=host))[0] == 403, host
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

    running(main)


def test_lanes_refuse_pages() -> None:
    """No page, not even that of the demo, can connect to a lane."""

    async def main() -> None:
        async with shown(clients=1) as show:
            for port in show._ports.values():
                with pytest.raises(InvalidStatus) as raised:
                    await connect(f"ws://127.0.0.1:{port}/", origin=f"http://127.0.0.1:{port}")  # type: ignore[arg-type]
                assert raised.value.response.status_code == 403
            await show.until_sample()

    running(main)


def test_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port in use is an error that says what to do; the usual one is used if it is free."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            taken = other.getsockname()[1]
            with pytest.raises(PortError, match=f"port {taken} is in use; choose another --port, or 0"):
                async with serve_page(Show(Settings()), taken):
                    pass
            monkeypatch.setattr(server, "PORT", taken)
            async with serve_page(Show(Settings()), None) as url:
                assert not url.endswith(f":{taken}/")
        async with serve_page(Show(Settings()), None) as url:
            assert url.endswith(f":{taken}/")

    running(main)


# ---- What it says

NUMBERS: dict[str, Any] = {
    "name": "",
    "delivered": 100,
    "lag": 0.002,
    "memory": 40 << 20,
    "grown": 0,
    "cpu": 0.125,
    "kept": 0,
    "dropped": 0,
    "conflated": 0,
    "left_out": 0,
    "gone": "",
    "missed_since": 0,
    **dict.fromkeys(story.PROMISES, 0),
}


def numbers(**values: Any) -> dict[str, Any]:
    """Return the numbers of a lane."""
    return NUMBERS | values


@pytest.mark.parametrize(
    ("lane", "stalled", "values", "text"),
    [
        ("loop", False, {"lag": None}, "The clients are there. The first message follows."),
        ("loop", False, {}, "Every client gets every message. The server uses 12% of a core."),
        ("loop", False, {"delivered": 89}, "89 of 100 messages per second arrive."),
        ("broadcast", False, {"kept": 5 << 20}, "The client is back and reads the 5.0 MiB that waited for it."),
        ("loop", True, {}, "One client stopped reading. Its buffers are filling."),
        ("broadcast", True, {}, "One client stopped reading. Its buffers are filling."),
        ("loop", True, {"delivered": 0}, "The loop waits for one client: nobody gets anything."),
        (
            "loop",
            True,
            {"gone": "keepalive"},
            "The keepalive closed the stalled client. The others go on.",
        ),
        (
            "broadcast",
            True,
            {"kept": 1 << 19},
            "websockets keeps 512 KiB for the stalled client, and more every second.",
        ),
        ("channel", True, {}, "The Channel keeps a few messages for the stalled client. The others notice nothing."),
        (
            "channel",
            True,
            {"dropped": 1210},
            "The Channel dropped 1,210 messages of the stalled client. The others notice",
        ),
        (
            "channel",
            True,
            {"conflated": 3, "missed": 9, "missed_since": 2},
            "replaced 3 old messages of the stalled client. The others missed 2.",
        ),
        (
            "channel",
            True,
            {"gone": "policy"},
            "The Channel disconnected the stalled client. The others notice nothing.",
        ),
    ],
)
def test_sentences(lane: str, stalled: bool, values: dict[str, Any], text: str) -> None:
    """A sentence says what happens in a lane."""
    sentence = say(lane, numbers(**values), stalled=stalled, expected=100)
    assert text in sentence.text.format(sentence.value)
    assert sentence.tone in ("good", "warn", "bad", "")


def sample(stalled: float | None = None, **lanes: dict[str, Any]) -> dict[str, Any]:
    """Return a sample."""
    rows = {}
    for lane in LANES:
        row = numbers(**lanes.get(lane, {}))
        rows[lane] = row | {"says": say(lane, row, stalled=stalled is not None, expected=100)}
    return {"stalled": stalled, "clients": 333, "rate": 20, "size": 16384, "lanes": rows}


SAMPLES = [
    *[sample(loop={"delivered": 6000 + n, "lag": n / 1e3}) for n in range(1, 10)],
    *[
        sample(
            n / 4,
            loop={"delivered": 0 if n > 2 else 6660, "lag": n / 4, "memory": None},
            broadcast={"delivered": 6600, "kept": n << 20},
            channel={"delivered": 6650, "kept": 1 << 18, "dropped": 7 * n},
        )
        for n in range(1, 9)
    ],
]


def test_summary_agrees_with_the_live_numbers() -> None:
    """A summary has the medians of the samples, without the first third, and the last memory, and sentences."""
    text = "\n".join(summarize(SAMPLES))
    rows = {line[:24].strip(): line[24:].split() for line in text.splitlines()[2:5]}
    assert rows["await send() in a loop"] == [
        "6,006",
        "6.5",
        "ms",
        "40.0",
        "MiB",
        "0",
        "1.4",
        "s",
        "unknown",
        "0",
        "KiB",
    ]
    assert rows["websockets.broadcast()"][5:] == ["6,600", "2.0", "ms", "40.0", "MiB", "8.0", "MiB"]
    assert "one client in a tunnel for 2 s" in text
    assert text.splitlines()[-3:] == [
        "The loop of await send() delivered 0 per second: it waits for one client.",
        "websockets.broadcast() delivered 6,600 per second and kept 8.0 MiB for that client, and more every second.",
        "wsfast.Channel delivered 6,650 per second, kept 256 KiB for that client, and left out 56 of its messages.",
    ]
    assert "The loop of await send() delivered 100 per second." in list(summarize([sample(), sample(1.0)]))
    assert list(summarize(SAMPLES[:3])) == ["There is no summary: somebody used the page meanwhile."]


@pytest.mark.parametrize("what", story.PROMISES)
def test_broken_promises(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A healthy client that has not got everything is an error."""
    assert judge(sample()) == 0
    assert "once and in order" in capsys.readouterr().out
    assert judge(sample(broadcast={what: 3})) == 1
    assert f"wsfast demo: error: websockets.broadcast(): 3 {story.PROMISES[what]}" in capsys.readouterr().err
    assert judge(sample(channel={what: 3, "left_out": 3})) == (what != "missed")
    assert ("except 3 that the Channel left out" in capsys.readouterr().out) == (what == "missed")


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal, every eighth sample is a line."""
    view = terminal.Terminal()
    view.show_progress("3 clients have connected")
    for one in SAMPLES:
        view.show(one, 3)
    view.end()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("all clients read   await send() in a loop: 6,008/s, 8.0 ms, 40.0 MiB   websockets.")
    assert lines[1].startswith("2 s in the tunnel   await send() in a loop: 0/s, 1.8 s, unknown   ")


def test_table_in_place(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal, a table is drawn over the one before, cut off where the terminal ends."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "30")
    view = terminal.Terminal()
    view.show_progress("3 clients have connected")
    assert capsys.readouterr().out == "3 clients have connected"
    view.show(SAMPLES[0], 3)
    lines = capsys.readouterr().out.removeprefix("\r\x1b[J").splitlines()
    assert "In 3 s, one of each lane drives into a tu" in lines[1]
    assert max(map(len, lines)) <= 59
    view.show(SAMPLES[-1], 3)
    output = capsys.readouterr().out
    assert output.startswith(f"\r\x1b[{len(lines) - 1}A\x1b[J")
    assert "The loop waits for one client" in output
    view.end()
    view.end()
    assert capsys.readouterr().out == "\n\n"


# ---- From the command line

SMALL = ["demo", "--clients", "3", "--port", "0", "--no-browser"]


@pytest.mark.parametrize("loop", ["auto", "asyncio"])
def test_demo(loop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal, it prints the page's URL, live numbers and a summary, and ends."""
    assert main([*SMALL, "--seconds", "4", "--rate", "20", "--loop", loop]) == 0
    output = capsys.readouterr().out
    assert re.search(r"^The page is at http://127\.0\.0\.1:\d+/$", output, re.MULTILINE)
    assert "Starting 3 servers, and 9 clients in one more process" in output
    for name in LANES.values():
        assert f"\n{name} " in output
    *_, first, blank, second, third, last = output.splitlines()
    assert first == "All other clients got every message sent to them once and in order."
    assert (blank, second) == ("", "Now all clients of one more server are cut off at once, and come back.")
    assert re.match(r"3 clients of a wsfast\.Hub missed [1-9]\d* messages each or more while they were away; ", third)
    assert last.endswith(" messages since the cut: none is missing, and none came twice.")
    assert "\x1b" not in output


def test_cut_off() -> None:
    """Clients that are cut off get as many messages as were published since then, each."""

    async def main() -> None:
        found = await recovery.cut_off(20, 50, 0.2)
        assert (found.clients, found.messages % 20) == (20, 0)
        assert found.messages >= 20 * found.missed > 0
        assert 0.2 < found.seconds < recovery.PATIENCE

    running(main)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (FaultError("client 1 is at 5"), 1, "wsfast demo: error: client 1 is at 5"),
        (UnfitError("no room"), 0, "This part is left out: no room"),
        (TimeoutError(), 0, "This part is left out: it takes too long on this machine"),
    ],
)
def test_cut_off_that_fails(
    error: Exception,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A client that has lost something is an error; that it could not be tried is none."""

    async def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(server, "cut_off", fail)
    demo = Demo(status=0)
    asyncio.run(demo._recover(Show(Settings()), terminal.Terminal(), 1.0))
    assert demo.status == status
    assert said in "\n".join(capsys.readouterr())


def test_demo_that_loses_a_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A process that fails is an error without a traceback."""
    monkeypatch.setattr(child, "__package__", "wsfast_bench.nowhere")
    assert main(SMALL) == 1
    assert "wsfast demo: error: the process of " in capsys.readouterr().err


def test_demo_at_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    """A port in use is an error without a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["demo", "--clients", "1", "--port", str(port)]) == 1
    assert f"wsfast demo: error: port {port} is in use; choose another --port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["--seconds", "0"], "must be positive"),
        (["--seconds", "nan"], "must be positive"),
        (["--seconds", "inf"], "must be positive"),
        (["--rate", "101"], "--rate must be at most 100 per second, not 101"),
        (["--size", "5"], "--size must be from 128 to 65536 bytes, not 5"),
    ],
)
def test_demo_wrong_arguments(argv: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A value out of range is an error."""
    assert main(["demo", *argv]) == 1
    assert error in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [["--port", "65536"], ["--port", "x"], ["--browser", "--no-browser"], ["--policy", "x"], ["--clients", "0"]]
)
def test_demo_unknown_arguments(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """An argument that does not exist is an error with status 2."""
    with pytest.raises(SystemExit) as raised:
        main(["demo", *argv])
    assert raised.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_names_of_policies() -> None:
    """The command line and the page know the same policies as the lane, and the page the same bounds."""
    folder = Path(server.__file__).parent / "page"
    values = re.findall(r'name="policy" value="(\w+)"', (folder / "index.html").read_text())
    assert set(POLICIES) == set(command_line.POLICIES) == set(values)
    script = (folder / "page.js").read_text()
    assert f"The oldest of {KEPT} waiting messages" in script
    assert f"each of {KEYS} keys" in script


def test_demo_without_uvloop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """To ask for uvloop where it is not installed is an error."""
    monkeypatch.setattr(command_line, "installed", lambda module: False)
    assert main(["demo", "--loop", "uvloop"]) == 1
    assert 'uvloop is not installed; pip install "wsfast[uvloop]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "on_terminal", "display", "browse", "stay"),
    [
        ([], False, True, False, False),
        ([], True, True, True, True),
        ([], True, False, False, True),
        (["--no-browser"], True, True, False, True),
        (["--browser"], False, False, True, False),
        (["--seconds", "3"], True, True, True, False),
    ],
)
def test_when_it_stays(
    argv: list[str], on_terminal: bool, display: bool, browse: bool, stay: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A browser is opened on a terminal with a display, or if asked for; only a terminal keeps the page."""
    begun: list[Demo] = []

    def begin(self: Demo) -> int:
        begun.append(self)
        return 0

    monkeypatch.setattr(Demo, "run", begin)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: on_terminal)
    monkeypatch.setattr(command_line, "has_display", lambda: display)
    assert main(["demo", *argv]) == 0
    assert (begun[0].browse, begun[0].stay) == (browse, stay)


def test_browser_is_given_the_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The page is opened."""
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    assert main(["demo", "--clients", "2", "--seconds", "1", "--port", "0", "--browser"]) == 0
    assert f"The page is at {opened[0]}\n" in capsys.readouterr().out


def test_has_display(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal alone is no display."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not command_line.has_display()
    monkeypatch.setenv("DISPLAY", ":0")
    assert command_line.has_display()


# ---- How it ends


def children_of(pid: int) -> set[int]:
    """Return the processes that a process has started."""
    return {int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def alive(pid: int) -> bool:
    """Tell whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting for {what}"
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_all_processes_end_together(way: signal.Signals) -> None:
    """However the demo is ended, all of its processes end."""
    command = (sys.executable, "-m", "wsfast", *SMALL, "--seconds", "100")
    with started(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        while b"all clients read" not in process.stdout.readline():
            assert process.poll() is None
        children = children_of(process.pid)
        assert len(children) == 4
        process.send_signal(way)
        status = process.wait(TIMEOUT)
        assert status == (130 if way == signal.SIGINT else -way)
        wait_until(lambda: not any(map(alive, children)), "the end of all processes")
        errors = process.stderr.read() if process.stderr else b""
        assert errors == (b"\nwsfast demo: interrupted\n" if way == signal.SIGINT else b"")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudoterminals")
def test_on_a_real_terminal() -> None:
    """On a terminal, it shows a table in place, then a summary, and keeps the page until one Ctrl-C."""
    import pty

    code = (
        "import sys\nfrom wsfast.cli import main\nfrom wsfast_bench.demo import server\n"
        f"server.HEALTHY, server.STALLED, server.AWAY = 1.0, 2.0, 0.2\nsys.exit(main({[*SMALL, '--rate', '100']!r}))"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "120", "LINES": "40"}
    output = b""
    with started(
        sys.executable, "-c", code, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=environment
    ) as process:
        os.close(theirs)
        interrupted = False
        while True:
            try:
                output += os.read(ours, 65536)
            except OSError:  # Linux says so when the other end is closed
                break
            if not interrupted and b"Ctrl-C ends the demo." in output:
                process.send_signal(signal.SIGINT)
                interrupted = True
        assert process.wait(TIMEOUT) == 0, output
        assert process.stderr is not None
        assert process.stderr.read() == b""
    os.close(ours)
    assert b"\x1b[J" in output
    assert b"All other clients got every message" in output
