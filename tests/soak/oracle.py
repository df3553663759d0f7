"""The clients of a soak: of picows, websockets and aiohttp, in a process without wsfast.

They check all that they get, and do what clients do: stop reading for a while, reset the connection, close half of it,
come back at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from typing import Any

import aiohttp
import picows
import uvloop
import websockets.asyncio.client
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from soak.link import Lines
from soak.messages import FEED, GENERATION, HEAD, Order, WrongError, parse, parse_short

MOST = 50
"""Faults that are told; more tell nothing more."""

TEXT, BINARY, CLOSE = picows.WSMsgType.TEXT, picows.WSMsgType.BINARY, picows.WSMsgType.CLOSE


class Received:
    """What one connection has got."""

    def __init__(self, number: int, faults: list[str]) -> None:
        self.number = number
        self.sources: dict[int, list[int]] = {}  # of each source: count, first and last number
        self.keys: dict[tuple[int, int], int] = {}
        self.short: dict[int, int] = {}  # of each feed
        self.empty = 0
        self.end: str = ""
        """How it has ended: "closed" in good order, or "cut"; empty while it has not."""
        self.done = asyncio.Event()
        self._faults = faults

    def fault(self, text: str) -> None:
        if len(self._faults) < MOST:
            self._faults.append(f"client {self.number}: {text}")

    def finish(self, end: str) -> None:
        if not self.end:
            self.end = end
        self.done.set()

    def take(self, data: bytes | memoryview, *, text: bool) -> None:
        """Check a message."""
        try:
            if len(data) < HEAD:
                self._take_short(bytes(data))
                return
            source, order, number, key = parse(data, text=text)
        except WrongError as exc:
            self.fault(str(exc))
            return
        known = self.sources.get(source)
        if known is None:
            self.sources[source] = [1, number, number]
            if order == Order.KEYS:
                self.keys[source, key] = number
            return
        if order == Order.KEYS:
            last = self.keys.get((source, key), -1)
            self.keys[source, key] = number
        else:
            last = known[2]
        if number <= last or (order == Order.STRICT and number != last + 1):
            self.fault(f"source {source:x}, key {key}: {number} after {last}, order {order}")
        known[0] += 1
        known[2] = number

    def _take_short(self, data: bytes) -> None:
        if data:
            feed = parse_short(data)
            self.short[feed] = self.short.get(feed, 0) + 1
        else:
            self.empty += 1

    def report(self) -> dict[str, Any]:
        feeds = dict(self.short)
        for source, (count, _, _) in self.sources.items():
            feeds[source // FEED] = feeds.get(source // FEED, 0) + count
        return {"end": self.end, "feeds": feeds, "sources": self.sources, "empty": self.empty}


def dial(spec: dict[str, Any]) -> socket.socket:
    """Return a socket that is going to be connected."""
    sock = socket.socket()
    if spec["rcvbuf"]:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, spec["rcvbuf"])
    sock.setblocking(False)
    return sock


class Client:
    """One connection, whatever the library."""

    def __init__(self, received: Received, spec: dict[str, Any]) -> None:
        self.received = received
        self.spec = spec
        self.url = f"ws://127.0.0.1:{spec['port']}/ws?{received.number}"
        self.transport: Any = None

    async def connect(self) -> None:
        raise NotImplementedError

    def say(self, text: str) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    async def socket(self) -> socket.socket:
        sock = dial(self.spec)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.spec["port"]))
        return sock

    @property
    def open(self) -> bool:
        return self.transport is not None and not self.transport.is_closing() and not self.received.end

    def stall(self) -> None:
        if self.open:
            self.transport.pause_reading()

    def resume(self) -> None:
        if self.open:
            self.transport.resume_reading()

    def reset(self) -> None:
        if self.open:
            self.received.end = "cut"
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

    def half_close(self) -> None:
        if self.open:
            with socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno())) as sock:
                sock.shutdown(socket.SHUT_WR)


class Listener(picows.WSListener):
    """A client of picows."""

    def __init__(self, received: Received) -> None:
        super().__init__()
        self.received = received

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        kind = frame.msg_type
        if kind in (TEXT, BINARY):
            if frame.fin and not frame.rsv1:
                self.received.take(frame.get_payload_as_memoryview(), text=kind == TEXT)
            else:
                self.received.fault("a fragment, or a compressed frame")
        elif kind == CLOSE:
            self.received.end = self.received.end or "closed"
            code: Any = frame.get_close_code()
            transport.send_close(code)
            transport.disconnect()
        elif kind == picows.WSMsgType.CONTINUATION:
            self.received.fault("a fragment")

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        self.received.finish("cut")


class PicowsClient(Client):
    """A client of picows: the fast one, which does not decompress."""

    async def connect(self) -> None:
        async def connected(_: Any) -> socket.socket:
            return await self.socket()

        self.ws, _ = await picows.ws_connect(
            lambda: Listener(self.received),
            self.url,
            socket_factory=connected,
            use_aiofastnet=False,
            websocket_handshake_timeout=20,
        )
        self.transport = self.ws.underlying_transport

    def say(self, text: str) -> None:
        self.ws.send(TEXT, text.encode())

    def close(self) -> None:
        self.ws.send_close(picows.WSCloseCode.OK)


class WebsocketsClient(Client):
    """A client of websockets."""

    async def connect(self) -> None:
        self.ws = await websockets.asyncio.client.connect(
            self.url,
            sock=await self.socket(),
            compression="deflate" if self.spec["deflate"] else None,
            ping_interval=None,
            max_size=None,
            close_timeout=5,
            proxy=None,
        )
        self.transport = self.ws.transport
        self.task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        end = "cut"
        try:
            while True:
                data = await self.ws.recv()
                self.received.take(data.encode() if isinstance(data, str) else data, text=isinstance(data, str))
        except ConnectionClosed as exc:
            if exc.rcvd is not None:
                end = "closed"
            elif exc.sent is not None and exc.sent.code in (1002, 1007, 1009):
                self.received.fault(f"it could not be decoded: {exc}")
        except Exception as exc:
            self.received.fault(f"it could not be received: {exc!r}")
        self.received.finish(end)

    def say(self, text: str) -> None:
        task = asyncio.create_task(self.ws.send(text))
        task.add_done_callback(lambda task: task.cancelled() or task.exception())

    def close(self) -> None:
        self.closing = asyncio.create_task(self.ws.close())


class AiohttpClient(Client):
    """A client of aiohttp."""

    async def connect(self) -> None:
        sock = await self.socket()
        connector = aiohttp.TCPConnector(socket_factory=lambda _: dial(self.spec), force_close=True)
        sock.close()
        self.session = aiohttp.ClientSession(connector=connector)
        try:
            compress = 15 if self.spec["deflate"] else 0
            url = self.url.replace("ws:", "http:")
            self.ws = await self.session.ws_connect(url, compress=compress, max_msg_size=0, autoping=True)
        except BaseException:
            await self.session.close()
            raise
        connection = self.ws._response.connection
        assert connection is not None
        self.transport = connection.transport
        self.task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        end = "cut"
        try:
            while True:
                message = await self.ws.receive()
                if message.type is aiohttp.WSMsgType.TEXT:
                    self.received.take(message.data.encode(), text=True)
                elif message.type is aiohttp.WSMsgType.BINARY:
                    self.received.take(message.data, text=False)
                elif message.type is aiohttp.WSMsgType.CLOSE:
                    end = "closed"
                    break
                elif message.type is aiohttp.WSMsgType.ERROR:
                    if isinstance(message.data, aiohttp.WebSocketError):
                        self.received.fault(f"it could not be decoded: {message.data!r}")
                    break
                elif message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING):
                    break
        except OSError:  # ClientConnectionResetError, as it answers to a ping or a close frame
            pass
        except Exception as exc:
            self.received.fault(f"it could not be received: {exc!r}")
        with contextlib.suppress(Exception):
            async with asyncio.timeout(5):
                await self.session.close()
        self.received.finish(end)

    def say(self, text: str) -> None:
        task = asyncio.create_task(self.ws.send_str(text))
        task.add_done_callback(lambda task: task.cancelled() or task.exception())

    def close(self) -> None:
        self.reset()  # its close() would throw away what it has not received yet


KINDS: dict[str, type[Client]] = {"picows": PicowsClient, "websockets": WebsocketsClient, "aiohttp": AiohttpClient}


class Oracle:
    """All clients of a round."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.clients: dict[int, Client] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.calm = False
        self.started = 0.0

    def connect(self, specs: list[dict[str, Any]]) -> None:
        self.calm = False
        self.started = asyncio.get_running_loop().time()
        for spec in specs:
            task = asyncio.create_task(self.run(spec))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def run(self, spec: dict[str, Any]) -> None:
        """Be a client, and come back as another one when the connection has ended, while it is not calm."""
        number = spec["number"]
        acts = list(spec["acts"])
        while not self.calm:
            client = KINDS[spec["kind"]](Received(number, self.faults), spec)
            try:
                async with asyncio.timeout(20):
                    await client.connect()
            except (OSError, TimeoutError, InvalidHandshake, aiohttp.ClientError, picows.WSError, ConnectionClosed):
                await asyncio.sleep(0.05)  # the server may have been told to close it before it was open
                number += GENERATION
                continue
            self.clients[number] = client
            if client.transport is None:  # one of picows, which is lost already, and has told nobody
                client.received.finish("cut")
            if self.calm:
                return
            await self.act(client, acts)
            await client.received.done.wait()
            number += GENERATION
            await asyncio.sleep(spec["pause"])

    async def act(self, client: Client, acts: list[Any]) -> None:
        """Do what the client is to do, until its connection has ended."""
        loop = asyncio.get_running_loop()
        while acts and not self.calm and not client.received.done.is_set():
            moment, what, much = acts[0]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self.started + moment - loop.time())):
                    await client.received.done.wait()
                    return
            if self.calm:
                return
            acts.pop(0)
            with contextlib.suppress(OSError, RuntimeError):
                if what == "stall":
                    client.stall()
                    await asyncio.sleep(much)
                    if not self.calm:
                        client.resume()
                elif what == "say":
                    client.say("x" * int(much))
                elif client.open:
                    {"reset": client.reset, "half": client.half_close, "close": client.close}[what]()

    def be_calm(self) -> None:
        self.calm = True
        for client in self.clients.values():
            with contextlib.suppress(OSError, RuntimeError):
                client.resume()

    def report(self) -> dict[str, Any]:
        return {
            "faults": self.faults,
            "clients": {number: client.received.report() for number, client in self.clients.items()},
        }

    async def finish(self) -> list[str]:
        """Wait until all connections have ended; return those that have not, which are cut, and forget all."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(40):
                for client in list(self.clients.values()):
                    await client.received.done.wait()
        left = []
        for number, client in self.clients.items():
            if not client.received.done.is_set():
                state = client.received.end or ("open" if client.open else "closing")
                left.append(f"{number} ({state}, {sum(one[0] for one in client.received.sources.values())} received)")
                client.reset()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.clients, self.faults = {}, []
        return left


async def main() -> None:
    """Do what one is told."""
    lines = Lines()
    oracle = Oracle()
    while True:
        command, arguments = await lines.next()
        result: Any = None
        match command:
            case "connect":
                oracle.connect(arguments["specs"])
            case "calm":
                oracle.be_calm()
            case "count":
                result = sum(1 for client in oracle.clients.values() if not client.received.end)
            case "report":
                result = oracle.report()
            case "finish":
                result = await oracle.finish()
            case _:
                raise ValueError(command)
        lines.answer(result)


if __name__ == "__main__":
    uvloop.run(main())
