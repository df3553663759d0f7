"""Who is interested in a topic or a user, compared with a naive search."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from wsfast.hub.topics import matches
from wsfast.relay.interests import Interests

TOPICS = ["a", "b", "a.a", "a.b", "a.b.a"]
PATTERNS = ["*", ">", "a.*", "a.>", "*.b"]
INTERESTS = st.one_of(
    st.tuples(st.just("topic"), st.sampled_from(TOPICS)),
    st.tuples(st.just("pattern"), st.sampled_from(PATTERNS)),
    st.tuples(st.just("user"), st.sampled_from(["a", 1])),
)
STEPS = st.lists(st.tuples(st.sampled_from(["add", "remove", "discard"]), st.integers(0, 3), INTERESTS))


def wants(interests: set[Any], address: tuple[str, Any]) -> bool:
    """Whether one of the interests includes an address."""
    kind, name = address
    return address in interests or (
        kind == "topic" and any(of == "pattern" and matches(pattern, name) for of, pattern in interests)
    )


@given(STEPS)
def test_same_as_naive_search(steps: Any) -> None:
    """After each step, exactly those receivers are found who want the address, each once."""
    interests: Interests[int] = Interests()
    naive: dict[int, set[Any]] = {}
    for step, receiver, interest in steps:
        if step == "add":
            interests.add(receiver, interest)
            naive.setdefault(receiver, set()).add(interest)
        elif step == "remove":
            interests.remove(receiver, interest)
            naive.get(receiver, set()).discard(interest)
        else:
            interests.discard(receiver)
            naive.pop(receiver, None)
        assert sorted(interests.receivers(None)) == sorted(naive)
        for address in [*(("topic", topic) for topic in TOPICS), ("user", "a"), ("user", 1)]:
            wanted = sorted(receiver for receiver, own in naive.items() if wants(own, address))
            assert sorted(interests.receivers(address)) == wanted  # type: ignore[arg-type]


def test_nothing_is_left() -> None:
    """Nothing is kept of receivers and interests that have ended."""
    interests: Interests[int] = Interests()
    for number in range(100):
        interests.add(number, ("topic", f"t.{number}"))
        interests.add(number, ("pattern", f"p.{number}.>"))
        interests.remove(number, ("topic", f"t.{number}"))
        interests.discard(number)
    assert not interests._of
    assert not interests._receivers
    assert not interests._patterns._root.children
