"""The stream of NATS JetStream that keeps the packets of topics: its settings, and requests to its server.

The stream takes packets that are published to `<prefix>.s.<topic>`. The server publishes a packet again to
`<prefix>.t.<topic>` once it is stored. Relays are subscribed there, so they never hear of a packet that was refused.

Each packet in the stream has its place before it, and in a header the number of its messages. A *mark* is a place
without a packet: a new epoch begins after it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import json
import re
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple

import nats.errors
from nats.aio.client import Client

from wsfast._arguments import check_integer
from wsfast.hub import History

from .nats_broker import tokens_of
from .ordering import PLACE

__all__ = ["COUNT", "LARGEST_OVERHEAD", "NUMBER", "SEQUENCE", "WRONG_LAST", "Connection", "Record", "Storage", "Stream"]

Storage = Literal["file", "memory"]

KEPT = 86_400
"""Seconds for which packets, and with the last one the position of a topic, are kept at least."""

OLDEST_SERVER = 2, 11
"""Release of the server that returns several packets at once."""

LARGEST_OVERHEAD = 256
"""Bytes that the place and the headers of a packet take at most."""

VERIFIED_EVERY = 0.25
"""Seconds for which a stream is taken for the same as before."""

LARGEST_OFFSET = 10**15
"""Larger ones are none that relays have given."""

COUNT = "Wsfast-Messages"
"""Header with the number of a packet's messages."""

SEQUENCE = "Nats-Sequence"
"""Header with the sequence of a packet that was stored."""

EXPECTED = "Nats-Expected-Last-Subject-Sequence"

NO_STREAM, NO_PACKET, OTHER_SETTINGS, OVERLAP = 10059, 10037, 10058, 10065
NOT_ENABLED = 10039, 10076
WRONG_LAST = 10071, 10164
"""Codes of the server's errors."""

_COUNT = re.compile(rb"\r\nWsfast-Messages: ?([0-9]{1,15})\r\n")
NUMBER = re.compile(r"[0-9]{1,15}")
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")


class Record(NamedTuple):
    """An entry of the stream for one topic: a packet, a mark, or something that no relay has published."""

    sequence: int
    """Its number in the stream."""
    stored: float
    """When it was stored, in seconds since 1970, by the server's clock."""
    epoch: str = ""
    """Empty if it is neither a packet nor a mark."""
    first: int = 1
    """Offset of its first message."""
    messages: int = 0
    packet: bytes = b""
    """The packet without its place."""

    @property
    def last(self) -> int:
        """Offset of the last message; of a mark, 0."""
        return self.first + self.messages - 1


def _record(sequence: int, stored_at: str, messages: int, data: bytes) -> Record:
    stored = datetime.fromisoformat(stored_at).timestamp()
    place = PLACE.match(data)
    if place is None or bool(messages) != (place.end() < len(data)) or int(place[2]) + messages > LARGEST_OFFSET:
        return Record(sequence, stored)
    return Record(sequence, stored, place[1].decode(), int(place[2]), messages, data[place.end() :])


class Stream:
    """The settings of the stream.

    Args:
        prefix: Beginning of the subjects.
        history: How much is kept of each topic. The number of packets is bounded by that of messages.
        storage: Where packets are kept; None for files, or as the stream was created.
        replicas: Servers that keep them; None for one, or as the stream was created.
        max_bytes: Bytes of all packets; None for no limit, or as the stream was created.

    Raises:
        TypeError: If `replicas` or `max_bytes` is not an integer.
        ValueError: If `storage` is unknown, or `replicas` or `max_bytes` is not positive.
    """

    def __init__(
        self,
        prefix: str,
        history: History,
        storage: Storage | None = None,
        replicas: int | None = None,
        max_bytes: int | None = None,
    ) -> None:
        if storage not in (None, "file", "memory"):
            raise ValueError(f"storage must be 'file' or 'memory', not {storage!r}")
        check_integer("replicas", replicas, optional=True)
        check_integer("max_bytes", max_bytes, optional=True)
        digest = "" if _PLAIN.fullmatch(prefix) else f"-{hashlib.sha256(prefix.encode()).hexdigest()[:8]}"
        self.name: str = re.sub(r"[^A-Za-z0-9_-]", "-", prefix) + digest
        age = 0 if history.seconds is None else round(max(KEPT, history.seconds) * 1e9)
        self.messages: int = history.messages
        """Messages to keep of each topic."""
        self._prefix = prefix
        self._needed: dict[str, Any] = {
            "name": self.name,
            "subjects": [f"{prefix}.s.>"],
            "republish": {"src": f"{prefix}.s.>", "dest": f"{prefix}.t.>"},
            "retention": "limits",
            "discard": "old",
            "allow_direct": True,
            "max_msgs_per_subject": history.messages,
            "max_age": age,
        }
        given = {"storage": storage, "num_replicas": replicas, "max_bytes": max_bytes}
        self._needed.update({name: value for name, value in given.items() if value is not None})

    def subject(self, topic: str) -> str:
        """Return the subject by which the stream gets the packets of a topic."""
        return f"{self._prefix}.s.{tokens_of(topic)}"

    def settings(self) -> dict[str, Any]:
        """Return the settings of a new stream."""
        return {"storage": "file", "num_replicas": 1, "max_bytes": -1, **self._needed}

    def differences(self, settings: Mapping[str, Any]) -> list[str]:
        """Return what is different in the settings of the stream that exists."""
        return [
            f"{name} is {settings.get(name)!r}, not {value!r}"
            for name, value in self._needed.items()
            if settings.get(name) != value
        ]


class Connection:
    """A connection to the server of a stream. Its methods raise if the server does not answer as it should.

    Args:
        client: The client of the server.
        stream: The stream.
        timeout: Seconds without an answer after which a request has failed.
    """

    def __init__(self, client: Client, stream: Stream, timeout: float) -> None:
        self.created: str = ""
        """When the stream was created."""
        self.ahead: float = 0.0
        """Seconds by which the server's clock is ahead."""
        self._verified = 0.0  # when the stream was known to be the same
        self._client = client
        self._stream = stream
        self._timeout = timeout
        self._inbox = ""
        self._tokens = itertools.count()
        self._batches: dict[str, tuple[list[Record], asyncio.Future[int]]] = {}

    async def open(self) -> None:
        """Create the stream if there is none.

        Raises:
            ConnectionError: If the server is too old or has no JetStream, or the stream has other settings.
        """
        version = self._client.connected_server_version
        if (version.major, version.minor) < OLDEST_SERVER:
            raise ConnectionError(
                f"recover=True needs NATS {'.'.join(map(str, OLDEST_SERVER))} or newer, and the server is {version}"
            )
        name = self._stream.name
        answer = await self._ask(f"STREAM.INFO.{name}")
        if _code(answer) == NO_STREAM:
            answer = await self._ask(f"STREAM.CREATE.{name}", self._stream.settings())
            if _code(answer) == OTHER_SETTINGS:  # another process was first
                answer = await self._ask(f"STREAM.INFO.{name}")
        self._check_settings(answer)
        self.created = answer["created"]
        self._verified = time.monotonic()
        if "ts" in answer:
            self.ahead = datetime.fromisoformat(answer["ts"]).timestamp() - time.time()

    async def verify(self) -> None:
        """Find out whether the stream is the same as before, unless that was done a moment ago.

        Sequences of another stream say nothing, even if they are equal to those of this one.

        Raises:
            ConnectionError: If it is another stream, or has other settings.
        """
        now = time.monotonic()
        if now < self._verified + VERIFIED_EVERY:
            return
        answer = await self._ask(f"STREAM.INFO.{self._stream.name}")
        self._check_settings(answer)
        if answer["created"] != self.created:
            raise ConnectionError(f"the stream {self._stream.name!r} was created anew")
        self._verified = now

    def _check_settings(self, answer: Mapping[str, Any]) -> None:
        """Raise if an answer with the stream's settings is an error, or they are other ones."""
        self._check(answer)
        differences = self._stream.differences(answer["config"])
        if differences:
            raise ConnectionError(
                f"the stream {self._stream.name!r} has other settings: {'; '.join(differences)}. Give the same options "
                "to all relays, and change the stream with `nats stream edit`, or delete it"
            )

    async def _ask(self, what: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the answer of JetStream to a request, which may be an error."""
        data = b"" if body is None else json.dumps(body).encode()
        try:
            answer = await self._client.request(f"$JS.API.{what}", data, timeout=self._timeout)
        except nats.errors.NoRespondersError:
            raise ConnectionError(
                "JetStream is not enabled at the server, or not for this user: start it with `nats-server -js`"
            ) from None
        loaded: dict[str, Any] = json.loads(answer.data)
        return loaded

    def _check(self, answer: Mapping[str, Any]) -> None:
        """Raise if an answer is an error."""
        if (code := _code(answer)) is None:
            return
        described = f"{answer['error'].get('description')} ({code})"
        if code in NOT_ENABLED:
            raise ConnectionError(
                f"JetStream is not enabled at the server: start it with `nats-server -js`: {described}"
            )
        if code == OVERLAP:
            described += f"; the subjects {self._stream.subject('>')!r} must belong to no other stream"
        raise ConnectionError(f"JetStream cannot use the stream {self._stream.name!r}: {described}")

    # ---- Packets

    async def add(self, topic: str, place: bytes, packet: bytes, messages: int, after: int) -> dict[str, Any]:
        """Have the stream store a packet if the last record of the topic has this sequence.

        Returns:
            The answer: the sequence of the packet as `seq`, or an `error`.
        """
        headers = {EXPECTED: str(after), COUNT: str(messages)}
        try:
            answer = await self._client.request(
                self._stream.subject(topic), place + packet, timeout=self._timeout, headers=headers
            )
        except nats.errors.NoRespondersError:
            raise ConnectionError(f"no server answers for the stream {self._stream.name!r}") from None
        loaded: dict[str, Any] = json.loads(answer.data)
        return loaded

    async def last(self, topic: str) -> Record | None:
        """Return the last record of a topic."""
        return await self._get({"last_by_subj": self._stream.subject(topic)})

    async def next(self, topic: str, sequence: int) -> Record | None:
        """Return the first record of a topic from a sequence on."""
        return await self._get({"seq": sequence, "next_by_subj": self._stream.subject(topic)})

    async def _get(self, which: Mapping[str, Any]) -> Record | None:
        """Return a record. The server that leads the stream answers: the others may lag behind."""
        answer = await self._ask(f"STREAM.MSG.GET.{self._stream.name}", which)
        if _code(answer) == NO_PACKET:
            return None
        self._check(answer)
        message = answer["message"]
        headers = base64.b64decode(message.get("hdrs") or "")
        count = _COUNT.search(headers)
        data = base64.b64decode(message.get("data") or "")
        return _record(message["seq"], message["time"], int(count[1]) if count else 0, data)

    async def read(self, topic: str, sequence: int, most: int, size: int) -> tuple[list[Record], int]:
        """Return the records of a topic from a sequence on, up to a number and bytes, and how many more there are."""
        if not self._inbox:
            inbox = self._client.new_inbox()
            await self._client.subscribe(f"{inbox}.*", cb=self._on_record)
            self._inbox = inbox
        reply = f"{self._inbox}.{next(self._tokens)}"
        records: list[Record] = []
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._batches[reply] = records, done
        try:
            body = {"seq": sequence, "next_by_subj": self._stream.subject(topic), "batch": most, "max_bytes": size}
            await self._client.publish(f"$JS.API.DIRECT.GET.{self._stream.name}", json.dumps(body).encode(), reply)
            async with asyncio.timeout(self._timeout):
                return records, await done
        finally:
            del self._batches[reply]

    async def _on_record(self, message: Any) -> None:
        """Take a part of the answer to `read()`."""
        records, done = self._batches.get(message.subject, (None, None))
        if records is None or done is None or done.done():
            return
        headers = message.headers or {}
        status = headers.get("Status")
        if status is None:
            sequence, stored_at, count = (headers.get(name, "") for name in (SEQUENCE, "Nats-Time-Stamp", COUNT))
            messages = int(count) if NUMBER.fullmatch(count) else 0
            records.append(_record(int(sequence), stored_at, messages, message.data))
        elif status == "204":
            done.set_result(int(headers.get("Nats-Num-Pending", 0)))
        elif status == "404":
            done.set_result(0)
        else:
            done.set_exception(ConnectionError(f"the server does not return packets: {headers}"))


def _code(answer: Mapping[str, Any]) -> int | None:
    """Return the code of an error; None if the answer is none."""
    error = answer.get("error")
    return None if error is None else int(error.get("err_code", 0))
