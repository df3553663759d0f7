"""Channels: messages to all who are subscribed, bounded queues for those who do not keep up."""

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
    """Publishes messages to all connections that are subscribed.

    What is published in one iteration of the event loop leaves at its end, or at `flush()`, in a single system call for
    each connection, together with what other channels have for it, in the order in which it was published. When a
    connection does not take everything, its messages wait in a queue of references, and the policy says how many.

    On connections of `wsfast.serve()`, a `send()` of the connection's own never overtakes what was published before it.
    On stock connections of websockets, it overtakes what was published in the same iteration, and what waits. Pings and
    pongs never wait. A close frame comes after what was published before it, unless more than 64 KiB have been waiting.

    A channel belongs to the event loop that was running when it was first used; another one, or a thread without one,
    is a RuntimeError, but for `publish_threadsafe()`.

    Args:
        name: What it is called in log records.
        slow: What is done about subscribers that do not keep up.
        history: How many of the last messages a new subscriber gets first.
        notsent_lowat: TCP_NOTSENT_LOWAT of the sockets of subscribers, in bytes, where there is such a thing: the
            policy would else act megabytes too late, since the kernel takes so much from one that reads nothing. None
            to leave it alone.
        on_drop: Called with a subscription and the number of messages that were dropped, soon after.
        on_disconnect: Called with the subscription that was the reason to close its connection.
        on_recover: Called with a subscription that had lost messages, when it has kept up for a second.

    Raises:
        TypeError: If `slow` is no policy, `name` no string, a number none, or a callback no plain function.
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
        """Have a connection get what is published from now on, after the channel's history, if it keeps one.

        A connection that is subscribed already has one subscription, which is returned.

        Raises:
            TypeError: If it is no connection, or of a kind that is not supported.
            RuntimeError: If it belongs to another event loop, or is not open.
        """
        subscription = self._admit(connection)
        assert isinstance(subscription, Subscription)
        return subscription

    def _new_subscription(self, peer: core.Peer) -> Subscription:
        return Subscription(self, peer, self.messages)

    def _begin(self, subscription: Subscription, peer: core.Peer) -> None:
        self._members.add(peer.slot)
        subscription.replay(self._history)

    def exclude(self, slot: int) -> None:
        """Have no more messages be published to a slot."""
        self._members.discard(slot)

    def remove(self, subscription: Subscription, peer: core.Peer) -> None:
        """Forget a subscription that has ended, but for its counts."""
        self.exclude(peer.slot)
        super().remove(subscription, peer)

    # ---- Publishing

    def publish(self, message: Message, *, key: Hashable = None, exclude: Iterable[object] = ()) -> None:
        """Send a message to all that are subscribed, at the end of this iteration of the event loop.

        Args:
            message: `str` is sent as a Text frame; `bytes`, `bytearray` and `memoryview` as a Binary frame; a
                `PreparedMessage` as what it was prepared for.
            key: Conflation key. With `Conflate`, a newer message with the same key replaces a queued one.
            exclude: Connections that are not to get it, as the one that it came from.

        Raises:
            TypeError: If `message` has none of these types, or `key` is not hashable.
            RuntimeError: In another event loop than the channel's, or none.
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
            except BaseException:  # a second time does what the first one has not
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
        """Publish an entry, and count it: all absolute numbers, so that a second time changes nothing."""
        if number >= 0 and self._dispatcher is not None:
            self._dispatcher.table.publish(self._members, number, excluded)
        for subscription, since in without:
            subscription._since = since
        self._set_counts(*counts)
        if not self._history or self._history[-1] is not entry:
            self._history.append(entry)

    def publish_threadsafe(self, message: Message, *, key: Hashable = None, exclude: Iterable[object] = ()) -> None:
        """Publish from any thread: soon, in the channel's event loop.

        Raises:
            TypeError: If `message` has none of the types that can be published, or `key` is not hashable.
            RuntimeError: If the channel has not been used in its event loop yet, or that is closed.
        """
        loop = self._loop_of_thread()
        hash(key)
        prepared, excluded = publishable(message), connections_in("exclude", exclude)
        loop.call_soon_threadsafe(lambda: self.publish(prepared, key=key, exclude=excluded))

    # ---- Looking

    def stats(self) -> ChannelStats:
        """Return what became of the messages so far."""
        return ChannelStats(*self._counts())

    # ---- As a stream

    def stream(self, *, max_messages: int = STREAM_BOUND) -> Stream:
        """Return an iterator over what is published from now on, which is what `async for message in channel` uses.

        Args:
            max_messages: How many messages wait at most, if whoever iterates does not keep up. Beyond, the oldest are
                dropped.

        Raises:
            TypeError: If `max_messages` is no integer.
            ValueError: If `max_messages` is not positive.
            RuntimeError: In another event loop than the channel's, or none.
        """
        stream = Stream(max_messages, self._bind().loop)
        self._streams.add(stream)
        return stream

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        return self.stream()
