"""docs/faq.md: what it answers by code."""

from __future__ import annotations

import json
from pathlib import Path

import wsfast
from helpers.blocks import crowd, play, receive, runs
from helpers.pages import Block


@runs("docs/faq.md", "json")
async def as_json(block: Block, _: Path) -> None:
    """JSON arrives in Text frames, whichever way it is sent."""
    async with crowd(1) as (connections, clients):
        prices = wsfast.Channel("prices", slow=wsfast.Conflate())
        prices.subscribe(connections[0])
        names = play(block, json=json, wsfast=wsfast, prices=prices, connections=connections)
        messages = await receive(*clients * 3)
        assert all(isinstance(message, str) for message in messages)
        assert [json.loads(message) for message in messages] == [names["tick"]] * 3
