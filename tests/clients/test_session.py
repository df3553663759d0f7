"""`wsfast.session` answers each request, in the connections of several libraries, and whatever a client sends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import aiohttp.web
import fastapi
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

import wsfast
from helpers.interop.clients import connect
from helpers.peers import TIMEOUT, until
from wsfast.session import Authorize, Session


def new_hub(**options: Any) -> wsfast.Hub:
    return wsfast.Hub(**{"envelope": True, "history": 100, **options})


@contextlib.asynccontextmanager
async def serving(hub: wsfast.Hub, *arguments: Any, **options: Any) -> AsyncIterator[ClientConnection]:
    """Serve sessions; yield a client that is connected to one."""

    async def handler(connection: Any) -> None:
        await Session(hub, connection, *arguments, **options).run()

    async with wsfast.serve(handler, "127.0.0.1", 0, close_timeout=0.2) as server:
        _, port = server.sockets[0].getsockname()[:2]
        client = await connect(f"ws://127.0.0.1:{port}")
        try:
            yield client
        finally:
            await client.close()


async def ask(client: ClientConnection, request: Any) -> Any:
    """Send a request, and return the next message."""
    await client.send(request if isinstance(request, (str, bytes)) else json.dumps(request))
    return await receive(client)


async def receive(client: ClientConnection) -> Any:
    async with asyncio.timeout(TIMEOUT):
        message = await client.recv()
    return json.loads(message) if isinstance(message, str) else message


def run(check: Callable[[wsfast.Hub, ClientConnection], Awaitable[None]], *arguments: Any, **options: Any) -> None:
    """Run a check with a client of a session."""

    async def main() -> None:
        hub = new_hub()
        async with serving(hub, *arguments, **options) as client:
            await check(hub, client)
        await until(lambda: not len(hub), "the connection to leave the hub")

    asyncio.run(main())


def test_subscribe_answers_after_the_history() -> None:
    """The answer to subscribe has the position after what was sent before it."""

    async def check(hub: wsfast.Hub, client: ClientConnection) -> None:
        hub.publish("news", "one")
        hub.publish("news", b"\xff")
        assert await ask(client, {"subscribe": {"news": None}, "id": 7}) == ["news", 1, "one"]
        assert await receive(client) == b'\x00\x0a["news",2]\xff'
        epoch, _ = hub.position("news")
        answer = {"news": {"epoch": epoch, "offset": 2, "recovered": False}}
        assert await receive(client) == {"subscribed": answer, "id": 7}
        hub.publish("news", "three")
        assert await receive(client) == ["news", 3, "three"]

    run(check)


def test_drained_hub_closes() -> None:
    """A client that subscribes at a hub that is drained is disconnected: nobody else would do that."""

    async def check(hub: wsfast.Hub, client: ClientConnection) -> None:
        await hub.drain(0.1)
        with pytest.raises(ConnectionClosed):
            await ask(client, {"subscribe": {"news": None}, "id": 1})
        assert client.close_code == 1012

    run(check)


def test_subscribe_recovers() -> None:
    """Topics with a position in the history are recovered; those with another one are as for a new subscriber."""

    async def check(hub: wsfast.Hub, client: ClientConnection) -> None:
        for number in range(4):
            hub.publish("a", str(number))
        hub.publish("b", "x")
        epoch, other = hub.position("a").epoch, hub.position("b").epoch
        request = {"subscribe": {"a": [epoch, 2], "b": ["0123456789abcdef", 1], "c": None}, "id": 1}
        received = [await ask(client, request)]
        while not isinstance(received[-1], dict):
            received.append(await receive(client))
        assert sorted(received[:-1]) == [["a", 3, "2"], ["a", 4, "3"], ["b", 1, "x"]]
        answer = received[-1]["subscribed"]
        assert answer["a"] == {"epoch": epoch, "offset": 4, "recovered": True}
        assert answer["b"] == {"epoch": other, "offset": 1, "recovered": False}
        assert (answer["c"]["offset"], answer["c"]["recovered"]) == (0, False)

    run(check)


def test_tags() -> None:
    """A session with tags gets messages with these, is told that others are left out, and recovers alike."""

    async def check(hub: wsfast.Hub, client: ClientConnection) -> None:
        for number in range(4):
            hub.publish("a", str(number), tags={"eu"} if number % 2 else {"us"})
        epoch, _ = hub.position("a")
        assert await ask(client, {"subscribe": {"a": [epoch, 2]}, "id": 1}) == ["a", 4, "3"]
        answer = {"a": {"epoch": epoch, "offset": 4, "recovered": True, "filtered": True}}
        assert await receive(client) == {"subscribed": answer, "id": 1}
        hub.publish("a", "4", tags={"us"})
        hub.publish("a", "5")
        assert await receive(client) == ["a", 6, "5"]

    run(check, tags={"eu"})


def test_too_many_tags(caplog: pytest.LogCaptureFixture) -> None:
    """If a topic has no room for the session's tags, it is refused by name, as others are, and the log tells why."""

    async def main() -> None:
        hub = new_hub()
        async with serving(hub, tags=map(str, range(64))) as one, serving(hub, tags={"x"}) as two:
            assert "subscribed" in await ask(one, {"subscribe": {"a": None}, "id": 1})
            refused = {"error": "the server has too many kinds of subscribers", "topics": ["a"], "id": 1}
            wrong = {"error": "this is not a valid name of a topic", "topics": [">"], "id": 1}
            assert await ask(two, {"subscribe": {">": None, "a": None}, "id": 1}) == wrong
            assert await receive(two) == refused
            assert "subscribed" in await ask(two, {"subscribe": {"b": None}, "id": 2})

    asyncio.run(main())
    assert "cannot subscribe to a: the subscribers of 'a' use 64 tags" in caplog.text


def test_unsubscribe_and_ping() -> None:
    """Unsubscribing ends the messages of a topic; both are answered, also when no topic is left."""

    async def check(hub: wsfast.Hub, client: ClientConnection) -> None:
        assert await ask(client, {"ping": 1}) == {"pong": 1}
        await ask(client, {"subscribe": {"a": None, "b": None}})
        assert await ask(client, {"unsubscribe": ["a", "a", "other"], "id": 2}) == {
            "unsubscribed": ["a", "other"],
            "id": 2,
        }
        hub.publish("a", "lost")
        hub.publish("b", "got")
        assert await receive(client) == ["b", 1, "got"]
        assert await ask(client, {"ping": 3}) == {"pong": 3}
        assert await ask(client, {"unsubscribe": ["b"]}) == {"unsubscribed": ["b"]}
        assert await ask(client, {"ping": 4}) == {"pong": 4}
        assert not len(hub)

    run(check)


async def allow_slowly(_: Any, topic: str) -> bool:
    await asyncio.sleep(0)
    return allow(_, topic)


def allow(_: Any, topic: str) -> bool:
    if topic == "broken":
        raise ZeroDivisionError
    return topic != "secret"


@pytest.mark.parametrize("authorize", [allow, allow_slowly], ids=["sync", "async"])
def test_authorize(authorize: Authorize, caplog: pytest.LogCaptureFixture) -> None:
    """Topics that are not allowed are refused with a reason, and the others of the request are subscribed to."""

    async def check(hub: wsfast.Hub, client: ClientConnection) -> None:
        request = {"subscribe": {"secret": None, "open": None, "broken": None}, "id": 5}
        assert list((await ask(client, request))["subscribed"]) == ["open"]
        assert await receive(client) == {"error": "not allowed", "topics": ["secret", "broken"], "id": 5}
        assert hub.topics() == ["open"]

    run(check, authorize)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]


def test_mistakes_of_the_server_are_raised() -> None:
    """A connection that is not open yet is a mistake of the server, not one that its client has closed."""

    async def main() -> None:
        session = Session(new_hub(), aiohttp.web.WebSocketResponse())
        with pytest.raises(RuntimeError, match=r"not open yet; await its prepare\(\) first"):
            await session.receive('{"subscribe": {"news": null}}')

    asyncio.run(main())


def test_closed_during_authorize() -> None:
    """A client that leaves while it is decided whether it may subscribe does no harm."""

    async def main() -> None:
        hub = new_hub()
        ended: list[bool] = []

        async def authorize(connection: Any, _: str) -> bool:
            await connection.wait_closed()
            return True

        async def handler(connection: Any) -> None:
            await Session(hub, connection, authorize).run()
            ended.append(True)

        async with wsfast.serve(handler, "127.0.0.1", 0) as server:
            client = await connect(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            await client.send('{"subscribe": {"a": null, "b": null}}')
            await client.close()
            await until(lambda: ended)
        assert not len(hub)

    asyncio.run(main())


def test_closed_during_authorize_in_fastapi() -> None:
    """The same for a WebSocket of FastAPI."""
    app = fastapi.FastAPI()
    hub = new_hub()
    closed, ended = threading.Event(), threading.Event()

    async def authorize(*_: Any) -> bool:
        await asyncio.to_thread(closed.wait, TIMEOUT)
        return True

    @app.websocket("/")
    async def endpoint(websocket: fastapi.WebSocket) -> None:
        await websocket.accept()
        await Session(hub, websocket, authorize).run()
        ended.set()

    with TestClient(app) as client, client.websocket_connect("/") as connection:
        connection.send_text('{"subscribe": {"a": null, "b": null}}')
        connection.close()
        closed.set()
        assert ended.wait(TIMEOUT)
        assert not len(hub)


def test_bounds() -> None:
    """There is a bound on topics, which those that the client has already do not count against twice."""

    async def check(hub: wsfast.Hub, client: ClientConnection) -> None:
        await ask(client, {"subscribe": {"a": None}})
        answer = await ask(client, {"subscribe": {"a": None, "b": None, "c": None, "d": None}})
        assert list(answer["subscribed"]) == ["a", "b"]
        assert await receive(client) == {"error": "a connection has at most 2 topics", "topics": ["c", "d"]}
        assert (await ask(client, "x" * 101))["error"] == "a request has at most 100 characters, not 101"
        assert sorted(hub.topics()) == ["a", "b"]

    run(check, max_topics=2, max_size=100)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (b"{}", "Text messages"),
        ("{", "no JSON"),
        ("[" * 60_000, "no JSON"),
        ("1" * 60_000, "no JSON"),
        ("[]", "one of subscribe, unsubscribe and ping"),
        ("{}", "one of subscribe, unsubscribe and ping"),
        ('{"ping": 1, "subscribe": {}}', "one of"),
        ('{"ping": 1.5}', "ping is an integer"),
        ('{"ping": NaN}', "ping is an integer"),
        ('{"ping": 1, "id": true}', "id is an integer"),
        ('{"ping": 9007199254740992}', "53 bits"),
        ('{"subscribe": ["a"]}', "subscribe maps topics"),
        ('{"subscribe": {}}', "subscribe maps topics"),
        ('{"subscribe": {"a.*": null}}', "not a valid name"),
        ('{"subscribe": {"": null}}', "not a valid name"),
        ('{"subscribe": {"\\ud800": null}}', "not a valid name"),
        ('{"subscribe": {"a": 5}}', "[epoch, offset]"),
        ('{"subscribe": {"a": ["x", -1]}}', "not negative"),
        ('{"subscribe": {"a": ["x", 1e400]}}', "offset is an integer"),
        ('{"unsubscribe": "a"}', "unsubscribe is a list"),
        ('{"unsubscribe": [1]}', "unsubscribe is a list"),
    ],
)
def test_errors(request_: str | bytes, error: str) -> None:
    """A wrong request gets an error that says why, and the session goes on."""

    async def check(hub: wsfast.Hub, client: ClientConnection) -> None:
        assert error in (await ask(client, request_))["error"]
        assert await ask(client, {"ping": 1}) == {"pong": 1}
        assert hub.topics() == []

    run(check)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["a", "b", "epoch"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.sampled_from(["a", "b"]), inner),
    max_leaves=8,
)
FIELDS = st.sampled_from(["subscribe", "unsubscribe", "ping", "id"])
REQUESTS = st.binary() | st.text() | JSON.map(json.dumps) | st.dictionaries(FIELDS, JSON).map(json.dumps)


def test_nothing_raises() -> None:
    """Whatever a client sends, each message gets an answer, and the session goes on."""
    hub = new_hub()
    failures: list[BaseException] = []

    async def handler(connection: Any) -> None:
        try:
            await Session(hub, connection).run()
        except BaseException as exc:
            failures.append(exc)
            raise

    async def send_all(url: str, requests: list[str | bytes]) -> None:
        client = await connect(url)
        for request in requests:
            await client.send(request if isinstance(request, bytes) else request.encode(errors="replace").decode())
            answer = await receive(client)
            assert {"error", "pong", "subscribed", "unsubscribed"} & set(answer), answer
        await client.send('{"ping": 123456}')
        while await receive(client) != {"pong": 123456}:
            pass  # a request for several topics has several answers
        await client.close()
        await until(lambda: not len(hub))
        assert failures == []

    async def start() -> Any:
        return await wsfast.serve(handler, "127.0.0.1", 0)

    async def stop(server: Any) -> None:
        server.close()
        await server.wait_closed()

    with asyncio.Runner() as runner:
        server = runner.run(start())
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"

        @given(st.lists(REQUESTS, max_size=20))
        @settings(max_examples=100, deadline=None)
        def check(requests: list[str | bytes]) -> None:
            runner.run(send_all(url, requests))

        check()
        runner.run(stop(server))


def test_flood_is_bounded() -> None:
    """A client that asks without reading the answers is disconnected by the hub's policy."""

    async def main() -> None:
        hub = new_hub(slow=wsfast.Disconnect(max_messages=50))
        async with serving(hub) as client:
            await ask(client, {"subscribe": {"a": None}})
            client.transport.pause_reading()
            with contextlib.suppress(ConnectionError, ConnectionClosed):
                while len(hub):
                    await client.send(json.dumps({"unsubscribe": ["x" * 60_000]}))
            await until(lambda: not len(hub))
            client.transport.abort()

    asyncio.run(main())


def test_fastapi() -> None:
    """A WebSocket of FastAPI works, also in its TestClient."""
    app = fastapi.FastAPI()
    hub = new_hub()

    @app.websocket("/")
    async def endpoint(websocket: fastapi.WebSocket) -> None:
        await websocket.accept()
        await Session(hub, websocket).run()

    @app.post("/publish")
    async def publish() -> None:
        hub.publish("news", "hello")

    with TestClient(app) as client, client.websocket_connect("/") as connection:
        connection.send_text('{"ping": 1}')
        assert connection.receive_json() == {"pong": 1}
        connection.send_bytes(b"x")
        assert "error" in connection.receive_json()
        connection.send_json({"subscribe": {"news": None}, "id": 1})
        assert connection.receive_json()["id"] == 1
        client.post("/publish")
        assert connection.receive_json() == ["news", 1, "hello"]


def test_aiohttp() -> None:
    """A WebSocket of aiohttp works."""

    async def main() -> None:
        hub = new_hub()

        async def handler(request: aiohttp.web.Request) -> aiohttp.web.WebSocketResponse:
            connection = aiohttp.web.WebSocketResponse()
            await connection.prepare(request)
            await Session(hub, connection).run()
            return connection

        app = aiohttp.web.Application()
        app.router.add_get("/", handler)
        runner = aiohttp.web.AppRunner(app)
        await runner.setup()
        await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
        client = await connect("ws://{}:{}/".format(*runner.addresses[0]))
        assert await ask(client, {"ping": 1}) == {"pong": 1}
        assert "error" in await ask(client, b"x")
        assert (await ask(client, {"subscribe": {"news": None}, "id": 1}))["id"] == 1
        hub.publish("news", "hello")
        assert await receive(client) == ["news", 1, "hello"]
        await client.close()
        await until(lambda: not len(hub))
        await runner.cleanup()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        ((None, None), {}, TypeError, "hub must be a Hub"),
        ((wsfast.Hub(history=5), None), {}, ValueError, "envelope=True"),
        ((wsfast.Hub(envelope=True), None, 5), {}, TypeError, "authorize must be callable"),
        ((wsfast.Hub(envelope=True), None), {"max_topics": 0}, ValueError, "max_topics must be positive"),
        ((wsfast.Hub(envelope=True), None), {"max_size": "1"}, TypeError, "max_size must be an integer"),
        ((wsfast.Hub(envelope=True), None), {"tags": "eu"}, TypeError, "tags must be a set of str"),
        ((wsfast.Hub(envelope=True), None), {"tags": ()}, ValueError, "tags must not be empty"),
    ],
)
def test_arguments(arguments: Any, options: Any, error: type[Exception], match: str) -> None:
    """Wrong arguments are refused."""
    with pytest.raises(error, match=match):
        Session(*arguments, **options)
