"""What publishes in a soak, and what must have become of each message: channels, hubs, broadcasts, streams."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable
from typing import Any

import wsfast
from soak.messages import FEED, Order, encode, encode_short, parse
from wsfast.connections import adapt
from wsfast.connections.shape import is_open

__all__ = ["FEEDS", "BroadcastFeed", "ChannelFeed", "Feed", "HubFeed", "OwnFeed"]

MOST = 4 << 20
"""Bytes that wait for a connection that is broadcast to, before it is aborted."""

WORDS = [
    "price",
    "volume",
    "größer",
    "bid",
    "ask",
    "EURUSD",
    '{"id": 17, "at": ',
    "0.0012",
    "ελ",
    "order",
    "\U0001f680",
]


class Payloads:
    """Payloads of all sizes, mostly small, half of them text that can be compressed."""

    def __init__(self, rng: random.Random, largest: int) -> None:
        self._texts: list[bytes] = []
        self._noises: list[bytes] = []
        for place in range(120):
            size = self._size(rng, largest) if place % 6 == 0 else rng.randrange(0, 260)
            words = [rng.choice(WORDS)]
            while len(words) * 4 < size:
                words.append(rng.choice(WORDS) + str(rng.randrange(100)))
            self._texts.append(" ".join(words)[: size // 2 if size > 1000 else size].encode())
            self._noises.append(rng.randbytes(size))

    @staticmethod
    def _size(rng: random.Random, largest: int) -> int:
        return min(largest, rng.choice([0, 93, 94, 500, 1000, 4000, 16000, 65503, 65504, 200_000]))

    def next(self, rng: random.Random) -> tuple[bytes, bool]:
        """Return a payload, and whether it is text."""
        text = rng.random() < 0.5
        return rng.choice(self._texts if text else self._noises), text


class Source:
    """Somebody who numbers messages."""

    def __init__(self, number: int, order: Order) -> None:
        self.number = number
        self.order = order
        self.next_number = 0

    def encode(self, payload: bytes, key: int, *, text: bool) -> str | bytes:
        """Return the next message."""
        number = self.next_number
        self.next_number = number + 1
        data = encode(self.number, self.order, number, key, payload, text=text)
        return data.decode() if text else data


class Ticket:
    """What one connection has from one feed, from when it was subscribed until it is not any more."""

    def __init__(
        self,
        client: int,
        connection: Any,
        stats: Callable[[], list[int]],
        active: Callable[[], bool],
        end: Callable[[], object],
        starts: dict[int, int],
    ) -> None:
        self.client = client
        self.connection = connection
        self.stats = stats
        self.active = active
        self.end = end
        self.starts = starts
        """The next number of each source that it gets from the first to the last, if it stays."""
        self.slack: Callable[[], int] = lambda: 0
        """How many messages more it may have got: those of which nobody knows, and which are not counted."""
        self.exact = True
        """Whether the counts are exact also when it has ended, rather than the most that can be."""
        self.before = 0, 0
        """Least and greatest number of the feed's messages that were not for it."""


class Feed:
    """Publishes to connections.

    Args:
        number: Its number.
        plan: Its part of the plan.
        rng: Where its chances come from.
    """

    def __init__(self, number: int, plan: dict[str, Any], rng: random.Random) -> None:
        self.number = number
        self.plan = plan
        self.rng = rng
        self.payloads = Payloads(rng, plan["largest"])
        self.sources: list[Source] = []
        self.tickets: list[Ticket] = []
        self.made = 0
        """Messages that were published."""
        self.unsure = 0
        """Messages of which nobody knows, since an interrupt came in between."""
        self.closed = False
        self.faults: list[str] = []
        policy = dict(plan["policy"])
        self.policy: Any = getattr(wsfast, policy.pop("type"))(**policy)
        self.order = Order.GAPS if plan["chaos"] else Order.STRICT
        if isinstance(self.policy, wsfast.Conflate):
            self.order = Order.KEYS
        elif not isinstance(self.policy, wsfast.Disconnect):
            self.order = Order.GAPS

    def source(self, order: Order | None = None) -> Source:
        source = Source(self.number * FEED + len(self.sources), self.order if order is None else order)
        self.sources.append(source)
        return source

    def message(self, source: Source, key: int = 0) -> Any:
        """Return the next message of a source; rarely, one that is prepared, not to be compressed, or has no number."""
        chance = self.rng.random()
        if chance < self.plan["short"]:
            return encode_short(self.number, self.rng.randrange(1 - self.plan["empty"], 32))
        payload, text = self.payloads.next(self.rng)
        message = source.encode(payload, key, text=text)
        if chance > 0.98:
            return wsfast.PreparedMessage(message)
        if chance > 0.96:
            return wsfast.PreparedMessage(message, compress=False)
        if chance > 0.94 and isinstance(message, bytes):
            return bytearray(message)
        return message

    def subscribe(self, client: int, connection: Any) -> None:
        raise NotImplementedError

    def publish(self) -> None:
        raise NotImplementedError

    def flush(self) -> None:
        """Send what was published, if that is for later."""

    def churn(self) -> None:
        """Have somebody leave and come back."""

    def some_ticket(self) -> Ticket | None:
        """Return that of some connection that is there, if one is found at once."""
        ticket = self.rng.choice(self.tickets) if self.tickets else None
        return ticket if ticket is not None and ticket.active() else None

    def queued(self) -> tuple[int, int]:
        """Return how much waits, and for how many."""
        return 0, 0

    def is_active(self, ticket: Ticket) -> bool:
        """Whether a connection has something of the feed's that must end with it."""
        return ticket.exact and ticket.active()

    def reconcile(self) -> list[str]:
        """Return where the counts of the whole differ from those of its parts."""
        return []

    def close(self) -> None:
        """End what is not a connection's."""
        self.closed = True

    def waiting(self) -> bool:
        return self.queued()[0] > 0


class ChannelFeed(Feed):
    """A channel, with streams, threads and finalizers that publish, too."""

    def __init__(self, number: int, plan: dict[str, Any], rng: random.Random) -> None:
        super().__init__(number, plan, rng)
        self.channel = self.publisher = wsfast.Channel(
            f"feed {number}",
            slow=self.policy,
            history=plan["history"],
            on_drop=lambda *_: None,
            on_disconnect=lambda *_: None,
        )
        self.main = self.source()
        self.finalizers = self.source()
        self.thread = self.source()
        self.streams = [self.channel.stream(max_messages=rng.choice([10, 100_000])) for _ in range(plan["streams"])]
        self.received = [0] * len(self.streams)
        self.tasks = [asyncio.create_task(self.listen(place)) for place in range(len(self.streams))]

    async def listen(self, place: int) -> None:
        stream = self.streams[place]
        last: dict[int, int] = {}
        async for message in stream:
            self.received[place] += 1
            data = message.encode() if isinstance(message, str) else message
            if len(data) >= 32:
                head = parse(data, text=isinstance(message, str))
                if head.number <= last.get(head.source, -1):
                    self.faults.append(f"stream: source {head.source:x}: {head.number} after {last[head.source]}")
                last[head.source] = head.number

    def subscribe(self, client: int, connection: Any) -> None:
        kept = min(self.made, self.plan["history"])
        starts = {source.number: source.next_number for source in (self.main, self.finalizers)}
        before = self.made
        subscription = self.channel.subscribe(connection)
        ticket = Ticket(
            client,
            connection,
            lambda: _counts(subscription.stats()),
            lambda: subscription.active,
            subscription.unsubscribe,
            starts if self.order is Order.STRICT else {},
        )
        ticket.before = before - kept - self.unsure, self.made - kept + self.unsure
        self.tickets.append(ticket)

    def churn(self) -> None:
        ticket = self.some_ticket()
        if ticket is not None:
            ticket.end()
            with contextlib.suppress(RuntimeError):
                self.subscribe(ticket.client, ticket.connection)

    def publish(self) -> None:
        key = self.rng.randrange(self.plan["keys"])
        message = self.message(self.main, key)
        left_out = self.some_ticket() if self.plan["chaos"] and self.rng.random() < 0.05 else None
        self.unsure += 1
        if left_out is None:
            self.channel.publish(message, key=key or None)
        else:
            self.channel.publish(message, key=key or None, exclude=[left_out.connection])
            left_out.before = left_out.before[0], left_out.before[1] + 1
        self.unsure -= 1
        self.made += 1

    def flush(self) -> None:
        self.channel.flush()

    def publish_in_finalizer(self) -> None:
        """Have the next collection of garbage publish."""
        feed, payload, text = self, *self.payloads.next(self.rng)

        class Finalized:
            def __init__(self) -> None:
                self.itself = self

            def __del__(self) -> None:
                if feed.closed or threading.current_thread() is not threading.main_thread():
                    return
                feed.unsure += 1
                feed.channel.publish(feed.finalizers.encode(payload, 0, text=text))
                feed.unsure -= 1
                feed.made += 1

        Finalized()

    def publish_in_thread(self) -> None:
        """Publish from another thread."""
        loop = asyncio.get_running_loop()
        payloads = [self.payloads.next(self.rng) for _ in range(5)]
        messages = [self.thread.encode(payload, 0, text=text) for payload, text in payloads]

        def publish() -> None:
            for message in messages:
                self.channel.publish_threadsafe(message)
            loop.call_soon_threadsafe(count)

        def count() -> None:
            self.made += len(messages)

        thread = threading.Thread(target=publish)
        thread.start()
        thread.join()

    def queued(self) -> tuple[int, int]:
        stats = self.channel.stats()
        return stats.queued, stats.lagging

    def reconcile(self) -> list[str]:
        faults = []
        stats = self.channel.stats()
        if stats.published != stats.sent + stats.dropped + stats.conflated + stats.queued:
            faults.append(f"the channel's counts do not reconcile: {stats}")
        total = [sum(column) for column in zip(*(ticket.stats() for ticket in self.tickets), strict=True)] or [0] * 5
        if total != [stats.published, stats.sent, stats.dropped, stats.conflated, stats.queued]:
            faults.append(f"the channel says {stats}, its subscriptions {total}")
        if not self.made <= stats.messages <= self.made + self.unsure:
            faults.append(f"{self.made} to {self.made + self.unsure} published, {stats.messages} counted")
        for ticket in self.tickets:
            low, high = self.made - ticket.before[1], self.made + self.unsure - ticket.before[0]
            if ticket.active() and not low <= ticket.stats()[0] <= high:
                faults.append(f"client {ticket.client}: {low} to {high} published to it, not {ticket.stats()}")
        for stream, received in zip(self.streams, self.received, strict=True):
            low = self.made - len(stream._messages)
            if not low <= received + stream.dropped <= low + self.unsure:
                faults.append(f"stream: {received} received, {stream.dropped} dropped, {self.made} published")
        return faults

    def close(self) -> None:
        super().close()
        for stream in self.streams:
            stream.close()


def _counts(stats: Any) -> list[int]:
    return [stats.published, stats.sent, stats.dropped, stats.conflated, stats.queued]


def matches(pattern: str, topic: str) -> bool:
    """Whether a topic is of a pattern: `*` is one token, `>` one or more."""
    wanted, tokens = pattern.split("."), topic.split(".")
    if wanted[-1] == ">":
        wanted = wanted[:-1]
        if len(tokens) <= len(wanted):
            return False
        tokens = tokens[: len(wanted)]
    return len(wanted) == len(tokens) and all(a in ("*", b) for a, b in zip(wanted, tokens, strict=True))


class HubFeed(Feed):
    """A hub: topics, patterns, users, history, last values; with a relay, a second one that hears of it by a broker."""

    def __init__(self, number: int, plan: dict[str, Any], rng: random.Random) -> None:
        super().__init__(number, plan, rng)
        options: Any = {"slow": self.policy, "history": plan["history"], "last_values": plan["last_values"]}
        self.hub = self.publisher = wsfast.Hub(name=f"feed {number}", **options)
        self.far = wsfast.Hub(name=f"far of feed {number}", **options) if plan["relay"] else None
        self.relays: list[Any] = []
        self.kept = plan["history"] + plan["last_values"]
        if self.order is Order.STRICT and (plan["last_values"] or plan["relay"]):
            self.order = Order.GAPS
        order = self.order
        self.topics = {topic: self.source(order) for topic in plan["topics"]}
        self.users = {user: self.source(order) for user in range(plan["users"])}
        self.several = self.source(Order.KEYS)  # by a relay, messages to other topics may come first
        self.members: dict[int, Ticket] = {}  # of each member, by its id

    def subscribe(self, client: int, connection: Any) -> None:
        hub = self.far if self.far is not None and client % 2 else self.hub
        joins = random.Random(client * 977 + self.number)
        starts = {}
        handles: list[Any] = []
        if self.users and joins.random() < 0.6:
            user = joins.randrange(len(self.users))
            starts[self.users[user].number] = self.users[user].next_number
            handles.append(hub.register(connection, user))
        known = self.plan["patterns"] + self.plan["topics"]
        names = joins.sample(known, min(len(known), joins.randrange(1, 4)))
        for topic, source in self.topics.items():
            if any(matches(name, topic) for name in names):
                starts[source.number] = source.next_number
        handles.append(hub.subscribe(connection, *names))
        for handle in handles:
            member = handle.member
            if member is not None and id(member) not in self.members:
                ticket = Ticket(
                    client,
                    connection,
                    lambda member=member: _counts(member.stats()),  # type: ignore[misc]
                    lambda member=member: member.active,  # type: ignore[misc]
                    handles[-1].unsubscribe,
                    starts if self.order is Order.STRICT else {},
                )
                self.members[id(member)] = ticket
                self.tickets.append(ticket)

    def churn(self) -> None:
        ticket = self.some_ticket()
        if ticket is None:
            return
        hub = self.far if self.far is not None and ticket.client % 2 else self.hub
        if self.rng.random() < 0.5:
            hub.unsubscribe(ticket.connection, self.rng.choice(self.plan["topics"]))
        else:
            ticket.end()
        with contextlib.suppress(RuntimeError):
            self.subscribe(ticket.client, ticket.connection)

    def publish(self) -> None:
        rng = self.rng
        key = rng.randrange(self.plan["keys"])
        chance = rng.random()
        self.unsure += 1
        if chance < 0.05 and len(self.topics) > 1 and not (self.far is not None and self.kept):
            topics = list(self.topics)
            one, two = rng.sample(range(len(topics)), 2)
            pair = 64 * key + 8 * one + two
            self.hub.publish([topics[one], topics[two]], self.message(self.several, pair), key=key or None)
        elif chance < 0.2 and self.users:
            user = rng.choice(list(self.users))
            self.hub.send(user, self.message(self.users[user], key), key=key or None)
        elif chance < 0.25:
            items = []
            for _ in range(3):
                topic = rng.choice(list(self.topics))
                items.append((topic, self.message(self.topics[topic], key), key or None))
            self.hub.publish_many(items)
        else:
            topic = rng.choice(list(self.topics))
            self.hub.publish(topic, self.message(self.topics[topic], key), key=key or None)
        self.unsure -= 1
        self.made += 1

    def flush(self) -> None:
        self.hub.flush()

    def queued(self) -> tuple[int, int]:
        queued, lagging = 0, 0
        for hub in self.hubs():
            stats = hub.stats()
            queued, lagging = queued + stats.queued, lagging + stats.lagging
        return queued, lagging

    def hubs(self) -> list[wsfast.Hub]:
        return [self.hub] if self.far is None else [self.hub, self.far]

    def reconcile(self) -> list[str]:
        faults = []
        total = [sum(column) for column in zip(*(ticket.stats() for ticket in self.tickets), strict=True)] or [0] * 5
        all_stats = [hub.stats() for hub in self.hubs()]
        counted = [0] * 5
        for stats in all_stats:
            if stats.published != stats.sent + stats.dropped + stats.conflated + stats.queued:
                faults.append(f"the hub's counts do not reconcile: {stats}")
            counted = [a + b for a, b in zip(counted, _counts(stats), strict=True)]
        if total != counted:
            faults.append(f"the hub says {all_stats}, its subscriptions {total}")
        return faults

    def waiting(self) -> bool:
        relays = [relay.stats() for relay in self.relays]
        return super().waiting() or any(stats.queued for stats in relays)


class BroadcastFeed(Feed):
    """`broadcast()` to the connections of a set."""

    def __init__(self, number: int, plan: dict[str, Any], rng: random.Random) -> None:
        super().__init__(number, plan, rng)
        self.order = Order.GAPS if plan["chaos"] else Order.STRICT
        self.main = self.source()
        self.connections: dict[Any, Ticket] = {}

    def subscribe(self, client: int, connection: Any) -> None:
        start = self.made
        ticket = Ticket(
            client,
            connection,
            lambda: [self.made - start, self.made - start, 0, 0, 0],
            lambda: connection in self.connections,
            lambda: self.leave(connection),
            {self.main.number: self.main.next_number} if self.order is Order.STRICT else {},
        )
        unsure = self.unsure
        ticket.exact, ticket.slack = False, lambda: self.unsure - unsure
        self.connections[connection] = ticket
        self.tickets.append(ticket)

    def leave(self, connection: Any) -> None:
        counts = self.connections.pop(connection)
        final, slack = counts.stats(), counts.slack()
        counts.stats, counts.slack = lambda: final, lambda: slack

    def churn(self) -> None:
        ChannelFeed.churn(self)  # type: ignore[arg-type]

    def publish(self) -> None:
        container: Any = self.rng.choice([list, set, tuple, iter])
        message = self.message(self.main)
        self.unsure += 1
        outcome = wsfast.broadcast(container(self.connections), message)
        self.unsure -= 1
        self.made += 1
        if outcome.skipped or outcome.failed or outcome.buffered:
            self.look()

    def look(self) -> None:
        """Forget connections that are not open any more, and abort those for which too much waits."""
        for connection in list(self.connections):
            if not is_open(adapt(connection)):
                self.leave(connection)
            elif adapt(connection).transport.get_write_buffer_size() > MOST:
                adapt(connection).transport.abort()

    def reconcile(self) -> list[str]:
        self.look()
        return []

    def queued(self) -> tuple[int, int]:
        lagging = sum(adapt(one).transport.get_write_buffer_size() > 0 for one in self.connections)
        return 0, lagging


class OwnFeed(Feed):
    """What connections send by themselves, in between: each has its own numbers."""

    def __init__(self, number: int, plan: dict[str, Any], rng: random.Random) -> None:
        super().__init__(number, plan, rng)
        self.order = Order.STRICT
        self.senders: list[tuple[Ticket, Source, Any]] = []
        self.sending: dict[Ticket, asyncio.Task[None]] = {}

    def add(self, client: int, connection: Any, send: Any) -> None:
        """Have a connection send something now and then."""
        source, counts = Source(self.number * FEED, Order.STRICT), [0, 0, 0, 0, 0]
        ticket = Ticket(client, connection, lambda: counts, lambda: not counts[2], lambda: None, {source.number: 0})
        ticket.exact = False
        self.tickets.append(ticket)
        self.senders.append((ticket, source, send))

    def publish(self) -> None:
        if not self.senders:
            return
        ticket, source, send = self.rng.choice(self.senders)
        if ticket in self.sending or not ticket.active():
            return
        payload, text = self.payloads.next(self.rng)
        if text:
            message = source.encode(payload, 0, text=True)
            counts = ticket.stats()
            counts[0] += 1
            self.sending[ticket] = asyncio.create_task(self.send(ticket, send, message))

    async def send(self, ticket: Ticket, send: Any, message: Any) -> None:
        counts = ticket.stats()
        try:
            await send(ticket.connection, message)
            counts[1] += 1
        except (Exception, asyncio.CancelledError):
            counts[2] += 1  # it is not open any more
        finally:
            del self.sending[ticket]

    def close(self) -> None:
        super().close()
        for task in self.sending.values():
            task.cancel()

    def waiting(self) -> bool:
        return bool(self.sending)


FEEDS: dict[str, type[Feed]] = {"channel": ChannelFeed, "hub": HubFeed, "broadcast": BroadcastFeed, "own": OwnFeed}
