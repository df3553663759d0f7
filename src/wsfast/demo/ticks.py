"""Market ticks: what the server broadcasts, and what a client checks."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

__all__ = ["Follower", "Market"]


class Market:
    """A source of ticks with consecutive numbers: JSON with `symbol`, `price`, `size` and `seq`, from 1 on."""

    def __init__(self) -> None:
        self.seq = 0
        self._prices = {"AAPL": 231.4, "BTC-USD": 64250.0, "EUR-USD": 1.0842, "TSLA": 402.1, "XAU": 2411.3}

    def tick(self) -> str:
        """Return the next tick."""
        self.seq += 1
        symbol = random.choice(list(self._prices))
        self._prices[symbol] *= random.uniform(0.999, 1.001)
        tick = {
            "symbol": symbol,
            "price": round(self._prices[symbol], 4),
            "size": random.randrange(1, 1000),
            "seq": self.seq,
        }
        return json.dumps(tick)


@dataclass(slots=True)
class Follower:
    """What one client has seen of the ticks."""

    seen: int = 0
    """How many ticks it has got."""
    in_order: bool = True
    """Whether each had the number after that of the one before, beginning with 1."""

    def follow(self, message: str | bytes) -> int:
        """Decode a tick, take note of it, and return its number."""
        seq: int = json.loads(message)["seq"]
        self.seen += 1
        self.in_order = self.in_order and seq == self.seen
        return seq

    def complete(self, last: int) -> bool:
        """Tell whether it has got every tick up to that number exactly once and in order."""
        return self.in_order and self.seen == last
