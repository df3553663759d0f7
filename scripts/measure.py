"""Run every benchmark that the figures of README and docs come from.

    python scripts/measure.py                # all that docs/measurements does not have yet, in order
    python scripts/measure.py --again        # all, from the beginning
    python scripts/measure.py cores tls      # these only, whether they are there or not

Each command writes one file of docs/measurements. A command that was interrupted leaves no file, so the script goes on
there when it is started again. Then `python scripts/measurements.py` writes the figures of README and docs. It takes
about 18 minutes. Nothing else should run on the machine meanwhile. Needs wsfast-bench, and `build/ws` with the package
ws for Node (`npm install --prefix build/ws ws`); without that, the table of ticks has no row for Node.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MEASUREMENTS = ROOT / "docs" / "measurements"
NODE = ROOT / "build" / "ws"

COLD = "--cold --threads 1 --loops asyncio --rounds 20"
FAST = "floor,floor-served,wsfast,wsfast-served,channel,websockets,picows"
PATTERNS = "floor,floor-served,channel,wsfast,wsfast-pure,websockets,picows,await,tasks,wait,queues,pubsub"

RUNS = {
    "broadcast": f"--clients 1000,4000 --loops asyncio,uvloop --rounds 30 --methods {FAST}",
    "memory": "--memory only --clients 1000 --sizes 256 --loops asyncio --compression deflate",
    "cores": "--scenario cores --threads 1,2 --rounds 30",
    "stalled": "--scenario stalled --clients 200 --messages 8000",
    "wire": "--scenario wire --messages 200",
    "crowded": "--scenario crowded --rounds 30",
    "heartbeat": "--scenario heartbeat --loops asyncio,uvloop",
    "cold-1000": f"{COLD} --clients 1000",
    "cold-1000-deflate": f"{COLD} --clients 1000 --sizes 256 --compression deflate",
    "cold-4000-stock": f"{COLD} --clients 4000 --methods floor,wsfast,websockets,picows",
    "cold-4000-served": f"{COLD} --clients 4000 --methods floor-served,wsfast-served,channel,hub",
    "tick": "--tick 20 --cold --threads 1 --loops asyncio --clients 1000 --rounds 25",
    "burst": "--clients 1000 --loops asyncio --burst 16 --rounds 8 --methods "
    "floor,floor-served,wsfast,wsfast-served,channel,channel-stock,websockets,picows",
    "patterns": f"--clients 1000 --loops asyncio --rounds 8 --methods {PATTERNS}",
    "conflate": "--scenario conflate --seconds 20",
    "large": "--scenario large",
    "tls": "--scenario tls --loops asyncio,uvloop",
    "topics": "--scenario topics --seconds 2",
    "subscriptions": "--scenario memory-subscriptions",
    "frameworks": "--scenario frameworks --clients 250",
    "integrations": "--scenario integrations --rounds 20",
    "relay": "--scenario relay --seconds 3",
    "herd": "--scenario herd --loops asyncio,uvloop",
    "rolling": "--scenario rolling",
}
"""Options of `wsfast bench` for each file, in the order in which they run: those of README first."""

KEPT = {"short"}
"""Samples that stay in a file: the report page needs them."""


def trim(content: dict[str, Any]) -> dict[str, Any]:
    """Leave the samples out of what `wsfast bench --json` writes: the summaries are enough for tables."""
    for entry in content.get("cases", ()):
        for method in entry["methods"].values():
            method["samples"] = {key: value for key, value in method["samples"].items() if key in KEPT}
    for entry in content.get("scenarios", ()):
        for row in entry["rows"]:
            row.pop("ages", None)
    return content


def measure(name: str) -> None:
    """Run one command, and write its file.

    Raises:
        subprocess.CalledProcessError: If the command fails.
    """
    path = MEASUREMENTS / f"{name}.json"
    new = path.with_suffix(".new")
    options = shlex.split(RUNS[name])
    if name == "tick" and NODE.is_dir():
        options += ["--node", str(NODE.relative_to(ROOT))]
    command = [sys.executable, "-m", "wsfast", "bench", *options, "--json", str(new), "--no-progress"]
    try:
        subprocess.run(command, cwd=ROOT, check=True)
        content = trim(json.loads(new.read_text(encoding="utf-8")))
    finally:
        new.unlink(missing_ok=True)
    content["command"] = shlex.join(["wsfast", "bench", *options])
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)}")
    parser.add_argument("--again", action="store_true", help="run also what was measured before")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in RUNS]:
        parser.error(f"unknown: {', '.join(unknown)}")
    MEASUREMENTS.mkdir(exist_ok=True)
    wanted = arguments.names or [
        name for name in RUNS if arguments.again or not (MEASUREMENTS / f"{name}.json").exists()
    ]
    failed = []
    for number, name in enumerate(wanted, 1):
        start = time.monotonic()
        print(f"\n==== {number} of {len(wanted)}: {name}", flush=True)
        try:
            measure(name)
        except subprocess.CalledProcessError:
            failed.append(name)
        print(f"==== {name}: {time.monotonic() - start:.0f} s", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
