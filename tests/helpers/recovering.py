"""Hubs with relays that recover, in one process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import wsfast
from helpers.brokers import Broker, relay_of, started, why_not
from helpers.peers import TIMEOUT
from helpers.sinks import Client
from wsfast import Position
from wsfast._publisher import Stream
from wsfast.relay import Gap

__all__ = ["End", "ends", "here", "keeping", "take"]


@contextlib.contextmanager
def keeping(kind: str, directory: Path) -> Iterator[Broker]:
    """Run a server that keeps messages."""
    if (reason := why_not(kind)) is not None:
        pytest.skip(reason)
    with started(kind, directory, f'jetstream {{ store_dir: "{directory}" }}' if kind == "nats" else ()) as broker:
        yield broker


class End:
    """A hub with a relay, and what is missing there."""

    def __init__(self, url: str, prefix: str, *, history: Any = 10_000, hub: Any = None, **options: Any) -> None:
        self.hub = wsfast.Hub(history=history) if hub is None else hub
        self.gaps: list[Gap] = []
        options.setdefault("timeout", TIMEOUT)
        kind = url.partition(":")[0]
        if kind == "nats":
            options.setdefault("storage", "memory")
        self.relay = relay_of(kind, self.hub, url, prefix=prefix, recover=True, on_gap=self.gaps.append, **options)

    async def __aenter__(self) -> End:
        await self.relay.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self.relay.__aexit__(*exc)

    @property
    def waiting(self) -> tuple[int, int]:
        """Packets that wait for others, and their size."""
        inbound: Any = self.relay._inbound
        return inbound.waiting, inbound.waiting_bytes

    def stream(self, topic: str) -> Stream:
        return self.hub.stream(topic, max_messages=10**6)

    async def loaded(self, *topics: str) -> None:
        """Wait until the topics are followed."""
        await self.relay.load(dict.fromkeys(topics))

    async def recover(self, client: Client, *topics: str, **since: Position) -> Any:
        return await self.hub.recover(client.connection, *topics, since=since or None)


@contextlib.asynccontextmanager
async def ends(url: str, prefix: str, number: int = 2, **options: Any) -> AsyncIterator[list[End]]:
    """Run several hubs with relays."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(End(url, prefix, **options)) for _ in range(number)]


async def take(stream: Stream, count: int) -> list[str | bytes]:
    """Wait for so many messages."""
    async with asyncio.timeout(TIMEOUT):
        return [await anext(stream) for _ in range(count)]


def here(stream: Stream) -> int:
    """Return how many messages are there now."""
    return len(stream._messages)
