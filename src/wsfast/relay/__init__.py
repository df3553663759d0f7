"""Relays: what is published in a hub reaches the subscribers of the hubs of other processes, through a broker.

    async with wsfast.relay.redis(hub, "redis://localhost"):
        ...

A process subscribes at the broker only to the topics, patterns and users that somebody is subscribed to, or registered
as, in its hub. Messages of one topic arrive in the order in which a process has published them. While the broker is
slow or away, local subscribers get local messages as ever; messages for other processes wait in a bounded queue, and
the relay reconnects with exponential back-off. What is lost is counted and reported, by the process that misses it. A
process does not get the history and the last values that others have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ssl import SSLContext

from wsfast._arguments import needs
from wsfast.hub import Hub
from wsfast.hub.topics import check_topic
from wsfast.policies import DropNewest, DropOldest

from .inbound import Gap
from .relay import Relay, RelayStats
from .wire import Keyring

__all__ = ["Gap", "Relay", "RelayStats", "nats", "redis"]

SLOW = DropOldest(max_messages=100_000, max_bytes=64 << 20)
"""What is done when the broker is slow or away."""


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
) -> Relay:
    """Return a relay through Redis, by PUBLISH and SUBSCRIBE; needs the extra `redis`.

    Args:
        hub: The hub.
        url: `redis://`, `rediss://` or `unix://`, as redis.Redis.from_url() takes it.
        prefix: What the names of channels begin with; hubs with the same one, at the same broker, hear each other.
        slow: What is done about messages that wait for the broker.
        on_gap: Called when messages of another process are missing.
        timeout: Seconds without an answer after which a connection to the broker counts as lost.
        secret: What messages are signed with, at least 16 bytes, and the same in all processes; messages that are not
            are ignored. Or several: the first signs, the signatures of all are accepted. Without one, whoever may
            publish at the broker may publish here.
        ssl: How to encrypt the connections, and whom to trust; for `rediss://`. Else it is what `url` and
            the system's defaults say.

    Raises:
        ModuleNotFoundError: Without redis.
        TypeError: If `hub` is no Hub, `slow` another policy, `url` no string, `on_gap` no plain function, or `secret`
            has not type bytes.
        ValueError: If `url` begins otherwise or is ambiguous, `prefix` is no topic, `timeout` is not positive, or
            `secret` is too short.
    """
    with needs("wsfast[redis]", "redis"):
        from .redis_broker import RedisBroker

    broker = RedisBroker(url, check_topic(prefix), timeout, ssl)
    keyring = None if secret is None else Keyring(secret, prefix)
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
    """Return a relay through NATS; needs the extra `nats`.

    Args:
        hub: The hub.
        url: `nats://`, `tls://`, `ws://` or `wss://`; or several, of the servers of a cluster.
        prefix: What subjects begin with; hubs with the same one, at the same broker, hear each other.
        slow: What is done about messages that wait for the broker.
        on_gap: Called when messages of another process are missing.
        timeout: Seconds without an answer after which a connection to the broker counts as lost.
        secret: What messages are signed with, at least 16 bytes, and the same in all processes; messages that are not
            are ignored. Or several: the first signs, the signatures of all are accepted. Without one, whoever may
            publish at the broker may publish here.
        ssl: How to encrypt the connections, and whom to trust; for `tls://` and `wss://`. Else it is the
            system's defaults.

    Raises:
        ModuleNotFoundError: Without nats-py.
        TypeError: If `hub` is no Hub, `slow` another policy, `url` no string, `on_gap` no plain function, or `secret`
            has not type bytes.
        ValueError: If `url` begins otherwise or is ambiguous, `prefix` is no topic, `timeout` is not positive, or
            `secret` is too short.
    """
    with needs("wsfast[nats]", "nats"):
        from .nats_broker import NatsBroker

    broker = NatsBroker(url, check_topic(prefix), timeout, ssl)
    keyring = None if secret is None else Keyring(secret, prefix)
    return Relay(hub, broker, slow=slow, on_gap=on_gap, timeout=timeout, keyring=keyring)
