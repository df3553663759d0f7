"""How long calls took."""

from __future__ import annotations

import statistics
from collections import deque
from itertools import islice

__all__ = ["KEPT", "Calls"]

RECENT = 300
"""Calls of each method of which the median is shown."""

KEPT = 10_000
"""Calls of each method that are remembered."""


class Calls:
    """How long the calls of one method took, for the clients and the size of tick that there are now."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.all: deque[float] = deque(maxlen=KEPT)
        """Milliseconds."""
        self._latest: list[float] = []

    def add(self, call: float) -> None:
        """Take note of a call."""
        self.all.append(call)
        self._latest.append(call)

    def clear(self) -> None:
        """Forget all, since they cannot be compared with what comes."""
        self.all.clear()
        self._latest.clear()

    def latest(self) -> float | None:
        """Return the median of those since the last time, None if there was none."""
        calls, self._latest = self._latest, []
        return statistics.median(calls) if calls else None

    @property
    def median(self) -> float | None:
        """Median of the last of them in milliseconds: robust against interruptions. None if there was none."""
        return statistics.median(islice(reversed(self.all), RECENT)) if self.all else None

    @property
    def mean(self) -> float:
        """Mean in milliseconds."""
        return statistics.fmean(self.all)

    @property
    def p99(self) -> float:
        """99th percentile in milliseconds; of less than a hundred, the slowest."""
        return sorted(self.all)[-1 - len(self.all) // 100]
