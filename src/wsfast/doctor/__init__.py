"""`wsfast doctor`: which core is in use and why, what is installed, and which limits of the system will bite.

`software` and `limits` look; what they find are objects of `finding`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json

from wsfast import __version__

from .limits import Finding

__all__ = ["DESCRIPTION", "add_arguments", "run"]

DESCRIPTION = """Look at the installation and at the system, and say of each thing whether it is fine (ok), good to know
(note), or will not work, or not for that many clients (problem); and which command cures it. The exit status is 1 if
there is a problem, else 0."""

EPILOG = """--json prints an object with "wsfast" (its version), "clients" (for how many it was judged), "status" (the
worst level), and "findings": for each, "key", "level" (ok, note, problem), "text", "cure" (a command, or null),
"enough_for" (clients, or null) and "value" (what was read, an object). Keys are core, sendfile, python, free-threading,
websockets, loop, asyncio-debug, compression, libraries, open-files, file-max, epoll, somaxconn, tcp_wmem, tcp_rmem,
tcp_mem, notsent_lowat, ports, memory, processors, threads; those that do not exist on a system are left out."""

LEVELS = ("ok", "note", "problem")


def positive(value: str) -> int:
    """Parse an integer that is at least 1."""
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, not {value!r}")
    return int(value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument(
        "--clients", type=positive, default=10_000, metavar="N", help="judge the limits for so many (10000)"
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.epilog = EPILOG
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Look at everything and print it; return 1 if there is a problem."""
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
        print(f"\n{_count(counts['problem'], 'problem')}, {_count(counts['note'], 'note')}, for {clients} clients")
    return 1 if counts["problem"] else 0


def _print(findings: list[Finding]) -> None:
    width = max(len(finding.key) for finding in findings)
    for finding in findings:
        print(f"{finding.level:7}  {finding.key:{width}}  {finding.text}")
        if finding.cure is not None:
            print(f"{'':7}  {'':{width}}  cure: {finding.cure}")


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'s' * (number != 1)}"
