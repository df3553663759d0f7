"""Market data: a thousand symbols that change all the time, and clients that get the newest price of each.

Run `python examples/market.py 8765` and connect WebSocket clients to ws://127.0.0.1:8765/prices.lse for one market, or
to /prices.* for all. New clients get the last price of every symbol, then each change. A client that falls behind gets
the newest price of each changed symbol when it reads again. `Conflate` keeps only these prices.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
import sys
from collections.abc import Iterator
from typing import Any

import wsfast

MARKETS = "lse", "nyse"
SYMBOLS = ["".join(letters) for letters in itertools.product("ABCDEFGH", repeat=3)][:500]  # per market
CHANGES = 200
INTERVAL = 0.02

hub = wsfast.Hub(slow=wsfast.Conflate(max_messages=len(MARKETS) * len(SYMBOLS)), last_values=len(SYMBOLS))


class Quotes:
    """Made-up prices. Replace this class by your source."""

    def __init__(self) -> None:
        self.prices = {(market, symbol): 100.0 for market in MARKETS for symbol in SYMBOLS}
        self.numbers = dict.fromkeys(self.prices, 0)

    def changes(self) -> Iterator[tuple[str, str, str]]:
        """Change some prices; yield topic, message and key of each."""
        for market, symbol in random.sample(list(self.prices), CHANGES):
            one = market, symbol
            self.prices[one] *= random.uniform(0.999, 1.001)
            self.numbers[one] += 1
            quote = {"symbol": symbol, "price": round(self.prices[one], 2), "number": self.numbers[one]}
            yield f"prices.{market}", json.dumps(quote), symbol


async def handler(connection: Any) -> None:
    """Subscribe the client to the topic in its path until it leaves."""
    topic = connection.request.path.strip("/") or "prices.*"
    try:
        subscription = hub.subscribe(connection, topic)
    except ValueError as exc:
        await connection.close(1008, str(exc)[:100])
        return
    with subscription:
        await connection.wait_closed()


async def main(port: int) -> None:
    """Publish prices until a signal ends it."""
    ended = asyncio.Event()
    for number in signal.SIGINT, signal.SIGTERM:
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    quotes = Quotes()
    async with wsfast.serve(handler, "127.0.0.1", port):
        print(f"ready at ws://127.0.0.1:{port}/prices.{MARKETS[0]}", flush=True)
        while not ended.is_set():
            hub.publish_many(quotes.changes())
            await asyncio.sleep(INTERVAL)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8765))
