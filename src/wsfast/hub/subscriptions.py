"""A connection's membership of a hub, and the subscriptions and registrations that users hold."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from types import TracebackType
from typing import Any, Protocol

from wsfast._arguments import Local
from wsfast._core import core
from wsfast._encoding.message import Message, PreparedMessage, publishable
from wsfast._publisher import Publisher
from wsfast._reentrancy import Calls, consistent, exclusive
from wsfast._subscription import Lag, Subscription, SubscriptionStats
from wsfast.connections.foreign import Ended

from .filters import UNFILTERED, Filtering, Tags
from .positions import Position
from .registry import Group, User

__all__ = ["HubSubscription", "Member", "Registration"]


class Joining:
    """One call that made a connection join groups."""

    __slots__ = ("more", "since")

    def __init__(self, since: int) -> None:
        self.since: int = since  # count of the hub's messages before this call
        self.more: dict[Group, int] | None = None  # holders of each group beyond the first

    def hold(self, group: Group) -> None:
        """Add a holder of a group."""
        if self.more is None:
            self.more = {}
        self.more[group] = self.more.get(group, 0) + 1

    def release(self, group: Group) -> bool:
        """Remove a holder of a group; return whether none is left."""
        if self.more is None or group not in self.more:
            return True
        self.more[group] -= 1
        if not self.more[group]:
            del self.more[group]
        return False


class Member(Subscription):
    """One connection in a hub, with one queue for all of its topics."""

    __slots__ = ("__weakref__", "_begins", "_calls", "_filters", "final_groups", "groups", "user")

    def __init__(self, hub: Publisher, peer: core.Peer, calls: Calls) -> None:
        self._calls = calls
        self.groups: dict[Group, Joining] = {}
        """The member's groups, each with the call that joined it."""
        self.final_groups: dict[Group, Joining] | None = None  # the groups at the end
        self.user: User | None = None
        self._filters: dict[Group, Filtering] | None = None  # not None any more once a group had a filter
        self._begins: dict[str, int] | None = None  # for topics that it came back to, the last message it had before
        super().__init__(hub, peer, 0)  # last: makes it known to the connection

    def _published(self) -> int:
        skipped = sum(one.skipped for one in self._filters.values()) if self._filters else 0
        return sum(group.messages for group in list(self.groups)) - skipped - self._since

    def stop_publishing(self) -> None:
        """Do nothing: a member leaves all of its groups before it is ended."""

    def join(self, group: Group, joining: Joining, wanted: core.Filter | None = None) -> None:
        """Get the messages of a group from now on, those that a filter lets through."""
        filtering = UNFILTERED if wanted is None else Filtering(wanted)
        since = self._since + group.messages - filtering.skipped
        filters = {} if self._filters is None and wanted is not None else self._filters
        # From here on, nothing is called.
        if filters is not None and wanted is not None:
            filters[group] = filtering
        self._filters = filters
        self._since = since
        self.groups[group] = joining

    def leave(self, group: Group) -> None:
        """Get no more messages of a group. Those published until now still count."""
        self.wake()
        since = self._since - group.messages + self.filter_in(group).skipped
        # From here on, nothing is called.
        if self._filters is not None and group in self._filters:
            del self._filters[group]
        self._since = since
        del self.groups[group]

    def forget_groups(self) -> None:
        """Forget all groups, once the counts are final."""
        self.groups.clear()
        if self._filters is not None:
            self._filters.clear()

    @property
    def filtered(self) -> bool:
        """Whether it has a filter, or has had one."""
        return self._filters is not None

    def filter_in(self, group: Group) -> Filtering:
        """Return the filter of a group, and those before."""
        return UNFILTERED if self._filters is None else self._filters.get(group, UNFILTERED)

    def set_filter(self, group: Group, filtering: Filtering) -> None:
        """Replace the filter of a group. Messages published until now count as the filters before have let them."""
        assert self._peer is not None
        since = self._since + self.filter_in(group).skipped - filtering.skipped
        filters = {} if self._filters is None else self._filters
        group.members.set_filter(self._peer.slot, filtering.wanted)
        # From here on, nothing is called.
        filters[group] = filtering
        self._since, self._filters = since, filters

    def got(self, group: Group, number: int, tags: Tags) -> bool:
        """Whether it got one of the hub's messages by a group, when it was published."""
        joining = self.groups.get(group)
        return joining is not None and joining.since < number and self.filter_in(group).let(number, tags)

    def began(self, topics: Mapping[str, int | None]) -> None:
        """Note from where on it gets the messages of topics that it did not get before.

        Args:
            topics: For each topic, the number of the last message that it had before, because it has come back; None if
                it gets the whole history.
        """
        for topic, number in topics.items():
            if number is not None:
                self._begins = {**(self._begins or {}), topic: number}
            elif self._begins is not None:
                self._begins.pop(topic, None)

    def begin_of(self, topic: str) -> int:
        """Return the number of the last message that it had before those of a topic; 0 if it got the whole history."""
        return 0 if self._begins is None else self._begins.get(topic, 0)

    @property
    @consistent
    def lag(self) -> Lag:
        """The messages that wait, those of this tick included."""
        return super().lag

    @consistent
    def stats(self) -> SubscriptionStats:
        """Return the counts of the connection's messages so far. They are final once it has left the hub."""
        return super().stats()

    @property
    def topics(self) -> list[str]:
        """The member's topics and patterns."""
        return [group.name for group in list(self.groups) if group is not self.user]

    @exclusive
    def end(self, why: Ended = Ended.UNSUBSCRIBED) -> None:
        """End the membership. Messages that have not been sent are dropped."""
        super().end(why)

    def end_now(self) -> None:
        """End the membership at once, inside another call."""
        super().end()


class Ends(Protocol):
    """Ends subscriptions and registrations; implemented by the hub."""

    @property
    def _calls(self) -> Calls | None: ...

    def end_subscription(self, subscription: HubSubscription, *, all_holds: bool) -> None:
        """Remove a connection from the subscription's topics; unless `all_holds`, not from those that others hold."""

    def end_registration(self, registration: Registration, *, all_holds: bool) -> None:
        """End a registration; unless `all_holds`, only if no other registration holds it."""

    def send_to(self, subscription: HubSubscription, message: PreparedMessage) -> None:
        """Send a message to a subscription's connection alone."""


class Handle(Local):
    """A subscription or registration of a connection in a hub. Ends when the connection is closed, or on request."""

    __slots__ = ("_entered", "_hub", "_others", "_own", "_why", "groups", "member")

    member: Member | None
    """The connection's membership. None while the call that asked for it waits for another one to finish."""
    groups: tuple[Group, ...]
    """The groups that this subscription or registration covers."""

    def __init__(self, hub: Ends) -> None:
        self._hub = hub
        self._why: Ended | None = None
        self._entered = 0
        self._own: Joining | None = None
        self._others: dict[Group, Joining] = {}
        self.member = None
        self.groups = ()

    def begin(self, member: Member, groups: tuple[Group, ...], own: Joining | None) -> None:
        """Cover groups that a connection is in.

        Args:
            member: The connection's membership of the hub.
            groups: The groups.
            own: The call that joined those groups that were joined for this; None if others hold all of them as well.
        """
        self._others = {group: member.groups[group] for group in groups if member.groups[group] is not own}
        self._own = own
        self.groups = groups
        self.member = member
        if self._entered:
            self._hold_others()

    def _hold_others(self) -> None:
        for group, joining in self._others.items():
            joining.hold(group)

    def _enter(self) -> None:
        if not self._entered and self.why() is None:
            self._hold_others()
        self._entered += 1

    def groups_of_its_own(self) -> list[Group]:
        """Release the groups, and return those that no other subscription or registration holds."""
        mine = [group for group in dict.fromkeys(self.groups) if self._is_in(group)]
        return [group for group in mine if self._joining(group).release(group)]

    def _joining(self, group: Group) -> Any:
        return self._others.get(group, self._own)

    def _is_in(self, group: Group) -> bool:
        member = self.member
        if member is None:
            return False
        groups = member.groups if member.final_groups is None else member.final_groups
        return groups.get(group) is self._joining(group)

    def why(self) -> Ended | None:
        """Return why it has ended; None while it is active."""
        if self._why is None and self.member is not None:
            is_in = any(map(self._is_in, self.groups))
            self._why = self.member.why if is_in else Ended.UNSUBSCRIBED
        return self._why

    async def ended(self) -> Ended:
        """Wait until it has ended, and return the reason.

        Any number of tasks may wait. If it has ended already, the call returns at once.

        Raises:
            RuntimeError: If it is called outside the hub's event loop.
        """
        while (why := self.why()) is None:
            if self.member is None:  # the call that asked for it waited for another one, and then failed
                return Ended.LOST
            await self.member.changed()
        return why

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered -= 1
        if self._entered <= 0:
            self._leave(all_holds=False)

    def _leave(self, *, all_holds: bool) -> None:
        calls = self._hub._calls
        if calls is None or calls.forked or self.why() is not None:
            return
        calls.check_thread()
        if self.member is not None:
            self.member.wake()
        self._end(all_holds=all_holds)
        self._why = Ended.UNSUBSCRIBED

    def _end(self, *, all_holds: bool) -> None:
        raise NotImplementedError

    @property
    def connection(self) -> Any:
        """The connection; None once it has left the hub."""
        return None if self.member is None else self.member.connection


class HubSubscription(Handle):
    """One connection's subscription to topics of a hub. Ends when the connection is closed, or by `unsubscribe()`.

    It is a context manager. If several `with` blocks subscribe the same connection to the same topic, the connection
    leaves the topic with the last of them. If it was already subscribed without `with`, it stays subscribed.

    The queue belongs to the connection: the counts cover all messages that the connection gets from the hub.
    """

    __slots__ = ("_connection", "_positions", "_topics", "recovered", "recovered_topics")

    recovered: bool
    """Whether the connection got all that it had missed since the positions given to `subscribe()`, of all topics."""
    recovered_topics: frozenset[str]
    """The topics for which this is true. For the others, the connection was treated like a new subscriber."""

    def __init__(
        self, hub: Ends, topics: tuple[str, ...], member: Member | None = None, connection: Any = None
    ) -> None:
        super().__init__(hub)
        self._topics = topics
        self._connection = connection
        self._positions: tuple[tuple[str, Position], ...] = ()
        self.recovered = False
        self.recovered_topics = frozenset()
        if member is not None:
            self.begin(member, tuple(group for group in member.groups if group is not member.user), None)

    @property
    def topics(self) -> tuple[str, ...]:
        """Topics and patterns."""
        return tuple(group.name for group in self.groups) if self.groups else self._topics

    def begin(self, member: Member, groups: tuple[Group, ...], own: Joining | None) -> None:
        """Cover groups that a connection is in."""
        super().begin(member, groups, own)
        self._topics = ()  # the groups have the names

    def note(
        self, positions: tuple[tuple[str, Position], ...], recovered_topics: frozenset[str], recovered: bool
    ) -> None:
        """Note the positions at the beginning, and which topics were recovered."""
        self._positions = positions
        self.recovered_topics = recovered_topics
        self.recovered = recovered

    @property
    def positions(self) -> dict[str, Position]:
        """The position of each topic at the moment of subscribing, after the messages that were sent again.

        Patterns have none. Empty if the hub has neither history nor envelopes.
        """
        return dict(self._positions)

    def send(self, message: Message) -> None:
        """Send a message to this connection alone, after what was published before and before what is published later.

        It goes through the connection's queue, like what is published, and without an envelope. Nothing is sent if the
        connection has left the hub.

        Raises:
            TypeError: If `message` has an unsupported type.
            RuntimeError: If it is called in another thread than that of the hub's event loop.
        """
        prepared = publishable(message)
        if (calls := self._hub._calls) is not None:
            calls.check_thread()
        self._hub.send_to(self, prepared)

    def __enter__(self) -> HubSubscription:
        self._enter()
        return self

    def __repr__(self) -> str:
        return f"<HubSubscription to {', '.join(self.topics)} of {self._hub!r}{'' if self.active else ', ended'}>"

    @property
    def connection(self) -> Any:
        """The connection; None once it has left the hub, except in callbacks."""
        connection = super().connection
        return self._connection if connection is None else connection

    @property
    def active(self) -> bool:
        """Whether the connection is still subscribed to at least one of the topics."""
        return self.member is not None and self.why() is None

    @property
    def lag(self) -> Lag:
        """The messages that wait for the connection, those of this tick included."""
        return Lag(0, 0, 0.0) if self.member is None else self.member.lag

    @property
    def dropped(self) -> int:
        """Messages dropped by the policy, or because the connection was closed."""
        return 0 if self.member is None else self.member.dropped

    @property
    def conflated(self) -> int:
        """Messages replaced by newer ones with the same key."""
        return 0 if self.member is None else self.member.conflated

    @property
    def queued(self) -> int:
        """Messages waiting for the connection, those of this tick not included."""
        return 0 if self.member is None else self.member.queued

    def stats(self) -> SubscriptionStats:
        """Return the counts of all of the connection's messages so far. They are final once it has left the hub."""
        return SubscriptionStats(0, 0, 0, 0, 0) if self.member is None else self.member.stats()

    def unsubscribe(self) -> None:
        """End the subscription like `Hub.unsubscribe()`, even inside a `with` block. Calling it again does nothing."""
        self._leave(all_holds=True)

    def _end(self, *, all_holds: bool) -> None:
        self._hub.end_subscription(self, all_holds=all_holds)


class Registration(Handle):
    """One connection's registration for a user. Ends when the connection is closed, or by `unregister()`.

    It is a context manager. If several `with` blocks register the same connection, the registration ends with the last
    of them. If the connection was already registered without `with`, it stays registered.
    """

    __slots__ = ("user",)

    user: Hashable
    """The user."""

    def __init__(self, hub: Ends, user: Hashable) -> None:
        super().__init__(hub)
        self.user = user

    def __enter__(self) -> Registration:
        self._enter()
        return self

    def __repr__(self) -> str:
        return f"<Registration of {self.user!r} in {self._hub!r}>"

    def unregister(self) -> None:
        """End the registration, even inside a `with` block. Calling it again does nothing."""
        self._leave(all_holds=True)

    def _end(self, *, all_holds: bool) -> None:
        self._hub.end_registration(self, all_holds=all_holds)
