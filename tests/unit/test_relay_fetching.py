"""Fetching from a stream of NATS JetStream, with a list as the judge: guesses are wrong, and servers lag."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("nats")

from wsfast.hub import Position
from wsfast.relay import nats_placing, nats_streams
from wsfast.relay.broker import Request
from wsfast.relay.jetstream import Record
from wsfast.relay.ordering import PLACE

MESSAGES = 6
"""Messages of the history."""


class Stream:
    """A stream with one topic."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.records: list[Record] = []
        self.packets: dict[bytes, Record] = {}
        self.sequence = self.offset = self.epochs = 0
        self.epoch = ""
        self.changes = 3
        """How often something still changes while packets are fetched."""

    def store(self, messages: int = 0) -> None:
        """Store a packet in the epoch that there is, or a mark if it has no messages."""
        if not messages or not self.epoch:
            self.epochs += 1
            self.epoch, self.offset = f"{self.epochs:016x}", 0
        self.sequence += self.draw(st.sampled_from([1, 1, 2, 30]))  # others publish to other topics
        packet = f"{self.epoch}-{self.offset + 1}".encode() if messages else b""
        self.records.append(Record(self.sequence, 0.0, self.epoch, self.offset + 1, messages, packet))
        self.packets[packet] = self.records[-1]
        self.offset += messages

    def spoil(self) -> None:
        """Store what no relay has published."""
        self.sequence += 1
        self.records.append(Record(self.sequence, 0.0))
        self.epoch = ""

    def change(self, *often: str) -> None:
        """Store something, or delete the oldest record."""
        what = self.draw(st.sampled_from([*often, "mark", "spoil", "trim"]))
        if what == "packet":
            self.store(self.draw(st.integers(1, 4)))
        elif what == "mark":
            self.store()
        elif what == "spoil":
            self.spoil()
        elif len(self.records) > 1:
            del self.records[0]

    # ---- What a connection does

    ahead = 0.0

    async def add(self, topic: str, place: bytes, packet: bytes, messages: int, after: int) -> dict[str, Any]:
        assert (packet, messages) == (b"", 0)
        found = PLACE.fullmatch(place)
        assert found is not None
        if after != (self.records[-1].sequence if self.records else 0):
            return {"error": {"err_code": 10071}}
        self.store()
        self.records[-1] = self.records[-1]._replace(epoch=found[1].decode())
        self.epoch = found[1].decode()
        return {"seq": self.sequence}

    async def last(self, topic: str) -> Record | None:
        return self.records[-1] if self.records else None

    async def next(self, topic: str, sequence: int) -> Record | None:
        return next((record for record in self.records if record.sequence >= sequence), None)

    async def read(self, topic: str, sequence: int, most: int, size: int) -> tuple[list[Record], int]:
        if self.changes and self.draw(st.booleans()):  # meanwhile
            self.changes -= 1
            self.change("packet")
        known = self.records[: -self.draw(st.integers(0, 1)) or None]  # a replica may lag behind
        found = [record for record in known if record.sequence >= sequence]
        return found[:most], len(found[most:])


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have parts be small, and nobody wait before another attempt."""
    monkeypatch.setattr(nats_streams, "PART", 3)
    monkeypatch.setattr(nats_streams, "CURSORS", 1)
    monkeypatch.setattr(nats_placing, "FIRST_DELAY", 0.0)
    monkeypatch.setattr(nats_placing, "LAST_DELAY", 0.0)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(0, 20))
def test_all_after_a_position(data: st.DataObject, changes: int) -> None:
    """The parts have all that is kept after a position of the last epoch; in another one, the end of the history."""
    draw = data.draw

    position: Position | None = None

    def heard_last(topic: str) -> tuple[Position, int] | None:
        """Return a guess, which may be forged."""
        if position is None or not stream.records or draw(st.booleans()):
            return None
        return position, draw(st.sampled_from([record.sequence for record in stream.records] + [10**6]))

    async def main() -> None:
        nonlocal position
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        broker: Any = SimpleNamespace(heard_last=heard_last)
        fetching = nats_streams._Fetching(broker, None, lost, cast(Any, stream), MESSAGES)
        some = [Position(record.epoch, record.last) for record in stream.records if record.epoch]
        since = position = draw(st.sampled_from([None, Position("f" * 16, 3), *some]))
        got: list[Record] = []
        while True:
            (kept,) = await fetching.fetch([Request("t", position, sure=False)])
            if got and got[-1].epoch != kept.epoch:
                got.clear()
            for last, age, packet in kept.packets:
                got.append(stream.packets[packet])
                assert (got[-1].epoch, got[-1].last) == (kept.epoch, last)
                assert age >= 0
            if not kept.more:
                break
            position = Position(kept.epoch, got[-1].last)
        assert all(one.last + 1 == two.first for one, two in itertools.pairwise(got))
        assert not got or got[-1].last == kept.offset
        after = since.offset if since is not None and since.epoch == kept.epoch else kept.offset - MESSAGES
        wanted = [
            record
            for record in stream.records
            if record.epoch == kept.epoch and record.messages and after < record.last <= kept.offset
        ]
        assert got[len(got) - len(wanted) :] == wanted
        if since is not None and since.epoch == kept.epoch:
            assert not got or got[0].last > since.offset

    stream = Stream(draw)
    for _ in range(changes):
        stream.change(*8 * ["packet"])
    asyncio.run(main())


def test_begins_an_epoch() -> None:
    """Who has seen more than the stream has, as the stream itself has told, has it begin a new epoch."""

    async def main() -> None:
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        stream = Stream(lambda strategy: 1)
        broker: Any = SimpleNamespace(heard_last=lambda topic: None)
        fetching = nats_streams._Fetching(broker, None, lost, cast(Any, stream), MESSAGES)
        (empty,) = await fetching.fetch([Request("t", None, sure=False)])
        assert (empty.epoch, empty.offset, empty.packets, empty.more) == (stream.epoch, 0, (), False)
        stream.store(5)
        ahead = Position(stream.epoch, 6)
        (same,) = await fetching.fetch([Request("t", ahead, sure=False)])
        assert (same.epoch, same.offset, same.packets) == (ahead.epoch, 5, ())
        (new,) = await fetching.fetch([Request("t", ahead, sure=True)])
        assert (new.offset, new.packets) == (0, ())
        assert new.epoch not in ("", ahead.epoch)
        assert stream.records[-1].epoch == new.epoch

    asyncio.run(main())


def test_epoch_that_has_ended() -> None:
    """Nothing of an epoch that has ended is returned, not even if it ends meanwhile."""

    class Ending(Stream):
        async def read(self, *arguments: Any) -> tuple[list[Record], int]:
            if self.changes:
                self.changes -= 1
                self.store()
                self.store(1)
            return [record for record in self.records if record.sequence >= arguments[1]], 0

    async def main() -> None:
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        stream = Ending(lambda strategy: 1)
        for _ in range(3):
            stream.store(3)
        broker: Any = SimpleNamespace(heard_last=lambda topic: None)
        fetching = nats_streams._Fetching(broker, None, lost, cast(Any, stream), MESSAGES)
        for since in (None, Position(stream.epoch, 3)):
            stream.changes = 1
            (kept,) = await fetching.fetch([Request("t", since, sure=True)])
            assert (kept.epoch, kept.offset, kept.more) == (stream.epoch, 1, False)
            assert [packet for *_, packet in kept.packets] == [f"{stream.epoch}-1".encode()]

    asyncio.run(main())
