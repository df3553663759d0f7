"""What tests start ends with them, whole."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import processes

TESTS = str(Path(__file__).parents[1])
SLEEP = "import time; time.sleep(600)"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); print('started', flush=True)"
DIES = f"""
import os, signal, sys
sys.path.insert(0, {TESTS!r})
from helpers.processes import started
with started(sys.executable, "-c", {SLEEP!r}):
    print("started", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def leave_group(write: int) -> None:
    with processes.started(sys.executable, "-c", PARENT, stdout=write) as process:
        assert process.wait() == 0


def leave_group_in_loop(write: int) -> None:
    async def main() -> None:
        async with processes.running(sys.executable, "-c", PARENT, stdout=write) as process:
            assert await process.wait() == 0

    asyncio.run(main())


def die(write: int) -> None:
    assert processes.run(sys.executable, "-c", DIES, stdout=write).returncode < 0


@pytest.mark.parametrize("use", [leave_group, leave_group_in_loop, die])
def test_no_process_is_left(use: Callable[[int], None]) -> None:
    """A child's child ends with the context, and a child ends if the process of the tests is killed."""
    read, write = os.pipe()
    with open(read, "rb") as output:
        try:
            use(write)
        finally:
            os.close(write)
        assert output.read() == b"started\n"  # to its end, when nobody holds the other end any more


def test_lines_in_pieces() -> None:
    """What is waited for is counted also where two processes have written one line."""

    async def main() -> None:
        code = "print('1 is ready2 is ready\\n\\n3 is', end=' ', flush=True); print('ready')"
        async with processes.running(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE) as process:
            await processes.until_output(process, "is ready", 3)
            with pytest.raises(AssertionError, match="it has ended"):
                await processes.until_output(process, "is ready")

    asyncio.run(main())
