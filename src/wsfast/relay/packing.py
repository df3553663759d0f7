"""Packets of messages that wait: those of one topic or user travel together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from wsfast._encoding.message import PreparedMessage

from .wire import MESSAGE, MOST_ITEMS, OVERHEAD, Address, Keyring, head_of, join

__all__ = ["NO_MESSAGE", "PACKET_BYTES", "Numbered", "Packet", "Queued", "packets_of"]

PACKET_BYTES = 64 << 10
"""Bytes of messages per packet, unless it is a single message."""

NO_MESSAGE = PreparedMessage(b"")


class Numbered:
    """The number of the last message of one address."""

    __slots__ = ("address", "epoch", "head", "number", "tried")

    def __init__(self, address: Address, epoch: int) -> None:
        self.address: Address = address
        self.epoch: int = epoch
        self.number: int = 0
        self.tried: int = 0  # number of the last message that was given to a broker that orders messages
        self.head: bytes = b""
        with contextlib.suppress(ValueError):  # it is too long
            self.head = head_of(address)


class Queued(NamedTuple):
    """A message that waits."""

    position: Numbered
    number: int
    data: bytes
    time: float
    last: bool
    """Whether it must not travel before any message that was published before it."""


class Packet(NamedTuple):
    """Messages of one address that travel together."""

    address: Address
    data: bytes
    messages: int
    """Their number."""
    epoch: int
    last: bool
    """Whether it must not travel before any packet before it."""


@dataclass(slots=True)
class _Unfinished:
    """A packet to be, of messages of one address with consecutive numbers."""

    number: int
    """That of the first one."""
    items: list[bytes]
    room: int
    """Bytes that may follow."""
    last: bool


def packets_of(batch: Iterable[Queued], largest: int, publisher: int, keyring: Keyring | None) -> list[Packet]:
    """Return the packets of a batch: messages of one address follow each other there as they do in the batch.

    Args:
        batch: The messages.
        largest: Bytes of the largest packet that the broker takes.
        publisher: The number of the relay.
        keyring: The secrets that packets are signed with; None if they are not signed.
    """
    packets: list[Packet] = []
    unfinished: dict[Numbered, _Unfinished] = {}

    def finish() -> None:
        for position, packet in unfinished.items():
            data = join(MESSAGE, publisher, position.epoch, packet.number, position.head, packet.items, keyring)
            packets.append(Packet(position.address, data, len(packet.items), position.epoch, packet.last))
        unfinished.clear()

    for position, number, data, _, last in batch:
        found = unfinished.get(position)
        if last:
            finish()
        elif found is not None:
            found.room -= len(data)
            # Those in between may have been dropped.
            if found.room >= 0 and len(found.items) < MOST_ITEMS and number == found.number + len(found.items):
                found.items.append(data)
                continue
            finish()  # all of them, since an address may have had two positions
        room = min(PACKET_BYTES, largest - OVERHEAD - len(position.head)) - len(data)
        unfinished[position] = _Unfinished(number, [data], room, last)
    finish()
    return packets
