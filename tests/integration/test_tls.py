"""TLS: messages are encrypted for many connections, then all is sent; whatever happens, clients get it in order."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import random
import shutil
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets.asyncio.server

import wsfast
from helpers.cores import PURE_ONLY
from helpers.fanout import broadcast_to, channel_of, hub_of
from helpers.fixtures import Run
from helpers.interrupts import Interrupt
from helpers.libraries import LIBRARIES
from helpers.peers import until
from wsfast.connections import is_closing

Tls = tuple[ssl.SSLContext, ssl.SSLContext]

COUNT = 12
CLIENTS = 150
ONCE = 130
"""Calls that a fan-out may cost, however many clients there are."""

ROUNDS = 40
METHODS = {"Channel": channel_of, "Hub": hub_of, "broadcast": broadcast_to}
SIZES = [5, 300, 300, 300, 20_000, 1 << 20]


@pytest.fixture(params=["TLSv1_2", "TLSv1_3"])
def versions(request: pytest.FixtureRequest, certificate: Path) -> Tls:
    """Contexts that speak one version of TLS."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    client = ssl.create_default_context(cafile=str(certificate))
    for context in (server, client):
        context.minimum_version = context.maximum_version = ssl.TLSVersion[request.param]
    return server, client


def calls_of(function: Callable[[], object]) -> list[str]:
    """Return which functions, of Python and of C, are called meanwhile."""
    calls: list[str] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            calls.append(frame.f_code.co_qualname)
        elif event == "c_call":
            calls.append(argument.__qualname__)

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


async def collect(client: Any, into: list[Any]) -> None:
    with contextlib.suppress(Exception):
        while True:
            message = await client.recv()
            into.append(message)


@contextlib.contextmanager
def reading(clients: list[Any]) -> Iterator[list[list[Any]]]:
    """What each client receives, from now on."""
    got: list[list[Any]] = [[] for _ in clients]
    tasks = [asyncio.ensure_future(collect(client, one)) for client, one in zip(clients, got, strict=True)]
    try:
        yield got
    finally:
        for task in tasks:
            task.cancel()


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", ["websockets", "wsfast.serve", "aiohttp", "fastapi"])
def test_all_arrives_in_order(core: Any, name: str, compress: bool, run: Run, versions: Tls) -> None:
    """What is broadcast, published and sent by a connection itself, small and large, arrives exactly, in this order."""
    rng = random.Random(f"{name} {compress}")
    ordered = LIBRARIES[name].ordered

    async def main() -> None:
        async with LIBRARIES[name].open(compress=compress, small=False, tls=versions) as connect:
            pairs = [await connect() for _ in range(COUNT)]
            connections = [connection for connection, _ in pairs]
            expected: list[list[Any]] = [[] for _ in pairs]
            channel = wsfast.Channel(slow=wsfast.Disconnect(max_messages=10_000))
            for connection in connections:
                channel.subscribe(connection)
            with reading([client for _, client in pairs]) as got:
                for number in range(ROUNDS):
                    size = rng.choice(SIZES)
                    message: Any = f"{number} " + rng.randbytes(size // 2).hex()
                    if rng.randrange(2):
                        message = message.encode()
                    some = rng.sample(range(COUNT), rng.randrange(1, COUNT + 1))
                    act = rng.randrange(4)
                    if act == 0:
                        channel.publish(message)
                        some = list(range(COUNT))
                        if rng.randrange(2) or not ordered:
                            channel.flush()
                    elif act == 1:
                        some = some[:1]
                        message = f"{number} own"
                        channel.flush()
                        await LIBRARIES[name].send(connections[some[0]], message)
                    else:
                        channel.flush()
                        delivery = wsfast.broadcast([connections[place] for place in some], message)
                        assert sum(delivery[:2]) == len(some)
                    for place in some:
                        expected[place].append(message)
                    if size > 100_000 or rng.randrange(4) == 0:
                        channel.flush()
                        await until(lambda: got == expected)
                channel.flush()
                await until(lambda: got == expected)

    run(main)


@pytest.mark.skipif(PURE_ONLY, reason="the twin leaves TLS to the transports")
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_cost(method: str, compress: bool, tls: Tls) -> None:
    """With asyncio, a client costs no call of a function of Python's."""

    async def main() -> None:
        async with LIBRARIES["websockets"].open(compress=compress, small=False, tls=tls) as connect:
            pairs = [await connect() for _ in range(CLIENTS)]
            publish = METHODS[method]([connection for connection, _ in pairs])
            with reading([client for _, client in pairs]) as got:
                for number in range(60):  # until windows are full, those of newcomers differ
                    publish(f"{number}" * 100)
                calls = calls_of(lambda: publish("measured" * 100))
                await until(lambda: all(one[-1:] == ["measured" * 100] for one in got))
        assert len(calls) < CLIENTS / 2 + ONCE, collections.Counter(calls).most_common(10)

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())


def test_fast_as_ordinary(run: Run, tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    """What becomes of broadcasts to connections that do not read is the same as if transports were given all frames."""
    from helpers.cores import CORES, load_core, use_core

    async def main() -> list[Any]:
        async with LIBRARIES["websockets"].open(compress=False, small=True, tls=tls) as connect:
            pairs = [await connect() for _ in range(3)]
            connections = [connection for connection, _ in pairs]
            pairs[1][1].transport.pause_reading()
            outcomes: list[Any] = []
            with reading([client for _, client in pairs]) as got:
                for number in range(30):
                    outcomes.append(wsfast.broadcast(connections, f"{number} " + "x" * 20_000))
                    await until(lambda number=number: len(got[0]) == len(got[2]) == number + 1)  # type: ignore[misc]
                outcomes.append([connection.transport.get_write_buffer_size() for connection in connections])
                pairs[1][1].transport.resume_reading()
                await until(lambda: got[1] == got[0] == got[2] and len(got[0]) == 30)
            for connection in connections:
                await connection.close()
            outcomes.append(wsfast.broadcast(connections, "closed"))
            return outcomes[:5] + outcomes[-2:]

    outcomes = []
    for name in CORES:
        with monkeypatch.context() as patch:
            use_core(load_core(name), patch)
            outcomes.append(run(main))
    assert outcomes[0][-1] == (0, 0, 3, 0)
    for outcome in outcomes[1:]:
        assert outcome[0] == outcomes[0][0]
        assert outcome[-1] == outcomes[0][-1]
        assert [size > 0 for size in outcome[-2]] == [size > 0 for size in outcomes[0][-2]]


@pytest.mark.parametrize("slow", [wsfast.DropOldest(max_messages=5), wsfast.Disconnect(max_messages=5)])
def test_some_do_not_read(core: Any, slow: wsfast.Policy, run: Run, tls: Tls) -> None:
    """A policy deals with connections that do not read; all others get everything."""

    async def main() -> None:
        async with LIBRARIES["websockets"].open(compress=False, small=True, tls=tls) as connect:
            pairs = [await connect() for _ in range(6)]
            channel = wsfast.Channel(slow=slow)
            subscriptions = [channel.subscribe(connection) for connection, _ in pairs]
            pairs[0][1].transport.pause_reading()
            messages = [f"{number} " + "x" * 10_000 for number in range(300)]
            with reading([client for _, client in pairs]) as got:
                for message in messages:
                    channel.publish(message)
                    channel.flush()
                    await until(lambda: all(one[-1:] == [message] for one in got[1:]))  # noqa: B023
                    if subscriptions[0].stats().dropped:
                        break
                sent = messages[: messages.index(message) + 1]
                assert all(one == sent for one in got[1:])
                assert subscriptions[0].stats().dropped
                if isinstance(slow, wsfast.Disconnect):
                    assert not subscriptions[0].active
                pairs[0][1].transport.resume_reading()
                await until(lambda: not subscriptions[0].active or not subscriptions[0].lag.messages)
                assert got[0] == [message for message in sent if message in got[0]]
                stats = channel.stats()
                assert stats.published == stats.sent + stats.dropped + stats.queued

    run(main)


def test_close(core: Any, run: Run, tls: Tls) -> None:
    """What was sent before a connection is closed arrives ahead of the close frame, and TLS ends in good order."""

    async def main() -> None:
        async with LIBRARIES["websockets"].open(compress=False, small=False, tls=tls) as connect:
            pairs = [await connect() for _ in range(6)]
            connections = [connection for connection, _ in pairs]
            for number in range(3):
                assert wsfast.broadcast(connections, f"before {number}").sent == 6 - number
                closing = asyncio.ensure_future(connections[number].close())
                delivery = wsfast.broadcast(connections, f"meanwhile {number}")
                assert delivery.sent == 6 - number
                await closing
                client = pairs[number][1]
                got = [message async for message in client]
                assert got[-2:] == [f"before {number}", f"meanwhile {number}"]
                assert (client.close_code, connections[number].close_code) == (1000, 1000)

    run(main)


def test_resets(core: Any, run: Run, tls: Tls) -> None:
    """Connections that are lost at any time harm nobody else, and count as skipped in the end."""

    async def main() -> None:
        async with LIBRARIES["websockets"].open(compress=False, small=True, tls=tls) as connect:
            pairs = [await connect() for _ in range(10)]
            connections = [connection for connection, _ in pairs]
            with reading([client for _, client in pairs]) as got:
                for number in range(20):
                    if number % 4 == 0:
                        pairs[number // 4][1].transport.abort()
                    elif number % 4 == 2:
                        connections[number // 4].transport.abort()
                    delivery = wsfast.broadcast(connections, f"{number} " + "x" * 3000)
                    assert sum(delivery) == 10
                    await until(lambda number=number: all(len(one) == number + 1 for one in got[5:]))  # type: ignore[misc]
            await until(lambda: wsfast.broadcast(connections, "last") == (5, 0, 5, 0))

    run(main)


class Alarm(KeyboardInterrupt):
    """What the signal handler raises, and asyncio does not keep to itself."""


def interrupt(after: float, function: Callable[[], object]) -> None:
    """Call a function; have a signal handler raise after so many seconds, and wait for that."""

    def ring(*_: Any) -> None:
        raise Alarm

    def send() -> None:
        time.sleep(after)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, ring)
    thread = threading.Thread(target=send)
    try:
        thread.start()
        function()
        deadline = time.monotonic() + 1  # unless it was ignored, as in a finalizer
        while time.monotonic() < deadline:
            time.sleep(0.001)
    except Alarm:
        pass
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("compress", [False, True])
def test_signal_handlers(core: Any, run: Run, compress: bool, tls: Tls) -> None:
    """Whenever a signal handler raises, each connection gets everything in order, up to its end."""
    rng = random.Random(2)

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        async with LIBRARIES["websockets"].open(compress=compress, small=True, tls=tls) as connect:
            pairs: list[tuple[Any, Any]] = []
            got: dict[Any, list[str]] = {}
            readers = []
            for number in range(60):
                while len(pairs) < 10:
                    pairs.append(await connect())
                    client = pairs[-1][1]
                    readers.append(asyncio.ensure_future(collect(client, got.setdefault(client, []))))
                connections, message = (
                    [connection for connection, _ in pairs],
                    f"{number} " + "x" * rng.choice([9, 5000]),
                )
                interrupt(rng.uniform(0, 1e-3), lambda: wsfast.broadcast(connections, message))  # noqa: B023
                pairs = [pair for pair in pairs if not is_closing(pair[0].transport)]
                wsfast.broadcast([connection for connection, _ in pairs], f"{number} end")
                await until(lambda: all(got[client][-1:] == [f"{number} end"] for _, client in pairs))  # noqa: B023
            for messages in got.values():
                numbers = [int(message.split()[0]) for message in messages]
                assert numbers == sorted(numbers)
                assert len(set(messages)) == len(messages)
            for reader in readers:
                reader.cancel()

    run(main)


@pytest.mark.parametrize("size", [100, 300_000])
def test_interrupts(size: int, tls: Tls, caplog: pytest.LogCaptureFixture) -> None:
    """Whenever Python raises what a signal handler has raised, each gets everything in order, or is closed."""
    caplog.set_level(logging.CRITICAL + 1, "wsfast")

    async def main(moment: int) -> bool:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        async with LIBRARIES["websockets"].open(compress=False, small=True, tls=tls) as connect:
            pairs = [await connect() for _ in range(3)]
            messages = ["first " * size, "second"]
            channel = wsfast.Channel()
            subscriptions = [channel.subscribe(connection) for connection, _ in pairs]
            with reading([client for _, client in pairs]) as got:
                channel.publish(messages[0])
                interrupt = Interrupt(moment)
                with interrupt:
                    channel.flush()
                channel.publish(messages[1])
                await until(
                    lambda: all(
                        one == messages or not subscription.active
                        for one, subscription in zip(got, subscriptions, strict=True)
                    )
                )
                assert all(one == messages[: len(one)] for one in got)
        return interrupt.left > 0

    for moment in range(1, 300):
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            if runner.run(main(moment)):
                return
    pytest.fail("it has no end")


def test_event_loops_in_threads(run: Run, tls: Tls) -> None:
    """Event loops in several threads encrypt at the same time."""

    async def main() -> None:
        async with LIBRARIES["websockets"].open(compress=True, small=False, tls=tls) as connect:
            pairs = [await connect() for _ in range(5)]
            expected = [f"{number} " + "x" * 3000 for number in range(100)]
            with reading([client for _, client in pairs]) as got:
                for message in expected:
                    assert wsfast.broadcast([connection for connection, _ in pairs], message).failed == 0
                    await asyncio.sleep(0)
                await until(lambda: all(one == expected for one in got))

    failures: list[BaseException] = []

    def target() -> None:
        try:
            run(main)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=target) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_key_update(core: Any, run: Run, certificate: Path, tls: Tls) -> None:
    """A client of OpenSSL's that has keys be updated gets every frame."""
    openssl = shutil.which("openssl")
    assert openssl is not None

    async def main() -> None:
        arrived: asyncio.Queue[Any] = asyncio.Queue()

        async def handler(connection: Any) -> None:
            await arrived.put(connection)
            await connection.wait_closed()

        async with websockets.asyncio.server.serve(handler, "127.0.0.1", 0, ssl=tls[0], compression=None) as server:
            port = server.sockets[0].getsockname()[1]
            process = await asyncio.create_subprocess_exec(
                *(openssl, "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", str(certificate), "-crlf"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(
                    b"GET / HTTP/1.1\nHost: localhost\nUpgrade: websocket\nConnection: Upgrade\n"
                    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\nSec-WebSocket-Version: 13\n\n"
                )
                connection = await arrived.get()
                await process.stdout.readuntil(b"HTTP/1.1 101 ")
                for number in range(20):
                    delivery = wsfast.broadcast([connection], f"({number})" + "x" * 100)
                    assert delivery.sent == 1
                    process.stdin.write(b"K\n" if number % 2 else b"k\n")
                    await process.stdout.readuntil(b"(%d)" % number + b"x" * 100)
            finally:
                process.kill()
                await process.wait()

    run(main)
