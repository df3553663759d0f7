"""Presence through real brokers: processes that end, are killed and suspended, and brokers that are restarted."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.brokers import Broker, proxy_to, relay_of, started, why_not
from helpers.peers import TIMEOUT, until
from helpers.presence_process import Member, Process, Room
from wsfast import Hub
from wsfast.relay import broker as relay_broker
from wsfast.relay import presence, wire
from wsfast.relay.wire import NOTICE, Envelope, Keyring

INTERVAL, MISSES, GRACE = 0.25, 3, 0.1
TIMES: dict[str, Any] = {"interval": INTERVAL, "misses": MISSES, "grace": GRACE}
KINDS = ["redis", "recover", "nats", "local"]
ROOM = [["join", "ann", None], ["join", "ann", "room"]]


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have relays look for the broker often; and have connections that were not closed be warned about."""
    monkeypatch.setattr(relay_broker, "LAST_BACKOFF", 0.2)
    monkeypatch.setattr(presence, "LAST_BACKOFF", 0.2)
    yield
    gc.collect()


class Place:
    """A broker, and how relays use it."""

    def __init__(self, kind: str, broker: Broker) -> None:
        self.kind = broker.kind
        self.broker = broker
        prefix = f"p{random.getrandbits(40):x}"
        self.options: dict[str, Any] = {"prefix": prefix, **({"recover": True} if kind == "recover" else {})}

    def process(self, **times: Any) -> Any:
        return Process.run(self.kind, self.broker.url, self.options, {**TIMES, **times})

    @contextlib.asynccontextmanager
    async def rooms(self, number: int, *, url: str | None = None, **times: Any) -> AsyncIterator[list[Room]]:
        """Run several rooms in this process."""
        async with contextlib.AsyncExitStack() as stack:
            rooms = [Room(self.kind, url or self.broker.url, self.options, {**TIMES, **times}) for _ in range(number)]
            for room in rooms:
                await stack.enter_async_context(room.relay)
            yield rooms


@pytest.fixture(scope="module", params=KINDS)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Broker]]:
    """A kind of relay, and a broker that tests leave alone."""
    kind = "redis" if request.param == "recover" else request.param
    if (reason := why_not(kind)) is not None:
        pytest.skip(reason)
    with started(kind, tmp_path_factory.mktemp(kind)) as broker:
        yield request.param, broker


@pytest.fixture
def place(shared: tuple[str, Broker]) -> Place:
    """Where relays meet that no other test's meet."""
    return Place(*shared)


@pytest.fixture(params=["redis", "nats"])
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A broker that the test may kill."""
    if (reason := why_not(request.param)) is not None:
        pytest.skip(reason)
    with started(request.param, tmp_path) as broker:
        yield Place(request.param, broker)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine function in an event loop of asyncio's."""
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop, debug=False) as runner:
        runner.run(asyncio.wait_for(main(), 3 * TIMEOUT))


def users(*rooms: Room) -> list[list[Any]]:
    return [room.state()["users"] for room in rooms]


# ---- Processes that come and go


def test_process_ends(place: Place) -> None:
    """Who was in a process that ends leaves at once, not when the process is missed."""

    async def main() -> None:
        async with place.rooms(2, interval=100 * TIMEOUT) as rooms, place.process(interval=100 * TIMEOUT) as third:
            await third.tell("enter", "ann", "room")
            await until(lambda: users(*rooms) == [["ann"]] * 2)
            assert [room.presence.processes for room in rooms] == [3, 3]
            await third.end()
            await until(lambda: [room.presence.processes for room in rooms] == [2, 2])
            await until(lambda: users(*rooms) == [[], []])
            await until(lambda: [len(room.told) for room in rooms] == [4, 4])

    run(main)


def test_process_is_killed(place: Place) -> None:
    """Who was in a process that is killed leaves when it is missed; each join and each leave is told once."""

    async def main() -> None:
        async with place.rooms(1) as [room], place.process() as second, place.process() as third:
            await second.tell("enter", "ann", "room")
            await third.tell("enter", "bob", "room")
            await third.tell("enter", 7, "room")
            wanted = {"users": [7, "ann", "bob"], "count": 3, "processes": 3, "complete": True, "malformed": 0}
            for process in (second, third):
                await process.until(**wanted, leads=False)
            await until(lambda: room.state() == {**wanted, "leads": True, "told": room.told})
            await third.kill()
            await until(lambda: room.presence.processes == 2)
            assert room.presence.count("room") == 1
            await until(lambda: users(room) == [["ann"]])
            await second.until(users=["ann"], processes=2)
            state = await second.tell("state")
            for told in (room.told, state["told"]):
                assert sorted(map(str, told)) == sorted(
                    [str(["join", user, name]) for user in ("ann", "bob", 7) for name in (None, "room")]
                    + [str(["leave", user, name]) for user in ("bob", 7) for name in (None, "room")]
                )

    run(main)


def test_suspended_process(place: Place) -> None:
    """A process that is suspended leaves, and is back when it goes on; itself, it does not see the others leave."""

    async def main() -> None:
        async with place.rooms(1) as [room], place.process() as second:
            room.enter("bob", "room")
            await second.tell("enter", "ann", "room")
            await second.until(users=["ann", "bob"])
            await until(lambda: users(room) == [["ann", "bob"]])
            second.freeze()
            await until(lambda: users(room) == [["bob"]] and room.presence.processes == 1)
            second.thaw()
            await until(lambda: users(room) == [["ann", "bob"]])
            state = await second.until(users=["ann", "bob"], complete=True, leads=False)
            assert [one for one in state["told"] if one[0] == "leave"] == []
            assert [one for one in room.told if one[1:] == ["ann", "room"]] == [
                ["join", "ann", "room"],
                ["leave", "ann", "room"],
                ["join", "ann", "room"],
            ]
            await until(lambda: room.presence.leads)

    run(main)


def test_user_moves_within_the_grace(place: Place) -> None:
    """A user whose connection is made anew in another process has neither left nor come."""

    async def main() -> None:
        async with place.rooms(3, grace=TIMEOUT) as rooms:
            rooms[0].enter("ann", "room")
            await until(lambda: users(*rooms) == [["ann"]] * 3)
            rooms[0].leave("ann")
            await until(lambda: [room.presence.count("room") for room in rooms] == [0, 0, 0])
            assert users(*rooms) == [["ann"]] * 3
            rooms[2].enter("ann", "room")
            await until(lambda: [room.presence.count("room") for room in rooms] == [1, 1, 1])
            assert [room.told for room in rooms] == [ROOM] * 3

    run(main)


def test_without_grace(place: Place) -> None:
    """Without a grace, a user leaves with the last connection."""

    async def main() -> None:
        async with place.rooms(2, grace=0) as rooms:
            for room in rooms:
                room.enter("ann", "room")
            await until(lambda: [room.presence.count("room") for room in rooms] == [2, 2])
            rooms[0].leave("ann")
            await until(lambda: rooms[1].presence.count("room") == 1)
            rooms[1].leave("ann")
            await until(lambda: users(*rooms) == [[], []])
            await asyncio.sleep(0)
            for room in rooms:
                assert room.told[:2] == ROOM
                assert sorted(room.told[2:], key=str) == [["leave", "ann", "room"], ["leave", "ann", None]]

    run(main)


def test_hub_that_has_users_already(place: Place) -> None:
    """Users and connections from before the relay was started are counted, and nothing is after it has stopped."""

    async def main() -> None:
        async with place.rooms(1) as [first]:
            second = Room(place.kind, place.broker.url, place.options, TIMES)
            second.enter("ann", "room", "a.*")
            anonymous = Member()
            second.hub.subscribe(anonymous.connection, "room")
            async with second.relay:
                await until(lambda: first.presence.count("room") == 2)
                assert (users(first, second), first.presence.users("a.b")) == ([["ann"]] * 2, ["ann"])
                assert (first.presence.has("ann", "a.b"), first.presence.has("ann", "b")) == (True, False)
                assert (first.presence.has("ann"), first.presence.has("bob")) == (True, False)
                assert first.presence.count("a.c") == first.presence.count("a.*") == second.presence.count("a.c") == 1
                assert (first.hub.users(), first.hub.count("room")) == ([], 0)
                second.hub.unsubscribe(anonymous.connection)
                await until(lambda: first.presence.count("room") == 1)
            assert (second.presence.users(), second.presence.processes) == ([], 0)
            assert [one[0] for one in second.told] == ["join"] * 3
            await until(lambda: len(first.told) == 6)
            assert first.presence.users() == []

    run(main)


def test_everything_is_told_to_a_late_process(place: Place) -> None:
    """A process that is started later learns of many users, in several parts, while messages go on."""

    async def main() -> None:
        async with place.rooms(1) as [first]:
            for number in range(3000):
                first.enter(number, "room")
            await asyncio.sleep(INTERVAL)
            async with place.rooms(1) as [second]:
                await until(lambda: second.presence.count("room") == 3000)
                await until(lambda: second.presence.complete)
                assert len(second.presence.users("room")) == 3000
                first.leave(5)
                await until(lambda: second.presence.count("room") == 2999)

    run(main)


def test_no_callback_after_the_end(place: Place) -> None:
    """Callbacks that have not been called when the relay is stopped are not called any more."""

    async def main() -> None:
        async with place.rooms(1) as [room]:
            room.enter("ann", "room")
            await until(lambda: room.presence.has("ann"))
            room.enter("bob", "room")
            await asyncio.sleep(0)
            told = len(room.told)
            assert room.presence.has("bob")
            assert ["join", "bob", None] not in room.told
        assert len(room.told) == told

    run(main)


# ---- Brokers


def test_broker_is_restarted(own: Place) -> None:
    """Nobody leaves because the broker is away, however long; who left meanwhile leaves afterwards."""

    async def main() -> None:
        async with own.rooms(2) as rooms:
            rooms[0].enter("ann", "room")
            rooms[1].enter("bob", "room")
            rooms[1].enter("cid", "room")
            await until(lambda: users(*rooms) == [["ann", "bob", "cid"]] * 2)
            await until(lambda: rooms[0].presence.leads)
            own.broker.kill()
            await asyncio.sleep(INTERVAL * (MISSES + 3))
            rooms[1].leave("cid")
            assert users(rooms[0]) == [["ann", "bob", "cid"]]
            assert not rooms[0].presence.leads
            own.broker.start()
            await until(lambda: users(*rooms) == [["ann", "bob"]] * 2)
            await until(lambda: [room.presence.leads for room in rooms] == [True, False])
            for room in rooms:
                assert sorted({one[1] for one in room.told if one[0] == "leave"}) == ["cid"]
                assert len(room.told) == 8

    run(main)


def test_lost_connection(own: Place) -> None:
    """A connection that is lost for a short time, with what was on its way, costs nobody anything."""

    async def main() -> None:
        async with proxy_to(own.broker) as proxy, own.rooms(1) as [first], own.rooms(1, url=proxy.url) as [second]:
            first.enter("ann", "room")
            second.enter("bob", "room")
            await until(lambda: users(first, second) == [["ann", "bob"]] * 2)
            for number in range(3):
                proxy.cut()
                first.enter(number, "room")
                second.enter(10 + number, "room")
                await until(lambda: users(first)[0] == users(second)[0] and len(users(first)[0]) == 2 * number + 4)  # noqa: B023
            assert [one for room in (first, second) for one in room.told if one[0] == "leave"] == []

    run(main)


@pytest.mark.parametrize("shared", ["recover"], indirect=True)
def test_own_command_on_its_way(place: Place) -> None:
    """A process hears itself while it waits for a command of its own to come back."""

    async def main() -> None:
        async with place.rooms(1) as [room]:
            inbound: Any = room.relay._inbound
            returning = inbound.returning(0)  # it does not come
            try:
                await until(lambda: room.presence.leads)
            finally:
                returning.cancel()

    run(main)


# ---- Trust


def test_malformed_and_foreign_notices(place: Place) -> None:
    """What is no notice is counted, and what is signed with another secret or comes by another channel is rejected."""
    secret = b"0123456789abcdef"
    place.options["secret"] = secret
    keyring = Keyring(secret, place.options["prefix"])

    def forged(data: bytes) -> bytes:
        return wire.join(NOTICE, 99, 1, 1, b"{}", (data,), keyring)

    async def main() -> None:
        async with place.rooms(1) as [room]:
            relay: Any = room.relay
            channel = relay._broker.channel(None)
            for data in (
                b"",
                b"\0" * 9 + b"{}",
                b"\0" * 9 + b"[[1]]",
                b"\0" * 9 + b"[" * 60_000,
                b"\x10" + b"\0" * 8 + b"7",
            ):
                relay._inbound.receive(forged(data), channel)
            assert (relay.stats().malformed, relay.stats().rejected, room.presence.processes) == (5, 0, 1)
            good = b"\0" * 9 + b'[["room",null,["eve"],[]]]'
            relay._inbound.receive(wire.join(NOTICE, 99, 1, 1, b"{}", (good,), None), channel)
            relay._inbound.receive(
                wire.join(NOTICE, 99, 1, 1, b"{}", (good,), Keyring(b"another secret!!", "x")), channel
            )
            assert (relay.stats().rejected, room.presence.processes) == (2, 1)
            relay._inbound.receive(forged(good), channel)
            assert (room.presence.processes, users(room)) == (2, [["eve"]])
            stats = relay.stats()
            assert (stats.received, stats.gaps, stats.published, stats.malformed) == (0, 0, 0, 5)

    run(main)


def test_relay_without_presence_ignores_notices(place: Place) -> None:
    """A relay without presence takes no notice for malformed, and is no process of presence."""

    async def main() -> None:
        hub = Hub(history=10)
        async with relay_of(place.kind, hub, place.broker.url, **place.options) as plain, place.rooms(2) as rooms:
            rooms[0].enter("ann", "room")
            await until(lambda: users(*rooms) == [["ann"]] * 2)
            assert (plain.stats().malformed, plain.stats().rejected) == (0, 0)
            assert rooms[0].presence.processes == 2

    run(main)


def test_envelope_of_a_notice() -> None:
    """A notice is packed with its numbers, and comes out the same; it has no address."""
    data = wire.join(NOTICE, 7, 3, 2, b"{}", (b"abc",), None)
    assert wire.unpack(data) == Envelope(NOTICE, 7, 3, 2, notice=b"abc")
    with pytest.raises(ValueError, match="address"):
        wire.unpack(wire.join(NOTICE, 7, 3, 2, b'{"t":"a"}', (b"abc",), None))
