"""Redis as a broker that orders and keeps the messages of topics, in streams (XADD and XRANGE).

Each topic has two keys: a hash with its epoch, the offset of its last message, and the number of bytes so far; and a
stream with its packets, whose ids are the offsets of their last messages. For each process that publishes to the topic,
one more key has the numbers of the last packet, so that a packet that is sent again is not placed again.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from ssl import SSLContext
from typing import Any

import redis.asyncio

from wsfast.hub import History, Position

from .broker import Fetching, Kept, Request, Sending
from .redis_broker import LARGEST, RedisBroker
from .wire import Address

__all__ = ["RedisStreams"]

KEPT = 86_400
"""Seconds for which the position of a topic is kept after its last message, or longer if its messages are."""

NUMBERS_KEPT = 3600
"""Seconds for which the numbers of a publisher are kept."""

PART = 1 << 18
"""Bytes of packets per answer, unless it is a single packet."""

TRIMMED_EVERY = 64
"""Messages after which packets that are too old or too many bytes are looked for."""

UNABLE = (
    redis.exceptions.NoScriptError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.BusyLoadingError,
)
STATES = "READONLY", "MISCONF", "OOM ", "MASTERDOWN", "NOREPLICAS", "LOADING"
"""Words in errors that are about the server, not about a packet."""

_PLACE = f"""
local meta, stream, known = KEYS[1], KEYS[2], KEYS[3]
local channel, new, epoch, packet = ARGV[1], ARGV[2], ARGV[3], ARGV[6]
local number, count = tonumber(ARGV[4]), tonumber(ARGV[5])
local most, bytes, age, kept = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local last = redis.call('GET', known)
if last then
  local before, reached = string.sub(last, 1, 16), tonumber(string.sub(last, 17))
  if epoch < before or (epoch == before and number + count - 1 <= reached) then return 0 end
  if epoch == before and number <= reached then return -1 end
end
if redis.call('HSETNX', meta, 'e', new) == 1 then redis.call('DEL', stream) end
local offset = redis.call('HINCRBY', meta, 'o', count)
local total = redis.call('HINCRBY', meta, 'b', #packet)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local id = string.format('%.0f-0', offset)
redis.call('XADD', stream, id, 'd', packet, 't', string.format('%.0f', now), 'b', string.format('%.0f', total))
redis.call('XTRIM', stream, 'MINID', string.format('%.0f-0', math.max(1, offset - most + 1)))
local block = math.floor(offset / {TRIMMED_EVERY}) ~= math.floor((offset - count) / {TRIMMED_EVERY})
while (bytes > 0 or age > 0) and (block or #packet > 4096) do
  local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  if not first or first[1] == id then break end
  local size = total - tonumber(first[2][6]) + #first[2][2]
  if not (bytes > 0 and size > bytes) and not (age > 0 and tonumber(first[2][4]) < now - age) then break end
  redis.call('XDEL', stream, first[1])
end
if age > 0 then redis.call('PEXPIRE', stream, age) redis.call('PEXPIRE', meta, kept)
else redis.call('PERSIST', stream) redis.call('PERSIST', meta) end
redis.call('SET', known, epoch .. string.format('%.0f', number + count - 1), 'PX', {NUMBERS_KEPT * 1000})
local place = '\\246' .. redis.call('HGET', meta, 'e') .. string.format('%016.0f', offset - count + 1)
redis.call('PUBLISH', channel, place .. packet)
return 1
"""
"""Places a packet and publishes it, unless the topic has it already."""

_FETCH = f"""
local meta, stream, new, epoch = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local after, kept = tonumber(ARGV[3]), tonumber(ARGV[4])
if redis.call('HSETNX', meta, 'e', new) == 1 then redis.call('DEL', stream) end
if kept > 0 then redis.call('PEXPIRE', meta, kept) end
local current = redis.call('HGET', meta, 'e')
local offset = tonumber(redis.call('HGET', meta, 'o') or '0')
if ARGV[5] == '1' and epoch == current and after > offset then
  redis.call('DEL', stream)
  redis.call('HSET', meta, 'e', new, 'o', '0')
  current, offset = new, 0
end
if epoch ~= current then after = 0 end
local packets, size, more = {{}}, 0, 0
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
repeat
  local some = redis.call('XRANGE', stream, string.format('%.0f-0', after + 1), '+', 'COUNT', 16)
  for _, one in ipairs(some) do
    if size >= {PART} then more = 1 break end
    after = tonumber(string.match(one[1], '^%d+'))
    size = size + #one[2][2]
    packets[#packets + 1] = {{string.format('%.0f', after), string.format('%.0f', now - one[2][4]), one[2][2]}}
  end
until more == 1 or #some < 16
return {{current, string.format('%.0f', offset), more, packets}}
"""
"""Returns a part of what is kept of a topic. If it lacks messages that the caller has got, it begins a new epoch."""


class RedisStreams(RedisBroker):
    """A Redis server that keeps the messages of topics.

    Args:
        url: See `wsfast.relay.redis()`.
        prefix: Beginning of the names of channels and keys.
        timeout: Seconds without an answer after which a connection counts as lost.
        ssl: Settings of the encryption; None for those in `url`.
        history: How much is kept of each topic.
        single: Whether `publish()` is given packets of one message, and places them. Otherwise, it places none.
    """

    def __init__(
        self,
        url: str,
        prefix: str,
        timeout: float,
        ssl: SSLContext | None,
        history: History,
        *,
        single: bool = False,
    ) -> None:
        super().__init__(url, prefix, timeout, ssl)
        self.single: bool = single
        age = 0 if history.seconds is None else max(1, round(history.seconds * 1000))
        self._kept = max(KEPT * 1000, age) if age else 0
        self._bounds = history.messages, history.bytes or 0, age, self._kept

    def _keys(self, topic: str) -> tuple[str, str]:
        return f"{self._prefix}.m.{topic}", f"{self._prefix}.s.{topic}"

    async def open_sending(self) -> Sending:
        """Connect for publishing."""
        client = self._client()
        try:
            return _Placing(self, client, await client.script_load(_PLACE))
        except BaseException:
            await client.aclose()
            raise

    async def open_fetching(self) -> Fetching:
        """Connect for asking for messages that are kept."""
        client = self._client()
        try:
            return _Fetching(self, client, await client.script_load(_FETCH))
        except BaseException:
            await client.aclose()
            raise

    def place(self, pipeline: Any, script: str, topic: str, packet: bytes, count: int) -> None:
        """Add a command to a pipeline that places a packet."""
        publisher, epoch, number = packet[4:12], packet[12:20], packet[20:28]
        meta, stream = self._keys(topic)
        pipeline.evalsha(
            script,
            3,
            *(meta, stream, f"{self._prefix}.d.{publisher.hex()}.{topic}"),
            *(self.channel(("topic", topic)), secrets.token_hex(8), epoch.hex(), int.from_bytes(number), count, packet),
            *self._bounds,
        )

    def fetch(self, pipeline: Any, script: str, request: Request) -> None:
        """Add a command to a pipeline that asks for a part of what is kept."""
        epoch, offset = request.since or Position("", 0)
        arguments = secrets.token_hex(8), epoch, offset, self._kept, int(request.sure)
        pipeline.evalsha(script, 2, *self._keys(request.topic), *arguments)


async def _replies(pipeline: Any) -> list[Any]:
    """Execute commands; raise if the server has forgotten the script, or can do nothing now, whatever it is asked."""
    replies: list[Any] = await pipeline.execute(raise_on_error=False)
    for reply in replies:
        if isinstance(reply, UNABLE) or (isinstance(reply, Exception) and any(word in str(reply) for word in STATES)):
            raise reply  # the relay reconnects, loads the script, and tries again
    return replies


class _Placing:
    def __init__(self, broker: RedisStreams, client: redis.asyncio.Redis, script: str) -> None:
        self._broker = broker
        self._client = client
        self._script = script
        self.largest: int = LARGEST

    async def publish(self, packets: Sequence[tuple[Address | None, bytes]]) -> dict[int, Exception]:
        count = int(self._broker.single)
        return await self.place([(address, packet, count) for address, packet in packets])

    async def place(self, packets: Sequence[tuple[Address | None, bytes, int]]) -> dict[int, Exception]:
        pipeline = self._client.pipeline(transaction=False)
        for address, packet, count in packets:
            if address is not None and address[0] == "topic" and count:
                self._broker.place(pipeline, self._script, address[1], packet, count)
            else:
                pipeline.publish(self._broker.channel(address), packet)
        replies = await _replies(pipeline)
        if -1 in replies:
            raise ConnectionError("a packet was placed in part; its messages are sent one by one")
        return {index: one for index, one in enumerate(replies) if isinstance(one, redis.exceptions.ResponseError)}

    async def close(self) -> None:
        await self._client.aclose()


class _Fetching:
    def __init__(self, broker: RedisStreams, client: redis.asyncio.Redis, script: str) -> None:
        self._broker = broker
        self._client = client
        self._script = script

    async def fetch(self, requests: Sequence[Request]) -> Sequence[Kept]:
        pipeline = self._client.pipeline(transaction=False)
        for request in requests:
            self._broker.fetch(pipeline, self._script, request)
        answers = []
        for reply in await _replies(pipeline):
            if isinstance(reply, Exception):
                raise reply
            epoch, offset, more, packets = reply
            kept = [(int(last), int(age) / 1000, packet) for last, age, packet in packets]
            answers.append(Kept(epoch.decode(), int(offset), kept, bool(more)))
        return answers

    async def close(self) -> None:
        await self._client.aclose()
