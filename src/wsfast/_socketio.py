"""The parts of `wsfast.socketio`: publishing to explicit collections of clients."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from ._backlog import Entry
from ._core import core
from ._encoding.message import PreparedMessage
from ._encoding.shared import encodings_of
from ._publisher import NOTSENT_LOWAT, Publisher
from ._reentrancy import exclusive
from ._subscription import ChannelStats, Subscription
from .policies import Disconnect, Policy

__all__ = ["Client", "Clients", "ListPublisher"]

PRIVATE = Disconnect(max_bytes=16 << 20)
"""The policy for packets that must not be dropped."""


class _Subscription(Subscription):
    """A subscription that counts the messages for it, because each message is for other clients."""

    __slots__ = ("addressed",)

    def __init__(self, publisher: Any, peer: core.Peer) -> None:
        self.addressed = 0
        super().__init__(publisher, peer, 0)

    def _published(self) -> int:
        return self.addressed


class ListPublisher(Publisher):
    """Publishes each message to the subscribers that the caller lists."""

    def __init__(self, name: str, slow: Policy | None) -> None:
        super().__init__(
            name,
            slow=slow,
            history=0,
            notsent_lowat=NOTSENT_LOWAT,
            on_drop=None,
            on_disconnect=None,
            on_recover=None,
        )

    def subscribe(self, connection: Any) -> _Subscription:
        """Subscribe a connection.

        Raises:
            TypeError: If it is not supported.
            RuntimeError: If it belongs to another event loop, or is not open.
        """
        subscription = self._admit(connection)
        assert isinstance(subscription, _Subscription)
        return subscription

    def _new_subscription(self, peer: core.Peer) -> _Subscription:
        return _Subscription(self, peer)

    def exclude(self, slot: int) -> None:
        """Do nothing: no slot gets messages that are not listed for it."""

    @exclusive
    def publish(
        self, subscriptions: Sequence[_Subscription], messages: Sequence[PreparedMessage], key: Hashable
    ) -> None:
        """Send messages to some subscribers, without any other message in between."""
        dispatcher = self._bind()
        with core.collector_paused:  # finalizers may unsubscribe
            members, active = core.Members(), []
            for subscription in subscriptions:
                peer = subscription._peer
                if peer is not None:
                    members.add(peer.slot)
                    active.append(subscription)
            if not active:
                return
            for message in messages:
                entry = Entry(self, message, encodings_of(message, len(active)), key)
                number = dispatcher.enter(entry)
                dispatcher.table.publish(members, number)
                for subscription in active:
                    subscription.addressed += 1
                self._set_counts(self.messages + 1, self.bytes + message.size)

    def stats(self) -> ChannelStats:
        """Return the counts of the messages so far."""
        return ChannelStats(*self._counts())


class Client:
    """A client with a WebSocket: see `Link` in `connections.engineio`."""

    __slots__ = ("_on_end", "event", "private", "ready")

    def __init__(self, event: _Subscription, private: _Subscription, on_end: Callable[[], object]) -> None:
        self.ready: bool = False
        """Whether a message may be published for the client now."""
        self.event: _Subscription = event
        self.private: _Subscription = private
        self._on_end = on_end

    def send(self, data: str | bytes) -> None:
        """Publish a message for this client alone.

        Raises:
            OSError: If the connection has ended.
        """
        if not self.private.active:
            raise OSError("the connection has ended")
        self.private.publisher.publish([self.private], [PreparedMessage(data)], None)

    def end(self) -> None:
        """End the subscriptions."""
        self._on_end()
        self.event.unsubscribe()
        self.private.unsubscribe()


class Clients(dict[str, Client]):
    """The clients of a server that wsfast can send to, by the identifiers of Engine.IO."""

    def __init__(self, slow: Policy | None) -> None:
        super().__init__()
        self.events: ListPublisher = ListPublisher("socketio", slow)
        """Publishes events, with the policy for slow clients."""
        self.private: ListPublisher = ListPublisher("socketio", PRIVATE)
        """Publishes what must not be dropped."""

    def forget_closed_loop(self) -> None:
        """Forget clients that have not ended because their event loop was closed with their tasks pending."""
        loop = self.events.loop
        if loop is not None and loop.is_closed() and len(self.private):
            self.clear()
            self.events = ListPublisher("socketio", self.events.slow)
            self.private = ListPublisher("socketio", PRIVATE)

    def is_beyond_policy(self, messages: Sequence[PreparedMessage]) -> bool:
        """Whether the policy would drop a part of an event, or disconnect a client that waits for nothing else."""
        if len(messages) == 1:
            return False
        slow = self.events.slow
        return (
            not isinstance(slow, Disconnect)
            or (slow.max_messages is not None and len(messages) > slow.max_messages)
            or (slow.max_bytes is not None and sum(message.size for message in messages) > slow.max_bytes)
        )

    def link(self, eio_sid: str, connection: Any) -> Client:
        """Subscribe the connection of a client.

        Raises:
            TypeError: If it is not supported.
            RuntimeError: If it belongs to another event loop, or is not open.
        """
        self.forget_closed_loop()
        private = self.private.subscribe(connection)
        try:
            event = self.events.subscribe(connection)
        except BaseException:
            private.unsubscribe()
            raise
        client = self[eio_sid] = Client(event, private, lambda: self.pop(eio_sid, None))
        return client
