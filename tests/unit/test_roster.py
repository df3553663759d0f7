"""Members and Roster: who is to be sent what in a tick. Both cores answer the same tests."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.cores import CORES, load_core

each_core = pytest.mark.parametrize("name", CORES)  # rather than the fixture, which Hypothesis would not renew

SLOTS = st.integers(0, 7)
MASK = st.sets(SLOTS)
OWNERS = list(range(4096))  # each slot stands for itself


def take(roster: Any, count: int, start: int, frames: Any) -> tuple[int, Any, Any]:
    """Call Roster.send(); return what it returns, and what it has listed."""
    leftovers: list[tuple[int, int, int]] = []
    asked: dict[int, list[int]] = {}
    return roster.send(count, start, OWNERS, frames, leftovers, asked), leftovers, asked


def frame_of(entries: list[int]) -> bytes:
    """Return what stands for the frames of entries."""
    return b"".join(b"%d;" % entry for entry in entries)


@contextlib.contextmanager
def pairs(count: int, *, small: bool = False) -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Open pairs of sockets that do not block."""
    with contextlib.ExitStack() as exits:
        opened = [socket.socketpair() for _ in range(count)]
        for ours, theirs in opened:
            for sock in (ours, theirs):
                exits.enter_context(sock)
                sock.setblocking(False)
                if small:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        yield opened


def received(sock: socket.socket) -> bytes:
    """Return all that has arrived."""
    parts = []
    with contextlib.suppress(BlockingIOError):
        while part := sock.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


# ---- Members


def test_members_keep_slots(core: Any) -> None:
    """They are those that were added and not removed."""
    members = core.Members()
    assert len(members) == 0
    assert members.slots == []
    for slot in range(100):
        members.add(slot)
    for slot in (99, 0, 50, 98, 7):
        members.remove(slot)
    assert len(members) == 95
    assert sorted(members.slots) == sorted(set(range(100)) - {99, 0, 50, 98, 7})
    members.add(50)
    assert members.slots[-1] == 50


def test_members_last_takes_the_place(core: Any) -> None:
    """The last one takes the place of one that is removed."""
    members = core.Members()
    for slot in (3, 1, 4, 5):
        members.add(slot)
    members.remove(1)
    assert members.slots == [3, 5, 4]
    members.remove(4)
    assert members.slots == [3, 5]
    members.remove(3)
    assert members.slots == [5]


def test_members_remove_of_a_stranger(core: Any) -> None:
    """A slot that is not among them cannot be removed, and nothing has changed."""
    members = core.Members()
    members.add(1)
    with pytest.raises(ValueError, match="is not a member"):
        members.remove(2)
    assert members.slots == [1]


@each_core
@given(changes=st.lists(SLOTS))
def test_members_agree_with_a_set(name: str, changes: list[int]) -> None:
    """Whatever is added and removed, they are a set."""
    members = load_core(name).Members()
    model: set[int] = set()
    for slot in changes:
        if slot in model:
            model.remove(slot)
            members.remove(slot)
        else:
            model.add(slot)
            members.add(slot)
        assert len(members) == len(model)
        assert set(members.slots) == model
        assert len(members.slots) == len(model)


# ---- Rosters


def asked_of(core: Any, roster: Any, count: int = 1000, start: int = 0) -> dict[int, list[int]]:
    """Send to slots that are not ready; return what each is to get."""
    complete, leftovers, asked = take(roster, count, start, lambda node: pytest.fail("no frame was needed"))
    assert (complete, leftovers) == (0, [])
    return {slot: roster.sequence(node) for node, slots in asked.items() for slot in slots}


def test_slots_are_small_and_given_out_again(core: Any) -> None:
    """Slots count up from 0, and one that was given back is the next."""
    roster = core.Roster()
    assert [roster.add() for _ in range(200)] == list(range(200))
    roster.remove(17)
    assert roster.add() == 17
    assert roster.add() == 200


def test_who_gets_the_same_is_at_the_same_node(core: Any) -> None:
    """Members of the same channels are asked for together, each sequence once."""
    roster, one, two = core.Roster(), core.Members(), core.Members()
    slots = [roster.add() for _ in range(6)]
    for slot in slots[:4]:
        one.add(slot)
    for slot in slots[2:]:
        two.add(slot)
    roster.publish(one, 0)
    roster.publish(two, 1)
    roster.publish(one, 2)
    assert [roster.sequence(roster.node(slot)) for slot in slots] == [[0, 2]] * 2 + [[0, 1, 2]] * 2 + [[1]] * 2
    assert len({roster.node(slot) for slot in slots}) == 3
    assert roster.pending == 6
    assert all(roster.is_pending(slot) for slot in slots)
    _, _, asked = take(roster, 6, 0, frame_of)
    assert sorted(map(sorted, asked.values())) == [[0, 1], [2, 3], [4, 5]]
    assert roster.pending == 0
    assert not any(roster.is_pending(slot) for slot in slots)
    assert [roster.node(slot) for slot in slots] == [0] * 6
    roster.reset()
    assert roster.sequence(0) == []


def test_excluded(core: Any) -> None:
    """Excluded ones get nothing, whatever else they get; excluding a stranger changes nothing."""
    roster, members = core.Roster(), core.Members()
    for _ in range(4):
        members.add(roster.add())
    roster.publish(members, 0, {1, 3, 77})
    roster.publish(members, 1, {3})
    roster.publish(members, 2, ())
    assert asked_of(core, roster) == {0: [0, 1, 2], 1: [1, 2], 2: [0, 1, 2], 3: [2]}


def test_how_many_get_it(core: Any) -> None:
    """Roster.publish() returns how many slots get the entry: all members but excluded ones and those that have it."""
    roster, members, nobody = core.Roster(), core.Members(), core.Members()
    assert roster.publish(nobody, 0) == 0
    for _ in range(4):
        members.add(roster.add())
    assert roster.publish(members, 0) == 4
    assert roster.publish(members, 1, {1, 3, 77}) == 2
    assert roster.publish(members, 2, (), []) == 4
    assert roster.publish(members, 2, {0}, []) == 0
    assert roster.publish(members, 3, {0, 1, 2, 3}) == 0
    assert asked_of(core, roster) == {0: [0, 1, 2], 1: [0, 2], 2: [0, 1, 2], 3: [0, 2]}


def test_published_to_several_as_one(core: Any) -> None:
    """Who is among several members gets an entry once, and is listed for each other time; excluded ones are not."""
    roster = core.Roster()
    slots = [roster.add() for _ in range(6)]
    several = [core.Members() for _ in range(3)]
    for members, chosen in zip(several, (slots[:4], slots[2:], slots[3:5]), strict=True):
        for slot in chosen:
            members.add(slot)
    roster.publish(several[0], 0)
    already: list[int] = []
    counts = [roster.publish(members, 1, {1, 5}, already) for members in several]
    assert counts == [3, 1, 0]
    assert already == [2, 3, 3, 4]
    roster.append(0, 2)
    assert roster.publish(several[0], 2, (), already) == 3
    assert already == [2, 3, 3, 4, 0]
    # Without a list, nobody asks.
    assert roster.publish(several[2], 2) == 2
    assert asked_of(core, roster) == {
        0: [0, 1, 2],
        1: [0, 2],
        2: [0, 1, 2],
        3: [0, 1, 2, 2],
        4: [1, 2],
    }
    roster.reset()


def test_the_first_entry_of_a_tick_is_not_had_already(core: Any) -> None:
    """A slot that gets nothing yet has no last entry, also if it has been sent that number, or has a new owner."""
    roster, members = core.Roster(), core.Members()
    members.add(roster.add())
    for _ in range(2):
        already: list[int] = []
        assert roster.publish(members, 0, (), already) == 1
        assert roster.publish(members, 0, (), already) == 0
        assert already == [0]
        assert asked_of(core, roster) == {0: [0]}
        assert roster.publish(members, 0, (), already) == 1
        roster.remove(0)
        assert roster.add() == 0
        assert roster.publish(members, 0, (), already) == 1
        assert already == [0]
        assert asked_of(core, roster) == {0: [0]}
        roster.reset()


def test_already_after_compacting(core: Any) -> None:
    """Entries that were renumbered are still known to be the last ones."""
    roster, members = core.Roster(), core.Members()
    for _ in range(3):
        members.add(roster.add())
    for entry in range(10):
        roster.publish(members, entry)
    take(roster, 1, 0, frame_of)
    roster.publish(members, 10, {2})
    assert roster.compact() == 0
    already: list[int] = []
    assert roster.publish(members, 10, (), already) == 1
    assert already == [0, 1]
    assert roster.compact() == 0
    assert asked_of(core, roster) == {1: list(range(11)), 2: list(range(11)), 0: [10]}
    roster.reset()


def test_first_one_rotates(core: Any) -> None:
    """The first one served is the one at `start`, modulo their number; in the middle of a tick, it stands."""
    for start, expected in ((0, [0, 1, 2, 3, 4]), (2, [2, 3, 4, 0, 1]), (4, [4, 0, 1, 2, 3]), (7, [2, 3, 4, 0, 1])):
        roster, members = core.Roster(), core.Members()
        for _ in range(5):
            members.add(roster.add())
        roster.publish(members, 0)
        order: list[int] = []
        for begin in (start, 1, 3):
            order += asked_of(core, roster, 2, begin)
        assert order == expected


def test_slices_with_publications_in_between(core: Any) -> None:
    """Those that wait get the new entry behind the old one; those that have been served get it by itself, later."""
    roster, members = core.Roster(), core.Members()
    for _ in range(5):
        members.add(roster.add())
    roster.publish(members, 0)
    assert asked_of(core, roster, 2) == {0: [0], 1: [0]}
    assert roster.pending == 3
    roster.publish(members, 1)
    assert roster.pending == 5
    with pytest.raises(ValueError, match=r"^5 slots are pending$"):
        roster.reset()
    assert asked_of(core, roster, 2, 1) == {2: [0, 1], 3: [0, 1]}
    assert asked_of(core, roster, 9) == {4: [0, 1], 0: [1], 1: [1]}
    roster.reset()
    assert asked_of(core, roster) == {}


def test_removed_in_the_middle(core: Any) -> None:
    """What was published for a slot that leaves is sent to nobody, also not to the next one with that number."""
    roster, members = core.Roster(), core.Members()
    for _ in range(5):
        members.add(roster.add())
    roster.publish(members, 0)
    assert asked_of(core, roster, 1) == {0: [0]}
    for slot in (3, 0):
        members.remove(slot)
        roster.remove(slot)
    assert roster.pending == 3
    assert {roster.add(), roster.add()} == {0, 3}
    roster.append(0, 1)
    assert asked_of(core, roster) == {1: [0], 2: [0], 4: [0], 0: [1]}
    roster.reset()
    assert roster.pending == 0


def test_there_is_no_such_slot(core: Any) -> None:
    """A slot that was never given out is an error."""
    roster = core.Roster()
    roster.add()
    for method in (roster.node, roster.is_pending, roster.remove, lambda slot: roster.append(slot, 0)):
        with pytest.raises(IndexError):
            method(1)
    with pytest.raises(IndexError):
        roster.sequence(1)
    assert roster.add() == 1
    assert roster.pending == 0


def test_many_slots_and_entries(core: Any) -> None:
    """There is room for as many as it takes."""
    roster = core.Roster()
    all_members = [core.Members() for _ in range(10)]
    for slot in range(2000):
        assert roster.add() == slot
        all_members[slot % 10].add(slot)
        all_members[slot // 200].add(slot) if slot // 200 != slot % 10 else None
    for entry in range(300):
        roster.publish(all_members[entry % 10], entry)
    assert roster.pending == 2000
    expected = {slot: [entry for entry in range(300) if entry % 10 in (slot % 10, slot // 200)] for slot in range(2000)}
    assert asked_of(core, roster, 2000) == expected


def test_failing_frames(core: Any) -> None:
    """If frames cannot be made, nothing was sent, and all of it is still to be."""
    roster = core.Roster()
    with pairs(2) as opened:
        for ours, _ in opened:
            roster.set_ready(roster.add(ours.fileno()), True)
        roster.append(0, 0)
        roster.append(1, 1)

        def frames(node: int) -> bytes:
            if roster.sequence(node) == [1]:
                raise ZeroDivisionError
            return b"zero"

        if core.sends_directly:
            with pytest.raises(ZeroDivisionError):
                take(roster, 2, 0, frames)
            assert roster.pending == 2
            assert take(roster, 2, 0, lambda node: frame_of(roster.sequence(node))) == (2, [], {})
            assert [received(theirs) for _, theirs in opened] == [b"0;", b"1;"]
        else:
            assert asked_of(core, roster) == {0: [0], 1: [1]}
            assert [received(theirs) for _, theirs in opened] == [b"", b""]


def test_what_kernels_do_not_take(core: Any) -> None:
    """Who takes less is told, each with what its kernel said; the others are not touched by it."""
    roster, members = core.Roster(), core.Members()
    big = b"x" * (1 << 20)
    with pairs(5, small=True) as opened:
        for ours, _ in opened:
            slot = roster.add(ours.fileno())
            members.add(slot)
            roster.set_ready(slot, True)
        fill = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                fill += opened[1][0].send(bytes(4096))
        opened[2][1].close()
        opened[4][0].shutdown(socket.SHUT_WR)
        roster.set_ready(3, False)
        roster.append(0, 5)  # alone with a frame that fits
        roster.publish(members, 6, {0})
        node = roster.node(1)
        nodes_asked: list[int] = []

        def frames(at: int) -> bytes:
            nodes_asked.append(at)
            return b"small" if roster.sequence(at) == [5] else big

        complete, leftovers, asked = take(roster, 10, 0, frames)
        if not core.sends_directly:
            assert (complete, leftovers) == (0, [])
            assert sorted(slot for slots in asked.values() for slot in slots) == [0, 1, 2, 3, 4]
            return
        assert len(nodes_asked) == len(set(nodes_asked)) == 2
        assert complete == 1
        assert asked == {node: [3]}
        assert leftovers == [(1, node, -errno.EAGAIN), (2, node, -errno.EPIPE), (4, node, -errno.EPIPE)]
        assert received(opened[0][1]) == b"small"
        assert len(received(opened[1][1])) == fill

        roster.reset()
        roster.append(0, 0)
        complete, leftovers, asked = take(roster, 1, 0, lambda node: big)
        [(slot, node, taken)] = leftovers
        assert (complete, slot, asked) == (0, 0, {})
        assert roster.sequence(node) == [0]
        assert 0 < taken < len(big)
        assert len(received(opened[0][1])) == taken


def test_a_slot_is_not_ready_when_it_is_given_out(core: Any) -> None:
    """Nothing is written to the descriptor of whoever had the slot before."""
    roster = core.Roster()
    with pairs(1) as [(ours, theirs)]:
        roster.set_ready(roster.add(ours.fileno()), True)
        roster.remove(0)
        assert roster.add() == 0
        roster.append(0, 3)
        assert asked_of(core, roster) == {0: [3]}
        assert received(theirs) == b""


OPERATION = st.one_of(
    st.tuples(st.just("publish"), MASK, MASK),
    st.tuples(st.just("publish as one"), st.lists(MASK, max_size=4), MASK),
    st.tuples(st.just("append"), SLOTS, st.none()),
    st.tuples(st.just("send"), st.integers(1, 9), st.integers(0, 20)),
    st.tuples(st.just("replace"), SLOTS, st.none()),
    st.tuples(st.just("ready"), SLOTS, st.booleans()),
    st.tuples(st.just("aside"), SLOTS, st.booleans()),
    st.tuples(st.just("compact"), st.none(), st.none()),
)


@each_core
@settings(max_examples=200)
@given(operations=st.lists(OPERATION, min_size=1, max_size=40))
def test_roster_agrees_with_lists(name: str, operations: list[tuple[str, Any, Any]]) -> None:
    """Who gets what, and in which order, is what a list for each slot would say."""
    core = load_core(name)
    roster = core.Roster()
    with pairs(8) as opened:
        for ours, _ in opened:
            roster.set_ready(roster.add(ours.fileno()), True)
        waiting: dict[int, list[int]] = {slot: [] for slot in range(8)}
        ready = set(range(8))
        aside: set[int] = set()
        entry = 0

        def send(count: int, start: int) -> None:
            before = roster.pending
            complete, leftovers, asked = take(roster, count, start, lambda node: frame_of(roster.sequence(node)))
            served = []
            for slot, node, result in leftovers:
                assert slot in aside
                assert roster.sequence(node) == waiting[slot]
                assert result == 0
                served.append(slot)
            for node, slots in asked.items():
                assert node != 0
                for slot in slots:
                    assert roster.sequence(node) == waiting[slot]
                    assert slot not in aside
                    assert slot not in ready or not core.sends_directly
                    served.append(slot)
            for slot, (_, theirs) in enumerate(opened):
                if data := received(theirs):
                    assert data == frame_of(waiting[slot])
                    assert slot in ready - aside
                    served.append(slot)
                    complete -= 1
            assert complete == 0
            assert len(set(served)) == len(served) == min(count, before)
            for slot in served:
                assert waiting[slot]
                waiting[slot] = []

        for operation, first, second in operations:
            match operation:
                case "publish":
                    members = core.Members()
                    for slot in first:
                        members.add(slot)
                    assert roster.publish(members, entry, second) == len(first - second)
                    for slot in first - second:
                        waiting[slot].append(entry)
                    entry += 1
                case "publish as one":
                    already: list[int] = []
                    got: list[int] = []
                    for chosen in first:
                        members = core.Members()
                        for slot in sorted(chosen):
                            members.add(slot)
                        listed = len(already)
                        count = roster.publish(members, entry, second, already)
                        assert already[listed:] == [slot for slot in sorted(chosen - second) if slot in got]
                        new = [slot for slot in sorted(chosen - second) if slot not in got]
                        assert count == len(new)
                        got += new
                    for slot in got:
                        waiting[slot].append(entry)
                    entry += 1
                case "append":
                    roster.append(first, entry)
                    waiting[first].append(entry)
                    entry += 1
                case "send":
                    send(first, second)
                case "replace":
                    roster.remove(first)
                    assert roster.add(opened[first][0].fileno()) == first
                    waiting[first] = []
                    ready.discard(first)
                    aside.discard(first)
                case "ready":
                    roster.set_ready(first, bool(second))
                    (ready.add if second else ready.discard)(first)
                case "aside":
                    roster.set_aside(first, bool(second))
                    (aside.add if second else aside.discard)(first)
                case "compact" if roster.pending:
                    oldest = min(number for numbers in waiting.values() for number in numbers)
                    assert roster.compact() == oldest
                    entry -= oldest
                    for slot, numbers in waiting.items():
                        waiting[slot] = [number - oldest for number in numbers]
            assert roster.pending == sum(map(bool, waiting.values()))
            for slot, entries in waiting.items():
                assert roster.is_pending(slot) is bool(entries)
                assert roster.sequence(roster.node(slot)) == entries
            if not roster.pending:
                roster.reset()
                entry = 0
        send(100, 0)
        assert not any(waiting.values())
        roster.reset()


def test_compact_forgets_what_nobody_needs(core: Any) -> None:
    """Once some have been sent to, entries and nodes that only they needed are forgotten, and the others renumbered."""
    roster, members = core.Roster(), core.Members()
    with pytest.raises(ValueError, match="no slots are pending"):
        roster.compact()
    for _ in range(3):
        members.add(roster.add())
    for entry in range(100):
        roster.publish(members, entry)
    take(roster, 2, 0, frame_of)
    for entry in range(100, 200):
        roster.publish(members, entry, {2})
    assert roster.compact() == 0  # slot 2 has got none yet
    take(roster, 1, 0, frame_of)
    assert roster.compact() == 100
    assert roster.pending == 2
    assert roster.sequence(roster.node(0)) == roster.sequence(roster.node(1)) == list(range(100))
    roster.publish(members, 100)
    assert asked_of(core, roster) == {0: list(range(101)), 1: list(range(101)), 2: [100]}


@each_core
def test_slots_without_a_descriptor_are_never_ready(name: str) -> None:
    """Roster.set_ready() raises ValueError if there is no descriptor that could be written to."""
    roster = load_core(name).Roster()
    slot = roster.add()
    roster.set_ready(slot, False)
    with pytest.raises(ValueError, match="slot 0 has no descriptor"):
        roster.set_ready(slot, True)
    roster.remove(slot)
    assert roster.add(5) == slot
    roster.set_ready(slot, True)
    roster.remove(slot)
    assert roster.add() == slot
    with pytest.raises(ValueError, match="slot 0 has no descriptor"):
        roster.set_ready(slot, True)


@each_core
def test_send_wants_an_owner_for_each_slot(name: str) -> None:
    """Roster.send() raises ValueError, and sends nothing, if there are fewer owners than slots."""
    roster, members = load_core(name).Roster(), load_core(name).Members()
    for _ in range(3):
        members.add(roster.add())
    roster.publish(members, 0)
    with pytest.raises(ValueError, match="3 slots have 2 owners"):
        roster.send(3, 0, ["a", "b"], frame_of, [], {})
    asked: dict[int, list[Any]] = {}
    roster.send(3, 0, ["a", "b", "c"], frame_of, [], asked)
    assert list(asked.values()) == [["a", "b", "c"]]
