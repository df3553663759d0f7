"""The tick table in plain Python: see `_pure`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

__all__ = ["Members", "TickTable"]


class Members:
    """Slots of a tick table that get the same messages."""

    __slots__ = ("slots", "stamp")

    def __init__(self) -> None:
        self.slots: list[int] = []
        self.stamp: tuple[int, int] = (-1, -1)  # tick and number of the entry that they got last

    def __len__(self) -> int:
        return len(self.slots)

    def add(self, slot: int) -> None:
        """Add a slot that is not among them."""
        self.slots.append(slot)

    def discard(self, slot: int) -> None:
        """Remove a slot if it is among them; the last one takes its place.

        It is searched for: leaving is rarer than publishing, and an index would cost more memory than all the rest.
        """
        if slot in self.slots:
            slots = self.slots.copy()
            slots[slots.index(slot)] = slots[-1]
            del slots[-1]
            self.slots = slots


class TickTable:
    """What each subscriber of an event loop is to be sent in this tick.

    Each has a *slot*: a small number that is given out again when it has left. What is published is an *entry*.
    Subscribers that get the same sequence of entries are at the same *node*; from each node, every further entry leads
    to another one. At node 0 are those that get nothing. So what a sequence of messages looks like on the wire is
    worked out once per node, and to publish costs a few nanoseconds per subscriber.

    There are two *generations* of entries and nodes: one is being published while the other one is being sent. All that
    is known of what must still be sent is in the table: who is interrupted goes on from there. Each method does all or
    nothing, if a signal handler raises an exception in the middle of it.

    In the extension, no object of a subscriber that is ready is touched to send to it.
    """

    def __init__(self) -> None:
        self.peers: list[Any] = []
        """Of each slot; None if it is free."""
        self._free: list[int] = []
        self._aside: list[int] = []
        self._skips: list[int] = []  # of each slot, how many of its entries that are being sent have been sent
        self._generations = _Generation(), _Generation()
        self._publishing = 0  # which of them is being published
        self._tick = 0  # how often sending has begun
        self.detached = 0
        """To how many slots threads are sending; some of them may be done with, but that is not noted."""
        self.settle: Callable[[], None] | None = None
        """Called if one of these is waited for and its frame was not taken whole: notes the whole batch."""

    @property
    def _published(self) -> _Generation:
        return self._generations[self._publishing]

    @property
    def _sending(self) -> _Generation:
        return self._generations[1 - self._publishing]

    def add(self, peer: Any) -> int:
        """Give a peer a slot, and return it."""
        slot = self._free[-1] if self._free else len(self.peers)
        for numbers in (*(generation.nodes for generation in self._generations), self._skips, self._aside):
            if slot == len(numbers):
                numbers.append(0)
        peer.invalidate()
        if slot == len(self.peers):
            self.peers.append(None)
            self._free.append(slot)
        del self._free[-1]
        self._skips[slot] = 0
        self._aside[slot] = peer.masked
        self.peers[slot] = peer
        peer.slot = slot
        return slot

    def remove(self, peer: Any) -> None:
        """Take the slot of a peer back. Nothing that was published for it is sent any more."""
        slot = self._check(peer.slot)
        peer.invalidate()
        first, second = self._generations
        free = [*self._free, slot]
        # From here on, nothing is called.
        first.left -= first.nodes[slot] != 0
        second.left -= second.nodes[slot] != 0
        first.nodes[slot] = second.nodes[slot] = 0
        self._skips[slot] = 0
        self.peers[slot] = None
        self._free = free
        peer.slot = -1

    def _check(self, slot: int) -> int:
        if not 0 <= slot < len(self.peers) or self.peers[slot] is None:
            raise IndexError(f"there is no slot {slot}")
        return slot

    def set_aside(self, slot: int, aside: bool) -> None:
        """Exclude a slot from direct sends; `collect()` lists it as refused. Peers that mask start excluded."""
        self._aside[self._check(slot)] = aside

    def wait(self, slot: int) -> None:
        """Have a slot be done with to which threads are sending. Whatever else is done to it waits, too."""

    # ---- Publishing

    def enter(self, entry: Any) -> int:
        """Add an entry to those that are being published, and return its number."""
        self._published.entries.append(entry)
        return len(self._published.entries) - 1

    def publish(
        self, members: Members, number: int, excluded: Collection[int] = (), already: list[int] | None = None
    ) -> int:
        """Have all members but the excluded ones get an entry, after all that was published before.

        A second time in the same tick, if it was the last that was published for them, does nothing.

        Args:
            members: Who they are.
            number: That of the entry.
            excluded: Slots that are left out.
            already: List to which are added the slots for which the entry was the last that was published; they do not
                get it twice. None if there are none.

        Returns:
            How many slots got it.
        """
        stamp = self._tick, number
        if members.stamp == stamp:
            return 0
        slots, others = [], []
        for slot in members.slots:
            if excluded and slot in excluded:
                continue
            node = self._published.nodes[slot]
            if already is not None and node and self._published.steps[node][1] == number:
                others.append(slot)
            else:
                slots.append(slot)
        generation, count = self._published, len(slots)
        state = generation.after(slots, number)
        # From here on, nothing is called.
        generation.nodes, generation.touched, generation.listed, generation.left = state
        members.stamp = stamp
        if already is not None:
            already += others
        return count

    def append(self, slot: int, number: int) -> None:
        """Have one slot get an entry."""
        generation = self._published
        state = generation.after([self._check(slot)], number)
        generation.nodes, generation.touched, generation.listed, generation.left = state

    # ---- Sending

    @property
    def published(self) -> bool:
        """Whether there are entries that are being published."""
        return bool(self._published.entries)

    @property
    def sending(self) -> bool:
        """Whether there are entries that are being sent."""
        return bool(self._sending.entries)

    @property
    def left(self) -> int:
        """How many slots are still to be sent to."""
        return self._sending.left

    def begin(self, start: int) -> None:
        """Begin to send what has been published.

        Args:
            start: Index of the first slot to send to, modulo the number of slots.

        Raises:
            ValueError: If what was published before is still being sent.
        """
        if self.sending:
            raise ValueError("what was published before is still being sent")
        touched = self._published.touched
        start %= len(touched) or 1
        touched = touched[start:] + touched[:start]
        generation = self._published
        # From here on, nothing is called.
        generation.touched = touched
        self._publishing = 1 - self._publishing
        self._tick += 1

    def finish(self) -> list[Any]:
        """Forget what has been sent, and return those entries.

        Raises:
            ValueError: If there are slots that have not been sent to.
        """
        if self.left:
            raise ValueError(f"{self.left} slots have not been sent to")
        entries = self._sending.entries
        fresh = _Generation(len(self.peers))
        first, second = self._generations
        self._generations = (first, fresh) if self._publishing == 0 else (fresh, second)
        return entries

    def sequence(self, node: int) -> list[Any]:
        """Return the entries that those at a node are being sent, the first one first."""
        return self._sending.sequence(node)

    def node(self, slot: int) -> int:
        """Return the node of a slot among those that are being sent."""
        return self._sending.nodes[self._check(slot)]

    def is_pending(self, slot: int) -> bool:
        """Whether there is something to be sent to a slot."""
        return any(generation.nodes[self._check(slot)] for generation in self._generations)

    def pending(self, slot: int) -> list[Any]:
        """Return all entries that are to be sent to a slot."""
        self._check(slot)
        sending = self._sending.sequence(self._sending.nodes[slot])[self._skips[slot] :]
        return sending + self._published.sequence(self._published.nodes[slot])

    def take(self, slot: int, into: list[Any], *, published: bool = False) -> None:
        """Move what is being sent to a slot, as far as it has not been sent, to the end of a list.

        Args:
            slot: The slot.
            into: The list.
            published: Whether to move what is being published as well.
        """
        self._check(slot)
        entries = self.pending(slot) if published else self._sending.sequence(self.node(slot))[self._skips[slot] :]
        sending, other = self._sending, self._published
        # From here on, nothing is called: no signal handler can get in between.
        into += entries
        sending.left -= sending.nodes[slot] != 0
        sending.nodes[slot] = 0
        self._skips[slot] = 0
        if published:
            other.left -= other.nodes[slot] != 0
            other.nodes[slot] = 0


class _Generation:
    """Entries, and which slot gets which of them."""

    def __init__(self, slots: int = 0) -> None:
        self.entries: list[Any] = []
        self.nodes = [0] * slots  # of each slot
        self.steps: list[tuple[int, int]] = [(0, -1)]  # of each node, where it came from, and by which entry
        self.children: dict[tuple[int, int], int] = {}
        self.touched: list[int] = []  # slots that have left node 0, in that order, each once
        self.listed: set[int] = set()  # the same
        self.cursor = 0  # how many of them have been looked at
        self.left = 0  # slots that are not at node 0

    def after(self, slots: list[int], number: int) -> tuple[list[int], list[int], set[int], int]:
        """Return `nodes`, `touched`, `listed` and `left` as they are when some slots get an entry."""
        nodes, touched, listed, left = self.nodes.copy(), self.touched.copy(), self.listed.copy(), self.left
        for slot in slots:
            node = nodes[slot]
            child = self.children.get((node, number))
            if child is None:
                self.steps.append((node, number))
                child = self.children[node, number] = len(self.steps) - 1
            if node == 0:
                left += 1
                if slot not in listed:
                    listed.add(slot)
                    touched.append(slot)
            nodes[slot] = child
        return nodes, touched, listed, left

    def sequence(self, node: int) -> list[Any]:
        """Return the entries that lead to a node."""
        entries = []
        while node:
            node, number = self.steps[node]
            entries.append(self.entries[number])
        return entries[::-1]
