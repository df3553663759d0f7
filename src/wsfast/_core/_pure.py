"""The core in plain Python: the fallback where the extension is absent, and the definition of what it does.

The extension, `_core`, has the same functions and classes and answers the same tests. It is faster at two things: it
masks with wide instructions, and it writes to the descriptors itself. The twin leaves all writing to the transports.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias
from weakref import ref

from ._process import CollectorPause, collector_paused, detaches, set_threads, threads
from ._receivers import EncoderBase, Encoding, Encodings, WindowBase
from ._table import Members, TickTable

__all__ = [
    "Batch",
    "Buffer",
    "CollectorPause",
    "Cut",
    "EncoderBase",
    "Encoding",
    "Encodings",
    "Encrypted",
    "Members",
    "Peer",
    "TickTable",
    "Verdict",
    "WindowBase",
    "apply_mask",
    "collector_paused",
    "detaches",
    "encode_frame",
    "sends_directly",
    "set_threads",
    "threads",
]

Buffer: TypeAlias = bytes | bytearray | memoryview

Cut: TypeAlias = "tuple[int, Peer, memoryview, Encodings, int]"
"""A frame whose beginning is out: the place of its connection, its peer, the octets up to the end of that frame, which
must be the next ones on this connection, and how many of which messages are out with them."""

sends_directly = False
"""Whether this core writes to descriptors itself."""


class Verdict(enum.IntEnum):
    """What `Peer.check()` finds out about a connection."""

    CLOSED = 0
    """It is not open."""
    DIRECT = 1
    """A frame may be written to its descriptor right now."""
    TRANSPORT = 2
    """Its transport must be given the frame."""
    OWN = 3
    """It must be sent to by its own methods."""


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


class Peer:
    """Cached facts about one connection, stored in its attribute `_wsfast_peer`.

    What cannot change while the connection is open is asked once, here. What can change is asked by `check()`, before
    each message unless the peer is *ready*: then a frame may be written to the descriptor without any question.

    Only connections that tell what happens to them are ever ready (`ConnectionLayout.tells`): they call `invalidate()`
    when somebody takes hold of their protocol or transport, and `check()` when that is over. While the protocol alone
    tells, and is *free*, only the transport is asked. The twin, which leaves writing to the transports, always asks.

    Args:
        connection: An open connection.
        layout: Where it keeps what must be known; None if it must be sent to by its own methods alone.
        transport_layouts: Layout of a type of transports, or None if it is not a known one.
    """

    __slots__ = (
        "__weakref__",
        "_gate",
        "_transport_layout",
        "backlog",
        "connection",
        "direct",
        "dispatcher",
        "encoder",
        "layout",
        "loop",
        "masked",
        "protocol",
        "protocol_free",
        "ready",
        "slot",
        "subscriptions",
        "transport",
    )

    def __init__(self, connection: Any, layout: Any, transport_layouts: Callable[[type], Any]) -> None:
        self.layout: Any = layout
        self.protocol: Any = None
        """None if it must be sent to by its own methods."""
        self.transport: Any = None
        self.loop: Any = connection.loop if layout is None else getattr(connection, layout.loop)
        self.encoder: Any = None
        """An `EncoderBase`; None if its messages are not compressed."""
        self.masked = layout is not None and layout.masked
        self.direct: bool = False
        """Whether it has a descriptor that may be written to while it is ready."""
        self.ready: bool = False
        self.protocol_free: bool = False  # it was open, with nothing to write or continue, and tells when that changes
        self.slot: int = -1
        """In the tick table of its event loop; -1 while it has no subscriptions."""
        self.connection: Any = None
        """The connection, while it has subscriptions: a peer does not keep its connection alive."""
        self.subscriptions: Any = ()
        self.backlog: Any = None
        """What waits for it; None if nothing does."""
        self.dispatcher: Any = None
        self._gate: Any = None
        self._transport_layout: Any = None  # None if it must be sent to by its own methods
        if layout is None:
            return
        self.transport = getattr(connection, layout.transport)
        protocol = getattr(connection, layout.protocol)
        if type(protocol) is not layout.protocol_type:
            return
        self.protocol = protocol
        if layout.gate is not None:
            self._gate = getattr(connection, layout.gate)
        transport_layout = transport_layouts(type(self.transport))
        if (
            transport_layout is None
            or (layout.debug is not None and getattr(protocol, layout.debug) is not False)
            or _has_replaced(connection, layout.methods)
            or _has_replaced(protocol, layout.protocol_methods)
            or _has_replaced(self.transport, transport_layout.methods)
        ):
            return
        encoder = layout.encoder(connection if layout.extensions is None else getattr(protocol, layout.extensions))
        if encoder is not False:
            self.encoder = encoder
            if encoder is not None and layout.tells:
                encoder.peer = ref(self)
            self.direct = transport_layout.direct
            self._transport_layout = transport_layout
            if self.direct and layout.watch is not None:
                layout.watch(protocol, ref(self))

    def check(self, connection: Any) -> Verdict:
        """Look at the connection, and note whether it is ready.

        No name is read here that has the connection call `invalidate()`. It calls no code of the user's.
        """
        layout = self.layout
        self.invalidate()
        if self.protocol is None:
            return Verdict.OWN
        if getattr(self.protocol, layout.state) is not layout.open_state:
            return Verdict.CLOSED
        gate = connection if self._gate is None else self._gate
        if (
            self._transport_layout is None
            or getattr(gate, layout.send_in_progress) is not layout.idle
            or (layout.expect_continuation is not None and getattr(self.protocol, layout.expect_continuation))
            or (layout.writes is not None and getattr(self.protocol, layout.writes))
            or self._is_closing()
        ):
            return Verdict.OWN
        self.protocol_free = self.direct and layout.watch is not None
        self.ready = layout.tells and self.direct and self._is_free(connection)
        return Verdict.TRANSPORT

    def _is_closing(self) -> bool:
        ask = self._transport_layout.is_closing
        return bool(self.transport.is_closing() if ask is None else ask(self.transport))

    def _is_buffering(self) -> bool:
        name = self._transport_layout.buffer
        return bool(self.transport.get_write_buffer_size() if name is None else getattr(self.transport, name))

    def _is_free(self, connection: Any) -> bool:
        """Whether what is written to the descriptor would be next on the wire."""
        transport, layout = self.transport, self._transport_layout
        if transport.get_protocol() is not connection:
            return False  # somebody else is told what happens, as after loop.start_tls()
        if self._is_buffering() or any(getattr(transport, name) is not None for name in layout.clear):
            return False
        if layout.try_write:
            try:
                transport.write(b"")
            except Exception:
                return False  # it will raise the same once more, where it is reported
        return True

    def invalidate(self) -> None:
        """Have the connection be looked at before it is next written to."""
        self.ready = self.protocol_free = False


def _has_replaced(owner: Any, methods: Mapping[str, object]) -> bool:
    """Whether an object has other methods than those of its class."""
    return any(getattr(getattr(owner, name), "__func__", None) is not function for name, function in methods.items())


class Batch:
    """One send to many connections: which can be written to directly, and what was not taken.

    A *place* is the position of a connection in the collection, or the slot of a peer. First `gather()` or `collect()`
    is called, which find out what may be sent to whom, then `send()`. None of them calls code of the user's, so that
    nobody else writes to the connections in between. The caller sees to it that no garbage is collected, whose
    finalizers could; signal handlers must not.
    """

    def __init__(self) -> None:
        self.connections: Any = None
        """By their places, what `gather()` was given: all, in a list, or a dict of whoever was looked at or is left."""
        self.sent = 0
        """How many kernels took all of it."""
        self.stop = 0
        """The position at which `gather()` has stopped."""
        self.done = False
        """Whether something may have been sent."""
        self.closed: list[int] = []
        """Places of connections that are not open."""
        self.cut: list[Cut] = []
        """Frames whose beginning is out."""
        self.refused: list[tuple[int, Peer]] = []
        """Places of those that were not sent to, or not all of it; those that are set aside."""
        self.waiting: list[tuple[int, Peer]] = []
        """Places of those whose transports must be given a whole frame."""
        self.own: list[Any] = []
        """Those that must be sent to by their own methods: positions, or slots with their peers."""
        self.lost: list[tuple[int, Peer, int]] = []
        """Connections that were found to be lost, with the errno that tells why. The kernel tells that only once, and
        not to the transport. They are in `refused`, too."""

    def gather(
        self,
        connections: Collection[Any],
        start: int,
        message: Encodings,
        layouts: Callable[[type], Any],
        transport_layouts: Callable[[type], Any],
        running_loop: Any,
    ) -> None:
        """Find out which connections may be sent a message in one go.

        It stops before the first connection that must wait until those ahead of it are done with: one of an unknown
        type, whose methods may do anything; one of another event loop; in the extension, one that is there already.

        The extension touches no object of those that are ready, if most are, and are not in a deque or WeakSet.

        Args:
            connections: A collection, which may change afterwards; with another `start` than 0, `self.connections`.
            start: Position of the first that is not done with.
            message: What to send; its encodings are asked for only where they are used.
            layouts: Layout of a type of connections, or None if it is unknown.
            transport_layouts: Layout of a type of transports, or None if it is not a known one.
            running_loop: The event loop that runs in this thread, or None.
        """
        self.connections = list(connections) if start == 0 else connections
        self.stop = start
        try:
            while self.stop < len(self.connections):
                connection = self.connections[self.stop]
                layout = layouts(type(connection))
                if layout is None:
                    break
                peer = getattr(connection, "_wsfast_peer", None)
                protocol = getattr(connection, layout.protocol) if peer is None else peer.protocol
                if type(protocol) is not layout.protocol_type:
                    break
                if getattr(protocol, layout.state) is not layout.open_state:
                    self.closed.append(self.stop)
                    self.stop += 1
                    continue
                if getattr(connection, layout.loop) is not running_loop:
                    break
                if peer is None:
                    peer = Peer(connection, layout, transport_layouts)
                    connection._wsfast_peer = peer
                if peer.check(connection) is Verdict.OWN:
                    self.own.append(self.stop)
                else:
                    self.waiting.append((self.stop, peer))
                self.stop += 1
        except Exception:
            pass  # whatever is odd about the connection at which it stopped, the ordinary path will meet and report it

    def collect(
        self, table: TickTable, count: int, sequence_of: Callable[[int], Encodings], ready: bool = False
    ) -> None:
        """Find out which of the next slots of a tick table may be sent to.

        Those that are sent everything are back at node 0 then. All others stay where they are, for the caller to
        `take()` what is left; whom nobody has taken is looked at once more, in the end.

        Args:
            table: The table.
            count: How many slots at most.
            sequence_of: Function of a node: what those at it are sent.
            ready: Whether to leave out those that must be asked.
        """
        if ready:
            return
        generation = table._sending
        if generation.cursor == len(generation.touched):
            generation.cursor = 0
        slots = generation.touched[generation.cursor : generation.cursor + count]
        for slot in slots:
            peer = table.peers[slot]
            if not generation.nodes[slot]:
                continue
            if table._aside[slot] or table._skips[slot]:
                self.refused.append((slot, peer))
                continue
            try:
                verdict = peer.check(peer.connection)
            except Exception:
                verdict = Verdict.OWN
            if verdict is Verdict.CLOSED:
                self.closed.append(slot)
            elif verdict is Verdict.OWN:
                self.own.append((slot, peer))
            else:
                self.waiting.append((slot, peer))
        generation.cursor += len(slots)

    def detach(self, done: Any) -> bool:
        """Have threads send what was collected, while the event loop goes on; `send()` waits for them, and notes it.

        Meanwhile, `TickTable.wait()` has a single slot be done with. In the twin, no threads send.

        Args:
            done: A Notification, to whose `writer` 8 octets are written when all is sent.

        Returns:
            Whether they do; else nothing has been done.
        """
        return False

    @property
    def is_sent(self) -> bool:
        """Whether `send()` would not wait for threads."""
        return True

    def send(self) -> None:
        """Offer each descriptor its frame, and note what was taken. If that fails, frames that were cut are aborted."""
        self.done = True


class Encrypted:
    """Those of a batch that wait, and have transports that encrypt: their frames are encrypted, then all is sent.

    That must leave before anything else is encrypted; so it counts as sent. The twin leaves all to the transports.
    """

    def __init__(self, batch: Batch) -> None:
        self.rests: list[tuple[int, Peer, int, Callable[..., object], tuple[Any, ...]]] = []
        """Places, peers, how many messages, and what to call for these to leave, with which arguments."""
        self.doubtful: list[Peer] = []
        """Whether frames of these have left is not known, if that was interrupted."""

    def send(self) -> bool:
        """Encrypt and send for some; return False if there were none. The others are among those that wait."""
        return False
