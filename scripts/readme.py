"""Run README.md as a reader does: paste each block, from first to last, in an empty directory with an empty home.

It does so twice: with the Python of a virtual environment, and with the system's. For each command it prints the time,
the disk space that it takes, and the longest time for which it prints nothing. The public repository is this clone,
as it is committed. A server runs until a client has received something. Port 8765 is another one if it is in use.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from websockets.sync.client import connect

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.pages import Block, blocks_of  # noqa: E402

URL = "https://github.com/wsfast/wsfast"
PORT = "8765"
SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PATIENCE, LIMIT = 30.0, 1800.0
"""Seconds that a server has to begin, or to end; and that another command may take."""
KEEP = re.compile(r"PIP_.*|.*_PROXY|LANG|LC_.*|SSL_CERT_.*|TERM|CC|JOBS", re.IGNORECASE)
"""Variables of this environment that a reader has as well."""

# Directory and variables outlive a command; they are kept in files beside the directory.
SHELL = """
[ ! -e "$STATE" ] || { . "$STATE"; cd "$PWD"; }
eval "$1"
status=$?
export -p >"$STATE"
exit $status
"""


class PageError(Exception):
    """A block does not do what the reader expects."""


def disk_use(path: Path) -> int:
    """Return the bytes that a directory takes on disk."""
    stats = {}
    for one in path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a program may still remove what it has made
            stat = one.lstat()
            stats[stat.st_dev, stat.st_ino] = stat
    return sum(stat.st_blocks * 512 for stat in stats.values())


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


class Reader:
    """Somebody with an empty directory, who pastes blocks into files and a shell."""

    def __init__(self, base: Path, path: str, port: str) -> None:
        self.base = base
        self.port = port
        self.directory = base / "reader"
        self.directory.mkdir(parents=True)
        (base / "home").mkdir()
        redirect = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{ROOT}.insteadOf", "GIT_CONFIG_VALUE_0": URL}
        kept = {name: value for name, value in os.environ.items() if KEEP.fullmatch(name)}
        self.environment = {**kept, **redirect, "PATH": path, "HOME": str(base / "home"), "STATE": str(base / "state")}
        self.used = 0

    def start(self, command: str) -> subprocess.Popen[bytes]:
        """Start a command in a process group of its own."""
        return subprocess.Popen(
            ["bash", "-c", SHELL, "bash", command],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, command: str) -> None:
        """Run a command to its end."""
        began = last = time.monotonic()
        silence, output = 0.0, b""
        with self.start(command) as process, selectors.DefaultSelector() as selector:
            assert process.stdout is not None
            selector.register(process.stdout, selectors.EVENT_READ)
            try:
                while True:
                    ready = selector.select(began + LIMIT - time.monotonic())
                    now = time.monotonic()
                    silence, last = max(silence, now - last), now
                    if not ready or not (piece := os.read(process.stdout.fileno(), 1 << 16)):
                        break
                    output += piece
                if not ready or process.wait() != 0:
                    why = f"exit status {process.returncode}" if ready else f"not done after {LIMIT:.0f} s"
                    raise PageError(f"{command}: {why}\n{output.decode(errors='replace')}")
            finally:
                kill(process)
        self.tell(command, time.monotonic() - began, silence)

    def serve(self, command: str) -> None:
        """Start a server, have a client receive a message, and end it as Ctrl-C does."""
        began, received = time.monotonic(), list[str | bytes]()
        with self.start(f"exec {command}") as process:
            try:
                received.append(self.receive(process))
                seconds = time.monotonic() - began
                os.killpg(process.pid, signal.SIGINT)
                process.wait(PATIENCE)
            finally:
                kill(process)
                output = process.communicate()[0]
                if not received:
                    print(output.decode(errors="replace"))
        print(f"  a client received {received[0]!r}")
        self.tell(command, seconds, seconds)

    def receive(self, process: subprocess.Popen[bytes]) -> str | bytes:
        """Connect to a server as soon as it is there, say something, and return the first message."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with connect(f"ws://127.0.0.1:{self.port}/") as client:
                    client.send("hello")
                    return client.recv(timeout=PATIENCE)
            except OSError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise PageError(f"no server: {error}") from None
                time.sleep(0.05)

    def tell(self, command: str, seconds: float, silence: float) -> None:
        """Print what a command took."""
        before, self.used = self.used, disk_use(self.base)
        megabytes = (self.used - before) / 1e6
        print(f"  {seconds:6.1f} s, silent {silence:5.1f} s, {megabytes:+8.1f} MB  {command}", flush=True)


def read(reader: Reader, blocks: list[Block], skipped: list[str]) -> None:
    """Paste all blocks."""
    pasted = "\n".join(block.code for block in blocks if block.language == "console")
    for block in blocks:
        code = block.code.replace(PORT, reader.port)
        commands = [line[2:].partition("  #")[0].strip() for line in code.splitlines() if line.startswith("$ ")]
        if block.language in ("python", "html"):
            if block.file is None:
                raise PageError(f"{block}: the text before the block does not say which file it is")
            (reader.directory / block.file).write_text(code)
            runs = "__main__" in code and f"python {block.file}" not in pasted
            commands = [f"python {block.file}"] if runs else []
        for command in commands:
            if command in skipped:
                print(f"  skipped: {command}")
                continue
            if shlex.split(command)[0] == "uvicorn" or re.fullmatch(r"python \w+\.py", command):
                reader.serve(command)
            else:
                reader.run(command)


def main() -> int:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", default="README.md", help="another page of this repository")
    parser.add_argument("--only", choices=("venv", "system"), help="one of the two")
    parser.add_argument("--skip", action="append", default=[], metavar="COMMAND", help="leave out a command")
    parser.add_argument("--port", default=PORT, help="in place of the port of the page")
    arguments = parser.parse_args()
    os.environ["no_proxy"] = "127.0.0.1"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background may have it ignored
    for kind in [arguments.only] if arguments.only else ["venv", "system"]:
        with tempfile.TemporaryDirectory() as folder:
            path = SYSTEM
            if kind == "venv":
                subprocess.run([sys.executable, "-m", "venv", "--without-pip", f"{folder}/venv"], check=True)
                path = f"{folder}/venv/bin:{SYSTEM}"
            base = Path(folder, "base")
            version = subprocess.check_output(["python3", "-VV"], env={"PATH": path}, text=True).split("\n")[0]
            print(f"{kind}: {version}", flush=True)
            try:
                read(Reader(base, path, arguments.port), blocks_of(arguments.page), arguments.skip)
            except PageError as error:
                print(error)
                return 1
            print(f"  {disk_use(base) / 1e6:.1f} MB in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
