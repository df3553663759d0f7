"""What waits in a transport's write buffer is not looked through: since Python 3.12, asyncio adds it up when asked."""

from __future__ import annotations

import asyncio
import asyncio.selector_events
import contextlib
import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import wsfast
from helpers.fanout import channel_of, hub_of
from helpers.libraries import LIBRARIES
from helpers.peers import TIMEOUT, until
from helpers.stage import upstream
from wsfast.connections import adapt

OURS = str(Path(wsfast.__file__).parent)
ASKED: Any = getattr(asyncio.selector_events, "_SelectorSocketTransport").get_write_buffer_size  # noqa: B009
MANY = 20_000
NAMES = [name for name in LIBRARIES if name not in ("picows", "sink", "tornado")]  # which have buffers of their own
"""Libraries that use asyncio's transports."""


class Questions:
    """How often asyncio's transports were asked how much waits: by wsfast, and by themselves when written to."""

    def __init__(self) -> None:
        self.ours = self.own = 0

    def note(self, frame: Any, event: str, _argument: Any) -> None:
        if event == "call" and frame.f_code is ASKED.__code__:
            self.ours += frame.f_back.f_code.co_filename.startswith(OURS)
            self.own += frame.f_back.f_code.co_name == "_maybe_pause_protocol"


@contextlib.contextmanager
def counted() -> Iterator[Questions]:
    questions = Questions()
    before = sys.getprofile()
    sys.setprofile(questions.note)
    try:
        yield questions
    finally:
        sys.setprofile(before)


def play(name: str, act: Callable[[Any, Any], Any], *, tls: Any = None, debug: bool = False) -> None:
    """Act with a connection in whose transport many messages wait, and its client, which does not read."""

    async def main() -> None:
        async with asyncio.timeout(TIMEOUT), LIBRARIES[name].open(compress=False, small=True, tls=tls) as connect:
            connection, client = await connect()
            if debug:
                connection.protocol.debug = True
            client.transport.pause_reading()
            while not wsfast.broadcast([connection], "x" * 4096).buffered:
                pass
            transport = adapt(connection).transport
            if tls is None:
                write = wsfast.PreparedMessage("waits").frame
                transport._buffer.extend([write] * MANY if sys.version_info >= (3, 12) else write * MANY)
            await act(connection, client)

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())


@pytest.mark.usefixtures("core")
@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
@pytest.mark.parametrize("over_tls", [False, True], ids=["tcp", "tls"])
@pytest.mark.parametrize("name", ["websockets", "wsfast.serve"])
def test_broadcast_asks_no_more_often_than_upstream(
    name: str, over_tls: bool, debug: bool, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """The transport looks at its write buffer when it is written to. Nobody else does, also if frames are logged."""

    async def act(connection: Any, _: Any) -> None:
        with counted() as theirs:
            upstream([connection], "hello")
        with counted() as ours:
            assert wsfast.broadcast([connection], "hello").buffered == 1
        assert theirs.own == (0 if over_tls else 1)
        assert (ours.own, ours.ours) == (theirs.own, 0)

    play(name, act, tls=tls if over_tls else None, debug=debug)


@pytest.mark.usefixtures("core")
@pytest.mark.parametrize("name", NAMES)
def test_nothing_asks(name: str) -> None:
    """Whatever is sent to a client that does not read, and whatever it is heard of, its transport is not asked."""

    async def act(connection: Any, client: Any) -> None:
        with counted() as questions:
            assert wsfast.broadcast([connection], "hello").buffered == 1
        assert (questions.own, questions.ours) == (1, 0)
        publishers = channel_of([connection]), hub_of([connection])
        with counted() as questions:
            for _ in range(10):
                for publish in publishers:
                    publish("hello")
                await client.pong()
                await asyncio.sleep(0.001)
        assert (questions.own, questions.ours) == (0, 0)

    play(name, act)


@pytest.mark.usefixtures("core")
@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
@pytest.mark.parametrize("name", ["websockets", "wsfast.serve"])
def test_nothing_asks_while_backlogs_are_drained(name: str, debug: bool) -> None:
    """A client that reads again gets what waits in the transport and behind it, and wsfast never asks how much."""

    async def act(connection: Any, client: Any) -> None:
        channel = wsfast.Channel()
        channel.subscribe(connection)
        with counted() as questions:
            for number in range(10):
                channel.publish(f"{number}")
                channel.flush()
                await asyncio.sleep(0.02)  # what cannot be watched is looked at in the meantime
            assert channel.stats().queued == 10
            client.transport.resume_reading()
            while await client.recv() != "9":
                pass
            await until(lambda: channel.stats().queued == 0)
        assert questions.ours == 0
        assert channel.stats().sent == 10

    play(name, act, debug=debug)
