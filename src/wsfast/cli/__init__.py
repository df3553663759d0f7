"""The command line: `wsfast bench`, `wsfast demo` and `wsfast doctor`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from wsfast import __version__

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; None for those of the process.

    Returns:
        The exit status: 0; 1 if the command failed or found a problem; 130 if it was interrupted.

    Raises:
        SystemExit: With status 2 if the arguments are wrong, with 0 after `--help` and `--version`.
    """
    # A command is imported when the command line needs it, and nobody who imports wsfast pays for it.
    from . import bench, demo, doctor
    from .machine import UnfitError

    parser = argparse.ArgumentParser(prog="wsfast", description="Fan-out over WebSocket connections.")
    parser.add_argument("--version", action="version", version=f"wsfast {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in (("bench", bench), ("demo", demo), ("doctor", doctor)):
        command.add_arguments(commands.add_parser(name, help=command.HELP, description=command.DESCRIPTION))
    arguments = parser.parse_args(argv)
    arguments.argv = sys.argv[1:] if argv is None else list(argv)
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
