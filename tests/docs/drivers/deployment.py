"""docs/how-to/deployment.md: its server ends as it says, and its configurations are those that were tried."""

from __future__ import annotations

import asyncio
import configparser
import inspect
import re
import signal
import sys
from pathlib import Path

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.connection import Connection

from helpers.blocks import copy, dial, receive, runs
from helpers.pages import Block, digest_of
from helpers.peers import TIMEOUT
from helpers.ports import free_port
from helpers.processes import running

PAGE = "docs/how-to/deployment.md"

TRIED = {
    "caddy": "b6e6ebbc8df82fb4",
    "haproxy": "dc131290233a9674",
    "nginx": "2b14ee02b0ff49ac",
    "systemd": "e66e19b153721df1",
}
"""Digests of the blocks that were last tried: `python tests/isolated/proxies.py` tries them, and prints these."""


def was_tried(block: Block) -> bool:
    """Whether a block is the one that was tried by hand."""
    return digest_of(block.code) == TRIED[block.name or ""]


@runs(PAGE, "server")
async def server(_: Block, directory: Path) -> None:
    """It answers load balancers, and SIGTERM ends it: clients get the last message, and a close frame."""
    port = free_port()
    copy(PAGE, directory, port)
    async with running(sys.executable, "server.py", cwd=directory) as process, asyncio.timeout(TIMEOUT):
        client: ClientConnection = await dial(port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        assert answer.endswith(b"ok\n"), answer
        writer.close()
        process.send_signal(signal.SIGTERM)
        assert await receive(client) == ['{"restarting": true}']
        await client.wait_closed()
        assert client.close_code == 1001
        assert await process.wait() == 0


@runs(PAGE, "nginx")
@runs(PAGE, "haproxy")
@runs(PAGE, "caddy")
async def proxy(block: Block, _: Path) -> None:
    """The configuration is the one that was tried, and its timeouts are longer than the interval of pings."""
    assert was_tried(block)
    interval = inspect.signature(Connection).parameters["ping_interval"].default
    for seconds in re.findall(r"(?:proxy_read_timeout|timeout tunnel) (\d+)s", block.code):
        assert int(seconds) > 2 * interval


@runs(PAGE, "systemd")
async def systemd(block: Block, _: Path) -> None:
    """The unit was tried, and waits for clients that take all of their time to close."""
    assert was_tried(block)
    unit = configparser.ConfigParser()
    unit.read_string(block.code)
    timeout = inspect.signature(Connection).parameters["close_timeout"].default
    assert unit.getint("Service", "TimeoutStopSec") > timeout
