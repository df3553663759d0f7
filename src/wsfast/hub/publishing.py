"""Publishing: sends messages to topics and users of a hub, and retains them for new subscribers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeAlias

from wsfast._arguments import connections_in, several
from wsfast._backlog import Entry
from wsfast._core import core
from wsfast._encoding.message import Message, PreparedMessage, publishable
from wsfast._encoding.publication import enveloped, publication_of
from wsfast._encoding.shared import encodings_of
from wsfast._reentrancy import consistent, exclusive

from .filters import ALL, NO_TAGS, Tags, check_tags
from .membership import Membership
from .positions import Position
from .registry import Group, Kind, Watcher
from .retained import Retained
from .subscriptions import Member
from .topics import check_topic

__all__ = ["Publishing", "topics_of", "users_of"]

_Item = tuple[tuple[str, ...], PreparedMessage, Hashable, Tags]
"""Topics, the message, its key and its tags."""


_Publication: TypeAlias = tuple[
    Entry | None, int, set[int], list[tuple[Group, int, int, int]], list[tuple[Member, int]], list[int], tuple[int, int]
]
"""The changes that one message makes, as absolute numbers, computed before any of them is applied.

- The entry (None if nobody gets it and it is not retained), its number in the tick table (-1 if nobody gets it), and
  the excluded slots.
- The groups, each with its new counts of messages and bytes, and the mask of the message for its filters.
- Members who get the message less often than their groups do, each with its count of messages that were not for it.
- Slots that got the message by another group already, once for each repetition, appended as they are found.
- The hub's new counts of messages and bytes.
"""


class Publishing(Membership):
    """The part of a `Hub` that publishes. See `Hub` for the arguments."""

    def publish(
        self,
        topic: str | Iterable[str],
        message: Message,
        *,
        key: Hashable = None,
        exclude: Iterable[object] = (),
        exclude_users: Iterable[Hashable] = (),
        tags: Iterable[str] | None = None,
    ) -> None:
        """Send a message to all subscribers of a topic, at the end of this iteration of the event loop.

        Args:
            topic: The topic, or several topics. A subscriber of more than one of them gets the message once; in
                a hub with envelopes, once for each.
            message: `str` is sent as a Text frame; `bytes`, `bytearray` and `memoryview` as a Binary frame; a
                `PreparedMessage` as the frame that it was prepared for.
            key: Identifies the subject of the message, for `Conflate` and `last_values`. With a relay, it must be None,
                a str, a number, a bool or a tuple of these.
            exclude: Connections that do not get the message, for example the one that sent it. A client that comes
                back by another connection gets it then.
            exclude_users: Users who do not get the message, in any process, nor later from the history.
            tags: Of the connections that were subscribed with tags, only those get the message that asked for one of
                these: 1 to 64 strings of at most 256 characters. None if all subscribers get it.

        Raises:
            TypeError: If `message` has none of these types, a topic is not a string, `key` is not hashable, `tags` is
                not an iterable of strings, or with a relay `key` has a type that the relay cannot carry.
            ValueError: If there is no topic, a topic is not valid or is a pattern, or `tags` is empty, has more than 64
                tags, or one that is not valid.
            RuntimeError: If it is called outside the hub's event loop.
        """
        self._bind()
        names = (topic,) if type(topic) is str and topic in self._registry.routes else topics_of(topic)
        users = users_of(exclude_users) if exclude_users != () else ()
        item = self._checked(names, message, key, users, NO_TAGS if tags is None else check_tags(tags))
        self._publish((item,), connections_in("exclude", exclude) if exclude != () else (), users)

    def publish_many(self, items: Iterable[tuple[Any, ...]]) -> None:
        """Publish several messages, which are sent together. If one of them is wrong, none is published.

        If comparing keys raises an exception, publishing stops at that message.

        Args:
            items: Tuples of topic and message, or of topic, message and key. In place of a topic, there may be several
                topics.

        Raises:
            TypeError, RuntimeError: See `publish()`.
            ValueError: See `publish()`; also if an item does not have two or three parts.
        """
        self._bind()
        checked: list[_Item] = []
        for item in items:
            if isinstance(item, (str, bytes)) or not 2 <= len(item) <= 3:
                raise ValueError(f"an item must be (topic, message) or (topic, message, key), not {item!r}")
            checked.append(self._checked(topics_of(item[0]), item[1], item[2] if len(item) == 3 else None, (), NO_TAGS))
        self._publish(checked, (), ())

    def send(self, user: Hashable, message: Message, *, key: Hashable = None) -> int:
        """Send a message to all connections of a user, at the end of this iteration of the event loop.

        Args:
            user: The user.
            message: See `publish()`.
            key: Conflation key, for `Conflate`.

        Returns:
            The number of the user's connections in this process.

        Raises:
            TypeError: If `message` has an unsupported type, `user` or `key` is not hashable, or with a relay either has
                a type that the relay cannot carry.
            RuntimeError: If it is called outside the hub's event loop.
        """
        self._bind()
        prepared = publishable(message)
        hash(key)
        if self._registry.relay is not None:
            self._registry.relay.check("user", (user,), key, ())
        group = self._registry.users.get(user)
        self._send(user, prepared, key, forward=True)
        return 0 if group is None else len(group.members)

    def publish_threadsafe(
        self,
        topic: str | Iterable[str],
        message: Message,
        *,
        key: Hashable = None,
        exclude: Iterable[object] = (),
        exclude_users: Iterable[Hashable] = (),
        tags: Iterable[str] | None = None,
    ) -> None:
        """Publish from any thread. The message is published soon, in the hub's event loop.

        Raises:
            TypeError, ValueError: See `publish()`.
            RuntimeError: If the hub has not been used in its event loop yet, or the event loop is closed.
        """
        loop = self._loop_of_thread()
        names, prepared, users = topics_of(topic), publishable(message), users_of(exclude_users)
        excluded, checked = connections_in("exclude", exclude), None if tags is None else check_tags(tags)
        hash(key)

        def publish() -> None:
            self.publish(names, prepared, key=key, exclude=excluded, exclude_users=users, tags=checked)

        loop.call_soon_threadsafe(publish)

    # ---- Retained messages

    def last(self, topic: str) -> dict[Hashable, str | bytes]:
        """Return the last value of each key of a topic, as far as `last_values` keeps them.

        Raises:
            TypeError, ValueError: If `topic` is not a valid topic.
        """
        return self._retained.last(check_topic(topic))

    def forget(self, topic: str, *, key: Hashable = None) -> None:
        """Forget the history and the last values of a topic, or only the last value of one key.

        Raises:
            TypeError, ValueError: If `topic` is not a valid topic.
        """
        self._forget(check_topic(topic), key)

    @exclusive
    def _forget(self, topic: str, key: Hashable) -> None:
        self._retained.forget(topic, key)

    # ---- For relays

    @exclusive
    def deliver(
        self,
        topic: str,
        message: PreparedMessage,
        key: Hashable,
        *,
        exclude_users: Sequence[Hashable] = (),
        publication: Hashable = None,
        topics: tuple[str, ...] = (),
        delivered: Sequence[str] = (),
        exclude: Sequence[Member] = (),
        age: float | None = None,
        tags: Tags = NO_TAGS,
    ) -> None:
        """Send a message from another process to the subscribers in this process.

        Args:
            topic: The topic.
            message: The message.
            key: Its key.
            exclude_users: Users who do not get it.
            publication: Identifies a message to several topics.
            topics: These topics.
            delivered: Those of them for which it was delivered already. Their subscribers do not get it again,
                except in a hub with envelopes.
            exclude: Members who do not get it.
            age: If given, nobody gets it: it is only retained, as a message that is so many seconds old.
            tags: Its tags.
        """
        users = tuple(exclude_users)
        excluded = self._registry.slots_of_users(users) if users else set()
        if self._envelope:
            publication, topics = None, ()
        elif delivered:
            excluded |= self._registry.slots_of_topics(delivered, tags)
        if exclude:
            excluded |= {member._peer.slot for member in exclude if member._peer is not None}
        self._deliver((topic,), message, key, excluded, users, topics or (topic,), tags, publication, age)

    @exclusive
    def restart(self, topic: str) -> None:
        """Begin a new numbering of a topic, because messages of another process are missing."""
        self._retained.restart(topic, self.messages)

    def routes(self, topic: str) -> list[tuple[Kind, str]]:
        """Return the topic and the patterns by which this hub has subscribers to a topic."""
        return [(group.kind, group.name) for group in self._registry.route(topic)]

    def has_user(self, user: Hashable) -> bool:
        """Whether a user has a connection."""
        return user in self._registry.users

    def watch(self, watcher: Watcher | None) -> None:
        """Have a watcher be told what changes about users and connections; None: nobody."""
        self._registry.watcher = watcher

    def holds(self, user: Hashable, name: str | None) -> bool:
        """Whether a user has a connection that is subscribed to a topic or a pattern by its name; None: any."""
        return self._registry.holds(user, name)

    def subscribed(self, name: str) -> int:
        """Return the number of connections that are subscribed to a topic or a pattern by its name."""
        group = self._registry.topics.get(name)
        return 0 if group is None else len(group.members)

    @consistent
    def presences(self) -> list[tuple[Any, str | None]]:
        """Return all users with None, and with each topic and pattern that they are subscribed to."""
        found: list[tuple[Any, str | None]] = []
        for user in list(self._registry.users.values()):
            found.append((user.name, None))
            found += [(user.name, group.name) for group in user.groups]
        return found

    @exclusive
    def locate(self, topic: str, position: Position, *, clear: bool = False) -> None:
        """Number the next messages of a topic from a position that the broker of an ordered relay has given.

        The history is forgotten unless it ends at this position, and in any case if `clear` is true.
        """
        self._retained.locate(topic, position, self.messages, clear=clear)

    def deliver_to_user(self, user: Hashable, message: PreparedMessage, key: Hashable) -> int:
        """Send a message from another process to a user's connections in this process; return their number."""
        group = self._registry.users.get(user)
        self._send(user, message, key)
        return 0 if group is None else len(group.members)

    # ---- Implementation

    def _checked(
        self, names: tuple[str, ...], message: Message, key: Hashable, users: tuple[Hashable, ...], tags: Tags
    ) -> _Item:
        prepared = publishable(message)
        hash(key)
        if self._registry.relay is not None:
            self._registry.relay.check("topic", names, key, users)
        return names, prepared, key, tags

    @exclusive
    def _publish(self, items: Sequence[_Item], connections: Sequence[Any], users: tuple[Hashable, ...]) -> None:
        excluded = self._slots_of(connections) if connections else set()
        if users:
            excluded |= self._registry.slots_of_users(users)
        relay = self._registry.relay
        ordered = relay is not None and relay.ordered  # then the message comes back from the broker
        members = self._members(excluded) if ordered and connections else ()
        for names, message, key, tags in items:
            if not ordered:
                for some in [(name,) for name in names] if self._envelope else [names]:
                    self._deliver(some, message, key, excluded, users, some, tags)
            if relay is not None:
                relay.forward("topic", names, message, key, users, members, tags)

    def _deliver(
        self,
        names: tuple[str, ...],
        message: PreparedMessage,
        key: Hashable,
        excluded: set[int],
        users: tuple[Hashable, ...],
        topics: tuple[str, ...],
        tags: Tags,
        publication: Hashable = None,
        age: float | None = None,
    ) -> None:
        """Send a message to the subscribers in this process, and retain it. See `Retained` for the last arguments.

        If there is an age in seconds, it is only retained.
        """
        groups: tuple[Group, ...] = ()
        if age is None:
            groups = self._registry.route(names[0]) if len(names) == 1 else self._registry.routes_of(names)
        conflated_by = None if key is None else (names, key)
        targets = self._retained.prepare(names, key)
        if not targets:
            self._enqueue(groups, message, conflated_by, excluded, tags)
            return
        sent, number, now = message, self.messages + 1, time.monotonic()
        if self._retained.numbers:
            envelope = enveloped(message, names[0], targets[0][2]) if self._envelope else None
            sent = publication_of(message, f"{self._retained.epoch}-{number}", envelope)

        if age is not None:
            for _, topic, _, _ in targets:
                topic.gone = number  # positions in all messages tell nothing about it

        def retain(entry: Entry) -> None:
            self._retained.add(targets, Retained(number, entry, message, topics, key, users, publication, tags))
            if age is not None:
                entry.time = now - age

        self._enqueue(groups, sent, conflated_by, excluded, tags, retain, message)

    @exclusive
    def _send(self, user: Hashable, message: PreparedMessage, key: Hashable, *, forward: bool = False) -> None:
        """Send a message to a user's connections."""
        group = self._registry.users.get(user)
        conflated_by = None if key is None else ((user,), "user", key)
        self._enqueue(() if group is None else (group,), message, conflated_by, set(), NO_TAGS)
        if forward and self._registry.relay is not None:
            self._registry.relay.forward("user", (user,), message, key, (), (), NO_TAGS)

    def _enqueue(
        self,
        groups: Sequence[Group],
        message: PreparedMessage,
        key: Hashable,
        excluded: set[int],
        tags: Tags,
        retain: Callable[[Entry], None] | None = None,
        original: PreparedMessage | None = None,
    ) -> None:
        """Publish a message to groups; it is sent at the end of this iteration of the event loop.

        Streams get the original, if there is one.
        """
        if not groups and retain is None:
            self._count(self.messages + 1, self.bytes + message.size)
            return
        dispatcher = self._dispatcher
        assert dispatcher is not None
        members, receivers, entry, size = 0, 0, None, message.size
        counted: list[tuple[Group, int, int, int]] = []
        for group in groups:
            mask = ALL if group.filters is None else group.filters.mask_of(tags)
            count = len(group.members)
            members += count
            receivers += count if mask == ALL else group.members.count(mask)
            counted.append((group, group.messages + 1, group.bytes + size, mask))
        if members or retain is not None:
            entry = Entry(self, message, encodings_of(message, receivers), key)
        publication: _Publication = (
            entry,
            dispatcher.enter(entry) if entry is not None and members else -1,  # filters count as well
            excluded,
            counted,
            self._left_out(excluded, groups, tags) if excluded else [],
            [],
            (self.messages + 1, self.bytes + size),
        )
        with core.collector_paused:  # finalizers may ask for the counts
            try:
                self._commit(publication, retain)
            except BaseException:  # an interrupt: the second call does what the first did not
                self._commit(publication, retain)
                raise
        for group in groups:
            if group.streams:
                group.streams.put(original or message)
            elif group.empty:
                self._registry.discard(group)  # its stream was garbage collected

    def _left_out(self, slots: set[int], groups: Sequence[Group], tags: Tags) -> list[tuple[Member, int]]:
        """Return excluded members with their new counts. Messages that filters do not let through are counted there."""
        left_out = []
        for one in self._members(slots):
            lets = [group for group in groups if group in one.groups]
            if one._filters is not None:
                lets = [group for group in lets if one.filter_in(group).lets(tags)]
            left_out.append((one, one._since + len(lets)))
        return left_out

    def _commit(self, publication: _Publication, retain: Callable[[Entry], None] | None) -> None:
        """Publish a message, count it and retain it. Running it twice changes nothing."""
        entry, number, excluded, groups, without, already, counts = publication
        assert self._dispatcher is not None
        table = self._dispatcher.table
        for group, messages, size, mask in groups:
            group.messages, group.bytes = messages, size
            if number >= 0:
                table.publish(group.members, number, excluded, already, mask)
        if already:
            repeats = [(self._subscriptions[slot], times) for slot, times in Counter(already).items()]
            without += [(member, member._since + times) for member, times in repeats]
            already[:] = ()
        for member, since in without:
            member._since = since
        self._set_counts(*counts)
        if retain is not None:
            assert entry is not None
            retain(entry)


def topics_of(topic: str | Iterable[str]) -> tuple[str, ...]:
    """Return the topics that are published to, without repetitions."""
    if isinstance(topic, str):
        return (check_topic(topic),)
    if not isinstance(topic, Iterable):
        raise TypeError(f"topic must be a str or an iterable of str, not {type(topic).__name__}")
    names = tuple(dict.fromkeys(check_topic(name) for name in topic))
    if not names:
        raise ValueError("topic must not be empty: give at least one topic")
    return names


def users_of(users: Iterable[Hashable]) -> tuple[Hashable, ...]:
    """Return the excluded users."""
    return tuple(several("exclude_users", "users", users))
