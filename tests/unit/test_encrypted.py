"""Transports that encrypt: a frame is encrypted for many, then all is sent, whatever happens in between."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from helpers.cores import PURE_ONLY, load_core
from helpers.links import LOOP, Link, Transport, layout_of, read_all, transport_layout_of
from wsfast import _delivery
from wsfast._delivery import Outcome
from wsfast._encoding.message import PreparedMessage, self_contained
from wsfast.connections import EncryptedLayout, TransportLayout

pytestmark = pytest.mark.skipif(PURE_ONLY, reason="the twin leaves TLS to the transports")


class RefusedError(Exception):
    """What a cipher raises that has encrypted nothing."""


class Nowhere(BaseException):
    """What a signal handler raises."""


class Queue:
    """What is encrypted."""

    def __init__(self) -> None:
        self.octets = b""

    @property
    def pending(self) -> int:
        return len(self.octets)

    def read(self) -> bytes:
        octets, self.octets = self.octets, b""
        return octets


class Cipher:
    """Marks what it encrypts."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.most = 1 << 30
        self.before: Callable[[], object] = lambda: None
        self.after: Callable[[], object] = lambda: None

    def write(self, data: bytes) -> int:
        self.before()
        data = bytes(data[: self.most])
        self.queue.octets += b"<" + data + b">"
        self.after()
        return len(data)


class Tls:
    """The protocol of the transport beneath."""

    def __init__(self, beneath: Beneath) -> None:
        self.pipe = Queue()
        self.cipher = Cipher(self.pipe)
        self.beneath: Any = beneath
        self.phase = "open"
        self.unencrypted: list[bytes] = []
        self.paused = False

    def flush(self) -> None:
        if not self.paused and self.pipe.pending:
            self.beneath.write(self.pipe.read())

    def put(self, data: bytes) -> None:
        self.unencrypted.append(data)


class Beneath(Transport):
    """A plain transport that writes what the kernel does not take."""

    error: Exception | None = None

    def write(self, data: bytes) -> None:
        if self.error:
            raise self.error
        super().write(data)


class Secure(Transport):
    """A transport that encrypts."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.tls: Any = Tls(Beneath(sock))

    def write(self, data: bytes) -> None:
        super().write(data)
        self.tls.cipher.write(data)
        self.tls.flush()

    def is_closing(self) -> bool:
        return self.closing or self.tls is None or self.tls.beneath is None or self.tls.beneath.closing


ENCRYPTED = EncryptedLayout(
    protocol="tls",
    protocol_type=Tls,
    methods={"put": Tls.put},
    writer=(("cipher", Cipher),),
    outgoing=("pipe", Queue),
    transport="beneath",
    state="phase",
    open_state="open",
    clear=("unencrypted", "paused"),
    flush="flush",
    errors=RefusedError,
)
SECURE = TransportLayout(
    direct=False, descriptor=None, closing=None, clear=(), methods={}, try_write=False, encrypted=ENCRYPTED
)
PLAIN = transport_layout_of(Transport)
assert PLAIN is not None
BENEATH = dataclasses.replace(PLAIN, methods={"write": Beneath.write})


def transports(kind: type) -> TransportLayout | None:
    layouts: dict[type, TransportLayout] = {Secure: SECURE, Beneath: BENEATH}
    return layouts.get(kind)


class Network:
    """Connections over TLS, and the other ends of their sockets."""

    def __init__(self) -> None:
        self.core = load_core("c")
        self.sockets: list[socket.socket] = []
        self.links: list[Any] = []
        self.ends: list[socket.socket] = []

    def link(self) -> Any:
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.sockets += [ours, theirs]
        self.links.append(Link(Secure(ours)))
        self.ends.append(theirs)
        return self.links[-1]

    def send(self, message: str = "hello", *, overflow: bool = True) -> Outcome:
        outcome, encodings = Outcome(), self_contained(PreparedMessage(message))
        self.outcome = outcome
        _delivery.deliver(
            outcome,
            lambda batch: batch.gather(self.links, 0, encodings, layout_of, transports, LOOP),
            encodings if overflow else None,
        )
        return outcome

    def received(self) -> list[bytes]:
        return [read_all(end) for end in self.ends]


def frame(message: str) -> bytes:
    return self_contained(PreparedMessage(message)).plain.frame


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    monkeypatch.setattr(_delivery, "core", load_core("c"))
    network = Network()
    yield network
    for sock in network.sockets:
        sock.close()


HELLO = b"<" + frame("hello") + b">"


def test_all_are_encrypted_before_any_is_sent(network: Network) -> None:
    """All frames are encrypted first; then the kernel takes them, and the transports are given nothing."""
    links = [network.link() for _ in range(70)]
    arrived: list[int] = []
    for link in links:
        link.wire.tls.cipher.before = lambda: arrived.extend(len(octets) for octets in network.received() if octets)
    outcome = network.send()
    assert outcome.batch.sent == 70
    assert (outcome.counts, outcome.failures, outcome.batch.waiting) == ({}, {}, [])
    assert arrived == []
    assert network.received() == [HELLO] * 70
    assert not any(link.wire.written or link.wire.tls.beneath.written for link in links)


def test_large_frames_leave_in_parts(network: Network) -> None:
    """No more is in memory at a time than a part: what many connections are to be sent may be large."""
    links = [network.link() for _ in range(10)]
    encrypted = [0]
    for link in links:
        link.wire.tls.cipher.after = lambda: encrypted.append(sum(link.wire.tls.pipe.pending for link in links))
    message = "x" * 50_000
    outcome = network.send(message)
    assert 100_000 < max(encrypted) < 200_000
    assert outcome.batch.sent == 0
    assert outcome.counts == dict.fromkeys(range(10), 1)
    for link, octets in zip(links, network.received(), strict=True):
        assert octets
        assert octets + b"".join(link.wire.tls.beneath.written) == b"<" + frame(message) + b">"


NOT_FREE: dict[str, Callable[[Any], object]] = {
    "something is not encrypted yet": lambda wire: wire.tls.unencrypted.append(b"before"),
    "something encrypted has not been sent": lambda wire: setattr(wire.tls.pipe, "octets", b"before"),
    "writing is paused": lambda wire: setattr(wire.tls, "paused", True),
    "it is shaking hands": lambda wire: setattr(wire.tls, "phase", "handshake"),
    "something waits beneath": lambda wire: setattr(wire.tls.beneath, "waiting", 1),
    "a file is being sent beneath": lambda wire: setattr(wire.tls.beneath, "busy", object()),
    "it is not as it was": lambda wire: delattr(wire.tls, "unencrypted"),
    "it has encrypted nothing": lambda wire: setattr(wire.tls.cipher, "before", refuse_once(wire.tls.cipher)),
}


def refuse_once(cipher: Cipher) -> Callable[[], object]:
    def refuse() -> None:
        cipher.before = lambda: None
        raise RefusedError

    return refuse


@pytest.mark.parametrize("overflow", [True, False])
@pytest.mark.parametrize("why", NOT_FREE)
def test_not_free(network: Network, why: str, overflow: bool) -> None:
    """If the frame would not be next on the wire, its transport is given it whole, or the caller decides."""
    links = [network.link() for _ in range(3)]
    NOT_FREE[why](links[1].wire)
    outcome = network.send(overflow=overflow)
    assert outcome.batch.sent == 2
    assert outcome.batch.waiting == [(1, links[1]._wsfast_peer)]
    assert [link.wire.written for link in links] == [[], [frame("hello")] if overflow else [], []]


def close(wire: Any) -> None:
    wire.closing, wire.tls.phase = True, "closing"


def close_beneath(wire: Any) -> None:
    wire.tls.beneath.closing = True


def lose_beneath(wire: Any) -> None:
    wire.tls.beneath = None


def lose_tls(wire: Any) -> None:
    wire.tls.phase = "closing"
    wire.tls = object()  # which cannot even be asked


@pytest.mark.parametrize("end", [close, close_beneath, lose_beneath, lose_tls])
def test_closing(network: Network, end: Callable[[Any], None]) -> None:
    """One that is closing is left to its own methods."""
    links = [network.link() for _ in range(3)]
    network.send()
    end(links[1].wire)
    outcome = network.send()
    assert (outcome.batch.sent, outcome.batch.own, outcome.batch.waiting) == (2, [1], [])
    assert links[0]._wsfast_peer.check(links[0]) == network.core.Verdict.TRANSPORT
    if end is not lose_tls:
        assert links[1]._wsfast_peer.check(links[1]) == network.core.Verdict.OWN


def replace_method(wire: Any) -> None:
    wire.tls.put = lambda data: None


def replace_write_beneath(wire: Any) -> None:
    wire.tls.beneath.write = lambda data: None


def replace_type(wire: Any) -> None:
    wire.tls.__class__ = type("OtherTls", (Tls,), {})


def replace_cipher(wire: Any) -> None:
    wire.tls.cipher.__class__ = type("OtherCipher", (Cipher,), {})


def replace_queue(wire: Any) -> None:
    wire.tls.pipe.__class__ = type("OtherQueue", (Queue,), {})


def replace_beneath(wire: Any) -> None:
    wire.tls.beneath.__class__ = type("OtherTransport", (Beneath,), {})


def lose_attribute(wire: Any) -> None:
    del wire.tls.cipher


CHANGES = [
    replace_method,
    replace_write_beneath,
    replace_type,
    replace_cipher,
    replace_queue,
    replace_beneath,
    lose_attribute,
]


@pytest.mark.parametrize("change", CHANGES)
def test_unknown(network: Network, change: Callable[[Any], None]) -> None:
    """If anything is not as it is known, the transport is given the frame."""
    links = [network.link() for _ in range(2)]
    cipher = links[1].wire.tls.cipher
    change(links[1].wire)
    links[1].wire.tls.cipher = links[1].wire.tls.__dict__.get("cipher", cipher)
    if change is lose_attribute:
        del links[1].wire.tls.cipher
        outcome = network.send(overflow=False)
        assert outcome.batch.waiting == [(1, links[1]._wsfast_peer)]
        return
    outcome = network.send()
    assert outcome.batch.sent == 1
    assert links[1].wire.written == [frame("hello")]


def test_twice(network: Network) -> None:
    """One that is there twice is sent the message twice."""
    link = network.link()
    network.links.append(link)
    outcome = network.send()
    assert outcome.batch.sent == 1
    assert link.wire.written == [frame("hello")]
    assert network.ends[0].recv(1000) == HELLO
    assert link.wire.tls.beneath.written == [HELLO]


def test_some_is_encrypted(network: Network) -> None:
    """If not all of a frame is encrypted, the transport encrypts the rest, and sends all."""
    links = [network.link() for _ in range(3)]
    links[1].wire.tls.cipher.most = 3
    outcome = network.send()
    assert (outcome.batch.sent, outcome.counts) == (2, {1: 1})
    assert links[1].wire.written == [frame("hello")[3:]]
    written = b"".join(links[1].wire.tls.beneath.written)
    assert written.replace(b"><", b"").startswith(b"<" + frame("hello")[:6])


def sent_by_others(wire: Any) -> bytes:
    return bytes(b"".join(wire.tls.beneath.written))


def flush(wire: Any) -> None:
    wire.tls.flush()


def write_beneath(wire: Any) -> None:
    wire.tls.beneath.waiting = 1


def pause(wire: Any) -> None:
    wire.tls.paused = True
    wire.tls.beneath.waiting = 1


def lose(wire: Any) -> None:
    wire.tls.beneath.closing = True


@pytest.mark.parametrize("act", [flush, write_beneath, pause, lose])
def test_others_act_meanwhile(network: Network, act: Callable[[Any], None]) -> None:
    """What is encrypted leaves in order, by whoever sends it, if another thread does something meanwhile."""
    links = [network.link() for _ in range(3)]
    links[2].wire.tls.cipher.before = lambda: act(links[0].wire)
    outcome = network.send()
    assert (outcome.batch.sent, outcome.counts) == (2, {0: 1})
    wire: Any = links[0].wire
    assert network.received() == [b"", HELLO, HELLO]
    assert sent_by_others(wire) + wire.tls.pipe.read() == HELLO
    assert wire.written == []


def test_kernel_takes_nothing(network: Network) -> None:
    """What the kernel does not take goes to the transport beneath, and counts as taken, also without `overflow`."""
    links = [network.link() for _ in range(2)]
    with contextlib.suppress(BlockingIOError):
        while links[0].wire.sock.send(b"x" * 1000):
            pass
    outcome = network.send(overflow=False)
    assert (outcome.batch.sent, outcome.counts, outcome.batch.lost) == (1, {0: 1}, [])
    assert links[0].wire.tls.beneath.written == [HELLO]


def test_lost(network: Network) -> None:
    """The reason why a connection is lost is told; its transport finds that out by itself."""
    links = [network.link() for _ in range(2)]
    network.send()
    for sock in network.sockets:
        if sock is network.ends[0]:
            sock.close()  # with something to be read: a reset
    outcome = network.send()
    assert outcome.counts == {0: 1}
    assert [place for place, _, _ in outcome.batch.lost] in ([], [0])
    assert links[0].wire.tls.beneath.written == [HELLO]


def test_transport_fails(network: Network) -> None:
    """If the transport beneath does not take the rest, the connection is aborted: nothing may follow half a record."""
    links = [network.link() for _ in range(2)]
    links[0].wire.tls.beneath.error = RuntimeError("cannot write")
    outcome = network.send("x" * 50_000)
    assert str(outcome.failures[0]) == "cannot write"
    assert [link.wire.aborted for link in links] == [True, False]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_interrupt(network: Network, moment: str) -> None:
    """If a signal handler raises, what is encrypted leaves; whose frame may be half is aborted."""
    links = [network.link() for _ in range(4)]

    def interrupt() -> None:
        raise Nowhere

    setattr(links[2].wire.tls.cipher, moment, interrupt)
    with pytest.raises(Nowhere):
        network.send()
    assert network.outcome.batch.sent == 2
    assert network.received() == [HELLO, HELLO, b"", b""]
    assert [link.wire.aborted for link in links] == [False, False, True, False]


def test_interrupt_with_rests(network: Network) -> None:
    """If a signal handler raises before the transport beneath has the rest, the connection is aborted."""
    links = [network.link() for _ in range(3)]

    def interrupt(_: bytes) -> None:
        raise Nowhere

    network.send()
    assert network.received() == [HELLO] * 3
    links[1].wire.tls.beneath.write = interrupt
    with pytest.raises(Nowhere):
        network.send("x" * 50_000)
    assert links[1].wire.aborted
    whole = b"<" + frame("x" * 50_000) + b">"
    for link, octets in zip(links, network.received(), strict=True):
        written = b"".join(link.wire.tls.beneath.written)
        assert link.wire.aborted or octets + written == whole


def test_compression_fails(network: Network) -> None:
    """If the message cannot be framed, that is raised, and nothing is sent."""
    network.link()

    class Failing:
        @property
        def plain(self) -> Any:
            raise MemoryError

    outcome = Outcome()
    with pytest.raises(MemoryError):
        _delivery.deliver(
            outcome,
            lambda batch: batch.gather(
                network.links,
                0,
                Failing(),  # type: ignore[arg-type]
                layout_of,
                transports,
                LOOP,
            ),
        )
    assert network.received() == [b""]
