"""`wsfast demo`: its options."""

from __future__ import annotations

import argparse
import os
import sys

from wsfast_bench.machine import UnfitError, installed, reserve_descriptors, two_processors
from wsfast_bench.options import positive

__all__ = ["DESCRIPTION", "add_arguments", "run"]

DESCRIPTION = """Start a websockets server and, in another process, that many websockets clients; send them market ticks
by websockets.broadcast(), by wsfast.broadcast() and through a wsfast.Channel in turn, and compare. A page on 127.0.0.1
shows what happens, and can add clients, stall some, and choose method and policy. Each client that reads must get every
tick exactly once and in order, or the exit status is 1."""

SPARE = 64
"""Descriptors for everything that is no client."""

METHODS = ("turns", "websockets", "wsfast", "channel")
POLICIES = ("Disconnect", "DropNewest", "DropOldest", "Conflate")


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
        help="end after so long, with a summary (10; on a terminal, Ctrl-C ends it)",
    )
    parser.add_argument("--clients", type=positive, default=1000, metavar="N", help="how many clients (1000)")
    parser.add_argument("--stalled", type=positive, default=0, metavar="N", help="how many of them read nothing (0)")
    parser.add_argument("--rate", type=float, default=10.0, metavar="R", help="ticks per second, at most (10)")
    parser.add_argument("--size", type=positive, default=256, metavar="B", help="bytes of a tick (256)")
    parser.add_argument("--method", choices=METHODS, default="turns", help="how ticks are sent (turns: all)")
    parser.add_argument(
        "--policy", choices=POLICIES, default="Conflate", help="what the Channel does about slow clients (Conflate)"
    )
    parser.add_argument(
        "--port", type=port, metavar="P", help="where the page is; 0: any free port (8765, if it is free)"
    )
    browser = parser.add_mutually_exclusive_group()
    browser.add_argument(
        "--browser", action="store_true", default=None, help="open the page (done on a terminal with a display)"
    )
    browser.add_argument(
        "--no-browser", action="store_false", dest="browser", help="do not; the terminal shows the same numbers"
    )
    parser.add_argument(
        "--loop", choices=("auto", "asyncio", "uvloop"), default="auto", help="event loop (auto: uvloop if installed)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demonstration; return 1 if a client missed a tick."""
    from wsfast_bench.demo.commands import CommandError, Settings
    from wsfast_bench.demo.server import Demo

    on_terminal = sys.stdout.isatty()
    seconds: float | None = arguments.seconds
    if seconds is None and not on_terminal:
        seconds = 10.0
    if (seconds is not None and not seconds > 0) or not arguments.rate > 0:
        raise UnfitError("--seconds and --rate must be positive")
    settings = Settings(arguments.method, arguments.policy)
    try:
        settings.set_rate(arguments.rate)
        settings.set_size(arguments.size)
    except CommandError as exc:
        raise UnfitError(str(exc)) from None
    loop: str = arguments.loop
    if loop == "auto":
        loop = "uvloop" if installed("uvloop") else "asyncio"
    if loop == "uvloop" and not installed("uvloop"):
        raise UnfitError("uvloop is not installed; pip install wsfast[uvloop], or take --loop asyncio")
    reserve_descriptors(arguments.clients + SPARE, f"{arguments.clients} clients")
    demo = Demo(
        clients=arguments.clients,
        seconds=seconds,
        settings=settings,
        loop=loop,
        processors=two_processors(),
        stalled=arguments.stalled,
        port=arguments.port,
        limit=max(arguments.clients, min(10_000, descriptors() - SPARE)),
        browse=on_terminal and has_display() if arguments.browser is None else arguments.browser,
    )
    return demo.run()


def descriptors() -> int:
    """Return how many descriptors this process may have open."""
    try:
        import resource
    except ImportError:  # pragma: no cover - Windows has no such limit
        return 10_000
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def has_display() -> bool:
    """Tell whether a browser would have a screen to open on: not a text browser in the terminal that is in use."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
