"""Groups: the connections that get the same messages."""

from __future__ import annotations

from typing import Any

from wsfast._core import core
from wsfast._encoding.message import PreparedMessage, encodings_of
from wsfast._encoding.shared import SMALLEST_SHARED, Publication, SharedEncoders
from wsfast.stream import Streams

from .kinds import Kind

__all__ = ["MOST_UNSHARED", "PAUSE", "Group"]

MOST_UNSHARED = 4
"""Messages in a row whose compression was not shared, after which a topic begins to do without."""

PAUSE = 64
"""Messages for which it does, until it tries again."""


class Group:
    """The subscribers of a topic or a pattern, or the connections of a user."""

    __slots__ = ("_encoders", "_pause", "_unshared", "bytes", "kind", "members", "messages", "name", "streams")

    def __init__(self, kind: Kind, name: Any) -> None:
        self.kind = kind
        self.name: Any = name
        self.members: core.Members = core.Members()
        self.messages: int = 0
        self.bytes: int = 0
        self.streams: Streams | None = None
        self._encoders: SharedEncoders | None = None
        self._unshared = 0  # messages in a row whose compression was not shared
        self._pause = 0

    def encodings(self, message: PreparedMessage) -> Any:
        """Return the encodings of a message for the group, which shares compression where it can.

        Connections that get other messages in between, of other topics, cannot; and to try costs as much as to
        compress each message by itself. A user has few connections, which always do.
        """
        if self.kind == "user" or message.compress is False or message.size < SMALLEST_SHARED:
            return encodings_of(message)
        if self._pause:
            self._pause -= 1
            return encodings_of(message)
        if self._encoders is None:
            self._encoders = SharedEncoders()
        return GroupPublication(self, self._encoders, message)

    def count_shared(self, shared: bool) -> None:
        """Count a message whose compression was shared, or was not."""
        self._unshared = 0 if shared else self._unshared + 1
        if self._unshared >= MOST_UNSHARED:
            self._unshared = 0
            self._pause = PAUSE

    @property
    def empty(self) -> bool:
        """Whether it has neither connections nor streams."""
        return not len(self.members) and not self.streams


class GroupPublication(Publication):
    """A message that is being sent to a group, which counts whether its compression was shared."""

    def __init__(self, group: Group, encoders: SharedEncoders, message: PreparedMessage) -> None:
        super().__init__(encoders, message)
        self._group = group

    def end(self) -> None:
        """Release what later messages cannot refer to."""
        super().end()
        if self.shared is not None:
            self._group.count_shared(self.shared)
