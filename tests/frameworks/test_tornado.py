"""WebSockets of a real Tornado server, with clients of other libraries. tests/libraries has the rest."""

from __future__ import annotations

import asyncio

from helpers.asgi import check_foreign, check_room, check_stalled, serve


def test_server() -> None:
    """Everything arrives, in order with the application's own messages; a client that stalls is given up."""

    async def main() -> None:
        async with serve(["frameworks.tornado_app", "{port}"], "", WSFAST_TEST_CLOSE_TIMEOUT="0.5") as port:
            assert await check_room(port) == "_Connection"
            await check_foreign(port)
            await check_stalled(port)

    asyncio.run(main())
