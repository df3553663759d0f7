"""What a relay makes of messages of other processes, and what it tells them, without a broker."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Sequence
from types import FrameType
from typing import Any

import wsfast
from helpers.brokers import Nowhere
from wsfast.relay import Gap, Relay, inbound
from wsfast.relay.outbound import BATCH, Outbound
from wsfast.relay.wire import GOODBYE, MESSAGE, POSITION, Address, Envelope, pack, unpack


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
        data = pack(Envelope(kind, 1, epoch, number, address, b"" if kind else b"x"))
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
        def __init__(self) -> None:
            self.told: dict[Address | None, int] = {}

        async def publish(self, messages: Sequence[tuple[Address | None, bytes]]) -> dict[int, Exception]:
            for address, data in messages:
                envelope = unpack(data)
                assert envelope.kind == MESSAGE or envelope.number <= self.told.get(address, 0)
                self.told[address] = envelope.number
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
        def __init__(self) -> None:
            self.took = self.failed = 0

        async def publish(self, messages: Sequence[tuple[Address | None, bytes]]) -> dict[int, Exception]:
            if len(messages) > 10:
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
