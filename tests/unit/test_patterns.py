"""Names of topics and patterns: which there are, and which topics match which patterns."""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsfast.hub.topics import LONGEST, PatternTree, check_topic, check_topic_or_pattern, is_pattern, matches

each_check = pytest.mark.parametrize("check", [check_topic, check_topic_or_pattern])

Check = Callable[[Any], str]


class News(str, enum.Enum):  # noqa: UP042 - str() of which is not its value, unlike that of a StrEnum
    """Names that are members of an Enum."""

    SPORTS = "news.sports"
    ALL = "news.>"


class Name(str):
    """A string of a class of its own."""

    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


# ---- What is a name


@each_check
@pytest.mark.parametrize("name", ["a", "orders", "orders.eu.42", "Ärger.日本.🙂", "a/b:c-d_e,f", "x" * LONGEST])
def test_topics(check: Check, name: str) -> None:
    """Whatever can be printed is the name of a topic."""
    assert check(name) is name
    assert not is_pattern(name)


@pytest.mark.parametrize("name", ["*", ">", "orders.*", "*.eu", "orders.*.42", "orders.>", "*.>", "*.*.>"])
def test_patterns(name: str) -> None:
    """Wildcards that are tokens of their own make a pattern, which nothing is published to."""
    assert check_topic_or_pattern(name) is name
    assert is_pattern(name)
    with pytest.raises(ValueError, match=r"^topic '.+' is a pattern; ") as caught:
        check_topic(name)
    assert repr(name) in str(caught.value)


@each_check
@pytest.mark.parametrize("name", [None, 1, b"orders", ["orders"], ("a", "b"), object])
def test_no_strings(check: Check, name: object) -> None:
    """A name is a string."""
    with pytest.raises(TypeError, match=rf"^topic must be a str, not {type(name).__name__}$"):
        check(name)


@each_check
def test_length(check: Check) -> None:
    """A name is neither empty nor too long."""
    with pytest.raises(ValueError, match=r"^topic must have 1 to 1024 characters, not 0$"):
        check("")
    with pytest.raises(ValueError, match=r"^topic must have 1 to 1024 characters, not 1025$"):
        check("x" * (LONGEST + 1))


@each_check
@pytest.mark.parametrize("character", [" ", "\t", "\n", "\r", "\0", "\x7f", "\xa0", "\u2028", "\u200b", "\ud800"])
def test_what_cannot_be_printed(check: Check, character: str) -> None:
    """White space, control characters and what is no character at all are not part of names."""
    for name in (character, f"a{character}", f"{character}a", f"a.b{character}c.d"):
        with pytest.raises(ValueError, match=r" has white space or a character that cannot be printed; ") as caught:
            check(name)
        assert str(caught.value).startswith(f"topic {name!r} ")


@each_check
@pytest.mark.parametrize("name", [".", "..", ".a", "a.", "a..b", "*.", ".>"])
def test_empty_tokens(check: Check, name: str) -> None:
    """Dots stand between tokens only."""
    with pytest.raises(ValueError, match=r" has an empty token; "):
        check(name)


@each_check
@pytest.mark.parametrize("name", ["a*", "*a", "**", ">>", "*>", "a.b*", "a>.b", "orders.e*.x", "orders.eu>"])
def test_parts_of_tokens(check: Check, name: str) -> None:
    """A wildcard is a whole token."""
    with pytest.raises(ValueError, match=r" has \* or > as a part of a token; a wildcard must be a whole token"):
        check(name)


@each_check
@pytest.mark.parametrize("name", [">.a", "a.>.b", ">.>", "*.>.*"])
def test_rest_in_the_middle(check: Check, name: str) -> None:
    """The token > is the last one."""
    with pytest.raises(ValueError, match=r"^pattern '.+' has > before its end; "):
        check(name)


def test_strings_of_other_classes() -> None:
    """A name is what the string is, not what str() makes of it; what is returned is a plain string."""
    for name, value in ((News.SPORTS, "news.sports"), (Name("plain"), "plain")):
        for check in (check_topic, check_topic_or_pattern):
            assert check(name) == value
            assert type(check(name)) is str
    assert check_topic_or_pattern(News.ALL) == "news.>"
    with pytest.raises(ValueError, match=r"^topic 'news.>' is a pattern; "):
        check_topic(News.ALL)


# ---- What matches


@pytest.mark.parametrize(
    ("pattern", "those", "others"),
    [
        ("a.b", ["a.b"], ["a", "b", "a.b.c", "a.c"]),
        ("a.*", ["a.b", "a.c"], ["a", "b.a", "a.b.c"]),
        ("*", ["a", "b"], ["a.b"]),
        ("*.*", ["a.b"], ["a", "a.b.c"]),
        ("*.b", ["a.b", "b.b"], ["b", "a.a", "a.b.b"]),
        ("a.*.c", ["a.b.c", "a.c.c"], ["a.c", "a.b.b", "a.b.b.c"]),
        (">", ["a", "a.b", "a.b.c"], []),
        ("a.>", ["a.b", "a.b.c"], ["a", "b", "ab.c"]),
        ("*.>", ["a.b", "a.b.c"], ["a"]),
        ("a.*.>", ["a.b.c", "a.b.c.d"], ["a", "a.b", "b.b.c"]),
    ],
)
def test_matches(pattern: str, those: list[str], others: list[str]) -> None:
    """A star stands for one token, > for one or more, as in NATS."""
    tree: PatternTree[str] = PatternTree()
    tree.put(pattern, "value")
    for topic in those:
        assert matches(pattern, topic)
        assert tree.matching(topic) == ["value"]
    for topic in others:
        assert not matches(pattern, topic)
        assert tree.matching(topic) == []
    tree.remove(pattern)
    assert not any(map(tree.matching, those))


TOKEN = st.sampled_from(["a", "b", "ab"])
TOPIC = st.lists(TOKEN, min_size=1, max_size=5).map(".".join)
PATTERN = st.tuples(st.lists(TOKEN | st.just("*"), min_size=0, max_size=4), st.sampled_from(["a", "*", ">"])).map(
    lambda parts: ".".join((*parts[0], parts[1]))
)


def naive(pattern: list[str], topic: list[str]) -> bool:
    """Say what the definition says."""
    if not pattern or not topic:
        return pattern == topic
    if pattern == [">"]:
        return True
    return pattern[0] in ("*", topic[0]) and naive(pattern[1:], topic[1:])


@given(pattern=PATTERN, topic=TOPIC)
def test_matches_as_defined(pattern: str, topic: str) -> None:
    """A pattern matches what the definition says."""
    assert check_topic_or_pattern(pattern) == pattern
    assert check_topic(topic) == topic
    assert matches(pattern, topic) is naive(pattern.split("."), topic.split("."))


@given(changes=st.lists(PATTERN, max_size=30), topics=st.lists(TOPIC, min_size=1, max_size=5))
def test_tree_agrees_with_a_set(changes: list[str], topics: list[str]) -> None:
    """Whatever is put and removed, the tree knows what matches, and nothing is left of it in the end."""
    tree: PatternTree[str] = PatternTree()
    patterns: set[str] = set()
    for pattern in changes:
        if pattern in patterns:
            patterns.remove(pattern)
            tree.remove(pattern)
        else:
            patterns.add(pattern)
            tree.put(pattern, pattern)
        for topic in topics:
            found = tree.matching(topic)
            assert len(set(found)) == len(found)
            assert set(found) == {one for one in patterns if naive(one.split("."), topic.split("."))}
        prefixes = {tuple(one.split(".")[:end]) for one in patterns for end in range(one.count(".") + 2)} | {()}
        assert nodes_of(tree) == prefixes
    for pattern in patterns:
        tree.remove(pattern)
    assert nodes_of(tree) == {()}
    assert tree.matching(topics[0]) == []


def nodes_of(tree: PatternTree[Any]) -> set[tuple[str, ...]]:
    """Return the ways to all nodes."""
    nodes: set[tuple[str, ...]] = set()
    todo: list[tuple[tuple[str, ...], Any]] = [((), tree._root)]
    while todo:
        way, node = todo.pop()
        nodes.add(way)
        todo += [((*way, token), child) for token, child in node.children.items()]
    return nodes


def test_deep_names_at_the_end_of_the_stack() -> None:
    """The most tokens that a name can have take no more of the stack than one."""
    topic = ".".join("a" * (LONGEST // 2))
    tree: PatternTree[int] = PatternTree()
    patterns = [topic, topic[:-1] + "*", topic[:-1] + ">", topic[:-3] + ">", ">"]
    for number, pattern in enumerate(patterns):
        tree.put(pattern, number)
    depth = sum(1 for _ in frames())
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + 60)
    try:
        found = tree.matching(topic)
    finally:
        sys.setrecursionlimit(limit)
    assert sorted(found) == [0, 1, 2, 3, 4]


def frames() -> Iterator[Any]:
    """Yield the frames of the stack."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def test_many_ways() -> None:
    """Where each token could be matched in two ways, no more is looked at than there is."""
    tree: PatternTree[int] = PatternTree()
    tokens = ["a"] * 40
    for position in range(40):
        tree.put(".".join([*tokens[:position], "*", *tokens[position + 1 :]]), position)
    assert sorted(tree.matching(".".join(tokens))) == list(range(40))
    assert tree.matching(".".join(["b", *tokens[1:]])) == [0]
    assert tree.matching(".".join(["b", "b", *tokens[2:]])) == []
