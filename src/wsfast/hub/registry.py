"""The registry of a hub: its topics, patterns and users, and which of them get what is published to a topic."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from itertools import chain
from typing import Any

from .groups import Group
from .kinds import Kind, Relay
from .presence import User
from .topics import PatternTree, is_pattern

__all__ = ["ROUTES", "Registry"]

ROUTES = 65536
"""Topics whose groups are remembered."""


class Registry:
    """Groups that have somebody, by their names. The relay, if there is one, is told which come and go."""

    __slots__ = ("_version", "pattern_count", "patterns", "relay", "routes", "topics", "users")

    def __init__(self) -> None:
        self.topics: dict[str, Group] = {}
        """Topics and patterns."""
        self.patterns: PatternTree[Group] = PatternTree()
        self.pattern_count: int = 0
        self.users: dict[Hashable, User] = {}
        self.relay: Relay | None = None
        self.routes: dict[str, tuple[Group, ...]] = {}
        """Which groups get what is published to a topic."""
        self._version = 0  # how often topics and patterns have come and gone

    def names(self) -> list[tuple[Kind, Any]]:
        """Return the kind and name of each group."""
        return [(group.kind, group.name) for group in chain(list(self.topics.values()), list(self.users.values()))]

    def add_topic(self, name: str) -> Group:
        """Add a topic or pattern that is not there."""
        if is_pattern(name):
            group = Group("pattern", name)
            self.patterns.put(name, group)
            self.pattern_count += 1
        else:
            group = Group("topic", name)
        self.topics[name] = group
        self._forget_routes(group)
        self._tell(group, True)
        return group

    def add_user(self, name: Hashable) -> User:
        """Add a user who is not there."""
        user = self.users[name] = User(name)
        self._tell(user, True)
        return user

    def discard(self, group: Group) -> None:
        """Remove a group that has nobody any more, unless that was done already."""
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
        self._tell(group, False)

    def route(self, topic: str) -> tuple[Group, ...]:
        """Return the groups that get what is published to a topic."""
        route = self.routes.get(topic)
        if route is None:
            version = self._version
            group = self.topics.get(topic)
            route = (*([] if group is None else [group]), *self.patterns.matching(topic))
            if len(self.routes) >= ROUTES:
                self.routes.clear()
            if version == self._version:  # else the groups are others already
                self.routes[topic] = route
        return route

    def routes_of(self, topics: tuple[str, ...]) -> tuple[Group, ...]:
        """Return the groups that get what is published to any of some topics, each once."""
        return tuple(dict.fromkeys(chain.from_iterable(map(self.route, topics))))

    def slots(self, name: str) -> list[int]:
        """Return the slots of the connections that get what is published to a topic, or are subscribed to a pattern."""
        if is_pattern(name):
            group = self.topics.get(name)
            return [] if group is None else list(group.members.slots)
        return list(dict.fromkeys(slot for group in self.route(name) for slot in group.members.slots))

    def slots_of_topics(self, topics: Iterable[str]) -> set[int]:
        """Return the slots of the connections that get what is published to any of some topics."""
        return {slot for topic in topics for group in self.route(topic) for slot in group.members.slots}

    def slots_of_users(self, users: Iterable[Hashable]) -> set[int]:
        """Return the slots of the connections of some users."""
        return {slot for user in users if (group := self.users.get(user)) for slot in group.members.slots}

    def _forget_routes(self, group: Group) -> None:
        # At the end, when nobody can find the old groups any more.
        self._version += 1
        if group.kind == "pattern":
            self.routes.clear()
        else:
            self.routes.pop(group.name, None)

    def _tell(self, group: Group, present: bool) -> None:
        if self.relay is not None:
            (self.relay.subscribe if present else self.relay.unsubscribe)(group.kind, group.name)
