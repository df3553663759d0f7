"""What wsfast does where the system is short of something, is forked, or looks very closely.

Each test runs in a process of its own: `python -m integration.test_environment SCENARIO ...` in tests/.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import multiprocessing
import os
import resource
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

import wsfast
from helpers import brokers, processes
from helpers.cores import CORES
from helpers.libraries import LIBRARIES, clients, listen
from helpers.peers import TIMEOUT, until
from wsfast.relay import Relay

TESTS = Path(__file__).parents[1]
EVERYBODY = wsfast.DropOldest(max_messages=1000, max_bytes=None)


def play(scenario: str, core: str, *arguments: str, flags: tuple[str, ...] = ()) -> None:
    """Run a scenario of this module in a process of its own; it must say that it is done, and nothing else."""
    environment = {**os.environ, "WSFAST_PURE": "0" if core == "c" else "1"}
    command = [sys.executable, *flags, "-m", "integration.test_environment", scenario, *arguments]
    result = processes.run(*command, cwd=TESTS, env=environment)
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", ""), result.stdout + result.stderr[-4000:]


async def received(client: Any, count: int) -> list[str | bytes]:
    async with asyncio.timeout(TIMEOUT):
        return [await client.recv() for _ in range(count)]


# ---- No descriptors


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Have the process be out of descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))
    fillers = []
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.dup(0))
        yield
    finally:
        for filler in fillers:
            os.close(filler)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def pollers() -> int:
    """Return how many epolls there are."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum("eventpoll" in link for link in links)


async def out_of_descriptors(*, direct: bool) -> None:
    """With no descriptor left, connections of all libraries get all that is published, also those that lag."""
    async with contextlib.AsyncExitStack() as stack:
        pairs: dict[str, tuple[Any, Any]] = {}
        for name, library in LIBRARIES.items():
            connect = await stack.enter_async_context(library.open(compress=False, small=True))
            pairs[name] = await connect()
        # This imports what each library needs: an import without a descriptor is an OSError.
        wsfast.broadcast([connection for connection, _ in pairs.values()], "first")
        await asyncio.gather(*(received(client, 1) for _, client in pairs.values()))
        for message in ("without", "with"):
            channel, hub = wsfast.Channel(slow=EVERYBODY), wsfast.Hub(slow=EVERYBODY)
            before = pollers()
            with no_descriptors() if message == "without" else contextlib.nullcontext():
                for connection, client in pairs.values():
                    channel.subscribe(connection)
                    hub.subscribe(connection, "topic", ">")
                    client.transport.pause_reading()
                expected = [f"{message} {number} ".ljust(20_000, "x") for number in range(60)]
                for text in expected:
                    channel.publish(text)
                    hub.publish("topic", text)
                    await asyncio.sleep(0)
                assert channel.stats().queued > 0, "nobody lags"
                if message == "with" and direct:
                    assert pollers() > before, "descriptors are free, and nobody uses them"
                for _, client in pairs.values():
                    client.transport.resume_reading()
                got = await asyncio.gather(*(received(client, 120) for _, client in pairs.values()))
                doubled = [text for text in expected for _ in range(2)]
                for name, texts in zip(pairs, got, strict=True):
                    assert texts == doubled, name
                for publisher in (channel, hub):
                    stats = publisher.stats()
                    assert (stats.sent, stats.queued) == (stats.published, 0) == (60 * len(pairs), 0)
                wsfast.broadcast([connection for connection, _ in pairs.values()], message)
                assert await asyncio.gather(*(received(client, 1) for _, client in pairs.values())) == [
                    [message]
                ] * len(pairs)
            for connection, _ in pairs.values():
                channel.subscribe(connection).unsubscribe()
                hub.unsubscribe(connection)


async def until_last(stream: AsyncIterator[str | bytes]) -> None:
    """Wait for the last message."""
    while await anext(stream) != "last":
        pass


async def relay_out_of_descriptors(kind: str, url: str) -> None:
    """A relay that cannot connect without a descriptor tries again, and does when there is one."""
    near, far = wsfast.Hub(), wsfast.Hub()
    brokers.relay_of(kind, wsfast.Hub(), url)  # which imports what it needs
    with far.stream("topic") as stream:
        async with contextlib.AsyncExitStack() as stack:
            with no_descriptors():
                relays: list[Relay] = [
                    await stack.enter_async_context(brokers.relay_of(kind, hub, url, timeout=0.2))
                    for hub in (near, far)
                ]
                near.publish("topic", "kept")
                assert not any(relay.stats().connected for relay in relays)
                assert relays[0].stats().queued == 1
            for relay in relays:
                await relay.connected(TIMEOUT)
                await relay.subscribed(TIMEOUT)
            # With so short a timeout, connections may be lost again, and messages with them.
            arrives = asyncio.create_task(until_last(stream))
            async with asyncio.timeout(TIMEOUT):
                while not arrives.done():
                    near.publish("topic", "last")
                    await asyncio.wait((arrives,), timeout=0.1)
            await arrives


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which descriptors there are")
@pytest.mark.parametrize("core_name", CORES)
def test_out_of_descriptors(core_name: str, loop_kind: str) -> None:
    """Who lags is looked at from time to time, as long as there is no descriptor to watch with; nothing is lost."""
    play("out_of_descriptors", core_name, loop_kind)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which descriptors there are")
@pytest.mark.parametrize("core_name", CORES)
@pytest.mark.parametrize("kind", brokers.KINDS)
def test_relay_out_of_descriptors(core_name: str, loop_kind: str, kind: str, tmp_path: Path) -> None:
    """A relay without a descriptor is one without a broker; it goes on when there is one."""
    if (reason := brokers.why_not(kind)) is not None:
        pytest.skip(reason)
    with brokers.started(kind, tmp_path) as broker:
        play("relay_out_of_descriptors", core_name, loop_kind, kind, broker.url)


# ---- Fork


@contextlib.asynccontextmanager
async def lagging() -> AsyncIterator[tuple[wsfast.Channel, Any, Any]]:
    """A channel, and a client of it that lags."""
    arrived: asyncio.Queue[Any] = asyncio.Queue()

    async def handler(connection: Any) -> None:
        await arrived.put(connection)
        await connection.wait_closed()

    listener = listen(small=True)
    async with (
        wsfast.serve(handler, sock=listener, compression=None),
        clients(arrived, listener.getsockname(), compress=False, small=True) as connect,
    ):
        connection, client = await connect()
        channel = wsfast.Channel(slow=EVERYBODY)
        channel.subscribe(connection)
        client.transport.pause_reading()
        for number in range(60):
            channel.publish(f"{number} ".ljust(20_000, "x"))
            await asyncio.sleep(0)
        assert channel.stats().queued > 0
        yield channel, connection, client


async def catch_up(channel: wsfast.Channel, client: Any) -> None:
    """Have the client read, and check that it gets everything."""
    client.transport.resume_reading()
    texts = await received(client, 60)
    assert [str(text).split()[0] for text in texts] == [str(number) for number in range(60)]
    assert channel.stats().sent == 60


async def use_everything() -> None:
    """Have clients that lag, and others, get what is published."""
    async with lagging() as (channel, connection, client):
        await catch_up(channel, client)
        wsfast.broadcast([connection], "broadcast")
        assert await received(client, 1) == ["broadcast"]
    assert gc.isenabled()


def use_in_child(loop_kind: str) -> None:
    """What a child does: all that its parent did, in an event loop of its own."""
    gc.collect()
    run(loop_kind, use_everything())


async def fork_after_use(loop_kind: str) -> None:
    """A child forked while somebody lags can do everything; the parent then goes on as if nothing had happened."""
    context = multiprocessing.get_context("fork")
    async with lagging() as (channel, _, client):
        process = context.Process(target=use_in_child, args=(loop_kind,))
        process.start()
        await until(lambda: not process.is_alive(), "the child")
        process.join()
        assert process.exitcode == 0
        await catch_up(channel, client)


async def forget_in_child(loop_kind: str) -> None:
    """A child that forgets what its parent has does not touch what the two share: the epoll of the event loop."""
    async with lagging() as (channel, _, client):
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                dispatcher: Any = channel._dispatcher
                dispatcher._writable.__del__()  # as when the last reference goes
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        await catch_up(channel, client)


def fork_in_pause(loop_kind: str) -> None:
    """A child forked while another thread had the garbage collector pause has one that runs."""
    from wsfast._core import core

    paused, over = threading.Event(), threading.Event()

    def pause() -> None:
        with core.collector_paused:
            paused.set()
            over.wait(TIMEOUT)

    thread = threading.Thread(target=pause)
    thread.start()
    paused.wait(TIMEOUT)
    pid = os.fork()
    if pid == 0:
        with core.collector_paused:
            inside = gc.isenabled()
        os._exit(0 if gc.isenabled() and not inside else 1)
    assert os.waitpid(pid, 0)[1] == 0, "the collector does not run in the child"
    assert not gc.isenabled(), "the collector runs in the parent"
    over.set()
    thread.join()
    assert gc.isenabled()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork()")
@pytest.mark.parametrize("core_name", CORES)
@pytest.mark.parametrize("scenario", ["fork_after_use", "forget_in_child", "fork_in_pause"])
def test_fork(core_name: str, loop_kind: str, scenario: str) -> None:
    """A fork in the middle of everything harms neither the parent nor the child."""
    # Python 3.12 and later warn of a fork in a process with threads, which that of a test is to be.
    play(scenario, core_name, loop_kind, flags=("-W", "ignore:This process:DeprecationWarning"))


# ---- Python that looks closely


async def closely() -> None:
    """Connections of all libraries, compressed and not, in a channel and a hub with odd keys, until all is closed."""
    asyncio.get_running_loop().slow_callback_duration = math.inf  # this machine may be slow
    for compress in (False, True):
        for name, library in LIBRARIES.items():
            if compress and not library.compresses:
                continue
            async with library.open(compress=compress, small=False) as connect:
                connection, client = await connect()
                channel = wsfast.Channel(slow=wsfast.Conflate(), history=2)
                hub = wsfast.Hub(slow=wsfast.Conflate(), history=2, last_values=2)
                channel.publish(b"kept", key=b"key")
                hub.publish("topic", "kept", key=b"key")
                channel.subscribe(connection)
                hub.subscribe(connection, "topic")
                hub.register(connection, b"user")
                hub.send(b"user", "to the user", key=b"key")
                for key in (b"key", b"other", 1, ("key", b"key")):
                    channel.publish("x" * 1000, key=key)
                    hub.publish("topic", b"x" * 1000, key=key)
                    await asyncio.sleep(0)
                wsfast.broadcast([connection], "broadcast " * 100)
                assert len(await received(client, 12)) == 12, name
                assert channel.stats().sent == 5
    gc.collect()


@pytest.mark.parametrize("core_name", CORES)
@pytest.mark.parametrize("flags", [("-X", "dev", "-W", "error"), ("-bb",)], ids=["dev", "bb"])
def test_python_that_looks_closely(core_name: str, loop_kind: str, flags: tuple[str, ...]) -> None:
    """Neither development mode nor -bb has anything to say: nothing is left open, no bytes are compared with text."""
    play("closely", core_name, loop_kind, flags=flags)


# ---- All together


def run(loop_kind: str, main: Any) -> None:
    factory = uvloop.new_event_loop if loop_kind == "uvloop" else asyncio.SelectorEventLoop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(main, TIMEOUT))


def main(scenario: str, loop_kind: str, *arguments: str) -> None:
    """Play a scenario."""
    logging.getLogger("wsfast").setLevel(logging.ERROR)  # that a relay is not connected is what is expected
    match scenario:
        case "out_of_descriptors":
            direct = os.environ["WSFAST_PURE"] == "0"
            run(loop_kind, out_of_descriptors(direct=direct))
        case "relay_out_of_descriptors":
            run(loop_kind, relay_out_of_descriptors(*arguments))
        case "fork_after_use":
            run(loop_kind, fork_after_use(loop_kind))
        case "forget_in_child":
            run(loop_kind, forget_in_child(loop_kind))
        case "fork_in_pause":
            fork_in_pause(loop_kind)
        case "closely":
            run(loop_kind, closely())
        case _:
            raise ValueError(scenario)
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
