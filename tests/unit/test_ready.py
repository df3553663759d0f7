"""Connections that are ready are found by their addresses, and not looked at. Both cores answer the same tests."""

from __future__ import annotations

import gc
import random
import socket
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.cores import CORES, load_core
from helpers.links import (
    CLOSED,
    LOOP,
    OPEN,
    Link,
    Network,
    ReportingLink,
    Sans,
    Transport,
    UnknownLink,
    layout_of,
    peer_of,
    read_all,
    transport_layout_of,
)
from helpers.peers import TIMEOUT, parse_frames
from wsfast._encoding.deflate import LazyEncoder, Parameters
from wsfast._encoding.message import prepare, self_contained

each_core = pytest.mark.parametrize("name", CORES)  # rather than the fixture, which Hypothesis would not renew
c_core = pytest.mark.parametrize("name", [name for name in CORES if name == "c"])

COLLECTIONS: dict[str, Callable[[list[Any]], Collection[Any]]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": dict.fromkeys,
    "keys": lambda links: dict.fromkeys(links).keys(),
    "values": lambda links: dict(enumerate(links)).values(),
    "deque": deque,
}
UNTOUCHED = [name for name in COLLECTIONS if name != "deque"]


@pytest.fixture
def network() -> Iterator[Network]:
    with Network.opened() as network:
        yield network


def send(core: Any, connections: Collection[Any], message: Any = "hello", start: int = 0) -> Any:
    batch = core.Batch()
    encodings = self_contained(prepare(message))
    batch.gather(connections, start, encodings, layout_of, transport_layout_of, LOOP)
    batch.send()
    return batch


def ready_links(core: Any, network: Network, count: int, **options: Any) -> list[Any]:
    """Return connections that have been looked at."""
    links = [network.link(ReportingLink, **options) for _ in range(count)]
    for link in links:
        peer_of(core, link).check(link)
        link._wsfast_peer.connection = None  # it is not subscribed
        assert link._wsfast_peer.ready
    return links


@pytest.mark.parametrize("kind", COLLECTIONS)
def test_takes_collections(core: Any, network: Network, kind: str) -> None:
    """A batch deals with all that is in a collection, once for each time that it is iterated over."""
    links = ready_links(core, network, 40)
    collection = COLLECTIONS[kind](links[:30] + links[20:])
    expected = list(collection)
    if kind in {"list", "tuple", "values", "deque"}:
        assert len(expected) == 50
    start = 0
    connections = collection
    while start < len(expected):
        batch = send(core, connections, start=start)
        connections = batch.connections
        network.settle(connections, batch)
        start = batch.stop
    for link in links:
        assert network.stream(link) == b"\x81\x05hello" * expected.count(link)


@c_core
@pytest.mark.parametrize("kind", UNTOUCHED)
def test_reads_no_attribute_of_those_that_are_ready(name: str, network: Network, kind: str) -> None:
    """Who is ready is sent to though it does not say any more which peer it has."""
    core = load_core(name)
    links = ready_links(core, network, 40)
    collection = COLLECTIONS[kind](links)
    peers = [link._wsfast_peer for link in links]
    for link in links:
        link._wsfast_peer = None
    batch = send(core, collection)
    assert (batch.stop, batch.sent, batch.connections) == (40, 40, {})
    assert [link._wsfast_peer for link in links] == [None] * 40
    assert [network.received(link) for link in links] == [b"\x81\x05hello"] * 40
    assert all(peer.ready for peer in peers)


@c_core
def test_looks_at_the_few_that_are_not_ready(name: str, network: Network) -> None:
    """A few that are not ready are looked at, without a look at the others."""
    core = load_core(name)
    links = ready_links(core, network, 30)
    peers = [link._wsfast_peer for link in links]
    links[3].sans.condition = CLOSED
    links[5].wire.waiting = 1
    links[7].sending = object()
    links[11].wire.closing = None  # odd
    del links[13].sans.condition
    not_ready = [3, 5, 7, 9, 11, 13]
    for place, link in enumerate(links):
        if place in not_ready:
            peers[place].invalidate()
        else:
            link._wsfast_peer = None
    batch = send(core, links)
    assert batch.connections == {place: links[place] for place in not_ready}
    assert (batch.stop, batch.sent, batch.closed, batch.waiting) == (30, 25, [3], [(5, peers[5])])
    assert batch.own == [7, 11, 13]
    assert [place for place in range(30) if not network.received(links[place])] == [3, 5, 7, 11, 13]
    assert peers[9].ready


@c_core
@pytest.mark.parametrize("odd", ["many", "duplicate", "type", "peer", "loop"])
def test_looks_at_all_if_it_must(name: str, network: Network, odd: str) -> None:
    """Where some must wait for those ahead of them, or many are not ready, all are gathered one by one."""
    core = load_core(name)
    links = ready_links(core, network, 30)
    if odd == "many":
        for link in links[:10]:
            link._wsfast_peer.invalidate()
    elif odd == "duplicate":
        links[9] = links[0]
    elif odd == "type":
        links[9] = network.link()
    elif odd == "peer":
        links[9] = network.link(ReportingLink)
    else:
        links[9] = network.link(ReportingLink)
        links[9].home = object()
    batch = send(core, links)
    assert type(batch.connections) is list
    assert batch.connections == links
    assert batch.connections is not links  # which may change from here on
    assert batch.stop == batch.sent == (9 if odd in ("duplicate", "loop") else 30)


@c_core
@pytest.mark.parametrize("compressed", [False, True])
def test_knows_whose_frames_were_not_taken(name: str, network: Network, compressed: bool) -> None:
    """Whoever did not take everything is named, and is not ready any more."""
    core = load_core(name)
    parameters = Parameters.of(12, {"memLevel": 5})
    assert parameters is not None
    links = [
        link
        for _ in range(6)
        for link in ready_links(
            core, network, 1, small=True, sans=Sans(LazyEncoder(parameters)) if compressed else Sans()
        )
    ]
    network.fill(links[2])
    collection = set(links)
    order = list(collection)
    collection_peers = [link._wsfast_peer for link in order]
    batch = send(core, collection, random.Random(1).randbytes(3_000_000))
    assert batch.refused == [(order.index(links[2]), links[2]._wsfast_peer)]
    assert [(place, peer) for place, peer, *_ in batch.cut] == [
        (place, peer) for place, peer in enumerate(collection_peers) if order[place] is not links[2]
    ]
    assert batch.connections == dict(enumerate(order))
    assert not any(peer.ready for peer in collection_peers)


@c_core
def test_a_window_moves_on_though_its_peer_was_invalidated_meanwhile(name: str, network: Network) -> None:
    """Another thread may read a connection's protocol, which invalidates its peer, while the frame is being sent."""
    core = load_core(name)
    parameters = Parameters.of(12, {"memLevel": 5})
    assert parameters is not None
    encoders = [LazyEncoder(parameters) for _ in range(3)]
    links = [ready_links(core, network, 1, sans=Sans(encoder))[0] for encoder in encoders]
    table = core.TickTable()
    table.add(peer_of(core, links[2]))
    links[2]._wsfast_peer.connection = links[2]
    links[2]._wsfast_peer.check(links[2])
    message = self_contained(prepare("hello" * 100))
    table.extend(0, (table.enter(message),))
    table.begin(0)
    batches = [core.Batch(), core.Batch()]
    batches[0].gather(links[:2], 0, message, layout_of, transport_layout_of, LOOP)
    batches[1].collect(table, 10, lambda node: message)
    for link in links[1:]:
        link._wsfast_peer.invalidate()
    for batch in batches:
        batch.send()
    assert [batch.sent for batch in batches] == [2, 1]
    links[0]._wsfast_peer.invalidate()
    assert [encoder.state for encoder in encoders] == [message.choose(parameters.unknown)[1]] * 3


@c_core
def test_waits_for_what_threads_are_sending(name: str, network: Network) -> None:
    """A frame that threads have begun is whole before the next one begins, though its connection is ready."""
    core = load_core(name)
    links = ready_links(core, network, 4, small=True)
    table = core.TickTable()
    for place, link in enumerate(links):
        assert table.add(link._wsfast_peer) == place
        link._wsfast_peer.connection = link
        link._wsfast_peer.check(link)
        table.extend(place, (0,))
    message = self_contained(prepare(b"x" * 1_000_000))
    table.enter(message)
    table.begin(0)
    told, done = (network.exits.enter_context(sock) for sock in socket.socketpair())
    batch = core.Batch()
    batch.collect(table, 10, lambda node: message)

    def settle() -> None:
        batch.send()
        for place, _, rest, *_ in batch.cut:
            links[place].wire.waiting = len(rest)

    table.settle = settle
    threads = core.threads()
    core.set_threads(2, size=1, chunk=1)
    try:
        assert batch.detach(SimpleNamespace(writer=done.fileno()))
        told.settimeout(TIMEOUT)
        told.recv(8)
        for link in links:
            assert network.received(link)  # there is room again
        later = send(core, links)
    finally:
        core.set_threads(threads)
    assert [place for place, *_ in batch.cut] == [0, 1, 2, 3]
    assert (later.sent, later.waiting) == (0, [(place, link._wsfast_peer) for place, link in enumerate(links)])
    assert [network.received(link)[:2] for link in links] == [b""] * 4


@c_core
def test_a_connection_with_two_peers(name: str, network: Network) -> None:
    """A connection is found as long as the last of its peers that was ready is."""
    core = load_core(name)
    links = ready_links(core, network, 8)
    first = links[0]._wsfast_peer
    links[0]._wsfast_peer = None
    second = peer_of(core, links[0])
    second.check(links[0])
    assert [first.ready, second.ready] == [True, True]
    assert send(core, links).sent == 8
    first.invalidate()
    links[0]._wsfast_peer = None
    assert send(core, links).sent == 8
    assert [link._wsfast_peer is None for link in links] == [True] + [False] * 7
    second.invalidate()
    assert send(core, links).sent == 8
    assert links[0]._wsfast_peer.ready  # another one
    assert network.received(links[0]) == b"\x81\x05hello" * 3


@c_core
def test_a_peer_that_ends_gives_the_state_back(name: str, network: Network) -> None:
    """Whoever takes a peer away from its connection leaves the encoder with what the window holds."""
    core = load_core(name)
    parameters = Parameters.of(12, {"memLevel": 5})
    assert parameters is not None
    encoder = LazyEncoder(parameters)
    (link,) = ready_links(core, network, 1, sans=Sans(encoder))
    others = ready_links(core, network, 3)
    message = prepare("hello" * 100)
    assert send(core, [link, *others], message).sent == 4
    assert encoder.state is parameters.unknown
    link._wsfast_peer = None
    assert encoder.state is self_contained(message).choose(parameters.unknown)[1]


@c_core
def test_many_come_and_go(name: str, network: Network) -> None:
    """However many are ready, and in whatever order they cease to be, those are found, and only those."""
    core = load_core(name)
    near, far = (network.exits.enter_context(sock) for sock in socket.socketpair())
    links: list[Any] = []
    for _ in range(200):
        sock = network.exits.enter_context(near.dup())
        sock.setblocking(False)
        links.append(ReportingLink(Transport(sock)))
    peers = [peer_of(core, link) for link in links]
    chance = random.Random(1)
    for _ in range(60):
        for number in chance.sample(range(200), chance.choice([3, 40, 200])):
            peers[number].invalidate()
            if chance.random() < 0.9:
                peers[number].check(links[number])
        ready = [link for link, peer in zip(links, peers, strict=True) if peer.ready]
        for link in links:
            link._wsfast_peer = None
        if len(ready) > 1:
            assert (send(core, ready, "").sent, len(far.recv(1000))) == (len(ready), 2 * len(ready))
        assert [link for link in links if link._wsfast_peer is not None] == []
        for link, peer in zip(links, peers, strict=True):
            link._wsfast_peer = peer


# ---- Against lists

MOST = 12  # connections at a time
DEEDS = st.one_of(
    st.tuples(st.just("open"), st.sampled_from([ReportingLink] * 6 + [Link, UnknownLink]), st.integers(1, 5)),
    st.tuples(
        st.sampled_from(["invalidate", "check", "close", "busy", "idle", "own", "lose", "lose", "drop", "elsewhere"]),
        st.integers(0, MOST),
        st.none(),
    ),
    st.tuples(st.just("collect"), st.none(), st.none()),
    st.tuples(
        st.just("broadcast"), st.sampled_from(list(COLLECTIONS)), st.lists(st.integers(0, MOST), max_size=4 * MOST)
    ),
    st.tuples(st.just("broadcast"), st.sampled_from(list(COLLECTIONS)), st.just(range(MOST))),
)


class World:
    """Connections that are sent to, lost and made anew, so that addresses and descriptors are used again."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.network = Network()
        self.links: list[Any] = []
        self.expected: list[list[int]] = []  # what each was to be sent
        self.got: list[list[int]] = []  # and what its transport, or its own methods, were given
        self.sockets: list[tuple[socket.socket, socket.socket]] = []
        self.gone: list[weakref.ref[Any]] = []
        self.kept: list[tuple[socket.socket, socket.socket]] = []
        self.number = 0

    def open(self, kind: Any, count: int) -> None:
        for _ in range(min(count, MOST - len(self.links))):
            near, far = socket.socketpair()
            near.setblocking(False)
            far.setblocking(False)
            self.links.append(kind(Transport(near)))
            self.sockets.append((near, far))
            self.expected.append([])
            self.got.append([])

    def disturb(self, deed: str, which: int) -> None:
        """Have something happen to a connection; if it tells, its peer is invalidated first."""
        if not self.links:
            return
        which %= len(self.links)
        link = self.links[which]
        if deed in ("lose", "drop"):
            self.verify(which)
        peer = link._wsfast_peer
        if peer is not None and deed != "drop":
            peer.invalidate()
        if deed == "check" and peer is not None:
            peer.check(link)
        elif deed == "close":
            link.sans.condition = CLOSED
        elif deed == "busy":
            link.wire.waiting = 1
        elif deed == "idle":
            link.wire.waiting, link.sending, link.sans.condition = 0, None, OPEN
        elif deed == "own":
            link.sending = object()
        elif deed == "elsewhere" and peer is None:
            link.home = object()
        elif deed in ("lose", "drop"):
            self.gone.append(weakref.ref(link))
            sockets = self.sockets.pop(which)
            del self.links[which], self.expected[which], self.got[which]
            if deed == "lose":
                for sock in sockets:
                    sock.close()
            else:
                self.kept.append(sockets)  # nobody has told that it is lost, hence it cannot be closed

    def broadcast(self, kind: str, which: Collection[int]) -> None:
        """Send a number to a collection of connections, in the way in which `wsfast.broadcast()` does."""
        self.number += 1
        connections = COLLECTIONS[kind]([self.links[i % len(self.links)] for i in which if self.links])
        for link in connections:
            if link.sans.condition is OPEN:
                self.expected[self.links.index(link)].append(self.number)
        start = 0
        while True:
            batch = send(self.core, connections, str(self.number), start)
            connections = batch.connections
            places = [place for place, *_ in (*batch.waiting, *batch.refused)] + batch.own
            assert batch.cut == batch.lost == []
            for place in places:
                self.got[self.links.index(connections[place])].append(self.number)
            for place in batch.closed:
                assert connections[place].sans.condition is CLOSED
            if batch.stop >= len(connections):
                return
            if batch.stop == start:
                index = self.links.index(connections[start])
                if self.links[index].sans.condition is OPEN:
                    self.got[index].append(self.number)
            start = batch.stop + (batch.stop == start)

    def verify(self, which: int) -> None:
        """Compare what a connection has got with what it was to be sent."""
        frames, tail = parse_frames(read_all(self.sockets[which][1]))
        got = self.got[which] + [int(frame.payload) for frame in frames]
        assert (sorted(got), tail) == (self.expected[which], b"")
        self.got[which] = got

    def end(self) -> None:
        for near, far in self.sockets + self.kept:
            near.close()
            far.close()


@each_core
@settings(deadline=None, max_examples=150)
@given(deeds=st.lists(DEEDS, max_size=60))
def test_finds_those_that_are_there(name: str, deeds: list[tuple[str, Any, Any]]) -> None:
    """Each gets what it is sent, whoever had its address, its descriptor or its row before, and keeps none alive."""
    world = World(load_core(name))
    try:
        for deed, one, other in deeds:
            if deed == "open":
                world.open(one, other)
            elif deed == "collect":
                gc.collect()
                assert [reference() for reference in world.gone] == [None] * len(world.gone)
            elif deed == "broadcast":
                world.broadcast(one, other)
            else:
                world.disturb(deed, one)
        for which in range(len(world.links)):
            world.verify(which)
    finally:
        world.end()
