"""Try the configurations of docs/how-to/deployment.md with the programs that they are for. It is run by hand.

    python tests/isolated/proxies.py nginx haproxy caddy systemd

The programs must be found on the PATH. What it prints for each is a digest, which tests/docs/drivers/deployment.py
compares with that of the block on the page: so a block that was changed must be tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

import wsfast
from helpers.pages import ROOT, blocks_of, digest_of
from helpers.peers import TIMEOUT, until
from helpers.ports import free_port
from helpers.processes import running

PAGE = "docs/how-to/deployment.md"
CLIENTS = 20
SHORT = 2  # seconds

COMMANDS = {
    "nginx": ["nginx", "-p", "{directory}", "-c", "{file}", "-g", "daemon off; pid {directory}/pid;"],
    "haproxy": ["haproxy", "-f", "{file}"],
    "caddy": ["caddy", "run", "--adapter", "caddyfile", "--config", "{file}"],
}
MESSAGE = "x" * 1000


def code_of(name: str) -> str:
    """Return the code of a block of the page."""
    (code,) = (block.code for block in blocks_of(PAGE) if block.name == name)
    return code


async def echo(channel: wsfast.Channel, connection: Any) -> None:
    """Serve a client: it gets what is published, and an echo; or its connection is closed."""
    with channel.subscribe(connection), contextlib.suppress(ConnectionClosed):
        async for text in connection:
            if text == "close":
                await connection.close(1013, "slow consumer")
            else:
                await connection.send(f"echo {text}")


def health(connection: Any, request: Any) -> Any:
    """Answer to those who ask by HTTP."""
    return connection.respond(200, "ok\n") if request.path == "/health" else None


async def dial(port: int, **options: Any) -> ClientConnection:
    """Connect, once the proxy is there."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            try:
                return await connect(f"ws://127.0.0.1:{port}", ping_interval=None, **options)
            except OSError:
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def proxied(kind: str, code: str, **options: Any) -> AsyncIterator[tuple[wsfast.Channel, int, int]]:
    """Run a server and a proxy; yield the channel, and the ports of both."""
    channel = wsfast.Channel("prices", slow=wsfast.DropOldest(max_messages=10))
    behind, front = free_port(), free_port()
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "configuration"
        code = code.replace("maxconn 20000", "maxconn 1000")  # for which HAProxy wants to have all descriptors at once
        file.write_text(code.replace("8765", str(behind)).replace("8080", str(front)))
        command = [word.format(directory=directory, file=file) for word in COMMANDS[kind]]
        program = shutil.which(command[0])
        assert program is not None, f"there is no {kind}"
        handler = functools.partial(echo, channel)
        async with (
            wsfast.serve(handler, "127.0.0.1", behind, process_request=health, **options),
            running(program, *command[1:]),
        ):
            yield channel, behind, front


async def carries(kind: str) -> None:
    """Handshake, compression, messages in both directions, close codes and plain HTTP go through."""
    async with proxied(kind, code_of(kind)) as (channel, _, port), asyncio.timeout(TIMEOUT):
        clients = [await dial(port) for _ in range(CLIENTS)]
        assert all(client.protocol.extensions for client in clients), "no compression was negotiated"
        await until(lambda: len(channel) == CLIENTS)
        for number in range(100):
            channel.publish(f"{number} {MESSAGE}")
            assert [await client.recv() for client in clients] == [f"{number} {MESSAGE}"] * CLIENTS
        for client in clients:
            await client.send("hello")
            assert await client.recv() == "echo hello"
        await clients[0].send("close")
        await clients[0].wait_closed()
        assert clients[0].close_code == 1013
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        assert answer.endswith(b"ok\n"), answer
        writer.close()
        for client in clients:
            await client.close()


async def survives(kind: str, ping_interval: float | None) -> bool:
    """Whether a connection outlives a short timeout of the proxy."""
    code = code_of(kind).replace("60s", f"{SHORT}s")
    async with proxied(kind, code, ping_interval=ping_interval) as (_, _, port), asyncio.timeout(TIMEOUT):
        client = await dial(port)
        try:
            async with asyncio.timeout(3 * SHORT):
                await client.recv()
        except TimeoutError:
            return True
        except ConnectionClosed:
            return False
        finally:
            await client.close()
    raise AssertionError("nothing was published")


async def taken(channel: wsfast.Channel, port: int) -> int:
    """Return how many bytes are taken for a client that does not read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    client = await connect(f"ws://127.0.0.1:{port}", sock=sock, max_queue=1, compression=None, ping_interval=None)
    await until(lambda: len(channel) == 1)
    sent, quiet = 0, 0
    while quiet < 50:  # the proxy takes some time to take what it takes
        channel.publish(MESSAGE)
        channel.flush()
        quiet = quiet + 1 if channel.stats().lagging else 0
        sent = channel.stats().sent
        await asyncio.sleep(0.005 if quiet else 0)
    client.transport.abort()
    await until(lambda: len(channel) == 0)
    return sent * len(MESSAGE)


async def try_proxy(kind: str) -> None:
    """Try everything with one proxy."""
    await carries(kind)
    print(f"{kind}: handshake, compression, messages, close codes and HTTP go through")
    if "60s" in code_of(kind):
        assert await survives(kind, SHORT / 4)
        assert not await survives(kind, None)
        print(f"{kind}: pings keep a connection open beyond its timeout, without them it is closed")
    async with proxied(kind, code_of(kind)) as (channel, behind, front):
        await (await dial(front)).close()
        await until(lambda: len(channel) == 0)
        direct, through = await taken(channel, behind), await taken(channel, front)
        print(f"{kind}: a client that does not read takes {direct >> 10} KiB directly, {through >> 10} KiB through it")


async def try_systemd(_: str) -> None:
    """Have systemd read the unit, with a program that is there."""
    code = code_of("systemd").replace("/srv/prices/venv/bin/python", sys.executable).replace("User=prices", "User=root")
    program = shutil.which("systemd-analyze")
    assert program is not None, "there is no systemd-analyze"
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "prices.service").write_text(code)
        async with (
            running(program, "verify", f"{directory}/prices.service", stderr=asyncio.subprocess.PIPE) as process,
            asyncio.timeout(TIMEOUT),
        ):
            errors = (await process.communicate())[1]
            ours = [line for line in errors.decode().splitlines() if "prices" in line]
            assert process.returncode == 0, errors.decode()
            assert not ours, ours
    print("systemd: the unit is right")


TRIALS = {**dict.fromkeys(COMMANDS, try_proxy), "systemd": try_systemd}

if __name__ == "__main__":
    for name in sys.argv[1:] or TRIALS:
        asyncio.run(TRIALS[name](name))
        print(f"{name}: {digest_of(code_of(name))}   in {PAGE}, {ROOT.name}")
