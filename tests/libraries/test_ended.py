"""`ended()` of subscriptions and registrations: it returns why, for connections of every library."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from websockets.protocol import OPEN

import wsfast
from helpers.fixtures import Run
from helpers.libraries import LIBRARIES, WEBSOCKETS_PROTOCOL, WSPROTO_PROTOCOL
from helpers.peers import TIMEOUT, until
from wsfast import Ended
from wsfast.connections import adapt, foreign

LARGE = "x" * 3_000_000
NAMES = list(LIBRARIES)

Subscribe = Callable[[Any], Any]


def subscribe_to_channel(connection: Any) -> wsfast.Subscription:
    return wsfast.Channel(slow=wsfast.Disconnect(max_messages=1)).subscribe(connection)


def subscribe_to_hub(connection: Any) -> wsfast.HubSubscription:
    return wsfast.Hub(slow=wsfast.Disconnect(max_messages=1)).subscribe(connection, "a", "b.*")


def register(connection: Any) -> wsfast.Registration:
    return wsfast.Hub(slow=wsfast.Disconnect(max_messages=1)).register(connection, "ann")


KINDS: list[Callable[[Any], Any]] = [subscribe_to_channel, subscribe_to_hub, register]
each_kind = pytest.mark.parametrize("subscribe", KINDS, ids=lambda kind: kind.__name__)


CASES = [(name, subscribe_to_channel) for name in NAMES if name != "sink"] + [
    ("wsfast.serve", subscribe) for subscribe in KINDS[1:]
]
each_case = pytest.mark.parametrize(("name", "subscribe"), CASES, ids=[f"{name}-{one.__name__}" for name, one in CASES])


@pytest.fixture
def play(run: Run, core: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a scenario with a function that connects a client with a server of a library."""
    monkeypatch.setattr(foreign, "CLOSING_INTERVAL", 0.02)

    async def main(name: str, act: Callable[[Any], Awaitable[None]], small: bool) -> None:
        async with LIBRARIES[name].open(compress=False, small=small) as connect:
            await act(connect)

    return lambda name, act, small=False: run(lambda: main(name, act, small))


async def within(awaitable: Awaitable[Any]) -> Any:
    async with asyncio.timeout(TIMEOUT):
        return await awaitable


async def read_all(websocket: Any) -> None:
    """Receive by a client of aiohttp, which deals with close frames only then."""
    async for _ in websocket:
        pass


@each_case
def test_closed_by_peer(play: Any, name: str, subscribe: Subscribe) -> None:
    """The client sends a close frame; those who ask before, and after the end, hear that."""

    async def act(connect: Any) -> None:
        connection, client = await connect()
        subscription = subscribe(connection)
        before = asyncio.ensure_future(subscription.ended())
        reading = asyncio.ensure_future(read_all(connection)) if name == "aiohttp-client" else None
        await client.close()
        if reading is not None:
            await within(reading)
        assert await within(before) is Ended.CLOSED_BY_PEER
        assert await subscription.ended() is Ended.CLOSED_BY_PEER

    play(name, act)


@each_case
def test_closed_here(play: Any, name: str, subscribe: Subscribe) -> None:
    """The connection is closed by this side."""

    async def act(connect: Any) -> None:
        connection, client = await connect()
        subscription = subscribe(connection)
        waiting = asyncio.ensure_future(subscription.ended())
        answering = asyncio.ensure_future(client.wait_closed())
        if name == "quart":
            await adapt(connection).close()
        elif name == "picows":
            connection.send_close(1000, b"")
        elif name == "tornado":
            connection.close()
        else:
            await connection.close()
        assert await within(waiting) is Ended.CLOSED_HERE
        await within(answering)

    play(name, act)


@each_case
def test_lost(play: Any, name: str, subscribe: Subscribe) -> None:
    """The client is gone without a close frame."""

    async def act(connect: Any) -> None:
        connection, client = await connect()
        subscription = subscribe(connection)
        reading = asyncio.ensure_future(read_all(connection)) if name == "aiohttp-client" else None
        client.transport.abort()
        assert await within(subscription.ended()) is Ended.LOST
        if reading is not None:
            await within(reading)

    play(name, act)


@pytest.mark.parametrize("name", NAMES)
def test_slow_consumer(play: Any, name: str) -> None:
    """A policy closes the connection, which ends all of its subscriptions."""

    async def act(connect: Any) -> None:
        connection, client = await connect()
        hub, channel = wsfast.Hub(slow=wsfast.Disconnect(max_messages=1)), wsfast.Channel()
        ends: list[Any] = [
            channel.subscribe(connection),
            hub.subscribe(connection, "a"),
            hub.register(connection, "ann"),
        ]
        waiting = [asyncio.ensure_future(end.ended()) for end in ends]
        if name == "sink":
            adapt(connection).transport.get_write_buffer_size = lambda: 1
        else:
            getattr(client.transport, "pause_reading", lambda: None)()
        for _ in range(100):
            hub.publish("a", LARGE)
            await asyncio.sleep(0)
            if waiting[0].done():
                break
        assert await within(asyncio.gather(*waiting)) == [Ended.SLOW_CONSUMER] * 3

    play(name, act, name not in ("sink", "aiohttp-client"))


@pytest.mark.parametrize("name", ["websockets", "wsfast.serve"])
def test_keepalive(run: Run, core: Any, name: str) -> None:
    """The keepalive of websockets has closed the connection."""
    import websockets.asyncio.client
    import websockets.asyncio.server

    serve: Any = wsfast.serve if name == "wsfast.serve" else websockets.asyncio.server.serve

    async def main() -> None:
        channel = wsfast.Channel()
        reasons: asyncio.Queue[Ended] = asyncio.Queue()

        async def handler(connection: Any) -> None:
            with channel.subscribe(connection) as subscription:
                reasons.put_nowait(await subscription.ended())

        async with serve(handler, "127.0.0.1", 0, ping_interval=0.05, ping_timeout=0.05, close_timeout=0.05) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            async with websockets.asyncio.client.connect(f"ws://127.0.0.1:{port}", ping_interval=None) as client:
                client.transport.pause_reading()
                assert await within(reasons.get()) is Ended.KEEPALIVE
                client.transport.abort()

    run(main)


@pytest.mark.skipif(
    tuple(map(int, uvicorn.__version__.split(".")[:2])) < (0, 52), reason="uvicorn before 0.52 sends no pings here"
)
@pytest.mark.parametrize("protocol", [WEBSOCKETS_PROTOCOL, WSPROTO_PROTOCOL])
def test_keepalive_of_uvicorn(play: Any, protocol: str) -> None:
    """The keepalive of uvicorn has closed the connection."""

    async def act(connect: Any) -> None:
        connection, client = await connect()
        subscription = subscribe_to_channel(connection)
        client.transport.pause_reading()
        adapt(connection).keepalive_timeout()
        client.transport.abort()
        assert await within(subscription.ended()) is Ended.KEEPALIVE

    play("fastapi" if protocol is WEBSOCKETS_PROTOCOL else "fastapi-wsproto", act)


def test_keepalive_of_aiohttp(run: Run, core: Any) -> None:
    """The heartbeat of aiohttp has closed the connection."""
    import aiohttp
    import aiohttp.web

    async def main() -> None:
        channel = wsfast.Channel()
        reasons: asyncio.Queue[Ended] = asyncio.Queue()

        async def handler(request: aiohttp.web.Request) -> aiohttp.web.WebSocketResponse:
            websocket = aiohttp.web.WebSocketResponse(heartbeat=0.1)
            await websocket.prepare(request)
            subscription = channel.subscribe(websocket)
            await read_all(websocket)
            reasons.put_nowait(await subscription.ended())
            return websocket

        app = aiohttp.web.Application()
        app.router.add_get("/", handler)
        runner = aiohttp.web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        # Who does not receive does not answer pings.
        async with aiohttp.ClientSession() as session, session.ws_connect(url, autoping=False):
            assert await within(reasons.get()) is Ended.KEEPALIVE
        await runner.cleanup()

    run(main)


@pytest.mark.parametrize("name", ["wsfast.serve", "sink"])
@each_kind
def test_unsubscribed(play: Any, name: str, subscribe: Subscribe) -> None:
    """The first cause counts, however it is ended thereafter."""

    async def act(connect: Any) -> None:
        connection, _ = await connect()
        subscription = subscribe(connection)
        waiting = [asyncio.ensure_future(subscription.ended()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting.pop().cancel()
        await asyncio.sleep(0)
        assert not any(one.done() for one in waiting)
        getattr(subscription, "unregister" if subscribe is register else "unsubscribe")()
        assert await within(asyncio.gather(*waiting)) == [Ended.UNSUBSCRIBED] * 2
        adapt(connection).transport.abort()
        assert await subscription.ended() is Ended.UNSUBSCRIBED

    play(name, act)


def test_topics_left_one_by_one(play: Any) -> None:
    """A subscription of a hub has ended when the last of its topics was left, and says why that was."""

    async def act(connect: Any) -> None:
        connection, client = await connect()
        hub = wsfast.Hub()
        first, second = hub.subscribe(connection, "a", "b", "c.*"), hub.subscribe(connection, "c.*", "d")
        waiting = asyncio.ensure_future(first.ended())
        for topic in ("a", "b"):
            hub.unsubscribe(connection, topic)
            await asyncio.sleep(0.001)
            assert not waiting.done()
            assert first.active
        hub.unsubscribe(connection, "c.*")
        assert await within(waiting) is Ended.UNSUBSCRIBED
        third = hub.subscribe(connection, "a")
        assert (first.active, second.active, third.active) == (False, True, True)
        left = hub.subscribe(connection, "e")
        hub.unsubscribe(connection, "e")
        await client.close()
        assert await within(second.ended()) is Ended.CLOSED_BY_PEER
        assert await within(third.ended()) is Ended.CLOSED_BY_PEER
        assert await first.ended() is Ended.UNSUBSCRIBED
        assert await left.ended() is Ended.UNSUBSCRIBED, "it was left before the connection was closed"

    play("wsfast.serve", act)


def test_nothing_is_made_in_advance(play: Any) -> None:
    """Nobody awaits, so there is no future; and once somebody has, nothing keeps the subscription alive."""

    async def act(connect: Any) -> None:
        connection, _ = await connect()
        subscriptions = [subscribe_to_channel(connection), subscribe_to_hub(connection).member]
        assert [one._waiter for one in subscriptions] == [None, None]  # type: ignore[union-attr]
        handle = subscribe_to_hub(connection)
        channel_subscription = subscribe_to_channel(connection)
        for end in (handle, channel_subscription):
            task = asyncio.ensure_future(end.ended())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            task = asyncio.ensure_future(end.ended())
            await asyncio.sleep(0)
            end.unsubscribe()
            assert await within(task) is Ended.UNSUBSCRIBED
        reference = weakref.ref(handle.member)
        gc.collect()
        gc.disable()
        try:
            del handle, channel_subscription, end, task
            assert reference() is None, "it is in a reference cycle"
        finally:
            gc.enable()

    play("wsfast.serve", act)


def test_finalizers(play: Any) -> None:
    """A finalizer that ends a subscription, or that is run while one ends, wakes those who wait."""

    async def act(connect: Any) -> None:
        connection, _ = await connect()
        hub, channel = wsfast.Hub(), wsfast.Channel()

        class Ends:
            def __init__(self, end: Any) -> None:
                self.end = end

            def __del__(self) -> None:
                self.end.unsubscribe()

        for end in (hub.subscribe(connection, "a"), channel.subscribe(connection)):
            waiting = asyncio.ensure_future(end.ended())
            await asyncio.sleep(0)
            hub._calls.busy = True  # type: ignore[union-attr] # as in the middle of another call
            ends = Ends(end)
            del ends
            hub._calls.busy = False  # type: ignore[union-attr]
            hub._calls.run()  # type: ignore[union-attr]
            assert await within(waiting) is Ended.UNSUBSCRIBED

    play("wsfast.serve", act)


def test_refused_in_the_middle_of_another_call(play: Any) -> None:
    """What was asked for in the middle of another call, and then refused, has ended."""

    async def act(connect: Any) -> None:
        connection, client = await connect()
        hub = wsfast.Hub()
        hub.publish("a", "x")
        client.transport.abort()
        await until(lambda: connection.protocol.state is not OPEN)
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        hub._calls.busy = True  # type: ignore[union-attr]
        handle = hub.subscribe(connection, "a")
        hub._calls.busy = False  # type: ignore[union-attr]
        hub._calls.run()  # type: ignore[union-attr]
        assert await within(handle.ended()) is Ended.LOST

    play("wsfast.serve", act)


@each_kind
def test_in_another_loop(play: Any, subscribe: Subscribe) -> None:
    """Another event loop is told, rather than left waiting."""

    async def act(connect: Any) -> None:
        connection, _ = await connect()
        subscription = subscribe(connection)
        with pytest.raises(RuntimeError, match="event loop of the connection"):
            await asyncio.to_thread(asyncio.run, subscription.ended())

    play("wsfast.serve", act)
