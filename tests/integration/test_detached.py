"""Threads send what was published while the event loop goes on: whatever happens meanwhile, all arrives, in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

import wsfast
from helpers import processes
from helpers.cores import PURE_ONLY, load_core
from helpers.fixtures import Run
from helpers.interrupts import Interrupt
from helpers.libraries import LIBRARIES
from helpers.peers import until

COUNT = 60
"""Connections: so many that something is still under way when the event loop goes on, sometimes."""

ROUNDS = 40

pytestmark = pytest.mark.skipif(PURE_ONLY, reason="the twin has no threads")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Have two threads, for however few connections, one at a time."""
    core = load_core("c")
    before = core.threads()
    core.set_threads(2, size=1, chunk=1)
    yield
    core.set_threads(before)


def detached(channel: wsfast.Channel) -> int:
    """How many connections threads may be sending to."""
    assert channel._dispatcher is not None
    return channel._dispatcher.table.detached


async def collect(client: Any, into: list[Any]) -> None:
    with contextlib.suppress(Exception):
        async for message in client:
            into += [message]


class Act:
    """What may happen to a connection while threads send to it; each notes what is expected to arrive."""

    def __init__(self, channel: wsfast.Channel, name: str, rng: random.Random) -> None:
        self.channel = channel
        self.name = name
        self.rng = rng
        self.number = 0

    async def own(self, connection: Any, expected: list[Any]) -> None:
        self.number += 1
        expected.append(f"own {self.number}")
        await LIBRARIES[self.name].send(connection, expected[-1])

    async def broadcast(self, connection: Any, expected: list[Any]) -> None:
        self.number += 1
        expected.append(f"broadcast {self.number}" + "b" * self.rng.choice([0, 200]))
        assert wsfast.broadcast([connection], expected[-1]).sent == 1

    async def flush(self, _: Any, __: list[Any]) -> None:
        self.channel.flush()
        assert detached(self.channel) == 0


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", ["wsfast.serve", "fastapi"])
def test_all_arrives_in_order(name: str, compress: bool, run: Run) -> None:
    """What is published, broadcast and sent by a connection itself gets to it in this order."""
    rng = random.Random(f"{name} {compress}")

    async def main() -> int:
        async with LIBRARIES[name].open(compress=compress, small=False) as connect:
            pairs = [await connect() for _ in range(COUNT)]
            got: list[list[Any]] = [[] for _ in pairs]
            expected: list[list[Any]] = [[] for _ in pairs]
            readers = [asyncio.ensure_future(collect(client, one)) for (_, client), one in zip(pairs, got, strict=True)]
            channel = wsfast.Channel()
            for connection, _ in pairs:
                channel.subscribe(connection)
            act = Act(channel, name, rng)
            seen = 0
            published = ROUNDS
            for number in range(ROUNDS):
                message = f"{number} " + "published, " * rng.choice([1, 30])
                channel.publish(message)
                for one in expected:
                    one.append(message)
                await asyncio.sleep(0)
                seen += detached(channel) > 0
                for _ in range(rng.randrange(4)):
                    which = rng.randrange(COUNT)
                    await rng.choice([act.own, act.broadcast, act.flush])(pairs[which][0], expected[which])
                if rng.randrange(3) == 0:
                    channel.publish("published, and under way")
                    await asyncio.sleep(0)
                    wsfast.broadcast({connection for connection, _ in pairs}, "broadcast to all")
                    for one in expected:
                        one += ["published, and under way", "broadcast to all"]
                    published += 1
                if rng.randrange(3) == 0:
                    await pairs[rng.randrange(COUNT)][1].send("to be received meanwhile")
            await until(lambda: got == expected)
            assert channel.stats().sent == COUNT * published
            for reader in readers:
                reader.cancel()
        return seen

    assert sum(run(main) for _ in range(3)) > 0


@pytest.mark.parametrize("slow", [wsfast.DropOldest(max_messages=5), wsfast.Disconnect(max_messages=5)])
def test_some_do_not_read(slow: wsfast.Policy, run: Run) -> None:
    """Frames that the kernel cuts are whole in the end, and what has no room waits or is dropped, as ever."""

    async def main() -> None:
        async with LIBRARIES["wsfast.serve"].open(compress=False, small=True) as connect:
            pairs = [await connect() for _ in range(12)]
            got: list[list[Any]] = [[] for _ in pairs]
            channel = wsfast.Channel(slow=slow)
            subscriptions = [channel.subscribe(connection) for connection, _ in pairs]
            for _, client in pairs[::3]:
                client.transport.pause_reading()
            readers = [asyncio.ensure_future(collect(client, one)) for (_, client), one in zip(pairs, got, strict=True)]
            reading = [one for place, one in enumerate(got) if place % 3]
            messages = [f"{number} " + "x" * 3000 for number in range(60)]
            for number, message in enumerate(messages):
                channel.publish(message)
                await asyncio.sleep(0)
                with contextlib.suppress(ConnectionClosed):
                    await pairs[number % 12][0].ping()
                await until(lambda: not detached(channel) and all(one[-1:] == got[1][-1:] for one in reading))
            for _, client in pairs[::3]:
                client.transport.resume_reading()
            await until(
                lambda: got[1] == messages and all(not one.active or not one.lag.messages for one in subscriptions)
            )
            for place, one in enumerate(got):
                if place % 3:
                    await until(lambda one=one: one == messages)  # type: ignore[misc]
                else:
                    assert one == [message for message in messages if message in one]  # each once, in order
            stats = channel.stats()
            assert stats.published == stats.sent + stats.dropped
            assert stats.dropped > 0
            for reader in readers:
                reader.cancel()

    run(main)


def abort(connection: Any, _: Any) -> None:
    connection.transport.abort()


def reset(_: Any, client: Any) -> None:
    client.transport.abort()


def unsubscribe(connection: Any, _: Any) -> None:
    connection._wsfast_peer.subscriptions[0].unsubscribe()


@pytest.mark.parametrize("happens", [abort, reset, unsubscribe])
def test_connections_go(happens: Callable[[Any, Any], None], run: Run) -> None:
    """Connections that are lost meanwhile, and new ones that get their descriptors, harm nobody."""

    async def main() -> None:
        async with LIBRARIES["wsfast.serve"].open(compress=False, small=False) as connect:
            pairs = [await connect() for _ in range(20)]
            channel = wsfast.Channel()
            got: dict[Any, list[Any]] = {}
            since: dict[Any, int] = {}
            readers = []

            def enter(pair: Any, number: int) -> None:
                channel.subscribe(pair[0])
                got[pair[0]], since[pair[0]] = [], number
                readers.append(asyncio.ensure_future(collect(pair[1], got[pair[0]])))

            for pair in pairs:
                enter(pair, 0)
            for number in range(ROUNDS):
                channel.publish(f"{number}")
                await asyncio.sleep(0)
                connection, client = pairs.pop(number % 20)
                happens(connection, client)
                pairs.append(await connect())
                enter(pairs[-1], number + 1)
            channel.publish("last")
            await until(lambda: all(got[connection][-1:] == ["last"] for connection, _ in pairs))
            for connection, _ in pairs:
                assert got[connection] == [*map(str, range(since[connection], ROUNDS)), "last"]
            for connection, one in got.items():
                assert one == [*map(str, range(since[connection], ROUNDS)), "last"][: len(one)]
            for reader in readers:
                reader.cancel()

    run(main)


@pytest.mark.parametrize("when", ["it begins", "it is settled"])
def test_interrupts(when: str, run: Run) -> None:
    """Whenever a signal handler raises: what is published arrives, before and after, at all that are not aborted."""

    async def main(moment: int) -> bool:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        async with LIBRARIES["wsfast.serve"].open(compress=False, small=False) as connect:
            pairs = [await connect() for _ in range(8)]
            got: list[list[Any]] = [[] for _ in pairs]
            readers = [asyncio.ensure_future(collect(client, one)) for (_, client), one in zip(pairs, got, strict=True)]
            channel = wsfast.Channel()
            subscriptions = [channel.subscribe(connection) for connection, _ in pairs]
            dispatcher = channel._bind()
            channel.publish("first")
            if when == "it is settled":
                dispatcher.flush(1.0)
                while dispatcher._detached is not None and not dispatcher._detached.batch.is_sent:
                    pass
            interrupt = Interrupt(moment)
            with interrupt:
                dispatcher.flush(1.0)
            await asyncio.sleep(0)
            channel.publish("second")
            await until(
                lambda: all(
                    one == ["first", "second"] or not subscription.active
                    for one, subscription in zip(got, subscriptions, strict=True)
                )
            )
            await until(lambda: not detached(channel) and not dispatcher.table.sending)
            for reader in readers:
                reader.cancel()
        return interrupt.left > 0

    for moment in range(1, 300):
        if run(lambda moment=moment: main(moment)):  # type: ignore[misc]
            return
    pytest.fail("it has no end")


@pytest.mark.parametrize("small", [False, True])
def test_other_threads_may_look(small: bool, run: Run) -> None:
    """To ask a connection something in another thread is allowed, and harms no frame."""

    async def main() -> None:
        async with LIBRARIES["wsfast.serve"].open(compress=False, small=small) as connect:
            pairs = [await connect() for _ in range(20)]
            got: list[list[Any]] = [[] for _ in pairs]
            readers = [asyncio.ensure_future(collect(client, one)) for (_, client), one in zip(pairs, got, strict=True)]
            channel = wsfast.Channel(slow=wsfast.Disconnect(max_messages=1000))
            for connection, _ in pairs:
                channel.subscribe(connection)
            ended = threading.Event()

            def look() -> None:
                while not ended.is_set():
                    for connection, _ in pairs:
                        assert connection.remote_address
                        assert connection.state

            thread = threading.Thread(target=look)
            thread.start()
            messages = [f"{number} " + "x" * 3000 for number in range(100)]
            try:
                for message in messages:
                    channel.publish(message)
                    await asyncio.sleep(0)
                await until(lambda: all(one == messages for one in got))
            finally:
                ended.set()
                thread.join()
            for reader in readers:
                reader.cancel()

    run(main)


def test_not_if_told_so(run: Run) -> None:
    """With `detach=False`, all has left when the event loop goes on; what is no bool is refused."""
    with pytest.raises(TypeError, match="detach must be a bool, not 1"):
        wsfast.set_threads(2, detach=1)  # type: ignore[arg-type]
    load_core("c").set_threads(2, detach=False, size=1, chunk=1)

    async def main() -> None:
        async with LIBRARIES["wsfast.serve"].open(compress=False, small=False) as connect:
            pairs = [await connect() for _ in range(20)]
            channel = wsfast.Channel()
            for connection, _ in pairs:
                channel.subscribe(connection)
            for number in range(ROUNDS):
                channel.publish(f"{number}")
                await asyncio.sleep(0)
                assert detached(channel) == 0
            for _, client in pairs:
                assert [await client.recv() for _ in range(ROUNDS)] == [f"{number}" for number in range(ROUNDS)]

    run(main)


ENDS = """
import asyncio, gc, sys, wsfast, websockets
from wsfast._core import core
core.set_threads(3, size=1, chunk=1)

async def main():
    connections = []
    async def handler(connection):
        connections.append(connection)
        await connection.wait_closed()
    server = await wsfast.serve(handler, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    clients = [await websockets.connect(f"ws://127.0.0.1:{port}") for _ in range(30)]
    while len(connections) < 30:
        await asyncio.sleep(0.001)
    channel = wsfast.Channel()
    for connection in connections:
        channel.subscribe(connection)
    channel.publish("x" * 10_000)
    await asyncio.sleep(0)

for _ in range(10):
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    if sys.argv[1] == "close":
        loop.close()
    del loop
    gc.collect()
print("whole")
"""


@pytest.mark.parametrize("how", ["close", "forget"])
def test_a_loop_that_ends(how: str) -> None:
    """An event loop that ends while threads send for it leaves nothing behind that they could write to."""
    assert processes.run(sys.executable, "-W", "ignore", "-c", ENDS, how).stdout == "whole\n"


@pytest.mark.parametrize("early", [False, True])
def test_who_is_abandoned_is_sent_to_once(early: bool, run: Run) -> None:
    """When threads have sent and that was noted early, nothing is sent again for a loop that is closed."""

    async def main() -> None:
        async with LIBRARIES["wsfast.serve"].open(compress=False, small=False) as connect:
            pairs = [await connect() for _ in range(5)]
            channel = wsfast.Channel()
            for connection, _ in pairs:
                channel.subscribe(connection)
            dispatcher = channel._bind()
            channel.publish("once")
            dispatcher.flush(0.0)
            if early:
                dispatcher._settle_early()
            dispatcher._abandon()
            assert detached(channel) == 0
            assert wsfast.broadcast([connection for connection, _ in pairs], "last").sent == 5
            for _, client in pairs:
                assert [await client.recv(), await client.recv()] == ["once", "last"]

    run(main)


def test_nothing_keeps_the_loop(run: Run) -> None:
    """Whoever has nothing under way is not kept alive by it."""

    async def main() -> Any:
        async with LIBRARIES["wsfast.serve"].open(compress=False, small=False) as connect:
            pairs = [await connect() for _ in range(5)]
            channel = wsfast.Channel()
            for connection, _ in pairs:
                channel.subscribe(connection)
            channel.publish("x")
            for _, client in pairs:
                assert await client.recv() == "x"
            await until(lambda: not detached(channel))
            assert channel._dispatcher is not None
            assert channel._dispatcher.table.settle is None
            assert channel._dispatcher not in channel._dispatcher._under_way
        return None

    run(main)
    gc.collect()
