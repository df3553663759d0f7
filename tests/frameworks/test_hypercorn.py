"""WebSockets under Hypercorn with `wsfast.hypercorn.install()`, by its command line and in the loop of the test."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fastapi
import hypercorn.asyncio
import hypercorn.protocol.h11
import pytest
import quart
from hypercorn.protocol.ws_stream import WSStream
from websockets.exceptions import ConnectionClosed

import wsfast
import wsfast.hypercorn
from helpers.asgi import check_foreign, check_last_words, check_room, check_stalled, connect, serve
from helpers.fixtures import Run
from helpers.interop.clients import CLIENTS, Inbox, Node, Offer, fingerprint, install_ws
from helpers.libraries import Connect, clients, listen
from helpers.peers import TIMEOUT, until
from libraries.test_http2 import Client
from wsfast import Ended
from wsfast.connections import adapt, asgi
from wsfast.connections.hypercorn import _stream

UNBOUNDED = wsfast.Disconnect(max_messages=None, max_bytes=None)
COMMAND = ["hypercorn", "--bind", "127.0.0.1:{port}"]


# ---- Its command line


@pytest.mark.parametrize(
    ("app", "worker"), [("app", "asyncio"), ("app", "uvloop"), ("quart_app", "asyncio"), ("litestar_app", "uvloop")]
)
def test_command_line(app: str, worker: str) -> None:
    """Everything arrives, in order with the application's own messages; a client that stalls is given up."""

    async def main() -> None:
        command = [*COMMAND, "--worker-class", worker, f"frameworks.hypercorn_app:{app}"]
        async with serve(command, "", WSFAST_TEST_CLOSE_TIMEOUT="0.5") as port:
            assert await check_room(port) == "HypercornConnection"
            await check_foreign(port)
            await check_stalled(port)

    asyncio.run(main())


def test_last_words() -> None:
    """Messages that were published before a close leave before the close frame."""

    async def main() -> None:
        async with serve([*COMMAND, "frameworks.hypercorn_app:app"], "") as port:
            await check_last_words(port)

    asyncio.run(main())


def test_trio() -> None:
    """With the worker class trio, the error says what to do."""

    async def main() -> None:
        command = [*COMMAND, "--worker-class", "trio", "frameworks.hypercorn_app:trio_app"]
        async with serve(command, "") as port, asyncio.timeout(TIMEOUT):
            client = await connect(port)
            said = await client.recv()
            assert said.startswith("TypeError('cannot send to WebSockets of a server that runs trio; ")
            await client.close()

    asyncio.run(main())


# ---- In the loop of the test


@contextlib.asynccontextmanager
async def running(app: Any, *, small: bool = False, **options: Any) -> AsyncIterator[Any]:
    """Run Hypercorn in this loop; give its address."""
    wsfast.hypercorn.install()
    listener = listen(small=small)
    address = listener.getsockname()
    config: Any = hypercorn.Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.errorlog = None
    config.graceful_timeout = 0.1
    for name, value in options.items():
        setattr(config, name, value)
    ended = asyncio.Event()
    task = asyncio.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=ended.wait))
    try:
        yield address
    finally:
        ended.set()
        async with asyncio.timeout(TIMEOUT):
            await task


class Room:
    """An application of FastAPI: connections arrive in a queue, and what they receive and how they end is kept."""

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[Any] = asyncio.Queue()
        self.codes: list[int] = []
        self.reading = asyncio.Event()
        self.reading.set()
        self.app = fastapi.FastAPI()
        for path in ("/ws", "/"):
            self.app.websocket(path)(self.endpoint)

    async def endpoint(self, websocket: fastapi.WebSocket) -> None:
        await websocket.accept()
        await self.arrived.put(websocket)
        await self.reading.wait()
        try:
            while True:
                await websocket.receive_text()
        except fastapi.WebSocketDisconnect as exc:
            self.codes.append(exc.code)

    @contextlib.asynccontextmanager
    async def opened(self, *, small: bool = False, compress: bool = True, **options: Any) -> AsyncIterator[Connect]:
        async with (
            running(self.app, small=small, **options) as address,
            clients(self.arrived, address, compress=compress, small=small) as connect_client,
        ):
            yield connect_client


def text_of(number: int) -> str:
    """Return a message, of which some compress."""
    chance = random.Random(number)
    return f"{number} " + chance.randbytes(chance.choice([0, 5, 50, 2000])).hex() * chance.choice([1, 3])


async def receive(client: Any, count: int) -> list[str]:
    async with asyncio.timeout(TIMEOUT):
        return [await client.recv() for _ in range(count)]


@pytest.fixture(scope="module")
def modules() -> Path:
    """Where Node finds the package ws, which is installed once."""
    return install_ws(Path(__file__).parents[2] / "build" / "node")


def test_clients_of_other_makers(run: Run, modules: Path) -> None:
    """A Quart application: Node's ws, aiohttp, wsproto and websockets get everything in order, its own sends too."""
    count = 150
    names = ["websockets", "aiohttp", "wsproto", "node", "node"]

    async def main() -> None:
        app = quart.Quart(__name__)
        channel = wsfast.Channel(slow=UNBOUNDED)
        here: dict[int, Any] = {}
        everybody = asyncio.Event()

        @app.websocket("/<int:index>")
        async def endpoint(index: int) -> None:
            own: Any = quart.websocket._get_current_object()  # type: ignore[attr-defined]
            await own.accept()
            channel.subscribe(own)
            here[index] = own
            await everybody.wait()
            await own.close(1000)
            await asyncio.Event().wait()  # until the client has answered, and Quart cancels this

        node = Node(modules)
        await node.start()
        inboxes = [Inbox() for _ in names]
        async with running(app) as (host, port), asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as tasks:
            for index, name in enumerate(names):
                url = f"ws://{host}:{port}/{index}"
                if name == "node":
                    node.receive(url, Offer(), inboxes[index])
                else:
                    tasks.create_task(CLIENTS[name](url, Offer(), inboxes[index]))  # type: ignore[index]
            node.close()
            tasks.create_task(node.run())
            await until(lambda: len(here) == len(names), "all clients")
            expected: list[list[str]] = [[] for _ in names]
            for number in range(count):
                channel.publish(text_of(number))
                for messages in expected:
                    messages.append(text_of(number))
                if number % 3 == 0:
                    index = number % len(names)
                    await here[index].send(f"for {index} alone")
                    expected[index].append(f"for {index} alone")
                if number % 7 == 0:
                    channel.flush()
                    await until(lambda: channel.stats().queued == 0)  # broadcasts do not wait for what a client lags
                    assert sum(wsfast.broadcast(here.values(), "to all")[:2]) == len(names)
                    for messages in expected:
                        messages.append("to all")
                    channel.publish("and this")
                    for messages in expected:
                        messages.append("and this")
            everybody.set()
        for index, (name, inbox) in enumerate(zip(names, inboxes, strict=True)):
            known: list[Any] = expected[index]
            assert inbox.received == ([fingerprint(one) for one in known] if name == "node" else known)
        assert len(channel) == 0

    run(main)


def test_sends_of_its_own_that_wait(run: Run) -> None:
    """While Hypercorn waits for a client, messages that it has compressed wait for its lock; none of them is spoilt."""
    own = [f"own {number} " + random.Random(number).randbytes(300_000).hex() for number in range(3)]

    async def main() -> None:
        room = Room()
        async with room.opened(small=True) as connect_client:
            websocket, client = await connect_client()
            stream = adapt(websocket).stream
            channel = wsfast.Channel(slow=UNBOUNDED)
            channel.subscribe(websocket)
            channel.publish("before " * 10)
            client.transport.pause_reading()
            sends = [asyncio.create_task(websocket.send_text(text)) for text in own]
            await until(lambda: stream.sending == 3, "Hypercorn to wait")
            delivery = wsfast.broadcast([websocket], "broadcast " * 10)
            assert delivery == (0, 1, 0, 0)
            channel.publish("published " * 10)
            channel.flush()
            later = asyncio.create_task(websocket.send_text("later " * 10))
            await asyncio.sleep(0)
            client.transport.resume_reading()
            received = await receive(client, 7)
            await asyncio.gather(*sends, later)
            expected = ["before ", "broadcast ", "published ", "later "]
            assert received == [expected[0] * 10, *own, *(text * 10 for text in expected[1:])]
            assert stream.sending is None
            channel.publish("after " * 10)
            assert await receive(client, 1) == ["after " * 10]

    run(main)


def test_pings(run: Run) -> None:
    """Hypercorn's pings come between messages, and harm none."""
    messages = [text_of(number) for number in range(300)]

    async def main() -> None:
        room = Room()
        async with room.opened(websocket_ping_interval=0.001) as connect_client:
            pairs = [await connect_client() for _ in range(3)]
            channel = wsfast.Channel(slow=UNBOUNDED)
            for websocket, _ in pairs:
                channel.subscribe(websocket)
            for number, message in enumerate(messages):
                channel.publish(message)
                if number % 3 == 0:
                    await asyncio.sleep(0.001)
            for _, client in pairs:
                assert await receive(client, len(messages)) == messages

    run(main)


@pytest.mark.parametrize("reads", [True, False], ids=["", "queue-full"])
def test_policy(run: Run, reads: bool) -> None:
    """A connection that a policy closes takes no more messages of the application, and the application hears why."""

    async def main() -> None:
        room = Room()
        if not reads:
            room.reading.clear()
        async with room.opened(small=True, max_app_queue_size=1) as connect_client:
            websocket, client = await connect_client()
            if not reads:
                queue = adapt(websocket).stream.app_put.__self__
                await client.send("unread")
                await until(queue.full, "the message")
            channel = wsfast.Channel(slow=wsfast.Disconnect(max_messages=3, code=4321, reason="slow"))
            subscription = channel.subscribe(websocket)
            sent = 0
            while subscription.active:
                channel.publish(random.Random(sent).randbytes(2000).hex())
                channel.flush()
                sent += 1
            assert await subscription.ended() is Ended.SLOW_CONSUMER
            if not reads:
                await until(lambda: adapt(websocket).refuses, "close()")
                with pytest.raises(ConnectionError):
                    await adapt(websocket).stream.app_send({"type": "websocket.send", "text": "more"})
                room.reading.set()
            with pytest.raises(ConnectionClosed):
                await receive(client, sent)
            assert (client.close_code, client.close_reason) == (4321, "slow")
            await until(lambda: room.codes, "the disconnect")
            assert room.codes == [4321]
            assert wsfast.broadcast([websocket], "x").skipped == 1

    run(main)


@pytest.mark.parametrize("how", ["closed", "reset", "ended"])
def test_client_that_leaves(run: Run, how: str) -> None:
    """The subscription ends, and nothing is kept."""

    async def main() -> None:
        room = Room()
        async with room.opened() as connect_client:
            websocket, client = await connect_client()
            channel = wsfast.Channel()
            subscription = channel.subscribe(websocket)
            if how == "closed":
                await client.close(4000)
            elif how == "reset":
                client.transport.abort()
            else:
                client.transport.write_eof()
            ended = await subscription.ended()
            assert ended is (Ended.CLOSED_BY_PEER if how == "closed" else Ended.LOST)
            assert wsfast.broadcast([websocket], "x").skipped == 1
            await until(lambda: room.codes, "the disconnect")
            await until(lambda: adapt(websocket).transport.is_closing(), "the end")

    run(main)


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_application_that_ends(run: Run, fails: bool) -> None:
    """What was published before leaves first; the subscription ends though the application does not end it."""

    async def main() -> None:
        channel = wsfast.Channel()
        subscribed: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "websocket":
                return
            websocket = fastapi.WebSocket(scope, receive, send)
            assert wsfast.broadcast([websocket], "too early").skipped == 1
            with pytest.raises(RuntimeError, match="not open"):
                channel.subscribe(websocket)
            await websocket.accept()
            subscribed.append(channel.subscribe(websocket))
            for number in range(20):
                channel.publish(text_of(number))
            if fails:
                raise ValueError("a fault of the application's")

        arrived: asyncio.Queue[Any] = asyncio.Queue()
        arrived.put_nowait(None)
        async with running(app) as address, clients(arrived, address, compress=True) as connect_client:
            _, client = await connect_client()
            assert await receive(client, 20) == [text_of(number) for number in range(20)]
            with pytest.raises(ConnectionClosed):
                await receive(client, 1)
            assert client.close_code == 1011  # Hypercorn's own
            assert await subscribed[0].ended() is Ended.CLOSED_HERE

    run(main)


def test_http2(run: Run) -> None:
    """A WebSocket in a stream of HTTP/2 is sent to through a queue, beside one of HTTP/1.1."""

    async def main() -> None:
        room = Room()
        channel = wsfast.Channel(slow=UNBOUNDED)
        async with running(room.app) as address:
            _, client = await asyncio.get_running_loop().create_connection(Client, *address)
            stream = client.open(compress=True, reads=True)
            async with asyncio.timeout(TIMEOUT):
                websocket = await room.arrived.get()
            assert isinstance(adapt(websocket), asgi.AsgiConnection)
            channel.subscribe(websocket)
            for number in range(50):
                channel.publish(text_of(number))
            await until(lambda: len(client.messages[stream]) == 50, "the messages")
            assert client.messages[stream] == [text_of(number) for number in range(50)]
            client.transport.abort()
            await until(lambda: room.codes, "the disconnect")

    run(main)


def test_install() -> None:
    """Installing twice is the same as once. Streams of an unknown server stay Hypercorn's own."""
    wsfast.hypercorn.install()
    wsfast.hypercorn.install()
    assert vars(hypercorn.protocol.h11)["WSStream"] is _stream

    async def send(event: Any) -> None:
        raise AssertionError

    arguments: list[Any] = [None, hypercorn.Config(), None, None, False, None, None, send, 1]
    assert type(_stream(*arguments)) is WSStream
