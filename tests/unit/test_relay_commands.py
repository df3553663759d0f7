"""Commands of other processes: what `Hub.disconnect()` sends, and who obeys it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

import wsfast
from helpers.brokers import Nowhere
from wsfast.hub import Command
from wsfast.relay import wire
from wsfast.relay.commands import MAX_AGE, carry_out
from wsfast.relay.outbound import Outbound
from wsfast.relay.wire import MESSAGE, Keyring, RejectedError, unpack

KEYRING = Keyring(b"s" * 16, "p")
"""That of all relays here."""
MESSAGES = [None, wsfast.PreparedMessage("bye"), wsfast.PreparedMessage(b"", compress=False)]


def sent(command: Command, keyring: Keyring | None = None) -> bytes:
    """Return what a relay sends for a command."""
    outbound = Outbound(1, Nowhere(), wsfast.DropOldest(), 1, print, keyring)
    outbound.command(command)
    assert (outbound.published, outbound.queued) == (1, 1)
    (packet,) = outbound._packets(outbound._queue, 1 << 20)
    return packet.data


class Hub:
    """Keeps the commands that it is to carry out."""

    def __init__(self) -> None:
        self.commands: list[Command] = []

    def carry_out(self, command: Command, seconds: float) -> None:
        self.commands.append(command)


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
    assert (envelope.kind, envelope.number, envelope.address) == (MESSAGE, 1, address)
    hub: Any = Hub()
    (item,) = envelope.items
    assert item.command is not None
    carry_out(hub, address, item.command, item.message())
    (found,) = hub.commands
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


GOOD = [1, None, 1000, "", False]


@pytest.mark.parametrize(
    "parts",
    [
        None,
        7,
        {},
        [],
        GOOD[:4],
        [*GOOD, 1],
        [1, 7, *GOOD[2:]],
        [1, "a.*", *GOOD[2:]],
        [1.5, *GOOD[1:]],
        [True, *GOOD[1:]],
        [1, None, 1006, "", False],
        [1, None, "1000", "", False],
        [1, None, 1000.5, "", False],
        [1, None, True, "", False],
        [1, None, 1000, None, False],
        [1, None, 1000, "x" * 124, False],
        [1, None, 1000, "\ud800", False],
        [1, None, 1000, "", 1],
    ],
)
def test_malformed(parts: Any) -> None:
    """Commands that no relay can have sent raise a ValueError, which inbound counts."""
    head, details = b'{"u":"ann"}', json.dumps({"c": parts}).encode()
    item = wire._ITEM.pack(0, 8) + wire._LENGTH.pack(len(details)) + details
    data = wire._HEAD.pack(0xF5, 2, MESSAGE, 0, 1, time.time_ns(), 1, len(head)) + head + item
    with pytest.raises(ValueError, match=r"."):
        unpack(data)


def test_old_commands_are_ignored() -> None:
    """A command from another time is not carried out: clients may have come back since."""
    hub: Any = Hub()
    now, age = time.time_ns(), int(MAX_AGE * 1e9)
    for when in (0, now - age - 10**9, now + age + 60 * 10**9, 10**30):
        carry_out(hub, ("user", "ann"), (when, None, 1000, "", False), wsfast.PreparedMessage(b""))
    assert not hub.commands
    for when in (now, now - age + 60 * 10**9):
        carry_out(hub, ("user", "ann"), (when, None, 1000, "", False), wsfast.PreparedMessage(b""))
    assert len(hub.commands) == 2


def test_name_is_too_long() -> None:
    """A command that cannot be packed counts as dropped."""
    outbound = Outbound(1, Nowhere(), wsfast.DropOldest(), 1, print, None)
    outbound.command(Command("u" * (1 << 20), None, 1000, "", None))
    assert (outbound.published, outbound.dropped, outbound.queued) == (1, 1, 0)
