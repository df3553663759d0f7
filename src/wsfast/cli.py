"""The command line: `wsfast doctor`, and `wsfast bench` and `wsfast demo` where wsfast-bench is installed."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from . import __version__

__all__ = ["UnfitError", "main"]

COMMANDS = {
    "bench": ("wsfast_bench.bench", "measure what a broadcast costs, against websockets, picows and a loop of send()"),
    "demo": ("wsfast_bench.demo.options", "watch broadcast() and a Channel at work, in a browser or in the terminal"),
    "doctor": ("wsfast.doctor", "tell which core is in use and why, what is installed, and which limits will bite"),
}
"""Each command's module, which has `DESCRIPTION` and `add_arguments()`, and its line in the help."""


class UnfitError(Exception):
    """A command cannot do what was asked for; the text says why and what would help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; None for those of the process.

    Returns:
        The exit status: 0; 1 if the command failed, found a problem or is not installed; 130 if it was interrupted.

    Raises:
        SystemExit: With status 2 if the arguments are wrong, with 0 after `--help` and `--version`.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="wsfast", description="Fan-out over WebSocket connections.")
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
            print(f'wsfast {name}: not installed; pip install "wsfast[bench]"', file=sys.stderr)
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
        # Whoever read the output has seen enough, as `head` does. Nor may the interpreter flush any more of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status
