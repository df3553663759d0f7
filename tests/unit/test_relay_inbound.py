"""What a relay makes of messages of other processes, and what it tells them, without a broker."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Callable, Coroutine, Sequence
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsfast
from helpers.brokers import Nowhere
from wsfast.relay import Gap, Relay, inbound
from wsfast.relay.outbound import BATCH, Outbound
from wsfast.relay.packing import PACKET_BYTES
from wsfast.relay.wire import GOODBYE, MESSAGE, MOST_ITEMS, POSITION, Address, Envelope, Item, Keyring, pack, unpack


class Sink:
    """A connection of one's own that takes everything."""

    def write(self, data: bytes) -> None:
        pass

    def writable(self) -> bool:
        return True

    def close(self, code: int, reason: str) -> None:
        pass


class End:
    """A hub with a relay, to which messages come."""

    def __init__(self) -> None:
        self.hub = wsfast.Hub()
        self.gaps: list[Gap] = []
        slow = wsfast.DropOldest()
        self.relay = Relay(self.hub, Nowhere(), slow=slow, on_gap=self.gaps.append, timeout=0.01)
        self.connections = [wsfast.attach(Sink()) for _ in range(2)]

    def subscribe(self, *topics: str, which: int = 0) -> wsfast.HubSubscription:
        return self.hub.subscribe(self.connections[which], *topics)

    def receive(self, topic: str, number: int, *, kind: int = MESSAGE, epoch: int = 1) -> None:
        address: Address | None = None if kind == GOODBYE else ("topic", topic)
        data = pack(Envelope(kind, 1, epoch, number, address, () if kind else (Item(b"x"),)))
        self.relay._inbound.receive(data, repr(address))

    @property
    def counts(self) -> tuple[int, int, int]:
        """What was received, received again, and lost."""
        stats = self.relay.stats()
        return stats.received, stats.duplicates, stats.lost


def run(act: Callable[[End], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        end = End()
        async with end.relay:
            await act(end)

    asyncio.run(main())


def test_gaps_and_duplicates() -> None:
    """Each message is delivered once; what is missing is counted, also if a position tells it."""

    async def act(end: End) -> None:
        end.subscribe("t")
        for number in (3, 4, 4, 2, 7):
            end.receive("t", number)
        assert end.counts == (3, 2, 2)
        end.receive("t", 9, kind=POSITION)
        assert end.counts == (3, 2, 4)
        end.receive("t", 5, epoch=2)  # it has begun anew
        end.receive("t", 0, kind=GOODBYE)
        end.receive("t", 1, epoch=1)
        assert end.counts == (5, 2, 4)
        end.receive("elsewhere", 1)
        assert end.counts == (5, 2, 4)
        await asyncio.sleep(0)
        assert [(gap.kind, gap.name, gap.messages) for gap in end.gaps] == [("topic", "t", 2), ("topic", "t", 2)]

    run(act)


def test_undelivered_messages_are_missing() -> None:
    """What could not be delivered here counts as missing when the next message comes."""

    async def act(end: End) -> None:
        end.subscribe("t")
        end.receive("t", 1)
        deliver, end.hub.deliver = end.hub.deliver, None  # type: ignore[assignment,method-assign]
        try:
            end.receive("t", 2)
        except TypeError:
            end.hub.deliver = deliver  # type: ignore[method-assign]
        end.receive("t", 3)
        assert end.counts == (2, 0, 1)

    run(act)


def test_positions_end_with_interest() -> None:
    """What comes after a time without anybody follows upon nothing, whether of a topic, a user or a pattern."""

    async def act(end: End) -> None:
        for name in ("t.a", "t.*", ">"):
            subscription = end.subscribe(name)
            end.receive("t.a", 1)
            subscription.unsubscribe()
            end.receive("t.a", 2)  # nobody is here
            with end.subscribe(name):
                end.receive("t.a", 9)  # perhaps 3 to 8 were not received, but nobody was to get them
                assert end.counts[1:] == (0, 0)
                end.receive("t.a", 9)
                assert end.counts[1:] == (1, 0)
            end.relay._inbound.duplicates = 0
        assert end.counts == (6, 0, 0)

    run(act)


def test_positions_last_as_long_as_anybody_is_there() -> None:
    """While one subscription or another matches, nothing is delivered twice, and what is missing is known."""

    async def act(end: End) -> None:
        number = 1
        end.receive("t.a", number)
        current = end.subscribe("t.a")
        end.receive("t.a", number)
        for index, name in enumerate(("t.*", "*.a", "t.a", ">", "t.>", "t.a", "t.*")):
            following = end.subscribe(name, which=(index + 1) % 2)
            current.unsubscribe()
            current = following
            end.receive("t.a", number)
            assert end.counts == (number, number, 0), name
            number += 1
            end.receive("t.a", number)
        # Several in a row without any message.
        for index, name in enumerate((">", "t.*", "t.a", "*.a", "*.*", "t.a")):
            following = end.subscribe(name, which=index % 2)
            current.unsubscribe()
            current = following
        end.receive("t.a", number + 3)
        assert end.counts == (number + 1, number - 1, 2)
        # One that has been there all the time, and others that come and go.
        with end.subscribe("t.>", which=0):
            end.receive("t.a", number + 4)
            for _ in range(inbound.PAST_PATTERNS + 1):
                end.subscribe("*.a", which=1).unsubscribe()
            end.receive("t.a", number + 4)
            assert end.counts == (number + 2, number, 2)

    run(act)


def test_leaving_a_pattern_costs_no_look_at_addresses() -> None:
    """A pattern comes and goes as fast after many messages as after few, though another one matches them all."""

    def lines(count: int) -> int:
        counted = 0

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal counted
            if "/wsfast/" not in frame.f_code.co_filename:
                return None  # asyncio's lines depend on what else it has to do
            counted += event == "line"
            return trace

        async def act(end: End) -> None:
            end.subscribe("orders.>")
            for number in range(count):
                end.receive(f"orders.{number}", 1)
            before = sys.gettrace()
            sys.settrace(trace)
            try:
                end.subscribe("orders.*", which=1).unsubscribe()
            finally:
                sys.settrace(before)

        run(act)
        return counted

    assert lines(1000) == lines(10) > 0


def test_positions_do_not_run_ahead_of_messages() -> None:
    """What a finalizer publishes while positions are collected is not told as sent before it is."""

    class Sending:
        largest = 1 << 20

        def __init__(self) -> None:
            self.told: dict[Address | None, int] = {}

        async def publish(self, packets: Sequence[tuple[Address | None, bytes]]) -> dict[int, Exception]:
            for address, data in packets:
                envelope = unpack(data)
                assert envelope.kind == MESSAGE or envelope.number <= self.told.get(address, 0)
                self.told[address] = envelope.number + max(0, len(envelope.items) - 1)
            return {}

        async def close(self) -> None:
            pass

    async def interrupted(number: int) -> bool:
        """Publish when it comes to this line; return whether there is one."""
        outbound, sending, lines = Outbound(1, Nowhere(), wsfast.DropOldest(), 1, print), Sending(), 0

        def publish(*topics: str) -> None:
            for topic in topics:
                outbound.forward("topic", (topic,), wsfast.PreparedMessage("x"), None, ())

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal lines
            if event == "line" and frame.f_code.co_name in ("_publish_control", "_publish_positions"):
                lines += 1
                if lines == number:
                    publish("b", "new")
            return trace

        publish("a", "b", "c")
        await outbound._publish(sending)
        outbound.announce()
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            await outbound._publish_control(sending)
        finally:
            sys.settrace(before)
        if outbound.queued:
            await outbound._publish(sending)
        assert sending.told["topic", "b"] == 1 + (lines >= number)
        return lines >= number

    async def main() -> None:
        number = 1
        while await interrupted(number):
            number += 1
        assert number > 10

    asyncio.run(main())


def test_a_slow_network_is_learnt_once() -> None:
    """Where large batches take too long, most that are sent arrive, rather than one of many ever smaller ones."""

    class Sending:
        largest = 1 << 20

        def __init__(self) -> None:
            self.took = self.failed = 0

        async def publish(self, packets: Sequence[tuple[Address | None, bytes]]) -> dict[int, Exception]:
            if sum(len(unpack(data).items) for _, data in packets) > 10:
                self.failed += 1
                raise TimeoutError
            self.took += 1
            return {}

        async def close(self) -> None:
            pass

    async def main() -> None:
        outbound, sending = Outbound(1, Nowhere(), wsfast.DropOldest(), 1, print), Sending()
        for _ in range(1000):
            outbound.forward("topic", ("t",), wsfast.PreparedMessage("x"), None, ())
        while outbound.queued:
            try:
                await outbound._publish(sending)
            except TimeoutError:
                outbound._shorten_batch()
        assert sending.failed < sending.took / 2
        for _ in range(50):
            outbound.forward("topic", ("t",), wsfast.PreparedMessage("x"), None, ())
            await outbound._publish(sending)
        assert outbound._most == BATCH

    asyncio.run(main())


def test_packets_count_as_their_messages() -> None:
    """Packets of several messages are received as if each message had come alone, whatever was lost or sent again."""

    @given(st.lists(st.tuples(st.sampled_from([1, 1, 1, 2]), st.integers(1, 40), st.integers(1, 9)), max_size=15))
    def check(packets: list[tuple[int, int, int]]) -> None:
        async def main() -> None:
            packed, single = End(), End()
            async with packed.relay, single.relay:
                streams = [end.hub.stream("t") for end in (packed, single)]
                for epoch, first, count in packets:
                    items = [Item(b"%d.%d" % (epoch, number)) for number in range(first, first + count)]
                    address: Address = ("topic", "t")
                    data = pack(Envelope(MESSAGE, 1, epoch, first, address, tuple(items)))
                    packed.relay._inbound.receive(data, repr(address))
                    for number, item in enumerate(items, first):
                        data = pack(Envelope(MESSAGE, 1, epoch, number, address, (item,)))
                        single.relay._inbound.receive(data, repr(address))
                assert packed.counts == single.counts
                assert [one.data for one in streams[0]._messages] == [one.data for one in streams[1]._messages]

        asyncio.run(main())

    check()


def test_interrupted_packet() -> None:
    """If one message of a packet cannot be delivered, those before it count, and it and the others are missing."""

    async def act(end: End) -> None:
        end.subscribe("t")
        end.receive("t", 1)
        deliver = end.hub.deliver

        def fail_at_the_third(name: str, message: wsfast.PreparedMessage, *arguments: Any, **options: Any) -> None:
            if message.data == b"4":
                raise ZeroDivisionError
            deliver(name, message, *arguments, **options)

        end.hub.deliver = fail_at_the_third  # type: ignore[assignment,method-assign]
        address: Address = ("topic", "t")
        data = pack(Envelope(MESSAGE, 1, 1, 2, address, tuple(Item(b"%d" % number) for number in range(2, 7))))
        with pytest.raises(ZeroDivisionError):
            end.relay._inbound.receive(data, repr(address))
        assert end.counts == (3, 0, 0)
        end.receive("t", 7)
        assert end.counts == (4, 0, 3)

    run(act)


def test_packets_are_consecutive() -> None:
    """Each packet has messages of one topic with consecutive numbers, within the bounds, and nothing is left out."""

    async def main() -> None:
        slow = wsfast.DropOldest(max_messages=3000)
        outbound = Outbound(1, Nowhere(), slow, 1, print)
        for number in range(4000):
            size = PACKET_BYTES + 1 if number == 3990 else number % 200
            message = wsfast.PreparedMessage(b"%d " % number + bytes(size))
            outbound.forward("topic", ("a", "b") if number % 1000 == 999 else ("ab"[number % 2],), message, None, ())
        outbound._slow = wsfast.DropNewest(max_messages=3000)
        for _ in range(10):
            outbound.forward("topic", ("a",), wsfast.PreparedMessage("dropped"), None, ())
        outbound._slow = wsfast.DropOldest()
        outbound.forward("topic", ("a",), wsfast.PreparedMessage("last"), None, ())
        packets = outbound._packets(outbound._queue, 1 << 20)
        found: dict[Any, list[int]] = {}
        for packet in packets:
            envelope = unpack(packet.data)
            assert len(envelope.items) == packet.messages <= MOST_ITEMS
            assert len(envelope.items) == 1 or len(packet.data) <= PACKET_BYTES + 100
            first = envelope.number
            found.setdefault(envelope.address, []).extend(range(first, first + len(envelope.items)))
        sent = {name: outbound._positions["topic", name].number for name in "ab"}
        total = sum(map(len, found.values()))
        assert total + outbound.dropped == outbound.published == sum(sent.values())
        for (_, name), numbers in found.items():
            assert numbers[-1] == sent[name]
            assert numbers == sorted(set(numbers))
            gaps = [after - before for before, after in itertools.pairwise(numbers) if after != before + 1]
            assert gaps == ([11] if name == "a" else [])

    asyncio.run(main())


def test_packets_fit_the_broker() -> None:
    """No packet of several messages exceeds what the broker takes; a single one that does so is lost, and told."""

    class Sending:
        largest = 200

        def __init__(self) -> None:
            self.took: list[int] = []
            self.told: list[int] = []

        async def publish(self, packets: Sequence[tuple[Address | None, bytes]]) -> dict[int, Exception]:
            too_large = [index for index, (_, data) in enumerate(packets) if len(data) > self.largest]
            refused: dict[int, Exception] = dict.fromkeys(too_large, ValueError("too large"))
            for index, (_, data) in enumerate(packets):
                if unpack(data, keyring).kind == POSITION:
                    self.told.append(unpack(data, keyring).number)
                elif index not in refused:
                    self.took += [int(item.payload.split()[0]) for item in unpack(data, keyring).items]
                else:
                    assert len(unpack(data, keyring).items) == 1
            return refused

        async def close(self) -> None:
            pass

    keyring = Keyring(bytes(16), "p")

    async def main() -> None:
        outbound, sending = Outbound(1, Nowhere(), wsfast.DropOldest(), 1, print, keyring), Sending()
        for number in range(40):
            message = wsfast.PreparedMessage(b"%d " % number + bytes(200 if number == 5 else number))
            outbound.forward("topic", ("t",), message, None, ())
        await outbound._publish(sending)
        assert sending.took == [number for number in range(40) if number != 5]
        assert (outbound.sent, outbound.dropped, outbound.queued) == (39, 1, 0)
        assert sending.told == [40]  # so that receivers learn what is missing

    asyncio.run(main())
