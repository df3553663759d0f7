"""Large frames leave by sendfile(), from memory that all sockets share: every octet is right, and no file is left open.

Some tests run in a process of their own: `python -m integration.test_large_frames SCENARIO ...` in tests/.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import uvloop

import wsfast
from helpers import processes
from helpers.cores import PURE_ONLY, load_core
from helpers.fixtures import RUN_TIMEOUT, Ours, Run
from helpers.libraries import LIBRARIES
from helpers.peers import TIMEOUT, decode, until
from helpers.stage import Stage, drop
from wsfast._dispatcher import Dispatcher
from wsfast._encoding.shared import encodings_of
from wsfast.connections import transport_layout
from wsfast.connections.websockets import connection_layout

TESTS = Path(__file__).parents[1]
SIZE = 4096
"""Octets of a frame from which on it leaves by sendfile() here."""
COUNT = 12
"""Connections."""
ROUNDS = 15

pytestmark = [
    pytest.mark.skipif(PURE_ONLY, reason="the twin leaves all writing to the transports"),
    pytest.mark.skipif(sys.platform != "linux", reason="there is no sendfile() from memory"),
]


@contextlib.contextmanager
def settings(threads: int) -> Iterator[Any]:
    """Have large frames leave by sendfile(), for however few connections, by so many threads."""
    core = load_core("c")
    files, before = core.set_files(SIZE, receivers=1), core.threads()
    core.set_threads(threads, size=1, chunk=1)
    try:
        yield core
    finally:
        core.set_files(*files)
        core.set_threads(before)


@pytest.fixture(params=[1, 4], ids=lambda count: f"{count} threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """How many threads send."""
    with settings(request.param):
        yield request.param


def files() -> list[int]:
    """Descriptors of the files in which large frames lie."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the directory itself
            if os.readlink(f"/proc/self/fd/{entry}").startswith("/memfd:wsfast"):
                found.append(int(entry))
    return found


async def detached(channel: wsfast.Channel, message: bytes) -> AsyncIterator[None]:
    """Publish a message until threads send it, and take them for busy until `flush()`; until then its files are there.

    Threads may be done with the few connections here before the event loop looks whether they are.
    """
    may_go_on = Dispatcher._may_go_on

    def may_not_go_on(dispatcher: Dispatcher, budget: float | None) -> bool:
        return dispatcher._detached is None or (budget is None and may_go_on(dispatcher, None))

    with mock.patch.object(Dispatcher, "_may_go_on", may_not_go_on):
        async with asyncio.timeout(TIMEOUT):
            while channel._dispatcher is None or not channel._dispatcher.table.detached:
                channel.publish(message)
                await asyncio.sleep(0)
        yield


async def collect(client: Any, into: list[Any]) -> None:
    with contextlib.suppress(Exception):
        async for message in client:
            into += [message]


# ---- What arrives


def sizes(rng: random.Random) -> Iterator[int]:
    """Sizes of messages: at the limits of pages, of headers and of what one call takes, and any."""
    yield from (SIZE - 4, SIZE - 5, 65_535, 65_536, 65_546, 1 << 20)
    for _ in range(ROUNDS):
        yield rng.choice([rng.randrange(200), rng.randrange(SIZE, 20_000), rng.randrange(100_000)])


@pytest.mark.parametrize("small", [False, True], ids=["roomy", "tight"])
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "deflate"])
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("websockets", "broadcast"),
        ("websockets", "Channel"),
        ("wsfast.serve", "broadcast"),
        ("wsfast.serve", "Channel"),
        ("aiohttp", "Hub"),
    ],
)
def test_all_arrives_in_order(name: str, method: str, compress: bool, small: bool, threads: int, run: Run) -> None:
    """Large and small messages, and what connections send by themselves, get to all clients whole and in this order."""
    rng = random.Random(f"{name} {method} {compress} {small}")

    async def main() -> None:
        async with LIBRARIES[name].open(compress=compress, small=small) as connect:
            pairs = [await connect() for _ in range(COUNT)]
            connections = [connection for connection, _ in pairs]
            got: list[list[Any]] = [[] for _ in pairs]
            expected: list[list[Any]] = [[] for _ in pairs]
            readers = [asyncio.ensure_future(collect(client, one)) for (_, client), one in zip(pairs, got, strict=True)]
            patient = wsfast.DropOldest(max_messages=10_000, max_bytes=None, max_age=None)
            send: Callable[[str], object]
            match method:
                case "broadcast":
                    send = lambda message: wsfast.broadcast(connections, message)  # noqa: E731
                case "Channel":
                    channel = wsfast.Channel(slow=patient)
                    for connection in connections:
                        channel.subscribe(connection)
                    send = channel.publish
                case _:
                    hub = wsfast.Hub(slow=patient)
                    for connection in connections:
                        hub.subscribe(connection, "topic")
                    send = lambda message: hub.publish("topic", message)  # noqa: E731
            for number, size in enumerate(sizes(rng)):
                message = f"{number} {rng.randbytes(size // 2 + 1).hex()}"[:size]
                send(message)
                for one in expected:
                    one.append(message)
                if rng.randrange(3):
                    await asyncio.sleep(0)  # else it is joined with the next one
                if method == "broadcast" and rng.randrange(3) == 0:
                    place = rng.randrange(COUNT)
                    own = f"own {number} " + "o" * rng.choice([1, 9000])
                    await LIBRARIES[name].send(connections[place], own)
                    expected[place].append(own)
            await until(lambda: list(map(len, got)) == list(map(len, expected)), "the messages")
            assert got == expected
            await until(lambda: files() == [], "threads to have sent, which is noted after the clients have it")
            for reader in readers:
                reader.cancel()

    run(main)


@pytest.mark.parametrize("name", ["websockets", "wsfast.serve"])
def test_many_connections(name: str, threads: int, run: Run) -> None:
    """How many are to get a frame is known when the first are sent to, by threads as well."""
    count = 70  # more than two blocks of those that are looked at while threads send to others already
    messages = [random.Random(number).randbytes(20_000 + number) for number in range(20)]

    async def main() -> None:
        async with LIBRARIES[name].open(compress=False, small=False) as connect:
            pairs = [await connect() for _ in range(count)]
            load_core("c").set_files(SIZE, receivers=count)
            for message in messages:
                assert wsfast.broadcast([connection for connection, _ in pairs], message).sent == count
                for _, client in pairs:
                    assert await client.recv() == message

    run(main)


@pytest.mark.parametrize("kind", ["plain", "unix", "deflate"])
def test_message_is_freed_before_it_is_read(kind: Any, threads: int, ours: Ours) -> None:
    """What waits in the sockets stays as it is when the message is freed and its memory is used again."""
    count, length = 6, 60_000

    async def scenario(stage: Stage) -> None:
        connections = await stage.connect_many(count, kind)
        rng = random.Random(kind)
        for number in range(3):
            message = rng.randbytes(length)
            expected.append(bytes(reversed(message)))
            assert wsfast.broadcast(connections, message) == wsfast.Delivery(count, 0, 0, 0)
            del message
            junk = [bytes([number + 1]) * (length + extra) for extra in range(-20, 20)]
            assert files() == []
            del junk

    expected: list[bytes] = []
    for stream in ours(scenario).streams:
        messages = decode(stream).data if isinstance(stream, bytes) else [frame.payload for frame in stream[0]]
        assert messages == [bytes(reversed(message)) for message in expected[:3]]


def test_peers_that_stop_reading(threads: int, ours: Ours) -> None:
    """A frame of which the kernel takes a part goes on by the transport, from where it was cut, and nothing is lost."""
    messages = [random.Random(number).randbytes(200_000) for number in range(4)]

    async def scenario(stage: Stage) -> None:
        stalled = [(await stage.connect("plain", sndbuf=8192, rcvbuf=8192))[0] for _ in range(4)]
        connections = [*stalled, *await stage.connect_many(4)]
        for message in messages:
            wsfast.broadcast(connections, message)
        assert all(connection.transport.get_write_buffer_size() > 100_000 for connection in stalled)
        assert files() == []

    for stream in ours(scenario).streams:
        assert isinstance(stream, bytes)
        assert decode(stream).data == messages


def test_lost_connections(threads: int, agree: Any) -> None:
    """Connections that are lost are reported as ever, and the others get the frame."""
    message = bytes(50_000)

    async def scenario(stage: Stage) -> None:
        connections = await stage.connect_many(4)
        drop(connections[1], stage.peers[1])  # type: ignore[arg-type]
        stage.broadcast(connections, message)
        stage.broadcast(connections, message)

    agree(scenario)


# ---- Files


def test_files_are_there_while_it_is_sent(run: Run) -> None:
    """Large frames are in a file while the event loop's own thread sends them, and small ones are not."""
    seen = {100: 0, 60_000: 0}
    size = 100
    ends = threading.Event()

    def look() -> None:
        while not ends.is_set():
            before, count = size, len(files())
            if size == before:
                seen[size] += count

    async def main() -> None:
        nonlocal size
        async with LIBRARIES["wsfast.serve"].open(compress=False, small=False) as connect:
            pairs = [await connect() for _ in range(COUNT)]
            readers = [asyncio.ensure_future(collect(client, [])) for _, client in pairs]

            def send() -> None:
                wsfast.broadcast([connection for connection, _ in pairs], bytes(size))

            for _ in range(100):
                send()
            size = 60_000
            async with asyncio.timeout(TIMEOUT):
                while not seen[size]:
                    send()
                    await asyncio.sleep(0)
            for reader in readers:
                reader.cancel()

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        with settings(1):
            run(main)
    finally:
        ends.set()
        watcher.join()
    assert seen[100] == 0


@pytest.mark.parametrize(
    ("size", "receivers", "count", "expected"),
    [(None, 1, 3, 0), (5000, 3, 3, 1), (5000, 4, 3, 0), (5005, 1, 3, 0), (5004, 1, 3, 1)],
)
def test_only_where_it_is_worth_it(size: int | None, receivers: int, count: int, expected: int, run: Run) -> None:
    """What is smaller than was said, or for fewer, is sent from where it is."""

    async def main() -> None:
        async with LIBRARIES["wsfast.serve"].open(compress=False, small=False) as connect:
            pairs = [await connect() for _ in range(count)]
            channel = wsfast.Channel()
            for connection, _ in pairs:
                channel.subscribe(connection)
            with settings(4) as core:
                core.set_files(size, receivers)
                async for _ in detached(channel, bytes(5000)):
                    assert len(files()) == expected
                    channel.flush()
                    assert files() == []

    run(main)


@pytest.mark.parametrize("method", ["broadcast", "Channel"])
def test_no_descriptor_is_left(method: str, threads: int, run: Run) -> None:
    """Whatever becomes of the frames and of those who are sent them, the files are closed."""

    async def main() -> None:
        async with LIBRARIES["wsfast.serve"].open(compress=False, small=True) as connect:
            pairs = [await connect() for _ in range(COUNT)]
            channel = wsfast.Channel(slow=wsfast.DropOldest(max_messages=3))
            for connection, _ in pairs:
                channel.subscribe(connection)
            for number in range(60):
                if method == "broadcast":
                    wsfast.broadcast([connection for connection, _ in pairs], bytes(1000 * number))
                else:
                    channel.publish(bytes(1000 * number))
                if number % 2:
                    await asyncio.sleep(0)
                if number == 50:
                    pairs[0][1].transport.abort()
                    pairs[1][0].transport.abort()
            channel.flush()
            assert files() == []

    run(main)


def test_batch_that_is_never_settled(run: Run) -> None:
    """The file of a batch that is under way when its event loop ends is closed when the next one has threads send."""

    async def main(*, settles: bool) -> None:
        async with LIBRARIES["wsfast.serve"].open(compress=False, small=False) as connect:
            channel = wsfast.Channel()
            for _ in range(COUNT):
                channel.subscribe((await connect())[0])
            async for _ in detached(channel, bytes(5000)):
                assert len(files()) == 1
                if settles:
                    channel.flush()
                    assert files() == []

    with settings(2):
        run(lambda: main(settles=False))
        run(lambda: main(settles=True))


def test_no_more_descriptors(threads: int, ours: Ours) -> None:
    """Where there can be no more open files, large frames leave by send(), and nobody hears of it."""
    message = random.Random(1).randbytes(50_000)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def scenario(stage: Stage) -> None:
        connections = await stage.connect_many(5)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
        try:
            delivery = wsfast.broadcast(connections, message)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        assert delivery == wsfast.Delivery(5, 0, 0, 0)

    outcome = ours(scenario)
    assert outcome.records == []
    assert [decode(stream).data for stream in outcome.streams] == [[message]] * 5  # type: ignore[arg-type]


# ---- In processes of their own


async def default_sigpipe() -> None:
    """SIGPIPE would end the process; connections are found to be broken by the send itself, by whichever thread.

    What asyncio does to them afterwards would have it end: transports ask nobody to spare it the signal.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    loop = asyncio.get_running_loop()
    async with LIBRARIES["wsfast.serve"].open(compress=False, small=False) as connect:
        for threads in (1, 4):
            pairs = [await connect() for _ in range(COUNT)]
            connections = [connection for connection, _ in pairs]
            for connection in connections[::2]:
                with socket.socket(fileno=os.dup(connection.transport.get_extra_info("socket").fileno())) as broken:
                    broken.shutdown(socket.SHUT_WR)
            with settings(threads) as core:
                batch = core.Batch()
                message = encodings_of(wsfast.PreparedMessage(bytes(50_000)), COUNT)
                batch.gather(connections, 0, message, connection_layout, transport_layout, loop)
                batch.send()
            assert (batch.sent, len(batch.refused)) == (COUNT / 2, COUNT / 2)
            for _, client in pairs[1::2]:
                assert await client.recv() == bytes(50_000)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


async def fork_while_it_is_sent() -> None:
    """A child that has used the descriptor of a file for another one keeps it; its parent loses nothing."""
    async with LIBRARIES["wsfast.serve"].open(compress=False, small=False) as connect:
        pairs = [await connect() for _ in range(COUNT)]
        channel = wsfast.Channel()
        for connection, _ in pairs:
            channel.subscribe(connection)
        with settings(2):
            async for _ in detached(channel, bytes(50_000)):
                (file,) = files()
                pid = os.fork()
                if pid == 0:
                    os.dup2(os.open("/dev/null", os.O_RDONLY), file)
                    channel._dispatcher._detached.batch.send()  # type: ignore[union-attr]
                    os._exit(0 if os.readlink(f"/proc/self/fd/{file}") == "/dev/null" else 1)
                assert os.waitpid(pid, 0)[1] == 0
                channel.flush()
                assert files() == []
        for _, client in pairs:
            assert await client.recv() == bytes(50_000)


async def off() -> None:
    """WSFAST_SENDFILE=0 turns it off."""
    assert load_core("c").set_files(None)[0] is None


SCENARIOS = {scenario.__name__: scenario for scenario in (default_sigpipe, fork_while_it_is_sent, off)}


def play(scenario: str, loop_kind: str, **environment: str) -> None:
    """Run a scenario in a process of its own; it must say that it is done, and nothing else."""
    # That a process with threads is forked is what it is about.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "integration.test_large_frames"]
    result = processes.run(*command, scenario, loop_kind, cwd=TESTS, env=os.environ | environment)
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", ""), result.stdout + result.stderr[-4000:]


def test_no_sigpipe(loop_kind: str) -> None:
    """A connection that is broken ends no process that has the default action for SIGPIPE."""
    play("default_sigpipe", loop_kind)


def test_child_of_a_fork(loop_kind: str) -> None:
    """A child closes no descriptor that may be another's by now."""
    play("fork_while_it_is_sent", loop_kind)


def test_switch() -> None:
    """An environment variable turns it off."""
    play("off", "asyncio", WSFAST_SENDFILE="0")


def main(scenario: str, loop_kind: str) -> None:
    """Play a scenario."""
    factory = uvloop.new_event_loop if loop_kind == "uvloop" else asyncio.SelectorEventLoop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(SCENARIOS[scenario](), RUN_TIMEOUT))
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
