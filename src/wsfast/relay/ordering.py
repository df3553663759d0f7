"""The order of one topic's messages, as a broker that keeps them gives it.

The broker counts the messages of a topic, publishes each packet with the offset of its first message, and keeps the
last packets. A receiver takes packets whose offset follows the last one. After a gap, it asks for what the broker keeps
from there on; packets that arrive meanwhile wait.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from wsfast.hub import Position

from .wire import Envelope

__all__ = ["PLACE", "PLACED", "Order", "Placed", "Sink", "Stored", "place_of"]

PLACED = 0xF6
"""First byte of a packet with its place in the topic."""

PLACE = re.compile(rb"\xf6([0-9a-f]{16})([0-9]{16})")
"""The place: the epoch, and the offset of the first message in decimal digits. The packet follows."""


def place_of(epoch: str, first: int) -> bytes:
    """Return the place of a packet, given its epoch and the offset of its first message."""
    return b"%c%s%016d" % (PLACED, epoch.encode(), first)


class Placed(NamedTuple):
    """A packet with its place in the topic."""

    epoch: str
    first: int
    """Offset of its first message."""
    envelope: Envelope
    size: int = 0
    """Bytes that it takes while it waits."""

    @property
    def last(self) -> int:
        """Offset of its last message."""
        return self.first + len(self.envelope.items) - 1


class Stored(NamedTuple):
    """A part of what the broker keeps of a topic, from where it was asked for or, in another epoch, from the start."""

    epoch: str
    offset: int
    """Offset of the last message of the topic."""
    packets: Sequence[tuple[Placed, float]]
    """In their order, with the age of each in seconds."""
    more: bool
    """Whether there are more packets."""
    resume: int
    """Offset after which they begin."""


class Sink(Protocol):
    """Gets what comes of the order of one topic. None of the methods calls back."""

    def ask(self) -> None:
        """Ask the broker soon for what `request()` then returns, and give the answer to `stored()`."""

    def has_room(self, size: int) -> bool:
        """Return whether a packet of so many bytes may wait."""

    def waits(self, packets: int, size: int) -> None:
        """Count packets that begin to wait, or, with negative numbers, have stopped waiting."""

    def deliver(self, placed: Placed, start: int) -> None:
        """Deliver the messages of a packet from an index on."""

    def starts(self, placed: Placed) -> int | None:
        """Return which message of a packet is the first for those who subscribed before the first one was received.

        None if all of its messages were published before.
        """

    def retain(self, placed: Placed, stop: int, age: float) -> None:
        """Add the messages of a packet up to an index to the history, but deliver them to nobody."""

    def missing(self, count: int) -> None:
        """Report messages that the broker does not keep any more; 0 if their number is not known."""

    def reject(self, placed: Placed) -> None:
        """Report a packet that has a place that the broker has given to none."""

    def begin(self, position: Position) -> None:
        """Forget the history, which begins again after a position."""

    def end(self, position: Position) -> None:
        """Note that everything up to this position has arrived."""


class Order:
    """Puts the packets of a topic in order, and gives each message to the sink once.

    Args:
        sink: Gets them.
        awaits: Whether the sink will ask the broker for the topic's history; packets wait until then.
    """

    __slots__ = (
        *("_cursor", "_history", "_loading", "_old", "_overflow", "_serial", "_sink", "_sure", "_waiting"),
        *("fetching", "loaded", "position"),
    )

    def __init__(self, sink: Sink, *, awaits: bool) -> None:
        self._sink = sink
        self.position: Position | None = None
        """The last message that was delivered. None before the first."""
        self.loaded: bool = False
        """Whether the hub's history has what the broker keeps."""
        self.fetching: bool = awaits
        """Whether packets wait for an answer of the broker."""
        self._loading = False  # whether the whole history was asked for
        self._history: list[tuple[Placed, float]] = []  # what has come of it
        self._cursor: Position | None = None  # from where on the next part is asked for
        self._waiting: list[Placed] = []
        self._old = 0  # how many of these arrived before the broker was asked
        self._overflow = False  # whether some were dropped because too many waited
        self._sure = False  # whether the broker itself has told the position, not just somebody who published a packet
        self._serial = 0  # of the last request that is valid

    # ---- Asking

    def load(self) -> None:
        """Ask for the whole history, for those who subscribe later; before that, it is not known."""
        self.loaded = False
        self._loading = True
        self._history.clear()
        self._ask(None)

    def fetch(self) -> None:
        """Ask for what has come since the last message that was delivered."""
        self._ask(self._cursor if self._loading else self.position)

    def _ask(self, cursor: Position | None) -> None:
        self._cursor = cursor
        self._serial += 1  # the answer to an earlier request is not what is needed now
        self.fetching = True
        self._sink.ask()

    def request(self) -> tuple[int, Position | None, bool]:
        """Return what to ask for.

        Returns:
            A number to give to `stored()`, after which position the next part begins, and whether the broker has given
            that position: if it does not know it any more, it has lost messages.
        """
        self._old = len(self._waiting)
        return self._serial, self._cursor, self._sure

    # ---- Packets

    def receive(self, placed: Placed) -> None:
        """Take a packet that the broker has published."""
        position = self.position
        if self.fetching:
            self._wait(placed)
        elif position is None:  # nobody knows what came before: somebody subscribed by a pattern
            self.position = Position(placed.epoch, placed.first - 1)
            self._take(placed)
        elif placed.epoch == position.epoch and placed.first <= position.offset + 1:
            self._take(placed)
        else:
            self._wait(placed)
            self.fetch()

    def _take(self, placed: Placed) -> None:
        """Deliver those messages of a packet that follow the last one."""
        assert self.position is not None
        start = self.position.offset + 1 - placed.first
        if start < len(placed.envelope.items):
            self.position = Position(placed.epoch, placed.last)  # first: whatever fails is not tried again
            self._sink.deliver(placed, start)

    def _wait(self, placed: Placed) -> None:
        if self._sink.has_room(placed.size):
            self._waiting.append(placed)
            self._sink.waits(1, placed.size)
        else:  # the broker will be asked for it
            waiting = [*self._stop_waiting(), placed]
            if self.position is None:  # the first one tells where to begin
                self._waiting = waiting[:1]
                self._sink.waits(1, waiting[0].size)
            self._overflow = True

    def _stop_waiting(self) -> list[Placed]:
        """Return the packets that wait, and have none wait any more."""
        waiting, self._waiting, self._old = self._waiting, [], 0
        self._sink.waits(-len(waiting), -sum(placed.size for placed in waiting))
        return waiting

    def close(self) -> None:
        """Forget the packets that wait: nobody wants the topic any more."""
        self._serial += 1
        self._history.clear()
        self._stop_waiting()

    # ---- What the broker keeps

    def stored(self, serial: int, part: Stored) -> None:
        """Take a part of what the broker keeps."""
        if serial != self._serial:
            return
        if self._loading:
            if self._cursor is not None and self._cursor.epoch != part.epoch:
                self._history.clear()
            self._history += part.packets
        if not self._loading or not part.more:
            self._take_part(part.epoch, self._history if self._loading else part.packets, part.offset)
        if part.more:
            self._cursor = Position(part.epoch, part.resume)
            self._sink.ask()
        else:
            self._end(Position(part.epoch, part.offset))

    def _take_part(self, epoch: str, packets: Sequence[tuple[Placed, float]], offset: int) -> None:
        """Take packets. All of a history are taken at once: nobody can subscribe while only a part is there."""
        before = Position(epoch, packets[0][0].first - 1 if packets else offset)
        if self._loading:
            self._sink.begin(before)
        heard = self._waiting[0] if self.position is None and self._waiting else None
        if heard is not None and heard.epoch == epoch and heard.last <= before.offset:  # it is not kept any more
            self.position = Position(epoch, heard.first - 1)
        if self.position is not None and self.position.epoch != epoch:
            self.position = before
            self._sink.missing(0)
        for placed, age in packets:
            self._take_stored(placed, age)

    def _take_stored(self, placed: Placed, age: float) -> None:
        if self.position is None:
            heard = any((one.epoch, one.first) == (placed.epoch, placed.first) for one in self._waiting[:1])
            start = 0 if heard and self._waiting[0].envelope == placed.envelope else self._sink.starts(placed)
            if start is not None:
                self.position = Position(placed.epoch, placed.first - 1 + start)
        known = placed.last if self.position is None else self.position.offset
        stop = min(known - placed.first + 1, len(placed.envelope.items))
        if stop > 0 and self._loading:
            self._sink.retain(placed, stop, age)
        if self.position is not None and placed.last > self.position.offset:
            self._skip(placed.first - 1)
            self._take(placed)

    def _skip(self, offset: int) -> None:
        """Report the messages up to an offset as missing, if there are any."""
        assert self.position is not None
        if offset > self.position.offset:
            missing = offset - self.position.offset
            self.position = Position(self.position.epoch, offset)
            self._sink.missing(missing)

    def _end(self, end: Position) -> None:
        """Note that everything up to a position is there, and take the packets that have waited."""
        if self.position is None:
            self.position = end
        elif self.position.offset > end.offset:  # it was a forged one
            self.position = end
            self._sink.missing(0)
        self._skip(end.offset)
        self._sure = True
        self.loaded = self.loaded or self._loading
        self._loading = self.fetching = False
        self._history.clear()
        overflow, self._overflow = self._overflow, False
        old = self._old
        waiting = self._stop_waiting()
        self._sink.end(self.position)
        genuine = []
        for index, placed in enumerate(waiting):
            if index < old and (placed.epoch != end.epoch or placed.last > end.offset):
                self._sink.reject(placed)  # the broker had published it, and does not know it
            else:
                genuine.append(placed)
        for placed in sorted(genuine, key=lambda placed: (placed.epoch != end.epoch, placed.first)):
            self.receive(placed)
        if overflow and not self.fetching:
            self.fetch()
