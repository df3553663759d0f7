"""A real Chromium without a screen, driven by the Chrome DevTools Protocol over a WebSocket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from helpers.peers import TIMEOUT
from helpers.processes import running

__all__ = ["REQUIRED", "Page", "find_chromium", "open_page"]

REQUIRED = os.environ.get("WSFAST_REQUIRE_CHROMIUM", "0") not in ("", "0")
"""Whether it is a failure that there is no Chromium."""

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # containers have no user namespaces for it
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--no-proxy-server",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


def find_chromium() -> str | None:
    """Return where it is: what WSFAST_CHROMIUM names, or one that is installed."""
    return os.environ.get("WSFAST_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A page in a Chromium of its own."""

    def __init__(self, connection: ClientConnection, session: str) -> None:
        self.requests: list[str] = []
        """What it has asked for, over HTTP or WebSocket."""
        self.complaints: list[str] = []
        """Exceptions that nobody caught, and errors on its console."""
        self._connection = connection
        self._session = session
        self._numbers = itertools.count(1000)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._listening = asyncio.create_task(self._listen())

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and return its result."""
        number = next(self._numbers)
        coming = self._answers[number] = asyncio.get_running_loop().create_future()
        command = {"id": number, "method": method, "params": parameters, "sessionId": self._session}
        await self._connection.send(json.dumps(command))
        async with asyncio.timeout(TIMEOUT):
            answer = await coming
        assert "error" not in answer, (method, answer)
        result: dict[str, Any] = answer["result"]
        return result

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in JavaScript, once its promise has come true if it is one."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until an expression in JavaScript is true."""
        async with asyncio.timeout(TIMEOUT):
            while not await self.evaluate(expression):
                await asyncio.sleep(0.02)

    async def go(self, url: str) -> None:
        """Go to a page."""
        await self.call("Page.navigate", url=url)
        await self.until(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    async def click(self, selector: str) -> None:
        """Click an element with the mouse."""
        await self.evaluate(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'nearest'}})")
        x, y = await self.evaluate(
            f"(box => [box.x + box.width / 2, box.y + box.height / 2])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def press(self, key: str, code: int, text: str = "") -> None:
        """Press a key."""
        await self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, text=text)
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    async def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Give it a screen of that size, and a preference for a dark one."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def screenshot(self, path: Path) -> None:
        """Write what it looks like to a file."""
        data = (await self.call("Page.captureScreenshot", format="png"))["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data))

    async def _listen(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in self._connection:
                event = json.loads(message)
                if "id" in event:
                    answer = self._answers.pop(event["id"], None)
                    if answer is not None and not answer.done():
                        answer.set_result(event)
                    continue
                parameters = event["params"]
                match event["method"]:
                    case "Network.requestWillBeSent":
                        self.requests.append(parameters["request"]["url"])
                    case "Network.webSocketCreated":
                        self.requests.append(parameters["url"])
                    case "Runtime.exceptionThrown":
                        self.complaints.append(str(parameters["exceptionDetails"]))
                    case "Log.entryAdded" if parameters["entry"]["level"] == "error":
                        self.complaints.append(parameters["entry"]["text"])

    async def close(self) -> None:
        """Take note of nothing more."""
        self._listening.cancel()
        await asyncio.wait((self._listening,))


@contextlib.asynccontextmanager
async def open_page(chromium: str) -> AsyncIterator[Page]:
    """Start a Chromium with an empty page of 1280x800."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        async with running(
            chromium,
            *(*OPTIONS, f"--user-data-dir={profile}", "about:blank"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        ) as process:
            where = Path(profile) / "DevToolsActivePort"
            async with asyncio.timeout(TIMEOUT):
                while not where.exists() or where.read_text().count("\n") < 1:
                    assert process.returncode is None, f"{chromium} has ended with status {process.returncode}"
                    await asyncio.sleep(0.02)
            port, path = where.read_text().splitlines()
            uri = f"ws://127.0.0.1:{port}{path}"
            async with connect(uri, max_size=None, compression=None, ping_interval=None) as connection:
                session = await _attach(connection)
                page = Page(connection, session)
                try:
                    for domain in ("Page", "Runtime", "Network", "Log"):
                        await page.call(f"{domain}.enable")
                    await page.resize(1280, 800)
                    yield page
                finally:
                    await page.close()
            process.terminate()
            async with asyncio.timeout(TIMEOUT):
                await process.wait()


async def _attach(connection: ClientConnection) -> str:
    """Open a page of the browser, and return the session by which it is spoken to."""

    async def call(number: int, method: str, **parameters: Any) -> dict[str, Any]:
        await connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        async with asyncio.timeout(TIMEOUT):
            while True:
                answer: dict[str, Any] = json.loads(await connection.recv())
                if answer.get("id") == number:
                    assert "error" not in answer, answer
                    return answer

    target = (await call(1, "Target.createTarget", url="about:blank"))["result"]["targetId"]
    attached = await call(2, "Target.attachToTarget", targetId=target, flatten=True)
    return str(attached["result"]["sessionId"])
