"""WebSockets under Hypercorn: sends that wait or are cancelled, and what middleware does."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import fastapi
import pytest
from hypercorn.middleware import ProxyFixMiddleware
from websockets.exceptions import ConnectionClosed

import wsfast
from frameworks.test_hypercorn import Room, receive, running
from helpers.fixtures import Run
from helpers.libraries import clients
from helpers.peers import TIMEOUT, until
from wsfast.connections import adapt
from wsfast.connections.hypercorn import HypercornConnection


def test_cancelled_when_its_turn_comes(run: Run) -> None:
    """A compressed message leaves even if its send is cancelled in the iteration in which Hypercorn could send it."""
    long = random.Random(1).randbytes(300_000).hex()

    async def main() -> None:
        room = Room()
        async with room.opened(small=True, compress=True) as connect_client:
            websocket, client = await connect_client()
            stream = adapt(websocket).stream
            client.transport.pause_reading()
            first = asyncio.create_task(websocket.send_text(long))
            second = asyncio.create_task(websocket.send_text("cancelled"))
            await until(lambda: stream.sending == 2, "Hypercorn to wait")
            lock = stream._send.__self__.send.__self__.send_lock

            def cancel() -> None:  # runs before a task that gets the lock
                if lock.locked():
                    asyncio.get_running_loop().call_soon(cancel)
                else:
                    second.cancel()

            cancel()
            client.transport.resume_reading()
            assert await receive(client, 2) == [long, "cancelled"]
            with pytest.raises(asyncio.CancelledError):
                await second
            await first
            await websocket.send_text("cancelled, or another")
            assert await receive(client, 1) == ["cancelled, or another"]

    run(main)


@pytest.mark.parametrize("compress", [False, True])
def test_cancelled_send(run: Run, compress: bool) -> None:
    """If a send is cancelled while it waits for others, what follows it still follows them, and can be decoded.

    A compressed message leaves nevertheless: Hypercorn compresses the next one with reference to it.
    """
    long = random.Random(1).randbytes(300_000).hex()

    async def main() -> None:
        room = Room()
        async with room.opened(small=True, compress=compress) as connect_client:
            websocket, client = await connect_client()
            stream = adapt(websocket).stream
            client.transport.pause_reading()
            sends = [asyncio.create_task(websocket.send_text(text)) for text in (long, "second", "cancelled")]
            await until(lambda: stream.sending == 3, "Hypercorn to wait")
            assert wsfast.broadcast([websocket], "broadcast") == (0, 1, 0, 0)
            cancelled = sends.pop()
            cancelled.cancel()
            await asyncio.wait((cancelled,))
            assert wsfast.broadcast([websocket], "another") == (0, 1, 0, 0)
            client.transport.resume_reading()
            kept = ["cancelled"] if compress else []
            assert await receive(client, 4 + compress) == [long, "second", *kept, "broadcast", "another"]
            await asyncio.gather(*sends)
            await websocket.send_text("cancelled, or another")
            assert await receive(client, 1) == ["cancelled, or another"]
            assert wsfast.broadcast([websocket], "cancelled, or another broadcast") == (1, 0, 0, 0)
            assert await receive(client, 1) == ["cancelled, or another broadcast"]

    run(main)


def test_close_that_waits(run: Run) -> None:
    """The close frame of a policy leaves though it waits for a ping, and though the application returns at once."""

    async def main() -> None:
        room = Room()
        async with room.opened(small=True, websocket_ping_interval=0.01) as connect_client:
            websocket, client = await connect_client()
            stream = adapt(websocket).stream
            client.transport.pause_reading()
            own = asyncio.create_task(websocket.send_text(random.Random(1).randbytes(300_000).hex()))
            await until(lambda: (stream.sending or 0) >= 2, "a ping that waits")
            channel = wsfast.Channel(slow=wsfast.Disconnect(max_messages=3, code=4321))
            subscription = channel.subscribe(websocket)
            while subscription.active:
                channel.publish("more")
                channel.flush()
            await until(lambda: room.codes, "the disconnect")
            for _ in range(10):
                await asyncio.sleep(0)  # the application returns
            client.transport.resume_reading()
            with pytest.raises(ConnectionClosed):
                await receive(client, 2)
            assert client.close_code == 4321
            await own

    run(main)


def test_copied_scope(run: Run) -> None:
    """Hypercorn's middleware for proxies copies the scope, with all that is in it."""

    async def main() -> None:
        room = Room()
        app: Any = room.app
        async with (
            running(ProxyFixMiddleware(app)) as address,
            clients(room.arrived, address, compress=True) as connect_client,
        ):
            websocket, client = await connect_client()
            assert isinstance(adapt(websocket), HypercornConnection)
            assert wsfast.broadcast([websocket], "to all").sent == 1
            assert await receive(client, 1) == ["to all"]

    run(main)


def test_accept_that_fails(run: Run) -> None:
    """A connection is not open if Hypercorn refuses the subprotocol of the application."""
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    upgrade = (
        f"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\nSec-WebSocket-Version: 13"
    )

    async def main() -> None:
        seen: asyncio.Queue[Any] = asyncio.Queue()
        ended = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "websocket":
                return
            websocket = fastapi.WebSocket(scope, receive, send)
            with pytest.raises(Exception, match="Invalid Subprotocol"):
                await websocket.accept(subprotocol="unknown")
            seen.put_nowait(wsfast.broadcast([websocket], "too early").skipped)
            with pytest.raises(RuntimeError, match="not open"):
                wsfast.Channel().subscribe(websocket)
            await receive()  # that the client has left
            ended.set()

        async with running(app) as address, asyncio.timeout(TIMEOUT):
            _, writer = await asyncio.open_connection(*address)
            writer.write(f"{upgrade}\r\n\r\n".encode())
            assert await seen.get() == 1
            writer.close()
            await writer.wait_closed()
            await ended.wait()

    run(main)
