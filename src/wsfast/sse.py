"""Server-sent events: browsers get what a channel or a hub publishes through an `EventSource`, without WebSockets.

    @app.get("/prices")
    async def prices():
        return wsfast.sse.EventSource(hub, "prices.>")

Responses are subscribers like WebSockets are, of the same channels and hubs: a message is published once for all of
them. The format is that of WHATWG HTML, section 9.2.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from ._arguments import check_callback, check_integer, check_seconds, needs
from ._encoding.chunks import COMMENT
from ._encoding.events import Event, event_with_id
from ._keepalive import Keepalive
from .channel import Channel
from .connections.events import EventStream, QueuedEventStream
from .hub import Hub, HubChannel, Position
from .hub.filters import Tags, check_tags

if TYPE_CHECKING:
    from starlette.responses import Response
else:
    try:
        from starlette.responses import Response  # FastAPI only takes its subclasses as responses
    except ModuleNotFoundError:
        from .connections.events_asgi import Response

__all__ = ["Event", "EventSource", "EventStream"]

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
END_TIMEOUT = 15.0
"""Seconds after which a response ends without its last chunk, if its client does not read. Connections that can be
reached are aborted before."""

_END = {"type": "http.response.body", "body": b"", "more_body": False}


class EventSource(Response):
    """A response whose events are the messages of a channel, or of topics of a hub.

    Return it from an endpoint of FastAPI, Starlette or another ASGI framework. In aiohttp, use `respond()`.

    Each message becomes one event, the same for all clients. Each line of the message becomes a line of its data. A
    message that is not UTF-8 text is skipped. An `Event` also has a type and an id. The policy of the channel or hub
    applies to clients that do not keep up: `Disconnect` ends their responses, and browsers then reconnect.

    In a hub with history, each event without an id of its own gets one: the hub's position. A browser that reconnects
    sends the last one in the header `Last-Event-ID`, and gets what it has missed: see `Hub.subscribe()`. For a new
    client, `EventStream.recovered` is None.

    Under uvicorn and aiohttp, events are written to the connection directly, once for all. Under other servers, with
    HTTP/2, and inside of middleware that may change bodies (`BaseHTTPMiddleware`), each response has a bounded queue
    and a task instead, which is slower.

    Args:
        source: A `Channel`, a `Hub`, or a `HubChannel`.
        topics: Topics and patterns of the hub.
        user: The user for whom the response is registered at the hub, so that `Hub.send()` reaches it.
        tags: Of the hub's messages, the response has only those with one of these tags, and those without any: see
            `Hub.subscribe()`. None for all messages.
        retry: Milliseconds that the browser waits before it reconnects. None for the browser's default.
        keepalive: Seconds between comments, which keep proxies from closing the connection. None for no comments.
        headers: More headers of the response.
        status_code: Status of the response. Browsers accept only 200.
        background: Called when the response has ended, as for any response of Starlette.
        on_open: Called with the `EventStream` when it has been subscribed. It can be given to `broadcast()`, to send
            events to this client alone, and to channels and hubs.

    Raises:
        TypeError: If `source` is neither a channel nor a hub, there are no topics for a hub or there are some or `tags`
            for a channel, or another argument has the wrong type.
        ValueError: If a topic or tag is not valid, `tags` is empty, `retry` is negative, or `keepalive` is not
            positive.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        source: Channel | Hub | HubChannel,
        *topics: str,
        user: Hashable = None,
        retry: int | None = None,
        keepalive: float | None = 15.0,
        headers: Mapping[str, str] | None = None,
        status_code: int = 200,
        background: Any = None,
        on_open: Callable[[EventStream], object] | None = None,
        tags: Iterable[str] | None = None,
    ) -> None:
        if not isinstance(source, (Channel, Hub, HubChannel)):
            raise TypeError(f"source must be a Channel, a Hub or a HubChannel, not {type(source).__name__}")
        if isinstance(source, Hub):
            if not topics and user is None:
                raise TypeError("EventSource() needs a topic of the hub: EventSource(hub, 'news')")
            for topic in topics:
                source.channel(topic)  # raises if the name is not valid
        elif topics or user is not None:
            raise TypeError(f"topics and user need a Hub, not a {type(source).__name__}")
        if tags is not None and isinstance(source, Channel):
            raise TypeError("tags need a Hub or a HubChannel, not a Channel")
        check_integer("retry", retry, least=0, optional=True)
        check_seconds("keepalive", keepalive, optional=True)
        check_callback("on_open", on_open)
        self.status_code = status_code
        self.background = background
        self.init_headers(_HEADERS | {name.lower(): value for name, value in (headers or {}).items()})
        self._source = source
        self._topics = topics
        self._user = user
        self._tags: Tags | None = None if tags is None else check_tags(tags)
        self._preamble = COMMENT if retry is None else b"retry: %d\n\n" % retry
        self._keepalive = keepalive
        self._on_open = on_open

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Respond to a request, as an ASGI application."""
        headers = self.raw_headers
        if scope["http_version"].startswith("1."):  # browsers do not use it again anyway
            headers = [*headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        if scope["method"] == "HEAD":
            await send(dict(_END))
        else:
            await send({"type": "http.response.body", "body": self._preamble, "more_body": True})
            last_id = dict(scope["headers"]).get(b"last-event-id", b"")
            await self._respond(_stream_of(scope, send), last_id, receive, send)
        if self.background is not None:
            await self.background()

    async def _respond(self, stream: EventStream, last_id: bytes, receive: _Receive, send: _Send) -> None:
        reader = asyncio.ensure_future(_until_disconnect(receive, stream))
        try:
            async with self._subscribed(stream, last_id):
                await stream.finished
            if await stream.flush():
                async with asyncio.timeout(END_TIMEOUT):
                    await send(dict(_END))
        except TimeoutError:
            pass  # the server closes the connection
        except asyncio.CancelledError:
            stream.finish()
            if stream.can_end_now():
                await send(dict(_END))  # which does not wait
            raise
        finally:
            stream.lose()
            stream.release()
            reader.cancel()

    async def respond(self, request: Any) -> Any:
        """Respond to a request of aiohttp: `return await EventSource(channel).respond(request)`.

        Returns:
            The `aiohttp.web.StreamResponse`, once the client has left or the response has ended.
        """
        with needs("aiohttp", "aiohttp"):
            from aiohttp.web import StreamResponse

            from .connections.events_aiohttp import open_stream
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.raw_headers]
        response = StreamResponse(status=self.status_code, headers=headers)
        response.force_close()
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        with contextlib.suppress(ConnectionError):  # the client has left
            await response.write(self._preamble)
            stream = open_stream(request, response)
            try:
                last_id = request.headers.get("Last-Event-ID", "").encode(errors="surrogateescape")
                async with self._subscribed(stream, last_id):
                    await stream.finished
                await stream.flush()
            finally:
                stream.lose()
                stream.release()
        return response

    @contextlib.asynccontextmanager
    async def _subscribed(self, stream: EventStream, last_id: bytes) -> AsyncIterator[None]:
        """Subscribe a stream, and send comments to it, until it has ended.

        Args:
            stream: The stream.
            last_id: The header `Last-Event-ID`; empty for a new client.
        """
        if stream.finished.done() or stream.transport.is_closing():  # the client has left already
            stream.lose()
            yield
            return
        if isinstance(self._source, Channel):
            self._source.subscribe(stream)
        else:
            self._subscribe(stream, last_id)
        if self._on_open is not None:
            self._on_open(stream)
        if self._keepalive is None:
            yield
            return
        streams = Keepalive.of(stream.loop, self._keepalive)
        streams.add(stream)
        try:
            yield
        finally:
            streams.discard(stream)

    def _subscribe(self, stream: EventStream, last_id: bytes) -> None:
        """Subscribe a stream to topics of the hub, from the position where its client was."""
        hub, topics = self._source, self._topics
        if isinstance(hub, HubChannel):
            hub, topics = hub.hub, (hub.name,)
        assert isinstance(hub, Hub)
        if self._user is not None:
            hub.register(stream, self._user)
        if not topics:
            return
        since = None
        if last_id:
            stream.recovered = False
            with contextlib.suppress(ValueError):  # an id that was not made here
                since = Position.parse(last_id.decode())
        subscription = hub.subscribe(stream, *topics, since=since, tags=self._tags)
        if since is not None:
            stream.recovered = subscription.recovered
        if hub.has_positions:
            subscription.send(event_with_id(str(hub.position())))


def _stream_of(scope: _Scope, send: _Send) -> EventStream:
    """Return the stream of a response that has been started: one that writes directly if possible."""
    from .connections.events_uvicorn import find_stream

    async def write_body(body: bytes) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": True})

    client = scope.get("client")
    return find_stream(send, client) or QueuedEventStream(write_body, client)


async def _until_disconnect(receive: _Receive, stream: EventStream) -> None:
    """Report that the client has left, when it has."""
    with contextlib.suppress(Exception):  # any error of the server's
        while (await receive())["type"] != "http.disconnect":
            pass
    stream.lose()
