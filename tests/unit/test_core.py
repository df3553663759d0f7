"""The contract of the core: both of them answer the same tests."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import re
import socket
import struct
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
from helpers.peers import parse_frames
from wsfast import PreparedMessage
from wsfast._core import _pure
from wsfast._encoding.message import encodings_of
from wsfast.connections import ConnectionLayout, TransportLayout

LENGTHS = [*range(40), 63, 64, 65, 124, 125, 126, 127, 128, 255, 256, 1000, 4095, 4096, 65535, 65536, 65537, 1 << 20]
KEYS = st.binary(min_size=4, max_size=4)
each_core = pytest.mark.parametrize("name", CORES)  # rather than the fixture, which Hypothesis would not renew


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


# ---- Fan-out, on connections made for it. Their attributes have other names than those of any library.

OPEN, CLOSED, LOOP = object(), object(), object()


class Transport:
    """A plain transport over one end of a pair of sockets."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.number = sock.fileno()
        self.busy: object = None
        self.closing = False
        self.waiting = 0
        self.written: list[bytes] = []

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def write(self, data: bytes) -> None:
        self.written.append(bytes(data))

    def get_extra_info(self, name: str) -> Any:
        assert name == "socket"
        return self.sock


class AskedTransport(Transport):
    """One that is asked for its socket and must be tried before it is written to."""

    error: Exception | None = None

    def write(self, data: bytes) -> None:
        if self.error:
            raise self.error
        super().write(data)


class IndirectTransport(Transport):
    """One whose socket does not carry what is written."""


class UnknownTransport(Transport):
    pass


class Sans:
    """A protocol."""

    def __init__(self) -> None:
        self.condition: object = OPEN
        self.chatty = False
        self.codecs: list[Any] = []
        self.halfway = False
        self.queue: list[bytes] = []


class OtherSans(Sans):
    pass


class Link:
    """A connection."""

    def __init__(self, transport: Transport, sans: Sans | None = None) -> None:
        self.wire = transport
        self.sans = sans or Sans()
        self.home: object = LOOP
        self.sending: object = None

    def speak(self) -> None:
        pass


class MaskedLink(Link):
    pass


class UnknownLink(Link):
    pass


def encoder_of(codecs: Any) -> Any:
    return codecs[0] if codecs else None


def layout_of(kind: type) -> ConnectionLayout | None:
    if kind not in (Link, MaskedLink):
        return None
    return ConnectionLayout(
        protocol="sans",
        protocol_type=Sans,
        transport="wire",
        loop="home",
        send_in_progress="sending",
        state="condition",
        open_state=OPEN,
        debug="chatty",
        extensions="codecs",
        encoder=encoder_of,
        expect_continuation="halfway",
        writes="queue",
        methods={"speak": Link.speak},
        protocol_methods={},
        masked=kind is MaskedLink,
    )


def transport_layout_of(kind: type) -> TransportLayout | None:
    layouts: dict[type, TransportLayout] = {
        Transport: TransportLayout(
            direct=True, descriptor="number", closing="closing", clear=("busy",), methods={}, try_write=False
        ),
        IndirectTransport: TransportLayout(
            direct=False, descriptor=None, closing=None, clear=(), methods={}, try_write=False
        ),
        AskedTransport: TransportLayout(
            direct=True, descriptor=None, closing=None, clear=(), methods={}, try_write=True
        ),
    }
    return layouts.get(kind)


class Network:
    """Makes connections, and looks at what comes out of them."""

    def __init__(self) -> None:
        self.exits = contextlib.ExitStack()
        self.far: dict[int, socket.socket] = {}

    def link(
        self, link_type: type[Link] = Link, transport_type: type[Transport] = Transport, sans: Sans | None = None
    ) -> Link:
        near, far = (self.exits.enter_context(sock) for sock in socket.socketpair())
        near.setblocking(False)
        far.setblocking(False)
        transport = transport_type(near)
        link = link_type(transport, sans)
        self.far[id(transport)] = far
        return link

    def received(self, link: Link) -> bytes:
        """Return what came out of the socket."""
        try:
            return self.far[id(link.wire)].recv(1 << 20)
        except BlockingIOError:
            return b""

    def settle(self, links: list[Any], cut: Any, waiting: Any, message: PreparedMessage | None = None) -> None:
        """Do with leftovers what they are meant for."""
        message = message or PreparedMessage("hello")
        for position, data in cut:
            links[position].wire.write(data)
        for position, encoder in waiting:
            assert encoder is None
            encoding = encodings_of(message).plain
            key = os.urandom(4) if type(links[position]) is MaskedLink else None
            links[position].wire.write(_pure.encode_frame(encoding.first, encoding.payload, key))

    def stream(self, link: Link) -> bytes:
        """Return what came out of the socket, and then what the transport was given."""
        return self.received(link) + b"".join(link.wire.written)


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network()
    with network.exits:
        yield network


def fan_out(core: Any, links: list[Any], start: int = 0, message: PreparedMessage | None = None) -> Any:
    """Call fan_out where no connection is lost."""
    message = message or PreparedMessage("hello")
    cut: list[Any] = []
    stop, sent, skipped, waiting, ordinary, lost = core.fan_out(
        links, start, encodings_of(message), layout_of, transport_layout_of, LOOP, cut
    )
    assert lost == []
    return stop, sent, skipped, cut, waiting, ordinary


def test_fan_out_sends_to_all(core: Any, network: Network) -> None:
    """fan_out deals with every connection from start on, and with none ahead of it."""
    links = [network.link(kind) for kind in (Link, Link, MaskedLink, Link, MaskedLink)]
    stop, sent, skipped, cut, waiting, ordinary = fan_out(core, links, 1)
    assert (stop, skipped, cut, ordinary) == (5, 0, [], [])
    if core is _pure:
        assert (sent, waiting) == (0, [(1, None), (2, None), (3, None), (4, None)])
    else:
        assert (sent, waiting) == (4, [])
    network.settle(links, cut, waiting)
    streams = [network.stream(link) for link in links]
    assert streams[0] == b""
    assert streams[1] == streams[3] == b"\x81\x05hello"
    assert [parse_frames(stream)[0][0].payload for stream in (streams[2], streams[4])] == [b"hello"] * 2
    assert streams[2] != streams[4]


@pytest.mark.parametrize("links", [0, 3])
def test_fan_out_has_nothing_to_do(core: Any, network: Network, links: int) -> None:
    """fan_out from the end of the list does nothing."""
    assert fan_out(core, [network.link() for _ in range(links)], links) == (links, 0, 0, [], [], [])


def test_fan_out_skips_what_is_not_open(core: Any, network: Network) -> None:
    """fan_out counts connections that are not open, also where it has looked at them before."""
    links = [network.link() for _ in range(3)]
    for link in links[:2]:
        link.sans.condition = CLOSED
    assert fan_out(core, links)[:3:2] == (3, 2)
    fan_out(core, links)
    links[2].sans.condition = CLOSED
    links[2].home = object()
    assert fan_out(core, links) == (3, 0, 3, [], [], [])


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    "make_odd",
    [
        lambda link: setattr(link, "sending", object()),
        lambda link: setattr(link.sans, "halfway", True),
        lambda link: link.sans.queue.append(b"first"),
        lambda link: setattr(link.wire, "closing", True),
    ],
    ids=["sending", "halfway", "queue", "closing"],
)
def test_fan_out_leaves_connections_out(core: Any, network: Network, make_odd: Any, known: bool) -> None:
    """fan_out leaves connections that must take the ordinary path to the caller, and goes on behind them."""
    links = [network.link() for _ in range(3)]
    if known:
        network.settle(links, *fan_out(core, links)[3:5])
        for link in links:
            network.received(link)
            link.wire.written.clear()
    make_odd(links[1])
    stop, _, skipped, cut, waiting, ordinary = fan_out(core, links)
    assert (stop, skipped, cut, ordinary) == (3, 0, [], [1])
    network.settle(links, cut, waiting)
    assert [network.stream(link) for link in links] == [b"\x81\x05hello", b"", b"\x81\x05hello"]


def chatty() -> Sans:
    sans = Sans()
    sans.chatty = True
    return sans


def extended() -> Sans:
    sans = Sans()
    sans.codecs.append(False)
    return sans


def of_another_loop(link: Link) -> Link:
    link.home = object()
    return link


@pytest.mark.parametrize(
    "make",
    [
        lambda network: network.link(transport_type=UnknownTransport),
        lambda network: network.link(sans=chatty()),
        lambda network: network.link(sans=extended()),
    ],
    ids=["transport", "debug", "extensions"],
)
def test_fan_out_leaves_unsuitable_connections_out(core: Any, network: Network, make: Any) -> None:
    """fan_out leaves connections with debug logging, unknown extensions or transports to the caller, every time."""
    links = [network.link(), make(network), network.link()]
    for _ in range(2):
        stop, _, skipped, cut, _, ordinary = fan_out(core, links)
        assert (stop, skipped, cut, ordinary) == (3, 0, [], [1])
    assert network.stream(links[1]) == b""


@pytest.mark.parametrize(
    "make",
    [
        lambda network: network.link(UnknownLink),
        lambda network: network.link(sans=OtherSans()),
        lambda network: of_another_loop(network.link()),
        lambda network: None,
        lambda network: 5,
        lambda network: Link.__new__(Link),
    ],
    ids=["type", "protocol", "loop", "None", "int", "incomplete"],
)
def test_fan_out_stops(core: Any, network: Network, make: Any) -> None:
    """fan_out stops before a connection of unknown type, protocol or loop, having dealt with those ahead of it."""
    links = [network.link(), network.link(), make(network), network.link()]
    for _ in range(2):
        stop, _, skipped, cut, waiting, ordinary = fan_out(core, links)
        assert (stop, skipped, cut, ordinary) == (2, 0, [], [])
        network.settle(links, cut, waiting)
    assert [network.stream(links[i]) for i in (0, 1, 3)] == [b"\x81\x05hello" * 2] * 2 + [b""]
    assert fan_out(core, links, 2) == (2, 0, 0, [], [], [])


@pytest.mark.parametrize("name", [name for name in CORES if name == "c"])
def test_fan_out_tells_why_a_connection_was_lost(name: str, network: Network) -> None:
    """fan_out of the extension hands on the errno that the kernel has told it, and will not tell the transport."""
    core = load_core(name)
    links = [network.link() for _ in range(3)]
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = network.exits.enter_context(socket.create_connection(server.getsockname()))
        far, _ = server.accept()
    links[1].wire = Transport(near)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    message = PreparedMessage("hello")
    cut: list[Any] = []
    answer = core.fan_out(links, 0, encodings_of(message), layout_of, transport_layout_of, LOOP, cut)
    assert answer == (3, 2, 0, [(1, None)], [], [(1, errno.ECONNRESET)])
    # From now on, it is only told that there is nobody to write to.
    answer = core.fan_out(links, 0, encodings_of(message), layout_of, transport_layout_of, LOOP, cut)
    assert answer == (3, 2, 0, [(1, None)], [], [])
    assert cut == []


def test_fan_out_leaves_connections_with_methods_of_their_own_out(core: Any, network: Network) -> None:
    """fan_out leaves a connection that has replaced one of its methods that send to the caller."""
    links = [network.link() for _ in range(3)]
    links[1].speak = lambda: None  # type: ignore[method-assign]
    *_, ordinary = fan_out(core, links)
    assert ordinary == [1]
    assert network.stream(links[1]) == b""


def test_fan_out_leaves_it_to_busy_transports(core: Any, network: Network) -> None:
    """fan_out leaves it to transports to send that have something to write, or are busy otherwise."""
    links = [network.link(), network.link(), network.link(MaskedLink), network.link(MaskedLink), network.link()]
    links[1].wire.waiting = links[3].wire.waiting = 1
    links[4].wire.busy = object()
    _, _, _, cut, waiting, ordinary = fan_out(core, links)
    assert (cut, ordinary) == ([], [])
    assert waiting == ([(i, None) for i in range(5)] if core is _pure else [(1, None), (3, None), (4, None)])
    assert [network.received(links[i]) for i in (1, 3, 4)] == [b""] * 3


def test_fan_out_never_bypasses_an_indirect_transport(core: Any, network: Network) -> None:
    """fan_out leaves it to a transport to send whose socket does not carry what is written to it."""
    links = [network.link(), network.link(transport_type=IndirectTransport), network.link()]
    for _ in range(2):
        stop, _, _, cut, waiting, ordinary = fan_out(core, links)
        assert (stop, cut, ordinary) == (3, [], [])
        assert (1, None) in waiting
    links[1].wire.closing = True
    assert fan_out(core, links)[5] == [1]
    assert network.received(links[1]) == b""


def test_fan_out_tries_transports_that_must_be_asked(core: Any, network: Network) -> None:
    """fan_out leaves it to a transport which refuses a write of nothing to send, so that it refuses that, too."""
    links = [network.link(transport_type=AskedTransport) for _ in range(3)]
    links[1].wire.error = RuntimeError("no more")  # type: ignore[attr-defined]
    stop, _, _, cut, waiting, _ = fan_out(core, links)
    assert (stop, cut) == (3, [])
    assert (1, None) in waiting
    network.settle(links, cut, [(position, encoder) for position, encoder in waiting if position != 1])
    assert network.received(links[1]) == b""
    assert [network.stream(links[i]) for i in (0, 2)] == [b"\x81\x05hello"] * 2


@pytest.mark.parametrize("kind", [Link, MaskedLink])
@pytest.mark.parametrize("size", [10, 70_000, 3_000_000])
def test_fan_out_cuts_frames(core: Any, network: Network, kind: type[Link], size: int) -> None:
    """fan_out returns the end of a frame of which the kernel took only the beginning, and whole frames otherwise."""
    links = [network.link(kind) for _ in range(3)]
    near = links[1].wire.sock
    with contextlib.suppress(BlockingIOError):
        while near.send(b"\x89\x00" * 1000):
            pass
    filling = 0
    message = PreparedMessage(b"0123456789" * (size // 10))
    stop, sent, _, cut, waiting, ordinary = fan_out(core, links, 0, message)
    assert (stop, ordinary) == (3, [])
    assert sent + len(cut) + len(waiting) == 3
    assert (1, None) in waiting
    network.settle(links, cut, waiting, message)
    for link in links:
        stream = b""
        while chunk := network.received(link):
            stream += chunk
        if link is links[1]:
            assert set(stream) <= {0x89, 0}
            filling = len(stream)
            stream = b""
        frames, tail = parse_frames(stream + b"".join(link.wire.written))
        assert [frame.payload for frame in frames] == [message.data]
        assert tail == b""
    assert filling


def test_fan_out_sends_to_duplicates_in_turn(core: Any, network: Network) -> None:
    """fan_out never has two frames under way on one connection before the first is settled."""
    one, two = network.link(), network.link()
    links = [one, two, one, one, two]
    message = PreparedMessage(b"0123456789" * 100_000)
    start = 0
    while start < len(links):
        stop, _, _, cut, waiting, _ = fan_out(core, links, start, message)
        assert stop > start
        network.settle(links, cut, waiting, message)
        for link in (one, two):
            link.wire.waiting = len(link.wire.written)
        start = stop
    for link, count in (one, 3), (two, 2):
        received = b""
        while chunk := network.received(link):
            received += chunk
        frames, tail = parse_frames(received + b"".join(link.wire.written))
        assert [frame.payload for frame in frames] == [message.data] * count
        assert tail == b""


def test_fan_out_reports_nothing_sent_to_a_lost_peer(core: Any, network: Network) -> None:
    """fan_out leaves the whole frame to the transport when sending fails."""
    links = [network.link() for _ in range(3)]
    network.far[id(links[1].wire)].close()
    stop, _, _, cut, waiting, _ = fan_out(core, links)
    assert (stop, cut) == (3, [])
    assert (1, None) in waiting


def test_fan_out_does_not_make_frames_in_vain(core: Any, network: Network) -> None:
    """fan_out asks for the frame of a server only where it is sent."""
    closed = network.link()
    closed.sans.condition = CLOSED
    message = PreparedMessage("hello")
    for links in [closed], [network.link(MaskedLink)], []:
        fan_out(core, links, 0, message)
        assert encodings_of(message).plain._frame is None


def test_fan_out_uses_fresh_keys(core: Any, network: Network) -> None:
    """fan_out masks each frame of a client with a key of its own."""
    links = [network.link(MaskedLink) for _ in range(20)]
    keys = []
    for waiting in 0, 1, 0:
        for link in links:
            link.wire.waiting = waiting
        stop, _, _, cut, waiting, _ = fan_out(core, links)
        assert stop == len(links)
        network.settle(links, cut, waiting)
    for link in links:
        stream = network.stream(link)
        frames, tail = parse_frames(stream)
        assert [frame.payload for frame in frames] == [b"hello"] * 3
        assert tail == b""
        keys += [frame.key for frame in frames]
    assert len(set(keys)) == 60
