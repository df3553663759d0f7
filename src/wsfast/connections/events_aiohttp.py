"""Event streams of aiohttp.

| private or moving name                       | meaning                                                | versions    |
|----------------------------------------------|--------------------------------------------------------|-------------|
| `response._payload_writer`: a `StreamWriter` | writes the body, once the response is prepared         | 3.9 to 3.14 |
| `writer.chunked`                             | whether the body is in chunks                          | 3.9 to 3.14 |
| `writer._compress`                           | None: the body is not compressed                       | 3.9 to 3.14 |
| `request.protocol._close`                    | whether the connection ends with the current response  | 3.9 to 3.14 |

Handlers are not told when the client leaves, nor when the server shuts down. Streams find out within a second.
"""

from __future__ import annotations

from typing import Any

from aiohttp.http_writer import StreamWriter

from .events import EventStream, QueuedEventStream
from .foreign import watch_closing

__all__ = ["open_stream"]


def open_stream(request: Any, response: Any) -> EventStream:
    """Return an event stream for a `StreamResponse` that is prepared and to which something was written.

    Raises:
        ConnectionError: If the client is gone already.
    """
    if request.transport is None:
        raise ConnectionError("the client is gone")
    writer = response._payload_writer
    stream = (
        EventStream(request.transport, request.remote)
        if type(writer) is StreamWriter and writer.chunked and writer._compress is None
        else QueuedEventStream(response.write, request.remote)
    )
    watch_closing(_Watched(stream, request))
    return stream


class _Watched:
    """A stream with the attributes that `watch_closing()` asks for."""

    close_timeout = None

    def __init__(self, stream: EventStream, request: Any) -> None:
        self._stream = stream
        self._request = request
        self.loop = stream.loop
        self.transport = request.transport

    @property
    def state(self) -> Any:
        """The state of the stream, which ends here if its connection does."""
        if self.transport.is_closing():
            self._stream.lose()
        elif self._request.protocol._close:
            self._stream.finish()
        return self._stream.state
