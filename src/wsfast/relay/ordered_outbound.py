"""Messages for other processes through a broker that orders and keeps those of topics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Protocol

from wsfast.hub import Command

from .broker import Sending
from .commands import address_of
from .outbound import Outbound
from .packing import Numbered, Packet, Queued
from .wire import Address

__all__ = ["UNPLACED", "OrderedOutbound", "OrderedSending"]

UNPLACED = 0
"""Epoch of packets that the broker does not place: commands about topics."""


class OrderedSending(Sending, Protocol):
    """A connection to a broker for publishing."""

    async def place(self, packets: Sequence[tuple[Address | None, bytes, int]]) -> dict[int, Exception]:
        """Publish packets of so many messages, those of topics at their places; with 0 messages, as `publish()` does.

        A packet that the broker has placed already is ignored.
        """


class OrderedOutbound(Outbound):
    """Publishes the messages of a hub. The broker places those of topics."""

    def command(self, command: Command) -> int:
        """Enqueue a command for other processes. One about a topic has no place among the messages of the topic.

        Returns:
            See `Outbound.command()`.
        """
        kind, name = address_of(command)
        if kind == "user":
            return super().command(command)
        parts = self._parts_of(command)
        self._enter(Numbered((kind, name), UNPLACED), self._item_of(command, parts), last=True)
        self._changed.set()
        return parts[0]

    async def _send(self, sending: Any, packets: Sequence[Packet]) -> dict[int, Exception]:
        """See `Outbound`. Commands wait until the broker has confirmed the messages that were published before them."""
        placed = [(packet.address, packet.data, self._count(packet)) for packet in packets]
        starts = [index for index in range(1, len(packets)) if packets[index].last and not packets[index - 1].last]
        refused: dict[int, Exception] = {}
        for start, stop in pairwise([0, *starts, len(packets)]):
            some: dict[int, Exception] = await sending.place(placed[start:stop])
            refused.update((start + index, reason) for index, reason in some.items())
        return refused

    def _count(self, packet: Packet) -> int:
        """Return the number of messages to place."""
        return 0 if packet.epoch == UNPLACED else packet.messages

    def _packets(self, batch: Iterable[Queued], largest: int) -> list[Packet]:
        """Return the packets of a batch.

        The broker knows a packet again by its numbers, and may have got it although the connection was lost. So
        messages that were given to it before are not put together with others.
        """
        packets: list[Packet] = []
        new: list[Queued] = []
        for message in batch:
            if message.number <= message.position.tried:
                packets += super()._packets([message], largest)
            else:
                new.append(message)
        packets += super()._packets(new, largest)
        for message in new:
            message.position.tried = message.number
        return packets

    def _announces(self, address: Address) -> bool:
        return address[0] == "user"
