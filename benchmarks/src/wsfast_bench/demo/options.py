"""`wsfast demo`: its options."""

from __future__ import annotations

import argparse
import os
import sys

from wsfast_bench.machine import UnfitError, installed, reserve_descriptors
from wsfast_bench.options import positive

__all__ = ["DESCRIPTION", "add_arguments", "run"]

DESCRIPTION = """Send the same messages in three ways, each from a server process of its own to real clients: await
send() in a loop, websockets.broadcast(), and a wsfast.Channel. Then one client of each stops reading, as if it drove
into a tunnel. A page on 127.0.0.1 shows what happens; the terminal prints it and a summary. The exit status is 1 if a
client that reads missed a message."""

SPARE = 64
"""Descriptors of a process that are no clients."""

POLICIES = ("Disconnect", "DropOldest", "DropNewest", "Conflate")


def port(value: str) -> int:
    """Parse a port."""
    if not value.isascii() or not value.isdigit() or int(value) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, not {value!r}")
    return int(value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="compare for S seconds, then end (18; on a terminal, the page goes on until Ctrl-C)",
    )
    parser.add_argument("--clients", type=positive, default=333, metavar="N", help="clients of each server (333)")
    parser.add_argument("--rate", type=positive, default=20, metavar="R", help="messages per second (20)")
    parser.add_argument("--size", type=positive, default=16384, metavar="B", help="bytes of a message (16384)")
    parser.add_argument(
        "--policy", choices=POLICIES, default="DropOldest", help="what the Channel does about slow clients (DropOldest)"
    )
    parser.add_argument(
        "--port", type=port, metavar="P", help="port of the page; 0: any free port (8765 if it is free)"
    )
    browser = parser.add_mutually_exclusive_group()
    browser.add_argument(
        "--browser", action="store_true", default=None, help="open the page (default on a terminal with a display)"
    )
    browser.add_argument("--no-browser", action="store_false", dest="browser", help="do not open the page")
    parser.add_argument(
        "--loop", choices=("auto", "asyncio", "uvloop"), default="auto", help="event loop (auto: uvloop if installed)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; return 1 if a client that reads missed a message."""
    from wsfast_bench.demo.message import LARGEST, SMALLEST
    from wsfast_bench.demo.server import Demo
    from wsfast_bench.demo.show import FASTEST, Settings

    seconds: float | None = arguments.seconds
    if seconds is not None and not 0 < seconds < float("inf"):
        raise UnfitError("--seconds must be positive")
    if not SMALLEST <= arguments.size <= LARGEST:
        raise UnfitError(f"--size must be from {SMALLEST} to {LARGEST} bytes, not {arguments.size}")
    if arguments.rate > FASTEST:
        raise UnfitError(f"--rate must be at most {FASTEST} per second, not {arguments.rate}")
    loop: str = arguments.loop
    if loop == "auto":
        loop = "uvloop" if installed("uvloop") else "asyncio"
    if loop == "uvloop" and not installed("uvloop"):
        raise UnfitError('uvloop is not installed; pip install "wsfast[uvloop]", or choose --loop asyncio')
    reserve_descriptors(3 * arguments.clients + SPARE, f"{arguments.clients} clients of each server")
    on_terminal = sys.stdout.isatty()
    demo = Demo(
        Settings(arguments.clients, arguments.rate, arguments.size, arguments.policy, loop),
        seconds,
        stay=on_terminal and seconds is None,
        port=arguments.port,
        browse=on_terminal and has_display() if arguments.browser is None else arguments.browser,
    )
    return demo.run()


def has_display() -> bool:
    """Tell whether a browser has a screen to open on; a text browser would take the terminal that is in use."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
