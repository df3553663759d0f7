"""What the doctor finds: one line, and one object of `--json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

__all__ = ["Finding", "Level"]

Level: TypeAlias = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    key: str
    """Its name, which stays the same from release to release."""
    level: Level
    """`problem`: it will not work, or not for that many clients; `note`: it works, and one should know."""
    text: str
    cure: str | None = None
    """A command that changes it."""
    enough_for: int | None = None
    """How many clients it is enough for, where that can be told."""
    value: Mapping[str, Any] = field(default_factory=dict)
    """What was read, for machines."""
