"""A relay follows a topic for a while after its last subscriber has left: a client that comes back is recovered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wsfast
from helpers.brokers import Nowhere
from helpers.peers import TIMEOUT, until
from helpers.sinks import Client
from wsfast.relay import Gap, Relay, lingering
from wsfast.relay.wire import MESSAGE, Envelope, Item, pack


class End:
    """A hub with a relay, to which messages of one publisher come."""

    def __init__(self, history: Any) -> None:
        self.hub = wsfast.Hub(history=history)
        self.gaps: list[Gap] = []
        slow = wsfast.DropOldest()
        self.relay = Relay(self.hub, Nowhere(), slow=slow, on_gap=self.gaps.append, timeout=0.01)

    def receive(self, number: int, topic: str = "t") -> None:
        """Receive a message, whose payload is its number."""
        data = pack(Envelope(MESSAGE, 1, 1, number, ("topic", topic), (Item(b"%d" % number),)))
        self.relay._inbound.receive(data, repr(("topic", topic)))

    def comes(self, topic: str, position: Any = None) -> tuple[Client, wsfast.HubSubscription]:
        """Subscribe a client, which comes back if there is a position."""
        client = Client()
        since = None if position is None else {topic: position}
        return client, self.hub.subscribe(client.connection, topic, since=since)

    def got(self, client: Client) -> list[int]:
        self.hub.flush()
        return [int(message) for message in client.received]


def run(act: Callable[[End], Coroutine[Any, Any, None]], history: Any = 100) -> None:
    async def main() -> None:
        end = End(history)
        end.hub.attach(end.relay)
        end.relay._placeholder = None
        try:
            await act(end)
        finally:
            await end.relay._end()

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_the_last_one_comes_back() -> None:
    """The only client of a topic leaves, and gets what it has missed when it comes back."""

    async def act(end: End) -> None:
        _, subscription = end.comes("t")
        end.receive(1)
        position = end.hub.position("t")
        subscription.unsubscribe()
        assert end.relay.follows("t")
        assert not end.hub.topics()
        end.receive(2)
        end.hub.publish("t", "3")
        end.receive(3)
        client, subscription = end.comes("t", position)
        assert subscription.recovered
        assert end.got(client) == [2, 3, 3]
        assert not end.relay.follows("t")
        end.receive(4)
        assert end.got(client) == [2, 3, 3, 4]
        assert not end.gaps

    run(act)


def test_missing_messages() -> None:
    """If messages are missing that came meanwhile, the client is not recovered."""

    async def act(end: End) -> None:
        _, subscription = end.comes("t")
        end.receive(1)
        position = end.hub.position("t")
        subscription.unsubscribe()
        end.receive(3)
        assert not end.comes("t", position)[1].recovered
        await until(lambda: [gap.messages for gap in end.gaps] == [1])

    run(act)


def test_it_ends() -> None:
    """After the age of the history, a topic is not followed any more, and what comes then follows nothing."""

    async def act(end: End) -> None:
        _, subscription = end.comes("t")
        end.receive(1)
        position = end.hub.position("t")
        subscription.unsubscribe()
        _, other = end.comes("u")
        await asyncio.sleep(0.05)
        other.unsubscribe()
        await until(lambda: not end.relay.follows("t"))
        assert not end.relay._inbound._seen
        await until(lambda: not end.relay.follows("u"))
        assert end.relay._lingering._timer is None
        client, subscription = end.comes("t", position)
        assert not subscription.recovered
        end.receive(5)
        assert end.got(client)[-1] == 5
        assert not end.gaps

    run(act, wsfast.History(100, seconds=0.1))


@pytest.mark.parametrize("history", [0, wsfast.History(100)])
def test_bounds(history: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Topics are followed up to a number, and only by hubs with history."""
    monkeypatch.setattr(lingering, "MOST", 3)

    async def act(end: End) -> None:
        topics = [f"t{number}" for number in range(5)]
        for subscription in [end.comes(topic)[1] for topic in topics]:
            subscription.unsubscribe()
        expected = topics[2:] if end.hub.history.messages else []
        assert [topic for topic in topics if end.relay.follows(topic)] == expected
        assert len(end.relay._inbound._interests) == len(expected)

    run(act, history)


def test_patterns_come_and_go() -> None:
    """What is known of a topic that is followed does not depend on patterns that match it."""

    async def act(end: End) -> None:
        _, subscription = end.comes("t")
        end.receive(1)
        position = end.hub.position("t")
        subscription.unsubscribe()
        _, some = end.comes("*")
        _, others = end.comes(">")
        some.unsubscribe()
        end.receive(2)
        client, subscription = end.comes("t", position)
        assert subscription.recovered
        assert end.got(client) == [2]
        subscription.unsubscribe()
        position = end.hub.position("t")
        others.unsubscribe()
        _, elsewhere = end.comes("x.*")
        elsewhere.unsubscribe()
        end.comes("*")
        end.receive(4)  # 3 is missing
        assert not end.comes("t", position)[1].recovered
        await until(lambda: len(end.gaps) == 1)

    run(act)


CALLS = st.sampled_from(
    ["message", "message", "lost", "come", "leave", "come by *", "leave *", "come by >", "leave >", "end"]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(CALLS, max_size=40))
def test_recovered_means_everything(calls: list[str]) -> None:
    """Whatever happens in between, who is recovered has missed nothing."""

    async def act(end: End) -> None:
        number = 0
        known: list[tuple[wsfast.Position, int]] = []
        subscriptions: dict[str, wsfast.HubSubscription] = {}
        for call in calls:
            if call in ("message", "lost"):
                number += 1 + (call == "lost")
                end.receive(number)
            elif call == "end":
                while end.relay._lingering.topics:
                    end.relay._lingering._pop()
            elif call.startswith("leave"):
                topic = call[-1] if call[-1] in "*>" else "t"
                if topic in subscriptions:
                    subscriptions.pop(topic).unsubscribe()
            elif call.startswith("come by"):
                if call[-1] not in subscriptions:
                    _, subscriptions[call[-1]] = end.comes(call[-1])
            else:
                for position, last in known:
                    client, subscription = end.comes("t", position)
                    if subscription.recovered:
                        assert end.got(client) == list(range(last + 1, number + 1))
                    subscription.unsubscribe()
                if "t" not in subscriptions:
                    _, subscriptions["t"] = end.comes("t")
            if call.startswith("come"):  # the first message that is heard of a publisher follows nothing
                number += 1
                end.receive(number)
                if "t" in subscriptions:
                    known.append((end.hub.position("t"), number))

    run(act)
