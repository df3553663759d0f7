"""Types of command-line options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

__all__ = ["choices", "positive", "positives"]


def positive(value: str) -> int:
    """Parse an integer that is at least 1."""
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, not {value!r}")
    return int(value)


def positives(value: str) -> tuple[int, ...]:
    """Parse comma-separated integers, each at least 1; repeated ones count once."""
    return tuple(dict.fromkeys(positive(part) for part in value.split(",")))


def choices(what: str, known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a parser of comma-separated names out of those known; repeated ones count once."""

    def parse(value: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(value.split(",")))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"unknown {what} {name!r}; known are {', '.join(known)}")
        return names

    return parse
