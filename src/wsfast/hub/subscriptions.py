"""What a connection has in a hub, and the handles of it that are given out."""

from __future__ import annotations

from collections.abc import Hashable
from types import TracebackType
from typing import Any, Protocol

from wsfast._arguments import Local
from wsfast._core import core
from wsfast._publisher import Publisher
from wsfast._reentrancy import Calls, consistent, exclusive
from wsfast._subscription import Lag, Subscription, SubscriptionStats
from wsfast.connections.foreign import Ended

from .registry import Group, User

__all__ = ["HubSubscription", "Member", "Registration"]


class Joining:
    """One call by which a connection has joined groups."""

    __slots__ = ("more", "since")

    def __init__(self, since: int) -> None:
        self.since: int = since  # messages of the hub before it
        self.more: dict[Group, int] | None = None  # of its groups, how many more than one hold them

    def hold(self, group: Group) -> None:
        """Have one more hold a group."""
        if self.more is None:
            self.more = {}
        self.more[group] = self.more.get(group, 0) + 1

    def release(self, group: Group) -> bool:
        """Have one less hold a group; return whether nobody does any more."""
        if self.more is None or group not in self.more:
            return True
        self.more[group] -= 1
        if not self.more[group]:
            del self.more[group]
        return False


class Member(Subscription):
    """One connection in a hub, with one queue for all of its topics."""

    __slots__ = ("__weakref__", "_calls", "final_groups", "groups", "user")

    def __init__(self, hub: Publisher, peer: core.Peer, calls: Calls) -> None:
        self._calls = calls
        self.groups: dict[Group, Joining] = {}
        """Its groups, each with the call by which it was joined."""
        self.final_groups: dict[Group, Joining] | None = None  # those at its end
        self.user: User | None = None
        super().__init__(hub, peer, 0)  # after which the connection has it

    def _published(self) -> int:
        return sum(group.messages for group in list(self.groups)) - self._since

    def part(self) -> None:
        """Do nothing: it has parted from all groups before it is ended."""

    def join(self, group: Group, joining: Joining) -> None:
        """Get the messages of a group from now on."""
        self.exclude(group.messages)
        self.groups[group] = joining

    def leave(self, group: Group) -> None:
        """Not get them any more; those until now still count."""
        self.wake()
        self.exclude(-group.messages)
        del self.groups[group]

    @property
    @consistent
    def lag(self) -> Lag:
        """What waits for it, messages of this tick included."""
        return super().lag

    @consistent
    def stats(self) -> SubscriptionStats:
        """Return what became of the messages for it so far; once it has ended, until then."""
        return super().stats()

    @property
    def topics(self) -> list[str]:
        """Its topics and patterns."""
        return [group.name for group in list(self.groups) if group is not self.user]

    @exclusive
    def end(self, why: Ended = Ended.UNSUBSCRIBED) -> None:
        """End it. What has not been sent is dropped."""
        super().end(why)

    def end_now(self) -> None:
        """End it, in the middle of a call."""
        super().end()


class Ends(Protocol):
    """Ends what handles stand for."""

    @property
    def _calls(self) -> Calls | None: ...

    def end_subscription(self, subscription: HubSubscription, *, all_holds: bool) -> None:
        """Have a connection leave the topics of its subscription; unless for all, those that nobody else holds."""

    def end_registration(self, registration: Registration, *, all_holds: bool) -> None:
        """Have a connection not be its user's any more; unless for all, only if nobody else holds that."""


class Handle(Local):
    """Something that a connection has in a hub, until the connection is closed or this is ended."""

    __slots__ = ("_entered", "_hub", "_others", "_own", "_why", "groups", "member")

    member: Member | None
    """What the connection has; None if it was asked for in the middle of another call, until that is over."""
    groups: tuple[Group, ...]
    """What it stands for."""

    def __init__(self, hub: Ends) -> None:
        self._hub = hub
        self._why: Ended | None = None
        self._entered = 0
        self._own: Joining | None = None
        self._others: dict[Group, Joining] = {}
        self.member = None
        self.groups = ()

    def begin(self, member: Member, groups: tuple[Group, ...], own: Joining | None) -> None:
        """Stand for groups that a connection is in.

        Args:
            member: What it has in the hub.
            groups: The groups.
            own: What was made for those that it has joined for this; None if these are others' as well.
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
        """Give its groups back; return those that nobody else holds."""
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
        """Return why it has ended; None if it has not."""
        if self._why is None and self.member is not None:
            is_in = any(map(self._is_in, self.groups))
            self._why = self.member.why if is_in else Ended.UNSUBSCRIBED
        return self._why

    async def ended(self) -> Ended:
        """Wait until it has ended, and return why. Any number of tasks may wait, also when it has ended already.

        Raises:
            RuntimeError: In another event loop than the hub's.
        """
        while (why := self.why()) is None:
            if self.member is None:  # it was asked for in the middle of another call, and then refused
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

    It is a context manager. If there are several `with` for one connection and topic, the connection leaves it with the
    last of them; if it was subscribed before, without `with`, it stays.

    The queue belongs to the connection: the numbers are of all that the
    connection gets from the hub.
    """

    __slots__ = ("_connection", "_topics")

    def __init__(
        self, hub: Ends, topics: tuple[str, ...], member: Member | None = None, connection: Any = None
    ) -> None:
        super().__init__(hub)
        self._topics = topics
        self._connection = connection
        if member is not None:
            self.begin(member, tuple(group for group in member.groups if group is not member.user), None)

    @property
    def topics(self) -> tuple[str, ...]:
        """Topics and patterns."""
        return tuple(group.name for group in self.groups) if self.groups else self._topics

    def begin(self, member: Member, groups: tuple[Group, ...], own: Joining | None) -> None:
        """Stand for groups that a connection is in."""
        super().begin(member, groups, own)
        self._topics = ()  # the groups have their names already

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
        """Whether it has not ended: the connection is still subscribed to any of the topics."""
        return self.member is not None and self.why() is None

    @property
    def lag(self) -> Lag:
        """What waits for the connection, messages of this tick included."""
        return Lag(0, 0, 0.0) if self.member is None else self.member.lag

    @property
    def dropped(self) -> int:
        """Messages dropped."""
        return 0 if self.member is None else self.member.dropped

    @property
    def conflated(self) -> int:
        """Messages that were replaced by newer ones of the same key."""
        return 0 if self.member is None else self.member.conflated

    @property
    def queued(self) -> int:
        """Messages that wait for the connection, those of this tick not included."""
        return 0 if self.member is None else self.member.queued

    def stats(self) -> SubscriptionStats:
        """Return what became of all messages for the connection so far; once it has left the hub, until then."""
        return SubscriptionStats(0, 0, 0, 0, 0) if self.member is None else self.member.stats()

    def unsubscribe(self) -> None:
        """End it, as `Hub.unsubscribe()` does, whatever `with` is around it. A second time does nothing."""
        self._leave(all_holds=True)

    def _end(self, *, all_holds: bool) -> None:
        self._hub.end_subscription(self, all_holds=all_holds)


class Registration(Handle):
    """One connection's registration as a user's. Ends when the connection is closed, or by `unregister()`.

    It is a context manager. If there are several `with` for one connection, it ends with the last of them; if it was
    there before, without `with`, it goes on.
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
        """End it, whatever `with` is around it. A second time does nothing."""
        self._leave(all_holds=True)

    def _end(self, *, all_holds: bool) -> None:
        self._hub.end_registration(self, all_holds=all_holds)
