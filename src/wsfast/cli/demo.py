"""`wsfast demo`: its options."""

from __future__ import annotations

import argparse

from .machine import UnfitError, installed, reserve_descriptors, two_processors
from .options import positive

__all__ = ["DESCRIPTION", "HELP", "add_arguments", "run"]

HELP = "watch websockets.broadcast() and wsfast.broadcast() take turns on a live server"

DESCRIPTION = """Start a websockets server and, in another process, that many websockets clients; broadcast market ticks
by websockets.broadcast() and by wsfast.broadcast() in turn; compare them, and check that each client got every tick
exactly once and in order."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="how long to broadcast (10)")
    parser.add_argument("--clients", type=positive, default=1000, metavar="N", help="how many clients (1000)")
    parser.add_argument("--rate", type=float, default=10.0, metavar="R", help="ticks per second, at most (10)")
    parser.add_argument(
        "--loop", choices=("auto", "asyncio", "uvloop"), default="auto", help="event loop (auto: uvloop if installed)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demonstration; return 1 if a client missed a tick."""
    from wsfast.demo.server import Demo

    if arguments.seconds <= 0 or arguments.rate <= 0:
        raise UnfitError("--seconds and --rate must be positive")
    loop: str = arguments.loop
    if loop == "auto":
        loop = "uvloop" if installed("uvloop") else "asyncio"
    if loop == "uvloop" and not installed("uvloop"):
        raise UnfitError("uvloop is not installed; pip install wsfast[uvloop], or take --loop asyncio")
    reserve_descriptors(arguments.clients + 64, f"{arguments.clients} clients")
    demo = Demo(
        clients=arguments.clients,
        seconds=arguments.seconds,
        rate=arguments.rate,
        loop=loop,
        processors=two_processors(),
    )
    return demo.run()
