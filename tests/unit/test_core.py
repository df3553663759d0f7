"""The contract of the core: both of them answer the same tests."""

from __future__ import annotations

import array
import contextlib
import dataclasses
import errno
import gc
import os
import re
import socket
import struct
import threading
import types
import weakref
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import wsproto
import wsproto.connection
import wsproto.events
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from helpers.cores import CORES, load_core
from helpers.inflate import Inflater
from helpers.links import (
    CLOSED,
    LOOP,
    AskedTransport,
    IndirectTransport,
    Link,
    MaskedLink,
    Network,
    OtherSans,
    ReportingLink,
    Sans,
    Transport,
    UnknownLink,
    UnknownTransport,
    layout_of,
    peer_of,
    transport_layout_of,
)
from helpers.peers import TIMEOUT, parse_frames
from wsfast import PreparedMessage
from wsfast._core import _pure
from wsfast._encoding.deflate import LazyEncoder, Parameters
from wsfast._encoding.message import self_contained

LENGTHS = [*range(40), 63, 64, 65, 124, 125, 126, 127, 128, 255, 256, 1000, 4095, 4096, 65535, 65536, 65537, 1 << 20]
KEYS = st.binary(min_size=4, max_size=4)
each_core = pytest.mark.parametrize("name", CORES)  # rather than the fixture, which Hypothesis would not renew


def parameters_of(window_bits: int = 12) -> Parameters:
    parameters = Parameters.of(window_bits, {"memLevel": 5})
    assert parameters is not None
    return parameters


@pytest.fixture
def network() -> Iterator[Network]:
    with Network.opened() as network:
        yield network


def payloads() -> st.SearchStrategy[bytes]:
    """Return payloads of all length classes, without drawing each byte of the large ones."""
    large = st.builds(
        lambda unit, size: (unit * (size // len(unit) + 1))[:size],
        st.binary(min_size=1, max_size=37),
        st.sampled_from([125, 126, 127, 65535, 65536, 70001]) | st.integers(0, 70_000),
    )
    return st.binary(max_size=300) | large


def serialize(first: int, payload: bytes) -> bytes:
    """Return the frame that websockets makes."""
    return Frame(Opcode(first & 0x0F), payload, bool(first & 0x80)).serialize(mask=False)


# ---- Frames


@each_core
@given(payload=payloads(), opcode=st.sampled_from([0, 1, 2]), fin=st.booleans())
def test_encode_frame_agrees_with_websockets(name: str, payload: bytes, opcode: int, fin: bool) -> None:
    """encode_frame makes the frames that websockets makes, byte by byte."""
    first = fin << 7 | opcode
    assert load_core(name).encode_frame(first, payload) == serialize(first, payload)


@pytest.mark.parametrize("first", range(256))
def test_encode_frame_takes_any_first_octet(core: Any, first: int) -> None:
    """encode_frame begins the frame with the first octet as it is given, reserved bits included."""
    assert core.encode_frame(first, b"hello") == bytes([first, 5]) + b"hello"


@each_core
@given(payload=payloads(), opcode=st.sampled_from([1, 2]), key=KEYS)
def test_encode_frame_masks(name: str, payload: bytes, opcode: int, key: bytes) -> None:
    """encode_frame with a mask key makes a frame that says so, carries the key and is masked with it."""
    frame = load_core(name).encode_frame(0x80 | opcode, payload, key)
    assert parse_frames(frame) == ([(0x80 | opcode, key, payload)], b"")
    plain = serialize(0x80 | opcode, payload)
    header = len(plain) - len(payload)
    assert frame[:header] == bytes([plain[0], plain[1] | 0x80]) + plain[2:header]


@each_core
@given(messages=st.lists(st.text(max_size=200) | payloads(), max_size=5), masked=st.booleans())
@settings(max_examples=50)
def test_encode_frame_is_understood_by_wsproto(name: str, messages: list[str | bytes], masked: bool) -> None:
    """encode_frame makes streams that another implementation decodes to the messages, from either side."""
    side = wsproto.connection.ConnectionType.SERVER if masked else wsproto.connection.ConnectionType.CLIENT
    connection = wsproto.connection.Connection(side)
    for message in messages:
        data = message.encode() if isinstance(message, str) else message
        first = 0x81 if isinstance(message, str) else 0x82
        connection.receive_data(load_core(name).encode_frame(first, data, os.urandom(4) if masked else None))
    received: list[Any] = []
    parts: list[Any] = []
    for event in connection.events():
        assert isinstance(event, (wsproto.events.TextMessage, wsproto.events.BytesMessage))
        parts.append(event.data)
        if event.message_finished:
            received.append(type(parts[0])().join(parts))
            parts = []
    assert received == messages


@pytest.mark.parametrize("length", LENGTHS)
def test_encode_frame_of_any_length(core: Any, length: int) -> None:
    """encode_frame uses the shortest encoding of the length."""
    payload = bytes(range(256)) * (length // 256) + bytes(range(length % 256))
    assert core.encode_frame(0x82, payload) == serialize(0x82, payload)
    assert parse_frames(core.encode_frame(0x82, payload, b"\x01\x80\xff\x00"))[0][0].payload == payload


BUFFERS = {
    "bytes": b"0123456789abcdef",
    "bytearray": bytearray(b"0123456789abcdef"),
    "memoryview": memoryview(b"0123456789abcdef"),
    "memoryview of bytearray": memoryview(bytearray(b"0123456789abcdef")),
    "items": memoryview(array.array("I", range(5))),
    "every second": memoryview(b"0123456789abcdef")[::2],
    "backwards": memoryview(b"0123456789abcdef")[::-1],
    "unaligned": memoryview(b"0123456789abcdef")[3:],
    "two dimensions": memoryview(b"0123456789abcdef").cast("B", (4, 4)),
    "array": array.array("H", range(8)),
    "empty": b"",
}


@pytest.mark.parametrize("data", BUFFERS.values(), ids=BUFFERS.keys())
def test_takes_any_buffer(core: Any, data: Any) -> None:
    """encode_frame and apply_mask take any buffer as its bytes in C order, and leave it alone."""
    octets = memoryview(data).tobytes()
    assert core.encode_frame(0x82, data) == bytes([0x82, len(octets)]) + octets
    expected = bytes(octet ^ b"\x0f\xf0\x55\xaa"[i % 4] for i, octet in enumerate(octets))
    for key in b"\x0f\xf0\x55\xaa", bytearray(b"\x0f\xf0\x55\xaa"), memoryview(b"\x0f0\xf00\x550\xaa0")[::1][:4]:
        if bytes(key) == b"\x0f\xf0\x55\xaa":
            assert core.apply_mask(data, key) == expected
            assert core.encode_frame(0x82, data, key) == bytes([0x82, 0x80 | len(octets)]) + bytes(key) + expected
    assert memoryview(data).tobytes() == octets


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("offset", range(4))
def test_apply_mask_of_any_length_and_alignment(core: Any, length: int, offset: int) -> None:
    """apply_mask is the exclusive-or with the repeated key, at any length and alignment."""
    data = os.urandom(length + offset)
    key = b"\x12\x34\x56\x78"
    wide = int.from_bytes((key * (length // 4 + 1))[:length], "big")
    expected = (int.from_bytes(data[offset:], "big") ^ wide).to_bytes(length, "big")
    assert core.apply_mask(memoryview(data)[offset:], key) == expected


@each_core
@given(data=payloads(), key=KEYS)
def test_apply_mask_undoes_itself(name: str, data: bytes, key: bytes) -> None:
    """apply_mask applied twice gives what there was."""
    core = load_core(name)
    masked = core.apply_mask(data, key)
    assert type(masked) is bytes
    assert core.apply_mask(masked, key) == data
    assert core.apply_mask(data, b"\0\0\0\0") == data


# ---- Wrong arguments


def outcome(core: Any, function: str, arguments: tuple[Any, ...]) -> tuple[type, str]:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one it is, is compared
        getattr(core, function)(*arguments)
    return caught.type, str(caught.value)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("encode_frame", (-1, b"x")),
        ("encode_frame", (256, b"x")),
        ("encode_frame", (0x81, b"x", b"")),
        ("encode_frame", (0x81, b"x", b"123")),
        ("encode_frame", (0x81, b"x", b"12345")),
        ("encode_frame", (0x81, "text")),
        ("encode_frame", (0x81, None)),
        ("encode_frame", (0x81, 5)),
        ("encode_frame", (0x81, b"x", "1234")),
        ("encode_frame", (0x81, b"x", 1234)),
        ("apply_mask", (b"x", b"")),
        ("apply_mask", (b"x", b"123")),
        ("apply_mask", (b"", b"12345")),
        ("apply_mask", (b"x", memoryview(b"1234")[::2])),
        ("apply_mask", ("text", b"1234")),
        ("apply_mask", (None, b"1234")),
        ("apply_mask", (b"x", "1234")),
        ("apply_mask", (b"x", None)),
    ],
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", repr(value))[:40],
)
def test_rejects_wrong_arguments(core: Any, function: str, arguments: tuple[Any, ...]) -> None:
    """encode_frame and apply_mask raise ValueError or TypeError, with the same text in both cores."""
    kind, text = outcome(core, function, arguments)
    assert kind in (ValueError, TypeError)
    assert (kind, text) == outcome(_pure, function, arguments)


# ---- Peers


def test_peer_knows_what_does_not_change(core: Any, network: Network) -> None:
    """A peer has its connection's event loop, protocol, transport and encoder, and no slot."""
    lazy = LazyEncoder(parameters_of())
    for link_type in Link, MaskedLink, ReportingLink:
        link = network.link(link_type, sans=Sans(lazy))
        peer = core.Peer(link, layout_of(link_type), transport_layout_of)
        assert (peer.loop, peer.protocol, peer.transport, peer.encoder) == (LOOP, link.sans, link.wire, lazy)
        assert peer.layout is layout_of(link_type)
        assert peer.masked is (link_type is MaskedLink)
        assert (peer.slot, peer.subscriptions, peer.backlog, peer.dispatcher) == (-1, (), None, None)
        assert peer.direct is True
        assert peer.ready is False
        assert peer.connection is None, "a peer would keep its connection alive"
        assert weakref.ref(peer)() is peer


def test_peer_without_a_layout(core: Any) -> None:
    """A connection without a layout must be sent to by its own methods; it tells its loop itself."""
    peer = core.Peer(types.SimpleNamespace(loop=LOOP), None, transport_layout_of)
    assert (peer.loop, peer.layout, peer.protocol, peer.transport, peer.encoder) == (LOOP, None, None, None, None)
    assert (peer.direct, peer.masked) == (False, False)
    assert peer.check(None) == core.Verdict.OWN
    peer.invalidate()


def test_verdicts_agree(core: Any) -> None:
    """Both cores number the verdicts alike."""
    assert {verdict.name: int(verdict) for verdict in core.Verdict} == {
        verdict.name: verdict.value for verdict in _pure.Verdict
    }


ODD = {
    "sending": lambda link: setattr(link, "sending", object()),
    "halfway": lambda link: setattr(link.sans, "halfway", True),
    "queue": lambda link: link.sans.queue.append(b"first"),
    "closing": lambda link: setattr(link.wire, "closing", True),
}
BUSY = {
    "waiting": lambda link: setattr(link.wire, "waiting", 1),
    "busy": lambda link: setattr(link.wire, "busy", object()),
}


@pytest.mark.parametrize("link_type", [Link, MaskedLink, ReportingLink])
def test_check_looks_at_the_connection(core: Any, network: Network, link_type: type[Link]) -> None:
    """Peer.check() finds out each time how the connection may be sent to."""
    verdicts = core.Verdict
    free = verdicts.DIRECT if core.sends_directly else verdicts.TRANSPORT
    for expected, changes in (verdicts.OWN, ODD), (verdicts.TRANSPORT, BUSY):
        for change in changes.values():
            link = network.link(link_type)
            peer = peer_of(core, link)
            assert peer.check(link) == free
            change(link)
            assert peer.check(link) == expected
            assert peer.ready is False
    link.sans.condition = CLOSED
    assert peer.check(link) == verdicts.CLOSED


@pytest.mark.parametrize("error", [None, RuntimeError("no more")])
def test_check_tries_transports_that_must_be_asked(core: Any, network: Network, error: Any) -> None:
    """Peer.check() leaves it to a transport that refuses a write of nothing to refuse the frame, too."""
    link = network.link(ReportingLink, AskedTransport)
    peer = peer_of(core, link)
    link.wire.error = error  # type: ignore[attr-defined]
    direct = core.sends_directly and error is None
    assert peer.check(link) == (core.Verdict.DIRECT if direct else core.Verdict.TRANSPORT)
    assert peer.ready is (error is None)
    assert b"".join(link.wire.written) == b""


def test_check_asks_how_much_waits_only_where_it_cannot_see(core: Any, network: Network) -> None:
    """Peer.check() asks a transport for the size of its write buffer if it has no attribute that tells."""
    for transport_type in Transport, AskedTransport:
        link = network.link(ReportingLink, transport_type)
        peer = peer_of(core, link)
        for waiting in 0, 1, 0:
            link.wire.waiting = waiting
            peer.check(link)
            assert peer.ready is (waiting == 0)
        assert link.wire.asked == (0 if transport_type is Transport else 3)


def test_a_connection_whose_transport_has_another_protocol_is_not_ready(core: Any, network: Network) -> None:
    """After transport.set_protocol(), somebody else is told what happens to the connection."""
    link = network.link(ReportingLink)
    peer = peer_of(core, link)
    peer.check(link)
    assert peer.ready is True
    link.wire.protocol = object()
    peer.invalidate()
    peer.check(link)
    assert peer.ready is False


def test_an_encoder_of_a_ready_peer_is_primed_with_what_was_sent(core: Any, network: Network) -> None:
    """Whoever has kept the protocol of a connection compresses after what the tick table has had sent."""
    lazy = LazyEncoder(parameters_of())
    link = network.link(ReportingLink, sans=Sans(lazy))
    peer = peer_of(core, link)
    core.TickTable().add(peer)
    peer.check(link)
    assert peer.ready is True
    lazy.compress(b"own")
    assert peer.ready is False


def test_only_connections_that_tell_are_ready(core: Any, network: Network) -> None:
    """A peer is ready once it was looked at if its connection tells, until it is invalidated."""
    for link_type in Link, MaskedLink, ReportingLink:
        link = network.link(link_type)
        peer = peer_of(core, link)
        for _ in range(2):
            peer.check(link)
            assert peer.ready is (link_type is ReportingLink)
            peer.invalidate()
            assert peer.ready is False
            peer.invalidate()


def test_a_free_protocol_is_not_asked_again(core: Any, network: Network) -> None:
    """A protocol that tells is free once it was asked: only the transport is asked until the peer is invalidated."""
    watched: list[Any] = []
    layout = layout_of(Link)
    assert layout is not None
    layout = dataclasses.replace(layout, watch=lambda *arguments: watched.append(arguments))
    link = network.link()
    peer = link._wsfast_peer = core.Peer(link, layout, transport_layout_of)
    assert [(protocol, reference()) for protocol, reference in watched] == [(link.sans, peer)]
    assert peer.protocol_free is False
    link.sans.queue.append(b"waits")
    assert peer.check(link) == core.Verdict.OWN
    assert peer.protocol_free is False
    link.sans.queue.clear()
    peer.check(link)
    assert (peer.protocol_free, peer.ready) == (True, False)
    if core.sends_directly:
        link.sans.condition = CLOSED  # behind its back
        assert len(send(core, [link]).closed) == 0
        link.wire.waiting = 1
        assert [place for place, _ in send(core, [link]).waiting] == [0]
    peer.invalidate()
    assert peer.protocol_free is False
    link.sans.condition = CLOSED
    assert send(core, [link]).closed == [0]


@pytest.mark.parametrize("make", ["indirect", "debug"])
def test_a_protocol_is_watched_only_where_that_is_of_use(core: Any, network: Network, make: str) -> None:
    """No protocol is watched whose transport must write, whatever it would tell."""
    link = network.link(transport_type=IndirectTransport) if make == "indirect" else network.link(sans=chatty())
    layout = layout_of(Link)
    assert layout is not None
    layout = dataclasses.replace(layout, watch=lambda *_: pytest.fail("it is watched"))
    peer = core.Peer(link, layout, transport_layout_of)
    peer.check(link)
    assert peer.protocol_free is False


def test_check_raises_what_attributes_raise(core: Any, network: Network) -> None:
    """Peer.check() raises what reading the connection raises; then it is not ready."""
    link = network.link(ReportingLink)
    peer = peer_of(core, link)
    peer.check(link)
    del link.sending
    with pytest.raises(AttributeError):
        peer.check(link)
    assert peer.ready is False


def test_a_gate_tells_what_is_being_sent(core: Any, network: Network) -> None:
    """Where an object apart from the connection tells that something is being sent, that is asked, once it is known."""
    layout = layout_of(Link)
    assert layout is not None
    layout = dataclasses.replace(layout, gate="gate", send_in_progress="held", idle=False)
    link: Any = network.link()
    link.gate = types.SimpleNamespace(held=False)
    peer = core.Peer(link, layout, transport_layout_of)
    free = peer.check(link)
    assert free == (core.Verdict.DIRECT if core.sends_directly else core.Verdict.TRANSPORT)
    link.gate.held = True
    assert peer.check(link) == core.Verdict.OWN
    link.gate = None
    assert peer.check(link) == core.Verdict.OWN


def chatty() -> Sans:
    sans = Sans()
    sans.chatty = True
    return sans


def with_own_method(network: Network) -> Link:
    link = network.link()
    link.speak = lambda: None  # type: ignore[method-assign]
    return link


UNSUITABLE = {
    "transport": lambda network: network.link(transport_type=UnknownTransport),
    "debug": lambda network: network.link(sans=chatty()),
    "extensions": lambda network: network.link(sans=Sans(False)),
    "method": with_own_method,
}
each_unsuitable = pytest.mark.parametrize("make", UNSUITABLE.values(), ids=UNSUITABLE.keys())


@each_unsuitable
def test_unsuitable_connections_have_their_own_methods(core: Any, network: Network, make: Any) -> None:
    """Peer.check() says so of connections with debug logging, unknown extensions or transports, or own methods."""
    link = make(network)
    peer = peer_of(core, link)
    assert peer.check(link) == core.Verdict.OWN
    assert (peer.direct, peer.encoder) == (False, None)
    link.sans.condition = CLOSED
    assert peer.check(link) == core.Verdict.CLOSED


def test_peer_of_an_unknown_protocol(core: Any, network: Network) -> None:
    """A connection whose protocol is of another type must be sent to by its own methods."""
    link = network.link(sans=OtherSans())
    peer = peer_of(core, link)
    assert peer.protocol is None
    assert peer.check(link) == core.Verdict.OWN


# ---- Batches of connections


def send(core: Any, links: list[Any], start: int = 0, message: Any = None) -> Any:
    """Gather and send where no connection is lost; return the batch."""
    batch = core.Batch()
    assert batch.done is False
    encodings = self_contained(message or PreparedMessage("hello"))
    batch.gather(links, start, encodings, layout_of, transport_layout_of, LOOP)
    batch.send()
    assert batch.done is True
    assert batch.lost == []
    return batch


def places(pairs: list[tuple[int, Any]]) -> list[int]:
    return [place for place, _ in pairs]


def test_sends_to_all(core: Any, network: Network) -> None:
    """A batch deals with every connection from start on, and with none ahead of it."""
    links = [network.link(kind) for kind in (Link, Link, MaskedLink, Link, MaskedLink, ReportingLink)]
    batch = send(core, links, 1)
    assert (batch.stop, batch.closed, batch.cut, batch.refused, batch.own) == (6, [], [], [], [])
    if core is _pure:
        assert (batch.sent, places(batch.waiting)) == (0, [1, 2, 3, 4, 5])
    else:
        assert (batch.sent, batch.waiting) == (5, [])
    network.settle(links, batch)
    streams = [network.stream(link) for link in links]
    assert streams[0] == b""
    assert streams[1] == streams[3] == streams[5] == b"\x81\x05hello"
    assert [parse_frames(stream)[0][0].payload for stream in (streams[2], streams[4])] == [b"hello"] * 2
    assert streams[2] != streams[4]


@pytest.mark.parametrize("links", [0, 3])
def test_has_nothing_to_do(core: Any, network: Network, links: int) -> None:
    """A batch from the end of the list does nothing."""
    batch = send(core, [network.link() for _ in range(links)], links)
    assert (batch.stop, batch.sent, batch.done) == (links, 0, True)
    assert batch.closed == batch.cut == batch.refused == batch.waiting == batch.own == []


def test_lists_what_is_not_open(core: Any, network: Network) -> None:
    """A batch lists connections that are not open, also where they were looked at before."""
    links = [network.link() for _ in range(3)]
    for link in links[:2]:
        link.sans.condition = CLOSED
    batch = send(core, links)
    assert (batch.stop, batch.closed) == (3, [0, 1])
    assert links[0]._wsfast_peer is None
    links[2].sans.condition = CLOSED
    links[2].home = object()
    batch = send(core, links)
    assert (batch.stop, batch.sent, batch.closed) == (3, 0, [0, 1, 2])
    assert batch.cut == batch.refused == batch.waiting == batch.own == []


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("make_odd", ODD.values(), ids=ODD.keys())
def test_leaves_connections_out(core: Any, network: Network, make_odd: Any, known: bool) -> None:
    """A batch lists connections that must be sent to by their own methods, and goes on behind them."""
    links = [network.link() for _ in range(3)]
    if known:
        network.settle(links, send(core, links))
        for link in links:
            network.received(link)
            link.wire.written.clear()
    make_odd(links[1])
    batch = send(core, links)
    assert (batch.stop, batch.closed, batch.cut, batch.refused, batch.own) == (3, [], [], [], [1])
    network.settle(links, batch)
    assert [network.stream(link) for link in links] == [b"\x81\x05hello", b"", b"\x81\x05hello"]


@each_unsuitable
def test_leaves_unsuitable_connections_out(core: Any, network: Network, make: Any) -> None:
    """A batch lists connections that can never be sent to directly, every time."""
    links = [network.link(), make(network), network.link()]
    for _ in range(2):
        batch = send(core, links)
        assert (batch.stop, batch.closed, batch.cut, batch.own) == (3, [], [], [1])
    assert network.stream(links[1]) == b""


def of_another_loop(link: Link) -> Link:
    link.home = object()
    return link


def with_another_peer(link: Link) -> Link:
    link._wsfast_peer = object()
    return link


def without(link: Link, name: str) -> Link:
    for owner in (link, link.sans, link.wire):
        vars(owner).pop(name, None)
    return link


@pytest.mark.parametrize(
    "make",
    [
        lambda network: network.link(UnknownLink),
        lambda network: network.link(sans=OtherSans()),
        lambda network: of_another_loop(network.link()),
        lambda network: None,
        lambda network: 5,
        lambda network: Link.__new__(Link),
        lambda network: with_another_peer(network.link()),
        lambda network: without(network.link(), "sending"),
        lambda network: without(network.link(), "condition"),
        lambda network: without(network.link(), "queue"),
        lambda network: without(network.link(), "closing"),
    ],
    ids=["type", "protocol", "loop", "None", "int", "incomplete", "peer", "sending", "state", "queue", "closing"],
)
def test_stops(core: Any, network: Network, make: Any) -> None:
    """A batch stops before a connection of unknown type, protocol or loop, or an odd one, and sends to those ahead."""
    links = [network.link(), network.link(), make(network), network.link()]
    for _ in range(2):
        batch = send(core, links)
        assert (batch.stop, batch.closed, batch.cut, batch.own) == (2, [], [], [])
        network.settle(links, batch)
    assert [network.stream(links[i]) for i in (0, 1, 3)] == [b"\x81\x05hello" * 2] * 2 + [b""]
    assert send(core, links, 2).stop == 2


def test_stops_at_a_peer_of_an_unknown_protocol(core: Any, network: Network) -> None:
    """A batch stops before a connection that has a peer already, but must be sent to by its own methods alone."""
    links = [network.link(), network.link(sans=OtherSans())]
    assert peer_of(core, links[1]).protocol is None
    assert send(core, links).stop == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_exceptions_while_gathering(core: Any, network: Network, error: type[BaseException]) -> None:
    """What is no Exception is raised while gathering, others end it; nothing has been sent then."""
    links = [network.link(), network.link(UnknownLink)]

    def layouts(kind: type) -> Any:
        if kind is UnknownLink:
            raise error
        return layout_of(kind)

    batch = core.Batch()
    encodings = self_contained(PreparedMessage("hello"))
    with contextlib.nullcontext() if issubclass(error, Exception) else pytest.raises(error):
        batch.gather(links, 0, encodings, layouts, transport_layout_of, LOOP)
    assert (batch.stop, batch.done, batch.sent) == (1, False, 0)
    assert network.stream(links[0]) == b""


class Choosy:
    """A message that cannot be had for one window."""

    def __init__(self, refused: Any) -> None:
        self.plain = self_contained(PreparedMessage("hello")).plain
        self.refused = refused

    def choose(self, window: Any) -> Any:
        if window is self.refused:
            raise MemoryError
        return self.plain, window

    def after(self, window: Any, count: int) -> Any:
        return window


def test_nothing_is_sent_if_a_message_cannot_be_made(core: Any, network: Network) -> None:
    """If a choice of encodings raises an exception, nobody has been sent anything, and no encoder has moved on."""
    encoders = [LazyEncoder(parameters_of(bits)) for bits in (9, 10, 11)]
    states = [encoder.state for encoder in encoders]
    links = [network.link(sans=Sans(encoder)) for encoder in encoders]
    batch = core.Batch()
    arguments = links, 0, Choosy(states[1]), layout_of, transport_layout_of, LOOP
    with pytest.raises(MemoryError) if core.sends_directly else contextlib.nullcontext():
        batch.gather(*arguments)
    assert batch.done is False
    assert [network.stream(link) for link in links] == [b""] * 3
    assert [encoder.state for encoder in encoders] == states
    batch = core.Batch()
    batch.gather(links, 0, Choosy(None), layout_of, transport_layout_of, LOOP)
    batch.send()
    assert (batch.stop, batch.sent) == (3, 3 if core.sends_directly else 0)


def test_encoders_move_on_when_all_was_sent(core: Any, network: Network) -> None:
    """Once a kernel has taken a compressed frame, the peer's encoder has what the window holds, and no own one."""
    message = PreparedMessage("hello" * 100)
    encodings = self_contained(message)
    encoders = [LazyEncoder(parameters_of(bits), zlib.compressobj()) for bits in (9, 12, 12, 12)]
    states = [encoder.state for encoder in encoders]
    kinds = [Link, Link, MaskedLink, ReportingLink]
    links = [network.link(kind, sans=Sans(encoder)) for kind, encoder in zip(kinds, encoders, strict=True)]
    blocked = network.link(sans=Sans(LazyEncoder(parameters_of())))
    network.fill(blocked)
    batch = send(core, [*links, blocked], 0, message)
    if not core.sends_directly:
        assert places(batch.waiting) == [0, 1, 2, 3, 4]
        assert [encoder.state for encoder in encoders] == states
        return
    assert (batch.sent, places(batch.refused)) == (4, [4])
    links[3]._wsfast_peer.invalidate()  # while it is ready, its encoder is not told
    for link, encoder, state in zip(links, encoders, states, strict=True):
        (frame,), tail = parse_frames(network.received(link))
        assert (frame.first, tail) == (0xC1, b"")
        assert Inflater(12).inflate(frame.payload) == message.data
        assert encoder.state is encodings.choose(state)[1]
        assert encoder.encoder is None
    assert blocked._wsfast_peer.encoder.state is parameters_of().unknown


def test_encoders_stay_when_nothing_was_compressed(core: Any, network: Network) -> None:
    """A frame that is not compressed leaves the connection's own encoder alone."""
    own = zlib.compressobj()
    encoder = LazyEncoder(parameters_of(), own)
    links = [network.link(sans=Sans(encoder)), network.link(MaskedLink, sans=Sans(parameters_of().per_message))]
    for _ in range(2):
        batch = send(core, links)
        assert batch.sent == (2 if core.sends_directly else 0)
    assert encoder.encoder is own
    assert encoder.state is parameters_of().own


@pytest.mark.parametrize("name", [name for name in CORES if name == "c"])
def test_ready_connections_are_not_looked_at(name: str, network: Network) -> None:
    """The extension asks nothing of a connection that is ready, until that is invalidated."""
    core = load_core(name)
    links = [network.link(ReportingLink) for _ in range(3)]
    assert send(core, links).sent == 3
    links[1].sending = object()
    links[2].sans.condition = CLOSED
    assert send(core, links).sent == 3
    for link in links:
        link._wsfast_peer.invalidate()
    batch = send(core, links)
    assert (batch.sent, batch.own, batch.closed) == (1, [1], [2])
    assert [len(network.received(link)) for link in links] == [21, 14, 14]
    batch = core.Batch()
    batch.gather(links, 0, self_contained(PreparedMessage("x")), layout_of, transport_layout_of, object())
    assert batch.stop == 0  # that of another loop is not sent to, ready or not


@pytest.mark.parametrize("name", [name for name in CORES if name == "c"])
def test_tells_why_a_connection_was_lost(name: str, network: Network) -> None:
    """The extension hands on the errno that the kernel has told it, and will not tell the transport."""
    core = load_core(name)
    links = [network.link() for _ in range(3)]
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = network.exits.enter_context(socket.create_connection(server.getsockname()))
        far, _ = server.accept()
    links[1].wire = Transport(near)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    for lost in [errno.ECONNRESET], []:  # from then on, it is only told that there is nobody to write to
        batch = core.Batch()
        encodings = self_contained(PreparedMessage("hello"))
        batch.gather(links, 0, encodings, layout_of, transport_layout_of, LOOP)
        batch.send()
        peer = links[1]._wsfast_peer
        assert (batch.stop, batch.sent, batch.refused) == (3, 2, [(1, peer)])
        assert batch.lost == [(1, peer, number) for number in lost]
        assert batch.closed == batch.cut == batch.waiting == batch.own == []


def test_leaves_it_to_busy_transports(core: Any, network: Network) -> None:
    """A batch leaves it to transports to send that have something to write, or are busy otherwise."""
    links = [network.link(), network.link(), network.link(MaskedLink), network.link(MaskedLink), network.link()]
    links[1].wire.waiting = links[3].wire.waiting = 1
    links[4].wire.busy = object()
    batch = send(core, links)
    assert batch.cut == batch.refused == batch.own == []
    assert places(batch.waiting) == ([0, 1, 2, 3, 4] if core is _pure else [1, 3, 4])
    assert [network.received(links[i]) for i in (1, 3, 4)] == [b""] * 3


def test_never_bypasses_an_indirect_transport(core: Any, network: Network) -> None:
    """A batch leaves it to a transport to send whose socket does not carry what is written to it."""
    links = [network.link(), network.link(transport_type=IndirectTransport), network.link()]
    for _ in range(2):
        batch = send(core, links)
        assert (batch.stop, batch.cut, batch.refused, batch.own) == (3, [], [], [])
        assert 1 in places(batch.waiting)
    links[1].wire.closing = True
    assert send(core, links).own == [1]
    assert network.received(links[1]) == b""


def test_tries_transports_that_must_be_asked(core: Any, network: Network) -> None:
    """A batch leaves it to a transport which refuses a write of nothing to send, so that it refuses that, too."""
    links = [network.link(transport_type=AskedTransport) for _ in range(3)]
    links[1].wire.error = RuntimeError("no more")  # type: ignore[attr-defined]
    batch = send(core, links)
    assert (batch.stop, batch.cut) == (3, [])
    assert 1 in places(batch.waiting)
    batch.waiting[:] = [pair for pair in batch.waiting if pair[0] != 1]
    network.settle(links, batch)
    assert network.received(links[1]) == b""
    assert [network.stream(links[i]) for i in (0, 2)] == [b"\x81\x05hello"] * 2


@pytest.mark.parametrize("kind", [Link, MaskedLink, ReportingLink])
@pytest.mark.parametrize("size", [10, 70_000, 3_000_000])
def test_cuts_frames(core: Any, network: Network, kind: type[Link], size: int) -> None:
    """A batch lists the end of a frame of which the kernel took only the beginning, and what it did not take at all."""
    links = [network.link(kind) for _ in range(3)]
    filling = network.fill(links[1])
    message = PreparedMessage(b"0123456789" * (size // 10))
    batch = send(core, links, 0, message)
    assert (batch.stop, batch.own) == (3, [])
    assert batch.sent + len(batch.cut) + len(batch.waiting) + len(batch.refused) == 3
    assert [place for place, *_ in batch.cut] == ([0, 2] if size > 1_000_000 and core.sends_directly else [])
    assert 1 in places(batch.refused if core.sends_directly else batch.waiting)
    for place, *_ in (*batch.cut, *batch.refused):
        assert links[place]._wsfast_peer.ready is False
    network.settle(links, batch, message)
    for link in links:
        stream = network.received(link)
        if link is links[1]:
            assert set(stream) <= {0x89, 0}
            assert len(stream) == filling
            stream = b""
        frames, tail = parse_frames(stream + b"".join(link.wire.written))
        assert [frame.payload for frame in frames] == [message.data]
        assert tail == b""


def test_sends_to_duplicates_in_turn(core: Any, network: Network) -> None:
    """A batch never has two frames under way on one connection before the first is settled."""
    for kind in Link, MaskedLink, ReportingLink:
        one, two = network.link(kind), network.link(kind)
        links = [one, two, one, one, two]
        message = PreparedMessage(b"0123456789" * 100_000)
        start = 0
        while start < len(links):
            batch = send(core, links, start, message)
            assert batch.stop > start
            network.settle(links, batch, message)
            for link in (one, two):
                link.wire.waiting = len(link.wire.written)
            start = batch.stop
        for link, count in (one, 3), (two, 2):
            frames, tail = parse_frames(network.stream(link))
            assert [frame.payload for frame in frames] == [message.data] * count
            assert tail == b""


def test_many_duplicates(core: Any, network: Network) -> None:
    """However often a connection is given, and in however many batches, it gets each message once for each time."""
    links = [network.link(), network.link(ReportingLink)] * 40
    start = 0
    while start < len(links):
        batch = send(core, links, start)
        network.settle(links, batch)
        assert (batch.stop - start == 2) is core.sends_directly
        start = batch.stop
    assert [network.stream(link) for link in links[:2]] == [b"\x81\x05hello" * 40] * 2


def test_reports_nothing_sent_to_a_lost_peer(core: Any, network: Network) -> None:
    """A batch leaves the whole frame to the transport when sending fails."""
    links = [network.link() for _ in range(3)]
    network.far[id(links[1].wire)].close()
    batch = send(core, links)
    assert (batch.stop, batch.cut) == (3, [])
    assert 1 in places(batch.refused if core.sends_directly else batch.waiting)


def test_does_not_make_frames_in_vain(core: Any, network: Network) -> None:
    """A batch asks for the frame of a server only where it is sent."""
    closed = network.link()
    closed.sans.condition = CLOSED
    message = PreparedMessage("hello")
    for links in [closed], [network.link(MaskedLink)], []:
        send(core, links, 0, message)
        assert self_contained(message).plain._frame is None


def test_uses_fresh_keys(core: Any, network: Network) -> None:
    """A batch masks each frame of a client with a key of its own."""
    links = [network.link(MaskedLink) for _ in range(20)]
    keys = []
    for waiting in 0, 1, 0:
        for link in links:
            link.wire.waiting = waiting
        batch = send(core, links)
        assert batch.stop == len(links)
        network.settle(links, batch)
    for link in links:
        stream = network.stream(link)
        frames, tail = parse_frames(stream)
        assert [frame.payload for frame in frames] == [b"hello"] * 3
        assert tail == b""
        keys += [frame.key for frame in frames]
    assert len(set(keys)) == 60


# ---- The garbage collector


@pytest.fixture
def collects() -> Iterator[None]:
    """Leave the collector as it was."""
    enabled = gc.isenabled()
    yield
    (gc.enable if enabled else gc.disable)()


@pytest.mark.usefixtures("collects")
@pytest.mark.parametrize("enabled", [True, False])
def test_collector_is_paused(core: Any, enabled: bool) -> None:
    """No garbage is collected in the context, however deep it is; in the end, it is as it was, also if that raises."""
    (gc.enable if enabled else gc.disable)()
    for _ in range(2):
        with core.collector_paused:
            assert not gc.isenabled()
            with core.collector_paused, contextlib.suppress(ZeroDivisionError):
                raise ZeroDivisionError
            assert not gc.isenabled()
        assert gc.isenabled() is enabled
        with pytest.raises(ZeroDivisionError), core.collector_paused:
            raise ZeroDivisionError
        assert gc.isenabled() is enabled


@pytest.mark.usefixtures("collects")
@pytest.mark.parametrize("enabled", [True, False])
def test_collector_is_paused_by_several_threads(core: Any, enabled: bool) -> None:
    """The last thread that leaves the context turns the collector on again, if it was on."""
    (gc.enable if enabled else gc.disable)()
    inside, leave = threading.Event(), threading.Event()

    def pause() -> None:
        with core.collector_paused:
            inside.set()
            leave.wait(TIMEOUT)

    thread = threading.Thread(target=pause)
    with core.collector_paused:
        thread.start()
        assert inside.wait(TIMEOUT)
    assert not gc.isenabled()
    with core.collector_paused:
        leave.set()
        thread.join()
        assert not gc.isenabled()
    assert gc.isenabled() is enabled
