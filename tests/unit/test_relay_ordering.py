"""The order of a topic's messages, with a list as the judge: packets are lost, doubled and late, answers come late."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from wsfast.hub import Position
from wsfast.relay.ordering import Order, Placed, Stored
from wsfast.relay.wire import MESSAGE, Envelope, Item

PART = 3
"""Packets per answer."""

MOST = 4
"""Packets that may wait."""


class Broker:
    """What a broker does for one topic."""

    def __init__(self) -> None:
        self.epochs = 0
        self.begin_epoch()
        self.all: dict[tuple[str, int], bytes] = {}

    def begin_epoch(self) -> None:
        self.epochs += 1
        self.epoch = f"{self.epochs:016x}"
        self.offset = 0
        self.kept: list[Placed] = []
        self.trimmed = 0

    def publish(self, count: int) -> Placed:
        first, self.offset = self.offset + 1, self.offset + count
        items = tuple(Item(f"{self.epoch}-{number}".encode()) for number in range(first, self.offset + 1))
        placed = Placed(self.epoch, first, Envelope(MESSAGE, 1, 1, first, ("topic", "t"), items), 1)
        for number, item in enumerate(items, first):
            self.all[self.epoch, number] = item.payload
        self.kept.append(placed)
        return placed

    def trim(self, count: int) -> None:
        for placed in self.kept[:count]:
            self.trimmed = placed.last
        del self.kept[:count]

    def answer(self, since: Position | None) -> Stored:
        after = since.offset if since is not None and since.epoch == self.epoch else 0
        found = [placed for placed in self.kept if placed.last > after]
        part = found[:PART]
        resume = part[-1].last if part else self.offset
        return Stored(self.epoch, self.offset, [(placed, 0.0) for placed in part], len(found) > PART, resume)


class Machine(RuleBasedStateMachine):
    """One receiver. It is the sink of the order that is tested."""

    def __init__(self) -> None:
        super().__init__()
        self.broker = Broker()
        self.flying: list[Placed] = []
        self.asks = 0
        self.asked: tuple[int, Position | None, bool] | None = None
        self.answered: tuple[int, Stored] | None = None
        self.events: list[Any] = []
        self.history: list[tuple[str, int]] | None = None
        self.waiting = 0
        self.rejected = 0
        self.most_rejected = 0
        self.lost = False  # whether something may be missing that no packet tells

    @initialize(by_name=st.booleans())
    def subscribe(self, by_name: bool) -> None:
        self.by_name = by_name
        self.order = Order(self, awaits=by_name)
        if by_name:
            self.order.load()

    # ---- The sink

    def ask(self) -> None:
        self.asks += 1

    def has_room(self, size: int) -> bool:
        return self.waiting < MOST

    def waits(self, packets: int, size: int) -> None:
        self.waiting += packets
        assert 0 <= self.waiting <= MOST + 1

    def deliver(self, placed: Placed, start: int) -> None:
        for index, item in enumerate(placed.envelope.items[start:], start):
            offset = placed.first + index
            assert self.broker.all[placed.epoch, offset] == item.payload
            self.events.append((placed.epoch, offset))
            self.remember(placed.epoch, offset)

    def remember(self, epoch: str, offset: int) -> None:
        if self.history and self.history[-1] != (epoch, offset - 1):
            self.history = []  # as the hub does when a position does not follow
        if self.history is not None:
            self.history.append((epoch, offset))

    def starts(self, placed: Placed) -> int | None:
        return None

    def retain(self, placed: Placed, stop: int, age: float) -> None:
        assert self.history is not None
        for offset in range(placed.first, placed.first + stop):
            self.remember(placed.epoch, offset)

    def missing(self, count: int) -> None:
        self.events.append(count)

    def reject(self, placed: Placed) -> None:
        self.rejected += 1

    def begin(self, position: Position) -> None:
        self.history = []

    def end(self, position: Position) -> None:
        assert position == self.order.position
        if self.history and self.history[-1] != position:
            self.history = []

    # ---- What happens

    @rule(count=st.integers(1, 4))
    def publish(self, count: int) -> None:
        self.flying.append(self.broker.publish(count))

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        """A packet arrives, maybe before others."""
        self.order.receive(self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1))))

    @precondition(lambda self: self.flying)
    @rule()
    def arrive_in_turn(self) -> None:
        self.order.receive(self.flying.pop(0))

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def arrive_twice(self, data: st.DataObject) -> None:
        placed = data.draw(st.sampled_from(self.flying))
        self.most_rejected += placed.epoch != self.broker.epoch
        self.order.receive(placed)

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        self.lost = True

    @rule(ahead=st.integers(2, 10**15), epoch=st.booleans())
    def forge(self, ahead: int, epoch: bool) -> None:
        """Somebody publishes at a place that the broker has not given."""
        if self.order.position is not None:  # what is forged for a pattern cannot be known before anything has come
            item = Item(b"forged")
            envelope = Envelope(MESSAGE, 2, 1, 1, ("topic", "t"), (item,))
            self.most_rejected += 1
            offset = self.broker.offset + ahead
            self.order.receive(Placed(self.broker.epoch if epoch else "f" * 16, offset, envelope, 1))

    def lose_first(self) -> None:
        self.flying.pop(0)

    @rule()
    def reconnect(self) -> None:
        self.flying.clear()
        self.lost = False
        if self.order.position is not None:
            self.order.fetch()
        elif self.by_name:
            self.order.load()

    @rule()
    def subscribe_by_name(self) -> None:
        self.by_name = True
        if not self.order.loaded:
            self.order.load()

    @rule(count=st.integers(1, 3))
    def trim(self, count: int) -> None:
        self.broker.trim(count)

    @rule()
    def lose_data(self) -> None:
        self.lost = True
        self.most_rejected += len(self.flying) + self.waiting
        self.broker.begin_epoch()

    @precondition(lambda self: self.asks and self.asked is None and self.answered is None)
    @rule()
    def request(self) -> None:
        self.asks = 0
        self.asked = self.order.request()

    @precondition(lambda self: self.asked is not None)
    @rule()
    def execute(self) -> None:
        assert self.asked is not None
        serial, since, _ = self.asked
        self.asked, self.answered = None, (serial, self.broker.answer(since))

    @precondition(lambda self: self.answered is not None)
    @rule()
    def answer(self) -> None:
        assert self.answered is not None
        answered, self.answered = self.answered, None
        self.order.stored(*answered)

    def teardown(self) -> None:
        if not hasattr(self, "order"):
            return
        if self.lost:
            self.reconnect()
        while self.flying:
            self.arrive_in_turn()
        for _ in range(1000):
            if self.asked is not None:
                self.execute()
            elif self.answered is not None:
                self.answer()
            elif self.asks:
                self.request()
            else:
                break
        assert not self.order.fetching
        assert self.waiting == 0
        assert self.rejected <= self.most_rejected
        self.check_events()
        if self.order.position is not None:
            assert self.order.position == (self.broker.epoch, self.broker.offset)
        if self.by_name:
            self.check_history()

    def check_events(self) -> None:
        """Each message came once and in order, and what did not come was told exactly."""
        last: tuple[str, int] | None = None
        missing: int | None = 0  # since then; None if unknown
        for event in self.events:
            if isinstance(event, int):
                missing = None if event == 0 or missing is None else missing + event
                continue
            epoch, offset = event
            if last is not None and last[0] == epoch:
                assert missing is not None
                assert offset == last[1] + 1 + missing
                if missing and epoch == self.broker.epoch:
                    assert offset - 1 <= self.broker.trimmed
            elif last is not None:
                assert missing is None
                assert epoch > last[0]
            last, missing = event, 0

    def check_history(self) -> None:
        """The hub has what the broker keeps."""
        assert self.order.loaded
        offsets = [offset for epoch, offset in self.history or () if epoch == self.broker.epoch]
        assert len(offsets) == len(self.history or ())
        kept = [offset for placed in self.broker.kept for offset in range(placed.first, placed.last + 1)]
        assert offsets[len(offsets) - len(kept) :] == kept


TestOrder = Machine.TestCase
TestOrder.settings = settings(max_examples=500, stateful_step_count=50, deadline=None)


def machine(*, by_name: bool) -> Machine:
    """Return a machine with a receiver."""
    one = Machine()
    one.subscribe(by_name)
    return one


def ask(one: Machine) -> None:
    """Have the broker answer."""
    one.request()
    one.execute()
    one.answer()


def test_last_messages_are_gone() -> None:
    """Messages that the broker has forgotten are told even if none follows."""
    one = machine(by_name=False)
    one.publish(1)
    one.arrive_in_turn()
    one.publish(2)
    one.trim(2)
    one.reconnect()
    ask(one)
    assert one.events == [(one.broker.epoch, 1), 2]
    assert one.order.position == (one.broker.epoch, 3)
    assert not one.order.fetching


def test_answer_that_comes_too_late() -> None:
    """An answer from before the connection was lost counts no more: what came after it was not heard."""
    one = machine(by_name=True)
    one.request()
    one.execute()
    one.publish(1)
    one.reconnect()
    one.answer()
    assert not one.order.loaded
    ask(one)
    assert one.order.loaded
    assert one.order.position == (one.broker.epoch, 1)


def test_heard_before_the_history() -> None:
    """What was heard after the broker had confirmed the subscription is delivered, though the history has it too."""
    one = machine(by_name=True)
    one.publish(2)
    one.lose_first()
    one.publish(2)
    one.publish(1)
    one.arrive_in_turn()
    one.arrive_in_turn()
    ask(one)
    assert [offset for _, offset in one.events] == [3, 4, 5]
    assert [offset for _, offset in one.history or ()] == [1, 2, 3, 4, 5]


def test_too_many_wait() -> None:
    """Packets for which there was no room are asked for without another one having to come."""
    one = machine(by_name=True)
    one.request()
    one.execute()
    for _ in range(MOST + 1):
        one.publish(1)
        one.arrive_in_turn()
    assert one.waiting == 1
    one.answer()
    assert one.order.fetching
    while one.order.fetching:
        ask(one)
    assert [offset for _, offset in one.events] == list(range(1, MOST + 2))


def test_forged_at_first() -> None:
    """The place of the very first packet is not trusted: nobody can have the broker begin a new epoch by it."""
    one = machine(by_name=False)
    packet = one.broker.publish(1)
    one.broker.all[packet.epoch, 1000] = packet.envelope.items[0].payload
    one.order.receive(packet._replace(first=1000))
    assert one.events == [(packet.epoch, 1000)]
    one.publish(1)
    one.reconnect()
    assert one.order.request()[1:] == ((packet.epoch, 1000), False)
    ask(one)
    assert one.order.position == (packet.epoch, 2)
    one.publish(1)
    one.arrive_in_turn()
    assert one.events[1:] == [0, (packet.epoch, 3)]
    one.reconnect()
    assert one.order.request()[1:] == ((packet.epoch, 3), True)
