"""Names of topics, and patterns of them: tokens between dots, as subjects of NATS.

In a pattern, the token `*` stands for any one token, and `>` at the end for one or more.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

__all__ = ["LONGEST", "PatternTree", "check_topic", "check_topic_or_pattern", "is_pattern", "matches"]

LONGEST = 1024
"""Characters of the longest name."""

T = TypeVar("T")


def is_pattern(name: str) -> bool:
    """Whether a valid name is a pattern."""
    return "*" in name or ">" in name


def check_topic_or_pattern(name: Any) -> str:
    """Return a name if it is that of a topic, or a pattern.

    Raises:
        TypeError: If it is no string.
        ValueError: If it is empty or too long, has an empty token, white space or a control character, or has a
            wildcard that is not a token of its own, or `>` elsewhere than at the end.
    """
    if type(name) is not str:
        if not isinstance(name, str):
            raise TypeError(f"topic must be a str, not {type(name).__name__}")
        name = str.__str__(name)  # of a member of an Enum, its value
    if not 0 < len(name) <= LONGEST:
        raise ValueError(f"topic must have 1 to {LONGEST} characters, not {len(name)}")
    if not name.isprintable() or " " in name:
        raise ValueError(f"topic {name!r} has white space or a character that cannot be printed")
    tokens = name.split(".")
    if "" in tokens:
        raise ValueError(f"topic {name!r} has an empty token: dots stand between tokens only")
    if is_pattern(name):
        for token in tokens:
            if token not in ("*", ">") and is_pattern(token):
                raise ValueError(
                    f"in {name!r}, * or > is only a part of a token; it must stand for itself, as in a.*.b"
                )
        if ">" in tokens[:-1]:
            raise ValueError(f"in {name!r}, > is not at the end")
    return str(name)


def check_topic(name: Any) -> str:
    """Return a name if it is that of a topic.

    Raises:
        TypeError: If it is no string.
        ValueError: If it is none, or a pattern: nothing can be published to all topics that match.
    """
    topic = check_topic_or_pattern(name)
    if is_pattern(topic):
        raise ValueError(f"cannot publish to {topic!r}: it is a pattern")
    return topic


def matches(pattern: str, topic: str) -> bool:
    """Whether a topic matches a pattern, or has that name."""
    wanted, tokens = pattern.split("."), topic.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(tokens) <= len(wanted):
            return False
    elif len(tokens) != len(wanted):
        return False
    return all(want in ("*", token) for want, token in zip(wanted, tokens, strict=False))


class _Node(Generic[T]):
    __slots__ = ("children", "value")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.value: T | None = None


class PatternTree(Generic[T]):
    """Patterns, each with a value, by their tokens: a topic is not compared with each of them."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def put(self, pattern: str, value: T) -> None:
        """Add a pattern that is not there."""
        node = self._root
        for token in pattern.split("."):
            node = node.children.setdefault(token, _Node())
        node.value = value

    def remove(self, pattern: str) -> None:
        """Remove a pattern, if it is there."""
        path = [self._root]
        tokens = pattern.split(".")
        for token in tokens:
            child = path[-1].children.get(token)
            if child is None:
                return
            path.append(child)
        path[-1].value = None
        for token in reversed(tokens):
            node = path.pop()
            if node.children or node.value is not None:
                break
            del path[-1].children[token]

    def matching(self, topic: str) -> list[T]:
        """Return the values of all patterns that a topic matches."""
        found: list[T] = []
        nodes = [self._root]
        for token in topic.split("."):
            following: list[_Node[T]] = []
            for node in nodes:
                if (rest := node.children.get(">")) is not None and rest.value is not None:
                    found.append(rest.value)
                following += [child for name in (token, "*") if (child := node.children.get(name)) is not None]
            nodes = following
        return found + [node.value for node in nodes if node.value is not None]
