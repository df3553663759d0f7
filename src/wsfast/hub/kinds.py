"""What a hub sends to, and what it tells its relay."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Literal, Protocol, TypeAlias

from wsfast._encoding.message import PreparedMessage

__all__ = ["Kind", "Relay"]

Kind: TypeAlias = Literal["topic", "pattern", "user"]


class Relay(Protocol):
    """Forwards messages of a hub to the hubs of other processes."""

    def subscribe(self, kind: Kind, name: Any) -> None:
        """A topic or a pattern has its first subscriber here, or a user the first connection."""

    def unsubscribe(self, kind: Kind, name: Any) -> None:
        """The last one has left."""

    def forward(
        self,
        kind: Kind,
        names: tuple[Any, ...],
        message: PreparedMessage,
        key: Hashable,
        excluded: tuple[Any, ...],
    ) -> None:
        """Send a message to other processes, where the excluded users do not get it."""

    def check(self, kind: Kind, names: tuple[Any, ...], key: Hashable, excluded: tuple[Any, ...]) -> None:
        """Check that a message can be forwarded.

        Raises:
            TypeError, ValueError: If it cannot.
        """
