"""Membership: which connections belong to which topics, patterns and users of a hub."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any

from wsfast._arguments import check_callback, check_integer
from wsfast._core import core
from wsfast._encoding.message import PreparedMessage
from wsfast._publisher import Publisher
from wsfast._reentrancy import exclusive

from .filters import Filtering, Tags
from .positions import History, Position, Since, history_of
from .registry import Group, PresenceCallback, Registry, User
from .retained import Missed, Retained, RetainedMessages
from .subscriptions import HubSubscription, Joining, Member, Registration
from .topics import is_pattern

__all__ = ["Membership"]


class Membership(Publisher):
    """The part of a `Hub` that adds and removes connections. See `Hub` for the arguments.

    Each method that changes something is atomic: a re-entrant call waits until it is done, and a change that an
    exception interrupts is undone.
    """

    def __init__(
        self,
        name: str,
        *,
        history: int | History,
        last_values: int,
        envelope: bool,
        on_join: PresenceCallback | None,
        on_leave: PresenceCallback | None,
        **options: Any,
    ) -> None:
        bounds = history_of(history)
        super().__init__(name, history=bounds.messages, **options)
        check_integer("last_values", last_values, least=0)
        check_callback("on_join", on_join)
        check_callback("on_leave", on_leave)
        if not isinstance(envelope, bool):
            raise TypeError(f"envelope must be a bool, not {envelope!r}")
        self.on_join = on_join
        self.on_leave = on_leave
        self._registry = Registry()
        self._envelope = envelope
        self._retained = RetainedMessages(bounds, last_values, envelope, self._registry.topics)

    @property
    def has_envelopes(self) -> bool:
        """Whether each message is sent with its topic and offset: `Hub(envelope=True)`."""
        return self._envelope

    def _new_subscription(self, peer: core.Peer) -> Member:
        return Member(self, peer, self._bind().calls)

    def _member_of(self, connection: Any) -> Member | None:
        for slot in self._slots_of([connection]):
            member: Member | None = self._subscriptions.get(slot)
            return member
        return None

    def _members(self, slots: Iterable[int]) -> list[Member]:
        """Return the members in some slots, without those that have left."""
        return [member for member in list(map(self._subscriptions.get, slots)) if member is not None]

    # ---- Topics

    @exclusive
    def _subscribe(
        self, subscription: HubSubscription, connection: Any, since: Since | None, tags: Tags | None = None
    ) -> None:
        """Add a connection to the topics of a subscription: for messages with one of some tags, or for all."""
        if tags is not None:
            for name in subscription.topics:
                group = self._registry.topics.get(name)
                if group is not None and group.filters is not None:
                    group.filters.check_room(name, tags)
        member: Member = self._admit(connection)
        joined: list[Group] = []
        replaced: list[tuple[Group, Filtering]] = []
        joining = Joining(self.messages)
        try:
            recovered = self._join(member, subscription.topics, joined, replaced, joining, since, tags)
            groups = tuple(self._registry.topics[name] for name in subscription.topics)
            positions = self._positions(subscription.topics)
        except BaseException:
            for group in joined:
                if group in member.groups:
                    member.leave(group)
            for change in replaced:
                member.set_filter(*change)
            self._repair(member, [*joined, *map(self._registry.topics.get, subscription.topics)], member.user)
            raise
        complete = since is not None and len(recovered) == _asked(subscription.topics, since)
        subscription.note(positions, recovered, complete)
        subscription.begin(member, groups, joining)

    def _join(
        self,
        member: Member,
        topics: tuple[str, ...],
        joined: list[Group],
        replaced: list[tuple[Group, Filtering]],
        joining: Joining,
        since: Since | None,
        tags: Tags | None,
    ) -> frozenset[str]:
        """Add a connection to topics. Groups that are new for the connection are appended to `joined`.

        Filters that are replaced are appended to `replaced`, with their groups. The connection first gets what it has
        missed since a position, or else the retained messages.

        Returns:
            The topics and patterns for which it gets all that it has missed.
        """
        assert member._peer is not None
        slot = member._peer.slot
        missed = Missed(member, tags, self._registry.route)
        recovered: list[str] = []
        for name in topics if since is None else sorted(topics, key=partial(_order, since)):
            group = self._registry.topics.get(name) or self._add_topic(name)
            wanted = group.filter_of(tags)
            if since is not None and self._recover(member, name, since, missed):
                recovered.append(name)
            elif group not in member.groups and self._retained.topics:
                member.began(dict.fromkeys(self._retained.replay(name, missed), None))
            if group not in member.groups:
                joined.append(group)
                group.members.add(slot, wanted)
                if self._registry.watcher is not None:
                    self._registry.watcher.count_changed(name)
                if member.user is not None:
                    self._enter(member.user, group)
                member.join(group, joining, wanted)
            elif (before := member.filter_in(group)).wanted is not wanted:
                replaced.append((group, before))
                member.set_filter(group, before.replaced(wanted, self.messages))
        member.replay(missed.entries())
        return frozenset(recovered)

    def _recover(self, member: Member, name: str, since: Since, missed: Missed) -> bool:
        """Add what a connection has missed of a topic or pattern; return False if that is not known completely.

        A connection that gets the messages of a topic already has missed none since then. If it has missed some before,
        these cannot be sent any more: they would come behind newer ones.
        """
        found: dict[str, list[Retained]] | None = None
        if isinstance(since, Position):
            if since.epoch == self._retained.epoch and since.offset <= self.messages:
                found = self._retained.since_number(name, since.offset)
        elif name in since and (messages := self._retained.since(name, since[name])) is not None:
            found = {name: messages}
        if found is None:
            return False
        begins = {topic: messages[0].number - 1 if messages else self.messages for topic, messages in found.items()}
        known = [topic for topic in found if missed.gets(topic)]
        if any(begins[topic] < member.begin_of(topic) or missed.lacks(topic, found[topic]) for topic in known):
            return False
        new = [topic for topic in found if not missed.gets(topic)]
        for topic in new:
            missed.add(found[topic])
        member.began({topic: begins[topic] for topic in new})
        return True

    def _positions(self, topics: tuple[str, ...]) -> tuple[tuple[str, Position], ...]:
        """Return the positions of those of some topics that are not patterns."""
        if not self._retained.numbers:
            return ()
        return tuple((name, self._retained.numbered(name).position) for name in topics if not is_pattern(name))

    def _add_topic(self, name: str) -> Group:
        """Add a topic or pattern that does not exist yet.

        With a relay, messages of other processes may have been missed until now, so positions from before are not
        valid any more, unless the relay has followed the topic.
        """
        relay = self._registry.relay
        if relay is not None and self._retained.numbers:

            def is_heard(topic: str) -> bool:
                return bool(self._registry.route(topic)) or relay.follows(topic)

            silent = [topic for topic in self._retained.matching(name) if not is_heard(topic)]
            if is_pattern(name) or not is_heard(name):
                self._retained.forgotten = self.messages + 1
            for topic in silent:
                self._retained.restart(topic, self.messages)
        return self._registry.add_topic(name)

    @exclusive
    def end_subscription(self, subscription: HubSubscription, *, all_holds: bool) -> None:
        """Remove a connection from the topics of its subscription.

        Unless `all_holds` is true, it stays in the topics that another subscription holds.
        """
        member = subscription.member
        if member is None:
            return
        groups = subscription.groups if all_holds else subscription.groups_of_its_own()
        self._leave(member, [group.name for group in groups])

    @exclusive
    def _unsubscribe(self, connection: Any, topics: tuple[str, ...]) -> None:
        """Remove a connection from topics and patterns. Without any, remove it from all."""
        member = self._member_of(connection)
        if member is not None:
            self._leave(member, topics or member.topics)

    def _leave(self, member: Member, topics: Iterable[str]) -> None:
        if member._peer is None:
            return
        groups = [group for group in map(self._registry.topics.get, dict.fromkeys(topics)) if group in member.groups]
        try:
            for group in groups:
                assert group is not None
                self._leave_group(member, group, member._peer.slot)
        except BaseException:
            self._repair(member, groups, member.user)
            raise
        self._end_if_idle(member)

    def _leave_group(self, member: Member, group: Group, slot: int) -> None:
        """Remove a connection from a group that it is in."""
        member.leave(group)
        group.members.discard(slot)
        if self._registry.watcher is not None:
            self._registry.watcher.count_changed(group.name)
        if member.user is not None:
            self._exit(member.user, group)
        if group.empty:
            self._registry.discard(group)

    def _end_if_idle(self, member: Member) -> None:
        """End a member that has nothing left in the hub, once the call in progress is over: ending writes to sinks."""
        if not member.groups and member._peer is not None:
            if self._calls is not None and self._calls.busy:
                self._calls.after(self._end_if_idle, member)
            else:
                member.unsubscribe()

    def remove(self, subscription: Member, peer: core.Peer) -> None:
        """Remove a connection whose subscription has ended."""
        super().remove(subscription, peer)
        user = subscription.user
        if subscription.final_groups is None:
            subscription.final_groups = dict(subscription.groups)
        groups = [group for group in subscription.groups if group is not user]
        try:
            for group in groups:
                self._leave_group(subscription, group, peer.slot)
            if user is not None:
                self._leave_user(subscription, user, peer.slot)
        except BaseException:  # the slot will be given to another connection
            subscription.forget_groups()
            subscription.user = None
            for group in groups:
                group.members.discard(peer.slot)
            self._repair(subscription, groups, user)
            if user is not None:
                user.members.discard(peer.slot)
                if user.empty and self._registry.users.get(user.name) is user:
                    self._registry.discard(user)
                    self._tell(self.on_leave, user.name, None)
            raise

    def _repair(self, member: Member, groups: Iterable[Group | None], user: User | None) -> None:
        """Make groups agree with the member's own list of groups, after an exception in the middle of a change."""
        slot = -1 if member._peer is None else member._peer.slot
        for group in groups:
            if group is None:
                continue
            if group not in member.groups and slot in group.members.slots:
                group.members.discard(slot)
            if self._registry.watcher is not None and group.kind != "user":
                self._registry.watcher.count_changed(group.name)
                if user is not None:
                    self._registry.watcher.user_changed(user.name, group.name)
            if user is not None and group is not user:
                members = self._members(user.members.slots)
                present = user.recount(group, sum(group in other.groups for other in members))
                if present is not None:
                    self._tell(self.on_join if present else self.on_leave, user.name, group.name)
            if group.empty:
                self._registry.discard(group)
        self._end_if_idle(member)

    # ---- Users

    @exclusive
    def _register(self, registration: Registration, connection: Any) -> None:
        """Register a connection for a user."""
        member: Member = self._admit(connection)
        joining: Joining | None = None
        if member.user is None:
            try:
                joining = Joining(self.messages)
                self._join_user(member, registration.user, joining)
            except BaseException:
                self._repair_user(member, registration.user)
                raise
        elif member.user.name != registration.user:
            raise RuntimeError(
                f"the connection is registered for user {member.user.name!r} already, and cannot be registered for "
                f"{registration.user!r}; unregister it first"
            )
        assert member.user is not None
        registration.begin(member, (member.user,), joining)

    def _join_user(self, member: Member, name: Hashable, joining: Joining) -> None:
        assert member._peer is not None
        user = self._registry.users.get(name)
        if user is None:
            user = self._registry.add_user(name)
            self._tell(self.on_join, name, None)
        user.members.add(member._peer.slot)
        for group in member.groups:
            self._enter(user, group)
        member.join(user, joining)
        member.user = user

    @exclusive
    def end_registration(self, registration: Registration, *, all_holds: bool) -> None:
        """End a connection's registration for its user.

        Unless `all_holds` is true, it goes on if another registration holds it.
        """
        member = registration.member
        if (
            member is not None
            and member._peer is not None
            and member.user is not None
            and member.user.name == registration.user
            and (all_holds or registration.groups_of_its_own())
        ):
            try:
                self._leave_user(member, member.user, member._peer.slot)
            except BaseException:
                self._repair_user(member, registration.user)
                raise
            self._end_if_idle(member)

    def _leave_user(self, member: Member, user: User, slot: int) -> None:
        """Remove a connection from its user."""
        member.leave(user)
        member.user = None
        user.members.discard(slot)
        for group in member.groups:
            self._exit(user, group)
        if user.empty:
            self._registry.discard(user)
            self._tell(self.on_leave, user.name, None)

    def _repair_user(self, member: Member, name: Hashable) -> None:
        """Make a user agree with the connections registered for it, after an exception in the middle of a change."""
        user = self._registry.users.get(name)
        self._repair(member, [user], None)
        self._repair(member, list(member.groups), user)
        if user is not None and user.empty:
            self._tell(self.on_leave, name, None)
        elif self._registry.watcher is not None:
            self._registry.watcher.user_changed(name, None)

    def _enter(self, user: User, group: Group) -> None:
        if user.enter(group):
            self._tell(self.on_join, user.name, group.name)

    def _exit(self, user: User, group: Group) -> None:
        if user.leave(group):
            self._tell(self.on_leave, user.name, group.name)

    def _tell(self, callback: PresenceCallback | None, user: Any, topic: str | None) -> None:
        """Report that a user has come or left."""
        self.report(callback, user, topic)
        if self._registry.watcher is not None:
            self._registry.watcher.user_changed(user, topic)

    @exclusive
    def send_to(self, subscription: HubSubscription, message: PreparedMessage) -> None:
        """Send a message to a subscription's connection alone."""
        member = subscription.member
        if member is not None and member._peer is not None and subscription.why() is None:
            with core.collector_paused:
                member.replay((member._peer.dispatcher.entry_for(member._peer, self, message),))

    # ---- For the queues

    def report(self, callback: Callable[..., object] | None, *arguments: Any) -> None:
        """Schedule a callback. A member is passed to it as a `HubSubscription` of all of its topics."""
        if callback is not None and arguments and isinstance(arguments[0], Member):
            member = arguments[0]
            about = HubSubscription(self, tuple(member.topics), member, member.connection)
            arguments = (about, *arguments[1:])
        super().report(callback, *arguments)


def _order(since: Since, name: str) -> int:
    """Return when to join a topic or pattern: what would bring the history of a topic that goes on comes after it."""
    if isinstance(since, Position):
        return 0
    return 0 if name in since else 1


def _asked(topics: tuple[str, ...], since: Since) -> int:
    """Return for how many topics and patterns there is a position."""
    return len(set(topics)) if isinstance(since, Position) else len(since)
