"""The server of the demonstration: its page, its clients, and their ticks, until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import sys
import time
import webbrowser
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from wsfast import Channel, Conflate

from .clients import PATH
from .commands import CommandError, Settings, parse
from .crowd import PATIENCE, Crowd, LostError
from .figures import INTERVAL, Figures
from .show import PHASE, Show
from .terminal import Terminal, summarize
from .ticks import Tick
from .web import CONTROL, Web

__all__ = ["PORT", "Demo", "PortError", "Stage"]

PORT = 8765
"""Where it is if nobody says otherwise and nobody else is."""

HISTORY = 120
"""Samples that a page gets when it connects: a minute."""

PORTS = (
    "the port {port} is in use; take another --port, or 0 for any free one",
    "this process may not listen at port {port}; take a --port from 1024 on, or 0 for any free one",
)


class PortError(Exception):
    """It cannot listen there; the text says why."""


class Stage:
    """A server on 127.0.0.1 with the page, the clients and their ticks.

    Args:
        settings: How to begin.
        loop: `asyncio` or `uvloop`, for the process of the clients.
        processor: The processor to bind that to; None not to.
        port: Where to listen; 0 for any free port, None for `PORT` or any free one.
        limit: How many clients there may be.
        phase: Seconds for which one method sends before it is another's turn.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        loop: str = "asyncio",
        processor: int | None = None,
        port: int | None = 0,
        limit: int = 10_000,
        phase: float = PHASE,
    ) -> None:
        self.crowd = Crowd(loop, processor)
        self.show = Show(settings, self.crowd, limit, phase)
        self.figures = Figures(self.show)
        self.port = 0
        self.notices: list[str] = []
        self.on_sample: Callable[[dict[str, Any]], object] = lambda sample: None
        self._wanted = port
        # The page gets all that it shows through channels. If it does not keep up, as in a tab that sleeps, it gets the
        # newest tick of each symbol, and samples, which have no key, as far back as the bound allows.
        self._samples = Channel("samples", slow=Conflate(), history=HISTORY)
        self._ticker = Channel("ticker", slow=Conflate())
        self._web = Web(0)
        self.show.on_tick = self._publish_tick
        self.show.on_change = self._publish_state
        self.show.on_notice = self._publish_notice

    @property
    def url(self) -> str:
        """Where its page is."""
        return f"http://127.0.0.1:{self.port}/"

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Stage]:
        """Listen, have the process of the clients run, and measure.

        Raises:
            PortError: If it cannot listen at the port.
        """
        async with contextlib.AsyncExitStack() as stack:
            server = await stack.enter_async_context(await self._listen())
            self.port = next(iter(server.sockets)).getsockname()[1]
            self._web = Web(self.port)
            stack.push_async_callback(self.crowd.end)
            await self.crowd.start(self.port)
            measuring = asyncio.create_task(self._measure())
            stack.callback(measuring.cancel)
            yield self

    async def _listen(self) -> Any:
        ports = (PORT, 0) if self._wanted is None else (self._wanted,)
        for port in ports:
            options: dict[str, Any] = {
                "compression": None,
                "ping_interval": None,  # a client that is stalled is for the policy to judge
                "open_timeout": PATIENCE,
                "close_timeout": 1,
                "max_size": 4096,
                "process_request": self._answer,
                "logger": logging.getLogger("wsfast.demo"),
            }
            try:
                server = await serve(self._attend, "127.0.0.1", port, **options)
            except OSError as exc:
                if exc.errno == errno.EADDRINUSE:
                    if port != ports[-1]:
                        continue
                    raise PortError(PORTS[0].format(port=port)) from None
                if exc.errno == errno.EACCES:
                    raise PortError(PORTS[1].format(port=port)) from None
                raise
            return _closing(server)
        raise AssertionError

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        response = self._web.answer(request)
        if response is None and request.path != CONTROL and not self.show.expects(_number_in(request.path)):
            response = self._web.missing()
        return response

    async def _attend(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        if connection.request.path == CONTROL:
            await self._control(connection)
        else:
            await self.show.attend(_number_in(connection.request.path), connection)

    # ---- The page

    async def _control(self, connection: ServerConnection) -> None:
        """Tell a page everything, and do what it asks for."""
        with (
            contextlib.suppress(ConnectionClosed),
            self._samples.subscribe(connection),
            self._ticker.subscribe(connection),
        ):
            async for message in connection:
                try:
                    self.show.do(*parse(message))
                except CommandError as exc:
                    await connection.send(json.dumps({"type": "error", "text": str(exc)}))

    def _publish_tick(self, tick: Tick) -> None:
        if self._ticker:
            values = json.loads(tick.message)
            del values["pad"]
            self._ticker.publish(json.dumps({"type": "tick", **values}), key=tick.symbol)

    def _publish_state(self) -> None:
        if self._ticker:
            self._ticker.publish(json.dumps({"type": "state", **self.show.state()}), key="state")

    def _publish_notice(self, text: str) -> None:
        self.notices.append(text)
        self._ticker.publish(json.dumps({"type": "notice", "text": text}))

    async def _measure(self) -> None:
        while True:
            sample = self.figures.sample()
            self._samples.publish(json.dumps({"type": "sample", **sample}))
            self.on_sample(sample)
            await asyncio.sleep(INTERVAL)


@contextlib.asynccontextmanager
async def _closing(server: Any) -> AsyncIterator[Any]:
    """Close a server at the end."""
    try:
        yield server
    finally:
        server.close()
        await server.wait_closed()


def _number_in(path: str) -> int:
    """Return the number of the client that a path is for, 0 if it is for none."""
    number = path.removeprefix(PATH)
    return int(number) if path.startswith(PATH) and number.isascii() and number.isdigit() and len(number) < 10 else 0


@dataclass(slots=True)
class Demo:
    """A demonstration, from its beginning to its end.

    Attributes:
        clients: How many clients connect at first.
        seconds: How long to send ticks; None until Ctrl-C.
        settings: How to begin.
        loop: `asyncio` or `uvloop`, for both processes.
        processors: One for the server, one for the clients; None not to bind them.
        stalled: How many of the clients do not read, at first.
        port: Where to listen; 0 for any free port, None for `PORT` or any free one.
        limit: How many clients there may be.
        browse: Whether to open the page in a browser.
    """

    clients: int
    seconds: float | None
    loop: str
    processors: tuple[int, int] | None
    settings: Settings = field(default_factory=Settings)
    stalled: int = 0
    port: int | None = None
    limit: int = 10_000
    browse: bool = False

    def run(self) -> int:
        """Run it; return 0 if all clients that read received all ticks in order, else 1."""
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
        if self.loop == "uvloop":
            import uvloop

            loop_factory = uvloop.new_event_loop
        affinity = None
        if self.processors is not None:
            affinity = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {self.processors[0]})
        # Without anybody who listens, Python would write warnings of stalled clients into the view.
        quiet = logging.NullHandler()
        logging.getLogger("wsfast").addHandler(quiet)
        try:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                return runner.run(self._run())
        except (LostError, PortError) as exc:
            print(f"\nwsfast demo: error: {exc}", file=sys.stderr)
            return 1
        finally:
            logging.getLogger("wsfast").removeHandler(quiet)
            if affinity is not None:
                os.sched_setaffinity(0, affinity)

    async def _run(self) -> int:
        terminal = Terminal()
        phase = PHASE if self.seconds is None else min(PHASE, self.seconds / 3)
        stage = Stage(
            self.settings,
            loop=self.loop,
            processor=None if self.processors is None else self.processors[1],
            port=self.port,
            limit=self.limit,
            phase=phase,
        )
        show = stage.show
        async with stage.open():
            terminal.say(f"The page is at {stage.url}")
            begin = time.perf_counter()
            stage.on_sample = terminal.show_arrivals
            show.do("add", self.clients)
            await show.gather()
            terminal.say(f"{self.clients} clients have connected in {time.perf_counter() - begin:.1f} s ({self.loop})")
            if self.stalled:
                show.do("stall", min(self.stalled, self.clients))
            if self.seconds is None:
                terminal.say("Ctrl-C ends it.")
            stage.on_sample = lambda sample: terminal.show_sample(sample, stage.notices)
            if self.browse:
                # Some browsers do not return before they are closed.
                asyncio.get_running_loop().run_in_executor(None, webbrowser.open, stage.url)
            await self._send_ticks(show)
            report = await show.finish()
            terminal.end()
            return summarize(show, report)

    async def _send_ticks(self, show: Show) -> None:
        """Send ticks until the time is over, or Ctrl-C.

        Raises:
            LostError: If the clients do not follow.
        """
        end = asyncio.Event()
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            loop.remove_signal_handler(signal.SIGINT)  # a second one is not to be waited for
            end.set()

        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # Windows; not the main thread
            loop.add_signal_handler(signal.SIGINT, interrupt)
        sending = asyncio.create_task(show.run())
        ending = asyncio.create_task(end.wait())
        begin = loop.time()
        try:
            while not sending.done() and not end.is_set():
                left = None if self.seconds is None else begin + self.seconds - loop.time()
                if left is not None and left <= 0:
                    if show.compared:
                        return
                    left = 0.05
                await asyncio.wait((sending, ending), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending
        finally:
            sending.cancel()
            ending.cancel()
            await asyncio.wait((sending, ending))
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.remove_signal_handler(signal.SIGINT)
