"""A clock for WebSockets in streams of HTTP/2 (RFC 8441), with h2, wsproto and asyncio.

HTTP/2 has frames of its own and limits the bytes in flight per stream. So each stream here is a `wsfast.Sink`: it puts
WebSocket frames into DATA frames as far as the stream's window allows, and says when there is room.

Install it with `pip install wsfast h2 wsproto` and run `python examples/http2.py`. Browsers use HTTP/2 over TLS only.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import wsproto
import wsproto.events
from wsproto.extensions import PerMessageDeflate
from wsproto.handshake import server_extensions_handshake

import wsfast


class Stream:
    """A WebSocket in a stream of HTTP/2: a `wsfast.Sink`."""

    def __init__(self, session: Session, stream_id: int, extensions: list[Any]) -> None:
        self.session = session
        self.id = stream_id
        self.websocket = wsproto.connection.Connection(wsproto.ConnectionType.SERVER, extensions)
        self.waiting = bytearray()
        self.ends = False

    def write(self, data: bytes) -> None:
        """Send WebSocket frames, now or when there is room."""
        self.waiting += data
        self.flush()

    def writable(self) -> bool:
        """Whether everything written so far fitted into the stream's window."""
        return not self.waiting

    def close(self, code: int, reason: str) -> None:
        """Send a close frame and end the stream."""
        if code == 1006:
            self.session.http.reset_stream(self.id)
        else:
            self.waiting += self.websocket.send(wsproto.events.CloseConnection(code=code, reason=reason))
            self.ends = True
        self.flush()

    def flush(self) -> None:
        """Send as much as the stream's window has room for."""
        http = self.session.http
        while self.waiting:
            size = min(len(self.waiting), http.local_flow_control_window(self.id), http.max_outbound_frame_size)
            if size <= 0:
                break
            http.send_data(self.id, bytes(self.waiting[:size]))
            del self.waiting[:size]
        if self.ends and not self.waiting:
            self.ends = False
            http.end_stream(self.id)
        self.session.flush()

    def receive(self, data: bytes) -> None:
        """Handle data from the client."""
        self.websocket.receive_data(data)
        for event in self.websocket.events():
            if isinstance(event, wsproto.events.Ping):
                self.write(self.websocket.send(event.response()))
            elif isinstance(event, wsproto.events.CloseConnection):
                if self.websocket.state is wsproto.connection.ConnectionState.REMOTE_CLOSING:
                    self.write(self.websocket.send(event.response()))
                self.ends = True
                self.flush()


class Session(asyncio.Protocol):
    """A connection of HTTP/2."""

    def __init__(self, opened: Any) -> None:
        self.opened = opened
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.streams: dict[int, Stream] = {}
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """Announce that the server accepts WebSockets."""
        self.transport = transport
        self.http.initiate_connection()
        self.http.update_settings({h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL: 1})
        self.flush()

    def flush(self) -> None:
        """Write the pending frames of HTTP/2."""
        if data := self.http.data_to_send():
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Handle data from the client."""
        for event in self.http.receive_data(data):
            stream = self.streams.get(getattr(event, "stream_id", None) or 0)
            if isinstance(event, h2.events.RequestReceived):
                self.request(event)
            elif isinstance(event, h2.events.DataReceived) and stream is not None:
                self.http.acknowledge_received_data(event.flow_controlled_length, stream.id)
                stream.receive(event.data)
            elif isinstance(event, (h2.events.WindowUpdated, h2.events.RemoteSettingsChanged)):
                for one in list(self.streams.values()):
                    one.flush()
            elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)) and stream is not None:
                del self.streams[stream.id]
                stream.websocket.receive_data(None)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """End all WebSockets."""
        for stream in self.streams.values():
            with contextlib.suppress(wsproto.utilities.LocalProtocolError):
                stream.websocket.receive_data(None)

    def request(self, event: h2.events.RequestReceived) -> None:
        """Accept WebSockets; answer 404 to all other requests."""
        headers = dict(event.headers)
        if headers.get(":method") != "CONNECT" or headers.get(":protocol") != "websocket":
            self.http.send_headers(event.stream_id, [(":status", "404")], end_stream=True)
            return
        response = [(":status", "200")]
        extensions = [PerMessageDeflate()]
        offers = [offer.strip() for offer in headers.get("sec-websocket-extensions", "").split(",") if offer.strip()]
        accepted = server_extensions_handshake(offers, extensions)
        if accepted:
            response.append(("sec-websocket-extensions", accepted.decode()))
        self.http.send_headers(event.stream_id, response)
        stream = self.streams[event.stream_id] = Stream(
            self, event.stream_id, [extension for extension in extensions if extension.enabled()]
        )
        self.opened(wsfast.attach(stream, stream.websocket))


async def main(port: int = 8443) -> None:
    """Send the time to all clients ten times a second."""
    channel = wsfast.Channel("time", slow=wsfast.DropOldest(max_messages=10))
    server = await asyncio.get_running_loop().create_server(lambda: Session(channel.subscribe), "127.0.0.1", port)
    async with server:
        while True:
            channel.publish(time.strftime("%H:%M:%S"))
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
