"""Every connection has an end: a client that does not read is gone within a bound, with all that was kept for it."""

from __future__ import annotations

import asyncio
import contextlib
import types
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import wsfast
from helpers.fixtures import Run
from helpers.libraries import LIBRARIES
from helpers.peers import until
from wsfast._dispatcher import Dispatcher
from wsfast.connections import adapt, foreign

BOUND = 0.02
"""Seconds that closing may take here."""

KEEPALIVE = 0.05

each_library = pytest.mark.parametrize("name", LIBRARIES)


@pytest.fixture(autouse=True)
def short_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have connections end soon."""
    monkeypatch.setattr(foreign, "CLOSE_TIMEOUT", BOUND)
    monkeypatch.setattr(foreign, "CLOSING_INTERVAL", 0.002)


Act = Callable[[Any], Awaitable[None]]


@pytest.fixture
def play(run: Run) -> Callable[..., None]:
    """Run a scenario with what connects clients with small buffers to a server of a library."""

    def play(name: str, act: Act, **options: Any) -> None:
        async def main() -> None:
            async with LIBRARIES[name].open(compress=False, small=True, **options) as connect:
                await act(connect)

        run(main)

    return play


class Stalled:
    """A subscriber whose client does not read, and for whom something waits."""

    def __init__(
        self, pair: tuple[Any, Any], slow: wsfast.Policy | None = None, *, close_timeout: float | None = BOUND
    ) -> None:
        connection, client = pair
        client.transport.pause_reading()
        adapted = adapt(connection)
        for one in (adapted, connection):  # how long the library itself would wait
            with contextlib.suppress(AttributeError):
                one.close_timeout = close_timeout
        if hasattr(connection, "_timeout"):  # that of aiohttp
            connection._timeout = types.SimpleNamespace(ws_close=BOUND) if adapted.masked else BOUND
        self.connection, self.client = connection, client
        self.channel = wsfast.Channel(slow=slow or wsfast.Conflate())
        self.subscription = self.channel.subscribe(connection)
        self.sock = socket_of(adapted)

    def fill(self, *, buffer: bool = False) -> None:
        """Publish until something waits; have even the transport have no room if that is to be."""
        while self.subscription.active and not self.subscription.queued:
            self.publish()
        if buffer:
            wsfast.broadcast([self.connection], bytes(1_000_000))

    def publish(self) -> None:
        self.channel.publish(bytes(3000))
        self.channel.flush()

    async def ended(self) -> None:
        """Wait until nothing is left of the connection."""
        loop = asyncio.get_running_loop()
        await until(lambda: self.sock.fileno() < 0, "the socket to be closed")
        await until(lambda: not self.subscription.active, "the end of the subscription")
        stats = self.channel.stats()
        assert (stats.subscribers, stats.queued) == (0, 0)
        assert stats.published == stats.sent + stats.dropped + stats.conflated
        dispatcher = Dispatcher.of(loop)
        await until(lambda: not dispatcher._tasks, "the tasks that close it")
        ends = foreign._ClosingWatch.of(loop)
        await until(lambda: ends._timer is None, "the timer")
        assert not ends._connections
        assert not ends._transports
        assert not dispatcher._writable._later
        assert not dispatcher._writable._callbacks


def socket_of(adapted: Any) -> Any:
    """Return the socket of a connection, also behind a sink of the tests."""
    sink = getattr(adapted.transport, "_sink", None)
    return (adapted.transport if sink is None else sink.writer.transport).get_extra_info("socket")


async def still_works(connect: Any) -> None:
    """Check that another connection, which may have the same descriptor, lives longer than the bounds."""
    connection, client = await connect()
    channel = wsfast.Channel()
    with channel.subscribe(connection):
        for number in range(3):
            channel.publish(str(number))
            assert await client.recv() == str(number)
            await asyncio.sleep(BOUND)


# ---- Who ends it


@each_library
def test_policy(play: Any, name: str) -> None:
    """`Disconnect()` ends a connection, though its client never takes the close frame."""

    async def act(connect: Any) -> None:
        stalled = Stalled(await connect(), wsfast.Disconnect(max_messages=5))
        stalled.fill()
        while stalled.subscription.active:
            stalled.publish()
        await stalled.ended()
        assert stalled.channel.stats().disconnected == 1
        await still_works(connect)

    play(name, act)


@pytest.mark.parametrize("name", ["websockets", "wsfast.serve", "websockets.legacy"])
def test_policy_without_a_close_timeout(play: Any, name: str) -> None:
    """`Disconnect()` does so also where the library itself would wait for ever."""

    async def act(connect: Any) -> None:
        stalled = Stalled(await connect(), wsfast.Disconnect(max_messages=5), close_timeout=None)
        while stalled.subscription.active:
            stalled.publish()
        await stalled.ended()

    play(name, act)


async def close(name: str, connection: Any) -> None:
    """Close a connection by the library's own means."""
    if name == "picows":
        connection.send_close(4000)
        connection.disconnect()
    elif name == "tornado":
        connection.close(4000)
    elif name.startswith("aiohttp"):
        await connection.close(code=4000)
    else:
        await connection.close(4000)


@pytest.mark.parametrize(
    ("name", "sending"),
    # Sanic's own close() waits for its own send(), without a limit: see docs/how-to/connections.md.
    [(name, sending) for name in LIBRARIES for sending in (False, True) if not (sending and name == "sanic")],
    ids=lambda value: {False: "", True: "while-sending"}.get(value, value),
)
def test_own_close(play: Any, name: str, sending: bool) -> None:
    """The library's own `close()` does, whether the application waits in its own `send()` or not."""

    async def act(connect: Any) -> None:
        stalled = Stalled(await connect())
        connection = stalled.connection
        stalled.fill()
        tasks = []
        if sending:
            tasks.append(asyncio.ensure_future(LIBRARIES[name].send(connection, "x" * 1_000_000)))
            await asyncio.sleep(0)
        tasks.append(asyncio.ensure_future(close(name, connection)))
        del connection
        await stalled.ended()
        await asyncio.wait(tasks)
        for task in tasks:
            task.exception()
        await still_works(connect)

    play(name, act)


UPSTREAM = {"sanic", "websockets", "websockets.legacy"}
"""Libraries whose pings wait for room in the transport, without a limit: see docs/how-to/slow-clients.md."""


@pytest.mark.parametrize(
    ("name", "buffer"),
    [
        (name, buffer)
        for name, library in LIBRARIES.items()
        for buffer in (False, True)
        if library.keepalive and not (buffer and name in UPSTREAM)
    ],
)
def test_keepalive(play: Any, name: str, buffer: bool) -> None:
    """The library's keepalive does, though the close frame is never taken, and the ping may not be."""

    async def act(connect: Any) -> None:
        stalled = Stalled(await connect())
        stalled.fill(buffer=buffer)
        await stalled.ended()

    play(name, act, keepalive=KEEPALIVE)


@pytest.mark.parametrize("buffer", [False, True], ids=["", "full-buffer"])
@pytest.mark.parametrize("name", [name for name, library in LIBRARIES.items() if library.shutdown])
def test_shutdown(play: Any, name: str, buffer: bool) -> None:
    """A server that is shut down ends, and its connections with it."""

    async def act(connect: Any) -> None:
        stalled = Stalled(await connect())
        stalled.fill(buffer=buffer)
        await connect.shutdown()
        await stalled.ended()

    play(name, act, keepalive=60.0)


# ---- What goes wrong in close()


async def raises(*_: Any, **__: Any) -> None:
    raise KeyError("a fault of the application's")


async def exits(*_: Any, **__: Any) -> None:
    raise asyncio.CancelledError


async def hangs(*_: Any, **__: Any) -> None:
    await asyncio.Event().wait()


async def clings(*_: Any, **__: Any) -> None:
    for _number in range(3):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(10 * BOUND)


async def forgets(*_: Any, **__: Any) -> None:
    pass


def no_coroutine(*_: Any, **__: Any) -> None:
    pass


@pytest.mark.parametrize("close", [raises, exits, hangs, clings, forgets, no_coroutine])
@pytest.mark.parametrize(
    "name",
    ["websockets", "wsfast.serve", "websockets.legacy", "fastapi", "fastapi-wsproto", "aiohttp", "wsproto", "picows"],
)
def test_faults_in_close(play: Any, name: str, close: Any) -> None:
    """A connection whose `close()` fails, hangs or does nothing is aborted, though its client reads."""

    async def act(connect: Any) -> None:
        pair = await connect()
        stalled = Stalled(pair, wsfast.Disconnect(max_messages=5))
        for one in (pair[0], adapt(pair[0])):
            with contextlib.suppress(AttributeError):  # of picows, which nobody can derive from in Python
                one.close = close
        while stalled.subscription.active:
            stalled.publish()
        stalled.client.transport.resume_reading()
        await stalled.ended()
        await still_works(connect)

    play(name, act)


def test_faults_while_looking(run: Run) -> None:
    """A connection that cannot be asked for its state, or whose transport cannot be aborted, hurts no other one."""

    async def act(connect: Any) -> None:
        loop = asyncio.get_running_loop()
        problems: list[Any] = []
        loop.set_exception_handler(lambda _, context: problems.append(context["exception"]))
        bad = Stalled(await connect())

        class Bad:
            def __getattr__(self, name: str) -> Any:
                raise KeyError(name)

            def get_extra_info(self, name: str) -> Any:
                return None

        foreign.abort_later(Bad(), loop)
        transport = adapt(bad.connection).transport
        adapt(bad.connection).transport = Bad()
        await until(lambda: len(problems) == 2 and not bad.subscription.active)
        assert [type(problem) for problem in problems] == [KeyError] * 2
        good = Stalled(await connect(), wsfast.Disconnect(max_messages=5))
        while good.subscription.active:
            good.publish()
        await good.ended()
        transport.abort()

    async def main() -> None:
        async with LIBRARIES["aiohttp"].open(compress=False, small=True) as connect:
            await act(connect)

    run(main)


# ---- broadcast(timeout=)


@each_library
def test_limits_are_for_those_that_are_waited_for(play: Any, name: str) -> None:
    """A time limit is refused for connections that no call waits for, before anything is sent."""

    async def act(connect: Any) -> None:
        connection, client = await connect()
        kind = type(connection).__qualname__
        for timeout in (5.0, None):
            with pytest.raises(TypeError, match=rf"^timeout applies only to connections of websockets\.sync, .*{kind}"):
                wsfast.broadcast([connection], "no", timeout=timeout)
        wsfast.broadcast([connection], "yes")
        assert await client.recv() == "yes"

    play(name, act)
