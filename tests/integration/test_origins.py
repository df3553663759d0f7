"""Pages of other sites: who may connect is said by `origins`."""

from __future__ import annotations

from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

import wsfast
from helpers.fixtures import Run


@pytest.mark.parametrize("origin", [None, "https://example.com", "https://example.com.evil.example", "null"])
@pytest.mark.parametrize("origins", [None, [Origin("https://example.com")]])
def test_origins(run: Run, origin: Any, origins: Any) -> None:
    """With `origins`, only pages of these sites can connect; without, those of all sites, as with websockets."""

    async def main() -> None:
        channel = wsfast.Channel()

        async def handler(connection: Any) -> None:
            with channel.subscribe(connection):
                channel.publish("hello")
                await connection.wait_closed()

        async with wsfast.serve(handler, "127.0.0.1", 0, origins=origins) as server:
            url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
            if origins is None or origin in origins:
                async with connect(url, origin=origin) as client:
                    assert await client.recv() == "hello"
            else:
                with pytest.raises(InvalidStatus) as caught:
                    await connect(url, origin=origin)
                assert caught.value.response.status_code == 403
                assert len(channel) == 0

    run(main)
