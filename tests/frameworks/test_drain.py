"""uvicorn with `drain_on_shutdown()`: what WebSockets and event streams see when the process gets SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

import wsfast.uvicorn
from helpers.peers import TIMEOUT
from helpers.ports import free_port
from helpers.processes import running
from wsfast.connections import foreign

APP = """
import asyncio
import contextlib

import fastapi

import wsfast
import wsfast.sse
import wsfast.uvicorn

wsfast.uvicorn.install()
wsfast.uvicorn.drain_on_shutdown({arguments})
hub = wsfast.Hub(slow=wsfast.Disconnect(max_bytes=None))


@contextlib.asynccontextmanager
async def lifespan(app):
    async def feed():
        number = 0
        while True:
            hub.publish("t", f"{{number}} " + "x" * {size})
            number += 1
            await asyncio.sleep(0.01)

    task = asyncio.create_task(feed())
    yield
    task.cancel()
    print("lifespan has ended, left:", len(hub), flush=True)


app = fastapi.FastAPI(lifespan=lifespan)


@app.get("/ready")
async def ready():
    return "yes"


@app.get("/events")
async def events():
    return wsfast.sse.EventSource(hub, "t", retry=1000)


@app.websocket("/ws")
async def websocket(websocket: fastapi.WebSocket):
    await websocket.accept()
    hub.subscribe(websocket, "t")
    with contextlib.suppress(fastapi.WebSocketDisconnect):
        while True:
            await websocket.receive_text()
"""

COMMANDS = {
    "uvicorn": ["uvicorn", "--log-level", "error", "--port", "{port}", "drain_app:app"],
    "uvicorn-wsproto": ["uvicorn", "--log-level", "error", "--ws", "wsproto", "--port", "{port}", "drain_app:app"],
    "uvicorn-workers": ["uvicorn", "--log-level", "error", "--workers", "1", "--port", "{port}", "drain_app:app"],
    "gunicorn": ["gunicorn", "--bind", "127.0.0.1:{port}", "-k", "wsfast.gunicorn.UvicornWorker", "drain_app:app"],
}


@contextlib.asynccontextmanager
async def serve(name: str, directory: Path, arguments: str, size: int = 0) -> AsyncIterator[tuple[Any, int]]:
    (directory / "drain_app.py").write_text(APP.format(arguments=arguments, size=size))
    port = free_port()
    command = [part.format(port=port) for part in COMMANDS[name]]
    async with running(
        sys.executable, "-m", *command, cwd=directory, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    ) as process:
        async with asyncio.timeout(TIMEOUT), httpx.AsyncClient() as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get(f"http://127.0.0.1:{port}/ready")).is_success:
                        break
                assert process.returncode is None
                await asyncio.sleep(0.05)
        yield process, port


async def read_all(client: Any) -> tuple[list[str], int | None, str | None]:
    messages: list[str] = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            messages.append((await client.recv()).split()[0])
    return messages, client.close_code, client.close_reason


async def read_events(port: int, opened: asyncio.Event) -> list[str]:
    """Return the data of the events of a response, which must end as it should."""
    lines = []
    async with (
        httpx.AsyncClient(timeout=TIMEOUT) as client,
        client.stream("GET", f"http://127.0.0.1:{port}/events") as response,
    ):
        async for line in response.aiter_lines():
            lines.append(line)
            opened.set()
    return [line.removeprefix("data:").split()[0] for line in lines if line.startswith("data:")]


@pytest.mark.parametrize("name", COMMANDS)
def test_sigterm(name: str, tmp_path: Path) -> None:
    """Clients get every message until their close frame or the end of their stream, and the process ends in time."""

    async def main() -> None:
        async with serve(name, tmp_path, '3.0, reason="new release"') as (process, port), asyncio.timeout(TIMEOUT):
            clients = [await connect(f"ws://127.0.0.1:{port}/ws") for _ in range(8)]
            readers = [asyncio.create_task(read_all(client)) for client in clients]
            opened = [asyncio.Event() for _ in range(3)]
            streams = [asyncio.create_task(read_events(port, one)) for one in opened]
            for one in opened:
                await one.wait()
            begin = time.monotonic()
            process.send_signal(signal.SIGTERM)
            ends = []
            for messages, code, reason in await asyncio.gather(*readers):
                assert (code, reason) == (1012, "new release")
                assert messages == [str(int(messages[0]) + number) for number in range(len(messages))]
                ends.append(int(messages[-1]))
            for messages in await asyncio.gather(*streams):
                assert messages == [str(int(messages[0]) + number) for number in range(len(messages))]
                ends.append(int(messages[-1]))
            assert len(set(ends)) > 5, "not all at once"
            output, _ = await process.communicate()
            assert time.monotonic() - begin < 10
            assert b"lifespan has ended, left: 0" in output
            assert b"Traceback" not in output

    asyncio.run(main())


def test_sigterm_with_a_stalled_client(tmp_path: Path) -> None:
    """Clients that do not read, of a WebSocket and of an event stream, do not keep the process from ending."""

    async def main() -> None:
        async with serve("uvicorn", tmp_path, "1.0", size=300_000) as (process, port), asyncio.timeout(TIMEOUT):
            stalled = await connect(f"ws://127.0.0.1:{port}/ws", max_queue=1, ping_interval=None)
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
            writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.read(1)
            healthy = await connect(f"ws://127.0.0.1:{port}/ws")
            await asyncio.wait([task := asyncio.create_task(read_all(healthy))], timeout=1)
            process.send_signal(signal.SIGTERM)
            begin = time.monotonic()
            output, _ = await process.communicate()
            assert time.monotonic() - begin < 8
            assert b"lifespan has ended, left: 0" in output
            assert (await task)[1] == 1012
            stalled.transport.abort()
            writer.close()

    asyncio.run(main())


def test_mistakes() -> None:
    """A wrong argument raises an error, and uvicorn's own way stays."""
    with pytest.raises(ValueError, match=r"^seconds must be positive"):
        wsfast.uvicorn.drain_on_shutdown(0)
    with pytest.raises(ValueError, match=r"^code must be a close code"):
        wsfast.uvicorn.drain_on_shutdown(1, 1006)
    assert foreign._takeover is None
