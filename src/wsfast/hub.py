"""Hubs: topics that come and go, patterns of them, and users, over connections that each have one bounded queue."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, TypeAlias
from weakref import WeakSet

from ._core import core
from ._dispatcher import Entry, Outlet
from ._encoding.message import Message, PreparedMessage, encodings_of, prepare
from .audience import SMALLEST_SHARED, Audience, Publication
from .channel import STREAM_BOUND, Stream
from .connections import adapt
from .patterns import PatternTree, check_topic, check_topic_or_pattern, is_pattern, matches
from .policies import Policy
from .subscription import NOTSENT_LOWAT, ChannelStats, Publisher, Subscription, SubscriptionStats, Waiting

__all__ = ["Hub", "HubChannel", "HubStats", "HubSubscription", "Kind", "Registration", "Relay", "TopicStats"]

ROUTES = 65536
"""Topics of which a hub remembers who gets their messages."""

VAIN = 4
"""Messages in a row whose compression nobody could share, after which a topic begins to do without."""

PAUSE = 64
"""Messages for which it does, until it tries again."""

Kind: TypeAlias = Literal["topic", "pattern", "user"]


@dataclass(frozen=True, slots=True)
class HubStats(ChannelStats):
    """What became of the messages of a hub, over all connections; those that have left are included."""

    topics: int
    """Topics that somebody has subscribed to by their names."""
    patterns: int
    """Patterns that somebody has subscribed to."""
    users: int
    """Users who are on."""


@dataclass(frozen=True, slots=True)
class TopicStats:
    """What was published to a topic since somebody has subscribed to it by its name."""

    messages: int
    bytes: int
    """Bytes of their payloads."""
    subscribers: int
    """Connections that get its messages now, also by patterns."""


class Relay(Protocol):
    """What brings messages of a hub to those of other processes."""

    def want(self, kind: Kind, name: Any) -> None:
        """Take note that a topic, a pattern or a user has somebody here."""

    def unwant(self, kind: Kind, name: Any) -> None:
        """Take note that it has nobody any more."""

    def forward(
        self,
        kind: Kind,
        names: tuple[Any, ...],
        message: PreparedMessage,
        key: Hashable,
        excluded: tuple[Any, ...],
    ) -> None:
        """Bring a message to other processes."""

    def check(self, kind: Kind, names: tuple[Any, ...], key: Hashable, excluded: tuple[Any, ...]) -> None:
        """Raise what there is to be raised if this cannot be brought there."""


class Group:
    """Those who get the same: subscribers of a topic or a pattern, or the connections of a user."""

    __slots__ = ("_audience", "_pause", "_vain", "bytes", "kind", "members", "messages", "name", "streams")

    def __init__(self, kind: Kind, name: Any) -> None:
        self.kind = kind
        self.name = name
        self.members = core.Members()
        self.messages = 0
        self.bytes = 0
        self.streams: WeakSet[Stream] | None = None
        self._audience: Audience | None = None  # who shares compression
        self._vain = 0  # how many messages in a row nobody could share
        self._pause = 0

    def encodings(self, message: PreparedMessage) -> Any:
        """Return the encodings of a message for those in the group, who share compression where they can.

        Where they get other messages in between, as those of other topics, they cannot, and to try costs as much as
        to compress each message by itself. A user has few connections, which always do.
        """
        if self.kind == "user" or message.compress is False or message.size < SMALLEST_SHARED:
            return encodings_of(message)
        if self._pause:
            self._pause -= 1
            return encodings_of(message)
        if self._audience is None:
            self._audience = Audience()
        return GroupPublication(self, self._audience, message)

    def learn(self, shared: bool) -> None:
        """Take note whether anybody could share the compression of a message."""
        self._vain = 0 if shared else self._vain + 1
        if self._vain >= VAIN:
            self._vain = 0
            self._pause = PAUSE

    @property
    def empty(self) -> bool:
        """Whether nobody is in it."""
        return not len(self.members) and not self.streams


class GroupPublication(Publication):
    """A message on its way to a group, which learns from it."""

    def __init__(self, group: Group, audience: Audience, message: PreparedMessage) -> None:
        super().__init__(audience, message)
        self._group = group

    def end(self) -> None:
        """Take leave of messages that nobody can refer to any more."""
        super().end()
        if self._shares:
            self._group.learn(any(share.used for share in self._shares.values()))


class Remembered:
    """A message that newcomers get."""

    __slots__ = ("entry", "had", "number", "topics")

    def __init__(self, number: int, entry: Entry, topics: tuple[str, ...]) -> None:
        self.number = number  # how many messages the hub had with it
        self.entry = entry
        self.topics = topics
        self.had: WeakSet[Member] | None = None  # who got it as a newcomer, if there are other topics to join


class Memory:
    """What newcomers to a topic get first."""

    __slots__ = ("history", "values")

    def __init__(self, history: int) -> None:
        self.history: deque[Remembered] = deque(maxlen=history)
        self.values: dict[Hashable, Remembered] = {}

    def add(self, message: Remembered, key: Hashable, keys: int) -> None:
        """Remember a message."""
        self.history.append(message)
        if keys and key is not None:
            self.values.pop(key, None)
            self.values[key] = message
            if len(self.values) > keys:
                del self.values[next(iter(self.values))]


class Member(Subscription):
    """One connection in a hub, with one queue for all of its topics."""

    __slots__ = ("__weakref__", "groups", "user")

    def __init__(self, hub: Hub, outlet: Outlet) -> None:
        super().__init__(hub, outlet, 0)
        self.groups: dict[Group, int] = {}  # how many messages the hub had when each was joined
        self.user: Group | None = None

    def _published(self) -> int:
        return sum(group.messages for group in self.groups) - self._since

    def join(self, group: Group) -> None:
        """Get the messages of a group from now on."""
        self.groups[group] = self.publisher.messages
        self.exclude(group.messages)

    def part(self, group: Group) -> None:
        """Not get them any more; those that there were still count."""
        del self.groups[group]
        self.exclude(-group.messages)


class _Handle:
    """Something that a connection has in a hub, until it is closed or this is ended."""

    __slots__ = ("_ended", "_hub", "_member")

    def __init__(self, hub: Hub, member: Member) -> None:
        self._hub = hub
        self._member = member
        self._ended = False

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        raise NotImplementedError

    @property
    def connection(self) -> Any:
        """The connection; None once it has left the hub."""
        return self._member.connection


class HubSubscription(_Handle):
    """That a connection receives what is published to some topics, until it is closed or this is ended.

    It is a context manager, which ends it. The queue belongs to the connection: what is said of it holds for all that
    the connection gets from the hub.
    """

    __slots__ = ("_connection", "topics")

    topics: tuple[str, ...]
    """Topics and patterns."""

    def __init__(self, hub: Hub, member: Member, topics: tuple[str, ...], connection: Any = None) -> None:
        super().__init__(hub, member)
        self.topics = topics
        self._connection = connection

    def __enter__(self) -> HubSubscription:
        return self

    def __repr__(self) -> str:
        return f"<HubSubscription to {', '.join(self.topics)} of {self._hub!r}{'' if self.active else ', ended'}>"

    @property
    def connection(self) -> Any:
        """The connection; None once it has left the hub, but for what callbacks get."""
        connection = self._member.connection
        return self._connection if connection is None else connection

    @property
    def active(self) -> bool:
        """Whether the connection is subscribed to any of the topics."""
        return any((group := self._hub._groups.get(name)) and group in self._member.groups for name in self.topics)

    @property
    def lag(self) -> Waiting:
        """What waits for the connection, messages of this tick included."""
        return self._member.lag

    @property
    def dropped(self) -> int:
        """Messages that the connection never gets."""
        return self._member.dropped

    @property
    def conflated(self) -> int:
        """Messages that were replaced by newer ones of the same key."""
        return self._member.conflated

    @property
    def queued(self) -> int:
        """Messages that wait for the connection, but for those of this tick."""
        return self._member.queued

    def stats(self) -> SubscriptionStats:
        """Return what became of all messages for the connection so far; once it has left the hub, until then."""
        return self._member.stats()

    def unsubscribe(self) -> None:
        """End it, as `Hub.unsubscribe()` does. A second time does nothing."""
        if not self._ended:
            self._ended = True
            self._hub._leave(self._member, self.topics)

    _end = unsubscribe


class Registration(_Handle):
    """That a connection is one of a user's, until it is closed or this is ended. A context manager, which ends it."""

    __slots__ = ("user",)

    user: Hashable
    """The user."""

    def __init__(self, hub: Hub, member: Member, user: Hashable) -> None:
        super().__init__(hub, member)
        self.user = user

    def __enter__(self) -> Registration:
        return self

    def __repr__(self) -> str:
        return f"<Registration of {self.user!r} in {self._hub!r}>"

    def unregister(self) -> None:
        """End it. A second time does nothing."""
        if not self._ended:
            self._ended = True
            self._hub._unregister(self._member, self.user)

    _end = unregister


class Hub(Publisher):
    """Publishes messages to topics, which come with their first subscriber and go with the last one.

    A topic is a name of tokens between dots, as `orders.eu.42`. To subscribe, patterns are taken, too: `*` stands for
    one token, `>` at the end for one or more. A connection that gets a message by several of them gets it once.

    What is published in one iteration of the event loop leaves at its end, or at `flush()`, in a single system call for
    each connection, in the order in which it was published, whatever the topic. A connection that does not keep up has
    one queue for all of its topics, and the policy bounds that. What `Channel` says of order, threads and event loops
    holds here, too.

    Args:
        slow: What is done about connections that do not keep up. With `Conflate`, newer messages replace those of the
            same topic and key.
        history: How many of the last messages of a topic a new subscriber gets first. They are kept for every topic
            that was ever published to, until `forget()` is called for it; so are last values.
        last_values: Of how many keys in each topic the last message is kept, which a new subscriber gets first; beyond,
            those that were not published for longest are forgotten. Messages without a key are not kept.
        name: What it is called in log records.
        notsent_lowat: See `Channel`.
        on_join: Called with a user and None soon after the first connection of the user is there, and with a user and a
            topic after the first one of the user's connections has subscribed to it.
        on_leave: Called with the same after the last one has left.
        on_drop: Called with a `HubSubscription` of all topics and the number of messages that were dropped, soon after.
        on_disconnect: Called with the `HubSubscription` that was the reason to close its connection.
        on_recover: Called with a `HubSubscription` that had lost messages, when it has kept up for a second.

    Raises:
        TypeError: If `slow` is no policy.
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
        on_join: Callable[[Any, str | None], object] | None = None,
        on_leave: Callable[[Any, str | None], object] | None = None,
        on_drop: Callable[[HubSubscription, int], object] | None = None,
        on_disconnect: Callable[[HubSubscription], object] | None = None,
        on_recover: Callable[[HubSubscription], object] | None = None,
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
        if last_values < 0:
            raise ValueError(f"last_values must not be negative, but is {last_values}")
        self.on_join = on_join
        self.on_leave = on_leave
        self._history = history
        self._last_values = last_values
        self._groups: dict[str, Group] = {}  # of topics and patterns
        self._patterns: PatternTree[Group] = PatternTree()
        self._pattern_count = 0
        self._users: dict[Hashable, Group] = {}
        self._memories: dict[str, Memory] = {}
        self._routes: dict[str, tuple[Group, ...]] = {}
        self._relay: Relay | None = None

    # ---- Subscribing

    def subscribe(self, connection: Any, *topics: str) -> HubSubscription:
        """Have a connection get what is published to some topics from now on.

        It first gets the history and the last values of those topics of which it did not get the messages already, in
        the order in which they were published, and then what is published; nothing is missing or doubled in between.

        Args:
            connection: Any that a `Channel` takes.
            topics: Topics and patterns. It may be subscribed to some of them already.

        Raises:
            TypeError: If there are no topics, or one of them is no string, or `connection` is none that is supported.
            ValueError: If one of them is neither a topic nor a pattern.
            RuntimeError: If the connection belongs to another event loop, or is not open.
        """
        if not topics:
            raise TypeError("subscribe() needs at least one topic")
        names = tuple(check_topic_or_pattern(name) for name in topics)
        member = self._admit(connection)
        outbox = self._bind()
        assert member.outlet is not None
        slot = member.outlet.slot
        replayed: dict[int, Entry] = {}
        joined: list[str] = []
        for name in names:
            group = self._groups.get(name)
            joined.append(name if group is None else group.name)  # so that each name is kept once
            if group is not None and group in member.groups:
                continue
            if self._memories:
                self._remember(member, name, replayed)
            group = group or self._make(name)
            group.members.add(slot)
            member.join(group)
            if member.user is not None and not self._is_user_in(member.user, group, but=slot):
                self._tell(self.on_join, member.user, group)
        for number in sorted(replayed):
            outbox.roster.append(slot, outbox.enter(replayed[number]))
        member.exclude(-len(replayed))
        return HubSubscription(self, member, tuple(joined))

    def _admit(self, connection: Any) -> Member:
        """Return what a connection has here, be it new."""
        outbox = self._bind()
        connection = adapt(connection)
        outlet = outbox.outlet_of(connection)
        member: Member | None = self._subscriptions.get(outlet.slot)
        if member is None:
            member = self._subscriptions[outlet.slot] = Member(self, outlet)
            self._prepare_socket(connection)
            outlet.refresh()
        return member

    def _remember(self, member: Member, name: str, replayed: dict[int, Entry]) -> None:
        """Add what a connection that joins a topic or a pattern is to get first."""
        if is_pattern(name):
            topics = [topic for topic in self._memories if matches(name, topic)]
        else:
            topics = [name] if name in self._memories else []
        for topic in topics:
            if not any(group in member.groups for group in self._route(topic)):
                memory = self._memories[topic]
                for message in (*memory.values.values(), *memory.history):
                    if len(message.topics) > 1:
                        if self._has_got(member, message):
                            continue
                        if message.had is None:
                            message.had = WeakSet()
                        message.had.add(member)
                    replayed[message.number] = message.entry

    def _has_got(self, member: Member, message: Remembered) -> bool:
        """Whether a connection got a message to several topics by one of those to which it is subscribed."""
        had = message.had is not None and member in message.had
        return any(
            group in member.groups and (had or member.groups[group] < message.number)
            for topic in message.topics
            for group in self._route(topic)
        )

    def unsubscribe(self, connection: Any, *topics: str) -> None:
        """Have a connection not get any more what is published to some topics; without any, to all of its topics.

        Those to which it is not subscribed do not matter. What was published before is sent; but if nothing is left
        that the connection has in the hub, neither topic nor user, what waits since it does not keep up is dropped.

        Raises:
            TypeError: If one of the topics is no string.
            ValueError: If one of them is neither a topic nor a pattern.
            RuntimeError: In another event loop than the hub's, or none.
        """
        self._bind()
        names = [check_topic_or_pattern(name) for name in topics]
        member = self._member_of(connection)
        if member is not None:
            self._leave(member, names or [group.name for group in member.groups if group is not member.user])

    def _member_of(self, connection: Any) -> Member | None:
        for slot in self._slots_of([connection]):
            member: Member = self._subscriptions[slot]
            return member
        return None

    def _leave(self, member: Member, names: Iterable[str]) -> None:
        """Have a connection leave topics and patterns."""
        if member.outlet is None:
            return
        for name in names:
            group = self._groups.get(name)
            if group is not None and group in member.groups:
                self._part(member, group, member.outlet.slot)
        self._end_if_idle(member)

    def _part(self, member: Member, group: Group, slot: int) -> None:
        """Have a connection leave a group that it is in."""
        group.members.remove(slot)
        member.part(group)
        if member.user is not None and not self._is_user_in(member.user, group, but=slot):
            self._tell(self.on_leave, member.user, group)
        if group.empty:
            self._discard(group)

    def _end_if_idle(self, member: Member) -> None:
        if not member.groups and member.outlet is not None:
            member.unsubscribe()

    def remove(self, subscription: Member, outlet: Outlet) -> None:
        """Take leave of a connection."""
        super().remove(subscription, outlet)
        user = subscription.user
        for group in list(subscription.groups):
            if group is not user:
                self._part(subscription, group, outlet.slot)
        if user is not None:
            self._go(subscription, user, outlet.slot)

    def _make(self, name: str) -> Group:
        """Make the group of a topic or a pattern."""
        if is_pattern(name):
            group = Group("pattern", name)
            self._patterns.put(name, group)
            self._pattern_count += 1
            self._routes.clear()
        else:
            group = Group("topic", name)
            self._routes.pop(name, None)
        self._groups[name] = group
        if self._relay is not None:
            self._relay.want(group.kind, name)
        return group

    def _discard(self, group: Group) -> None:
        """Forget a group that nobody is in any more."""
        if group.kind == "user":
            del self._users[group.name]
        else:
            del self._groups[group.name]
            if group.kind == "pattern":
                self._patterns.remove(group.name)
                self._pattern_count -= 1
                self._routes.clear()
            else:
                self._routes.pop(group.name, None)
        if self._relay is not None:
            self._relay.unwant(group.kind, group.name)

    def _route(self, topic: str) -> tuple[Group, ...]:
        """Return who gets what is published to a topic."""
        route = self._routes.get(topic)
        if route is None:
            group = self._groups.get(topic)
            route = (*([] if group is None else [group]), *self._patterns.matching(topic))
            if len(self._routes) >= ROUTES:
                self._routes.clear()
            self._routes[topic] = route
        return route

    # ---- Users

    def register(self, connection: Any, user: Hashable) -> Registration:
        """Have a connection be one of a user's, to which `send()` sends, until it is closed or this is ended.

        Args:
            connection: Any that a `Channel` takes.
            user: Whose it is; hashable, and not None. A user may have several connections. With a relay, a str or an
                int.

        Raises:
            TypeError: If `user` is not hashable or None, or with a relay neither a str nor an int, or `connection` is
                none that is supported.
            RuntimeError: If the connection is another user's, belongs to another event loop, or is not open.
        """
        hash(user)
        if user is None:
            raise TypeError("user must not be None")
        if self._relay is not None:
            self._relay.check("user", (user,), None, ())
        member = self._admit(connection)
        if member.user is not None:
            if member.user.name != user:
                raise RuntimeError(f"the connection is registered for {member.user.name!r}")
            return Registration(self, member, user)
        assert member.outlet is not None
        group = self._users.get(user)
        if group is None:
            group = self._users[user] = Group("user", user)
            if self._relay is not None:
                self._relay.want("user", user)
            self._tell(self.on_join, group, None)
        slot = member.outlet.slot
        member.user = group
        for topic in member.groups:
            if not self._is_user_in(group, topic, but=slot):
                self._tell(self.on_join, group, topic)
        group.members.add(slot)
        member.join(group)
        return Registration(self, member, user)

    def _unregister(self, member: Member, user: Hashable) -> None:
        if member.outlet is not None and member.user is not None and member.user.name == user:
            self._go(member, member.user, member.outlet.slot)
            self._end_if_idle(member)

    def _go(self, member: Member, user: Group, slot: int) -> None:
        """Have a connection not be the user's any more."""
        member.user = None
        for topic in member.groups:
            if topic is not user and not self._is_user_in(user, topic, but=slot):
                self._tell(self.on_leave, user, topic)
        self._part(member, user, slot)
        if user.empty:
            self._tell(self.on_leave, user, None)

    def _is_user_in(self, user: Group, group: Group, but: int) -> bool:
        """Whether any other connection of a user's is in a group."""
        return any(slot != but and group in self._subscriptions[slot].groups for slot in user.members.slots)

    def _tell(self, callback: Callable[..., object] | None, user: Group, group: Group | None) -> None:
        if callback is not None and (group is None or group.kind != "user"):
            self.report(callback, user.name, None if group is None else group.name)

    # ---- Publishing

    def publish(
        self,
        topic: str | Iterable[str],
        message: Message,
        *,
        key: Hashable = None,
        exclude: Iterable[Any] = (),
        exclude_users: Iterable[Hashable] = (),
    ) -> None:
        """Send a message to all that are subscribed to a topic, at the end of this iteration of the event loop.

        Args:
            topic: The topic; or several, and whoever is subscribed to more than one of them gets the message once.
            message: `str` is sent as a Text frame; `bytes`, `bytearray` and `memoryview` as a Binary frame; a
                `PreparedMessage` as what it was prepared for.
            key: What the message is about, for `Conflate` and `last_values`; with a relay, what JSON can say.
            exclude: Connections that are not to get it, as the one that it came from.
            exclude_users: Users who are not to get it, in whatever process they are connected.

        Raises:
            TypeError: If `message` has none of these types, a topic is no string, or `key` is not hashable, or with a
                relay not one of JSON's.
            ValueError: If a topic is none, or a pattern; or if there is none.
            RuntimeError: In another event loop than the hub's, or none.
        """
        self._bind()
        names = (topic,) if type(topic) is str and topic in self._routes else _topics(topic)
        prepared = prepare(message)
        hash(key)
        users = _users(exclude_users)
        if self._relay is not None:
            self._relay.check("topic", names, key, users)
        self.deliver(names, prepared, key, self._slots_of(exclude) | self.slots_of_users(users))
        if self._relay is not None:
            self._relay.forward("topic", names, prepared, key, users)

    def publish_many(self, items: Iterable[tuple[Any, ...]]) -> None:
        """Publish several messages, which leave together, or none of them if there is an error in one.

        Args:
            items: For each message its topic, or several, the message, and its key if it has one.

        Raises:
            TypeError, RuntimeError: As `publish()` does.
            ValueError: As `publish()` does; or if an item has not two or three parts.
        """
        self._bind()
        checked: list[tuple[tuple[str, ...], PreparedMessage, Hashable]] = []
        for item in items:
            if not 2 <= len(item) <= 3:
                raise ValueError(f"an item must be (topic, message) or (topic, message, key), not {item!r}")
            names, prepared, key = _topics(item[0]), prepare(item[1]), item[2] if len(item) == 3 else None
            hash(key)
            if self._relay is not None:
                self._relay.check("topic", names, key, ())
            checked.append((names, prepared, key))
        for names, prepared, key in checked:
            self.deliver(names, prepared, key, set())
            if self._relay is not None:
                self._relay.forward("topic", names, prepared, key, ())

    def send(self, user: Hashable, message: Message, *, key: Hashable = None) -> int:
        """Send a message to all connections of a user, at the end of this iteration of the event loop.

        Args:
            user: The user.
            message: As in `publish()`.
            key: For `Conflate`.

        Returns:
            To how many connections of this process.

        Raises:
            TypeError: If `message` has another type, `user` or `key` is not hashable, or with a relay not of a type
                that it can carry.
            RuntimeError: In another event loop than the hub's, or none.
        """
        self._bind()
        prepared = prepare(message)
        hash(key)
        if self._relay is not None:
            self._relay.check("user", (user,), key, ())
        count = self.deliver_to_user(user, prepared, key)
        if self._relay is not None:
            self._relay.forward("user", (user,), prepared, key, ())
        return count

    def publish_threadsafe(
        self,
        topic: str | Iterable[str],
        message: Message,
        *,
        key: Hashable = None,
        exclude: Iterable[Any] = (),
        exclude_users: Iterable[Hashable] = (),
    ) -> None:
        """Publish from any thread: soon, in the hub's event loop.

        Raises:
            TypeError, ValueError: As `publish()` does.
            RuntimeError: If the hub has not been used in its event loop yet, or that is closed.
        """
        loop = self._loop_of_thread()
        names, prepared, excluded, users = _topics(topic), prepare(message), list(exclude), _users(exclude_users)
        hash(key)
        loop.call_soon_threadsafe(lambda: self.publish(names, prepared, key=key, exclude=excluded, exclude_users=users))

    def deliver(self, names: tuple[str, ...], message: PreparedMessage, key: Hashable, excluded: set[int]) -> None:
        """Send a message to those who are in this process; for relays."""
        groups: Sequence[Group]
        if len(names) == 1:
            groups = self._route(names[0])
        else:
            groups = list(dict.fromkeys(itertools.chain.from_iterable(map(self._route, names))))
        conflated_by = None if key is None else (names, key)
        entry = self._send(groups, message, conflated_by, excluded)
        if self._history or (self._last_values and key is not None):
            remembered = Remembered(self.messages, entry, names)
            for name in names:
                memory = self._memories.get(name)
                if memory is None:
                    memory = self._memories[name] = Memory(self._history)
                memory.add(remembered, key, self._last_values)

    def deliver_to_user(self, user: Hashable, message: PreparedMessage, key: Hashable) -> int:
        """Send a message to those connections of a user that are in this process; for relays."""
        group = self._users.get(user)
        self._send([] if group is None else [group], message, None if key is None else ((user,), "user", key), set())
        return 0 if group is None else len(group.members)

    def _send(self, groups: Sequence[Group], message: PreparedMessage, key: Hashable, excluded: set[int]) -> Entry:
        outbox = self._bind()
        self.messages += 1
        self.bytes += message.size
        largest = groups[0] if len(groups) == 1 else max(groups, key=lambda group: len(group.members), default=None)
        encodings = encodings_of(message) if largest is None else largest.encodings(message)
        entry = Entry(self, message, encodings, key)
        if largest is None:
            return entry
        for slot in excluded:
            member: Member = self._subscriptions[slot]
            member.exclude(sum(group in member.groups for group in groups))
        number = -1
        already: list[int] = []
        for group in groups:
            group.messages += 1
            group.bytes += message.size
            if len(group.members):
                if number < 0:
                    number = outbox.enter(entry)
                outbox.roster.publish(group.members, number, excluded, already)
            if group.streams:
                for stream in list(group.streams):
                    stream.put(message)
            elif group.empty:
                self._discard(group)  # of a stream that is gone
        for slot in already:
            self._subscriptions[slot].exclude()
        return entry

    def slots_of_topics(self, topics: Iterable[str]) -> set[int]:
        """Return the slots of those who get the messages of any of some topics; for relays."""
        return {slot for topic in topics for group in self._route(topic) for slot in group.members.slots}

    def wants(self, topic: str) -> bool:
        """Whether anybody gets what is published to a topic; for relays."""
        return bool(self._route(topic))

    def slots_of_users(self, users: Iterable[Hashable]) -> set[int]:
        """Return the slots of the connections of some users; for relays."""
        return {slot for user in users if (group := self._users.get(user)) for slot in group.members.slots}

    # ---- What newcomers get

    def last(self, topic: str) -> dict[Hashable, str | bytes]:
        """Return the last message of each key of a topic that is kept.

        Raises:
            TypeError, ValueError: If it is no topic.
        """
        memory = self._memories.get(check_topic(topic))
        values = {} if memory is None else memory.values
        return {
            key: entry.message.data.decode() if entry.message.text else entry.message.data
            for key, entry in ((key, message.entry) for key, message in values.items())
        }

    def forget(self, topic: str, *, key: Hashable = None) -> None:
        """Forget the history and the last values of a topic, or the last value of one of its keys alone.

        Raises:
            TypeError, ValueError: If it is no topic.
        """
        memory = self._memories.get(check_topic(topic))
        if memory is None:
            return
        if key is not None:
            memory.values.pop(key, None)
        if key is None or not (memory.values or memory.history):
            del self._memories[topic]

    # ---- Looking

    def channel(self, topic: str) -> HubChannel:
        """Return a topic, or a pattern, as what looks like a channel. To make it, and to have it, costs nothing.

        Raises:
            TypeError, ValueError: If it is neither.
        """
        return HubChannel(self, check_topic_or_pattern(topic))

    def topics(self, connection: Any = None) -> list[str]:
        """Return the topics and patterns that somebody, or a connection, is subscribed to."""
        if connection is None:
            return list(self._groups)
        member = self._member_of(connection)
        return [] if member is None else [group.name for group in member.groups if group is not member.user]

    def subscribers(self, topic: str) -> list[Any]:
        """Return the connections that get what is published to a topic, by its name or by a pattern.

        Of a pattern, it is those that are subscribed to it.

        Raises:
            TypeError, ValueError: If it is neither.
        """
        return [self._subscriptions[slot].connection for slot in self._slots_in(check_topic_or_pattern(topic))]

    def count(self, topic: str) -> int:
        """Return how many connections get what is published to a topic, or are subscribed to a pattern."""
        return len(self._slots_in(check_topic_or_pattern(topic)))

    def _slots_in(self, topic: str) -> list[int]:
        if is_pattern(topic):
            group = self._groups.get(topic)
            return [] if group is None else list(group.members.slots)
        return list(dict.fromkeys(slot for group in self._route(topic) for slot in group.members.slots))

    def users(self, topic: str | None = None) -> list[Any]:
        """Return the users who are on, or those of them who get what is published to a topic."""
        if topic is None:
            return list(self._users)
        slots = self._slots_in(check_topic_or_pattern(topic))
        members: Iterator[Member] = (self._subscriptions[slot] for slot in slots)
        return list(dict.fromkeys(member.user.name for member in members if member.user is not None))

    def connections(self, user: Hashable) -> list[Any]:
        """Return the connections of a user."""
        group = self._users.get(user)
        return [] if group is None else [self._subscriptions[slot].connection for slot in group.members.slots]

    def stats(self) -> HubStats:
        """Return what became of the messages so far."""
        topics = len(self._groups) - self._pattern_count
        return HubStats(*self._counts(), topics, self._pattern_count, len(self._users))

    def report(self, callback: Callable[..., object] | None, *arguments: Any) -> None:
        """Call back soon: not in the middle of sending."""
        if callback is not None and arguments and isinstance(arguments[0], Member):
            member = arguments[0]
            topics = tuple(group.name for group in member.groups if group is not member.user)
            arguments = (HubSubscription(self, member, topics, member.connection), *arguments[1:])
        super().report(callback, *arguments)

    # ---- As a stream

    def stream(self, topic: str, *, max_messages: int = STREAM_BOUND) -> Stream:
        """Return an iterator over what is published to a topic, or to those that match a pattern, from now on.

        Args:
            topic: Topic or pattern.
            max_messages: How many messages wait at most, if whoever iterates does not keep up. Beyond, the oldest are
                dropped.

        Raises:
            TypeError: If `topic` is no string.
            ValueError: If `topic` is neither a topic nor a pattern, or `max_messages` is not positive.
        """
        check_topic_or_pattern(topic)
        if max_messages <= 0:
            raise ValueError(f"max_messages must be positive, not {max_messages}")
        self._bind()
        group = self._groups.get(topic) or self._make(topic)
        if group.streams is None:
            group.streams = WeakSet()
        return HubStream(self, group, group.streams, max_messages)

    def discard_if_empty(self, group: Group) -> None:
        """Forget a group, unless somebody is in it."""
        if group.empty and self._groups.get(group.name) is group:
            self._discard(group)

    # ---- For relays

    def attach(self, relay: Relay | None) -> list[tuple[Kind, Any]]:
        """Have a relay be told what is published here, and who is here; None for none. Return who is here now."""
        if relay is not None and self._relay is not None:
            raise RuntimeError("the Hub has a relay already")
        self._bind()
        self._relay = relay
        return [(group.kind, group.name) for group in (*self._groups.values(), *self._users.values())]


class HubStream(Stream):
    """The messages of a topic, or of a pattern, which may go with it."""

    def __init__(self, hub: Hub, group: Group, streams: WeakSet[Stream], max_messages: int) -> None:
        super().__init__(streams, max_messages)
        self._hub = hub
        self._group = group

    def close(self) -> None:
        """End it."""
        super().close()
        self._hub.discard_if_empty(self._group)

    def __del__(self) -> None:  # in whatever thread
        loop = self._hub.loop
        if not self._closed and loop is not None:
            with contextlib.suppress(RuntimeError):  # it may be closed
                loop.call_soon_threadsafe(self._hub.discard_if_empty, self._group)


class HubChannel:
    """A topic of a hub, or a pattern, with the methods of a `Channel`."""

    __slots__ = ("hub", "name")

    def __init__(self, hub: Hub, name: str) -> None:
        self.hub = hub
        self.name = name

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

    def subscribe(self, connection: Any) -> HubSubscription:
        """See `Hub.subscribe()`."""
        return self.hub.subscribe(connection, self.name)

    def unsubscribe(self, connection: Any) -> None:
        """See `Hub.unsubscribe()`."""
        self.hub.unsubscribe(connection, self.name)

    def publish(
        self,
        message: Message,
        *,
        key: Hashable = None,
        exclude: Iterable[Any] = (),
        exclude_users: Iterable[Hashable] = (),
    ) -> None:
        """See `Hub.publish()`."""
        self.hub.publish(self.name, message, key=key, exclude=exclude, exclude_users=exclude_users)

    def publish_threadsafe(
        self,
        message: Message,
        *,
        key: Hashable = None,
        exclude: Iterable[Any] = (),
        exclude_users: Iterable[Hashable] = (),
    ) -> None:
        """See `Hub.publish_threadsafe()`."""
        self.hub.publish_threadsafe(self.name, message, key=key, exclude=exclude, exclude_users=exclude_users)

    def flush(self) -> None:
        """See `Hub.flush()`."""
        self.hub.flush()

    def stats(self) -> TopicStats:
        """Return what was published."""
        group = self.hub._groups.get(self.name)
        counts = (0, 0) if group is None else (group.messages, group.bytes)
        return TopicStats(*counts, len(self))

    def stream(self, *, max_messages: int = STREAM_BOUND) -> Stream:
        """See `Hub.stream()`."""
        return self.hub.stream(self.name, max_messages=max_messages)

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        return self.stream()


def _topics(topic: str | Iterable[str]) -> tuple[str, ...]:
    """Return the topics that are published to, each once."""
    if isinstance(topic, str):
        return (check_topic(topic),)
    if not isinstance(topic, Iterable):
        raise TypeError(f"topic must be a str, or several, not {type(topic).__name__}")
    names = tuple(dict.fromkeys(check_topic(name) for name in topic))
    if not names:
        raise ValueError("there must be at least one topic")
    return names


def _users(users: Iterable[Hashable]) -> tuple[Hashable, ...]:
    """Return users that are left out."""
    if isinstance(users, str):
        raise TypeError("exclude_users must be several users, not a str; write [user]")
    return tuple(users)
