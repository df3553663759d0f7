"""The command line: `wsfast doctor`; also `wsfast bench` and `wsfast demo` if wsfast-bench is installed."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from . import __version__

__all__ = ["UnfitError", "main"]

COMMANDS = {
    "bench": (
        "wsfast_bench.bench",
        "measure the cost of a broadcast, compared with websockets, picows and a bare loop of send()",
    ),
    "demo": (
        "wsfast_bench.demo.options",
        "watch what one stalled client does to a loop of send(), broadcast() and a Channel",
    ),
    "doctor": ("wsfast.doctor", "check the installation and the limits of this system for a number of clients"),
}
"""For each command, its module, which has `DESCRIPTION` and `add_arguments()`, and its line in the help."""


class UnfitError(Exception):
    """A command cannot do what was asked; the text says why, and what would help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; None means those of the process.

    Returns:
        The exit status: 0 on success; 1 if the command failed, found a problem or is not installed; 130 if it was
        interrupted.

    Raises:
        SystemExit: With status 2 if the arguments are wrong, and with 0 after `--help` and `--version`.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="wsfast", description="Send messages to many WebSocket connections.")
    parser.add_argument("--version", action="version", version=f"wsfast {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, line) in COMMANDS.items():
        subparser = commands.add_parser(name, help=line)
        if name not in argv[:1]:
            continue
        try:
            command = importlib.import_module(module)
        except ModuleNotFoundError as exc:
            if exc.name != "wsfast_bench":
                raise
            install = 'pip install "wsfast[bench]", or in a clone: pip install ./benchmarks'
            print(f"wsfast {name}: this command needs wsfast-bench, which is not installed; {install}", file=sys.stderr)
            return 1
        subparser.description = command.DESCRIPTION
        command.add_arguments(subparser)
    arguments = parser.parse_args(argv)
    arguments.argv = argv
    try:
        status: int = arguments.run(arguments)
    except UnfitError as exc:
        print(f"wsfast {arguments.command}: error: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nwsfast {arguments.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the output has stopped reading, like `head`. The interpreter must not flush the rest either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status
