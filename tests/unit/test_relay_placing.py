"""Placing packets in a stream of NATS JetStream, with a list as the judge: answers are lost, and packets come late."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("nats")

from wsfast.relay import nats_placing, nats_turns
from wsfast.relay.jetstream import Record
from wsfast.relay.nats_placing import Known, Placing
from wsfast.relay.nats_turns import Turns
from wsfast.relay.ordering import PLACE
from wsfast.relay.wire import MESSAGE, Address, Envelope, Item, pack, unpack

TOPIC = "t"
ADDRESS: Address = "topic", TOPIC


class Server:
    """A stream with one topic."""

    def __init__(self, draw: Any, kept: int) -> None:
        self.draw = draw
        self.kept = kept
        self.records: list[Record] = []
        self.all: list[Record] = []
        self.late: list[tuple[bytes, bytes, int, int]] = []
        self.sequence = 0
        self.calm = False
        self.bus = Bus()

    def store(self, place: bytes, packet: bytes, messages: int, after: int) -> dict[str, Any]:
        if after != (self.records[-1].sequence if self.records else 0):
            return {"error": {"err_code": 10071}}
        self.sequence += self.draw(st.integers(1, 3))  # others publish to other topics
        found = PLACE.fullmatch(place)
        assert found is not None
        record = Record(self.sequence, 0.0, found[1].decode(), int(found[2]), messages, packet)
        self.records.append(record)
        self.all.append(record)
        del self.records[: -self.kept]
        return {"seq": self.sequence}

    def lose(self) -> None:
        """Lose the last records, or all."""
        self.records = self.records[: self.draw(st.integers(0, len(self.records)))]

    # ---- What a connection does

    async def verify(self) -> None:
        """Do nothing: it is the same stream."""

    async def add(self, topic: str, *packet: Any) -> dict[str, Any]:
        await asyncio.sleep(0)
        fate = "stored" if self.calm else self.draw(st.sampled_from(["stored", "stored", "unheard", "lost", "late"]))
        if fate == "late":
            self.late.append(packet)
        answer = self.store(*packet) if fate in ("stored", "unheard") else {}
        await asyncio.sleep(0)
        if fate != "stored":
            raise ConnectionResetError
        return answer

    async def last(self, topic: str) -> Record | None:
        await asyncio.sleep(0)
        if self.late and self.draw(st.booleans()):
            self.store(*self.late.pop(self.draw(st.integers(0, len(self.late) - 1))))
        return self.records[-1] if self.records else None

    async def next(self, topic: str, sequence: int) -> Record | None:
        await asyncio.sleep(0)
        return next((record for record in self.records if record.sequence >= sequence), None)


class Bus:
    """Where publishers ask each other to pause."""

    def __init__(self) -> None:
        self.callbacks: list[Any] = []
        self.asked: list[bytes] = []

    async def send(self, data: bytes) -> None:
        """Give something to all that are subscribed."""
        self.asked.append(data)
        for callback in self.callbacks:
            await callback(SimpleNamespace(data=data))


class Client:
    """A client of the server by which publishers hear each other."""

    max_payload = 1 << 20

    def __init__(self, bus: Bus) -> None:
        self.bus = bus

    async def subscribe(self, subject: str, cb: Any) -> None:
        self.bus.callbacks.append(cb)

    async def publish(self, subject: str, data: bytes) -> None:
        await self.bus.send(data)


class Publisher:
    """A process that publishes, as `OrderedOutbound` does: what was tried is tried again, one message at a time."""

    def __init__(self, number: int, server: Server) -> None:
        self.number = number
        self.server = server
        self.refused: list[int] = []
        self.known = Known()

    def placing(self) -> Placing:
        """Connect."""
        self.known.ask_again()
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        turns = Turns(Client(self.server.bus), "turns")
        return Placing(Client(self.server.bus), lost, cast(Any, self.server), str, self.known, turns, 1.0, single=False)

    async def publish(self, sizes: list[int]) -> int:
        """Publish packets of so many messages, and return how many messages these are."""
        first = 1
        for size in sizes:
            waiting = [list(range(first, first + size))]
            first += size
            while waiting:
                packets = [(ADDRESS, self.packet(numbers), len(numbers)) for numbers in waiting]
                try:
                    refused = await self.placing().place(packets)
                except ConnectionResetError:
                    waiting = [[number] for numbers in waiting for number in numbers]
                    continue
                self.refused += [number for index in refused for number in waiting[index]]
                waiting = []
        return first - 1

    def packet(self, numbers: list[int]) -> bytes:
        items = tuple(Item(b"%d|%d" % (self.number, number)) for number in numbers)
        return pack(Envelope(MESSAGE, self.number, 1, numbers[0], ADDRESS, items))


class Near:
    """A connection with a latency, to a server where everything works."""

    def __init__(self, server: Server, seconds: float) -> None:
        self.server = server
        self.seconds = seconds

    async def verify(self) -> None:
        """Do nothing: it is the same stream."""

    async def add(self, topic: str, *packet: Any) -> dict[str, Any]:
        await asyncio.sleep(self.seconds)
        answer = self.server.store(*packet)
        await asyncio.sleep(self.seconds)
        return answer

    async def last(self, topic: str) -> Record | None:
        await asyncio.sleep(self.seconds)
        last = self.server.records[-1] if self.server.records else None
        await asyncio.sleep(self.seconds)
        return last


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody wait before another attempt."""
    monkeypatch.setattr(nats_placing, "FIRST_DELAY", 0.0)
    monkeypatch.setattr(nats_placing, "LAST_DELAY", 0.0)


SIZES = st.lists(st.integers(1, 4), max_size=6)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.lists(SIZES, min_size=1, max_size=3), st.sampled_from([2, 1000]))
def test_each_message_once(data: st.DataObject, sizes: list[list[int]], kept: int) -> None:
    """Each message is stored once and in the order of its publisher, or refused; offsets have no hole."""

    async def main() -> None:
        server = Server(data.draw, kept)
        publishers = [Publisher(number, server) for number in range(1, len(sizes) + 1)]
        counts = await asyncio.gather(*(one.publish(of) for one, of in zip(publishers, sizes, strict=True)))
        server.calm = True
        expected = 1
        assert len({record.epoch for record in server.all}) <= 1
        stored: dict[int, list[int]] = {one.number: [] for one in publishers}
        for record in server.all:
            assert record.first == expected
            expected += record.messages
            envelope = unpack(record.packet)
            assert len(envelope.items) == record.messages
            stored[envelope.publisher] += range(envelope.number, envelope.number + record.messages)
        for publisher, count in zip(publishers, counts, strict=True):
            numbers = stored[publisher.number]
            assert numbers == sorted(set(numbers))
            assert set(numbers) | set(publisher.refused) == set(range(1, count + 1))
            if kept == 1000:
                assert numbers == list(range(1, count + 1))
                assert not publisher.refused

    asyncio.run(main())


@pytest.mark.parametrize("doubt", [False, True])
def test_numbers_that_are_given_twice(doubt: bool) -> None:
    """If the server has lost its last records and numbered others like them, the publisher follows these."""

    class Losing(Near):
        async def add(self, topic: str, *packet: Any) -> dict[str, Any]:
            raise ConnectionResetError

    async def main() -> None:
        server = Server(lambda strategy: 1, 100)
        server.calm = True
        one, two = Publisher(1, server), Publisher(2, server)
        assert await one.publish([1, 3]) == 4
        if doubt:
            lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            losing = cast(Any, Losing(server, 0))
            turns = Turns(Client(server.bus), "turns")
            placing = Placing(Client(server.bus), lost, losing, str, one.known, turns, 1.0, single=False)
            with pytest.raises(ConnectionResetError):
                await placing.place([(ADDRESS, one.packet([5]), 1)])
        del server.records[1:]
        server.sequence = 1
        assert await two.publish([1]) == 1
        assert not await one.placing().place([(ADDRESS, one.packet([5]), 1)])
        first, second, third = server.records
        assert (second.last, third.sequence) == (2, 3)
        assert (third.epoch, third.first) != (second.epoch, 5)
        assert third.epoch != first.epoch

    asyncio.run(main())


def test_only_what_is_in_doubt_is_given_up() -> None:
    """If nobody can tell any more whether a packet was stored, those before it are still known to be."""

    class Losing(Near):
        async def add(self, topic: str, *packet: Any) -> dict[str, Any]:
            answer = await super().add(topic, *packet)
            if len(self.server.all) == 3:
                raise ConnectionResetError
            return answer

    async def main() -> None:
        server = Server(lambda strategy: 1, 2)
        one, two = Publisher(1, server), Publisher(2, server)
        packets = [(ADDRESS, one.packet([number]), 1) for number in range(1, 5)]
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        arguments = str, one.known, Turns(Client(server.bus), "turns"), 1.0
        with pytest.raises(ConnectionResetError):
            await Placing(Client(server.bus), lost, cast(Any, Losing(server, 0)), *arguments, single=False).place(
                packets
            )
        server.calm = True
        for number in range(1, 4):
            assert not await two.placing().place([(ADDRESS, two.packet([number]), 1)])
        for _ in range(2):
            assert [*await one.placing().place(packets)] == [2]

    asyncio.run(main())


def test_what_is_unknown_stays_unknown() -> None:
    """A message that may not be stored is not taken for stored because later ones are, or are unknown as well."""
    publisher = Publisher(1, Server(lambda strategy: 1, 2))
    first, second, third = (nats_placing._Own.of(publisher.packet([number]), 1) for number in (1, 2, 3))
    topic = Known().of(TOPIC)
    topic.give_up(first)
    topic.follow(5, second, 1)
    topic.give_up(third)
    assert [topic.is_unknown(own) for own in (first, second, third)] == [True, False, True]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.lists(st.booleans(), max_size=8))
def test_lost_data(data: st.DataObject, losses: list[bool]) -> None:
    """If the stream has lost what a publisher knew of, the topic begins a new epoch: no place is given twice."""

    async def main() -> None:
        server = Server(data.draw, 1000)
        server.calm = True
        publisher = Publisher(1, server)
        for index, loss in enumerate(losses):
            if loss:
                server.lose()
            known = publisher.known.of(TOPIC)
            before = known.epoch, known.sequence
            last = server.records[-1].sequence if server.records else 0
            await publisher.placing().place([(ADDRESS, publisher.packet([index + 1]), 1)])
            assert server.all[-1].messages == 1
            assert (server.all[-1].epoch == before[0]) == (before[1] == last > 0)
        places = [(record.epoch, record.first) for record in server.all]
        assert len(places) == len(set(places)) == len(losses)

    asyncio.run(main())


def test_who_is_far_away_gets_a_turn() -> None:
    """A publisher to which the server is near, and that never stops, leaves room for one to which it is far."""

    async def placing(publisher: Publisher, seconds: float) -> Placing:
        server = publisher.server
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        turns = Turns(Client(server.bus), "turns")
        await turns.begin()
        near = cast(Any, Near(server, seconds))
        return Placing(Client(server.bus), lost, near, str, publisher.known, turns, 1.0, single=False)

    async def publish(publisher: Publisher, seconds: float, count: int) -> None:
        connection = await placing(publisher, seconds)
        for number in range(1, count + 1):
            assert not await connection.place([(ADDRESS, publisher.packet([number]), 1)])

    async def main() -> None:
        server = Server(lambda strategy: 1, 10**6)
        near = asyncio.create_task(publish(Publisher(1, server), 0.0005, 10**6))
        async with asyncio.timeout(15):
            await publish(Publisher(2, server), 0.004, 10)
        assert not near.done()
        near.cancel()

    asyncio.run(main())


def test_what_others_ask_for() -> None:
    """Nobody pauses for its own request, twice for one request, or for what no publisher asks."""

    async def main() -> None:
        bus = Bus()
        one, two = Turns(Client(bus), "turns"), Turns(Client(bus), "turns")
        await one.begin()
        await two.begin()
        await one.ask(TOPIC, 1000.0)
        mine, _, rest = bus.asked[0].partition(b" ")
        assert rest == b"250000 t"
        assert not one._pauses
        assert [*two._pauses] == [TOPIC]
        for data in (b"", b"garbage", mine, mine + b" 1 ", mine + b" -1 t", mine + b" 1 " + 5000 * b"x"):
            await bus.send(data)
        await bus.send(b"%s 1 %s" % (16 * b"f", TOPIC.encode()))
        assert [*one._pauses] == [*two._pauses] == [TOPIC]
        for pausing in (one, two):
            await pausing.pause(TOPIC)
            assert not pausing._pauses
        for number in range(nats_turns.TOPICS + 10):
            await one.ask(f"t.{number}", 0.1)
        assert len(two._pauses) == nats_turns.TOPICS

    asyncio.run(main())
