"""Relays: connect the hubs of several processes through a broker, so that a message published in one reaches all.

    async with wsfast.relay.redis(hub, "redis://localhost"):
        ...

A process subscribes at the broker only to the topics, patterns and users that have a subscriber or a connection in its
hub; with history, to topics also for a while after the last subscriber has left. Messages of one topic from one process
arrive in the order of publishing. While the broker is slow or unreachable, local subscribers still get local messages;
messages for other processes wait in a bounded queue, and the relay reconnects with exponential back-off. A process that
misses messages counts and reports them. A process does not get the history and the last values that other processes
keep.

    wsfast.relay.publisher("redis://localhost").publish("news", "hello")

A program without a hub, for example a Celery task, publishes with a publisher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from ssl import SSLContext
from typing import Literal

from wsfast._arguments import check_seconds, needs, several
from wsfast.hub import History, Hub
from wsfast.hub.positions import history_of
from wsfast.hub.topics import check_topic
from wsfast.policies import DropNewest, DropOldest

from .broker import Broker
from .confirming import PublishError
from .inbound import Gap
from .local_broker import LocalBroker
from .ordered_relay import OrderedRelay
from .presence import Presence
from .publishers import AsyncPublisher, Publisher
from .relay import Relay, RelayStats
from .wire import Keyring

__all__ = [
    "AsyncPublisher",
    "Gap",
    "Presence",
    "PublishError",
    "Publisher",
    "Relay",
    "RelayStats",
    "async_publisher",
    "local",
    "nats",
    "publisher",
    "redis",
]

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
    presence: Presence | bool = False,
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
        presence: Whether processes tell each other who is connected to them: True, or a `Presence` with other settings.
            `Relay.presence` then knows the users and counts of all processes. Give the same to all processes.

    Raises:
        ModuleNotFoundError: If redis is not installed.
        TypeError: If `hub` is not a Hub, `slow` is another policy, `url` is not a string, `on_gap` is not callable or
            is a coroutine function, `secret` is not bytes, `recover` is not a bool, or `presence` is neither a bool nor
            a Presence.
        ValueError: If `url` has another scheme or is ambiguous, `prefix` is not a valid topic, `timeout` is not
            positive, `secret` is too short, or `recover` is true and the hub has no history.
    """
    with needs("wsfast[redis]", "redis"):
        from .redis_broker import RedisBroker
        from .redis_streams import RedisStreams

    check_topic(prefix, "prefix")
    keyring = None if secret is None else Keyring(secret, prefix)
    if _recovers(hub, recover):
        streams = RedisStreams(url, prefix, timeout, ssl, hub.history)
        return OrderedRelay(hub, streams, slow=slow, on_gap=on_gap, timeout=timeout, keyring=keyring, presence=presence)
    broker = RedisBroker(url, prefix, timeout, ssl)
    return Relay(hub, broker, slow=slow, on_gap=on_gap, timeout=timeout, keyring=keyring, presence=presence)


def _recovers(hub: Hub, recover: bool) -> bool:
    """Return whether a relay recovers.

    Raises:
        TypeError: If `recover` is not a bool.
        ValueError: If `recover` is true and the hub has no history.
    """
    if not isinstance(recover, bool):
        raise TypeError(f"recover must be a bool, not {recover!r}")
    if not recover or not isinstance(hub, Hub):  # the relay itself refuses another hub
        return False
    if not hub.history.messages:
        raise ValueError("recover=True needs a hub with history: Hub(history=100)")
    return True


def local(
    hub: Hub,
    directory: str | PathLike[str] | None = None,
    *,
    prefix: str = "wsfast",
    slow: DropOldest | DropNewest = SLOW,
    on_gap: Callable[[Gap], object] | None = None,
    timeout: float = 5.0,
    secret: bytes | Sequence[bytes] | None = None,
    presence: Presence | bool = False,
) -> Relay:
    """Return a relay between the processes of one machine that run as the same user. It needs no broker.

    Each process listens at a Unix socket in a directory, and connects to the sockets of all others. A process that is
    started or ends is noticed at once.

    Args:
        hub: The hub to connect.
        directory: Directory of the sockets, which only its owner may enter; it is created with mode 0700. None means
            `wsfast` in `$XDG_RUNTIME_DIR`, or `wsfast-<uid>` in the directory for temporary files.
        prefix: Beginning of the names of the sockets. Hubs with the same prefix in the same directory are connected.
        slow: Policy for messages that wait to be sent: `DropOldest` or `DropNewest`.
        on_gap: Called with a `Gap` when messages of another process are missing.
        timeout: Seconds after which a process that does not read its messages counts as lost. It misses messages then,
            which it reports as soon as it goes on.
        secret: Secret of at least 16 bytes that signs messages, the same in all processes. Messages that are not signed
            with it are ignored. Without a secret, every process of the same user may publish to this hub.
        presence: Whether processes tell each other who is connected to them: see `redis()`.

    Raises:
        OSError: If the directory cannot be created, or does not belong to this user alone.
        RuntimeError: If the system has no Unix sockets for asyncio, as Windows.
        TypeError: If `hub` is not a Hub, `directory` is not a path, `slow` is another policy, `on_gap` is not callable
            or is a coroutine function, or `secret` is not bytes.
        ValueError: If the path of `directory` is too long for sockets, `prefix` is not a valid topic, `timeout` is not
            positive, or `secret` is too short.
    """
    check_seconds("timeout", timeout)
    broker = LocalBroker(directory, check_topic(prefix, "prefix"), timeout)
    keyring = None if secret is None else Keyring(secret, prefix)
    return Relay(hub, broker, slow=slow, on_gap=on_gap, timeout=timeout, keyring=keyring, presence=presence)


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
    recover: bool = False,
    storage: Literal["file", "memory"] | None = None,
    replicas: int | None = None,
    max_bytes: int | None = None,
    presence: Presence | bool = False,
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
        recover: Whether a stream of NATS JetStream orders the messages of each topic and keeps the last ones, so that
            clients can come back to any process: see `Hub.recover()`. Messages to topics then reach the clients of
            every process, this one included, by way of NATS. Give the same to all processes. The relay creates the
            stream if there is none; it has the name of the prefix. It needs NATS 2.11 or newer with JetStream.
        storage: With `recover`, where the stream keeps messages. None means a file, or as the stream was created.
        replicas: With `recover`, how many servers of a cluster keep the stream. None means one, or as it was created.
        max_bytes: With `recover`, size of the stream in bytes; beyond that, the oldest messages of all topics are
            deleted. None means no limit, or as the stream was created.
        presence: Whether processes tell each other who is connected to them: see `redis()`.

    Raises:
        ModuleNotFoundError: If nats-py is not installed.
        TypeError: If `hub` is not a Hub, `slow` is another policy, `url` is not a string, `on_gap` is not callable or
            is a coroutine function, `secret` is not bytes, `recover` is not a bool, or `replicas` or `max_bytes` is not
            an integer.
        ValueError: If `url` has another scheme or is ambiguous, `prefix` is not a valid topic, `timeout` is not
            positive, `secret` is too short, `recover` is true and the hub has no history, `storage` is unknown,
            `replicas` or `max_bytes` is not positive, or one of these three is given without `recover`.
    """
    with needs("wsfast[nats]", "nats"):
        from .nats_broker import NatsBroker

    check_topic(prefix, "prefix")
    keyring = None if secret is None else Keyring(secret, prefix)
    if _recovers(hub, recover):
        from .jetstream import Stream
        from .nats_streams import NatsStreams

        stream = Stream(prefix, hub.history, storage, replicas, max_bytes)
        streams = NatsStreams(url, prefix, timeout, ssl, stream)
        return OrderedRelay(hub, streams, slow=slow, on_gap=on_gap, timeout=timeout, keyring=keyring, presence=presence)
    if (storage, replicas, max_bytes) != (None, None, None):
        raise ValueError("storage, replicas and max_bytes need recover=True")
    broker = NatsBroker(url, prefix, timeout, ssl)
    return Relay(hub, broker, slow=slow, on_gap=on_gap, timeout=timeout, keyring=keyring, presence=presence)


def publisher(
    url: str | Sequence[str],
    *,
    prefix: str = "wsfast",
    timeout: float = 5.0,
    secret: bytes | Sequence[bytes] | None = None,
    ssl: SSLContext | None = None,
    history: int | History | None = None,
) -> Publisher:
    """Return a publisher whose methods block, for programs and threads without an event loop.

    It connects when it is first used, in each process anew, and reconnects when the connection is lost. Needs the extra
    `redis` or `nats`, depending on the URL.

    Args:
        url: URL of the broker, as for `wsfast.relay.redis()` or `wsfast.relay.nats()`: its scheme says which. Several
            URLs are the servers of a NATS cluster.
        prefix: Beginning of the names of the broker's channels, as in the relays.
        timeout: Seconds that a call takes at most. Until then, it tries to reach the broker.
        secret: Secret that signs messages, as in the relays.
        ssl: Settings of the encryption and of the certificates to trust. None means the defaults of the relays.
        history: The history of the hubs whose relays have `recover=True`, as given to `Hub`. The broker then keeps the
            messages to topics within these bounds. None for relays without `recover`.

    Raises:
        ModuleNotFoundError: If redis or nats-py is not installed.
        TypeError: If `url` is not a string, `timeout` is not a number, or `secret` is not bytes.
        ValueError: If `url` has another scheme or is ambiguous, `prefix` is not a valid topic, `timeout` is not
            positive, `secret` is too short, or `history` has no messages.
    """
    return Publisher(*_published_by(url, prefix, timeout, secret, ssl, history))


def async_publisher(
    url: str | Sequence[str],
    *,
    prefix: str = "wsfast",
    timeout: float = 5.0,
    secret: bytes | Sequence[bytes] | None = None,
    ssl: SSLContext | None = None,
    history: int | History | None = None,
) -> AsyncPublisher:
    """Return a publisher whose methods are coroutines, for programs with an event loop and without a hub.

    See `publisher()` for the arguments and the exceptions.
    """
    return AsyncPublisher(*_published_by(url, prefix, timeout, secret, ssl, history))


def _published_by(
    url: str | Sequence[str],
    prefix: str,
    timeout: float,
    secret: bytes | Sequence[bytes] | None,
    ssl: SSLContext | None,
    history: int | History | None,
) -> tuple[Broker, float, Keyring | None]:
    """Return the arguments of a publisher."""
    check_seconds("timeout", timeout)
    check_topic(prefix, "prefix")
    keyring = None if secret is None else Keyring(secret, prefix)
    bounds = None if history is None else history_of(history)
    if bounds is not None and not bounds.messages:
        raise ValueError("history must have messages: give what Hub(history=...) of the servers was given")
    if isinstance(url, str) and url.partition("://")[0] in ("redis", "rediss", "unix"):
        return _redis_broker(url, prefix, timeout, ssl, bounds), timeout, keyring
    if not isinstance(url, str) or url.partition("://")[0] in ("nats", "tls", "ws", "wss"):
        urls = several("url", "URLs", url) if not isinstance(url, str) else url
        return _nats_broker(urls, prefix, timeout, ssl, bounds), timeout, keyring
    raise ValueError("url must begin with redis://, rediss://, unix://, nats://, tls://, ws:// or wss://")


def _redis_broker(url: str, prefix: str, timeout: float, ssl: SSLContext | None, history: History | None) -> Broker:
    """Return the broker of a publisher, which places messages if it is given a history."""
    with needs("wsfast[redis]", "redis"):
        from .redis_broker import RedisBroker
        from .redis_streams import RedisStreams

    if history is None:
        return RedisBroker(url, prefix, timeout, ssl)
    return RedisStreams(url, prefix, timeout, ssl, history, single=True)


def _nats_broker(
    url: str | Sequence[str], prefix: str, timeout: float, ssl: SSLContext | None, history: History | None
) -> Broker:
    """Return the broker of a publisher, which places messages if it is given a history."""
    with needs("wsfast[nats]", "nats"):
        from .nats_broker import NatsBroker

    if history is None:
        return NatsBroker(url, prefix, timeout, ssl)
    from .jetstream import Stream
    from .nats_streams import NatsStreams

    return NatsStreams(url, prefix, timeout, ssl, Stream(prefix, history), single=True)
