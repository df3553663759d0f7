"""Processes of one machine that are connected without a broker: killed, stopped, late; and their directory."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import wsfast
from helpers.fixtures import Run
from helpers.peers import TIMEOUT, until
from helpers.relay_process import Process
from wsfast.relay import Gap, link, local_broker, outbound, runtime_directory

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="there are no Unix sockets")

MANY = 10**6


@pytest.fixture
def directory() -> Iterator[str]:
    """A directory that does not exist yet, with a short path."""
    with tempfile.TemporaryDirectory() as parent:
        yield str(Path(parent, "relay"))
    gc.collect()  # connections that were not closed are warned about in the test that has left them


class End:
    """A hub with a relay, and what is missing there."""

    def __init__(self, directory: str, **options: Any) -> None:
        self.hub = wsfast.Hub()
        self.gaps: Counter[Any] = Counter()
        self.relay = wsfast.relay.local(self.hub, directory, on_gap=self.on_gap, **{"timeout": TIMEOUT, **options})

    def on_gap(self, gap: Gap) -> None:
        self.gaps[gap.name] += gap.messages

    async def __aenter__(self) -> End:
        await self.relay.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self.relay.__aexit__(*exc)

    def stream(self, topic: str) -> Any:
        return self.hub.stream(topic, max_messages=MANY)


@contextlib.asynccontextmanager
async def ends(directory: str, number: int, **options: Any) -> AsyncIterator[list[End]]:
    """Run several hubs with relays."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(End(directory, **options)) for _ in range(number)]


async def take(stream: Any, count: int) -> list[Any]:
    """Wait for so many messages."""
    async with asyncio.timeout(TIMEOUT):
        return [await anext(stream) for _ in range(count)]


# ---- Several workers


def test_eight_workers(run: Run, directory: str) -> None:
    """What each of eight publishes to ten topics reaches all others once and in order."""
    topics = [f"t.{number}" for number in range(10)]

    async def main() -> None:
        async with ends(directory, 8) as workers:
            streams = [worker.stream("t.>") for worker in workers]
            for worker in workers:
                await worker.relay.subscribed(TIMEOUT)
            for number in range(20):
                for index, worker in enumerate(workers):
                    for topic in topics:
                        worker.hub.publish(topic, f"{topic}|{index}|{number}")
                await asyncio.sleep(0)
            for stream in streams:
                received: dict[str, list[int]] = {}
                for message in await take(stream, 20 * 8 * len(topics)):
                    source, _, number = message.rpartition("|")
                    received.setdefault(source, []).append(int(number))
                wanted = [f"{topic}|{index}" for topic in topics for index in range(8)]
                assert received == {source: list(range(20)) for source in wanted}
            for worker in workers:
                stats = worker.relay.stats()
                assert (stats.sent, stats.received, stats.lost, stats.duplicates) == (200, 1400, 0, 0)
                assert (stats.reconnects, worker.relay._broker._wanted.receivers(None).__len__()) == (0, 7)  # type: ignore[attr-defined]
        assert os.listdir(directory) == []

    run(main)


def test_worker_is_killed(run: Run, directory: str) -> None:
    """A worker that is killed in the middle costs the others nothing, and is forgotten at once."""

    async def main() -> None:
        async with (
            End(directory) as first,
            Process.run("local", directory) as second,
            Process.run("local", directory) as third,
        ):
            for process in (second, third):
                await process.tell("subscribe", client="one", topics=["t", "u"])
            broker: Any = first.relay._broker
            for number in range(2000):
                for topic in ("t", "u"):
                    first.hub.publish(topic, f"{topic}|first|{number}")
                if number == 1000:
                    await second.until("report", lambda report: report["one"]["counts"])
                    await second.kill()
                if number % 100 == 0:
                    await asyncio.sleep(0)
            await until(lambda: len(broker._peers) == 1, "the killed process to be forgotten")
            report = await third.until("report", lambda report: sum(report["one"]["counts"].values()) == 4000)
            assert report["one"]["last"] == {"t": {"first": 1999}, "u": {"first": 1999}}
            assert not report["one"]["wrong"]
            stats = await third.tell("stats")
            assert (stats["received"], stats["lost"], stats["reconnects"]) == (4000, 0, 0)
            await until(lambda: len(os.listdir(directory)) == 2, "its socket to be removed")
            assert first.relay.connected

    run(main)


@pytest.mark.parametrize("how", ["timeout", "limit"])
def test_worker_is_stopped(run: Run, directory: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped worker does not slow the others, takes bounded memory, and later counts what it has missed."""
    monkeypatch.setattr(outbound, "POSITION_INTERVAL", 0.1)
    if how == "limit":
        monkeypatch.setattr(link, "LIMIT", 2 << 20)
    timeout = 0.5 if how == "timeout" else TIMEOUT
    size, count = 1000, 5001

    async def main() -> None:
        async with (
            End(directory, timeout=timeout) as first,
            End(directory) as other,
            Process.run("local", directory, timeout=TIMEOUT) as second,
        ):
            await second.tell("subscribe", client="one", topics=["t"])
            stream = other.stream("t")
            await other.relay.subscribed(TIMEOUT)
            broker: Any = first.relay._broker
            first.hub.publish("t", "t|first|0")
            assert await take(stream, 1) == ["t|first|0"]
            await second.until("stats", lambda stats: stats["received"] == 1)
            old = set(broker._wanted.receivers(None))
            assert len(old) == 2
            second.freeze()
            try:
                for start in range(1, count, 100):
                    messages = [f"t|first|{number}".ljust(size) for number in range(start, start + 100)]
                    for message in messages:
                        first.hub.publish("t", message)
                    assert await take(stream, 100) == messages
                    assert sum(one.waiting for one in broker._links) < link.LIMIT + outbound.BATCH_BYTES
                await until(lambda: len(set(broker._wanted.receivers(None)) & old) == 1, "the link to be given up")
            finally:
                second.thaw()
            stats = await second.until("stats", lambda stats: stats["received"] + stats["lost"] == count)
            assert stats["lost"] > 0
            first.hub.publish("t", "t|first|last")
            stats = await second.until("stats", lambda now: now["received"] == stats["received"] + 1)
            assert stats["received"] + stats["lost"] == count + 1
            gaps = await second.tell("gaps")
            assert gaps == {"t": stats["lost"]}
            report = await second.tell("report")
            assert not report["one"]["wrong"]

    run(main)


def test_worker_is_stopped_for_a_short_time(run: Run, directory: str) -> None:
    """Who goes on within the timeout has missed nothing."""

    async def main() -> None:
        async with End(directory) as first, Process.run("local", directory) as second:
            await second.tell("subscribe", client="one", topics=["t"])
            second.freeze()
            try:
                for number in range(3000):
                    first.hub.publish("t", f"t|first|{number}|".ljust(1000, "0"))
                await until(lambda: first.relay.stats().queued == 0)
            finally:
                second.thaw()
            stats = await second.until("stats", lambda stats: stats["received"] == 3000)
            assert (stats["lost"], stats["duplicates"]) == (0, 0)

    run(main)


def test_worker_comes_later(run: Run, directory: str) -> None:
    """A worker that starts later gets all that is published after that, and its own messages reach the others."""

    async def main() -> None:
        async with End(directory) as first:
            back = first.stream("back")
            first.hub.publish("t", "t|first|0")
            async with Process.run("local", directory) as second:
                await second.tell("subscribe", client="one", topics=["t"])
                for number in range(1, 100):
                    first.hub.publish("t", f"t|first|{number}")
                await second.tell("publish", topics=["back"], start=0, end=100)
                assert await take(back, 100) == [f"back|second|{number}" for number in range(100)]
                report = await second.until("report", lambda report: report["one"]["counts"] == {"t": 99})
                assert not report["one"]["wrong"]
                assert first.relay.stats().lost == 0
            await until(lambda: len(os.listdir(directory)) == 1)

    run(main)


def test_many_start_at_once(run: Run, directory: str) -> None:
    """Workers that start at the same time find each other."""

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            workers = [End(directory) for _ in range(8)]
            await asyncio.gather(*(stack.enter_async_context(worker) for worker in workers))
            streams = [worker.stream("t") for worker in workers]
            for worker in workers:
                await worker.relay.subscribed(TIMEOUT)
            for index, worker in enumerate(workers):
                worker.hub.publish("t", f"{index}")
            for stream in streams:
                assert sorted(await take(stream, 8)) == [f"{index}" for index in range(8)]

    run(main)


def test_leaving(run: Run, directory: str) -> None:
    """What waits is sent before a relay ends; then nothing of it is left."""

    async def main() -> None:
        tasks = len(asyncio.all_tasks())
        async with End(directory) as b:
            stream = b.stream("t")
            await b.relay.subscribed(TIMEOUT)
            async with End(directory) as a:
                for number in range(3000):
                    a.hub.publish("t", f"{number}".ljust(1000))
            stats = a.relay.stats()
            assert (stats.queued, stats.sent, stats.connected) == (0, 3000, False)
            assert [int(message) for message in await take(stream, 3000)] == list(range(3000))
            assert len(os.listdir(directory)) == 1
        await until(lambda: len(asyncio.all_tasks()) == tasks)
        assert os.listdir(directory) == []

    run(main)


# ---- The directory


def test_relay_is_created_before_a_fork(directory: str) -> None:
    """A relay that is started in several processes after a fork connects them: each has a number of its own."""
    command = [sys.executable, "-c", FORKING, directory]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert result.returncode == 0, result.stderr


FORKING = """
import asyncio, os, sys
import wsfast

hub = wsfast.Hub()
relay = wsfast.relay.local(hub, sys.argv[1])
child = os.fork()

async def main():
    stream = hub.stream("t")
    said = "from the parent" if child else "from the child"
    ended = False

    async def listen():
        nonlocal said, ended
        async for message in stream:
            if child and message == "from the child":
                said = "seen"
            elif not child and message == "seen":
                ended = True

    async with relay, asyncio.timeout(20):
        listening = asyncio.create_task(listen())
        while not ended:
            hub.publish("t", said)
            await asyncio.sleep(0.01)
            if child:
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    assert status == 0
                    break
        listening.cancel()

asyncio.run(main())
"""


def test_stale_socket(run: Run, directory: str) -> None:
    """The socket of a process that has ended is removed."""

    async def main() -> None:
        os.mkdir(directory, 0o700)
        name = f"wsfast-1-{'0' * 16}.sock"
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(f"{directory}/{name}")
            stale.listen()
        with socket.socket(socket.AF_UNIX) as bound:  # it was killed before it listened
            bound.bind(f"{directory}/.{name}")
        os.utime(f"{directory}/.{name}", (0, 0))
        Path(directory, "other.sock").touch()
        async with ends(directory, 1) as (end,):
            broker: Any = end.relay._broker
            assert sorted(os.listdir(directory)) == ["other.sock", broker._own]

    run(main)


def test_socket_is_removed_by_others(run: Run, directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that cleans up does no lasting harm: the socket comes again, and newcomers find it."""
    monkeypatch.setattr(local_broker, "LOOK", 0.05)

    async def main() -> None:
        async with End(directory) as first:
            stream = first.stream("t")
            (name,) = os.listdir(directory)
            os.unlink(f"{directory}/{name}")
            os.rmdir(directory)
            await until(lambda: os.path.exists(f"{directory}/{name}"))
            async with End(directory) as second:
                second.hub.publish("t", "found")
                assert await take(stream, 1) == ["found"]

    run(main)


def test_directory_is_lost(run: Run, directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While no socket can be made, the relay says that it is not connected; it goes on when one can."""
    monkeypatch.setattr(local_broker, "LOOK", 0.05)

    async def main() -> None:
        async with End(directory) as first:
            stream = first.stream("t")
            os.unlink(f"{directory}/{os.listdir(directory)[0]}")
            os.chmod(directory, 0o755)
            await until(lambda: not first.relay.connected)
            os.chmod(directory, 0o700)
            await until(lambda: bool(first.relay.connected))
            await first.relay.subscribed(TIMEOUT)
            async with End(directory) as second:
                second.hub.publish("t", "found")
                assert await take(stream, 1) == ["found"]

    run(main)


def test_modes(run: Run, directory: str) -> None:
    """Only the owner may enter the directory and connect."""

    async def main() -> None:
        async with End(directory):
            (name,) = os.listdir(directory)
            assert os.stat(directory).st_mode & 0o777 == 0o700
            assert os.stat(f"{directory}/{name}").st_mode & 0o777 == 0o600
            assert name.startswith(f"wsfast-{os.getpid()}-")

    run(main)


def test_unsafe_directory(directory: str) -> None:
    """A directory that others may enter, that is a link or a file, or that belongs to another user, is refused."""

    def relay() -> Any:
        return wsfast.relay.local(wsfast.Hub(), directory)

    os.mkdir(directory)
    os.chmod(directory, 0o750)
    with pytest.raises(PermissionError, match=r"other users may enter .*its mode is 750"):
        relay()
    os.rmdir(directory)
    with tempfile.TemporaryDirectory() as other:
        os.symlink(other, directory)
        with pytest.raises(NotADirectoryError, match="is not a directory"):
            relay()
    os.unlink(directory)
    Path(directory).touch()
    with pytest.raises(NotADirectoryError, match="is not a directory"):
        relay()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give a directory away")
def test_directory_of_another_user(directory: str) -> None:
    """A directory of another user is refused."""
    os.mkdir(directory, 0o700)
    os.chown(directory, 4711, -1)
    with pytest.raises(PermissionError, match="belongs to user 4711, not to user 0"):
        wsfast.relay.local(wsfast.Hub(), directory)


def test_wrong_arguments(directory: str) -> None:
    """What is wrong with the arguments is said when the relay is made."""
    hub = wsfast.Hub()
    with pytest.raises(ValueError, match=r"is too long: paths of its sockets would have [0-9]+ bytes"):
        wsfast.relay.local(hub, f"{directory}/{'x' * 80}")
    with pytest.raises(TypeError, match="directory must be a path or None, not int"):
        wsfast.relay.local(hub, 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout must be positive"):
        wsfast.relay.local(hub, directory, timeout=0)
    with pytest.raises(ValueError, match="prefix"):
        wsfast.relay.local(hub, directory, prefix="a b")


def test_default_directory(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets are in the user's runtime directory; without one, in the directory for temporary files."""
    os.mkdir(directory, 0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
    assert runtime_directory.RuntimeDirectory(None, "p").path == Path(directory, "wsfast")
    monkeypatch.setenv("XDG_RUNTIME_DIR", f"{directory}/missing")
    monkeypatch.setattr(tempfile, "tempdir", directory)
    assert runtime_directory.RuntimeDirectory(None, "p").path == Path(directory, f"wsfast-{os.geteuid()}")


def test_prefixes(run: Run, directory: str) -> None:
    """Hubs with different prefixes are not connected, whatever these look like."""

    async def main() -> None:
        prefixes = ["a", "a-1", "A/b", "x" * 100, "x" * 101]
        async with contextlib.AsyncExitStack() as stack:
            first = [await stack.enter_async_context(End(directory, prefix=prefix)) for prefix in prefixes]
            second = [await stack.enter_async_context(End(directory, prefix=prefix)) for prefix in prefixes]
            streams = [end.stream("t") for end in first]
            for end in first:
                await end.relay.subscribed(TIMEOUT)
            for prefix, end in zip(prefixes, second, strict=True):
                end.hub.publish("t", prefix)
            for prefix, stream, end in zip(prefixes, streams, first, strict=True):
                assert await take(stream, 1) == [prefix]
                assert end.relay.stats().received == 1

    run(main)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff\x01",
        link.HEADER.pack(2, link.HELLO) + b"{}",
        link.HEADER.pack(2, link.HELLO) + b"x{",
        link.HEADER.pack(13, link.HELLO) + b'["../x",true]',
        link.HEADER.pack(9, link.INTERESTS) + b"[1,[],[]]",
        link.HEADER.pack(4, link.PACKET) + b"\xf5\x02\x00\x00",
    ],
)
def test_malformed(run: Run, directory: str, data: bytes) -> None:
    """Who sends what cannot be read, or stops in the middle, disturbs nobody else."""

    async def main() -> None:
        async with ends(directory, 2) as (a, b):
            stream = b.stream("t")
            await b.relay.subscribed(TIMEOUT)
            broker: Any = b.relay._broker
            reader, writer = await asyncio.open_unix_connection(f"{directory}/{broker._own}")
            writer.write(data)
            if data[4] != link.PACKET:
                async with asyncio.timeout(TIMEOUT):
                    with contextlib.suppress(ConnectionError):
                        assert await reader.read() == b""
            a.hub.publish("t", "on")
            assert await take(stream, 1) == ["on"]
            assert b.relay.stats().reconnects == 0
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    run(main)


def test_error_of_a_receiver(run: Run, directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message whose delivery raises is missing, and is reported; those after it are delivered."""
    monkeypatch.setattr(outbound, "POSITION_INTERVAL", 0.1)

    async def main() -> None:
        errors: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
        async with ends(directory, 2) as (a, b):
            stream = b.stream("t")
            await b.relay.subscribed(TIMEOUT)
            a.hub.publish("t", "0")
            assert await take(stream, 1) == ["0"]
            inbound: Any = b.relay._inbound
            monkeypatch.setattr(inbound, "_deliver", lambda *_: 1 / 0)
            a.hub.publish("t", "1")
            await until(lambda: len(errors) == 1)
            monkeypatch.undo()
            await until(lambda: b.relay.stats().lost == 1)
            a.hub.publish("t", "2")
            assert await take(stream, 1) == ["2"]
        assert isinstance(errors[0], ZeroDivisionError)

    run(main)
