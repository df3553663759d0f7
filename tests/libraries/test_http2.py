"""WebSockets in streams of HTTP/2, as in examples/http2.py, with a client made of h2 and wsproto."""

from __future__ import annotations

import asyncio
import importlib.util
import random
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
import wsproto
import wsproto.events
from wsproto.extensions import PerMessageDeflate
from wsproto.handshake import client_extensions_handshake

import wsfast
from helpers.fixtures import Run
from helpers.peers import TIMEOUT, until

EXAMPLE = Path(__file__).parents[2] / "examples" / "http2.py"


def load() -> Any:
    spec = importlib.util.spec_from_file_location("http2_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Client(asyncio.Protocol):
    """A client with several WebSockets in one connection, which gives each only as much room as it is told to."""

    def __init__(self) -> None:
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.websockets: dict[int, Any] = {}
        self.messages: dict[int, list[str]] = {}
        self.closed: dict[int, Any] = {}
        self.unread: dict[int, int] = {}
        self.reads: set[int] = set()
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.http.initiate_connection()
        self.http.increment_flow_control_window(1 << 24)
        self.flush()

    def flush(self) -> None:
        self.transport.write(self.http.data_to_send())

    def open(self, *, compress: bool, reads: bool) -> int:
        stream_id: int = self.http.get_next_available_stream_id()
        extensions = [PerMessageDeflate()] if compress else []
        headers = [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "localhost"),
            ("sec-websocket-version", "13"),
        ]
        if compress:
            offer = extensions[0].offer()
            headers.append(("sec-websocket-extensions", f"{extensions[0].name}; {offer}"))
        self.http.send_headers(stream_id, headers)
        self.websockets[stream_id] = extensions
        self.messages[stream_id] = []
        self.unread[stream_id] = 0
        if reads:
            self.reads.add(stream_id)
        self.flush()
        return stream_id

    def read(self, stream_id: int) -> None:
        """Have a stream be read from now on."""
        self.reads.add(stream_id)
        self.http.acknowledge_received_data(self.unread.pop(stream_id), stream_id)
        self.unread[stream_id] = 0
        self.flush()

    def data_received(self, data: bytes) -> None:
        for event in self.http.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                headers: dict[Any, Any] = dict(event.headers)
                assert headers[":status"] == "200"
                offered = self.websockets[event.stream_id]
                accepted = [headers["sec-websocket-extensions"]] if "sec-websocket-extensions" in headers else []
                assert len(accepted) == len(offered)
                extensions = client_extensions_handshake(accepted, offered)
                self.websockets[event.stream_id] = wsproto.connection.Connection(
                    wsproto.ConnectionType.CLIENT, extensions
                )
            elif isinstance(event, h2.events.DataReceived):
                self.take(event)
        self.flush()

    def take(self, event: Any) -> None:
        websocket = self.websockets[event.stream_id]
        if event.stream_id in self.reads:
            self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        else:
            self.unread[event.stream_id] += event.flow_controlled_length
        websocket.receive_data(event.data)
        text = getattr(websocket, "partial", "")
        for message in websocket.events():
            if isinstance(message, wsproto.events.TextMessage):
                text += message.data
                if message.message_finished:
                    self.messages[event.stream_id].append(text)
                    text = ""
            elif isinstance(message, wsproto.events.CloseConnection):
                self.closed[event.stream_id] = message.code
        websocket.partial = text


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "deflate"])
def test_streams(run: Run, core: Any, compress: bool) -> None:
    """All streams get all messages in order; one whose window is full hurts no other, not even in its connection."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        attached: list[Any] = []
        server = await loop.create_server(lambda: load().Session(attached.append), "127.0.0.1", 0)
        _, client = await loop.create_connection(Client, *server.sockets[0].getsockname())
        streams = [client.open(compress=compress, reads=reads) for reads in (True, False, True)]
        await until(lambda: len(attached) == 3)
        channel = wsfast.Channel(slow=wsfast.Disconnect(max_messages=None, max_bytes=None))
        for connection in attached:
            channel.subscribe(connection)
        messages = [f"{number} " + random.Random(number).randbytes(1000).hex() for number in range(200)]
        for number, message in enumerate(messages):
            channel.publish(message)
            if number % 5 == 0:
                await asyncio.sleep(0)
            if number == 50:
                assert sum(wsfast.broadcast(attached[::2], "broadcast")) == 2
        expected = [*messages[:50], "broadcast", *messages[50:]]
        async with asyncio.timeout(TIMEOUT):
            for stream in streams[::2]:
                await until(lambda stream=stream: len(client.messages[stream]) == 201)  # type: ignore[misc]
                got = client.messages[stream]
                assert [one for one in got if one != "broadcast"] == messages
                assert sorted(got) == sorted(expected)
        assert 0 < len(client.messages[streams[1]]) < 100
        assert channel.stats().lagging == 1
        client.read(streams[1])
        await until(lambda: len(client.messages[streams[1]]) == 200)
        assert client.messages[streams[1]] == messages
        await until(lambda: channel.stats().queued == 0)
        assert channel.stats().sent == 600
        await attached[0].close(4000, "that is all")
        await until(lambda: streams[0] in client.closed)
        assert client.closed == {streams[0]: 4000}
        assert wsfast.broadcast(attached, "last").skipped == 1
        client.transport.abort()
        server.close()

    run(main)
