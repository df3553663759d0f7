"""The core in plain Python: the fallback where the extension is absent, and the definition of what it does.

The extension, `_core`, has the same functions and answers the same tests. It is faster at two things: it masks many
octets at a time, and it writes to the descriptors itself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from wsfast._encoding.deflate import Encoder
    from wsfast.connections import ConnectionLayout, TransportLayout

__all__ = [
    "Buffer",
    "Cut",
    "Encoding",
    "Encodings",
    "Lost",
    "Members",
    "Roster",
    "Waiting",
    "apply_mask",
    "encode_frame",
    "fan_out",
    "sends_directly",
]

Buffer: TypeAlias = bytes | bytearray | memoryview

Cut: TypeAlias = list[tuple[int, memoryview]]
"""Positions of connections, each with the end of a frame whose beginning is out. Nothing else may be written to these
connections before it. The twin, which leaves all writing to the transports, cuts none."""

Waiting: TypeAlias = "list[tuple[int, Encoder | None]]"
"""Positions of connections, ascending, whose transports must be given the message in a whole frame, each with what
compresses the connection's messages, if anything does."""

Lost: TypeAlias = list[tuple[int, int]]
"""Positions of connections that were found to be lost, each with the errno that tells why. The kernel tells that only
once, and not to the transport."""

ENCODER = "_wsfast_encoder"

sends_directly = False
"""Whether this core writes to descriptors itself."""


class Encoding(Protocol):
    """One way in which a message can stand in a frame."""

    @property
    def first(self) -> int:
        """First octet of the frame."""

    @property
    def payload(self) -> bytes:
        """Payload as it stands in the frame, but for the mask."""

    @property
    def frame(self) -> bytes:
        """The whole unmasked frame."""


class Encodings(Protocol):
    """A message in all the ways in which it can be sent."""

    @property
    def plain(self) -> Encoding:
        """For connections that do not compress."""

    def encoding_for(self, encoder: Encoder) -> Encoding:
        """For one that does. The connection counts as having got it; if it has not, it must be taken back."""

    def take_back(self, encoder: Encoder) -> None:
        """Take note that nothing was sent of what was last chosen for a connection."""


def encode_frame(first: int, payload: Buffer, mask_key: Buffer | None = None) -> bytes:
    """Return a frame as it stands on the wire (RFC 6455, section 5.2).

    Args:
        first: First octet: FIN, RSV1 to RSV3 and opcode.
        payload: Payload as it stands in the frame but for the mask. A memoryview counts as its bytes in C order,
            whatever its shape, strides and item size.
        mask_key: Four octets; None for the unmasked frames of a server.

    Raises:
        ValueError: If `first` is no octet or `mask_key` has not four of them.
    """
    if not 0 <= first <= 255:
        raise ValueError(f"first octet of a frame must be in range(256), not {first}")
    data = memoryview(payload).tobytes()
    length = len(data)
    masked = 0 if mask_key is None else 0x80
    if length < 126:
        header = struct.pack("!BB", first, masked | length)
    elif length < 65536:
        header = struct.pack("!BBH", first, masked | 126, length)
    else:
        header = struct.pack("!BBQ", first, masked | 127, length)
    if mask_key is None:
        return header + data
    key = memoryview(mask_key).tobytes()
    return b"".join((header, key, apply_mask(data, key)))


def apply_mask(data: Buffer, mask_key: Buffer) -> bytes:
    """Return `data` masked or unmasked with `mask_key` (RFC 6455, section 5.3).

    A memoryview counts as its bytes in C order, whatever its shape, strides and item size.

    Raises:
        ValueError: If `mask_key` has not four octets.
    """
    key = memoryview(mask_key).tobytes()
    if len(key) != 4:
        raise ValueError("mask must contain 4 bytes")
    octets = memoryview(data).tobytes()
    size = len(octets)
    # One exclusive-or of two long integers is the fastest way there is in plain Python.
    wide = key * (size // 4) + key[: size % 4]
    return (int.from_bytes(octets, "little") ^ int.from_bytes(wide, "little")).to_bytes(size, "little")


def fan_out(
    connections: list[Any],
    start: int,
    message: Encodings,
    layouts: Callable[[type], ConnectionLayout | None],
    transport_layouts: Callable[[type], TransportLayout | None],
    running_loop: Any,
    cut: Cut,
) -> tuple[int, int, int, Waiting, list[int], Lost]:
    """Send a message to as many connections as may be sent to in one sweep.

    The sweep ends before the first connection that must wait until those ahead of it are done with: one of an unknown
    type, whose methods may do anything; one of another event loop; in the extension, one that is in the sweep already.
    It calls no code of the user's, so that nobody else writes to the connections in the meantime. The caller sees to it
    that no garbage is collected, whose finalizers could; signal handlers must not.

    Args:
        connections: All of them; those before `start` are done with.
        start: Position of the first.
        message: What to send; its encodings are asked for only where they are used.
        layouts: Layout of a type of connections, or None if it is unknown.
        transport_layouts: Layout of a type of transports, or None if it is not a known one.
        running_loop: The event loop that runs in this thread, or None.
        cut: List to which is added what was cut off from frames whose beginning is out. The caller has it even if an
            exception is raised on the way, as by a signal handler. Then, the encoders of the connections must be told
            to forget what they noted.

    Returns:
        The position at which the sweep ended; how many kernels took the whole frame; how many connections were skipped
        since they are not open; those whose transports must be given the frame; the positions, ascending, of those that
        must take the ordinary path; and what was found out about lost connections.
    """
    skipped = 0
    waiting: Waiting = []
    ordinary: list[int] = []
    position = start
    try:
        while position < len(connections):
            connection = connections[position]
            layout = layouts(type(connection))
            if layout is None:
                break
            protocol = getattr(connection, layout.protocol)
            if type(protocol) is not layout.protocol_type:
                break
            if getattr(protocol, layout.state) is not layout.open_state:
                skipped += 1
            elif getattr(connection, layout.loop) is not running_loop:
                break
            elif (
                (transport := getattr(connection, layout.transport)) is None
                or (transport_layout := transport_layouts(type(transport))) is None
                or _is_busy(connection, layout)
                or (encoder := _encoder_of(connection, protocol, transport, layout, transport_layout)) is False
                or (layout.expect_continuation is not None and getattr(protocol, layout.expect_continuation))
                or (layout.writes is not None and getattr(protocol, layout.writes))
                or transport.is_closing()
            ):
                ordinary.append(position)
            else:
                waiting.append((position, encoder))
            position += 1
    except Exception:
        pass  # whatever is odd about the connection at which it stopped, the ordinary path will meet and report it
    return position, 0, skipped, waiting, ordinary, []


def _encoder_of(
    connection: Any, protocol: Any, transport: Any, layout: ConnectionLayout, transport_layout: TransportLayout
) -> Encoder | Literal[False] | None:
    """Return what compresses the messages of an open connection, as `ConnectionLayout.encoder` does.

    False also if it sends messages otherwise than is known. As far as all that cannot change, it is asked only once.
    """
    encoder: Encoder | Literal[False] | None
    try:
        encoder = getattr(connection, ENCODER)
    except AttributeError:
        if (
            (layout.debug is not None and getattr(protocol, layout.debug))
            or _has_replaced(connection, layout.methods)
            or _has_replaced(protocol, layout.protocol_methods)
            or _has_replaced(transport, transport_layout.methods)
        ):
            encoder = False
        else:
            encoder = layout.encoder(connection if layout.extensions is None else getattr(protocol, layout.extensions))
        setattr(connection, ENCODER, encoder)
    return encoder


def _is_busy(connection: Any, layout: ConnectionLayout) -> bool:
    """Whether something is being sent that must not be interrupted."""
    gate = connection if layout.gate is None else getattr(connection, layout.gate)
    return getattr(gate, layout.send_in_progress) is not layout.idle


def _has_replaced(owner: Any, methods: Mapping[str, object]) -> bool:
    """Whether an object has other methods than those of its class."""
    return any(getattr(getattr(owner, name), "__func__", None) is not function for name, function in methods.items())


class Members:
    """Slots of a roster that receive the same messages."""

    __slots__ = ("slots",)

    def __init__(self) -> None:
        self.slots: list[int] = []

    def __len__(self) -> int:
        return len(self.slots)

    def add(self, slot: int) -> None:
        """Add a slot that is not among them."""
        self.slots.append(slot)

    def remove(self, slot: int) -> None:
        """Remove a slot that is among them; the last one takes its place.

        It is searched for: leaving is rarer than publishing, and an index would cost more memory than all the rest.

        Raises:
            ValueError: If it is not among them.
        """
        try:
            index = self.slots.index(slot)
        except ValueError:
            raise ValueError(f"slot {slot} is not a member") from None
        last = self.slots.pop()
        if index < len(self.slots):
            self.slots[index] = last


class Roster:
    """What each subscriber of an event loop is to be sent in this tick, and whether it may be written to directly.

    Each has a slot: a small number that is given out again when it has left. What is published is an *entry*, a number
    that means something to the caller. Subscribers that get the same sequence of entries are at the same *node*; from
    each node, every further entry leads to another one. At node 0 are those that get nothing.
    """

    def __init__(self) -> None:
        self._nodes: list[int] = []  # of each slot
        self._has_fd: list[bool] = []
        self._aside: list[bool] = []
        self._free: list[int] = []
        self._touched: list[int] = []  # slots that are not at node 0, in the order in which they left it
        self._done = 0  # how many of them have been taken
        self._steps: list[tuple[int, int]] = [(0, -1)]  # of each node, where it came from, and by which entry
        self._children: dict[tuple[int, int], int] = {}

    def add(self, fd: int = -1) -> int:
        """Return a new slot. It is not ready.

        Args:
            fd: Descriptor that unmasked frames may be written to while the slot is ready; -1 if it never is.
        """
        if self._free:
            slot = self._free.pop()
            self._has_fd[slot] = fd >= 0
            return slot
        self._nodes.append(0)
        self._has_fd.append(fd >= 0)
        self._aside.append(False)
        return len(self._nodes) - 1

    def remove(self, slot: int) -> None:
        """Give a slot back. Nothing that was published for it is sent any more."""
        if self._nodes[slot]:
            self._nodes[slot] = 0
            del self._touched[self._touched.index(slot, self._done)]
        self._aside[slot] = False
        self._free.append(slot)

    def set_ready(self, slot: int, ready: bool) -> None:
        """Say whether the slot's descriptor may be written to at any moment, or that must be asked each time.

        Raises:
            ValueError: If it is to be ready, and has no descriptor.
        """
        if ready and not self._has_fd[slot]:
            raise ValueError(f"slot {slot} has no descriptor")

    def set_aside(self, slot: int, aside: bool) -> None:
        """Say whether to list the slot among the leftovers, rather than to send to it or to have it asked."""
        self._aside[slot] = aside

    @property
    def pending(self) -> int:
        """How many slots have something to be sent."""
        return len(self._touched) - self._done

    def node(self, slot: int) -> int:
        """Return where a slot is."""
        return self._nodes[slot]

    def is_pending(self, slot: int) -> bool:
        """Whether there is something to be sent to a slot."""
        return self._nodes[slot] != 0

    def publish(
        self, members: Members, entry: int, excluded: Collection[int] = (), already: list[int] | None = None
    ) -> int:
        """Have all members but the excluded ones get an entry, after all that was published before.

        Args:
            members: Who they are.
            entry: The entry.
            excluded: Slots that are left out.
            already: List to which are added the slots for which the entry was the last that was published; they do not
                get it twice. None if there are none.

        Returns:
            How many slots got it.
        """
        count = 0
        for slot in members.slots:
            if excluded and slot in excluded:
                continue
            node = self._nodes[slot]
            if already is not None and node and self._steps[node][1] == entry:
                already.append(slot)
                continue
            self.append(slot, entry)
            count += 1
        return count

    def append(self, slot: int, entry: int) -> None:
        """Have one slot get an entry."""
        node = self._nodes[slot]
        if node == 0:
            self._touched.append(slot)
        child = self._children.get((node, entry))
        if child is None:
            child = self._children[node, entry] = len(self._steps)
            self._steps.append((node, entry))
        self._nodes[slot] = child

    def sequence(self, node: int) -> list[int]:
        """Return the entries that those at a node get, the first one first."""
        entries = []
        while node:
            node, entry = self._steps[node]
            entries.append(entry)
        return entries[::-1]

    def send(
        self,
        count: int,
        start: int,
        owners: list[Any],
        frames: Callable[[int], bytes],
        leftovers: list[tuple[int, int, int]],
        asked: dict[int, list[Any]],
    ) -> int:
        """Send to the next slots what they are to get, and bring them back to node 0.

        Args:
            count: How many slots at most.
            start: Where among all that is pending to begin, if none has been sent to yet; modulo their number.
            owners: Whose each slot is.
            frames: Function of a node: all frames for it, one behind the other.
            leftovers: List to which are added the slots whose kernels did not take everything, each with its node and
                what `wsf.h` calls the result; and those that are set aside, with 0. The caller has it even if an
                exception is raised on the way.
            asked: For each node the owners of the slots that are not ready; as above.

        Returns:
            How many kernels took everything.

        Raises:
            MemoryError: If something may have been cut off that could not be listed.
            ValueError: If there are fewer owners than slots; then nothing was sent.
        """
        if len(owners) < len(self._nodes):
            raise ValueError(f"{len(self._nodes)} slots have {len(owners)} owners")
        if self._done == 0 and self._touched:
            start %= len(self._touched)
            self._touched = self._touched[start:] + self._touched[:start]
        slots = self._touched[self._done : self._done + count]
        for slot in slots:
            if self._aside[slot]:
                leftovers.append((slot, self._nodes[slot], 0))
            else:
                asked.setdefault(self._nodes[slot], []).append(owners[slot])
            self._nodes[slot] = 0
        self._done += len(slots)
        return 0

    def compact(self) -> int:
        """Forget, while some slots are pending, what none of them needs any more.

        The first entries, of which there are as many as is returned, are forgotten; all others are renumbered, so that
        the first of these is 0. So are the nodes.

        Raises:
            ValueError: If nothing is pending.
        """
        del self._touched[: self._done]
        self._done = 0
        if not self._touched:
            raise ValueError("no slots are pending")
        needed: set[int] = set()
        for slot in self._touched:
            node = self._nodes[slot]
            while node and node not in needed:
                needed.add(node)
                node = self._steps[node][0]
        first = min(self._steps[node][1] for node in needed)
        places = {0: 0}
        steps = [(0, -1)]
        for node in sorted(needed):
            parent, entry = self._steps[node]
            places[node] = len(steps)
            steps.append((places[parent], entry - first))
        self._steps = steps
        self._children = {step: node for node, step in enumerate(steps) if node}
        for slot in self._touched:
            self._nodes[slot] = places[self._nodes[slot]]
        return first

    def reset(self) -> None:
        """Forget all nodes, once nothing is pending."""
        if self.pending:
            raise ValueError(f"{self.pending} slots are pending")
        self._touched.clear()
        self._done = 0
        del self._steps[1:]
        self._children.clear()
