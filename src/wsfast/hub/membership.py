"""Membership: which connections are in which topics, patterns and users of a hub."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from wsfast._reentrancy import Calls
from wsfast.adapters import adapt
from wsfast.outlet import Entry, Outlet
from wsfast.policies import Policy
from wsfast.publisher import Publisher

from .groups import Group
from .presence import PresenceCallback, User
from .registry import Registry
from .retained import RetainedMessages
from .subscriptions import HubSubscription, Member, Registration

__all__ = ["Membership"]


class Membership(Publisher):
    """The part of a `Hub` that has connections come and go. See there for the arguments.

    Each method that changes something does so in one go: a call in the middle of another one waits, and what an
    exception interrupts is undone.
    """

    def __init__(
        self,
        *,
        slow: Policy | None,
        history: int,
        last_values: int,
        name: str,
        notsent_lowat: int | None,
        on_join: PresenceCallback | None,
        on_leave: PresenceCallback | None,
        on_drop: Callable[[HubSubscription, int], object] | None,
        on_disconnect: Callable[[HubSubscription], object] | None,
        on_recover: Callable[[HubSubscription], object] | None,
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
        self._registry = Registry()
        self._retained = RetainedMessages(history, last_values)
        self.on_join = on_join
        self.on_leave = on_leave

    @property
    def _calls(self) -> Calls:
        """The calls of the hub's event loop, which it must have already."""
        assert self._outbox is not None
        return self._outbox.calls

    def _reading(self) -> AbstractContextManager[None]:
        """Return a context in which nothing changes."""
        return nullcontext() if self._outbox is None else self._outbox.calls.reading()

    def _admit(self, connection: Any) -> Member:
        """Return what a connection has here; something new if it has nothing yet."""
        outbox = self._bind()
        connection = adapt(connection)
        outlet = outbox.outlet_of(connection)
        member: Member | None = self._subscriptions.get(outlet.slot)
        if member is None:
            member = self._subscriptions[outlet.slot] = Member(self, outlet, outbox.calls)
            try:
                self._prepare_socket(connection)
                outlet.refresh()
            except BaseException:
                member.end_now()
                raise
        return member

    def _member_of(self, connection: Any) -> Member | None:
        for slot in self._slots_of([connection]):
            member: Member | None = self._subscriptions.get(slot)
            return member
        return None

    def _members(self, slots: Iterable[int]) -> list[Member]:
        """Return the members with some slots, of which some may have left."""
        return [member for member in list(map(self._subscriptions.get, slots)) if member is not None]

    # ---- Topics

    def _subscribe(self, subscription: HubSubscription, connection: Any) -> None:
        """Have a connection join the topics of a subscription."""
        if self._calls.postponed(self._subscribe, subscription, connection):
            return
        with self._calls:
            member = self._admit(connection)
            joined: list[Group] = []
            try:
                subscription.topics = self._join(member, subscription.topics, joined)
            except BaseException:
                for group in joined:
                    if group in member.groups:
                        self._part(member, group)
                    else:
                        self._give_up(member, group)
                if not member.groups:
                    member.end_now()
                raise
            subscription.member = member

    def _join(self, member: Member, topics: tuple[str, ...], joined: list[Group]) -> tuple[str, ...]:
        """Have a connection join topics; return these, each name as it is kept already. Groups are added to `joined`.

        It first gets their retained messages.
        """
        outbox = self._bind()
        assert member.outlet is not None
        slot = member.outlet.slot
        names: list[str] = []
        replayed: dict[int, Entry] = {}
        for name in topics:
            group = self._registry.topics.get(name)
            if group is None or group not in member.groups:
                if self._retained.topics:
                    self._retained.replay(member, member.groups, name, self._registry.route, replayed)
                if group is None:
                    group = self._registry.add_topic(name)
                joined.append(group)
                group.members.add(slot)
                if member.user is not None:
                    self._enter(member.user, group)
                member.join(group)
            names.append(group.name)
        for number in sorted(replayed):
            outbox.roster.append(slot, outbox.enter(replayed[number]))
            member.exclude(-1)
        return tuple(names)

    def end_subscription(self, subscription: HubSubscription) -> None:
        """Have a connection leave the topics of its subscription."""
        if not self._calls.postponed(self.end_subscription, subscription) and subscription.member is not None:
            self._leave(subscription.member, subscription.topics)

    def _leave(self, member: Member, topics: Iterable[str]) -> None:
        """Have a connection leave topics and patterns; without any, all of them."""
        if self._calls.postponed(self._leave, member, topics):
            return
        if member.outlet is None:
            return
        with self._calls:
            for name in topics or member.topics:
                group = self._registry.topics.get(name)
                if group is not None and group in member.groups:
                    self._part(member, group)
        self._end_if_idle(member)

    def _part(self, member: Member, group: Group, slot: int | None = None) -> None:
        """Have a connection leave a group that it is in."""
        if slot is None:
            assert member.outlet is not None
            slot = member.outlet.slot
        group.members.remove(slot)
        member.part(group)
        if member.user is not None:
            self._exit(member.user, group)
        if group.empty:
            self._registry.discard(group)

    def _give_up(self, member: Member, group: Group) -> None:
        """Undo what was done to have a connection join a group."""
        slot = -1 if member.outlet is None else member.outlet.slot
        if slot in group.members.slots:
            group.members.remove(slot)
            if member.user is not None:
                self._exit(member.user, group)
        if group.empty:
            self._registry.discard(group)

    def _end_if_idle(self, member: Member) -> None:
        if not member.groups and member.outlet is not None:
            member.unsubscribe()

    def remove(self, subscription: Member, outlet: Outlet) -> None:
        """Remove a connection that has ended."""
        super().remove(subscription, outlet)
        user = subscription.user
        for group in list(subscription.groups):
            if group is not user:
                self._part(subscription, group, outlet.slot)
        if user is not None:
            self._sign_off(subscription, user, outlet.slot)

    # ---- Users

    def _register(self, registration: Registration, connection: Any) -> None:
        """Have a connection be a user's."""
        if self._calls.postponed(self._register, registration, connection):
            return
        with self._calls:
            member = self._admit(connection)
            try:
                self._sign_on(member, registration.user)
            except BaseException:
                if not member.groups:
                    member.end_now()
                raise
            registration.member = member

    def _sign_on(self, member: Member, name: Hashable) -> None:
        if member.user is not None:
            if member.user.name != name:
                raise RuntimeError(f"the connection is registered for {member.user.name!r}")
            return
        assert member.outlet is not None
        user = self._registry.users.get(name)
        if user is None:
            user = self._registry.add_user(name)
            self.report(self.on_join, name, None)
        entered: list[Group] = []
        try:
            user.members.add(member.outlet.slot)
            for group in member.groups:
                entered.append(group)
                self._enter(user, group)
            member.join(user)
            member.user = user
        except BaseException:
            for group in entered:
                self._exit(user, group)
            self._give_up(member, user)
            if user.empty:
                self.report(self.on_leave, name, None)
            raise

    def end_registration(self, registration: Registration) -> None:
        """Have a connection not be its user's any more."""
        if self._calls.postponed(self.end_registration, registration):
            return
        member = registration.member
        if (
            member is not None
            and member.outlet is not None
            and member.user is not None
            and member.user.name == registration.user
        ):
            with self._calls:
                self._sign_off(member, member.user, member.outlet.slot)
            self._end_if_idle(member)

    def _sign_off(self, member: Member, user: User, slot: int) -> None:
        """Have a connection not be its user's any more."""
        member.user = None
        for group in member.groups:
            if group is not user:
                self._exit(user, group)
        self._part(member, user, slot)
        if user.empty:
            self.report(self.on_leave, user.name, None)

    def _enter(self, user: User, group: Group) -> None:
        if user.enter(group):
            self.report(self.on_join, user.name, group.name)

    def _exit(self, user: User, group: Group) -> None:
        if user.leave(group):
            self.report(self.on_leave, user.name, group.name)

    # ---- For the queues

    def report(self, callback: Callable[..., object] | None, *arguments: Any) -> None:
        """Call back soon, with a `HubSubscription` of all of its topics for a connection."""
        if callback is not None and arguments and isinstance(arguments[0], Member):
            member = arguments[0]
            arguments = (HubSubscription(self, tuple(member.topics), member, member.connection), *arguments[1:])
        super().report(callback, *arguments)
