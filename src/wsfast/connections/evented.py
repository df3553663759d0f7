"""Connections that tell what happens to them, so that they need not be asked each time before they are written to.

Whatever happens to a connection, its protocol or its transport has a part in it. So whoever asks for one of them, be it
a method of the connection itself, has it be asked anew before it is next written to directly.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Evented", "disturb", "watched"]


def disturb(connection: Any) -> None:
    """Have a connection be asked again whether it may be written to directly, before it is."""
    route = getattr(connection, "_wsfast_route", None)
    if route is not None:
        route.quiet = False
    outlet = getattr(connection, "_wsfast_outlet", None)
    if outlet is not None and outlet.ready:
        outlet.unready()


def watched(name: str) -> property:
    """Make a property of connections that have themselves asked anew when somebody asks for it."""
    private = f"_wsfast_{name}"

    def get(connection: Any) -> Any:
        disturb(connection)
        return getattr(connection, private)

    def put(connection: Any, value: Any) -> None:
        setattr(connection, private, value)

    return property(get, put, doc="Whoever asks for it may do anything with it.")


class Evented:
    """A protocol of asyncio that tells what happens to it; it stands before that of a library.

    A subclass has its sans-I/O protocol `watched`, too, and begins what sends for itself with `_wsfast_take_turn()` and
    ends it with `_wsfast_settle()`.
    """

    _wsfast_outlet: Any = None
    _wsfast_route: Any = None

    transport: Any = watched("transport")

    def data_received(self, data: bytes) -> None:
        """Receive data."""
        super().data_received(data)  # type: ignore[misc]
        self._wsfast_settle()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take leave, before the descriptor is closed."""
        disturb(self)
        try:
            if self._wsfast_outlet is not None:
                self._wsfast_outlet.close()
        finally:
            super().connection_lost(exc)  # type: ignore[misc]

    async def _wsfast_take_turn(self, *, wait: bool = True) -> None:
        """Write what was published before; wait until it has left if it may not be overtaken."""
        if self._wsfast_outlet is not None:
            self._wsfast_outlet.flush()
            if wait:
                await self._wsfast_outlet.caught_up()

    def _wsfast_settle(self) -> None:
        """Look whether the connection need not be asked any more."""
        if self._wsfast_outlet is not None:
            self._wsfast_outlet.refresh()
