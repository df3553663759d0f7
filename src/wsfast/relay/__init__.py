"""Relays: connect the hubs of several processes through a broker, so that a message published in one reaches all.

    async with wsfast.relay.redis(hub, "redis://localhost"):
        ...

A process subscribes at the broker only to the topics, patterns and users that have a subscriber or a connection in its
hub. Messages of one topic from one process arrive in the order of publishing. While the broker is slow or unreachable,
local subscribers still get local messages; messages for other processes wait in a bounded queue, and the relay
reconnects with exponential back-off. A process that misses messages counts and reports them. A process does not get the
history and the last values that other processes keep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ssl import SSLContext

from wsfast._arguments import needs
from wsfast.hub import Hub
from wsfast.hub.topics import check_topic
from wsfast.policies import DropNewest, DropOldest

from .inbound import Gap
from .ordered_relay import OrderedRelay
from .relay import Relay, RelayStats
from .wire import Keyring

__all__ = ["Gap", "Relay", "RelayStats", "nats", "redis"]

SLOW = DropOldest(max_messages=100_000, max_bytes=64 << 20)
"""Default policy for messages that wait for the broker."""


def redis(
    hub: Hub,
    url: str = "redis://localhost:6379",
    *,
    prefix: str = "wsfast",
    slow: DropOldest | DropNewest = SLOW,
    on_gap: Callable[[Gap], object] | None = None,
    timeout: float = 5.0,
    secret: bytes | Sequence[bytes] | None = None,
    ssl: SSLContext | None = None,
    recover: bool = False,
) -> Relay:
    """Return a relay through Redis (PUBLISH and SUBSCRIBE). Needs the extra `redis`: `pip install "wsfast[redis]"`.

    Args:
        hub: The hub to connect.
        url: `redis://`, `rediss://` or `unix://` URL, in the form that redis.Redis.from_url() accepts.
        prefix: Beginning of the names of the broker's channels. Hubs with the same prefix at the same broker are
            connected.
        slow: Policy for messages that wait for the broker: `DropOldest` or `DropNewest`.
        on_gap: Called with a `Gap` when messages of another process are missing.
        timeout: Seconds without an answer after which a connection to the broker counts as lost.
        secret: Secret of at least 16 bytes that signs messages, the same in all processes. Messages that are not signed
            with it are ignored. With several secrets, the first signs, and signatures of all of them are accepted.
            Without a secret, everyone who may publish at the broker may publish to this hub.
        ssl: Settings of the encryption and of the certificates to trust, for `rediss://`. None means the settings in
            `url` and the system's defaults.
        recover: Whether Redis orders the messages of each topic and keeps the last ones, within the bounds of the hub's
            history, so that clients can come back to any process: see `Hub.recover()`. Messages to topics then reach
            the clients of every process, this one included, by way of Redis. Give the same to all processes. It needs
            Redis 6.2 or newer, or Valkey.

    Raises:
        ModuleNotFoundError: If redis is not installed.
        TypeError: If `hub` is not a Hub, `slow` is another policy, `url` is not a string, `on_gap` is not callable or
            is a coroutine function, `secret` is not bytes, or `recover` is not a bool.
        ValueError: If `url` has another scheme or is ambiguous, `prefix` is not a valid topic, `timeout` is not
            positive, `secret` is too short, or `recover` is true and the hub has no history.
    """
    with needs("wsfast[redis]", "redis"):
        from .redis_broker import RedisBroker
        from .redis_streams import RedisStreams

    if not isinstance(recover, bool):
        raise TypeError(f"recover must be a bool, not {recover!r}")
    check_topic(prefix, "prefix")
    keyring = None if secret is None else Keyring(secret, prefix)
    if recover and isinstance(hub, Hub):
        if not hub.history.messages:
            raise ValueError("recover=True needs a hub with history: Hub(history=100)")
        streams = RedisStreams(url, prefix, timeout, ssl, hub.history)
        return OrderedRelay(hub, streams, slow=slow, on_gap=on_gap, timeout=timeout, keyring=keyring)
    broker = RedisBroker(url, prefix, timeout, ssl)
    return Relay(hub, broker, slow=slow, on_gap=on_gap, timeout=timeout, keyring=keyring)


def nats(
    hub: Hub,
    url: str | Sequence[str] = "nats://localhost:4222",
    *,
    prefix: str = "wsfast",
    slow: DropOldest | DropNewest = SLOW,
    on_gap: Callable[[Gap], object] | None = None,
    timeout: float = 5.0,
    secret: bytes | Sequence[bytes] | None = None,
    ssl: SSLContext | None = None,
) -> Relay:
    """Return a relay through NATS. Needs the extra `nats`: `pip install "wsfast[nats]"`.

    Args:
        hub: The hub to connect.
        url: `nats://`, `tls://`, `ws://` or `wss://` URL, or several URLs of the servers of a cluster.
        prefix: Beginning of the broker's subjects. Hubs with the same prefix at the same broker are connected.
        slow: Policy for messages that wait for the broker: `DropOldest` or `DropNewest`.
        on_gap: Called with a `Gap` when messages of another process are missing.
        timeout: Seconds without an answer after which a connection to the broker counts as lost.
        secret: Secret of at least 16 bytes that signs messages, the same in all processes. Messages that are not signed
            with it are ignored. With several secrets, the first signs, and signatures of all of them are accepted.
            Without a secret, everyone who may publish at the broker may publish to this hub.
        ssl: Settings of the encryption and of the certificates to trust, for `tls://` and `wss://`. None means the
            system's defaults.

    Raises:
        ModuleNotFoundError: If nats-py is not installed.
        TypeError: If `hub` is not a Hub, `slow` is another policy, `url` is not a string, `on_gap` is not callable or
            is a coroutine function, or `secret` is not bytes.
        ValueError: If `url` has another scheme or is ambiguous, `prefix` is not a valid topic, `timeout` is not
            positive, or `secret` is too short.
    """
    with needs("wsfast[nats]", "nats"):
        from .nats_broker import NatsBroker

    broker = NatsBroker(url, check_topic(prefix, "prefix"), timeout, ssl)
    keyring = None if secret is None else Keyring(secret, prefix)
    return Relay(hub, broker, slow=slow, on_gap=on_gap, timeout=timeout, keyring=keyring)
