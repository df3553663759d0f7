"""Connections that are made for tests of the core. Their attributes have other names than those of any library."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

from wsfast._core import _pure
from wsfast._encoding.message import prepare, self_contained
from wsfast.connections import ConnectionLayout, TransportLayout

__all__ = [
    "CLOSED",
    "LOOP",
    "OPEN",
    "AskedTransport",
    "IndirectTransport",
    "Link",
    "MaskedLink",
    "Network",
    "OtherSans",
    "ReportingLink",
    "Sans",
    "Transport",
    "UnknownLink",
    "UnknownTransport",
    "layout_of",
    "peer_of",
    "read_all",
    "transport_layout_of",
]

OPEN, CLOSED, LOOP = object(), object(), object()


class Transport:
    """A plain transport over one end of a pair of sockets."""

    def __init__(self, sock: socket.socket | None) -> None:
        self.sock = sock
        self.number = -1 if sock is None else sock.fileno()
        self.busy: object = None
        self.closing = False
        self.waiting = 0
        self.asked = 0
        self.written: list[bytes] = []
        self.aborted = False
        self.protocol: object = None

    def get_protocol(self) -> object:
        return self.protocol

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        self.asked += 1
        return self.waiting

    def write(self, data: bytes) -> None:
        self.written.append(bytes(data))

    def abort(self) -> None:
        self.aborted = True

    def get_extra_info(self, name: str) -> Any:
        assert name == "socket"
        return self.sock


class AskedTransport(Transport):
    """One that is asked for its socket, and how much waits, and must be tried before it is written to."""

    error: Exception | None = None

    def write(self, data: bytes) -> None:
        if self.error:
            raise self.error
        super().write(data)


class IndirectTransport(Transport):
    """One whose socket does not carry what is written."""


class UnknownTransport(Transport):
    """One of which nothing is known."""


class Sans:
    """A protocol."""

    def __init__(self, *codecs: Any) -> None:
        self.condition: object = OPEN
        self.chatty = False
        self.codecs = list(codecs)
        self.halfway = False
        self.queue: list[bytes] = []


class OtherSans(Sans):
    """A protocol of another type."""


class Link:
    """A connection."""

    _wsfast_peer: Any = None

    def __init__(self, transport: Transport, sans: Sans | None = None) -> None:
        self.wire = transport
        transport.protocol = self
        self.sans = sans or Sans()
        self.home: object = LOOP
        self.sending: object = None

    def speak(self) -> None:
        pass


class MaskedLink(Link):
    """One whose frames are masked."""


class ReportingLink(Link):
    """One that tells what happens to it."""


class UnknownLink(Link):
    """One of a type that nobody knows."""


def encoder_of(codecs: Any) -> Any:
    return codecs[0] if codecs else None


def layout_of(kind: Any) -> ConnectionLayout | None:
    """Return the layout of a type of connections."""
    return _LAYOUTS.get(kind)


_LAYOUTS = {
    kind: ConnectionLayout(
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
        reports=kind is ReportingLink,
    )
    for kind in (Link, MaskedLink, ReportingLink)
}


def transport_layout_of(kind: type) -> TransportLayout | None:
    """Return the layout of a type of transports."""
    layouts: dict[type, TransportLayout] = {
        Transport: TransportLayout(
            direct=True,
            descriptor="number",
            closing="closing",
            clear=("busy",),
            methods={},
            try_write=False,
            buffer="waiting",
        ),
        IndirectTransport: TransportLayout(
            direct=False, descriptor=None, closing=None, clear=(), methods={}, try_write=False
        ),
        AskedTransport: TransportLayout(
            direct=True, descriptor=None, closing=None, clear=(), methods={}, try_write=True
        ),
    }
    return layouts.get(kind)


def peer_of(core: Any, link: Link) -> Any:
    """Return the peer of a connection, as one that has subscriptions has it."""
    if link._wsfast_peer is None:
        link._wsfast_peer = core.Peer(link, layout_of(type(link)), transport_layout_of)
        link._wsfast_peer.connection = link
    return link._wsfast_peer


def read_all(sock: socket.socket) -> bytes:
    """Return all that has arrived on a socket that does not block."""
    parts = []
    with contextlib.suppress(BlockingIOError):
        while part := sock.recv(1 << 20):
            parts.append(part)
    return b"".join(parts)


class Network:
    """Makes connections, and looks at what comes out of them."""

    def __init__(self) -> None:
        self.exits = contextlib.ExitStack()
        self.far: dict[int, socket.socket] = {}

    @classmethod
    @contextlib.contextmanager
    def opened(cls) -> Iterator[Network]:
        """Close all connections in the end."""
        network = cls()
        with network.exits:
            yield network

    def link(
        self,
        link_type: type[Link] = Link,
        transport_type: type[Transport] = Transport,
        sans: Sans | None = None,
        *,
        small: bool = False,
    ) -> Link:
        """Make a connection.

        Args:
            link_type: Its type.
            transport_type: That of its transport.
            sans: Its protocol.
            small: Whether its socket takes only some kilobytes.
        """
        near, far = (self.exits.enter_context(sock) for sock in socket.socketpair())
        near.setblocking(False)
        far.setblocking(False)
        if small:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        transport = transport_type(near)
        link = link_type(transport, sans)
        self.far[id(transport)] = far
        return link

    def fill(self, link: Link) -> int:
        """Have the socket of a connection take no more; return how many bytes it took."""
        sock, size = link.wire.sock, 0
        assert sock is not None
        with contextlib.suppress(BlockingIOError):
            while True:
                size += sock.send(b"\x89\x00" * 1000)
        return size

    def received(self, link: Link) -> bytes:
        """Return what came out of the socket."""
        return read_all(self.far[id(link.wire)])

    def settle(self, links: list[Any], batch: Any, message: Any = "hello") -> None:
        """Do with what was not taken what is meant to be done with it."""
        encodings = self_contained(prepare(message))
        for place, peer, rest, cut_message, count in batch.cut:
            assert peer is links[place]._wsfast_peer
            assert (cut_message, count) == (encodings, 1)
            links[place].wire.write(rest)
        for place, peer in (*batch.waiting, *batch.refused):
            assert peer is links[place]._wsfast_peer
            assert peer.encoder is None
            key = os.urandom(4) if peer.masked else None
            links[place].wire.write(_pure.encode_frame(encodings.plain.first, encodings.plain.payload, key))

    def stream(self, link: Link) -> bytes:
        """Return what came out of the socket, and then what the transport was given."""
        return self.received(link) + b"".join(link.wire.written)
