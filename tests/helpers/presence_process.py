"""A process of its own with a hub, users in it, and a relay that knows the users of all processes.

It is told what to do by lines of JSON at its standard input, and answers each with one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import wsfast
from helpers.brokers import relay_of
from helpers.peers import TIMEOUT
from helpers.processes import running, write_line
from helpers.told import Told
from wsfast.relay import Presence

__all__ = ["Member", "Process", "Room"]


class Member:
    """A connection that takes everything."""

    def __init__(self) -> None:
        self.connection = wsfast.attach(self)

    def write(self, data: bytes) -> None: ...

    def writable(self) -> bool:
        return True

    def close(self, code: int, reason: str) -> None: ...


class Room:
    """A hub with a relay, the members of its topics, and what the callbacks of presence were given."""

    def __init__(self, kind: str, url: str, relay: dict[str, Any], presence: dict[str, Any]) -> None:
        recover = relay.get("recover", False)
        self.hub = wsfast.Hub(history=10 if recover else 0)
        self.told: list[list[Any]] = []
        self.presence = Presence(
            on_join=lambda user, name: self.told.append(["join", user, name]),
            on_leave=lambda user, name: self.told.append(["leave", user, name]),
            **presence,
        )
        self.relay = relay_of(kind, self.hub, url, presence=self.presence, **relay)
        self.members: dict[Any, Member] = {}

    def enter(self, user: Any, *topics: str) -> None:
        """Have a user connect."""
        member = self.members[user] = Member()
        self.hub.register(member.connection, user)
        self.hub.subscribe(member.connection, *topics)

    def leave(self, user: Any) -> None:
        """Have a user disconnect."""
        connection = self.members.pop(user).connection
        self.hub.unsubscribe(connection)
        self.hub.register(connection, user).unregister()

    def state(self) -> dict[str, Any]:
        """Return what is known."""
        presence = self.presence
        return {
            "users": sorted(presence.users("room"), key=str),
            "count": presence.count("room"),
            "processes": presence.processes,
            "leads": presence.leads,
            "complete": presence.complete,
            "told": self.told,
            "malformed": self.relay.stats().malformed,
        }

    def do(self, command: str, arguments: list[Any]) -> Any:
        """Carry out a command."""
        match command:
            case "enter":
                self.enter(*arguments)
            case "leave":
                self.leave(*arguments)
            case "state":
                return self.state()
            case _:
                raise ValueError(command)
        return None


async def main(kind: str, url: str, relay: dict[str, Any], presence: dict[str, Any]) -> None:
    room = Room(kind, url, relay, presence)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with room.relay:
        write_line(json.dumps("ready"))
        while line := await lines.readline():
            command, *arguments = json.loads(line)
            write_line(json.dumps(room.do(command, arguments)))


class Process(Told):
    """The other process, as seen from the first."""

    @classmethod
    @contextlib.asynccontextmanager
    async def run(cls, kind: str, url: str, relay: dict[str, Any], presence: dict[str, Any]) -> AsyncIterator[Process]:
        """Run it, with options of its relay and its presence."""
        async with running(
            sys.executable,
            "-m",
            "helpers.presence_process",
            *(kind, url, json.dumps(relay), json.dumps(presence)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        ) as process:
            self = cls(process)
            assert await self.answer() == "ready"
            yield self

    async def tell(self, command: str, *arguments: Any) -> Any:
        """Have it do something; return what it says."""
        return await self.ask((command, *arguments))

    async def until(self, **wanted: Any) -> Any:
        """Ask for its state until it is as wanted; return it."""
        state: dict[str, Any] = {}
        try:
            async with asyncio.timeout(2 * TIMEOUT):
                while not state or any(state[name] != value for name, value in wanted.items()):
                    await asyncio.sleep(0.02)
                    state = await self.tell("state")
        except TimeoutError:
            raise AssertionError(f"wanted {wanted}, but it says {state}") from None
        return state


if __name__ == "__main__":
    kind, url, relay, presence = sys.argv[1:]
    asyncio.run(main(kind, url, json.loads(relay), json.loads(presence)))
