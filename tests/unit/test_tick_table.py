"""Members and TickTable: who is to be sent what in a tick. Both cores answer the same tests."""

from __future__ import annotations

import ast
import contextlib
import gc
import weakref
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.cores import CORES, load_core
from helpers.links import (
    CLOSED,
    LOOP,
    OPEN,
    IndirectTransport,
    Link,
    MaskedLink,
    Network,
    ReportingLink,
    Sans,
    layout_of,
    peer_of,
    transport_layout_of,
)
from helpers.peers import parse_frames
from wsfast._encoding.deflate import LazyEncoder, Parameters, Window
from wsfast._encoding.message import Encoding, join

each_core = pytest.mark.parametrize("name", CORES)  # rather than the fixture, which Hypothesis would not renew
c_core = pytest.mark.parametrize("name", [name for name in CORES if name == "c"])

ALL = (1 << 64) - 1
COUNT = 5  # subscribers in the test against lists: few, so that much happens to each
SLOTS = st.integers(0, COUNT - 1)
MASK = st.sets(SLOTS)


@pytest.fixture
def network() -> Iterator[Network]:
    with Network.opened() as network:
        yield network


def asked_link(link_type: type[Link] = Link) -> Link:
    """Return a connection that both cores leave to its transport."""
    return link_type(IndirectTransport(None))


def table_of(core: Any, count: int) -> tuple[Any, list[Any]]:
    """Return a table of peers that are left to their transports, and these."""
    table = core.TickTable()
    peers = [peer_of(core, asked_link()) for _ in range(count)]
    assert [table.add(peer) for peer in peers] == list(range(count))
    return table, peers


def members_of(core: Any, *slots: int) -> Any:
    members = core.Members()
    for slot in slots:
        members.add(slot)
    return members


def collect(core: Any, table: Any, count: int = 1000, sequence_of: Any = None) -> Any:
    """Collect and send; return the batch."""
    batch = core.Batch()
    batch.collect(table, count, sequence_of or (lambda node: pytest.fail("no frame was needed")))
    batch.send()
    assert batch.done is True
    return batch


def take(table: Any, slot: int) -> list[Any]:
    """Take what is being sent to a slot."""
    entries: list[Any] = []
    table.take(slot, entries)
    return entries


def taken(core: Any, table: Any, count: int = 1000) -> dict[int, list[Any]]:
    """Collect from peers that are left to their transports; return what each is to get."""
    batch = collect(core, table, count)
    assert batch.sent == 0
    assert batch.closed == batch.cut == batch.refused == batch.own == batch.lost == []
    for slot, peer in batch.waiting:
        assert table.peers[slot] is peer
    return {slot: take(table, slot) for slot, _ in batch.waiting}


def tick(core: Any, table: Any) -> dict[int, list[Any]]:
    """Send all that was published; return what each is to get."""
    table.begin(0)
    everything = taken(core, table)
    assert table.left == 0
    table.finish()
    return everything


class Text:
    """A message of several entries; it has no encodings but the plain one."""

    def __init__(self, entries: list[Any]) -> None:
        self.plain = Encoding.of_frames([b"%d;" % entry for entry in entries])


# ---- Members


def test_members_keep_slots(core: Any) -> None:
    """They are those that were added and not discarded."""
    members = core.Members()
    assert len(members) == 0
    assert members.slots == []
    for slot in range(100):
        members.add(slot)
    for slot in (99, 0, 50, 98, 7):
        members.discard(slot)
    assert len(members) == 95
    assert sorted(members.slots) == sorted(set(range(100)) - {99, 0, 50, 98, 7})
    members.add(50)
    assert members.slots[-1] == 50


def test_members_last_takes_the_place(core: Any) -> None:
    """The last one takes the place of one that is discarded."""
    members = members_of(core, 3, 1, 4, 5)
    members.discard(1)
    assert members.slots == [3, 5, 4]
    members.discard(4)
    assert members.slots == [3, 5]
    members.discard(3)
    assert members.slots == [5]


def test_members_discard_of_a_stranger(core: Any) -> None:
    """To discard a slot that is not among them changes nothing."""
    members = members_of(core, 1)
    members.discard(2)
    assert members.slots == [1]
    members.discard(1)
    members.discard(1)
    assert members.slots == []


@each_core
@given(changes=st.lists(SLOTS))
def test_members_agree_with_a_set(name: str, changes: list[int]) -> None:
    """Whatever is added and discarded, they are a set."""
    members = load_core(name).Members()
    model: set[int] = set()
    for slot in changes:
        if slot in model:
            model.remove(slot)
            members.discard(slot)
        else:
            model.add(slot)
            members.add(slot)
        assert len(members) == len(model)
        assert set(members.slots) == model
        assert len(members.slots) == len(model)


def filter_of(core: Any, mask: int) -> Any:
    return core.Filter(frozenset(), mask)


def test_members_with_filters(core: Any) -> None:
    """Members have a filter, or none; the last one takes its filter along to another place."""
    one, two = filter_of(core, 1), filter_of(core, 1 << 63)
    members = core.Members()
    members.add(3)
    members.add(1, one)
    members.add(4)
    members.add(5, two)
    assert (members.passing(1), members.passing(1 << 63), members.passing(0)) == ([3, 1, 4], [3, 4, 5], [3, 4])
    assert (members.count(1), members.count(ALL), members.count(2)) == (3, 4, 2)
    members.discard(3)
    assert (members.slots, members.passing(1 << 63)) == ([5, 1, 4], [5, 4])
    members.set_filter(4, one)
    members.set_filter(5)
    assert (members.passing(0), members.count(1), members.count(2)) == ([5], 3, 1)
    with pytest.raises(ValueError, match=r"^slot 3 is not a member$"):
        members.set_filter(3, one)
    for slot in (1, 4):
        members.discard(slot)
    members.add(1)  # which has no filter any more
    assert members.passing(0) == [5, 1]
    assert (one.tags, one.mask, one.skipped) == (frozenset(), 1, 0)


@each_core
@given(changes=st.lists(st.tuples(SLOTS, st.sampled_from(["add", "set", "discard"]), st.integers(0, 3))))
def test_filters_agree_with_a_dict(name: str, changes: list[tuple[int, str, int]]) -> None:
    """Whatever is added, replaced and discarded, each member has the filter that it got last."""
    core = load_core(name)
    filters = [None, *(filter_of(core, mask) for mask in (1, 2, 3))]
    members, model = core.Members(), dict[int, int]()
    for slot, change, which in changes:
        if change == "discard":
            members.discard(slot)
            model.pop(slot, None)
        elif slot in model:
            members.set_filter(slot, filters[which])
            model[slot] = which
        elif change == "add":
            members.add(slot, filters[which])
            model[slot] = which
        for mask in (0, 1, 2, 3):
            passing = {slot for slot, which in model.items() if not which or which & mask}
            assert set(members.passing(mask)) == passing
            assert members.count(mask) == len(members.passing(mask)) == len(passing)
    kept = {id(filters[which]) for which in model.values()}
    references = [(weakref.ref(one), id(one) in kept) for one in filters if one is not None]
    del filters
    gc.collect()
    assert [reference() is not None for reference, _ in references] == [known for _, known in references]
    del members
    gc.collect()
    assert all(reference() is None for reference, _ in references)


# ---- Slots


def test_slots_are_small_and_given_out_again(core: Any) -> None:
    """Slots count up from 0, and one that was given back is the next."""
    table, peers = table_of(core, 200)
    assert [peer.slot for peer in peers] == list(range(200))
    table.remove(peers[17])
    assert peers[17].slot == -1
    assert table.peers[17] is None
    other = peer_of(core, asked_link())
    assert table.add(other) == other.slot == 17
    assert table.peers[17] is other
    assert table.add(peers[17]) == 200
    assert len(table.peers) == 201


def test_there_is_no_such_slot(core: Any) -> None:
    """A slot that was never given out, or given back, is an error."""
    table, (peer, stranger) = table_of(core, 2)
    table.remove(stranger)
    methods = [
        table.node,
        table.is_pending,
        table.pending,
        lambda slot: table.extend(slot, (0,)),
        lambda slot: table.take(slot, []),
        lambda slot: table.set_aside(slot, True),
    ]
    for slot in (1, 2, 1000, -1):
        for method in methods:
            with pytest.raises(IndexError):
                method(slot)
    with pytest.raises(IndexError):
        table.remove(stranger)
    with pytest.raises(IndexError):
        table.sequence(1)
    assert table.add(stranger) == 1
    assert (peer.slot, table.left, table.published) == (0, 0, False)


def test_many_slots_and_entries(core: Any) -> None:
    """There is room for as many as it takes."""
    table, peers = table_of(core, 2000)
    all_members = [core.Members() for _ in range(10)]
    for slot in range(len(peers)):
        all_members[slot % 10].add(slot)
        if slot // 200 != slot % 10:
            all_members[slot // 200].add(slot)
    for entry in range(300):
        assert table.enter(entry) == entry
        table.publish(all_members[entry % 10], entry)
    expected = {slot: [entry for entry in range(300) if entry % 10 in (slot % 10, slot // 200)] for slot in range(2000)}
    table.begin(0)
    assert table.left == 2000
    assert taken(core, table, 2000) == expected
    assert table.finish() == list(range(300))


# ---- Publishing


def test_who_gets_the_same_is_at_the_same_node(core: Any) -> None:
    """Members of the same channels are at one node, at which each sequence of entries is kept once."""
    table, peers = table_of(core, 6)
    one, two = members_of(core, 0, 1, 2, 3), members_of(core, 2, 3, 4, 5)
    for number, (entry, members) in enumerate((("a", one), ("b", two), ("c", one))):
        assert table.enter(entry) == number
        assert table.publish(members, number) == 4
    assert (table.published, table.sending) == (True, False)
    table.begin(0)
    assert (table.published, table.sending) == (False, True)
    nodes = [table.node(slot) for slot in range(6)]
    assert [table.sequence(node) for node in nodes] == [["a", "c"]] * 2 + [["a", "b", "c"]] * 2 + [["b"]] * 2
    assert len(set(nodes)) == 3
    assert 0 not in nodes
    assert table.left == 6
    assert all(table.is_pending(peer.slot) for peer in peers)
    assert taken(core, table) == {0: ["a", "c"], 1: ["a", "c"], **{slot: ["a", "b", "c"] for slot in (2, 3)}} | {
        slot: ["b"] for slot in (4, 5)
    }
    assert table.left == 0
    assert not any(table.is_pending(peer.slot) for peer in peers)
    assert [table.node(slot) for slot in range(6)] == [0] * 6
    assert table.sequence(0) == []
    assert table.finish() == ["a", "b", "c"]
    assert (table.published, table.sending) == (False, False)


def test_several_entries_to_one_slot(core: Any) -> None:
    """Slots that get the same entries after the same ones are at one node, whatever others get in between."""
    table, _ = table_of(core, 6)
    numbers = [table.enter(entry) for entry in "abcd"]
    table.publish(members_of(core, 4, 5), 0)
    for slot in (0, 1, 2, 3, 4):
        table.extend(slot, tuple(numbers[1 + slot % 2 : 3]))
        table.extend(slot, ())
        table.extend(slot, (numbers[3],))
    assert [table.pending(slot) for slot in range(6)] == [
        list(some) for some in ("bcd", "cd", "bcd", "cd", "abcd", "a")
    ]
    table.extend(5, (1, 2, 3))
    table.begin(0)
    assert table.left == 6
    nodes = [table.node(slot) for slot in range(6)]
    assert nodes[0] == nodes[2]
    assert nodes[1] == nodes[3]
    assert taken(core, table) == {
        slot: list(some) for slot, some in enumerate(("bcd", "cd", "bcd", "cd", "abcd", "abcd"))
    }
    table.finish()
    table.extend(0, (table.enter("e"),))  # numbers begin anew
    assert tick(core, table) == {0: ["e"]}


def test_excluded(core: Any) -> None:
    """Excluded ones get nothing, whatever else they get; excluding a stranger changes nothing."""
    table, _ = table_of(core, 4)
    members = members_of(core, 0, 1, 2, 3)
    for number, (excluded, count) in enumerate((({1, 3, 77}, 2), ({3}, 3), ((), 4), ({0, 1, 2, 3}, 0))):
        table.enter(number)
        assert table.publish(members, number, excluded) == count
    assert table.publish(core.Members(), 3) == 0
    assert tick(core, table) == {0: [0, 1, 2], 1: [1, 2], 2: [0, 1, 2], 3: [2]}


def test_published_to_several_as_one(core: Any) -> None:
    """Who is among several members gets an entry once, and is listed for each other time; excluded ones are not."""
    table, _ = table_of(core, 6)
    several = [members_of(core, *slots) for slots in ((0, 1, 2, 3), (2, 3, 4, 5), (3, 4))]
    for entry in range(3):
        table.enter(entry)
    table.publish(several[0], 0)
    already: list[int] = []
    counts = [table.publish(members, 1, {1, 5}, already) for members in several]
    assert counts == [3, 1, 0]
    assert already == [2, 3, 3, 4]
    table.extend(0, (2,))
    assert table.publish(several[0], 2, (), already) == 3
    assert already == [2, 3, 3, 4, 0]
    # Without a list, nobody asks.
    assert table.publish(several[2], 2) == 2
    assert tick(core, table) == {0: [0, 1, 2], 1: [0, 2], 2: [0, 1, 2], 3: [0, 1, 2, 2], 4: [1, 2]}


def test_filtered(core: Any) -> None:
    """Those whose filter has none of an entry's bits do not get it, which is counted once for each filter."""
    table, _ = table_of(core, 5)
    one, two, high = filter_of(core, 1), filter_of(core, 2), filter_of(core, 1 << 63)
    members = core.Members()
    for slot, wanted in enumerate((one, None, two, two, high)):
        members.add(slot, wanted)
    for entry, (mask, count) in enumerate(((1, 2), (2, 3), (3, 4), (0, 1), (ALL, 5), (1 << 63, 2), (4, 1))):
        assert table.enter(entry) == entry
        assert table.publish(members, entry, (), None, mask) == count
    assert table.publish(members, 6, (), None, 4) == 0  # a second time does nothing
    assert [each.skipped for each in (one, two, high)] == [4, 4, 5]
    table.enter(7)
    assert table.publish(members, 7) == 5
    expected = {0: [0, 2, 4, 7], 1: list(range(8)), 2: [1, 2, 4, 7], 3: [1, 2, 4, 7], 4: [4, 5, 7]}
    assert tick(core, table) == expected
    assert table.enter("next") == 0
    assert table.publish(members, 0, (), None, 2) == 3
    assert [each.skipped for each in (one, two, high)] == [5, 4, 6]


def test_filtered_and_excluded(core: Any) -> None:
    """A filter counts what it does not let through, whoever is excluded or had it already; only the others are."""
    table, _ = table_of(core, 4)
    one, two, other = (filter_of(core, mask) for mask in (1, 2, 2))
    first, second = core.Members(), core.Members()
    for slot, wanted in enumerate((one, one, two, two)):
        first.add(slot, wanted)
    for slot in (0, 2, 3):
        second.add(slot, other)
    table.enter("a")
    already: list[int] = []
    assert table.publish(first, 0, {0, 2, 3}, already, 1) == 1
    assert table.publish(second, 0, {0, 2, 3}, already, 1) == 0
    assert (one.skipped, two.skipped, other.skipped, already) == (0, 1, 1, [])
    table.enter("b")
    assert table.publish(first, 1, {3}, already, 3) == 3
    assert table.publish(second, 1, {3}, already, 1) == 0
    assert already == []
    assert (one.skipped, two.skipped, other.skipped) == (0, 1, 2)
    table.enter("c")
    assert table.publish(first, 2, (), already, 2) == 2
    assert table.publish(second, 2, (), already, 3) == 1
    assert already == [2, 3]
    assert tick(core, table) == {0: ["b", "c"], 1: ["a", "b"], 2: ["b", "c"], 3: ["c"]}


def test_the_first_entry_of_a_tick_is_not_had_already(core: Any) -> None:
    """A slot that gets nothing yet has no last entry, also if it was sent that number, or has a new owner."""
    table, (peer,) = table_of(core, 1)
    members = members_of(core, 0)
    for _ in range(2):
        already: list[int] = []
        table.enter("a")
        assert table.publish(members, 0, (), already) == 1
        assert table.publish(members_of(core, 0), 0, (), already) == 0
        assert already == [0]
        assert table.publish(members, 0, (), already) == 0  # a second time does nothing
        assert already == [0]
        table.begin(0)
        assert table.enter("b") == 0
        assert table.publish(members, 0, (), already) == 1
        assert already == [0]
        assert taken(core, table) == {0: ["a"]}
        table.finish()
        table.remove(peer)
        assert tick(core, table) == {}
        assert table.add(peer) == 0
        table.enter("c")
        assert table.publish(members, 0, (), already) == 1
        assert already == [0]
        assert tick(core, table) == {0: ["c"]}


# ---- Two generations


def test_first_one_rotates(core: Any) -> None:
    """The first one served is the one at `start`, modulo their number; in the middle of a tick, it stands."""
    for start, expected in ((0, [0, 1, 2, 3, 4]), (2, [2, 3, 4, 0, 1]), (4, [4, 0, 1, 2, 3]), (7, [2, 3, 4, 0, 1])):
        table, _ = table_of(core, 5)
        table.enter("x")
        table.publish(members_of(core, 0, 1, 2, 3, 4), 0)
        table.begin(start)
        order: list[int] = []
        for _ in range(3):
            order += taken(core, table, 2)
        assert order == expected


def test_begin_with_nothing(core: Any) -> None:
    """A table may begin to send where nobody gets anything."""
    table, _ = table_of(core, 2)
    for start in (0, 5):
        table.begin(start)
        assert table.left == 0
        assert table.finish() == []
        table.enter("x")  # for nobody
        table.begin(start)
        assert table.sending
        assert taken(core, table) == {}
        assert table.finish() == ["x"]


def test_what_is_published_meanwhile_is_sent_next(core: Any) -> None:
    """While one generation is being sent, the next one is published, whoever has been served."""
    table, _ = table_of(core, 5)
    everybody = members_of(core, 0, 1, 2, 3, 4)
    table.enter("a")
    table.publish(everybody, 0)
    table.begin(0)
    assert taken(core, table, 2) == {0: ["a"], 1: ["a"]}
    assert table.left == 3
    assert table.enter("b") == 0
    assert table.publish(everybody, 0, {4}) == 4
    assert table.left == 3
    assert [table.pending(slot) for slot in range(5)] == [["b"], ["b"], ["a", "b"], ["a", "b"], ["a"]]
    assert all(table.is_pending(slot) for slot in range(5))
    with pytest.raises(ValueError, match=r"^3 slots have not been sent to$"):
        table.finish()
    with pytest.raises(ValueError, match=r"^the entries published before are still being sent$"):
        table.begin(0)
    assert taken(core, table) == {2: ["a"], 3: ["a"], 4: ["a"]}
    with pytest.raises(ValueError, match=r"^the entries published before are still being sent$"):
        table.begin(0)
    assert table.finish() == ["a"]
    assert tick(core, table) == {slot: ["b"] for slot in range(4)}
    assert tick(core, table) == {}


def test_whom_nobody_has_taken_is_looked_at_again(core: Any) -> None:
    """Those that were collected, but are still to be sent to, are collected once more in the end."""
    table, _ = table_of(core, 3)
    table.enter("a")
    table.publish(members_of(core, 0, 1, 2), 0)
    table.begin(0)
    assert [slot for slot, _ in collect(core, table, 2).waiting] == [0, 1]
    assert take(table, 0) == ["a"]
    assert [slot for slot, _ in collect(core, table, 2).waiting] == [2]
    assert [slot for slot, _ in collect(core, table, 2).waiting] == [1]
    assert table.left == 2
    assert [slot for slot, _ in collect(core, table, 2).waiting] == [2]
    assert (take(table, 1), take(table, 2)) == (["a"], ["a"])
    assert collect(core, table, 2).waiting == []


def test_take_adds_to_a_list(core: Any) -> None:
    """What is taken comes behind what is there; what is only published is not taken."""
    table, _ = table_of(core, 2)
    for entry in ("a", "b"):
        table.publish(members_of(core, 0), table.enter(entry))
    table.begin(0)
    table.extend(0, (table.enter("c"),))
    entries = ["z"]
    for _ in range(2):
        table.take(0, entries)
        assert entries == ["z", "a", "b"]
        assert table.left == 0
    table.take(1, entries)
    assert entries == ["z", "a", "b"]
    assert table.pending(0) == ["c"]


def test_removed_in_the_middle(core: Any) -> None:
    """What was published for a slot that leaves is sent to nobody, also not to the next one with that number."""
    table, peers = table_of(core, 5)
    members = members_of(core, 0, 1, 2, 3, 4)
    table.publish(members, table.enter("a"))
    table.begin(0)
    assert taken(core, table, 1) == {0: ["a"]}
    table.publish(members, table.enter("b"))
    for slot in (3, 0):
        members.discard(slot)
        table.remove(peers[slot])
    assert table.left == 3
    new = [peer_of(core, asked_link()) for _ in range(2)]
    slots = [table.add(peer) for peer in new]
    for slot in slots:
        assert not table.is_pending(slot)
        table.extend(slot, (0,))
    assert taken(core, table) == {slot: ["a"] for slot in (1, 2, 4)}
    table.finish()
    assert tick(core, table) == {slot: ["b"] for slot in (1, 2, 4, *slots)}


def test_all_are_removed(core: Any) -> None:
    """A table may be finished when all who were to be sent to have left."""
    table, peers = table_of(core, 3)
    table.publish(members_of(core, 0, 1, 2), table.enter("a"))
    table.begin(0)
    for peer in peers:
        table.remove(peer)
    assert table.left == 0
    assert collect(core, table).waiting == []
    assert table.finish() == ["a"]
    assert sorted(table.add(peer) for peer in peers) == [0, 1, 2]


def test_a_slot_is_sent_to_once_whoever_had_it(core: Any, network: Network) -> None:
    """The next owner of a slot whose last one left with messages pending gets its own messages, once."""
    table = core.TickTable()
    old = peer_of(core, asked_link())
    table.add(old)
    table.extend(old.slot, (table.enter(1),))
    table.remove(old)
    link = network.link(ReportingLink)
    new = peer_of(core, link)
    table.extend(table.add(new), (table.enter(2),))
    table.begin(0)
    batch = collect(core, table, 1000, lambda node: Text(table.sequence(node)))
    if core.sends_directly:
        assert (batch.sent, batch.refused) == (1, [])
        assert network.received(link) == b"2;"
    else:
        assert batch.waiting == [(new.slot, new)]
        assert take(table, new.slot) == [2]
    assert table.left == 0


# ---- What is found out about each


def test_lists_of_a_batch(core: Any) -> None:
    """Who is not sent to is listed by what it takes, with its slot; all stay where they are."""
    table, peers = table_of(core, 6)
    masked = peer_of(core, asked_link(MaskedLink))
    table.add(masked)
    peers.append(masked)
    links = [peer.connection for peer in peers]
    links[1].sending = object()
    links[2].sans.condition = CLOSED
    del links[3].sans
    peers[3].connection = None
    table.set_aside(4, True)
    table.set_aside(5, True)
    table.set_aside(5, False)
    table.publish(members_of(core, *range(7)), table.enter("a"))
    table.begin(0)
    for _ in range(2):
        batch = collect(core, table)
        assert batch.waiting == [(0, peers[0]), (5, peers[5])]
        assert batch.closed == [2]
        assert batch.own == [(1, peers[1]), (3, peers[3])]
        assert batch.refused == [(4, peers[4]), (6, peers[6])]
        assert batch.sent == 0
        assert batch.cut == batch.lost == []
        assert table.left == 7
    table.set_aside(6, False)  # as a link that masks has nothing that would be sent in this way
    assert (6, masked) in collect(core, table).waiting
    table.remove(peers[4])
    assert table.add(peers[4]) == 4
    table.extend(4, (table.enter("b"),))
    for slot in (0, 1, 2, 3, 5, 6):
        assert take(table, slot) == ["a"]
    table.finish()
    table.begin(0)
    assert collect(core, table).waiting == [(4, peers[4])]  # a new owner is not set aside


def test_odd_connections_have_their_own_methods(core: Any) -> None:
    """A connection that raises an exception when it is looked at is left to its own methods."""
    table, peers = table_of(core, 2)
    del peers[0].connection.sending
    table.publish(members_of(core, 0, 1), table.enter("a"))
    table.begin(0)
    batch = collect(core, table)
    assert (batch.own, batch.waiting) == ([(0, peers[0])], [(1, peers[1])])


# ---- Sending


def test_failing_frames(core: Any, network: Network) -> None:
    """If frames cannot be made, nothing was sent, and all of it is still to be."""
    table = core.TickTable()
    links = [network.link(kind) for kind in (Link, ReportingLink)]
    for link in links:
        peer_of(core, link).check(link)
        table.extend(table.add(link._wsfast_peer), (table.enter(link._wsfast_peer.slot),))
    table.begin(0)

    def sequence_of(node: int) -> Any:
        if table.sequence(node) == [1]:
            raise ZeroDivisionError
        return Text(table.sequence(node))

    batch = core.Batch()
    with pytest.raises(ZeroDivisionError) if core.sends_directly else contextlib.nullcontext():
        batch.collect(table, 2, sequence_of)
    assert batch.done is False
    assert table.left == 2
    assert [network.received(link) for link in links] == [b"", b""]
    batch = collect(core, table, 2, lambda node: Text(table.sequence(node)))
    if core.sends_directly:
        assert (batch.sent, table.left) == (2, 0)
        assert [network.received(link) for link in links] == [b"0;", b"1;"]
    else:
        assert [slot for slot, _ in batch.waiting] == [0, 1]


@c_core
@pytest.mark.parametrize("kind", [Link, ReportingLink])
def test_what_kernels_do_not_take(name: str, network: Network, kind: type[Link]) -> None:
    """Who takes less is listed; the others are not touched by it."""
    core = load_core(name)
    table = core.TickTable()
    links = [network.link(kind, small=True) for _ in range(5)]
    peers = [peer_of(core, link) for link in links]
    for peer in peers:
        table.add(peer)
        peer.check(peer.connection)
    fill = network.fill(links[1])
    network.far[id(links[2].wire)].close()
    if kind is ReportingLink:  # which is not asked again
        links[0].sending = object()
    table.extend(0, (table.enter(5),))  # alone with a frame that fits
    table.publish(members_of(core, 0, 1, 2, 3, 4), table.enter(6), {0})
    asked: list[int] = []
    big = b"x" * (1 << 20)

    def sequence_of(node: int) -> Any:
        asked.append(node)
        return Text([5]) if table.sequence(node) == [5] else big_message

    big_message = Text([6])
    big_message.plain._frame, big_message.plain.ends = big, (len(big),)
    table.begin(0)
    batch = collect(core, table, 10, sequence_of)
    assert len(set(asked)) == 2
    assert batch.sent == 1
    assert batch.refused == [(1, peers[1]), (2, peers[2])]
    assert batch.closed == batch.waiting == batch.own == batch.lost == []
    for slot, (place, peer, rest, message, count) in zip((3, 4), batch.cut, strict=True):
        assert (place, peer, message, count) == (slot, peers[slot], big_message, 1)
        out = len(network.received(links[slot]))
        assert 0 < out == len(big) - len(rest)
    assert [table.is_pending(slot) for slot in range(5)] == [False, True, True, False, False]
    assert [peer.ready for peer in peers] == [kind is ReportingLink, False, False, False, False]
    assert network.received(links[0]) == b"5;"
    assert len(network.received(links[1])) == fill
    assert (take(table, 1), take(table, 2)) == ([6], [6])
    table.finish()


@c_core
@pytest.mark.parametrize("sizes", [(500_000, 10, 10), (10, 500_000, 10), (10, 10, 500_000)])
def test_cut_among_several_frames(name: str, network: Network, sizes: tuple[int, ...]) -> None:
    """Of several frames, that which was cut is listed up to its end; those behind it are still to be sent."""
    core = load_core(name)
    table = core.TickTable()
    link = network.link(ReportingLink, small=True)
    peer = peer_of(core, link)
    slot = table.add(peer)
    frames = [b"%d" % index * size for index, size in enumerate(sizes)]
    for index in range(3):
        table.extend(slot, (table.enter(index),))
    message = Text([])
    message.plain = Encoding.of_frames(frames)
    table.begin(0)
    batch = collect(core, table, 10, lambda node: message)
    cut_at = sizes.index(500_000)
    ((place, cut_peer, rest, cut_message, count),) = batch.cut
    assert (place, cut_peer, cut_message, count) == (slot, peer, message, cut_at + 1)
    assert network.received(link) + bytes(rest) == b"".join(frames[: cut_at + 1])
    left = list(range(cut_at + 1, 3))
    assert batch.refused == ([(slot, peer)] if left else [])
    assert table.pending(slot) == left
    assert table.is_pending(slot) is bool(left)
    assert table.left == bool(left)
    table.extend(slot, (table.enter("next"),))
    assert table.pending(slot) == [*left, "next"]
    # What is left is not sent behind half a frame; the list of it is to be taken.
    assert collect(core, table).refused == ([(slot, peer)] if left else [])
    assert take(table, slot) == left
    table.finish()
    assert table.pending(slot) == ["next"]
    table.begin(0)
    assert collect(core, table, 10, lambda node: Text([7])).sent == 1  # nothing is skipped any more
    assert network.received(link) == b"7;"


@c_core
def test_skips_end_with_the_owner(name: str, network: Network) -> None:
    """Who gets the slot of one that was cut off has nothing skipped."""
    core = load_core(name)
    table = core.TickTable()
    peer = peer_of(core, network.link(small=True))
    table.add(peer)
    for index in range(2):
        table.extend(0, (table.enter(index),))
    message = Text([])
    message.plain = Encoding.of_frames([b"x" * 500_000, b"y"])
    table.begin(0)
    assert len(collect(core, table, 10, lambda node: message).cut) == 1
    assert table.pending(0) == [1]
    table.remove(peer)
    table.finish()
    assert table.add(peer_of(core, asked_link())) == 0
    table.extend(0, (table.enter("a"),))
    assert tick(core, table) == {0: ["a"]}


def test_a_slot_is_asked_when_it_is_given_out(core: Any, network: Network) -> None:
    """Nothing is written to the descriptor of whoever had the slot before, nor to one that was ready before."""
    table = core.TickTable()
    link = network.link(ReportingLink)
    peer = peer_of(core, link)
    peer.check(link)
    table.add(peer)
    assert peer.ready is False
    peer.check(link)
    assert peer.ready is True
    table.remove(peer)
    assert (peer.ready, peer.slot) == (False, -1)
    assert table.add(peer_of(core, asked_link())) == 0
    table.extend(0, (table.enter(3),))
    assert tick(core, table) == {0: [3]}
    assert network.received(link) == b""


# ---- What windows hold


class Held(Window):
    """What a window holds; of which nothing is remembered, which is always right."""

    history: tuple[int, ...]


class Chain:
    """A message that is compressed for all windows: what each holds then is there once."""

    def __init__(self, name: str, *, plain: bool = False) -> None:
        self.plain = Encoding(0x81, b"plain")
        self.compressed = self.plain if plain else Encoding(0xC1, name.encode())
        self.known: dict[Any, Any] = {}
        self.is_plain = plain

    def choose(self, window: Any) -> tuple[Any, Any]:
        if self.is_plain:
            return self.plain, window
        if window not in self.known:
            self.known[window] = Held(window.parameters)
        return self.compressed, self.known[window]

    def after(self, window: Any, count: int) -> Any:
        return self.choose(window)[1] if count else window


def parameters_of(window_bits: int = 12) -> Parameters:
    parameters = Parameters.of(window_bits, {"memLevel": 5})
    assert parameters is not None
    return parameters


def ready_links(core: Any, network: Network, table: Any, encoders: list[Any], **options: Any) -> list[Link]:
    """Return connections in the table that are known to be ready, with these encoders."""
    links = []
    for encoder in encoders:
        link = network.link(ReportingLink, sans=Sans() if encoder is None else Sans(encoder), **options)
        peer = peer_of(core, link)
        table.add(peer)
        peer.check(link)
        assert peer.ready
        links.append(link)
    return links


def broadcast(core: Any, links: list[Link], message: Any) -> Any:
    """Send a message to connections, past the table."""
    batch = core.Batch()
    batch.gather(links, 0, message, layout_of, transport_layout_of, LOOP)
    batch.send()
    return batch


def send(core: Any, table: Any, message: Any) -> Any:
    """Send a message to all slots that are in use."""
    table.publish(members_of(core, *[slot for slot, peer in enumerate(table.peers) if peer]), table.enter(message))
    table.begin(0)
    return collect(core, table, 1000, lambda node: table.sequence(node)[0])


@c_core
def test_windows_move_on_in_the_table(name: str, network: Network) -> None:
    """What the windows of those that are ready hold is in the table, and in the encoders again once they are not."""
    core = load_core(name)
    table = core.TickTable()
    encoders = [LazyEncoder(parameters_of(bits)) for bits in (12, 12, 9, 12)]
    links = ready_links(core, network, table, [*encoders, None])
    start = parameters_of().unknown
    messages = [Chain("one"), Chain("two")]
    for message in messages:
        assert send(core, table, message).sent == 5
        table.finish()
    assert [encoder.state for encoder in encoders] == [start, start, parameters_of(9).unknown, start]
    expected = [messages[1].after(messages[0].after(encoder.state, 1), 1) for encoder in encoders]
    assert expected[0] is expected[1] is not expected[2]
    for link in links[:3]:
        link._wsfast_peer.invalidate()
    assert [encoder.state for encoder in encoders] == [*expected[:3], start]
    assert [network.received(link) for link in links] == [b"\xc1\x03one\xc1\x03two"] * 4 + [b"\x81\x05plain" * 2]
    # Whether a peer is ready makes no difference to what it holds then.
    message = Chain("three")
    assert send(core, table, message).sent == 5
    table.finish()
    for link in links:
        link._wsfast_peer.invalidate()
    assert [encoder.state for encoder in encoders] == [message.after(window, 1) for window in expected]


@c_core
def test_windows_stay_where_nothing_was_compressed(name: str, network: Network) -> None:
    """Messages that are not compressed leave windows, and the connections' own encoders, alone."""
    core = load_core(name)
    table = core.TickTable()
    own = zlib.compressobj()
    encoders = [LazyEncoder(parameters_of(), own), parameters_of().per_message]
    links = ready_links(core, network, table, encoders)
    states = [encoder.state for encoder in encoders]
    assert send(core, table, Chain("x", plain=True)).sent == 2
    table.finish()
    for link in links:
        link._wsfast_peer.invalidate()
    assert [encoder.state for encoder in encoders] == states
    assert encoders[0].encoder is own


@c_core
def test_own_encoders_are_dropped(name: str, network: Network) -> None:
    """A connection's own encoder is dropped as soon as its window holds something else, not at the end."""
    core = load_core(name)
    table = core.TickTable()
    encoders = [LazyEncoder(parameters_of(), zlib.compressobj()) for _ in range(3)]
    links = ready_links(core, network, table, encoders, small=True)
    network.fill(links[2])
    batch = send(core, table, Chain("one"))
    assert batch.refused == [(2, links[2]._wsfast_peer)]
    assert [encoder.encoder is None for encoder in encoders] == [True, True, False]
    take(table, 2)
    table.finish()
    links[0]._wsfast_peer.invalidate()
    encoders[0].encoder = own = zlib.compressobj()
    links[0]._wsfast_peer.check(links[0])
    links[0]._wsfast_peer.invalidate()
    assert encoders[0].encoder is own  # it fits what is noted


@c_core
def test_connections_and_the_table_know_the_same(name: str, network: Network) -> None:
    """A broadcast to those that are ready moves the windows on in the table, and finds there what they hold."""
    core = load_core(name)
    table = core.TickTable()
    encoders = [LazyEncoder(parameters_of(), zlib.compressobj()) for _ in range(2)]
    links = ready_links(core, network, table, encoders)
    messages = [Chain(str(number)) for number in range(4)]
    window = parameters_of().own
    for number, message in enumerate(messages):
        if number % 2:
            assert send(core, table, message).sent == 2
            table.finish()
        else:
            assert broadcast(core, links, message).sent == 2
        assert list(message.known) == [window]
        window = message.known[window]
    assert all(link._wsfast_peer.ready for link in links)
    assert [encoder.encoder for encoder in encoders] == [None, None]
    for link in links:
        table.remove(link._wsfast_peer)
    assert [encoder.state for encoder in encoders] == [window, window]
    assert [network.received(link) for link in links] == [b"\xc1\x010\xc1\x011\xc1\x012\xc1\x013"] * 2


@c_core
def test_a_cut_frame_gives_the_state_back(name: str, network: Network) -> None:
    """Whose frame was cut has what its window held before: who writes the end of the frame notes what it holds then."""
    core = load_core(name)
    table = core.TickTable()
    encoders = [LazyEncoder(parameters_of()) for _ in range(2)]
    links = ready_links(core, network, table, encoders, small=True)
    first, large = Chain("one"), Chain("x" * 500_000)
    assert send(core, table, first).sent == 2
    table.finish()
    held = first.after(parameters_of().unknown, 1)
    assert [encoder.state for encoder in encoders] == [parameters_of().unknown] * 2
    batch = send(core, table, large)
    assert [(slot, message) for slot, _, _, message, _ in batch.cut] == [(0, large), (1, large)]
    assert [encoder.state for encoder in encoders] == [held] * 2
    assert [link._wsfast_peer.ready for link in links] == [False] * 2


@c_core
def test_windows_that_nobody_has_are_forgotten(name: str, network: Network) -> None:
    """The table keeps no window that none of its slots has, and uses their places again."""
    core = load_core(name)
    table = core.TickTable()
    encoders = [LazyEncoder(parameters_of()) for _ in range(3)]
    links = ready_links(core, network, table, encoders, small=True)
    held: list[weakref.ref[Any]] = []
    for number in range(300):
        message = Chain(str(number) * 20)
        if number % 7 == 3:
            network.fill(links[number % 3])
        if number % 5 == 2:
            links[number % 3]._wsfast_peer.invalidate()
        batch = broadcast(core, links, message) if number % 3 == 1 else send(core, table, message)
        assert batch.sent + len(batch.refused) == 3
        if table.sending:
            for slot, _ in batch.refused:
                take(table, slot)
            table.finish()
        held += map(weakref.ref, message.known.values())
        del message, batch
        for link in links:
            network.received(link)
            if not link._wsfast_peer.ready:
                link._wsfast_peer.check(link)
        gc.collect()
        alive = [reference() for reference in held if reference() is not None]
        assert len(alive) <= 6  # what three windows hold, and what encoders held when they were last asked
        del alive
    for link in links:
        table.remove(link._wsfast_peer)
    states = {encoder.state for encoder in encoders}
    gc.collect()
    assert {reference() for reference in held} - {None} == states


# ---- Against lists

OPERATION = st.one_of(
    st.tuples(st.just("publish"), MASK, MASK),
    st.tuples(st.just("publish as one"), st.lists(MASK, max_size=4), MASK),
    st.tuples(st.just("extend"), SLOTS, st.lists(st.integers(0, 5), max_size=4)),
    st.tuples(st.just("begin"), st.integers(0, 20), st.none()),
    st.tuples(st.just("collect"), st.integers(1, 9), st.booleans()),
    st.tuples(st.just("take"), SLOTS, st.none()),
    st.tuples(st.just("finish"), st.none(), st.none()),
    st.tuples(st.just("replace"), SLOTS, st.none()),
    st.tuples(st.just("aside"), SLOTS, st.booleans()),
    st.tuples(st.just("state"), SLOTS, st.sampled_from(["transport", "own", "closed"])),
)


class Subscriber:
    """What a subscriber is to be sent, in plain lists, and its peer in the table of each core."""

    def __init__(self, tables: list[Any], cores: list[Any]) -> None:
        self.published: list[int] = []
        self.sending: list[int] = []
        self.aside = False
        self.state = "transport"
        self.links = [asked_link() for _ in cores]
        self.peers = [peer_of(core, link) for core, link in zip(cores, self.links, strict=True)]
        slots = {table.add(peer) for table, peer in zip(tables, self.peers, strict=True)}
        assert len(slots) == 1, "cores give out different slots"
        (self.slot,) = slots

    @property
    def where(self) -> str:
        """Name of the list in which it is found."""
        return "refused" if self.aside else {"transport": "waiting"}.get(self.state, self.state)

    def become(self, state: str) -> None:
        self.state = state
        for link in self.links:
            link.sending = object() if state == "own" else None
            link.sans.condition = CLOSED if state == "closed" else OPEN


@settings(max_examples=300)
@given(operations=st.lists(OPERATION, min_size=1, max_size=40))
def test_tables_agree_with_lists(operations: list[tuple[str, Any, Any]]) -> None:
    """Who gets what, and in which order, is what lists for each subscriber would say; both cores tell the same."""
    cores = [load_core(name) for name in CORES]
    tables = [core.TickTable() for core in cores]
    subscribers = [Subscriber(tables, cores) for _ in range(COUNT)]
    published: list[int] = []
    sending: list[int] = []
    entries = 0

    def by_slot(slot: int) -> Subscriber:
        return next(subscriber for subscriber in subscribers if subscriber.slot == slot)

    def both(function: Any) -> Any:
        """Do the same with the tables of both cores; return what both return."""
        outcomes = []
        for core, table in zip(cores, tables, strict=True):
            try:
                outcomes.append(function(core, table))
            except ValueError as exc:
                outcomes.append((type(exc), str(exc)))
        assert outcomes.count(outcomes[0]) == len(outcomes)
        return outcomes[0]

    def enter() -> tuple[int, int]:
        nonlocal entries
        entries += 1
        number = both(lambda core, table: table.enter(entries))
        assert number == len(published)
        published.append(entries)
        return entries, number

    def members(core: Any, chosen: set[int]) -> Any:
        return members_of(core, *[subscribers[index].slot for index in sorted(chosen)])

    def collected(count: int) -> list[tuple[str, int]]:
        def listed(core: Any, table: Any) -> Any:
            batch = core.Batch()
            batch.collect(table, count, lambda node: pytest.fail("no frame was needed"))
            batch.send()
            assert (batch.sent, batch.cut, batch.lost) == (0, [], [])
            for slot, peer in (*batch.refused, *batch.waiting, *batch.own):
                assert table.peers[slot] is peer
            found = [("closed", slot) for slot in batch.closed]
            for name in ("refused", "waiting", "own"):
                found += [(name, slot) for slot, _ in getattr(batch, name)]
            return found

        found = both(listed)
        slots = [slot for _, slot in found]
        assert len(set(slots)) == len(slots) <= count
        for name, slot in found:
            assert by_slot(slot).sending
            assert by_slot(slot).where == name
        return found  # type: ignore[no-any-return]

    def take_from(slot: int) -> None:
        subscriber = by_slot(slot)
        assert both(lambda core, table: take(table, slot)) == subscriber.sending
        subscriber.sending = []

    for operation, first, second in operations:
        match operation:
            case "publish":
                entry, number = enter()
                excluded = {subscribers[index].slot for index in second}
                assert both(
                    lambda core, table, first=first, number=number, excluded=excluded: table.publish(
                        members(core, first), number, excluded
                    )
                ) == len(first - second)
                for index in first - second:
                    subscribers[index].published.append(entry)
            case "publish as one":
                entry, number = enter()
                excluded = {subscribers[index].slot for index in second}
                got: list[int] = []
                for chosen in first:

                    def publish(
                        core: Any, table: Any, chosen: Any = chosen, number: int = number, excluded: Any = excluded
                    ) -> Any:
                        already: list[int] = []
                        return table.publish(members(core, chosen), number, excluded, already), already

                    again = [index for index in sorted(chosen - second) if index in got]
                    new = [index for index in sorted(chosen - second) if index not in got]
                    assert both(publish) == (len(new), [subscribers[index].slot for index in again])
                    got += new
                for index in got:
                    subscribers[index].published.append(entry)
            case "extend":  # with new entries, and with some that others have got
                count = len(published)
                numbers = tuple(enter()[1] if number >= count else number for number in second)
                slot = subscribers[first].slot
                both(lambda core, table, slot=slot, numbers=numbers: table.extend(slot, numbers))
                subscribers[first].published += [published[number] for number in numbers]
            case "begin":
                outcome = both(lambda core, table, first=first: table.begin(first))
                assert (outcome is None) is (not sending)
                if outcome is None:
                    sending, published = published, []
                    for subscriber in subscribers:
                        subscriber.sending, subscriber.published = subscriber.published, []
            case "collect":
                for _, slot in collected(first):
                    if second:
                        take_from(slot)
            case "take":
                take_from(subscribers[first].slot)
            case "finish":
                if any(subscriber.sending for subscriber in subscribers):
                    assert both(lambda core, table: table.finish())[0] is ValueError
                else:
                    assert both(lambda core, table: table.finish()) == sending
                    sending = []
            case "replace":
                for table, peer in zip(tables, subscribers[first].peers, strict=True):
                    table.remove(peer)
                    assert peer.slot == -1
                subscribers[first] = Subscriber(tables, cores)
            case "aside":
                slot = subscribers[first].slot
                both(lambda core, table, slot=slot, second=second: table.set_aside(slot, second))
                subscribers[first].aside = second
            case "state":
                subscribers[first].become(second)
        assert both(lambda core, table: (table.published, table.sending)) == (bool(published), bool(sending))
        assert both(lambda core, table: table.left) == sum(bool(subscriber.sending) for subscriber in subscribers)
        for subscriber in subscribers:
            slot = subscriber.slot
            everything = subscriber.sending + subscriber.published
            assert both(lambda core, table, slot=slot: table.pending(slot)) == everything
            assert both(lambda core, table, slot=slot: table.is_pending(slot)) is bool(everything)
            assert both(lambda core, table, slot=slot: table.sequence(table.node(slot))) == subscriber.sending
    for _ in range(2):
        left = {subscriber.slot for subscriber in subscribers if subscriber.sending}
        served: list[int] = []
        while len(served) < len(left):
            for _, slot in collected(9):
                take_from(slot)
                served.append(slot)
        assert set(served) == left
        assert both(lambda core, table: table.finish()) == sending
        both(lambda core, table: table.begin(0))
        sending, published = published, []
        for subscriber in subscribers:
            subscriber.sending, subscriber.published = subscriber.published, []


# ---- Frames against what receivers hold


class Story:
    """A message that is compressed, and tells which messages it refers to: all that the receiver's window holds."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.plain = Encoding(0x81, b"%d" % number)
        self.chosen: dict[Any, Any] = {}

    def choose(self, window: Any) -> tuple[Any, Any]:
        if self.number % 4 == 3:
            return self.plain, window  # one that does not shrink
        if window not in self.chosen:
            history = getattr(window, "history", ())
            after = Held(window.parameters)
            after.history = (*history, self.number)
            self.chosen[window] = Encoding(0xC1, repr((history, self.number)).encode()), after
        return self.chosen[window]  # type: ignore[no-any-return]

    def after(self, window: Any, count: int) -> Any:
        return self.choose(window)[1] if count else window


class Reader:
    """A receiver, and the connection to it."""

    def __init__(self, core: Any, network: Network, index: int) -> None:
        self.encoder = None if index == 0 else LazyEncoder(parameters_of(9 + index % 2))
        kind = Link if index == 1 else ReportingLink
        self.link = network.link(kind, sans=Sans() if self.encoder is None else Sans(self.encoder))
        self.peer = peer_of(core, self.link)
        self.network = network
        self.history: tuple[int, ...] = ()
        self.published: list[int] = []
        self.aside = False

    def read(self) -> list[int]:
        """Read all messages; each must refer to what was received before, and to nothing else."""
        frames, tail = parse_frames(self.network.received(self.link))
        assert tail == b""
        numbers = []
        for first, _, payload in frames:
            if first == 0x81:
                numbers.append(int(payload))
            else:
                assert self.encoder is not None
                history, number = ast.literal_eval(payload.decode())
                assert history == self.history
                self.history = (*history, number)
                numbers.append(number)
        return numbers


DEED = st.one_of(
    st.tuples(st.just("publish"), MASK),
    st.tuples(st.just("publish"), MASK),
    st.tuples(st.just("broadcast"), MASK),
    st.tuples(st.just("check"), SLOTS),
    st.tuples(st.just("invalidate"), SLOTS),
    st.tuples(st.just("own"), SLOTS),
    st.tuples(st.just("aside"), SLOTS),
    st.tuples(st.just("replace"), SLOTS),
    st.tuples(st.just("send"), st.integers(1, 9)),
)


@c_core
@settings(max_examples=200)
@given(deeds=st.lists(DEED, min_size=1, max_size=40))
def test_frames_refer_to_what_receivers_hold(name: str, deeds: list[tuple[str, Any]]) -> None:
    """Whoever is ready or not, each gets its messages in order, compressed for what its window really holds."""
    core = load_core(name)
    with Network.opened() as network:
        table = core.TickTable()
        readers = [Reader(core, network, index) for index in range(COUNT)]
        for reader in readers:
            table.add(reader.peer)
        number = 0

        def send(count: int) -> None:
            table.begin(number)
            left = {reader.peer.slot: reader for reader in readers if reader.published}
            sequences: dict[int, Any] = {}

            def sequence_of(node: int) -> Any:
                if node not in sequences:
                    sequences[node] = join(table.sequence(node))
                return sequences[node]

            while table.left:
                batch = collect(core, table, count, sequence_of)
                assert batch.waiting == batch.cut == batch.own == batch.closed == []
                for slot, peer in batch.refused:
                    assert left[slot].peer is peer
                    assert left[slot].aside
                    assert [message.number for message in take(table, slot)] == left[slot].published
                    left[slot].published = []
            assert [message.number for message in table.finish()] == entered
            entered.clear()
            for reader in readers:
                assert reader.read() == reader.published
                reader.published = []

        entered: list[int] = []
        for deed, first in deeds:
            match deed:
                case "publish":
                    message = Story(number)
                    entered.append(number)
                    members = members_of(core, *[readers[index].peer.slot for index in sorted(first)])
                    table.publish(members, table.enter(message))
                    for index in first:
                        readers[index].published.append(number)
                    number += 1
                case "broadcast":
                    links = [readers[index].link for index in sorted(first)]
                    batch = broadcast(core, links, Story(number))
                    assert batch.sent == batch.stop == len(links)
                    for index, reader in enumerate(readers):
                        assert reader.read() == [number] * (index in first)
                    number += 1
                case "check":
                    readers[first].peer.check(readers[first].link)
                case "invalidate":
                    readers[first].peer.invalidate()
                case "own" if (encoder := readers[first].encoder) is not None:
                    readers[first].peer.invalidate()
                    encoder.compress(b"own")
                    readers[first].history = ()
                case "aside":
                    readers[first].aside = not readers[first].aside
                    table.set_aside(readers[first].peer.slot, readers[first].aside)
                case "replace":
                    table.remove(readers[first].peer)
                    table.add(readers[first].peer)
                    readers[first].published, readers[first].aside = [], False
                case "send":
                    send(first)
        send(9)
        for reader in readers:
            reader.peer.invalidate()
            if reader.encoder is not None and reader.history:
                assert reader.encoder.state.history == reader.history
                assert reader.encoder.encoder is None
