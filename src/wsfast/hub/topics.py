"""Names of topics, and patterns: tokens between dots, like the subjects of NATS.

In a pattern, the token `*` matches any one token, and `>` at the end matches one or more.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

__all__ = ["LONGEST", "PatternTree", "check_topic", "check_topic_or_pattern", "is_pattern", "matches"]

LONGEST = 1024
"""Maximum number of characters of a name."""

T = TypeVar("T")


def is_pattern(name: str) -> bool:
    """Whether a valid name is a pattern."""
    return "*" in name or ">" in name


def check_topic_or_pattern(name: Any, argument: str = "topic") -> str:
    """Return a name if it is a valid topic or a valid pattern.

    Args:
        name: The name.
        argument: Its name in error messages.

    Raises:
        TypeError: If it is not a string.
        ValueError: If it is empty or too long, has an empty token, white space or a control character, or has a
            wildcard that is only a part of a token, or `>` before the end.
    """
    if type(name) is not str:
        if not isinstance(name, str):
            raise TypeError(f"{argument} must be a str, not {type(name).__name__}")
        name = str.__str__(name)  # the value of an Enum member
    if not 0 < len(name) <= LONGEST:
        raise ValueError(f"{argument} must have 1 to {LONGEST} characters, not {len(name)}")
    if not name.isprintable() or " " in name:
        raise ValueError(
            f"{argument} {name!r} has white space or a character that cannot be printed; separate tokens by dots"
        )
    tokens = name.split(".")
    if "" in tokens:
        raise ValueError(
            f"{argument} {name!r} has an empty token; it must not begin or end with a dot, nor have two in a row"
        )
    if is_pattern(name):
        for token in tokens:
            if token not in ("*", ">") and is_pattern(token):
                raise ValueError(
                    f"pattern {name!r} has * or > as a part of a token; a wildcard must be a whole token, as in a.*.b"
                )
        if ">" in tokens[:-1]:
            raise ValueError(f"pattern {name!r} has > before its end; use * for one token in the middle")
    return str(name)


def check_topic(name: Any, argument: str = "topic") -> str:
    """Return a name if it is a valid topic.

    Args:
        name: The name.
        argument: Its name in error messages.

    Raises:
        TypeError: If it is not a string.
        ValueError: If it is not valid, or is a pattern: nothing can be published to a pattern.
    """
    topic = check_topic_or_pattern(name, argument)
    if is_pattern(topic):
        raise ValueError(f"{argument} {topic!r} is a pattern; only subscribe() takes those: use a name without * and >")
    return topic


def matches(pattern: str, topic: str) -> bool:
    """Whether a topic matches a pattern, or equals it."""
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
    """Patterns with their values, in a tree of tokens, so that a topic need not be compared with each pattern."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def put(self, pattern: str, value: T) -> None:
        """Add a pattern that is not in the tree yet."""
        node = self._root
        for token in pattern.split("."):
            node = node.children.setdefault(token, _Node())
        node.value = value

    def remove(self, pattern: str) -> None:
        """Remove a pattern, if it is in the tree."""
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
