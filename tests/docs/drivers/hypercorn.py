"""docs/how-to/hypercorn.md: its chat runs as it is copied."""

from __future__ import annotations

from pathlib import Path

from helpers.blocks import check_chat, runs
from helpers.pages import Block

PAGE = "docs/how-to/hypercorn.md"


@runs(PAGE, "chat")
async def chat(_: Block, directory: Path) -> None:
    """All clients get what one of them says."""
    await check_chat(PAGE, directory)
