"""NATS as a broker: core NATS, through nats-py."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Coroutine, Sequence
from ssl import SSLContext
from typing import Any, TypeVar

import nats
import nats.errors
from nats.aio.client import Client

from .broker import Interest, Receive, Receiving, Sending, close, public_name, stop
from .wire import Address

__all__ = ["NatsBroker", "flush", "tokens_of", "unless_lost"]

_Answer = TypeVar("_Answer")

PENDING_MESSAGES = 1 << 20
"""Messages of a subject that may wait for this process; beyond that, messages are lost."""

PENDING_BYTES = 256 << 20

NEVER = 1 << 24
"""Seconds."""

LONGEST_TOKEN = 64
"""Bytes of the longest token that is put into a subject as it is: a line of the protocol has at most 4096 bytes."""

DIGEST, DIGEST_LENGTH = "~", 33
"""First character of a digest, and its length with that."""

LONGEST_PREFIX = 100
"""Bytes of the longest prefix."""


class _Client(Client):
    """A client that sends no password to a server without encryption, if the URL says `tls://`.

    It also tells when it is closed, even if it does so in a task that it cancels. Its callbacks are not called then.

    Args:
        lost: Set when the connection is lost or closed.
    """

    def __init__(self, lost: asyncio.Future[None]) -> None:
        super().__init__()
        self._lost = lost

    async def _close(self, *arguments: Any, **options: Any) -> None:
        try:
            await super()._close(*arguments, **options)
        finally:
            if not self._lost.done():
                self._lost.set_result(None)

    def _connect_command(self) -> bytes:
        assert self._current_server is not None
        if self._current_server.uri.scheme == "tls" and not self._server_info.get("tls_required"):
            raise nats.errors.SecureConnRequiredError
        return super()._connect_command()


class NatsBroker:
    """A NATS server, or a cluster.

    Args:
        url: See `wsfast.relay.nats()`.
        prefix: Beginning of the subjects.
        timeout: Seconds without an answer after which a connection counts as lost.
        ssl: Settings of the encryption; None for the system's defaults.
    """

    echoes: bool = True

    def __init__(self, url: str | Sequence[str], prefix: str, timeout: float, ssl: SSLContext | None = None) -> None:
        urls = [url] if isinstance(url, str) else list(url)
        if not urls:
            raise ValueError("url must not be empty: give at least one, as in nats://localhost:4222")
        names = [public_name(one, "nats://localhost:4222", "nats", "tls", "ws", "wss") for one in urls]
        if ssl is not None and not all(one.startswith(("tls:", "wss:")) for one in urls):
            raise ValueError("with ssl, url must begin with tls:// or wss://; leave ssl out, or change the scheme")
        if len(prefix.encode()) > LONGEST_PREFIX:
            raise ValueError(
                f"prefix must not have more than {LONGEST_PREFIX} bytes, but {prefix!r} has {len(prefix.encode())}"
            )
        self.name: str = ",".join(names)
        self._urls = urls
        self._ssl = ssl
        self._prefix = prefix
        self._timeout = timeout

    async def connect(self, lost: asyncio.Future[None]) -> Client:
        """Connect. The relay is told when the connection is lost, and reconnects."""

        async def on_closed() -> None:
            if not lost.done():
                lost.set_result(None)

        errors: list[Exception] = []

        async def on_error(error: Exception) -> None:
            """Note why there is no connection. Otherwise do nothing: missing messages are noticed by their numbers."""
            if not client.is_connected:
                errors[:] = (error,)

        client = _Client(lost)
        try:
            await client.connect(
                self._urls,
                allow_reconnect=False,
                max_reconnect_attempts=1,  # otherwise it would wait until it tries a server again
                reconnect_time_wait=0,
                connect_timeout=2 * max(1, round(self._timeout)),  # longer than the relay's own timeout
                ping_interval=NEVER,  # answers to pings would wait behind all messages; we watch the messages instead
                closed_cb=on_closed,
                disconnected_cb=on_closed,
                error_cb=on_error,
                tls=self._ssl,
            )
            if not client.is_connected:  # the client does not notice if the connection is lost in the handshake
                raise ConnectionResetError("the broker has closed the connection")
        except BaseException as exc:
            # The client may have a socket already. Its own close() may never end after a failed handshake with TLS; it
            # has closed the socket then, and the reason must be told before a timeout hides it.
            await close(client, 0.1)
            if isinstance(exc, nats.errors.NoServersError) and errors:
                raise errors[0] from None
            raise
        return client

    def channel(self, interest: Address | Interest | None) -> str:
        """Return the subject of an address, or of a pattern, which has the same form in NATS."""
        if interest is None:
            return f"{self._prefix}.all"
        kind, name = interest
        if kind == "user":  # a user may be any string, even an empty one
            token = f"u.{_short('=' + name.encode().hex())}" if isinstance(name, str) else f"n.{name}"
            return f"{self._prefix}.{token}"
        return f"{self._prefix}.t.{tokens_of(name)}"

    async def open_sending(self) -> Sending:
        """Connect for publishing."""
        lost = asyncio.get_running_loop().create_future()
        return _Sending(self, await self.connect(lost), lost, self._timeout)

    async def open_receiving(self, receive: Receive, on_missed: Callable[[], None]) -> Receiving:
        """Connect for subscribing."""
        lost = asyncio.get_running_loop().create_future()
        return _Receiving(self, await self.connect(lost), lost, self.receiver(receive), self._timeout)

    def receiver(self, receive: Receive) -> Callable[[Any], None]:
        """Return what is called with each message of the client's, and calls `receive`."""
        return lambda message: receive(message.data, message.subject)


def tokens_of(topic: str) -> str:
    """Return a topic or a pattern with the digests of its long tokens in place of these. No other one has the same."""
    if len(topic.encode()) <= LONGEST_TOKEN and DIGEST not in topic:
        return topic
    return ".".join(map(_short, topic.split(".")))


def _short(token: str) -> str:
    """Return a token, or its digest if it is long, so that no subject is too long for the server.

    The digest also replaces a token that looks like one: else its subscribers could get the messages of a long token.
    """
    data = token.encode()
    if len(data) <= LONGEST_TOKEN and not (token.startswith(DIGEST) and len(token) == DIGEST_LENGTH):
        return token
    return DIGEST + hashlib.sha256(data).hexdigest()[: DIGEST_LENGTH - 1]


async def unless_lost(lost: asyncio.Future[None], request: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Wait for the answer to a request; raise at once when the connection is lost. It does not go on afterwards."""
    waiting = asyncio.create_task(request)
    try:
        await asyncio.wait((waiting, lost), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ConnectionResetError("the broker has closed the connection")
        return await waiting
    finally:
        await stop(waiting)


async def flush(client: Client, lost: asyncio.Future[None], timeout: float) -> None:
    """Wait until the server has processed everything sent; raise at once when the connection is lost."""
    await unless_lost(lost, client.flush(max(1, round(timeout))))


class _Sending:
    def __init__(self, broker: NatsBroker, client: Client, lost: asyncio.Future[None], timeout: float) -> None:
        self._broker = broker
        self._client = client
        self._lost = lost
        self._timeout = timeout
        self.largest: int = client.max_payload

    async def publish(self, packets: Sequence[tuple[Address | None, bytes]]) -> dict[int, Exception]:
        refused: dict[int, Exception] = {}
        for index, (address, data) in enumerate(packets):
            try:
                await self._client.publish(self._broker.channel(address), data)
            except nats.errors.MaxPayloadError as exc:
                refused[index] = exc
        await flush(self._client, self._lost, self._timeout)
        return refused

    async def close(self) -> None:
        await self._client.close()


class _Receiving:
    def __init__(
        self,
        broker: NatsBroker,
        client: Client,
        lost: asyncio.Future[None],
        receive: Callable[[Any], None],
        timeout: float,
    ) -> None:
        self._broker = broker
        self._client = client
        self._lost = lost
        self._receive = receive
        self._timeout = timeout
        self._subscriptions: dict[Interest | None, Any] = {}

    async def _on_message(self, message: Any) -> None:
        self._receive(message)

    async def subscribe(self, interests: Sequence[Interest | None]) -> None:
        for interest in interests:
            self._subscriptions[interest] = await self._client.subscribe(
                self._broker.channel(interest),
                cb=self._on_message,
                pending_msgs_limit=PENDING_MESSAGES,
                pending_bytes_limit=PENDING_BYTES,
            )
        await self._flush()

    async def unsubscribe(self, interests: Sequence[Interest]) -> None:
        for interest in interests:
            await self._subscriptions.pop(interest).unsubscribe()

    async def run(self) -> None:
        while not self._lost.done():
            before = self._client.stats["in_msgs"]
            await asyncio.wait((self._lost,), timeout=self._timeout)
            if self._client.stats["in_msgs"] == before and not self._lost.done():
                await self._flush()

    async def _flush(self) -> None:
        """Wait until the server has processed everything sent, as long as it keeps sending."""
        flushing = asyncio.ensure_future(self._client.flush(NEVER))
        try:
            while not flushing.done():
                before = self._client.stats["in_msgs"]
                done, _ = await asyncio.wait(
                    (flushing, self._lost), timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED
                )
                if self._lost.done():
                    raise ConnectionResetError("the broker has closed the connection")
                if not done and self._client.stats["in_msgs"] == before:
                    raise TimeoutError("the broker does not answer")
            await flushing
        finally:
            flushing.cancel()

    async def close(self) -> None:
        with contextlib.suppress(nats.errors.Error):
            await self._client.close()
