"""NATS as a broker: core NATS, by nats-py."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import nats
import nats.errors
from nats.aio.client import Client

from .link import Receiving, Sending, Want
from .wire import Address

__all__ = ["NatsBroker"]

PENDING_MESSAGES = 1 << 20
"""Messages of a subject that wait for this process, at most; beyond, they are missing."""

PENDING_BYTES = 256 << 20


class NatsBroker:
    """A NATS server, or a cluster.

    Args:
        url: See `wsfast.relay.nats()`.
        prefix: What subjects begin with.
        timeout: Seconds without an answer after which a connection counts as lost.
    """

    def __init__(self, url: str | Sequence[str], prefix: str, timeout: float) -> None:
        urls = [url] if isinstance(url, str) else list(url)
        if not urls:
            raise ValueError("there must be at least one url")
        names = []
        for one in urls:
            parts = urlsplit(one)
            if parts.scheme not in ("nats", "tls", "ws", "wss"):
                raise ValueError(f"url must begin with nats://, tls://, ws:// or wss://, not {parts.scheme}://")
            names.append(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())
        self.name = ",".join(names)
        self._urls = urls
        self._prefix = prefix
        self._timeout = timeout

    async def connect(self, lost: asyncio.Future[None]) -> Client:
        """Connect; a connection that is lost is told to the relay, which knows what to do."""

        async def on_closed() -> None:
            if not lost.done():
                lost.set_result(None)

        async def on_error(_: Exception) -> None:
            """Do nothing: what is missing is found by its number."""

        return await nats.connect(
            self._urls,
            allow_reconnect=False,
            connect_timeout=max(1, round(self._timeout)),
            ping_interval=max(1, round(self._timeout)),
            max_outstanding_pings=1,
            closed_cb=on_closed,
            disconnected_cb=on_closed,
            error_cb=on_error,
        )

    def subject(self, want: Address | Want | None) -> str:
        """Return the subject of an address, or of a pattern, which has the same form there."""
        if want is None:
            return f"{self._prefix}.all"
        kind, name = want
        if kind == "user":  # which may be any string
            return f"{self._prefix}.u.{name.encode().hex()}" if isinstance(name, str) else f"{self._prefix}.n.{name}"
        return f"{self._prefix}.t.{name}"

    async def open_sending(self) -> Sending:
        """Connect to publish."""
        return _Sending(self, await self.connect(asyncio.get_running_loop().create_future()), self._timeout)

    async def open_receiving(self, receive: Callable[[bytes], None]) -> Receiving:
        """Connect to subscribe."""
        lost = asyncio.get_running_loop().create_future()
        return _Receiving(self, await self.connect(lost), lost, receive, self._timeout)


class _Sending:
    def __init__(self, broker: NatsBroker, client: Client, timeout: float) -> None:
        self._broker = broker
        self._client = client
        self._timeout = timeout

    async def publish(self, parcels: Sequence[tuple[Address | None, bytes]]) -> int:
        refused = 0
        for address, data in parcels:
            try:
                await self._client.publish(self._broker.subject(address), data)
            except nats.errors.MaxPayloadError:
                refused += 1
        await self._client.flush(max(1, round(self._timeout)))
        return refused

    async def close(self) -> None:
        await self._client.close()


class _Receiving:
    def __init__(
        self,
        broker: NatsBroker,
        client: Client,
        lost: asyncio.Future[None],
        receive: Callable[[bytes], None],
        timeout: float,
    ) -> None:
        self._broker = broker
        self._client = client
        self._lost = lost
        self._receive = receive
        self._timeout = timeout
        self._subscriptions: dict[Want | None, Any] = {}

    async def _on_message(self, message: Any) -> None:
        self._receive(message.data)

    async def subscribe(self, wants: Sequence[Want | None]) -> None:
        for want in wants:
            self._subscriptions[want] = await self._client.subscribe(
                self._broker.subject(want),
                cb=self._on_message,
                pending_msgs_limit=PENDING_MESSAGES,
                pending_bytes_limit=PENDING_BYTES,
            )
        await self._client.flush(max(1, round(self._timeout)))

    async def unsubscribe(self, wants: Sequence[Want]) -> None:
        for want in wants:
            await self._subscriptions.pop(want).unsubscribe()

    async def run(self) -> None:
        await self._lost

    async def close(self) -> None:
        with contextlib.suppress(nats.errors.Error):
            await self._client.close()
