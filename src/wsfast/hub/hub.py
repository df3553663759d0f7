"""The hub, and its topics in the shape of channels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable, Iterable
from typing import Any

from wsfast._encoding.message import Message
from wsfast._publisher import NOTSENT_LOWAT, STREAM_BOUND, Stream, Streams
from wsfast._reentrancy import consistent, exclusive
from wsfast._subscription import HubStats, TopicStats
from wsfast.policies import Policy

from .publishing import Publishing
from .registry import Group, HubStream, Kind, PresenceCallback, Relay
from .subscriptions import HubSubscription, Member, Registration
from .topics import check_topic_or_pattern

__all__ = ["Hub", "HubChannel"]


class Hub(Publishing):
    """Publishes messages to topics, which come with their first subscriber and go with the last one.

    A topic is a name of tokens between dots: `orders.eu.42`. Subscribers may also use patterns: `*` stands for one
    token, `>` at the end for one or more. A connection that gets a message by several of them gets it once.

    What is published in one iteration of the event loop leaves at its end, or at `flush()`, in a single system call for
    each connection, in the order in which it was published, whatever the topic. A connection that does not keep up has
    one queue for all of its topics, and the policy bounds that. What `Channel` says of order, threads and event loops
    holds here, too.

    Args:
        slow: What is done about connections that do not keep up. With `Conflate`, newer messages replace those of the
            same topic and key.
        history: Messages of each topic that new subscribers get first. They are kept for every topic that was ever
            published to, until `forget()` is called for it; so are last values.
        last_values: Keys of each topic whose last message new subscribers get first; the least recently published is
            evicted first. Messages without a key are not kept.
        name: Its name in log records and metrics.
        notsent_lowat: See `Channel`.
        on_join: Called with a user and None soon after the first connection of the user is there, and with a user and a
            topic after the first one of the user's connections has subscribed to it.
        on_leave: Called with the same after the last one has left.
        on_drop: Called with a `HubSubscription` of all topics and the number of messages that were dropped, soon after.
        on_disconnect: Called with the `HubSubscription` that was the reason to close its connection.
        on_recover: Called with a `HubSubscription` that had lost messages, when it has kept up for a second.

    Raises:
        TypeError: If `slow` is no policy, `name` no string, a number none, or a callback no plain function.
        ValueError: If `history` or `last_values` is negative or `notsent_lowat` is not positive.
    """

    def __init__(
        self,
        *,
        slow: Policy | None = None,
        history: int = 0,
        last_values: int = 0,
        name: str = "",
        notsent_lowat: int | None = NOTSENT_LOWAT,
        on_join: PresenceCallback | None = None,
        on_leave: PresenceCallback | None = None,
        on_drop: Callable[[HubSubscription, int], object] | None = None,
        on_disconnect: Callable[[HubSubscription], object] | None = None,
        on_recover: Callable[[HubSubscription], object] | None = None,
    ) -> None:
        super().__init__(
            name,
            slow=slow,
            history=history,
            last_values=last_values,
            notsent_lowat=notsent_lowat,
            on_join=on_join,
            on_leave=on_leave,
            on_drop=on_drop,
            on_disconnect=on_disconnect,
            on_recover=on_recover,
        )
        self._has_relay = False  # one that has begun

    # ---- Subscribing

    def subscribe(self, connection: object, *topics: str) -> HubSubscription:
        """Have a connection get what is published to some topics from now on.

        It first gets the history and the last values of those topics whose messages it did not get already, in the
        order in which they were published, and then what is published; nothing is missing or doubled in between.

        Args:
            connection: Any that a `Channel` takes.
            topics: Topics and patterns. It may be subscribed to some of them already.

        Raises:
            TypeError: If there are no topics, or one of them is no string, or `connection` is not supported.
            ValueError: If one of them is neither a topic nor a pattern.
            RuntimeError: If the connection belongs to another event loop, or is not open.
        """
        if not topics:
            raise TypeError("subscribe() needs at least one topic")
        subscription = HubSubscription(self, tuple(map(check_topic_or_pattern, topics)))
        self._bind()
        self._subscribe(subscription, connection)
        return subscription

    def unsubscribe(self, connection: object, *topics: str) -> None:
        """Have a connection no longer get what is published to some topics; without any, to all of its topics.

        Topics that it is not subscribed to do not matter. What was published before is sent; but if the connection has
        nothing left in the hub, neither topic nor user, what waits since it does not keep up is dropped.

        Raises:
            TypeError: If one of the topics is no string.
            ValueError: If one of them is neither a topic nor a pattern.
            RuntimeError: In another event loop than the hub's, or none.
        """
        self._bind()
        self._unsubscribe(connection, tuple(map(check_topic_or_pattern, topics)))

    def register(self, connection: object, user: Hashable) -> Registration:
        """Have a connection be one of a user's, to which `send()` sends, until it is closed or this is ended.

        Args:
            connection: Any that a `Channel` takes.
            user: Whose it is; hashable, and not None. A user may have several connections. With a relay, a str or an
                int.

        Raises:
            TypeError: If `user` is not hashable or None, or with a relay neither a str nor an int, or `connection` is
                not supported.
            RuntimeError: If the connection is another user's, belongs to another event loop, or is not open.
        """
        hash(user)
        if user is None:
            raise TypeError("user must not be None")
        if self._registry.relay is not None:
            self._registry.relay.check("user", (user,), None, ())
        registration = Registration(self, user)
        self._bind()
        self._register(registration, connection)
        return registration

    # ---- Looking

    def channel(self, topic: str) -> HubChannel:
        """Return a topic, or a pattern, as what looks like a channel. To make it, and to have it, costs nothing.

        Raises:
            TypeError, ValueError: If it is neither.
        """
        return HubChannel(self, check_topic_or_pattern(topic))

    def topics(self, connection: object = None) -> list[str]:
        """Return the topics and patterns that have a subscriber, or that a connection is subscribed to."""
        if connection is None:
            return list(self._registry.topics)
        member = self._member_of(connection)
        return [] if member is None else member.topics

    @consistent
    def subscribers(self, topic: str) -> list[Any]:
        """Return the connections that get what is published to a topic, by its name or by a pattern.

        Of a pattern, it is those that are subscribed to it.

        Raises:
            TypeError, ValueError: If it is neither.
        """
        return [member.connection for member in self._members_in(topic)]

    def count(self, topic: str) -> int:
        """Return how many connections get what is published to a topic, or are subscribed to a pattern."""
        return len(self._registry.slots(check_topic_or_pattern(topic)))

    def _members_in(self, topic: str) -> list[Member]:
        return self._members(self._registry.slots(check_topic_or_pattern(topic)))

    @consistent
    def users(self, topic: str | None = None) -> list[Any]:
        """Return the users who are connected, or those of them who get what is published to a topic."""
        if topic is None:
            return list(self._registry.users)
        users = dict.fromkeys(member.user for member in self._members_in(topic))
        return [user.name for user in users if user is not None]

    @consistent
    def connections(self, user: Hashable) -> list[Any]:
        """Return the connections of a user."""
        group = self._registry.users.get(user)
        return [] if group is None else [member.connection for member in self._members(group.members.slots)]

    @consistent
    def stats(self) -> HubStats:
        """Return what became of the messages so far."""
        patterns = self._registry.pattern_count
        topics = len(self._registry.topics) - patterns
        return HubStats(*self._counts(), topics, patterns, len(self._registry.users))

    # ---- As a stream

    def stream(self, topic: str, *, max_messages: int = STREAM_BOUND) -> Stream:
        """Return an iterator over what is published to a topic, or to those that match a pattern, from now on.

        Args:
            topic: Topic or pattern.
            max_messages: Messages that wait at most, if the iteration does not keep up. Beyond, the oldest are dropped.

        Raises:
            TypeError: If `topic` is no string, or `max_messages` no integer.
            ValueError: If `topic` is neither a topic nor a pattern, or `max_messages` is not positive.
            RuntimeError: In another event loop than the hub's, or none.
        """
        name = check_topic_or_pattern(topic)
        stream = HubStream(self, max_messages, self._bind().loop)
        self._open_stream(stream, name)
        return stream

    @exclusive
    def _open_stream(self, stream: HubStream, topic: str) -> None:
        if stream.closed:
            return
        try:
            stream.group = self._registry.topics.get(topic) or self._registry.add_topic(topic)
            if stream.group.streams is None:
                stream.group.streams = Streams()
            stream.group.streams.add(stream)
        except BaseException:
            group = self._registry.topics.get(topic)
            if group is not None and group.empty:
                self._registry.discard(group)
            raise

    @exclusive
    def discard_if_empty(self, group: Group) -> None:
        """Remove a group, unless somebody is in it."""
        if group.empty and self._registry.topics.get(group.name) is group:
            self._registry.discard(group)

    # ---- For relays

    def attach(self, relay: Relay | None) -> list[tuple[Kind, Any]]:
        """Have a relay be told what is published, and which topics, patterns and users come and go; None for none.

        Returns:
            Those that there are.

        Raises:
            RuntimeError: If there is a relay already, or in another event loop than the hub's, or none.
        """
        if relay is not None and self._has_relay:
            raise RuntimeError("the Hub has a relay already")
        self._bind()
        self._registry.relay = relay
        self._has_relay = relay is not None
        return self._registry.names()

    def expect(self, stand_in: Relay) -> None:
        """Have something stand in for a relay that has not begun, unless there is one that has."""
        if not self._has_relay:
            self._registry.relay = stand_in

    def routes(self, topic: str) -> list[tuple[Kind, str]]:
        """Return by which topic and patterns somebody gets what is published to a topic."""
        return [(group.kind, group.name) for group in self._registry.route(topic)]

    def has_user(self, user: Hashable) -> bool:
        """Whether a user has a connection."""
        return user in self._registry.users


class HubChannel:
    """A topic of a hub, or a pattern, with the methods of a `Channel`."""

    __slots__ = ("hub", "name")

    def __init__(self, hub: Hub, name: str) -> None:
        self.hub: Hub = hub
        self.name: str = name

    def __repr__(self) -> str:
        return f"<HubChannel {self.name!r} of {self.hub!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HubChannel) and (self.hub, self.name) == (other.hub, other.name)

    def __hash__(self) -> int:
        return hash((self.hub, self.name))

    def __len__(self) -> int:
        """How many connections get its messages."""
        return self.hub.count(self.name)

    def __bool__(self) -> bool:
        return True

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that the hub belongs to."""
        return self.hub.loop

    def subscribe(self, connection: object) -> HubSubscription:
        """See `Hub.subscribe()`."""
        return self.hub.subscribe(connection, self.name)

    def unsubscribe(self, connection: object) -> None:
        """See `Hub.unsubscribe()`."""
        self.hub.unsubscribe(connection, self.name)

    def publish(
        self,
        message: Message,
        *,
        key: Hashable = None,
        exclude: Iterable[object] = (),
        exclude_users: Iterable[Hashable] = (),
    ) -> None:
        """See `Hub.publish()`."""
        self.hub.publish(self.name, message, key=key, exclude=exclude, exclude_users=exclude_users)

    def publish_threadsafe(
        self,
        message: Message,
        *,
        key: Hashable = None,
        exclude: Iterable[object] = (),
        exclude_users: Iterable[Hashable] = (),
    ) -> None:
        """See `Hub.publish_threadsafe()`."""
        self.hub.publish_threadsafe(self.name, message, key=key, exclude=exclude, exclude_users=exclude_users)

    def flush(self) -> None:
        """See `Hub.flush()`."""
        self.hub.flush()

    def stats(self) -> TopicStats:
        """Return what was published."""
        group = self.hub._registry.topics.get(self.name)
        return TopicStats(*(0, 0) if group is None else (group.messages, group.bytes), len(self))

    def stream(self, *, max_messages: int = STREAM_BOUND) -> Stream:
        """See `Hub.stream()`."""
        return self.hub.stream(self.name, max_messages=max_messages)

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        return self.stream()
