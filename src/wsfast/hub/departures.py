"""Disconnecting: closes the connections of a user, or of a topic's subscribers, here and in other processes."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Any

from wsfast._arguments import check_close, check_seconds
from wsfast._encoding.message import Message, PreparedMessage, publishable
from wsfast._reentrancy import exclusive
from wsfast._shutdown import Closing, ShutdownPlan

from .filters import NO_TAGS
from .publishing import Publishing
from .registry import Command, Group
from .topics import check_topic

__all__ = ["Departures"]


class Departures(Publishing):
    """The part of a `Hub` that disconnects connections. See `Hub` for the arguments."""

    async def disconnect(
        self,
        *,
        user: Hashable = None,
        topic: str | None = None,
        code: int = 1000,
        reason: str = "",
        message: Message | None = None,
        seconds: float = 10.0,
    ) -> int:
        """Close all connections of a user or a topic: here, and with a relay in every process.

        Each connection first gets what waits for it, as far as its client reads it, and then the close frame. A
        connection that is still there after `seconds` is aborted. Connections of a topic are those that get its
        messages, whether subscribed by its name or by a pattern. With both a user and a topic, only the user's
        connections that get the topic's messages are closed. Clients may connect and subscribe again: refuse them
        where you authorize them.

        With a relay that recovers, messages that were published before come back from the broker first, unless that
        takes more than half of `seconds` or the broker cannot be reached.

        Args:
            user: The user. With a relay, it must be a str or an int.
            topic: The topic; not a pattern.
            code: Status code of the close frames.
            reason: Reason in the close frames, at most 123 bytes.
            message: A last message for these connections. See `publish()`.
            seconds: Seconds after which the call returns at the latest. It returns earlier if all have left.

        Returns:
            The number of connections that have left in this process. It does not wait for other processes.

        Raises:
            TypeError: If neither a user nor a topic is given, or an argument has another type.
            ValueError: If `topic` is not valid or is a pattern, `code` may not be sent, `reason` is too long (RFC 6455,
                section 7.4), or `seconds` is not positive.
            RuntimeError: If it is called outside the hub's event loop.
        """
        if user is None and topic is None:
            raise TypeError("disconnect() needs a user or a topic: hub.disconnect(user='ann')")
        hash(user)
        if topic is not None:
            check_topic(topic)
        check_seconds("seconds", seconds)
        check_close(code, reason)
        prepared = None if message is None else publishable(message)
        loop = self._bind().loop
        relay = self._registry.relay
        if relay is not None and user is not None:
            relay.check("user", (user,), None, ())
        command = Command(user, topic, code, reason, prepared)
        deadline = loop.time() + seconds
        returning = None if relay is None else relay.command(command)
        if returning is not None:
            try:
                if self._slots_about(command):
                    await asyncio.wait((returning,), timeout=seconds / 2)
            finally:
                returning.cancel()
        closed, aborted = await self.carry_out(command, deadline - loop.time()).wait()
        return closed + aborted

    def carry_out(self, command: Command, seconds: float) -> Closing:
        """Begin to close the connections in this process that a command is about."""
        slots = self._slots_about(command)
        connections = [member._peer.connection for member in self._members(slots) if member._peer is not None]
        if command.message is not None and connections:
            self._send_last(command, command.message, set(slots))
        plan = ShutdownPlan(seconds, command.code, command.reason, False)
        return Closing(lambda: connections, plan, at_once=True)

    def _slots_about(self, command: Command) -> list[int]:
        registry = self._registry
        if command.user is None:
            return [] if command.topic is None else registry.slots(command.topic)
        slots = registry.slots_of_users([command.user])
        return list(slots if command.topic is None else slots.intersection(registry.slots(command.topic)))

    @exclusive
    def _send_last(self, command: Command, message: PreparedMessage, slots: set[int]) -> None:
        """Send a last message to some of the connections of a user or a topic."""
        user = None if command.user is None else self._registry.users.get(command.user)
        groups: tuple[Group, ...] = () if command.topic is None else self._registry.route(command.topic)
        if user is not None:
            groups = (user,)
        others: set[Any] = {slot for group in groups for slot in group.members.slots}
        self._enqueue(groups, message, None, others - slots, NO_TAGS)
