"""The room of asgi_app.py as a `WebSocketHandler` of Tornado: `python -m frameworks.tornado_app PORT`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

import tornado.web
import tornado.websocket

from frameworks.asgi_app import room


class Endpoint(tornado.websocket.WebSocketHandler):
    """A connection."""

    def initialize(self) -> None:
        self.received: asyncio.Queue[Any] = asyncio.Queue()

    def get_compression_options(self) -> dict[str, Any]:
        return {}

    def open(self, *_: Any, **__: Any) -> None:
        self.served = asyncio.ensure_future(self.serve())

    async def serve(self) -> None:
        with contextlib.suppress(tornado.websocket.WebSocketClosedError):
            await room("tornado").enter(self, self.send, self.received.get)

    async def send(self, message: str) -> None:
        """Send a message of its own once those that were published are with Tornado, which it would overtake."""
        channel = room("tornado").channel
        channel.flush()
        while message[0].isdecimal() and channel.stats().queued:
            await asyncio.sleep(0.001)
        await self.write_message(message)

    def on_message(self, message: Any) -> None:
        self.received.put_nowait(message)

    def on_close(self) -> None:
        self.served.cancel()


async def main() -> None:
    """Serve until the process ends."""
    app = tornado.web.Application([("/ws", Endpoint)])
    app.listen(int(sys.argv[1]), "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
