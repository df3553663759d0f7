"""Delivery: the only module that writes to connections.

Each delivery is one critical section with three phases. *Gather* checks each connection once and puts those that can be
written to directly into dense arrays. *Send* is one tight loop in C over these arrays. *Settle* gives the rest of each
frame that the kernel took only in part to the connection's transport. Connections with transports that encrypt come
next, in three phases of their own.

Nothing else may write to a connection between the two parts of a frame. So the garbage collector, which calls
finalizers, is paused. And an exception that can come at any time, such as one of a signal handler, aborts the
connections whose frames are incomplete. Messages that were not taken are left to the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._core import core
from ._core._process import check_threads, default_threads
from ._encoding.message import PreparedMessage, frame_for
from .connections import is_buffering, transport_layout
from .connections.foreign import abort
from .connections.shape import is_closing, is_open, is_sending, keep_reason, send_message, transport_of
from .connections.websockets import connection_layout

__all__ = [
    "GONE",
    "OWN",
    "Outcome",
    "deliver",
    "detach",
    "give",
    "offer",
    "offer_by_own_methods",
    "report_lost",
    "set_threads",
    "settle",
    "threads",
]

GONE, OWN = -1, -2
"""Results of `offer()`: the connection takes no more messages, or must be sent to through its own methods."""


def set_threads(threads: int | None, *, detach: bool = True) -> None:
    """Set how many threads send a message that goes to 256 connections or more at once.

    The threads share the connections and send at the same time; the calling thread is one of them. When `broadcast()`
    or `flush()` returns, everything is sent, as with one thread. The other threads start when they are first needed,
    and sleep between sends. They run no Python code.

    Args:
        threads: Number of threads, 1 to 64. With 1, no other thread is ever started. None for the default: the value of
            the environment variable WSFAST_THREADS if it is set, else half of the processors that the process may use,
            at most 8. Processors that the process may not use, because of its affinity or the CPU quota of its control
            group, do not count.
        detach: Whether the event loop continues while the threads send what channels and hubs published to connections
            of `wsfast.serve()` and other connections that report changes of state. Any operation on one of these
            connections then waits until it was sent its messages, and `flush()` waits for all of them. If False, the
            event loop thread sends as well, and waits for the others. On a free-threaded build of Python, it always
            does.

    Raises:
        TypeError: If `threads` is neither an integer nor None, or `detach` is not a bool.
        ValueError: If `threads` is out of range.
    """
    if not isinstance(detach, bool):
        raise TypeError(f"detach must be a bool, not {detach!r}")
    number = default_threads().number if threads is None else check_threads(threads)
    core.set_threads(number, detach=detach)


def threads() -> int:
    """Return how many threads send: see `set_threads()`. Without the C extension, it is always 1."""
    return int(core.threads())


class Outcome:
    """The outcome of one delivery."""

    __slots__ = ("batch", "counts", "doubtful", "encrypted", "failures", "given")

    def __init__(self) -> None:
        self.batch = core.Batch()
        self.counts: dict[int, int] = {}
        """Maps places whose frames were cut to the number of messages sent, including the one that was cut."""
        self.failures: dict[int, Exception] = {}
        """Maps places whose transports could not be written to, to the exception raised."""
        self.doubtful: Any = None
        """The peer that is being written to. If the write is interrupted, its connection is aborted."""
        self.encrypted: core.Encrypted | None = None
        """The part of the batch whose frames were encrypted here."""
        self.given = False
        """Whether a transport or a connection's own method was given a message that is not noted yet."""

    def write_ends(self) -> None:
        """Write the rest of each frame that was cut."""
        cut = self.batch.cut
        while cut:
            place, peer, rest, message, count = cut[-1]
            if peer.encoder is not None:
                peer.encoder.move_to(message.after(peer.encoder.state, count))
            self.write(place, peer, rest)
            if place in self.failures:
                abort(peer.transport)  # nothing may follow half a frame
            self.counts[place] = count
            cut.pop()

    def send_encrypted(self) -> None:
        """Send, in parts, to the waiting connections whose frames can be encrypted here."""
        encrypted = self.encrypted = core.Encrypted(self.batch)
        while encrypted.send():
            if self.batch.cut:
                self.write_ends()
            rests = encrypted.rests
            while rests:
                place, peer, count, function, arguments = rests[-1]
                try:
                    function(*arguments)
                except Exception as exc:
                    self.failures[place] = exc
                    abort(peer.transport)
                self.counts[place] = count
                rests.pop()

    def write_frame(self, place: int, peer: core.Peer, message: core.Encodings) -> None:
        """Write whole frames to a transport."""
        peer.invalidate()  # from here on, the encoder holds the current state
        encoder = peer.encoder
        frame, window = frame_for(encoder, message, masked=peer.masked)
        if encoder is not None and window is not encoder.state:
            encoder.forget()  # in case the write is interrupted
        self.write(place, peer, frame)
        if encoder is not None and place not in self.failures:
            encoder.move_to(window)

    def write(self, place: int, peer: core.Peer, data: core.Buffer) -> None:
        """Write to a transport; if it raises an exception, store that."""
        peer.invalidate()
        self.doubtful = peer
        try:
            peer.transport.write(data)
        except Exception as exc:
            self.failures[place] = exc
        self.doubtful = None
        self.given = True

    def abort(self) -> None:
        """Abort the connections whose frames may be incomplete."""
        peers = [peer for _, peer, *_ in self.batch.cut]
        if self.doubtful is not None:
            peers.append(self.doubtful)
        if self.encrypted is not None:
            peers += self.encrypted.doubtful
            peers += [peer for _, peer, *_ in self.encrypted.rests]
        for peer in peers:
            peer.invalidate()
            abort(transport_of(peer))


def deliver(
    outcome: Outcome, gather: Callable[[core.Batch], None], overflow: core.Encodings | None = None
) -> core.Batch:
    """Gather, send, settle.

    Args:
        outcome: The object to fill; the caller can read it even if this call is interrupted.
        gather: Function that fills a batch.
        overflow: The message, to write whole frames to the transports of connections that could not be sent to
            directly, however much waits there. None to leave these connections to the caller.

    Returns:
        The batch.
    """
    with core.collector_paused:
        try:
            gather(outcome.batch)
            _send(outcome, overflow)
        except BaseException:
            outcome.abort()
            raise
    return outcome.batch


def detach(outcome: Outcome, gather: Callable[[core.Batch], None], done: object) -> bool:
    """Gather, and let threads send while the event loop continues. `settle()` must be called afterwards.

    Args:
        outcome: As in `deliver()`.
        gather: Function that fills a batch with peers that are ready. From then on, any operation on one of these peers
            first invalidates it, and that waits until it was sent to. So the critical section ends with this call.
        done: See `Batch.detach()`.

    Returns:
        Whether threads send. If not, nothing was sent.
    """
    with core.collector_paused:
        gather(outcome.batch)
        return outcome.batch.detach(done)


def settle(outcome: Outcome) -> None:
    """Send to the connections gathered, or wait for the threads that do, and settle.

    If an earlier call was interrupted, this one continues where it stopped.
    """
    with core.collector_paused:
        try:
            _send(outcome, None)
        except BaseException:
            outcome.abort()
            raise


def _send(outcome: Outcome, overflow: core.Encodings | None) -> None:
    batch = outcome.batch
    if not batch.done:
        batch.send()
    if batch.cut:
        outcome.write_ends()
    if batch.waiting and core.sends_directly:
        outcome.send_encrypted()
    if overflow is not None and (batch.waiting or batch.refused):
        for place, peer in sorted((*batch.waiting, *batch.refused), key=_place_of):
            outcome.write_frame(place, peer, overflow)


def _place_of(item: tuple[int, Any]) -> int:
    return item[0]


def report_lost(batch: core.Batch, connection_of: Callable[[int, core.Peer], Any]) -> None:
    """Store the reason why each connection was lost. `connection_of` maps a place and a peer to the connection."""
    for place, peer, errno in batch.lost:
        connection = connection_of(place, peer)
        if connection is not None:
            keep_reason(connection, errno)


def offer(
    outcome: Outcome,
    peer: core.Peer,
    message: core.Encodings,
    count: int,
    *,
    insist: bool = False,
    overflow: bool = False,
) -> int:
    """Offer messages to a connection; return how many of them it took, or GONE, or OWN.

    Args:
        outcome: As in `deliver()`.
        peer: The peer of the connection.
        message: The messages, one after the other.
        count: Number of messages.
        insist: Whether to give the messages to the transport if the kernel takes nothing although it reported room. The
            reason then is not a lack of room, and the transport must find out the real one.
        overflow: Whether to give the messages to the transport in any case, except those after a frame that the kernel
            cut.
    """
    connection = peer.connection
    batch = deliver(
        outcome,
        lambda batch: batch.gather([connection], 0, message, connection_layout, transport_layout, peer.loop),
        message if overflow else None,
    )
    report_lost(batch, lambda *_: connection)
    if outcome.failures or batch.closed:
        return GONE
    if batch.sent:
        return count
    if outcome.counts:
        return outcome.counts[0]
    if overflow and (batch.refused or batch.waiting):
        return count
    if batch.refused:
        return give(outcome, peer, message, count) if insist else 0
    if batch.waiting:
        return give(outcome, peer, message, count, insist=insist)
    return OWN


def give(outcome: Outcome, peer: core.Peer, message: core.Encodings, count: int, *, insist: bool = True) -> int:
    """Give messages to a transport if its write buffer is empty; return the same as `offer()`."""
    refused = peer.direct and core.sends_directly and not insist
    if refused or is_buffering(peer.transport):
        return 0
    outcome.write_frame(0, peer, message)
    return GONE if outcome.failures else count


def offer_by_own_methods(
    outcome: Outcome,
    peer: core.Peer,
    message: PreparedMessage,
    failed: Callable[[Exception], object],
    *,
    overflow: bool = False,
) -> int:
    """Send a message through the connection's own methods, if it has room.

    Args:
        outcome: As in `deliver()`.
        peer: The peer of the connection.
        message: The message.
        failed: Called with the exception if a method raises one.
        overflow: Whether to send the message even if there is no room.

    Returns:
        1 if the message was sent or failed, 0 if there is no room, or GONE.

    Raises:
        Exception: If checking whether the connection has room fails.
    """
    connection = peer.connection
    if connection is None or not is_open(connection) or is_closing(connection):
        return GONE
    busy = is_sending(connection) or (is_buffering(connection.transport) and not overflow)
    if is_closing(connection):  # a sink whose writable() failed is closed now
        return GONE
    if busy:
        return 0
    outcome.doubtful = peer
    try:
        send_message(connection, message)
    except Exception as exc:
        failed(exc)
    outcome.doubtful = None
    outcome.given = True
    return 1
