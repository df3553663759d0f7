"""Filters: which messages of a topic or pattern a subscriber gets, by their tags."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakValueDictionary

from wsfast._core import core

__all__ = [
    "ALL",
    "LONGEST",
    "MOST",
    "NO_TAGS",
    "UNFILTERED",
    "Filtering",
    "Filters",
    "Tags",
    "check_tags",
    "lets",
]

MOST = 64
"""Maximum number of tags of a message, of a subscription, and of all subscribers of one topic or pattern together."""

LONGEST = 256
"""Maximum number of characters of a tag."""

PAST = 16
"""Filters of a subscriber that are remembered after they were replaced."""

Tags: TypeAlias = frozenset[str]

NO_TAGS: Tags = frozenset()

ALL = (1 << 64) - 1
"""Mask of messages that all subscribers get."""


def check_tags(tags: Any) -> Tags:
    """Return the argument `tags`, which is not None.

    Raises:
        TypeError: If it is not an iterable of strings, or is a single string.
        ValueError: If there are none or more than 64, or one is empty, too long, or has a character that cannot be
            printed.
    """
    if isinstance(tags, (str, bytes)) or not isinstance(tags, Iterable):
        raise TypeError(f"tags must be a set of str, as in tags={{'eu'}}, not {tags!r:.80}")
    result = frozenset(tags)
    if not result:
        raise ValueError(
            "tags must not be empty: leave them out for a message to all subscribers, or a subscriber to all"
        )
    if len(result) > MOST:
        raise ValueError(f"tags must have at most {MOST} tags, not {len(result)}")
    for tag in result:
        if not isinstance(tag, str):
            raise TypeError(f"a tag must be a str, not {type(tag).__name__}")
        if not 0 < len(tag) <= LONGEST or not tag.isprintable():
            raise ValueError(f"a tag must have 1 to {LONGEST} printable characters, not {tag!r:.80}")
    return frozenset(map(str.__str__, result))  # the values of members of an Enum


def lets(wanted: Tags | None, tags: Tags) -> bool:
    """Whether a subscriber that wants some tags, or everything, gets a message with some tags."""
    return wanted is None or not tags or not wanted.isdisjoint(tags)


def _both(wanted: Tags | None, other: Tags | None) -> Tags | None:
    if wanted is None or other is None:
        return other if wanted is None else wanted
    return wanted & other


class Filtering(NamedTuple):
    """The filter of one subscriber of a topic or pattern, and those before it."""

    wanted: core.Filter | None = None
    """None lets everything through."""
    past: tuple[tuple[int, Tags | None], ...] = ()
    """The tags that it asked for before, each with the number of the hub's last message then, from the oldest on. Of
    the oldest, only what has always been let through is known."""

    @property
    def skipped(self) -> int:
        """Messages that were not let through since the filter was made."""
        return 0 if self.wanted is None else self.wanted.skipped

    @property
    def tags(self) -> Tags | None:
        """The tags that it asks for."""
        return None if self.wanted is None else self.wanted.tags

    def replaced(self, wanted: core.Filter | None, number: int) -> Filtering:
        """Return this with another filter, for messages after a number."""
        past = (*self.past, (number, self.tags))
        if len(past) > PAST:
            past = ((past[1][0], _both(past[0][1], past[1][1])), *past[2:])
        return Filtering(wanted, past)

    def lets(self, tags: Tags) -> bool:
        """Whether a message with some tags is let through now."""
        return lets(self.tags, tags)

    def let(self, number: int, tags: Tags) -> bool:
        """Whether one of the hub's messages was let through when it was published."""
        then = next((before for last, before in self.past if number <= last), self.tags)
        return lets(then, tags)


UNFILTERED = Filtering()


class Filters:
    """The filters of one topic's subscribers, and the bits of their tags.

    Subscribers who want the same tags share a filter. It lives as long as one of them has it. A tag keeps its bit while
    a filter has the tag; bits that are not used any more are found when one is needed.
    """

    __slots__ = ("_bits", "_filters")

    def __init__(self) -> None:
        self._filters: WeakValueDictionary[Tags, core.Filter] = WeakValueDictionary()
        self._bits: dict[str, int] = {}

    def mask_of(self, tags: Tags) -> int:
        """Return the mask of a message with some tags."""
        if not tags:
            return ALL
        mask = 0
        for tag in tags:
            mask |= self._bits.get(tag, 0)
        return mask

    def check_room(self, topic: str, tags: Tags) -> None:
        """Check that there is a bit for each of some tags.

        Raises:
            ValueError: If there is not.
        """
        if len(self._bits) + len(tags) <= MOST or tags in self._filters:
            return
        used = 0
        for one in self._filters.values():
            used |= one.mask
        self._bits = {tag: bit for tag, bit in self._bits.items() if bit & used}
        if len(self._bits.keys() | tags) > MOST:
            raise ValueError(
                f"the subscribers of {topic!r} use {len(self._bits)} tags, and there is no room for "
                f"{sorted(tags)!r:.80}: they can use {MOST} at the same time; use topics for what has more values, "
                "such as 'orders.42'"
            )

    def filter_of(self, tags: Tags) -> core.Filter:
        """Return the filter for some tags, for which there is room."""
        found = self._filters.get(tags)
        if found is not None:
            return found
        bits, mask = self._bits.copy(), 0
        for tag in tags:
            if tag not in bits:
                free = ALL & ~sum(bits.values())
                bits[tag] = free & -free
            mask |= bits[tag]
        made = core.Filter(tags, mask)
        self._bits = bits
        self._filters[tags] = made
        return made
