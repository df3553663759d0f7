"""WebSockets under Hypercorn: sends that wait or are cancelled, and what middleware does."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypercorn.middleware import ProxyFixMiddleware
from websockets.exceptions import ConnectionClosed

import wsfast
from frameworks.test_hypercorn import Room, receive, running
from helpers.fixtures import Run
from helpers.libraries import clients
from helpers.peers import until
from wsfast.connections import adapt
from wsfast.connections.hypercorn import HypercornConnection


def test_cancelled_send(run: Run) -> None:
    """If a send is cancelled while it waits for others, what follows it still follows them."""
    long = random.Random(1).randbytes(300_000).hex()

    async def main() -> None:
        room = Room()
        async with room.opened(small=True, compress=False) as connect_client:
            websocket, client = await connect_client()
            stream = adapt(websocket).stream
            client.transport.pause_reading()
            sends = [asyncio.create_task(websocket.send_text(text)) for text in (long, "second", "cancelled")]
            await until(lambda: stream.sending == 3, "Hypercorn to wait")
            assert wsfast.broadcast([websocket], "broadcast") == (0, 1, 0, 0)
            sends.pop().cancel()
            await until(lambda: stream.sending == 2, "the end of the last one")
            assert wsfast.broadcast([websocket], "another") == (0, 1, 0, 0)
            client.transport.resume_reading()
            assert await receive(client, 4) == [long, "second", "broadcast", "another"]
            await asyncio.gather(*sends)

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
