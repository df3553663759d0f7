"""Runs a soak: `python -m soak --minutes 5`, in tests/."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from helpers import brokers
from helpers.cores import CORES
from soak.link import Link
from soak.messages import FEED, GENERATION
from soak.plan import draw

ROUND = 20.0
"""Seconds in which something is published."""

WARM_UP = 4
"""Rounds of each process whose memory is not looked at."""

CLIMB = 48 << 20
"""Bytes by which the memory of a server may grow after that."""


class Totals:
    """What all rounds come to."""

    def __init__(self) -> None:
        self.deliveries = self.wrong = self.reconciled = self.interrupts = self.cut = self.rounds = 0
        self.resident: dict[str, list[int]] = {}

    def climbed(self) -> list[str]:
        """Return the servers whose memory has grown."""
        climbed = []
        for core, sizes in self.resident.items():
            late = sizes[WARM_UP:]
            third = len(late) // 3
            if third and min(late[-third:]) > max(late[:third]) + CLIMB:
                climbed.append(f"memory of the server ({core}) climbs: {_sizes(sizes)}")
        return climbed

    def __str__(self) -> str:
        memory = "; ".join(f"{core}: {_sizes([sizes[0], sizes[-1]])}" for core, sizes in self.resident.items() if sizes)
        return (
            f"{self.deliveries:,} deliveries in {self.rounds} rounds, {self.wrong} wrong, {self.reconciled:,} "
            f"subscriptions reconciled ({self.cut:,} of them cut), {self.interrupts:,} interrupts; memory first, last: "
            f"{memory}"
        )


def _sizes(sizes: list[int]) -> str:
    return ", ".join(f"{size / (1 << 20):.0f} MiB" for size in sizes)


def compare(server: dict[str, Any], oracle: dict[str, Any]) -> tuple[list[str], int, int]:
    """Return where what the server has sent is not what the clients have got; how many compared equal, and were cut."""
    faults: list[str] = []
    reconciled = cut = 0
    for number, received in oracle["clients"].items():
        feeds = server["clients"].get(number, {})
        active = server["active"].get(number, [])
        for feed in {*feeds, *received["feeds"]}:
            counts, got = feeds.get(feed, [0] * 5), received["feeds"].get(feed, 0)
            sent, most = counts[1], counts[1] + server["slack"].get(number, {}).get(feed, 0)
            if received["end"] == "cut" and server["interrupts"]:
                # It may have been aborted before what it was sent was counted, which counts as dropped then.
                most = max(most, counts[1] + counts[2])
            if got <= most and got + received["empty"] >= sent:
                reconciled += 1
            elif got > most or (
                received["end"] != "cut" and not (received["end"] and int(feed) in server["loose"].get(number, ()))
            ):
                state = received["end"] or ("subscribed" if int(feed) in active else "not subscribed any more")
                faults.append(f"client {number} ({state}), feed {feed}: {got} received, {feeds.get(feed)} counted")
            else:
                reconciled += 1
                cut += 1
        if received["end"]:
            continue
        for source, (start, end) in server["ranges"].get(number, {}).items():
            count, first, last = received["sources"].get(source, (0, start, start - 1))
            if first > start or last != end - 1 or count != last - first + 1:
                faults.append(
                    f"client {number}, feed {int(source) // FEED}, source {source}: {start} to {end - 1} published, "
                    f"{count} from {first} to {last} received"
                )
    return faults, reconciled, cut


async def play(
    plan: dict[str, Any], server: Link, oracle: Link, urls: dict[str, str], totals: Totals
) -> tuple[list[str], str]:
    """Play a round; return what was wrong with it, and what it came to."""
    ports = await server.ask("round", plan=plan, brokers=urls)
    specs = [
        {**client, "number": number, "port": ports[client["server"]]} for number, client in enumerate(plan["clients"])
    ]
    await oracle.ask("connect", specs=specs)
    await asyncio.sleep(plan["seconds"])
    await oracle.ask("calm")
    await server.ask("settle", timeout=120)
    deadline = time.monotonic() + 20
    while True:
        counted = await server.ask("report")
        received = await oracle.ask("report")
        faults, reconciled, cut = compare(counted, received)
        if not (faults or counted["faults"]) or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.2)
    faults += counted["faults"] + received["faults"]
    closed = asyncio.create_task(server.ask("close", timeout=120))
    left = await oracle.ask("finish")
    # One that is closing has its library to wait for: that the server has let go of all descriptors is checked there.
    left = [client for client in left if "(closing" not in client]
    if left:
        faults.append(f"{len(left)} clients have not ended: {', '.join(left[:10])}")
    end = await closed
    faults += end["faults"]
    deliveries = sum(sum(one["feeds"].values()) + one["empty"] for one in received["clients"].values())
    totals.deliveries += deliveries
    totals.wrong += len(faults)
    totals.reconciled += reconciled
    totals.cut += cut
    totals.interrupts += counted["interrupts"]
    totals.rounds += 1
    totals.resident.setdefault(plan["core"], []).append(end["resident"])
    comeback = sum(int(number) >= GENERATION for number in received["clients"])
    text = (
        f"{deliveries:,} deliveries, {len(received['clients'])} connections ({comeback} came back), "
        f"{counted['tickets']} subscriptions, {counted['interrupts']} interrupts, {end['resident'] / (1 << 20):.0f} MiB"
    )
    return faults, text


def _describe(plan: dict[str, Any]) -> str:
    servers = ", ".join(f"{one['library']} ({one['compression']})" for one in plan["servers"])
    feeds = ", ".join(
        one["kind"] + (" " + one["policy"]["type"] if one["kind"] in ("channel", "hub") else "")
        for one in plan["feeds"]
    )
    how = f"{plan['core']}, {plan['loop']}, {plan['senders']} senders"
    return f"{how}: {feeds} to {len(plan['clients'])} clients of {servers}"


async def soak(arguments: argparse.Namespace) -> int:
    """Play rounds until the time is over; return the exit status."""
    totals = Totals()
    begin = time.monotonic()
    faulty: list[int] = []
    async with contextlib.AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        kinds = [kind for kind in brokers.KINDS if brokers.why_not(kind) is None]
        urls = {kind: stack.enter_context(brokers.started(kind, Path(directory))).url for kind in kinds}
        links: dict[str, Link] = {}
        number = arguments.round or 0
        seconds = min(arguments.seconds, arguments.minutes * 60)
        while time.monotonic() - begin < arguments.minutes * 60:
            seed = f"{arguments.seed} {number}"
            core = arguments.core or random.Random(seed).choices(CORES, [3, 1][: len(CORES)])[0]
            plan = {**draw(seed, core, seconds, kinds), **dict.fromkeys(arguments.without, 0.0)}
            plan["senders"] = arguments.senders or plan["senders"]
            for name in ("oracle", core):
                if name not in links:
                    environment = {**os.environ, "WSFAST_PURE": "1" if name == "py" else "0"}
                    module = "soak.oracle" if name == "oracle" else "soak.server"
                    links[name] = await stack.enter_async_context(Link.to(name, module, env=environment))
            print(f"round {number}: {_describe(plan)}", flush=True)
            if arguments.verbose:
                print(json.dumps(plan), flush=True)
            try:
                faults, text = await play(plan, links[core], links["oracle"], urls, totals)
            except RuntimeError as exc:
                faults, text = [str(exc)], "it did not end"
                totals.wrong += 1
            print(f"  {text}", flush=True)
            for fault in faults[:20]:
                print(f"  WRONG: {fault}", flush=True)
            if faults:
                faulty.append(number)
                command = f"make soak MINUTES={arguments.minutes:g} SEED={arguments.seed} ROUND={number}"
                print(f"  reproduce: {command}", flush=True)
            if text == "it did not end" or arguments.round is not None or (faults and not arguments.go_on):
                break
            number += 1
    totals.wrong += len(climbed := totals.climbed())
    for text in climbed:
        print(f"WRONG: {text}")
    print(f"seed {arguments.seed}: {totals}" + (f"; faulty rounds: {faulty}" if faulty else ""), flush=True)
    return 1 if totals.wrong else 0


def main() -> int:
    """Run a soak as the command line says."""
    parser = argparse.ArgumentParser(prog="soak")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", default="", help="what all chances are drawn from; else a new one")
    parser.add_argument("--round", type=int, help="play this round only")
    parser.add_argument("--seconds", type=float, default=ROUND, help="how long a round publishes")
    parser.add_argument("--senders", type=int, help="how many threads send; else it is drawn")
    parser.add_argument("--core", choices=["c", "py"], help="play with this core only")
    parser.add_argument("--go-on", action="store_true", help="go on after a faulty round")
    parser.add_argument("--without", nargs="*", default=[], help="what is left out: kicks, interrupts, threads ...")
    parser.add_argument("--verbose", action="store_true", help="print the plans")
    arguments = parser.parse_args()
    arguments.seed = arguments.seed or str(random.SystemRandom().randrange(10**9))
    print(f"seed {arguments.seed}", flush=True)
    return asyncio.run(soak(arguments))


if __name__ == "__main__":
    sys.exit(main())
