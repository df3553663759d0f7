"""A server that publishes to five topics and logs what it publishes, until it is killed.

Usage: session_server.py PORT LOG. Each line of the log is a payload: "epoch topic offset". It is written before the
message can leave, so the log has everything that a client may have.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import wsfast
import wsfast.session

__all__ = ["TOPICS"]

TOPICS = [f"prices.{name}" for name in ("a", "b", "c", "d", "e")]
PAUSE = 0.025


async def main(port: int, path: str) -> None:
    """Serve and publish."""
    hub = wsfast.Hub(envelope=True, history=10_000)
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def serve_session(connection: Any) -> None:
        await wsfast.session.Session(hub, connection).run()

    async with wsfast.serve(serve_session, "127.0.0.1", port):
        while True:
            for number, topic in enumerate(TOPICS):
                epoch, offset = hub.position(topic)
                payload = f"{epoch} {topic} {offset + 1}"
                os.write(log, f"{payload}\n".encode())
                hub.publish(topic, payload.encode() if number % 2 else payload)
            await asyncio.sleep(PAUSE)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
