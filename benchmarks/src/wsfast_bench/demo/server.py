"""The server of the page, and the comparison that the demo runs by itself."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from wsfast import Channel, DropOldest
from wsfast_bench.machine import UnfitError
from wsfast_bench.returning import FaultError

from .child import LostError
from .recovery import AWAY, cut_off
from .show import CommandError, Settings, Show
from .story import LANES, judge, summarize
from .terminal import Terminal
from .web import CONTROL, Web

__all__ = ["HEALTHY", "PORT", "STALLED", "Demo", "PortError", "serve_page"]

PORT = 8765
"""The port of the page, if it is free and no other is asked for."""

HISTORY = 120
"""Samples that a page gets when it connects: half a minute."""

HEALTHY, STALLED = 6.0, 12.0
"""Seconds of the two parts of the comparison."""

PORTS = {
    errno.EADDRINUSE: "port {port} is in use; choose another --port, or 0 for any free one",
    errno.EACCES: "this process may not listen at port {port}; choose a --port from 1024 on, or 0 for any free one",
}


class PortError(Exception):
    """It cannot listen there; the text says why."""


def parse(message: str | bytes) -> tuple[str, object]:
    """Return the name and the value of a command of the page.

    Raises:
        CommandError: If it is no command.
    """
    try:
        command = json.loads(message)
    except (ValueError, RecursionError):
        raise CommandError("a command must be JSON") from None
    if not isinstance(command, dict) or set(command) != {"do", "value"} or not isinstance(command["do"], str):
        raise CommandError('a command must be an object with "do" and "value"')
    return command["do"], command["value"]


@contextlib.asynccontextmanager
async def serve_page(show: Show, port: int | None = 0) -> AsyncIterator[str]:
    """Serve the page of a show on 127.0.0.1 while in the context, and yield its URL.

    Args:
        show: The show of the page.
        port: Port to listen at; 0 for any free one, None for `PORT` if it is free.

    Raises:
        PortError: If it cannot listen at the port.
    """
    # A tab that sleeps gets the samples of the last half minute when it wakes up.
    samples = Channel("samples", slow=DropOldest(max_messages=HISTORY), history=HISTORY)
    web = Web(0)

    def answer(connection: ServerConnection, request: Request) -> Response | None:
        response = web.answer(request)
        return web.missing() if response is None and request.path != CONTROL else response

    async def control(connection: ServerConnection) -> None:
        try:
            subscription = samples.subscribe(connection)
        except RuntimeError:  # the page is gone again
            return
        with contextlib.suppress(ConnectionClosed), subscription:
            async for message in connection:
                try:
                    show.do(*parse(message))
                    show.auto = False
                except CommandError as exc:
                    await connection.send(json.dumps({"error": str(exc)}))

    options: dict[str, Any] = {"compression": None, "close_timeout": 1, "max_size": 4096, "process_request": answer}
    try:
        server = await serve(control, "127.0.0.1", PORT if port is None else port, **options)
    except OSError as exc:
        if port is None:
            server = await serve(control, "127.0.0.1", 0, **options)
        elif exc.errno in PORTS:
            raise PortError(PORTS[exc.errno].format(port=port)) from None
        else:
            raise
    own = next(iter(server.sockets)).getsockname()[1]
    web = Web(own)
    show.on_sample = lambda sample: samples.publish(json.dumps(sample))
    async with server:
        yield f"http://127.0.0.1:{own}/"


@dataclass(slots=True)
class Demo:
    """A demo, from start to end.

    Attributes:
        settings: Settings of the show.
        seconds: Seconds of the comparison; None for HEALTHY and STALLED.
        stay: Whether to go on after the comparison, until Ctrl-C.
        port: Port to listen at; 0 for any free one, None for `PORT` if it is free.
        browse: Whether to open the page in a browser.
    """

    settings: Settings = field(default_factory=Settings)
    seconds: float | None = None
    stay: bool = False
    port: int | None = None
    browse: bool = False
    status: int | None = None
    """The exit status, once the comparison is over."""

    def run(self) -> int:
        """Run it; return 0 if all healthy clients got all messages in order, and those cut off lost none, else 1."""
        try:
            asyncio.run(self._run())
        except (LostError, PortError) as exc:
            print(f"\nwsfast demo: error: {exc}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            if self.status is None:
                raise
            print()
        assert self.status is not None
        return self.status

    async def _run(self) -> None:
        terminal = Terminal()
        show = Show(self.settings)
        show.auto = True
        async with serve_page(show, self.port) as url:
            terminal.say(f"The page is at {url}")
            total = self.settings.clients * len(LANES)
            terminal.say(f"Starting 3 servers, and {total:,} clients in one more process ({self.settings.loop})")
            show.on_connected = lambda count: terminal.show_progress(f"{count:,} clients have connected")
            async with show.open():
                if self.browse:
                    # Some browsers return only when they are closed, and nobody waits for this thread.
                    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
                await self._compare(show, terminal)
                if self.stay:
                    terminal.say(f"\nThe page goes on at {url}. Ctrl-C ends the demo.")
                    await self._repeat(show)

    async def _compare(self, show: Show, terminal: Terminal) -> None:
        """Have all clients read, then stall one in each lane; print both live, and a summary."""
        samples: list[dict[str, Any]] = []

        async def watch(seconds: float) -> None:
            before, end = len(samples), asyncio.get_running_loop().time() + seconds
            while (left := end - asyncio.get_running_loop().time()) > 0 or len(samples) == before:
                sample = await show.until_sample()
                samples.append(sample)
                terminal.show(sample, round(left))

        part = 1.0 if self.seconds is None else self.seconds / (HEALTHY + STALLED)
        await watch(part * HEALTHY)
        show.do("tunnel", True)
        await watch(part * STALLED)
        show.do("tunnel", False)
        terminal.end()
        for line in summarize(samples):
            terminal.say(line)
        self.status = judge(samples[-1])
        await self._recover(show, terminal, part)

    async def _recover(self, show: Show, terminal: Terminal, part: float) -> None:
        """Show that clients lose nothing that were cut off and come back."""
        if os.name != "posix":
            return
        terminal.say("\nNow all clients of one more server are cut off at once, and come back.")
        try:
            found = await cut_off(self.settings.clients, self.settings.rate, min(part, 1.0) * AWAY)
        except FaultError as exc:
            print(f"wsfast demo: error: {exc}", file=sys.stderr)
            self.status = 1
        except (UnfitError, OSError) as exc:  # TimeoutError is an OSError
            terminal.say(f"This part is left out: {str(exc) or 'it takes too long on this machine'}")
        else:
            for sentence in found.sentences():
                terminal.say(sentence)
            show.recovery = " ".join(found.sentences())

    async def _repeat(self, show: Show) -> None:
        """Do the same again and again, until somebody uses the page."""
        while show.auto:
            for stalled, seconds in ((False, HEALTHY), (True, STALLED)):
                end = asyncio.get_running_loop().time() + seconds
                while asyncio.get_running_loop().time() < end and show.auto:
                    await show.until_sample()
                if show.auto:
                    show.do("tunnel", not stalled)
        await show.watch()
