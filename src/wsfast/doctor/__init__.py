"""`wsfast doctor`: checks the core, the installed software, and the limits of the system.

The modules `software` and `limits` do the checks. Each check yields a `Finding`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json

from wsfast import __version__

from .limits import Finding

__all__ = ["DESCRIPTION", "add_arguments", "run"]

DESCRIPTION = """Check the installation and the limits of this system. Each line begins with a level: ok (fine), note
(works, but worth knowing) or problem (does not work, or not for that many clients). Where a command fixes it, the next
line shows the command. The exit status is 1 if there is a problem, and 0 otherwise."""

EPILOG = """--json prints an object with "wsfast" (the version), "clients" (the number that limits are checked for),
"status" (the worst level), and "findings". Each finding has "key", "level" (ok, note, problem), "text", "cure" (a
command that fixes it, or null), "enough_for" (a number of clients, or null) and "value" (an object with the values that
were read).
Keys are core, sendfile, python, free-threading, websockets, loop, asyncio-debug, compression, libraries, open-files,
file-max, epoll, somaxconn, tcp_wmem, tcp_rmem, tcp_mem, notsent_lowat, ports, memory, processors, threads; a key is
left out where the system does not have it."""

LEVELS = ("ok", "note", "problem")


def positive(value: str) -> int:
    """Parse an integer of at least 1."""
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, not {value!r}")
    return int(value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument(
        "--clients",
        type=positive,
        default=10_000,
        metavar="N",
        help="number of clients to check the limits for (default: 10000)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs; its format is described below")
    parser.epilog = EPILOG
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run all checks and print the findings; return 1 if there is a problem."""
    from .limits import examine_limits
    from .software import examine_software

    clients: int = arguments.clients
    findings = [*examine_software(), *examine_limits(clients)]
    counts = {level: sum(finding.level == level for finding in findings) for level in LEVELS}
    if arguments.json:
        worst = max((finding.level for finding in findings), key=LEVELS.index)
        content = {
            "wsfast": __version__,
            "clients": clients,
            "status": worst,
            "findings": [dataclasses.asdict(finding) for finding in findings],
        }
        print(json.dumps(content, indent=1))
    else:
        _print(findings)
        print(f"\n{_count(counts['problem'], 'problem')}, {_count(counts['note'], 'note')} for {clients} clients")
    return 1 if counts["problem"] else 0


def _print(findings: list[Finding]) -> None:
    width = max(len(finding.key) for finding in findings)
    for finding in findings:
        print(f"{finding.level:7}  {finding.key:{width}}  {finding.text}")
        if finding.cure is not None:
            print(f"{'':7}  {'':{width}}  fix: {finding.cure}")


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'s' * (number != 1)}"
