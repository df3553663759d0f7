"""What a connection has in a hub, and the handles of it that are given out."""

from __future__ import annotations

from collections.abc import Hashable
from types import TracebackType
from typing import Any, Protocol

from wsfast._core import core
from wsfast._publisher import Publisher, Subscription
from wsfast._reentrancy import Calls, consistent, exclusive
from wsfast.stats import Lag, SubscriptionStats

from .registry import Group, User

__all__ = ["HubSubscription", "Member", "Registration"]


class Member(Subscription):
    """One connection in a hub, with one queue for all of its topics."""

    __slots__ = ("__weakref__", "_calls", "groups", "user")

    def __init__(self, hub: Publisher, peer: core.Peer, calls: Calls) -> None:
        self._calls = calls
        self.groups: dict[Group, int] = {}
        """Its groups, each with the number of messages of the hub before it was joined."""
        self.user: User | None = None
        super().__init__(hub, peer, 0)  # after which the connection has it

    def _published(self) -> int:
        return sum(group.messages for group in list(self.groups)) - self._since

    def part(self) -> None:
        """Do nothing: it has parted from all groups before it is ended."""

    def join(self, group: Group) -> None:
        """Get the messages of a group from now on."""
        self.exclude(group.messages)
        self.groups[group] = self.publisher.messages

    def leave(self, group: Group) -> None:
        """Not get them any more; those until now still count."""
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
    def end(self) -> None:
        """End it. What has not been sent is dropped."""
        super().end()

    def end_now(self) -> None:
        """End it, in the middle of a call."""
        super().end()


class Ends(Protocol):
    """Ends what handles stand for."""

    def end_subscription(self, subscription: HubSubscription) -> None:
        """Have a connection leave the topics of its subscription."""

    def end_registration(self, registration: Registration) -> None:
        """Have a connection not be its user's any more."""


class _Handle:
    """Something that a connection has in a hub, until the connection is closed or this is ended."""

    __slots__ = ("_ended", "_hub", "member")

    member: Member | None
    """What the connection has; None if it was asked for in the middle of another call, until that is over."""

    def __init__(self, hub: Ends) -> None:
        self._hub = hub
        self._ended = False
        self.member = None

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._ended:
            self._ended = True
            self._end()

    def _end(self) -> None:
        raise NotImplementedError

    @property
    def connection(self) -> Any:
        """The connection; None once it has left the hub."""
        return None if self.member is None else self.member.connection


class HubSubscription(_Handle):
    """One connection's subscription to topics of a hub. Ends when the connection is closed, or by `unsubscribe()`.

    It is a context manager, which ends it. The queue belongs to the connection: the numbers are of all that the
    connection gets from the hub.
    """

    __slots__ = ("_connection", "topics")

    topics: tuple[str, ...]
    """Topics and patterns."""

    def __init__(
        self, hub: Ends, topics: tuple[str, ...], member: Member | None = None, connection: Any = None
    ) -> None:
        super().__init__(hub)
        self.topics = topics
        self.member = member
        self._connection = connection

    def __enter__(self) -> HubSubscription:
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
        """Whether the connection is subscribed to any of the topics."""
        return self.member is not None and not set(self.topics).isdisjoint(self.member.topics)

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
        """End it, as `Hub.unsubscribe()` does. A second time does nothing."""
        self.__exit__(None, None, None)

    def _end(self) -> None:
        self._hub.end_subscription(self)


class Registration(_Handle):
    """One connection's registration as a user's. Ends when the connection is closed, or by `unregister()`.

    It is a context manager, which ends it.
    """

    __slots__ = ("user",)

    user: Hashable
    """The user."""

    def __init__(self, hub: Ends, user: Hashable) -> None:
        super().__init__(hub)
        self.user = user

    def __enter__(self) -> Registration:
        return self

    def __repr__(self) -> str:
        return f"<Registration of {self.user!r} in {self._hub!r}>"

    def unregister(self) -> None:
        """End it. A second time does nothing."""
        self.__exit__(None, None, None)

    def _end(self) -> None:
        self._hub.end_registration(self)
