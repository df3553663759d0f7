"""Child processes of tests. Each leads a session and a process group of its own, which ends as a whole.

A child that starts processes itself may die before them, and what is left holds on to its pipes: whoever reads those to
their end waits for ever. So nothing here waits for a pipe before the whole group was killed.

When the process of the tests itself dies, as it does if a test hangs in C, another process kills all its groups.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from helpers.peers import TIMEOUT

__all__ = ["kill_group", "run", "running", "started", "until_output", "write_line"]

# A shell that starts the tests in the background may have them ignore Ctrl-C, which child processes would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

Argument: TypeAlias = str | Path

WATCHER = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
"""


@cache
def _watcher(pid: int) -> subprocess.Popen[bytes]:
    """Start the process that reads which groups there are, and kills them when its input ends since this one did."""
    command = [sys.executable, "-I", "-S", "-c", WATCHER]
    watcher = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,  # holds on to nobody's pipes
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,
    )
    atexit.register(watcher.communicate)  # which closes the pipe, and waits
    return watcher


def _watch(sign: str, group: int) -> None:
    pipe = _watcher(os.getpid()).stdin
    assert pipe is not None
    pipe.write(f"{sign}{group}\n".encode())


def kill_group(group: int) -> None:
    """Kill all processes of a group that was started here."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    _watch("-", group)


def _without_preload(command: tuple[Argument, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Return options with which a program that is no Python does without the sanitizers that Python runs with."""
    environment = options.get("env") or os.environ
    if "LD_PRELOAD" not in environment or "python" in Path(command[0]).name:
        return options
    return options | {"env": {name: value for name, value in environment.items() if name != "LD_PRELOAD"}}


@contextlib.contextmanager
def started(*command: Argument, **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Run a command until this is left. Options are those of `subprocess.Popen`."""
    with subprocess.Popen(command, start_new_session=True, **_without_preload(command, options)) as process:
        _watch("+", process.pid)
        try:
            yield process
        finally:
            kill_group(process.pid)


def run(*command: Argument, check: bool = False, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; the result is that of `subprocess.run`, with the output and the errors as text."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    with started(*command, **options) as process:
        output, errors = process.communicate(timeout=TIMEOUT)
    done = subprocess.CompletedProcess[str](command, process.returncode, output, errors)
    assert not check or done.returncode == 0, done
    return done


@contextlib.asynccontextmanager
async def running(*command: Argument, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a command until this is left. Options are those of `asyncio.create_subprocess_exec`."""
    options = _without_preload(command, options)
    process = await asyncio.create_subprocess_exec(*command, start_new_session=True, **options)
    _watch("+", process.pid)
    try:
        yield process
    finally:
        kill_group(process.pid)
        await process.communicate()


async def until_output(process: asyncio.subprocess.Process, text: str, times: int = 1) -> None:
    """Read what a program prints until it has said something so many times.

    Processes that share a pipe can get between a line of another and its end, so these are not counted by lines.
    """
    assert process.stdout is not None
    async with asyncio.timeout(TIMEOUT):
        while times > 0:
            line = (await process.stdout.readline()).decode()
            assert line, "it has ended"
            times -= line.count(text)


def write_line(line: str) -> None:
    """Write a line of a protocol to the standard output, whole, so that no other process can get in between."""
    rest = memoryview(f"{line}\n".encode())
    while rest:
        rest = rest[os.write(sys.stdout.fileno(), rest) :]
