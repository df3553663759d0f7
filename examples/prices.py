"""Prices on a page that survives `kill -9` of its server.

Run `python examples/prices.py 8765` and open http://127.0.0.1:8765. Kill the server with `kill -9` and start it again.
The page comes back by itself, and tells which prices it cannot have: those that were only in the process that is gone.

With Redis it loses nothing. Install it with `pip install "wsfast[redis]"`, start a Redis server, and run two processes:
`python examples/prices.py feed redis://localhost` publishes, `python examples/prices.py 8765 redis://localhost` serves.
Kill the second one and start it again: the page gets every price once. It counts them, so you can see that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wsfast
from wsfast.session import Session

TOPICS = "prices.eur", "prices.gbp", "prices.jpy"
HISTORY = 10_000
INTERVAL = 0.05
SCRIPT = Path(__file__).parents[1] / "clients" / "javascript" / "wsfast.js"

PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Prices</title>
<h1>Prices</h1>
<p id="state">connecting</p>
<ul>
  <li>EUR <b id="prices.eur">-</b></li>
  <li>GBP <b id="prices.gbp">-</b></li>
  <li>JPY <b id="prices.jpy">-</b></li>
</ul>
<p>Prices received: <b id="received">0</b>, missing: <b id="missing">0</b>, twice: <b id="twice">0</b>.</p>
<p>Topics that were recovered: <b id="recovered">0</b>, topics whose old prices are lost: <b id="lost">0</b>.</p>
<script type="module">
  import { Client } from "./wsfast.js";

  const show = (id, text) => { document.getElementById(id).textContent = text; };
  const count = (id, more = 1) => show(id, Number(document.getElementById(id).textContent) + more);
  const last = new Map(); // the number of the last price of each topic

  const client = new Client(`ws://${location.host}/ws`);
  client.on("open", () => show("state", "connected"));
  client.on("close", () => show("state", "The server is gone. Trying again."));
  client.on("subscribed", ({ topic, recovered, first }) => {
    if (first) return;
    count(recovered ? "recovered" : "lost");
  });
  for (const topic of ["prices.eur", "prices.gbp", "prices.jpy"]) {
    client.subscribe(topic, ({ payload }) => {
      const { feed, number, price } = JSON.parse(payload);
      const before = last.get(topic);
      if (before && before.feed === feed) { // each feed counts its prices
        if (number <= before.number) count("twice");
        else count("missing", number - before.number - 1);
      }
      last.set(topic, { feed, number });
      count("received");
      show(topic, price.toFixed(4));
    });
  }
</script>
"""


def quotes() -> Iterator[tuple[str, str]]:
    """Yield made-up prices without end, each with its topic and its number in it. Replace this by your source."""
    feed, prices, number = f"{random.getrandbits(64):x}", dict.fromkeys(TOPICS, 1.0), 0
    while True:
        number += 1
        for topic in TOPICS:
            prices[topic] *= random.uniform(0.999, 1.001)
            yield topic, json.dumps({"feed": feed, "number": number, "price": prices[topic]})


async def publish_prices(hub: wsfast.Hub) -> None:
    """Publish prices in the process that serves them."""
    for topic, quote in quotes():
        hub.publish(topic, quote)
        await asyncio.sleep(INTERVAL / len(TOPICS))


def feed(url: str) -> None:
    """Publish prices from a process of its own, until a signal ends it."""
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, lambda *_: sys.exit(0))
    with wsfast.relay.publisher(url, history=HISTORY) as publisher:
        print("the feed is ready", flush=True)
        for topic, quote in quotes():
            publisher.publish(topic, quote)
            time.sleep(INTERVAL / len(TOPICS))


def answer(connection: Any, request: Any) -> Any:
    """Serve the page and its script; None for what is to become a WebSocket."""
    pages = {"/": (PAGE, "text/html"), "/wsfast.js": (SCRIPT.read_text(), "text/javascript")}
    if request.path not in pages:
        return None
    text, kind = pages[request.path]
    response = connection.respond(200, text)
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = f"{kind}; charset=utf-8"
    return response


async def serve(port: int, url: str | None) -> None:
    """Serve the page and its prices until a signal ends it."""
    hub = wsfast.Hub(envelope=True, history=HISTORY)
    ended = asyncio.Event()
    for number in signal.SIGINT, signal.SIGTERM:
        asyncio.get_running_loop().add_signal_handler(number, ended.set)

    async def handler(connection: Any) -> None:
        await Session(hub, connection, lambda _, topic: topic in TOPICS).run()

    async with contextlib.AsyncExitStack() as stack:
        if url is not None:
            await stack.enter_async_context(wsfast.relay.redis(hub, url, recover=True))
        await stack.enter_async_context(wsfast.serve(handler, "127.0.0.1", port, process_request=answer))
        print(f"ready at http://127.0.0.1:{port}/", flush=True)
        publishing = None if url is not None else asyncio.create_task(publish_prices(hub))
        await ended.wait()
        if publishing is not None:
            publishing.cancel()


if __name__ == "__main__":
    what, *urls = sys.argv[1:] or ["8765"]
    if what == "feed":
        feed(*urls or ["redis://localhost"])
    else:
        asyncio.run(serve(int(what), *urls or [None]))
