"""The tick table in pure Python: see `_pure`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

__all__ = ["Filter", "Members", "TickTable"]

ALL = (1 << 64) - 1
"""Mask of an entry that every filter lets through."""


class Filter:
    """A filter of entries, for any number of slots of one `Members`, and how many it has not let through.

    Args:
        tags: The tags that it stands for. The core does not look at them.
        mask: 64 bits, not all 0. The filter lets an entry through if its mask has one of these bits.
    """

    __slots__ = ("__weakref__", "mask", "skipped", "stamp", "tags")

    def __init__(self, tags: frozenset[str], mask: int) -> None:
        self.tags: frozenset[str] = tags
        self.mask: int = mask
        self.skipped: int = 0
        """Entries published to members with this filter that were not let through."""
        self.stamp: tuple[int, int] = (-1, -1)  # tick and number of the last entry that was tested


class Members:
    """Slots of a tick table that get the same messages, except those that a slot's filter does not let through."""

    __slots__ = ("_filters", "slots", "stamp")

    def __init__(self) -> None:
        self.slots: list[int] = []
        self._filters: dict[int, Filter] = {}  # by slot
        self.stamp: tuple[int, int] = (-1, -1)  # tick and number of the last entry that they got

    def __len__(self) -> int:
        return len(self.slots)

    def add(self, slot: int, wanted: Filter | None = None) -> None:
        """Add a slot that is not a member yet. None lets everything through."""
        self.slots.append(slot)
        if wanted is not None:
            self._filters[slot] = wanted

    def discard(self, slot: int) -> None:
        """Remove a slot if it is a member; the last member takes its place.

        This is a linear search. Leaving is rarer than publishing, and an index would cost more memory than everything
        else.
        """
        if slot in self.slots:
            self._filters.pop(slot, None)
            slots = self.slots.copy()
            slots[slots.index(slot)] = slots[-1]
            del slots[-1]
            self.slots = slots

    def set_filter(self, slot: int, wanted: Filter | None = None) -> None:
        """Replace the filter of a member; None lets everything through.

        Raises:
            ValueError: If the slot is not a member.
        """
        if slot not in self.slots:
            raise ValueError(f"slot {slot} is not a member")
        if wanted is None:
            self._filters.pop(slot, None)
        else:
            self._filters[slot] = wanted

    def count(self, mask: int) -> int:
        """Return the number of members whose filter lets an entry with this mask through."""
        return len(self.passing(mask))

    def passing(self, mask: int) -> list[int]:
        """Return the slots of these members."""
        return [slot for slot in self.slots if slot not in self._filters or self._filters[slot].mask & mask]

    def skipping(self, mask: int) -> list[Filter]:
        """Return the filters that do not let an entry with this mask through."""
        return [one for one in dict.fromkeys(self._filters.values()) if not one.mask & mask]


class TickTable:
    """The messages that each subscriber of an event loop must be sent in this tick.

    Each subscriber has a *slot*: a small number that is reused when the subscriber has left. A published message is an
    *entry*. Subscribers that get the same sequence of entries are at the same *node*, and each further entry leads from
    one node to another. Subscribers that get nothing are at node 0. So a sequence of messages is encoded once per node,
    and publishing costs a few nanoseconds per subscriber.

    There are two *generations* of entries and nodes: one is being published while the other one is being sent. The
    table alone records what must still be sent, so sending can continue after an interruption. Each method is atomic:
    if a signal handler raises an exception in the middle of a method, the method has done everything or nothing.

    In the extension, sending to a subscriber that is ready touches no Python object of that subscriber.
    """

    def __init__(self) -> None:
        self.peers: list[Any] = []
        """Peer of each slot; None if the slot is free."""
        self._free: list[int] = []
        self._aside: list[int] = []
        self._skips: list[int] = []  # for each slot, how many entries of the generation being sent it was sent already
        self._generations = _Generation(), _Generation()
        self._publishing = 0  # index of the generation that is being published
        self._tick = 0  # how often sending has begun
        self.detached = 0
        """Number of slots to which threads are sending. Some may be finished already without being noted."""
        self.settle: Callable[[], None] | None = None
        """Called when `wait()` finds that the frame of such a slot was not taken completely: notes the whole batch."""

    @property
    def _published(self) -> _Generation:
        return self._generations[self._publishing]

    @property
    def _sending(self) -> _Generation:
        return self._generations[1 - self._publishing]

    def add(self, peer: Any) -> int:
        """Give a peer a slot; return the slot."""
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
        """Free the slot of a peer. Messages that were published for it are not sent any more."""
        slot = self._check(peer.slot)
        peer.invalidate()
        first, second = self._generations
        free = [*self._free, slot]
        # From here on, there is no call.
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
        """Exclude a slot from direct sends; `collect()` then lists it as refused. Peers that mask start excluded."""
        self._aside[self._check(slot)] = aside

    def wait(self, slot: int) -> None:
        """Wait until threads have finished sending to a slot. Every other operation on such a slot waits as well."""

    # ---- Publishing

    def enter(self, entry: Any) -> int:
        """Add an entry to the generation that is being published; return its number."""
        self._published.entries.append(entry)
        return len(self._published.entries) - 1

    def publish(
        self,
        members: Members,
        number: int,
        excluded: Collection[int] = (),
        already: list[int] | None = None,
        mask: int = ALL,
    ) -> int:
        """Publish an entry to all members except the excluded ones, after everything published to them before.

        An entry that a filter does not let through is counted once in the filter's `skipped`, and neither `excluded`
        nor `already` matters to members with that filter.

        Publishing the same entry to the same members again in the same tick does nothing, if it was the last one
        published to them.

        Args:
            members: The members.
            number: Number of the entry.
            excluded: Slots that do not get the entry.
            already: List that this method extends with the slots whose last entry is this one; they do not get it
                twice. None if no slot can have got it already.
            mask: Mask of the entry, for the filters of members; 0 if only members without a filter get it.

        Returns:
            Number of slots that got the entry.
        """
        stamp = self._tick, number
        if members.stamp == stamp:
            return 0
        slots, others = [], []
        skipping = [] if mask == ALL else members.skipping(mask)
        for slot in members.slots if not skipping else members.passing(mask):
            if excluded and slot in excluded:
                continue
            node = self._published.nodes[slot]
            if already is not None and node and self._published.steps[node][1] == number:
                others.append(slot)
            else:
                slots.append(slot)
        generation, count = self._published, len(slots)
        nodes, left = generation.after(slots, number)
        # From here on, there is no call.
        generation.nodes, generation.left = nodes, left
        for one in skipping:
            if one.stamp != stamp:
                one.stamp, one.skipped = stamp, one.skipped + 1
        members.stamp = stamp
        if already is not None:
            already += others
        return count

    def extend(self, slot: int, numbers: tuple[int, ...]) -> None:
        """Publish some entries to one slot. Slots at the same node that get the same entries are at one node again."""
        generation = self._published
        before = node = generation.nodes[self._check(slot)]
        for number in numbers:
            node = generation.child(node, number)
        if numbers:
            generation.touched[slot] = None
        left = generation.left + (before == 0 and node != 0)
        nodes = generation.nodes
        # From here on, there is no call.
        nodes[slot] = node
        generation.left = left

    # ---- Sending

    @property
    def published(self) -> bool:
        """Whether entries are being published."""
        return bool(self._published.entries)

    @property
    def sending(self) -> bool:
        """Whether entries are being sent."""
        return bool(self._sending.entries)

    @property
    def left(self) -> int:
        """Number of slots that must still be sent to."""
        return self._sending.left

    def begin(self, start: int) -> None:
        """Begin to send the entries that were published.

        Args:
            start: Index of the first slot to send to, modulo the number of slots.

        Raises:
            ValueError: If the entries published before are still being sent.
        """
        if self.sending:
            raise ValueError("the entries published before are still being sent")
        generation = self._published
        order = list(generation.touched)
        start %= len(order) or 1
        order = order[start:] + order[:start]
        # From here on, there is no call.
        generation.order = order
        self._publishing = 1 - self._publishing
        self._tick += 1

    def finish(self) -> list[Any]:
        """Forget the entries that were sent, and return them.

        Raises:
            ValueError: If some slots have not been sent to.
        """
        if self.left:
            raise ValueError(f"{self.left} slots have not been sent to")
        entries = self._sending.entries
        fresh = _Generation(len(self.peers))
        first, second = self._generations
        self._generations = (first, fresh) if self._publishing == 0 else (fresh, second)
        return entries

    def sequence(self, node: int) -> list[Any]:
        """Return the entries that slots at a node are being sent, in order."""
        return self._sending.sequence(node)

    def node(self, slot: int) -> int:
        """Return the node of a slot in the generation that is being sent."""
        return self._sending.nodes[self._check(slot)]

    def is_pending(self, slot: int) -> bool:
        """Whether a slot must still be sent something."""
        return any(generation.nodes[self._check(slot)] for generation in self._generations)

    def pending(self, slot: int) -> list[Any]:
        """Return all entries that a slot must still be sent."""
        self._check(slot)
        sending = self._sending.sequence(self._sending.nodes[slot])[self._skips[slot] :]
        return sending + self._published.sequence(self._published.nodes[slot])

    def take(self, slot: int, into: list[Any], *, published: bool = False) -> None:
        """Move the entries that are being sent to a slot, and that it was not sent yet, to the end of a list.

        Args:
            slot: The slot.
            into: The list.
            published: Whether to move the entries that are being published as well.
        """
        self._check(slot)
        entries = self.pending(slot) if published else self._sending.sequence(self.node(slot))[self._skips[slot] :]
        sending, other = self._sending, self._published
        # From here on, there is no call, so no signal handler can run in between.
        into += entries
        sending.left -= sending.nodes[slot] != 0
        sending.nodes[slot] = 0
        self._skips[slot] = 0
        if published:
            other.left -= other.nodes[slot] != 0
            other.nodes[slot] = 0


class _Generation:
    """Entries, and which slots get which of them."""

    def __init__(self, slots: int = 0) -> None:
        self.entries: list[Any] = []
        self.nodes = [0] * slots  # node of each slot
        self.steps: list[tuple[int, int]] = [(0, -1)]  # for each node, the node before it and the entry in between
        self.children: dict[tuple[int, int], int] = {}
        self.touched: dict[int, None] = {}  # slots that have left node 0, in that order; some may be back
        self.order: list[int] = []  # the same slots, in the order of sending
        self.cursor = 0  # number of slots in `order` that have been checked
        self.left = 0  # slots that are not at node 0

    def child(self, node: int, number: int) -> int:
        """Return the node to which an entry leads from another one."""
        child = self.children.get((node, number))
        if child is None:
            self.steps.append((node, number))
            child = self.children[node, number] = len(self.steps) - 1
        return child

    def after(self, slots: list[int], number: int) -> tuple[list[int], int]:
        """Return the `nodes` and `left` that result when some slots get an entry."""
        nodes, left = self.nodes.copy(), self.left
        for slot in slots:
            left += nodes[slot] == 0
            nodes[slot] = self.child(nodes[slot], number)
        self.touched.update(dict.fromkeys(slots))
        return nodes, left

    def sequence(self, node: int) -> list[Any]:
        """Return the entries that lead to a node."""
        entries = []
        while node:
            node, number = self.steps[node]
            entries.append(self.entries[number])
        return entries[::-1]
