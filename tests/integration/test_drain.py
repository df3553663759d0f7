"""Draining and disconnecting: who leaves, who may come, and when the calls return."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

import wsfast
from helpers.fixtures import Run
from helpers.peers import TIMEOUT, until
from wsfast.connections.sink import Sink


class Scene:
    """A server and its clients."""

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[Any] = asyncio.Queue()
        self.server: wsfast.Server
        self.clients: list[Any] = []

    async def handle(self, connection: Any) -> None:
        self.arrived.put_nowait(connection)
        await connection.wait_closed()

    async def connect(self, **options: Any) -> tuple[Any, Any]:
        port = next(iter(self.server.sockets)).getsockname()[1]
        url = f"{'wss' if 'ssl' in options else 'ws'}://127.0.0.1:{port}"
        self.clients.append(await connect(url, compression=None, ping_interval=None, **options))
        return await self.arrived.get(), self.clients[-1]


@contextlib.asynccontextmanager
async def scene(**options: Any) -> AsyncIterator[Scene]:
    result = Scene()
    async with wsfast.serve(result.handle, "127.0.0.1", 0, **options) as server:
        assert isinstance(server, wsfast.Server)
        result.server = server
        try:
            yield result
        finally:
            for client in result.clients:
                client.transport.abort()


async def read_all(client: Any) -> tuple[list[Any], int | None, str | None]:
    """Return the messages that a client gets, and the code and the reason of the close frame."""
    messages: list[Any] = []
    async with asyncio.timeout(TIMEOUT):
        with contextlib.suppress(ConnectionClosed):
            while True:
                messages.append(await client.recv())
    return messages, client.close_code, client.close_reason


def test_newcomers_are_refused(run: Run, core: Any) -> None:
    """From the call on, new connections are refused; those that are there may subscribe to more, and leave."""

    async def main() -> None:
        async with scene() as here:
            hub, channel = wsfast.Hub(name="quotes"), wsfast.Channel()
            (one, client), (other, _) = await here.connect(), await here.connect()
            hub.subscribe(one, "a")
            channel.subscribe(one)
            assert not hub.draining
            draining = asyncio.create_task(hub.drain(TIMEOUT, jitter=False))
            await asyncio.sleep(0)
            assert hub.draining
            hub.subscribe(one, "b")
            hub.register(one, "ann")
            with pytest.raises(
                wsfast.DrainingError, match=r"^<Hub 'quotes'> is being drained, or was: it takes no new "
            ):
                hub.subscribe(other, "a")
            with pytest.raises(wsfast.DrainingError):
                hub.register(other, "bob")
            assert len(hub) == 1
            channel.subscribe(other)
            assert await draining == wsfast.Drained(1, 0)
            assert (len(hub), len(channel)) == (0, 1)
            assert (await read_all(client))[1:] == (1012, "")
            with pytest.raises(wsfast.DrainingError):
                hub.channel("a").subscribe(other)

    run(main)


@pytest.mark.parametrize("make", [wsfast.Hub, wsfast.Channel])
def test_nobody_is_there(run: Run, core: Any, make: Callable[[], Any]) -> None:
    """With nobody there, the call returns at once."""

    async def main() -> None:
        publisher = make()
        async with asyncio.timeout(1):
            assert await publisher.drain(1000) == (0, 0)
        async with scene() as here, asyncio.timeout(1):
            assert await here.server.drain(1000) == (0, 0)

    run(main)


def test_it_returns_when_all_have_left(run: Run, core: Any) -> None:
    """Clients that leave by themselves are not waited for."""

    async def main() -> None:
        async with scene() as here:
            channel = wsfast.Channel()
            for _ in range(10):
                channel.subscribe((await here.connect())[0])
            draining = asyncio.create_task(channel.drain(1000))
            await asyncio.sleep(0)
            for client in here.clients:
                await client.close()
            async with asyncio.timeout(5):
                assert await draining == (10, 0)

    run(main)


def test_many_clients(run: Run) -> None:
    """Each of many clients gets every message until its own close frame, at a moment of its own."""

    async def main() -> None:
        async with scene() as here:
            hub = wsfast.Hub()
            loop = asyncio.get_running_loop()
            for _ in range(200):
                hub.subscribe((await here.connect())[0], "t")
            left: list[float] = []

            async def read(client: Any) -> None:
                messages, code, reason = await read_all(client)
                left.append(loop.time())
                assert (code, reason) == (1012, "new release")
                assert messages == [str(number) for number in range(len(messages))]

            readers = [asyncio.create_task(read(client)) for client in here.clients]
            draining = asyncio.create_task(hub.drain(2.0, reason="new release"))
            count = 0
            while not draining.done():
                hub.publish("t", str(count))
                count += 1
                await asyncio.sleep(0.02)
            assert await draining == (200, 0)
            await asyncio.gather(*readers)
            assert len(set(left)) > 10
            stats = hub.stats()
            assert (stats.published, stats.queued, stats.disconnected) == (stats.sent + stats.dropped, 0, 0)

    run(main)


def test_a_second_call_waits_for_the_first(run: Run, core: Any) -> None:
    """Two calls are one run, with the arguments of the first. It ends when both are cancelled, and can be continued."""

    async def main() -> None:
        async with scene() as here:
            channel = wsfast.Channel()
            pairs = [await here.connect() for _ in range(3)]
            for connection, _ in pairs:
                channel.subscribe(connection)
            first = asyncio.create_task(channel.drain(1000, 4000, jitter=False))
            await asyncio.sleep(0)
            second = asyncio.create_task(channel.drain(0.1, 4001))
            assert (await read_all(pairs[0][1]))[1] == 4000
            await until(lambda: len(channel) == 2)
            first.cancel()
            await asyncio.wait([first])
            channel.publish("still here")
            assert await pairs[1][1].recv() == "still here"
            assert not second.done()
            second.cancel()
            await asyncio.wait([second])
            assert second.cancelled()
            with pytest.raises(wsfast.DrainingError):
                channel.subscribe((await here.connect())[0])
            assert await channel.drain(1.0, 4002) == (2, 0)
            assert [(await read_all(client))[1] for _, client in pairs[1:]] == [4002, 4002]

    run(main)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((0,), ValueError, r"^seconds must be positive, not 0$"),
        ((-1,), ValueError, r"^seconds must be positive, not -1$"),
        ((float("inf"),), ValueError, r"^seconds must be finite, not inf$"),
        (("1",), TypeError, r"^seconds must be a number of seconds, not '1', which is a str$"),
        ((1, 1005), ValueError, r"^code must be a close code that may be sent \(1000 to 1003, .* not 1005$"),
        ((1, 999), ValueError, r"^code must be a close code"),
        ((1, 5000), ValueError, r"^code must be a close code"),
        ((1, "1012"), TypeError, r"^code must be an integer, not '1012', which is a str$"),
        ((1, 1012, "x" * 124), ValueError, r"^reason must not be longer than 123 bytes in UTF-8, but has 124$"),
        ((1, 1012, "\u20ac" * 42), ValueError, r"but has 126$"),
        ((1, 1012, b"x"), TypeError, r"^reason must be a str, not b'x', which is a bytes$"),
    ],
)
def test_mistakes(arguments: tuple[Any, ...], error: type[Exception], match: str) -> None:
    """A wrong argument raises an error at once, and nothing is drained."""

    async def main() -> None:
        async with scene() as here:
            hub = wsfast.Hub()
            for call in (hub.drain, wsfast.Channel().drain, here.server.drain):
                with pytest.raises(error, match=match):
                    await call(*arguments)
            assert not hub.draining
            hub.subscribe((await here.connect())[0], "t")

    asyncio.run(main())


def test_server(run: Run, core: Any) -> None:
    """A server that is drained answers handshakes with 503, except for health checks, and closes all connections."""

    async def main() -> None:
        def health(connection: Any, request: Any) -> Any:
            return connection.respond(200, "ok\n") if request.path == "/health" else None

        async with scene(process_request=health) as here:
            port = next(iter(here.server.sockets)).getsockname()[1]
            channel = wsfast.Channel()
            pairs = [await here.connect() for _ in range(3)]
            channel.subscribe(pairs[0][0])
            draining = asyncio.create_task(here.server.drain(1.0, 1012, "bye"))
            await asyncio.sleep(0)
            channel.publish("last")
            for path, status in (("/", 503), ("/health", 200)):
                with pytest.raises(InvalidStatus) as caught:
                    await connect(f"ws://127.0.0.1:{port}{path}")
                assert caught.value.response.status_code == status
            assert await draining == (3, 0)
            found = [await read_all(client) for _, client in pairs]
            assert found == [(["last"], 1012, "bye"), ([], 1012, "bye"), ([], 1012, "bye")]

    run(main)


@pytest.mark.parametrize("by", ["server", "hub"])
def test_tls(run: Run, core: Any, tls: tuple[ssl.SSLContext, ssl.SSLContext], by: str) -> None:
    """Over TLS too, clients get all that was published and the close frame; one that reads nothing is aborted."""

    async def main() -> None:
        async with scene(ssl=tls[0], compression=None) as here:
            hub = wsfast.Hub(slow=wsfast.Disconnect(max_messages=None, max_bytes=None))
            pairs = [await here.connect(ssl=tls[1], max_queue=4) for _ in range(5)]
            (stalled, client), *others = pairs
            for connection, _ in pairs:
                hub.subscribe(connection, "t")
            client.transport.pause_reading()
            readers = [asyncio.create_task(read_all(one)) for _, one in others]
            for count in range(40):  # more than the kernel takes
                hub.publish("t", f"{count} ".ljust(500_000))
                await asyncio.sleep(0)
            await until(lambda: hub.stats().lagging == 1)
            draining = asyncio.create_task((hub if by == "hub" else here.server).drain(1.0, 1012, "bye"))
            while not draining.done():
                count += 1
                hub.publish("t", f"{count}")
                await asyncio.sleep(0.02)
            assert await draining == (4, 1)
            assert not len(hub)
            for messages, code, reason in await asyncio.gather(*readers):
                assert (code, reason) == (1012, "bye")
                assert [int(message) for message in messages] == list(range(len(messages)))
                assert messages
            client.transport.resume_reading()
            messages, code, _ = await read_all(client)
            assert [int(message) for message in messages] == list(range(len(messages)))
            assert (len(messages) < 40, code) == (True, 1006)
            await stalled.wait_closed()

    run(main)


class Failing:
    """A sink whose close() fails, or a connection that cannot be closed in any way."""

    def write(self, data: bytes) -> None:
        pass

    def writable(self) -> bool:
        return True

    def close(self, code: int, reason: str) -> None:
        raise ZeroDivisionError


def test_failures_of_one_do_not_keep_the_others(run: Run, core: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A connection that cannot be closed costs the others nothing."""

    async def main() -> None:
        async with scene() as here:
            channel = wsfast.Channel()
            sink: Sink = Failing()
            channel.subscribe(wsfast.attach(sink))
            connection, client = await here.connect()
            subscription = channel.subscribe(connection)
            assert await channel.drain(1.0) == (2, 0)
            assert (await read_all(client))[1] == 1012
            assert await subscription.ended() is wsfast.Ended.CLOSED_HERE
            assert channel.stats().disconnected == 0

    run(main)
    assert [record.getMessage() for record in caplog.records if "could not close" in record.getMessage()]


def test_a_hub_that_moves_to_another_event_loop_begins_anew() -> None:
    """A hub of a module can be used by one test after another, though each drains it."""
    hub = wsfast.Hub()

    async def main() -> None:
        async with scene() as here:
            connection, client = await here.connect()
            hub.subscribe(connection, "t")
            assert await hub.drain(1.0) == (1, 0)
            assert (await read_all(client))[1] == 1012

    asyncio.run(main())
    asyncio.run(main())


# ---- Disconnecting


def test_disconnect(run: Run, core: Any) -> None:
    """A user, the subscribers of a topic, or both at once are closed, after a last message; others are not."""

    async def main() -> None:
        async with scene() as here:
            hub = wsfast.Hub(history=10)
            who = [("ann", "a"), ("ann", "b"), ("bob", "a"), ("bob", "b"), (None, "*")]
            clients = []
            for user, topic in who:
                connection, client = await here.connect()
                hub.subscribe(connection, topic)
                if user is not None:
                    hub.register(connection, user)
                clients.append(client)
            hub.publish("a", "before")
            assert await hub.disconnect(user="ann", topic="a", code=4001, reason="kicked", message="bye") == 1
            assert await read_all(clients[0]) == (["before", "bye"], 4001, "kicked")
            assert await hub.disconnect(user="ann", message=b"bye") == 1
            assert await read_all(clients[1]) == ([b"bye"], 1000, "")
            assert await hub.disconnect(topic="a", message="closed") == 2
            assert await read_all(clients[2]) == (["before", "closed"], 1000, "")
            assert await read_all(clients[4]) == (["before", "closed"], 1000, "")
            assert await hub.disconnect(topic="a") == await hub.disconnect(user="nobody") == 0
            hub.publish("b", "still here")
            assert await clients[3].recv() == "still here"
            stats = hub.stats()
            assert (stats.subscribers, stats.published) == (1, stats.sent)
            connection, client = await here.connect()  # may come back, and gets no last message of others
            hub.subscribe(connection, "a")
            assert await client.recv() == "before"
            hub.publish("a", "next")
            assert await client.recv() == "next"

    run(main)


def test_disconnect_a_stalled_client(run: Run, core: Any) -> None:
    """A client that reads nothing is aborted after the given time."""

    async def main() -> None:
        async with scene() as here:
            hub = wsfast.Hub(slow=wsfast.Disconnect(max_bytes=None))
            connection, client = await here.connect()
            hub.register(connection, "ann")
            client.transport.pause_reading()
            while not hub.stats().queued:
                hub.send("ann", "x" * 100_000)
                await asyncio.sleep(0)
            async with asyncio.timeout(5):
                assert await hub.disconnect(user="ann", seconds=0.3) == 1
            assert len(hub) == 0

    run(main)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({}, TypeError, r"^disconnect\(\) needs a user or a topic: hub\.disconnect\(user='ann'\)$"),
        ({"topic": "a.*"}, ValueError, r"pattern"),
        ({"topic": ""}, ValueError, r"^topic"),
        ({"topic": 7}, TypeError, r"^topic"),
        ({"user": []}, TypeError, r"unhashable"),
        ({"user": "ann", "code": 1006}, ValueError, r"^code must be a close code that may be sent"),
        ({"user": "ann", "reason": "x" * 124}, ValueError, r"^reason must not be longer"),
        ({"user": "ann", "seconds": 0}, ValueError, r"^seconds must be positive, not 0$"),
        ({"user": "ann", "message": 7}, TypeError, r"message"),
    ],
)
def test_mistakes_of_disconnect(options: dict[str, Any], error: type[Exception], match: str) -> None:
    """A wrong argument raises an error, and nobody is disconnected."""

    async def main() -> None:
        async with scene() as here:
            hub = wsfast.Hub()
            connection, client = await here.connect()
            hub.register(connection, "ann")
            hub.subscribe(connection, "a")
            with pytest.raises(error, match=match):
                await hub.disconnect(**options)
            hub.send("ann", "still here")
            assert await client.recv() == "still here"

    asyncio.run(main())
