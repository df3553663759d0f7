"""Commands of other processes: what `Hub.disconnect()` sends, and who obeys it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

import wsfast
from wsfast.hub import Command
from wsfast.relay import wire
from wsfast.relay.commands import LAST, MAX_AGE, Commands
from wsfast.relay.outbound import Outbound
from wsfast.relay.wire import COMMAND, Address, Keyring, RejectedError, unpack

KEYRING = Keyring(b"s" * 16, "p")
"""That of all relays here."""
MESSAGES = [None, wsfast.PreparedMessage("bye"), wsfast.PreparedMessage(b"", compress=False)]


def sent(command: Command, keyring: Keyring | None = None) -> bytes:
    """Return what a relay sends for a command."""
    broker: Any = object()
    outbound = Outbound(1, broker, wsfast.DropOldest(), 1, print, keyring)
    outbound.command(command)
    assert (outbound.published, outbound.queued) == (1, 1)
    return outbound._queue[0].data


@pytest.mark.parametrize("keyring", [None, KEYRING], ids=["plain", "signed"])
@pytest.mark.parametrize("message", MESSAGES, ids=["none", "text", "bytes"])
@pytest.mark.parametrize(
    ("user", "topic", "address"),
    [("ann", None, ("user", "ann")), (7, "a.b", ("user", 7)), (None, "a.b", ("topic", "a.b"))],
)
def test_round_trip(user: Any, topic: Any, address: Any, message: Any, keyring: Keyring | None) -> None:
    """What arrives is what was asked for, under the address of the user, or else of the topic."""
    command = Command(user, topic, 4001, "\u20ac", message)
    envelope = unpack(sent(command, keyring), keyring)
    assert (envelope.kind, envelope.address) == (COMMAND, address)
    carried_out: list[Any] = []

    class Hub:
        def carry_out(self, command: Command, seconds: float) -> None:
            carried_out.append(command)

    hub: Any = Hub()
    assert envelope.command is not None
    Commands(hub).carry_out(address, envelope.command, envelope.message())
    (found,) = carried_out
    assert replace(found, message=None) == replace(command, message=None)
    assert (found.message is None) == (message is None)
    if message is not None:
        assert (found.message.data, found.message.text) == (message.data, message.text)
        assert (found.message.compress is False) == (message.compress is False)


def test_signature_is_needed() -> None:
    """Who lacks the secret disconnects nobody."""
    command = Command("ann", None, 1000, "", None)
    with pytest.raises(RejectedError):
        unpack(sent(command), KEYRING)
    with pytest.raises(RejectedError):
        unpack(sent(command, Keyring(b"t" * 16, "p")), KEYRING)


GOOD = [None, 1000, "", False]


@pytest.mark.parametrize(
    "parts",
    [
        None,
        7,
        {},
        [],
        GOOD[:3],
        [*GOOD, 1],
        [7, *GOOD[1:]],
        ["a.*", *GOOD[1:]],
        [None, 1006, "", False],
        [None, "1000", "", False],
        [None, 1000.5, "", False],
        [None, True, "", False],
        [None, 1000, None, False],
        [None, 1000, "x" * 124, False],
        [None, 1000, "\ud800", False],
        [None, 1000, "", 1],
    ],
)
def test_malformed(parts: Any) -> None:
    """Commands that no relay can have sent raise a ValueError, which inbound counts."""
    head = json.dumps({"u": "ann", "c": parts}).encode()
    data = wire._HEAD.pack(0xF5, 1, COMMAND, 0, 1, time.time_ns(), 0, len(head)) + head
    with pytest.raises(ValueError, match=r"."):
        unpack(data)


def test_each_is_carried_out_once() -> None:
    """A command that comes again, is older than the last one, or is from another time is ignored."""
    hub: Any = None
    seen, now = Commands(hub), time.time_ns()
    ann: Address = ("user", "ann")
    bob: Address = ("user", "bob")
    assert seen.is_new(1, ann, now)
    assert not seen.is_new(1, ann, now)
    assert not seen.is_new(1, ann, now - 1)
    assert seen.is_new(1, bob, now)
    assert seen.is_new(2, ann, now - 1)
    assert seen.is_new(1, ann, now + 1)
    age = int(MAX_AGE * 1e9)
    assert not seen.is_new(3, ann, now - age - 10**9)
    assert not seen.is_new(3, ann, now + age + 60 * 10**9)
    assert not seen.is_new(3, ann, 0)


def test_memory_is_bounded() -> None:
    """However many publishers and names are made up, only so much is known of them."""
    hub: Any = None
    seen, now = Commands(hub), time.time_ns()
    for number in range(LAST + 100):
        assert seen.is_new(number, ("user", "x" * 1000), now)
    assert len(seen._last) == LAST


def test_commands_of_one_relay_grow() -> None:
    """Commands that are sent at the same time have different times, so that none counts as received already."""
    broker: Any = object()
    outbound = Outbound(1, broker, wsfast.DropOldest(), 1, print, None)
    for _ in range(100):
        outbound.command(Command("ann", None, 1000, "", None))
    epochs = [unpack(item.data).epoch for item in outbound._queue]
    assert epochs == sorted(set(epochs))


def test_name_is_too_long() -> None:
    """A command that cannot be packed counts as dropped."""
    broker: Any = object()
    outbound = Outbound(1, broker, wsfast.DropOldest(), 1, print, None)
    outbound.command(Command("u" * (1 << 20), None, 1000, "", None))
    assert (outbound.published, outbound.dropped, outbound.queued) == (1, 1, 0)
