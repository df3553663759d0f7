"""What somebody can do who may publish at the broker, but is no process of ours; with and without a secret."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
import traceback
import tracemalloc
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import wsfast
from helpers.brokers import Nowhere
from wsfast.hub.filters import Tags
from wsfast.hub.registry import Registry
from wsfast.relay import Relay, inbound, lingering, outbound, wire
from wsfast.relay.broker import public_name
from wsfast.relay.inbound import RESENT, RUNS, Inbound
from wsfast.relay.outbound import Outbound
from wsfast.relay.wire import (
    GOODBYE,
    MESSAGE,
    POSITION,
    REQUEST,
    Address,
    Envelope,
    Item,
    Keyring,
    RejectedError,
    check_key,
    pack,
    unpack,
)

SECRET, OLD, OTHER = (bytes([letter]) * 16 for letter in b"sox")
US, THEM = 1, 2
"""The publisher whose messages are to arrive, and another one."""
EPOCH = 1_800_000_000_000_000_000
TOPIC: Address = ("topic", "t")


class Receiver:
    """A hub with a relay and somebody who gets every topic."""

    def __init__(self, secret: bytes | Sequence[bytes] | None = None, prefix: str = "p") -> None:
        self.hub = wsfast.Hub(last_values=3, history=3)
        keyring = None if secret is None else Keyring(secret, prefix)
        slow = wsfast.DropOldest()
        self.relay = Relay(self.hub, Nowhere(), slow=slow, on_gap=None, timeout=0.01, keyring=keyring)
        self.stream = self.hub.stream(">", max_messages=10**6)
        self.hub.attach(self.relay)
        self.relay._placeholder = None  # as if it had begun: it would warn when it is collected, maybe in another test

    def take(self, data: bytes, address: Address | None = TOPIC) -> None:
        self.relay._inbound.receive(data, repr(address))

    def get(self, *envelopes: Envelope, keyring: Keyring | None = None) -> None:
        for envelope in envelopes:
            self.take(pack(envelope, keyring), envelope.address)

    @property
    def payloads(self) -> list[bytes]:
        return [message.data for message in self.stream._messages]


def message(number: int, *payloads: bytes, key: Hashable = None, publication: Any = None, **changes: Any) -> Envelope:
    """Return one message, or several with consecutive numbers."""
    items = tuple(Item(payload, key=key, publication=publication) for payload in payloads or [b"true"])
    envelope = replace(Envelope(MESSAGE, US, EPOCH, number, TOPIC, items), **changes)
    return envelope if envelope.kind == MESSAGE else replace(envelope, items=())


def go(act: Callable[[], object]) -> None:
    async def main() -> None:
        act()

    asyncio.run(main())


# ---- Without a secret

numbers = st.integers(0, 2**64 - 1)
near = st.integers(1, 20)
addresses = st.sampled_from([TOPIC, ("topic", "other"), ("user", "ann"), None])


def envelopes(epochs: st.SearchStrategy[int], numbers: st.SearchStrategy[int]) -> st.SearchStrategy[Envelope]:
    """Return what may come in the name of anybody."""
    return st.builds(
        lambda kind, publisher, epoch, number, address, count, **options: Envelope(
            kind,
            publisher,
            epoch,
            number,
            None if kind >= REQUEST else address or TOPIC,
            (Item(b"false", **options),) * count if kind == MESSAGE else (),
        ),
        st.sampled_from([MESSAGE, MESSAGE, POSITION, REQUEST, GOODBYE]),
        st.sampled_from([US, US, THEM]),
        epochs,
        numbers,
        addresses,
        st.integers(1, 3),
        text=st.booleans(),
        compressible=st.booleans(),
        key=st.sampled_from([None, "key", ("a", 1)]),
        excluded=st.sampled_from([(), ("ann",)]),
        publication=st.sampled_from([None, (1, ("t", "other")), (2, ("other",))]),
        tags=st.sampled_from([frozenset(), frozenset({"x", "y"})]),
    )


OTHER_EPOCHS = st.sampled_from([0, 1, EPOCH - 1, EPOCH + 1, EPOCH + 10**12, 2**64 - 1])


@given(st.lists(st.tuples(st.lists(envelopes(OTHER_EPOCHS, near | numbers), max_size=8), st.integers(1, 3))))
def test_other_epochs_hide_nothing(rounds: list[tuple[list[Envelope], int]]) -> None:
    """Whatever comes of epochs that are not the publisher's, all of its messages are delivered, in order."""

    def act() -> None:
        receiver = Receiver()
        number = 0
        for hostile, step in rounds:
            receiver.get(*hostile)
            number += step  # some are missing
            receiver.get(message(number, b"%d" % number))
        true = [payload for payload in receiver.payloads if payload != b"false"]
        assert true == [b"%d" % sum(step for _, step in rounds[: end + 1]) for end in range(len(rounds))]

    go(act)


@given(st.lists(st.lists(envelopes(st.just(EPOCH), st.integers(2 * RESENT, 2**64 - 1)), max_size=8), max_size=20))
def test_distant_numbers_hide_nothing(rounds: list[list[Envelope]]) -> None:
    """Nor does what comes of the same epoch with a number that is far away."""

    def act() -> None:
        receiver = Receiver()
        for number, hostile in enumerate(rounds, 1):
            receiver.get(*hostile)
            receiver.get(message(number, b"%d" % number))
        true = [payload for payload in receiver.payloads if payload != b"false"]
        assert true == [b"%d" % number for number in range(1, len(rounds) + 1)]

    go(act)


def check_consistency(known: Inbound) -> None:
    """Check that what is known of publishers is what is counted, found by either way, and kept once."""
    counted = [(address, one) for address, seen in known._seen.items() for one in seen.positions]
    assert len(counted) == known._positions
    found = [(address, one) for one, addresses in known._addresses.items() for address in addresses]
    assert sorted(counted, key=repr) == sorted(found, key=repr)
    assert {id(address) for address, _ in found} <= {id(address) for address in known._seen}
    assert all(0 < len(runs) <= RUNS for seen in known._seen.values() for runs in seen.positions.values())
    assert sum(map(len, known._delivered.values())) == known._delivered_names


INTERESTS = ["t", "other", "*", ">"]
LIMITS = st.sampled_from(
    [near_to + offset for near_to in (RESENT, 2**32, 2**63, 2**64 - 3) for offset in (-2, 0, 1, 2)]
)
changes = st.tuples(st.sampled_from(["open", "close", "abandon"]), st.sampled_from(INTERESTS))


@pytest.mark.parametrize("secret", [None, SECRET])
@given(st.lists(envelopes(OTHER_EPOCHS | st.just(EPOCH), near | LIMITS | numbers) | changes, max_size=30))
@example([("open", "t"), ("abandon", "t"), message(1), message(2)])
@example(
    [("open", "t"), message(1), message(1, publisher=THEM), message(1, publisher=THEM, address=("topic", "other"))]
)
def test_books_are_kept(secret: bytes | None, steps: list[Any]) -> None:
    """Whatever comes, while subscribers come and go: what is known stays bounded and consistent; gaps are positive."""

    def act() -> None:
        receiver = Receiver(secret)
        receiver.stream.close()
        known, keyring = receiver.relay._inbound, None if secret is None else Keyring(secret, "p")
        gaps: list[int] = []
        known._report = lambda gap: gaps.append(gap.messages)  # type: ignore[method-assign]
        streams: dict[str, wsfast.Stream] = {}
        for step in steps:
            if isinstance(step, Envelope):
                receiver.get(step, keyring=keyring)
            elif step[0] == "open" and step[1] not in streams:
                streams[step[1]] = receiver.hub.stream(step[1])
            elif (stream := streams.pop(step[1], None)) is not None and step[0] == "close":
                stream.close()
            stream = None  # without it, one that was not closed is gone now, and the hub learns it with a message
            check_consistency(known)
        assert all(gap > 0 for gap in gaps)

    go(act)


losses = st.sampled_from([0, 0, 0, 1, 20, RESENT - 2, RESENT - 1, RESENT, RESENT + 1, 2**32, 2**62])
honest = st.one_of(
    st.tuples(st.sampled_from([MESSAGE, POSITION]), losses),
    st.tuples(st.just("again"), st.integers(0, 30) | st.just(RESENT - 1)),
    st.tuples(st.just("epoch"), st.integers(1, 10**12)),
)


@pytest.mark.parametrize("secret", [None, SECRET])
@given(st.lists(honest, max_size=30))
def test_honest_gaps_are_exact(secret: bytes | None, steps: list[tuple[Any, int]]) -> None:
    """Of a publisher that follows the rules, each message is delivered once, and exactly what is missing is lost."""

    def act() -> None:
        receiver = Receiver(secret)
        keyring = None if secret is None else Keyring(secret, "p")
        epoch, number, sent, again, lost = EPOCH, 0, 0, 0, 0
        for what, size in steps:
            if what == "epoch":
                epoch, number = epoch + size, 0
            elif what == "again":
                for resent in range(max(1, number - min(size, 30)), number + 1):
                    receiver.get(message(resent, epoch=epoch), keyring=keyring)
                    again += 1
                if number > size:
                    receiver.get(message(number - size, epoch=epoch), keyring=keyring)
                    again += 1
            elif number + size + 1 < 2**64 and (number or what == MESSAGE):
                lost += size if number else 0
                if what == MESSAGE:
                    number += size + 1
                    sent += 1
                else:
                    number += size
                receiver.get(message(number, epoch=epoch, kind=what), keyring=keyring)
        stats = receiver.relay.stats()
        assert (stats.received, stats.duplicates, stats.lost) == (sent, again, lost)
        assert len(receiver.payloads) == sent

    go(act)


def test_abandoned_stream_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that finds its last subscriber gone, which ends the interest, leaves nothing that nobody can forget."""
    monkeypatch.setattr(lingering, "MOST", 0)

    def act() -> None:
        receiver = Receiver()
        receiver.stream.close()
        for number in range(1, 4):
            receiver.hub.stream("t")  # is gone at once
            receiver.get(message(number))
            check_consistency(receiver.relay._inbound)
            assert not receiver.relay._inbound._seen

    go(act)


def test_exclusions_cost_what_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up topics of one publication cost later messages nothing; what is named often is looked at once."""

    class Members:
        looked = 0

        @property
        def slots(self) -> list[int]:
            Members.looked += 1
            return [1]

    registry = Registry()
    for group in (registry.add_user("ann"), registry.add_topic(">")):
        group.members = Members()  # type: ignore[assignment]
    assert registry.slots_of_users(["ann", "bob"] * 100) == {1}
    assert registry.slots_of_topics([f"t.{number % 7}" for number in range(100)]) == {1}
    assert Members.looked == 2

    asked: list[int] = []
    slots_of_topics = Registry.slots_of_topics

    def count(registry: Registry, topics: Sequence[str], tags: Tags) -> set[int]:
        asked.append(len(topics))
        return slots_of_topics(registry, topics, tags)

    monkeypatch.setattr(Registry, "slots_of_topics", count)

    def act() -> None:
        receiver = Receiver()
        for number in range(100):
            receiver.get(message(1, address=("topic", f"t.{number}"), publication=(1, ("t.0", "t.1", "none"))))
        assert max(asked) <= 2

    go(act)


@pytest.mark.parametrize("jump", [1, 2, 20, 64, 65, 640])
@pytest.mark.parametrize("kind", [MESSAGE, POSITION])
def test_forged_message_hides_few(jump: int, kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even who knows epoch and number can hide no more than the numbers of one jump with one message."""
    monkeypatch.setattr(inbound, "RESENT", 64)

    def act() -> None:
        receiver = Receiver()
        receiver.get(message(1))
        receiver.get(message(1 + jump, b"false", kind=kind))
        before = len(receiver.payloads)
        count = 1000
        receiver.get(*(message(number) for number in range(2, 2 + count)))
        hidden = count - (len(receiver.payloads) - before)
        assert hidden == (jump if jump <= 64 else 0)

    go(act)


def test_honest_publishers_are_followed() -> None:
    """What is sent again counts once, what is missing is counted, also if that is much, or a new epoch begins."""

    def act() -> None:
        receiver = Receiver()
        inbound = receiver.relay._inbound
        receiver.get(*(message(number) for number in (10, 11, 10, 11, 12, 9, 14, 12, 13, 14)))
        assert (inbound.received, inbound.duplicates, inbound.lost) == (4, 6, 1)
        far = 14 + 1000 * RESENT
        receiver.get(message(far), message(far - 3), message(far), message(far + 1))
        assert (inbound.received, inbound.duplicates, inbound.lost) == (6, 8, 1000 * RESENT)
        receiver.get(message(1, epoch=EPOCH + 5), message(far + 1), message(1, epoch=EPOCH + 5))
        assert (inbound.received, inbound.duplicates) == (7, 10)
        for epoch in range(EPOCH + 6, EPOCH + 6 + 2 * RUNS):
            receiver.get(message(1, epoch=epoch), message(3, epoch=epoch))
        assert (inbound.received, inbound.lost) == (7 + 4 * RUNS, 1000 * RESENT + 2 * RUNS)

    go(act)


def test_forged_publication_hides_nothing() -> None:
    """Who cannot know the number of a message to several topics cannot have others count as having got it."""

    def publication() -> tuple[int, tuple[str, ...]]:
        sender = Outbound(US, Nowhere(), wsfast.DropOldest(), 1, print)
        sender.forward("topic", ("t", "other"), wsfast.PreparedMessage("x"), None, ())
        (packet, _) = sender._packets(sender._queue, 1 << 20)
        found = unpack(packet.data).items[0].publication
        assert found is not None
        return found

    some = {publication()[0] for _ in range(100)}
    assert len(some) == 100
    assert max(some) > 2**55


def test_positions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many publishers and topics are made up, only so much is known of them; what is true still arrives."""
    monkeypatch.setattr(inbound, "POSITIONS", 100)
    monkeypatch.setattr(inbound, "PUBLISHERS", 20)
    monkeypatch.setattr(inbound, "DELIVERED", 50)

    def act() -> None:
        receiver = Receiver()
        known = receiver.relay._inbound
        for number in range(1, 1000):
            some: Address = ("topic", f"t.{number % 37}")
            publication = number, tuple(f"t.{other}" for other in range(1000))
            receiver.get(message(1, b"false", publisher=number + 2, address=some, publication=publication))
            receiver.get(message(number))
            if number % 7 == 0:
                receiver.get(Envelope(GOODBYE, number), Envelope(GOODBYE, 10**9 + number))
            check_consistency(known)
            assert known._positions <= 100
            assert known._delivered_names <= 50
        assert receiver.payloads.count(b"true") == 999

    go(act)


def test_goodbye_costs_what_it_ends() -> None:
    """A goodbye, true or not, costs no look at the addresses of others."""

    def lines(count: int) -> int:
        counted = 0

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal counted
            counted += event == "line" and "wsfast" in frame.f_code.co_filename
            return trace

        def act() -> None:
            receiver = Receiver()
            receiver.get(*(message(1, publisher=THEM, address=("topic", f"t.{n}")) for n in range(count)), message(1))
            goodbyes = [pack(Envelope(GOODBYE, publisher)) for publisher in (US, US, 77)]
            before = sys.gettrace()
            sys.settrace(trace)
            try:
                for data in goodbyes:
                    receiver.take(data, None)
            finally:
                sys.settrace(before)
            assert receiver.relay._inbound._positions == count

        go(act)
        return counted

    assert lines(1000) == lines(10) > 0


def test_requests_are_answered_at_a_bounded_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many requests come, positions are sent once in a time that grows with their number."""
    monkeypatch.setattr(outbound, "POSITIONS", 10)
    clock = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)

    class Sending:
        largest = 1 << 20

        def __init__(self) -> None:
            self.positions = 0

        async def publish(self, packets: Sequence[tuple[Address | None, bytes]]) -> dict[int, Exception]:
            self.positions += sum(unpack(data).kind == POSITION for _, data in packets)
            return {}

        async def close(self) -> None:
            pass

    async def main() -> None:
        nonlocal clock
        sender, sending = Outbound(US, Nowhere(), wsfast.DropOldest(), 1, print), Sending()
        for number in range(50):
            sender.forward("topic", (f"t{number}",), wsfast.PreparedMessage("x"), None, ())
        await sender._publish(sending)
        for _ in range(200):  # 20 seconds
            for _ in range(10):
                sender.announce()
            await sender._publish_control(sending)
            clock += 0.1
        assert sending.positions == 50 * 4  # every 5 seconds
        assert sender._positions_due

    asyncio.run(main())


def test_other_channel() -> None:
    """A message for a topic counts only in its channel, as the broker may permit a publisher some channels only."""

    def act() -> None:
        receiver = Receiver()
        for envelope in (message(1), message(1, kind=POSITION), Envelope(GOODBYE, US), Envelope(REQUEST, US)):
            receiver.take(pack(envelope), ("topic", "other"))
        receiver.take(pack(message(1)), None)
        assert receiver.relay.stats().rejected == 5
        assert not receiver.payloads
        assert not receiver.relay._outbound._positions_due
        receiver.get(message(1))
        for kind in (REQUEST, GOODBYE):  # who may publish to one topic, cannot speak of all
            receiver.take(pack(Envelope(kind, US)), TOPIC)
        assert receiver.relay.stats().rejected == 7
        assert receiver.relay._inbound._addresses == {US: {TOPIC}}
        assert not receiver.relay._outbound._positions_due

    go(act)


# ---- With a secret


def test_signature_covers_everything() -> None:
    """A message with a single other bit is not what was signed, wherever the bit is; nor is one cut or extended."""
    keyring = Keyring(SECRET, "p")
    for envelope in (
        message(3, b"one", b"two", key=("k", 1), publication=(5, ("t", "other"))),
        replace(message(3), items=(Item(b"text", text=True, compressible=False, excluded=("ann",)),)),
        replace(message(3), items=(Item(b"text", tags=frozenset({"eu", "us"})),)),
        message(3, kind=POSITION),
        Envelope(REQUEST, US),
        Envelope(GOODBYE, US),
    ):
        data = pack(envelope, keyring)
        assert unpack(data, keyring) == envelope
        for index in range(8 * len(data)):
            changed = bytearray(data)
            changed[index // 8] ^= 1 << index % 8
            with pytest.raises(ValueError, match=r"sent|signed"):
                unpack(bytes(changed), keyring)
        for other in (data[:-1], data + b"\0", data[:-16], data[:32], data + data[-16:]):
            with pytest.raises(RejectedError):
                unpack(other, keyring)


def test_secrets_can_be_rotated() -> None:
    """The first of several secrets signs, all are accepted; under another prefix, or another secret, nothing is."""
    old, both, new = Keyring(OLD, "p"), Keyring([SECRET, OLD], "p"), Keyring((SECRET,), "p")
    for signs, accepts in ((old, [old, both]), (both, [both, new]), (new, [both, new])):
        data = pack(message(1), signs)
        for keyring in (old, both, new, Keyring(OTHER, "p"), Keyring([SECRET, OLD], "elsewhere")):
            if keyring in accepts:
                assert unpack(data, keyring) == message(1)
            else:
                with pytest.raises(RejectedError):
                    unpack(data, keyring)


@pytest.mark.parametrize("secret", [None, SECRET])
def test_rejected_messages_are_counted(secret: bytes | None, caplog: pytest.LogCaptureFixture) -> None:
    """What is not signed as it must be is counted, logged once, and ignored; the secret is not logged."""

    def act() -> None:
        receiver = Receiver(secret)
        wrong = Keyring(OTHER, "p") if secret else Keyring(SECRET, "p")
        receiver.get(
            *(message(number, kind=kind) for number in range(9) for kind in (MESSAGE, POSITION)), keyring=wrong
        )
        receiver.get(Envelope(REQUEST, US), Envelope(GOODBYE, US), keyring=wrong)
        if secret:
            receiver.get(message(1), message(2, kind=POSITION), Envelope(REQUEST, US))
        stats = receiver.relay.stats()
        assert (stats.rejected, stats.malformed, stats.received) == (23 if secret else 20, 0, 0)
        assert not receiver.payloads
        assert not receiver.relay._inbound._seen
        assert not receiver.relay._outbound._positions_due
        receiver.take(b"nonsense")
        assert receiver.relay.stats().malformed == 1

    with caplog.at_level(logging.WARNING):
        go(act)
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2
    assert "has rejected a message of another process: it is signed" in texts[0]
    assert SECRET.decode() not in "".join(texts)


@given(st.lists(envelopes(st.just(EPOCH) | OTHER_EPOCHS, near | numbers), max_size=20), st.sampled_from([None, OTHER]))
def test_forgers_do_nothing(hostile: list[Envelope], secret: bytes | None) -> None:
    """Without the secret, nobody can have anything delivered, hidden, lost, or answered."""

    def act() -> None:
        receiver = Receiver([SECRET, OLD])
        true, false = Keyring(SECRET, "p"), None if secret is None else Keyring(secret, "p")
        for number in range(1, 6):
            receiver.get(message(number, b"%d" % number), keyring=true)
            receiver.get(*hostile, keyring=false)
        stats = receiver.relay.stats()
        assert receiver.payloads == [b"1", b"2", b"3", b"4", b"5"]
        assert (stats.received, stats.duplicates, stats.lost, stats.gaps) == (5, 0, 0, 0)
        assert stats.rejected == 5 * len(hostile)

    go(act)


def test_replay() -> None:
    """What is recorded and sent again is not delivered while its publisher is known; to a new receiver, it is."""
    keyring = Keyring(SECRET, "p")
    recorded = [message(number) for number in range(1, 3 * RESENT)]
    recorded += [message(number, epoch=EPOCH + 1) for number in (1, 2)]

    def act() -> None:
        receiver = Receiver(SECRET)
        receiver.get(*recorded, keyring=keyring)
        receiver.get(*recorded, keyring=keyring)
        stats = receiver.relay.stats()
        assert (stats.received, stats.duplicates, stats.lost) == (len(recorded), len(recorded), 0)
        new = Receiver(SECRET)
        new.get(*recorded[:2], keyring=keyring)
        assert new.relay.stats().received == 2  # docs/explanation/security.md says so

    go(act)


@pytest.mark.parametrize(
    ("secret", "error"),
    [("x" * 32, TypeError), (["x" * 32], TypeError), (bytearray(32), TypeError), (5, TypeError)]
    + [(secret, ValueError) for secret in (b"", b"x" * 15, [], [SECRET, b"short"])],
)
def test_bad_secrets(secret: Any, error: type[Exception]) -> None:
    """A secret that is none, or a short one, is refused, and not shown."""
    with pytest.raises(error) as caught:
        Keyring(secret, "p")
    assert "xxx" not in str(caught.value)
    assert "short" not in str(caught.value).replace("shorter", "")


# ---- The format

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["t", "u", "k", "x", "m", "z"]), inner),
)
CHANNELS: list[Address | None] = [TOPIC, ("topic", "other"), None]
heads = st.binary() | st.fixed_dictionaries(
    {"t": st.sampled_from(["t", "other"])}, optional={"k": json_values, "x": json_values, "m": json_values}
)


LAST = 2**64 - 1
some_epochs = st.sampled_from([1, LAST]) | numbers


@given(st.lists(st.tuples(heads | json_values, st.integers(0, 5), st.integers(0, 255), some_epochs, near | numbers)))
@example([({"t": "t"}, MESSAGE, 0, LAST, 1)])
@example([({"t": "t"}, POSITION, 0, LAST, 1)])
@example([({"t": "t"}, POSITION, 0, 1, 1), ({"t": "t"}, POSITION, 0, LAST, LAST)])
def test_nothing_raises(messages: list[tuple[Any, int, int, int, int]]) -> None:
    """Whatever comes, a relay goes on: an exception would cut its connection to the broker."""

    def act() -> None:
        plain, signed = Receiver(), Receiver(SECRET)
        keyring = Keyring(SECRET, "p")
        for head, kind, flags, epoch, number in messages:
            encoded = head if isinstance(head, bytes) else json.dumps(head).encode()
            for size in (len(encoded), number % 2**32):
                data = wire._HEAD.pack(0xF5, 2, kind, flags, US, epoch, number, size) + encoded + b"\xff"
                for address in CHANNELS:
                    plain.take(data, address)
                    signed.take(data, address)
                    signed.take(keyring.sign(data), address)
        # Who knows an epoch can hide its next messages; so the last message is of an epoch that was not among them.
        unknown = min(set(range(len(messages) + 1)) - {epoch for *_, epoch, _ in messages})
        plain.get(message(1, epoch=unknown, key="last"))
        # Those with the secret are trusted: they can end all epochs of a publisher, but not those of another one.
        signed.get(message(1, publisher=THEM, key="last"), keyring=keyring)
        for receiver in (plain, signed):
            assert receiver.payloads[-1] == b"true"

    go(act)


LISTS = [b"[" * 300_000, b"[]", b"[" + b"[]," * 300_000 + b"[]]", b"[" + b"1," * 400_000 + b"1]"]
NESTED = b"[" * 40 + b"]" * 40


@pytest.mark.parametrize("field", ["k", "x", "m", "t", "u", "z"])
@pytest.mark.parametrize(
    "value", [*LISTS, b"1" * 10**6, b"[" + b"9" * 4300 + b"]", b'"' + b"x" * 10**6 + b'"'], ids=range(7)
)
@pytest.mark.parametrize("messages", [0, 1, 3])
def test_memory_is_bounded_by_length(field: str, value: bytes, messages: int) -> None:
    """What it takes to read a message is bounded by its length, and by a limit for all that is not payload."""
    details = b'{"%s":%s}' % (field.encode(), value)
    head = b'{"t":"t"}' if messages else details
    item = wire._ITEM.pack(0, 8) + wire._LENGTH.pack(len(details)) + details
    data = wire._HEAD.pack(0xF5, 2, MESSAGE, 0, US, 1, 1, len(head)) + head + messages * item
    tracemalloc.start()
    try:
        with contextlib.suppress(ValueError):
            unpack(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 * len(data) + 100_000


def test_long_heads() -> None:
    """A head of more than 1 MiB is neither read nor sent; a message that would have one counts as dropped."""
    head = b'{"t":"t"' + b" " * (1 << 20) + b"}"
    with pytest.raises(ValueError, match="head is too long"):
        unpack(wire._HEAD.pack(0xF5, 2, MESSAGE, 0, US, 1, 1, len(head)) + head)
    sender = Outbound(US, Nowhere(), wsfast.DropOldest(), 1, print)
    sender.forward("topic", ("t",), wsfast.PreparedMessage("0"), None, ())
    sender.forward("topic", ("t",), wsfast.PreparedMessage("1"), "k" * (1 << 20), ())
    sender.forward("topic", ("t",), wsfast.PreparedMessage("2"), None, ())
    assert (sender.published, sender.queued, sender.dropped) == (3, 2, 1)
    assert [unpack(packet.data).number for packet in sender._packets(sender._queue, 1 << 20)] == [1, 3]
    assert sender._positions_due


def test_long_details() -> None:
    """The details of all messages of a packet together have 1 MiB at most, as those of a single one have."""
    half = Item(b"", key="k" * ((1 << 19) - 8))
    assert unpack(pack(message(1, key=half.key))).items[0].key == half.key
    assert len(unpack(pack(replace(message(1), items=(half, half)))).items) == 2
    with pytest.raises(ValueError, match="details of its messages are too long"):
        unpack(pack(replace(message(1), items=(half, half, Item(b"", key=1)))))


def test_deep_keys() -> None:
    """Keys that are nested too deep are neither sent nor received: to compare them could fail at any place."""
    good: Any = ()
    for _ in range(31):
        good = (good,)
    check_key(good)
    assert unpack(pack(message(1, key=good))).items[0].key == good
    with pytest.raises(ValueError, match="32 deep"):
        check_key((good,))
    with pytest.raises(ValueError, match="32 deep"):
        unpack(pack(message(1, key=(good,))))


# ---- Passwords

SAFE = ["redis://h", "rediss://u:secret@h:1/0?x=y", "nats://secret@h", "redis://:se%2Fcret@[::1]:1", "unix:///a@b"]
UNSAFE = ["redis://u:secret/x@h", "redis://u:secret#x@h", "redis://u:1/secret@h", "nats://secret?x@h"]
UNSAFE += ["redis://:secret/@h:1", "redis://h?password=secret@x", "redis://u:secret[@h", "redis://u:secret\u2100@h"]
UNSAFE += ["redis://u:p@h:secret", "redis://u:p@h:99999999/secret", "http://u:secret@h", "//u:secret@h"]


@pytest.mark.parametrize("url", SAFE)
def test_names_have_no_passwords(url: str) -> None:
    """A relay is called by its URL without the password."""
    assert "cret" not in public_name(url, "redis://h", "redis", "rediss", "nats", "unix")


@pytest.mark.parametrize("url", UNSAFE)
def test_errors_have_no_passwords(url: str) -> None:
    """Where it is not clear where the password ends, or the URL is wrong, it is refused, and not shown."""
    with pytest.raises(ValueError, match="url") as caught:
        public_name(url, "redis://h", "redis", "rediss", "nats", "unix")
    assert "secret" not in "".join(traceback.format_exception(caught.value))
