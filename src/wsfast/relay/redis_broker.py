"""Redis as a broker: PUBLISH, SUBSCRIBE and PSUBSCRIBE, through redis.asyncio."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from ssl import SSLContext, create_default_context
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from .broker import Interest, Receive, Receiving, Sending, public_name
from .wire import Address

__all__ = ["RedisBroker"]

LARGEST = 1 << 29
"""Bytes of the largest message that Redis takes, unless it is configured otherwise."""

_SPECIAL = re.compile(r"[\\*?\[\]^-]")


class _TLSConnection(redis.asyncio.SSLConnection):
    """A connection encrypted according to an `ssl.SSLContext`."""

    def __init__(self, *, context: SSLContext, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context.context = context  # otherwise it would create its own


class RedisBroker:
    """A Redis server, or another server that speaks its protocol.

    Args:
        url: See `wsfast.relay.redis()`.
        prefix: Beginning of the names of channels.
        timeout: Seconds without an answer after which a connection counts as lost.
        ssl: Settings of the encryption; None for those in `url`.
    """

    echoes: bool = True

    def __init__(self, url: str, prefix: str, timeout: float, ssl: SSLContext | None = None) -> None:
        self.name: str = public_name(url, "redis://localhost:6379", "redis", "rediss", "unix")
        if ssl is not None and not url.startswith("rediss:"):
            raise ValueError("with ssl, url must begin with rediss://; leave ssl out, or change the scheme")
        if ssl is None and url.startswith("rediss:") and "ssl_" not in url:
            ssl = create_default_context()  # redis-py before 6 does not check the host name
        self._url = url
        self._ssl = ssl
        self._prefix = prefix
        self._timeout = timeout

    def _client(self) -> redis.asyncio.Redis:
        # No retries here: the relay hears of a lost connection at once, and reconnects.
        client: redis.asyncio.Redis = redis.asyncio.Redis.from_url(
            self._url,
            # For an error in supported_errors, a PubSub would reconnect before it raises the error.
            retry=Retry(NoBackoff(), 0, supported_errors=()),
            socket_timeout=None,  # otherwise each reply would need a timer; the relay has one for all
            socket_connect_timeout=self._timeout,
            decode_responses=False,
            protocol=2,  # with 3, redis-py makes a string of each message, for its log
        )
        if self._ssl is not None:
            client.connection_pool.connection_class = _TLSConnection
            client.connection_pool.connection_kwargs["context"] = self._ssl
        return client

    def channel(self, interest: Address | Interest | None) -> bytes:
        """Return the channel of an address, or Redis's pattern of channels for a pattern."""
        if interest is None:
            return f"{self._prefix}.all".encode()
        kind, name = interest
        if kind == "user":
            return f"{self._prefix}.{'u' if isinstance(name, str) else 'n'}.{name}".encode()
        if kind == "topic":
            return f"{self._prefix}.t.{name}".encode()
        # Redis's pattern may match more topics than the hub's pattern; the hub filters them.
        tokens = ["*" if token == "*" else "?*" if token == ">" else _escaped(token) for token in name.split(".")]
        return f"{_escaped(self._prefix)}.t.{'.'.join(tokens)}".encode()

    async def open_sending(self) -> Sending:
        """Connect for publishing."""
        client = self._client()
        try:
            await client.ping()
        except BaseException:
            await client.aclose()
            raise
        return _Sending(self, client)

    async def open_receiving(self, receive: Receive, on_missed: Callable[[], None]) -> Receiving:
        """Connect for subscribing."""
        client = self._client()
        receiving = _Receiving(self, client, receive, self._timeout)
        try:
            await receiving.begin()
        except BaseException:
            await receiving.close()
            raise
        return receiving


def _escaped(text: str) -> str:
    """Return a pattern of Redis that matches only this text."""
    return _SPECIAL.sub(lambda match: "\\" + match[0], text)


class _Sending:
    def __init__(self, broker: RedisBroker, client: redis.asyncio.Redis) -> None:
        self._broker = broker
        self._client = client
        self.largest: int = LARGEST

    async def publish(self, packets: Sequence[tuple[Address | None, bytes]]) -> dict[int, Exception]:
        pipeline = self._client.pipeline(transaction=False)
        for address, data in packets:
            pipeline.publish(self._broker.channel(address), data)
        replies = await pipeline.execute(raise_on_error=False)
        return {index: one for index, one in enumerate(replies) if isinstance(one, redis.exceptions.ResponseError)}

    async def close(self) -> None:
        await self._client.aclose()


class _Receiving:
    def __init__(self, broker: RedisBroker, client: redis.asyncio.Redis, receive: Receive, timeout: float) -> None:
        self._broker = broker
        self._client = client
        self._pubsub: Any = client.pubsub()
        self._receive = receive
        self._timeout = timeout
        self._awaited: dict[bytes, asyncio.Future[None]] = {}
        self._heard = True

    async def begin(self) -> None:
        """Connect."""
        await self._pubsub.connect()

    async def subscribe(self, interests: Sequence[Interest | None]) -> None:
        await self._ask(self._pubsub.subscribe, self._pubsub.psubscribe, interests)

    async def unsubscribe(self, interests: Sequence[Interest]) -> None:
        await self._ask(self._pubsub.unsubscribe, self._pubsub.punsubscribe, interests)

    async def _ask(self, plainly: Any, by_pattern: Any, interests: Sequence[Interest | None]) -> None:
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[None]] = []
        for command, kinds in ((plainly, ("topic", "user")), (by_pattern, ("pattern",))):
            channels = [
                self._broker.channel(interest)
                for interest in interests
                if ("topic" if interest is None else interest[0]) in kinds
            ]
            futures += [self._awaited.setdefault(channel, loop.create_future()) for channel in channels]
            if channels:
                await command(*channels)
        await asyncio.gather(*futures)

    async def run(self) -> None:
        tasks = asyncio.create_task(self._read()), asyncio.create_task(self._watch())
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            done.pop().result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for future in self._awaited.values():  # these confirmations will not come
                if not future.done():
                    future.set_exception(ConnectionResetError("the broker has closed the connection"))
                    future.exception()  # marks it as retrieved, even if no task waits

    async def _watch(self) -> None:
        """Raise TimeoutError when nothing is heard from the broker."""
        while True:
            heard, self._heard = self._heard, False
            if not heard:
                await self._pubsub.ping()
            await asyncio.sleep(self._timeout)
            if not heard and not self._heard:
                raise TimeoutError("the broker does not answer")

    async def _read(self) -> None:
        while True:
            message = await self._pubsub.handle_message(await self._pubsub.parse_response(block=True))
            self._heard = True
            if message is None:
                continue
            kind = message["type"]
            if kind in ("message", "pmessage"):
                self._receive(message["data"], message["channel"])
            elif kind != "pong":
                future = self._awaited.pop(message["channel"], None)
                if future is not None and not future.done():
                    future.set_result(None)

    async def close(self) -> None:
        for future in self._awaited.values():
            future.cancel()
        await self._pubsub.aclose()
        await self._client.aclose()
