"""What is measured of the demonstration, twice a second."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from .show import Show

__all__ = ["INTERVAL", "Figures", "resident"]

INTERVAL = 0.5
"""Seconds."""


class Figures:
    """Measures a show: `sample` is all that the page, the terminal and the tests know about it."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self._begin = time.perf_counter()
        self._number = 0
        self._ticks = (0, self._begin)
        self._received = (0, 0.0)
        self._deliveries = 0.0

    def sample(self) -> dict[str, Any]:
        """Return what there is to be told about the time since the last sample.

        Returns:
            The settings and numbers of clients of `Show.state()`, and `number` of the sample, `time` in seconds, `seq`
            of the last tick, `ticks` and `deliveries` per second, `received` in all, `calls` (median milliseconds by
            method, None if it had no turn) and `medians` (the same over the last calls to the clients that there are),
            `waiting` (`messages`, `bytes`, `seconds`, and how many ticks the slowest is `behind`), `memory` in bytes,
            and what the channel has `dropped`, `conflated` and `disconnected` since its policy was chosen.
        """
        show, now = self._show, time.perf_counter()
        crowd = show.crowd
        self._number += 1
        seq, before = self._ticks
        ticks = (show.market.seq - seq) / (now - before) if now > before else 0.0
        self._ticks = (show.market.seq, now)
        received, heard = self._received
        if crowd.received_at > heard:  # else there was no news
            self._deliveries = (crowd.received - received) / (crowd.received_at - heard) if heard else 0.0
            self._received = (crowd.received, crowd.received_at)
        messages, size, seconds = show.waiting()
        lagging = show.count("stalled", "waking") > 0 and crowd.oldest is not None
        counts = show.channel.stats()
        return {
            **show.state(),
            "number": self._number,
            "time": round(now - self._begin, 3),
            "seq": show.market.seq,
            "ticks": round(ticks, 1),
            "deliveries": round(self._deliveries),
            "received": crowd.received,
            "calls": {name: calls.latest() for name, calls in show.calls.items()},
            "medians": {name: calls.median for name, calls in show.calls.items()},
            "waiting": {
                "messages": messages,
                "bytes": size,
                "seconds": round(seconds, 1),
                "behind": show.market.seq - crowd.oldest if lagging and crowd.oldest is not None else 0,
            },
            "memory": resident(),
            "dropped": counts.dropped,
            "conflated": counts.conflated,
            "disconnected": counts.disconnected,
            "shed": show.shed,
        }


def resident() -> int | None:
    """Return how many bytes of this process are in memory; None where that cannot be known."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # pragma: no cover - Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
