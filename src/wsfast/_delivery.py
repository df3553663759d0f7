"""Delivery: the only module that writes to connections.

Each delivery is one critical section of three phases. *Gather* looks at each connection once and puts what may be
written directly into dense arrays. *Send* is one tight loop in C over those arrays. *Settle* gives the transports the
ends of frames that the kernel cut. Transports that encrypt come next, in three phases of their own. Between the two
halves of a frame, nothing else may write there: so the garbage collector, which calls finalizers, waits, and an
exception out of nowhere, as from a signal handler, aborts the connections whose frames are not whole. What was not
taken is left to the caller.
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
"""What `offer()` says of connections that take nothing any more, or must be sent to by their own methods."""


def set_threads(threads: int | None, *, detach: bool = True) -> None:
    """Say how many threads send what is broadcast or published to 256 connections or more at once.

    Each sends to a part of them, at the same time, the calling thread among them; when a call of `broadcast()` or
    `flush()` returns, all is sent, as with one. The others are started when they are first needed, and sleep in
    between. They run no code of Python's.

    Args:
        threads: How many, 1 to 64. With 1, no other thread is needed, ever. None for the default, which is what the
            environment variable WSFAST_THREADS says; else half of the processors that the process may use, and 8 at
            most. Processors that its affinity, or the quota of its control group, withholds do not count.

        detach: Whether the event loop goes on while they send what channels and hubs have published, to connections of
            `wsfast.serve()` and others that tell what happens to them. Whatever is done to one of these waits until it
            was sent to, and `flush()` until all were. False to have the event loop send as well, and wait for them. On
            a free-threaded build of Python, it always does.

    Raises:
        TypeError: If `threads` is neither an integer nor None, or `detach` is no bool.
        ValueError: If `threads` is out of range.
    """
    if not isinstance(detach, bool):
        raise TypeError(f"detach must be a bool, not {detach!r}")
    number = default_threads().number if threads is None else check_threads(threads)
    core.set_threads(number, detach=detach)


def threads() -> int:
    """Return how many threads send: see `set_threads()`. Without the extension, it is 1 whatever was said."""
    return int(core.threads())


class Outcome:
    """What became of one delivery."""

    __slots__ = ("batch", "counts", "doubtful", "encrypted", "failures", "given")

    def __init__(self) -> None:
        self.batch = core.Batch()
        self.counts: dict[int, int] = {}
        """Of places whose frames were cut: how many messages are out with the end of that frame."""
        self.failures: dict[int, Exception] = {}
        """Of places whose transports could not be written to: what they raised."""
        self.doubtful: Any = None
        """The peer that is being written to. If the write is interrupted, its connection is aborted."""
        self.encrypted: core.Encrypted | None = None
        """Those of which the frames were encrypted here."""
        self.given = False
        """Whether a transport, or a connection's own methods, have been given what is not noted yet."""

    def write_ends(self) -> None:
        """Write the ends of the frames that were cut."""
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
        """Send, in parts, to those that wait whose frames can be encrypted here."""
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
        peer.invalidate()  # it has its own state from here on
        encoder = peer.encoder
        frame, window = frame_for(encoder, message, masked=peer.masked)
        if encoder is not None and window is not encoder.state:
            encoder.forget()  # in case that this is interrupted
        self.write(place, peer, frame)
        if encoder is not None and place not in self.failures:
            encoder.move_to(window)

    def write(self, place: int, peer: core.Peer, data: core.Buffer) -> None:
        """Write to a transport, or keep the exception that this raises."""
        peer.invalidate()
        self.doubtful = peer
        try:
            peer.transport.write(data)
        except Exception as exc:
            self.failures[place] = exc
        self.doubtful = None
        self.given = True

    def abort(self) -> None:
        """Abort the connections whose frames may not be whole."""
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
        outcome: What becomes of it; the caller has it even if this is interrupted.
        gather: Function that fills a batch.
        overflow: The message, if whole frames are to be given to the transports that could not be bypassed, however
            much waits there; None to leave that to the caller.

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
    """Gather, and have threads send while the event loop goes on, if they can; then `settle()` is to be called.

    If they cannot, nothing has been done.

    Args:
        outcome: As in `deliver()`.
        gather: Function that fills a batch with peers that are ready. Whatever is done to one of these from then on
            invalidates it first, which waits until it is sent to; so the critical section ends with this call.
        done: See `Batch.detach()`.
    """
    with core.collector_paused:
        gather(outcome.batch)
        return outcome.batch.detach(done)


def settle(outcome: Outcome) -> None:
    """Send what was gathered, or wait for threads that do; settle. Not for the first time, it goes on."""
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
    """Keep the reasons why connections were lost; `connection_of` is given places and peers."""
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
    """Offer messages to a connection; return how many of them it has taken, GONE, or OWN.

    Args:
        outcome: As in `deliver()`.
        peer: Its peer.
        message: The messages, one behind the other.
        count: How many they are.
        insist: Whether to give them to the transport if the kernel takes nothing, although it was said to have room:
            then it is not for the lack of room, and the transport is to find out what else it is.
        overflow: Whether to give them to the transport in any case, but for those behind a frame that the kernel cut.
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
    """Give messages to a transport, if that has nothing to write; return as `offer()` does."""
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
    """Send a message by the connection's own methods, if it has room; return 1 if it is done with, 0, or GONE.

    Args:
        outcome: As in `deliver()`.
        peer: Its peer.
        message: The message.
        failed: Called with what the methods raise; the message is done with then.
        overflow: Whether to send it though there is no room.

    Raises:
        Exception: If the connection cannot even be asked whether it has room.
    """
    connection = peer.connection
    if connection is None or not is_open(connection) or is_closing(connection):
        return GONE
    busy = is_sending(connection) or (is_buffering(connection.transport) and not overflow)
    if is_closing(connection):  # a sink that could not tell
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
