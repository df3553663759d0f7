"""The core in pure Python: the fallback without the C extension, and the readable definition of what the core does.

The extension, `_core`, has the same functions and classes and passes the same tests. It does two things faster: it
masks with wide instructions, and it writes to the descriptors itself. This module, called the twin of the extension,
leaves all writing to the transports.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias
from weakref import ref

from ._process import CollectorPause, collector_paused, detaches, set_threads, threads
from ._receivers import EncoderBase, Encoding, Encodings, WindowBase
from ._table import Filter, Members, TickTable

__all__ = [
    "Batch",
    "Buffer",
    "CollectorPause",
    "Cut",
    "EncoderBase",
    "Encoding",
    "Encodings",
    "Encrypted",
    "Filter",
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
"""A frame that was sent in part: the place of its connection; its peer; the rest of the frame, which must be the next
octets on this connection; the messages; and how many of these are sent once the rest is."""

sends_directly = False
"""Whether this core writes to descriptors itself."""


class Verdict(enum.IntEnum):
    """The result of `Peer.check()`: how to send to a connection."""

    CLOSED = 0
    """The connection is not open."""
    DIRECT = 1
    """A frame may be written to its descriptor right now."""
    TRANSPORT = 2
    """The frame must be written to its transport."""
    OWN = 3
    """The message must be sent through the connection's own methods."""


def encode_frame(first: int, payload: Buffer, mask_key: Buffer | None = None) -> bytes:
    """Return a frame as it is sent on the wire (RFC 6455, section 5.2).

    Args:
        first: First octet: FIN, RSV1 to RSV3 and opcode.
        payload: Payload before masking. A memoryview counts as its bytes in C order, whatever its shape, strides and
            item size.
        mask_key: Four octets; None for the unmasked frames of a server.

    Raises:
        ValueError: If `first` is not an octet, or `mask_key` does not have four octets.
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
        ValueError: If `mask_key` does not have four octets.
    """
    key = memoryview(mask_key).tobytes()
    if len(key) != 4:
        raise ValueError("mask must contain 4 bytes")
    octets = memoryview(data).tobytes()
    size = len(octets)
    # One exclusive-or of two long integers is the fastest way in pure Python.
    wide = key * (size // 4) + key[: size % 4]
    return (int.from_bytes(octets, "little") ^ int.from_bytes(wide, "little")).to_bytes(size, "little")


class Peer:
    """Cached state of one connection, stored in its attribute `_wsfast_peer`.

    The constructor reads the state that cannot change while the connection is open. `check()` reads the state that can
    change. It is called before each message, unless the peer is *ready*: then a frame may be written to the descriptor
    without any check.

    Only connections that report their changes of state are ever ready (`ConnectionLayout.reports`). They call
    `invalidate()` when code accesses their protocol or transport, and `check()` when that access is over. If only the
    protocol reports changes, the peer can be `protocol_free`: then only the transport is checked. The twin, which
    leaves writing to the transports, always checks.

    Args:
        connection: An open connection.
        layout: Where the connection keeps its state; None if only its own methods may send to it.
        transport_layouts: Function that returns the layout of a type of transports, or None if the type is unknown.
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
        """None if only the connection's own methods may send to it."""
        self.transport: Any = None
        self.loop: Any = connection.loop if layout is None else getattr(connection, layout.loop)
        self.encoder: Any = None
        """An `EncoderBase`; None if messages are not compressed."""
        self.masked = layout is not None and layout.masked
        self.direct: bool = False
        """Whether the connection has a descriptor that may be written to while the peer is ready."""
        self.ready: bool = False
        self.protocol_free: bool = False  # open, with nothing to write or continue, and will report when that changes
        self.slot: int = -1
        """Slot in the tick table of the event loop; -1 while the connection has no subscriptions."""
        self.connection: Any = None
        """The connection while it has subscriptions, else None, so that the peer does not keep it alive longer."""
        self.subscriptions: Any = ()
        self.backlog: Any = None
        """Messages that wait for the connection; None if there are none."""
        self.dispatcher: Any = None
        self._gate: Any = None
        self._transport_layout: Any = None  # None if only the connection's own methods may send to it
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
            if encoder is not None and layout.reports:
                encoder.peer = ref(self)
            self.direct = transport_layout.direct
            self._transport_layout = transport_layout
            if self.direct and layout.watch is not None:
                layout.watch(protocol, ref(self))

    def check(self, connection: Any) -> Verdict:
        """Check the state of the connection, and note whether it is ready.

        This method runs no user code, and reads no attribute that makes the connection call `invalidate()`.
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
        self.ready = layout.reports and self.direct and self._is_free(connection)
        return Verdict.TRANSPORT

    def _is_closing(self) -> bool:
        ask = self._transport_layout.is_closing
        return bool(self.transport.is_closing() if ask is None else ask(self.transport))

    def _is_buffering(self) -> bool:
        name = self._transport_layout.buffer
        return bool(self.transport.get_write_buffer_size() if name is None else getattr(self.transport, name))

    def _is_free(self, connection: Any) -> bool:
        """Whether data written to the descriptor would be the next data on the wire."""
        transport, layout = self.transport, self._transport_layout
        if transport.get_protocol() is not connection:
            return False  # the transport reports to another protocol, for example after loop.start_tls()
        if self._is_buffering() or any(getattr(transport, name) is not None for name in layout.clear):
            return False
        if layout.try_write:
            try:
                transport.write(b"")
            except Exception:
                return False  # the real write will raise it again, and that is reported
        return True

    def invalidate(self) -> None:
        """Require a check before the connection is written to again."""
        self.ready = self.protocol_free = False


def _has_replaced(owner: Any, methods: Mapping[str, object]) -> bool:
    """Whether some of these methods were replaced on the object itself."""
    return any(getattr(getattr(owner, name), "__func__", None) is not function for name, function in methods.items())


class Batch:
    """One send to many connections: those that can be written to directly, and the messages that were not taken.

    A *place* is the position of a connection in the collection, or the slot of a peer. The caller first calls
    `gather()` or `collect()`, which find out which connections can be sent to and what to send them, and then `send()`.
    None of these methods runs user code, so nothing else writes to the connections in between. The caller must pause
    the garbage collector, because finalizers could write. Signal handlers must not write.
    """

    def __init__(self) -> None:
        self.connections: Any = None
        """Connections given to `gather()`, by place: a list of all, or a dict of those that were checked or not sent
        to completely."""
        self.sent = 0
        """Number of connections that were sent the whole message."""
        self.stop = 0
        """Position at which `gather()` stopped."""
        self.done = False
        """Whether something may have been sent."""
        self.closed: list[int] = []
        """Places of connections that are not open."""
        self.cut: list[Cut] = []
        """Frames that were sent in part."""
        self.refused: list[tuple[int, Peer]] = []
        """Connections that took nothing, or not all messages; and those that are set aside."""
        self.waiting: list[tuple[int, Peer]] = []
        """Connections to whose transports a whole frame must be written."""
        self.own: list[Any] = []
        """Connections whose own methods must send: positions, or slots with their peers."""
        self.lost: list[tuple[int, Peer, int]] = []
        """Connections that were found to be lost, each with the errno that says why. The kernel reports that only once,
        and not to the transport. They are in `refused` as well."""

    def gather(
        self,
        connections: Collection[Any],
        start: int,
        message: Encodings,
        layouts: Callable[[type], Any],
        transport_layouts: Callable[[type], Any],
        running_loop: Any,
    ) -> None:
        """Find out which connections can be sent a message in one go.

        It stops before the first connection that must wait until the ones before it are finished: one of an unknown
        type, whose methods may do anything; one of another event loop; and in the extension, one that occurs a second
        time.

        If most connections are ready, and the collection is neither a deque nor a WeakSet, the extension touches no
        object of the connections that are ready.

        Args:
            connections: A collection, which may change afterwards. If `start` is not 0, `self.connections`.
            start: Position of the first connection that is not finished.
            message: The message to send. Its encodings are created only when they are used.
            layouts: Function that returns the layout of a type of connections, or None if the type is unknown.
            transport_layouts: Function that returns the layout of a type of transports, or None if the type is unknown.
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
            pass  # the connection's own methods will fail in the same way, and that is reported

    def collect(
        self, table: TickTable, count: int, sequence_of: Callable[[int], Encodings], ready: bool = False
    ) -> None:
        """Find out which of the next slots of a tick table can be sent to.

        Slots that were sent everything are back at node 0 after `send()`. All other slots keep their node, and the
        caller calls `take()` for the rest. A slot that was not taken is checked again at the end.

        Args:
            table: The tick table.
            count: Most slots to check.
            sequence_of: Function that returns what the slots at a node are sent.
            ready: Whether to leave out peers that are not ready and must be checked.
        """
        if ready:
            return
        generation = table._sending
        if generation.cursor == len(generation.order):
            generation.cursor = 0
        slots = generation.order[generation.cursor : generation.cursor + count]
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
        """Let threads send what was collected while the event loop continues. `send()` waits for them.

        Meanwhile, `TickTable.wait()` finishes a single slot. In the twin, no threads send.

        Args:
            done: A `Notification`. 8 octets are written to its `writer` when everything is sent.

        Returns:
            Whether threads send. If not, nothing was done.
        """
        return False

    @property
    def is_sent(self) -> bool:
        """Whether `send()` would not wait for threads."""
        return True

    def send(self) -> None:
        """Offer each descriptor its frame, and note what was taken.

        If noting fails, for lack of memory, connections that were sent a part of a frame are aborted.
        """
        self.done = True


class Encrypted:
    """The waiting connections of a batch whose transports encrypt: encrypts their frames, then sends all of them.

    Encrypted data must leave before anything else is encrypted, so it counts as sent. The twin leaves everything to the
    transports.
    """

    def __init__(self, batch: Batch) -> None:
        self.rests: list[tuple[int, Peer, int, Callable[..., object], tuple[Any, ...]]] = []
        """Encrypted data that has not left: place, peer, number of messages, and the function that sends it with its
        arguments."""
        self.doubtful: list[Peer] = []
        """Peers for which it is unknown whether their frames have left, if sending was interrupted."""

    def send(self) -> bool:
        """Encrypt and send to some connections; return False if none are left.

        Connections that cannot be encrypted for are put back among those that wait.
        """
        return False
