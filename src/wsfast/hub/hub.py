"""The Hub, and HubChannel: one topic of a hub with the methods of a channel."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Mapping
from typing import Any

from wsfast._encoding.message import Message
from wsfast._publisher import NOTSENT_LOWAT, STREAM_BOUND, Stream
from wsfast._reentrancy import consistent
from wsfast._subscription import HubStats, TopicStats
from wsfast.policies import Policy

from .filters import check_tags
from .positions import History, Position, check_since
from .registry import Kind, PresenceCallback, Relay
from .streaming import Streaming
from .subscriptions import HubSubscription, Member, Registration
from .topics import check_topic, check_topic_or_pattern, is_pattern

__all__ = ["Hub", "HubChannel"]


class Hub(Streaming):
    """Publishes messages to topics and users. A topic exists as long as it has a subscriber.

    A topic is a name of tokens separated by dots: `orders.eu.42`. Subscribers may also use patterns: `*` matches one
    token, and `>` at the end matches one or more. A connection whose topics and patterns match a message several times
    gets it once.

    Messages published in one iteration of the event loop are sent at its end, or at `flush()`. Each connection gets all
    of its messages in a single system call and in the order of publishing, whatever their topics. A connection that
    does not keep up has one queue for all of its topics, and the policy `slow` bounds it. The rules of `Channel` about
    order, threads and event loops apply here too.

    Args:
        slow: Policy for connections that do not keep up: `Disconnect`, `DropNewest`, `DropOldest` or `Conflate`. None
            means `Disconnect()`. With `Conflate`, a newer message replaces a queued one with the same topic and key.
        history: Number of recent messages of each topic that a new subscriber gets first, and that a connection that
            comes back gets from where it was: see `subscribe()`. A `History` also bounds their size and age; a number
            stands for the bounds that are its defaults.
        last_values: Number of keys per topic whose last message a new subscriber gets first. The least recently
            published key is evicted first. Messages without a key are not kept. Last values are kept until `forget()`
            is called for their topic.
        envelope: Whether to send each message of a topic with the topic's name and its offset, so that clients know
            their positions: a Text message as the JSON text `["topic",offset,"payload"]`, a Binary message after the
            length in two bytes, most significant first, of the JSON text `["topic",offset]`, and that text. The
            envelope is made once for all receivers. A message to several topics is published to one after the other,
            and a subscriber of several gets it once for each. Event streams, `Stream` and `send()` have no envelopes.
        name: Name for log records and metrics.
        notsent_lowat: See `Channel`.
        on_join: Called with a user and None soon after the user's first connection is registered, and with a user and a
            topic after the first of the user's connections has subscribed to the topic.
        on_leave: Called with the same arguments after the last of the user's connections has left.
        on_drop: Called with a `HubSubscription` of all of the connection's topics and a number of messages, soon after
            the policy has dropped them.
        on_disconnect: Called with a `HubSubscription` when the policy closes its connection.
        on_recover: Called with a `HubSubscription` that lost messages, once it has kept up for a second.

    Raises:
        TypeError: If `slow` is not a policy, `name` is not a string, a number is not an integer, or a callback is not
            callable or is a coroutine function.
        ValueError: If `history` or `last_values` is negative, or `notsent_lowat` is not positive.
    """

    def __init__(
        self,
        *,
        slow: Policy | None = None,
        history: int | History = 0,
        last_values: int = 0,
        envelope: bool = False,
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
            envelope=envelope,
            notsent_lowat=notsent_lowat,
            on_join=on_join,
            on_leave=on_leave,
            on_drop=on_drop,
            on_disconnect=on_disconnect,
            on_recover=on_recover,
        )
        self._has_relay = False  # whether a relay is running

    # ---- Subscribing

    def subscribe(
        self,
        connection: object,
        *topics: str,
        since: Mapping[str, Position | tuple[str, int]] | Position | None = None,
        tags: Iterable[str] | None = None,
    ) -> HubSubscription:
        """Subscribe a connection to topics and patterns.

        The connection first gets the history and the last values of those topics whose messages it did not get before,
        in the order of publishing, and then every new message. No message is missing or repeated in between.

        A client that comes back gives the positions up to which it has received the topics. For each of them, the
        connection gets all messages after the position instead, and the topic is in `recovered_topics` of the
        subscription; or, if some of these messages are not in the history any more or the position is unknown, it is
        treated like a new subscriber of this topic. It never gets only a part of what it has missed. If the connection
        gets the messages of the topic already, nothing is sent again.

        With `tags`, the connection gets only messages that were published with one of these tags, and messages that
        were published without any. This holds for the retained messages as well. If it is subscribed to one of the
        topics already, `tags` or their absence replace what was asked for until now, from the next message on. With
        several topics and patterns that match a message, the connection gets it if one of them lets it through.

        Args:
            connection: Any connection that a `Channel` accepts.
            topics: Topics and patterns. The connection may already be subscribed to some of them.
            since: Maps topics to positions, or to tuples of epoch and offset. Or one position that `position()` has
                returned without a topic: it holds for all topics and patterns.
            tags: 1 to 64 strings of at most 256 characters. None for all messages.

        Raises:
            TypeError: If there are no topics, a topic is not a string, `since` or a position has the wrong type, `tags`
                is not an iterable of strings, or `connection` is of an unsupported kind.
            ValueError: If a name is neither a valid topic nor a valid pattern, an offset is negative, `since` has a
                pattern, or a topic that is not one of `topics`, `tags` is empty or has one that is not valid, or the
                subscribers of a topic or pattern would use more than 64 tags at the same time.
            RuntimeError: If the connection belongs to another event loop, or is not open.
        """
        if not topics:
            raise TypeError("subscribe() needs at least one topic: hub.subscribe(connection, 'news')")
        names = tuple(map(check_topic_or_pattern, topics))
        positions = None if since is None else check_since(since, names) or None
        wanted = None if tags is None else check_tags(tags)
        subscription = HubSubscription(self, names)
        self._bind()
        self._subscribe(subscription, connection, positions, wanted)
        return subscription

    async def recover(
        self,
        connection: object,
        *topics: str,
        since: Mapping[str, Position | tuple[str, int]] | Position | None = None,
        tags: Iterable[str] | None = None,
    ) -> HubSubscription:
        """Subscribe a connection after fetching what this process lacks of the history from the broker.

        With a relay that recovers, such as `wsfast.relay.redis(hub, url, recover=True)`, the positions of a topic are
        the same in all processes, and a client may come back to any of them. If the broker does not answer within the
        relay's timeout, the connection is subscribed nevertheless, and what cannot be recovered is not in
        `recovered_topics`. With any other relay, or none, this is the same as `subscribe()`.

        Args:
            connection: See `subscribe()`.
            topics: See `subscribe()`. Of patterns, nothing is fetched.
            since: See `subscribe()`.
            tags: See `subscribe()`.

        Raises:
            TypeError, ValueError, RuntimeError: See `subscribe()`.
        """
        names = tuple(map(check_topic_or_pattern, topics))
        wanted = None if tags is None else check_tags(tags)
        positions = None if since is None else check_since(since, names)
        self._bind()
        relay = self._registry.relay
        with contextlib.ExitStack() as stack:
            if relay is not None and relay.ordered:
                some = {} if positions is None or isinstance(positions, Position) else positions
                behind = {
                    name: some.get(name)
                    for name in names
                    if not is_pattern(name) and not relay.is_loaded(name, some.get(name))
                }
                for name in behind:  # while there is a subscriber, the relay follows the topic
                    stack.callback(self.stream(name, max_messages=1).close)
                await relay.load(behind)
            return self.subscribe(connection, *topics, since=since, tags=wanted)

    def position(self, topic: str | None = None) -> Position:
        """Return the position after the last message of a topic. Without a topic, return that after all messages.

        The position is valid in this process only, as long as the topic has a subscriber or a message in its history.

        Raises:
            TypeError, ValueError: If `topic` is not a valid topic.
            RuntimeError: If the hub has neither history nor envelopes, or it is called outside the hub's event loop.
        """
        if not self.has_positions:
            raise RuntimeError("messages have positions only in a hub with history: Hub(history=100)")
        name = None if topic is None else check_topic(topic)
        self._bind()
        if name is None:
            return Position(self._retained.epoch, self.messages)
        return self._retained.numbered(name).position

    def unsubscribe(self, connection: object, *topics: str) -> None:
        """Unsubscribe a connection from topics and patterns. Without any, unsubscribe it from all of its topics.

        Topics that the connection is not subscribed to are ignored. Messages published before are still sent. But if
        the connection then has neither a topic nor a user in the hub, the messages in its queue are dropped.

        Raises:
            TypeError: If a topic is not a string.
            ValueError: If a name is neither a valid topic nor a valid pattern.
            RuntimeError: If it is called outside the hub's event loop.
        """
        self._bind()
        self._unsubscribe(connection, tuple(map(check_topic_or_pattern, topics)))

    def register(self, connection: object, user: Hashable) -> Registration:
        """Register a connection as one of a user's, so that `send()` reaches it, until it is closed or unregistered.

        Args:
            connection: Any connection that a `Channel` accepts.
            user: The user; hashable, and not None. A user may have several connections. With a relay, it must be a str
                or an int.

        Raises:
            TypeError: If `user` is None or not hashable, or with a relay neither a str nor an int, or `connection` is
                of an unsupported kind.
            RuntimeError: If the connection is registered for another user, belongs to another event loop, or is not
                open.
        """
        hash(user)
        if user is None:
            raise TypeError("user must not be None; give any other hashable object, such as a name or an id")
        if self._registry.relay is not None:
            self._registry.relay.check("user", (user,), None, ())
        registration = Registration(self, user)
        self._bind()
        self._register(registration, connection)
        return registration

    # ---- Queries

    def channel(self, topic: str) -> HubChannel:
        """Return a topic or a pattern as an object with the methods of a channel. It is cheap to create and to keep.

        Raises:
            TypeError, ValueError: If `topic` is neither a valid topic nor a valid pattern.
        """
        return HubChannel(self, check_topic_or_pattern(topic))

    def topics(self, connection: object = None) -> list[str]:
        """Return the topics and patterns that have a subscriber, or those that a connection is subscribed to."""
        if connection is None:
            return list(self._registry.topics)
        member = self._member_of(connection)
        return [] if member is None else member.topics

    @consistent
    def subscribers(self, topic: str) -> list[Any]:
        """Return the connections that get the messages of a topic, whether subscribed by its name or by a pattern.

        For a pattern, return the connections that are subscribed to that pattern. Their tags do not matter.

        Raises:
            TypeError, ValueError: If `topic` is neither a valid topic nor a valid pattern.
        """
        return [member.connection for member in self._members_in(topic)]

    def count(self, topic: str) -> int:
        """Return the number of connections that get the messages of a topic, or that are subscribed to a pattern."""
        return len(self._registry.slots(check_topic_or_pattern(topic)))

    def _members_in(self, topic: str) -> list[Member]:
        return self._members(self._registry.slots(check_topic_or_pattern(topic)))

    @consistent
    def users(self, topic: str | None = None) -> list[Any]:
        """Return the users who are connected, or those of them who get the messages of a topic."""
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
        """Return the counts of the hub's messages so far."""
        patterns = self._registry.pattern_count
        topics = len(self._registry.topics) - patterns
        return HubStats(*self._counts(), topics, patterns, len(self._registry.users))

    @property
    def history(self) -> History:
        """The bounds of the history."""
        return self._retained.bounds

    @property
    def has_positions(self) -> bool:
        """Whether messages have positions: the hub has history or envelopes."""
        return self._retained.numbers

    def _is_free(self) -> bool:
        return super()._is_free() and not self._has_relay

    # ---- For relays

    def attach(self, relay: Relay | None) -> list[tuple[Kind, Any]]:
        """Attach a relay; None detaches it. The relay is told about messages, topics, patterns and users.

        Returns:
            The topics, patterns and users that exist now.

        Raises:
            RuntimeError: If the hub has a relay already, or it is called outside the hub's event loop.
        """
        if relay is not None and self._has_relay:
            raise RuntimeError(
                f"{self!r} has a relay already; a hub can have one relay at a time: leave its `async with` block first"
            )
        self._bind()
        before = self._registry.relay
        self._registry.relay = relay
        self._has_relay = relay is not None
        # Messages of other processes were missed until now, or the numbers were those of a broker.
        if relay is not None or (before is not None and before.ordered):
            self._retained.restart_all(self.messages)
        return self._registry.names()

    def expect(self, stand_in: Relay) -> None:
        """Put a placeholder in the place of a relay that has not started, unless another relay is running."""
        if not self._has_relay:
            self._registry.relay = stand_in


class HubChannel:
    """A topic or a pattern of a hub, with the methods of a `Channel`."""

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
        """Number of connections that get its messages."""
        return self.hub.count(self.name)

    def __bool__(self) -> bool:
        return True

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that the hub belongs to."""
        return self.hub.loop

    def subscribe(
        self,
        connection: object,
        *,
        since: Position | tuple[str, int] | None = None,
        tags: Iterable[str] | None = None,
    ) -> HubSubscription:
        """See `Hub.subscribe()`; `since` is the position in this topic."""
        positions = None if since is None else {self.name: since}
        return self.hub.subscribe(connection, self.name, since=positions, tags=tags)

    def position(self) -> Position:
        """See `Hub.position()`."""
        return self.hub.position(self.name)

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
        tags: Iterable[str] | None = None,
    ) -> None:
        """See `Hub.publish()`."""
        self.hub.publish(self.name, message, key=key, exclude=exclude, exclude_users=exclude_users, tags=tags)

    def publish_threadsafe(
        self,
        message: Message,
        *,
        key: Hashable = None,
        exclude: Iterable[object] = (),
        exclude_users: Iterable[Hashable] = (),
        tags: Iterable[str] | None = None,
    ) -> None:
        """See `Hub.publish_threadsafe()`."""
        self.hub.publish_threadsafe(
            self.name, message, key=key, exclude=exclude, exclude_users=exclude_users, tags=tags
        )

    def flush(self) -> None:
        """See `Hub.flush()`."""
        self.hub.flush()

    def stats(self) -> TopicStats:
        """Return the counts of the topic's messages."""
        group = self.hub._registry.topics.get(self.name)
        return TopicStats(*(0, 0) if group is None else (group.messages, group.bytes), len(self))

    def stream(self, *, max_messages: int = STREAM_BOUND) -> Stream:
        """See `Hub.stream()`."""
        return self.hub.stream(self.name, max_messages=max_messages)

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        return self.stream()
