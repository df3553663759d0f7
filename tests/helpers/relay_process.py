"""A process of its own with a server, clients of it that check all that they get, a hub, and a relay.

It is told what to do by lines of JSON at its standard input, and answers each with one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

import wsfast
from helpers.brokers import relay_of
from helpers.peers import TIMEOUT
from helpers.processes import running, write_line
from helpers.told import Told
from wsfast.relay import Gap

__all__ = ["Process"]


class Client:
    """A client that is subscribed to some topics: messages say their topic, their publisher and their number."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.last: dict[tuple[str, str], int] = {}
        self.wrong: list[str] = []
        self.others: list[str] = []
        self.task: asyncio.Task[None] | None = None

    async def listen(self, connection: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in connection:
                text = message.decode() if isinstance(message, bytes) else message
                topic, _, rest = text.partition("|")
                publisher, _, number = rest.partition("|")
                if not number:
                    self.others.append(text)
                    continue
                if int(number) <= self.last.get((topic, publisher), -1):
                    self.wrong.append(text)
                self.last[topic, publisher] = int(number)
                self.counts[topic] += 1

    def report(self) -> dict[str, Any]:
        last: dict[str, dict[str, int]] = defaultdict(dict)
        for (topic, publisher), number in self.last.items():
            last[topic][publisher] = number
        return {"counts": self.counts, "last": last, "wrong": self.wrong[:10], "others": self.others}


class Second:
    """What the process does."""

    def __init__(self, port: int) -> None:
        self.hub = wsfast.Hub(name="second", slow=wsfast.Disconnect(max_bytes=64 << 20))
        self.port = port
        self.clients: dict[str, Client] = {}
        self.connections: list[ClientConnection] = []
        self.gaps: Counter[str] = Counter()
        self.relay: Any = None

    def on_gap(self, gap: Gap) -> None:
        self.gaps[gap.name] += gap.messages

    async def do(self, command: str, arguments: dict[str, Any]) -> Any:
        match command:
            case "subscribe":
                client = self.clients[arguments["client"]] = Client()
                path = "/".join(arguments["topics"])
                connection = await connect(f"ws://127.0.0.1:{self.port}/{path}", compression=None, max_queue=None)
                self.connections.append(connection)
                client.task = asyncio.create_task(client.listen(connection))
                await connection.ping()
                if arguments.get("settle", True):
                    await self.relay.subscribed(TIMEOUT)
            case "report":
                return {name: client.report() for name, client in self.clients.items()}
            case "stats":
                stats = self.relay.stats()
                return {name: getattr(stats, name) for name in stats.__slots__}
            case "gaps":
                return self.gaps
            case "publish":
                for number in range(arguments["start"], arguments["end"]):
                    for topic in arguments["topics"]:
                        self.hub.publish(topic, f"{topic}|second|{number}")
            case _:
                raise ValueError(command)
        return None


async def handle(second: Second, connection: ServerConnection) -> None:
    assert connection.request is not None
    second.hub.subscribe(connection, *connection.request.path[1:].split("/"))
    await connection.wait_closed()


async def main(kind: str, url: str, options: dict[str, Any]) -> None:
    second = Second(0)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with wsfast.serve(lambda connection: handle(second, connection), "127.0.0.1", 0, compression=None) as server:
        second.port = next(iter(server.sockets)).getsockname()[1]
        second.relay = relay_of(kind, second.hub, url, on_gap=second.on_gap, **options)
        async with second.relay:
            write_line(json.dumps("ready"))
            while line := await lines.readline():
                command, arguments = json.loads(line)
                write_line(json.dumps(await second.do(command, arguments)))
        for connection in second.connections:
            await connection.close()


class Process(Told):
    """The other process, as seen from the first."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        super().__init__(process)
        self._killed = False

    @classmethod
    @contextlib.asynccontextmanager
    async def run(cls, kind: str, url: str, **options: Any) -> AsyncIterator[Process]:
        """Run it; options are the relay's."""
        arguments = [kind, url, json.dumps(options)]
        async with running(
            sys.executable,
            "-m",
            "helpers.relay_process",
            *arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
            limit=1 << 24,
        ) as process:
            self = cls(process)
            assert await self.answer() == "ready"
            yield self
            if not self._killed:
                await self.end()

    async def tell(self, command: str, **arguments: Any) -> Any:
        """Have it do something; return what it says."""
        return await self.ask((command, arguments))

    async def until(self, command: str, condition: Any) -> Any:
        """Ask it something until a condition holds of the answer; return that."""
        answer = None
        try:
            async with asyncio.timeout(2 * TIMEOUT):
                while not condition(answer := await self.tell(command)):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            stats = await self.tell("stats")
            raise AssertionError(f"{command} still says {str(answer)[:2000]}; stats are {stats}") from None
        return answer

    async def kill(self) -> None:
        """Kill it, without a chance to say goodbye."""
        self._killed = True
        await super().kill()


if __name__ == "__main__":
    kind, url, options = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(kind, url, json.loads(options)))
