"""The registry of a hub: its topics, patterns and users, and which of them get the messages of a topic."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, Protocol, TypeAlias

from wsfast._core import core
from wsfast._encoding.message import PreparedMessage
from wsfast._publisher import Stream, Streams

from .filters import NO_TAGS, Filters, Tags
from .positions import Position
from .topics import PatternTree, is_pattern

__all__ = [
    "ROUTES",
    "Command",
    "Group",
    "HubStream",
    "Kind",
    "PresenceCallback",
    "Registry",
    "Relay",
    "User",
    "Watcher",
]

Kind: TypeAlias = Literal["topic", "pattern", "user"]


@dataclass(frozen=True, slots=True)
class Command:
    """A call of `Hub.disconnect()`, as it is carried out in every process."""

    user: Hashable
    topic: str | None
    code: int
    reason: str
    message: PreparedMessage | None


class Relay(Protocol):
    """Forwards messages of a hub to the hubs of other processes."""

    @property
    def ordered(self) -> bool:
        """Whether messages to topics come back from the broker, and are delivered only then."""

    def is_loaded(self, topic: str, since: Position | None) -> bool:
        """For an ordered relay, whether the hub's history has what the broker keeps of a topic, as far as is known.

        A client that comes back with a position from another process may know more.
        """

    async def load(self, topics: Mapping[str, Position | None]) -> None:
        """Have the hub's history contain what an ordered relay's broker keeps of topics that have a subscriber.

        Returns soon even if the broker cannot be reached.
        """

    def follows(self, topic: str) -> bool:
        """Whether the relay delivers all messages of a topic, though the topic may have no subscriber."""

    def subscribe(self, kind: Kind, name: Any) -> None:
        """Called when a topic or a pattern gets its first subscriber in this process, or a user a first connection."""

    def unsubscribe(self, kind: Kind, name: Any) -> None:
        """Called when the last of them has left."""

    def forward(
        self,
        kind: Kind,
        names: tuple[Any, ...],
        message: PreparedMessage,
        key: Hashable,
        excluded: tuple[Any, ...],
        members: Collection[Any],
        tags: Tags,
    ) -> None:
        """Send a message to other processes. The excluded users do not get it there.

        Members of this hub who do not get it either when it comes back are given to an ordered relay.
        """

    def command(self, command: Command) -> asyncio.Future[None] | None:
        """Send a command to other processes.

        Returns:
            For an ordered relay, what is done once the messages that were published here before have come back; None
            if there is nothing to wait for.
        """

    def check(self, kind: Kind, names: tuple[Any, ...], key: Hashable, excluded: tuple[Any, ...]) -> None:
        """Check that a message can be forwarded.

        Raises:
            TypeError, ValueError: If it cannot.
        """


class Watcher(Protocol):
    """Is told what changes about users and connections, while it changes. It must not raise."""

    def user_changed(self, user: Any, name: str | None) -> None:
        """Called when a user may have come to a topic or a pattern, or left it; None: the hub."""

    def count_changed(self, name: str) -> None:
        """Called when the number of the connections subscribed to a topic or a pattern may have changed."""


class Group:
    """The subscribers of a topic or a pattern, or the connections of a user."""

    __slots__ = ("bytes", "filters", "kind", "members", "messages", "name", "streams")

    def __init__(self, kind: Kind, name: Any) -> None:
        self.kind = kind
        self.name: Any = name
        self.members: core.Members = core.Members()
        self.messages: int = 0
        self.bytes: int = 0
        self.streams: Streams | None = None
        self.filters: Filters | None = None  # made when a subscriber first has one

    def slots_for(self, tags: Tags) -> list[int]:
        """Return the slots of the members who get a message with some tags."""
        members = self.members
        return members.slots if self.filters is None else members.passing(self.filters.mask_of(tags))

    def filter_of(self, tags: Tags | None) -> core.Filter | None:
        """Return the filter of members who want some tags, for which there is room; None if they want everything."""
        if tags is None:
            return None
        if self.filters is None:
            self.filters = Filters()
        return self.filters.filter_of(tags)

    @property
    def empty(self) -> bool:
        """Whether the group has neither connections nor streams."""
        return not len(self.members) and not self.streams


PresenceCallback: TypeAlias = Callable[[Any, str | None], object]


class User(Group):
    """The connections of a user, with the number of them in each topic or pattern."""

    __slots__ = ("_subscribed",)

    def __init__(self, name: Any) -> None:
        super().__init__("user", name)
        self._subscribed: dict[Group, int] = {}

    def enter(self, group: Group) -> bool:
        """Count one more connection in a group; return whether it is the first."""
        count = self._subscribed.get(group, 0)
        self._subscribed[group] = count + 1
        return not count

    def leave(self, group: Group) -> bool:
        """Count one connection less in a group; return whether it was the last."""
        count = self._subscribed.get(group, 0)
        if count > 1:
            self._subscribed[group] = count - 1
        else:
            self._subscribed.pop(group, None)
        return count == 1

    def is_in(self, group: Group) -> bool:
        """Whether any of the connections is in a group."""
        return group in self._subscribed

    @property
    def groups(self) -> list[Group]:
        """The topics and patterns that any of the connections is in."""
        return list(self._subscribed)

    def recount(self, group: Group, count: int) -> bool | None:
        """Set the number of connections in a group; return whether there are any, or None if that has not changed."""
        before = self._subscribed.pop(group, 0)
        if count:
            self._subscribed[group] = count
        return None if bool(count) == bool(before) else bool(count)


class _Owner(Protocol):
    @property
    def loop(self) -> asyncio.AbstractEventLoop | None: ...

    def discard_if_empty(self, group: Group) -> None:
        """Remove a group that has neither connections nor streams."""


class HubStream(Stream):
    """The messages of a topic or a pattern of a hub, as they are published."""

    group: Group | None = None

    def __init__(self, hub: _Owner, max_messages: int, loop: asyncio.AbstractEventLoop) -> None:
        self._hub = hub
        super().__init__(max_messages, loop)

    def close(self) -> None:
        """End the stream."""
        try:
            super().close()
        finally:
            if self.group is not None:
                self._hub.discard_if_empty(self.group)

    def __del__(self) -> None:  # may run in any thread
        if self.group is not None and not self.closed and (loop := self._hub.loop) is not None:
            with contextlib.suppress(RuntimeError):  # the event loop may be closed
                loop.call_soon_threadsafe(self._hub.discard_if_empty, self.group)


ROUTES = 65536
"""Number of topics whose groups are cached."""


class Registry:
    """Groups that have connections or streams, by name. A relay is told about each that comes or goes."""

    __slots__ = ("_version", "pattern_count", "patterns", "relay", "routes", "topics", "users", "watcher")

    def __init__(self) -> None:
        self.topics: dict[str, Group] = {}
        """Topics and patterns."""
        self.patterns: PatternTree[Group] = PatternTree()
        self.pattern_count: int = 0
        self.users: dict[Hashable, User] = {}
        self.relay: Relay | None = None
        self.watcher: Watcher | None = None
        self.routes: dict[str, tuple[Group, ...]] = {}
        """Cache of the groups that get the messages of each topic."""
        self._version = 0  # changes with each topic and pattern that comes or goes

    def names(self) -> list[tuple[Kind, Any]]:
        """Return the kind and name of each group."""
        return [(group.kind, group.name) for group in chain(list(self.topics.values()), list(self.users.values()))]

    def add_topic(self, name: str) -> Group:
        """Add a topic or pattern that does not exist yet."""
        if is_pattern(name):
            group = Group("pattern", name)
            self.patterns.put(name, group)
            self.pattern_count += 1
        else:
            group = Group("topic", name)
        self.topics[name] = group
        self._forget_routes(group)
        self._notify_relay(group, True)
        return group

    def add_user(self, name: Hashable) -> User:
        """Add a user that does not exist yet."""
        user = self.users[name] = User(name)
        self._notify_relay(user, True)
        return user

    def discard(self, group: Group) -> None:
        """Remove an empty group, unless it has been removed already."""
        if isinstance(group, User):
            if self.users.pop(group.name, None) is None:
                return
        elif self.topics.get(group.name) is not group:
            return
        else:
            if group.kind == "pattern":
                self.patterns.remove(group.name)
                self.pattern_count -= 1
            del self.topics[group.name]
            self._forget_routes(group)
        self._notify_relay(group, False)

    def route(self, topic: str) -> tuple[Group, ...]:
        """Return the groups that get the messages of a topic."""
        route = self.routes.get(topic)
        if route is None:
            version = self._version
            group = self.topics.get(topic)
            route = (*([] if group is None else [group]), *self.patterns.matching(topic))
            if len(self.routes) >= ROUTES:
                self.routes.clear()
            if version == self._version:  # else the groups have changed meanwhile
                self.routes[topic] = route
        return route

    def routes_of(self, topics: Iterable[str]) -> tuple[Group, ...]:
        """Return the groups that get the messages of any of some topics, each once."""
        return tuple(dict.fromkeys(chain.from_iterable(map(self.route, topics))))

    def holds(self, user: Hashable, name: str | None) -> bool:
        """Whether a user has a connection that is subscribed to a topic or a pattern by its name; None: any."""
        found = self.users.get(user)
        if found is None or name is None:
            return found is not None
        group = self.topics.get(name)
        return group is not None and found.is_in(group)

    def slots(self, name: str) -> list[int]:
        """Return the slots of the connections that get the messages of a topic, or that are subscribed to a pattern."""
        if is_pattern(name):
            group = self.topics.get(name)
            return [] if group is None else list(group.members.slots)
        return list(dict.fromkeys(slot for group in self.route(name) for slot in group.members.slots))

    def slots_of_topics(self, topics: Iterable[str], tags: Tags = NO_TAGS) -> set[int]:
        """Return the slots of the connections that get a message with some tags to any of some topics."""
        return {slot for group in self.routes_of(topics) for slot in group.slots_for(tags)}

    def slots_of_users(self, users: Iterable[Hashable]) -> set[int]:
        """Return the slots of the connections of some users."""
        groups = dict.fromkeys(group for user in users if (group := self.users.get(user)))  # each once
        return {slot for group in groups for slot in group.members.slots}

    def _forget_routes(self, group: Group) -> None:
        # Called last, when the old groups can no longer be found.
        self._version += 1
        if group.kind == "pattern":
            self.routes.clear()
        else:
            self.routes.pop(group.name, None)

    def _notify_relay(self, group: Group, present: bool) -> None:
        if self.relay is not None:
            (self.relay.subscribe if present else self.relay.unsubscribe)(group.kind, group.name)
