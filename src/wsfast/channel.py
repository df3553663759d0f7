"""Channels: publish messages to all subscribed connections, with a bounded queue for each that does not keep up."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterable

from ._arguments import connections_in
from ._backlog import Entry
from ._core import core
from ._encoding.message import Message, PreparedMessage, publishable
from ._encoding.shared import encodings_of
from ._publisher import NOTSENT_LOWAT, STREAM_BOUND, Publisher, Stream, Streams
from ._reentrancy import exclusive
from ._subscription import ChannelStats, Subscription
from .policies import Policy

__all__ = ["Channel"]


class Channel(Publisher):
    """Publishes messages to all connections that are subscribed to it.

    Messages published in one iteration of the event loop are sent at its end, or at `flush()`. Each connection gets all
    of its messages, those of other channels and hubs included, in a single system call and in the order of publishing.
    When a connection does not take everything, the rest waits in a queue of references. The policy `slow` bounds that
    queue.

    On connections of `wsfast.serve()`, the connection's own `send()` never overtakes messages that were published
    before it. On stock connections of websockets, it overtakes messages that were published in the same iteration and
    messages that wait in the queue. Pings and pongs never wait. A close frame follows the messages that were published
    before it, unless more than 64 KiB were already waiting.

    A channel belongs to the event loop in which it is first used. Using it in another event loop, or in a thread
    without one, raises RuntimeError; only `publish_threadsafe()` can be called from any thread. When that event loop is
    closed and nothing is subscribed any more, the next use moves the channel to another one.

    Args:
        name: Name for log records and metrics.
        slow: Policy for subscribers that do not keep up: `Disconnect`, `DropNewest`, `DropOldest` or `Conflate`.
            None means `Disconnect()`.
        history: Number of recent messages that a new subscriber gets first.
        notsent_lowat: TCP_NOTSENT_LOWAT for the sockets of subscribers, in bytes, on systems that have this option.
            Without it, the kernel buffers megabytes for a client that reads nothing, and the policy acts only after
            that. None leaves the option alone.
        on_drop: Called with a subscription and a number of messages, soon after the policy has dropped them.
        on_disconnect: Called with a subscription when the policy closes its connection.
        on_recover: Called with a subscription that lost messages, once it has kept up for a second.

    Raises:
        TypeError: If `slow` is not a policy, `name` is not a string, `history` or `notsent_lowat` is not an integer, or
            a callback is not callable or is a coroutine function.
        ValueError: If `history` is negative or `notsent_lowat` is not positive.
    """

    def __init__(
        self,
        name: str = "",
        *,
        slow: Policy | None = None,
        history: int = 0,
        notsent_lowat: int | None = NOTSENT_LOWAT,
        on_drop: Callable[[Subscription, int], object] | None = None,
        on_disconnect: Callable[[Subscription], object] | None = None,
        on_recover: Callable[[Subscription], object] | None = None,
    ) -> None:
        super().__init__(
            name,
            slow=slow,
            history=history,
            notsent_lowat=notsent_lowat,
            on_drop=on_drop,
            on_disconnect=on_disconnect,
            on_recover=on_recover,
        )
        self._history: deque[Entry] = deque(maxlen=history)
        self._members = core.Members()
        self._streams = Streams()

    # ---- Subscribing

    def subscribe(self, connection: object) -> Subscription:
        """Subscribe a connection: it gets the channel's history, if there is one, and then every new message.

        Subscribing a connection again returns its existing subscription.

        Raises:
            TypeError: If `connection` is not a connection, or is of an unsupported kind.
            RuntimeError: If the connection belongs to another event loop, or is not open.
        """
        subscription = self._admit(connection)
        assert isinstance(subscription, Subscription)
        return subscription

    def _new_subscription(self, peer: core.Peer) -> Subscription:
        return Subscription(self, peer, self.messages)

    def _begin(self, subscription: Subscription, peer: core.Peer) -> None:
        self._members.add(peer.slot)
        subscription.replay(tuple(self._history))

    def exclude(self, slot: int) -> None:
        """Publish no more messages to a slot."""
        self._members.discard(slot)

    def remove(self, subscription: Subscription, peer: core.Peer) -> None:
        """Forget a subscription that has ended, and keep its counts."""
        self.exclude(peer.slot)
        super().remove(subscription, peer)

    # ---- Publishing

    def publish(self, message: Message, *, key: Hashable = None, exclude: Iterable[object] = ()) -> None:
        """Send a message to all subscribers, at the end of this iteration of the event loop.

        Args:
            message: `str` is sent as a Text frame; `bytes`, `bytearray` and `memoryview` as a Binary frame; a
                `PreparedMessage` as the frame that it was prepared for.
            key: Conflation key. With `Conflate`, a newer message replaces a queued one with the same key.
            exclude: Connections that do not get the message, for example the one that sent it.

        Raises:
            TypeError: If `message` has none of these types, or `key` is not hashable.
            RuntimeError: If it is called outside the channel's event loop.
        """
        self._bind()
        prepared = publishable(message)
        hash(key)
        self._publish(prepared, key, connections_in("exclude", exclude) if exclude != () else [])

    @exclusive
    def _publish(self, prepared: PreparedMessage, key: Hashable, exclude: list[object]) -> None:
        dispatcher = self._bind()
        excluded = self._slots_of(exclude) if self._subscriptions else set()
        with core.collector_paused:  # finalizers may subscribe, or ask for the counts
            entry = Entry(self, prepared, encodings_of(prepared, len(self._subscriptions)), key)
            number = dispatcher.enter(entry) if self._subscriptions else -1
            without = []
            if excluded:
                left_out = [one for one in map(self._subscriptions.__getitem__, excluded) if one._until is None]
                without = [(one, one._since + 1) for one in left_out]
            counts = self.messages + 1, self.bytes + prepared.size
            try:
                self._commit(entry, number, excluded, without, counts)
            except BaseException:  # an interrupt: the second call does what the first did not
                self._commit(entry, number, excluded, without, counts)
                raise
        self._streams.put(prepared)

    def _commit(
        self,
        entry: Entry,
        number: int,
        excluded: set[int],
        without: list[tuple[Subscription, int]],
        counts: tuple[int, int],
    ) -> None:
        """Publish an entry and count it. All numbers are absolute, so that running it twice changes nothing."""
        if number >= 0 and self._dispatcher is not None:
            self._dispatcher.table.publish(self._members, number, excluded)
        for subscription, since in without:
            subscription._since = since
        self._set_counts(*counts)
        if not self._history or self._history[-1] is not entry:
            self._history.append(entry)

    def publish_threadsafe(self, message: Message, *, key: Hashable = None, exclude: Iterable[object] = ()) -> None:
        """Publish from any thread. The message is published soon, in the channel's event loop.

        Raises:
            TypeError: If `message` has none of the types that can be published, or `key` is not hashable.
            RuntimeError: If the channel has not been used in its event loop yet, or the event loop is closed.
        """
        loop = self._loop_of_thread()
        hash(key)
        prepared, excluded = publishable(message), connections_in("exclude", exclude)
        loop.call_soon_threadsafe(lambda: self.publish(prepared, key=key, exclude=excluded))

    # ---- Statistics

    def stats(self) -> ChannelStats:
        """Return the counts of the channel's messages so far."""
        return ChannelStats(*self._counts())

    # ---- As a stream

    def stream(self, *, max_messages: int = STREAM_BOUND) -> Stream:
        """Return an iterator over the messages published from now on. `async for message in channel` uses it.

        Args:
            max_messages: Number of messages that may wait when the iteration does not keep up. The oldest are dropped
                first.

        Raises:
            TypeError: If `max_messages` is not an integer.
            ValueError: If `max_messages` is not positive.
            RuntimeError: If it is called outside the channel's event loop.
        """
        stream = Stream(max_messages, self._bind().loop)
        self._streams.add(stream)
        return stream

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        return self.stream()
