"""What a broker keeps of a topic, seen without a relay; and how a test bounds the parts in which it is fetched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import pytest

from helpers.brokers import Broker, Nats, Redis
from helpers.peers import TIMEOUT
from wsfast import Position

__all__ = ["Keeper", "kept_by", "placing_of"]


class Keeper(Protocol):
    """A broker that keeps messages."""

    def position(self, topic: str) -> Position:
        """Return the position of a topic."""

    def packets(self, topic: str) -> list[bytes]:
        """Return the packets that are kept of a topic, without their places."""

    def publish(self, topic: str, data: bytes) -> None:
        """Publish something to relays that are subscribed to a topic, by no relay's ways."""

    def limit_parts(self, patch: pytest.MonkeyPatch, size: int) -> None:
        """Have parts of what is kept take so many bytes at most."""


class _Redis:
    def __init__(self, broker: Redis, prefix: str) -> None:
        self._broker = broker
        self._prefix = prefix

    def position(self, topic: str) -> Position:
        epoch, offset = self._broker.ask("HMGET", f"{self._prefix}.m.{topic}", "e", "o")
        return Position(epoch, int(offset or 0))

    def packets(self, topic: str) -> list[bytes]:
        entries = self._broker.ask_bytes("XRANGE", f"{self._prefix}.s.{topic}", "-", "+")
        return [fields[b"d"] for _, fields in entries]

    def publish(self, topic: str, data: bytes) -> None:
        self._broker.ask("PUBLISH", f"{self._prefix}.t.{topic}", data)

    def limit_parts(self, patch: pytest.MonkeyPatch, size: int) -> None:
        from wsfast.relay import redis_streams

        patch.setattr(redis_streams, "_FETCH", redis_streams._FETCH.replace(str(redis_streams.PART), str(size)))


class _Nats:
    def __init__(self, broker: Nats, prefix: str) -> None:
        self._broker = broker
        self._prefix = prefix

    def _ask(self, main: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        """Run a coroutine function with a client, in a thread: the caller has an event loop."""
        import nats

        async def run() -> Any:
            client = await nats.connect(self._broker.url)
            try:
                return await asyncio.wait_for(main(client), TIMEOUT)
            finally:
                await client.close()

        with ThreadPoolExecutor(1) as threads:
            return threads.submit(asyncio.run, run()).result()

    def _messages(self, topic: str) -> list[Any]:
        from nats.js.errors import NotFoundError

        async def main(client: Any) -> list[Any]:
            context, found, sequence = client.jetstream(), [], 1
            subject = f"{self._prefix}.s.{topic}"
            try:
                while True:
                    message = await context.get_msg(self._prefix, seq=sequence, subject=subject, next=True, direct=True)
                    found.append(message)
                    sequence = message.seq + 1
            except NotFoundError:
                return found

        messages: list[Any] = self._ask(main)
        return messages

    def position(self, topic: str) -> Position:
        message = self._messages(topic)[-1]
        first, count = int(message.data[17:33]), int(message.headers["Wsfast-Messages"])
        return Position(message.data[1:17].decode(), first + count - 1)

    def packets(self, topic: str) -> list[bytes]:
        return [message.data[33:] for message in self._messages(topic) if len(message.data) > 33]

    def publish(self, topic: str, data: bytes) -> None:
        async def main(client: Any) -> None:
            await client.publish(f"{self._prefix}.t.{topic}", data)
            await client.flush()

        self._ask(main)

    def limit_parts(self, patch: pytest.MonkeyPatch, size: int) -> None:
        from wsfast.relay import nats_streams

        patch.setattr(nats_streams, "PART_BYTES", size)


def kept_by(broker: Broker, prefix: str) -> Keeper:
    """Return what shows the messages that a broker keeps below a prefix."""
    if isinstance(broker, Redis):
        return _Redis(broker, prefix)
    assert isinstance(broker, Nats)
    return _Nats(broker, prefix)


def placing_of(broker: Broker) -> Any:
    """Return the class of connections by which packets are placed."""
    if broker.kind == "redis":
        from wsfast.relay import redis_streams

        return redis_streams._Placing
    from wsfast.relay import nats_placing

    return nats_placing.Placing
