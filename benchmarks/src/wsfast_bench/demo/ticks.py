"""Market ticks: what the server sends, and what a client checks."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["LARGEST", "SMALLEST", "SYMBOLS", "Follower", "Market", "Tick"]

SMALLEST, LARGEST = 96, 16384
"""Bytes of a tick."""

SYMBOLS = {
    "AAPL": 231.4,
    "ASML": 684.2,
    "BTC-USD": 64250.0,
    "ETH-USD": 3120.5,
    "EUR-USD": 1.0842,
    "GBP-USD": 1.2711,
    "NVDA": 142.6,
    "TSLA": 402.1,
    "XAG": 31.2,
    "XAU": 2411.3,
}
"""What is traded, and for how much at the beginning."""


class Tick(NamedTuple):
    """A tick."""

    seq: int
    symbol: str
    message: str


class Market:
    """A source of ticks with consecutive numbers: JSON with `symbol`, `price`, `size` and `seq`, from 1 on."""

    def __init__(self) -> None:
        self.seq = 0
        self._prices = dict(SYMBOLS)

    def tick(self, size: int = SMALLEST) -> Tick:
        """Return the next tick, of that many bytes: `pad` fills it up."""
        self.seq += 1
        symbol = random.choice(list(self._prices))
        self._prices[symbol] *= random.uniform(0.999, 1.001)
        values = {
            "symbol": symbol,
            "price": round(self._prices[symbol], 4),
            "size": random.randrange(1, 1000),
            "seq": self.seq,
            "pad": "",
        }
        values["pad"] = "." * (size - len(json.dumps(values)))
        return Tick(self.seq, symbol, json.dumps(values))


@dataclass(slots=True)
class Follower:
    """What one client has seen of the ticks, and whether it is what it should have seen."""

    last: int = 0
    """Number of the last tick that it has got."""
    received: int = 0
    """How many it has got."""
    since: int | None = None
    """The first of the ticks that it must get, all of them, exactly once and in order; None while it may miss some."""
    faults: int = 0
    """Ticks that came after one that was missed, or a second time, or after a newer one of their symbol."""
    _newest: dict[str, int] = field(default_factory=dict)

    def expect(self, since: int) -> None:
        """Have it miss nothing from that tick on."""
        self.since = since
        self.last = since - 1
        self._newest.clear()

    def excuse(self) -> None:
        """Have it miss what it may: not even then may a tick come after a newer one of its symbol."""
        self.since = None

    def follow(self, message: str | bytes) -> int:
        """Decode a tick, take note of it, and return its number."""
        tick = json.loads(message)
        seq: int = tick["seq"]
        self.received += 1
        if self.since is None:
            symbol = tick["symbol"]
            right = seq > self._newest.get(symbol, 0)
            self._newest[symbol] = max(seq, self._newest.get(symbol, 0))
        elif self.last >= self.since:
            right = seq == self.last + 1
        else:
            right = seq <= self.since  # what was on its way when it was told what to expect is older
        self.last = max(seq, self.last)
        self.faults += not right
        return seq
