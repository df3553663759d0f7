"""Turns of publishers that publish to one topic of a stream at the same time.

A publisher close to the server could be first every time. One that has lost twice asks the others to pause before their
next packet, for as long as it needs. Publishers that are trying again do not pause, and nobody pauses twice for one.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import OrderedDict
from typing import Any

__all__ = ["Turns"]

TOPICS = 1024
"""Topics for which the others have asked to pause."""

LONGEST = 0.25
"""Seconds of the longest pause."""

_WANTED = re.compile(rb"([0-9a-f]{16}) ([0-9]{1,9}) (.{1,4096})")


class Turns:
    """The pauses of one publisher.

    Args:
        client: The client of the server.
        subject: Where publishers ask each other to pause.
    """

    def __init__(self, client: Any, subject: str) -> None:
        self._client = client
        self._subject = subject
        self._me = secrets.token_hex(8).encode()
        self._pauses: OrderedDict[str, float] = OrderedDict()  # when each ends

    async def begin(self) -> None:
        """Begin to hear the others."""
        await self._client.subscribe(self._subject, cb=self._on_wanted)

    async def _on_wanted(self, message: Any) -> None:
        found = _WANTED.fullmatch(message.data)
        if found is None or found[1] == self._me:
            return
        topic = found[3].decode(errors="replace")
        self._pauses[topic] = asyncio.get_running_loop().time() + min(LONGEST, int(found[2]) / 1e6)
        self._pauses.move_to_end(topic)
        if len(self._pauses) > TOPICS:
            self._pauses.popitem(last=False)

    async def pause(self, topic: str) -> None:
        """Pause before a packet if another publisher has asked for that."""
        end = self._pauses.pop(topic, None)
        if end is not None:
            await asyncio.sleep(end - asyncio.get_running_loop().time())

    async def ask(self, topic: str, seconds: float) -> None:
        """Ask the others to pause."""
        data = b"%s %d %s" % (self._me, min(LONGEST, seconds) * 1e6, topic.encode())
        await self._client.publish(self._subject, data)
