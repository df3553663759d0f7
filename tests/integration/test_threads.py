"""Several threads send, one frame at a time and few octets at once, while the process is forked and interrupted.

Each test runs in a process of its own: `python -m integration.test_threads SCENARIO ...` in tests/.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from websockets.exceptions import ConnectionClosed

import wsfast
from helpers import processes
from helpers.interrupts import Nowhere
from helpers.libraries import LIBRARIES
from helpers.peers import TIMEOUT, until
from wsfast._core import core

TESTS = Path(__file__).parents[1]
THREADS = 4
CLIENTS = 70  # more than two blocks of those that are looked at while threads send to others already
MESSAGES = 100
LONGEST = 8_000
FORKS = 4


def play(*arguments: str) -> None:
    """Run a scenario of this module in a process of its own; it must say that it is done, and nothing else."""
    # That a process with threads is forked is what it is about.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "integration.test_threads", *arguments]
    result = processes.run(*command, cwd=TESTS)
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", ""), result.stdout + result.stderr[-4000:]


class Crowd:
    """Connections, what their clients have got, and what each was to get."""

    def __init__(self, connections: list[Any], method: str, longest: int) -> None:
        self.connections = connections
        self.got: list[list[Any]] = [[] for _ in connections]
        self.sent: list[str] = []
        self._longest = longest
        self._random = random.Random(longest)
        self._channel = wsfast.Channel(slow=wsfast.DropOldest(max_messages=10_000, max_bytes=None, max_age=None))
        self.subscriptions = [self._channel.subscribe(connection) for connection in connections]
        self._send = self._publish if method == "Channel" else self._broadcast

    def _publish(self, message: str) -> None:
        self._channel.publish(message)
        self._channel.flush()

    def _broadcast(self, message: str) -> None:
        wsfast.broadcast(self.connections, message)

    def send(self) -> None:
        """Send all of them one more message."""
        size = self._random.randrange(self._longest // 2)
        self.sent.append(f"{len(self.sent)} {self._random.randbytes(size).hex()}")
        self._send(self.sent[-1])

    async def all_get_all(self) -> None:
        """Wait until every client has got all, and nothing else."""
        await until(lambda: all(len(got) >= len(self.sent) for got in self.got), "the messages")
        assert self.got == [self.sent] * len(self.got)


@contextlib.asynccontextmanager
async def crowd(name: str, method: str, longest: int = LONGEST) -> AsyncIterator[Crowd]:
    """Have clients that take few octets at once read all that they are sent."""

    async def read(client: Any, got: list[Any]) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                got.append(await client.recv())

    async with LIBRARIES[name].open(compress=False, small=True) as connect:
        pairs = [await connect() for _ in range(CLIENTS)]
        people = Crowd([connection for connection, _ in pairs], method, longest)
        readers = [asyncio.create_task(read(client, got)) for (_, client), got in zip(pairs, people.got, strict=True)]
        yield people
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


def pool() -> list[Path]:
    """Return where Linux tells about the threads of the pool."""
    tasks = Path("/proc/self/task").iterdir()
    return [task for task in tasks if (task / "comm").read_text().startswith("wsfast-")]


async def use_threads(name: str = "wsfast.serve") -> None:
    """Send by threads, which are there afterwards, and block all signals."""
    async with crowd(name, "broadcast") as people:
        for _ in range(20):
            people.send()
            await asyncio.sleep(0)
        await people.all_get_all()
    assert len(pool()) == THREADS - 1
    for thread in pool():
        status = dict(line.split(":", 1) for line in (thread / "status").read_text().splitlines() if ":" in line)
        assert int(status["SigBlk"], 16) & 1 << (signal.SIGALRM - 1)


# ---- Signals


async def storm(name: str, method: str) -> None:
    """A signal every few hundred microseconds changes nothing, also if its handler forks."""
    signals = 0

    def count(*_: object) -> None:
        nonlocal signals
        signals += 1
        if signals % 100 == 0:
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0

    async with crowd(name, method) as people:
        signal.signal(signal.SIGALRM, count)
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        try:
            for _ in range(MESSAGES):
                people.send()
                await asyncio.sleep(0)
            await people.all_get_all()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    assert signals > 100


async def interrupt(name: str, method: str) -> None:
    """A handler that raises in the middle leaves frames whole; who is aborted for that has got the first messages."""
    armed = False

    def strike(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Nowhere

    def report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), Nowhere):  # in a write of the transport's, which aborts itself then
            loop.default_exception_handler(context)

    asyncio.get_running_loop().set_exception_handler(report)
    signal.signal(signal.SIGALRM, strike)
    interrupts = 0
    async with crowd(name, method, longest=LONGEST // 2) as people:  # few are cut
        moments = random.Random(MESSAGES)
        for _ in range(MESSAGES):
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, moments.uniform(0.00002, 0.001))
                people.send()
                armed = False
            except Nowhere:
                interrupts += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            await asyncio.sleep(0)
        people.send()
        last = people.sent[-1]
        await until(
            lambda: all(
                last in got or not one.active for one, got in zip(people.subscriptions, people.got, strict=True)
            )
        )
        fullest = max(people.got, key=len)
        for got in people.got:
            numbers = [int(message.split()[0]) for message in got]
            assert numbers == sorted(set(numbers))
            assert all(people.sent[number] == message for number, message in zip(numbers, got, strict=True))
            if method == "Channel":  # what was published is sent to all once the interrupt is over
                assert got == fullest[: len(got)]
    assert interrupts > 0


@pytest.mark.skipif(not core.sends_directly, reason="without the extension, no threads send")
@pytest.mark.parametrize(
    ("name", "method"), [("websockets", "broadcast"), ("wsfast.serve", "Channel"), ("aiohttp-client", "Channel")]
)
@pytest.mark.parametrize("scenario", ["storm", "interrupt"])
def test_signals(scenario: str, name: str, method: str, loop_kind: str) -> None:
    """Whenever a signal comes, and whatever its handler does, every frame is whole and in its place."""
    play(scenario, loop_kind, name, method)


# ---- Other processes


def use_in_child(loop_kind: str, name: str) -> None:
    """What a child does: it sends by threads of its own, to connections of its own."""
    core.set_threads(THREADS, size=1, chunk=1)
    assert pool() == []
    run(loop_kind, use_threads(name))


def fork(loop_kind: str, name: str) -> None:
    """Fork, and have the child do all that its parent does."""
    pid = os.fork()
    if pid == 0:
        try:
            use_in_child(loop_kind, name)
        except BaseException as exc:
            os.write(2, f"in the child: {exc!r}\n".encode())
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def fork_from_a_thread(loop_kind: str, name: str) -> None:
    """Fork in one thread, again and again, while another one sends."""
    for _ in range(FORKS):
        fork(loop_kind, name)
        time.sleep(0)


def spawn(loop_kind: str, name: str) -> None:
    """Have multiprocessing start a child."""
    process = multiprocessing.get_context("spawn").Process(target=use_in_child, args=(loop_kind, name))
    process.start()
    process.join(TIMEOUT)
    assert process.exitcode == 0


async def send_meanwhile(name: str, method: str, act: Callable[[], None]) -> None:
    """Send while something is done in a thread; all get all, once."""
    failures: list[BaseException] = []

    def act_and_tell() -> None:
        try:
            act()
        except BaseException as exc:
            failures.append(exc)

    async with crowd(name, method) as people:
        thread = threading.Thread(target=act_and_tell)
        people.send()
        thread.start()
        while thread.is_alive():
            people.send()
            await asyncio.sleep(0)
            await until(lambda: min(map(len, people.got)) > len(people.sent) - 50, "the messages")
        await people.all_get_all()
        assert len(people.sent) > 1
    assert failures == []
    await use_threads(name)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork()")
@pytest.mark.skipif(not core.sends_directly, reason="without the extension, no threads send")
@pytest.mark.parametrize(("name", "method"), [("websockets", "Channel"), ("wsfast.serve", "broadcast")])
@pytest.mark.parametrize("scenario", ["fork", "spawn"])
def test_processes(scenario: str, name: str, method: str, loop_kind: str) -> None:
    """A child that is started in the middle of a fan-out has threads of its own, and its parent loses nothing."""
    play(scenario, loop_kind, name, method)


# ---- All together


def run(loop_kind: str, main: Awaitable[None]) -> None:
    factory = uvloop.new_event_loop if loop_kind == "uvloop" else asyncio.SelectorEventLoop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(main, TIMEOUT))


def main(scenario: str, loop_kind: str, name: str, method: str) -> None:
    """Play a scenario."""
    core.set_threads(THREADS, size=1, chunk=1)
    match scenario:
        case "storm":
            run(loop_kind, storm(name, method))
        case "interrupt":
            run(loop_kind, interrupt(name, method))
        case "fork":
            run(loop_kind, send_meanwhile(name, method, lambda: fork_from_a_thread(loop_kind, name)))
        case "spawn":
            run(loop_kind, send_meanwhile(name, method, lambda: spawn(loop_kind, name)))
        case _:
            raise ValueError(scenario)
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
